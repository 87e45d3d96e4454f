"""How long it takes until a serving that slept answers: from its first request that was held to its first replica.

Knows what was asked and what is ready; that a serving is to wake is `demand`'s business.
"""

from __future__ import annotations

from dataclasses import replace

from gpupack.decide.board import Board
from gpupack.facts.observation import Missing
from gpupack.facts.placement import Wake
from gpupack.facts.serving import Serving


def wakes(board: Board) -> tuple[Wake, ...]:
    """The last wake of every serving that may sleep, in the order of their names; also kept on the board."""
    found = {key: _wake(board, serving) for key, serving in sorted(board.facts.servings.items())}
    board.wakes = {key: each for key, each in found.items() if each is not None}
    return tuple(board.wakes.values())


def _wake(board: Board, serving: Serving) -> Wake | None:
    if serving.scaling.min_replicas:
        return None
    facts, key, last = board.facts, serving.key, board.wakes.get(serving.key)
    held = facts.held.get(key)
    waiting = 0.0 if held is None or isinstance(held.requests, Missing) else held.requests
    planned_before = any(each.serving == key for each in facts.plan.placements) if facts.plan else False
    if last is not None and last.ready_at is None:
        if any(board.is_ready(each) for each in board.of[key]):
            return replace(last, ready_at=facts.at)
        # Who asked may have gone before a replica was even planned: then nobody was kept waiting.
        return last if board.of[key] or waiting else None
    if waiting and not planned_before and held is not None:
        return Wake(serving=key, asked_at=facts.at if held.since is None else min(held.since, facts.at))
    return last
