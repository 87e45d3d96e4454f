"""A small API server over real sockets: lists with pages, watches with bookmarks, and whatever can go wrong with them.

It serves what a test puts in and records what it is asked; it validates nothing. Whether real objects are accepted is
tested against the real API server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from kubernetes.aio.client.configuration import Configuration

from gpupack.kube.api import Api

Json = dict[str, Any]
PATIENCE_SECONDS = 60.0


@dataclass
class Write:
    method: str
    path: str
    query: dict[str, str]
    content_type: str
    body: Json


@dataclass
class TinyApi:
    """`objects` are listed by collection path. Set `versions_kept_since` to expire older watches."""

    objects: dict[str, dict[tuple[str, str], Json]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    selectors: set[str] = field(default_factory=set)
    writes: list[Write] = field(default_factory=list)
    answer_read: Callable[[web.BaseRequest], web.Response | None] = lambda _request: None
    """Instead of a list or a watch."""
    answer_write: Callable[[Write], tuple[int, Json]] = lambda _write: (200, {})
    versions_kept_since: int = 0
    silent: bool = False
    version: int = 10
    page: int = 500
    port: int = 0
    _watches: set[tuple[str, asyncio.Queue[bytes | None]]] = field(default_factory=set)
    _history: list[tuple[int, str, bytes]] = field(default_factory=list)
    _runner: web.ServerRunner | None = None

    async def start(self) -> None:
        self._runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """The port is closed and every connection with it; a later `start` is at the same address."""
        self.end_watches()
        if self._runner is not None:
            await self._runner.cleanup()

    def api(self) -> Api:
        return Api(Configuration(host=f"http://127.0.0.1:{self.port}"))

    def put(self, collection: str, obj: Json, *, told: bool = True) -> None:
        """Creates or replaces; `told` False is an event that no watch will ever see."""
        key = (obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
        kind = "MODIFIED" if key in self.objects.setdefault(collection, {}) else "ADDED"
        self.version += 1
        obj = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.version)}}
        self.objects[collection][key] = obj
        if told:
            self._tell(collection, kind, obj)

    def remove(self, collection: str, name: str, namespace: str = "", *, told: bool = True) -> None:
        obj = self.objects[collection].pop((namespace, name))
        self.version += 1
        if told:
            obj = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.version)}}
            self._tell(collection, "DELETED", obj)

    def bookmark(self, collection: str) -> None:
        obj = {"metadata": {"resourceVersion": str(self.version)}}
        self._tell(collection, "BOOKMARK", obj)

    def send(self, collection: str, line: bytes) -> None:
        for path, queue in self._watches:
            if path == collection:
                queue.put_nowait(line)

    def end_watches(self) -> None:
        for _, queue in self._watches:
            queue.put_nowait(None)

    def _tell(self, collection: str, kind: str, obj: Json) -> None:
        line = json.dumps({"type": kind, "object": obj}).encode() + b"\n"
        self._history.append((self.version, collection, line))
        self.send(collection, line)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.silent:
            await asyncio.Event().wait()
        if request.method != "GET":
            return await self._write(request)
        self.selectors.add(request.query.get("labelSelector", ""))
        if (instead := self.answer_read(request)) is not None:
            self.asked.append(("refused", request.path))
            return instead
        if request.query.get("watch") == "true":
            return await self._watch(request)
        self.asked.append(("list", request.path))
        found = self.objects.get(request.path, {})
        keys = sorted(found)
        begin = int(request.query.get("continue", "0"))
        end = begin + self.page
        metadata: Json = {"resourceVersion": str(self.version)}
        if end < len(keys):
            metadata["continue"] = str(end)
        return web.json_response({"metadata": metadata, "items": [found[key] for key in keys[begin:end]]})

    async def _watch(self, request: web.BaseRequest) -> web.StreamResponse:
        since = int(request.query["resourceVersion"])
        response = web.StreamResponse()
        await response.prepare(request)
        if since < self.versions_kept_since:
            self.asked.append(("watch", request.path))
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            await response.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            return response
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        for version, collection, line in self._history:
            if collection == request.path and version > since:
                queue.put_nowait(line)
        entry = (request.path, queue)
        self._watches.add(entry)
        self.asked.append(("watch", request.path))  # only now, for who has seen it may count on being heard
        try:
            while (event := await queue.get()) is not None:
                await response.write(event)
        except ConnectionError:
            pass
        finally:
            self._watches.discard(entry)
        return response

    async def _write(self, request: web.BaseRequest) -> web.StreamResponse:
        write = Write(
            method=request.method,
            path=request.path,
            query=dict(request.query),
            content_type=request.content_type,
            body=json.loads(await request.read() or b"{}"),
        )
        self.writes.append(write)
        code, body = self.answer_write(write)
        return web.json_response(body, status=code)


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[TinyApi]:
    server = TinyApi()
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def until(true: Callable[[], bool]) -> None:
    """Waits until it is so; a promise that is not kept fails the test after a while."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not true():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def running(*works: Awaitable[None]) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
