"""One loopback socket for all servers of a virtual node; the Host header says which pod's port is meant.

`table` is what `PodProxy` looks addresses up in: every open port of a pod leads to this socket, a port that nobody
listens on leads nowhere. Knows HTTP, not what the servers say.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from aiohttp import web

from gpupack.node.podproxy import Address

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Exchange:
    """Used with `async with`; afterwards nothing listens any more."""

    def __init__(self) -> None:
        self.table: dict[Address, Address] = {}
        self._servers: dict[Address, Answer] = {}
        self._here: Address = ("127.0.0.1", 0)

    async def __aenter__(self) -> Self:
        server = web.Server(self._answer, access_log=None, handler_cancellation=True)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self._here = ("127.0.0.1", self._runner.addresses[0][1])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.table.clear()
        await self._runner.cleanup()

    def open(self, address: str, port: int, answer: Answer) -> None:
        """From now on somebody listens there."""
        self._servers[address, port] = answer
        self.table[address, port] = self._here

    def close(self, address: str, port: int) -> None:
        """From now on connections are refused; requests under way are their server's business."""
        self._servers.pop((address, port), None)
        self.table.pop((address, port), None)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        host, _, port = request.host.partition(":")
        server = self._servers.get((host, int(port or 80)))
        if server is None:
            return web.Response(status=502, text=f"nobody listens on {request.host}\n")
        return await server(request)


def hang_up(request: web.BaseRequest) -> None:
    """Ends the connection without a word, as a process that dies does."""
    if request.transport is not None:
        request.transport.abort()
