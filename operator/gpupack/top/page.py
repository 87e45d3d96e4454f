"""The operator's metrics page read back: what it saw at its last tick, as far as `gpupack top` shows it.

The names are those of `gpupack/telemetry.py`. A series that is not there is None: an older operator, or nothing seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from gpupack.facts.serving import ServingKey
from gpupack.units import Bytes, PerSecond, Ratio, Seconds, Watts

PREFIXES = ("gpupack_gpu_", "gpupack_serving_", "gpupack_measured_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveGpu:
    """`dram_active` and `attainable` are shares of the peak, tokens count prompts and answers.

    `parent` is the uuid of the GPU that a slice is cut from, empty for a whole one.
    """

    pool: str
    uuid: str
    node: str
    kind: str
    parent: str
    memory: Bytes
    memory_used: Bytes | None
    dram_active: Ratio | None
    attainable: Ratio | None
    power: Watts | None
    tokens_per_second: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveServing:
    """`latencies` are by latency (itl, ttft) and statistic (Mean, P95, P99)."""

    requests_per_second: PerSecond | None
    latencies: Mapping[tuple[str, str], Seconds]


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """GPUs by uuid."""

    gpus: Mapping[str, LiveGpu] = field(default_factory=dict)
    servings: Mapping[ServingKey, LiveServing] = field(default_factory=dict)


def live_of(page: str) -> Live:
    """Raises ValueError for a page that is none of Prometheus'."""
    text = "\n".join(line for line in page.splitlines() if line.startswith(PREFIXES))
    totals: dict[str, tuple[Mapping[str, str], float]] = {}
    on: dict[tuple[str, str], float] = {}
    of: dict[tuple[str, ServingKey], float] = {}
    times: dict[tuple[str, ServingKey], dict[tuple[str, str], Seconds]] = {}
    for family in text_string_to_metric_families(text + "\n"):
        for sample in family.samples:
            name, labels, value = sample.name, sample.labels, float(sample.value)
            if name == "gpupack_gpu_memory_bytes":
                totals[labels["gpu"]] = labels, value
            elif "gpu" in labels:
                on[name, labels["gpu"]] = value
            elif "latency" in labels:
                latency = labels["latency"], labels["statistic"]
                times.setdefault((name, _key(labels)), {})[latency] = Seconds(value)
            elif "serving" in labels:
                of[name, _key(labels)] = value
    keys = {key for _, key in (*of, *times)}
    return Live(
        gpus={uuid: _gpu(uuid, labels, total, on) for uuid, (labels, total) in totals.items()},
        servings={key: _serving(key, of, times) for key in keys},
    )


def _key(labels: Mapping[str, str]) -> ServingKey:
    return ServingKey(namespace=labels["namespace"], name=labels["serving"])


def _gpu(uuid: str, labels: Mapping[str, str], total: float, on: Mapping[tuple[str, str], float]) -> LiveGpu:
    used, dram = on.get(("gpupack_gpu_memory_used_bytes", uuid)), on.get(("gpupack_gpu_dram_active_ratio", uuid))
    attainable, power = on.get(("gpupack_gpu_dram_attainable_ratio", uuid)), on.get(("gpupack_gpu_power_watts", uuid))
    return LiveGpu(
        pool=labels["pool"],
        uuid=uuid,
        node=labels["node"],
        kind=labels["kind"],
        parent=labels.get("parent", ""),
        memory=Bytes(round(total)),
        memory_used=None if used is None else Bytes(round(used)),
        dram_active=None if dram is None else Ratio(dram),
        attainable=None if attainable is None else Ratio(attainable),
        power=None if power is None else Watts(power),
        tokens_per_second=on.get(("gpupack_measured_tokens_per_second", uuid)),
    )


def _serving(
    key: ServingKey,
    of: Mapping[tuple[str, ServingKey], float],
    times: Mapping[tuple[str, ServingKey], Mapping[tuple[str, str], Seconds]],
) -> LiveServing:
    rate = of.get(("gpupack_serving_requests_per_second", key))
    return LiveServing(
        requests_per_second=None if rate is None else PerSecond(rate),
        latencies=times.get(("gpupack_serving_latency_seconds", key), {}),
    )
