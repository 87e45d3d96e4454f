"""What differs from a recorded decision is found whatever fields it is in, and weighed by what it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpupack.decide.reconcile import reconcile
from gpupack.facts.observation import Observation
from gpupack.facts.placement import Plan
from gpupack.facts.policy import Policy
from gpupack.plan import ApplyService, Outcome, StopReplica
from gpupack.replay import Weight, replay
from gpupack.trace.lines import Header, Ticked

from ..scenarios.test_scenarios import STORIES, story_of

BY_NAME = {path.stem: path for path in STORIES}
Change = Callable[[Outcome], Outcome]


def settled(name: str) -> Ticked:
    """A story at the tick after its plan was written, when it is acted on."""
    seen = story_of(BY_NAME[name].read_text()).observation
    for _ in range(5):
        outcome = reconcile(seen)
        if not outcome.plan_changed:
            break
        seen = replace(seen, plan=outcome.pool_status.plan)
    return Ticked(line=2, header=Header(policy=Policy(), catalog=""), observation=seen, outcome=outcome)


def weight(ticked: Ticked, change: Change) -> Weight:
    (replayed,) = replay([ticked], lambda seen: change(reconcile(seen)))
    return replayed.weight


def planning(outcome: Outcome, **changes: Any) -> Outcome:
    plan = outcome.pool_status.plan
    assert plan is not None
    return replace(outcome, pool_status=replace(outcome.pool_status, plan=replace(plan, **changes)), plan_changed=True)


def plan_of(outcome: Outcome) -> Plan:
    assert outcome.pool_status.plan is not None
    return outcome.pool_status.plan


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_the_same_code_decides_the_same(path: Path) -> None:
    seen = story_of(path.read_text()).observation
    ticked = Ticked(line=2, header=Header(policy=Policy(), catalog=""), observation=seen, outcome=reconcile(seen))
    (replayed,) = replay([ticked])
    assert replayed.differences == ()


def with_record(outcome: Outcome, **fields: Any) -> Outcome:
    return planning(outcome, records=tuple(replace(each, **fields) for each in plan_of(outcome).records))


def test_words_and_digits_within_the_tolerance_do_not_matter() -> None:
    ticked = settled("demand_met")
    (record,) = plan_of(ticked.outcome).records
    assert weight(ticked, lambda outcome: with_record(outcome, message="Said in other words.")) is Weight.WORDING
    assert weight(ticked, lambda outcome: with_record(outcome, observed=record.observed * 1.1)) is Weight.WORDING


def test_another_reason_or_an_estimate_far_off_matters() -> None:
    ticked = settled("demand_met")
    assert weight(ticked, lambda outcome: with_record(outcome, reason="Memory")) is Weight.REASON
    assert weight(ticked, lambda outcome: with_record(outcome, observed=2.0)) is Weight.REASON


def test_another_shape_or_one_replica_less_is_another_plan() -> None:
    ticked = settled("demand_met")
    (chosen,) = plan_of(ticked.outcome).shapes
    smaller = replace(chosen, shape=replace(chosen.shape, max_num_seqs=chosen.shape.max_num_seqs - 1))
    assert weight(ticked, lambda outcome: planning(outcome, shapes=(smaller,))) is Weight.PLAN
    assert weight(ticked, lambda outcome: planning(outcome, placements=())) is Weight.PLAN


def test_another_action_outweighs_another_plan() -> None:
    ticked = settled("demand_met")
    key = ticked.observation.servings[0].key
    assert weight(ticked, lambda outcome: replace(outcome, actions=(ApplyService(serving=key),))) is Weight.ACTION


@pytest.mark.parametrize("name", ["missing_engine_readings_hold", "stale_mirror_holds"])
def test_a_replica_removed_on_missing_data_weighs_most(name: str) -> None:
    ticked = settled(name)
    replica = ticked.observation.replicas[0]
    stop = StopReplica(serving=replica.serving, name=replica.name, uid=replica.uid)
    assert weight(ticked, lambda outcome: replace(outcome, actions=(stop,))) is Weight.REMOVES_BLINDLY
    assert weight(ticked, lambda outcome: planning(outcome, placements=())) is Weight.REMOVES_BLINDLY


def test_the_same_removal_with_every_engine_read_is_another_plan() -> None:
    assert weight(settled("demand_met"), lambda outcome: planning(outcome, placements=())) is Weight.PLAN


def test_a_plan_that_differs_in_words_only_puts_no_action_in_doubt() -> None:
    """Its actions come a tick later, when it is read back; what counts is what they are."""
    ticked = settled("plan_read_back_is_acted_on")
    assert ticked.outcome.actions

    def wordy(seen: Observation) -> Outcome:
        outcome = reconcile(seen)
        told = with_record(outcome, message="Said in other words.")
        return outcome if told.pool_status.plan == seen.plan else replace(told, actions=())

    (replayed,) = replay([ticked], wordy)
    assert replayed.weight is Weight.WORDING
    backwards = replace(ticked, outcome=wordy(ticked.observation))
    (replayed,) = replay([backwards])
    assert replayed.weight is Weight.WORDING


def test_code_that_fails_on_an_old_tick_says_at_which() -> None:
    def fails(_: Observation) -> Outcome:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as failed:
        list(replay([settled("demand_met")], fails))
    assert failed.value.__notes__ == ["today's code fails at tick 1, line 2"]
