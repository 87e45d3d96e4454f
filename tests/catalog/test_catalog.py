"""The catalog answers by name, and its figures agree with each other."""

from __future__ import annotations

import pytest

from gpupack import catalog
from gpupack.catalog import LlmConfig
from gpupack.errors import Invalid
from gpupack.facts.estimate import Source
from gpupack.facts.llm import Dtype
from gpupack.units import GIB, MIB, Bytes

GPUS = ("T4", "L4", "A10G", "A100-40GB", "A100-80GB", "H100-64GB", "H100-80GB", "H200")
SHORT = (
    "opt-125m",
    "opt-1.3b",
    "opt-2.7b",
    "llama-2-7b",
    "llama-2-13b",
    "llama-3.2-1b",
    "llama-3.2-3b",
    "llama-3.1-8b",
    "qwen2.5-0.5b",
    "qwen2.5-1.5b",
    "qwen2.5-7b",
    "qwen3-0.6b",
    "qwen3-4b",
    "qwen3-8b",
)


def test_every_promised_gpu_and_model_is_there() -> None:
    assert tuple(kind.name for kind in catalog.gpus()) == GPUS
    assert tuple(catalog.llm(name).aliases[0] for name in SHORT) == SHORT
    assert len(catalog.llms()) == len(SHORT)


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.2-1B", "llama-3.2-1b", "LLAMA-3.2-1B"])
def test_a_model_is_found_by_its_hugging_face_id_or_its_short_name_in_any_case(name: str) -> None:
    assert catalog.llm(name).name == "meta-llama/Llama-3.2-1B"


def test_an_unknown_name_is_refused_with_the_nearest_ones() -> None:
    with pytest.raises(Invalid, match="H100-80GB") as refused:
        catalog.gpu("H100-80", "--gpu")
    assert refused.value.field == "--gpu"
    with pytest.raises(Invalid, match=r"llama-3\.1-8b"):
        catalog.llm("llama3.1-8b")


@pytest.mark.parametrize(
    ("product", "name"),
    [
        ("Tesla T4", "T4"),
        ("Tesla-T4-SHARED", "T4"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", None),
        ("NVIDIA L40", None),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A10", None),
        ("NVIDIA-A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", "A100-40GB-MIG-1g.5gb"),
        ("NVIDIA-H100-80GB-HBM3-MIG-1g.10gb+me", "H100-80GB-MIG-1g.10gb"),
        ("NVIDIA H100-MIG-1g.8gb", "H100-64GB-MIG-1g.8gb"),
        ("NVIDIA-H100-80GB-HBM3-MIG-1g.12gb", None),
        ("NVIDIA-H100-NVL-MIG-1g.12gb", None),
        ("NVIDIA-H100-PCIe-MIG-1g.8gb", None),
        ("NVIDIA-L4-MIG-1g.6gb", None),
        ("NVIDIA H100 80GB HBM3", "H100-80GB"),
        ("NVIDIA-H100-80GB-HBM3-SHARED", "H100-80GB"),
        ("NVIDIA H100", "H100-64GB"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GH200 480GB", None),
        ("", None),
    ],
)
def test_a_product_name_means_one_gpu_or_none(product: str, name: str | None) -> None:
    found = catalog.gpu_by_product(product)
    assert (found.name if found else None) == name


def test_memory_tells_gpus_of_one_product_name_apart() -> None:
    assert catalog.gpu_by_product("NVIDIA H100", Bytes(65_247 * MIB)) == catalog.gpu("H100-64GB")
    assert catalog.gpu_by_product("NVIDIA H100", Bytes(81_559 * MIB)) is None


def test_every_row_says_where_it_comes_from() -> None:
    for row in (*catalog.gpus(), *catalog.llms()):
        assert len(row.provenance) > 20
        assert row.source in (Source.DATASHEET, Source.UNVERIFIED)
        assert ("memory" in row.provenance and "from" in row.provenance) or row.source is not Source.UNVERIFIED


def test_what_cuda_reports_is_a_little_below_the_products_name() -> None:
    for name, nominal in zip(GPUS, (16, 24, 24, 40, 80, 64, 80, 141), strict=True):
        assert 0.90 * nominal <= catalog.gpu(name).memory_bytes / GIB <= 1.0 * nominal


@pytest.mark.parametrize(
    ("name", "biases"),
    [
        ("llama-2-7b", False),
        ("llama-2-13b", False),
        ("llama-3.2-1b", False),
        ("llama-3.2-3b", False),
        ("llama-3.1-8b", False),
        ("qwen2.5-0.5b", True),
        ("qwen2.5-1.5b", True),
        ("qwen2.5-7b", True),
    ],
)
def test_parameters_follow_from_the_config_fields(name: str, biases: bool) -> None:
    known = catalog.llm(name)
    config = LlmConfig(
        hidden_size=known.hidden_size,
        num_hidden_layers=known.layers,
        num_attention_heads=known.attention_heads,
        num_key_value_heads=known.kv_heads,
        head_dim=known.head_size,
        intermediate_size=known.intermediate_size,
        vocab_size=known.vocabulary,
        max_position_embeddings=known.max_model_len,
        tie_word_embeddings=known.tied_embeddings,
    )
    qkv_bias = known.layers * (known.attention_heads + 2 * known.kv_heads) * known.head_size if biases else 0
    assert catalog.llm_from_config(name, config).parameters + qkv_bias == known.parameters


@pytest.mark.parametrize("name", ["qwen3-0.6b", "qwen3-4b", "qwen3-8b"])
def test_parameters_of_qwen3_have_two_norms_a_layer_more(name: str) -> None:
    known = catalog.llm(name)
    heads = known.attention_heads + known.kv_heads
    layer = 2 * known.hidden_size * heads * known.head_size + 3 * known.hidden_size * known.intermediate_size
    norms = 2 * known.hidden_size + 2 * known.head_size
    embeddings = (1 if known.tied_embeddings else 2) * known.vocabulary * known.hidden_size
    assert embeddings + known.layers * (layer + norms) + known.hidden_size == known.parameters


@pytest.mark.parametrize("name", ["opt-125m", "opt-1.3b", "opt-2.7b"])
def test_parameters_of_opt_have_positions_and_biases(name: str) -> None:
    known = catalog.llm(name)
    hidden, wide = known.hidden_size, known.intermediate_size
    layer = 4 * hidden * hidden + 4 * hidden + 2 * hidden * wide + wide + hidden + 4 * hidden
    positions = (known.max_model_len + 2) * hidden
    assert known.vocabulary * hidden + positions + known.layers * layer + 2 * hidden == known.parameters


@pytest.mark.parametrize(
    ("name", "weights", "kv"),
    [
        ("opt-1.3b", 2.4509, 196_608),
        ("opt-2.7b", 4.9551, 327_680),
        ("llama-2-7b", 12.5523, 524_288),
        ("llama-2-13b", 24.2840, 819_200),
        ("llama-3.1-8b", None, 131_072),
        ("qwen2.5-7b", None, 57_344),
        ("llama-3.2-1b", None, 32_768),
        ("qwen3-0.6b", None, 114_688),
    ],
)
def test_sizes_are_those_in_published_server_logs(name: str, weights: float | None, kv: int) -> None:
    known = catalog.llm(name)
    assert known.kv_bytes_per_token(Dtype.FLOAT16) == kv
    if weights is not None:
        assert known.weight_bytes(Dtype.FLOAT16) / GIB == pytest.approx(weights, rel=0.004)


def test_a_model_of_ones_own_takes_the_defaults_of_config_json() -> None:
    own = catalog.llm_from_config(
        "acme/own",
        LlmConfig(
            hidden_size=2048,
            num_hidden_layers=16,
            num_attention_heads=16,
            intermediate_size=8192,
            vocab_size=32_000,
            max_position_embeddings=4096,
        ),
    )
    assert (own.kv_heads, own.head_size, own.source) == (16, 128, Source.ANALYTIC)


@pytest.mark.parametrize(("field", "value"), [("hidden_size", 0), ("num_key_value_heads", 3), ("vocab_size", -1)])
def test_an_impossible_config_field_is_refused_by_its_name(field: str, value: int) -> None:
    fields = {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "vocab_size": 32_000,
        "max_position_embeddings": 4096,
    }
    with pytest.raises(Invalid) as refused:
        catalog.llm_from_config("acme/own", LlmConfig(**{**fields, field: value}))
    assert refused.value.field == f"spec.model.config.{field}"
