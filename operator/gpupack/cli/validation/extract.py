"""The published measurements in a directory, as questions to the model with their measured answers.

Two extracts of public repositories, each in a folder of the repository's name (e2e/bench/VALIDATION.md says how they
are made): vLLMBatchingMemoryGap (arXiv 2503.08311: whole runs of one engine and of replicas, and the engines' own
counters once a second) and GPULLMAdapterOptimization (arXiv 2508.08343: calibration runs of vLLM V1).
"""

from __future__ import annotations

import csv
import gzip
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gpupack import catalog
from gpupack.errors import Invalid
from gpupack.facts.gpu import GpuKind
from gpupack.facts.llm import Dtype, Llm
from gpupack.facts.serving import BLOCK_TOKENS, Lengths, Shape, Sharing
from gpupack.perf import calibration
from gpupack.perf.fit import ObservedRun
from gpupack.perf.prediction import Coefficients, EngineGroup
from gpupack.units import Bytes, seconds_from_milliseconds

GAP, ADAPTERS = "vLLMBatchingMemoryGap", "GPULLMAdapterOptimization"
SUMMARY, COUNTERS = f"{GAP}/online_summary.csv", f"{GAP}/engine_timeseries.csv.gz"
TIME_SHARED = f"{GAP}/replication_mps_vs_timesharing.csv"
CALIBRATION = f"{ADAPTERS}/estimator_calibration_runs.csv"

SWEEP, GRID, REPLICATION, V1 = "ShareGPT sweep", "constant lengths", "replication", "V1 calibration"
OLD_ENGINE, V1_ENGINE = "0.5.2", "0.8.5"

_GPU = "H100-64GB"
_MODELS = {"llama-3.1-8b-instruct": "llama-3.1-8b", "qwen-2.5-7b-instruct": "qwen2.5-7b"}
# Coefficients of variation of ShareGPT's output lengths, inferred from how KV cache use grew; nobody published them.
_OUTPUT_CV = {"opt-1.3b": 0.93, "opt-2.7b": 0.93, "llama-2-7b": 0.75}
_INPUT_CV = 0.9
# Token budgets: the advisor's grid ran with chunks of 512, everything else with vLLM's 2048.
_GRID_BUDGET, _BUDGET = 512, 2048
_PUBLISHED_LENGTH, _V1_LENGTH = 2048, 8192
# Share of a full window that is left out at its beginning: prompts are still taken in.
_RAMP = 0.1
_LEAST_SAMPLES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """While requests waited on every engine: output tokens a second of all together, mean sequences running of each.

    `seconds` is how long that was; a batch that is watched for less than an answer or two is not steady yet.
    """

    output_tokens_per_second: float
    running_mean: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One measured run: where it stands in the data, what was asked, what came out.

    `itl_mean` of `run` is None where the repository has none.
    """

    path: str
    model: str
    provenance: str
    run: ObservedRun
    preemptions: int
    kv_peak: float | None
    steady: Steady | None

    @property
    def alone(self) -> bool:
        return self.run.group.replicas == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """All runs; `absent` names the files that were not there."""

    gpu: GpuKind
    runs: tuple[Measured, ...]
    absent: tuple[str, ...]


def read(directory: Path, option: str = "--data") -> Data:
    """Every run in the directory. Raises Invalid where neither extract is there."""
    absent = tuple(name for name in (SUMMARY, COUNTERS, TIME_SHARED, CALIBRATION) if not (directory / name).is_file())
    if SUMMARY in absent and CALIBRATION in absent:
        raise Invalid(
            option,
            f"{directory} holds neither {SUMMARY} nor {CALIBRATION}",
            "e2e/bench/VALIDATION.md says how to make it from the authors' public repositories",
        )
    runs: list[Measured] = []
    try:
        if SUMMARY not in absent:
            counters = {} if COUNTERS in absent else _steady(directory / COUNTERS)
            runs += _whole_runs(directory / SUMMARY, counters)
            if TIME_SHARED not in absent:
                runs += _time_shared(directory / TIME_SHARED, runs)
        if CALIBRATION not in absent:
            runs += _calibration(directory / CALIBRATION)
    except (OSError, KeyError, ValueError) as wrong:
        raise Invalid(
            option, f"{directory} does not hold the extract ({type(wrong).__name__}: {wrong})", "make it anew"
        ) from wrong
    return Data(gpu=catalog.gpu(_GPU), runs=tuple(runs), absent=absent)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        yield from csv.DictReader(lines)


def _whole_runs(path: Path, counters: Mapping[str, Steady]) -> Iterator[Measured]:
    """Runs under a profiler (gpu_metrics, time_wise) are no measurements of speed and are left out."""
    coefficients = calibration.coefficients(OLD_ENGINE)
    for row in _rows(path):
        parts = row["path"].split("/")
        match parts:
            case ["background", model, _]:
                provenance, replicas, chunked, budget = SWEEP, 1, False, _BUDGET
            case ["advisor", "output_length", _, model, _]:
                provenance, replicas, chunked, budget = GRID, 1, True, _GRID_BUDGET
            case ["replication", "overall_metrics", folder, name]:
                model, chunked = folder.removesuffix("_chunked"), folder.endswith("_chunked")
                provenance, replicas, budget = REPLICATION, int(name.strip("_").split("__")[1]), _BUDGET
            case _:
                continue
        llm, requests = catalog.llm(model), int(row["num_prompts"])
        alike = provenance == GRID
        yield Measured(
            path=row["path"],
            model=model,
            provenance=provenance,
            run=ObservedRun(
                group=_group(
                    llm,
                    Dtype.FLOAT16,
                    coefficients,
                    max_num_seqs=int(float(row["max_num_seqs"])),
                    blocks=int(float(row["gpu_blocks"])),
                    budget=budget,
                    max_model_len=_PUBLISHED_LENGTH,
                    chunked=chunked,
                    replicas=replicas,
                    lengths=Lengths(
                        input_mean=int(row["total_input_tokens"]) / requests,
                        output_mean=int(row["total_output_tokens"]) / requests,
                        input_cv=0.0 if alike else _INPUT_CV,
                        output_cv=0.0 if alike else _OUTPUT_CV[model],
                    ),
                ),
                sharing=Sharing.among(replicas),
                requests=requests,
                total_tokens_per_second=float(row["total_token_throughput"]),
                itl_mean=seconds_from_milliseconds(float(row["mean_itl_ms"])),
            ),
            preemptions=round(float(row["preemptions"] or 0)),
            kv_peak=float(row["kv_cache_max_pct"]) / 100 if row["kv_cache_max_pct"] else None,
            steady=counters.get(row["path"]),
        )


def _time_shared(path: Path, runs: list[Measured]) -> list[Measured]:
    """Replicas without MPS, of an older commit: the same engines as with it, so lengths and blocks are theirs."""
    found = []
    for row in _rows(path):
        if row["mps"] != "no":
            continue
        like = next(
            each
            for each in runs
            if each.provenance == REPLICATION
            and each.model == row["model"]
            and each.run.group.shape.max_num_seqs == int(row["max_num_seqs"])
            and each.run.group.replicas == int(row["replicas"])
        )
        found.append(
            Measured(
                path=f"replication without MPS/{row['model']}/_{row['max_num_seqs']}__{row['replicas']}",
                model=like.model,
                provenance=REPLICATION,
                run=ObservedRun(
                    group=like.run.group,
                    sharing=Sharing.TIME_SLICING,
                    requests=like.run.requests,
                    total_tokens_per_second=float(row["total_token_throughput"]),
                    itl_mean=seconds_from_milliseconds(float(row["mean_itl_ms"])),
                ),
                preemptions=0,
                kv_peak=None,
                steady=None,
            )
        )
    return found


def _calibration(path: Path) -> Iterator[Measured]:
    """Runs without adapters whose outputs are longer than a token; a missing KV size is that of the smallest limit."""
    coefficients = calibration.coefficients(V1_ENGINE)
    rows = [
        row
        for row in _rows(path)
        if row["estimator"] == "predictor_default_latency" and row["path"].split("/")[1] == "output"
    ]
    kv_most: dict[str, int] = defaultdict(int)
    for row in rows:
        if row["kv_tokens"]:
            kv_most[row["path"].split("/")[0]] = max(kv_most[row["path"].split("/")[0]], int(float(row["kv_tokens"])))
    for row in rows:
        model = row["path"].split("/")[0]
        requests, tokens = int(float(row["num_prompts"])), int(float(row["kv_tokens"] or kv_most[model]))
        asked, answered = int(row["total_input_tokens"]), int(row["total_output_tokens"])
        yield Measured(
            path=row["path"],
            model=_MODELS[model],
            provenance=V1,
            run=ObservedRun(
                group=_group(
                    catalog.llm(_MODELS[model]),
                    Dtype.BFLOAT16,
                    coefficients,
                    max_num_seqs=int(row["max-num-seqs"]),
                    blocks=tokens // BLOCK_TOKENS,
                    budget=_BUDGET,
                    max_model_len=_V1_LENGTH,
                    chunked=True,
                    replicas=1,
                    lengths=Lengths(
                        input_mean=asked / requests, output_mean=answered / requests, input_cv=0.0, output_cv=0.0
                    ),
                ),
                sharing=Sharing.EXCLUSIVE,
                requests=requests,
                total_tokens_per_second=(asked + answered) / float(row["duration"]),
                itl_mean=seconds_from_milliseconds(float(row["mean_itl_ms"])),
            ),
            preemptions=0,
            kv_peak=None,
            steady=None,
        )


def _group(
    llm: Llm,
    dtype: Dtype,
    coefficients: Coefficients,
    *,
    max_num_seqs: int,
    blocks: int,
    budget: int,
    max_model_len: int,
    chunked: bool,
    replicas: int,
    lengths: Lengths,
) -> EngineGroup:
    return EngineGroup(
        llm=llm,
        dtype=dtype,
        shape=Shape(
            max_num_seqs=max_num_seqs,
            kv_cache_memory_bytes=Bytes(blocks * BLOCK_TOKENS * llm.kv_bytes_per_token(dtype)),
            max_num_batched_tokens=max(budget, max_num_seqs),
            max_model_len=max_model_len,
            chunked_prefill=chunked,
        ),
        lengths=lengths,
        replicas=replicas,
        request_rate=None,
        coefficients=coefficients,
    )


def _steady(path: Path) -> dict[str, Steady]:
    """Rates while requests wait on every engine of a run, without the first tenth of that time."""
    samples: dict[str, dict[str, list[tuple[float, float, float, float]]]] = defaultdict(lambda: defaultdict(list))
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for row in csv.DictReader(io.StringIO(lines.read())):
            samples[row["path"]][row["server"]].append(
                (float(row["time_s"]), float(row["running"]), float(row["waiting"]), float(row["generation_tokens"]))
            )
    found = {}
    for name, servers in samples.items():
        windows = [[each for each in server if each[2] > 0] for server in servers.values()]
        if not all(windows):
            continue
        begin, end = max(each[0][0] for each in windows), min(each[-1][0] for each in windows)
        begin += _RAMP * (end - begin)
        inside = [[each for each in window if begin <= each[0] <= end] for window in windows]
        if min(len(each) for each in inside) < _LEAST_SAMPLES:
            continue
        found[name] = Steady(
            output_tokens_per_second=sum((each[-1][3] - each[0][3]) / (each[-1][0] - each[0][0]) for each in inside),
            running_mean=sum(sum(sample[1] for sample in each) / len(each) for each in inside) / len(inside),
            seconds=end - begin,
        )
    return found
