"""The doors of servings that may sleep: EndpointSlices that lead a Service to the activators while no replica serves.

Each serving has a port of its own at every activator, because nothing else tells there for whom a request is. The port
stands in the slice and stays; a slice that leads nowhere keeps it. Pure: knows no connection.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from gpupack.facts.observation import Phase, ReplicaSeen
from gpupack.facts.placement import Plan
from gpupack.facts.serving import Mode, ScalingMode, Serving, ServingKey
from gpupack.kube import labels, manifests
from gpupack.kube.host_resource import SliceThere

ACTIVATOR_NAMESPACE = "gpupack-system"
"""Where activators are, unless the operator is told otherwise."""
FIRST_DOOR, DOORS = 20000, 512
"""So many servings of a cluster may sleep."""


def may_sleep(serving: Serving) -> bool:
    scaling = serving.scaling
    return scaling.mode is ScalingMode.AUTO and not scaling.min_replicas and serving.mode is Mode.ACTIVE


def is_door(piece: SliceThere) -> bool:
    return piece.component == labels.ACTIVATOR


def free_port(uid: str, taken: Collection[int]) -> int | None:
    """The same for a uid wherever that is free, so that a port goes late to somebody else; None if all are taken."""
    first = zlib.crc32(uid.encode())
    ports = (FIRST_DOOR + (first + step) % DOORS for step in range(DOORS))
    return next((each for each in ports if each not in taken), None)


def doors_to_write(
    servings: Iterable[Serving],
    ports: Mapping[ServingKey, int],
    plan: Plan | None,
    replicas: Iterable[ReplicaSeen],
    activators: Iterable[str],
    there: Iterable[SliceThere],
) -> list[dict[str, Any]]:
    """The doors that stand otherwise than they should. `activators` are the addresses of those that are ready.

    A door is open while nothing of the serving is planned, or none of it is ready: so it opens before the last replica
    leaves its Service, and closes when the first has come.
    """
    standing = {(each.namespace, each.service): each for each in there if is_door(each)}
    planned = {each.serving for each in plan.placements} if plan else set()
    took = {each.serving: each.took for each in plan.wakes} if plan else {}
    serves = {
        each.serving for each in replicas if each.phase is Phase.READY and each.in_service and each.deletion_at is None
    }
    ready = tuple(sorted(activators))
    bodies = []
    for serving in servings:
        key = serving.key
        stands, port = standing.get((key.namespace, key.name)), ports.get(key)
        if port is None:
            continue
        leads = ready if may_sleep(serving) and not (key in planned and key in serves) else ()
        seconds = took.get(key)
        known = "" if stands is None else stands.wake_seconds  # a plan that was lost has forgotten it
        written = known if seconds is None else f"{seconds:.1f}"
        if stands is None or (stands.port, stands.addresses, stands.wake_seconds) != (port, leads, written):
            bodies.append(_door(serving, port, leads, written))
    return bodies


def _door(serving: Serving, port: int, addresses: Iterable[str], seconds: str) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{serving.key.name}-{labels.ACTIVATOR}",
            "namespace": serving.key.namespace,
            "labels": {
                labels.SERVICE_NAME: serving.key.name,
                labels.SLICE_MANAGER: labels.GROUP,
                labels.MANAGER: labels.MANAGED_BY,
                labels.COMPONENT: labels.ACTIVATOR,
            },
            "annotations": {labels.WAKE_SECONDS: seconds} if seconds else {},
            "ownerReferences": [{**manifests.owner(serving.key, serving.uid), "controller": True}],
        },
        "addressType": "IPv4",
        "ports": [{"name": manifests.HTTP, "port": port, "protocol": "TCP"}],
        "endpoints": [{"addresses": [each], "conditions": {"ready": True}} for each in addresses],
    }
