"""A gateway is led to the engines by an InferencePool, where the cluster knows that kind."""

from __future__ import annotations

from . import inference_pools
from .inference_pools import ROUTING, WRITTEN, pools, ports
from .journey import Journey, manual


def test_an_inference_pool_comes_with_its_kind_is_put_back_and_goes_with_the_wish(journey: Journey) -> None:
    inference_pools.uninstall(journey)
    inference_pools.allow(journey)
    journey.apply(manual("chat", 1, routing=ROUTING))
    journey.until_ready("chat")
    journey.until("the kind is missed", lambda: journey.condition("chat", WRITTEN)[:2] == ("False", "NotInstalled"))
    assert "kubectl apply -f https://" in journey.condition("chat", WRITTEN)[2]

    inference_pools.install(journey)
    journey.until("it stands", lambda: journey.condition("chat", WRITTEN)[:2] == ("True", "Written"))
    [pool] = pools(journey)
    assert ports(journey) == [8000]
    assert pool["spec"]["endpointPickerRef"]["port"] == {"number": 9002}
    assert [each["name"] for each in pool["metadata"]["ownerReferences"]] == ["chat"]
    labels = pool["spec"]["selector"]["matchLabels"]
    selected = journey.stage.get(
        "/api/v1/namespaces/default/pods", labelSelector=",".join(f"{key}={value}" for key, value in labels.items())
    )
    assert {each["metadata"]["name"] for each in selected["items"]} == journey.names("chat")
    assert int(journey.status("chat")["routing"]["queueDepthThreshold"]) > 5

    journey.edit("chat", routing={"inferencePool": {"endpointPickerRef": {"name": "other"}}})
    journey.until("another picker", lambda: pools(journey)[0]["spec"]["endpointPickerRef"]["name"] == "other")
    journey.edit("chat", routing=None)
    journey.until("it is gone", lambda: not pools(journey))
    journey.until("nothing is said of it", lambda: journey.condition("chat", WRITTEN) == ("", "", ""))
    assert len(journey.ready("chat")) == 1
