"""GpuPool: its dict to a policy and to what the pool may use, the plan in its status, and its status to a dict.

The plan read back equals the plan written, but for parts of a microsecond in its times; order is kept. The schema has
no floats: numbers that are not whole are written as text that reads back as the same float.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gpupack.facts.counter import Scale
from gpupack.facts.gpu import Gpu
from gpupack.facts.placement import (
    ChosenShape,
    FaultyGpu,
    FormerShape,
    Lesson,
    Placement,
    Plan,
    Record,
    Wake,
    Withdrawn,
)
from gpupack.facts.policy import Policy
from gpupack.facts.serving import ServingKey, Shape, Sharing, Slo, Statistic
from gpupack.kube.conditions import conditions_to_list
from gpupack.kube.experiment_resource import experiment_of, experiment_to_dict, undone_of, undone_to_dict
from gpupack.kube.shape_resource import serving_key_of, shape_of, shape_to_dict
from gpupack.kube.source_resource import Labels, Sources, scales_of, scales_to_list, sources_of
from gpupack.kube.times import rfc3339_micro, seconds_of
from gpupack.plan import PoolStatus
from gpupack.units import Bytes, Ratio, Seconds, parse_bytes, ratio_from_percent

_DEFAULT = Policy()
GPUS_LIMIT = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolResource:
    """A GpuPool as read. Empty `gpu_products` and `gpu_uuids` allow every GPU; `plan` is None where there is none."""

    name: str
    uid: str
    generation: int
    resource_version: str
    created_at: Seconds
    policy: Policy
    node_selector: Labels
    gpu_products: tuple[str, ...]
    gpu_uuids: tuple[str, ...]
    sources: Sources
    plan: Plan | None
    status: Mapping[str, Any]
    scales: tuple[Scale, ...] = ()

    def selects(self, gpu: Gpu, node_labels: Mapping[str, str]) -> bool:
        """Whether this pool may use the GPU. `maxGpus` is not looked at: which of the GPUs is a decision."""
        known = not self.gpu_products or gpu.kind.name in self.gpu_products
        return known and self._reaches(gpu.uuid, node_labels)

    def would_select(self, uuid: str, node_labels: Mapping[str, str]) -> bool:
        """Whether it is only for the catalog that this pool does not use a GPU: it names no products."""
        return not self.gpu_products and self._reaches(uuid, node_labels)

    def looks_at(self, node_labels: Mapping[str, str]) -> bool:
        """Whether the node is one of those that the pool takes GPUs from."""
        return all(node_labels.get(key) == value for key, value in self.node_selector)

    def _reaches(self, uuid: str, node_labels: Mapping[str, str]) -> bool:
        return self.looks_at(node_labels) and (not self.gpu_uuids or uuid in self.gpu_uuids)


def pool_resource(obj: Mapping[str, Any]) -> PoolResource:
    """A GpuPool that passed its CRD. Raises KeyError or ValueError for what the CRD cannot have let through.

    A plan that cannot be read counts as lost: it is built anew from the pods.
    """
    metadata, spec, status = obj["metadata"], obj["spec"], obj.get("status", {})
    return PoolResource(
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata["generation"],
        resource_version=metadata["resourceVersion"],
        created_at=seconds_of(metadata["creationTimestamp"]),
        policy=policy_of(spec),
        node_selector=_labels(spec.get("nodeSelector", {})),
        gpu_products=tuple(spec.get("gpuProducts", ())),
        gpu_uuids=tuple(spec.get("gpuUuids", ())),
        sources=sources_of(spec),
        plan=plan_of(status),
        status=status,
        scales=scales_of(status),
    )


def policy_of(spec: Mapping[str, Any]) -> Policy:
    limits, times, metrics = spec.get("limits", {}), spec.get("times", {}), spec.get("metrics", {})

    def ratio(field: str, default: Ratio) -> Ratio:
        return ratio_from_percent(limits[field]) if field in limits else default

    def seconds(fields: Mapping[str, Any], field: str, default: Seconds) -> Seconds:
        return Seconds(float(fields[field])) if field in fields else default

    return Policy(
        sharing=frozenset(Sharing(each) for each in spec["sharing"]) if "sharing" in spec else _DEFAULT.sharing,
        max_gpus=spec.get("maxGpus", GPUS_LIMIT),
        gpu_reserve=parse_bytes(str(limits["gpuReserve"])) if "gpuReserve" in limits else _DEFAULT.gpu_reserve,
        saturation_ceiling=ratio("saturationCeilingPercent", _DEFAULT.saturation_ceiling),
        unmeasured_saturation_ceiling=ratio(
            "unmeasuredSaturationCeilingPercent", _DEFAULT.unmeasured_saturation_ceiling
        ),
        least_marginal_gain=ratio("leastMarginalGainPercent", _DEFAULT.least_marginal_gain),
        target_utilization=ratio("targetUtilizationPercent", _DEFAULT.target_utilization),
        kv_safety=ratio("kvSafetyPercent", _DEFAULT.kv_safety),
        warmup=seconds(times, "warmupSeconds", _DEFAULT.warmup),
        window=seconds(times, "windowSeconds", _DEFAULT.window),
        min_window_requests=times.get("minWindowRequests", _DEFAULT.min_window_requests),
        rate_windows=tuple(Seconds(float(each)) for each in times.get("rateWindowsSeconds", _DEFAULT.rate_windows)),
        scale_down_delay=seconds(times, "scaleDownDelaySeconds", _DEFAULT.scale_down_delay),
        pending_deadline=seconds(times, "pendingDeadlineSeconds", _DEFAULT.pending_deadline),
        remember_undone=seconds(times, "rememberUndoneSeconds", _DEFAULT.remember_undone),
        learning_interval=seconds(times, "learningSeconds", _DEFAULT.learning_interval),
        tick=seconds(times, "tickSeconds", _DEFAULT.tick),
        dcgm_period=sources_of(spec).period,
        engine_period=seconds(metrics, "enginePeriodSeconds", _DEFAULT.engine_period),
    )


def plan_of(status: Mapping[str, Any]) -> Plan | None:
    """The plan of a pool's status; None if there is none or it cannot be read."""
    written = status.get("plan")
    if written is None:
        return None
    try:
        return _plan(written)
    except (KeyError, ValueError, IndexError, TypeError):
        return None


def plan_to_status(plan: Plan) -> dict[str, Any]:
    """`status.plan`. Engines that are alike are written once and named by their index, or 512 GPUs would be too many
    bytes for one object."""
    engines: dict[tuple[ServingKey, Sharing, Shape, str], int] = {}
    placements = []
    for each in plan.placements:
        alike = (each.serving, each.sharing, each.shape, each.template_hash)
        index = engines.setdefault(alike, len(engines))
        placements.append(
            {"engine": index, "gpu": each.gpu_uuid, "slot": each.slot, "plannedAt": rfc3339_micro(each.planned_at)}
        )
    return {
        "engines": [
            {
                "serving": str(serving), "sharing": sharing.value, "shape": shape_to_dict(shape),
                "templateHash": template,
            }
            for serving, sharing, shape, template in engines
        ],
        "placements": placements,
        "shapes": [_chosen_to_dict(each) for each in plan.shapes],
        "records": [_record_to_dict(each) for each in plan.records],
        "withdrawn": [
            {"serving": str(each.serving), "gpu": each.gpu_uuid, "until": rfc3339_micro(each.until)}
            for each in plan.withdrawn
        ],
        "experiments": [experiment_to_dict(each) for each in plan.experiments],
        "undone": [undone_to_dict(each) for each in plan.undone],
        "faulty": [
            {"gpu": each.gpu_uuid, "why": each.why, "since": rfc3339_micro(each.since)} for each in plan.faulty
        ],
        "lessons": [
            {
                "serving": str(each.serving), "gpuKind": each.gpu_kind, "templateHash": each.template_hash,
                "overheadBytes": each.overhead, "refusal": each.refusal, "until": rfc3339_micro(each.until),
            }
            for each in plan.lessons
        ],
        "wakes": [_wake_to_dict(each) for each in plan.wakes],
    }  # fmt: skip


def pool_status_to_dict(
    status: PoolStatus, previous: Iterable[Mapping[str, Any]], *, now: Seconds, generation: int
) -> dict[str, Any]:
    """The whole `status`; `previous` are the conditions that stand there now.

    Without a plan there is no `plan`: an empty one would say that nothing is to run.
    """
    return {
        "observedGeneration": generation,
        "gpus": status.gpus,
        "gpusInUse": status.gpus_in_use,
        "replicas": status.replicas,
        **({"scales": scales_to_list(status.scales)} if status.scales else {}),
        **({} if status.plan is None else {"plan": plan_to_status(status.plan)}),
        "conditions": conditions_to_list(status.conditions, previous, now=now, generation=generation),
    }


def _plan(written: Mapping[str, Any]) -> Plan:
    engines = written["engines"]
    return Plan(
        placements=tuple(_placement(each, engines[each["engine"]]) for each in written["placements"]),
        shapes=tuple(_chosen(each) for each in written["shapes"]),
        records=tuple(_record(each) for each in written["records"]),
        withdrawn=tuple(
            Withdrawn(
                serving=serving_key_of(each["serving"]), gpu_uuid=each["gpu"], until=seconds_of(each["until"])
            )
            for each in written["withdrawn"]
        ),
        experiments=tuple(experiment_of(each) for each in written.get("experiments", ())),
        undone=tuple(undone_of(each) for each in written.get("undone", ())),
        faulty=tuple(
            FaultyGpu(gpu_uuid=each["gpu"], why=each["why"], since=seconds_of(each["since"]))
            for each in written.get("faulty", ())
        ),
        lessons=tuple(
            Lesson(
                serving=serving_key_of(each["serving"]), gpu_kind=each["gpuKind"], template_hash=each["templateHash"],
                overhead=Bytes(each["overheadBytes"]), refusal=each["refusal"], until=seconds_of(each["until"]),
            )
            for each in written.get("lessons", ())
        ),
        wakes=tuple(_wake(each) for each in written.get("wakes", ())),
    )  # fmt: skip


def _placement(fields: Mapping[str, Any], engine: Mapping[str, Any]) -> Placement:
    return Placement(
        serving=serving_key_of(engine["serving"]),
        gpu_uuid=fields["gpu"],
        slot=fields["slot"],
        sharing=Sharing(engine["sharing"]),
        shape=shape_of(engine["shape"]),
        template_hash=engine["templateHash"],
        planned_at=seconds_of(fields["plannedAt"]),
    )


def _chosen(fields: Mapping[str, Any]) -> ChosenShape:
    return ChosenShape(
        serving=serving_key_of(fields["serving"]),
        gpu_kind=fields["gpuKind"],
        shape=shape_of(fields["shape"]),
        replicas_per_gpu=fields["replicasPerGpu"],
        utilization_hundredths=fields["gpuMemoryUtilizationPercent"],
        inputs=fields["inputs"],
        chosen_at=seconds_of(fields["chosenAt"]),
        slo=_slo(fields["slo"]) if "slo" in fields else None,
        unreachable=_seconds(fields.get("unreachableSeconds")),
        better_since=seconds_of(fields["betterSince"]) if "betterSince" in fields else None,
        was=_former(fields["was"]) if "was" in fields else None,
    )


def _chosen_to_dict(chosen: ChosenShape) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "serving": str(chosen.serving),
        "gpuKind": chosen.gpu_kind,
        "shape": shape_to_dict(chosen.shape),
        "replicasPerGpu": chosen.replicas_per_gpu,
        "gpuMemoryUtilizationPercent": chosen.utilization_hundredths,
        "inputs": chosen.inputs,
        "chosenAt": rfc3339_micro(chosen.chosen_at),
    }
    if chosen.slo is not None:
        fields["slo"] = _slo_to_dict(chosen.slo)
    if chosen.unreachable is not None:
        fields["unreachableSeconds"] = repr(chosen.unreachable)
    if chosen.better_since is not None:
        fields["betterSince"] = rfc3339_micro(chosen.better_since)
    if chosen.was is not None:
        fields["was"] = {
            "shape": shape_to_dict(chosen.was.shape),
            "replicasPerGpu": chosen.was.replicas_per_gpu,
            "gpuMemoryUtilizationPercent": chosen.was.utilization_hundredths,
        }
    return fields


def _wake(fields: Mapping[str, Any]) -> Wake:
    return Wake(
        serving=serving_key_of(fields["serving"]),
        asked_at=seconds_of(fields["askedAt"]),
        ready_at=seconds_of(fields["readyAt"]) if "readyAt" in fields else None,
    )


def _wake_to_dict(wake: Wake) -> dict[str, Any]:
    ready = {} if wake.ready_at is None else {"readyAt": rfc3339_micro(wake.ready_at)}
    return {"serving": str(wake.serving), "askedAt": rfc3339_micro(wake.asked_at), **ready}


def _former(fields: Mapping[str, Any]) -> FormerShape:
    return FormerShape(
        shape=shape_of(fields["shape"]),
        replicas_per_gpu=fields["replicasPerGpu"],
        utilization_hundredths=fields["gpuMemoryUtilizationPercent"],
    )


def _slo_to_dict(slo: Slo) -> dict[str, Any]:
    latencies = {"itlSeconds": slo.itl, "ttftSeconds": slo.ttft}
    written = {name: repr(value) for name, value in latencies.items() if value is not None}
    return {**written, "statistic": slo.statistic.value, "assumed": slo.assumed}


def _slo(fields: Mapping[str, Any]) -> Slo:
    return Slo(
        itl=_seconds(fields.get("itlSeconds")),
        ttft=_seconds(fields.get("ttftSeconds")),
        statistic=Statistic(fields["statistic"]),
        assumed=fields["assumed"],
    )


def _seconds(text: str | None) -> Seconds | None:
    return None if text is None else Seconds(float(text))


def _record(fields: Mapping[str, Any]) -> Record:
    return Record(
        serving=serving_key_of(fields["serving"]),
        reason=fields["reason"],
        subject=fields["subject"],
        observed=float(fields["observed"]),
        limit=float(fields["limit"]),
        unit=fields["unit"],
        at_least=fields["atLeast"],
        wanted=fields["wanted"],
        planned=fields["planned"],
        message=fields["message"],
        at=seconds_of(fields["at"]),
        seen=fields.get("seen", ""),
        predicted=fields.get("predicted", ""),
        rejected=fields.get("rejected", ""),
    )


def _record_to_dict(record: Record) -> dict[str, Any]:
    told = {"seen": record.seen, "predicted": record.predicted, "rejected": record.rejected}
    return {
        "serving": str(record.serving),
        "reason": record.reason,
        "subject": record.subject,
        "observed": repr(record.observed),
        "limit": repr(record.limit),
        "unit": record.unit,
        "atLeast": record.at_least,
        "wanted": record.wanted,
        "planned": record.planned,
        "message": record.message,
        "at": rfc3339_micro(record.at),
        **{name: text for name, text in told.items() if text},
    }


def _labels(fields: Mapping[str, str]) -> Labels:
    return tuple(sorted(fields.items()))
