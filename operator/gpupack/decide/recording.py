"""What was decided for one serving, as it is recorded in the plan and told as an event. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from gpupack.decide import explain
from gpupack.decide.board import Board
from gpupack.decide.demand import Demand
from gpupack.facts.experiment import Judgement, is_news
from gpupack.facts.interpretation import Facts
from gpupack.facts.placement import Plan, Record
from gpupack.facts.serving import ServingKey
from gpupack.plan import Reason, Step, Tell, Unit, Verdict

WANTED_MOVES = 0.2
"""A wanted count that moves by no more than one or this share is noise of the load, not another decision."""
WOKE = "Woke"
WARNINGS: frozenset[str] = frozenset(
    (
        Reason.DATA_MISSING,
        Reason.ROLLED_BACK,
        Step.WITHDRAWN,
        Step.SHARING_NOT_ALLOWED,
        Step.DTYPE_NOT_SUPPORTED,
        Step.NO_GPU,
        Step.NO_ENGINE,
        Step.ENGINE_REFUSED,
        Step.MPS_LOST,
        Step.HOST_LOST,
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What was decided for one serving, as it will be recorded; the sides of the comparison in `unit`."""

    reason: str
    subject: str
    message: str
    observed: float = 0.0
    limit: float = 0.0
    unit: Unit = Unit.NONE
    at_least: bool = False


def stopped(verdict: Verdict) -> Decision:
    return Decision(
        reason=verdict.reason.value,
        subject=verdict.subject,
        message=explain.verdict(verdict),
        observed=verdict.observed.value,
        limit=verdict.limit.value,
        unit=verdict.unit,
        at_least=verdict.at_least,
    )


def record_of(
    key: ServingKey, decision: Decision, wanted: int, planned: int, was: Record | None, facts: Facts
) -> Record:
    """The last record for as long as nothing but its numbers would change."""
    record = Record(
        serving=key,
        reason=str(decision.reason),
        subject=decision.subject,
        observed=decision.observed,
        limit=decision.limit,
        unit=decision.unit.value,
        at_least=decision.at_least,
        wanted=wanted,
        planned=planned,
        message=decision.message,
        at=facts.at,
    )
    if was is None or _gist(was) != _gist(record):
        return record
    return was if abs(was.wanted - wanted) <= max(1, WANTED_MOVES * was.wanted) else record


def _gist(record: Record) -> tuple[str, str, str, int, str]:
    past = record.message if record.reason in (Step.GOES_PAST, Step.ADVISED, Step.NO_ENGINE) else ""
    return record.reason, record.subject, record.unit, record.planned, past


def told(record: Record, board: Board, demand: Demand, against: Iterable[Verdict]) -> Record:
    """The record of a new decision with what it rests on, what it should bring, and what was not done instead."""
    experiment = board.experiments.get(record.subject)
    is_its = experiment is not None and (experiment.serving, experiment.last_at) == (record.serving, record.at)
    others = [each for each in against if (each.reason, each.subject) != (record.reason, record.subject)]
    return replace(
        record,
        seen=explain.seen(demand.basis.value, demand.rate, demand.utilization, demand.wanted),
        predicted=explain.expected(experiment) if experiment is not None and is_its else "",
        rejected=explain.rejected(others),
    )


def tells(
    old: Mapping[ServingKey, Record], new: Mapping[ServingKey, Record], before: Plan, after: Plan
) -> tuple[Tell, ...]:
    """An event for every serving whose decision is another one now, for every verdict and for who woke; a wanted count
    is none.
    """
    judged = {each.gpu_uuid: each for each in before.experiments}
    told = [
        Tell(
            serving=each.serving, warning=each.judgement is Judgement.MISSED, reason=each.judgement.value,
            message=explain.outcome(each),
        )
        for each in after.experiments
        if each.judgement is not None and is_news(each, judged.get(each.gpu_uuid))
    ]  # fmt: skip
    told += [
        Tell(serving=each.serving, warning=False, reason=WOKE, message=explain.woke(each.took))
        for each in after.wakes
        if each.took is not None and each not in before.wakes
    ]
    for key, record in sorted(new.items()):
        was = old.get(key)
        if was is record or (was is not None and _gist(was) == _gist(record)):
            continue
        needed = record.reason not in (Step.ADVISED, Step.SUSPENDED) and record.planned == 0 and record.wanted > 0
        warning = record.reason in WARNINGS or needed
        told.append(Tell(serving=key, warning=warning, reason=record.reason, message=record.message))
    return tuple(told)
