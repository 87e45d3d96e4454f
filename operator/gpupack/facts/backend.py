"""The ways in which engines can come to share a GPU, and what a cluster offers of each.

As read: what nobody could look at is None. Which way is taken and why not the others is `decide.backends`' business.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Backend(StrEnum):
    DRA = "DRA"
    IN_POD = "InPod"
    DEVICE_PLUGIN = "DevicePlugin"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOffer:
    """One node with GPUs. `dra` and `in_pod` count those that gpupack can use, by the way in which it reaches them.

    `published` are all that the DRA driver publishes there, `whole` those that a device plugin offers
    (`nvidia.com/gpu`), `parts` its other resources by name. `product` and `sharing` are what GPU feature discovery
    wrote, empty if nothing.
    """

    node: str
    dra: int = 0
    in_pod: int = 0
    published: int = 0
    whole: int = 0
    parts: tuple[str, ...] = ()
    product: str = ""
    sharing: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOffer:
    """`claims`: the API server serves ResourceClaims. `device_class`: the NVIDIA driver's is there. `mps_gate`: the DRA
    driver takes claims that ask for MPS. `runtime_class` is the name of one with the handler nvidia, None if none is
    seen."""

    nodes: tuple[NodeOffer, ...]
    claims: bool | None = None
    device_class: bool | None = None
    mps_gate: bool | None = None
    runtime_class: str | None = None
