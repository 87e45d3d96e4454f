"""How many replicas the load asks for.

Needed is the smallest count whose predicted capacity carries the arrivals at the target utilisation and drains the
present queue in time. Up follows the larger of the windows at once; down looks at the peak of the whole delay and asks
whether the survivors are predicted to hold it. Knows load and capacity, not GPUs: whether and where a replica fits is
`pack`'s business.

A doubled load takes seconds to fill a window of 30, so up follows also what the last two gaps between scrapes surely
brought. Three things look like a step of the load and are none, and each has its bound:

- Chance: a count swings by its root. Both gaps together must be above the bar by three standard errors.
- A burst, as of one client that sends a batch at once: it shows in one gap. Each of the two must be above the bar, the
  last by two standard errors. The gap before a step is half empty, and to wait a whole period for the next one would
  be late; so after a gap that looks like a step the engines are scraped again at once (`look_again`).
- A stream that always comes in bursts: standard errors are those of its own dispersion, as it was before these gaps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from gpupack.facts.interpretation import EngineFacts, Facts, Gap, Traffic, is_leaving
from gpupack.facts.observation import Missing, Phase, ReplicaSeen
from gpupack.facts.policy import Policy
from gpupack.facts.serving import Mode, ScalingMode, Serving
from gpupack.plan import Step

CONSTANT = 0.02
"""Counts of requests inside an engine that differ by this share at most, or by one, are called constant."""
CONSTANT_FROM, CONSTANT_EACH = 8, 3
"""Fewer requests inside all engines, or inside one of them, are too few to tell a constant from chance."""
CONSTANT_SCRAPES = 10
"""So many scrapes in a row must show the same count: fewer are the same by chance now and then."""
STEADY = 1.05
"""Constant clients' arrivals peak at most this far above their mean."""
ROOMY = 0.5
"""Constant clients may take this share of the slots that are left when one of their replicas goes."""
CAPACITY_MOST = 4096
CALM = 0.9
"""Of a model that is being learnt, one replica less must hold the load with so much to spare: what is written of it
moves by some per cent, and a count that it just reaches would come and go with each writing."""
PERHAPS, LIKELY, SURELY = 1.0, 2.0, 3.0
"""Standard errors by which the gap before the last, the last, and both together must show a step of the load."""

Capacity = Callable[[int], float]
"""Requests a second that so many replicas are predicted to finish, all of them kept full."""


class Basis(StrEnum):
    """What a demand rests on."""

    MANUAL = "Manual"
    DECLARED = "Declared"
    MISSING = "Missing"
    CLOSED_LOOP = "ClosedLoop"
    ARRIVALS = "Arrivals"
    ASLEEP = "Asleep"


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """`wanted` replicas; never below what is planned, for going down is `spare`: one less would hold the load.

    `floor` is how many may start without any reading. `rate` is arrivals a second (None without readings) and
    `utilization` what they take of the present capacity. `missing` names the readings that are not there. `look_again`
    asks for another scrape soon: the last one shows a step of the load, or a burst.
    """

    basis: Basis
    wanted: int
    floor: int
    spare: bool
    rate: float | None = None
    utilization: float | None = None
    missing: tuple[str, ...] = ()
    look_again: bool = False


def ask(serving: Serving, facts: Facts, planned: int, capacity: Capacity, most: int) -> Demand:
    """What the load on `serving`, of which `planned` replicas are in the plan, asks for.

    `most` is what can ever be had; a queue that grows without end asks for one more than that and not for ever more.
    """
    scaling = serving.scaling
    if scaling.mode is ScalingMode.MANUAL:
        count = scaling.replicas
        rate = _seen_rate(serving, facts)
        return Demand(basis=Basis.MANUAL, wanted=count, floor=count, spare=planned > count, rate=rate)
    if planned == 0 and sleeps_on(serving, facts):
        return Demand(basis=Basis.ASLEEP, wanted=0, floor=0, spare=False)
    floor = max(1, scaling.min_replicas)
    replicas = facts.replicas_of.get(serving.key, ())
    serving_now = [each for each in replicas if each.phase is Phase.READY and not is_leaving(each)]
    engines = [(each, facts.engines.get(each.name)) for each in serving_now]
    missing = tuple(
        f"{each.name}: {_why(engine)}"
        for each, engine in engines
        if not _has_rate(engine, facts.policy) and not _is_young(each, facts)
    )
    if missing:
        return Demand(basis=Basis.MISSING, wanted=max(planned, floor), floor=floor, spare=False, missing=missing)
    known = [engine for _, engine in engines if engine is not None and _has_rate(engine, facts.policy)]
    if not known:
        declared = serving.declared_rate
        held = _held_for(serving, facts)
        asked = 1
        if declared is not None or held > 0:
            asked = _smallest(float(declared or 0.0), held, planned, capacity, facts.policy)
        first = max(floor, min(asked, max(most, planned) + 1))
        return Demand(basis=Basis.DECLARED, wanted=max(planned, first), floor=floor, spare=False)
    leaving = [facts.engines[each.name] for each in replicas if is_leaving(each) and each.name in facts.engines]
    everyone = len(known) == len(engines)
    demand = _measured(serving, facts, planned, capacity, known, leaving, floor=floor, everyone=everyone)
    if everyone and planned == 1 and not leaving and _may_sleep(serving, facts, known):
        demand = replace(demand, spare=True)
    could_add = everyone and len(engines) == planned < most
    return replace(
        demand,
        wanted=max(floor, min(demand.wanted, max(most, planned) + 1)),
        look_again=demand.look_again and could_add,
    )


def sleeps_on(serving: Serving, facts: Facts) -> bool:
    """Whether a serving without a replica stays so: it may, and nobody is known to wait for it.

    Without an activator nobody could wake it, so it does not fall asleep; one that slept before does not wake for that.
    """
    if serving.scaling.mode is not ScalingMode.AUTO or serving.scaling.min_replicas or serving.mode is not Mode.ACTIVE:
        return False
    held = facts.held.get(serving.key)
    if held is None:
        records = facts.plan.records if facts.plan else ()
        return any(each.serving == serving.key and each.reason == Step.ASLEEP for each in records)
    return isinstance(held.requests, Missing) or held.requests == 0


def _may_sleep(serving: Serving, facts: Facts, engines: Sequence[EngineFacts]) -> bool:
    """Whether it is known that nothing was asked of it for as long as it takes, and that somebody could wake it."""
    held = facts.held.get(serving.key)
    if serving.scaling.min_replicas or held is None or isinstance(held.requests, Missing) or held.requests:
        return False
    return all(not isinstance(each.idle, Missing) and each.idle >= serving.scaling.idle for each in engines)


def _held_for(serving: Serving, facts: Facts) -> float:
    held = facts.held.get(serving.key)
    return 0.0 if held is None or serving.scaling.min_replicas else _number(held.requests)


def _measured(
    serving: Serving,
    facts: Facts,
    planned: int,
    capacity: Capacity,
    known: Sequence[EngineFacts],
    leaving: Sequence[EngineFacts],
    *,
    floor: int,
    everyone: bool,
) -> Demand:
    policy = facts.policy
    calm = CALM if serving.learned else 1.0
    rate = arrivals([*known, *leaving], policy)
    waiting = sum(_number(each.waiting) for each in known)
    now = capacity(planned)
    clients = _constant_clients(known, policy)
    look_again = False
    if clients is not None:
        slots = max(1, _largest_batch(serving, facts))
        needed = math.ceil(clients / slots)
        peak = _peak(known, leaving)
        steady = peak is not None and peak <= STEADY * rate
        # After the step the clients look like a stream until they were watched for a window, and full engines then look
        # like too few: a replica would go and come back without end.
        roomy = clients <= ROOMY * slots * (planned - 1)
        then = max(rate, _without_the_slowest(clients, known))
        holds = _survivors_hold(then, waiting, known, leaving, planned, capacity, policy, calm)
        spare = everyone and planned > needed and steady and holds and roomy
        basis = Basis.CLOSED_LOOP
    else:
        rate = max(rate, _surely(known))
        needed = _smallest(rate, waiting, planned, capacity, policy)
        perhaps = _perhaps(known, policy)
        look_again = perhaps > rate and needed <= planned < _smallest(perhaps, waiting, planned, capacity, policy)
        soon = max(rate, _by_chance(known, policy))
        spare = everyone and _survivors_hold(soon, waiting, known, leaving, planned, capacity, policy, calm)
        basis = Basis.ARRIVALS
        if needed <= planned and _queues_pile_up(serving, facts, planned):
            needed, spare = planned + 1, False
    return Demand(
        basis=basis,
        wanted=max(needed, planned, floor),
        floor=floor,
        spare=spare and planned > floor,
        rate=rate,
        utilization=rate / now if now > 0 else None,
        look_again=look_again,
    )


def _seen_rate(serving: Serving, facts: Facts) -> float | None:
    """Requests a second that come whoever owns the count; at least the declared ones while not all can be read."""
    ready = [each for each in facts.replicas_of.get(serving.key, ()) if each.phase is Phase.READY]
    engines = [engine for each in ready if (engine := facts.engines.get(each.name)) is not None]
    known = [each for each in engines if _has_rate(each, facts.policy)]
    if not known:
        return None
    return max(arrivals(known, facts.policy), (serving.declared_rate or 0.0) if len(known) < len(ready) else 0.0)


def arrivals(engines: Sequence[EngineFacts], policy: Policy) -> float:
    """Requests a second over all engines: the larger of the windows, each over those that have it.

    All are counted over the time of the longest: what moved to an engine that has just come did not arrive twice.
    """
    counted: dict[int, list[tuple[float, float]]] = {}
    for engine in engines:
        for index, window in enumerate(engine.windows[: len(policy.rate_windows)]):
            if _is_long_enough(window, policy) and not isinstance(window.arrivals, Missing):
                counted.setdefault(index, []).append((window.seconds, window.arrivals))
    rates = (sum(seconds * rate for seconds, rate in each) / max(each)[0] for each in counted.values())
    return max(rates, default=0.0)


def _surely(engines: Sequence[EngineFacts]) -> float:
    """Requests a second that the last two gaps show, together and each alone, less what chance may have added."""
    both = _at_least(((each.gaps, each.dispersion) for each in engines), SURELY)
    last = _at_least(((each.gaps[:1], each.dispersion) for each in engines), LIKELY)
    before = _at_least(((each.gaps[1:], each.dispersion) for each in engines), PERHAPS)
    return min(both, last, before)


def _by_chance(engines: Sequence[EngineFacts], policy: Policy) -> float:
    """Requests a second that the shortest window will show by chance now and then, if the longest one's mean stays.

    That mean is itself of chance. A replica that goes for a lull would come back with the next of those.
    """
    rate = variance = 0.0
    for each in engines:
        window = each.windows[len(policy.rate_windows) - 1] if len(each.windows) >= len(policy.rate_windows) else None
        if window is not None and not isinstance(window.arrivals, Missing):
            rate += window.arrivals
            swing = 1 / policy.rate_windows[0] + 1 / window.seconds
            variance += max(1.0, each.dispersion) * window.arrivals * swing
    return rate + SURELY * math.sqrt(variance)


def _perhaps(engines: Sequence[EngineFacts], policy: Policy) -> float:
    """Requests a second that the last gap shows; if it was short, the last two as well; 0 if both were short.

    After a short gap engines were asked again just now; a third time would not help.
    """
    gaps = [each.gaps for each in engines if each.gaps]
    last = _at_least(((each.gaps[:1], each.dispersion) for each in engines), PERHAPS)
    if all(each[0].seconds >= policy.engine_period / 2 for each in gaps):
        return last
    if any(sum(gap.seconds for gap in each) < policy.engine_period for each in gaps):
        return 0.0
    return min(last, _at_least(((each.gaps, each.dispersion) for each in engines), PERHAPS))


def _at_least(seen: Iterable[tuple[Sequence[Gap], float]], errors: float) -> float:
    """The engines' rates together, less so many standard errors.

    A count n in T seconds is a rate of n/T with a variance of n/T^2 times the dispersion.
    """
    rate = variance = 0.0
    for gaps, dispersion in seen:
        if not gaps:
            continue
        seconds = sum(gap.seconds for gap in gaps)
        count = sum(gap.seconds * gap.arrivals for gap in gaps)
        rate += count / seconds
        variance += max(1.0, dispersion) * count / seconds**2
    return rate - errors * math.sqrt(variance)


def _smallest(rate: float, waiting: float, planned: int, capacity: Capacity, policy: Policy) -> int:
    """The least count from the planned one up that carries `rate` at the target utilisation and drains `waiting` in
    time.

    Counts are doubled and then halved between, because capacity grows with the count.
    """
    low = max(1, planned)
    needed = rate / policy.target_utilization + waiting / policy.drain_queue
    if needed <= 0 or capacity(low) >= needed or capacity(low) <= 0:
        return low
    high = 2 * low
    while capacity(high) < needed and high < CAPACITY_MOST:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if capacity(middle) >= needed else (middle, high)
    return high


def _survivors_hold(
    rate: float,
    waiting: float,
    known: Sequence[EngineFacts],
    leaving: Sequence[EngineFacts],
    planned: int,
    capacity: Capacity,
    policy: Policy,
    calm: float,
) -> bool:
    """Whether one replica less is predicted to carry the peak of the whole delay; unknown peaks say no.

    It must carry it at `calm` times the target utilisation.
    """
    peak = _peak(known, leaving)
    if planned < 2 or peak is None:
        return False
    needed = max(peak, rate) / (calm * policy.target_utilization) + waiting / policy.drain_queue
    return capacity(planned - 1) >= needed


def _peak(known: Sequence[EngineFacts], leaving: Sequence[EngineFacts]) -> float | None:
    """The highest arrivals of the whole scale-down delay, summed over engines; None until all have been watched."""
    if any(isinstance(each.peak_arrivals, Missing) for each in known):
        return None
    return sum(_number(each.peak_arrivals) for each in (*known, *leaving))


def _queues_pile_up(serving: Serving, facts: Facts, planned: int) -> bool:
    """More waiting than a whole batch at two scrapes in a row, at a time when no help is on its way.

    A queue stays with its engine, so a replica that has just come gets the time to show its effect, and one that is
    drained in time as it falls needs no help.
    """
    ready = [each for each in facts.replicas_of.get(serving.key, ()) if each.phase is Phase.READY]
    if len(ready) < planned:
        return False
    if any(facts.at - _since(each) < facts.policy.drain_queue for each in ready) and len(ready) > 1:
        return False
    for replica in ready:
        engine = facts.engines.get(replica.name)
        if engine is None or isinstance(engine.waiting, Missing) or isinstance(engine.waiting_before, Missing):
            continue
        fallen = (engine.waiting_before - engine.waiting) / facts.policy.engine_period
        drains = fallen > 0 and engine.waiting <= fallen * facts.policy.drain_queue
        if min(engine.waiting, engine.waiting_before) > replica.shape.max_num_seqs and not drains:
            return True
    return False


def _constant_clients(engines: Sequence[EngineFacts], policy: Policy) -> float | None:
    """How many clients wait for their own answer before they ask again; None for an open stream of requests.

    Such clients keep running plus waiting constant at every scrape of the longest window; a stream by chance does not.
    """
    total = 0.0
    for engine in engines:
        window = engine.windows[-1] if engine.windows else None
        if window is None or window.seconds < CONSTANT_SCRAPES * policy.engine_period:
            return None
        if isinstance(window.inside_least, Missing) or isinstance(window.inside_most, Missing):
            return None
        reach = max(1.0, CONSTANT * window.inside_most)
        if window.inside_least < CONSTANT_EACH or window.inside_most - window.inside_least > reach:
            return None
        total += window.inside_most
    return total if total >= CONSTANT_FROM else None


def _without_the_slowest(clients: float, engines: Sequence[EngineFacts]) -> float:
    """Requests a second of constant clients once the engine that goes makes none of them wait any more.

    Who is answered sooner asks sooner: at most all as often as those of the quickest engine do now.
    """
    return clients * max(_number(each.windows[0].arrivals) / _number(each.windows[-1].inside_most) for each in engines)


def _largest_batch(serving: Serving, facts: Facts) -> int:
    return max((each.shape.max_num_seqs for each in facts.replicas_of.get(serving.key, ())), default=1)


def _has_rate(engine: EngineFacts | None, policy: Policy) -> bool:
    if engine is None or isinstance(engine.waiting, Missing) or not engine.windows:
        return False
    first = engine.windows[0]
    return _is_long_enough(first, policy) and not isinstance(first.arrivals, Missing)


def _is_long_enough(window: Traffic, policy: Policy) -> bool:
    """A window that has only begun is no evidence: half of the shortest one is asked for."""
    return window.seconds >= policy.rate_windows[0] / 2


def _is_young(replica: ReplicaSeen, facts: Facts) -> bool:
    """Ready too recently to have a window; nothing is wrong with its readings yet."""
    return facts.at - _since(replica) < facts.policy.rates_told_after


def _since(replica: ReplicaSeen) -> float:
    return replica.created_at if replica.ready_at is None else replica.ready_at


def _why(engine: EngineFacts | None) -> str:
    if engine is None:
        return "no readings"
    wanted = [engine.waiting, *(window.arrivals for window in engine.windows[:1])]
    missing = [each for each in wanted if isinstance(each, Missing)]
    return f"{missing[0].origin} {missing[0].cause.value}" if missing else "the window is too short"


def _number(known: float | Missing) -> float:
    return 0.0 if isinstance(known, Missing) else known
