"""`gpupack operator`: the shell around `reconcile`. Gather, ask, commit, perform, wait; nothing is decided here.

Kopf logs in, handles signals and tells of pools and servings; it writes nothing (no finalizer, no annotation, no
event). One task per pool runs the loop over mirrors of its own. The process may end at any line: what matters is in the
cluster, and the next process goes on from there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import kopf
from aiohttp import web
from kubernetes.aio.client.configuration import Configuration

from gpupack import __version__, catalog
from gpupack.decide import learning
from gpupack.decide.learning import Learning
from gpupack.decide.reconcile import reconcile
from gpupack.decide.scaling import with_scales
from gpupack.errors import Unavailable
from gpupack.facts.gpu import Gpu
from gpupack.facts.interpretation import Facts, interpret
from gpupack.facts.observation import Observation, SourceProblem
from gpupack.facts.policy import Policy
from gpupack.kube import labels
from gpupack.kube.access import token_and_authority
from gpupack.kube.api import Api, Conflict, configuration_of
from gpupack.kube.doors import ACTIVATOR_NAMESPACE, may_sleep
from gpupack.kube.observe import Lookups, Mirrors, Scene, scene_of
from gpupack.kube.perform import Performer, carry_out, commit_orphan, keep_learnt
from gpupack.kube.source_resource import PrometheusServer
from gpupack.metrics.promql import Credentials, PrometheusTarget
from gpupack.metrics.scrape import EARLY, EngineTarget, ExporterTarget, Scraper, engine_targets, observed_targets
from gpupack.metrics.series import Exporter, Quantity
from gpupack.metrics.windows import GpuReadings, Timing, best_of, worst_of
from gpupack.plan import Outcome
from gpupack.profiling.measuring import Measurer
from gpupack.program import add_kubeconfig, configure_logging, count
from gpupack.telemetry import Telemetry, Tick
from gpupack.trace.recorder import Recorder, TraceFile
from gpupack.units import MB, Seconds

log = logging.getLogger(__name__)

READ_BACK_SECONDS = 5.0
"""How long a tick waits to see its own write of the plan; then the pools are listed anew."""
LAST_TICK_SECONDS = 5.0
"""A tick that is under way when the process is asked to end gets this long."""
ORPHAN_SECONDS = 2.0
LEAST_GAP_SECONDS = Policy().least_gap
AFTER_FAILURE_SECONDS = Policy().tick
TRACE_VARIABLE = "GPUPACK_TRACE"
OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
IMAGE_VARIABLE = "GPUPACK_IMAGE"
STUCK_SECONDS = 120.0
"""A pool whose loop has not turned for this long is stuck; the liveness probe says so."""

LOOKUPS = Lookups(
    gpu_by_product=catalog.gpu_by_product, gpu_by_name=partial(catalog.gpu, field="spec.gpu"), llm_of=catalog.llm_of
)

Reconcile = Callable[[Observation, Facts], Outcome]
Record = Callable[[Observation, Outcome], None]
"""Takes a tick for the trace; returns at once and never fails."""


def record_nothing(_observation: Observation, _outcome: Outcome) -> None:
    """No trace was asked for."""


def all_targets(scene: Scene) -> list[EngineTarget]:
    return [*engine_targets(scene.replicas), *observed_targets(scene.running)]


def exporter_targets(scene: Scene) -> list[ExporterTarget]:
    sources = scene.pool.sources
    return [
        ExporterTarget(
            name=f"{each.namespace}/{each.name}", node=each.node, address=f"{each.ip}:{source.port}", exporter=exporter
        )
        for source, exporter, pods in (
            (sources.dcgm, Exporter.DCGM, scene.exporters), (sources.agent, Exporter.AGENT, scene.agents),
        )
        if source is not None
        for each in pods
    ]  # fmt: skip


def prometheus_target(server: PrometheusServer | None, policy: Policy) -> PrometheusTarget | None:
    if server is None:
        return None
    queries = {
        Quantity.DRAM_ACTIVE: server.dram_active, Quantity.FB_USED: server.memory_used, Quantity.POWER: server.power,
    }  # fmt: skip
    return PrometheusTarget(
        url=server.url,
        look_back=policy.dcgm_stale_after,
        queries=tuple((quantity, query) for quantity, query in queries.items() if query),
        counter=server.counter,
    )


class Rhythm:
    """The regular ticks of a pool. Those that something stirred come between them and do not put them off.

    Engines are scraped no oftener than their period; else a tick halfway would leave them unseen for almost two.
    """

    def __init__(self) -> None:
        self._since = -math.inf

    def rest(self, began: float, tick: Seconds, wake_in: Seconds) -> Seconds:
        """From a tick that began then until the next: `wake_in`, or less if a regular one is due before."""
        if began - self._since >= EARLY * tick:
            self._since = began
        return Seconds(min(wake_in, self._since + tick - began))


class PoolTask:
    """The loop of one pool."""

    def __init__(
        self, name: str, api: Api, mirrors: Mirrors, scraper: Scraper, telemetry: Telemetry, *,
        reconcile: Reconcile = reconcile, record: Record = record_nothing, reporter: str,
        image: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self.name = name
        self.wake = asyncio.Event()
        self.turned_at: float | None = None
        self._api = api
        self._mirrors = mirrors
        self._scraper = scraper
        self._telemetry = telemetry
        self._reconcile = reconcile
        self._record = record
        self._performer = Performer(api, reporter, image)
        self._clock = clock
        self._rhythm = Rhythm()
        self._look_again: tuple[str, ...] = ()
        self._learning = Learning()
        self._watched_since: Seconds | None = None
        self._stopping = False

    def stop(self) -> None:
        """Ends the loop after the tick that is under way."""
        self._stopping = True
        self.wake.set()

    async def run(self) -> None:
        """Until the pool is gone from its mirror or `stop` is called."""
        await self._mirrors.synced()
        async with self._scraper:
            while not self._stopping:
                self.wake.clear()
                self.turned_at = began = time.monotonic()
                if (wake_in := await self._tick_or_say_why_not()) is None:
                    break
                await self._rest(began, wake_in)
        self._telemetry.forget(self.name)

    async def _rest(self, began: float, wake_in: float) -> None:
        """Until something stirs or `wake_in` has passed, but at least the least gap after the last tick began."""
        if self._stopping:
            return
        await asyncio.sleep(max(0.0, began + LEAST_GAP_SECONDS - time.monotonic()))  # a burst of changes is one tick
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, began + wake_in - time.monotonic())):
                await self.wake.wait()

    async def _tick_or_say_why_not(self) -> Seconds | None:
        """How long to wait after it, None if the pool is gone. The one place where a bug does not end the operator."""
        started = time.monotonic()
        try:
            scene = scene_of(self._mirrors, self.name)
            return None if scene is None else await self._tick(scene)
        except Conflict as conflict:
            self._mirrors.pools.doubt()  # it may be long before a silent watch shows what was written
            self._say(
                logging.INFO, "somebody wrote the pool since it was seen; this tick is dropped", "Conflict", conflict
            )
            return LEAST_GAP_SECONDS
        except Unavailable as problem:
            self._say(logging.WARNING, "the tick ended early", "Unavailable", problem)
        except Exception:
            self._telemetry.dropped(self.name, "Bug")
            log.exception("the tick failed; this is a bug", extra={"pool": self.name})
        finally:
            self._telemetry.ticked(self.name, time.monotonic() - started)
        return AFTER_FAILURE_SECONDS

    def _say(self, level: int, sentence: str, cause: str, problem: Exception) -> None:
        self._telemetry.dropped(self.name, cause)
        log.log(level, "%s: %s", sentence, problem, extra={"pool": self.name, "cause": cause})

    async def _tick(self, scene: Scene) -> Seconds:
        began = time.monotonic()
        policy = scene.pool.policy
        timing = Timing.of(policy)
        if self._watched_since is None:
            self._watched_since = Seconds(round(self._clock(), 3))
        await self._scraper.round(
            all_targets(scene),
            exporter_targets(scene),
            timing=timing,
            exporter_period=policy.dcgm_period,
            again=self._look_again,
            again_after=policy.look_again_after,
            prometheus=prometheus_target(scene.pool.sources.prometheus, policy),
            access=partial(self._credentials, scene.pool.sources.prometheus),
        )
        scene = scene_of(self._mirrors, self.name) or scene  # scraping took a moment
        now = Seconds(round(self._clock(), 3))
        refusal = self._scraper.refusal
        observation = scene.observation(
            now,
            self._scraper.engines_seen(all_targets(scene), timing),
            partial(self._readings, scene),
            self._watched_since,
            None if refusal is None else SourceProblem(reason=refusal.reason.value, message=refusal.message),
            self._mirrors.waiting.seen(each.key for each in scene.servings if may_sleep(each)),
        )
        started = time.monotonic()
        # In a thread: a decision over a large pool takes tens of milliseconds, and probes and watches go on meanwhile.
        observation, outcome = await asyncio.to_thread(self._decide, observation)
        self._look_again = outcome.look_again
        self._telemetry.decided(
            self.name, Tick(observation=observation, outcome=outcome), time.monotonic() - started
        )  # fmt: skip
        self._record(observation, outcome)
        self._log_decisions(observation, outcome)
        committed, done = await carry_out(self._api, self._performer, scene, outcome, now)
        await self._mirrors.inference_pools.write(scene)
        for performed in done:
            self._telemetry.acted(type(performed.action).__name__, refused=performed.problem is not None)
        self._learning = await keep_learnt(self._api, self._learning, observation)
        if committed.wrote_pool:
            await self._read_back(scene.pool.resource_version)
        return self._rhythm.rest(began, policy.tick, outcome.wake_in)

    def _readings(self, scene: Scene, gpu: Gpu) -> GpuReadings:
        """What goes wrong with a card goes wrong with its slices."""
        policy = scene.pool.policy

        def of(uuid: str) -> GpuReadings:
            return self._scraper.gpu_readings(
                uuid, gpu.node, exporter_period=policy.dcgm_period, stale_periods=policy.stale_periods
            )

        found = best_of([of(name) for name in scene.names_of(gpu)])
        card = gpu.parent_uuid or found.card
        return replace(found, xid=worst_of([of(card).xid, found.xid])) if card else found

    def _decide(self, observation: Observation) -> tuple[Observation, Outcome]:
        """The outcome, and on what it was decided."""
        facts = interpret(observation)
        self._learning = learning.learn(facts, self._learning)
        observation, facts = with_scales(observation, facts, self._learning.scales)
        return observation, self._reconcile(observation, facts)

    async def _credentials(self, server: PrometheusServer | None) -> Credentials:
        if server is None:
            return Credentials()
        token, authorities = await token_and_authority(self._api, server)
        return Credentials(token=token, authorities=authorities)

    async def _read_back(self, seen: str) -> None:
        """Waits until the mirror shows the pool as it was written."""
        try:
            async with asyncio.timeout(READ_BACK_SECONDS):
                while (pool := self._mirrors.pools.get("", self.name)) is not None and pool.resource_version == seen:
                    self.wake.clear()
                    await self.wake.wait()
        except TimeoutError:
            self._mirrors.pools.doubt()

    def _log_decisions(self, observation: Observation, outcome: Outcome) -> None:
        before = {each.serving: each for each in observation.plan.records} if observation.plan else {}
        plan = outcome.pool_status.plan
        for record in () if plan is None else plan.records:
            if before.get(record.serving) != record:
                log.info(
                    "%s: %s", record.serving, record.message,
                    extra={"pool": self.name, "serving": str(record.serving), "reason": record.reason,
                           "observed": record.observed, "limit": record.limit, "unit": record.unit,
                           "wanted": record.wanted, "planned": record.planned},
                )  # fmt: skip


class Operator:
    """Mirrors, pool tasks and the two endpoints, for as long as Kopf runs."""

    def __init__(
        self, configuration: Configuration, *, pod_proxy: str | None, reconcile: Reconcile = reconcile,
        trace: TraceFile | None = None, image: str = "", activator_namespace: str = ACTIVATOR_NAMESPACE,
    ) -> None:  # fmt: skip
        self._image = image
        self.telemetry = Telemetry(self._mirror_ages)
        self._recorder = (
            None if trace is None else Recorder(trace, catalog=catalog.digest(), tally=self.telemetry.recorded)
        )
        self.pools: dict[str, PoolTask] = {}
        self._configuration = configuration
        self._pod_proxy = pod_proxy
        self._reconcile = reconcile
        self._api = Api(configuration, on_call=self.telemetry.called)
        self.mirrors = Mirrors(
            self._api, LOOKUPS, self.stir, pod_proxy=pod_proxy, activator_namespace=activator_namespace
        )  # fmt: skip
        self._measurer = Measurer(self._api, self.mirrors, LOOKUPS.gpu_by_name, pod_proxy=pod_proxy)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._followers: list[asyncio.Task[None]] = []
        self._stirred = asyncio.Event()
        self._stopping = False

    def stir(self) -> None:
        """A record changed: pools that came get a task, all others look again."""
        for pool in self.mirrors.pools.all():
            self.attend(pool.name)
        for task in self.pools.values():
            task.wake.set()
        self._stirred.set()

    async def tell_orphans(self) -> None:
        """Servings whose pool does not exist have no task that could tell them so."""
        await self.mirrors.synced()
        while True:
            self._stirred.clear()
            now = Seconds(round(time.time(), 3))
            for resource in self.mirrors.servings.all():
                if self.mirrors.pools.get("", resource.pool) is None and not resource.deleting:
                    try:
                        await commit_orphan(self._api, resource, now)
                    except Unavailable:
                        self._stirred.set()  # it is said again, unless the serving has gone meanwhile
            await asyncio.sleep(ORPHAN_SECONDS)  # a pool that is applied together with its servings comes meanwhile
            await self._stirred.wait()

    def attend(self, name: str) -> None:
        """Starts the task of a pool that has none, and wakes it."""
        running = self._tasks.get(name)
        if self._stopping or self.mirrors.pools.get("", name) is None:
            return
        if running is None or running.done():
            scraper = Scraper(pod_proxy=self._pod_proxy)
            pool = PoolTask(
                name, self._api, self.mirrors, scraper, self.telemetry,
                reconcile=self._reconcile, reporter=socket.gethostname(), image=self._image,
                record=record_nothing if self._recorder is None else self._recorder.put,
            )  # fmt: skip
            self.pools[name] = pool
            task = asyncio.create_task(pool.run(), name=f"pool {name}")
            task.add_done_callback(lambda done: self._ended(name, done))
            self._tasks[name] = task
        self.pools[name].wake.set()

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(name) is task:
            del self._tasks[name], self.pools[name]
        if not task.cancelled() and (problem := task.exception()) is not None:
            log.error("the task of pool %s died and is started again by its next event", name, exc_info=problem)

    async def start(self) -> None:
        if self._recorder is not None:
            self._recorder.start()
        runs = (*self.mirrors.runs(), self.tell_orphans(), self._measurer.run())
        self._followers = [asyncio.create_task(run) for run in runs]
        for follower in self._followers:
            follower.add_done_callback(_end_if_it_died)

    async def stop(self) -> None:
        """Lets ticks end that are under way, then closes everything."""
        self._stopping = True
        for pool in self.pools.values():
            pool.stop()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=LAST_TICK_SECONDS)
        remaining = [*self._tasks.values(), *self._followers]
        for task in remaining:
            task.cancel()
        await asyncio.gather(*remaining, return_exceptions=True)
        if self._recorder is not None:
            await asyncio.to_thread(self._recorder.stop)
        await self._api.__aexit__(None, None, None)

    def is_alive(self) -> bool:
        """An API server that is away is no reason to restart; a loop that does not turn is."""
        now = time.monotonic()
        ticks = {pool.name: pool.policy.tick for pool in self.mirrors.pools.all()}
        return all(
            pool.turned_at is None or now - pool.turned_at < STUCK_SECONDS + ticks.get(name, 0.0)
            for name, pool in self.pools.items()
        )

    def is_ready(self) -> bool:
        return all(mirror.synced.is_set() for mirror in self.mirrors.each())

    def _mirror_ages(self) -> list[tuple[str, float]]:
        return [(mirror.name, mirror.age) for mirror in self.mirrors.each()]

    def registry(self) -> kopf.OperatorRegistry:
        """The handlers. None of them makes Kopf write to an object."""
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        async def login(**_: Any) -> kopf.ConnectionInfo:
            return await connection_info(self._configuration)

        @kopf.on.startup(registry=registry)
        async def startup(settings: kopf.OperatorSettings, **_: Any) -> None:
            settings.posting.enabled = False
            settings.watching.client_timeout = 300
            settings.watching.inactivity_timeout = 90
            await self.start()

        @kopf.on.cleanup(registry=registry)
        async def cleanup(**_: Any) -> None:
            await self.stop()

        @kopf.on.event(labels.GROUP, labels.VERSION, "gpupools", registry=registry)
        async def pool_event(name: str, **_: Any) -> None:
            self.attend(name)

        @kopf.on.event(labels.GROUP, labels.VERSION, "modelservings", registry=registry)
        async def serving_event(spec: Mapping[str, Any], **_: Any) -> None:
            self.attend(spec.get("poolName", "default"))

        return registry


def _end_if_it_died(follower: asyncio.Task[None]) -> None:
    """Without a mirror every pool would hold for ever; a new process begins with whole ones."""
    if not follower.cancelled() and (problem := follower.exception()) is not None:
        log.critical("a background task died; the operator ends", exc_info=problem)
        os.kill(os.getpid(), signal.SIGTERM)


async def connection_info(configuration: Configuration) -> kopf.ConnectionInfo:
    """The official client's credentials in Kopf's words; asked for again whenever they are refused."""
    bearer = await configuration.get_api_key_with_prefix("BearerToken")
    scheme, _, token = (bearer or "").rpartition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        ca_data=None if configuration.ssl_ca_cert else configuration.ca_cert_data,
        insecure=not configuration.verify_ssl,
        scheme=(scheme or "Bearer") if token else None,
        token=token or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        proxy_url=configuration.proxy,
    )


@contextlib.asynccontextmanager
async def _serving(host: str, port: int | None, routes: Mapping[str, Callable[[], web.Response]]) -> Any:
    """An HTTP endpoint for as long as the block lasts; no port, no endpoint."""
    if port is None:
        yield None
        return
    application = web.Application()
    for path, answer in routes.items():

        async def handle(_: web.Request, answer: Callable[[], web.Response] = answer) -> web.Response:
            return answer()

        application.router.add_get(path, handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield runner
    finally:
        await runner.cleanup()


def _yes_or_no(true: Callable[[], bool]) -> Callable[[], web.Response]:
    return lambda: web.Response(text="ok\n") if true() else web.Response(status=503, text="no\n")


async def operate(
    *, kubeconfig: str | None, pod_proxy: str | None, host: str, metrics_port: int | None, health_port: int | None,
    trace: TraceFile | None = None, reconcile: Reconcile = reconcile, stop: asyncio.Event | None = None,
    ready: asyncio.Event | None = None, image: str = "", activator_namespace: str = ACTIVATOR_NAMESPACE,
) -> None:  # fmt: skip
    """Runs until a signal or `stop`. Raises Unavailable without credentials, OSError if a port is taken."""
    operator = Operator(
        await configuration_of(kubeconfig), pod_proxy=pod_proxy, reconcile=reconcile, trace=trace, image=image,
        activator_namespace=activator_namespace,
    )  # fmt: skip

    def metrics() -> web.Response:
        return web.Response(body=operator.telemetry.text(), headers={"Content-Type": "text/plain; version=0.0.4"})

    health = {"/healthz": _yes_or_no(operator.is_alive), "/readyz": _yes_or_no(operator.is_ready)}
    async with _serving(host, metrics_port, {"/metrics": metrics}), _serving(host, health_port, health):
        await kopf.operator(
            registry=operator.registry(),
            settings=kopf.OperatorSettings(),
            # Else Kopf asks for the user's name, which a container need not know. It keeps the type to itself.
            identity=labels.MANAGED_BY,  # type: ignore[arg-type]
            clusterwide=True,
            standalone=True,
            stop_flag=stop,
            ready_flag=ready,
        )


def configure(parser: argparse.ArgumentParser) -> None:
    add_kubeconfig(parser)
    parser.add_argument(
        "--pod-proxy", metavar="URL", help="a plain HTTP forward proxy that reaches pods, to run outside the cluster"
    )
    parser.add_argument("--host", default="0.0.0.0", metavar="ADDRESS", help="where the endpoints listen")
    parser.add_argument("--metrics-port", type=_port, default=8080, metavar="PORT", help="/metrics; 0 for none")
    parser.add_argument("--health-port", type=_port, default=8081, metavar="PORT", help="/healthz, /readyz; 0 for none")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", default=_path(os.environ.get(TRACE_VARIABLE)),
        help=f"write every observation and what came of it there, for `gpupack replay`; default: ${TRACE_VARIABLE}",
    )  # fmt: skip
    parser.add_argument(
        "--trace-megabytes", type=count, default=64, metavar="N", help="when the file turns over; default 64"
    )
    parser.add_argument(
        "--trace-files", type=count, default=8, metavar="K", help="files in all, older ones compressed; default 8"
    )
    parser.add_argument(
        "--image", metavar="IMAGE", default=os.environ.get(IMAGE_VARIABLE, f"gpupack:{__version__}"),
        help=f"of this program, for pods that get their supervisor from it; default: ${IMAGE_VARIABLE}",
    )  # fmt: skip
    parser.add_argument(
        "--activator-namespace", metavar="NAME", default=_own_namespace(),
        help="whose activators get the requests of ModelServings that sleep; default: the operator's own",
    )  # fmt: skip
    parser.add_argument("--log-format", choices=("json", "text"), default="json")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")


def _port(word: str) -> int:
    number = int(word)
    if not 0 <= number < 65536:
        raise argparse.ArgumentTypeError(f"{word} is not a port; give 1 to 65535, or 0 for none")
    return number


def _own_namespace() -> str:
    """As Kubernetes tells a pod with an account; outside a cluster the one that the chart is installed into."""
    try:
        return OWN_NAMESPACE.read_text().strip()
    except OSError:
        return ACTIVATOR_NAMESPACE


def _path(word: str | None) -> Path | None:
    return Path(word) if word else None


def run(args: argparse.Namespace) -> int:
    """`gpupack operator`. Raises Unavailable without a way to the API."""
    configure_logging(args.log_format, args.log_level)
    if (kubeconfig := args.kubeconfig) is None and "KUBERNETES_SERVICE_HOST" not in os.environ:
        kubeconfig = os.environ.get("KUBECONFIG")
    trace = None
    if args.trace is not None:
        trace = TraceFile(path=args.trace, limit_bytes=args.trace_megabytes * MB, files=args.trace_files)
    asyncio.run(
        operate(
            kubeconfig=kubeconfig,
            pod_proxy=args.pod_proxy,
            host=args.host,
            metrics_port=args.metrics_port or None,
            health_port=args.health_port or None,
            trace=trace,
            image=args.image,
            activator_namespace=args.activator_namespace,
        )
    )
    return 0
