"""Coefficients of the step time by engine version, and their fit to measured points.

Knows which runs each set was fitted to and how far it missed them. What a coefficient means stands in
`prediction.Coefficients`; how a step is made of them in `roofline`.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

from gpupack.errors import Invalid
from gpupack.facts.estimate import Source
from gpupack.facts.gpu import GpuKind
from gpupack.facts.llm import Dtype, Llm
from gpupack.facts.serving import Profile, ProfilePoint, Sharing
from gpupack.perf.fit import Free, least_squares, scaled
from gpupack.perf.memory import default_shape
from gpupack.perf.prediction import Coefficients, EngineGroup
from gpupack.perf.sharing import predict
from gpupack.units import Ratio, Seconds

_PROFILE = (Free.OVERHEAD, Free.SEQUENCE, Free.KV_READ)
_LEAST_ERROR = 0.02

# vLLM V0 (a development build of November 2024 that calls itself 0.5.2), fitted by `fit.fit_runs` to 163 runs of one
# engine (arXiv 2503.08311): OPT-1.3B, OPT-2.7B and Llama-2-7B on the 64 GB H100, 2.1 % off in throughput and in ITL; on
# a model left out of the fit 2.6 and 2.7 %. Layer, sequence and prefill-sequence times were fitted; the rest are
# anchors: datasheets, kernel breakdowns, the offline CPU share. Interference from the replication runs of OPT-1.3B.
_V0_5_2 = Coefficients(
    engine_version="0.5.2",
    host_per_layer=Seconds(0.0345e-3),
    gpu_per_layer=Seconds(0.0456e-3),
    host_per_sequence=Seconds(0.0309e-3),
    host_per_prefill_sequence=Seconds(0.0109e-3),
    output_per_sequence=Seconds(0.02e-3),
    eager_per_layer=Seconds(0.33e-3),
    weight_read_efficiency=Ratio(0.96),
    kv_read_efficiency=Ratio(0.90),
    gemm_efficiency=Ratio(0.607),
    ingest_per_request=Seconds(1.25e-3),
    ingest_stalls=True,
    mps_interference=Ratio(0.03),
    time_slicing_interference=Ratio(0.51),
    source=Source.CALIBRATED,
    error=Ratio(0.05),
)

# vLLM V1, fitted to the 42 calibration runs without adapters of GPULLMAdapterOptimization (arXiv 2508.08343; 50 to 1000
# sequences, constant lengths, 64 GB H100): 1.9 % off in throughput and 2.2 % in ITL; fitted to Llama-3.1-8B alone,
# Qwen2.5-7B is 2.1 and 2.7 % off, and the other way round 2.2 and 2.5 %. Its host works for a step, not for a layer:
# graphs are launched ahead of the GPU, and a time a layer predicts the other model worse (3.8 and 4.3 %). The fixed
# part of a penalty is 25 small kernels. GPU time of a layer, steps with prefill and sharing were not measured: they are
# the older engine's, or guessed between.
_V0_8_5 = Coefficients(
    engine_version="0.8.5",
    host_per_step=Seconds(2.16e-3),
    host_per_layer=Seconds(0.0),
    gpu_per_layer=Seconds(0.030e-3),
    host_per_sequence=Seconds(0.0095e-3),
    host_per_prefill_sequence=Seconds(0.003e-3),
    eager_per_layer=Seconds(0.15e-3),
    weight_read_efficiency=Ratio(0.96),
    kv_read_efficiency=Ratio(0.95),
    gemm_efficiency=Ratio(0.607),
    ingest_per_request=Seconds(1.18e-3),
    penalty_fixed=Seconds(0.15e-3),
    mps_interference=Ratio(0.03),
    time_slicing_interference=Ratio(0.51),
    source=Source.CALIBRATED,
    error=Ratio(0.10),
)

# Engines newer than the newest calibrated one use its coefficients, believed less.
_NEWER_ERROR = Ratio(0.20)

_SCHEDULER_VISIT = 4.05e-6

_BY_VERSION = {each.engine_version: each for each in (_V0_5_2, _V0_8_5)}
_NEWEST = "0.8.5"


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


def carried_over(fitted: Coefficients) -> Coefficients:
    """What an engine of V1 is expected to be by an older engine's fit and V1's structure, without any run of V1.

    V1 answers, tokenises and detokenises in another process, so a burst of prompts stalls nobody and no output waits;
    its batch persists, so a step visits a request twice on the host, before and after: 4.05 us each, the published
    time of its scheduler (arXiv 2508.08343, fitted there to scheduler timings, not to throughput or latency).
    """
    return replace(
        fitted,
        engine_version=_NEWEST,
        host_per_sequence=Seconds(2 * _SCHEDULER_VISIT),
        host_per_prefill_sequence=Seconds(0.0),
        output_per_sequence=Seconds(0.0),
        ingest_stalls=False,
        source=Source.ANALYTIC,
        error=_NEWER_ERROR,
    )


def fit(
    profile: Profile,
    llm: Llm,
    gpu: GpuKind,
    base: Coefficients,
    dtype: Dtype | None = None,
    field: str = "spec.profileRef",
) -> Coefficients:
    """`base` moved so that it meets the profile's points: damped least squares on three scales within bounds.

    Time a step and layer (host and GPU together), time a sequence on the host, and the efficiency of reading KV cache
    may move, each by a factor between 0.4 and 2.5; a pull towards `base` keeps those that the points do not tell apart
    where they were. Points are steady runs of one full engine with chunked prefill and vLLM's own KV share. `error` of
    the answer is the worst residual left. Raises Invalid for a profile of another GPU or without points.
    """
    if profile.gpu_kind != gpu.name:
        raise Invalid(field, f"profile {profile.name} was measured on {profile.gpu_kind}", f"give one of {gpu.name}")
    if not profile.points:
        raise Invalid(field, f"profile {profile.name} has no points", "give at least one measured point")
    stored = dtype or (Dtype.BFLOAT16 if gpu.bfloat16 else Dtype.FLOAT16)

    def residuals(scales: list[float]) -> list[float]:
        moved = scaled(base, _PROFILE, scales)
        return [each for point in profile.points for each in _misses(point, profile, llm, stored, gpu, moved)]

    scales = least_squares(residuals, len(_PROFILE))
    left = residuals(scales)
    worst = max(abs(math.expm1(each)) for each in left)
    source = Source.MEASURED if len(profile.points) > 1 else Source.CALIBRATED
    return replace(
        scaled(base, _PROFILE, scales),
        engine_version=profile.engine_version,
        calibrated_on=gpu.name,
        source=source,
        error=Ratio(max(worst, _LEAST_ERROR)),
    )


def misses(
    profile: Profile, llm: Llm, gpu: GpuKind, fitted: Coefficients, dtype: Dtype | None = None
) -> tuple[tuple[Ratio, Ratio], ...]:
    """How far throughput and ITL of each point are predicted off: predicted over measured, less 1."""
    stored = dtype or (Dtype.BFLOAT16 if gpu.bfloat16 else Dtype.FLOAT16)
    found = []
    for point in profile.points:
        tokens, itl = _misses(point, profile, llm, stored, gpu, fitted)
        found.append((Ratio(math.expm1(tokens)), Ratio(math.expm1(itl))))
    return tuple(found)


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


def _parts(version: str, field: str) -> tuple[int, ...]:
    numbers = re.match(r"v?(\d+(?:\.\d+){0,2})", version)
    if numbers is None:
        raise Invalid(field, f"{version!r} is no engine version", "write for instance 0.33.0")
    return tuple(int(part) for part in numbers[1].split("."))
