"""The clients of `gpupack profile` against a virtual vLLM over HTTP: what they see is what the engine did."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from gpupack.cli import main
from gpupack.errors import Unavailable
from gpupack.node.engine_server import EngineServer
from gpupack.node.exchange import Exchange
from gpupack.node.podproxy import PodProxy
from gpupack.profiling.client import Clients, Endpoint, Load, Window
from gpupack.twin.engine import Engine, EngineConfig

MODEL = "org/tiny"
URL = "http://10.77.0.5:8000"
KEY = "a-key"
STEP_SECONDS = 0.002
MOST_LOOKS = 10
LOAD = Load(input_tokens=40, output_tokens=20, seconds=0.5)


@pytest_asyncio.fixture
async def proxy() -> AsyncIterator[str]:
    """A proxy that leads to one engine whose every step takes two milliseconds."""
    loop = asyncio.get_running_loop()
    engine = Engine(EngineConfig(max_num_seqs=4, kv_blocks=101, max_model_len=256))
    page = "vllm:num_preemptions_total 0.0\n"
    server = EngineServer(
        engine, names=(MODEL,), model=MODEL, version="0.33.0", api_key=KEY, clock=loop.time, hurry=lambda: None,
        page=lambda _: page,
    )  # fmt: skip

    async def run() -> None:
        while True:
            if engine.begin_step(loop.time()):
                await asyncio.sleep(STEP_SECONDS)
                engine.end_step(loop.time())
            else:
                await asyncio.sleep(STEP_SECONDS)
            server.flush()

    async with Exchange() as exchange, PodProxy(exchange.table) as proxy:
        exchange.open("10.77.0.5", 8000, server.answer)
        running = asyncio.create_task(run())
        yield proxy.url
        running.cancel()


async def test_throughput_and_latency_are_those_of_the_engine(proxy: str) -> None:
    async with Clients(Endpoint(url=URL, api_key=KEY, proxy=proxy), LOAD) as clients:
        assert (clients.dialect.model, clients.dialect.chat, clients.dialect.version) == (MODEL, False, "0.33.0")
        assert clients.dialect.tokens_per_word == pytest.approx(1.0)
        looks = 1
        while not _are_the_engines(await clients.measure(1), await clients.measure(4)):
            looks += 1  # a machine that was busy elsewhere for a part of so short a window shows in it
            assert looks <= MOST_LOOKS, "no window showed the engine as it is"


def _are_the_engines(one: Window, four: Window) -> bool:
    assert one.itl >= STEP_SECONDS
    assert one.preemptions == 0
    assert one.failed == four.failed == 0
    return (
        one.tpot == pytest.approx(one.itl, rel=0.3)
        and four.total_tokens_per_second > 2.0 * one.total_tokens_per_second
        and four.prompt_tokens == pytest.approx(40, rel=0.4)
        and four.output_tokens == pytest.approx(20, rel=0.4)
        # Three tokens in sixty are output, and one sequence makes one of them a gap.
        and one.total_tokens_per_second == pytest.approx(3 / one.itl, rel=0.5)
    )


async def test_a_server_that_refuses_says_so_in_its_own_words(proxy: str) -> None:
    with pytest.raises(Unavailable, match="401"):
        async with Clients(Endpoint(url=URL, proxy=proxy), LOAD):
            pass
    with pytest.raises(Unavailable, match="serves org/tiny; name one of them"):
        async with Clients(Endpoint(url=URL, model="other", api_key=KEY, proxy=proxy), LOAD):
            pass
    long = Load(input_tokens=240, output_tokens=20, seconds=0.1)
    async with Clients(Endpoint(url=URL, api_key=KEY, proxy=proxy), long) as clients:
        with pytest.raises(Unavailable, match="maximum context length is 256"):
            await clients.measure(4)


async def test_the_command_writes_every_run_and_goes_on_from_them(
    proxy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", KEY)
    file = tmp_path / "tiny.json"
    words = ["profile", "--base-url", URL, "--proxy", proxy, "--api-key-env", "THE_KEY", "--input-tokens", "40",
             "--output-tokens", "20", "--seconds", "0.3", "--output", str(file)]  # fmt: skip
    assert await asyncio.to_thread(main, [*words, "--batches", "1"]) == 0
    first = json.loads(file.read_text())
    assert [row["max_num_seqs"] for row in first["points"]] == [1]
    capsys.readouterr()
    assert await asyncio.to_thread(main, [*words, "--batches", "1,2,4"]) == 0
    printed = capsys.readouterr()
    written = json.loads(file.read_text())
    assert [row["max_num_seqs"] for row in written["points"]] == [1, 2, 4]
    assert written["points"][0] == first["points"][0]
    assert "<- chosen" in printed.out
    assert "org/tiny, vLLM 0.33.0" in printed.out

    assert main(["advise", "--profile", str(file), "--itl-slo-ms", "1000", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["measured_bca"]["max_num_seqs"] in (2, 4)

    assert await asyncio.to_thread(main, [*words, "--output-tokens", "30"]) == 2
    assert "holds runs of" in capsys.readouterr().err
