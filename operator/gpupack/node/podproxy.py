"""Reaches pods that have no network: an HTTP forward proxy on loopback that knows where each pod really listens.

EndpointSlices refuse loopback addresses, so the virtual node publishes pods at addresses of a private range that no
interface has. Clients (the operator, load generators) are given this proxy and ask for `http://10.77.0.5:8000/...`; it
connects to the loopback port that the table names for that address. It needs no privilege, leaves no route behind, and
two virtual nodes on one machine may publish the same addresses.

Plain HTTP/1.1 without pipelining. Requests are parsed as far as needed to find where each ends; responses are passed on
as they come, byte for byte, so streams stream. An address that the table does not name is answered by 502, as one where
nobody listens; nothing else is ever connected to. It does not know what a pod is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

Address = tuple[str, int]
"""Host and port."""

PIECE_BYTES = 1 << 16
HEAD_BYTES = 1 << 16


class PodProxy:
    """`async with PodProxy(table) as proxy:` listens at `proxy.url`. The table maps a pod's address to where it really
    listens; it is looked into at every request, so the owner may change it at any time."""

    def __init__(self, table: Mapping[Address, Address], *, port: int = 0) -> None:
        self._table = table
        self._port = port
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port, limit=HEAD_BYTES)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection: request after request, until either side has enough."""
        pod: _Pod | None = None
        try:
            while True:
                request = _parse(await reader.readuntil(b"\r\n\r\n"))
                if pod is None or pod.address != request.address:
                    if pod is not None:
                        await pod.close()
                    pod = await self._connect(request.address, writer)
                pod.writer.write(request.head)
                await _pass_body(request, reader, pod.writer)
        except _Refused as refusal:
            writer.write(refusal.response)
        except ValueError as problem:  # a port, a length or the size of a chunk
            writer.write(_Refused("400 Bad Request", str(problem)).response)
        except (OSError, EOFError, asyncio.LimitOverrunError):
            pass  # the client has gone, or what it sends is no HTTP: there is nobody to tell
        finally:
            try:
                if pod is not None:
                    await pod.close()
            finally:  # the proxy may end while the pod's side is being closed
                await _close(writer)

    async def _connect(self, address: Address, client: asyncio.StreamWriter) -> _Pod:
        listener = self._table.get(address)
        if listener is None:
            raise _Refused("502 Bad Gateway", f"no pod has the address {address[0]}:{address[1]}")
        try:
            reader, writer = await asyncio.open_connection(*listener)
        except OSError as problem:
            raise _Refused("502 Bad Gateway", f"{address[0]}:{address[1]}: {problem.strerror}") from problem
        return _Pod(address=address, writer=writer, answers=asyncio.ensure_future(_pass_answers(reader, client)))


class _Refused(Exception):
    """The proxy itself answers, and the connection ends."""

    def __init__(self, status: str, why: str) -> None:
        super().__init__(why)
        body = f"{why}\n".encode()
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.response = head.encode() + body


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pod:
    """The connection to a pod, and the task that passes its answers to the client."""

    address: Address
    writer: asyncio.StreamWriter
    answers: asyncio.Task[None]

    async def close(self) -> None:
        self.answers.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await self.answers
        await _close(self.writer)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """`head` as the pod gets it, `body_bytes` unless the body is `chunked`."""

    address: Address
    head: bytes
    body_bytes: int
    chunked: bool


def _parse(head: bytes) -> _Request:
    lines = head[:-4].decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or not words[1].lower().startswith("http://"):
        raise _Refused("400 Bad Request", "this is a forward proxy for plain HTTP: ask for a whole http:// URL")
    method, target, version = words
    url = urlsplit(target)
    if url.hostname is None:
        raise _Refused("400 Bad Request", f"{target} names no host")
    length, chunked, kept = 0, False, []
    for line in lines[1:]:
        name, _, value = line.partition(":")
        match name.lower():
            case "content-length":
                length = int(value)
            case "transfer-encoding":
                chunked = "chunked" in value.lower()
            case "proxy-connection" | "proxy-authorization" | "host":
                continue
        kept.append(line)
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    host = f"Host: {url.netloc.rpartition('@')[2]}"  # RFC 9112 3.2.2: what the target says, not what the client does
    text = "\r\n".join((f"{method} {path} {version}", host, *kept, "", ""))
    return _Request(
        address=(url.hostname, url.port or 80), head=text.encode("latin-1"), body_bytes=length, chunked=chunked
    )


async def _pass_body(request: _Request, reader: asyncio.StreamReader, pod: asyncio.StreamWriter) -> None:
    if not request.chunked:
        await _pass_bytes(request.body_bytes, reader, pod)
        return
    size = -1
    while size != 0:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        pod.write(line)
        await _pass_bytes(size + 2 if size else 0, reader, pod)  # a chunk ends with an empty line
    while line != b"\r\n":  # after the last chunk: trailers, then an empty line
        line = await reader.readuntil(b"\r\n")
        pod.write(line)
    await pod.drain()


async def _pass_bytes(count: int, reader: asyncio.StreamReader, pod: asyncio.StreamWriter) -> None:
    while count > 0:
        piece = await reader.read(min(count, PIECE_BYTES))
        if not piece:
            raise EOFError
        pod.write(piece)
        await pod.drain()
        count -= len(piece)


async def _pass_answers(reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
    """All that the pod says, as it comes. When the pod ends the connection, so ends the client's."""
    with contextlib.suppress(OSError):
        while piece := await reader.read(PIECE_BYTES):
            client.write(piece)
            await client.drain()
    client.close()  # not if this task is cancelled: then the client turns to another pod


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
