"""From a plan that was read back to the few things to do now.

Room first: stops before starts, a pod that is leaving holds its memory until it is gone, one engine starts at a time on
a GPU and none while another stops. A replica leaves its Service before it is stopped. One that is being replaced serves
on until its successor is ready, where memory allows both. Knows the plan and what is there; what should be planned was
decided before. Doing every step twice is doing it once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from gpupack.decide.board import Board
from gpupack.decide.pack import effect, unexplained_memory
from gpupack.facts.interpretation import is_leaving
from gpupack.facts.observation import ClaimSeen, Phase, ReplicaSeen
from gpupack.facts.placement import Placement
from gpupack.facts.serving import Mode, Serving, ServingKey, Sharing
from gpupack.perf.memory import utilization_hundredths
from gpupack.plan import (
    Action,
    ApplyBudget,
    ApplyClaim,
    ApplyService,
    DeleteClaim,
    LeaveService,
    MarkReplica,
    StartReplica,
    StopReplica,
)


@dataclass(slots=True)
class _Todo:
    """The actions of one tick by kind; their order is the order of the lists."""

    children: list[Action] = field(default_factory=list)
    stops: list[Action] = field(default_factory=list)
    starts: list[Action] = field(default_factory=list)


def steps(board: Board) -> tuple[Action, ...]:
    """What brings the cluster nearer to the plan: at most one stop and one start on every GPU."""
    todo = _Todo()
    kept = _kept(board)
    _children(board, kept, todo)
    _marks(board, todo)
    places = sorted({*board.on, *board.facts.replicas_on})
    for uuid in places:
        _stop_one(board, uuid, kept, todo)
    for uuid in places:
        _start_one(board, uuid, todo)
    _claims(board, todo)
    return (*todo.children, *todo.stops, *todo.starts)


def is_active(board: Board, key: ServingKey) -> bool:
    serving = board.facts.servings.get(key)
    return serving is not None and serving.mode is Mode.ACTIVE


def _children(board: Board, kept: set[str], todo: _Todo) -> None:
    """Service and budget. A drain may not take a replica whose successor on another node is on its way."""
    for key in board.facts.servings:
        if not is_active(board, key):
            continue
        seen = board.facts.services.get(key)
        if seen is None or not seen.has_service:
            todo.children.append(ApplyService(serving=key))
        there = None if seen is None else seen.min_available
        planned = len(board.of[key])
        moves = any(each.name in kept and _is_cordoned(board, each) for each in board.leftovers_of(key))
        least = planned if moves else max(0, planned - 1)
        if there != least and (planned or there is not None):
            todo.children.append(ApplyBudget(serving=key, min_available=least))


def _is_cordoned(board: Board, pod: ReplicaSeen) -> bool:
    gpu = board.facts.gpus.get(pod.gpu_uuid)
    return gpu is not None and gpu.cordoned


def _marks(board: Board, todo: _Todo) -> None:
    """Labels that somebody changed are put back, so that the Service and the budget count their pods again."""
    for placement in board.placements:
        pod = board.pod(placement)
        if pod is None or pod.marked or pod.name != placement.name or pod.deletion_at is not None:
            continue
        if placement.gpu_uuid not in board.facts.gpus or not is_active(board, placement.serving):
            continue
        total = board.memory_of(placement, placement.gpu_uuid)
        hundredths = utilization_hundredths(total, board.kind(placement.gpu_uuid))
        todo.children.append(MarkReplica(placement=placement, uid=pod.uid, utilization_hundredths=hundredths))


def _kept(board: Board) -> set[str]:
    """Names of pods that no placement stands for any more and that serve on until a successor is ready."""
    kept: set[str] = set()
    for key in board.facts.servings:
        coming = sum(1 for each in board.of[key] if not board.is_ready(each))
        if coming:
            old = [each for each in board.leftovers_of(key) if each.phase is Phase.READY and not is_leaving(each)]
            kept.update(each.name for each in sorted(old, key=lambda each: (each.created_at, each.name))[-coming:])
    return kept


def _stop_one(board: Board, uuid: str, kept: set[str], todo: _Todo) -> None:
    """One pod that is not planned, or that failed, comes one step nearer to its end."""
    pods = board.facts.replicas_on.get(uuid, ())
    leftovers = board.leftovers(uuid)
    for pod in (*leftovers, *(each for each in pods if each not in leftovers and _is_spent(each))):
        if pod.deletion_at is not None or not is_active(board, pod.serving):
            continue
        if pod in leftovers and pod.name in kept and not _stands_in_the_way(board, pod):
            continue
        if pod.phase is Phase.READY and pod.in_service:
            todo.stops.append(LeaveService(serving=pod.serving, name=pod.name, uid=pod.uid))
        else:
            todo.stops.append(StopReplica(serving=pod.serving, name=pod.name, uid=pod.uid))
        return


def _is_spent(pod: ReplicaSeen) -> bool:
    """A planned pod that will never serve again: it failed, or was taken out of service to be stopped."""
    return pod.phase is Phase.FAILED or (pod.phase is Phase.READY and not pod.in_service)


def _stands_in_the_way(board: Board, pod: ReplicaSeen) -> bool:
    """Whether the next engine to start on this GPU cannot start beside this pod."""
    coming = _next_start(board, pod.gpu_uuid)
    if coming is None:
        return False
    beside = board.facts.replicas_on.get(pod.gpu_uuid, ())
    return (
        not _has_room(board, coming, beside)
        or not _may_share(coming, beside)
        or _wrong_claim(board, coming)
        or _lacks_cores(board, pod.gpu_uuid)
    )


def _lacks_cores(board: Board, uuid: str) -> bool:
    """Whether the node has too few cores for everything that is planned on it or still there: a pod would wait."""
    node = board.facts.nodes.get(board.facts.gpus[uuid].gpu.node)
    if node is None:
        return False
    return board.cores_held(node.name) > max(0.0, node.cpu_cores - node.cpu_cores_of_others)


def _next_start(board: Board, uuid: str) -> Placement | None:
    """The placement whose pod is to be created next: the oldest plan first."""
    if uuid not in board.facts.gpus:
        return None
    absent = [each for each in board.on[uuid] if board.pod(each) is None and is_active(board, each.serving)]
    return min(absent, key=lambda each: (each.planned_at, each.serving, each.slot), default=None)


def obstacle(board: Board, placement: Placement) -> str | None:
    """What keeps this pod from being created now, in words; None if nothing does."""
    facts, uuid = board.facts, placement.gpu_uuid
    gpu = facts.gpus.get(uuid)
    if gpu is None:
        return "the GPU is not in the pool any more"
    if not gpu.node_ready:
        return f"node {gpu.gpu.node} is not ready"
    if gpu.cordoned:
        return f"node {gpu.gpu.node} is cordoned"
    if (faulty := board.faulty.get(uuid)) is not None:
        return f"the GPU is not well: {faulty.why}"
    if gpu.foreign:
        return f"the GPU is held by {gpu.foreign[0]}"
    pods = facts.replicas_on.get(uuid, ())
    moving = [each for each in pods if each.phase is not Phase.READY or is_leaving(each)]
    if moving:
        return f"{moving[0].name} is {moving[0].phase.value}"
    if not _may_share(placement, pods):
        return f"{pods[0].name} is there, and one of the two runs alone"
    if not _has_room(board, placement, pods):
        return "memory is not free yet"
    if board.leftovers(uuid) and _lacks_cores(board, uuid):
        return "cores are not free yet"
    unexplained = unexplained_memory(board, uuid)
    if unexplained is not None and unexplained > facts.policy.unexplained_memory:
        return "memory is in use that no pod of gpupack explains"
    for claim in facts.claims_on.get(uuid, ()):
        if claim.namespace != placement.serving.namespace:
            return f"the claim {claim.namespace}/{claim.name} holds the GPU"
        if claim.deleting or not _takes(board, claim, placement):
            return f"the claim {claim.name} has to go first"
    return None


def _start_one(board: Board, uuid: str, todo: _Todo) -> None:
    placement = _next_start(board, uuid)
    if placement is None or obstacle(board, placement) is not None:
        return
    kind = board.kind(uuid)
    total = board.memory_of(placement, uuid)
    claim = _claim_of(board, placement)
    owners = _owners(board, placement.serving.namespace, uuid)
    if claim is None or _lacks_owner(board, claim, owners):
        todo.starts.append(_apply(placement.serving.namespace, uuid, placement.sharing, owners))
    todo.starts.append(
        StartReplica(
            placement=placement,
            utilization_hundredths=utilization_hundredths(total, kind),
            predicted=effect(board, placement),
        )
    )


def _has_room(board: Board, placement: Placement, beside: Iterable[ReplicaSeen]) -> bool:
    """Whether the memory of everything that is there leaves enough for this engine, also at its start."""
    uuid = placement.gpu_uuid
    kind = board.kind(uuid)
    held = sum(board.memory_of(each, uuid) for each in beside)
    total = board.memory_of(placement, uuid)
    at_start = -(-utilization_hundredths(total, kind) * kind.memory_bytes // 100)
    return max(held + total + board.facts.policy.gpu_reserve, held + at_start) <= kind.memory_bytes


def _may_share(placement: Placement, beside: Iterable[ReplicaSeen]) -> bool:
    return not any(placement.sharing.is_alone or each.sharing.is_alone for each in beside)


def _claim_of(board: Board, placement: Placement) -> ClaimSeen | None:
    namespace = placement.serving.namespace
    claims = board.facts.claims_on.get(placement.gpu_uuid, ())
    return next((each for each in claims if each.namespace == namespace and _takes(board, each, placement)), None)


def _takes(board: Board, claim: ClaimSeen, placement: Placement) -> bool:
    """Whether a replica can be on the GPU by this claim of its namespace."""
    serving = board.facts.servings.get(placement.serving)
    at_home = not claim.household or (serving is not None and serving.household == claim.household)
    return at_home and claim.sharing is placement.sharing


def _wrong_claim(board: Board, placement: Placement) -> bool:
    """Whether the GPU is claimed in another way; that claim has to go first, and its users before it."""
    return any(not _takes(board, each, placement) for each in board.facts.claims_on.get(placement.gpu_uuid, ()))


def _owners(board: Board, namespace: str, uuid: str) -> tuple[Serving, ...]:
    """The servings of that namespace that are, or will be, on the GPU."""
    keys = {each.serving for each in board.members(uuid) if each.serving.namespace == namespace}
    return tuple(board.facts.servings[key] for key in sorted(keys) if key in board.facts.servings)


def _lacks_owner(board: Board, claim: ClaimSeen, owners: Iterable[Serving]) -> bool:
    return any(is_active(board, each.key) and each.uid not in claim.owners for each in owners)


def _apply(namespace: str, uuid: str, sharing: Sharing, owners: Iterable[Serving]) -> ApplyClaim:
    return ApplyClaim(namespace=namespace, gpu_uuid=uuid, sharing=sharing, owners=tuple(each.key for each in owners))


def _claims(board: Board, todo: _Todo) -> None:
    """Claims that nobody uses go, before anything starts; one that lost an owner gets it back, and pods their claim."""
    applied = {(each.namespace, each.gpu_uuid) for each in todo.starts if isinstance(each, ApplyClaim)}
    for uuid, claims in sorted(board.facts.claims_on.items()):
        pods = board.facts.replicas_on.get(uuid, ())
        for claim in claims:
            if claim.deleting:
                continue
            mine = [each for each in board.on[uuid] if each.serving.namespace == claim.namespace]
            used = any(each.serving.namespace == claim.namespace for each in pods)
            if not used and not any(_takes(board, claim, each) for each in mine):
                todo.stops.append(DeleteClaim(namespace=claim.namespace, name=claim.name, uid=claim.uid))
            elif (claim.namespace, uuid) not in applied:
                owners = _owners(board, claim.namespace, uuid)
                if _lacks_owner(board, claim, owners):
                    todo.children.append(_apply(claim.namespace, uuid, claim.sharing, owners))
    for uuid, pods in sorted(board.facts.replicas_on.items()):
        there = applied | {(each.namespace, uuid) for each in board.facts.claims_on.get(uuid, ())}
        waiting = {(each.serving.namespace, each.sharing) for each in pods if _waits(board, each)}
        for namespace, sharing in sorted(waiting):
            if (namespace, uuid) not in there and (owners := _owners(board, namespace, uuid)):
                todo.children.append(_apply(namespace, uuid, sharing, owners))


def _waits(board: Board, pod: ReplicaSeen) -> bool:
    """Whether it would wait for a claim that is not there for ever: who refused that, or took it, took no pod."""
    gpu = board.facts.gpus.get(pod.gpu_uuid)
    comes = board.facts.at - pod.created_at <= board.facts.policy.tick  # it may only not be seen yet
    return (
        gpu is not None
        and not gpu.gpu.one_household
        and pod.phase is Phase.PENDING
        and pod.deletion_at is None
        and not comes
        and (serving := board.facts.servings.get(pod.serving)) is not None
        and is_active(board, serving.key)
    )
