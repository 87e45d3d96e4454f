"""One measured run as named values, in our names or vLLM's, and as a point of a profile.

The rows are those of our own tables, of `vllm bench serve` and of `gpupack profile`. Knows the names, not the files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from gpupack.facts.serving import ProfilePoint
from gpupack.units import Bytes, Seconds

# A value by the names that it goes by, the first that is there counts: name and what makes base units of it. A batch
# limit that nobody wrote down is the clients' concurrency.
_LIMIT = (("max_num_seqs", 1.0), ("max-num-seqs", 1.0), ("max_concurrency", 1.0), ("max-concurrency", 1.0))
_THROUGHPUT = (("total_tokens_per_second", 1.0), ("total_token_throughput", 1.0))
_ITL = (("itl_mean_seconds", 1.0), ("mean_itl_ms", 1e-3))
_TPOT = (("tpot_mean_seconds", 1.0), ("mean_tpot_ms", 1e-3))


def point_of(row: Mapping[str, object]) -> ProfilePoint:
    """Raises ValueError for a row that lacks a value or has one that cannot be."""
    limit = _needed(row, _LIMIT)
    tpot = _value(row, _TPOT)
    if limit != int(limit) or limit < 1:
        raise ValueError(f"a batch limit of {limit:g}")
    return ProfilePoint(
        max_num_seqs=int(limit),
        total_tokens_per_second=_needed(row, _THROUGHPUT),
        itl_mean=Seconds(_needed(row, _ITL)),
        tpot_mean=None if tpot is None or tpot <= 0 else Seconds(tpot),
        kv_peak_bytes=_bytes(row, "kv_peak_bytes"),
        kv_space_bytes=_bytes(row, "kv_space_bytes"),
        gpu_memory_bytes=_bytes(row, "gpu_memory_bytes"),
        preemptions=_whole(row, "preemptions"),
    )


def _needed(row: Mapping[str, object], names: Sequence[tuple[str, float]]) -> float:
    value = _value(row, names)
    if value is None or value <= 0.0:
        raise ValueError(f"no {names[0][0]} above 0")
    return value


def _value(row: Mapping[str, object], names: Sequence[tuple[str, float]]) -> float | None:
    """The first of the names that has a value, in base units. Raises ValueError for what is no finite number."""
    for name, factor in names:
        given = row.get(name)
        if given is None or given == "":
            continue
        if isinstance(given, bool) or not isinstance(given, (str, int, float)):
            raise ValueError(f"{name} is {given!r}")
        value = float(given) * factor
        if not math.isfinite(value):
            raise ValueError(f"{name} is {given!r}")
        return value
    return None


def _whole(row: Mapping[str, object], name: str) -> int | None:
    value = _value(row, ((name, 1.0),))
    if value is None:
        return None
    if value < 0.0:
        raise ValueError(f"{name} is {value:g}")
    return round(value)


def _bytes(row: Mapping[str, object], name: str) -> Bytes | None:
    value = _whole(row, name)
    return None if value is None else Bytes(value)


def row_of(point: ProfilePoint) -> dict[str, float | int]:
    """The row that `point_of` reads back; what nobody wrote down is left out."""
    row = {
        "max_num_seqs": point.max_num_seqs,
        "total_tokens_per_second": point.total_tokens_per_second,
        "itl_mean_seconds": float(point.itl_mean),
        "tpot_mean_seconds": point.tpot_mean,
        "kv_peak_bytes": point.kv_peak_bytes,
        "kv_space_bytes": point.kv_space_bytes,
        "gpu_memory_bytes": point.gpu_memory_bytes,
        "preemptions": point.preemptions,
    }
    return {name: value for name, value in row.items() if value is not None}
