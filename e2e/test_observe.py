"""Day one: vLLM pods of a plain Deployment, made by Kubernetes' own controllers, and gpupack looks at them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from gpupack.facts.engine_flags import flags_of
from gpupack.units import GIB

from .journey import Journey, serving

MARKS = {"app": "plain"}
CLAIM_TEMPLATE = {
    "apiVersion": "resource.k8s.io/v1",
    "kind": "ResourceClaimTemplate",
    "metadata": {"name": "one-gpu", "namespace": "default"},
    "spec": {
        "spec": {"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": "gpu.nvidia.com"}}]}},
    },
}
SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "plain", "namespace": "default"},
    "spec": {"selector": MARKS, "ports": [{"port": 8080, "targetPort": 8080}]},
}
AS_IT_WAS = ["llama-3.2-1b", "--port", "8080", "--max-num-seqs", "512", "--max-model-len=4096"]


def deployment(args: list[str]) -> dict[str, Any]:
    """Two engines as a team would run them: one GPU each, and the memory that vLLM takes by itself."""
    container = {
        "name": "server",
        "image": "vllm/vllm-openai:v0.33.0",
        "command": ["vllm", "serve"],
        "args": args,
        "ports": [{"containerPort": 8080}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": 8080}, "periodSeconds": 1},
        "resources": {"claims": [{"name": "gpu"}]},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "plain", "namespace": "default"},
        "spec": {
            "replicas": 2,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": MARKS},
            "template": {
                "metadata": {"labels": MARKS},
                "spec": {
                    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
                    "terminationGracePeriodSeconds": 1,
                    "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}],
                    "containers": [container],
                },
            },
        },
    }


@pytest.fixture
def plain(journey: Journey) -> Iterator[Journey]:
    cluster = journey.stage.cluster
    journey.apply(CLAIM_TEMPLATE, SERVICE, deployment(AS_IT_WAS))
    cluster.kubectl("rollout", "status", "deployment/plain", "--timeout=60s")
    yield journey
    cluster.kubectl("delete", "deployment/plain", "service/plain", "resourceclaimtemplate/one-gpu", "--wait=false")
    journey.until("its pods are gone", lambda: not engines_of(journey))


def engines_of(journey: Journey) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = journey.stage.get("/api/v1/namespaces/default/pods", labelSelector="app=plain")[
        "items"
    ]
    return found


def observed(journey: Journey) -> Mapping[str, Any]:
    found: Mapping[str, Any] = journey.status("watch").get("observed", {})
    return found


def is_measured(journey: Journey) -> bool:
    engines = observed(journey).get("engines", [])
    return len(engines) == 2 and all("itlMeanMilliseconds" in each for each in engines)


def watch() -> dict[str, Any]:
    return serving("watch", mode="Advise", observe={"selector": {"matchLabels": MARKS}}, workload={})


def test_pods_of_a_plain_deployment_are_read_and_told_what_they_could_be(plain: Journey) -> None:
    uids = {each["metadata"]["uid"] for each in engines_of(plain)}
    plain.stage.load("default/plain", rate=40, input_tokens=512, output_tokens=256)
    plain.apply(watch())
    plain.until("both are measured", lambda: is_measured(plain))

    for engine in observed(plain)["engines"]:
        assert (engine["maxNumSeqs"], engine["gpuKind"], engine["version"]) == (512, "H100-80GB", "0.33.0")
        assert engine["gpu"].startswith("GPU-")
        assert engine["kvCacheMemoryBytes"] > 50 * GIB
        assert float(engine["requestsPerSecond"]) > 5
        assert float(engine["running"]) > 1
    status = plain.status("watch")  # one reading: what is advised follows the lengths that finish
    (better,) = status["observed"]["advised"]
    assert better["replicasPerGpu"] >= 2
    assert better["freedBytes"] > 30 * GIB
    assert float(better["expectedGainPercent"]) > 5
    assert (better["gpusNow"], better["gpusNeeded"]) == (2, 1)
    assert flags_of(better["engineArguments"]).max_num_seqs == better["shape"]["maxNumSeqs"]
    assert status["shape"]["engineArguments"] == better["engineArguments"]
    assert plain.condition("watch", "Ready")[:2] == ("False", "AdviseOnly")

    message = plain.until_said("watch", "Advised")
    assert "2 engines on 2 H100-80GB: now up to 512 sequences" in message
    events = plain.stage.cluster.kubectl("get", "events", "--field-selector=reason=Advised", "-o", "name")
    assert "watch" in events

    def tells_the_arguments() -> bool:
        told = explained(plain)
        return all(argument in told for argument in observed(plain)["advised"][0]["engineArguments"])

    plain.until("explain tells the arguments", tells_the_arguments)
    assert "2 pods observed, 2 judged; gpupack started none of them" in explained(plain)

    plain.holds_for(3, "nothing of its own is there", lambda: not plain.children())
    assert {each.resource for each in plain.writes()} <= {"modelservings/status", "gpupools/status", "events"}
    assert {each["metadata"]["uid"] for each in engines_of(plain)} == uids


def test_the_arguments_can_be_pasted_and_a_pod_without_metrics_is_named(plain: Journey) -> None:
    plain.apply(watch())
    plain.until_said("watch", "Advised")
    (better,) = observed(plain)["advised"]
    plain.apply(deployment(["llama-3.2-1b", "--port=8080", *better["engineArguments"]]))
    plain.stage.cluster.kubectl("rollout", "status", "deployment/plain", "--timeout=60s")
    wanted = better["shape"]["kvCacheMemoryBytes"]
    plain.until(
        "the new engines are seen with the memory that was advised",
        lambda: [each.get("kvCacheMemoryBytes") for each in observed(plain)["engines"]] == [wanted, wanted],
    )
    silent = engines_of(plain)[0]["metadata"]["name"]
    plain.stage.steer("/engine-metrics", pod=f"default/{silent}", fault="unreachable")
    plain.until(
        "it is named with the cause", lambda: f"{silent}: nothing answers" in plain.decision("watch")["message"]
    )
    problems = {each["pod"]: each.get("problem") for each in observed(plain)["engines"]}
    assert problems[silent]
    assert sum(each is None for each in problems.values()) == 1


def test_a_selector_that_finds_nothing_says_so(journey: Journey) -> None:
    journey.apply(serving("watch", mode="Advise", observe={"selector": {"matchLabels": {"app": "nobody"}}}))
    assert journey.until_said("watch", "NoEngine") == "No pod matches spec.observe.selector."


def explained(journey: Journey) -> str:
    kubeconfig = str(journey.stage.cluster.kubeconfig)
    command = [sys.executable, "-m", "gpupack", "explain", "watch", "--kubeconfig", kubeconfig]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
