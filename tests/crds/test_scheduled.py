"""The real scheduler puts replicas that share a claim onto the GPU that the claim names, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpupack.facts.observation import Phase
from gpupack.facts.serving import Serving, Sharing
from gpupack.kube import manifests
from gpupack.kube.child_resource import claim_of, replica_of
from gpupack.kube.node_resource import devices_of, foreign_claim_of, holders_of, slice_of
from gpupack.plan import ApplyClaim

from ..kube import objects
from ..kube.test_resource_node import device, resource_slice
from .conftest import Cluster

pytestmark = pytest.mark.controlplane

NAMESPACE = "scheduled"


def node(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}


def published(name: str, uuid: str) -> dict[str, Any]:
    body = resource_slice(device("gpu-0", uuid), node=name)
    return {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", **body}


@pytest.fixture(scope="module", autouse=True)
def two_gpus_on_two_nodes(cluster: Cluster) -> None:
    plane = cluster.control_plane
    plane.kubectl("create", "namespace", NAMESPACE)
    plane.kubectl("wait", "-n", NAMESPACE, "--for=create", "serviceaccount/default", "--timeout=90s")
    selector = {"cel": {"expression": "device.driver == 'gpu.nvidia.com'"}}
    plane.apply({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": {"name": "gpu.nvidia.com"},
                 "spec": {"selectors": [selector]}})  # fmt: skip
    for name, uuid in (("node-a", objects.OTHER_GPU), ("node-b", objects.GPU)):
        plane.apply(node(name), published(name, uuid))
        capacity = {"cpu": "16", "memory": "128Gi", "pods": "50"}
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}
        status = {"capacity": capacity, "allocatable": capacity, "conditions": [ready]}
        headers = {"Content-Type": "application/merge-patch+json"}
        cluster.client.patch(
            f"/api/v1/nodes/{name}/status", json={"status": status}, headers=headers
        ).raise_for_status()


def test_replicas_of_one_claim_share_the_gpu_that_it_names(cluster: Cluster) -> None:
    plane = cluster.control_plane
    obj = objects.model_serving()
    obj["metadata"]["namespace"] = NAMESPACE
    created = plane.apply({**obj, "metadata": {"name": "chat", "namespace": NAMESPACE}})
    assert "serverside-applied" in created
    resource = objects.read(plane.get("msv/chat", "-n", NAMESPACE))
    assert isinstance(resource.serving, Serving)

    apply = ApplyClaim(namespace=NAMESPACE, gpu_uuid=objects.GPU, sharing=Sharing.MPS, owners=(resource.key,))
    plane.apply(manifests.claim(apply, "default", {resource.key: resource.uid}))
    begun = objects.start(resource)
    names = []
    for slot in (0, 1):
        one = replace(begun, placement=replace(begun.placement, slot=slot))
        plane.apply(manifests.pod(one, resource.serving, resource.template))
        names.append(f"pod/{one.placement.name}")
    plane.kubectl("wait", "-n", NAMESPACE, "--for=condition=PodScheduled", *names, "--timeout=90s")

    pods = plane.get("pods", "-n", NAMESPACE)["items"]
    assert {pod["spec"]["nodeName"] for pod in pods} == {"node-b"}
    assert {seen.phase for pod in pods if (seen := replica_of(pod)) is not None} == {Phase.STARTING}

    claim = plane.get(f"resourceclaim/{manifests.claim_name(objects.GPU, Sharing.MPS)}", "-n", NAMESPACE)
    assert len(claim["status"]["reservedFor"]) == 2
    ours = claim_of(claim)
    assert ours is not None
    assert ours.owners == (resource.uid,)
    assert foreign_claim_of(claim) is None


def test_an_allocated_claim_of_somebody_else_is_seen_as_a_holder(cluster: Cluster) -> None:
    plane = cluster.control_plane
    exactly = {"deviceClassName": "gpu.nvidia.com", "allocationMode": "All"}
    claim = {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
             "metadata": {"name": "train", "namespace": NAMESPACE},
             "spec": {"devices": {"requests": [{"name": "gpu", "exactly": exactly}]}}}  # fmt: skip
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "train", "namespace": NAMESPACE},
           "spec": {"nodeSelector": {"kubernetes.io/hostname": "node-a"},
                    "resourceClaims": [{"name": "gpu", "resourceClaimName": "train"}],
                    "containers": [{"name": "c", "image": "c",
                                    "resources": {"claims": [{"name": "gpu"}]}}]}}  # fmt: skip
    plane.kubectl("label", "node/node-a", "kubernetes.io/hostname=node-a")
    plane.apply(claim, pod)
    plane.kubectl("wait", "-n", NAMESPACE, "--for=condition=PodScheduled", "pod/train", "--timeout=90s")

    slices = [seen for item in plane.get("resourceslices")["items"] if (seen := slice_of(item)) is not None]
    foreign = foreign_claim_of(plane.get("resourceclaim/train", "-n", NAMESPACE))
    assert foreign is not None
    (holder,) = holders_of(devices_of(slices, objects.gpu_by_product), [foreign], ())
    assert (holder.gpu_uuid, holder.kind, holder.name) == (objects.OTHER_GPU, "ResourceClaim", f"{NAMESPACE}/train")
