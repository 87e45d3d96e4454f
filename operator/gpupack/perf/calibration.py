"""Coefficients of the step time by engine version, and their fit to measured points.

Knows which runs each set was fitted to and how far it missed them. What a coefficient means stands in
`prediction.Coefficients`; how a step is made of them in `roofline`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace

from gpupack.errors import Invalid
from gpupack.facts.estimate import Source
from gpupack.facts.gpu import GpuKind
from gpupack.facts.llm import Dtype, Llm
from gpupack.facts.serving import Profile, ProfilePoint, Sharing
from gpupack.perf.memory import default_shape
from gpupack.perf.prediction import Coefficients, EngineGroup
from gpupack.perf.sharing import predict
from gpupack.units import Ratio, Seconds

# The fit: how far a scale may move (natural logarithm), the pull to where it was, the step of a slope, and the rounds.
_REACH = math.log(2.5)
_PULL = 0.002
_STEP = 1e-4
_ROUNDS = 12
_LEAST_ERROR = 0.02

# vLLM V0 (a development build of November 2024 that calls itself 0.5.2), fitted to 163 runs of one engine (arXiv
# 2503.08311): OPT-1.3B, OPT-2.7B and Llama-2-7B on the 64 GB H100, 2.1 % off in throughput and 2.4 % in ITL; on a model
# left out of the fit 2.4 and 2.6 %. Layer, sequence and prefill-sequence times were fitted; the rest are anchors:
# datasheets, kernel breakdowns, the offline CPU share. Interference from the replication runs of OPT-1.3B.
_V0_5_2 = Coefficients(
    engine_version="0.5.2",
    host_per_layer=Seconds(0.034e-3),
    gpu_per_layer=Seconds(0.045e-3),
    host_per_sequence=Seconds(0.0302e-3),
    host_per_prefill_sequence=Seconds(0.0098e-3),
    output_per_sequence=Seconds(0.02e-3),
    eager_per_layer=Seconds(0.33e-3),
    weight_read_efficiency=Ratio(0.96),
    kv_read_efficiency=Ratio(0.90),
    gemm_efficiency=Ratio(0.607),
    ingest_per_request=Seconds(1.25e-3),
    ingest_stalls=True,
    mps_interference=Ratio(0.03),
    time_slicing_interference=Ratio(0.48),
    source=Source.CALIBRATED,
    error=Ratio(0.05),
)

# vLLM V1, fitted to 24 calibration runs of GPULLMAdapterOptimization (arXiv 2508.08343; 50 to 400 sequences, constant
# lengths, 64 GB H100): 1 % off on each of two models. What Llama-3.1-8B needs is the engine's; what Qwen2.5-7B needs
# beyond it is put down to the repetition penalty of its generation config, which this engine applies. Host and GPU
# share of a layer, steps with prefill and sharing were not measured: they are the older engine's, or guessed between.
_V0_8_5 = Coefficients(
    engine_version="0.8.5",
    host_per_layer=Seconds(0.068e-3),
    gpu_per_layer=Seconds(0.030e-3),
    host_per_sequence=Seconds(0.005e-3),
    host_per_prefill_sequence=Seconds(0.003e-3),
    eager_per_layer=Seconds(0.15e-3),
    weight_read_efficiency=Ratio(0.96),
    kv_read_efficiency=Ratio(0.95),
    gemm_efficiency=Ratio(0.607),
    ingest_per_request=Seconds(1.1e-3),
    penalty_fixed=Seconds(0.785e-3),
    penalty_per_sequence=Seconds(0.0105e-3),
    mps_interference=Ratio(0.03),
    time_slicing_interference=Ratio(0.48),
    source=Source.CALIBRATED,
    error=Ratio(0.10),
)

# Engines newer than the newest calibrated one use its coefficients, believed less.
_NEWER_ERROR = Ratio(0.20)

_BY_VERSION = {each.engine_version: each for each in (_V0_5_2, _V0_8_5)}
_NEWEST = "0.8.5"


def supported_versions() -> tuple[str, ...]:
    """Engine versions with coefficients of their own, oldest first."""
    return tuple(_BY_VERSION)


def coefficients(engine_version: str | None = None, field: str = "--engine-version") -> Coefficients:
    """The coefficients of that engine version, or of the newest known one at most as new; None is the newest.

    Raises Invalid for what is no version.
    """
    if engine_version is None:
        return _BY_VERSION[_NEWEST]
    asked = _parts(engine_version, field)
    older = [each for version, each in _BY_VERSION.items() if _parts(version, field) <= asked]
    known = older[-1] if older else _V0_5_2
    if asked[:2] > _parts(_NEWEST, field)[:2]:
        return replace(known, source=Source.ANALYTIC, error=_NEWER_ERROR)
    return known


def fit(
    profile: Profile,
    llm: Llm,
    gpu: GpuKind,
    base: Coefficients,
    dtype: Dtype | None = None,
    field: str = "spec.profileRef",
) -> Coefficients:
    """`base` moved so that it meets the profile's points: damped least squares on three scales within bounds.

    Time a layer (host and GPU together), time a sequence on the host, and the efficiency of reading KV cache may move,
    each by a factor between 0.4 and 2.5; a pull towards `base` keeps those that the points do not tell apart where they
    were. Points are steady runs of one full engine with chunked prefill and vLLM's own KV share. `error` of the answer
    is the worst residual left. Raises Invalid for a profile of another GPU or without points.
    """
    if profile.gpu_kind != gpu.name:
        raise Invalid(field, f"profile {profile.name} was measured on {profile.gpu_kind}", f"give one of {gpu.name}")
    if not profile.points:
        raise Invalid(field, f"profile {profile.name} has no points", "give at least one measured point")
    stored = dtype or (Dtype.BFLOAT16 if gpu.bfloat16 else Dtype.FLOAT16)

    def residuals(scales: list[float]) -> list[float]:
        moved = _scaled(base, scales)
        return [each for point in profile.points for each in _misses(point, profile, llm, stored, gpu, moved)]

    scales = _least_squares(residuals)
    left = residuals(scales)
    worst = max(abs(math.expm1(each)) for each in left)
    source = Source.MEASURED if len(profile.points) > 1 else Source.CALIBRATED
    return replace(
        _scaled(base, scales),
        engine_version=profile.engine_version,
        calibrated_on=gpu.name,
        source=source,
        error=Ratio(max(worst, _LEAST_ERROR)),
    )


def _scaled(base: Coefficients, scales: list[float]) -> Coefficients:
    layer, sequence, reading = (math.exp(each) for each in scales)
    return replace(
        base,
        host_per_layer=Seconds(base.host_per_layer * layer),
        gpu_per_layer=Seconds(base.gpu_per_layer * layer),
        host_per_sequence=Seconds(base.host_per_sequence * sequence),
        kv_read_efficiency=Ratio(min(1.0, base.kv_read_efficiency * reading)),
    )


def _misses(
    point: ProfilePoint, profile: Profile, llm: Llm, dtype: Dtype, gpu: GpuKind, moved: Coefficients
) -> tuple[float, float]:
    """Logarithms of predicted over measured throughput and ITL at one point."""
    group = EngineGroup(
        llm=llm,
        dtype=dtype,
        shape=default_shape(llm, dtype, gpu, max_num_seqs=point.max_num_seqs, max_num_batched_tokens=2048),
        lengths=profile.lengths,
        replicas=1,
        request_rate=None,
        coefficients=moved,
    )
    predicted = predict.__wrapped__(gpu, (group,), Sharing.EXCLUSIVE).groups[0]
    return (
        math.log(predicted.total_tokens_per_second / point.total_tokens_per_second),
        math.log(predicted.itl_mean / point.itl_mean),
    )


def _least_squares(residuals: Callable[[list[float]], list[float]]) -> list[float]:
    """Gauss-Newton with a pull of `_PULL` to zero and bounds of `_REACH`; ends after a fixed number of rounds."""
    scales = [0.0, 0.0, 0.0]
    for _ in range(_ROUNDS):
        here = residuals(scales)
        slopes = []
        for index in range(len(scales)):
            aside = [*scales]
            aside[index] += _STEP
            slopes.append([(there - now) / _STEP for there, now in zip(residuals(aside), here, strict=True)])
        matrix = [
            [
                sum(a * b for a, b in zip(row, column, strict=True)) + (_PULL if i == j else 0.0)
                for j, column in enumerate(slopes)
            ]
            for i, row in enumerate(slopes)
        ]
        pulled = [
            -sum(a * b for a, b in zip(row, here, strict=True)) - _PULL * scale
            for row, scale in zip(slopes, scales, strict=True)
        ]
        moves = _solved(matrix, pulled)
        scales = [min(_REACH, max(-_REACH, scale + move)) for scale, move in zip(scales, moves, strict=True)]
    return scales


def _solved(matrix: list[list[float]], right: list[float]) -> list[float]:
    """The solution of a small positive definite system, by elimination."""
    size = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for pivot in range(size):
        for below in range(pivot + 1, size):
            factor = rows[below][pivot] / rows[pivot][pivot]
            rows[below] = [low - factor * up for low, up in zip(rows[below], rows[pivot], strict=True)]
    answer = [0.0] * size
    for index in reversed(range(size)):
        known = sum(rows[index][other] * answer[other] for other in range(index + 1, size))
        answer[index] = (rows[index][size] - known) / rows[index][index]
    return answer


def _parts(version: str, field: str) -> tuple[int, ...]:
    numbers = re.match(r"v?(\d+(?:\.\d+){0,2})", version)
    if numbers is None:
        raise Invalid(field, f"{version!r} is no engine version", "write for instance 0.33.0")
    return tuple(int(part) for part in numbers[1].split("."))
