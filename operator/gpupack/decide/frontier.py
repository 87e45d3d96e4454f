"""The Pareto set of (batch, replicas): no other pair brings more tokens a second at no more latency.

Every engine is kept full. The SLO chooses one point of it; where it lies shows what a looser promise would buy.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpupack.decide.question import Question
from gpupack.decide.search import LADDER, Search
from gpupack.perf import sharing
from gpupack.perf.prediction import GpuPrediction
from gpupack.units import Seconds

_MOST_REPLICAS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One pair that fits. `itl` is in the statistic of the SLO; `best` marks the Pareto set."""

    max_num_seqs: int
    replicas: int
    itl: Seconds
    prediction: GpuPrediction
    keeps_slo: bool
    best: bool


def points(question: Question) -> tuple[Point, ...]:
    """Every pair of the ladder of batches that fits on the GPU, by rising latency; the Pareto set is marked."""
    search = Search(question)
    statistic = search.slo.statistic
    pairs = []
    for batch in LADDER:
        for replicas in range(1, _MOST_REPLICAS + 1):
            if search.no_room(batch, replicas) is not None:
                break
            prediction = search.full(batch, replicas)
            itl, _ = sharing.statistic_of(prediction.groups[0], statistic)
            pairs.append((itl, batch, replicas, prediction))
    pairs.sort(key=lambda pair: (pair[0], -pair[3].total_tokens_per_second, pair[1], pair[2]))
    found = []
    most = 0.0
    for itl, batch, replicas, prediction in pairs:
        best = prediction.total_tokens_per_second > most
        most = max(most, prediction.total_tokens_per_second)
        found.append(
            Point(
                max_num_seqs=batch,
                replicas=replicas,
                itl=itl,
                prediction=prediction,
                keeps_slo=search.slo.itl is None or itl <= search.slo.itl,
                best=best,
            )
        )
    return tuple(found)
