"""What is recorded of a decision and what is told of it: once, with what it rests on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpupack.decide.reconcile import reconcile
from gpupack.decide.recording import Decision, record_of, stopped, tells, told
from gpupack.facts.estimate import Estimate, Source
from gpupack.facts.experiment import Judgement
from gpupack.facts.interpretation import interpret
from gpupack.facts.observation import Observation
from gpupack.facts.placement import Plan, Record, Wake
from gpupack.facts.serving import ServingKey
from gpupack.plan import Outcome, Reason, Tell, Unit, Verdict
from gpupack.units import Seconds

from ..strategies import NOON, key
from .boards import A, B, board_on, demand, seen, without_pods
from .test_judging import STEP

CHAT, DOCS = key("chat"), key("docs")
ONE = "gpus: {a: , b: }\nservings: {chat: {batch: 64}}\nreplicas: [{serving: chat, gpu: a}]"


def record(reason: str, **fields: Any) -> Record:
    given: dict[str, Any] = {
        "serving": CHAT, "subject": A, "observed": 0.0, "limit": 0.0, "unit": "", "at_least": False, "wanted": 1,
        "planned": 1, "message": "what was said", "at": Seconds(NOON - 900.0), **fields,
    }  # fmt: skip
    return Record(reason=reason, **given)


# The last record stands


@pytest.mark.parametrize(
    ("was", "wanted", "stays"),
    [(1, 2, True), (1, 3, False), (10, 12, True), (10, 13, False), (10, 8, True), (10, 7, False)],
)
def test_a_wanted_count_that_moves_by_one_or_a_fifth_is_no_other_decision(was: int, wanted: int, stays: bool) -> None:
    facts, last = interpret(seen(ONE)), record("Memory", wanted=was)
    now = record_of(CHAT, Decision(reason="Memory", subject=A, message="other numbers"), wanted, 1, last, facts)
    assert (now is last) is stays


@pytest.mark.parametrize(
    ("reason", "stays"), [("DemandMet", True), ("GoesPast", False), ("Advised", False), ("NoEngine", False)]
)
def test_other_words_are_another_decision_only_where_the_words_are_what_was_decided(reason: str, stays: bool) -> None:
    facts, last = interpret(seen(ONE)), record(reason)
    now = record_of(CHAT, Decision(reason=reason, subject=A, message="other words"), 1, 1, last, facts)
    assert (now is last) is stays


# What it rests on


def against(reason: Reason, uuid: str) -> Verdict:
    one = Estimate.exact(1.0, Source.MEASURED)
    return Verdict(subject=uuid, reason=reason, observed=one, limit=one, unit=Unit.NONE, detail=f"{reason} there")


@pytest.mark.parametrize(
    ("changes", "is_its"), [({}, True), ({"serving": DOCS}, False), ({"at": NOON}, False), ({"subject": B}, False)]
)
def test_what_was_predicted_is_told_of_the_step_that_it_was_predicted_of(changes: dict[str, Any], is_its: bool) -> None:
    board = board_on(seen(STEP % (1.0, 1.0)))
    fields: dict[str, Any] = {"at": board.experiments[A].last_at, **changes}
    assert bool(told(record("Added", **fields), board, demand(), ()).predicted) is is_its


def test_what_was_not_done_instead_is_told_without_what_was_decided() -> None:
    found = against(Reason.MEMORY, A), against(Reason.HOST_CPU, A), against(Reason.MEMORY, B)
    said = told(record("Memory"), board_on(seen(ONE)), demand(), found).rejected
    others = stopped(found[1]).message, stopped(found[2]).message
    assert said == " ".join(others)


# Events


def heard(was: Record | None, now: Record) -> list[Tell]:
    old: dict[ServingKey, Record] = {} if was is None else {CHAT: was}
    return list(tells(old, {CHAT: now}, Plan(), Plan()))


def test_a_decision_is_told_once_and_its_numbers_are_none() -> None:
    last = record("Memory")
    assert heard(last, last) == []
    assert heard(last, replace(last, observed=2.0, wanted=9, at=NOON, message="other numbers")) == []
    assert [each.reason for each in heard(None, last)] == ["Memory"]
    assert [each.reason for each in heard(last, record("HostCpu"))] == ["HostCpu"]


@pytest.mark.parametrize(
    ("now", "warning"),
    [
        (record("Memory"), False),
        (record("Memory", planned=0), True),
        (record("Memory", planned=0, wanted=2), True),
        (record("DemandMet", planned=0, wanted=0), False),
        (record("Advised", planned=0), False),
        (record("Suspended", planned=0), False),
        (record("Withdrawn"), True),
        (record("RolledBack"), True),
    ],
)
def test_what_keeps_a_serving_from_its_only_replica_is_a_warning(now: Record, warning: bool) -> None:
    assert [each.warning for each in heard(None, now)] == [warning]


def test_a_verdict_is_told_when_it_is_new() -> None:
    [open_one] = board_on(seen(STEP % (1.0, 1.0))).experiments.values()
    missed = replace(open_one, judgement=Judgement.MISSED)

    def verdicts(before: Plan, *experiments: Any) -> list[tuple[str, bool]]:
        return [(each.reason, each.warning) for each in tells({}, {}, before, Plan(experiments=experiments))]

    assert verdicts(Plan(), open_one) == []
    assert verdicts(Plan(), missed) == [("Missed", True)]
    assert verdicts(Plan(experiments=(open_one,)), missed) == [("Missed", True)]
    assert verdicts(Plan(experiments=(missed,)), missed) == []


def test_a_wake_is_told_once_it_is_over() -> None:
    asked = Wake(serving=CHAT, asked_at=NOON)
    awake = replace(asked, ready_at=Seconds(NOON + 12.0))

    def said(before: Wake | None, after: Wake) -> list[str]:
        old = Plan() if before is None else Plan(wakes=(before,))
        return [each.message for each in tells({}, {}, old, Plan(wakes=(after,)))]

    assert said(None, asked) == []
    assert said(asked, awake) == ["Awake 12.0 s after the first request came."]
    assert said(awake, awake) == []


# In a whole tick


def plan_of(outcome: Outcome) -> Plan:
    assert outcome.pool_status.plan is not None
    return outcome.pool_status.plan


def after(observation: Observation, *records: Record) -> Plan:
    assert observation.plan is not None
    return plan_of(reconcile(replace(observation, plan=replace(observation.plan, records=records))))


def test_the_record_names_what_else_was_in_the_way() -> None:
    text = "gpus: {a: {coresOfOthers: 64}, b: {node: node-1, dramActive: 0.9}}\nservings: {chat: {batch: 64}}\n" + (
        "replicas: [{serving: chat, gpu: a, waiting: 900}, {serving: chat, gpu: b, count: 4, waiting: 900}]"
    )
    [said] = after(seen(text)).records
    assert (said.reason, "cores" in said.rejected) == ("BandwidthCeiling", True)


def test_after_one_less_no_more_are_wanted_than_are_left() -> None:
    two = seen("gpus: {a: }\nservings: {chat: {batch: 64, most: 1}}\nreplicas: [{serving: chat, gpu: a, count: 2}]")
    [said] = after(two).records
    assert (said.reason, said.wanted, said.planned) == ("Removed", 1, 1)


def test_a_new_process_that_finds_nothing_said_says_what_it_cannot_read() -> None:
    blind = replace(seen(ONE), engines=(), watched_since=NOON)
    assert [each.reason for each in after(blind).records] == ["DataMissing"]
    assert [each.reason for each in after(blind, record("DemandMet")).records] == ["DemandMet"]


def test_a_new_process_says_what_it_can_read() -> None:
    new = replace(seen(ONE), watched_since=NOON)
    assert [each.reason for each in after(new, record("Added")).records] == ["DemandMet"]


PAST = "gpus: {a: , b: }\nservings: {chat: {batch: 64, itl: 0.000001%s}%s}\nreplicas: [%s]"
TWICE = "{serving: chat, gpu: a, count: 2}"


def test_only_a_manual_count_goes_past_anything() -> None:
    assert [each.reason for each in after(seen(PAST % (", least: 2", "", TWICE))).records] == ["DemandMet"]
    assert [each.reason for each in after(seen(PAST % (", replicas: 2", "", TWICE))).records] == ["GoesPast"]


def test_what_a_manual_count_goes_past_is_said_anew_when_anything_is_done_on_one_of_its_gpus() -> None:
    spread = "{serving: chat, gpu: a}, {serving: chat, gpu: b}, {serving: docs, gpu: b, count: 2}"
    observation = seen(PAST % (", replicas: 2", ", docs: {batch: 64, most: 1}", spread))
    was = record("GoesPast", wanted=2, planned=2)
    [said, removed] = after(observation, was).records
    assert (said.message == "what was said", removed.reason) == (False, "Removed")
    still = seen(PAST % (", replicas: 2", ", docs: {batch: 64, least: 2}", spread))
    assert after(still, was).records[0].message == "what was said"


def test_a_gpu_that_lost_what_belongs_to_nobody_takes_another_in_the_same_tick() -> None:
    gone = without_pods(seen("gpus: {a: }\nservings: {chat: {batch: 64}, docs: {batch: 64}}\n" + (
        "replicas: [{serving: docs, gpu: a}]"
    )))  # fmt: skip
    left = replace(gone, servings=gone.servings[:1])
    assert [(each.serving, each.gpu_uuid) for each in after(left).placements] == [(CHAT, A)]


@pytest.mark.parametrize(
    ("engine", "declared", "shared"),
    [
        ("arrivals: 1", "", True), ("arrivals: 200", "", False), ("engine: none", "", False),
        ("arrivals: 1", "rate: 200", True), ("engine: none", "rate: 1", True),
    ],
)  # fmt: skip
def test_promises_of_neighbours_are_judged_under_the_load_that_is_known_or_declared(
    engine: str, declared: str, shared: bool
) -> None:
    """Full engines of the larger model would break the promise, engines with little to do keep it."""
    text = f"""gpus: {{a: }}
servings: {{chat: {{batch: 64, itl: 0.006, {declared}}}, docs: {{batch: 64, model: qwen3-4b}}}}
replicas: [{{serving: chat, gpu: a, running: 60, {engine}}}]"""
    assert (DOCS in {each.serving for each in after(seen(text)).placements}) is shared
