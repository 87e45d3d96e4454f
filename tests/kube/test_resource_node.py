"""What stands in the cluster besides ours: GPUs, cores, and who else holds a GPU."""

from __future__ import annotations

from typing import Any

import pytest

from gpupack import catalog
from gpupack.facts.observation import Holder, NodeSeen
from gpupack.kube import labels
from gpupack.kube.node_resource import (
    ForeignClaim,
    ForeignPod,
    SliceSeen,
    UnknownDevice,
    devices_of,
    foreign_claim_of,
    foreign_pod_of,
    holders_of,
    node_of,
    nodes_of,
    slice_of,
    unknown_devices_of,
)

from .objects import GPU, H100, OTHER_GPU, gpu_by_product

PRODUCT = H100.product_names[0]
OURS = {labels.MANAGER: labels.MANAGED_BY}


def device(name: str, uuid: str, product: str = PRODUCT, **more: Any) -> dict[str, Any]:
    attributes = {"type": {"string": "gpu"}, "uuid": {"string": uuid}, "productName": {"string": product}}
    return {"name": name, "attributes": attributes, "capacity": {"memory": {"value": "81079Mi"}}, **more}


def resource_slice(*devices: dict[str, Any], generation: int = 1, node: str = "node-a", **spec: Any) -> dict[str, Any]:
    pool = {"name": node, "generation": generation, "resourceSliceCount": 1}
    own = {"driver": "gpu.nvidia.com", "nodeName": node, "pool": pool, "devices": list(devices)}
    return {"metadata": {"name": f"{node}-gpu"}, "spec": {**own, **spec}}


def seen(*slices: dict[str, Any]) -> list[SliceSeen]:
    return [record for each in slices if (record := slice_of(each)) is not None]


def test_a_slice_says_uuid_node_name_and_kind() -> None:
    (found,) = devices_of(seen(resource_slice(device("gpu-0", GPU))), gpu_by_product)
    gpu = found.gpu
    assert (gpu.uuid, gpu.node, gpu.device_name, gpu.kind, found.pool) == (GPU, "node-a", "gpu-0", H100, "node-a")


def test_attributes_may_carry_the_drivers_name() -> None:
    plain = device("gpu-0", GPU)
    qualified = {f"gpu.nvidia.com/{name}": value for name, value in plain["attributes"].items()}
    slices = seen(resource_slice({**plain, "attributes": qualified}))
    assert [each.gpu.uuid for each in devices_of(slices, gpu_by_product)] == [GPU]


def mig(name: str, uuid: str | None, profile: str = "1g.10gb", parent: str = GPU) -> dict[str, Any]:
    """A MIG slice as the driver publishes it; one that only could be cut has no uuid."""
    piece = device(name, uuid or "")
    piece["attributes"] |= {"type": {"string": "mig"}, "profile": {"string": profile}, "parentUUID": {"string": parent}}
    if uuid is None:
        del piece["attributes"]["uuid"]
    piece["capacity"] = {"memory": {"value": "9856Mi"}}
    return piece


def test_a_mig_slice_is_a_place_with_the_figures_of_its_profile() -> None:
    slices = seen(resource_slice(device("gpu-0", GPU), mig("gpu-0-mig-19-0-1", "MIG-a"), mig("gpu-0-mig-19-1-1", None)))
    whole, piece = devices_of(slices, catalog.gpu_by_product)
    assert whole.gpu.parent_uuid == ""
    assert (piece.gpu.uuid, piece.gpu.parent_uuid, piece.gpu.kind.name) == ("MIG-a", GPU, "H100-80GB-MIG-1g.10gb")
    assert piece.gpu.card == whole.gpu.card == GPU


def test_a_profile_that_the_catalog_does_not_have_is_named() -> None:
    slices = seen(resource_slice(mig("gpu-0-mig-19-0-1", "MIG-a", profile="1g.12gb")))
    assert devices_of(slices, catalog.gpu_by_product) == ()
    (unknown,) = unknown_devices_of(slices, catalog.gpu_by_product)
    assert unknown.product == f"{PRODUCT}-MIG-1g.12gb"


def test_who_holds_a_gpu_holds_its_slices_and_who_holds_a_slice_its_gpu() -> None:
    pieces = (mig("gpu-0-mig-0", "MIG-a"), mig("gpu-0-mig-1", "MIG-b"), mig("gpu-1-mig-0", "MIG-c", parent=OTHER_GPU))
    devices = devices_of(seen(resource_slice(device("gpu-0", GPU), *pieces)), catalog.gpu_by_product)

    def held(name: str) -> list[str]:
        claim = ForeignClaim(namespace="batch", name="theirs", devices=(("node-a", name),))
        return [each.gpu_uuid for each in holders_of(devices, [claim], [])]

    assert held("gpu-0") == [GPU, "MIG-a", "MIG-b"]
    assert held("gpu-0-mig-0") == [GPU, "MIG-a"]
    assert held("gpu-1-mig-0") == ["MIG-c"]


def test_other_drivers_have_no_gpus() -> None:
    assert slice_of(resource_slice(device("a", GPU), driver="example.com")) is None


def test_only_the_newest_generation_of_a_pool_counts() -> None:
    slices = seen(resource_slice(device("gpu-0", OTHER_GPU)), resource_slice(device("gpu-0", GPU), generation=2))
    assert [each.gpu.uuid for each in devices_of(slices, gpu_by_product)] == [GPU]


def test_a_product_that_the_catalog_does_not_have_is_left_out_and_named() -> None:
    slices = seen(resource_slice(device("gpu-0", GPU), device("gpu-1", OTHER_GPU, product="Tesla V100")))
    assert [each.gpu.uuid for each in devices_of(slices, gpu_by_product)] == [GPU]
    assert unknown_devices_of(slices, gpu_by_product) == (
        UnknownDevice(product="Tesla V100", uuid=OTHER_GPU, node="node-a"),
    )


def test_a_node_says_its_cores_and_those_of_others() -> None:
    node = {
        "metadata": {"name": "node-a", "labels": {"zone": "a"}},
        "status": {"allocatable": {"cpu": "15500m"}, "conditions": [{"type": "Ready", "status": "True"}]},
    }
    record = node_of(node)
    assert (record.ready, record.labels) == (True, {"zone": "a"})
    pods = [foreign_pod_of(foreign(cpu="1500m", name=name)) for name in ("a", "b")]
    assert nodes_of([record], [pod for pod in pods if pod is not None]) == (
        NodeSeen(name="node-a", ready=True, cpu_cores=15.5, cpu_cores_of_others=3.0),
    )


def foreign(*, cpu: str = "1", name: str = "a", limits: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    container = {"name": "c", "resources": {"requests": {"cpu": cpu}, "limits": limits or {}}}
    return {
        "metadata": {"namespace": "other", "name": name, **more.pop("metadata", {})},
        "spec": {"nodeName": "node-a", "containers": [container], **more.pop("spec", {})},
        "status": {"phase": "Running", **more.pop("status", {})},
    }


@pytest.mark.parametrize(
    "pod",
    [
        foreign(metadata={"labels": OURS}),
        foreign(status={"phase": "Succeeded"}),
        {**foreign(), "spec": {"containers": []}},
    ],
    ids=["ours", "ended", "without a node"],
)
def test_a_pod_that_is_ours_or_holds_nothing_is_not_foreign(pod: dict[str, Any]) -> None:
    assert foreign_pod_of(pod) is None


def test_cores_are_counted_as_the_scheduler_counts_them() -> None:
    sidecar = {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "500m"}}}
    starter = {"name": "i", "resources": {"requests": {"cpu": "3"}}}
    record = foreign_pod_of(foreign(cpu="1", spec={"initContainers": [sidecar, starter], "overhead": {"cpu": "250m"}}))
    assert record is not None
    assert record.cpu_cores == 3.75


def holders(*, claims: tuple[ForeignClaim | None, ...] = (), pods: tuple[ForeignPod | None, ...] = ()) -> set[Holder]:
    tainted = device("gpu-1", OTHER_GPU)
    slices = seen(
        resource_slice(device("gpu-0", GPU), tainted), resource_slice(device("gpu-0", "GPU-b"), node="node-b")
    )
    found = holders_of(
        devices_of(slices, gpu_by_product),
        [claim for claim in claims if claim is not None],
        [pod for pod in pods if pod is not None],
    )
    return set(found)


def claim(driver: str = "gpu.nvidia.com", **more: Any) -> dict[str, Any]:
    result = {"driver": driver, "pool": "node-a", "device": "gpu-1", "request": "gpu", **more.pop("result", {})}
    return {
        "metadata": {"namespace": "other", "name": "train", **more.pop("metadata", {})},
        "status": {"allocation": {"devices": {"results": [result]}}},
    }


def test_an_allocated_claim_of_somebody_else_holds_its_gpu() -> None:
    assert holders(claims=(foreign_claim_of(claim()),)) == {
        Holder(gpu_uuid=OTHER_GPU, kind="ResourceClaim", name="other/train")
    }


@pytest.mark.parametrize(
    "harmless",
    [
        claim(metadata={"labels": OURS}),
        claim(driver="example.com"),
        claim(result={"adminAccess": True}),
        {**claim(), "status": {}},
    ],
    ids=["ours", "another driver", "admin access", "not allocated"],
)
def test_a_claim_that_holds_nothing_of_ours_holds_nothing(harmless: dict[str, Any]) -> None:
    assert foreign_claim_of(harmless) is None


def test_a_pod_of_a_device_plugin_holds_every_gpu_of_its_node() -> None:
    pod = foreign_pod_of(foreign(limits={"nvidia.com/gpu": "1"}))
    assert {holder.gpu_uuid for holder in holders(pods=(pod,))} == {GPU, OTHER_GPU}


def test_an_extended_resource_that_dra_serves_holds_what_its_claim_names() -> None:
    pod = foreign_pod_of(
        foreign(limits={"nvidia.com/gpu": "1"}, status={"extendedResourceClaimStatus": {"resourceClaimName": "x"}})
    )
    assert holders(pods=(pod,)) == set()


def test_a_taint_that_keeps_pods_away_holds_the_gpu() -> None:
    bad: dict[str, Any] = {
        "taints": [{"key": "broken", "effect": "None"}, {"key": "broken", "value": "ecc", "effect": "NoExecute"}]
    }
    devices = devices_of(seen(resource_slice(device("gpu-0", GPU, **bad))), gpu_by_product)
    assert holders_of(devices, (), ()) == (Holder(gpu_uuid=GPU, kind="DeviceTaint", name="broken=ecc:NoExecute"),)
