"""Virtual GPU nodes joined to a cluster: everything in this package put together.

Used with `async with`; inside, the nodes are Ready, pods that the scheduler binds to them run, `pod_proxy` reaches
those pods and `control` steers load and faults. Afterwards what was made in the cluster is taken away again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self

from gpupack import catalog
from gpupack.errors import Unavailable
from gpupack.facts.gpu import GpuKind, MigProfile
from gpupack.facts.llm import Llm
from gpupack.kube.api import Api, configuration_of
from gpupack.node.addresses import DEFAULT_RANGE, Addresses
from gpupack.node.container_life import FIRST_BACKOFF_SECONDS
from gpupack.node.device_plugin import DevicePlugin
from gpupack.node.endpoints import Endpoints
from gpupack.node.engine_program import EngineProgram, Site
from gpupack.node.exchange import Exchange
from gpupack.node.exporter import Exporter, Field, Generation
from gpupack.node.flags import is_vllm
from gpupack.node.hardware import CardReader, Hardware
from gpupack.node.host_program import HostProgram, is_supervisor
from gpupack.node.kubelet import Kubelet
from gpupack.node.load import Dealer
from gpupack.node.meter import Meter
from gpupack.node.pace import Pace
from gpupack.node.pod_life import Host
from gpupack.node.podproxy import PodProxy
from gpupack.node.process_program import ProcessProgram
from gpupack.node.program import Launch, Program, Sandbox, Sleeper
from gpupack.node.steering import Steering, engines_of
from gpupack.node.virtual_node import Machine, MigStrategy, VirtualNode, cut
from gpupack.twin.world import World
from gpupack.units import GIB, Bytes

log = logging.getLogger(__name__)

MANAGER = "gpupack-twin"
EXPORTER_IMAGE = "nvcr.io/nvidia/k8s/dcgm-exporter:4.8.3-4.6.0-distroless"


@dataclass(frozen=True, slots=True, kw_only=True)
class CutNode:
    """A node whose GPUs are all cut into these slices, which a device plugin offers."""

    name: str
    strategy: MigStrategy
    profiles: tuple[MigProfile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the nodes are like. Times in seconds; `models` are known beside the catalog's, by name.

    `plugin_nodes` are further ones whose GPUs a device plugin offers, without a DRA driver; `cut_nodes` are such whose
    GPUs are cut. The GPUs of `mig_nodes` are cut, and a DRA driver offers their slices.
    """

    kubeconfig: Path | None
    gpu: GpuKind
    node_names: tuple[str, ...] = ("virtual-1",)
    gpus_a_node: int = 2
    machine: Machine = Machine(cpu_cores=96, memory=Bytes(1024 * GIB))  # noqa: RUF009 (frozen)
    start_seconds: float = 30.0
    backoff_seconds: float = FIRST_BACKOFF_SECONDS
    plugin_nodes: tuple[str, ...] = ()
    cut_nodes: tuple[CutNode, ...] = ()
    mig_nodes: tuple[str, ...] = ()
    mig_profiles: tuple[MigProfile, ...] = ()
    exporter: bool = True
    exporter_period_seconds: float = 30.0
    generation: Generation = Generation.OLD
    absent: frozenset[Field] = frozenset()
    pod_range: str = DEFAULT_RANGE
    control_port: int = 0
    proxy_port: int = 0
    seed: int = 1
    models: Mapping[str, Llm] | None = None
    processes: Mapping[str, Path] = field(default_factory=dict)


class TwinNodes:
    """Raises Unavailable on entering if the cluster cannot be joined. `failed` is done when something of it broke."""

    def __init__(self, options: Options) -> None:
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._options = options
        self._open = contextlib.AsyncExitStack()
        self._exporters: dict[str, Exporter] = {}
        self._nodes: list[VirtualNode] = []

    @property
    def control(self) -> str:
        """Where `steering` answers."""
        return self._steering.url

    @property
    def pod_proxy(self) -> str:
        return self._proxy.url

    async def __aenter__(self) -> Self:
        try:
            await self._join()
        except BaseException:
            await self._open.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    async def _join(self) -> None:
        options = self._options
        kubeconfig = None if options.kubeconfig is None else str(options.kubeconfig)
        api = await self._open.enter_async_context(Api(await configuration_of(kubeconfig), manager=MANAGER))
        exchange = await self._open.enter_async_context(Exchange())
        self._proxy = await self._open.enter_async_context(PodProxy(exchange.table, port=options.proxy_port))
        endpoints = Endpoints(api)
        chance = Random(options.seed)
        world = World()
        strategies = dict.fromkeys(options.plugin_nodes, MigStrategy.NONE)
        strategies |= {each.name: each.strategy for each in options.cut_nodes}
        names = (*options.node_names, *strategies, *options.mig_nodes)
        layouts = dict.fromkeys(options.mig_nodes, options.mig_profiles)
        layouts |= {each.name: each.profiles for each in options.cut_nodes}
        gpus = {name: cut(name, options.gpu, options.gpus_a_node, layouts.get(name, ())) for name in names}
        hardware = Hardware(world, [card for of_node in gpus.values() for card in of_node])
        dealer = Dealer(lambda target: reach(target), chance)
        site = Site(
            hardware=hardware, exchange=exchange, pace=Pace(world, dealer), model=self._model,
            start_seconds=options.start_seconds,
        )  # fmt: skip
        reach = engines_of(site, endpoints)
        meter = Meter(site)
        site.pace.watch("meter", meter.advanced)
        self._steering = await self._open.enter_async_context(
            Steering(site, dealer, endpoints, meter, lambda: tuple(self._exporters.values()), port=options.control_port)
        )
        addresses = Addresses(options.pod_range)
        scratch = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="gpupack-pods-")))
        background = await self._open.enter_async_context(_Background(self.failed))
        background.start(site.pace.run())
        background.start(endpoints.run())
        for name in names:
            strategy = strategies.get(name)
            node = VirtualNode(api, name, addresses.node, options.machine, gpus[name], plugin=strategy)
            plugin = None if strategy is None else DevicePlugin(gpus[name], strategy)
            host = Host(
                api=api, address=addresses.node, addresses=addresses, first_backoff_seconds=options.backoff_seconds,
                launch=self._launcher(site, name, scratch, plugin), plugin=plugin,
            )  # fmt: skip
            self._open.push_async_callback(_leave, node)
            await node.join()
            background.start(Kubelet(host, name).run())
            background.start(node.run())
            if options.exporter:
                await node.start_exporter(EXPORTER_IMAGE)

    def _launcher(self, site: Site, node: str, scratch: Path, plugin: DevicePlugin | None) -> Launch:
        reader = CardReader(site.hardware, node, plugin)
        options = self._options

        def launch(sandbox: Sandbox) -> Program:
            if is_supervisor(sandbox.words):
                return HostProgram(sandbox, site, scratch)
            if (image := options.processes.get(sandbox.image)) is not None:
                return ProcessProgram(sandbox, site.exchange.table, image)
            if is_vllm(sandbox.image, sandbox.words):
                return EngineProgram(sandbox, site)
            if "dcgm-exporter" in sandbox.image:
                exporter = Exporter(
                    sandbox, site.exchange, reader.read, node=node, period_seconds=options.exporter_period_seconds,
                    generation=options.generation, absent=options.absent,
                )  # fmt: skip
                self._exporters[node] = exporter
                return exporter
            return Sleeper()

        return launch

    def _model(self, name: str) -> Llm:
        models = self._options.models or {}
        return models[name] if name in models else catalog.llm(name)


class _Background:
    """Tasks that never end by themselves; the first that breaks is told through `failed`."""

    def __init__(self, failed: asyncio.Future[None]) -> None:
        self._failed = failed
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def start(self, running: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(running)
        task.add_done_callback(self._look)
        self._tasks.append(task)

    def _look(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (problem := task.exception()) is not None and not self._failed.done():
            broken = RuntimeError("a part of the virtual nodes broke")
            broken.__cause__ = problem
            self._failed.set_exception(broken)


async def _leave(node: VirtualNode) -> None:
    """The cluster may have gone before us."""
    try:
        await node.leave()
    except Unavailable as problem:
        log.warning("%s stays in the cluster: %s", node.name, problem)
