"""A virtual engine answers over HTTP as vLLM does: requests, streams, refusals, draining, death, broken metrics."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import pytest_asyncio

from gpupack.node.engine_server import EngineServer, MetricsFault
from gpupack.node.exchange import Exchange
from gpupack.node.podproxy import PodProxy
from gpupack.twin.engine import Engine, EngineConfig

MODEL = "org/tiny"
URL = "http://10.77.0.5:8000"
STEP_SECONDS = 0.01


class Rig:
    """One engine behind the exchange and the proxy; `step` makes time pass, as often as `steps_left` says."""

    def __init__(self, api_key: str | None = None) -> None:
        self.stepped = asyncio.Event()
        self.engine = Engine(EngineConfig(max_num_seqs=4, kv_blocks=101, max_model_len=256))
        self.now = 0.0
        self.steps_left = math.inf
        self.server = EngineServer(
            self.engine, names=(MODEL, "alias"), model=MODEL, version="0.33.0", api_key=api_key,
            clock=lambda: self.now, hurry=lambda: None,
            page=lambda value: f"a_number {self.now if value is None else value}\n",
        )  # fmt: skip

    def step(self) -> None:
        if self.steps_left > 0 and self.engine.begin_step(self.now):
            self.steps_left -= 1
            self.now += STEP_SECONDS
            self.engine.end_step(self.now)
        self.server.flush()
        self.stepped.set()

    async def until(self, true: Callable[[], bool]) -> None:
        while not true():
            self.stepped.clear()
            await self.stepped.wait()

    async def run(self) -> None:
        while True:
            self.step()
            await asyncio.sleep(0)


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    running = asyncio.create_task(rig.run())
    yield rig
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest_asyncio.fixture
async def client(rig: Rig) -> AsyncIterator[httpx.AsyncClient]:
    async with Exchange() as exchange, PodProxy(exchange.table) as proxy:
        exchange.open("10.77.0.5", 8000, rig.server.answer)
        async with httpx.AsyncClient(base_url=URL, proxy=proxy.url, timeout=10.0) as client:
            yield client


def _events(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_a_completion_is_as_long_as_asked_and_counts_its_tokens(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/completions", json={"model": MODEL, "prompt": [1, 2, 3], "max_tokens": 7})
    said = answer.json()
    assert said["usage"] == {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10}
    assert said["choices"][0]["finish_reason"] == "length"
    assert said["object"] == "text_completion"


async def test_a_stream_sends_every_token_once_then_its_usage_then_done(client: httpx.AsyncClient) -> None:
    wish = {"model": MODEL, "prompt": "a b c d", "max_tokens": 9, "stream": True,
            "stream_options": {"include_usage": True}}  # fmt: skip
    answer = await client.post("/v1/completions", json=wish)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *tokens, usage = _events(answer.text)
    assert [chunk["choices"][0]["finish_reason"] for chunk in tokens] == [None] * 8 + ["length"]
    assert all(chunk["choices"][0]["text"] for chunk in tokens)
    assert usage["usage"] == {"prompt_tokens": 4, "completion_tokens": 9, "total_tokens": 13}


async def test_a_chat_begins_with_the_role_and_goes_on_with_content(client: httpx.AsyncClient) -> None:
    wish = {"model": "alias", "messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 3, "stream": True}
    first, *rest = _events((await client.post("/v1/chat/completions", json=wish)).text)
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert len(rest) == 3
    assert all(chunk["choices"][0]["delta"]["content"] for chunk in rest)
    whole = (await client.post("/v1/chat/completions", json={**wish, "stream": False})).json()
    assert whole["choices"][0]["message"]["role"] == "assistant"


async def test_several_prompts_and_choices_are_answered_each_in_their_place(client: httpx.AsyncClient) -> None:
    wish = {"model": MODEL, "prompt": ["a", "b c"], "n": 2, "max_tokens": 2}
    said = (await client.post("/v1/completions", json=wish)).json()
    assert [choice["index"] for choice in said["choices"]] == [0, 1, 2, 3]
    assert said["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize(
    ("wish", "status", "words"),
    [
        ({"model": "other", "prompt": "a"}, 404, "The model `other` does not exist."),
        ({"model": MODEL, "prompt": [0] * 250, "max_tokens": 7}, 400, "maximum context length is 256 tokens"),
        ({"model": MODEL}, 400, "prompt must be"),
        ({"model": MODEL, "prompt": "a", "max_tokens": 0}, 400, "at least 1, got 0"),
        ({"model": MODEL, "prompt": "a", "max_tokens": -1}, 400, "at least 1"),
    ],
)
async def test_what_vllm_refuses_is_refused_in_its_words(
    client: httpx.AsyncClient, wish: dict[str, Any], status: int, words: str
) -> None:
    answer = await client.post("/v1/completions", json=wish)
    assert answer.status_code == status
    assert words in answer.text


async def test_the_small_endpoints_answer(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health")).status_code == 200
    assert (await client.get("/version")).json() == {"version": "0.33.0"}
    models = (await client.get("/v1/models")).json()["data"]
    assert [model["id"] for model in models] == [MODEL, "alias"]
    assert models[0]["max_model_len"] == 256
    assert (await client.get("/nothing")).status_code == 404
    assert (await client.get("/v1/completions")).status_code == 405


async def test_an_api_key_protects_v1_and_nothing_else() -> None:
    rig = Rig(api_key="secret")
    async with Exchange() as exchange, PodProxy(exchange.table) as proxy:
        exchange.open("10.77.0.5", 8000, rig.server.answer)
        async with httpx.AsyncClient(base_url=URL, proxy=proxy.url) as client:
            assert (await client.get("/v1/models")).status_code == 401
            assert (await client.get("/v1/models", headers={"Authorization": "Bearer secret"})).status_code == 200
            assert (await client.get("/metrics")).status_code == 200


async def test_a_draining_engine_is_well_finishes_what_it_has_and_aborts_what_comes(
    client: httpx.AsyncClient, rig: Rig
) -> None:
    long = asyncio.create_task(client.post("/v1/completions", json={"prompt": [1], "max_tokens": 200}))
    await rig.until(lambda: rig.engine.running > 0)
    rig.engine.drain()
    assert (await client.get("/health")).status_code == 200
    late = (await client.post("/v1/completions", json={"prompt": [1], "max_tokens": 5})).json()
    assert late["choices"][0]["finish_reason"] == "abort"
    assert (await long).json()["usage"]["completion_tokens"] == 200


async def test_a_client_that_goes_away_frees_its_place(client: httpx.AsyncClient, rig: Rig) -> None:
    wish = {"prompt": [1], "max_tokens": 255, "stream": True}
    async with client.stream("POST", "/v1/completions", json=wish) as answer:
        await anext(answer.aiter_lines())
    await rig.until(lambda: rig.engine.in_flight == 0)
    assert rig.engine.counters.aborted + rig.engine.counters.succeeded == 1


async def test_an_engine_that_dies_cuts_its_connections(client: httpx.AsyncClient, rig: Rig) -> None:
    wish = {"prompt": [1], "max_tokens": 255, "stream": True}
    rig.steps_left = 9  # or its answer could be whole before the client has read the first word
    async with client.stream("POST", "/v1/completions", json=wish) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        rig.engine.crash(rig.now)
        rig.server.die()
        with pytest.raises(httpx.TransportError):
            [line async for line in lines]


async def test_metrics_can_be_broken_in_every_way_that_happens(client: httpx.AsyncClient, rig: Rig) -> None:
    assert "a_number" in (await client.get("/metrics")).text
    rig.server.break_metrics(MetricsFault.NAN)
    assert (await client.get("/metrics")).text == "a_number nan\n"
    rig.server.break_metrics(MetricsFault.EMPTY)
    assert "a_number" not in (await client.get("/metrics")).text
    rig.server.break_metrics(MetricsFault.FROZEN)
    frozen = (await client.get("/metrics")).text
    rig.now += 1.0
    assert (await client.get("/metrics")).text == frozen
    rig.server.break_metrics(MetricsFault.UNREACHABLE)
    with pytest.raises(httpx.TransportError):
        await client.get("/metrics")
    rig.server.break_metrics(MetricsFault.NONE)
    assert (await client.get("/metrics")).status_code == 200


async def test_a_port_that_was_closed_is_refused_by_the_proxy(rig: Rig) -> None:
    async with Exchange() as exchange, PodProxy(exchange.table) as proxy:
        exchange.open("10.77.0.5", 8000, rig.server.answer)
        async with httpx.AsyncClient(base_url=URL, proxy=proxy.url) as client:
            assert (await client.get("/health")).status_code == 200
            exchange.close("10.77.0.5", 8000)
            assert (await client.get("/health")).status_code == 502
