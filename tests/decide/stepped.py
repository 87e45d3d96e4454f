"""The cluster of `world`, with the twin's engines step by step in it instead of fluid ones, and Poisson arrivals.

What the decision reads comes from the engines' own counters, through the windows that the operator uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from random import Random

from gpupack.demo.hidden import page
from gpupack.facts.engine_args import ITL_BUCKETS_SECONDS
from gpupack.facts.gpu import Gpu
from gpupack.facts.observation import EngineSeen, Phase
from gpupack.facts.policy import Policy
from gpupack.facts.serving import BLOCK_TOKENS, Serving, ServingKey
from gpupack.metrics.windows import EngineHistory, Timing
from gpupack.twin.arrivals import Lengths, Request
from gpupack.twin.counters import Buckets
from gpupack.twin.engine import EngineConfig
from gpupack.twin.memory_system import VLLM_V1, GpuSpec, ModelDims, Mps
from gpupack.twin.world import World as Twin
from gpupack.twin.world import activity

from ..strategies import NOON
from .world import TICK, Pod, World

LONGEST = 1024
"""Tokens of the longest request."""
DEALT_EVERY = 0.25
"""Seconds between two looks of the dealer at the engines; a request then goes to the one with the fewest inside."""


class SteppedWorld(World):
    """Lengths are those that a serving declares; `worsen` steers how much engines that share a GPU slow each other."""

    def __init__(
        self, gpus: Iterable[Gpu], servings: Iterable[Serving], loads: dict[ServingKey, float], policy: Policy,
        seed: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(gpus, servings, loads, policy)
        self.twin = Twin(now=float(NOON))
        for each in self.gpus.values():
            spec = GpuSpec(
                memory_bytes=each.kind.memory_bytes, dram_bytes_per_second=each.kind.dram_bytes_per_second,
                dense_flops_per_second=each.kind.dense_flops_per_second,
            )  # fmt: skip
            self.twin.add_gpu(each.uuid, spec)
        self._chance = Random(seed)
        self._due = {key: float(NOON) for key in self.loads}
        self._requests = {each.key: self._drawn(each) for each in self.servings.values()}
        self._histories: dict[str, EngineHistory] = {}
        self._dram = dict.fromkeys(self.gpus, 0.0)
        self._timing = Timing(
            windows=policy.rate_windows, period=policy.engine_period, stale_periods=policy.stale_periods,
            peak_delay=policy.scale_down_delay, judged=policy.window,
        )  # fmt: skip

    def _drawn(self, serving: Serving) -> Iterator[Request]:
        lengths = serving.lengths
        return Lengths(
            input_mean=lengths.input_mean, output_mean=lengths.output_mean, input_cv=lengths.input_cv,
            output_cv=lengths.output_cv, total_limit=LONGEST,
        ).draw(self._chance)  # fmt: skip

    def worsen(self, interference: float) -> None:
        self.twin.interfere(Mps(interference=interference))

    def _dram_active(self, gpu: Gpu) -> float:
        return min(1.0, self._dram[gpu.uuid])

    def _engine_seen(self, pod: Pod) -> EngineSeen:
        name = pod.placement.name
        return self._histories[name].seen(name, self.at, self._timing)

    def _serve(self, key: ServingKey, seconds: float) -> None:
        """Nothing flows: `advance` deals requests to all engines alike."""

    def advance(self, seconds: float = TICK) -> None:
        before = {uuid: gpu.reading() for uuid, gpu in self.twin.gpus.items()}
        started = self.at
        super().advance(seconds)
        for pod in self.pods.values():
            if pod.phase is Phase.READY and pod.placement.name not in self._histories:
                self._begin(pod)
        now = started
        while now < self.at:
            now = min(self.at, now + DEALT_EVERY)
            for key in self.servings:
                self._deal(key, now)
            self.twin.advance(now)
        for uuid, gpu in self.twin.gpus.items():
            self._dram[uuid] = activity(before[uuid], gpu.reading()).dram_active
        names = {pod.placement.name for pod in self.pods.values()}
        for name in list(self._histories):
            if name in names:
                self._histories[name].add(self.at, page(self.twin.tenant(name)), self._timing)
            else:
                self.twin.remove(name)
                del self._histories[name]

    def _begin(self, pod: Pod) -> None:
        serving, shape, name = pod.serving, pod.placement.shape, pod.placement.name
        blocks = shape.kv_cache_memory_bytes // (BLOCK_TOKENS * serving.llm.kv_bytes_per_token(serving.dtype))
        config = EngineConfig(
            max_num_seqs=shape.max_num_seqs, kv_blocks=blocks, max_model_len=shape.max_model_len,
            max_num_batched_tokens=shape.max_num_batched_tokens, buckets=Buckets(token_gap=ITL_BUCKETS_SECONDS),
        )  # fmt: skip
        self.twin.start_engine(
            name, gpu=pod.placement.gpu_uuid, config=config, model=ModelDims.of(serving.llm, serving.dtype),
            costs=VLLM_V1,
        )  # fmt: skip
        self._histories[name] = EngineHistory()

    def _deal(self, key: ServingKey, until: float) -> None:
        pods = [each for each in self.of(key) if each.placement.name in self._histories and each.in_service]
        while pods and self._due[key] < until:
            tenants = (self.twin.tenant(each.placement.name) for each in pods)
            tenant = min(tenants, key=lambda each: (each.engine.in_flight, each.name))
            tenant.engine.submit(next(self._requests[key]), self._due[key])
            self._due[key] += self._chance.expovariate(self.loads[key])
