"""Class labels: the null class, the drop rate, and labels that are none."""

import pytest
import torch

from hpdm_core.conditioning.labels import NULL, LabelTokens, check_labels, drop_labels
from hpdm_core.errors import ConfigError
from hpdm_core.rng import BatchStreams


def test_null_reads_its_own_row():
    tokens = LabelTokens(3, 8)
    found = tokens(torch.tensor([0, 2, NULL]))
    assert found.shape == (3, 1, 8)
    assert torch.equal(found[:, 0], tokens.table.weight[[0, 2, 3]])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_drop_rate_over_ten_thousand_draws(share):
    labels = torch.arange(10_000) % 7
    kept = drop_labels(labels, share, BatchStreams(0, range(10_000)))
    dropped = kept == NULL
    assert dropped.float().mean().item() == pytest.approx(share, abs=0.01)
    assert torch.equal(kept[~dropped], labels[~dropped])


def test_a_row_is_dropped_by_its_position_not_its_place_in_the_batch():
    labels = torch.zeros(100, dtype=torch.int64)
    whole = drop_labels(labels, 0.5, BatchStreams(0, range(100)))
    part = drop_labels(labels[40:60], 0.5, BatchStreams(0, range(40, 60)))
    assert torch.equal(whole[40:60], part)


def test_labels_outside_the_classes_are_refused():
    check_labels([0, 2, NULL], 3)
    for strange in (3, -2):
        with pytest.raises(ConfigError, match=f"label {strange}") as error:
            check_labels([0, strange], 3)
        assert "0 to 2" in error.value.hint
