"""Playing one history: the cluster of the twin, the operator's process and the faults, tick by tick.

The order of a tick: what the history says, time in the cluster, the operator's turn, the rules. Everything comes from
the history alone, so a run can be repeated exactly. Knows how each event is done and undone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from gpupack import catalog
from gpupack.decide.reconcile import reconcile
from gpupack.facts.llm import Dtype
from gpupack.facts.observation import HeldSeen, Reading
from gpupack.facts.placement import Plan
from gpupack.facts.serving import ServingKey
from gpupack.kube import labels
from gpupack.kube.doors import ACTIVATOR_NAMESPACE
from gpupack.metrics.prometheus import EnginePage, GpuPage, Histogram
from gpupack.soak.history import WATCHED, Event, History, Wish
from gpupack.soak.process import CallFault, Feed, Killed, Look, ModelApi, Process, Reconcile
from gpupack.soak.rules import Broken, Rules, describe
from gpupack.twin.api_server import ApiServer, Json, Key, rfc3339
from gpupack.twin.cluster import Cluster, Gpu, Node, Pod, Steps
from gpupack.twin.fluid import Counts, Flow, FluidEngine, Model
from gpupack.twin.memory_system import GpuSpec, ModelDims
from gpupack.twin.stepped import SteppedGpu
from gpupack.units import GIB, MIB, Seconds

START = 1_795_000_000.0
"""Unix seconds at which every history begins."""
POOL = Key("gpupools", "", "default")
ACTIVATOR = Key("pods", ACTIVATOR_NAMESPACE, "activator")
ACTIVATOR_POD: Json = {
    "metadata": {"labels": {labels.PART_OF: labels.MANAGED_BY, labels.COMPONENT: labels.ACTIVATOR}},
    "spec": {"nodeName": "elsewhere", "containers": []},
    "status": {
        "phase": "Running", "podIP": "10.78.0.1",
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": rfc3339(START)}],
    },
}  # fmt: skip
OVERHEAD = 700 * MIB
"""What an engine holds beside weights and KV cache: less than is planned for, as on the servers that were measured."""
SETTLE_TICKS = 40
"""So long after the last fault, or the start, changes are no longer owed to it."""
GONE_TICKS = 20
"""So long after everything was deleted nothing may be left."""
BLOCK_TOKENS = 16

Tell = Callable[[str], None]
Undo = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A rule that was broken, and when."""

    rule: str
    message: str
    tick: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a history ended: `violation` None is well. `looks` are decisions taken."""

    history: History
    violation: Violation | None
    looks: int


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Refused calls are part of the game; nobody needs to read of them."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def play(
    history: History, *, reconcile: Reconcile = reconcile, tell: Tell | None = None,
    loop: asyncio.AbstractEventLoop | None = None,
) -> Report:  # fmt: skip
    """Plays a history to its end or to the first rule that is broken; `tell` hears every tick in a line or two."""
    own = loop is None
    loop = loop or asyncio.new_event_loop()
    game = _Game(history, reconcile, tell, loop)
    violation = None
    try:
        with quiet():
            game.run()
    except Broken as broken:
        violation = Violation(rule=broken.rule, message=str(broken), tick=game.tick)
    except Exception as problem:  # a bug of the code under test is what is looked for
        where = problem.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        at = "" if where is None else f" ({where.tb_frame.f_code.co_qualname}, line {where.tb_lineno})"
        violation = Violation(rule="no exception", message=f"{type(problem).__name__}: {problem}{at}", tick=game.tick)
    finally:
        if own:
            loop.close()
    return Report(history=history, violation=violation, looks=game.looks)


class _Game:
    def __init__(
        self, history: History, reconcile: Reconcile, tell: Tell | None, loop: asyncio.AbstractEventLoop
    ) -> None:
        world = history.world
        self.tick = 0
        self.looks = 0
        self._history = history
        self._world = world
        self._reconcile = reconcile
        self._tell = tell
        self._loop = loop
        self._chance = random.Random(history.seed)
        self.server = ApiServer(START)
        self.cluster = self._build()
        self._wishes = {wish.key: wish for wish in world.servings}
        self._keys = sorted(self._wishes)
        self._rates = {key: wish.rate for key, wish in self._wishes.items()}
        self._pages = _Pages(self.cluster, world.absent)
        self.rules = Rules(self.server, self.cluster, self._pages.blind_for)
        self._feeds = {name: Feed() for name in (*WATCHED, "modelprofiles", "endpointslices")}
        self._api = ModelApi(self.server, self.rules.before_write)
        self._process: Process | None = None
        self._back_at = 0
        self._away = 1
        self._skew = 0.0
        self._undo: list[tuple[int, Undo]] = []
        self._foreigners = 0
        self._by_tick: dict[int, list[Event]] = {}
        for event in history.events:
            self._by_tick.setdefault(event.tick, []).append(event)

    def _build(self) -> Cluster:
        world = self._world
        gpus = []
        for number, name in enumerate(world.gpus):
            kind = catalog.gpu(name)
            gpus.append(
                Gpu(
                    uuid=f"GPU-{number:08d}-0000-4000-8000-000000000000", node=f"node-{number // world.per_node}",
                    device=f"gpu-{number % world.per_node}", product=kind.product_names[0],
                    memory_bytes=kind.memory_bytes, bandwidth=kind.dram_bytes_per_second,
                    interference=world.interference,
                )
            )  # fmt: skip
        nodes = tuple(Node(name=name, cores=world.cores) for name in sorted({gpu.node for gpu in gpus}))
        models: dict[str, Model] = {}
        for llm in catalog.llms():
            model = Model(
                weight_bytes=llm.weight_bytes(Dtype.BFLOAT16),
                kv_bytes_per_token=llm.kv_bytes_per_token(Dtype.BFLOAT16),
                overhead_bytes=OVERHEAD,
            )
            models |= dict.fromkeys((llm.name, *llm.aliases), model)
        return Cluster(
            self.server, tuple(gpus), nodes, models,
            load_seconds=world.load_seconds, drain_seconds=world.drain_seconds,
            steps=_steps(gpus) if world.stepped else None,
        )  # fmt: skip

    # The course of a history.

    def run(self) -> None:
        history, world = self._history, self._world
        quiet_from = (history.calm_at if history.events else 0) + SETTLE_TICKS
        self.server.create(POOL, {"spec": world.pool})
        if world.sleeps:
            self.server.create(ACTIVATOR, ACTIVATOR_POD)
            self.cluster.has_activator = True
        for self.tick in range(history.ticks):
            self._happen()
            if self.tick == history.deleted_at:
                self.rules.at_rest(
                    self.tick, noise=world.noise, tick_seconds=world.tick, quiet_from=quiet_from
                )  # fmt: skip
                for key in self._keys:
                    self._delete(self._wishes[key])
            self.cluster.advance(START + self.tick * world.tick, self._arriving())
            self._pages.turn()
            self._operate()
            self.rules.after_tick(self.tick, quiet_from=quiet_from)
        if history.ticks >= history.deleted_at + GONE_TICKS:
            self.rules.at_end()

    def _say(self, sentence: str) -> None:
        if self._tell is not None:
            self._tell(f"{self.tick:4d}  {sentence}")

    def _arriving(self) -> dict[str, float]:
        arriving = {}
        for key, rate in self._rates.items():
            expected = rate * self._world.tick
            if self._world.noise and expected > 0:
                expected = max(0.0, round(self._chance.gauss(expected, math.sqrt(expected))))
            arriving[key] = expected
        return arriving

    def _operate(self) -> None:
        """The operator's turn."""
        if self._process is None:
            if self.tick < self._back_at:
                return
            faults, self._api = self._api.faults, ModelApi(self.server, self.rules.before_write)
            self._api.faults = [each for each in faults if not each.how.startswith("killed")]
            self._process = Process(
                self.server, self._api, self._feeds, self._pages, self._reconcile, lambda: self.server.now,
                learns=self._world.learns,
            )  # fmt: skip
        try:
            looks = self._process.tick(self._loop, self.server.now + self._skew)
        except Killed:
            self._say("the operator is killed")
            self._process, self._back_at = None, self.tick + self._away
            return
        for look in looks:
            self.looks += 1
            self._listen(look)
            self.rules.after_look(look)

    def _listen(self, look: Look) -> None:
        if self._tell is not None and (look.outcome.plan_changed or look.outcome.actions or look.problem):
            reasons = {each.serving.name: each.reason for each in (look.outcome.pool_status.plan or Plan()).records}
            self._say(f"{describe(look.outcome)} {reasons}{f' but: {look.problem}' if look.problem else ''}")

    # What happens.

    def _happen(self) -> None:
        over = [undo for tick, undo in self._undo if tick <= self.tick]
        self._undo = [(tick, undo) for tick, undo in self._undo if tick > self.tick]
        for end in over:
            end()
        if self.tick >= self._history.deleted_at:
            return
        for wish in self._world.servings:
            if wish.born == self.tick:
                self._create(wish, wish.spec)
        for event in self._by_tick.get(self.tick, ()):
            self._say(f"event: {event.kind} {event.args} for {event.ticks}")
            undo = _EVENTS[event.kind](self, event.args, event.ticks)
            if undo is not None and event.ticks:
                self._undo.append((self.tick + event.ticks, undo))

    def _create(self, wish: Wish, spec: Mapping[str, Any]) -> None:
        key = Key("modelservings", wish.namespace, wish.name)
        if self.server.get(key) is None:
            self.server.create(key, {"spec": spec})
        self.cluster.flows[wish.key] = Flow(
            rate=wish.rate, clients=wish.clients, input_tokens=wish.input_tokens, output_tokens=wish.output_tokens
        )

    def _delete(self, wish: Wish) -> None:
        key = Key("modelservings", wish.namespace, wish.name)
        if self.server.get(key) is not None:
            self.server.remove(key)

    def _serving(self, args: Mapping[str, Any]) -> str:
        return self._keys[int(args["serving"]) % len(self._keys)]

    def _pod(self, args: Mapping[str, Any]) -> Pod | None:
        pods = sorted(self.cluster.pods.values(), key=lambda each: each.key)
        return pods[int(args["pod"]) % len(pods)] if pods else None

    def _gpu(self, args: Mapping[str, Any]) -> Gpu:
        return list(self.cluster.gpus.values())[int(args["which"]) % len(self.cluster.gpus)]

    def _node(self, args: Mapping[str, Any]) -> str:
        names = list(self.cluster.nodes)
        return names[int(args.get("which", args.get("node", 0))) % len(names)]

    def _watch(self, args: Mapping[str, Any], ticks: int) -> Undo | None:
        feed, how = self._feeds[args["resource"]], args["how"]
        if how == "repeat":
            feed.again = 1 + ticks
            return None
        field = {"late": "late", "silent": "silent", "drop": "dropping"}[how]
        setattr(feed, field, True)

        def undo() -> None:
            setattr(feed, field, False)
            feed.lists = feed.lists or how == "drop"

        return undo

    def _call(self, args: Mapping[str, Any], ticks: int) -> None:
        del ticks
        self._api.faults.append(CallFault(how=args["how"], after=args["after"]))

    def _kill(self, args: Mapping[str, Any], ticks: int) -> None:
        del ticks
        self._away = args["away"]
        self._api.faults.append(CallFault(how="killed_written" if args["written"] else "killed", after=args["after"]))

    def _pods(self, args: Mapping[str, Any], ticks: int) -> Undo:
        del ticks
        marked: set[str] = getattr(self.cluster.faults, args["how"])
        serving = self._serving(args)
        marked.add(serving)
        return lambda: marked.discard(serving)

    def _crash(self, args: Mapping[str, Any], ticks: int) -> None:
        del ticks
        if (pod := self._pod(args)) is not None:
            self.cluster.crash(pod)

    def _delete_pod(self, args: Mapping[str, Any], ticks: int) -> None:
        del ticks
        if (pod := self._pod(args)) is not None and self.server.get(pod.key) is not None:
            self.server.end(pod.key)

    def _metrics(self, args: Mapping[str, Any], ticks: int) -> Undo:
        del ticks
        return self._pages.break_engines(self._serving(args), args["how"], one=args["one"])

    def _reset(self, args: Mapping[str, Any], ticks: int) -> None:
        del ticks
        if (pod := self._pod(args)) is not None:
            pod.engine.restart()

    def _dcgm(self, args: Mapping[str, Any], ticks: int) -> Undo:
        del ticks
        return self._pages.break_exporter(self._node(args), args["how"])

    def _clock(self, args: Mapping[str, Any], ticks: int) -> Undo:
        del ticks
        by = args["by"]
        self._skew += by

        def undo() -> None:
            self._skew -= by

        return undo

    def _node_down(self, args: Mapping[str, Any], ticks: int) -> Undo:
        del ticks
        name = self._node(args)
        self.cluster.set_node(name, alive=False)
        return lambda: self.cluster.set_node(name, alive=True)

    def _node_gone(self, args: Mapping[str, Any], ticks: int) -> Undo:
        del ticks
        name = self._node(args)
        self.cluster.take_node(name)
        return lambda: self.cluster.bring_node(name)

    def _gpu_gone(self, args: Mapping[str, Any], ticks: int) -> Undo:
        del ticks
        uuid = self._gpu(args).uuid
        self.cluster.set_gpu(uuid, present=False)
        return lambda: self.cluster.set_gpu(uuid, present=True)

    def _gpu_taint(self, args: Mapping[str, Any], ticks: int) -> Undo:
        del ticks
        uuid = self._gpu(args).uuid
        self.cluster.set_taint(uuid, "gpu/unhealthy")
        return lambda: self.cluster.set_taint(uuid, None)

    def _foreign_pod(self, args: Mapping[str, Any], ticks: int) -> Undo:
        del ticks
        self._foreigners += 1
        key = Key("pods", "batch", f"job-{self._foreigners}")
        container = {"resources": {"limits": {"nvidia.com/gpu": "1"}, "requests": {"cpu": "1"}}}
        spec = {"nodeName": self._node(args), "containers": [container]}
        self.server.create(key, {"spec": spec, "status": {"phase": "Running"}})
        return lambda: self._remove(key)

    def _foreign_claim(self, args: Mapping[str, Any], ticks: int) -> Undo | None:
        del ticks
        gpu = self._gpu(args)
        if self.cluster.device_holder(gpu.node, gpu.device) is not None:
            return None
        self._foreigners += 1
        key = Key("resourceclaims", "batch", f"claim-{self._foreigners}")
        result = {"driver": "gpu.nvidia.com", "pool": gpu.node, "device": gpu.device, "request": "gpu"}
        status = {"allocation": {"devices": {"results": [result]}}, "reservedFor": [{"uid": "x", "foreign": True}]}
        self.server.create(key, {"spec": {}, "status": status})
        return lambda: self._remove(key)

    def _foreign_memory(self, args: Mapping[str, Any], ticks: int) -> Undo:
        del ticks
        gpu, held = self._gpu(args), int(args["gib"] * GIB)
        gpu.foreign_bytes += held

        def undo() -> None:
            gpu.foreign_bytes -= held

        return undo

    def _remove(self, key: Key) -> None:
        if self.server.get(key) is not None:
            self.server.remove(key)

    def _edit(self, args: Mapping[str, Any], ticks: int) -> Undo:
        del ticks
        wish = self._wishes[self._serving(args)]
        key = Key("modelservings", wish.namespace, wish.name)
        there = self.server.get(key)
        old = {} if there is None else {name: there["spec"].get(name) for name in args["spec"]}
        self.server.edit(key, lambda item: {**item, "spec": _merged(item["spec"], args["spec"])})
        return lambda: self.server.edit(key, lambda item: {**item, "spec": _replaced(item["spec"], old)})

    def _pool_edit(self, args: Mapping[str, Any], ticks: int) -> Undo:
        del ticks
        old = {name: self._world.pool.get(name) for name in args["spec"]}
        self.server.edit(POOL, lambda item: {**item, "spec": _merged(item["spec"], args["spec"])})
        return lambda: self.server.edit(POOL, lambda item: {**item, "spec": _replaced(item["spec"], old)})

    def _recreate(self, args: Mapping[str, Any], ticks: int) -> Undo | None:
        wish = self._wishes[self._serving(args)]
        there = self.server.get(Key("modelservings", wish.namespace, wish.name))
        if there is None:
            return None
        self._delete(wish)
        if not ticks:
            self._create(wish, there["spec"])
        return lambda: self._create(wish, there["spec"])

    def _status(self, args: Mapping[str, Any], ticks: int) -> None:
        del ticks
        how = args["how"]
        if how == "serving_wiped":
            for key, _ in self.server.items("modelservings"):
                self.server.edit(key, lambda item: {**item, "status": {}})
            return

        def change(item: Json) -> Json:
            status = item.get("status", {})
            if how == "wiped":
                return {**item, "status": {}}
            if how == "broken":
                return {**item, "status": {**status, "plan": {"engines": "?"}}}
            return {**item, "status": {name: value for name, value in status.items() if name != "plan"}}

        self.server.edit(POOL, change)

    def _load(self, args: Mapping[str, Any], ticks: int) -> None:
        del ticks
        self._rates[self._serving(args)] = args["rate"]


def _steps(gpus: Sequence[Gpu]) -> Steps:
    dims: dict[str, ModelDims] = {}
    for llm in catalog.llms():
        dims |= dict.fromkeys((llm.name, *llm.aliases), ModelDims.of(llm, Dtype.BFLOAT16))
    kinds = {product: kind for kind in catalog.gpus() for product in kind.product_names}
    placed = {
        gpu.uuid: SteppedGpu(
            gpu.uuid,
            GpuSpec(
                memory_bytes=gpu.memory_bytes, dram_bytes_per_second=gpu.bandwidth,
                dense_flops_per_second=kinds[gpu.product].dense_flops_per_second,
            ),
            gpu.interference, START,
        )
        for gpu in gpus
    }  # fmt: skip
    return Steps(dims=dims, gpus=placed)


def _merged(spec: Mapping[str, Any], change: Mapping[str, Any]) -> Json:
    """A person's edit: None takes a field away, the model keeps its name."""
    merged = {**spec, **change}
    if "model" in change:
        merged["model"] = {**spec["model"], **change["model"]}
    return {name: value for name, value in merged.items() if value is not None}


def _replaced(spec: Mapping[str, Any], old: Mapping[str, Any]) -> Json:
    return {name: value for name, value in {**spec, **old}.items() if value is not None}


_EVENTS: dict[str, Callable[[_Game, Mapping[str, Any], int], Undo | None]] = {
    "watch": _Game._watch,
    "call": _Game._call,
    "kill": _Game._kill,
    "pods": _Game._pods,
    "crash": _Game._crash,
    "delete_pod": _Game._delete_pod,
    "evict": _Game._delete_pod,
    "metrics": _Game._metrics,
    "reset": _Game._reset,
    "dcgm": _Game._dcgm,
    "clock": _Game._clock,
    "node_down": _Game._node_down,
    "node_gone": _Game._node_gone,
    "gpu_gone": _Game._gpu_gone,
    "gpu_taint": _Game._gpu_taint,
    "foreign_pod": _Game._foreign_pod,
    "foreign_claim": _Game._foreign_claim,
    "foreign_memory": _Game._foreign_memory,
    "edit": _Game._edit,
    "pool_edit": _Game._pool_edit,
    "recreate": _Game._recreate,
    "status": _Game._status,
    "load": _Game._load,
}


class _Pages:
    """What engines and exporters answer, with what is wrong with them."""

    def __init__(self, cluster: Cluster, absent: tuple[str, ...]) -> None:
        self._cluster = cluster
        self._absent = absent
        self._broken: dict[str, tuple[str, bool]] = {}
        self._exporters: dict[str, str] = {}
        self._last: dict[str, EnginePage] = {}
        self._last_gpus: dict[str, tuple[GpuPage, ...]] = {}
        self._blind: dict[str, int] = {}
        self._by_address: dict[str, Pod] = {}

    def turn(self) -> None:
        """Once a tick: who is where, and who has told nothing for how long."""
        self._by_address = {f"{pod.address}:8000": pod for pod in self._cluster.pods.values()}
        blind = {}
        for pod in self._cluster.pods.values():
            how = self._wrong_with(pod)
            told = (
                how == "frozen" and (page := self._last.get(pod.uid)) is not None and not (page.running or page.waiting)
            )
            if how and not told:
                blind[pod.uid] = self._blind.get(pod.uid, 0) + 1
        self._blind = blind

    def blind_for(self, uid: str) -> int:
        return self._blind.get(uid, 0)

    def break_engines(self, serving: str, how: str, *, one: bool) -> Undo:
        self._broken[serving] = how, one

        def undo() -> None:
            self._broken.pop(serving, None)

        return undo

    def break_exporter(self, node: str, how: str) -> Undo:
        self._exporters[node] = how

        def undo() -> None:
            self._exporters.pop(node, None)

        return undo

    def _wrong_with(self, pod: Pod) -> str:
        how, one = self._broken.get(pod.serving, ("", False))
        if how and one:
            first = min(each.key for each in self._cluster.pods.values() if each.serving == pod.serving)
            return how if pod.key == first else ""
        return how

    def engine(self, address: str) -> EnginePage | None:
        pod = self._by_address.get(address)
        if pod is None or not pod.was_ready or pod.starts_at is not None or pod.loaded_at is not None:
            return None
        if not self._cluster.nodes[pod.node].alive:
            return None
        how = self._wrong_with(pod)
        if how == "gone":
            return None
        if how == "frozen" and pod.uid in self._last:
            return self._last[pod.uid]
        page = _page(pod.engine)
        self._last[pod.uid] = page
        if how == "nan":
            nan = math.nan
            return replace(page, running=nan, waiting=nan, finished=nan, prompt_tokens=nan, generation_tokens=nan)
        if how == "no_series":
            return replace(page, running=None, waiting=None, finished=None)
        return page

    def held(self, serving: ServingKey, at: float) -> HeldSeen:
        requests, since = self._cluster.kept_waiting.get(str(serving), (0.0, None))
        seen = Reading(value=float(math.ceil(requests)), at=Seconds(at), origin="activator")
        return HeldSeen(serving=serving, requests=seen, since=None if since is None else Seconds(since))

    def exporter(self, node: str) -> tuple[GpuPage, ...] | None:
        how = self._exporters.get(node, "")
        if how == "gone" or not self._cluster.nodes[node].alive:
            return None
        if how == "frozen" and node in self._last_gpus:
            return self._last_gpus[node]
        page = tuple(
            self._gpu_page(gpu, how) for gpu in self._cluster.gpus.values() if gpu.node == node and gpu.present
        )
        self._last_gpus[node] = page
        return page

    def _gpu_page(self, gpu: Gpu, how: str) -> GpuPage:
        dram: float | None = gpu.dram_active
        used: float | None = float(self._cluster.held(gpu.uuid) + gpu.foreign_bytes)
        if how == "nan":
            dram = used = math.nan
        elif how == "percent":
            dram = 100.0 * gpu.dram_active
        elif how == "mebibytes" and used is not None:
            used = used / MIB
        if how in ("no_dram", "blank") or "dram_active" in self._absent:
            dram = None  # a blank value is dropped by the reader
        if how in ("no_fb", "blank") or "fb_used" in self._absent:
            used = None
        return GpuPage(uuid=gpu.uuid, dram_active=dram, fb_used=used, power=300.0)


def _page(engine: FluidEngine) -> EnginePage:
    blocks = engine.kv_bytes // (BLOCK_TOKENS * engine.model.kv_bytes_per_token)
    return EnginePage(
        running=engine.running,
        waiting=float(engine.waiting),
        kv_usage=0.5,
        kv_blocks=float(blocks),
        finished=engine.finished,
        prompt_tokens=engine.prompt_tokens,
        generation_tokens=engine.generation_tokens,
        preemptions=0.0,
        ttft=_histogram(engine.ttft),
        itl=_histogram(engine.itl),
        input_length=_lengths(engine.prompt_lengths, engine.finished),
        output_length=_lengths(engine.answer_lengths, engine.finished),
    )


def _histogram(counts: Counts) -> Histogram:
    return Histogram(
        bounds=counts.bounds, counts=array("d", accumulate(counts.counts)), total=counts.total, count=counts.count
    )


def _lengths(total: float, count: float) -> Histogram:
    return Histogram(bounds=(), counts=array("d"), total=total, count=count)
