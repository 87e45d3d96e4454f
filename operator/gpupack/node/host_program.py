"""A pod that holds a GPU, on the virtual node: the real supervisor, with stand-ins for the programs that it starts.

The supervisor is a process of its own from its own archive, as in a container. What it starts as `vllm` is a small
program that stands for an engine of the twin: it lives as long as that engine, hands SIGTERM on and ends as it ends.
`nvidia-cuda-mps-control` is a stand-in too. The pod's loopback is an address of 127/8, so that pods keep their ports.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from gpupack.host import archive
from gpupack.kube.host_resource import SUPERVISOR_PORT
from gpupack.node.engine_program import EngineProgram, Site
from gpupack.node.program import KILLED, Exit, Sandbox

NODE_VARIABLE = "GPUPACK_VIRTUAL_NODE"
MPS_GONE = "torch.AcceleratorError: CUDA error: the remote procedural call between the MPS server and the client failed"
KEPT_LINES = 20

VLLM = f"""\
import json, os, signal, socket, sys
node = socket.socket(socket.AF_UNIX)
node.connect(os.environ["{NODE_VARIABLE}"])
node.sendall(json.dumps({{"words": ["vllm", *sys.argv[1:]], "environ": dict(os.environ)}}).encode() + b"\\n")
signal.signal(signal.SIGTERM, lambda *_: node.sendall(b"terminate\\n"))
said = b""
while piece := node.recv(65536):
    said += piece
code, _, words = said.decode().partition("\\n")
print(words, flush=True)
os._exit(int(code or {KILLED}))
"""

MPS_CONTROL = """\
import os, subprocess, sys, time
from pathlib import Path
pipe = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
server, wanted, leave = pipe / "server", pipe / "wanted", pipe / "leave"
if sys.argv[1:] == ["-f"]:
    parent = os.getppid()
    for path in (server, wanted, leave):
        path.unlink(missing_ok=True)
    child = None
    while not leave.exists() and os.getppid() == parent:
        if child is not None and child.poll() is not None:
            child = None
            server.unlink()
        if wanted.exists() and child is None:
            wanted.unlink()
            child = subprocess.Popen(["sleep", "3600"])
            server.with_suffix(".new").write_text(str(child.pid))
            server.with_suffix(".new").rename(server)
        time.sleep(0.02)
    if child is not None:
        child.kill()
    sys.exit(0)
words = sys.stdin.readline().split()
if words[0] == "get_server_list" and server.exists():
    print(server.read_text())
elif words[0] == "start_server":
    wanted.touch()
    until = time.monotonic() + 2.0
    while not server.exists() and time.monotonic() < until:
        time.sleep(0.02)
elif words[0] == "get_server_status":
    print("ACTIVE")
elif words[0] == "quit":
    leave.touch()
"""
"""The daemon with `-f`, else one command of its control shell; a process that sleeps is the MPS server."""


def write_program(directory: Path, name: str, text: str) -> None:
    """A Python program that is found there by its name."""
    directory.mkdir(parents=True, exist_ok=True)
    program = directory / name
    program.write_text(f"#!{sys.executable} -IS\n{text}")
    program.chmod(0o755)


def is_supervisor(words: Sequence[str]) -> bool:
    return any(word.endswith(f"/{archive.NAME}") for word in words)


class HostProgram:
    """A program of the virtual node. `scratch` holds the files of pods, which outlive a container's restart."""

    def __init__(self, sandbox: Sandbox, site: Site, scratch: Path) -> None:
        self._sandbox = sandbox
        self._site = site
        self._root = scratch / sandbox.uid
        self._loopback = f"127.{sandbox.address.partition('.')[2]}"
        self._process: asyncio.subprocess.Process | None = None
        self._listens = False
        self._asked = False
        self._lines: list[str] = []
        self._engines: set[asyncio.Task[None]] = set()
        self._programs: set[EngineProgram] = set()
        self._count = 0

    async def run(self) -> Exit:
        programs, node = self._root / "programs", self._root / "node.sock"
        self._lay_out(programs)
        node.unlink(missing_ok=True)
        door = await asyncio.start_unix_server(self._meet, node, limit=2**20)
        here = (self._sandbox.address, SUPERVISOR_PORT)
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, *self._words(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
                env={
                    **self._sandbox.environ,
                    "PATH": f"{programs}:{os.environ.get('PATH', os.defpath)}",
                    "NVIDIA_VISIBLE_DEVICES": self._device(),
                    NODE_VARIABLE: str(node),
                },
            )  # fmt: skip
            self._site.exchange.table[here] = (self._loopback, SUPERVISOR_PORT)
            self._site.mps_servers[self._device()] = self._lose_mps
            if self._asked:
                self.terminate()
            assert self._process.stdout is not None
            async for raw in self._process.stdout:
                self._lines = [*self._lines, raw.decode(errors="replace").rstrip()][-KEPT_LINES:]
                self._listens = self._listens or "listening on" in self._lines[-1]
            code = await self._process.wait()
            return Exit(code=128 - code if code < 0 else code, message="\n".join(self._lines))
        finally:
            self._site.exchange.table.pop(here, None)
            self._site.mps_servers.pop(self._device(), None)
            self._listens = False
            if self._process is not None and self._process.returncode is None:
                self._process.kill()
            # Before the process is waited for: what it has started holds its output open, and lives as long as these.
            door.close()
            for engine in self._engines:
                engine.cancel()
            await asyncio.gather(*self._engines, return_exceptions=True)
            if self._process is not None:
                await self._process.wait()

    def terminate(self) -> None:
        self._asked = True
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)

    def answers(self, port: int | None, path: str | None) -> bool:
        return self._listens and port == SUPERVISOR_PORT and path in (None, "/healthz")

    def _lay_out(self, programs: Path) -> None:
        """What the pod's volumes hold, under a directory of its own."""
        write_program(programs, "vllm", VLLM)
        if self._site.mps_starts:
            write_program(programs, "nvidia-cuda-mps-control", MPS_CONTROL)
        place = next(word for word in self._sandbox.words if word.endswith(f"/{archive.NAME}"))
        (self._root / place[1:]).parent.mkdir(parents=True, exist_ok=True)
        archive.write((self._root / place[1:]).parent)
        for path, content in self._sandbox.files.items():
            file = self._root / path[1:]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)

    def _words(self) -> list[str]:
        """The container's arguments, with its paths where they are here."""
        words: list[str] = []
        for word in self._sandbox.words[1:]:
            name, equals, value = word.partition("=")
            at_root = f"{self._root}{value}" if value.startswith("/") else value
            words.append(f"{self._root}{word}" if word.startswith("/") else f"{name}{equals}{at_root}")
            if word.endswith(f"/{archive.NAME}"):
                words.append(f"--bind={self._loopback}")
        return words

    def _device(self) -> str:
        slots = self._site.hardware.slots
        found = [slots[each.pool, each.name] for each in self._sandbox.devices if (each.pool, each.name) in slots]
        return found[0].card.uuid if found else "void"

    def _lose_mps(self) -> None:
        """The MPS server dies, and its clients with it."""
        for server in self._root.glob("**/pipe/server"):
            os.kill(int(server.read_text()), signal.SIGKILL)
        for program in self._programs:
            program.crash(MPS_GONE)

    # Engines

    def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine = asyncio.ensure_future(self._stand_for(reader, writer))
        self._engines.add(engine)
        engine.add_done_callback(self._engines.discard)

    async def _stand_for(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """An engine of the twin for as long as the program that stands for it; one that is killed ends at once."""
        with contextlib.suppress(ConnectionError, ValueError):
            asked = json.loads(await reader.readline())
            program = EngineProgram(self._sandbox_of(asked["words"], asked["environ"]), self._site)
            port = int(next(word for word in asked["words"] if word.startswith("--port=")).partition("=")[2])
            self._programs.add(program)
            running = asyncio.ensure_future(program.run())
            listening = asyncio.ensure_future(self._hand_on(reader, program))
            health = await asyncio.start_server(_health(program, port), self._loopback, port)
            try:
                await asyncio.wait({running, listening}, return_when=asyncio.FIRST_COMPLETED)
                if running.done():
                    ending = running.result()
                    writer.write(f"{ending.code}\n{ending.message}".encode())
                    await writer.drain()
            finally:
                health.close()
                for task in (running, listening):
                    task.cancel()
                await asyncio.wait({running, listening})
                self._programs.discard(program)
        writer.close()

    @staticmethod
    async def _hand_on(reader: asyncio.StreamReader, program: EngineProgram) -> None:
        """Returns when the program that stands for the engine has gone."""
        while await reader.readline():
            program.terminate()

    def _sandbox_of(self, words: list[str], environ: dict[str, str]) -> Sandbox:
        self._count += 1
        strategy = "MPS" if "CUDA_MPS_PIPE_DIRECTORY" in environ else ""
        return replace(
            self._sandbox, uid=f"{self._sandbox.uid}/{self._count}", pod=f"{self._sandbox.pod}/{self._count}",
            words=words, environ=environ,
            devices=tuple(replace(each, strategy=strategy) for each in self._sandbox.devices),
        )  # fmt: skip


Meeting = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def _health(program: EngineProgram, port: int) -> Meeting:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            status = "200 OK" if program.answers(port, "/health") else "503 Service Unavailable"
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            await writer.drain()
        writer.close()

    return answer
