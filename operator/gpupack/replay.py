"""Today's decision on everything that was recorded, and how much a difference matters.

Each tick is decided on what was recorded then: what today's code would have done before is not carried on, so one other
choice shows at every tick until the recorded one agrees with it. Values are compared field by field, whatever fields
they have: a name, a count or a truth must be equal; an estimate may move by the pool's prediction tolerance; a text
with a space in it is a sentence, which may be worded otherwise. Knows no file and prints nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

from gpupack.decide.reconcile import reconcile
from gpupack.facts.observation import Missing, Observation, Phase, Reading
from gpupack.facts.serving import ServingKey
from gpupack.plan import LeaveService, Outcome, StopReplica, Tell, Verdict
from gpupack.trace.lines import Ticked


class Weight(IntEnum):
    """How much a difference matters. From REASON on it does: somebody would see or get something else."""

    SAME = 0
    WORDING = 1
    REASON = 2
    PLAN = 3
    ACTION = 4
    REMOVES_BLINDLY = 5

    @property
    def matters(self) -> bool:
        return self >= Weight.REASON

    @property
    def words(self) -> str:
        return _WORDS[self]


PLACEMENTS = ("pool_status", "plan", "placements")
_WORDS = {
    Weight.SAME: "the same",
    Weight.WORDING: "other words or digits",
    Weight.REASON: "another reason",
    Weight.PLAN: "another plan",
    Weight.ACTION: "another action",
    Weight.REMOVES_BLINDLY: "removes a replica on missing data",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One field: `recorded` and `today` are its values, None where there is none. `serving` is whose it is."""

    weight: Weight
    serving: ServingKey | None
    path: str
    recorded: object
    today: object


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One tick; `number` counts from 1. `differences` are in the order of the fields."""

    number: int
    ticked: Ticked
    today: Outcome
    differences: tuple[Difference, ...]

    @property
    def weight(self) -> Weight:
        return max((each.weight for each in self.differences), default=Weight.SAME)


def replay(ticks: Iterable[Ticked], decide: Callable[[Observation], Outcome] = reconcile) -> Iterator[Replayed]:
    """`decide` over every recorded observation."""
    for number, ticked in enumerate(ticks, start=1):
        try:
            today = decide(ticked.observation)
            found = _in_step(ticked, today, decide)
        except Exception as bug:
            bug.add_note(f"today's code fails at tick {number}, line {ticked.line}")
            raise
        yield Replayed(number=number, ticked=ticked, today=today, differences=found)


def _in_step(ticked: Ticked, today: Outcome, decide: Callable[[Observation], Outcome]) -> tuple[Difference, ...]:
    """The differences, less those of a tick sooner or later.

    A plan that changes in words or digits only is written and acted on at the next tick. Where one of the two does so
    and the other acts at once, what counts is what is done once it is read back.
    """
    seen, recorded = ticked.observation, ticked.outcome
    found = compare(seen, recorded, today)
    plans = [each for each in found if each.path.startswith("pool_status.plan")]
    if today.plan_changed is recorded.plan_changed or any(each.weight.matters for each in plans):
        return found
    if today.plan_changed:
        settled = decide(replace(seen, plan=today.pool_status.plan))
        return compare(seen, recorded, replace(today, plan_changed=False, actions=settled.actions))
    settled = decide(replace(seen, plan=recorded.pool_status.plan))
    return compare(seen, replace(recorded, plan_changed=False, actions=settled.actions), today)


def compare(seen: Observation, recorded: Outcome, today: Outcome) -> tuple[Difference, ...]:
    """Every field in which the two differ."""
    blind = set(removed_blindly(seen, recorded, today))
    found = [_judged(leaf, seen.policy.prediction_tolerance, blind) for leaf in _leaves((), None, recorded, today)]
    told = {each.serving for each in found if each.weight is Weight.REMOVES_BLINDLY}
    assert blind == told, "a removal that shows in no field"
    return tuple(found)


def removed_blindly(seen: Observation, recorded: Outcome, today: Outcome) -> list[ServingKey]:
    """Servings that would lose a replica today, and did not, while what their engines do was not known."""
    wanted = {each.key for each in seen.servings}
    before, then, now = _planned(seen.plan), _planned(recorded.pool_status.plan), _planned(today.pool_status.plan)
    ends_then, ends_now = _ended(recorded), _ended(today)
    return sorted(
        key
        for key in wanted
        if (now[key] < min(before[key], then[key]) or ends_now[key] - ends_then[key]) and _is_blind(seen, key)
    )


def _planned(plan: Any) -> Counter[ServingKey]:
    return Counter() if plan is None else Counter(each.serving for each in plan.placements)


def _ended(outcome: Outcome) -> dict[ServingKey, set[str]]:
    found: dict[ServingKey, set[str]] = _Names()
    for each in outcome.actions:
        if isinstance(each, LeaveService | StopReplica):
            found[each.serving].add(each.name)
    return found


class _Names(dict[ServingKey, set[str]]):
    def __missing__(self, key: ServingKey) -> set[str]:
        return self.setdefault(key, set())


def _is_blind(seen: Observation, key: ServingKey) -> bool:
    """Whether a Ready replica of this serving was not read, or the view of the cluster was too old."""
    read = {
        each.replica
        for each in seen.engines
        if isinstance(each.running, Reading) and not any(isinstance(one.arrivals, Missing) for one in each.windows)
    }
    return bool(seen.stale) or any(
        each.name not in read for each in seen.replicas if each.serving == key and each.phase is Phase.READY
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Leaf:
    """Two unequal values at a path of field names and elements, with the scale that an estimate there is judged by."""

    path: tuple[str, ...]
    serving: ServingKey | None
    recorded: Any
    today: Any
    scale: float


def _judged(leaf: _Leaf, tolerance: float, blind: set[ServingKey]) -> Difference:
    weight = Weight.WORDING if _is_like(leaf, tolerance) else _place_weight(leaf)
    is_gone = leaf.path[:3] == PLACEMENTS and leaf.today is None
    if leaf.serving in blind and (is_gone or isinstance(leaf.today, LeaveService | StopReplica)):
        weight = Weight.REMOVES_BLINDLY
    path = ".".join(leaf.path).replace(".[", "[")
    return Difference(weight=weight, serving=leaf.serving, path=path, recorded=leaf.recorded, today=leaf.today)


def _place_weight(leaf: _Leaf) -> Weight:
    match leaf.path:
        case ("pool_status", "plan", "records", *_):
            return Weight.REASON
        case ("pool_status", "plan", *_):
            return Weight.PLAN
        case ("pool_status", "gpus" | "gpus_in_use" | "replicas") | ("plan_changed",):
            return Weight.WORDING  # they only count what the plan holds
        case ("actions", _, "predicted", *_):
            return Weight.WORDING  # noted on the replica for people; nothing rests on it
        case ("actions", element, *_) if not element.startswith(f"[{Tell.__name__} "):
            return Weight.ACTION
        case ("verdicts" | "wake_in" | "look_again", *_):
            return Weight.WORDING  # who else objected, and how long the shell may sleep
        case _:
            return Weight.REASON


def _is_like(leaf: _Leaf, tolerance: float) -> bool:
    """Both are sentences, or estimates near each other. A whole number is a count, unless it only reports."""
    was, now = leaf.recorded, leaf.today
    if isinstance(was, str) and isinstance(now, str):
        return " " in was or " " in now
    if not _is_number(was) or not _is_number(now):
        return False
    is_count = isinstance(was, int) and isinstance(now, int) and leaf.path[0] != "serving_statuses"
    if is_count or not math.isfinite(was) or not math.isfinite(now):
        return False
    return bool(abs(was - now) <= tolerance * max(abs(was), abs(now), leaf.scale))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _leaves(
    path: tuple[str, ...], serving: ServingKey | None, was: Any, now: Any, scale: float = 0.0
) -> Iterator[_Leaf]:
    if type(was) is type(now) and dataclasses.is_dataclass(was) and not isinstance(was, ServingKey):
        serving = _serving(was) or serving
        scale = _scale(was, now)
        for field in dataclasses.fields(was):
            pair = getattr(was, field.name), getattr(now, field.name)
            yield from _leaves((*path, field.name), serving, *pair, scale)
    elif isinstance(was, tuple) and isinstance(now, tuple):
        for name, left, right in _paired(was, now):
            whose = _serving(right if left is None else left) or serving
            yield from _leaves((*path, f"[{name}]"), whose, left, right, scale)
    elif was != now and not (was != was and now != now):  # NaN equals itself here
        yield _Leaf(path=path, serving=serving, recorded=was, today=now, scale=scale)


def _scale(was: Any, now: Any) -> float:
    """Where something is observed against a limit, the limit is the scale: 0.1 % of 85 % is no large change of 0 %."""
    sides = [getattr(each, name, 0.0) for each in (was, now) for name in ("observed", "limit")]
    return max(abs(each) for each in sides) if all(isinstance(each, float | int) for each in sides) else 0.0


def _paired(was: Sequence[Any], now: Sequence[Any]) -> Iterator[tuple[str, Any, Any]]:
    """Elements of the same identity, by its name; None where one side has none. Those that repeat go by their turn."""
    left, right = _by_identity(was), _by_identity(now)
    for name in [*left, *(each for each in right if each not in left)]:
        yield name, left.get(name), right.get(name)


def _by_identity(elements: Sequence[Any]) -> dict[str, Any]:
    turns: Counter[str] = Counter()
    named = {}
    for each in elements:
        name = _identity(each)
        turns[name] += 1
        named[name if turns[name] == 1 else f"{name} #{turns[name]}"] = each
    return named


_IDENTITY = ("serving", "namespace", "name", "gpu_uuid", "gpu_kind", "slot", "type", "pod")
_MORE_IDENTITY: dict[type, tuple[str, ...]] = {Verdict: ("subject", "reason"), Tell: ("reason",)}


def _identity(each: Any) -> str:
    """What tells an element of a list from the others: its class and the names in it, not its figures."""
    if isinstance(each, tuple):
        return " ".join(_identity(part) for part in each)
    if not dataclasses.is_dataclass(each) or isinstance(each, ServingKey):
        return str(each)
    place: Any = getattr(each, "placement", each)
    has = {field.name for field in dataclasses.fields(place)}
    names = [name for name in (*_IDENTITY, *_MORE_IDENTITY.get(type(each), ())) if name in has]
    return " ".join([type(each).__name__, *(str(getattr(place, name)) for name in names)])


def _serving(each: Any) -> ServingKey | None:
    if isinstance(each, tuple):
        return next((found for part in each if (found := _serving(part)) is not None), None)
    if isinstance(each, ServingKey):
        return each
    for name in ("serving", "placement"):
        if (found := getattr(each, name, None)) is not None:
            return _serving(found)
    return None
