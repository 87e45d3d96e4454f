"""Engines that take turns on one GPU, and requests that wait for a slot: the queueing theory, without any GPU in it.

Knows closed networks of one shared station and private delays, and one birth-death queue. What a customer or a
station stands for is the caller's business.
"""

from __future__ import annotations

import math
from itertools import product
from typing import NamedTuple

# States of the exact recursion up to which it is taken: eleven engines, each unlike the others, are 2048.
_EXACT_STATES = 2048


class Customer(NamedTuple):
    """`number` alike customers that spend `think` seconds alone and then need `service` seconds of the station."""

    think: float
    service: float
    number: int


def is_exact(customers: tuple[Customer, ...]) -> bool:
    """Whether `stretches` answers these customers by the exact recursion."""
    return math.prod(each.number + 1 for each in _merged(customers)) <= _EXACT_STATES


def stretches(customers: tuple[Customer, ...]) -> tuple[float, ...]:
    """How many times its service each customer's visit at the shared station takes: 1 alone, more among others.

    Exact mean value analysis of a closed network with one processor-sharing station (Reiser and Lavenberg): a visit
    takes service x (1 + customers met), and who arrives meets the network as it is without itself. Alike customers are
    one class. Too many unlike ones are answered by the Bard-Schweitzer approximation, a few per cent off.
    """
    merged = _merged(customers)
    answer = _exact(merged) if is_exact(customers) else _approximate(merged)
    return tuple(answer[(each.think, each.service)] for each in customers)


class Slots(NamedTuple):
    """A steady state of requests in slots: mean and standard deviation of those running, and the wait for a slot."""

    mean: float
    deviation: float
    waits: float
    drain_rate: float
    utilization: float


def slots(offered: float, fixed: float, slope: float, servers: float, holding: float) -> Slots | None:
    """Poisson arrivals that hold one of `servers` slots for `holding` x (fixed + slope x running) seconds each.

    `offered` is arrivals a second times `holding`. The stationary distribution is a negative binomial up to the number
    of slots and geometric beyond. None if more arrives than can be served. `waits` is the share of arrivals that find
    every slot taken, `drain_rate` how many requests a second full slots gain on the arrivals.
    """
    full = fixed + slope * servers
    utilization = offered * full / servers
    if utilization >= 1:
        return None
    growth = offered * slope
    mean = offered * (fixed + slope) / (1 - growth)
    deviation = math.sqrt(mean / (1 - growth))
    drain = (servers / full - offered) / holding
    if servers > mean + 9 * deviation + 9:
        return Slots(mean, deviation, 0.0, drain, utilization)
    weight, below, first, second = 1.0, 0.0, 0.0, 0.0
    most = max(1, round(servers))
    for running in range(most, max(0, int(mean - 9 * deviation)) - 1, -1):
        below += weight
        first += weight * running
        second += weight * running * running
        weight *= running / (offered * (fixed + slope * running))
    above = utilization / (1 - utilization)
    total = below + above
    mean = (first + most * above) / total
    spread = (second + most * most * above) / total - mean * mean
    return Slots(mean, math.sqrt(max(0.0, spread)), (1 + above) / total, drain, utilization)


def _merged(customers: tuple[Customer, ...]) -> tuple[Customer, ...]:
    counts: dict[tuple[float, float], int] = {}
    for each in customers:
        key = (each.think, each.service)
        counts[key] = counts.get(key, 0) + each.number
    return tuple(Customer(think, service, count) for (think, service), count in counts.items())


def _exact(classes: tuple[Customer, ...]) -> dict[tuple[float, float], float]:
    met: dict[tuple[int, ...], float] = {}
    full = tuple(each.number for each in classes)
    for state in product(*(range(count + 1) for count in full)):
        queue = 0.0
        for index, each in enumerate(classes):
            if state[index]:
                without = (*state[:index], state[index] - 1, *state[index + 1 :])
                visit = each.service * (1 + met[without])
                queue += state[index] * visit / (each.think + visit)
        met[state] = queue
    return {
        (each.think, each.service): 1 + met[(*full[:index], full[index] - 1, *full[index + 1 :])]
        for index, each in enumerate(classes)
    }


def _approximate(classes: tuple[Customer, ...]) -> dict[tuple[float, float], float]:
    queues = [each.number / 2 for each in classes]
    stretched = [1.0] * len(classes)
    for _ in range(200):
        total = sum(queues)
        stretched = [1 + total - queue / each.number for queue, each in zip(queues, classes, strict=True)]
        fresh = [
            each.number * each.service * stretch / (each.think + each.service * stretch)
            for each, stretch in zip(classes, stretched, strict=True)
        ]
        moved = max(abs(new - old) for new, old in zip(fresh, queues, strict=True))
        queues = fresh
        if moved < 1e-9:
            break
    return {(each.think, each.service): stretch for each, stretch in zip(classes, stretched, strict=True)}
