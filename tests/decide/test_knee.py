"""BCA as published, on curves of a few points: which batch limit, and what is said where the runs do not tell."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpupack.decide.knee import CurvePoint, Latency, b_opt, measured_knee
from gpupack.errors import Invalid
from gpupack.facts.serving import ProfilePoint
from gpupack.units import Bytes, Ratio, Seconds


def point(limit: int, tokens: float, latency: float = 0.01, *, held: bool = True) -> CurvePoint:
    return CurvePoint(max_num_seqs=limit, total_tokens_per_second=tokens, latency=Seconds(latency), held=held)


CURVE = [point(8, 400.0, 0.020), point(1, 100.0, 0.010), point(16, 500.0, 0.030), point(32, 500.0, 0.050)]


@pytest.mark.parametrize(
    ("slo", "least", "found"),
    [
        (None, 0.1, 16),  # of two that bring the same the smaller
        (0.030, 0.1, 16),
        (0.029, 0.1, 8),
        (0.019, 0.1, 1),
        (0.009, 0.1, None),
        (None, 0.3125, 8),  # 500 / (16 x 100) is no more than that
        (None, 0.3124, 16),
        (None, 2.0, 1),  # a batch of one is the measure of efficiency
    ],
)
def test_the_most_throughput_within_the_promise_and_above_the_efficiency(
    slo: float | None, least: float, found: int | None
) -> None:
    assert b_opt(CURVE, None if slo is None else Seconds(slo), Ratio(least)) == found


def test_a_run_that_preempted_is_no_candidate() -> None:
    held = [replace(each, held=each.max_num_seqs < 16) for each in CURVE]
    assert b_opt(held, None, Ratio(0.1)) == 8


def run(limit: int, tokens: float, itl: float, **fields: object) -> ProfilePoint:
    given = {"tpot_mean": Seconds(2 * itl), **fields}
    return ProfilePoint(
        max_num_seqs=limit, total_tokens_per_second=tokens, itl_mean=Seconds(itl), **given,  # type: ignore[arg-type]
    )  # fmt: skip


SPACE = {"kv_space_bytes": Bytes(1000), "gpu_memory_bytes": Bytes(4000)}
RUNS = [
    run(1, 100.0, 0.010, kv_peak_bytes=Bytes(100), **SPACE),
    run(8, 400.0, 0.020, kv_peak_bytes=Bytes(400), **SPACE),
    run(32, 600.0, 0.050, kv_peak_bytes=Bytes(998), **SPACE),
    run(64, 900.0, 0.090, kv_peak_bytes=Bytes(999), **SPACE),
]


def test_what_the_measured_knee_frees_and_keeps() -> None:
    knee = measured_knee(RUNS, slo_factor=0.5, slo=None, min_efficiency=Ratio(0.1))
    assert (knee.max_num_seqs, knee.slo, knee.latency, knee.keeps_slo) == (8, 0.025, 0.020, True)
    assert (knee.efficiency, knee.share_of_best) == (0.5, pytest.approx(400.0 / 600.0))
    assert (knee.freed_bytes, knee.freed_fraction) == (600, 0.15)


def test_a_run_that_filled_its_cache_is_taken_to_have_preempted_unless_it_counted() -> None:
    wide = measured_knee(RUNS, slo_factor=9.0, slo=None, min_efficiency=Ratio(0.1))
    assert wide.max_num_seqs == 32
    for count, found in ((0, 64), (1, 32)):
        counted = [*RUNS[:3], replace(RUNS[3], preemptions=count)]
        assert measured_knee(counted, slo_factor=9.0, slo=None, min_efficiency=Ratio(0.1)).max_num_seqs == found
    for missing in ({"kv_space_bytes": None}, {"kv_peak_bytes": None}):
        unknown = [*RUNS[:3], replace(RUNS[3], **missing)]
        knee = measured_knee(unknown, slo_factor=9.0, slo=None, min_efficiency=Ratio(0.1))
        assert (knee.max_num_seqs, knee.freed_bytes, knee.freed_fraction) == (64, None, None)
    unsized = [replace(each, gpu_memory_bytes=None) for each in RUNS]
    knee = measured_knee(unsized, slo_factor=9.0, slo=None, min_efficiency=Ratio(0.1))
    assert (knee.freed_bytes, knee.freed_fraction) == (2, None)


def test_where_nothing_keeps_the_promise_the_smallest_batch_is_reported() -> None:
    knee = measured_knee(RUNS, slo_factor=1.0, slo=Seconds(0.001), min_efficiency=Ratio(0.1))
    assert (knee.max_num_seqs, knee.keeps_slo) == (1, False)


def test_the_promise_may_be_on_the_time_per_output_token() -> None:
    knee = measured_knee(RUNS, slo_factor=1.0, slo=Seconds(0.040), min_efficiency=Ratio(0.1), latency=Latency.TPOT)
    assert (knee.max_num_seqs, knee.latency) == (8, 0.040)


@pytest.mark.parametrize(
    ("points", "slo", "latency", "problem"),
    [
        (RUNS[1:], 0.1, Latency.ITL, "no run at batch limit 1"),
        (RUNS[:2], None, Latency.ITL, "32"),
        ([replace(RUNS[0], tpot_mean=None)], 0.1, Latency.TPOT, "no time per output token"),
    ],
)
def test_runs_that_do_not_hold_what_the_formulas_need_are_refused(
    points: list[ProfilePoint], slo: float | None, latency: Latency, problem: str
) -> None:
    with pytest.raises(Invalid, match=problem):
        measured_knee(
            points, slo_factor=1.0, slo=None if slo is None else Seconds(slo), min_efficiency=Ratio(0.1),
            latency=latency,
        )  # fmt: skip
