"""How far the model is from hardware on what it was not fitted to: models left out, of the older engine and of V1."""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import mean

from gpupack import catalog
from gpupack.facts.llm import Dtype
from gpupack.facts.serving import Lengths, Sharing
from gpupack.perf import calibration
from gpupack.perf.fit import DECODE_RUNS, ONLINE_RUNS, Free, ObservedRun, fit_runs, misses
from gpupack.perf.memory import default_shape
from gpupack.perf.prediction import Coefficients, EngineGroup
from gpupack.units import Seconds

from .runs import GPU, REQUESTS, read

ONLINE = [
    ObservedRun(
        group=run.group,
        sharing=Sharing.EXCLUSIVE,
        requests=REQUESTS,
        total_tokens_per_second=run.total_tokens_per_second,
        itl_mean=Seconds(run.itl_mean),
    )
    for file in ("batch_sweep.csv", "constant_lengths.csv", "replication.csv")
    for run in read(file)
    if run.group.replicas == 1
]


def decode_runs() -> list[ObservedRun]:
    lines = Path(__file__).with_name("v1_decode.csv").read_text(encoding="utf-8").splitlines()
    found = []
    for row in csv.DictReader(line for line in lines if line[0] != "#"):
        llm, requests = catalog.llm(row["model"]), int(row["requests"])
        asked, answered = int(row["input_tokens"]), int(row["output_tokens"])
        shape = default_shape(
            llm, Dtype.BFLOAT16, GPU, max_num_seqs=int(row["max_num_seqs"]), max_num_batched_tokens=2048
        )
        group = EngineGroup(
            llm=llm,
            dtype=Dtype.BFLOAT16,
            shape=shape,
            lengths=Lengths(input_mean=asked, output_mean=answered, input_cv=0.0, output_cv=0.0),
            replicas=1,
            request_rate=None,
            coefficients=calibration.coefficients("0.8.5"),
        )
        found.append(
            ObservedRun(
                group=group,
                sharing=Sharing.EXCLUSIVE,
                requests=requests,
                total_tokens_per_second=requests * (asked + answered) / float(row["seconds"]),
                itl_mean=Seconds(float(row["itl_mean_ms"]) / 1e3),
            )
        )
    return found


def errors(runs: list[ObservedRun], coefficients: Coefficients) -> tuple[list[float], list[float]]:
    found = [misses(GPU, run, coefficients) for run in runs]
    return [abs(each[0]) for each in found], [abs(each[1]) for each in found]


def left_out(runs: list[ObservedRun], free: tuple[Free, ...]) -> tuple[list[float], list[float]]:
    """Errors of every run, predicted by coefficients that were fitted to the other models."""
    throughput, itl = [], []
    for model in sorted({run.group.llm.name for run in runs}):
        others = [run for run in runs if run.group.llm.name != model]
        fitted = fit_runs(GPU, others, runs[0].group.coefficients, free)
        mine = errors([run for run in runs if run.group.llm.name == model], fitted)
        throughput += mine[0]
        itl += mine[1]
    return throughput, itl


def test_a_model_left_out_of_the_fit_is_predicted_within_three_per_cent() -> None:
    throughput, itl = left_out(ONLINE, ONLINE_RUNS)
    assert mean(throughput) <= 0.030
    assert mean(itl) <= 0.030
    assert max(throughput + itl) <= 0.12


def test_a_v1_model_is_predicted_by_what_another_one_taught() -> None:
    throughput, itl = left_out(decode_runs(), DECODE_RUNS)
    assert mean(throughput) <= 0.04
    assert mean(itl) <= 0.04


def test_v1_is_predicted_without_any_run_of_it() -> None:
    throughput, itl = errors(decode_runs(), calibration.carried_over(calibration.coefficients("0.5.2")))
    assert mean(throughput) <= 0.08
    assert mean(itl) <= 0.08


def test_the_shipped_coefficients_are_those_that_the_code_fits() -> None:
    some = ONLINE[::3]
    fitted = fit_runs(GPU, some, calibration.coefficients("0.5.2"))
    before, after = errors(some, calibration.coefficients("0.5.2")), errors(some, fitted)
    assert abs(mean(before[0]) - mean(after[0])) < 0.003
    assert abs(mean(before[1]) - mean(after[1])) < 0.003
