"""What really happens on the virtual node, over a window: the truth that metrics approximate.

Every second the cumulative numbers of engines and GPUs are kept; a window is a difference of two of them. Rates are a
second, times seconds; quantiles are straight within a bucket of the engine's own histogram. It does not know the API.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gpupack.node.engine_program import EngineProgram, Site
from gpupack.node.hardware import Slot
from gpupack.node.pace import Patience
from gpupack.twin.counters import Histogram
from gpupack.twin.world import Reading, activity

SAMPLE_SECONDS = 1.0
KEPT_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """A histogram at one moment, or what two moments differ by."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float
    count: int

    @classmethod
    def of(cls, histogram: Histogram) -> Observed:
        return cls(edges=histogram.edges, counts=tuple(histogram.counts), sum=histogram.sum, count=histogram.count)

    def since(self, before: Observed) -> Observed:
        counts = tuple(after - earlier for after, earlier in zip(self.counts, before.counts, strict=True))
        return Observed(edges=self.edges, counts=counts, sum=self.sum - before.sum, count=self.count - before.count)

    @property
    def mean(self) -> float | None:
        return self.sum / self.count if self.count else None

    def quantile(self, share: float) -> float | None:
        """None without observations; the last finite edge if it lies above."""
        return quantile((self,), share)


def quantile(parts: Sequence[Observed], share: float) -> float | None:
    """Of several histograms together, whose edges may differ: the value below which that share of them lies."""
    total = sum(part.count for part in parts)
    if not total:
        return None
    low, high = 0.0, max(part.edges[-1] for part in parts)
    for _ in range(40):
        middle = 0.5 * (low + high)
        if sum(_below(part, middle) for part in parts) < share * total:
            low = middle
        else:
            high = middle
    return high


def _below(part: Observed, value: float) -> float:
    """How many observations are at most `value`, straight within a bucket; those above the last edge are never."""
    total, lower = 0.0, 0.0
    for edge, count in zip(part.edges, part.counts, strict=False):
        if value >= edge:
            total += count
        else:
            return total + count * (value - lower) / (edge - lower)
        lower = edge
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSample:
    """`born` is when the engine was ready: a restarted one counts from zero again."""

    born: float
    prompt_tokens: int
    generation_tokens: int
    succeeded: int
    aborted: int
    preemptions: int
    itl: Observed
    ttft: Observed


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    at: float
    gpus: Mapping[str, Reading]
    engines: Mapping[str, EngineSample]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineWindow:
    """One engine over `seconds`; latencies None where nothing was observed."""

    seconds: float
    output_tokens_per_second: float
    total_tokens_per_second: float
    finished_per_second: float
    preemptions: int
    aborted: int
    itl: Observed
    ttft: Observed


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuWindow:
    """Ratios of the theoretical peak, watts. `dram_active_attainable` is what `dram_active` would be if kernels of the
    present mix of engines ran all the time: `dram_active / gpu_held`; None where no kernel ran."""

    dram_active: float
    dram_active_attainable: float | None
    sm_active: float
    gpu_held: float
    power: float


class Meter:
    """`advanced` is called after each advance of the world."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._samples: deque[Sample] = deque()

    def advanced(self) -> Patience:
        now = self._site.pace.world.now
        if not self._samples or now - self._samples[-1].at >= SAMPLE_SECONDS:
            self._samples.append(self._sample())
            while now - self._samples[0].at > KEPT_SECONDS:
                self._samples.popleft()
        return Patience.NOTHING

    def over(self, seconds: float) -> tuple[dict[str, EngineWindow], dict[str, GpuWindow]]:
        """Engines by `namespace/pod` and GPUs by UUID over the last so many seconds, or as many as there are.

        An engine that is younger than the window is seen from its start.
        """
        after = self._sample()
        before = next((each for each in self._samples if after.at - each.at <= seconds + 0.5 * SAMPLE_SECONDS), after)
        passed = after.at - before.at
        engines = {
            key: _engine_window(before.engines.get(key), sample, passed) for key, sample in after.engines.items()
        }
        gpus = {
            slot.card.uuid: _gpu_window(before.gpus[slot.card.uuid], after.gpus[slot.card.uuid], slot)
            for slot in self._site.hardware.slots.values()
        }
        return engines, gpus

    def _sample(self) -> Sample:
        site = self._site
        return Sample(
            at=site.pace.world.now,
            gpus={slot.card.uuid: slot.gpu.reading() for slot in site.hardware.slots.values()},
            engines={key: sample for key, program in site.running.items() if (sample := _engine_sample(program))},
        )


def merged_mean(parts: Iterable[Observed]) -> float | None:
    listed = list(parts)
    count = sum(part.count for part in listed)
    return math.fsum(part.sum for part in listed) / count if count else None


def _engine_sample(program: EngineProgram) -> EngineSample | None:
    if program.serving is None:
        return None
    counters = program.serving.tenant.engine.counters
    return EngineSample(
        born=program.serving.tenant.ready_at,
        prompt_tokens=counters.prompt_tokens,
        generation_tokens=counters.generation_tokens,
        succeeded=counters.succeeded,
        aborted=counters.aborted,
        preemptions=counters.preemptions,
        itl=Observed.of(counters.token_gap),
        ttft=Observed.of(counters.first_token),
    )


def _engine_window(before: EngineSample | None, after: EngineSample, passed: float) -> EngineWindow:
    seconds = max(passed, 1e-9)
    known = before is not None and before.born == after.born
    zero = before if known and before else EngineSample(
        born=after.born, prompt_tokens=0, generation_tokens=0, succeeded=0, aborted=0, preemptions=0,
        itl=_empty(after.itl), ttft=_empty(after.ttft),
    )  # fmt: skip
    generated = after.generation_tokens - zero.generation_tokens
    return EngineWindow(
        seconds=passed,
        output_tokens_per_second=generated / seconds,
        total_tokens_per_second=(generated + after.prompt_tokens - zero.prompt_tokens) / seconds,
        finished_per_second=(after.succeeded - zero.succeeded) / seconds,
        preemptions=after.preemptions - zero.preemptions,
        aborted=after.aborted - zero.aborted,
        itl=after.itl.since(zero.itl),
        ttft=after.ttft.since(zero.ttft),
    )


def _gpu_window(before: Reading, after: Reading, slot: Slot) -> GpuWindow:
    if after.at <= before.at:
        return GpuWindow(
            dram_active=0.0, dram_active_attainable=None, sm_active=0.0, gpu_held=0.0, power=slot.gpu.spec.idle_watts
        )
    did = activity(before, after)
    return GpuWindow(
        dram_active=did.dram_active,
        dram_active_attainable=did.dram_active / did.gpu_held if did.gpu_held else None,
        sm_active=did.sm_active,
        gpu_held=did.gpu_held,
        power=did.power_watts,
    )


def _empty(like: Observed) -> Observed:
    return Observed(edges=like.edges, counts=(0,) * len(like.counts), sum=0.0, count=0)
