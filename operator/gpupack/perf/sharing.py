"""The steady state of a GPU: engines of one or several models on it, kept full or at a given request rate.

R engines are a closed queueing network: each thinks on its host for Z and then needs the GPU for D, which it shares
with whoever is there (processor sharing). MPS and time-slicing stretch D by an interference that was fitted to the
published replication runs; MIG slices have SMs, L2 and DRAM of their own, so an engine on one meets nobody. Requests
hold one of B slots for as many cycles as they have output tokens. Whole runs with a ramp and a tail, as papers publish
them, are `batching`'s; never compare the two.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from gpupack.errors import Invalid
from gpupack.facts.estimate import Source
from gpupack.facts.gpu import GpuKind
from gpupack.facts.serving import BLOCK_TOKENS, Sharing, Slo, Statistic
from gpupack.perf.cycle import Batch, Cycle, batch, normal_quantile
from gpupack.perf.memory import kv_tokens_needed, replica_memory
from gpupack.perf.prediction import EngineGroup, GpuPrediction, GroupPrediction, Router
from gpupack.perf.queueing import Customer, Slots, is_exact, slots, stretches
from gpupack.perf.roofline import Step
from gpupack.units import GIB, Bytes, PerSecond, Ratio, Seconds

GPU_RESERVE = Bytes(GIB)
KV_SAFETY = Ratio(0.15)

_Z99 = 2.326
_PLACES = {Statistic.MEAN: 0, Statistic.P95: 1, Statistic.P99: 2}
_SETTLED = 1e-6
# Requests a second below which a group is taken to have that many: formulas divide by the rate.
_LEAST_RATE = 1e-6
_ROUNDS = 60
_SWING = 0.7  # of the last move: who swings back so far is led half as far from then on
_CONTENTION_ROUNDS = 12
_HALVINGS = 14

# Errors seen beside the coefficients' own: gains of replication, preempted batches, the approximation of many classes.
# Nobody measured another GPU than the one that the coefficients were calibrated on: this much is expected at least.
_SHARED_ERROR, _STARVED_ERROR, _APPROXIMATE_ERROR = 0.03, 0.10, 0.05
_OTHER_GPU_ERROR = 0.15


class Engines(NamedTuple):
    """One group in its steady state: one engine's mean batch and how it meets the others on the GPU.

    `active` is the share of time that it has anything to run. `interference` lengthens D, `stretch` (interference and
    waiting for siblings) is how much longer a visit to the GPU takes than alone. `offered` is arrivals a second of one
    engine times output tokens; `queue` is None where the engine is full. `deviation` is that of its batch.
    """

    batch: Batch
    replicas: int
    running: float
    active: float
    interference: float
    stretch: float
    offered: float | None
    queue: Slots | None
    deviation: float

    @property
    def cycle(self) -> Cycle:
        return self.batch.cycle(self.running / self.active)

    @property
    def tokens_per_second(self) -> float:
        """Output tokens a second of one engine."""
        if self.queue is not None and self.offered is not None:
            return self.offered
        return self.running / self.cycle.seconds(self.stretch)


@lru_cache(maxsize=4096)
def predict(
    gpu: GpuKind, groups: tuple[EngineGroup, ...], sharing: Sharing, reserve: Bytes = GPU_RESERVE
) -> GpuPrediction:
    """What the groups do together on one GPU in the steady state.

    Under MIG `gpu` is the kind of the slices, each with one engine; shares of DRAM and time are means over the slices.
    A group with `request_rate` None is kept full. What does not fit in memory is predicted all the same, with `fits`
    false. Raises Invalid where several engines are to have one GPU exclusively.
    """
    engines = steady(gpu, groups, sharing)
    answers = tuple(_group(gpu, group, each) for group, each in zip(groups, engines, strict=True))
    return whole_gpu(gpu, groups, engines, answers, sharing, reserve)


def steady(gpu: GpuKind, groups: tuple[EngineGroup, ...], sharing: Sharing) -> tuple[Engines, ...]:
    """Batch, activity and stretch of every group: the fixed point of running batches and contention."""
    count = sum(group.replicas for group in groups)
    if sharing is Sharing.EXCLUSIVE and count > 1:
        raise Invalid("sharing", f"{count} engines cannot have one GPU exclusively", "choose MPS or one replica")
    now = [_start(gpu, group) for group in groups]
    moves, weights = [0.0] * len(now), [1.0] * len(now)
    for _ in range(_ROUNDS):
        now = with_contention(now, [each.cycle.whole for each in now], groups, sharing)
        furthest = 0.0
        for index, each in enumerate(now):
            if each.offered is not None:
                fresh = _occupied(each, groups[index].router)
                move = fresh.running - each.running
                if move * moves[index] < -_SWING * moves[index] ** 2:
                    weights[index] /= 2
                furthest = max(furthest, abs(move) / each.batch.running_most)
                moves[index], now[index] = move, _part_way(each, fresh, weights[index])
        if furthest < _SETTLED:
            break
    return tuple(now)


def _part_way(before: Engines, after: Engines, weight: float) -> Engines:
    """Where full engines would have time to spare and engines with time to spare would fill, the batch is between."""
    if weight == 1:
        return after
    return after._replace(
        running=before.running + weight * (after.running - before.running),
        active=before.active + weight * (after.active - before.active),
    )


def itl_at(
    gpu: GpuKind, groups: tuple[EngineGroup, ...], running: tuple[float, ...], sharing: Sharing
) -> tuple[Seconds, ...]:
    """The mean inter-token latency of each group whose engines run so many sequences each, whatever arrives.

    For batches that were measured: the step time alone is asked, not the batch that the arrivals should hold. An engine
    is taken to have nothing to run as often as a Poisson number of sequences is none.
    """
    now = []
    for group, count in zip(groups, running, strict=True):
        inside = max(count, 1e-3)
        now.append(_start(gpu, group)._replace(running=inside, active=-math.expm1(-inside)))
    steps = [each.cycle.whole for each in now]
    for _ in range(_CONTENTION_ROUNDS):
        fresh = with_contention(now, steps, groups, sharing)
        if fresh == now:
            break
        now = fresh
    return tuple(Seconds(each.cycle.seconds(each.stretch)) for each in now)


def first_token_means(gpu: GpuKind, groups: tuple[EngineGroup, ...], sharing: Sharing) -> tuple[Seconds | None, ...]:
    """The mean time to the first token of each group as `predict` answers it; None where it is kept full."""
    return tuple(
        None if each.queue is None else Seconds(time_to_first_token(each, each.queue)[0])
        for each in steady(gpu, groups, sharing)
    )


def _start(gpu: GpuKind, group: EngineGroup) -> Engines:
    one = batch(gpu, group)
    rate = group.request_rate
    return Engines(
        batch=one,
        replicas=group.replicas,
        running=one.running_most,
        active=1.0,
        interference=1.0,
        stretch=1.0,
        offered=None if rate is None else max(rate, _LEAST_RATE) * group.lengths.output_mean / group.replicas,
        queue=None,
        deviation=0.0,
    )


def with_contention(
    engines: list[Engines], steps: list[Step], groups: tuple[EngineGroup, ...], sharing: Sharing
) -> list[Engines]:
    """The same batches, each repeating its step, with the stretch that they cause each other.

    An engine that is active a share p of its time is, to its siblings, one that thinks longer: the pauses are dealt to
    its steps.
    """
    if sharing is Sharing.MIG:
        return engines
    present = sum(each.replicas * each.active for each in engines)
    customers = []
    interferences = []
    for each, step, group in zip(engines, steps, groups, strict=True):
        others = present - each.active
        interference = 1 + _interference(group, sharing, step) * others / (1 + others)
        pause = (1 - each.active) / each.active * (step.host + each.stretch * step.gpu)
        customers.append(Customer(step.host + pause, step.gpu * interference, each.replicas))
        interferences.append(interference)
    return [
        each._replace(interference=interference, stretch=interference * stretch)
        for each, interference, stretch in zip(engines, interferences, stretches(tuple(customers)), strict=True)
    ]


def _interference(group: EngineGroup, sharing: Sharing, step: Step) -> float:
    """Kernels side by side slow each other little while they wait for memory; those that fill all SMs take turns.

    The published replication runs are nearly all decode; that prompts interfere as time-slicing does is a guess towards
    safety, which the twin shares.
    """
    coefficients = group.coefficients
    slicing, mps = coefficients.time_slicing_interference, coefficients.mps_interference
    if sharing is Sharing.TIME_SLICING:
        return float(slicing)
    return float(mps + (slicing - mps) * min(1.0, step.filling / step.gpu))


def _occupied(each: Engines, router: Router) -> Engines:
    """The same contention with the batch that the arrivals hold at it.

    A cycle is nearly linear in the batch, A + S n. LeastLoaded joins the slots of all replicas into one queue,
    RandomConnection leaves each engine its own share of chance.
    """
    assert each.offered is not None
    most = each.batch.running_most
    around = min(most, max(1.0, each.running / each.active))
    beside = around + 1 + 0.1 * around
    here, there = (each.batch.cycle(n).seconds(each.stretch) for n in (around, beside))
    slope = max((there - here) / (beside - around), 1e-12)
    if slope * around > here:  # steeper than a line through nothing, where prompts crowd the steps
        slope = here / around
    fixed = max(here - slope * around, 1e-12)
    joined = each.replicas if router is Router.LEAST_LOADED else 1
    queue = slots(each.offered * joined, fixed, slope / joined, most * joined, each.batch.output_mean)
    if queue is None:
        return each._replace(running=most, active=1.0, queue=None, deviation=0.0)
    running = min(most, queue.mean / joined)
    busy = -math.expm1((fixed / slope + 1) * math.log1p(-min(each.offered * slope, 1 - 1e-12)))
    return each._replace(
        running=running, active=min(busy, running, 1.0), queue=queue, deviation=queue.deviation / joined
    )


def _group(gpu: GpuKind, group: EngineGroup, each: Engines) -> GroupPrediction:
    return answer(
        gpu,
        group,
        each,
        output_tokens_per_second=each.replicas * each.tokens_per_second,
        itl=gaps(each),
        ttft=None if each.queue is None else time_to_first_token(each, each.queue),
        utilization=_utilization(each),
    )


def _utilization(each: Engines) -> Ratio | None:
    if each.offered is None:
        return None
    if each.queue is not None:
        return Ratio(each.queue.utilization)
    return Ratio(each.offered * each.cycle.seconds(each.stretch) / each.running)


def answer(
    gpu: GpuKind,
    group: EngineGroup,
    each: Engines,
    *,
    output_tokens_per_second: float,
    itl: tuple[float, float, float],
    ttft: tuple[float, float, float] | None,
    utilization: Ratio | None,
    kv_peak: float | None = None,
) -> GroupPrediction:
    """One group's answer: rates of the whole group, the rest of one replica. `itl` and `ttft` are mean, p95, p99.

    `kv_peak` is the peak of KV tokens wanted where the caller knows better than the steady state's 99th percentile.
    """
    one, shape = each.batch, group.shape
    running = min(one.running_most, each.running + _Z99 * each.deviation)
    usual = running * (one.context + BLOCK_TOKENS / 2) + _Z99 * math.sqrt(running) * one.context_deviation
    peak = usual if kv_peak is None else kv_peak
    mean, p95, p99 = itl
    return GroupPrediction(
        total_tokens_per_second=output_tokens_per_second * (1 + one.input_mean / one.output_mean),
        output_tokens_per_second=output_tokens_per_second,
        itl_mean=Seconds(mean),
        itl_p95=Seconds(p95),
        itl_p99=Seconds(p99),
        ttft_mean=None if ttft is None else Seconds(ttft[0]),
        ttft_p95=None if ttft is None else Seconds(ttft[1]),
        ttft_p99=None if ttft is None else Seconds(ttft[2]),
        running_mean=each.running,
        kv_peak_fraction=Ratio(min(1.0, peak / one.kv_tokens) if one.kv_tokens else 1.0),
        kv_tokens_needed=kv_tokens_needed(group.lengths, shape.max_num_seqs, shape.max_model_len, KV_SAFETY),
        utilization=utilization,
        kv_starved=one.kv_starved or (kv_peak is not None and kv_peak > one.kv_tokens),
        memory=replica_memory(group.llm, group.dtype, shape, gpu),
    )


def whole_gpu(
    gpu: GpuKind,
    groups: tuple[EngineGroup, ...],
    engines: tuple[Engines, ...],
    answers: tuple[GroupPrediction, ...],
    sharing: Sharing,
    reserve: Bytes,
) -> GpuPrediction:
    """The groups' answers put together: DRAM and GPU time, memory, and how far the answer may be off."""
    parts = sum(group.replicas for group in groups) if sharing is Sharing.MIG else 1
    moved = held = 0.0
    for each in engines:
        cycle = each.cycle
        cycles = each.replicas * each.active * each.tokens_per_second / each.running
        moved += cycles * cycle.whole.bytes
        held += cycles * cycle.whole.gpu * each.interference
    reachable = moved / (gpu.dram_bytes_per_second * held)
    saturation = min(1.0, held / parts)
    memory = Bytes(sum(group.replicas * each.memory.total for group, each in zip(groups, answers, strict=True)))
    together = max(each.memory.total for each in answers) if sharing is Sharing.MIG else memory
    holds_one = all(
        each.batch.kv_tokens >= group.shape.max_model_len for group, each in zip(groups, engines, strict=True)
    )
    return GpuPrediction(
        groups=answers,
        total_tokens_per_second=sum(each.total_tokens_per_second for each in answers),
        output_tokens_per_second=sum(each.output_tokens_per_second for each in answers),
        dram_active=Ratio(saturation * reachable),
        dram_active_max=Ratio(reachable),
        saturation=Ratio(saturation),
        gpu_held=Ratio(saturation),
        memory_bytes=memory,
        fits=holds_one and together + reserve <= gpu.memory_bytes,
        error=_error(gpu, groups, answers, engines, sharing),
        source=Source(max(max(group.coefficients.source, group.llm.source, gpu.source) for group in groups)),
    )


def _error(
    gpu: GpuKind,
    groups: tuple[EngineGroup, ...],
    answers: tuple[GroupPrediction, ...],
    engines: tuple[Engines, ...],
    sharing: Sharing,
) -> Ratio:
    error = max(float(group.coefficients.error) for group in groups)
    if any(group.coefficients.calibrated_on != gpu.name for group in groups):
        error = max(error, _OTHER_GPU_ERROR)
    shared = sharing is not Sharing.MIG and sum(group.replicas for group in groups) > 1
    if shared:
        error += _SHARED_ERROR
    if any(each.kv_starved for each in answers):
        error += _STARVED_ERROR
    customers = tuple(Customer(each.cycle.whole.host, each.cycle.whole.gpu, each.replicas) for each in engines)
    if shared and not is_exact(customers):
        error += _APPROXIMATE_ERROR
    return Ratio(error)


def gaps(each: Engines) -> tuple[float, float, float]:
    """Mean, p95 and p99 of the gap between two tokens."""
    mean = each.cycle.seconds(each.stretch)
    if each.queue is not None:
        # The queue counts whole slots, KV cache may hold a broken number: a gap lies between one sequence's and a full
        # batch's all the same.
        least, most = (each.batch.cycle(n).seconds(each.stretch) for n in (1.0, each.batch.running_most))
        mean = min(max(least, each.running / each.tokens_per_second), most)
    return mean, max(mean, _gap_quantile(each, 0.95)), max(mean, _gap_quantile(each, 0.99))


def _gap_quantile(each: Engines, level: float) -> float:
    """The gap between two tokens that only 1 - `level` of the gaps exceed.

    If more steps than that carry prefill, it is such a step at the right quantile of its prompt tokens, else a plain
    one. Batch and contexts swing about their means; independent swings add in squares. Tokens meet large batches more
    often than small ones.
    """
    running = each.running / each.active
    running = min(each.batch.running_most, running + each.deviation**2 / running)
    cycle = each.batch.cycle(running)
    beside = each.batch.cycle(running + 1)
    slope = beside.plain_seconds(each.stretch) - cycle.plain_seconds(each.stretch)
    contexts = math.sqrt(running) * each.batch.context_deviation * each.batch.engine.kv_seconds * each.stretch
    swing = normal_quantile(level) * math.hypot(slope * min(each.deviation, running), contexts)
    extra = 0.0
    if cycle.share > 1 - level:
        step = each.batch.prefill_extra(running, 1 - (1 - level) / cycle.share)
        extra = step.host + each.stretch * step.gpu
    return cycle.plain_seconds(each.stretch) + math.hypot(extra, swing)


def time_to_first_token(each: Engines, queue: Slots) -> tuple[float, float, float]:
    """Mean, p95 and p99 of the time to the first token: wait for a slot, for the step under way, and prefill.

    Waits are exponential beyond their chance. Lengths that vary less than exponentially shorten the wait for a slot by
    (1 + cv^2)/2 (Allen and Cunneen). Prompts before one's own take the token budget first: the wait of an M/G/1 queue
    whose work is prompt tokens.
    """
    one = each.batch
    running = max(1.0, each.running / each.active)
    slot = (1 + one.output_cv**2) / 2 / queue.drain_rate
    step = each.cycle.seconds(each.stretch)
    taken, tokens_first = one.prefill_queue(each.running)
    ahead = tokens_first / one.room(running) * step

    def prefill(level: float | None) -> float:
        own = one.first_token(running, level)
        return own.host + each.stretch * own.gpu

    def beyond(chance: float, scale: float, level: float) -> float:
        return scale * math.log(chance / (1 - level)) if chance > 1 - level else 0.0

    def quantile(level: float) -> float:
        under_way = step / 2 if queue.waits > 1 - level else level * step
        long_prompt = prefill(level) + taken * ahead
        long_wait = prefill(None) + beyond(taken, ahead, level)
        return beyond(queue.waits, slot, level) + under_way + max(long_prompt, long_wait)

    mean = queue.waits * slot + step / 2 + taken * ahead + prefill(None)
    return mean, quantile(0.95), quantile(0.99)


def statistic_of(group: GroupPrediction, statistic: Statistic) -> tuple[Seconds, Seconds | None]:
    """ITL and TTFT of a group in the statistic that an SLO names."""
    return {
        Statistic.MEAN: (group.itl_mean, group.ttft_mean),
        Statistic.P95: (group.itl_p95, group.ttft_p95),
        Statistic.P99: (group.itl_p99, group.ttft_p99),
    }[statistic]


def keeps(group: GroupPrediction, slo: Slo) -> bool:
    """Whether the group keeps its promise. A group kept full has no TTFT to keep; one overrun keeps none."""
    itl, ttft = statistic_of(group, slo.statistic)
    if slo.itl is not None and itl > slo.itl:
        return False
    if slo.ttft is None:
        return True
    return ttft is not None and ttft <= slo.ttft


def max_rate_within(
    gpu: GpuKind, groups: tuple[EngineGroup, ...], index: int, slos: tuple[Slo | None, ...], sharing: Sharing
) -> PerSecond:
    """The highest request rate of group `index` at which every group keeps its promise; 0 if there is none.

    The others keep the rates they have. A group offered more than it can serve breaks its promise.
    """

    def kept(rate: float) -> bool:
        asked = (*groups[:index], replace(groups[index], request_rate=PerSecond(rate)), *groups[index + 1 :])
        engines = steady(gpu, asked, sharing)
        return (
            all(slo is None or _kept(each, slo) for each, slo in zip(engines, slos, strict=True))
            and engines[index].queue is not None
        )

    kept_full = (*groups[:index], replace(groups[index], request_rate=None), *groups[index + 1 :])
    full = steady(gpu, kept_full, sharing)[index]
    low, high = 0.0, 1.02 * full.replicas * full.tokens_per_second / full.batch.output_mean
    if not kept(high * 1e-3):
        return PerSecond(0.0)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle) else (low, middle)
    return PerSecond(low)


def _kept(each: Engines, slo: Slo) -> bool:
    place = _PLACES[slo.statistic]
    if slo.itl is not None and gaps(each)[place] > slo.itl:
        return False
    if slo.ttft is None:
        return True
    return each.queue is not None and time_to_first_token(each, each.queue)[place] <= slo.ttft
