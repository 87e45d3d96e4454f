"""Facts: what of an observation may be used, and what is missing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from gpupack.facts.interpretation import GpuFacts, interpret, is_leaving
from gpupack.facts.observation import Cause, Holder, Measured, Missing, Phase, Reading
from gpupack.facts.policy import Policy
from gpupack.units import Seconds

from ..strategies import gpu, key, serving
from .world import World


def gpu_facts(measured: Measured, later: float = 0.0) -> GpuFacts:
    world = World([gpu(0)], [], policy=Policy())
    seen = world.observe()
    gpus = (replace(seen.gpus[0], dram_active=measured),)
    return interpret(replace(seen, gpus=gpus, at=Seconds(seen.at + later))).gpus[gpu(0).uuid]


def reading(value: float) -> Reading:
    return Reading(value=value, at=Seconds(World([], []).at), origin="dram")


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1])
def test_a_number_that_is_none_is_missing(value: float) -> None:
    assert gpu_facts(reading(value)).dram_active == Missing(cause=Cause.NOT_FINITE, origin="dram")


def test_a_reading_is_stale_after_three_periods() -> None:
    assert gpu_facts(reading(0.5), later=90.0).dram_active == 0.5
    assert gpu_facts(reading(0.5), later=90.1).dram_active == Missing(cause=Cause.STALE, origin="dram")


def test_what_is_missing_keeps_its_cause() -> None:
    gone = Missing(cause=Cause.NO_SERIES, origin="dram")
    assert gpu_facts(gone, later=1000.0).dram_active == gone


def test_holders_and_pods_are_found_by_gpu() -> None:
    world = World([gpu(0), gpu(1)], [serving("chat")]).run(60.0)
    world.holders.append(Holder(gpu_uuid=gpu(1).uuid, kind="Pod", name="other/train"))
    facts = interpret(world.observe())
    assert facts.gpus[gpu(1).uuid].foreign == ("Pod other/train",)
    assert [each.serving for each in facts.replicas_on[gpu(0).uuid]] == [key("chat")]


def test_a_replica_out_of_its_service_is_leaving() -> None:
    world = World([gpu(0)], [serving("chat")]).run(60.0)
    replica = world.observe().replicas[0]
    assert not is_leaving(replica)
    assert is_leaving(replace(replica, in_service=False))
    assert is_leaving(replace(replica, deletion_at=Seconds(world.at)))
    assert not is_leaving(replace(replica, in_service=False, phase=Phase.STARTING))
