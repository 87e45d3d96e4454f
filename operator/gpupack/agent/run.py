"""The command: `gpupack agent` serves /metrics and /healthz until it is told to stop; `--once` prints one page.

The answer to a scrape is made from what the watching threads left; no scrape waits for the driver.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from gpupack.agent.nvml import VERSION_MISMATCH
from gpupack.agent.page import page
from gpupack.agent.watch import View, Watch
from gpupack.errors import Unavailable
from gpupack.units import Seconds

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LOOKS_FOR_ACTIVITY = 2
"""Activity is counted between two samples."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="0.0.0.0", metavar="ADDRESS", help="where it listens")
    parser.add_argument("--port", type=_port, default=8080, metavar="PORT", help="/metrics, /healthz; 0: any free port")
    parser.add_argument(
        "--period-seconds", type=_period, default=1.0, metavar="S", help="between two looks at a GPU; default 1"
    )
    parser.add_argument(
        "--stale-seconds", type=_period, default=30.0, metavar="S",
        help="readings that are older are withheld, and only their age is told; default 30",
    )  # fmt: skip
    parser.add_argument("--proc", type=Path, default=Path("/proc"), metavar="DIR", help="the node's /proc")
    parser.add_argument("--once", action="store_true", help="print the page after two looks, and end")


def run(args: argparse.Namespace) -> int:
    """0 after SIGINT or SIGTERM, 1 after a bug. With --once, raises Unavailable where NVML cannot be used."""
    period, stale = Seconds(args.period_seconds), Seconds(args.stale_seconds)
    watch = Watch(proc=args.proc, period=period)
    if args.once:
        watch.start()
        sys.stdout.write(page(_looked(watch, stale), period=period, stale=stale).decode())
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: watch.stop())
    with Server((args.host, args.port), watch.view, period=period, stale=stale) as server:
        print(f"listening on {args.host}:{server.server_port}", flush=True)
        watch.start()
        threading.Thread(name="http", target=server.serve_forever, daemon=True).start()
        watch.done.wait()
        server.shutdown()
    return int(watch.failed)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], view: Callable[[], View], *, period: Seconds, stale: Seconds) -> None:
        self.view = view
        self.period = period
        self.stale = stale
        super().__init__(address, _Answer)

    def answer(self, path: str) -> tuple[int, bytes]:
        """Status and text. Not healthy is only what a restart mends: the container runtime brings the library of the
        driver that runs when a container starts."""
        match path:
            case "/metrics":
                return 200, page(self.view(), period=self.period, stale=self.stale)
            case "/healthz":
                mismatched = self.view().error == VERSION_MISMATCH
                return (503, b"driver and library are of different versions\n") if mismatched else (200, b"ok\n")
        return 404, b"/metrics or /healthz\n"


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server
    timeout = 30.0

    def do_GET(self) -> None:
        status, body = self.server.answer(self.path.partition("?")[0])
        self.send_response(status)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """A scrape a few seconds is no news."""


def _looked(watch: Watch, patience: Seconds) -> View:
    """Once every GPU was looked at twice, or as it is when patience ends. Raises Unavailable where NVML refuses."""
    until = time.monotonic() + patience
    while True:
        view = watch.view()
        if not view.is_up and view.error is not None:
            raise Unavailable(f"NVML cannot be used here: {view.error.replace('_', ' ')}")
        seen = view.is_up and all(each.looks >= LOOKS_FOR_ACTIVITY for each in view.gpus)
        if seen or watch.done.is_set() or time.monotonic() > until:
            return view
        time.sleep(0.02)


def _port(word: str) -> int:
    if not word.isdecimal() or not int(word) < 65536:
        raise argparse.ArgumentTypeError(f"{word} is not a port; give 1 to 65535, or 0 for any free one")
    return int(word)


def _period(word: str) -> float:
    try:
        seconds = float(word)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600.0:
        raise argparse.ArgumentTypeError(f"{word} is not a number of seconds from 0.1 (GPM's least) to 3600")
    return seconds
