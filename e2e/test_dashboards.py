"""The dashboards on a real Prometheus that scrapes operator and engines as the chart's monitors tell it to.

The twin is what is scraped: every panel's query must give finite series, of a size that its unit allows.
"""

from __future__ import annotations

import contextlib
import math
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from dashboards import DASHBOARDS
from dashboards.page import Look, Page, Query, Unit
from dashboards.serving import SERVING
from gpupack.demo.stage import Stage, wait_for
from gpupack.errors import Unavailable
from gpupack.node import binaries
from gpupack.node.virtual_node import EXPORTER_NAMESPACE, EXPORTER_PORT

from .journey import CHAT, LENGTHS, Journey
from .prometheus import Prometheus, found, prometheus

CHART = Path(__file__).parents[1] / "charts" / "gpupack"
MONITORS = ("ServiceMonitor", "PodMonitor")
IN_PODS = "-engines-in-pods"
"""The monitor of engines that share a pod, of which this stage has none."""
RATE = 20.0
"""Requests a second, which one engine of CHAT carries easily."""
WINDOW = "8s"
"""What Grafana makes of $__rate_interval: some scrapes."""
SHOWN_SECONDS = 30.0

POSSIBLE: Mapping[Unit, tuple[float, float]] = {
    Unit.COUNT: (0, 1_000),
    Unit.RATIO: (0, 1),
    Unit.BYTES: (2**27, 2**38),
    Unit.SECONDS: (0, 100),
    Unit.TOKENS: (100, 1_000),
    Unit.TOKENS_PER_SECOND: (0, 200_000),
    Unit.REQUESTS_PER_SECOND: (0, 200),
    Unit.PER_SECOND: (0, 100),
    Unit.WATTS: (50, 1_500),
    Unit.JOULES_PER_TOKEN: (1e-4, 1),
}
"""Where the largest figure of a panel lies with H100s and one small model; another unit's would fall out."""


def monitors() -> dict[str, dict[str, Any]]:
    """What the chart installs where the Prometheus operator is, by kind; for engines, the monitor of own pods."""
    try:
        helm = binaries.obtain(binaries.helm())["helm"]
    except Unavailable as problem:
        pytest.skip(str(problem))
    known = [f"--api-versions=monitoring.coreos.com/v1/{kind}" for kind in MONITORS]
    command = [str(helm), "template", "gpupack", str(CHART), "--namespace", "gpupack-system", *known]
    rendered = yaml.safe_load_all(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    found = [each for each in rendered if each and each["kind"] in MONITORS]
    return {each["kind"]: each["spec"] for each in found if not each["metadata"]["name"].endswith(IN_PODS)}


def discovered_label(key: str) -> str:
    return "".join(each if each.isalnum() else "_" for each in key)


def engines(stage: Stage, monitor: Mapping[str, Any]) -> dict[str, Any]:
    """A PodMonitor as the Prometheus operator writes it into Prometheus' configuration."""
    (endpoint,) = monitor["podMetricsEndpoints"]
    selector = monitor["selector"]
    relabelings: list[dict[str, Any]] = [
        {"action": "keep", "source_labels": [f"__meta_kubernetes_pod_label_{discovered_label(key)}"], "regex": value}
        for key, value in selector["matchLabels"].items()
    ]
    for each in selector["matchExpressions"]:
        assert each["operator"] == "Exists"
        present = f"__meta_kubernetes_pod_labelpresent_{discovered_label(each['key'])}"
        relabelings.append({"action": "keep", "source_labels": [present], "regex": "true"})
    source = "__meta_kubernetes_pod_container_port_name"
    relabelings.append({"action": "keep", "source_labels": [source], "regex": endpoint["port"]})
    targets = {"namespace": "namespace", "pod": "pod_name", "container": "pod_container_name"}
    targets |= {discovered_label(key): f"pod_label_{discovered_label(key)}" for key in monitor["podTargetLabels"]}
    for label, meta in targets.items():
        relabelings.append({"source_labels": [f"__meta_kubernetes_{meta}"], "target_label": label})
    return {
        "job_name": "engines", "metrics_path": endpoint["path"], "proxy_url": stage.pod_proxy,
        "static_configs": list(discovered(stage)), "relabel_configs": relabelings,
    }  # fmt: skip


def discovered(stage: Stage) -> Iterator[dict[str, Any]]:
    """Every port of every pod as Prometheus' own discovery tells of it, which Debian's build leaves out."""
    for pod in stage.get("/api/v1/pods")["items"]:
        about, told = pod["metadata"], {}
        for key, value in about.get("labels", {}).items():
            told[f"pod_label_{discovered_label(key)}"] = value
            told[f"pod_labelpresent_{discovered_label(key)}"] = "true"
        for container in pod["spec"]["containers"]:
            for port in container.get("ports", ()):
                told |= {
                    "namespace": about["namespace"], "pod_name": about["name"], "pod_container_name": container["name"],
                    "pod_container_port_name": port.get("name", ""),
                }  # fmt: skip
                labels = {f"__meta_kubernetes_{key}": value for key, value in told.items()}
                yield {"targets": [f"{pod['status']['podIP']}:{port['containerPort']}"], "labels": labels}


def operator(stage: Stage, monitor: Mapping[str, Any]) -> dict[str, Any]:
    """The operator runs beside the cluster here; its series get the labels of a pod behind the ServiceMonitor."""
    (endpoint,) = monitor["endpoints"]
    labels = {"namespace": "gpupack-system", "service": "gpupack", "pod": "gpupack-0", "container": "operator"}
    return {
        "job_name": "gpupack", "honor_labels": endpoint.get("honorLabels", False),
        "static_configs": [{"targets": [f"127.0.0.1:{stage.metrics_port}"], "labels": labels}],
    }  # fmt: skip


def chosen(asked: Prometheus, page: Page) -> dict[str, str]:
    """What Grafana puts in place of a page's variables when nobody has chosen yet: the first of each."""
    values = {"__rate_interval": WINDOW}
    for choice in page.choices:
        series = asked.series(f"group by ({choice.name}) ({filled(choice.series, values)})")
        values[choice.name] = min((labels[choice.name] for labels, _ in series), default="")
    return values


def filled(expression: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        expression = expression.replace(f"${name}", value)
    assert "$" not in expression, expression
    return expression


def empty(asked: Prometheus) -> list[str]:
    """Queries that give nothing, or not a number."""
    return [
        f"{page.name} / {panel.title}: {query.expr}"
        for page in DASHBOARDS
        for values in [chosen(asked, page)]
        for panel in page.panels()
        for query in panel.queries
        if not (series := asked.series(filled(query.expr, values)))
        or not all(math.isfinite(value) for _, value in series)
    ]


def legend(query: Query, labels: Mapping[str, str]) -> str:
    shown = query.legend
    for name, value in labels.items():
        shown = shown.replace(f"{{{{{name}}}}}", value)
    return shown


def figures(asked: Prometheus) -> dict[str, float]:
    """What two panels of a serving show now, by their legends."""
    values = chosen(asked, SERVING)
    panels = [panel for panel in SERVING.panels() if panel.title in ("Requests finished", "Lengths")]
    queries = [query for panel in panels for query in panel.queries]
    return {query.legend: asked.series(filled(query.expr, values))[0][1] for query in queries}


def complaints(page: str) -> list[str]:
    """What promtool finds to say of a page's names, units and help; a page that cannot be read fails."""
    done = subprocess.run(
        [found("promtool"), "check", "metrics"], input=page, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 3), done.stderr
    return [line for line in (done.stdout + done.stderr).splitlines() if line]


def pods_page(journey: Journey, pod: Mapping[str, Any], port: int) -> str:
    with httpx.Client(proxy=journey.stage.pod_proxy, trust_env=False) as client:
        return client.get(f"http://{pod['status']['podIP']}:{port}/metrics").raise_for_status().text


def test_every_panel_shows_the_twin_in_finite_figures_of_its_unit(journey: Journey, tmp_path: Path) -> None:
    journey.edit_pool(maxGpus=1)
    journey.apply(CHAT)
    journey.until_ready("chat")
    journey.load("chat", rate=RATE)
    journey.until("a step is judged", lambda: journey.status("chat").get("experiment", {}).get("verdict"))
    told = monitors()
    scraped = [operator(journey.stage, told["ServiceMonitor"]), engines(journey.stage, told["PodMonitor"])]
    with prometheus(tmp_path, scraped) as asked:
        with contextlib.suppress(Unavailable):
            wait_for(lambda: not empty(asked), SHOWN_SECONDS, "every panel shows something")
        assert empty(asked) == []
        for page in DASHBOARDS:
            values = chosen(asked, page)
            for panel in page.panels():
                for query in panel.queries:
                    series = asked.series(filled(query.expr, values))
                    least, most = POSSIBLE[panel.unit_of(query)]
                    names = {str(labels) if panel.look is Look.TABLE else legend(query, labels) for labels, _ in series}
                    assert len(names) == len(series), f"{panel.title}: series that look alike"
                    assert not any("{{" in name for name in names), names
                    values_seen = [value for _, value in series]
                    assert least <= max(values_seen) <= most, f"{page.name} / {panel.title}: {series} {panel.unit}"
                    assert min(values_seen) >= 0
        window_is_full = pytest.approx(RATE, rel=0.3)
        journey.until("the requests are those sent", lambda: figures(asked)["requests"] == window_is_full)
        assert figures(asked)["prompt"] == pytest.approx(LENGTHS["input_tokens"], rel=0.3)
        assert figures(asked)["generated"] == pytest.approx(LENGTHS["output_tokens"], rel=0.3)

    exporters = journey.stage.get(f"/api/v1/namespaces/{EXPORTER_NAMESPACE}/pods")["items"]
    assert complaints(journey.stage.operator_metrics()) == []
    # The twin speaks as vLLM and dcgm-exporter do, whose names promtool would have otherwise.
    foreign = [*complaints(pods_page(journey, journey.stage.pods("chat")[0], 8000))]
    foreign += complaints(pods_page(journey, exporters[0], EXPORTER_PORT))
    assert {line.partition(" ")[2] for line in foreign if not line.startswith("vllm:iteration_tokens_total ")} <= {
        "metric names should not contain ':'",
        "label names should be written in 'snake_case' not 'camelCase'",
    }
