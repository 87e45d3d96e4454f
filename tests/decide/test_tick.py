"""One tick on a plan that was read back: what is adopted, what is forgotten, who comes first, what stays told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpupack.decide.reconcile import adopt, reconcile
from gpupack.facts.interpretation import interpret
from gpupack.facts.observation import Observation, Phase, Refused
from gpupack.facts.placement import Plan, Record, Withdrawn
from gpupack.facts.serving import ServingKey
from gpupack.plan import Outcome, Reason
from gpupack.units import Seconds

from ..strategies import NOON, key
from .boards import A, B, seen, with_pod, without_pod

CHAT, DOCS = key("chat"), key("docs")
TWO = "gpus: {a: , b: }\nservings: {chat: {batch: 64}}\nreplicas: [{serving: chat, gpu: a, count: 2, arrivals: %s}]"
BOTH = """gpus: {a: , b: }
servings: {chat: {batch: 64}, docs: {batch: 64}}
replicas: [{serving: chat, gpu: a}, {serving: docs, gpu: b}]"""


def refused(of: ServingKey) -> Refused:
    return Refused(key=of, uid=str(of), generation=1, field="spec", problem="unreadable", fix="mend it")


def plan_of(outcome: Outcome) -> Plan:
    assert outcome.pool_status.plan is not None
    return outcome.pool_status.plan


def where(outcome: Outcome) -> list[tuple[str, str, int]]:
    return [(each.serving.name, each.gpu_uuid, each.slot) for each in plan_of(outcome).placements]


def record(of: ServingKey, reason: str, **fields: Any) -> Record:
    given: dict[str, Any] = {
        "subject": str(of), "observed": 0.0, "limit": 0.0, "unit": "", "at_least": False, "wanted": 1, "planned": 1,
        "message": "what was said", "at": Seconds(NOON - 900.0), **fields,
    }  # fmt: skip
    return Record(serving=of, reason=reason, **given)


# A plan that was lost


def adopted(observation: Observation) -> list[tuple[str, int, str]]:
    plan = adopt(interpret(replace(observation, plan=None)))
    return [(each.serving.name, each.slot, each.template_hash) for each in plan.placements]


def test_a_lost_plan_is_what_stands_without_what_leaves() -> None:
    observation = seen(TWO % 1)
    assert adopted(observation) == [("chat", 0, "template00"), ("chat", 1, "template00")]
    for leaving in ({"deletion_at": NOON}, {"in_service": False}):
        assert adopted(with_pod(observation, 0, **leaving)) == [("chat", 1, "template00")]


@pytest.mark.parametrize(("age", "adopted_one"), [(7200.0, "template00"), (60.0, "newer")])
def test_of_two_in_one_slot_the_younger_is_the_plan(age: float, adopted_one: str) -> None:
    observation = seen(TWO % 1)
    other = replace(
        observation.replicas[0], name="other", uid="other", template_hash="newer", created_at=Seconds(NOON - age)
    )
    for replicas in ((*observation.replicas, other), (other, *observation.replicas)):
        assert ("chat", 0, adopted_one) in adopted(replace(observation, replicas=replicas))
        assert len(adopted(replace(observation, replicas=replicas))) == 2


def test_what_belongs_to_a_serving_that_cannot_be_read_is_adopted_and_what_belongs_to_nobody_is_not() -> None:
    observation = seen(BOTH)
    unreadable = replace(observation, servings=observation.servings[:1], refused=(refused(DOCS),))
    assert [name for name, _, _ in adopted(unreadable)] == ["chat", "docs"]
    assert [name for name, _, _ in adopted(replace(observation, servings=observation.servings[:1]))] == ["chat"]


# What is forgotten


def test_the_placements_of_a_serving_that_is_gone_are_forgotten_and_of_one_that_cannot_be_read_they_stay() -> None:
    observation = seen(BOTH)
    only = replace(observation, servings=observation.servings[:1])
    assert where(reconcile(only)) == [("chat", A, 0)]
    assert where(reconcile(replace(only, refused=(refused(DOCS),)))) == [("chat", A, 0), ("docs", B, 0)]


@pytest.mark.parametrize(
    ("pod", "stays"), [({}, True), ({"deletion_at": NOON}, False), ({"phase": Phase.FAILED, "ready_at": None}, False)]
)
def test_a_placement_on_a_gpu_that_is_gone_is_kept_for_a_pod_that_serves(pod: dict[str, Any], stays: bool) -> None:
    observation = with_pod(
        seen("gpus: {a: , b: }\nservings: {chat: {batch: 64}}\nreplicas: [{serving: chat, gpu: a}]"), **pod
    )
    gone = replace(observation, gpus=observation.gpus[1:])
    assert (("chat", A, 0) in where(reconcile(gone))) is stays
    assert ("chat", A, 0) not in where(reconcile(without_pod(gone)))


@pytest.mark.parametrize(("left", "kept"), [(600.0, True), (601.0, False)])
def test_a_deadline_that_a_clock_ahead_of_ours_has_set_is_forgotten(left: float, kept: bool) -> None:
    observation = seen(BOTH)
    assert observation.plan is not None
    deadline = Withdrawn(serving=CHAT, gpu_uuid=B, until=Seconds(NOON + left))
    known = replace(observation, plan=replace(observation.plan, withdrawn=(deadline,)))
    assert plan_of(reconcile(known)).withdrawn == ((deadline,) if kept else ())


def test_deadlines_are_forgotten_at_their_time_and_with_their_serving() -> None:
    observation = seen(BOTH)
    assert observation.plan is not None
    deadlines = tuple(
        Withdrawn(serving=of, gpu_uuid=where_, until=Seconds(NOON + left))
        for of, where_, left in ((CHAT, A, 0.0), (CHAT, B, 1.0), (DOCS, A, 1.0))
    )
    known = replace(observation, servings=observation.servings[:1], plan=replace(observation.plan, withdrawn=deadlines))
    assert plan_of(reconcile(known)).withdrawn == (deadlines[1],)


def test_what_was_said_of_a_serving_that_cannot_be_read_is_kept_if_anything_was() -> None:
    observation = seen(BOTH)
    assert observation.plan is not None
    told = (record(DOCS, "DemandMet"),)
    for records in (told, ()):
        unreadable = replace(
            observation, servings=observation.servings[:1], refused=(refused(DOCS),),
            plan=replace(observation.plan, records=records),
        )  # fmt: skip
        found = [each for each in plan_of(reconcile(unreadable)).records if each.serving == DOCS]
        assert found == list(records)


# Who comes first, and what waits


def test_a_serving_below_its_least_count_comes_before_an_older_one_that_wants_more() -> None:
    text = """gpus: {a: }
servings: {chat: {batch: 64, age: 5000}, docs: {batch: 64, age: 10}}
replicas: [{serving: chat, gpu: a, waiting: 200}]"""
    assert where(reconcile(seen(text))) == [("chat", A, 0), ("docs", A, 0)]


def test_of_two_that_want_a_first_replica_the_older_one_has_the_gpu_in_this_tick() -> None:
    text = "gpus: {a: }\nservings: {chat: {batch: 64, age: 10}, docs: {batch: 64, age: 5000}}"
    assert where(reconcile(seen(text))) == [("docs", A, 0)]


def test_what_is_booked_for_the_next_tick_is_not_planned_in_this_one() -> None:
    text = "gpus: {a: }\nservings: {chat: {batch: 64, least: 3}}"
    assert where(reconcile(seen(text))) == [("chat", A, 0)]


def test_stale_data_is_told_of_every_serving_once_and_changes_nothing() -> None:
    outcome = reconcile(replace(seen(BOTH), stale=("pods", "nodes")))
    said = [(of.name, each.reason, each.observed.value, each.limit.value, each.detail) for of, each in outcome.verdicts]
    assert said == [
        ("chat", Reason.DATA_MISSING, 2.0, 0.0, "nodes is stale"),
        ("docs", Reason.DATA_MISSING, 2.0, 0.0, "nodes is stale"),
    ]
    assert (outcome.plan_changed, outcome.actions) == (False, ())


@pytest.mark.parametrize(("watched", "told"), [(35.0, "DemandMet"), (36.0, "DataMissing"), (None, "DataMissing")])
def test_readings_that_a_new_process_has_not_taken_yet_are_not_missing(watched: float | None, told: str) -> None:
    observation = seen(TWO % 1)
    assert observation.plan is not None
    since = None if watched is None else Seconds(NOON - watched)
    blind = replace(
        observation, engines=(), watched_since=since,
        plan=replace(observation.plan, records=(record(CHAT, "DemandMet", planned=2),)),
    )  # fmt: skip
    assert [each.reason for each in plan_of(reconcile(blind)).records] == [told]


# Away from a node that is drained


@pytest.mark.parametrize(
    ("pod", "moves"), [({}, True), ({"deletion_at": NOON}, True), ({"phase": Phase.STARTING, "ready_at": None}, False)]
)
def test_what_serves_on_a_cordoned_node_moves_and_what_it_has_lost(pod: dict[str, Any], moves: bool) -> None:
    text = """gpus: {a: {cordoned: true}, b: {node: node-1}}
servings: {chat: {batch: 64}}
replicas: [{serving: chat, gpu: a, age: 100}]"""
    observation = with_pod(seen(text), **pod)
    assert where(reconcile(observation)) == [("chat", B if moves else A, 0)]
    assert where(reconcile(without_pod(observation))) == [("chat", B, 0)]


# What a manual count goes past


def by_hand(**plan: Any) -> Observation:
    observation = seen((TWO % 1).replace("batch: 64", "batch: 64, replicas: 2, itl: 0.000001"))
    assert observation.plan is not None
    return replace(observation, plan=replace(observation.plan, **plan))


def test_a_manual_count_that_goes_past_a_promise_says_so_once() -> None:
    [said] = plan_of(reconcile(by_hand())).records
    assert said.reason == "GoesPast"
    assert "goes past LatencySlo" in said.message
    for reason, planned, stays in (
        ("GoesPast", 2, True), ("DemandMet", 2, True), ("DemandMet", 1, False), ("Added", 2, False),
    ):  # fmt: skip
        was = record(CHAT, reason, planned=planned, wanted=2, message="as it was")
        [now] = plan_of(reconcile(by_hand(records=(was,)))).records
        assert (now.message == "as it was") is stays


def test_a_load_that_is_known_is_what_promises_are_judged_under() -> None:
    """Two engines that wait for nothing keep a promise of the first token that full engines could not."""
    text = """gpus: {a: }
servings: {chat: {batch: 64, ttft: 0.5}, docs: {batch: 64}}
replicas: [{serving: chat, gpu: a, arrivals: %s}]"""
    assert ("docs", A, 0) in where(reconcile(seen(text % 1)))
