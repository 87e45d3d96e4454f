"""Coefficients fitted to whole runs: what the runs tell apart is found again, and what they do not tell stays."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpupack.errors import Invalid
from gpupack.facts.serving import Lengths, Sharing
from gpupack.perf import calibration
from gpupack.perf.batching import predict_run
from gpupack.perf.fit import DECODE_RUNS, ObservedRun, fit_runs
from gpupack.perf.prediction import Coefficients
from gpupack.units import Seconds

from .engines import H100, group

LENGTHS = Lengths(input_mean=110.0, output_mean=290.0, output_cv=0.9)
OLD, V1 = calibration.coefficients("0.5.2"), calibration.coefficients("0.8.5")


def run(batch: int, truth: Coefficients, *, slower: float = 1.0, model: str = "llama-3.2-1b") -> ObservedRun:
    """What an engine of these coefficients would have been measured to do, `slower` times as slow."""
    asked = replace(group(model, batch=batch, lengths=LENGTHS, max_model_len=2048, chunked=False), coefficients=truth)
    got = predict_run(H100, (asked,), Sharing.EXCLUSIVE, 2000)
    return ObservedRun(
        group=asked,
        sharing=Sharing.EXCLUSIVE,
        requests=2000,
        total_tokens_per_second=got.total_tokens_per_second / slower,
        itl_mean=Seconds(got.groups[0].itl_mean * slower),
    )


def test_what_moved_is_found_again() -> None:
    truth = replace(
        OLD, host_per_layer=Seconds(OLD.host_per_layer * 1.3), gpu_per_layer=Seconds(OLD.gpu_per_layer * 1.3)
    )
    truth = replace(truth, host_per_sequence=Seconds(OLD.host_per_sequence * 0.7))
    fitted = fit_runs(H100, [run(batch, truth) for batch in (1, 8, 32, 96, 256)], OLD)
    assert fitted.host_per_layer == pytest.approx(truth.host_per_layer, rel=0.02)
    assert fitted.host_per_sequence == pytest.approx(truth.host_per_sequence, rel=0.02)
    assert fitted.kv_read_efficiency == OLD.kv_read_efficiency
    assert fitted.error < 0.005


def test_one_slow_node_does_not_bend_the_curve() -> None:
    runs = [run(batch, OLD) for batch in (1, 8, 16, 32, 64, 96, 128, 256)]
    fitted = fit_runs(H100, [*runs, run(4, OLD, slower=1.3)], OLD)
    assert fitted.host_per_layer == pytest.approx(OLD.host_per_layer, rel=0.06)
    assert fitted.host_per_sequence == pytest.approx(OLD.host_per_sequence, rel=0.06)


def test_a_host_that_works_by_the_step_is_found_by_two_models_or_by_one() -> None:
    truth = replace(V1, host_per_step=Seconds(1.5e-3))
    both = [run(batch, truth, model=model) for batch in (8, 64, 256) for model in ("llama-3.2-1b", "llama-3.1-8b")]
    for runs in (both, both[::2]):
        assert fit_runs(H100, runs, V1, DECODE_RUNS).host_per_step == pytest.approx(1.5e-3, rel=0.03)


def test_a_fit_to_nothing_is_refused() -> None:
    with pytest.raises(Invalid, match="no measured run"):
        fit_runs(H100, [], OLD)


def test_v1_without_any_run_of_it_keeps_what_does_not_depend_on_the_host() -> None:
    carried = calibration.carried_over(OLD)
    assert carried.kv_read_efficiency == OLD.kv_read_efficiency
    assert carried.host_per_sequence < OLD.host_per_sequence
    assert carried.error >= V1.error
    assert not carried.ingest_stalls
