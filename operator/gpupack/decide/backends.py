"""Which way of sharing GPUs is taken where, and why the others are not: one sentence each, with what would change it.

The condition BackendChosen of a GpuPool and `gpupack doctor` both print these. Pure; knows what a cluster offers, not
how it was read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpupack.decide.explain import listed
from gpupack.facts.backend import Backend, ClusterOffer, NodeOffer

NAMED = 3
LEAST_KUBERNETES = (1, 34)
"""From here on resource.k8s.io/v1 is served (Kubernetes 1.34's release)."""
CLASS_COMES = "It comes with the driver's chart; without it no claim for a GPU can be allocated."
SET_GATE = (
    "Set draDriver.featureGates: {MPSSupport: true} in the GPU operator's values, or spec.sharing: [Exclusive] in the"
    " GpuPool for one engine a GPU."
)
UNSHARED = ("", "none")
"""What GPU feature discovery writes of a node whose device plugin shares no GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """`gpus` that are used in this way; 0: it is refused. `why` is a sentence, `change` what would make it otherwise.

    `broken`: it is taken, and cannot work before `change` is done.
    """

    backend: Backend
    gpus: int
    why: str
    change: str = ""
    broken: bool = False

    @property
    def sentence(self) -> str:
        """All of it, for a condition."""
        return f"{self.why} {self.change}".strip()


def weigh(offer: ClusterOffer) -> tuple[Weighed, ...]:
    """Every way, the ones that are taken first."""
    ways = (_dra(offer), _in_pod(offer), _device_plugin(offer))
    return (*(each for each in ways if each.gpus), *(each for each in ways if not each.gpus))


def _dra(offer: ClusterOffer) -> Weighed:
    gpus = sum(each.dra for each in offer.nodes)
    if not gpus:
        return _no_dra(offer)
    why = f"DRA is taken for {_gpus(gpus)}: the NVIDIA driver publishes {_it(gpus)}, and engines share a claim."
    if offer.device_class is False:
        why = f"{why} But there is no DeviceClass gpu.nvidia.com."
        return Weighed(backend=Backend.DRA, gpus=gpus, why=why, change=CLASS_COMES, broken=True)
    if offer.mps_gate is False:
        why = f"{why} But the driver's gate MPSSupport is off, so a claim that asks for MPS is refused."
        return Weighed(backend=Backend.DRA, gpus=gpus, why=why, change=SET_GATE, broken=True)
    return Weighed(backend=Backend.DRA, gpus=gpus, why=why)


def _no_dra(offer: ClusterOffer) -> Weighed:
    published = sum(each.published for each in offer.nodes)
    if offer.claims is False:
        why = "the API server does not serve resource.k8s.io/v1"
        least = ".".join(map(str, LEAST_KUBERNETES))
        change = f"Kubernetes {least} with NVIDIA's DRA driver for GPUs would change that."
    elif published:
        why = f"none of the {published} GPUs that the driver publishes is both in the catalog and in the pool"
        change = "`gpupack catalog` lists what is known."
    else:
        why = "no NVIDIA DRA driver publishes GPUs in ResourceSlices there"
        change = "NVIDIA's DRA driver for GPUs in the place of the device plugin would change that."
    return Weighed(backend=Backend.DRA, gpus=0, why=f"DRA is not taken: {why}.", change=change)


def _in_pod(offer: ClusterOffer) -> Weighed:
    gpus = sum(each.in_pod for each in offer.nodes)
    if gpus:
        runtime = "" if offer.runtime_class is None else f" Its pods name the RuntimeClass {offer.runtime_class}."
        why = (
            f"InPod is taken for {_gpus(gpus)}: a device plugin offers {_it(gpus)} whole; one pod holds each, and its"
            f" engines share it by MPS inside.{runtime}"
        )
        return Weighed(backend=Backend.IN_POD, gpus=gpus, why=why)
    why, change = _why_not_in_pod(offer.nodes)
    return Weighed(backend=Backend.IN_POD, gpus=0, why=f"InPod is not taken: {why}.", change=change)


def _why_not_in_pod(nodes: Sequence[NodeOffer]) -> tuple[str, str]:
    if any(each.dra and each.whole for each in nodes):
        return "the DRA driver publishes the GPUs that a device plugin offers too", (
            "Run only one of the two: the scheduler counts such a GPU twice."
        )
    if any(each.dra for each in nodes):
        return "the DRA driver publishes the GPUs, and no device plugin offers them whole", (
            "A device plugin in the place of the driver would change that."
        )
    shared = [each.node for each in nodes if each.sharing not in UNSHARED]
    if shared:
        return f"the device plugin shares GPUs itself on {_names(shared)}", (
            "Turn sharing off in its configuration there, so that it offers whole GPUs."
        )
    unknown = [f"{each.product or 'no label nvidia.com/gpu.product'} on {each.node}" for each in nodes if each.whole]
    if unknown:
        return f"gpupack does not know the GPUs ({_names(unknown)})", (
            "Run GPU feature discovery, which labels nodes with nvidia.com/gpu.product; `gpupack catalog` lists what is"
            " known."
        )
    return "no device plugin offers whole GPUs (nvidia.com/gpu) there", "NVIDIA's device plugin would change that."


def _device_plugin(offer: ClusterOffer) -> Weighed:
    shares = sorted({part for each in offer.nodes for part in each.parts})
    has = f"{listed(shares)} {'is' if len(shares) == 1 else 'are'} there, but" if shares else "nodes offer none, and"
    return Weighed(
        backend=Backend.DEVICE_PLUGIN,
        gpus=0,
        why=f"The device plugin's own shares are not taken: {has} all shares of a node are equal and nobody can choose"
        " their GPU.",
        change="Shares whose GPU can be chosen would change that.",
    )


def _gpus(count: int) -> str:
    return f"{count} GPU" if count == 1 else f"{count} GPUs"


def _it(count: int) -> str:
    return "it" if count == 1 else "them"


def _names(names: Sequence[str]) -> str:
    told = sorted(names)
    return listed(told if len(told) <= NAMED else [*told[:NAMED], f"{len(told) - NAMED} more"])
