"""Where requests come from: lengths in tokens and the times at which they arrive.

Deterministic: chance comes only from the generator that is passed in. It does not know engines; an engine pulls what is
due (`take`), so a busy engine costs nothing between its steps.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist
from typing import Protocol

from gpupack.errors import Invalid


class Chance(Protocol):
    """The part of `random.Random` that the twin uses."""

    def random(self) -> float: ...

    def gauss(self, mu: float, sigma: float) -> float: ...

    def gammavariate(self, alpha: float, beta: float) -> float: ...

    def expovariate(self, lambd: float) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One completion: tokens of the prompt and tokens to generate (at least one of each)."""

    input_tokens: int
    output_tokens: int


_NORMAL = NormalDist()


class Shape(StrEnum):
    """Family of a length distribution. Both are fixed by mean and coefficient of variation."""

    LOGNORMAL = "lognormal"
    GAMMA = "gamma"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Independent lengths of prompts and answers by mean and coefficient of variation (0: all alike).

    Prompts are cut to `input_limit`, prompt and answer together to `total_limit`, as benchmarks and max_model_len cut
    them. A cut tail would lower the mean, so the mean that is drawn from is raised until the cut one is the one asked
    for (where that is possible).
    """

    input_mean: float
    output_mean: float
    input_cv: float = 0.0
    output_cv: float = 0.0
    input_limit: int = 1 << 20
    total_limit: int = 1 << 20
    shape: Shape = Shape.GAMMA

    def __post_init__(self) -> None:
        if self.input_mean < 1.0 or self.output_mean < 1.0:
            raise Invalid("lengths", "a mean is below one token", "give means of at least 1")
        if self.input_cv < 0.0 or self.output_cv < 0.0:
            raise Invalid("lengths", "a coefficient of variation is negative", "give 0 or more")
        if self.input_limit < 1 or self.total_limit < 2:
            raise Invalid("lengths", "no request is short enough", "give limits of at least 1 and 2 tokens")

    def draw(self, chance: Chance) -> Iterator[Request]:
        """Requests without end."""
        longest = min(self.input_limit, self.total_limit - 1)
        inputs = _Length(self.input_mean, self.input_cv, self.shape, longest)
        outputs = _Length(self.output_mean, self.output_cv, self.shape, self.total_limit - int(self.input_mean))
        while True:
            isl = min(longest, inputs.next(chance))
            osl = min(self.total_limit - isl, outputs.next(chance))
            yield Request(input_tokens=isl, output_tokens=osl)


class _Length:
    """Draws one length; rounding is by chance, so that the mean of short lengths is kept."""

    def __init__(self, mean: float, cv: float, shape: Shape, limit: int) -> None:
        self._cv = cv
        self._shape = shape
        self._limit = limit
        self._spread = math.sqrt(math.log1p(cv * cv))
        self._mean = mean if cv == 0.0 else self._mean_before_cut(mean)

    def next(self, chance: Chance) -> int:
        if self._cv == 0.0:
            value = self._mean
        elif self._shape is Shape.LOGNORMAL:
            value = self._mean * math.exp(chance.gauss(-0.5 * self._spread * self._spread, self._spread))
        else:
            k = 1.0 / (self._cv * self._cv)
            value = chance.gammavariate(k, self._mean / k)
        whole = int(value)
        if value > whole and chance.random() < value - whole:
            whole += 1
        return max(1, min(whole, self._limit))

    def _mean_before_cut(self, wanted: float) -> float:
        """The uncut mean whose cut mean is `wanted`, by bisection; twice the wanted one at most."""
        low, high = wanted, 2.0 * wanted
        for _ in range(30):
            middle = 0.5 * (low + high)
            if self._cut_mean(middle) < wanted:
                low = middle
            else:
                high = middle
        return high

    def _cut_mean(self, mean: float) -> float:
        """E[min(X, limit)] as the mean over 200 evenly spaced quantiles."""
        return sum(min(mean * quantile, self._limit) for quantile in self._unit_quantiles()) / 200.0

    def _unit_quantiles(self) -> list[float]:
        """Quantiles at mean 1; those of the gamma family by Wilson and Hilferty's cube root, good to a few per cent."""
        scores = [_NORMAL.inv_cdf((i + 0.5) / 200.0) for i in range(200)]
        if self._shape is Shape.LOGNORMAL:
            return [math.exp(self._spread * z - 0.5 * self._spread * self._spread) for z in scores]
        ninth = self._cv * self._cv / 9.0
        return [max(0.0, 1.0 - ninth + z * math.sqrt(ninth)) ** 3 for z in scores]


class Source(Protocol):
    """An arrival process of one engine."""

    def next_at(self) -> float:
        """Time in seconds of the next arrival that is already known; infinity if none is."""
        ...

    def take(self, now: float, in_flight: int) -> list[tuple[float, Request]]:
        """Requests due by `now` with their arrival times, each given once; `in_flight` are waiting or running."""
        ...


class Listed:
    """Requests with known arrival times: a recorded trace."""

    def __init__(self, arrivals: Sequence[tuple[float, Request]]) -> None:
        self._arrivals = sorted(arrivals, key=lambda arrival: arrival[0])
        self._next = 0

    def next_at(self) -> float:
        return self._arrivals[self._next][0] if self._next < len(self._arrivals) else math.inf

    def take(self, now: float, in_flight: int) -> list[tuple[float, Request]]:  # noqa: ARG002 (part of the protocol)
        first = self._next
        while self._next < len(self._arrivals) and self._arrivals[self._next][0] <= now:
            self._next += 1
        return self._arrivals[first : self._next]


class PoissonArrivals:
    """Poisson arrivals at a rate that changes at known times.

    Gaps are exponential in the integral of the rate, so a change takes effect exactly when it happens.
    """

    def __init__(self, *, rates: Sequence[tuple[float, float]], requests: Iterator[Request], chance: Chance) -> None:
        """`rates` are (time in seconds, requests a second from then on); before the first there are no arrivals."""
        self._rates = sorted(rates)
        if not self._rates or any(rate < 0.0 for _, rate in self._rates):
            raise Invalid("request-rate", "rates are absent or negative", "give (time, rate of 0 or more) pairs")
        self._requests = requests
        self._chance = chance
        self._at = self._rates[0][0]
        self._next = self._find()

    def next_at(self) -> float:
        return self._next

    def take(self, now: float, in_flight: int) -> list[tuple[float, Request]]:  # noqa: ARG002 (part of the protocol)
        due = []
        while self._next <= now:
            due.append((self._next, next(self._requests)))
            self._at = self._next
            self._next = self._find()
        return due

    def _find(self) -> float:
        """When the integral of the rate since the last arrival reaches an exponential of mean 1."""
        left = self._chance.expovariate(1.0)
        ends = (*(at for at, _ in self._rates[1:]), math.inf)
        for (begin, rate), finish in zip(self._rates, ends, strict=True):
            start = max(begin, self._at)
            if finish <= start or rate == 0.0:
                continue
            if left <= rate * (finish - start):
                return start + left / rate
            left -= rate * (finish - start)
        return math.inf


class ClosedLoop:
    """So many clients, each of which sends its next request `turnaround` seconds after its last one was answered."""

    def __init__(
        self, *, concurrency: int, requests: Iterator[Request], since: float = 0.0, turnaround: float = 0.0
    ) -> None:
        self._turnaround = turnaround
        self._coming: deque[tuple[float, Request]] = deque()
        self.become(concurrency, requests, since)

    @property
    def coming(self) -> int:
        """Requests that are on their way and were not taken yet."""
        return len(self._coming)

    def become(self, concurrency: int, requests: Iterator[Request], since: float) -> None:
        """From `since` on so many clients; those above the number leave as their requests finish."""
        self._clients = concurrency
        self._requests = requests
        self._since = since if concurrency else math.inf  # a time that nobody comes at would never pass

    def next_at(self) -> float:
        """Only the first arrivals are known before an engine asks; later ones come when requests finish."""
        return min(self._coming[0][0] if self._coming else math.inf, self._since)

    def take(self, now: float, in_flight: int) -> list[tuple[float, Request]]:
        taken = []
        while self._coming and self._coming[0][0] <= now:
            taken.append(self._coming.popleft())
        begins = now >= self._since
        if begins or (self._clients and math.isinf(self._since)):
            self._since = math.inf  # from now on one comes whenever one has been answered
            missing = self._clients - in_flight - len(taken) - len(self._coming)
            at = now if begins else now + self._turnaround
            sent = [(at, next(self._requests)) for _ in range(missing)]
            (taken if at <= now else self._coming).extend(sent)
        return taken
