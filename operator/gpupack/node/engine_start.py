"""What vLLM decides while it starts: defaults by GPU, memory in use, the KV cache, and the sentences of its refusals.

A second opinion on memory beside the operator's: plain figures, each with its source, and vLLM's own order of checks
(0.33: v1/worker/gpu_worker.py, v1/worker/utils.py, v1/core/kv_cache_utils.py). It does not know time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpupack.facts.gpu import GpuKind
from gpupack.facts.llm import Dtype, Llm
from gpupack.node.flags import Flags
from gpupack.units import GIB, MIB, Bytes, gibibytes

CONTEXT_BYTES = 420 * MIB
"""A CUDA context with its libraries and cuBLAS workspaces; 0.3 to 0.7 GB were seen per process."""
GRAPH_BYTES = 48 * MIB
GRAPH_BYTES_A_SIZE = 3 * MIB
"""CUDA graphs: a pool, and some more for every captured batch size ("tens of MB to above 1 GB" in all)."""
LARGEST_GRAPH = 512
_HELP = "See https://docs.vllm.ai/en/latest/configuration/conserving_memory/ for more details."


class Refused(Exception):
    """The engine will not start; the message is what vLLM writes last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Flags after vLLM's defaults for this model and GPU. `max_model_len` None: as much as the KV cache holds."""

    dtype: Dtype
    max_model_len: int | None
    max_num_seqs: int
    max_num_batched_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KvCache:
    """`blocks` counts the null block, as `num_gpu_blocks` does."""

    bytes: Bytes
    blocks: int
    max_model_len: int


def settings_of(flags: Flags, llm: Llm, gpu: GpuKind) -> EngineSettings:
    """Raises Refused for a length or a dtype that the model or the GPU does not have."""
    dtypes = {"half": Dtype.FLOAT16, "float": Dtype.FLOAT32, "auto": Dtype.BFLOAT16 if gpu.bfloat16 else Dtype.FLOAT16}
    dtype = dtypes.get(flags.dtype) or Dtype(flags.dtype)
    if not gpu.computes_in(dtype):
        raise Refused(
            "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. "
            f"Your {gpu.product_names[0]} GPU has a lower one. You can use float16 instead by explicitly setting the "
            "`dtype` flag in CLI, for example: --dtype=half."
        )
    length: int | None = flags.max_model_len or llm.max_model_len
    if length is not None and length > llm.max_model_len:
        raise Refused(
            f"ValueError: User-specified max_model_len ({length}) is greater than the derived max_model_len "
            f"(max_position_embeddings={llm.max_model_len} or model_max_length=None in model's config.json)."
        )
    if flags.max_model_len == -1:
        length = None
    # config/scheduler.py and engine/arg_utils.py: the API server's defaults go by the memory of the visible device.
    if gpu.memory_bytes >= 160 * GIB:
        seqs, tokens = 1024, 16384
    elif gpu.memory_bytes >= 70 * GIB and "A100" not in gpu.name:
        seqs, tokens = 1024, 8192
    else:
        seqs, tokens = 256, 2048
    seqs = flags.max_num_seqs or seqs
    tokens = flags.max_num_batched_tokens or min(max(tokens, seqs), seqs * (length or llm.max_model_len))
    return EngineSettings(dtype=dtype, max_model_len=length, max_num_seqs=seqs, max_num_batched_tokens=tokens)


def activation_bytes(settings: EngineSettings, llm: Llm) -> Bytes:
    """The largest tensors of a forward pass at once: a MLP's two halves and the residual of `max_num_batched_tokens`
    tokens, and two copies of 32-bit logits for `max_num_seqs` rows."""
    tokens = settings.max_num_batched_tokens * (2 * llm.intermediate_size + 3 * llm.hidden_size)
    return Bytes(tokens * settings.dtype.bytes_each + 2 * settings.max_num_seqs * llm.vocabulary * 4)


def graph_bytes(settings: EngineSettings, flags: Flags) -> Bytes:
    """Sizes 1, 2, 4, then 8 to 256 by 8, then by 16 up to min(2 x max_num_seqs, 512) (config/vllm.py)."""
    if flags.enforce_eager:
        return Bytes(0)
    largest = min(2 * settings.max_num_seqs, LARGEST_GRAPH)
    sizes = 3 + min(largest, 256) // 8 + max(0, largest - 256) // 16
    return Bytes(GRAPH_BYTES + GRAPH_BYTES_A_SIZE * sizes)


def requested_bytes(flags: Flags, total: Bytes, free: Bytes) -> Bytes:
    """The share of the whole device that the engine may use. Raises Refused if less is free before it starts."""
    requested = Bytes(math.ceil(total * flags.gpu_memory_utilization))
    if free < requested:
        raise Refused(
            f"ValueError: Free memory on device cuda:0 ({_gib(free)}/{_gib(total)} GiB) on startup is less than "
            f"desired GPU memory utilization ({flags.gpu_memory_utilization}, {_gib(requested)} GiB). Decrease GPU "
            "memory utilization or reduce GPU memory used by other processes."
        )
    return requested


def profiled_kv_bytes(requested: Bytes, free_before: Bytes, free_after: Bytes, transient: Bytes) -> Bytes:
    """The KV cache without `--kv-cache-memory-bytes`: what is left of the request after the memory that vanished from
    the device since the start, whoever took it, and what a forward pass and graphs need. Raises Refused."""
    if free_after >= free_before:
        raise Refused(
            f"AssertionError: Error in memory profiling. Initial free memory {_gib(free_before)} GiB, current free "
            f"memory {_gib(free_after)} GiB. This happens when other processes sharing the same container release GPU "
            "memory while vLLM is profiling during initialization. To fix this, ensure consistent GPU memory "
            "allocation or isolate vLLM in its own container."
        )
    return Bytes(requested - (free_before - free_after) - transient)


def kv_cache(available: Bytes, settings: EngineSettings, llm: Llm, flags: Flags) -> KvCache:
    """Whole blocks. Raises Refused if not even one sequence of max_model_len fits."""
    if available <= 0:
        raise Refused(
            "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
            f"initializing the engine. {_HELP}"
        )
    block = llm.kv_bytes_per_token(settings.dtype) * flags.block_size
    blocks = available // block
    longest = max(0, blocks - 1) * flags.block_size
    length = settings.max_model_len or min(llm.max_model_len, longest)
    needed = -(-length // flags.block_size) * block
    if length < 1 or needed > available - block:
        estimate = f"Based on the available memory, the estimated maximum model length is {longest}. "
        raise Refused(
            f"ValueError: To serve at least one request with the model's max seq len ({length}), ({_gib(needed)} GiB "
            f"KV cache is needed, which is larger than the available KV cache memory ({_gib(available)} GiB). "
            f"{estimate if longest else ''}Try increasing `gpu_memory_utilization` or decreasing `max_model_len` when "
            f"initializing the engine. {_HELP}"
        )
    return KvCache(bytes=Bytes(blocks * block), blocks=blocks, max_model_len=length)


def _gib(size: int) -> str:
    return f"{gibibytes(size):.2f}"
