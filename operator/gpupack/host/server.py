"""Orders come in and reports go out: the supervisor's own HTTP, for whoever has the token.

- `GET /healthz`: it is there. Needs no token, says nothing else.
- `GET /metrics`: what waits for cores, for Prometheus. Needs no token: it holds the names of engines and numbers.
- `PUT /v1/orders`: orders as JSON; the answer is the report. An older generation is refused with 409.
- `GET /v1/report`, `?after=N&wait=S`: the report; with a number, not before it differs from report N or S seconds have
  passed.

The token is read from its file at every request, for a Secret may be renewed, and compared in constant time.
"""

from __future__ import annotations

import hmac
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qs, urlsplit

LONGEST_WAIT_SECONDS = 30.0
MOST_BYTES = 2**20


class Refused(Exception):
    """Orders that are not taken: an HTTP status and a sentence."""

    def __init__(self, status: int, problem: str) -> None:
        super().__init__(problem)
        self.status = status


class Desk(Protocol):
    """What the server needs of the supervisor. Called from several threads."""

    def take(self, text: bytes) -> str:
        """Takes orders and gives the report. Raises Refused."""

    def report(self, after: int | None, wait: float) -> str: ...

    def page(self) -> str: ...


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], desk: Desk, token: Path) -> None:
        self.desk = desk
        self.token = token
        super().__init__(address, _Answer)

    def knows(self, header: str | None) -> bool:
        """Whether a request carries the token. Without a readable one nobody does."""
        try:
            token = self.token.read_text(encoding="utf-8").strip()
        except OSError:
            return False
        return bool(token) and hmac.compare_digest((header or "").encode(), f"Bearer {token}".encode())


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server
    timeout = 60.0

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/healthz":
            self._say(200, "ok\n", "text/plain")
        elif url.path == "/metrics":
            self._say(200, self.server.desk.page(), "text/plain; version=0.0.4")
        elif url.path != "/v1/report":
            self._problem(404, "/healthz, /metrics, /v1/report or /v1/orders")
        elif self._is_allowed():
            query = parse_qs(url.query)
            try:
                after = int(query["after"][0]) if "after" in query else None
                wait = min(LONGEST_WAIT_SECONDS, float(query.get("wait", ("0",))[0]))
            except ValueError:
                self._problem(400, "after is a whole number and wait a number of seconds")
                return
            self._say(200, self.server.desk.report(after, wait), "application/json")

    def do_PUT(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            self.close_connection = True
            self._problem(413, f"give a Content-Length of at most {MOST_BYTES} bytes")
            return
        body = self.rfile.read(int(length))
        if self.path != "/v1/orders":
            self._problem(404, "orders go to /v1/orders")
        elif self._is_allowed():
            try:
                self._say(200, self.server.desk.take(body), "application/json")
            except Refused as refused:
                self._problem(refused.status, str(refused))

    def _is_allowed(self) -> bool:
        if self.server.knows(self.headers.get("Authorization")):
            return True
        self._problem(401, "the token is missing or another")
        return False

    def _problem(self, status: int, words: str) -> None:
        self._say(status, json.dumps({"problem": words}) + "\n", "application/json")

    def _say(self, status: int, text: str, kind: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        try:
            self.end_headers()
            self.wfile.write(body)
        except ConnectionError:  # who asked has gone: a long poll is given up whenever there is something to order
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """A report asked for is no news."""
