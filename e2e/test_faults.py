"""Faults of what engines share: MPS, the pod that they live in, the GPU, the node, its memory, their image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from .journey import BUDGETS, FIRST_NODE, HOUSEHOLD, PLUGIN_NODE, PODS, SECOND_NODE, Journey, manual
from .test_in_pod import SMALL, addresses

EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"
SECRET = "/api/v1/namespaces/default/secrets/gpupack-host"
OLD = {"image": "vllm/vllm-openai:v0.30.0", "version": "0.33.0"}
"""An image whose vLLM does not know all arguments of the version that it is said to be."""


def told(journey: Journey, name: str, reason: str) -> list[str]:
    """What events of that reason say of a serving that is there now."""
    uid = journey.stage.serving(name)["metadata"]["uid"]
    events = journey.stage.get(EVENTS)["items"]
    return [each["note"] for each in events if each["reason"] == reason and each["regarding"].get("uid") == uid]


def gpu_of(journey: Journey, name: str) -> str:
    """The device that an engine of the serving really has."""
    return next(
        str(each["gpu"])
        for each in journey.engines()
        if each["labels"].get("gpupack.dev/serving") == name or name == ""
    )


@pytest.fixture
def in_pod(journey: Journey) -> Journey:
    """On the node with a device plugin, where engines of a GPU share one pod."""
    journey.edit_pool(nodeSelector={"kubernetes.io/hostname": PLUGIN_NODE}, maxGpus=1)
    return journey


@pytest.fixture
def both_nodes(journey: Journey) -> Iterator[Journey]:
    journey.edit_pool(nodeSelector={"kubernetes.io/hostname": None, "gpupack.dev/virtual-node": "dra"})
    yield journey
    journey.stage.cluster.kubectl("uncordon", FIRST_NODE)


def test_engines_that_lose_mps_and_then_their_pod_come_again_and_the_serving_says_why(in_pod: Journey) -> None:
    journey = in_pod
    journey.apply(manual("chat", 2, batching=SMALL))
    journey.until("two engines are ready", lambda: journey.status("chat").get("readyReplicas") == 2)
    [pod] = journey.hosts()
    budgets = journey.stage.get(BUDGETS, labelSelector=HOUSEHOLD)["items"]
    assert [each["spec"]["minAvailable"] for each in budgets] == [0], "a lone pod may be drained"
    owners = journey.stage.get(SECRET)["metadata"]["ownerReferences"]
    assert journey.stage.serving("chat")["metadata"]["uid"] in {each["uid"] for each in owners}
    before = {each["pod"] for each in journey.engines()}
    journey.stage.steer("/mps", gpu=gpu_of(journey, ""))
    message = journey.until_said("chat", "MpsLost")
    assert "because they lost MPS: the MPS server" in message
    journey.until("two new engines are ready", lambda: journey.status("chat").get("readyReplicas") == 2)
    journey.until("nothing more is to do", lambda: journey.decision("chat").get("reason") == "DemandMet")
    again = {each["pod"] for each in journey.engines()}
    assert len(again) == 2
    assert not again & before
    assert len(told(journey, "chat", "MpsLost")) == 1
    [same] = journey.hosts()
    assert same["metadata"]["uid"] == pod["metadata"]["uid"]
    journey.holds_for(5, "once", lambda: {each["pod"] for each in journey.engines()} == again)

    journey.stage.delete(f"{PODS}/{pod['metadata']['name']}", gracePeriodSeconds="0")
    journey.until("it is said", lambda: told(journey, "chat", "HostLost"))
    journey.until("two engines are ready", lambda: journey.status("chat").get("readyReplicas") == 2)
    [other] = journey.hosts()
    assert other["metadata"]["uid"] != pod["metadata"]["uid"]
    ip = other["status"]["podIP"]
    journey.until("clients go there", lambda: addresses(journey, "chat") == [(ip, 8001), (ip, 8002)])


def test_where_mps_does_not_start_in_the_pod_one_engine_runs_and_the_serving_says_so(in_pod: Journey) -> None:
    journey = in_pod

    def refusals() -> list[str]:
        """A second engine is not planned, or withdrawn if it was planned before the supervisor knew."""
        return told(journey, "chat", "Withdrawn") + told(journey, "chat", "HeldByOthers")

    journey.stage.steer("/mps", starts=False)
    journey.apply(manual("chat", 2, batching=SMALL))
    journey.until("it is said", lambda: [each for each in refusals() if "MPS does not start in the pod" in each])
    assert "nvidia-cuda-mps-control cannot be started" in refusals()[-1]
    assert "or set spec.sharing: [Exclusive] in the GpuPool" in refusals()[-1]
    journey.until("one engine serves", lambda: journey.status("chat").get("readyReplicas") == 1)
    journey.holds_for(5, "and no other is planned", lambda: len(journey.status("chat").get("placements", ())) == 1)


def test_a_gpu_that_tells_an_xid_is_left_and_taken_again_once_it_is_well(journey: Journey) -> None:
    journey.apply(manual("chat", 1))
    journey.until_ready("chat")
    [bad] = journey.gpus_of("chat")
    mark = journey.history.mark()
    journey.stage.steer("/xid", gpu=bad, code=79)
    message = journey.until_said("chat", "Moved")
    assert "XID 79" in message
    journey.until("it serves elsewhere", lambda: bad not in journey.gpus_of("chat"))
    journey.until_ready("chat")
    assert journey.fewest_serving("chat", mark) >= 1

    def said() -> list[str]:
        conditions = journey.stage.pool()["status"]["conditions"]
        return [each["message"] for each in conditions if each["type"] == "GpusHealthy"]

    assert "XID 79" in said()[0]
    journey.stage.steer("/exporter", fault="unreachable")
    journey.holds_for(5, "a GPU that tells nothing is not well again", lambda: said())
    journey.stage.steer("/exporter", fault="none")
    journey.stage.steer("/xid", gpu=bad, code=0)
    journey.until("it is well", lambda: not said())


def test_a_node_that_is_cordoned_is_left_before_anybody_is_evicted(both_nodes: Journey) -> None:
    journey, cluster = both_nodes, both_nodes.stage.cluster
    journey.apply(manual("chat", 1))
    journey.until_ready("chat")
    [first] = journey.stage.pods("chat")
    old = first["spec"]["nodeName"]
    aborted, mark = journey.aborted(), journey.history.mark()
    journey.load("chat", rate=10)
    if old != FIRST_NODE:
        pytest.fail(f"the first GPU is on {old}")
    cluster.kubectl("cordon", FIRST_NODE)
    journey.until("a successor is planned", lambda: len(journey.names("chat")) == 2)
    journey.until_ready("chat")
    [second] = journey.stage.pods("chat")
    assert second["spec"]["nodeName"] == SECOND_NODE
    assert journey.fewest_serving("chat", mark) >= 1
    assert journey.aborted() == aborted
    journey.until("the budget is as before", lambda: _least(journey) == 0)


def _least(journey: Journey) -> Any:
    return journey.stage.get(f"{BUDGETS}/chat")["spec"]["minAvailable"]


def test_an_image_that_refuses_its_arguments_is_started_once_and_again_when_that_is_mended(journey: Journey) -> None:
    journey.apply(manual("chat", 1, engine=OLD))
    message = journey.until_said("chat", "EngineRefused")
    assert "unrecognized arguments: --custom-histogram-buckets" in message
    assert "unless spec.engine changes: set version to the vLLM of the image" in message
    journey.until("its pod is gone", lambda: not journey.stage.pods("chat"))
    assert journey.condition("chat", "Ready")[:2] == ("False", "EngineRefused")
    journey.holds_for(5, "nothing is started", lambda: not journey.stage.pods("chat"))
    journey.edit("chat", engine={**OLD, "version": "0.30.0"})
    journey.until_ready("chat")


def test_an_engine_without_memory_is_tried_once_a_gpu_and_the_plan_learns_what_it_takes(journey: Journey) -> None:
    journey.edit_pool(times={"pendingDeadlineSeconds": 15})
    journey.stage.steer("/start", overhead_bytes=76 * 2**30)
    journey.apply(manual("chat", 1))
    journey.until("it has failed on both", lambda: len(told(journey, "chat", "Withdrawn")) == 2)
    assert all("too little memory for its start" in each for each in told(journey, "chat", "Withdrawn"))
    journey.stage.steer("/start", overhead_bytes=0)
    [lesson] = journey.stage.pool()["status"]["plan"]["lessons"]
    assert lesson["overheadBytes"] > 2 * 2**30
    journey.until_ready("chat")
    [pod] = journey.stage.pods("chat")
    [share] = [each for each in pod["spec"]["containers"][0]["args"] if each.startswith("--gpu-memory-utilization=")]
    assert float(share.partition("=")[2]) >= 0.10, "it was 0.08 before"
    assert journey.restarts() == 0
