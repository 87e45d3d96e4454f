"""Command lines that other people wrote are read as vLLM reads them; what cannot be read was not said."""

from __future__ import annotations

import pytest

from gpupack.facts.engine_flags import EngineFlags, flags_of, is_vllm

ONE = EngineFlags(model="org/model", max_num_seqs=256, gpu_memory_utilization=None)


@pytest.mark.parametrize(
    "words",
    [
        ["vllm", "serve", "org/model", "--max-num-seqs", "256"],
        ["org/model", "--max-num-seqs=256"],
        ["vllm", "serve", "org/model", "--max_num_seqs", "256", "--trust-remote-code"],
        ["python3", "-m", "vllm.entrypoints.openai.api_server", "--model", "org/model", "--max-num-seqs", "256"],
        ["/bin/sh", "-c", "exec vllm serve org/model --max-num-seqs 256 # as tuned"],
        ["bash", "-ec", "vllm serve org/model \\\n  --max-num-seqs=64 --max-num-seqs=256"],
    ],
)
def test_the_same_engine_however_it_is_written(words: list[str]) -> None:
    assert flags_of(words) == ONE


def test_every_flag_of_a_shape_is_read() -> None:
    line = (
        "vllm serve m --port 9000 --max-num-batched-tokens 8k --max-model-len 32K --kv-cache-memory-bytes 1073741824"
        " --gpu-memory-utilization .85 --block-size 32 --no-enable-chunked-prefill -tp 2 --pipeline-parallel-size=2"
        " --disable-log-stats"
    )
    said = flags_of(line.split())
    assert said == EngineFlags(
        model="m", port=9000, max_num_batched_tokens=8000, max_model_len=32768, kv_cache_memory_bytes=2**30,
        gpu_memory_utilization=0.85, block_tokens=32, chunked_prefill=False, gpus=4, tells_metrics=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [["sh", "-c", "vllm serve 'unclosed"], ["--max-num-seqs", "many"], ["--gpu-memory-utilization=1.5"], []],
)
def test_what_cannot_be_read_was_not_said(words: list[str]) -> None:
    assert flags_of(words) == EngineFlags()


def test_a_container_is_vllms_by_its_image_or_its_command() -> None:
    assert is_vllm("vllm/vllm-openai:v0.33.0", [])
    assert is_vllm("registry.example/llm:7", ["python3", "-m", "vllm.entrypoints.openai.api_server"])
    assert not is_vllm("busybox", ["sleep", "1"])
