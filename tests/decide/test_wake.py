"""How long a wake took: from the first request that was held to the first replica that serves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpupack.decide.board import Board
from gpupack.decide.prospect import Prospects
from gpupack.decide.wake import wakes
from gpupack.facts.interpretation import Held, interpret
from gpupack.facts.observation import Cause, Missing
from gpupack.facts.placement import Plan, Wake
from gpupack.units import Seconds

from ..strategies import NOON, key
from .boards import seen, without_pod

CHAT = key("chat")
ONE = "gpus: {a: }\nservings: {chat: {batch: 64, least: 0}, docs: {batch: 16}}\nreplicas: [{serving: %s, gpu: a}]"
UNREAD = Missing(cause=Cause.UNREACHABLE, origin="activator")
AWAKE = Wake(serving=CHAT, asked_at=Seconds(NOON - 100.0), ready_at=Seconds(NOON - 90.0))
UNDER_WAY = Wake(serving=CHAT, asked_at=Seconds(NOON - 5.0))


def told(
    requests: float | Missing | None,
    *,
    since: float | None = None,
    last: Wake | None = None,
    before: bool = False,
    now: bool = False,
    serves: bool = True,
    knows: bool = True,
) -> Wake | None:
    """`before` and `now`: whether the last plan and this tick's have a replica. `knows`: whether there was a plan."""
    observation = seen(ONE % "chat")
    facts = interpret(observation if serves else without_pod(observation))
    assert facts.plan is not None
    plan = replace(facts.plan, wakes=() if last is None else (last,))
    empty = replace(plan, placements=())
    held = {} if requests is None else {CHAT: Held(requests=requests, since=None if since is None else Seconds(since))}
    facts = replace(facts, plan=(plan if before else empty) if knows else None, held=held)
    board = Board(facts, plan if now else empty, Prospects(facts))
    found = {each.serving: each for each in wakes(board)}
    assert found == board.wakes
    return found.get(CHAT)


def test_a_wake_begins_with_the_first_request_that_is_held() -> None:
    assert told(1.0, since=NOON - 3.0) == Wake(serving=CHAT, asked_at=Seconds(NOON - 3.0))
    assert told(1.0, since=NOON + 3.0) == Wake(serving=CHAT, asked_at=NOON), "another clock may be ahead"
    assert told(1.0) == Wake(serving=CHAT, asked_at=NOON)
    assert told(1.0, knows=False) == Wake(serving=CHAT, asked_at=NOON)


@pytest.mark.parametrize("requests", [None, 0.0, UNREAD])
def test_without_one_that_is_known_the_last_wake_stays_told(requests: float | Missing | None) -> None:
    assert told(requests, last=AWAKE) == AWAKE
    assert told(requests) is None


def test_who_was_planned_already_is_not_woken() -> None:
    assert told(1.0, last=AWAKE, before=True, now=True) == AWAKE
    assert told(1.0, before=True) is None


def test_a_wake_ends_with_the_first_replica_that_serves() -> None:
    assert told(0.0, last=UNDER_WAY, before=True, now=True) == replace(UNDER_WAY, ready_at=NOON)
    assert told(0.0, last=UNDER_WAY, before=True, now=True, serves=False) == UNDER_WAY


def test_who_went_before_anything_was_planned_was_not_kept_waiting() -> None:
    assert told(1.0, last=UNDER_WAY) == UNDER_WAY
    assert told(0.0, last=UNDER_WAY) is None
    assert told(None, last=UNDER_WAY) is None


def test_of_a_neighbour_that_is_planned_nothing_follows() -> None:
    facts = interpret(seen(ONE % "docs"))
    assert facts.plan is not None
    facts = replace(facts, held={CHAT: Held(requests=1.0, since=None)})
    plan: Plan = facts.plan  # type: ignore[assignment]
    assert wakes(Board(facts, plan, Prospects(facts))) == (Wake(serving=CHAT, asked_at=NOON),)
