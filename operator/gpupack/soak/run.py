"""`gpupack soak`: many histories in parallel, a report, and a file for each one that broke a rule.

A file is the history after it was shrunk; `gpupack replay FILE` plays it again. Knows processes and files, not rules.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gpupack.errors import Invalid
from gpupack.soak.history import History, draw, from_lines, to_lines
from gpupack.soak.play import Report, Violation, play
from gpupack.soak.shrink import shrink

SHRUNK = 5
"""So many violations are made short, each of another rule; the others keep their whole history."""
SEEDS_MOST = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """One history to play, with rates or with the twin's steps."""

    number: int
    stepped: bool


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """One event loop a process: a new one for each history would cost more than the history."""
    return asyncio.new_event_loop()


def play_seed(seed: Seed) -> Report:
    return play(draw(seed.number, stepped=seed.stepped), loop=_loop())


def again(history: History) -> Report:
    return play(history, loop=_loop())


def soak(seeds: Sequence[Seed], jobs: int) -> Iterator[Report]:
    """Reports as they come. The histories are dealt to `jobs` processes."""
    if jobs == 1:
        yield from map(play_seed, seeds)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, initializer=_begin) as pool:
        yield from pool.imap_unordered(play_seed, seeds, chunksize=4)


def _begin() -> None:
    """A worker's beginning: an interrupt is its parent's, and what was imported is never garbage."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=_count, default=100, metavar="N", help="so many fresh seeds (default: 100)")
    parser.add_argument("--first", type=int, metavar="SEED", help="the first of them (default: drawn, and printed)")
    parser.add_argument("--stepped", type=_count, default=0, metavar="N", help="so many more with engines in steps")
    parser.add_argument("--known", type=Path, metavar="FILE", help="seeds to play besides, one a line, # for comments")
    parser.add_argument("--jobs", type=_count, default=os.cpu_count() or 1, metavar="N", help="processes")
    parser.add_argument("--out", type=Path, default=Path(".soak"), metavar="DIR", help="where failing histories go")


def _count(word: str) -> int:
    number = int(word)
    if not 0 <= number <= SEEDS_MOST:
        raise argparse.ArgumentTypeError(f"{word} is not a count")
    return number


def run(args: argparse.Namespace) -> int:
    """Exit status 1 if any history broke a rule. Raises Invalid for a file that cannot be read."""
    first = random.SystemRandom().randrange(SEEDS_MOST) if args.first is None else args.first
    known = [] if args.known is None else read_seeds(args.known)
    seeds = [Seed(number=number, stepped=False) for number in (*known, *range(first, first + args.seeds))]
    seeds += [Seed(number=number, stepped=True) for number in range(first, first + args.stepped)]
    print(
        f"{len(seeds)} histories: {args.seeds} from seed {first} on, {len(known)} known ones, "
        f"{args.stepped} with engines in steps",
        flush=True,
    )
    began = time.monotonic()
    ticks = looks = 0
    broken: list[Report] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task("playing", total=len(seeds))
        for done, report in enumerate(soak(seeds, args.jobs), start=1):
            progress.advance(task)
            if progress.disable and done % max(1, len(seeds) // 10) == 0:
                print(f"{done} of {len(seeds)} after {time.monotonic() - began:.0f} s", flush=True)
            ticks += report.history.ticks if report.violation is None else report.violation.tick
            looks += report.looks
            if report.violation is not None:
                broken.append(report)
                progress.console.print(f"seed {report.history.seed}: {_sentence(report)}", markup=False, soft_wrap=True)
                progress.update(task, description=f"playing, {len(broken)} broken")
    seconds = time.monotonic() - began
    for line in summary(broken, args.out):
        print(line)
    worked = sum(_processor_seconds(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(
        f"{len(seeds)} histories, {ticks} ticks, {looks} decisions in {seconds:.0f} s: "
        f"{1000 * worked / max(1, ticks):.2f} ms of one processor a tick; {len(broken)} broke a rule"
    )
    return 1 if broken else 0


def _processor_seconds(who: int) -> float:
    """What a run takes where nothing else wants the processors: those of the clock count the others' work too."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def read_seeds(file: Path) -> list[int]:
    try:
        lines = [line.split("#")[0].strip() for line in file.read_text().splitlines()]
        return [int(line) for line in lines if line]
    except (OSError, ValueError) as problem:
        raise Invalid("--known", str(problem), "give a file with one seed a line") from problem


def summary(broken: Sequence[Report], out: Path) -> Iterator[str]:
    """Writes the histories that broke a rule, the first of each rule made short, and says where they lie."""
    shortened: Counter[str] = Counter()
    for report in sorted(broken, key=lambda each: each.history.seed):
        violation = report.violation
        assert violation is not None
        if violation.rule not in shortened and len(shortened) < SHRUNK:
            report = shrink(report, again)
        shortened[violation.rule] += 1
        yield f"{_file(report, out)}: {_sentence(report)}"
    for rule, count in shortened.most_common():
        yield f"{count:6d}  {rule}"


def _file(report: Report, out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    stepped = "-stepped" if report.history.world.stepped else ""
    path = out / f"seed-{report.history.seed}{stepped}.jsonl"
    path.write_text(to_lines(report.history, "" if report.violation is None else report.violation.message))
    return path


def _sentence(report: Report) -> str:
    violation, history = report.violation, report.history
    assert violation is not None
    world = history.world
    return (
        f"at tick {violation.tick}, after {len(history.events)} events in a world of {len(world.gpus)} GPUs and "
        f"{len(world.servings)} servings: {violation.message}"
    )


def replay(text: str, name: str) -> int:
    """Plays a history that was written by `gpupack soak`, tells every tick, and ends with 1 if a rule breaks."""
    report = play(from_lines(text, name), tell=print)
    violation: Violation | None = report.violation
    if violation is None:
        print("No rule is broken: what broke it then was mended, or the history begins differently today.")
        return 0
    print(_sentence(report))
    return 1
