"""The one table of the series that gpupack reads: every name that was ever theirs, their unit, source and meaning.

Exporters renamed series and changed units between releases, so a name is bound to its own factor to the base unit and a
value is never judged by its size. Lines that this table does not name are dropped before they are parsed.
Does not know what a reading means for a decision.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gpupack.units import MIB


class Exporter(StrEnum):
    """Who serves a series; the value is what all its names begin with."""

    VLLM = "vllm:"
    DCGM = "DCGM_FI_"
    AGENT = "gpupack_agent_"


class Kind(StrEnum):
    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"
    LABEL = "label"
    """The value is in a label of an info series."""


class Across(StrEnum):
    """How samples of one name with different labels make one value."""

    SUM = "sum"
    MAX = "max"


class Quantity(StrEnum):
    RUNNING = "running"
    WAITING = "waiting"
    KV_USAGE = "kv_usage"
    KV_BLOCKS = "kv_blocks"
    FINISHED = "finished"
    PROMPT_TOKENS = "prompt_tokens"
    GENERATION_TOKENS = "generation_tokens"
    PREEMPTIONS = "preemptions"
    TTFT = "ttft"
    ITL = "itl"
    INPUT_LENGTH = "input_length"
    OUTPUT_LENGTH = "output_length"
    STEP_TOKENS = "step_tokens"
    READ_BYTES = "read_bytes"
    DRAM_ACTIVE = "dram_active"
    DRAM_BANDWIDTH = "dram_bandwidth"
    MEMORY_BUSY = "memory_busy"
    FB_USED = "fb_used"
    POWER = "power"
    XID = "xid"
    XID_TIME = "xid_time"
    CORE_WAIT = "core_wait"


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """One spelling of a series; `factor` takes its values to the base unit."""

    text: str
    factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """`names` newest first: of two spellings on one page the first counts. `label` only for Kind.LABEL."""

    quantity: Quantity
    exporter: Exporter
    kind: Kind
    unit: str
    names: tuple[Name, ...]
    meaning: str
    source: str
    across: Across = Across.SUM
    label: str = ""


def _names(*texts: str) -> tuple[Name, ...]:
    return tuple(Name(text=text) for text in texts)


_LOGGERS = "vLLM 0.33 v1/metrics/loggers.py"
_FIELDS = "DCGM 4.6 dcgm_fields.h"

TABLE: tuple[Series, ...] = (
    Series(
        quantity=Quantity.RUNNING, exporter=Exporter.VLLM, kind=Kind.GAUGE, unit="requests",
        names=_names("vllm:num_requests_running"), source=_LOGGERS,
        meaning="Requests in the running batch at the last step; a wedged engine goes on showing its last value.",
    ),
    Series(
        quantity=Quantity.WAITING, exporter=Exporter.VLLM, kind=Kind.GAUGE, unit="requests",
        names=_names("vllm:num_requests_waiting"), source=_LOGGERS,
        meaning="Requests admitted but not yet running, for whatever reason.",
    ),
    Series(
        quantity=Quantity.KV_USAGE, exporter=Exporter.VLLM, kind=Kind.GAUGE, unit="ratio", across=Across.MAX,
        names=_names("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"), source=_LOGGERS,
        meaning="Share of the KV blocks in use, 0 to 1 in spite of its name.",
    ),
    Series(
        quantity=Quantity.KV_BLOCKS, exporter=Exporter.VLLM, kind=Kind.LABEL, unit="blocks", label="num_gpu_blocks",
        names=_names("vllm:cache_config_info"), source=_LOGGERS,
        meaning="KV blocks that the engine made at its start.",
    ),
    Series(
        quantity=Quantity.FINISHED, exporter=Exporter.VLLM, kind=Kind.COUNTER, unit="requests",
        names=_names("vllm:request_success_total"), source=_LOGGERS,
        meaning="Requests that ended for any reason; aborts and errors are counted too.",
    ),
    Series(
        quantity=Quantity.PROMPT_TOKENS, exporter=Exporter.VLLM, kind=Kind.COUNTER, unit="tokens",
        names=_names("vllm:prompt_tokens_total"), source=_LOGGERS,
        meaning="Prompt tokens of requests whose prefill ended.",
    ),
    Series(
        quantity=Quantity.GENERATION_TOKENS, exporter=Exporter.VLLM, kind=Kind.COUNTER, unit="tokens",
        names=_names("vllm:generation_tokens_total"), source=_LOGGERS,
        meaning="Tokens generated.",
    ),
    Series(
        quantity=Quantity.PREEMPTIONS, exporter=Exporter.VLLM, kind=Kind.COUNTER, unit="preemptions",
        names=_names("vllm:num_preemptions_total"), source=_LOGGERS,
        meaning="Running requests that lost their KV blocks and begin anew.",
    ),
    Series(
        quantity=Quantity.TTFT, exporter=Exporter.VLLM, kind=Kind.HISTOGRAM, unit="seconds",
        names=_names("vllm:time_to_first_token_seconds"), source=_LOGGERS,
        meaning="From a request's arrival at the engine to its first token.",
    ),
    Series(
        quantity=Quantity.ITL, exporter=Exporter.VLLM, kind=Kind.HISTOGRAM, unit="seconds",
        names=_names("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"), source=_LOGGERS,
        meaning="Gaps between tokens of a request. The stock buckets begin at 10 ms.",
    ),
    Series(
        quantity=Quantity.INPUT_LENGTH, exporter=Exporter.VLLM, kind=Kind.HISTOGRAM, unit="tokens",
        names=_names("vllm:request_prompt_tokens"), source=_LOGGERS,
        meaning="Prompt length of finished requests.",
    ),
    Series(
        quantity=Quantity.OUTPUT_LENGTH, exporter=Exporter.VLLM, kind=Kind.HISTOGRAM, unit="tokens",
        names=_names("vllm:request_generation_tokens"), source=_LOGGERS,
        meaning="Generated length of finished requests.",
    ),
    Series(
        quantity=Quantity.STEP_TOKENS, exporter=Exporter.VLLM, kind=Kind.HISTOGRAM, unit="tokens",
        names=_names("vllm:iteration_tokens_total"), source=_LOGGERS,
        meaning="Tokens of a step, a histogram despite its name: its count is that of the steps.",
    ),
    Series(
        quantity=Quantity.READ_BYTES, exporter=Exporter.VLLM, kind=Kind.COUNTER, unit="bytes",
        names=_names("vllm:estimated_read_bytes_per_gpu_total"), source=f"{_LOGGERS}, with --enable-mfu-metrics",
        meaning="Bytes that this engine read, counted from weights and contexts; the only one by replica.",
    ),
    Series(
        quantity=Quantity.DRAM_ACTIVE, exporter=Exporter.DCGM, kind=Kind.GAUGE, unit="ratio", across=Across.MAX,
        names=_names("DCGM_FI_PROF_DRAM_UTIL_RATIO", "DCGM_FI_PROF_DRAM_ACTIVE"), source=f"{_FIELDS}, field 1005",
        meaning="Share of cycles in which the memory interface moved data; 1 is the theoretical peak.",
    ),
    Series(
        quantity=Quantity.FB_USED, exporter=Exporter.DCGM, kind=Kind.GAUGE, unit="bytes", across=Across.MAX,
        names=(Name(text="DCGM_FI_DEV_FB_USED_BYTES"), Name(text="DCGM_FI_DEV_FB_USED", factor=MIB)),
        source=f"{_FIELDS}, field 252 in MiB; 1627 in bytes since dcgm-exporter 4.9",
        meaning="Device memory in use by all processes.",
    ),
    Series(
        quantity=Quantity.POWER, exporter=Exporter.DCGM, kind=Kind.GAUGE, unit="watts", across=Across.MAX,
        names=_names("DCGM_FI_DEV_BOARD_POWER_WATTS", "DCGM_FI_DEV_POWER_USAGE"), source=f"{_FIELDS}, field 155",
        meaning="Power that the board draws.",
    ),
    Series(
        quantity=Quantity.XID, exporter=Exporter.DCGM, kind=Kind.GAUGE, unit="code", across=Across.MAX,
        names=_names("DCGM_FI_DEV_XID_ERRORS"), source=f"{_FIELDS}, field 230",
        meaning="Code of the last error that the driver reported since the exporter began; 0 is none.",
    ),
)  # fmt: skip


def of(exporter: Exporter) -> tuple[Series, ...]:
    return tuple(series for series in TABLE if series.exporter is exporter)


_ORIGINS = {series.quantity: series.names[0].text for series in reversed(TABLE)}


def origin(quantity: Quantity) -> str:
    """The newest name of a series, for messages."""
    return _ORIGINS[quantity]
