"""The page's figures, as SVG: curves by batch limit, gains of replicas, parity, errors by model and by provenance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpupack.cli.plot import drawing, svg
from gpupack.cli.validation.extract import SWEEP, V1
from gpupack.cli.validation.judge import Gain, Judged, Judgement, Line
from gpupack.units import milliseconds

_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple")


def draw(judgement: Judgement) -> list[tuple[str, str]]:
    """Titles and SVG elements, those for which there are runs. Raises Invalid where matplotlib is missing."""
    found = []
    sweep = [each for each in judgement.judged if each.measured.provenance == SWEEP]
    newer = [each for each in judgement.judged if each.measured.provenance == V1]
    if sweep:
        found.append(("Throughput and inter-token latency by batch limit, ShareGPT lengths", _curves(sweep)))
    if newer:
        found.append(("The same of vLLM V1, 400 tokens out", _curves(_longest(newer))))
    if judgement.gains:
        found.append(("What replicas bring over one engine", _gains(judgement.gains)))
    found.append(("Predicted against measured, every run", _parity(judgement.judged)))
    found.append(("Mean error by model and by provenance", _errors(judgement.by_model, judgement.by_provenance)))
    return found


def _longest(judged: Sequence[Judged]) -> list[Judged]:
    longest = max(each.measured.run.group.lengths.output_mean for each in judged)
    return [each for each in judged if each.measured.run.group.lengths.output_mean > 0.99 * longest]


def _curves(judged: Sequence[Judged]) -> str:
    figure, (left, right) = _panels()
    models = sorted({each.measured.model for each in judged})
    for model, colour in zip(models, _COLOURS, strict=False):
        mine = sorted(
            (each for each in judged if each.measured.model == model),
            key=lambda each: each.measured.run.group.shape.max_num_seqs,
        )
        limits = [each.measured.run.group.shape.max_num_seqs for each in mine]
        left.plot(limits, [each.measured.run.total_tokens_per_second / 1e3 for each in mine], "o", color=colour)
        left.plot(limits, [each.predicted_tokens_per_second / 1e3 for each in mine], "-", color=colour, label=model)
        right.plot(limits, [milliseconds(each.measured.run.itl_mean or 0.0) for each in mine], "o", color=colour)
        right.plot(limits, [milliseconds(each.predicted_itl) for each in mine], "-", color=colour, label=model)
        if all(each.simulated is not None for each in mine):
            tokens = [(each.simulated_tokens_per_second or 0.0) / 1e3 for each in mine]
            left.plot(limits, tokens, ":", color=colour)
            right.plot(limits, [milliseconds(each.simulated_itl or 0.0) for each in mine], ":", color=colour)
    for axes, what in ((left, "thousand tokens a second"), (right, "mean ITL (ms)")):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("batch limit")
        axes.set_ylabel(what)
        axes.grid(alpha=0.3)
    left.legend(fontsize=8, title="dots measured, lines predicted, dotted: twin", title_fontsize=8)
    return svg(figure)


def _gains(gains: Sequence[Gain]) -> str:
    figure, axes = drawing().subplots(figsize=(10.0, 4.0), layout="constrained")
    places = range(len(gains))
    series = (
        ("measured", [each.measured for each in gains], "0.25"),
        ("predicted", [each.predicted for each in gains], "tab:blue"),
        ("twin", [each.simulated or 0.0 for each in gains], "tab:cyan"),
        ("steady, counters", [each.steady_measured or 0.0 for each in gains], "0.6"),
        ("steady, predicted", [each.steady_predicted or 0.0 for each in gains], "tab:orange"),
    )
    for number, (name, values, colour) in enumerate(series):
        axes.bar([place + 0.16 * (number - 2) for place in places], values, 0.15, label=name, color=colour)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(list(places), [f"{each.run}\n{each.sharing.value}" for each in gains], fontsize=8)
    axes.set_ylabel("throughput over one engine")
    axes.legend(fontsize=8, ncols=5, loc="upper center")
    axes.set_ylim(0.0, 2.1)
    return svg(figure)


def _parity(judged: Sequence[Judged]) -> str:
    figure, (left, right) = _panels()
    kinds = sorted({each.measured.provenance for each in judged})
    for kind, colour in zip(kinds, _COLOURS, strict=False):
        mine = [each for each in judged if each.measured.provenance == kind]
        left.plot(
            [each.measured.run.total_tokens_per_second for each in mine],
            [each.predicted_tokens_per_second for each in mine],
            ".",
            color=colour,
            label=kind,
        )
        timed = [each for each in mine if each.measured.run.itl_mean is not None]
        right.plot(
            [milliseconds(each.measured.run.itl_mean or 0.0) for each in timed],
            [milliseconds(each.predicted_itl) for each in timed],
            ".",
            color=colour,
        )
    for axes, what in ((left, "tokens a second"), (right, "mean ITL (ms)")):
        measured = [value for line in axes.get_lines() for value in line.get_xdata()]
        low, high = 0.8 * min(measured), 1.25 * max(measured)
        axes.plot([low, high], [low, high], color="0.4", linewidth=0.8)
        axes.fill_between([low, high], [0.9 * low, 0.9 * high], [1.1 * low, 1.1 * high], color="0.9", zorder=0)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(f"measured, {what}")
        axes.set_ylabel("predicted")
    left.legend(fontsize=8, title="band: within 10 %", title_fontsize=8)
    return svg(figure)


def _errors(by_model: Sequence[Line], by_provenance: Sequence[Line]) -> str:
    figure, panels = _panels()
    for axes, lines, title in zip(panels, (by_model, by_provenance), ("model", "provenance"), strict=True):
        places = range(len(lines))
        axes.bar([place - 0.2 for place in places], [100 * line.throughput for line in lines], 0.4, label="throughput")
        axes.bar([place + 0.2 for place in places], [100 * line.itl for line in lines], 0.4, label="ITL")
        axes.set_xticks(list(places), [line.name.replace(" ", "\n", 1) for line in lines], fontsize=8)
        axes.set_ylabel("mean error, %")
        axes.set_title(f"by {title}", fontsize=10)
        axes.grid(axis="y", alpha=0.3)
    panels[0].legend(fontsize=8)
    return svg(figure)


def _panels() -> tuple[Any, Any]:
    figure, panels = drawing().subplots(1, 2, figsize=(10.0, 4.0), layout="constrained")
    return figure, panels
