"""MIG on the command line: slices beside each other, and beside MPS on the whole GPU."""

from __future__ import annotations

import pytest

from gpupack.cli import main

from .test_contract import SMALL, answer

FULL = (*SMALL, "--max-num-seqs", "32")


def test_engines_on_slices_do_what_one_does_so_many_times_over(capsys: pytest.CaptureFixture[str]) -> None:
    one = answer(capsys, "predict", *FULL, "--mig-profile", "2g.20gb")
    three = answer(capsys, "predict", *FULL, "--sharing", "mig", "--mig-profile", "2g.20gb", "--replicas", "3")
    assert three["sharing"] == "mig"
    assert three["gpu"] == "H100-80GB-MIG-2g.20gb"
    assert three["total_tokens_per_second"] == pytest.approx(3 * one["total_tokens_per_second"])
    for same in ("itl_mean_seconds", "itl_p95_seconds", "dram_active", "saturation", "kv_peak_fraction"):
        assert three[same] == pytest.approx(one[same])


@pytest.mark.parametrize("load", [(), ("--request-rate", "12"), ("--requests", "4000")])
def test_the_twin_steps_slices_as_they_are_predicted(capsys: pytest.CaptureFixture[str], load: tuple[str, ...]) -> None:
    words = (*FULL, "--sharing", "mig", "--mig-profile", "1g.20gb", "--replicas", "4", *load)
    predicted, stepped = answer(capsys, "predict", *words), answer(capsys, "simulate", *words)
    for each in ("total_tokens_per_second", "itl_mean_seconds", "dram_active"):
        assert stepped[each] == pytest.approx(predicted[each], rel=0.12)


def test_an_engine_that_is_larger_than_a_slice_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    said = answer(capsys, "predict", "--model", "llama-3.1-8b", "--gpu", "A100-40GB", "--mig-profile", "2g.10gb")
    assert not said["fits"]


def test_advise_compares_the_whole_gpu_with_every_profile(capsys: pytest.CaptureFixture[str]) -> None:
    said = answer(capsys, "advise", *SMALL, "--itl-slo-ms", "40")
    profiles = {each["profile"]: each for each in said["mig"]["profiles"]}
    assert set(profiles) == {"1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"}
    best = profiles[said["mig"]["best"]]
    assert best["slices"] > 1
    packed = next(row for row in said["rows"] if row["name"] == "packed")["total_tokens_per_second"]
    assert said["mig"]["gain_of_sharing"] == pytest.approx(packed / best["total_tokens_per_second"] - 1, rel=1e-4)


def test_a_model_that_no_small_slice_holds_is_said_not_to_fit_there(capsys: pytest.CaptureFixture[str]) -> None:
    said = answer(capsys, "advise", "--model", "llama-3.1-8b", "--gpu", "H100-80GB")
    smallest = said["mig"]["profiles"][0]
    assert not smallest["fits"]
    assert smallest["stop"]["reason"] == "Memory"
    assert smallest["total_tokens_per_second"] is None


def test_a_gpu_that_cannot_be_cut_is_compared_with_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "advise", "--model", "llama-3.2-1b", "--gpu", "L4")["mig"] is None


def test_advise_with_mig_answers_about_one_slice_of_the_best_profile(capsys: pytest.CaptureFixture[str]) -> None:
    compared = answer(capsys, "advise", *SMALL, "--itl-slo-ms", "40")
    chosen = answer(capsys, "advise", *SMALL, "--itl-slo-ms", "40", "--sharing", "mig")
    assert chosen["gpu"] == f"H100-80GB-MIG-{compared['mig']['best']}"
    assert chosen["replicas_per_gpu"] == 1
    asked = answer(capsys, "advise", *SMALL, "--itl-slo-ms", "40", "--sharing", "mig", "--mig-profile", "1g.10gb")
    assert asked["gpu"] == "H100-80GB-MIG-1g.10gb"


def test_people_read_which_is_faster_and_by_how_much(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", *SMALL, "--itl-slo-ms", "40"]) == 0
    printed = capsys.readouterr().out
    assert "7 x 1g.10gb" in printed
    assert "% tokens a second; slices do not slow or crash each other" in printed
