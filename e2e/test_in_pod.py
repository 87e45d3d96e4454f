"""On a node with a device plugin and no DRA one pod holds a GPU, and engines come and go inside it.

The supervisor in that pod is the real program; what it starts as vLLM stands for an engine of the twin.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpupack.demo.stage import condition

from . import inference_pools
from .history import is_ready
from .inference_pools import ROUTING
from .journey import PLUGIN_NODE, PODS, POOLS, Journey, manual

SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
SMALL = {"mode": "Fixed", "maxNumSeqs": 84}
"""Three of this shape fit one GPU and its promise, so a pod has room for three."""


def addresses(journey: Journey, name: str) -> list[tuple[str, int]]:
    """Where the Service leads to, by its EndpointSlices."""
    slices = journey.stage.get(SLICES, labelSelector=f"kubernetes.io/service-name={name}")["items"]
    return sorted(
        (endpoint["addresses"][0], each["ports"][0]["port"])
        for each in slices
        for endpoint in each.get("endpoints") or ()
        if endpoint["conditions"]["ready"]
    )


def backend(journey: Journey) -> Mapping[str, Any]:
    """Which way of sharing the pool takes, and why no other."""
    return condition(journey.stage.get(f"{POOLS}/default"), "BackendChosen")


def picked(journey: Journey) -> list[tuple[str, int]]:
    """Where an endpoint picker would send requests: the pods that the one InferencePool selects, at its ports that they
    declare active."""
    [pool] = inference_pools.pools(journey)
    labels = pool["spec"]["selector"]["matchLabels"]
    selector = ",".join(f"{name}={value}" for name, value in labels.items())
    return sorted(
        (pod["status"]["podIP"], port)
        for pod in journey.stage.get(PODS, labelSelector=selector)["items"]
        for port in inference_pools.ports(journey)
        if str(port) in pod["metadata"]["annotations"]["llm-d.ai/active-ports"].split(",")
    )


def test_engines_share_one_pod_and_one_drains_while_the_operator_was_away(journey: Journey) -> None:
    """Two servings, one pod: their images and pod templates are the same."""
    aborted = journey.aborted()
    journey.edit_pool(nodeSelector={"kubernetes.io/hostname": PLUGIN_NODE}, maxGpus=1)
    journey.until("the pool says so", lambda: backend(journey).get("reason") == "InPod")
    assert backend(journey)["status"] == "True"
    assert "InPod is taken for 2 GPUs" in backend(journey)["message"]
    assert "DRA is not taken: no NVIDIA DRA driver publishes GPUs" in backend(journey)["message"]
    inference_pools.allow(journey)
    inference_pools.install(journey)
    journey.apply(manual("chat", 2, batching=SMALL, routing=ROUTING))
    journey.until("two engines are ready", lambda: journey.status("chat").get("readyReplicas") == 2)
    journey.apply(manual("notes", 1, batching=SMALL))
    journey.until("so is one of another serving", lambda: journey.status("notes").get("readyReplicas") == 1)
    [pod] = journey.hosts()
    assert len(pod["metadata"]["ownerReferences"]) == 2
    assert pod["spec"]["nodeName"] == PLUGIN_NODE
    assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert is_ready(pod)
    ip = pod["status"]["podIP"]
    journey.until("both get requests", lambda: addresses(journey, "chat") == [(ip, 8001), (ip, 8002)])
    journey.until("the other is at its own", lambda: addresses(journey, "notes") == [(ip, 8003)])
    journey.load("chat", rate=20.0)
    journey.until("both work", lambda: sum(each["running"] > 0 for each in journey.engines()) == 2)
    journey.until("an endpoint picker finds chat's two", lambda: picked(journey) == [(ip, 8001), (ip, 8002)])
    assert {gpu["sharing"] for gpu in journey.stage.state()["gpus"] if gpu["engines"]} == {"MPS"}

    journey.stage.stop_operator()
    journey.edit("chat", replicas=1)
    journey.stage.start_operator()
    journey.until("one engine of each is left", lambda: len(journey.engines()) == 2)
    journey.until("the status says so", lambda: journey.status("chat").get("readyReplicas") == 1)
    assert len(addresses(journey, "chat")) == 1
    journey.until("a picker finds the same", lambda: picked(journey) == addresses(journey, "chat"))
    assert journey.aborted() == aborted
    [same] = journey.hosts()
    assert same["metadata"]["uid"] == pod["metadata"]["uid"]
    assert journey.restarts() == 0
