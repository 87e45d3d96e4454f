"""What counters show, what it is on their own scale, and what the pool says of the traffic that it reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpupack import catalog
from gpupack.decide.sources import TOLD, gpus_measured
from gpupack.facts.counter import Counter, Scale
from gpupack.facts.interpretation import Facts, interpret
from gpupack.facts.observation import Cause, Missing, Observation, Reading, SourceProblem
from gpupack.facts.policy import Policy
from gpupack.plan import Truth
from gpupack.units import Seconds

from ..strategies import NOON, gpu
from .boards import A, seen

KIND = "H100-80GB"
TWO = "gpus: {a: , b: {node: node-1}}\nservings: {chat: {batch: 64}}\nreplicas: [{serving: chat, gpu: a, age: 100}]"
AGENT = Counter.GPM_DRAM_BANDWIDTH


def showing(
    value: float | Cause, counter: Counter = Counter.DCGM_DRAM_ACTIVE, scales: tuple[Scale, ...] = ()
) -> Observation:
    """Both GPUs' counters show this, or are missing for that cause."""
    observation = seen(TWO)
    told: Reading | Missing = (
        Missing(cause=value, origin="a series")
        if isinstance(value, Cause)
        else Reading(value=value, at=Seconds(NOON - 1.0), origin="a series")
    )
    gpus = tuple(replace(each, dram_active=told, counter=counter) for each in observation.gpus)
    return replace(observation, gpus=gpus, scales=scales, watched_since=None)


def moved(observation: Observation) -> float | Cause:
    found = interpret(observation).gpus[A].dram_active
    return found.cause if isinstance(found, Missing) else found


def scale(ratio: float, counter: Counter = AGENT, kind: str = KIND) -> Scale:
    return Scale(gpu_kind=kind, counter=counter, ratio=ratio, measured_at=Seconds(NOON))


# Scales


def test_a_counter_is_read_on_its_own_scale_once_that_is_measured() -> None:
    assert moved(showing(0.4, AGENT)) == 0.4, "a share of the peak is taken at its word until then"
    assert moved(showing(0.4, AGENT, (scale(0.8),))) == pytest.approx(0.5)
    assert moved(showing(0.9, AGENT, (scale(0.8),))) == 1.0


def test_the_scale_of_another_counter_or_another_kind_of_gpu_is_not_used() -> None:
    others = (scale(0.5, Counter.DCGM_DRAM_ACTIVE), scale(0.5, AGENT, "A100-80GB"))
    assert moved(showing(0.4, AGENT, others)) == 0.4


def test_a_counter_of_time_says_nothing_until_its_scale_is_measured_nor_when_it_is_always_busy() -> None:
    busy = Counter.NVML_MEMORY_BUSY
    assert moved(showing(0.6, busy)) is Cause.NO_SCALE
    assert moved(showing(0.6, busy, (scale(3.0, busy),))) == pytest.approx(0.2)
    assert moved(showing(1.0, busy, (scale(3.0, busy),))) is Cause.TOO_COARSE


def test_more_than_everything_is_another_unit() -> None:
    assert moved(showing(55.0)) is Cause.ABSURD


# What the pool says


def said(observation: Observation) -> tuple[Truth, str, str]:
    condition = gpus_measured(interpret(observation))
    return condition.truth, condition.reason, condition.message


def test_the_counter_that_is_read_is_named() -> None:
    assert said(showing(0.4, AGENT)) == (
        Truth.TRUE, "Measured", "The DRAM traffic of every GPU is read: GpmDramBandwidth.",
    )  # fmt: skip


OF_OTHERS = (Cause.TOO_SHORT, Cause.UNAUTHORIZED, Cause.REFUSED)
"""Windows of engines, and what the Prometheus itself explains."""


@pytest.mark.parametrize("cause", [each for each in Cause if each not in OF_OTHERS])
def test_every_cause_is_a_reason_with_a_sentence_of_what_to_do(cause: Cause) -> None:
    truth, reason, message = said(showing(cause))
    assert (truth, reason) == (Truth.FALSE, cause.value)
    assert message.endswith(".")
    assert len(message) > 60


def test_a_prometheus_that_refuses_is_the_reason_where_gpus_are_unread_and_a_remark_where_they_are_not() -> None:
    problem = SourceProblem(reason="Unauthorized", message="It refuses the token.")
    truth, reason, message = said(replace(showing(Cause.UNAUTHORIZED), source_problem=problem))
    assert (truth, reason) == (Truth.FALSE, "Unauthorized")
    assert message.startswith("It refuses the token.")
    truth, reason, message = said(replace(showing(0.4), source_problem=problem))
    assert (truth, reason) == (Truth.TRUE, "Measured")
    assert message.endswith("It refuses the token.")


def each_showing(*values: float | Cause) -> Observation:
    """As many GPUs, each with what its counter shows."""
    told = [showing(each).gpus[0] for each in values]
    gpus = tuple(replace(each, gpu=gpu(number)) for number, each in enumerate(told))
    return replace(showing(0.4), gpus=gpus)


def test_the_reason_is_the_commonest_cause_and_of_equals_the_first_by_name() -> None:
    assert said(each_showing(Cause.ABSURD, Cause.STALE, Cause.STALE))[1] == "Stale"
    assert said(each_showing(Cause.STALE, Cause.ABSURD))[1] == "Absurd"


def test_each_cause_is_said_with_its_own_gpus() -> None:
    absurd, stale = said(each_showing(Cause.STALE, 0.5, Cause.ABSURD))[2].split("The last readings")
    named = [[number for number in range(3) if gpu(number).uuid[:12] in each] for each in (absurd, stale)]
    assert named == [[2], [0]]


LIMIT = Policy().dcgm_period * Policy().stale_periods


@pytest.mark.parametrize(
    ("since", "looks"), [(0.0, True), (LIMIT - 1.0, True), (LIMIT, False), (-1.0, False), (None, False)]
)
def test_a_process_that_has_just_begun_says_that_it_looks_and_takes_back_nothing(
    since: float | None, looks: bool
) -> None:
    began = None if since is None else Seconds(NOON - since)
    condition = gpus_measured(interpret(replace(showing(Cause.NO_SERIES), watched_since=began)))
    assert (condition.truth is Truth.UNKNOWN, condition.reason == "Looking") == (looks, looks)
    assert condition.yields_to == (TOLD if looks else ())
    assert {"Measured", "NoGpu", "QueryRefused", *(each.value for each in Cause)} <= set(TOLD)


SLICE = catalog.mig_profile(catalog.gpu(KIND), "1g.10gb").kind


@pytest.mark.parametrize("change", [{"kind": SLICE}, {"one_household": True}], ids=["slice", "device plugin"])
def test_what_is_known_only_by_its_engine_is_not_missed_before_there_is_one(change: dict[str, Any]) -> None:
    """The first of the two has an engine."""
    first, other = showing(Cause.NO_SERIES).gpus
    nobodys = replace(other, gpu=replace(other.gpu, **change))
    used = replace(showing(0.4).gpus[0], gpu=replace(first.gpu, **change))
    looked = replace(showing(0.4), gpus=(used, nobodys))
    assert said(looked)[:2] == (Truth.TRUE, "Measured")
    unread = replace(looked, gpus=(replace(used, dram_active=first.dram_active), nobodys))
    assert said(unread)[:2] == (Truth.FALSE, "NoSeries")
    assert nobodys.gpu.uuid[:12] not in said(unread)[2]
    assert said(replace(looked, gpus=(nobodys,)))[:2] == (Truth.UNKNOWN, "NotInUse")


def test_without_gpus_nothing_is_to_be_measured() -> None:
    facts: Facts = replace(interpret(showing(0.4)), gpus={})
    assert (gpus_measured(facts).truth, gpus_measured(facts).reason) == (Truth.UNKNOWN, "NoGpu")
