"""Requests rebuilt from a trace, to be put to the twin.

A trace counts; it does not list. Between two scrapes of an engine (about two seconds) its counters tell how many
requests came: so many are placed there at random, at a constant rate. Where a gap was not recorded, the rate over the
shortest window stands for it. Lengths are drawn at random around the measured means over the whole recording, with the
spread that was declared. Lost are: bursts within a gap, how lengths follow each other or change over time, which prompt
began with the same tokens as which, and whatever came while an engine was not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from gpupack.cli.files import RecordedRequest
from gpupack.errors import Invalid
from gpupack.facts.observation import EngineSeen, EngineWindow, Observation, Reading
from gpupack.facts.serving import Serving
from gpupack.trace.lines import read
from gpupack.twin.arrivals import Lengths
from gpupack.units import Seconds

OPTION = "--from-trace"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """What a trace tells of one serving's traffic. `seconds` is from its first tick to its last; in `unread_seconds` of
    them some Ready engine was not read. `gpu` is the kind on which most of its replicas were.
    """

    serving: str
    model: str
    gpu: str | None
    max_model_len: int
    requests: tuple[RecordedRequest, ...]
    seconds: Seconds
    unread_seconds: Seconds


@dataclass(slots=True)
class _Traffic:
    """What is gathered of one serving tick by tick: (begin, end, requests) of every gap, and sums for the means."""

    serving: Serving
    spans: list[tuple[float, float, float]] = field(default_factory=list)
    known_until: dict[str, float] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    longest: int = 0
    finished: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    unread: float = 0.0


def rebuild(path: Path, serving: str | None, seed: int, max_model_len: int | None = None) -> Rebuilt:
    """The requests of the serving of that name (NAME or NAMESPACE/NAME; None: the only one), by arrival time from 0 on.
    None is longer than `max_model_len`, or without one than what the recorded engines took.

    Raises Invalid for a file that is no trace, for a serving that it does not know, and where too little came.
    """
    found: dict[str, _Traffic] = {}
    began = ended = before = None
    for ticked in read(path, OPTION):
        seen = ticked.observation
        began = seen.at if began is None else began
        for each in seen.servings:
            traffic = found.setdefault(str(each.key), _Traffic(each))
            traffic.serving = each
            _add(traffic, seen, 0.0 if before is None else seen.at - before)
        before = ended = seen.at
    if began is None or ended is None:
        raise Invalid(OPTION, f"{path} holds no tick", "record for some minutes")
    name = _name(found, serving, path)
    traffic = found[name]
    longest = max_model_len or traffic.longest or traffic.serving.llm.max_model_len
    requests = tuple(_requests(traffic, began, longest, Random(seed)))
    if len(requests) < 2:
        raise Invalid(OPTION, f"{path} tells of {len(requests)} requests of {name}", "record while requests come")
    return Rebuilt(
        serving=name,
        model=traffic.serving.llm.name,
        gpu=max(traffic.kinds, key=lambda kind: (traffic.kinds[kind], kind), default=None),
        max_model_len=longest,
        requests=requests,
        seconds=Seconds(ended - began),
        unread_seconds=Seconds(traffic.unread),
    )


def _name(found: dict[str, _Traffic], wanted: str | None, path: Path) -> str:
    names = [name for name in found if wanted is None or wanted in (name, name.split("/", 1)[1])]
    if len(names) == 1:
        return names[0]
    known = ", ".join(sorted(found)) or "none"
    problem = f"{path} has the servings {known}" if wanted is None else f"{wanted!r} is none or several of {known}"
    raise Invalid("--serving", problem, "name one of them as NAMESPACE/NAME")


def _add(traffic: _Traffic, seen: Observation, elapsed: float) -> None:
    key = traffic.serving.key
    kinds = {each.gpu.uuid: each.gpu.kind.name for each in seen.gpus}
    engines = {each.replica: each for each in seen.engines}
    unread = False
    for replica in seen.replicas:
        if replica.serving != key:
            continue
        traffic.longest = max(traffic.longest, replica.shape.max_model_len)
        if (kind := kinds.get(replica.gpu_uuid)) is not None:
            traffic.kinds[kind] = traffic.kinds.get(kind, 0) + 1
        engine = engines.get(replica.name)
        unread |= replica.ready_at is not None and (engine is None or not isinstance(engine.running, Reading))
        if engine is not None:
            for end, seconds, rate in _rates(engine):
                since = traffic.known_until.get(engine.replica, replica.ready_at or seen.at)
                begin = max(end - seconds, since)
                if end > begin:
                    traffic.spans.append((begin, end, rate * (end - begin)))
                    traffic.known_until[engine.replica] = end
            if engine.windows:
                _weigh(traffic, engine.windows[0], elapsed)
    traffic.unread += elapsed if unread else 0.0


def _rates(engine: EngineSeen) -> Iterator[tuple[float, float, float]]:
    """(end, seconds, requests a second) of the gaps that are known, oldest first; else of the shortest window."""
    gaps = [
        (float(gap.arrivals.at), float(gap.seconds), gap.arrivals.value)
        for gap in engine.gaps
        if isinstance(gap.arrivals, Reading)
    ]
    if gaps:
        yield from sorted(gaps)
    elif engine.windows and isinstance(arrivals := engine.windows[0].arrivals, Reading):
        yield float(arrivals.at), float(engine.windows[0].seconds), arrivals.value


def _weigh(traffic: _Traffic, window: EngineWindow, elapsed: float) -> None:
    """Means of a tick count by the requests that finished in the time since the tick before."""
    finished, inputs, outputs = window.finished, window.input_mean, window.output_mean
    if isinstance(finished, Reading) and isinstance(inputs, Reading) and isinstance(outputs, Reading):
        count = finished.value * elapsed
        traffic.finished += count
        traffic.input_tokens += count * inputs.value
        traffic.output_tokens += count * outputs.value


def _requests(traffic: _Traffic, began: float, longest: int, chance: Random) -> Iterator[RecordedRequest]:
    """As many as were counted: what a gap has beyond whole requests goes to the next one."""
    times, owed = [], 0.0
    for begin, end, count in sorted(traffic.spans):
        begin = max(begin, began)
        owed += count if end > begin else 0.0
        whole = int(owed)
        owed -= whole
        times += [begin + (end - begin) * chance.random() for _ in range(whole)]
    drawn = _lengths(traffic, longest).draw(chance)
    for at in sorted(times):
        request = next(drawn)
        yield RecordedRequest(
            input_tokens=request.input_tokens, output_tokens=request.output_tokens, arrival_time=Seconds(at - began)
        )


def _lengths(traffic: _Traffic, longest: int) -> Lengths:
    """The measured means, or the declared ones where no length was measured."""
    declared, count = traffic.serving.lengths, traffic.finished
    return Lengths(
        input_mean=max(1.0, traffic.input_tokens / count if count > 0.0 else declared.input_mean),
        output_mean=max(1.0, traffic.output_tokens / count if count > 0.0 else declared.output_mean),
        input_cv=declared.input_cv,
        output_cv=declared.output_cv,
        total_limit=longest,
    )
