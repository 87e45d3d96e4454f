"""`/metrics` of one virtual engine: the series, labels and buckets of vLLM 0.33's V1 engine in Prometheus text.

The text before each value is made once, because a page has some 500 lines and is asked for every second or two. It does
not count anything: the engine does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

ENGINE = "0"
FINISHED_REASONS = ("stop", "length", "abort", "error", "repetition")


class Observations(Protocol):
    """A cumulative histogram, as the twin's engine keeps it."""

    edges: tuple[float, ...]
    sum: float
    count: int

    def cumulative(self) -> list[tuple[float, int]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineNumbers:
    """All that a page shows, at one moment. Counters by names without prefix and suffix, tokens and requests.

    `read_bytes` and `written_bytes` are None unless the engine estimates them (`--enable-mfu-metrics`).
    """

    running: int
    waiting: int
    kv_usage: float
    preemptions: int
    prompt_tokens: int
    generation_tokens: int
    finished: Mapping[str, int]
    histograms: Mapping[str, Observations]
    read_bytes: float | None = None
    written_bytes: float | None = None
    flops: float | None = None


_GAUGES = (
    ("num_requests_running", "Number of requests in model execution batches."),
    ("num_requests_waiting", "Number of requests waiting to be processed."),
    ("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage."),
)
_COUNTERS = (
    ("num_preemptions", "Cumulative number of preemption from the engine."),
    ("prompt_tokens", "Number of prefill tokens processed."),
    ("generation_tokens", "Number of generation tokens processed."),
    ("prefix_cache_queries", "Prefix cache queries, in terms of number of queried tokens."),
    ("prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens."),
)
_ESTIMATES = (
    ("estimated_flops_per_gpu", "Estimated number of floating point operations per GPU."),
    ("estimated_read_bytes_per_gpu", "Estimated number of bytes read from memory per GPU."),
    ("estimated_write_bytes_per_gpu", "Estimated number of bytes written to memory per GPU."),
)
HISTOGRAMS = {
    "time_to_first_token_seconds": "Histogram of time to first token in seconds.",
    "inter_token_latency_seconds": "Histogram of inter-token latency in seconds.",
    "request_time_per_output_token_seconds": "Histogram of time_per_output_token_seconds per request.",
    "e2e_request_latency_seconds": "Histogram of e2e request latency in seconds.",
    "request_queue_time_seconds": "Histogram of time spent in WAITING phase for request.",
    "request_inference_time_seconds": "Histogram of time spent in RUNNING phase for request.",
    "request_prefill_time_seconds": "Histogram of time spent in PREFILL phase for request.",
    "request_decode_time_seconds": "Histogram of time spent in DECODE phase for request.",
    "request_prompt_tokens": "Number of prefill tokens processed.",
    "request_generation_tokens": "Number of generation tokens processed.",
    "iteration_tokens_total": "Histogram of number of tokens per engine_step.",
}
"""Every histogram of the page; a name that the numbers lack is left out of it."""


class EnginePage:
    """One engine's page. `info` are the labels of `vllm:cache_config_info`; `created_at` is unix seconds."""

    def __init__(self, model: str, info: Mapping[str, str], created_at: float) -> None:
        self._labels = f'engine="{ENGINE}",model_name="{escape(model)}"'
        self._created = f"{created_at:.6f}"
        self._tail = f"{{{self._labels}}}"
        self._prefixes: dict[str, list[str]] = {}
        config = ",".join(f'{key}="{escape(value)}"' for key, value in sorted({**info, "engine": ENGINE}.items()))
        self._static = [
            *_head("vllm:cache_config_info", "gauge", "Information of the LLMEngine CacheConfig"),
            f"vllm:cache_config_info{{{config}}} 1.0",
            *_head("vllm:engine_sleep_state", "gauge", "Engine sleep state; awake = 0 means engine is sleeping."),
            *(
                f'vllm:engine_sleep_state{{{self._labels},sleep_state="{state}"}} {value}'
                for state, value in (("awake", "1.0"), ("weights_offloaded", "0.0"), ("discard_all", "0.0"))
            ),
            *_head("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds."),
            f"process_start_time_seconds {self._created}",
        ]

    def text(self, numbers: EngineNumbers, *, value: float | None = None) -> str:
        """The page. `value` replaces every value but the info series: an engine whose numbers are broken."""
        lines = list(self._static)
        gauges = (numbers.running, numbers.waiting, numbers.kv_usage)
        for (name, meaning), number in zip(_GAUGES, gauges, strict=True):
            lines += _head(f"vllm:{name}", "gauge", meaning)
            lines.append(f"vllm:{name}{self._tail} {_shown(number, value)}")
        lines += _head("vllm:num_requests_waiting_by_reason", "gauge", "Number of waiting requests by reason.")
        for reason, number in (("capacity", numbers.waiting), ("deferred", 0)):
            labels = f'{self._labels},reason="{reason}"'
            lines.append(f"vllm:num_requests_waiting_by_reason{{{labels}}} {_shown(number, value)}")
        counted = (
            numbers.preemptions, numbers.prompt_tokens, numbers.generation_tokens, numbers.prompt_tokens, 0,
        )  # fmt: skip
        for (name, meaning), number in zip(_COUNTERS, counted, strict=True):
            lines += self._counter(name, meaning, number, value)
        lines += self._finished(numbers.finished, value)
        if numbers.read_bytes is not None:
            estimated = (numbers.flops or 0.0, numbers.read_bytes, numbers.written_bytes or 0.0)
            for (name, meaning), amount in zip(_ESTIMATES, estimated, strict=True):
                lines += self._counter(name, meaning, amount, value)
        for name, meaning in HISTOGRAMS.items():
            if (observed := numbers.histograms.get(name)) is not None:
                lines += self._histogram(f"vllm:{name}", meaning, observed, value)
        lines.append("")
        return "\n".join(lines)

    def _counter(self, name: str, meaning: str, number: float, value: float | None) -> list[str]:
        full = f"vllm:{name}"
        return [
            *_head(f"{full}_total", "counter", meaning),
            f"{full}_total{self._tail} {_shown(number, value)}",
            *_head(f"{full}_created", "gauge", meaning),
            f"{full}_created{self._tail} {self._created}",
        ]

    def _finished(self, finished: Mapping[str, int], value: float | None) -> Iterable[str]:
        yield from _head("vllm:request_success_total", "counter", "Count of successfully processed requests.")
        for reason in FINISHED_REASONS:
            labels = f'engine="{ENGINE}",finished_reason="{reason}",{self._labels.split(",", 1)[1]}'
            yield f"vllm:request_success_total{{{labels}}} {_shown(finished.get(reason, 0), value)}"

    def _histogram(self, name: str, meaning: str, observed: Observations, value: float | None) -> list[str]:
        prefixes = self._prefixes.get(name)
        if prefixes is None:
            prefixes = self._prefixes[name] = self._bucket_prefixes(name, observed.edges)
        lines = _head(name, "histogram", meaning)
        buckets = observed.cumulative()
        if value is None:
            lines += [f"{prefix}{count}.0" for prefix, (_, count) in zip(prefixes, buckets, strict=True)]
        else:
            lines += [f"{prefix}{_number(value)}" for prefix in prefixes]
        lines.append(f"{name}_count{self._tail} {_shown(observed.count, value)}")
        lines.append(f"{name}_sum{self._tail} {_shown(observed.sum, value)}")
        lines += _head(f"{name}_created", "gauge", meaning)
        lines.append(f"{name}_created{self._tail} {self._created}")
        return lines

    def _bucket_prefixes(self, name: str, edges: Sequence[float]) -> list[str]:
        engine, model = self._labels.split(",", 1)
        return [f'{name}_bucket{{{engine},le="{_number(edge)}",{model}}} ' for edge in (*edges, math.inf)]


def escape(value: str) -> str:
    """A label's value as the text format wants it."""
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _head(name: str, kind: str, meaning: str) -> list[str]:
    return [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]


def _shown(number: float, instead: float | None) -> str:
    return _number(number if instead is None else instead)


def _number(number: float) -> str:
    """As the Prometheus client for Python prints it."""
    if math.isinf(number):
        return "+Inf" if number > 0 else "-Inf"
    return "NaN" if math.isnan(number) else repr(float(number))
