"""The live view: three tables, what the marked row says in words, and a serving's explanation on a key.

Textual draws; what is shown and how it looks is `snapshot`'s, `tables`' and `cells`' business. Paints when a status
changed, and whenever the operator's page was read again.
"""

from __future__ import annotations

import asyncio
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Input, Static

from gpupack.top.feed import Feed
from gpupack.top.snapshot import GpuRow, PoolRow, ServingRow, Snapshot
from gpupack.top.tables import (
    GPUS,
    POOLS,
    SERVINGS,
    Colours,
    Column,
    Row,
    arranged,
    colours_of,
    columns,
    headline,
    matches,
    said,
)

COLUMN_GAP = re.compile(r"  +|^ {6}\w+: +")
"""What stands between the columns of a table, or before what a part of a decision says."""
SCROLLBAR = 2
LEAST_GAP_SECONDS = 0.5
"""Between two paints, however many statuses change."""
Explain = Callable[[Mapping[str, Any]], str]
"""A ModelServing's explanation in prose."""


def key_of(row: PoolRow | GpuRow | ServingRow) -> str:
    if isinstance(row, PoolRow):
        return row.name
    return row.uuid if isinstance(row, GpuRow) else str(row.key)


class Rows(DataTable[Text], Generic[Row]):
    """One table of the view. Cells that did not change are left alone, so that the mark and the scroll stay."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "select_cursor", "explain")]

    def __init__(self, title: str, table: Sequence[Column[Row]], *, id: str) -> None:
        super().__init__(id=id, cursor_type="row", cursor_foreground_priority="renderable")
        self._name = title
        self._table = table
        self._by: Column[Row] | None = None
        self._other_way = False
        self._shown: list[Column[Row]] = []
        self._rows: dict[str, Row] = {}
        self._cells: dict[str, list[Text]] = {}

    def marked(self) -> Row | None:
        """The row under the cursor."""
        keys = list(self._rows)
        return self._rows[keys[self.cursor_row]] if 0 <= self.cursor_row < len(keys) else None

    def sort_by(self, number: int | None) -> None:
        """The column of that place on the screen; None is the next one. The same column twice turns the order."""
        here = self._shown.index(self._by) if self._by in self._shown else -1
        if number is None:
            number = here + 1
        self._other_way = number == here and not self._other_way
        self._by = self._shown[number] if number < len(self._shown) else None

    def turn(self) -> None:
        self._other_way = not self._other_way

    def paint(self, rows: Sequence[Row], colours: Colours, *, width: int, words: str) -> None:
        shown = columns(self._table, width)
        kept = arranged([each for each in rows if matches(each, words)], self._by, other_way=self._other_way)
        cells = {key_of(each): [one.cell(each, colours, width) for one in shown] for each in kept}
        self._title(len(kept), len(rows))
        if shown != self._shown or list(cells) != list(self._cells):
            self._refill(shown, cells)
        else:
            for key, line in cells.items():
                for column, (new, old) in enumerate(zip(line, self._cells[key], strict=True)):
                    if new != old:
                        cell = _justified(new, shown[column].right)
                        self.update_cell(key, str(column), cell, update_width=len(new) > len(old))
        self._rows = {key_of(each): each for each in kept}
        self._cells = cells

    def _refill(self, shown: list[Column[Row]], cells: Mapping[str, list[Text]]) -> None:
        marked, top = self.cursor_row, self.scroll_y
        before = list(self._cells)
        self.clear(columns=shown != self._shown)
        if shown != self._shown:
            self._shown = shown
            for number, each in enumerate(shown):
                self.add_column(Text(each.title, justify="right" if each.right else "left"), key=str(number))
        for key, line in cells.items():
            right = (each.right for each in shown)
            self.add_row(*(_justified(cell, is_right) for cell, is_right in zip(line, right, strict=True)), key=key)
        names = list(cells)
        name = before[marked] if 0 <= marked < len(before) else ""
        place = names.index(name) if name in cells else min(marked, len(cells) - 1)
        self.move_cursor(row=max(0, place), animate=False, scroll=False)
        self.scroll_to(y=top, animate=False)

    def _title(self, kept: int, of: int) -> None:
        count = f"{kept}" if kept == of else f"{kept} of {of}"
        by = "" if self._by is None else f", by {self._by.title}{' turned' if self._other_way else ''}"
        self.border_title = f"{self._name} ({count}{by})"


def _justified(cell: Text, right: bool) -> Text:
    cell.justify = "right" if right else "left"
    return cell


def hanging(text: str, width: int) -> str:
    """Lines that are too long go on below the beginning of their last column."""
    lines: list[str] = []
    for line in text.splitlines():
        last = max((gap.end() for gap in COLUMN_GAP.finditer(line)), default=0)
        begin = last if last < width // 2 else len(line) - len(line.lstrip())
        lines += textwrap.wrap(line, width, subsequent_indent=" " * begin) or [""]
    return "\n".join(lines)


class Explanation(ModalScreen[None]):
    """Why a serving runs as it does, in the words of `gpupack explain`."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,q", "dismiss", "back"),
    ]

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="explanation"):
            yield Static()
        yield Footer()

    def on_mount(self) -> None:
        self.call_after_refresh(self._fit)

    def on_resize(self) -> None:
        self.call_after_refresh(self._fit)

    def _fit(self) -> None:
        room = self.query_one("#explanation", VerticalScroll).scrollable_content_region.width - SCROLLBAR
        self.query_one(Static).update(Text(hanging(self._text, max(20, room))))


class TopApp(App[None]):
    """`every` seconds the operator's page is read again."""

    TITLE = "gpupack top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #headline { height: 1; padding: 0 1; background: $panel; }
    #note { height: auto; max-height: 2; padding: 0 1; color: $text-warning; }
    #said { height: 2; padding: 0 1; color: $text-muted; }
    #words { height: 1; border: none; padding: 0 1; display: none; }
    Rows { border-top: solid $primary-darken-1; border-title-color: $text-primary; background: $background; }
    Rows:focus { border-top: solid $accent; border-title-color: $text-accent; border-title-style: bold; }
    #pools { height: auto; max-height: 5; }
    #gpus { height: auto; min-height: 4; max-height: 50%; }
    #servings { height: 1fr; min-height: 4; }
    Rows { scrollbar-size-horizontal: 0; scrollbar-size-vertical: 1; }
    Rows:focus { background-tint: transparent; }
    Rows > .datatable--cursor { background: $background; color: $foreground; text-style: none; }
    Rows:focus > .datatable--cursor { background: $primary-darken-2; }
    #explanation { margin: 1 2; padding: 0 1; border: round $accent; background: $background; }
    Explanation { align: center middle; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+c", "quit", "quit", priority=False),
        Binding("tab", "app.focus_next", "next table"),
        Binding("slash", "filter", "filter"),
        Binding("s", "sort", "sort"),
        Binding("r", "turn", "reverse"),
        Binding("escape", "clear", "clear filter", show=False),
    ]

    def __init__(self, feed: Feed, explain: Explain, *, every: float) -> None:
        super().__init__()
        self._feed = feed
        self._explain = explain
        self._every = every
        self._words = ""
        self._stirred = asyncio.Event()
        self._snapshot: Snapshot = feed.snapshot()

    def compose(self) -> ComposeResult:
        yield Static(id="headline")
        yield Static(id="note")
        yield Rows("GpuPools", POOLS, id="pools")
        yield Rows("GPUs", GPUS, id="gpus")
        yield Rows("ModelServings", SERVINGS, id="servings")
        yield Static(id="said")
        yield Input(placeholder="words that a row must hold", id="words", compact=True)
        yield Footer()

    def on_mount(self) -> None:
        self.servings.focus()
        self.run_worker(self._follow(), exclusive=True)

    @property
    def pools(self) -> Rows[PoolRow]:
        return self.query_one("#pools", Rows)

    @property
    def gpus(self) -> Rows[GpuRow]:
        return self.query_one("#gpus", Rows)

    @property
    def servings(self) -> Rows[ServingRow]:
        return self.query_one("#servings", Rows)

    async def _follow(self) -> None:
        async with self._feed.follow(self._stirred.set):
            loop = asyncio.get_running_loop()
            read_at = loop.time()
            while True:
                self.paint()
                await asyncio.sleep(LEAST_GAP_SECONDS)
                try:
                    async with asyncio.timeout_at(read_at + self._every):
                        await self._stirred.wait()
                except TimeoutError:
                    read_at = loop.time()
                    await self._feed.read_page()
                self._stirred.clear()

    def paint(self) -> None:
        """Everything anew from what the feed knows."""
        self._snapshot = seen = self._feed.snapshot()
        colours, width = colours_of(seen), self.size.width
        self.query_one("#headline", Static).update(headline(seen))
        note = "; ".join(each for each in (seen.problem, seen.note) if each)
        self.query_one("#note", Static).display = bool(note)
        self.query_one("#note", Static).update(Text(note))
        self.pools.display = bool(seen.pools)
        self.pools.paint(seen.pools, colours, width=width, words="")
        self.gpus.paint(seen.gpus, colours, width=width, words=self._words)
        self.servings.paint(seen.servings, colours, width=width, words=self._words)
        self._say()

    def _say(self) -> None:
        table = self.focused
        row = table.marked() if isinstance(table, Rows) else self.servings.marked()
        self.query_one("#said", Static).update(Text(said(row)))

    def on_resize(self) -> None:
        self.paint()

    def on_descendant_focus(self) -> None:
        self._say()

    def on_data_table_row_highlighted(self) -> None:
        self._say()

    def on_data_table_row_selected(self) -> None:
        self.action_open()

    def on_data_table_header_selected(self, event: DataTable.HeaderSelected) -> None:
        if isinstance(event.data_table, Rows):
            event.data_table.sort_by(event.column_index)
            self.paint()

    def on_input_changed(self, event: Input.Changed) -> None:
        self._words = event.value
        self.paint()

    def on_input_submitted(self) -> None:
        self.query_one("#words", Input).display = bool(self._words)
        self.servings.focus()

    def action_open(self) -> None:
        """A serving's explanation; of a GPU those of the servings on it."""
        row = self.focused.marked() if isinstance(self.focused, Rows) else None
        if isinstance(row, ServingRow):
            chosen = [row]
        elif isinstance(row, GpuRow):
            here = {each.serving for each in row.engines}
            chosen = [each for each in self._snapshot.servings if each.key in here]
        else:
            chosen = []
        if chosen:
            self.push_screen(Explanation("\n\n".join(self._explain(each.resource) for each in chosen)))

    def action_filter(self) -> None:
        words = self.query_one("#words", Input)
        words.display = True
        words.focus()

    def action_clear(self) -> None:
        words = self.query_one("#words", Input)
        words.value = ""
        words.display = False
        self.servings.focus()

    def action_sort(self) -> None:
        self._change(lambda table: table.sort_by(None))

    def action_turn(self) -> None:
        self._change(lambda table: table.turn())

    def _change(self, change: Callable[[Rows[Any]], None]) -> None:
        if isinstance(self.focused, Rows):
            change(self.focused)
            self.paint()
