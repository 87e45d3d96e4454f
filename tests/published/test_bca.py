"""BCA on measured runs gives what was published: the batch limit under three promises, and the memory that it frees.

Figures typed from arXiv 2503.08311 and its repository github.com/FerranAgulloLopez/vLLMBatchingMemoryGap, commit
a918634, licence Apache-2.0: benchmarks/definitive_results/background (ShareGPT sweep) and advisor/output_length/_390
(constant lengths, 390 tokens out).
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from gpupack.cli import main

GB = 10**9
MODELS = ("opt-1.3b", "opt-2.7b", "llama-2-7b")
COLUMNS = (
    "max_num_seqs,total_tokens_per_second,itl_mean_seconds,tpot_mean_seconds,kv_peak_bytes,kv_space_bytes,"
    "gpu_memory_bytes,preemptions"
)

# KV space in GB of the authors' script (advisor/output_length/plots/bopt_gpu.py); its GPU has 64.
KV_SPACE_GB = {"opt-1.3b": 54.48, "opt-2.7b": 51.97, "llama-2-7b": 44.36}
# Batch limit, tokens a second, mean ITL and mean TPOT in milliseconds, peak KV in per cent of the space, preemptions.
OUTPUT_390 = {
    "opt-1.3b": [
        (1, 445.889, 3.608735, 3.609062, 0.215088, 0),
        (16, 5111.204, 5.027423, 5.027833, 3.431953, 0),
        (32, 7744.171, 6.58477, 6.585235, 6.696092, 0),
        (64, 10351.42, 9.756088, 9.757073, 13.233075, 0),
        (128, 12767.43, 15.697863, 15.702042, 25.720609, 0),
        (256, 14191.60, 27.376801, 27.383431, 47.316782, 0),
        (512, 14019.26, 34.903939, 34.909064, 68.217351, 0),
    ],
    "opt-2.7b": [
        (1, 255.2051, 6.322334, 6.322727, 0.375799, 0),
        (16, 3092.226, 8.31203, 8.31246, 5.873508, 0),
        (32, 4939.059, 10.333977, 10.334472, 11.698326, 0),
        (64, 7032.657, 14.393848, 14.39467, 23.337728, 0),
        (128, 8625.681, 23.242389, 23.243998, 44.519902, 0),
        (256, 9235.280, 42.203707, 42.20717, 83.628612, 0),
        (512, 9129.258, 52.415823, 52.420297, 99.990442, 83),
    ],
    "llama-2-7b": [
        (1, 150.1474, 10.902171, 10.8744, 0.704597, 0),
        (16, 1835.744, 14.245875, 14.209641, 11.255945, 0),
        (32, 3028.813, 17.14213, 17.098547, 22.194821, 0),
        (64, 4447.077, 23.134194, 23.075637, 44.189737, 0),
        (128, 5742.793, 35.537234, 35.447756, 84.83404, 0),
        (256, 5914.733, 54.922284, 54.776519, 99.964577, 540),
        (512, 5965.907, 54.04453, 53.900634, 99.982168, 534),
    ],
}


def bca(capsys: pytest.CaptureFixture[str], profile: Path, *words: str) -> Any:
    assert main(["advise", "--profile", str(profile), "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)["measured_bca"]


def sharegpt(model: str, folder: Path) -> Path:
    lines = Path(__file__).with_name("batch_sweep.csv").read_text(encoding="utf-8").splitlines()
    rows = [row for row in csv.DictReader(line for line in lines if line[0] != "#") if row["model"] == model]
    file = folder / f"{model}.csv"
    file.write_text(
        "max_num_seqs,total_tokens_per_second,mean_itl_ms,preemptions\n"
        + "".join(
            f"{row['max_num_seqs']},{row['total_tokens_per_second']},{row['itl_mean_ms']},{row['preemptions']}\n"
            for row in rows
        )
    )
    return file


def constant_lengths(model: str, folder: Path) -> Path:
    space = round(KV_SPACE_GB[model] * GB)
    file = folder / f"{model}.csv"
    file.write_text(
        COLUMNS
        + "\n"
        + "".join(
            f"{limit},{tokens},{itl / 1e3},{tpot / 1e3},{round(peak / 100 * space)},{space},{64 * GB},{preempted}\n"
            for limit, tokens, itl, tpot, peak, preempted in OUTPUT_390[model]
        )
    )
    return file


# The promise in milliseconds, B_opt, and the share of the best run without preemption in per cent, for 2, 3 and 4 times
# the ITL at batch limit 32.
PUBLISHED = {
    "opt-1.3b": [(15.02, 96, 79.95), (22.53, 128, 84.1), (30.04, 256, 95.7)],
    "opt-2.7b": [(22.18, 96, 79.8), (33.27, 128, 85.0), (44.36, 256, 96.4)],
    "llama-2-7b": [(35.28, 96, 79.4), (52.92, 192, 100.0), (70.56, 192, 100.0)],
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_the_batch_limit_on_the_sharegpt_sweep_is_the_published_one(
    model: str, factor: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = bca(capsys, sharegpt(model, tmp_path), "--slo-factor", str(factor))
    slo, limit, share = PUBLISHED[model][factor - 2]
    assert found["slo_seconds"] * 1e3 == pytest.approx(slo, abs=0.01)
    assert found["max_num_seqs"] == limit
    assert found["share_of_best"] * 100 == pytest.approx(share, abs=0.06)
    assert found["latency_seconds"] <= found["slo_seconds"]
    assert found["efficiency"] > 0.1


@pytest.mark.parametrize(("model", "freed"), [("opt-1.3b", 63.23), ("opt-2.7b", 45.05), ("llama-2-7b", 10.51)])
def test_the_memory_freed_at_390_tokens_out_is_the_published_one(
    model: str, freed: float, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("--slo-factor", "3", "--latency", "tpot")
    found = bca(capsys, constant_lengths(model, tmp_path), *words)
    assert found["max_num_seqs"] == 128
    assert found["freed_memory_fraction"] * 100 == pytest.approx(freed, abs=0.005)
    assert main(["advise", "--profile", str(tmp_path / f"{model}.csv"), *words]) == 0
    assert f"{freed:.2f} % of the GPU's memory" in capsys.readouterr().out


def test_a_run_that_preempted_is_no_candidate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Llama-2-7B at batch limit 256 is quick enough for four times and does more, but preempted 543 sequences."""
    file = sharegpt("llama-2-7b", tmp_path)
    assert bca(capsys, file, "--slo-factor", "4")["max_num_seqs"] == 192
    without = [line.rsplit(",", 1)[0] for line in file.read_text().splitlines()]
    file.write_text("\n".join(without))
    assert bca(capsys, file, "--slo-factor", "4")["max_num_seqs"] == 256
