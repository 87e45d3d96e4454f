"""A GPU is packed until its memory bandwidth ends it, the next one is opened, and the load is followed down."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .history import GPU
from .journey import CHAT, Journey

REPLICAS_PER_GPU = 3
MORE_THAN_THERE_IS, LITTLE = 260.0, 10.0
"""Requests a second: what two full GPUs do not carry, and what one replica carries easily."""


def test_replicas_join_the_first_gpu_one_after_another_until_its_bandwidth_saturates(
    journey: Journey, tmp_path: Path
) -> None:
    journey.edit_pool(maxGpus=1)
    journey.apply(CHAT)
    journey.until_ready("chat")
    journey.load("chat", rate=MORE_THAN_THERE_IS)
    message = journey.until_said("chat", "BandwidthCeiling")
    assert "the ceiling is 90 %" in message
    journey.until_ready("chat", REPLICAS_PER_GPU)
    assert len(set(journey.gpus_of("chat"))) == 1
    assert journey.condition("chat", "Packed")[:2] == ("True", "BandwidthCeiling")
    journey.holds_for(5, "nothing more is added", lambda: len(journey.names("chat")) == REPLICAS_PER_GPU)
    assert journey.history.starting_together(journey.mark) == []
    assert journey.restarts() == 0
    shown = told(journey, "kubectl-gpupack", "top", "--once")
    assert re.search(rf"\d+ of \d+ %.* GiB +[\d,]+ +\d+ W +{REPLICAS_PER_GPU} chat", shown), shown
    assert re.search(r"default/chat +3 of 3 +[\d.]+/s +[\d.]+ of \d+ .*BandwidthCeiling", shown), shown
    page = tmp_path / "report.html"
    told(journey, "gpupack", "report", "-o", str(page))
    assert page.read_text().count("<svg") == 4, "memory, decisions, batch curves and the staircase"


def test_the_second_gpu_is_opened_only_when_the_first_is_saturated(journey: Journey) -> None:
    journey.apply(CHAT)
    journey.until_ready("chat")
    journey.load("chat", rate=MORE_THAN_THERE_IS)
    journey.until_ready("chat", 2 * REPLICAS_PER_GPU)
    replicas = journey.history.pods(journey.mark, "chat")
    first, *_ = gpus = [each.labels[GPU] for each in replicas if each.event == "ADDED"]
    assert gpus[:REPLICAS_PER_GPU] == [first] * REPLICAS_PER_GPU
    assert first not in gpus[REPLICAS_PER_GPU:]
    opening = next(each for each in decisions(journey, "chat") if "is opened" in each["message"])
    assert opening["reason"] == "Added"
    assert f"The DRAM traffic of {first[:12]} is at" in opening["message"]
    assert journey.history.starting_together(journey.mark) == []
    assert journey.restarts() == 0


def test_when_the_load_falls_replicas_leave_the_service_before_they_are_deleted(journey: Journey) -> None:
    aborted = journey.aborted()
    journey.apply({**CHAT, "spec": {**CHAT["spec"], "scaling": {"minReplicas": 3}}})
    journey.until_ready("chat", 3)
    journey.load("chat", rate=LITTLE)
    journey.edit("chat", scaling={"minReplicas": 1})
    journey.until_ready("chat", 1, seconds=60)
    assert journey.status("chat")["replicas"] == 1
    assert journey.aborted() == aborted

    gone = [each for each in journey.history.pods(journey.mark, "chat") if each.event == "DELETED"]
    assert len(gone) == 2
    for pod in gone:
        events = journey.history.of_pod(journey.mark, pod.name)
        out_of_service = next(each for each in events if each.labels["gpupack.dev/in-service"] == "false")
        deleted = next(each for each in events if each.is_leaving)
        delisted = journey.history.delisted(journey.mark, pod.object["status"]["podIP"])
        assert delisted is not None
        assert out_of_service.revision < delisted < deleted.revision


def decisions(journey: Journey, name: str) -> Iterator[Mapping[str, Any]]:
    """Every decision that ever stood on the serving, in order."""
    for each in journey.history.since(journey.mark):
        if each.resource == "modelservings" and each.name == name and "decision" in each.object.get("status", {}):
            yield each.object["status"]["decision"]


def told(journey: Journey, program: str, *command: str) -> str:
    """What an installed program prints about this cluster; `kubectl gpupack` runs the first of them."""
    page = f"http://127.0.0.1:{journey.stage.metrics_port}/metrics"
    words = [str(Path(sys.executable).with_name(program)), *command, "--metrics", page, "--kubeconfig",
             str(journey.stage.cluster.kubeconfig)]  # fmt: skip
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout
