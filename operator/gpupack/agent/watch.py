"""The threads that look: one for each GPU, and one for NVML itself and its events.

A call that hangs holds up its own GPU's thread and nobody else; readers take the last look, whatever its age. Threads
are daemons, because one that hangs in the driver cannot be joined; one that ends by a bug of ours ends the agent.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pynvml

from gpupack.agent import nvml
from gpupack.agent.processes import residents, with_core_waits
from gpupack.agent.sample import Card, Event, Look
from gpupack.host.cpu import Meter
from gpupack.units import Seconds

EVENT_WAIT_MILLISECONDS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuView:
    """The last look, None before the first, and the call that is under way with its age."""

    card: Card
    look: Look | None
    calling: tuple[str, Seconds] | None
    looks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    """How often since the agent began, and when last, in seconds since 1970."""

    count: int
    at: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """All that is known now. `error`: why NVML as a whole does not answer, or gives no events."""

    is_up: bool
    error: str | None
    versions: tuple[str, str] | None
    gpus: tuple[GpuView, ...]
    closed: tuple[tuple[int, str], ...]
    """Index and error of GPUs that cannot be opened at all."""
    no_events: Mapping[str, str]
    events: Mapping[Event, Happened]
    now: Seconds


class _Watched:
    def __init__(self, gpu: nvml.Gpu) -> None:
        self.gpu = gpu
        self.meter = Meter()
        self.look: Look | None = None
        self.looks = 0


class Watch:
    """Begins with `start()`. `period` is between the beginnings of two looks at a GPU; `done` is set by `stop()`, and
    when a thread fails, which `failed` then says."""

    def __init__(self, *, proc: Path, period: Seconds) -> None:
        self.done = threading.Event()
        self.failed = False
        self._proc = proc
        self._period = period
        self._error: str | None = None
        self._versions: tuple[str, str] | None = None
        self._watched: tuple[_Watched, ...] | None = None
        self._closed: tuple[tuple[int, str], ...] = ()
        self._no_events: dict[str, str] = {}
        self._events: dict[Event, Happened] = {}

    def start(self) -> None:
        self._thread("nvml", self._run)

    def stop(self) -> None:
        self.done.set()

    def view(self) -> View:
        """Takes no lock and makes no call."""
        now = Seconds(time.monotonic())
        gpus = []
        for each in self._watched or ():
            calling = each.gpu.calling
            gpus.append(
                GpuView(
                    card=each.gpu.card,
                    look=each.look,
                    calling=None if calling is None else (calling[0], Seconds(now - calling[1])),
                    looks=each.looks,
                )
            )
        return View(
            is_up=self._watched is not None,
            error=self._error,
            versions=self._versions,
            gpus=tuple(gpus),
            closed=self._closed,
            no_events=dict(self._no_events),
            events=dict(self._events),
            now=now,
        )

    def _thread(self, name: str, work: Callable[[], None]) -> None:
        def to_the_end() -> None:
            try:
                work()
            except BaseException:
                self.failed = True
                self.done.set()
                raise

        threading.Thread(name=name, target=to_the_end, daemon=True).start()

    def _run(self) -> None:
        while not self._open():
            if self.done.wait(self._period):
                return
        watched = self._watched or ()
        for place, each in enumerate(watched):
            # Spread over the period, so that no scrape meets all of them at once.
            later = Seconds(self._period * place / len(watched))
            self._thread(each.gpu.card.uuid, partial(self._look_at, each, later))
        self._listen()

    def _open(self) -> bool:
        try:
            nvml.start()
            self._versions = nvml.versions()
            gpus, closed = nvml.gpus(time.monotonic)
        except nvml.Refused as refused:
            self._error = refused.error
            return False
        self._error = None
        self._closed = tuple(closed)
        self._watched = tuple(_Watched(gpu) for gpu in gpus)
        return True

    def _look_at(self, watched: _Watched, later: Seconds) -> None:
        self.done.wait(later)
        due = time.monotonic()
        while not self.done.is_set():
            began = Seconds(time.monotonic())
            sample = watched.gpu.read()
            known = with_core_waits(residents(self._proc, sample), self._proc, watched.meter, began)
            watched.look = Look(sample=sample, residents=known, began=began, ended=Seconds(time.monotonic()))
            watched.looks += 1
            due = max(due + self._period, time.monotonic())
            self.done.wait(due - time.monotonic())

    def _listen(self) -> None:
        try:
            events = nvml.Events()
        except pynvml.NVMLError as refusal:
            self._error = nvml.error_name(refusal)
            return
        self._no_events = events.refused
        while not self.done.is_set():
            try:
                event = events.wait(EVENT_WAIT_MILLISECONDS)
            except pynvml.NVMLError as refusal:
                self._error = nvml.error_name(refusal)
                self.done.wait(self._period)
                continue
            self._error = None
            if event is not None:
                before = self._events.get(event)
                count = 1 if before is None else before.count + 1
                self._events[event] = Happened(count=count, at=Seconds(time.time()))
