"""Act 7: one promise, four ways to use a GPU, each at the highest load at which the twin keeps that promise.

The closed form proposes the shapes; the twin finds the loads, sweeps the single engine and measures. The honest
baseline is one engine swept to its best batch within the promise, with chunked prefill and all of vLLM's KV memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rich.table import Table

from gpupack.decide.advise import Advice, advise
from gpupack.decide.baselines import Contender, rows
from gpupack.decide.question import Question
from gpupack.facts.serving import Shape, Sharing, Slo, Statistic
from gpupack.perf import memory
from gpupack.perf.prediction import EngineGroup
from gpupack.rehearse import rehearse_steady
from gpupack.twin.measure import Measures, Spread
from gpupack.units import PerSecond, gibibytes, milliseconds, percent

SEED = 3
WINDOW_REQUESTS = 1500
HALVINGS = 7
SWEPT_LIMITS = (32, 64, 96, 128, 192, 256, 384, 512, 1024)
NAMES = {
    Contender.DEFAULTS: "vLLM's defaults",
    Contender.SWEPT: "one engine, swept within the promise",
    Contender.KNEE: "the lone knee (BCA)",
    Contender.PACKED: "packed by gpupack",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row, measured in the twin at `rate` requests a second of the whole GPU. `measured` None: no load keeps it.

    `plateau` is total tokens a second where nobody asks for latency; of the swept engine only.
    """

    contender: Contender
    shape: Shape
    replicas: int
    rate: PerSecond
    measured: Measures | None
    kv_bytes: int
    freed_bytes: int
    plateau: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    slo: Slo
    entries: tuple[Entry, ...]

    def gain(self, over: Contender) -> float | None:
        """By what share packed does more tokens a second; None if either keeps the promise at no load."""
        done = {each.contender: each.measured for each in self.entries}
        packed, other = done[Contender.PACKED], done[over]
        if packed is None or other is None:
            return None
        return packed.total_tokens_per_second / other.total_tokens_per_second - 1.0


def compare(question: Question) -> Comparison:
    advice = advise(question)
    entries = []
    for row in rows(question, advice):
        if row.contender is Contender.SWEPT:
            entries.append(_swept(question, advice.slo, row.shape))
        else:
            entries.append(_entry(question, advice.slo, row.contender, row.shape, row.replicas))
    freed = next(each.kv_bytes for each in entries if each.contender is Contender.DEFAULTS)
    return Comparison(
        slo=advice.slo, entries=tuple(replace(each, freed_bytes=freed - each.kv_bytes) for each in entries)
    )


def stairs(question: Question, advice: Advice, most: int) -> list[Measures]:
    """1 to `most` engines of the advised shape on one GPU, all kept full, in the twin."""
    return [
        rehearse_steady(
            question.gpu, (group(question, advice.shape, count, None),), Sharing.MPS, SEED,
            window_requests=WINDOW_REQUESTS,
        )[0]
        for count in range(1, most + 1)
    ]  # fmt: skip


def _swept(question: Question, slo: Slo, proposed: Shape) -> Entry:
    """The closed form's batch limit and a wide grid, each at its own highest load; the best of them."""
    limits = sorted({*SWEPT_LIMITS, proposed.max_num_seqs})
    shapes = [
        memory.default_shape(
            question.llm, question.dtype, question.gpu, max_num_seqs=limit,
            max_num_batched_tokens=max(limit, question.max_num_batched_tokens), max_model_len=proposed.max_model_len,
        )
        for limit in limits
    ]  # fmt: skip
    plateau = max(_measure(question, shape, 1, None).total_tokens_per_second for shape in shapes)
    found = [_entry(question, slo, Contender.SWEPT, shape, 1) for shape in shapes]
    best = max(found, key=lambda each: each.measured.total_tokens_per_second if each.measured else 0.0)
    reached = best.measured.total_tokens_per_second if best.measured else 0.0
    return replace(best, plateau=max(plateau, reached))


def _entry(question: Question, slo: Slo, contender: Contender, shape: Shape, replicas: int) -> Entry:
    rate, measured = _highest(question, slo, shape, replicas)
    return Entry(
        contender=contender,
        shape=shape,
        replicas=replicas,
        rate=PerSecond(rate),
        measured=measured,
        kv_bytes=replicas * shape.kv_cache_memory_bytes,
        freed_bytes=0,
    )


def _highest(question: Question, slo: Slo, shape: Shape, replicas: int) -> tuple[float, Measures | None]:
    """The highest request rate whose statistic keeps the promise, by halving, and what was measured there."""
    full = _measure(question, shape, replicas, None)
    low, high = 0.0, full.output_tokens_per_second / question.lengths.output_mean
    best: Measures | None = None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        measured = _measure(question, shape, replicas, middle)
        if _keeps(measured, slo):
            low, best = middle, measured
        else:
            high = middle
    return low, best


def _measure(question: Question, shape: Shape, replicas: int, rate: float | None) -> Measures:
    engines = (group(question, shape, replicas, rate),)
    return rehearse_steady(question.gpu, engines, Sharing.MPS, SEED, window_requests=WINDOW_REQUESTS)[0]


def group(question: Question, shape: Shape, replicas: int, rate: float | None) -> EngineGroup:
    """Engines of that shape with the question's traffic; `rate` None keeps them full."""
    return EngineGroup(
        llm=question.llm,
        dtype=question.dtype,
        shape=shape,
        lengths=question.lengths,
        replicas=replicas,
        request_rate=None if rate is None else PerSecond(rate),
        coefficients=question.coefficients,
    )


def _keeps(measured: Measures, slo: Slo) -> bool:
    itl = slo.itl is None or _statistic(measured.itl, slo.statistic) <= slo.itl
    ttft = slo.ttft is None or (measured.ttft is not None and _statistic(measured.ttft, slo.statistic) <= slo.ttft)
    return itl and ttft


def _statistic(spread: Spread, statistic: Statistic) -> float:
    return {Statistic.MEAN: spread.mean, Statistic.P95: spread.p95, Statistic.P99: spread.p99}[statistic]


def promise(slo: Slo) -> str:
    parts = [
        f"{name} {slo.statistic.value} {milliseconds(limit):.0f} ms"
        for name, limit in (("inter-token latency", slo.itl), ("time to first token", slo.ttft))
        if limit is not None
    ]
    return " and ".join(parts)


_HEADINGS = (
    "B x R", "req/s", "tokens/s\nin + out", "tokens/s\nout", "ITL ms\nmean / p95", "TTFT ms\nmean / p95", "KV GiB",
    "freed\nGiB", "DRAM\nactive", "satu-\nration", "plateau\nwithout\npromise",
)  # fmt: skip


def table(comparison: Comparison) -> Table:
    drawn = Table(title=f"One promise: {promise(comparison.slo)}; each row at the highest load that keeps it")
    drawn.add_column("one GPU", overflow="fold")
    for heading in _HEADINGS:
        drawn.add_column(heading, justify="right", no_wrap=True)
    for each in comparison.entries:
        limits = (f"{each.shape.max_num_seqs} x {each.replicas}",)
        memory_columns = (f"{gibibytes(each.kv_bytes):.1f}", f"{gibibytes(each.freed_bytes):.1f}")
        plateau = "" if each.plateau is None else f"{each.plateau:,.0f}"
        if each.measured is None:
            drawn.add_row(NAMES[each.contender], *limits, "none", "", "", "", "", *memory_columns, "", "", plateau)
            continue
        seen = each.measured
        drawn.add_row(
            NAMES[each.contender],
            *limits,
            f"{each.rate:.1f}",
            f"{seen.total_tokens_per_second:,.0f}",
            f"{seen.output_tokens_per_second:,.0f}",
            f"{milliseconds(seen.itl.mean):.1f} / {milliseconds(seen.itl.p95):.1f}",
            "" if seen.ttft is None else f"{milliseconds(seen.ttft.mean):.0f} / {milliseconds(seen.ttft.p95):.0f}",
            *memory_columns,
            f"{percent(seen.dram_active):.0f} %",
            f"{percent(seen.gpu_held):.0f} %",
            plateau,
            style="bold" if each.contender is Contender.PACKED else "",
        )
    return drawn


def headline(comparison: Comparison) -> str:
    """The gain over the honest baseline first."""
    parts = []
    for contender in (Contender.SWEPT, Contender.KNEE, Contender.DEFAULTS):
        gain = comparison.gain(contender)
        told = "which keeps the promise at no load" if gain is None else f"{percent(gain):+.0f} %"
        parts.append(f"{told} against {NAMES[contender]}")
    return f"Packing brings {'; '.join(parts)}."
