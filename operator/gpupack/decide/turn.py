"""One serving's turn in a tick: the board is moved by at most one step for it, and one thing is said about it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from gpupack.decide import explain
from gpupack.decide.board import Board
from gpupack.decide.demand import Basis, Demand
from gpupack.decide.evidence import standing
from gpupack.decide.experiment import TakenBack, begin
from gpupack.decide.faults import refused
from gpupack.decide.hold import GivenUp, Renewal, is_settled, renew, to_give_up
from gpupack.decide.pack import Survey, effect, gain_of, itl_at_load, sharing_of, sharing_there, survey
from gpupack.decide.recording import Decision, stopped
from gpupack.decide.undone import ANOTHER_SHAPE
from gpupack.facts.interpretation import Facts
from gpupack.facts.observation import Trouble
from gpupack.facts.placement import Placement, Record
from gpupack.facts.running import Appraisal
from gpupack.facts.serving import Mode, ScalingMode, Serving, ServingKey, Sharing
from gpupack.plan import Reason, Step, Unit, Verdict

PREDICTED: frozenset[str] = frozenset((Reason.LATENCY_SLO, Reason.BANDWIDTH_CEILING, Reason.MARGINAL_GAIN))
STOPS: frozenset[str] = frozenset(Reason)
RESTS: frozenset[str] = frozenset((Reason.DEMAND_MET, Step.GOES_PAST))
"""What is said only once every replica serves."""
CALMER = 0.9
"""The load must fall below this share of the target before it is told as met where one more was wanted."""


def take_turn(
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
    if kinds and all(sharing_there(serving, facts.policy, kind) is None for kind in kinds):
        message = explain.no_such_gpu(serving.sharing.value, (kind.name for kind in kinds))
        return Decision(reason=Step.SHARING_NOT_ALLOWED, subject=str(key), message=message)
    lesson = refused(board, key, serving.template_hash)
    for each in given_up:
        if each.placement.serving == key and lesson is None:
            return _withdrawn(each, facts)
    for undone in taken_back:
        if undone.experiment.serving == key:
            return _rolled_back(undone, facts)
    if serving.mode is Mode.ADVISE:
        return _advised(board, serving, sharing, demand, verdicts)
    renewal = renew(board, serving, sharing, demand) if lesson is None else None
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
        if not left and not serving.scaling.min_replicas and serving.scaling.mode is ScalingMode.AUTO:
            return Decision(reason=Step.ASLEEP, subject=str(key), message=explain.falls_asleep(serving.scaling.idle))
        message = explain.removed(victim.gpu_uuid, left, demand.rate if demand.basis is Basis.ARRIVALS else None)
        return Decision(reason=Step.REMOVED, subject=victim.gpu_uuid, message=message)
    if demand.basis is Basis.ASLEEP:
        return Decision(reason=Step.ASLEEP, subject=str(key), message=explain.asleep())
    if lesson is not None:
        message = explain.engine_refused(lesson.refusal, facts.policy.remember_undone)
        return Decision(reason=Step.ENGINE_REFUSED, subject=str(key), message=message)
    for misplaced in _misplaced(board, serving):
        if (decision := _away_from(board, serving, sharing, demand, misplaced)) is not None:
            return decision
    if (lost := _lost(board, serving, record)) is not None:
        return lost
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
        stop = stopped(_said_before(found.stop, found.verdicts, record))
        if not planned and stop.reason == Reason.MEMORY and not board.members(stop.subject):
            return replace(stop, message=f"{stop.message} {explain.too_large()}")
        return stop
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
    message = explain.added(
        uuid, len(board.of[serving.key]), demand.wanted, brings, gain, found.past, itl_at_load(board, placement)
    )
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
        sharing=board.placed(sharing, uuid),
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
        return stopped(stop)
    board.remove(renewal.old)
    _added(board, serving, sharing, demand, found, found.uuid, step=Step.MOVED, asked=renewal.asked)
    message = explain.moved(renewal.old.gpu_uuid, found.uuid)
    return Decision(reason=Step.MOVED, subject=found.uuid, message=message)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Misplaced:
    """A placement that should be elsewhere. `must`: it does not serve where it is."""

    placement: Placement
    why: str
    must: bool


def _misplaced(board: Board, serving: Serving) -> Iterator[_Misplaced]:
    """Those that lost their pod, or are about to, first; one that still serves goes only when all others do."""
    for ready in (False, True):
        for placement in tuple(board.of[serving.key]):
            if board.is_ready(placement) is ready and (why := _why_not_here(board, placement)) is not None:
                yield _Misplaced(placement=placement, why=why, must=not ready)
        if not is_settled(board, serving.key):
            return


def _why_not_here(board: Board, placement: Placement) -> str | None:
    uuid = placement.gpu_uuid
    gpu, pod = board.facts.gpus.get(uuid), board.pod(placement)
    if gpu is None:  # one whose pod has gone is forgotten, one that serves is well wherever it is
        return None if board.is_ready(placement) else "the GPU is not published any more"
    if (faulty := board.faulty.get(uuid)) is not None:
        return f"the GPU is not well, {faulty.why}"
    if gpu.evicts is not None:
        return f"the GPU has the taint {gpu.evicts}"
    starts = pod is not None and pod.deletion_at is None and not board.is_ready(placement)
    if gpu.cordoned and not starts:
        gone = " and its pod was taken away" if pod is None or pod.deletion_at is not None else ""
        return f"node {gpu.gpu.node} is cordoned{gone}"
    return None


def _away_from(
    board: Board, serving: Serving, sharing: Sharing, demand: Demand, misplaced: _Misplaced
) -> Decision | None:
    """It moves to a GPU that takes it, in one step: the count, and with it the disruption budget, stays as it is."""
    old = misplaced.placement
    touched = old.gpu_uuid in board.touched
    board.remove(old)  # it counts neither against a maximum nor against what data must be there
    found = survey(board, serving, sharing, replace(demand, wanted=max(demand.wanted, len(board.of[serving.key]) + 1)))
    if found.uuid is None:
        board.add(old)
        if not touched:
            board.touched.discard(old.gpu_uuid)
        return stopped(found.stop) if found.stop is not None and misplaced.must else None
    _added(board, serving, sharing, demand, found, found.uuid, step=Step.MOVED, asked=True)
    message = explain.moved_away(old.gpu_uuid, found.uuid, misplaced.why)
    return Decision(reason=Step.MOVED, subject=found.uuid, message=message)


def _lost(board: Board, serving: Serving, record: Record | None) -> Decision | None:
    """What engines that live in one pod have lost together, while they come again in the order of the plan."""
    rested = record is not None and record.reason in RESTS
    for placement in board.of[serving.key]:
        uuid, pod = placement.gpu_uuid, board.pod(placement)
        gpu = board.facts.gpus.get(uuid)
        if pod is not None and pod.trouble is Trouble.MPS_LOST and not board.is_ready(placement):
            message = explain.mps_lost(uuid, pod.message)
            return Decision(reason=Step.MPS_LOST, subject=uuid, message=message)
        if gpu is None or not gpu.gpu.one_household or record is None:
            continue
        gone = pod is None and rested and record.at > placement.planned_at
        if gone or (pod is not None and pod.deletion_at is not None):
            return Decision(reason=Step.HOST_LOST, subject=uuid, message=explain.host_lost(uuid))
    return None


def appraised(serving: Serving, appraisal: Appraisal) -> Decision:
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
        return stopped(found.stop)
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
