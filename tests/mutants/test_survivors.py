"""What SURVIVORS.md explains is still there to be explained, and a change is what it says."""

from __future__ import annotations

import ast
from pathlib import Path

import gpupack

from .explained import explained
from .variants import Variant, variants

DECIDE = Path(gpupack.__file__).parent / "decide"
SOURCE = '''
LIMITS = (least, most)

class Tank:
    def is_low(self, held: int = 3) -> bool:
        """Below 5."""
        assert held >= 0
        return held < 5 and not self.filling
'''


def the_changes() -> list[Variant]:
    return list(variants("tank", SOURCE))


def test_every_change_that_is_explained_can_still_be_made() -> None:
    told = explained()
    modules = sorted({module for module, _, _, _ in told})
    made = {
        (each.module, each.place, each.old, each.new)
        for module in modules
        for each in variants(module, (DECIDE / f"{module}.py").read_text())
    }
    assert not told - made


def test_operators_conditions_numbers_and_members_of_tuples_are_changed_and_what_only_reads_or_checks_is_not() -> None:
    assert [(each.place, each.old, each.new) for each in the_changes()] == [
        ("LIMITS", "(least, most)", "(most,)"),
        ("LIMITS", "(least, most)", "(least,)"),
        ("Tank.is_low", "held < 5 and (not self.filling)", "held < 5 or not self.filling"),
        ("Tank.is_low", "held < 5 and (not self.filling)", "not self.filling"),
        ("Tank.is_low", "held < 5 and (not self.filling)", "held < 5"),
        ("Tank.is_low", "held < 5", "held <= 5"),
        ("Tank.is_low", "held < 5", "held < 6"),
        ("Tank.is_low", "not self.filling", "self.filling"),
    ]


def test_a_change_is_made_in_one_place_and_the_rest_stays() -> None:
    change = next(each for each in the_changes() if each.new == "held <= 5")
    assert ast.unparse(change.mutated()).endswith("return held <= 5 and (not self.filling)")
    assert list(change.lines) == [8]
    assert ast.unparse(change.definition).endswith("return held < 5 and (not self.filling)")
