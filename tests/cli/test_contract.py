"""What the command line promises to scripts: names, units, exit statuses and one sentence for bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpupack.cli import COMMANDS, main

SMALL = ("--model", "llama-3.2-1b", "--gpu", "H100-80GB", "--input-tokens", "512", "--output-tokens", "256")

PREDICTED = {
    "total_tokens_per_second",
    "output_tokens_per_second",
    "itl_mean_seconds",
    "itl_p95_seconds",
    "ttft_mean_seconds",
    "ttft_p95_seconds",
    "dram_active",
    "dram_active_max",
    "saturation",
    "gpu_held",
    "running_mean",
    "kv_peak_fraction",
    "kv_tokens_needed",
    "memory_bytes",
    "fits",
    "bounds",
    "source",
}


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main([*words, "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return json.loads(printed.out)


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence of bad input; argparse leaves by SystemExit, our own checks return."""
    try:
        status = main(list(words))
    except SystemExit as left:
        status = int(left.code or 0)
    printed = capsys.readouterr()
    assert status == 2
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


def test_predict_gives_every_name_of_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    given = answer(capsys, "predict", *SMALL, "--max-num-seqs", "64", "--replicas", "2")
    assert set(given) >= PREDICTED
    assert given["fits"] is True
    assert set(given["memory_bytes"]) >= {"weights", "context", "graphs", "activation", "kv_cache", "total"}
    assert 0.0 < given["dram_active"] <= given["dram_active_max"] <= 1.0
    assert given["saturation"] == pytest.approx(given["dram_active"] / given["dram_active_max"], rel=1e-4)
    low, high = given["bounds"]["total_tokens_per_second"]
    assert low < given["total_tokens_per_second"] < high


def test_first_token_times_are_null_where_every_engine_is_kept_full(capsys: pytest.CaptureFixture[str]) -> None:
    full = answer(capsys, "predict", *SMALL)
    paced = answer(capsys, "predict", *SMALL, "--request-rate", "20")
    assert full["ttft_mean_seconds"] is None
    assert full["ttft_p95_seconds"] is None
    assert paced["ttft_mean_seconds"] < paced["ttft_p95_seconds"]
    assert paced["total_tokens_per_second"] == pytest.approx(20 * 768, rel=0.01)
    assert answer(capsys, "predict", *SMALL, "--request-rate", "inf") == full


def test_a_whole_run_is_slower_than_the_steady_state_by_its_ramp_and_tail(capsys: pytest.CaptureFixture[str]) -> None:
    steady = answer(capsys, "predict", *SMALL, "--max-num-seqs", "128")
    run = answer(capsys, "predict", *SMALL, "--max-num-seqs", "128", "--requests", "1000")
    assert run["total_tokens_per_second"] < steady["total_tokens_per_second"]


def test_what_does_not_fit_says_so_with_exit_status_zero(capsys: pytest.CaptureFixture[str]) -> None:
    given = answer(capsys, "predict", "--model", "llama-2-13b", "--gpu", "L4")
    assert given["fits"] is False
    assert "KV cache" in given["problem"]
    assert given["total_tokens_per_second"] is None
    assert given["memory_bytes"]["weights"] > 20e9
    crowded = answer(capsys, "predict", *SMALL, "--replicas", "4", "--gpu-memory-utilization", "0.5")
    assert crowded["fits"] is False
    assert "more than" in crowded["problem"]
    advised = answer(capsys, "advise", "--model", "llama-2-13b", "--gpu", "L4", "--itl-slo-ms", "100")
    assert advised["fits"] is False
    assert advised["replicas_per_gpu"] == 0
    assert advised["stop"]["reason"] == "Memory"
    assert advised["stop"]["margin"] < 0


def test_default_sharing_is_exclusive_for_one_engine_and_mps_for_several(capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "predict", *SMALL)["sharing"] == "exclusive"
    assert answer(capsys, "predict", *SMALL, "--replicas", "2")["sharing"] == "mps"
    assert answer(capsys, "predict", *SMALL, "--neighbour", "opt-125m:16")["sharing"] == "mps"


def test_time_slicing_is_slower_than_mps(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("predict", *SMALL, "--max-num-seqs", "64", "--replicas", "4")
    mps = answer(capsys, *words)
    sliced = answer(capsys, *words, "--sharing", "timeslicing")
    assert sliced["total_tokens_per_second"] < mps["total_tokens_per_second"]


def test_the_default_memory_share_is_nine_tenths_over_the_number_of_replicas(
    capsys: pytest.CaptureFixture[str],
) -> None:
    one = answer(capsys, "predict", *SMALL)
    two = answer(capsys, "predict", *SMALL, "--replicas", "2")
    assert two["fits"]
    assert two["memory_bytes"]["kv_cache"] < 0.5 * one["memory_bytes"]["kv_cache"]
    asked = answer(capsys, "predict", *SMALL, "--replicas", "2", "--gpu-memory-utilization", "0.45")
    assert asked["memory_bytes"] == two["memory_bytes"]
    given = answer(capsys, "predict", *SMALL, "--kv-cache-memory-bytes", "4Gi")
    assert given["memory_bytes"]["kv_cache"] == 4 * 2**30


def test_unlike_neighbours_are_engines_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--neighbour", "opt-125m:16", "--neighbour", "qwen2.5-0.5b:32")
    alone = answer(capsys, "predict", *SMALL, "--max-num-seqs", "64")
    given = answer(capsys, "predict", *SMALL, "--max-num-seqs", "64", *words)
    assert [each["model"] for each in given["engines"]] == [
        "meta-llama/Llama-3.2-1B",
        "facebook/opt-125m",
        "Qwen/Qwen2.5-0.5B",
    ]
    assert given["itl_mean_seconds"] > alone["itl_mean_seconds"]
    assert given["total_tokens_per_second"] > alone["total_tokens_per_second"]


def test_lengths_come_from_a_file_with_their_arrival_times(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "requests.csv"
    file.write_text("input_tokens,output_tokens,arrival_time\n" + "100,200,0.0\n300,400,0.1\n" * 20 + "100,200,2.0\n")
    given = answer(capsys, "predict", "--model", "llama-3.2-1b", "--gpu", "L4", "--lengths", str(file))
    assert given["request_rate"] == pytest.approx(40 / 2.0)
    full = answer(
        capsys, "predict", "--model", "llama-3.2-1b", "--gpu", "L4", "--lengths", str(file), "--request-rate", "inf"
    )
    assert full["request_rate"] is None
    assert full["ttft_mean_seconds"] is None


def test_measured_runs_become_coefficients(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("predict", *SMALL, "--max-num-seqs", "64")
    guess = answer(capsys, *words)
    slower = {batch: answer(capsys, "predict", *SMALL, "--max-num-seqs", str(batch)) for batch in (1, 8, 32, 64, 128)}
    rows = [
        {
            "max_num_seqs": batch,
            "total_tokens_per_second": each["total_tokens_per_second"] * 0.8,
            "itl_mean_seconds": each["itl_mean_seconds"] / 0.8,
        }
        for batch, each in slower.items()
    ]
    as_json, as_csv = tmp_path / "runs.json", tmp_path / "runs.csv"
    as_json.write_text(json.dumps({"points": rows}))
    as_csv.write_text(
        "max_num_seqs,total_tokens_per_second,itl_mean_seconds,kv_peak_bytes\n"
        + "".join(
            f"{row['max_num_seqs']},{row['total_tokens_per_second']},{row['itl_mean_seconds']},\n" for row in rows
        )
    )
    fitted = answer(capsys, *words, "--profile", str(as_json))
    assert fitted["total_tokens_per_second"] == pytest.approx(0.8 * guess["total_tokens_per_second"], rel=0.05)
    assert answer(capsys, *words, "--profile", str(as_csv)) == fitted


def test_advise_gives_every_name_of_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    given = answer(capsys, "advise", *SMALL, "--itl-slo-ms", "40", "--ttft-slo-ms", "500", "--frontier")
    assert set(given["shape"]) >= {"max_num_seqs", "kv_cache_memory_bytes", "vllm_args"}
    assert given["replicas_per_gpu"] >= 1
    assert given["stop_reason"] == given["stop"]["reason"]
    assert given["stop"]["margin"] < 0
    assert 0.0 < given["bca"]["freed_memory_fraction"] < 1.0
    assert given["rejected"]
    assert all({"max_num_seqs", "replicas", "reason", "margin"} <= set(each) for each in given["rejected"])
    assert [row["name"] for row in given["rows"]] == ["vllm-defaults", "swept", "bca", "packed"]
    for row in given["rows"]:
        assert row["itl_p95_seconds"] <= 0.0401
        assert row["ttft_p95_seconds"] <= 0.501
        assert row["kv_cache_bytes"] > 0
        assert 0.0 < row["saturation"] <= 1.0
    assert given["rows"][1]["plateau_total_tokens_per_second"] > 0
    assert given["frontier"]
    assert {"max_num_seqs", "replicas", "total_tokens_per_second", "itl_seconds"} <= set(given["frontier"][0])


def test_predict_of_the_advised_shape_keeps_the_promise(capsys: pytest.CaptureFixture[str]) -> None:
    advised = answer(capsys, "advise", *SMALL, "--itl-slo-ms", "25")
    shape = advised["shape"]
    given = answer(
        capsys,
        "predict",
        *SMALL,
        "--max-num-seqs",
        str(shape["max_num_seqs"]),
        "--kv-cache-memory-bytes",
        str(shape["kv_cache_memory_bytes"]),
        "--replicas",
        str(advised["replicas_per_gpu"]),
    )
    assert given["fits"]
    assert given["itl_p95_seconds"] <= 0.025
    assert given["total_tokens_per_second"] == advised["rows"][-1]["total_tokens_per_second"]


def test_advised_arguments_are_ready_for_vllm_serve(capsys: pytest.CaptureFixture[str]) -> None:
    words = answer(capsys, "advise", *SMALL, "--itl-slo-ms", "40")["shape"]["vllm_args"]
    assert words[0] == "meta-llama/Llama-3.2-1B"
    assert all(word.startswith("--") for word in words[1:])
    assert any(word.startswith("--kv-cache-memory-bytes=") for word in words)
    assert any(word.startswith("--gpu-memory-utilization=0.") for word in words)


def test_the_statistic_of_the_promise_is_the_users(capsys: pytest.CaptureFixture[str]) -> None:
    shapes = [
        answer(capsys, "advise", *SMALL, "--itl-slo-ms", "12", "--statistic", statistic, "--replicas", "1")["shape"]
        for statistic in ("mean", "p95", "p99")
    ]
    batches = [shape["max_num_seqs"] for shape in shapes]
    assert batches == sorted(batches, reverse=True)
    assert batches[0] > batches[1]


def test_without_a_promise_one_is_assumed_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "advise", *SMALL)["slo"]["assumed"] is True


def test_people_get_text(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("advise", *SMALL, "--itl-slo-ms", "40", "--frontier"), ("predict", *SMALL), ("catalog",)):
        assert main(list(words)) == 0
        printed = capsys.readouterr().out
        assert "{" not in printed
        assert len(printed.splitlines()) > 4


def test_a_promise_out_of_reach_is_answered_with_the_best_value(capsys: pytest.CaptureFixture[str]) -> None:
    given = answer(capsys, "advise", "--model", "llama-3.1-8b", "--gpu", "L4", "--itl-slo-ms", "20")
    assert given["fits"] is True
    assert given["unreachable"]["value"] > 0.020
    assert given["stop_reason"] == "LatencySlo"
    assert main(["advise", "--model", "llama-3.1-8b", "--gpu", "L4", "--itl-slo-ms", "20"]) == 0
    assert "out of reach" in capsys.readouterr().out


def test_a_latency_that_would_be_too_high_is_that_of_the_model_and_not_of_the_gpu(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["advise", "--model", "llama-3.2-1b", "--gpu", "H100-80GB", "--itl-slo-ms", "10"]) == 0
    assert "the inter-token latency of meta-llama/Llama-3.2-1B to" in capsys.readouterr().out


def test_a_picture_of_the_frontier_is_drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "frontier.png"
    answer(capsys, "advise", *SMALL, "--itl-slo-ms", "40", "--plot", str(file))
    assert file.read_bytes().startswith(b"\x89PNG")


def test_the_catalog_lists_every_gpu_and_model_with_its_provenance(capsys: pytest.CaptureFixture[str]) -> None:
    given = answer(capsys, "catalog")
    assert {"T4", "L4", "A10G", "A100-40GB", "A100-80GB", "H100-64GB", "H100-80GB", "H200"} == {
        each["name"] for each in given["gpus"]
    }
    assert len(given["models"]) == 14
    assert all(each["provenance"] and each["source"] for each in (*given["gpus"], *given["models"]))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("predict", "--gpu", "L4"), "--model"),
        (("predict", "--model", "opt-125m"), "--gpu"),
        (("predict", "--model", "gpt-9", "--gpu", "L4"), "--model"),
        (("predict", "--model", "opt-125m", "--gpu", "L5"), "--gpu"),
        (("predict", *SMALL, "--max-num-seqs", "0"), "--max-num-seqs"),
        (("predict", *SMALL, "--max-num-seqs", "many"), "--max-num-seqs"),
        (("predict", *SMALL, "--replicas", "-1"), "--replicas"),
        (("predict", *SMALL, "--replicas", "2", "--sharing", "exclusive"), "--sharing"),
        (("predict", *SMALL, "--sharing", "vgpu"), "--sharing"),
        (("predict", *SMALL, "--sharing", "mig"), "--mig-profile"),
        (("predict", *SMALL, "--sharing", "mps", "--mig-profile", "1g.10gb"), "--mig-profile"),
        (("predict", *SMALL, "--mig-profile", "1g.12gb"), "--mig-profile"),
        (("predict", *SMALL, "--mig-profile", "3g.40gb", "--replicas", "3"), "--replicas"),
        (("predict", "--model", "llama-3.2-1b", "--gpu", "L4", "--sharing", "mig"), "--mig-profile"),
        (("predict", "--model", "llama-3.2-1b", "--gpu", "H100-80GB-MIG-1g.10gb"), "--gpu"),
        (("predict", *SMALL, "--gpu-memory-utilization", "1.5"), "--gpu-memory-utilization"),
        (("predict", *SMALL, "--kv-cache-memory-bytes", "4 lots"), "--kv-cache-memory-bytes"),
        (
            ("predict", *SMALL, "--kv-cache-memory-bytes", "4Gi", "--gpu-memory-utilization", "0.5"),
            "--gpu-memory-utilization",
        ),
        (("predict", *SMALL, "--input-tokens", "0"), "--input-tokens"),
        (("predict", *SMALL, "--output-tokens", "nan"), "--output-tokens"),
        (("predict", *SMALL, "--input-cv", "-1"), "--input-cv"),
        (("predict", *SMALL, "--max-model-len", "10000000"), "--max-model-len"),
        (("predict", "--model", "opt-125m", "--gpu", "L4", "--input-tokens", "4000"), "--input-tokens"),
        (("predict", "--model", "opt-125m", "--gpu", "T4", "--dtype", "bfloat16"), "--dtype"),
        (("predict", *SMALL, "--chunked-prefill", "maybe"), "--chunked-prefill"),
        (("predict", *SMALL, "--max-num-seqs", "512", "--max-num-batched-tokens", "256"), "--max-num-batched-tokens"),
        (("predict", *SMALL, "--engine-version", "latest"), "--engine-version"),
        (("predict", *SMALL, "--request-rate", "0"), "--request-rate"),
        (("predict", *SMALL, "--requests", "0"), "--requests"),
        (("predict", *SMALL, "--neighbour", "opt-125m"), "--neighbour"),
        (("predict", *SMALL, "--neighbour", "gpt-9:4"), "--neighbour"),
        (("predict", *SMALL, "--profile", "/nowhere.csv"), "--profile"),
        (("predict", "--model", "opt-125m", "--gpu", "L4", "--lengths", "/nowhere.csv"), "--lengths"),
        (("predict", *SMALL, "--lengths", "/nowhere.csv"), "--lengths"),
        (("predict", *SMALL, "--seed", "x"), "--seed"),
        (("predict", *SMALL, "--max-num", "4"), "--max-num"),
        (("advise", *SMALL, "--itl-slo-ms", "0"), "--itl-slo-ms"),
        (("advise", *SMALL, "--statistic", "p50"), "--statistic"),
        (("advise", *SMALL, "--min-efficiency", "10"), "--min-efficiency"),
        (("advise", *SMALL, "--neighbour", "opt-125m:4"), "--neighbour"),
        (("advise", *SMALL, "--sharing", "timeslicing"), "--sharing"),
        (("advise", *SMALL, "--plot", "/nowhere/at/all.png"), "--plot"),
        (("advise", *SMALL, "--plot", "frontier.docx"), "--plot"),
        (("juggle",), "COMMAND"),
        ((), "COMMAND"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[-2:]),
)
def test_bad_input_is_exit_status_two_and_one_sentence_that_names_the_option(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], named: str
) -> None:
    assert named in complaint(capsys, *words)


@pytest.mark.parametrize(
    ("option", "text", "where"),
    [
        ("--lengths", "prompt,answer\n1,2\n", "input_tokens"),
        ("--lengths", "input_tokens,output_tokens\n1,2\n3,none\n", "line 3"),
        ("--lengths", "input_tokens,output_tokens\n", "no request"),
        ("--lengths", "input_tokens,output_tokens,arrival_time\n1,2,nan\n", "line 2"),
        ("--profile", "max_num_seqs,total_tokens_per_second\n1,2\n", "row 1"),
        ("--profile", "max_num_seqs,total_tokens_per_second,itl_mean_seconds\n", "no measured run"),
    ],
)
def test_a_bad_file_is_named_with_its_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str, text: str, where: str
) -> None:
    file = tmp_path / "given.csv"
    file.write_text(text)
    said = complaint(capsys, "predict", "--model", "opt-125m", "--gpu", "L4", option, str(file))
    assert option in said
    assert where in said


def test_predict_imports_neither_kopf_nor_kubernetes_nor_anything_else_that_is_slow() -> None:
    program = (
        "import sys; from gpupack.cli import main; "
        f"status = main(['predict', *{SMALL!r}, '--replicas', '2', '--json']); "
        "heavy = {'kopf', 'kubernetes', 'httpx', 'aiohttp', 'asyncio', 'matplotlib', 'numpy', 'yaml', 'rich', 'vllm'}; "
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert json.loads(done.stdout)["fits"] is True


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert f"gpupack {command}" in capsys.readouterr().out


def test_an_option_that_a_command_does_not_know_is_named_with_where_to_look(capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(capsys, "predict", *SMALL, "--batch", "84")
    assert "predict does not know --batch 84" in said
    assert "`gpupack predict --help`" in said
