"""Act 6, hidden truth: a world whose coefficients only its seed knows, and what live calibration makes of it.

The twin's engines step in simulated time behind their own counters; windows, filter and rules are the operator's. The
world draws each cost of its engines within 30 % of the catalog's. The load changes every other minute, and towards the
end the lengths become others at once.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

from rich.table import Table

from gpupack import catalog
from gpupack.decide.learning import Learning, due, learn, wrote
from gpupack.facts.belief import Belief
from gpupack.facts.engine_args import ITL_BUCKETS_SECONDS
from gpupack.facts.gpu import Gpu
from gpupack.facts.interpretation import interpret
from gpupack.facts.llm import Dtype
from gpupack.facts.observation import (
    Cause,
    EngineSeen,
    GpuSeen,
    Missing,
    NodeSeen,
    Observation,
    Phase,
    Reading,
    ReplicaSeen,
)
from gpupack.facts.placement import Placement, Plan
from gpupack.facts.policy import Policy
from gpupack.facts.serving import (
    BLOCK_TOKENS,
    Batching,
    Lengths,
    Mode,
    Scaling,
    ScalingMode,
    Serving,
    ServingKey,
    Shape,
    Sharing,
    SharingWish,
)
from gpupack.metrics.prometheus import EnginePage, Histogram
from gpupack.metrics.windows import EngineHistory, Timing
from gpupack.perf import calibration, learning, sharing
from gpupack.perf.prediction import Coefficients, EngineGroup
from gpupack.twin import arrivals, counters
from gpupack.twin.arrivals import Request
from gpupack.twin.counters import Buckets
from gpupack.twin.engine import EngineConfig
from gpupack.twin.memory_system import VLLM_V1, EngineCosts, GpuSpec, ModelDims
from gpupack.twin.world import Tenant, World, activity
from gpupack.units import GIB, Bytes, Ratio, Seconds, percent

MODEL, GPU_KIND, ENGINE_VERSION = "llama-3.2-1b", "H100-80GB", "0.8.5"
REACH = 0.3
MINUTES = 14
BOUND = 0.05
ENGINES = 2
RATES = (20.0, 60.0, 10.0, 40.0, 80.0, 30.0)
"""Requests a second in all, each for two minutes, again and again."""
SHORT, LONG = Lengths(input_mean=512.0, output_mean=256.0), Lengths(input_mean=1200.0, output_mean=128.0)
LENGTHS_CHANGE_AT = 10
"""The minute after which requests are LONG."""
SHAPE = Shape(
    max_num_seqs=256, kv_cache_memory_bytes=Bytes(20 * GIB), max_num_batched_tokens=2048, max_model_len=8192
)  # fmt: skip
NOON = 1_795_000_000.0
DEALT_EVERY = 0.25
POLICY = Policy(warmup=Seconds(10.0))
UUID = "GPU-00000000-0000-4000-8000-000000000000"
CHAT = ServingKey(namespace="default", name="chat")


@dataclass(frozen=True, slots=True, kw_only=True)
class Minute:
    """One minute of load: the latency that was measured, and what the first and the learnt belief said of it.

    Both are asked before the minute teaches anything. Relative errors. `steady`: the load is that of the minute
    before.
    """

    number: int
    itl: Seconds
    batch: float
    first_off: float
    learnt_off: float
    steady: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Hidden:
    """What was played, and the coefficients: true, believed at first, and learnt."""

    seed: int
    truth: tuple[float, ...]
    first: tuple[float, ...]
    belief: Belief
    minutes: tuple[Minute, ...]
    written: int


def draw(seed: int) -> EngineCosts:
    """The world's costs; sums that are learnt together move together."""
    chance = Random(seed)
    step, sequence, read, eager, gemm = (chance.uniform(1 - REACH, 1 + REACH) for _ in learning.LEARNT)
    return VLLM_V1.times(step=step, sequence=sequence, kv_read=read, eager=eager, gemm=gemm)


def values(costs: EngineCosts, layers: int) -> tuple[float, ...]:
    """The twin's costs as the five numbers that are learnt."""
    return (
        costs.host_per_step + layers * (costs.host_per_layer + costs.rest_per_layer),
        costs.host_per_sequence + costs.rest_per_sequence,
        costs.attention_efficiency,
        costs.eager_per_layer,
        costs.gemm_efficiency,
    )


def play(seed: int, *, minutes: int = MINUTES, engines: int = ENGINES, costs: EngineCosts | None = None) -> Hidden:
    """So many minutes of mixed load on engines that share a GPU, in simulated time; `costs` None draws them."""
    scene = Scene(costs or draw(seed), engines, seed)
    before = Learning()
    found, written = [], 0
    for number in range(minutes):
        scene.serve(60.0, RATES[number // 2 % len(RATES)], SHORT if number < LENGTHS_CHANGE_AT else LONG)
        observation = scene.observe()
        after = learn(interpret(observation), before)
        mind = next(iter(before.minds.values()), None)
        if mind is not None:
            found.append(scene.judged(number, observation, mind.belief))
        for belief in due(after, observation):
            after, written = wrote(after, belief), written + 1
            scene.keep(belief)
        before = after
    layers = scene.serving.llm.layers
    return Hidden(
        seed=seed,
        truth=values(scene.costs, layers),
        first=learning.values(calibration.coefficients(ENGINE_VERSION), layers),
        belief=next(iter(before.minds.values())).belief,
        minutes=tuple(found),
        written=written,
    )


class Scene:
    """One GPU of the twin with engines of one serving, and what an operator would see of it."""

    def __init__(self, costs: EngineCosts, engines: int, seed: int) -> None:
        self.costs = costs
        self.serving = _serving()
        self._chance = Random(seed)
        self._world = World(now=NOON)
        self._kind = catalog.gpu(GPU_KIND)
        self._gpu = self._world.add_gpu(
            UUID,
            GpuSpec(memory_bytes=self._kind.memory_bytes, dram_bytes_per_second=self._kind.dram_bytes_per_second,
                    dense_flops_per_second=self._kind.dense_flops_per_second),
        )  # fmt: skip
        self._dram = 0.0
        self._placements = tuple(_placement(slot, Sharing.among(engines)) for slot in range(engines))
        self._histories = {each.name: EngineHistory() for each in self._placements}
        self._timing = Timing.of(POLICY)
        llm = self.serving.llm
        for each in self._placements:
            config = EngineConfig(
                max_num_seqs=SHAPE.max_num_seqs,
                kv_blocks=SHAPE.kv_cache_memory_bytes // (BLOCK_TOKENS * llm.kv_bytes_per_token(self.serving.dtype)),
                max_model_len=SHAPE.max_model_len, max_num_batched_tokens=SHAPE.max_num_batched_tokens,
                buckets=Buckets(token_gap=ITL_BUCKETS_SECONDS),
            )  # fmt: skip
            self._world.start_engine(
                each.name, gpu=UUID, config=config, model=ModelDims.of(llm, self.serving.dtype), costs=costs
            )  # fmt: skip

    def keep(self, belief: Belief) -> None:
        """Written, and read back."""
        self.serving = replace(self.serving, learned=(belief,))

    def serve(self, seconds: float, rate: float, lengths: Lengths) -> None:
        """Poisson arrivals for so long, dealt to the engine with the fewest inside; engines are scraped meanwhile."""
        until, requests = self._world.now + seconds, _requests(lengths, self._chance)
        came_at = self._world.now + self._chance.expovariate(rate)
        before, scraped_at = self._gpu.reading(), self._world.now
        tenants = [self._world.tenant(each.name) for each in self._placements]
        while self._world.now < until:
            now = min(until, self._world.now + DEALT_EVERY)
            while came_at < now:
                tenant = min(tenants, key=lambda each: (each.engine.in_flight, each.name))
                tenant.engine.submit(next(requests), came_at)
                came_at += self._chance.expovariate(rate)
            self._world.advance(now)
            if now - scraped_at >= POLICY.engine_period:
                scraped_at = now
                for tenant in tenants:
                    self._histories[tenant.name].add(now, page(tenant), self._timing)
        self._dram = activity(before, self._gpu.reading()).dram_active

    def observe(self) -> Observation:
        at = Seconds(self._world.now)
        untold = Missing(cause=Cause.NO_SERIES, origin="twin")
        gpu = GpuSeen(
            gpu=Gpu(uuid=UUID, node="node", device_name="gpu-0", kind=self._kind), node_ready=True,
            dram_active=Reading(value=self._dram, at=at, origin="twin"), fb_used=untold, power=untold,
        )  # fmt: skip
        return Observation(
            at=at, pool="default", pool_uid="pool", pool_generation=1, policy=POLICY,
            plan=Plan(placements=self._placements), servings=(self.serving,), refused=(), gpus=(gpu,),
            nodes=(NodeSeen(name="node", ready=True, cpu_cores=64.0, cpu_cores_of_others=0.0),), holders=(), claims=(),
            replicas=tuple(_replica(each) for each in self._placements), engines=self._engines(at), services=(),
        )  # fmt: skip

    def _engines(self, at: Seconds) -> tuple[EngineSeen, ...]:
        return tuple(history.seen(name, at, self._timing) for name, history in self._histories.items())

    def judged(self, number: int, observation: Observation, belief: Belief) -> Minute:
        """The last minute against what was believed before it, at the batches that ran."""
        windows = [each.judged for each in observation.engines if each.judged is not None]
        itl = sum(_value(each.itl_mean) for each in windows) / len(windows)
        batch = sum(_value(each.running_mean) for each in windows) / len(windows)
        lengths = replace(
            self.serving.lengths,
            input_mean=sum(_value(each.input_mean) for each in windows) / len(windows),
            output_mean=sum(_value(each.output_mean) for each in windows) / len(windows),
        )
        catalogued = calibration.coefficients(ENGINE_VERSION)
        said = [
            self._itl(each, lengths, batch, len(windows))
            for each in (catalogued, learning.as_learnt(catalogued, self.serving.llm, belief))
        ]
        return Minute(
            number=number, itl=Seconds(itl), batch=batch, first_off=said[0] / itl - 1, learnt_off=said[1] / itl - 1,
            steady=number % 2 == 1,
        )  # fmt: skip

    def _itl(self, coefficients: Coefficients, lengths: Lengths, batch: float, engines: int) -> float:
        group = EngineGroup(
            llm=self.serving.llm, dtype=self.serving.dtype, shape=SHAPE, lengths=lengths, replicas=engines,
            request_rate=None, coefficients=coefficients,
        )  # fmt: skip
        return sharing.itl_at(self._kind, (group,), (batch,), Sharing.among(engines))[0]


def _value(measured: object) -> float:
    return measured.value if isinstance(measured, Reading) else math.nan


def _requests(lengths: Lengths, chance: Random) -> Iterator[Request]:
    return arrivals.Lengths(
        input_mean=lengths.input_mean, output_mean=lengths.output_mean, input_cv=lengths.input_cv,
        output_cv=lengths.output_cv, total_limit=SHAPE.max_model_len,
    ).draw(chance)  # fmt: skip


def _serving() -> Serving:
    return Serving(
        key=CHAT, uid="uid", generation=1, created_at=Seconds(NOON - 1000), pool="default", llm=catalog.llm(MODEL),
        dtype=Dtype.BFLOAT16, max_model_len=None, engine_version=ENGINE_VERSION, template_hash="template00",
        cpu_cores=2, lengths=SHORT, declared_rate=None, slo=None,
        batching=Batching(fixed=None, min_efficiency=Ratio(0.1)),
        scaling=Scaling(mode=ScalingMode.AUTO, replicas=1, min_replicas=1, max_replicas=None),
        sharing=SharingWish.AUTO, mode=Mode.ACTIVE,
    )  # fmt: skip


def _placement(slot: int, how: Sharing) -> Placement:
    return Placement(
        serving=CHAT, gpu_uuid=UUID, slot=slot, sharing=how, shape=SHAPE, template_hash="template00",
        planned_at=Seconds(NOON - 900),
    )  # fmt: skip


def _replica(each: Placement) -> ReplicaSeen:
    return ReplicaSeen(
        name=each.name, uid=each.name, serving=each.serving, gpu_uuid=each.gpu_uuid, slot=each.slot,
        sharing=each.sharing, shape=each.shape, template_hash=each.template_hash, content_hash=each.content_hash,
        phase=Phase.READY, created_at=Seconds(NOON - 900), ready_at=Seconds(NOON - 800), deletion_at=None,
        in_service=True, address="10.77.0.1:8000",
    )  # fmt: skip


def page(tenant: Tenant) -> EnginePage:
    """What the twin's engine would say on its /metrics."""
    engine, told = tenant.engine, tenant.engine.counters
    return EnginePage(
        running=float(engine.running),
        waiting=float(engine.waiting),
        kv_usage=engine.kv_usage,
        kv_blocks=float(engine.config.kv_blocks),
        finished=float(told.succeeded),
        prompt_tokens=float(told.prompt_tokens),
        generation_tokens=float(told.generation_tokens),
        preemptions=float(told.preemptions),
        ttft=_histogram(told.first_token),
        itl=_histogram(told.token_gap),
        input_length=_histogram(told.request_prompt_tokens),
        output_length=_histogram(told.request_generation_tokens),
        step_tokens=_histogram(told.step_tokens),
    )


def _histogram(counts: counters.Histogram) -> Histogram:
    lines = counts.cumulative()
    return Histogram(
        bounds=tuple(edge for edge, _ in lines), counts=array("d", (float(count) for _, count in lines)),
        total=counts.sum, count=float(counts.count),
    )  # fmt: skip


def table(played: Hidden) -> Table:
    """Truth, first belief and what was learnt, side by side."""
    shown = Table(title=f"{MODEL} on {GPU_KIND}, {ENGINES} engines by MPS; the truth was drawn from seed {played.seed}")
    for column in ("", "truth", "first belief", "learnt", "known to"):
        shown.add_column(column, justify="left" if not column else "right")
    units = ("ms", "us", "of the bandwidth", "us a layer", "of the peak")
    names = ("a step, whatever its batch", "a sequence", "KV cache is read at", "launches of a step with prefill",
             "prompts are computed at")  # fmt: skip
    factors = (1e3, 1e6, 1.0, 1e6, 1.0)
    numbers = zip(played.truth, played.first, played.belief.coefficients, strict=True)
    for index, (name, unit, factor, three) in enumerate(zip(names, units, factors, numbers, strict=True)):
        known = math.sqrt(played.belief.covariance[index][index])
        told = (f"{factor * value:.3g} {unit}" for value in three)
        shown.add_row(name, *told, f"{percent(known):.0f} %")
    return shown


def verdict(played: Hidden) -> str:
    """How far latencies were mispredicted, at first and in the end."""
    steady = [each for each in played.minutes if each.steady]
    path = ", ".join(
        f"minute {each.number + 1}: {percent(each.first_off):+.0f} / {percent(each.learnt_off):+.1f} %"
        for each in steady
    )
    return (
        f"Inter-token latency at the batches that ran, predicted less measured, with the first and with the learnt "
        f"belief: {path}. Before minute {LENGTHS_CHANGE_AT + 1} requests became others ({SHORT.input_mean:.0f} in and "
        f"{SHORT.output_mean:.0f} out to {LONG.input_mean:.0f} and {LONG.output_mean:.0f}). What no load told of stays "
        "where it was, and the last column says so: what is learnt is the latency, not each cost."
    )


def held(played: Hidden) -> bool:
    """Whether the last steady minutes were predicted to five per cent."""
    steady = [each for each in played.minutes if each.steady and each.number >= LENGTHS_CHANGE_AT - 1]
    return bool(steady) and all(abs(each.learnt_off) < BOUND for each in steady)
