"""gpupack's own children as they stand in the cluster: pods to replicas, claims, Services, budgets.

Labels and annotations hold everything that a plan needs, so that a lost status is rebuilt from here. What is not ours
is None. Knows how a child says it (manifests.py wrote it), not whether it is as it should be.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gpupack.facts.engine_args import PORT
from gpupack.facts.observation import ClaimSeen, Phase, ReplicaSeen, quoted
from gpupack.facts.placement import Placement, PredictedEffect
from gpupack.facts.serving import ServingKey, Sharing
from gpupack.kube import labels
from gpupack.kube.shape_resource import shape_of
from gpupack.kube.times import seconds_of
from gpupack.kube.trouble import trouble_of
from gpupack.units import Ratio, Seconds

Child = Mapping[str, Any]
"""A child as the API server has it, or as much of it as is looked at."""

CRASHED = "CrashLoopBackOff"
"""A kubelet's reason that says only that the container failed before; how it failed stands in its last state."""
ERROR = re.compile(r"[\w.]*(?:Error|Exception): .*")
VALUE_ERROR = re.compile(r"\s+Value error, (.*)")
"""vLLM checks its configuration with pydantic, which writes what is wrong on the line after the error's name."""
MESSAGE_LIMIT = 400
"""Characters of an engine's own words that a condition repeats."""


def replica_of(pod: Mapping[str, Any]) -> ReplicaSeen | None:
    """A pod of ours as a replica; None for any other. Raises KeyError or ValueError if its marks were changed."""
    metadata = pod["metadata"]
    marks, notes = metadata.get("labels", {}), metadata.get("annotations", {})
    if labels.SERVING not in marks or marks.get(labels.MANAGER) != labels.MANAGED_BY:
        return None
    placement = Placement(
        serving=ServingKey(namespace=metadata["namespace"], name=marks[labels.SERVING]),
        gpu_uuid=marks[labels.GPU],
        slot=int(marks[labels.SLOT]),
        sharing=Sharing(notes[labels.SHARING]),
        shape=shape_of(json.loads(notes[labels.SHAPE])),
        template_hash=marks[labels.TEMPLATE],
        planned_at=seconds_of(metadata["creationTimestamp"]),
    )
    found = _replica(pod, placement)
    return replace(
        found,
        content_hash=marks[labels.SHAPE],
        in_service=marks.get(labels.IN_SERVICE) == labels.TRUE,
        predicted=_predicted(notes.get(labels.PREDICTED)),
        utilization_hundredths=int(notes[labels.UTILIZATION]),
        marked=marks[labels.SHAPE] == placement.content_hash and found.name == placement.name,
    )


def as_planned(pod: Mapping[str, Any], placement: Placement) -> ReplicaSeen:
    """A pod whose marks were changed as the replica that the plan says it is."""
    return replace(_replica(pod, placement), marked=False)


def is_child(pod: Mapping[str, Any]) -> bool:
    """Whether a ModelServing controls it, whatever its labels say."""
    return any(
        owner.get("controller", False) and owner["kind"] == "ModelServing" and owner["apiVersion"] == labels.API_VERSION
        for owner in pod["metadata"].get("ownerReferences", ())
    )


def _replica(pod: Mapping[str, Any], placement: Placement) -> ReplicaSeen:
    metadata, spec, status = pod["metadata"], pod["spec"], pod.get("status", {})
    address = status.get("podIP")
    containers = status.get("containerStatuses", ())
    message = _message(status)
    trouble, short = trouble_of(message)
    return ReplicaSeen(
        name=metadata["name"],
        uid=metadata["uid"],
        serving=placement.serving,
        gpu_uuid=placement.gpu_uuid,
        slot=placement.slot,
        sharing=placement.sharing,
        shape=placement.shape,
        template_hash=placement.template_hash,
        content_hash=placement.content_hash,
        phase=phase_of(metadata, spec, status),
        created_at=seconds_of(metadata["creationTimestamp"]),
        ready_at=_ready_at(status),
        deletion_at=asked_to_stop_at(metadata),
        in_service=True,
        address=None if address is None else f"{address}:{PORT}",
        restarts=max((each.get("restartCount", 0) for each in containers), default=0),
        message=message,
        trouble=trouble,
        short=short,
    )


def is_ready(pod: Mapping[str, Any]) -> bool:
    return "deletionTimestamp" not in pod["metadata"] and _ready_at(pod.get("status", {})) is not None


def message_of(pod: Mapping[str, Any]) -> str:
    """Why a pod is not ready, or how it ended; empty where nobody says."""
    return _message(pod.get("status", {}))


def pool_of_child(child: Mapping[str, Any]) -> str | None:
    """The pool whose task made this child; None if gpupack did not make it."""
    marks: Mapping[str, str] = child["metadata"].get("labels", {})
    return marks.get(labels.POOL) if marks.get(labels.MANAGER) == labels.MANAGED_BY else None


def claim_of(claim: Mapping[str, Any]) -> ClaimSeen | None:
    """A ResourceClaim of ours; None for any other."""
    metadata = claim["metadata"]
    marks = metadata.get("labels", {})
    if labels.GPU not in marks or marks.get(labels.MANAGER) != labels.MANAGED_BY:
        return None
    return ClaimSeen(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        gpu_uuid=marks[labels.GPU],
        sharing=Sharing(marks[labels.SHARING]),
        owners=tuple(sorted(owner["uid"] for owner in metadata.get("ownerReferences", ()))),
        deleting="deletionTimestamp" in metadata,
    )


def shared_child_of(child: Child) -> Child | None:
    """What gpupack wrote of a Service or PodDisruptionBudget of ours: names, marks, owners and spec; else None."""
    metadata = child["metadata"]
    marks = metadata.get("labels", {})
    if not {labels.SERVING, labels.HOUSEHOLD} & {*marks} or marks.get(labels.MANAGER) != labels.MANAGED_BY:
        return None
    kept = {name: metadata.get(name) for name in ("name", "namespace", "labels", "ownerReferences")}
    return {"metadata": kept, "spec": child["spec"]}


def stands(there: Child | None, applied: Child) -> bool:
    """Whether everything that was applied is still there. Others may have added to it, but not to a selector."""
    return there is not None and all(_holds(there[part], applied[part]) for part in ("metadata", "spec"))


def _holds(there: object, wanted: object) -> bool:
    if there == wanted:
        return True
    if isinstance(wanted, Mapping):
        return isinstance(there, Mapping) and all(
            there.get(name) == value if name == "selector" else _holds(there.get(name), value)
            for name, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(there, list) and all(any(_holds(each, value) for each in there) for value in wanted)
    return False


def min_available_of(budget: Mapping[str, Any]) -> int | None:
    """The budget's integer; None where somebody wrote a percentage or the other bound instead."""
    least = budget["spec"].get("minAvailable")
    return least if isinstance(least, int) else None


def phase_of(metadata: Mapping[str, Any], spec: Mapping[str, Any], status: Mapping[str, Any]) -> Phase:
    if "deletionTimestamp" in metadata:
        return Phase.STOPPING
    if status.get("phase") in ("Failed", "Succeeded"):
        return Phase.FAILED
    if "nodeName" not in spec:
        return Phase.PENDING
    return Phase.READY if _ready_at(status) is not None else Phase.STARTING


def _ready_at(status: Mapping[str, Any]) -> Seconds | None:
    for condition in status.get("conditions", ()):
        if condition["type"] == "Ready" and condition["status"] == "True":
            return seconds_of(condition["lastTransitionTime"])
    return None


def asked_to_stop_at(metadata: Mapping[str, Any]) -> Seconds | None:
    """`deletionTimestamp` is when the grace ends; it was asked for that much earlier."""
    if "deletionTimestamp" not in metadata:
        return None
    return Seconds(seconds_of(metadata["deletionTimestamp"]) - metadata.get("deletionGracePeriodSeconds", 0))


def _message(status: Mapping[str, Any]) -> str:
    """Why it is not ready, in Kubernetes' own words: the scheduler's, the kubelet's or the container's last end.

    What the container itself wrote is quoted, for it may be anything.
    """
    if said := status.get("message"):
        return str(said)
    for container in status.get("containerStatuses", ()):
        state, last = container.get("state", {}), container.get("lastState", {})
        waiting, ended = state.get("waiting"), state.get("terminated") or last.get("terminated")
        if waiting is not None and not (waiting.get("reason") == CRASHED and ended):
            return _words(waiting.get("reason", ""), waiting.get("message", ""))
        if ended is not None:
            return _words(ended.get("reason", ""), quoted(last_words(ended.get("message", ""))))
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message", ""))
    return ""


def _words(reason: str, message: str) -> str:
    return f"{reason}: {message}" if message else reason


def last_words(log: str) -> str:
    """The error that the end of a log names. vLLM's last line often only points to the one that tells it."""
    lines = log.splitlines()
    errors = [match.group() for line in lines if (match := ERROR.search(line))]
    errors += [f"ValueError: {match[1]}" for line in lines if (match := VALUE_ERROR.fullmatch(line))]
    telling = [each for each in errors if "root cause above" not in each]
    return (telling or errors or log.strip().splitlines() or [""])[-1][:MESSAGE_LIMIT]


def _predicted(text: str | None) -> PredictedEffect | None:
    if text is None:
        return None
    fields = json.loads(text)
    return PredictedEffect(
        tokens_per_second_before=fields["tokensPerSecondBefore"],
        tokens_per_second_after=fields["tokensPerSecondAfter"],
        saturation_after=Ratio(fields["saturationAfter"]),
        itl_after=Seconds(fields["itlAfterSeconds"]),
        attainable=Ratio(fields["attainable"]) if "attainable" in fields else None,
    )


def predicted_to_dict(predicted: PredictedEffect) -> dict[str, float]:
    return {
        "tokensPerSecondBefore": predicted.tokens_per_second_before,
        "tokensPerSecondAfter": predicted.tokens_per_second_after,
        "saturationAfter": predicted.saturation_after,
        "itlAfterSeconds": predicted.itl_after,
        **({} if predicted.attainable is None else {"attainable": predicted.attainable}),
    }
