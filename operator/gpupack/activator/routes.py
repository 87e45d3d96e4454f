"""Which serving a port stands for, and where its engines are: read from the EndpointSlices of gpupack's Services.

The slice that the operator wrote for the activator names a port of its own for each serving, because nothing else in a
request tells for whom it is: Kubernetes rewrites the address, and the Host header is the client's. The other slices of
the Service have the engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gpupack.facts.serving import ServingKey
from gpupack.kube import labels
from gpupack.kube.api import Api
from gpupack.kube.mirror import Mirror

SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
OURS = f"{labels.MANAGER}={labels.MANAGED_BY}"
"""Kubernetes copies a Service's labels to the slices that it writes for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A slice: `addresses` (host:port) that take requests. `door` is the activator's own port, None for engines."""

    serving: ServingKey
    created_at: str
    addresses: tuple[str, ...]
    door: int | None
    wake_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """A serving's port at the activator. `wake_seconds` is how long its last wake took, None while nobody knows."""

    serving: ServingKey
    port: int
    wake_seconds: float | None


def piece_of(found: Mapping[str, Any]) -> Piece | None:
    """None for a slice that belongs to no Service or has no port."""
    metadata = found["metadata"]
    marks = metadata.get("labels", {})
    service = marks.get(labels.SERVICE_NAME)
    port = next((each["port"] for each in found.get("ports") or () if each.get("port")), None)
    if service is None or port is None:
        return None
    ours = marks.get(labels.SLICE_MANAGER) == labels.GROUP and marks.get(labels.COMPONENT) == labels.ACTIVATOR
    took = metadata.get("annotations", {}).get(labels.WAKE_SECONDS)
    return Piece(
        serving=ServingKey(namespace=metadata["namespace"], name=service),
        created_at=metadata["creationTimestamp"],
        addresses=tuple(
            f"{address}:{port}"
            for endpoint in found.get("endpoints") or ()
            if endpoint.get("conditions", {}).get("ready") is not False
            for address in endpoint["addresses"]
        ),
        door=port if ours else None,
        wake_seconds=None if took is None else float(took),
    )


class Routes:
    """Keep `run` running. `stir` is called when anything changed."""

    def __init__(self, api: Api, stir: Callable[[], None]) -> None:
        self.mirror: Mirror[Piece] = Mirror(api, SLICES, piece_of, stir, name="endpointslices", label_selector=OURS)

    async def run(self) -> None:
        await self.mirror.run()

    def doors(self) -> dict[int, Door]:
        return doors_of(self.mirror.all())

    def engines(self, serving: ServingKey) -> tuple[str, ...]:
        return engines_of(self.mirror.all(), serving)


def doors_of(pieces: Iterable[Piece]) -> dict[int, Door]:
    """By port; of two servings that claim one the older slice has it, so that nobody can take another's."""
    found: dict[int, Door] = {}
    for each in sorted(pieces, key=lambda piece: (piece.created_at, piece.serving)):
        if each.door is not None:
            found.setdefault(
                each.door, Door(serving=each.serving, port=each.door, wake_seconds=each.wake_seconds)
            )  # fmt: skip
    return found


def engines_of(pieces: Iterable[Piece], serving: ServingKey) -> tuple[str, ...]:
    found = {address for each in pieces if each.door is None and each.serving == serving for address in each.addresses}
    return tuple(sorted(found))
