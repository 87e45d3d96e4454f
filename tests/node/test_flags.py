"""The command line of a vLLM container means to the virtual engine what it means to vLLM."""

from __future__ import annotations

import pytest

from gpupack.errors import Invalid
from gpupack.node.flags import human_integer, is_vllm, parse


@pytest.mark.parametrize(
    "words",
    [
        ["vllm", "serve", "meta-llama/Llama-3.2-1B", "--max-num-seqs", "96"],
        ["meta-llama/Llama-3.2-1B", "--max-num-seqs=96"],
        ["--model", "meta-llama/Llama-3.2-1B", "--max_num_seqs", "96"],
        ["python3", "-m", "vllm.entrypoints.openai.api_server", "--model=meta-llama/Llama-3.2-1B", "--max-num-seqs=96"],
        ["/bin/sh", "-c", "exec vllm serve meta-llama/Llama-3.2-1B --max-num-seqs 96"],
    ],
)
def test_every_usual_way_to_start_vllm_is_understood(words: list[str]) -> None:
    flags = parse(words, {})
    assert flags.model == "meta-llama/Llama-3.2-1B"
    assert flags.served_names == ("meta-llama/Llama-3.2-1B",)
    assert flags.max_num_seqs == 96


def test_flags_that_are_not_given_are_vllms_defaults() -> None:
    flags = parse(["serve", "m"], {})
    assert flags.gpu_memory_utilization == 0.92
    assert flags.kv_cache_memory_bytes is None
    assert flags.max_num_seqs is None
    assert flags.shutdown_timeout == 0.0
    assert flags.port == 8000
    assert flags.chunked_prefill


def test_the_flags_of_a_replica_are_all_read() -> None:
    flags = parse(
        [
            "m", "--served-model-name", "a", "b", "--dtype", "float16", "--max-model-len", "2048",
            "--max-num-batched-tokens", "2K", "--gpu-memory-utilization", "0.17", "--kv-cache-memory-bytes", "4G",
            "--shutdown-timeout", "30", "--no-enable-chunked-prefill", "--enable-mfu-metrics", "--port", "8001",
            "--custom-histogram-buckets", '{"inter_token_latency": [0.001, 0.002]}', "--seed", "7",
        ],
        {"VLLM_API_KEY": "secret"},
    )  # fmt: skip
    assert flags.served_names == ("a", "b")
    assert flags.dtype == "float16"
    assert flags.max_model_len == 2048
    assert flags.max_num_batched_tokens == 2048
    assert flags.gpu_memory_utilization == 0.17
    assert flags.kv_cache_memory_bytes == 4 * 1024**3
    assert flags.shutdown_timeout == 30.0
    assert not flags.chunked_prefill
    assert flags.mfu_metrics
    assert flags.port == 8001
    assert flags.buckets == {"inter_token_latency": (0.001, 0.002)}
    assert flags.api_key == "secret"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "--model"),
        (["m", "--gpu-memory-utilization", "1.5"], "--gpu-memory-utilization"),
        (["m", "--max-num-seqs", "many"], "--max-num-seqs"),
        (["m", "--dtype", "int3"], "--dtype"),
        (["m", "--custom-histogram-buckets", '{"itl": [1]}'], "--custom-histogram-buckets"),
        (["m", "--custom-histogram-buckets", '{"inter_token_latency": [2, 1]}'], "--custom-histogram-buckets"),
    ],
)
def test_a_flag_that_vllm_would_refuse_is_refused_by_name(words: list[str], named: str) -> None:
    with pytest.raises(Invalid) as refusal:
        parse(words, {})
    assert refusal.value.field == named


def test_small_letters_are_decimal_and_capitals_binary() -> None:
    assert human_integer("2k", "--x") == 2000
    assert human_integer("2K", "--x") == 2048
    assert human_integer("1.5g", "--x") == 1_500_000_000


@pytest.mark.parametrize(
    ("image", "words", "expected"),
    [
        ("vllm/vllm-openai:v0.33.0", ["m"], True),
        ("example.org/mirror/vllm-openai", [], True),
        ("python:3.11", ["vllm", "serve", "m"], True),
        ("registry.k8s.io/pause:3.10", [], False),
        ("nvcr.io/nvidia/k8s/dcgm-exporter:4.8.3", [], False),
    ],
)
def test_a_vllm_container_is_known_by_its_command_or_its_image(image: str, words: list[str], expected: bool) -> None:
    assert is_vllm(image, words) is expected
