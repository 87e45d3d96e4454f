"""A `vllm serve` command line that somebody else wrote, as far as it tells an engine's shape.

Knows vLLM's flags and how they may be written, not its defaults. What cannot be read counts as not said: the engine
itself runs, so it is never wrong.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpupack.units import Bytes, Ratio

_HUMAN = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}
"""vLLM's `human_readable_int`: 25.6k is 25,600, 1K is 1,024."""
_SHELLS = frozenset(("sh", "bash", "ash", "dash"))
_ON, _OFF = frozenset(("", "true", "1")), frozenset(("false", "0"))


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFlags:
    """None: not said. `gpus` is the product of all parallel sizes."""

    model: str | None = None
    port: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    kv_cache_memory_bytes: Bytes | None = None
    gpu_memory_utilization: Ratio | None = None
    block_tokens: int | None = None
    chunked_prefill: bool | None = None
    gpus: int = 1
    tells_metrics: bool = True


def is_vllm(image: str, words: Sequence[str]) -> bool:
    """Whether a container's image or command names vLLM."""
    return "vllm" in image.lower() or any("vllm" in word for word in words[:4])


def flags_of(words: Sequence[str]) -> EngineFlags:
    """The flags of a container's command and arguments, also inside `sh -c`; the last of one name counts."""
    said, plain = _split(_unwrapped(words))
    served = [word for index, word in enumerate(plain) if index and plain[index - 1] == "serve"]
    parallel = [said.get(f"--{name}-parallel-size") or said.get(short) for name, short in _PARALLEL]
    gpus = 1
    for size in parallel:
        gpus *= _whole(size) or 1
    kv_bytes = _whole(said.get("--kv-cache-memory-bytes"))
    return EngineFlags(
        model=said.get("--model") or (served[0] if served else _lone(plain)),
        port=_whole(said.get("--port")),
        max_num_seqs=_whole(said.get("--max-num-seqs")),
        max_num_batched_tokens=_whole(said.get("--max-num-batched-tokens")),
        max_model_len=_whole(said.get("--max-model-len")),
        kv_cache_memory_bytes=None if kv_bytes is None else Bytes(kv_bytes),
        gpu_memory_utilization=_share(said.get("--gpu-memory-utilization")),
        block_tokens=_whole(said.get("--block-size")),
        chunked_prefill=_switch(said, "enable-chunked-prefill"),
        gpus=gpus,
        tells_metrics=_switch(said, "disable-log-stats") is not True,
    )


_PARALLEL = (("tensor", "-tp"), ("pipeline", "-pp"), ("data", "-dp"))
_SWITCHES = frozenset(("--enable-chunked-prefill", "--no-enable-chunked-prefill", "--disable-log-stats",
                       "--no-disable-log-stats", "--enforce-eager", "--enable-prefix-caching",
                       "--no-enable-prefix-caching", "--trust-remote-code", "--enable-mfu-metrics"))  # fmt: skip


def _unwrapped(words: Sequence[str]) -> list[str]:
    """The words of a shell's script where there is one; an unreadable script has none."""
    listed = list(words)
    if len(listed) >= 3 and listed[0].rsplit("/", 1)[-1] in _SHELLS and listed[1].startswith("-"):
        try:
            return shlex.split(" ".join(listed[2:]), comments=True)
        except ValueError:
            return []
    return listed


def _split(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Flags by name with dashes (a switch has an empty value), and all other words."""
    said: dict[str, str] = {}
    plain: list[str] = []
    waiting: str | None = None
    for word in words:
        if word.startswith("--") or word in ("-tp", "-pp", "-dp"):
            name, given, value = word.partition("=")
            name = name.replace("_", "-")
            said[name] = value
            waiting = None if given or name in _SWITCHES else name
        elif waiting is not None:
            said[waiting], waiting = word, None
        else:
            plain.append(word)
    return said, plain


def _lone(plain: Sequence[str]) -> str | None:
    """The model where the image's entry point is `vllm serve` itself: the first word then."""
    return plain[0] if len(plain) == 1 and plain[0] not in ("vllm", "serve") else None


def _whole(text: str | None) -> int | None:
    if not text:
        return None
    number, factor = (text[:-1], _HUMAN[text[-1]]) if text[-1] in _HUMAN else (text, 1)
    try:
        value = int(float(number) * factor) if factor > 1 else int(number)
    except (ValueError, OverflowError):
        return None
    return value if value > 0 else None


def _share(text: str | None) -> Ratio | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return Ratio(value) if 0.0 < value <= 1.0 else None


def _switch(said: Mapping[str, str], name: str) -> bool | None:
    if f"--no-{name}" in said:
        return False
    value = said.get(f"--{name}")
    if value is None or value.lower() in _ON:
        return None if value is None else True
    return False if value.lower() in _OFF else None
