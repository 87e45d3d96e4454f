"""Whose a GPU's DRAM activity is: by bytes, else by tokens of one model, else nobody knows."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpupack.facts.interpretation import Known
from gpupack.facts.observation import Cause, Missing
from gpupack.facts.share import Mover, apportion
from gpupack.units import Ratio

GONE = Missing(cause=Cause.STALE, origin="s")


def mover(replica: str, read_bytes: Known, tokens: Known = GONE, model: str = "m") -> Mover:
    return Mover(replica=replica, model=model, read_bytes=read_bytes, tokens=tokens)


def test_bytes_divide_a_device_and_tokens_are_not_asked() -> None:
    found = apportion(0.8, [mover("a", 3e9, 1.0), mover("b", 1e9, 1e6, model="other")])
    assert found == {"a": pytest.approx(0.6), "b": pytest.approx(0.2)}


def test_tokens_divide_it_among_engines_of_one_model() -> None:
    assert apportion(0.6, [mover("a", GONE, 200.0), mover("b", 1e9, 100.0)]) == {
        "a": pytest.approx(0.4), "b": pytest.approx(0.2),
    }  # fmt: skip


def test_a_token_of_another_model_is_another_number_of_bytes() -> None:
    found = apportion(0.6, [mover("a", GONE, 200.0), mover("b", GONE, 100.0, model="other")])
    assert all(isinstance(each, Missing) for each in found.values())


def test_who_cannot_be_told_apart_has_no_share_which_is_not_zero() -> None:
    found = apportion(0.6, [mover("a", 1e9, 5.0), mover("b", GONE, GONE)])
    assert all(isinstance(each, Missing) for each in found.values())
    assert apportion(GONE, [mover("a", 1e9)]) == {"a": GONE}


def test_activity_that_no_engine_owns_up_to_is_nobodys_and_an_idle_device_is_everybodys_zero() -> None:
    assert all(isinstance(each, Missing) for each in apportion(0.3, [mover("a", 0.0)]).values())
    assert apportion(0.0, [mover("a", 0.0), mover("b", 0.0)]) == {"a": Ratio(0.0), "b": Ratio(0.0)}


@example(device=0.5, rates=[5e-324])  # half of the least number there is would be none
@given(device=st.floats(0, 1), rates=st.lists(st.floats(0, 1e13), min_size=1, max_size=8))
def test_shares_never_sum_to_more_than_the_device(device: float, rates: list[float]) -> None:
    found = apportion(device, [mover(str(number), rate) for number, rate in enumerate(rates)])
    shares = [each for each in found.values() if not isinstance(each, Missing)]
    assert not shares or math.isclose(sum(shares), device, rel_tol=1e-9, abs_tol=1e-12)
