"""Whole runs: a finite number of requests, all there at the start, from the first prompt to the last token.

This is what papers and benchmarks publish: throughput over the whole duration, with the stall while prompts are taken
in and the tail in which the batch drains. A controller sees the steady state instead (`sharing`); the two must never
be compared.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import NamedTuple

from gpupack.facts.gpu import GpuKind
from gpupack.facts.serving import Sharing
from gpupack.perf import sharing as steady_state
from gpupack.perf.cycle import ALIKE, Batch
from gpupack.perf.prediction import EngineGroup, GpuPrediction
from gpupack.perf.sharing import GPU_RESERVE, Engines
from gpupack.units import Bytes

# Points of the integrals over output lengths (in means) and over the tail.
_LENGTH_POINTS, _LONGEST = 320, 8.0
_TAIL_POINTS = 32


# Requests all alike that begin together run in waves. Of those that a wave has begun, this share is under way on
# average where KV cache runs out, waiting for it or running (schedules of vLLM's scheduler, simulated step by step for
# eight shapes of Llama-2-7B and -13B, and six published runs: within 8 %); never below so much of what KV cache holds.
_BEGUN_UNDER_WAY, _LEAST_UNDER_WAY = 0.81, 0.92
_WAVE_POINTS = 64
_QUICK_FILL = 0.1


class _Run(NamedTuple):
    """One engine's run: seconds from start to end, the mean gap between tokens, and the KV tokens wanted at most."""

    seconds: float
    itl: float
    kv_peak: float | None


@lru_cache(maxsize=4096)
def predict_run(
    gpu: GpuKind, groups: tuple[EngineGroup, ...], sharing: Sharing, requests: int, reserve: Bytes = GPU_RESERVE
) -> GpuPrediction:
    """A run of `requests` in all, dealt evenly to all replicas of all groups.

    Without a request rate they all wait at the start, and TTFT is mostly that wait.
    """
    share = requests / sum(group.replicas for group in groups)
    full = steady_state.steady(gpu, groups, sharing)
    engines = tuple(_begun_together(each, share) for each in full)
    drains = _drains(engines, groups, sharing, share)
    answers = []
    for group, each, drain in zip(groups, engines, drains, strict=True):
        run = _all_at_once(group, each, share, drain) if each.queue is None else _arriving(each, share)
        mean, p95, p99 = steady_state.gaps(each)
        answers.append(
            steady_state.answer(
                gpu,
                group,
                each,
                output_tokens_per_second=group.replicas * share * each.batch.output_mean / run.seconds,
                itl=(run.itl, run.itl * (p95 / mean), run.itl * (p99 / mean)),
                ttft=_first_tokens(group, each, share)
                if each.queue is None
                else steady_state.time_to_first_token(each, each.queue),
                utilization=None,
                kv_peak=run.kv_peak,
            )
        )
    return steady_state.whole_gpu(gpu, groups, full, tuple(answers), sharing, reserve)


def _begun_together(each: Engines, requests: float) -> Engines:
    """The same engine in a run whose requests are all alike and all there at the start.

    They go through it in waves: as many as a step takes in begin together, end together and are replaced together.
    """
    one = each.batch
    if not one.bunched or one.kv_limit <= each.running or requests <= one.limit:
        return each
    waves = _mean_of_waves(one.limit, one.budget, one.input_mean, one.output_mean, requests)
    return each._replace(running=min(each.running, waves))


@lru_cache(maxsize=1024)
def _mean_of_waves(limit: float, budget: int, input_mean: float, output_mean: float, requests: float) -> float:
    """The mean batch until the last request begins: decodes first, prompts in what they leave of the token budget.

    Where a batch ends faster than a step takes prompts in, slots stay empty for a while. Followed in `_WAVE_POINTS` a
    life; a batch that fills within a tenth of a life hardly notices.
    """
    if limit * input_mean < _QUICK_FILL * budget * output_mean:
        return limit
    width = output_mean / _WAVE_POINTS
    begun: list[float] = []
    running = taken = area = 0.0
    while taken < requests * (1 - 1e-9):
        if len(begun) >= _WAVE_POINTS:
            running -= begun[-_WAVE_POINTS]
        fresh = min(limit - running, max(0.0, budget - running) / input_mean * width, requests - taken)
        begun.append(fresh)
        running += fresh
        taken += fresh
        area += running
    return area / len(begun)


def _first_tokens(group: EngineGroup, each: Engines, requests: float) -> tuple[float, float, float]:
    """Mean, p95 and p99 of the time to the first token where all requests of an engine wait at the start.

    The first n are prefilled one after the other; the k-th of the others starts with the k-th end, which n slots that
    began together reach at (k/n + (1 - cv^2)/2) lives (renewal theory), and none before the first n.
    """
    running = min(each.running, requests)
    cycle = each.batch.cycle(running)
    life = each.batch.output_mean * cycle.seconds(each.stretch)
    wave = each.batch.output_mean * cycle.share * cycle.extra_seconds(each.stretch)
    intake = requests * group.coefficients.ingest_per_request if group.coefficients.ingest_stalls else 0.0
    late = max(0.0, (1 - each.batch.output_cv**2) / 2)
    waiting = requests - running
    behind = min(waiting, max(0.0, wave / life - late) * running)  # so many wait for the wave, not for an end

    def at(share: float) -> float:
        place = share * requests
        if place <= running:
            return intake + place / running * wave
        return intake + max(wave, life * ((place - running) / running + late))

    ended = waiting - behind
    mean = running * wave / 2 + behind * wave + ended * life * ((behind + ended / 2) / running + late)
    return intake + mean / requests, at(0.95), at(0.99)


class _Drain(NamedTuple):
    """One engine's tail, when nothing waits any more: its tokens, its seconds, and the gaps of all its tokens added."""

    tokens: float
    seconds: float
    gaps: float


def _all_at_once(group: EngineGroup, each: Engines, requests: float, drain: _Drain) -> _Run:
    """Intake of all prompts, full batches, and the tail."""
    running = min(each.running, requests)
    gap = each.batch.cycle(running).seconds(each.stretch)
    intake = requests * group.coefficients.ingest_per_request
    tokens = requests * each.batch.output_mean
    full = max(0.0, tokens - drain.tokens)
    seconds = full / running * gap + drain.seconds + intake
    stalled = intake * running if group.coefficients.ingest_stalls else 0.0
    itl = (full * gap + drain.gaps + stalled) / (full + drain.tokens)
    if each.batch.output_cv >= ALIKE:
        return _Run(seconds, itl, None)
    begun, kv_peak = _wave(each.batch, requests)
    if each.batch.kv_limit <= each.running:
        itl *= max(_LEAST_UNDER_WAY, _BEGUN_UNDER_WAY * begun / each.running)
    return _Run(seconds, itl, kv_peak)


def _wave(one: Batch, requests: float) -> tuple[float, float]:
    """The first wave of requests all alike: how many begin before KV cache runs out, and the tokens it wants at most.

    None ends before the oldest does. Chunked prefill takes in what decoding leaves of the token budget, (budget - n) /
    input requests a step; without chunks all slots fill at once.
    """
    most = min(one.limit, requests)
    width = one.output_mean / _WAVE_POINTS
    decoded = begun = tokens = 0.0
    for point in range(_WAVE_POINTS):
        filled = 1 - math.exp(-(point + 1) * width / one.input_mean) if one.chunked else 1.0
        running = min(most, one.budget * filled) if one.chunked else most
        decoded += width * running
        tokens = running * one.input_mean + decoded
        if tokens <= one.kv_tokens:
            begun = running
    return begun or min(most, one.kv_tokens / one.input_mean), tokens


def _drains(
    engines: tuple[Engines, ...], groups: tuple[EngineGroup, ...], sharing: Sharing, requests: float
) -> list[_Drain]:
    """The tails of all engines, which drain side by side.

    Of n sequences met at a random moment, those with a residual life beyond k steps are still there after k; the last
    one ends when the longest does. Steps get shorter as batches fall, and siblings' stretch falls with them.
    """
    tokens = [0.0] * len(engines)
    seconds = [0.0] * len(engines)
    gaps = [0.0] * len(engines)
    for nodes in zip(*(_residuals(group.lengths.output_cv) for group in groups), strict=True):
        now = []
        steps = []
        widths = []
        for each, (weight, survival) in zip(engines, nodes, strict=True):
            full = min(each.running, requests)
            alive = -math.expm1(full * math.log1p(-min(survival, 1 - 1e-12)))
            alive = max(alive, 1e-9)
            now.append(each._replace(running=full * survival, active=alive))
            steps.append(each.batch.engine.decode(full * survival / alive, each.batch.context))
            widths.append(weight * each.batch.output_mean)
        stretched = steady_state.with_contention(now, steps, groups, sharing)
        for index, (each, step, width) in enumerate(zip(stretched, steps, widths, strict=True)):
            gap = step.host + each.stretch * step.gpu
            tokens[index] += width * each.running
            seconds[index] += width * each.active * gap
            gaps[index] += width * each.running * gap
    return [_Drain(*each) for each in zip(tokens, seconds, gaps, strict=True)]


@cache
def _residuals(cv: float) -> tuple[tuple[float, float], ...]:
    """Nodes of an integral over the residual life of output lengths: (weight, share that lives longer), in means.

    The residual life of a renewal process: its density is the share of lengths beyond, over the mean. Lengths are all
    alike or gamma distributed.
    """
    if cv < ALIKE:
        width = 1 / _TAIL_POINTS
        return tuple((width, 1 - (index + 0.5) * width) for index in range(_TAIL_POINTS))
    shape = 1 / cv**2
    longest = _LONGEST * max(1.0, cv**2)
    step = longest / _LENGTH_POINTS
    middles = [(index + 0.5) * step for index in range(_LENGTH_POINTS)]
    density = [middle ** (shape - 1) * math.exp(-shape * middle) for middle in middles]
    beyond = _sums_from_the_end(density)
    longer = _sums_from_the_end([each / beyond[0] for each in beyond])
    total = longer[0]
    per_node = _LENGTH_POINTS // _TAIL_POINTS
    return tuple((per_node * step, longer[index * per_node + per_node // 2] / total) for index in range(_TAIL_POINTS))


def _sums_from_the_end(values: list[float]) -> list[float]:
    sums = []
    running = 0.0
    for value in reversed(values):
        running += value
        sums.append(running)
    return sums[::-1]


def _arriving(each: Engines, requests: float) -> _Run:
    """Requests that arrive at their rate: the last one's answer ends the run."""
    assert each.queue is not None
    assert each.offered is not None
    itl = each.running / each.tokens_per_second
    last = steady_state.time_to_first_token(each, each.queue)[0] + each.batch.output_mean * itl
    return _Run(requests * each.batch.output_mean / each.offered + last, itl, None)
