"""A container of the virtual node as a real process of this machine: an engine that is what it is in a cluster.

A folder stands in for the image: the process runs in it, and its `bin` comes first in PATH. Pods have addresses that no
interface has, so the port that the command names (`--port`) is replaced by a free one on loopback, to which the proxy's
table leads from the pod's address. A command that names where to listen (`--host`) gets an address of 127/8 of its own
instead and keeps its ports: that one, and those of `--doors=FIRST-LAST`. Signals and exit codes are the process's own;
the end of its output is its last words. Knows processes, not what they do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import httpx

from gpupack.node.controlplane import free_ports
from gpupack.node.keeper import die_with_parent
from gpupack.node.podproxy import Address
from gpupack.node.program import Exit, Sandbox

LAST_WORDS_BYTES = 2048
"""What a kubelet keeps of a log as a termination message."""
PROBE_SECONDS = 0.5
DEFAULT_PORT = 8000
PORT_FLAG, HOST_FLAG, DOORS_FLAG = "--port=", "--host=", "--doors="


class ProcessProgram:
    """A program of the virtual node. `folder` is the image, `table` the pod proxy's."""

    def __init__(self, sandbox: Sandbox, table: dict[Address, Address], folder: Path) -> None:
        self._sandbox = sandbox
        self._table = table
        self._path = folder / "bin"
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self._asked = False
        self._pod_port = self._port = _port_of(sandbox.words)
        if any(word.startswith(HOST_FLAG) for word in sandbox.words):
            self._host = f"127.{sandbox.address.partition('.')[2]}"
            self._words = _replaced(sandbox.words, HOST_FLAG, self._host)
        else:
            self._host, (self._port,) = "127.0.0.1", free_ports(1)
            self._words = _replaced(sandbox.words, PORT_FLAG, str(self._port))
        self._ports = {self._pod_port: self._port, **{each: each for each in _doors_of(sandbox.words)}}
        self._healthy: set[str] = set()
        self._probed: set[str] = {"/health"}

    async def run(self) -> Exit:
        environ = {**os.environ, **self._sandbox.environ, "PATH": f"{self._path}:{os.environ.get('PATH', '')}"}
        log = (self._folder / f"{self._sandbox.pod}.log").open("ab")
        with log:
            starting = asyncio.ensure_future(
                asyncio.create_subprocess_exec(
                    *self._found(), env=environ, cwd=self._folder, stdin=asyncio.subprocess.DEVNULL, stdout=log,
                    stderr=log, start_new_session=True, preexec_fn=die_with_parent(signal.SIGTERM),
                )
            )  # fmt: skip
            try:
                self._process = await asyncio.shield(starting)
            except OSError as problem:
                return Exit(code=127, message=f"{self._words[0]}: {problem.strerror}")
            except asyncio.CancelledError:
                # Killed as it starts: it may have children already, of which nobody else would know.
                self._process = await starting
                self._signal(signal.SIGKILL)
                await self._process.wait()
                raise
        for there, here in self._ports.items():
            self._table[self._sandbox.address, there] = (self._host, here)
        probing = asyncio.create_task(self._probe())
        try:
            if self._asked:
                self._signal(signal.SIGTERM)
            code = await self._process.wait()
        finally:
            probing.cancel()
            for there in self._ports:
                self._table.pop((self._sandbox.address, there), None)
            self._signal(signal.SIGKILL)  # its children too: nothing of a container outlives it
            await self._process.wait()
        return Exit(code=code if code >= 0 else 128 - code, message=self._last_words())

    def terminate(self) -> None:
        """To the first process of the container alone, as a kubelet does."""
        self._asked = True
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()

    def answers(self, port: int | None, path: str | None) -> bool:
        """As of the last look; a path that is asked for the first time is looked at from then on."""
        if port != self._pod_port:
            return False
        self._probed.add(path or "/health")
        return (path or "/health") in self._healthy

    async def _probe(self) -> None:
        url = f"http://{self._host}:{self._port}"
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=2.0) as client:
            while True:
                for path in sorted(self._probed):
                    try:
                        well = (await client.get(path)).is_success
                    except httpx.HTTPError:
                        well = False
                    (self._healthy.add if well else self._healthy.discard)(path)
                await asyncio.sleep(PROBE_SECONDS)

    def _found(self) -> list[str]:
        """The command, from the folder where that has it."""
        first = self._path / self._words[0]
        return [str(first) if first.is_file() else self._words[0], *self._words[1:]]

    def _signal(self, number: signal.Signals) -> None:
        """To the whole process group."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _last_words(self) -> str:
        with (self._folder / f"{self._sandbox.pod}.log").open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - LAST_WORDS_BYTES))
            return log.read().decode(errors="replace")


def _port_of(words: Sequence[str]) -> int:
    """The port that a command names by `--port=N`."""
    named = [int(word.removeprefix(PORT_FLAG)) for word in words if word.startswith(PORT_FLAG)]
    return named[-1] if named else DEFAULT_PORT


def _doors_of(words: Sequence[str]) -> range:
    for word in words:
        if word.startswith(DOORS_FLAG):
            first, _, last = word.removeprefix(DOORS_FLAG).partition("-")
            return range(int(first), int(last) + 1)
    return range(0)


def _replaced(words: Sequence[str], flag: str, value: str) -> list[str]:
    return [f"{flag}{value}" if word.startswith(flag) else word for word in words]
