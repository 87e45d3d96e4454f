"""One container of a pod over its life: started, probed, restarted with back-off, stopped.

Behaves as a kubelet does (restartPolicy, startup, readiness and liveness probes, CrashLoopBackOff). It knows no API; it
says what a status would say and calls `changed` when that is another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from gpupack.kube.times import rfc3339
from gpupack.node.pods import Container, ContainerBefore, Probe, Restart
from gpupack.node.program import KILLED, Exit, Program
from gpupack.units import Seconds

FIRST_BACKOFF_SECONDS = 10.0
LONGEST_BACKOFF_SECONDS = 300.0
FORGIVEN_AFTER_SECONDS = 600.0
"""A kubelet's own figures: after ten minutes of running the back-off begins anew."""


class ContainerLife:
    """`launch` makes a new program each time. `run` returns when the container has ended for good."""

    def __init__(
        self,
        spec: Container,
        launch: Callable[[], Program],
        changed: Callable[[], None],
        *,
        restart: Restart,
        before: ContainerBefore | None,
        first_backoff_seconds: float = FIRST_BACKOFF_SECONDS,
    ) -> None:
        self.spec = spec
        self.started = False
        self.ready = False
        self.exit: Exit | None = None
        self.restarts = 0 if before is None else before.restarts + int(before.started)
        self._launch = launch
        self._changed = changed
        self._restart = restart
        self._first_backoff = first_backoff_seconds
        self._program: Program | None = None
        self._running: asyncio.Task[Exit] | None = None
        self._stopping = asyncio.Event()
        self._why_killed = ""
        self._last: dict[str, Any] = {}
        self._state: dict[str, Any] = {"waiting": {"reason": "ContainerCreating"}}

    @property
    def ended(self) -> bool:
        return "terminated" in self._state

    def status(self) -> dict[str, Any]:
        """An element of `status.containerStatuses`."""
        return {
            "name": self.spec.name,
            "image": self.spec.image,
            "imageID": "",
            "containerID": "",
            "restartCount": self.restarts,
            "started": self.started,
            "ready": self.ready,
            "state": self._state,
            "lastState": self._last,
        }

    def terminate(self) -> None:
        """SIGTERM, and no restart."""
        self._stopping.set()
        if self._program is not None:
            self._program.terminate()

    def kill(self, why: str = "") -> None:
        """SIGKILL; what happens then is the restart policy's business, unless `terminate` was called."""
        self._why_killed = why
        if self._running is not None:
            self._running.cancel()

    async def run(self) -> None:
        backoff = 0.0
        while not self._stopping.is_set():
            began = time.time()
            self.exit = await self._run_once(began)
            if self._stopping.is_set() or not self._again(self.exit):
                break
            if time.time() - began > FORGIVEN_AFTER_SECONDS:
                backoff = 0.0
            self._last = self._state
            if backoff > 0.0:
                message = f"back-off {backoff:.0f}s restarting failed container={self.spec.name}"
                self._say({"waiting": {"reason": "CrashLoopBackOff", "message": message}})
                await _either(self._stopping.wait(), backoff)
            backoff = min(LONGEST_BACKOFF_SECONDS, 2 * backoff) if backoff else self._first_backoff
            self.restarts += int(not self._stopping.is_set())
        if not self.ended:
            self._say(self._last or {"terminated": {"exitCode": KILLED, "reason": "ContainerStatusUnknown"}})

    async def _run_once(self, began: float) -> Exit:
        self._why_killed = ""
        self._program = self._launch()
        self._running = running = asyncio.create_task(self._program.run())
        probing = asyncio.create_task(self._probe(self._program))
        self._say({"running": {"startedAt": rfc3339(Seconds(began))}})
        if self._stopping.is_set():
            self._program.terminate()
        try:
            await asyncio.wait({running})
        finally:
            probing.cancel()
            running.cancel()
            await asyncio.wait({running, probing})
            self._program = self._running = None
        ending = Exit(code=KILLED, message=self._why_killed) if running.cancelled() else running.result()
        self.started = self.ready = False
        terminated = {
            "exitCode": ending.code,
            "reason": ending.reason,
            "startedAt": rfc3339(Seconds(began)),
            "finishedAt": rfc3339(Seconds(time.time())),
        }
        if ending.message and ending.code and self.spec.log_is_message:
            terminated["message"] = ending.message
        self._say({"terminated": terminated})
        return ending

    async def _probe(self, program: Program) -> None:
        """Lasts as long as the program; ended by cancelling it."""
        spec = self.spec
        if spec.startup is not None:
            failures = 0
            await asyncio.sleep(spec.startup.delay_seconds)
            while not program.answers(spec.startup.port, spec.startup.path):
                failures += 1
                if failures >= spec.startup.failures:
                    self.kill("startup probe failed")
                    return
                await asyncio.sleep(spec.startup.period_seconds)
        self.started = True
        self.ready = spec.readiness is None
        self._changed()
        async with asyncio.TaskGroup() as group:
            if spec.readiness is not None:
                group.create_task(self._ready(spec.readiness, program))
            if spec.liveness is not None:
                group.create_task(self._live(spec.liveness, program))

    async def _ready(self, probe: Probe, program: Program) -> None:
        failures = 0
        await asyncio.sleep(0.0 if self.spec.startup else probe.delay_seconds)
        while True:
            good = program.answers(probe.port, probe.path)
            failures = 0 if good else failures + 1
            if good is not self.ready and (good or failures >= probe.failures):
                self.ready = good
                self._changed()
            await asyncio.sleep(probe.period_seconds)

    async def _live(self, probe: Probe, program: Program) -> None:
        failures = 0
        await asyncio.sleep(probe.delay_seconds)
        while failures < probe.failures:
            failures = 0 if program.answers(probe.port, probe.path) else failures + 1
            await asyncio.sleep(probe.period_seconds)
        self.kill("liveness probe failed")

    def _again(self, ending: Exit) -> bool:
        return self._restart is Restart.ALWAYS or (self._restart is Restart.ON_FAILURE and ending.code != 0)

    def _say(self, state: dict[str, Any]) -> None:
        self._state = state
        self._changed()


async def _either(wait: Any, seconds: float) -> None:
    """Until it comes, or so many seconds have passed."""
    task = asyncio.ensure_future(wait)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        task.cancel()
