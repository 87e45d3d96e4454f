"""`gpupack profile`: measures a running engine from here, limit by limit, and says which batch limit its runs choose.

The engine is not ours: it is not started again, so the chosen limit is not confirmed by an engine that has it as its
own. A ModelProfile with `spec.measure` does that in a cluster.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from gpupack import catalog
from gpupack.cli.arguments import count, positive
from gpupack.cli.show import Json, ms, pct, print_json, rate, rounded, table
from gpupack.errors import Invalid, Unavailable
from gpupack.facts.measured import Fitted, Results
from gpupack.facts.serving import Profile
from gpupack.perf import calibration
from gpupack.profiling import record, sweep
from gpupack.profiling.client import BUSY_CLIENT, Clients, Endpoint, Load, Window, even_lengths
from gpupack.profiling.fitting import fitted
from gpupack.profiling.record import Inputs, Record, Seen
from gpupack.profiling.sweep import Course
from gpupack.units import microseconds

BAR = 32


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base-url", required=True, type=_url, metavar="URL", help="an OpenAI-compatible server: http://host:8000"
    )
    parser.add_argument("--model", metavar="NAME", help="as the server calls it; default: the only one that it serves")
    parser.add_argument("--api-key-env", metavar="NAME", help="the environment variable that holds the server's key")
    parser.add_argument("--proxy", metavar="URL", help="a plain HTTP proxy that reaches the server")
    limits = parser.add_mutually_exclusive_group()
    limits.add_argument(
        "--largest", type=count, default=sweep.LARGEST, metavar="B",
        help=f"most clients at a time, at most the engine's --max-num-seqs; default {sweep.LARGEST}",
    )  # fmt: skip
    limits.add_argument(
        "--batches", type=_limits, metavar="B,B,...", help="these numbers of clients instead of 1, 2, 4"
    )
    parser.add_argument("--input-tokens", type=count, default=512, metavar="I", help="mean prompt length; default 512")
    parser.add_argument("--output-tokens", type=count, default=256, metavar="O", help="mean answer length; default 256")
    parser.add_argument(
        "--seconds", type=positive, default=20.0, metavar="S", help="measured at each number of clients; default 20"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE.json",
        help="where every run is written as soon as it ends; started again with the same file, a sweep goes on from it",
    )  # fmt: skip
    parser.add_argument(
        "--gpu", metavar="NAME", help="the engine's GPU, of `gpupack catalog`: fits its coefficients to the runs"
    )
    parser.add_argument("--catalog-model", metavar="NAME", help="the model's name in the catalog, where it differs")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draws the runs (PNG, SVG or PDF)")
    parser.add_argument("--json", action="store_true", help="for machines")


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """`stopped`: somebody asked to end before the sweep did."""

    record: Record
    course: Course
    stopped: bool


def run(args: argparse.Namespace) -> int:
    """0 once the sweep is done, 1 if it was stopped or nothing could be measured."""
    if args.plot is not None:
        from gpupack.cli.plot import drawing

        drawing()  # says at once if it cannot
    endpoint = Endpoint(url=args.base_url, model=args.model, api_key=_key(args.api_key_env), proxy=args.proxy)
    limits = args.batches or sweep.ladder(args.largest)
    load = Load(input_tokens=args.input_tokens, output_tokens=args.output_tokens, seconds=args.seconds)
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"),
        console=console, transient=True, disable=args.json or not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task("asking the server", total=len(limits), left="")

        def tell(course: Course, left: float | None) -> None:
            doing = "" if course.next is None else f"{course.next.clients} clients"
            bar.update(
                task, description=doing, completed=course.settled, total=course.runs,
                left="" if left is None else f"about {_duration(left)} left",
            )  # fmt: skip

        swept = asyncio.run(_swept(endpoint, load, limits, args.output, tell))
    if not swept.record.results.points:
        failures = swept.record.results.failures
        raise Unavailable(failures[-1].problem if failures else "stopped before anything was measured")
    fit = None if args.gpu is None else _fit(args, swept.record)
    if args.json:
        print_json(_json(swept, fit))
    else:
        print(_text(swept, fit, args.output))
    if args.plot is not None:
        from gpupack.cli.plot import draw_profile

        draw_profile(args.plot, swept.record.inputs.model, swept.record.results.points, swept.course.chosen)
    return 1 if swept.stopped else 0


async def _swept(
    endpoint: Endpoint, load: Load, limits: tuple[int, ...], path: Path | None,
    tell: Callable[[Course, float | None], None],
) -> Swept:  # fmt: skip
    """Every run that is left, each written down before the next begins. Ctrl-C ends it after what is written."""
    async with Clients(endpoint, load) as clients:
        inputs = Inputs(
            model=clients.dialect.model, engine_version=clients.dialect.version,
            input_tokens=load.input_tokens, output_tokens=load.output_tokens,
        )  # fmt: skip
        kept = None if path is None else record.read(path, inputs)
        kept = kept or Record(inputs=inputs, results=Results(), seen={})
        taken: list[float] = []
        course = sweep.course(limits, kept.results, confirms=False)
        try:
            while (step := course.next) is not None:
                left = sum(taken) / len(taken) * (course.runs - course.settled) if taken else None
                tell(course, left)
                began = time.monotonic()
                try:
                    window = await clients.measure(step.clients)
                except Unavailable as problem:
                    kept = replace(kept, results=sweep.added(kept.results, step, str(problem)))
                else:
                    kept = _with(kept, sweep.added(kept.results, step, window.point()), window)
                taken.append(time.monotonic() - began)
                if path is not None:
                    record.write(path, kept)
                course = sweep.course(limits, kept.results, confirms=False)
        except asyncio.CancelledError:
            return Swept(record=kept, course=course, stopped=True)
    return Swept(record=kept, course=course, stopped=False)


def _with(kept: Record, results: Results, window: Window) -> Record:
    seen = Seen(
        ttft_mean_seconds=window.ttft, finished=window.finished, failed=window.failed,
        input_tokens=window.prompt_tokens, output_tokens=window.output_tokens, client_busy=window.client_busy,
    )  # fmt: skip
    return replace(kept, results=results, seen={**kept.seen, window.clients: seen})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """What fits the runs, and the names of the GPU and the model in the catalog."""

    gpu: str
    model: str
    found: Fitted


def _fit(args: argparse.Namespace, kept: Record) -> _Fit:
    """Raises Invalid where the catalog has no such model or GPU."""
    gpu = catalog.gpu(args.gpu, "--gpu")
    llm = catalog.llm(args.catalog_model or kept.inputs.model, "--catalog-model")
    base = calibration.coefficients(kept.inputs.engine_version)
    profile = Profile(
        name=kept.inputs.model,
        gpu_kind=gpu.name,
        engine_version=base.engine_version,
        lengths=even_lengths(kept.inputs.input_tokens, kept.inputs.output_tokens),
        points=kept.results.points,
    )
    return _Fit(gpu=gpu.name, model=llm.name, found=fitted(profile, llm, gpu, base, field="--gpu"))


def _json(swept: Swept, fit: _Fit | None) -> Json:
    results, seen = swept.record.results, swept.record.seen
    answer: dict[str, Json] = {
        "model": swept.record.inputs.model,
        "engine_version": swept.record.inputs.engine_version,
        "points": [
            {
                "max_num_seqs": point.max_num_seqs,
                "total_tokens_per_second": rounded(point.total_tokens_per_second),
                "itl_mean_seconds": rounded(point.itl_mean),
                "tpot_mean_seconds": rounded(point.tpot_mean),
                "ttft_mean_seconds": rounded(seen[point.max_num_seqs].ttft_mean_seconds),
                "preemptions": point.preemptions,
                "client_busy": rounded(seen[point.max_num_seqs].client_busy, 3),
            }
            for point in results.points
        ],
        "failures": [record.failure_row(each) for each in results.failures],
        "chosen_max_num_seqs": swept.course.chosen,
        "plateau": swept.course.plateau,
        "stopped": swept.stopped,
    }
    if fit is not None:
        answer["fitted"] = {
            "gpu": fit.gpu,
            "model": fit.model,
            "seconds_per_step": rounded(fit.found.seconds_per_step),
            "host_seconds_per_sequence": rounded(fit.found.host_seconds_per_sequence),
            "kv_read_efficiency": rounded(fit.found.kv_read_efficiency),
            "worst_residual": rounded(fit.found.error),
            "residuals": [[rounded(tokens, 3), rounded(itl, 3)] for tokens, itl in fit.found.misses],
        }
    return answer


def _text(swept: Swept, fit: _Fit | None, path: Path | None) -> str:
    results, seen, chosen = swept.record.results, swept.record.seen, swept.course.chosen
    most = max(point.total_tokens_per_second for point in results.points)
    head = ("clients", "tokens/s", "ITL mean", "TTFT mean", *(("fit: tokens/s", "ITL") if fit else ()), "")
    rows = []
    for index, point in enumerate(results.points):
        drawn = "#" * max(1, round(BAR * point.total_tokens_per_second / most))
        off = () if fit is None else tuple(f"{100 * each:+.1f} %" for each in fit.found.misses[index])
        rows.append(
            (
                str(point.max_num_seqs), rate(point.total_tokens_per_second), ms(point.itl_mean),
                ms(seen[point.max_num_seqs].ttft_mean_seconds), *off,
                drawn.ljust(BAR) + (" <- chosen" if point.max_num_seqs == chosen else ""),
            )
        )  # fmt: skip
    version = swept.record.inputs.engine_version
    inputs = swept.record.inputs
    lines = [
        f"{inputs.model}, {f'vLLM {version}' if version else 'an unknown server'}, {inputs.input_tokens} tokens in and "
        f"{inputs.output_tokens} out on average",
        "",
        table(head, rows),
        "",
    ]
    if chosen is not None:
        lines.append(
            f"batch limit {chosen}: the most tokens a second with at most {sweep.SLO_FACTOR:g} x the ITL of batch 32 "
            f"(or the nearest below)"
        )
    if swept.course.plateau:
        lines.append(f"larger batches were left out: the last two brought less than {pct(sweep.PLATEAU)} each")
    lines += [f"{each.max_num_seqs} clients failed {each.attempts} times: {each.problem}" for each in results.failures]
    busy = [limit for limit, each in seen.items() if each.client_busy > BUSY_CLIENT]
    if busy:
        lines.append(
            f"with {', '.join(map(str, busy))} clients this program computed all the time, so it may have been what "
            "was slow: run it on a faster machine"
        )
    if fit is not None:
        lines.append(
            f"fitted for {fit.model} on {fit.gpu}: {ms(fit.found.seconds_per_step)} a step, "
            f"{microseconds(fit.found.host_seconds_per_sequence):.1f} us a sequence, KV cache read at "
            f"{pct(fit.found.kv_read_efficiency)} of the bandwidth; at worst {pct(fit.found.error)} off"
        )
    if swept.stopped:
        again = f"the same command goes on from {path}" if path else "give --output to go on from there another time"
        lines.append(f"stopped; {again}")
    elif path is not None:
        lines.append(f"the runs are in {path}; ask about them with: gpupack advise --profile {path}")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not (key := os.environ.get(variable)):
        raise Invalid("--api-key-env", f"{variable} is not set", "name an environment variable that holds the key")
    return key


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise argparse.ArgumentTypeError(f"{text!r} is no URL of a server; write for instance http://localhost:8000")
    return text.rstrip("/").removesuffix("/v1")


def _limits(text: str) -> tuple[int, ...]:
    return tuple(sorted({count(word) for word in text.split(",")}))
