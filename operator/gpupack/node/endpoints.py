"""Which addresses stand behind each Service now, read from its EndpointSlices: what kube-proxy would know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpupack.kube.api import Api
from gpupack.kube.mirror import Mirror
from gpupack.node.podproxy import Address

SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
SERVICE_NAME = "kubernetes.io/service-name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """`ready` are addresses that get new connections: ready and not terminating."""

    service: str
    ready: tuple[Address, ...]


class Endpoints:
    """Keep `run` running; it never returns."""

    def __init__(self, api: Api) -> None:
        self._stale = True
        self._by_service: dict[str, tuple[Address, ...]] = {}
        self._slices: Mirror[Slice] = Mirror(api, SLICES, slice_of, self._stirred, name="endpoint slices")

    async def run(self) -> None:
        await self._slices.run()

    def services(self) -> tuple[str, ...]:
        self._refresh()
        return tuple(self._by_service)

    def of(self, service: str) -> tuple[Address, ...]:
        """In order; empty for a Service that has none, or is not known."""
        self._refresh()
        return self._by_service.get(service, ())

    def _stirred(self) -> None:
        self._stale = True

    def _refresh(self) -> None:
        if self._stale:
            found: dict[str, set[Address]] = {}
            for piece in self._slices.all():
                found.setdefault(piece.service, set()).update(piece.ready)
            self._by_service = {service: tuple(sorted(found[service])) for service in sorted(found)}
            self._stale = False


def slice_of(item: dict[str, Any]) -> Slice | None:
    """None for a slice that belongs to no Service. The first port counts: an engine has one."""
    metadata = item["metadata"]
    service = metadata.get("labels", {}).get(SERVICE_NAME)
    ports = [port["port"] for port in item.get("ports") or () if port.get("port")]
    if service is None or not ports:
        return None
    ready = [
        (address, int(ports[0]))
        for endpoint in item.get("endpoints") or ()
        if endpoint.get("conditions", {}).get("ready", True)
        for address in endpoint["addresses"]
    ]
    return Slice(service=f"{metadata['namespace']}/{service}", ready=tuple(ready))
