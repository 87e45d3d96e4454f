"""Live calibration in the loop: what windows teach, what must not move a belief, and when one is written."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from gpupack.decide.learning import Learning, due, learn, wrote
from gpupack.decide.prospect import coefficients_of, prior_of
from gpupack.decide.reconcile import reconcile
from gpupack.demo.hidden import CHAT, LENGTHS_CHANGE_AT, RATES, SHORT, UUID, Hidden, Scene, held, play, table, verdict
from gpupack.facts.belief import Belief
from gpupack.facts.experiment import Experiment, Judgement
from gpupack.facts.interpretation import interpret
from gpupack.facts.observation import Cause, EngineWindow, Holder, Measured, Missing, Observation, Reading
from gpupack.kube.profile_resource import belief_of, belief_to_dict, learned_profile
from gpupack.twin.memory_system import VLLM_V1, EngineCosts
from gpupack.units import Ratio, Seconds

from ..strategies import gpu, key, serving
from .world import World

SLOW = VLLM_V1.times(step=1.3, sequence=1.3, kv_read=0.7, eager=1.3, gemm=0.7)
FAST = VLLM_V1.times(step=0.7, sequence=0.7, kv_read=1.1, eager=0.7, gemm=1.3)


def off(played: Hidden, since: int, until: int) -> float:
    """The worst steady minute between these two."""
    return max(abs(each.learnt_off) for each in played.minutes if each.steady and since <= each.number < until)


def written(belief: Belief) -> Belief:
    """As it is read back."""
    found = belief_of({**learned_profile(belief), "status": belief_to_dict(belief)})
    assert found is not None
    return found


class Watch:
    """An operator that looks at a scene once a minute, and the last thing it saw."""

    def __init__(self, minutes: int, *, keeps: bool = True) -> None:
        self.scene = Scene(SLOW, 1, seed=1)
        self.learning = Learning()
        self.keeps = keeps
        self.writes: list[Belief] = []
        for number in range(minutes):
            self.minute(number)

    def minute(self, number: int = 0) -> None:
        self.scene.serve(60.0, RATES[number % len(RATES)], SHORT)
        self.seen = self.scene.observe()
        self.look(self.seen)

    def look(self, observation: Observation) -> None:
        self.learning = learn(interpret(observation), self.learning)
        for belief in due(self.learning, observation):
            self.writes.append(belief)
            self.learning = wrote(self.learning, belief)
            if self.keeps:
                self.scene.keep(written(belief))

    @property
    def belief(self) -> Belief:
        (mind,) = self.learning.minds.values()
        return mind.belief


@pytest.mark.parametrize("costs", [SLOW, FAST], ids=["30 % slower", "30 % faster"])
def test_from_30_percent_off_latencies_are_predicted_to_5_percent_within_10_minutes_of_mixed_load(
    costs: EngineCosts,
) -> None:
    played = play(1, engines=1, costs=costs)
    assert all(abs(each.first_off) > 0.15 for each in played.minutes if each.steady)
    assert off(played, 7, LENGTHS_CHANGE_AT) < 0.03
    assert off(played, LENGTHS_CHANGE_AT, LENGTHS_CHANGE_AT + 3) < 0.05, "lengths that change are followed in 3 minutes"
    assert played.written <= 3


def test_engines_that_share_a_gpu_tell_of_what_they_share() -> None:
    played = play(2, engines=2, minutes=8, costs=SLOW)
    assert off(played, 7, 8) < 0.05
    assert played.belief.step / played.first[0] == pytest.approx(1.3, abs=0.12)


Spoil = Callable[[EngineWindow], EngineWindow]


def _times(name: str, factor: float) -> Spoil:
    def spoil(window: EngineWindow) -> EngineWindow:
        was = getattr(window, name)
        assert isinstance(was, Reading)
        return replace(window, **{name: replace(was, value=was.value * factor)})  # type: ignore[arg-type]

    return spoil


def _old(window: EngineWindow) -> EngineWindow:
    def aged(measured: Measured) -> Measured:
        return replace(measured, at=Seconds(measured.at - 60.0)) if isinstance(measured, Reading) else measured

    return replace(window, itl_mean=aged(window.itl_mean))


def _gone(window: EngineWindow) -> EngineWindow:
    return replace(window, itl_mean=Missing(cause=Cause.NO_SERIES, origin="itl"))


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(_times("itl_mean", math.nan), id="not a number"),
        pytest.param(_times("itl_mean", 1000.0), id="milliseconds for seconds"),
        pytest.param(_times("itl_mean", 0.0), id="zero"),
        pytest.param(_times("itl_mean", -1.0), id="negative"),
        pytest.param(_times("generation_tokens", 1e-3), id="thousands of tokens for tokens"),
        pytest.param(_times("running_mean", 0.01), id="a share for a count"),
        pytest.param(_times("finished", 0.001), id="too few requests"),
        pytest.param(lambda window: replace(window, preemptions=replace(window.finished)), id="preemptions"),
        pytest.param(_old, id="stale"),
        pytest.param(_gone, id="absent"),
    ],
)
def test_a_metric_that_cannot_be_right_moves_no_belief(spoil: Spoil) -> None:
    watch = WATCHED
    seen = replace(
        watch.seen,
        engines=tuple(
            replace(each, judged=None if each.judged is None else spoil(each.judged)) for each in watch.seen.engines
        ),
    )
    assert _taught(watch, watch.seen), "the window as it was teaches"
    assert not _taught(watch, seen)


def _taught(watch: Watch, seen: Observation) -> bool:
    """Whether a look at that, one window later than the last, moves what is believed."""
    before = replace(
        watch.learning,
        watched={
            uuid: replace(each, looked_at=Seconds(seen.at - 60.0)) for uuid, each in watch.learning.watched.items()
        },
    )
    return learn(interpret(seen), before).minds != before.minds


WATCHED = Watch(3, keeps=False)


def test_dram_traffic_that_nobody_accounts_for_is_somebody_elses_and_teaches_nothing() -> None:
    (device,) = WATCHED.seen.gpus
    busy = replace(device, dram_active=Reading(value=0.99, at=WATCHED.seen.at, origin="dcgm"))
    assert not _taught(WATCHED, replace(WATCHED.seen, gpus=(busy,)))
    percents = replace(device, dram_active=Reading(value=40.0, at=WATCHED.seen.at, origin="dcgm"))
    assert _taught(WATCHED, replace(WATCHED.seen, gpus=(percents,))), "another scale says nothing, and nothing against"
    held = replace(WATCHED.seen, holders=(Holder(gpu_uuid=UUID, kind="Pod", name="a/b"),))
    assert not _taught(WATCHED, held)


def test_stale_mirrors_teach_nothing() -> None:
    assert not _taught(WATCHED, replace(WATCHED.seen, stale=("pods",)))


def _experiment(judgement: Judgement | None, at: Seconds) -> Experiment:
    return Experiment(
        serving=CHAT, gpu_uuid=UUID, step="Added", began_at=at, last_at=at, asked=False, before=(), company="1 x",
        gain=None, saturation=Ratio(0.5), itl=Seconds(0.01), inputs="", judgement=judgement,
    )  # fmt: skip


def test_nothing_is_written_while_a_step_is_judged_against_what_was_believed_before_it() -> None:
    watch = Watch(7, keeps=False)
    fresh = Learning(minds={each: replace(mind, told=None) for each, mind in watch.learning.minds.items()})
    assert watch.seen.plan is not None
    for judgement, written_now in ((None, 0), (Judgement.CONFIRMED, 1)):
        plan = replace(watch.seen.plan, experiments=(_experiment(judgement, watch.seen.at),))
        assert len(due(fresh, replace(watch.seen, plan=plan))) == written_now


def test_engines_on_trial_beside_others_teach_nothing() -> None:
    scene = Scene(SLOW, 2, seed=1)
    learning = Learning()
    for judgement in (None, None, Judgement.CONFIRMED):
        scene.serve(60.0, 20.0, SHORT)
        seen = scene.observe()
        assert seen.plan is not None
        seen = replace(seen, plan=replace(seen.plan, experiments=(_experiment(judgement, seen.at),)))
        learning = learn(interpret(seen), learning)
        (mind,) = learning.minds.values()
        assert (mind.belief.load > 0) == (judgement is not None)


def test_what_was_learnt_is_written_every_five_minutes_of_load_at_most_and_only_if_it_moved() -> None:
    watch = Watch(12)
    times = [each.at for each in watch.writes]
    assert len(times) in (1, 2)
    assert times[0] - watch.learning.watched[UUID].since >= 300.0
    assert all(late - early >= 300.0 for early, late in pairwise(times))
    (mind,) = watch.learning.minds.values()
    said = replace(mind, told=None, seen=replace(mind.belief, at=Seconds(0.0)))
    assert due(Learning(minds={mind.belief.key: said}), watch.seen) == ()


def test_another_process_goes_on_from_what_is_written_and_decides_alike() -> None:
    watch = Watch(7)
    seen = watch.scene.observe()
    (kept,) = seen.servings[0].learned
    (mind,) = learn(interpret(seen), Learning()).minds.values()
    assert mind.belief == kept
    assert mind.belief.load >= 300.0
    assert reconcile(seen) == reconcile(replace(seen, watched_since=None))


def test_a_profile_that_was_deleted_is_forgotten() -> None:
    watch = Watch(7)
    watch.look(watch.scene.observe())  # it is seen as it was written
    watch.scene.serving = replace(watch.scene.serving, learned=())
    watch.look(watch.scene.observe())
    assert watch.belief.load == 0.0


def test_decisions_use_what_is_written_for_this_kind_of_gpu_and_nothing_else() -> None:
    belief = written(Watch(7).writes[0])
    chat = replace(Scene(SLOW, 1, seed=1).serving, learned=(belief,))
    here, elsewhere = gpu(0).kind, gpu(1, "L4").kind
    believed = coefficients_of(chat, here)
    assert believed.host_per_step == pytest.approx(1.3 * prior_of(chat, here).host_per_step, rel=0.1)
    assert (believed.error, believed.source.word) == (belief.error, "Calibrated")
    assert coefficients_of(chat, elsewhere) == prior_of(chat, elsewhere)


def test_a_belief_that_moves_does_not_make_the_plan_flap() -> None:
    chat = replace(serving("chat", batch=48, itl=0.020), engine_version="0.8.5")
    belief = Watch(7).writes[0]
    mine = replace(belief, key=replace(belief.key, namespace=chat.key.namespace))
    settled = 0
    world = World([gpu(0), gpu(1)], [chat], {key("chat"): 60.0})
    for number, factor in enumerate((1.0, 1.03, 0.97, 1.03, 0.97)):
        step = Seconds(mine.step * factor)
        world.servings[key("chat")] = replace(chat, learned=(written(replace(mine, step=step)),))
        world.run(90.0 if number else 240.0)
        settled = settled if number else len(world.started)
    assert len(world.started) <= settled + 1, "one more may be needed, and then it stays"
    assert not world.stopped


def test_the_act_of_the_demo_holds_and_shows_truth_beside_belief() -> None:
    played = play(7, engines=1)
    assert held(played)
    shown = table(played)
    assert [column.header for column in shown.columns][1:4] == ["truth", "first belief", "learnt"]
    assert shown.row_count == len(played.truth)
    assert "minute 14" in verdict(played)
