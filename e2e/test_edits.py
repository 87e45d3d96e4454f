"""What a person, or another program, does by hand: put back, respected, or refused, and never fought over."""

from __future__ import annotations

import json
from typing import Any

from .journey import PODS, SERVINGS, Journey, manual, serving

HPAS = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers"


def autoscaler(least: int, most: int) -> dict[str, Any]:
    """An HPA as a team would write it; nothing serves its metric here, so that only its bounds move it."""
    cpu = {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "chat", "namespace": "default"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "gpupack.dev/v1alpha1", "kind": "ModelServing", "name": "chat"},
            "minReplicas": least,
            "maxReplicas": most,
            "metrics": [cpu],
        },
    }


def able_to_scale(journey: Journey) -> tuple[str, str]:
    conditions = journey.stage.get(f"{HPAS}/chat").get("status", {}).get("conditions") or ()
    found = next((each for each in conditions if each["type"] == "AbleToScale"), {})
    return found.get("status", ""), found.get("message", "")


def places(journey: Journey) -> dict[str, str]:
    return {pod["metadata"]["name"]: pod["metadata"]["labels"]["gpupack.dev/gpu"] for pod in journey.stage.pods("chat")}


def test_a_deleted_pod_comes_back_where_it_was_and_lost_labels_are_put_back(journey: Journey) -> None:
    journey.apply(manual("chat", 2))
    journey.until_ready("chat", 2)
    before = places(journey)
    gone, kept = sorted(before)
    journey.stage.cluster.kubectl("delete", "pod", gone, "--wait=false")
    journey.until("it is another pod", lambda: [each for each in journey.stage.pods("chat") if is_new(journey, each)])
    journey.until_ready("chat", 2)
    assert places(journey) == before

    uid = journey.stage.get(f"{PODS}/{kept}")["metadata"]["uid"]
    for edit in ({"gpupack.dev/serving": None}, {"gpupack.dev/slot": "7"}, {"app.kubernetes.io/managed-by": "me"}):
        journey.stage.patch(f"{PODS}/{kept}", {"metadata": {"labels": edit}})
        journey.until_ready("chat", 2)
        journey.until("its labels are back", lambda: places(journey) == before)
    assert journey.stage.get(f"{PODS}/{kept}")["metadata"]["uid"] == uid
    assert journey.restarts() == 0


def is_new(journey: Journey, pod: dict[str, Any]) -> bool:
    added = [each for each in journey.history.pods(journey.mark, "chat") if each.event == "ADDED"]
    return len(added) == 3 and pod["metadata"]["uid"] == added[-1].object["metadata"]["uid"]


def test_an_autoscaler_owns_a_manual_count_and_so_does_keda(journey: Journey) -> None:
    journey.apply(manual("chat", 1))
    journey.until_ready("chat")
    journey.apply(autoscaler(least=2, most=3))
    journey.until_ready("chat", 2)
    assert able_to_scale(journey)[0] == "True"
    journey.apply(autoscaler(least=1, most=1))
    journey.until_ready("chat", 1)
    journey.holds_for(5, "nobody writes it back", lambda: journey.stage.serving("chat")["spec"]["replicas"] == 1)
    journey.stage.delete(f"{HPAS}/chat")

    for count in (0, 2):  # KEDA's way: the whole Scale is read, changed and written
        scale = journey.stage.get(f"{SERVINGS}/chat/scale")
        scale["spec"]["replicas"] = count
        journey.stage.cluster.kubectl("replace", "--raw", f"{SERVINGS}/chat/scale", "-f", "-", stdin=json.dumps(scale))
        journey.until_ready("chat", count)


def test_an_autoscaler_on_a_count_that_gpupack_decides_is_refused_with_the_way_out(journey: Journey) -> None:
    journey.apply(serving("chat"))
    journey.until_ready("chat")
    journey.apply(autoscaler(least=2, most=3))
    journey.until("it is refused", lambda: able_to_scale(journey)[0] == "False")
    assert "set scaling.mode: Manual first" in able_to_scale(journey)[1]
    journey.stage.delete(f"{HPAS}/chat")
    assert len(journey.names("chat")) == 1


def test_a_suspended_serving_is_frozen_and_goes_on_where_it_was(journey: Journey) -> None:
    journey.apply(manual("chat", 2))
    journey.until_ready("chat", 2)
    before = places(journey)
    gone, kept = sorted(before)
    uid = journey.stage.get(f"{PODS}/{kept}")["metadata"]["uid"]
    journey.edit("chat", mode="Suspend")
    message = journey.until_said("chat", "Suspended")
    assert "2 replicas keep their places" in message
    journey.edit("chat", replicas=3, engine={"args": ["--enable-prefix-caching"]})
    journey.stage.cluster.kubectl("delete", "pod", gone)
    journey.holds_for(5, "nothing is made or taken away", lambda: journey.names("chat") == {kept})
    assert journey.condition("chat", "Ready")[0] == "True"
    assert journey.condition("chat", "Progressing")[:2] == ("False", "Suspended")
    assert journey.stage.pool()["status"]["replicas"] == 2

    journey.edit("chat", replicas=2, engine={"args": None})
    journey.edit("chat", mode="Active")
    journey.until_ready("chat", 2)
    assert places(journey) == before
    assert journey.stage.get(f"{PODS}/{kept}")["metadata"]["uid"] == uid
