"""ModelProfile with `spec.measure`: its dict to nouns, its status to a dict, and the children that measure it.

The engine is a Job of one pod, written like a replica's pod, on a claim of its own for one free GPU of the profile's
kind. The claim is nobody's in gpupack's books (no manager's label), so the pool sees a GPU that others hold. Knows how
it is written, not when.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from gpupack.facts.measured import Failure, Fitted, Results
from gpupack.facts.serving import ProfilePoint, ServingKey
from gpupack.kube import labels, manifests
from gpupack.kube.profile_resource import DONE, point_of, point_to_dict
from gpupack.kube.quantities import number_text
from gpupack.kube.serving_resource import EngineTemplate
from gpupack.units import Seconds, microseconds, percent

MEASURES = "gpupack-measure"
"""Manager of the children: not gpupack's own, whose claims count as planned."""
PROFILE = f"{labels.GROUP}/profile"
"""Label of the children: the profile's uid, because its name may be too long for a label."""
COMPONENT = "profiling"
MESSAGE_LIMIT = 1024
UUIDS_IN_A_CLAIM = 128
"""A CEL expression of a claim has at most 10 KiB."""


class Phase(StrEnum):
    WAITING = "Waiting"
    STARTING = "Starting"
    MEASURING = "Measuring"
    CONFIRMING = "Confirming"
    SUSPENDED = "Suspended"
    DONE = DONE
    FAILED = "Failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What is to be measured. Lengths are means in tokens. `limits` None: 1, 2, 4, ... to `largest`."""

    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str
    deleting: bool
    model: str
    gpu_kind: str
    engine_version: str
    input_tokens: int
    output_tokens: int
    serving: ServingKey
    largest: int
    limits: tuple[int, ...] | None
    seconds: Seconds
    suspended: bool
    status: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Everything of a status. `inputs` is a digest of what the spec asks for, `template` that of the engine's pod."""

    inputs: str
    template: str
    phase: Phase
    message: str = ""
    settled: int = 0
    runs: int = 0
    results: Results = Results()  # noqa: RUF009 (frozen)
    chosen: int | None = None
    fitted: Fitted | None = None


def measurement_of(obj: Mapping[str, Any]) -> Measurement | None:
    """None for a profile whose points were given. Raises KeyError for what the CRD cannot have let through."""
    metadata, spec = obj["metadata"], obj["spec"]
    measure = spec.get("measure")
    if measure is None:
        return None
    limits = measure.get("batchLimits")
    return Measurement(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata["generation"],
        resource_version=metadata["resourceVersion"],
        deleting="deletionTimestamp" in metadata,
        model=spec["model"],
        gpu_kind=spec["gpu"],
        engine_version=spec["engineVersion"],
        input_tokens=spec["lengths"]["inputTokens"]["mean"],
        output_tokens=spec["lengths"]["outputTokens"]["mean"],
        serving=ServingKey(namespace=metadata["namespace"], name=measure["servingRef"]["name"]),
        largest=measure.get("largestBatch", 256),
        limits=None if limits is None else tuple(sorted(limits)),
        seconds=Seconds(measure.get("secondsPerPoint", 30)),
        suspended=measure.get("suspend", False),
        status=obj.get("status", {}).get("measured", {}),
    )


def inputs_of(measurement: Measurement) -> str:
    """Ten hex digits over what the spec asks for; whether it is suspended is no part of it."""
    parts = (
        measurement.model, measurement.gpu_kind, measurement.engine_version, measurement.input_tokens,
        measurement.output_tokens, str(measurement.serving), measurement.largest, measurement.limits,
        measurement.seconds,
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:10]


def is_over(measurement: Measurement) -> bool:
    """Whether everything that the spec asks for is settled; what becomes of the serving later changes nothing."""
    status = measurement.status
    return status.get("inputs") == inputs_of(measurement) and status.get("phase") in (Phase.DONE, Phase.FAILED)


def progress_of(measurement: Measurement, template: str) -> Progress:
    """What the status tells of such engines; nothing where it is of others."""
    inputs, status = inputs_of(measurement), measurement.status
    if (status.get("inputs"), status.get("template")) != (inputs, template):
        return Progress(inputs=inputs, template=template, phase=Phase.WAITING)
    confirmed, unconfirmed = status.get("confirmed"), status.get("unconfirmed")
    return Progress(
        inputs=inputs,
        template=template,
        phase=Phase(status["phase"]),
        message=status.get("message", ""),
        settled=status["settled"],
        runs=status["runs"],
        results=Results(
            points=tuple(point_of(each) for each in status.get("points", ())),
            failures=tuple(_failure(each) for each in status.get("failures", ())),
            confirmed=None if confirmed is None else point_of(confirmed),
            unconfirmed=None if unconfirmed is None else _failure(unconfirmed),
        ),
        chosen=status.get("chosenMaxNumSeqs"),
    )


def status_to_dict(progress: Progress, generation: int) -> dict[str, Any]:
    """Equal progress gives equal dicts."""
    results = progress.results
    fields = {
        "observedGeneration": generation,
        "inputs": progress.inputs,
        "template": progress.template,
        "phase": progress.phase.value,
        "message": progress.message or None,
        "settled": progress.settled,
        "runs": progress.runs,
        "progress": f"{progress.settled} of {progress.runs}" if progress.runs else None,
        "points": [point_to_dict(each) for each in results.points] or None,
        "failures": [_failure_to_dict(each) for each in results.failures] or None,
        "chosenMaxNumSeqs": progress.chosen,
        "confirmed": None if results.confirmed is None else point_to_dict(results.confirmed),
        "unconfirmed": None if results.unconfirmed is None else _failure_to_dict(results.unconfirmed),
        "fitted": None if progress.fitted is None else _fitted_to_dict(progress.fitted, results.points),
    }
    return {name: value for name, value in fields.items() if value is not None}


def job_name(measurement: Measurement, template: EngineTemplate, limit: int, *, confirms: bool) -> str:
    """At most 52 characters, for the pods' names add to it. Another limit, and the confirmation, is another Job."""
    tail = f"-{inputs_of(measurement)[:5]}{template.hash[:5]}-{limit}{'-again' if confirms else ''}"
    return f"measure-{measurement.name}"[: 52 - len(tail)].rstrip("-.") + tail


def claim_name(measurement: Measurement) -> str:
    return f"gpupack-measure-{measurement.uid}"


def claim(measurement: Measurement, uuids: Sequence[str]) -> dict[str, Any]:
    """One GPU of these, whole: nothing shares it while it is measured."""
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": _metadata(measurement, claim_name(measurement)),
        "spec": {"devices": {"requests": [manifests.gpu_request(uuids[:UUIDS_IN_A_CLAIM])]}},
    }


def job(measurement: Measurement, name: str, args: Sequence[str], template: EngineTemplate) -> dict[str, Any]:
    """One engine that is never started again by itself: a start that fails is a result.

    It has no API key: the client that measures it has no right to read Secrets.
    """
    own = template.pod.get("metadata", {})
    metadata = _metadata(measurement, name)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "backoffLimit": 0,
            "template": {
                "metadata": {
                    "labels": {**own.get("labels", {}), **metadata["labels"]},
                    "annotations": dict(own.get("annotations", {})),
                },
                "spec": manifests.engine_spec(
                    args, replace(template, api_key_secret=None), claim_name(measurement), restart_policy="Never"
                ),
            },
        },
    }


def status_body(measurement: Measurement, status: Mapping[str, Any]) -> dict[str, Any]:
    """For an apply of `/status` that fails if somebody wrote the profile since it was seen."""
    return {
        "apiVersion": labels.API_VERSION,
        "kind": "ModelProfile",
        "metadata": {
            "name": measurement.name,
            "namespace": measurement.namespace,
            "uid": measurement.uid,
            "resourceVersion": measurement.resource_version,
        },
        "status": {"measured": dict(status)},
    }


def selector(measurement: Measurement) -> str:
    return f"{PROFILE}={measurement.uid}"


def failed(job: Mapping[str, Any]) -> bool:
    conditions: Iterable[Mapping[str, Any]] = job.get("status", {}).get("conditions", ())
    ended = any(each["type"] in ("Failed", "FailureTarget") and each["status"] == "True" for each in conditions)
    return ended or bool(job.get("status", {}).get("failed"))


def _metadata(measurement: Measurement, name: str) -> dict[str, Any]:
    owner = {
        "apiVersion": labels.API_VERSION, "kind": "ModelProfile", "name": measurement.name, "uid": measurement.uid,
        "controller": True, "blockOwnerDeletion": True,
    }  # fmt: skip
    return {
        "name": name,
        "namespace": measurement.namespace,
        "labels": {
            labels.NAME: "vllm",
            labels.COMPONENT: COMPONENT,
            labels.PART_OF: labels.MANAGED_BY,
            labels.MANAGER: MEASURES,
            PROFILE: measurement.uid,
        },
        "ownerReferences": [owner],
    }


def _failure(fields: Mapping[str, Any]) -> Failure:
    return Failure(max_num_seqs=fields["maxNumSeqs"], attempts=fields["attempts"], problem=fields["message"])


def _failure_to_dict(failure: Failure) -> dict[str, Any]:
    return {
        "maxNumSeqs": failure.max_num_seqs,
        "attempts": failure.attempts,
        "message": failure.problem[:MESSAGE_LIMIT],
    }


def _fitted_to_dict(fitted: Fitted, points: Sequence[ProfilePoint]) -> dict[str, Any]:
    def hundred(share: float) -> str:
        return number_text(round(percent(share), 2))

    return {
        "stepMicroseconds": number_text(microseconds(fitted.seconds_per_step)),
        "sequenceMicroseconds": number_text(microseconds(fitted.host_seconds_per_sequence)),
        "kvReadPercent": hundred(fitted.kv_read_efficiency),
        "residuals": [
            {"maxNumSeqs": point.max_num_seqs, "throughputPercent": hundred(tokens), "itlPercent": hundred(itl)}
            for point, (tokens, itl) in zip(points, fitted.misses, strict=True)
        ],
    }
