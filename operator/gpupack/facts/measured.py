"""What a sweep over batch limits has brought so far: points, limits that could not be measured, and what fits them."""

from __future__ import annotations

from dataclasses import dataclass

from gpupack.facts.serving import ProfilePoint
from gpupack.units import Ratio, Seconds


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """Coefficients that meet the points, and how far they miss each: predicted over measured, less 1; `error` at most.

    `seconds_per_step` is host and GPU together, beside what reading and computing take.
    """

    seconds_per_step: Seconds
    host_seconds_per_sequence: Seconds
    kv_read_efficiency: Ratio
    misses: tuple[tuple[Ratio, Ratio], ...]
    error: Ratio
