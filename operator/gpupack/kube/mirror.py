"""What the API server holds of one kind, kept here as slim records by list and watch.

Unlike an informer that only follows events, a list replaces everything: an object whose deletion was missed (an expired
watch, an API server that was away) is gone after the next list, it does not stay as a ghost. A connection that is
silent longer than the server's bookmarks allow is dropped and opened again, and `age` says how old the view may be.
Knows nothing of what the records mean; does not decide what is too old.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from gpupack.errors import Unavailable
from gpupack.kube.api import Api, ApiError, Gone, NotFound, Silent

log = logging.getLogger(__name__)

Record = TypeVar("Record")

PAGE = 500
SILENCE_SECONDS = 90.0
"""Bookmarks come about once a minute, so a watch that says nothing for this long is dead."""
WATCH_SECONDS = 300
BACKOFF_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
STEADY_SECONDS = 10.0
"""A watch that lasted this long was a good one; those that end sooner, without an event, are tried less and less."""
WORTH_A_WARNING = 4
UNSERVED_SECONDS = 30.0
"""Between two looks for a kind that the API server does not serve."""
PASSING = frozenset({429, 500, 502, 503})
"""Refusals of a server in trouble. They say nothing against the version, and a list would be one more burden."""


class Mirror(Generic[Record]):
    """One kind, one path. `record` makes the slim value, or None for what is not wanted.

    `stir` is called when a record that `matters` came, went or differs from the one before; a change that the record
    does not show (a node's heartbeat) stirs nobody. `may_be_unserved`: an API server that does not know the kind has
    none of it. `run` never returns; cancel it.
    """

    def __init__(
        self,
        api: Api,
        path: str,
        record: Callable[[dict[str, Any]], Record | None],
        stir: Callable[[], None],
        *,
        name: str,
        label_selector: str = "",
        matters: Callable[[Record], bool] = lambda _record: True,
        field_selector: str = "",
        silence_seconds: float = SILENCE_SECONDS,
        may_be_unserved: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.synced = asyncio.Event()
        self.problem: Unavailable | None = None
        """Why the API server is not heard just now; None while it is."""
        self.is_served: bool | None = None
        """Whether the API server knows the kind; None before the first answer."""
        self._may_be_unserved = may_be_unserved
        self._api = api
        self._path = path
        self._record = record
        self._stir = stir
        self._matters = matters
        selectors = {"labelSelector": label_selector, "fieldSelector": field_selector}
        self._query: dict[str, str | int] = {key: text for key, text in selectors.items() if text}
        self._silence = silence_seconds
        self._clock = clock
        self._current_at = -float("inf")
        self._watching: asyncio.Timeout | None = None
        self._in_doubt = False
        self._held: dict[tuple[str, str], Record] = {}
        self._sorted: tuple[Record, ...] | None = ()

    @property
    def age(self) -> float:
        """Seconds since the API server last said anything about this kind; infinite before the first list."""
        return self._clock() - self._current_at

    def all(self) -> tuple[Record, ...]:
        """By namespace and name."""
        if self._sorted is None:
            self._sorted = tuple(self._held[key] for key in sorted(self._held))
        return self._sorted

    def get(self, namespace: str, name: str) -> Record | None:
        return self._held.get((namespace, name))

    async def run(self) -> None:
        version: str | None = None
        failures = 0
        while True:
            began = self._clock()
            problem: Unavailable | None = None
            try:
                if self._in_doubt:
                    version, self._in_doubt = None, False
                if version is None:
                    version = await self._list()
                async with asyncio.timeout(None) as self._watching:
                    if self._in_doubt:  # since the list was asked for
                        self.doubt()
                    async for line in self._api.watch(
                        self._path,
                        silence_seconds=self._silence,
                        resourceVersion=version,
                        allowWatchBookmarks="true",
                        timeoutSeconds=WATCH_SECONDS,
                        **self._query,
                    ):
                        self.hear()
                        if line:
                            version = self._next(version, line)
                            failures = 0
            except TimeoutError:
                log.info("%s: listing again, what is held was in doubt", self.name)
                version = None
            except Gone as gone:
                log.info("%s: listing again, the watch expired: %s", self.name, gone)
                version = None
            except NotFound as unknown:
                if self._may_be_unserved and version is None and not self._held:
                    self.is_served = False
                    self._replace({})
                    await asyncio.sleep(UNSERVED_SECONDS)
                    continue
                problem = self.problem = unknown
            except Unavailable as caught:
                problem = self.problem = caught
            finally:
                self._watching = None
            failures = 0 if self._clock() - began >= STEADY_SECONDS else failures + 1
            if failures == WORTH_A_WARNING:
                log.warning("%s: not followed for now: %s", self.name, problem or "the watch ends at once")
            if _is_against_the_version(problem) or failures >= WORTH_A_WARNING:
                version = None
            await asyncio.sleep(BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS) - 1)])

    def doubt(self) -> None:
        """Lists again, without waiting for the watch to say something: the API server knows more than is held here."""
        self._in_doubt = True
        if self._watching is not None and not self._watching.expired():
            self._watching.reschedule(asyncio.get_running_loop().time())

    def _next(self, version: str, line: bytes) -> str:
        """The version to go on from after a line of the watch. Raises Unavailable for one that is no event.

        An event that is no newer than the last is a repeat, which could bring back what is gone. Versions of one kind
        can be compared as numbers (Kubernetes' API concepts, "Resource versions").
        """
        try:
            event = json.loads(line)
            metadata = {} if event["type"] == "ERROR" else event["object"]["metadata"]
            if metadata and int(metadata["resourceVersion"]) <= int(version):
                return version
        except (ValueError, KeyError, TypeError) as broken:
            raise Unavailable(f"no event: {line[:80]!r}") from broken
        return self.take(event)

    async def _list(self) -> str:
        """Replaces everything held. Raises Unavailable; a page that expired half-way is Gone."""
        held: dict[tuple[str, str], Record] = {}
        more: dict[str, str | int] = {}
        while True:
            page = await self._api.get(self._path, limit=PAGE, **self._query, **more)
            held.update(self._records(page.get("items") or ()))
            if not (token := page["metadata"].get("continue")):
                break
            more = {"continue": token}
        self.is_served = True
        self._replace(held)
        return str(page["metadata"]["resourceVersion"])

    def hear(self) -> None:
        """The API server said something: what is held is current as of now."""
        self._current_at = self._clock()
        self.problem = None

    def hold(self, items: Iterable[dict[str, Any]]) -> None:
        """A whole list replaces everything held."""
        self._replace(self._records(items))

    def _records(self, items: Iterable[dict[str, Any]]) -> dict[tuple[str, str], Record]:
        return {_key(item): kept for item in items if (kept := self._read(item)) is not None}

    def _replace(self, held: dict[tuple[str, str], Record]) -> None:
        changed = held != self._held or not self.synced.is_set()
        self._held, self._sorted = held, None
        self.hear()
        self.synced.set()
        if changed:
            self._stir()

    def take(self, event: dict[str, Any]) -> str:
        """One watch event; returns the version to go on from. Raises Gone or ApiError for the server's own errors."""
        kind, item = event["type"], event["object"]
        if kind == "ERROR":
            code = int(item.get("code", 0))
            error = Gone if code == 410 else ApiError
            raise error(code, str(item.get("reason", "")), str(item.get("message", "")))
        version = str(item["metadata"]["resourceVersion"])
        if kind != "BOOKMARK":
            key = _key(item)
            before = self._held.get(key)
            after = None if kind == "DELETED" else self._read(item)
            if after is None:
                self._held.pop(key, None)
            else:
                self._held[key] = after
            if after != before:
                self._sorted = None
                if any(each is not None and self._matters(each) for each in (before, after)):
                    self._stir()
        return version

    def _read(self, item: dict[str, Any]) -> Record | None:
        """The record of one object. One that cannot be read is logged and left out, so that it hides no other."""
        try:
            return self._record(item)
        except (KeyError, ValueError, TypeError, AttributeError) as problem:
            log.error("%s %s cannot be read: %s: %s", self.name, "/".join(_key(item)), type(problem).__name__, problem)
            return None


def _key(item: dict[str, Any]) -> tuple[str, str]:
    metadata = item["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _is_against_the_version(problem: Unavailable | None) -> bool:
    """Whether to list anew: the server would not go on from it, or the watch may have missed something."""
    return isinstance(problem, Silent) or (isinstance(problem, ApiError) and problem.status not in PASSING)
