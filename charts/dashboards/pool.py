"""One pool: how full each of its GPUs is, with what, and what is being tried."""

from __future__ import annotations

from dashboards.page import Choice, Look, Page, Panel, Query, Row, Unit
from dashboards.series import of_pool, rate, servings_of_pool

_CHOSEN = 'pool="$pool"'
_ENGINES = 'gpupack_dev_pool="$pool"'
_READY = 'gpupack_observed_replicas{phase="Ready"}'
_GPU = "{{node}} {{gpu}}"
_SERVING = "{{namespace}}/{{serving}}"
_ENGINE_SERVING = "{{namespace}}/{{gpupack_dev_serving}}"


def _here(with_pool: str) -> str:
    """Of the pool that is chosen; the vector has a label `pool`."""
    return f"({with_pool}) * on (pool) group_left () (max by (pool) (gpupack_gpus{{{_CHOSEN}}}) > bool 0)"


def _told(series: str) -> str:
    return _here(of_pool(series))


_NOW = Row(title="Now", panels=(
    Panel(
        title="GPUs", meaning="GPUs of the pool, and those that the plan puts replicas on.", unit=Unit.COUNT,
        look=Look.NUMBER, width=4,
        queries=(
            Query(expr=f"sum(gpupack_gpus_in_use{{{_CHOSEN}}})", legend="in use"),
            Query(expr=f"sum(gpupack_gpus{{{_CHOSEN}}})", legend="in all"),
        ),
    ),
    Panel(
        title="Replicas", meaning="Engines that are ready, and those that are planned.", unit=Unit.COUNT,
        look=Look.NUMBER, width=4,
        queries=(
            Query(expr=f"sum({_here(servings_of_pool(_READY))})", legend="ready"),
            Query(expr=f"sum({_here(servings_of_pool('gpupack_planned_replicas'))})", legend="planned"),
        ),
    ),
    Panel(
        title="Throughput", meaning="Prompt and generated tokens of the pool's engines.", unit=Unit.TOKENS_PER_SECOND,
        look=Look.NUMBER, width=4,
        queries=(Query(expr=f"sum({_told('gpupack_measured_tokens_per_second')})", legend="tokens a second"),),
    ),
    Panel(
        title="KV cache not taken", meaning="Memory that vLLM's defaults would take on these GPUs and that is free.",
        unit=Unit.BYTES, look=Look.NUMBER, width=4,
        queries=(Query(expr=f"sum({_told('gpupack_freed_bytes')})", legend="freed"),),
    ),
    Panel(
        title="Steps on trial", meaning="GPUs with a step that is not judged yet.", unit=Unit.COUNT, look=Look.NUMBER,
        width=4, queries=(Query(expr=f"sum(gpupack_steps_on_trial{{{_CHOSEN}}})", legend="on trial"),),
    ),
    Panel(
        title="Steps remembered", meaning="Steps that were taken back and are not tried again yet.", unit=Unit.COUNT,
        look=Look.NUMBER, width=4,
        queries=(Query(expr=f"sum(gpupack_steps_remembered{{{_CHOSEN}}})", legend="remembered"),),
    ),
))  # fmt: skip

_GPUS = Row(title="GPUs", panels=(
    Panel(
        title="GPUs now", meaning="One line a GPU. Saturation is DRAM activity over the most that the mix can reach, "
        "as predicted with the last replica.", unit=Unit.RATIO, look=Look.TABLE, width=24,
        queries=(
            Query(expr=_told("gpupack_gpu_dram_active_ratio"), legend="DRAM active"),
            Query(expr=_told("gpupack_predicted_saturation_ratio"), legend="saturation"),
            Query(expr=_told("gpupack_gpu_memory_used_bytes"), legend="memory used", unit=Unit.BYTES),
            Query(expr=_told("gpupack_gpu_memory_bytes"), legend="memory", unit=Unit.BYTES),
            Query(
                expr=_told("gpupack_measured_tokens_per_second"), legend="tokens/s", unit=Unit.TOKENS_PER_SECOND,
            ),
            Query(
                expr=_told("gpupack_predicted_tokens_per_second"), legend="tokens/s when full",
                unit=Unit.TOKENS_PER_SECOND,
            ),
            Query(expr=_told("gpupack_gpu_power_watts"), legend="power", unit=Unit.WATTS),
        ),
    ),
    Panel(
        title="DRAM active, and attainable", meaning="Share of the theoretical peak, and how much of it the engines on "
        "the GPU can reach at most, as predicted with the last replica.", unit=Unit.RATIO, most=1.0,
        queries=(
            Query(expr=_told("gpupack_gpu_dram_active_ratio"), legend=_GPU),
            Query(expr=_told("gpupack_gpu_dram_attainable_ratio"), legend=f"{_GPU} attainable"),
        ),
    ),
    Panel(
        title="Throughput, and when full", meaning="Measured tokens a second, and what the GPU was predicted to reach "
        "when full, as of its last replica.", unit=Unit.TOKENS_PER_SECOND,
        queries=(
            Query(expr=_told("gpupack_measured_tokens_per_second"), legend=_GPU),
            Query(expr=_told("gpupack_predicted_tokens_per_second"), legend=f"{_GPU} when full"),
        ),
    ),
    Panel(
        title="Memory used", meaning="Device memory in use by all processes.", unit=Unit.BYTES,
        queries=(Query(expr=_told("gpupack_gpu_memory_used_bytes"), legend=_GPU),),
    ),
))  # fmt: skip

_SERVINGS = Row(title="Servings", panels=(
    Panel(
        title="Replicas planned", meaning="By ModelServing.", unit=Unit.COUNT, stacked=True,
        queries=(Query(expr=_here(servings_of_pool("gpupack_planned_replicas")), legend=_SERVING),),
    ),
    Panel(
        title="Requests finished", meaning="By ModelServing, whatever ended them.", unit=Unit.REQUESTS_PER_SECOND,
        stacked=True,
        queries=(
            Query(
                expr=f"sum by (namespace, gpupack_dev_serving) ({rate('vllm:request_success_total', _ENGINES)})",
                legend=_ENGINE_SERVING,
            ),
        ),
    ),
    Panel(
        title="Readings that are missing", meaning="Engines and GPUs without a usable reading. What is missing holds "
        "decisions; 0 where nothing is.", unit=Unit.COUNT,
        queries=(
            Query(
                expr=f"sum by (pool) (gpupack_missing_readings{{{_CHOSEN}}}) "
                f"or sum by (pool) (gpupack_gpus{{{_CHOSEN}}}) * 0",
                legend="missing",
            ),
        ),
    ),
))  # fmt: skip

POOL = Page(
    name="gpupack-pool", title="gpupack / pool", meaning="One GpuPool: its GPUs, what runs on them, what is tried.",
    choices=(Choice(name="pool", series="gpupack_gpus"),), rows=(_NOW, _GPUS, _SERVINGS),
)  # fmt: skip
