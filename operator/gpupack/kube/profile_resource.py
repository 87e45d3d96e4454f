"""ModelProfile: its dict to a Profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gpupack.facts.gpu import GpuKind
from gpupack.facts.serving import Profile, ProfilePoint
from gpupack.kube.serving_resource import lengths_of
from gpupack.units import Bytes, seconds_from_microseconds

GpuByName = Callable[[str], GpuKind]
"""A GPU by its name in the catalog. Raises Invalid for any other."""


def profile_of(obj: Mapping[str, Any], *, gpu_by_name: GpuByName) -> Profile:
    """A ModelProfile that passed its CRD. Raises Invalid for a GPU that the catalog does not have."""
    spec = obj["spec"]
    return Profile(
        name=obj["metadata"]["name"],
        model=spec["model"],
        gpu_kind=gpu_by_name(spec["gpu"]).name,
        engine_version=spec["engineVersion"],
        lengths=lengths_of(spec["lengths"]),
        points=tuple(
            ProfilePoint(
                max_num_seqs=point["maxNumSeqs"],
                total_tokens_per_second=float(point["totalTokensPerSecond"]),
                itl_mean=seconds_from_microseconds(point["itlMeanMicroseconds"]),
                kv_peak_bytes=Bytes(point["kvPeakBytes"]) if "kvPeakBytes" in point else None,
            )
            for point in sorted(spec["points"], key=lambda each: each["maxNumSeqs"])
        ),
    )
