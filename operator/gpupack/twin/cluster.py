"""A small cluster over the API server in memory: scheduler, kubelets, garbage collector, GPUs and fluid engines.

Pods get a node when their claim's GPU is free for it, load, serve, crash, drain and go as Kubernetes and vLLM would
have them, and faults are switched on and off by whoever drives it. Memory is what engines really hold, which nobody
asked for. Draws nothing: equal calls give equal clusters. Knows the names that a pod of an engine carries as plain
text, not who wrote them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gpupack.twin.api_server import ApiServer, Json, Key, rfc3339
from gpupack.twin.fluid import Flow, FluidEngine, Model, advance
from gpupack.twin.memory_system import ModelDims
from gpupack.twin.stepped import SteppedEngine, SteppedGpu

DRIVER = "gpu.nvidia.com"
SERVING_LABEL, IN_SERVICE_LABEL = "gpupack.dev/serving", "gpupack.dev/in-service"
_UUID = re.compile(r"'(GPU-[^']+)'")

BIND_SECONDS = 2.0
BACKOFF_SECONDS = 10.0
HELD_AT_MOST = 256.0
"""What is one too many is sent away."""
UNREADY_AFTER, EVICTED_AFTER = 20.0, 60.0
"""How long a node is away until its pods are not ready, and until they are taken away (both shorter than usual)."""
OWNED = ("pods", "resourceclaims", "services", "poddisruptionbudgets", "endpointslices")


@dataclass(slots=True, kw_only=True)
class Gpu:
    """One device. `foreign_bytes` is what others hold of its memory."""

    uuid: str
    node: str
    device: str
    product: str
    memory_bytes: int
    bandwidth: float
    interference: float
    present: bool = True
    taint: str | None = None
    foreign_bytes: int = 0
    dram_active: float = 0.0


@dataclass(slots=True, kw_only=True)
class Node:
    name: str
    cores: int
    alive: bool = True
    listed: bool = True
    died_at: float = 0.0


@dataclass(slots=True, kw_only=True)
class Pod:
    """A pod of an engine. `starts_at` is when its container starts (again), `ready_at` when it will have loaded."""

    key: Key
    uid: str
    serving: str
    claim: str
    engine: FluidEngine
    hundredths: int
    cores: int
    address: str
    created_at: float
    node: str = ""
    gpu: str = ""
    starts_at: float | None = None
    loaded_at: float | None = None
    ready: bool = False
    ready_since: float = 0.0
    was_ready: bool = False
    restarts: int = 0
    in_service: bool = True
    stop_at: float | None = None
    holds: int = 0
    said: str = ""


@dataclass(slots=True, kw_only=True)
class Faults:
    """What is wrong with pods, by serving (`namespace/name`)."""

    slow: set[str] = field(default_factory=set)
    never_ready: set[str] = field(default_factory=set)
    crash_loop: set[str] = field(default_factory=set)
    slow_death: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """What engines in steps need: dimensions by the model's name, and the GPUs by uuid."""

    dims: Mapping[str, ModelDims]
    gpus: Mapping[str, SteppedGpu]


class Cluster:
    """`models` by the name that a pod's arguments begin with; `load_seconds` is a start, `drain_seconds` an end.

    With `has_activator` requests to a serving that no engine serves wait: `kept_waiting` has how many, and since when.
    `asked_at` is when the last request came to each serving.

    With `steps` engines take the twin's steps, else they are rates.
    """

    def __init__(
        self,
        server: ApiServer,
        gpus: tuple[Gpu, ...],
        nodes: tuple[Node, ...],
        models: Mapping[str, Model],
        *,
        load_seconds: float,
        drain_seconds: float,
        steps: Steps | None = None,
    ) -> None:
        self.server = server
        self._steps = steps
        self.gpus = {gpu.uuid: gpu for gpu in gpus}
        self.nodes = {node.name: node for node in nodes}
        self.pods: dict[Key, Pod] = {}
        self.faults = Faults()
        self.flows: dict[str, Flow] = {}
        self.has_activator = False
        self.kept_waiting: dict[str, tuple[float, float]] = {}
        self.asked_at: dict[str, float] = {}
        self.refused_starts: list[tuple[str, str]] = []
        self._models = models
        self._load_seconds = load_seconds
        self._drain_seconds = drain_seconds
        self._seen = 0
        self._servings_seen = 0
        self._orphans = False
        self._addresses = 0
        self._generation = 0
        for name in self.nodes:
            self._list_node(name)
            self.publish(name)

    # Hardware that comes and goes.

    def publish(self, node: str) -> None:
        """The ResourceSlice of a node, with the devices that are there now."""
        self._generation += 1
        devices = [
            {
                "name": gpu.device,
                "attributes": {
                    "uuid": {"string": gpu.uuid}, "productName": {"string": gpu.product}, "type": {"string": "gpu"},
                },
                "capacity": {"memory": {"value": f"{gpu.memory_bytes >> 20}Mi"}},
                **({} if gpu.taint is None else {"taints": [{"key": gpu.taint, "value": "", "effect": "NoSchedule"}]}),
            }
            for gpu in self.gpus.values()
            if gpu.node == node and gpu.present
        ]  # fmt: skip
        pool = {"name": node, "generation": self._generation, "resourceSliceCount": 1}
        spec = {"driver": DRIVER, "nodeName": node, "pool": pool, "devices": devices}
        key = Key("resourceslices", "", f"{node}-{DRIVER}")
        if self.server.get(key) is None:
            self.server.create(key, {"spec": spec})
        else:
            self.server.edit(key, lambda item: {**item, "spec": spec})

    def set_gpu(self, uuid: str, *, present: bool) -> None:
        gpu = self.gpus[uuid]
        gpu.present = present
        if self.nodes[gpu.node].listed:
            self.publish(gpu.node)
        for pod in self.on(uuid):
            if not present:
                self._crash(pod)

    def set_taint(self, uuid: str, taint: str | None) -> None:
        gpu = self.gpus[uuid]
        gpu.taint = taint
        if self.nodes[gpu.node].listed:
            self.publish(gpu.node)

    def set_node(self, name: str, *, alive: bool) -> None:
        """A node that loses power, or has it again: then its engines begin anew."""
        node = self.nodes[name]
        if node.alive == alive:
            return
        node.alive, node.died_at = alive, self.server.now
        if node.listed:
            self.server.edit(Key("nodes", "", name), lambda item: {**item, "status": self._node_status(node)})
        for pod in self.pods.values():
            if pod.node == name and alive:
                self._crash(pod)

    def take_node(self, name: str) -> None:
        """A node that is deleted, with its slice and its pods."""
        node = self.nodes[name]
        if not node.listed:
            return
        node.listed = False
        for key in (Key("nodes", "", name), Key("resourceslices", "", f"{name}-{DRIVER}")):
            self.server.remove(key)
        for pod in [each for each in self.pods.values() if each.node == name]:
            self._gone(pod)

    def bring_node(self, name: str) -> None:
        node = self.nodes[name]
        if not node.listed:
            node.listed = True
            self._list_node(name)
            self.publish(name)

    def _list_node(self, name: str) -> None:
        self.server.create(Key("nodes", "", name), {"status": self._node_status(self.nodes[name])})

    def _node_status(self, node: Node) -> Json:
        return {
            "allocatable": {"cpu": str(node.cores)},
            "conditions": [{"type": "Ready", "status": "True" if node.alive else "Unknown"}],
        }

    # What is there.

    def on(self, uuid: str) -> list[Pod]:
        return [pod for pod in self.pods.values() if pod.gpu == uuid]

    def held(self, uuid: str) -> int:
        """Bytes that engines hold on a GPU, those that are stopping counted."""
        return sum(pod.holds for pod in self.on(uuid))

    def device_holder(self, node: str, device: str) -> Key | None:
        """The claim to which a device is allocated."""
        for key, claim in self.server.items("resourceclaims"):
            for each in _allocated(claim):
                if each["pool"] == node and each["device"] == device:
                    return key
        return None

    # Time.

    def advance(self, now: float, arriving: Mapping[str, float]) -> None:
        """Moves everything to `now`. `arriving` are requests since the last call, by serving."""
        seconds = now - self.server.now
        self.server.now = now
        self._notice()
        self._collect_garbage()
        for pod in list(self.pods.values()):
            self._live(pod, now)
        self._release_claims()
        self._serve(seconds, arriving)

    def crash(self, pod: Pod) -> None:
        """The engine of a pod dies and its container is started again."""
        self._crash(pod)

    def _notice(self) -> None:
        """What was written to pods since the last look."""
        for change in self.server.changes("pods", self._seen):
            metadata = change.item["metadata"]
            key = Key("pods", metadata["namespace"], metadata["name"])
            pod = self.pods.get(key)
            if change.kind == "DELETED":
                if pod is not None and pod.uid == metadata["uid"]:
                    del self.pods[key]
                continue
            if SERVING_LABEL not in metadata.get("labels", {}):
                continue
            if pod is None or pod.uid != metadata["uid"]:
                pod = self.pods[key] = self._pod(key, change.item)
            pod.in_service = metadata["labels"].get(IN_SERVICE_LABEL) == "true"
            if "deletionTimestamp" in metadata and pod.stop_at is None:
                slow = 4.0 if pod.serving in self.faults.slow_death else 1.0
                pod.stop_at = self.server.now + slow * self._drain_seconds
        self._seen = self.server.count("pods")

    def _pod(self, key: Key, item: Json) -> Pod:
        container = item["spec"]["containers"][0]
        arguments = container["args"]
        flags = dict(each.split("=", 1) for each in arguments if each.startswith("--") and "=" in each)
        self._addresses += 1
        serving = f"{key.namespace}/{item['metadata']['labels'][SERVING_LABEL]}"
        return Pod(
            key=key,
            uid=item["metadata"]["uid"],
            serving=serving,
            claim=item["spec"]["resourceClaims"][0]["resourceClaimName"],
            engine=self._engine(key.name, arguments[0], flags),
            hundredths=round(100 * float(flags["--gpu-memory-utilization"])),
            cores=int(container["resources"]["requests"]["cpu"]),
            address=f"10.77.{self._addresses >> 8}.{self._addresses & 255}",
            created_at=self.server.now,
        )

    def _engine(self, name: str, model: str, flags: Mapping[str, str]) -> FluidEngine:
        slots, kv_bytes = int(flags["--max-num-seqs"]), int(flags["--kv-cache-memory-bytes"])
        if self._steps is None:
            return FluidEngine(name=name, model=self._models[model], slots=slots, kv_bytes=kv_bytes)
        return SteppedEngine(
            name=name,
            model=self._models[model],
            slots=slots,
            kv_bytes=kv_bytes,
            dims=self._steps.dims[model],
            max_model_len=int(flags["--max-model-len"]),
            max_num_batched_tokens=int(flags["--max-num-batched-tokens"]),
        )

    def _collect_garbage(self) -> None:
        changes = self.server.changes("modelservings", self._servings_seen)
        self._servings_seen = self.server.count("modelservings")
        if not self._orphans and not any(change.kind == "DELETED" for change in changes):
            return
        # A child that is made just after its owner went is found by a second look.
        self._orphans = any(change.kind == "DELETED" for change in changes)
        alive = {item["metadata"]["uid"] for _, item in self.server.items("modelservings")}
        for resource in OWNED:
            for key, item in self.server.items(resource):
                owners = item["metadata"].get("ownerReferences", ())
                if owners and not any(owner["uid"] in alive for owner in owners):
                    self.server.end(key)
                    self._orphans = True

    def _live(self, pod: Pod, now: float) -> None:
        """One step of a pod's life."""
        if pod.key not in self.pods:
            return
        if pod.node:
            node = self.nodes[pod.node]
            if not node.alive:
                self._wait_for_node(pod, now - node.died_at)
                return
            if not node.listed:
                return
        if pod.stop_at is not None:
            pod.ready = False
            if now >= pod.stop_at:
                self._gone(pod)
            return
        if not pod.node:
            self._schedule(pod, now)
            return
        if pod.starts_at is not None and now >= pod.starts_at:
            self._start(pod, now)
        if pod.loaded_at is not None and now >= pod.loaded_at:
            self._end_of_load(pod, now)
        self._say(pod)

    def _wait_for_node(self, pod: Pod, away: float) -> None:
        if away >= UNREADY_AFTER and pod.ready:
            pod.ready = False
            self._say(pod)
        if away >= EVICTED_AFTER and pod.stop_at is None:
            self.server.end(pod.key)

    def _schedule(self, pod: Pod, now: float) -> None:
        if now - pod.created_at < BIND_SECONDS:
            return
        key = Key("resourceclaims", pod.key.namespace, pod.claim)
        claim = self.server.get(key)
        if claim is None or "deletionTimestamp" in claim["metadata"]:
            self._say(pod, "waiting for its claim")
            return
        uuid = _uuid_of(claim)
        gpu = self.gpus.get(uuid)
        if gpu is None or not gpu.present or not self.nodes[gpu.node].listed or not self.nodes[gpu.node].alive:
            self._say(pod, "no node has that GPU")
            return
        holder = self.device_holder(gpu.node, gpu.device)
        if holder not in (None, key) or (gpu.taint is not None and holder is None):
            self._say(pod, "the GPU is allocated to another claim")
            return
        used = sum(each.cores for each in self.pods.values() if each.node == gpu.node)
        if used + pod.cores > self.nodes[gpu.node].cores:
            self._say(pod, "not enough cpu")
            return
        reserved = [*claim.get("status", {}).get("reservedFor", ()), {"resource": "pods", "uid": pod.uid}]
        result = {"driver": DRIVER, "pool": gpu.node, "device": gpu.device, "request": "gpu"}
        status = {"allocation": {"devices": {"results": [result]}}, "reservedFor": reserved}
        self.server.edit(key, lambda item: {**item, "status": status})
        pod.node, pod.gpu = gpu.node, uuid
        pod.starts_at = now + 1.0
        self.server.edit(pod.key, lambda item: {**item, "spec": {**item["spec"], "nodeName": gpu.node}})
        self._say(pod)

    def _start(self, pod: Pod, now: float) -> None:
        """vLLM begins: it wants its share of the GPU free, and refuses to start otherwise."""
        gpu = self.gpus[pod.gpu]
        free = gpu.memory_bytes - self.held(pod.gpu) - gpu.foreign_bytes
        if not gpu.present:
            pod.restarts += 1
            pod.starts_at = now + BACKOFF_SECONDS
            return
        if free * 100 < pod.hundredths * gpu.memory_bytes:
            self.refused_starts.append((pod.key.name, pod.gpu))
            pod.restarts += 1
            pod.starts_at = now + BACKOFF_SECONDS
            return
        pod.starts_at = None
        model = pod.engine.model
        pod.holds = model.weight_bytes + model.overhead_bytes + pod.engine.kv_bytes
        pod.loaded_at = now + self._load_seconds * (5.0 if pod.serving in self.faults.slow else 1.0)

    def _end_of_load(self, pod: Pod, now: float) -> None:
        if pod.serving in self.faults.crash_loop:
            self._crash(pod)
        elif pod.serving not in self.faults.never_ready:
            pod.loaded_at = None
            pod.ready = pod.was_ready = True
            pod.ready_since = now

    def _crash(self, pod: Pod) -> None:
        if not pod.node or pod.stop_at is not None:
            return
        pod.engine.restart()
        pod.ready = False
        pod.holds = 0
        pod.loaded_at = None
        pod.restarts += 1
        pod.starts_at = self.server.now + BACKOFF_SECONDS

    def _gone(self, pod: Pod) -> None:
        self.pods.pop(pod.key, None)
        if self.server.get(pod.key) is not None:
            self.server.remove(pod.key)

    def _say(self, pod: Pod, waits: str = "") -> None:
        """Writes the pod's status where it is another one now."""
        says = f"{pod.node} {pod.ready} {pod.restarts} {waits}"
        if says == pod.said or self.server.get(pod.key) is None:
            return
        pod.said = says
        conditions = [
            {
                "type": "Ready",
                "status": "True" if pod.ready else "False",
                "lastTransitionTime": rfc3339(pod.ready_since if pod.ready else self.server.now),
            }
        ]
        if waits:
            conditions.append({"type": "PodScheduled", "status": "False", "message": waits})
        status = {
            "phase": "Running" if pod.node else "Pending",
            "conditions": conditions,
            "containerStatuses": [{"restartCount": pod.restarts, "state": {}}],
            **({"podIP": pod.address} if pod.node else {}),
        }
        self.server.edit(pod.key, lambda item: {**item, "status": status})

    def _release_claims(self) -> None:
        """Claims forget pods that are gone; one that nobody uses is free again, and goes if that was asked for."""
        uids = {pod.uid for pod in self.pods.values()}
        for key, claim in self.server.items("resourceclaims"):
            status = claim.get("status", {})
            reserved = status.get("reservedFor", ())
            left = [each for each in reserved if each["uid"] in uids or each.get("foreign")]
            if len(left) != len(reserved):
                kept = {**status, "reservedFor": left} if left else {}
                self.server.update(key, {**claim, "status": kept})
            if not left and "deletionTimestamp" in claim["metadata"]:
                self.server.remove(key)

    def _serve(self, seconds: float, arriving: Mapping[str, float]) -> None:
        open_to: dict[str, list[Pod]] = {}
        for pod in self.pods.values():
            if self._serves(pod) and pod.in_service:
                open_to.setdefault(pod.serving, []).append(pod)
        arriving = self._held_back(arriving, open_to)
        share = {serving: arriving.get(serving, 0.0) / len(pods) for serving, pods in open_to.items()}
        by_gpu: dict[str, list[tuple[FluidEngine, Flow, float]]] = {}
        for pod in self.pods.values():
            flow = self.flows.get(pod.serving)
            if flow is None or not self._serves(pod):
                continue
            pods = open_to.get(pod.serving, ())
            pod.engine.closed = flow.clients > 0 and pod.in_service
            if pod.engine.closed:  # they go to the engine with the fewest
                each, more = divmod(flow.clients, len(pods))
                flow = replace(flow, clients=each + (pods.index(pod) < more))
            by_gpu.setdefault(pod.gpu, []).append((pod.engine, flow, share[pod.serving] if pod.in_service else 0.0))
        for uuid, gpu in self.gpus.items():
            engines = by_gpu.get(uuid, ())
            if self._steps is not None:
                stepped = [(one, flow, share) for one, flow, share in engines if isinstance(one, SteppedEngine)]
                gpu.dram_active = self._steps.gpus[uuid].advance(stepped, self.server.now)
                continue
            gpu.dram_active = advance(engines, seconds, gpu.bandwidth, gpu.interference) if engines else 0.0

    def _held_back(self, arriving: Mapping[str, float], open_to: Mapping[str, list[Pod]]) -> dict[str, float]:
        """What reaches engines now: what comes, and what was held for those that are there again."""
        reaching = dict(arriving)
        for serving, flow in self.flows.items():
            waiting, since = self.kept_waiting.pop(serving, (0.0, self.server.now))
            came = arriving.get(serving, 0.0)
            if came or flow.clients:
                self.asked_at[serving] = self.server.now
            if serving in open_to:
                reaching[serving] = came + (0.0 if flow.clients else waiting)
            elif self.has_activator and (count := float(flow.clients) or waiting + came):
                self.kept_waiting[serving] = min(count, HELD_AT_MOST), since
        return reaching

    def _serves(self, pod: Pod) -> bool:
        return pod.ready and pod.stop_at is None and bool(pod.node) and self.nodes[pod.node].alive


def _allocated(claim: Mapping[str, Any]) -> list[Json]:
    results: list[Json] = claim.get("status", {}).get("allocation", {}).get("devices", {}).get("results", [])
    return results


def _uuid_of(claim: Mapping[str, Any]) -> str:
    selectors = claim["spec"]["devices"]["requests"][0]["exactly"]["selectors"]
    found = _UUID.search(selectors[0]["cel"]["expression"])
    return "" if found is None else found[1]
