"""Engines that others started: what is said of them, when it is said anew, and that nothing is ever done."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpupack.decide.reconcile import reconcile
from gpupack.facts.engine_flags import EngineFlags
from gpupack.facts.observation import Cause, EngineSeen, EngineWindow, Measured, Missing, NodeSeen, Observation, Reading
from gpupack.facts.placement import Plan
from gpupack.facts.running import Appraisal, RunningEngine
from gpupack.facts.serving import Mode, Serving
from gpupack.plan import Outcome, Tell
from gpupack.units import GIB, Seconds

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
