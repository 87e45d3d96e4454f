"""What one pool can see of the cluster, from mirrors: its GPUs, servings, replicas, and who else is there.

Objects become slim records once, when they change; a tick only puts records together. The readings of engines and GPUs
come from elsewhere and are arguments. Which pool may use what, and what is too old to trust, is said here; what follows
from it is not.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from gpupack.errors import Invalid
from gpupack.facts.backend import ClusterOffer
from gpupack.facts.belief import Belief
from gpupack.facts.counter import Counter
from gpupack.facts.gpu import Gpu
from gpupack.facts.observation import (
    ClaimSeen,
    EngineSeen,
    GpuSeen,
    HeldSeen,
    Holder,
    Measured,
    NodeSeen,
    Observation,
    Refused,
    ReplicaSeen,
    ServiceSeen,
    SourceProblem,
)
from gpupack.facts.running import Appraisal, RunningEngine
from gpupack.facts.serving import Profile, Serving, ServingKey
from gpupack.kube import (
    child_resource,
    doors,
    host_resource,
    labels,
    manifests,
    node_resource,
    offers,
    profile_resource,
)
from gpupack.kube.api import Api
from gpupack.kube.child_resource import Child
from gpupack.kube.engine_pod import EnginePod, Watch, engine_pod_of, running_engines, stranger
from gpupack.kube.host_resource import HostPod, HostReport, SliceThere
from gpupack.kube.hosts import Hosts
from gpupack.kube.inference_pool import InferencePools
from gpupack.kube.mirror import Mirror
from gpupack.kube.node_resource import (
    ForeignClaim,
    ForeignPod,
    GpuByProduct,
    NodeRecord,
    PlacedDevice,
    SliceSeen,
    UnknownDevice,
)
from gpupack.kube.pool_resource import PoolResource, pool_resource
from gpupack.kube.profile_resource import GpuByName
from gpupack.kube.serving_resource import LlmOf, ServingResource, serving_of, serving_resource
from gpupack.kube.source_resource import PodSource
from gpupack.kube.waiting import Waiting
from gpupack.units import Seconds

STALE_SECONDS = 90.0
"""Bookmarks come about once a minute; a mirror that heard nothing for longer may be wrong."""
MANAGED = f"{labels.MANAGER}={labels.MANAGED_BY}"
OUR_SLICES = f"{labels.SLICE_MANAGER}={labels.GROUP}"

POOLS = f"{labels.API_PATH}/gpupools"
SERVINGS = f"{labels.API_PATH}/modelservings"
PROFILES = f"{labels.API_PATH}/modelprofiles"


class Readings(Protocol):
    """The readings of one GPU, whoever took them."""

    @property
    def dram_active(self) -> Measured: ...
    @property
    def fb_used(self) -> Measured: ...
    @property
    def power(self) -> Measured: ...
    @property
    def counter(self) -> Counter: ...
    @property
    def xid(self) -> Measured: ...
    @property
    def core_wait(self) -> Measured: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookups:
    """What the catalog answers; this edge does not know the catalog."""

    gpu_by_product: GpuByProduct
    gpu_by_name: GpuByName
    llm_of: LlmOf


@dataclass(frozen=True, slots=True, kw_only=True)
class PodAddress:
    """Enough of a pod that is no replica to tell whether it is a metrics exporter or an activator, and where."""

    namespace: str
    name: str
    node: str
    ip: str
    marks: tuple[tuple[str, str], ...]
    ready: bool = False

    @property
    def is_activator(self) -> bool:
        return {(labels.PART_OF, labels.MANAGED_BY), (labels.COMPONENT, labels.ACTIVATOR)} <= {*self.marks}


@dataclass(frozen=True, slots=True, kw_only=True)
class PodRecord:
    """A pod that has a node, or is ours. `pool` is that of our own; `foreign` is what others' pods hold.

    `host`: it is ours and holds a GPU for the engines that come into it.

    `engine`: it is not ours and runs vLLM. `edited`: a whole pod of ours whose marks somebody changed. `mps_gate`: it
    is one of the DRA driver's, and whether that takes claims for MPS.
    """

    replica: ReplicaSeen | None
    pool: str | None
    foreign: ForeignPod | None
    address: PodAddress | None
    engine: EnginePod | None = None
    edited: Mapping[str, Any] | None = None
    host: HostPod | None = None
    mps_gate: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRecord:
    ours: ClaimSeen | None
    pool: str | None
    foreign: ForeignClaim | None


def pod_record(pod: Mapping[str, Any]) -> PodRecord | None:
    pool = child_resource.pool_of_child(pod)
    try:
        if (host := host_resource.host_of(pod)) is not None:
            return PodRecord(replica=None, pool=pool, foreign=None, address=None, host=host)
        replica = child_resource.replica_of(pod)
    except (KeyError, ValueError):
        # One of ours whose marks were changed cannot be planned with, but it does hold memory somewhere on its node.
        return _unreadable(pod)
    if child_resource.is_child(pod) and (replica is None or not replica.marked):
        return PodRecord(
            replica=replica, pool=pool, foreign=node_resource.foreign_pod_of(pod), address=None, edited=pod
        )
    foreign = node_resource.foreign_pod_of(pod)
    engine = None if replica else engine_pod_of(pod)
    if replica is None and foreign is None and engine is None:
        return None
    address = None if replica else _address(pod)
    gate = None if replica else offers.mps_gate_of(pod)
    return PodRecord(replica=replica, pool=pool, foreign=foreign, address=address, engine=engine, mps_gate=gate)


def _engine_or_stranger(pod: PodRecord, watches: Mapping[ServingKey, Watch]) -> EnginePod | None:
    """A pod's engine; of a running pod without one that is selected all the same, what names it."""
    if pod.engine is not None or (address := pod.address) is None:
        return pod.engine
    marks = dict(address.marks)
    if not any(key.namespace == address.namespace and each.selector.selects(marks) for key, each in watches.items()):
        return None
    return stranger(address.namespace, address.name, address.node, address.marks)


def _is_worth_a_tick(pod: PodRecord) -> bool:
    """Ours, and those that hold a GPU; the many others are looked at by the next tick anyway."""
    holds = pod.foreign is not None and pod.foreign.extended is not None
    if pod.address is not None and pod.address.is_activator:
        return True
    return pod.replica is not None or pod.edited is not None or pod.host is not None or holds


def _as_planned(pool: PoolResource, pods: Sequence[PodRecord]) -> Sequence[PodRecord]:
    """Pods whose marks somebody changed are what this pool's plan says of their names, which nobody can change."""
    if pool.plan is None:
        return pods
    servings = {each.serving for each in pool.plan.placements}

    def is_doubtful(pod: PodRecord) -> bool:
        replica = pod.replica
        return pod.edited is not None or (replica is not None and pod.pool != pool.name and replica.serving in servings)

    if not any(is_doubtful(pod) for pod in pods):
        return pods
    planned = {(each.serving.namespace, each.name): each for each in pool.plan.placements}
    found = []
    for pod in pods:
        if not is_doubtful(pod):
            found.append(pod)
            continue
        if pod.edited is not None:
            metadata = pod.edited["metadata"]
            placement = planned.get((metadata["namespace"], metadata["name"]))
            replica = None if placement is None else child_resource.as_planned(pod.edited, placement)
        else:
            assert pod.replica is not None
            known = (pod.replica.serving.namespace, pod.replica.name) in planned
            replica = replace(pod.replica, marked=False) if known else None
        mine = PodRecord(replica=replica, pool=pool.name, foreign=None, address=None)
        found.append(pod if replica is None else mine)
    return found


def _unreadable(pod: Mapping[str, Any]) -> PodRecord | None:
    metadata, node = pod["metadata"], pod["spec"].get("nodeName")
    if node is None:
        return PodRecord(replica=None, pool=None, foreign=None, address=None, edited=pod)
    holder = ForeignPod(
        namespace=metadata["namespace"], name=metadata["name"], node=node, cpu_cores=0.0, extended="its marks changed"
    )
    return PodRecord(replica=None, pool=None, foreign=holder, address=None, edited=pod)


def _address(pod: Mapping[str, Any]) -> PodAddress | None:
    ip = pod.get("status", {}).get("podIP")
    if ip is None or pod.get("status", {}).get("phase") != "Running":
        return None
    metadata = pod["metadata"]
    return PodAddress(
        namespace=sys.intern(metadata["namespace"]),
        name=metadata["name"],
        node=sys.intern(pod["spec"]["nodeName"]),
        ip=ip,
        marks=tuple(sorted((sys.intern(key), sys.intern(value)) for key, value in metadata.get("labels", {}).items())),
        ready=child_resource.is_ready(pod),
    )


def claim_record(claim: Mapping[str, Any]) -> ClaimRecord | None:
    ours, foreign = child_resource.claim_of(claim), node_resource.foreign_claim_of(claim)
    if ours is None and foreign is None:
        return None
    return ClaimRecord(ours=ours, pool=child_resource.pool_of_child(claim), foreign=foreign)


class Mirrors:
    """Everything that is followed, each kind once for all pools. `stir` is called when any record changes.

    `clock` is monotonic; ages are judged by it. Pods of `activator_namespace` alone are taken for activators: whoever
    is one gets the requests of every serving that sleeps.
    """

    def __init__(
        self, api: Api, lookups: Lookups, stir: Callable[[], None], *, clock: Callable[[], float] = time.monotonic,
        pod_proxy: str | None = None, activator_namespace: str = doors.ACTIVATOR_NAMESPACE,
    ) -> None:  # fmt: skip
        self._lookups = lookups
        self._activator_namespace = activator_namespace
        self._doors: dict[str, int] = {}

        def pods_stirred() -> None:
            self.hosts.look()
            self.waiting.look()
            stir()

        def profile(obj: Mapping[str, Any]) -> Profile | Belief | Invalid | None:
            if (belief := profile_resource.belief_of(obj)) is not None or not {"points", "measure"} & set(obj["spec"]):
                return belief
            try:
                return profile_resource.profile_of(obj, gpu_by_name=lookups.gpu_by_name)
            except Invalid as invalid:
                return invalid

        def serving(obj: Mapping[str, Any]) -> ServingResource:
            return serving_resource(obj, llm_of=lookups.llm_of)

        def mirror(
            name: str,
            path: str,
            record: Callable[[dict[str, Any]], Any],
            selector: str = "",
            matters: Callable[[Any], bool] = lambda _record: True,
            stirs: Callable[[], None] = stir,
            may_be_unserved: bool = False,
        ) -> Mirror[Any]:
            return Mirror(
                api, path, record, stirs, name=name, label_selector=selector, matters=matters, clock=clock,
                may_be_unserved=may_be_unserved,
            )  # fmt: skip

        self.pools: Mirror[PoolResource] = mirror("gpupools", POOLS, pool_resource)
        self.servings: Mirror[ServingResource] = mirror("modelservings", SERVINGS, serving)
        self.profiles: Mirror[Profile | Belief | Invalid] = mirror("modelprofiles", PROFILES, profile)
        self.pods: Mirror[PodRecord] = mirror(
            "pods", "/api/v1/pods", pod_record, matters=_is_worth_a_tick, stirs=pods_stirred
        )
        self.hosts = Hosts(api, self.host_pods, stir, pod_proxy=pod_proxy)
        self.inference_pools = InferencePools(api)
        self.waiting = Waiting(self.activators, stir, pod_proxy=pod_proxy)
        self.endpoint_slices: Mirror[SliceThere] = mirror(
            "endpointslices", "/apis/discovery.k8s.io/v1/endpointslices", host_resource.slice_there, OUR_SLICES
        )
        self.nodes: Mirror[NodeRecord] = mirror("nodes", "/api/v1/nodes", node_resource.node_of)
        self.slices: Mirror[SliceSeen] = mirror(
            "resourceslices", "/apis/resource.k8s.io/v1/resourceslices", node_resource.slice_of, may_be_unserved=True
        )
        self.claims: Mirror[ClaimRecord] = mirror(
            "resourceclaims", "/apis/resource.k8s.io/v1/resourceclaims", claim_record, may_be_unserved=True
        )
        self.device_classes: Mirror[str] = mirror(
            "deviceclasses", "/apis/resource.k8s.io/v1/deviceclasses", lambda item: str(item["metadata"]["name"]),
            may_be_unserved=True,
        )  # fmt: skip
        self.runtime_classes: Mirror[str] = mirror(
            "runtimeclasses", "/apis/node.k8s.io/v1/runtimeclasses", offers.runtime_class_of
        )
        self.services: Mirror[Child] = mirror("services", "/api/v1/services", child_resource.shared_child_of, MANAGED)
        self.budgets: Mirror[Child] = mirror(
            "poddisruptionbudgets", "/apis/policy/v1/poddisruptionbudgets", child_resource.shared_child_of, MANAGED
        )

    def each(self) -> tuple[Mirror[Any], ...]:
        """What decisions rest on, so that none is made before all are there."""
        return (
            self.pools, self.servings, self.profiles, self.pods, self.nodes, self.slices, self.claims, self.services,
            self.budgets, self.endpoint_slices,
        )  # fmt: skip

    def runs(self) -> tuple[Coroutine[None, None, None], ...]:
        told = (self.device_classes, self.runtime_classes)
        mirrors = (mirror.run() for mirror in (*self.each(), *told))
        return (*mirrors, self.hosts.run(self.pods.synced), self.waiting.run())

    async def synced(self) -> None:
        for mirror in self.each():
            await mirror.synced.wait()
        await self.hosts.synced.wait()

    def host_pods(self) -> tuple[HostPod, ...]:
        return tuple(each.host for each in self.pods.all() if each.host is not None)

    def activators(self) -> tuple[str, ...]:
        """The addresses of those that are ready."""
        found = (each.address for each in self.pods.all())
        return tuple(
            sorted(
                each.ip
                for each in found
                if each is not None and each.is_activator and each.ready and each.namespace == self._activator_namespace
            )
        )

    def doors(self, servings: Iterable[Serving]) -> dict[ServingKey, int]:
        """The ports of servings at the activators: of each that has one, and a free one for each that may sleep.

        What this process gave away counts before a slice shows it, whichever pool asked.
        """
        standing = [each for each in self.endpoint_slices.all() if doors.is_door(each)]
        known = {(each.namespace, each.service): each.port for each in standing}
        living = {each.uid for each in self.servings.all()}
        self._doors = {uid: port for uid, port in self._doors.items() if uid in living}
        found = {}
        for serving in servings:
            key = serving.key
            port = known.get((key.namespace, key.name), self._doors.get(serving.uid))
            if port is None and doors.may_sleep(serving):
                port = doors.free_port(serving.uid, {*known.values(), *self._doors.values()})
            if port is not None:
                found[key] = self._doors[serving.uid] = port
        return found

    def engines_of(self, hosts: Iterable[HostPod]) -> tuple[ReplicaSeen, ...]:
        return tuple(each for host in hosts for each in host_resource.replicas_in(host, self.hosts.report(host)))

    def stale(self) -> tuple[str, ...]:
        return tuple(sorted(mirror.name for mirror in self.each() if mirror.age > STALE_SECONDS))

    def devices(self) -> tuple[PlacedDevice, ...]:
        """Those that a driver publishes, and the places of nodes where none does."""
        known, slices = self._lookups.gpu_by_product, self.slices.all()
        return (
            *node_resource.devices_of(slices, known), *node_resource.places_of(self.nodes.all(), slices, known),
        )  # fmt: skip

    def unknown_devices(self) -> tuple[UnknownDevice, ...]:
        known, slices = self._lookups.gpu_by_product, self.slices.all()
        return (
            *node_resource.unknown_devices_of(slices, known),
            *node_resource.unknown_places_of(self.nodes.all(), slices, known),
        )

    def offer(
        self, nodes: Iterable[NodeRecord], devices: Iterable[PlacedDevice], pods: Iterable[PodRecord]
    ) -> ClusterOffer:
        """What these nodes offer of each way of sharing."""
        here = {node.name: node for node in nodes}
        classes = self.device_classes
        return offers.offer_of(
            here.values(), (each for each in self.slices.all() if each.node in here), devices,
            claims=self.slices.is_served, device_classes=classes.all() if classes.synced.is_set() else None,
            runtime_class=next(iter(self.runtime_classes.all()), None),
            gates=(each.mps_gate for each in pods if each.mps_gate is not None),
        )  # fmt: skip

    def running(
        self,
        resources: Mapping[ServingKey, ServingResource],
        pods: Iterable[PodRecord],
        claims: Iterable[ForeignClaim],
        devices: Iterable[PlacedDevice],
        nodes: Mapping[str, NodeRecord],
    ) -> tuple[RunningEngine, ...]:
        """The engines that these servings observe."""
        watches = {key: each.watch for key, each in resources.items() if each.watch is not None}
        if not watches:
            return ()
        engines = [each for pod in pods if (each := _engine_or_stranger(pod, watches)) is not None]
        held = {(each.namespace, each.name): each.devices for each in claims}
        return running_engines(watches, engines, held, devices, nodes, self._lookups.gpu_by_product)

    def profile(self, namespace: str, name: str) -> Profile | None:
        """As `serving_of` asks for it."""
        found = self.profiles.get(namespace, name)
        if isinstance(found, Invalid):
            raise found
        if isinstance(found, Belief):
            raise Invalid("spec.profileRef.name", f"{name} is what gpupack has learnt itself", "leave it out")
        return found

    def learned(self, serving: Serving) -> tuple[Belief, ...]:
        """What is written of its model and engine version in its namespace, by kind of GPU."""
        wanted = (serving.key.namespace, serving.llm.name, serving.engine_version)
        return tuple(
            each
            for each in self.profiles.all()
            if isinstance(each, Belief) and (each.key.namespace, each.key.model, each.key.engine_version) == wanted
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One pool's part of the cluster at one moment. `resources` are its servings as read, by key.

    `hosts` are its pods that engines come into, `reports` what their supervisors said, by uid. `slices` are all
    EndpointSlices that gpupack wrote, `budgets` all its PodDisruptionBudgets. `activators` are the
    addresses of those that are ready, `doors` the ports of servings there.
    """

    pool: PoolResource
    problem: str | None
    resources: Mapping[ServingKey, ServingResource]
    servings: tuple[Serving, ...]
    refused: tuple[Refused, ...]
    gpus: tuple[Gpu, ...]
    nodes: tuple[NodeSeen, ...]
    holders: tuple[Holder, ...]
    claims: tuple[ClaimSeen, ...]
    replicas: tuple[ReplicaSeen, ...]
    services: tuple[ServiceSeen, ...]
    exporters: tuple[PodAddress, ...]
    stale: tuple[str, ...]
    running: tuple[RunningEngine, ...] = ()
    appraisals: tuple[Appraisal, ...] = ()
    unknown_products: tuple[str, ...] = ()
    hosts: tuple[HostPod, ...] = ()
    reports: Mapping[str, HostReport] = field(default_factory=dict)
    slices: tuple[SliceThere, ...] = ()
    budgets: tuple[Child, ...] = ()
    offer: ClusterOffer | None = None
    agents: tuple[PodAddress, ...] = ()
    activators: tuple[str, ...] = ()
    doors: Mapping[ServingKey, int] = field(default_factory=dict)

    @property
    def has_households(self) -> bool:
        """Whether replicas of this pool may be engines inside one pod."""
        return any(gpu.one_household for gpu in self.gpus) or bool(self.hosts)

    def names_of(self, gpu: Gpu) -> tuple[str, ...]:
        """What exporters call a GPU: its uuid, and for a place that of the device that a pod got there.

        A slice may be called by that pod too, which may see no more of its device than the uuid of the whole GPU.
        """
        hosts = [each for each in self.hosts if each.claim.gpu_uuid == gpu.uuid]
        reports = [self.reports.get(each.claim.uid) for each in hosts]
        devices = [each.device for each in reports if each is not None and each.device]
        if gpu.kind.is_slice:
            own = [each for each in devices if each.startswith(labels.MIG_UUID)]
            return (*own, *(f"{each.claim.namespace}/{each.claim.name}" for each in hosts)) or (gpu.uuid,)
        return (*devices, gpu.uuid)[:1]

    def _with_cores(self, seen: GpuSeen) -> GpuSeen:
        """What the supervisor of the pod on that GPU says of waiting for cores, where there is one: it sees more of the
        engines' processes than the node agent, and their pod's limit."""
        here = [self.reports.get(each.claim.uid) for each in self.hosts if each.claim.gpu_uuid == seen.gpu.uuid]
        told = next((each for each in here if each is not None), None)
        return seen if told is None else replace(seen, core_wait=told.core_wait, throttled=told.throttled)

    def observation(
        self,
        at: Seconds,
        engines: tuple[EngineSeen, ...],
        readings_of: Callable[[Gpu], Readings],
        watched_since: Seconds | None = None,
        source_problem: SourceProblem | None = None,
        held: tuple[HeldSeen, ...] = (),
    ) -> Observation:
        ready = {node.name for node in self.nodes if node.ready}
        cordoned = {node.name for node in self.nodes if node.cordoned}
        return Observation(
            at=at,
            pool=self.pool.name,
            pool_uid=self.pool.uid,
            pool_generation=self.pool.generation,
            policy=self.pool.policy,
            plan=self.pool.plan,
            servings=self.servings,
            refused=self.refused,
            gpus=tuple(
                self._with_cores(_gpu_seen(gpu, gpu.node in ready, gpu.node in cordoned, readings_of(gpu)))
                for gpu in self.gpus
            ),
            nodes=self.nodes,
            holders=self.holders,
            claims=self.claims,
            replicas=self.replicas,
            engines=engines,
            services=self.services,
            stale=self.stale,
            pool_problem=self.problem,
            running=self.running,
            appraisals=self.appraisals,
            unknown_products=self.unknown_products,
            watched_since=watched_since,
            scales=self.pool.scales,
            source_problem=source_problem,
            offer=self.offer,
            held=held,
        )


def scene_of(mirrors: Mirrors, name: str) -> Scene | None:
    """The pool of that name and what it may see; None if it is gone."""
    pool = mirrors.pools.get("", name)
    if pool is None:
        return None
    devices = mirrors.devices()
    node_records = {node.name: node for node in mirrors.nodes.all()}
    mine = tuple(device for device in devices if _selects(pool, device, node_records))
    gpus = tuple(device.gpu for device in mine)
    pods, claims = _as_planned(pool, mirrors.pods.all()), mirrors.claims.all()
    foreign_pods = [pod.foreign for pod in pods if pod.foreign is not None]
    foreign_claims = [claim.foreign for claim in claims if claim.foreign is not None]
    hosts = tuple(pod.host for pod in pods if pod.host is not None and pod.host.pool == name)
    neighbours = [
        *(pod.replica for pod in pods if pod.replica is not None and pod.pool != name),
        *mirrors.engines_of(pod.host for pod in pods if pod.host is not None and pod.host.pool != name),
    ]
    resources = {each.key: each for each in mirrors.servings.all() if each.pool == name and not each.deleting}
    found = [serving_of(each, profile_of=mirrors.profile) for each in resources.values()]
    servings = tuple(replace(each, learned=mirrors.learned(each)) for each in found if isinstance(each, Serving))
    on_nodes = {gpu.node for gpu in gpus}
    return Scene(
        pool=pool,
        problem=_overlap(pool, mirrors.pools.all(), mine, node_records),
        resources=resources,
        servings=servings,
        refused=tuple(each for each in found if isinstance(each, Refused)),
        gpus=gpus,
        nodes=_nodes(on_nodes, node_records, foreign_pods, neighbours, devices, mirrors),
        holders=_holders(mine, foreign_claims, foreign_pods, neighbours, {each.claim.gpu_uuid for each in hosts}),
        claims=(
            *(claim.ours for claim in claims if claim.ours is not None and claim.pool == name),
            *(host_resource.claim_of(each, mirrors.hosts.report(each)) for each in hosts),
        ),
        replicas=(
            *(pod.replica for pod in pods if pod.replica is not None and pod.pool == name),
            *mirrors.engines_of(hosts),
        ),
        services=_services(servings, resources, mirrors, selects=not (hosts or any(gpu.one_household for gpu in gpus))),
        hosts=hosts,
        activators=mirrors.activators(),
        doors=mirrors.doors(servings),
        reports={each.claim.uid: told for each in hosts if (told := mirrors.hosts.report(each)) is not None},
        slices=mirrors.endpoint_slices.all(),
        budgets=mirrors.budgets.all(),
        exporters=_exporters(pool.sources.dcgm, pods, on_nodes),
        agents=_exporters(pool.sources.agent, pods, on_nodes),
        stale=mirrors.stale(),
        running=mirrors.running(resources, pods, foreign_claims, devices, node_records),
        appraisals=tuple(each.appraisal for each in resources.values() if each.appraisal is not None),
        unknown_products=_unknown_products(pool, mirrors.unknown_devices(), node_records),
        offer=mirrors.offer((each for each in node_records.values() if pool.looks_at(each.labels)), mine, pods),
    )


def _unknown_products(
    pool: PoolResource, devices: Iterable[UnknownDevice], nodes: Mapping[str, NodeRecord]
) -> tuple[str, ...]:
    return tuple(
        sorted({
            each.product
            for each in devices
            if (node := nodes.get(each.node)) is not None and pool.would_select(each.uuid, node.labels)
        })
    )  # fmt: skip


def _selects(pool: PoolResource, device: PlacedDevice, nodes: Mapping[str, NodeRecord]) -> bool:
    node = nodes.get(device.gpu.node)
    return node is not None and pool.selects(device.gpu, node.labels)


def _overlap(
    pool: PoolResource, pools: Iterable[PoolResource], mine: Iterable[PlacedDevice], nodes: Mapping[str, NodeRecord]
) -> str | None:
    """Two pools may not select one GPU; the younger one may not act, and says which GPU and which pool."""
    older = [each for each in pools if (each.created_at, each.name) < (pool.created_at, pool.name)]
    for other in sorted(older, key=lambda each: (each.created_at, each.name)):
        for device in mine:
            if _selects(other, device, nodes):
                return f"GPU {device.gpu.uuid} on node {device.gpu.node} is in the older pool {other.name} already"
    return None


def _holders(
    mine: tuple[PlacedDevice, ...],
    claims: Iterable[ForeignClaim],
    pods: Iterable[ForeignPod],
    neighbours: Iterable[ReplicaSeen],
    taken: set[str],
) -> tuple[Holder, ...]:
    """Others, and replicas that another pool has left on a GPU that is this pool's now."""
    uuids = {device.gpu.uuid for device in mine}
    left = [
        Holder(gpu_uuid=each.gpu_uuid, kind="Pod", name=f"{each.serving.namespace}/{each.name}")
        for each in neighbours
        if each.gpu_uuid in uuids
    ]
    return tuple(
        sorted(
            (*node_resource.holders_of(mine, claims, pods, taken), *left),
            key=lambda holder: (holder.gpu_uuid, holder.kind, holder.name),
        )
    )


def _nodes(
    wanted: set[str],
    records: Mapping[str, NodeRecord],
    pods: Iterable[ForeignPod],
    neighbours: Iterable[ReplicaSeen],
    devices: Iterable[PlacedDevice],
    mirrors: Mirrors,
) -> tuple[NodeSeen, ...]:
    """The nodes of this pool's GPUs. Replicas of another pool on the same node take cores like anybody else's pods."""
    node_of_gpu = {device.gpu.uuid: device.gpu.node for device in devices}
    others = [
        ForeignPod(
            namespace=each.serving.namespace,
            name=each.name,
            node=node_of_gpu[each.gpu_uuid],
            cpu_cores=float(serving.template.cpu_cores),
            extended=None,
        )
        for each in neighbours
        if each.gpu_uuid in node_of_gpu
        and (serving := mirrors.servings.get(each.serving.namespace, each.serving.name)) is not None
    ]
    return node_resource.nodes_of((records[name] for name in sorted(wanted)), (*pods, *others))


def _services(
    servings: Iterable[Serving], resources: Mapping[ServingKey, ServingResource], mirrors: Mirrors, *, selects: bool
) -> tuple[ServiceSeen, ...]:
    """One that somebody edited counts as absent, so that it is applied again."""
    return tuple(
        ServiceSeen(
            serving=each.key,
            has_service=child_resource.stands(
                mirrors.services.get(each.key.namespace, each.key.name), manifests.service(each, selects=selects)
            ),
            min_available=_min_available(each, mirrors.budgets.get(each.key.namespace, each.key.name)),
            inference_pool=mirrors.inference_pools.seen(each, resources[each.key]),
        )
        for each in sorted(servings, key=lambda each: each.key)
    )


def _min_available(serving: Serving, budget: Child | None) -> int | None:
    least = None if budget is None else child_resource.min_available_of(budget)
    return None if least is None or not child_resource.stands(budget, manifests.budget(serving, least)) else least


def _exporters(
    source: PodSource | None, pods: Iterable[PodRecord], nodes: set[str]
) -> tuple[PodAddress, ...]:  # fmt: skip
    """The exporters on the nodes of this pool's GPUs, by namespace and name."""
    if source is None:
        return ()
    return tuple(
        address
        for pod in pods
        if (address := pod.address) is not None
        and address.node in nodes
        and source.selects(address.namespace, dict(address.marks))
    )


def _gpu_seen(gpu: Gpu, node_ready: bool, cordoned: bool, readings: Readings) -> GpuSeen:
    return GpuSeen(
        gpu=gpu,
        node_ready=node_ready,
        dram_active=readings.dram_active,
        fb_used=readings.fb_used,
        power=readings.power,
        counter=readings.counter,
        cordoned=cordoned,
        xid=readings.xid,
        core_wait=readings.core_wait,
    )
