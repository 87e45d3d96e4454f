"""When a step is judged, what is held against it, and what is taken back: one look at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpupack.decide.board import Board
from gpupack.decide.evidence import Seen, seen_on, standing, under_its_arrivals
from gpupack.decide.experiment import TakenBack, begin, company, inputs_of, is_waited_for, judge
from gpupack.decide.prospect import rounded
from gpupack.facts.experiment import CLOSED, Experiment, Judgement, Standing
from gpupack.facts.observation import Cause, EngineSeen, Holder, Missing, Observation, Phase, Reading, Refused
from gpupack.facts.placement import FormerShape
from gpupack.facts.serving import Mode, ScalingMode, Shape, Slo, Statistic
from gpupack.plan import Step, Unit
from gpupack.units import PerSecond, Ratio, Seconds

from ..strategies import NOON, key
from .boards import A, B, board_on, seen, with_placement, with_pod, without_pod

CHAT, DOCS = key("chat"), key("docs")
STEP = """gpus: {a: {dramActive: 0.3}, b: }
servings: {chat: {batch: 64}}
replicas:
  - {serving: chat, gpu: a, age: 3600, arrivals: 30, beside: 1, slower: %s}
  - {serving: chat, gpu: a, age: 300, arrivals: 30, beside: 1, slower: %s}
experiments:
  - {serving: chat, gpu: a, age: 300, before: 1, offBy: 1.0, doubted: 70}"""
AS_PREDICTED, HARMED = STEP % (1.0, 1.0), STEP % (2.5, 2.5)


def of(observation: Observation, **changes: Any) -> Observation:
    """The same, but the experiment is another one."""
    assert observation.plan is not None
    [only] = observation.plan.experiments
    return replace(observation, plan=replace(observation.plan, experiments=(replace(only, **changes),)))


def engines(observation: Observation, **window: Any) -> Observation:
    """The same, but the windows by which steps are judged show other things."""

    def changed(each: EngineSeen) -> EngineSeen:
        assert each.judged is not None
        return replace(each, judged=replace(each.judged, **window))

    return replace(observation, engines=tuple(changed(each) for each in observation.engines))


def one_engine(observation: Observation, **window: Any) -> Observation:
    """The same, but only the window of the last engine shows other things."""
    *others, last = observation.engines
    assert last.judged is not None
    return replace(observation, engines=(*others, replace(last, judged=replace(last.judged, **window))))


def read(value: float) -> Reading:
    return Reading(value=value, at=Seconds(NOON - 1.0), origin="vllm")


GONE = Missing(cause=Cause.NO_SERIES, origin="vllm")


def judged(observation: Observation, **floors: int) -> tuple[Board, Experiment, tuple[TakenBack, ...]]:
    board = board_on(observation)
    taken_back = judge(board, {key(name): floor for name, floor in floors.items()})
    return board, board.experiments[A], taken_back


# What begins


def joined(observation: Observation) -> Experiment:
    """A third engine joins what stands, or begins anew."""
    board = board_on(observation)
    new = replace(board.placements[-1], slot=2, planned_at=NOON)
    before = standing(board, A)
    board.add(new)
    begin(board, new, before, Step.ADDED, asked=False)
    return board.experiments[A]


def test_a_step_joins_the_steps_that_are_not_judged_yet() -> None:
    step = joined(seen(AS_PREDICTED))
    assert (step.began_at, step.last_at, [each.engines for each in step.before]) == (NOON - 300.0, NOON, [1])


@pytest.mark.parametrize("over", [{"judgement": Judgement.INCONCLUSIVE}, {"company": CLOSED}])
def test_a_step_after_a_judgement_is_an_experiment_of_its_own(over: dict[str, Any]) -> None:
    step = joined(of(seen(AS_PREDICTED), **over))
    assert (step.began_at, step.last_at, [each.engines for each in step.before]) == (NOON, NOON, [2])


def test_the_gain_that_is_predicted_is_that_of_the_gpu_over_what_stood_there() -> None:
    observation = seen(AS_PREDICTED)
    step, board = joined(observation), board_on(observation)
    [(own, _)] = board.mix(A)
    kind = board.kind(A)
    worth = [board.prospects.worth(kind, ((own, count),)) for count in (1, 3)]
    assert step.gain == pytest.approx(worth[1] / worth[0] - 1.0)
    full = board.prospects.full(kind, ((own, 3),))
    assert (step.saturation, step.itl) == (full.saturation, full.groups[0].itl_p95)


@pytest.mark.parametrize(("statistic", "name"), [(Statistic.MEAN, "itl_mean"), (Statistic.P99, "itl_p99")])
def test_the_latency_that_is_predicted_is_in_the_statistic_of_the_promise(statistic: Statistic, name: str) -> None:
    observation = seen(AS_PREDICTED)
    slo = Slo(itl=Seconds(1.0), ttft=None, statistic=statistic)
    promised = replace(observation, servings=tuple(replace(each, slo=slo) for each in observation.servings))
    board = board_on(promised)
    [(own, _)] = board.mix(A)
    assert joined(promised).itl == getattr(board.prospects.full(board.kind(A), ((own, 3),)).groups[0], name)


def test_a_gain_is_over_all_that_stood_there_before() -> None:
    """A third engine beside two that were judged is worth what three bring over two, not over one."""
    observation = of(seen(AS_PREDICTED), company=CLOSED)
    board = board_on(observation)
    [(own, _)] = board.mix(A)
    two, three = (board.prospects.worth(board.kind(A), ((own, count),)) for count in (2, 3))
    assert two > 1.1
    assert joined(observation).gain == pytest.approx(three / two - 1.0)


# When it is judged


@pytest.mark.parametrize(
    ("changes", "due"),
    [
        ({}, True),
        ({"doubted_at": Seconds(NOON - 60.0)}, True),
        ({"doubted_at": Seconds(NOON - 59.0)}, False),
        ({"last_at": Seconds(NOON - 120.0), "doubted_at": None}, True),
        ({"last_at": Seconds(NOON - 119.0), "doubted_at": None}, False),
    ],
)
def test_a_whole_window_after_the_warm_up_is_looked_at(changes: dict[str, Any], due: bool) -> None:
    board, after, _ = judged(of(seen(AS_PREDICTED), **changes))
    assert (after.judgement is not None) is due
    assert (A in board.touched) is due


@pytest.mark.parametrize(("ready", "due"), [(120.0, True), (119.0, False)])
def test_the_warm_up_begins_when_the_last_engine_is_ready(ready: float, due: bool) -> None:
    _, after, _ = judged(with_pod(of(seen(AS_PREDICTED), doubted_at=None), 1, ready_at=Seconds(NOON - ready)))
    assert (after.judgement is not None) is due


def test_a_longer_window_is_waited_for_until_it_holds_nothing_from_before() -> None:
    observation = engines(of(seen(AS_PREDICTED), doubted_at=None, last_at=Seconds(NOON - 200.0)), seconds=Seconds(90.0))
    for ready, due in ((150.0, True), (149.0, False)):
        assert (judged(with_pod(observation, 1, ready_at=Seconds(NOON - ready)))[1].judgement is not None) is due


def test_a_short_window_is_due_no_earlier_and_says_nothing() -> None:
    _, after, _ = judged(engines(seen(AS_PREDICTED), seconds=Seconds(53.0)))
    assert after.judgement is Judgement.INCONCLUSIVE
    _, whole, _ = judged(engines(seen(AS_PREDICTED), seconds=Seconds(54.0)))
    assert whole.judgement is Judgement.CONFIRMED


def test_nothing_is_judged_while_anything_moves_on_the_gpu() -> None:
    starting = with_pod(seen(AS_PREDICTED), 1, phase=Phase.STARTING, ready_at=None)
    assert judged(starting)[1].judgement is None


def test_a_suspended_replica_without_a_pod_keeps_nobody_waiting() -> None:
    observation = without_pod(seen(AS_PREDICTED), 1)
    suspended = replace(observation, servings=tuple(replace(each, mode=Mode.SUSPEND) for each in observation.servings))
    assert judged(suspended)[1].judgement is Judgement.INCONCLUSIVE


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"judged_at": Seconds(NOON - 1800.0)}, True),
        ({"judged_at": Seconds(NOON - 1801.0)}, False),
        ({"judged_at": None, "last_at": Seconds(NOON - 1801.0)}, False),
        ({"judged_at": None, "last_at": Seconds(NOON - 300.0)}, True),
        ({"judged_at": Seconds(NOON - 60.0), "company": CLOSED}, False),
    ],
)
def test_what_was_inconclusive_is_looked_at_again_for_as_long_as_a_step_is_remembered(
    changes: dict[str, Any], again: bool
) -> None:
    before = of(seen(AS_PREDICTED), judgement=Judgement.INCONCLUSIVE, **changes)
    after = judged(before)[1]
    assert (after.judgement is Judgement.CONFIRMED) is again


def test_other_engines_on_the_gpu_end_it_without_a_verdict() -> None:
    board, after, _ = judged(of(seen(AS_PREDICTED), company="others"))
    assert (after.judgement, after.judged_at, after.company) == (Judgement.INCONCLUSIVE, NOON, CLOSED)
    assert "changed since" in after.why
    assert A not in board.touched
    kept = judged(of(seen(AS_PREDICTED), company="others", judgement=Judgement.INCONCLUSIVE, judged_at=NOON, why="so"))
    assert (kept[1].judgement, kept[1].company, kept[1].why) == (Judgement.INCONCLUSIVE, CLOSED, "so")


def test_a_gpu_that_is_gone_ends_it_too() -> None:
    observation = seen(AS_PREDICTED)
    gone = judged(replace(observation, gpus=observation.gpus[1:]))[1]
    assert (gone.judgement, gone.company) == (Judgement.INCONCLUSIVE, CLOSED)


# What is held against it


@pytest.mark.parametrize(
    ("observation", "why"),
    [
        (engines(seen(AS_PREDICTED), finished=read(1.66)), "199 requests finished in the window; 200 are needed"),
        (engines(seen(AS_PREDICTED), arrivals=GONE), "readings are missing: vllm NoSeries"),
        (of(seen(AS_PREDICTED), inputs="others"), "has changed since"),
        (replace(seen(AS_PREDICTED), holders=(Holder(gpu_uuid=A, kind="Pod", name="lab/x"),)), "held by Pod lab/x"),
        (replace(seen(AS_PREDICTED), engines=()), "readings are missing"),
    ],
)
def test_too_little_to_judge_by_is_inconclusive_and_says_why(observation: Observation, why: str) -> None:
    _, after, _ = judged(observation)
    assert (after.judgement, after.judged_at) == (Judgement.INCONCLUSIVE, NOON)
    assert why in after.why
    assert after.company != CLOSED


def test_as_many_requests_as_are_needed_are_enough() -> None:
    just_enough = engines(seen(AS_PREDICTED), finished=read(100.0 / 60.0))
    assert judged(just_enough)[1].judgement is Judgement.CONFIRMED


@pytest.mark.parametrize(("slower", "missed"), [(1.19, False), (1.21, True)])
def test_a_latency_beyond_the_tolerance_was_not_predicted(slower: float, missed: bool) -> None:
    after = judged(seen(STEP % (slower, slower)))[1]
    assert after.judgement is (Judgement.MISSED if missed else Judgement.CONFIRMED)


def test_how_far_the_model_was_off_before_counts_for_the_step() -> None:
    assert judged(of(seen(HARMED), before=before(off=Ratio(2.4))))[1].judgement is Judgement.CONFIRMED
    assert judged(of(seen(HARMED), before=before(off=Ratio(1.5))))[1].judgement is Judgement.MISSED


def before(**changes: Any) -> tuple[Standing, ...]:
    assert seen(AS_PREDICTED).plan is not None
    [only] = seen(AS_PREDICTED).plan.experiments  # type: ignore[union-attr]
    return tuple(replace(each, **changes) for each in only.before)


def test_where_nothing_was_measured_before_the_error_of_the_model_is_allowed_on_top() -> None:
    board = board_on(seen(AS_PREDICTED))
    error = board.prospects.full(board.kind(A), board.mix(A)).error
    for slower, missed in ((1.2 + error - 0.02, False), (1.2 + error + 0.05, True)):
        after = judged(of(seen(STEP % (slower, slower)), before=before(off=None)))[1]
        assert (after.judgement is Judgement.MISSED) is missed


def test_how_far_the_model_is_off_with_another_shape_of_the_same_serving_counts_too() -> None:
    [stood] = before(off=Ratio(2.4))
    other = replace(stood, shape=replace(stood.shape, max_num_seqs=32))
    stranger = replace(other, serving=DOCS)
    assert judged(of(seen(HARMED), before=(other,)))[1].judgement is Judgement.CONFIRMED
    found = of(seen(HARMED.replace("chat: {batch: 64}", "chat: {batch: 64}, docs: {batch: 64}")), before=(stranger,))
    assert judged(found)[1].judgement is Judgement.MISSED


def test_how_far_the_model_is_off_on_another_gpu_of_the_kind_tells_harm_from_a_wrong_model() -> None:
    """Nothing was measured before: elsewhere it was as predicted, so the step did harm; another kind says nothing."""
    blind = of(seen(HARMED), before=before(off=None))
    elsewhere = another(blind, before=before(off=Ratio(1.0)), last_at=Seconds(NOON - 900.0))
    assert judged(blind)[2] == ()
    assert len(judged(elsewhere)[2]) == 1
    kind = replace(elsewhere.gpus[1].gpu.kind, name="another")
    gpus = (elsewhere.gpus[0], replace(elsewhere.gpus[1], gpu=replace(elsewhere.gpus[1].gpu, kind=kind)))
    assert judged(replace(elsewhere, gpus=gpus))[2] == ()
    assert judged(replace(elsewhere, gpus=elsewhere.gpus[:1]))[2] == ()


def test_a_miss_is_doubted_first_and_believed_when_it_is_seen_again() -> None:
    board, doubted, taken_back = judged(of(seen(HARMED), doubted_at=None))
    assert (doubted.judgement, doubted.doubted_at, taken_back) == (None, NOON, ())
    assert A not in board.touched


def waited(observation: Observation, tokens: float, *, stood: float) -> Observation:
    """Requests waited at both engines, which made so many tokens a second together, and the one before so many."""
    now = engines(observation, waiting_least=read(1.0), generation_tokens=read(tokens / 2))
    return of(now, before=before(off=Ratio(1.0), tokens_per_second=stood))


@pytest.mark.parametrize(
    ("gain", "judgement"), [(0.5, Judgement.CONFIRMED), (0.21, Judgement.CONFIRMED), (0.19, Judgement.MISSED)]
)
def test_a_gain_of_throughput_may_fall_short_of_a_half_by_the_tolerance(gain: float, judgement: Judgement) -> None:
    _, after, _ = judged(waited(seen(AS_PREDICTED), 1000.0 * (1 + gain), stood=1000.0))
    assert after.judgement is judgement
    [compared] = [each for each in after.compared if each.what == "gain of throughput"]
    assert (compared.predicted, compared.measured) == (0.5, pytest.approx(gain))


@pytest.mark.parametrize(("gain", "missed"), [(0.026, False), (0.024, True)])
def test_a_small_gain_must_reach_half_of_what_had_to_pay(gain: float, missed: bool) -> None:
    observation = of(waited(seen(AS_PREDICTED), 1000.0 * (1 + gain), stood=1000.0), gain=Ratio(0.06))
    assert (judged(observation)[1].judgement is Judgement.MISSED) is missed


def test_throughput_is_compared_only_where_requests_waited_before_and_after_at_every_engine() -> None:
    for observation in (
        engines(waited(seen(AS_PREDICTED), 100.0, stood=1000.0), waiting_least=read(0.0)),
        of(waited(seen(AS_PREDICTED), 100.0, stood=1000.0), before=before(off=Ratio(1.0), tokens_per_second=None)),
        of(waited(seen(AS_PREDICTED), 100.0, stood=1000.0), gain=None),
        waited(seen(AS_PREDICTED), 100.0, stood=0.0),
        engines(waited(seen(AS_PREDICTED), 100.0, stood=1000.0), waiting_least=GONE),
    ):
        after = judged(observation)[1]
        assert after.judgement is Judgement.CONFIRMED
        assert not any(each.what == "gain of throughput" for each in after.compared)


def test_a_confirmation_waits_for_throughput_only_where_requests_waited_before() -> None:
    later = engines(waited(seen(AS_PREDICTED), 100.0, stood=1000.0), waiting_least=read(0.0))
    after = judged(later)[1]
    assert (after.company != CLOSED, "when requests wait again" in after.why) == (True, True)
    over = judged(seen(AS_PREDICTED))[1]
    assert (over.company, over.why) == (CLOSED, "")
    measured = of(waited(seen(AS_PREDICTED), 1500.0, stood=1000.0), judgement=Judgement.CONFIRMED)
    done = judged(of(measured, judged_at=Seconds(NOON - 60.0)))[1]
    assert (done.judged_at, done.company) == (NOON, CLOSED)
    again = of(later, judgement=Judgement.CONFIRMED, judged_at=Seconds(NOON - 60.0), why="so")
    assert judged(again)[1].why == "so"


def test_what_stands_beside_the_verdict_is_told_as_far_as_it_is_known() -> None:
    told = {each.what: each for each in judged(seen(AS_PREDICTED))[1].compared}
    assert set(told) == {"inter-token latency", "time to first token", "running", "waiting", "DRAM active"}
    assert told["time to first token"].measured == 0.05
    assert (told["running"].measured, told["running"].unit) == (20.0, "")
    assert (told["DRAM active"].measured, told["DRAM active"].unit) == (0.3, Unit.RATIO.value)
    fewer = judged(engines(seen(AS_PREDICTED), ttft_mean=GONE, waiting_least=GONE))[1]
    assert {each.what for each in fewer.compared} == {"inter-token latency", "running", "DRAM active"}
    assert (told["waiting"].predicted, told["waiting"].measured) == (0.0, 0.0)


# What is taken back


def test_what_did_harm_is_taken_back_and_remembered_with_what_spoke_against_it() -> None:
    board, after, [back] = judged(seen(HARMED))
    assert (after.judgement, after.undone, after.company, after.judged_at) == (Judgement.MISSED, True, CLOSED, NOON)
    assert [each.slot for each in back.placements] == [1]
    assert [each.slot for each in board.placements] == [0]
    assert back.harm.what == "gain of throughput at full batches"
    assert after.compared[0] == back.harm
    assert after.compared.count(back.harm) == 1
    [remembered] = board.undone
    assert (remembered.at, remembered.until) == (NOON, NOON + 1800.0)
    assert remembered.compared == back.harm


def test_a_measured_gain_that_is_a_loss_speaks_for_itself() -> None:
    _, after, [back] = judged(waited(seen(AS_PREDICTED), 800.0, stood=1000.0))
    assert (back.harm.what, back.harm.measured) == ("gain of throughput", pytest.approx(-0.2))
    assert after.compared.count(back.harm) == 1


@pytest.mark.parametrize(("changes", "why"), [({"asked": True}, "the user asked for it"), ({"asked": False}, "")])
def test_what_the_user_asked_for_stays(changes: dict[str, Any], why: str) -> None:
    _, after, taken_back = judged(of(seen(HARMED), **changes))
    assert why in after.why
    assert bool(taken_back) is not changes["asked"]


def test_the_least_count_and_what_is_not_gpupacks_to_count_stay() -> None:
    _, after, taken_back = judged(seen(HARMED), chat=2)
    assert (after.undone, taken_back) == (False, ())
    assert "at least" in after.why
    for changes in ({"mode": Mode.SUSPEND}, {"scaling": None}):
        observation = seen(HARMED)
        [chat] = observation.servings
        if "scaling" in changes:
            changes = {"scaling": replace(chat.scaling, mode=ScalingMode.MANUAL, replicas=2)}
        board = board_on(replace(observation, servings=(replace(chat, **changes),)))
        assert judge(board, {}) == ()


def test_the_last_steps_go_first_and_never_more_than_the_floor_allows() -> None:
    observation = seen(STEP.replace("age: 300, arrivals", "age: 300, count: 3, arrivals") % (4.0, 4.0))
    late = with_placement(observation, 2, planned_at=Seconds(NOON - 299.0))
    for floor, slots in ((1, [2, 3, 1]), (2, [2, 3]), (3, [2]), (4, [])):
        _, _, taken_back = judged(late, chat=floor)
        assert [each.slot for back in taken_back for each in back.placements] == slots
    [all_of_them] = judged(late)[2]
    assert [each.slot for each in all_of_them.placements] == [2, 3, 1]


def test_no_harm_is_made_of_what_nobody_saw_before() -> None:
    together = of(seen(HARMED.replace("age: 3600", "age: 300")), before=(), gain=None)
    _, after, taken_back = judged(together)
    assert (after.judgement, taken_back) == (Judgement.MISSED, ())
    assert "it raised what the GPU can do" in after.why
    alone = seen(HARMED[: HARMED.index("  - {serving: chat, gpu: a, age: 300")] + HARMED[HARMED.index("experiments") :])
    _, after, taken_back = judged(of(alone, before=(), gain=None))
    assert (taken_back, after.judgement) == ((), Judgement.MISSED)
    assert "to itself" in after.why


def test_a_shape_that_missed_goes_back_to_the_one_before() -> None:
    observation = of(seen(HARMED), step="Replaced")
    assert observation.plan is not None
    [chosen] = observation.plan.shapes
    former: Shape = replace(chosen.shape, max_num_seqs=48)
    was = FormerShape(shape=former, replicas_per_gpu=3, utilization_hundredths=17)
    trial = replace(chosen, was=was, better_since=Seconds(NOON - 5.0))
    tried = replace(observation, plan=replace(observation.plan, shapes=(trial,)))
    board, after, [back] = judged(tried)
    again = board.chosen(CHAT, A)
    assert again is not None
    assert (again.shape, again.was, again.better_since) == (former, None, None)
    assert (again.replicas_per_gpu, again.utilization_hundredths, again.chosen_at) == (3, 17, NOON)
    assert ([each.slot for each in back.placements], after.undone) == ([1], True)
    assert len(board.placements) == 2
    assert board.undone[0].neighbours.startswith("in the place of 2 x")
    added = judged(of(tried, step="Added"))
    assert added[0].chosen(CHAT, A) == trial
    assert [each.slot for each in added[2][0].placements] == [1]


# Promises that a step broke


def promised(itl: float, statistic: Statistic = Statistic.P95, **window: Any) -> Observation:
    """A step that is slower than predicted but raised what the GPU can do, under that promise."""
    observation = engines(of(seen(STEP % (1.3, 1.3)), gain=Ratio(0.5)), **window)
    slo = Slo(itl=Seconds(itl), ttft=None, statistic=statistic)
    changed = replace(observation, servings=tuple(replace(each, slo=slo) for each in observation.servings))
    board = board_on(changed)
    return of(changed, inputs=inputs_of(board, board.kind(A), board.mix(A)))


def latency(observation: Observation) -> float:
    board = board_on(observation)
    found = seen_on(board, A, board.mix(A))
    assert not isinstance(found, Missing)
    assert found[0].itl is not None
    return found[0].itl


def test_a_step_that_raised_capacity_stays_while_every_promise_is_kept() -> None:
    _, after, taken_back = judged(promised(1.0))
    assert (after.judgement, taken_back) == (Judgement.MISSED, ())
    assert "it stays, because it raised what the GPU can do by" in after.why


@pytest.mark.parametrize("statistic", [Statistic.MEAN, Statistic.P95])
def test_a_step_that_broke_a_promise_which_is_kept_without_it_is_taken_back(statistic: Statistic) -> None:
    mean = latency(promised(1.0))
    measured = mean if statistic is Statistic.MEAN else 5 * mean
    assert judged(promised(measured, statistic, itl_p95=read(5 * mean)))[2] == ()
    [back] = judged(promised(measured * 0.999, statistic, itl_p95=read(5 * mean)))[2]
    assert back.harm.what == f"inter-token latency {statistic.value}"
    assert (back.harm.measured, back.harm.subject) == (pytest.approx(measured), "team/chat")
    assert back.harm.predicted <= measured * 0.999


def test_of_engines_that_came_to_an_empty_gpu_together_the_first_stays() -> None:
    mean = latency(promised(1.0))
    together = promised(4 * mean, itl_p95=read(5 * mean), itl_mean=read(2 * mean))
    together = of(with_placement(together, planned_at=Seconds(NOON - 300.0)), before=(), gain=None)
    _, after, taken_back = judged(together)
    assert after.judgement is Judgement.MISSED
    assert [each.slot for back in taken_back for each in back.placements] == [1]


def test_without_the_step_the_load_falls_to_what_stood_there_and_to_the_other_gpus() -> None:
    """One engine cannot keep the promise under twice the load, so that the step is not what broke it."""
    board = board_on(promised(1.0))
    [(own, _)] = board.mix(A)
    lone, kind = ((own, 1),), board.kind(A)
    idle, busy = (board.prospects.loaded(kind, lone, {CHAT: rate}).groups[0].itl_p95 for rate in (1.0, 1e4))
    for rate, back in ((1.0, True), (1e4, False)):
        board = board_on(promised((idle + busy) / 2, itl_p95=read(1.0)))
        board.rates[CHAT] = rate
        assert bool(judge(board, {})) is back


def test_a_promise_that_was_broken_already_is_not_this_steps_doing() -> None:
    _, after, taken_back = judged(promised(1e-4))
    assert (after.judgement, taken_back) == (Judgement.MISSED, ())


# Unlike engines on one GPU


TWO = """gpus: {a: {dramActive: 0.3}, b: }
servings: {chat: {batch: 64}, docs: {batch: 64}}
replicas:
  - {serving: chat, gpu: a, age: 3600, arrivals: 30, beside: 1, slower: %s, waited: %s}
  - {serving: docs, gpu: a, age: 300, arrivals: 30, beside: 1, slower: %s, waited: %s}
experiments:
  - {serving: docs, gpu: a, age: 300, before: 1, offBy: 1.0, doubted: 70}"""


def beside_chat(chat: float = 1.0, docs: float = 1.0, *, queues: tuple[int, int] = (0, 0), **stood: Any) -> Observation:
    """Docs came to a GPU on which chat stood, which was as predicted before; each is now slower by so much."""
    observation = seen(TWO % (chat, queues[0], docs, queues[1]))
    assert observation.plan is not None
    [step] = observation.plan.experiments
    was = tuple(replace(each, serving=CHAT, **stood) for each in step.before)
    return of(observation, before=was)


def test_what_stood_on_the_gpu_before_a_step_is_never_given_up_for_it() -> None:
    """A second chat makes chat one that could be given up; it is docs that came, and the only docs stays."""
    more = (TWO % (4.0, 0, 4.0, 0)).replace("age: 3600,", "age: 3600, count: 2,")
    assert seen(more).plan is not None
    [step] = seen(more).plan.experiments  # type: ignore[union-attr]
    was = tuple(replace(each, serving=CHAT, engines=2) for each in step.before)
    _, after, taken_back = judged(of(seen(more), before=was))
    assert (after.judgement, taken_back) == (Judgement.MISSED, ())


def test_of_unlike_engines_only_one_of_which_has_a_queue_no_throughput_is_compared() -> None:
    one, both = (
        judged(beside_chat(queues=queues, tokens_per_second=5000.0))[1].compared for queues in ((2, 0), (2, 2))
    )
    assert not any(each.what == "gain of throughput" for each in one)
    assert any(each.what == "gain of throughput" for each in both)


def test_engines_without_a_latency_are_judged_by_the_others() -> None:
    _, after, _ = judged(one_engine(beside_chat(), itl_mean=GONE))
    assert after.judgement is Judgement.CONFIRMED
    assert [each.subject for each in after.compared if each.what == "inter-token latency"] == ["team/chat"]


def test_throughput_is_not_waited_for_where_nothing_stood_before_or_one_of_them_had_no_queue() -> None:
    first = judged(of(seen(AS_PREDICTED), before=()))[1]
    assert (first.company, first.why) == (CLOSED, "")
    [stood] = before(off=Ratio(1.0), tokens_per_second=1000.0)
    other = replace(stood, shape=replace(stood.shape, max_num_seqs=32), tokens_per_second=None)
    mixed = judged(of(seen(AS_PREDICTED), before=(stood, other)))[1]
    assert (mixed.company, mixed.why) == (CLOSED, "")


def test_where_more_comes_than_can_be_served_nothing_is_held_against_a_queue() -> None:
    """No queue is predicted where the model says that every queue grows for ever."""
    overrun = judged(engines(seen(AS_PREDICTED), arrivals=read(1e4), waiting_least=read(50.0)))[1]
    assert not {"waiting", "time to first token"} & {each.what for each in overrun.compared}


def test_the_longest_window_of_any_engine_holds_nothing_from_before_the_step() -> None:
    observation = of(seen(AS_PREDICTED), doubted_at=None, last_at=Seconds(NOON - 200.0))
    uneven = one_engine(observation, seconds=Seconds(90.0))
    for ready, due in ((150.0, True), (149.0, False)):
        assert (judged(with_pod(uneven, 1, ready_at=Seconds(NOON - ready)))[1].judgement is not None) is due


def test_a_shape_may_bring_less_than_a_further_engine_must_and_no_loss() -> None:
    """A further engine must pay; another shape of what stands there must only not do less."""
    for gain, added, reshaped in ((0.04, True, False), (-0.01, True, True), (0.06, False, False)):
        observation = of(waited(seen(AS_PREDICTED), 1000.0 * (1 + gain), stood=1000.0), gain=Ratio(0.5))
        assert (judged(observation)[2] != ()) is added
        assert (judged(of(observation, step="Replaced"))[2] != ()) is reshaped


def test_a_single_engine_in_another_shape_is_held_against_the_shape_before() -> None:
    """It has the GPU to itself, but something stood there before: it may have done harm."""
    lone = HARMED[: HARMED.index("  - {serving: chat, gpu: a, age: 300")] + HARMED[HARMED.index("experiments") :]
    after = judged(of(seen(lone), before=before(off=Ratio(1.0)), step="Replaced"))[1]
    assert after.judgement is Judgement.MISSED
    assert "to itself" not in after.why


def test_an_experiment_of_a_serving_whose_shape_was_not_replaced_gives_up_the_engine() -> None:
    """Nobody noted a shape before: what came goes, whatever the step was called, and whether a shape is chosen."""
    observation = of(seen(HARMED), step="Moved")
    assert observation.plan is not None
    for plan in (observation.plan, replace(observation.plan, shapes=())):
        [back] = judged(replace(observation, plan=plan))[2]
        assert [each.slot for each in back.placements] == [1]


@pytest.mark.parametrize("slo", [None, Slo(itl=None, ttft=Seconds(5.0), statistic=Statistic.P95)])
def test_where_no_latency_between_tokens_is_promised_none_is_broken(slo: Slo | None) -> None:
    observation = promised(1.0, itl_p95=read(9.0))
    assert observation.plan is not None
    bare = replace(
        observation, servings=tuple(replace(each, slo=slo) for each in observation.servings),
        plan=replace(observation.plan, shapes=tuple(replace(each, slo=None) for each in observation.plan.shapes)),
    )  # fmt: skip
    board = board_on(bare)
    _, after, taken_back = judged(of(bare, inputs=inputs_of(board, board.kind(A), board.mix(A))))
    assert (after.judgement, taken_back) == (Judgement.MISSED, ())


def test_a_promise_whose_statistic_nobody_measured_is_not_broken() -> None:
    assert judged(promised(1e-3, itl_p95=GONE))[2] == ()


def test_what_a_step_rests_on_is_every_engine_of_its_gpu() -> None:
    board = board_on(beside_chat())
    kind, mix = board.kind(A), board.mix(A)
    digests = {inputs_of(board, kind, each) for each in (mix, mix[:1], mix[1:], ())}
    assert len(digests) == 4


def test_another_serving_on_trial_does_not_hide_a_shape_that_is_waited_for() -> None:
    both = another(of(seen(AS_PREDICTED), step="Replaced"), serving=DOCS)
    assert is_waited_for(board_on(both), CHAT)


def test_of_three_engines_that_came_to_an_empty_gpu_together_the_later_two_go() -> None:
    mean = latency(promised(1.0))
    observation = seen(STEP.replace("age: 300, arrivals", "age: 300, count: 2, arrivals") % (4.0, 4.0))
    together = of(waited(with_placement(observation, planned_at=Seconds(NOON - 300.0)), 1.0, stood=1.0), before=())
    slo = Slo(itl=Seconds(4 * mean), ttft=None, statistic=Statistic.P95)
    hurt = replace(together, servings=tuple(replace(each, slo=slo) for each in together.servings))
    hurt = engines(hurt, waiting_least=read(0.0), itl_p95=read(9.0), itl_mean=read(2 * mean))
    board = board_on(hurt)
    _, after, taken_back = judged(of(hurt, gain=None, inputs=inputs_of(board, board.kind(A), board.mix(A))))
    assert after.judgement is Judgement.MISSED
    assert [each.slot for back in taken_back for each in back.placements] == [2, 1]


def test_a_shape_that_missed_goes_back_in_the_replicas_that_took_it_only() -> None:
    """Docs, which came to the GPU in the same steps, keeps its shape; so does the density of the shape before."""
    observation = of(seen(TWO.replace("age: 3600", "age: 300") % (4.0, 0, 4.0, 0)), step="Replaced")
    assert observation.plan is not None
    former = {each.serving: replace(each.shape, max_num_seqs=48) for each in observation.plan.shapes}
    shapes = tuple(
        replace(
            each,
            replicas_per_gpu=5,
            was=FormerShape(shape=former[each.serving], replicas_per_gpu=3, utilization_hundredths=17),
        )
        for each in observation.plan.shapes
    )
    board, _, [back] = judged(replace(observation, plan=replace(observation.plan, shapes=shapes)))
    again = board.chosen(DOCS, A)
    assert again is not None
    assert again.replicas_per_gpu == 3
    assert [str(each.serving) for each in back.placements] == ["team/docs"]


@pytest.mark.parametrize("elsewhere", [0, 1, 2])
def test_the_latency_without_the_step_is_that_of_the_load_dealt_among_those_that_would_be_left(elsewhere: int) -> None:
    """One engine stood here and others stand elsewhere: each of them would get its share of 60 requests a second."""
    more = f"  - {{serving: chat, gpu: b, count: {elsewhere}, arrivals: 30}}\n"
    story = STEP.replace("experiments:", f"{more}experiments:")
    slow = engines(of(seen(story % (1.3, 1.3)), before=before(off=Ratio(1.05))), itl_p95=read(9.0))
    slo = Slo(itl=Seconds(8.0), ttft=None, statistic=Statistic.P95)
    observation = replace(slow, servings=tuple(replace(each, slo=slo) for each in slow.servings))
    board = board_on(observation)
    kind = board.kind(A)
    board = board_on(of(observation, inputs=inputs_of(board, kind, board.mix(A))))
    board.rates[CHAT] = 60.0
    [(own, _)] = board.mix(A)
    share = {CHAT: rounded(60.0 / (1 + elsewhere))}
    lone = board.prospects.loaded(kind, ((own, 1),), share).groups[0]
    [back] = judge(board, {})
    assert back.harm.predicted == pytest.approx(1.05 * lone.itl_p95)


# What is kept in the plan


def another(observation: Observation, **changes: Any) -> Observation:
    """One more experiment, on the other GPU."""
    assert observation.plan is not None
    [only] = observation.plan.experiments
    other = replace(only, **{"gpu_uuid": B, "company": CLOSED, "judgement": Judgement.CONFIRMED, **changes})
    return replace(observation, plan=replace(observation.plan, experiments=(only, other)))


def kept(observation: Observation) -> set[str]:
    board = board_on(observation)
    judge(board, {})
    return set(board.experiments)


def test_of_what_is_over_only_the_last_of_each_serving_is_kept() -> None:
    assert kept(another(seen(AS_PREDICTED), last_at=Seconds(NOON - 900.0))) == {A}
    assert kept(another(seen(AS_PREDICTED), last_at=Seconds(NOON - 200.0))) == {B}
    assert kept(another(of(seen(AS_PREDICTED), doubted_at=NOON), last_at=Seconds(NOON - 200.0))) == {A, B}
    assert kept(another(seen(AS_PREDICTED), serving=key("gone"))) == {A}


def test_what_took_back_a_step_is_kept_for_as_long_as_that_is_remembered() -> None:
    observation = seen(
        HARMED.replace("experiments:", "undone: [{serving: chat, age: 100, left: 900, rate: 60}]\nexperiments:")
    )
    old = {"last_at": Seconds(NOON - 900.0), "judged_at": Seconds(NOON - 100.0), "judgement": Judgement.MISSED}
    assert kept(another(observation, undone=True, **old)) == {A, B}
    assert kept(another(observation, undone=False, **old)) == {A}
    assert kept(another(observation, undone=True, **{**old, "judged_at": Seconds(NOON - 101.0)})) == {A}


@pytest.mark.parametrize(
    ("changes", "waits"),
    [
        ({"step": "Replaced"}, True),
        ({"step": "Moved"}, True),
        ({"step": "Added"}, False),
        ({"step": "Replaced", "asked": True}, False),
        ({"step": "Replaced", "judgement": Judgement.INCONCLUSIVE}, False),
        ({"step": "Replaced", "company": CLOSED}, False),
        ({"step": "Replaced", "serving": DOCS}, False),
    ],
)
def test_a_shape_of_live_lengths_is_waited_for_until_its_verdict(changes: dict[str, Any], waits: bool) -> None:
    assert is_waited_for(board_on(of(seen(AS_PREDICTED), **changes)), CHAT) is waits


# What stood there before a step


def test_what_stands_before_a_step_is_noted_with_how_far_the_model_is_off() -> None:
    [noted] = standing(board_on(seen(STEP % (1.3, 1.3))), A)
    assert (noted.engines, noted.off) == (2, pytest.approx(1.3))
    assert noted.tokens_per_second is None
    queued = engines(seen(STEP % (1.3, 1.3)), waiting_least=read(1.0), generation_tokens=read(500.0))
    [busy] = standing(board_on(queued), A)
    assert busy.tokens_per_second == 1000.0
    [few] = standing(board_on(engines(queued, finished=read(1.66))), A)
    assert (few.off, few.tokens_per_second) == (None, 1000.0)
    [enough] = standing(board_on(engines(queued, finished=read(100.0 / 60.0))), A)
    assert enough.off == pytest.approx(1.3)
    [blind] = standing(board_on(engines(queued, arrivals=GONE)), A)
    assert (blind.engines, blind.off, blind.tokens_per_second) == (2, None, None)


def test_a_queue_at_one_of_two_engines_is_no_queue_at_both() -> None:
    queued = engines(seen(AS_PREDICTED), waiting_least=read(3.0))
    first, second = queued.engines
    assert second.judged is not None
    half = replace(queued, engines=(first, replace(second, judged=replace(second.judged, waiting_least=read(0.0)))))
    [noted] = standing(board_on(half), A)
    assert noted.tokens_per_second is None
    uncounted = replace(queued, engines=(first, replace(second, judged=replace(second.judged, waiting_least=GONE))))
    [unknown] = standing(board_on(uncounted), A)
    assert unknown.tokens_per_second is None


MIXED = """gpus: {a: , b: }
servings: {chat: {batch: 64}, docs: {batch: 16}}
replicas:
  - {serving: chat, gpu: a, arrivals: 30, running: 60, waited: 2}
  - {serving: docs, gpu: a, arrivals: 10, running: 15}"""


def test_unlike_engines_of_a_gpu_are_seen_apart_and_a_queue_at_one_of_them_is_none_at_all() -> None:
    board = board_on(seen(MIXED))
    found = seen_on(board, A, board.mix(A))
    assert not isinstance(found, Missing)
    assert [(str(each.kin.serving), each.engines, each.running) for each in found] == [
        ("team/chat", 1, 60.0),
        ("team/docs", 1, 15.0),
    ]
    assert [each.waited for each in found] == [True, False]
    assert [each.tokens_per_second for each in standing(board, A)] == [None, None]


def test_a_step_of_one_serving_is_predicted_by_its_own_latency_beside_the_others() -> None:
    observation = seen(MIXED)
    for name in ("chat", "docs"):
        board = board_on(observation)
        [new] = board.of[key(name)]
        board.remove(new)
        before = standing(board, A)
        board.add(new)
        begin(board, new, before, Step.ADDED, asked=False)
        full = board.prospects.full(board.kind(A), board.mix(A))
        [own] = [group for (kin, _), group in zip(board.mix(A), full.groups, strict=True) if kin.serving == key(name)]
        assert board.experiments[A].itl == own.itl_p95


def test_beside_an_engine_that_nobody_knows_a_step_is_no_experiment() -> None:
    observation = seen(MIXED)
    refused = Refused(key=DOCS, uid="docs", generation=1, field="spec", problem="unreadable", fix="mend it")
    board = board_on(replace(observation, servings=observation.servings[:1], refused=(refused,)))
    [new] = board.of[CHAT]
    board.experiments[A] = board_on(seen(AS_PREDICTED)).experiments[A]
    begin(board, new, (), Step.ADDED, asked=False)
    assert A not in board.experiments


def test_of_a_gpu_with_an_engine_that_nobody_knows_nothing_is_noted() -> None:
    observation = seen(AS_PREDICTED)
    refused = Refused(key=CHAT, uid="chat", generation=1, field="spec", problem="unreadable", fix="mend it")
    board = board_on(replace(observation, servings=(), refused=(refused,)))
    assert standing(board, A) == ()


def test_windows_are_weighed_by_what_finished_in_them() -> None:
    observation = seen(AS_PREDICTED)
    first, second = observation.engines
    assert first.judged is not None
    assert second.judged is not None
    slow = replace(
        second.judged, finished=read(90.0), itl_mean=read(0.03), ttft_mean=read(0.2), input_mean=read(100.0),
        seconds=Seconds(66.0), arrivals=read(90.0), running_mean=read(40.0),
    )  # fmt: skip
    fast = replace(first.judged, finished=read(30.0), itl_mean=read(0.01), ttft_mean=GONE, input_mean=read(500.0))
    board = board_on(replace(observation, engines=(replace(first, judged=fast), replace(second, judged=slow))))
    found = seen_on(board, A, board.mix(A))
    assert not isinstance(found, Missing)
    [both] = found
    assert (both.itl, both.ttft, both.input_mean) == (pytest.approx(0.025), pytest.approx(0.2), pytest.approx(200.0))
    assert (both.seconds, both.arrivals, both.running) == (66.0, PerSecond(60.0), 30.0)
    assert both.finished == pytest.approx(30.0 * 60.0 + 90.0 * 66.0)


def test_a_window_is_the_judged_one_or_the_first_that_is_long_enough() -> None:
    observation = seen(AS_PREDICTED)
    without = replace(observation, engines=tuple(replace(each, judged=None) for each in observation.engines))
    board = board_on(without)
    found = seen_on(board, A, board.mix(A))
    assert not isinstance(found, Missing)
    assert found[0].seconds == 300.0


def test_an_engine_that_finished_nothing_has_the_lengths_that_are_known_and_no_latency() -> None:
    idle = engines(
        seen(AS_PREDICTED), finished=read(0.0), itl_mean=GONE, itl_p95=GONE, ttft_mean=GONE, input_mean=GONE,
        output_mean=GONE, waiting_least=GONE,
    )  # fmt: skip
    board = board_on(idle)
    found = seen_on(board, A, board.mix(A))
    assert not isinstance(found, Missing)
    [both] = found
    lengths = board.prospects.lengths[CHAT]
    assert (both.input_mean, both.output_mean) == (lengths.input_mean, lengths.output_mean)
    assert (both.itl, both.itl_p95, both.ttft, both.waiting, both.finished) == (None, None, None, None, 0.0)
    [noted] = standing(board, A)
    assert noted.off is None


def test_why_there_is_no_window_is_told_apart() -> None:
    observation = seen(AS_PREDICTED)
    board = board_on(replace(observation, engines=()))
    found = seen_on(board, A, board.mix(A))
    assert isinstance(found, Missing)
    assert found.cause is Cause.UNREACHABLE
    short = board_on(engines(observation, seconds=Seconds(10.0)))
    early = seen_on(short, A, short.mix(A))
    assert isinstance(early, Missing)
    assert early.cause is Cause.TOO_SHORT


def both_on(observation: Observation) -> Seen:
    """The two like engines of the step, seen together."""
    board = board_on(observation)
    found = seen_on(board, A, board.mix(A))
    assert not isinstance(found, Missing)
    [both] = found
    return both


def test_what_engines_count_themselves_is_added_up_and_the_range_of_their_batches_spans_all_of_them() -> None:
    told = engines(
        seen(AS_PREDICTED), preemptions=read(0.5), steps=read(90.0), read_bytes=read(1e11), inside_least=read(12.0),
        inside_most=read(31.0),
    )  # fmt: skip
    both = both_on(one_engine(told, steps=read(60.0), inside_least=read(7.0), inside_most=read(22.0)))
    assert (both.preemptions, both.steps, both.read_bytes) == (1.0, 150.0, 2e11)
    assert (both.inside_least, both.inside_most) == (7.0, 31.0)


def test_what_one_of_the_engines_does_not_tell_is_not_known_of_them_together() -> None:
    told = engines(
        seen(AS_PREDICTED), preemptions=read(0.5), steps=read(90.0), read_bytes=read(1e11), inside_least=read(12.0),
        inside_most=read(31.0), waiting_least=read(1.0),
    )  # fmt: skip
    silent = {"steps": GONE, "read_bytes": GONE, "preemptions": GONE, "inside_least": GONE, "inside_most": GONE}
    both = both_on(one_engine(told, waiting_least=GONE, **silent))
    assert (both.preemptions, both.steps, both.read_bytes, both.waiting) == (None, None, None, None)
    assert (both.inside_least, both.inside_most) == (None, None)


def test_the_latency_of_a_few_requests_is_known_too() -> None:
    """Less than one request a second ended: it has a latency like any other."""
    assert both_on(engines(seen(AS_PREDICTED), finished=read(0.2), itl_mean=read(0.02))).itl == pytest.approx(0.02)


def test_requests_that_ended_without_a_latency_do_not_tell_how_far_the_model_is_off() -> None:
    [noted] = standing(board_on(engines(seen(AS_PREDICTED), itl_mean=GONE)), A)
    assert (noted.engines, noted.off) == (2, None)


def test_nothing_stands_on_an_empty_gpu() -> None:
    assert standing(board_on(seen(AS_PREDICTED)), B) == ()


def test_the_model_is_asked_with_the_requests_that_came_to_all_engines_of_a_kin() -> None:
    """What comes and can be served is what is generated: two engines, 30 requests a second each, of 256 tokens."""
    for arrivals, tokens in ((30.0, 2 * 30.0 * 256.0), (0.5, 2 * 0.5 * 256.0), (0.0, 0.0)):
        board = board_on(engines(seen(AS_PREDICTED), arrivals=read(arrivals), output_mean=read(256.0)))
        found = seen_on(board, A, board.mix(A))
        assert not isinstance(found, Missing)
        made = under_its_arrivals(board, board.kind(A), found).groups[0].output_tokens_per_second
        assert made == pytest.approx(tokens, abs=0.1)


def test_a_model_that_knows_of_missing_cores_is_less_surprised_by_a_slow_engine() -> None:
    """The same latency on one core as on two: the model expected more of two."""
    short, enough = (
        standing(board_on(seen((STEP % (1.3, 1.3)).replace("batch: 64", f"batch: 64, cpu_cores: {cores}"))), A)[0].off
        for cores in (1, 2)
    )
    assert short is not None
    assert enough is not None
    assert short < 0.95 * enough


def test_the_company_of_a_gpu_is_told_by_serving_count_and_batch() -> None:
    board = board_on(seen(AS_PREDICTED))
    assert company(board.mix(A)) == "2 x team/chat 64"
