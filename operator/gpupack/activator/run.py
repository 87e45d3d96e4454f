"""`gpupack activator`: a port for every serving that may sleep, and one on which it tells who waits."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import re
import signal
from collections.abc import AsyncIterator

from aiohttp import web
from kubernetes.aio.client.configuration import Configuration

from gpupack.activator.counts import Counts
from gpupack.activator.holding import Bounds, Holding
from gpupack.activator.proxy import Proxy
from gpupack.activator.routes import Routes
from gpupack.kube.api import Api, configuration_of
from gpupack.kube.doors import DOORS, FIRST_DOOR
from gpupack.program import add_kubeconfig, configure_logging, count
from gpupack.units import MIB

log = logging.getLogger(__name__)

LONGEST_POLL_SECONDS = 30.0
END_SECONDS = 20.0
"""Answers that stream when the process is asked to end get this long."""


class Activator:
    """`doors` are the ports that may be opened on `host`; a slice that names another one is not followed."""

    def __init__(
        self, configuration: Configuration, bounds: Bounds, *, host: str, doors: range, pod_proxy: str | None
    ) -> None:
        self._host = host
        self._allowed = doors
        self.holding = Holding(bounds)
        self.counts = Counts(self.holding.waiting)
        self._api = Api(configuration, manager="gpupack-activator")
        self.routes = Routes(self._api, self._stirred)
        self.proxy = Proxy(self.routes, self.holding, self.counts, pod_proxy=pod_proxy)
        self._moved = asyncio.Event()
        self._sites: dict[int, web.TCPSite] = {}

    def _stirred(self) -> None:
        self.proxy.stirred()
        self._moved.set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follows the slices, and opens and closes doors."""
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self.proxy.answer)
        runner = web.AppRunner(
            application, access_log=None, handler_cancellation=True, shutdown_timeout=END_SECONDS
        )  # fmt: skip
        async with self._api, self.proxy:
            await runner.setup()
            tasks = [asyncio.create_task(self.routes.run()), asyncio.create_task(self._open_and_close(runner))]
            try:
                yield
            finally:
                self.proxy.end()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await runner.cleanup()

    async def _open_and_close(self, runner: web.AppRunner) -> None:
        while True:
            await self._moved.wait()
            self._moved.clear()
            wanted = {port for port in self.routes.doors() if port in self._allowed}
            for port in self._sites.keys() - wanted:
                await self._sites.pop(port).stop()
            for port in sorted(wanted - self._sites.keys()):
                site = web.TCPSite(runner, self._host, port)
                try:
                    await site.start()
                except OSError as problem:
                    log.error("port %d cannot be opened: %s", port, problem)
                    continue
                self._sites[port] = site

    def control(self) -> web.Application:
        """Who waits, how it is, and what it counts."""
        application = web.Application()
        application.router.add_get("/v1/waiting", self._waiting)
        application.router.add_get("/healthz", _healthy)
        application.router.add_get("/readyz", self._ready)
        application.router.add_get("/metrics", self._metrics)
        return application

    async def _waiting(self, request: web.Request) -> web.Response:
        """`?after=N&wait=S`: at once if the number is another one than N, else after so many seconds."""
        after = int(request.query.get("after", "-1"))
        if after == self.holding.number:
            await self.holding.news(after, min(LONGEST_POLL_SECONDS, float(request.query.get("wait", "0"))))
        waiting = [
            {"serving": str(serving), "requests": count, "oldestSeconds": round(seconds, 3)}
            for serving, count, seconds in self.holding.waiting()
        ]
        return web.json_response({"number": self.holding.number, "waiting": waiting})

    async def _ready(self, _: web.Request) -> web.Response:
        ready = self.routes.mirror.synced.is_set()
        return web.Response(text="ok\n" if ready else "no\n", status=200 if ready else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self.counts.text(), headers={"Content-Type": "text/plain; version=0.0.4"})


async def _healthy(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def activate(
    configuration: Configuration, bounds: Bounds, *, host: str, port: int, doors: range, pod_proxy: str | None,
    stop: asyncio.Event,
) -> None:  # fmt: skip
    """Until `stop`. Raises OSError if the control port is taken."""
    activator = Activator(configuration, bounds, host=host, doors=doors, pod_proxy=pod_proxy)
    runner = web.AppRunner(activator.control(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        async with activator.running():
            await stop.wait()
    finally:
        await runner.cleanup()


def configure(parser: argparse.ArgumentParser) -> None:
    add_kubeconfig(parser)
    parser.add_argument(
        "--pod-proxy", metavar="URL", help="a plain HTTP forward proxy that reaches pods, to run outside the cluster"
    )
    parser.add_argument("--host", default="0.0.0.0", metavar="ADDRESS", help="where it listens")
    parser.add_argument(
        "--port", type=count, default=8080, metavar="PORT", help="/v1/waiting for the operator, /metrics, /readyz"
    )
    parser.add_argument(
        "--doors", type=_range, default=range(FIRST_DOOR, FIRST_DOOR + DOORS), metavar="FIRST-LAST",
        help="the ports of servings; the operator gives each its own",
    )  # fmt: skip
    parser.add_argument(
        "--held-requests", type=count, default=256, metavar="N", help="so many of one serving wait; default 256"
    )
    parser.add_argument(
        "--held-megabytes", type=count, default=64, metavar="N", help="of all requests that wait; default 64"
    )
    parser.add_argument(
        "--patience-seconds", type=count, default=600, metavar="S", help="then a request is sent away; default 600"
    )
    parser.add_argument("--log-format", choices=("json", "text"), default="json")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")


def _range(word: str) -> range:
    match = re.fullmatch(r"(\d+)-(\d+)", word)
    if match is None or not 0 < int(match[1]) <= int(match[2]) < 65536:
        raise argparse.ArgumentTypeError(f"{word} is no range of ports; give for instance 20000-20511")
    return range(int(match[1]), int(match[2]) + 1)


def run(args: argparse.Namespace) -> int:
    """`gpupack activator`. Raises Unavailable without a way to the API."""
    configure_logging(args.log_format, args.log_level)
    if (kubeconfig := args.kubeconfig) is None and "KUBERNETES_SERVICE_HOST" not in os.environ:
        kubeconfig = os.environ.get("KUBECONFIG")
    bounds = Bounds(
        requests=args.held_requests, body_bytes=args.held_megabytes * MIB, patience=float(args.patience_seconds)
    )

    async def until_signal() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await activate(
            await configuration_of(kubeconfig), bounds, host=args.host, port=args.port, doors=args.doors,
            pod_proxy=args.pod_proxy, stop=stop,
        )  # fmt: skip

    asyncio.run(until_signal())
    return 0
