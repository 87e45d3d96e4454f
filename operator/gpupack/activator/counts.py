"""What the activator counts, as Prometheus series."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gpupack.facts.serving import ServingKey

NAMED = ("namespace", "serving")
SECONDS = (0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0)

Waiting = Callable[[], Iterable[tuple[ServingKey, int, float]]]


class Fate(StrEnum):
    """How a request ended. LEFT: its client went. REFUSED: there was nothing to wait for."""

    ANSWERED = "answered"
    BROKEN = "broken"
    FULL = "full"
    LEFT = "left"
    REFUSED = "refused"
    TIMED_OUT = "timed_out"


class Counts(Collector):
    """A registry of its own. `waiting` is asked at every scrape."""

    def __init__(self, waiting: Waiting) -> None:
        self._registry = CollectorRegistry()
        self._waiting = waiting
        self._ended = Counter(
            "gpupack_activator_requests", "Requests that came to a serving's door here, by how they ended",
            [*NAMED, "fate"], registry=self._registry,
        )  # fmt: skip
        self._waits = Histogram(
            "gpupack_activator_wait_seconds", "From a request's arrival until it was handed to an engine", NAMED,
            buckets=SECONDS, registry=self._registry,
        )  # fmt: skip
        self._first = Histogram(
            "gpupack_activator_first_byte_seconds", "From a request's arrival until the first byte of its answer",
            NAMED, buckets=SECONDS, registry=self._registry,
        )  # fmt: skip
        self._registry.register(self)

    def ended(self, serving: ServingKey, fate: Fate) -> None:
        self._ended.labels(serving.namespace, serving.name, fate.value).inc()

    def waited(self, serving: ServingKey, seconds: float) -> None:
        self._waits.labels(serving.namespace, serving.name).observe(seconds)

    def first_byte(self, serving: ServingKey, seconds: float) -> None:
        self._first.labels(serving.namespace, serving.name).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        held = GaugeMetricFamily("gpupack_activator_held_requests", "Requests that wait for an engine", labels=NAMED)
        for serving, count, _ in self._waiting():
            held.add_metric([serving.namespace, serving.name], count)
        yield held

    def describe(self) -> Iterable[Metric]:
        """Nothing: who waits is known only when it is collected."""
        return ()
