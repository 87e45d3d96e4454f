"""Load reaches the engines that serve, as a router or closed-loop clients would deal it."""

from __future__ import annotations

from random import Random

import pytest

from gpupack.errors import Invalid
from gpupack.node.load import Dealer, Load, Reachable, Router, Tap
from gpupack.twin.arrivals import Lengths, Request

LENGTHS = Lengths(input_mean=100, output_mean=50, input_cv=0.5, output_cv=0.5)


class Rack:
    """Engines that only take, and count what they have."""

    def __init__(self, count: int, longest: int = 4096) -> None:
        self.taken: list[list[tuple[float, Request]]] = [[] for _ in range(count)]
        self.taps = [Tap(longest) for _ in range(count)]
        self.engines = [
            Reachable(tap, lambda taken=taken: len(taken))  # type: ignore[misc]
            for tap, taken in zip(self.taps, self.taken, strict=True)
        ]

    def take(self, now: float) -> None:
        for tap, taken in zip(self.taps, self.taken, strict=True):
            taken += tap.take(now, len(taken))


def _dealer(rack: Rack) -> Dealer:
    return Dealer(lambda _target: rack.engines, Random(1))


def test_an_open_load_comes_at_its_rate_and_changes_when_it_should() -> None:
    rack = Rack(1)
    dealer = _dealer(rack)
    dealer.set(Load(target="ns/s", lengths=LENGTHS, rates=((0.0, 50.0), (10.0, 5.0))), now=100.0)
    dealer.deal(120.0)
    rack.take(120.0)
    times = [at for at, _ in rack.taken[0]]
    assert 430 <= sum(at <= 110.0 for at in times) <= 570
    assert 25 <= sum(at > 110.0 for at in times) <= 80
    assert times == sorted(times)


def test_the_least_loaded_engine_gets_the_next_request() -> None:
    rack = Rack(3)
    rack.taken[0] += [(0.0, Request(input_tokens=1, output_tokens=1))] * 30
    dealer = _dealer(rack)
    dealer.set(Load(target="ns/s", lengths=LENGTHS, rates=((0.0, 100.0),)), now=0.0)
    dealer.deal(0.5)
    assert rack.taps[0].dealt == 0
    assert abs(rack.taps[1].dealt - rack.taps[2].dealt) <= 1


def test_random_connections_reach_all_engines_however_loaded() -> None:
    rack = Rack(2)
    rack.taken[0] += [(0.0, Request(input_tokens=1, output_tokens=1))] * 300
    dealer = _dealer(rack)
    dealer.set(Load(target="ns/s", lengths=LENGTHS, rates=((0.0, 100.0),), router=Router.RANDOM), now=0.0)
    dealer.deal(2.0)
    assert rack.taps[0].dealt > 60


def test_closed_loop_clients_are_shared_out_and_move_when_an_engine_comes_or_goes() -> None:
    rack = Rack(3)
    dealer = _dealer(rack)
    dealer.set(Load(target="ns/s", lengths=LENGTHS, concurrency=10), now=0.0)
    third = rack.engines.pop()
    dealer.deal(1.0)
    rack.take(1.0)
    assert [len(taken) for taken in rack.taken] == [5, 5, 0]
    rack.engines.append(third)
    for taken in rack.taken:
        taken.clear()
    dealer.deal(2.0)
    rack.take(2.0)
    assert [len(taken) for taken in rack.taken] == [4, 3, 3]
    dealer.clear("ns/s", 3.0)
    for taken in rack.taken:
        taken.clear()
    rack.take(3.0)
    assert rack.taken == [[], [], []]


def test_requests_for_which_nobody_is_ready_are_counted() -> None:
    rack = Rack(0)
    dealer = _dealer(rack)
    dealer.set(Load(target="ns/s", lengths=LENGTHS, rates=((0.0, 10.0),)), now=0.0)
    dealer.deal(10.0)
    dealt, unrouted = dealer.counts("ns/s")
    assert dealt == 0
    assert 60 <= unrouted <= 140


def test_no_request_is_longer_than_its_engine_takes() -> None:
    rack = Rack(1, longest=64)
    dealer = _dealer(rack)
    dealer.set(Load(target="ns/s", lengths=LENGTHS, rates=((0.0, 100.0),)), now=0.0)
    dealer.deal(3.0)
    rack.take(3.0)
    dealer.set(Load(target="ns/s", lengths=LENGTHS, concurrency=300), now=3.0)
    dealer.deal(4.0)
    rack.take(4.0)
    assert len(rack.taken[0]) >= 300
    assert all(request.input_tokens + request.output_tokens <= 64 for _, request in rack.taken[0])
    assert all(request.output_tokens >= 1 for _, request in rack.taken[0])


def test_a_load_is_either_a_rate_or_a_number_of_clients() -> None:
    for wrong in ({}, {"rates": ((0.0, 1.0),), "concurrency": 3}, {"concurrency": -1}):
        with pytest.raises(Invalid):
            Load(target="ns/s", lengths=LENGTHS, **wrong)
