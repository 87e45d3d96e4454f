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


def test_each_way_is_weighed_once_and_what_is_taken_comes_first() -> None:
    assert [each.backend for each in weigh(DRA)] == [Backend.DRA, Backend.IN_POD, Backend.DEVICE_PLUGIN]
    assert [each.backend for each in weigh(PLUGIN)] == [Backend.IN_POD, Backend.DRA, Backend.DEVICE_PLUGIN]


def test_one_gpu_and_several_are_told_in_their_own_number() -> None:
    for count, told, it in ((1, "1 GPU:", "publishes it,"), (8, "8 GPUs:", "publishes them,")):
        sentence = said(replace(DRA, nodes=(replace(PUBLISHED, dra=count),)))[Backend.DRA]
        assert told in sentence
        assert it in sentence


def test_a_driver_without_its_class_says_where_the_class_comes_from() -> None:
    assert weigh(replace(DRA, device_class=False))[0].change.startswith("It comes with the driver's chart")


def test_gpus_that_are_published_and_cannot_be_used_are_counted() -> None:
    assert "none of the 8 GPUs" in said(replace(DRA, nodes=(replace(PUBLISHED, dra=0),)))[Backend.DRA]
    assert "no NVIDIA DRA driver publishes" in said(PLUGIN)[Backend.DRA]


def test_the_runtime_class_of_pods_is_named_where_one_was_seen() -> None:
    assert "RuntimeClass" not in said(PLUGIN)[Backend.IN_POD]
    assert "name the RuntimeClass nvidia-x." in said(replace(PLUGIN, runtime_class="nvidia-x"))[Backend.IN_POD]


def test_a_driver_is_in_the_way_of_a_plugin_where_it_publishes_on_any_node() -> None:
    other = NodeOffer(node="c")
    both = said(replace(DRA, nodes=(other, replace(PUBLISHED, whole=8))))[Backend.IN_POD]
    assert "counts such a GPU twice" in both
    alone = said(replace(DRA, nodes=(other, PUBLISHED)))[Backend.IN_POD]
    assert "no device plugin offers them whole" in alone


def test_three_nodes_are_named_and_more_are_counted() -> None:
    def sharing(names: str) -> str:
        nodes = tuple(NodeOffer(node=each, whole=1, sharing="mps") for each in names)
        return said(ClusterOffer(nodes=nodes, claims=True))[Backend.IN_POD]

    assert "on a, b and c." in sharing("cba")
    assert "on a, b, c and 1 more." in sharing("dcba")
    assert "on a, b, c and 2 more." in sharing("edcba")


def test_where_a_plugin_has_no_shares_that_is_said() -> None:
    assert "taken: nodes offer none, and all shares" in said(PLUGIN)[Backend.DEVICE_PLUGIN]
