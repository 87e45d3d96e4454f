"""The API server as plain requests: dicts in, dicts out, over the official client's connection and credentials.

Of `kubernetes.aio` only the configuration (kubeconfig, in-cluster token and its refresh, TLS) and the HTTP session are
used: its typed models cost 20 MiB and drop fields that they do not know. Knows paths and status codes, no resource.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

import aiohttp
import yaml
from kubernetes.aio import config as untyped_config
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from gpupack.errors import Unavailable

FIELD_MANAGER = "gpupack"
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 20.0
CONNECTIONS = 64
LONGEST_REST_SECONDS = 30.0
"""A busy server is left alone for as long as it asks (Retry-After), at most this long."""
BUSY = (429, 503)
NO_KUBECONFIG = (
    "no way to the Kubernetes API: neither $KUBECONFIG nor ~/.kube/config is there; name one with --kubeconfig"
)

Json = dict[str, Any]
config: Any = untyped_config  # it carries half of its annotations
Call = Callable[[str, int], None]
"""Told of every finished request: the verb in Kubernetes' words and the status code (0: no answer)."""


class ApiError(Unavailable):
    """The API server refused; `status` is the HTTP code, `reason` the machine-readable one of its Status."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason


class Conflict(ApiError):
    """409: what was to be changed is not what was seen, or is there already."""


class NotFound(ApiError):
    """404"""


class Gone(ApiError):
    """410: the version that a watch or a further page asked for is no longer kept."""


class Silent(Unavailable):
    """A watch that was accepted said nothing for longer than a living one would."""


_KINDS: Mapping[int, type[ApiError]] = {404: NotFound, 409: Conflict, 410: Gone}


def error_of(status: int, body: bytes) -> ApiError:
    """The refusal as an exception; a body that is no Status (a proxy's page) is quoted."""
    try:
        said = json.loads(body)
        reason, message = str(said.get("reason", "")), str(said.get("message", ""))
    except (ValueError, AttributeError):
        reason, message = "", body[:200].decode(errors="replace")
    return _KINDS.get(status, ApiError)(status, reason, message)


def _has_kubeconfig() -> bool:
    """Whether there is one where kubectl would look."""
    places = os.environ.get("KUBECONFIG", "~/.kube/config").split(os.pathsep)
    return any(_is_there(each) for each in places if each)


def _is_there(path: str) -> bool:
    return Path(path).expanduser().exists()


async def configuration_of(kubeconfig: str | None) -> Configuration:
    """Credentials and address: the named kubeconfig; else the pod's own account; else $KUBECONFIG or ~/.kube/config.

    Raises Unavailable if there is none.
    """
    found = Configuration()
    try:
        if kubeconfig is None:
            try:
                config.load_incluster_config(found)
            except config.ConfigException:
                if not _has_kubeconfig():
                    raise Unavailable(NO_KUBECONFIG) from None
                await config.load_kube_config(client_configuration=found)
        elif not _is_there(kubeconfig):
            raise Unavailable(f"no way to the Kubernetes API: there is no kubeconfig {kubeconfig}")
        else:
            await config.load_kube_config(config_file=kubeconfig, client_configuration=found)
    except yaml.YAMLError as problem:
        told = " ".join(str(problem).split())
        raise Unavailable(f"no way to the Kubernetes API: the kubeconfig is no YAML: {told}") from problem
    except (config.ConfigException, OSError) as problem:
        raise Unavailable(f"no way to the Kubernetes API: {problem}") from problem
    found.connection_pool_maxsize = CONNECTIONS
    return found


class Api:
    """Requests to one API server. Used with `async with`, inside a running event loop."""

    def __init__(
        self,
        configuration: Configuration,
        *,
        on_call: Call = lambda _verb, _code: None,
        manager: str = FIELD_MANAGER,
    ) -> None:
        """`manager` is the user agent, and the field manager of what is written."""
        self._configuration = configuration
        self._manager = manager
        self._client: Any = ApiClient(configuration)
        self._client.user_agent = manager
        self._on_call = on_call
        self._rests_until = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def get(self, path: str, **query: str | int) -> Json:
        return await self._ask("GET", path, query, verb="list" if "limit" in query else "get")

    async def token(self) -> str | None:
        """The bearer token that it shows itself; renewed by this call where it can be."""
        shown = await self._configuration.get_api_key_with_prefix("BearerToken")
        return shown.rpartition(" ")[2] if shown else None

    async def read(self, path: str) -> bytes:
        """What is no object of the API: for instance a page of a pod, through the API server's proxy."""
        return await self._fetch("GET", path, {}, None, "application/json", verb="get")

    async def create(self, path: str, body: Json) -> Json:
        """POST to a collection. Raises Conflict if the name is taken."""
        return await self._ask("POST", path, {"fieldManager": self._manager}, body, "application/json", verb="create")

    async def apply(self, path: str, body: Json) -> Json:
        """Server-side apply, by force: what gpupack says of its own fields holds.

        `metadata.resourceVersion` and `metadata.uid` in the body are preconditions (Conflict). Without `uid` an object
        that is gone is created anew.
        """
        query: dict[str, str | int] = {"fieldManager": self._manager, "force": "true"}
        return await self._ask("PATCH", path, query, body, "application/apply-patch+yaml", verb="apply")

    async def merge(self, path: str, body: Json) -> Json:
        """JSON merge patch, for the few fields that another manager owns."""
        query: dict[str, str | int] = {"fieldManager": self._manager}
        return await self._ask("PATCH", path, query, body, "application/merge-patch+json", verb="patch")

    async def delete(
        self, path: str, *, uid: str, grace_seconds: int | None = None, with_children: bool = False
    ) -> None:
        """Deletes exactly this object. One that is gone, or was replaced by another of its name, is success.

        `grace_seconds` None is the object's own; 0 is a kubelet's word that a pod has ended. `with_children`: what it
        owns goes too, which for a Job must be said.
        """
        body: Json = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        if grace_seconds is not None:
            body["gracePeriodSeconds"] = grace_seconds
        if with_children:
            body["propagationPolicy"] = "Background"
        try:
            await self._ask("DELETE", path, {}, body, "application/json", verb="delete")
        except (NotFound, Conflict):
            return

    async def watch(self, path: str, *, silence_seconds: float, **query: str | int) -> AsyncIterator[bytes]:
        """Lines of a watch until the server ends it.

        Raises Silent when nothing at all came for `silence_seconds` (a black hole), ApiError when it is refused, and
        Unavailable when the connection breaks. A line that was cut off is not yielded.
        """
        accepted = False
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=silence_seconds)
        try:
            response = await self._send("GET", path, {**query, "watch": "true"}, None, "application/json", limits)
            self._on_call("watch", response.status)
            async with response:
                if response.status >= 400:
                    raise error_of(response.status, await response.read())
                accepted = True
                yield b""  # what is held is current as of now
                pieces: list[bytes] = []
                async for chunk in response.content.iter_any():
                    *lines, rest = chunk.split(b"\n")
                    for line in lines:
                        pieces.append(line)
                        yield b"".join(pieces)
                        pieces.clear()
                    pieces.append(rest)
        except (aiohttp.ClientError, TimeoutError, OSError) as problem:
            kind = Silent if accepted and isinstance(problem, TimeoutError) else Unavailable
            raise kind(f"watch of {path}: {type(problem).__name__} {problem}") from problem

    async def _ask(
        self, method: str, path: str, query: Mapping[str, str | int], body: Json | None = None,
        content_type: str = "application/json", *, verb: str,
    ) -> Json:  # fmt: skip
        text = await self._fetch(method, path, query, body, content_type, verb=verb)
        try:
            answer = json.loads(text)
        except ValueError as problem:
            raise Unavailable(f"{verb} {path}: the answer is no JSON: {text[:80]!r}") from problem
        if not isinstance(answer, dict):
            raise Unavailable(f"{verb} {path}: the answer is no object: {text[:80]!r}")
        return answer

    async def _fetch(
        self, method: str, path: str, query: Mapping[str, str | int], body: Json | None, content_type: str, *, verb: str
    ) -> bytes:
        limits = aiohttp.ClientTimeout(total=ANSWER_SECONDS, sock_connect=CONNECT_SECONDS)
        try:
            response = await self._send(method, path, query, body, content_type, limits)
            async with response:
                text = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as problem:
            self._on_call(verb, 0)
            raise Unavailable(f"{verb} {path}: {type(problem).__name__} {problem}") from problem
        self._on_call(verb, response.status)
        if response.status >= 400:
            raise error_of(response.status, text)
        return text

    async def _send(
        self, method: str, path: str, query: Mapping[str, str | int], body: Json | None, content_type: str,
        limits: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:  # fmt: skip
        now = asyncio.get_running_loop().time
        if (rest := self._rests_until - now()) > 0:
            await asyncio.sleep(rest)
        headers = {**self._client.default_headers, "Accept": "application/json", "Content-Type": content_type}
        # The in-cluster token is renewed by this call.
        if bearer := await self._configuration.get_api_key_with_prefix("BearerToken"):
            headers["Authorization"] = bearer
        url = self._configuration.host + path + ("?" + urlencode(query) if query else "")
        sent = await self._client.rest_client.request(method, url, headers=headers, body=body, _request_timeout=limits)
        response: aiohttp.ClientResponse = sent.response
        asked = response.headers.get("Retry-After", "")
        if response.status in BUSY and asked.isdecimal():
            self._rests_until = max(self._rests_until, now() + min(int(asked), LONGEST_REST_SECONDS))
        return response
