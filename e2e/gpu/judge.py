"""How far the closed form is from a GPU: Z and D from one engine alone, then two and four engines predicted.

    .venv/bin/python e2e/gpu/judge.py            # every e2e/results/gpu-*.json

Z (host gap) and D (GPU held) of a step are straight lines in the batch, fitted to the runs of one engine and to nothing
else; R engines are then the closed queueing network of `gpupack.perf.queueing`, with the interference that the package
took from published runs. What is printed as an error is that of a prediction, never of a fit.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from results import FOLDER, Measurement, Point, Shared, found

from gpupack.perf.calibration import coefficients
from gpupack.perf.queueing import Customer, stretches
from gpupack.units import milliseconds, percent

NO_RESULTS = "There are no results: nothing was measured on a GPU yet. e2e/gpu/README.md says how to."
_INTERFERENCE = {
    Shared.MPS: float(coefficients().mps_interference),
    Shared.TIME_SLICING: float(coefficients().time_slicing_interference),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Seconds of a step: `fixed` and `each` sequence of the batch. `error` is the mean relative misfit."""

    fixed: float
    each: float
    error: float

    def at(self, batch: int) -> float:
        return self.fixed + self.each * batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """One engine: `host` is Z, `gpu` is D."""

    host: Line
    gpu: Line


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Tokens a second of all engines of a point, and of one engine alone at the same batch (None: not measured)."""

    point: Point
    predicted: float
    measured: float
    alone: float | None

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def fit(points: Sequence[Point]) -> Alone | None:
    """From runs of one engine; None where fewer than two batches were measured."""
    alone = [each for each in points if each.replicas == 1 and each.failed is None]
    if len({each.batch for each in alone}) < 2:
        return None
    return Alone(
        host=_line(alone, lambda run: run.engines[0].step_seconds_mean - run.engines[0].gpu_seconds_mean),
        gpu=_line(alone, lambda run: run.engines[0].gpu_seconds_mean),
    )


def predict(alone: Alone, shared: Shared, replicas: int, batch: int) -> float:
    """Tokens a second of `replicas` engines."""
    others = (replicas - 1) / replicas
    think, service = alone.host.at(batch), alone.gpu.at(batch) * (1 + _INTERFERENCE[shared] * others)
    (stretch,) = stretches((Customer(think, service, replicas),))
    return replicas * batch / (think + stretch * service)


def judge(measurement: Measurement, shared: Shared) -> tuple[Alone, list[Answer]] | None:
    """None without runs of one engine."""
    points = [each for each in measurement.points if each.shared is shared]
    alone = fit(points)
    if alone is None:
        return None
    single = {each.batch: each.tokens_per_second for each in points if each.replicas == 1 and each.failed is None}
    answers = [
        Answer(
            point=each,
            predicted=predict(alone, shared, each.replicas, each.batch),
            measured=each.tokens_per_second,
            alone=single.get(each.batch),
        )
        for each in sorted(points, key=lambda point: (point.replicas, point.batch))
        if each.replicas > 1 and each.failed is None
    ]
    return alone, answers


def report(path: Path, measurement: Measurement) -> str:
    setting, decoder = measurement.setting, measurement.decoder
    lines = [
        f"{path.name}: {setting.gpu}, driver {setting.driver}, torch {setting.torch}, {measurement.taken}",
        f"  {decoder.layers} layers of {decoder.hidden}, {decoder.context_tokens} tokens of context a sequence",
    ]
    if measurement.mps_problem is not None:
        lines.append(f"  nothing under MPS: {measurement.mps_problem}")
    if not setting.gpm:
        lines.append("  no DRAM bandwidth: this GPU or driver has no GPM")
    for shared in Shared:
        lines += _section(measurement, shared)
    failed = [each for each in measurement.points if each.failed is not None]
    lines += [f"  failed: {each.shared}, {each.replicas} x {each.batch}: {each.failed}" for each in failed]
    return "\n".join(lines)


def _section(measurement: Measurement, shared: Shared) -> list[str]:
    judged = judge(measurement, shared)
    if judged is None:
        return [f"  {shared}: no runs of one engine at two batches, so nothing is fitted"]
    alone, answers = judged
    lines = [
        f"  {shared}, fitted to one engine alone: Z = {_formula(alone.host)}, D = {_formula(alone.gpu)}",
        "    engines  batch  predicted tok/s  measured tok/s   error  gain predicted  measured"
        "   DRAM    SM  power  clients",
    ]
    for each in answers:
        gains = ("-", "-")
        if each.alone is not None:
            gains = (f"{each.predicted / each.alone:.2f}", f"{each.measured / each.alone:.2f}")
        point = each.point
        lines.append(
            f"    {point.replicas:7}  {point.batch:5}  {each.predicted:15,.0f}  {each.measured:14,.0f}"
            f"  {percent(each.error):+5.1f}%  {gains[0]:>14}  {gains[1]:>8}"
            f"  {_ratio(point.dram_bandwidth):>5} {_ratio(point.sm_active):>5}"
            f"  {'-' if point.power_watts is None else f'{point.power_watts:.0f} W':>5}"
            f"  {'-' if point.mps_clients is None else point.mps_clients!s:>7}"
        )
    if answers:
        errors = [abs(each.error) for each in answers]
        lines.append(f"    mean error {percent(statistics.mean(errors)):.1f} %, worst {percent(max(errors)):.1f} %")
    else:
        lines.append("    several engines at once were not measured")
    return lines


def _line(points: Sequence[Point], seconds: Callable[[Point], float]) -> Line:
    """Least squares of the relative misfit, so that small batches count as much as large ones."""
    rows = [(1 / seconds(each), each.batch / seconds(each)) for each in points]
    ones = sum(a * a for a, _ in rows)
    cross = sum(a * b for a, b in rows)
    squares = sum(b * b for _, b in rows)
    right = (sum(a for a, _ in rows), sum(b for _, b in rows))
    determinant = ones * squares - cross * cross
    fixed = (right[0] * squares - right[1] * cross) / determinant
    each = (right[1] * ones - right[0] * cross) / determinant
    error = statistics.mean(abs(fixed * a + each * b - 1) for a, b in rows)
    return Line(fixed=fixed, each=each, error=error)


def _formula(line: Line) -> str:
    each = milliseconds(line.each) * 1000
    return f"{milliseconds(line.fixed):.3f} ms + {each:.2f} us a sequence (fit {percent(line.error):.1f} %)"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{percent(value):.0f} %"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="default: e2e/results")
    args = parser.parse_args()
    reports = [report(path, measurement) for path, measurement in found(args.folder)]
    print("\n\n".join(reports) or NO_RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
