"""What becomes of one request at a serving's door: it waits for an engine, is handed on, or is sent away with 503.

Answers stream through as they come; a client that goes takes its request along. What asks for nothing to be generated
(anything but POST) does not wake a serving, or monitors would keep it awake. Knows HTTP, not Kubernetes.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Protocol, Self

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from gpupack.activator.counts import Counts, Fate
from gpupack.activator.holding import Full, Holding
from gpupack.activator.routes import Door
from gpupack.facts.serving import ServingKey

UNKNOWN_WAKE_SECONDS = 60.0
"""What a first wake is taken to last: weights from a node's disk into a GPU, and vLLM's own start."""
CONNECT_SECONDS = 5.0
AGAIN_SECONDS = 0.25
"""An engine that refused is asked again after this; its slice may just be a little old."""
HOP_BY_HOP = frozenset(
    ("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding",
     "upgrade", "proxy-connection")
)  # fmt: skip
AUTOMATIC = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
TOO_LARGE, BAD_GATEWAY, UNAVAILABLE = 413, 502, 503


class Known(Protocol):
    """What is known of doors and engines."""

    def doors(self) -> Mapping[int, Door]: ...
    def engines(self, serving: ServingKey) -> tuple[str, ...]: ...


class _Sent(Exception):
    """The request is sent away, with so many seconds until it may be tried again."""

    def __init__(self, fate: Fate, why: str, after: float, status: int = UNAVAILABLE) -> None:
        super().__init__(why)
        self.fate = fate
        self.why = why
        self.after = after
        self.status = status


class Proxy:
    """Used with `async with`. `clock` is monotonic; `pod_proxy` is a plain HTTP forward proxy that reaches the pods."""

    def __init__(
        self, known: Known, holding: Holding, counts: Counts, *, pod_proxy: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._known = known
        self._holding = holding
        self._counts = counts
        self._pod_proxy = pod_proxy
        self._clock = clock
        self._doors: Mapping[int, Door] = {}
        self._moved = asyncio.Event()
        self._ending = False
        self._under_way: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(
            auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            connector=aiohttp.TCPConnector(limit=0), skip_auto_headers=AUTOMATIC, cookie_jar=aiohttp.DummyCookieJar(),
        )  # fmt: skip
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()

    def stirred(self) -> None:
        """Doors or engines have changed."""
        self._doors = self._known.doors()
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    def end(self) -> None:
        """Sends away whoever waits."""
        self._ending = True
        self.stirred()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        port = request.transport.get_extra_info("sockname")[1]
        door, began = self._doors.get(port), self._clock()
        if door is None:
            return _sent(_Sent(Fate.REFUSED, "no serving has this port any more", 1.0))
        try:
            return await self._through(door, request, began)
        except _Sent as away:
            self._counts.ended(door.serving, away.fate)
            return _sent(away)
        except asyncio.CancelledError:
            self._counts.ended(door.serving, Fate.LEFT)
            raise

    async def _through(self, door: Door, request: web.Request, began: float) -> web.StreamResponse:
        """Raises _Sent."""
        body: bytes | None = None
        while True:
            if request.method != "POST" and not self._known.engines(door.serving):
                raise _Sent(Fate.REFUSED, "the model sleeps; only a POST wakes it", self._until_awake(door))
            try:
                with self._holding.room(door.serving) as take:
                    body = await self._body(request, take) if body is None else body
                    address = await self._engine(door, began)
            except Full as full:
                raise _Sent(Fate.FULL, f"the model is waking, and {full}", self._until_awake(door)) from None
            self._counts.waited(door.serving, self._clock() - began)
            self._under_way[address] += 1
            try:
                return await self._hand_on(door, request, body, address, began)
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(AGAIN_SECONDS)
            except (aiohttp.ClientError, OSError) as broken:
                raise _Sent(Fate.BROKEN, f"the engine did not answer: {broken}", 1.0, BAD_GATEWAY) from broken
            finally:
                self._under_way[address] -= 1

    async def _body(self, request: web.Request, take: Callable[[int], None]) -> bytes:
        if (request.content_length or 0) > self._holding.bounds.body_bytes:
            raise _Sent(Fate.FULL, "the request is larger than everything that may wait", 0.0, TOO_LARGE)
        pieces = []
        async for piece in request.content.iter_any():
            take(len(piece))
            pieces.append(piece)
        return b"".join(pieces)

    async def _engine(self, door: Door, began: float) -> str:
        """The address of an engine that takes requests, of several the one with the fewest from here."""
        try:
            async with asyncio.timeout(max(0.0, began + self._holding.bounds.patience - self._clock())):
                while True:
                    moved = self._moved
                    if self._ending:
                        raise _Sent(Fate.REFUSED, "the activator ends; ask again", 1.0)
                    if self._doors.get(door.port) is None:
                        raise _Sent(Fate.REFUSED, "the ModelServing is gone", 1.0)
                    if engines := self._known.engines(door.serving):
                        return min(engines, key=lambda each: (self._under_way[each], each))
                    await moved.wait()
        except TimeoutError:
            seconds = self._holding.bounds.patience
            why = f"no engine was ready within {seconds:.0f} s; `kubectl describe modelserving` says why"
            raise _Sent(Fate.TIMED_OUT, why, door.wake_seconds or UNKNOWN_WAKE_SECONDS) from None

    def _until_awake(self, door: Door) -> float:
        """What is left of a wake that takes as long as the last one."""
        return (door.wake_seconds or UNKNOWN_WAKE_SECONDS) - self._holding.oldest(door.serving)

    async def _hand_on(
        self, door: Door, request: web.Request, body: bytes | None, address: str, began: float
    ) -> web.StreamResponse:
        url = URL(f"http://{address}{request.raw_path}", encoded=True)
        async with self._http.request(
            request.method, url, headers=_passed(request.headers), data=body or None, allow_redirects=False,
            proxy=self._pod_proxy,
        ) as said:  # fmt: skip
            answer = web.StreamResponse(status=said.status, reason=said.reason, headers=_passed(said.headers))
            answer.force_close()  # the next request goes where the Service leads then: to the engines
            await answer.prepare(request)
            first = True
            try:
                async for piece in said.content.iter_any():
                    if first:
                        self._counts.first_byte(door.serving, self._clock() - began)
                        first = False
                    await answer.write(piece)
            except aiohttp.ClientPayloadError:
                # The client must see that something is missing: an orderly end would look like a whole answer.
                if request.transport is not None:
                    request.transport.abort()
                self._counts.ended(door.serving, Fate.BROKEN)
                return answer
            await answer.write_eof()
        self._counts.ended(door.serving, Fate.ANSWERED)
        return answer


def _passed(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """Everything but what concerns only one connection."""
    named = {word.strip().lower() for word in headers.get("Connection", "").split(",")}
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in HOP_BY_HOP | named)


def _sent(away: _Sent) -> web.Response:
    """In the words of OpenAI's API, so that its clients show the sentence."""
    error = {"message": away.why, "type": "service_unavailable", "code": away.status}
    headers = {"Retry-After": str(max(1, math.ceil(away.after)))} if away.status == UNAVAILABLE else {}
    answer = web.json_response({"error": error}, status=away.status, headers=headers)
    answer.force_close()
    return answer
