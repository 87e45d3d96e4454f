"""What one window teaches, what it must pass, and what is written of it: rule by rule, without a twin."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from gpupack.decide.learning import LOOKS_A_TICK, Learning, Mind, Watched, due, learn, wrote
from gpupack.decide.prospect import belief_key, prior_of
from gpupack.facts.belief import Belief
from gpupack.facts.counter import Counter
from gpupack.facts.experiment import Experiment, Judgement
from gpupack.facts.interpretation import interpret
from gpupack.facts.observation import (
    Cause,
    EngineSeen,
    EngineWindow,
    GpuSeen,
    Holder,
    Measured,
    Missing,
    Observation,
    Phase,
    Reading,
    ReplicaSeen,
)
from gpupack.facts.placement import Placement, Plan
from gpupack.facts.serving import Profile, ProfilePoint, Serving, Shape, Sharing
from gpupack.perf import learning as filter_
from gpupack.perf import sharing
from gpupack.perf.learning import Prior
from gpupack.perf.prediction import EngineGroup
from gpupack.units import GIB, Bytes, PerSecond, Ratio, Seconds

from ..strategies import NOON, QUICK, gpu, serving
from .boards import A, B

CHAT = serving("chat")
KIND = gpu(0).kind
SHAPE = Shape(
    max_num_seqs=256, kv_cache_memory_bytes=Bytes(20 * GIB), max_num_batched_tokens=2048, max_model_len=8192
)  # fmt: skip
GAP = 1 / 256
"""Seconds between two tokens, a little more than is predicted of these engines at this batch, and exact in binary."""
BATCH = 16.0
NEVER = Missing(cause=Cause.NO_SERIES, origin="vllm")
Engine = tuple[Placement, EngineWindow | None]


def read(value: float | None) -> Measured:
    return NEVER if value is None else Reading(value=value, at=NOON, origin="test")


def window(seconds: float = 30.0, **values: float | None) -> EngineWindow:
    """Of an engine with a batch of 16 that makes a token each 1/256 s; None is not told."""
    told: dict[str, float | None] = {
        "arrivals": 16.0, "finished": 16.0, "prompt_tokens": 8192.0, "generation_tokens": BATCH / GAP,
        "preemptions": 0.0, "itl_mean": GAP, "itl_p95": GAP, "ttft_mean": None, "ttft_p95": None, "input_mean": 512.0,
        "output_mean": 256.0, "running_mean": BATCH, "waiting_least": 0.0, "inside_least": BATCH, "inside_most": BATCH,
        "steps": None, "read_bytes": None,
    }  # fmt: skip
    return EngineWindow(seconds=Seconds(seconds), **{name: read(each) for name, each in {**told, **values}.items()})


def engine(of: Serving = CHAT, on: str = A, *, slot: int = 0, shape: Shape = SHAPE, **values: float | None) -> Engine:
    placement = Placement(
        serving=of.key, gpu_uuid=on, slot=slot, sharing=Sharing.MPS, shape=shape, template_hash=of.template_hash,
        planned_at=Seconds(NOON - 900.0),
    )  # fmt: skip
    return placement, window(**values)


def pod(each: Placement, **fields: Any) -> ReplicaSeen:
    return ReplicaSeen(
        **{
            "name": each.name, "uid": each.name, "serving": each.serving, "gpu_uuid": each.gpu_uuid, "slot": each.slot,
            "sharing": each.sharing, "shape": each.shape, "template_hash": each.template_hash,
            "content_hash": each.content_hash, "phase": Phase.READY, "created_at": Seconds(NOON - 900.0),
            "ready_at": Seconds(NOON - 800.0), "deletion_at": None, "in_service": True, "address": "", **fields,
        }
    )  # fmt: skip


def pool(
    *engines: Engine, servings: Iterable[Serving] = (CHAT,), gpus: int = 2, kind: str = "H100-80GB",
    dram_active: float | None = None, **changes: Any,
) -> Observation:  # fmt: skip
    """GPUs with these engines, all of which have served for long."""
    cards = tuple(
        GpuSeen(gpu=gpu(number, kind), node_ready=True, dram_active=read(dram_active), fb_used=NEVER, power=NEVER)
        for number in range(gpus)
    )
    given: dict[str, Any] = {
        "at": NOON, "pool": "default", "pool_uid": "", "pool_generation": 1, "policy": QUICK,
        "plan": Plan(placements=tuple(each for each, _ in engines)), "servings": tuple(servings), "refused": (),
        "gpus": cards, "nodes": (), "holders": (), "claims": (), "replicas": tuple(pod(each) for each, _ in engines),
        "engines": tuple(_seen(each, told) for each, told in engines), "services": (),
    }  # fmt: skip
    return Observation(**{**given, **changes})


def _seen(each: Placement, told: EngineWindow | None) -> EngineSeen:
    return EngineSeen(
        replica=each.name, running=read(0.0), waiting=read(0.0), waiting_before=read(0.0), kv_usage=read(0.0),
        kv_blocks=read(1000.0), windows=(), peak_arrivals=NEVER, judged=told,
    )  # fmt: skip


def watched(observation: Observation, looked: float = 60.0, since: float = 900.0) -> dict[str, Watched]:
    """As if nothing had changed on any GPU since, and each was looked at a minute ago."""
    pods = interpret(observation).replicas_on
    return {
        uuid: Watched(
            engines=tuple((each.name, each.restarts) for each in here), since=Seconds(observation.at - since),
            looked_at=Seconds(observation.at - looked),
        )
        for uuid, here in pods.items()
    }  # fmt: skip


def look(observation: Observation, **before: Any) -> Learning:
    return learn(interpret(observation), Learning(**{"watched": watched(observation), **before}))


def belief_in(found: Learning, of: Serving = CHAT) -> Belief:
    return found.minds[belief_key(of, KIND)].belief


def teaches(*engines: Engine, **changes: Any) -> bool:
    """Whether a look at them moves what is believed of anybody."""
    return any(each.belief.load > 0 for each in look(pool(*engines, **changes)).minds.values())


def learnt(**values: float | None) -> Belief:
    """What one window of a lone engine makes of the prior."""
    return belief_in(look(pool(engine(**values))))


# When a GPU is looked at


@pytest.mark.parametrize("change", [{"stale": ("pods",)}, {"pool_problem": "no"}, {"plan": None}], ids=str)
def test_a_view_that_cannot_be_trusted_changes_nothing_that_was_learnt(change: dict[str, Any]) -> None:
    before = look(pool(engine()))
    assert learn(interpret(pool(engine(), **change)), before) is before


def test_models_are_known_before_anything_was_looked_at_and_gpus_without_engines_are_not_watched() -> None:
    found = learn(interpret(pool(engine())), Learning(scales={("L4", Counter.DCGM_DRAM_ACTIVE): (0.5,)}))
    assert list(found.minds) == [belief_key(CHAT, KIND)]
    assert list(found.watched) == [A]
    assert found.scales == {("L4", Counter.DCGM_DRAM_ACTIVE): (0.5,)}
    assert belief_in(found).load == 0


@pytest.mark.parametrize(
    ("looked", "since", "due_now"),
    [(30.0, 900.0, True), (29.9, 900.0, False), (39.0, 40.0, True), (39.0, 39.9, False)],
)
def test_a_gpu_teaches_once_a_window_from_the_warmup_on(looked: float, since: float, due_now: bool) -> None:
    """30 s each, after 10 s."""
    observation = pool(engine())
    found = look(observation, watched=watched(observation, looked, since))
    assert (belief_in(found).load > 0) == due_now
    assert (found.watched[A].looked_at == NOON) == due_now


def test_a_window_that_teaches_nothing_was_looked_at_all_the_same() -> None:
    found = look(pool(engine(itl_mean=None)))
    assert belief_in(found).load == 0
    assert found.watched[A].looked_at == NOON
    assert found.watched[A].since == NOON - 900.0


def test_eight_gpus_are_looked_at_a_tick_those_first_that_wait_longest() -> None:
    every = [engine(on=gpu(number).uuid) for number in range(LOOKS_A_TICK + 2)]
    observation = pool(*every, gpus=len(every))
    before = {
        uuid: replace(each, looked_at=Seconds(NOON - 60.0 - number % 3))
        for number, (uuid, each) in enumerate(watched(observation).items())
    }
    found = look(observation, watched=before)
    seen = [number for number, each in enumerate(found.watched.values()) if each.looked_at == NOON]
    assert seen == [0, 1, 2, 3, 4, 5, 7, 8]
    assert belief_in(found).load == 8 * 30.0


@pytest.mark.parametrize(
    ("fields", "still"),
    [
        pytest.param({"phase": Phase.STARTING}, False, id="starts"),
        pytest.param({"deletion_at": NOON}, False, id="leaves"),
        pytest.param({"restarts": 1}, True, id="was restarted"),
        pytest.param({"name": "another"}, True, id="is another one"),
    ],
)
def test_a_gpu_on_which_anything_changed_is_watched_anew_and_not_while_it_moves(
    fields: dict[str, Any], still: bool
) -> None:
    before = pool(engine(), engine(slot=1))
    first, second = before.replicas
    after = replace(before, replicas=(replace(first, **fields), second))
    found = learn(interpret(after), Learning(watched=watched(before)))
    engines = tuple((each.name, each.restarts) for each in interpret(after).replicas_on[A]) if still else ()
    assert found.watched == {A: Watched(engines=engines, since=NOON, looked_at=NOON)}
    if not still:
        later = replace(after, at=Seconds(NOON + 300.0))
        assert learn(interpret(later), found).watched[A].since == later.at


def test_a_clock_that_went_back_begins_the_watch_anew() -> None:
    observation = pool(engine())
    assert look(observation, watched=watched(observation, since=-1.0)).watched[A].since == NOON
    at_once = watched(observation, looked=0.0, since=0.0)
    assert look(observation, watched=at_once).watched == at_once


# Who is asked


def test_engines_that_do_not_have_the_gpu_for_themselves_teach_nothing() -> None:
    assert teaches(engine())
    assert not teaches(engine(), holders=(Holder(gpu_uuid=A, kind="Pod", name="a/b"),))
    stranger = pod(engine(slot=1)[0])
    assert not teaches(engine(), replicas=(*pool(engine()).replicas, stranger), engines=pool(engine()).engines)


def test_engines_of_a_serving_that_is_gone_teach_nothing() -> None:
    other = serving("other")
    assert not teaches(engine(), engine(other), servings=(other,))


def test_an_engine_that_cannot_be_read_makes_its_neighbours_latency_worthless() -> None:
    assert teaches(engine(), engine(slot=1))
    assert not teaches(engine(), engine(slot=1, running_mean=None))
    other = serving("other", model="opt-1.3b")
    assert teaches(engine(), engine(other), servings=(CHAT, other))
    assert not teaches(engine(), engine(other, itl_mean=None), servings=(CHAT, other))


def test_engines_on_trial_beside_others_teach_nothing_and_one_alone_does() -> None:
    tried = _experiment()
    for engines, expected in (((engine(),), True), ((engine(), engine(slot=1)), False)):
        plan = Plan(placements=tuple(each for each, _ in engines), experiments=(tried,))
        assert teaches(*engines, plan=plan) is expected
        judged = replace(plan, experiments=(replace(tried, judgement=Judgement.CONFIRMED),))
        assert teaches(*engines, plan=judged)
        elsewhere = replace(plan, experiments=(replace(tried, gpu_uuid=B),))
        assert teaches(*engines, plan=elsewhere)


def _experiment(of: Serving = CHAT) -> Experiment:
    return Experiment(
        serving=of.key, gpu_uuid=A, step="Added", began_at=NOON, last_at=NOON, asked=False, before=(), company="1 x",
        gain=None, saturation=Ratio(0.5), itl=Seconds(GAP), inputs="",
    )  # fmt: skip


# What a window must pass


@pytest.mark.parametrize(
    ("values", "taught"),
    [
        ({"finished": 20 / 30}, True),
        ({"finished": 19.9 / 30}, False),
        ({"running_mean": 0.5, "generation_tokens": 0.5 / GAP}, True),
        ({"running_mean": 0.49, "generation_tokens": 0.49 / GAP}, False),
        ({"finished": 10.0, "preemptions": 0.1}, True),
        ({"finished": 10.0, "preemptions": 0.11}, False),
        ({"preemptions": None}, True),
        ({"generation_tokens": 1.5 * BATCH / GAP}, True),
        ({"generation_tokens": 1.51 * BATCH / GAP}, False),
        ({"generation_tokens": 0.67 * BATCH / GAP}, True),
        ({"generation_tokens": 0.66 * BATCH / GAP}, False),
        ({"itl_mean": 0.0}, False),
        ({"itl_mean": None}, False),
    ],
)
def test_a_window_of_few_requests_or_that_contradicts_itself_teaches_nothing(
    values: dict[str, float | None], taught: bool
) -> None:
    """20 requests, half a sequence, one preemption in a hundred; tokens a second times a gap is the batch, to 1.5."""
    assert teaches(engine(**values)) is taught


@pytest.mark.parametrize(("shown", "taught"), [(0.49, True), (0.51, False), (None, True)])
def test_traffic_beyond_twice_what_the_engines_count_and_a_tenth_is_somebody_elses(
    shown: float | None, taught: bool
) -> None:
    assert teaches(engine(read_bytes=0.2 * KIND.dram_bytes_per_second), dram_active=shown) is taught
    half = {"read_bytes": 0.1 * KIND.dram_bytes_per_second}
    assert teaches(engine(**half), engine(slot=1, **half), dram_active=shown) is taught, "together"


def _share(**values: float | None) -> float:
    """What the engine is taken to move of the peak, where the counter shows a tenth."""
    found = look(pool(engine(**values), dram_active=0.1))
    [[logarithm]] = found.scales.values()
    return 0.1 / math.exp(logarithm)


def test_traffic_is_what_engines_count_else_their_steps_times_what_a_step_reads() -> None:
    assert _share(read_bytes=0.15 * KIND.dram_bytes_per_second) == pytest.approx(0.15)
    weights = CHAT.llm.weight_bytes(CHAT.dtype)
    cache = BATCH * (512.0 + 128.0) * CHAT.llm.kv_bytes_per_token(CHAT.dtype)
    slow = {"itl_mean": 4 * GAP, "generation_tokens": BATCH / GAP / 4}
    assert _share(**slow) == pytest.approx((weights + cache) / (4 * GAP) / KIND.dram_bytes_per_second, rel=0.1)


@pytest.mark.parametrize(("running", "inside"), [(0.1, 1.0508), (1.0, 1.5820), (3.0, 3.1572)])
def test_the_batch_of_a_step_is_larger_than_that_of_a_moment_because_no_step_is_empty(
    running: float, inside: float
) -> None:
    """That of sequences which come and go by chance: running / (1 - e^-running)."""
    weights = CHAT.llm.weight_bytes(CHAT.dtype)
    cache = inside * (512.0 + 128.0) * CHAT.llm.kv_bytes_per_token(CHAT.dtype)
    found = _share(running_mean=running, generation_tokens=60.0 * inside)
    assert found == pytest.approx(60.0 * (weights + cache) / KIND.dram_bytes_per_second, rel=0.03)


def test_an_engine_that_is_idle_moves_nothing() -> None:
    idle = {"running_mean": 0.0, "generation_tokens": 0.0, "arrivals": 0.0, "finished": 0.0}
    assert look(pool(engine(**idle), dram_active=0.05)).scales == {}


# What it says


def test_a_gap_between_tokens_that_is_longer_than_predicted_makes_a_step_longer() -> None:
    assert learnt(itl_mean=0.8 * GAP).step < FRESH.step < learnt(itl_mean=1.2 * GAP).step


def test_steps_tell_only_of_an_engine_that_is_never_idle() -> None:
    """Three sequences; one step a gap is what its own latency says already, two as many say otherwise."""
    always = {"running_mean": 3.0, "generation_tokens": 3.0 / GAP}
    assert learnt(**always, steps=2 / GAP).step < learnt(**always).step
    at_times = {"running_mean": 2.9, "generation_tokens": 2.9 / GAP}
    assert learnt(**at_times, steps=2 / GAP) == learnt(**at_times)
    assert learnt(**always, steps=0.0) == learnt(**always)


def test_steps_are_those_of_one_engine() -> None:
    told = [belief_in(look(pool(*(engine(slot=slot, steps=each) for slot in range(2))))) for each in (1 / GAP, 2 / GAP)]
    alone = belief_in(look(pool(*(engine(slot=slot) for slot in range(2)))))
    assert told[0].step == pytest.approx(alone.step, rel=0.01)
    assert told[1].step < 0.98 * alone.step


@pytest.mark.parametrize(
    ("values", "tells"),
    [
        pytest.param({}, True, id="nobody waits"),
        pytest.param({"waiting_least": 1.0}, False, id="somebody waits"),
        pytest.param({"waiting_least": None}, False, id="nobody counts who waits"),
        pytest.param({"running_mean": 7.0, "generation_tokens": 7.0 / GAP}, False, id="70 % of the batch limit"),
        pytest.param({"running_mean": 6.9, "generation_tokens": 6.9 / GAP}, True, id="less than 70 % of it"),
        pytest.param({"arrivals": 1e4}, False, id="more comes than can be served"),
        pytest.param({"ttft_mean": 0.0}, False, id="no time at all"),
    ],
)
def test_a_first_token_tells_only_where_nobody_waits_for_a_slot(values: dict[str, float | None], tells: bool) -> None:
    ten = replace(SHAPE, max_num_seqs=10)

    def told(ttft: float | None) -> Belief:
        said = {"running_mean": 4.0, "generation_tokens": 4.0 / GAP, "arrivals": 4.0, "ttft_mean": ttft, **values}
        return belief_in(look(pool(engine(shape=ten, **said))))

    assert (told(values.get("ttft_mean", 0.010)) != told(None)) is tells


def test_a_first_token_tells_of_prefill_and_not_of_the_gaps_after_it() -> None:
    late, none = learnt(ttft_mean=0.010), learnt(ttft_mean=None)
    assert late.gemm < 0.95 * none.gemm
    assert late.step == pytest.approx(none.step, rel=0.05)


def test_more_requests_teach_more() -> None:
    def doubt(finished: float) -> float:
        return sum(row[index] for index, row in enumerate(learnt(finished=finished).covariance))

    assert doubt(1.0) > doubt(4.0) > doubt(16.0)
    assert doubt(64.0) == pytest.approx(doubt(256.0), rel=1e-3), "the model is no surer than it is"


def test_a_batch_that_swings_teaches_less_and_one_of_which_nobody_tells_swings_by_chance() -> None:
    """The range of what was found inside is four standard deviations; that of chance is the root of the mean."""
    poisson = learnt(inside_least=BATCH - 2 * math.sqrt(BATCH), inside_most=BATCH + 2 * math.sqrt(BATCH))
    assert learnt(inside_least=None) == poisson
    assert learnt(inside_most=None) == poisson
    steady, wild = learnt(), learnt(inside_least=0.0, inside_most=48.0)
    assert FRESH.step < wild.step < poisson.step < steady.step


def test_what_waits_beyond_the_batch_limit_is_no_swing_of_the_batch() -> None:
    full = {"running_mean": 64.0, "generation_tokens": 64.0 / GAP}
    shape = replace(SHAPE, max_num_seqs=64)

    def of(least: float, most: float) -> Belief:
        return belief_in(look(pool(engine(shape=shape, inside_least=least, inside_most=most, **full))))

    assert of(100.0, 900.0) == of(64.0, 64.0) != of(32.0, 64.0)


def test_a_belief_keeps_the_range_of_batches_the_last_lengths_and_how_long_was_looked() -> None:
    first = learnt(input_mean=300.0, output_mean=200.0)
    assert (first.batch_least, first.batch_most, first.load, first.at) == (BATCH, BATCH, 30.0, NOON)
    assert (first.input_mean, first.output_mean) == (300.0, 200.0)
    other = serving("other")
    quiet, busy = ({"running_mean": each, "generation_tokens": each / GAP} for each in (8.0, 32.0))
    observation = pool(
        engine(**quiet), engine(other, seconds=28.0, input_mean=100.0, output_mean=50.0, **busy),
        servings=(CHAT, other),
    )  # fmt: skip
    both = belief_in(look(observation))
    assert (both.batch_least, both.batch_most, both.load) == (8.0, 32.0, 30.0)
    assert (both.input_mean, both.output_mean) == (100.0, 50.0)
    again = belief_in(look(pool(engine()), minds=look(observation).minds))
    assert (again.batch_least, again.batch_most, again.load) == (8.0, 32.0, 60.0)
    later = replace(pool(engine()), at=Seconds(NOON + 1.0))
    assert belief_in(look(later, minds=look(observation).minds)).at == later.at


def test_what_was_learnt_fades_with_load_and_not_in_a_window_that_is_a_moment() -> None:
    taught = look(pool(engine()))
    [[mind_key, mind]] = taught.minds.items()
    unmoved = replace(mind, belief=replace(mind.belief, covariance=((1e-12,) * 5,) * 5))
    faded = look(pool(engine(itl_mean=GAP)), minds={mind_key: unmoved}).minds[mind_key].belief
    share = 1 - math.exp(-30.0 / 86_400.0)
    assert max(max(row) for row in faded.covariance) == pytest.approx(share * 0.25**2, rel=0.05)


@pytest.mark.parametrize(("engines", "rate"), [(1, 20.0), (1, 0.7), (2, 20.0)])
def test_a_window_that_is_as_predicted_moves_no_cost_and_takes_a_fifth_of_the_misfit_away(
    engines: int, rate: float
) -> None:
    """Requests a second of each engine make a first token later, and so they must be in the prediction."""
    how = Sharing.among(engines)
    said = replace(_group(CHAT, {}), replicas=engines, request_rate=PerSecond(rate * engines))
    [gap], [first] = sharing.itl_at(KIND, (said,), (BATCH,), how), sharing.first_token_means(KIND, (said,), how)
    values = {"itl_mean": gap, "ttft_mean": first, "generation_tokens": BATCH / gap, "arrivals": rate}
    found = belief_in(look(pool(*(engine(slot=slot, **values) for slot in range(engines)))))
    assert found.coefficients == pytest.approx(FRESH.coefficients)
    assert found.error == pytest.approx(0.8 * FRESH.error)


def test_a_first_token_of_one_model_tells_beside_another_that_has_none() -> None:
    other = serving("other", model="opt-1.3b")
    alone, told = (
        belief_in(look(pool(engine(ttft_mean=first), engine(other), servings=(CHAT, other)))) for first in (None, 0.010)
    )
    assert told.gemm < 0.95 * alone.gemm


def test_a_window_of_numbers_beyond_belief_is_no_load() -> None:
    """Three times as slow as predicted and more."""
    slow = {"itl_mean": 8 * GAP, "generation_tokens": BATCH / GAP / 8}
    assert not teaches(engine(**slow))


def _group(of: Serving, scales: dict[str, float]) -> EngineGroup:
    prior = prior_of(of, KIND)
    return EngineGroup(
        llm=of.llm, dtype=of.dtype, shape=SHAPE, lengths=of.lengths, replicas=1, request_rate=None,
        coefficients=replace(prior, **{name: getattr(prior, name) * factor for name, factor in scales.items()}),
        cores=of.cpu_cores,
    )  # fmt: skip


def test_two_models_on_one_gpu_are_each_believed_what_is_true_of_them() -> None:
    """A step of the first takes the host longer than the catalog says, one of the second less long."""
    second = serving("other", model="opt-1.3b")
    true = (_group(CHAT, {"host_per_step": 1.6}), _group(second, {"host_per_step": 0.6}))
    minds: dict[Any, Mind] = {}
    for number in range(8):
        batches = (BATCH * (1 + number % 3), BATCH * (4 - number % 3))
        gaps = sharing.itl_at(KIND, true, batches, Sharing.MPS)
        first, other = (
            engine(of, itl_mean=gap, running_mean=batch, generation_tokens=batch / gap,
                   inside_least=batch, inside_most=batch)
            for of, gap, batch in zip((CHAT, second), gaps, batches, strict=True)
        )  # fmt: skip
        minds = dict(look(pool(first, other, servings=(CHAT, second)), minds=minds).minds)
    ranges = {(each.belief.batch_least, each.belief.batch_most) for each in minds.values()}
    assert ranges == {(16.0, 48.0), (32.0, 64.0)}
    believed = tuple(
        replace(each, coefficients=filter_.as_learnt(prior_of(of, KIND), of.llm, minds[belief_key(of, KIND)].belief))
        for each, of in zip(true, (CHAT, second), strict=True)
    )
    assert sharing.itl_at(KIND, believed, (32.0, 32.0), Sharing.MPS) == pytest.approx(
        sharing.itl_at(KIND, true, (32.0, 32.0), Sharing.MPS), rel=0.03
    )


# What is remembered of each model


def _prior(of: Serving) -> Prior:
    return Prior(coefficients=prior_of(of, KIND), layers=of.llm.layers)


def _belief(**fields: Any) -> Belief:
    return replace(filter_.begun(belief_key(CHAT, KIND), _prior(CHAT), Seconds(NOON - 600.0)), **fields)


OLD, OTHER = _belief(load=Seconds(60.0)), _belief(load=Seconds(90.0), at=Seconds(NOON - 500.0))
TOLD = _belief(load=Seconds(60.0), at=Seconds(OTHER.at + 0.7))
FRESH = filter_.begun(belief_key(CHAT, KIND), _prior(CHAT), NOON)


def _mind(belief: Belief, seen: Belief | None = None, told: Belief | None = None) -> Mind:
    return Mind(belief=belief, prior=_prior(CHAT), seen=seen, told=told)


@pytest.mark.parametrize(
    ("before", "written", "after"),
    [
        pytest.param(None, None, _mind(FRESH), id="nothing is known"),
        pytest.param(None, OLD, _mind(OLD, OLD), id="a process that begins takes what is written"),
        pytest.param(_mind(OLD), None, _mind(OLD), id="what nobody wrote yet is remembered"),
        pytest.param(_mind(OTHER, OLD, OLD), None, _mind(FRESH), id="what was deleted is forgotten"),
        pytest.param(_mind(OTHER, OLD), OLD, _mind(OTHER, OLD), id="what was written is still there"),
        pytest.param(_mind(OLD, None, TOLD), OTHER, _mind(OLD, OTHER, TOLD), id="its own words, to the second"),
        pytest.param(_mind(OLD, None, OLD), OTHER, _mind(OTHER, OTHER), id="somebody else's words"),
        pytest.param(_mind(OLD, OLD), OTHER, _mind(OTHER, OTHER), id="somebody else's words, later"),
    ],
)
def test_what_is_written_is_taken_over_and_what_was_deleted_is_forgotten(
    before: Mind | None, written: Belief | None, after: Mind
) -> None:
    asked = CHAT if written is None else replace(CHAT, learned=(written,))
    minds = {} if before is None else {OLD.key: before}
    found = learn(interpret(pool(servings=(asked,), gpus=1)), Learning(minds=minds))
    assert found.minds == {OLD.key: after}


PROFILE = Profile(
    name="measured", gpu_kind=KIND.name, engine_version=CHAT.engine_version, lengths=CHAT.lengths,
    points=tuple(
        ProfilePoint(max_num_seqs=batch, total_tokens_per_second=rate, itl_mean=Seconds(itl))
        for batch, rate, itl in ((8, 6000.0, 0.004), (32, 18000.0, 0.005), (128, 40000.0, 0.009))
    ),
)  # fmt: skip


@pytest.mark.parametrize("seen", [None, OLD])
def test_a_profile_that_comes_later_is_the_new_place_to_start_from(seen: Belief | None) -> None:
    measured = replace(CHAT, profile=PROFILE, learned=() if seen is None else (seen,))
    found = learn(interpret(pool(servings=(measured,), gpus=1)), Learning(minds={OLD.key: _mind(OLD, seen)}))
    assert found.minds[OLD.key] == replace(_mind(OLD, seen), prior=_prior(measured))
    told = learn(interpret(pool(servings=(replace(measured, learned=(OTHER,)),), gpus=1)),
                 Learning(minds={OLD.key: _mind(OLD, None, TOLD)}))  # fmt: skip
    assert told.minds[OLD.key].prior == _prior(measured)


def test_of_servings_with_one_model_the_first_by_name_says_where_to_start_from() -> None:
    first, second = CHAT, replace(serving("later"), profile=PROFILE)
    found = learn(interpret(pool(servings=(second, first), gpus=1)), Learning())
    assert {each.prior for each in found.minds.values()} == {_prior(first)}


def test_a_kind_of_gpu_that_cannot_run_a_model_is_thought_of_only_where_something_is_known_of_it() -> None:
    key_ = belief_key(CHAT, gpu(0, "T4").kind)
    on_t4 = replace(OLD, key=key_)
    nothing = pool(gpus=1, kind="T4")
    assert learn(interpret(nothing), Learning()).minds == {}
    assert set(learn(interpret(nothing), Learning(minds={key_: _mind(on_t4)})).minds) == {key_}
    written = pool(gpus=1, kind="T4", servings=(replace(CHAT, learned=(on_t4,)),))
    assert set(learn(interpret(written), Learning()).minds) == {key_}


def test_a_serving_that_only_observes_is_not_thought_of() -> None:
    assert learn(interpret(pool(servings=(replace(CHAT, observes=True),))), Learning()).minds == {}


# What is written


def writes(mind: Mind, observation: Observation | None = None, at: float = NOON) -> tuple[Belief, ...]:
    looked = pool() if observation is None else observation
    return due(Learning(minds={mind.belief.key: mind}), replace(looked, at=Seconds(at)))


FAR = _belief(load=QUICK.learning_interval, step=Seconds(2 * OLD.step))
"""Something that is worth writing, of just enough load."""


def test_what_has_moved_is_written_with_the_time_of_it() -> None:
    assert writes(_mind(FAR)) == (replace(FAR, at=NOON),)


def test_what_is_written_already_is_not_written_again_however_far_from_the_prior() -> None:
    assert writes(_mind(FAR, replace(FAR, at=OLD.at))) == ()


@pytest.mark.parametrize("change", [{"stale": ("pods",)}, {"pool_problem": "no"}, {"plan": None}], ids=str)
def test_nothing_is_written_from_a_view_that_cannot_be_trusted(change: dict[str, Any]) -> None:
    assert writes(_mind(FAR), pool(**change)) == ()


def test_nothing_is_written_before_an_interval_of_load() -> None:
    assert writes(_mind(replace(FAR, load=Seconds(QUICK.learning_interval - 1.0)))) == ()


@pytest.mark.parametrize("told", [False, True], ids=["as was seen", "as was asked for"])
@pytest.mark.parametrize(("ago", "written"), [(299.0, False), (300.0, True), (0.0, False), (-1.0, True)])
def test_at_most_one_write_an_interval_by_a_clock_that_may_go_back(told: bool, ago: float, written: bool) -> None:
    last = replace(OLD, at=Seconds(NOON - ago))
    mind = _mind(FAR, replace(OLD, at=Seconds(NOON - 1000.0)), last) if told else _mind(FAR, last)
    assert bool(writes(mind)) is written


@pytest.mark.parametrize("name", ["step", "sequence", "kv_read", "eager", "gemm"])
@pytest.mark.parametrize(("factor", "written"), [(1.021, True), (1.019, False), (1 / 1.021, True), (1 / 1.019, False)])
@pytest.mark.parametrize("last", [None, OLD], ids=["since the prior", "since it was written"])
def test_a_coefficient_is_written_when_it_has_moved_by_two_per_cent(
    name: str, factor: float, written: bool, last: Belief | None
) -> None:
    moved = _belief(load=Seconds(900.0), **{name: getattr(OLD, name) * factor})
    assert bool(writes(_mind(moved, last))) is written


@pytest.mark.parametrize(("by", "written"), [(0.021, True), (0.019, False), (-0.021, True), (-0.019, False)])
def test_an_error_is_written_when_it_has_moved_by_two_hundredths(by: float, written: bool) -> None:
    assert bool(writes(_mind(_belief(load=Seconds(900.0), error=Ratio(OLD.error + by)), OLD))) is written


@pytest.mark.parametrize(
    ("beside", "written"),
    [
        pytest.param(serving("other"), False, id="of the same model"),
        pytest.param(serving("other", model="opt-1.3b"), True, id="of another model"),
        pytest.param(serving("other", namespace="far"), True, id="of another namespace"),
        pytest.param(replace(serving("other"), engine_version="0.8.5"), True, id="of another engine version"),
    ],
)
def test_nothing_is_written_of_a_model_of_which_any_engine_is_on_trial(beside: Serving, written: bool) -> None:
    placed, _ = engine(beside)
    servings = (CHAT, beside, serving("elsewhere", model="opt-1.3b"))
    plan = Plan(placements=(placed,), experiments=(_experiment(beside),))
    assert bool(writes(_mind(FAR), pool(servings=servings, plan=plan))) is written
    judged = replace(plan, experiments=(replace(_experiment(beside), judgement=Judgement.CONFIRMED),))
    assert writes(_mind(FAR), pool(servings=servings, plan=judged))
    elsewhere = replace(plan, placements=(replace(placed, gpu_uuid=B),))
    assert writes(_mind(FAR), pool(servings=servings, plan=elsewhere))


def test_a_model_on_trial_does_not_keep_others_from_being_written() -> None:
    other = serving("other", model="opt-1.3b")
    theirs = replace(FAR, key=belief_key(other, KIND))
    minds = {each.key: Mind(belief=each, prior=_prior(CHAT)) for each in (FAR, theirs)}
    plan = Plan(placements=(engine()[0],), experiments=(_experiment(),))
    assert due(Learning(minds=minds), pool(servings=(CHAT, other), plan=plan)) == (replace(theirs, at=NOON),)


def test_what_was_asked_to_be_written_is_remembered_of_who_is_thought_of() -> None:
    before = Learning(minds={OLD.key: _mind(OLD)}, watched=watched(pool(engine())))
    assert wrote(before, FAR) == replace(before, minds={OLD.key: _mind(OLD, None, FAR)})
    assert wrote(before, replace(FAR, key=replace(FAR.key, model="another"))) is before
