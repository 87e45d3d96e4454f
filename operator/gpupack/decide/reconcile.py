"""One tick: from an observation to what should be written and done. Pure; equal in, equal out.

Plan first: if the plan changes, this tick only writes it, and the next one acts on it as it is read back. A plan that
was lost is built anew from the replicas' labels and restarts nothing. Data that is stale holds everything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from gpupack.decide import explain, report
from gpupack.decide.appraise import appraise
from gpupack.decide.board import Board
from gpupack.decide.capacity import capacity_of
from gpupack.decide.demand import Basis, Demand, ask
from gpupack.decide.evidence import standing
from gpupack.decide.experiment import TakenBack, begin, judge
from gpupack.decide.hold import GivenUp, Renewal, is_settled, placement_of, renew, to_give_up, withdraw
from gpupack.decide.pack import Survey, effect, gain_of, sharing_of, survey, went_past
from gpupack.decide.prospect import Prospects
from gpupack.decide.shapes import choose
from gpupack.decide.steps import obstacle, steps
from gpupack.decide.undone import ANOTHER_SHAPE, forget
from gpupack.facts.estimate import Estimate, Source
from gpupack.facts.experiment import Experiment, Judgement, is_news
from gpupack.facts.interpretation import Facts, interpret, is_leaving
from gpupack.facts.observation import Observation, ReplicaSeen
from gpupack.facts.placement import Placement, Plan, Record
from gpupack.facts.policy import Policy
from gpupack.facts.running import Appraisal
from gpupack.facts.serving import Mode, Serving, ServingKey, Sharing
from gpupack.plan import Outcome, Reason, Step, Tell, Unit, Verdict
from gpupack.units import Seconds

WANTED_MOVES = 0.2
"""A wanted count that moves by no more than one or this share is noise of the load, not another decision."""
PREDICTED: frozenset[str] = frozenset((Reason.LATENCY_SLO, Reason.BANDWIDTH_CEILING, Reason.MARGINAL_GAIN))
STOPS: frozenset[str] = frozenset(Reason)
CALMER = 0.9
"""The load must fall below this share of the target before it is told as met where one more was wanted."""
WARNINGS: frozenset[str] = frozenset(
    (
        Reason.DATA_MISSING,
        Reason.ROLLED_BACK,
        Step.WITHDRAWN,
        Step.SHARING_NOT_ALLOWED,
        Step.DTYPE_NOT_SUPPORTED,
        Step.NO_GPU,
        Step.NO_ENGINE,
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


def reconcile(observation: Observation) -> Outcome:
    facts = interpret(observation)
    if facts.stale or facts.pool_problem is not None:
        return _held(facts)
    prospects = Prospects(facts)
    before = adopt(facts) if facts.plan is None else facts.plan
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
    )
    changed = plan != facts.plan
    statuses = [report.serving_status(board, each, records.get(key)) for key, each in facts.servings.items()]
    statuses = [report.with_appraisal(each, appraisals.get(each.serving)) for each in statuses]
    statuses += [report.refused_status(facts, each) for each in facts.refused.values()]
    return Outcome(
        pool_status=report.pool_status(facts, plan),
        plan_changed=changed,
        serving_statuses=tuple(sorted(statuses, key=lambda each: each.serving)),
        actions=_tells(old, records, before, plan.experiments) if changed else steps(board),
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
        said = _appraised(facts.servings[key], appraisal)
        records[key] = _record(key, said, 0, len(board.of[key]), old.get(key), facts)
    decisions = [
        (each, _decide_one(board, each, demands[each.key], old.get(each.key), given_up, taken_back, verdicts))
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
            wanted = planned if decision.reason == Step.REMOVED else demand.wanted
            records[key] = _record(key, decision, wanted, planned, was, facts)
            if records[key] is not was:
                records[key] = _told(records[key], board, demand, against[key])
        elif was is not None:
            records[key] = was
    again = [key for key, demand in demands.items() if demand.look_again]
    return records, tuple(sorted(each.name for key in again for each in facts.replicas_of.get(key, ())))


def _is_new(facts: Facts) -> bool:
    """Whether this process has not watched for a window yet: nothing is wrong with readings that it has not taken."""
    policy = facts.policy
    grace = policy.rate_windows[0] + policy.engine_period * policy.stale_periods
    return facts.watched_since is not None and 0 <= facts.at - facts.watched_since < grace


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
    """Placements of servings that are gone, and on GPUs that are gone with their pod; deadlines that are over."""
    facts = board.facts
    for placement in board.placements:
        known = placement.serving in facts.servings or placement.serving in facts.refused
        pod = board.pod(placement)
        lost = placement.gpu_uuid not in facts.gpus and (pod is None or pod.deletion_at is not None)
        if not known or lost:
            board.remove(placement)
    board.withdrawn = {
        key: each for key, each in board.withdrawn.items() if each.until > facts.at and each.serving in facts.servings
    }
    board.touched.clear()


def _decide_one(
    board: Board,
    serving: Serving,
    demand: Demand,
    record: Record | None,
    given_up: Iterable[GivenUp],
    taken_back: Iterable[TakenBack],
    verdicts: list[tuple[ServingKey, Verdict]],
) -> Decision | None:
    """The one thing to say about this serving, after the board has been moved; None keeps what was said last."""
    key, facts = serving.key, board.facts
    if serving.mode is Mode.SUSPEND:
        return Decision(reason=Step.SUSPENDED, subject=str(key), message=explain.suspended(len(board.of[key])))
    sharing = sharing_of(serving, facts.policy)
    if sharing is None:
        message = explain.sharing_not_allowed(serving.sharing.value, (each.value for each in facts.policy.sharing))
        return Decision(reason=Step.SHARING_NOT_ALLOWED, subject=str(key), message=message)
    kinds = board.kinds.values()
    if kinds and not any(kind.computes_in(serving.dtype) for kind in kinds):
        message = explain.dtype_not_supported(serving.dtype.value, (kind.name for kind in kinds))
        return Decision(reason=Step.DTYPE_NOT_SUPPORTED, subject=str(key), message=message)
    for each in given_up:
        if each.placement.serving == key:
            return _withdrawn(each, facts)
    for undone in taken_back:
        if undone.experiment.serving == key:
            return _rolled_back(undone, facts)
    if serving.mode is Mode.ADVISE:
        return _advised(board, serving, sharing, demand, verdicts)
    renewal = renew(board, serving, sharing, demand)
    if renewal is not None and renewal.new is not None:
        if not any(each.serving == key and each.neighbours.startswith(ANOTHER_SHAPE) for each in board.undone):
            begin(board, renewal.new, renewal.before, Step.REPLACED, asked=renewal.asked)
        return Decision(
            reason=Step.REPLACED, subject=renewal.old.gpu_uuid,
            message=explain.replaced(renewal.old.gpu_uuid, renewal.old.slot),
        )  # fmt: skip
    victim = to_give_up(board, serving, demand, record)
    if victim is not None:
        board.remove(victim)
        left = len(board.of[key])
        message = explain.removed(victim.gpu_uuid, left, demand.rate if demand.basis is Basis.ARRIVALS else None)
        return Decision(reason=Step.REMOVED, subject=victim.gpu_uuid, message=message)
    if (evicted := _evicted(board, serving)) is not None:
        return _away_from(board, serving, sharing, demand, evicted)
    found = survey(board, serving, sharing, demand)
    verdicts.extend((key, verdict) for verdict in found.verdicts)
    if renewal is not None and renewal.stop is not None:
        return _elsewhere(board, serving, sharing, demand, renewal, renewal.stop)
    return _grown(board, serving, sharing, demand, record, found)


def _grown(
    board: Board, serving: Serving, sharing: Sharing, demand: Demand, record: Record | None, found: Survey
) -> Decision | None:
    """One more replica if one is wanted and has a place; else why not."""
    key = serving.key
    planned = len(board.of[key])
    settled = is_settled(board, key)
    if demand.wanted > planned and (settled or _may_start_many(demand, planned)):
        if found.uuid is not None:
            return _added(board, serving, sharing, demand, found, found.uuid)
        if found.next_on is not None:
            board.book(_one_more(board, serving, sharing, found.next_on))
    if record is not None and (not settled or found.waiting) and (found.stop is None or demand.wanted <= planned):
        return None
    if found.stop is not None:
        if record is not None and _may_ask_again(found.stop, demand, record, planned, board.facts):
            return None
        return _stopped(_said_before(found.stop, found.verdicts, record))
    if not board.facts.gpus:
        return Decision(reason=Step.NO_GPU, subject=str(key), message=explain.no_gpu())
    return None


def _said_before(stop: Verdict, against: Iterable[Verdict], record: Record | None) -> Verdict:
    """The objection that was told last, while it stands: what live rates move about a limit comes and goes with them.

    Only of those that the model predicts; that the load is met, or that data is missing, is told at once.
    """
    if record is None or stop.reason not in PREDICTED or record.reason not in PREDICTED:
        return stop
    return next((each for each in against if (each.reason, each.subject) == (record.reason, record.subject)), stop)


def _may_ask_again(stop: Verdict, demand: Demand, record: Record, planned: int, facts: Facts) -> bool:
    """Whether the load is met by so little that the next tick may ask for one more again.

    What stood in its way then is still worth more to be told than that the load is met for a moment.
    """
    stood = record.reason in STOPS and record.reason != Reason.DEMAND_MET and record.planned == planned
    near = demand.utilization is not None and demand.utilization > CALMER * facts.policy.target_utilization
    return stop.reason is Reason.DEMAND_MET and stood and record.wanted > planned and near


def _may_start_many(demand: Demand, planned: int) -> bool:
    """What was asked for from the start need not wait for one another; a step that answers the load does."""
    return demand.basis in (Basis.MANUAL, Basis.DECLARED) or planned < demand.floor


def _added(
    board: Board, serving: Serving, sharing: Sharing, demand: Demand, found: Survey, uuid: str,
    *, step: Step = Step.ADDED, asked: bool = False,
) -> Decision:  # fmt: skip
    """`asked`: the user wants this step; what is below the floor is asked for anyway."""
    is_opening = not board.is_used(uuid) and any(board.is_used(each) for each in board.facts.gpus)
    placement, before = _one_more(board, serving, sharing, uuid), standing(board, uuid)
    board.add(placement)
    begin(board, placement, before, step, asked=asked or len(board.of[serving.key]) <= demand.floor)
    gain = gain_of(board, placement)
    brings = effect(board, placement)
    message = explain.added(uuid, len(board.of[serving.key]), demand.wanted, brings, gain, found.past)
    if is_opening:
        used = [each for each in found.verdicts if each.subject != uuid]
        message = f"{message} {explain.opened(uuid, used)}"
    return Decision(
        reason=Step.ADDED,
        subject=uuid,
        message=message,
        observed=0.0 if gain is None else gain,
        limit=board.facts.policy.least_marginal_gain,
        unit=Unit.RATIO,
        at_least=True,
    )


def _one_more(board: Board, serving: Serving, sharing: Sharing, uuid: str) -> Placement:
    chosen = board.chosen(serving.key, uuid)
    assert chosen is not None
    return Placement(
        serving=serving.key,
        gpu_uuid=uuid,
        slot=board.free_slot(serving.key, uuid),
        sharing=sharing,
        shape=chosen.shape,
        template_hash=serving.template_hash,
        planned_at=board.facts.at,
    )


def _elsewhere(
    board: Board, serving: Serving, sharing: Sharing, demand: Demand, renewal: Renewal, stop: Verdict
) -> Decision:
    """A replica whose new shape has no room where it is moves to a GPU that has, or stays as it is."""
    one_more = replace(demand, wanted=len(board.of[serving.key]) + 1)
    found = survey(board, serving, sharing, one_more)
    if found.uuid is None or not is_settled(board, serving.key):
        return _stopped(stop)
    board.remove(renewal.old)
    _added(board, serving, sharing, demand, found, found.uuid, step=Step.MOVED, asked=renewal.asked)
    message = explain.moved(renewal.old.gpu_uuid, found.uuid)
    return Decision(reason=Step.MOVED, subject=found.uuid, message=message)


def _evicted(board: Board, serving: Serving) -> Placement | None:
    """A placement on a cordoned node that has lost its pod, or is about to: it cannot come back there."""
    for placement in board.of[serving.key]:
        gpu, pod = board.facts.gpus.get(placement.gpu_uuid), board.pod(placement)
        if gpu is not None and gpu.cordoned and (pod is None or pod.deletion_at is not None):
            return placement
    return None


def _away_from(board: Board, serving: Serving, sharing: Sharing, demand: Demand, evicted: Placement) -> Decision | None:
    """It moves to a GPU that takes it, in one step: the count, and with it the disruption budget, stays as it is."""
    node = board.facts.gpus[evicted.gpu_uuid].gpu.node
    board.remove(evicted)  # it counts neither against a maximum nor against what data must be there
    found = survey(board, serving, sharing, replace(demand, wanted=max(demand.wanted, len(board.of[serving.key]) + 1)))
    if found.uuid is None:
        board.add(evicted)
        return _stopped(found.stop) if found.stop is not None else None
    _added(board, serving, sharing, demand, found, found.uuid, step=Step.MOVED, asked=True)
    message = explain.drained(evicted.gpu_uuid, found.uuid, node)
    return Decision(reason=Step.MOVED, subject=found.uuid, message=message)


def _appraised(serving: Serving, appraisal: Appraisal) -> Decision:
    """What is said of engines that others started; a warning if none of them can be judged."""
    unread = explain.not_judged([(each.pod, each.problem) for each in appraisal.engines if each.problem is not None])
    if not appraisal.better:
        return Decision(reason=Step.NO_ENGINE, subject=str(serving.key), message=unread or explain.no_engine())
    gains = [each.gain for each in appraisal.better if each.gain is not None]
    return Decision(
        reason=Step.ADVISED,
        subject=str(serving.key),
        message=" ".join([*(each.message for each in appraisal.better), unread]).strip(),
        observed=max(gains, default=0.0),
        unit=Unit.RATIO,
        at_least=True,
    )


def _advised(
    board: Board,
    serving: Serving,
    sharing: Sharing,
    demand: Demand,
    verdicts: list[tuple[ServingKey, Verdict]],
) -> Decision | None:
    found = survey(board, serving, sharing, demand)
    verdicts.extend((serving.key, verdict) for verdict in found.verdicts)
    if found.stop is not None and demand.wanted > len(board.of[serving.key]):
        return _stopped(found.stop)
    shapes = sorted(
        (each for (key, _), each in board.shapes.items() if key == serving.key), key=lambda each: each.gpu_kind
    )
    if not shapes:
        return None
    return Decision(
        reason=Step.ADVISED,
        subject=shapes[0].gpu_kind,
        message=" ".join(explain.advised(each) for each in shapes),
        observed=shapes[0].replicas_per_gpu,
        unit=Unit.REPLICAS,
    )


def _withdrawn(each: GivenUp, facts: Facts) -> Decision:
    deadline = facts.policy.pending_deadline
    uuid = each.placement.gpu_uuid
    message = explain.given_up(uuid, each.why, deadline, again=each.instead is not None)
    return Decision(
        reason=Step.WITHDRAWN, subject=uuid, message=message, observed=deadline, limit=deadline, unit=Unit.SECONDS
    )


def _rolled_back(undone: TakenBack, facts: Facts) -> Decision:
    experiment, harm = undone.experiment, undone.harm
    uuid = experiment.gpu_uuid
    return Decision(
        reason=Reason.ROLLED_BACK,
        subject=uuid,
        message=explain.rolled_back(experiment, harm, len(undone.placements), facts.policy.remember_undone),
        observed=harm.measured,
        limit=harm.predicted,
        unit=Unit(harm.unit),
        at_least=harm.measured < harm.predicted,
    )


def _told(record: Record, board: Board, demand: Demand, against: Iterable[Verdict]) -> Record:
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


def _stopped(verdict: Verdict) -> Decision:
    return Decision(
        reason=verdict.reason.value,
        subject=verdict.subject,
        message=explain.verdict(verdict),
        observed=verdict.observed.value,
        limit=verdict.limit.value,
        unit=verdict.unit,
        at_least=verdict.at_least,
    )


def _record(key: ServingKey, decision: Decision, wanted: int, planned: int, was: Record | None, facts: Facts) -> Record:
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


def _tells(
    old: Mapping[ServingKey, Record], new: Mapping[ServingKey, Record], before: Plan, experiments: Iterable[Experiment]
) -> tuple[Tell, ...]:
    """An event for every serving whose decision is another one now, and for every verdict; a wanted count is none."""
    judged = {each.gpu_uuid: each for each in before.experiments}
    told = [
        Tell(
            serving=each.serving, warning=each.judgement is Judgement.MISSED, reason=each.judgement.value,
            message=explain.outcome(each),
        )
        for each in experiments
        if each.judgement is not None and is_news(each, judged.get(each.gpu_uuid))
    ]  # fmt: skip
    for key, record in sorted(new.items()):
        was = old.get(key)
        if was is record or (was is not None and _gist(was) == _gist(record)):
            continue
        needed = record.reason not in (Step.ADVISED, Step.SUSPENDED) and record.planned == 0 and record.wanted > 0
        warning = record.reason in WARNINGS or needed
        told.append(Tell(serving=key, warning=warning, reason=record.reason, message=record.message))
    return tuple(told)
