"""Programs that end with the process that started them, however that process ends, and the folder that they used.

A `Keeper` is a small process of its own that starts the programs. It watches the pipe to its owner: when the owner
closes it or dies, even by SIGKILL, the keeper kills every program and removes the folder. If the keeper itself is
killed, Linux kills the programs (PR_SET_PDEATHSIG) and only the folder stays. The keeper, not the owner, is the
programs' parent because that Linux signal goes by the *thread* that started a program, and the owner may use threads
that end early.

This file is also run by its path, without gpupack on the import path: it imports the standard library alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

OWNER_CHECK_SECONDS = 0.5
"""A process that the owner forked may hold the pipe open; the owner's death then shows within this time."""
PR_SET_PDEATHSIG = 1


class Keeper:
    """Starts programs that write to `<folder>/<name>.log`. Used with `with`; leaving it ends all of them.

    The folder is the keeper's from then on: it is removed at the end. Safe to use from several threads.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._turn = Lock()
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        # A process group of its own: Ctrl-C at the terminal reaches the owner first, who then ends things in order.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(self.folder), str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0,
        )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(BrokenPipeError):
            process.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)  # only if the keeper was killed

    @property
    def pid(self) -> int:
        """The keeper's own process id."""
        assert self._process is not None, "a keeper is used with `with`"
        return self._process.pid

    def start(self, name: str, command: Sequence[str | Path], environ: Mapping[str, str] | None = None) -> int:
        """Starts a program under a name that no running one has, and returns its process id.

        `environ` replaces the whole environment. Raises OSError if the program cannot be run.
        """
        answer = self._ask(start=name, command=[str(word) for word in command], environ=dict(environ or os.environ))
        if "problem" in answer:
            raise OSError(answer["errno"], answer["problem"], str(command[0]))
        pid = answer["pid"]
        assert isinstance(pid, int)
        return pid

    def exit_code(self, name: str) -> int | None:
        """None while it runs or if it was never started; minus the signal if one ended it."""
        return self._code(self._ask(poll=name))

    def stop(self, name: str, with_signal: signal.Signals = signal.SIGTERM, kill_after_seconds: float = 10.0) -> int:
        """Sends the signal, waits, kills what has not ended by then, and returns the exit code."""
        code = self._code(self._ask(stop=name, signal=int(with_signal), seconds=kill_after_seconds))
        assert code is not None
        return code

    def log(self, name: str) -> str:
        """All that the program has written so far; bytes that are not UTF-8 are replaced."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / f"{name}.log").read_text(errors="replace")
        return ""

    @staticmethod
    def _code(answer: dict[str, Any]) -> int | None:
        code = answer.get("code")
        assert code is None or isinstance(code, int)
        return code

    def _ask(self, **request: object) -> dict[str, Any]:
        process = self._process
        assert process is not None, "a keeper is used with `with`"
        assert process.stdin is not None
        assert process.stdout is not None
        line = ""
        with self._turn, contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        if not line:
            raise ChildProcessError("the keeper of the programs was killed, and they with it")
        answer: dict[str, Any] = json.loads(line)
        return answer


class _Kept:
    """The keeper's side: the programs that it started, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs: dict[str, subprocess.Popen[bytes]] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if name := request.get("start"):
            return self._start(name, request["command"], request["environ"])
        if name := request.get("poll"):
            return {"code": self.programs[name].poll() if name in self.programs else None}
        return {"code": self._stop(self.programs[request["stop"]], request["signal"], request["seconds"])}

    def _start(self, name: str, command: list[str], environ: dict[str, str]) -> dict[str, Any]:
        with (self.folder / f"{name}.log").open("ab") as log:
            try:
                program = subprocess.Popen(
                    command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    preexec_fn=die_with_parent(signal.SIGKILL),
                )  # fmt: skip
            except OSError as problem:
                return {"problem": problem.strerror, "errno": problem.errno}
        self.programs[name] = program
        return {"pid": program.pid}

    @staticmethod
    def _stop(program: subprocess.Popen[bytes], number: int, seconds: float) -> int:
        program.send_signal(number)
        try:
            return program.wait(seconds)
        except subprocess.TimeoutExpired:
            program.kill()
            return program.wait()

    def end(self) -> None:
        for program in self.programs.values():
            program.kill()
        for program in self.programs.values():
            program.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def die_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """What a child runs before its program, to get this signal when its parent ends. Safe only where a process is
    started by its main thread, as the keeper has no other."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def arrange() -> None:
        libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # the keeper died before the call
            os.kill(os.getpid(), number)

    return arrange


def _requests(owner: int) -> Iterator[dict[str, Any]]:
    """Lines from the owner, until it closes the pipe or is no longer this process's parent."""
    rest = b""
    while os.getppid() == owner:
        if not select.select([0], [], [], OWNER_CHECK_SECONDS)[0]:
            continue
        read = os.read(0, 1 << 16)
        if not read:
            return
        *lines, rest = (rest + read).split(b"\n")
        for line in lines:
            yield json.loads(line)


def _keep(folder: Path, owner: int) -> None:
    for passed_over in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # The end comes with the owner. Not SIG_IGN, which the programs would inherit.
        signal.signal(passed_over, lambda *_: None)
    kept = _Kept(folder)
    try:
        for request in _requests(owner):
            print(json.dumps(kept.answer(request)), flush=True)
    finally:
        kept.end()


if __name__ == "__main__":
    _keep(Path(sys.argv[1]), int(sys.argv[2]))
