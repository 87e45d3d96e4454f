"""What a cluster offers of each way of sharing GPUs, from what stands in it; read by the operator and by the doctor.

Knows where each sign is to be found, not what follows from it (`decide.backends`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gpupack.facts.backend import ClusterOffer, NodeOffer
from gpupack.kube import labels
from gpupack.kube.node_resource import NodeRecord, PlacedDevice, SliceSeen

MPS_GATE = re.compile(r"MPSSupport=true", re.IGNORECASE)
RUNTIME_HANDLER = "nvidia"


def offer_of(
    nodes: Iterable[NodeRecord], slices: Iterable[SliceSeen], devices: Iterable[PlacedDevice], *,
    claims: bool | None, device_classes: Sequence[str] | None, runtime_class: str | None, gates: Iterable[bool],
) -> ClusterOffer:  # fmt: skip
    """Of the nodes that have anything of NVIDIA's. `device_classes` None: nobody could read them. `gates` are those of
    the DRA driver's pods."""
    published: Counter[str] = Counter()
    for each in slices:
        published[each.node] += len(each.devices)
    ways = Counter((each.gpu.node, each.gpu.one_household) for each in devices)
    found = sorted(nodes, key=lambda each: each.name)
    gates = tuple(gates)
    return ClusterOffer(
        nodes=tuple(
            NodeOffer(
                node=each.name,
                dra=ways[each.name, False],
                in_pod=ways[each.name, True],
                published=published[each.name],
                whole=each.gpus,
                parts=tuple(part for part in each.parts if not part.startswith(labels.PLUGIN_SLICE)),
                product=each.labels.get(labels.PRODUCT, ""),
                sharing=each.labels.get(labels.PLUGIN_SHARING, ""),
            )
            for each in found
            if published[each.name] or each.gpus or each.parts
        ),
        claims=claims,
        device_class=None if device_classes is None else labels.DEVICE_CLASS in device_classes,
        mps_gate=any(gates) if gates else None,
        runtime_class=runtime_class,
    )


def runtime_class_of(item: Mapping[str, Any]) -> str | None:
    """Its name if it runs containers with NVIDIA's runtime."""
    return str(item["metadata"]["name"]) if item.get("handler") == RUNTIME_HANDLER else None


def mps_gate_of(pod: Mapping[str, Any]) -> bool | None:
    """Whether a pod of NVIDIA's DRA driver has its gate MPSSupport on; None for any other pod."""
    name, containers = pod["metadata"]["name"], pod["spec"].get("containers", ())
    if "dra" not in name:
        return None
    images = " ".join(each.get("image", "") for each in containers)
    if "nvidia" not in f"{name} {images}":
        return None
    words = [word for each in containers for word in (*each.get("command", ()), *each.get("args", ()))]
    values = [var.get("value", "") for each in containers for var in each.get("env", ())]
    return any(MPS_GATE.search(word) for word in (*words, *values))
