"""Did a prediction move? A wide grid of predictions as text; `pytest --regenerate` writes it anew."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

from gpupack import catalog
from gpupack.facts.serving import Lengths, Sharing
from gpupack.perf.batching import predict_run
from gpupack.perf.prediction import GpuPrediction
from gpupack.perf.sharing import predict

from .engines import CHAT, group

PROMPTS = Lengths(input_mean=3000.0, output_mean=128.0, input_cv=0.5, output_cv=0.5)
ANSWERS = Lengths(input_mean=128.0, output_mean=512.0)
LENGTHS = {"chat": CHAT, "prompts": PROMPTS, "answers": ANSWERS}
MODELS = ("opt-1.3b", "llama-3.2-1b", "qwen3-4b", "llama-3.1-8b")
HEAD = (
    "gpu        model         lengths batch replicas rate   tokens/s   itl ms  p95 ms  p99 ms  ttft ms  p95 ms "
    "running  kv peak  dram   max    held  fits"
)


def line(label: str, answer: GpuPrediction) -> str:
    one = answer.groups[0]
    first = f"{_milliseconds(one.ttft_mean)} {_milliseconds(one.ttft_p95)}"
    return (
        f"{label} {answer.total_tokens_per_second:10.1f} {one.itl_mean * 1e3:8.3f} {one.itl_p95 * 1e3:7.2f} "
        f"{one.itl_p99 * 1e3:7.2f} {first} {one.running_mean:7.2f} {one.kv_peak_fraction:8.4f} "
        f"{answer.dram_active:.4f} {answer.dram_active_max:.4f} {answer.gpu_held:.4f} {'yes' if answer.fits else 'no'}"
    )


def _milliseconds(seconds: float | None) -> str:
    return "       -" if seconds is None else f"{seconds * 1e3:8.2f}"


def test_predictions_are_those_of_the_golden_file(golden: Callable[[str, str], None]) -> None:
    lines = ["# The steady state by MPS, one group of like engines", HEAD]
    for gpu, model, lengths, batch, replicas, rate in product(
        ("L4", "A100-40GB", "H100-80GB"), MODELS, LENGTHS, (8, 64, 256), (1, 2, 4), (None, 4.0)
    ):
        asked = group(model, batch=batch, replicas=replicas, rate=rate, lengths=LENGTHS[lengths], max_model_len=8192)
        label = f"{gpu:10} {model:13} {lengths:7} {batch:5} {replicas:8} {'full' if rate is None else rate:>4}"
        lines.append(line(label, predict(catalog.gpu(gpu), (asked,), Sharing.MPS)))
    lines += ["", "# Whole runs of 2,000 requests by the older engine, not chunked, MPS and time-slicing", HEAD]
    for model, batch, replicas, sharing in product(
        MODELS[:2], (1, 32, 256), (1, 2, 4), (Sharing.MPS, Sharing.TIME_SLICING)
    ):
        asked = group(model, batch=batch, replicas=replicas, lengths=ANSWERS, chunked=False, version="0.5.2")
        label = f"{'H100-64GB':10} {model:13} answers {batch:5} {replicas:8} {sharing.value[:4]:>4}"
        lines.append(line(label, predict_run(catalog.gpu("H100-64GB"), (asked,), sharing, 2000)))
    lines += ["", "# Two unlike models, each on its line: the second of the pair is the neighbour", HEAD]
    for one, other in product(MODELS, MODELS):
        pair = (group(one, batch=64), group(other, batch=32, rate=3.0))
        for first, second in (pair, pair[::-1]):
            label = f"{'H100-80GB':10} {first.llm.aliases[0]:13} beside  {second.llm.aliases[0]:14}   both"
            lines.append(line(label, predict(catalog.gpu("H100-80GB"), (first, second), Sharing.MPS)))
    golden("predictions.txt", "\n".join(lines) + "\n")
