"""From an observation to facts: what is known now, what is not, and what belongs together.

Staleness is judged here, against the observation's own time, and nowhere else: a reading too old, not finite or below
zero becomes a Missing. Knows how old data may be, not what to do about it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from gpupack.facts.backend import ClusterOffer
from gpupack.facts.counter import Counter, Scale
from gpupack.facts.gpu import Gpu
from gpupack.facts.observation import (
    DEVICE_TAINT,
    EVICTING,
    NO_CORES_TOLD,
    Cause,
    ClaimSeen,
    EngineSeen,
    EngineWindow,
    GpuSeen,
    HeldSeen,
    Measured,
    Missing,
    NodeSeen,
    Observation,
    Phase,
    Refused,
    ReplicaSeen,
    ServiceSeen,
    SourceProblem,
)
from gpupack.facts.placement import Plan
from gpupack.facts.policy import Policy
from gpupack.facts.running import Appraisal, RunningEngine
from gpupack.facts.serving import Serving, ServingKey
from gpupack.units import Seconds

K = TypeVar("K")
V = TypeVar("V")

Known = float | Missing
"""A number in its base unit that may be used, or why there is none."""
UNCOUNTED = Missing(cause=Cause.NO_SERIES, origin="waiting")
UNTOLD = Missing(cause=Cause.NO_SERIES, origin="engine")
UNREAD = Missing(cause=Cause.NO_SERIES, origin="counter")
ALWAYS_BUSY = 0.98
XIDS_OF_PROGRAMS = frozenset((13, 31, 43, 45, 68, 109))
"""Errors that the program on the GPU made; the GPU stays healthy. Source: k8s-device-plugin, internal/rm/health.go."""
UNWATCHED = Missing(cause=Cause.NO_SERIES, origin="idle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """One engine over one window of `seconds`: rates a second, lengths in tokens, latencies in seconds."""

    seconds: Seconds
    arrivals: Known
    finished: Known
    generation_tokens: Known
    itl_mean: Known
    itl_p95: Known
    ttft_mean: Known
    ttft_p95: Known
    input_mean: Known
    output_mean: Known
    running_mean: Known
    inside_least: Known
    inside_most: Known
    waiting_least: Known = UNCOUNTED
    preemptions: Known = UNTOLD
    steps: Known = UNTOLD
    read_bytes: Known = UNTOLD


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Requests a second between two scrapes that are `seconds` apart."""

    seconds: Seconds
    arrivals: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What is known of one replica's engine. `windows` are shortest first; steps are judged over `judged`.

    `idle` is for how many seconds it has been seen empty without anything coming.
    """

    running: Known
    waiting: Known
    waiting_before: Known
    kv_blocks: Known
    windows: tuple[Traffic, ...]
    peak_arrivals: Known
    gaps: tuple[Gap, ...] = ()
    dispersion: float = 1.0
    judged: Traffic | None = None
    version: str | None = None
    served: tuple[str, ...] = ()
    idle: Known = UNWATCHED


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """How many requests the activators hold for a serving, and when the oldest of them came."""

    requests: Known
    since: Seconds | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """One device of the pool. `foreign` names who else holds it; `fb_used` is in bytes.

    `dram_active` is traffic over the theoretical peak, whatever counter it comes from; `shown` is what that counter
    shows, on its own scale, and compared with nothing.

    `cordoned`: its node takes no new pods, because somebody wants it empty. `fault` is why the device itself must not
    be used, empty if it tells that it is well, None if nothing tells. `evicts` is a taint on it that drives pods away.
    """

    gpu: Gpu
    node_ready: bool
    dram_active: Known
    fb_used: Known
    foreign: tuple[str, ...]
    counter: Counter = Counter.DCGM_DRAM_ACTIVE
    shown: Known = UNREAD
    cordoned: bool = False
    fault: str | None = None
    evicts: str | None = None
    core_wait: Known = NO_CORES_TOLD
    throttled: Known = NO_CORES_TOLD


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a decision may know, by name and by place. GPUs are in the order of node and uuid.

    `stale` names mirrors too old to trust: then nothing here may move anything.
    """

    at: Seconds
    policy: Policy
    plan: Plan | None
    stale: tuple[str, ...]
    pool_problem: str | None
    servings: Mapping[ServingKey, Serving]
    refused: Mapping[ServingKey, Refused]
    gpus: Mapping[str, GpuFacts]
    nodes: Mapping[str, NodeSeen]
    replicas_on: Mapping[str, tuple[ReplicaSeen, ...]]
    replicas_of: Mapping[ServingKey, tuple[ReplicaSeen, ...]]
    engines: Mapping[str, EngineFacts]
    claims_on: Mapping[str, tuple[ClaimSeen, ...]]
    services: Mapping[ServingKey, ServiceSeen]
    running: Mapping[ServingKey, tuple[RunningEngine, ...]] = field(default_factory=dict)
    appraisals: Mapping[ServingKey, Appraisal] = field(default_factory=dict)
    unknown_products: tuple[str, ...] = ()
    watched_since: Seconds | None = None
    offer: ClusterOffer | None = None
    scales: tuple[Scale, ...] = ()
    source_problem: SourceProblem | None = None
    held: Mapping[ServingKey, Held] = field(default_factory=dict)


def is_leaving(replica: ReplicaSeen) -> bool:
    """Somebody asked for its end, or it is out of its Service for that."""
    return (
        replica.deletion_at is not None
        or replica.phase is Phase.STOPPING
        or (replica.phase is Phase.READY and not replica.in_service)
    )


def interpret(observation: Observation) -> Facts:
    policy = observation.policy
    replicas = sorted(observation.replicas, key=lambda each: (each.serving, each.gpu_uuid, each.slot, each.name))
    foreign: dict[str, list[str]] = defaultdict(list)
    for holder in observation.holders:
        foreign[holder.gpu_uuid].append(f"{holder.kind} {holder.name}")
    evicts = {
        each.gpu_uuid: each.name
        for each in observation.holders
        if each.kind == DEVICE_TAINT and each.name.endswith(EVICTING)
    }
    claims: dict[str, list[ClaimSeen]] = defaultdict(list)
    for claim in sorted(observation.claims, key=lambda each: (each.namespace, each.name)):
        claims[claim.gpu_uuid].append(claim)
    on: dict[str, list[ReplicaSeen]] = defaultdict(list)
    of: dict[ServingKey, list[ReplicaSeen]] = defaultdict(list)
    for replica in replicas:
        on[replica.gpu_uuid].append(replica)
        of[replica.serving].append(replica)
    running: dict[ServingKey, list[RunningEngine]] = defaultdict(list)
    for engine in sorted(observation.running, key=lambda each: each.key):
        running[engine.serving].append(engine)
    gpus = sorted(observation.gpus, key=lambda each: (each.gpu.node, each.gpu.uuid))
    return Facts(
        at=observation.at,
        policy=policy,
        plan=observation.plan,
        stale=tuple(sorted(observation.stale)),
        pool_problem=observation.pool_problem,
        servings={each.key: each for each in sorted(observation.servings, key=lambda each: each.key)},
        refused={each.key: each for each in sorted(observation.refused, key=lambda each: each.key)},
        gpus={each.gpu.uuid: _gpu(each, policy, observation.at, foreign, evicts, observation.scales) for each in gpus},
        nodes={each.name: each for each in observation.nodes},
        replicas_on=_frozen(on),
        replicas_of=_frozen(of),
        engines={each.replica: _engine(each, policy, observation.at) for each in observation.engines},
        claims_on=_frozen(claims),
        services={each.serving: each for each in observation.services},
        running=_frozen(running),
        appraisals={each.serving: each for each in observation.appraisals},
        unknown_products=observation.unknown_products,
        watched_since=observation.watched_since,
        offer=observation.offer,
        scales=observation.scales,
        source_problem=observation.source_problem,
        held={each.serving: _held(each, policy, observation.at) for each in observation.held},
    )


def _frozen(groups: Mapping[K, list[V]]) -> dict[K, tuple[V, ...]]:
    return {key: tuple(values) for key, values in groups.items()}


def _gpu(
    seen: GpuSeen, policy: Policy, at: Seconds, foreign: Mapping[str, Iterable[str]], evicts: Mapping[str, str],
    scales: Iterable[Scale],
) -> GpuFacts:  # fmt: skip
    limit = policy.dcgm_stale_after
    shown = _shown(seen, at, limit)
    return GpuFacts(
        gpu=seen.gpu,
        node_ready=seen.node_ready,
        dram_active=_moved(seen, shown, scales),
        fb_used=_known(seen.fb_used, at, limit),
        foreign=tuple(sorted(foreign.get(seen.gpu.uuid, ()))),
        cordoned=seen.cordoned,
        fault=_fault(_known(seen.xid, at, limit)),
        evicts=evicts.get(seen.gpu.uuid),
        core_wait=_known(seen.core_wait, at, limit),
        throttled=_known(seen.throttled, at, limit),
        counter=seen.counter,
        shown=shown,
    )


def _shown(seen: GpuSeen, at: Seconds, limit: float) -> Known:
    """What the counter shows. More than everything is another unit, and not to be used as any."""
    shown = _known(seen.dram_active, at, limit)
    if not isinstance(shown, Missing) and shown > 1.0:
        return Missing(cause=Cause.ABSURD, origin=seen.dram_active.origin)
    return shown


def _moved(seen: GpuSeen, shown: Known, scales: Iterable[Scale]) -> Known:
    """Traffic over the peak: what the counter shows, by the scale that it has on this kind of GPU.

    A counter that means a share of the peak is taken at its word until its scale is measured, another is not used. Time
    cannot be busier than always: a counter of time that is nearly full says nothing of how much.
    """
    if isinstance(shown, Missing):
        return shown
    kind, counter = seen.gpu.kind.name, seen.counter
    if counter is Counter.NVML_MEMORY_BUSY and shown >= ALWAYS_BUSY:
        return Missing(cause=Cause.TOO_COARSE, origin=seen.dram_active.origin)
    scale = next((each for each in scales if (each.gpu_kind, each.counter) == (kind, counter)), None)
    if scale is not None:
        return min(1.0, shown / scale.ratio)
    return shown if counter.is_share_of_peak else Missing(cause=Cause.NO_SCALE, origin=seen.dram_active.origin)


def _fault(xid: Known) -> str | None:
    """What the last XID means for the GPU. One that a program brought on itself says nothing of it."""
    if isinstance(xid, Missing) or round(xid) in XIDS_OF_PROGRAMS:
        return None
    return f"its driver told XID {round(xid)}" if xid else ""


def _engine(seen: EngineSeen, policy: Policy, at: Seconds) -> EngineFacts:
    limit = policy.engine_stale_after
    return EngineFacts(
        running=_known(seen.running, at, limit),
        waiting=_known(seen.waiting, at, limit),
        waiting_before=_known(seen.waiting_before, at, limit + policy.engine_period),
        kv_blocks=_known(seen.kv_blocks, at, limit),
        windows=tuple(_traffic(window, at, limit) for window in seen.windows),
        peak_arrivals=_known(seen.peak_arrivals, at, limit),
        gaps=_gaps(seen, at, limit),
        dispersion=seen.dispersion,
        judged=None if seen.judged is None else _traffic(seen.judged, at, limit),
        version=seen.version,
        served=seen.served,
        idle=_known(seen.idle, at, limit),
    )


def _held(seen: HeldSeen, policy: Policy, at: Seconds) -> Held:
    return Held(requests=_known(seen.requests, at, policy.engine_stale_after), since=seen.since)


def _gaps(seen: EngineSeen, at: Seconds, limit: float) -> tuple[Gap, ...]:
    """Both or none."""
    found = [(gap.seconds, _known(gap.arrivals, at, limit)) for gap in seen.gaps]
    gaps = tuple(Gap(seconds=seconds, arrivals=rate) for seconds, rate in found if not isinstance(rate, Missing))
    return gaps if len(gaps) == len(found) else ()


def _traffic(window: EngineWindow, at: Seconds, limit: float) -> Traffic:
    return Traffic(
        seconds=window.seconds,
        arrivals=_known(window.arrivals, at, limit),
        finished=_known(window.finished, at, limit),
        generation_tokens=_known(window.generation_tokens, at, limit),
        itl_mean=_known(window.itl_mean, at, limit),
        itl_p95=_known(window.itl_p95, at, limit),
        ttft_mean=_known(window.ttft_mean, at, limit),
        ttft_p95=_known(window.ttft_p95, at, limit),
        input_mean=_known(window.input_mean, at, limit),
        output_mean=_known(window.output_mean, at, limit),
        running_mean=_known(window.running_mean, at, limit),
        inside_least=_known(window.inside_least, at, limit),
        inside_most=_known(window.inside_most, at, limit),
        waiting_least=_known(window.waiting_least, at, limit),
        preemptions=_known(window.preemptions, at, limit),
        steps=_known(window.steps, at, limit),
        read_bytes=_known(window.read_bytes, at, limit),
    )


def _known(measured: Measured, at: Seconds, limit: float) -> Known:
    """The value if it may be used at `at`; older than `limit` seconds is stale, below zero is no measurement."""
    if isinstance(measured, Missing):
        return measured
    if 0.0 <= measured.value < math.inf and at - measured.at <= limit:
        return measured.value
    if not math.isfinite(measured.value) or measured.value < 0:
        return Missing(cause=Cause.NOT_FINITE, origin=measured.origin)
    return Missing(cause=Cause.STALE, origin=measured.origin)
