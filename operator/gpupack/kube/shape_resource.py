"""Shapes and names of servings as they are written in a status, by whichever part of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpupack.facts.serving import ServingKey, Shape
from gpupack.units import Bytes


def shape_to_dict(shape: Shape) -> dict[str, Any]:
    return {
        "maxNumSeqs": shape.max_num_seqs,
        "kvCacheMemoryBytes": int(shape.kv_cache_memory_bytes),
        "maxNumBatchedTokens": shape.max_num_batched_tokens,
        "maxModelLen": shape.max_model_len,
        "chunkedPrefill": shape.chunked_prefill,
    }


def shape_of(fields: Mapping[str, Any]) -> Shape:
    return Shape(
        max_num_seqs=fields["maxNumSeqs"],
        kv_cache_memory_bytes=Bytes(fields["kvCacheMemoryBytes"]),
        max_num_batched_tokens=fields["maxNumBatchedTokens"],
        max_model_len=fields["maxModelLen"],
        chunked_prefill=fields["chunkedPrefill"],
    )


def serving_key_of(text: str) -> ServingKey:
    """`namespace/name`. Raises ValueError for anything else."""
    namespace, name = text.split("/")
    return ServingKey(namespace=namespace, name=name)
