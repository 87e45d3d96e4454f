"""Requests to an API server that is busy, broken or not there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from gpupack.errors import Unavailable
from gpupack.kube.api import Api, ApiError, Conflict, Silent

from . import tiny_api
from .tiny_api import TinyApi

PATH = "/api/v1/things"
REST_SECONDS = 1


@pytest.fixture
async def server() -> AsyncIterator[TinyApi]:
    async with tiny_api.serving() as server:
        yield server


@pytest.fixture
async def api(server: TinyApi) -> AsyncIterator[Api]:
    async with server.api() as api:
        yield api


async def test_a_busy_server_is_left_alone_for_as_long_as_it_asks(server: TinyApi, api: Api) -> None:
    busy = [web.json_response({"code": 429}, status=429, headers={"Retry-After": str(REST_SECONDS)})]
    server.answer_read = lambda _request: busy.pop() if busy else None
    with pytest.raises(ApiError, match="429"):
        await api.get(PATH, limit=1)
    now = asyncio.get_running_loop().time
    refused_at = now()
    await api.merge(f"{PATH}/a", {})
    assert now() - refused_at > 0.9 * REST_SECONDS


async def test_a_refusal_says_its_code_and_reason(server: TinyApi, api: Api) -> None:
    server.answer_write = lambda _write: (409, {"reason": "Conflict", "message": "the object has been modified"})
    with pytest.raises(Conflict, match="409 Conflict: the object has been modified"):
        await api.merge(f"{PATH}/a", {})


@pytest.mark.parametrize("page", ["<html>", "", "[]", '{"half": '])
async def test_what_is_no_object_is_no_answer(server: TinyApi, api: Api, page: str) -> None:
    server.answer_read = lambda _request: web.Response(text=page)
    with pytest.raises(Unavailable, match="the answer is no"):
        await api.get(PATH)


async def test_a_watch_that_was_accepted_and_says_nothing_is_silent(server: TinyApi, api: Api) -> None:
    watch = api.watch(PATH, silence_seconds=0.05, resourceVersion=str(server.version))
    with pytest.raises(Silent):
        assert [line async for line in watch] == [b""]


async def test_a_server_that_does_not_even_accept_a_watch_is_not_there(server: TinyApi, api: Api) -> None:
    server.silent = True
    with pytest.raises(Unavailable) as problem:
        assert [line async for line in api.watch(PATH, silence_seconds=0.05, resourceVersion="1")] == []
    assert not isinstance(problem.value, Silent)
