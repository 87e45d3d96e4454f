"""Coefficients fitted to whole measured runs: which of them may move, and the least squares that move them.

Fits on the runs it is given and on nothing else, so a run that is left out is a test. Anchors (bandwidth, FLOP rate,
efficiencies, eager launches, ingest) stay where datasheets and kernel breakdowns put them: freeing them fits the given
runs better and those left out worse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from gpupack.errors import Invalid
from gpupack.facts.gpu import GpuKind
from gpupack.facts.serving import Sharing
from gpupack.perf.batching import predict_run
from gpupack.perf.prediction import Coefficients, EngineGroup
from gpupack.units import Ratio, Seconds

# How far a scale may move (natural logarithm), the pull to where it was, the step of a slope, and the rounds.
_REACH = math.log(2.5)
_PULL = 0.002
_STEP = 1e-4
_ROUNDS = 12
# Beyond this misfit (natural logarithm) a run pulls no harder: one slow node must not bend the curve.
_ROBUST = 0.06


class Free(Enum):
    """A coefficient, or several that move together, whose scale a fit may change."""

    OVERHEAD = ("host_per_step", "host_per_layer", "gpu_per_layer")
    STEP = ("host_per_step",)
    SEQUENCE = ("host_per_sequence",)
    PREFILL_SEQUENCE = ("host_per_prefill_sequence",)
    KV_READ = ("kv_read_efficiency",)
    INGEST = ("ingest_per_request",)
    EAGER = ("eager_per_layer",)
    GEMM = ("gemm_efficiency",)


ONLINE_RUNS = (Free.OVERHEAD, Free.SEQUENCE, Free.PREFILL_SEQUENCE)
"""What throughput and ITL of online runs of the older engine tell apart."""

DECODE_RUNS = (Free.STEP, Free.SEQUENCE, Free.INGEST)
"""What runs of V1 with hardly any prompt tell apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedRun:
    """A whole run that was measured: `requests` in all, there at the start; `itl_mean` None where nobody wrote it."""

    group: EngineGroup
    sharing: Sharing
    requests: int
    total_tokens_per_second: float
    itl_mean: Seconds | None


def fit_runs(
    gpu: GpuKind, runs: Sequence[ObservedRun], base: Coefficients, free: Sequence[Free] = ONLINE_RUNS
) -> Coefficients:
    """`base` with the scales in `free` moved so that throughput and ITL of `runs` are met together.

    Raises Invalid without runs. `error` of the answer is the mean misfit that is left.
    """
    if not runs:
        raise Invalid("runs", "there is no measured run to fit to", "give at least one")

    def residuals(scales: list[float]) -> list[float]:
        moved = scaled(base, free, scales)
        return [each for run in runs for each in misses(gpu, run, moved)]

    scales = least_squares(residuals, len(free), robust=_ROBUST)
    left = residuals(scales)
    return replace(scaled(base, free, scales), error=Ratio(sum(abs(math.expm1(each)) for each in left) / len(left)))


def misses(gpu: GpuKind, run: ObservedRun, coefficients: Coefficients) -> tuple[float, ...]:
    """Logarithms of predicted over measured throughput and, where it was measured, ITL."""
    group = replace(run.group, coefficients=coefficients)
    predicted = predict_run.__wrapped__(gpu, (group,), run.sharing, run.requests)
    throughput = math.log(predicted.total_tokens_per_second / run.total_tokens_per_second)
    if run.itl_mean is None:
        return (throughput,)
    return throughput, math.log(predicted.groups[0].itl_mean / run.itl_mean)


def scaled(base: Coefficients, free: Sequence[Free], scales: Sequence[float]) -> Coefficients:
    """`base` with the coefficients of each `free` times e^scale; an efficiency stays at most 1."""
    changes: dict[str, float] = {}
    for each, scale in zip(free, scales, strict=True):
        for name in each.value:
            value = getattr(base, name) * math.exp(scale)
            changes[name] = min(1.0, value) if name.endswith("efficiency") else value
    # The type checker cannot see names; every one above is a field of Coefficients.
    return replace(base, **changes)  # type: ignore[arg-type]


def least_squares(
    residuals: Callable[[list[float]], list[float]], count: int, *, robust: float = math.inf
) -> list[float]:
    """Gauss-Newton with a pull of `_PULL` to zero and bounds of `_REACH`, until it moves no more or for `_ROUNDS`.

    Residuals beyond `robust` are weighted down to it (Huber).
    """
    scales = [0.0] * count
    for _ in range(_ROUNDS):
        here = residuals(scales)
        weights = [min(1.0, robust / abs(each)) if each else 1.0 for each in here]
        slopes = []
        for index in range(count):
            aside = [*scales]
            aside[index] += _STEP
            slopes.append([(there - now) / _STEP for there, now in zip(residuals(aside), here, strict=True)])
        matrix = [
            [
                sum(w * a * b for w, a, b in zip(weights, row, column, strict=True)) + (_PULL if i == j else 0.0)
                for j, column in enumerate(slopes)
            ]
            for i, row in enumerate(slopes)
        ]
        pulled = [
            -sum(w * a * b for w, a, b in zip(weights, row, here, strict=True)) - _PULL * scale
            for row, scale in zip(slopes, scales, strict=True)
        ]
        moves = _solved(matrix, pulled)
        scales = [min(_REACH, max(-_REACH, scale + move)) for scale, move in zip(scales, moves, strict=True)]
        if max(map(abs, moves)) < _STEP:
            break
    return scales


def _solved(matrix: list[list[float]], right: list[float]) -> list[float]:
    """The solution of a small positive definite system, by elimination."""
    size = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for pivot in range(size):
        for below in range(pivot + 1, size):
            factor = rows[below][pivot] / rows[pivot][pivot]
            rows[below] = [low - factor * up for low, up in zip(rows[below], rows[pivot], strict=True)]
    answer = [0.0] * size
    for index in reversed(range(size)):
        known = sum(rows[index][other] * answer[other] for other in range(index + 1, size))
        answer[index] = (rows[index][size] - known) / rows[index][index]
    return answer
