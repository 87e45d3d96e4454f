"""The files that a user may give: request lengths, and measured runs of an engine. Each is parsed at once into nouns.

Errors name the option, the line and what is accepted.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gpupack.errors import Invalid
from gpupack.facts.serving import Lengths, Profile, ProfilePoint
from gpupack.units import Bytes, Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRequest:
    """One line of a lengths file. `arrival_time` is in seconds from any origin; None if the file has no such column."""

    input_tokens: int
    output_tokens: int
    arrival_time: Seconds | None


def _read(option: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as wrong:
        raise Invalid(option, f"{path} cannot be read ({wrong})", "give a readable text file") from wrong


def read_requests(path: Path, option: str = "--lengths") -> tuple[RecordedRequest, ...]:
    """The requests of a CSV with the columns input_tokens, output_tokens and, if it has it, arrival_time; by time."""
    rows = csv.DictReader(io.StringIO(_read(option, path)))
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


def read_profile(
    path: Path, gpu_kind: str, engine_version: str, lengths: Lengths, option: str = "--profile"
) -> Profile:
    """Measured runs of one engine, one row a batch limit, taken at `lengths`.

    CSV, or JSON as a list of objects (or an object with that list under `points`). Names: max_num_seqs,
    total_tokens_per_second, itl_mean_seconds and, optional, kv_peak_bytes.
    """
    text = _read(option, path)
    accepted = "each row gives max_num_seqs, total_tokens_per_second, itl_mean_seconds and, optional, kv_peak_bytes"
    rows: Iterable[object]
    if path.suffix.lower() == ".json":
        try:
            document = json.loads(text)
        except json.JSONDecodeError as wrong:
            raise Invalid(option, f"{path} is not JSON ({wrong})", accepted) from wrong
        listed = document.get("points") if isinstance(document, dict) else document
        if not isinstance(listed, list):
            raise Invalid(option, f"{path} holds no list of rows", accepted)
        rows = listed
    else:
        rows = list(csv.DictReader(io.StringIO(text)))
    points = []
    for number, row in enumerate(rows, start=1):
        point = _point(row)
        if point is None:
            raise Invalid(option, f"row {number} of {path} is not a measured run", accepted)
        points.append(point)
    if not points:
        raise Invalid(option, f"{path} holds no measured run", accepted)
    return Profile(
        name=path.stem, gpu_kind=gpu_kind, engine_version=engine_version, lengths=lengths, points=tuple(points)
    )


def _point(row: object) -> ProfilePoint | None:
    if not isinstance(row, Mapping):
        return None
    peak = row.get("kv_peak_bytes")
    try:
        point = ProfilePoint(
            max_num_seqs=int(row["max_num_seqs"]),
            total_tokens_per_second=float(row["total_tokens_per_second"]),
            itl_mean=Seconds(float(row["itl_mean_seconds"])),
            kv_peak_bytes=None if peak in (None, "") else Bytes(int(peak)),
        )
    except (KeyError, TypeError, ValueError):
        return None
    numbers = (point.total_tokens_per_second, point.itl_mean)
    right = point.max_num_seqs >= 1 and all(math.isfinite(number) and number > 0.0 for number in numbers)
    return point if right else None
