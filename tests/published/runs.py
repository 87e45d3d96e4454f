"""The published runs as questions to the model: one row of a CSV file is one run."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from gpupack import catalog
from gpupack.facts.llm import Dtype
from gpupack.facts.serving import Lengths, Sharing
from gpupack.perf import calibration
from gpupack.perf.memory import default_shape
from gpupack.perf.prediction import EngineGroup
from gpupack.units import Ratio

GPU = catalog.gpu("h100-64gb")
ENGINE_VERSION = "0.5.2"
REQUESTS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRun:
    """One measured run: what was asked, and what came out (tokens a second, seconds, share of KV cache)."""

    group: EngineGroup
    sharing: Sharing
    total_tokens_per_second: float
    itl_mean: float
    kv_peak: float | None
    preemptions: int

    @property
    def name(self) -> str:
        shape = self.group.shape
        chunked = " chunked" if shape.chunked_prefill else ""
        return (
            f"{self.group.llm.aliases[0]} {shape.max_num_seqs} x {self.group.replicas} {self.sharing.value}{chunked}"
            f" {self.group.lengths.output_mean:g} out"
        )


def _run(row: dict[str, str]) -> PublishedRun:
    llm = catalog.llm(row["model"])
    shape = default_shape(
        llm,
        Dtype.FLOAT16,
        GPU,
        utilization=Ratio(float(row["gpu_memory_utilization"])),
        max_num_seqs=int(row["max_num_seqs"]),
        max_num_batched_tokens=int(row["max_num_batched_tokens"]),
        max_model_len=2048,
        chunked_prefill=row["chunked_prefill"] == "on",
    )
    alike = row["output_cv"] == "0"
    lengths = Lengths(
        input_mean=float(row["input_tokens"]),
        output_mean=float(row["output_tokens"]),
        input_cv=0.0 if alike else 0.9,
        output_cv=float(row["output_cv"]),
    )
    return PublishedRun(
        group=EngineGroup(
            llm=llm,
            dtype=Dtype.FLOAT16,
            shape=shape,
            lengths=lengths,
            replicas=int(row["replicas"]),
            request_rate=None,
            coefficients=calibration.coefficients(ENGINE_VERSION),
        ),
        sharing=Sharing(row["sharing"]),
        total_tokens_per_second=float(row["total_tokens_per_second"]),
        itl_mean=float(row["itl_mean_ms"]) / 1000,
        kv_peak=float(row["kv_peak_percent"]) / 100 if row["kv_peak_percent"] else None,
        preemptions=int(row["preemptions"]),
    )


def read(file: str) -> list[PublishedRun]:
    """The runs of one file beside this one."""
    lines = Path(__file__).with_name(file).read_text(encoding="utf-8").splitlines()
    return [_run(row) for row in csv.DictReader(line for line in lines if not line.startswith("#"))]
