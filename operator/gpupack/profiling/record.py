"""A sweep as a file: written after every run, read to go on, and a profile that `gpupack advise --profile` takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpupack.errors import Invalid
from gpupack.facts.measured import Failure, Results
from gpupack.profiling.points import point_of, row_of
from gpupack.units import Ratio

OPTION = "--output"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What makes runs comparable. Lengths in tokens. `engine_version` is None for a server that does not tell it."""

    model: str
    engine_version: str | None
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a run tells beside its point: means over its requests, and how busy the clients were."""

    ttft_mean_seconds: float | None
    finished: int
    failed: int
    input_tokens: float | None
    output_tokens: float | None
    client_busy: Ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """`seen` by batch limit, for the points of `results` that this version measured itself."""

    inputs: Inputs
    results: Results
    seen: Mapping[int, Seen]


def to_json(record: Record) -> str:
    inputs = record.inputs
    document = {
        "model": inputs.model,
        "engine_version": inputs.engine_version,
        "input_tokens": inputs.input_tokens,
        "output_tokens": inputs.output_tokens,
        "points": [
            {**row_of(point), **_seen_row(record.seen.get(point.max_num_seqs))} for point in record.results.points
        ],
        "failures": [failure_row(each) for each in record.results.failures],
    }
    return json.dumps(document, indent=1) + "\n"


def failure_row(failure: Failure) -> dict[str, int | str]:
    return {"max_num_seqs": failure.max_num_seqs, "attempts": failure.attempts, "problem": failure.problem}


def from_json(text: str) -> Record:
    """Raises ValueError, KeyError or TypeError for any other document."""
    document = json.loads(text)
    inputs = Inputs(
        model=str(document["model"]),
        engine_version=document["engine_version"],
        input_tokens=int(document["input_tokens"]),
        output_tokens=int(document["output_tokens"]),
    )
    points = sorted((point_of(row) for row in document["points"]), key=lambda point: point.max_num_seqs)
    failures = tuple(
        Failure(
            max_num_seqs=int(each["max_num_seqs"]), attempts=int(each["attempts"]), problem=str(each["problem"])
        )
        for each in document["failures"]
    )  # fmt: skip
    seen = {int(row["max_num_seqs"]): _seen(row) for row in document["points"] if "client_busy" in row}
    return Record(inputs=inputs, results=Results(points=tuple(points), failures=failures), seen=seen)


def read(path: Path, inputs: Inputs) -> Record | None:
    """What was measured before; None if the file is not there. Raises Invalid if it is of something else."""
    try:
        found = from_json(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as wrong:
        raise Invalid(OPTION, f"{path} is no record of a sweep ({wrong})", "name another file") from wrong
    if found.inputs != inputs:
        raise Invalid(
            OPTION, f"{path} holds runs of {found.inputs}, not of {inputs}", "name another file, or remove this one"
        )
    return found


def write(path: Path, record: Record) -> None:
    """All or nothing. Raises Invalid if it cannot be written."""
    partial = path.with_name(f"{path.name}.part")
    try:
        partial.write_text(to_json(record))
        partial.replace(path)
    except OSError as wrong:
        raise Invalid(OPTION, f"{path} cannot be written ({wrong})", "name a file in a folder that is yours") from wrong


def _seen_row(seen: Seen | None) -> dict[str, Any]:
    if seen is None:
        return {}
    row = {
        "ttft_mean_seconds": seen.ttft_mean_seconds,
        "finished": seen.finished,
        "failed": seen.failed,
        "input_tokens": seen.input_tokens,
        "output_tokens": seen.output_tokens,
        "client_busy": seen.client_busy,
    }
    return {name: value for name, value in row.items() if value is not None}


def _seen(row: Mapping[str, Any]) -> Seen:
    return Seen(
        ttft_mean_seconds=row.get("ttft_mean_seconds"),
        finished=int(row["finished"]),
        failed=int(row["failed"]),
        input_tokens=row.get("input_tokens"),
        output_tokens=row.get("output_tokens"),
        client_busy=Ratio(float(row["client_busy"])),
    )
