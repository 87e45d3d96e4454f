"""What to expect of engines on one GPU: a whole run with its ramp and tail, or a steady window. Never mixed.

A whole run is what papers publish: requests are there at the start (or come as recorded) and the clock stops at the
last token. A steady window is what an operator sees: warm-up first, then a count of requests. It does not know where
dimensions, lengths or rates come from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gpupack.errors import Invalid
from gpupack.twin.arrivals import Chance, ClosedLoop, Listed, PoissonArrivals, Request, Source
from gpupack.twin.engine import EngineConfig
from gpupack.twin.engine import Sequence as Served
from gpupack.twin.memory_system import DEFAULT_SHARING, EngineCosts, GpuSpec, ModelDims, Sharing
from gpupack.twin.world import Reading, Tenant, VirtualGpu, World, activity

_BINS_PER_E = 200  # gaps are counted in bins half a per cent wide
_STRIDE = 1.0  # simulated seconds between two looks at whether a run or a window is over
_LONGEST_WARM_UP = 120.0
_LONGEST_RUN = 1e7
_SHARED_GPU = "gpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """So many like engines. `requests_per_second` is offered to all of them together, None is as much as they take.

    `cores` are those that each has for its host work, None for enough.
    """

    model: ModelDims
    costs: EngineCosts
    config: EngineConfig
    replicas: int = 1
    requests_per_second: float | None = None
    cores: float | None = None

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise Invalid("--replicas", f"{self.replicas} replicas cannot serve", "give at least 1")
        if self.requests_per_second is not None and self.requests_per_second <= 0.0:
            raise Invalid("--request-rate", "no request would ever come", "give a rate above 0, or inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Mean and percentiles in seconds."""

    mean: float
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaMeasures:
    """One engine's part: tokens a second, mean gap between tokens in seconds, sequences running on average."""

    total_tokens_per_second: float
    output_tokens_per_second: float
    itl_mean: float
    running_mean: float
    kv_peak_fraction: float
    preemptions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """Sums over the replicas of one deployment, spreads over all their tokens and requests; shares are of the GPU.

    `ttft` is None where requests always wait (a steady window at saturation): it would only say how long the queue is.
    """

    total_tokens_per_second: float
    output_tokens_per_second: float
    itl: Spread
    ttft: Spread | None
    e2e: Spread
    running_mean: float
    kv_peak_fraction: float
    preemptions: int
    dram_active: float
    dram_active_max: float | None
    sm_active: float
    gpu_held: float
    power_watts: float
    simulated_seconds: float
    replicas: tuple[ReplicaMeasures, ...]


class _Recorder:
    """Listens to one engine from `since` on."""

    def __init__(self) -> None:
        self.clear(0.0)

    def clear(self, since: float) -> None:
        self._since = since
        self.first_tokens: list[float] = []
        self.whole: list[float] = []
        self.last_finish = since
        self.gap_bins: dict[int, int] = {}
        self.gap_sum = 0.0
        self.gap_count = 0
        self.running_seconds = 0.0

    def stepped(self, began_at: float, ended_at: float, running: int) -> None:
        self.running_seconds += running * (ended_at - max(began_at, self._since))

    def gaps(self, seconds: float, tokens: int) -> None:
        place = math.floor(math.log(seconds) * _BINS_PER_E)
        self.gap_bins[place] = self.gap_bins.get(place, 0) + tokens
        self.gap_sum += seconds * tokens
        self.gap_count += tokens

    def finished(self, sequence: Served) -> None:
        self.first_tokens.append(sequence.first_token_at - sequence.arrived_at)
        self.whole.append(sequence.finished_at - sequence.arrived_at)
        self.last_finish = sequence.finished_at


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begin:
    """Counters of an engine at the beginning of a window."""

    prompt_tokens: int
    generation_tokens: int
    preemptions: int


def simulate_runs(
    *,
    gpu: GpuSpec,
    deployments: Sequence[tuple[Deployment, Sequence[tuple[float, Request]]]],
    sharing: Sharing = DEFAULT_SHARING,
    apart: bool = False,
) -> list[Measures]:
    """One whole run of deployments that share a GPU, each with its requests, dealt to its replicas in turn; results in
    their order. The clock stops at the last token of all.

    `apart`: every engine has a GPU of that kind for itself, as slices of one GPU are; shares are then means over them.
    Requests that come together at the start cost each engine `ingest_per_request` each, as tokenising them does.
    """
    if not all(arrivals for _, arrivals in deployments):
        raise Invalid("--requests", "there is no request to serve", "give at least 1 for each model")
    world = World()
    devices = _devices(world, gpu, sharing, [each for each, _ in deployments], apart)
    begin_at = min(at for _, arrivals in deployments for at, _ in arrivals)
    before = _together(devices)
    groups: list[tuple[list[Tenant], list[_Recorder]]] = []
    for number, (deployment, arrivals) in enumerate(deployments):
        ordered = sorted(arrivals, key=lambda arrival: arrival[0])
        tenants, recorders = [], []
        for i in range(deployment.replicas):
            mine = ordered[i :: deployment.replicas]
            burst = sum(1 for at, _ in mine if at == begin_at)
            ingest = burst * deployment.costs.ingest_per_request if burst > 1 else 0.0
            stalls = deployment.costs.ingest_stalls
            tenant, recorder = _start(
                world, f"{number}-{i}", deployment, Listed(mine), 0.0 if stalls else ingest, apart=apart
            )
            tenant.stall_host(ingest if stalls else 0.0)
            tenants.append(tenant)
            recorders.append(recorder)
        groups.append((tenants, recorders))
    begins = [[_begin(tenant) for tenant in tenants] for tenants, _ in groups]
    everyone = [recorder for _, recorders in groups for recorder in recorders]
    offered = sum(len(arrivals) for _, arrivals in deployments)
    while sum(len(recorder.whole) for recorder in everyone) < offered:
        world.advance(world.now + _STRIDE)
        if world.now > _LONGEST_RUN:
            raise Invalid("--requests", "the run does not end", "give fewer or shorter requests")
    ended_at = max(recorder.last_finish for recorder in everyone)
    seconds = ended_at - begin_at
    after = _together(devices)
    idle_watts = len(devices) * gpu.idle_watts * (after.at - ended_at)
    closed = Reading(
        at=before.at + seconds,
        dram_seconds=after.dram_seconds,
        sm_seconds=after.sm_seconds,
        held_seconds=after.held_seconds,
        kernel_seconds=after.kernel_seconds,
        energy_joules=after.energy_joules - idle_watts,
        fb_used_bytes=after.fb_used_bytes,
    )
    return [
        _measures(tenants, recorders, begin, before, closed, waits=True)
        for (tenants, recorders), begin in zip(groups, begins, strict=True)
    ]


def simulate_steady(
    *,
    gpu: GpuSpec,
    deployments: Sequence[tuple[Deployment, Iterator[Request]]],
    chance: Chance,
    sharing: Sharing = DEFAULT_SHARING,
    apart: bool = False,
    warm_up_seconds: float | None = None,
    window_requests: int = 2000,
) -> list[Measures]:
    """A steady window of deployments that share a GPU, each with the requests it is offered; results in their order.

    Warm-up lasts until every deployment has finished three full batches, two minutes at most, unless given. The window
    lasts until `window_requests` of the first deployment are finished. `apart` as for a run.
    """
    world = World()
    devices = _devices(world, gpu, sharing, [each for each, _ in deployments], apart)
    groups: list[tuple[Deployment, list[Tenant], list[_Recorder]]] = []
    for number, (deployment, requests) in enumerate(deployments):
        tenants, recorders = [], []
        for i in range(deployment.replicas):
            source: Source
            if deployment.requests_per_second is None:
                source = ClosedLoop(concurrency=2 * deployment.config.max_num_seqs, requests=requests)
            else:
                each = deployment.requests_per_second / deployment.replicas
                source = PoissonArrivals(rates=[(0.0, each)], requests=requests, chance=chance)
            tenant, recorder = _start(world, f"{number}-{i}", deployment, source, apart=apart)
            tenants.append(tenant)
            recorders.append(recorder)
        groups.append((deployment, tenants, recorders))
    limit = _LONGEST_WARM_UP if warm_up_seconds is None else warm_up_seconds
    while world.now < limit and (warm_up_seconds is not None or not all(_warm(group) for group in groups)):
        world.advance(min(limit, world.now + _STRIDE))
    before = _together(devices)
    begins = []
    for _, tenants, recorders in groups:
        begins.append([_begin(tenant) for tenant in tenants])
        for tenant, recorder in zip(tenants, recorders, strict=True):
            recorder.clear(world.now)
            tenant.engine.kv_peak_blocks = 0
    first, rate = groups[0][2], groups[0][0].requests_per_second
    stride = _STRIDE if rate is None else max(_STRIDE, 0.01 * window_requests / rate)
    while sum(len(recorder.whole) for recorder in first) < window_requests:
        world.advance(world.now + stride)
    after = _together(devices)
    return [
        _measures(tenants, recorders, begin, before, after, waits=deployment.requests_per_second is not None)
        for (deployment, tenants, recorders), begin in zip(groups, begins, strict=True)
    ]


def _devices(
    world: World, gpu: GpuSpec, sharing: Sharing, deployments: Sequence[Deployment], apart: bool
) -> list[VirtualGpu]:
    """The GPU that all engines are on; `apart`: one for each, called as its engine is."""
    names = [f"{number}-{i}" for number, each in enumerate(deployments) for i in range(each.replicas)]
    return [world.add_gpu(name, gpu, sharing) for name in (names if apart else [_SHARED_GPU])]


def _together(devices: Sequence[VirtualGpu]) -> Reading:
    """Means of what is a share of time, sums of energy and memory."""
    read = [each.reading() for each in devices]
    return Reading(
        at=read[0].at,
        dram_seconds=sum(each.dram_seconds for each in read) / len(read),
        sm_seconds=sum(each.sm_seconds for each in read) / len(read),
        held_seconds=sum(each.held_seconds for each in read) / len(read),
        kernel_seconds=sum(each.kernel_seconds for each in read) / len(read),
        energy_joules=sum(each.energy_joules for each in read),
        fb_used_bytes=sum(each.fb_used_bytes for each in read),
    )


def _start(
    world: World,
    name: str,
    deployment: Deployment,
    source: Source,
    start_seconds: float = 0.0,
    *,
    apart: bool = False,
) -> tuple[Tenant, _Recorder]:
    recorder = _Recorder()
    tenant = world.start_engine(
        name,
        gpu=name if apart else _SHARED_GPU,
        config=deployment.config,
        model=deployment.model,
        costs=deployment.costs,
        start_seconds=start_seconds,
        source=source,
        listener=recorder,
        cores=deployment.cores,
    )
    return tenant, recorder


def _warm(group: tuple[Deployment, list[Tenant], list[_Recorder]]) -> bool:
    deployment, _, recorders = group
    return all(len(recorder.whole) >= 3 * deployment.config.max_num_seqs for recorder in recorders)


def _begin(tenant: Tenant) -> _Begin:
    counters = tenant.engine.counters
    return _Begin(
        prompt_tokens=counters.prompt_tokens,
        generation_tokens=counters.generation_tokens,
        preemptions=counters.preemptions,
    )


def _measures(
    tenants: Sequence[Tenant],
    recorders: Sequence[_Recorder],
    begins: Sequence[_Begin],
    before: Reading,
    after: Reading,
    *,
    waits: bool,
) -> Measures:
    seconds = after.at - before.at
    replicas = []
    for tenant, recorder, begin in zip(tenants, recorders, begins, strict=True):
        counters = tenant.engine.counters
        generated = counters.generation_tokens - begin.generation_tokens
        prompts = counters.prompt_tokens - begin.prompt_tokens
        replicas.append(
            ReplicaMeasures(
                total_tokens_per_second=(prompts + generated) / seconds,
                output_tokens_per_second=generated / seconds,
                itl_mean=recorder.gap_sum / recorder.gap_count if recorder.gap_count else 0.0,
                running_mean=recorder.running_seconds / seconds,
                kv_peak_fraction=tenant.engine.kv_peak_usage,
                preemptions=counters.preemptions - begin.preemptions,
            )
        )
    share = activity(before, after)
    first_tokens = [value for recorder in recorders for value in recorder.first_tokens]
    return Measures(
        total_tokens_per_second=sum(replica.total_tokens_per_second for replica in replicas),
        output_tokens_per_second=sum(replica.output_tokens_per_second for replica in replicas),
        itl=_gap_spread(recorders),
        ttft=_spread(first_tokens) if waits else None,
        e2e=_spread([value for recorder in recorders for value in recorder.whole]),
        running_mean=sum(replica.running_mean for replica in replicas) / len(replicas),
        kv_peak_fraction=max(replica.kv_peak_fraction for replica in replicas),
        preemptions=sum(replica.preemptions for replica in replicas),
        dram_active=share.dram_active,
        dram_active_max=share.dram_active_max,
        sm_active=share.sm_active,
        gpu_held=share.gpu_held,
        power_watts=share.power_watts,
        simulated_seconds=seconds,
        replicas=tuple(replicas),
    )


def _spread(values: list[float]) -> Spread:
    """Percentiles by nearest rank."""
    ordered = sorted(values)
    last = len(ordered) - 1

    def rank(share: float) -> float:
        return ordered[min(last, max(0, math.ceil(share * len(ordered)) - 1))]

    return Spread(mean=sum(ordered) / len(ordered), p50=rank(0.50), p95=rank(0.95), p99=rank(0.99))


def _gap_spread(recorders: Sequence[_Recorder]) -> Spread:
    """Percentiles from the bins (half a per cent wide), the mean exactly. All 0 if no answer has a second token."""
    bins: dict[int, int] = {}
    for recorder in recorders:
        for place, count in recorder.gap_bins.items():
            bins[place] = bins.get(place, 0) + count
    total = sum(bins.values())
    if total == 0:
        return Spread(mean=0.0, p50=0.0, p95=0.0, p99=0.0)
    wanted = {0.50: 0.0, 0.95: 0.0, 0.99: 0.0}
    below = 0
    for place in sorted(bins):
        for share in wanted:
            if below < share * total <= below + bins[place]:
                wanted[share] = math.exp((place + 0.5) / _BINS_PER_E)
        below += bins[place]
    mean = sum(recorder.gap_sum for recorder in recorders) / total
    return Spread(mean=mean, p50=wanted[0.50], p95=wanted[0.95], p99=wanted[0.99])
