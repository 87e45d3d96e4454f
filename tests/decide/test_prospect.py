"""What is predicted of engines on a GPU: with whose lengths, memory and coefficients, and that a mix is asked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from gpupack import catalog
from gpupack.decide.prospect import (
    LENGTHS_FROM,
    Kin,
    Prospects,
    belief_key,
    belief_of,
    coefficients_of,
    live_lengths,
    measured_lengths,
    mix_of,
    prior_of,
    rounded,
    with_one,
)
from gpupack.facts.interpretation import EngineFacts, Facts, Known, Traffic, interpret
from gpupack.facts.llm import Dtype
from gpupack.facts.observation import Cause, Missing, Phase, ReplicaSeen
from gpupack.facts.placement import Lesson, Plan
from gpupack.facts.serving import Lengths, Profile, ProfilePoint, Serving, ServingKey, Shape
from gpupack.perf.calibration import coefficients
from gpupack.perf.memory import default_shape, replica_memory
from gpupack.units import GIB, Bytes, Seconds

from ..kube.objects import BELIEF
from ..strategies import gpu, key, serving
from .boards import seen
from .world import World

H100, L4 = catalog.gpu("H100-80GB"), catalog.gpu("L4")
CHAT, CODE = key("chat"), key("code")
ONE = "gpus: {a: }\nservings: {chat: {batch: 64}}\nreplicas: [{serving: chat, gpu: a}]"
NONE = Missing(cause=Cause.NO_SERIES, origin="test")
DECLARED = Lengths(input_mean=512.0, output_mean=256.0, input_cv=0.7, assumed=True)


def shape(batch: int) -> Shape:
    return replace(default_shape(catalog.llm("llama-3.2-1b"), Dtype.BFLOAT16, H100), max_num_seqs=batch)


def facts_of(*servings: Serving, plan: Plan | None = None) -> Facts:
    return replace(interpret(World([gpu(0)], list(servings), {}).observe()), plan=plan)


def prospects(*servings: Serving, plan: Plan | None = None) -> Prospects:
    return Prospects(facts_of(*(servings or (serving("chat"),)), plan=plan))


def window(*, finished: Known = 1.0, given: Known = 100.0, made: Known = 50.0, seconds: float = 100.0) -> Traffic:
    return Traffic(
        seconds=Seconds(seconds), arrivals=NONE, finished=finished, generation_tokens=NONE, itl_mean=NONE, itl_p95=NONE,
        ttft_mean=NONE, ttft_p95=NONE, input_mean=given, output_mean=made, running_mean=NONE, inside_least=NONE,
        inside_most=NONE,
    )  # fmt: skip


def engine(*windows: Traffic) -> EngineFacts:
    return EngineFacts(
        running=NONE, waiting=NONE, waiting_before=NONE, kv_blocks=NONE, windows=windows, peak_arrivals=NONE
    )


def test_a_mix_is_in_order_and_one_more_or_less_keeps_it() -> None:
    of = prospects(serving("chat"), serving("code"))
    small, large, other = of.kin(CHAT, shape(8)), of.kin(CHAT, shape(16)), of.kin(CODE, shape(8))
    mix = mix_of([other, large, small, large])
    assert mix == ((small, 1), (large, 2), (other, 1))
    assert with_one(((small, 1), (other, 1)), large) == ((small, 1), (large, 1), (other, 1))
    assert with_one(((large, 1),), small) == ((small, 1), (large, 1))
    assert with_one(((small, 1),), other) == ((small, 1), (other, 1))
    assert with_one(mix, large) == ((small, 1), (large, 3), (other, 1))
    assert with_one(mix, small, -1) == ((large, 2), (other, 1))


def test_what_is_not_in_a_mix_cannot_be_taken_out_of_it() -> None:
    of = prospects(serving("chat"), serving("code"))
    small, large = of.kin(CHAT, shape(8)), of.kin(CHAT, shape(16))
    assert with_one(((large, 1),), small, -1) == ((large, 1),)
    assert with_one(((small, 1),), large, -1) == ((small, 1),)
    assert with_one((), small, -1) == ()


def test_a_length_is_rounded_to_the_nearest_twentieth_and_nothing_stays_nothing() -> None:
    assert rounded(0.0) == 0.0
    for value in (0.3, 1.0, 97.0, 4000.0):
        assert rounded(value) == pytest.approx(value, rel=0.025)
        assert rounded(rounded(value) * 1.02) == rounded(value)
        assert rounded(rounded(value) * 1.03) == pytest.approx(1.05 * rounded(value))


def test_engines_of_one_serving_and_shape_are_one_kin_and_a_serving_that_is_gone_is_not_known() -> None:
    of = prospects()
    kin = of.kin(ServingKey(namespace="team", name="chat"), shape(8))
    assert of.kin(ServingKey(namespace="team", name="chat"), shape(8)) is kin
    assert of.kin(CHAT, shape(16)).serving is kin.serving
    assert of.knows(((kin, 1),))
    assert not of.knows(((kin, 1), (of.kin(CODE, shape(8)), 1)))


def test_each_count_rate_and_kin_has_an_answer_of_its_own() -> None:
    of = prospects(serving("chat"), serving("long", lengths=Lengths(input_mean=2000.0, output_mean=256.0)))
    kin, other = of.kin(CHAT, shape(64)), of.kin(key("long"), shape(64))

    def tokens(kin: Kin, count: int, rate: float | None) -> float:
        return of.at_rates(H100, ((kin, count),), (rate,)).total_tokens_per_second

    asked: list[tuple[Kin, int, float | None]] = [
        (kin, 1, None), (kin, 2, None), (kin, 1, 2.0), (kin, 1, 4.0), (other, 1, None), (other, 1, 2.0), (kin, 3, 2.0)
    ]  # fmt: skip
    answers = [tokens(*each) for each in asked]
    assert len(set(answers)) == len(asked)
    assert [tokens(*each) for each in asked] == answers
    light = 768.0 * 2.0
    assert tokens(kin, 1, 2.0) == pytest.approx(light)
    assert tokens(kin, 3, 2.0) == pytest.approx(3 * light), "the rate is each engine's, not theirs together"
    assert tokens(kin, 1, 0.25) == pytest.approx(768.0 * 0.25), "also where less than one request a second comes"


def test_none_of_a_servings_rates_keeps_its_engines_full() -> None:
    of = prospects(serving("chat"), serving("code"))
    mix = ((of.kin(CHAT, shape(64)), 1), (of.kin(CODE, shape(64)), 1))
    assert of.loaded(H100, mix, {}) == of.full(H100, mix)
    light = of.loaded(H100, mix, {CHAT: 1.0})
    assert light.groups[0].total_tokens_per_second == pytest.approx(768.0)
    assert light.groups[1].total_tokens_per_second > of.full(H100, mix).groups[1].total_tokens_per_second


def test_the_worth_of_a_mix_counts_in_lone_engines() -> None:
    of = prospects(serving("chat"), serving("code", model="llama-3.2-3b"))
    chat, code = of.kin(CHAT, shape(64)), of.kin(CODE, shape(64))
    assert of.worth(H100, ()) == 0.0
    assert of.worth(H100, ((chat, 1),)) == pytest.approx(1.0)
    assert of.worth(H100, ((code, 1),)) == pytest.approx(1.0)
    assert 1.0 < of.worth(H100, ((chat, 2),)) < 2.0
    two = of.full(H100, ((chat, 1), (code, 1))).groups
    alone = [of.full(H100, ((each, 1),)).groups[0] for each in (chat, code)]
    shares = [
        beside.total_tokens_per_second / one.total_tokens_per_second for beside, one in zip(two, alone, strict=True)
    ]
    assert of.worth(H100, ((chat, 1), (code, 1))) == pytest.approx(sum(shares))


def test_a_serving_finishes_what_its_own_engines_of_every_shape_make() -> None:
    of = prospects(serving("chat"), serving("code"))
    mix = ((of.kin(CHAT, shape(32)), 1), (of.kin(CHAT, shape(64)), 1), (of.kin(CODE, shape(64)), 1))
    made = [group.output_tokens_per_second for group in of.full(H100, mix).groups]
    assert of.finish_rate(H100, mix, key("chat")) == pytest.approx((made[0] + made[1]) / 256.0)
    assert of.finish_rate(H100, mix, key("code")) == pytest.approx(made[2] / 256.0)


def test_memory_that_a_failed_start_taught_comes_on_top_on_that_kind_of_gpu_alone() -> None:
    taught = Lesson(serving=CHAT, gpu_kind=H100.name, template_hash="template00", overhead=Bytes(2 * GIB))
    refused = Lesson(serving=CODE, gpu_kind=H100.name, template_hash="template00", refusal="no such flag")
    servings = serving("chat"), serving("code")
    plain, learnt = prospects(*servings), prospects(*servings, plan=Plan(lessons=(taught, refused)))
    own, other = learnt.kin(CHAT, shape(64)), learnt.kin(CODE, shape(64))
    untaught = plain.kin(CHAT, shape(64))
    parts = replica_memory(servings[0].llm, servings[0].dtype, shape(64), H100)
    assert learnt.memory_of(H100, own) == parts.total + 2 * GIB
    assert learnt.memory_of(H100, other) == plain.memory_of(H100, untaught) == parts.total
    assert learnt.memory_of(L4, own) == plain.memory_of(L4, untaught)
    assert learnt.most_memory_of(H100, own) == plain.most_memory_of(H100, untaught) + 2 * GIB
    assert learnt.most_memory_of(H100, other) == plain.most_memory_of(H100, untaught) >= parts.total
    assert learnt.overheads == {(CHAT, H100.name): 2 * GIB}


def test_an_engine_with_one_core_is_predicted_slower() -> None:
    def tokens(cores: int) -> float:
        of = prospects(serving("chat", cpu_cores=cores))
        return of.full(H100, ((of.kin(CHAT, shape(64)), 1),)).total_tokens_per_second

    assert tokens(1) < tokens(2)


POINTS = tuple(
    ProfilePoint(max_num_seqs=batch, total_tokens_per_second=rate, itl_mean=Seconds(itl))
    for batch, rate, itl in ((1, 300.0, 0.01), (8, 2300.0, 0.0105), (32, 8500.0, 0.0115), (96, 20000.0, 0.0145))
)


@pytest.mark.parametrize(("kind", "points"), [(L4.name, POINTS), (H100.name, ())], ids=["another GPU's", "empty"])
def test_a_profile_that_says_nothing_of_this_gpu_changes_nothing(kind: str, points: tuple[ProfilePoint, ...]) -> None:
    profile = Profile(name="p", gpu_kind=kind, engine_version="0.33.0", lengths=DECLARED, points=points)
    assert prior_of(replace(serving("chat"), profile=profile), H100) == coefficients("0.33.0")


def test_a_profile_of_this_gpu_moves_the_coefficients_and_what_load_taught_stands_above_it() -> None:
    profile = Profile(name="p", gpu_kind=H100.name, engine_version="0.33.0", lengths=DECLARED, points=POINTS)
    measured = replace(serving("chat"), profile=profile)
    assert prior_of(measured, H100) != coefficients("0.33.0")
    assert coefficients_of(measured, H100) == prior_of(measured, H100)


def test_of_several_beliefs_that_of_this_model_and_gpu_counts() -> None:
    chat = serving("chat")
    own, other = (replace(BELIEF, key=belief_key(chat, kind)) for kind in (H100, L4))
    taught = replace(chat, learned=(other, own))
    assert belief_of(taught, H100) == own
    assert belief_of(chat, H100) is None
    assert belief_of(replace(chat, learned=(other,)), H100) is None
    assert coefficients_of(taught, H100) != coefficients_of(chat, H100)


def test_lengths_are_those_that_came_weighed_by_how_many_finished() -> None:
    few, many = window(given=100.0, made=40.0), window(finished=3.0, given=200.0, made=80.0)
    found = measured_lengths(DECLARED, [engine(few), engine(window(given=9.0, made=9.0), many)])
    assert found == replace(DECLARED, input_mean=rounded(175.0), output_mean=rounded(70.0), assumed=False)


def test_lengths_want_fifty_finished_requests_and_both_means() -> None:
    assert LENGTHS_FROM == 50
    enough = window(finished=0.5)
    assert measured_lengths(DECLARED, [engine(enough)]) is not None
    assert measured_lengths(DECLARED, [engine(replace(enough, finished=0.499))]) is None
    assert measured_lengths(DECLARED, [engine(enough, replace(enough, seconds=Seconds(99.0)))]) is None
    for silent in (window(finished=NONE), window(given=NONE), window(made=NONE)):
        assert measured_lengths(DECLARED, [engine(silent)]) is None
        told = measured_lengths(DECLARED, [engine(silent), engine(), engine(window())])
        assert told is not None
        assert told.input_mean == rounded(100.0)
    assert measured_lengths(DECLARED, [engine(window(given=0.0))]) is None
    assert measured_lengths(DECLARED, [engine(window(made=0.0))]) is None


def test_engines_that_are_not_ready_tell_no_lengths() -> None:
    (replica, other, unseen) = (told_of(number) for number in range(3))
    engines = {replica.name: engine(window()), other.name: engine(window(given=400.0, made=200.0))}

    def lengths(phases: Mapping[str, Phase]) -> Lengths | None:
        pods = tuple(replace(each, phase=phases.get(each.name, Phase.READY)) for each in (replica, other, unseen))
        return live_lengths(
            serving("chat"), replace(facts_of(serving("chat")), engines=engines, replicas_of={CHAT: pods})
        )

    told = lengths({other.name: Phase.STARTING})
    assert told is not None
    assert told.input_mean == rounded(100.0)
    assert lengths({replica.name: Phase.FAILED, other.name: Phase.STOPPING}) is None


def told_of(number: int) -> ReplicaSeen:
    (pod,) = seen(ONE).replicas
    return replace(pod, name=f"chat-{number}", slot=number)


def test_predictions_are_made_with_the_lengths_that_came() -> None:
    (pod,) = seen(ONE).replicas
    facts = replace(facts_of(serving("chat")), engines={pod.name: engine(window())}, replicas_of={CHAT: (pod,)})
    assert Prospects(facts).lengths[CHAT].input_mean == rounded(100.0)
    assert prospects().lengths[CHAT] == serving("chat").lengths
