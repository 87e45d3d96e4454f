"""A GpuPool becomes a policy, and the plan in its status comes back as it was written."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpupack.facts.experiment import Compared, Experiment, Inputs, Judgement, Standing, Undone
from gpupack.facts.gpu import Gpu
from gpupack.facts.placement import (
    ChosenShape,
    FaultyGpu,
    FormerShape,
    Lesson,
    Placement,
    Plan,
    Record,
    Withdrawn,
)
from gpupack.facts.policy import Policy
from gpupack.facts.serving import ServingKey, Shape, Sharing, Slo, Statistic
from gpupack.kube.pool_resource import plan_of, plan_to_status, pool_resource, pool_status_to_dict
from gpupack.plan import Condition, ConditionType, PoolStatus, Truth
from gpupack.units import GIB, Bytes, PerSecond, Ratio, Seconds

from .objects import AT, GPU, H100, KEY, SHAPE, gpu_pool, sample

GPU_0 = Gpu(uuid=GPU, node="node-a", device_name="gpu-0", kind=H100)


def test_an_empty_pool_uses_every_gpu_by_the_default_policy() -> None:
    pool = pool_resource(gpu_pool())
    assert pool.policy == replace(Policy(), max_gpus=512)
    assert pool.plan is None
    assert pool.selects(GPU_0, {})


def test_a_pool_says_its_limits_and_times_in_base_units() -> None:
    policy = pool_resource(sample("gpupool.yaml")).policy
    assert policy.sharing == frozenset({Sharing.MPS})
    assert (policy.max_gpus, policy.gpu_reserve) == (8, 2 * GIB)
    assert (policy.window, policy.rate_windows, policy.dcgm_period) == (30.0, (10.0, 120.0), 1.0)
    assert (policy.warmup, policy.saturation_ceiling) == (Policy().warmup, Ratio(0.90))


@pytest.mark.parametrize(
    ("spec", "labels", "selected"),
    [
        ({"nodeSelector": {"zone": "a"}}, {"zone": "a", "more": "b"}, True),
        ({"nodeSelector": {"zone": "a"}}, {"zone": "b"}, False),
        ({"gpuProducts": ["H100-80GB"]}, {}, True),
        ({"gpuProducts": ["L4"]}, {}, False),
        ({"gpuUuids": [GPU]}, {}, True),
        ({"gpuUuids": ["GPU-2"]}, {}, False),
    ],
)
def test_a_gpu_belongs_to_a_pool_that_selects_its_node_product_and_uuid(
    spec: dict[str, Any], labels: dict[str, str], selected: bool
) -> None:
    assert pool_resource(gpu_pool(**spec)).selects(GPU_0, labels) is selected


def test_both_generations_of_exporters_are_found_and_nothing_else() -> None:
    dcgm = pool_resource(gpu_pool()).sources.dcgm
    assert dcgm is not None
    assert dcgm.selects("any", {"app.kubernetes.io/name": "dcgm-exporter", "more": "x"})
    assert dcgm.selects("any", {"app": "nvidia-dcgm-exporter"})
    assert not dcgm.selects("any", {"app": "dcgm"})


def test_an_exporter_of_another_namespace_is_not_ours() -> None:
    dcgm = pool_resource(sample("gpupool.yaml")).sources.dcgm
    assert dcgm is not None
    assert dcgm.selects("gpu-operator", {"app": "nvidia-dcgm-exporter"})
    assert not dcgm.selects("default", {"app": "nvidia-dcgm-exporter"})


def placement(number: int, slot: int = 0, key: ServingKey = KEY, shape: Shape = SHAPE) -> Placement:
    return Placement(
        serving=key, gpu_uuid=f"GPU-6f3b1a52-0000-4000-8000-{number:012d}", slot=slot, sharing=Sharing.MPS, shape=shape,
        template_hash="0123456789", planned_at=Seconds(AT + 0.25),
    )  # fmt: skip


def a_plan() -> Plan:
    other = ServingKey(namespace="models", name="embed")
    chosen = ChosenShape(
        serving=KEY, gpu_kind="H100-80GB", shape=SHAPE, replicas_per_gpu=4, utilization_hundredths=12, inputs="ab12",
        chosen_at=AT,
    )  # fmt: skip
    compared = Compared(
        what="inter-token latency", subject=str(KEY), predicted=0.1 + 0.2, measured=1 / 3, unit="seconds"
    )
    experiment = Experiment(
        serving=KEY, gpu_uuid=GPU, step="Added", began_at=AT, last_at=Seconds(AT + 2.5), asked=False,
        before=(
            Standing(serving=KEY, shape=SHAPE, engines=2, off=Ratio(1 / 3), tokens_per_second=2 / 3),
            Standing(serving=other, shape=SHAPE, engines=1),
        ),
        company="3 x models/chat", gain=Ratio(0.2), saturation=Ratio(0.7), itl=Seconds(0.1), inputs="0123456789",
        doubted_at=Seconds(AT + 60.0), judgement=Judgement.MISSED, judged_at=Seconds(AT + 120.0), undone=True,
        compared=(compared,), why="",
    )  # fmt: skip
    undone = Undone(
        serving=KEY, model="llama-3.2-1b", gpu_kind="H100-80GB", neighbours="2 x llama-3.2-1b", at=AT,
        until=Seconds(AT + 1800.0), compared=compared,
        inputs=Inputs(rate=PerSecond(0.1 + 0.2), input_mean=512.0, output_mean=1 / 3),
    )  # fmt: skip
    return Plan(
        placements=(placement(2, 1), placement(1), placement(2, key=other, shape=replace(SHAPE, max_num_seqs=8))),
        shapes=(
            chosen,
            replace(
                chosen,
                serving=other,
                slo=Slo(itl=Seconds(0.1 + 0.2), ttft=None, statistic=Statistic.P99, assumed=True),
                unreachable=Seconds(1 / 3),
                better_since=Seconds(AT + 0.5),
                was=FormerShape(shape=replace(SHAPE, max_num_seqs=8), replicas_per_gpu=3, utilization_hundredths=20),
            ),
        ),
        records=(
            Record(
                serving=KEY, reason="BandwidthCeiling", subject=GPU, observed=1 / 3, limit=0.9, unit="ratio",
                at_least=False, wanted=5, planned=4, message="saturation is above its ceiling", at=AT,
                seen="12 requests/s", predicted="+12 %", rejected="GPU-2: Memory",
            ),
        ),
        withdrawn=(Withdrawn(serving=KEY, gpu_uuid=GPU, until=AT),),
        experiments=(
            experiment,
            replace(experiment, gain=None, doubted_at=None, judgement=None, judged_at=None, undone=False, compared=()),
        ),
        undone=(undone, replace(undone, inputs=None)),
        faulty=(FaultyGpu(gpu_uuid=GPU, why="its driver told XID 79", since=AT),),
        lessons=(
            Lesson(serving=KEY, gpu_kind="H100-80GB", template_hash="t", overhead=Bytes(2**30)),
            Lesson(serving=KEY, gpu_kind="L4", template_hash="t", refusal="it does not know a flag", until=AT),
        ),
    )  # fmt: skip


def test_a_plan_read_back_is_the_plan_that_was_written() -> None:
    written = json.loads(json.dumps(plan_to_status(a_plan())))
    assert plan_of({"plan": written}) == a_plan()


@given(at=st.floats(min_value=0, max_value=4e9), observed=st.floats(allow_nan=False))
def test_any_time_comes_back_to_the_microsecond_and_any_number_exactly(at: float, observed: float) -> None:
    plan = a_plan()
    changed = replace(plan, records=(replace(plan.records[0], at=Seconds(at), observed=observed),))
    back = plan_of({"plan": json.loads(json.dumps(plan_to_status(changed)))})
    assert back is not None
    assert back.records[0].observed == observed
    assert back.records[0].at == pytest.approx(at, abs=2e-6)
    assert plan_of({"plan": plan_to_status(back)}) == back


def test_an_empty_plan_is_a_plan_and_none_is_none() -> None:
    assert plan_of({"plan": plan_to_status(Plan())}) == Plan()
    assert plan_of({}) is None


@pytest.mark.parametrize("damage", [{"placements": [{"engine": 7}]}, {"engines": None}, {"shapes": [{}]}])
def test_a_plan_that_cannot_be_read_counts_as_lost(damage: dict[str, Any]) -> None:
    assert plan_of({"plan": {**plan_to_status(a_plan()), **damage}}) is None


def test_the_plan_of_512_gpus_with_eight_engines_each_stays_far_below_etcds_limit() -> None:
    full = Plan(placements=tuple(placement(number, slot) for number in range(512) for slot in range(8)))
    assert len(json.dumps(plan_to_status(full), separators=(",", ":"))) < 600_000


def test_a_plan_with_a_step_on_trial_on_each_of_512_gpus_still_fits() -> None:
    one = a_plan().experiments[-1]
    plan = Plan(
        placements=tuple(placement(number, slot) for number in range(512) for slot in range(8)),
        experiments=tuple(replace(one, gpu_uuid=placement(number).gpu_uuid) for number in range(512)),
    )
    assert len(json.dumps(plan_to_status(plan), separators=(",", ":"))) < 1_200_000


def test_a_pools_status_counts_for_the_table_and_dates_its_conditions() -> None:
    said = PoolStatus(
        plan=a_plan(), gpus=2, gpus_in_use=2, replicas=3,
        conditions=(Condition(type=ConditionType.READY, truth=Truth.TRUE, reason="Deciding", message="2 GPUs"),),
    )  # fmt: skip
    written = pool_status_to_dict(said, (), now=AT, generation=1)
    assert (written["gpus"], written["gpusInUse"], written["replicas"]) == (2, 2, 3)
    later = pool_status_to_dict(said, written["conditions"], now=Seconds(AT + 60), generation=1)
    assert later == written


def test_bytes_of_a_shape_are_whole() -> None:
    shape = replace(SHAPE, kv_cache_memory_bytes=Bytes(5 * GIB + 1))
    assert plan_of({"plan": plan_to_status(Plan(placements=(placement(1, shape=shape),)))}) == Plan(
        placements=(placement(1, shape=shape),)
    )
