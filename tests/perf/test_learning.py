"""The filter of live calibration: robust, bounded, forgetting, and moving only what a load tells of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from gpupack import catalog
from gpupack.perf import learning
from gpupack.perf.calibration import coefficients
from gpupack.perf.learning import LEARNT, Prior, State, Told

LLM = catalog.llm("llama-3.2-1b")
PRIOR = Prior(coefficients=coefficients("0.8.5"), layers=LLM.layers)
SIZE = len(LEARNT)
BEGUN = State((0.0,) * SIZE, PRIOR.covariance)
LIGHT, HEAVY = (0.9, 0.1, 0.0, 0.0, 0.0), (0.4, 0.2, -0.4, 0.0, 0.0)
"""How a gap between two tokens hangs on step, sequence, KV reading, launches and GEMM, with small and large batches."""


def look(
    state: State, slopes: Sequence[tuple[float, ...]], told: Sequence[float], blind: Sequence[float] = (0.0, 0.0)
) -> State:
    def expected(scales: Sequence[float]) -> list[float]:
        return [sum(a * b for a, b in zip(slope, scales, strict=True)) for slope in slopes]

    numbers = [Told(each, 0.04, off) for each, off in zip(told, blind, strict=False)]
    return learning.refined(state, numbers, expected, PRIOR.bounds)[0]


def along(state: State, direction: Sequence[float]) -> float:
    """The variance of what is believed in that direction."""
    pairs = zip(direction, state.covariance, strict=True)
    return sum(a * p * b for a, row in pairs for p, b in zip(row, direction, strict=True))


def test_a_load_at_one_operating_point_moves_only_the_combination_that_it_saw() -> None:
    state = BEGUN
    for _ in range(50):
        state = look(state, [LIGHT], [math.log(1.2)])
    assert sum(a * b for a, b in zip(LIGHT, state.mean, strict=True)) == pytest.approx(math.log(1.2), abs=0.01)
    assert state.mean[0] / state.mean[1] == pytest.approx(LIGHT[0] / LIGHT[1])
    assert state.mean[2:] == (0.0, 0.0, 0.0)
    across = (-LIGHT[1], LIGHT[0], 0.0, 0.0, 0.0)
    assert along(state, LIGHT) < 0.02 * along(BEGUN, LIGHT)
    assert along(state, across) == pytest.approx(along(BEGUN, across), rel=1e-3)


def test_two_operating_points_tell_two_coefficients_apart() -> None:
    truth = (0.2, 0.0, -0.2, 0.0, 0.0)
    state = BEGUN
    for _ in range(30):
        for slope in (LIGHT, HEAVY):
            state = look(state, [slope], [sum(a * b for a, b in zip(slope, truth, strict=True))])
    assert state.mean[0] == pytest.approx(0.2, abs=0.03)
    assert state.mean[2] == pytest.approx(-0.2, abs=0.05)


@pytest.mark.parametrize("told", [math.nan, math.inf, -math.inf, math.log(1000.0), math.log(1e-3), math.log(3.5)])
def test_a_broken_number_moves_nothing(told: float) -> None:
    assert look(BEGUN, [LIGHT], [told]) == BEGUN


def test_an_outlier_pulls_no_harder_than_a_surprise_of_three_deviations() -> None:
    settled = BEGUN
    for _ in range(50):
        settled = look(settled, [LIGHT], [0.0])
    mild, wild = (look(settled, [LIGHT], [each]).mean[0] for each in (0.13, 0.8))
    assert 0 < wild <= mild * 1.01


def test_what_the_model_is_always_off_by_moves_nothing_however_often_it_is_seen() -> None:
    state = BEGUN
    for _ in range(300):
        state = look(state, [LIGHT], [0.14], blind=(0.15,))
    assert state.mean == BEGUN.mean
    assert look(BEGUN, [LIGHT], [0.30], blind=(0.15,)).mean == pytest.approx(look(BEGUN, [LIGHT], [0.15]).mean)


def test_no_coefficient_leaves_its_bounds() -> None:
    state = BEGUN
    for _ in range(400):
        state = look(state, [LIGHT, (0.0, 0.0, -1.0, 0.0, 0.0)], [1.0, -1.0])
    for value, (low, high) in zip(state.mean, PRIOR.bounds, strict=True):
        assert low <= value <= high
    believed = learning.moved(PRIOR, state.mean)
    assert believed.kv_read_efficiency <= 1.0


def test_what_was_learnt_is_forgotten_with_load_and_the_mean_stays() -> None:
    state = look(BEGUN, [LIGHT], [0.2])
    day = learning.forgotten(state.covariance, PRIOR.covariance, 86_400.0)
    gone = learning.forgotten(state.covariance, PRIOR.covariance, 1e9)
    assert along(state, LIGHT) < along(State(state.mean, day), LIGHT) < along(BEGUN, LIGHT)
    assert State(BEGUN.mean, gone).covariance[0] == pytest.approx(BEGUN.covariance[0])
    assert learning.forgotten(state.covariance, PRIOR.covariance, -5.0) == state.covariance


def test_what_is_not_known_of_a_neighbour_takes_part_of_the_surprise() -> None:
    sure = State(BEGUN.mean, tuple(tuple(1e-4 * each for each in row) for row in BEGUN.covariance))
    both = learning.together([BEGUN, sure])

    def expected(scales: Sequence[float]) -> list[float]:
        return [scales[0] + scales[SIZE]]

    moved, _ = learning.refined(both, [Told(0.2, 0.04)], expected, PRIOR.bounds * 2)
    unsure, known = learning.apart(moved)
    assert unsure.mean[0] > 0.15
    assert known.mean[0] < 0.001
