"""Each way of breaking the decision is noticed by the rules of the simulation, which the real decision keeps."""

from __future__ import annotations

import pytest

from gpupack.soak.play import play

from .mutants import MUTANTS, AnchorGone, Mutant, Rewrite, mutated, rewritten

NAMED = pytest.mark.parametrize("mutant", MUTANTS, ids=[each.name for each in MUTANTS])


@NAMED
def test_the_simulation_has_nothing_against_the_real_decision(mutant: Mutant) -> None:
    assert play(mutant.history).violation is None


@NAMED
def test_the_simulation_notices_the_mutant(mutant: Mutant) -> None:
    with mutated(mutant) as reconcile:
        violation = play(mutant.history, reconcile=reconcile).violation
    assert violation is not None, f"nobody noticed that {mutant.breaks}"
    assert violation.rule == mutant.rule, violation.message


def test_there_are_ten_of_them() -> None:
    assert len({each.name for each in MUTANTS}) == 10


def test_a_mutant_whose_anchor_is_gone_fails_loudly() -> None:
    gone = Rewrite(module="steps", old="no such line", new="")
    mutant = Mutant(name="gone", breaks="nothing", rule="", rewrites=(gone,), history=MUTANTS[0].history)
    with pytest.raises(AnchorGone, match="stands 0 times"):
        rewritten(mutant)
