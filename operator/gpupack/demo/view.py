"""What the demo shows: the GPUs while it happens, the staircase of replicas, and tables.

Knows how a picture is drawn, not where its numbers come from. On a terminal the live view redraws in place; where the
output is a file or a pipe it prints one line a change, so that a log stays readable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.bar import Bar
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gpupack.top import cells
from gpupack.units import percent

BAR_WIDTH = 24
PLAIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaPicture:
    """`running` sequences of `limit`; `tokens_per_second` counts input and output."""

    serving: str
    phase: str
    running: int
    waiting: int
    limit: int
    tokens_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPicture:
    """`attainable` is the most DRAM activity that the engines on the GPU could reach together (share of the peak)."""

    name: str
    kind: str
    replicas: tuple[ReplicaPicture, ...]
    dram_active: float
    attainable: float | None
    memory_used: float
    memory_total: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPicture:
    """Latencies in seconds, measured at the engines over the last seconds; None: nothing finished."""

    name: str
    shape: str
    ready: int
    planned: int
    requests_per_second: float
    statistic: str
    itl: float | None
    itl_slo: float | None
    ttft: float | None
    ttft_slo: float | None
    decision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    title: str
    seconds: float
    gpus: tuple[GpuPicture, ...]
    servings: tuple[ServingPicture, ...]


def gpu_panel(gpu: GpuPicture) -> Panel:
    facts = Table.grid(padding=(0, 1))
    attainable = " attainable" if gpu.attainable is not None else ""
    facts.add_row(
        "DRAM",
        cells.gauge(gpu.dram_active, BAR_WIDTH, gpu.attainable),
        cells.share_of(gpu.dram_active, gpu.attainable) + attainable,
    )
    facts.add_row(
        "memory",
        cells.gauge(gpu.memory_used / gpu.memory_total, BAR_WIDTH),
        cells.memory_of(gpu.memory_used, gpu.memory_total),
    )
    facts.add_row("tokens", "", f"{gpu.tokens_per_second:,.0f}/s")
    engines = Table.grid(padding=(0, 2))
    for replica in gpu.replicas:
        engines.add_row(
            replica.serving,
            replica.phase,
            f"{replica.running}/{replica.limit} running",
            f"{replica.waiting} waiting",
            f"{replica.tokens_per_second:,.0f} tok/s",
        )
    if not gpu.replicas:
        engines.add_row(Text("empty", style="dim"))
    return Panel(Group(facts, engines), title=f"{gpu.name} · {gpu.kind}", width=78)


def servings_table(servings: Sequence[ServingPicture]) -> Table:
    table = Table(expand=False, show_edge=False, pad_edge=False)
    for heading in ("ModelServing", "shape", "ready", "load", "ITL ms", "TTFT ms", "last decision"):
        table.add_column(heading, overflow="fold")
    for each in servings:
        table.add_row(
            each.name,
            each.shape,
            f"{each.ready} of {each.planned}",
            f"{each.requests_per_second:.1f} req/s",
            Group(Text(each.statistic, style="dim"), cells.against(each.itl, each.itl_slo, 1)),
            Group(Text(each.statistic, style="dim"), cells.against(each.ttft, each.ttft_slo, 0)),
            each.decision,
        )
    return table


def draw(picture: Picture) -> RenderableType:
    return Panel(
        Group(Columns([gpu_panel(gpu) for gpu in picture.gpus]), servings_table(picture.servings)),
        title=f"{picture.title} · {picture.seconds:.0f} s",
    )


def line(picture: Picture) -> str:
    """The same in one line, for a log."""
    gpus = "; ".join(
        f"{gpu.name}: {len(gpu.replicas)} replicas, DRAM {percent(gpu.dram_active):.0f} %"
        + (f" of {percent(gpu.attainable):.0f} %" if gpu.attainable is not None else "")
        + f", {gpu.tokens_per_second:,.0f} tok/s"
        for gpu in picture.gpus
    )
    servings = "; ".join(
        f"{each.name} {each.ready}/{each.planned} at {each.requests_per_second:.1f} req/s" for each in picture.servings
    )
    return f"{picture.seconds:5.0f} s  {gpus} | {servings}"


class LiveView:
    """`with LiveView(console) as view: view.show(picture)` as often as there is something new."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._printed_at = -PLAIN_SECONDS
        self._last: Picture | None = None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        if self._last is not None:
            self._console.print(draw(self._last))

    def show(self, picture: Picture) -> None:
        self._last = picture
        if self._live is not None:
            self._live.update(draw(picture), refresh=True)
        elif picture.seconds - self._printed_at >= PLAIN_SECONDS:
            self._printed_at = picture.seconds
            self._console.print(line(picture), soft_wrap=True, highlight=False)

    def say(self, sentence: str) -> None:
        """A sentence that stays on the screen above the moving picture."""
        self._console.print(sentence, soft_wrap=True, highlight=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One stair: R engines, their measured and predicted total tokens a second, and what the last one brought."""

    replicas: int
    measured: float
    predicted: float
    dram_active: float
    itl: float
    ttft: float | None
    itl_slo: float


def staircase(steps: Sequence[Step]) -> RenderableType:
    """Throughput by number of engines: bars, the gain of each further engine, and its latency against the SLO."""
    most = max(step.measured for step in steps)
    table = Table(title="The staircase: engines on one GPU, measured in the twin beside the closed form")
    for heading in ("R", "tokens/s", "", "gain", "predicted", "DRAM active", "ITL p95 ms"):
        table.add_column(heading, justify="right")
    before: Step | None = None
    for step in steps:
        gain = "" if before is None else f"{percent(step.measured / before.measured - 1.0):+.1f} %"
        table.add_row(
            str(step.replicas),
            f"{step.measured:,.0f}",
            Bar(most, 0.0, step.measured, width=30, color="cyan"),
            gain,
            f"{step.predicted:,.0f}",
            f"{percent(step.dram_active):.0f} %",
            cells.against(step.itl, step.itl_slo, 1),
        )
        before = step
    return table
