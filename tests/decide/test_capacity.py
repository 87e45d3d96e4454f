"""What the replicas of a serving finish: those that stand, fewer of them, and more than there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from gpupack.decide.capacity import capacity_of, closing_order
from gpupack.facts.observation import Observation, Phase, Refused
from gpupack.facts.placement import Placement
from gpupack.facts.serving import ServingKey
from gpupack.units import Seconds

from ..strategies import NOON, key
from .boards import A, B, board_on, seen, with_placement, with_pod

CHAT = key("chat")
TWO = "gpus: {a: , b: }\nservings: {chat: {batch: 64}}\nreplicas: [{serving: chat, gpu: a, engine: , count: 2}]"
NONE = "gpus: {a: , b: }\nservings: {chat: {batch: 64}}"
SPREAD = """gpus: {a: , b: }
servings: {chat: {batch: 64}}
replicas: [{serving: chat, gpu: a, engine: , count: 2}, {serving: chat, gpu: b, engine: }]"""


BESIDE = TWO.replace("chat: {batch: 64}", "chat: {batch: 64}, docs: {batch: 64}").replace(
    "count: 2}", "count: 2}, {serving: docs, gpu: a, engine: }"
)


def capacity(observation: Observation, of: ServingKey = CHAT) -> Callable[[int], float]:
    board = board_on(observation)
    return capacity_of(board, board.facts.servings[of])


def at_most(observation: Observation, most: int) -> Observation:
    """So many engines pay on one GPU."""
    assert observation.plan is not None
    shapes = tuple(replace(each, replicas_per_gpu=most) for each in observation.plan.shapes)
    return replace(observation, plan=replace(observation.plan, shapes=shapes))


def answering(observation: Observation, made: float) -> Observation:
    """The same with so many tokens in an answer."""
    servings = tuple(replace(each, lengths=replace(each.lengths, output_mean=made)) for each in observation.servings)
    return replace(observation, servings=servings)


def test_no_replica_finishes_nothing() -> None:
    assert capacity(seen(TWO))(0) == 0.0
    assert capacity(seen(NONE))(0) == 0.0


def test_one_that_stays_alone_finishes_more_than_its_half() -> None:
    finished = capacity(seen(TWO))
    assert finished(2) / 2 < finished(1) < finished(2)


def test_each_of_unlike_gpus_has_its_even_share_and_neighbours_have_none_of_it() -> None:
    unlike = """gpus: {a: {kind: L4}, b: }
servings: {chat: {batch: 64}, docs: {batch: 64}}
replicas: [{serving: chat, gpu: a, engine: }, {serving: docs, gpu: a, engine: }, {serving: chat, gpu: b, engine: }]"""
    known = board_on(seen(unlike))
    slowest = known.prospects.finish_rate(known.facts.gpus[A].gpu.kind, known.mix(A), CHAT)
    assert capacity(seen(unlike))(2) == pytest.approx(2 * slowest)


def test_more_than_stand_are_counted_on_gpus_of_their_own() -> None:
    finished = capacity(at_most(seen(NONE), 2))
    assert finished(1) < finished(2) < finished(3)
    assert finished(4) == 2 * finished(2)
    assert finished(3) == finished(2) + finished(1)
    alone = capacity(at_most(seen(NONE), 1))
    assert alone(2) == 2 * alone(1)
    assert capacity(at_most(seen(NONE), 0))(2) == 2 * alone(1)


def test_more_than_stand_grow_from_what_stands_in_that_proportion() -> None:
    for made in (256.0, 200_000.0):
        standing, lone = (capacity(answering(at_most(seen(text), 3), made)) for text in (TWO, NONE))
        slowed = capacity(answering(at_most(seen(BESIDE), 3), made))
        assert standing(2) == pytest.approx(lone(2))
        assert slowed(2) < standing(2)
        assert slowed(5) == pytest.approx(slowed(2) * lone(5) / lone(2))


def test_the_kind_of_gpu_that_holds_the_most_stands_for_those_to_come() -> None:
    kinds = capacity(seen("gpus: {a: {kind: L4}, b: }\nservings: {chat: {batch: 64}}"))
    assert kinds(1) == capacity(seen(NONE))(1)


def test_without_a_shape_nothing_is_known_to_finish_anything() -> None:
    for text in (NONE, TWO):
        observation = seen(text)
        assert observation.plan is not None
        assert capacity(replace(observation, plan=replace(observation.plan, shapes=())))(3) == 0.0


def test_beside_an_engine_that_nobody_knows_it_counts_as_if_that_were_not_there() -> None:
    observation = seen(BESIDE)
    refused = Refused(key=key("docs"), uid="docs", generation=1, field="spec", problem="unreadable", fix="mend it")
    unknown = replace(observation, servings=observation.servings[:1], refused=(refused,))
    assert capacity(unknown)(2) == capacity(seen(TWO))(2)


def test_a_replica_whose_gpu_is_gone_finishes_nothing() -> None:
    observation = seen(SPREAD)
    gone = capacity(replace(observation, gpus=observation.gpus[:1]))
    here = capacity(seen(TWO))
    assert gone(2) == here(2)
    assert gone(3) == here(2)


def order(observation: Observation) -> list[tuple[str, int]]:
    return [(each.gpu_uuid, each.slot) for each in closing_order(board_on(observation), CHAT)]


def opened(observation: Observation, *ages: float) -> Observation:
    """Planned so many seconds ago, one after another."""
    assert observation.plan is not None
    placements: tuple[Placement, ...] = tuple(
        replace(each, planned_at=Seconds(NOON - age))
        for each, age in zip(observation.plan.placements, ages, strict=True)
    )
    return replace(observation, plan=replace(observation.plan, placements=placements))


def test_the_gpu_that_was_opened_last_is_closed_first_and_its_last_slot_first() -> None:
    observation = seen(SPREAD)
    assert order(opened(observation, 900.0, 10.0, 500.0)) == [(B, 0), (A, 1), (A, 0)]
    assert order(opened(observation, 300.0, 10.0, 500.0)) == [(A, 1), (A, 0), (B, 0)]
    assert order(opened(observation, 300.0, 300.0, 300.0)) == [(A, 1), (A, 0), (B, 0)]


def test_what_is_not_ready_is_given_up_before_that_and_what_lost_its_gpu_before_all() -> None:
    observation = opened(seen(SPREAD), 900.0, 900.0, 500.0)
    assert order(with_pod(observation, 1, phase=Phase.STARTING, ready_at=None))[0] == (A, 1)
    gone = replace(with_pod(observation, 1, phase=Phase.STARTING, ready_at=None), gpus=observation.gpus[:1])
    assert order(gone)[0] == (B, 0)
    assert order(with_placement(observation, 1, template_hash="template01"))[0] == (A, 1)
