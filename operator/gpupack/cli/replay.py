"""`gpupack replay`: where today's code would decide otherwise than a trace says it was decided, and whether it matters.

Exit status 0: the same but for words and digits; 1: something that matters; 2: a file that cannot be read. A history of
`gpupack soak` is played again instead: 1 if a rule breaks.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, is_dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from gpupack import __version__
from gpupack.cli.arguments import count
from gpupack.cli.show import Json, print_json, table
from gpupack.decide import explain
from gpupack.errors import Invalid
from gpupack.facts.observation import Missing, Observation, Phase
from gpupack.facts.placement import ChosenShape, Placement, Record
from gpupack.facts.serving import ServingKey
from gpupack.plan import Action, Condition, Outcome, StartReplica, Unit, Verdict
from gpupack.replay import Difference, Replayed, Weight, replay
from gpupack.trace.codec import to_json
from gpupack.trace.lines import Ticked, first_object, read

SAME, DIFFERS = 0, 1
SOAK = "gpupack soak"
WIDEST = 80
_UUID = re.compile(r"(GPU-[0-9a-f]{8})[-0-9a-f]+")
TOLD = 2
"""Differences of one serving that a row tells in words; the rest is counted."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Exit status 0: the same but for words and digits; 1: it differs where it matters; 2: the file cannot be read. "
        "A history of `gpupack soak` is played again instead."
    )
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="what `gpupack operator --trace` wrote, plain or compressed"
    )
    parser.add_argument("--tick", type=count, metavar="N", help="tell everything about one tick, counted from 1")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text", help="default text")
    parser.add_argument("--json", action="store_const", const="json", dest="output", help="the same as -o json")


def run(args: argparse.Namespace) -> int:
    """Raises Invalid for a file that is neither a trace nor a history of `gpupack soak`."""
    if str(first_object(args.file).get("format")).startswith(SOAK):
        return _history(args.file)
    ticks = read(args.file)
    if args.tick is not None:
        return _one(_pick(ticks, args.tick, args.file), args.tick, as_json=args.output == "json")
    summary = Summary()
    for each in replay(ticks):
        summary.add(each)
    if args.output == "json":
        print_json(summary.to_json())
    else:
        print(summary.to_text())
    return DIFFERS if summary.matters else SAME


def _history(path: Path) -> int:
    from gpupack.soak.run import replay as play_again  # with the operator's code, which a trace does not need

    return play_again(path.read_text(), str(path))


@dataclass(slots=True)
class Row:
    """The same difference of one serving at ticks in a row; the first is told."""

    first: int
    last: int
    at: float
    pool: str
    serving: str
    weight: Weight
    recorded: str
    today: str
    details: tuple[str, ...]
    differences: tuple[Difference, ...]

    @property
    def ticks(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


class Summary:
    """What is kept of a trace while it is gone through: counts, and a row for each difference that matters."""

    def __init__(self) -> None:
        self._weights: Counter[Weight] = Counter()
        self._rows: list[Row] = []
        self._open: dict[tuple[str, str], Row] = {}
        self._programs: dict[str, None] = {}
        self._began: float | None = None
        self._ended = 0.0

    @property
    def matters(self) -> bool:
        return any(weight.matters for weight in self._weights)

    def add(self, each: Replayed) -> None:
        seen = each.ticked.observation
        self._weights[each.weight] += 1
        self._programs[each.ticked.header.gpupack] = None
        self._began = seen.at if self._began is None else self._began
        self._ended = seen.at
        mattering = [difference for difference in each.differences if difference.weight.matters]
        for serving in dict.fromkeys(difference.serving for difference in mattering):
            self._add_row(_row(each, serving, [one for one in mattering if one.serving == serving]))

    def _add_row(self, row: Row) -> None:
        place = (row.pool, row.serving)
        before = self._open.get(place)
        if before is not None and before.last == row.first - 1 and _alike(before, row):
            before.last = row.last
        else:
            self._rows.append(row)
            self._open[place] = row

    def to_text(self) -> str:
        if self._began is None:
            return "no tick was recorded"
        ticks = sum(self._weights.values())
        head = (
            f"{explain.counted(ticks, 'tick')} from {_time(self._began)} to {_time(self._ended)} UTC,"
            f" decided by gpupack {', '.join(self._programs)} and again by {__version__}"
        )  # fmt: skip
        counts = [f"{self._weights[weight]:,} {weight.words}" for weight in Weight if self._weights[weight]]
        lines = [head, ", ".join(counts)]
        if self._rows:
            names = ("tick", "time", "serving", "recorded", "today", "what differs")
            rows = [
                (row.ticks, _clock(row.at), row.serving, row.recorded, row.today, "; ".join(row.details))
                for row in self._rows
            ]
            lines += ["", table(names, rows, left=True), "", _ADVICE]
        return "\n".join(lines)

    def to_json(self) -> Json:
        return {
            "ticks": sum(self._weights.values()),
            "from": self._began,
            "to": self._ended,
            "recordedBy": list(self._programs),
            "replayedBy": __version__,
            "matters": self.matters,
            "counts": {weight.name.lower(): self._weights[weight] for weight in Weight},
            "rows": [
                {
                    "first": row.first, "last": row.last, "at": row.at, "pool": row.pool, "serving": row.serving,
                    "difference": row.weight.name.lower(), "recorded": row.recorded, "today": row.today,
                    "fields": [_difference_json(each) for each in row.differences],
                }
                for row in self._rows
            ],
        }  # fmt: skip


_ADVICE = (
    "Every tick is decided on what was recorded then, so a choice that differs shows until the recorded one agrees with"
    " it. All about one tick: --tick N."
)


def _alike(before: Row, row: Row) -> bool:
    """The same fields differ: figures in them may move from tick to tick."""
    return before.weight is row.weight and [each.path for each in before.differences] == [
        each.path for each in row.differences
    ]


def _row(each: Replayed, serving: ServingKey | None, differences: Sequence[Difference]) -> Row:
    seen = each.ticked.observation
    weight = max(difference.weight for difference in differences)
    return Row(
        first=each.number,
        last=each.number,
        at=seen.at,
        pool=seen.pool,
        serving=f"pool {seen.pool}" if serving is None else str(serving),
        weight=weight,
        recorded=_verdict(each.ticked.outcome, serving),
        today=_verdict(each.today, serving),
        details=tuple(_details(weight, differences)),
        differences=tuple(differences),
    )


def _details(weight: Weight, differences: Sequence[Difference]) -> Iterable[str]:
    """The heaviest differences in words, after what they are together."""
    heaviest = [each for each in differences if each.weight is weight]
    told = [f"{_words(each.recorded, each.path)} -> {_words(each.today, each.path)}" for each in heaviest[:TOLD]]
    yield f"{weight.words}: {told[0]}"
    yield from told[1:]
    if len(heaviest) > TOLD:
        yield f"and {len(heaviest) - TOLD} more"


def _words(value: object, path: str) -> str:
    """A value as short as it is clear; the field's name with it where the value alone says nothing."""
    match value:
        case None:
            return "nothing"
        case Placement():
            return f"a replica in slot {value.slot} of {explain.place(value.gpu_uuid)} ({_shape(value)})"
        case StartReplica():
            return f"start of {value.placement.name}"
        case ChosenShape():
            return f"on {value.gpu_kind} {_shape(value)}, {value.replicas_per_gpu} a GPU"
        case Condition():
            return f"{value.type} {value.truth}/{value.reason}"
        case Record():
            return value.reason
        case _ if isinstance(value, Action):
            who = getattr(value, "name", getattr(value, "serving", getattr(value, "namespace", "")))
            return f"{type(value).__name__} {who}"
        case (ServingKey(), Verdict() as verdict):
            return f"{verdict.reason} against {explain.place(verdict.subject)}: {_sides(verdict)}"
    field = _UUID.sub(r"\1", path.rsplit(".", 1)[-1])
    text = type(value).__name__ if is_dataclass(value) else str(value)
    return _short(f"{field} {text}".strip())


def _short(text: str) -> str:
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 3]}..."


def _shape(of: Placement | ChosenShape) -> str:
    return f"batch {of.shape.max_num_seqs}, KV cache {explain.number(of.shape.kv_cache_memory_bytes, Unit.BYTES)}"


def _verdict(outcome: Outcome, serving: ServingKey | None) -> str:
    """Why, with the two sides of the comparison and the margin; for the pool what its conditions say."""
    if serving is None:
        return ", ".join(f"{each.type} {each.truth}" for each in outcome.pool_status.conditions)
    plan = outcome.pool_status.plan
    record = next((each for each in plan.records if each.serving == serving), None) if plan is not None else None
    if record is None:
        return "nothing decided"
    if not record.unit:
        return record.reason
    unit = Unit(record.unit)
    gap = record.observed - record.limit if record.at_least else record.limit - record.observed
    return (
        f"{record.reason} {explain.number(record.observed, unit)} of {explain.number(record.limit, unit)}"
        f" (margin {explain.number(gap, unit)})"
    )


def _pick(ticks: Iterable[Ticked], number: int, path: Path) -> Ticked:
    found = next(islice(ticks, number - 1, None), None)
    if found is None:
        raise Invalid("--tick", f"{path} has fewer than {number} ticks", "count from 1, as the table does")
    return found


def _one(ticked: Ticked, number: int, *, as_json: bool) -> int:
    (each,) = replay([ticked])
    if as_json:
        print_json(
            {
                "tick": number,
                "line": ticked.line,
                "difference": each.weight.name.lower(),
                "matters": each.weight.matters,
                "fields": [_difference_json(difference) for difference in each.differences],
                "observation": json.loads(to_json(ticked.observation)),
                "recorded": json.loads(to_json(ticked.outcome)),
                "today": json.loads(to_json(each.today)),
            }
        )
    else:
        print("\n".join(_tick_lines(each, number)))
    return DIFFERS if each.weight.matters else SAME


def _tick_lines(each: Replayed, number: int) -> Iterable[str]:
    """Everything about one tick: what was seen, what was decided then and now, every field that differs."""
    ticked, seen = each.ticked, each.ticked.observation
    yield f"tick {number} (line {ticked.line}), {_time(seen.at)} UTC, pool {seen.pool}: {each.weight.words}"
    yield ""
    yield from _seen(seen)
    for serving in seen.servings:
        yield ""
        yield f"{serving.key}"
        for name, outcome in (("recorded", ticked.outcome), ("today", each.today)):
            yield f"  {name}: {_verdict(outcome, serving.key)}"
            plan = outcome.pool_status.plan
            for record in () if plan is None else plan.records:
                if record.serving == serving.key:
                    yield f"    {record.message}"
        yield from _objections(each, serving.key)
    for name, outcome in (("recorded", ticked.outcome), ("today", each.today)):
        doing = ", ".join(_words(action, "") for action in outcome.actions) or "nothing"
        yield ""
        yield f"done, {name}: {doing}" + (" (the plan is written first)" if outcome.plan_changed else "")
    if each.differences:
        yield ""
        rows = [
            (_UUID.sub(r"\1", one.path), _words(one.recorded, ""), _words(one.today, ""), one.weight.words)
            for one in sorted(each.differences, key=lambda one: -one.weight)
        ]
        yield table(("field", "recorded", "today", "which is"), rows, left=True)


def _seen(seen: Observation) -> Iterable[str]:
    phases = Counter(each.phase for each in seen.replicas)
    told = ", ".join(f"{phases[phase]} {phase}" for phase in Phase if phases[phase]) or "none"
    missing = sorted({f"{each.replica} ({each.running.cause})" for each in seen.engines
                      if isinstance(each.running, Missing)})  # fmt: skip
    silent = sorted({f"{explain.place(each.gpu.uuid)} ({each.dram_active.cause})" for each in seen.gpus
                     if isinstance(each.dram_active, Missing)})  # fmt: skip
    planned = 0 if seen.plan is None else len(seen.plan.placements)
    yield f"seen: {len(seen.servings)} servings, {len(seen.gpus)} GPUs, replicas: {told}; {planned} planned"
    if seen.stale:
        yield f"  too old to be trusted: {', '.join(seen.stale)}"
    if missing:
        yield f"  engines without readings: {', '.join(missing)}"
    if silent:
        yield f"  GPUs without DRAM activity: {', '.join(silent)}"


def _objections(each: Replayed, serving: ServingKey) -> Iterable[str]:
    """Every objection of either, with both margins."""
    then, now = _verdicts(each.ticked.outcome, serving), _verdicts(each.today, serving)
    rows = [
        (explain.place(place), reason, _sides(then.get((place, reason))), _sides(now.get((place, reason))))
        for place, reason in dict.fromkeys((*then, *now))
    ]
    if rows:
        text = table(("against", "objection", "recorded", "today"), rows, left=True)
        yield from (f"    {line}" for line in text.splitlines())


def _verdicts(outcome: Outcome, serving: ServingKey) -> dict[tuple[str, str], Verdict]:
    return {(one.subject, one.reason.value): one for key, one in outcome.verdicts if key == serving}


def _sides(verdict: Verdict | None) -> str:
    if verdict is None:
        return "-"
    seen, limit, margin = (
        explain.number(value, verdict.unit) for value in (verdict.observed.value, verdict.limit.value, verdict.margin)
    )
    return f"{seen} of {limit} (margin {margin})"


def _difference_json(each: Difference) -> Json:
    recorded, today = (json.loads(to_json(value)) for value in (each.recorded, each.today))
    return {"path": each.path, "difference": each.weight.name.lower(), "recorded": recorded, "today": today}


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S")
