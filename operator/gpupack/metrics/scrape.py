"""Fetching `/metrics` of engines and exporters over HTTP, in parallel, each no oftener than its period.

A round starts what is due and waits a moment for it; a target that does not answer is waited for by nobody: its
deadline runs in the background and its histories say Missing until it answers. Connections are kept. Knows addresses,
not pods.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import ssl
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

import httpx

from gpupack.errors import Unavailable
from gpupack.facts.observation import Cause, EngineSeen, Phase, ReplicaSeen
from gpupack.facts.running import RunningEngine
from gpupack.metrics.prometheus import parse_engine, parse_gpus
from gpupack.metrics.promql import Credentials, PrometheusHistory, PrometheusTarget, Refusal, Refused, ask
from gpupack.metrics.series import Exporter
from gpupack.metrics.windows import (
    EngineHistory,
    ExporterHistory,
    GpuReadings,
    Timing,
    best_of,
    no_gpu_readings,
    unseen_engine,
)
from gpupack.units import Seconds

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 0.5
DEADLINE_SECONDS = 2.0
KEEP_ALIVE_SECONDS = 120.0
AT_ONCE = 64
"""Requests in flight; more of them would only wait for the processor while their deadlines run."""
EARLY = 0.9
"""Ticks come a little early or late; a target is due again after this share of its period."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTarget:
    """`identity` changes when the process behind the address does (the pod's uid). `address` is host:port.

    `asks_models`: nobody here started it, so it is asked which model it serves.
    """

    replica: str
    identity: str
    address: str
    asks_models: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExporterTarget:
    """A dcgm-exporter or node agent, the node that it runs on and its host:port."""

    name: str
    node: str
    address: str
    exporter: Exporter = Exporter.DCGM


Target = EngineTarget | ExporterTarget | PrometheusTarget
Access = Callable[[], Awaitable[Credentials]]
"""What to show to a Prometheus, read anew each time; raises Unavailable with a sentence on what to do."""


async def no_credentials() -> Credentials:
    return Credentials()


def engine_targets(replicas: tuple[ReplicaSeen, ...]) -> list[EngineTarget]:
    """Engines that listen: a starting one refuses connections, one that is draining still tells its load."""
    return [
        EngineTarget(replica=each.name, identity=f"{each.uid}/{each.restarts}", address=each.address)
        for each in replicas
        if each.address is not None and each.phase in (Phase.READY, Phase.STOPPING)
    ]


def observed_targets(running: tuple[RunningEngine, ...]) -> list[EngineTarget]:
    """Engines that others started, one target however many servings observe it."""
    found = {
        each.key: EngineTarget(replica=each.key, identity=each.identity, address=each.address, asks_models=True)
        for each in running
        if each.address is not None
    }
    return list(found.values())


class Scraper:
    """The histories of one pool's engines and exporters. Used with `async with`.

    `pod_proxy` is the URL of a plain HTTP forward proxy that reaches the pods' addresses. `clock` is unix time.
    """

    def __init__(self, *, pod_proxy: str | None = None, clock: Callable[[], float] = time.time) -> None:
        self._pod_proxy = pod_proxy
        # Pods are scraped by plain HTTP, so no certificates are read; the context is shared because each costs memory.
        self._no_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._clock = clock
        self._engines: dict[EngineTarget, EngineHistory] = {}
        self._exporters: dict[ExporterTarget, ExporterHistory] = {}
        self._prometheus: tuple[PrometheusTarget, PrometheusHistory] | None = None
        self._clients: dict[Target, httpx.AsyncClient] = {}
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._started_at: dict[Target, float] = {}
        self._last_at: dict[Target, float] = {}
        self._under_way: dict[Target, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._under_way.values():
            task.cancel()
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)
        await asyncio.gather(*(client.aclose() for client in self._clients.values()))

    async def round(
        self,
        engines: Sequence[EngineTarget],
        exporters: Sequence[ExporterTarget],
        *,
        timing: Timing,
        exporter_period: float,
        patience: float = PATIENCE_SECONDS,
        again: Collection[str] = (),
        again_after: float = 0.0,
        prometheus: PrometheusTarget | None = None,
        access: Access = no_credentials,
    ) -> None:
        """Scrapes what is due among these targets and forgets all others.

        Engines of the replicas in `again` are due so soon after their last scrape; their next regular one comes when it
        would have come without. `access` is asked before each look at `prometheus`.
        """
        await self._keep_only(engines, exporters, prometheus)
        now = self._clock()
        for engine in engines:
            history = self._engines.setdefault(engine, EngineHistory())
            is_due = self._is_due(engine, now, timing.period)
            if is_due or (engine.replica in again and self._is_due_again(engine, now, again_after)):
                self._start(engine, self._scrape_engine(engine, history, timing), regular=is_due)
        for exporter in exporters:
            watched = self._exporters.setdefault(exporter, ExporterHistory())
            # Twice a period, so that a value is never much older than one period and a half.
            if self._is_due(exporter, now, exporter_period / 2):
                self._start(exporter, self._scrape_exporter(exporter, watched))
        if prometheus is not None:
            if self._prometheus is None:
                self._prometheus = prometheus, PrometheusHistory()
            if self._is_due(prometheus, now, exporter_period / 2):
                work = self._ask_prometheus(prometheus, self._prometheus[1], access, Seconds(exporter_period))
                self._start(prometheus, work)
        if self._under_way:
            await asyncio.wait(self._under_way.values(), timeout=patience)

    def engines_seen(self, engines: Iterable[EngineTarget], timing: Timing) -> tuple[EngineSeen, ...]:
        now = self._clock()
        return tuple(
            history.seen(engine.replica, now, timing)
            if (history := self._engines.get(engine)) is not None
            else unseen_engine(engine.replica, timing)
            for engine in engines
        )

    def gpu_readings(self, uuid: str, node: str, *, exporter_period: float, stale_periods: int) -> GpuReadings:
        """The best of the sources that name this GPU; if none does, why those of its node do not."""
        now = self._clock()
        silent, found = Cause.NO_SERIES, []
        for exporter, history in self._exporters.items():
            if uuid in history.uuids:
                found.append(history.readings(uuid, now, exporter_period, stale_periods))
            elif exporter.node == node and not history.answered:
                silent = Cause.UNREACHABLE
        if self._prometheus is not None:
            found.append(self._prometheus[1].readings(uuid, now, exporter_period * stale_periods))
        return best_of(found) if found else no_gpu_readings(silent)

    @property
    def refusal(self) -> Refusal | None:
        """Why the Prometheus says nothing, if there is one and it does not."""
        return None if self._prometheus is None else self._prometheus[1].refusal

    async def _keep_only(
        self,
        engines: Sequence[EngineTarget],
        exporters: Sequence[ExporterTarget],
        prometheus: PrometheusTarget | None,
    ) -> None:
        if self._prometheus is not None and self._prometheus[0] != prometheus:
            self._prometheus = None
        for gone in self._started_at.keys() - {*engines, *exporters, prometheus}:
            del self._started_at[gone], self._last_at[gone]
            if isinstance(gone, EngineTarget):
                self._engines.pop(gone, None)
            elif isinstance(gone, ExporterTarget):
                self._exporters.pop(gone, None)
            if (task := self._under_way.get(gone)) is not None:
                task.cancel()
            if (client := self._clients.pop(gone, None)) is not None:
                await client.aclose()

    def _is_due(self, target: Target, now: float, period: float) -> bool:
        if target in self._under_way:
            return False
        started = self._started_at.get(target)
        return started is None or now - started >= period * EARLY

    def _is_due_again(self, target: Target, now: float, after: float) -> bool:
        """Whether a scrape between two regular ones would bring enough that is new."""
        return target not in self._under_way and now - self._last_at.get(target, -math.inf) >= after * EARLY

    def _start(self, target: Target, work: Coroutine[None, None, None], *, regular: bool = True) -> None:
        self._last_at[target] = self._clock()
        if regular:
            self._started_at[target] = self._last_at[target]
        task = asyncio.create_task(work)
        self._under_way[target] = task
        task.add_done_callback(partial(self._finish, target))

    def _finish(self, target: Target, task: asyncio.Task[None]) -> None:
        if self._under_way.get(target) is task:
            del self._under_way[target]
        if not task.cancelled() and (problem := task.exception()) is not None:
            log.error("scrape of %s", target.address, exc_info=problem)

    async def _scrape_engine(self, target: EngineTarget, history: EngineHistory, timing: Timing) -> None:
        page = await self._fetch(target, "/metrics")
        if page is None:
            history.fail(self._clock())
            return
        history.add(self._clock(), parse_engine(page), timing)
        if history.version is None and (said := await self._fetch(target, "/version")) is not None:
            history.version = _version(said)
        if target.asks_models and history.served is None:
            # Asked once: an engine that wants a key for it will want one the next time too.
            said = await self._fetch(target, "/v1/models")
            history.served = () if said is None else _served(said)

    async def _scrape_exporter(self, target: ExporterTarget, history: ExporterHistory) -> None:
        page = await self._fetch(target, "/metrics")
        if page is None:
            history.fail(self._clock())
        else:
            history.add(self._clock(), parse_gpus(page, target.exporter))

    async def _ask_prometheus(
        self, target: PrometheusTarget, history: PrometheusHistory, access: Access, period: Seconds
    ) -> None:
        answer: Mapping[str, GpuReadings] | Refusal
        try:
            answer = await ask(target, await access(), now=self._clock(), period=period)
        except Unavailable as problem:
            answer = Refusal(reason=Refused.NO_CREDENTIALS, message=str(problem))
        if isinstance(answer, Refusal):
            history.refuse(answer)
        else:
            history.add(self._clock(), answer)

    async def _fetch(self, target: Target, path: str) -> bytes | None:
        """The body of a 200, or None. A connection that the server had closed meanwhile gets a second try."""
        client, url = self._client_of(target), f"http://{target.address}{path}"
        async with self._turn:
            for _ in range(2):
                try:
                    async with asyncio.timeout(DEADLINE_SECONDS):
                        answer = await client.get(url)
                except (httpx.RemoteProtocolError, httpx.ReadError):
                    continue
                except (httpx.HTTPError, TimeoutError) as problem:
                    log.debug("%s: %s %s", url, type(problem).__name__, problem)
                    return None
                return answer.content if answer.status_code == httpx.codes.OK else None
        return None

    def _client_of(self, target: Target) -> httpx.AsyncClient:
        """One client each: a shared one looks through all its connections for every request, 50 ms for 400 targets."""
        if target not in self._clients:
            self._clients[target] = httpx.AsyncClient(
                verify=self._no_tls,
                trust_env=False,  # the environment's proxies are not for pods
                proxy=self._pod_proxy,
                timeout=DEADLINE_SECONDS,
                limits=httpx.Limits(
                    max_connections=2, max_keepalive_connections=1, keepalive_expiry=KEEP_ALIVE_SECONDS
                ),
            )
        return self._clients[target]


def _version(body: bytes) -> str:
    """vLLM answers {"version": "0.33.0"}; anything else is kept out."""
    try:
        said = json.loads(body).get("version", "")
    except (ValueError, AttributeError):
        return ""
    return said if isinstance(said, str) else ""


def _served(body: bytes) -> tuple[str, ...]:
    """The `root` of each card: the model behind the served name, where the engine tells it."""
    try:
        cards = json.loads(body)["data"]
        roots = {card["root"] for card in cards if isinstance(card.get("root"), str)}
    except (ValueError, AttributeError, KeyError, TypeError):
        return ()
    return tuple(sorted(roots))
