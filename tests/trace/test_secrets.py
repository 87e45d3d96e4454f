"""A trace holds no secret and no prompt, whatever a spec, a pod or an engine's log holds."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from gpupack.decide.reconcile import reconcile
from gpupack.facts.observation import Observation, Phase, quoted
from gpupack.facts.placement import Plan, Record
from gpupack.facts.policy import Policy
from gpupack.facts.serving import Serving
from gpupack.kube import manifests
from gpupack.kube.observe import POOLS, SERVINGS
from gpupack.plan import Outcome, Step
from gpupack.trace.lines import Header, header_line, read, tick_line

from ..kube import objects, tiny_api
from ..kube.test_observe import NODES, PODS, SLICES, NoReadings, node, scene
from ..kube.test_resource_node import device, resource_slice
from ..kube.tiny_api import TinyApi
from ..scenarios.test_scenarios import STORIES, story_of

SECRET = "s3cr3t"
"""Part of every value that must not be found; a name of a Secret is no secret, but nothing asks for it either."""
POD_TEMPLATE = {
    "metadata": {"labels": {"cost-center": f"{SECRET}-label"}, "annotations": {"note": f"{SECRET}-annotation"}},
    "imagePullSecrets": [{"name": f"{SECRET}-pull"}],
    "env": [
        {"name": "HF_TOKEN", "value": f"hf_{SECRET}"},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": f"{SECRET}-env", "key": "key"}}},
    ],
    "volumes": [{"name": "cache", "secret": {"secretName": f"{SECRET}-volume"}}],
}
SPEC = {
    "model": {"name": "llama-3.2-1b", "tokenSecretRef": {"name": f"{SECRET}-token", "key": "token"}},
    "engine": {
        "image": f"registry.example/{SECRET}/vllm:v0.33.0",
        "args": ["--api-key", f"sk-{SECRET}", f"--hf-token=hf_{SECRET}"],
        "apiKeySecretRef": {"name": f"{SECRET}-api", "key": "key"},
        "podTemplate": POD_TEMPLATE,
    },
}
LOG = (
    f'INFO request: prompt: "{SECRET} my diagnosis “{SECRET}”", Authorization: Bearer {SECRET}\nValueError: {SECRET}\\'
)


def own_pod() -> dict[str, Any]:
    resource = objects.read(objects.model_serving(**SPEC))
    assert isinstance(resource.serving, Serving)
    body = manifests.pod(objects.start(resource), resource.serving, resource.template)
    body["metadata"] |= {"uid": "uid-1", "creationTimestamp": "2026-11-18T10:41:00Z"}
    body["spec"]["nodeName"] = "node-a"
    ended = {"reason": "Error", "exitCode": 1, "message": LOG}
    status = {"restartCount": 5, "state": {"terminated": ended}, "lastState": {"terminated": ended}}
    body["status"] = {"phase": "Running", "podIP": "10.0.0.7", "containerStatuses": [status]}
    return body


def foreign_pod() -> dict[str, Any]:
    container = {
        "name": "vllm", "image": "vllm/vllm-openai:v0.33.0", "command": ["vllm", "serve", "llama-3.2-1b"],
        "args": ["--api-key", f"sk-{SECRET}", f"--hf-token=hf_{SECRET}", "--max-num-seqs", "64"],
        "env": POD_TEMPLATE["env"], "resources": {"limits": {"nvidia.com/gpu": "1", "cpu": "2"}},
    }  # fmt: skip
    return {
        "metadata": {"namespace": "models", "name": "theirs", "uid": "uid-2", "labels": {"app": "theirs"},
                     "annotations": {"note": SECRET}, "creationTimestamp": "2026-11-18T10:41:00Z"},
        "spec": {"nodeName": "node-b", "containers": [container], "imagePullSecrets": [{"name": SECRET}]},
        "status": {"phase": "Running", "podIP": "10.0.0.8"},
    }  # fmt: skip


@pytest.fixture
async def server() -> AsyncIterator[TinyApi]:
    async with tiny_api.serving() as server:
        for number, name in enumerate(("node-a", "node-b")):
            server.put(NODES, node(name))
            uuid = (objects.GPU, objects.OTHER_GPU)[number]
            server.put(SLICES, resource_slice(device("gpu-0", uuid), node=name))
        server.put(POOLS, objects.gpu_pool())
        server.put(SERVINGS, objects.model_serving(**SPEC))
        observing = objects.model_serving(
            mode="Advise", observe={"selector": {"matchLabels": {"app": "theirs"}}}, **SPEC
        )
        observing["metadata"] |= {"name": "watcher", "uid": "5c1f7a34-3333-4000-8000-000000000001"}
        server.put(SERVINGS, observing)
        for body in (own_pod(), foreign_pod()):
            server.put(PODS, body)
        yield server


async def test_nothing_that_is_secret_in_a_spec_or_a_pod_comes_into_a_trace(server: TinyApi) -> None:
    observation = (await scene(server)).observation(objects.AT, (), lambda _gpu: NoReadings())
    (replica,) = observation.replicas
    assert SECRET in replica.message  # it was there to be left out
    assert len(observation.servings) == 2
    assert [each.pod for each in observation.running] == ["theirs"]
    outcome = reconcile(observation)
    again = replace(observation, plan=outcome.pool_status.plan)
    text = tick_line(observation, outcome) + tick_line(again, reconcile(again))
    assert SECRET not in text
    assert "HF_TOKEN" not in text


@pytest.mark.parametrize("cut", [0, 20])
def test_what_a_container_wrote_is_left_out_wherever_it_went(tmp_path: Path, cut: int) -> None:
    """Also from a plan that was read back, and where a text was cut off within."""
    story = story_of(STORIES[0].read_text()).observation
    (serving, *_) = story.servings
    said = f"It restarted 3 times without becoming ready: Error: {quoted(LOG)}"
    said = said[: len(said) - cut]
    record = Record(
        serving=serving.key, reason=Step.WITHDRAWN, subject="", observed=0.0, limit=0.0, unit="", at_least=False,
        wanted=1, planned=0, message=said, at=story.at,
    )  # fmt: skip
    seen = replace(
        story,
        plan=replace(story.plan or Plan(), records=(record,)),
        replicas=tuple(replace(each, phase=Phase.FAILED, message=said) for each in story.replicas),
    )
    path = tmp_path / "trace"
    lines = (header_line(Header(policy=Policy(), catalog="")), tick_line(seen, reconcile(seen)))
    path.write_text("".join(f"{line}\n" for line in lines))
    assert SECRET not in path.read_text()
    (ticked,) = read(path)
    assert ticked.observation.plan is not None
    assert ticked.observation.plan.records[0].message.endswith("Error: “...”")


NAMES = {
    "address", "aliases", "content_hash", "device_name", "engine_version", "field", "gpu_kind", "gpu_uuid", "household",
    "identity", "inputs", "kind", "look_again", "mig_profile", "model", "name", "namespace", "neighbours", "node",
    "origin", "owners", "parent_uuid", "parts", "phase", "picker", "pod", "pool", "pool_uid", "product",
    "product_names", "provenance", "replica", "resource", "runtime_class", "selector", "served", "sharing",
    "stale", "subject", "template_hash", "uid", "unknown_products", "uuid", "version",
}  # fmt: skip
"""Names that the cluster, the catalog or gpupack gave, and digests: a template's hash stands for its environment."""
OUR_WORDS = {
    "assumed", "company", "decision_message", "decision_predicted", "decision_reason", "decision_rejected",
    "decision_seen", "decision_unit", "detail", "engine_args", "experiment_message", "fix", "pool_problem", "predicted",
    "reason", "rejected", "seen", "step", "unit", "what", "why", "yields_to",
}  # fmt: skip
"""Sentences and words that gpupack makes. What it quotes from a container stands between quotes and is left out."""
FROM_OUTSIDE = {
    "alone",  # why MPS does not start in a pod, with the last line of its daemon's log
    "message",  # the scheduler's and kubelet's words on a pod; those of its container are quoted
    "refusal",  # a pod's message, kept
    "problem",  # names the field of a spec that is wrong and the value: never one that holds a secret
}


def texts(kind: Any, where: str, known: set[type]) -> Iterator[str]:
    if kind is str:
        yield where
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind not in known:
        known.add(kind)
        for name, hint in get_type_hints(kind).items():
            yield from texts(hint, name, known)
    for part in get_args(kind):
        yield from texts(part, where, known)


def test_every_text_that_a_trace_can_hold_was_thought_about() -> None:
    """A new one fails here: can it hold a secret or a prompt? If not, add it above; if so, keep it out."""
    found = {*texts(Observation, "", set()), *texts(Outcome, "", set())}
    assert not found - NAMES - OUR_WORDS - FROM_OUTSIDE
