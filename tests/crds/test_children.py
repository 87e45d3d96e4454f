"""The API server takes every status and every child that gpupack writes, and gives statuses back as they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from gpupack.facts.serving import Serving, Sharing
from gpupack.kube import manifests
from gpupack.kube.pool_resource import plan_to_status, pool_resource, pool_status_to_dict
from gpupack.kube.serving_resource import serving_status_to_dict
from gpupack.plan import ApplyClaim, PoolStatus

from ..kube import objects
from ..kube.test_manifests import RICH
from ..kube.test_resource_pool import a_plan
from ..kube.test_resource_serving import status
from .conftest import PATHS, Cluster

pytestmark = pytest.mark.controlplane

CORE = "/api/v1/namespaces/models"


@pytest.fixture(scope="module", autouse=True)
def namespace(cluster: Cluster) -> Iterator[None]:
    cluster.control_plane.kubectl("create", "namespace", "models")
    cluster.control_plane.kubectl("create", "serviceaccount", "engines", "-n", "models")
    cluster.control_plane.apply({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
                                 "metadata": {"name": "high"}, "value": 10})  # fmt: skip
    cluster.control_plane.kubectl("wait", "-n", "models", "--for=create", "serviceaccount/default", "--timeout=90s")
    yield
    cluster.control_plane.kubectl("delete", "namespace", "models", "--wait=false")


@pytest.mark.parametrize("engine", [{}, RICH], ids=["plain", "rich"])
def test_pods_are_taken(cluster: Cluster, engine: Mapping[str, Any]) -> None:
    resource = objects.read(objects.model_serving(engine=engine))
    assert isinstance(resource.serving, Serving)
    body = manifests.pod(objects.start(resource), resource.serving, resource.template)
    answer = cluster.apply(f"{CORE}/pods/{body['metadata']['name']}", body, dry_run=True)
    assert answer.code == 201, answer.message
    assert answer.body["status"]["qosClass"] == "Guaranteed"


@pytest.mark.parametrize("sharing", [Sharing.MPS, Sharing.EXCLUSIVE])
def test_claims_are_taken(cluster: Cluster, sharing: Sharing) -> None:
    owners = {objects.KEY: "5c1f7a34-1111-4000-8000-000000000001"}
    apply = ApplyClaim(namespace="models", gpu_uuid=objects.GPU, sharing=sharing, owners=tuple(owners))
    body = manifests.claim(apply, "default", owners)
    path = f"/apis/resource.k8s.io/v1/namespaces/models/resourceclaims/{body['metadata']['name']}"
    answer = cluster.apply(path, body, dry_run=True)
    assert answer.code == 201, answer.message


def test_service_and_budget_are_taken(cluster: Cluster) -> None:
    serving = objects.valid(objects.model_serving())
    service = cluster.apply(f"{CORE}/services/chat", manifests.service(serving), dry_run=True)
    assert service.code == 201, service.message
    path = "/apis/policy/v1/namespaces/models/poddisruptionbudgets/chat"
    budget = cluster.apply(path, manifests.budget(serving, 2), dry_run=True)
    assert budget.code == 201, budget.message


def test_a_pools_status_comes_back_as_it_was_written_and_writing_it_again_changes_nothing(cluster: Cluster) -> None:
    pool = {"apiVersion": "gpupack.dev/v1alpha1", "kind": "GpuPool", "metadata": {"name": "plans"}, "spec": {}}
    assert cluster.create(pool).code == 201
    said = PoolStatus(plan=a_plan(), gpus=2, gpus_in_use=2, replicas=3, conditions=status().conditions)
    body = {**pool, "status": pool_status_to_dict(said, (), now=objects.AT, generation=1)}
    del body["spec"]
    path = f"{PATHS['GpuPool']}/plans"
    first = cluster.apply(f"{path}/status", body)
    second = cluster.apply(f"{path}/status", body)
    read = cluster.get(path).body
    cluster.delete(pool)

    assert first.code == 200, first.message
    assert first.body["metadata"]["resourceVersion"] == second.body["metadata"]["resourceVersion"]
    assert read["status"] == body["status"]
    assert pool_resource(read).plan == a_plan()


def test_a_shorter_plan_leaves_nothing_of_the_longer_one(cluster: Cluster) -> None:
    pool = {"apiVersion": "gpupack.dev/v1alpha1", "kind": "GpuPool", "metadata": {"name": "shrinks"}, "spec": {}}
    assert cluster.create(pool).code == 201
    path = f"{PATHS['GpuPool']}/shrinks"
    shorter = replace(a_plan(), placements=a_plan().placements[:1], withdrawn=())
    for plan in (a_plan(), shorter):
        body = {**pool, "status": {"plan": plan_to_status(plan)}}
        del body["spec"]
        assert cluster.apply(f"{path}/status", body).code == 200
    read = cluster.get(path).body
    cluster.delete(pool)
    assert pool_resource(read).plan == shorter


def test_a_servings_status_comes_back_as_it_was_written(cluster: Cluster) -> None:
    serving = {
        "apiVersion": "gpupack.dev/v1alpha1", "kind": "ModelServing", "metadata": {"name": "told"},
        "spec": {"model": {"name": "qwen2.5-0.5b"}},
    }  # fmt: skip
    assert cluster.create(serving).code == 201
    path = f"{PATHS['ModelServing']}/told"
    body = {**serving, "status": serving_status_to_dict(status(), {}, now=objects.AT)}
    del body["spec"]
    answer = cluster.apply(f"{path}/status", body)
    read = cluster.get(path).body
    cluster.delete(serving)
    assert answer.code == 200, answer.message
    assert read["status"] == body["status"]
