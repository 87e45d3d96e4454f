"""The commonest mistakes of a first day: what is said of each names the cause and the next step.

No DRA driver and no MPS gate are the doctor's to tell before anything is installed (tests/doctor); here is what the
resource says. A pod's status is what a kubelet wrote in Kubernetes 1.34.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from gpupack.decide.meanings import advice
from gpupack.decide.reconcile import reconcile
from gpupack.facts.observation import Cause, Phase
from gpupack.kube import manifests
from gpupack.kube.child_resource import replica_of
from gpupack.plan import ConditionType, ServingStatus

from ..decide.world import World
from ..kube.objects import model_serving, read, start, valid
from ..strategies import gpu, key, serving

CHAT = key("chat")
MUCH = 400.0
"""Requests a second that no single engine carries."""


def status_of(world: World) -> ServingStatus:
    assert world.outcome is not None
    return next(each for each in world.outcome.serving_statuses if each.serving == CHAT)


def said(status: ServingStatus, kind: ConditionType) -> str:
    return next(each.message for each in status.conditions if each.type is kind)


def after(seconds: float, *, kind: str = "H100-80GB", **wishes: Any) -> ServingStatus:
    return status_of(World([gpu(0, kind)], [serving("chat", **wishes)], {CHAT: 5.0}).run(seconds))


def container(waiting: Mapping[str, str] | None = None, ended: Mapping[str, Any] | None = None) -> dict[str, Any]:
    state = {} if waiting is None else {"waiting": waiting}
    last = {} if ended is None else {"terminated": ended}
    return {
        "containerStatuses": [{"name": "engine", "restartCount": 3 if ended else 0, "state": state, "lastState": last}]
    }


def beginning(pod_status: Mapping[str, Any], *, restarts: int = 0) -> ServingStatus:
    """What is said while the first replica's pod has that status."""
    resource = read(model_serving())
    pod = manifests.pod(start(resource), valid(model_serving()), resource.template)
    pod["metadata"] |= {"uid": "pod-uid", "creationTimestamp": "2026-11-18T12:00:00Z"}
    pod["spec"]["nodeName"] = "node-0"
    seen = replica_of({**pod, "status": pod_status})
    assert seen is not None
    world = World([gpu(0)], [serving("chat")], {CHAT: 5.0}).run(8.0)
    observation = world.observe()
    (replica,) = observation.replicas
    told = replace(replica, phase=Phase.STARTING, message=seen.message, restarts=restarts)
    return next(iter(reconcile(replace(observation, replicas=(told,))).serving_statuses))


def test_no_dcgm() -> None:
    world = World([gpu(0)], [serving("chat", batch=64)], {CHAT: MUCH})
    world.blind["dcgm"] = Cause.NO_SERIES
    message = status_of(world.run(100.0)).decision_message
    assert "takes 1 replica: nothing exports the framebuffer in use" in message
    assert "Install dcgm-exporter, or name its pods in spec.metrics.dcgm of the GpuPool" in message


def test_no_dra_driver() -> None:
    status = status_of(World([], [serving("chat")], {CHAT: 5.0}).run(4.0))
    assert status.decision_message == "The pool has no GPU that can be used; `gpupack doctor` tells what is missing."
    assert "resourceslices" in advice(status.decision_reason)


def test_no_mps() -> None:
    """The driver refuses to prepare the claim; a pod's status then says no more than ContainerCreating."""
    status = beginning(container(waiting={"reason": "ContainerCreating"}))
    assert "waits for its node: `kubectl describe pod" in said(status, ConditionType.READY)


def test_an_image_without_the_flag() -> None:
    log = "usage: vllm serve\nvllm: error: unrecognized arguments: --kv-cache-memory-bytes=9594994688"
    pod = container(
        waiting={"reason": "CrashLoopBackOff", "message": "back-off 40s restarting failed container"},
        ended={"reason": "Error", "exitCode": 2, "message": log},
    )
    status = beginning(pod, restarts=3)
    assert status.decision_reason == "Withdrawn"
    assert "unrecognized arguments: --kv-cache-memory-bytes" in status.decision_message
    assert "an image older than spec.engine.version says" in advice(status.decision_reason)


def test_a_wrong_secret() -> None:
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "hugging-face" not found'}
    message = said(beginning(container(waiting=waiting)), ConditionType.READY)
    assert message.endswith('CreateContainerConfigError: secret "hugging-face" not found.')


def test_a_model_too_large() -> None:
    status = after(4.0, model="llama-2-13b", kind="L4")
    assert (status.decision_reason, status.replicas) == ("Memory", 0)
    assert "too much. Not even one fits: take a smaller model" in status.decision_message


def test_two_namespaces_on_one_gpu() -> None:
    other = key("other", namespace="elsewhere")
    servings = [serving("chat", age=500.0), serving("other", namespace="elsewhere", age=1000.0)]
    status = status_of(World([gpu(0)], servings, {CHAT: 5.0, other: 5.0}).run(40.0))
    assert "is held by others: namespace elsewhere, which holds the claim of this GPU" in status.decision_message
    assert "a GpuPool of its own" in advice(status.decision_reason)


def test_the_metrics_port_is_closed() -> None:
    world = World([gpu(0)], [serving("chat", batch=64)], {CHAT: 5.0}).run(60.0)
    world.loads[CHAT] = MUCH
    world.blind["engines"] = Cause.UNREACHABLE
    status = status_of(world.run(60.0))
    assert status.decision_reason == "DataMissing"
    assert status.decision_message.endswith("See that a NetworkPolicy lets the operator in.")


def test_an_slo_that_is_impossible() -> None:
    message = said(after(60.0, itl=0.0005), ConditionType.SLO_MET)
    assert message.startswith("No batch keeps inter-token latency P95 0.5 ms; the best reachable is ")


@pytest.mark.parametrize("reason", ["DataMissing", "HeldByOthers", "Memory", "NoGpu", "NoEngine", "Withdrawn"])
def test_what_only_a_person_can_mend_comes_with_advice(reason: str) -> None:
    assert advice(reason)
