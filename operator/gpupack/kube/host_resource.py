"""The InPod backend: one pod holds a whole GPU, and the engines of the plan come and go inside it.

To the decision that pod is what a ResourceClaim is with DRA: what holds the GPU for a namespace (`ClaimSeen`). Its
engines are replicas like any other, at (pod, port). What shall run in it stands on it as an annotation, orders with a
generation, each with the marks that a replica's own pod would carry: so a lost plan is rebuilt from here too. The
supervisor inside (`gpupack.host`) is brought those orders by `hosts`, and its report says what became of them.

Pure: bodies out, records in. Knows no connection.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpupack.facts.engine_args import PORT
from gpupack.facts.gpu import Gpu
from gpupack.facts.observation import (
    NO_CORES_TOLD,
    ClaimSeen,
    Measured,
    Phase,
    Reading,
    ReplicaSeen,
    Trouble,
    quoted,
)
from gpupack.facts.placement import gpu_hash
from gpupack.facts.serving import Serving, ServingKey, Sharing
from gpupack.host.archive import NAME as ARCHIVE
from gpupack.host.life import Mps, Stage
from gpupack.host.orders import EngineOrder, Orders, orders_of, orders_text
from gpupack.kube import child_resource, labels, manifests
from gpupack.kube.quantities import number_text
from gpupack.kube.serving_resource import EngineTemplate
from gpupack.kube.times import rfc3339
from gpupack.kube.trouble import trouble_of
from gpupack.plan import ApplyClaim, StartReplica
from gpupack.units import Bytes, Seconds, parse_bytes

COMPONENT = "host"
SUPERVISOR = "supervisor"
SUPERVISOR_PORT = 8000
FIRST_PORT = 8001
TOKEN_SECRET = "gpupack-host"
TOKEN_KEY = "token"
PROGRAMS, FILES, SECRETS = "/gpupack", "/run/gpupack", "/run/secrets/gpupack"
LAST_SECONDS = 25
"""After the drain: SIGKILL to engines that hang, then the end of MPS."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """What the supervisor says of one engine. `ended` is how its last process ended, `log` its last lines."""

    name: str
    port: int
    stage: Stage
    ordered: bool
    since: Seconds
    ready_at: Seconds | None
    restarts: int
    message: str
    ended: str
    log: tuple[str, ...]
    marks: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostReport:
    """`number` changes with every change. `device` is the GPU that the pod was given, by uuid, or empty.

    `mps_message` is why MPS was lost or does not start. `core_wait` and `throttled` are of its engine that is worst
    off, as `GpuSeen` has them.
    """

    number: int
    generation: int
    device: str
    mps: Mps
    engines: tuple[EngineReport, ...]
    mps_message: str = ""
    core_wait: Measured = NO_CORES_TOLD
    throttled: Measured = NO_CORES_TOLD


@dataclass(frozen=True, slots=True, kw_only=True)
class Routes:
    """What stands on a pod for endpoint pickers: of which servings it has engines, and at which ports they are ready.

    `ports` None: nobody wrote any.
    """

    servings: frozenset[str] = frozenset()
    ports: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPod:
    """A pod of ours that engines come into. `engines` are its orders as replicas, as far as the pod alone can tell."""

    claim: ClaimSeen
    pool: str
    node: str | None
    ip: str | None
    phase: Phase
    deletion_at: Seconds | None
    orders: Orders
    engines: tuple[ReplicaSeen, ...]
    routes: Routes = Routes()

    @property
    def key(self) -> tuple[str, str]:
        return self.claim.namespace, self.claim.name


def host_name(gpu_uuid: str, sharing: Sharing, household: str) -> str:
    """Another sharing or household is another pod."""
    return f"gpupack-{gpu_hash(gpu_uuid)}-{sharing.value.lower()}-{household}"


def room_for(serving: Serving, gpus_on_node: int, cores: float, replicas_per_gpu: int) -> int:
    """For how many engines a pod is made: R*, or what its GPU's share of the node's cores allows."""
    fair = int(cores / max(1, gpus_on_node) / serving.cpu_cores)
    return max(1, min(replicas_per_gpu, fair))


def host_pod(
    apply: ApplyClaim, gpu: Gpu, serving: Serving, template: EngineTemplate, *,
    room: int, pool: str, image: str, uids: Mapping[ServingKey, str], runtime_class: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The pod that holds one GPU of a node, without engines yet. `image` is the operator's own.

    Requests equal limits, for `room` engines: with the static CPU manager they have cores of their own. `runtime_class`
    is the cluster's own for NVIDIA's runtime, which need not be a node's default.
    """
    own = template.pod
    metadata = own.get("metadata", {})
    resources = {
        "cpu": str(template.cpu_cores * room),
        "memory": number_text(parse_bytes(template.memory) * room),
        gpu.resource or labels.PLUGIN_GPU: "1",
    }
    options = ("--mps",) if apply.sharing is Sharing.MPS else ()
    container = {
        "name": SUPERVISOR,
        "image": template.image,
        "command": ["python3", "-I", "-S", f"{PROGRAMS}/{ARCHIVE}"],
        "args": [
            *options, f"--port={SUPERVISOR_PORT}", f"--token-file={SECRETS}/{TOKEN_KEY}", f"--directory={FILES}",
            "vllm", "serve",
        ],
        "env": [*manifests.environment(template), {"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "compute,utility"}],
        "ports": [
            {"name": SUPERVISOR, "containerPort": SUPERVISOR_PORT, "protocol": "TCP"},
            # By these names a PodMonitor finds engines; while one is replaced there may be one more.
            *({"name": f"engine-{number}", "containerPort": FIRST_PORT + number, "protocol": "TCP"}
              for number in range(room + 1)),
        ],
        "resources": {"requests": resources, "limits": resources},
        "readinessProbe": {
            "httpGet": {"path": "/healthz", "port": SUPERVISOR}, "periodSeconds": manifests.PROBE_SECONDS,
            "failureThreshold": 3,
        },
        "lifecycle": {"preStop": {"sleep": {"seconds": manifests.PRE_STOP_SECONDS}}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": manifests.RESTRICTED,
        "volumeMounts": [
            {"name": "programs", "mountPath": PROGRAMS, "readOnly": True},
            {"name": "files", "mountPath": FILES},
            {"name": "token", "mountPath": SECRETS, "readOnly": True},
            *own.get("volumeMounts", ()),
        ],
    }  # fmt: skip
    bring = {
        "name": "bring-supervisor",
        "image": image,
        "command": ["gpupack", "host", f"--copy-to={PROGRAMS}"],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "1", "memory": "128Mi"}},
        "securityContext": manifests.RESTRICTED,
        "volumeMounts": [{"name": "programs", "mountPath": PROGRAMS}],
    }
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [gpu.node]}]}
    spec = {
        **manifests.pod_basics(own),
        **({} if runtime_class is None else {"runtimeClassName": runtime_class}),
        "terminationGracePeriodSeconds": manifests.GRACE_SECONDS + LAST_SECONDS,
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}},
        "initContainers": [bring],
        "containers": [container],
        "volumes": [
            {"name": "programs", "emptyDir": {}},
            {"name": "files", "emptyDir": {}},
            {"name": "token", "secret": {"secretName": TOKEN_SECRET}},
            *own.get("volumes", ()),
        ],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": host_name(apply.gpu_uuid, apply.sharing, serving.household),
            "namespace": apply.namespace,
            "labels": {
                **metadata.get("labels", {}),
                labels.MANAGER: labels.MANAGED_BY,
                labels.PART_OF: labels.MANAGED_BY,
                labels.COMPONENT: COMPONENT,
                labels.POOL: pool,
                labels.GPU: apply.gpu_uuid,
                labels.HOUSEHOLD: serving.household,
            },
            "annotations": {
                **metadata.get("annotations", {}),
                labels.SHARING: apply.sharing.value,
                labels.ROOM: str(room),
                labels.ORDERS: orders_text(Orders()),
            },
            "ownerReferences": owners(apply, uids),
        },
        "spec": spec,
    }


def owners(apply: ApplyClaim, uids: Mapping[ServingKey, str]) -> list[dict[str, Any]]:
    """It goes with the last of them. One has to be its controller, or `kubectl drain` refuses the pod."""
    return [
        {**manifests.owner(key, uids[key]), **({"controller": True} if number == 0 else {})}
        for number, key in enumerate(sorted(apply.owners))
    ]


def budgets(hosts: Iterable[HostPod], replicas: Iterable[ReplicaSeen], uids: Mapping[str, ServingKey]) -> list[Json]:
    """A PodDisruptionBudget for the pods of each household: a drain takes one at a time.

    None goes while engines of another load, for then they serve nobody yet. A lone pod may go. `uids` are the servings
    that are there; each body belongs to those whose engines live in the pods.
    """
    together: dict[tuple[str, str, str], list[HostPod]] = {}
    for host in hosts:
        together.setdefault((host.claim.namespace, host.claim.household, host.pool), []).append(host)
    loading = {each.name for each in replicas if each.phase is Phase.STARTING and not each.restarts}
    return [
        _budget(namespace, household, pool, alike, uids, moving=any(
            order.name in loading for host in alike for order in host.orders.engines
        ))
        for (namespace, household, pool), alike in sorted(together.items())
    ]  # fmt: skip


def _budget(
    namespace: str, household: str, pool: str, alike: Sequence[HostPod], uids: Mapping[str, ServingKey], *, moving: bool
) -> Json:
    owners = sorted({(uids[uid], uid) for host in alike for uid in host.claim.owners if uid in uids})
    least = len(alike) if moving and len(alike) > 1 else len(alike) - 1
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {
            "name": f"gpupack-{household}-{hashlib.sha256(pool.encode()).hexdigest()[:6]}",
            "namespace": namespace,
            "labels": {
                labels.MANAGER: labels.MANAGED_BY, labels.PART_OF: labels.MANAGED_BY, labels.POOL: pool,
                labels.HOUSEHOLD: household,
            },
            "ownerReferences": [manifests.owner(key, uid) for key, uid in owners],
        },
        "spec": {
            "minAvailable": least,
            "selector": {"matchLabels": {labels.HOUSEHOLD: household, labels.POOL: pool}},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }  # fmt: skip


def owned(secret: Json, references: Sequence[Mapping[str, Any]]) -> Json | None:
    """A merge patch by which the token also belongs to these servings, and goes with the last; None if it does."""
    metadata = secret["metadata"]
    there = {each["uid"]: each for each in metadata.get("ownerReferences", ())}
    every = {**there, **{each["uid"]: {**each, "controller": False} for each in references if each["uid"] not in there}}
    if every == there:
        return None
    return {"metadata": {"resourceVersion": metadata["resourceVersion"], "ownerReferences": list(every.values())}}


def token_secret(namespace: str, token: str, references: Sequence[Mapping[str, Any]]) -> Json:
    """One a namespace, for all its pods. It goes with the last serving that had one."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": TOKEN_SECRET,
            "namespace": namespace,
            "labels": {labels.MANAGER: labels.MANAGED_BY, labels.PART_OF: labels.MANAGED_BY},
            "ownerReferences": [{**each, "controller": False} for each in references],
        },
        "stringData": {TOKEN_KEY: token},
    }


# Orders


def with_engine(
    orders: Orders, start: StartReplica, serving: Serving, template: EngineTemplate, now: Seconds,
    elsewhere: Iterable[int] = (),
) -> Orders:  # fmt: skip
    """One more engine, at the lowest port that is free. The same one twice is one.

    `elsewhere` are ports of other servings' engines in other pods: an InferencePool has the same ports in all of them.
    """
    name = start.placement.name
    if any(each.name == name for each in orders.engines):
        return orders
    taken = {each.port for each in orders.engines} | {*elsewhere}
    port = next(number for number in range(FIRST_PORT, FIRST_PORT + len(taken) + 1) if number not in taken)
    words = [f"--port={port}" if each == f"--port={PORT}" else each for each in
             manifests.arguments(start, serving, template)]  # fmt: skip
    marks, notes = manifests.replica_marks(start, serving, template)
    written = {"labels": _json(marks), "annotations": _json(notes), "at": rfc3339(now)}
    order = EngineOrder(name=name, port=port, arguments=tuple(words), marks=tuple(sorted(written.items())))
    return Orders(generation=orders.generation + 1, engines=(*orders.engines, order))


def without_engine(orders: Orders, name: str) -> Orders:
    left = tuple(each for each in orders.engines if each.name != name)
    return orders if left == orders.engines else Orders(generation=orders.generation + 1, engines=left)


def out_of_service(orders: Orders, name: str) -> Orders:
    """The engine runs on, and its marks say that nobody shall be sent to it."""
    return Orders(
        generation=orders.generation + 1,
        engines=tuple(_unserved(each) if each.name == name else each for each in orders.engines),
    )


def _unserved(order: EngineOrder) -> EngineOrder:
    marks = dict(order.marks)
    marks["labels"] = _json({**json.loads(marks["labels"]), labels.IN_SERVICE: labels.FALSE})
    return replace(order, marks=tuple(sorted(marks.items())))


# What stands in the cluster


def host_of(pod: Mapping[str, Any]) -> HostPod | None:
    """A pod of ours that engines come into; None for any other. Raises KeyError or ValueError if its marks changed."""
    metadata, spec, status = pod["metadata"], pod["spec"], pod.get("status", {})
    marks, notes = metadata.get("labels", {}), metadata.get("annotations", {})
    if labels.HOUSEHOLD not in marks or marks.get(labels.MANAGER) != labels.MANAGED_BY:
        return None
    written = notes[labels.ORDERS]
    orders = orders_of(written) if written != orders_text(Orders()) else Orders()
    claim = ClaimSeen(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        gpu_uuid=marks[labels.GPU],
        sharing=Sharing(notes[labels.SHARING]),
        owners=tuple(sorted(each["uid"] for each in metadata.get("ownerReferences", ()))),
        deleting="deletionTimestamp" in metadata,
        household=marks[labels.HOUSEHOLD],
        engines=int(notes[labels.ROOM]),
    )
    engines = tuple(_engine(pod, each.name, dict(each.marks)) for each in orders.engines)
    return HostPod(
        claim=claim,
        pool=marks[labels.POOL],
        node=spec.get("nodeName"),
        ip=status.get("podIP"),
        phase=child_resource.phase_of(metadata, spec, status),
        deletion_at=child_resource.asked_to_stop_at(metadata),
        orders=orders,
        engines=engines,
        routes=_routes_on(marks, notes),
    )


def _engine(pod: Mapping[str, Any], name: str, marks: Mapping[str, str]) -> ReplicaSeen:
    """An engine as the pod that it would have for itself."""
    metadata = pod["metadata"]
    ends = {key: metadata[key] for key in ("deletionTimestamp", "deletionGracePeriodSeconds") if key in metadata}
    found = child_resource.replica_of({
        **pod,
        "metadata": {
            **ends,
            "name": name,
            "namespace": metadata["namespace"],
            "uid": f"{metadata['uid']}/{name}",
            "creationTimestamp": marks["at"],
            "labels": json.loads(marks["labels"]),
            "annotations": json.loads(marks["annotations"]),
        },
    })  # fmt: skip
    if found is None:
        raise ValueError(f"{name} has no marks of a replica")
    return found


def replicas_in(host: HostPod, report: HostReport | None) -> tuple[ReplicaSeen, ...]:
    """Its engines: those ordered, and those that are still ending."""
    told = {} if report is None else {each.name: each for each in report.engines}
    ordered = [
        _seen(host, order, engine, told.get(order.name), report)
        for order, engine in zip(host.orders.engines, host.engines, strict=True)
    ]
    names = {each.name for each in ordered}
    ending = [_ending(host, each) for each in told.values() if each.name not in names] if host.ip else []
    return (*ordered, *ending)


def _seen(
    host: HostPod, order: EngineOrder, engine: ReplicaSeen, told: EngineReport | None, report: HostReport | None
) -> ReplicaSeen:
    address = None if host.ip is None else f"{host.ip}:{order.port}"
    seen = replace(engine, address=address, ready_at=None)
    if host.phase is not Phase.READY:
        return seen
    if told is None or report is None:
        return replace(seen, phase=Phase.STARTING, restarts=0, message="" if report else "its supervisor was not heard")
    trouble, short = _trouble(told, report)
    seen = replace(seen, restarts=told.restarts, message=_message(told), trouble=trouble, short=short)
    if told.stage is Stage.READY and told.ordered:
        return replace(seen, phase=Phase.READY, ready_at=told.ready_at)
    # Where engines cannot share, one that waits will not start by itself: like a pod that is never scheduled.
    stuck = told.stage is Stage.WAITING and report.mps is Mps.UNAVAILABLE
    return replace(seen, phase=Phase.PENDING if stuck else Phase.STARTING)


def _ending(host: HostPod, told: EngineReport) -> ReplicaSeen:
    pod = {
        "metadata": {"namespace": host.claim.namespace, "name": host.claim.name, "uid": host.claim.uid},
        "spec": {"nodeName": host.node}, "status": {"podIP": host.ip},
    }  # fmt: skip
    found = _engine(pod, told.name, told.marks)
    return replace(
        found, phase=Phase.STOPPING, deletion_at=told.since, in_service=False, address=f"{host.ip}:{told.port}",
        restarts=told.restarts, message=_message(told),
    )  # fmt: skip


def _trouble(told: EngineReport, report: HostReport) -> tuple[Trouble | None, Bytes]:
    """An engine that comes again for the sake of MPS says so in the supervisor's words, one that failed in its own."""
    if told.stage is Stage.FAILED:
        return trouble_of("\n".join((told.message, *told.log)))
    lost = told.message and told.message == report.mps_message and told.stage is not Stage.READY
    return (Trouble.MPS_LOST if lost else None), Bytes(0)


def claim_of(host: HostPod, report: HostReport | None) -> ClaimSeen:
    """What the pod holds, and whether its engines can share it, as far as its supervisor has told."""
    if report is None or report.mps is not Mps.UNAVAILABLE:
        return host.claim
    return replace(host.claim, alone=f"MPS does not start in the pod {host.claim.name}: {report.mps_message}")


def _message(told: EngineReport) -> str:
    if told.stage is not Stage.FAILED or not told.log:
        return told.message
    return f"{told.message}: {quoted(child_resource.last_words(chr(10).join(told.log)))}"


def report_of(text: bytes | str) -> HostReport:
    """What the supervisor answers. Raises KeyError or ValueError for anything else."""
    found = json.loads(text)
    cores = found.get("cores") or {}
    return HostReport(
        number=found["number"],
        generation=found["generation"],
        device=found["gpu"],
        mps=Mps(found["mps"]["state"]),
        engines=tuple(_engine_report(each) for each in found["engines"]),
        mps_message=found["mps"]["message"],
        core_wait=_share(cores, "waited"),
        throttled=_share(cores, "throttled"),
    )


def _share(cores: Mapping[str, Any], name: str) -> Measured:
    if cores.get(name) is None:
        return NO_CORES_TOLD
    return Reading(value=float(cores[name]), at=Seconds(cores["at"]), origin=f"cores.{name} of the supervisor")


def _engine_report(found: Mapping[str, Any]) -> EngineReport:
    ended = found["ended"]
    return EngineReport(
        name=found["name"],
        port=found["port"],
        stage=Stage(found["state"]),
        ordered=found["ordered"],
        since=Seconds(found["since"]),
        ready_at=None if found["readyAt"] is None else Seconds(found["readyAt"]),
        restarts=found["restarts"],
        message=found["message"],
        ended="" if ended is None else ended["reason"],
        log=() if ended is None else tuple(ended["log"]),
        marks=found["marks"],
    )


# Where clients go


def endpoint_slices(serving: Serving, replicas: Iterable[ReplicaSeen]) -> list[dict[str, Any]]:
    """One a port, since all endpoints of a slice have its ports: those that are ready and in service."""
    at: dict[int, list[str]] = {}
    for each in replicas:
        if each.serving != serving.key or each.address is None:
            continue
        ip, _, port = each.address.rpartition(":")
        at.setdefault(int(port), []).extend([ip] if serves(each) else [])
    return [_slice(serving, port, ips) for port, ips in sorted(at.items())]


def _slice(serving: Serving, port: int, ips: Sequence[str]) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{serving.key.name}-{port}",
            "namespace": serving.key.namespace,
            "labels": {
                labels.SERVICE_NAME: serving.key.name,
                labels.SLICE_MANAGER: labels.GROUP,
                labels.MANAGER: labels.MANAGED_BY,
            },
            "ownerReferences": [{**manifests.owner(serving.key, serving.uid), "controller": True}],
        },
        "addressType": "IPv4",
        "ports": [{"name": manifests.HTTP, "port": port, "protocol": "TCP"}],
        "endpoints": [{"addresses": [ip], "conditions": {"ready": True}} for ip in sorted(ips)],
    }


def ports_of_others(hosts: Iterable[HostPod], serving: ServingKey) -> set[int]:
    """At which ports the pods of a namespace have engines of other servings."""
    return {
        order.port
        for host in hosts
        for order, engine in zip(host.orders.engines, host.engines, strict=True)
        if host.claim.namespace == serving.namespace and engine.serving != serving
    }


def _routes_on(marks: Mapping[str, str], notes: Mapping[str, str]) -> Routes:
    listed = notes.get(labels.ACTIVE_PORTS[0])
    return Routes(
        servings=frozenset(each.removeprefix(labels.SERVES) for each in marks if each.startswith(labels.SERVES)),
        ports=None if listed is None else tuple(int(each) for each in listed.split(",") if each.isdecimal()),
    )


def routes_of(host: HostPod, replicas: Iterable[ReplicaSeen], routed: Iterable[ServingKey]) -> Routes:
    """What should stand there: the servings with an InferencePool, and where their engines take requests."""
    ours = {key.name for key in routed if key.namespace == host.claim.namespace}
    here = {each.serving.name for each in host.engines} & ours
    if not here:
        return Routes()
    ready = (
        int(each.address.rpartition(":")[2])
        for each in replicas
        if each.address is not None
        and (each.serving.namespace, each.address.rpartition(":")[0]) == (host.claim.namespace, host.ip)
        and each.serving.name in here
        and serves(each)
    )
    return Routes(servings=frozenset(here), ports=tuple(sorted(ready)))


def routes_patch(host: HostPod, wanted: Routes) -> dict[str, Any]:
    """A merge patch that makes it so."""
    gone = {f"{labels.SERVES}{name}": None for name in sorted(host.routes.servings - wanted.servings)}
    marks = {f"{labels.SERVES}{name}": labels.TRUE for name in sorted(wanted.servings)}
    ports = None if wanted.ports is None else ",".join(map(str, wanted.ports))
    notes = dict.fromkeys(labels.ACTIVE_PORTS, ports)
    return {"metadata": {"uid": host.claim.uid, "labels": {**gone, **marks}, "annotations": notes}}


def serves(replica: ReplicaSeen) -> bool:
    """Whether clients may be sent to it."""
    return replica.phase is Phase.READY and replica.in_service and replica.deletion_at is None


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceThere:
    """A slice of ours as it stands: which addresses are ready at its port.

    `component` says what is there: engines if nothing, else the activators. `wake_seconds` is written for those.
    """

    namespace: str
    name: str
    service: str
    port: int
    addresses: tuple[str, ...]
    component: str = ""
    wake_seconds: str = ""


def slice_there(found: Mapping[str, Any]) -> SliceThere:
    metadata = found["metadata"]
    return SliceThere(
        namespace=metadata["namespace"],
        name=metadata["name"],
        service=metadata.get("labels", {}).get(labels.SERVICE_NAME, ""),
        port=next((each["port"] for each in found.get("ports") or ()), 0),
        addresses=tuple(sorted(each["addresses"][0] for each in found.get("endpoints") or ())),
        component=metadata.get("labels", {}).get(labels.COMPONENT, ""),
        wake_seconds=metadata.get("annotations", {}).get(labels.WAKE_SECONDS, ""),
    )


def slices_to_write(
    servings: Iterable[Serving], replicas: Sequence[ReplicaSeen], there: Iterable[SliceThere], unheard: frozenset[str]
) -> list[dict[str, Any]]:
    """The slices that stand otherwise than they should. A port that nobody uses any more keeps an empty one.

    Addresses in `unheard` stay where they are: of them nothing new is known.
    """
    standing = {(each.namespace, each.name): each for each in there if not each.component}
    bodies = []
    for serving in servings:
        wanted = {body["metadata"]["name"]: body for body in endpoint_slices(serving, replicas)}
        for found in standing.values():
            if (found.namespace, found.service) == (serving.key.namespace, serving.key.name):
                wanted.setdefault(found.name, _slice(serving, found.port, ()))
        for name, body in sorted(wanted.items()):
            stands = standing.get((serving.key.namespace, name))
            before = set() if stands is None else {*stands.addresses}
            now = {each["addresses"][0] for each in body["endpoints"]} | (before & unheard)
            if stands is None or now != before:
                bodies.append(_slice(serving, body["ports"][0]["port"], sorted(now)))
    return bodies


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)
