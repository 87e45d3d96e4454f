"""Coefficients refined while engines serve: an extended Kalman filter over the logarithms of five of them.

The state is x = ln(coefficient / prior) with covariance P. A window brings numbers z = ln(measured), each with a
standard deviation r, and h(x) = ln(predicted) is asked of the performance model itself, whose slopes H come from small
steps. One number after the other:

    s = H P H' + r^2        K = P H' / s        x += K (z - h)        P -= K s K'

- Only what a window tells of moves: K points along P H', so that a load at one operating point moves the one
  combination that it saw. All other directions keep their mean, and P says how little is known of them.
- No drift: what a surprise has within the model's own error for that number (`Told.blind`) moves nothing, or two
  numbers that the model cannot meet together would pull on each other for ever.
- Robust: a surprise beyond three standard deviations counts as if it were less sure, and pulls as three would (Huber);
  one beyond a factor of three is a broken number and counts for nothing.
- Bounded: no coefficient leaves half to twice its prior, nor an efficiency 1.
- Forgetting: P goes back to the prior's with every second of load, to a share 1/e of what was learnt in a day. The mean
  stays. Time without load forgets nothing.

Knows no windows and no cluster (`decide/learning.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from gpupack.facts.belief import Belief, BeliefKey
from gpupack.facts.estimate import Source
from gpupack.facts.llm import Llm
from gpupack.perf.fit import Free, scaled
from gpupack.perf.prediction import Coefficients
from gpupack.units import Ratio, Seconds

LEARNT = (Free.OVERHEAD, Free.SEQUENCE, Free.KV_READ, Free.EAGER, Free.GEMM)
"""The coefficients that live load tells apart, in the order of `Belief`."""

_GUESSED, _MEASURED = 0.25, 0.08
"""Standard deviations of a prior's logarithm: of the catalog, and of a profile that was measured on this GPU."""
_REACH = math.log(2.0)
_ABSURD = math.log(3.0)
_SURPRISING = 3.0
_MEMORY = 86_400.0
_SLOPE_STEP = 1e-3
_LEAST_ERROR = 0.03
_RECENT = 0.2
"""The weight of one window in the mean misfit of late."""

Matrix = tuple[tuple[float, ...], ...]


class State(NamedTuple):
    """Logarithms of coefficients over their prior, and their covariance."""

    mean: tuple[float, ...]
    covariance: Matrix


class Told(NamedTuple):
    """The logarithm of one measured number, its standard deviation, and how far off the model may be all the same."""

    log: float
    deviation: float
    blind: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """Where learning of one model starts: coefficients, how far to believe them, and how far they may go."""

    coefficients: Coefficients
    layers: int

    @property
    def deviation(self) -> float:
        return _MEASURED if self.coefficients.source is Source.MEASURED else _GUESSED

    @property
    def covariance(self) -> Matrix:
        size = range(len(LEARNT))
        return tuple(tuple(self.deviation**2 if row == column else 0.0 for column in size) for row in size)

    @property
    def bounds(self) -> tuple[tuple[float, float], ...]:
        most = [-math.log(value) if value <= 1 and each in _SHARES else _REACH for each, value in self._named()]
        return tuple((-_REACH, min(_REACH, each)) for each in most)

    def _named(self) -> list[tuple[Free, float]]:
        return list(zip(LEARNT, values(self.coefficients, self.layers), strict=True))


_SHARES = (Free.KV_READ, Free.GEMM)


def values(coefficients: Coefficients, layers: int) -> tuple[float, ...]:
    """What is learnt of the coefficients, in the order of `LEARNT`; seconds and shares."""
    return (
        coefficients.per_step(layers),
        coefficients.host_per_sequence,
        coefficients.kv_read_efficiency,
        coefficients.eager_per_layer,
        coefficients.gemm_efficiency,
    )


def as_learnt(base: Coefficients, llm: Llm, belief: Belief) -> Coefficients:
    """`base` with what was learnt in its place; the rest stays an anchor."""
    ratios = zip(belief.coefficients, values(base, llm.layers), strict=True)
    moved = scaled(base, LEARNT, [math.log(learnt / was) for learnt, was in ratios])
    return replace(moved, calibrated_on=belief.key.gpu_kind, source=Source.CALIBRATED, error=belief.error)


def begun(key: BeliefKey, prior: Prior, at: Seconds) -> Belief:
    """What is believed before anything was seen."""
    step, sequence, kv_read, eager, gemm = values(prior.coefficients, prior.layers)
    return Belief(
        key=key, step=Seconds(step), sequence=Seconds(sequence), kv_read=Ratio(kv_read), eager=Seconds(eager),
        gemm=Ratio(gemm), covariance=prior.covariance, error=prior.coefficients.error, load=Seconds(0.0),
        batch_least=math.inf, batch_most=0.0, input_mean=0.0, output_mean=0.0, at=at,
    )  # fmt: skip


def state_of(belief: Belief, prior: Prior) -> State:
    was = values(prior.coefficients, prior.layers)
    pairs = zip(belief.coefficients, was, prior.bounds, strict=True)
    return State(
        tuple(min(high, max(low, math.log(now / then))) for now, then, (low, high) in pairs), belief.covariance
    )


def with_state(belief: Belief, prior: Prior, state: State) -> Belief:
    was = values(prior.coefficients, prior.layers)
    step, sequence, kv_read, eager, gemm = (
        value * math.exp(scale) for value, scale in zip(was, state.mean, strict=True)
    )
    return replace(
        belief, step=Seconds(step), sequence=Seconds(sequence), kv_read=Ratio(min(1.0, kv_read)), eager=Seconds(eager),
        gemm=Ratio(min(1.0, gemm)), covariance=state.covariance,
    )  # fmt: skip


def moved(prior: Prior, scales: Sequence[float]) -> Coefficients:
    """The prior's coefficients times e^scale."""
    return scaled(prior.coefficients, LEARNT, scales)


def misfit(error: Ratio, surprises: Sequence[float]) -> Ratio:
    """The mean relative misfit of late, with those of one more window."""
    if not surprises:
        return error
    now = sum(abs(math.expm1(max(-_ABSURD, min(_ABSURD, each)))) for each in surprises) / len(surprises)
    return Ratio(max(_LEAST_ERROR, (1 - _RECENT) * error + _RECENT * now))


def forgotten(covariance: Matrix, prior: Matrix, seconds: float) -> Matrix:
    """What is still known after so many more seconds of load."""
    share = -math.expm1(-max(0.0, seconds) / _MEMORY)
    return tuple(
        tuple(now + share * (then - now) for now, then in zip(row, rows, strict=True))
        for row, rows in zip(covariance, prior, strict=True)
    )


def together(states: Sequence[State]) -> State:
    """Several models' states as one; nothing is known of how they hang together."""
    size = sum(len(each.mean) for each in states)
    rows, before = [], 0
    for each in states:
        after = size - before - len(each.mean)
        rows += [(0.0,) * before + row + (0.0,) * after for row in each.covariance]
        before += len(each.mean)
    return State(tuple(value for each in states for value in each.mean), tuple(rows))


def apart(state: State) -> tuple[State, ...]:
    """The models' own states again; what one window said of both at once is kept in neither."""
    size = len(LEARNT)
    return tuple(
        State(
            state.mean[start : start + size],
            tuple(row[start : start + size] for row in state.covariance[start : start + size]),
        )
        for start in range(0, len(state.mean), size)
    )


Expected = Callable[[Sequence[float]], Sequence[float]]
"""Logarithms of what is predicted with coefficients at these scales."""


def refined(
    state: State, told: Sequence[Told], expected: Expected, bounds: Sequence[tuple[float, float]]
) -> tuple[State, tuple[float, ...]]:
    """The state after one window, and how far each number was from what was expected (logarithms).

    Numbers that are not finite, or beyond belief, move nothing.
    """
    here = expected(state.mean)
    slopes = []
    for index in range(len(state.mean)):
        aside = [*state.mean]
        aside[index] += _SLOPE_STEP
        slopes.append([(there - now) / _SLOPE_STEP for there, now in zip(expected(aside), here, strict=True)])
    mean, covariance = [*state.mean], [[*row] for row in state.covariance]
    surprises = []
    for number, (each, predicted) in enumerate(zip(told, here, strict=True)):
        surprise = each.log - predicted
        if not math.isfinite(surprise) or abs(surprise) > _ABSURD:
            continue
        surprises.append(surprise)
        slope = [row[number] for row in slopes]
        moved_by = sum(s * (now - then) for s, now, then in zip(slope, mean, state.mean, strict=True))
        left = surprise - moved_by
        _take(mean, covariance, slope, math.copysign(max(0.0, abs(left) - each.blind), left), each.deviation)
    kept = tuple(min(high, max(low, value)) for value, (low, high) in zip(mean, bounds, strict=True))
    return State(kept, tuple(tuple(row) for row in covariance)), tuple(surprises)


def _take(mean: list[float], covariance: list[list[float]], slope: list[float], surprise: float, sd: float) -> None:
    """One number; changes `mean` and `covariance`."""
    along = [sum(p * s for p, s in zip(row, slope, strict=True)) for row in covariance]
    variance = sum(a * s for a, s in zip(along, slope, strict=True)) + sd * sd
    variance = max(variance, (surprise / _SURPRISING) ** 2)
    gain = [a / variance for a in along]
    for row, k in enumerate(gain):
        mean[row] += k * surprise
        for column, a in enumerate(along):
            covariance[row][column] -= k * a
