import pytest
import torch

from hpdm_core.nn.chunks import in_chunks


@pytest.mark.parametrize("rows", [1, 3, 4, 9])
def test_chunks_have_one_size_and_give_every_row_its_own_result(rows):
    seen = []

    def double(x, extra, absent):
        seen.append(len(x))
        assert absent is None
        return 2 * x + extra

    x, extra = torch.randn(rows, 2), torch.randn(rows, 1)
    torch.testing.assert_close(in_chunks(double, 4, x, extra, None), 2 * x + extra)
    assert seen == [4] * -(-rows // 4)


def test_padding_repeats_the_last_row():
    seen = []
    in_chunks(lambda x: seen.append(x.clone()) or x, 4, torch.arange(6)[:, None])
    assert seen[1][:, 0].tolist() == [4, 5, 5, 5]
