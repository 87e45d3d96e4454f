"""MIG slices among the GPUs of a pool: one engine each, never beside engines on the whole of the same GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpupack import catalog
from gpupack.decide.pack import sharing_there
from gpupack.facts.gpu import Gpu
from gpupack.facts.policy import Policy
from gpupack.facts.serving import Mode, Serving, Sharing, SharingWish
from gpupack.plan import Step

from ..strategies import QUICK, gpu, key, serving
from .world import World

WHOLE = gpu(0)
CHAT = key("chat")


def cut(*profiles: str, of: Gpu = WHOLE) -> tuple[Gpu, ...]:
    """Slices of one GPU."""
    return tuple(
        Gpu(
            uuid=f"MIG-{number}-{of.uuid}", node=of.node, device_name=f"{of.device_name}-mig-{number}",
            kind=catalog.mig_profile(of.kind, profile).kind, parent_uuid=of.uuid,
        )
        for number, profile in enumerate(profiles)
    )  # fmt: skip


def wishing(name: str, wish: SharingWish, replicas: int = 1) -> Serving:
    asked = serving(name)
    return replace(asked, sharing=wish, scaling=replace(asked.scaling, min_replicas=replicas, max_replicas=replicas))


@pytest.mark.parametrize(
    ("wish", "on_slices", "on_gpus"),
    [
        (SharingWish.AUTO, Sharing.MIG, Sharing.MPS),
        (SharingWish.MIG, Sharing.MIG, None),
        (SharingWish.MPS, None, Sharing.MPS),
        (SharingWish.EXCLUSIVE, None, Sharing.EXCLUSIVE),
    ],
)
def test_mig_is_for_slices_and_the_rest_for_whole_gpus(
    wish: SharingWish, on_slices: Sharing | None, on_gpus: Sharing | None
) -> None:
    (piece,) = cut("1g.10gb")
    assert sharing_there(wishing("chat", wish), Policy(), piece.kind) is on_slices
    assert sharing_there(wishing("chat", wish), Policy(), WHOLE.kind) is on_gpus
    shut = Policy(sharing=frozenset({Sharing.MPS, Sharing.EXCLUSIVE}))
    assert sharing_there(wishing("chat", wish), shut, piece.kind) is None


def test_each_slice_gets_one_engine_and_the_claim_says_mig() -> None:
    slices = cut("2g.20gb", "2g.20gb", "2g.20gb")
    world = World(slices, [wishing("chat", SharingWish.AUTO, replicas=3)]).run(120)
    assert world.ready == {"chat": 3}
    assert world.plan is not None
    assert {each.gpu_uuid for each in world.plan.placements} == {each.uuid for each in slices}
    assert {each.sharing for each in world.plan.placements} == {Sharing.MIG}


def test_no_second_engine_comes_onto_a_slice() -> None:
    world = World(cut("3g.40gb"), [wishing("chat", SharingWish.MIG, replicas=2)]).run(60)
    assert world.ready == {"chat": 1}
    assert world.reason(CHAT) == "HeldByOthers"


@pytest.mark.parametrize("first", [SharingWish.MPS, SharingWish.MIG])
def test_a_gpu_whose_slices_are_in_use_is_not_used_as_a_whole_nor_the_other_way_round(first: SharingWish) -> None:
    second = SharingWish.MIG if first is SharingWish.MPS else SharingWish.MPS
    later = wishing("notes", second)
    world = World((WHOLE, *cut("3g.40gb", "3g.40gb")), [wishing("chat", first), replace(later, mode=Mode.SUSPEND)])
    assert world.run(40).ready == {"chat": 1}
    world.edit(key("notes"), later)
    world.run(60)
    assert world.ready == {"chat": 1}
    assert world.reason(key("notes")) == "HeldByOthers"


def test_the_most_gpus_of_a_pool_are_cards_and_all_slices_of_those_in_use_are_taken() -> None:
    slices = (*cut("3g.40gb", "3g.40gb"), *cut("3g.40gb", "3g.40gb", of=gpu(1)))
    world = World(slices, [wishing("chat", SharingWish.MIG, replicas=4)], policy=replace(QUICK, max_gpus=1)).run(120)
    assert world.plan is not None
    assert len(world.plan.placements) == 2
    assert len({world.gpus[each.gpu_uuid].card for each in world.plan.placements}) == 1


def test_the_profile_that_makes_the_most_of_its_bandwidth_is_taken_first() -> None:
    """Weights of 8 B parameters do not fit the smallest slice, and leave the next one little KV cache."""
    large = replace(wishing("chat", SharingWish.MIG), llm=catalog.llm("llama-3.1-8b"), slo=None)
    slices = cut("1g.10gb", "2g.20gb", "3g.40gb")
    for order in (slices, slices[::-1]):
        world = World(order, [large]).run(60)
        assert world.plan is not None
        (placed,) = world.plan.placements
        assert world.gpus[placed.gpu_uuid].kind.mig_profile == "3g.40gb"


def test_who_wants_slices_where_there_are_none_is_told() -> None:
    world = World([WHOLE], [wishing("chat", SharingWish.MIG)], policy=QUICK).run(10)
    assert world.ready == {}
    assert world.reason(CHAT) == Step.SHARING_NOT_ALLOWED
