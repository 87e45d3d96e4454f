"""What the operator says of itself to Prometheus and in its log."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

from gpupack.facts.experiment import Compared, Experiment, Judgement
from gpupack.facts.gpu import Gpu
from gpupack.facts.observation import (
    Cause,
    EngineSeen,
    EngineWindow,
    GpuSeen,
    Missing,
    Observation,
    Phase,
    Reading,
    ReplicaSeen,
)
from gpupack.facts.placement import Plan, PredictedEffect, Record
from gpupack.facts.policy import Policy
from gpupack.facts.serving import Sharing
from gpupack.plan import Outcome, PoolStatus
from gpupack.program import JsonLines
from gpupack.telemetry import Telemetry, Tick
from gpupack.units import Ratio, Seconds

from ..kube.objects import AT, GPU, H100, KEY, SHAPE, model_serving, valid

MISSING = Missing(cause=Cause.NO_SERIES, origin="s")
WHERE = {"node": "node-a", "gpu": GPU}
WHO = {"namespace": KEY.namespace, "serving": KEY.name}


def reading(value: float) -> Reading:
    return Reading(value=value, at=AT, origin="s")


def replica(name: str, phase: Phase, tokens_after: float, created_at: float) -> ReplicaSeen:
    predicted = PredictedEffect(
        tokens_per_second_before=0.0, tokens_per_second_after=tokens_after, saturation_after=Ratio(0.7),
        itl_after=Seconds(0.01), attainable=Ratio(0.6),
    )  # fmt: skip
    return ReplicaSeen(
        name=name, uid=name, serving=KEY, gpu_uuid=GPU, slot=0, sharing=Sharing.MPS, shape=SHAPE, template_hash="t",
        content_hash="c", phase=phase, created_at=Seconds(created_at), ready_at=None, deletion_at=None,
        in_service=True, address="10.0.0.1:8000", predicted=predicted,
    )  # fmt: skip


def engine(name: str, prompt: float, generated: float) -> EngineSeen:
    window = EngineWindow(
        seconds=Seconds(30.0), arrivals=MISSING, finished=MISSING, prompt_tokens=reading(prompt),
        generation_tokens=reading(generated), preemptions=MISSING, itl_mean=MISSING, itl_p95=MISSING,
        ttft_mean=MISSING, ttft_p95=MISSING, input_mean=MISSING, output_mean=MISSING, running_mean=MISSING,
        waiting_least=MISSING,
    )  # fmt: skip
    return EngineSeen(
        replica=name, running=reading(1.0), waiting=reading(0.0), waiting_before=MISSING, kv_usage=MISSING,
        kv_blocks=MISSING, windows=(window,), peak_arrivals=MISSING,
    )  # fmt: skip


def tick(*, reason: str = "DemandMet", at: float = 5.0, before: Plan | None = None) -> Tick:
    gpu = Gpu(uuid=GPU, node="node-a", device_name="gpu-0", kind=H100)
    observation = Observation(
        at=AT, pool="default", pool_uid="u", pool_generation=1, policy=Policy(), plan=before, servings=(), refused=(),
        gpus=(GpuSeen(gpu=gpu, node_ready=True, dram_active=MISSING, fb_used=reading(1.0), power=MISSING),),
        nodes=(), holders=(), claims=(), services=(),
        replicas=(replica("a", Phase.READY, 9000.0, 1.0), replica("b", Phase.STARTING, 12000.0, 2.0)),
        engines=(engine("a", 500.0, 300.0),),
    )  # fmt: skip
    record = Record(
        serving=KEY, reason=reason, subject="s", observed=0.5, limit=0.85, unit="ratio", at_least=True, wanted=3,
        planned=2, message="m", at=Seconds(at),
    )  # fmt: skip
    status = PoolStatus(plan=Plan(records=(record,)), gpus=1, gpus_in_use=1, replicas=2, conditions=())
    outcome = Outcome(
        pool_status=status, plan_changed=True, serving_statuses=(), actions=(), verdicts=(), wake_in=Seconds(2.0)
    )  # fmt: skip
    return Tick(observation=observation, outcome=outcome)


def value(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    return telemetry.registry.get_sample_value(name, labels)


def test_what_was_predicted_stands_beside_what_was_measured() -> None:
    telemetry = Telemetry()
    telemetry.decided("default", tick(), 0.01)
    assert value(telemetry, "gpupack_predicted_tokens_per_second", **WHERE) == 12000.0
    assert value(telemetry, "gpupack_measured_tokens_per_second", **WHERE) == 800.0
    assert value(telemetry, "gpupack_observed_replicas", phase="Ready", **WHO) == 1.0
    assert value(telemetry, "gpupack_planned_replicas", **WHO) == 2.0
    assert value(telemetry, "gpupack_wanted_replicas", **WHO) == 3.0


def test_a_pools_size_and_what_belongs_to_it_are_told() -> None:
    telemetry = Telemetry()
    seen = tick()
    mine = valid(model_serving())
    telemetry.decided("default", replace(seen, observation=replace(seen.observation, servings=(mine,))), 0.01)
    assert value(telemetry, "gpupack_gpus", pool="default") == 1.0
    assert value(telemetry, "gpupack_gpus_in_use", pool="default") == 1.0
    assert value(telemetry, "gpupack_serving_info", pool="default", model=mine.llm.name, **WHO) == 1.0


def test_a_measurement_that_is_missing_is_not_shown_as_zero() -> None:
    telemetry = Telemetry()
    seen = tick()
    telemetry.decided("default", replace(seen, observation=replace(seen.observation, engines=())), 0.01)
    assert value(telemetry, "gpupack_measured_tokens_per_second", **WHERE) is None
    assert value(telemetry, "gpupack_missing_readings", pool="default", of="dram_active", cause="NoSeries") == 1.0


def test_the_page_tells_what_top_shows_of_now_and_leaves_out_what_is_not_known() -> None:
    telemetry = Telemetry()
    telemetry.decided("default", tick(), 0.01)
    kind = {"pool": "default", "kind": "H100-80GB"}
    assert value(telemetry, "gpupack_gpu_memory_bytes", **kind, parent="", **WHERE) == H100.memory_bytes
    assert value(telemetry, "gpupack_gpu_memory_used_bytes", **WHERE) == 1.0
    assert value(telemetry, "gpupack_gpu_dram_attainable_ratio", **WHERE) == 0.6
    assert value(telemetry, "gpupack_serving_running_requests", **WHO) == 1.0
    assert value(telemetry, "gpupack_gpu_dram_active_ratio", **WHERE) is None
    assert value(telemetry, "gpupack_gpu_power_watts", **WHERE) is None
    assert value(telemetry, "gpupack_serving_requests_per_second", **WHO) is None


def test_a_decision_counts_once_however_often_it_is_repeated() -> None:
    telemetry = Telemetry()
    first = tick()
    telemetry.decided("default", first, 0.01)
    plan = first.outcome.pool_status.plan
    telemetry.decided("default", tick(before=plan), 0.01)
    assert value(telemetry, "gpupack_decisions_total", pool="default", reason="DemandMet") == 1.0
    telemetry.decided("default", tick(reason="Memory", at=9.0, before=plan), 0.01)
    assert value(telemetry, "gpupack_decisions_total", pool="default", reason="Memory") == 1.0


def test_a_verdict_counts_once_with_what_was_predicted_and_measured() -> None:
    telemetry = Telemetry()
    compared = Compared(what="inter-token latency", subject=str(KEY), predicted=0.012, measured=0.02, unit="seconds")
    open_one = Experiment(
        serving=KEY, gpu_uuid=GPU, step="Added", began_at=AT, last_at=AT, asked=False, before=(), company="2 x",
        gain=Ratio(0.3), saturation=Ratio(0.7), itl=Seconds(0.012), inputs="",
    )  # fmt: skip
    missed = replace(open_one, judgement=Judgement.MISSED, judged_at=AT, undone=True, compared=(compared,))
    seen = tick()

    def with_experiment(before: Experiment | None, after: Experiment) -> Tick:
        plan = Plan() if before is None else Plan(experiments=(before,))
        status = replace(seen.outcome.pool_status, plan=Plan(experiments=(after,)))
        return Tick(
            observation=replace(seen.observation, plan=plan), outcome=replace(seen.outcome, pool_status=status)
        )  # fmt: skip

    telemetry.decided("default", with_experiment(None, open_one), 0.01)
    assert value(telemetry, "gpupack_steps_on_trial", pool="default") == 1.0
    telemetry.decided("default", with_experiment(open_one, missed), 0.01)
    telemetry.decided("default", with_experiment(missed, missed), 0.01)
    assert value(telemetry, "gpupack_verdicts_total", pool="default", verdict="Missed", undone="true") == 1.0
    assert value(telemetry, "gpupack_steps_on_trial", pool="default") == 0.0
    labels = {**WHO, "gpu": GPU, "what": "inter-token latency", "unit": "seconds"}
    assert value(telemetry, "gpupack_step_predicted", **labels) == 0.012
    assert value(telemetry, "gpupack_step_measured", **labels) == 0.02


def test_what_is_gone_is_shown_no_more() -> None:
    telemetry = Telemetry()
    telemetry.decided("default", tick(), 0.01)
    telemetry.forget("default")
    assert value(telemetry, "gpupack_planned_replicas", **WHO) is None


def test_the_age_of_every_mirror_and_every_request_are_counted() -> None:
    telemetry = Telemetry(lambda: [("pods", 12.5)])
    telemetry.called("apply", 409)
    assert value(telemetry, "gpupack_mirror_age_seconds", mirror="pods") == 12.5
    assert value(telemetry, "gpupack_api_requests_total", verb="apply", code="409") == 1.0
    assert b"_created" not in telemetry.text()


def test_a_log_line_is_one_json_object_with_what_the_call_added() -> None:
    record = logging.makeLogRecord(
        {"name": "gpupack", "levelname": "INFO", "msg": "%s is full", "args": ("GPU-1",), "created": 0.5, "pool": "p"}
    )
    line = json.loads(JsonLines().format(record))
    assert line == {
        "time": "1970-01-01T00:00:00.500+00:00", "level": "info", "logger": "gpupack", "message": "GPU-1 is full",
        "pool": "p",
    }  # fmt: skip
