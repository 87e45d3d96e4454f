"""A spec that cannot be carried out: what the schema knows is refused at once, the rest becomes a condition.

And what a cluster lacks: told where a new user looks, with `kubectl describe` and on gpupack's own command line.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from gpupack.demo.stage import condition
from gpupack.node.controlplane import KubectlError

from .journey import FIRST_NODE, PODS, SERVINGS, Journey, manual, serving

REFUSED: list[Any] = [
    pytest.param({"model": {}}, "spec.model.name", "Required value", id="no model"),
    pytest.param(
        {"engine": {"args": ["--max-num-seqs=8"]}}, "spec.engine.args", "leave it out", id="an owned argument"
    ),
    pytest.param({"slo": {"itlMilliseconds": 0}}, "spec.slo.itlMilliseconds", "should be greater", id="an SLO of 0"),
    pytest.param(
        {"scaling": {"minReplicas": 3, "maxReplicas": 2}},
        "spec.scaling.maxReplicas",
        "less than minReplicas",
        id="bounds",
    ),
    pytest.param({"sharing": "TimeSlicing"}, "spec.sharing", "supported values", id="a sharing that is not offered"),
]
CONDITIONS: list[Any] = [
    pytest.param(
        {"model": {"name": "example/unheard-of"}},
        "spec.model.name",
        "config.json in spec.model.config",
        id="a model nobody knows",
    ),
    pytest.param(
        {"engine": {"image": "vllm/vllm-openai:v0.8.5"}}, "spec.engine.image", "or newer", id="an engine too old"
    ),
    pytest.param({"profileRef": {"name": "missing"}}, "spec.profileRef.name", "create it", id="a profile not there"),
]


@pytest.mark.parametrize(("spec", "field", "says"), REFUSED)
def test_kubectl_is_told_the_field_and_what_would_be_accepted(
    journey: Journey, spec: dict[str, Any], field: str, says: str
) -> None:
    with pytest.raises(KubectlError) as refused:
        journey.stage.cluster.kubectl("create", "-f", "-", stdin=json.dumps(serving("bad", **spec)))
    assert field in refused.value.message
    assert says in refused.value.message


def test_a_count_that_gpupack_owns_cannot_be_scaled(journey: Journey) -> None:
    journey.apply(serving("chat"))
    with pytest.raises(KubectlError, match=r"set scaling\.mode: Manual first"):
        journey.stage.cluster.kubectl("scale", "msv/chat", "--replicas=3")


@pytest.mark.parametrize(("spec", "field", "fix"), CONDITIONS)
def test_what_no_schema_can_know_becomes_a_condition_and_is_forgiven_once_mended(
    journey: Journey, spec: dict[str, Any], field: str, fix: str
) -> None:
    good = manual("chat", 1)
    journey.apply(manual("bad", 1, **spec), good)
    journey.until("bad is refused", lambda: journey.condition("bad", "Accepted")[0] == "False")
    _, reason, message = journey.condition("bad", "Accepted")
    assert reason == "Invalid"
    assert field in message
    assert fix in message
    journey.until_ready("chat")
    assert journey.names("bad") == set()

    if "model" in spec:
        return  # a serving's model cannot change
    journey.stage.patch(f"{SERVINGS}/bad", {"spec": dict.fromkeys(spec)})
    journey.until_ready("bad")
    assert journey.condition("bad", "Accepted")[0] == "True"


TEAM = "team-b"
DRIVER = "nvidia-dra-driver-gpu-kubelet-plugin"


def gpupack(journey: Journey, *words: str) -> str:
    """What the command prints, whatever its exit status."""
    command = [sys.executable, "-m", "gpupack", *words, "--kubeconfig", str(journey.stage.cluster.kubeconfig)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return " ".join((done.stdout + done.stderr).split())


def told(journey: Journey, name: str, namespace: str = "default") -> tuple[str, str]:
    """By kubectl, and by gpupack."""
    described = journey.stage.cluster.kubectl("describe", "msv", name, "-n", namespace)
    return " ".join(described.split()), gpupack(journey, "explain", name, "-n", namespace)


def backend(journey: Journey) -> Mapping[str, Any]:
    return condition(journey.stage.pool(), "BackendChosen")


@pytest.fixture
def driver_without_gate(journey: Journey) -> Iterator[Journey]:
    """A pod of NVIDIA's DRA driver as its chart makes it, with MPSSupport off."""
    container = {"name": "gpus", "image": "nvcr.io/nvidia/k8s-dra-driver-gpu:v26.7.0", "env": []}
    spec = {"nodeName": FIRST_NODE, "terminationGracePeriodSeconds": 0, "containers": [container]}
    metadata = {"name": DRIVER, "namespace": "default"}
    journey.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    yield journey
    journey.stage.delete(f"{PODS}/{DRIVER}", gracePeriodSeconds="0")


def test_no_driver_on_the_nodes_of_the_pool_is_told_by_serving_and_pool(journey: Journey) -> None:
    journey.edit_pool(nodeSelector={"kubernetes.io/hostname": "a-node-without-gpus"})
    journey.apply(manual("chat", 1))
    words = journey.until_said("chat", "NoGpu")
    assert words == "The pool has no GPU that can be used; `gpupack doctor` tells what is missing."
    described, explained = told(journey, "chat")
    assert words in described
    assert words in explained
    assert "Then compare spec.nodeSelector, gpuProducts and gpuUuids of the GpuPool" in explained
    journey.until("the pool says why", lambda: backend(journey).get("reason") == "NoBackend")
    pool = " ".join(journey.stage.cluster.kubectl("describe", "gpupool", "default").split())
    assert "DRA is not taken: no NVIDIA DRA driver publishes GPUs in ResourceSlices there." in pool


def test_a_driver_whose_gate_for_mps_is_off_is_told_by_pool_and_doctor(driver_without_gate: Journey) -> None:
    journey = driver_without_gate
    journey.until("the pool says so", lambda: backend(journey).get("reason") == "Broken")
    fix = "Set draDriver.featureGates: {MPSSupport: true} in the GPU operator's values, or spec.sharing: [Exclusive]"
    assert "the driver's gate MPSSupport is off, so a claim that asks for MPS is refused" in backend(journey)["message"]
    assert fix in backend(journey)["message"]
    proxy = journey.stage.pod_proxy
    found = gpupack(journey, "doctor", "--pod-proxy", proxy)
    assert f"The DRA driver (default/{DRIVER}) does not have its gate MPSSupport on" in found
    assert fix in found


def test_no_exporter_at_all_is_told_by_serving_and_pool_with_what_to_install(journey: Journey) -> None:
    nobody = {"podSelectors": [{"matchLabels": {"app": "no-exporter"}}]}
    journey.edit_pool(maxGpus=1, metrics={"source": "DCGM", "dcgm": nobody})
    journey.apply(manual("chat", 2))
    words = journey.until_said("chat", "Memory")
    assert (
        "takes 1 replica: nothing exports the framebuffer in use. Install dcgm-exporter, or name its pods in" in words
    )
    assert "spec.metrics.dcgm of the GpuPool" in words
    assert all(words in each for each in told(journey, "chat"))

    def measured() -> Mapping[str, Any]:
        return condition(journey.stage.pool(), "GpusMeasured")

    journey.until("the pool says so", lambda: measured().get("reason") == "NoSeries")
    assert "switch on the node agent (agent.enabled in the chart)" in measured()["message"]


@pytest.fixture
def team(journey: Journey) -> Iterator[Journey]:
    """A second namespace, whose ModelServings and namespace go afterwards."""
    kubectl = journey.stage.cluster.kubectl
    kubectl("create", "namespace", TEAM)
    kubectl("wait", "-n", TEAM, "--for=create", "serviceaccount/default", "--timeout=30s")
    yield journey
    # What is left of a plan would be asked for in a namespace that takes nothing new any more.
    kubectl("delete", "modelservings", "--all", "-n", TEAM)
    journey.until("nothing is planned there", lambda: TEAM not in json.dumps(journey.stage.pool()["status"]["plan"]))
    kubectl("delete", "namespace", TEAM, "--wait=false")


def test_a_serving_of_another_namespace_is_told_whose_gpu_it_is_and_found_where_it_is(team: Journey) -> None:
    journey = team
    journey.edit_pool(maxGpus=1)
    journey.apply(manual("chat", 1))
    journey.until_ready("chat")
    other = manual("notes", 1)
    journey.apply({**other, "metadata": {**other["metadata"], "namespace": TEAM}})

    def decision() -> Mapping[str, Any]:
        status: Mapping[str, Any] = journey.stage.serving("notes", TEAM).get("status", {})
        return status.get("decision", {})

    journey.until("notes is told", lambda: decision().get("reason") == "HeldByOthers")
    words = (
        "is held by others: namespace default, which holds the claim of this GPU. Servings that share a GPU belong into"
        " one namespace; give each other namespace a GpuPool of its own (spec.poolName)."
    )
    assert all(words in each for each in (decision()["message"], *told(journey, "notes", TEAM)))
    elsewhere = "there is no ModelServing notes in namespace default; it is in team-b: add -n team-b"
    assert elsewhere in gpupack(journey, "explain", "notes")
