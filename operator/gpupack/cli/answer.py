"""The answer of `predict` and `simulate`: one set of names for both, as JSON or as a few lines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gpupack.cli.setting import Setting
from gpupack.cli.show import Json, gib, ms, pct, print_json, rate, rounded, table
from gpupack.facts.policy import Policy
from gpupack.facts.serving import Sharing
from gpupack.perf.prediction import EngineGroup, GpuPrediction, ReplicaMemory


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAnswer:
    """What is true of each replica of one model. Sizes are known even where nothing runs."""

    group: EngineGroup
    memory: ReplicaMemory
    kv_tokens_needed: int
    running_mean: float | None
    kv_peak_fraction: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`problem` says why the engines do not fit; then there are sizes but no performance.

    `numbers` are those of the contract, in base units; `error` is the share that they may be off.
    """

    engines: tuple[EngineAnswer, ...]
    problem: str | None
    numbers: Mapping[str, float | None]
    error: float
    source: str
    extra: Mapping[str, float | None]


NUMBERS = (
    "total_tokens_per_second",
    "output_tokens_per_second",
    "itl_mean_seconds",
    "itl_p95_seconds",
    "ttft_mean_seconds",
    "ttft_p95_seconds",
    "dram_active",
    "dram_active_max",
    "saturation",
    "gpu_held",
)
SHARES = NUMBERS[-4:]


def of_prediction(asked: Setting, prediction: GpuPrediction) -> Answer:
    """Latencies are those of the model that was asked about, tokens and bandwidth of the whole GPU."""
    problem = why_not(asked, prediction)
    group = prediction.groups[0]
    values: tuple[float | None, ...] = (
        prediction.total_tokens_per_second,
        prediction.output_tokens_per_second,
        group.itl_mean,
        group.itl_p95,
        group.ttft_mean,
        group.ttft_p95,
        prediction.dram_active,
        prediction.dram_active_max,
        prediction.saturation,
        prediction.gpu_held,
    )
    numbers = dict(zip(NUMBERS, values if problem is None else (None,) * len(NUMBERS), strict=True))
    return Answer(
        engines=tuple(
            EngineAnswer(
                group=each,
                memory=answer.memory,
                kv_tokens_needed=answer.kv_tokens_needed,
                running_mean=answer.running_mean if problem is None else None,
                kv_peak_fraction=answer.kv_peak_fraction if problem is None else None,
            )
            for each, answer in zip(asked.groups, prediction.groups, strict=True)
        ),
        problem=problem,
        numbers=numbers,
        error=prediction.error,
        source=prediction.source.word,
        extra={},
    )


def why_not(asked: Setting, prediction: GpuPrediction) -> str | None:
    """Why these engines cannot run on this GPU, with the margin; None if they can."""
    if prediction.fits:
        return None
    for group in asked.groups:
        each_token = group.llm.kv_bytes_per_token(group.dtype)
        longest = group.shape.max_model_len
        if group.shape.kv_tokens(each_token) < longest:
            return (
                f"{gib(group.shape.kv_cache_memory_bytes)} are left for the KV cache of {group.llm.name} beside its "
                f"weights, one sequence of max_model_len {longest} needs {gib(longest * each_token)}"
            )
    have, reserve = asked.gpu.memory_bytes, Policy().gpu_reserve
    who, taken = "the engines take", prediction.memory_bytes
    if asked.sharing is Sharing.MIG:
        who, taken = "an engine takes", max(each.memory.total for each in prediction.groups)
    return (
        f"{who} {gib(taken)} and {gib(reserve)} stay free, "
        f"{gib(taken + reserve - have)} more than the {gib(have)} of {asked.gpu.name}"
    )


def memory_json(parts: ReplicaMemory) -> Json:
    return {
        "weights": round(parts.weights.value),
        "context": round(parts.context.value),
        "graphs": round(parts.graphs.value),
        "activation": round(parts.activation.value),
        "kv_cache": round(parts.kv_cache.value),
        "total": parts.total,
    }


def print_answer(asked: Setting, answer: Answer, as_json: bool) -> None:
    if as_json:
        print_json(_json(asked, answer))
    else:
        print(_text(asked, answer))


def _engine_json(engine: EngineAnswer) -> dict[str, Json]:
    return {
        "running_mean": rounded(engine.running_mean),
        "kv_peak_fraction": rounded(engine.kv_peak_fraction),
        "kv_tokens_needed": engine.kv_tokens_needed,
        "memory_bytes": memory_json(engine.memory),
    }


def _bounds(name: str, value: float | None, error: float) -> Json:
    """A share of something does not exceed 1."""
    if value is None:
        return None
    most = 1.0 if name in SHARES else math.inf
    return [rounded(value * (1.0 - error)), rounded(min(most, value * (1.0 + error)))]


def _json(asked: Setting, answer: Answer) -> Json:
    return {
        "fits": answer.problem is None,
        "problem": answer.problem,
        **{name: rounded(value) for name, value in answer.numbers.items()},
        **_engine_json(answer.engines[0]),
        **answer.extra,
        "bounds": {name: _bounds(name, value, answer.error) for name, value in answer.numbers.items()},
        "source": answer.source,
        "engines": [
            {
                "model": each.group.llm.name,
                "replicas": each.group.replicas,
                "dtype": each.group.dtype.value,
                "max_num_seqs": each.group.shape.max_num_seqs,
                "max_num_batched_tokens": each.group.shape.max_num_batched_tokens,
                "max_model_len": each.group.shape.max_model_len,
                "kv_cache_memory_bytes": each.group.shape.kv_cache_memory_bytes,
                "engine_version": each.group.coefficients.engine_version,
                **_engine_json(each),
            }
            for each in answer.engines
        ],
        "gpu": asked.gpu.name,
        "sharing": asked.sharing.value.lower(),
        "request_rate": asked.request_rate,
        "requests": asked.requests,
    }


def _text(asked: Setting, answer: Answer) -> str:
    lines = [_title(asked)]
    if answer.problem is not None:
        lines.append(f"does not fit: {answer.problem}")
    else:
        number = answer.numbers
        lines += [
            f"throughput   {rate(number['total_tokens_per_second'])} tok/s in and out, "
            f"{rate(number['output_tokens_per_second'])} out",
            f"ITL          {ms(number['itl_mean_seconds'])} mean, {ms(number['itl_p95_seconds'])} p95",
            f"TTFT         {ms(number['ttft_mean_seconds'])} mean, {ms(number['ttft_p95_seconds'])} p95",
            f"DRAM active  {pct(number['dram_active'])} of the peak; these engines reach at most "
            f"{pct(number['dram_active_max'])}: saturation {pct(number['saturation'])}",
            *_extra(answer.extra),
        ]
    head = ("each replica of", "batch", "running", "KV needed", "KV peak", "weights", "KV cache", "memory")
    block = [
        (
            each.group.llm.name,
            str(each.group.shape.max_num_seqs),
            "-" if each.running_mean is None else f"{each.running_mean:.1f}",
            f"{each.kv_tokens_needed:,} tok",
            pct(each.kv_peak_fraction),
            gib(each.memory.weights.value),
            gib(each.memory.kv_cache.value),
            gib(each.memory.total),
        )
        for each in answer.engines
    ]
    lines += ["", table(head, block)]
    if answer.problem is None:
        lines += [
            "",
            f"source: {answer.source}" + (f", believed to within {pct(answer.error)}" if answer.error else ""),
        ]
    return "\n".join(lines)


def _extra(extra: Mapping[str, float | None]) -> list[str]:
    """What only the twin can say."""
    if not extra:
        return []
    lines = [
        f"{label:12} " + ", ".join(f"{ms(extra[f'{name}_{rank}_seconds'])} {rank}" for rank in ("p50", "p95", "p99"))
        for name, label in (("itl", "ITL"), ("ttft", "TTFT"), ("e2e", "end to end"))
    ]
    return [
        *lines,
        f"preemptions  {extra['preemptions']}",
        f"simulated    {extra['simulated_seconds']:.1f} s in {extra['wall_seconds']:.2f} s",
    ]


def _title(asked: Setting) -> str:
    engines = " + ".join(f"{group.replicas} x {group.llm.name}" for group in asked.groups)
    load = "every engine kept full" if asked.request_rate is None else f"{asked.request_rate:g} requests/s"
    what = f"a run of {asked.requests} requests" if asked.requests is not None else "steady state"
    where = f"one {asked.gpu.name} ({asked.sharing.value})"
    if asked.sharing is Sharing.MIG:
        where = f"slices {asked.gpu.name} of one GPU, one each"
    return f"{engines} on {where}, {load}, {what}"
