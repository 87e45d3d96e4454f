"""Makes the extract that `gpupack validate --data DIR` reads, from a clone of the authors' public repository.

    git clone https://github.com/FerranAgulloLopez/vLLMBatchingMemoryGap
    .venv/bin/python e2e/bench/extract_runs.py vLLMBatchingMemoryGap DIR

Writes DIR/vLLMBatchingMemoryGap/online_summary.csv and engine_timeseries.csv.gz. A run is a folder below
benchmarks/definitive_results with the benchmark's `openai-*.json` (of several the newest counts), one
`metrics_engine*.csv` an engine (vLLM's own series, about once a second), and the engine's start, which names its KV
blocks in a log or in `cache_config_*.txt`. A run without any of these is named and left out.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

RESULTS = "benchmarks/definitive_results"
KINDS = ("background/*/_*_", "advisor/output_length/*/*/_*", "replication/overall_metrics/*/_*")
# The published comparison leaves the largest model out: it preempts from a batch limit of 80 on.
LEFT_OUT = "llama-2-13b"
BLOCKS = (re.compile(r"# GPU blocks: (\d+)"), re.compile(r'num_gpu_blocks="(\d+)"'))
SUMMARY = (
    "path", "num_prompts", "total_input_tokens", "total_output_tokens", "total_token_throughput", "mean_itl_ms",
    "kv_cache_max_pct", "preemptions", "gpu_blocks", "max_num_seqs",
)  # fmt: skip
COUNTERS = ("path", "server", "time_s", "gpu_cache_usage", "running", "waiting", "preemptions", "prompt_tokens",
            "generation_tokens")  # fmt: skip
SERIES = ("time [s]", "gpu_cache_usage_perc", "num_requests_running", "num_requests_waiting", "num_preemptions_total",
          "prompt_tokens_total", "generation_tokens_total")  # fmt: skip


def runs(clone: Path) -> Iterator[Path]:
    for kind in KINDS:
        for folder in sorted((clone / RESULTS).glob(kind)):
            if folder.is_dir() and LEFT_OUT not in folder.parts:
                yield folder


def blocks_of(folder: Path) -> int | None:
    """KV blocks of an engine: the first that any log or configuration of the run names."""
    for file in sorted((*folder.glob("server_*.log"), *folder.glob("cache_config_*.txt"), *folder.glob("log_*.out"))):
        text = file.read_text(encoding="utf-8", errors="replace")
        for pattern in BLOCKS:
            if found := pattern.search(text):
                return int(found[1])
    return None


def samples(folder: Path) -> list[list[dict[str, str]]]:
    """The counters of every engine, in the order of the engines."""
    engines = []
    for file in sorted(folder.glob("metrics_engine*.csv")):
        with file.open(encoding="utf-8") as lines:
            engines.append(list(csv.DictReader(lines)))
    return engines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path)
    parser.add_argument("directory", type=Path)
    given = parser.parse_args()
    out = given.directory / "vLLMBatchingMemoryGap"
    out.mkdir(parents=True, exist_ok=True)
    kept = 0
    with (
        (out / "online_summary.csv").open("w", encoding="utf-8", newline="") as summary_file,
        gzip.open(out / "engine_timeseries.csv.gz", "wt", encoding="utf-8", newline="") as counters_file,
    ):
        summary, counters = csv.writer(summary_file), csv.writer(counters_file)
        summary.writerow(SUMMARY)
        counters.writerow(COUNTERS)
        for folder in runs(given.clone):
            name = folder.relative_to(given.clone / RESULTS).as_posix()
            results, engines, blocks = sorted(folder.glob("openai-*.json")), samples(folder), blocks_of(folder)
            if not results or not engines or blocks is None:
                print(f"left out: {name}", file=sys.stderr)
                continue
            result = json.loads(results[-1].read_text(encoding="utf-8"))
            last = [max(float(row["num_preemptions_total"]) for row in engine) for engine in engines]
            peaks = [max(float(row["gpu_cache_usage_perc"]) for row in engine) for engine in engines]
            limit = int(folder.name.strip("_").split("_")[0])
            summary.writerow(
                (
                    name,
                    result["num_prompts"],
                    result["total_input_tokens"],
                    result["total_output_tokens"],
                    result["total_token_throughput"],
                    result["mean_itl_ms"],
                    100 * sum(peaks) / len(peaks),
                    sum(last),
                    blocks,
                    limit,
                )
            )
            for number, engine in enumerate(engines):
                counters.writerows((name, number, *(row[column] for column in SERIES)) for row in engine)
            kept += 1
    print(f"{kept} runs in {out}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
