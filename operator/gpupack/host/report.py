"""What the supervisor says of itself, as JSON: its orders' generation, MPS, and each engine with its reasons.

Times are unix seconds. An engine's marks are those of its order.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from gpupack.host.life import Engine, State

Lines = Callable[[str], tuple[str, ...]]
"""The last lines that a living engine of that name wrote."""


def report(state: State, *, number: int, gpu: str, lines: Lines) -> str:
    """`number` counts the changes of state since the supervisor began; `gpu` is the device's own name or empty."""
    mps = state.mps
    found = {
        "number": number,
        "generation": state.generation,
        "stopping": state.stopping,
        "gpu": gpu,
        "mps": {"state": mps.stage.value, "server": mps.server, "restarts": mps.restarts, "message": mps.why},
        "engines": [_engine(each, lines) for each in state.engines],
    }
    return json.dumps(found, separators=(",", ":")) + "\n"


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
