"""The control door of the virtual nodes: load, faults and the truth, over HTTP on loopback.

For demos, journeys and people; nothing that the operator sees goes through it.

    GET    /state?window=10          what really happens: GPUs, engines, services, loads
    POST   /load                     {"service": "ns/name" | "pod": "ns/name",
                                     "rate": 12.5 | "rates": [[0, 5], [30, 10]] | "concurrency": 64,
                                     "input_tokens": 512, "output_tokens": 256, "input_cv": 0.9, "output_cv": 0.9,
                                     "router": "LeastLoaded" | "RandomConnection"}
    DELETE /load?target=ns/name      no more load for that target; without target, for none
    POST   /crash                    {"pod": "ns/name", "message": "..."}
    POST   /engine-metrics           {"pod": "ns/name", "fault": "none|unreachable|empty|nan|frozen"}
    POST   /exporter                 {"fault": "none|unreachable|blank|nan|frozen", "absent": ["dram_active", ...]}
    POST   /start                    {"seconds": 12, "overhead_bytes": 0}: start-up time of engines from now on, and GPU
                                     memory that they take beyond what anybody expects
    POST   /mps                      {"gpu": "GPU-..."}: its MPS server dies, or {"starts": false}: none starts in a pod
    POST   /xid                      {"gpu": "GPU-...", "code": 79}: its driver tells an error; 0 tells that it is well
    POST   /interference             {"interference": 2.0}: how much sharing a GPU slows engines from now on
    POST   /costs                    {"step": 1.25}: what engines that start from now on cost, times the catalog's
    POST   /stranger                 {"gpu": "GPU-...", "bytes": 8e9}: memory that no pod explains; 0 takes it away

Answers are JSON; what is wrong with a request is said with status 400.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from types import TracebackType
from typing import Any, Self, TypeVar

from aiohttp import web

from gpupack.errors import Invalid
from gpupack.node.device_memory import OutOfMemory
from gpupack.node.endpoints import Endpoints
from gpupack.node.engine_program import EngineProgram, Serving, Site
from gpupack.node.engine_server import MetricsFault
from gpupack.node.exporter import Exporter, ExporterFault, Field
from gpupack.node.hardware import Slot
from gpupack.node.host_program import MPS_GONE
from gpupack.node.load import Dealer, Load, Reachable, Router
from gpupack.node.meter import EngineWindow, GpuWindow, Meter, merged_mean, quantile
from gpupack.twin.arrivals import Lengths
from gpupack.twin.memory_system import VLLM_V1
from gpupack.units import Bytes

DEFAULT_WINDOW_SECONDS = 10.0
DEFAULT_CV = 0.9
STRANGER = "stranger"
LOAD_FIELDS = frozenset({
    "service", "pod", "rate", "rates", "concurrency", "input_tokens", "output_tokens", "input_cv", "output_cv",
    "router",
})  # fmt: skip

Choice = TypeVar("Choice", bound=StrEnum)


class Steering:
    """Used with `async with`; then it answers at `url`."""

    def __init__(
        self, site: Site, dealer: Dealer, endpoints: Endpoints, meter: Meter,
        exporters: Callable[[], Sequence[Exporter]], *, port: int = 0,
    ) -> None:  # fmt: skip
        self._site = site
        self._dealer = dealer
        self._endpoints = endpoints
        self._meter = meter
        self._exporters = exporters
        self._port = port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[_say_what_is_wrong])
        app.router.add_get("/state", self._state)
        app.router.add_post("/load", self._set_load)
        app.router.add_delete("/load", self._clear_load)
        app.router.add_post("/crash", self._crash)
        app.router.add_post("/engine-metrics", self._break_engine_metrics)
        app.router.add_post("/exporter", self._break_exporter)
        app.router.add_post("/start", self._set_start)
        app.router.add_post("/interference", self._interfere)
        app.router.add_post("/costs", self._cost)
        app.router.add_post("/stranger", self._hold_memory)
        app.router.add_post("/mps", self._break_mps)
        app.router.add_post("/xid", self._tell_xid)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    # Load

    async def _set_load(self, request: web.Request) -> web.Response:
        load = load_of(await _body(request))
        self._dealer.set(load, self._site.pace.now())
        return web.json_response(_load(load, self._dealer))

    async def _clear_load(self, request: web.Request) -> web.Response:
        target = request.query.get("target")
        for each in [target] if target else list(self._dealer.loads):
            self._dealer.clear(each, self._site.pace.now())
        return web.json_response({})

    # Faults

    async def _crash(self, request: web.Request) -> web.Response:
        body = await _body(request)
        self._program(body).crash(str(body.get("message", "EngineCore died unexpectedly.")))
        return web.json_response({})

    async def _break_engine_metrics(self, request: web.Request) -> web.Response:
        body = await _body(request)
        serving = self._program(body).serving
        if serving is None:
            raise Invalid("pod", "its engine has not started", "wait until it is ready")
        serving.server.break_metrics(_choice(MetricsFault, body, "fault"))
        return web.json_response({"fault": serving.server.fault})

    async def _break_exporter(self, request: web.Request) -> web.Response:
        body = await _body(request)
        exporters = self._exporters()
        if not exporters:
            raise Invalid("exporter", "none runs", "wait until its pod runs")
        for exporter in exporters:
            if "fault" in body:
                exporter.fault = _choice(ExporterFault, body, "fault")
            if "absent" in body:
                exporter.absent = frozenset(_choice(Field, {"absent": each}, "absent") for each in body["absent"])
        return web.json_response({"fault": exporters[0].fault, "absent": sorted(exporters[0].absent)})

    async def _set_start(self, request: web.Request) -> web.Response:
        body = await _body(request)
        self._site.start_seconds = _real(body, "seconds", self._site.start_seconds)
        self._site.overhead_bytes = int(_real(body, "overhead_bytes", 0.0))
        return web.json_response({"seconds": self._site.start_seconds, "overhead_bytes": self._site.overhead_bytes})

    async def _break_mps(self, request: web.Request) -> web.Response:
        body = await _body(request)
        if "starts" in body:
            self._site.mps_starts = bool(body["starts"])
            return web.json_response({"starts": self._site.mps_starts})
        slot = self._slot(body)
        if (lose := self._site.mps_servers.get(slot.card.uuid)) is not None:
            lose()
        else:
            for program in self._site.running.values():
                if program.slot is slot:
                    program.crash(MPS_GONE)
        return web.json_response({})

    async def _tell_xid(self, request: web.Request) -> web.Response:
        body = await _body(request)
        self._slot(body).xids.append(int(_real(body, "code")))
        return web.json_response({"code": body["code"]})

    async def _cost(self, request: web.Request) -> web.Response:
        step = _real(await _body(request), "step")
        self._site.costs = VLLM_V1.times(step=step)
        return web.json_response({"step": step})

    async def _interfere(self, request: web.Request) -> web.Response:
        interference = _real(await _body(request), "interference")
        self._site.pace.now()  # what was before was under the old one
        self._site.hardware.interfere(interference)
        return web.json_response({"interference": interference})

    async def _hold_memory(self, request: web.Request) -> web.Response:
        body = await _body(request)
        slot = self._slot(body)
        slot.memory.release(STRANGER)
        try:
            slot.memory.take(STRANGER, Bytes(int(_real(body, "bytes"))))
        except OutOfMemory as problem:
            raise Invalid("bytes", str(problem), f"give at most {slot.memory.free}") from problem
        return web.json_response({"fb_used_bytes": slot.memory.used})

    def _slot(self, body: Mapping[str, Any]) -> Slot:
        slots = {slot.card.uuid: slot for slot in self._site.hardware.slots.values()}
        slot = slots.get(str(body.get("gpu")))
        if slot is None:
            raise Invalid("gpu", f"{body.get('gpu')!r} is no GPU here", f"give one of {sorted(slots)}")
        return slot

    def _program(self, body: Mapping[str, Any]) -> EngineProgram:
        program = self._site.running.get(str(body.get("pod")))
        if program is None:
            raise Invalid("pod", f"no engine runs in {body.get('pod')}", f"give one of {sorted(self._site.running)}")
        return program

    # The truth

    async def _state(self, request: web.Request) -> web.Response:
        try:
            seconds = float(request.query.get("window", DEFAULT_WINDOW_SECONDS))
        except ValueError as problem:
            raise Invalid("window", "it is not a number", "give seconds") from problem
        return web.json_response(self.state(seconds))

    def state(self, window_seconds: float) -> dict[str, Any]:
        """What `GET /state` answers. Latencies are null where nothing was observed in the window."""
        site = self._site
        now = site.pace.now()
        engines, gpus = self._meter.over(window_seconds)
        running = dict(sorted(site.running.items()))
        services = {service: self._behind(service) for service in self._endpoints.services()}
        return {
            "at": time.time(),
            "world_seconds": now,
            "window_seconds": window_seconds,
            "gpus": [
                _gpu(slot, gpus[slot.card.uuid], site.hardware.strategy(slot.card.uuid), running, engines)
                for slot in site.hardware.slots.values()
            ],
            "engines": [_engine(key, program, engines.get(key)) for key, program in running.items()],
            "services": [
                {"service": service, "engines": behind, **_together(engines[key] for key in behind if key in engines)}
                for service, behind in services.items()
                if behind
            ],
            "loads": [_load(load, self._dealer) for _, load in sorted(self._dealer.loads.items())],
            "ended": {"succeeded": site.ended.succeeded, "aborted": site.ended.aborted},
            "start_seconds": site.start_seconds,
            "interference": site.hardware.interference,
        }

    def _behind(self, service: str) -> list[str]:
        addresses = set(self._endpoints.of(service))
        return [
            key
            for key, program in sorted(self._site.running.items())
            if program.serving and (program.sandbox.address, program.serving.flags.port) in addresses
        ]


def engines_of(site: Site, endpoints: Endpoints) -> Callable[[str], Sequence[Reachable]]:
    """For the dealer: the engines that a Service's ready endpoints lead to, or the one of a pod."""

    def found(target: str) -> Sequence[Reachable]:
        if (program := site.running.get(target)) is not None and program.serving is not None:
            return [program.serving.reachable]
        open_now = {
            (each.sandbox.address, each.serving.flags.port): each.serving.reachable
            for each in site.running.values()
            if each.serving is not None
        }
        return [open_now[address] for address in endpoints.of(target) if address in open_now]

    return found


def load_of(body: Mapping[str, Any]) -> Load:
    """Raises Invalid with the field's name."""
    if unknown := sorted(set(body) - LOAD_FIELDS):
        raise Invalid(unknown[0], "is not known", f"give {', '.join(sorted(LOAD_FIELDS))}")
    target = body.get("service") or body.get("pod")
    if not isinstance(target, str) or target.count("/") != 1:
        raise Invalid("service", f"{target!r} is no namespace/name", "name a Service or a pod")
    rates: tuple[tuple[float, float], ...] = ()
    if "rates" in body:
        try:
            rates = tuple((float(at), float(rate)) for at, rate in body["rates"])
        except (TypeError, ValueError) as problem:
            raise Invalid("rates", "is no list of pairs", "give [[seconds, requests a second], ...]") from problem
    elif "rate" in body:
        rates = ((0.0, _real(body, "rate")),)
    return Load(
        target=target,
        lengths=Lengths(
            input_mean=_real(body, "input_tokens"),
            output_mean=_real(body, "output_tokens"),
            input_cv=_real(body, "input_cv", DEFAULT_CV),
            output_cv=_real(body, "output_cv", DEFAULT_CV),
        ),
        rates=rates,
        concurrency=int(_real(body, "concurrency", 0.0)),
        router=_choice(Router, body, "router") if "router" in body else Router.LEAST_LOADED,
    )


def _gpu(
    slot: Slot, window: GpuWindow, strategy: str, running: Mapping[str, EngineProgram],
    engines: Mapping[str, EngineWindow],
) -> dict[str, Any]:  # fmt: skip
    here = [key for key, program in running.items() if program.slot is slot]
    return {
        "uuid": slot.card.uuid,
        "node": slot.card.node,
        "device": slot.card.device,
        "kind": slot.card.kind.name,
        "sharing": strategy,
        "memory_bytes": slot.memory.total,
        "fb_used_bytes": slot.memory.used,
        "dram_active": window.dram_active,
        "dram_active_attainable": window.dram_active_attainable,
        "sm_active": window.sm_active,
        "gpu_held": window.gpu_held,
        "power_watts": window.power,
        "engines": here,
        **_together(engines[key] for key in here if key in engines),
    }


def _engine(key: str, program: EngineProgram, window: EngineWindow | None) -> dict[str, Any]:
    serving = program.serving
    told: dict[str, Any] = {
        "pod": key,
        "labels": dict(program.sandbox.labels),
        "address": program.sandbox.address,
        "gpu": program.slot.card.uuid if program.slot else None,
        "memory_bytes": program.slot.memory.held_by(program.sandbox.uid) if program.slot else 0,
        "state": "starting" if serving is None else serving.tenant.state.value,
    }
    if serving is None or window is None:
        return told
    return {**told, **_now(serving), **_together([window])}


def _now(serving: Serving) -> dict[str, Any]:
    engine = serving.tenant.engine
    return {
        "model": serving.flags.model,
        "max_num_seqs": engine.config.max_num_seqs,
        "max_model_len": serving.cache.max_model_len,
        "kv_cache_bytes": serving.cache.bytes,
        "running": engine.running,
        "waiting": engine.waiting,
        "kv_usage": engine.kv_usage,
        "kv_peak_usage": engine.kv_peak_usage,
        "succeeded_total": engine.counters.succeeded,
        "aborted_total": engine.counters.aborted,
        "metrics_fault": serving.server.fault.value,
    }


def _together(windows: Iterable[EngineWindow]) -> dict[str, Any]:
    """Sums of rates, latencies over all requests."""
    listed = list(windows)
    itl, ttft = [each.itl for each in listed], [each.ttft for each in listed]
    return {
        "output_tokens_per_second": sum(each.output_tokens_per_second for each in listed),
        "total_tokens_per_second": sum(each.total_tokens_per_second for each in listed),
        "finished_per_second": sum(each.finished_per_second for each in listed),
        "preemptions": sum(each.preemptions for each in listed),
        "aborted": sum(each.aborted for each in listed),
        "itl_mean_seconds": merged_mean(itl),
        "itl_p95_seconds": quantile(itl, 0.95) if itl else None,
        "ttft_mean_seconds": merged_mean(ttft),
        "ttft_p95_seconds": quantile(ttft, 0.95) if ttft else None,
    }


def _load(load: Load, dealer: Dealer) -> dict[str, Any]:
    dealt, unrouted = dealer.counts(load.target)
    return {
        "target": load.target, "rates": load.rates, "concurrency": load.concurrency, "router": load.router.value,
        "input_tokens": load.lengths.input_mean, "output_tokens": load.lengths.output_mean,
        "input_cv": load.lengths.input_cv, "output_cv": load.lengths.output_cv,
        "dealt": dealt, "unrouted": unrouted,
    }  # fmt: skip


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.read())
    except ValueError as problem:
        raise Invalid("body", "it is no JSON", "send a JSON object") from problem
    if not isinstance(body, dict):
        raise Invalid("body", "it is no JSON object", "send a JSON object")
    return body


def _real(body: Mapping[str, Any], field: str, default: float | None = None) -> float:
    value = body.get(field, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise Invalid(field, f"{value!r} is not a number of 0 or more", "give one")
    return float(value)


def _choice(kind: type[Choice], body: Mapping[str, Any], field: str) -> Choice:
    try:
        return kind(body.get(field, ""))
    except ValueError as problem:
        raise Invalid(field, f"{body.get(field)!r} is unknown", f"give one of {', '.join(kind)}") from problem


@web.middleware
async def _say_what_is_wrong(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except Invalid as wrong:
        return web.json_response({"error": str(wrong), "field": wrong.field}, status=400)
