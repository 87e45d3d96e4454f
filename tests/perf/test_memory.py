"""What a replica holds, and how much KV cache its batch needs: integers, rounded towards safety."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpupack import catalog
from gpupack.facts.estimate import Source
from gpupack.facts.llm import Dtype
from gpupack.facts.serving import BLOCK_TOKENS, Lengths
from gpupack.perf.memory import (
    default_shape,
    kv_cache_bytes,
    kv_tokens_needed,
    length_biased_context,
    replica_memory,
    utilization_hundredths,
)
from gpupack.units import Bytes, Ratio

from .engines import CHAT, H100, group, lengths

SAFETY = Ratio(0.15)


def test_a_running_sequence_is_longer_than_the_mean_request() -> None:
    mean, deviation = length_biased_context(Lengths(input_mean=100.0, output_mean=200.0, input_cv=0.0, output_cv=1.0))
    assert mean == pytest.approx(100 + 200)
    assert deviation == pytest.approx(200)
    alike, spread = length_biased_context(Lengths(input_mean=100.0, output_mean=200.0, input_cv=0.0, output_cv=0.0))
    assert alike == pytest.approx(100 + 100)
    assert spread == pytest.approx(200 / 12**0.5)


def test_long_answers_to_long_prompts_lengthen_the_context_further() -> None:
    apart, together = (
        length_biased_context(Lengths(input_mean=100.0, output_mean=200.0, covariance=covariance))[0]
        for covariance in (0.0, 5000.0)
    )
    assert together == pytest.approx(apart + 25)


@given(traffic=lengths, batch=st.integers(1, 512), length=st.integers(16, 16384))
def test_kv_tokens_are_whole_blocks_that_hold_the_batch_and_one_longest_sequence(
    traffic: Lengths, batch: int, length: int
) -> None:
    tokens = kv_tokens_needed(traffic, batch, length, SAFETY)
    assert tokens % BLOCK_TOKENS == 0
    assert length <= tokens <= batch * length + BLOCK_TOKENS or tokens <= length + BLOCK_TOKENS
    if batch * length_biased_context(traffic)[0] <= batch * length:
        assert tokens >= batch * length_biased_context(traffic)[0]
    assert kv_tokens_needed(traffic, batch + 1, length, SAFETY) >= tokens


@given(tokens=st.integers(1, 10**6))
def test_bytes_asked_for_hold_the_tokens_beside_the_null_block(tokens: int) -> None:
    llm = catalog.llm("llama-3.2-1b")
    per_token = llm.kv_bytes_per_token(Dtype.BFLOAT16)
    asked = kv_cache_bytes(llm, Dtype.BFLOAT16, tokens)
    assert asked % (per_token * BLOCK_TOKENS) == 0
    blocks = asked // (per_token * BLOCK_TOKENS)
    assert (blocks - 1) * BLOCK_TOKENS >= tokens > (blocks - 2) * BLOCK_TOKENS


def test_a_replicas_total_is_no_less_than_its_parts() -> None:
    asked = group()
    memory = replica_memory(asked.llm, asked.dtype, asked.shape, H100)
    parts = (memory.weights, memory.context, memory.graphs, memory.activation, memory.kv_cache)
    assert memory.total >= sum(part.value for part in parts)
    assert memory.kv_cache.value == asked.shape.kv_cache_memory_bytes
    assert memory.graphs.source is Source.UNVERIFIED


def test_utilization_is_rounded_up_to_a_hundredth() -> None:
    assert utilization_hundredths(Bytes(H100.memory_bytes // 4), H100) == 25
    assert utilization_hundredths(Bytes(H100.memory_bytes // 4 + 1), H100) == 26


@pytest.mark.parametrize(
    ("model", "batch", "blocks"),
    [
        ("opt-1.3b", 1, 18_573),
        ("opt-1.3b", 256, 18_446),
        ("opt-1.3b", 768, 18_135),
        ("opt-2.7b", 1, 10_626),
        ("opt-2.7b", 512, 10_461),
        ("llama-2-7b", 1, 5_659),
        ("llama-2-7b", 512, 5_607),
        ("llama-2-13b", 1, 2_657),
        ("llama-2-13b", 512, 2_627),
    ],
)
def test_vllms_own_kv_blocks_are_foreseen_within_one_per_cent(model: str, batch: int, blocks: int) -> None:
    llm = catalog.llm(model)
    shape = default_shape(llm, Dtype.FLOAT16, catalog.gpu("h100-64gb"), max_num_seqs=batch, max_num_batched_tokens=2048)
    foreseen = shape.kv_cache_memory_bytes // (BLOCK_TOKENS * llm.kv_bytes_per_token(Dtype.FLOAT16))
    assert foreseen == pytest.approx(blocks, rel=0.01)


@pytest.mark.parametrize(
    ("gpu", "seqs", "tokens"),
    [("L4", 256, 2048), ("A100-80GB", 256, 2048), ("H100-80GB", 1024, 8192), ("H200", 1024, 8192)],
)
def test_vllms_limits_follow_the_memory_of_the_gpu(gpu: str, seqs: int, tokens: int) -> None:
    shape = default_shape(catalog.llm("llama-3.2-1b"), Dtype.FLOAT16, catalog.gpu(gpu))
    assert (shape.max_num_seqs, shape.max_num_batched_tokens) == (seqs, tokens)


def test_a_model_that_is_larger_than_the_gpu_leaves_no_kv_cache() -> None:
    shape = default_shape(catalog.llm("llama-2-13b"), Dtype.FLOAT16, catalog.gpu("T4"))
    assert shape.kv_cache_memory_bytes == 0


def test_more_sequences_take_more_memory_while_sampling() -> None:
    few, many = (
        replica_memory(asked.llm, asked.dtype, asked.shape, H100).activation.value
        for asked in (group(batch=8, lengths=CHAT), group(batch=1024, lengths=CHAT))
    )
    assert many > few
