"""The supervisors inside the pods that engines come into: their orders are brought to them, their reports are kept.

One task a pod. Orders stand on the pod; whenever the supervisor has older ones they are put to it, so a change reaches
it as soon as the pods' mirror shows it, and a supervisor that lost its files is told again. Reports are asked for with
a long poll. What was heard last stays what is known, until the pod is gone. Knows HTTP, not what a report means.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import ssl
from collections.abc import Callable
from typing import Protocol

import httpx

from gpupack.errors import Unavailable
from gpupack.host.orders import orders_text
from gpupack.kube.api import Api
from gpupack.kube.host_resource import SUPERVISOR_PORT, TOKEN_KEY, TOKEN_SECRET, HostPod, HostReport, report_of

log = logging.getLogger(__name__)

POLL_SECONDS = 10.0
ANSWER_SECONDS = 5.0
AGAIN_SECONDS = 0.5
FIRST_SECONDS = 5.0
"""How long a process that begins waits for supervisors before it believes that they cannot be heard."""
UNAUTHORIZED = 401


class Pods(Protocol):
    """The pods that engines come into, as they are now."""

    def __call__(self) -> tuple[HostPod, ...]: ...


class Hosts:
    """Keep `run` running. `stir` is called when a report differs from the one before; `look` says that pods changed.

    `pod_proxy` is the URL of a plain HTTP forward proxy that reaches the pods.
    """

    def __init__(self, api: Api, pods: Pods, stir: Callable[[], None], *, pod_proxy: str | None) -> None:
        self.synced = asyncio.Event()
        self._api = api
        self._pods = pods
        self._stir = stir
        self._proxy = pod_proxy
        self._reports: dict[str, HostReport] = {}
        self._tokens: dict[str, str] = {}
        self._followers: dict[str, tuple[asyncio.Task[None], asyncio.Event, asyncio.Event]] = {}
        self._changed = asyncio.Event()

    def report(self, host: HostPod) -> HostReport | None:
        return self._reports.get(host.claim.uid)

    def look(self) -> None:
        self._changed.set()

    async def run(self, ready: asyncio.Event) -> None:
        """Never returns; begins when `ready`, with all pods there."""
        await ready.wait()
        no_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # plain HTTP: reading certificates would cost memory
        async with httpx.AsyncClient(
            verify=no_tls, proxy=self._proxy, timeout=ANSWER_SECONDS + POLL_SECONDS, trust_env=False
        ) as client:
            try:
                self._compare(client)
                firsts = [asyncio.ensure_future(first.wait()) for _, _, first in self._followers.values()]
                if firsts:
                    await asyncio.wait(firsts, timeout=FIRST_SECONDS)
                for first in firsts:
                    first.cancel()
                self.synced.set()
                while True:
                    await self._changed.wait()
                    self._changed.clear()
                    self._compare(client)
            finally:
                tasks = [task for task, _, _ in self._followers.values()]
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _compare(self, client: httpx.AsyncClient) -> None:
        there = {host.claim.uid: host for host in self._pods()}
        for uid in [each for each in self._followers if each not in there]:
            self._followers.pop(uid)[0].cancel()
            self._reports.pop(uid, None)
        for uid, host in there.items():
            if uid in self._followers:
                self._followers[uid][1].set()
            elif host.ip is not None:
                changed, first = asyncio.Event(), asyncio.Event()
                task = asyncio.create_task(self._follow(uid, client, changed, first), name=f"supervisor in {host.key}")
                self._followers[uid] = (task, changed, first)

    async def _follow(self, uid: str, client: httpx.AsyncClient, changed: asyncio.Event, first: asyncio.Event) -> None:
        problem = ""
        while (host := next((each for each in self._pods() if each.claim.uid == uid), None)) is not None:
            changed.clear()
            try:
                report = await self._exchange(host, client, changed)
                problem = ""
            except (Unavailable, httpx.HTTPError, KeyError, ValueError) as wrong:
                report = None
                if (said := f"{type(wrong).__name__} {wrong}") != problem:
                    log.info("the supervisor in %s/%s was not heard: %s", *host.key, said)
                    problem = said
            first.set()
            if report is not None and report != self._reports.get(uid):
                self._reports[uid] = report
                self._stir()
            if problem:
                await asyncio.sleep(AGAIN_SECONDS)

    async def _exchange(self, host: HostPod, client: httpx.AsyncClient, changed: asyncio.Event) -> HostReport | None:
        """Orders if it has older ones, else the next report; None if the pod changed before that."""
        url = f"http://{host.ip}:{SUPERVISOR_PORT}/v1"
        headers = {"Authorization": f"Bearer {await self._token(host.claim.namespace)}"}
        known = self._reports.get(host.claim.uid)
        if known is not None and known.generation < host.orders.generation:
            answer = await client.put(f"{url}/orders", content=orders_text(host.orders), headers=headers)
        else:
            after = "" if known is None else f"?after={known.number}&wait={POLL_SECONDS:g}"
            asked = asyncio.ensure_future(client.get(f"{url}/report{after}", headers=headers))
            moved = asyncio.ensure_future(changed.wait())
            try:
                await asyncio.wait({asked, moved}, return_when=asyncio.FIRST_COMPLETED)
                if not asked.done():
                    return None
                answer = asked.result()
            finally:
                for each in (asked, moved):
                    each.cancel()
                with contextlib.suppress(asyncio.CancelledError, httpx.HTTPError):
                    await asked
        if answer.status_code == UNAUTHORIZED:
            self._tokens.pop(host.claim.namespace, None)
        if answer.status_code != httpx.codes.OK:
            raise Unavailable(f"{answer.status_code} {answer.text[:200]}")
        return report_of(answer.content)

    async def _token(self, namespace: str) -> str:
        if namespace not in self._tokens:
            secret = await self._api.get(f"/api/v1/namespaces/{namespace}/secrets/{TOKEN_SECRET}")
            self._tokens[namespace] = base64.b64decode(secret["data"][TOKEN_KEY]).decode().strip()
        return self._tokens[namespace]
