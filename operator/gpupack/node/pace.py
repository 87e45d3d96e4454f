"""Keeps the simulated world in step with the clock: deals what is due and advances, some forty times a second.

While somebody waits for tokens over HTTP it goes faster, so that what a client measures is what the engine did. The
only place where the virtual node's simulated and real time meet.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from gpupack.node.load import Dealer
from gpupack.twin.world import World

PERIOD_SECONDS = 0.025
BUSY_PERIOD_SECONDS = 0.005


class Pace:
    """`run` never returns. `watch` adds somebody who is called after each advance and says if he waits for tokens."""

    def __init__(self, world: World, dealer: Dealer, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.world = world
        self.dealer = dealer
        self._clock = clock
        self._zero = clock() - world.now
        self._watchers: dict[str, Callable[[], bool]] = {}
        self._tick = asyncio.Event()

    def now(self) -> float:
        """Brings the world up to now and says what time it is there, in seconds since it began."""
        now = self._clock() - self._zero
        self.dealer.deal(now)
        self.world.advance(now)
        return self.world.now

    def watch(self, name: str, advanced: Callable[[], bool]) -> None:
        self._watchers[name] = advanced

    def unwatch(self, name: str) -> None:
        self._watchers.pop(name, None)

    async def tick(self) -> None:
        """Until the world has been advanced once more."""
        await self._tick.wait()

    async def run(self) -> None:
        busy = False
        while True:
            await asyncio.sleep(BUSY_PERIOD_SECONDS if busy else PERIOD_SECONDS)
            self.now()
            busy = False
            for advanced in list(self._watchers.values()):
                busy = advanced() or busy
            self._tick.set()
            self._tick = asyncio.Event()
