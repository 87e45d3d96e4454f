"""How many requests a second the replicas of a serving can finish: those that stand, fewer of them, or more.

Knows the closing order, because it decides who survives. Not what the load is: that is `demand`'s business.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from functools import cache

from gpupack.decide.board import Board
from gpupack.decide.prospect import Mix, mix_of
from gpupack.facts.placement import Placement
from gpupack.facts.serving import Serving, ServingKey


def capacity_of(board: Board, serving: Serving) -> Callable[[int], float]:
    """Requests a second that n replicas of the serving finish, all kept full.

    Up to what is planned: on the GPUs where they stand, beside their neighbours, closing the last GPU first; on unlike
    kinds of GPU as many as the slowest kind finishes of its even share. Beyond:
    in proportion to GPUs that hold nothing else, filled to R* one after another.
    """
    planned = list(closing_order(board, serving.key))
    count = len(planned)
    standing_there = Counter(placement.gpu_uuid for placement in planned)
    kept: dict[int, float] = {}
    lone = _lone_curve(board, serving)

    def standing(keep: int) -> float:
        per_gpu: dict[str, list[Placement]] = defaultdict(list)
        for placement in planned[count - keep :]:
            per_gpu[placement.gpu_uuid].append(placement)
        mixes: dict[str, Mix] = {}
        for uuid, own in per_gpu.items():
            mix = board.mix(uuid)
            if len(own) < standing_there[uuid]:
                others = [each for each in board.on[uuid] if each.serving != serving.key]
                mix = mix_of(board.kin(each) for each in (*others, *own))
            if not board.prospects.knows(mix):
                mix = mix_of(board.kin(each) for each in own)
            mixes[uuid] = mix
        return carried(board, serving.key, mixes)

    def capacity(replicas: int) -> float:
        if replicas <= 0:
            return 0.0
        if replicas <= count:
            if replicas not in kept:
                kept[replicas] = standing(replicas)
            return kept[replicas]
        if count and lone(count) > 0:
            return capacity(count) * lone(replicas) / lone(count)
        return lone(replicas)

    return capacity


def carried(board: Board, serving: ServingKey, mixes: Mapping[str, Mix]) -> float:
    """Requests a second that a serving's engines in these mixes finish together, by GPU; of GPUs that are gone none."""
    finished: dict[str, float] = defaultdict(float)
    replicas: dict[str, int] = defaultdict(int)
    for uuid, mix in mixes.items():
        gpu = board.facts.gpus.get(uuid)
        if gpu is None:
            continue
        kind = gpu.gpu.kind
        finished[kind.name] += board.prospects.finish_rate(kind, mix, serving)
        replicas[kind.name] += sum(count for kin, count in mix if kin.serving == serving)
    # Requests are dealt evenly: where GPUs are unlike, the slower kind is full first, and then its queue grows.
    each = min((finished[name] / replicas[name] for name in finished), default=0.0)
    return each * sum(replicas.values())


def _lone_curve(board: Board, serving: Serving) -> Callable[[int], float]:
    """Requests a second of n replicas on GPUs of their own, R* on each; the pool's best-filled kind stands for all."""
    kinds = board.kinds
    shapes = [board.shapes[serving.key, name] for name in sorted(kinds) if (serving.key, name) in board.shapes]
    if not shapes:
        return _nothing
    best = max(shapes, key=lambda each: each.replicas_per_gpu)
    kind, each = kinds[best.gpu_kind], max(1, best.replicas_per_gpu)
    kin = board.prospects.kin(serving.key, best.shape)

    @cache
    def finished(replicas: int) -> float:
        return board.prospects.finish_rate(kind, ((kin, replicas),), serving.key) if replicas else 0.0

    return lambda replicas: (replicas // each) * finished(each) + finished(replicas % each)


def _nothing(replicas: int) -> float:
    """No shape has been chosen on any kind of GPU."""
    del replicas
    return 0.0


def closing_order(board: Board, serving: ServingKey) -> tuple[Placement, ...]:
    """The serving's placements in the order in which they are given up.

    First what stands on a GPU that the pool has no more, then what is not ready, then the last GPU that was opened.
    """
    opened: dict[str, float] = {}
    for placement in board.of[serving]:
        opened[placement.gpu_uuid] = min(opened.get(placement.gpu_uuid, placement.planned_at), placement.planned_at)
    return tuple(
        sorted(
            board.of[serving],
            key=lambda each: (
                each.gpu_uuid in board.facts.gpus,
                board.is_ready(each),
                -opened[each.gpu_uuid],
                each.gpu_uuid,
                -each.slot,
            ),
        )
    )
