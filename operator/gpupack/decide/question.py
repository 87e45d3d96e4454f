"""What the advisor is asked: one model with its traffic and promise on one kind of GPU, and what bounds the answer.

Knows the wish and the arithmetic of fitting; performance is `perf`'s business, choosing is `search`'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpupack.facts.gpu import GpuKind
from gpupack.facts.llm import Dtype, Llm
from gpupack.facts.policy import Policy
from gpupack.facts.serving import BLOCK_TOKENS, Batching, Lengths, Serving, Sharing, Slo
from gpupack.perf import memory
from gpupack.perf.prediction import Coefficients
from gpupack.units import Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One model on one kind of GPU. `sharing` EXCLUSIVE: one engine a GPU. `node_cores` None: the CPU is not counted.

    `slo` None asks for the assumed one. `max_replicas` None: as many as pay. `overhead` are bytes that an engine was
    seen to need beyond what is predicted.
    """

    llm: Llm
    dtype: Dtype
    gpu: GpuKind
    lengths: Lengths
    slo: Slo | None
    batching: Batching
    sharing: Sharing
    max_model_len: int | None
    coefficients: Coefficients
    policy: Policy
    cpu_cores: int
    node_cores: float | None
    max_num_batched_tokens: int = memory.DEFAULT_BATCHED_TOKENS
    chunked_prefill: bool = True
    max_replicas: int | None = None
    overhead: Bytes = Bytes(0)


def question_of(
    serving: Serving, gpu: GpuKind, policy: Policy, *, lengths: Lengths, sharing: Sharing, coefficients: Coefficients,
    node_cores: float | None = None, overhead: Bytes = Bytes(0),
) -> Question:  # fmt: skip
    """The question about a serving of a cluster; `lengths` are the declared ones or those of live load."""
    return Question(
        llm=serving.llm,
        dtype=serving.dtype,
        gpu=gpu,
        lengths=lengths,
        slo=serving.slo,
        batching=serving.batching,
        # A slice has room for one; where only slices are wanted, a whole GPU is asked about for one as well.
        sharing=Sharing.EXCLUSIVE if gpu.is_slice or sharing is Sharing.MIG else sharing,
        max_model_len=serving.max_model_len,
        coefficients=coefficients,
        policy=policy,
        cpu_cores=serving.cpu_cores,
        node_cores=node_cores,
        overhead=overhead,
    )


def resolve_max_model_len(llm: Llm, lengths: Lengths, wish: int | None) -> int:
    """`wish`, or the smaller of the model's own and twice the 99th percentile of a request's length in whole blocks.

    One sequence of a 128k model would fill the GPU (design.md 2). Total lengths are taken as gamma distributed
    (Wilson and Hilferty's cube-root quantile).
    """
    if wish is not None:
        return wish
    mean = lengths.input_mean + lengths.output_mean
    variance = (lengths.input_cv * lengths.input_mean) ** 2 + (lengths.output_cv * lengths.output_mean) ** 2
    ninth = max(0.0, variance + 2.0 * lengths.covariance) / mean**2 / 9.0
    p99 = mean * (1.0 - ninth + 2.326 * math.sqrt(ninth)) ** 3
    return min(llm.max_model_len, math.ceil(2.0 * p99 / BLOCK_TOKENS) * BLOCK_TOKENS)


def memory_needed(total: Bytes, replicas: int, gpu: GpuKind, reserve: Bytes) -> Bytes:
    """Device memory that `replicas` of `total` bytes need at their worst moment.

    Either all of them with the reserve, or the start of the last one: vLLM wants its whole `--gpu-memory-utilization`,
    which is rounded up to a hundredth of the GPU, to be free at that moment.
    """
    last = -(-memory.utilization_hundredths(total, gpu) * gpu.memory_bytes // 100)
    return Bytes(max(replicas * total + reserve, (replicas - 1) * total + last))
