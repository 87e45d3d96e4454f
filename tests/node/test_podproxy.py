"""The pod proxy: clients reach pods at addresses that no interface has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import httpx
import pytest

from gpupack.node.podproxy import Address, PodProxy

PATIENCE_SECONDS = 60.0
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[Address]:
    connections = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        with suppress(EOFError):
            await handler(reader, writer)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[:2]
    async with asyncio.timeout(PATIENCE_SECONDS):
        await asyncio.gather(*connections)


def echo(name: str) -> Handler:
    """Answers every request with its name, how many it had on this connection, the request's line and its body."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        count = 0
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lengths = [line for line in head.lower().split("\r\n") if line.startswith("content-length:")]
            if "chunked" in head.lower():
                sent = await reader.readuntil(b"0\r\n\r\n")
            else:
                sent = await reader.readexactly(int(lengths[0].split(":")[1]) if lengths else 0)
            count += 1
            body = f"{name} {count} {head.splitlines()[0]} ".encode() + sent
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    return handle


@pytest.fixture
async def table() -> AsyncIterator[dict[Address, Address]]:
    async with listening(echo("a")) as a, listening(echo("b")) as b:
        yield {("10.77.0.1", 8000): a, ("10.77.0.2", 8000): b, ("10.77.0.2", 80): b}


@pytest.fixture
async def proxy(table: dict[Address, Address]) -> AsyncIterator[PodProxy]:
    async with PodProxy(table) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: PodProxy) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(proxy=proxy.url, trust_env=False) as client:
        yield client


async def test_each_address_reaches_its_own_pod_with_path_and_query(client: httpx.AsyncClient) -> None:
    a = await client.get("http://10.77.0.1:8000/metrics?x=1")
    b = await client.get("http://10.77.0.2/")
    assert (a.text, b.text) == ("a 1 GET /metrics?x=1 HTTP/1.1 ", "b 1 GET / HTTP/1.1 ")


async def test_a_connection_is_kept_for_the_next_request(client: httpx.AsyncClient) -> None:
    answers = [(await client.post("http://10.77.0.1:8000/", content=b"hello")).text for _ in range(3)]
    assert answers == [f"a {count} POST / HTTP/1.1 hello" for count in (1, 2, 3)]


async def test_one_connection_to_the_proxy_may_ask_different_pods_in_turn(proxy: PodProxy) -> None:
    host, port = proxy.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    answers = []
    for pod in ("10.77.0.1", "10.77.0.2", "10.77.0.1"):
        writer.write(f"GET http://{pod}:8000/ HTTP/1.1\r\nHost: {pod}:8000\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        answers.append(await reader.readexactly(int(head.split(b"Content-Length: ")[1])))
    writer.close()
    assert answers == [b"a 1 GET / HTTP/1.1 ", b"b 1 GET / HTTP/1.1 ", b"a 1 GET / HTTP/1.1 "]


async def test_a_body_of_unknown_length_goes_through(client: httpx.AsyncClient) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    answer = await client.post("http://10.77.0.1:8000/", content=body())
    again = await client.get("http://10.77.0.1:8000/")
    assert answer.text == "a 1 POST / HTTP/1.1 3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
    assert again.text.startswith("a 2 ")


async def test_a_body_larger_than_any_buffer_goes_through(client: httpx.AsyncClient) -> None:
    content = bytes(range(256)) * 8192
    answer = await client.post("http://10.77.0.1:8000/", content=content)
    assert answer.content.endswith(content)


async def test_a_stream_arrives_piece_by_piece(table: dict[Address, Address], client: httpx.AsyncClient) -> None:
    go_on = asyncio.Event()

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        await go_on.wait()
        writer.write(b"data: 2\n\n")

    async with listening(stream) as table["10.77.0.3", 8000], client.stream("GET", "http://10.77.0.3:8000/") as answer:
        pieces = answer.aiter_text()
        assert await anext(pieces) == "data: 1\n\n"  # the pod has not gone on yet
        go_on.set()
        assert "".join([piece async for piece in pieces]) == "data: 2\n\n"


async def test_a_client_that_leaves_a_stream_ends_it_at_the_pod(
    table: dict[Address, Address], client: httpx.AsyncClient
) -> None:
    left = asyncio.Event()

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\ndata: 1\n\n")
        if await reader.read() == b"":
            left.set()

    async with listening(stream) as table["10.77.0.3", 8000]:
        async with client.stream("GET", "http://10.77.0.3:8000/") as answer:
            await anext(answer.aiter_text())
        async with asyncio.timeout(PATIENCE_SECONDS):
            await left.wait()


async def test_an_address_without_a_pod_is_a_bad_gateway(client: httpx.AsyncClient) -> None:
    answer = await client.get("http://10.77.0.9:8000/")
    assert (answer.status_code, answer.text) == (502, "no pod has the address 10.77.0.9:8000\n")


async def test_a_pod_that_does_not_listen_is_a_bad_gateway(
    table: dict[Address, Address], client: httpx.AsyncClient
) -> None:
    async with listening(echo("gone")) as table["10.77.0.3", 8000]:
        pass
    answer = await client.get("http://10.77.0.3:8000/")
    assert answer.status_code == 502
    assert answer.text.startswith("10.77.0.3:8000: ")


async def test_the_table_may_change_while_the_proxy_runs(table: dict[Address, Address], proxy: PodProxy) -> None:
    async def status() -> int:
        async with httpx.AsyncClient(proxy=proxy.url, trust_env=False) as client:
            return (await client.get("http://10.77.0.4:8000/")).status_code

    before = await status()
    table["10.77.0.4", 8000] = table["10.77.0.1", 8000]
    during = await status()
    del table["10.77.0.4", 8000]
    assert (before, during, await status()) == (502, 200, 502)


async def test_what_is_no_request_to_a_proxy_is_refused_with_a_sentence(proxy: PodProxy) -> None:
    async with httpx.AsyncClient(trust_env=False) as direct:
        answer = await direct.get(f"{proxy.url}/metrics")
    assert (answer.status_code, "forward proxy" in answer.text) == (400, True)


async def test_a_length_that_is_no_number_is_refused_with_a_sentence(proxy: PodProxy) -> None:
    host, port = proxy.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST http://10.77.0.1:8000/ HTTP/1.1\r\nContent-Length: many\r\n\r\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"many" in answer
