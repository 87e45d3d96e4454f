"""What the supervisor says of itself, as JSON: its orders' generation, MPS, and each engine with its reasons.

Times are unix seconds. An engine's marks are those of its order. What waits for cores is told as shares of a window
there, and as counters for Prometheus on a page of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gpupack.host.cpu import Limited, Shortage, Spent
from gpupack.host.life import Engine, Stage, State

Lines = Callable[[str], tuple[str, ...]]
"""The last lines that a living engine of that name wrote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """What engines used and waited for, by name, and the limit of the pod; what came of it over a window."""

    used: Mapping[str, Spent] = field(default_factory=dict)
    limit: Limited | None = None
    short: Mapping[str, Shortage | None] = field(default_factory=dict)
    pod: Shortage | None = None


def report(state: State, *, number: int, gpu: str, lines: Lines, cores: Cores) -> str:
    """`number` counts the changes of state since the supervisor began; `gpu` is the device's own name or empty."""
    mps = state.mps
    found = {
        "number": number,
        "generation": state.generation,
        "stopping": state.stopping,
        "gpu": gpu,
        "mps": {"state": mps.stage.value, "server": mps.server, "restarts": mps.restarts, "message": mps.why},
        "cores": _cores(state, cores),
        "engines": [_engine(each, lines) for each in state.engines],
    }
    return json.dumps(found, separators=(",", ":")) + "\n"


def _cores(state: State, cores: Cores) -> dict[str, Any] | None:
    """The worst of the engines that serve. One that starts compiles on all cores, which says nothing of serving."""
    if any(each.stage is Stage.STARTING for each in state.engines):
        return None
    ready = [cores.short.get(each.name) for each in state.engines if each.stage is Stage.READY]
    found = [each for each in (*ready, cores.pod) if each is not None]
    if not found:
        return None
    return {
        "at": min(each.at for each in found),
        "waited": max((each.waited for each in found if each.waited is not None), default=None),
        "throttled": max((each.throttled for each in found if each.throttled is not None), default=None),
    }


def page(cores: Cores) -> str:
    """Prometheus text. What the kernel does not count is absent."""
    return "".join(f"{line}\n" for line in _series(cores))


def _series(cores: Cores) -> Iterator[str]:
    run, wait = "gpupack_host_cpu_run_seconds_total", "gpupack_host_cpu_wait_seconds_total"
    yield f"# HELP {run} Time that an engine's threads ran, those that live together."
    yield f"# TYPE {run} counter"
    yield from (f"{run}{{engine={json.dumps(name)}}} {each.ran:.6f}" for name, each in cores.used.items())
    yield f"# HELP {wait} Time that an engine's threads could have run and waited for a core."
    yield f"# TYPE {wait} counter"
    yield from (f"{wait}{{engine={json.dumps(name)}}} {each.waited:.6f}" for name, each in cores.used.items())
    if cores.limit is None:
        return
    periods, throttled = "gpupack_host_cpu_limit_periods_total", "gpupack_host_cpu_throttled_periods_total"
    seconds = "gpupack_host_cpu_throttled_seconds_total"
    yield f"# HELP {periods} Periods of the pod's CPU limit."
    yield f"# TYPE {periods} counter"
    yield f"{periods} {cores.limit.periods}"
    yield f"# HELP {throttled} Periods of the pod's CPU limit in which it was used up."
    yield f"# TYPE {throttled} counter"
    yield f"{throttled} {cores.limit.throttled}"
    yield f"# HELP {seconds} Time that the limit kept the pod from running, all processors together."
    yield f"# TYPE {seconds} counter"
    yield f"{seconds} {cores.limit.throttled_seconds:.6f}"


def _engine(engine: Engine, lines: Lines) -> dict[str, Any]:
    ending = engine.ending
    return {
        "name": engine.name,
        "port": engine.order.port,
        "arguments": list(engine.order.arguments),
        "marks": dict(engine.order.marks),
        "ordered": engine.ordered,
        "state": engine.stage.value,
        "since": engine.since,
        "beganAt": engine.began_at,
        "readyAt": engine.ready_at,
        "restarts": engine.restarts,
        "message": engine.why,
        "log": list(lines(engine.name)),
        "ended": None
        if ending is None
        else {"code": ending.code, "reason": ending.words, "log": list(ending.log), "at": ending.at},
    }
