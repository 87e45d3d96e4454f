"""Between the operator and the API server: a proxy that does to calls what networks and busy servers do to them.

It listens on loopback without TLS (the operator's kubeconfig names it) and speaks TLS to the API server. A `Fate` tells
of each call what becomes of it; this file is the one place that knows how each fault is made. It counts the faults.
What a call is (which verb, on what, in which phase of the story) is said by proxy_calls.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import aiohttp
from aiohttp import web
from yarl import URL

from gpupack.node.controlplane import ControlPlane

from .proxy_calls import Call, call_of

HOST = "127.0.0.1"
RETRY_AFTER_SECONDS = 1
KEPT_REPEATS = 3
SECRET_OF_THE_PATH = frozenset({"host", "content-length", "connection", "accept-encoding", "transfer-encoding"})
"""Headers that are between two neighbours, and the one that would compress what is to be torn."""


class Fault(StrEnum):
    """What can become of a call. Those from EXPIRED on happen to a watch that was accepted."""

    DROPPED = "cut before it reached the server"
    DELAYED = "delayed"
    CONFLICT = "answered 409, not done"
    BUSY = "answered 429 with Retry-After, not done"
    GONE = "answered 410"
    BROKEN = "answered 500, not done"
    LOST = "done, and the answer lost"
    EXPIRED = "watch: ERROR event with 410"
    ERROR = "watch: ERROR event with 500"
    CUT = "watch: connection cut"
    SILENT = "watch: open and silent"
    TORN = "watch: ended in the middle of a line"
    GARBLED = "watch: half a line, and on"
    REPEATED = "watch: events twice, and old ones again"
    UNMARKED = "watch: no bookmarks"

    @property
    def is_of_watches(self) -> bool:
        return self.value.startswith("watch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Doom:
    """A fault and its time: how long a call is delayed, or a watch lives before the fault; `silence_seconds` is how
    long a silent watch stays open, None until the client gives up."""

    fault: Fault
    seconds: float = 0.0
    silence_seconds: float | None = None


class Fate(Protocol):
    """Decides about the calls. Both methods are called on the proxy's own loop."""

    def of(self, call: Call) -> Doom | None:
        """What becomes of this call; None: nothing special."""

    def reached(self, call: Call, *, is_done: bool) -> Awaitable[None] | None:
        """Called before the call goes to the server, and again when the server has answered and the operator does not
        know it yet. What is awaited holds the call there."""


class Calm:
    """Nothing happens to any call."""

    def of(self, _call: Call) -> Doom | None:
        return None

    def reached(self, _call: Call, *, is_done: bool) -> Awaitable[None] | None:  # noqa: ARG002 - a Fate
        return None


class Proxy:
    """Used with `with`; runs on a thread of its own. `phase` is set by the story, `fate` by the test."""

    def __init__(self, cluster: ControlPlane, user: str) -> None:
        self.phase = ""
        self.fate: Fate = Calm()
        self.calls: list[Call] = []
        self.faults: Counter[Fault] = Counter()
        self.kubeconfig = cluster.folder / "proxied.kubeconfig"
        self._server = cluster.url
        self._trust = ssl.create_default_context(cafile=str(cluster.certificate_authority))
        self._direct = cluster.kubeconfig_for(user)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        self._on_loop(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._on_loop(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _on_loop(self, work: Awaitable[None]) -> None:
        async def wait() -> None:
            await work

        asyncio.run_coroutine_threadsafe(wait(), self._loop).result()

    async def _open(self) -> None:
        # Plain calls and watches to the server share no limit: there may be two operators' watches for a moment.
        connector = aiohttp.TCPConnector(ssl=self._trust, limit=0)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        # A client that has gone ends its calls here, and with them those to the server.
        self._runner = web.ServerRunner(
            web.Server(self._handle, access_log=None, handler_cancellation=True), shutdown_timeout=0.1
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, 0).start()
        port = self._runner.addresses[0][1]
        _write_kubeconfig(self.kubeconfig, self._direct, f"http://{HOST}:{port}")

    async def _close(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        call = call_of(request, body, self.phase)
        self.calls.append(call)
        doom = self.fate.of(call)
        if doom is not None:
            self.faults[doom.fault] += 1
        if (held := self.fate.reached(call, is_done=False)) is not None:
            await held
        match doom.fault if doom else None:
            case Fault.DROPPED:
                return _cut(request)
            case Fault.DELAYED:
                await asyncio.sleep(doom.seconds if doom else 0.0)
            case Fault.CONFLICT:
                return _refusal(409, "Conflict")
            case Fault.BUSY:
                return _refusal(429, "TooManyRequests", {"Retry-After": str(RETRY_AFTER_SECONDS)})
            case Fault.GONE:
                return _refusal(410, "Expired")
            case Fault.BROKEN:
                return _refusal(500, "InternalError")
        try:
            async with self._session.request(
                request.method, URL(self._server + request.raw_path, encoded=True), data=body or None,
                headers={key: text for key, text in request.headers.items() if key.lower() not in SECRET_OF_THE_PATH},
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5.0),
            ) as answer:  # fmt: skip
                if call.verb == "watch" and answer.status == 200:
                    return await self._relay(request, call, answer, doom)
                text = await answer.read()
        except (aiohttp.ClientError, OSError):
            return _cut(request)  # the server itself is away
        if (held := self.fate.reached(call, is_done=True)) is not None:
            await held
        if doom is not None and doom.fault is Fault.LOST:
            return _cut(request)
        kept = {key: answer.headers[key] for key in ("Content-Type", "Retry-After") if key in answer.headers}
        return web.Response(status=answer.status, body=text, headers=kept)

    async def _relay(
        self, request: web.BaseRequest, call: Call, answer: aiohttp.ClientResponse, doom: Doom | None
    ) -> web.StreamResponse:
        """A watch, line by line, until the server ends it or its doom is due."""
        response = web.StreamResponse(headers={"Content-Type": answer.headers["Content-Type"]})
        await response.prepare(request)
        if (held := self.fate.reached(call, is_done=True)) is not None:
            await held
        fault = doom.fault if doom is not None and doom.fault.is_of_watches else None
        sent: list[bytes] = []
        try:
            async with asyncio.timeout(None if fault is None or doom is None else doom.seconds):
                async for line in _lines(answer.content):
                    if fault is Fault.UNMARKED and line.startswith(b'{"type":"BOOKMARK"'):
                        continue
                    await response.write(line * (2 if fault is Fault.REPEATED else 1))
                    sent = [*sent[-KEPT_REPEATS:], line]
        except TimeoutError:
            assert doom is not None
            match fault:
                case Fault.EXPIRED:
                    await response.write(_error_event(410, "Expired"))
                case Fault.ERROR:
                    await response.write(_error_event(500, "InternalError"))
                case Fault.TORN | Fault.GARBLED:
                    line = sent[-1] if sent else b'{"type":"BOOKMARK","object":{}}\n'
                    await response.write(line[: len(line) // 2] + (b"\n" if fault is Fault.GARBLED else b""))
                case Fault.REPEATED:
                    await response.write(b"".join(sent))
                case Fault.SILENT:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(doom.silence_seconds):
                            await asyncio.Event().wait()
            if fault in (Fault.CUT, Fault.SILENT, Fault.GARBLED):
                return _cut(request, response)
        except (aiohttp.ClientError, OSError):
            return _cut(request, response)
        await response.write_eof()
        return response


def _cut(request: web.BaseRequest, response: web.StreamResponse | None = None) -> web.StreamResponse:
    """Ends the connection without another word."""
    if request.transport is not None:
        request.transport.abort()
    return response or web.Response(status=500)


def _status(code: int, reason: str) -> dict[str, object]:
    said = "the proxy of the journey says so"
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": said,
            "reason": reason, "code": code}  # fmt: skip


def _refusal(code: int, reason: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response(_status(code, reason), status=code, headers=headers)


def _error_event(code: int, reason: str) -> bytes:
    return json.dumps({"type": "ERROR", "object": _status(code, reason)}).encode() + b"\n"


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line + b"\n"


def _write_kubeconfig(path: Path, like: Path, server: str) -> None:
    """The same user and token, at another address."""
    config = json.loads(like.read_text())
    config["clusters"] = [{"name": each["name"], "cluster": {"server": server}} for each in config["clusters"]]
    path.write_text(json.dumps(config))
    path.chmod(0o600)
