"""`gpupack validate` reads an extract, says what was not in it, and writes one page and one JSON file.

Figures typed from arXiv 2503.08311 and 2508.08343 and their repositories (see tests/published), a few of each kind.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from gpupack.cli import main

SUMMARY = """\
path,num_prompts,total_input_tokens,total_output_tokens,total_token_throughput,mean_itl_ms,kv_cache_max_pct,preemptions,\
gpu_blocks,max_num_seqs
background/opt-1.3b/_32_,2000,221292,584700,5734.1,7.51,5.78,0.0,18573,32
background/opt-2.7b/_32_,2000,221292,562700,3943.3,11.09,10.33,0.0,10626,32
background/llama-2-7b/_32_,2000,225574,646300,2403.5,17.64,18.66,0.0,5659,32
background/llama-2-7b/_256_,2000,225574,646300,5255.7,56.75,99.98,543.0,5644,256
advisor/output_length/_260/opt-1.3b/_32__2000,2000,484000,520000,9168,6.65,5.3,0.0,18573,32
advisor/output_length/_260/opt-2.7b/_32__2000,2000,484000,520000,6192,9.78,9.3,0.0,10626,32
replication/overall_metrics/opt-1.3b/_96__1,2000,221292,584704,9120.9,13.78,15.87,0.0,18525,96
replication/overall_metrics/opt-1.3b/_96__2,2000,221292,584764,12313.9,18.98,31.2,0.0,8749,96
replication/gpu_metrics/opt-1.3b/_96__1,2000,221292,584642,9082.4,13.80,,,18525,96
"""
TIME_SHARED = """\
model,max_num_seqs,replicas,mps,total_token_throughput,mean_itl_ms,median_ttft_ms,commit,date
opt-1.3b,96,1,none,9120.9,13.78,39390,0eebd53e,2025-03-03
opt-1.3b,96,2,no,10493.9,22.17,28677,0eebd53e,2025-03-03
"""
CALIBRATION = """\
estimator,path,max-num-seqs,num_prompts,duration,total_input_tokens,total_output_tokens,mean_itl_ms,kv_tokens
predictor_default_latency,llama-3.1-8b-instruct/input/_100__100_1,100,4096,27.2,856064,4096,0.0,334944
predictor_default_latency,llama-3.1-8b-instruct/output/_200__1_400,200,4096,163.906,20480,1638400,19.08,334816
predictor_default_latency,qwen-2.5-7b-instruct/output/_200__1_400,200,4096,164.268,16384,1638400,19.12,
predictor_default_latency,qwen-2.5-7b-instruct/output/_50__1_400,50,4096,457.347,16384,1638400,13.85,778016
predictor_latency_overhead,qwen-2.5-7b-instruct/overhead_small/output/_1,200,400,60.0,1600,40000,36.6,700000
"""
# The engines' counters of the two replication runs: tokens a second while requests waited, as published (6,873 and
# 9,713), then nobody waits any more.
RATES = {
    "replication/overall_metrics/opt-1.3b/_96__1": (6873.0, 1),
    "replication/overall_metrics/opt-1.3b/_96__2": (9713.0, 2),
}


@pytest.fixture
def extract(tmp_path: Path) -> Path:
    gap, adapters = tmp_path / "data/vLLMBatchingMemoryGap", tmp_path / "data/GPULLMAdapterOptimization"
    gap.mkdir(parents=True)
    adapters.mkdir()
    (gap / "online_summary.csv").write_text(SUMMARY)
    (gap / "replication_mps_vs_timesharing.csv").write_text(TIME_SHARED)
    (adapters / "estimator_calibration_runs.csv").write_text(CALIBRATION)
    with gzip.open(gap / "engine_timeseries.csv.gz", "wt", encoding="utf-8") as counters:
        counters.write(
            "path,server,time_s,gpu_cache_usage,running,waiting,preemptions,prompt_tokens,generation_tokens\n"
        )
        for path, (rate, servers) in RATES.items():
            for server in range(servers):
                for second in range(60):
                    waiting = 500 if second < 50 else 0
                    counters.write(f"{path},{server},{second},0.3,96,{waiting},0,0,{second * rate / servers}\n")
    return tmp_path / "data"


def validate(directory: Path, capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    report = directory.parent / "report.html"
    assert main(["validate", "--data", str(directory), "--report", str(report), "--json", *words]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads(report.with_suffix(".json").read_text()) == printed
    return printed


def test_every_run_is_predicted_simulated_and_judged(extract: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = validate(extract, capsys)
    assert len(found["runs"]) == 8 + 1 + 3, "a run under a profiler is none, nor one with adapters or without decode"
    assert all(abs(run["predicted_error"]["throughput"]) < 0.15 for run in found["runs"])
    assert all(run["total_tokens_per_second"]["simulated"] > 0 for run in found["runs"])
    names = {line["name"] for line in found["accuracy"]}
    assert {"leave one model out", "V1, leave one model out", "V1 without coefficients of its own"} <= names
    assert {line["name"] for line in found["by_model"]} >= {"opt-1.3b", "qwen2.5-7b"}
    preempted = [run for run in found["runs"] if run["preemptions"]]
    assert [run["kv_starved"] for run in preempted] == [True]
    assert found["absent"] == []


def test_gains_are_those_of_whole_runs_and_steady_ones_those_of_the_counters(
    extract: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mps, sliced = validate(extract, capsys, "--quick")["gains"]
    assert mps["measured"] == pytest.approx(12313.9 / 9120.9, rel=1e-5)
    assert mps["steady_measured"] == pytest.approx(9713 / 6873, rel=1e-5)
    assert mps["predicted"] == pytest.approx(mps["measured"], rel=0.05)
    assert mps["steady_predicted"] == pytest.approx(mps["steady_measured"], rel=0.05)
    assert sliced["sharing"] == "TimeSlicing"
    assert sliced["steady_measured"] is None
    assert mps["simulated"] is None


def test_the_page_needs_nothing_beside_it_and_shows_its_figures(
    extract: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    validate(extract, capsys, "--quick")
    page = (extract.parent / "report.html").read_text()
    assert page.count("<svg") == 5
    assert "<script" not in page
    assert 'src="' not in page.replace("xlink:href", "")
    assert "the twin was not asked" in page
    assert "background/llama-2-7b/_256_" in page


def test_what_the_directory_lacks_is_said(extract: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (extract / "vLLMBatchingMemoryGap/engine_timeseries.csv.gz").unlink()
    (extract / "GPULLMAdapterOptimization/estimator_calibration_runs.csv").unlink()
    report = extract.parent / "report.html"
    assert main(["validate", "--data", str(extract), "--quick", "--report", str(report)]) == 0
    said = capsys.readouterr().out
    assert "nothing is said of vLLM V1" in said
    assert "nothing is said of steady rates" in said
    assert "nothing is said of vLLM V1" in report.read_text()
    assert "V1" not in [line.split(",")[0] for line in said.splitlines()]


def test_a_directory_without_measurements_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--data", str(tmp_path)]) == 2
    assert "VALIDATION.md" in capsys.readouterr().err
    (tmp_path / "vLLMBatchingMemoryGap").mkdir()
    (tmp_path / "vLLMBatchingMemoryGap/online_summary.csv").write_text("path,num_prompts\nbackground/opt-1.3b/_1_,x\n")
    assert main(["validate", "--data", str(tmp_path)]) == 2
    assert "make it anew" in capsys.readouterr().err
