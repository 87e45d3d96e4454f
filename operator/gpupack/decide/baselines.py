"""What packing is compared with: vLLM as it comes, one engine tuned as well as it can be, and the lone knee (BCA).

Every row is one GPU at the highest load whose statistic keeps the same SLO. The gain that leads is packed over the
swept single engine, which is the honest baseline. BCA (arXiv 2503.08311) is B_opt = argmax T(B) subject to mean ITL(B)
<= SLO and T(B)/(B T(1)) > epsilon, of one engine alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from gpupack.decide.advise import Advice
from gpupack.decide.knee import CurvePoint, b_opt
from gpupack.decide.question import Question, resolve_max_model_len
from gpupack.decide.search import BATCHES
from gpupack.facts.serving import Shape, Sharing, Slo
from gpupack.perf import batching, memory, sharing
from gpupack.perf.prediction import EngineGroup, GpuPrediction
from gpupack.units import Bytes, PerSecond, Ratio

# The batch limits at which the published advisor measured.
PUBLISHED_GRID = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 640, 768, 1024)
_TIE = 0.003


class Contender(StrEnum):
    DEFAULTS = "vllm-defaults"
    SWEPT = "swept"
    KNEE = "bca"
    PACKED = "packed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way to use the GPU. `request_rate` is the whole GPU's, None where engines kept full still keep the SLO.

    `kv_bytes` is of all engines together; `freed_bytes` is the KV cache that one vLLM would take by itself, less that.
    `plateau` (tokens a second) is what the swept engine reaches where nobody asks for latency. `prediction` is None
    where the engine does not start or no load keeps the SLO.
    """

    contender: Contender
    shape: Shape
    replicas: int
    request_rate: PerSecond | None
    prediction: GpuPrediction | None
    kv_bytes: Bytes
    freed_bytes: int
    plateau: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Knee:
    """BCA's answer for a lone engine; `freed_memory_fraction` is of the whole GPU memory, as published.

    `keeps_slo` False: no batch of the grid keeps the mean ITL, and the smallest is reported.
    """

    max_num_seqs: int
    prediction: GpuPrediction
    efficiency: Ratio
    kv_peak_bytes: Bytes
    freed_memory_fraction: Ratio
    keeps_slo: bool


def rows(question: Question, advice: Advice) -> tuple[Row, ...]:
    """The four contenders, in the order in which a team meets them."""
    slo = advice.slo
    knee = bca(question, slo)
    return (
        _row(question, slo, Contender.DEFAULTS, _defaults(question)),
        _swept(question, slo),
        _row(question, slo, Contender.KNEE, _needed(question, knee.max_num_seqs)),
        _packed(question, advice),
    )


def gain(found: tuple[Row, ...], over: Contender) -> Ratio | None:
    """By what share the packed GPU does more tokens a second than that contender; None if either does nothing."""
    done = {row.contender: row.prediction for row in found}
    packed, other = done[Contender.PACKED], done[over]
    if packed is None or other is None:
        return None
    return Ratio(packed.total_tokens_per_second / other.total_tokens_per_second - 1.0)


def bca(question: Question, slo: Slo, requests: int | None = None) -> Knee:
    """The published advisor's answer, on its own grid of batch limits.

    With `requests` its curve is that of whole runs of so many requests, which is what was published.
    """
    runs = {limit: _lone_run(question, _own_kv(question, limit), requests) for limit in PUBLISHED_GRID}
    alone = runs[1].total_tokens_per_second
    curve = [
        CurvePoint(
            max_num_seqs=limit,
            total_tokens_per_second=run.total_tokens_per_second,
            latency=run.groups[0].itl_mean,
            held=not run.groups[0].kv_starved,
        )
        for limit, run in runs.items()
    ]
    best = b_opt(curve, slo.itl, question.batching.min_efficiency)
    limit = best or 1
    space = _own_kv(question, limit).kv_cache_memory_bytes
    peak = Bytes(round(runs[limit].groups[0].kv_peak_fraction * space))
    return Knee(
        max_num_seqs=limit,
        prediction=runs[limit],
        efficiency=Ratio(runs[limit].total_tokens_per_second / (limit * alone)),
        kv_peak_bytes=peak,
        freed_memory_fraction=Ratio((space - peak) / question.gpu.memory_bytes),
        keeps_slo=best is not None,
    )


def _swept(question: Question, slo: Slo) -> Row:
    """One engine with all of vLLM's KV cache, at the batch limit and token budget of the highest load within the SLO.

    Two budgets are swept, that of the question and vLLM's own, always with chunked prefill, which serves it best.
    """
    question = replace(question, chunked_prefill=True)
    found: list[Row] = []
    plateau = 0.0
    for budget in sorted({question.max_num_batched_tokens, _defaults(question).max_num_batched_tokens}):
        full = {limit: _lone_run(question, _own_kv(question, limit, budget), None) for limit in BATCHES}
        plateau = max(plateau, *(run.total_tokens_per_second for run in full.values()))
        found += [
            _row(question, slo, Contender.SWEPT, _own_kv(question, limit, budget)) for limit in _finalists(full, slo)
        ]
    return replace(max(found, key=_tokens), plateau=plateau)


def _finalists(full: Mapping[int, GpuPrediction], slo: Slo) -> list[int]:
    """The smallest batch of nearly the most capacity within the ITL, and larger ones, which win at a limited load."""
    kept = [
        limit
        for limit, run in full.items()
        if slo.itl is None or sharing.statistic_of(run.groups[0], slo.statistic)[0] <= slo.itl
    ]
    if not kept:
        return [1, 32, 256]
    most = max(full[limit].total_tokens_per_second for limit in kept)
    best = next(limit for limit in kept if full[limit].total_tokens_per_second >= (1.0 - _TIE) * most)
    return [best, *sorted({min(BATCHES[-1], best * 3 // 2), min(BATCHES[-1], best * 2)} - {best})]


def _tokens(row: Row) -> float:
    return 0.0 if row.prediction is None else row.prediction.total_tokens_per_second


def _row(question: Question, slo: Slo, contender: Contender, shape: Shape) -> Row:
    """One engine of that shape at the highest load that keeps the SLO."""
    full = _lone_run(question, shape, None)
    rate: PerSecond | None = None
    prediction: GpuPrediction | None = full
    itl, _ = sharing.statistic_of(full.groups[0], slo.statistic)
    if slo.ttft is not None or (slo.itl is not None and itl > slo.itl):
        group = _group(question, shape)
        rate = sharing.max_rate_within(question.gpu, (group,), 0, (slo,), Sharing.EXCLUSIVE)
        prediction = _steady(question, replace(group, request_rate=rate)) if rate > 0.0 else None
    return Row(
        contender=contender,
        shape=shape,
        replicas=1,
        request_rate=rate,
        prediction=prediction if full.fits else None,
        kv_bytes=shape.kv_cache_memory_bytes,
        freed_bytes=_defaults(question).kv_cache_memory_bytes - shape.kv_cache_memory_bytes,
    )


def _packed(question: Question, advice: Advice) -> Row:
    kv_bytes = Bytes(advice.replicas_per_gpu * advice.shape.kv_cache_memory_bytes)
    full = advice.slo.ttft is None
    return Row(
        contender=Contender.PACKED,
        shape=advice.shape,
        replicas=advice.replicas_per_gpu,
        request_rate=None if full else PerSecond(advice.replica_rate * advice.replicas_per_gpu),
        prediction=advice.prediction if advice.fits and advice.unreachable is None else None,
        kv_bytes=kv_bytes,
        freed_bytes=_defaults(question).kv_cache_memory_bytes - kv_bytes,
    )


def _defaults(question: Question) -> Shape:
    """vLLM's own shape, but for max_model_len: with a long model's own it may not even start."""
    return memory.default_shape(
        question.llm,
        question.dtype,
        question.gpu,
        max_model_len=resolve_max_model_len(question.llm, question.lengths, question.max_model_len),
    )


def _own_kv(question: Question, limit: int, budget: int | None = None) -> Shape:
    """That batch limit (and token budget) with the KV cache that vLLM takes by itself."""
    return memory.default_shape(
        question.llm,
        question.dtype,
        question.gpu,
        max_num_seqs=limit,
        max_num_batched_tokens=max(limit, budget or question.max_num_batched_tokens),
        max_model_len=resolve_max_model_len(question.llm, question.lengths, question.max_model_len),
        chunked_prefill=question.chunked_prefill,
    )


def _needed(question: Question, limit: int) -> Shape:
    """That batch limit with the KV cache that it needs."""
    longest = resolve_max_model_len(question.llm, question.lengths, question.max_model_len)
    tokens = memory.kv_tokens_needed(question.lengths, limit, longest, question.policy.kv_safety)
    return replace(
        _own_kv(question, limit), kv_cache_memory_bytes=memory.kv_cache_bytes(question.llm, question.dtype, tokens)
    )


def _group(question: Question, shape: Shape) -> EngineGroup:
    return EngineGroup(
        llm=question.llm,
        dtype=question.dtype,
        shape=shape,
        lengths=question.lengths,
        replicas=1,
        request_rate=None,
        coefficients=question.coefficients,
    )


def _lone_run(question: Question, shape: Shape, requests: int | None) -> GpuPrediction:
    group = _group(question, shape)
    if requests is None:
        return _steady(question, group)
    return batching.predict_run(question.gpu, (group,), Sharing.EXCLUSIVE, requests, question.policy.gpu_reserve)


def _steady(question: Question, group: EngineGroup) -> GpuPrediction:
    return sharing.predict(question.gpu, (group,), Sharing.EXCLUSIVE, question.policy.gpu_reserve)
