"""Bulk load for the virtual engines: drawn here, dealt to engines, never sent through HTTP.

An open load is a Poisson stream that is dealt request by request, as a router would; a closed one is a number of
clients that each send the next request when the last is answered. What is addressed to a Service goes to those engines
that its EndpointSlices show as ready (there is no kube-proxy: the dealer resolves by itself). An engine takes its share
from a `Tap`. Chance comes from a passed generator. It does not know time: the caller says until when to deal.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from gpupack.errors import Invalid
from gpupack.twin.arrivals import ClosedLoop, Lengths, PoissonArrivals, Request

TURNAROUND_SECONDS = 1e-3
"""From a closed-loop client's last token to its next request at the engine. Without it every request would arrive just
as a step begins, and none would wait for the step under way."""


class Router(StrEnum):
    """How an open load finds its engine: the one with the fewest requests, or any, as kube-proxy's connections do."""

    LEAST_LOADED = "LeastLoaded"
    RANDOM = "RandomConnection"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Traffic to one target, a Service or a pod, both as `namespace/name`.

    Either `rates`, (seconds from when the load is set, requests a second from then on) pairs, or `concurrency` clients.
    Requests longer than an engine's max_model_len are cut to it, as clients that know the limit do.
    """

    target: str
    lengths: Lengths
    rates: tuple[tuple[float, float], ...] = ()
    concurrency: int = 0
    router: Router = Router.LEAST_LOADED

    def __post_init__(self) -> None:
        if bool(self.rates) == bool(self.concurrency):
            raise Invalid("load", "it has both a rate and a concurrency, or neither", "give one of them")
        if any(rate < 0.0 for _, rate in self.rates) or self.concurrency < 0:
            raise Invalid("load", "a rate or a concurrency is negative", "give 0 or more")


class Tap:
    """Where one engine's share of the load comes out, cut to its `max_model_len`: a `Source` of the twin."""

    def __init__(self, max_model_len: int) -> None:
        self._longest = max_model_len
        self._due: deque[tuple[float, Request]] = deque()
        self._told: tuple[int, Iterator[Request]] = (0, iter(()))
        self._clients = ClosedLoop(concurrency=0, requests=iter(()), turnaround=TURNAROUND_SECONDS)

    @property
    def dealt(self) -> int:
        """Requests that were dealt and not yet taken."""
        return len(self._due) + self._clients.coming

    def put(self, at: float, request: Request) -> None:
        """`at` is not before any other that was put."""
        self._due.append((at, _cut(request, self._longest)))

    def serve_clients(self, count: int, requests: Iterator[Request], since: float) -> None:
        """So many closed-loop clients from `since` on; what is so already stays as it is."""
        before, those = self._told
        if count != before or requests is not those:
            self._told = (count, requests)
            self._clients.become(count, (_cut(each, self._longest) for each in requests), since)

    def next_at(self) -> float:
        return min(self._due[0][0] if self._due else math.inf, self._clients.next_at())

    def take(self, now: float, in_flight: int) -> list[tuple[float, Request]]:
        taken = []
        while self._due and self._due[0][0] <= now:
            taken.append(self._due.popleft())
        return [*taken, *self._clients.take(now, in_flight + len(taken) + len(self._due))]


class Reachable:
    """One engine to the dealer: where its share goes and how many requests it has."""

    def __init__(self, tap: Tap, in_flight: Callable[[], int]) -> None:
        self.tap = tap
        self._in_flight = in_flight

    @property
    def load(self) -> int:
        return self._in_flight() + self.tap.dealt


class _Stream:
    """A load under way."""

    def __init__(self, load: Load, now: float, chance: Random) -> None:
        self.load = load
        self.unrouted = 0
        self.dealt = 0
        self.requests = load.lengths.draw(chance)
        self.chance = chance
        rates = [(now + after, rate) for after, rate in load.rates]
        self.arrivals = PoissonArrivals(rates=rates, requests=self.requests, chance=chance) if rates else None
        self.served: list[Reachable] = []


class Dealer:
    """All loads under way. `engines_of` says which engines a target leads to now, in a stable order."""

    def __init__(self, engines_of: Callable[[str], Sequence[Reachable]], chance: Random) -> None:
        self._engines_of = engines_of
        self._chance = chance
        self._streams: dict[str, _Stream] = {}

    @property
    def loads(self) -> Mapping[str, Load]:
        return {target: stream.load for target, stream in self._streams.items()}

    def counts(self, target: str) -> tuple[int, int]:
        """Requests that were dealt to an engine, and requests for which no engine was ready, since the load was set."""
        stream = self._streams[target]
        return stream.dealt, stream.unrouted

    def set(self, load: Load, now: float) -> None:
        """From now on this load, instead of the one that its target had."""
        self.clear(load.target, now)
        self._streams[load.target] = _Stream(load, now, Random(self._chance.random()))

    def clear(self, target: str, now: float) -> None:
        """No load from now on; requests under way are finished."""
        stream = self._streams.pop(target, None)
        if stream is not None:
            for engine in stream.served:
                engine.tap.serve_clients(0, stream.requests, now)

    def deal(self, until: float) -> None:
        """Gives every engine what is due for it by `until`."""
        for stream in self._streams.values():
            engines = self._engines_of(stream.load.target)
            if stream.arrivals is None:
                self._deal_clients(stream, engines, until)
            else:
                for at, request in stream.arrivals.take(until, 0):
                    self._deal_one(stream, engines, at, request)

    @staticmethod
    def _deal_one(stream: _Stream, engines: Sequence[Reachable], at: float, request: Request) -> None:
        if not engines:
            stream.unrouted += 1
            return
        if stream.load.router is Router.RANDOM:
            engine = engines[int(stream.chance.random() * len(engines))]
        else:
            engine = min(engines, key=lambda each: each.load)
        stream.dealt += 1
        engine.tap.put(at, request)

    @staticmethod
    def _deal_clients(stream: _Stream, engines: Sequence[Reachable], until: float) -> None:
        """As evenly as whole clients can be."""
        for gone in [each for each in stream.served if each not in engines]:
            gone.tap.serve_clients(0, stream.requests, until)
        stream.served = list(engines)
        for index, engine in enumerate(engines):
            share = (stream.load.concurrency + len(engines) - 1 - index) // len(engines)
            engine.tap.serve_clients(share, stream.requests, until)


def _cut(request: Request, longest: int) -> Request:
    if request.input_tokens + request.output_tokens <= longest:
        return request
    prompt = max(1, min(request.input_tokens, longest - min(request.output_tokens, longest // 2)))
    return Request(input_tokens=prompt, output_tokens=max(1, longest - prompt))
