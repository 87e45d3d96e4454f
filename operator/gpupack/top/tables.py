"""The three tables: their columns, in what order their rows may stand, and how a row becomes cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from gpupack.decide.explain import counted, place
from gpupack.facts.observation import Phase
from gpupack.facts.serving import Mode, ServingKey
from gpupack.top import cells
from gpupack.top.snapshot import GpuRow, PoolRow, ServingRow, Snapshot
from gpupack.units import gibibytes

Row = TypeVar("Row", bound=PoolRow | GpuRow | ServingRow)
Colours = Mapping[ServingKey, str]
Order = tuple[bool, float | str]
ROOMY, WIDE = 110, 150
"""From so many columns on a terminal has room for longer gauges."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column(Generic[Row]):
    """`cell` is told how wide the terminal is; `since` so many columns there is room for this one.

    `order` sorts what is not known last, `largest_first` where one looks for the most of it.
    """

    title: str
    cell: Callable[[Row, Colours, int], Text]
    order: Callable[[Row], Order]
    largest_first: bool = False
    since: int = 0
    right: bool = False


def colours_of(snapshot: Snapshot) -> Colours:
    """One a serving, in the order of names."""
    keys = sorted({each.key for each in snapshot.servings} | {e.serving for row in snapshot.gpus for e in row.engines})
    return {key: cells.COLOURS[number % len(cells.COLOURS)] for number, key in enumerate(keys)}


def columns(table: Sequence[Column[Row]], width: int) -> list[Column[Row]]:
    return [each for each in table if width >= each.since]


def arranged(rows: Iterable[Row], column: Column[Row] | None, *, other_way: bool = False) -> list[Row]:
    """Sorted by a column; None leaves them in the order of their names. Unknown values stay at the end."""
    if column is None:
        return list(rows)
    turned = column.largest_first is not other_way
    known = [each for each in rows if not column.order(each)[0]]
    unknown = [each for each in rows if column.order(each)[0]]
    return sorted(known, key=lambda each: column.order(each)[1], reverse=turned) + unknown


def matches(row: PoolRow | GpuRow | ServingRow, words: str) -> bool:
    """Whether every word is somewhere in the row's names."""
    return all(word in _names(row).lower() for word in words.lower().split())


def _names(row: PoolRow | GpuRow | ServingRow) -> str:
    if isinstance(row, PoolRow):
        return row.name
    if isinstance(row, GpuRow):
        return " ".join((row.pool, row.node, row.uuid, row.kind, *(str(each.serving) for each in row.engines)))
    return f"{row.key} {row.pool} {row.mode} {row.reason}"


def _word(text: str) -> Order:
    return (not text, text)


def _number(value: float | None) -> Order:
    return (value is None, 0.0 if value is None else value)


def _count(value: int | None) -> Text:
    return cells.none() if value is None else Text(str(value))


def _long(width: int, longest: int) -> int:
    """How long a gauge may be."""
    return longest if width >= WIDE else longest // 2 if width >= ROOMY else 6


def _of(width: int) -> str:
    return " of " if width >= ROOMY else "/"


def _dram(row: GpuRow, _: Colours, width: int) -> Text:
    if row.dram_active is None:
        return cells.none()
    # At smaller batches more can be reached than at full ones, so to be beyond it is nothing to warn of.
    text = cells.gauge(row.dram_active, _long(width, 16), row.attainable, warns=False)
    told = cells.share_of(row.dram_active, row.attainable, _of(width))
    return text.append(f" {told}" + (f" at {cells.clock(row.dram_at)}" if row.dram_at is not None else ""),
                       style="dim" if row.dram_at is not None else "")  # fmt: skip


def _saturation(row: GpuRow) -> float | None:
    if row.dram_active is None:
        return None
    return row.dram_active / row.attainable if row.attainable else row.dram_active


def _memory(row: GpuRow, colours: Colours, width: int) -> Text:
    if row.memory is None:
        return cells.none()
    parts = [(float(each.memory or 0), colours.get(each.serving, "white")) for each in row.engines]
    text = cells.segments(parts, row.memory, _long(width, 24))
    taken = row.memory_used if row.memory_used is not None else sum(each.memory or 0 for each in row.engines)
    told = cells.memory_of(taken, row.memory, _of(width))
    return text.append(f" {told}", style="" if row.memory_used is not None else "dim")


def _gpu(row: GpuRow, _colours: Colours, _width: int) -> Text:
    return Text(f"└ {place(row.uuid)}" if row.parent else place(row.uuid))


def _engines(row: GpuRow, colours: Colours, _: int) -> Text:
    if not row.engines:
        return Text("in slices" if row.cut else "free", style="dim")
    numbers = Counter(each.serving for each in row.engines)
    away = sum(each.phase != Phase.READY for each in row.engines)
    parts = [Text(f"{count} {key.name}", style=colours.get(key, "")) for key, count in sorted(numbers.items())]
    text = Text(", ").join(parts)
    return text.append(f" ({away} not ready)", style="dim") if away else text


def _shape(row: ServingRow, _colours: Colours, _width: int) -> Text:
    if row.max_num_seqs is None or row.kv_bytes is None:
        return cells.none()
    return Text(f"{row.max_num_seqs} x {gibibytes(row.kv_bytes):.1f} GiB")


def _ready(row: ServingRow, _colours: Colours, _width: int) -> Text:
    if row.mode == Mode.ADVISE:
        return Text("advice", style="dim")
    if row.ready is None:
        return cells.none()
    planned = row.ready if row.planned is None else row.planned
    return Text(f"{row.ready} of {planned}", style="" if row.ready >= planned else cells.DOUBT)


def _decision(row: ServingRow, _colours: Colours, _width: int) -> Text:
    if not row.reason:
        return cells.none()
    return Text(row.reason, style=cells.BAD if row.slo_met == "False" else "")


def _problem(row: PoolRow, _colours: Colours, _width: int) -> Text:
    return Text(row.problem, style=cells.DOUBT) if row.problem else Text("decides", style=cells.GOOD)


POOLS: tuple[Column[PoolRow], ...] = (
    Column(title="GpuPool", cell=lambda row, *_: Text(row.name), order=lambda row: _word(row.name)),
    Column(title="GPUs", cell=lambda row, *_: _count(row.gpus), order=lambda row: _number(row.gpus), right=True,
           largest_first=True),
    Column(title="in use", cell=lambda row, *_: _count(row.gpus_in_use), order=lambda row: _number(row.gpus_in_use),
           right=True, largest_first=True),
    Column(title="replicas", cell=lambda row, *_: _count(row.replicas), order=lambda row: _number(row.replicas),
           right=True, largest_first=True),
    Column(title="servings", cell=lambda row, *_: _count(row.servings), order=lambda row: _number(row.servings),
           right=True, largest_first=True),
    Column(title="state", cell=_problem, order=lambda row: _word(row.problem)),
)  # fmt: skip

GPUS: tuple[Column[GpuRow], ...] = (
    Column(title="GPU", cell=_gpu, order=lambda row: _word(row.uuid)),
    Column(title="node", cell=lambda row, *_: Text(row.node or cells.NONE), order=lambda row: _word(row.node),
           since=WIDE),
    Column(title="kind", cell=lambda row, *_: Text(row.kind or cells.NONE), order=lambda row: _word(row.kind),
           since=120),
    Column(title="DRAM active", cell=_dram, order=lambda row: _number(_saturation(row)), largest_first=True),
    Column(title="memory by replica", cell=_memory, order=lambda row: _number(row.memory_used), largest_first=True),
    Column(
        title="tok/s", right=True, largest_first=True, order=lambda row: _number(row.tokens_per_second),
        cell=lambda row, *_: cells.none()
        if row.tokens_per_second is None
        else Text(f"{row.tokens_per_second:,.0f}"),
    ),
    Column(
        title="power", right=True, largest_first=True, since=ROOMY, order=lambda row: _number(row.power),
        cell=lambda row, *_: cells.none() if row.power is None else Text(f"{row.power:.0f} W"),
    ),
    Column(title="engines", cell=_engines, order=lambda row: _number(len(row.engines)), largest_first=True),
)  # fmt: skip

SERVINGS: tuple[Column[ServingRow], ...] = (
    Column(title="ModelServing", cell=lambda row, colours, _: Text(str(row.key), style=colours.get(row.key, "")),
           order=lambda row: _word(str(row.key))),
    Column(title="ready", cell=_ready, order=lambda row: _number(row.ready), largest_first=True),
    Column(
        title="load", right=True, largest_first=True, order=lambda row: _number(row.requests_per_second),
        cell=lambda row, *_: cells.none()
        if row.requests_per_second is None
        else Text(f"{row.requests_per_second:.1f}/s"),
    ),
    Column(
        title="ITL ms", largest_first=True,
        cell=lambda row, *_: cells.against(row.itl, row.itl_slo, 1),
        order=lambda row: _number(None if row.itl is None else row.itl / (row.itl_slo or 1.0)),
    ),
    Column(
        title="TTFT ms", largest_first=True,
        cell=lambda row, *_: cells.against(row.ttft, row.ttft_slo, 0),
        order=lambda row: _number(None if row.ttft is None else row.ttft / (row.ttft_slo or 1.0)),
    ),
    Column(title="of", cell=lambda row, *_: Text(row.statistic, style="dim"),
           order=lambda row: _word(row.statistic), since=ROOMY),
    Column(title="batch x KV", cell=_shape, order=lambda row: _number(row.max_num_seqs), since=ROOMY),
    Column(title="last decision", cell=_decision, order=lambda row: _word(row.reason)),
    Column(title="at", cell=lambda row, *_: Text(cells.clock(row.decided_at), style="dim"),
           order=lambda row: _number(row.decided_at), largest_first=True, since=90),
)  # fmt: skip


def headline(snapshot: Snapshot) -> Text:
    """One line of everything."""
    in_use = len({each.card for each in snapshot.gpus if each.engines})
    gpus = [each.gpus for each in snapshot.pools if each.gpus is not None]
    engines = sum(len(each.engines) for each in snapshot.gpus)
    ready = sum(each.ready or 0 for each in snapshot.servings)
    missed = sum(each.slo_met == "False" for each in snapshot.servings)
    text = Text(
        f"{in_use} of {counted(sum(gpus) if gpus else len({each.card for each in snapshot.gpus}), 'GPU')} in use, "
        f"{counted(engines, 'engine')} planned, {ready} ready, {counted(len(snapshot.servings), 'serving')}"
    )
    return text.append(", ").append(counted(missed, "missed promise"), style=cells.BAD) if missed else text


def said(row: PoolRow | GpuRow | ServingRow | None) -> str:
    """What a row has to say in words."""
    if isinstance(row, ServingRow):
        return row.message or "gpupack has not decided on it yet"
    if isinstance(row, GpuRow):
        where = ", ".join(part for part in (row.uuid, row.kind, row.node) if part)
        return "; ".join([where, *(
            f"{each.serving} {each.phase}, batch {each.shape.max_num_seqs}"
            + ("" if each.memory is None else f", {gibibytes(each.memory):.1f} GiB")
            for each in row.engines
        )])  # fmt: skip
    return "" if row is None else row.problem


def drawn(snapshot: Snapshot, console: Console) -> RenderableType:
    """All of it at once, for a print."""
    colours, width = colours_of(snapshot), console.width
    parts: list[RenderableType] = [headline(snapshot), ""]
    parts += [_rich(POOLS, snapshot.pools, colours, width), ""] if snapshot.pools else []
    parts += [_rich(GPUS, snapshot.gpus, colours, width), ""] if snapshot.gpus else []
    parts += [_rich(SERVINGS, snapshot.servings, colours, width)]
    parts += [Text(each, style=cells.DOUBT) for each in (snapshot.problem, snapshot.note) if each]
    return Group(*parts)


def _rich(table: Sequence[Column[Row]], rows: Sequence[Row], colours: Colours, width: int) -> Table:
    shown = columns(table, width)
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for each in shown:
        made.add_column(each.title, justify="right" if each.right else "left", no_wrap=True)
    for row in rows:
        made.add_row(*(each.cell(row, colours, width) for each in shown))
    return made
