"""One life of the operator's process, without its network: the real mirrors, scene, windows, decision and writes.

What is a stand-in is only the transport: watch lines come from the model's log, late, twice or not at all; pages of
engines and exporters are values; requests are calls that may be refused, lost or the last thing the process does.
Everything between is the code that runs in a cluster.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import is_
from typing import Protocol

from gpupack.decide.learning import Learning, learn
from gpupack.decide.scaling import with_scales
from gpupack.errors import Unavailable
from gpupack.facts.gpu import Gpu
from gpupack.facts.interpretation import Facts, interpret
from gpupack.facts.observation import Cause, HeldSeen, Observation
from gpupack.facts.serving import ServingKey
from gpupack.handlers import LOOKUPS
from gpupack.kube.api import Api, ApiError, Conflict, Json, error_of
from gpupack.kube.doors import may_sleep
from gpupack.kube.mirror import Mirror
from gpupack.kube.observe import Mirrors, Scene, scene_of
from gpupack.kube.perform import Committed, Performed, Performer, carry_out, keep_learnt
from gpupack.metrics.prometheus import EnginePage, GpuPage
from gpupack.metrics.scrape import EngineTarget, engine_targets
from gpupack.metrics.windows import EngineHistory, ExporterHistory, GpuReadings, Timing, no_gpu_readings
from gpupack.plan import Outcome
from gpupack.twin.api_server import ApiServer, Refusal
from gpupack.units import Seconds

POOL = "default"
LOOKS = 3
"""So often a tick looks again after it wrote a plan, as the operator does when it reads its own write back."""

Reconcile = Callable[[Observation, Facts], Outcome]


class Killed(BaseException):
    """The process ended here; nothing after this line ran."""


@dataclass(slots=True)
class CallFault:
    """What becomes of a request: `after` counts those before it. See `ModelApi`."""

    how: str
    after: int


class ModelApi(Api):
    """The API client over the server in memory. `faults` strike the requests that they count down to.

    `lost`: done, but no answer; `unsent`: neither; `refused`: 500; `conflict`: 409; `killed` and `killed_written`: the
    process ends before or after the request was carried out.
    """

    def __init__(self, server: ApiServer, watcher: Callable[[str, str, Json | None], None]) -> None:
        self.faults: list[CallFault] = []
        self.calls = 0
        self._server = server
        self._watcher = watcher
        self._dead = False

    async def get(self, path: str, **query: str | int) -> Json:
        name = str(query["fieldSelector"]).removeprefix("metadata.name=")
        return self._call("list", path, None, lambda: {"items": self._server.named(path, name)})

    async def create(self, path: str, body: Json) -> Json:
        return self._call("create", path, body, lambda: {})

    async def apply(self, path: str, body: Json) -> Json:
        return self._call("apply", path, body, lambda: self._server.apply(path, body))

    async def merge(self, path: str, body: Json) -> Json:
        return self._call("merge", path, body, lambda: self._server.merge(path, body))

    async def delete(
        self, path: str, *, uid: str, grace_seconds: int | None = None, with_children: bool = False
    ) -> None:
        assert grace_seconds is None, "the operator leaves the grace to the pod"
        assert not with_children, "no pool's task deletes what has children"
        try:
            self._call("delete", path, None, lambda: self._server.delete(path, uid))
        except ApiError as problem:
            if problem.status not in (404, 409):
                raise

    def _call(self, verb: str, path: str, body: Json | None, work: Callable[[], Json]) -> Json:
        if self._dead:
            raise Killed
        self.calls += 1
        how = self._struck()
        if how == "killed":
            self._dead = True
            raise Killed
        if how == "unsent":
            raise Unavailable(f"{verb} {path}: no connection")
        if how in ("refused", "conflict"):
            raise _error(
                Refusal(*((500, "InternalError", "etcd") if how == "refused" else (409, "Conflict", "made up")))
            )
        self._watcher(verb, path, body)
        try:
            answer = work()
        except Refusal as refusal:
            raise _error(refusal) from None
        if how == "killed_written":
            self._dead = True
            raise Killed
        if how == "lost":
            raise Unavailable(f"{verb} {path}: no answer")
        return answer

    def _struck(self) -> str:
        for fault in self.faults:
            if fault.after <= 0:
                self.faults.remove(fault)
                return fault.how
        for fault in self.faults:
            fault.after -= 1
        return ""


def _error(refusal: Refusal) -> ApiError:
    return error_of(refusal.code, json.dumps({"reason": refusal.reason, "message": refusal.message}).encode())


@dataclass(slots=True)
class Feed:
    """How far one mirror has read the log, and what is wrong with its watch.

    `late`: nothing new comes though the connection lives; `silent`: nothing at all; `dropping`: changes are lost until
    the next list. `again` repeats so many of the last changes.
    """

    cursor: int = 0
    late: bool = False
    silent: bool = False
    dropping: bool = False
    again: int = 0
    lists: bool = True


class Pages(Protocol):
    """What engines, exporters and the activator answer. None is no answer."""

    def engine(self, address: str) -> EnginePage | None: ...
    def exporter(self, node: str) -> tuple[GpuPage, ...] | None: ...
    def held(self, serving: ServingKey, at: float) -> HeldSeen | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One observation with what was decided on it, and what kept it from being carried out (None: nothing)."""

    observation: Observation
    outcome: Outcome
    problem: Exception | None


@dataclass(slots=True)
class _Scraped:
    engines: dict[EngineTarget, EngineHistory] = field(default_factory=dict)
    exporters: dict[str, ExporterHistory] = field(default_factory=dict)


class Process:
    """The operator between its start and its end. `feeds` outlive it: faults are the network's, not the process's."""

    def __init__(
        self, server: ApiServer, api: ModelApi, feeds: dict[str, Feed], pages: Pages, reconcile: Reconcile,
        clock: Callable[[], float], *, learns: bool,
    ) -> None:  # fmt: skip
        self._server = server
        self._api = api
        self._feeds = feeds
        self._pages = pages
        self._reconcile = reconcile
        self._mirrors = Mirrors(api, LOOKUPS, lambda: None, clock=clock)
        self._performer = Performer(api, "soak")
        self._scraped = _Scraped()
        self._shown: list[tuple[object, ...]] = []
        self._scene: Scene | None = None
        self._learning = Learning() if learns else None
        for feed in feeds.values():
            feed.lists = True

    def tick(self, loop: asyncio.AbstractEventLoop, wall: float) -> list[Look]:
        """What one turn of the loop does, and again after a plan was written. Raises Killed."""
        looks: list[Look] = []
        for _ in range(LOOKS):
            self.deliver()
            scene = self._look_around()
            if scene is None or not all(mirror.synced.is_set() for mirror in self._mirrors.each()):
                break
            look, wrote = self._look(loop, scene, wall)
            looks.append(look)
            if not wrote:
                break
            wall += 0.2
        return looks

    def _look_around(self) -> Scene | None:
        """The scene; the same one for as long as every mirror shows the very same records."""
        shown = [mirror.all() for mirror in self._mirrors.each()]
        same = len(shown) == len(self._shown) and all(map(is_, shown, self._shown))
        if not same or self._scene is None or self._scene.stale != self._mirrors.stale():
            self._shown, self._scene = shown, scene_of(self._mirrors, POOL)
        return self._scene

    def _look(self, loop: asyncio.AbstractEventLoop, scene: Scene, wall: float) -> tuple[Look, bool]:
        observation = self._observe(scene, wall)
        facts = interpret(observation)
        if self._learning is not None:
            self._learning = learn(facts, self._learning)
            observation, facts = with_scales(observation, facts, self._learning.scales)
        outcome = self._reconcile(observation, facts)
        try:
            committed, done = loop.run_until_complete(self._write(scene, outcome, observation))
        except Unavailable as problem:  # a Conflict is one
            return Look(observation=observation, outcome=outcome, problem=problem), isinstance(problem, Conflict)
        refused = next((each.problem for each in done if each.problem is not None), None)
        return Look(observation=observation, outcome=outcome, problem=refused), committed.wrote_pool

    async def _write(
        self, scene: Scene, outcome: Outcome, observation: Observation
    ) -> tuple[Committed, list[Performed]]:
        written = await carry_out(self._api, self._performer, scene, outcome, observation.at)
        if self._learning is not None:
            self._learning = await keep_learnt(self._api, self._learning, observation)
        return written

    def deliver(self) -> None:
        """What the watches bring."""
        for mirror in self._mirrors.each():
            feed = self._feeds.get(mirror.name)
            if feed is None:
                mirror.hold(())
            elif not feed.silent:
                self._deliver(mirror, feed)

    def _deliver(self, mirror: Mirror[object], feed: Feed) -> None:
        if feed.lists:
            feed.lists, feed.again = False, 0
            mirror.hold(item for _, item in self._server.items(mirror.name))
            feed.cursor = self._server.count(mirror.name)
            return
        mirror.hear()
        if feed.late:
            return
        start = feed.cursor
        if feed.again:
            start, feed.again = max(0, start - feed.again), 0
        changes = self._server.changes(mirror.name, start)
        feed.cursor = self._server.count(mirror.name)
        if not feed.dropping:
            for change in changes:
                mirror.take({"type": change.kind, "object": change.item})

    def _observe(self, scene: Scene, wall: float) -> Observation:
        policy, timing = scene.pool.policy, Timing.of(scene.pool.policy)
        targets = engine_targets(scene.replicas)
        engines = self._scraped.engines
        for gone in engines.keys() - set(targets):
            del engines[gone]
        for target in targets:
            history = engines.get(target)
            if history is None:
                history = engines[target] = EngineHistory()
            page = self._pages.engine(target.address)
            if page is None:
                history.fail(wall)
            else:
                history.add(wall, page, timing)
        nodes = sorted({gpu.node for gpu in scene.gpus})
        exporters = self._scraped.exporters = {
            node: self._scraped.exporters.get(node) or ExporterHistory() for node in nodes
        }
        for node, watched in exporters.items():
            gpus = self._pages.exporter(node)
            if gpus is None:
                watched.fail(wall)
            else:
                watched.add(wall, gpus)

        def readings(gpu: Gpu) -> GpuReadings:
            watched = exporters[gpu.node]
            if gpu.uuid in watched.uuids:
                return watched.readings(gpu.uuid, wall, policy.dcgm_period, policy.stale_periods)
            return no_gpu_readings(Cause.NO_SERIES if watched.answered else Cause.UNREACHABLE)

        seen = tuple(engines[target].seen(target.replica, wall, timing) for target in targets)
        waiting = (self._pages.held(each.key, wall) for each in scene.servings if scene.activators and may_sleep(each))
        held = tuple(each for each in waiting if each is not None)
        return scene.observation(Seconds(round(wall, 3)), seen, readings, held=held)
