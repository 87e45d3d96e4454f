"""What stands in status: lost, it is built anew from what runs; settled, nothing is written at all."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import httpx

from gpupack.demo.stage import POLL_SECONDS

from .journey import BUDGETS, CHAT, SERVICES, Journey, manual

QUIET_SECONDS = 60.0
TWO_REPLICAS = 65.0
WIPE = '[{"op": "remove", "path": "/status"}]'


def plan(journey: Journey) -> set[tuple[str, str, int]]:
    """Which serving has a place on which GPU, without when it was planned."""
    plan = journey.stage.pool().get("status", {}).get("plan", {})
    engines = [each["serving"] for each in plan.get("engines", ())]
    return {(engines[each["engine"]], each["gpu"], each["slot"]) for each in plan.get("placements", ())}


def test_a_status_that_was_wiped_under_load_is_adopted_from_what_runs(journey: Journey) -> None:
    chat = {**CHAT, "spec": {**CHAT["spec"], "scaling": {"maxReplicas": 2}}}
    journey.apply(chat, manual("other", 1))
    journey.until_ready("chat")
    journey.load("chat", rate=TWO_REPLICAS)
    journey.until("chat grows", lambda: len(journey.ready("chat")) >= 2)
    journey.until("chat has settled", lambda: journey.condition("chat", "Progressing")[0] == "False")
    uids = {pod["metadata"]["uid"] for pod in journey.stage.pods()}
    before, mark = plan(journey), journey.history.mark()

    for what in ("gpool/default", "msv/chat", "msv/other"):
        journey.stage.cluster.kubectl("patch", what, "--subresource=status", "--type=json", "-p", WIPE)
    journey.until("the plan is there again", lambda: plan(journey) == before)
    journey.until("chat says how it is", lambda: journey.condition("chat", "Ready")[0] == "True")
    journey.until("other says how it is", lambda: journey.status("other").get("readyReplicas") == 1)
    journey.holds_for(10, "pods stay", lambda: {pod["metadata"]["uid"] for pod in journey.stage.pods()} == uids)
    assert not [each for each in journey.history.pods(mark) if each.is_leaving or each.event == "ADDED"]


def test_nothing_is_written_while_nothing_changes_not_even_by_a_new_process(journey: Journey) -> None:
    """The load is noisy: a Poisson stream of requests of unlike lengths."""
    journey.apply(CHAT, manual("other", 2))
    journey.load("chat", rate=15)
    journey.load("other", rate=15)
    journey.until_ready("chat")
    journey.until_ready("other", 2)
    journey.until("chat is judged", lambda: journey.condition("chat", "SloMet")[0] == "True")
    journey.until("other is judged", lambda: journey.condition("other", "SloMet")[0] == "True")
    journey.until("chat has settled", lambda: "The load takes" in journey.decision("chat").get("message", ""))
    for name in ("chat", "other"):
        journey.until(f"no step of {name} is to be judged", lambda name=name: is_judged(journey, name))
    journey.until("the scale of the counter is measured", lambda: journey.stage.pool()["status"].get("scales"))
    start, began = journey.stage.cluster.audit_position(), time.monotonic()
    while time.monotonic() - began < QUIET_SECONDS:
        time.sleep(POLL_SECONDS)
    writes = [f"{each.verb} {each.resource} {each.name}" for each in journey.writes(start)]
    print(f"\nAPI writes of the operator in {QUIET_SECONDS:.0f} s with constant load, Leases aside: {writes}")
    assert writes == []

    journey.stage.stop_operator()
    start = journey.stage.cluster.audit_position()
    journey.stage.start_operator()
    journey.until("the new process has looked", lambda: is_looking(journey))
    journey.holds_for(12, "what was said stands", lambda: True)
    assert [f"{each.verb} {each.resource} {each.name}" for each in journey.writes(start)] == []


def is_judged(journey: Journey, name: str) -> bool:
    """Also where a step of one serving is told by a neighbour's: the pool's plan has them all.

    An Inconclusive one still has its company, and is looked at again.
    """
    told = journey.condition(name, "AsPredicted")[1] not in ("", "Measuring")
    experiments = journey.stage.pool()["status"]["plan"].get("experiments", ())
    return told and all("judgement" in each and not each["company"] for each in experiments)


def is_looking(journey: Journey) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return journey.ticks() > 0
    return False


EDITS = (
    ("service/chat", '{"spec": {"selector": {"app": "mine"}}}'),
    ("service/chat", '{"spec": {"ports": [{"port": 9000}]}}'),
    ("poddisruptionbudget/chat", '{"spec": {"minAvailable": "10%"}}'),
    ("poddisruptionbudget/chat", '{"spec": {"minAvailable": null, "maxUnavailable": 2}}'),
)


def test_a_service_or_a_budget_that_somebody_edited_is_put_back_once(journey: Journey) -> None:
    journey.apply(manual("chat", 2))
    journey.until_ready("chat", 2)
    journey.until("chat has settled", lambda: journey.condition("chat", "Progressing")[0] == "False")
    for what, patch in EDITS:
        path = f"{SERVICES if what.startswith('service') else BUDGETS}/chat"
        whole = journey.stage.get(path)["spec"]
        journey.stage.cluster.kubectl("patch", what, "--type=merge", "-p", patch)
        journey.until(
            f"{what} is as it was after {patch}",
            lambda path=path, whole=whole: holds(journey.stage.get(path)["spec"], whole),
        )
    start = journey.stage.cluster.audit_position()
    journey.holds_for(5, "the children stand", lambda: journey.writes(start) == [])


def holds(there: dict[str, Any], whole: dict[str, Any]) -> bool:
    """Everything is back; a port that somebody added may stay beside ours."""
    ports = all(port in there.get("ports", []) for port in whole.get("ports", []))
    return ports and {**there, "ports": None} == {**whole, "ports": None}
