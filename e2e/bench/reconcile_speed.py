"""How long one `reconcile` takes at 100 GPUs, 50 servings and 400 engines: cold, warm, and while loads move.

    python e2e/bench/reconcile_speed.py

Warm means that the predictions of this world were asked before, as in an operator that has been running for a while.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import Counter
from dataclasses import replace

from gpupack import catalog
from gpupack.decide.reconcile import reconcile
from gpupack.facts.gpu import Gpu
from gpupack.facts.llm import Dtype
from gpupack.facts.observation import (
    Cause,
    ClaimSeen,
    EngineSeen,
    EngineWindow,
    GapSeen,
    GpuSeen,
    Measured,
    Missing,
    NodeSeen,
    Observation,
    Phase,
    Reading,
    ReplicaSeen,
    ServiceSeen,
)
from gpupack.facts.placement import Placement
from gpupack.facts.policy import Policy
from gpupack.facts.serving import (
    Batching,
    Lengths,
    Mode,
    Scaling,
    ScalingMode,
    Serving,
    ServingKey,
    Sharing,
    SharingWish,
    Slo,
    Statistic,
)
from gpupack.units import GIB, Ratio, Seconds

NOW = Seconds(1_795_000_000.0)
MODELS = ("llama-3.2-1b", "qwen2.5-0.5b", "qwen3-0.6b", "opt-1.3b", "qwen2.5-1.5b")


def world(gpus: int, servings: int, engines: int, load: float) -> Observation:
    """Engines of random servings on random GPUs; `load` is what share of its batch each engine runs."""
    chance = random.Random(7)
    policy = Policy()
    wanted = [
        Serving(
            key=ServingKey(namespace="team", name=f"serving-{number:03d}"),
            uid=f"uid-{number}",
            generation=1,
            created_at=Seconds(NOW - 86400.0),
            pool="default",
            llm=catalog.llm(MODELS[number % len(MODELS)]),
            dtype=Dtype.BFLOAT16,
            max_model_len=4096,
            engine_version="0.33.0",
            template_hash=f"template{number:02d}",
            cpu_cores=1,
            lengths=Lengths(input_mean=512.0, output_mean=256.0),
            declared_rate=None,
            slo=Slo(itl=Seconds(0.040), ttft=None, statistic=Statistic.P95),
            batching=Batching(fixed=48, min_efficiency=Ratio(0.1)),
            scaling=Scaling(mode=ScalingMode.AUTO, replicas=1, min_replicas=1, max_replicas=None),
            sharing=SharingWish.MPS,
            mode=Mode.ACTIVE,
        )
        for number in range(servings)
    ]
    devices = [
        Gpu(uuid=f"GPU-{n:08d}", node=f"node-{n // 8}", device_name=f"gpu-{n % 8}", kind=catalog.gpu("H100-80GB"))
        for n in range(gpus)
    ]
    empty = Observation(
        at=NOW, pool="default", pool_uid="pool", pool_generation=1, policy=policy, plan=None, servings=tuple(wanted),
        refused=(), gpus=tuple(_gpu(each, 0, load) for each in devices),
        nodes=tuple(
            NodeSeen(name=name, ready=True, cpu_cores=128.0, cpu_cores_of_others=4.0)
            for name in sorted({each.node for each in devices})
        ),
        holders=(), claims=(), replicas=(), engines=(), services=(),
    )  # fmt: skip
    plan = None
    while plan is None or len({each.serving for each in plan.shapes}) < servings:
        plan = reconcile(replace(empty, plan=plan)).pool_status.plan
        assert plan is not None
    shapes = {each.serving: each.shape for each in plan.shapes}
    placements, counts = [], dict.fromkeys((each.uuid for each in devices), 0)
    for number in range(engines):
        serving, device = wanted[number % servings], devices[number % gpus]
        if number >= gpus:
            device = chance.choice([each for each in devices if counts[each.uuid] < engines / gpus])
        slot = sum(1 for each in placements if (each.serving, each.gpu_uuid) == (serving.key, device.uuid))
        counts[device.uuid] += 1
        placements.append(
            Placement(
                serving=serving.key, gpu_uuid=device.uuid, slot=slot, sharing=Sharing.MPS,
                shape=shapes[serving.key], template_hash=serving.template_hash, planned_at=Seconds(NOW - 7200.0),
            )
        )  # fmt: skip
    plan = reconcile(replace(empty, plan=plan)).pool_status.plan
    assert plan is not None
    placements.sort(key=lambda each: (each.serving, each.gpu_uuid, each.slot, each.content_hash))
    plan = replace(plan, placements=tuple(placements))
    return replace(
        empty,
        plan=plan,
        gpus=tuple(_gpu(each, counts[each.uuid], load) for each in devices),
        replicas=tuple(_replica(each) for each in placements),
        engines=tuple(_engine(each, load) for each in placements),
        claims=tuple(
            ClaimSeen(
                namespace="team", name=f"claim-{each.uuid}", uid=each.uuid, gpu_uuid=each.uuid, sharing=Sharing.MPS,
                owners=tuple(serving.uid for serving in wanted),
            )
            for each in devices
        ),
        services=tuple(
            ServiceSeen(
                serving=each.key, has_service=True,
                min_available=sum(1 for placement in placements if placement.serving == each.key) - 1,
            )
            for each in wanted
        ),
    )  # fmt: skip


def _gpu(gpu: Gpu, engines: int, load: float) -> GpuSeen:
    return GpuSeen(
        gpu=gpu, node_ready=True, dram_active=_read(0.1 * engines * load), fb_used=_read(engines * 3.0 * GIB),
        power=_read(300.0),
    )  # fmt: skip


def _replica(placement: Placement) -> ReplicaSeen:
    return ReplicaSeen(
        name=placement.name, uid=placement.name, serving=placement.serving, gpu_uuid=placement.gpu_uuid,
        slot=placement.slot, sharing=placement.sharing, shape=placement.shape, template_hash=placement.template_hash,
        content_hash=placement.content_hash, phase=Phase.READY, created_at=Seconds(NOW - 7200.0),
        ready_at=Seconds(NOW - 7000.0), deletion_at=None, in_service=True, address="10.77.0.1:8000",
        utilization_hundredths=9,
    )  # fmt: skip


def _engine(placement: Placement, load: float) -> EngineSeen:
    shape = placement.shape
    rate = 40.0 * load
    windows = tuple(
        EngineWindow(
            seconds=Seconds(seconds), arrivals=_read(rate), finished=_read(rate), prompt_tokens=_read(rate * 512),
            generation_tokens=_read(rate * 256), preemptions=_read(0.0), itl_mean=_read(0.01), itl_p95=_read(0.02),
            ttft_mean=_read(0.05), ttft_p95=_read(0.1), input_mean=_read(512.0), output_mean=_read(256.0),
            running_mean=_read(shape.max_num_seqs * load), waiting_least=_read(0.0),
            inside_least=_read(shape.max_num_seqs * load * 0.8), inside_most=_read(shape.max_num_seqs * load),
        )
        for seconds in (30.0, 300.0)
    )  # fmt: skip
    return EngineSeen(
        replica=placement.name, running=_read(shape.max_num_seqs * load * 1.1), waiting=_read(0.0),
        waiting_before=_read(0.0), kv_usage=_read(0.5), kv_blocks=_read(1.0), windows=windows,
        peak_arrivals=Missing(cause=Cause.TOO_SHORT, origin="bench"),
        gaps=(GapSeen(seconds=Seconds(2.0), arrivals=_read(rate)),) * 2,
    )  # fmt: skip


def _read(value: float) -> Measured:
    return Reading(value=value, at=Seconds(NOW - 1.0), origin="bench")


def timed(observation: Observation) -> float:
    """Milliseconds of this process's CPU, which is all that a pure function needs."""
    start = time.process_time()
    reconcile(observation)
    return 1000.0 * (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, default=100)
    parser.add_argument("--servings", type=int, default=50)
    parser.add_argument("--engines", type=int, default=400)
    parser.add_argument("--ticks", type=int, default=20)
    asked = parser.parse_args()
    for load in (0.2, 0.9):
        observation = world(asked.gpus, asked.servings, asked.engines, load)
        cold = timed(observation)
        plan = reconcile(observation).pool_status.plan
        observation = replace(observation, plan=plan)
        warm = [timed(observation) for _ in range(asked.ticks)]
        outcome = reconcile(observation)
        reasons = Counter(record.reason for record in plan.records) if plan is not None else {}
        print(
            f"load {load:.0%}: {len(observation.gpus)} GPUs, {len(observation.servings)} servings,"
            f" {len(observation.replicas)} engines; cold {cold:.0f} ms, warm median {statistics.median(warm):.1f} ms,"
            f" worst {max(warm):.1f} ms; {dict(reasons)}, {len(outcome.verdicts)} verdicts"
        )


if __name__ == "__main__":
    main()
