"""Ten ways to break the decision, as rewrites of its source, each with seeds in which the simulation must notice.

A rewrite whose anchor is not in the source exactly once is an error of its own: the mutant must be written anew, not
forgotten. A mutant is imported beside the real code; nothing of the real code changes.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import gpupack
from gpupack.soak.history import POOL, Event, History, Wish, World
from gpupack.soak.process import Reconcile

ROOT = Path(gpupack.__file__).parent
PACKAGE = "gpupack.decide"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """`old` stands exactly once in the module of the decision."""

    module: str
    old: str
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """`breaks` is what it does to a cluster, `rule` what must notice, `history` a short one in which it does."""

    name: str
    breaks: str
    rule: str
    rewrites: tuple[Rewrite, ...]
    history: History


MANUAL = {"scaling": {"mode": "Manual"}, "replicas": 3}
BATCH_64 = {"batching": {"mode": "Fixed", "maxNumSeqs": 64}, "slo": {"itlMilliseconds": 40}}


def chat(
    name: str = "chat", *, model: str = "llama-3.2-1b", rate: float = 5.0, least: int = 1, born: int = 0,
    spec: dict[str, Any] | None = None,
) -> Wish:  # fmt: skip
    """A serving of `rate` requests a second."""
    own = {"scaling": {"mode": "Auto", "minReplicas": least}, "replicas": 1, **(spec or {})}
    wish = {"model": {"name": model}, "poolName": "default", **own}
    return Wish(namespace="team", name=name, spec=wish, rate=rate, born=born)


def event(tick: int, kind: str, ticks: int = 0, **args: Any) -> Event:
    return Event(tick=tick, kind=kind, ticks=ticks, args=args)


def story(
    *servings: Wish, gpus: tuple[str, ...] = ("H100-80GB",), events: tuple[Event, ...] = (), ticks: int = 60,
    deleted_at: int = 1000,
) -> History:  # fmt: skip
    """A short history without chance."""
    world = World(
        gpus=gpus, per_node=4, cores=64, servings=servings, pool=POOL, load_seconds=10.0, drain_seconds=8.0
    )  # fmt: skip
    return History(seed=0, world=world, events=events, ticks=ticks, deleted_at=deleted_at, calm_at=0)


def _one(module: str, old: str, new: str) -> tuple[Rewrite, ...]:
    return (Rewrite(module=module, old=old, new=new),)


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        name="acts-before-it-planned",
        breaks="a tick that changes the plan acts on it before it was stored",
        rewrites=_one("reconcile", ") if changed else steps(board),", ") + steps(board),"),
        rule="plan first",
        history=story(chat()),
    ),
    Mutant(
        name="two-starts-at-once",
        breaks="a second engine starts on a GPU while the first one is starting, and while one stops",
        rewrites=_one(
            "steps",
            "moving = [each for each in pods if each.phase is not Phase.READY or is_leaving(each)]",
            "moving: list[ReplicaSeen] = []",
        ),
        rule="one start at a time",
        history=story(chat(spec=MANUAL)),
    ),
    Mutant(
        name="memory-unchecked",
        breaks="engines are planned and started whether or not the GPU has the memory",
        rewrites=(
            Rewrite(module="pack", old="if needed > kind.memory_bytes:", new="if needed > 99 * kind.memory_bytes:"),
            Rewrite(
                module="steps",
                old="return max(held + total + board.facts.policy.gpu_reserve, held + at_start) <= kind.memory_bytes",
                new="return held + at_start >= 0",
            ),
        ),
        rule="memory",
        history=story(chat(spec=MANUAL, model="qwen3-4b"), gpus=("L4",)),
    ),
    Mutant(
        name="neighbours-promise-forgotten",
        breaks="a replica is added where it is predicted to break a promise",
        rewrites=_one(
            "pack",
            "TOGETHER: tuple[Check, ...] = (latency_slo, bandwidth_ceiling, marginal_gain)",
            "TOGETHER: tuple[Check, ...] = ()",
        ),
        rule="a promise is not broken knowingly",
        history=story(chat(model="opt-1.3b", rate=40.0), chat("later", model="qwen3-4b", rate=30.0, born=20, least=2)),
    ),
    Mutant(
        name="missing-means-idle",
        breaks="an engine that tells nothing counts as one without load",
        rewrites=(
            Rewrite(module="demand", old="    if missing:\n", new="    if missing and not engines:\n"),
            Rewrite(module="demand", old="everyone = len(known) == len(engines)", new="everyone = True"),
        ),
        rule="missing data removes nothing",
        history=story(
            chat(rate=70.0, spec=BATCH_64),
            events=(event(30, "metrics", 30, how="gone", serving=0, one=True), event(30, "load", serving=0, rate=1.0)),
        ),
    ),
    Mutant(
        name="lost-plan-restarts",
        breaks="a plan that was lost is made anew without what runs",
        rewrites=_one(
            "reconcile",
            "if is_leaving(each) or (rival is not None and rival.created_at > each.created_at):",
            "if each is not None:",
        ),
        rule="a lost plan restarts nothing",
        history=story(chat(), events=(event(12, "status", how="wiped"),)),
    ),
    Mutant(
        name="survivors-not-asked",
        breaks="a replica goes although the others cannot hold the load, and comes back, and goes",
        rewrites=_one("demand", "return capacity(planned - 1) >= needed", "return capacity(planned + 1) >= needed"),
        rule="few changes under constant load",
        history=story(chat(rate=70.0, spec=BATCH_64), ticks=161, deleted_at=160),
    ),
    Mutant(
        name="stops-without-draining",
        breaks="a replica is stopped while its Service still sends it requests",
        rewrites=_one("steps", "if pod.phase is Phase.READY and pod.in_service:", "if pod.phase is Phase.STARTING:"),
        rule="drain first",
        history=story(
            chat(spec=MANUAL),
            events=(event(55, "edit", serving=0, spec={"replicas": 1}),),
        ),
    ),
    Mutant(
        name="stops-what-is-planned",
        breaks="a planned replica that serves is taken for one that will not",
        rewrites=_one(
            "steps",
            "return pod.phase is Phase.FAILED or (pod.phase is Phase.READY and not pod.in_service)",
            "return pod.phase is Phase.FAILED or pod.phase is Phase.READY",
        ),
        rule="what is planned stays",
        history=story(chat()),
    ),
    Mutant(
        name="nothing-is-forgotten",
        breaks="placements of a serving that was deleted stay in the plan",
        rewrites=_one("reconcile", "if not known or lost:", "if lost:"),
        rule="deletion leaves nothing",
        history=story(chat(), deleted_at=55, ticks=80),
    ),
)


class AnchorGone(Exception):
    """The source no longer holds what the mutant rewrites."""


def rewritten(mutant: Mutant) -> dict[str, str]:
    """The mutated sources by module name. Raises AnchorGone."""
    sources: dict[str, str] = {}
    for each in mutant.rewrites:
        source = sources.get(each.module) or (ROOT / "decide" / f"{each.module}.py").read_text()
        if source.count(each.old) != 1:
            raise AnchorGone(f"{mutant.name}: {each.old!r} stands {source.count(each.old)} times in {each.module}.py")
        sources[each.module] = source.replace(each.old, each.new)
    return sources


class _Loader(SourceFileLoader):
    def __init__(self, fullname: str, path: str, source: str | None) -> None:
        super().__init__(fullname, path)
        self._source = source

    def get_code(self, fullname: str) -> Any:
        path = self.get_filename(fullname)
        source = self.get_data(path) if self._source is None else self._source.encode()
        return self.source_to_code(source, path)


class _Finder(MetaPathFinder):
    def __init__(self, sources: dict[str, str]) -> None:
        self._sources = sources

    def find_spec(self, fullname: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        del path, target
        if fullname != PACKAGE and not fullname.startswith(f"{PACKAGE}."):
            return None
        name = fullname.removeprefix(PACKAGE).removeprefix(".")
        file = ROOT / "decide" / (f"{name}.py" if name else "__init__.py")
        loader = _Loader(fullname, str(file), self._sources.get(name))
        places = [str(ROOT / "decide")] if not name else None
        return importlib.util.spec_from_file_location(fullname, file, loader=loader, submodule_search_locations=places)


def mutated(mutant: Mutant) -> AbstractContextManager[Reconcile]:
    """The mutant's own `reconcile`. Raises AnchorGone."""
    return importing(rewritten(mutant))


@contextmanager
def importing(sources: dict[str, str]) -> Iterator[Reconcile]:
    """`reconcile` of a decision of its own, some of whose modules have these sources."""
    finder = _Finder(sources)
    real = {name: module for name, module in sys.modules.items() if name.split(".")[:2] == PACKAGE.split(".")}
    for name in real:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    try:
        found = importlib.import_module(f"{PACKAGE}.reconcile").reconcile
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[:2] == PACKAGE.split(".")]:
            del sys.modules[name]
        sys.modules.update(real)
        gpupack.decide = real[PACKAGE]
    yield found
