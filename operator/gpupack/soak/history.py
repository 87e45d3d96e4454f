"""One history: a small world, and what happens to it at which tick. Written as lines of JSON, drawn from a seed.

A history is everything that a run depends on: the same one always runs the same. An event names what it touches by
number, so that it still means something when others are taken away. Knows what can happen, not how it is done.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from gpupack.errors import Invalid

FORMAT = "gpupack soak 1"

TICKS = 240
FAULTS_FROM, FAULTS_UNTIL, DELETED_AT = 16, 130, 216
"""Ticks: a start in peace, faults, a calm in which the plan must come to rest, and the deletion of everything."""

WATCHED = (
    "gpupools", "modelservings", "pods", "nodes", "resourceslices", "resourceclaims", "services",
    "poddisruptionbudgets",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A ModelServing and its load: requests a second, or so many clients that wait for their answers.

    `born` is the tick at which it is created.
    """

    namespace: str
    name: str
    spec: dict[str, Any]
    rate: float
    clients: int = 0
    input_tokens: float = 512.0
    output_tokens: float = 256.0
    born: int = 0

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """`gpus` are kinds of the catalog, dealt to nodes `per_node` at a time. `absent` are fields nobody exports.

    `noise` makes arrivals a matter of chance; `stepped` runs the twin's steps instead of rates; with `learns` live load
    refines the coefficients. With `sleeps` there is an activator. Times in seconds.
    """

    gpus: tuple[str, ...]
    per_node: int
    cores: int
    servings: tuple[Wish, ...]
    pool: dict[str, Any]
    tick: float = 5.0
    load_seconds: float = 15.0
    drain_seconds: float = 8.0
    interference: float = 0.05
    noise: bool = False
    stepped: bool = False
    learns: bool = False
    sleeps: bool = False
    absent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happens at `tick` and, where it has a duration, is over `ticks` later."""

    tick: int
    kind: str
    ticks: int = 0
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    seed: int
    world: World
    events: tuple[Event, ...]
    ticks: int = TICKS
    deleted_at: int = DELETED_AT
    calm_at: int = FAULTS_UNTIL


def to_lines(history: History, violation: str = "") -> str:
    """A header with the world, then one event a line."""
    header = {
        "format": FORMAT,
        "seed": history.seed,
        "ticks": history.ticks,
        "deletedAt": history.deleted_at,
        "calmAt": history.calm_at,
        "violation": violation,
        "world": asdict(history.world),
    }
    events = ({key: value for key, value in asdict(each).items() if value} for each in history.events)
    return "\n".join(json.dumps(line) for line in (header, *events)) + "\n"


def from_lines(text: str, name: str = "FILE") -> History:
    """Raises Invalid for what is no history."""
    try:
        header, *events = (json.loads(line) for line in text.splitlines() if line.strip())
        world = header["world"]
        wishes = tuple(Wish(**each) for each in world.pop("servings"))
        return History(
            seed=header["seed"],
            world=World(
                **{**world, "gpus": tuple(world["gpus"]), "absent": tuple(world["absent"]), "servings": wishes}
            ),
            events=tuple(Event(**{"tick": 0, **each}) for each in events),
            ticks=header["ticks"],
            deleted_at=header["deletedAt"],
            calm_at=header["calmAt"],
        )
    except (ValueError, KeyError, TypeError) as problem:
        wrong = f"not a history of `gpupack soak` ({problem})"
        raise Invalid(name, wrong, "give the file that a failing seed left") from problem


MODELS = ("llama-3.2-1b", "opt-1.3b", "qwen3-4b")
PROMISES: tuple[dict[str, Any] | None, ...] = (
    {"itlMilliseconds": 40}, {"itlMilliseconds": 80, "ttftMilliseconds": 2000}, None,
)  # fmt: skip
POOL: dict[str, Any] = {
    "times": {
        "warmupSeconds": 10, "windowSeconds": 30, "minWindowRequests": 20, "rateWindowsSeconds": [15, 30],
        "scaleDownDelaySeconds": 60, "pendingDeadlineSeconds": 60, "tickSeconds": 5,
    },
    "metrics": {"dcgm": {"periodSeconds": 5}, "enginePeriodSeconds": 5},
}  # fmt: skip
"""A pool's own times, shortened so that twenty minutes hold everything that can happen. Few, so that answers of the
advisor are kept from one history to the next. Clients that wait are recognised by ten scrapes: they need a longer
window, in which a stream without chance looks like them."""
SLEEPS, IDLE_SECONDS = 7, 60
"""One history in so many has an activator; there servings may sleep after so many seconds."""
LEARNS = 3
"""Every third world learns: that moves what is predicted and no rule, and takes a fifth of the time."""
STEPPED_RATE = 12.0
RATES = (0.0, 1.0, 4.0, 12.0, 30.0, 60.0, 120.0)


def draw(seed: int, *, stepped: bool = False) -> History:
    """The history of a seed."""
    chance = random.Random(seed)
    world = _world(chance, stepped=stepped)
    events: list[Event] = []
    if chance.random() > 0.08:  # the others are quiet: nothing but their load
        for _ in range(chance.choice((2, 4, 8, 12, 20))):
            make = chance.choices(tuple(KINDS), weights=tuple(KINDS.values()))[0]
            tick = chance.randrange(FAULTS_FROM, FAULTS_UNTIL - 10)
            event = make(chance)
            if stepped and event.kind == "load":
                event = replace(event, args={**event.args, "rate": min(STEPPED_RATE, event.args["rate"])})
            ticks = min(event.ticks, FAULTS_UNTIL - 2 - tick)
            events.append(replace(event, tick=tick, ticks=ticks if event.ticks else 0))
    world = replace(world, learns=seed % LEARNS == 0)
    if seed % SLEEPS == SLEEPS - 1:
        world = replace(world, sleeps=True, servings=tuple(_sleepy(wish) for wish in world.servings))
    return History(seed=seed, world=world, events=tuple(sorted(events, key=lambda each: each.tick)))


def _world(chance: random.Random, *, stepped: bool) -> World:
    gpus = tuple(chance.choice(("H100-80GB", "H100-80GB", "L4")) for _ in range(chance.choice((1, 1, 2, 2, 3, 4))))
    wishes = tuple(_wish(chance, number, stepped=stepped) for number in range(chance.choice((1, 1, 2, 2, 3, 4))))
    pool = dict(POOL)
    if any(wish.clients for wish in wishes):
        pool["times"] = {**POOL["times"], "rateWindowsSeconds": [15, 60]}
    if chance.random() < 0.1:
        pool["maxGpus"] = chance.choice((1, 2))
    absent: tuple[str, ...] = ()
    if chance.random() < 0.15:
        absent = chance.choice((("dram_active",), ("fb_used",), ("dram_active", "fb_used")))
    return World(
        gpus=gpus,
        per_node=chance.choice((1, 2, 4)),
        cores=chance.choice((64, 64, 64, 8)),
        servings=wishes,
        pool=pool,
        load_seconds=chance.choice((10.0, 25.0)),
        drain_seconds=chance.choice((4.0, 12.0)),
        interference=chance.choice((0.02, 0.1, 0.3)),
        noise=chance.random() < 0.4,
        stepped=stepped,
        absent=absent,
    )


def _wish(chance: random.Random, number: int, *, stepped: bool) -> Wish:
    rates = tuple(rate for rate in RATES if not stepped or rate <= STEPPED_RATE)
    spec: dict[str, Any] = {"model": {"name": chance.choice(MODELS)}, "poolName": "default"}
    promise = chance.choice(PROMISES)
    if promise is not None:
        spec["slo"] = promise
    if (batch := chance.choice((None, 16, 64))) is not None:
        spec["batching"] = {"mode": "Fixed", "maxNumSeqs": batch}
    if chance.random() < 0.15:
        spec["sharing"] = "Exclusive"
    spec |= _scaling(chance)
    if chance.random() < 0.3:
        spec["workload"] = {"requestsPerSecond": str(chance.choice((5, 50)))}
    if chance.random() < 0.08:
        spec["mode"] = "Advise"
    born = 0 if number == 0 or chance.random() < 0.7 else chance.randrange(1, FAULTS_UNTIL - 30)
    clients = chance.choice((16, 100)) if chance.random() < 0.15 and not stepped else 0
    return Wish(
        namespace=chance.choice(("team", "team", "team", "other")),
        name=f"m{number}",
        spec=spec,
        rate=chance.choice(rates),
        clients=clients,
        input_tokens=chance.choice((512.0, 512.0, 300.0)),
        output_tokens=chance.choice((256.0, 256.0, 150.0)),
        born=born,
    )


def _scaling(chance: random.Random) -> dict[str, Any]:
    if chance.random() < 0.2:
        return {"scaling": {"mode": "Manual"}, "replicas": chance.choice((0, 1, 2, 3))}
    scaling: dict[str, Any] = {"mode": "Auto", "minReplicas": chance.choice((1, 1, 1, 2))}
    if chance.random() < 0.3:
        scaling["maxReplicas"] = chance.choice((2, 3))
    return {"scaling": scaling, "replicas": 1}


def _sleepy(wish: Wish) -> Wish:
    """The same, with nothing that must run. Draws nothing, so that other histories stay what they were."""
    scaling = wish.spec["scaling"]
    if scaling["mode"] != "Auto":
        return wish
    return replace(wish, spec={**wish.spec, "scaling": {**scaling, "minReplicas": 0, "idleSeconds": IDLE_SECONDS}})


Make = Callable[[random.Random], Event]


def _event(kind: str, ticks: int = 0, **args: Any) -> Event:
    return Event(tick=0, kind=kind, ticks=ticks, args=args)


def _any(chance: random.Random) -> int:
    return chance.randrange(12)


def _watch(chance: random.Random) -> Event:
    how = chance.choice(("late", "late", "silent", "drop", "repeat"))
    return _event("watch", chance.choice((1, 2, 4, 8, 25)), how=how, resource=chance.choice((*WATCHED, "pods", "pods")))


def _call(chance: random.Random) -> Event:
    how = chance.choice(("lost", "lost", "unsent", "refused", "conflict"))
    return _event("call", how=how, after=chance.randrange(8))


def _kill(chance: random.Random) -> Event:
    return _event(
        "kill", after=chance.randrange(8), written=chance.random() < 0.5, away=chance.choice((1, 1, 3, 12))
    )  # fmt: skip


def _pods(chance: random.Random) -> Event:
    how = chance.choice(("slow", "never_ready", "crash_loop", "slow_death"))
    return _event("pods", chance.choice((4, 12, 30)), how=how, serving=_any(chance))


def _crash(chance: random.Random) -> Event:
    return _event(chance.choice(("crash", "delete_pod", "evict")), pod=_any(chance))


def _engine_metrics(chance: random.Random) -> Event:
    how = chance.choice(("gone", "frozen", "nan", "no_series"))
    return _event("metrics", chance.choice((2, 6, 20)), how=how, serving=_any(chance), one=chance.random() < 0.5)


def _reset(chance: random.Random) -> Event:
    return _event("reset", pod=_any(chance))


def _gpu_metrics(chance: random.Random) -> Event:
    how = chance.choice(("gone", "frozen", "nan", "blank", "percent", "mebibytes", "no_dram", "no_fb"))
    return _event("dcgm", chance.choice((2, 6, 20)), how=how, node=_any(chance))


def _clock(chance: random.Random) -> Event:
    return _event("clock", chance.choice((1, 5, 20)), by=chance.choice((-400.0, -60.0, -7.0, 7.0, 60.0, 200.0)))


def _hardware(chance: random.Random) -> Event:
    kind = chance.choice(("node_down", "node_down", "node_gone", "gpu_gone", "gpu_taint"))
    return _event(kind, chance.choice((3, 8, 25)), which=_any(chance))


def _foreign(chance: random.Random) -> Event:
    kind = chance.choice(("foreign_pod", "foreign_claim", "foreign_memory"))
    return _event(kind, chance.choice((5, 20, 60)), which=_any(chance), gib=chance.choice((0.5, 4, 12)))


def _edit(chance: random.Random) -> Event:
    edits: tuple[dict[str, Any], ...] = (
        {"slo": chance.choice(PROMISES)},
        {"slo": {"itlMilliseconds": 1}},
        {"batching": {"mode": "Fixed", "maxNumSeqs": chance.choice((16, 64))}},
        {"batching": None},
        {"sharing": chance.choice(("Exclusive", "Auto"))},
        {"mode": chance.choice(("Advise", "Active"))},
        {"engine": {"image": chance.choice(("vllm/vllm-openai:v0.33.0", "vllm/vllm-openai:v0.33.1"))}},
        {"model": {"maxModelLen": 999_999_999}},
        _scaling(chance),
        _scaling(chance),
    )
    return _event("edit", chance.choice((0, 0, 10)), serving=_any(chance), spec=chance.choice(edits))


def _pool_edit(chance: random.Random) -> Event:
    edits: tuple[dict[str, Any], ...] = (
        {"maxGpus": 1}, {"sharing": ["Exclusive"]}, {"sharing": ["MPS"]}, {"limits": {"gpuReserve": "4Gi"}},
    )  # fmt: skip
    return _event("pool_edit", chance.choice((5, 20)), spec=chance.choice(edits))


def _again(chance: random.Random) -> Event:
    return _event("recreate", chance.choice((0, 1, 10)), serving=_any(chance))


def _status(chance: random.Random) -> Event:
    return _event("status", how=chance.choice(("wiped", "wiped", "plan_gone", "broken", "serving_wiped")))


def _load(chance: random.Random) -> Event:
    return _event("load", serving=_any(chance), rate=chance.choice(RATES))


KINDS: dict[Make, int] = {
    _watch: 6, _call: 6, _kill: 5, _pods: 4, _crash: 4, _engine_metrics: 4, _reset: 1, _gpu_metrics: 3, _clock: 2,
    _hardware: 4, _foreign: 3, _edit: 6, _pool_edit: 1, _again: 2, _status: 2, _load: 6,
}  # fmt: skip
"""What can happen, and how often."""
