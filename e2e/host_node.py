"""A node that runs containers of gpupack's image as processes of this machine: an installed operator, a chart's test.

The pods are bound by the real scheduler and probed as a kubelet probes them. What a pod asks of another goes through a
forward proxy, which finds Services by their EndpointSlices. Knows no engine, no image and no isolation.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from gpupack.kube.api import Api, configuration_of
from gpupack.node.addresses import Addresses
from gpupack.node.controlplane import free_ports
from gpupack.node.endpoints import Endpoints
from gpupack.node.kubelet import Kubelet
from gpupack.node.pod_life import Host
from gpupack.node.podproxy import Address, PodProxy
from gpupack.node.program import KILLED, Exit, Program, Sandbox
from gpupack.node.virtual_node import Machine, VirtualNode
from gpupack.units import GIB, Bytes

NAME = "host"
PODS = "10.78.0.0/16"
METRICS, HEALTH = 8080, 8081
"""The ports of the operator's container."""
PROBE_SECONDS = 1.0


class Network(Mapping[Address, Address]):
    """Where a pod's port really listens. `NAME.NAMESPACE` is a Service, and leads to the first pod behind it."""

    def __init__(self, endpoints: Endpoints) -> None:
        self.listening: dict[Address, Address] = {}
        self._endpoints = endpoints

    def __getitem__(self, address: Address) -> Address:
        host, port = address
        name, dot, namespace = host.partition(".")
        behind = self._endpoints.of(f"{namespace}/{name}") if dot and not namespace[:1].isdigit() else ()
        return self.listening[behind[0][0] if behind else host, port]

    def __iter__(self) -> Iterator[Address]:
        return iter(self.listening)

    def __len__(self) -> int:
        return len(self.listening)


@dataclass(slots=True, kw_only=True)
class Site:
    """What the containers share. `kubeconfig` is of the operator's account; `said` is what each pod has printed."""

    kubeconfig: Callable[[], Path]
    network: Network
    proxy: str
    said: dict[str, str] = field(default_factory=dict)


class Process:
    """A container whose command is `gpupack operator`, or Python for the chart's test."""

    def __init__(self, sandbox: Sandbox, site: Site) -> None:
        self._sandbox = sandbox
        self._site = site
        self._ports: dict[int, int] = {}
        self._process: asyncio.subprocess.Process | None = None

    async def run(self) -> Exit:
        command, arguments = self._sandbox.words[0], list(self._sandbox.words[1:])
        if command == "gpupack":
            self._ports = dict(zip((METRICS, HEALTH), free_ports(2), strict=True))
            arguments = [
                "-m", "gpupack", *arguments, "--kubeconfig", str(self._site.kubeconfig()), "--host", "127.0.0.1",
                "--metrics-port", str(self._ports[METRICS]), "--health-port", str(self._ports[HEALTH]),
            ]  # fmt: skip
        listening = {(self._sandbox.address, port): ("127.0.0.1", here) for port, here in self._ports.items()}
        self._site.network.listening |= listening
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, *arguments, env={"http_proxy": self._site.proxy}, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            try:
                said, _ = await self._process.communicate()
            finally:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
            self._site.said[self._sandbox.pod] = said.decode()
            code = self._process.returncode
            return Exit(code=KILLED if code is None or code < 0 else code, message=said.decode()[-1000:])
        finally:
            for address in listening:
                self._site.network.listening.pop(address, None)

    def terminate(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()

    def answers(self, port: int | None, path: str | None) -> bool:
        if port not in self._ports or path is None:
            return False
        try:
            answer = httpx.get(f"http://127.0.0.1:{self._ports[port]}{path}", timeout=PROBE_SECONDS, trust_env=False)
        except httpx.TransportError:
            return False
        return answer.is_success


class HostNode:
    """`with HostNode(admin, operator) as node:` once it is Ready.

    Both are kubeconfigs; the operator's is asked for when its container starts, for its account is installed with it.
    """

    def __init__(self, admin: Path, operator: Callable[[], Path]) -> None:
        self._admin = admin
        self._operator = operator
        self._joined = threading.Event()
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=NAME)

    def __enter__(self) -> Self:
        self._thread.start()
        self._joined.wait()
        if self._problem is not None:
            self._thread.join()
            raise self._problem
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._enough.set)
        self._thread.join()
        if self._problem is not None and problem is None:
            raise self._problem

    def said(self, pod: str) -> str:
        """What the last container of the pod printed before it ended."""
        return self._site.said.get(pod, "")

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as problem:
            self._problem = problem
        finally:
            self._joined.set()

    async def _serve(self) -> None:
        self._loop, self._enough = asyncio.get_running_loop(), asyncio.Event()
        async with contextlib.AsyncExitStack() as opened:
            api = await opened.enter_async_context(Api(await configuration_of(str(self._admin)), manager="e2e"))
            endpoints = Endpoints(api)
            network = Network(endpoints)
            proxy = await opened.enter_async_context(PodProxy(network))
            self._site = Site(kubeconfig=self._operator, network=network, proxy=proxy.url)
            addresses = Addresses(PODS)
            node = VirtualNode(api, NAME, addresses.node, Machine(cpu_cores=8, memory=Bytes(16 * GIB)), ())
            host = Host(api=api, address=addresses.node, addresses=addresses, launch=self._launch)
            await node.join()
            parts = [asyncio.ensure_future(each) for each in (node.run(), endpoints.run(), Kubelet(host, NAME).run())]
            enough = asyncio.ensure_future(self._enough.wait())
            self._joined.set()
            try:
                ended, _ = await asyncio.wait({enough, *parts}, return_when=asyncio.FIRST_COMPLETED)
                for each in ended - {enough}:
                    each.result()
            finally:
                for each in parts:
                    each.cancel()
                await asyncio.gather(*parts, return_exceptions=True)
                await node.leave()

    def _launch(self, sandbox: Sandbox) -> Program:
        return Process(sandbox, self._site)
