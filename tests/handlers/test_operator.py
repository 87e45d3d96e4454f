"""The operator as a process beside a real API server: what it writes, what it leaves alone, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpupack.errors import Unavailable
from gpupack.node import binaries
from gpupack.node.controlplane import AuditEvent, ControlPlane, free_ports
from gpupack.plan import StartReplica
from gpupack.replay import Weight, replay
from gpupack.trace.lines import read

from ..kube.objects import GPU
from ..kube.test_resource_node import device, resource_slice

pytestmark = pytest.mark.controlplane

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 120.0
PATIENCE = f"--timeout={PATIENCE_SECONDS:.0f}s"
QUIET_TICKS = 5
USER = "gpupack-operator"


@dataclass
class Running:
    cluster: ControlPlane
    process: subprocess.Popen[bytes]
    metrics_port: int
    health_port: int
    trace: Path

    def metric(self, name: str) -> float:
        """The sum over all labels; 0 where there is none."""
        text = httpx.get(
            f"http://127.0.0.1:{self.metrics_port}/metrics", trust_env=False, timeout=PATIENCE_SECONDS
        ).text
        lines = [line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.health_port}/readyz", trust_env=False).is_success
        except httpx.TransportError:
            return False

    def requests(self) -> list[AuditEvent]:
        return [event for event in self.cluster.audit_events() if event.user == USER]

    def status(self, *what: str) -> dict[str, Any]:
        status: dict[str, Any] = self.cluster.get(*what).get("status", {})
        return status


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.05)


def condition(status: dict[str, Any], kind: str) -> str | None:
    return next((each["status"] for each in status.get("conditions", ()) if each["type"] == kind), None)


@pytest.fixture(scope="module")
def cluster() -> Iterator[ControlPlane]:
    try:
        programs = binaries.obtain(binaries.control_plane())
    except Unavailable as problem:
        pytest.skip(str(problem))
    # No kubelet reports on the node of these tests; it must not be given up for that.
    patient = ("--node-monitor-grace-period=1h", "--node-startup-grace-period=1h")
    with ControlPlane(programs, audit=True, users=(USER,), controller_manager_arguments=patient) as cluster:
        cluster.apply(*sorted((ROOT / "crds").glob("*.yaml")))
        cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", PATIENCE)
        cluster.kubectl("create", "clusterrolebinding", "it", "--clusterrole=cluster-admin", f"--user={USER}")
        _join_a_node(cluster)
        yield cluster


def _join_a_node(cluster: ControlPlane) -> None:
    selector = {"cel": {"expression": "device.driver == 'gpu.nvidia.com'"}}
    cluster.apply(
        {"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": "gpu.nvidia.com"},
         "spec": {"selectors": [selector]}},
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"}},
        {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", **resource_slice(device("gpu-0", GPU))},
    )  # fmt: skip
    capacity = {"cpu": "16", "memory": "128Gi", "pods": "50"}
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}
    status = {"status": {"capacity": capacity, "allocatable": capacity, "conditions": [ready]}}
    cluster.kubectl("patch", "node", "node-a", "--subresource=status", "--type=merge", "-p", json.dumps(status))


@pytest.fixture
def operator(cluster: ControlPlane, tmp_path: Path) -> Iterator[Running]:
    metrics, health = free_ports(2)
    trace = tmp_path / "trace.jsonl"
    process = subprocess.Popen(
        [
            sys.executable, "-c", "import sys; from gpupack.cli import main; sys.exit(main())", "operator",
            "--kubeconfig", str(cluster.kubeconfig_for(USER)), "--host", "127.0.0.1",
            "--metrics-port", str(metrics), "--health-port", str(health), "--trace", str(trace),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT / "operator")},
    )  # fmt: skip
    try:
        running = Running(cluster, process, metrics, health, trace)
        until(lambda: running.is_ready() or process.poll() is not None)
        assert process.poll() is None, "it ended before it was ready"
        yield running
    finally:
        process.kill()
        process.wait()


def pool(**times: int) -> dict[str, Any]:
    spec = {"times": {"tickSeconds": 1, **times}}
    return {"apiVersion": "gpupack.dev/v1alpha1", "kind": "GpuPool", "metadata": {"name": "default"}, "spec": spec}


def serving(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "gpupack.dev/v1alpha1", "kind": "ModelServing",
        "metadata": {"name": name, "namespace": "default"}, "spec": {"model": {"name": "llama-3.2-1b"}, **spec},
    }  # fmt: skip


def test_a_serving_gets_a_pod_on_its_gpu_and_then_nothing_more_is_written(operator: Running) -> None:
    cluster = operator.cluster
    cluster.apply(pool(), serving("chat"))
    cluster.kubectl("wait", "pod", "-l", "gpupack.dev/serving=chat", "--for=create", PATIENCE)
    cluster.kubectl("wait", "pod", "-l", "gpupack.dev/serving=chat", "--for=condition=PodScheduled", PATIENCE)
    until(lambda: condition(operator.status("msv", "chat"), "Progressing") == "True")

    (pod,) = cluster.get("pods", "-l", "gpupack.dev/serving=chat")["items"]
    assert pod["spec"]["nodeName"] == "node-a"
    assert pod["metadata"]["labels"]["gpupack.dev/gpu"] == GPU
    assert cluster.get("service", "chat")["spec"]["selector"]["gpupack.dev/serving"] == "chat"
    assert cluster.get("pdb", "chat")["spec"]["minAvailable"] == 0
    assert operator.status("gpool", "default")["gpusInUse"] == 1

    # Nothing moves any more (no kubelet is there to start the pod): ticks go on, writes do not.
    settled = _count_when_settled(operator)
    _pass_ticks(operator, QUIET_TICKS)
    assert sum(event.is_write for event in operator.requests()) == settled

    for kind in ("gpool/default", "msv/chat"):
        metadata = cluster.get(kind, "--show-managed-fields")["metadata"]
        assert "finalizers" not in metadata
        assert not any("kopf" in name for name in metadata.get("annotations", {}))
        managers = {each["manager"] for each in metadata["managedFields"]}
        assert managers == {"kubectl", "gpupack"}
    assert {event.code for event in operator.requests() if event.is_write} <= {200, 201}
    _decided_again_it_is_the_same(operator)


def _decided_again_it_is_the_same(operator: Running) -> None:
    """What the operator saw and decided is in its trace."""
    assert operator.metric("gpupack_trace_ticks_total") > QUIET_TICKS
    ticks = list(replay(read(operator.trace)))
    assert {each.weight for each in ticks} == {Weight.SAME}
    assert any(isinstance(action, StartReplica) for each in ticks for action in each.ticked.outcome.actions)


def _pass_ticks(operator: Running, count: int) -> None:
    begun = operator.metric("gpupack_tick_seconds_count")
    until(lambda: operator.metric("gpupack_tick_seconds_count") >= begun + count)


def _count_when_settled(operator: Running) -> int:
    """Writes so far, once two ticks in a row have brought none."""
    while True:
        writes = sum(event.is_write for event in operator.requests())
        _pass_ticks(operator, 2)
        if sum(event.is_write for event in operator.requests()) == writes:
            return writes


def test_a_status_that_was_wiped_is_rebuilt_and_restarts_nothing(operator: Running) -> None:
    cluster = operator.cluster
    cluster.apply(pool(), serving("chat"))
    cluster.kubectl("wait", "pod", "-l", "gpupack.dev/serving=chat", "--for=create", PATIENCE)
    until(lambda: bool(operator.status("msv", "chat").get("placements")))
    before = [pod["metadata"]["uid"] for pod in cluster.get("pods")["items"]]
    for kind in ("gpool/default", "msv/chat"):
        cluster.kubectl("patch", kind, "--subresource=status", "--type=merge", "-p", '{"status":null}')
    until(lambda: bool(operator.status("gpool", "default").get("plan", {}).get("placements")))
    until(lambda: bool(operator.status("msv", "chat").get("placements")))
    assert [pod["metadata"]["uid"] for pod in cluster.get("pods")["items"]] == before


def test_a_serving_that_cannot_be_carried_out_says_so_in_a_condition(operator: Running) -> None:
    operator.cluster.apply(pool(), serving("wrong", model={"name": "nobody/knows"}))
    until(lambda: condition(operator.status("msv", "wrong"), "Accepted") == "False")
    status = operator.status("msv", "wrong")
    said = next(each["message"] for each in status["conditions"] if each["type"] == "Accepted")
    assert "spec.model.name" in said
    operator.cluster.kubectl("delete", "msv", "wrong")


def test_a_serving_whose_pool_does_not_exist_is_told_so_and_taken_up_when_it_comes(operator: Running) -> None:
    cluster = operator.cluster
    cluster.apply(serving("early", poolName="default", mode="Advise"))
    cluster.kubectl("delete", "gpool", "default", "--ignore-not-found")
    until(lambda: condition(operator.status("msv", "early"), "Accepted") == "False")
    (said,) = {each["message"] for each in operator.status("msv", "early")["conditions"]}
    assert said == "There is no GpuPool 'default'. Create it, or name another in spec.poolName."
    cluster.apply(pool())
    until(lambda: condition(operator.status("msv", "early"), "Accepted") == "True")
    cluster.kubectl("delete", "msv", "early")


def test_deletion_waits_for_nobody_and_leaves_nothing(operator: Running) -> None:
    cluster = operator.cluster
    cluster.apply(pool(), serving("chat"))
    cluster.kubectl("wait", "pod", "-l", "gpupack.dev/serving=chat", "--for=create", PATIENCE)
    cluster.kubectl("delete", "msv", "chat", PATIENCE)
    _be_the_kubelet(cluster)
    until(lambda: not cluster.get("pods,resourceclaims,pdb")["items"])
    cluster.kubectl("delete", "gpool", "default", PATIENCE)
    cluster.apply(pool())
    until(lambda: operator.status("gpool", "default").get("gpus") == 1)
    cluster.kubectl("delete", "gpool", "default", PATIENCE)


def _be_the_kubelet(cluster: ControlPlane) -> None:
    """Pods that are being deleted end; no kubelet is there to say so.

    One that no node had yet is gone at once, so there may be none to wait for.
    """
    until(lambda: all("deletionTimestamp" in pod["metadata"] for pod in cluster.get("pods")["items"]))
    cluster.kubectl("delete", "pod", "--all", "--force", "--grace-period=0")


def test_an_api_server_that_comes_back_is_found_again(operator: Running) -> None:
    cluster = operator.cluster
    cluster.apply(pool())
    until(lambda: operator.status("gpool", "default").get("gpus") == 1)
    cluster.stop_apiserver()
    until(lambda: operator.metric("gpupack_mirror_age_seconds") > 0)
    cluster.start_apiserver()
    cluster.apply(serving("later"))
    cluster.kubectl("wait", "pod", "-l", "gpupack.dev/serving=later", "--for=create", PATIENCE)
    assert operator.process.poll() is None
    cluster.kubectl("delete", "msv", "later")
    _be_the_kubelet(cluster)
    cluster.kubectl("delete", "gpool", "default")


def test_sigterm_ends_it_with_success(operator: Running) -> None:
    operator.process.send_signal(signal.SIGTERM)
    assert operator.process.wait(timeout=PATIENCE_SECONDS) == 0


def test_without_a_cluster_it_says_so_in_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-c", "import sys; from gpupack.cli import main; sys.exit(main())", "operator",
            "--kubeconfig", str(tmp_path / "missing"),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT / "operator")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode not in (0, 2)
    assert "no way to the Kubernetes API" in done.stderr
    assert "Traceback" not in done.stderr
