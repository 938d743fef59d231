"""Clips dealt to ranks: each to one, whole batches, put back in order whatever the numbers."""

import numpy as np
import pytest

from hpdm_core.errors import DataError
from hpdm_core.metrics.deal import Deal
from hpdm_core.metrics.features import Selection, fake_clips, real_clips, require_one_size
from hpdm_core.metrics.protocol import Protocol
from hpdm_core.metrics.sources import open_source


@pytest.mark.parametrize("count", [0, 1, 3, 7, 16, 23])
@pytest.mark.parametrize(("batch", "size"), [(1, 1), (1, 2), (3, 2), (4, 3), (8, 5)])
def test_what_is_dealt_comes_back_in_order(count, batch, size):
    items = list(range(count))
    deals = [Deal(batch, rank, size) for rank in range(size)]
    shares = [deal.mine(items) for deal in deals]
    together = [item for share in shares for item in share]
    assert sorted(together) == items
    for deal, share in zip(deals, shares, strict=True):
        assert [deal.position(own) for own in range(len(share))] == share
    order = deals[0].order([len(share) for share in shares])
    assert [together[place] for place in order] == items


def test_batches_are_those_of_one_process():
    alone = Deal(3)
    whole = [tuple(range(23))[i : i + 3] for i in range(0, 23, 3)]
    dealt = [Deal(alone.batch_size, rank, 2).mine(range(23)) for rank in range(2)]
    batches = {tuple(share[i : i + 3]) for share in dealt for i in range(0, len(share), 3)}
    assert batches == set(whole)


def test_all_ranks_must_agree():
    assert Deal().agree(True)
    assert not Deal(gather=lambda own: [own, False]).agree(True)


def test_real_clips_that_are_too_short_are_passed_over_before_dealing(tmp_path):
    for index, frames in enumerate((6, 3, 6, 6, 2, 6)):
        np.save(tmp_path / f"{index}.npy", np.full((frames, 8, 8, 3), 10 * index, np.uint8))
    protocol = Protocol(name="test", clip={"frames": 4}, real={"count": 4, "start": "first"}, fake={"count": 4})

    def taken(deal):
        seen = Selection()
        return [int(c[0, 0, 0, 0]) for c in real_clips(open_source(tmp_path), protocol, seen, 1, deal)], seen

    shares = [taken(Deal(1, rank, 2)) for rank in range(2)]
    assert [values for values, _ in shares] == [[0, 30], [20, 50]]
    merged = Selection.merged([seen for _, seen in shares])
    alone = taken(Deal(1))[1]
    assert (merged.count, merged.too_short, merged.size) == (alone.count, alone.too_short, alone.size) == (4, 2, (8, 8))


def test_ranks_that_read_different_sizes_are_told(tmp_path):
    for index, side in enumerate((8, 12)):
        np.save(tmp_path / f"{index}.npy", np.zeros((4, side, side, 3), np.uint8))
    protocol = Protocol(name="test", clip={"frames": 4}, real={"count": 2}, fake={"count": 2})
    parts = []
    for rank in range(2):
        parts.append(Selection())
        list(fake_clips(open_source(tmp_path), protocol, parts[-1], 1, Deal(1, rank, 2)))
    with pytest.raises(DataError, match=r"mixed sizes: 1\.npy is 12x12, 0\.npy is 8x8"):
        require_one_size(parts)
