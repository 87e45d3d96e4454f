"""The file of request lengths that a user may give, parsed at once into nouns. Measured runs are `measured`'s.

Errors name the option, the line and what is accepted.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from gpupack.errors import Invalid
from gpupack.facts.serving import Lengths
from gpupack.units import Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRequest:
    """One line of a lengths file. `arrival_time` is in seconds from any origin; None if the file has no such column."""

    input_tokens: int
    output_tokens: int
    arrival_time: Seconds | None


def read_text(option: str, path: Path) -> str:
    """The text of a file that `option` names."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as wrong:
        raise Invalid(option, f"{path} cannot be read ({wrong})", "give a readable text file") from wrong


def read_requests(path: Path, option: str = "--lengths") -> tuple[RecordedRequest, ...]:
    """The requests of a CSV with the columns input_tokens, output_tokens and, if it has it, arrival_time; by time."""
    rows = csv.DictReader(io.StringIO(read_text(option, path)))
    names = set(rows.fieldnames or ())
    if not {"input_tokens", "output_tokens"} <= names:
        raise Invalid(
            option,
            f"{path} has the columns {', '.join(sorted(names)) or 'none'}",
            "its first line must name input_tokens and output_tokens (arrival_time and adapter may follow)",
        )
    timed = "arrival_time" in names
    requests = []
    for line, row in enumerate(rows, start=2):
        try:
            request = RecordedRequest(
                input_tokens=int(row["input_tokens"]),
                output_tokens=int(row["output_tokens"]),
                arrival_time=Seconds(float(row["arrival_time"])) if timed else None,
            )
        except (TypeError, ValueError):
            request = None
        if request is None or request.input_tokens < 1 or request.output_tokens < 1 or not _finite(request):
            raise Invalid(
                option,
                f"line {line} of {path} is not a request",
                "tokens are whole numbers of at least 1, times seconds",
            )
        requests.append(request)
    if not requests:
        raise Invalid(option, f"{path} holds no request", "give at least one line below the header")
    return tuple(sorted(requests, key=lambda request: request.arrival_time or 0.0))


def _finite(request: RecordedRequest) -> bool:
    return request.arrival_time is None or math.isfinite(request.arrival_time)


def lengths_of(requests: tuple[RecordedRequest, ...]) -> Lengths:
    """Means, coefficients of variation and covariance of recorded requests."""
    inputs = [float(request.input_tokens) for request in requests]
    outputs = [float(request.output_tokens) for request in requests]
    input_mean, output_mean = statistics.fmean(inputs), statistics.fmean(outputs)
    return Lengths(
        input_mean=input_mean,
        output_mean=output_mean,
        input_cv=statistics.pstdev(inputs) / input_mean,
        output_cv=statistics.pstdev(outputs) / output_mean,
        covariance=statistics.fmean(
            (isl - input_mean) * (osl - output_mean) for isl, osl in zip(inputs, outputs, strict=True)
        ),
    )


def arrival_rate(requests: tuple[RecordedRequest, ...]) -> float | None:
    """Requests a second by the recorded arrival times; None without times or when all arrive at once."""
    times = [float(request.arrival_time) for request in requests if request.arrival_time is not None]
    if len(times) < 2 or max(times) <= min(times):
        return None
    return (len(times) - 1) / (max(times) - min(times))
