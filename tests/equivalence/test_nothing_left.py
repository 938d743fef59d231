"""A finished video or step leaves nothing behind: what a GPU holds must not wait until Python looks for cycles."""

import gc
import weakref
from contextlib import contextmanager, nullcontext

import pytest
from torch import Tensor, nn

from hpdm_core.families.hpdm.branch import Tiles
from hpdm_core.rng import BatchStreams
from tests.support import tiny_hpdm, tiny_mdm, tiny_pvdm


def live_bytes():
    """The size of all tensors that exist."""
    tensors = [thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


@contextmanager
def leaves_nothing():
    """Fails where a tensor made inside lives on, cycles or not."""
    gc.collect()
    gc.disable()
    try:
        before = live_bytes()
        yield
        assert live_bytes() == before
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("tiny", "options"),
    [
        (tiny_hpdm, {}),
        (tiny_hpdm, {"cache": False}),
        (tiny_hpdm, {"phases": "alternate", "guidance": (2.0,)}),
        (tiny_mdm, {}),
        (tiny_pvdm, {"request": {"frames": 8}}),
    ],
)
def test_nothing_is_left_of_a_plan(tiny, options):
    family = tiny.tiny_family()
    tiny.sample(family, (0,), (1,), **options)  # what is made once and kept, such as tables of positions
    with leaves_nothing():
        tiny.sample(family, (1,), (1,), **options)


@pytest.mark.parametrize("guidance", [(1.0,), (2.0, 1.0), (2.0,)])
def test_a_level_of_hpdm_begins_when_the_tiles_of_the_one_before_are_gone(guidance, monkeypatch):
    """They hold its context, the largest tensors of sampling; also those of the branch without a condition."""
    made, family = [], tiny_hpdm.tiny_family()
    begin = Tiles.__init__

    def watch(tiles, branch, grid, end=None):
        assert [ref().level for ref in made if ref() is not None and ref().level < grid.level] == []
        begin(tiles, branch, grid, end)
        made.append(weakref.ref(tiles))

    monkeypatch.setattr(Tiles, "__init__", watch)
    gc.disable()
    try:
        tiny_hpdm.sample(family, (1,), (1,), phases="alternate", guidance=guidance)
    finally:
        gc.enable()
    assert {ref() for ref in made} == {None}


@pytest.mark.parametrize("tiny", [tiny_hpdm, tiny_mdm, tiny_pvdm])
def test_nothing_is_left_of_a_step(tiny):
    family = tiny.tiny_family()
    for phase in family.phases():
        for role in phase.roles:
            for position in (0, 1):  # at the first step, what is made once and kept
                batch = tiny.random_batch(*([family] if tiny is tiny_hpdm else []), [position])
                with leaves_nothing() if position else nullcontext():
                    family(role.name, batch, BatchStreams(0, [position])).total.backward()
                    family.zero_grad()
