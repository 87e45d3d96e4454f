"""Readings of GPUs out of a Prometheus, over TLS that a Secret makes trusted: packed by them, and missed in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpupack.demo.stage import Stage, wait_for
from gpupack.node.virtual_node import EXPORTER_NAMESPACE, EXPORTER_PORT

from .journey import CHAT, Journey
from .prometheus import prometheus

TWO_REPLICAS, MORE = 65.0, 200.0
"""Requests a second: what one replica does not carry and two do, and what no GPU carries."""
SCRAPED_SECONDS = 20.0
SECRET = "gpupack-prometheus"
NAMESPACE = "gpupack-system"


def exporters(stage: Stage) -> dict[str, Any]:
    pods = stage.get(f"/api/v1/namespaces/{EXPORTER_NAMESPACE}/pods")["items"]
    targets = [f"{pod['status']['podIP']}:{EXPORTER_PORT}" for pod in pods]
    return {"job_name": "dcgm", "proxy_url": stage.pod_proxy, "static_configs": [{"targets": targets}]}


def measured(journey: Journey) -> tuple[str, str, str]:
    """Status, reason and message of the pool's condition."""
    found = journey.stage.pool().get("status", {}).get("conditions", ())
    told = next((each for each in found if each["type"] == "GpusMeasured"), {})
    return told.get("status", ""), told.get("reason", ""), told.get("message", "")


def test_a_pool_reads_its_gpus_from_a_prometheus_that_a_secret_makes_trusted(journey: Journey, tmp_path: Path) -> None:
    cluster, certificate = journey.stage.cluster, journey.stage.cluster.certificate_authority
    with prometheus(tmp_path, [exporters(journey.stage)], certificate) as asked:
        wait_for(lambda: asked.series("DCGM_FI_DEV_FB_USED"), SCRAPED_SECONDS, "GPUs are in the Prometheus")
        source = {"url": asked.url, "secretName": SECRET, "periodSeconds": 1}
        journey.edit_pool(metrics={"source": "Prometheus", "prometheus": source})
        journey.until("the missing Secret is named", lambda: measured(journey)[1] == "NoCredentials")
        assert f"There is no Secret {NAMESPACE}/{SECRET}" in measured(journey)[2]
        secret = ("create", "secret", "generic", SECRET, "-n", NAMESPACE)
        cluster.kubectl(*secret, "--from-literal=token=sesame")
        try:
            journey.until("the certificate is in doubt", lambda: measured(journey)[1] == "CertificateNotTrusted")
            cluster.kubectl("delete", "secret", SECRET, "-n", NAMESPACE)
            cluster.kubectl(*secret, f"--from-file=ca.crt={certificate}")
            journey.until("the GPUs are read", lambda: measured(journey)[:2] == ("True", "Measured"))
            journey.apply(CHAT)
            journey.until_ready("chat")
            journey.load("chat", rate=TWO_REPLICAS)
            journey.until_ready("chat", 2)
            names = journey.names("chat")
        finally:
            cluster.kubectl("delete", "secret", SECRET, "-n", NAMESPACE)
    journey.until("what is missing is named", lambda: measured(journey)[:2] == ("False", "NoCredentials"))
    journey.load("chat", rate=MORE)
    assert "GPU-" in journey.until_said("chat", "DataMissing")
    journey.holds_for(5, "nothing is added", lambda: journey.names("chat") == names)
