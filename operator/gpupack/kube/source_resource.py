"""`spec.metrics` of a GpuPool: where readings of GPUs come from, and the scales of counters in its status.

Knows which pods and addresses are asked, not how.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gpupack.facts.counter import Counter, Scale
from gpupack.facts.policy import Policy
from gpupack.kube.times import rfc3339_micro, seconds_of
from gpupack.units import Seconds

Labels = tuple[tuple[str, str], ...]

DCGM_PORT = 9400
DCGM_POD_LABELS = (
    (("app.kubernetes.io/name", "dcgm-exporter"),),
    (("app", "nvidia-dcgm-exporter"),),
)
"""Both generations of dcgm-exporter's pod labels: its own chart's and the GPU operator's."""
AGENT_PORT = 8080
AGENT_POD_LABELS = ((("app.kubernetes.io/component", "agent"), ("app.kubernetes.io/part-of", "gpupack")),)
AGENT_PERIOD = Seconds(5.0)
PROMETHEUS_PERIOD = Seconds(30.0)


class SourceKind(StrEnum):
    AUTO = "Auto"
    DCGM = "DCGM"
    AGENT = "Agent"
    PROMETHEUS = "Prometheus"


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSource:
    """Which pods are exporters: in `namespace` (None: any), with all labels of one of the selectors, at `port`."""

    namespace: str | None
    pod_labels: tuple[Labels, ...]
    port: int

    def selects(self, namespace: str, labels: Mapping[str, str]) -> bool:
        if self.namespace not in (None, namespace):
            return False
        return any(all(labels.get(key) == value for key, value in selector) for selector in self.pod_labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusServer:
    """`secret` is the name of a Secret beside the operator with `token` or `ca.crt`; `own_token`: the operator's is
    shown. The queries are the user's PromQL, "" for the built-in ones; `counter` is what that for DRAM gives."""

    url: str
    secret: str | None = None
    own_token: bool = False
    dram_active: str = ""
    memory_used: str = ""
    power: str = ""
    counter: Counter = Counter.DCGM_DRAM_ACTIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What is asked for a pool's GPUs: None is not asked. `period` is that of the slowest of them."""

    period: Seconds
    dcgm: PodSource | None = None
    agent: PodSource | None = None
    prometheus: PrometheusServer | None = None


def sources_of(spec: Mapping[str, Any]) -> Sources:
    metrics = spec.get("metrics", {})
    kind = SourceKind(metrics.get("source", SourceKind.AUTO))
    dcgm, agent, server = metrics.get("dcgm", {}), metrics.get("agent", {}), metrics.get("prometheus")
    periods: list[Seconds] = []
    chosen_dcgm = chosen_agent = chosen_server = None
    if kind in (SourceKind.AUTO, SourceKind.DCGM):
        selectors = tuple(tuple(sorted(each["matchLabels"].items())) for each in dcgm.get("podSelectors", ()))
        chosen_dcgm = PodSource(
            namespace=dcgm.get("namespace"), pod_labels=selectors or DCGM_POD_LABELS, port=dcgm.get("port", DCGM_PORT)
        )
        periods.append(_period(dcgm, Policy().dcgm_period))
    if kind in (SourceKind.AUTO, SourceKind.AGENT):
        chosen_agent = PodSource(namespace=agent.get("namespace"), pod_labels=AGENT_POD_LABELS, port=AGENT_PORT)
        if kind is SourceKind.AGENT:
            periods.append(_period(agent, AGENT_PERIOD))
    if kind in (SourceKind.AUTO, SourceKind.PROMETHEUS) and server is not None:
        chosen_server = _server(server)
        periods.append(_period(server, PROMETHEUS_PERIOD))
    return Sources(period=max(periods), dcgm=chosen_dcgm, agent=chosen_agent, prometheus=chosen_server)


def _period(fields: Mapping[str, Any], default: Seconds) -> Seconds:
    return Seconds(float(fields.get("periodSeconds", default)))


def _server(fields: Mapping[str, Any]) -> PrometheusServer:
    queries = fields.get("queries", {})
    return PrometheusServer(
        url=fields["url"],
        secret=fields.get("secretName"),
        own_token=fields.get("serviceAccountToken", False),
        dram_active=queries.get("dramActive", ""),
        memory_used=queries.get("memoryUsedBytes", ""),
        power=queries.get("powerWatts", ""),
        counter=Counter(queries.get("dramCounter", Counter.DCGM_DRAM_ACTIVE)),
    )


def scales_of(status: Mapping[str, Any]) -> tuple[Scale, ...]:
    """Those of a pool's status; one that cannot be read is measured anew."""
    try:
        found = [
            Scale(
                gpu_kind=each["gpuKind"],
                counter=Counter(each["counter"]),
                ratio=float(each["ratio"]),
                measured_at=seconds_of(each["measuredAt"]),
            )
            for each in status.get("scales", ())
        ]
    except (KeyError, ValueError, TypeError):
        return ()
    return tuple(each for each in found if each.ratio > 0)


def scales_to_list(scales: Iterable[Scale]) -> list[dict[str, Any]]:
    return [
        {
            "gpuKind": each.gpu_kind, "counter": each.counter.value, "ratio": repr(each.ratio),
            "measuredAt": rfc3339_micro(each.measured_at),
        }
        for each in scales
    ]  # fmt: skip
