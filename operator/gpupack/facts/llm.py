"""What a language model is to a GPU: weights to read each step and KV bytes to keep for each token."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gpupack.facts.estimate import Source
from gpupack.units import Bytes


class Dtype(StrEnum):
    """Storage of weights and KV cache, in vLLM's words."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"

    @property
    def bytes_each(self) -> int:
        return 4 if self is Dtype.FLOAT32 else 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Llm:
    """A decoder-only transformer with full attention, by the fields of its `config.json`.

    `parameters` counts every stored weight once (tied embeddings once). Where they are not `tied_embeddings`, a step
    reads the output matrix whole but only a few rows of the input embedding. `sampling_penalty` says that the model's
    `generation_config.json` asks for a repetition penalty, which engines that follow it pay for in every step.
    """

    name: str
    aliases: tuple[str, ...] = ()
    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    parameters: int
    max_model_len: int
    source: Source
    provenance: str
    tied_embeddings: bool = True
    sampling_penalty: bool = False

    def weight_bytes(self, dtype: Dtype) -> Bytes:
        return Bytes(self.parameters * dtype.bytes_each)

    def kv_bytes_per_token(self, dtype: Dtype) -> Bytes:
        """Keys and values of every layer: 2 x layers x KV heads x head size x bytes (vLLM kv_cache_interface)."""
        return Bytes(2 * self.layers * self.kv_heads * self.head_size * dtype.bytes_each)
