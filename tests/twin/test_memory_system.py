"""What sharing a GPU may and may not do to kernel phases."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpupack.twin.memory_system import Mps, Phase, mps_speeds, water_level

SHARES = st.floats(0.01, 1.0)
PHASES = st.lists(st.builds(Phase, st.floats(1e-4, 1e-2), SHARES, SHARES), min_size=1, max_size=8)


@given(st.lists(SHARES, min_size=1, max_size=8))
def test_a_full_resource_is_given_out_whole_and_nobody_gets_more_than_asked(wants: list[float]) -> None:
    level = water_level(wants)
    taken = [min(want, level) for want in wants]
    assert sum(taken) == pytest.approx(min(1.0, sum(wants)))


@given(PHASES)
def test_co_running_phases_never_run_faster_than_alone_and_never_use_more_than_there_is(phases: list[Phase]) -> None:
    speeds = mps_speeds(phases, Mps(interference=0.0))
    assert all(0.0 < speed <= 1.0 for speed in speeds)
    for share in ("dram_share", "sm_share"):
        used = sum(getattr(phase, share) * speed for phase, speed in zip(phases, speeds, strict=True))
        assert used <= 1.0 + 1e-9


@given(PHASES, st.floats(0.0, 1.0))
def test_interference_slows_phases_that_meet_and_never_a_lone_one(phases: list[Phase], interference: float) -> None:
    calm = mps_speeds(phases, Mps(interference=0.0))
    disturbed = mps_speeds(phases, Mps(interference=interference))
    factor = 1.0 if len(phases) == 1 else 1.0 + interference
    assert disturbed == pytest.approx([speed / factor for speed in calm])


def test_a_phase_that_wants_little_is_not_held_back_by_one_that_wants_much() -> None:
    hungry, modest = Phase(1e-3, 0.9, 0.2), Phase(1e-3, 0.3, 0.2)
    speeds = mps_speeds([hungry, modest], Mps(interference=0.0))
    assert speeds[1] == 1.0
    assert speeds[0] == pytest.approx(0.7 / 0.9)


def test_what_fits_together_has_no_level() -> None:
    assert water_level([0.3, 0.4]) == math.inf
