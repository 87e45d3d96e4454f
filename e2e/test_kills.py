"""The operator dies at ten calls while every call is at risk, and all ends where a calm run does.

`make e2e-kill` (kill_everywhere.py) ends it at every distinct call, and plays more storms.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from gpupack.demo.stage import ACCOUNT

from .journey import Journey
from .proxy import Fault, Proxy
from .proxy_fates import Killer, Storm, points_of
from .proxy_story import check, play

KILLS = 10
SEED = int(os.environ.get("GPUPACK_E2E_SEED", random.randrange(10**6)))


@pytest.fixture
def proxy(journey: Journey) -> Iterator[Proxy]:
    """The operator goes by it from the beginning of the story; afterwards it goes straight to the API server again."""
    with Proxy(journey.stage.cluster, ACCOUNT) as proxy:
        yield proxy
        journey.stage.stop_operator()
        journey.stage.start_operator()


def test_an_operator_that_dies_ten_times_in_a_storm_ends_where_one_in_the_calm_does(
    journey: Journey, proxy: Proxy
) -> None:
    calm = play(journey, proxy)
    points = points_of(proxy.calls)
    journey.end()
    journey.begin()

    chosen = random.Random(SEED).sample(points, KILLS)
    killer = Killer(journey.stage, proxy, chosen)
    proxy.fate = Storm(SEED, killer)
    try:
        stormy = play(journey, proxy)
    finally:
        print(f"\nGPUPACK_E2E_SEED={SEED}: of {len(points)} points of death")
        print(
            *(f"   killed {each}" for each in killer.killed),
            *(f"   not met {each}" for each in killer.left),
            sep="\n",
        )
        print(*(f"{proxy.faults[fault]:5d} {fault}" for fault in Fault), sep="\n")
    check(journey, calm, stormy)
    assert not [fault for fault in Fault if not proxy.faults[fault]]
    assert len(killer.killed) >= KILLS - 2
