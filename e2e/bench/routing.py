"""What the way from client to engine costs: p95 ITL and TTFT by router, in the twin, engines of one shape on one GPU.

Every router gets the same requests at the same moments. Capacity is what the same engines finish when they are kept
full, so that a load of 0.85 means the same with two engines as with four. `turns` deals one after the other; `random`
draws an engine for each request (kube-proxy, a connection a request); `least` takes the one with the fewest requests;
`sticky N` has N clients that each draw an engine once and keep it (kube-proxy, connections that stay open).

Run it with `nice .venv/bin/python e2e/bench/routing.py`; `--brief` is one load and two seeds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from gpupack import catalog
from gpupack.facts.llm import Dtype
from gpupack.facts.policy import Policy
from gpupack.facts.serving import Lengths, Shape, Sharing
from gpupack.perf import calibration, memory
from gpupack.perf.prediction import EngineGroup, GroupPrediction, Router
from gpupack.perf.sharing import predict
from gpupack.rehearse import rehearse_steady
from gpupack.twin import arrivals
from gpupack.twin.engine import Engine, EngineConfig
from gpupack.twin.engine import Sequence as Served
from gpupack.twin.memory_system import VLLM_V1, GpuSpec, ModelDims, Mps
from gpupack.twin.world import World
from gpupack.units import PerSecond

LLM, GPU, DTYPE = catalog.llm("llama-3.2-1b"), catalog.gpu("H100-80GB"), Dtype.BFLOAT16
LENGTHS = Lengths(input_mean=512.0, output_mean=256.0)
BATCH, LONGEST = 84, 5024
WARM_UP, WINDOW = 30.0, 120.0
"""Seconds. A request takes two to five, so the warm-up is several lives of one."""
LOADS, COUNTS, SEEDS = (0.5, 0.7, 0.85, 0.95), (2, 3, 4), 5
EPP_DEFAULT = 0.8
"""Share of the KV cache above which an endpoint picker's default calls an engine saturated."""

Pick = Callable[[Sequence[Engine]], int]


def shape() -> Shape:
    tokens = memory.kv_tokens_needed(LENGTHS, BATCH, LONGEST, Policy().kv_safety)
    return Shape(
        max_num_seqs=BATCH,
        kv_cache_memory_bytes=memory.kv_cache_bytes(LLM, DTYPE, tokens),
        max_num_batched_tokens=memory.DEFAULT_BATCHED_TOKENS,
        max_model_len=LONGEST,
    )


def group(replicas: int, rate: float | None, router: Router = Router.LEAST_LOADED) -> EngineGroup:
    return EngineGroup(
        llm=LLM, dtype=DTYPE, shape=shape(), lengths=LENGTHS, replicas=replicas, router=router,
        request_rate=None if rate is None else PerSecond(rate), coefficients=calibration.coefficients(),
    )  # fmt: skip


def turns(_chance: Random, _count: int) -> Pick:
    dealt = 0

    def pick(engines: Sequence[Engine]) -> int:
        nonlocal dealt
        dealt += 1
        return dealt % len(engines)

    return pick


def anyone(chance: Random, count: int) -> Pick:
    return lambda _engines: chance.randrange(count)


def least(_chance: Random, _count: int) -> Pick:
    return lambda engines: min(range(len(engines)), key=lambda number: engines[number].in_flight)


def sticky(clients: int) -> Callable[[Random, int], Pick]:
    def router(chance: Random, count: int) -> Pick:
        kept = [chance.randrange(count) for _ in range(clients)]
        return lambda _engines: kept[chance.randrange(clients)]

    return router


ROUTERS = {
    "turns": turns, "random": anyone, "least": least, "sticky 256": sticky(256), "sticky 32": sticky(32),
}  # fmt: skip


class Listener:
    """What one engine does from `since` on."""

    def __init__(self) -> None:
        self.since = float("inf")
        self.gap_tokens: dict[float, int] = {}
        self.first: list[float] = []
        self.full_seconds = self.above_seconds = self.usage_seconds = 0.0
        self.engine: Engine | None = None

    def stepped(self, began_at: float, ended_at: float, running: int) -> None:
        if began_at < self.since or self.engine is None or running < BATCH:
            return
        usage, seconds = self.engine.kv_usage, ended_at - began_at
        self.full_seconds += seconds
        self.usage_seconds += usage * seconds
        self.above_seconds += seconds if usage > EPP_DEFAULT else 0.0

    def gaps(self, seconds: float, tokens: int) -> None:
        if self.since != float("inf"):
            place = round(seconds, 5)
            self.gap_tokens[place] = self.gap_tokens.get(place, 0) + tokens

    def finished(self, sequence: Served) -> None:
        if sequence.arrived_at >= self.since:
            self.first.append(sequence.first_token_at - sequence.arrived_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Seconds at the 95th percentile; `full` is KV use, and the share of the time above 0.8, while batches are full."""

    itl: float
    ttft: float
    preemptions: int
    full: tuple[float, float] | None


def p95(counts: dict[float, int]) -> float:
    left = 0.95 * sum(counts.values())
    for value in sorted(counts):
        left -= counts[value]
        if left <= 0.0:
            return value
    raise ValueError("nothing was counted")


def simulate(replicas: int, rate: float, router: str, seed: int) -> Seen:
    """One window. Arrivals and lengths come from `seed` alone, whatever the router draws."""
    lengths = arrivals.Lengths(
        input_mean=LENGTHS.input_mean, output_mean=LENGTHS.output_mean, input_cv=LENGTHS.input_cv,
        output_cv=LENGTHS.output_cv, total_limit=LONGEST,
    )  # fmt: skip
    chance = Random(seed)
    source = arrivals.PoissonArrivals(rates=[(0.0, rate)], requests=lengths.draw(chance), chance=chance)
    world = World()
    spec = GpuSpec(
        memory_bytes=GPU.memory_bytes, dram_bytes_per_second=GPU.dram_bytes_per_second,
        dense_flops_per_second=GPU.dense_flops_per_second,
    )  # fmt: skip
    world.add_gpu("gpu", spec, Mps())
    one = shape()
    config = EngineConfig(
        max_num_seqs=BATCH, max_model_len=LONGEST, max_num_batched_tokens=one.max_num_batched_tokens,
        kv_blocks=one.kv_cache_memory_bytes // (16 * LLM.kv_bytes_per_token(DTYPE)),
    )  # fmt: skip
    listeners = [Listener() for _ in range(replicas)]
    engines = []
    for number, listener in enumerate(listeners):
        tenant = world.start_engine(
            f"engine-{number}", gpu="gpu", config=config, model=ModelDims.of(LLM, DTYPE), costs=VLLM_V1,
            listener=listener,
        )  # fmt: skip
        listener.engine = tenant.engine
        engines.append(tenant.engine)
    pick = ROUTERS[router](Random(-1 - seed), replicas)

    def deal(until: float) -> None:
        while (at := source.next_at()) <= until:
            world.advance(at)
            for came, request in source.take(at, 0):
                engines[pick(engines)].submit(request, came)
        world.advance(until)

    deal(WARM_UP)
    before = sum(each.counters.preemptions for each in engines)
    for listener in listeners:
        listener.since = WARM_UP
    deal(WARM_UP + WINDOW)
    gap_tokens: dict[float, int] = {}
    for listener in listeners:
        for value, tokens in listener.gap_tokens.items():
            gap_tokens[value] = gap_tokens.get(value, 0) + tokens
    waits = sorted(value for listener in listeners for value in listener.first)
    full = sum(each.full_seconds for each in listeners)
    return Seen(
        itl=p95(gap_tokens),
        ttft=waits[int(0.95 * len(waits))],
        preemptions=sum(each.counters.preemptions for each in engines) - before,
        full=None if full < 1.0 else (
            sum(each.usage_seconds for each in listeners) / full, sum(each.above_seconds for each in listeners) / full
        ),
    )  # fmt: skip


def capacity(replicas: int) -> float:
    """Requests a second of so many engines that are kept full."""
    full = rehearse_steady(GPU, (group(replicas, None),), Sharing.MPS, seed=0, window_requests=4000)[0]
    return full.output_tokens_per_second / LENGTHS.output_mean


def between(values: Sequence[float]) -> str:
    """Median of the seeds in milliseconds, and the least and most of them."""
    middle, low, high = (1000.0 * value for value in (statistics.median(values), min(values), max(values)))
    digits = 0 if middle >= 100.0 else 1
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def predicted(replicas: int, rate: float, router: Router) -> GroupPrediction:
    return predict(GPU, (group(replicas, rate, router),), Sharing.MPS).groups[0]


def rows(loads: Sequence[float], counts: Sequence[int], seeds: int) -> Iterator[str]:
    for replicas in counts:
        most = capacity(replicas)
        for load in loads:
            rate = load * most
            for router in ROUTERS:
                print(f"\r{replicas} engines, load {load:.2f}, {router}      ", end="", file=sys.stderr)
                seen = [simulate(replicas, rate, router, seed) for seed in range(seeds)]
                full = [each.full for each in seen if each.full is not None]
                kv = "-" if not full else (
                    f"{100 * statistics.mean(usage for usage, _ in full):.0f} %, "
                    f"{100 * statistics.mean(above for _, above in full):.0f} %"
                )  # fmt: skip
                cells = (
                    str(replicas), f"{load:.2f}", f"{rate:.0f}", router,
                    between([each.itl for each in seen]), between([each.ttft for each in seen]),
                    str(sum(each.preemptions for each in seen)), kv,
                )  # fmt: skip
                yield f"| {' | '.join(cells)} |"
            for router in Router:
                told = predicted(replicas, rate, router)
                wait = "-" if told.ttft_p95 is None else f"{1000 * told.ttft_p95:,.0f}"
                yield (
                    f"| {replicas} | {load:.2f} | {rate:.0f} | closed form, {router.value} | "
                    f"{1000 * told.itl_p95:.1f} | {wait} | | |"
                )
    print(file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brief", action="store_true", help="load 0.85 and two seeds")
    brief = parser.parse_args().brief
    loads, seeds = ((0.85,), 2) if brief else (LOADS, SEEDS)
    print(f"{LLM.aliases[0]} on {GPU.name} by MPS, batch limit {BATCH}, KV cache sized for it, 512 tokens in, 256 out;")
    print(f"{WINDOW:.0f} s after {WARM_UP:.0f} s of warm-up, {seeds} seeds: median (least to most), milliseconds.\n")
    print(
        "| engines | load | requests/s | router | ITL p95 | TTFT p95 | preemptions "
        f"| KV use of full batches, time above {EPP_DEFAULT} |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row in rows(loads, COUNTS, seeds):
        print(row, flush=True)


if __name__ == "__main__":
    main()
