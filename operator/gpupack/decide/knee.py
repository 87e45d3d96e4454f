"""BCA exactly as published: the batch limit at which a lone engine should stop, read off a curve.

B_opt = argmax T(B) subject to L(B) <= SLO and T(B) / (B T(1)) > epsilon (arXiv 2503.08311); the SLO is a multiple of
the latency at batch 32, and runs that preempted are no candidates. Knows curves of one engine by batch limit, measured
or predicted; where they come from is the caller's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from gpupack.errors import Invalid
from gpupack.facts.serving import ProfilePoint
from gpupack.units import Bytes, Ratio, Seconds

REFERENCE_BATCH = 32
# Without a count of preemptions, a run that filled so much of its KV cache is taken to have preempted.
_FULL = 0.999


class Latency(StrEnum):
    """Which mean the SLO bounds: of all gaps between tokens, or of each request's seconds a token after the first."""

    ITL = "itl"
    TPOT = "tpot"


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One batch limit: tokens a second, mean latency, and whether the run kept its requests (no preemption)."""

    max_num_seqs: int
    total_tokens_per_second: float
    latency: Seconds
    held: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredKnee:
    """BCA's answer on measured runs. `share_of_best` is of the best run that did not preempt.

    `freed_bytes` is KV space less the peak of the chosen run, `freed_fraction` that over the GPU's memory; None where
    the profile does not say. `keeps_slo` False: no batch limit is a candidate, and the smallest is reported.
    """

    max_num_seqs: int
    slo: Seconds
    latency: Seconds
    total_tokens_per_second: float
    efficiency: Ratio
    share_of_best: Ratio
    freed_bytes: Bytes | None
    freed_fraction: Ratio | None
    keeps_slo: bool


def b_opt(curve: Sequence[CurvePoint], slo: Seconds | None, min_efficiency: Ratio) -> int | None:
    """The batch limit of the most throughput within the SLO and above the efficiency; None if there is none.

    `curve` must hold batch limit 1, whose efficiency is 1 by definition.
    """
    alone = next(point for point in curve if point.max_num_seqs == 1).total_tokens_per_second
    candidates = [
        point
        for point in curve
        if point.held
        and (slo is None or point.latency <= slo)
        and (point.max_num_seqs == 1 or point.total_tokens_per_second > min_efficiency * point.max_num_seqs * alone)
    ]
    if not candidates:
        return None
    return max(candidates, key=lambda point: (point.total_tokens_per_second, -point.max_num_seqs)).max_num_seqs


def measured_knee(
    points: Sequence[ProfilePoint],
    *,
    slo_factor: float,
    slo: Seconds | None,
    min_efficiency: Ratio,
    latency: Latency = Latency.ITL,
    field: str = "--profile",
) -> MeasuredKnee:
    """BCA on measured runs. The SLO is `slo`, or `slo_factor` times the latency at batch limit 32.

    Raises Invalid where the runs do not hold what the formulas need.
    """
    by_limit = {point.max_num_seqs: point for point in points}
    if 1 not in by_limit:
        raise Invalid(field, "there is no run at batch limit 1, to which efficiency relates", "add one")
    curve = [
        CurvePoint(
            max_num_seqs=point.max_num_seqs,
            total_tokens_per_second=point.total_tokens_per_second,
            latency=_latency(point, latency, field),
            held=not _preempted(point),
        )
        for point in points
    ]
    if slo is None:
        if REFERENCE_BATCH not in by_limit:
            raise Invalid(
                field,
                f"there is no run at batch limit {REFERENCE_BATCH}, of whose latency the SLO is a multiple",
                "add one, or give --itl-slo-ms",
            )
        slo = Seconds(slo_factor * _latency(by_limit[REFERENCE_BATCH], latency, field))
    found = b_opt(curve, slo, min_efficiency)
    limit = found or 1
    chosen = by_limit[limit]
    tokens = chosen.total_tokens_per_second
    most = max((point.total_tokens_per_second for point in curve if point.held), default=tokens)
    freed = None
    if chosen.kv_peak_bytes is not None and chosen.kv_space_bytes is not None:
        freed = Bytes(chosen.kv_space_bytes - chosen.kv_peak_bytes)
    return MeasuredKnee(
        max_num_seqs=limit,
        slo=slo,
        latency=_latency(chosen, latency, field),
        total_tokens_per_second=tokens,
        efficiency=Ratio(tokens / (limit * by_limit[1].total_tokens_per_second)),
        share_of_best=Ratio(tokens / most),
        freed_bytes=freed,
        freed_fraction=None
        if freed is None or chosen.gpu_memory_bytes is None
        else Ratio(freed / chosen.gpu_memory_bytes),
        keeps_slo=found is not None,
    )


def _latency(point: ProfilePoint, latency: Latency, field: str) -> Seconds:
    if latency is Latency.ITL:
        return point.itl_mean
    if point.tpot_mean is None:
        raise Invalid(
            field,
            f"the run at batch limit {point.max_num_seqs} gives no time per output token",
            "give tpot_mean_seconds (vLLM: mean_tpot_ms), or choose --latency itl",
        )
    return point.tpot_mean


def _preempted(point: ProfilePoint) -> bool:
    if point.preemptions is not None:
        return point.preemptions > 0
    if point.kv_peak_bytes is None or point.kv_space_bytes is None:
        return False
    return point.kv_peak_bytes >= _FULL * point.kv_space_bytes
