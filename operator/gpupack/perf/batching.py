"""Whole runs: a finite number of requests, all there at the start, from the first prompt to the last token.

This is what papers and benchmarks publish: throughput over the whole duration, with the stall while prompts are taken
in and the tail in which the batch drains. A controller sees the steady state instead (`sharing`); the two must never
be compared.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from gpupack.facts.gpu import GpuKind
from gpupack.facts.serving import Sharing
from gpupack.perf import sharing as steady_state
from gpupack.perf.prediction import EngineGroup, GpuPrediction
from gpupack.perf.sharing import GPU_RESERVE, Engines
from gpupack.units import Bytes

# Euler's constant: the longest of n exponential lives is ln n + 0.577 mean lives.
_EULER = 0.5772


class _Run(NamedTuple):
    """One engine's run: seconds from start to end, and the mean gap between tokens."""

    seconds: float
    itl: float


@lru_cache(maxsize=4096)
def predict_run(
    gpu: GpuKind, groups: tuple[EngineGroup, ...], sharing: Sharing, requests: int, reserve: Bytes = GPU_RESERVE
) -> GpuPrediction:
    """A run of `requests` in all, dealt evenly to all replicas of all groups.

    Without a request rate they all wait at the start. TTFT has no steady value then and is None.
    """
    engines = steady_state.steady(gpu, groups, sharing)
    replicas = sum(group.replicas for group in groups)
    answers = []
    for group, each in zip(groups, engines, strict=True):
        share = requests / replicas
        run = _all_at_once(group, each, share) if each.queue is None else _arriving(each, share)
        steady_gap = each.cycle.seconds(each.stretch)
        p95, p99 = (steady_state.gap_quantile(each, level) for level in (0.95, 0.99))
        answers.append(
            steady_state.answer(
                gpu,
                group,
                each,
                output_tokens_per_second=group.replicas * share * each.batch.output_mean / run.seconds,
                itl=(run.itl, p95 * run.itl / steady_gap, p99 * run.itl / steady_gap),
                ttft=None if each.queue is None else steady_state.time_to_first_token(each, each.queue),
                utilization=None,
            )
        )
    return steady_state.whole_gpu(gpu, groups, engines, tuple(answers), reserve)


def _all_at_once(group: EngineGroup, each: Engines, requests: float) -> _Run:
    """Intake, full batches, and a tail at falling batch (facts/performance.md 2)."""
    one = each.batch
    running = min(each.running, requests)
    output = one.output_mean
    cycle = one.cycle(running)
    gap = cycle.seconds(each.stretch)
    lone = one.engine.decode(0.0, 0.0)
    fixed = lone.host + each.stretch * lone.gpu
    growing = cycle.plain_seconds(each.stretch) - fixed
    intake = requests * group.coefficients.ingest_per_request
    if one.output_cv < 0.1:
        tail_tokens = running * output / 2
        tail_seconds = output * (fixed + growing / 2)
        tail_gaps = running * output * (fixed / 2 + growing / 3)
    else:
        tail_tokens = running * one.residual
        tail_seconds = one.residual * (fixed * (math.log(running) + _EULER) + growing)
        tail_gaps = running * one.residual * (fixed + growing / 2)
    tokens = requests * output
    full = max(0.0, tokens - tail_tokens)
    seconds = full / running * gap + tail_seconds + intake
    return _Run(seconds, (full * gap + tail_gaps + intake * running) / (full + tail_tokens))


def _arriving(each: Engines, requests: float) -> _Run:
    """Requests that arrive at their rate: the last one's answer ends the run."""
    assert each.queue is not None
    assert each.offered is not None
    itl = each.running / each.tokens_per_second
    last = steady_state.time_to_first_token(each, each.queue)[0] + each.batch.output_mean * itl
    return _Run(requests * each.batch.output_mean / each.offered + last, itl)
