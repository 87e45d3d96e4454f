"""Seconds from the start of `gpupack predict` until its answer is there: a process each time.

    python e2e/bench/predict_speed.py

Goal: 0.3 s.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

from watched import machine, quantile

QUESTION = (
    "predict", "--model", "llama-3.2-1b", "--gpu", "H100-80GB", "--input-tokens", "512", "--output-tokens", "256",
    "--max-num-seqs", "64", "--json",
)  # fmt: skip
QUESTIONS = {
    "steady state, one replica": QUESTION,
    "steady state, four replicas at 100 requests a second": (*QUESTION, "--replicas", "4", "--request-rate", "100"),
    "2,000 requests, two replicas": (*QUESTION, "--replicas", "2", "--requests", "2000"),
}


def answered(question: tuple[str, ...]) -> tuple[float, float]:
    """Wall and processor seconds of one process."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    answer = subprocess.run([sys.executable, "-m", "gpupack", *question], check=True, capture_output=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert json.loads(answer.stdout)["fits"]
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    asked = parser.parse_args()
    print(machine())
    for name, question in QUESTIONS.items():
        answered(question)  # so that the file cache is warm
        wall, cpu = zip(*(answered(question) for _ in range(asked.times)), strict=True)
        print(
            f"predict, {name}: wall p50 {quantile(wall, 0.5):.2f} s, p95 {quantile(wall, 0.95):.2f} s;"
            f" processor p50 {quantile(cpu, 0.5):.2f} s (goal: 0.3 s)"
        )


if __name__ == "__main__":
    main()
