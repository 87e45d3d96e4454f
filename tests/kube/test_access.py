"""What the operator shows to a Prometheus: out of its Secret, and what is said when that is not right."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from gpupack.errors import Unavailable
from gpupack.kube.access import USUAL_NAMESPACE, token_and_authority
from gpupack.kube.api import Api
from gpupack.kube.source_resource import PrometheusServer

from . import tiny_api
from .tiny_api import TinyApi

PATH = f"/api/v1/namespaces/{USUAL_NAMESPACE}/secrets/gpupack-prometheus"
SERVER = PrometheusServer(url="https://prometheus:9090", secret="gpupack-prometheus")


@pytest.fixture
async def server() -> AsyncIterator[TinyApi]:
    async with tiny_api.serving() as server:
        yield server


@pytest.fixture
async def api(server: TinyApi) -> AsyncIterator[Api]:
    async with server.api() as api:
        yield api


def hold(server: TinyApi, **data: bytes) -> None:
    encoded = {key.replace("_", "."): base64.b64encode(text).decode() for key, text in data.items()}
    server.answer_read = lambda request: web.json_response({"data": encoded}) if request.path == PATH else None


async def test_token_and_authority_come_out_of_the_secret(server: TinyApi, api: Api) -> None:
    hold(server, token=b"sesame\n", ca_crt=b"-----BEGIN CERTIFICATE-----\n")
    assert await token_and_authority(api, SERVER) == ("sesame", "-----BEGIN CERTIFICATE-----")


async def test_an_authority_alone_shows_no_token(server: TinyApi, api: Api) -> None:
    hold(server, ca_crt=b"-----BEGIN CERTIFICATE-----\n")
    assert await token_and_authority(api, SERVER) == (None, "-----BEGIN CERTIFICATE-----")


async def test_without_a_secret_nothing_is_asked_or_shown(api: Api) -> None:
    assert await token_and_authority(api, PrometheusServer(url="http://prometheus:9090")) == (None, None)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({}, "has neither token nor ca.crt"),
        ({"password": b"sesame"}, "has neither token nor ca.crt"),
        ({"token": b"two words"}, "is no bearer token: there are spaces in it"),
        ({"token": b"\xff\xfe"}, "holds what is no text"),
    ],
)
async def test_a_secret_that_cannot_be_used_is_named_with_the_fix(
    server: TinyApi, api: Api, data: dict[str, bytes], says: str
) -> None:
    hold(server, **data)
    with pytest.raises(Unavailable, match=says) as problem:
        await token_and_authority(api, SERVER)
    assert f"{USUAL_NAMESPACE}/gpupack-prometheus" in str(problem.value)


@pytest.mark.parametrize(("code", "says"), [(404, "Create it with the key"), (403, "prometheus.secretNames")])
async def test_a_secret_that_is_not_there_or_forbidden_says_what_to_do(
    server: TinyApi, api: Api, code: int, says: str
) -> None:
    refused: dict[str, Any] = {"kind": "Status", "code": code, "reason": "No", "message": "no"}
    server.answer_read = lambda _request: web.json_response(refused, status=code)
    with pytest.raises(Unavailable, match=says):
        await token_and_authority(api, SERVER)
