"""Scale to zero: a serving sleeps only when it is known that nobody asks, and wakes with the first who does."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from gpupack.decide.reconcile import reconcile
from gpupack.facts.observation import Cause, Phase
from gpupack.facts.serving import Mode, ScalingMode, Serving
from gpupack.plan import Condition, ConditionType, StartReplica, Step

from ..strategies import gpu, key, serving
from .world import READY_AFTER, World

CHAT = key("chat")
IDLE = 120.0
LOAD = 5.0


def world(asked: Serving | None = None, *, load: float = 0.0, activator: bool = True) -> World:
    asked = asked or serving("chat", batch=64, least=0, idle=IDLE)
    made = World([gpu(0), gpu(1)], [asked], {CHAT: load})
    made.has_activator = activator
    return made


def awake(asked: Serving | None = None) -> World:
    """It has served a load, which has just ended."""
    made = world(asked, load=LOAD).run(90.0)
    assert made.ready == {"chat": 1}
    made.loads[CHAT] = 0.0
    return made.run(4.0)


def asleep() -> World:
    made = awake().run(IDLE + 30.0)
    assert (made.ready, made.reason(CHAT)) == ({}, Step.ASLEEP)
    return made


def conditions(made: World) -> dict[ConditionType, Condition]:
    assert made.outcome is not None
    return {each.type: each for each in made.outcome.serving_statuses[0].conditions}


def test_it_sleeps_after_the_whole_idle_time_and_not_before() -> None:
    made = awake().run(IDLE - 20.0)
    assert made.ready == {"chat": 1}
    assert made.run(40.0).ready == {}
    assert made.budgets[CHAT] == 0
    said = [each.message for each in made.told if each.reason == Step.ASLEEP]
    assert said[-1] == "Nothing was asked of it for 120 s: its last replica is given up. The next request wakes it."


def test_one_request_in_between_begins_the_idle_time_anew() -> None:
    made = awake().run(IDLE - 20.0)
    made.loads[CHAT] = 0.5
    made.run(2.0)
    made.loads[CHAT] = 0.0
    assert made.run(IDLE - 20.0).ready == {"chat": 1}
    assert made.run(40.0).ready == {}


def test_several_replicas_go_one_after_another_and_then_the_last() -> None:
    made = world(serving("chat", batch=64, least=0, idle=IDLE), load=150.0).run(200.0)
    assert made.ready["chat"] >= 2
    made.loads[CHAT] = 0.0
    assert made.run(600.0).ready == {}


@pytest.mark.parametrize("blind", ["engines", "activator"])
def test_it_never_sleeps_on_missing_data(blind: str) -> None:
    made = awake()
    made.blind[blind] = Cause.UNREACHABLE
    assert made.run(4 * IDLE).ready == {"chat": 1}
    del made.blind[blind]
    assert made.run(30.0).ready == {}


def test_it_never_sleeps_where_nobody_could_wake_it() -> None:
    made = world(load=LOAD, activator=False).run(90.0)
    made.loads[CHAT] = 0.0
    assert made.run(4 * IDLE).ready == {"chat": 1}


def test_without_an_activator_the_first_replica_starts_at_once() -> None:
    assert world(activator=False).run(60.0).ready == {"chat": 1}


def test_with_one_it_begins_asleep_and_is_ready_to_be_asked() -> None:
    made = world().run(60.0)
    assert made.started == []
    found = conditions(made)
    assert (found[ConditionType.READY].truth.value, found[ConditionType.READY].reason) == ("True", "Asleep")
    assert found[ConditionType.PACKED].reason == "Asleep"
    assert ConditionType.STALLED not in found
    assert not any(each.warning for each in made.told)


@pytest.mark.parametrize("gone", [True, False])
def test_a_sleeping_one_does_not_wake_because_its_activator_is_away(gone: bool) -> None:
    made = asleep()
    made.has_activator = not gone
    made.blind["activator"] = Cause.UNREACHABLE
    started = len(made.started)
    assert len(made.run(300.0).started) == started
    if gone:
        assert conditions(made)[ConditionType.READY].reason == "NoActivator"
    made.has_activator, made.blind = True, {}
    made.loads[CHAT] = LOAD
    assert made.run(60.0).ready == {"chat": 1}


def test_the_first_request_wakes_it_at_once_and_the_time_is_told() -> None:
    made = asleep()
    asked_at = made.at
    made.held[CHAT] = (1.0, asked_at - 0.5)
    assert made.tick().plan_changed, "the plan is written in the very tick"
    assert any(isinstance(each, StartReplica) for each in made.tick().actions)
    made.run(60.0)
    assert made.outcome is not None
    wake = made.outcome.serving_statuses[0].wake
    assert wake is not None
    assert wake.asked_at == asked_at - 0.5
    assert wake.took is not None
    assert READY_AFTER <= wake.took <= READY_AFTER + 5.0
    assert [each.message for each in made.told if each.reason == "Woke"][
        -1
    ] == f"Awake {wake.took:.1f} s after the first request came."


def test_who_sleeps_is_woken_without_readings_of_the_gpu() -> None:
    made = asleep()
    made.blind["dcgm"] = Cause.UNREACHABLE
    made.loads[CHAT] = LOAD
    assert made.run(60.0).ready == {"chat": 1}


def test_a_queue_that_one_engine_would_not_drain_wakes_more() -> None:
    made = asleep()
    before = len(made.started)
    made.held[CHAT] = (4000.0, made.at)
    made.run(60.0)
    assert len(made.started) - before >= 2


def test_a_client_that_goes_while_it_starts_leaves_it_awake_for_the_idle_time() -> None:
    made = asleep()
    made.held[CHAT] = (1.0, made.at)
    made.run(4.0)
    made.held.clear()
    assert made.run(IDLE).ready == {"chat": 1}
    assert made.run(60.0).ready == {}


def test_rare_requests_wake_it_at_most_once_in_an_idle_time() -> None:
    made = asleep()
    born = len(made.started)
    moments = []
    for _ in range(12):
        made.loads[CHAT] = 0.5
        made.run(2.0)
        made.loads[CHAT] = 0.0
        made.run(IDLE)
        if len(made.started) > born:
            born = len(made.started)
            moments.append(made.at)
    assert len(moments) >= 2
    assert all(late - early >= IDLE for early, late in pairwise(moments))


def test_a_lost_plan_of_a_sleeping_serving_starts_nothing() -> None:
    made = asleep()
    started = len(made.started)
    made.plan = None
    assert len(made.run(60.0).started) == started


def test_a_lost_plan_of_one_that_serves_stops_nothing() -> None:
    made = awake()
    made.plan = None
    made.run(20.0)
    assert made.ready == {"chat": 1}
    assert made.stopped == []


def test_a_least_count_of_one_wakes_it_for_good() -> None:
    made = asleep()
    made.edit(CHAT, serving("chat", batch=64, least=1, idle=IDLE))
    assert made.run(4 * IDLE).ready == {"chat": 1}


def test_a_manual_count_of_zero_is_the_users_and_no_sleep() -> None:
    asked = serving("chat", batch=64, least=0, replicas=0)
    assert asked.scaling.mode is ScalingMode.MANUAL
    made = world(asked)
    made.held[CHAT] = (3.0, made.at)
    made.run(60.0)
    assert (made.started, made.reason(CHAT)) == ([], "DemandMet")


def test_what_is_suspended_asleep_stays_so_whoever_asks() -> None:
    made = asleep()
    suspended = replace(made.servings[CHAT], mode=Mode.SUSPEND)
    made.edit(CHAT, suspended)
    made.loads[CHAT] = LOAD
    started = len(made.started)
    assert len(made.run(60.0).started) == started


def test_the_decision_is_a_function_of_what_was_seen() -> None:
    made = asleep()
    made.held[CHAT] = (1.0, made.at)
    seen = made.observe()
    assert reconcile(seen) == reconcile(seen)


def test_a_request_that_no_gpu_can_take_waits_and_the_serving_says_why() -> None:
    made = asleep()
    made.stuck = set(made.gpus)
    made.loads[CHAT] = LOAD
    made.run(200.0)
    assert made.outcome is not None
    wake = made.outcome.serving_statuses[0].wake
    assert wake is not None
    assert wake.ready_at is None
    assert made.reason(CHAT) != Step.ASLEEP
    made.stuck = set()
    made.run(400.0)
    assert any(pod.phase is Phase.READY for pod in made.pods.values())
