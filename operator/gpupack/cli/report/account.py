"""What a report tells, gathered from a trace or from a cluster: servings, GPUs, decisions, steps, and how it went.

A trace knows every tick; a cluster knows its statuses, the last decisions of each serving and what is live now. What a
source does not know is empty here, and the page says so. Nothing is predicted or drawn here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpupack import catalog
from gpupack.errors import Invalid
from gpupack.facts.experiment import Experiment
from gpupack.facts.glance import GpuGlance, ServingGlance, glance
from gpupack.facts.gpu import GpuKind
from gpupack.facts.observation import Observation, Phase, Reading, ReplicaSeen
from gpupack.facts.placement import ChosenShape, Placement, Plan
from gpupack.facts.policy import Policy
from gpupack.facts.serving import Serving, ServingKey
from gpupack.kube.api import Api
from gpupack.kube.observe import POOLS
from gpupack.kube.pool_resource import pool_resource
from gpupack.kube.serving_resource import serving_resource
from gpupack.kube.times import seconds_of
from gpupack.plan import Outcome
from gpupack.top.feed import Feed
from gpupack.top.snapshot import GpuRow
from gpupack.trace.lines import read
from gpupack.units import Bytes, Seconds

Company = tuple[tuple[ServingKey, int], ...]
"""How many engines of which serving."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """One decision in the operator's own sentences. `planned` replicas were left by it; None where nobody wrote it."""

    at: Seconds
    serving: ServingKey
    reason: str
    planned: int | None
    seen: str
    predicted: str
    chosen: str
    rejected: str
    measured: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuHeld:
    """A GPU and what the plan puts there; `kind` None is one that the catalog does not have.

    `card` is the whole GPU that it is, or is cut from.
    """

    uuid: str
    card: str
    node: str
    kind: GpuKind | None
    placements: tuple[Placement, ...]
    memory_used: Bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMoment:
    """One engine over its shortest window: sequences that ran on average, and the 95th percentile of its latency."""

    key: ServingKey
    running: float
    itl: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMoment:
    """What all engines on a GPU did together; input and output tokens. Only where all that are there are ready.

    `engines` are those of which both was measured; none where only the sum is known.
    """

    uuid: str
    kind: str
    company: Company
    tokens_per_second: float
    engines: tuple[EngineMoment, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingMoment:
    key: ServingKey
    planned: int
    ready: int
    requests_per_second: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    at: Seconds
    gpus: tuple[GpuMoment, ...]
    servings: tuple[ServingMoment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """`source` says in words where it is from. `absent` are sentences on what that source could not tell."""

    source: str
    pool: str
    at: Seconds
    policy: Policy
    servings: tuple[Serving, ...]
    shapes: tuple[ChosenShape, ...]
    gpus: tuple[GpuHeld, ...]
    steps: tuple[Experiment, ...]
    decisions: tuple[Decided, ...]
    moments: tuple[Moment, ...]
    absent: tuple[str, ...] = ()

    def kind(self, name: str) -> GpuKind | None:
        return next((each.kind for each in self.gpus if each.kind is not None and each.kind.name == name), None)


# From a trace


def of_trace(path: Path, option: str) -> tuple[Account, ...]:
    """One account of each pool that was recorded. Raises Invalid for a file that is no trace or holds no tick."""
    pools: dict[str, _Recorded] = {}
    for ticked in read(path, option):
        pools.setdefault(ticked.observation.pool, _Recorded()).add(ticked.observation, ticked.outcome)
    if not pools:
        raise Invalid(option, f"{path} holds no tick", "record for some minutes")
    return tuple(pools[name].account(path, name) for name in sorted(pools))


class _Recorded:
    """What is kept of a pool while its ticks go by."""

    def __init__(self) -> None:
        self._last: tuple[Observation, Outcome] | None = None
        self._decisions: dict[tuple[ServingKey, Seconds, str], Decided] = {}
        self._steps: dict[tuple[str, Seconds], Experiment] = {}
        self._moments: list[Moment] = []
        self._ticks = 0

    def add(self, seen: Observation, outcome: Outcome) -> None:
        self._last = seen, outcome
        self._ticks += 1
        plan = outcome.pool_status.plan
        for each in () if plan is None else plan.records:
            at = each.serving, each.at, each.reason
            self._decisions.setdefault(at, Decided(
                at=each.at, serving=each.serving, reason=each.reason, planned=each.planned, seen=each.seen,
                predicted=each.predicted, chosen=each.message, rejected=each.rejected,
            ))  # fmt: skip
        for status in outcome.serving_statuses:
            step = status.experiment
            if step is not None and step.judgement is not None:
                for key in [key for key in self._decisions if key[:2] == (status.serving, step.last_at)]:
                    self._decisions[key] = replace(self._decisions[key], measured=status.experiment_message)
        for step in () if plan is None else plan.experiments:
            self._steps[step.gpu_uuid, step.last_at] = step
        if not self._moments or seen.at > self._moments[-1].at:
            self._moments.append(_moment(seen, plan))

    def account(self, path: Path, pool: str) -> Account:
        assert self._last is not None
        seen, outcome = self._last
        plan = outcome.pool_status.plan or Plan()
        used = {each.gpu.uuid: each.memory_used for each in glance(seen).gpus}
        return Account(
            source=f"{path.name}, {self._ticks} ticks",
            pool=pool,
            at=seen.at,
            policy=seen.policy,
            servings=tuple(sorted(seen.servings, key=lambda each: each.key)),
            shapes=plan.shapes,
            gpus=tuple(
                GpuHeld(
                    uuid=each.gpu.uuid, card=each.gpu.card, node=each.gpu.node, kind=each.gpu.kind,
                    memory_used=used[each.gpu.uuid],
                    placements=tuple(one for one in plan.placements if one.gpu_uuid == each.gpu.uuid),
                )
                for each in sorted(seen.gpus, key=lambda each: (each.gpu.node, each.gpu.uuid))
            ),
            steps=tuple(sorted(self._steps.values(), key=lambda each: (each.last_at, each.gpu_uuid))),
            decisions=tuple(sorted(self._decisions.values(), key=lambda each: (each.at, each.serving))),
            moments=tuple(self._moments),
        )  # fmt: skip


def _moment(seen: Observation, plan: Plan | None) -> Moment:
    now = glance(seen)
    placements = () if plan is None else plan.placements
    planned = {key: sum(each.serving == key for each in placements) for key in (one.key for one in now.servings)}
    return Moment(
        at=seen.at,
        gpus=tuple(each for gpu in now.gpus if (each := _gpu_moment(gpu, seen)) is not None),
        servings=tuple(_serving_moment(each, planned[each.key]) for each in now.servings),
    )


def _gpu_moment(gpu: GpuGlance, seen: Observation) -> GpuMoment | None:
    here = [each for each in seen.replicas if each.gpu_uuid == gpu.gpu.uuid]
    if gpu.tokens_per_second is None or any(each.phase is not Phase.READY for each in here):
        return None
    return GpuMoment(
        uuid=gpu.gpu.uuid,
        kind=gpu.gpu.kind.name,
        company=_company(each.serving for each in here),
        tokens_per_second=gpu.tokens_per_second,
        engines=tuple(_engines(here, seen)),
    )


def _engines(here: Iterable[ReplicaSeen], seen: Observation) -> Iterable[EngineMoment]:
    read_of = {each.replica: each for each in seen.engines}
    for each in here:
        engine = read_of.get(each.name)
        window = engine.windows[0] if engine is not None and engine.windows else None
        running, itl = (None, None) if window is None else (window.running_mean, window.itl_p95)
        if isinstance(running, Reading) and isinstance(itl, Reading):
            yield EngineMoment(key=each.serving, running=running.value, itl=Seconds(itl.value))


def _company(servings: Iterable[ServingKey]) -> Company:
    return tuple(sorted(Counter(servings).items()))


def _serving_moment(now: ServingGlance, planned: int) -> ServingMoment:
    return ServingMoment(
        key=now.key,
        planned=planned,
        ready=now.ready,
        requests_per_second=now.requests_per_second,
    )


# From a cluster


async def of_cluster(api: Api, *, metrics: str | None, now: Seconds, name: str) -> tuple[Account, ...]:
    """One account of each pool, of what the statuses say and what the operator's page tells of now.

    Raises Unavailable where gpupack's resources cannot be read.
    """
    kinds = {each.name: each for each in catalog.gpus()}
    feed = Feed(api, kinds.get, namespace=None, metrics=metrics)
    await feed.look()
    seen = feed.snapshot()
    pools = {each.name: each for each in map(pool_resource, (await api.get(POOLS))["items"])}
    servings = [serving_resource(each.resource, llm_of=catalog.llm_of) for each in seen.servings]
    found = []
    for pool in pools.values():
        plan = pool.plan or Plan()
        gpus = [each for each in seen.gpus if each.pool == pool.name]
        mine = [each for each in servings if each.pool == pool.name]
        keys = {each.key for each in mine}
        moments = tuple(_live(each) for each in gpus if each.engines and each.tokens_per_second is not None)
        absent = ["The timeline holds the last decisions of each serving only; a trace (`gpupack operator --trace`) "
                  "holds all of them, and how load and latency went."]  # fmt: skip
        found.append(
            Account(
                source=f"the cluster at {name}",
                pool=pool.name,
                at=now,
                policy=pool.policy,
                servings=tuple(each.serving for each in mine if isinstance(each.serving, Serving)),
                shapes=plan.shapes,
                gpus=tuple(
                    GpuHeld(
                        uuid=each.uuid, card=each.card, node=each.node, kind=kinds.get(each.kind),
                        memory_used=each.memory_used,
                        placements=tuple(one for one in plan.placements if one.gpu_uuid == each.uuid),
                    )
                    for each in gpus
                ),
                steps=tuple(sorted(plan.experiments, key=lambda each: (each.last_at, each.gpu_uuid))),
                decisions=tuple(
                    sorted(
                        (one for each in seen.servings if each.key in keys for one in _told(each.key, each.resource)),
                        key=lambda each: (each.at, each.serving),
                    )
                ),
                moments=(Moment(at=now, gpus=moments, servings=()),) if moments else (),
                absent=(*absent, *([f"Live values are missing: {seen.note}."] if seen.note else [])),
            )
        )  # fmt: skip
    return tuple(found)


def _live(row: GpuRow) -> GpuMoment:
    assert row.tokens_per_second is not None
    return GpuMoment(
        uuid=row.uuid,
        kind=row.kind,
        company=_company(each.serving for each in row.engines),
        tokens_per_second=row.tokens_per_second,
    )


def _told(key: ServingKey, resource: Mapping[str, Any]) -> Iterable[Decided]:
    for each in resource.get("status", {}).get("decisions", ()):
        yield Decided(
            at=seconds_of(each["at"]), serving=key, reason=each["reason"], planned=None, seen=each.get("seen", ""),
            predicted=each.get("predicted", ""), chosen=each.get("chosen", ""), rejected=each.get("rejected", ""),
            measured=each.get("measured", ""),
        )  # fmt: skip
