"""Engines as rates: requests flow in and out in fractions, and a tick costs microseconds instead of many steps.

A step of an engine takes its host gap plus the time to read the weights and the contexts of the running sequences; what
several engines on a GPU read together cannot exceed the bandwidth. So a step is a line, a + b n, in the running batch n
and a flow of requests is n / (tokens (a + b n)). Shares no formula with the closed form; `engine` has the real steps,
queues and blocks. Knows no Kubernetes.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field

ITL_BOUNDS = (0.005, 0.010, 0.015, 0.020, 0.030, 0.040, 0.060, 0.080, 0.120, 0.200, 0.500, float("inf"))
TTFT_BOUNDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, float("inf"))
"""Seconds; upper bounds of the buckets in which latencies are counted."""

PATIENCE = 10.0
"""So many batches may wait; who comes later gives up, and vLLM counts that nowhere (its issues 31503 and 55634)."""

_HOST = 0.0025
"""Seconds a step that the GPU waits for its host: what small models on current servers take."""
_PREFILL_PER_TOKEN = 4e-6
"""Seconds that a prompt token takes of a step on a large GPU."""
_PEAK = 0.82
"""The share of the theoretical bandwidth that weights and contexts are read with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What a step reads, in bytes, and what an engine holds beside its KV cache."""

    weight_bytes: int
    kv_bytes_per_token: int
    overhead_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """Requests of one serving: a second, or that many clients that wait for their answer; lengths in tokens."""

    rate: float
    clients: int
    input_tokens: float
    output_tokens: float


@dataclass(slots=True)
class Counts:
    """A histogram as Prometheus counts it: cumulative by bucket only when it is read."""

    bounds: tuple[float, ...]
    counts: list[float] = field(default_factory=list)
    total: float = 0.0
    count: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0.0] * len(self.bounds)

    def add(self, value: float, times: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times
        self.count += times


@dataclass(slots=True, kw_only=True)
class FluidEngine:
    """One engine. `slots` is its largest batch, in requests; counters are what its /metrics would say.

    `prompt_lengths` and `answer_lengths` are tokens of the requests that finished: what histograms of lengths sum up.
    """

    name: str
    model: Model
    slots: int
    kv_bytes: int
    running: float = 0.0
    waiting: float = 0.0
    arrived: float = 0.0
    finished: float = 0.0
    prompt_tokens: float = 0.0
    generation_tokens: float = 0.0
    prompt_lengths: float = 0.0
    answer_lengths: float = 0.0
    itl: Counts = field(default_factory=lambda: Counts(ITL_BOUNDS))
    ttft: Counts = field(default_factory=lambda: Counts(TTFT_BOUNDS))
    closed: bool = False

    def restart(self) -> None:
        """A process that died: everything inside and every counter is gone."""
        self.running = self.waiting = self.arrived = self.finished = 0.0
        self.prompt_tokens = self.generation_tokens = self.prompt_lengths = self.answer_lengths = 0.0
        self.itl, self.ttft = Counts(ITL_BOUNDS), Counts(TTFT_BOUNDS)


def advance(
    engines: Iterable[tuple[FluidEngine, Flow, float]], seconds: float, bandwidth: float, interference: float
) -> float:
    """Moves the engines of one GPU, each with its flow and the requests that arrive in this time.

    `bandwidth` is bytes a second at the peak, `interference` how much longer a step takes for each sibling that is
    busy. Returns the share of the peak that was read.
    """
    busy = [(engine, flow, arriving) for engine, flow, arriving in engines]
    siblings = sum(1 for engine, _, arriving in busy if engine.running + engine.waiting + arriving > 0) - 1
    slower = 1.0 + interference * max(0, siblings)
    reads = [_pressure(engine, flow, bandwidth) for engine, flow, _ in busy]
    slower = max(slower, sum(reads))
    moved = 0.0
    for engine, flow, arriving in busy:
        moved += _advance_one(engine, flow, arriving, seconds, bandwidth, slower)
    return min(1.0, moved / (seconds * bandwidth)) if seconds > 0 else 0.0


def _line(engine: FluidEngine, flow: Flow, bandwidth: float, slower: float) -> tuple[float, float]:
    """A step of n sequences takes a + b n seconds."""
    context = flow.input_tokens + flow.output_tokens
    fixed = _HOST + slower * engine.model.weight_bytes / (_PEAK * bandwidth)
    prompts = _PREFILL_PER_TOKEN * (3.35e12 / bandwidth) * flow.input_tokens / flow.output_tokens
    return fixed, slower * (engine.model.kv_bytes_per_token * context / (_PEAK * bandwidth) + prompts)


def _pressure(engine: FluidEngine, flow: Flow, bandwidth: float) -> float:
    """The share of its time that this engine alone would use the GPU at its present batch."""
    if engine.running <= 0:
        return 0.0
    fixed, slope = _line(engine, flow, bandwidth, 1.0)
    step = fixed + slope * engine.running
    return (step - _HOST) / step


def _advance_one(
    engine: FluidEngine, flow: Flow, arriving: float, seconds: float, bandwidth: float, slower: float
) -> float:
    """One engine; returns the bytes that it read."""
    fixed, slope = _line(engine, flow, bandwidth, slower)
    context = flow.input_tokens + flow.output_tokens
    room = engine.kv_bytes / max(1.0, engine.model.kv_bytes_per_token * context)
    most = max(1.0, min(float(engine.slots), room))
    before = engine.running + engine.waiting
    if engine.closed:
        inside = float(flow.clients)
        running = min(inside, most)
        engine.arrived += running / (flow.output_tokens * (fixed + slope * running)) * seconds
        engine.arrived += max(0.0, inside - before)
    else:
        engine.arrived += arriving
        inside, running, lost = _inside(before, arriving, seconds, most, flow.output_tokens, fixed, slope)
        engine.arrived -= lost
    # What came and did not give up is inside or finished.
    finished = max(engine.finished, math.floor(engine.arrived) - inside)
    done, engine.finished = finished - engine.finished, finished
    engine.running = float(min(inside, round(most)))
    engine.waiting = inside - engine.running
    step = fixed + slope * running
    steps = seconds / step if running > 0.05 else 0.0
    served = min(done, steps * running / flow.output_tokens + 1.0)
    engine.prompt_tokens += round(served * flow.input_tokens)
    engine.generation_tokens += round(served * flow.output_tokens)
    engine.prompt_lengths += done * flow.input_tokens
    engine.answer_lengths += done * flow.output_tokens
    if done > 0:
        engine.itl.add(step, 0.94 * done * flow.output_tokens)
        engine.itl.add(step * 1.2, 0.06 * done * flow.output_tokens)
        engine.ttft.add(2 * step + engine.waiting * seconds / done, done)
    return steps * (engine.model.weight_bytes + running * engine.model.kv_bytes_per_token * context)


def _inside(
    before: float, arriving: float, seconds: float, most: float, tokens: float, fixed: float, slope: float
) -> tuple[float, float, float]:
    """Whole requests inside at the end, the mean batch, and how many gave up.

    As many as can run finish `most` at a time; fewer come to a balance with what arrives, n = l (a + b n) with l tokens
    a second, within the time that a request takes.
    """
    full = most / (tokens * (fixed + slope * most)) * seconds
    left = before + arriving - full
    if left >= most:
        stay = min(left, (1 + PATIENCE) * most)
        return float(round(stay)), most, left - stay
    wanted = arriving / seconds * tokens
    balance = min(most, wanted * fixed / (1.0 - wanted * slope)) if wanted * slope < 1.0 else most
    duration = tokens * (fixed + slope * max(balance, 1.0))
    after = balance + (min(before, most) - balance) * math.exp(-seconds / duration)
    return float(round(after)), max(balance, after), 0.0
