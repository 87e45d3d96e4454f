"""The command line of a vLLM container, read as vLLM 0.33 reads it.

Only flags that change what the virtual engine does are kept; others are accepted and passed over, because a user may
give any of vLLM's several hundred. It does not know models or GPUs: what depends on them is None until an engine
starts.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise

from gpupack.errors import Invalid

DEFAULT_UTILIZATION = 0.92
DEFAULT_PORT = 8000
DEFAULT_BLOCK_TOKENS = 16
DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")
BUCKET_FAMILIES = (
    "request_latency", "time_to_first_token", "inter_token_latency", "iteration_tokens", "request_tokens",
    "request_params_n", "request_num_preemptions", "kv_cache_residency",
)  # fmt: skip

_SWITCHES = frozenset({
    "enable-chunked-prefill", "enable-prefix-caching", "enable-mfu-metrics", "enforce-eager", "disable-log-stats",
    "async-scheduling", "trust-remote-code", "enable-lora", "enable-sleep-mode", "enable-log-requests",
    "disable-log-requests", "enable-server-load-tracking", "kv-cache-metrics", "disable-uvicorn-access-log",
    "enable-auto-tool-choice", "enable-force-include-usage", "disable-fastapi-docs",
})  # fmt: skip
_INTEGER = re.compile(r"(\d+(?:\.\d+)?)([kKmMgGtT]?)")
_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """None: vLLM chooses by model and GPU. `max_model_len` -1 is `auto`. `buckets` are by vLLM's family names."""

    model: str
    served_names: tuple[str, ...]
    port: int = DEFAULT_PORT
    api_key: str | None = None
    dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float = DEFAULT_UTILIZATION
    kv_cache_memory_bytes: int | None = None
    block_size: int = DEFAULT_BLOCK_TOKENS
    chunked_prefill: bool = True
    enforce_eager: bool = False
    mfu_metrics: bool = False
    shutdown_timeout: float = 0.0
    buckets: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


def is_vllm(image: str, words: Sequence[str]) -> bool:
    """Whether a container runs vLLM: by its command line, or by its image, whose entrypoint is the server."""
    text = " ".join(words)
    if "vllm serve" in text or "vllm.entrypoints" in text:
        return True
    return "vllm" in image.rsplit("/", 1)[-1].split(":")[0] or "/vllm-openai" in image


def parse(words: Sequence[str], environ: Mapping[str, str]) -> Flags:
    """Command and arguments of a container, after `$(VAR)` was filled in. Raises Invalid as vLLM's own parser exits."""
    options, positional = _split(_server_words(words))
    model = _last(options, "model") or _last(options, "model-tag") or (positional[0] if positional else None)
    if model is None:
        raise Invalid("--model", "the command line names no model", "write `vllm serve MODEL`")
    length = _last(options, "max-model-len")
    utilization = _real(options, "gpu-memory-utilization")
    if utilization is None:
        utilization = _real(options, "device-memory-utilization")
    if utilization is not None and not 0.0 < utilization <= 1.0:
        raise Invalid("--gpu-memory-utilization", f"{utilization} is not above 0 and at most 1", "give a fraction")
    dtype = _last(options, "dtype") or "auto"
    if dtype not in DTYPES:
        raise Invalid("--dtype", f"{dtype!r} is unknown", f"give one of {', '.join(DTYPES)}")
    return Flags(
        model=model,
        served_names=tuple(options.get("served-model-name") or (model,)),
        port=_integer(options, "port") or DEFAULT_PORT,
        api_key=_last(options, "api-key") or environ.get("VLLM_API_KEY"),
        dtype=dtype,
        max_model_len=-1 if length in ("auto", "-1") else _integer(options, "max-model-len"),
        max_num_seqs=_integer(options, "max-num-seqs"),
        max_num_batched_tokens=_integer(options, "max-num-batched-tokens"),
        gpu_memory_utilization=DEFAULT_UTILIZATION if utilization is None else utilization,
        kv_cache_memory_bytes=_integer(options, "kv-cache-memory-bytes"),
        block_size=_integer(options, "block-size") or DEFAULT_BLOCK_TOKENS,
        chunked_prefill=_switch(options, "enable-chunked-prefill", True),
        enforce_eager=_switch(options, "enforce-eager", False),
        mfu_metrics=_switch(options, "enable-mfu-metrics", False),
        shutdown_timeout=_real(options, "shutdown-timeout") or 0.0,
        buckets=_buckets(_last(options, "custom-histogram-buckets")),
    )


def human_integer(text: str, flag: str) -> int:
    """`25600`, `2k` (2,000), `2K` (2,048), `1.5g`: vLLM's integers; capitals are powers of 1,024 and whole.

    Raises Invalid for anything else.
    """
    match = _INTEGER.fullmatch(text)
    if match is None or ("." in match[1] and match[2] not in _DECIMAL) or ("." in match[1] and not match[2]):
        raise Invalid(flag, f"{text!r} is not a number", "give for instance 4096, 4k, 4K or 1.5g")
    return int(Decimal(match[1]) * (_DECIMAL.get(match[2]) or _BINARY[match[2]]))


def _server_words(words: Sequence[str]) -> list[str]:
    """What follows the program's name, out of a shell's quotes if need be."""
    listed = list(words)
    if len(listed) >= 3 and listed[0].rsplit("/", 1)[-1] in ("sh", "bash") and listed[1].endswith("c"):
        listed = shlex.split(listed[2].replace("exec ", "", 1))
    for index, word in enumerate(listed):
        if word == "serve" and (index == 0 or listed[index - 1].rsplit("/", 1)[-1] == "vllm"):
            return listed[index + 1 :]
        if word.startswith("vllm.entrypoints"):
            return listed[index + 1 :]
    return listed


def _split(words: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Options by their names with dashes, values in order (a switch has `true` or `false`), and what is no option."""
    options: dict[str, list[str]] = {}
    positional: list[str] = []
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        if not word.startswith("--"):
            positional.append(word)
            continue
        name, given, value = word[2:].partition("=")
        name = name.replace("_", "-")
        if given:
            options[name] = [value]
        elif name in _SWITCHES:
            options[name] = ["true"]
        elif name.startswith("no-") and name[3:] in _SWITCHES:
            options[name[3:]] = ["false"]
        else:
            values: list[str] = []
            several = name == "served-model-name"
            while index < len(words) and not words[index].startswith("--") and (several or not values):
                values.append(words[index])
                index += 1
            options[name] = values or ["true"]
    return options, positional


def _last(options: Mapping[str, Sequence[str]], name: str) -> str | None:
    values = options.get(name)
    return values[-1] if values else None


def _integer(options: Mapping[str, Sequence[str]], name: str) -> int | None:
    text = _last(options, name)
    return None if text is None else human_integer(text, f"--{name}")


def _real(options: Mapping[str, Sequence[str]], name: str) -> float | None:
    text = _last(options, name)
    if text is None:
        return None
    try:
        return float(text)
    except ValueError as problem:
        raise Invalid(f"--{name}", f"{text!r} is not a number", "give a decimal number") from problem


def _switch(options: Mapping[str, Sequence[str]], name: str, default: bool) -> bool:
    text = _last(options, name)
    return default if text is None else text.lower() in ("true", "1")


def _buckets(text: str | None) -> dict[str, tuple[float, ...]]:
    if text is None:
        return {}
    try:
        parsed = json.loads(text)
        buckets = {str(family): tuple(float(edge) for edge in edges) for family, edges in parsed.items()}
    except (ValueError, TypeError, AttributeError) as problem:
        raise Invalid(
            "--custom-histogram-buckets", "is no JSON object of lists", 'give {"FAMILY": [0.1, ...]}'
        ) from problem
    for family, edges in buckets.items():
        if family not in BUCKET_FAMILIES:
            raise Invalid("--custom-histogram-buckets", f"no family {family!r}", "give " + ", ".join(BUCKET_FAMILIES))
        if not edges or any(low >= high for low, high in pairwise(edges)):
            raise Invalid("--custom-histogram-buckets", f"{family} does not rise", "give rising upper edges")
    return buckets
