"""Device memory of a replica: what each part takes, how much KV cache a batch needs, and what vLLM would take itself.

Knows vLLM's sizing (facts: vLLM 0.33 `request_memory` and `determine_available_memory`; the published server logs of
arXiv 2503.08311). It does not know what is free on a real GPU, nor the memory of adapters.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

from gpupack.facts.estimate import Estimate, Source
from gpupack.facts.gpu import GpuKind
from gpupack.facts.llm import Dtype, Llm
from gpupack.facts.serving import BLOCK_TOKENS, Lengths, Shape
from gpupack.perf.prediction import ReplicaMemory
from gpupack.units import GIB, MIB, Bytes, Ratio

NULL_BLOCKS = 1
DEFAULT_BATCHED_TOKENS = 2048
DEFAULT_UTILIZATION = Ratio(0.9)

# A CUDA context with its libraries, outside vLLM's own accounting: the published replicas held 0.4 to 0.6 GB beside
# weights and KV cache. Workspaces inside it: 0.9 x total - weights - activation - KV of every published start.
_CONTEXT = Estimate(value=0.47 * GIB, low=0.37 * GIB, high=0.56 * GIB, source=Source.CALIBRATED)
_WORKSPACE = 140_000_000
_CONTEXT_SEEN_ON = "H100-64GB"

# Bytes a running sequence and vocabulary entry while sampling: the KV blocks that vLLM 0.5.2 gave up for each further
# sequence are 37.9 to 38.0 for three models (fp32 logits and sort keys, about nine and a half copies).
_SAMPLER_BYTES = 38

_NORMAL_P99 = 2.326


def length_biased_context(lengths: Lengths) -> tuple[float, float]:
    """Mean and standard deviation of the context of a running sequence, in tokens.

    A running sequence is met in proportion to its output length, part way through it: the mean is E[in x out]/E[out] +
    E[out^2]/(2 E[out]) (renewal theory; facts/performance.md 2). Output lengths are taken as gamma distributed for the
    third moment.
    """
    out, cv2 = lengths.output_mean, lengths.output_cv**2
    done = out * (1 + cv2) / 2
    done_variance = out**2 * (1 + cv2) * (1 + 2 * cv2) / 3 - done**2
    mean = lengths.input_mean + lengths.covariance / out + done
    return mean, math.sqrt(done_variance + (lengths.input_cv * lengths.input_mean) ** 2)


def kv_tokens_of_full_batch(lengths: Lengths, max_num_seqs: int) -> float:
    """KV tokens that a full batch stays below 99 times in 100.

    The sum of B length-biased contexts is taken as normal. Each sequence leaves half a block empty.
    """
    mean, deviation = length_biased_context(lengths)
    return max_num_seqs * (mean + BLOCK_TOKENS / 2) + _NORMAL_P99 * math.sqrt(max_num_seqs) * deviation


def kv_tokens_needed(lengths: Lengths, max_num_seqs: int, max_model_len: int, safety: Ratio) -> int:
    """KV tokens that a full batch needs 99 times in 100, plus `safety`, in whole blocks.

    Never below one sequence of `max_model_len`, or vLLM refuses to start; never above B of them.
    """
    batch = kv_tokens_of_full_batch(lengths, max_num_seqs)
    wanted = min(batch * (1 + safety), max_num_seqs * max_model_len)
    return _whole_blocks(max(wanted, max_model_len)) * BLOCK_TOKENS


def kv_cache_bytes(llm: Llm, dtype: Dtype, tokens: int) -> Bytes:
    """Bytes to ask of `--kv-cache-memory-bytes` for that many usable tokens: whole blocks and the null block."""
    return Bytes((_whole_blocks(tokens) + NULL_BLOCKS) * BLOCK_TOKENS * llm.kv_bytes_per_token(dtype))


@lru_cache(maxsize=8192)
def replica_memory(llm: Llm, dtype: Dtype, shape: Shape, gpu: GpuKind) -> ReplicaMemory:
    """What one replica holds on the GPU, by part; the total is rounded up to whole MiB."""
    weights = Estimate.within(llm.weight_bytes(dtype), 0.005, max(Source.ANALYTIC, llm.source))
    seen = Source.CALIBRATED if gpu.name == _CONTEXT_SEEN_ON else Source.UNVERIFIED
    context = replace(_CONTEXT + Estimate.exact(_WORKSPACE, Source.CALIBRATED), source=seen)
    graphs = _graphs(llm)
    activation = _activation(llm, dtype, shape.max_num_seqs, shape.max_num_batched_tokens)
    kv_cache = Estimate.exact(shape.kv_cache_memory_bytes, Source.ANALYTIC)
    parts = (weights, context, graphs, activation, kv_cache)
    total = -(-math.ceil(sum(part.value for part in parts)) // MIB) * MIB
    return ReplicaMemory(
        weights=weights, context=context, graphs=graphs, activation=activation, kv_cache=kv_cache, total=Bytes(total)
    )


def utilization_hundredths(total: Bytes, gpu: GpuKind) -> int:
    """`--gpu-memory-utilization` in hundredths: the replica's total as a share of the GPU, rounded up."""
    return -(-100 * total // gpu.memory_bytes)


def default_shape(
    llm: Llm,
    dtype: Dtype,
    gpu: GpuKind,
    *,
    utilization: Ratio = DEFAULT_UTILIZATION,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    max_model_len: int | None = None,
    chunked_prefill: bool = True,
) -> Shape:
    """The shape that vLLM takes by itself where nothing is said: limits by GPU memory, KV cache from what is left.

    KV = utilization x total - weights - workspaces - activation peak, in whole blocks (0 where nothing is left).
    Limits as `EngineArgs` sets them for the API server (vLLM 0.33): 1024 sequences and 8192 tokens from 70 GiB on,
    16384 tokens from 160 GiB, else (and on every A100) 256 and 2048.
    """
    large = gpu.memory_bytes >= 70 * GIB and not gpu.name.startswith("A100")
    seqs = max_num_seqs if max_num_seqs is not None else (1024 if large else 256)
    usual = 16384 if gpu.memory_bytes >= 160 * GIB else 8192 if large else DEFAULT_BATCHED_TOKENS
    batched = max_num_batched_tokens if max_num_batched_tokens is not None else usual
    activation = _activation(llm, dtype, seqs, batched)
    left = utilization * gpu.memory_bytes - llm.weight_bytes(dtype) - _WORKSPACE - activation.value
    block = BLOCK_TOKENS * llm.kv_bytes_per_token(dtype)
    return Shape(
        max_num_seqs=seqs,
        kv_cache_memory_bytes=Bytes(max(0, int(left // block)) * block),
        max_num_batched_tokens=batched,
        max_model_len=max_model_len if max_model_len is not None else llm.max_model_len,
        chunked_prefill=chunked_prefill,
    )


def _whole_blocks(tokens: float) -> int:
    return math.ceil(tokens / BLOCK_TOKENS)


def _activation(llm: Llm, dtype: Dtype, max_num_seqs: int, max_num_batched_tokens: int) -> Estimate:
    """Peak of the profiling pass: the widest layer over all batched tokens, or sampling over all sequences.

    A layer holds 2 to 3 MLP widths and 4 hidden widths a token: 12 hidden widths were measured for OPT and Llama-2
    (KV blocks given up between 512 and 2048 batched tokens).
    """
    widest = (3 * llm.intermediate_size + 4 * llm.hidden_size) * dtype.bytes_each * max_num_batched_tokens
    sampling = _SAMPLER_BYTES * llm.vocabulary * max_num_seqs
    value = max(widest, sampling)
    return Estimate(value=value, low=0.7 * value, high=1.3 * value, source=Source.CALIBRATED)


def _graphs(llm: Llm) -> Estimate:
    """Captured CUDA graphs: nobody published their size; tens of MB to above 1 GB was remembered."""
    value = 128 * MIB + 6 * MIB * llm.layers
    return Estimate(value=value, low=0.3 * value, high=3 * value, source=Source.UNVERIFIED)
