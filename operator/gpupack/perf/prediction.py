"""The question put to the performance model and the shape of its answer. The answers are computed next door."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gpupack.facts.estimate import Estimate, Source
from gpupack.facts.llm import Dtype, Llm
from gpupack.facts.serving import Lengths, Shape
from gpupack.units import Bytes, PerSecond, Ratio, Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """What the step time is made of, for one engine version (facts/performance.md 1). Seconds unless said.

    A step takes Z + D: Z is host time in which a sibling may use the GPU, D holds the GPU. `ingest_stalls` says whether
    running sequences wait while prompts are taken in (the API server shares the engine's process).
    `output_per_sequence` is host time for the last step's output, which only a long step hides. `host_per_step` is what
    a step costs whatever the model. A repetition penalty adds `penalty_fixed` on the host and passes over
    `penalty_entry_bytes` of every logit on the GPU. `error` is what to expect on the GPU kind that they were
    `calibrated_on`.
    """

    engine_version: str
    host_per_layer: Seconds
    gpu_per_layer: Seconds
    host_per_sequence: Seconds
    host_per_prefill_sequence: Seconds
    eager_per_layer: Seconds
    kv_read_efficiency: Ratio
    gemm_efficiency: Ratio
    ingest_per_request: Seconds
    mps_interference: Ratio
    time_slicing_interference: Ratio
    source: Source
    error: Ratio
    weight_read_efficiency: Ratio = Ratio(0.96)
    ingest_stalls: bool = False
    output_per_sequence: Seconds = Seconds(0.0)
    host_per_step: Seconds = Seconds(0.0)
    penalty_fixed: Seconds = Seconds(0.0)
    penalty_entry_bytes: int = 129
    calibrated_on: str = "H100-64GB"

    def per_step(self, layers: int) -> Seconds:
        """What a step of so many layers costs on host and GPU beside what it reads and computes."""
        return Seconds(self.host_per_step + layers * (self.host_per_layer + self.gpu_per_layer))


class Router(StrEnum):
    LEAST_LOADED = "LeastLoaded"
    RANDOM_CONNECTION = "RandomConnection"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineGroup:
    """`replicas` like engines on one GPU. `request_rate` is that of the whole group; None keeps every engine full.

    `cores` are those of one engine; None where they are not counted.
    """

    llm: Llm
    dtype: Dtype
    shape: Shape
    lengths: Lengths
    replicas: int
    request_rate: PerSecond | None
    coefficients: Coefficients
    router: Router = Router.LEAST_LOADED
    cores: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaMemory:
    """Device memory of one replica by part, in bytes; `total` is rounded up, towards safety."""

    weights: Estimate
    context: Estimate
    graphs: Estimate
    activation: Estimate
    kv_cache: Estimate
    total: Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPrediction:
    """Token rates are sums over the group's replicas; the rest is one replica's.

    `utilization` is arrivals over what the group could finish (None when kept full). `ttft_*` are None where they have
    no steady value (kept full, or more arrivals than can be served).
    """

    total_tokens_per_second: float
    output_tokens_per_second: float
    itl_mean: Seconds
    itl_p95: Seconds
    itl_p99: Seconds
    ttft_mean: Seconds | None
    ttft_p95: Seconds | None
    ttft_p99: Seconds | None
    running_mean: float
    kv_peak_fraction: Ratio
    kv_tokens_needed: int
    utilization: Ratio | None
    kv_starved: bool
    memory: ReplicaMemory


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPrediction:
    """A whole GPU. `dram_active` and `dram_active_max` are shares of the theoretical peak, `saturation` their ratio.

    `gpu_held` is the share of time that some engine holds the GPU. `error` is the relative error to expect.
    """

    groups: tuple[GroupPrediction, ...]
    total_tokens_per_second: float
    output_tokens_per_second: float
    dram_active: Ratio
    dram_active_max: Ratio
    saturation: Ratio
    gpu_held: Ratio
    memory_bytes: Bytes
    fits: bool
    error: Ratio
    source: Source
