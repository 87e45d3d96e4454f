"""What vLLM's V1 engine exports, as plain numbers: counters and histograms over an engine's life.

Names are vLLM's without prefix and suffix where they are words; edges are those of vLLM 0.33. It does not know the text
format, nor labels: who prints `/metrics` adds both.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

_REQUEST_SECONDS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
_FIRST_TOKEN_SECONDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
_TOKEN_GAP_SECONDS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_STEP_TOKENS = (1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)


def _token_buckets(max_model_len: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50, ... up to max_model_len, as vLLM builds its token histograms."""
    edges: list[float] = []
    power = 1
    while power <= max_model_len:
        edges += [float(m * power) for m in (1, 2, 5) if m * power <= max_model_len]
        power *= 10
    return tuple(edges)


@dataclass(frozen=True, slots=True, kw_only=True)
class Buckets:
    """Upper edges of the exported histograms, in seconds or tokens; vLLM 0.33's own unless given.

    `token_gap` is the family to refine for small models: vLLM's edges start at 10 ms.
    """

    first_token: tuple[float, ...] = _FIRST_TOKEN_SECONDS
    token_gap: tuple[float, ...] = _TOKEN_GAP_SECONDS
    request: tuple[float, ...] = _REQUEST_SECONDS
    step_tokens: tuple[float, ...] = _STEP_TOKENS
    request_tokens: tuple[float, ...] | None = None


VLLM_BUCKETS = Buckets()


class Histogram:
    """Counts by upper edge (`le`), sum and count, cumulative over the engine's life as Prometheus wants them."""

    __slots__ = ("count", "counts", "edges", "sum")

    def __init__(self, edges: tuple[float, ...]) -> None:
        self.edges = edges
        self.counts = [0] * (len(edges) + 1)
        self.sum = 0.0
        self.count = 0

    def observe(self, value: float, weight: int = 1) -> None:
        self.counts[bisect_left(self.edges, value)] += weight
        self.sum += value * weight
        self.count += weight

    def cumulative(self) -> list[tuple[float, int]]:
        """(upper edge, observations at or below it), the last edge being infinity."""
        total, lines = 0, []
        for edge, count in zip((*self.edges, math.inf), self.counts, strict=True):
            total += count
            lines.append((edge, total))
        return lines


class Counters:
    """All of one engine's cumulative numbers; gauges are the engine's properties. Seconds and tokens."""

    __slots__ = (
        "aborted",
        "decode",
        "e2e",
        "first_token",
        "generation_tokens",
        "inference",
        "preemptions",
        "prefill",
        "prompt_tokens",
        "queue",
        "request_generation_tokens",
        "request_prompt_tokens",
        "step_tokens",
        "succeeded",
        "time_per_output_token",
        "token_gap",
    )

    def __init__(self, buckets: Buckets, max_model_len: int) -> None:
        tokens = buckets.request_tokens or _token_buckets(max_model_len)
        self.preemptions = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.succeeded = 0
        self.aborted = 0
        self.first_token = Histogram(buckets.first_token)
        self.token_gap = Histogram(buckets.token_gap)
        self.time_per_output_token = Histogram(buckets.token_gap)
        self.e2e = Histogram(buckets.request)
        self.queue = Histogram(buckets.request)
        self.inference = Histogram(buckets.request)
        self.prefill = Histogram(buckets.request)
        self.decode = Histogram(buckets.request)
        self.request_prompt_tokens = Histogram(tokens)
        self.request_generation_tokens = Histogram(tokens)
        self.step_tokens = Histogram(buckets.step_tokens)
