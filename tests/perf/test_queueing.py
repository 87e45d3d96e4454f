"""The queueing theory agrees with what is known in closed form."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpupack.perf.queueing import Customer, is_exact, slots, stretches

SECONDS = st.floats(1e-4, 1.0)


def test_one_customer_is_never_stretched() -> None:
    assert stretches((Customer(0.003, 0.005, 1),)) == (1.0,)


@given(service=SECONDS, count=st.integers(1, 20))
def test_customers_that_never_think_share_the_station_evenly(service: float, count: int) -> None:
    assert stretches((Customer(0.0, service, count),))[0] == pytest.approx(count)


@given(think=SECONDS, service=SECONDS)
def test_two_customers_meet_as_often_as_the_other_is_there(think: float, service: float) -> None:
    assert stretches((Customer(think, service, 2),))[0] == pytest.approx(1 + service / (think + service))


@given(think=SECONDS, service=SECONDS, count=st.integers(1, 5))
def test_alike_customers_are_one_class(think: float, service: float, count: int) -> None:
    single = stretches(tuple(Customer(think, service, 1) for _ in range(count)))
    assert single == pytest.approx(stretches((Customer(think, service, count),)) * count)


@given(first=st.tuples(SECONDS, SECONDS), second=st.tuples(SECONDS, SECONDS), count=st.integers(1, 6))
def test_the_station_is_never_busier_than_always(
    first: tuple[float, float], second: tuple[float, float], count: int
) -> None:
    customers = (Customer(*first, count), Customer(*second, 1))
    held = sum(
        each.number * each.service / (each.think + each.service * stretch)
        for each, stretch in zip(customers, stretches(customers), strict=True)
    )
    assert 0 < held <= 1 + 1e-9


def test_the_approximation_of_many_unlike_customers_is_within_five_per_cent_of_like_ones() -> None:
    unlike = tuple(Customer(0.002 + 1e-6 * index, 0.004, 1) for index in range(14))
    assert not is_exact(unlike)
    exact = stretches((Customer(0.002, 0.004, 14),))[0]
    assert all(each == pytest.approx(exact, rel=0.05) for each in stretches(unlike))


def test_without_slope_the_slots_are_erlangs() -> None:
    """Constant holding times and c servers: Erlang's C formula."""
    servers, load = 10, 8.0
    found = slots(offered=load, fixed=1.0, slope=1e-12, servers=servers, holding=1.0)
    terms = [load**k / math.factorial(k) for k in range(servers)]
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    assert found is not None
    assert found.waits == pytest.approx(last / (sum(terms) + last), rel=1e-6)
    assert found.mean == pytest.approx(load, rel=1e-6)
    assert found.drain_rate == pytest.approx(servers - load)


def test_more_than_the_slots_can_serve_has_no_steady_state() -> None:
    assert slots(offered=11.0, fixed=1.0, slope=0.0, servers=10, holding=1.0) is None


@given(load=st.floats(0.01, 0.98), slope=st.floats(1e-6, 0.1), servers=st.integers(1, 300))
def test_slots_are_never_more_than_there_are(load: float, slope: float, servers: int) -> None:
    offered = load * servers / (1 + slope * servers)
    found = slots(offered=offered, fixed=1.0, slope=slope, servers=servers, holding=100.0)
    assert found is not None
    assert found.utilization == pytest.approx(load)
    assert 0 < found.mean <= servers * (1 + 1e-9)
    assert 0 <= found.waits <= 1 + 1e-9
    assert found.drain_rate > 0
