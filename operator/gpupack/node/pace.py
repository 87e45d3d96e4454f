"""Keeps the simulated world in step with the clock: deals what is due and advances, some forty times a second.

While somebody waits for tokens over HTTP it goes faster, so that what a client measures is what the engine did. The
only place where the virtual node's simulated and real time meet.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from enum import IntEnum

from gpupack.node.load import Dealer
from gpupack.twin.world import World
from gpupack.units import seconds_from_milliseconds


class Patience(IntEnum):
    """How soon somebody wants the world advanced again, in milliseconds."""

    FIRST_TOKEN = 1
    NEXT_TOKEN = 5
    NOTHING = 25


class Pace:
    """`run` never returns. `watch` adds somebody who is called after each advance and says how patient he is."""

    def __init__(self, world: World, dealer: Dealer, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.world = world
        self.dealer = dealer
        self._clock = clock
        self._zero = clock() - world.now
        self._watchers: dict[str, Callable[[], Patience]] = {}
        self._hurry = asyncio.Event()
        self._tick = asyncio.Event()

    def now(self) -> float:
        """Brings the world up to now and says what time it is there, in seconds since it began."""
        now = self._clock() - self._zero
        self.dealer.deal(now)
        self.world.advance(now)
        return self.world.now

    def watch(self, name: str, advanced: Callable[[], Patience]) -> None:
        self._watchers[name] = advanced

    def unwatch(self, name: str) -> None:
        self._watchers.pop(name, None)

    def hurry(self) -> None:
        """Somebody came who waits for tokens: ask all again how patient they are."""
        self._hurry.set()

    async def tick(self) -> None:
        """Until the world has been advanced once more."""
        await self._tick.wait()

    async def run(self) -> None:
        while True:
            self.now()
            patience = min((advanced() for advanced in list(self._watchers.values())), default=Patience.NOTHING)
            self._tick.set()
            self._tick = asyncio.Event()
            self._hurry.clear()
            timer = asyncio.get_running_loop().call_later(seconds_from_milliseconds(patience), self._hurry.set)
            await self._hurry.wait()
            timer.cancel()
