"""Writes ticks to a file that turns over when it is full. Whatever the disk does, the loop that decides goes on.

A thread of its own encodes and writes; what it cannot keep up with, or cannot write, is counted and left out. It knows
neither what a tick means nor Prometheus: `tally` is told what became of each tick.
"""

from __future__ import annotations

import gzip
import logging
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from gpupack.facts.observation import Observation
from gpupack.facts.policy import Policy
from gpupack.plan import Outcome
from gpupack.trace.lines import Header, header_line, tick_line

log = logging.getLogger(__name__)

AT_MOST_WAITING = 16
"""Ticks that wait to be written; each keeps one observation in memory."""
RETRY_SECONDS = 60.0
"""After a failure the file is left alone for so long."""
LAST_LINES_SECONDS = 5.0
"""When the process ends, what waits to be written gets this long."""


class Fate(StrEnum):
    """What became of a tick: written, left out because the disk failed, or because it was too slow."""

    WRITTEN = "written"
    UNWRITABLE = "unwritable"
    BEHIND = "behind"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFile:
    """`limit_bytes` is of one file before it is compressed, `files` how many there are with the one being written."""

    path: Path
    limit_bytes: int
    files: int


class RotatingFile:
    """`path` holds the latest lines in plain text; when the next would not fit it becomes `path.1.gz`, that `path.2.gz`
    and so on, `files` in all. The methods raise OSError.

    Begins every file, and whatever it finds at the path, with a header.
    """

    def __init__(self, place: TraceFile) -> None:
        self._path = place.path
        self._limit = place.limit_bytes
        self._files = place.files
        self._file: BinaryIO | None = None
        self._size = 0

    def write(self, line: str, header: Callable[[], str]) -> None:
        """A line goes to disk whole or not at all, unless the process dies within."""
        text = line.encode() + b"\n"
        first = b"" if self._file is not None else header().encode() + b"\n"
        if self._file is None:
            self._open()
        if self._size and self._size + len(first) + len(text) > self._limit:
            self._turn_over()
            first = header().encode() + b"\n"
        self._append(first + text)

    def close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def _open(self) -> None:
        """At the end of the last whole line: the process before may have died within one."""
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        self._file = os.fdopen(handle, "r+b", buffering=0)
        self._size = _end_of_last_line(self._file)
        self._file.truncate(self._size)
        self._file.seek(self._size)

    def _append(self, text: bytes) -> None:
        assert self._file is not None
        written = 0
        try:
            while written < len(text):  # a disk that becomes full takes a part first
                written += self._file.write(text[written:])
        except OSError:
            self._file.truncate(self._size)
            raise
        self._size += written

    def _turn_over(self) -> None:
        assert self._file is not None
        older = [self._path.with_name(f"{self._path.name}.{number}.gz") for number in range(1, self._files)]
        if older:
            packed = self._path.with_name(f"{self._path.name}.gz.part")
            with self._path.open("rb") as plain, gzip.open(packed, "wb", compresslevel=6) as file:
                shutil.copyfileobj(plain, file, 1 << 20)
            packed.chmod(0o600)
            for new, old in reversed(list(zip(older[1:], older, strict=False))):
                if old.exists():
                    old.replace(new)
            packed.replace(older[0])
        self._file.truncate(0)
        self._file.seek(0)
        self._size = 0


def _end_of_last_line(file: BinaryIO) -> int:
    """The offset behind the last line break."""
    end, block = file.seek(0, os.SEEK_END), 1 << 16
    while end > 0:
        begin = max(0, end - block)
        file.seek(begin)
        found = file.read(end - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


class Recorder:
    """Between `start` and `stop`, `put` never waits and never fails.

    `catalog` is the digest of the catalog that the decisions knew; `tally` is called from the recorder's thread too.
    """

    def __init__(
        self, place: TraceFile, *, catalog: str, tally: Callable[[Fate], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._path = place.path
        self._file = RotatingFile(place)
        self._catalog = catalog
        self._tally = tally
        self._clock = clock
        self._resting_until = 0.0
        self._failing = False
        self._waiting: queue.Queue[tuple[Observation, Outcome] | None] = queue.Queue(AT_MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="trace", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Writes what waits and closes the file, unless the disk takes too long for that."""
        try:
            self._waiting.put(None, timeout=LAST_LINES_SECONDS)
        except queue.Full:
            return
        self._thread.join(LAST_LINES_SECONDS)

    def put(self, observation: Observation, outcome: Outcome) -> None:
        try:
            self._waiting.put_nowait((observation, outcome))
        except queue.Full:
            self._tally(Fate.BEHIND)

    def _run(self) -> None:
        while (tick := self._waiting.get()) is not None:
            self._tally(self._write(*tick))
        try:
            self._file.close()
        except OSError as problem:
            log.warning("the trace %s was not closed: %s", self._path, problem)

    def _write(self, observation: Observation, outcome: Outcome) -> Fate:
        if self._clock() < self._resting_until:
            return Fate.UNWRITABLE
        try:
            self._file.write(tick_line(observation, outcome), lambda: self._header(observation.policy))
        except OSError as problem:
            self._fail(problem)
            return Fate.UNWRITABLE
        if self._failing:
            self._failing = False
            log.info("the trace %s is written again", self._path)
        return Fate.WRITTEN

    def _fail(self, problem: OSError) -> None:
        self._resting_until = self._clock() + RETRY_SECONDS
        if not self._failing:
            self._failing = True
            log.warning(
                "the trace cannot be written: %s; decisions go on without it, and it is tried again every %.0f s",
                problem, RETRY_SECONDS,
            )  # fmt: skip
        try:
            self._file.close()
        except OSError:
            log.debug("the trace was not closed", exc_info=True)

    def _header(self, policy: Policy) -> str:
        return header_line(Header(policy=policy, catalog=self._catalog))
