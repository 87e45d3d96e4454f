"""`status.observed` of a ModelServing: an appraisal to a dict and back.

What is read back is what stands there: its numbers have four digits, and stay as they are until the next appraisal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpupack.facts.engine_args import shape_args
from gpupack.facts.running import Appraisal, Better, EngineFound
from gpupack.facts.serving import ServingKey
from gpupack.kube.quantities import number_text
from gpupack.kube.shape_resource import shape_of, shape_to_dict
from gpupack.kube.times import rfc3339_micro, seconds_of
from gpupack.units import (
    Bytes,
    PerSecond,
    Ratio,
    Seconds,
    milliseconds,
    percent,
    ratio_from_percent,
    seconds_from_milliseconds,
)


def appraisal_to_dict(appraisal: Appraisal) -> dict[str, Any]:
    return {
        "at": rfc3339_micro(appraisal.at),
        "inputs": appraisal.inputs,
        "engines": [_engine_to_dict(each) for each in appraisal.engines],
        "advised": [_better_to_dict(each) for each in appraisal.better],
    }


def appraisal_of(serving: ServingKey, status: Mapping[str, Any]) -> Appraisal | None:
    """What the status says; None if it says nothing or cannot be read: then it is worked out anew."""
    written = status.get("observed")
    if written is None:
        return None
    try:
        return Appraisal(
            serving=serving,
            at=seconds_of(written["at"]),
            inputs=written["inputs"],
            engines=tuple(_engine(each) for each in written["engines"]),
            better=tuple(_better(each) for each in written["advised"]),
        )
    except (KeyError, ValueError, TypeError):
        return None


def _engine_to_dict(engine: EngineFound) -> dict[str, Any]:
    utilization = engine.gpu_memory_utilization
    fields = {
        "pod": engine.pod,
        "node": engine.node or None,
        "gpu": engine.gpu_uuid,
        "gpuKind": engine.gpu_kind,
        "version": engine.version,
        "maxNumSeqs": engine.max_num_seqs,
        "gpuMemoryUtilizationPercent": _text(None if utilization is None else percent(utilization)),
        "kvCacheMemoryBytes": engine.kv_cache_memory_bytes,
        "running": _text(engine.running),
        "requestsPerSecond": _text(engine.requests_per_second),
        "itlMeanMilliseconds": _latency(engine.itl_mean),
        "itlP95Milliseconds": _latency(engine.itl_p95),
        "problem": engine.problem,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _engine(fields: Mapping[str, Any]) -> EngineFound:
    kv_bytes, utilization = fields.get("kvCacheMemoryBytes"), _number(fields.get("gpuMemoryUtilizationPercent"))
    rate = _number(fields.get("requestsPerSecond"))
    return EngineFound(
        pod=fields["pod"],
        node=fields.get("node", ""),
        gpu_uuid=fields.get("gpu"),
        gpu_kind=fields.get("gpuKind"),
        version=fields.get("version"),
        max_num_seqs=fields.get("maxNumSeqs"),
        gpu_memory_utilization=None if utilization is None else ratio_from_percent(utilization),
        kv_cache_memory_bytes=None if kv_bytes is None else Bytes(kv_bytes),
        running=_number(fields.get("running")),
        requests_per_second=None if rate is None else PerSecond(rate),
        itl_mean=_seconds(fields.get("itlMeanMilliseconds")),
        itl_p95=_seconds(fields.get("itlP95Milliseconds")),
        problem=fields.get("problem"),
    )


def _better_to_dict(better: Better) -> dict[str, Any]:
    fits = better.utilization_hundredths <= 100
    arguments = list(shape_args(better.shape, better.utilization_hundredths)) if fits else None
    fields = {
        "gpuKind": better.gpu_kind,
        "engines": better.engines,
        "shape": shape_to_dict(better.shape),
        "engineArguments": arguments,
        "replicasPerGpu": better.replicas_per_gpu,
        "gpuMemoryUtilizationPercent": better.utilization_hundredths,
        "freedBytes": better.freed_bytes,
        "expectedGainPercent": _share(better.gain),
        "singleEngineGainPercent": _share(better.gain_alone),
        "gpusNow": better.gpus_now,
        "gpusNeeded": better.gpus_needed,
        "message": better.message,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _better(fields: Mapping[str, Any]) -> Better:
    return Better(
        gpu_kind=fields["gpuKind"],
        engines=fields["engines"],
        shape=shape_of(fields["shape"]),
        replicas_per_gpu=fields["replicasPerGpu"],
        utilization_hundredths=fields["gpuMemoryUtilizationPercent"],
        freed_bytes=fields["freedBytes"],
        gain=_ratio(fields.get("expectedGainPercent")),
        gain_alone=_ratio(fields.get("singleEngineGainPercent")),
        gpus_now=fields["gpusNow"],
        gpus_needed=fields.get("gpusNeeded"),
        message=fields["message"],
    )


def _text(value: float | None) -> str | None:
    return None if value is None else number_text(value)


def _latency(value: Seconds | None) -> str | None:
    return None if value is None else number_text(milliseconds(value))


def _seconds(text: str | None) -> Seconds | None:
    return None if text is None else seconds_from_milliseconds(float(text))


def _share(value: Ratio | None) -> str | None:
    return None if value is None else number_text(percent(value))


def _ratio(text: str | None) -> Ratio | None:
    return None if text is None else Ratio(float(text) / 100.0)


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)
