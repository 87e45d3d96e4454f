"""The ten commonest mistakes of a first day: what is said of each names the cause and the next step.

The table in docs/troubleshooting.md quotes these words, and is held to them here. Each is made on a real API server in
e2e (test_refusals, test_first_day, test_data, test_faults, test_modes, test_neighbours). A pod's status is what a
kubelet wrote in Kubernetes 1.34.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from gpupack.catalog import gpu_by_product
from gpupack.cli.explain import not_there
from gpupack.decide import explain
from gpupack.decide.meanings import advice
from gpupack.decide.reconcile import reconcile
from gpupack.doctor.findings import diagnose
from gpupack.facts.estimate import Estimate, Source
from gpupack.facts.observation import Cause, Phase
from gpupack.kube import manifests
from gpupack.kube.child_resource import replica_of
from gpupack.plan import Reason, ServingStatus, Unit, Verdict

from ..decide.world import World
from ..doctor.test_findings import READY, SHORT_OF_THINGS
from ..kube.objects import model_serving, read, start, valid
from ..strategies import gpu, key, serving
from .written import DOCS

CHAT = key("chat")
MUCH = 400.0
"""Requests a second that no single engine carries."""
LEFT_OUT = "…"
"""In a quotation: something that is another thing in every cluster."""


def status_of(world: World) -> ServingStatus:
    assert world.outcome is not None
    return next(each for each in world.outcome.serving_statuses if each.serving == CHAT)


def said(status: ServingStatus) -> str:
    """All that `kubectl describe` and `gpupack explain` tell of it."""
    conditions = (each.message for each in status.conditions)
    return "\n".join([status.decision_message, advice(status.decision_reason), *conditions])


def pool_said(world: World) -> str:
    assert world.outcome is not None
    return "\n".join(each.message for each in world.outcome.pool_status.conditions)


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
    told = replace(replica, phase=Phase.STARTING, message=seen.message, trouble=seen.trouble, restarts=restarts)
    return next(iter(reconcile(replace(observation, replicas=(told,))).serving_statuses))


def no_pool() -> str:
    return explain.no_pool("default")


def no_dra_driver() -> str:
    world = World([], [serving("chat")], {CHAT: 5.0}).run(4.0)
    nothing = diagnose(replace(READY, slices=(), nodes=(), pods=()), gpu_by_product)
    return "\n".join([said(status_of(world)), *(f"{each.sentence}\n{each.remedy}" for each in nothing)])


def no_mps() -> str:
    """The DRA driver refuses to prepare the claim, and a pod's status says no more than ContainerCreating; inside a pod
    the supervisor says that it cannot start MPS."""
    pod = said(beginning(container(waiting={"reason": "ContainerCreating"})))
    gate = [f"{each.sentence}\n{each.remedy}" for each in diagnose(SHORT_OF_THINGS, gpu_by_product)]
    none = Estimate.exact(1.0, Source.MEASURED)
    why = (
        "team/chat, and MPS does not start in the pod chat-h1: nvidia-cuda-mps-control cannot be started: No such file"
    )
    alone = Verdict(
        subject="GPU-00000000-0000", reason=Reason.HELD_BY_OTHERS, observed=none, limit=none, unit=Unit.NONE, detail=why
    )
    return "\n".join([pod, *gate, explain.verdict(alone)])


def no_dcgm() -> str:
    world = World([gpu(0)], [serving("chat", batch=64)], {CHAT: MUCH})
    world.blind["dcgm"] = Cause.NO_SERIES
    return f"{said(status_of(world.run(100.0)))}\n{pool_said(world)}"


def wrong_secret() -> str:
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "hugging-face" not found'}
    gated = container(
        waiting={"reason": "CrashLoopBackOff", "message": "back-off 40s restarting failed container"},
        ended={"reason": "Error", "exitCode": 1, "message": "Cannot access gated repo: 401 Client Error."},
    )
    return f"{said(beginning(container(waiting=waiting)))}\n{said(beginning(gated, restarts=3))}"


def image_without_the_flag() -> str:
    log = "usage: vllm serve\nvllm: error: unrecognized arguments: --kv-cache-memory-bytes=9594994688"
    pod = container(
        waiting={"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"},
        ended={"reason": "Error", "exitCode": 2, "message": log},
    )
    return said(beginning(pod))


def model_too_large() -> str:
    large = serving("chat", model="llama-2-13b")
    status = status_of(World([gpu(0, "L4")], [large], {CHAT: 5.0}).run(4.0))
    assert (status.decision_reason, status.replicas) == ("Memory", 0)
    return said(status)


def namespace_mismatch() -> str:
    other = key("other", namespace="team-b")
    servings = [serving("chat", age=500.0), serving("other", namespace="team-b", age=1000.0)]
    status = status_of(World([gpu(0)], servings, {CHAT: 5.0, other: 5.0}).run(40.0))
    return f"{said(status)}\n{not_there('chat', 'default', ['team-b'])}"


def metrics_port_closed() -> str:
    world = World([gpu(0)], [serving("chat", batch=64)], {CHAT: 5.0}).run(60.0)
    world.loads[CHAT] = MUCH
    world.blind["engines"] = Cause.UNREACHABLE
    engines = said(status_of(world.run(60.0)))
    world = World([gpu(0)], [serving("chat", batch=64)], {CHAT: MUCH})
    world.blind["dcgm"] = Cause.UNREACHABLE
    return f"{engines}\n{said(status_of(world.run(100.0)))}"


def impossible_slo() -> str:
    return said(status_of(World([gpu(0)], [serving("chat", itl=0.0005)], {CHAT: 5.0}).run(60.0)))


MISTAKES: Mapping[str, tuple[Callable[[], str], str, str]] = {
    "no pool": (no_pool, "spec.poolName", "Create it"),
    "no DRA driver": (no_dra_driver, "spec.nodeSelector", "Install NVIDIA's GPU operator with its DRA driver"),
    "no MPS": (no_mps, "spec.sharing: [Exclusive]", "Set draDriver.featureGates: {MPSSupport: true}"),
    "no DCGM": (no_dcgm, "spec.metrics.dcgm", "Install dcgm-exporter"),
    "wrong secret": (wrong_secret, "spec.model.tokenSecretRef", "Create it in the namespace of the ModelServing"),
    "an image without the flag": (image_without_the_flag, "spec.engine.version", "take another image"),
    "model too large": (model_too_large, "spec.model.maxModelLen", "take a smaller model"),
    "namespace mismatch": (namespace_mismatch, "spec.poolName", "belong into one namespace"),
    "metrics port closed": (metrics_port_closed, "port 8000 of its pods", "See that the pod runs"),
    "impossible SLO": (impossible_slo, "spec.slo", "Ask for at least that"),
}
"""Of each what a new user is told; of that, the field that it is about, and what to do."""


def rows() -> dict[str, str]:
    """Of the table of mistakes: what one sees, by mistake."""
    page = (DOCS / "troubleshooting.md").read_text()
    section = page.partition("## The ten commonest mistakes\n")[2].partition("\n## ")[0]
    cells = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| **")]
    return {mistake.strip("*"): seen for mistake, seen, _ in cells}


def quotations(cell: str) -> list[str]:
    """What stands in it as code and is a sentence or a part of one, not a name."""
    return [match[2].strip() for match in re.finditer(r"(`+)(.+?)\1(?!`)", cell) if " " in match[2]]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_said_of_a_mistake_names_the_field_and_the_next_step(mistake: str) -> None:
    words, field, fix = MISTAKES[mistake]
    told = words()
    assert field in told
    assert fix in told


def test_the_page_has_the_ten_mistakes() -> None:
    assert list(rows()) == list(MISTAKES)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_the_page_quotes_is_what_is_said(mistake: str) -> None:
    told = MISTAKES[mistake][0]()
    quoted = quotations(rows()[mistake])
    assert quoted
    for each in quoted:
        pattern = ".*?".join(re.escape(part) for part in each.split(LEFT_OUT))
        assert re.search(pattern, told), f"nobody says {each!r} but:\n{told}"


def test_an_image_without_the_flag_is_started_once() -> None:
    log = "vllm: error: unrecognized arguments: --kv-cache-memory-bytes=9594994688"
    ended = {"reason": "Error", "exitCode": 2, "message": log}
    status = beginning(container(waiting={"reason": "CrashLoopBackOff", "message": "back-off"}, ended=ended))
    assert status.decision_reason == "EngineRefused"


@pytest.mark.parametrize("reason", ["DataMissing", "HeldByOthers", "Memory", "NoGpu", "NoEngine", "Withdrawn"])
def test_what_only_a_person_can_mend_comes_with_advice(reason: str) -> None:
    assert advice(reason)


def test_the_secret_is_spoken_of_only_where_one_is_missing() -> None:
    message = 'CreateContainerConfigError: configmap "settings" not found'
    assert "tokenSecretRef" not in explain.waits_for("chat-0", message)
