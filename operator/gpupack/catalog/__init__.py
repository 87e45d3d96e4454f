"""Datasheet figures of GPUs and language models, by name, each row with its source.

Knows published numbers only; what an engine really uses or reaches is `perf`'s business, and what stands on a node is
read from the cluster. The two TOML files are parsed when first asked for.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from gpupack.errors import Invalid
from gpupack.facts.estimate import Source
from gpupack.facts.gpu import GpuKind, MigProfile
from gpupack.facts.llm import Llm
from gpupack.units import GB, MIB, Bytes, BytesPerSecond, FlopsPerSecond, Watts

_CUT, _MEDIA = "-MIG-", "+me"
"""Between a product and the profile of its slice, as GFD writes it; the mark of a slice that has the media engines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmConfig:
    """The fields of a model's `config.json` that matter to a GPU, in Hugging Face's words.

    A gated MLP (three matrices) and no biases are assumed, as in Llama, Qwen and Mistral: at most 0.1 % of the
    parameters is missed. None takes `config.json`'s own defaults.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    tie_word_embeddings: bool = False


def gpus() -> tuple[GpuKind, ...]:
    """Every GPU of the catalog, in the order of its file."""
    return tuple(_gpus().values())


def llms() -> tuple[Llm, ...]:
    """Every language model of the catalog, in the order of its file."""
    return tuple(_llms().values())


def digest() -> str:
    """Twelve hex digits over both files: which figures a recorded decision knew."""
    files = (Path(__file__).with_name(name) for name in ("gpus.toml", "llms.toml"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def gpu(name: str, field: str = "--gpu") -> GpuKind:
    """The GPU or MIG slice of that name, in any case. Raises Invalid with the nearest names for any other."""
    found = _gpu_by_key().get(name.lower()) or _slice_by_key().get(name.lower())
    if found is None:
        raise Invalid(field, f"no GPU {name!r} in the catalog", _nearest(name, [kind.name for kind in gpus()]))
    return found


def mig_profiles(kind: GpuKind) -> tuple[MigProfile, ...]:
    """What a whole GPU of that kind can be cut into, the smallest slices first; nothing where it cannot."""
    return _slices().get(kind.name, ())


def mig_profile(kind: GpuKind, name: str, field: str = "--mig-profile") -> MigProfile:
    """The profile of that name, with or without media engines. Raises Invalid with the profiles that there are."""
    known = mig_profiles(kind)
    if not known:
        raise Invalid(field, f"{kind.name} has no MIG slices", "give a GPU that can be cut, or another sharing")
    found = next((each for each in known if each.name == name.removesuffix(_MEDIA)), None)
    if found is None:
        raise Invalid(field, f"no MIG profile {name!r} of {kind.name}", "known are " + ", ".join(e.name for e in known))
    return found


def llm(name: str, field: str = "--model") -> Llm:
    """The model of that Hugging Face id or short name, in any case. Raises Invalid with the nearest names."""
    found = _llm_by_key().get(name.lower())
    if found is None:
        names = [alias for known in llms() for alias in (known.name, *known.aliases)]
        raise Invalid(field, f"no model {name!r} in the catalog", _nearest(name, names))
    return found


@lru_cache(maxsize=1024)
def gpu_by_product(product_name: str, memory: Bytes | None = None) -> GpuKind | None:
    """The GPU that a driver, a node label or a ResourceSlice calls so; None if the catalog does not have it.

    Names match by whole words and the longest match wins, so `NVIDIA L40S` is no L4 and `NVIDIA H100 NVL` no H100 of
    64 GB. Dashes are spaces and GFD's `-SHARED` is dropped, as GFD writes them. What follows GFD's `-MIG-` is a slice's
    profile. `memory` (bytes), where known, must be within a tenth of the catalog's: `NVIDIA H100` alone does not say
    which.
    """
    whole, cut, profile = product_name.partition(_CUT)
    if cut:
        return _slice_of_product(whole, profile.removesuffix(_MEDIA), memory)
    words = _words(product_name)
    fitting = [
        (len(name), kind)
        for name, kind in _products()
        if words[: len(name)] == name and (kind is None or memory is None or _alike(memory, kind.memory_bytes))
    ]
    return max(fitting, key=lambda match: match[0])[1] if fitting else None


def llm_from_config(name: str, config: LlmConfig, field: str = "spec.model.config") -> Llm:
    """A model that the catalog does not have, from its `config.json` fields. Raises Invalid for impossible fields."""
    for key in (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
    ):
        if getattr(config, key) < 1:
            raise Invalid(f"{field}.{key}", f"{getattr(config, key)} is not a size", "give the number of config.json")
    kv_heads = config.num_key_value_heads or config.num_attention_heads
    if config.num_attention_heads % kv_heads:
        raise Invalid(
            f"{field}.num_key_value_heads",
            f"{kv_heads} does not divide num_attention_heads {config.num_attention_heads}",
            "give the number of config.json",
        )
    head_size = config.head_dim or config.hidden_size // config.num_attention_heads
    hidden, heads = config.hidden_size, config.num_attention_heads
    attention = 2 * hidden * heads * head_size + 2 * hidden * kv_heads * head_size
    layer = attention + 3 * hidden * config.intermediate_size + 2 * hidden
    embeddings = (1 if config.tie_word_embeddings else 2) * config.vocab_size * hidden
    return Llm(
        name=name,
        layers=config.num_hidden_layers,
        hidden_size=hidden,
        intermediate_size=config.intermediate_size,
        attention_heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        vocabulary=config.vocab_size,
        parameters=embeddings + config.num_hidden_layers * layer + hidden,
        max_model_len=config.max_position_embeddings,
        source=Source.ANALYTIC,
        provenance="counted from the config.json fields given; gated MLP, no biases",
        tied_embeddings=config.tie_word_embeddings,
    )


def llm_of(name: str, config: Mapping[str, int] | None) -> Llm:
    """A model of the catalog, or of the config that a user gave. Raises Invalid for any other."""
    if config is None:
        try:
            return llm(name, "spec.model.name")
        except Invalid as unknown:
            fix = f"{unknown.fix}; or give the fields of its config.json in spec.model.config"
            raise Invalid(unknown.field, unknown.problem, fix) from None
    fields: dict[str, Any] = dict(config)  # the schema allows exactly these, and one of them is a truth value
    return llm_from_config(name, LlmConfig(**fields))


def _slice_of_product(product: str, profile: str, memory: Bytes | None) -> GpuKind | None:
    """Two GPUs of one product name are told apart by their profiles' names, and these by the slice's memory."""
    words = _words(product)
    found = [
        (len(name), each.kind)
        for name, kind in _products()
        if words[: len(name)] == name
        for each in (() if kind is None else mig_profiles(kind))
        if each.name == profile and (memory is None or _alike(memory, each.kind.memory_bytes))
    ]
    unlisted = max((len(name) for name, kind in _products() if kind is None and words[: len(name)] == name), default=0)
    longest = max(found, key=lambda match: match[0], default=None)
    return None if longest is None or longest[0] < unlisted else longest[1]


def _alike(one: Bytes, other: Bytes) -> bool:
    return abs(one - other) * 10 <= other


def _words(product_name: str) -> tuple[str, ...]:
    return tuple(product_name.upper().removesuffix("-SHARED").replace("-", " ").split())


def _nearest(name: str, known: list[str]) -> str:
    close = get_close_matches(name.lower(), [each.lower() for each in known], n=3, cutoff=0.4)
    spelled = {each.lower(): each for each in known}
    return "try " + ", ".join(spelled[each] for each in close) if close else "known are " + ", ".join(known)


def _table(file: str) -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name(file).read_text(encoding="utf-8"))


@cache
def _gpu_table() -> dict[str, Any]:
    return _table("gpus.toml")


@cache
def _gpus() -> dict[str, GpuKind]:
    return {row["name"]: _gpu_kind(row) for row in _gpu_table()["gpu"]}


@cache
def _slices() -> dict[str, tuple[MigProfile, ...]]:
    tables = ((_gpus()[each["gpu"]], each) for each in _gpu_table()["slices"])
    return {whole.name: tuple(_mig_profile(whole, each, row) for row in each["profiles"]) for whole, each in tables}


@cache
def _slice_by_key() -> dict[str, GpuKind]:
    return {each.kind.name.lower(): each.kind for profiles in _slices().values() for each in profiles}


@cache
def _llms() -> dict[str, Llm]:
    return {row["name"]: _llm(row) for row in _table("llms.toml")["llm"]}


@cache
def _gpu_by_key() -> dict[str, GpuKind]:
    return {name.lower(): kind for name, kind in _gpus().items()}


@cache
def _llm_by_key() -> dict[str, Llm]:
    return {alias.lower(): known for known in _llms().values() for alias in (known.name, *known.aliases)}


@cache
def _products() -> tuple[tuple[tuple[str, ...], GpuKind | None], ...]:
    listed = [(_words(product), kind) for kind in gpus() for product in kind.product_names]
    unlisted: list[tuple[tuple[str, ...], GpuKind | None]] = [(_words(each), None) for each in _gpu_table()["unlisted"]]
    return (*listed, *unlisted)


def _gpu_kind(row: dict[str, Any]) -> GpuKind:
    idle = row.get("idle_watts")
    return GpuKind(
        name=row["name"],
        memory_bytes=Bytes(row["memory_mib"] * MIB),
        dram_bytes_per_second=BytesPerSecond(row["dram_gb_per_second"] * GB),
        dense_flops_per_second=FlopsPerSecond(row["dense_tflops"] * 1e12),
        sm_count=row["sm_count"],
        board_power=Watts(row["board_watts"]),
        idle_power=None if idle is None else Watts(idle),
        bfloat16=row["bfloat16"],
        mig=row["mig"],
        gpm=row["gpm"],
        product_names=tuple(row["products"]),
        source=Source[row["source"].upper()],
        provenance=row["provenance"],
    )


def _mig_profile(whole: GpuKind, table: dict[str, Any], row: dict[str, Any]) -> MigProfile:
    """DRAM bandwidth goes with the eighths of the memory system, tensor cores and power with the SMs."""
    share = row["sm_count"] / whole.sm_count
    kind = replace(
        whole,
        name=f"{whole.name}{_CUT}{row['name']}",
        memory_bytes=Bytes(row["memory_mib"] * MIB),
        dram_bytes_per_second=BytesPerSecond(whole.dram_bytes_per_second * row["memory_eighths"] / 8),
        dense_flops_per_second=FlopsPerSecond(whole.dense_flops_per_second * share),
        sm_count=row["sm_count"],
        board_power=Watts(whole.board_power * share),
        idle_power=None if whole.idle_power is None else Watts(whole.idle_power * share),
        source=max(whole.source, Source[table["source"].upper()]),
        provenance=table["provenance"],
        mig_profile=row["name"],
    )
    return MigProfile(name=row["name"], kind=kind, most=row["most"])


def _llm(row: dict[str, Any]) -> Llm:
    return Llm(
        name=row["name"],
        aliases=tuple(row["aliases"]),
        layers=row["layers"],
        hidden_size=row["hidden_size"],
        intermediate_size=row["intermediate_size"],
        attention_heads=row["attention_heads"],
        kv_heads=row["kv_heads"],
        head_size=row["head_size"],
        vocabulary=row["vocabulary"],
        parameters=row["parameters"],
        max_model_len=row["max_model_len"],
        source=Source[row["source"].upper()],
        provenance=row["provenance"],
        tied_embeddings=row["tied"],
        sampling_penalty=row.get("sampling_penalty", False),
    )
