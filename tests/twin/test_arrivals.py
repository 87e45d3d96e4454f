"""What lengths and arrival processes promise."""

from __future__ import annotations

import itertools
import math
import random
import statistics

import pytest

from gpupack.errors import Invalid
from gpupack.twin.arrivals import ClosedLoop, Lengths, Listed, PoissonArrivals, Request, Shape

ONE = Request(input_tokens=8, output_tokens=8)


@pytest.mark.parametrize("shape", list(Shape))
@pytest.mark.parametrize("cv", [0.0, 0.5, 0.93])
def test_drawn_lengths_have_the_mean_and_the_spread_that_were_asked_for(shape: Shape, cv: float) -> None:
    lengths = Lengths(input_mean=110.6, output_mean=292.4, input_cv=cv, output_cv=cv, shape=shape)
    drawn = list(itertools.islice(lengths.draw(random.Random(1)), 20_000))
    outputs = [request.output_tokens for request in drawn]
    assert statistics.mean(request.input_tokens for request in drawn) == pytest.approx(110.6, rel=0.03)
    assert statistics.mean(outputs) == pytest.approx(292.4, rel=0.03)
    assert statistics.pstdev(outputs) == pytest.approx(cv * 292.4, rel=0.06, abs=1.0)


def test_cut_lengths_keep_the_mean_and_the_limits() -> None:
    lengths = Lengths(
        input_mean=110.6, output_mean=292.4, input_cv=1.0, output_cv=0.93, input_limit=400, total_limit=900
    )
    drawn = list(itertools.islice(lengths.draw(random.Random(1)), 20_000))
    assert max(request.input_tokens for request in drawn) <= 400
    assert max(request.input_tokens + request.output_tokens for request in drawn) <= 900
    assert statistics.mean(request.input_tokens for request in drawn) == pytest.approx(110.6, rel=0.03)
    assert statistics.mean(request.output_tokens for request in drawn) == pytest.approx(292.4, rel=0.03)


def test_the_same_generator_draws_the_same_world() -> None:
    lengths = Lengths(input_mean=50, output_mean=70, input_cv=1.0, output_cv=1.0)
    one, other = (list(itertools.islice(lengths.draw(random.Random(7)), 100)) for _ in range(2))
    assert one == other


@pytest.mark.parametrize("wrong", [{"input_mean": 0.5}, {"output_cv": -1.0}, {"input_limit": 0}])
def test_lengths_that_cannot_be_drawn_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(Invalid):
        Lengths(**{"input_mean": 8, "output_mean": 8, **wrong})  # type: ignore[arg-type]


def test_a_list_gives_each_request_once_and_in_order_of_time() -> None:
    source = Listed([(2.0, ONE), (1.0, ONE)])
    assert source.next_at() == 1.0
    assert [at for at, _ in source.take(1.5, 0)] == [1.0]
    assert [at for at, _ in source.take(5.0, 0)] == [2.0]
    assert source.next_at() == math.inf
    assert source.take(9.0, 0) == []


def test_poisson_arrivals_follow_a_rate_that_changes_at_known_times() -> None:
    source = PoissonArrivals(
        rates=[(0.0, 20.0), (100.0, 0.0), (200.0, 60.0)], requests=itertools.repeat(ONE), chance=random.Random(3)
    )
    times = [at for at, _ in source.take(300.0, 0)]
    assert times == sorted(times)
    assert len([at for at in times if at < 100.0]) == pytest.approx(2000, rel=0.08)
    assert not [at for at in times if 100.0 <= at < 200.0]
    assert len([at for at in times if at >= 200.0]) == pytest.approx(6000, rel=0.05)
    gaps = [b - a for a, b in itertools.pairwise(at for at in times if at < 100.0)]
    assert statistics.pstdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.1)


def test_a_closed_loop_keeps_its_clients_in_flight() -> None:
    source = ClosedLoop(concurrency=5, requests=itertools.repeat(ONE), since=1.0)
    assert source.next_at() == 1.0
    assert source.take(0.5, 0) == []
    assert len(source.take(1.0, 0)) == 5
    assert source.take(2.0, 5) == []
    assert len(source.take(3.0, 3)) == 2
    source.become(8, itertools.repeat(ONE), 4.0)
    assert source.next_at() == 4.0
    assert len(source.take(4.0, 5)) == 3
