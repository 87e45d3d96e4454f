"""ModelProfile: its dict to a Profile, or to the Belief that live calibration keeps in one; and a Belief to its dict.

The schema has no floats: a belief's numbers are text of four significant digits. What is read back is what decisions
use, so a process that starts anew decides alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gpupack.facts.belief import Belief, BeliefKey
from gpupack.facts.gpu import GpuKind
from gpupack.facts.serving import Profile, ProfilePoint
from gpupack.kube import labels
from gpupack.kube.quantities import number_text
from gpupack.kube.serving_resource import lengths_of
from gpupack.kube.times import rfc3339, seconds_of
from gpupack.units import (
    MINUTE,
    Bytes,
    Ratio,
    Seconds,
    microseconds,
    percent,
    ratio_from_percent,
    seconds_from_microseconds,
)

GpuByName = Callable[[str], GpuKind]
"""A GPU by its name in the catalog. Raises Invalid for any other."""
DONE = "Done"
"""The phase of a measurement whose points count."""


def profile_of(obj: Mapping[str, Any], *, gpu_by_name: GpuByName) -> Profile:
    """A ModelProfile that passed its CRD, with the points that it has by now. Raises Invalid for an unknown GPU."""
    spec = obj["spec"]
    return Profile(
        name=obj["metadata"]["name"],
        model=spec["model"],
        gpu_kind=gpu_by_name(spec["gpu"]).name,
        engine_version=spec["engineVersion"],
        lengths=lengths_of(spec["lengths"]),
        points=tuple(point_of(point) for point in sorted(_points(obj), key=lambda each: each["maxNumSeqs"])),
    )


def _points(obj: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Those that were given, or measured once the measuring is done."""
    spec, measured = obj["spec"], obj.get("status", {}).get("measured", {})
    if "measure" not in spec:
        return list(spec["points"])
    return list(measured.get("points", ())) if measured.get("phase") == DONE else []


def point_of(fields: Mapping[str, Any]) -> ProfilePoint:
    tpot = fields.get("tpotMeanMicroseconds")
    return ProfilePoint(
        max_num_seqs=fields["maxNumSeqs"],
        total_tokens_per_second=float(fields["totalTokensPerSecond"]),
        itl_mean=seconds_from_microseconds(fields["itlMeanMicroseconds"]),
        tpot_mean=None if tpot is None else seconds_from_microseconds(tpot),
        kv_peak_bytes=Bytes(fields["kvPeakBytes"]) if "kvPeakBytes" in fields else None,
        preemptions=fields.get("preemptions"),
    )


def point_to_dict(point: ProfilePoint) -> dict[str, Any]:
    """Whole numbers, as the schema has them."""
    fields = {
        "maxNumSeqs": point.max_num_seqs,
        "totalTokensPerSecond": max(1, round(point.total_tokens_per_second)),
        "itlMeanMicroseconds": max(1, round(microseconds(point.itl_mean))),
        "tpotMeanMicroseconds": None if point.tpot_mean is None else max(1, round(microseconds(point.tpot_mean))),
        "preemptions": point.preemptions,
    }
    return {name: value for name, value in fields.items() if value is not None}


def belief_of(obj: Mapping[str, Any]) -> Belief | None:
    """What was learnt and written there; None in a profile that a user keeps."""
    learned = obj.get("status", {}).get("learned")
    if learned is None:
        return None
    spec = obj["spec"]
    return Belief(
        key=BeliefKey(
            namespace=obj["metadata"]["namespace"], model=spec["model"], gpu_kind=spec["gpu"],
            engine_version=spec["engineVersion"],
        ),
        step=seconds_from_microseconds(float(learned["stepMicroseconds"])),
        sequence=seconds_from_microseconds(float(learned["sequenceMicroseconds"])),
        kv_read=Ratio(float(learned["kvReadEfficiency"])),
        eager=seconds_from_microseconds(float(learned["eagerLayerMicroseconds"])),
        gemm=Ratio(float(learned["gemmEfficiency"])),
        covariance=_square([float(each) for each in learned["covariance"]]),
        error=ratio_from_percent(float(learned["errorPercent"])),
        load=Seconds(float(learned["loadSeconds"])),
        batch_least=float(learned["batches"]["least"]),
        batch_most=float(learned["batches"]["most"]),
        input_mean=float(learned["inputTokens"]),
        output_mean=float(learned["outputTokens"]),
        at=seconds_of(learned["writtenAt"]),
    )  # fmt: skip


def learned_profile(belief: Belief) -> dict[str, Any]:
    """The ModelProfile that keeps it, without status. Nobody owns it: it outlives the serving."""
    key = belief.key
    return {
        "apiVersion": labels.API_VERSION,
        "kind": "ModelProfile",
        "metadata": {"name": key.name, "namespace": key.namespace, "labels": {labels.MANAGER: labels.MANAGED_BY}},
        "spec": {"model": key.model, "gpu": key.gpu_kind, "engineVersion": key.engine_version},
    }


def belief_to_dict(belief: Belief) -> dict[str, Any]:
    """The `status` of that profile."""
    rows = enumerate(belief.covariance)
    learned = {
        "message": learned_from(belief),
        "stepMicroseconds": number_text(microseconds(belief.step)),
        "sequenceMicroseconds": number_text(microseconds(belief.sequence)),
        "kvReadEfficiency": number_text(belief.kv_read),
        "eagerLayerMicroseconds": number_text(microseconds(belief.eager)),
        "gemmEfficiency": number_text(belief.gemm),
        "covariance": [number_text(value) for number, row in rows for value in row[: number + 1]],
        "errorPercent": number_text(percent(belief.error)),
        "loadSeconds": round(belief.load),
        "batches": {"least": number_text(belief.batch_least), "most": number_text(belief.batch_most)},
        "inputTokens": number_text(belief.input_mean),
        "outputTokens": number_text(belief.output_mean),
        "writtenAt": rfc3339(belief.at),
    }
    return {"learned": learned}


def learned_from(belief: Belief) -> str:
    """From how many minutes of which load, in a sentence."""
    return (
        f"learnt from {belief.load / MINUTE:.0f} minutes of load, batches of {belief.batch_least:.0f} to "
        f"{belief.batch_most:.0f} sequences, of late {belief.input_mean:.0f} tokens in and {belief.output_mean:.0f} "
        f"out; latencies are predicted to {percent(belief.error):.0f} %"
    )


def _square(lower: list[float]) -> tuple[tuple[float, ...], ...]:
    """A symmetric matrix from its lower triangle, row by row."""
    size = int((2 * len(lower)) ** 0.5)

    def at(row: int, column: int) -> float:
        high, low = max(row, column), min(row, column)
        return lower[high * (high + 1) // 2 + low]

    return tuple(tuple(at(row, column) for column in range(size)) for row in range(size))
