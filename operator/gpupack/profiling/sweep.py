"""Which batch limit is measured next, and when enough is known. Pure: the same results give the same next step.

One engine, started at the largest limit, is put under rising numbers of clients; a number of clients that are always
served stands for that batch limit. The limit that the results choose is then confirmed by an engine that has it as its
own. Everything that a sweep knows is in its results, so it can end anywhere and go on from what was written down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpupack.decide.knee import REFERENCE_BATCH, measured_knee
from gpupack.facts.measured import Failure, Results
from gpupack.facts.serving import ProfilePoint
from gpupack.units import Ratio, Seconds

LARGEST = 256
ATTEMPTS = 2
"""A point that failed is tried once more: the first time may have been chance."""
PLATEAU = 0.05
"""A doubled batch that brings less than this is not worth its latency; two of them in a row end the sweep."""
SLO_FACTOR = 2.0
MIN_EFFICIENCY = Ratio(0.1)
"""Of the chosen limit: the defaults of `gpupack advise` for a measured profile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run to make: so many clients on an engine of that batch limit."""

    clients: int
    engine_limit: int
    confirms: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Where a sweep stands: runs that are settled (measured or given up) of how many, the next one, the choice so far.

    `next` None: nothing is left. `chosen` None: not one point was measured. `plateau`: larger limits were left out.
    """

    settled: int
    runs: int
    next: Run | None
    chosen: int | None
    plateau: bool


def ladder(largest: int = LARGEST) -> tuple[int, ...]:
    """1, 2, 4, ... and the largest itself: the published sweeps' steps, which hold 1 and 32."""
    limits = [1]
    while limits[-1] * 2 <= largest:
        limits.append(limits[-1] * 2)
    return tuple(limits) if limits[-1] == largest else (*limits, largest)


def course(limits: Sequence[int], results: Results, *, confirms: bool = True) -> Course:
    """`limits` rise. `confirms`: whether the engine can be started again with the chosen limit."""
    points = {point.max_num_seqs: point for point in results.points}
    given_up = {each.max_num_seqs for each in results.failures if each.attempts >= ATTEMPTS}
    plateau = _is_flat([points[limit] for limit in limits if limit in points])
    open_limits = [limit for limit in limits if limit not in points and limit not in given_up]
    if plateau:
        reached = max(points)
        open_limits = [limit for limit in open_limits if limit < reached]
    if len(given_up) >= ATTEMPTS:  # what fails at two sizes will fail at the next
        open_limits = [limit for limit in open_limits if limit < max(given_up)]
    tried = sum(limit in points or limit in given_up for limit in limits)
    chosen = choice(results.points) if points else None
    if open_limits:
        run = Run(clients=open_limits[0], engine_limit=max(limits))
        return Course(
            settled=tried, runs=tried + len(open_limits) + confirms, next=run, chosen=chosen, plateau=plateau
        )  # fmt: skip
    refused = results.unconfirmed is not None and results.unconfirmed.attempts >= ATTEMPTS
    wanted = confirms and chosen is not None and results.confirmed is None and not refused
    settles = confirms and (results.confirmed is not None or refused)
    return Course(
        settled=tried + settles,
        runs=tried + settles + wanted,
        next=Run(clients=chosen, engine_limit=chosen, confirms=True) if wanted and chosen is not None else None,
        chosen=chosen,
        plateau=plateau,
    )


def choice(points: Sequence[ProfilePoint]) -> int:
    """BCA's batch limit by these points: the SLO is twice the latency at batch 32, or at the nearest below it.

    Without a run at batch limit 1, to which efficiency relates, the limit of the most throughput within that SLO.
    """
    ordered = sorted(points, key=lambda point: point.max_num_seqs)
    below = [point for point in ordered if point.max_num_seqs <= REFERENCE_BATCH]
    slo = Seconds(SLO_FACTOR * (below[-1] if below else ordered[0]).itl_mean)
    if ordered[0].max_num_seqs == 1:
        knee = measured_knee(ordered, slo_factor=SLO_FACTOR, slo=slo, min_efficiency=MIN_EFFICIENCY)
        return knee.max_num_seqs
    within = [point for point in ordered if point.itl_mean <= slo]
    return max(within, key=lambda point: (point.total_tokens_per_second, -point.max_num_seqs)).max_num_seqs


def added(results: Results, run: Run, outcome: ProfilePoint | str) -> Results:
    """The results with the outcome of a run: a point, or what went wrong."""
    if isinstance(outcome, str):
        before = results.unconfirmed if run.confirms else _failure(results, run.clients)
        attempts = 1 if before is None else before.attempts + 1
        failure = Failure(max_num_seqs=run.clients, attempts=attempts, problem=outcome)
        others = tuple(each for each in results.failures if each.max_num_seqs != run.clients)
        return Results(
            points=results.points,
            failures=results.failures if run.confirms else (*others, failure),
            confirmed=results.confirmed,
            unconfirmed=failure if run.confirms else results.unconfirmed,
        )
    if run.confirms:
        return Results(points=results.points, failures=results.failures, confirmed=outcome)
    points = sorted((*results.points, outcome), key=lambda point: point.max_num_seqs)
    failures = tuple(each for each in results.failures if each.max_num_seqs != run.clients)
    return Results(points=tuple(points), failures=failures, confirmed=results.confirmed)


def _failure(results: Results, limit: int) -> Failure | None:
    return next((each for each in results.failures if each.max_num_seqs == limit), None)


def _is_flat(points: Sequence[ProfilePoint]) -> bool:
    """Whether the last two steps each brought less than PLATEAU over the best before."""
    tokens = [point.total_tokens_per_second for point in points]
    return len(tokens) > 2 and all(
        tokens[index] < (1.0 + PLATEAU) * max(tokens[:index]) for index in (len(tokens) - 1, len(tokens) - 2)
    )
