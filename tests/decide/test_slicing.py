"""MIG profiles against each other: one engine on each slice, and which profile is taken."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpupack import catalog
from gpupack.decide.advise import advise
from gpupack.decide.slicing import Slicing, best, slicings
from gpupack.facts.estimate import Estimate, Source
from gpupack.facts.serving import Sharing
from gpupack.units import PerSecond

from .test_advise import ONE_B, promise

PROFILES = catalog.mig_profiles(ONE_B.gpu)
ADVICE = advise(replace(ONE_B, sharing=Sharing.EXCLUSIVE))
LEAST = 1.0 + ONE_B.policy.least_marginal_gain


def slicing(slices: int, tokens: float, *, fits: bool = True, breaks: bool = False) -> Slicing:
    """So many slices that do so many tokens a second each."""
    out_of_reach = Estimate(value=0.1, low=0.1, high=0.1, source=Source.ANALYTIC)
    prediction = replace(ADVICE.prediction, total_tokens_per_second=PerSecond(tokens))
    advice = replace(ADVICE, prediction=prediction, fits=fits, unreachable=out_of_reach if breaks else None)
    return Slicing(profile=PROFILES[0], advice=advice, slices=slices)


def test_each_profile_is_asked_for_one_engine_a_slice_under_the_promise_of_the_whole_gpu() -> None:
    slo = promise(0.020)
    found = slicings(ONE_B, slo, PROFILES)
    assert [each.profile for each in found] == list(PROFILES)
    assert [each.slices for each in found] == [each.most for each in PROFILES]
    for each in found:
        assert each.advice == advise(replace(ONE_B, gpu=each.profile.kind, sharing=Sharing.EXCLUSIVE, slo=slo))
        assert each.advice.replicas_per_gpu == 1


def test_no_more_slices_are_used_than_replicas_are_asked_for() -> None:
    found = slicings(replace(ONE_B, max_replicas=2), promise(0.020), PROFILES)
    assert [each.slices for each in found] == [min(2, each.most) for each in PROFILES]


def test_what_breaks_the_promise_or_does_not_fit_does_nothing() -> None:
    assert slicing(3, 100.0).total_tokens_per_second == pytest.approx(300.0)
    assert slicing(3, 100.0, fits=False).total_tokens_per_second == 0.0
    assert slicing(3, 100.0, breaks=True).total_tokens_per_second == 0.0


def test_the_profile_with_the_most_tokens_is_taken_where_each_further_engine_pays() -> None:
    two, seven = slicing(2, 700.0), slicing(7, 100.0)
    assert best((slicing(2, 300.0), slicing(3, 300.0)), ONE_B) == slicing(3, 300.0)
    assert best((seven, two), ONE_B) == two
    barely = slicing(3, 2 * 700.0 / 3 * (LEAST - 0.001))
    clearly = slicing(3, 2 * 700.0 / 3 * (LEAST + 0.001))
    assert best((two, barely), ONE_B) == two
    assert best((two, clearly), ONE_B) == clearly


def test_of_equals_the_first_is_taken() -> None:
    one, other = slicing(2, 100.0), replace(slicing(2, 100.0), profile=PROFILES[1])
    assert best((one, other), ONE_B) == one


def test_a_single_slice_is_taken_only_where_no_other_profile_keeps_the_promise() -> None:
    whole, half = slicing(1, 1000.0), slicing(2, 1.0)
    assert best((half, whole), ONE_B) == half
    assert best((replace(half, advice=slicing(2, 1.0, breaks=True).advice), whole), ONE_B) == whole
    assert best((slicing(1, 1.0, breaks=True),), ONE_B) is None
