"""Every step is an experiment: predicted, judged by its own window, and taken back if it did harm."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpupack.facts.experiment import Experiment, Judgement
from gpupack.facts.observation import Cause
from gpupack.facts.policy import Policy
from gpupack.facts.serving import Lengths, Scaling, ScalingMode, Shape
from gpupack.kube.pool_resource import plan_of, plan_to_status
from gpupack.plan import ConditionType, Outcome, ServingStatus, StartReplica
from gpupack.units import Seconds

from ..strategies import QUICK, gpu, key, serving
from .stepped import SteppedWorld
from .world import TICK, World

CHAT = key("chat")
POLICY = replace(QUICK, remember_undone=Seconds(400.0))
LITTLE, MUCH = 15.0, 38.0
"""Requests a second: one engine of 48 sequences carries some 41, but not at 85 % of what it can; two carry 70."""
WORSE = 2.5
JUDGED = 130.0
"""Seconds in which a step is planned, started, warm, seen twice and, if it must be, taken back."""


def world(policy: Policy = POLICY, most: int | None = 2, least: int = 1) -> World:
    """One engine at work on one GPU, with room for more; settled and judged."""
    chat = serving("chat", batch=48, itl=0.012, most=most, least=least)
    return World([gpu(0)], [chat], {CHAT: LITTLE}, policy=policy).run(120.0)


def harmed(policy: Policy = POLICY) -> World:
    """A second engine was tried in a world in which engines that share a GPU are slow."""
    found = world(policy)
    found.interference = WORSE
    found.loads[CHAT] = MUCH
    return found.run(JUDGED)


def stepped() -> SteppedWorld:
    """One engine at work under open traffic, step by step in the twin."""
    policy = replace(
        POLICY, rate_windows=(Seconds(8.0), Seconds(16.0)), window=Seconds(8.0), warmup=Seconds(2.0),
        min_window_requests=50,
    )  # fmt: skip
    lengths = Lengths(input_mean=256.0, output_mean=64.0)
    chat = serving("chat", model="llama-3.1-8b", batch=32, itl=0.060, lengths=lengths)
    grown = SteppedWorld([gpu(0)], [chat], {CHAT: 10.0}, policy)
    grown.run(30.0)
    return grown


def experiment(world: World) -> Experiment:
    assert world.plan is not None
    found = [each for each in world.plan.experiments if each.serving == CHAT]
    return max(found, key=lambda each: each.last_at)


def status(world: World) -> ServingStatus:
    assert world.outcome is not None
    return next(each for each in world.outcome.serving_statuses if each.serving == CHAT)


def as_predicted(world: World) -> str:
    found = next(each for each in status(world).conditions if each.type is ConditionType.AS_PREDICTED)
    return f"{found.truth.value}/{found.reason}"


def reasons(world: World) -> list[str]:
    return [tell.reason for tell in world.told]


# Confirmed


def test_a_step_that_brings_what_was_predicted_is_confirmed_and_stays() -> None:
    grown = world()
    grown.loads[CHAT] = MUCH
    grown.run(JUDGED)
    assert grown.ready == {"chat": 2}
    assert experiment(grown).judgement is Judgement.CONFIRMED
    assert as_predicted(grown) == "True/Confirmed"
    assert reasons(grown).count("Confirmed") == 2
    what = {each.what: each for each in experiment(grown).compared}
    assert {"inter-token latency", "time to first token", "running", "waiting", "DRAM active"} <= set(what)
    assert what["inter-token latency"].measured == pytest.approx(what["inter-token latency"].predicted, rel=0.05)


def test_the_prediction_is_written_before_the_step_is_taken() -> None:
    grown = world()
    grown.loads[CHAT] = MUCH
    outcomes: list[Outcome] = []
    while not any(isinstance(action, StartReplica) for outcome in outcomes[-1:] for action in outcome.actions):
        grown.advance()
        while (outcome := grown.tick()).plan_changed:
            outcomes.append(outcome)
        outcomes.append(outcome)
    written = experiment(grown)
    assert written.judgement is None
    assert written.gain is not None
    assert written.gain > 0.2
    assert grown.at - written.last_at <= 2 * TICK
    told = status(grown)
    assert as_predicted(grown) == "Unknown/Measuring"
    assert "throughput of the GPU" in told.decision_predicted
    assert "requests/s" in told.decision_seen
    assert "judged after warm-up" in told.experiment_message


def test_one_verdict_covers_all_steps_since_the_set_last_settled() -> None:
    grown = world(most=3)
    judged = experiment(grown).last_at
    grown.loads[CHAT] = 75.0
    grown.run(120.0)
    assert grown.ready == {"chat": 3}
    assert reasons(grown).count("Confirmed") == 2
    assert [each.engines for each in experiment(grown).before] == [1]
    assert experiment(grown).began_at > judged


# Missed


def test_a_step_that_did_harm_is_undone_in_order_and_says_so_with_its_numbers() -> None:
    grown = harmed()
    assert grown.ready == {"chat": 1}
    assert len(grown.stopped) == 1
    assert (experiment(grown).judgement, experiment(grown).undone) == (Judgement.MISSED, True)
    assert as_predicted(grown) == "False/RolledBack"
    assert grown.reason(CHAT) == "RolledBack"
    assert "measured" in status(grown).experiment_message
    assert "predicted" in status(grown).decision_message
    assert status(grown).decision_observed != status(grown).decision_limit
    warnings = {tell.reason for tell in grown.told if tell.warning}
    assert {"Missed", "RolledBack"} <= warnings


def test_a_miss_is_believed_only_when_it_is_seen_in_two_windows() -> None:
    grown = world()
    grown.loads[CHAT] = MUCH
    grown.interference = WORSE
    while experiment(grown).doubted_at is None:
        grown.run(TICK)
    grown.interference = 1.0
    grown.run(JUDGED)
    assert experiment(grown).judgement is Judgement.CONFIRMED
    assert grown.ready == {"chat": 2}


def test_an_undone_step_is_remembered_and_forgotten_after_its_time() -> None:
    grown = harmed()
    added = reasons(grown).count("Added")
    grown.run(250.0)
    assert reasons(grown).count("Added") == added
    assert grown.reason(CHAT) == "RolledBack"
    grown.interference = 1.0
    grown.run(260.0)
    assert reasons(grown).count("Added") == added + 1
    assert grown.ready == {"chat": 2}
    assert as_predicted(grown) == "True/Confirmed"


@pytest.mark.parametrize(("change", "tried"), [(1.12, 0), (1.36, 1)])
def test_an_undone_step_is_forgotten_when_its_load_changes_by_a_fifth(change: float, tried: int) -> None:
    grown = harmed()
    grown.run(60.0)
    added = reasons(grown).count("Added")
    grown.loads[CHAT] = change * MUCH
    grown.run(60.0)
    assert reasons(grown).count("Added") == added + tried


def test_an_undone_step_is_forgotten_when_its_lengths_change_by_a_fifth() -> None:
    grown = harmed()
    grown.run(60.0)
    assert grown.plan is not None
    assert len(grown.plan.undone) == 1
    grown.live_lengths[CHAT] = (512.0, 330.0)
    grown.run(60.0)
    assert grown.plan is not None
    assert all(each.at > grown.at - 60.0 for each in grown.plan.undone), "the old one is gone"


def test_the_like_is_not_tried_on_another_gpu_of_that_kind_but_an_empty_one_is_opened() -> None:
    chat = serving("chat", batch=48, itl=0.012)
    grown = World([gpu(0), gpu(1)], [chat], {CHAT: LITTLE}, policy=POLICY).run(120.0)
    grown.interference = WORSE
    grown.loads[CHAT] = MUCH
    grown.run(300.0)
    assert grown.plan is not None
    places = sorted(each.gpu_uuid for each in grown.plan.placements)
    assert places == [gpu(0).uuid, gpu(1).uuid]
    assert any("is opened" in tell.message for tell in grown.told)
    beside = {each.neighbours for each in grown.plan.undone}
    assert "1 x meta-llama/Llama-3.2-1B" in beside


def test_in_the_twin_a_step_into_a_worse_world_is_undone() -> None:
    grown = stepped()
    grown.worsen(4.0)
    grown.loads[CHAT] = 45.0
    grown.run(60.0)
    assert grown.ready == {"chat": 1}
    assert grown.reason(CHAT) == "RolledBack"


# What is never undone


def test_a_manual_count_is_judged_and_never_undone() -> None:
    grown = world()
    grown.interference = WORSE
    grown.loads[CHAT] = MUCH
    scaling = Scaling(mode=ScalingMode.MANUAL, replicas=2, min_replicas=1, max_replicas=None)
    grown.edit(CHAT, replace(grown.servings[CHAT], scaling=scaling))
    grown.run(150.0)
    assert grown.ready == {"chat": 2}
    assert experiment(grown).judgement is Judgement.MISSED
    assert "the user asked for it" in experiment(grown).why
    assert as_predicted(grown) == "False/Missed"


def test_the_least_count_is_never_undone() -> None:
    grown = world()
    grown.interference = WORSE
    scaling = replace(grown.servings[CHAT].scaling, min_replicas=2)
    grown.edit(CHAT, replace(grown.servings[CHAT], scaling=scaling))
    grown.run(150.0)
    assert grown.ready == {"chat": 2}
    assert not experiment(grown).undone


def test_a_step_that_missed_but_raised_what_the_gpu_can_do_stays() -> None:
    grown = world()
    grown.servings[CHAT] = replace(grown.servings[CHAT], slo=None)
    grown.run(30.0)
    grown.interference = 1.35
    grown.loads[CHAT] = MUCH
    grown.run(JUDGED)
    assert grown.ready == {"chat": 2}
    assert experiment(grown).judgement is Judgement.MISSED
    assert "it stays, because it raised what the GPU can do" in experiment(grown).why


def test_a_model_that_is_wrong_about_a_gpu_from_the_start_undoes_nothing_there() -> None:
    chat = serving("chat", batch=48, itl=0.030, most=2)
    grown = World([gpu(0)], [chat], {CHAT: 8.0}, policy=POLICY).run(20.0)
    grown.spoilt[shapes(grown)[0]] = 1.8
    grown.run(120.0)
    assert experiment(grown).judgement is Judgement.MISSED
    assert "the user asked for it" in experiment(grown).why or "to itself" in experiment(grown).why
    grown.loads[CHAT] = 38.0
    grown.run(JUDGED)
    assert grown.ready == {"chat": 2}
    assert experiment(grown).judgement is Judgement.CONFIRMED
    assert experiment(grown).before[0].off == pytest.approx(1.8, rel=0.05)


# Inconclusive


def test_without_readings_a_step_is_inconclusive_and_judged_when_they_are_back() -> None:
    grown = world()
    grown.interference = WORSE
    grown.loads[CHAT] = MUCH
    while grown.ready != {"chat": 2}:
        grown.run(TICK)
    grown.blind["engines"] = Cause.UNREACHABLE
    grown.run(JUDGED)
    assert experiment(grown).judgement is Judgement.INCONCLUSIVE
    assert "readings are missing" in experiment(grown).why
    assert as_predicted(grown) == "Unknown/Inconclusive"
    assert grown.ready == {"chat": 2}
    del grown.blind["engines"]
    grown.run(JUDGED)
    assert grown.reason(CHAT) == "RolledBack"


def test_too_few_requests_say_nothing() -> None:
    grown = world(replace(POLICY, min_window_requests=100_000))
    grown.interference = WORSE
    grown.loads[CHAT] = MUCH
    grown.run(JUDGED)
    assert experiment(grown).judgement is Judgement.INCONCLUSIVE
    assert "100000 are needed" in experiment(grown).why
    assert grown.ready == {"chat": 2}


def test_a_spec_that_was_edited_meanwhile_makes_it_inconclusive() -> None:
    grown = world()
    grown.interference = WORSE
    grown.loads[CHAT] = MUCH
    while grown.ready != {"chat": 2}:
        grown.run(TICK)
    slo = grown.servings[CHAT].slo
    assert slo is not None
    grown.edit(CHAT, replace(grown.servings[CHAT], slo=replace(slo, itl=Seconds(0.011))))
    grown.run(JUDGED)
    assert experiment(grown).judgement is Judgement.INCONCLUSIVE
    assert grown.ready == {"chat": 2}


def test_throughput_is_judged_where_requests_waited_before_and_after() -> None:
    grown = world(most=1)
    grown.loads[CHAT] = 400.0
    grown.run(60.0)
    grown.edit(CHAT, replace(grown.servings[CHAT], scaling=replace(grown.servings[CHAT].scaling, max_replicas=2)))
    grown.run(JUDGED)
    gain = next(each for each in experiment(grown).compared if each.what == "gain of throughput")
    assert gain.measured == pytest.approx(gain.predicted, abs=0.05)


def test_throughput_that_cannot_be_judged_is_judged_later() -> None:
    grown = world(most=1)
    grown.loads[CHAT] = 60.0
    grown.run(60.0)
    grown.edit(CHAT, replace(grown.servings[CHAT], scaling=replace(grown.servings[CHAT].scaling, max_replicas=2)))
    while grown.ready != {"chat": 2}:
        grown.run(TICK)
    grown.loads[CHAT] = MUCH
    for pod in grown.pods.values():
        pod.waiting = 0.0
    grown.run(60.0)
    assert experiment(grown).judgement is Judgement.CONFIRMED
    assert "when requests wait again" in experiment(grown).why
    assert all(each.what != "gain of throughput" for each in experiment(grown).compared)
    told = len(grown.told)
    grown.loads[CHAT] = 400.0
    grown.run(60.0)
    gain = next(each for each in experiment(grown).compared if each.what == "gain of throughput")
    assert gain.measured == pytest.approx(gain.predicted, abs=0.05)
    assert "Confirmed" not in reasons(grown)[told:], "it was said before"


# Restart


def test_a_killed_operator_goes_on_with_the_experiment_after_its_restart() -> None:
    grown = world()
    grown.interference = WORSE
    grown.loads[CHAT] = MUCH
    while grown.ready != {"chat": 2}:
        grown.run(TICK)
    assert experiment(grown).judgement is None
    for _ in range(int(2 * JUDGED / TICK)):
        assert grown.plan is not None
        grown.plan = plan_of({"plan": json.loads(json.dumps(plan_to_status(grown.plan)))})
        grown.run(TICK)
    assert grown.ready == {"chat": 1}
    assert grown.reason(CHAT) == "RolledBack"


def test_a_lost_plan_loses_the_experiment_and_undoes_nothing() -> None:
    grown = world()
    grown.interference = WORSE
    grown.loads[CHAT] = MUCH
    while grown.ready != {"chat": 2}:
        grown.run(TICK)
    grown.plan = None
    grown.run(JUDGED)
    assert grown.ready == {"chat": 2}
    assert "RolledBack" not in reasons(grown)


# Shapes


def reshaped(replicas: int = 2) -> World:
    """Live lengths ask for another shape, which is on trial."""
    patient = replace(POLICY, shape_interval=Seconds(100.0), shape_hold=Seconds(20.0))
    chat = serving("chat", itl=0.012, least=replicas, most=replicas)
    grown = World([gpu(number) for number in range(replicas)], [chat], {CHAT: 40.0}, policy=patient).run(60.0)
    grown.live_lengths[CHAT] = (128.0, 64.0)
    while "Replaced" not in reasons(grown):
        grown.run(TICK)
    return grown


def shapes(world: World) -> list[Shape]:
    assert world.plan is not None
    return [each.shape for each in world.plan.placements]


def test_a_shape_that_live_lengths_ask_for_is_tried_in_one_replica_before_the_next() -> None:
    grown = reshaped()
    grown.run(150.0)
    assert len(set(shapes(grown))) == 1
    told = [each for each in reasons(grown) if each in ("Replaced", "Confirmed")]
    assert told[-4:] == ["Replaced", "Confirmed", "Replaced", "Confirmed"]


def test_a_shape_that_does_worse_than_the_one_before_stops_there_and_goes_back() -> None:
    grown = reshaped()
    assert grown.plan is not None
    new = grown.plan.shapes[0]
    assert new.was is not None
    old = new.was.shape
    grown.spoilt[new.shape] = 3.0
    grown.run(150.0)
    assert set(shapes(grown)) == {old}
    assert grown.ready == {"chat": 2}
    assert reasons(grown).count("RolledBack") == 1
    assert as_predicted(grown) == "False/RolledBack"


# Whatever happens


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    interference=st.sampled_from((0.7, 1.0, 1.2, 1.6, 2.5)),
    load=st.sampled_from((30.0, MUCH, 120.0)),
    blind=st.sampled_from((None, "engines", "dcgm")),
    least=st.integers(1, 2),
)
def test_a_step_is_undone_only_by_a_verdict_of_missed_and_never_below_what_is_asked_for(
    interference: float, load: float, blind: str | None, least: int
) -> None:
    grown = world(least=least)
    grown.interference = interference
    grown.loads[CHAT] = load
    grown.run(30.0)
    if blind is not None:
        grown.blind[blind] = Cause.STALE
    for _ in range(60):
        grown.run(TICK)
        assert grown.plan is not None
        assert len(grown.plan.placements) >= least
    undone = [each for each in grown.plan.experiments if each.undone] if grown.plan else []
    assert all(each.judgement is Judgement.MISSED for each in undone)
    assert bool(undone) == ("RolledBack" in reasons(grown))
    if interference <= 1.0 or blind == "engines":
        assert not undone


def test_under_ordinary_open_traffic_nothing_is_undone_that_raised_capacity() -> None:
    grown = stepped()
    grown.loads[CHAT] = 45.0
    grown.run(60.0)
    assert grown.ready == {"chat": 2}
    assert reasons(grown).count("Confirmed") == 2
    assert "RolledBack" not in reasons(grown)
    grown.loads[CHAT] = 60.0
    grown.run(40.0)
    assert "RolledBack" not in reasons(grown)
