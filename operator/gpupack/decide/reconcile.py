"""One tick: from an observation to what should be written and done. Pure; equal in, equal out.

Plan first: if the plan changes, this tick only writes it, and the next one acts on it as it is read back. A plan that
was lost is built anew from the replicas' labels and restarts nothing. Data that is stale holds everything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace

from gpupack.decide import explain, report
from gpupack.decide.appraise import appraise
from gpupack.decide.board import Board
from gpupack.decide.capacity import capacity_of
from gpupack.decide.demand import Basis, Demand, ask
from gpupack.decide.experiment import judge
from gpupack.decide.faults import faulty_gpus, learn
from gpupack.decide.hold import placement_of, withdraw
from gpupack.decide.pack import went_past
from gpupack.decide.prospect import Prospects
from gpupack.decide.recording import Decision, record_of, tells, told
from gpupack.decide.shapes import choose
from gpupack.decide.steps import obstacle, steps
from gpupack.decide.turn import appraised, take_turn
from gpupack.decide.undone import forget
from gpupack.decide.wake import wakes
from gpupack.facts.estimate import Estimate, Source
from gpupack.facts.interpretation import Facts, interpret, is_leaving
from gpupack.facts.observation import Observation, ReplicaSeen
from gpupack.facts.placement import Plan, Record
from gpupack.facts.policy import Policy
from gpupack.facts.running import Appraisal
from gpupack.facts.serving import Serving, ServingKey
from gpupack.plan import Outcome, Reason, Step, Unit, Verdict
from gpupack.units import Seconds


def reconcile(observation: Observation, facts: Facts | None = None) -> Outcome:
    """`facts` are those of the observation, from a caller who has interpreted it already."""
    if facts is None:
        facts = interpret(observation)
    if facts.stale or facts.pool_problem is not None:
        return _held(facts)
    prospects = Prospects(facts)
    before = adopt(facts) if facts.plan is None else facts.plan
    before = replace(before, faulty=faulty_gpus(facts, before.faulty))
    shapes = choose(facts, prospects, before.shapes)
    board = Board(facts, replace(before, shapes=shapes), prospects)
    old = {each.serving: each for each in before.records}
    verdicts: list[tuple[ServingKey, Verdict]] = []
    records, look_again = dict(old), tuple[str, ...]()
    appraisals = {key: appraise(facts, each) for key, each in facts.servings.items() if each.observes}
    if facts.plan is not None:
        records, look_again = _decide(board, old, appraisals, verdicts)
    plan = Plan(
        placements=board.placements,
        shapes=tuple(sorted(board.shapes.values(), key=lambda each: (each.serving, each.gpu_kind))),
        records=tuple(records[key] for key in sorted(records)),
        withdrawn=tuple(board.withdrawn[key] for key in sorted(board.withdrawn)),
        experiments=tuple(board.experiments[uuid] for uuid in sorted(board.experiments)),
        undone=tuple(sorted(board.undone, key=lambda each: (each.serving, each.at, each.neighbours))),
        faulty=tuple(board.faulty[uuid] for uuid in sorted(board.faulty)),
        lessons=tuple(board.lessons[key] for key in sorted(board.lessons)),
        wakes=wakes(board),
    )
    changed = plan != facts.plan
    statuses = [report.serving_status(board, each, records.get(key)) for key, each in facts.servings.items()]
    statuses = [report.with_appraisal(each, appraisals.get(each.serving)) for each in statuses]
    statuses += [report.refused_status(facts, each) for each in facts.refused.values()]
    return Outcome(
        pool_status=report.pool_status(facts, plan),
        plan_changed=changed,
        serving_statuses=tuple(sorted(statuses, key=lambda each: each.serving)),
        actions=tells(old, records, before, plan) if changed else steps(board),
        verdicts=tuple(verdicts),
        wake_in=_wake_in(facts.policy, changed=changed, look_again=bool(look_again)),
        look_again=look_again,
    )


def _wake_in(policy: Policy, *, changed: bool, look_again: bool) -> Seconds:
    if changed:
        return policy.least_gap
    return Seconds(min(policy.tick, policy.look_again_after)) if look_again else policy.tick


def adopt(facts: Facts) -> Plan:
    """The plan that the replicas' labels tell of. Of two in one slot the younger is the plan, the older its past."""
    slots: dict[tuple[ServingKey, str, int], ReplicaSeen] = {}
    for key, replicas in facts.replicas_of.items():
        if key not in facts.servings and key not in facts.refused:
            continue
        for each in replicas:
            place = (key, each.gpu_uuid, each.slot)
            rival = slots.get(place)
            if is_leaving(each) or (rival is not None and rival.created_at > each.created_at):
                continue
            slots[place] = each
    return Plan(placements=tuple(placement_of(each) for each in slots.values()))


def _held(facts: Facts) -> Outcome:
    """Nothing may be decided: the plan stays, and the pool says why."""
    missing = [
        (key, Verdict(
            subject=str(key), reason=Reason.DATA_MISSING, observed=Estimate.exact(len(facts.stale), Source.MEASURED),
            limit=Estimate.exact(0.0, Source.MEASURED), unit=Unit.NONE, detail=f"{name} is stale",
        ))
        for key in facts.servings
        for name in facts.stale[:1]
    ]  # fmt: skip
    return Outcome(
        pool_status=report.pool_status(facts, facts.plan),
        plan_changed=False,
        serving_statuses=(),
        actions=(),
        verdicts=tuple(missing),
        wake_in=facts.policy.tick,
    )


def _decide(
    board: Board,
    old: Mapping[ServingKey, Record],
    appraisals: Mapping[ServingKey, Appraisal],
    verdicts: list[tuple[ServingKey, Verdict]],
) -> tuple[dict[ServingKey, Record], tuple[str, ...]]:
    """Move the board by at most one step on every GPU, and record why; also whose engines are to be looked at again."""
    facts = board.facts
    _forget(board)
    learn(board)
    given_up = withdraw(board, lambda placement: obstacle(board, placement))
    demands = {
        key: ask(each, facts, len(board.of[key]), capacity_of(board, each), _most(board, each))
        for key, each in facts.servings.items()
    }
    for key, serving in facts.servings.items():
        rate = demands[key].rate if demands[key].rate is not None else serving.declared_rate
        if rate is not None:
            board.rates[key] = rate
    forget(board)
    taken_back = judge(board, {key: demand.floor for key, demand in demands.items()})
    records: dict[ServingKey, Record] = {key: old[key] for key in facts.refused if key in old}
    for key, appraisal in appraisals.items():
        said = appraised(facts.servings[key], appraisal)
        records[key] = record_of(key, said, 0, len(board.of[key]), old.get(key), facts)
    decisions = [
        (each, take_turn(board, each, demands[each.key], old.get(each.key), given_up, taken_back, verdicts))
        for each in _in_turn(board, demands)
        if each.key not in appraisals
    ]
    board.release()
    against: dict[ServingKey, list[Verdict]] = defaultdict(list)
    for key, verdict in verdicts:
        against[key].append(verdict)
    moved: set[str] | None = None
    for serving, decision in decisions:
        key, demand, was = serving.key, demands[serving.key], old.get(serving.key)
        planned = len(board.of[key])
        if was is not None and decision is not None and decision.reason == Reason.DATA_MISSING and _is_new(facts):
            decision = None
        if decision is not None and demand.basis is Basis.MANUAL and decision.reason == Reason.DEMAND_MET:
            moved = _moved(board) if moved is None else moved
            decision = _with_what_it_goes_past(board, serving, decision, was, moved)
        if decision is not None:
            wanted = planned if decision.reason in (Step.REMOVED, Step.ASLEEP) else demand.wanted
            records[key] = record_of(key, decision, wanted, planned, was, facts)
            if records[key] is not was:
                records[key] = told(records[key], board, demand, against[key])
        elif was is not None:
            records[key] = was
    again = [key for key, demand in demands.items() if demand.look_again]
    return records, tuple(sorted(each.name for key in again for each in facts.replicas_of.get(key, ())))


def _is_new(facts: Facts) -> bool:
    """Whether this process has not watched for a window yet: nothing is wrong with readings that it has not taken."""
    return facts.watched_since is not None and 0 <= facts.at - facts.watched_since < facts.policy.rates_told_after


def _moved(board: Board) -> set[str]:
    """GPUs on which the plan is another one than before this tick."""
    before = board.facts.plan.placements if board.facts.plan else ()
    return {each.gpu_uuid for each in {*board.placements} ^ {*before}}


def _with_what_it_goes_past(
    board: Board, serving: Serving, decision: Decision, was: Record | None, moved: Collection[str]
) -> Decision:
    """A manual count that is met, and what it goes past, as that was when the engines on its GPUs last changed.

    Live lengths move a prediction at every tick; what was said stays until something was done.
    """
    placements = board.of[serving.key]
    met = was is not None and was.reason in (Reason.DEMAND_MET, Step.GOES_PAST) and was.planned == len(placements)
    if was is not None and met and not any(each.gpu_uuid in moved for each in placements):
        return replace(decision, reason=was.reason, message=was.message)
    past = went_past(board, serving)
    if not past:
        return decision
    return replace(decision, reason=Step.GOES_PAST, message=f"{decision.message} {explain.goes_past(past)}")


def _most(board: Board, serving: Serving) -> int:
    """What the serving can have at most: its own limit, or R* on every GPU of the pool."""
    most = serving.scaling.max_replicas
    if most is not None:
        return most
    chosen = [(count, board.shapes.get((serving.key, kind))) for kind, count in board.count_by_kind.items()]
    return sum(count * each.replicas_per_gpu for count, each in chosen if each is not None)


def _in_turn(board: Board, demands: Mapping[ServingKey, Demand]) -> list[Serving]:
    """Those without their least count first, then the older ones; ties by name."""
    return sorted(
        board.facts.servings.values(),
        key=lambda each: (len(board.of[each.key]) >= demands[each.key].floor, each.created_at, each.key),
    )


def _forget(board: Board) -> None:
    """Placements of servings that are gone, and on GPUs that are gone with their pod; deadlines that are over.

    One that is further away than a deadline is long was set by a clock that was ahead, and is over as well.
    """
    facts = board.facts
    for placement in board.placements:
        known = placement.serving in facts.servings or placement.serving in facts.refused
        pod = board.pod(placement)
        lost = placement.gpu_uuid not in facts.gpus and (pod is None or pod.deletion_at is not None)
        if not known or lost:
            board.remove(placement)
    last = facts.at + facts.policy.pending_deadline
    board.withdrawn = {
        key: each
        for key, each in board.withdrawn.items()
        if facts.at < each.until <= last and each.serving in facts.servings
    }
    board.touched.clear()
