"""The record of a measurement on a GPU: what is written by `measure.py` and read by `judge.py`.

Seconds, bytes, watts, ratios 0 to 1. A point that failed says why and has no numbers; what NVML did not tell is None.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import cattrs

FOLDER = Path(__file__).parents[1] / "results"
FORMAT = "gpupack-gpu-measurement-1"


class Shared(StrEnum):
    """How the engines of a point had the GPU."""

    MPS = "mps"
    TIME_SLICING = "time_slicing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where it was measured. `gpm`: NVML told activity."""

    gpu: str
    uuid: str
    memory_bytes: int
    driver: str
    nvml: str
    gpm: bool
    compute_mode: str | None
    torch: str
    cuda: str
    python: str
    gpupack: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """The transformer whose decode loop was run: grouped-query attention, gated MLP, 16-bit weights."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    context_tokens: int
    """The KV cache that every step reads, of every sequence."""
    bookkeeping: int
    """Rounds of the host's work on each sequence between two steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRun:
    """One process's loop. `gpu_seconds_mean`: from the launch of a step's graph to its end on the GPU, by CUDA events;
    beside siblings it holds their share too."""

    pid: int
    steps: int
    seconds: float
    step_seconds_mean: float
    step_seconds_p95: float
    gpu_seconds_mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """R alike engines of one batch. Means over the run, by the package's own NVML reader."""

    shared: Shared
    replicas: int
    batch: int
    engines: tuple[EngineRun, ...]
    dram_bandwidth: float | None
    sm_active: float | None
    power_watts: float | None
    mps_clients: int | None
    """Of the engines' processes, those that the driver listed as clients of MPS."""
    failed: str | None = None

    @property
    def tokens_per_second(self) -> float:
        return sum(each.steps * self.batch / each.seconds for each in self.engines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """`taken` as YYYY-MM-DD. `mps_problem`: why nothing was measured under MPS, None where it was."""

    format: str
    taken: str
    setting: Setting
    decoder: Decoder
    mps_problem: str | None
    points: tuple[Point, ...]


def write(measurement: Measurement, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(measurement), indent=1) + "\n")


def read(path: Path) -> Measurement:
    """Raises ValueError for a file that is no such record."""
    try:
        measurement = cattrs.Converter(forbid_extra_keys=True).structure(json.loads(path.read_text()), Measurement)
    except (cattrs.BaseValidationError, json.JSONDecodeError, TypeError, KeyError) as problem:
        raise ValueError(f"{path} is no measurement of this version: {problem}") from problem
    if measurement.format != FORMAT:
        raise ValueError(f"{path} is of the format {measurement.format!r}, not {FORMAT!r}")
    return measurement


def found(folder: Path) -> Iterator[tuple[Path, Measurement]]:
    """The measurements in a folder by name. Raises ValueError."""
    for path in sorted(folder.glob("gpu-*.json")):
        yield path, read(path)
