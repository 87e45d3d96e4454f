"""The HTTP side of one virtual engine: what vLLM's OpenAI-compatible server answers, streaming included.

Tokens are counted, not read: a text is as many tokens as it has words and signs, a list of token ids as many as it is
long, and an answer is always `max_tokens` long (there is no model that could end it). Refusals have vLLM's status codes
and bodies. It does not know when steps happen: whoever drives the world calls `flush` after each advance.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from aiohttp import web

from gpupack.errors import Unavailable
from gpupack.node.exchange import hang_up
from gpupack.node.pace import Patience
from gpupack.twin.arrivals import Request
from gpupack.twin.engine import Ending, Engine, Sequence

COMPLETION_TOKENS = 16
"""`max_tokens` of /v1/completions when it is not given (OpenAI's default, kept by vLLM)."""
CHAT_TEMPLATE_TOKENS = 4
"""Tokens that a chat template puts around a message."""
_WORDS = (" the", " model", " reads", " its", " cache", " once", " more", " and", " says", " a", " word", ".")
_PIECE = re.compile(r"\w+|[^\w\s]")


class MetricsFault(StrEnum):
    """What can be made to go wrong with an engine's `/metrics`."""

    NONE = "none"
    UNREACHABLE = "unreachable"
    EMPTY = "empty"
    NAN = "nan"
    FROZEN = "frozen"


class Dead(Exception):
    """The engine was lost while a request was under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A parsed request: for each choice the prompt's tokens, the tokens to generate, and how to answer."""

    prompts: tuple[int, ...]
    output_tokens: int
    stream: bool
    usage: bool
    chat: bool


class _Refused(Exception):
    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


class Live:
    """A request under way: the engine's handle and a bell that rings when something new is to be sent."""

    __slots__ = ("_bell", "sequence")

    def __init__(self, sequence: Sequence) -> None:
        self.sequence = sequence
        self._bell = asyncio.Event()

    @property
    def open(self) -> bool:
        """Whether there is, or will be, anything more to send."""
        return self.sequence.ending is None or bool(self.sequence.token_times)

    def ring(self) -> bool:
        """True once the request has ended and need not be rung again."""
        if self.sequence.token_times or self.sequence.ending is not None:
            self._bell.set()
        return self.sequence.ending is not None

    async def tokens(self) -> int:
        """How many came since the last call; waits for the next. 0: it has ended."""
        while self.open and not self.sequence.token_times:
            self._bell.clear()
            await self._bell.wait()
        times = self.sequence.token_times
        assert times is not None
        count = len(times)
        times.clear()
        return count


class EngineServer:
    """`clock` is the world's time, brought up to now; `hurry` is told when somebody waits for tokens. `page` makes the
    text of `/metrics` with an optional value that stands for all others."""

    def __init__(
        self,
        engine: Engine,
        *,
        names: tuple[str, ...],
        model: str,
        version: str,
        api_key: str | None,
        clock: Callable[[], float],
        hurry: Callable[[], None],
        page: Callable[[float | None], str],
    ) -> None:
        self.fault = MetricsFault.NONE
        self.dead = False
        self._engine = engine
        self._names = names
        self._model = model
        self._version = version
        self._api_key = api_key
        self._clock = clock
        self._hurry = hurry
        self._page = page
        self._frozen = ""
        self._number = 0
        self._born = int(time.time())
        self._live: set[Live] = set()
        self._open: dict[str, web.BaseRequest] = {}

    @property
    def busy(self) -> bool:
        """Whether real requests wait for tokens or are still being answered."""
        return bool(self._live or self._open)

    @property
    def patience(self) -> Patience:
        """A first token is waited for more eagerly: its time is measured alone, gaps are measured over many."""
        if not self._live:
            return Patience.NOTHING
        waits = any(live.sequence.first_token_at < 0.0 for live in self._live)
        return Patience.FIRST_TOKEN if waits else Patience.NEXT_TOKEN

    def flush(self) -> None:
        """Tells the requests under way what the world has done since the last time."""
        for live in [each for each in self._live if each.ring()]:
            self._live.discard(live)

    def break_metrics(self, fault: MetricsFault) -> None:
        self._frozen = self._page(None)
        self.fault = fault

    def die(self) -> None:
        """Cuts every connection, as the end of the process does."""
        self.dead = True
        self.flush()
        for request in list(self._open.values()):
            hang_up(request)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        if path.startswith("/v1") and not self._is_allowed(request):
            return web.json_response({"error": "Unauthorized"}, status=401)
        match request.method, path:
            case "GET", "/health" | "/ping":
                return web.Response()
            case "GET", "/metrics" | "/metrics/":
                return self._metrics(request)
            case "GET", "/version":
                return web.json_response({"version": self._version})
            case "GET", "/v1/models":
                return web.json_response({"object": "list", "data": [self._card(name) for name in self._names]})
            case "POST", "/v1/completions" | "/v1/chat/completions":
                return await self._complete(request, chat="chat" in path)
            case _, ("/health" | "/metrics" | "/version" | "/v1/models" | "/v1/completions" | "/v1/chat/completions"):
                return web.json_response({"detail": "Method Not Allowed"}, status=405)
        return web.json_response({"detail": "Not Found"}, status=404)

    # Requests for tokens

    async def _complete(self, request: web.BaseRequest, *, chat: bool) -> web.StreamResponse:
        try:
            body = json.loads(await request.read())
            wish = self._wish(body, chat)
        except ValueError:
            return _error(400, "BadRequestError", "the body is no JSON")
        except _Refused as refusal:
            return _error(refusal.status, refusal.kind, str(refusal))
        lives = self._submit(wish)
        self._number += 1
        identity = f"{'chatcmpl' if chat else 'cmpl'}-{self._number:x}"
        self._open[identity] = request
        try:
            if wish.stream:
                return await self._stream(request, wish, lives, identity, str(body["model"]))
            return await self._whole(wish, lives, identity, str(body["model"]))
        except Dead:
            hang_up(request)
            return web.Response(status=500)  # nobody gets it
        except ConnectionResetError:
            return web.Response(status=499)  # the client went away in the middle of its stream
        finally:
            del self._open[identity]
            for live in lives:
                if live is not None and live.sequence.ending is None:
                    self._engine.cancel(live.sequence, self._clock())
                if live is not None:
                    self._live.discard(live)

    def _submit(self, wish: Wish) -> list[Live | None]:
        """None for a request that a draining engine aborts at once."""
        lives: list[Live | None] = []
        now = self._clock()
        for tokens in wish.prompts:
            try:
                made = Request(input_tokens=tokens, output_tokens=wish.output_tokens)
                live = Live(self._engine.submit(made, now, watched=True))
            except Unavailable:
                lives.append(None)
            else:
                lives.append(live)
                self._live.add(live)
        self._hurry()
        return lives

    async def _stream(
        self, request: web.BaseRequest, wish: Wish, lives: list[Live | None], identity: str, model: str
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        kind = "chat.completion.chunk" if wish.chat else "text_completion"
        head = f'{{"id":"{identity}","object":"{kind}","created":{int(time.time())},"model":{json.dumps(model)}'
        if wish.chat:
            role = '"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
            for index in range(len(lives)):
                await response.write(f'data: {head},"choices":[{{"index":{index},{role}}}]}}\n\n'.encode())
        pen = asyncio.Lock()

        async def send(index: int, live: Live | None) -> int:
            sent = 0
            while live is not None and live.open:
                count = await live.tokens()
                self._still_alive()
                chunks = []
                for number in range(sent, sent + count):
                    last = not live.open and number == sent + count - 1
                    reason = '"length"' if last and live.sequence.ending is Ending.LENGTH else "null"
                    chunks.append(f"data: {head},{_choice(index, number, wish.chat, reason)}}}\n\n")
                sent += count
                async with pen:
                    await response.write("".join(chunks).encode())
            if live is None or live.sequence.ending is Ending.ABORT:
                chunk = _choice(index, None, wish.chat, '"abort"')
                async with pen:
                    await response.write(f"data: {head},{chunk}}}\n\n".encode())
            return sent

        sent = await asyncio.gather(*(send(index, live) for index, live in enumerate(lives)))
        if wish.usage:
            usage = json.dumps(_usage(sum(wish.prompts), sum(sent)))
            await response.write(f'data: {head},"choices":[],"usage":{usage}}}\n\n'.encode())
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _whole(self, wish: Wish, lives: list[Live | None], identity: str, model: str) -> web.StreamResponse:
        async def collect(live: Live | None) -> tuple[int, str]:
            count = 0
            while live is not None and live.open:
                count += await live.tokens()
                self._still_alive()
            return count, str(Ending.ABORT if live is None else live.sequence.ending)

        choices = []
        total = 0
        for index, (count, reason) in enumerate(await asyncio.gather(*(collect(live) for live in lives))):
            total += count
            text = "".join(_WORDS[number % len(_WORDS)] for number in range(count))
            said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if wish.chat else {"text": text}
            choices.append({"index": index, **said, "logprobs": None, "finish_reason": reason})
        return web.json_response({
            "id": identity,
            "object": "chat.completion" if wish.chat else "text_completion",
            "created": int(time.time()),
            "model": model,
            "choices": choices,
            "usage": _usage(sum(wish.prompts), total),
        })  # fmt: skip

    def _still_alive(self) -> None:
        if self.dead:
            raise Dead

    def _wish(self, body: Any, chat: bool) -> Wish:
        """Raises _Refused with vLLM's status and words."""
        if not isinstance(body, dict):
            raise _Refused(400, "BadRequestError", "the body is no JSON object")
        model = body.get("model", self._names[0])
        if model not in self._names:
            raise _Refused(404, "NotFoundError", f"The model `{model}` does not exist.")
        body["model"] = model
        prompts = _chat_tokens(body.get("messages")) if chat else _prompt_tokens(body.get("prompt"))
        longest = self._engine.config.max_model_len
        room = longest - max(prompts)
        asked = body.get("max_completion_tokens", body.get("max_tokens"))
        if asked is not None and (not isinstance(asked, int) or asked < 1):
            raise _Refused(400, "BadRequestError", f"max_tokens must be at least 1, got {asked}.")
        tokens = asked if asked is not None else (max(1, room) if chat else min(COMPLETION_TOKENS, max(1, room)))
        if tokens > room:
            raise _Refused(
                400,
                "BadRequestError",
                f"This model's maximum context length is {longest} tokens. However, you requested {tokens} output "
                f"tokens and your prompt contains {max(prompts)} input tokens, for a total of {tokens + max(prompts)} "
                f"tokens. Please reduce the length of the input prompt or the number of requested output tokens.",
            )
        choices = body.get("n") or 1
        if not isinstance(choices, int) or choices < 1:
            raise _Refused(400, "BadRequestError", f"n must be at least 1, got {choices}.")
        options = body.get("stream_options") or {}
        return Wish(
            prompts=tuple(tokens for tokens in prompts for _ in range(choices)),
            output_tokens=tokens,
            stream=bool(body.get("stream")),
            usage=bool(options.get("include_usage")),
            chat=chat,
        )

    # The rest

    def _metrics(self, request: web.BaseRequest) -> web.StreamResponse:
        match self.fault:
            case MetricsFault.UNREACHABLE:
                hang_up(request)
                text = ""
            case MetricsFault.EMPTY:
                text = "# HELP python_info Python platform information\n# TYPE python_info gauge\npython_info 1.0\n"
            case MetricsFault.NAN:
                text = self._page(float("nan"))
            case MetricsFault.FROZEN:
                text = self._frozen
            case MetricsFault.NONE:
                text = self._page(None)
        return web.Response(body=text.encode(), headers={"Content-Type": "text/plain; version=1.0.0; charset=utf-8"})

    def _is_allowed(self, request: web.BaseRequest) -> bool:
        if self._api_key is None:
            return True
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(token.encode(), self._api_key.encode())

    def _card(self, name: str) -> dict[str, Any]:
        return {
            "id": name, "object": "model", "created": self._born, "owned_by": "vllm", "root": self._model,
            "parent": None, "max_model_len": self._engine.config.max_model_len, "permission": [],
        }  # fmt: skip


def _prompt_tokens(prompt: Any) -> tuple[int, ...]:
    """A text, a list of texts, a list of token ids or a list of such lists."""
    match prompt:
        case str():
            return (_text_tokens(prompt),)
        case [int(), *_]:
            return (len(prompt),)
        case [str() | [int(), *_], *_]:
            return tuple(_text_tokens(each) if isinstance(each, str) else len(each) for each in prompt)
    raise _Refused(400, "BadRequestError", "prompt must be a text, a list of texts or lists of token ids")


def _chat_tokens(messages: Any) -> tuple[int, ...]:
    if not isinstance(messages, list) or not messages:
        raise _Refused(400, "BadRequestError", "messages must be a list of at least one message")
    total = 0
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        parts = [content] if isinstance(content, str) else [part.get("text", "") for part in content or ()]
        total += CHAT_TEMPLATE_TOKENS + sum(_text_tokens(part) for part in parts if part)
    return (total,)


def _text_tokens(text: str) -> int:
    return max(1, len(_PIECE.findall(text)))


def _choice(index: int, number: int | None, chat: bool, reason: str) -> str:
    """One element of `choices` of a chunk; `number` None carries no text."""
    text = "" if number is None else _WORDS[number % len(_WORDS)]
    said = f'"delta":{{"content":"{text}"}}' if chat else f'"text":"{text}"'
    return f'"choices":[{{"index":{index},{said},"logprobs":null,"finish_reason":{reason}}}]'


def _usage(prompt: int, completion: int) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _error(status: int, kind: str, message: str) -> web.Response:
    return web.json_response(
        {"error": {"message": message, "type": kind, "param": None, "code": status}}, status=status
    )
