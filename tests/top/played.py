"""A quarter of an hour in a small cluster, as the simulated cluster plays it: load comes, peaks, and goes.

For pictures and for a report that has something to tell; a few seconds to play, and always the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpupack import catalog
from gpupack.decide.reconcile import reconcile
from gpupack.facts.observation import Observation
from gpupack.plan import Outcome
from gpupack.soak.history import Event, History, Wish, World
from gpupack.soak.play import play
from gpupack.trace.lines import Header, header_line, tick_line

TICKS = 150
POOL: dict[str, Any] = {
    "times": {"tickSeconds": 5, "warmupSeconds": 10, "windowSeconds": 30, "minWindowRequests": 50,
              "rateWindowsSeconds": [15, 60], "scaleDownDelaySeconds": 60, "pendingDeadlineSeconds": 60},
    "metrics": {"enginePeriodSeconds": 5, "dcgm": {"periodSeconds": 5}},
}  # fmt: skip


def _wish(name: str, model: str, rate: float, itl: int, born: int = 0, **spec: Any) -> Wish:
    slo = {"itlMilliseconds": itl, "ttftMilliseconds": 1000}
    return Wish(
        namespace="shop", name=name, rate=rate, born=born,
        spec={"model": {"name": model}, "poolName": "default", "slo": slo,
              "workload": {"inputTokens": {"mean": 512}, "outputTokens": {"mean": 256}}, **spec},
    )  # fmt: skip


WORLD = World(
    gpus=("H100-80GB",) * 4 + ("L4",) * 2, per_node=2, cores=64, pool=POOL, noise=True, load_seconds=10.0,
    servings=(
        _wish("chat", "llama-3.2-1b", 20.0, 25),
        _wish("coder", "qwen2.5-1.5b", 10.0, 30, born=5),
        _wish("mail", "qwen2.5-0.5b", 8.0, 40, born=10),
        _wish("search", "llama-3.2-3b", 6.0, 12, born=15),
    ),
)  # fmt: skip


def _load(tick: int, serving: int, rate: float) -> Event:
    return Event(tick=tick, kind="load", args={"serving": serving, "rate": rate})


HISTORY = History(
    seed=7, world=WORLD, ticks=TICKS, deleted_at=TICKS + 1, calm_at=120,
    events=(
        _load(30, 0, 150.0), _load(40, 1, 120.0), _load(50, 0, 320.0), _load(55, 3, 60.0), _load(60, 2, 90.0),
        _load(100, 0, 40.0), _load(105, 3, 8.0),
    ),
)  # fmt: skip


def looks() -> list[tuple[Observation, Outcome]]:
    """Everything that was seen and decided."""
    seen: list[tuple[Observation, Outcome]] = []

    def record(observation: Observation) -> Outcome:
        outcome = reconcile(observation)
        seen.append((observation, outcome))
        return outcome

    report = play(HISTORY, reconcile=record)
    assert report.violation is None, report.violation
    return seen


def write_trace(path: Path, seen: list[tuple[Observation, Outcome]]) -> None:
    header = Header(policy=seen[0][0].policy, catalog=catalog.digest())
    path.write_text("\n".join([header_line(header), *(tick_line(*each) for each in seen)]) + "\n")
