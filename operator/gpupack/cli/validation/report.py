"""The comparison as JSON, as tables and as one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from gpupack import __version__
from gpupack.cli.page import document, html_table, paragraph
from gpupack.cli.show import Json, rounded
from gpupack.cli.validation import figures
from gpupack.cli.validation.extract import CALIBRATION, COUNTERS, SUMMARY, TIME_SHARED, Data
from gpupack.cli.validation.judge import Errors, Fit, Gain, Judged, Judgement, Line
from gpupack.errors import Invalid
from gpupack.facts.serving import Sharing

Rows = list[tuple[str, ...]]

_MISSING = {
    SUMMARY: "whole runs of vLLM 0.5.2, replication and all that is fitted to them",
    COUNTERS: "steady rates and steady gains of replicas",
    TIME_SHARED: "replicas without MPS",
    CALIBRATION: "vLLM V1",
}
_GAIN_MEAN, _GAIN_EACH, _STEADY_GAIN = 0.02, 0.05, 0.03
_PREEMPTED_ITL = 0.10


def absent_lines(data: Data, *, quick: bool) -> list[str]:
    """What the report does not hold and why."""
    lines = [f"not there: {name}, so nothing is said of {_MISSING[name]}" for name in data.absent]
    return [*lines, "the twin was not asked (--quick)"] if quick else lines


def line_rows(lines: Sequence[Line], first: str = "accuracy") -> tuple[tuple[str, ...], Rows]:
    head = (first, "runs", "T", "worst", "ITL", "worst", "goal T / ITL", "met")
    return head, [
        (
            line.name,
            str(line.runs),
            _percent(line.throughput),
            _signed(line.throughput_worst),
            _percent(line.itl),
            _signed(line.itl_worst),
            _goal(line),
            "-" if line.met is None else "yes" if line.met else "no",
        )
        for line in lines
    ]


def _goal(line: Line) -> str:
    if line.goals is None:
        return "-"
    worst = "" if line.goal_worst is None else f", worst {100 * line.goal_worst:.0f}"
    return f"{100 * line.goals[0]:.1f} / {100 * line.goals[1]:.1f}{worst}"


def gain_rows(gains: Sequence[Gain]) -> tuple[tuple[str, ...], Rows]:
    head = (
        "gain of replicas",
        "sharing",
        "measured",
        "predicted",
        "error",
        "twin",
        "error",
        "steady",
        "predicted",
        "error",
    )
    rows: Rows = [
        (
            gain.run,
            gain.sharing.value,
            f"{gain.measured:.3f}",
            f"{gain.predicted:.3f}",
            _signed(gain.error),
            "-" if gain.simulated is None else f"{gain.simulated:.3f}",
            "-" if gain.simulated is None else _signed(gain.simulated / gain.measured - 1),
            "-" if gain.steady_measured is None else f"{gain.steady_measured:.3f}",
            "-" if gain.steady_predicted is None else f"{gain.steady_predicted:.3f}",
            gain.why_not if gain.steady_error is None else _signed(gain.steady_error),
        )
        for gain in gains
    ]
    mean = _mean_gain(gains)
    twin = [abs(gain.simulated / gain.measured - 1) for gain in gains if gain.simulated is not None]
    steady = [abs(gain.steady_error) for gain in gains if gain.steady_error is not None]
    rows.append(
        (
            "mean error (goals 2 %, each 5 %; steady 3 %)",
            "",
            "",
            "",
            _percent(mean),
            "",
            _percent(sum(twin) / len(twin)) if twin else "-",
            "",
            "",
            _percent(sum(steady) / len(steady)) if steady else "-",
        )
    )
    return head, rows


def _mean_gain(gains: Sequence[Gain]) -> float:
    return sum(abs(gain.error) for gain in gains) / len(gains)


def preempted_rows(judgement: Judgement) -> tuple[tuple[str, ...], Rows]:
    """ITL where sequences were preempted: within 10 %, or said to be short of KV cache."""
    head = ("preempted", "preemptions", "ITL measured", "predicted", "error", "KvStarved")
    return head, [
        (
            each.measured.path,
            str(each.measured.preemptions),
            f"{1e3 * (each.measured.run.itl_mean or 0.0):.1f} ms",
            f"{1e3 * each.predicted_itl:.1f} ms",
            _signed(each.predicted.itl or 0.0),
            "yes" if each.kv_starved else "no",
        )
        for each in judgement.judged
        if each.measured.preemptions
    ]


def as_json(data: Data, judgement: Judgement, *, seed: int) -> Json:
    gains = judgement.gains
    steady_gains = [abs(gain.steady_error) for gain in gains if gain.steady_error is not None]
    preempted = [each for each in judgement.judged if each.measured.preemptions]
    return {
        "gpupack": __version__,
        "gpu": data.gpu.name,
        "seed": seed,
        "absent": list(data.absent),
        "accuracy": [_line_json(line) for line in judgement.lines],
        "by_model": [_line_json(line) for line in judgement.by_model],
        "by_provenance": [_line_json(line) for line in judgement.by_provenance],
        "gains": [_gain_json(gain) for gain in gains],
        "gain_error_mean": rounded(_mean_gain(gains)) if gains else None,
        "gain_error_worst": rounded(max(abs(gain.error) for gain in gains)) if gains else None,
        "gains_met": all(abs(gain.error) <= _GAIN_EACH for gain in gains) and _mean_gain(gains) <= _GAIN_MEAN
        if gains
        else None,
        "steady_gain_error_mean": rounded(sum(steady_gains) / len(steady_gains)) if steady_gains else None,
        "steady_gains_met": sum(steady_gains) / len(steady_gains) <= _STEADY_GAIN if steady_gains else None,
        "steady": [
            {
                "path": measured.path,
                "output_tokens_per_second": rounded(measured.steady.output_tokens_per_second),
                "error": rounded(error),
            }
            for measured, error in judgement.steady
            if measured.steady is not None
        ],
        "preempted_met": all(each.kv_starved or abs(each.predicted.itl or 0.0) <= _PREEMPTED_ITL for each in preempted)
        if preempted
        else None,
        "fits": [_fit_json(fit) for fit in judgement.fits],
        "runs": [_run_json(each) for each in judgement.judged],
    }


def _line_json(line: Line) -> Json:
    return {
        "name": line.name,
        "runs": line.runs,
        "throughput_error_mean": rounded(line.throughput),
        "throughput_error_worst": rounded(line.throughput_worst),
        "throughput_worst_run": line.throughput_worst_run,
        "itl_error_mean": rounded(line.itl),
        "itl_error_worst": rounded(line.itl_worst),
        "itl_worst_run": line.itl_worst_run,
        "goals": None if line.goals is None else list(line.goals),
        "goal_worst": line.goal_worst,
        "met": line.met,
    }


def _gain_json(gain: Gain) -> Json:
    return {
        "run": gain.run,
        "sharing": gain.sharing.value,
        "measured": rounded(gain.measured),
        "predicted": rounded(gain.predicted),
        "simulated": rounded(gain.simulated),
        "steady_measured": rounded(gain.steady_measured),
        "steady_predicted": rounded(gain.steady_predicted),
        "steady_not_counted": gain.why_not or None,
    }


def _fit_json(fit: Fit) -> Json:
    fitted = fit.coefficients
    return {
        "name": fit.name,
        "runs": fit.runs,
        "host_per_step": rounded(fitted.host_per_step),
        "host_per_layer": rounded(fitted.host_per_layer),
        "gpu_per_layer": rounded(fitted.gpu_per_layer),
        "host_per_sequence": rounded(fitted.host_per_sequence),
        "host_per_prefill_sequence": rounded(fitted.host_per_prefill_sequence),
        "ingest_per_request": rounded(fitted.ingest_per_request),
    }


def _run_json(each: Judged) -> Json:
    measured, group = each.measured, each.measured.run.group
    return {
        "path": measured.path,
        "model": measured.model,
        "provenance": measured.provenance,
        "max_num_seqs": group.shape.max_num_seqs,
        "replicas": group.replicas,
        "sharing": measured.run.sharing.value,
        "preemptions": measured.preemptions,
        "kv_starved": each.kv_starved,
        "total_tokens_per_second": {
            "measured": rounded(measured.run.total_tokens_per_second),
            "predicted": rounded(each.predicted_tokens_per_second),
            "simulated": rounded(each.simulated_tokens_per_second),
        },
        "itl_mean_seconds": {
            "measured": rounded(measured.run.itl_mean),
            "predicted": rounded(each.predicted_itl),
            "simulated": rounded(each.simulated_itl),
        },
        "predicted_error": _errors_json(each.predicted),
        "simulated_error": None if each.simulated is None else _errors_json(each.simulated),
    }


def _errors_json(errors: Errors) -> Json:
    return {"throughput": rounded(errors.throughput), "itl": rounded(errors.itl)}


def page(data: Data, judgement: Judgement, *, quick: bool = False) -> str:
    """One HTML page that needs nothing beside it. Without matplotlib it says that figures are missing."""
    try:
        drawn = figures.draw(judgement)
        note = ""
    except Invalid as missing:
        drawn, note = [], paragraph(f"No figures: {missing}.")
    mps = [gain for gain in judgement.gains if gain.sharing is Sharing.MPS]
    body = [
        "<h1>How far gpupack is from hardware</h1>",
        f"<p>gpupack {escape(__version__)}: the closed form and the digital twin beside {len(judgement.judged)} "
        "published runs on one H100 of 64 GB (arXiv 2503.08311, 2508.08343). T is throughput of a whole run in input "
        "and output tokens a second, ITL the mean time between two tokens; errors are means of absolute relative "
        "errors, worst is the run furthest off. Whole runs are compared with whole runs, steady states with the "
        "engines' counters while requests waited.</p>",
        *(paragraph(line, "absent") for line in absent_lines(data, quick=quick)),
        "<h2>Accuracy</h2>",
        html_table(*line_rows(judgement.lines)),
    ]
    if judgement.gains:
        body += ["<h2>Replicas</h2>", html_table(*gain_rows(judgement.gains))]
    if mps:
        body.append("<p>OPT-2.7B with two replicas is in no fit of the sharing constants; it is the test.</p>")
    head, preempted = preempted_rows(judgement)
    if preempted:
        body += ["<h2>Preemption</h2>", html_table(head, preempted)]
    body.append(note)
    for title, drawing in drawn:
        body += [f"<h2>{escape(title)}</h2>", drawing]
    body += [
        "<h2>Errors by model</h2>",
        html_table(*line_rows(judgement.by_model, "model")),
        "<h2>Errors by provenance</h2>",
        html_table(*line_rows(judgement.by_provenance, "provenance")),
        "<h2>Every run</h2>",
        html_table(*_run_rows(judgement)),
    ]
    return document("gpupack validation", body)


def _run_rows(judgement: Judgement) -> tuple[tuple[str, ...], Rows]:
    head = ("run", "T measured", "predicted", "error", "twin", "ITL measured", "predicted", "error", "twin")
    return head, [
        (
            each.measured.path,
            f"{each.measured.run.total_tokens_per_second:,.0f}",
            f"{each.predicted_tokens_per_second:,.0f}",
            _signed(each.predicted.throughput),
            "-" if each.simulated is None else _signed(each.simulated.throughput),
            "-" if each.measured.run.itl_mean is None else f"{1e3 * each.measured.run.itl_mean:.2f} ms",
            f"{1e3 * each.predicted_itl:.2f} ms",
            "-" if each.predicted.itl is None else _signed(each.predicted.itl),
            "-" if each.simulated is None or each.simulated.itl is None else _signed(each.simulated.itl),
        )
        for each in judgement.judged
    ]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f} %"
