"""The control plane is the real one, is there in seconds, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpupack.errors import Unavailable
from gpupack.node.binaries import Binaries
from gpupack.node.controlplane import ADMIN, ControlPlane, KubectlError, end_of_lines, free_ports

pytestmark = pytest.mark.controlplane

NODE = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "gpu-node"}}
NODE_IS_READY = """{"status": {
    "conditions": [{"type": "Ready", "status": "True", "reason": "Hand", "message": "written by a test"}],
    "allocatable": {"cpu": "8", "memory": "64Gi", "pods": "100"},
    "capacity": {"cpu": "8", "memory": "64Gi", "pods": "100"}}}"""
GPUS = """
apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: gpu.nvidia.com}
spec:
  selectors: [{cel: {expression: "device.driver == 'gpu.nvidia.com'"}}]
---
apiVersion: resource.k8s.io/v1
kind: ResourceSlice
metadata: {name: gpu-node-gpus}
spec:
  driver: gpu.nvidia.com
  nodeName: gpu-node
  pool: {name: gpu-node, generation: 1, resourceSliceCount: 1}
  devices:
  - {name: gpu-0, attributes: {uuid: {string: GPU-0000}}}
  - {name: gpu-1, attributes: {uuid: {string: GPU-0001}}}
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaim
metadata: {name: second-gpu, namespace: default}
spec:
  devices:
    requests:
    - name: gpu
      exactly:
        deviceClassName: gpu.nvidia.com
        selectors:
        - cel: {expression: "device.attributes['gpu.nvidia.com'].?uuid.orValue('') == 'GPU-0001'"}
"""
POD = """
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: default}
spec:
  resourceClaims: [{name: gpu, resourceClaimName: second-gpu}]
  containers:
  - {name: engine, image: none, resources: {claims: [{name: gpu}]}}
"""
OWNER = """
import sys, time
from pathlib import Path
from gpupack.node.binaries import Binaries
from gpupack.node.controlplane import ControlPlane
names = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
with ControlPlane(Binaries(paths={name: Path(path) for name, path in zip(names, sys.argv[1:])})) as cluster:
    print(cluster.folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def cluster(programs: Binaries) -> Iterator[ControlPlane]:
    # No kubelet reports on the node of these tests; it must not be given up for that.
    patient = ("--node-monitor-grace-period=1h", "--node-startup-grace-period=1h")
    with ControlPlane(programs, users=["reader"], audit=True, controller_manager_arguments=patient) as cluster:
        yield cluster


def eventually(true: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)
    return true()


def processes_naming(folder: str) -> list[str]:
    """Command lines that name the folder; every program of a control plane is told of it."""
    every = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in every.splitlines() if folder in line]


def test_objects_are_created_read_changed_and_deleted(cluster: ControlPlane) -> None:
    cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "noted"}, "data": {"a": "1"}})
    assert cluster.get("configmap", "noted")["data"] == {"a": "1"}
    cluster.kubectl("patch", "configmap", "noted", "--patch", '{"data": {"a": "2"}}')
    assert cluster.get("configmap", "noted")["data"] == {"a": "2"}
    cluster.kubectl("delete", "configmap", "noted")
    with pytest.raises(KubectlError, match="NotFound"):
        cluster.get("configmap", "noted")


def test_server_and_client_know_their_version(cluster: ControlPlane) -> None:
    assert cluster.kubectl("version").count("v1.37.1") == 2


def test_the_scheduler_puts_two_pods_on_the_gpu_of_the_claim_that_they_share(cluster: ControlPlane) -> None:
    cluster.apply(NODE, GPUS)
    cluster.kubectl("patch", "node", "gpu-node", "--subresource=status", "--patch", NODE_IS_READY)
    cluster.apply(POD % "first", POD % "second")
    cluster.kubectl("wait", "--for=condition=PodScheduled", "pod/first", "pod/second", "--timeout=60s")

    pods = cluster.get("pods")["items"]
    claim = cluster.get("resourceclaim", "second-gpu")["status"]
    assert [pod["spec"]["nodeName"] for pod in pods] == ["gpu-node", "gpu-node"]
    assert [result["device"] for result in claim["allocation"]["devices"]["results"]] == ["gpu-1"]
    assert {holder["name"] for holder in claim["reservedFor"]} == {"first", "second"}


def test_a_user_may_only_what_rbac_gives(cluster: ControlPlane) -> None:
    with pytest.raises(KubectlError, match="cannot list resource"):
        cluster.kubectl("get", "secrets", user="reader")
    cluster.kubectl("create", "clusterrolebinding", "reader", "--clusterrole=view", "--user=reader")
    assert eventually(lambda: cluster.kubectl("auth", "can-i", "list", "pods", user="reader").strip() == "yes")


def test_a_service_account_has_a_kubeconfig_too(cluster: ControlPlane) -> None:
    cluster.kubectl("create", "serviceaccount", "operator")
    said = cluster.kubectl("auth", "whoami", user="system:serviceaccount:default:operator")
    assert "system:serviceaccounts:default" in said


def test_the_audit_log_tells_who_wrote_what(cluster: ControlPlane) -> None:
    cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "audited"}})

    def writes() -> list[tuple[str, str, str]]:
        events = (event for event in cluster.audit_events() if event.is_write and event.name == "audited")
        return [(event.user, event.verb, event.resource) for event in events]

    assert eventually(lambda: writes() == [(ADMIN, "patch", "configmaps")])


def test_what_was_stored_is_there_after_the_api_server_was_away(cluster: ControlPlane) -> None:
    cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kept"}})
    cluster.stop_apiserver()
    with pytest.raises(KubectlError):
        cluster.get("configmap", "kept")
    cluster.start_apiserver()
    assert cluster.get("configmap", "kept")["metadata"]["name"] == "kept"


def test_a_port_that_another_program_took_is_no_reason_to_fail(programs: Binaries) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        offers = [[*free_ports(2), taken.getsockname()[1]], [taken.getsockname()[1], *free_ports(2)]]

        def ports(count: int) -> list[int]:
            return offers.pop() if offers else free_ports(count)

        with ControlPlane(programs, find_ports=ports) as cluster:
            assert "default" in cluster.kubectl("get", "namespaces")
    assert offers == []


def test_a_program_that_will_not_start_is_told_with_its_last_words(programs: Binaries) -> None:
    with (
        pytest.raises(Unavailable, match=r"kube-apiserver ended with exit status 1:[^$]*unknown flag: --nonsense"),
        ControlPlane(programs, apiserver_arguments=["--nonsense"]),
    ):
        pass


def test_nothing_is_left_when_the_block_ends(programs: Binaries) -> None:
    with ControlPlane(programs) as cluster:
        folder = cluster.folder
        assert len(processes_naming(str(folder))) == 5  # four programs and their keeper
    assert processes_naming(str(folder)) == []
    assert not folder.exists()


def test_nothing_is_left_when_the_owner_is_killed(programs: Binaries) -> None:
    names = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", OWNER, *(str(programs[name]) for name in names)]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        folder = owner.stdout.readline().strip()
        alive = processes_naming(folder)
        owner.send_signal(signal.SIGKILL)
    assert len(alive) == 5
    assert eventually(lambda: processes_naming(folder) == [] and not Path(folder).exists())


@pytest.mark.parametrize(
    ("text", "end"), [("", 0), ("half", 0), ("a\n", 2), ("a\nbc\nhalf", 5), ("a\n" + "x" * 200_000, 2)]
)
def test_a_log_ends_with_its_last_whole_line(tmp_path: Path, text: str, end: int) -> None:
    path = tmp_path / "log"
    path.write_text(text)
    assert end_of_lines(path) == end
