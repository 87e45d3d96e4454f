"""What the user decides: promises that cannot be kept, counts of their own, and advice only."""

from __future__ import annotations

import json

from .journey import CHAT, MODEL, Journey, manual, serving


def test_a_promise_that_no_batch_keeps_is_said_with_the_best_there_is_and_served_all_the_same(
    journey: Journey,
) -> None:
    journey.apply(serving("chat", slo={"itlMilliseconds": 1}))
    journey.until_ready("chat")
    status, reason, message = journey.condition("chat", "SloMet")
    assert (status, reason) == ("False", "Unreachable")
    assert "No batch keeps inter-token latency P95 1 ms; the best reachable is" in message
    assert "Ask for at least that in spec.slo" in message
    journey.load("chat", rate=2)
    journey.until("requests are answered", lambda: any(each.get("succeeded_total") for each in journey.engines()))


def test_a_manual_count_goes_past_the_ceiling_and_says_so(journey: Journey) -> None:
    journey.edit_pool(maxGpus=1)
    journey.apply(manual("chat", 1, batching=CHAT["spec"]["batching"]))
    journey.until_ready("chat")
    journey.stage.cluster.kubectl("scale", "msv/chat", "--replicas=4")
    journey.until_ready("chat", 4)
    assert len(set(journey.gpus_of("chat"))) == 1
    journey.until("it says so", lambda: journey.condition("chat", "Packed")[1] == "GoesPast")
    status, _, message = journey.condition("chat", "Packed")
    assert status == "True"
    assert "goes past" in message
    assert "BandwidthCeiling" in message
    journey.stage.cluster.kubectl("scale", "msv/chat", "--replicas=2")
    journey.until_ready("chat", 2)
    scale = json.loads(journey.stage.cluster.kubectl("get", "msv/chat", "--subresource=scale", "-o", "json"))
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (2, 2)


def test_a_manual_count_never_goes_past_memory(journey: Journey) -> None:
    journey.edit_pool(maxGpus=1)
    journey.apply(manual("chat", 6, model={"name": "llama-2-13b"}, workload={}))
    message = journey.until_said("chat", "Memory")
    assert "GiB too much" in message
    journey.until("what fits serves", lambda: len(journey.ready("chat")) == len(journey.names("chat")) > 0)
    assert len(journey.names("chat")) < 6
    assert journey.restarts() == 0


def test_advice_touches_nothing(journey: Journey) -> None:
    journey.apply(serving("chat", mode="Advise", workload={"requestsPerSecond": 100}), manual("other", 1, model=MODEL))
    message = journey.until_said("chat", "Advised")
    assert "Nothing is touched" in message
    journey.until_ready("other")
    journey.holds_for(5, "nothing of it is there", lambda: not [each for each in journey.children() if "chat" in each])
    assert journey.status("chat")["shape"]["engineArguments"]
    assert journey.condition("chat", "Ready")[:2] == ("False", "AdviseOnly")
    touched = {each.resource for each in journey.writes() if each.name.startswith("chat")}
    assert touched <= {"modelservings/status", "events"}
