"""Measured runs of one engine, as a user has them: a table of our own, or what vLLM's benchmarks write.

Reads CSV and JSON with our names or vLLM's, the JSON of `vllm bench serve` (one object a file, or several one after the
other by `--append-result`), and the output folder of `vllm bench sweep serve` (a folder a combination of parameters,
holding `run=N.json` and `summary.json`; beside them `summary.csv`). vLLM's results carry the swept parameters and what
`--metadata name=value` added; memory is in neither, so it comes as metadata or not at all.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from gpupack.cli.files import read_text
from gpupack.errors import Invalid
from gpupack.facts.serving import Lengths, Profile, ProfilePoint
from gpupack.profiling.points import point_of
from gpupack.units import Seconds

_ACCEPTED = (
    "each run gives max_num_seqs, total_tokens_per_second and itl_mean_seconds (or vLLM's max_concurrency, "
    "total_token_throughput, mean_itl_ms); tpot_mean_seconds, kv_peak_bytes, kv_space_bytes, gpu_memory_bytes and "
    "preemptions may follow"
)


def read_profile(
    path: Path, gpu_kind: str, engine_version: str, lengths: Lengths, option: str = "--profile"
) -> Profile:
    """The measured runs as a profile, taken at `lengths`."""
    return Profile(
        name=path.stem,
        gpu_kind=gpu_kind,
        engine_version=engine_version,
        lengths=lengths,
        points=read_points(path, option),
    )


def read_points(path: Path, option: str = "--profile") -> tuple[ProfilePoint, ...]:
    """One point a batch limit, by rising limit; repeated runs of one limit count with their mean, peaks with the most.

    Raises Invalid naming the file and the row.
    """
    points: dict[int, list[ProfilePoint]] = {}
    for origin, row in _rows(path, option):
        try:
            point = point_of(row)
        except ValueError as wrong:
            raise Invalid(option, f"{origin} is not a measured run ({wrong})", _ACCEPTED) from None
        points.setdefault(point.max_num_seqs, []).append(point)
    if not points:
        raise Invalid(option, f"{path} holds no measured run", _ACCEPTED)
    return tuple(_merged(points[limit]) for limit in sorted(points))


def _rows(path: Path, option: str) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Every run as named values, with where it stands."""
    if path.is_dir():
        files = sorted(path.rglob("run=*.json")) or sorted(path.rglob("summary.json"))
        if not files and (path / "summary.csv").is_file():
            files = [path / "summary.csv"]
        if not files:
            raise Invalid(
                option,
                f"{path} holds neither run=N.json nor summary.json nor summary.csv",
                "give the output folder of `vllm bench sweep serve`, or a CSV or JSON file",
            )
    else:
        files = [path]
    for file in files:
        text = read_text(option, file)
        if text.lstrip()[:1] in ("{", "["):
            rows: Iterable[object] = _json_rows(text, file, option)
        elif file.suffix.lower() == ".json":
            raise Invalid(option, f"{file} is not JSON", _ACCEPTED)
        else:
            rows = csv.DictReader(line for line in io.StringIO(text) if not line.startswith("#"))
        for number, row in enumerate(rows, start=1):
            origin = f"row {number} of {file}"
            if not isinstance(row, Mapping):
                raise Invalid(option, f"{origin} is not a measured run", _ACCEPTED)
            yield origin, row


def _json_rows(text: str, file: Path, option: str) -> list[object]:
    """The runs of a JSON text: objects or lists of them, one after the other, or an object with them as `points`."""
    decoder = json.JSONDecoder()
    place = 0
    rows: list[object] = []
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        try:
            document, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError as wrong:
            raise Invalid(option, f"{file} is not JSON ({wrong})", _ACCEPTED) from wrong
        if isinstance(document, dict) and "points" in document:
            document = document["points"]
        rows += document if isinstance(document, list) else [document]
    return rows


def _merged(runs: Sequence[ProfilePoint]) -> ProfilePoint:
    if len(runs) == 1:
        return runs[0]
    tpots = [run.tpot_mean for run in runs if run.tpot_mean is not None]
    return ProfilePoint(
        max_num_seqs=runs[0].max_num_seqs,
        total_tokens_per_second=statistics.fmean(run.total_tokens_per_second for run in runs),
        itl_mean=Seconds(statistics.fmean(run.itl_mean for run in runs)),
        tpot_mean=Seconds(statistics.fmean(tpots)) if tpots else None,
        kv_peak_bytes=max((run.kv_peak_bytes for run in runs if run.kv_peak_bytes is not None), default=None),
        kv_space_bytes=min((run.kv_space_bytes for run in runs if run.kv_space_bytes is not None), default=None),
        gpu_memory_bytes=runs[0].gpu_memory_bytes,
        preemptions=max((run.preemptions for run in runs if run.preemptions is not None), default=None),
    )
