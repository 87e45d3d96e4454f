"""Pictures of `gpupack top` and `gpupack report` for README and docs: `python e2e/pictures.py [FOLDER]`.

What they show is a quarter of an hour in a small cluster, as the simulated cluster plays it with the operator's own
code: load comes, peaks, and goes. The view is drawn by the real program from an API server on a socket, the report from
the trace of the same story. Needs chromium, which turns both into PNG.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from PIL import Image  # noqa: E402
from tests.top.world import Json, Look, cluster_of, page_of, pool_of, servings_of  # noqa: E402

from gpupack import catalog  # noqa: E402
from gpupack.cli.explain import prose  # noqa: E402
from gpupack.cli.report.account import of_trace  # noqa: E402
from gpupack.cli.report.page import page  # noqa: E402
from gpupack.decide.reconcile import reconcile  # noqa: E402
from gpupack.facts.observation import Observation  # noqa: E402
from gpupack.plan import Outcome  # noqa: E402
from gpupack.soak.history import Event, History, Wish, World  # noqa: E402
from gpupack.soak.play import play  # noqa: E402
from gpupack.top.app import TopApp  # noqa: E402
from gpupack.top.feed import Feed  # noqa: E402
from gpupack.trace.lines import Header, header_line, tick_line  # noqa: E402

SCREEN = (132, 34)
SCREEN_PIXELS = (1640, 890)
COLOURS = 256
"""So few keep the files small."""
PAGE_PIXELS = (1250, 2250)
PEAK_SECONDS = 480.0
"""Into the story: every GPU is in use."""
TICKS = 150
POOL: dict[str, Any] = {
    "times": {"tickSeconds": 5, "warmupSeconds": 10, "windowSeconds": 30, "minWindowRequests": 50,
              "rateWindowsSeconds": [15, 60], "scaleDownDelaySeconds": 60, "pendingDeadlineSeconds": 60},
    "metrics": {"enginePeriodSeconds": 5, "dcgm": {"periodSeconds": 5}},
}  # fmt: skip


def _wish(name: str, model: str, rate: float, itl: int, born: int = 0, **spec: Any) -> Wish:
    slo = {"itlMilliseconds": itl, "ttftMilliseconds": 1000}
    return Wish(
        namespace="shop", name=name, rate=rate, born=born,
        spec={"model": {"name": model}, "poolName": "default", "slo": slo,
              "workload": {"inputTokens": {"mean": 512}, "outputTokens": {"mean": 256}}, **spec},
    )  # fmt: skip


WORLD = World(
    gpus=("H100-80GB",) * 4, per_node=2, cores=64, pool=POOL, noise=True, load_seconds=10.0,
    servings=(
        _wish("chat", "llama-3.2-1b", 20.0, 25),
        _wish("coder", "qwen2.5-1.5b", 10.0, 30, born=5),
        _wish("mail", "qwen2.5-0.5b", 8.0, 40, born=10),
        _wish("search", "llama-3.2-3b", 6.0, 12, born=15),
    ),
)  # fmt: skip


def _load(tick: int, serving: int, rate: float) -> Event:
    return Event(tick=tick, kind="load", args={"serving": serving, "rate": rate})


HISTORY = History(
    seed=7, world=WORLD, ticks=TICKS, deleted_at=TICKS + 1, calm_at=120,
    events=(
        _load(30, 0, 90.0), _load(40, 1, 60.0), _load(50, 0, 150.0), _load(55, 3, 14.0), _load(60, 2, 60.0),
        _load(110, 0, 40.0), _load(115, 3, 8.0),
    ),
)  # fmt: skip


def looks() -> list[Look]:
    """Everything that was seen and decided."""
    seen: list[Look] = []

    def record(observation: Observation) -> Outcome:
        outcome = reconcile(observation)
        seen.append((observation, outcome))
        return outcome

    report = play(HISTORY, reconcile=record)
    assert report.violation is None, report.violation
    return seen


def trace_of(path: Path, seen: list[Look]) -> None:
    header = Header(policy=seen[0][0].policy, catalog=catalog.digest())
    path.write_text("\n".join([header_line(header), *(tick_line(*each) for each in seen)]) + "\n")


async def draw_top(folder: Path, seen: list[Look]) -> None:
    """The view at the peak, with the explanation of one serving on it."""
    began = seen[0][0].at
    past = [each for each in seen if each[0].at <= began + PEAK_SECONDS]
    told: list[Json] = []
    for each in past:
        told = servings_of(each, told)
    api = cluster_of(pool_of(past[-1]), told, page_of(past[-1]))
    await api.start()
    async with api.api() as calls:
        feed = Feed(calls, {each.name: each for each in catalog.gpus()}.get, namespace=None, metrics=None)
        await feed.look()
        app = TopApp(feed, prose, every=60.0)
        async with app.run_test(size=SCREEN) as pilot:
            await pilot.pause(1.0)
            app.save_screenshot("top.svg", path=str(folder))
            await pilot.press("enter")
            await pilot.pause(0.5)
            app.save_screenshot("explain.svg", path=str(folder))
    await api.stop()


def photograph(source: Path, target: Path, pixels: tuple[int, int]) -> None:
    width, height = pixels
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
               f"--window-size={width},{height}", f"--screenshot={target}", source.as_uri()]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    Image.open(target).convert("RGB").quantize(COLOURS).save(target, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "docs" / "pictures")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    seen = looks()
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch)
        asyncio.run(draw_top(here, seen))
        trace_of(here / "trace.jsonl", seen)
        (here / "report.html").write_text(page(of_trace(here / "trace.jsonl", "--trace")))
        for name in ("top", "explain"):
            photograph(here / f"{name}.svg", folder / f"{name}.png", SCREEN_PIXELS)
        photograph(here / "report.html", folder / "report.png", PAGE_PIXELS)


if __name__ == "__main__":
    main()
