"""The virtual node is a node to the real control plane: pods are bound, run, are probed, restarted and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio

from gpupack import catalog
from gpupack.kube.api import Api, configuration_of
from gpupack.node.addresses import Addresses
from gpupack.node.binaries import Binaries
from gpupack.node.controlplane import ControlPlane
from gpupack.node.kubelet import Kubelet
from gpupack.node.pod_life import Host
from gpupack.node.program import Exit, Program, Sandbox
from gpupack.node.virtual_node import Machine, VirtualNode, cards
from gpupack.units import GIB, Bytes

pytestmark = [pytest.mark.controlplane, pytest.mark.asyncio(loop_scope="module")]

PATIENCE_SECONDS = 90.0
NODE = "virtual-1"


class Script:
    """A program that does as its command line says: `fail 3 because`, `slow-stop 0.5`, `stubborn`, `wait`."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.well = True
        self.killed = False
        self._asked = asyncio.Event()

    async def run(self) -> Exit:
        match list(self.sandbox.words):
            case ["fail", code, message]:
                return Exit(code=int(code), message=message)
            case ["slow-stop", seconds]:
                await self._asked.wait()
                await asyncio.sleep(float(seconds))
                return Exit(code=0)
            case ["stubborn"]:
                try:
                    await asyncio.Event().wait()
                finally:
                    self.killed = True
        await self._asked.wait()
        return Exit(code=143)

    def terminate(self) -> None:
        self._asked.set()

    def answers(self, port: int | None, path: str | None) -> bool:
        return self.well and port == 8000 and path == "/health"


class Bench:
    """A control plane with one virtual node of two GPUs, and the programs that it has launched, by pod."""

    def __init__(self, cluster: ControlPlane, api: Api) -> None:
        self.cluster = cluster
        self.api = api
        self.launched: dict[str, list[Script]] = {}

    def launch(self, sandbox: Sandbox) -> Program:
        script = Script(sandbox)
        self.launched.setdefault(sandbox.pod, []).append(script)
        return script

    async def kubectl(self, *words: str, stdin: str | None = None) -> str:
        return await asyncio.to_thread(self.cluster.kubectl, *words, stdin=stdin)

    async def apply(self, *bodies: dict[str, Any]) -> None:
        for body in bodies:
            await self.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(body))

    async def pod(self, name: str) -> dict[str, Any]:
        return await self.api.get(f"/api/v1/namespaces/default/pods/{name}")

    async def until(self, name: str, true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The pod as soon as it is so; fails with what it is instead."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not true(pod := await self.pod(name)):
            assert time.monotonic() < deadline, json.dumps(pod["status"], indent=1)
            await asyncio.sleep(0.05)
        return pod

    async def until_gone(self, name: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        listed = "/api/v1/namespaces/default/pods"
        while any(item["metadata"]["name"] == name for item in (await self.api.get(listed))["items"]):
            assert time.monotonic() < deadline, await self.pod(name)
            await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def cluster(programs: Binaries) -> Iterator[ControlPlane]:
    with ControlPlane(programs) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(cluster: ControlPlane) -> AsyncIterator[Bench]:
    async with Api(await configuration_of(str(cluster.kubeconfig)), manager="gpupack-twin") as api:
        bench = Bench(cluster, api)
        addresses = Addresses()
        node = VirtualNode(
            api, NODE, addresses.node, Machine(cpu_cores=32, memory=Bytes(256 * GIB)),
            cards(NODE, catalog.gpu("H100-80GB"), 2),
        )  # fmt: skip
        host = Host(
            api=api, address=addresses.node, addresses=addresses, launch=bench.launch, first_backoff_seconds=0.2
        )
        await node.join()
        tasks = [asyncio.create_task(Kubelet(host, NODE).run()), asyncio.create_task(node.run())]
        try:
            yield bench
        finally:
            for task in tasks:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks)


def script(name: str, *words: str, **container: Any) -> dict[str, Any]:
    spec = {"name": "main", "image": "script", "args": list(words), **container}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"containers": [spec], "terminationGracePeriodSeconds": 20},
    }


def ready(pod: dict[str, Any]) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def state(pod: dict[str, Any]) -> dict[str, Any]:
    statuses = pod["status"].get("containerStatuses") or [{"state": {}, "restartCount": 0, "lastState": {}}]
    first: dict[str, Any] = statuses[0]
    return first


async def test_the_node_becomes_ready_and_shows_its_gpus(bench: Bench) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (node := await bench.api.get(f"/api/v1/nodes/{NODE}"))["spec"].get("taints"):
        assert time.monotonic() < deadline, node
        await asyncio.sleep(0.1)
    assert any(each["type"] == "Ready" and each["status"] == "True" for each in node["status"]["conditions"])
    slices = await bench.api.get("/apis/resource.k8s.io/v1/resourceslices", limit=10)
    devices = [device for piece in slices["items"] for device in piece["spec"]["devices"]]
    assert [device["name"] for device in devices] == ["gpu-0", "gpu-1"]
    assert devices[0]["attributes"]["productName"]["string"] == "NVIDIA H100 80GB HBM3"
    assert devices[0]["attributes"]["uuid"] != devices[1]["attributes"]["uuid"]


async def test_a_pod_without_probes_is_ready_as_soon_as_it_runs_and_has_an_address(bench: Bench) -> None:
    await bench.apply(script("plain", "wait"))
    pod = await bench.until("plain", ready)
    assert pod["status"]["podIP"].startswith("10.77.")
    assert pod["status"]["phase"] == "Running"
    await bench.kubectl("delete", "pod", "plain", "--wait=true")
    await bench.until_gone("plain")


async def test_a_pod_is_ready_when_its_probe_says_so_and_not_when_it_no_longer_does(bench: Bench) -> None:
    health = {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 1, "failureThreshold": 1}
    ports = [{"name": "http", "containerPort": 8000}]
    await bench.apply(script("probed", "wait", ports=ports, startupProbe=health, readinessProbe=health))
    await bench.until("probed", ready)
    bench.launched["probed"][0].well = False
    await bench.until("probed", lambda pod: not ready(pod))
    await bench.kubectl("delete", "pod", "probed", "--force")
    await bench.until_gone("probed")


async def test_a_claim_gives_its_device_and_its_sharing_to_the_pods_that_name_it(bench: Bench) -> None:
    uuid = cards(NODE, catalog.gpu("H100-80GB"), 2)[1].uuid
    claim = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": "second", "namespace": "default"},
        "spec": {
            "devices": {
                "requests": [
                    {
                        "name": "gpu",
                        "exactly": {
                            "deviceClassName": "gpu.nvidia.com",
                            "selectors": [
                                {"cel": {"expression": f"device.attributes['gpu.nvidia.com'].uuid == '{uuid}'"}}
                            ],
                        },
                    }
                ],
                "config": [
                    {"opaque": {"driver": "gpu.nvidia.com", "parameters": {"sharing": {"strategy": "MPS"}}}}
                ],
            }
        },
    }  # fmt: skip
    pods = [script(name, "wait") for name in ("tenant-a", "tenant-b")]
    for pod in pods:
        pod["spec"]["resourceClaims"] = [{"name": "gpu", "resourceClaimName": "second"}]
        pod["spec"]["containers"][0]["resources"] = {"claims": [{"name": "gpu"}]}
    await bench.apply(claim, *pods)
    for name in ("tenant-a", "tenant-b"):
        await bench.until(name, ready)
        (device,) = bench.launched[name][0].sandbox.devices
        assert (device.pool, device.name, device.strategy) == (NODE, "gpu-1", "MPS")
    await bench.kubectl("delete", "pod", "tenant-a", "tenant-b", "--wait=true")


async def test_a_program_that_fails_is_restarted_with_back_off_and_says_why(bench: Bench) -> None:
    pod = script("failing", "fail", "3", "no such model", terminationMessagePolicy="FallbackToLogsOnError")
    await bench.apply(pod)
    seen = await bench.until("failing", lambda pod: state(pod)["restartCount"] >= 2)
    last = seen["status"]["containerStatuses"][0]["lastState"]["terminated"]
    assert (last["exitCode"], last["message"]) == (3, "no such model")
    seen = await bench.until("failing", lambda pod: "waiting" in state(pod)["state"])
    assert state(seen)["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    await bench.kubectl("delete", "pod", "failing", "--wait=true")
    await bench.until_gone("failing")


async def test_deletion_waits_for_the_program_to_end_by_itself(bench: Bench) -> None:
    await bench.apply(script("draining", "slow-stop", "0.6"))
    await bench.until("draining", ready)
    before = time.monotonic()
    await bench.kubectl("delete", "pod", "draining", "--wait=true")
    assert time.monotonic() - before >= 0.6


async def test_a_program_that_does_not_end_is_killed_after_its_grace_period(bench: Bench) -> None:
    await bench.apply(script("stubborn", "stubborn"))
    await bench.until("stubborn", ready)
    await bench.kubectl("delete", "pod", "stubborn", "--grace-period=1", "--wait=true")
    assert bench.launched["stubborn"][0].killed


async def test_a_pod_that_vanishes_is_killed_at_once(bench: Bench) -> None:
    await bench.apply(script("forced", "stubborn"))
    await bench.until("forced", ready)
    await bench.kubectl("delete", "pod", "forced", "--force", "--grace-period=0")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not bench.launched["forced"][0].killed:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_pods_survive_an_api_server_that_restarts_and_deletions_missed_meanwhile_are_made_good(
    bench: Bench,
) -> None:
    await bench.apply(script("survivor", "wait"))
    await bench.until("survivor", ready)
    await asyncio.to_thread(bench.cluster.stop_apiserver)
    await asyncio.to_thread(bench.cluster.start_apiserver)
    await bench.kubectl("delete", "pod", "survivor", "--wait=true")
    await bench.until_gone("survivor")
    assert len(bench.launched["survivor"]) == 1
