"""What is shown, as rows of nouns: the statuses of GpuPools and ModelServings, and beside them what is live.

Statuses tell what was decided and what stands where; live values come from the operator's page. Without the page they
are None, and of a GPU the DRAM activity of its last judged step is told instead, marked as of then. Pure: knows no
cluster, no clock and no screen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpupack.decide.experiment import DRAM
from gpupack.facts.gpu import GpuKind
from gpupack.facts.placement import ChosenShape, Placement, Plan
from gpupack.facts.serving import ServingKey, Shape, Slo
from gpupack.kube.pool_resource import plan_of
from gpupack.kube.times import seconds_of
from gpupack.top.page import Live, LiveGpu, LiveServing
from gpupack.units import Bytes, PerSecond, Ratio, Seconds, Watts, seconds_from_milliseconds

KindOf = Callable[[str], GpuKind | None]
"""A GPU kind of the catalog by its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRecord:
    """A GpuPool as far as it is shown. `problem` is why it does not decide, empty if it does."""

    name: str
    gpus: int | None
    gpus_in_use: int | None
    replicas: int | None
    problem: str
    plan: Plan | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaRecord:
    name: str
    gpu_uuid: str
    node: str
    phase: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingRecord:
    """A ModelServing as far as it is shown; `resource` is all of it, for its explanation."""

    key: ServingKey
    pool: str
    mode: str
    planned: int | None
    ready: int | None
    max_num_seqs: int | None
    kv_bytes: Bytes | None
    slo: tuple[str, Seconds | None, Seconds | None] | None
    slo_met: str
    reason: str
    message: str
    decided_at: Seconds | None
    replicas: tuple[ReplicaRecord, ...]
    resource: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRow:
    name: str
    gpus: int | None
    gpus_in_use: int | None
    replicas: int | None
    servings: int
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One replica on a GPU; `memory` is what it may take at most, None where its shape is not known."""

    serving: ServingKey
    phase: str
    shape: Shape
    memory: Bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRow:
    """`dram_at` is None for a live `dram_active`, else when it was measured. `parent`: as in `LiveGpu`.

    `cut`: engines run on slices of it.
    """

    pool: str
    uuid: str
    node: str
    kind: str
    parent: str
    cut: bool
    engines: tuple[Engine, ...]
    dram_active: Ratio | None
    dram_at: Seconds | None
    attainable: Ratio | None
    memory: Bytes | None
    memory_used: Bytes | None
    tokens_per_second: float | None
    power: Watts | None

    @property
    def card(self) -> str:
        """The whole GPU that it is, or is cut from."""
        return self.parent or self.uuid


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingRow:
    """Latencies are in the statistic that is promised; `slo_met` is the status of that condition."""

    key: ServingKey
    pool: str
    mode: str
    ready: int | None
    planned: int | None
    max_num_seqs: int | None
    kv_bytes: Bytes | None
    requests_per_second: PerSecond | None
    statistic: str
    itl: Seconds | None
    itl_slo: Seconds | None
    ttft: Seconds | None
    ttft_slo: Seconds | None
    slo_met: str
    reason: str
    message: str
    decided_at: Seconds | None
    resource: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """`note` says why nothing is live, empty where it is. `problem` is why what is shown may be old or not whole."""

    pools: tuple[PoolRow, ...]
    gpus: tuple[GpuRow, ...]
    servings: tuple[ServingRow, ...]
    note: str
    problem: str


def pool_record(obj: Mapping[str, Any]) -> PoolRecord:
    status = obj.get("status", {})
    bad = [each for each in status.get("conditions", ()) if each["status"] != "True"]
    return PoolRecord(
        name=obj["metadata"]["name"],
        gpus=status.get("gpus"),
        gpus_in_use=status.get("gpusInUse"),
        replicas=status.get("replicas"),
        problem="; ".join(each.get("message") or each["reason"] for each in bad) if status else "not looked at yet",
        plan=plan_of(status),
    )


def serving_record(obj: Mapping[str, Any]) -> ServingRecord:
    metadata, spec, status = obj["metadata"], obj["spec"], obj.get("status", {})
    decision, shape = status.get("decision", {}), status.get("shape", {})
    conditions = {each["type"]: each["status"] for each in status.get("conditions", ())}
    return ServingRecord(
        key=ServingKey(namespace=metadata["namespace"], name=metadata["name"]),
        pool=spec.get("poolName", "default"),
        mode=spec.get("mode", "Active"),
        planned=len(status["placements"]) if "placements" in status else None,
        ready=status.get("readyReplicas"),
        max_num_seqs=shape.get("maxNumSeqs"),
        kv_bytes=shape.get("kvCacheMemoryBytes"),
        slo=_slo(spec.get("slo")),
        slo_met=conditions.get("SloMet", "Unknown"),
        reason=decision.get("reason", ""),
        message=decision.get("message", ""),
        decided_at=seconds_of(decision["at"]) if "at" in decision else None,
        replicas=tuple(
            ReplicaRecord(name=each["name"], gpu_uuid=each["gpu"], node=each["node"], phase=each["phase"])
            for each in status.get("placements", ())
        ),
        resource=obj,
    )


def _slo(slo: Mapping[str, Any] | None) -> tuple[str, Seconds | None, Seconds | None] | None:
    if slo is None:
        return None
    itl, ttft = slo.get("itlMilliseconds"), slo.get("ttftMilliseconds")
    return (
        slo.get("statistic", "P95"),
        None if itl is None else seconds_from_milliseconds(itl),
        None if ttft is None else seconds_from_milliseconds(ttft),
    )


def snapshot(
    pools: Sequence[PoolRecord], servings: Sequence[ServingRecord], live: Live, kind_of: KindOf, *,
    note: str = "", problem: str = "",
) -> Snapshot:  # fmt: skip
    shapes = {(each.serving, each.shape): each for pool in pools if pool.plan is not None for each in pool.plan.shapes}
    asked = {each.serving: each.slo for each in shapes.values() if each.slo is not None}
    return Snapshot(
        pools=tuple(
            PoolRow(
                name=each.name, gpus=each.gpus, gpus_in_use=each.gpus_in_use, replicas=each.replicas,
                servings=sum(one.pool == each.name for one in servings), problem=each.problem,
            )
            for each in pools
        ),
        gpus=tuple(_gpu_rows(pools, servings, live, shapes, kind_of)),
        servings=tuple(_serving_row(each, live.servings.get(each.key), asked.get(each.key)) for each in servings),
        note=note,
        problem=problem,
    )  # fmt: skip


def _gpu_rows(
    pools: Iterable[PoolRecord], servings: Iterable[ServingRecord], live: Live,
    shapes: Mapping[tuple[ServingKey, Shape], ChosenShape], kind_of: KindOf,
) -> Iterable[GpuRow]:  # fmt: skip
    """By pool, node and uuid, slices behind the GPU that they are cut from.

    Those of the plans, and those that the page knows besides.
    """
    phases = {each.name: each for serving in servings for each in serving.replicas}
    planned: dict[str, tuple[str, list[Placement]]] = {}
    judged: dict[str, tuple[Ratio, Seconds]] = {}
    for pool in pools:
        for each in () if pool.plan is None else pool.plan.placements:
            planned.setdefault(each.gpu_uuid, (pool.name, []))[1].append(each)
        for step in () if pool.plan is None else pool.plan.experiments:
            for compared in step.compared:
                if compared.what == DRAM and step.judged_at is not None:
                    judged[step.gpu_uuid] = Ratio(compared.measured), step.judged_at
    rows = []
    cut = {live.gpus[uuid].parent for uuid in planned if uuid in live.gpus}
    for uuid in {*planned, *live.gpus}:
        pool_name, placements = planned.get(uuid, ("", []))
        rows.append(_gpu_row(uuid, pool_name, placements, live.gpus.get(uuid), judged.get(uuid), phases, shapes,
                             kind_of, cut=uuid in cut))  # fmt: skip
    return sorted(rows, key=lambda row: (row.pool, row.node, row.card, row.uuid))


def _gpu_row(
    uuid: str, pool: str, placements: Sequence[Placement], seen: LiveGpu | None,
    judged: tuple[Ratio, Seconds] | None, replicas: Mapping[str, ReplicaRecord],
    shapes: Mapping[tuple[ServingKey, Shape], ChosenShape], kind_of: KindOf, *, cut: bool,
) -> GpuRow:  # fmt: skip
    chosen = [shapes.get((each.serving, each.shape)) for each in placements]
    kind = seen.kind if seen is not None else next((each.gpu_kind for each in chosen if each is not None), "")
    known = kind_of(kind) if kind else None
    memory = seen.memory if seen is not None else None if known is None else known.memory_bytes
    engines = tuple(
        Engine(
            serving=each.serving,
            phase=replicas[each.name].phase if each.name in replicas else "Planned",
            shape=each.shape,
            memory=None if shape is None or memory is None else Bytes(shape.utilization_hundredths * memory // 100),
        )
        for each, shape in sorted(zip(placements, chosen, strict=True), key=lambda pair: pair[0].name)
    )
    dram = None if seen is None else seen.dram_active
    nodes = (replicas[each.name].node for each in placements if each.name in replicas)
    return GpuRow(
        pool=seen.pool if seen is not None else pool,
        uuid=uuid,
        node=seen.node if seen is not None else next(nodes, ""),
        kind=kind,
        parent="" if seen is None else seen.parent,
        cut=cut,
        engines=engines,
        dram_active=judged[0] if dram is None and judged is not None else dram,
        dram_at=judged[1] if dram is None and judged is not None else None,
        attainable=None if seen is None else seen.attainable,
        memory=memory,
        memory_used=None if seen is None else seen.memory_used,
        tokens_per_second=None if seen is None else seen.tokens_per_second,
        power=None if seen is None else seen.power,
    )


def _serving_row(record: ServingRecord, seen: LiveServing | None, default: Slo | None) -> ServingRow:
    statistic, itl_slo, ttft_slo = record.slo or ("P95", None, None)
    if record.slo is None and default is not None:
        statistic, itl_slo, ttft_slo = default.statistic.value, default.itl, default.ttft
    # No engine tells a 99th percentile; the 95th is at most that.
    told = "Mean" if statistic == "Mean" else "P95"
    latencies = {} if seen is None else seen.latencies
    return ServingRow(
        key=record.key,
        pool=record.pool,
        mode=record.mode,
        ready=record.ready,
        planned=record.planned,
        max_num_seqs=record.max_num_seqs,
        kv_bytes=record.kv_bytes,
        requests_per_second=None if seen is None else seen.requests_per_second,
        statistic=told,
        itl=latencies.get(("itl", told)),
        itl_slo=itl_slo,
        ttft=latencies.get(("ttft", told)),
        ttft_slo=ttft_slo,
        slo_met=record.slo_met,
        reason=record.reason,
        message=record.message,
        decided_at=record.decided_at,
        resource=record.resource,
    )
