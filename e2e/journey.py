"""What the journeys share: a pool with short times, servings, and words for waiting and looking.

Nothing here knows what gpupack ought to do.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from gpupack.demo.stage import ACCOUNT, NODE, OPERATOR, POLL_SECONDS, POOLS, SERVINGS, Stage, condition, wait_for
from gpupack.errors import Unavailable
from gpupack.kube.labels import API_PATH, API_VERSION
from gpupack.node.controlplane import AuditEvent
from gpupack.twin.memory_system import Mps

from .history import GPU, PATHS, History, is_ready

START_SECONDS = 1.0
ORDINARY_INTERFERENCE = Mps().interference
PATIENCE_SECONDS = 40.0
NODE_ARGUMENTS = (
    "--node-name", "virtual", "--nodes", "2", "--plugin-nodes", "1", "--gpus", "2", "--gpu-kind", "H100-80GB",
    "--mig-nodes", "1", "--mig-profiles", "3g.40gb,2g.20gb,1g.10gb",
    "--plugin-mig", "mixed=3g.40gb,2g.20gb", "--plugin-mig", "single=3g.40gb",
    "--start-seconds", str(START_SECONDS), "--exporter-period-seconds", "1",
)  # fmt: skip
PROCESS_IMAGE = "gpupack:here"
"""Pods of this image are this checkout's `gpupack`, as a process."""
FIRST_NODE, SECOND_NODE = "virtual-1", "virtual-2"
PLUGIN_NODE, MIXED_NODE, SINGLE_NODE = "virtual-plugin-1", "virtual-mixed-1", "virtual-single-1"
"""The pool has the GPUs of the first; a journey that needs others selects them."""
PROFILES = f"{API_PATH}/namespaces/default/modelprofiles"
PODS, SERVICES = PATHS["pods"], PATHS["services"]
CLAIMS, BUDGETS = PATHS["resourceclaims"], PATHS["poddisruptionbudgets"]
OURS = "app.kubernetes.io/managed-by=gpupack"
HOUSEHOLD = "gpupack.dev/household"

POOL: dict[str, Any] = {
    "apiVersion": API_VERSION,
    "kind": "GpuPool",
    "metadata": {"name": "default"},
    "spec": {
        "nodeSelector": {"kubernetes.io/hostname": FIRST_NODE},
        "times": {
            "tickSeconds": 1, "warmupSeconds": 2, "windowSeconds": 3, "minWindowRequests": 20,
            "rateWindowsSeconds": [3, 6], "scaleDownDelaySeconds": 6, "pendingDeadlineSeconds": 30,
        },
        "metrics": {"enginePeriodSeconds": 1, "dcgm": {"periodSeconds": 1}},
    },
}  # fmt: skip


MODEL = {"name": "llama-3.2-1b"}
LARGER = {"name": "llama-3.2-3b"}


def write_image(folder: Path) -> None:
    """The folder that stands in for PROCESS_IMAGE."""
    program = folder / "bin" / "gpupack"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m gpupack "$@"\n')
    program.chmod(0o755)


def serving(name: str, **spec: Any) -> dict[str, Any]:
    """A ModelServing for requests of 512 tokens in and 256 out; fields of `spec` replace those here."""
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelServing",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "model": MODEL,
            "workload": {"inputTokens": {"mean": 512, "p95": 1430}, "outputTokens": {"mean": 256, "p95": 715}},
            "slo": {"itlMilliseconds": 25, "ttftMilliseconds": 1000},
            **spec,
        },
    }


def manual(name: str, replicas: int, **spec: Any) -> dict[str, Any]:
    """A ModelServing whose count is the user's, so that nothing of what follows depends on load."""
    return serving(name, **{"scaling": {"mode": "Manual"}, "replicas": replicas, **spec})


CHAT = serving("chat", batching={"mode": "Fixed", "maxNumSeqs": 84})
"""One of these carries some 61 requests a second on an H100, two 97, three 115; with two the DRAM saturation is 76 %,
with three 91 %, and the ceiling is 90 %."""
LENGTHS: Mapping[str, float] = {"input_tokens": 512, "output_tokens": 256}


class Journey:
    """One story on the stage, from an empty pool."""

    def __init__(self, stage: Stage, history: History) -> None:
        self.stage = stage
        self.history = history
        self.mark = 0
        self.log_start: dict[str, int] = {}
        self._audit_start = 0

    def begin(self) -> None:
        self.mark = self.history.mark()
        self.log_start = {program: len(self.stage.log(program)) for program in (OPERATOR, NODE)}
        self._audit_start = self.stage.cluster.audit_position()
        self.apply(POOL)

    def end(self) -> None:
        """Takes away servings, pool, load and faults; at once, for nobody is there to be drained for."""
        stage = self.stage
        stage.no_load()
        stage.steer("/exporter", fault="none", absent=[])
        stage.steer("/start", seconds=START_SECONDS)
        stage.steer("/mps", starts=True)
        for gpu in stage.state()["gpus"]:
            stage.steer("/xid", gpu=gpu["uuid"], code=0)
        stage.steer("/interference", interference=ORDINARY_INTERFERENCE)
        stage.steer("/costs", step=1.0)
        stage.delete(SERVINGS)
        try:
            self.until("everything is gone", self._is_gone)
        finally:  # the next journey begins with a pool of its own, whatever became of this one
            stage.delete(POOLS)
            stage.delete(PROFILES, labelSelector=OURS)

    def _is_gone(self) -> bool:
        """Asks again until it is so: the operator may just be making what it has not seen to be unwanted.

        Nobody waits for the garbage collector, which learns of new kinds twice a minute.
        """
        for children in (PODS, CLAIMS, SERVICES, BUDGETS):
            self.stage.delete(children, labelSelector=OURS, gracePeriodSeconds="0")
        return not (self.engines() or self.children())

    # Doing

    def apply(self, *manifests: Mapping[str, Any]) -> None:
        self.stage.cluster.apply(*manifests)

    def edit(self, name: str, **spec: Any) -> None:
        """What `kubectl patch msv NAME --type=merge` does."""
        self.stage.patch(f"{SERVINGS}/{name}", {"spec": spec})

    def edit_pool(self, **spec: Any) -> None:
        self.stage.patch(f"{POOLS}/default", {"spec": spec})

    def load(self, name: str, rate: float | None = None, **load: object) -> None:
        more = {} if rate is None else {"rate": rate}
        self.stage.load(f"default/{name}", **{**LENGTHS, **more, **load})

    # Waiting

    def until(self, what: str, true: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
        """Asks until it is so; fails with what the servings say."""
        try:
            wait_for(true, seconds, what)
        except Unavailable as problem:
            said = {each["metadata"]["name"]: each.get("status", {}) for each in self.stage.servings()}
            pytest.fail(f"{problem}\n{json.dumps(said, indent=1)}", pytrace=False)

    def until_ready(self, name: str, replicas: int = 1, seconds: float = PATIENCE_SECONDS) -> None:
        """So many replicas serve and no other pod of the serving is there."""
        self.until(
            f"{name} has {replicas} replicas, all ready",
            lambda: len(self.ready(name)) == replicas == len(self.stage.pods(name)), seconds,
        )  # fmt: skip

    def until_said(self, name: str, reason: str, seconds: float = PATIENCE_SECONDS) -> str:
        """The message of the decision with that reason, once it is there."""
        self.until(f"{name} says {reason}", lambda: self.decision(name).get("reason") == reason, seconds)
        return str(self.decision(name)["message"])

    def holds_for(self, ticks: int, what: str, true: Callable[[], object]) -> None:
        """It stays so until the operator has looked so many times more; each look is at most a tick apart."""
        last = self.ticks() + ticks
        while self.ticks() < last:
            assert true(), what
            time.sleep(POLL_SECONDS)

    # Looking

    def ticks(self) -> int:
        """How often the operator has looked at the pool since it started."""
        lines = self.stage.operator_metrics().splitlines()
        counts = [line for line in lines if line.startswith("gpupack_tick_seconds_count")]
        return round(sum(float(line.rsplit(" ", 1)[1]) for line in counts))

    def decision(self, name: str) -> Mapping[str, Any]:
        decision: Mapping[str, Any] = self.status(name).get("decision", {})
        return decision

    def status(self, name: str) -> Mapping[str, Any]:
        status: Mapping[str, Any] = self.stage.serving(name).get("status", {})
        return status

    def condition(self, name: str, kind: str) -> tuple[str, str, str]:
        """Status, reason and message; empty words while it is not there."""
        found = condition(self.stage.serving(name), kind)
        return found.get("status", ""), found.get("reason", ""), found.get("message", "")

    def ready(self, name: str) -> list[dict[str, Any]]:
        """Pods of a serving that are ready and stay."""
        pods = self.stage.pods(name)
        return [each for each in pods if is_ready(each) and "deletionTimestamp" not in each["metadata"]]

    def fewest_serving(self, name: str, mark: int) -> int:
        """Fewest pods of a serving that were ready and not leaving at any moment since then."""
        serving: set[str] = set()
        fewest: int | None = None
        for each in self.history.pods(self.mark, name):
            here = is_ready(each.object) and not each.is_leaving and each.labels["gpupack.dev/in-service"] == "true"
            (serving.add if here else serving.discard)(each.name)
            if each.revision > mark:
                fewest = len(serving) if fewest is None else min(fewest, len(serving))
        assert fewest is not None
        return fewest

    def hosts(self) -> list[dict[str, Any]]:
        """The pods that hold a GPU and have engines inside."""
        return list(self.stage.get(PODS, labelSelector=HOUSEHOLD)["items"])

    def names(self, name: str | None = None) -> set[str]:
        return {each["metadata"]["name"] for each in self.stage.pods(name)}

    def gpus_of(self, name: str) -> list[str]:
        """Where each replica is, in the order of the node's GPUs."""
        order = [gpu["uuid"] for gpu in self.stage.state()["gpus"]]
        return sorted((each["metadata"]["labels"][GPU] for each in self.stage.pods(name)), key=order.index)

    def engines(self) -> list[dict[str, Any]]:
        engines: list[dict[str, Any]] = self.stage.state()["engines"]
        return engines

    def children(self) -> list[str]:
        """Everything in the namespace that came from gpupack."""
        return [
            f"{path.rpartition('/')[2]}/{item['metadata']['name']}"
            for path in (PODS, CLAIMS, SERVICES, BUDGETS)
            for item in self.stage.get(path, labelSelector=OURS)["items"]
        ]

    def restarts(self) -> int:
        """How often engines have crashed; one that was refused its memory would have."""
        statuses = [each for pod in self.stage.pods() for each in pod["status"].get("containerStatuses", ())]
        return sum(each["restartCount"] for each in statuses)

    def aborted(self) -> int:
        """Requests that ended without their answer, since the node joined."""
        return int(self.stage.state()["ended"]["aborted"])

    def writes(self, since: int | None = None) -> list[AuditEvent]:
        """What the operator wrote since the journey began, or since a position of the audit log; Leases aside."""
        events = self.stage.cluster.audit_events(self._audit_start if since is None else since)
        return [each for each in events if each.user == ACCOUNT and each.is_write and each.resource != "leases"]

    def denied(self) -> list[str]:
        """What RBAC refused the operator in this journey."""
        events = self.stage.cluster.audit_events(self._audit_start)
        return [f"{each.verb} {each.resource}" for each in events if each.user == ACCOUNT and each.code == 403]
