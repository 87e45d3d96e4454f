"""Who waits at the activators, asked over HTTP: a long poll to each, so that a first request is known at once.

What an activator said last counts for as long as it is fresh; one that is not heard makes its part unknown, not zero.
Knows HTTP, not what follows from it.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import httpx

from gpupack.facts.observation import Cause, HeldSeen, Missing, Reading
from gpupack.facts.serving import ServingKey
from gpupack.kube.shape_resource import serving_key_of
from gpupack.units import Seconds

log = logging.getLogger(__name__)

CONTROL_PORT = 8080
POLL_SECONDS = 1.0
"""Shorter than any period after which what was said is stale."""
ANSWER_SECONDS = 2.0
AGAIN_SECONDS = 0.5
ORIGIN = "activator"


class Addresses(Protocol):
    """The IP addresses of the activators that are ready, as they are now."""

    def __call__(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What one activator said at `at` (unix seconds): by serving how many wait, and since when the oldest does."""

    at: Seconds
    waiting: Mapping[ServingKey, tuple[int, Seconds]]


class Waiting:
    """Keep `run` running. `stir` is called when a serving got its first request, or lost its last one.

    `look` says that activators may have come or gone. `clock` is unix time.
    """

    def __init__(
        self, addresses: Addresses, stir: Callable[[], None], *, pod_proxy: str | None,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._addresses = addresses
        self._stir = stir
        self._proxy = pod_proxy
        self._clock = clock
        self._said: dict[str, Said] = {}
        self._followers: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()

    def look(self) -> None:
        self._changed.set()

    def seen(self, servings: Iterable[ServingKey]) -> tuple[HeldSeen, ...]:
        """Of each of these servings what all activators hold together; nothing where there is no activator."""
        return held_by([self._said.get(each) for each in self._addresses()], servings)

    async def run(self) -> None:
        no_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # plain HTTP: reading certificates would cost memory
        async with httpx.AsyncClient(
            verify=no_tls, proxy=self._proxy, timeout=POLL_SECONDS + ANSWER_SECONDS, trust_env=False
        ) as client:
            try:
                while True:
                    self._compare(client)
                    await self._changed.wait()
                    self._changed.clear()
            finally:
                for task in self._followers.values():
                    task.cancel()
                await asyncio.gather(*self._followers.values(), return_exceptions=True)

    def _compare(self, client: httpx.AsyncClient) -> None:
        there = set(self._addresses())
        for gone in self._followers.keys() - there:
            self._followers.pop(gone).cancel()
            self._said.pop(gone, None)
        for address in sorted(there - self._followers.keys()):
            task = asyncio.create_task(self._follow(address, client), name=f"activator at {address}")
            self._followers[address] = task

    async def _follow(self, address: str, client: httpx.AsyncClient) -> None:
        number, heard = -1, True
        while True:
            url = f"http://{address}:{CONTROL_PORT}/v1/waiting?after={number}&wait={POLL_SECONDS:g}"
            try:
                answer = await client.get(url)
                answer.raise_for_status()
                told = answer.json()
                self._said[address] = said_of(told, Seconds(self._clock()))
                if told["number"] != number:
                    number = told["number"]
                    self._stir()
                heard = True
            except (httpx.HTTPError, KeyError, ValueError) as problem:
                if heard:
                    log.info("the activator at %s was not heard: %s %s", address, type(problem).__name__, problem)
                heard = False
                await asyncio.sleep(AGAIN_SECONDS)


def said_of(told: Mapping[str, list[Mapping[str, str | int | float]]], at: Seconds) -> Said:
    """Raises KeyError or ValueError for what is no answer of an activator."""
    waiting = {
        serving_key_of(str(each["serving"])): (int(each["requests"]), Seconds(at - float(each["oldestSeconds"])))
        for each in told["waiting"]
    }
    return Said(at=at, waiting=waiting)


def held_by(said: Iterable[Said | None], servings: Iterable[ServingKey]) -> tuple[HeldSeen, ...]:
    """None stands for an activator that has not been heard."""
    every = list(said)
    return tuple(_held(every, key) for key in servings) if every else ()


def _held(said: list[Said | None], key: ServingKey) -> HeldSeen:
    """Who waits at those that were heard is known; that nobody waits only if all were."""
    heard = [each for each in said if each is not None]
    told = [each.waiting[key] for each in heard if key in each.waiting]
    requests = sum(count for count, _ in told)
    since = min((since for _, since in told), default=None)
    if not requests and len(heard) < len(said):
        return HeldSeen(serving=key, requests=Missing(cause=Cause.UNREACHABLE, origin=ORIGIN))
    told_at = [each.at for each in heard if key in each.waiting]
    at = max(told_at) if requests else min(each.at for each in heard)
    return HeldSeen(serving=key, requests=Reading(value=float(requests), at=at, origin=ORIGIN), since=since)
