"""Conditions as the API keeps them: what a decision says, with the time at which its truth last changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gpupack.kube.times import rfc3339
from gpupack.plan import Condition
from gpupack.units import Seconds

MESSAGE_LIMIT = 2048
"""The schema's maxLength; the API's own conditions allow 32768, but these are read in a terminal."""


def conditions_to_list(
    conditions: Iterable[Condition], previous: Iterable[Mapping[str, Any]], *, now: Seconds, generation: int
) -> list[dict[str, Any]]:
    """`lastTransitionTime` is kept while `status` stays, so that an unchanged condition is the same bytes."""
    before = {condition["type"]: condition for condition in previous}
    listed = []
    for condition in sorted(conditions, key=lambda each: each.type):
        kind, truth = condition.type.value, condition.truth.value
        old = before.get(kind)
        if old is not None and old["reason"] in condition.yields_to and old.get("observedGeneration") == generation:
            listed.append(dict(old))
            continue
        same_truth = old is not None and old["status"] == truth
        listed.append(
            {
                "type": kind,
                "status": truth,
                "reason": condition.reason,
                "message": condition.message[:MESSAGE_LIMIT],
                "observedGeneration": generation,
                "lastTransitionTime": old["lastTransitionTime"] if old is not None and same_truth else rfc3339(now),
            }
        )
    return listed
