"""The node and its GPUs as the API knows them: Node, Lease, DeviceClass, ResourceSlices and a dcgm-exporter pod.

What kubelet, the DRA driver of NVIDIA and the GPU operator would write. All by server-side apply, so writing again is
writing once; what is removed at the end is what was made here. Knows no engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gpupack.errors import Invalid, Unavailable
from gpupack.facts.gpu import GpuKind, MigProfile
from gpupack.kube.api import Api, NotFound
from gpupack.kube.labels import (
    DEVICE_CLASS,
    DRIVER,
    MIG_DEVICE_CLASS,
    PLUGIN_GPU,
    PLUGIN_SHARING,
    PLUGIN_SLICE,
    SLICE_OF,
)
from gpupack.kube.times import rfc3339, rfc3339_micro
from gpupack.units import MIB, Bytes, Seconds, gibibytes

LEASE_SECONDS = 10.0
LEASE_DURATION_SECONDS = 40
DEVICES_A_SLICE = 64
"""The API's limit where devices consume counters; others may be 128."""
COUNTER_SETS_A_SLICE = 8
MAX_PODS = 110
EXPORTER_NAMESPACE = "gpu-operator"
EXPORTER_PORT = 9400
DRIVER_VERSION = "595.91.7"
"""As an attribute of a ResourceSlice, which must be a semantic version; the driver calls it 595.91.07."""
CUDA_VERSION = "13.1.0"
AGAIN_SECONDS = 0.2

_ARCHITECTURES = {
    "T4": ("Turing", "7.5.0"), "L4": ("Ada Lovelace", "8.9.0"), "A10G": ("Ampere", "8.6.0"),
    "A100": ("Ampere", "8.0.0"), "H100": ("Hopper", "9.0.0"), "H200": ("Hopper", "9.0.0"),
}  # fmt: skip


MEMORY_SLICES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the node offers besides GPUs."""

    cpu_cores: int
    memory: Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One GPU of a node, or one MIG slice of it. `device` is its name in the node's DRA pool, called as the node is.

    `memory_slices` are those of the GPU's eight that it has: first, and after the last. `parent` is the uuid of the GPU
    that a slice is cut from, `instance` NVML's number of it there.
    """

    node: str
    index: int
    uuid: str
    device: str
    kind: GpuKind
    parent: str = ""
    instance: int = 0
    memory_slices: tuple[int, int] = (0, MEMORY_SLICES)

    @property
    def bus_id(self) -> str:
        return f"0000:{0x18 + self.index:02x}:00.0"


class MigStrategy(StrEnum):
    """What a device plugin makes of MIG slices: nothing, each a GPU, or a resource by profile."""

    NONE = "none"
    SINGLE = "single"
    MIXED = "mixed"


def cards(node: str, kind: GpuKind, count: int) -> tuple[Card, ...]:
    """The same node name has the same GPUs again."""
    return tuple(
        Card(node=node, index=index, uuid=_uuid(f"{node}/{index}"), device=f"gpu-{index}", kind=kind)
        for index in range(count)
    )


def cut(node: str, kind: GpuKind, count: int, profiles: Sequence[MigProfile]) -> tuple[Card, ...]:
    """The same GPUs, each followed by the slices of these profiles that it is cut into.

    Raises Invalid where one GPU has no room for them.
    """
    found: list[Card] = []
    for whole in cards(node, kind, count):
        found.append(whole)
        first = 0
        for number, profile in enumerate(profiles):
            size = round(MEMORY_SLICES * profile.kind.dram_bytes_per_second / kind.dram_bytes_per_second)
            found.append(
                Card(
                    node=node, index=whole.index, uuid=f"MIG-{_uuid(f'{whole.uuid}/{number}')[4:]}",
                    device=f"{whole.device}-mig-{number}-{first}-{size}", kind=profile.kind, parent=whole.uuid,
                    instance=number + 1, memory_slices=(first, first + size),
                )
            )  # fmt: skip
            first += size
    if sum(each.kind.sm_count for each in profiles) > kind.sm_count or any(
        each.memory_slices[1] > MEMORY_SLICES for each in found
    ):
        said = ", ".join(each.name for each in profiles)
        raise Invalid("--mig-profiles", f"one {kind.name} has no room for {said}", "give fewer or smaller slices")
    return tuple(found)


def offered(gpus: Sequence[Card], strategy: MigStrategy) -> dict[str, tuple[Card, ...]]:
    """What a device plugin counts, by resource: whole GPUs, and of those that are cut their slices."""
    parents = {card.parent for card in gpus}
    found: dict[str, tuple[Card, ...]] = {}
    for card in gpus:
        if card.uuid not in parents:
            resource = PLUGIN_GPU
            if card.parent and strategy is MigStrategy.MIXED:
                resource = PLUGIN_SLICE + card.kind.mig_profile.replace("+", ".")
            found[resource] = (*found.get(resource, ()), card)
    return found


def feature_labels(gpus: Sequence[Card], strategy: MigStrategy) -> dict[str, str]:
    """What GPU feature discovery writes (internal/lm/resource.go): of whole GPUs, then of what the plugin offers."""
    whole = [card for card in gpus if not card.parent]
    found = {"nvidia.com/mig.strategy": strategy.value}
    for resource, there in ((PLUGIN_GPU, whole), *offered(gpus, strategy).items()):
        for kind in (each.kind for each in there[:1]):
            product = kind.product_names[0].replace(" ", "-")
            found |= {
                f"{resource}.product": f"{product}{SLICE_OF}{kind.mig_profile}" if kind.is_slice else product,
                f"{resource}.count": str(len(there)),
                f"{resource}.memory": str(kind.memory_bytes // MIB),
                **({f"{resource}.multiprocessors": str(kind.sm_count)} if kind.is_slice else {}),
            }
    return found | {PLUGIN_SHARING: "none"}


class VirtualNode:
    """`join` makes the node Ready with its GPUs; `run` keeps its Lease; `leave` takes away what `join` made."""

    def __init__(
        self, api: Api, name: str, address: str, machine: Machine, gpus: Sequence[Card], *,
        plugin: MigStrategy | None = None,
    ) -> None:  # fmt: skip
        """`plugin`: GPUs are extended resources with the labels of GPU feature discovery, and no ResourceSlices."""
        self.name = name
        self.gpus = tuple(gpus)
        self._api = api
        self._address = address
        self._machine = machine
        self._plugin = plugin

    async def join(self) -> None:
        """Raises Unavailable if the API server refuses or does not answer."""
        await self._api.apply(f"/api/v1/nodes/{self.name}", self._node())
        await self._api.apply(f"/api/v1/nodes/{self.name}/status", {**self._node(), "status": self._status()})
        await self._renew()
        if self._plugin is not None:
            return
        classes = "/apis/resource.k8s.io/v1/deviceclasses"
        for name, sort in ((DEVICE_CLASS, "gpu"), (MIG_DEVICE_CLASS, "mig")):
            try:
                await self._api.get(f"{classes}/{name}")
            except NotFound:
                await self._api.apply(f"{classes}/{name}", _device_class(name, sort))
        for piece in resource_slices(self.name, self.gpus):
            await self._api.apply(f"/apis/resource.k8s.io/v1/resourceslices/{piece['metadata']['name']}", piece)

    async def start_exporter(self, image: str) -> None:
        """The dcgm-exporter pod, bound to this node as its DaemonSet would bind it."""
        await self._api.apply(
            f"/api/v1/namespaces/{EXPORTER_NAMESPACE}",
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": EXPORTER_NAMESPACE}},
        )
        account = f"/api/v1/namespaces/{EXPORTER_NAMESPACE}/serviceaccounts/default"
        while True:  # pods are refused before the controller manager has made it
            try:
                await self._api.get(account)
                break
            except NotFound:
                await asyncio.sleep(AGAIN_SECONDS)
        await self._api.apply(self._exporter_path, self._exporter(image))

    async def run(self) -> None:
        """Never returns. An API server that is away is asked again."""
        while True:
            await asyncio.sleep(LEASE_SECONDS)
            with contextlib.suppress(Unavailable):
                await self._renew()

    async def leave(self) -> None:
        """Deletes exporter, slices and node. What is gone already is success; raises Unavailable otherwise."""
        await self._delete(self._exporter_path, grace_seconds=0)
        for piece in () if self._plugin is not None else resource_slices(self.name, self.gpus):
            await self._delete(f"/apis/resource.k8s.io/v1/resourceslices/{piece['metadata']['name']}")
        await self._delete(f"/api/v1/nodes/{self.name}")

    async def _delete(self, path: str, grace_seconds: int | None = None) -> None:
        try:
            found = await self._api.get(path)
        except NotFound:
            return
        await self._api.delete(path, uid=found["metadata"]["uid"], grace_seconds=grace_seconds)

    @property
    def _exporter_path(self) -> str:
        return f"/api/v1/namespaces/{EXPORTER_NAMESPACE}/pods/nvidia-dcgm-exporter-{self.name}"

    async def _renew(self) -> None:
        path = f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{self.name}"
        await self._api.apply(path, {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self.name, "namespace": "kube-node-lease"},
            "spec": {
                "holderIdentity": self.name,
                "leaseDurationSeconds": LEASE_DURATION_SECONDS,
                "renewTime": rfc3339_micro(Seconds(time.time())),
            },
        })  # fmt: skip

    def _node(self) -> dict[str, Any]:
        labels = {
            "kubernetes.io/hostname": self.name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
            "nvidia.com/gpu.present": "true",
            "gpupack.dev/virtual-node": self._sort(),
        }
        if self._plugin is not None and self.gpus:
            labels |= feature_labels(self.gpus, self._plugin)
        return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.name, "labels": labels}}

    def _sort(self) -> str:
        """How its GPUs are offered."""
        if self._plugin is not None:
            return "device-plugin" if self._plugin is MigStrategy.NONE else f"mig-{self._plugin}"
        return "mig" if any(each.kind.is_slice for each in self.gpus) else "dra"

    def _status(self) -> dict[str, Any]:
        now = rfc3339(Seconds(time.time()))
        pressures = ("MemoryPressure", "DiskPressure", "PIDPressure")
        conditions = [_condition("Ready", "True", "KubeletReady", now)]
        conditions += [_condition(kind, "False", "KubeletHasSufficient", now) for kind in pressures]
        room = {
            "cpu": str(self._machine.cpu_cores),
            "memory": f"{gibibytes(self._machine.memory):.0f}Gi",
            "pods": str(MAX_PODS),
            "ephemeral-storage": "1000Gi",
            **self._offered(),
        }
        info = dict.fromkeys(("machineID", "systemUUID", "bootID"), self.name)
        return {
            "capacity": room,
            "allocatable": room,
            "conditions": conditions,
            "addresses": [
                {"type": "InternalIP", "address": self._address},
                {"type": "Hostname", "address": self.name},
            ],
            "nodeInfo": {
                **info, "kernelVersion": "virtual", "osImage": "gpupack virtual node",
                "containerRuntimeVersion": "gpupack://0", "kubeletVersion": "v1.37.1", "kubeProxyVersion": "",
                "operatingSystem": "linux", "architecture": "amd64",
            },
        }  # fmt: skip

    def _offered(self) -> dict[str, str]:
        if self._plugin is None:
            return {}
        return {resource: str(len(there)) for resource, there in offered(self.gpus, self._plugin).items()}

    def _exporter(self, image: str) -> dict[str, Any]:
        name = f"nvidia-dcgm-exporter-{self.name}"
        labels = {"app": "nvidia-dcgm-exporter", "app.kubernetes.io/name": "dcgm-exporter"}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": EXPORTER_NAMESPACE, "labels": labels},
            "spec": {
                "nodeName": self.name,
                "tolerations": [{"operator": "Exists"}],
                "terminationGracePeriodSeconds": 0,
                "containers": [
                    {
                        "name": "nvidia-dcgm-exporter",
                        "image": image,
                        "ports": [{"name": "metrics", "containerPort": EXPORTER_PORT}],
                        "readinessProbe": {"httpGet": {"path": "/health", "port": EXPORTER_PORT}, "periodSeconds": 1},
                    }
                ],
            },
        }


def _uuid(seed: str) -> str:
    digest = hashlib.sha256(seed.encode()).hexdigest()
    return f"GPU-{digest[:8]}-{digest[8:12]}-{digest[12:16]}-{digest[16:20]}-{digest[20:32]}"


def _condition(kind: str, truth: str, reason: str, now: str) -> dict[str, Any]:
    return {"type": kind, "status": truth, "reason": reason, "lastHeartbeatTime": now, "lastTransitionTime": now}


def _device_class(name: str, sort: str) -> dict[str, Any]:
    chosen = f"device.driver == '{DRIVER}' && device.attributes['{DRIVER}'].type == '{sort}'"
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceClass",
        "metadata": {"name": name},
        "spec": {"selectors": [{"cel": {"expression": chosen}}]},
    }


def resource_slices(node: str, gpus: Sequence[Card]) -> list[dict[str, Any]]:
    """GPUs that are cut are partitionable devices: what they and their slices share is counted in a slice apart."""
    parents = {card.parent for card in gpus if card.parent}
    counted = {card.uuid for card in gpus if card.uuid in parents or card.parent}
    pieces: list[dict[str, Any]] = [
        {
            "devices": [
                {**_device(card), **({"consumesCounters": [_counters(card)]} if card.uuid in counted else {})}
                for card in gpus[at : at + DEVICES_A_SLICE]
            ]
        }
        for at in range(0, len(gpus), DEVICES_A_SLICE)
    ]
    whole = [card for card in gpus if card.uuid in parents]
    pieces += [
        {"sharedCounters": [_counter_set(card) for card in whole[at : at + COUNTER_SETS_A_SLICE]]}
        for at in range(0, len(whole), COUNTER_SETS_A_SLICE)
    ]
    return [
        {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceSlice",
            "metadata": {"name": f"{node}-{DRIVER}-{number}"},
            "spec": {
                "driver": DRIVER,
                "nodeName": node,
                "pool": {"name": node, "generation": 1, "resourceSliceCount": len(pieces)},
                **piece,
            },
        }
        for number, piece in enumerate(pieces)
    ]


def _counter_set(card: Card) -> dict[str, Any]:
    return {"name": f"{card.device}-counters", "counters": _amounts(card)}


def _counters(card: Card) -> dict[str, Any]:
    """What a GPU or a slice takes of the memory slices and SMs of its GPU."""
    return {"counterSet": f"gpu-{card.index}-counters", "counters": _amounts(card)}


def _amounts(card: Card) -> dict[str, Any]:
    first, after = card.memory_slices
    memory = {f"memory-slice-{number}": {"value": "1"} for number in range(first, after)}
    return {"multiprocessors": {"value": str(card.kind.sm_count)}, **memory}


def _device(card: Card) -> dict[str, Any]:
    """Attributes and capacity as NVIDIA's DRA driver publishes them (cmd/gpu-kubelet-plugin/deviceinfo.go)."""
    architecture, capability = _ARCHITECTURES[card.kind.name.split("-")[0]]
    return {
        "name": card.device,
        "attributes": {
            "type": {"string": "mig" if card.parent else "gpu"},
            **(
                {"parentUUID": {"string": card.parent}, "profile": {"string": card.kind.mig_profile}}
                if card.parent
                else {}
            ),
            "uuid": {"string": card.uuid},
            "productName": {"string": card.kind.product_names[0]},
            "brand": {"string": "Nvidia"},
            "architecture": {"string": architecture},
            "cudaComputeCapability": {"version": capability},
            "driverVersion": {"version": DRIVER_VERSION},
            "cudaDriverVersion": {"version": CUDA_VERSION},
            "resource.kubernetes.io/pciBusID": {"string": card.bus_id},
        },
        "capacity": {
            "memory": {"value": f"{card.kind.memory_bytes // MIB}Mi"},
            **({"multiprocessors": {"value": str(card.kind.sm_count)}} if card.parent else {}),
        },
    }
