"""What ended an engine, by the sentences that vLLM, torch and runtimes write."""

from __future__ import annotations

import pytest

from gpupack.facts.observation import Trouble
from gpupack.kube.trouble import trouble_of
from gpupack.units import GIB, MIB


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
            "79.11 GiB of which 512.00 MiB is free.",
            2 * GIB - 512 * MIB,
        ),
        (
            "ValueError: Free memory on device cuda:0 (10.25/79.11 GiB) on startup is less than desired GPU memory "
            "utilization (0.25, 19.75 GiB). Decrease GPU memory utilization or reduce GPU memory used by other "
            "processes.",
            round(9.5 * GIB),
        ),
        ("RuntimeError: CUDA error: out of memory", 0),
        ("ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`", 0),
    ],
)  # fmt: skip
def test_an_engine_that_ran_out_of_gpu_memory_tells_how_much_was_missing(words: str, missing: int) -> None:
    assert trouble_of(words) == (Trouble.OUT_OF_MEMORY, missing)


@pytest.mark.parametrize(
    "words",
    [
        "vllm serve: error: unrecognized arguments: --custom-histogram-buckets={}",
        "Error: “vllm serve: error: argument --dtype: invalid choice”",
        'RunContainerError: exec: "vllm": executable file not found in $PATH',
        "vllm cannot be started: No such file or directory",
    ],
)
def test_an_image_that_does_not_take_its_command_is_known_by_its_words(words: str) -> None:
    assert trouble_of(words) == (Trouble.REFUSED, 0)


@pytest.mark.parametrize(
    "words", ["", "EngineCore died unexpectedly.", "OOMKilled", "401 Client Error: Unauthorized", "ImagePullBackOff"]
)
def test_whatever_another_attempt_may_mend_is_no_trouble_of_a_kind(words: str) -> None:
    assert trouble_of(words) == (None, 0)
