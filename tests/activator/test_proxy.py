"""The activator as a client sees it, before a real server: waiting, bounds, streams, clients that go."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web

from gpupack.activator.counts import Counts
from gpupack.activator.holding import Bounds, Holding
from gpupack.activator.proxy import Proxy
from gpupack.activator.routes import Door
from gpupack.facts.serving import ServingKey

PATIENCE_SECONDS = 60.0
CHAT = ServingKey(namespace="team", name="chat")
ROOMY = Bounds(requests=8, body_bytes=1 << 20, patience=30.0)


@dataclass(slots=True)
class Known:
    """Doors and engines, as the slices would tell."""

    port: int = 0
    addresses: tuple[str, ...] = ()
    wake_seconds: float | None = 12.0
    gone: bool = False

    def doors(self) -> dict[int, Door]:
        return {} if self.gone else {self.port: Door(serving=CHAT, port=self.port, wake_seconds=self.wake_seconds)}

    def engines(self, serving: ServingKey) -> tuple[str, ...]:
        return self.addresses if serving == CHAT else ()


@dataclass(slots=True)
class Engine:
    """Answers with what it got, or streams two events with a pause that the test ends."""

    address: str = ""
    got: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.got.append((request.method, request.raw_path, dict(request.headers), await request.read()))
        if request.path != "/stream":
            return web.json_response({"said": "hello"}, status=201, headers={"X-Told": "7"})
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        try:
            await stream.write(b"data: one\n\n")
            await self.go_on.wait()
            await stream.write(b"data: [DONE]\n\n")
        except (asyncio.CancelledError, ConnectionError):
            self.left.set()
            raise
        return stream


@dataclass(slots=True)
class Stage:
    known: Known
    engine: Engine
    holding: Holding
    counts: Counts
    proxy: Proxy
    client: aiohttp.ClientSession

    def wake(self) -> None:
        self.known.addresses = (self.engine.address,)
        self.proxy.stirred()

    def ask(
        self, path: str = "/v1/completions", body: bytes = b"{}"
    ) -> asyncio.Task[tuple[int, dict[str, str], bytes]]:
        return asyncio.create_task(self.asked("POST", path, body))

    async def asked(self, method: str, path: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
        async with self.client.request(method, path, data=body) as answer:
            return answer.status, dict(answer.headers), await answer.read()

    async def until_held(self, count: int) -> None:
        await until(lambda: sum(each[1] for each in self.holding.waiting()) == count)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not true():  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.005)


async def served(stack: contextlib.AsyncExitStack, answer: Callable[[web.Request], object]) -> int:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)  # type: ignore[arg-type]
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port: int = runner.addresses[0][1]
    return port


@contextlib.asynccontextmanager
async def stage(bounds: Bounds = ROOMY) -> AsyncIterator[Stage]:
    async with contextlib.AsyncExitStack() as stack:
        known, engine, holding = Known(), Engine(), Holding(bounds)
        counts = Counts(holding.waiting)
        proxy = await stack.enter_async_context(Proxy(known, holding, counts))
        engine.address = f"127.0.0.1:{await served(stack, engine.answer)}"
        known.port = await served(stack, proxy.answer)
        proxy.stirred()
        client = aiohttp.ClientSession(f"http://127.0.0.1:{known.port}", connector=aiohttp.TCPConnector(limit=0))
        yield Stage(known, engine, holding, counts, proxy, await stack.enter_async_context(client))


async def test_a_request_waits_for_an_engine_and_its_answer_is_handed_on_unchanged() -> None:
    async with stage() as scene:
        asking = asyncio.create_task(scene.asked("POST", "/v1/a%2Fb?x=1&y=%20", b'{"prompt": "hi"}'))
        await scene.until_held(1)
        assert not asking.done()
        scene.wake()
        status, headers, body = await asking
        assert (status, json.loads(body), headers["X-Told"]) == (201, {"said": "hello"}, "7")
        assert headers["Connection"] == "close", "the next request is to go to the engines"
        method, path, _, sent = scene.engine.got[0]
        assert (method, path, sent) == ("POST", "/v1/a%2Fb?x=1&y=%20", b'{"prompt": "hi"}')
        assert scene.holding.waiting() == []
        assert 'gpupack_activator_requests_total{fate="answered",namespace="team",serving="chat"} 1.0' in (
            scene.counts.text().decode()
        )


async def test_a_stream_comes_piece_by_piece() -> None:
    async with stage() as scene:
        scene.wake()
        async with scene.client.post("/stream") as answer:
            assert await answer.content.readany() == b"data: one\n\n"
            scene.engine.go_on.set()
            assert await answer.content.read() == b"data: [DONE]\n\n"
            assert answer.headers["Content-Type"] == "text/event-stream"


async def test_more_than_may_wait_are_sent_away_with_what_is_left_of_the_last_wake() -> None:
    async with stage(Bounds(requests=2, body_bytes=1 << 20, patience=30.0)) as scene:
        waiting = [scene.ask(), scene.ask()]
        await scene.until_held(2)
        status, headers, body = await scene.ask()
        assert (status, 1 <= int(headers["Retry-After"]) <= 12) == (503, True)
        assert "waiting" not in headers
        assert "2 requests wait already" in json.loads(body)["error"]["message"]
        scene.wake()
        assert [(await each)[0] for each in waiting] == [201, 201]


async def test_bodies_are_bounded_in_bytes() -> None:
    async with stage(Bounds(requests=8, body_bytes=1000, patience=30.0)) as scene:
        first = scene.ask(body=b"x" * 900)
        await scene.until_held(1)
        await until(lambda: scene.holding._bytes == 900)
        assert (await scene.ask(body=b"x" * 200))[0] == 503
        assert (await scene.ask(body=b"x" * 2000))[0] == 413
        scene.wake()
        assert (await first)[0] == 201
        assert scene.engine.got[0][3] == b"x" * 900
        assert (await scene.ask(body=b"x" * 900))[0] == 201, "what went on takes no room any more"


@pytest.mark.parametrize("seconds", [None, 7.0])
async def test_nobody_waits_for_ever(seconds: float | None) -> None:
    async with stage(Bounds(requests=2, body_bytes=1000, patience=0.05)) as scene:
        scene.known.wake_seconds = seconds
        scene.proxy.stirred()
        status, headers, body = await scene.ask()
        assert (status, headers["Retry-After"]) == (503, "60" if seconds is None else "7")
        assert "no engine was ready" in json.loads(body)["error"]["message"]
        assert scene.holding.waiting() == []


async def test_a_client_that_goes_waits_no_more() -> None:
    async with stage() as scene:
        asking = scene.ask()
        await scene.until_held(1)
        asking.cancel()
        await scene.until_held(0)
        scene.wake()
        assert scene.engine.got == []


async def test_a_client_that_goes_in_the_middle_of_an_answer_is_not_answered_by_the_engine_either() -> None:
    async with stage() as scene:
        scene.wake()
        async with scene.client.post("/stream") as answer:
            await answer.content.readany()
        await asyncio.wait_for(scene.engine.left.wait(), PATIENCE_SECONDS)


async def test_what_generates_nothing_does_not_wake() -> None:
    async with stage() as scene:
        for method in ("GET", "HEAD"):
            status, headers, _ = await scene.asked(method, "/health")
            assert (status, headers["Retry-After"]) == (503, "12")
        assert (scene.holding.number, scene.holding.waiting()) == (0, [])
        scene.wake()
        assert (await scene.asked("GET", "/v1/models"))[0] == 201


async def test_an_engine_that_refuses_connections_is_asked_again_or_another_is() -> None:
    async with stage() as scene:
        scene.known.addresses = ("127.0.0.1:1",)
        scene.proxy.stirred()
        asking = scene.ask()
        await asyncio.sleep(0)
        scene.wake()
        assert (await asking)[0] == 201


async def test_an_answer_that_breaks_off_is_no_whole_answer() -> None:
    async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await writer.drain()
        writer.close()

    async with stage() as scene, await asyncio.start_server(broken, "127.0.0.1", 0) as server:
        scene.known.addresses = (f"127.0.0.1:{server.sockets[0].getsockname()[1]}",)
        scene.proxy.stirred()
        with pytest.raises(aiohttp.ClientError):
            await scene.ask()


@pytest.mark.parametrize("how", ["gone", "ends"])
async def test_who_waits_is_sent_away_when_the_serving_or_the_activator_goes(how: str) -> None:
    async with stage() as scene:
        asking = scene.ask()
        await scene.until_held(1)
        scene.known.gone = how == "gone"
        (scene.proxy.stirred if scene.known.gone else scene.proxy.end)()
        status, headers, _ = await asking
        assert (status, headers["Retry-After"]) == (503, "1")


async def test_the_news_of_a_first_request_come_at_once() -> None:
    async with stage() as scene:
        hearing = asyncio.create_task(scene.holding.news(scene.holding.number, 30.0))
        await asyncio.sleep(0)
        asking = scene.ask()
        await asyncio.wait_for(hearing, PATIENCE_SECONDS)
        [(serving, count, seconds)] = scene.holding.waiting()
        assert (serving, count, seconds >= 0) == (CHAT, 1, True)
        asking.cancel()
