"""One pod over its life on the virtual node, from being bound to being gone from the API.

The deletion protocol is a kubelet's: on `deletionTimestamp` the preStop hooks, SIGTERM, then SIGKILL when the latest
grace period has passed; the terminated statuses are written, and the object is deleted with grace 0 and its uid as a
precondition. A pod that vanishes from the API is killed at once. Everything that the API refuses to answer is asked
again, so the API server may restart at any line.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from gpupack.errors import Unavailable
from gpupack.kube.api import Api, ApiError, Conflict, NotFound
from gpupack.kube.times import rfc3339
from gpupack.node.addresses import Addresses
from gpupack.node.container_life import FIRST_BACKOFF_SECONDS, ContainerLife
from gpupack.node.device_plugin import DevicePlugin
from gpupack.node.pods import Container, Pod
from gpupack.node.program import Device, Launch, Program, Sandbox
from gpupack.units import Seconds

log = logging.getLogger(__name__)

AGAIN_SECONDS = 0.5
CLAIMS = "/apis/resource.k8s.io/v1/namespaces/{}/resourceclaims/{}"

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What all pods of a node share. `address` is the node's own; `plugin` gives out GPUs where no claim does."""

    api: Api
    address: str
    addresses: Addresses
    launch: Launch
    first_backoff_seconds: float = FIRST_BACKOFF_SECONDS
    plugin: DevicePlugin | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a pod waits for before its containers start; environments and files by container."""

    environs: dict[str, dict[str, str]]
    files: dict[str, dict[str, bytes]]
    devices: tuple[Device, ...]


class PodLife:
    def __init__(self, pod: Pod, host: Host) -> None:
        self._pod = pod
        self._host = host
        self._path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}"
        self._began_at = rfc3339(Seconds(time.time()))
        self._address = ""
        self._containers: list[ContainerLife] = []
        self._waiting_for = ""
        self._seen = asyncio.Event()
        self._dirty = asyncio.Event()
        self._pen = asyncio.Lock()
        self._written: dict[str, Any] = {}
        self._transitions: dict[str, tuple[str, str]] = {}

    def update(self, pod: Pod) -> None:
        """The pod as the API has it now; the uid is the same."""
        if pod != self._pod:
            self._pod = pod
            self._dirty.set()  # a readiness gate may have been met
            self._seen.set()

    async def run(self) -> None:
        """Returns when the API has lost the pod. Cancelling it is how a pod that vanished is killed."""
        self._address = self._host.addresses.take(self._pod.address)
        try:
            async with asyncio.TaskGroup() as group:
                writing = group.create_task(self._keep_written())
                await self._live(group)
                writing.cancel()
        finally:
            self._host.addresses.give_back(self._address)
            if self._host.plugin is not None:
                self._host.plugin.give_back(self._pod.uid)

    async def _live(self, group: asyncio.TaskGroup) -> None:
        preparing = group.create_task(self._prepare())
        await self._first_of(preparing)
        if preparing.done():
            self._containers = [self._container(spec, preparing.result()) for spec in self._pod.containers]
            runs = [group.create_task(each.run()) for each in self._containers]
            self._dirty.set()
            await self._first_of(*runs)
            if self._pod.grace_seconds is not None:
                await self._stop(runs)
        preparing.cancel()
        await self._put()
        while self._pod.grace_seconds is None:
            await self._look_or(())
        await self._remove()

    async def _first_of(self, *tasks: asyncio.Task[Any]) -> None:
        """Until all tasks are done or somebody asks for the pod's end."""
        while self._pod.grace_seconds is None and (left := [task for task in tasks if not task.done()]):
            await self._look_or(left)

    async def _look_or(self, tasks: Iterable[asyncio.Task[Any]], seconds: float | None = None) -> None:
        """Until the pod is seen changed, one of the tasks is done, or the time has passed."""
        self._seen.clear()
        seen = asyncio.ensure_future(self._seen.wait())
        try:
            await asyncio.wait({seen, *tasks}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            seen.cancel()

    async def _stop(self, runs: list[asyncio.Task[None]]) -> None:
        """preStop, SIGTERM, SIGKILL. The grace period may be cut short while it passes."""
        began = time.monotonic()
        stops = [asyncio.ensure_future(self._stop_one(each)) for each in self._containers]
        try:
            while left := [run for run in runs if not run.done()]:
                seconds = began + (self._pod.grace_seconds or 0.0) - time.monotonic()
                if seconds <= 0.0:
                    break
                await self._look_or(left, seconds)
        finally:
            for stop in stops:
                stop.cancel()
        for each in self._containers:
            each.terminate()
            each.kill("the grace period has passed")
        await asyncio.wait(runs)

    @staticmethod
    async def _stop_one(container: ContainerLife) -> None:
        await asyncio.sleep(container.spec.stop_delay_seconds)
        container.terminate()

    # What a pod needs before its containers start

    async def _prepare(self) -> Prepared:
        """Each container's environment and files, and the pod's devices."""
        devices: list[Device] = []
        for name in self._pod.claims:
            path = CLAIMS.format(self._pod.namespace, name)
            while (found := _allocated(await self._until_there(path, f"ResourceClaim {name}"))) is None:
                self._wait_for(f"ResourceClaim {name} is not allocated")
                await asyncio.sleep(AGAIN_SECONDS)
            devices += found
        if self._host.plugin is not None:
            devices += self._host.plugin.take(self._pod)
        environs = {spec.name: await self._environ(spec) for spec in self._pod.containers}
        files = {spec.name: await self._files(spec) for spec in self._pod.containers}
        self._wait_for("")
        return Prepared(environs=environs, files=files, devices=tuple(devices))

    async def _files(self, spec: Container) -> dict[str, bytes]:
        files: dict[str, bytes] = {}
        for mount, name in spec.secrets:
            secret = await self._until_there(
                f"/api/v1/namespaces/{self._pod.namespace}/secrets/{name}", f"secret {name}"
            )
            for key, data in secret.get("data", {}).items():
                files[f"{mount}/{key}"] = base64.b64decode(data)
        return files

    async def _environ(self, spec: Container) -> dict[str, str]:
        values: dict[str, str] = {}
        for variable in spec.environ:
            if variable.secret is None:
                values[variable.name] = variable.value
                continue
            path = f"/api/v1/namespaces/{self._pod.namespace}/secrets/{variable.secret.name}"
            secret = await self._until_there(path, f'secret "{variable.secret.name}"')
            values[variable.name] = base64.b64decode(secret.get("data", {}).get(variable.secret.key, "")).decode()
        return values

    async def _until_there(self, path: str, what: str) -> dict[str, Any]:
        while True:
            try:
                return await self._host.api.get(path)
            except Unavailable as problem:
                self._wait_for(f"{what} not found" if isinstance(problem, NotFound) else f"{what}: {problem}")
            await asyncio.sleep(AGAIN_SECONDS)

    def _wait_for(self, what: str) -> None:
        if what != self._waiting_for:
            self._waiting_for = what
            self._dirty.set()

    def _container(self, spec: Container, prepared: Prepared) -> ContainerLife:
        environ = prepared.environs[spec.name]
        sandbox = Sandbox(
            namespace=self._pod.namespace,
            pod=self._pod.name,
            uid=self._pod.uid,
            address=self._address,
            labels=self._pod.labels,
            devices=prepared.devices,
            image=spec.image,
            words=spec.command_line(environ),
            environ=environ,
            files=prepared.files[spec.name],
            cores=spec.cores,
        )

        def launch() -> Program:
            return self._host.launch(sandbox)

        return ContainerLife(
            spec,
            launch,
            self._dirty.set,
            restart=self._pod.restart,
            before=next((each for each in self._pod.before if each.name == spec.name), None),
            first_backoff_seconds=self._host.first_backoff_seconds,
        )

    # What the API is told

    def _status(self) -> dict[str, Any]:
        lives = self._containers
        running = bool(lives) and not all(each.ended for each in lives)
        ready = bool(lives) and all(each.ready for each in lives)
        gated = all(gate in self._pod.gates_met for gate in self._pod.readiness_gates)
        if not lives:
            phase = "Pending"
        elif running:
            phase = "Running"
        else:
            phase = "Succeeded" if all(each.exit and each.exit.code == 0 for each in lives) else "Failed"
        conditions = [
            self._condition("PodReadyToStartContainers", bool(lives)),
            self._condition("Initialized", True),
            self._condition("ContainersReady", ready, "ContainersNotReady"),
            self._condition("Ready", ready and gated, "ReadinessGatesNotReady" if ready else "ContainersNotReady"),
        ]
        status: dict[str, Any] = {
            "phase": phase,
            "conditions": conditions,
            "hostIP": self._host.address,
            "hostIPs": [{"ip": self._host.address}],
            "startTime": self._began_at,
            "podIP": self._address,
            "podIPs": [{"ip": self._address}],
            "containerStatuses": [each.status() for each in lives] or self._creating(),
        }
        return status

    def _creating(self) -> list[dict[str, Any]]:
        # A kubelet tells a variable's missing Secret so; a volume's only in an event.
        is_variable = self._waiting_for.startswith('secret "')
        waiting = {"reason": "CreateContainerConfigError" if is_variable else "ContainerCreating"}
        if self._waiting_for:
            waiting["message"] = self._waiting_for
        return [
            {
                "name": spec.name, "image": spec.image, "imageID": "", "containerID": "", "restartCount": 0,
                "started": False, "ready": False, "state": {"waiting": waiting}, "lastState": {},
            }
            for spec in self._pod.containers
        ]  # fmt: skip

    def _condition(self, kind: str, true: bool, reason: str = "") -> dict[str, Any]:
        truth = "True" if true else "False"
        before, since = self._transitions.get(kind, ("", ""))
        if before != truth:
            since = rfc3339(Seconds(time.time()))
            self._transitions[kind] = (truth, since)
        condition = {"type": kind, "status": truth, "lastTransitionTime": since}
        return condition if true or not reason else {**condition, "reason": reason}

    async def _keep_written(self) -> None:
        self._dirty.set()
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            await self._put()

    async def _put(self) -> None:
        async with self._pen:
            status = self._status()
            if status == self._written:
                return
            body = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": self._pod.name, "namespace": self._pod.namespace, "uid": self._pod.uid},
                "status": status,
            }
            await self._tell(lambda: self._host.api.apply(f"{self._path}/status", body))
            self._written = status

    async def _remove(self) -> None:
        await self._tell(lambda: self._host.api.delete(self._path, uid=self._pod.uid, grace_seconds=0))

    async def _tell(self, ask: Callable[[], Awaitable[Answer]]) -> None:
        """Until the API server has taken it. A pod that is gone, or replaced by one of its name, needs nothing more."""
        while True:
            try:
                await ask()
            except (NotFound, Conflict):
                return
            except Unavailable as problem:
                if isinstance(problem, ApiError) and 400 <= problem.status < 500 and problem.status != 429:
                    log.error("%s: the API server will not take it: %s", self._pod.key, problem)
                    return
                await asyncio.sleep(AGAIN_SECONDS)
            else:
                return


def _allocated(claim: dict[str, Any]) -> list[Device] | None:
    """The devices of a ResourceClaim with the sharing that its opaque configuration asks for; None if it has none."""
    allocation = claim.get("status", {}).get("allocation")
    if not allocation:
        return None
    devices = allocation.get("devices", {})
    strategies = {
        each["opaque"]["driver"]: each["opaque"].get("parameters", {}).get("sharing", {}).get("strategy", "")
        for each in devices.get("config") or ()
        if "opaque" in each
    }
    return [
        Device(
            driver=each["driver"], pool=each["pool"], name=each["device"], strategy=strategies.get(each["driver"], "")
        )
        for each in devices.get("results") or ()
    ]
