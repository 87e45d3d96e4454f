"""Processes of the pod: started in sessions of their own, their words passed on and remembered, every one reaped.

A container's first process inherits whatever its descendants leave behind. So there is one reaper for all: a child of
ours is remembered with its status, a stranger is only buried. Knows no engine and no MPS.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gpupack.host.life import NOT_FOUND

KEPT_LINES = 20
LINE_LIMIT = 500
"""Characters of a line that are remembered and passed on."""
LAST_WORDS_SECONDS = 0.5
"""How long the last lines of a process that ended may take; a grandchild can hold the pipe open for ever."""
SET_CHILD_SUBREAPER = 36
"""prctl(2). The first process of a container is one without asking."""


@dataclass(slots=True, eq=False)
class Process:
    """One child. `code` is None while it lives; negative is the number of the signal that ended it."""

    name: str
    child: subprocess.Popen[bytes]
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))
    code: int | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    reader: threading.Thread | None = None

    @property
    def pid(self) -> int:
        return self.child.pid

    def last_words(self) -> tuple[str, ...]:
        if self.reader is not None:
            self.reader.join(LAST_WORDS_SECONDS)
        return tuple(self.lines)


class Processes:
    """Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._living: dict[int, Process] = {}

    def start(self, name: str, words: Sequence[str], environ: Mapping[str, str], *, quiet: bool = False) -> Process:
        """Its output goes on to ours, a line at a time and with its name, unless `quiet`. Raises OSError if it cannot
        be started."""
        with self._lock:  # or it could be reaped before it is known
            child = subprocess.Popen(
                words, env=dict(environ), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            process = self._living[child.pid] = Process(name, child)
        process.reader = threading.Thread(target=_read, args=(process, quiet), name=f"log of {name}", daemon=True)
        process.reader.start()
        return process

    def ask(self, name: str, words: Sequence[str], environ: Mapping[str, str], said: str, seconds: float) -> str:
        """What a program answers to one line on its input. Raises OSError or TimeoutError."""
        with self._lock:
            child = subprocess.Popen(
                words, env=dict(environ), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
            process = self._living[child.pid] = Process(name, child)
        assert child.stdin is not None
        process.reader = threading.Thread(target=_read, args=(process, True), name=f"answer of {name}", daemon=True)
        process.reader.start()
        with contextlib.suppress(BrokenPipeError), child.stdin:
            child.stdin.write(f"{said}\n".encode())
        if not process.ended.wait(seconds):
            self.signal(process, signal.SIGKILL)
            raise TimeoutError(f"{name} did not answer within {seconds:g} s")
        return "\n".join(process.last_words())

    def signal(self, process: Process, number: signal.Signals) -> None:
        """To the process, or, with SIGKILL, to everything of its session. One that has ended gets nothing."""
        with self._lock:
            if process.code is not None:
                return
            with contextlib.suppress(ProcessLookupError):
                if number is signal.SIGKILL:
                    os.killpg(process.pid, number)
                else:
                    os.kill(process.pid, number)

    def reap(self) -> list[Process]:
        """Buries whatever has ended, and tells those that were started here."""
        ended = []
        with self._lock:
            while (found := _waiting_to_be_buried()) is not None:
                process = self._living.pop(found, None)
                if process is None:
                    os.waitpid(found, 0)
                    continue
                process.code = process.child.wait()
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(found, signal.SIGKILL)  # nothing of a session outlives its leader: it would hold the GPU
                ended.append(process)
        for process in ended:
            process.ended.set()
        return ended


def in_words(code: int) -> str:
    """How a process ended, for a person."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def not_started(words: Sequence[str], problem: OSError) -> tuple[int, str]:
    """What a shell would say of a program that could not be started."""
    return NOT_FOUND, f"{words[0]} cannot be started: {problem.strerror or problem}"


def adopt_orphans() -> None:
    """Descendants whose parents end become our children, as they do for the first process of a container."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _waiting_to_be_buried() -> int | None:
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if found is None else found.si_pid


def _read(process: Process, quiet: bool) -> None:
    stream = process.child.stdout
    assert stream is not None
    with contextlib.suppress(ValueError, OSError), stream:
        for raw in stream:
            line = raw.decode(errors="replace").rstrip()[:LINE_LIMIT]
            process.lines.append(line)
            if not quiet:
                print(f"[{process.name}] {line}", flush=True)
