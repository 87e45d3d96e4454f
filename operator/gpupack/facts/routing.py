"""The way of requests to a serving's engines beside its Service: an endpoint picker, and the pool that it picks from.

Knows the wish and what became of it. Which gateway asks the picker, and how that picks, is known to nobody here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gpupack.units import Ratio


class FailureMode(StrEnum):
    """What a gateway does while the picker does not answer: send anywhere, or refuse."""

    OPEN = "FailOpen"
    CLOSE = "FailClose"


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """An InferencePool is wanted. `picker` is the Service that a gateway asks at `port`."""

    picker: str
    port: int
    failure_mode: FailureMode


class PoolState(StrEnum):
    """What became of a serving's InferencePool. UNWANTED: one is still there that nobody asks for any more."""

    WRITTEN = "Written"
    NOT_INSTALLED = "NotInstalled"
    NOT_ALLOWED = "NotAllowed"
    REFUSED = "Refused"
    UNWANTED = "Unwanted"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSeen:
    """`ports` are those that it leads to; `left_out` further ports have no room. `problem` is the API server's."""

    state: PoolState
    ports: tuple[int, ...] = ()
    left_out: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Above which an endpoint picker should take an engine for overloaded: requests waiting, share of the KV cache."""

    queue_depth: int
    kv_cache_utilization: Ratio
