"""Fates of calls through the proxy: a storm, silence, and a killer that ends the operator at given calls.

What is left to chance is drawn by a seed that the test prints. None knows how a fault is made (proxy.py) nor what must
come out (proxy_story.py).
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from gpupack.demo.stage import Stage

from .proxy import Doom, Fault, Proxy
from .proxy_calls import OURS, Call

STRUCK = 0.2
"""The part of the plain calls that a storm strikes; of watches it leaves few alone."""
STRUCK_WATCHES = 0.8
DELAY_SECONDS = 1.0
WATCH_SECONDS = (0.2, 4.0)
SILENCE_SECONDS = 3.0
"""In a storm a silent watch is cut after this long. That the operator notices by itself takes it 90 s."""

_OF_ALL = (Fault.DROPPED, Fault.DELAYED, Fault.BUSY, Fault.BROKEN, Fault.LOST)
_OF_LISTS = (*_OF_ALL, Fault.GONE)
_OF_WRITES = (*_OF_ALL, Fault.CONFLICT)
_OF_WATCHES = (Fault.DROPPED, Fault.BUSY, Fault.BROKEN, Fault.GONE, *(each for each in Fault if each.is_of_watches))
DEADLY_TO_KOPF = frozenset({Fault.GONE, Fault.ERROR, Fault.TORN, Fault.GARBLED})
"""Kopf ends the whole process at these, by its own design or for want of a check; then the kubelet starts it again. A
storm would be one row of restarts."""


class Storm:
    """Strikes calls by chance; of the faults that fit a call, the one that came least often so far.

    `killer` ends the operator meanwhile.
    """

    def __init__(self, seed: int, killer: Killer | None = None) -> None:
        self._random = random.Random(seed)
        self._struck: Counter[Fault] = Counter()
        self._killer = killer

    def of(self, call: Call) -> Doom | None:
        if self._random.random() > (STRUCK_WATCHES if call.verb == "watch" else STRUCK):
            return None
        spared = DEADLY_TO_KOPF if call.who != OURS else frozenset()
        fitting = [each for each in _fitting(call) if each not in spared]
        fewest = min(self._struck[each] for each in fitting)
        fault = self._random.choice([each for each in fitting if self._struck[each] == fewest])
        self._struck[fault] += 1
        if fault.is_of_watches:
            return Doom(fault=fault, seconds=self._random.uniform(*WATCH_SECONDS), silence_seconds=SILENCE_SECONDS)
        return Doom(fault=fault, seconds=self._random.uniform(0.0, DELAY_SECONDS))

    def reached(self, call: Call, *, is_done: bool) -> Awaitable[None] | None:
        return None if self._killer is None else self._killer.reached(call, is_done=is_done)


def _fitting(call: Call) -> tuple[Fault, ...]:
    if call.is_write:
        return _OF_WRITES
    return {"watch": _OF_WATCHES, "list": _OF_LISTS}.get(call.verb, _OF_ALL)


class Muffled:
    """The first watch of every kind that gpupack itself follows is accepted and says nothing, until it is given up."""

    def __init__(self) -> None:
        self._met: set[str] = set()

    def of(self, call: Call) -> Doom | None:
        if call.verb != "watch" or call.who != OURS or call.resource in self._met:
            return None
        self._met.add(call.resource)
        return Doom(fault=Fault.SILENT)

    def reached(self, _call: Call, *, is_done: bool) -> Awaitable[None] | None:  # noqa: ARG002 - a Fate
        return None


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class Point:
    """Where the operator is ended: before the call gets to the server, or when it is done and not yet answered."""

    call: Call
    is_done: bool

    def __str__(self) -> str:
        return f"{'after ' if self.is_done else 'before'} {self.call}"


class Killer:
    """Ends the operator by SIGKILL the first time that one of the `points` is reached, and starts it again.

    `left` are the points that have not been reached; `killed` those that have, in order.
    """

    def __init__(self, stage: Stage, proxy: Proxy, points: Iterable[Point]) -> None:
        self.left = set(points)
        self.killed: list[Point] = []
        self._stage = stage
        self._proxy = proxy
        self._hand = ThreadPoolExecutor(max_workers=1)
        self._falling: asyncio.Future[None] | None = None

    def of(self, _call: Call) -> Doom | None:
        return None

    def reached(self, call: Call, *, is_done: bool) -> Awaitable[None] | None:
        point = Point(call=call, is_done=is_done)
        if self._falling is not None and not self._falling.done():
            return None  # a call that the one who is being ended had sent
        if point not in self.left:
            return None
        self.left.remove(point)
        self.killed.append(point)
        self._falling = asyncio.get_running_loop().run_in_executor(self._hand, self._kill)
        return self._for_ever()

    def _kill(self) -> None:
        self._stage.stop_operator(signal.SIGKILL)
        self._stage.start_operator(self._proxy.kubeconfig)

    @staticmethod
    async def _for_ever() -> None:
        """The call stays where it is until the proxy sees that its sender has gone."""
        await asyncio.Event().wait()


def points_of(calls: Iterable[Call]) -> list[Point]:
    """Before and after every distinct one of these calls, in order."""
    return sorted(Point(call=call, is_done=is_done) for call in {*calls} for is_done in (False, True))
