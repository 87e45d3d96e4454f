"""When to wait, when to stop waiting, and when what stands must give way.

A replica that does not come up in time is withdrawn and its GPU left alone for a while; one that is not asked for is
given up only when nothing else moves and the load has been seen since the last step; one of another content is renewed
one at a time. Knows time and progress; where a replica may go is `pack`'s business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpupack.decide.board import Board
from gpupack.decide.capacity import closing_order
from gpupack.decide.demand import Demand
from gpupack.decide.evidence import standing
from gpupack.decide.experiment import is_waited_for
from gpupack.decide.faults import has_failed, refused
from gpupack.decide.pack import Candidate, held_by_others, host_cpu, memory
from gpupack.facts.experiment import Standing
from gpupack.facts.interpretation import is_leaving
from gpupack.facts.observation import Phase, ReplicaSeen, Trouble
from gpupack.facts.placement import Placement, Record, Withdrawn
from gpupack.facts.serving import Mode, ScalingMode, Serving, ServingKey, Sharing
from gpupack.plan import Verdict
from gpupack.units import Seconds

CRASHES = 3
"""An engine that has restarted so often without becoming ready will not become ready."""

Obstacle = Callable[[Placement], str | None]
"""What keeps a placement's pod from being created now, in words; None if nothing does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenUp:
    """A placement that was withdrawn, and why; `instead` is a running replica that takes its place again."""

    placement: Placement
    why: str
    instead: ReplicaSeen | None


def withdraw(board: Board, obstacle: Obstacle) -> tuple[GivenUp, ...]:
    """Withdraw what did not come up in time; its GPU is not tried again for this serving for as long again."""
    facts = board.facts
    given_up = []
    for placement in board.placements:
        serving = facts.servings.get(placement.serving)
        if serving is None or serving.mode is not Mode.ACTIVE or placement.gpu_uuid in board.touched:
            continue
        why = _too_long(board, placement, obstacle)
        if why is None:
            continue
        until = Seconds(facts.at + facts.policy.pending_deadline)
        board.withdrawn[placement.serving, placement.gpu_uuid] = Withdrawn(
            serving=placement.serving, gpu_uuid=placement.gpu_uuid, until=until
        )
        instead = _still_running(board, placement.serving)
        board.remove(placement)
        if instead is not None:
            board.add(placement_of(instead))
        given_up.append(GivenUp(placement=placement, why=why, instead=instead))
    return tuple(given_up)


def _too_long(board: Board, placement: Placement, obstacle: Obstacle) -> str | None:
    facts, pod = board.facts, board.pod(placement)
    deadline = facts.policy.pending_deadline
    gpu = facts.gpus.get(placement.gpu_uuid)
    lesson = refused(board, placement.serving, placement.template_hash)
    if lesson is not None and not board.is_ready(placement):
        return f"its image does not take what it is started with: {lesson.refusal}"
    if pod is None:
        moves = gpu is not None and gpu.cordoned  # in one step, so that the count stays
        on_time = _sibling_starts(board, placement) or facts.at - _turn_since(board, placement) <= deadline
        return None if moves or on_time else obstacle(placement)
    said = f": {pod.message}" if pod.message else ""
    if pod.deletion_at is not None and gpu is not None and not gpu.node_ready:
        return f"node {gpu.gpu.node} is not ready and its pods are taken away"
    alone = next((each.alone for each in facts.claims_on.get(placement.gpu_uuid, ()) if each.alone), None)
    if pod.phase is Phase.PENDING and alone is not None:
        return f"only one engine runs there, {alone}"
    if has_failed(pod):
        return f"the GPU had too little memory for its start{said}"
    # The API server's clock stamps pods and ours stamps plans: a pod is never older than the plan that it came by.
    if pod.phase is Phase.PENDING and facts.at - max(pod.created_at, placement.planned_at) > deadline:
        return f"it stayed Pending for {deadline:.0f} s{said}"
    if pod.phase is Phase.STARTING and pod.restarts >= CRASHES and pod.trouble is not Trouble.MPS_LOST:
        return f"it restarted {pod.restarts} times without becoming ready{said}"
    if pod.phase is Phase.FAILED and facts.at - pod.created_at <= facts.policy.warmup:
        return f"it failed at its start{said}"
    return None


def _sibling_starts(board: Board, placement: Placement) -> bool:
    """Whether another engine of the plan starts on this GPU, one after another: it has its own limits."""
    pods = (board.pod(each) for each in board.on[placement.gpu_uuid])
    return any(pod is not None and pod.phase in (Phase.PENDING, Phase.STARTING) and not is_leaving(pod) for pod in pods)


def _turn_since(board: Board, placement: Placement) -> float:
    """Since when it has been this placement's turn: since it was planned, or the last one there was ready or left.

    A pod may be lost long after it was planned, and then finds others on their way out.
    """
    pods = board.facts.replicas_on.get(placement.gpu_uuid, ())
    moments = [moment for pod in pods for moment in (pod.ready_at, pod.deletion_at) if moment is not None]
    draining = any(is_leaving(pod) and pod.deletion_at is None for pod in pods)
    moments = [placement.planned_at, *moments, *([board.facts.at] if draining else [])]
    return max(moments)


def _still_running(board: Board, serving: ServingKey) -> ReplicaSeen | None:
    """A replica that was to be replaced and serves still."""
    for each in board.leftovers_of(serving):
        if each.phase is Phase.READY and not is_leaving(each) and each.gpu_uuid not in board.touched:
            return each
    return None


def placement_of(replica: ReplicaSeen) -> Placement:
    return Placement(
        serving=replica.serving,
        gpu_uuid=replica.gpu_uuid,
        slot=replica.slot,
        sharing=replica.sharing,
        shape=replica.shape,
        template_hash=replica.template_hash,
        planned_at=replica.created_at,
    )


def is_settled(board: Board, serving: ServingKey) -> bool:
    """Every replica that is planned serves, and no other pod of the serving is left."""
    return all(board.is_ready(each) for each in board.of[serving]) and not board.leftovers_of(serving)


def to_give_up(board: Board, serving: Serving, demand: Demand, record: Record | None) -> Placement | None:
    """The placement to remove, if any: one that was never asked for at once, one that is not needed any more later."""
    planned = len(board.of[serving.key])
    scaling, policy = serving.scaling, board.facts.policy
    most = scaling.max_replicas
    if scaling.mode is ScalingMode.MANUAL:
        surplus = planned > scaling.replicas
    else:
        surplus = most is not None and planned > max(most, scaling.min_replicas)
        if not surplus and demand.spare and is_settled(board, serving.key):
            seen_since = record is None or board.facts.at - record.at >= policy.rate_windows[0]
            surplus = seen_since and planned > scaling.min_replicas
    if not surplus:
        return None
    first = closing_order(board, serving.key)[0]
    return None if first.gpu_uuid in board.touched else first


def is_outdated(board: Board, serving: Serving, sharing: Sharing, placement: Placement) -> bool:
    """Whether its content is not what the serving wants now on that kind of GPU. Unknown GPUs hold."""
    chosen = board.chosen(serving.key, placement.gpu_uuid)
    if chosen is None:
        return False
    return (
        placement.template_hash != serving.template_hash
        or placement.sharing is not board.placed(sharing, placement.gpu_uuid)
        or placement.shape != chosen.shape
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """`old` gives way to `new`; `stop` says why it cannot on this GPU, and then `new` is None.

    `asked`: the user changed something; else live lengths asked for another shape. `before` stood on the GPU.
    """

    old: Placement
    new: Placement | None
    stop: Verdict | None = None
    asked: bool = True
    before: tuple[Standing, ...] = ()


def renew(board: Board, serving: Serving, sharing: Sharing, demand: Demand) -> Renewal | None:
    """The next placement to replace by one of the present content, on the same GPU and slot.

    One that is not ready loses nobody anything and goes at once; one that serves goes only when all others do and the
    one before it is gone, or when that one cannot start while it is there. A shape that only live lengths asked for is
    tried in one replica, and the next waits for the verdict. Whether old and new overlap is decided by room, in
    `steps`.
    """
    outdated = [each for each in board.of[serving.key] if is_outdated(board, serving, sharing, each)]
    outdated.sort(key=lambda each: (board.is_ready(each), each.gpu_uuid, each.slot))
    stop: Renewal | None = None
    for old in outdated:
        uuid = old.gpu_uuid
        waits = (
            board.is_ready(old) and not is_settled(board, serving.key) and not _moves_out(board, serving, sharing, old)
        )
        if uuid in board.touched or waits:
            continue
        chosen = board.chosen(serving.key, uuid)
        assert chosen is not None
        same = old.template_hash == serving.template_hash and old.sharing is board.placed(sharing, uuid)
        asked = not (same and chosen.was is not None and chosen.was.shape == old.shape)
        if not asked and is_waited_for(board, serving.key):
            continue
        verdict = _against_renewal(board, serving, sharing, demand, old)
        if verdict is not None:
            stop = stop or Renewal(old=old, new=None, stop=verdict, asked=asked)
            continue
        before = standing(board, uuid)
        new = Placement(
            serving=serving.key,
            gpu_uuid=uuid,
            slot=old.slot,
            sharing=board.placed(sharing, uuid),
            shape=chosen.shape,
            template_hash=serving.template_hash,
            planned_at=board.facts.at,
        )
        board.remove(old)
        board.add(new)
        return Renewal(old=old, new=new, asked=asked, before=before)
    return stop


def _moves_out(board: Board, serving: Serving, sharing: Sharing, old: Placement) -> bool:
    """Whether another one of this GPU was replaced already and cannot start before this one has gone too: what holds
    the GPU takes engines of another household only."""
    claims = board.facts.claims_on.get(old.gpu_uuid, ())
    if not any(each.household not in ("", serving.household) for each in claims):
        return False
    beside = [each for each in board.on[old.gpu_uuid] if each.serving == serving.key]
    return any(not is_outdated(board, serving, sharing, each) for each in beside)


def _against_renewal(
    board: Board, serving: Serving, sharing: Sharing, demand: Demand, old: Placement
) -> Verdict | None:
    """What speaks against the new content in the place of the old one: others on the GPU, memory, CPU."""
    gpu, chosen = board.facts.gpus[old.gpu_uuid], board.chosen(serving.key, old.gpu_uuid)
    assert chosen is not None
    candidate = Candidate(
        board=board, serving=serving, sharing=board.placed(sharing, old.gpu_uuid), gpu=gpu, chosen=chosen,
        demand=demand, planned=0, instead_of=old,
    )  # fmt: skip
    found = [verdict for check in (held_by_others, memory, host_cpu) for verdict in check(candidate)]
    return found[0] if found else None
