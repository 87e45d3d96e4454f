"""Orders that stand on a pod reach the supervisor inside, and its reports come back, whoever of them begins anew."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpupack.facts.observation import ClaimSeen, Phase
from gpupack.facts.serving import Sharing
from gpupack.host.life import Stage
from gpupack.host.orders import EngineOrder, Orders
from gpupack.kube.api import Json
from gpupack.kube.host_resource import SUPERVISOR_PORT, HostPod, HostReport
from gpupack.kube.hosts import Hosts
from gpupack.node.controlplane import free_ports

from ..host.pod import TOKEN, Pod

ADDRESS = "127.77.9.1"
PATIENCE_SECONDS = 60.0


class Secrets:
    """The API server, as far as it is asked: the token was another one when it was first asked for."""

    def __init__(self) -> None:
        self.asked = 0

    async def get(self, path: str) -> Json:
        assert path == "/api/v1/namespaces/team/secrets/gpupack-host"
        self.asked += 1
        token = TOKEN if self.asked > 1 else "an old one"
        return {"data": {"token": base64.b64encode(token.encode()).decode()}}


class Cluster:
    """One pod, its orders, and those who follow it."""

    def __init__(self) -> None:
        self.pods: tuple[HostPod, ...] = ()
        self.secrets = Secrets()
        self.stirred = asyncio.Event()

    def order(self, generation: int, *engines: EngineOrder) -> None:
        claim = ClaimSeen(
            namespace="team", name="host", uid="uid", gpu_uuid="place", sharing=Sharing.MPS, owners=(), engines=4
        )
        orders = Orders(generation=generation, engines=engines)
        self.pods = (
            HostPod(
                claim=claim, pool="default", node="node", ip=ADDRESS, phase=Phase.READY, deletion_at=None,
                orders=orders, engines=(),
            ),
        )  # fmt: skip

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[Hosts]:
        api: Any = self.secrets
        hosts = Hosts(api, lambda: self.pods, self.stirred.set, pod_proxy=None)
        ready = asyncio.Event()
        ready.set()
        running = asyncio.create_task(hosts.run(ready))
        try:
            await hosts.synced.wait()
            yield hosts
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def until(self, hosts: Hosts, holds: Callable[[HostReport], bool]) -> HostReport:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                report = hosts.report(self.pods[0])
                if report is not None and holds(report):
                    return report
                self.stirred.clear()
                await self.stirred.wait()


async def test_orders_reach_the_supervisor_and_its_reports_outlive_both(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    engine = EngineOrder(
        name="a", port=port, arguments=("--name=a", f"--port={port}", f"--bind={ADDRESS}"), marks=(("slot", "0"),)
    )
    cluster = Cluster()
    cluster.order(1, engine)
    with Pod(tmp_path, mps=False, bind=ADDRESS, port=SUPERVISOR_PORT) as pod:
        async with cluster.following() as hosts:
            report = await cluster.until(hosts, lambda report: [each.stage for each in report.engines] == [Stage.READY])
            assert (report.generation, report.device, report.engines[0].marks) == (1, "GPU-1", {"slot": "0"})
            assert cluster.secrets.asked == 2
        async with cluster.following() as again:
            known = again.report(cluster.pods[0])
            assert known is not None
            assert known.generation == 1
            cluster.order(2)
            again.look()
            await cluster.until(again, lambda report: report.generation == 2 and not report.engines)
            cluster.pods = (replace(cluster.pods[0], claim=replace(cluster.pods[0].claim, uid="another")),)
            again.look()
            await cluster.until(again, lambda report: report.generation == 2)
        assert pod.end() == 0


async def test_a_supervisor_that_cannot_be_heard_keeps_nobody_waiting() -> None:
    cluster = Cluster()
    cluster.order(1)
    async with cluster.following() as hosts:
        assert hosts.report(cluster.pods[0]) is None
