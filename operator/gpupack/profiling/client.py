"""Clients that keep an OpenAI-compatible server busy, and what they see of it: throughput and latencies of a window.

A closed loop: each client sends its next request when its last has ended, so as many are under way as there are
clients. The first request of each is of a random part of the usual length, so that they are at different places when
the window begins. Tokens are counted as they come and times are the client's, the network's part included. Knows the
HTTP surface of vLLM and how far other servers share it; nothing of sweeps.
"""

from __future__ import annotations

import asyncio
import json
import string
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from types import TracebackType
from typing import Any, Self

import aiohttp

from gpupack.errors import Unavailable
from gpupack.facts.serving import Lengths, ProfilePoint
from gpupack.metrics.prometheus import EnginePage, parse_engine
from gpupack.units import Ratio, Seconds

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 120.0
"""A request under way from which nothing comes for so long has failed."""
SPREAD = 0.5
"""Lengths are drawn evenly within this share of their mean, so that requests do not end together."""
EVEN_CV = SPREAD * 3**-0.5
"""Their coefficient of variation: an even spread deviates by half its width over the root of three."""
MOST_FAILURES = 3
"""Requests that may fail in a run; one more and the run has."""
PROBE_WORDS = 8
BUSY_CLIENT = Ratio(0.85)
"""A client that computes for this share of the window may have been what was slow."""

_DATA, _DONE = b"data:", b"data: [DONE]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """`url` without a path. `model` None: the only one there is. `proxy` is a plain HTTP proxy that reaches it."""

    url: str
    model: str | None = None
    api_key: str | None = None
    proxy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Mean lengths in tokens, and the seconds of the window that is measured."""

    input_tokens: int
    output_tokens: int
    seconds: float


def even_lengths(input_tokens: int, output_tokens: int) -> Lengths:
    """The lengths that clients ask for, by their means in tokens."""
    return Lengths(input_mean=input_tokens, output_mean=output_tokens, input_cv=EVEN_CV, output_cv=EVEN_CV)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What the server was found to understand. `tokens_per_word` of the words that prompts are made of.

    `version` is vLLM's own word; None for another server.
    """

    model: str
    chat: bool
    ignores_eos: bool
    tokens_per_word: float
    extra_tokens: float
    version: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What the clients saw. Latencies are means: `itl` over tokens, `tpot` and `ttft` over requests.

    `prompt_tokens` and `output_tokens` are those of requests that ended in the window, on average. `client_busy` is the
    share of the window in which this process computed.
    """

    clients: int
    total_tokens_per_second: float
    itl: Seconds
    tpot: Seconds | None
    ttft: Seconds | None
    finished: int
    failed: int
    prompt_tokens: float | None
    output_tokens: float | None
    preemptions: int | None
    client_busy: Ratio

    def point(self) -> ProfilePoint:
        return ProfilePoint(
            max_num_seqs=self.clients,
            total_tokens_per_second=self.total_tokens_per_second,
            itl_mean=self.itl,
            tpot_mean=self.tpot,
            preemptions=self.preemptions,
        )


@dataclass(slots=True)
class _Answer:
    """One request: when it was sent, when pieces of text came, and what the server counted."""

    sent_at: float
    pieces: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0
    ended_at: float | None = None


class Clients:
    """Used with `async with`. `dialect` is found on entering; raises Unavailable if the server does not answer."""

    def __init__(self, endpoint: Endpoint, load: Load, *, seed: int = 0) -> None:
        self._endpoint = endpoint
        self._load = load
        self._chance = Random(seed)

    async def __aenter__(self) -> Self:
        headers = {} if self._endpoint.api_key is None else {"Authorization": f"Bearer {self._endpoint.api_key}"}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS),
            read_bufsize=2**18,
        )
        try:
            self.dialect = await self._listen()
        except BaseException:
            await self._session.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    # What the server understands

    async def _listen(self) -> Dialect:
        models = await self._get("/v1/models")
        served = [str(each.get("id")) for each in models.get("data") or ()]
        model = self._endpoint.model or (served[0] if len(served) == 1 else None)
        if model is None or (served and model not in served):
            problem = f"serves {', '.join(served) or 'no model'}"
            raise Unavailable(f"{self._endpoint.url} {problem}; name one of them")
        try:
            said = (await self._get("/version")).get("version")
        except Unavailable:
            said = None
        dialect = Dialect(
            model=model, chat=False, ignores_eos=True, tokens_per_word=1.0, extra_tokens=0.0,
            version=None if said is None else str(said),
        )  # fmt: skip
        short = _Answer(0.0)
        problem = ""
        for chat, ignores in ((False, True), (False, False), (True, True), (True, False)):
            dialect = replace(dialect, chat=chat, ignores_eos=ignores)
            try:
                short = await self._ask(dialect, PROBE_WORDS, 2)
                break
            except Unavailable as refused:
                problem = str(refused)
        else:
            raise Unavailable(problem)
        if not short.prompt_tokens:
            raise Unavailable(f"{self._endpoint.url} does not tell the tokens of a streamed answer (include_usage)")
        # A second prompt of about the usual length tells how many tokens a word has, and how many come with any prompt.
        words = max(PROBE_WORDS + 1, round(self._load.input_tokens / short.prompt_tokens * PROBE_WORDS))
        long = await self._ask(dialect, words, 2)
        per_word = max(0.01, (long.prompt_tokens - short.prompt_tokens) / (words - PROBE_WORDS))
        extra = max(0.0, short.prompt_tokens - per_word * PROBE_WORDS)
        return replace(dialect, tokens_per_word=per_word, extra_tokens=extra)

    async def _get(self, path: str) -> Mapping[str, Any]:
        try:
            async with self._session.get(self._endpoint.url + path, proxy=self._endpoint.proxy) as response:
                if response.status >= 400:
                    raise Unavailable(f"GET {path} of {self._endpoint.url}: HTTP {response.status}")
                answer = json.loads(await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as problem:
            raise Unavailable(f"GET {path} of {self._endpoint.url}: {type(problem).__name__} {problem}") from problem
        if not isinstance(answer, dict):
            raise Unavailable(f"GET {path} of {self._endpoint.url}: no JSON object")
        return answer

    async def _page(self) -> EnginePage | None:
        """The engine's counters; None for a server that shows none."""
        try:
            async with self._session.get(f"{self._endpoint.url}/metrics", proxy=self._endpoint.proxy) as response:
                return parse_engine(await response.read()) if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    # One request

    async def _ask(self, dialect: Dialect, words: int, tokens: int, seen: list[_Answer] | None = None) -> _Answer:
        """Raises Unavailable if it is refused or does not come to its end. `seen` holds it from the start."""
        text = " ".join("".join(self._chance.choices(string.ascii_lowercase, k=4)) for _ in range(words))
        body: dict[str, Any] = {
            "model": dialect.model, "max_tokens": tokens, "stream": True, "temperature": 1.0,
            "stream_options": {"include_usage": True},
            **({"messages": [{"role": "user", "content": text}]} if dialect.chat else {"prompt": text}),
            **({"ignore_eos": True} if dialect.ignores_eos else {}),
        }  # fmt: skip
        path = "/v1/chat/completions" if dialect.chat else "/v1/completions"
        answer = _Answer(time.monotonic())
        if seen is not None:
            seen.append(answer)
        try:
            async with self._session.post(self._endpoint.url + path, json=body, proxy=self._endpoint.proxy) as response:
                if response.status >= 400:
                    said = (await response.read())[:300].decode(errors="replace")
                    raise Unavailable(f"POST {path} of {self._endpoint.url}: HTTP {response.status} {said}")
                await _read(response, answer)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as problem:
            raise Unavailable(f"POST {path} of {self._endpoint.url}: {type(problem).__name__} {problem}") from problem
        return answer

    # A run

    async def measure(self, clients: int) -> Window:
        """So many clients, until each has had its first answer, and then for the window.

        Raises Unavailable if more than a few requests fail or nothing comes.
        """
        answers: list[_Answer] = []
        failures: list[str] = []
        first = [asyncio.Event() for _ in range(clients)]
        gone = asyncio.Event()

        async def client(event: asyncio.Event) -> None:
            share = self._chance.random()
            while not gone.is_set():
                words, tokens = self._drawn(share)
                share = 1.0
                try:
                    await self._ask(self.dialect, words, tokens, answers)
                except Unavailable as problem:
                    failures.append(str(problem))
                    if len(failures) > MOST_FAILURES:
                        gone.set()
                    await asyncio.sleep(0)
                else:
                    event.set()

        async def warm() -> None:
            for event in first:
                await event.wait()

        running = [asyncio.create_task(client(event)) for event in first]
        ended = asyncio.create_task(gone.wait())
        warming = asyncio.create_task(warm())
        try:
            await asyncio.wait({ended, warming}, return_when=asyncio.FIRST_COMPLETED)
            before = await self._page()
            began, computed = time.monotonic(), time.process_time()
            await asyncio.wait({ended}, timeout=self._load.seconds)
            over, busy = time.monotonic(), time.process_time() - computed
            after = await self._page()
        finally:
            for task in (*running, ended, warming):
                task.cancel()
            await asyncio.gather(*running, ended, warming, return_exceptions=True)
        if len(failures) > MOST_FAILURES:
            raise Unavailable(f"{len(failures)} requests failed, the last with: {failures[-1]}")
        return _window(
            answers, clients, began, over, failed=len(failures), preemptions=_preempted(before, after),
            busy=Ratio(busy / (over - began)),
        )  # fmt: skip

    def _drawn(self, share: float) -> tuple[int, int]:
        """Words of a prompt and tokens of an answer, which is that share of a usual one."""
        dialect, load = self.dialect, self._load
        wanted = load.input_tokens * self._chance.uniform(1.0 - SPREAD, 1.0 + SPREAD)
        words = max(1, round((wanted - dialect.extra_tokens) / dialect.tokens_per_word))
        tokens = round(share * load.output_tokens * self._chance.uniform(1.0 - SPREAD, 1.0 + SPREAD))
        return words, max(2, tokens)


async def _read(response: aiohttp.ClientResponse, answer: _Answer) -> None:
    """The stream to its end. Raises ValueError if it ends early or says that the server gave up."""
    rest = b""
    usage: bytes | None = None
    done = False
    async for chunk in response.content.iter_any():
        now = time.monotonic()
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if not line.startswith(_DATA):
                continue
            if line.startswith(_DONE):
                done = True
            elif b'"usage":{' in line or b'"usage": {' in line:
                usage = line
                if _has_text(line):
                    answer.pieces.append(now)
            elif _has_text(line):
                answer.pieces.append(now)
            elif b'"finish_reason":"abort"' in line or line.startswith(b'data: {"error"'):
                raise ValueError(line[:200].decode(errors="replace"))
    if not done:
        raise ValueError("the stream broke off")
    if usage is not None:
        counted = json.loads(usage[len(_DATA) :])["usage"]
        answer.prompt_tokens = int(counted.get("prompt_tokens", 0))
        answer.output_tokens = int(counted.get("completion_tokens", 0))
    answer.ended_at = time.monotonic()


def _has_text(line: bytes) -> bool:
    """Whether a chunk carries a choice with a piece of text, which may be empty: a byte of a longer sign, a token that
    is not shown. The first chunk of a chat carries the role alone."""
    return (b'"choices":[{' in line or b'"choices": [{' in line) and b'"role"' not in line


def _window(
    answers: Sequence[_Answer], clients: int, began: float, over: float, *, failed: int, preemptions: int | None,
    busy: Ratio,
) -> Window:  # fmt: skip
    """Figures of what came between two moments. Raises Unavailable if that is too little to tell anything."""
    complete = [each for each in answers if each.ended_at is not None and each.pieces and each.output_tokens]
    pieces = sum(len(each.pieces) for each in complete)
    # A piece is a token, unless the server put several into one because its reader was slow or it is told to.
    per_piece = sum(each.output_tokens for each in complete) / pieces if pieces else 1.0
    prompts = [each.prompt_tokens for each in complete]
    usual = sum(prompts) / len(prompts) if prompts else 0.0
    tokens = gaps = seconds = 0.0
    for each in answers:
        inside = [at for at in each.pieces if began <= at < over]
        tokens += per_piece * len(inside)
        if inside and each.pieces[0] == inside[0]:
            tokens += each.prompt_tokens or usual
        # Tokens of a piece share the time since the piece before.
        for before, at in zip(each.pieces, each.pieces[1:], strict=False):
            if began <= at < over:
                gaps += per_piece
                seconds += at - before
    if gaps == 0.0:
        raise Unavailable("no token came within the window; give it more seconds")
    ended = [each for each in complete if began <= (each.ended_at or 0.0) < over]
    long = [each for each in ended if each.output_tokens > 1]
    started = [each for each in answers if each.pieces and began <= each.pieces[0] < over]
    return Window(
        clients=clients,
        total_tokens_per_second=tokens / (over - began),
        itl=Seconds(seconds / gaps),
        tpot=Seconds(_mean([(e.pieces[-1] - e.pieces[0]) / (e.output_tokens - 1) for e in long])) if long else None,
        ttft=Seconds(_mean([each.pieces[0] - each.sent_at for each in started])) if started else None,
        finished=len(ended),
        failed=failed,
        prompt_tokens=_mean([each.prompt_tokens for each in ended]) if ended else None,
        output_tokens=_mean([each.output_tokens for each in ended]) if ended else None,
        preemptions=preemptions,
        client_busy=busy,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _preempted(before: EnginePage | None, after: EnginePage | None) -> int | None:
    if before is None or after is None or before.preemptions is None or after.preemptions is None:
        return None
    return round(after.preemptions - before.preemptions)
