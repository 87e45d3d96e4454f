"""`gpupack simulate`: what a setting does, by the digital twin; the same names as `predict` and a few more."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from gpupack.cli.answer import NUMBERS, Answer, EngineAnswer, of_prediction, print_answer
from gpupack.cli.arguments import add_common, options
from gpupack.cli.predict import predict
from gpupack.cli.setting import Setting, setting
from gpupack.cli.show import rounded
from gpupack.rehearse import Recorded, rehearse_run, rehearse_steady
from gpupack.twin.measure import Measures, Spread


def configure(parser: argparse.ArgumentParser) -> None:
    add_common(parser)


def run(args: argparse.Namespace) -> int:
    given = options(args)
    asked = setting(given)
    sizes = of_prediction(asked, predict(asked))
    if sizes.problem is not None:
        print_answer(asked, sizes, given.json)
        return 0
    began = time.perf_counter()
    measured = _rehearse(asked)
    print_answer(asked, _answer(sizes, measured, time.perf_counter() - began), given.json)
    return 0


def _rehearse(asked: Setting) -> tuple[Measures, ...]:
    recorded = tuple(
        Recorded(input_tokens=each.input_tokens, output_tokens=each.output_tokens, arrival_time=each.arrival_time)
        for each in asked.recorded
    )
    if asked.requests is None:
        return rehearse_steady(asked.gpu, asked.groups, asked.sharing, asked.seed, recorded)
    return rehearse_run(asked.gpu, asked.groups, asked.sharing, asked.requests, asked.seed, recorded)


def _answer(sizes: Answer, measured: Sequence[Measures], wall_seconds: float) -> Answer:
    """Latencies are those of the model that was asked about, tokens are sums, DRAM and GPU time the whole GPU's."""
    first = measured[0]
    reachable = first.dram_active / first.gpu_held if first.gpu_held > 0.0 else None
    values: tuple[float | None, ...] = (
        sum(each.total_tokens_per_second for each in measured),
        sum(each.output_tokens_per_second for each in measured),
        first.itl.mean,
        first.itl.p95,
        None if first.ttft is None else first.ttft.mean,
        None if first.ttft is None else first.ttft.p95,
        first.dram_active,
        reachable,
        first.gpu_held,
        first.gpu_held,
    )
    return Answer(
        engines=tuple(
            EngineAnswer(
                group=engine.group,
                memory=engine.memory,
                kv_tokens_needed=engine.kv_tokens_needed,
                running_mean=each.running_mean,
                kv_peak_fraction=each.kv_peak_fraction,
            )
            for engine, each in zip(sizes.engines, measured, strict=True)
        ),
        problem=None,
        numbers=dict(zip(NUMBERS, values, strict=True)),
        error=sizes.error,
        source="Twin",
        extra={
            "preemptions": sum(each.preemptions for each in measured),
            **_percentiles("ttft", first.ttft),
            **_percentiles("itl", first.itl),
            **_percentiles("e2e", first.e2e),
            "simulated_seconds": rounded(first.simulated_seconds),
            "wall_seconds": rounded(wall_seconds),
        },
    )


def _percentiles(name: str, spread: Spread | None) -> dict[str, float | None]:
    return {
        f"{name}_{label}_seconds": None if spread is None else rounded(value)
        for label, value in (
            ("p50", spread.p50 if spread else None),
            ("p95", spread.p95 if spread else None),
            ("p99", spread.p99 if spread else None),
        )
    }
