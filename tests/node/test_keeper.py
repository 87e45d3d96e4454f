"""Programs that the keeper starts end with their owner, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpupack.node.keeper import Keeper

LONG = [sys.executable, "-c", "import time; time.sleep(600)"]
DEAF = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)",
]
OWNER = """
import signal, sys, time
from pathlib import Path
from gpupack.node.keeper import Keeper
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to it
with Keeper(Path(sys.argv[1])) as keeper:
    print(keeper.start("long", [sys.executable, "-c", "import time; time.sleep(600)"]), flush=True)
    time.sleep(600)
"""


def runs(pid: int) -> bool:
    """A zombie does not: it has ended, and its new parent has yet to look."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return state.strip()[:1] not in ("", "Z")


def eventually(true: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    return true()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "kept").mkdir()
    return tmp_path / "kept"


@pytest.fixture
def keeper(folder: Path) -> Iterator[Keeper]:
    with Keeper(folder) as keeper:
        yield keeper


@pytest.fixture
def owner(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process that keeps a program, and the program's process id."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", OWNER, folder], env=environ, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
        process.kill()


def test_what_a_program_writes_is_in_its_log(keeper: Keeper) -> None:
    keeper.start("hello", [sys.executable, "-c", "import os; print(os.environ['WORD'])"], {"WORD": "said"})
    assert eventually(lambda: keeper.exit_code("hello") == 0)
    assert keeper.log("hello") == "said\n"


def test_a_stopped_program_tells_its_exit_code_and_its_name_is_free_again(keeper: Keeper) -> None:
    keeper.start("long", LONG)
    assert keeper.exit_code("long") is None
    assert keeper.stop("long") == -signal.SIGTERM
    keeper.start("long", LONG)
    assert keeper.exit_code("long") is None


def test_a_program_that_does_not_hear_is_killed(keeper: Keeper) -> None:
    keeper.start("deaf", DEAF)
    assert eventually(lambda: keeper.log("deaf") == "deaf\n")
    assert keeper.stop("deaf", kill_after_seconds=0.1) == -signal.SIGKILL


def test_a_program_that_is_not_there_is_an_error_of_the_system(keeper: Keeper) -> None:
    with pytest.raises(FileNotFoundError):
        keeper.start("none", ["/no/such/program"])


def test_leaving_ends_every_program_and_removes_the_folder(folder: Path) -> None:
    with Keeper(folder) as keeper:
        pids = [keeper.start("one", LONG), keeper.start("two", DEAF)]
        assert all(map(runs, pids))
    assert not any(map(runs, pids))
    assert not folder.exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_programs_and_folder_go_when_the_owner_is_ended(
    owner: tuple[subprocess.Popen[str], int], folder: Path, how: signal.Signals
) -> None:
    process, pid = owner
    assert runs(pid)
    process.send_signal(how)
    assert eventually(lambda: not runs(pid) and not folder.exists())


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_programs_go_even_when_the_keeper_is_killed(keeper: Keeper) -> None:
    pid = keeper.start("long", LONG)
    os.kill(keeper.pid, signal.SIGKILL)
    assert eventually(lambda: not runs(pid))
    with pytest.raises(ChildProcessError):
        keeper.exit_code("long")
