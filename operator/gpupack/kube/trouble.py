"""What ended an engine, by its own last words: only what another attempt of the same kind would not help.

Knows the sentences of vLLM, torch and container runtimes, and how much memory they say was missing. What follows from
it is a decision. Sources: vLLM 0.33 (v1/worker/utils.py request_memory, v1/core/kv_cache_utils.py), torch's caching
allocator, argparse, runc.
"""

from __future__ import annotations

import re

from gpupack.facts.observation import Trouble
from gpupack.units import GIB, MIB, Bytes

_UNITS = {"MiB": MIB, "GiB": GIB}
_SIZE = r"(\d+(?:\.\d+)?) (MiB|GiB)"
_TRIED = re.compile(rf"Tried to allocate {_SIZE}.*?of which {_SIZE} is free", re.DOTALL)
_AT_START = re.compile(r"Free memory on device \S+ \((\d+(?:\.\d+)?)/.*?desired GPU memory utilization \(\S+ "
                       r"(\d+(?:\.\d+)?) GiB\)", re.DOTALL)  # fmt: skip
_OUT_OF_MEMORY = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|Free memory on device .* is less than|"
    r"No available memory for the cache blocks"
)
_REFUSED = re.compile(
    r"error: unrecognized arguments|error: argument |error: the following arguments|executable file not found|"
    r"No module named '?vllm|vllm cannot be started|no such file or directory.*vllm"
)


def trouble_of(words: str) -> tuple[Trouble | None, Bytes]:
    """Of the end of a log, or a runtime's message; and the bytes that were missing, 0 where it does not tell."""
    if _REFUSED.search(words):
        return Trouble.REFUSED, Bytes(0)
    if not _OUT_OF_MEMORY.search(words):
        return None, Bytes(0)
    if found := _TRIED.search(words):
        tried, free = (float(found[at]) * _UNITS[found[at + 1]] for at in (1, 3))
        return Trouble.OUT_OF_MEMORY, Bytes(max(0, round(tried - free)))
    if found := _AT_START.search(words):
        return Trouble.OUT_OF_MEMORY, Bytes(max(0, round((float(found[2]) - float(found[1])) * GIB)))
    return Trouble.OUT_OF_MEMORY, Bytes(0)
