"""One GPU cut into MIG slices of one profile, an engine on each: which profile serves a model best.

Knows slices of one size only and does not cut anything; whether MPS on the whole GPU does more is for the caller to
compare. A slice's bandwidth is its own: no neighbour takes of it, and what it leaves idle nobody else can use.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gpupack.decide.advise import Advice, advise
from gpupack.decide.question import Question
from gpupack.facts.gpu import MigProfile
from gpupack.facts.serving import Sharing, Slo


@dataclass(frozen=True, slots=True, kw_only=True)
class Slicing:
    """`advice` is of the one engine on each of `slices` slices."""

    profile: MigProfile
    advice: Advice
    slices: int

    @property
    def keeps_slo(self) -> bool:
        return self.advice.fits and self.advice.unreachable is None

    @property
    def total_tokens_per_second(self) -> float:
        """Of all slices together, within the SLO; 0 where it is out of reach or nothing fits."""
        return self.slices * self.advice.prediction.total_tokens_per_second if self.keeps_slo else 0.0


def slicings(question: Question, slo: Slo, profiles: tuple[MigProfile, ...]) -> tuple[Slicing, ...]:
    """The whole GPU's question put to each of its profiles, with the same promise, in the order of the profiles."""
    return tuple(
        Slicing(
            profile=each,
            advice=advise(replace(question, gpu=each.kind, sharing=Sharing.EXCLUSIVE, slo=slo)),
            slices=each.most if question.max_replicas is None else min(each.most, question.max_replicas),
        )
        for each in profiles
    )


def best(found: tuple[Slicing, ...], question: Question) -> Slicing | None:
    """The profile with the most tokens a second where each further engine pays its least gain, the smallest of equals.

    A profile of which one GPU holds a single slice isolates nobody, so it is taken only where no other keeps the
    promise. None where none does.
    """
    least = 1.0 + question.policy.least_marginal_gain
    kept = [each for each in found if each.keeps_slo]
    kept = [each for each in kept if each.slices > 1] or kept
    return max(kept, key=lambda each: each.total_tokens_per_second * least**-each.slices, default=None)
