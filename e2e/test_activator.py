"""Scale to zero and back: a serving sleeps, a client's request waits at the activator, is answered, and is told of."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gpupack import catalog
from gpupack.demo.stage import Stage
from gpupack.errors import Unavailable
from gpupack.node import binaries

from .history import is_ready
from .journey import CHAT, MODEL, PATIENCE_SECONDS, PLUGIN_NODE, PROCESS_IMAGE, Journey, manual

CHART = Path(__file__).parents[1] / "charts" / "gpupack"
SYSTEM = "gpupack-system"
ACTIVATORS = 2
ACTIVATOR_ACCOUNT = f"system:serviceaccount:{SYSTEM}:gpupack-activator"
SYSTEM_PODS = f"/api/v1/namespaces/{SYSTEM}/pods"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"
OF_ACTIVATOR = "app.kubernetes.io/component=activator"
IDLE_SECONDS = 5
SLEEPS = {"mode": "Auto", "minReplicas": 0, "idleSeconds": IDLE_SECONDS}


@pytest.fixture
def deployment(stage: Stage) -> Iterator[str]:
    """The chart's Deployment with its account: real processes, which reach pods by the proxy."""
    try:
        helm = binaries.obtain(binaries.helm())["helm"]
    except Unavailable as problem:
        pytest.skip(str(problem))
    words = [helm, "template", "gpupack", CHART, "-n", SYSTEM, "-s", "templates/activator.yaml",
             "--set", f"activator.enabled=true,activator.replicas={ACTIVATORS}"]  # fmt: skip
    rendered = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    objects = [each for each in yaml.safe_load_all(rendered) if each]
    (deployed,) = [each for each in objects if each["kind"] == "Deployment"]
    (container,) = deployed["spec"]["template"]["spec"]["containers"]
    stage.cluster.apply(*(each for each in objects if each is not deployed))
    container["image"] = PROCESS_IMAGE
    container["args"] = [*container["args"], f"--pod-proxy={stage.pod_proxy}"]
    container["env"] = [{"name": "KUBECONFIG", "value": str(stage.cluster.kubeconfig_for(ACTIVATOR_ACCOUNT))}]
    stage.cluster.apply(deployed)
    path = f"/apis/apps/v1/namespaces/{SYSTEM}/deployments/{deployed['metadata']['name']}"
    yield path
    stage.delete(path, propagationPolicy="Background")
    stage.delete(SYSTEM_PODS, labelSelector=OF_ACTIVATOR, gracePeriodSeconds="0")


@pytest.fixture
def waking(journey: Journey, deployment: str) -> Journey:
    """With activators that are there to be asked."""
    journey.until("the activators are ready", lambda: (
        journey.stage.get(deployment).get("status", {}).get("readyReplicas") == ACTIVATORS))  # fmt: skip
    return journey


def endpoints(journey: Journey, name: str) -> set[str]:
    """Where the Service leads: host:port of everything that is ready in its slices."""
    found = journey.stage.get(SLICES, labelSelector=f"kubernetes.io/service-name={name}")["items"]
    return {
        f"{address}:{each['ports'][0]['port']}"
        for each in found
        for endpoint in each.get("endpoints") or ()
        if endpoint.get("conditions", {}).get("ready") is not False
        for address in endpoint["addresses"]
    }


def activators(journey: Journey) -> set[str]:
    pods = journey.stage.get(SYSTEM_PODS, labelSelector=OF_ACTIVATOR)["items"]
    return {each["status"]["podIP"] for each in pods if each["status"].get("podIP")}


def pod_at(journey: Journey, endpoint: str) -> str:
    pods = journey.stage.get(SYSTEM_PODS, labelSelector=OF_ACTIVATOR)["items"]
    (name,) = [each["metadata"]["name"] for each in pods if each["status"].get("podIP") == endpoint.partition(":")[0]]
    return f"{SYSTEM_PODS}/{name}"


def leads_to_the_activators(journey: Journey, name: str) -> bool:
    """To all of them, and nowhere else."""
    found = {each.partition(":")[0] for each in endpoints(journey, name)}
    return len(found) == ACTIVATORS and found == activators(journey)


def ask(journey: Journey, address: str, **more: Any) -> httpx.Response:
    body = {"model": catalog.llm(MODEL["name"]).name, "prompt": [0] * 16, "max_tokens": 8, **more}
    with httpx.Client(proxy=journey.stage.pod_proxy, trust_env=False, timeout=PATIENCE_SECONDS) as client:
        return client.post(f"http://{address}/v1/completions", json=body)


def has_looked(journey: Journey) -> bool:
    """Not while it starts: then its port is closed."""
    try:
        return journey.ticks() > 0
    except httpx.TransportError:
        return False


def told(journey: Journey, reason: str) -> list[str]:
    events = journey.stage.get(EVENTS)["items"]
    return [each["note"] for each in events if each["reason"] == reason and each["regarding"]["name"] == "chat"]


def test_a_serving_sleeps_and_a_request_that_comes_meanwhile_is_answered(waking: Journey) -> None:
    journey, stage = waking, waking.stage
    journey.apply({**CHAT, "spec": {**CHAT["spec"], "scaling": SLEEPS}})
    journey.until("its Service leads to the activators alone", lambda: leads_to_the_activators(journey, "chat"))
    assert journey.condition("chat", "Ready")[:2] == ("True", "Asleep")
    assert journey.names("chat") == set()

    door, other = sorted(endpoints(journey, "chat"))
    with httpx.Client(proxy=stage.pod_proxy, trust_env=False) as client:
        looked = client.get(f"http://{door}/health")
    assert looked.status_code == 503, "what generates nothing does not wake"
    assert int(looked.headers["Retry-After"]) > 0

    with ThreadPoolExecutor() as clients:
        waiting: list[Future[httpx.Response]] = [
            clients.submit(ask, journey, door), clients.submit(ask, journey, other, stream=True)
        ]  # fmt: skip
        journey.until_ready("chat")
        plain, streamed = (each.result() for each in waiting)
    assert plain.status_code == 200, plain.text
    assert plain.json()["usage"]["completion_tokens"] == 8
    assert streamed.text.count("data: ") >= 8
    assert streamed.text.endswith("data: [DONE]\n\n")

    journey.until("its Service leads to the engine alone", lambda: {
        each.partition(":")[2] for each in endpoints(journey, "chat")} == {"8000"})  # fmt: skip
    journey.until("the time is on the resource", lambda: "seconds" in journey.status("chat").get("wake", {}))
    wake = journey.status("chat")["wake"]
    assert 0.5 < float(wake["seconds"]) < PATIENCE_SECONDS
    assert told(journey, "Woke") == [f"Awake {wake['seconds']} s after the first request came."]
    (line,) = [each for each in stage.operator_metrics().splitlines() if each.startswith("gpupack_wake_seconds{")]
    assert float(line.rpartition(" ")[2]) == pytest.approx(float(wake["seconds"]), abs=0.06)
    (engine,) = endpoints(journey, "chat")
    assert ask(journey, engine).status_code == 200

    journey.until("it sleeps again", lambda: not journey.names("chat"))
    assert leads_to_the_activators(journey, "chat")
    assert journey.aborted() == 0
    assert journey.decision("chat")["reason"] == "Asleep"

    stage.stop_operator()
    stage.start_operator()
    journey.until("the new operator looks at the pool", lambda: has_looked(journey))
    journey.holds_for(3, "a new operator wakes nobody", lambda: not journey.names("chat"))

    gone, left = sorted(endpoints(journey, "chat"))
    stage.stop_operator()
    with ThreadPoolExecutor() as clients:
        held = clients.submit(ask, journey, left)
        stage.delete(pod_at(journey, gone), gracePeriodSeconds="0")
        stage.start_operator()
        assert held.result().status_code == 200, "neither the operator's death nor the other activator's loses it"
    journey.until("the last wake is another one", lambda: journey.status("chat")["wake"]["askedAt"] != wake["askedAt"])
    journey.until("it sleeps behind the new activator and the old one", lambda: (
        not journey.names("chat") and leads_to_the_activators(journey, "chat")))  # fmt: skip
    slept = [each for each in stage.cluster.audit_events() if each.user == ACTIVATOR_ACCOUNT and each.resource]
    assert {(each.verb, each.resource) for each in slept} == {("list", "endpointslices"), ("watch", "endpointslices")}
    assert not [each for each in slept if each.code == 403]


def test_a_serving_sleeps_and_wakes_inside_a_pod_that_serves_others_meanwhile(waking: Journey) -> None:
    journey = waking
    journey.edit_pool(nodeSelector={"kubernetes.io/hostname": PLUGIN_NODE}, maxGpus=1)
    batching = CHAT["spec"]["batching"]
    journey.apply(manual("notes", 1, batching=batching))
    journey.until("the other serves", lambda: journey.status("notes").get("readyReplicas") == 1)
    [pod] = journey.hosts()
    at = pod["status"]["podIP"]
    journey.apply({**CHAT, "spec": {**CHAT["spec"], "scaling": SLEEPS}})
    journey.until("its Service leads to the activators alone", lambda: leads_to_the_activators(journey, "chat"))
    assert endpoints(journey, "notes") == {f"{at}:8001"}
    assert len(journey.engines()) == 1

    door = min(endpoints(journey, "chat"))
    with ThreadPoolExecutor() as clients:
        held = clients.submit(ask, journey, door)
        journey.until("its Service leads to its engine alone", lambda: endpoints(journey, "chat") == {f"{at}:8002"})
        assert held.result().status_code == 200, held.result().text
    assert ask(journey, f"{at}:8002").status_code == 200
    journey.until("the time is on the resource", lambda: "seconds" in journey.status("chat").get("wake", {}))

    journey.until("it sleeps again", lambda: (
        leads_to_the_activators(journey, "chat") and len(journey.engines()) == 1))  # fmt: skip
    assert endpoints(journey, "notes") == {f"{at}:8001"}
    [same] = journey.hosts()
    assert same["metadata"]["uid"] == pod["metadata"]["uid"]
    assert is_ready(same)
    assert (journey.aborted(), journey.restarts()) == (0, 0)
