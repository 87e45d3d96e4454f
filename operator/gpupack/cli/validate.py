"""`gpupack validate`: how far the closed form and the twin are from published measurements, as a page and as JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from gpupack.cli.arguments import whole
from gpupack.cli.page import write
from gpupack.cli.show import print_json, table
from gpupack.cli.validation.extract import read
from gpupack.cli.validation.judge import Judgement, judge
from gpupack.cli.validation.report import absent_lines, as_json, gain_rows, line_rows, page, preempted_rows


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="the extracts (e2e/bench/VALIDATION.md says which)"
    )
    parser.add_argument(
        "--report",
        type=Path,
        default=Path("gpupack-validation.html"),
        metavar="FILE.html",
        help="the page; the JSON is written beside it; default gpupack-validation.html",
    )
    parser.add_argument("--quick", action="store_true", help="without the twin")
    parser.add_argument("--seed", type=whole, default=0, metavar="S", help="of the twin's chance; default 0")
    parser.add_argument("--json", action="store_true", help="print the JSON too, and nothing else")


def run(args: argparse.Namespace) -> int:
    data = read(args.data)
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("predicting every run", total=1)

        def advance(doing: str, done: int, of: int) -> None:
            bar.update(task, description=doing, completed=done, total=of)

        judgement = judge(data, twin=not args.quick, seed=args.seed, advance=advance)
        advance("drawing", 0, 1)
        text = page(data, judgement, quick=args.quick)
    answer = as_json(data, judgement, seed=args.seed)
    beside = args.report.with_suffix(".json")
    write(args.report, text, "--report")
    write(beside, json.dumps(answer, indent=2, allow_nan=False) + "\n", "--report")
    if args.json:
        print_json(answer)
    else:
        print(_text(judgement, absent_lines(data, quick=args.quick)))
        print(f"\nthe page: {args.report}; the numbers: {beside}")
    return 0


def _text(judgement: Judgement, absent: list[str]) -> str:
    parts = [table(*line_rows(judgement.lines))]
    if judgement.gains:
        parts.append(table(*gain_rows(judgement.gains)))
    preempted = preempted_rows(judgement)
    if preempted[1]:
        parts.append(table(*preempted))
    parts.append(table(*line_rows(judgement.by_model, "by model")))
    parts.append(table(*line_rows(judgement.by_provenance, "by provenance")))
    if absent:
        parts.append("\n".join(absent))
    return "\n\n".join(parts)
