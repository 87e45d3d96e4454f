"""The plan while it is made: who is where, who counts, and that nothing is remembered that is no longer so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpupack import catalog
from gpupack.decide.board import Board, GpuState
from gpupack.facts.gpu import Gpu
from gpupack.facts.observation import Observation, Phase
from gpupack.facts.placement import Placement
from gpupack.facts.serving import Mode, Sharing
from gpupack.units import Bytes

from ..strategies import NOON, gpu, key
from .boards import A, B, board, board_on, seen, without_pod

CHAT, DOCS, GONE = key("chat"), key("docs"), key("gone")
ONE = "gpus: {a: , b: }\nservings: {chat: {batch: 64}}\nreplicas: [{serving: chat, gpu: a}]"
BOTH = """gpus: {a: , b: {node: node-1}}
servings: {chat: {batch: 64}, docs: {batch: 16}}
replicas: [{serving: chat, gpu: a}, {serving: docs, gpu: a}]"""
LEFT_OVER = ONE.replace("gpu: a}", "gpu: a, planned: false}")


def of_gone(each: Any, **fields: Any) -> Any:
    """The same of a serving that nobody knows any more."""
    return replace(each, serving=GONE, **fields)


# A GPU as everybody sees it


@pytest.mark.parametrize(
    ("fields", "shut"),
    [
        ({}, False),
        ({"barred": True}, True),
        ({"saturated": True}, True),
        ({"used": True}, False),
        ({"takes_one": True}, False),
        ({"used": True, "takes_one": True}, True),
    ],
)
def test_a_gpu_is_shut_that_is_barred_or_full_or_has_the_only_one_it_takes(fields: dict[str, bool], shut: bool) -> None:
    given: dict[str, Any] = dict.fromkeys(("barred", "used", "takes_one", "saturated"), False) | fields
    assert GpuState(tenants=frozenset(), free=Bytes(0), load=0.0, **given).is_shut is shut


def with_slices(observation: Observation) -> Observation:
    """With two MIG slices of the first GPU beside it, and one of a GPU that is not in the pool."""
    kind = catalog.mig_profile(gpu(0).kind, "1g.10gb").kind
    slices = [
        Gpu(uuid=f"MIG-{number}", node="node-0", device_name=f"mig-{number}", kind=kind, parent_uuid=parent)
        for number, parent in enumerate((A, A, "GPU-elsewhere"))
    ]
    first = observation.gpus[0]
    return replace(observation, gpus=(*observation.gpus, *(replace(first, gpu=each) for each in slices)))


def test_slices_and_the_gpu_they_are_cut_from_know_each_other() -> None:
    made = board_on(with_slices(seen(ONE)))
    found = {each: made.cut_with(each) for each in (A, B, "MIG-0", "MIG-1", "MIG-2")}
    assert found == {A: ("MIG-0", "MIG-1"), B: (), "MIG-0": (A,), "MIG-1": (A,), "MIG-2": ()}


def test_what_was_known_of_a_slice_is_forgotten_when_its_gpu_changes() -> None:
    made = board_on(with_slices(seen(ONE)))
    known = GpuState(
        barred=False, used=False, takes_one=False, saturated=False, tenants=frozenset(), free=Bytes(1), load=0.0
    )  # fmt: skip
    made.states = {A: known, B: known, "MIG-0": known, "MIG-2": known}
    made.remove(made.placements[0])
    assert set(made.states) == {B, "MIG-2"}


def test_on_a_slice_an_engine_has_the_slice_whatever_its_serving_does_on_whole_gpus() -> None:
    made = board_on(with_slices(seen(ONE)))
    assert [made.placed(how, "MIG-0") for how in (Sharing.MPS, Sharing.EXCLUSIVE)] == [Sharing.MIG] * 2
    assert [made.placed(how, A) for how in (Sharing.MPS, Sharing.EXCLUSIVE)] == [Sharing.MPS, Sharing.EXCLUSIVE]


# What moves and what rests


def ready(made: Board) -> bool:
    return made.is_ready(made.placements[0])


def test_a_replica_is_ready_that_serves_and_is_to_stay() -> None:
    assert ready(board(ONE))
    assert not ready(board(ONE, phase=Phase.STARTING))
    assert not ready(board(ONE, deletion_at=NOON))
    assert not ready(board(ONE, in_service=False))
    assert not ready(board_on(without_pod(seen(ONE))))


def test_a_gpu_moves_while_a_pod_is_there_that_nobody_planned() -> None:
    assert not board(ONE).is_moving(A)
    assert board(LEFT_OVER).is_moving(A)
    assert not board(LEFT_OVER).is_moving(B)


@pytest.mark.parametrize(
    ("mode", "has_pod", "moves"),
    [(Mode.ACTIVE, False, True), (Mode.SUSPEND, False, False), (Mode.SUSPEND, True, True), (Mode.ADVISE, False, False)],
)
def test_what_is_kept_from_coming_up_does_not_move(mode: Mode, has_pod: bool, moves: bool) -> None:
    observation = seen(ONE)
    observation = replace(observation, servings=tuple(replace(each, mode=mode) for each in observation.servings))
    starting = tuple(replace(each, phase=Phase.STARTING) for each in observation.replicas)
    assert board_on(replace(observation, replicas=starting if has_pod else ())).is_moving(A) is moves


def test_what_is_planned_for_a_serving_that_nobody_knows_moves() -> None:
    assert board_on(replace(seen(ONE), servings=(), replicas=())).is_moving(A)


def test_a_gpu_is_used_by_what_is_planned_and_by_what_still_stands_there() -> None:
    for text in (ONE, LEFT_OVER):
        made = board(text)
        assert (made.used, made.unused) == ((A,), (B,))


# What is kept is right


def test_the_rate_of_one_is_its_own_servings_and_changes_with_its_replicas() -> None:
    made = board(BOTH)
    chat, docs = (made.kin(each) for each in made.placements)
    made.rates = {CHAT: 64.0, DOCS: 16.0}
    rates = made.rate_of_one(chat, 0), made.rate_of_one(docs, 0), made.rate_of_one(chat, 1)
    assert rates == (pytest.approx(64.0, rel=0.03), pytest.approx(16.0, rel=0.03), pytest.approx(32.0, rel=0.03))
    made.add(replace(made.placements[0], slot=1))
    assert made.rate_of_one(chat, 0) == rates[2]


def test_a_pod_is_left_over_until_its_placement_is_there_again() -> None:
    made = board(ONE)
    placement = made.placements[0]
    assert made.leftovers_of(CHAT) == ()
    made.remove(placement)
    assert [each.name for each in made.leftovers_of(CHAT)] == [placement.name]
    made.add(placement)
    assert made.leftovers_of(CHAT) == ()


def test_cores_are_those_of_servings_that_are_known_on_this_node_now() -> None:
    made = board_on(replace(seen(BOTH), replicas=()))
    first = made.placements[0]
    assert (made.cores_held("node-0"), made.cores_held("node-1")) == (4.0, 0.0)
    made.remove(first)
    assert made.cores_held("node-0") == 2.0
    made.add(of_gone(first))
    assert made.cores_held("node-0") == 2.0


def test_what_was_booked_is_given_up_once() -> None:
    made = board(ONE)
    before = made.placements
    made.book(replace(before[0], slot=1))
    assert len(made.placements) == 2
    made.release()
    assert made.placements == before
    made.release()
    assert made.placements == before


def test_the_next_slot_is_the_lowest_that_neither_plan_nor_pod_has() -> None:
    made = board(ONE)
    assert (made.free_slot(CHAT, A), made.free_slot(CHAT, B), made.free_slot(DOCS, A)) == (1, 0, 0)
    assert board(LEFT_OVER).free_slot(CHAT, A) == 1
    assert board_on(without_pod(seen(ONE))).free_slot(CHAT, A) == 1


# Whose it is and what it holds


@pytest.mark.parametrize(
    ("together", "known", "household"), [(True, True, "home"), (False, True, ""), (True, False, "")]
)
def test_only_where_engines_live_together_is_the_household_a_tenant(
    together: bool, known: bool, household: str
) -> None:
    observation = seen(ONE)
    made = board_on(
        replace(
            observation,
            gpus=tuple(replace(each, gpu=replace(each.gpu, one_household=together)) for each in observation.gpus),
            servings=tuple(replace(each, household="home") for each in observation.servings if known),
        )
    )
    assert made.tenant(A, CHAT) == ("team", household)
    assert made.tenant("GPU-unknown", CHAT) == ("team", "")


def test_of_a_serving_that_nobody_knows_memory_is_what_its_engine_was_told_it_may_take() -> None:
    made = board(ONE)
    whole = made.kind(A).memory_bytes
    [pod] = seen(ONE).replicas
    placement: Placement = of_gone(made.placements[0])
    assert made.memory_of(of_gone(pod, utilization_hundredths=None), A) == whole
    assert made.memory_of(placement, A) == whole
    made.shapes[GONE, "H100-80GB"] = replace(made.shapes[CHAT, "H100-80GB"], utilization_hundredths=21)
    assert made.memory_of(placement, A) == -(-whole * 21 // 100)
    assert made.memory_of(of_gone(pod, utilization_hundredths=33), A) == -(-whole * 33 // 100)
    assert made.memory_of(of_gone(pod, utilization_hundredths=None), A) == -(-whole * 21 // 100)
