"""Pictures of `gpupack top` and `gpupack report` for README and docs: `python e2e/pictures.py [FOLDER]`.

A real control plane with four virtual GPUs: load comes to four servings, the view is drawn from the API as a user's is,
the load goes, and the report is made of the operator's own trace. Takes three minutes. Needs chromium, which turns
both into PNG.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import tempfile
import time
from pathlib import Path

from PIL import Image

from gpupack import catalog
from gpupack.cli import main as gpupack
from gpupack.cli.explain import prose
from gpupack.demo.live import LOAD, pool_manifest, serving_manifest
from gpupack.demo.stage import OPERATOR, Stage, wait_for
from gpupack.kube.api import Api, configuration_of
from gpupack.node import binaries
from gpupack.node.controlplane import ControlPlane
from gpupack.top.app import TopApp
from gpupack.top.feed import Feed

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
NODES = ("--nodes", "2", "--gpus", "2", "--gpu-kind", "H100-80GB", "--start-seconds", "2",
         "--exporter-period-seconds", "1")  # fmt: skip
SERVINGS = (
    serving_manifest("chat", "llama-3.2-1b", itl_milliseconds=22, ttft_milliseconds=1000, efficiency_percent=40),
    serving_manifest("coder", "qwen2.5-1.5b", itl_milliseconds=25, ttft_milliseconds=1000, efficiency_percent=40),
    serving_manifest("mail", "qwen2.5-0.5b", itl_milliseconds=30, ttft_milliseconds=1000, efficiency_percent=40),
    serving_manifest("search", "llama-3.2-3b", itl_milliseconds=20, ttft_milliseconds=500),
)
LOADS = (
    {"chat": 40, "coder": 20, "mail": 20, "search": 6},
    {"chat": 150, "coder": 60, "mail": 40, "search": 12},
    {"chat": 190, "coder": 80, "mail": 60, "search": 15},
)
"""Requests a second, one after another; the view is drawn under the last."""
QUIET = {"chat": 30, "coder": 20, "mail": 20, "search": 6}
EACH_SECONDS, QUIET_SECONDS = 25.0, 30.0
SCREEN, SCREEN_PIXELS = (132, 30), (1640, 795)
COLOURS = 256
"""So few keep the files small."""
PAGE_PIXELS = (1250, 2100)


class RecordedStage(Stage):
    """Its operator writes a trace."""

    def __init__(self, cluster: ControlPlane, folder: Path, trace: Path) -> None:
        super().__init__(cluster, folder, node_arguments=NODES)
        self._trace = trace

    def _start(self, program: str, *arguments: str) -> None:
        super()._start(program, *arguments, *(("--trace", str(self._trace)) if program == OPERATOR else ()))


def play(stage: Stage, folder: Path) -> None:
    stage.cluster.apply(pool_manifest(), *SERVINGS)
    wait_for(lambda: all(each.get("status", {}).get("readyReplicas") for each in stage.servings()), 60.0,
             "every serving has a replica")  # fmt: skip
    for load in LOADS:
        _load(stage, load, EACH_SECONDS)
    asyncio.run(draw_top(stage, folder))
    _load(stage, QUIET, QUIET_SECONDS)


def _load(stage: Stage, load: dict[str, int], seconds: float) -> None:
    for name, rate in load.items():
        stage.load(f"default/{name}", rate=rate, **LOAD)
    time.sleep(seconds)


async def draw_top(stage: Stage, folder: Path) -> None:
    """The view, and the explanation of a serving on it."""
    metrics = f"http://127.0.0.1:{stage.metrics_port}/metrics"
    async with Api(await configuration_of(str(stage.cluster.kubeconfig))) as api:
        feed = Feed(api, {each.name: each for each in catalog.gpus()}.get, namespace=None, metrics=metrics)
        await feed.look()
        app = TopApp(feed, prose, every=2.0)
        async with app.run_test(size=SCREEN) as pilot:
            await pilot.pause(3.0)
            app.save_screenshot("top.svg", path=str(folder))
            await pilot.press("enter")
            await pilot.pause(0.5)
            app.save_screenshot("explain.svg", path=str(folder))


def photograph(source: Path, target: Path, pixels: tuple[int, int]) -> None:
    width, height = pixels
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
               f"--window-size={width},{height}", f"--screenshot={target}", source.as_uri()]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    Image.open(target).convert("RGB").quantize(COLOURS).save(target, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=PICTURES)
    target: Path = parser.parse_args().folder
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        trace = folder / "trace.jsonl"
        (folder / "stage").mkdir()  # which goes when the stage ends
        with (
            ControlPlane(binaries.obtain(binaries.control_plane())) as cluster,
            RecordedStage(cluster, folder / "stage", trace) as stage,
        ):
            stage.start_operator()
            play(stage, folder)
            stage.stop_operator()
        gpupack(["report", "--trace", str(trace), "-o", str(folder / "report.html")])
        for name in ("top", "explain"):
            photograph(folder / f"{name}.svg", target / f"{name}.png", SCREEN_PIXELS)
        photograph(folder / "report.html", target / "report.png", PAGE_PIXELS)


if __name__ == "__main__":
    main()
