"""What there is in a cluster, as far as this user may look. Reads only; what it means is `findings`' business.

A part that cannot be read is an Unseen with the reason, never an empty one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import httpx

from gpupack.doctor.operators import OperatorSeen, may, operators
from gpupack.doctor.reading import UNAUTHORIZED, Json, Unseen, everything, or_unseen, reason_of
from gpupack.doctor.role import Right
from gpupack.errors import Unavailable
from gpupack.kube import labels
from gpupack.kube.api import Api, ApiError, NotFound
from gpupack.kube.node_resource import ForeignClaim, NodeRecord, SliceSeen, foreign_claim_of, node_of, slice_of
from gpupack.kube.offers import mps_gate_of, runtime_class_of
from gpupack.kube.quantities import number_of
from gpupack.kube.source_resource import AGENT_POD_LABELS, AGENT_PORT, DCGM_POD_LABELS, DCGM_PORT, PodSource
from gpupack.metrics.prometheus import GpuPage, parse_gpus
from gpupack.metrics.series import Exporter

SOURCES = {
    Exporter.DCGM: PodSource(namespace=None, pod_labels=DCGM_POD_LABELS, port=DCGM_PORT),
    Exporter.AGENT: PodSource(namespace=None, pod_labels=AGENT_POD_LABELS, port=AGENT_PORT),
}
"""Where a GpuPool looks for them that does not say."""
PAGE_SECONDS = 10.0
WATCHED_GROUPS = ("gpupack.dev/v1alpha1", "resource.k8s.io/v1", "monitoring.coreos.com/v1")
INSTALLING = (
    Right(verb="create", group="apiextensions.k8s.io", resource="customresourcedefinitions"),
    Right(verb="create", group="rbac.authorization.k8s.io", resource="clusterroles"),
    Right(verb="create", group="", resource="namespaces"),
    Right(verb="create", group="apps", resource="deployments"),
)
"""What `helm install` or `kubectl apply -k deploy/` does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuNode:
    """A node and the NVIDIA resources that a device plugin offers there, by full name."""

    record: NodeRecord
    offers: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PodLook:
    """A pod that runs or may run: what it is and what it asks a device plugin for.

    `mps_gate`: it is one of the DRA driver's, and whether that takes claims for MPS.
    """

    namespace: str
    name: str
    node: str
    labels: Mapping[str, str]
    images: tuple[str, ...]
    mps_gate: bool | None
    extended: tuple[str, ...]
    ours: bool
    ready: bool
    address: str | None

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def exporter(self) -> Exporter | None:
        """What it tells of GPUs as, if it does."""
        return next((each for each, source in SOURCES.items() if source.selects(self.namespace, self.labels)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSeen:
    """`slices` hold the driver's version beside them: `drivers` by node. `pages` tell of GPUs, by pod."""

    version: str
    served: frozenset[str]
    nodes: tuple[GpuNode, ...] | Unseen
    slices: tuple[SliceSeen, ...] | Unseen
    drivers: Mapping[str, str]
    device_classes: tuple[str, ...] | Unseen
    runtime_class: str | None
    claims: tuple[ForeignClaim, ...] | Unseen
    pods: tuple[PodLook, ...] | Unseen
    pages: Mapping[str, tuple[GpuPage, ...] | Unseen]
    may_not_install: tuple[Right, ...] | Unseen
    operators: tuple[OperatorSeen, ...] | Unseen


async def look(api: Api, *, pod_proxy: str | None, progress: Callable[[str], None]) -> ClusterSeen:
    """Raises Unavailable only if the API server does not answer at all."""
    version = await _version(api)
    progress(f"Kubernetes {version}")
    served = frozenset([group for group in WATCHED_GROUPS if await _is_served(api, group)])
    progress("nodes, devices, claims, pods")
    dra = "resource.k8s.io/v1" in served
    no_dra = Unseen(why="the API server does not serve resource.k8s.io/v1")
    raw_slices = await or_unseen(everything(api, "/apis/resource.k8s.io/v1/resourceslices")) if dra else no_dra
    classes = await or_unseen(everything(api, "/apis/resource.k8s.io/v1/deviceclasses")) if dra else no_dra
    claims = await or_unseen(everything(api, "/apis/resource.k8s.io/v1/resourceclaims")) if dra else no_dra
    runtimes = await or_unseen(everything(api, "/apis/node.k8s.io/v1/runtimeclasses"))
    named = () if isinstance(runtimes, Unseen) else (runtime_class_of(each) for each in runtimes)
    nodes = await or_unseen(everything(api, "/api/v1/nodes"))
    raw_pods = await or_unseen(everything(api, "/api/v1/pods"))
    pods = raw_pods if isinstance(raw_pods, Unseen) else tuple(pod for each in raw_pods if (pod := _pod(each)))
    pages: dict[str, tuple[GpuPage, ...] | Unseen] = {}
    if not isinstance(pods, Unseen):
        exporters = [(each, each.exporter) for each in pods if each.exporter is not None]
        progress(f"{len(exporters)} dcgm-exporters and node agents")
        found = await asyncio.gather(*(_page(api, each, kind, pod_proxy) for each, kind in exporters))
        pages = dict(zip([each.key for each, _ in exporters], found, strict=True))
    progress("the operator, and what it and you may do here")
    return ClusterSeen(
        version=version,
        served=served,
        nodes=nodes if isinstance(nodes, Unseen) else tuple(_node(each) for each in nodes),
        slices=raw_slices if isinstance(raw_slices, Unseen) else _slices(raw_slices),
        drivers={} if isinstance(raw_slices, Unseen) else _drivers(raw_slices),
        device_classes=classes if isinstance(classes, Unseen) else tuple(each["metadata"]["name"] for each in classes),
        runtime_class=next((name for name in named if name is not None), None),
        claims=claims if isinstance(claims, Unseen) else tuple(c for each in claims if (c := foreign_claim_of(each))),
        pods=pods,
        pages=pages,
        may_not_install=await _may_not_install(api),
        operators=await operators(api),
    )


async def _version(api: Api) -> str:
    try:
        return str((await api.get("/version")).get("gitVersion", ""))
    except ApiError as refused:
        words = reason_of(refused)
        fix = "Log in again, or take another context" if refused.status == UNAUTHORIZED else "Look at its health"
        raise Unavailable(f"The API server cannot be asked: {words}. {fix}; see: kubectl version") from refused
    except Unavailable as silent:
        problem = str(silent.__cause__ or "") or str(silent)
        raise Unavailable(
            f"No API server answers: {problem}. See that the cluster runs, and that the current context of the "
            "kubeconfig leads to it: kubectl cluster-info"
        ) from silent


async def _is_served(api: Api, group: str) -> bool:
    try:
        await api.get(f"/apis/{group}")
    except NotFound:
        return False
    return True


async def _may_not_install(api: Api) -> tuple[Right, ...] | Unseen:
    try:
        answers = [(right, await may(api, "SelfSubjectAccessReview", right)) for right in INSTALLING]
    except Unavailable as refused:
        return Unseen(why=reason_of(refused))
    return tuple(right for right, allowed in answers if not allowed)


async def _page(api: Api, pod: PodLook, kind: Exporter, pod_proxy: str | None) -> tuple[GpuPage, ...] | Unseen:
    """An exporter's page, through the API server's own way to pods, or through a forward proxy that reaches them."""
    port = SOURCES[kind].port
    try:
        if pod_proxy is None:
            path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}:{port}/proxy/metrics"
            return parse_gpus(await api.read(path), kind)
        if pod.address is None:
            return Unseen(why="it has no address yet")
        async with httpx.AsyncClient(proxy=pod_proxy, trust_env=False, timeout=PAGE_SECONDS) as client:
            answer = await client.get(f"http://{pod.address}:{port}/metrics")
            if answer.is_error:
                return Unseen(why=f"it answers with status {answer.status_code}")
            return parse_gpus(answer.content, kind)
    except Unavailable as problem:
        return Unseen(why=reason_of(problem))
    except httpx.HTTPError as problem:
        return Unseen(why=str(problem).rstrip(".") or f"it did not answer ({type(problem).__name__})")


def _node(item: Json) -> GpuNode:
    allocatable = item.get("status", {}).get("allocatable", {})
    offers = {
        name: int(number_of(count))
        for name, count in allocatable.items()
        if name.startswith(labels.EXTENDED_RESOURCES) and number_of(count)
    }
    return GpuNode(record=node_of(item), offers=offers)


def _slices(items: Sequence[Json]) -> tuple[SliceSeen, ...]:
    return tuple(seen for each in items if (seen := slice_of(each)) is not None)


def _drivers(items: Sequence[Json]) -> dict[str, str]:
    """The NVIDIA driver's version by node, where its slices say it."""
    found: dict[str, str] = {}
    for item in items:
        spec = item["spec"]
        for device in spec.get("devices", ()) if spec["driver"] == labels.DRIVER else ():
            attributes = {key.rpartition("/")[2]: value for key, value in device.get("attributes", {}).items()}
            version = attributes.get("driverVersion", {}).get("version")
            if version and "nodeName" in spec:
                found[spec["nodeName"]] = version
    return found


def _pod(item: Json) -> PodLook | None:
    """None for one that has ended."""
    metadata, spec, status = item["metadata"], item["spec"], item.get("status", {})
    if status.get("phase") in ("Succeeded", "Failed"):
        return None
    containers = spec["containers"]
    limits = [name for each in containers for name in each.get("resources", {}).get("limits", {})]
    conditions = {each["type"]: each["status"] for each in status.get("conditions", ())}
    return PodLook(
        namespace=metadata["namespace"],
        name=metadata["name"],
        node=spec.get("nodeName", ""),
        labels=metadata.get("labels", {}),
        images=tuple(each.get("image", "") for each in containers),
        mps_gate=mps_gate_of(item),
        extended=tuple(name for name in limits if name.startswith(labels.EXTENDED_RESOURCES)),
        ours=metadata.get("labels", {}).get(labels.MANAGER) == labels.MANAGED_BY,
        ready=conditions.get("Ready") == "True",
        address=status.get("podIP"),
    )
