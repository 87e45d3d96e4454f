"""A few real streaming clients: what somebody measures who asks the engines over HTTP.

They are the check on bulk load and histograms, which never leave the engines: the means of both must agree. Each client
sends its next request when the last is answered, to each address in turn. Knows the OpenAI protocol, not engines.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

import aiohttp

from gpupack.node.podproxy import Address
from gpupack.twin.arrivals import Lengths, Request

TIMEOUT_SECONDS = 120.0


@dataclass(slots=True, kw_only=True)
class Measured:
    """Seconds. `gaps` are the times between tokens of a request; several that came in one piece share its gap."""

    ttfts: list[float] = field(default_factory=list)
    gaps_sum: float = 0.0
    gaps: int = 0
    finished: int = 0
    failed: int = 0

    @property
    def itl_mean(self) -> float | None:
        return self.gaps_sum / self.gaps if self.gaps else None

    @property
    def ttft_mean(self) -> float | None:
        return sum(self.ttfts) / len(self.ttfts) if self.ttfts else None


async def measure(
    addresses: Callable[[], Sequence[Address]], *, model: str, lengths: Lengths, clients: int, seconds: float,
    seed: int, pod_proxy: str | None,
) -> Measured:  # fmt: skip
    """Streams for so long; requests that are then under way are given up and count as far as they came.

    `addresses` is asked before each request, so clients follow engines that come and go. The first request of each
    client is not counted: it opens connections, and all begin at once.
    """
    measured = Measured()
    requests = lengths.draw(Random(seed))
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, proxy=pod_proxy) as http:

        async def client(number: int) -> None:
            turn = number
            warm = False
            while True:
                known = addresses()
                if not known:
                    await asyncio.sleep(0.1)
                    continue
                host, port = known[turn % len(known)]
                turn += 1
                try:
                    into = measured if warm else Measured()
                    await _one(http, f"http://{host}:{port}/v1/completions", model, next(requests), into)
                    warm = True
                except (aiohttp.ClientError, TimeoutError, ValueError):
                    measured.failed += 1
                    await asyncio.sleep(0.1)

        tasks = [asyncio.create_task(client(number)) for number in range(clients)]
        try:
            done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return measured


async def _one(http: aiohttp.ClientSession, url: str, model: str, wish: Request, into: Measured) -> None:
    """Raises aiohttp.ClientError or ValueError if the answer is not a whole stream."""
    body = {"model": model, "prompt": [0] * wish.input_tokens, "max_tokens": wish.output_tokens, "stream": True}
    sent = time.perf_counter()
    last = 0.0
    async with http.post(url, json=body) as answer:
        answer.raise_for_status()
        rest = b""
        async for piece in answer.content.iter_any():
            *events, rest = (rest + piece).split(b"\n\n")
            tokens = sum(_is_token(event) for event in events)
            if not tokens:
                continue
            now = time.perf_counter()
            if not last:
                into.ttfts.append(now - sent)
                last, tokens = now, tokens - 1
            if tokens:
                into.gaps_sum += now - last
                into.gaps += tokens
                last = now
    into.finished += 1


def _is_token(event: bytes) -> bool:
    if not event.startswith(b"data: {"):
        return False
    choices = json.loads(event[6:])["choices"]
    if choices and choices[0]["finish_reason"] == "abort":
        raise ValueError("the request was aborted")
    return bool(choices and choices[0]["text"])
