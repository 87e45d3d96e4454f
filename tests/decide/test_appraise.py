"""Engines that others started: what is said of them, when it is said anew, and that nothing is ever done."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpupack.decide.advise import Advice, advise
from gpupack.decide.appraise import appraise
from gpupack.decide.prospect import rounded
from gpupack.decide.question import question_of
from gpupack.decide.reconcile import reconcile
from gpupack.facts.engine_flags import EngineFlags
from gpupack.facts.interpretation import interpret
from gpupack.facts.observation import Cause, EngineSeen, EngineWindow, Measured, Missing, NodeSeen, Observation, Reading
from gpupack.facts.placement import Plan
from gpupack.facts.running import Appraisal, Better, EngineFound, RunningEngine
from gpupack.facts.serving import Lengths, Mode, Serving, Sharing, SharingWish
from gpupack.perf.calibration import coefficients
from gpupack.perf.memory import default_shape
from gpupack.perf.prediction import EngineGroup, GpuPrediction
from gpupack.perf.sharing import keeps, predict
from gpupack.plan import Outcome, Tell
from gpupack.units import GIB, Bytes, PerSecond, Ratio, Seconds

from ..strategies import NOON, QUICK, gpu, serving

WATCH = replace(serving("watch", mode=Mode.ADVISE), observes=True)
NONE = Missing(cause=Cause.NO_SERIES, origin="vllm:num_requests_running")


def engine(number: int, flags: EngineFlags | None = None, *, problem: str | None = None) -> RunningEngine:
    card = gpu(number)
    return RunningEngine(
        serving=WATCH.key, pod=f"plain-{number}", identity=f"uid-{number}/0", node=card.node, gpu_uuid=card.uuid,
        kind=card.kind, address=f"10.0.0.{number}:8000", flags=flags or EngineFlags(), problem=problem,
    )  # fmt: skip


def seen(each: RunningEngine, *, rate: float = 8.0, at: Seconds = NOON, served: tuple[str, ...] = ()) -> EngineSeen:
    def read(value: float) -> Measured:
        return Reading(value=value, at=at, origin="test")

    window = EngineWindow(
        seconds=QUICK.rate_windows[-1], arrivals=read(rate), finished=read(rate), prompt_tokens=NONE,
        generation_tokens=NONE, preemptions=NONE, itl_mean=read(0.004), itl_p95=NONE, ttft_mean=NONE, ttft_p95=NONE,
        input_mean=read(500.0), output_mean=read(250.0), running_mean=read(rate), waiting_least=NONE,
    )  # fmt: skip
    return EngineSeen(
        replica=each.key, running=read(rate), waiting=read(0.0), waiting_before=read(0.0), kv_usage=read(0.1),
        kv_blocks=read(130_000.0), windows=(window,), peak_arrivals=NONE, version="0.33.0", served=served,
    )  # fmt: skip


def world(*engines: RunningEngine, served: tuple[str, ...] = (), watch: Serving = WATCH) -> Observation:
    return Observation(
        at=NOON, pool="default", pool_uid="pool", pool_generation=1, policy=QUICK, plan=Plan(), servings=(watch,),
        refused=(), gpus=(), nodes=(NodeSeen(name="node-0", ready=True, cpu_cores=64.0, cpu_cores_of_others=0.0),),
        holders=(), claims=(), replicas=(), engines=tuple(seen(each, served=served) for each in engines), services=(),
        running=engines,
    )  # fmt: skip


def appraisal_of(outcome: Outcome) -> Appraisal:
    (status,) = outcome.serving_statuses
    assert status.appraisal is not None
    return status.appraisal


def later(observation: Observation, outcome: Outcome, seconds: float, rate: float) -> Observation:
    """The next look, with what was written and every engine at another rate."""
    at = Seconds(observation.at + seconds)
    return replace(
        observation,
        at=at,
        plan=outcome.pool_status.plan,
        appraisals=(appraisal_of(outcome),),
        engines=tuple(seen(each, rate=rate, at=at) for each in observation.running),
    )


def test_running_engines_get_shape_freed_memory_packing_gain_and_arguments() -> None:
    outcome = reconcile(world(engine(0), engine(1)))
    appraisal = appraisal_of(outcome)
    (better,) = appraisal.better
    assert (better.engines, better.gpus_now, better.gpus_needed) == (2, 2, 1)
    assert better.replicas_per_gpu >= 2
    assert better.freed_bytes > 30 * GIB
    assert better.gain is not None
    assert better.gain > 0.05
    assert [(each.max_num_seqs, each.running, each.itl_p95) for each in appraisal.engines] == [(1024, 8.0, None)] * 2
    (status,) = outcome.serving_statuses
    assert f"--max-num-seqs={better.shape.max_num_seqs}" in status.engine_args
    assert status.decision_reason == "Advised"
    assert all(isinstance(each, Tell) for each in outcome.actions)
    assert [each.warning for each in outcome.actions if isinstance(each, Tell)] == [False]
    assert outcome.pool_status.plan is not None
    assert outcome.pool_status.plan.placements == ()


def test_what_was_said_stands_while_figures_only_waver() -> None:
    first = world(engine(0))
    outcome = reconcile(first)
    soon = later(first, outcome, 2.0, rate=30.0)
    assert appraisal_of(reconcile(soon)) == appraisal_of(outcome)
    assert not reconcile(soon).plan_changed
    wavers = later(first, outcome, 3600.0, rate=8.5)
    assert appraisal_of(reconcile(wavers)) == appraisal_of(outcome)
    moved = later(first, outcome, 3600.0, rate=30.0)
    assert appraisal_of(reconcile(moved)).at == moved.at


def test_another_engine_is_another_appraisal_at_once() -> None:
    first = world(engine(0))
    outcome = reconcile(first)
    second = replace(later(first, outcome, 2.0, rate=8.0), running=(engine(0), engine(1)))
    assert [each.pod for each in appraisal_of(reconcile(second)).engines] == ["plain-0", "plain-1"]


PROBLEMS = [
    pytest.param(engine(1, problem="it is not ready (ImagePullBackOff)"), "it is not ready", id="not ready"),
    pytest.param(engine(1, EngineFlags(gpus=2)), "it runs over 2 GPUs", id="two GPUs"),
    pytest.param(replace(engine(1), kind=None), "nothing tells which kind of GPU", id="unknown kind"),
    pytest.param(engine(1, EngineFlags(tells_metrics=False)), "--disable-log-stats", id="no stats"),
    pytest.param(engine(1), "nothing answers http://10.0.0.1:8000/metrics", id="no answer"),
]


@pytest.mark.parametrize(("broken", "says"), PROBLEMS)
def test_a_pod_that_cannot_be_judged_is_named_with_the_cause_and_the_others_are_judged(
    broken: RunningEngine, says: str
) -> None:
    observation = world(engine(0), broken)
    silent = Missing(cause=Cause.UNREACHABLE, origin="vllm:num_requests_running")
    engines = tuple(
        replace(each, running=silent) if each.replica == broken.key else each for each in observation.engines
    )
    outcome = reconcile(replace(observation, engines=engines))
    whole, part = appraisal_of(outcome).engines
    assert whole.problem is None
    assert says in (part.problem or "")
    assert [each.engines for each in appraisal_of(outcome).better] == [1]
    assert f"plain-1: {part.problem}." in outcome.serving_statuses[0].decision_message


def test_an_engine_of_another_model_is_named() -> None:
    outcome = reconcile(world(engine(0), served=("Qwen/Qwen3-4B",)))
    (status,) = outcome.serving_statuses
    assert status.decision_reason == "NoEngine"
    assert "it serves Qwen/Qwen3-4B, not" in status.decision_message


@pytest.mark.parametrize("served", ["/models/mine", "s3://bucket/model", "meta-llama/Llama-3.2-1B", "chat"])
def test_a_path_or_an_alias_is_taken_for_the_model_that_the_serving_names(served: str) -> None:
    assert appraisal_of(reconcile(world(engine(0), served=(served,)))).better


def test_nothing_found_is_said_with_a_warning() -> None:
    outcome = reconcile(world())
    assert outcome.serving_statuses[0].decision_reason == "NoEngine"
    assert [each.warning for each in outcome.actions if isinstance(each, Tell)] == [True]


def test_an_engine_that_is_well_shaped_already_gains_nothing_more() -> None:
    """The advised shape appraised again brings no more than packing does."""
    (better,) = appraisal_of(reconcile(world(engine(0)))).better
    flags = EngineFlags(
        max_num_seqs=better.shape.max_num_seqs, max_model_len=better.shape.max_model_len,
        max_num_batched_tokens=better.shape.max_num_batched_tokens,
    )  # fmt: skip
    (again,) = appraisal_of(reconcile(world(engine(0, flags)))).better
    assert (again.shape, again.replicas_per_gpu) == (better.shape, better.replicas_per_gpu)
    assert again.gain is not None
    assert better.gain is not None
    assert again.gain >= 0.0


# What is known of an engine


def told(observation: Observation, **values: float | None) -> Observation:
    """The same with these numbers of every engine's only window instead; None is not told."""

    def read(value: float | None) -> Measured:
        return NONE if value is None else Reading(value=value, at=observation.at, origin="test")

    window = {name: read(value) for name, value in values.items() if name not in ("seconds", "kv_blocks", "idle")}
    return replace(
        observation,
        engines=tuple(
            replace(
                each,
                kv_blocks=read(values["kv_blocks"]) if "kv_blocks" in values else each.kv_blocks,
                windows=tuple(
                    replace(was, seconds=Seconds(values.get("seconds") or was.seconds), **window)
                    for was in each.windows
                ),
            )
            for each in observation.engines
        ),
    )


def appraised(observation: Observation) -> Appraisal:
    facts = interpret(observation)
    (asked,) = facts.servings.values()
    return appraise(facts, asked)


def better_of(observation: Observation) -> Better:
    (found,) = appraised(observation).better
    return found


def test_an_engine_is_shown_as_it_says_it_is_and_by_vllms_defaults_where_it_does_not() -> None:
    flags = EngineFlags(max_num_seqs=48, gpu_memory_utilization=Ratio(0.6))
    [said] = appraised(told(world(engine(0, flags)), itl_p95=0.012)).engines
    card = gpu(0)
    assert said == EngineFound(
        pod="plain-0", node=card.node, gpu_uuid=card.uuid, gpu_kind=card.kind.name, version="0.33.0", max_num_seqs=48,
        gpu_memory_utilization=Ratio(0.6), kv_cache_memory_bytes=Bytes(130_000 * BLOCK), running=8.0,
        requests_per_second=PerSecond(8.0), itl_mean=Seconds(0.004), itl_p95=Seconds(0.012),
    )  # fmt: skip
    [silent] = appraised(told(world(engine(0)), running_mean=None, arrivals=None, itl_mean=None)).engines
    assert (silent.max_num_seqs, silent.gpu_memory_utilization) == (1024, 0.9)
    assert (silent.running, silent.requests_per_second, silent.itl_mean) == (None, None, None)


def test_an_engine_without_a_window_yet_is_shown_without_figures() -> None:
    observation = world(engine(0))
    [found] = appraised(
        replace(observation, engines=tuple(replace(each, windows=()) for each in observation.engines))
    ).engines
    assert (found.max_num_seqs, found.running, found.itl_mean, found.problem) == (1024, None, None, None)


def test_an_engine_that_cannot_be_judged_is_shown_by_what_its_pod_says() -> None:
    flags = EngineFlags(max_num_seqs=48, gpu_memory_utilization=Ratio(0.6), tells_metrics=False)
    [found] = appraised(world(engine(0, flags))).engines
    card = gpu(0)
    assert found == EngineFound(
        pod="plain-0", node=card.node, gpu_uuid=card.uuid, gpu_kind=card.kind.name, max_num_seqs=48,
        gpu_memory_utilization=Ratio(0.6), problem="it was started with --disable-log-stats, so it tells no metrics",
    )  # fmt: skip
    lost = replace(world(engine(0)), engines=())
    assert appraised(lost).engines[0].problem == "it has not been asked for its metrics yet"


def test_an_engine_without_an_address_answers_nowhere() -> None:
    observation = world(replace(engine(0), address=None))
    silent = tuple(
        replace(each, running=Missing(cause=Cause.UNREACHABLE, origin="running")) for each in observation.engines
    )
    assert appraised(replace(observation, engines=silent)).engines[0].problem == "nothing answers http:///metrics"


BLOCK = 16 * WATCH.llm.kv_bytes_per_token(WATCH.dtype)
"""Bytes of KV cache."""


@pytest.mark.parametrize(
    ("flags", "blocks", "size"),
    [
        pytest.param(EngineFlags(), 1000.0, 1000 * BLOCK, id="as many blocks as it made"),
        pytest.param(EngineFlags(block_tokens=32), 1000.0, 2000 * BLOCK, id="of its own size"),
        pytest.param(EngineFlags(kv_cache_memory_bytes=Bytes(7 * GIB)), 1000.0, 1000 * BLOCK, id="whatever was asked"),
        pytest.param(EngineFlags(kv_cache_memory_bytes=Bytes(7 * GIB)), None, 7 * GIB, id="what was asked"),
        pytest.param(
            EngineFlags(gpu_memory_utilization=Ratio(0.5)), None,
            default_shape(WATCH.llm, WATCH.dtype, gpu(0).kind, utilization=Ratio(0.5)).kv_cache_memory_bytes,
            id="what its share of the GPU leaves",
        ),
        pytest.param(
            EngineFlags(), None, default_shape(WATCH.llm, WATCH.dtype, gpu(0).kind).kv_cache_memory_bytes,
            id="what vLLM's own share leaves",
        ),
    ],
)  # fmt: skip
def test_the_kv_cache_is_what_the_engine_made_else_what_it_was_asked_to_make(
    flags: EngineFlags, blocks: float | None, size: int
) -> None:
    observation = told(world(engine(0, flags)), kv_blocks=blocks)
    assert appraised(observation).engines[0].kv_cache_memory_bytes == size
    better = better_of(observation)
    assert better.freed_bytes == size - better.shape.kv_cache_memory_bytes


def test_prompts_are_cut_unless_the_engine_was_told_not_to() -> None:
    gains = [better_of(world(engine(0, EngineFlags(chunked_prefill=each)))).gain for each in (None, True, False)]
    assert gains[0] == gains[1] != gains[2]


@pytest.mark.parametrize("served", ["org/llama-3.2-1b", "Meta-Llama/LLAMA-3.2-1B", "mirror/of/Llama-3.2-1B"])
def test_another_publishers_copy_of_the_model_is_the_model(served: str) -> None:
    assert appraised(world(engine(0), served=(served,))).better


# When it is appraised anew


def again(old: Appraisal, observation: Observation) -> bool:
    """Whether another appraisal takes the place of that one."""
    return appraised(replace(observation, appraisals=(old,))) is not old


THREE = replace(QUICK, rate_windows=(Seconds(10.0), Seconds(30.0), Seconds(60.0)))


@pytest.mark.parametrize(("seconds", "due"), [(59.9, False), (60.0, True)])
def test_figures_that_moved_are_appraised_after_a_longest_window(seconds: float, due: bool) -> None:
    first, at = replace(world(engine(0)), policy=THREE), Seconds(NOON + seconds)
    after = replace(first, at=at, engines=tuple(seen(each, rate=30.0, at=at) for each in first.running))
    assert again(appraised(first), after) is due


@pytest.mark.parametrize(
    ("name", "before", "now", "due"),
    [
        ("running_mean", 10.0, 8.0, False),
        ("running_mean", 10.0, 7.9, True),
        ("running_mean", 8.0, 10.0, False),
        ("running_mean", 8.0, 10.1, True),
        ("arrivals", 10.0, 12.6, True),
        ("arrivals", 10.0, 8.2, False),
        ("arrivals", 10.0, None, True),
        ("arrivals", None, 10.0, True),
        ("arrivals", None, None, False),
        ("itl_mean", 0.010, 0.0126, True),
        ("itl_p95", 0.010, 0.0200, False),
    ],
)
def test_a_figure_has_moved_by_more_than_a_fifth_of_the_larger_or_when_it_is_told_no_more(
    name: str, before: float | None, now: float | None, due: bool
) -> None:
    first = told(world(engine(0)), **{name: before})
    old = replace(appraised(first), at=Seconds(NOON - 3600.0))
    assert again(old, told(first, **{name: now})) is due


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"slo": None}, id="the promise"),
        pytest.param({"cpu_cores": 3}, id="the cores"),
        pytest.param({"max_model_len": 4096}, id="the longest request"),
    ],
)
def test_another_question_is_appraised_at_once(change: dict[str, Any]) -> None:
    first = world(engine(0))
    assert not again(appraised(first), first)
    assert again(appraised(first), replace(first, servings=(replace(WATCH, **change),)))


@pytest.mark.parametrize(("before", "after", "at_once"), [(53.0, 53.9, False), (53.9, 54.0, True), (54.0, 60.0, False)])
def test_a_longest_window_that_fills_is_appraised_at_once(before: float, after: float, at_once: bool) -> None:
    """Nine tenths of 60 s are whole."""
    first = replace(world(engine(0)), policy=THREE)
    assert again(appraised(told(first, seconds=before)), told(first, seconds=after)) is at_once


def test_live_lengths_are_appraised_at_once() -> None:
    """Once 50 requests have finished."""
    first = told(world(engine(0)), seconds=24.0, finished=2.0)
    known = told(first, seconds=25.0)
    assert not again(appraised(first), told(first, seconds=24.9))
    assert again(appraised(first), known)
    [old], [new] = appraised(first).better, appraised(known).better
    long = told(known, input_mean=2000.0)
    assert better_of(told(first, input_mean=2000.0)).shape == old.shape
    assert better_of(long).shape.kv_cache_memory_bytes != new.shape.kv_cache_memory_bytes


def test_an_appraisal_is_named_by_ten_digits_of_what_it_rests_on() -> None:
    assert len(appraised(world(engine(0))).inputs) == 10


# What would be better


def test_the_shape_that_most_engines_have_is_compared_and_of_two_the_larger() -> None:
    few, many = EngineFlags(max_num_seqs=128), EngineFlags(max_num_seqs=256)

    def now(*flags: EngineFlags) -> str:
        return better_of(world(*(engine(number, each) for number, each in enumerate(flags)))).message

    assert "now up to 128 sequences" in now(few, many, few)
    assert "now up to 256 sequences" in now(few, many)


def test_engines_that_share_a_gpu_are_compared_with_nothing_alone() -> None:
    beside = replace(engine(1), gpu_uuid=engine(0).gpu_uuid)
    shared = better_of(world(engine(0), beside, engine(2)))
    assert (shared.engines, shared.gpus_now, shared.gain, shared.gain_alone) == (3, 2, None, None)
    assert "keeps" not in shared.message


def test_engines_of_which_nothing_tells_their_gpu_have_one_each() -> None:
    unknown = [replace(engine(number), gpu_uuid=None) for number in range(2)]
    found = better_of(world(*unknown))
    assert found.gpus_now == 2
    assert found.gain is not None


def test_what_packing_brings_stands_beside_the_best_single_engine() -> None:
    first = world(engine(0))
    for cores, packed in ((64.0, 3), (4.0, 2)):
        [node] = first.nodes
        better = better_of(replace(first, nodes=(replace(node, cpu_cores=cores),)))
        assert better.replicas_per_gpu == packed
        assert better.gain is not None
        assert better.gain_alone is not None
        assert better.gain_alone < better.gain
    policy = replace(QUICK, sharing=frozenset({Sharing.EXCLUSIVE}))
    lone = better_of(replace(first, policy=policy))
    assert (lone.replicas_per_gpu, lone.gain) == (1, lone.gain_alone)
    assert lone.gain == pytest.approx(better.gain_alone)


def test_where_no_way_to_share_is_allowed_one_engine_has_the_gpu() -> None:
    watch = replace(WATCH, sharing=SharingWish.MPS)
    policy = replace(QUICK, sharing=frozenset({Sharing.EXCLUSIVE}))
    assert better_of(replace(world(engine(0), watch=watch), policy=policy)).replicas_per_gpu == 1


@pytest.mark.parametrize(
    ("itl", "ttft"), [(0.040, None), (0.005, None), (0.040, 0.200), (0.005, 0.050)], ids=lambda value: f"{value} s"
)
def test_the_gain_is_of_what_an_engine_as_it_is_can_do_within_the_promise(itl: float, ttft: float | None) -> None:
    """Found anew by halving: the most requests a second of 1024 sequences."""
    watch = _promising(itl, ttft)
    better = better_of(world(engine(0), watch=watch))
    assert watch.slo is not None
    shape = replace(default_shape(watch.llm, watch.dtype, gpu(0).kind), kv_cache_memory_bytes=Bytes(130_000 * BLOCK))

    def predicted(rate: float | None) -> GpuPrediction:
        group = EngineGroup(
            llm=watch.llm, dtype=watch.dtype, shape=shape, lengths=LIVE, replicas=1,
            request_rate=None if rate is None else PerSecond(rate), coefficients=coefficients(watch.engine_version),
        )  # fmt: skip
        return predict(gpu(0).kind, (group,), Sharing.EXCLUSIVE, QUICK.gpu_reserve)

    low, high = 0.0, predicted(None).total_tokens_per_second / (LIVE.input_mean + LIVE.output_mean)
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if keeps(predicted(middle).groups[0], watch.slo) else (low, middle)
    now = predicted(low).total_tokens_per_second
    assert better.gain == pytest.approx(_advice(watch).prediction.total_tokens_per_second / now - 1.0, rel=0.02)


def test_an_engine_that_is_slow_can_be_worth_less_than_a_request_a_second() -> None:
    small = replace(engine(0), kind=gpu(0, "L4").kind)
    watch = _promising(0.065, model="llama-3.1-8b")
    observation = told(world(small, watch=watch), kv_blocks=2000.0, input_mean=500.0, output_mean=2000.0)
    better = better_of(observation)
    assert better.gain is not None
    assert better.gain > 0.0


def test_an_engine_whose_steps_are_too_short_for_a_prompt_keeps_no_promise_at_any_load() -> None:
    found = better_of(world(engine(0, EngineFlags(max_num_batched_tokens=32)), watch=_promising(0.040, 0.020)))
    assert (found.gain, found.gain_alone) == (None, None)
    assert "As it is, an engine keeps" in found.message
    assert "at no load." in found.message


def test_an_engine_that_keeps_what_no_advised_shape_can_gains_nothing_by_one() -> None:
    """Prompts that take one step of 16384 tokens, and several of those that are advised."""
    flags = EngineFlags(max_num_batched_tokens=16384)
    watch = _promising(0.050, 0.138, model="qwen2.5-0.5b")
    found = better_of(told(world(engine(0, flags), watch=watch), input_mean=12_000.0, output_mean=2000.0))
    assert (found.gain, found.gain_alone, found.gpus_needed) == (None, None, None)
    assert "at no load" not in found.message


def test_where_no_shape_keeps_the_promise_or_fits_nothing_is_promised() -> None:
    hard = better_of(world(engine(0), watch=_promising(0.0005)))
    assert (hard.gain, hard.gain_alone, hard.gpus_needed) == (None, None, None)
    assert "the best reachable is" in hard.message
    small = replace(engine(0), kind=gpu(0, "L4").kind)
    none = better_of(world(small, watch=_promising(0.100, model="llama-2-13b")))
    assert (none.gain, none.gain_alone, none.gpus_needed) == (None, None, None)
    assert "at no load" not in none.message


@pytest.mark.parametrize(("loads", "needed"), [(0.0, 1), (0.99, 1), (1.01, 2), (2.99, 3), (None, None)])
def test_the_gpus_that_are_needed_carry_what_comes_at_the_target_utilisation(
    loads: float | None, needed: int | None
) -> None:
    """What comes to two engines, in times what one GPU carries at 85 %."""
    advice = _advice(WATCH)
    carried = 0.85 * advice.prediction.total_tokens_per_second / (LIVE.input_mean + LIVE.output_mean)
    found = better_of(told(world(engine(0), engine(1)), arrivals=None if loads is None else loads * carried / 2))
    assert found.gpus_needed == needed


def test_one_engine_that_does_not_tell_what_comes_leaves_the_sum_unknown() -> None:
    observation = world(engine(0), engine(1))
    first, _ = observation.engines
    assert (
        better_of(replace(observation, engines=(first, *told(world(engine(1)), arrivals=None).engines))).gpus_needed
        is None
    )


@pytest.mark.parametrize(
    ("wish", "flags", "longest"),
    [
        pytest.param(9000, (4096, 6144), 9000, id="as the serving says"),
        pytest.param(None, (4096, 6144), 6144, id="else the longest of the engines"),
        pytest.param(None, (4096, None), 4096, id="of those that were told"),
        pytest.param(None, (None, None), 4704, id="else by what comes"),
    ],
)
def test_the_longest_request_is(wish: int | None, flags: tuple[int | None, ...], longest: int) -> None:
    watch = replace(WATCH, max_model_len=wish)
    engines = (engine(number, EngineFlags(max_model_len=each)) for number, each in enumerate(flags))
    assert better_of(world(*engines, watch=watch)).shape.max_model_len == longest


@pytest.mark.parametrize(
    ("versions", "believed"),
    [
        (("0.5.2", "0.5.2", "0.33.0"), "0.5.2"),
        (("0.5.2", "0.33.0"), "0.5.2"),
        (("0.5.2", "dev", "dev"), "0.5.2"),
        (("dev", None), "0.33.0"),
    ],
)
def test_the_release_that_most_engines_run_is_predicted_with(versions: tuple[str | None, ...], believed: str) -> None:
    """Later by name where as many; the serving's where nobody says a release."""
    observation = world(*(engine(number) for number in range(len(versions))))
    engines = tuple(replace(each, version=version) for each, version in zip(observation.engines, versions, strict=True))
    unknown = (replace(observation.engines[0], version=None),)
    found = better_of(replace(observation, engines=engines))
    expected, other = (
        better_of(replace(world(engine(0), watch=replace(WATCH, engine_version=each)), engines=unknown)).gain
        for each in (believed, "0.33.0" if believed == "0.5.2" else "0.5.2")
    )
    assert found.gain == expected != other


def test_the_cores_of_the_largest_node_bound_how_many_share_a_gpu() -> None:
    """Of two cores each."""
    watch = _promising(0.060, model="qwen2.5-0.5b")
    engines = (engine(0), replace(engine(1), node="node-1"), replace(engine(2), node="node-2"))

    def most(**cores: float) -> int:
        nodes = tuple(
            NodeSeen(name=name.replace("_", "-"), ready=True, cpu_cores=count, cpu_cores_of_others=0.0)
            for name, count in cores.items()
        )
        return better_of(replace(world(*engines, watch=watch), nodes=nodes)).replicas_per_gpu

    free = most()
    assert free > 2
    assert most(node_0=4.0, node_1=2.0) == 2
    assert most(node_3=2.0) == free


def _promising(itl: float, ttft: float | None = None, model: str = "llama-3.2-1b") -> Serving:
    return replace(serving("watch", mode=Mode.ADVISE, itl=itl, ttft=ttft, model=model), observes=True)


LIVE = Lengths(input_mean=rounded(500.0), output_mean=rounded(250.0))
"""Of what comes to every engine here."""


def _advice(watch: Serving) -> Advice:
    return advise(
        question_of(
            watch, gpu(0).kind, QUICK, lengths=LIVE, sharing=Sharing.MPS,
            coefficients=coefficients(watch.engine_version), node_cores=64.0,
        )
    )  # fmt: skip
