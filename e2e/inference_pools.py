"""InferencePools in a journey: the right to write them, their kind in the cluster or not, and what stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from gpupack.demo.stage import shipped

from .journey import Journey

CRD = Path(__file__).parent / "inference_pool_crd.yaml"
KIND = "inferencepools.inference.networking.k8s.io"
POOLS = "/apis/inference.networking.k8s.io/v1/namespaces/default/inferencepools"
ROLE = "inference-pools.yaml"
ROUTING = {"inferencePool": {"endpointPickerRef": {"name": "picker"}}}
WRITTEN = "InferencePoolWritten"


def allow(journey: Journey) -> None:
    journey.apply(*yaml.safe_load_all((shipped("deploy") / ROLE).read_text()))


def install(journey: Journey) -> None:
    cluster = journey.stage.cluster
    cluster.apply(CRD)
    cluster.kubectl("wait", "--for=condition=Established", f"crd/{KIND}", "--timeout=30s")


def uninstall(journey: Journey) -> None:
    journey.stage.cluster.kubectl("delete", "crd", KIND, "--ignore-not-found", "--wait")


def pools(journey: Journey) -> list[dict[str, Any]]:
    return list(journey.stage.get(POOLS)["items"])


def ports(journey: Journey) -> list[int]:
    """Of the one pool that stands; none while there is none."""
    return [each["number"] for pool in pools(journey) for each in pool["spec"]["targetPorts"]]
