"""Scraping over real sockets: what answers is read, what does not is waited for by nobody."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from gpupack.facts.observation import Cause, EngineSeen, Missing, Reading
from gpupack.metrics.scrape import EngineTarget, ExporterTarget, Scraper
from gpupack.metrics.windows import Timing
from gpupack.units import Seconds

TIMING = Timing(windows=(Seconds(10.0),), period=Seconds(2.0), stale_periods=3, peak_delay=Seconds(40.0))
UUID = "GPU-34319582-d595-d1c7-d1d2-179bcfa61660"


@dataclass
class Server:
    """Answers what `pages` holds for a path; a path that it does not hold is never answered."""

    pages: dict[str, bytes]
    asked: list[str] = field(default_factory=list)
    connections: set[object] = field(default_factory=set)
    address: str = ""

    async def answer(self, request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        self.connections.add(request.transport.get_extra_info("peername"))
        self.asked.append(request.raw_path)
        if request.raw_path not in self.pages:
            await asyncio.Event().wait()
        return web.Response(body=self.pages[request.raw_path])


Serve = Callable[[dict[str, bytes]], Awaitable[Server]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    async with contextlib.AsyncExitStack() as open_servers:

        async def begin(pages: dict[str, bytes]) -> Server:
            server = Server(pages)
            runner = web.ServerRunner(web.Server(server.answer), shutdown_timeout=0.01)
            await runner.setup()
            open_servers.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            server.address = f"127.0.0.1:{runner.addresses[0][1]}"
            return server

        yield begin


def _engine(server: Server, replica: str = "r") -> EngineTarget:
    return EngineTarget(replica=replica, identity="uid", address=server.address)


async def _round(scraper: Scraper, *targets: EngineTarget, patience: float = 60.0) -> EngineSeen:
    await scraper.round(list(targets), [], timing=TIMING, exporter_period=30.0, patience=patience)
    return scraper.engines_seen(targets, TIMING)[0]


async def test_an_engine_is_read_with_its_version_over_one_kept_connection(serve: Serve, vllm_page: bytes) -> None:
    server = await serve({"/metrics": vllm_page, "/version": b'{"version":"0.33.0"}'})
    now = 1000.0
    async with Scraper(clock=lambda: now) as scraper:
        seen = await _round(scraper, _engine(server))
        now = 1002.0
        again = await _round(scraper, _engine(server))
    assert seen.running == Reading(value=12.0, at=Seconds(1000.0), origin="vllm:num_requests_running")
    assert isinstance(again.running, Reading)
    assert again.running.at == 1002.0
    assert again.version == "0.33.0"
    assert server.asked == ["/metrics", "/version", "/metrics"]
    assert len(server.connections) == 1


async def test_a_target_is_not_scraped_oftener_than_its_period(serve: Serve, vllm_page: bytes) -> None:
    server = await serve({"/metrics": vllm_page, "/version": b'{"version":"0.33.0"}'})
    now = 1000.0
    async with Scraper(clock=lambda: now) as scraper:
        for at in (1000.0, 1000.2, 1001.0, 1001.5, 1001.9, 1002.5, 1004.0):
            now = at
            await _round(scraper, _engine(server))
    assert server.asked.count("/metrics") == 3


async def test_an_engine_in_doubt_is_scraped_out_of_turn_and_its_turn_stays(serve: Serve, vllm_page: bytes) -> None:
    server = await serve({"/metrics": vllm_page, "/version": b"{}"})
    now = [1000.0]
    async with Scraper(clock=lambda: now[0]) as scraper:
        for at, again, scrapes in (
            (0.0, (), 1), (0.2, ("r",), 1), (0.5, ("other",), 1), (0.5, ("r",), 2), (1.9, (), 3),
        ):  # fmt: skip
            now[0] = 1000.0 + at
            await scraper.round(
                [_engine(server)], [], timing=TIMING, exporter_period=30.0, again=again, again_after=0.5
            )
            assert server.asked.count("/metrics") == scrapes, at


async def test_an_engine_that_never_answers_delays_no_other_and_is_missing(serve: Serve, vllm_page: bytes) -> None:
    silent, lively = await serve({}), await serve({"/metrics": vllm_page, "/version": b"{}"})
    targets = (_engine(silent, "silent"), _engine(lively, "lively"))
    now = 1000.0
    async with Scraper(clock=lambda: now) as scraper:
        for _ in range(20):  # a machine that is busy elsewhere may need more than one
            now += 2.0
            await _round(scraper, *targets, patience=0.3)
            waiting, reading = scraper.engines_seen(targets, TIMING)
            if isinstance(reading.running, Reading):
                break
    assert isinstance(waiting.running, Missing)
    assert waiting.running.cause is Cause.UNREACHABLE
    assert isinstance(reading.running, Reading)


async def test_an_engine_that_refuses_connections_is_unreachable() -> None:
    async with Scraper() as scraper:
        seen = await _round(scraper, EngineTarget(replica="r", identity="u", address="127.0.0.1:1"))
    assert isinstance(seen.running, Missing)
    assert seen.running.cause is Cause.UNREACHABLE


async def test_a_replaced_pod_of_the_same_address_begins_a_new_history(serve: Serve, vllm_page: bytes) -> None:
    server = await serve({"/metrics": vllm_page, "/version": b"{}"})
    async with Scraper() as scraper:
        await _round(scraper, _engine(server))
        other = EngineTarget(replica="r", identity="another uid", address=server.address)
        (unseen,) = scraper.engines_seen([other], TIMING)
    assert isinstance(unseen.running, Missing)


async def test_gpus_are_read_from_exporters_and_say_why_when_they_are_not(serve: Serve, dcgm_before: bytes) -> None:
    server = await serve({"/metrics": dcgm_before})
    good = ExporterTarget(name="dcgm-1", node="node-1", address=server.address)
    gone = ExporterTarget(name="dcgm-2", node="node-2", address="127.0.0.1:1")
    async with Scraper(clock=lambda: 1000.0) as scraper:
        await scraper.round([], [good, gone], timing=TIMING, exporter_period=30.0, patience=5.0)
        read = scraper.gpu_readings(UUID, "node-1", exporter_period=30.0, stale_periods=3)
        unreachable = scraper.gpu_readings("GPU-2", "node-2", exporter_period=30.0, stale_periods=3)
        unnamed = scraper.gpu_readings("GPU-3", "node-3", exporter_period=30.0, stale_periods=3)
    assert read.dram_active == Reading(value=0.641, at=Seconds(970.0), origin="DCGM_FI_PROF_DRAM_UTIL_RATIO")
    assert isinstance(unreachable.fb_used, Missing)
    assert unreachable.fb_used.cause is Cause.UNREACHABLE
    assert isinstance(unnamed.fb_used, Missing)
    assert unnamed.fb_used.cause is Cause.NO_SERIES


async def test_pods_can_be_reached_through_a_forward_proxy(serve: Serve, vllm_page: bytes) -> None:
    target = EngineTarget(replica="r", identity="u", address="10.77.0.10:8000")
    proxy = await serve({f"http://{target.address}/{path}": page
                         for path, page in (("metrics", vllm_page), ("version", b"{}"))})  # fmt: skip
    async with Scraper(pod_proxy=f"http://{proxy.address}") as scraper:
        seen = await _round(scraper, target)
    assert isinstance(seen.running, Reading)


CARD = b'{"object":"list","data":[{"id":"chat","root":"meta-llama/Llama-3.2-1B"},{"id":"lora","root":"/adapters/a"}]}'


@pytest.mark.parametrize(
    ("answer", "served"),
    [
        pytest.param(CARD, ("/adapters/a", "meta-llama/Llama-3.2-1B"), id="told"),
        pytest.param(b'{"error":"Unauthorized"}', (), id="wants a key"),
        pytest.param(b"[]", (), id="another server"),
    ],
)
async def test_an_engine_that_others_started_is_asked_once_which_model_it_serves(
    serve: Serve, vllm_page: bytes, answer: bytes, served: tuple[str, ...]
) -> None:
    server = await serve({"/metrics": vllm_page, "/version": b'{"version":"0.33.0"}', "/v1/models": answer})
    target = EngineTarget(replica="r", identity="uid", address=server.address, asks_models=True)
    now = 1000.0
    async with Scraper(clock=lambda: now) as scraper:
        assert (await _round(scraper, target)).served == served
        now = 1002.0
        await _round(scraper, target)
    assert server.asked.count("/v1/models") == 1
