"""The arguments of `vllm serve` that gpupack sets: those of a shape, and those that make an engine observable.

One list for the pod, the status, its annotation and the command line. Knows vLLM's flags (0.25 and newer), not the pod
around them. Sources: vLLM 0.33.0, config/cache.py, config/scheduler.py, v1/metrics/loggers.py.
"""

from __future__ import annotations

import json
import re

from gpupack.facts.llm import Dtype
from gpupack.facts.serving import Shape
from gpupack.units import Seconds

PORT = 8000

ITL_BUCKETS_SECONDS = (
    0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.007, 0.008, 0.009, 0.010, 0.012, 0.014, 0.016, 0.018, 0.020, 0.025,
    0.030, 0.035, 0.040, 0.050, 0.060, 0.080, 0.100, 0.150, 0.200, 0.300, 0.500, 1.0, 2.0, 5.0,
)  # fmt: skip
"""vLLM's own begin at 10 ms: a small model at 3 to 8 ms a token would lie in the first bucket alone."""

OWNED_FLAGS = (
    # the shape
    "--max-num-seqs", "--max-num-active-seqs", "--max-num-batched-tokens", "--max-model-len",
    "--kv-cache-memory-bytes", "--gpu-memory-utilization", "--device-memory-utilization", "--num-gpu-blocks-override",
    "--enable-chunked-prefill", "--no-enable-chunked-prefill", "--performance-mode", "--block-size",
    "--kv-cache-dtype", "--cpu-offload-gb",
    # fields of spec.model and spec.engine
    "--model", "--revision", "--dtype", "--api-key", "--config",
    # one engine is one process group on one GPU, reached and read at one port
    "--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size", "--api-server-count",
    "--host", "--port", "--uds", "--shutdown-timeout",
    # what the operator reads
    "--custom-histogram-buckets", "--enable-mfu-metrics", "--disable-log-stats",
)  # fmt: skip
"""Refused in `spec.engine.args`; the CRD's rule carries the same list. vLLM takes any unique beginning of a flag."""

OWNED_SHORT_FLAGS = ("-tp", "-pp", "-dp")

OLDEST_VERSION = (0, 25)
"""The flags above mean what they say from here on (V1 engine only, `--shutdown-timeout`, explicit KV bytes)."""
BUCKETS_SINCE = (0, 32)
"""The oldest version whose `--custom-histogram-buckets` was seen; an older engine would not start with it."""


def shape_args(shape: Shape, utilization_hundredths: int) -> tuple[str, ...]:
    """The shape as flags: what `gpupack advise` prints and a status shows.

    vLLM checks free memory against `--gpu-memory-utilization` even with explicit KV bytes, so both are given.
    `utilization_hundredths` is the share of the whole GPU, rounded up.
    """
    assert 0 < utilization_hundredths <= 100, utilization_hundredths
    return (
        f"--max-num-seqs={shape.max_num_seqs}",
        f"--max-num-batched-tokens={shape.max_num_batched_tokens}",
        f"--max-model-len={shape.max_model_len}",
        f"--kv-cache-memory-bytes={shape.kv_cache_memory_bytes}",
        f"--gpu-memory-utilization={utilization_hundredths // 100}.{utilization_hundredths % 100:02d}",
        "--enable-chunked-prefill" if shape.chunked_prefill else "--no-enable-chunked-prefill",
    )


def engine_args(
    shape: Shape, utilization_hundredths: int, *, version: str, dtype: Dtype, revision: str | None, drain: Seconds
) -> tuple[str, ...]:
    """Everything after `vllm serve MODEL` that gpupack sets; the user's own arguments follow it.

    `version` is vLLM's, as `0.33.0`. `drain`: whole seconds that requests in flight get after SIGTERM; vLLM's default
    of 0 aborts them.
    """
    buckets = json.dumps({"inter_token_latency": ITL_BUCKETS_SECONDS}, separators=(",", ":"))
    return (
        *shape_args(shape, utilization_hundredths),
        f"--dtype={dtype.value}",
        *(() if revision is None else (f"--revision={revision}",)),
        f"--port={PORT}",
        f"--shutdown-timeout={round(drain)}",
        "--enable-mfu-metrics",
        *((f"--custom-histogram-buckets={buckets}",) if release_of(version) >= BUCKETS_SINCE else ()),
    )


def is_too_old(version: str) -> bool:
    """Of what an engine tells; a build without a release, as 0.1.dev7, tells nothing."""
    return re.match(r"\d+\.\d+\.\d", version) is not None and release_of(version) < OLDEST_VERSION


def release_of(version: str) -> tuple[int, ...]:
    """The first two numbers of a version, as `(0, 33)`; the schema has checked its form."""
    return tuple(int(number) for number in version.split(".")[:2])
