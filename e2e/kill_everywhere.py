"""`make e2e-kill`: the operator dies before and after every distinct API call of the story; storms; and silence.

Not one of the journeys of `make e2e`: it takes a quarter of an hour. Kills are dealt over several plays of the story,
so that those of one play lie apart. A table at the end says where each was made.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

from gpupack.demo.stage import ACCOUNT

from .journey import Journey
from .proxy import Fate, Proxy
from .proxy_calls import Call
from .proxy_fates import Killer, Muffled, Point, Storm, points_of
from .proxy_story import check, play

KILLS_A_PLAY = 28
ROUNDS = 3
"""How often what was not met is tried again: which status is written when, differs a little from play to play."""
STORMS = 2
VARYING = "events"
"""What is said on the way goes by what was measured there, and one play may have nothing to say."""
SEED = int(os.environ.get("GPUPACK_E2E_SEED", random.randrange(10**6)))


class Calm:
    """The calm play: what stands after each chapter, and the calls that lead there."""

    def __init__(self) -> None:
        self.chapters: dict[str, dict[str, Any]] = {}
        self.calls: list[Call] = []


@pytest.fixture(scope="module")
def calm() -> Calm:
    return Calm()


@pytest.fixture
def proxy(journey: Journey, calm: Calm) -> Iterator[Proxy]:
    with Proxy(journey.stage.cluster, ACCOUNT) as proxy:
        if not calm.chapters:
            calm.chapters = play(journey, proxy)
            calm.calls = [*proxy.calls]
            again(journey)
        yield proxy
        journey.stage.stop_operator()
        journey.stage.start_operator()


def again(journey: Journey) -> None:
    journey.end()
    journey.begin()


def play_with(journey: Journey, proxy: Proxy, calm: Calm, fate: Fate) -> None:
    proxy.fate = fate
    check(journey, calm.chapters, play(journey, proxy))


def test_an_operator_that_dies_at_any_call_ends_where_one_that_lives_does(
    journey: Journey, proxy: Proxy, calm: Calm
) -> None:
    points = points_of(calm.calls)
    made: dict[Point, str] = {}
    wrong: list[str] = []
    number = 0
    for _ in range(ROUNDS):
        left = [each for each in points if each not in made]
        plays = -(-len(left) // KILLS_A_PLAY)
        for first in range(plays):
            number += 1
            killer = Killer(journey.stage, proxy, left[first::plays])
            try:
                play_with(journey, proxy, calm, killer)
            except (AssertionError, pytest.fail.Exception) as problem:
                wrong.append(f"play {number}: {problem}")
            made.update((point, f"play {number}") for point in killer.killed)
            print(f"play {number}: {len(killer.killed)} kills, {len(killer.left)} not met", flush=True)
            again(journey)
    print(*(f"{made.get(point, 'not met'):10s} {point}" for point in points), sep="\n")
    print(f"{len(made)} of {len(points)} points of death, in {number} plays", *wrong, sep="\n")
    assert wrong == []
    met = {point.call for point in made}
    assert [str(each) for each in sorted({*calm.calls} - met) if each.resource != VARYING] == []


@pytest.mark.parametrize("number", range(STORMS))
def test_a_storm_ends_where_the_calm_does(journey: Journey, proxy: Proxy, calm: Calm, number: int) -> None:
    print(f"\nGPUPACK_E2E_SEED={SEED}: storm {number}")
    try:
        play_with(journey, proxy, calm, Storm(SEED + number))
    finally:
        print(*(f"{count:5d} {fault}" for fault, count in sorted(proxy.faults.items())), sep="\n")


def test_watches_that_are_open_and_silent_are_noticed(journey: Journey, proxy: Proxy, calm: Calm) -> None:
    play_with(journey, proxy, calm, Muffled())
