"""What was undone and is not tried again for a while: one more engine of a model beside the same neighbours.

Forgotten after the pool's time for it, or when what it depended on has changed. Knows what is alike, not what was wrong
with it: that is `experiment`'s business.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

from gpupack.decide.board import Board
from gpupack.decide.evidence import seen_of
from gpupack.decide.prospect import Mix
from gpupack.facts.experiment import Inputs, Undone
from gpupack.facts.observation import Missing
from gpupack.facts.serving import ServingKey
from gpupack.units import PerSecond

CHANGED = 0.2
"""Inputs that changed by more than this share ask the question anew."""
DEVIATIONS = 3.0
"""Two windows differ by chance: a change of load or lengths must exceed so many standard deviations of that, too."""
ANOTHER_SHAPE = "in the place of"
"""How the neighbours of a shape that was taken back begin: it is no further engine beside them."""


def neighbours(board: Board, mix: Mix) -> str:
    """The engines of a GPU by model, as they are remembered."""
    models = Counter[str]()
    for kin, count in mix:
        serving = board.facts.servings.get(kin.serving)
        models[str(kin.serving) if serving is None else serving.llm.name] += count
    return ", ".join(f"{count} x {model}" for model, count in sorted(models.items()))


def remembered(board: Board, serving: ServingKey, uuid: str, mix: Mix) -> Undone | None:
    """What was taken back of the like of one more engine of this serving beside this mix."""
    if not board.undone:
        return None
    model, kind = board.facts.servings[serving].llm.name, board.kind(uuid).name
    beside = neighbours(board, mix)
    found = [each for each in board.undone if (each.model, each.gpu_kind, each.neighbours) == (model, kind, beside)]
    return max(found, key=lambda each: each.until, default=None)


def forget(board: Board) -> None:
    """Drop what is over, of servings that are gone, and what now has other inputs; note the inputs of what is new.

    They are those of the first whole window after the step was undone and the set has settled: before, a queue or
    clients that wait for their answers would show what the step did.
    """
    kept = []
    for each in board.undone:
        if each.until <= board.facts.at or each.serving not in board.facts.servings:
            continue
        now = _inputs(board, each)
        if each.inputs is None or now is None:
            kept.append(each if now is None else replace(each, inputs=now))
        elif not _changed(each.inputs, now, board.facts.policy.window):
            kept.append(each)
    board.undone = kept


def _inputs(board: Board, undone: Undone) -> Inputs | None:
    """Over all engines of the serving; None while they cannot be read or have not settled for a whole window."""
    facts, policy = board.facts, board.facts.policy
    placements = board.of[undone.serving]
    if facts.at < undone.at + policy.warmup + policy.window or board.leftovers_of(undone.serving):
        return None
    if not placements or not all(board.is_ready(each) for each in placements):
        return None
    rate = given = made = 0.0
    for kin in {id(board.kin(each)): board.kin(each) for each in placements}.values():
        seen = seen_of(board, kin, [each for each in placements if board.kin(each) is kin])
        if isinstance(seen, Missing):
            return None
        arrivals = seen.arrivals * seen.engines
        rate += arrivals
        given += arrivals * seen.input_mean
        made += arrivals * seen.output_mean
    if rate <= 0:
        return Inputs(rate=PerSecond(0.0), input_mean=0.0, output_mean=0.0)
    return Inputs(rate=PerSecond(rate), input_mean=given / rate, output_mean=made / rate)


def _changed(was: Inputs, now: Inputs, seconds: float) -> bool:
    """Beyond what chance does to two windows: counts of a Poisson stream, and lengths that spread by their mean."""
    requests = max(was.rate, now.rate) * seconds
    enough = max(CHANGED, DEVIATIONS * math.sqrt(2.0 / requests)) if requests > 0 else CHANGED
    if _apart(was.rate, now.rate) > enough:
        return True
    if was.rate <= 0 or now.rate <= 0:
        return False
    return max(_apart(was.input_mean, now.input_mean), _apart(was.output_mean, now.output_mean)) > enough


def _apart(was: float, now: float) -> float:
    """By what share of what it was."""
    return abs(now - was) / was if was > 0 else float(now > 0)
