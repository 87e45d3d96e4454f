"""A virtual engine sizes itself, and refuses to start, as vLLM does."""

from __future__ import annotations

import pytest

from gpupack import catalog
from gpupack.node.device_memory import DeviceMemory, OutOfMemory
from gpupack.node.engine_start import (
    Refused,
    activation_bytes,
    graph_bytes,
    kv_cache,
    profiled_kv_bytes,
    requested_bytes,
    settings_of,
)
from gpupack.node.flags import Flags, parse
from gpupack.units import GIB, MIB, Bytes

LLAMA = catalog.llm("meta-llama/Llama-3.2-1B")
H100 = catalog.gpu("H100-80GB")
A100 = catalog.gpu("A100-80GB")
T4 = catalog.gpu("T4")


def _flags(*words: str) -> Flags:
    return parse([LLAMA.name, *words], {})


def test_defaults_go_by_the_memory_of_the_gpu_but_not_on_an_a100() -> None:
    assert settings_of(_flags(), LLAMA, H100).max_num_seqs == 1024
    assert settings_of(_flags(), LLAMA, H100).max_num_batched_tokens == 8192
    assert settings_of(_flags(), LLAMA, A100).max_num_seqs == 256
    assert settings_of(_flags(), LLAMA, A100).max_num_batched_tokens == 2048


def test_an_engine_that_asks_for_more_than_is_free_says_so_in_vllms_words() -> None:
    with pytest.raises(Refused, match=r"Free memory on device cuda:0 \(20\.00/80\.00 GiB\) on startup is less than "
                       r"desired GPU memory utilization \(0\.92, 73\.60 GiB\)"):  # fmt: skip
        requested_bytes(_flags("--kv-cache-memory-bytes", "1G"), Bytes(80 * GIB), Bytes(20 * GIB))


def test_a_kv_cache_below_one_sequence_is_refused_with_the_length_that_would_fit() -> None:
    settings = settings_of(_flags("--max-model-len", "131072"), LLAMA, H100)
    with pytest.raises(Refused, match=r"at least one request with the model's max seq len \(131072\), \(4\.00 GiB KV "
                       r"cache is needed.*\(1\.00 GiB\).*maximum model length is 32752"):  # fmt: skip
        kv_cache(Bytes(GIB), settings, LLAMA, _flags())


def test_an_automatic_length_is_what_the_kv_cache_holds() -> None:
    flags = _flags("--max-model-len", "auto")
    cache = kv_cache(Bytes(GIB), settings_of(flags, LLAMA, H100), LLAMA, flags)
    assert cache.blocks == 2048
    assert cache.max_model_len == 2047 * 16


def test_what_a_neighbour_took_meanwhile_is_missing_from_a_profiled_kv_cache() -> None:
    alone = profiled_kv_bytes(Bytes(20 * GIB), Bytes(70 * GIB), Bytes(66 * GIB), Bytes(GIB))
    beside = profiled_kv_bytes(Bytes(20 * GIB), Bytes(70 * GIB), Bytes(60 * GIB), Bytes(GIB))
    assert (alone, beside) == (15 * GIB, 9 * GIB)
    with pytest.raises(Refused, match="Error in memory profiling"):
        profiled_kv_bytes(Bytes(20 * GIB), Bytes(60 * GIB), Bytes(66 * GIB), Bytes(GIB))
    with pytest.raises(Refused, match="No available memory for the cache blocks"):
        kv_cache(Bytes(0), settings_of(_flags(), LLAMA, H100), LLAMA, _flags())


def test_a_gpu_without_bfloat16_refuses_it_and_chooses_float16_by_itself() -> None:
    assert settings_of(_flags(), LLAMA, T4).dtype == "float16"
    with pytest.raises(Refused, match="Bfloat16 is only supported"):
        settings_of(_flags("--dtype", "bfloat16"), LLAMA, T4)


def test_a_length_beyond_the_models_is_refused() -> None:
    with pytest.raises(Refused, match=r"max_model_len \(200000\) is greater"):
        settings_of(_flags("--max-model-len", "200000"), LLAMA, H100)


def test_smaller_batches_need_less_memory_and_eager_engines_no_graphs() -> None:
    small = settings_of(_flags("--max-num-seqs", "32", "--max-num-batched-tokens", "512"), LLAMA, H100)
    large = settings_of(_flags(), LLAMA, H100)
    assert activation_bytes(small, LLAMA) < activation_bytes(large, LLAMA)
    assert 0 < graph_bytes(small, _flags()) < graph_bytes(large, _flags()) < GIB
    assert graph_bytes(small, _flags("--enforce-eager")) == 0


def test_memory_is_taken_whole_or_not_at_all_and_comes_back_at_once() -> None:
    memory = DeviceMemory(Bytes(10 * MIB))
    memory.take("a", Bytes(6 * MIB))
    with pytest.raises(OutOfMemory, match=r"CUDA out of memory"):
        memory.take("b", Bytes(5 * MIB))
    assert memory.free == 4 * MIB
    memory.release("a")
    assert memory.free == 10 * MIB
