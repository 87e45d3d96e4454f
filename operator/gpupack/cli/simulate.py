"""`gpupack simulate`: what a setting does, by the digital twin; the same names as `predict` and a few more.

With `--from-trace` the requests are those of a recorded ModelServing, as far as its counters tell them (`recorded.py`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gpupack.cli.answer import NUMBERS, Answer, EngineAnswer, of_prediction, print_answer
from gpupack.cli.arguments import add_common, options
from gpupack.cli.predict import predict
from gpupack.cli.recorded import OPTION, Rebuilt, rebuild
from gpupack.cli.setting import Setting, setting
from gpupack.cli.show import rounded
from gpupack.errors import Invalid
from gpupack.rehearse import Recorded, rehearse_run, rehearse_steady
from gpupack.twin.measure import Measures, Spread


def configure(parser: argparse.ArgumentParser) -> None:
    add_common(parser, needs_model=False)
    trace = parser.add_argument_group("requests from a trace")
    trace.add_argument(
        OPTION, type=Path, metavar="FILE",
        help="what `gpupack operator --trace` wrote: its arrivals and lengths, rebuilt from counters between scrapes; "
        "--model and --gpu are its own unless given",
    )  # fmt: skip
    trace.add_argument("--serving", metavar="NAME", help="whose requests; default: the only ModelServing of the trace")


def run(args: argparse.Namespace) -> int:
    rebuilt = None if args.from_trace is None else _rebuilt(args)
    for option in ("model", "gpu"):
        if getattr(args, option) is None:
            raise Invalid(f"--{option}", "it is not given", f"name one of `gpupack catalog`, or give {OPTION}")
    given = options(args, () if rebuilt is None else rebuilt.requests)
    asked = setting(given)
    sizes = of_prediction(asked, predict(asked))
    if sizes.problem is not None:
        print_answer(asked, sizes, given.json)
        return 0
    began = time.perf_counter()
    measured = _rehearse(asked)
    answer = _answer(sizes, measured, time.perf_counter() - began)
    if rebuilt is not None:
        answer = replace(answer, extra={**answer.extra, **_told(rebuilt)})
        if not given.json:
            print(_sentence(rebuilt, args.from_trace))
    print_answer(asked, answer, given.json)
    return 0


def _rebuilt(args: argparse.Namespace) -> Rebuilt:
    """The trace's requests; model, GPU and their number become options that were not given."""
    for name in ("lengths", "request_rate", "input_tokens", "output_tokens", "input_cv", "output_cv"):
        if getattr(args, name) is not None:
            raise Invalid(OPTION, f"it brings its own requests, and --{name.replace('_', '-')} is given", "give one")
    rebuilt = rebuild(args.from_trace, args.serving, args.seed, args.max_model_len)
    args.max_model_len = rebuilt.max_model_len
    args.model = args.model or rebuilt.model
    args.gpu = args.gpu or rebuilt.gpu
    args.requests = args.requests or len(rebuilt.requests)
    return rebuilt


def _sentence(rebuilt: Rebuilt, path: Path) -> str:
    count, seconds = f"{len(rebuilt.requests):,}", f"{rebuilt.seconds:,.0f} s"
    unread = f"; engines were unread in {rebuilt.unread_seconds:,.0f} s" if rebuilt.unread_seconds > 0.0 else ""
    return f"{path} tells of {count} requests of {rebuilt.serving} in {seconds}{unread}"


def _told(rebuilt: Rebuilt) -> dict[str, float | None]:
    return {
        "recorded_requests": len(rebuilt.requests),
        "recorded_seconds": rounded(rebuilt.seconds),
        "recorded_unread_seconds": rounded(rebuilt.unread_seconds),
    }


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
