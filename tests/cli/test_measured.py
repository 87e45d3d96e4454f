"""Measured runs are read as vLLM's benchmarks write them, and refused with one sentence that says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpupack.cli import main
from gpupack.cli.measured import read_points
from gpupack.errors import Invalid

LIMITS = {1: (380.0, 3.6), 32: (5700.0, 7.5), 96: (9000.0, 13.9), 256: (10800.0, 29.3)}


def bench_result(limit: int, **more: object) -> dict[str, Any]:
    """The JSON that `vllm bench serve --save-result` writes (vllm/benchmarks/serve.py), shortened to its main keys."""
    tokens, itl = LIMITS[limit]
    return {
        "date": "20261101-101010",
        "endpoint_type": "openai",
        "backend": "openai",
        "label": None,
        "model_id": "m",
        "tokenizer_id": "m",
        "num_prompts": 2000,
        "request_rate": "inf",
        "burstiness": 1.0,
        "max_concurrency": limit,
        "duration": 100.0,
        "completed": 2000,
        "failed": 0,
        "total_input_tokens": 221292,
        "total_output_tokens": 584700,
        "request_throughput": 20.0,
        "request_goodput": None,
        "output_throughput": 0.72 * tokens,
        "total_token_throughput": tokens,
        "max_output_tokens_per_s": tokens,
        "max_concurrent_requests": limit,
        "mean_ttft_ms": 50.0,
        "mean_tpot_ms": itl + 0.1,
        "median_tpot_ms": itl,
        "mean_itl_ms": itl,
        "p99_itl_ms": 2 * itl,
        **more,
    }


def test_a_sweep_folder_of_vllm_is_a_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`vllm bench sweep serve`: a folder a combination, the swept parameters in each run beside the result."""
    for limit in LIMITS:
        folder = tmp_path / "20261101_101010" / f"SERVE--max_num_seqs={limit}-BENCH--max_concurrency=512"
        folder.mkdir(parents=True)
        swept = {"max_num_seqs": limit, "max_concurrency": 512}
        runs = [
            {**bench_result(limit), "mean_itl_ms": LIMITS[limit][1] + offset, "run_number": number, **swept}
            for number, offset in enumerate((-0.5, 0.0, 0.5))
        ]
        for run in runs:
            (folder / f"run={run['run_number']}.json").write_text(json.dumps(run, indent=4))
        (folder / "summary.json").write_text(json.dumps(runs, indent=4))
    (tmp_path / "20261101_101010" / "SERVE--max_num_seqs=999-failure.json").write_text('{"error_type": "OSError"}')
    points = read_points(tmp_path)
    assert [point.max_num_seqs for point in points] == list(LIMITS)
    assert points[1].itl_mean == pytest.approx(7.5e-3)
    assert points[1].tpot_mean == pytest.approx(7.6e-3)
    assert main(["advise", "--profile", str(tmp_path)]) == 0
    assert "batch 96" in capsys.readouterr().out


def test_a_sweep_folder_that_kept_only_its_table_is_read_too(tmp_path: Path) -> None:
    rows = "".join(f"{i},{tokens},{itl},{limit}\n" for i, (limit, (tokens, itl)) in enumerate(LIMITS.items()))
    (tmp_path / "summary.csv").write_text(",total_token_throughput,mean_itl_ms,max-num-seqs\n" + rows)
    assert [point.max_num_seqs for point in read_points(tmp_path)] == list(LIMITS)


def test_results_appended_to_one_file_and_their_metadata_are_read(tmp_path: Path) -> None:
    """`vllm bench serve --append-result --metadata kv_peak_bytes=...`: text values beside the result's own keys."""
    file = tmp_path / "openai-infqps-m.json"
    memory = {"kv_peak_bytes": "1000000", "kv_space_bytes": "4000000", "gpu_memory_bytes": "16000000"}
    file.write_text("\n".join(json.dumps(bench_result(limit, **memory)) for limit in LIMITS))
    points = read_points(file)
    assert [point.max_num_seqs for point in points] == list(LIMITS)
    assert points[0].kv_peak_bytes == 1_000_000
    assert points[0].gpu_memory_bytes == 16_000_000


def test_a_full_kv_cache_counts_as_preemption_where_nobody_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f"{limit},{tokens},{itl},{limit * 1000},96000\n" for limit, (tokens, itl) in LIMITS.items())
    file = tmp_path / "runs.csv"
    file.write_text("max_num_seqs,total_token_throughput,mean_itl_ms,kv_peak_bytes,kv_space_bytes\n" + rows)
    assert main(["advise", "--profile", str(file), "--slo-factor", "9", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["measured_bca"]["max_num_seqs"] == 32


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("max_num_seqs,mean_itl_ms\n1,3\n", "total_tokens_per_second"),
        ("max_num_seqs,total_token_throughput,mean_itl_ms\n1.5,3,3\n", "batch limit"),
        ("max_num_seqs,total_token_throughput,mean_itl_ms\n1,nan,3\n", "total_token_throughput"),
        ('[{"max_num_seqs": 1}, ', "not JSON"),
        ("[1]", "not a measured run"),
        ("max_num_seqs,total_token_throughput,mean_itl_ms\n", "no measured run"),
    ],
)
def test_what_is_no_measured_run_is_refused(text: str, wrong: str, tmp_path: Path) -> None:
    file = tmp_path / "runs"
    file.write_text(text)
    with pytest.raises(Invalid, match=wrong):
        read_points(file)


def test_a_profile_without_the_limits_that_the_formulas_need_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "runs.json"
    for limits, wrong in (((32, 96), "batch limit 1"), ((1, 96), "batch limit 32")):
        file.write_text(json.dumps([bench_result(limit) for limit in limits]))
        assert main(["advise", "--profile", str(file)]) == 2
        assert wrong in capsys.readouterr().err
    assert main(["advise", "--profile", str(file), "--itl-slo-ms", "20"]) == 0
    assert main(["advise", "--profile", str(file), "--gpu", "L4"]) == 2
