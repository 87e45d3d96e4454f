"""`gpupack doctor` on the real API server with the virtual GPU node: it finds what is there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

from gpupack.demo.stage import condition

from .journey import PLUGIN_NODE, POOLS, Journey


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


def chosen(journey: Journey) -> Mapping[str, Any]:
    return condition(journey.stage.get(f"{POOLS}/default"), "BackendChosen")


def test_a_doctor_finds_gpus_and_metrics_and_says_what_it_cannot_know(journey: Journey) -> None:
    code, found = doctor(journey)
    assert code == 0
    by_driver, by_plugin = (each["sentence"] for each in found["GPUs"])
    published = [each for each in journey.stage.state()["gpus"] if each["node"] != PLUGIN_NODE]
    kinds = sorted(Counter(each["kind"] for each in published).items())
    assert by_driver == f"{', '.join(f'{count} x {kind}' for kind, count in kinds)} can be packed."
    assert by_plugin.startswith("2 x H100-80GB can be packed: a device plugin offers them")
    [sharing] = found["Sharing"]
    assert f"DRA is taken for {len(published)} GPUs" in sharing["sentence"]
    assert "InPod is taken for 2 GPUs" in sharing["sentence"]
    assert "The device plugin's own shares are not taken" in sharing["remedy"]
    journey.until("the pool, which has one node, says of it the same", lambda: chosen(journey).get("reason") == "DRA")
    assert "InPod is not taken" in chosen(journey)["message"]
    assert found["DRA driver"][0]["grade"] == "good"
    assert {each["grade"] for each in found["Metrics"]} == {"good"}
    assert {each["grade"] for each in found["Counters"]} == {"good"}
    assert found["MPS"][0]["grade"] == "unknown", "the virtual node has no pods of a driver"
    assert found["gpupack"][0]["sentence"] == "Its custom resources are installed."

    journey.stage.steer("/exporter", absent=["dram_active"])
    _, found = doctor(journey)
    assert any("does not export DCGM_FI_PROF_DRAM_ACTIVE" in each["sentence"] for each in found["Metrics"])
