import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpdm_core.families.pvdm.planes import PLANES, Planes, join_cells

SIDE = st.integers(1, 9)


@settings(max_examples=40, deadline=None)
@given(SIDE, SIDE, SIDE)
def test_split_and_join_are_inverse_for_any_grid(t, h, w):
    planes = Planes((t, h, w))
    z = torch.arange(2 * 3 * planes.num_cells).reshape(2, 3, -1)
    parts = planes.split(z)
    assert [tuple(part.shape[2:]) for part in parts] == [(h, w), (t, w), (t, h)]
    assert torch.equal(join_cells(parts), z)


def test_size_grows_with_the_faces_and_not_with_the_volume():
    assert Planes((16, 32, 32)).num_cells == 2048
    assert [Planes((t, 32, 32)).num_cells for t in (8, 16, 32, 64)] == [32 * 32 + t * 64 for t in (8, 16, 32, 64)]
    assert len(PLANES) == 3
