"""How a quantity looks in a terminal: gauges, memory by replica, a latency against its promise. `-` is not known.

Whoever draws such a thing draws it with these: the tables of `top`, and the demo. Colour says nothing that the text
beside it does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.text import Text

from gpupack.units import gibibytes, milliseconds, percent

NONE = "-"
HOT = 0.9
"""From this share of what is attainable on a gauge is red."""
TRACK = "on grey23"
PARTS = " ▏▎▍▌▋▊▉"
GOOD, BAD, DOUBT, FAR = "#4fb477", "#ff5c57", "#e0b040", "grey50"
COLOURS = ("#56b4e9", "#e69f00", "#c58af9", "#8dd3c7", "#f5a3c7", "#d9d05e", "#9fb4ff", "#c49c7a")
"""Of servings, in the order of their names; none is near what is good or bad."""


def none() -> Text:
    return Text(NONE, style="dim")


def gauge(share: float, width: int, limit: float | None = None, *, warns: bool = True) -> Text:
    """A bar of `share` of one, red from nine tenths of `limit` on if it `warns`; beyond the limit it is hatched."""
    hot = warns and limit is not None and limit > 0.0 and share >= HOT * limit
    filled = round(8 * width * min(1.0, max(0.0, share)))
    whole, part = divmod(filled, 8)
    bar = "█" * whole + (PARTS[part] if part else "")
    reach = width if limit is None else min(width, max(round(width * limit), len(bar)))
    text = Text().append(bar.ljust(reach), style=f"{BAD if hot else GOOD} {TRACK}")
    return text.append("╱" * (width - reach), style=f"{FAR} {TRACK}")


def segments(parts: Sequence[tuple[float, str]], total: float, width: int) -> Text:
    """Parts of a whole side by side, each in its colour; neighbours of one colour differ in their shade."""
    text, drawn, done, shade = Text(), 0, 0.0, 0
    before = ""
    for value, colour in parts:
        done += value
        upto = min(width, max(drawn, round(width * done / total)))
        shade = 1 - shade if colour == before else 0
        text.append("▓█"[1 - shade] * (upto - drawn), style=f"{colour} {TRACK}")
        drawn, before = upto, colour
    text.append(" " * (width - drawn), style=TRACK)
    return text


def against(value: float | None, slo: float | None, digits: int) -> Text:
    """A latency in milliseconds beside its promise, red where it is broken."""
    if value is None and slo is None:
        return none()
    text = Text(NONE if value is None else f"{milliseconds(value):.{digits}f}")
    if slo is not None:
        colour = "dim" if value is None else BAD if value > slo else GOOD
        text.append(f" of {milliseconds(slo):.{digits if slo < 0.01 else 0}f}", style=colour)
    return text


def share_of(value: float | None, limit: float | None, of: str = " of ") -> str:
    """`43 of 57 %`"""
    told = NONE if value is None else f"{percent(value):.0f}"
    return f"{told} %" if limit is None else f"{told}{of}{percent(limit):.0f} %"


def memory_of(used: float | None, total: float | None, of: str = " of ") -> str:
    """`12.4 of 79 GiB`"""
    if total is None:
        return NONE
    return f"{NONE if used is None else f'{gibibytes(used):.1f}'}{of}{gibibytes(total):.0f} GiB"


def clock(at: float | None) -> str:
    """The time of day, in UTC as everything in the cluster."""
    return NONE if at is None else datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S")
