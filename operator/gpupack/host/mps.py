"""The MPS daemon: how it is started, asked and ended. Its control shell is a program that reads commands as lines.

One user, one pipe directory, one /dev/shm: all of them are this container's, so nothing of the node is needed. Sources:
NVIDIA's MPS documentation, release 615 (Tools, `nvidia-cuda-mps-control`). A server starts with the first client; here
it is asked for at once, so that an engine never finds a daemon without one. Knows commands, not when to use them.
"""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

from gpupack.host.life import MpsSeen
from gpupack.host.processes import Process, Processes

CONTROL = "nvidia-cuda-mps-control"
ANSWER_SECONDS = 5.0
OPEN_FILES = 16384
"""What the documentation asks for the daemon and its server."""


class MpsDaemon:
    """`directory` holds its pipes and logs; sockets in it must stay short of 108 characters."""

    def __init__(self, processes: Processes, directory: Path) -> None:
        self._processes = processes
        self._pipe, self._log = directory / "pipe", directory / "log"
        self.environ = {
            **os.environ,
            "CUDA_MPS_PIPE_DIRECTORY": str(self._pipe),
            "CUDA_MPS_LOG_DIRECTORY": str(self._log),
        }

    def start(self) -> Process:
        """Raises OSError if there is no such program."""
        for path in (self._pipe, self._log):
            path.mkdir(parents=True, exist_ok=True)
        _raise_open_files()
        return self._processes.start("mps", (CONTROL, "-f"), self.environ)

    def look(self) -> MpsSeen | None:
        """The server and what it says of itself; None if the daemon does not answer."""
        try:
            servers = _numbers(self._ask("get_server_list"))
            if not servers:
                self._ask(f"start_server -uid {os.getuid()}")
                servers = _numbers(self._ask("get_server_list"))
            if not servers:
                return MpsSeen(server=None)
            status = self._ask(f"get_server_status {servers[0]}").strip()
        except (OSError, TimeoutError):
            return None
        return MpsSeen(server=servers[0], fault=status if "FAULT" in status.upper() else "")

    def quit(self) -> None:
        """Ends when its clients have; a daemon that is gone is as good."""
        with contextlib.suppress(OSError, TimeoutError):
            self._ask("quit")

    def let_go(self, server: int | None, session: int) -> None:
        """Ends the GPU work of every client of a session, so that a SIGKILL to it does not hurt its neighbours."""
        if server is None:
            return
        with contextlib.suppress(OSError, TimeoutError):
            for client in _numbers(self._ask(f"get_client_list {server}")):
                with contextlib.suppress(ProcessLookupError):
                    if os.getsid(client) == session:
                        self._ask(f"terminate_client {server} {client}")

    def _ask(self, command: str) -> str:
        return self._processes.ask("mps control", (CONTROL,), self.environ, command, ANSWER_SECONDS)


def _numbers(answer: str) -> tuple[int, ...]:
    return tuple(int(word) for word in answer.split() if word.isdecimal())


def _raise_open_files() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if most == resource.RLIM_INFINITY else min(OPEN_FILES, most)
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
