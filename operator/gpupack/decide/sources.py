"""Whether the traffic of every GPU is read, as a condition of the pool: from which counter, or why not and what to do.

What cannot be read moves nothing that runs; how far packing goes without it is not decided here.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Mapping

from gpupack.decide import explain
from gpupack.facts.interpretation import Facts
from gpupack.facts.observation import Cause, Missing
from gpupack.plan import Condition, ConditionType, Truth

MEASURED, LOOKING, NO_GPU, NOT_IN_USE = "Measured", "Looking", "NoGpu", "NotInUse"
TOLD = (MEASURED, NO_GPU, NOT_IN_USE, *(each.value for each in Cause), *explain.REFUSALS)
"""What may stand there and stays while a process that has just begun looks for itself."""


def gpus_measured(facts: Facts) -> Condition:
    if not facts.gpus:
        return _condition(Truth.UNKNOWN, NO_GPU, explain.no_gpu())
    known = {uuid: each for uuid, each in facts.gpus.items() if not _is_nobodys(facts, uuid)}
    if not known:
        return _condition(Truth.UNKNOWN, NOT_IN_USE, explain.not_in_use())
    missing = {uuid: each.dram_active for uuid, each in known.items() if isinstance(each.dram_active, Missing)}
    problem = facts.source_problem
    if not missing:
        counters = sorted({each.counter.value for each in known.values()})
        said = explain.gpus_measured(counters)
        return _condition(Truth.TRUE, MEASURED, said if problem is None else f"{said} {problem.message}")
    if _has_just_begun(facts):
        return _condition(Truth.UNKNOWN, LOOKING, explain.gpus_looked_at(), yields_to=TOLD)
    said = " ".join(
        explain.gpus_unmeasured(cause, _of_cause(missing, cause), facts.policy.unmeasured_saturation_ceiling)
        for cause in sorted({each.cause for each in missing.values()})
    )
    if problem is not None:
        return _condition(Truth.FALSE, problem.reason, f"{problem.message} {said}")
    tally = Tally(each.cause for each in missing.values())
    return _condition(Truth.FALSE, min(tally, key=lambda cause: (-tally[cause], cause)).value, said)


def _is_nobodys(facts: Facts, uuid: str) -> bool:
    """A slice, or a GPU that a device plugin gives out, is told of by the claim or the pod that has it: not before."""
    gpu = facts.gpus[uuid].gpu
    return (gpu.kind.is_slice or gpu.one_household) and not facts.replicas_on.get(uuid)


def _of_cause(missing: Mapping[str, Missing], cause: Cause) -> list[str]:
    return sorted(uuid for uuid, each in missing.items() if each.cause is cause)


def _has_just_begun(facts: Facts) -> bool:
    return facts.watched_since is not None and 0 <= facts.at - facts.watched_since < facts.policy.dcgm_stale_after


def _condition(truth: Truth, reason: str, message: str, yields_to: tuple[str, ...] = ()) -> Condition:
    return Condition(
        type=ConditionType.GPUS_MEASURED, truth=truth, reason=reason, message=message, yields_to=yields_to
    )  # fmt: skip
