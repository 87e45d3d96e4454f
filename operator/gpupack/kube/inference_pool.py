"""The InferencePool of a serving that names an endpoint picker: its body, and writing it where the cluster knows it.

Gateway API Inference Extension, `inference.networking.k8s.io/v1`. With DRA it selects the replicas' own pods, at one
port; where engines live in a pod that holds a GPU it selects those pods, at the ports of this serving's engines, and
annotations on each pod say which of them it has (`host_resource`). The kind need not be installed and the role need not
have it, so nothing is mirrored: what was written is remembered, and looked at again now and then, which also finds a
kind that came later. Knows no gateway and no picker.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gpupack.facts.engine_args import PORT
from gpupack.facts.routing import PoolSeen, PoolState, Routing
from gpupack.facts.serving import Mode, Serving, ServingKey
from gpupack.kube import child_resource, labels, manifests
from gpupack.kube.api import Api, ApiError, Json, NotFound
from gpupack.kube.host_resource import FIRST_PORT, HostPod
from gpupack.kube.mirror import PASSING
from gpupack.kube.serving_resource import ServingResource
from gpupack.plan import ConditionType

GROUP_VERSION = "inference.networking.k8s.io/v1"
PORTS = 8
"""So many targetPorts a pool can have."""
LOOK_SECONDS = 60.0
"""One that was edited or deleted stands again after this long."""
AGAIN_SECONDS = 5.0
FORBIDDEN = 403


class Scene(Protocol):
    """Of what one pool can see, as much as is needed here."""

    @property
    def resources(self) -> Mapping[ServingKey, ServingResource]: ...
    @property
    def servings(self) -> tuple[Serving, ...]: ...
    @property
    def hosts(self) -> tuple[HostPod, ...]: ...
    @property
    def has_households(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    body: Mapping[str, Any] | None
    seen: PoolSeen | None
    at: float


class InferencePools:
    """What this process wrote, by uid of the serving; a new process looks at each once. `clock` is monotonic."""

    def __init__(self, api: Api, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._clock = clock
        self._written: dict[str, _Written] = {}

    def seen(self, serving: Serving, resource: ServingResource) -> PoolSeen | None:
        """What became of the serving's pool. That its status tells of one is how a new process knows of it."""
        known = self._written.get(serving.uid)
        if serving.routing is None:
            left = _is_told(resource.status) and (known is None or known.seen is not None)
            return PoolSeen(state=PoolState.UNWANTED) if left else None
        return None if known is None else known.seen

    async def write(self, scene: Scene) -> None:
        """Brings the pools to what is wanted. Raises Unavailable if the API server does not answer."""
        for serving in scene.servings:
            if serving.mode is not Mode.ACTIVE:
                continue
            if serving.routing is None:
                if self.seen(serving, scene.resources[serving.key]) is not None:
                    await self._delete(serving)
            else:
                await self._apply(serving, serving.routing, scene)

    async def _apply(self, serving: Serving, routing: Routing, scene: Scene) -> None:
        ports, left_out = [PORT], 0
        if scene.has_households:
            found = sorted(ports_of(scene.hosts, serving.key)) or [FIRST_PORT]
            ports, left_out = found[:PORTS], len(found[PORTS:])
        wanted = body(serving, routing, ports, in_households=scene.has_households)
        known, now = self._written.get(serving.uid), self._clock()
        if known is not None and known.body == wanted and known.seen is not None:
            stands = known.seen.state is PoolState.WRITTEN
            if now - known.at < (LOOK_SECONDS if stands else AGAIN_SECONDS):
                return
        seen = PoolSeen(state=PoolState.WRITTEN, ports=tuple(ports), left_out=left_out)
        try:
            if not child_resource.stands(await self._there(serving.key), wanted):
                await self._api.apply(_path(serving.key), wanted)
        except ApiError as refused:
            if refused.status in PASSING:
                raise
            seen = _problem(refused)
        self._written[serving.uid] = _Written(body=wanted, seen=seen, at=now)

    async def _there(self, key: ServingKey) -> Json | None:
        """Also None where the cluster does not know the kind: then it cannot be written either, and that is told."""
        try:
            return await self._api.get(_path(key))
        except NotFound:
            return None

    async def _delete(self, serving: Serving) -> None:
        """Only one that this serving owns."""
        try:
            there = await self._there(serving.key)
            owners = () if there is None else there["metadata"].get("ownerReferences", ())
            if there is not None and any(each["uid"] == serving.uid for each in owners):
                await self._api.delete(_path(serving.key), uid=there["metadata"]["uid"])
        except ApiError:
            return  # tried again by the next tick
        self._written[serving.uid] = _Written(body=None, seen=None, at=self._clock())


def body(serving: Serving, routing: Routing, ports: Sequence[int], *, in_households: bool) -> dict[str, Any]:
    """For server-side apply. One of a pool whose engines live in households selects the pods that have some of it."""
    own = {labels.SERVING: serving.key.name, labels.IN_SERVICE: labels.TRUE}
    shared = {f"{labels.SERVES}{serving.key.name}": labels.TRUE}
    return {
        "apiVersion": GROUP_VERSION,
        "kind": "InferencePool",
        "metadata": manifests.shared_metadata(serving),
        "spec": {
            "selector": {"matchLabels": shared if in_households else own},
            "targetPorts": [{"number": port} for port in ports],
            "endpointPickerRef": {
                "group": "",
                "kind": "Service",
                "name": routing.picker,
                "port": {"number": routing.port},
                "failureMode": routing.failure_mode.value,
            },
        },
    }


def ports_of(hosts: Sequence[HostPod], key: ServingKey) -> set[int]:
    """At which ports pods have engines of it, ready or not: what is ready stands on each pod."""
    return {
        order.port
        for host in hosts
        for order, engine in zip(host.orders.engines, host.engines, strict=True)
        if engine.serving == key
    }


def _is_told(status: Mapping[str, Any]) -> bool:
    return any(each["type"] == ConditionType.INFERENCE_POOL_WRITTEN for each in status.get("conditions", ()))


def _problem(refused: ApiError) -> PoolSeen:
    if isinstance(refused, NotFound):
        return PoolSeen(state=PoolState.NOT_INSTALLED)
    if refused.status == FORBIDDEN:
        return PoolSeen(state=PoolState.NOT_ALLOWED)
    return PoolSeen(state=PoolState.REFUSED, problem=str(refused))


def _path(key: ServingKey) -> str:
    return f"/apis/{GROUP_VERSION}/namespaces/{key.namespace}/inferencepools/{key.name}"
