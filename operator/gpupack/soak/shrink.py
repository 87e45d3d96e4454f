"""The shortest history that still breaks the same rule: events, servings, GPUs and ticks are taken away one by one.

Every candidate is played; what breaks another rule or none is put back. Ends on a count of plays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from gpupack.soak.history import Event, History
from gpupack.soak.play import Report

PLAYS = 160

Play = Callable[[History], Report]


def shrink(failed: Report, play: Play, *, plays: int = PLAYS) -> Report:
    """A report of the same rule on a history that is at most as long. `failed` must hold a violation."""
    assert failed.violation is not None
    best = _cut(failed)
    left = plays
    for candidates in (_without_events, _shorter_events, _without_servings, _without_gpus, _calmer):
        again = True
        while again and left > 0:
            again = False
            for candidate in candidates(best.history):
                left -= 1
                report = play(candidate)
                if report.violation is not None and report.violation.rule == failed.violation.rule:
                    best, again = _cut(report), True
                    break
                if left <= 0:
                    break
    return best


def _cut(report: Report) -> Report:
    """Nothing that comes after the violation belongs to it."""
    assert report.violation is not None
    history, tick = report.history, report.violation.tick
    events = tuple(each for each in history.events if each.tick <= tick)
    return replace(report, history=replace(history, events=events, ticks=min(history.ticks, tick + 1)))


def _without_events(history: History) -> Iterator[History]:
    """Halves first, then fewer, then single events."""
    events = history.events
    size = len(events) // 2
    while size >= 1:
        for start in range(0, len(events), size):
            yield replace(history, events=(*events[:start], *events[start + size :]))
        size //= 2


def _shorter_events(history: History) -> Iterator[History]:
    for index, event in enumerate(history.events):
        if event.ticks > 1:
            yield _with(history, index, replace(event, ticks=event.ticks // 2))


def _with(history: History, index: int, event: Event) -> History:
    return replace(history, events=(*history.events[:index], event, *history.events[index + 1 :]))


def _without_servings(history: History) -> Iterator[History]:
    servings = history.world.servings
    for index in range(len(servings) if len(servings) > 1 else 0):
        fewer = (*servings[:index], *servings[index + 1 :])
        yield replace(history, world=replace(history.world, servings=fewer))


def _without_gpus(history: History) -> Iterator[History]:
    gpus = history.world.gpus
    for index in range(len(gpus) if len(gpus) > 1 else 0):
        yield replace(history, world=replace(history.world, gpus=(*gpus[:index], *gpus[index + 1 :])))


def _calmer(history: History) -> Iterator[History]:
    if history.world.noise:
        yield replace(history, world=replace(history.world, noise=False))
    for index, event in enumerate(history.events):
        if event.tick >= 40:
            yield _with(history, index, replace(event, tick=event.tick - 20))
