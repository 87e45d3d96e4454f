"""A container as a real process: where it listens, what probes see, how it is asked to end and what is left of it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import httpx

from gpupack.node.podproxy import Address, PodProxy
from gpupack.node.process_program import ProcessProgram
from gpupack.node.program import Sandbox

SERVER = """#!/bin/sh
exec python3 - "$@" <<'END'
import http.server, signal, sys
port = next(int(word[7:]) for word in sys.argv if word.startswith("--port="))
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(sys.argv[1].encode())
    def log_message(self, *_):
        pass
def end(*_):
    print("drained", flush=True); sys.exit(3)
signal.signal(signal.SIGTERM, end)
http.server.HTTPServer(("127.0.0.1", port), Answer).serve_forever()
END
"""


def sandbox(*words: str) -> Sandbox:
    return Sandbox(
        namespace="default", pod="pod", uid="u", address="10.77.0.9", labels={}, devices=(), image="real:v1",
        words=words, environ={},
    )  # fmt: skip


async def test_it_is_reached_at_the_pods_address_and_ends_as_the_process_does(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "engine").write_text(SERVER)
    (tmp_path / "bin" / "engine").chmod(0o755)
    table: dict[Address, Address] = {}
    program = ProcessProgram(sandbox("engine", "hello", "--port=8000"), table, tmp_path)
    running = asyncio.create_task(program.run())
    while not program.answers(8000, "/health"):
        assert not running.done(), running.result()
        await asyncio.sleep(0.01)
    assert not program.answers(9000, "/health")
    async with PodProxy(table) as proxy, httpx.AsyncClient(proxy=proxy.url) as client:
        assert (await client.get("http://10.77.0.9:8000/")).text == "hello"
    program.terminate()
    ending = await running
    assert (ending.code, ending.message) == (3, "drained\n")
    assert table == {}


async def test_a_killed_container_leaves_no_process(tmp_path: Path) -> None:
    """The child holds the pipe open for as long as it lives."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    program = ProcessProgram(sandbox("sh", "-c", "sleep 1000 > pipe & wait"), {}, tmp_path)
    running = asyncio.create_task(program.run())
    with await asyncio.to_thread(pipe.open, "rb") as held:
        running.cancel()
        await asyncio.wait({running})
        assert await asyncio.wait_for(asyncio.to_thread(held.read), 60) == b""


async def test_a_command_that_is_not_there_says_so(tmp_path: Path) -> None:
    ending = await ProcessProgram(sandbox("no-such-command"), {}, tmp_path).run()
    assert (ending.code, ending.message) == (127, "no-such-command: No such file or directory")


async def test_a_command_that_names_where_to_listen_keeps_its_ports_at_an_address_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "doors").write_text('#!/bin/sh\necho "$@"; exec sleep 1000\n')
    (tmp_path / "bin" / "doors").chmod(0o755)
    table: dict[Address, Address] = {}
    words = ("doors", "--host=0.0.0.0", "--port=8080", "--doors=20000-20001")
    program = ProcessProgram(sandbox(*words), table, tmp_path)
    running = asyncio.create_task(program.run())
    log = tmp_path / "pod.log"
    while not (table and log.exists() and "20001" in log.read_text()):
        assert not running.done(), running.result()
        await asyncio.sleep(0.01)
    assert log.read_text() == "--host=127.77.0.9 --port=8080 --doors=20000-20001\n"
    assert table == {("10.77.0.9", port): ("127.77.0.9", port) for port in (8080, 20000, 20001)}
    program.terminate()
    await running
    assert table == {}
