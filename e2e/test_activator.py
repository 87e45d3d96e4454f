"""Scale to zero and back: a serving sleeps, a client's request waits at the activator, is answered, and is told of."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import yaml

from gpupack import catalog
from gpupack.demo.stage import Stage, shipped

from .history import is_ready
from .journey import CHAT, MODEL, PATIENCE_SECONDS, PROCESS_IMAGE, Journey

SYSTEM = "gpupack-system"
ACTIVATOR_ACCOUNT = f"system:serviceaccount:{SYSTEM}:gpupack-activator"
SYSTEM_PODS = f"/api/v1/namespaces/{SYSTEM}/pods"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"
OF_ACTIVATOR = "app.kubernetes.io/component=activator"
IDLE_SECONDS = 5
SLEEPS = {"mode": "Auto", "minReplicas": 0, "idleSeconds": IDLE_SECONDS}


@pytest.fixture
def activator(stage: Stage) -> Iterator[str]:
    """A pod as the shipped Deployment makes it, with its account: a real process that reaches pods by the proxy."""
    folder = shipped("deploy") / "activator"
    stage.cluster.kubectl("apply", "--server-side", "-n", SYSTEM, "-f", folder / "rbac.yaml")
    (deployment,) = yaml.safe_load_all((folder / "deployment.yaml").read_text())
    template = deployment["spec"]["template"]
    container = template["spec"]["containers"][0]
    container["image"] = PROCESS_IMAGE
    container["args"] = [*container["args"], f"--pod-proxy={stage.pod_proxy}"]
    container["env"] = [{"name": "KUBECONFIG", "value": str(stage.cluster.kubeconfig_for(ACTIVATOR_ACCOUNT))}]
    name = "gpupack-activator"
    metadata = {**template["metadata"], "name": name, "namespace": SYSTEM}
    stage.cluster.apply({**template, "apiVersion": "v1", "kind": "Pod", "metadata": metadata})
    yield f"{SYSTEM_PODS}/{name}"
    stage.delete(f"{SYSTEM_PODS}/{name}", gracePeriodSeconds="0")


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


def leads_to_the_activator(journey: Journey, name: str) -> bool:
    """Only there."""
    found = {each.partition(":")[0] for each in endpoints(journey, name)}
    return bool(found) and found == activators(journey)


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


def test_a_serving_sleeps_and_a_request_that_comes_meanwhile_is_answered(journey: Journey, activator: str) -> None:
    stage = journey.stage
    journey.until("the activator is ready", lambda: is_ready(stage.get(activator)))
    journey.apply({**CHAT, "spec": {**CHAT["spec"], "scaling": SLEEPS}})
    journey.until("its Service leads to the activator alone", lambda: leads_to_the_activator(journey, "chat"))
    assert journey.condition("chat", "Ready")[:2] == ("True", "Asleep")
    assert journey.names("chat") == set()

    (door,) = endpoints(journey, "chat")
    with httpx.Client(proxy=stage.pod_proxy, trust_env=False) as client:
        looked = client.get(f"http://{door}/health")
    assert looked.status_code == 503, "what generates nothing does not wake"
    assert int(looked.headers["Retry-After"]) > 0

    with ThreadPoolExecutor() as clients:
        waiting: list[Future[httpx.Response]] = [
            clients.submit(ask, journey, door), clients.submit(ask, journey, door, stream=True)
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
    assert leads_to_the_activator(journey, "chat")
    assert journey.aborted() == 0
    assert journey.decision("chat")["reason"] == "Asleep"

    stage.stop_operator()
    stage.start_operator()
    journey.until("the new operator looks at the pool", lambda: has_looked(journey))
    journey.holds_for(3, "a new operator wakes nobody", lambda: not journey.names("chat"))
    assert ask(journey, next(iter(endpoints(journey, "chat")))).status_code == 200
    journey.until("the last wake is another one", lambda: journey.status("chat")["wake"]["askedAt"] != wake["askedAt"])
    slept = [each for each in stage.cluster.audit_events() if each.user == ACTIVATOR_ACCOUNT and each.resource]
    assert {(each.verb, each.resource) for each in slept} == {("list", "endpointslices"), ("watch", "endpointslices")}
    assert not [each for each in slept if each.code == 403]
