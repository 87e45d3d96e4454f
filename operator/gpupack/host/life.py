"""The life of everything in the pod, as one pure function: a state, an event and the time give a state and actions.

The rules. One engine starts at a time, and none while another leaves: vLLM measures free memory while it starts, and
a neighbour's allocations would be charged to it. MPS first, then its clients; clients end before MPS does. A fault of
the MPS server is the fault of all its clients (it refuses new ones until every old one has gone), so all are ended,
then the daemon, then everything starts again in order. Where MPS cannot start, one engine runs and the others wait and
say so. An engine that is ordered away is left alone for a moment, in which routers forget it, then drains on SIGTERM;
SIGKILL is the last resort, because under MPS it can hurt the neighbours.

Knows no process, no clock and no file; times are seconds of any one clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from gpupack.host.orders import EngineOrder, Orders

NOT_FOUND = 127
"""The exit status that shells use for a program that is not there."""
LATE = "no MPS server came up within"
UNWELL_AFTER = 3
"""Probes in a row that an engine that was ready may miss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """In seconds. `settle`: between being ordered away and SIGTERM. `drain`: between SIGTERM and SIGKILL; `broken`: the
    same for clients of an MPS server that is lost, which have nothing left to drain.

    Back-offs double from the first to the longest; an engine that ran for `forgiven` begins anew. What failed so
    shortly before MPS was found to be lost, `together`, failed with it.
    """

    settle: float = 5.0
    drain: float = 75.0
    broken: float = 15.0
    load: float = 1800.0
    first_backoff: float = 10.0
    longest_backoff: float = 300.0
    forgiven: float = 600.0
    mps_start: float = 30.0
    mps_stop: float = 10.0
    mps_tries: int = 3
    together: float = 10.0


class Stage(StrEnum):
    """An engine's. LEAVING still serves, STOPPING was asked to end, KILLING was made to."""

    WAITING = "Waiting"
    STARTING = "Starting"
    READY = "Ready"
    UNWELL = "Unwell"
    LEAVING = "Leaving"
    STOPPING = "Stopping"
    KILLING = "Killing"
    FAILED = "Failed"


class Mps(StrEnum):
    """NOT_USED: this pod shares in another way, or not. LOST: clients have to end before the daemon is replaced."""

    NOT_USED = "NotUsed"
    OFF = "Off"
    STARTING = "Starting"
    READY = "Ready"
    LOST = "Lost"
    STOPPING = "Stopping"
    UNAVAILABLE = "Unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a process ended: its words, the last of its log, and when."""

    code: int
    words: str
    log: tuple[str, ...]
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """`ordered` is False for one that only has to go; `successor` then takes its name. `faulty`: it is being ended
    because it failed.

    `since` is when its stage began, `began_at` when its process did, `again_at` when a failed one starts again.
    """

    order: EngineOrder
    stage: Stage
    since: float
    ordered: bool = True
    successor: EngineOrder | None = None
    faulty: bool = False
    began_at: float | None = None
    ready_at: float | None = None
    again_at: float = 0.0
    backoff: float = 0.0
    missed: int = 0
    restarts: int = 0
    why: str = ""
    ending: Ending | None = None

    @property
    def name(self) -> str:
        return self.order.name

    @property
    def lives(self) -> bool:
        """Whether it has a process."""
        return self.stage not in (Stage.WAITING, Stage.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class MpsLife:
    """`has_daemon`: its process lives. `server` is the pid of the MPS server, once one was seen."""

    stage: Mps
    since: float = 0.0
    has_daemon: bool = False
    server: int | None = None
    tries: int = 0
    again_at: float = 0.0
    restarts: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    mps: MpsLife
    generation: int = 0
    engines: tuple[Engine, ...] = ()
    stopping: bool = False
    finished: bool = False


# What happens


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordered:
    orders: Orders


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEnded:
    name: str
    ending: Ending


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    name: str
    well: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MpsEnded:
    """The daemon's process."""

    ending: Ending


@dataclass(frozen=True, slots=True, kw_only=True)
class MpsSeen:
    """The daemon was asked: the server's pid, or None if there is none; `fault` in its own words."""

    server: int | None
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedToStop:
    """SIGTERM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """Nothing but time."""


Event = Ordered | EngineEnded | Probed | MpsEnded | MpsSeen | AskedToStop | Passed


# What to do


@dataclass(frozen=True, slots=True, kw_only=True)
class StartEngine:
    order: EngineOrder


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminateEngine:
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KillEngine:
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartMps:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class QuitMps:
    """By its control shell; it ends when its clients have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KillMps:
    pass


Action = StartEngine | TerminateEngine | KillEngine | StartMps | QuitMps | KillMps


def beginning(*, mps: bool) -> State:
    return State(mps=MpsLife(stage=Mps.OFF if mps else Mps.NOT_USED))


def step(state: State, event: Event, at: float, times: Times) -> tuple[State, tuple[Action, ...]]:
    """What becomes of it, and what to do now, in that order. `finished` in the state is the end of the program."""
    match event:
        case Ordered():
            state = _ordered(state, event.orders, at)
        case EngineEnded():
            state = _engine_ended(state, event, at, times)
        case Probed():
            state = _each(state, lambda each: _probed(each, event.well, at) if each.name == event.name else each)
        case MpsEnded():
            state = _mps_ended(state, event.ending, at, times)
        case MpsSeen():
            state = _mps_seen(state, event, at, times)
        case AskedToStop():
            state = replace(state, stopping=True)
        case Passed():
            pass
    actions: list[Action] = []
    state = _end_engines(state, at, times, actions)
    state = _tend_mps(state, at, times, actions)
    state = _start_one(state, at, actions)
    done = state.stopping and not state.mps.has_daemon and not any(each.lives for each in state.engines)
    return replace(state, finished=done), tuple(actions)


# Events


def _ordered(state: State, orders: Orders, at: float) -> State:
    if orders.generation < state.generation:
        return state
    wanted = {each.name: each for each in orders.engines}
    kept = []
    for engine in state.engines:
        order = wanted.get(engine.name)
        if order is None or not order.is_same(engine.order):
            if engine.lives:
                kept.append(replace(_go(engine, at), successor=wanted.pop(engine.name, None)))
        elif engine.stage is Stage.LEAVING:
            del wanted[engine.name]
            kept.append(replace(engine, order=order, ordered=True, stage=Stage.READY, since=at, why=""))
        else:
            del wanted[engine.name]
            kept.append(replace(engine, order=order, ordered=True))
    new = [Engine(order=order, stage=Stage.WAITING, since=at) for order in wanted.values()]
    place = {each.name: number for number, each in enumerate(orders.engines)}
    engines = sorted((*kept, *new), key=lambda each: place.get(each.name, -1))
    return replace(state, generation=orders.generation, engines=tuple(engines))


def _go(engine: Engine, at: float) -> Engine:
    """One that is not ordered any more: a ready one is given time to be forgotten by routers."""
    if engine.stage in (Stage.READY, Stage.UNWELL):
        return replace(engine, ordered=False, stage=Stage.LEAVING, since=at, why="it was ordered away")
    return replace(engine, ordered=False, why=engine.why or "it was ordered away")


def _engine_ended(state: State, event: EngineEnded, at: float, times: Times) -> State:
    found = next((each for each in state.engines if each.name == event.name), None)
    if found is None:
        return state
    if found.successor is not None:
        fresh = Engine(order=found.successor, stage=Stage.WAITING, since=at)
        return _each(state, lambda each: fresh if each is found else each)
    if not found.ordered or state.stopping:
        return replace(state, engines=tuple(each for each in state.engines if each is not found))
    ended = replace(found, since=at, began_at=None, ready_at=None, missed=0, ending=event.ending)
    if found.stage in (Stage.STOPPING, Stage.KILLING) and not found.faulty:
        ended = replace(ended, stage=Stage.WAITING, restarts=found.restarts + 1)
    else:
        ran = 0.0 if found.began_at is None else at - found.began_at
        backoff = times.first_backoff
        if found.backoff and ran < times.forgiven:
            backoff = min(times.longest_backoff, 2 * found.backoff)
        ended = replace(
            ended, stage=Stage.FAILED, faulty=False, backoff=backoff, again_at=at + backoff,
            restarts=found.restarts + 1, why=found.why if found.faulty else event.ending.words,
        )  # fmt: skip
    return _each(state, lambda each: ended if each is found else each)


def _probed(engine: Engine, well: bool, at: float) -> Engine:
    if well and engine.stage in (Stage.STARTING, Stage.UNWELL):
        began = at if engine.ready_at is None else engine.ready_at
        return replace(engine, stage=Stage.READY, since=at, ready_at=began, missed=0, why="")
    if well or engine.stage is not Stage.READY:
        return replace(engine, missed=0)
    missed = engine.missed + 1
    if missed < UNWELL_AFTER:
        return replace(engine, missed=missed)
    return replace(engine, stage=Stage.UNWELL, since=at, missed=0, why="it does not answer")


def _mps_ended(state: State, ending: Ending, at: float, times: Times) -> State:
    mps = replace(state.mps, has_daemon=False, server=None)
    if mps.stage is Mps.STARTING:
        tries = mps.tries + 1
        why = mps.why or f"the MPS daemon did not start: {_told(ending)}"
        stage = Mps.UNAVAILABLE if tries >= times.mps_tries or ending.code == NOT_FOUND else Mps.OFF
        backoff = min(times.longest_backoff, times.first_backoff * 2 ** (tries - 1))
        return replace(state, mps=replace(mps, stage=stage, since=at, tries=tries, again_at=at + backoff, why=why))
    if mps.stage is Mps.READY:
        return _lost(replace(state, mps=mps), f"the MPS daemon ended: {_told(ending)}", at, times)
    if mps.stage is Mps.STOPPING:
        mps = replace(mps, stage=Mps.OFF, since=at)
    return replace(state, mps=mps)


def _told(ending: Ending) -> str:
    return f"{ending.words}: {ending.log[-1]}" if ending.log else ending.words


def _mps_seen(state: State, seen: MpsSeen, at: float, times: Times) -> State:
    mps = state.mps
    if mps.stage is Mps.STARTING and seen.server is not None and not seen.fault:
        return replace(state, mps=replace(mps, stage=Mps.READY, since=at, server=seen.server, tries=0))
    if mps.stage is not Mps.READY:
        return state
    if seen.fault:
        return _lost(state, f"the MPS server {mps.server} reports {seen.fault}", at, times)
    if seen.server != mps.server:
        return _lost(state, f"the MPS server {mps.server} is gone", at, times)
    return state


def _lost(state: State, why: str, at: float, times: Times) -> State:
    """Clients often end before anybody has looked at the server: theirs is its fault, and they wait for nothing."""
    mps = replace(state.mps, stage=Mps.LOST, since=at, restarts=state.mps.restarts + 1, why=why)

    def excuse(engine: Engine) -> Engine:
        if engine.stage is not Stage.FAILED or at - engine.since > times.together:
            return engine
        return replace(engine, stage=Stage.WAITING, since=at, again_at=at, backoff=0.0, why=why)

    return _each(replace(state, mps=mps), excuse)


# What time and state ask for


def _end_engines(state: State, at: float, times: Times, actions: list[Action]) -> State:
    lost = state.mps.stage is Mps.LOST
    everyone = state.stopping or lost

    def tend(engine: Engine) -> Engine:
        match engine.stage:
            case Stage.STARTING | Stage.READY | Stage.UNWELL | Stage.LEAVING:
                late = engine.stage is Stage.STARTING and at - engine.since >= times.load
                settled = engine.stage is Stage.LEAVING and at - engine.since >= times.settle
                hopeless = engine.stage is Stage.STARTING and not engine.ordered
                if not (everyone or late or settled or hopeless):
                    return engine
                actions.append(TerminateEngine(name=engine.name))
                why = state.mps.why if lost else engine.why
                why = f"it did not answer within {times.load:g} s" if late else why
                return replace(engine, stage=Stage.STOPPING, since=at, faulty=late, why=why)
            case Stage.STOPPING if at - engine.since >= (times.broken if lost else times.drain):
                actions.append(KillEngine(name=engine.name))
                return replace(engine, stage=Stage.KILLING, since=at)
        return engine

    state = _each(state, tend)
    if state.stopping:
        return replace(state, engines=tuple(each for each in state.engines if each.lives))
    return state


def _tend_mps(state: State, at: float, times: Times, actions: list[Action]) -> State:
    mps, clients = state.mps, any(each.lives for each in state.engines)
    waited = at - mps.since
    if mps.stage is Mps.OFF and not mps.has_daemon and not state.stopping and at >= mps.again_at:
        actions.append(StartMps())
        mps = replace(mps, stage=Mps.STARTING, since=at, has_daemon=True, why=mps.why if mps.restarts else "")
    elif mps.stage is Mps.STARTING and waited >= times.mps_start and not mps.why.startswith(LATE):
        actions.append(KillMps())
        mps = replace(mps, since=at, why=f"{LATE} {times.mps_start:g} s")
    elif mps.stage is Mps.LOST and not clients:
        if mps.has_daemon:
            actions.append(QuitMps())
        mps = replace(mps, stage=Mps.STOPPING if mps.has_daemon else Mps.OFF, since=at)
    elif mps.stage in (Mps.READY, Mps.STARTING) and state.stopping and not clients:
        actions.append(QuitMps())
        mps = replace(mps, stage=Mps.STOPPING, since=at)
    elif mps.stage is Mps.STOPPING and waited >= times.mps_stop:
        actions.append(KillMps())
        mps = replace(mps, since=at)
    return replace(state, mps=mps)


def _start_one(state: State, at: float, actions: list[Action]) -> State:
    mps = state.mps.stage
    if state.stopping or mps not in (Mps.READY, Mps.NOT_USED, Mps.UNAVAILABLE):
        return state
    moving = (Stage.STARTING, Stage.LEAVING, Stage.STOPPING, Stage.KILLING)
    if any(each.stage in moving for each in state.engines):
        return state
    if mps is Mps.UNAVAILABLE and any(each.lives for each in state.engines):
        alone = f"one engine runs at a time here: {state.mps.why}"
        return _each(state, lambda each: replace(each, why=alone) if each.stage is Stage.WAITING else each)
    waiting = (each for each in state.engines if not each.lives and at >= each.again_at)
    if (chosen := next(waiting, None)) is None:
        return state
    actions.append(StartEngine(order=chosen.order))
    began = replace(chosen, stage=Stage.STARTING, since=at, began_at=at)
    return _each(state, lambda each: began if each is chosen else each)


def _each(state: State, change: Callable[[Engine], Engine]) -> State:
    return replace(state, engines=tuple(change(each) for each in state.engines))
