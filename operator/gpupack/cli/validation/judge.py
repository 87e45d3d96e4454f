"""Predictions and the twin beside the measurements: errors by run, and what they come to.

Whole runs are compared with whole runs, steady states with the counters while requests waited. What is tested is never
fitted on: "in-sample" says so, the other fits leave the tested runs out. Knows numbers, not how they are shown.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from gpupack.cli.validation.extract import GRID, REPLICATION, SWEEP, V1, Data, Measured
from gpupack.facts.serving import Sharing
from gpupack.perf import calibration
from gpupack.perf.batching import predict_run
from gpupack.perf.fit import DECODE_RUNS, ONLINE_RUNS, ObservedRun, fit_runs
from gpupack.perf.prediction import Coefficients
from gpupack.perf.sharing import predict
from gpupack.rehearse import rehearse_run

# The nine runs of the thrifty fit: 260 tokens out at three batch limits of each model.
_NINE_OUT, _NINE_BATCHES = "_260", (1, 32, 128)
# A counted rate is a steady one if the batch was watched for so many mean answers.
_STEADY_LIVES = 2.0

Advance = Callable[[str, int, int], None]
"""Told what is done now, how many steps of it are done, and of how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Relative errors of throughput and mean ITL: the prediction over the measurement, less one."""

    throughput: float
    itl: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One run with what was said of it. `simulated` and what belongs to it are None without the twin."""

    measured: Measured
    predicted_tokens_per_second: float
    predicted_itl: float
    kv_starved: bool
    predicted: Errors
    simulated_tokens_per_second: float | None
    simulated_itl: float | None
    simulated: Errors | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the table: mean absolute errors and worst runs of a way to predict some runs. Goals are shares."""

    name: str
    runs: int
    throughput: float
    throughput_worst: float
    throughput_worst_run: str
    itl: float
    itl_worst: float
    itl_worst_run: str
    goals: tuple[float, float] | None = None
    goal_worst: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether both goals, and the one on the worst run if there is one, are met; None without goals."""
        if self.goals is None:
            return None
        worst = max(abs(self.throughput_worst), abs(self.itl_worst))
        near = self.throughput <= self.goals[0] and self.itl <= self.goals[1]
        return near and (self.goal_worst is None or worst <= self.goal_worst)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """What replicas brought over one engine of the same batch limit. `steady` gains are of the counters.

    `why_not` says why a steady gain is not counted.
    """

    run: str
    sharing: Sharing
    measured: float
    predicted: float
    simulated: float | None
    steady_measured: float | None
    steady_predicted: float | None
    why_not: str = ""

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1

    @property
    def steady_error(self) -> float | None:
        if self.steady_measured is None or self.steady_predicted is None or self.why_not:
            return None
        return self.steady_predicted / self.steady_measured - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Coefficients that the code fitted here, and to which runs."""

    name: str
    runs: int
    coefficients: Coefficients


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    judged: tuple[Judged, ...]
    lines: tuple[Line, ...]
    by_model: tuple[Line, ...]
    by_provenance: tuple[Line, ...]
    gains: tuple[Gain, ...]
    steady: tuple[tuple[Measured, float], ...]
    fits: tuple[Fit, ...]


def judge(data: Data, *, twin: bool, seed: int, advance: Advance) -> Judgement:
    """Everything that the data can tell. `twin` False leaves the simulation out."""
    judged = tuple(_judged(data, twin=twin, seed=seed, advance=advance))
    alone = [each for each in judged if each.measured.alone]
    old = [each for each in alone if each.measured.provenance != V1]
    newer = [each for each in alone if each.measured.provenance == V1]
    lines, fits = [], []
    if old:
        lines.append(_line("closed form, as shipped (in-sample)", _predicted(old), goals=(0.022, 0.024)))
        if twin:
            lines.append(_line("twin, as shipped (in-sample)", _simulated(old), goals=(0.022, 0.024)))
        found, fitted = _old_engine(data, [each.measured for each in old], advance)
        lines += found
        fits += fitted
    if newer:
        lines.append(_line("V1, closed form, as shipped (in-sample)", _predicted(newer), goals=(0.04, 0.04)))
        if twin:
            lines.append(_line("V1, twin, as shipped (in-sample)", _simulated(newer), goals=(0.04, 0.04)))
        found, fitted = _v1_engine(data, [each.measured for each in newer], [each.measured for each in old], advance)
        lines += found
        fits += fitted
    models = sorted({each.measured.model for each in alone})
    return Judgement(
        judged=judged,
        lines=tuple(lines),
        by_model=tuple(
            _line(model, _predicted(each for each in alone if each.measured.model == model)) for model in models
        ),
        by_provenance=tuple(
            _line(kind, _predicted(mine))
            for kind in (SWEEP, GRID, REPLICATION, V1)
            if (mine := [each for each in judged if each.measured.provenance == kind])
        ),
        gains=tuple(_gains(data, judged)),
        steady=tuple(_steady(data)),
        fits=tuple(fits),
    )


def _judged(data: Data, *, twin: bool, seed: int, advance: Advance) -> Iterable[Judged]:
    for number, measured in enumerate(data.runs):
        run = measured.run
        said = predict_run(data.gpu, (run.group,), run.sharing, run.requests)
        tokens, itl = said.total_tokens_per_second, said.groups[0].itl_mean
        twin_tokens = twin_itl = None
        if twin:
            advance("predicting and simulating every run", number, len(data.runs))
            seen = rehearse_run(data.gpu, (run.group,), run.sharing, run.requests, seed)[0]
            twin_tokens, twin_itl = seen.total_tokens_per_second, seen.itl.mean
        yield Judged(
            measured=measured,
            predicted_tokens_per_second=tokens,
            predicted_itl=itl,
            kv_starved=said.groups[0].kv_starved,
            predicted=_errors(run, tokens, itl),
            simulated_tokens_per_second=twin_tokens,
            simulated_itl=twin_itl,
            simulated=None if twin_tokens is None or twin_itl is None else _errors(run, twin_tokens, twin_itl),
        )


def _errors(run: ObservedRun, tokens: float, itl: float) -> Errors:
    return Errors(
        throughput=tokens / run.total_tokens_per_second - 1,
        itl=None if run.itl_mean is None else itl / run.itl_mean - 1,
    )


def _predicted(judged: Iterable[Judged]) -> list[tuple[str, Errors]]:
    return [(each.measured.path, each.predicted) for each in judged]


def _simulated(judged: Iterable[Judged]) -> list[tuple[str, Errors]]:
    return [(each.measured.path, each.simulated) for each in judged if each.simulated is not None]


def _by(data: Data, runs: Iterable[Measured], coefficients: Coefficients) -> list[tuple[str, Errors]]:
    found = []
    for measured in runs:
        run = measured.run
        group = replace(run.group, coefficients=coefficients)
        said = predict_run(data.gpu, (group,), run.sharing, run.requests)
        found.append((measured.path, _errors(run, said.total_tokens_per_second, said.groups[0].itl_mean)))
    return found


def _line(
    name: str,
    errors: Sequence[tuple[str, Errors]],
    goals: tuple[float, float] | None = None,
    goal_worst: float | None = None,
) -> Line:
    throughput = [(each.throughput, path) for path, each in errors]
    itl = [(each.itl, path) for path, each in errors if each.itl is not None]
    worst, worst_path = max(throughput, key=lambda each: abs(each[0]))
    worst_itl, worst_itl_path = max(itl, key=lambda each: abs(each[0]))
    return Line(
        name=name,
        runs=len(errors),
        throughput=statistics.fmean(abs(error) for error, _ in throughput),
        throughput_worst=worst,
        throughput_worst_run=worst_path,
        itl=statistics.fmean(abs(error) for error, _ in itl),
        itl_worst=worst_itl,
        itl_worst_run=worst_itl_path,
        goals=goals,
        goal_worst=goal_worst,
    )


def _old_engine(data: Data, runs: Sequence[Measured], advance: Advance) -> tuple[list[Line], list[Fit]]:
    """Fits of the older engine by the code, from the shipped coefficients: all runs, one model left out, nine runs."""
    base = runs[0].run.group.coefficients
    models = sorted({each.model for each in runs})
    doing, steps = "fitting with runs left out", len(models) + 2
    advance(doing, 0, steps)
    everything = fit_runs(data.gpu, [each.run for each in runs], base)
    fits = [Fit(name="all runs", runs=len(runs), coefficients=everything)]
    lines = [_line("fitted here on all (in-sample)", _by(data, runs, everything), goals=(0.022, 0.024))]
    left_out: list[tuple[str, Errors]] = []
    for number, model in enumerate(models, start=1):
        advance(doing, number, steps)
        others = [each.run for each in runs if each.model != model]
        if not others:
            continue
        fitted = fit_runs(data.gpu, others, base)
        fits.append(Fit(name=f"without {model}", runs=len(others), coefficients=fitted))
        errors = _by(data, (each for each in runs if each.model == model), fitted)
        lines.append(_line(f"{model}, fitted on the other models", errors))
        left_out += errors
    if left_out:
        lines.append(_line("leave one model out", left_out, goals=(0.028, 0.030), goal_worst=0.12))
    nine = [each for each in runs if _is_of_nine(each)]
    if nine:
        advance(doing, steps - 1, steps)
        fitted = fit_runs(data.gpu, [each.run for each in nine], base)
        fits.append(Fit(name=f"{len(nine)} runs", runs=len(nine), coefficients=fitted))
        rest = [each for each in runs if not _is_of_nine(each)]
        lines.append(_line(f"fitted on {len(nine)} runs, the others", _by(data, rest, fitted)))
    return lines, fits


def _is_of_nine(measured: Measured) -> bool:
    parts = measured.path.split("/")
    limit = measured.run.group.shape.max_num_seqs
    return measured.provenance == GRID and _NINE_OUT in parts and limit in _NINE_BATCHES


def _v1_engine(
    data: Data, runs: Sequence[Measured], older: Sequence[Measured], advance: Advance
) -> tuple[list[Line], list[Fit]]:
    """V1 fitted on one of its models and tested on the other, and without any run of V1."""
    base = runs[0].run.group.coefficients
    models = sorted({each.model for each in runs})
    doing = "fitting V1 on one model, testing on the other"
    fits, lines, left_out = [], [], []
    for number, model in enumerate(models):
        advance(doing, number, len(models))
        others = [each.run for each in runs if each.model != model]
        if not others:
            continue
        fitted = fit_runs(data.gpu, others, base, DECODE_RUNS)
        fits.append(Fit(name=f"V1 without {model}", runs=len(others), coefficients=fitted))
        errors = _by(data, (each for each in runs if each.model == model), fitted)
        lines.append(_line(f"V1, {model}, fitted on the other model", errors))
        left_out += errors
    if left_out:
        lines.append(_line("V1, leave one model out", left_out, goals=(0.04, 0.04)))
    if older:
        fitted = fit_runs(data.gpu, [each.run for each in older], older[0].run.group.coefficients, ONLINE_RUNS)
        carried = calibration.carried_over(fitted)
        fits.append(Fit(name="V1 without any run of V1", runs=len(older), coefficients=carried))
        lines.append(_line("V1 without coefficients of its own", _by(data, runs, carried), goals=(0.08, 0.08)))
    return lines, fits


def _gains(data: Data, judged: Sequence[Judged]) -> Iterable[Gain]:
    """Replicas over the one engine of the same model and batch limit, measured in the same campaign."""
    alone = {
        (each.measured.model, each.measured.run.group.shape.max_num_seqs): each
        for each in judged
        if each.measured.provenance == REPLICATION
        and each.measured.alone
        and not each.measured.run.group.shape.chunked_prefill
    }
    for each in judged:
        measured = each.measured
        one = alone.get((measured.model, measured.run.group.shape.max_num_seqs))
        if measured.alone or one is None:
            continue
        steady = _steady_gain(data, measured, one.measured)
        yield Gain(
            run=f"{measured.model} {measured.run.group.shape.max_num_seqs} x {measured.run.group.replicas}",
            sharing=measured.run.sharing,
            measured=measured.run.total_tokens_per_second / one.measured.run.total_tokens_per_second,
            predicted=each.predicted_tokens_per_second / one.predicted_tokens_per_second,
            simulated=None
            if each.simulated_tokens_per_second is None or one.simulated_tokens_per_second is None
            else each.simulated_tokens_per_second / one.simulated_tokens_per_second,
            steady_measured=steady[0],
            steady_predicted=steady[1],
            why_not=steady[2],
        )


def _steady_gain(data: Data, several: Measured, one: Measured) -> tuple[float | None, float | None, str]:
    if several.steady is None or one.steady is None:
        return None, None, "no counters"
    said = [predict(data.gpu, (each.run.group,), each.run.sharing) for each in (several, one)]
    lives = _lives(several)
    why_not = "" if lives >= _STEADY_LIVES else f"requests waited for {lives:.1f} answers: not steady"
    return (
        several.steady.output_tokens_per_second / one.steady.output_tokens_per_second,
        said[0].output_tokens_per_second / said[1].output_tokens_per_second,
        why_not,
    )


def _lives(measured: Measured) -> float:
    """How many mean answers long requests waited."""
    assert measured.steady is not None
    assert measured.run.itl_mean is not None
    return measured.steady.seconds / (measured.run.itl_mean * measured.run.group.lengths.output_mean)


def _steady(data: Data) -> Iterable[tuple[Measured, float]]:
    """Runs with steady counters of at least two answers, and the error of the predicted steady rate."""
    for measured in data.runs:
        if measured.steady is None or _lives(measured) < _STEADY_LIVES:
            continue
        said = predict(data.gpu, (measured.run.group,), measured.run.sharing)
        yield measured, said.output_tokens_per_second / measured.steady.output_tokens_per_second - 1
