"""vLLM in a container of the virtual node: it starts, takes memory, serves, drains and dies as vLLM does.

The start has vLLM's order (free-memory check, weights, KV cache, graphs) stretched over a start-up time; the engine
itself is the twin's. SIGTERM drains for `--shutdown-timeout` seconds, then aborts; a crash or SIGKILL loses everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gpupack.errors import Invalid
from gpupack.facts.engine_args import BUCKETS_SINCE, release_of
from gpupack.facts.llm import Dtype, Llm
from gpupack.node.device_memory import OutOfMemory
from gpupack.node.engine_page import EngineNumbers, EnginePage
from gpupack.node.engine_server import EngineServer
from gpupack.node.engine_start import (
    CONTEXT_BYTES,
    KvCache,
    Refused,
    activation_bytes,
    graph_bytes,
    kv_cache,
    profiled_kv_bytes,
    requested_bytes,
    settings_of,
)
from gpupack.node.exchange import Exchange
from gpupack.node.flags import Flags, parse
from gpupack.node.hardware import Hardware, Slot
from gpupack.node.load import Reachable, Tap
from gpupack.node.pace import Pace, Patience
from gpupack.node.program import Exit, Sandbox
from gpupack.twin.counters import Buckets
from gpupack.twin.engine import EngineConfig
from gpupack.twin.memory_system import VLLM_V1, EngineCosts, ModelDims
from gpupack.twin.world import Tenant
from gpupack.units import Bytes

VERSION = "0.33.0"
LAST_ANSWERS_SECONDS = 1.0
"""How long aborted requests may take to be answered before the server is gone."""

# Parts of the start-up time: imports, then the free-memory check; weights; profiling and KV cache; graphs.
_UNTIL_CHECK, _WEIGHTS, _PROFILE, _GRAPHS = 0.15, 0.35, 0.2, 0.3


@dataclass(slots=True, kw_only=True)
class Totals:
    """Requests of all engines that have ended, by how they ended. Those that were dealt and never taken are aborted."""

    succeeded: int = 0
    aborted: int = 0


@dataclass(slots=True, kw_only=True)
class Site:
    """What all engines of the virtual nodes share. `start_seconds` may be changed; it counts for the next start, and so
    does `overhead_bytes`: GPU memory that an engine takes and nobody expects.

    `mps_starts` is whether MPS can be started in a pod that comes; `mps_servers` end the MPS server on a GPU, by uuid.
    """

    hardware: Hardware
    exchange: Exchange
    pace: Pace
    model: Callable[[str], Llm]
    start_seconds: float
    costs: EngineCosts = VLLM_V1
    running: dict[str, EngineProgram] = field(default_factory=dict)
    ended: Totals = field(default_factory=Totals)
    overhead_bytes: int = 0
    mps_starts: bool = True
    mps_servers: dict[str, Callable[[], None]] = field(default_factory=dict)


class _Interrupted(Exception):
    """SIGTERM while starting."""


@dataclass(slots=True)
class Usage:
    """Steps of one engine and the contexts that they read, sampled at every advance of the world."""

    steps: int = 0
    context_tokens: float = 0.0


class Serving:
    """An engine that has started: its place in the world and its servers."""

    def __init__(
        self, sandbox: Sandbox, site: Site, slot: Slot, flags: Flags, llm: Llm, dtype: Dtype, cache: KvCache,
        tenant: Tenant, tap: Tap,
    ) -> None:  # fmt: skip
        self.slot = slot
        self.flags = flags
        self.cache = cache
        self.tenant = tenant
        self.usage = Usage()
        self.reachable = Reachable(tap, lambda: tenant.engine.in_flight)
        self._llm = llm
        self._dtype = dtype
        self._page = EnginePage(flags.served_names[0], _cache_info(flags, cache), time.time())
        self.server = EngineServer(
            tenant.engine, names=flags.served_names, model=flags.model, version=_version(sandbox.image),
            api_key=flags.api_key, clock=site.pace.now, hurry=site.pace.hurry, page=self._text,
        )  # fmt: skip

    def advanced(self) -> Patience:
        """After each advance of the world: samples the work and tells the clients."""
        engine = self.tenant.engine
        steps = engine.counters.step_tokens.count - self.usage.steps
        self.usage.context_tokens += steps * engine.step_context_tokens
        self.usage.steps += steps
        self.server.flush()
        return self.server.patience

    def _text(self, value: float | None) -> str:
        return self._page.text(self.numbers(), value=value)

    def numbers(self) -> EngineNumbers:
        engine, counters = self.tenant.engine, self.tenant.engine.counters
        tokens = counters.prompt_tokens + counters.generation_tokens
        weights = self._llm.weight_bytes(self._dtype)
        kv = self._llm.kv_bytes_per_token(self._dtype)
        estimated = self.flags.mfu_metrics
        return EngineNumbers(
            running=engine.running,
            waiting=engine.waiting,
            kv_usage=engine.kv_usage,
            preemptions=counters.preemptions,
            prompt_tokens=counters.prompt_tokens,
            generation_tokens=counters.generation_tokens,
            finished={"length": counters.succeeded, "abort": counters.aborted},
            histograms={
                "time_to_first_token_seconds": counters.first_token,
                "inter_token_latency_seconds": counters.token_gap,
                "request_time_per_output_token_seconds": counters.time_per_output_token,
                "e2e_request_latency_seconds": counters.e2e,
                "request_queue_time_seconds": counters.queue,
                "request_inference_time_seconds": counters.inference,
                "request_prefill_time_seconds": counters.prefill,
                "request_decode_time_seconds": counters.decode,
                "request_prompt_tokens": counters.request_prompt_tokens,
                "request_generation_tokens": counters.request_generation_tokens,
                "iteration_tokens_total": counters.step_tokens,
            },
            read_bytes=weights * self.usage.steps + kv * self.usage.context_tokens if estimated else None,
            written_bytes=float(kv * tokens) if estimated else None,
            flops=2.0 * self._llm.parameters * tokens if estimated else None,
        )


class EngineProgram:
    """A program of the virtual node."""

    def __init__(self, sandbox: Sandbox, site: Site) -> None:
        self.sandbox = sandbox
        self.serving: Serving | None = None
        self._site = site
        self._slot: Slot | None = None
        self.key = f"{sandbox.namespace}/{sandbox.pod}"
        self._asked = asyncio.Event()
        self._crashed = asyncio.Event()
        self._last_words = ""

    @property
    def slot(self) -> Slot | None:
        """The GPU that it holds memory of, None before it has looked for one."""
        return self._slot

    async def run(self) -> Exit:
        try:
            if unknown := _unknown_to(_version(self.sandbox.image), self.sandbox.words):
                return Exit(code=2, message=f"vllm serve: error: unrecognized arguments: {unknown}")
            flags = parse(self.sandbox.words, self.sandbox.environ)
            self._site.running[self.key] = self
            self.serving = await self._start(flags)
            return await self._serve(self.serving)
        except Invalid as wrong:
            return Exit(code=2, message=f"vllm serve: error: argument {wrong}")
        except (Refused, OutOfMemory) as problem:
            return Exit(code=1, message=str(problem))
        except _Interrupted:
            return Exit(code=130, message="KeyboardInterrupt: terminated")
        finally:
            self._let_go()

    def terminate(self) -> None:
        self._asked.set()

    def crash(self, last_words: str) -> None:
        """The engine core dies, and its API server with it."""
        self._last_words = last_words
        self._crashed.set()

    def answers(self, port: int | None, path: str | None) -> bool:
        """The socket listens only after the engine has loaded: probes are refused until then."""
        if self.serving is None or port != self.serving.flags.port:
            return False
        return path in (None, "/health", "/ping", "/metrics", "/version") or (
            path == "/v1/models" and self.serving.flags.api_key is None
        )

    async def _start(self, flags: Flags) -> Serving:
        site = self._site
        llm = site.model(flags.model)
        slot = self._slot = site.hardware.slot_of(self.sandbox.devices)
        memory, total = slot.memory, slot.memory.total
        settings = settings_of(flags, llm, slot.card.kind)
        seconds = site.start_seconds
        await self._pause(_UNTIL_CHECK * seconds)
        free_before = memory.free
        requested = requested_bytes(flags, total, free_before)
        self._take(CONTEXT_BYTES + site.overhead_bytes)
        await self._pause(_WEIGHTS * seconds)
        self._take(llm.weight_bytes(settings.dtype))
        await self._pause(_PROFILE * seconds)
        activation, graphs = activation_bytes(settings, llm), graph_bytes(settings, flags)
        available = Bytes(flags.kv_cache_memory_bytes or 0)
        if flags.kv_cache_memory_bytes is None:
            available = profiled_kv_bytes(requested, free_before, memory.free, Bytes(activation + graphs))
        cache = kv_cache(available, settings, llm, flags)
        self._take(activation + cache.bytes)
        await self._pause(_GRAPHS * seconds)
        self._take(graphs)
        tap = Tap(cache.max_model_len)
        site.pace.now()
        tenant = site.pace.world.start_engine(
            self.sandbox.uid,
            gpu=slot.card.uuid,
            config=EngineConfig(
                max_num_seqs=settings.max_num_seqs,
                kv_blocks=cache.blocks,
                max_model_len=cache.max_model_len,
                max_num_batched_tokens=settings.max_num_batched_tokens,
                chunked_prefill=flags.chunked_prefill,
                block_size=flags.block_size,
                buckets=_buckets(flags),
            ),
            model=ModelDims.of(llm, settings.dtype),
            costs=site.costs,
            source=tap,
            cores=self.sandbox.cores,
        )
        return Serving(self.sandbox, site, slot, flags, llm, settings.dtype, cache, tenant, tap)

    async def _serve(self, serving: Serving) -> Exit:
        site = self._site
        site.pace.watch(self.sandbox.uid, serving.advanced)
        site.exchange.open(self.sandbox.address, serving.flags.port, serving.server.answer)
        await self._end_asked(None)
        if not self._crashed.is_set():
            serving.tenant.drain()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(serving.flags.shutdown_timeout):
                    await self._until(lambda: serving.tenant.engine.in_flight == 0 and not serving.server.busy)
        if self._crashed.is_set():
            return Exit(code=1, message=self._last_words)
        serving.tenant.crash(site.pace.now())
        serving.server.flush()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_ANSWERS_SECONDS):
                await self._until(lambda: not serving.server.busy)
        return Exit(code=0)

    async def _end_asked(self, seconds: float | None) -> None:
        """Until SIGTERM, a crash, or so many seconds have passed."""
        asked = asyncio.ensure_future(self._asked.wait())
        crashed = asyncio.ensure_future(self._crashed.wait())
        try:
            await asyncio.wait({asked, crashed}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
            crashed.cancel()

    async def _until(self, true: Callable[[], bool]) -> None:
        """Looks after every advance of the world. A crash is looked at too."""
        while not true() and not self._crashed.is_set():
            await self._site.pace.tick()

    async def _pause(self, seconds: float) -> None:
        """Raises _Interrupted on SIGTERM, Refused if it is made to crash."""
        await self._end_asked(seconds)
        if self._asked.is_set():
            raise _Interrupted
        if self._crashed.is_set():
            raise Refused(self._last_words)

    def _take(self, size: int) -> None:
        assert self._slot is not None
        self._slot.memory.take(self.sandbox.uid, Bytes(size))

    def _let_go(self) -> None:
        """However it ended, nothing of it is left."""
        site = self._site
        if site.running.get(self.key) is self:
            del site.running[self.key]
        if self.serving is not None:
            site.exchange.close(self.sandbox.address, self.serving.flags.port)
            site.pace.unwatch(self.sandbox.uid)
            site.pace.world.remove(self.sandbox.uid)
            self.serving.server.die()
            counters = self.serving.tenant.engine.counters
            site.ended.succeeded += counters.succeeded
            site.ended.aborted += counters.aborted + self.serving.reachable.tap.dealt
            self.serving = None
        if self._slot is not None:
            self._slot.memory.release(self.sandbox.uid)


def _buckets(flags: Flags) -> Buckets:
    names = {
        "request_latency": "request", "time_to_first_token": "first_token", "inter_token_latency": "token_gap",
        "iteration_tokens": "step_tokens", "request_tokens": "request_tokens",
    }  # fmt: skip
    return Buckets(**{names[family]: edges for family, edges in flags.buckets.items() if family in names})


def _cache_info(flags: Flags, cache: KvCache) -> dict[str, str]:
    """Labels of `vllm:cache_config_info`: the CacheConfig's fields as Python prints them."""
    tokens = (cache.blocks - 1) * flags.block_size
    return {
        "block_size": str(flags.block_size),
        "cache_dtype": "auto",
        "enable_prefix_caching": "True",
        "gpu_memory_utilization": str(flags.gpu_memory_utilization),
        "kv_cache_max_concurrency": str(tokens / cache.max_model_len),
        "kv_cache_memory_bytes": str(flags.kv_cache_memory_bytes),
        "kv_cache_size_tokens": str(tokens),
        "num_cpu_blocks": "None",
        "num_gpu_blocks": str(cache.blocks),
        "num_gpu_blocks_override": "None",
        "sliding_window": "None",
    }


def _unknown_to(version: str, words: Sequence[str]) -> str | None:
    """The first argument that this release of vLLM does not know, among those that gpupack gives by release."""
    new = (word for word in words if word.startswith("--custom-histogram-buckets"))
    return next(new, None) if release_of(version) < BUCKETS_SINCE else None


def _version(image: str) -> str:
    """Of the image's tag, `v0.33.0`; without one the newest known."""
    tag = image.rsplit("/", 1)[-1].partition(":")[2].removeprefix("v")
    return tag if tag[:1].isdigit() else VERSION
