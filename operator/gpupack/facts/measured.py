"""What a sweep over batch limits has brought so far: points, and limits that could not be measured."""

from __future__ import annotations

from dataclasses import dataclass

from gpupack.facts.serving import ProfilePoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A batch limit that could not be measured: how often it was tried and what was said the last time."""

    max_num_seqs: int
    attempts: int
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """`confirmed` is the run of an engine that had the chosen limit as its own; `unconfirmed` why there is none yet."""

    points: tuple[ProfilePoint, ...] = ()
    failures: tuple[Failure, ...] = ()
    confirmed: ProfilePoint | None = None
    unconfirmed: Failure | None = None
