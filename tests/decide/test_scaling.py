"""What the scale of a counter is measured from, what is left out, and when it is enough."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from gpupack.decide.scaling import ENOUGH, LEAST_SHARE, Samples, sampled, with_scales
from gpupack.facts.counter import Counter, Scale
from gpupack.facts.interpretation import GpuFacts, Known, interpret
from gpupack.facts.observation import Cause, Missing, Observation, Reading
from gpupack.units import Seconds

from ..strategies import NOON, gpu
from .boards import seen

DCGM, BUSY = Counter.DCGM_DRAM_ACTIVE, Counter.NVML_MEMORY_BUSY
KIND = "H100-80GB"
NOTHING = Missing(cause=Cause.NO_SERIES, origin="counter")
ONE = "gpus: {a: }\nservings: {chat: {batch: 64}}"


def reads(shown: Known, counter: Counter = DCGM, moved: Known = 0.5) -> GpuFacts:
    return GpuFacts(
        gpu=gpu(0), node_ready=True, dram_active=moved, fb_used=0.0, foreign=(), counter=counter, shown=shown
    )  # fmt: skip


def logarithms(shown: Known, share: float, counter: Counter = DCGM, moved: Known = 0.5) -> tuple[float, ...]:
    """Of one sample: none if it does not count."""
    return dict(sampled({}, reads(shown, counter, moved), share)).get((KIND, counter), ())


def test_a_sample_is_what_the_counter_shows_over_what_the_engines_move() -> None:
    assert logarithms(0.6, 0.5) == (pytest.approx(math.log(1.2)),)


@pytest.mark.parametrize("counter", list(Counter))
def test_a_counter_that_shows_nothing_is_not_sampled(counter: Counter) -> None:
    assert logarithms(NOTHING, 0.5, counter) == ()


def test_only_a_counter_of_time_may_be_sampled_before_it_tells_of_traffic() -> None:
    assert logarithms(0.6, 0.5, DCGM, moved=NOTHING) == ()
    assert len(logarithms(0.6, 0.5, BUSY, moved=NOTHING)) == 1


@pytest.mark.parametrize(
    ("shown", "share", "counter", "counts"),
    [
        (LEAST_SHARE, LEAST_SHARE, DCGM, True),
        (LEAST_SHARE, LEAST_SHARE - 0.001, DCGM, False),
        (0.125, 0.375, DCGM, True),
        (0.124, 0.375, DCGM, False),
        (0.75, 0.25, DCGM, True),
        (0.76, 0.25, DCGM, False),
        (0.76, 0.25, BUSY, True),
        (0.96, 0.032, BUSY, True),
        (0.97, 0.032, BUSY, False),
    ],
)
def test_what_a_counter_cannot_show_is_no_sample(shown: float, share: float, counter: Counter, counts: bool) -> None:
    """A third of the traffic to three times as much, of a counter of time to thirty times; none below 3 % of the
    peak."""
    assert bool(logarithms(shown, share, counter)) is counts


def test_the_newest_samples_of_a_counter_are_kept_beside_those_of_others() -> None:
    other = (0.0,)
    samples: Samples = {("L4", DCGM): other, (KIND, DCGM): tuple(float(each) for each in range(ENOUGH))}
    found = sampled(samples, reads(0.5), 0.5)
    assert found["L4", DCGM] == other
    assert found[KIND, DCGM] == (1.0, 2.0, 3.0, 4.0, 0.0)


# When it is enough


def scaled(*logs: float, kept: tuple[Scale, ...] = ()) -> Observation:
    observation = replace(seen(ONE), scales=kept)
    return with_scales(observation, interpret(observation), {(KIND, BUSY): logs})[0]


def test_a_scale_is_measured_once_five_samples_agree() -> None:
    assert scaled(*[math.log(1.5)] * 4).scales == ()
    [found] = scaled(*[math.log(1.5)] * 5).scales
    assert found == Scale(gpu_kind=KIND, counter=BUSY, ratio=1.5, measured_at=NOON)


@pytest.mark.parametrize(("apart", "agree"), [(0.29, True), (0.31, False)])
def test_samples_that_scatter_are_no_scale(apart: float, agree: bool) -> None:
    """0, 0, x, x, x/2 have a standard deviation of x / 2; 0.15 of the logarithm is the most."""
    assert bool(scaled(0.0, 0.0, apart, apart, apart / 2).scales) is agree


def test_without_a_new_scale_nothing_is_read_anew() -> None:
    observation = seen(ONE)
    facts = interpret(observation)
    same, as_before = with_scales(observation, facts, {(KIND, BUSY): (0.0,)})
    assert same is observation
    assert as_before is facts


def test_a_scale_is_the_geometric_mean_to_four_places() -> None:
    [found] = scaled(0.0, 0.1, 0.1, 0.1, 0.2).scales
    assert found.ratio == round(math.exp(0.1), 4)


def test_a_scale_that_is_kept_is_measured_no_more() -> None:
    kept = Scale(gpu_kind=KIND, counter=BUSY, ratio=2.0, measured_at=Seconds(NOON - 60.0))
    assert scaled(*[math.log(1.5)] * 5, kept=(kept,)).scales == (kept,)


def test_scales_stand_in_the_order_of_kinds_and_counters() -> None:
    kept = tuple(
        Scale(gpu_kind=kind, counter=BUSY, ratio=2.0, measured_at=Seconds(NOON - 60.0)) for kind in ("L4", "A30")
    )
    found = scaled(*[math.log(1.5)] * 5, kept=kept)
    assert [each.gpu_kind for each in found.scales] == ["A30", KIND, "L4"]


def test_what_the_counter_shows_is_read_by_the_new_scale_at_once() -> None:
    observation = seen(ONE)
    [one] = observation.gpus
    busy = replace(one, counter=BUSY, dram_active=Reading(value=0.6, at=NOON, origin="nvml"))
    observation = replace(observation, gpus=(busy,))
    facts = interpret(observation)
    assert isinstance(facts.gpus[busy.gpu.uuid].dram_active, Missing)
    _, after = with_scales(observation, facts, {(KIND, BUSY): (math.log(1.5),) * 5})
    assert after.gpus[busy.gpu.uuid].dram_active == pytest.approx(0.4)
