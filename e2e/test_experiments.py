"""Every step is judged by what came of it: one into a world that got worse is taken back, also by the next operator."""

from __future__ import annotations

import signal

from gpupack.cli.explain import prose

from .journey import CHAT, Journey

QUIET, BUSY = 20.0, 56.0
"""Requests a second: what one engine of CHAT carries easily, and more than 85 % of what it can."""
WORSE = 4.0
"""Engines that share the GPU then do less together than one of them alone."""


def test_a_step_into_a_worse_world_is_taken_back_by_the_operator_that_follows(journey: Journey) -> None:
    aborted = journey.aborted()
    journey.edit_pool(maxGpus=1, times={"scaleDownDelaySeconds": 120})  # what goes must go for its verdict
    journey.apply({**CHAT, "spec": {**CHAT["spec"], "scaling": {"maxReplicas": 2}}})
    journey.until_ready("chat")
    journey.load("chat", rate=QUIET)
    journey.until("the first engine is judged", lambda: journey.status("chat").get("experiment", {}).get("verdict"))

    journey.stage.steer("/interference", interference=WORSE)
    journey.load("chat", rate=BUSY)
    journey.until("a second engine serves", lambda: len(journey.ready("chat")) == 2)
    predicted = journey.status("chat")["experiment"]
    assert predicted["step"] == "Added"
    assert "verdict" not in predicted
    assert journey.condition("chat", "AsPredicted")[:2] == ("Unknown", "Measuring")
    assert journey.stage.pool()["status"]["plan"]["experiments"][0]["gain"]

    journey.stage.stop_operator(signal.SIGKILL)
    journey.stage.start_operator()
    message = journey.until_said("chat", "RolledBack")
    assert "measured" in message
    assert "predicted" in message
    journey.until_ready("chat", 1)
    truth, reason, said = journey.condition("chat", "AsPredicted")
    assert (truth, reason) == ("False", "RolledBack")
    assert "Inter-token latency of default/chat" in said
    experiment = journey.status("chat")["experiment"]
    assert (experiment["verdict"], experiment["undone"]) == ("Missed", True)
    assert journey.stage.pool()["status"]["plan"]["undone"][0]["model"] == "meta-llama/Llama-3.2-1B"
    events = {each["reason"] for each in journey.stage.get("/apis/events.k8s.io/v1/namespaces/default/events")["items"]}
    assert {"Missed", "RolledBack"} <= events
    assert (
        'gpupack_verdicts_total{pool="default",undone="true",verdict="Missed"} 1.0' in journey.stage.operator_metrics()
    )
    told = prose(journey.stage.serving("chat"))
    assert "predicted: At full batches" in told.replace("  ", " ")
    assert "measured:" in told

    journey.holds_for(4, "it is not tried again", lambda: len(journey.names("chat")) == 1)
    assert journey.aborted() == aborted


def test_a_step_that_brings_what_was_predicted_is_confirmed_and_stays(journey: Journey) -> None:
    journey.edit_pool(maxGpus=1)
    journey.apply({**CHAT, "spec": {**CHAT["spec"], "scaling": {"maxReplicas": 2}}})
    journey.until_ready("chat")
    journey.load("chat", rate=BUSY)
    journey.until_ready("chat", 2)
    journey.until(
        "the second engine is confirmed", lambda: journey.condition("chat", "AsPredicted")[:2] == ("True", "Confirmed")
    )
    told = {each["what"] for each in journey.status("chat")["experiment"]["compared"]}
    assert {"inter-token latency", "running", "DRAM active"} <= told
    assert len(journey.ready("chat")) == 2
