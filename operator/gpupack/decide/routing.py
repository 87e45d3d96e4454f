"""What a serving's InferencePool came to, and what its endpoint picker should take for overload.

A picker's own defaults call an engine saturated above 80 % of its KV cache or five waiting requests. A right-sized
cache is meant to be fuller than that, and an engine that finishes forty requests a second soon works five off. Knows
the shape and its prediction; which picker runs, and by which rules it picks, is not known.
"""

from __future__ import annotations

import math

from gpupack.decide import explain
from gpupack.decide.board import Board
from gpupack.facts.placement import ChosenShape
from gpupack.facts.routing import PoolSeen, PoolState, Thresholds
from gpupack.facts.serving import Lengths, Mode, Serving, Shape, Statistic
from gpupack.perf.memory import kv_tokens_of_full_batch
from gpupack.plan import Condition, ConditionType, Truth
from gpupack.units import Ratio

PICKERS_QUEUE_DEPTH, PICKERS_KV_UTILIZATION = 5, Ratio(0.8)
"""An endpoint picker's own defaults (utilization-detector of llm-d-router, and the inference extension before it)."""

_QUANTILE = {Statistic.MEAN: 0.0, Statistic.P95: 1.645, Statistic.P99: 2.326}
"""Of the standard normal distribution, to which the time of several departures is near."""


def thresholds(board: Board, serving: Serving, chosen: ChosenShape) -> Thresholds | None:
    """For engines of this shape, R* of them on a GPU. None while their kind of GPU is not in the pool."""
    kind = board.kinds.get(chosen.gpu_kind)
    if kind is None:
        return None
    shape, lengths = chosen.shape, board.prospects.lengths[serving.key]
    replicas = max(1, chosen.replicas_per_gpu)
    kin = board.prospects.kin(serving.key, shape)
    full = board.prospects.full(kind, ((kin, replicas),)).groups[0]
    slo = chosen.slo if serving.slo is None else serving.slo
    depth = PICKERS_QUEUE_DEPTH
    if slo is not None and slo.ttft is not None:
        finished = full.output_tokens_per_second / replicas / lengths.output_mean
        room = slo.ttft - _prefill_steps(lengths, shape) * full.itl_p95
        depth = queue_threshold(finished * room, slo.statistic)
    held = shape.kv_tokens(serving.llm.kv_bytes_per_token(serving.dtype))
    return Thresholds(queue_depth=depth, kv_cache_utilization=kv_threshold(lengths, shape.max_num_seqs, held))


def kv_threshold(lengths: Lengths, max_num_seqs: int, kv_tokens: int) -> Ratio:
    """What a full batch stays below 99 times in 100, rounded up to a hundredth, and no less than a picker's default.

    1 where the KV cache and not the batch limit is what ends a batch: then only the queue tells of overload.
    """
    usual = kv_tokens_of_full_batch(lengths, max_num_seqs) / max(1, kv_tokens)
    return Ratio(min(1.0, max(PICKERS_KV_UTILIZATION, math.ceil(100.0 * usual) / 100.0)))


def queue_threshold(departures: float, statistic: Statistic) -> int:
    """The most requests that may wait where so many leave, on average, within the promised time; at least 1.

    Sequences of a full batch finish nearly as chance will (Poisson), so that n departures take n + z sqrt(n) times the
    mean gap at the promised statistic's normal quantile z: n + z sqrt(n) = `departures`.
    """
    quantile = _QUANTILE[statistic]
    root = (math.sqrt(quantile * quantile + 4.0 * max(0.0, departures)) - quantile) / 2.0
    return max(1, math.floor(root * root))


def _prefill_steps(lengths: Lengths, shape: Shape) -> float:
    """From the place in the batch to the first token: half a step under way, and those of a long prompt's chunks."""
    long = lengths.input_mean * (1.0 + _QUANTILE[Statistic.P95] * lengths.input_cv)
    return 0.5 + math.ceil(long / shape.max_num_batched_tokens)


def condition(board: Board, serving: Serving) -> Condition | None:
    """None where no InferencePool is asked for and none is left."""
    children = board.facts.services.get(serving.key)
    seen = None if children is None else children.inference_pool
    if serving.routing is None and seen is None:
        return None
    reason, message = _said(serving, seen)
    truth = Truth.FALSE
    if seen is None:
        truth = Truth.UNKNOWN
    elif seen.state is PoolState.WRITTEN:
        truth = Truth.TRUE
    return Condition(type=ConditionType.INFERENCE_POOL_WRITTEN, truth=truth, reason=reason, message=message)


def _said(serving: Serving, seen: PoolSeen | None) -> tuple[str, str]:
    if seen is None:
        if serving.mode is Mode.ADVISE:
            return "AdviseOnly", explain.no_pool_in_advise_mode()
        return "Waiting", explain.pool_waits()
    if seen.state is PoolState.WRITTEN and serving.routing is not None:
        message = explain.pool_written(serving.key.name, seen.ports, seen.left_out, serving.routing)
        return ("PortsLeftOut" if seen.left_out else seen.state.value), message
    return seen.state.value, explain.pool_not_written(seen)
