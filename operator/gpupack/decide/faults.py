"""Faults that another attempt does not mend: a GPU that is not well, a start that cannot succeed as it was planned.

What they taught is kept in the plan, so that nothing is tried again in a loop. A faulty GPU is left alone until it
tells that it is well: one that is lost often tells nothing at all. Knows faults, not where a replica goes instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from gpupack.decide.board import Board
from gpupack.facts.interpretation import Facts
from gpupack.facts.observation import Phase, ReplicaSeen, Trouble
from gpupack.facts.placement import FaultyGpu, Lesson, Placement
from gpupack.facts.serving import ServingKey
from gpupack.units import MIB, Bytes, Seconds

LEAST_OVERHEAD = Bytes(512 * MIB)
"""What is learnt first of an engine that ran out of memory; each further time it at least doubles, so that few
attempts find what is enough."""
SPARE = Bytes(256 * MIB)
"""Beyond what was missing at that moment: the start was not over then."""


def faulty_gpus(facts: Facts, known: Iterable[FaultyGpu]) -> tuple[FaultyGpu, ...]:
    """Those that tell a fault, and those that told one and have not told since that they are well."""
    before = {each.gpu_uuid: each for each in known}
    found = []
    for uuid, gpu in facts.gpus.items():
        was = before.get(uuid)
        if gpu.fault:
            same = was if was is not None and was.why == gpu.fault else None
            found.append(same or FaultyGpu(gpu_uuid=uuid, why=gpu.fault, since=facts.at))
        elif gpu.fault is None and was is not None:
            found.append(was)
    return tuple(sorted(found, key=lambda each: each.gpu_uuid))


def learn(board: Board) -> None:
    """From engines that have just failed to start, and only once from each failure; forget what is over.

    An engine that failed is withdrawn in the same tick, so that what it taught is not learnt again.
    """
    facts = board.facts
    wanted = {(key, serving.template_hash) for key, serving in facts.servings.items()}
    wanted |= {(each.serving, each.template_hash) for each in board.placements}
    board.lessons = {
        key: replace(each, refusal="") if each.until <= facts.at else each
        for key, each in board.lessons.items()
        if (each.serving, each.template_hash) in wanted and (each.overhead or each.until > facts.at)
    }
    for placement in board.placements:
        pod = board.pod(placement)
        if pod is not None and placement.gpu_uuid in facts.gpus and has_failed(pod):
            _learn(board, placement, pod)


def has_failed(pod: ReplicaSeen) -> bool:
    """Whether it failed to start in a way that it would fail again."""
    return pod.trouble in (Trouble.OUT_OF_MEMORY, Trouble.REFUSED) and pod.phase in (Phase.STARTING, Phase.FAILED)


def _learn(board: Board, placement: Placement, pod: ReplicaSeen) -> None:
    kind, facts = board.kind(placement.gpu_uuid).name, board.facts
    key = placement.serving, kind
    was = board.lessons.get(key)
    if was is None or was.template_hash != placement.template_hash:
        was = Lesson(serving=placement.serving, gpu_kind=kind, template_hash=placement.template_hash)
    if pod.trouble is Trouble.REFUSED:
        until = Seconds(facts.at + facts.policy.remember_undone)
        board.lessons[key] = replace(was, refusal=pod.message or "it does not start", until=until)
    else:
        more = max(LEAST_OVERHEAD, was.overhead, Bytes(pod.short + SPARE))
        board.lessons[key] = replace(was, overhead=Bytes(-(-(was.overhead + more) // MIB) * MIB))


def refused(board: Board, key: ServingKey, template_hash: str) -> Lesson | None:
    """Why engines of this pod template do not start at all, if that is known."""
    for lesson in board.lessons.values():
        if (lesson.serving, lesson.template_hash) == (key, template_hash) and lesson.refusal:
            return lesson
    return None
