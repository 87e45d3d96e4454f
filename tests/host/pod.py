"""A pod without a container runtime: the supervisor as the process that it is there, beside stand-ins for vLLM and MPS.

The stand-ins are programs that the tests write; everything else is real: the archive, its interpreter, signals, HTTP.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from gpupack.host import archive
from gpupack.node.host_program import MPS_CONTROL, write_program

TOKEN = "a token of 32 characters or so"
PATIENCE_SECONDS = 60.0

VLLM = """\
import http.server, os, signal, sys, threading
words = dict(word.partition("=")[::2] for word in sys.argv[1:])
print("engine", words["--name"], "shares by", os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "nothing"), flush=True)
if "--refuse" in words:
    print("ValueError: " + words["--refuse"], flush=True)
    sys.exit(1)
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *args):
        pass
server = http.server.ThreadingHTTPServer((words.get("--bind", "127.0.0.1"), int(words["--port"])), Answer)
def stop(*_):
    print("drained", flush=True)
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
server.serve_forever()
"""


class Pod:
    """Used with `with`: the supervisor runs, and afterwards nothing of it; `start` begins it anew on its files."""

    def __init__(self, directory: Path, *options: str, mps: bool, bind: str = "127.0.0.1", port: int = 0) -> None:
        self.programs = directory / "programs"
        self.files = directory / "files"
        self._token = directory / "token"
        self.address, self.port = bind, port
        self._options = (*options, *(("--mps",) if mps else ()))
        self.files.mkdir()
        self._token.write_text(f"{TOKEN}\n")
        self._archive = archive.write(directory)
        write_program(self.programs, "vllm", VLLM)
        write_program(self.programs, "nvidia-cuda-mps-control", MPS_CONTROL)
        self.output: list[str] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE_SECONDS)
            finally:
                self.process.kill()
        assert self.process.stdout is not None
        self.output += self.process.stdout.read().splitlines()
        self.process.stdout.close()

    def start(self) -> None:
        """Without site-packages and without this checkout: what a vLLM image has."""
        self.process = subprocess.Popen(
            [
                sys.executable, "-I", "-S", str(self._archive), "--bind", self.address, "--port", str(self.port),
                "--token-file", str(self._token), "--directory", str(self.files), "--settle-seconds", "0.2",
                *self._options, "vllm",
            ],
            env={"PATH": f"{self.programs}:{os.environ['PATH']}", "NVIDIA_VISIBLE_DEVICES": "GPU-1"},
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        self.port = int(said.rpartition(":")[2])

    def end(self) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_SECONDS)

    def crash(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def ask(
        self, method: str, path: str, body: object = None, token: str | None = TOKEN
    ) -> tuple[int, dict[str, Any] | str]:
        connection = http.client.HTTPConnection(self.address, self.port, timeout=PATIENCE_SECONDS)
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, json.loads(text) if "json" in answer.headers["Content-Type"] else text

    def order(self, generation: int, *engines: dict[str, Any]) -> dict[str, Any]:
        status, report = self.ask("PUT", "/v1/orders", {"generation": generation, "engines": list(engines)})
        assert status == 200, report
        assert isinstance(report, dict)
        return report

    def until(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first report that does; each waits for the next change."""
        began, after = time.monotonic(), -1
        while time.monotonic() - began < PATIENCE_SECONDS:
            _, report = self.ask("GET", f"/v1/report?after={after}&wait=1")
            assert isinstance(report, dict)
            if holds(report):
                return report
            after = report["number"]
        raise AssertionError(report)

    def page_with(self, words: str) -> str:
        """The page for Prometheus once these stand on it."""
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until:
            status, page = self.ask("GET", "/metrics", token=None)
            assert status == 200
            assert isinstance(page, str)
            if words in page:
                return page
            time.sleep(0.05)
        raise AssertionError(page)


def engine(name: str, port: int, *arguments: str) -> dict[str, Any]:
    words = [f"--name={name}", f"--port={port}", *arguments]
    return {"name": name, "port": port, "arguments": words, "marks": {"slot": name}}


def stages(report: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["state"] for each in report["engines"]}
