"""What one GPU does to the engines on it: kernel phases that share DRAM and SMs, or take turns.

A step of an engine is a host gap and three kernel phases: GEMMs (weights, and the prefill chunk), attention over the KV
cache, and the rest (launches, norms, sampling). Each has a duration alone, bytes, and the shares of the DRAM bandwidth
and of the SMs that it uses meanwhile. Where phases of several engines meet they get speeds by water-filling (MPS), or
the GPU goes from one to the next (time-slicing).

Costs of a step are physics (bytes over bandwidth, FLOPs over rate, launches) with fitted host terms. This module does
not know requests, nor any law of throughput or latency: those come out of stepping.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gpupack.facts.llm import Dtype, Llm
from gpupack.twin.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSpec:
    """A GPU, or a MIG slice with its own fractions: bytes, bytes a second, FLOP a second, watts."""

    memory_bytes: int
    dram_bytes_per_second: float
    dense_flops_per_second: float
    idle_watts: float = 129.0
    board_watts: float = 700.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDims:
    """A model to the memory system.

    `parameters` are those that every token meets (body, without embeddings), `output_parameters` those of the output
    matrix, which only sampled tokens meet. `weight_bytes` are read once a step: body and output matrix; of an input
    embedding that is not tied to it only rows are read. `kv_bytes_per_token` are those of all layers.
    `penalised_entries`: logits of a sequence over which a repetition penalty passes in every step, 0 without one.
    """

    layers: int
    parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    output_parameters: int = 0
    penalised_entries: int = 0

    @classmethod
    def of(cls, llm: Llm, dtype: Dtype) -> ModelDims:
        """The dimensions of a catalogued or described model whose weights and KV cache are stored as `dtype`."""
        embedding = llm.vocabulary * llm.hidden_size
        read = llm.parameters - (0 if llm.tied_embeddings else embedding)
        return cls(
            layers=llm.layers,
            parameters=read - embedding,
            output_parameters=embedding,
            weight_bytes=read * dtype.bytes_each,
            kv_bytes_per_token=llm.kv_bytes_per_token(dtype),
            penalised_entries=llm.vocabulary if llm.sampling_penalty else 0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCosts:
    """What one version of the engine costs beyond bytes and FLOPs. Seconds, or shares of a datasheet peak (0 to 1)."""

    host_per_layer: float
    """Host gap of every step, a layer: scheduling, inputs, launches that the GPU waits for."""
    host_per_sequence: float
    """Host gap of a step, a sequence that gets a token: sampling results, detokenising, streaming."""
    host_per_sequence_at_prefill: float
    """Further host gap of a step with prefill, a running sequence: inputs are built anew."""
    eager_per_layer: float
    """Floor of a step with prefill, a layer: it runs without a captured graph, launch by launch."""
    rest_per_layer: float
    """GPU time of launches, norms and activations, a layer."""
    rest_per_sequence: float
    """GPU time of logits and sampling, a sequence that gets a token."""
    weight_efficiency: float
    """Share of the DRAM bandwidth that GEMMs reach alone when they read weights."""
    attention_efficiency: float
    """Share of the DRAM bandwidth that attention reaches alone."""
    gemm_efficiency: float
    """Share of the dense peak that large GEMMs reach."""
    ingest_per_request: float
    """For each request of a burst that arrives all at once: HTTP, tokenising."""
    ingest_stalls: bool
    """True if that stops an engine which already decodes, False if it only delays its start."""
    penalty_per_step: float = 0.0
    """Host gap that a repetition penalty adds to a step."""
    penalty_entry_bytes: int = 129
    """Bytes that a repetition penalty moves on the GPU, a logit: counted in vLLM 0.8.5's `apply_penalties`."""
    host_per_step: float = 0.0
    """Host gap of every step, whatever the model."""

    def times(
        self, *, step: float = 1.0, sequence: float = 1.0, kv_read: float = 1.0, eager: float = 1.0, gemm: float = 1.0
    ) -> EngineCosts:
        """So many times what a step costs whatever its batch, a sequence, a launch; efficiencies stay at most 1."""
        return replace(
            self,
            host_per_step=self.host_per_step * step,
            host_per_layer=self.host_per_layer * step,
            rest_per_layer=self.rest_per_layer * step,
            host_per_sequence=self.host_per_sequence * sequence,
            rest_per_sequence=self.rest_per_sequence * sequence,
            attention_efficiency=min(1.0, self.attention_efficiency * kv_read),
            eager_per_layer=self.eager_per_layer * eager,
            gemm_efficiency=min(1.0, self.gemm_efficiency * gemm),
        )


VLLM_0_5 = EngineCosts(
    host_per_layer=35e-6,
    host_per_sequence=23.2e-6,
    host_per_sequence_at_prefill=13.8e-6,
    eager_per_layer=330e-6,
    rest_per_layer=46.3e-6,
    rest_per_sequence=7.9e-6,
    weight_efficiency=0.96,
    attention_efficiency=0.90,
    gemm_efficiency=0.607,
    ingest_per_request=1.25e-3,
    ingest_stalls=True,
)
"""vLLM 0.5.2 of the runs published with "Mind the Memory Gap" (arXiv 2503.08311, repository vLLMBatchingMemoryGap).

Fitted on its 163 one-replica online runs, whole-run throughput and mean ITL together: the sum of the two per-layer
terms (81 us), the sum of the two per-sequence terms (31 us) and `host_per_sequence_at_prefill`. The sums part as CPU
and "other" do in its offline kernel breakdown. The rest are anchors: freeing them does not lower the error, which is
2.2 % in throughput and 2.3 % in ITL.
"""

VLLM_V1 = EngineCosts(
    host_per_step=2.1e-3,
    host_per_layer=0.0,
    host_per_sequence=6e-6,
    host_per_sequence_at_prefill=3e-6,
    eager_per_layer=150e-6,
    rest_per_layer=29e-6,
    rest_per_sequence=4e-6,
    weight_efficiency=0.96,
    attention_efficiency=0.90,
    gemm_efficiency=0.607,
    ingest_per_request=1.12e-3,
    ingest_stalls=False,
    penalty_per_step=0.15e-3,
)
"""vLLM V1, from version 0.8.5 (arXiv 2508.08343, repository GPULLMAdapterOptimization).

Fitted on its calibration runs without adapters, 2.1 % off in throughput and 2.5 % in ITL: host time of a step, the
per-sequence sum (10 us), the ingest. What Qwen2.5-7B needs beyond Llama-3.1-8B is the repetition penalty in its
generation config, by the bytes that it moves. How the sums part, and steps with prefill, were not measured there:
elsewhere expect 10 to 15 %.
"""

# From the published kernel figures of OPT-1.3B (mean DRAM read and warps in flight in decode by batch, against the time
# of each kernel kind). What DRAM read exceeds weights and KV grows with the batch, inside sampling: 0.65 of that GPU's
# 1.631e12 bytes a second; norms and launches move 0.05 of it.
_LAYER_REST_BYTES_PER_SECOND = 0.05 * 1.631e12
_SEQUENCE_REST_BYTES_PER_SECOND = 0.65 * 1.631e12
# Shares of the SMs alone.
ATTENTION_SM_SHARE = 0.35
_REST_SM_SHARE = 0.25
_GEMM_LEAST_SM_SHARE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Mps:
    """Kernels of several engines run side by side and share DRAM and SMs by water-filling.

    `interference` slows every kernel phase by 1 + interference while more than one engine is on the GPU (caches, DRAM
    pages, kernels that wait for each other's blocks). Fitted on the four OPT-1.3B replication runs with MPS; 0.2 to
    0.35 serve nearly as well, so take gains from it with 5 per cent either way.
    """

    interference: float = 0.28


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSlicing:
    """One engine's kernels at a time; a turn ends when its kernels end or after `slice_seconds` if another waits.

    `switch_seconds` is paid whenever the GPU goes to another engine. Fitted on the two OPT-1.3B runs without MPS;
    the slice is the driver's default.
    """

    switch_seconds: float = 0.39e-3
    slice_seconds: float = 2e-3


Sharing = Mps | TimeSlicing
DEFAULT_SHARING = Mps()


@dataclass(frozen=True, slots=True)
class Phase:
    """A kernel phase of a step: seconds alone, and the shares of DRAM bandwidth and SMs that it uses while alone."""

    seconds: float
    dram_share: float
    sm_share: float


class HostCores:
    """The two processes of an engine on the cores that they have: the loop that steps, and the API server.

    The loop keeps a core busy, for it polls for its GPU; the server works `FRONTEND_PER_SEQUENCE` seconds for every
    token that a step made, beside the next step. Below two cores a part of that stands in the loop's way, on one core
    all of it, and on less than one core everything waits for its turn. None: cores enough.

    That time is an assumption, which makes half a core of the server's work at ten thousand tokens a
    second; nobody has published a measurement.
    """

    FRONTEND_PER_SEQUENCE = 50e-6

    def __init__(self, cores: float | None) -> None:
        missing = 0.0 if cores is None else min(1.0, max(0.0, 2.0 - cores))
        self.in_the_way = missing * self.FRONTEND_PER_SEQUENCE
        self.slower = 1.0 if cores is None else max(1.0, 1.0 / cores)


class StepTimer:
    """Durations of one engine's steps, alone on its GPU, with so many cores for its host work."""

    def __init__(self, model: ModelDims, spec: GpuSpec, costs: EngineCosts, cores: float | None = None) -> None:
        self._cores = HostCores(cores)
        bandwidth = spec.dram_bytes_per_second
        flops = spec.dense_flops_per_second * costs.gemm_efficiency
        self._weights_dram = model.weight_bytes / bandwidth
        self._weights = self._weights_dram / costs.weight_efficiency
        self._body = 2.0 * model.parameters / flops
        self._output = 2.0 * model.output_parameters / flops
        self.attention_per_token = model.kv_bytes_per_token / (bandwidth * costs.attention_efficiency)
        self.attention_dram_share = costs.attention_efficiency
        penalty = model.penalised_entries * costs.penalty_entry_bytes / bandwidth
        self._host = costs.host_per_step + costs.host_per_layer * model.layers
        self._host += costs.penalty_per_step if penalty else 0.0
        self._host_per_sequence = costs.host_per_sequence
        self._host_at_prefill = costs.host_per_sequence_at_prefill
        self._eager = costs.eager_per_layer * model.layers
        self._rest = costs.rest_per_layer * model.layers
        self._rest_per_sequence = costs.rest_per_sequence + penalty
        self._layer_rest_share = min(1.0, _LAYER_REST_BYTES_PER_SECOND / bandwidth)
        sampling_share = min(1.0, _SEQUENCE_REST_BYTES_PER_SECOND / bandwidth)
        dram = costs.rest_per_sequence * sampling_share + penalty
        self._sequence_rest_share = dram / self._rest_per_sequence if dram else 0.0

    def alone(self, engine: Engine) -> tuple[float, float, float, float]:
        """Seconds of (host gap, GEMMs, attention, rest) of the engine's step under way, on an otherwise idle GPU.

        GEMMs read weights and multiply at once; near the ridge point neither hides the other wholly, so they take the
        root of the sum of squares. A step with prefill is eager: what launches take beyond its kernels is host gap.
        """
        decoding = engine.step_decoding
        gemm = math.hypot(self._weights, self._multiply(engine))
        attention = self.attention_per_token * engine.step_context_tokens
        rest = self._rest + self._rest_per_sequence * decoding
        host = self._host + (self._host_per_sequence + self._cores.in_the_way) * decoding
        if engine.step_prefill_tokens:
            host += self._host_at_prefill * (decoding + engine.step_bystanders)
            launches = self._eager - self._host - gemm - attention - rest
            if launches > 0.0:
                host += launches
        return host * self._cores.slower, gemm, attention, rest

    def use(self, engine: Engine, gemm: float, attention: float, rest: float) -> tuple[float, float]:
        """Seconds of full DRAM bandwidth and of all SMs that the step under way uses in all."""
        return (
            self._weights_dram + attention * self.attention_dram_share + self._rest_dram(rest),
            max(self._multiply(engine), gemm * _GEMM_LEAST_SM_SHARE)
            + attention * ATTENTION_SM_SHARE
            + rest * _REST_SM_SHARE,
        )

    def phases(self, engine: Engine, gemm: float, attention: float, rest: float) -> tuple[Phase, Phase, Phase]:
        """The kernel phases of the step under way, in order."""
        return (
            Phase(gemm, self._weights_dram / gemm, max(self._multiply(engine) / gemm, _GEMM_LEAST_SM_SHARE)),
            Phase(attention, self.attention_dram_share, ATTENTION_SM_SHARE),
            Phase(rest, self._rest_dram(rest) / rest, _REST_SM_SHARE),
        )

    def _multiply(self, engine: Engine) -> float:
        """Seconds of the step's multiplications with weights, at the rate of large GEMMs."""
        decoding = engine.step_decoding
        return self._body * (decoding + engine.step_prefill_tokens) + self._output * decoding

    def _rest_dram(self, rest: float) -> float:
        return self._rest * self._layer_rest_share + (rest - self._rest) * self._sequence_rest_share


def water_level(wants: Sequence[float]) -> float:
    """The level at which a resource of 1 is full if each takes the lesser of its want and the level.

    Infinity if all wants fit together.
    """
    if sum(wants) <= 1.0:
        return math.inf
    left = 1.0
    for taken, want in enumerate(sorted(wants)):
        others = len(wants) - taken
        if want * others >= left:
            return left / others
        left -= want
    raise AssertionError("wants above 1 always find a level")


def mps_speeds(phases: Sequence[Phase], mps: Mps) -> list[float]:
    """Speed of each co-running kernel phase, 1 being its speed alone."""
    if len(phases) == 1:
        return [1.0]
    dram = water_level([phase.dram_share for phase in phases])
    sms = water_level([phase.sm_share for phase in phases])
    slowed = 1.0 + mps.interference
    return [min(1.0, dram / phase.dram_share, sms / phase.sm_share) / slowed for phase in phases]
