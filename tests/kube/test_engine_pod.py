"""Pods that others started: which are found, on which kind of GPU, and at which port they are asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpupack.facts.gpu import Gpu
from gpupack.facts.running import Appraisal, Better, EngineFound, RunningEngine
from gpupack.facts.serving import ServingKey
from gpupack.kube import labels
from gpupack.kube.appraisal_resource import appraisal_of, appraisal_to_dict
from gpupack.kube.engine_pod import Watch, engine_pod_of, running_engines
from gpupack.kube.node_resource import NodeRecord, PlacedDevice
from gpupack.kube.selector import selector_of
from gpupack.units import Bytes, PerSecond, Ratio, Seconds

from .objects import GPU, H100, KEY, OTHER_GPU, SHAPE, gpu_by_product

READY = {"type": "Ready", "status": "True"}


def pod(**more: Any) -> dict[str, Any]:
    container = {"name": "server", "image": "vllm/vllm-openai:v0.33.0", "args": more.pop("args", ["org/model"])}
    container |= more.pop("container", {})
    return {
        "metadata": {"namespace": KEY.namespace, "name": "plain-1", "uid": "u", "labels": {"app": "plain"},
                     **more.pop("metadata", {})},
        "spec": {"nodeName": "node-a", "containers": [container], **more.pop("spec", {})},
        "status": {"phase": "Running", "podIP": "10.0.0.7", "conditions": [READY], **more.pop("status", {})},
    }  # fmt: skip


def found(
    body: dict[str, Any], *, port: int | None = None, app: str = "plain", **marks: str
) -> tuple[RunningEngine, ...]:
    """What one serving finds, on a node that has its GPU's kind as a label only."""
    engine = engine_pod_of(body)
    watch = Watch(selector=selector_of({"matchLabels": {"app": app}}), port=port)
    node = NodeRecord(
        name="node-a", ready=True, cpu_cores=8.0,
        labels=marks or {"nvidia.com/gpu.product": "NVIDIA H100 80GB HBM3", "nvidia.com/gpu.memory": "81559"},
    )  # fmt: skip
    pods = [] if engine is None else [engine]
    return running_engines({KEY: watch}, pods, {}, (), {"node-a": node}, gpu_by_product)


def test_a_vllm_pod_that_is_selected_is_found_with_the_kind_of_its_nodes_gpu() -> None:
    (engine,) = found(pod(args=["org/model", "--max-num-seqs", "64"]))
    assert (engine.serving, engine.pod, engine.kind, engine.gpu_uuid) == (KEY, "plain-1", H100, None)
    assert (engine.address, engine.problem, engine.flags.max_num_seqs) == ("10.0.0.7:8000", None, 64)


def test_others_pods_and_gpupacks_own_are_not_found() -> None:
    assert found(pod(), app="other") == ()
    assert found(pod(metadata={"namespace": "elsewhere"})) == ()
    assert found(pod(metadata={"labels": {"app": "plain", labels.MANAGER: labels.MANAGED_BY}})) == ()
    assert found(pod(metadata={"deletionTimestamp": "2026-11-23T10:00:00Z"})) == ()


BOTH = {"args": ["m", "--port=9000"], "container": {"ports": [{"containerPort": 1}]}}


@pytest.mark.parametrize(
    ("more", "port", "asked"),
    [
        pytest.param(BOTH, 7000, 7000, id="spec"),
        pytest.param(BOTH, None, 9000, id="args"),
        pytest.param({"container": {"ports": [{"containerPort": 22}, {"name": "http", "containerPort": 80}]}}, None, 80,
                     id="named"),
        pytest.param({"container": {"ports": [{"containerPort": 8123}]}}, None, 8123, id="first"),
        pytest.param({}, None, 8000, id="vLLM's own"),
    ],
)  # fmt: skip
def test_the_port_is_the_servings_then_the_arguments_then_the_containers(
    more: dict[str, Any], port: int | None, asked: int
) -> None:
    assert [each.address for each in found(pod(**more), port=port)] == [f"10.0.0.7:{asked}"]


def test_a_pod_that_is_not_ready_is_named_in_the_words_of_kubernetes() -> None:
    waiting = {"state": {"waiting": {"reason": "ImagePullBackOff"}}}
    status = {"conditions": [], "containerStatuses": [waiting]}
    assert [each.problem for each in found(pod(status=status))] == ["it is not ready (ImagePullBackOff)"]


def test_a_node_without_a_known_kind_of_gpu_leaves_the_kind_open() -> None:
    assert [each.kind for each in found(pod(), **{"nvidia.com/gpu.product": "Tesla V100"})] == [None]


def test_a_claim_tells_which_gpu_and_two_devices_are_too_many() -> None:
    body = pod(spec={"resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "one"}]},
               status={"resourceClaimStatuses": [{"name": "gpu", "resourceClaimName": "plain-1-gpu-x"}]})  # fmt: skip
    engine = engine_pod_of(body)
    assert engine is not None
    cards = [
        PlacedDevice(gpu=_gpu(uuid, name), pool="node-a", taint=None) for uuid, name in ((GPU, "0"), (OTHER_GPU, "1"))
    ]
    watch = {KEY: Watch(selector=selector_of({"matchLabels": {"app": "plain"}}), port=None)}
    held = {(KEY.namespace, "plain-1-gpu-x"): (("node-a", "1"),)}
    (one,) = running_engines(watch, [engine], held, cards, {}, gpu_by_product)
    assert (one.gpu_uuid, one.kind, one.problem) == (OTHER_GPU, H100, None)
    both = {(KEY.namespace, "plain-1-gpu-x"): (("node-a", "0"), ("node-a", "1"))}
    (two,) = running_engines(watch, [engine], both, cards, {}, gpu_by_product)
    assert two.problem == "it holds 2 GPUs, and only engines on one GPU can be judged"


def _gpu(uuid: str, name: str) -> Gpu:
    return Gpu(uuid=uuid, node="node-a", device_name=name, kind=H100)


@pytest.mark.parametrize(
    ("requirement", "admits"),
    [
        ({"key": "app", "operator": "In", "values": ["plain", "b"]}, True),
        ({"key": "app", "operator": "NotIn", "values": ["plain"]}, False),
        ({"key": "app", "operator": "Exists"}, True),
        ({"key": "app", "operator": "DoesNotExist"}, False),
        ({"key": "tier", "operator": "NotIn", "values": ["x"]}, True),
    ],
)
def test_requirements_mean_what_they_mean_to_kubernetes(requirement: dict[str, Any], admits: bool) -> None:
    assert selector_of({"matchExpressions": [requirement]}).selects({"app": "plain"}) is admits


def test_an_appraisal_read_back_writes_the_same_status() -> None:
    key = ServingKey(namespace="models", name="chat")
    measured = EngineFound(
        pod="plain-1", node="node-a", gpu_uuid=GPU, gpu_kind="H100-80GB", version="0.33.0", max_num_seqs=64,
        gpu_memory_utilization=Ratio(0.925), kv_cache_memory_bytes=Bytes(7), running=3.14159, itl_mean=Seconds(0.00412),
        requests_per_second=PerSecond(2.0 / 3.0), itl_p95=Seconds(0.0123),
    )  # fmt: skip
    broken = EngineFound(pod="plain-2", node="", problem="it is not ready (Pending)")
    better = Better(
        gpu_kind="H100-80GB", engines=1, shape=SHAPE, replicas_per_gpu=3, utilization_hundredths=12, freed_bytes=-5,
        gain=Ratio(0.2857), gain_alone=Ratio(0.1), gpus_now=1, gpus_needed=1, message="Better.",
    )  # fmt: skip
    said = Appraisal(
        serving=key, at=Seconds(1_795_000_000.25), inputs="abc", engines=(measured, broken), better=(better,)
    )
    written = appraisal_to_dict(said)
    back = appraisal_of(key, {"observed": written})
    assert back is not None
    assert appraisal_to_dict(back) == written
    assert back.engines[1] == broken
    open_gain = replace(better, gain=None, gpus_needed=None)
    unknown = appraisal_to_dict(replace(said, better=(open_gain,)))
    assert appraisal_of(key, {"observed": unknown}) == replace(back, better=(open_gain,))
    assert appraisal_of(key, {"observed": {"at": "never"}}) is None
