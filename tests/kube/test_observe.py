"""What one pool sees: its GPUs and nobody else's, who is in the way, and how far its view may be trusted."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from aiohttp import web

from gpupack.errors import Invalid
from gpupack.facts.counter import Counter
from gpupack.facts.gpu import GpuKind
from gpupack.facts.observation import Cause, Holder, Measured, Missing, Phase
from gpupack.facts.placement import Plan
from gpupack.facts.serving import Serving, Sharing
from gpupack.kube import labels, manifests
from gpupack.kube.observe import POOLS, PROFILES, SERVINGS, Lookups, Mirrors, Scene, scene_of
from gpupack.kube.pool_resource import pool_status_to_dict
from gpupack.kube.profile_resource import belief_to_dict, learned_profile
from gpupack.plan import ApplyClaim, PoolStatus
from gpupack.units import Seconds

from . import objects, tiny_api
from .objects import BELIEF, GPU, H100, KEY, OTHER_GPU
from .test_resource_node import device, resource_slice
from .tiny_api import TinyApi, running, until

PODS, NODES = "/api/v1/pods", "/api/v1/nodes"
SLICES, CLAIMS = "/apis/resource.k8s.io/v1/resourceslices", "/apis/resource.k8s.io/v1/resourceclaims"
DEVICE_CLASSES, RUNTIMES = "/apis/resource.k8s.io/v1/deviceclasses", "/apis/node.k8s.io/v1/runtimeclasses"
SERVICES, BUDGETS = "/api/v1/services", "/apis/policy/v1/poddisruptionbudgets"


def gpu_by_name(name: str) -> GpuKind:
    if name != H100.name:
        raise Invalid("spec.gpu", f"no GPU {name!r}", f"write {H100.name}")
    return H100


LOOKUPS = Lookups(gpu_by_product=objects.gpu_by_product, gpu_by_name=gpu_by_name, llm_of=objects.llm_of)


MISSING = Missing(cause=Cause.NO_SERIES, origin="")


@dataclass(frozen=True, kw_only=True)
class NoReadings:
    dram_active: Measured = MISSING
    fb_used: Measured = MISSING
    power: Measured = MISSING
    xid: Measured = MISSING
    core_wait: Measured = MISSING
    counter: Counter = Counter.DCGM_DRAM_ACTIVE


@pytest.fixture
async def server() -> AsyncIterator[TinyApi]:
    async with tiny_api.serving() as server:
        server.put(NODES, node("node-a"))
        server.put(NODES, node("node-b"))
        server.put(SLICES, resource_slice(device("gpu-0", GPU), node="node-a"))
        server.put(SLICES, resource_slice(device("gpu-0", OTHER_GPU), node="node-b"))
        server.put(POOLS, objects.gpu_pool())
        server.put(SERVINGS, objects.model_serving())
        yield server


def node(name: str, *, ready: bool = True, **marks: str) -> dict[str, Any]:
    condition = {"type": "Ready", "status": "True" if ready else "False"}
    return {
        "metadata": {"name": name, "labels": marks},
        "status": {"conditions": [condition], "allocatable": {"cpu": "16"}},
    }


def with_device_plugin(name: str, **offers: str) -> dict[str, Any]:
    found = node(name)
    found["metadata"]["labels"] = {labels.PRODUCT: H100.product_names[0], labels.PRODUCT_MEMORY_MIB: "81559"}
    found["status"]["allocatable"] |= offers
    return found


def replica(pool: str = "default", gpu: str = GPU, **status: Any) -> dict[str, Any]:
    resource = objects.read(objects.model_serving(poolName=pool))
    assert isinstance(resource.serving, Serving)
    start = objects.start(resource)
    start = replace(start, placement=replace(start.placement, gpu_uuid=gpu))
    body = manifests.pod(start, resource.serving, resource.template)
    body["metadata"] |= {"uid": f"uid-{pool}-{gpu}", "creationTimestamp": "2026-11-18T10:41:00Z"}
    body["spec"]["nodeName"] = "node-a"
    body["status"] = {"phase": "Running", "podIP": "10.0.0.7", **status}
    return body


def pod(name: str, *, on: str = "node-a", namespace: str = "others", cpu: str = "2", **more: Any) -> dict[str, Any]:
    container = {"name": "c", "resources": {"requests": {"cpu": cpu}, "limits": more.pop("limits", {})}}
    return {
        "metadata": {"name": name, "namespace": namespace, "labels": more.pop("marks", {})},
        "spec": {"nodeName": on, "containers": [container]},
        "status": {"phase": "Running", "podIP": "10.0.0.9"},
    }


@contextlib.asynccontextmanager
async def looking(server: TinyApi, stir: Callable[[], None] = lambda: None) -> AsyncIterator[Mirrors]:
    async with server.api() as api:
        mirrors = Mirrors(api, LOOKUPS, stir)
        async with running(*mirrors.runs()):
            await mirrors.synced()
            yield mirrors


async def scene(server: TinyApi, name: str = "default") -> Scene:
    async with looking(server) as mirrors:
        found = scene_of(mirrors, name)
        assert found is not None
        return found


async def test_a_pool_without_selectors_sees_every_gpu_of_the_catalog(server: TinyApi) -> None:
    seen = await scene(server)
    assert [gpu.uuid for gpu in seen.gpus] == [GPU, OTHER_GPU]
    assert [each.name for each in seen.nodes] == ["node-a", "node-b"]
    assert [each.key for each in seen.servings] == [KEY]
    assert seen.problem is None
    assert seen.stale == ()


async def test_a_pool_sees_only_the_nodes_that_it_selects(server: TinyApi) -> None:
    server.put(NODES, node("node-b", pool="small"))
    server.put(POOLS, objects.gpu_pool(nodeSelector={"pool": "small"}))
    seen = await scene(server)
    assert [gpu.uuid for gpu in seen.gpus] == [OTHER_GPU]
    assert [each.name for each in seen.nodes] == ["node-b"]


async def test_a_pool_that_is_gone_shows_nothing(server: TinyApi) -> None:
    async with looking(server) as mirrors:
        assert scene_of(mirrors, "default") is not None
        server.remove(POOLS, "default")
        await until(lambda: scene_of(mirrors, "default") is None)


async def test_of_two_pools_that_share_a_gpu_the_younger_may_not_act(server: TinyApi) -> None:
    younger = objects.gpu_pool(gpuUuids=[OTHER_GPU])
    younger["metadata"] |= {"name": "a-younger", "creationTimestamp": "2026-11-19T10:40:00Z"}
    server.put(POOLS, younger)
    problem = (await scene(server, "a-younger")).problem
    assert problem == f"GPU {OTHER_GPU} on node node-b is in the older pool default already"
    assert (await scene(server)).problem is None


async def test_servings_of_another_pool_and_those_being_deleted_are_not_this_pools(server: TinyApi) -> None:
    other = objects.model_serving(poolName="other")
    other["metadata"]["name"] = "other"
    going = objects.model_serving()
    going["metadata"] |= {"name": "going", "deletionTimestamp": "2026-11-18T11:00:00Z"}
    server.put(SERVINGS, other)
    server.put(SERVINGS, going)
    assert [each.key.name for each in (await scene(server)).servings] == [KEY.name]


async def test_a_serving_that_cannot_be_carried_out_is_refused_with_its_field(server: TinyApi) -> None:
    server.put(SERVINGS, objects.model_serving(model={"name": "nobody/knows"}))
    seen = await scene(server)
    assert seen.servings == ()
    assert [each.field for each in seen.refused] == ["spec.model.name"]


async def test_a_profile_that_comes_later_makes_its_serving_whole(server: TinyApi) -> None:
    server.put(SERVINGS, objects.model_serving(profileRef={"name": "measured"}))
    lengths = {"inputTokens": {"mean": 512}, "outputTokens": {"mean": 256}}
    point = {"maxNumSeqs": 1, "totalTokensPerSecond": 900, "itlMeanMicroseconds": 3000}
    spec = {
        "model": "llama-3.2-1b",
        "gpu": "H100-80GB",
        "engineVersion": "0.33.0",
        "lengths": lengths,
        "points": [point],
    }
    profile = {"metadata": {"name": "measured", "namespace": KEY.namespace}, "spec": spec}
    async with looking(server) as mirrors:
        first = scene_of(mirrors, "default")
        assert first is not None
        assert [each.field for each in first.refused] == ["spec.profileRef.name"]
        server.put(PROFILES, {**profile, "spec": {**spec, "gpu": "unknown"}})
        await until(lambda: mirrors.profiles.get(KEY.namespace, "measured") is not None)
        wrong = scene_of(mirrors, "default")
        assert wrong is not None
        assert [each.field for each in wrong.refused] == ["spec.gpu"]
        server.put(PROFILES, profile)
        await until(lambda: bool(getattr(scene_of(mirrors, "default"), "servings", ())))
        whole = scene_of(mirrors, "default")
        assert whole is not None
        assert whole.servings[0].profile is not None


async def test_what_was_learnt_goes_with_the_servings_of_its_model_and_version(server: TinyApi) -> None:
    server.put(PROFILES, {**learned_profile(BELIEF), "status": belief_to_dict(BELIEF)})
    other = replace(BELIEF, key=replace(BELIEF.key, engine_version="0.32.0"))
    server.put(PROFILES, {**learned_profile(other), "status": belief_to_dict(other)})
    async with looking(server) as mirrors:
        scene = scene_of(mirrors, "default")
        assert scene is not None
        (serving,) = scene.servings
        assert [each.key for each in serving.learned] == [BELIEF.key]
        assert (serving.llm.name, serving.engine_version) == (BELIEF.key.model, BELIEF.key.engine_version)
        with pytest.raises(Invalid, match="leave it out"):
            mirrors.profile(KEY.namespace, BELIEF.key.name)


async def test_replicas_claims_and_shared_children_are_seen(server: TinyApi) -> None:
    resource = objects.read(objects.model_serving())
    assert isinstance(resource.serving, Serving)
    server.put(PODS, replica())
    apply = ApplyClaim(namespace=KEY.namespace, gpu_uuid=GPU, sharing=Sharing.MPS, owners=(KEY,))
    claim = manifests.claim(apply, "default", {KEY: resource.uid})
    server.put(CLAIMS, {**claim, "metadata": {**claim["metadata"], "uid": "claim-uid"}})
    server.put(SERVICES, manifests.service(resource.serving))
    server.put(BUDGETS, manifests.budget(resource.serving, 2))
    seen = await scene(server)
    assert [(each.gpu_uuid, each.phase, each.address) for each in seen.replicas] == [
        (GPU, Phase.STARTING, "10.0.0.7:8000")
    ]
    assert [(each.gpu_uuid, each.owners) for each in seen.claims] == [(GPU, (resource.uid,))]
    assert [(each.has_service, each.min_available) for each in seen.services] == [(True, 2)]


async def test_products_that_the_catalog_does_not_have_are_named_unless_the_pool_names_others(server: TinyApi) -> None:
    stranger = device("gpu-1", "GPU-6f3b1a52-0000-4000-8000-000000000003", product="Tesla V100")
    server.put(SLICES, resource_slice(device("gpu-0", GPU), stranger, node="node-a"))
    assert (await scene(server)).unknown_products == ("Tesla V100",)
    server.put(POOLS, objects.gpu_pool(gpuUuids=[GPU]))
    assert (await scene(server)).unknown_products == ()
    server.put(POOLS, objects.gpu_pool(gpuProducts=[H100.name]))
    assert (await scene(server)).unknown_products == ()


async def test_shared_children_that_somebody_edited_count_as_absent(server: TinyApi) -> None:
    resource = objects.read(objects.model_serving())
    assert isinstance(resource.serving, Serving)
    service, budget = manifests.service(resource.serving), manifests.budget(resource.serving, 2)
    service["spec"] |= {"selector": {"app": "mine"}}
    budget["spec"] |= {"unhealthyPodEvictionPolicy": "IfHealthyBudget"}
    server.put(SERVICES, service)
    server.put(BUDGETS, budget)
    seen = await scene(server)
    assert [(each.has_service, each.min_available) for each in seen.services] == [(False, None)]


async def test_a_replica_of_another_pool_holds_its_gpu_and_its_cores(server: TinyApi) -> None:
    server.put(SERVINGS, objects.model_serving(poolName="other", engine={"cpu": 3}))
    server.put(PODS, replica("other"))
    server.put(PODS, pod("busy", on="node-a", cpu="1500m"))
    seen = await scene(server)
    assert seen.replicas == ()
    (holder,) = seen.holders
    assert (holder.gpu_uuid, holder.kind) == (GPU, "Pod")
    assert [each.cpu_cores_of_others for each in seen.nodes] == [4.5, 0.0]


async def test_a_pod_of_ours_whose_marks_were_changed_still_holds_the_gpus_of_its_node(server: TinyApi) -> None:
    body = replica()
    body["metadata"]["annotations"].pop(labels.SHAPE)
    server.put(PODS, body)
    seen = await scene(server)
    assert seen.replicas == ()
    name = f"{KEY.namespace}/{body['metadata']['name']}"
    assert seen.holders == (Holder(gpu_uuid=GPU, kind="Pod", name=name),)


CHANGES = [
    pytest.param({"labels": {labels.SERVING: None}}, id="label gone"),
    pytest.param({"labels": {labels.MANAGER: None, labels.POOL: None}}, id="not managed"),
    pytest.param({"labels": {labels.SLOT: "7"}}, id="another slot"),
    pytest.param({"labels": {labels.POOL: "other"}}, id="another pool"),
    pytest.param({"labels": {labels.GPU: OTHER_GPU}}, id="another GPU"),
    pytest.param({"annotations": {labels.SHAPE: "nonsense"}}, id="broken note"),
]


@pytest.mark.parametrize("change", CHANGES)
async def test_a_planned_pod_whose_marks_were_changed_is_what_the_plan_says(
    server: TinyApi, change: dict[str, dict[str, str | None]]
) -> None:
    start = objects.start(objects.read(objects.model_serving()))
    plan = Plan(placements=(start.placement,))
    status = pool_status_to_dict(
        PoolStatus(plan=plan, gpus=2, gpus_in_use=1, replicas=1, conditions=()), (), now=objects.AT, generation=1
    )
    server.put(POOLS, objects.gpu_pool(status))
    body = replica()
    for part, edits in change.items():
        for key, value in edits.items():
            body["metadata"][part].pop(key)
            if value is not None:
                body["metadata"][part][key] = value
    server.put(PODS, body)
    seen = await scene(server)
    (only,) = seen.replicas
    assert (only.gpu_uuid, only.slot, only.shape, only.marked) == (GPU, start.placement.slot, objects.SHAPE, False)
    assert only.serving == KEY
    assert seen.holders == ()
    assert [each.cpu_cores_of_others for each in seen.nodes] == [0.0, 0.0]


async def test_a_pod_of_a_device_plugin_and_a_claim_of_others_hold_gpus(server: TinyApi) -> None:
    server.put(PODS, pod("training", limits={"nvidia.com/gpu": "1"}))
    result = {"driver": "gpu.nvidia.com", "pool": "node-b", "device": "gpu-0", "request": "gpu"}
    server.put(CLAIMS, {
        "metadata": {"name": "notebook", "namespace": "others"},
        "status": {"allocation": {"devices": {"results": [result]}}},
    })  # fmt: skip
    assert [(each.gpu_uuid, each.name) for each in (await scene(server)).holders] == [
        (GPU, "others/training"),
        (OTHER_GPU, "others/notebook"),
    ]


@pytest.mark.parametrize("marks", [{"app": "nvidia-dcgm-exporter"}, {"app.kubernetes.io/name": "dcgm-exporter"}])
async def test_exporters_are_found_by_the_labels_of_either_generation(server: TinyApi, marks: dict[str, str]) -> None:
    server.put(PODS, pod("dcgm", namespace="gpu-operator", marks=marks))
    server.put(PODS, pod("elsewhere", on="a node without GPUs", marks=marks))
    server.put(PODS, pod("something-else"))
    assert [(each.name, each.node, each.ip) for each in (await scene(server)).exporters] == [
        ("dcgm", "node-a", "10.0.0.9")
    ]


async def test_only_pods_that_concern_gpus_stir(server: TinyApi) -> None:
    stirred = []
    async with looking(server, lambda: stirred.append(1)) as mirrors:
        for told in (mirrors.device_classes, mirrors.runtime_classes):
            await told.synced.wait()  # which nothing else waits for
        before = len(stirred)
        server.put(PODS, pod("busy"))
        await until(lambda: len(mirrors.pods.all()) == 1)
        assert len(stirred) == before
        server.put(PODS, pod("training", limits={"nvidia.com/gpu": "1"}))
        server.put(PODS, replica())
        await until(lambda: len(stirred) == before + 2)


async def test_an_observation_says_which_nodes_are_ready_and_carries_the_readings(server: TinyApi) -> None:
    server.put(NODES, node("node-b", ready=False))
    observation = (await scene(server)).observation(Seconds(5.0), (), lambda _gpu: NoReadings())
    assert [(each.gpu.uuid, each.node_ready) for each in observation.gpus] == [(GPU, True), (OTHER_GPU, False)]
    assert (observation.at, observation.pool, observation.plan) == (5.0, "default", None)
    assert isinstance(observation.gpus[0].dram_active, Missing)


async def test_what_its_nodes_offer_of_each_way_of_sharing_is_seen(server: TinyApi) -> None:
    server.put(NODES, with_device_plugin("node-c", **{"nvidia.com/gpu": "2", "nvidia.com/gpu.shared": "4"}))
    driver = pod("nvidia-dra-driver-gpu-kubelet-plugin-x", namespace="gpu-operator")
    driver["spec"]["containers"][0] |= {"env": [{"name": "FEATURE_GATES", "value": "MPSSupport=true"}]}
    server.put(PODS, driver)
    server.put(DEVICE_CLASSES, {"metadata": {"name": "gpu.nvidia.com"}})
    server.put(RUNTIMES, {"metadata": {"name": "plain"}, "handler": "runc"})
    server.put(RUNTIMES, {"metadata": {"name": "nvidia-cdi"}, "handler": "nvidia"})
    async with looking(server) as mirrors:
        await mirrors.device_classes.synced.wait()
        await mirrors.runtime_classes.synced.wait()
        found = scene_of(mirrors, "default")
        assert found is not None
        offer = found.offer
    assert offer is not None
    assert (offer.claims, offer.device_class, offer.mps_gate, offer.runtime_class) == (True, True, True, "nvidia-cdi")
    ways = {each.node: (each.dra, each.in_pod, each.whole, each.parts) for each in offer.nodes}
    assert ways == {
        "node-a": (1, 0, 0, ()), "node-b": (1, 0, 0, ()), "node-c": (0, 2, 2, ("nvidia.com/gpu.shared",)),
    }  # fmt: skip


async def test_an_api_server_without_resource_claims_leaves_what_a_device_plugin_offers(server: TinyApi) -> None:
    server.put(NODES, with_device_plugin("node-c", **{"nvidia.com/gpu": "2"}))
    gone = {"reason": "NotFound", "message": "the server could not find the requested resource"}
    server.answer_read = lambda request: (
        web.json_response(gone, status=404) if "resource.k8s.io" in request.path else None
    )
    seen = await scene(server)
    assert [gpu.node for gpu in seen.gpus] == ["node-c", "node-c"]
    assert seen.offer is not None
    assert (seen.offer.claims, seen.stale) == (False, ())
