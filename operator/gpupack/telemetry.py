"""What the operator says of itself to Prometheus: what it decided and why, what it expected and what came of it.

Gauges are made from the last tick of each pool when somebody scrapes, so nothing is shown of what is gone. Of engines
only what they come to together is told, as `gpupack top` shows it; each one's own series are on its own page.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gpupack.facts.experiment import is_news
from gpupack.facts.glance import GpuGlance, ServingGlance, glance, last_predicted
from gpupack.facts.observation import Missing, Observation, Phase
from gpupack.plan import Outcome

disable_created_metrics()  # type: ignore[no-untyped-call]  # a `_created` gauge beside every counter doubles the page and tells nothing

TICK_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """The last look and what followed from it."""

    observation: Observation
    outcome: Outcome


class Telemetry(Collector):
    """One registry of its own. `mirror_ages` gives seconds by mirror, asked at every scrape."""

    def __init__(self, mirror_ages: Callable[[], Iterable[tuple[str, float]]] = tuple) -> None:
        self.registry = CollectorRegistry()
        self._mirror_ages = mirror_ages
        self._ticks: dict[str, Tick] = {}
        self._decisions = Counter(
            "gpupack_decisions", "Decisions recorded in the plan, by reason", ["pool", "reason"], registry=self.registry
        )
        self._verdicts = Counter(
            "gpupack_verdicts", "Steps judged against what their own window should have given, by verdict and whether "
            "they were taken back", ["pool", "verdict", "undone"], registry=self.registry,
        )  # fmt: skip
        self._actions = Counter(
            "gpupack_actions", "Actions carried out on the cluster, by kind and result", ["action", "result"],
            registry=self.registry,
        )  # fmt: skip
        self._calls = Counter(
            "gpupack_api_requests", "Requests to the API server, by verb and HTTP status (0: no answer)",
            ["verb", "code"], registry=self.registry,
        )  # fmt: skip
        self._unfinished = Counter(
            "gpupack_ticks_dropped", "Ticks that ended early, by cause", ["pool", "cause"], registry=self.registry
        )
        self._seconds = Histogram(
            "gpupack_tick_seconds", "Time of one tick: observe, reconcile, commit, perform", ["pool"],
            buckets=TICK_BUCKETS, registry=self.registry,
        )  # fmt: skip
        self._deciding = Histogram(
            "gpupack_reconcile_seconds", "Time of the decision alone", ["pool"], buckets=TICK_BUCKETS,
            registry=self.registry,
        )  # fmt: skip
        self._recorded = Counter(
            "gpupack_trace_ticks", "Ticks for the trace, by what became of them", ["fate"], registry=self.registry
        )
        self.registry.register(self)

    def called(self, verb: str, code: int) -> None:
        self._calls.labels(verb, str(code)).inc()

    def acted(self, action: str, *, refused: bool) -> None:
        self._actions.labels(action, "refused" if refused else "done").inc()

    def dropped(self, pool: str, cause: str) -> None:
        self._unfinished.labels(pool, cause).inc()

    def recorded(self, fate: str) -> None:
        self._recorded.labels(fate).inc()

    def decided(self, pool: str, tick: Tick, seconds: float) -> None:
        before = {each.serving: each for each in tick.observation.plan.records} if tick.observation.plan else {}
        plan = tick.outcome.pool_status.plan
        for record in () if plan is None else plan.records:
            was = before.get(record.serving)
            if was is None or (was.reason, was.at) != (record.reason, record.at):
                self._decisions.labels(pool, record.reason).inc()
        judged = {each.gpu_uuid: each for each in tick.observation.plan.experiments} if tick.observation.plan else {}
        for experiment in () if plan is None else plan.experiments:
            if is_news(experiment, judged.get(experiment.gpu_uuid)) and experiment.judgement is not None:
                self._verdicts.labels(pool, experiment.judgement.value, str(experiment.undone).lower()).inc()
        self._deciding.labels(pool).observe(seconds)
        self._ticks[pool] = tick

    def ticked(self, pool: str, seconds: float) -> None:
        self._seconds.labels(pool).observe(seconds)

    def forget(self, pool: str) -> None:
        self._ticks.pop(pool, None)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        age = GaugeMetricFamily(
            "gpupack_mirror_age_seconds", "Time since the API server last said anything of this kind", labels=["mirror"]
        )
        for name, seconds in self._mirror_ages():
            age.add_metric([name], seconds)
        yield age
        ticks = [self._ticks[pool] for pool in sorted(self._ticks)]
        yield from _pools(ticks)
        yield from _servings(ticks)
        yield from _gpus(ticks)
        yield from _glances(ticks)
        yield from _experiments(ticks)
        yield from _sleepers(ticks)
        yield _missing(ticks)

    def describe(self) -> Iterable[Metric]:
        """Nothing: the names above are known only when they are collected."""
        return ()


def _pools(ticks: Iterable[Tick]) -> Iterator[Metric]:
    gpus = GaugeMetricFamily("gpupack_gpus", "GPUs of the pool", labels=["pool"])
    in_use = GaugeMetricFamily("gpupack_gpus_in_use", "GPUs of the pool with replicas in the plan", labels=["pool"])
    info = GaugeMetricFamily(
        "gpupack_serving_info", "1 for each ModelServing of the pool", labels=["pool", "namespace", "serving", "model"]
    )
    for tick in ticks:
        pool, status = tick.observation.pool, tick.outcome.pool_status
        gpus.add_metric([pool], status.gpus)
        in_use.add_metric([pool], status.gpus_in_use)
        for each in tick.observation.servings:
            info.add_metric([pool, each.key.namespace, each.key.name, each.llm.name], 1.0)
    yield from (gpus, in_use, info)


def _servings(ticks: Iterable[Tick]) -> Iterator[Metric]:
    named = ["namespace", "serving"]
    planned = GaugeMetricFamily("gpupack_planned_replicas", "Replicas in the plan", labels=named)
    wanted = GaugeMetricFamily("gpupack_wanted_replicas", "Replicas that the load asked for at the last decision",
                               labels=named)  # fmt: skip
    observed = GaugeMetricFamily("gpupack_observed_replicas", "Pods by phase", labels=[*named, "phase"])
    reason = GaugeMetricFamily("gpupack_decision", "1 for the reason of the last decision", labels=[*named, "reason"])
    for tick in ticks:
        status, seen = tick.outcome.pool_status, tick.observation
        records = () if status.plan is None else status.plan.records
        for record in records:
            who = [record.serving.namespace, record.serving.name]
            planned.add_metric(who, record.planned)
            wanted.add_metric(who, record.wanted)
            reason.add_metric([*who, record.reason], 1.0)
        phases = Tally((each.serving, each.phase) for each in seen.replicas)
        for serving in sorted({each.serving for each in seen.replicas}):
            for phase in Phase:
                observed.add_metric([serving.namespace, serving.name, phase.value], phases[serving, phase])
    yield from (planned, wanted, observed, reason)


def _gpus(ticks: Iterable[Tick]) -> Iterator[Metric]:
    named = ["node", "gpu"]
    predicted = GaugeMetricFamily(
        "gpupack_predicted_tokens_per_second", "Tokens a second that the GPU was predicted to reach when full, as of "
        "its last replica", labels=named,
    )  # fmt: skip
    saturation = GaugeMetricFamily(
        "gpupack_predicted_saturation_ratio", "DRAM activity over its attainable maximum, as predicted with the last "
        "replica", labels=named,
    )  # fmt: skip
    freed = GaugeMetricFamily(
        "gpupack_freed_bytes", "KV cache that vLLM's defaults would take on this GPU and that its replicas do not",
        labels=named,
    )  # fmt: skip
    for tick in ticks:
        seen = tick.observation
        frees = {each.serving: each.freed_bytes for each in tick.outcome.serving_statuses}
        for gpu in seen.gpus:
            where = [gpu.gpu.node, gpu.gpu.uuid]
            here = [each for each in seen.replicas if each.gpu_uuid == gpu.gpu.uuid]
            ready = [each for each in here if each.phase is Phase.READY]
            if (last := last_predicted(here)) is not None:
                predicted.add_metric(where, last.tokens_per_second_after)
                saturation.add_metric(where, last.saturation_after)
            least = [bytes_ for each in ready if (bytes_ := frees.get(each.serving)) is not None]
            if least:
                # Each serving says what one of its replicas leaves free; what the others here took of that is not free.
                taken = sum(each.shape.kv_cache_memory_bytes for each in ready) - min(
                    each.shape.kv_cache_memory_bytes for each in ready
                )
                freed.add_metric(where, max(0, max(least) - taken))
    yield from (predicted, saturation, freed)


_GPU_GAUGES: tuple[tuple[str, str, Callable[[GpuGlance], float | None]], ...] = (
    ("gpupack_measured_tokens_per_second", "Prompt and generated tokens a second of all engines on the GPU",
     lambda gpu: gpu.tokens_per_second),
    ("gpupack_gpu_dram_active_ratio", "DRAM activity as the last tick saw it, share of the theoretical peak",
     lambda gpu: gpu.dram_active),
    ("gpupack_gpu_dram_attainable_ratio", "DRAM activity that the engines on the GPU reach at most at full batches, "
     "as predicted with the last replica", lambda gpu: gpu.attainable),
    ("gpupack_gpu_memory_used_bytes", "Device memory in use, by whomever", lambda gpu: gpu.memory_used),
    ("gpupack_gpu_power_watts", "Power draw of the GPU", lambda gpu: gpu.power),
)  # fmt: skip
_LATENCIES: tuple[tuple[str, str, Callable[[ServingGlance], float | None]], ...] = (
    ("itl", "Mean", lambda serving: serving.itl_mean),
    ("itl", "P95", lambda serving: serving.itl_p95),
    ("ttft", "Mean", lambda serving: serving.ttft_mean),
    ("ttft", "P95", lambda serving: serving.ttft_p95),
)


def _glances(ticks: Iterable[Tick]) -> Iterator[Metric]:
    """What `gpupack top` shows of now: sums over engines, as the last tick saw them."""
    on, of = ["node", "gpu"], ["namespace", "serving"]
    total = GaugeMetricFamily(
        "gpupack_gpu_memory_bytes", "Device memory of a GPU of the pool; parent is the GPU that a slice is cut from",
        labels=["pool", "kind", "parent", *on],
    )  # fmt: skip
    gauges = [(GaugeMetricFamily(name, text, labels=on), value) for name, text, value in _GPU_GAUGES]
    part = GaugeMetricFamily(
        "gpupack_serving_dram_active_ratio", "A serving's part of the DRAM activity of a GPU, by what its engines say "
        "they read", labels=[*on, *of],
    )  # fmt: skip
    rate = GaugeMetricFamily("gpupack_serving_requests_per_second", "Requests that come to the engines", labels=of)
    running = GaugeMetricFamily("gpupack_serving_running_requests", "Sequences that run in the engines", labels=of)
    latency = GaugeMetricFamily(
        "gpupack_serving_latency_seconds", "Inter-token latency (itl) and time to first token (ttft) of the worst "
        "engine", labels=[*of, "latency", "statistic"],
    )  # fmt: skip
    slo = GaugeMetricFamily(
        "gpupack_serving_slo_seconds", "What is promised of it, by the user or by default",
        labels=[*of, "latency", "statistic"],
    )  # fmt: skip
    for tick in ticks:
        seen = glance(tick.observation)
        for gpu in seen.gpus:
            where = [gpu.gpu.node, gpu.gpu.uuid]
            kind, parent = gpu.gpu.kind, gpu.gpu.parent_uuid
            total.add_metric([tick.observation.pool, kind.name, parent, *where], kind.memory_bytes)
            for family, value in gauges:
                if (number := value(gpu)) is not None:
                    family.add_metric(where, number)
            for key, share in sorted(gpu.dram_active_by.items()):
                part.add_metric([*where, key.namespace, key.name], share)
        for serving in seen.servings:
            who = [serving.key.namespace, serving.key.name]
            for family, number in ((rate, serving.requests_per_second), (running, serving.running)):
                if number is not None:
                    family.add_metric(who, number)
            for name, statistic, value_of in _LATENCIES:
                if (number := value_of(serving)) is not None:
                    latency.add_metric([*who, name, statistic], number)
        plan = tick.outcome.pool_status.plan
        promises = {} if plan is None else {each.serving: each.slo for each in plan.shapes if each.slo is not None}
        for key, promise in promises.items():
            for name, limit in (("itl", promise.itl), ("ttft", promise.ttft)):
                if limit is not None:
                    slo.add_metric([key.namespace, key.name, name, promise.statistic.value], limit)
    yield from (total, *(family for family, _ in gauges), part, rate, running, latency, slo)


def _experiments(ticks: Iterable[Tick]) -> Iterator[Metric]:
    named = ["namespace", "serving", "gpu", "what", "unit"]
    predicted = GaugeMetricFamily(
        "gpupack_step_predicted", "What the last judged step on a GPU should have given in its window", labels=named
    )
    measured = GaugeMetricFamily(
        "gpupack_step_measured", "What the last judged step on a GPU gave in its window", labels=named
    )
    under_way = GaugeMetricFamily(
        "gpupack_steps_on_trial", "GPUs with a step that is not judged yet", labels=["pool"]
    )  # fmt: skip
    undone = GaugeMetricFamily(
        "gpupack_steps_remembered", "Steps that were taken back and are not tried again yet", labels=["pool"]
    )
    for tick in ticks:
        plan = tick.outcome.pool_status.plan
        if plan is None:
            continue
        under_way.add_metric([tick.observation.pool], sum(each.judgement is None for each in plan.experiments))
        undone.add_metric([tick.observation.pool], len(plan.undone))
        for experiment in plan.experiments:
            for each in experiment.compared:
                namespace, _, name = each.subject.rpartition("/")
                who = [namespace, name] if namespace else [experiment.serving.namespace, experiment.serving.name]
                where = [*who, experiment.gpu_uuid, each.what, each.unit]
                predicted.add_metric(where, each.predicted)
                measured.add_metric(where, each.measured)
    yield from (predicted, measured, under_way, undone)


def _sleepers(ticks: Iterable[Tick]) -> Iterator[Metric]:
    named = ["namespace", "serving"]
    took = GaugeMetricFamily(
        "gpupack_wake_seconds", "From the first request that was held for a sleeping serving until it had a replica, "
        "the last time", labels=named,
    )  # fmt: skip
    held = GaugeMetricFamily("gpupack_held_requests", "Requests that the activators hold", labels=named)
    for tick in ticks:
        plan = tick.outcome.pool_status.plan
        for wake in () if plan is None else plan.wakes:
            if wake.took is not None:
                took.add_metric([wake.serving.namespace, wake.serving.name], wake.took)
        for each in tick.observation.held:
            if not isinstance(each.requests, Missing):
                held.add_metric([each.serving.namespace, each.serving.name], each.requests.value)
    yield from (took, held)


def _missing(ticks: Iterable[Tick]) -> Metric:
    family = GaugeMetricFamily(
        "gpupack_missing_readings",
        "Engines and GPUs without a usable reading, by cause",
        labels=["pool", "of", "cause"],
    )
    for tick in ticks:
        seen = tick.observation
        causes = Tally(
            [("engine", each.running.cause) for each in seen.engines if isinstance(each.running, Missing)]
            + [("dram_active", each.dram_active.cause) for each in seen.gpus if isinstance(each.dram_active, Missing)]
            + [("fb_used", each.fb_used.cause) for each in seen.gpus if isinstance(each.fb_used, Missing)]
        )
        for (of, cause), count in sorted(causes.items()):
            family.add_metric([seen.pool, of, cause.value], count)
    return family
