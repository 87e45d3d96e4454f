"""Times as the API writes them (RFC 3339, UTC) and as gpupack keeps them (unix seconds)."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

from gpupack.units import Seconds


def seconds_of(text: str) -> Seconds:
    """Unix seconds of `2026-11-23T14:09:24Z` or `2026-11-23T14:09:24.123456Z`. Raises ValueError for anything else."""
    return Seconds(datetime.fromisoformat(text).timestamp())


@lru_cache(maxsize=4096)
def rfc3339(at: Seconds) -> str:
    """Whole seconds, as `metav1.Time`."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@lru_cache(maxsize=4096)
def rfc3339_micro(at: Seconds) -> str:
    """Microseconds, as `metav1.MicroTime`: finer parts of a second are lost."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
