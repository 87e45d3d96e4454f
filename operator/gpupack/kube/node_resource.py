"""What stands in the cluster besides gpupack's own: GPUs in ResourceSlices, nodes, and who else holds a GPU.

Every function takes one object and gives a slim record, so that a mirror can keep records instead of objects; the last
two put records together. Knows the DRA driver's attribute names, not the catalog: looking a product up is an argument.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gpupack.facts.gpu import Gpu, GpuKind
from gpupack.facts.observation import DEVICE_TAINT, Holder, NodeSeen
from gpupack.kube import labels
from gpupack.kube.quantities import number_of
from gpupack.units import MIB, Bytes, parse_bytes

GpuByProduct = Callable[[str, Bytes | None], GpuKind | None]
"""A GPU kind by the driver's product name and, where it is published, the device's memory; None if it is unknown."""

NAMELESS = "a GPU without productName"
UNLABELLED = f"a GPU without the label {labels.PRODUCT}"
"""What stands for the product of a device that a driver publishes, or a device plugin offers, without saying it."""
LABEL_LIMIT = 63
BLOCKING_TAINTS = ("NoSchedule", "NoExecute")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One GPU, or one MIG slice of the GPU `parent`, as its driver publishes it.

    `product` of a slice has its profile, as in `NVIDIA H200-MIG-1g.18gb`. `taint` is the first one that keeps new pods
    away, or None.
    """

    name: str
    uuid: str
    product: str
    memory: Bytes | None
    taint: str | None
    parent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceSeen:
    """One ResourceSlice of the NVIDIA driver. Only the slices of a pool's newest generation count."""

    pool: str
    generation: int
    node: str
    devices: tuple[Device, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedDevice:
    """A GPU with the name by which claims refer to it: pool and device."""

    gpu: Gpu
    pool: str
    taint: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownDevice:
    """A GPU whose product the catalog does not have."""

    product: str
    uuid: str
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """`cpu_cores` is what pods may have of it in all, `gpus` the whole ones that its device plugin offers, `parts` the
    plugin's other resources, `slices` those among them that are MIG slices of one profile, and how many.

    `cordoned`: it takes no new ones.
    """

    name: str
    ready: bool
    labels: Mapping[str, str]
    cpu_cores: float
    cordoned: bool = False
    gpus: int = 0
    parts: tuple[str, ...] = ()
    slices: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignPod:
    """A pod that is not ours and has a node. `extended` is the GPU resource it asks a device plugin for, or None.

    `gpus` is how many of it it asks for.
    """

    namespace: str
    name: str
    node: str
    cpu_cores: float
    extended: str | None
    gpus: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignClaim:
    """An allocated ResourceClaim that is not ours, with its devices of the NVIDIA driver as (pool, device)."""

    namespace: str
    name: str
    devices: tuple[tuple[str, str], ...]


def slice_of(resource_slice: Mapping[str, Any]) -> SliceSeen | None:
    """A slice of the NVIDIA driver that belongs to one node; None for any other.

    MIG slices that only could be cut have no uuid yet and are left out.
    """
    spec = resource_slice["spec"]
    if spec["driver"] != labels.DRIVER or "nodeName" not in spec:
        return None
    return SliceSeen(
        pool=spec["pool"]["name"],
        generation=spec["pool"]["generation"],
        node=spec["nodeName"],
        devices=tuple(device for each in spec.get("devices", ()) if (device := _device(each)) is not None),
    )


def node_of(node: Mapping[str, Any]) -> NodeRecord:
    status = node.get("status", {})
    offered = {
        name: int(number_of(count))
        for name, count in sorted(status.get("allocatable", {}).items())
        if name.startswith(labels.EXTENDED_RESOURCES) and number_of(count) > 0
    }
    conditions = {each["type"]: each["status"] for each in status.get("conditions", ())}
    return NodeRecord(
        name=node["metadata"]["name"],
        ready=conditions.get("Ready") == "True",
        labels=node["metadata"].get("labels", {}),
        cpu_cores=number_of(status.get("allocatable", {}).get("cpu", "0")),
        cordoned=bool(node.get("spec", {}).get("unschedulable", False)),
        gpus=offered.get(labels.PLUGIN_GPU, 0),
        parts=tuple(name for name in offered if name != labels.PLUGIN_GPU),
        slices=tuple(each for each in offered.items() if each[0].startswith(labels.PLUGIN_SLICE)),
    )


def foreign_pod_of(pod: Mapping[str, Any]) -> ForeignPod | None:
    """None for ours, for those without a node, and for those that have ended and hold nothing.

    A pod whose extended resource is served by DRA has a claim of its own, which names the device; that one counts.
    """
    metadata, spec, status = pod["metadata"], pod["spec"], pod.get("status", {})
    ours = metadata.get("labels", {}).get(labels.MANAGER) == labels.MANAGED_BY
    if ours or "nodeName" not in spec or status.get("phase") in ("Succeeded", "Failed"):
        return None
    extended = None if "extendedResourceClaimStatus" in status else _extended(spec)
    return ForeignPod(
        namespace=metadata["namespace"],
        name=metadata["name"],
        node=spec["nodeName"],
        cpu_cores=_cpu_cores(spec),
        extended=extended,
        gpus=0 if extended is None else _gpus(spec, extended),
    )


def foreign_claim_of(claim: Mapping[str, Any]) -> ForeignClaim | None:
    """None for ours, and for those that hold no NVIDIA GPU (not allocated, another driver, admin access)."""
    metadata = claim["metadata"]
    if metadata.get("labels", {}).get(labels.MANAGER) == labels.MANAGED_BY:
        return None
    results = claim.get("status", {}).get("allocation", {}).get("devices", {}).get("results", ())
    devices = tuple(
        (each["pool"], each["device"])
        for each in results
        if each["driver"] == labels.DRIVER and not each.get("adminAccess", False)
    )
    if not devices:
        return None
    return ForeignClaim(namespace=metadata["namespace"], name=metadata["name"], devices=devices)


def devices_of(slices: Iterable[SliceSeen], gpu_by_product: GpuByProduct) -> tuple[PlacedDevice, ...]:
    """GPUs of the catalog by node and name. Products that it does not have are left out (`unknown_devices_of`)."""
    placed = []
    for each in _newest(slices):
        for device in each.devices:
            if (kind := gpu_by_product(device.product, device.memory)) is not None:
                gpu = Gpu(
                    uuid=device.uuid, node=each.node, device_name=device.name, kind=kind, parent_uuid=device.parent
                )
                placed.append(PlacedDevice(gpu=gpu, pool=each.pool, taint=device.taint))
    return tuple(sorted(placed, key=lambda device: (device.gpu.node, device.gpu.device_name)))


def places_of(
    nodes: Iterable[NodeRecord], slices: Iterable[SliceSeen], gpu_by_product: GpuByProduct
) -> tuple[PlacedDevice, ...]:
    """The GPUs and MIG slices that a device plugin offers, on nodes of which no driver publishes devices.

    Which device a pod gets is the plugin's choice, so these are places, as many as the node has of each; nobody tells
    from which GPU a slice is cut. Nodes whose plugin shares GPUs offer none.
    """
    return tuple(
        PlacedDevice(
            gpu=Gpu(
                uuid=place_name(node.name, number, sort), node=node.name, device_name=f"{sort}-{number}", kind=kind,
                one_household=True, resource=resource,
            ),
            pool="", taint=None,
        )
        for node, resource, sort, count in _offered(nodes, slices)
        if (kind := kind_on(node, gpu_by_product, resource)) is not None
        for number in range(count)
    )  # fmt: skip


def unknown_places_of(
    nodes: Iterable[NodeRecord], slices: Iterable[SliceSeen], gpu_by_product: GpuByProduct
) -> tuple[UnknownDevice, ...]:
    """What a device plugin offers whole, or as MIG slices, and the catalog does not have; `places_of` leaves it out."""
    return tuple(
        UnknownDevice(
            product=_product_on(node, resource) or UNLABELLED, uuid=place_name(node.name, number, sort), node=node.name
        )
        for node, resource, sort, count in _offered(nodes, slices)
        if kind_on(node, gpu_by_product, resource) is None
        for number in range(count)
    )


def _offered(nodes: Iterable[NodeRecord], slices: Iterable[SliceSeen]) -> Iterator[tuple[NodeRecord, str, str, int]]:
    """Node, resource, how places of it are called, how many: of what a plugin offers unshared and no driver has."""
    published = {each.node for each in slices}
    for node in sorted(nodes, key=lambda each: each.name):
        if node.name not in published and node.labels.get(labels.PLUGIN_SHARING, "none") == "none":
            for resource, count in ((labels.PLUGIN_GPU, node.gpus), *node.slices):
                yield node, resource, resource.removeprefix(labels.EXTENDED_RESOURCES), count


def place_name(node: str, number: int, sort: str = "gpu") -> str:
    """Stands for one of a node's GPUs where a uuid would: a label's value, so at most 63 characters."""
    tail = f"-{sort}-{number}"
    if len(node) + len(tail) <= LABEL_LIMIT:
        return node + tail
    tail = f"-{hashlib.sha256(node.encode()).hexdigest()[:10]}{tail}"
    return node[: min(40, LABEL_LIMIT - len(tail))].rstrip("-.") + tail


def kind_on(node: NodeRecord, gpu_by_product: GpuByProduct, resource: str = labels.PLUGIN_GPU) -> GpuKind | None:
    """The kind of a node's GPUs by what GPU feature discovery wrote on it; None if it wrote nothing that is known.

    `resource`: of what the device plugin offers.
    """
    product = _product_on(node, resource)
    if product is None:
        return None
    memory = node.labels.get(f"{resource}.memory", "")
    return gpu_by_product(product, Bytes(int(memory) * MIB) if memory.isdecimal() else None)


def _product_on(node: NodeRecord, resource: str) -> str | None:
    """The product of what the plugin offers there, with the profile if it is a MIG slice; None if no label says it.

    Where slices are by profile, the label is that of the whole GPU; the plugin writes `1g.10gb.me` where drivers write
    `1g.10gb+me`.
    """
    product = node.labels.get(labels.PRODUCT)
    if product is None or not resource.startswith(labels.PLUGIN_SLICE):
        return product
    return product + labels.SLICE_OF + resource.removeprefix(labels.PLUGIN_SLICE).replace(".me", "+me")


def unknown_devices_of(slices: Iterable[SliceSeen], gpu_by_product: GpuByProduct) -> tuple[UnknownDevice, ...]:
    """GPUs that stand in the cluster and whose product is not in the catalog, in the order of the slices."""
    return tuple(
        UnknownDevice(product=device.product or NAMELESS, uuid=device.uuid, node=each.node)
        for each in _newest(slices)
        for device in each.devices
        if gpu_by_product(device.product, device.memory) is None
    )


def holders_of(
    devices: Iterable[PlacedDevice],
    claims: Iterable[ForeignClaim],
    pods: Iterable[ForeignPod],
    taken: Collection[str] = (),
) -> tuple[Holder, ...]:
    """Who else is on which GPU, by GPU and name. Who has a GPU has its MIG slices, who has a slice has its GPU.

    A device plugin's pod does not say which GPU it has, so it holds every GPU of its node; but of places, which stand
    for any GPU of the node, as many as it asks for: the last ones that are not `taken` by pods of ours. A tainted
    device is held by its taint: the scheduler would still let further pods of an allocated claim onto it.
    """
    devices = tuple(devices)
    by_name = {(device.pool, device.gpu.device_name): device.gpu.uuid for device in devices}
    by_parent: dict[str, list[str]] = {}
    for device in devices:
        by_parent.setdefault(device.gpu.parent_uuid or device.gpu.uuid, []).append(device.gpu.uuid)
    parents = {device.gpu.uuid: device.gpu.parent_uuid for device in devices}
    held = {
        Holder(gpu_uuid=uuid, kind="ResourceClaim", name=f"{claim.namespace}/{claim.name}")
        for claim in claims
        for name in claim.devices
        if (found := by_name.get(name)) is not None
        for uuid in (found, *((parents[found],) if parents[found] else by_parent[found]))
        if uuid in parents
    }
    on_node: dict[str, list[str]] = {}
    free: dict[tuple[str, str], list[str]] = {}
    for device in devices:
        if not device.gpu.one_household:
            on_node.setdefault(device.gpu.node, []).append(device.gpu.uuid)
        elif device.gpu.uuid not in taken:
            free.setdefault((device.gpu.node, device.gpu.resource), []).append(device.gpu.uuid)
        if device.taint is not None:
            held.add(Holder(gpu_uuid=device.gpu.uuid, kind=DEVICE_TAINT, name=device.taint))
    for pod in pods:
        if pod.extended is not None:
            name = f"{pod.namespace}/{pod.name}"
            held.update(Holder(gpu_uuid=uuid, kind="Pod", name=name) for uuid in on_node.get(pod.node, ()))
            left = free.get((pod.node, pod.extended), [])
            held.update(Holder(gpu_uuid=left.pop(), kind="Pod", name=name) for _ in range(min(pod.gpus, len(left))))
    return tuple(sorted(held, key=lambda holder: (holder.gpu_uuid, holder.kind, holder.name)))


def nodes_of(nodes: Iterable[NodeRecord], pods: Iterable[ForeignPod]) -> tuple[NodeSeen, ...]:
    """Nodes with the cores that pods of others request of them."""
    cores: dict[str, float] = {}
    for pod in pods:
        cores[pod.node] = cores.get(pod.node, 0.0) + pod.cpu_cores
    return tuple(
        NodeSeen(
            name=node.name,
            ready=node.ready,
            cpu_cores=node.cpu_cores,
            cpu_cores_of_others=cores.get(node.name, 0.0),
            cordoned=node.cordoned,
        )
        for node in nodes
    )


def _newest(slices: Iterable[SliceSeen]) -> list[SliceSeen]:
    slices = tuple(slices)
    newest: dict[str, int] = {}
    for each in slices:
        newest[each.pool] = max(each.generation, newest.get(each.pool, 0))
    return [each for each in slices if each.generation == newest[each.pool]]


def _device(device: Mapping[str, Any]) -> Device | None:
    attributes = {name.removeprefix(f"{labels.DRIVER}/"): value for name, value in device.get("attributes", {}).items()}
    sort = attributes.get("type", {}).get("string", "gpu")
    if sort not in ("gpu", "mig") or "uuid" not in attributes:
        return None
    product = attributes.get("productName", {}).get("string", "")
    if sort == "mig":
        product = f"{product}{labels.SLICE_OF}{attributes.get('profile', {}).get('string', '')}"
    capacity = {name.removeprefix(f"{labels.DRIVER}/"): value for name, value in device.get("capacity", {}).items()}
    memory = capacity.get("memory", {}).get("value")
    return Device(
        name=device["name"],
        uuid=attributes["uuid"]["string"],
        product=product,
        memory=None if memory is None else parse_bytes(memory),
        taint=_taint(device.get("taints", ())),
        parent=attributes.get("parentUUID", {}).get("string", ""),
    )


def _taint(taints: Iterable[Mapping[str, str]]) -> str | None:
    """The strongest: one that evicts before one that only keeps new pods away."""
    blocking = [each for each in taints if each["effect"] in BLOCKING_TAINTS]
    strongest = max(blocking, key=lambda each: BLOCKING_TAINTS.index(each["effect"]), default=None)
    return None if strongest is None else f"{strongest['key']}={strongest.get('value', '')}:{strongest['effect']}"


def _cpu_cores(spec: Mapping[str, Any]) -> float:
    """What the scheduler counts: containers and restartable init containers together, or the largest init container."""
    running, starting = 0.0, 0.0
    for container in spec.get("initContainers", ()):
        cores = _requested(container, "cpu")
        if container.get("restartPolicy") == "Always":
            running += cores
        else:
            starting = max(starting, running + cores)
    running += sum(_requested(container, "cpu") for container in spec["containers"])
    return max(running, starting) + number_of(spec.get("overhead", {}).get("cpu", "0"))


def _requested(container: Mapping[str, Any], resource: str) -> float:
    return number_of(container.get("resources", {}).get("requests", {}).get(resource, "0"))


def _gpus(spec: Mapping[str, Any], resource: str) -> int:
    """As the scheduler counts: containers together, or the largest init container."""
    starting = max((_limited(each, resource) for each in spec.get("initContainers", ())), default=0)
    return max(starting, sum(_limited(each, resource) for each in spec["containers"]))


def _limited(container: Mapping[str, Any], resource: str) -> int:
    return int(number_of(container.get("resources", {}).get("limits", {}).get(resource, "0")))


def _extended(spec: Mapping[str, Any]) -> str | None:
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        for resource in container.get("resources", {}).get("limits", {}):
            if resource.startswith(labels.EXTENDED_RESOURCES):
                return str(resource)
    return None
