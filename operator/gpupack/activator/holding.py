"""The requests that wait, within bounds: how many of a serving, and how many bytes of all.

Also what the operator is told of them. Knows neither HTTP nor Kubernetes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gpupack.facts.serving import ServingKey


class Full(Exception):
    """There is no room for one more request, or for so large a one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """`requests` of one serving; `body_bytes` of all bodies that are here; seconds that one waits at most."""

    requests: int
    body_bytes: int
    patience: float


@dataclass(slots=True, eq=False)
class _Held:
    since: float
    taken: int = 0


class Holding:
    """`clock` is monotonic. `changed` is set whenever a serving got its first request here, or lost its last one."""

    def __init__(self, bounds: Bounds, clock: Callable[[], float] = time.monotonic) -> None:
        self.bounds = bounds
        self.number = 0
        self.changed = asyncio.Event()
        self._clock = clock
        self._held: dict[ServingKey, list[_Held]] = {}
        self._bytes = 0

    @contextlib.contextmanager
    def room(self, serving: ServingKey) -> Iterator[Callable[[int], None]]:
        """A place among those that wait, for as long as the block lasts. Raises Full.

        What it yields takes so many more bytes for the body, and raises Full where there are no more.
        """
        waiting = self._held.setdefault(serving, [])
        if len(waiting) >= self.bounds.requests:
            raise Full(f"{len(waiting)} requests wait already")
        held = _Held(since=self._clock())
        waiting.append(held)
        if len(waiting) == 1:
            self._stir()

        def take(count: int) -> None:
            if self._bytes + count > self.bounds.body_bytes:
                raise Full(f"{self._bytes} bytes of requests wait already")
            self._bytes += count
            held.taken += count

        try:
            yield take
        finally:
            self._bytes -= held.taken
            waiting.remove(held)
            if not waiting:
                del self._held[serving]
                self._stir()

    def waiting(self) -> list[tuple[ServingKey, int, float]]:
        """Servings with how many requests wait for them and for how many seconds the oldest has."""
        now = self._clock()
        return [(key, len(held), now - min(each.since for each in held)) for key, held in sorted(self._held.items())]

    def oldest(self, serving: ServingKey) -> float:
        """For how many seconds the oldest request of this serving has waited; 0 if there is none."""
        held = self._held.get(serving, ())
        return max((self._clock() - each.since for each in held), default=0.0)

    async def news(self, after: int, seconds: float) -> None:
        """Returns when something has changed after that number, or when so many seconds have passed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.number <= after:
                    self.changed.clear()
                    await self.changed.wait()

    def _stir(self) -> None:
        self.number += 1
        self.changed.set()
