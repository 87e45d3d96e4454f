"""Where the view gets what it shows: statuses by list and watch, and the operator's page again and again.

The page is read through the API server's way to the operator's pod, or at an address where the operator runs beside the
cluster. Whatever cannot be read is said in the snapshot and left out of it; the rest is shown.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx

from gpupack.errors import Unavailable
from gpupack.kube import labels
from gpupack.kube.api import Api, ApiError, NotFound
from gpupack.kube.mirror import Mirror
from gpupack.kube.observe import POOLS
from gpupack.top.page import Live, live_of
from gpupack.top.snapshot import (
    KindOf,
    PoolRecord,
    ServingRecord,
    Snapshot,
    pool_record,
    serving_record,
    snapshot,
)

OPERATOR_PODS = f"{labels.NAME}=gpupack,{labels.COMPONENT}=operator"
METRICS_PORT = 8080
PAGE_SECONDS = 5.0
FORBIDDEN = (401, 403)

Json = dict[str, Any]


class Feed:
    """`namespace` None shows all. `metrics` is an address of the operator's page; None asks the cluster for its pod.

    `look` once before anything else; then `follow` keeps it current, and calls `stir` when a status changed.
    """

    def __init__(self, api: Api, kind_of: KindOf, *, namespace: str | None, metrics: str | None) -> None:
        self._api = api
        self._kind_of = kind_of
        self._metrics = metrics
        where = labels.API_PATH if namespace is None else f"{labels.API_PATH}/namespaces/{namespace}"
        self._servings_path = f"{where}/modelservings"
        self._pools: tuple[PoolRecord, ...] = ()
        self._servings: tuple[ServingRecord, ...] = ()
        self._no_pools = ""
        self._mirrors: tuple[Mirror[Any], ...] = ()
        self._live = Live()
        self._pod_page: str | None = None
        self._note = ""

    def snapshot(self) -> Snapshot:
        problems = [f"the API server is not heard: {each.problem}" for each in self._mirrors if each.problem][:1]
        return snapshot(
            self._pools, self._servings, self._live, self._kind_of,
            note=self._note, problem="; ".join([*problems, *([self._no_pools] if self._no_pools else [])]),
        )  # fmt: skip

    async def look(self) -> None:
        """Raises Unavailable, with what to do, where ModelServings cannot be read at all."""
        try:
            self._servings = tuple(serving_record(each) for each in await _all(self._api, self._servings_path))
        except NotFound as missing:
            raise Unavailable(
                "gpupack's custom resources are not installed in this cluster; `gpupack doctor` says what is missing"
            ) from missing
        except ApiError as refused:
            if refused.status not in FORBIDDEN:
                raise
            raise Unavailable(
                f"you may not list modelservings.{labels.GROUP} ({refused}); ask for get, list and watch, or name a "
                "namespace of yours with -n"
            ) from refused
        try:
            self._pools = tuple(pool_record(each) for each in await _all(self._api, POOLS))
        except ApiError as refused:
            if refused.status not in FORBIDDEN:
                raise
            self._no_pools = f"you may not list gpupools.{labels.GROUP}, so neither pools nor their plan are shown"
        await self.read_page()

    @contextlib.asynccontextmanager
    async def follow(self, stir: Callable[[], None]) -> AsyncIterator[None]:
        """Mirrors in the background."""

        def changed() -> None:
            self._servings = servings.all() if servings.synced.is_set() else self._servings
            self._pools = pools.all() if pools.synced.is_set() else self._pools
            stir()

        servings = Mirror(self._api, self._servings_path, serving_record, changed, name="modelservings")
        pools = Mirror(self._api, POOLS, pool_record, changed, name="gpupools")
        self._mirrors = (servings,) if self._no_pools else (servings, pools)
        tasks = [asyncio.create_task(each.run()) for each in self._mirrors]
        try:
            yield
        finally:
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def read_page(self) -> None:
        """What is live, or the reason why nothing is."""
        try:
            self._live, self._note = live_of((await self._page()).decode()), ""
            if not self._live.gpus:
                self._note = "the operator tells of no GPU yet; an older one does not at all"
        except (Unavailable, httpx.HTTPError, ValueError) as problem:
            self._live, self._pod_page = Live(), None
            self._note = f"no live values: {problem or type(problem).__name__}"

    async def _page(self) -> bytes:
        if self._metrics is not None:
            async with httpx.AsyncClient(trust_env=False, timeout=PAGE_SECONDS) as client:
                return (await client.get(self._metrics)).raise_for_status().content
        if self._pod_page is None:  # a list of pods is dear in a large cluster; one of them is not
            self._pod_page = await self._found_pod()
        return await self._api.read(self._pod_page)

    async def _found_pod(self) -> str:
        """The path to the page of the operator's pod."""
        pods = await self._api.get("/api/v1/pods", labelSelector=OPERATOR_PODS)
        running = [each for each in pods["items"] if each.get("status", {}).get("phase") == "Running"]
        if not running:
            raise Unavailable("no operator pod runs here; name its page with --metrics if it runs elsewhere")
        metadata = running[0]["metadata"]
        return f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}:{METRICS_PORT}/proxy/metrics"


async def _all(api: Api, path: str) -> list[Json]:
    found: list[Json] = (await api.get(path))["items"]
    return found
