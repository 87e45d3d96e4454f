"""`simulate` answers what `predict` answers, from the twin, and says what only a simulation can know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpupack.cli import main

# The published setting: OPT-1.3B on the 64 GB H100 under vLLM 0.5.2, ShareGPT lengths (arXiv 2503.08311).
PUBLISHED = (
    *("--model", "opt-1.3b", "--gpu", "H100-64GB", "--engine-version", "0.5.2", "--dtype", "float16"),
    *("--input-tokens", "110.6", "--output-tokens", "292", "--output-cv", "0.93", "--chunked-prefill", "off"),
)


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main([*words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_simulate_has_every_name_of_predict_and_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    words = (*PUBLISHED, "--max-num-seqs", "32", "--requests", "300")
    simulated, predicted = answer(capsys, "simulate", *words), answer(capsys, "predict", *words)
    assert set(predicted) < set(simulated)
    own = set(simulated) - set(predicted)
    assert own == {
        "preemptions",
        "simulated_seconds",
        "wall_seconds",
        *(f"{what}_{rank}_seconds" for what in ("ttft", "itl", "e2e") for rank in ("p50", "p95", "p99")),
    } - set(predicted)
    assert simulated["e2e_p50_seconds"] < simulated["e2e_p95_seconds"] < simulated["e2e_p99_seconds"]
    assert simulated["simulated_seconds"] > simulated["wall_seconds"]


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("simulate", *PUBLISHED, "--max-num-seqs", "32", "--requests", "300")
    once, again, other = (answer(capsys, *words, "--seed", seed) for seed in ("1", "1", "2"))
    for each in (once, again, other):
        del each["wall_seconds"]
    assert once == again
    assert once != other


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_twin_and_closed_form_agree_on_published_runs(capsys: pytest.CaptureFixture[str], replicas: int) -> None:
    words = (*PUBLISHED, "--max-num-seqs", "96", "--requests", "2000", "--replicas", str(replicas))
    simulated, predicted = answer(capsys, "simulate", *words), answer(capsys, "predict", *words)
    for name, share in (
        ("total_tokens_per_second", 0.06),
        ("itl_mean_seconds", 0.06),
        ("ttft_mean_seconds", 0.20),
        ("ttft_p95_seconds", 0.20),
    ):
        assert simulated[name] == pytest.approx(predicted[name], rel=share), name


def test_a_steady_state_at_full_engines_has_no_first_token_time(capsys: pytest.CaptureFixture[str]) -> None:
    full = answer(capsys, "simulate", *PUBLISHED, "--max-num-seqs", "16")
    assert full["ttft_mean_seconds"] is None
    assert full["ttft_p99_seconds"] is None
    paced = answer(capsys, "simulate", *PUBLISHED, "--max-num-seqs", "16", "--request-rate", "4")
    assert paced["ttft_mean_seconds"] > 0.0
    assert paced["output_tokens_per_second"] == pytest.approx(4 * 292, rel=0.15)


def test_recorded_requests_are_replayed_as_they_came(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "requests.csv"
    file.write_text(
        "input_tokens,output_tokens,arrival_time\n" + "".join(f"50,20,{100.0 + i / 2}\n" for i in range(40))
    )
    words = ("simulate", "--model", "opt-125m", "--gpu", "L4", "--lengths", str(file), "--requests", "80")
    given = answer(capsys, *words)
    # Two recordings of 20 s, one after the other.
    assert given["simulated_seconds"] == pytest.approx(40.0, abs=1.0)
    assert given["output_tokens_per_second"] == pytest.approx(80 * 20 / 40.0, rel=0.05)


def test_neighbours_are_simulated_steady_and_in_a_whole_run(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("simulate", *PUBLISHED, "--max-num-seqs", "16", "--neighbour", "opt-125m:8")
    # Prompts of the neighbour are too long for one step, so both prefill in chunks here.
    steady = answer(capsys, *words, "--chunked-prefill", "on")
    assert len(steady["engines"]) == 2
    assert steady["engines"][1]["running_mean"] > 0.0
    whole = answer(capsys, *words, "--chunked-prefill", "on", "--requests", "100")
    assert len(whole["engines"]) == 2
    assert all(each["running_mean"] > 0.0 for each in whole["engines"])
    assert whole["output_tokens_per_second"] < steady["output_tokens_per_second"]


def test_what_does_not_fit_is_not_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    given = answer(capsys, "simulate", "--model", "llama-2-13b", "--gpu", "L4")
    assert given["fits"] is False
    assert given["total_tokens_per_second"] is None


def test_a_fitted_profile_moves_the_twin_as_it_moves_the_closed_form(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = (*PUBLISHED, "--max-num-seqs", "64", "--chunked-prefill", "on")
    runs = {batch: answer(capsys, "predict", *PUBLISHED, "--max-num-seqs", str(batch)) for batch in (1, 8, 32, 64)}
    file = tmp_path / "slower.csv"
    file.write_text(
        "max_num_seqs,total_tokens_per_second,itl_mean_seconds\n"
        + "".join(
            f"{batch},{run['total_tokens_per_second'] * 0.7},{run['itl_mean_seconds'] / 0.7}\n"
            for batch, run in runs.items()
        )
    )
    before, after = (answer(capsys, "simulate", *words, *more) for more in ((), ("--profile", str(file))))
    assert after["total_tokens_per_second"] < 0.85 * before["total_tokens_per_second"]
