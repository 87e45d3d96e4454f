"""The engines of a small cluster in steps instead of rates: real batches, blocks and preemptions, kernels that share.

The same face as `fluid`, a thousand times the work. Requests are dealt evenly over the time in which they come and are
all alike. Knows engines on GPUs, no pods.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from gpupack.errors import Invalid
from gpupack.twin.arrivals import Request
from gpupack.twin.counters import Histogram
from gpupack.twin.engine import Engine, EngineConfig
from gpupack.twin.fluid import Counts, Flow, FluidEngine
from gpupack.twin.memory_system import VLLM_V1, GpuSpec, ModelDims, Mps, StepTimer
from gpupack.twin.world import Tenant, VirtualGpu

BLOCK_TOKENS = 16


class Dealt:
    """Requests with known times, to which more are added as time goes on."""

    def __init__(self) -> None:
        self._coming: deque[tuple[float, Request]] = deque()
        self._part = 0.0

    def deal(self, count: float, since: float, until: float, request: Request) -> None:
        """`count` requests in even gaps; what is less than a whole one is kept for the next time."""
        self._part += count
        whole = math.floor(self._part)
        self._part -= whole
        for number in range(whole):
            self._coming.append((since + (number + 0.5) * (until - since) / whole, request))

    def next_at(self) -> float:
        return self._coming[0][0] if self._coming else math.inf

    def take(self, now: float, in_flight: int) -> list[tuple[float, Request]]:
        del in_flight
        due = []
        while self._coming and self._coming[0][0] <= now:
            due.append(self._coming.popleft())
        return due


@dataclass(slots=True, kw_only=True)
class SteppedEngine(FluidEngine):
    """The numbers of an engine of steps, read after every turn. `dims` and `max_model_len` are what steps need."""

    dims: ModelDims
    max_model_len: int
    max_num_batched_tokens: int
    source: Dealt = field(default_factory=Dealt)
    steps: Engine | None = None

    def restart(self) -> None:
        FluidEngine.restart(self)
        self.steps = None
        self.source = Dealt()

    def running_steps(self) -> Engine:
        """The engine itself, made anew after a restart. Raises Invalid for a shape that vLLM would refuse."""
        if self.steps is None:
            config = EngineConfig(
                max_num_seqs=self.slots,
                kv_blocks=self.kv_bytes // (BLOCK_TOKENS * self.model.kv_bytes_per_token),
                max_model_len=self.max_model_len,
                max_num_batched_tokens=self.max_num_batched_tokens,
            )
            self.steps = Engine(config, source=self.source)
        return self.steps

    def read(self) -> None:
        """Takes the engine's counters over as they are now."""
        engine = self.running_steps()
        counters = engine.counters
        self.running, self.waiting = float(engine.running), float(engine.waiting)
        self.finished = float(counters.succeeded)
        self.prompt_tokens, self.generation_tokens = float(counters.prompt_tokens), float(counters.generation_tokens)
        self.prompt_lengths = counters.request_prompt_tokens.sum
        self.answer_lengths = counters.request_generation_tokens.sum
        self.itl, self.ttft = _counts(counters.token_gap), _counts(counters.first_token)


class SteppedGpu:
    """One GPU with the engines that serve on it at the moment."""

    def __init__(self, name: str, spec: GpuSpec, interference: float, now: float) -> None:
        self._spec = spec
        self._gpu = VirtualGpu(name, spec, Mps(interference=interference), now)
        self._engines: dict[str, Engine] = {}

    def advance(self, engines: Iterable[tuple[SteppedEngine, Flow, float]], until: float) -> float:
        """As `fluid.advance`: moves the engines that serve and returns the share of the peak that was read."""
        gpu, since = self._gpu, self._gpu.now
        present = [(engine, flow, arriving) for engine, flow, arriving in engines if _can_run(engine)]
        here = {engine.name: engine.running_steps() for engine, _, _ in present}
        for name, known in list(self._engines.items()):
            if here.get(name) is not known:
                gpu.remove(name)
                del self._engines[name]
        for engine, flow, arriving in present:
            if engine.name not in self._engines:
                timer = StepTimer(engine.dims, self._spec, VLLM_V1)
                gpu.tenants[engine.name] = Tenant(engine.name, here[engine.name], timer, 0, since)
                self._engines[engine.name] = here[engine.name]
            request = Request(input_tokens=round(flow.input_tokens), output_tokens=round(flow.output_tokens))
            engine.source.deal(arriving, since, until, request)
        before = gpu.reading()
        gpu.advance(until)
        for engine, _, _ in present:
            engine.read()
        return (gpu.reading().dram_seconds - before.dram_seconds) / (until - since) if until > since else 0.0


def _can_run(engine: SteppedEngine) -> bool:
    try:
        engine.running_steps()
    except Invalid:  # vLLM would not start with this shape
        return False
    return True


def _counts(histogram: Histogram) -> Counts:
    counts = Counts((*histogram.edges, math.inf))
    counts.counts = [float(each) for each in histogram.counts]
    counts.total, counts.count = histogram.sum, float(histogram.count)
    return counts
