"""One ModelServing: its promise and whether it is kept, its load, its replicas, why there are no more of them."""

from __future__ import annotations

from dashboards.page import Choice, Look, Page, Panel, Query, Row, Unit
from dashboards.series import mean, quantile, rate

_TOLD = 'namespace="$namespace", serving="$serving"'
_ENGINES = 'namespace="$namespace", gpupack_dev_serving="$serving"'


def _latency(title: str, meaning: str, histogram: str, promise: str) -> Panel:
    return Panel(
        title=title, meaning=f"{meaning} The promise is spec.slo, or the default.",
        unit=Unit.SECONDS, width=12,
        queries=(
            Query(expr=quantile(0.95, histogram, _ENGINES), legend="95th percentile"),
            Query(expr=mean(histogram, _ENGINES), legend="mean"),
            Query(expr=f'max by (statistic) (gpupack_serving_slo_seconds{{{_TOLD}, latency="{promise}"}})',
                  legend="promised for the {{statistic}}"),
        ),
    )  # fmt: skip


def _step(title: str, meaning: str, unit: Unit, word: str) -> Panel:
    def side(series: str) -> str:
        return f'max by (gpu, what) ({series}{{{_TOLD}, unit="{word}"}})'

    return Panel(
        title=title, meaning=meaning, unit=unit, width=12,
        queries=(
            Query(expr=side("gpupack_step_predicted"), legend="{{what}} predicted ({{gpu}})"),
            Query(expr=side("gpupack_step_measured"), legend="{{what}} measured ({{gpu}})"),
        ),
    )  # fmt: skip


_PROMISE = Row(title="Promise", panels=(
    _latency("Inter-token latency", "Gaps between the tokens of a request.", "vllm:inter_token_latency_seconds", "itl"),
    _latency(
        "Time to first token", "From a request's arrival at the engine.", "vllm:time_to_first_token_seconds", "ttft",
    ),
))  # fmt: skip

_LOAD = Row(title="Load", panels=(
    Panel(
        title="Requests finished", meaning="Whatever ended them.", unit=Unit.REQUESTS_PER_SECOND, width=6,
        queries=(Query(expr=f"sum({rate('vllm:request_success_total', _ENGINES)})", legend="requests"),),
    ),
    Panel(
        title="Requests in the engines", meaning="Waiting requests are more than the running batch has room for.",
        unit=Unit.COUNT, width=6, stacked=True,
        queries=(
            Query(expr=f"sum(vllm:num_requests_running{{{_ENGINES}}})", legend="running"),
            Query(expr=f"sum(vllm:num_requests_waiting{{{_ENGINES}}})", legend="waiting"),
        ),
    ),
    Panel(
        title="Tokens", meaning="Prefilled and generated.", unit=Unit.TOKENS_PER_SECOND, width=6, stacked=True,
        queries=(
            Query(expr=f"sum({rate('vllm:prompt_tokens_total', _ENGINES)})", legend="prompt"),
            Query(expr=f"sum({rate('vllm:generation_tokens_total', _ENGINES)})", legend="generated"),
        ),
    ),
    Panel(
        title="Lengths", meaning="Mean of the requests that finished; the shape follows them.", unit=Unit.TOKENS,
        width=6,
        queries=(
            Query(expr=mean("vllm:request_prompt_tokens", _ENGINES), legend="prompt"),
            Query(expr=mean("vllm:request_generation_tokens", _ENGINES), legend="generated"),
        ),
    ),
))  # fmt: skip

_REPLICAS = Row(title="Replicas", panels=(
    Panel(
        title="Replicas", meaning="What the load asked for at the last decision, what is planned, what is ready.",
        unit=Unit.COUNT, width=6,
        queries=(
            Query(expr=f"max(gpupack_wanted_replicas{{{_TOLD}}})", legend="wanted"),
            Query(expr=f"max(gpupack_planned_replicas{{{_TOLD}}})", legend="planned"),
            Query(expr=f'max(gpupack_observed_replicas{{{_TOLD}, phase="Ready"}})', legend="ready"),
        ),
    ),
    Panel(
        title="Why no more", meaning="The reason of the last decision. `kubectl get msv` has its numbers.",
        unit=Unit.COUNT, look=Look.STATES, width=6,
        queries=(Query(expr=f"max by (reason) (gpupack_decision{{{_TOLD}}})", legend="{{reason}}"),),
    ),
    Panel(
        title="KV cache in use", meaning="Each engine has only what its shape needs, so near full is by design; "
        "preemptions tell of too little.", unit=Unit.RATIO, most=1.0, width=6,
        queries=(Query(expr=f"max by (pod) (vllm:kv_cache_usage_perc{{{_ENGINES}}})", legend="{{pod}}"),),
    ),
    Panel(
        title="Preemptions", meaning="Running requests that lost their KV blocks and began anew.",
        unit=Unit.PER_SECOND, width=6,
        queries=(Query(expr=f"sum by (pod) ({rate('vllm:num_preemptions_total', _ENGINES)})", legend="{{pod}}"),),
    ),
    Panel(
        title="DRAM activity", meaning="Its part of what each GPU reads and writes, by what its engines say they read. "
        "Device-wide counters cannot tell.", unit=Unit.RATIO, most=1.0, width=18, stacked=True,
        queries=(Query(expr=f"max by (gpu) (gpupack_serving_dram_active_ratio{{{_TOLD}}})", legend="{{gpu}}"),),
    ),
    Panel(
        title="Requests held", meaning="They came while it slept, and wait at the activator until it has a replica.",
        unit=Unit.COUNT, width=6,
        queries=(Query(expr=f"sum(gpupack_held_requests{{{_TOLD}}}) or vector(0)", legend="held"),),
    ),
))  # fmt: skip

_STEPS = Row(title="The last step that was judged, on each GPU", panels=(
    _step("Latency", "What the window of the step should have shown, and what it showed.", Unit.SECONDS, "seconds"),
    _step("DRAM active", "The same, as a share of the theoretical peak.", Unit.RATIO, "ratio"),
))  # fmt: skip

SERVING = Page(
    name="gpupack-serving", title="gpupack / serving",
    meaning="One ModelServing: promise, load, replicas, and what its last step brought.",
    choices=(
        Choice(name="namespace", series="gpupack_planned_replicas"),
        Choice(name="serving", series='gpupack_planned_replicas{namespace="$namespace"}'),
    ),
    rows=(_PROMISE, _LOAD, _REPLICAS, _STEPS),
)  # fmt: skip
