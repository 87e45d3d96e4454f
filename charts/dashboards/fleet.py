"""Everything at once: what the GPUs of all pools do, what was decided, and whether the operator is well."""

from __future__ import annotations

from dashboards.page import Look, Page, Panel, Query, Row, Unit
from dashboards.series import increase, of_pool, quantile, rate

_GPU = "{{node}} {{gpu}}"
_TOKENS = "sum(gpupack_measured_tokens_per_second)"
_POWER = "sum(gpupack_gpu_power_watts)"

_NOW = Row(title="Now", panels=(
    Panel(
        title="GPUs", meaning="GPUs of all pools, and those that the plan puts replicas on.", unit=Unit.COUNT,
        look=Look.NUMBER, width=4,
        queries=(
            Query(expr="sum(gpupack_gpus_in_use)", legend="in use"), Query(expr="sum(gpupack_gpus)", legend="in all"),
        ),
    ),
    Panel(
        title="Replicas", meaning="Engines that are ready, and those that are planned.", unit=Unit.COUNT,
        look=Look.NUMBER, width=4,
        queries=(
            Query(expr='sum(gpupack_observed_replicas{phase="Ready"})', legend="ready"),
            Query(expr="sum(gpupack_planned_replicas)", legend="planned"),
        ),
    ),
    Panel(
        title="Throughput", meaning="Prompt and generated tokens of all engines.", unit=Unit.TOKENS_PER_SECOND,
        look=Look.NUMBER, width=4, queries=(Query(expr=_TOKENS, legend="tokens a second"),),
    ),
    Panel(
        title="KV cache not taken", meaning="Memory that vLLM's defaults would take on these GPUs and that is free.",
        unit=Unit.BYTES, look=Look.NUMBER, width=4, queries=(Query(expr="sum(gpupack_freed_bytes)", legend="freed"),),
    ),
    Panel(
        title="Power", meaning="Of all GPUs of the pools, idle ones included.", unit=Unit.WATTS, look=Look.NUMBER,
        width=4, queries=(Query(expr=_POWER, legend="power"),),
    ),
    Panel(
        title="Energy a token", meaning="Power of all GPUs over the tokens of all engines.",
        unit=Unit.JOULES_PER_TOKEN, look=Look.NUMBER, width=4,
        queries=(Query(expr=f"{_POWER} / {_TOKENS}", legend="energy"),),
    ),
))  # fmt: skip

_POOLS = Row(title="Pools", panels=(
    Panel(
        title="Throughput by pool", meaning="Prompt and generated tokens of the pool's engines.",
        unit=Unit.TOKENS_PER_SECOND, stacked=True,
        queries=(Query(expr=f"sum by (pool) ({of_pool('gpupack_measured_tokens_per_second')})", legend="{{pool}}"),),
    ),
    Panel(
        title="GPUs in use by pool", meaning="A further GPU is opened only when those in use are full.",
        unit=Unit.COUNT,
        queries=(
            Query(expr="max by (pool) (gpupack_gpus_in_use)", legend="{{pool}} in use"),
            Query(expr="max by (pool) (gpupack_gpus)", legend="{{pool}} in all"),
        ),
    ),
    Panel(
        title="KV cache not taken by pool", meaning="Memory that vLLM's defaults would take and that is free.",
        unit=Unit.BYTES, stacked=True,
        queries=(Query(expr=f"sum by (pool) ({of_pool('gpupack_freed_bytes')})", legend="{{pool}}"),),
    ),
))  # fmt: skip

_GPUS = Row(title="GPUs", panels=(
    Panel(
        title="DRAM active", meaning="Share of the theoretical peak. What a mix of engines can reach lies below 1 and "
        "differs from mix to mix: judge how full a GPU is by its saturation.", unit=Unit.RATIO, most=1.0, width=6,
        queries=(Query(expr=of_pool("gpupack_gpu_dram_active_ratio"), legend=_GPU),),
    ),
    Panel(
        title="Predicted saturation", meaning="DRAM activity over the most that the mix can reach, at full batches, as "
        "predicted with the last replica. No replica is added from 90 % on.", unit=Unit.RATIO, most=1.0, width=6,
        queries=(Query(expr=of_pool("gpupack_predicted_saturation_ratio"), legend=_GPU),),
    ),
    Panel(
        title="Memory used", meaning="Device memory in use by all processes.", unit=Unit.BYTES, width=6,
        queries=(Query(expr=of_pool("gpupack_gpu_memory_used_bytes"), legend=_GPU),),
    ),
    Panel(
        title="Power by GPU", meaning="What the board draws.", unit=Unit.WATTS, width=6,
        queries=(Query(expr=of_pool("gpupack_gpu_power_watts"), legend=_GPU),),
    ),
))  # fmt: skip

_DECISIONS = Row(title="Decisions", panels=(
    Panel(
        title="Why no more replicas now", meaning="ModelServings by the reason of their last decision.",
        unit=Unit.COUNT, stacked=True,
        queries=(Query(expr="count by (reason) (gpupack_decision == 1)", legend="{{reason}}"),),
    ),
    Panel(
        title="Decisions", meaning="Decisions that were recorded in the plan.", unit=Unit.COUNT, stacked=True,
        queries=(Query(expr=f"sum by (reason) ({increase('gpupack_decisions_total')})", legend="{{reason}}"),),
    ),
    Panel(
        title="Steps judged", meaning="What came of added replicas and new shapes, against their own prediction.",
        unit=Unit.COUNT, stacked=True,
        queries=(
            Query(
                expr=f"sum by (verdict, undone) ({increase('gpupack_verdicts_total')})",
                legend="{{verdict}}, undone: {{undone}}",
            ),
        ),
    ),
))  # fmt: skip

_OPERATOR = Row(title="Operator", panels=(
    Panel(
        title="Time of a tick", meaning="Observe, reconcile, commit, perform; 95th percentile.", unit=Unit.SECONDS,
        width=6, queries=(Query(expr=quantile(0.95, "gpupack_tick_seconds", by="pool"), legend="{{pool}}"),),
    ),
    Panel(
        title="Age of what is known", meaning="Since the API server last spoke of these. From 90 s on nothing is "
        "decided.", unit=Unit.SECONDS, width=6,
        queries=(Query(expr="max by (mirror) (gpupack_mirror_age_seconds)", legend="{{mirror}}"),),
    ),
    Panel(
        title="Requests to the API server", meaning="By HTTP status; 0 is no answer.", unit=Unit.REQUESTS_PER_SECOND,
        width=6, queries=(Query(expr=f"sum by (code) ({rate('gpupack_api_requests_total')})", legend="{{code}}"),),
    ),
    Panel(
        title="Ticks that ended early", meaning="Conflict is ordinary: somebody wrote in between. 0 where none did.",
        unit=Unit.PER_SECOND, width=6,
        queries=(
            Query(
                expr=f"sum by (pool) ({rate('gpupack_ticks_dropped_total')}) or sum by (pool) (gpupack_gpus) * 0",
                legend="{{pool}}",
            ),
        ),
    ),
))  # fmt: skip

FLEET = Page(
    name="gpupack-fleet", title="gpupack / fleet", meaning="All pools: GPUs, throughput, decisions, the operator.",
    choices=(), rows=(_NOW, _POOLS, _GPUS, _DECISIONS, _OPERATOR),
)  # fmt: skip
