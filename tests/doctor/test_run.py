"""A cluster that cannot be asked is one sentence: what is wrong, and what to do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gpupack.cli import main
from gpupack.node.controlplane import free_ports

from ..top.world import kubeconfig_of


class Refusing(BaseHTTPRequestHandler):
    """An API server that knows nobody."""

    def do_GET(self) -> None:
        body = json.dumps({"reason": "Unauthorized", "message": "Unauthorized"}).encode()
        self.send_response(401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """A test's output is its own."""


@pytest.fixture
def refusing() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def said(capsys: pytest.CaptureFixture[str], kubeconfig: str | Path) -> str:
    assert main(["doctor", "--kubeconfig", str(kubeconfig)]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    return told


def test_a_kubeconfig_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert f"there is no kubeconfig {tmp_path / 'none'}" in said(capsys, tmp_path / "none")


def test_a_kubeconfig_that_is_no_yaml(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "torn").write_text("clusters: [\n")
    assert "the kubeconfig is no YAML: while parsing" in said(capsys, tmp_path / "torn")


def test_an_api_server_that_does_not_answer(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (port,) = free_ports(1)
    told = said(capsys, kubeconfig_of(tmp_path, port))
    assert f"No API server answers: Cannot connect to host 127.0.0.1:{port}" in told
    assert "kubectl cluster-info" in told


def test_credentials_that_have_ended(capsys: pytest.CaptureFixture[str], tmp_path: Path, refusing: int) -> None:
    told = said(capsys, kubeconfig_of(tmp_path, refusing))
    assert "does not accept the credentials of the kubeconfig (401 Unauthorized). Log in again" in told
