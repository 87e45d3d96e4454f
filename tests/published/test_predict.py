"""How far whole runs predicted in closed form are from hardware: figures that may only get better."""

from __future__ import annotations

from statistics import mean

import pytest

from gpupack.facts.serving import Sharing
from gpupack.perf.batching import predict_run

from .runs import GPU, REQUESTS, PublishedRun, read


def throughput_error(run: PublishedRun) -> float:
    return (
        predict_run(GPU, (run.group,), run.sharing, REQUESTS).total_tokens_per_second / run.total_tokens_per_second - 1
    )


def itl_error(run: PublishedRun) -> float:
    return predict_run(GPU, (run.group,), run.sharing, REQUESTS).groups[0].itl_mean / run.itl_mean - 1


def mape(errors: list[float]) -> float:
    return mean(abs(error) for error in errors)


@pytest.mark.parametrize(
    ("file", "throughput", "itl", "worst_throughput", "worst_itl"),
    [
        ("batch_sweep.csv", 0.021, 0.022, 0.10, 0.10),
        ("constant_lengths.csv", 0.024, 0.025, 0.08, 0.10),
        ("replication.csv", 0.030, 0.030, 0.09, 0.09),
    ],
)
def test_a_predicted_run_is_as_near_to_hardware_as_it_was(
    file: str, throughput: float, itl: float, worst_throughput: float, worst_itl: float
) -> None:
    runs = read(file)
    throughputs, itls = [throughput_error(run) for run in runs], [itl_error(run) for run in runs]
    assert mape(throughputs) <= throughput
    assert mape(itls) <= itl
    assert max(map(abs, throughputs)) <= worst_throughput
    assert max(map(abs, itls)) <= worst_itl


def test_one_engine_is_within_three_per_cent_of_throughput_and_four_of_latency_on_average() -> None:
    files = ("batch_sweep.csv", "constant_lengths.csv", "replication.csv")
    alone = [run for file in files for run in read(file) if run.group.replicas == 1]
    assert len(alone) > 100
    assert mape([throughput_error(run) for run in alone]) <= 0.03
    assert mape([itl_error(run) for run in alone]) <= 0.04


def test_the_gain_of_replicas_over_one_engine_is_within_six_per_cent_each_and_three_on_average() -> None:
    runs = read("replication.csv")
    alone = {
        (run.group.llm.name, run.group.shape.max_num_seqs): run
        for run in runs
        if run.group.replicas == 1 and not run.group.shape.chunked_prefill
    }
    errors = []
    for run in runs:
        if run.group.replicas > 1:
            one = alone[(run.group.llm.name, run.group.shape.max_num_seqs)]
            errors.append((1 + throughput_error(run)) / (1 + throughput_error(one)) - 1)
    assert len(errors) == 7
    assert max(map(abs, errors)) <= 0.06
    assert mape(errors) <= 0.03


def test_four_engines_by_time_slicing_bring_less_than_two_and_by_mps_more() -> None:
    runs = {
        (run.group.replicas, run.sharing): predict_run(GPU, (run.group,), run.sharing, REQUESTS)
        for run in read("replication.csv")
        if run.group.llm.name == "facebook/opt-1.3b" and run.group.shape.max_num_seqs == 96
    }
    sliced = [runs[(count, Sharing.TIME_SLICING)].total_tokens_per_second for count in (2, 4)]
    shared = [runs[(count, Sharing.MPS)].total_tokens_per_second for count in (2, 4)]
    assert sliced[1] < sliced[0]
    assert shared[1] > shared[0]
    assert shared[1] > 1.25 * sliced[1]


def test_runs_that_preempted_are_said_to_be_short_of_kv_cache() -> None:
    for file in ("batch_sweep.csv", "constant_lengths.csv", "replication.csv"):
        for run in read(file):
            predicted = predict_run(GPU, (run.group,), run.sharing, REQUESTS).groups[0]
            assert predicted.kv_starved or run.preemptions == 0, run.name


@pytest.mark.parametrize(("file", "points"), [("batch_sweep.csv", 0.08), ("constant_lengths.csv", 0.04)])
def test_the_peak_of_kv_use_is_foreseen(file: str, points: float) -> None:
    for run in read(file):
        predicted = predict_run(GPU, (run.group,), run.sharing, REQUESTS).groups[0]
        assert predicted.kv_peak_fraction == pytest.approx(run.kv_peak, abs=points), run.name
