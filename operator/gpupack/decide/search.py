"""The search for the best (batch limit, replicas), coarse to fine: within two per cent of looking at every pair.

Knows which candidates are admitted and what they are worth; why one is not admitted is `candidates`' business.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpupack.decide.candidates import Candidates, given, predicted
from gpupack.decide.question import Question
from gpupack.plan import Reason, Unit, Verdict

# Every batch limit that is worth a thought, about 3 % apart, and the few of them that are looked at first.
BATCHES: tuple[int, ...] = (*range(1, 64), *range(64, 128, 2), *range(128, 256, 4), *range(256, 1025, 8))
LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024)
_STRIDES = (8, 1)
# Among batches whose goodput differs by less than this the smallest is taken: less KV memory, less latency.
_TIE = 0.01
# Counts whose worth after the coarse pass is below this share of the best one are not looked at more closely.
_NEAR = 0.85
# Counts whose batches are compared by the load that keeps a promised TTFT; each costs some ten milliseconds.
_FINALISTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A shape and count that was not chosen, and one objection to it."""

    max_num_seqs: int
    replicas: int
    verdict: Verdict


class Search(Candidates):
    """The candidates of one question with how many engines of each batch limit pay."""

    def __init__(self, question: Question) -> None:
        super().__init__(question)
        self._walks: dict[int, int] = {}

    def walk(self, batch: int) -> int:
        """How many engines of this batch limit pay on one GPU; 0 if not even one may run."""
        replicas = self._walks.get(batch)
        if replicas is None:
            replicas = 0
            while next(self.objections(batch, replicas + 1), None) is None:
                replicas += 1
            self._walks[batch] = replicas
        return replicas

    def best(self) -> tuple[int, int] | None:
        """The batch limit and count of the most worth, or None if no batch may run at all.

        Coarse to fine: a ladder of batches, then the neighbourhood of the best batch of every count that is near.
        """
        fixed = self.question.batching.fixed
        for batch in LADDER if fixed is None else (fixed,):
            self.walk(batch)
        if fixed is None:
            # Saturation falls with the batch where the host is slow: a count may pay only near the largest batch.
            for replicas in range(1, max(self._walks.values()) + 2):
                self.walk(self._largest(replicas))
            for stride in _STRIDES:
                counts = range(1, max(self._walks.values()) + 1)
                worths = {replicas: self.worth(self._best_batch(replicas), replicas) for replicas in counts}
                for replicas, worth in worths.items():
                    if worth >= _NEAR * max(worths.values()):
                        self._climb(replicas, stride)
        most = max(self._walks.values())
        if most == 0:
            return None
        ranked = sorted(range(1, most + 1), key=lambda each: self.worth(self._best_batch(each), each), reverse=True)
        replicas = ranked[0] if self.slo.ttft is None else max(ranked[:_FINALISTS], key=self._worth_under_load)
        enough = (1.0 - _TIE) * self.capacity(self._best_batch(replicas), replicas)
        batch = min(each for each in self._admitted(replicas) if self.capacity(each, replicas) >= enough)
        return batch, self.walk(batch)

    def worth(self, batch: int, replicas: int) -> float:
        """Capacity, discounted so that of two counts the larger wins only if each added replica pays its least gain."""
        return self.capacity(batch, replicas) * self._discount(replicas)

    def _worth_under_load(self, replicas: int) -> float:
        """The same by the load that keeps a promised TTFT, at the batch of the most capacity for this count.

        Within one count more capacity never allows less load, so the batch needs no second search.
        """
        return self.load(self._best_batch(replicas), replicas)[1].total_tokens_per_second * self._discount(replicas)

    def _discount(self, replicas: int) -> float:
        return float((1.0 + self.question.policy.least_marginal_gain) ** -replicas)

    def _admitted(self, replicas: int) -> list[int]:
        return [batch for batch, most in self._walks.items() if most >= replicas]

    def _best_batch(self, replicas: int) -> int:
        return max(self._admitted(replicas), key=lambda batch: (self.capacity(batch, replicas), -batch))

    def _largest(self, replicas: int) -> int:
        """The largest batch at which so many engines have room and keep the SLO; both only get worse with the batch."""
        low, high = 0, len(BATCHES)
        while high - low > 1:
            middle = (low + high) // 2
            batch = BATCHES[middle]
            if self.no_room(batch, replicas) or self._itl_broken(batch, replicas):
                high = middle
            else:
                low = middle
        return BATCHES[low]

    def _climb(self, replicas: int, stride: int) -> None:
        """Look at every `stride`-th batch on both sides of the best one for as long as capacity rises."""
        start = BATCHES.index(self._best_batch(replicas))
        for direction in (stride, -stride):
            best = self.capacity(BATCHES[start], replicas)
            for place in range(start + direction, len(BATCHES) if direction > 0 else -1, direction):
                if self.walk(BATCHES[place]) < replicas:
                    break
                capacity = self.capacity(BATCHES[place], replicas)
                if capacity < best:
                    break
                best = capacity

    def rejections(self, batch: int, replicas: int) -> tuple[Rejected, ...]:
        """What was not chosen and why: one engine more, a larger batch, and the best shapes of other counts."""
        rejected = [
            Rejected(max_num_seqs=batch, replicas=replicas + 1, verdict=verdict)
            for verdict in self.objections(batch, replicas + 1)
        ]
        larger = min((each for each in self._walks if each > batch), default=None)
        if larger is not None and self.walk(larger) < replicas:
            most = self.walk(larger)
            rejected.extend(
                Rejected(max_num_seqs=larger, replicas=most + 1, verdict=verdict)
                for verdict in self.objections(larger, most + 1)
            )
        others = {1, replicas - 1, replicas + 1} - {0, replicas}
        rejected.extend(
            self._outdone(self._best_batch(other), other, batch, replicas)
            for other in sorted(others)
            if other <= max(self._walks.values())
        )
        return tuple(rejected)

    def _outdone(self, batch: int, replicas: int, chosen_batch: int, chosen: int) -> Rejected:
        """The best shape of another count brings too little for its replicas, or too much less with fewer of them."""
        gain = self.capacity(batch, replicas) / self.capacity(chosen_batch, chosen) - 1.0
        least = (1.0 + self.question.policy.least_marginal_gain) ** (replicas - chosen) - 1.0
        verdict = self._verdict(
            Reason.MARGINAL_GAIN,
            predicted(gain, self.full(batch, replicas)),
            given(least),
            Unit.RATIO,
            at_least=True,
            detail=f"against batch {chosen_batch} x {chosen}",
        )
        return Rejected(max_num_seqs=batch, replicas=replicas, verdict=verdict)
