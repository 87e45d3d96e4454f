"""`gpupack doctor` on the real API server with the virtual GPU node: it finds what is there."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from .journey import Journey


def doctor(journey: Journey) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """The exit status, and what was found by topic."""
    stage = journey.stage
    command = [
        sys.executable, "-m", "gpupack", "doctor", "-o", "json", "--kubeconfig", str(stage.cluster.kubeconfig),
        "--pod-proxy", stage.pod_proxy,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found: dict[str, list[dict[str, Any]]] = {}
    for each in json.loads(done.stdout):
        found.setdefault(each["topic"], []).append(each)
    return done.returncode, found


def test_a_doctor_finds_gpus_and_metrics_and_says_what_it_cannot_know(journey: Journey) -> None:
    code, found = doctor(journey)
    assert code == 0
    by_driver, by_plugin = (each["sentence"] for each in found["GPUs"])
    gpus = len(journey.stage.state()["gpus"])
    assert by_driver == f"{gpus - 2} x H100-80GB can be packed."
    assert by_plugin.startswith("2 x H100-80GB can be packed: a device plugin offers them")
    assert found["DRA driver"][0]["grade"] == "good"
    assert {each["grade"] for each in found["Metrics"]} == {"good"}
    assert found["MPS"][0]["grade"] == "unknown", "the virtual node has no pods of a driver"
    assert found["gpupack"][0]["sentence"] == "Its custom resources are installed."

    journey.stage.steer("/exporter", absent=["dram_active"])
    _, found = doctor(journey)
    assert any("does not export DCGM_FI_PROF_DRAM_ACTIVE" in each["sentence"] for each in found["Metrics"])
