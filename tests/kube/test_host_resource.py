"""A pod that holds a GPU for several engines: its body, its engines as replicas, and where clients are sent."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import yaml

from gpupack import catalog
from gpupack.facts.gpu import Gpu, GpuKind
from gpupack.facts.observation import Holder, Missing, Phase, Reading, ReplicaSeen, Trouble
from gpupack.facts.serving import Serving, Sharing
from gpupack.host.life import Stage
from gpupack.host.orders import Orders, orders_text
from gpupack.kube import host_resource, labels
from gpupack.kube.host_resource import HostPod, Json, host_of, replicas_in, report_of
from gpupack.kube.node_resource import (
    UNLABELLED,
    ForeignPod,
    foreign_pod_of,
    holders_of,
    node_of,
    place_name,
    places_of,
    unknown_places_of,
)
from gpupack.plan import ApplyClaim, StartReplica
from gpupack.units import Bytes, Seconds

from . import objects
from .objects import H100, KEY

PLACE = "node-a-gpu-0"
NOW = Seconds(1763462460.0)
RESOURCE = objects.read(objects.model_serving())
assert isinstance(RESOURCE.serving, Serving)
SERVING = RESOURCE.serving
APPLY = ApplyClaim(namespace=KEY.namespace, gpu_uuid=PLACE, sharing=Sharing.MPS, owners=(KEY,))


def gpu_by_product(product: str, memory: Bytes | None) -> GpuKind | None:
    """By the words of GPU feature discovery."""
    return catalog.gpu_by_product(product, memory) if "MIG" in product else H100


def plugin_node(marks: Mapping[str, str] = {}, *, gpus: str = "2", slices: Mapping[str, str] = {}) -> Json:
    own = {labels.PRODUCT: H100.product_names[0].replace(" ", "-"), labels.PRODUCT_MEMORY_MIB: "81079"}
    return {
        "metadata": {"name": "node-a", "labels": {**own, **marks}},
        "status": {"allocatable": {"cpu": "16", labels.PLUGIN_GPU: gpus, **slices}},
    }


def body(apply: ApplyClaim = APPLY, gpu: Gpu | None = None) -> Json:
    gpu = gpu or Gpu(uuid=PLACE, node="node-a", device_name="gpu-0", kind=H100, one_household=True)
    return host_resource.host_pod(
        apply, gpu, SERVING, RESOURCE.template, room=3, pool="default", image="gpupack:0.1.0",
        uids={KEY: RESOURCE.uid},
    )  # fmt: skip


def start(slot: int) -> StartReplica:
    one = objects.start(RESOURCE)
    return replace(one, placement=replace(one.placement, gpu_uuid=PLACE, slot=slot))


def ordered(slots: int) -> Orders:
    orders = Orders()
    for slot in range(slots):
        orders = host_resource.with_engine(orders, start(slot), SERVING, RESOURCE.template, NOW)
    return orders


def host(orders: Orders, *, ready: bool = True) -> HostPod:
    """The pod as the API server would hand it out."""
    pod = body()
    pod["metadata"] |= {"uid": "uid-host", "creationTimestamp": "2026-11-18T10:41:00Z"}
    pod["metadata"]["annotations"][labels.ORDERS] = orders_text(orders)
    pod["spec"]["nodeName"] = "node-a"
    condition = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-18T10:42:00Z"}
    pod["status"] = {"phase": "Running", "podIP": "10.0.0.7", "conditions": [condition] if ready else []}
    found = host_of(pod)
    assert found is not None
    return found


def told(orders: Orders, *stages: Stage, mps: str = "Ready", generation: int | None = None) -> str:
    """The supervisor's report, with so many of the engines of the orders."""
    engines: list[Json] = [
        {
            "name": each.name, "port": each.port, "arguments": [], "marks": dict(each.marks), "ordered": True,
            "state": stage.value, "since": NOW, "beganAt": NOW, "readyAt": NOW if stage is Stage.READY else None,
            "restarts": 0, "message": "", "log": [], "ended": None,
        }
        for each, stage in zip(orders.engines, stages, strict=False)
    ]  # fmt: skip
    return json.dumps({
        "number": 1, "generation": orders.generation if generation is None else generation, "stopping": False,
        "gpu": "GPU-1", "mps": {"state": mps, "server": 7, "restarts": 0, "message": ""}, "engines": engines,
    })  # fmt: skip


def test_the_pod(golden: Callable[[str, str], None]) -> None:
    golden("manifests/host.yaml", yaml.safe_dump(json.loads(json.dumps(body())), sort_keys=False))


def test_a_node_with_a_device_plugin_and_no_driver_offers_a_place_for_each_gpu() -> None:
    places = places_of([node_of(plugin_node())], [], gpu_by_product)
    assert [(each.gpu.uuid, each.gpu.kind, each.gpu.one_household) for each in places] == [
        ("node-a-gpu-0", H100, True), ("node-a-gpu-1", H100, True),
    ]  # fmt: skip


def test_gpus_that_the_plugin_shares_are_no_places() -> None:
    shared = plugin_node({labels.PLUGIN_SHARING: "time-slicing"})
    assert places_of([node_of(shared)], [], gpu_by_product) == ()


SLICE = "nvidia.com/mig-1g.10gb"
SINGLE = plugin_node({labels.PRODUCT: "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", labels.PRODUCT_MEMORY_MIB: "9984"})
MIXED = plugin_node(gpus="1", slices={SLICE: "2", f"{SLICE}.me": "1", "nvidia.com/mig-9g.1gb": "1"})


def test_where_the_strategy_is_single_each_gpu_of_the_plugin_is_a_slice() -> None:
    places = [each.gpu for each in places_of([node_of(SINGLE)], [], gpu_by_product)]
    assert [(each.uuid, each.kind.mig_profile, each.resource) for each in places] == [
        ("node-a-gpu-0", "1g.10gb", labels.PLUGIN_GPU), ("node-a-gpu-1", "1g.10gb", labels.PLUGIN_GPU),
    ]  # fmt: skip


def test_where_the_strategy_is_mixed_slices_are_places_beside_whole_gpus_by_their_profile() -> None:
    places = [each.gpu for each in places_of([node_of(MIXED)], [], gpu_by_product)]
    assert [(each.uuid, each.kind.mig_profile, each.resource) for each in places] == [
        ("node-a-gpu-0", "", labels.PLUGIN_GPU),
        ("node-a-mig-1g.10gb-0", "1g.10gb", SLICE),
        ("node-a-mig-1g.10gb-1", "1g.10gb", SLICE),
        ("node-a-mig-1g.10gb.me-0", "1g.10gb", f"{SLICE}.me"),
    ]


def test_what_a_plugin_offers_and_the_catalog_does_not_have_is_named_by_product_and_profile() -> None:
    nodes = [node_of(MIXED), node_of(plugin_node({labels.PRODUCT: "Tesla-V100"}, gpus="1"))]
    product = "NVIDIA-H100-80GB-HBM3-MIG-9g.1gb"
    assert [(each.product, each.uuid) for each in unknown_places_of(nodes, [], catalog.gpu_by_product)] == [
        (product, "node-a-mig-9g.1gb-0"), ("Tesla-V100", "node-a-gpu-0"),
    ]  # fmt: skip
    bare = replace(node_of(plugin_node(gpus="1")), labels={})
    assert [each.product for each in unknown_places_of([bare], [], catalog.gpu_by_product)] == [UNLABELLED]


def test_the_pod_of_a_slice_asks_for_one_of_its_profile_and_starts_no_mps() -> None:
    place = places_of([node_of(MIXED)], [], gpu_by_product)[1].gpu
    container = body(replace(APPLY, gpu_uuid=place.uuid, sharing=Sharing.MIG), place)["spec"]["containers"][0]
    limits = container["resources"]["limits"]
    assert {name: limits[name] for name in limits if "/" in name} == {SLICE: "1"}
    assert "--mps" not in container["args"]


def test_a_slice_of_others_is_none_of_another_profile_nor_a_whole_gpu() -> None:
    places = places_of([node_of(MIXED)], [], gpu_by_product)
    other = foreign_pod_of({
        "metadata": {"namespace": "others", "name": "batch"},
        "spec": {"nodeName": "node-a", "containers": [{"name": "a", "resources": {"limits": {SLICE: "1"}}}]},
    })  # fmt: skip
    assert other is not None
    held = holders_of(places, [], [other], {"node-a-mig-1g.10gb-1"})
    assert [each.gpu_uuid for each in held] == ["node-a-mig-1g.10gb-0"]


def test_the_name_of_a_place_fits_a_label_however_long_the_nodes_is() -> None:
    names = {place_name("n" * 200 + end, 7, sort) for end in "ab" for sort in ("gpu", "mig-1g.10gb.me")}
    assert len(names) == 4
    assert max(map(len, names)) <= 63


def test_others_hold_as_many_places_as_they_ask_for_beside_those_of_ours() -> None:
    places = places_of([node_of(plugin_node(gpus="3"))], [], gpu_by_product)
    other = ForeignPod(
        namespace="others", name="batch", node="node-a", cpu_cores=1.0, extended=labels.PLUGIN_GPU, gpus=1
    )
    assert holders_of(places, [], [other], {"node-a-gpu-2"}) == (
        Holder(gpu_uuid="node-a-gpu-1", kind="Pod", name="others/batch"),
    )


def test_it_holds_the_gpu_as_a_claim_does() -> None:
    claim = host(Orders()).claim
    assert (claim.gpu_uuid, claim.sharing, claim.household) == (PLACE, Sharing.MPS, SERVING.household)
    assert (claim.engines, claim.owners) == (3, (RESOURCE.uid,))


def test_servings_that_differ_in_arguments_share_a_household_and_those_of_other_images_do_not() -> None:
    other = objects.read(objects.model_serving(engine={"args": ["--enforce-eager"]}))
    third = objects.read(objects.model_serving(engine={"image": "vllm/vllm-openai:v0.34.0"}))
    assert isinstance(other.serving, Serving)
    assert isinstance(third.serving, Serving)
    assert other.serving.household == SERVING.household != third.serving.household


def test_engines_get_ports_of_their_own_and_the_same_one_twice_is_one() -> None:
    orders = ordered(2)
    assert [each.port for each in orders.engines] == [8001, 8002]
    assert [f"--port={each.port}" in each.arguments for each in orders.engines] == [True, True]
    assert host_resource.with_engine(orders, start(1), SERVING, RESOURCE.template, NOW) == orders
    left = host_resource.without_engine(orders, orders.engines[0].name)
    again = host_resource.with_engine(left, start(2), SERVING, RESOURCE.template, NOW)
    assert [each.port for each in again.engines] == [8002, 8001]


def seen(orders: Orders, report: str | None, *, ready: bool = True) -> tuple[ReplicaSeen, ...]:
    return replicas_in(host(orders, ready=ready), None if report is None else report_of(report))


def test_an_engine_is_a_replica_at_a_port_of_the_pod_with_everything_a_plan_needs() -> None:
    orders = ordered(2)
    first, second = seen(orders, told(orders, Stage.READY, Stage.STARTING))
    placement = start(0).placement
    assert (first.serving, first.gpu_uuid, first.slot, first.shape) == (KEY, PLACE, 0, placement.shape)
    assert (first.name, first.content_hash, first.marked) == (placement.name, placement.content_hash, True)
    assert (first.phase, first.address, first.in_service, first.ready_at) == (Phase.READY, "10.0.0.7:8001", True, NOW)
    assert (second.phase, second.address) == (Phase.STARTING, "10.0.0.7:8002")


@pytest.mark.parametrize("ready", [True, False])
def test_before_its_supervisor_was_heard_or_while_the_pod_is_not_ready_nothing_serves(ready: bool) -> None:
    orders = ordered(1)
    assert [each.phase for each in seen(orders, None, ready=ready)] == [Phase.STARTING]


def test_an_engine_that_was_ordered_away_is_there_until_its_supervisor_says_it_has_gone() -> None:
    orders = ordered(2)
    fewer = host_resource.without_engine(orders, orders.engines[1].name)
    stayed, going = seen(fewer, told(orders, Stage.READY, Stage.READY))
    assert (stayed.phase, going.phase, going.in_service) == (Phase.READY, Phase.STOPPING, False)
    assert len(seen(fewer, told(fewer, Stage.READY))) == 1


def test_where_engines_cannot_share_one_that_waits_is_pending() -> None:
    orders = ordered(2)
    phases = [each.phase for each in seen(orders, told(orders, Stage.READY, Stage.WAITING, mps="Unavailable"))]
    assert phases == [Phase.READY, Phase.PENDING]


def test_where_mps_does_not_start_the_pod_says_that_one_engine_runs_and_why() -> None:
    orders = ordered(2)
    lost = json.loads(told(orders, Stage.READY, Stage.WAITING, mps="Unavailable"))
    lost["mps"]["message"] = "no such file"
    here = host(orders)
    assert host_resource.claim_of(here, report_of(json.dumps(lost))).alone.endswith(": no such file")
    assert host_resource.claim_of(here, report_of(told(orders, Stage.READY))).alone == ""
    assert host_resource.claim_of(here, None).alone == ""


def test_an_engine_that_comes_again_for_the_sake_of_mps_says_so_and_one_that_failed_says_how() -> None:
    orders = ordered(3)
    report = json.loads(told(orders, Stage.STARTING, Stage.FAILED, Stage.READY))
    report["mps"]["message"] = "the MPS server 7 is gone"
    first, second, third = report["engines"]
    first["message"] = third["message"] = "the MPS server 7 is gone"
    log = ["Traceback", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"]
    second |= {"message": "exit status 1", "ended": {"code": 1, "reason": "exit status 1", "log": log, "at": NOW}}
    found = seen(orders, json.dumps(report))
    assert [each.trouble for each in found] == [Trouble.MPS_LOST, Trouble.OUT_OF_MEMORY, None]


def test_a_drain_takes_one_pod_of_a_household_at_a_time_and_none_while_engines_load() -> None:
    orders = ordered(1)
    one = host(orders)
    other = replace(one, claim=replace(one.claim, name="other", uid="uid-other"), orders=Orders())
    serves, loads = seen(orders, told(orders, Stage.READY)), seen(orders, told(orders, Stage.STARTING))
    uids = {RESOURCE.uid: KEY}

    def least(hosts: tuple[HostPod, ...], replicas: tuple[ReplicaSeen, ...]) -> int:
        [found] = host_resource.budgets(hosts, replicas, uids)
        assert [each["uid"] for each in found["metadata"]["ownerReferences"]] == [RESOURCE.uid]
        return int(found["spec"]["minAvailable"])

    assert least((one,), serves) == least((one,), loads) == 0
    assert least((one, other), serves) == 1
    assert least((one, other), loads) == 2
    assert host_resource.budgets((), (), uids) == []


def test_the_token_goes_with_the_last_serving_that_had_a_pod() -> None:
    references = host_resource.owners(APPLY, {KEY: RESOURCE.uid})
    there = host_resource.token_secret(KEY.namespace, "t", references)
    there["metadata"]["resourceVersion"] = "7"
    assert [each["uid"] for each in there["metadata"]["ownerReferences"]] == [RESOURCE.uid]
    assert host_resource.owned(there, references) is None
    patch = host_resource.owned(there, [{**references[0], "name": "docs", "uid": "uid-docs"}])
    assert patch is not None
    assert patch["metadata"]["resourceVersion"] == "7"
    assert [each["uid"] for each in patch["metadata"]["ownerReferences"]] == [RESOURCE.uid, "uid-docs"]


def test_a_slice_a_port_has_the_engines_that_serve_and_one_out_of_service_leaves_first() -> None:
    orders = ordered(2)
    report = told(orders, Stage.READY, Stage.READY)
    bodies = host_resource.slices_to_write([SERVING], seen(orders, report), [], frozenset())
    assert [(each["ports"][0]["port"], each["endpoints"][0]["addresses"]) for each in bodies] == [
        (8001, ["10.0.0.7"]), (8002, ["10.0.0.7"]),
    ]  # fmt: skip
    there = [host_resource.slice_there(each) for each in bodies]
    assert host_resource.slices_to_write([SERVING], seen(orders, report), there, frozenset()) == []
    out = host_resource.out_of_service(orders, orders.engines[1].name)
    (changed,) = host_resource.slices_to_write([SERVING], seen(out, report), there, frozenset())
    assert (changed["ports"][0]["port"], changed["endpoints"]) == (8002, [])


def test_an_engine_of_which_nothing_new_is_known_stays_in_its_slice() -> None:
    orders = ordered(1)
    bodies = host_resource.slices_to_write([SERVING], seen(orders, told(orders, Stage.READY)), [], frozenset())
    there = [host_resource.slice_there(each) for each in bodies]
    assert host_resource.slices_to_write([SERVING], seen(orders, None), there, frozenset({"10.0.0.7"})) == []


def test_what_engines_wait_for_cores_is_a_reading_with_its_time_and_absent_where_nobody_told() -> None:
    told = {"number": 1, "generation": 1, "gpu": "GPU-1", "mps": {"state": "Ready", "message": ""}, "engines": []}
    silent = report_of(json.dumps(told))
    assert isinstance(silent.core_wait, Missing)
    assert isinstance(silent.throttled, Missing)
    counted = report_of(json.dumps({**told, "cores": {"at": 12.5, "waited": 0.25, "throttled": None}}))
    assert counted.core_wait == Reading(value=0.25, at=Seconds(12.5), origin="cores.waited of the supervisor")
    assert isinstance(counted.throttled, Missing)
