"""Which way of sharing is taken where, and what is said of the others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpupack.decide.backends import weigh
from gpupack.decide.reconcile import reconcile
from gpupack.facts.backend import Backend, ClusterOffer, NodeOffer
from gpupack.plan import Condition, ConditionType, Truth

from ..strategies import gpu
from .world import World

PUBLISHED = NodeOffer(node="a", dra=8, published=8)
PLUGGED = NodeOffer(node="b", in_pod=4, whole=4, product="NVIDIA-H100-80GB-HBM3", sharing="none")
DRA = ClusterOffer(nodes=(PUBLISHED,), claims=True, device_class=True, mps_gate=True)
PLUGIN = ClusterOffer(nodes=(PLUGGED,), claims=True)


def said(offer: ClusterOffer) -> dict[Backend, str]:
    return {each.backend: each.sentence for each in weigh(offer)}


def told(offer: ClusterOffer | None) -> Condition | None:
    world = World([gpu(0)], [])
    status = reconcile(replace(world.observe(), offer=offer)).pool_status
    return next((each for each in status.conditions if each.type is ConditionType.BACKEND_CHOSEN), None)


@pytest.mark.parametrize(
    ("offer", "reason"),
    [(DRA, "DRA"), (PLUGIN, "InPod"), (replace(DRA, nodes=(PUBLISHED, PLUGGED)), "DRAAndInPod")],
)
def test_the_pool_says_which_way_is_taken_and_of_every_other_one_why_not(offer: ClusterOffer, reason: str) -> None:
    condition = told(offer)
    assert condition is not None
    assert (condition.truth, condition.reason) == (Truth.TRUE, reason)
    for backend in Backend:
        assert said(offer)[backend] in condition.message
    refused = [each for each in weigh(offer) if not each.gpus]
    assert all("not taken" in each.why and each.change for each in refused)


def test_where_nobody_looked_nothing_is_said() -> None:
    assert told(None) is None


@pytest.mark.parametrize(
    ("offer", "words"),
    [
        (replace(DRA, device_class=False), "There is no DeviceClass"),
        (replace(DRA, mps_gate=False), "featureGates: {MPSSupport: true}"),
    ],
)
def test_a_driver_that_lacks_what_it_needs_is_broken_and_says_what_to_set(offer: ClusterOffer, words: str) -> None:
    condition = told(offer)
    assert condition is not None
    assert (condition.truth, condition.reason) == (Truth.FALSE, "Broken")
    assert words.removeprefix("There is ") in condition.message


@pytest.mark.parametrize("unread", [{"device_class": None}, {"mps_gate": None}, {"claims": None}])
def test_what_could_not_be_read_is_not_said_to_be_absent(unread: dict[str, None]) -> None:
    assert weigh(replace(DRA, **unread)) == weigh(DRA)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (replace(PLUGGED, in_pod=0, sharing="time-slicing"), "shares GPUs itself on b"),
        (replace(PLUGGED, in_pod=0, product=""), "no label nvidia.com/gpu.product on b"),
        (replace(PLUGGED, in_pod=0, product="NVIDIA-Z9000"), "NVIDIA-Z9000 on b"),
        (replace(PLUGGED, in_pod=0, whole=0, parts=("nvidia.com/gpu.shared",)), "no device plugin offers whole GPUs"),
        (replace(PUBLISHED, whole=8), "the scheduler counts such a GPU twice"),
    ],
)
def test_why_engines_cannot_share_inside_a_pod_names_what_is_in_the_way(node: NodeOffer, words: str) -> None:
    assert words in said(ClusterOffer(nodes=(node,), claims=True))[Backend.IN_POD]


def test_a_cluster_without_resource_claims_is_told_which_one_has_them() -> None:
    assert "1.34" in said(replace(PLUGIN, claims=False))[Backend.DRA]
    nothing = told(ClusterOffer(nodes=(), claims=False))
    assert nothing is not None
    assert (nothing.truth, nothing.reason) == (Truth.FALSE, "NoBackend")


def test_shares_of_the_plugin_are_named_where_they_are_there() -> None:
    offer = ClusterOffer(nodes=(replace(PLUGGED, in_pod=0, whole=0, parts=("nvidia.com/gpu.shared",)),), claims=True)
    assert "nvidia.com/gpu.shared is there" in said(offer)[Backend.DEVICE_PLUGIN]
