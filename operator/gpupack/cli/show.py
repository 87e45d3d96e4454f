"""How answers are printed: one JSON object for machines, short lines and tables for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from gpupack.facts.estimate import Estimate
from gpupack.units import GIB, milliseconds

Json = Mapping[str, "Json"] | Sequence["Json"] | str | int | float | bool | None


def print_json(answer: Json) -> None:
    """Strict JSON: a number that is not finite is a bug here, because absent is null."""
    print(json.dumps(answer, indent=2, allow_nan=False))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: bool = False) -> str:
    """Columns as wide as their widest cell; the first is a label, the others are numbers (or words: `left`)."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if left or column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    )


def rounded(value: float | None, digits: int = 6) -> float | None:
    """Significant digits that a prediction deserves; None stays None."""
    return None if value is None else float(f"{value:.{digits}g}")


def ms(value: float | None) -> str:
    return "-" if value is None else f"{milliseconds(value):.1f} ms"


def gib(value: float) -> str:
    return f"{value / GIB:.1f} GiB"


def pct(value: float | None) -> str:
    return "-" if value is None else f"{100.0 * value:.0f} %"


def rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def estimate_json(estimate: Estimate) -> Json:
    return {
        "value": rounded(estimate.value),
        "low": rounded(estimate.low),
        "high": rounded(estimate.high),
        "source": estimate.source.word,
    }
