"""Draws the frontier of (batch, replicas), measured profiles, and figures for pages.

Needs matplotlib, which is the extra `plot`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpupack.decide.advise import Advice
from gpupack.decide.explain import counted
from gpupack.decide.frontier import Point
from gpupack.decide.question import Question
from gpupack.errors import Invalid
from gpupack.facts.serving import ProfilePoint
from gpupack.perf.sharing import statistic_of
from gpupack.units import milliseconds


def drawing() -> Any:
    """matplotlib's pyplot, drawing to files only. Raises Invalid where it is missing."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as missing:
        raise Invalid("--plot", "drawing needs matplotlib", "install it with: pip install 'gpupack[plot]'") from missing
    return pyplot


def svg(figure: Any) -> str:
    """The figure as an SVG element to stand in a page; equal figures give equal text."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "gpupack", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    drawing().close(figure)
    drawn = text.getvalue()
    return drawn[drawn.index("<svg") :]


def draw_frontier(path: Path, question: Question, advice: Advice, points: Sequence[Point]) -> None:
    """Every pair that fits as a dot, one colour a count, the Pareto set as a line, the promise and the choice marked.

    Raises Invalid where matplotlib is missing or the file cannot be written.
    """
    pyplot = drawing()
    figure, axes = pyplot.subplots(figsize=(8.0, 5.0), layout="constrained")
    most = max([advice.replicas_per_gpu, *(point.replicas for point in points if point.best)])
    points = [point for point in points if point.replicas <= most + 1]
    for replicas in sorted({point.replicas for point in points}):
        group = [point for point in points if point.replicas == replicas]
        axes.plot(
            _latencies(group),
            _throughputs(group),
            "o",
            markersize=4,
            label=counted(replicas, "engine"),
        )
    best = [point for point in points if point.best]
    axes.plot(_latencies(best), _throughputs(best), "-", color="0.3", linewidth=1, label="frontier", zorder=0)
    if advice.slo.itl is not None:
        axes.axvline(milliseconds(advice.slo.itl), color="0.5", linestyle="--", label="promise")
    if advice.fits:
        axes.plot(
            [milliseconds(statistic_of(advice.prediction.groups[0], advice.slo.statistic)[0])],
            [advice.prediction.total_tokens_per_second / 1000.0],
            "*",
            markersize=14,
            color="black",
            label=f"chosen: {advice.shape.max_num_seqs} x {advice.replicas_per_gpu}",
        )
    axes.set_xlabel(f"ITL {advice.slo.statistic.value.lower()} (ms)")
    axes.set_ylabel("thousand tokens a second, in and out")
    axes.set_title(f"{question.llm.name} on one {question.gpu.name}: batch x replicas (predicted)")
    axes.set_xscale("log")
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis("{x:g}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _save(figure, path)


def draw_profile(path: Path, model: str, points: Sequence[ProfilePoint], chosen: int | None) -> None:
    """Measured throughput and ITL against the batch limit. Raises Invalid where the file cannot be written."""
    pyplot = drawing()
    figure, axes = pyplot.subplots(figsize=(8.0, 5.0), layout="constrained")
    limits = [point.max_num_seqs for point in points]
    axes.plot(limits, [point.total_tokens_per_second / 1000.0 for point in points], "o-", label="throughput")
    axes.set_xscale("log", base=2)
    axes.set_xticks(limits, [str(limit) for limit in limits])
    axes.set_xlabel("batch limit")
    axes.set_ylabel("thousand tokens a second, in and out")
    beside = axes.twinx()
    beside.plot(limits, [milliseconds(point.itl_mean) for point in points], "s--", color="0.4", label="ITL")
    beside.set_ylabel("ITL mean (ms)")
    if chosen is not None:
        axes.axvline(chosen, color="0.5", linestyle=":", label="chosen")
    axes.set_title(f"{model}: measured")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as wrong:
        raise Invalid("--plot", f"{path} cannot be drawn ({wrong})", "name a .png, .svg or .pdf file") from wrong
    finally:
        drawing().close(figure)


def _latencies(points: Sequence[Point]) -> list[float]:
    return [milliseconds(point.itl) for point in points]


def _throughputs(points: Sequence[Point]) -> list[float]:
    return [point.prediction.total_tokens_per_second / 1000.0 for point in points]
