"""vLLM pods that gpupack did not start, as a serving's `observe.selector` finds them.

A pod becomes a slim record once, when it changes. Where its GPU is not told by a claim, the kind of GPU is that of its
node: by ResourceSlices, else by the label that GPU feature discovery writes. Knows pods, not what their engines say.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gpupack.facts.engine_flags import EngineFlags, flags_of, is_vllm
from gpupack.facts.gpu import GpuKind
from gpupack.facts.running import RunningEngine
from gpupack.facts.serving import ServingKey
from gpupack.kube import labels
from gpupack.kube.node_resource import GpuByProduct, NodeRecord, PlacedDevice, kind_on
from gpupack.kube.selector import Selector

DEFAULT_PORT = 8000
PORT_NAMES = ("http", "metrics", "api", "vllm", "web")
"""Names under which charts publish a server's port, the likeliest first."""

Device = tuple[str, str]
"""A DRA pool and the device's name in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """`spec.observe`. `port` None: the pod says it."""

    selector: Selector
    port: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePod:
    """A pod that is not ours and whose container runs vLLM, or that has no such container (`flags` None).

    `ports` are (name, number). `claims` are the names of its ResourceClaims, `waits` why it does not run.
    """

    namespace: str
    name: str
    identity: str
    node: str
    ip: str | None
    marks: tuple[tuple[str, str], ...]
    flags: EngineFlags | None
    ports: tuple[tuple[str, int], ...]
    claims: tuple[str, ...]
    waits: str | None


def engine_pod_of(pod: Mapping[str, Any]) -> EnginePod | None:
    """None for ours, for pods without vLLM, and for those that have ended or are asked to."""
    metadata, spec, status = pod["metadata"], pod["spec"], pod.get("status", {})
    marks = metadata.get("labels", {})
    if marks.get(labels.MANAGER) == labels.MANAGED_BY or "deletionTimestamp" in metadata:
        return None
    container = next((each for each in spec["containers"] if is_vllm(each.get("image", ""), _words(each))), None)
    if container is None or status.get("phase") in ("Succeeded", "Failed"):
        return None
    made = {each["name"]: each.get("resourceClaimName") for each in status.get("resourceClaimStatuses", ())}
    named = (each.get("resourceClaimName") or made.get(each["name"]) for each in spec.get("resourceClaims", ()))
    restarts = sum(each.get("restartCount", 0) for each in status.get("containerStatuses", ()))
    return EnginePod(
        namespace=sys.intern(metadata["namespace"]),
        name=metadata["name"],
        identity=f"{metadata['uid']}/{restarts}",
        node=sys.intern(spec.get("nodeName", "")),
        ip=status.get("podIP"),
        marks=tuple(sorted((sys.intern(key), sys.intern(value)) for key, value in marks.items())),
        flags=flags_of(_words(container)),
        ports=tuple((each.get("name", ""), each["containerPort"]) for each in container.get("ports", ())),
        claims=tuple(sorted(each for each in named if each)),
        waits=_waits(status),
    )


def stranger(namespace: str, name: str, node: str, marks: tuple[tuple[str, str], ...]) -> EnginePod:
    """A pod that is selected and runs something else, so that it can be named."""
    return EnginePod(
        namespace=namespace, name=name, identity=f"{namespace}/{name}", node=node, ip=None, marks=marks, flags=None,
        ports=(), claims=(), waits=None,
    )  # fmt: skip


def running_engines(
    watches: Mapping[ServingKey, Watch],
    pods: Iterable[EnginePod],
    claims: Mapping[tuple[str, str], tuple[Device, ...]],
    devices: Iterable[PlacedDevice],
    nodes: Mapping[str, NodeRecord],
    gpu_by_product: GpuByProduct,
) -> tuple[RunningEngine, ...]:
    """Every engine that a serving of these selects in its namespace. `claims` by namespace and name."""
    by_name = {(each.pool, each.gpu.device_name): each for each in devices}
    on_node: dict[str, set[GpuKind]] = defaultdict(set)
    for each in by_name.values():
        on_node[each.gpu.node].add(each.gpu.kind)
    found = []
    for pod in pods:
        for key, watch in sorted(watches.items()):
            if key.namespace != pod.namespace or not watch.selector.selects(dict(pod.marks)):
                continue
            held = [by_name[device] for name in pod.claims for device in claims.get((pod.namespace, name), ())
                    if device in by_name]  # fmt: skip
            gpu = held[0].gpu if held else None
            kind = _kind_of_node(nodes.get(pod.node), on_node.get(pod.node, set()), gpu_by_product)
            problem = _problem(pod, len(held))
            found.append(
                RunningEngine(
                    serving=key,
                    pod=pod.name,
                    identity=pod.identity,
                    node=pod.node,
                    gpu_uuid=None if gpu is None else gpu.uuid,
                    kind=kind if gpu is None else gpu.kind,
                    address=None if pod.ip is None or problem else f"{pod.ip}:{_port(pod, watch)}",
                    flags=pod.flags or EngineFlags(),
                    problem=problem,
                )
            )
    return tuple(found)


def _words(container: Mapping[str, Any]) -> tuple[str, ...]:
    return (*(container.get("command") or ()), *(container.get("args") or ()))


def _waits(status: Mapping[str, Any]) -> str | None:
    """Why the pod is not Ready, in the words of Kubernetes; None if it is."""
    for condition in status.get("conditions", ()):
        if condition["type"] == "Ready" and condition["status"] == "True":
            return None
    for container in status.get("containerStatuses", ()):
        waiting = container.get("state", {}).get("waiting")
        if waiting is not None:
            return str(waiting.get("reason", "waiting"))
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message") or condition.get("reason", "unscheduled"))
    return str(status.get("phase", "Pending"))


def _problem(pod: EnginePod, devices: int) -> str | None:
    if pod.flags is None:
        return "none of its containers names vLLM in its image or command"
    if pod.waits is not None:
        return f"it is not ready ({pod.waits.rstrip('.')})"
    if devices > 1:
        return f"it holds {devices} GPUs, and only engines on one GPU can be judged"
    return None


def _port(pod: EnginePod, watch: Watch) -> int:
    """What the serving says, else the engine's own arguments, else the container's ports, else vLLM's default."""
    if watch.port is not None:
        return watch.port
    if pod.flags is not None and pod.flags.port is not None:
        return pod.flags.port
    by_name = dict(pod.ports)
    named = [by_name[name] for name in PORT_NAMES if name in by_name]
    if named or pod.ports:
        return named[0] if named else pod.ports[0][1]
    return DEFAULT_PORT


def _kind_of_node(node: NodeRecord | None, kinds: set[GpuKind], gpu_by_product: GpuByProduct) -> GpuKind | None:
    """The one kind of GPU of a node; None where it has several, none, or one that the catalog does not know."""
    if kinds:
        return next(iter(kinds)) if len(kinds) == 1 else None
    return None if node is None else kind_on(node, gpu_by_product)
