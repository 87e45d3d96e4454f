"""The command: `gpupack host` is the first process of a pod that holds a GPU, and runs what the operator orders.

The shell around `life`: a loop takes events in their order and carries actions out; threads watch engines and MPS and
talk HTTP, and only ever add events.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import assert_never

from gpupack.host import archive, cpu, life
from gpupack.host.life import Action, Ending, Event, Mps, Stage, Times
from gpupack.host.mps import MpsDaemon
from gpupack.host.orders import EngineOrder, Orders, orders_of, orders_text
from gpupack.host.processes import Process, Processes, adopt_orphans, in_words, not_started
from gpupack.host.report import Cores, page, report
from gpupack.host.server import Refused, Server

PORT = 8000
KEPT = "orders.json"
TICK_SECONDS = 0.1
PROBE_SECONDS, PROBE_START_SECONDS = 1.0, 0.2
"""Between two looks, and while something starts."""
PROBE_PATIENCE_SECONDS = 2.0
CORES_SECONDS = 2.0
"""Between two looks at what waits for cores."""
PROC = Path("/proc")
POD = ""
"""The pod as a whole, among the names of its engines."""
ANYWHERE, LOOPBACK = "0.0.0.0", "127.0.0.1"
VISIBLE = "NVIDIA_VISIBLE_DEVICES"
NAMES_THE_GPU = ("nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--copy-to", type=Path, metavar="DIR", help=f"write the supervisor as one file, DIR/{archive.NAME}, and end"
    )
    parser.add_argument("--mps", action="store_true", help="the engines share the GPU by MPS, else they take turns")
    parser.add_argument("--bind", default=ANYWHERE, metavar="ADDRESS", help="where it listens and engines are probed")
    parser.add_argument("--port", type=int, default=PORT, metavar="PORT", help=f"of reports and orders; default {PORT}")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="what every request has to carry")
    parser.add_argument(
        "--directory", type=Path, default=Path("/run/gpupack"), metavar="DIR", help="of orders and pipes"
    )
    parser.add_argument(
        "--settle-seconds", type=float, default=Times().settle, metavar="S",
        help="an engine that is ordered away serves on so long, until routers have forgotten it",
    )  # fmt: skip
    parser.add_argument(
        "--drain-seconds", type=float, default=Times().drain, metavar="S", help="between SIGTERM and SIGKILL"
    )
    parser.add_argument("engine", nargs="*", default=["vllm", "serve"], help="an engine's command; default vllm serve")


def run(args: argparse.Namespace) -> int:
    """0 after SIGTERM, 2 for options that cannot be."""
    if args.copy_to is not None:
        print(archive.write(args.copy_to))
        return 0
    if args.token_file is None:
        print("gpupack host: give --token-file", file=sys.stderr)
        return 2
    adopt_orphans()
    times = Times(settle=args.settle_seconds, drain=args.drain_seconds)
    supervisor = Supervisor(args.engine, args.directory, mps=args.mps, bind=args.bind, times=times)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: supervisor.tell(life.AskedToStop()))
    signal.signal(signal.SIGCHLD, lambda *_: supervisor.tell(life.Passed()))
    with Server((args.bind, args.port), supervisor, args.token_file) as server:
        threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
        print(f"listening on {args.bind}:{server.server_port}", flush=True)
        supervisor.run()
        server.shutdown()
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gpupack host", allow_abbrev=False)
    configure(parser)
    return run(parser.parse_args(argv))


class Supervisor:
    """`run` is the loop; `tell`, `take` and `report` may be called from any thread, `tell` from a signal handler."""

    def __init__(self, command: Sequence[str], directory: Path, *, mps: bool, bind: str, times: Times) -> None:
        self._command = tuple(command)
        self._kept = directory / KEPT
        self._probe_at = LOOPBACK if bind == ANYWHERE else bind
        self._times = times
        self._processes = Processes()
        self._mps = MpsDaemon(self._processes, directory / "mps")
        self._daemon: Process | None = None
        self._engines: dict[str, Process] = {}
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._state = life.beginning(mps=mps)
        self._number = 0
        self._changed = threading.Condition()
        self._desk = threading.Lock()
        self._newest = 0
        self._gpu = ""
        self._cores = Cores()

    def tell(self, event: Event) -> None:
        self._events.put(event)

    def take(self, text: bytes) -> str:
        """Orders are kept before they count: a supervisor that starts again has them."""
        try:
            orders = orders_of(text)
        except ValueError as wrong:
            raise Refused(400, str(wrong)) from None
        with self._desk:
            if self._state.stopping:
                raise Refused(503, "this pod is stopping")
            if orders.generation < self._newest:
                raise Refused(409, f"generation {self._newest} was ordered already")
            self._keep(orders)
            self._newest = orders.generation
            self.tell(life.Ordered(orders=orders))
        with self._changed:
            self._changed.wait_for(lambda: self._state.generation >= orders.generation, PROBE_PATIENCE_SECONDS)
        return self.report(None, 0.0)

    def report(self, after: int | None, wait: float) -> str:
        with self._changed:
            if after is not None:
                self._changed.wait_for(lambda: self._number != after, wait)
            state, number = self._state, self._number
        return report(state, number=number, gpu=self._gpu, lines=self._lines, cores=self._cores)

    def page(self) -> str:
        return page(self._cores)

    def run(self) -> None:
        """Until everything has ended after SIGTERM."""
        self._gpu = self._name_of_gpu()
        self._resume()
        for watch in (self._watch_engines, self._watch_mps, self._watch_cores):
            threading.Thread(target=watch, name=watch.__name__, daemon=True).start()
        while not self._state.finished:
            for process in self._processes.reap():
                self._bury(process)
            try:
                event: Event = self._events.get(timeout=TICK_SECONDS)
            except Empty:
                event = life.Passed()
            self._step(event)

    def _step(self, event: Event) -> None:
        state, actions = life.step(self._state, event, time.time(), self._times)
        if state != self._state:
            with self._changed:
                self._state = state
                self._number += 1
                self._changed.notify_all()
        for action in actions:
            self._do(action)

    def _do(self, action: Action) -> None:
        match action:
            case life.StartEngine():
                self._start_engine(action.order)
            case life.TerminateEngine():
                if (process := self._engines.get(action.name)) is not None:
                    self._processes.signal(process, signal.SIGTERM)
            case life.KillEngine():
                if (process := self._engines.get(action.name)) is not None:
                    self._aside(lambda: self._kill(process))
            case life.StartMps():
                try:
                    self._daemon = self._mps.start()
                except OSError as problem:
                    code, words = not_started(("nvidia-cuda-mps-control",), problem)
                    self.tell(life.MpsEnded(ending=Ending(code=code, words=words, log=(), at=time.time())))
            case life.QuitMps():
                self._aside(self._mps.quit)
            case life.KillMps():
                if self._daemon is not None:
                    self._processes.signal(self._daemon, signal.SIGKILL)
            case _:
                assert_never(action)

    def _start_engine(self, order: EngineOrder) -> None:
        words = (*self._command, *order.arguments)
        shares = self._state.mps.stage is Mps.READY
        try:
            self._engines[order.name] = self._processes.start(
                order.name, words, self._mps.environ if shares else os.environ
            )
        except OSError as problem:
            code, said = not_started(words, problem)
            self.tell(life.EngineEnded(name=order.name, ending=Ending(code=code, words=said, log=(), at=time.time())))

    def _kill(self, process: Process) -> None:
        self._mps.let_go(self._state.mps.server, process.pid)
        self._processes.signal(process, signal.SIGKILL)

    def _bury(self, process: Process) -> None:
        assert process.code is not None
        if process is not self._daemon and self._engines.get(process.name) is not process:
            return  # a question to MPS that was answered
        ending = Ending(code=process.code, words=in_words(process.code), log=process.last_words(), at=time.time())
        if process is self._daemon:
            self._daemon = None
            self._step(life.MpsEnded(ending=ending))
        else:
            del self._engines[process.name]
            self._step(life.EngineEnded(name=process.name, ending=ending))

    @staticmethod
    def _aside(task: Callable[[], None]) -> None:
        """What may take seconds does not keep the loop, which has to reap meanwhile."""
        threading.Thread(target=task, daemon=True).start()

    def _lines(self, name: str) -> tuple[str, ...]:
        process = self._engines.get(name)
        return () if process is None else tuple(process.lines)

    # What was ordered before

    def _keep(self, orders: Orders) -> None:
        self._kept.parent.mkdir(parents=True, exist_ok=True)
        partial = self._kept.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as file:
            file.write(orders_text(orders))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self._kept)

    def _resume(self) -> None:
        try:
            orders = orders_of(self._kept.read_bytes())
        except FileNotFoundError:
            return
        except ValueError as wrong:
            print(f"the kept orders cannot be read and are left out: {wrong}", flush=True)
            return
        with self._desk:
            self._newest = max(self._newest, orders.generation)
            self.tell(life.Ordered(orders=orders))

    # Watching

    def _watch_engines(self) -> None:
        stages = (Stage.STARTING, Stage.READY, Stage.UNWELL)
        while True:
            for engine in self._state.engines:
                if engine.stage in stages:
                    self.tell(life.Probed(name=engine.name, well=self._answers(engine.order.port)))
            starting = any(each.stage is Stage.STARTING for each in self._state.engines)
            time.sleep(PROBE_START_SECONDS if starting else PROBE_SECONDS)

    def _answers(self, port: int) -> bool:
        connection = http.client.HTTPConnection(self._probe_at, port, timeout=PROBE_PATIENCE_SECONDS)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/health")
                return connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                return False

    def _watch_mps(self) -> None:
        while True:
            if self._state.mps.stage in (Mps.STARTING, Mps.READY) and (seen := self._mps.look()) is not None:
                self.tell(seen)
            time.sleep(PROBE_SECONDS if self._state.mps.stage is Mps.READY else PROBE_START_SECONDS)

    def _watch_cores(self) -> None:
        meter = cpu.Meter()
        while True:
            engines, sessions, at = dict(self._engines), cpu.sessions(PROC), time.time()
            used = {name: cpu.spent(sessions.get(each.pid, ()), PROC) for name, each in engines.items()}
            limit = cpu.limited(cpu.CGROUP)
            self._cores = Cores(
                used={name: each for name, each in used.items() if each is not None},
                limit=limit,
                short={name: meter.look(f"{name} {each.pid}", at, used[name], None) for name, each in engines.items()},
                pod=meter.look(POD, at, None, limit),
            )
            meter.keep((POD, *(f"{name} {each.pid}" for name, each in engines.items())))
            time.sleep(CORES_SECONDS)

    def _name_of_gpu(self) -> str:
        """The device that the pod was given, by its uuid; empty if nothing here can tell."""
        told = os.environ.get(VISIBLE, "")
        if told.startswith(("GPU-", "MIG-")):
            return told.partition(",")[0]
        try:
            process = self._processes.start("nvidia-smi", NAMES_THE_GPU, os.environ, quiet=True)
        except OSError:
            return ""
        until = time.monotonic() + PROBE_PATIENCE_SECONDS
        while not process.ended.is_set() and time.monotonic() < until:
            self._processes.reap()
            time.sleep(TICK_SECONDS / 10)
        return next((line for line in process.last_words() if line.startswith("GPU-")), "")
