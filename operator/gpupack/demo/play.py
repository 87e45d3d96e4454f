"""`gpupack demo`: seven acts. Published runs, the loop live, a step back, one too many, no, hidden truth, one table.

Exit status 0 only if packing went through the Kubernetes API, the step that did harm was taken back, the replica that
was one too many did not pay, the hidden truth was learnt, and the replay was within its bounds; 1 if one of these
failed; 3 if the control plane cannot be had.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import contextlib
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from gpupack.decide.advise import advise
from gpupack.decide.question import Question
from gpupack.demo import hidden, live, refusals, replay, table
from gpupack.demo.stage import ACCOUNT, Stage
from gpupack.demo.view import LiveView, Step, staircase
from gpupack.errors import Unavailable
from gpupack.facts.serving import Lengths
from gpupack.node import binaries, clients
from gpupack.node.controlplane import ControlPlane
from gpupack.perf.sharing import predict
from gpupack.twin.arrivals import Lengths as TwinLengths
from gpupack.units import milliseconds, percent

FAILED, NO_CONTROL_PLANE = 1, 3
SEEDS = 100_000
WIDTH = 170
CLIENTS, CLIENT_OUTPUT_TOKENS, CLIENT_BOUND = 8, 32, 0.10
"""Short answers, because latencies do not depend on them and many make a good mean."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--twin-only", action="store_true", help="without a control plane: the replay, the refusals and the table"
    )
    parser.add_argument(
        "--seed", type=int, default=None, metavar="N", help="of the hidden truth in act 6; default: drawn, and printed"
    )
    parser.add_argument("--keep-logs", type=Path, metavar="DIR", help="where to leave the logs of operator and node")


def run(args: argparse.Namespace) -> int:
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    seed = random.SystemRandom().randrange(SEEDS) if args.seed is None else args.seed
    with _aside(_table_question(), seed) as aside:
        if args.twin_only:
            return _twin_only(console, aside)
        return _whole(console, aside, args.keep_logs)


def _table_question() -> Question:
    return refusals.question(
        live.MODEL,
        live.GPU_KIND,
        Lengths(input_mean=live.INPUT_TOKENS, output_mean=live.OUTPUT_TOKENS, input_cv=live.LENGTHS_CV,
                output_cv=live.LENGTHS_CV),
        itl=live.ITL_SLO,
        ttft=live.TTFT_SLO,
        efficiency=live.MIN_EFFICIENCY,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Aside:
    """What is worked out beside the acts; each waits until it is there."""

    comparison: Callable[[], table.Comparison]
    hidden: Callable[[], hidden.Hidden]


@contextlib.contextmanager
def _aside(question: Question, seed: int) -> Iterator[_Aside]:
    """The last two acts are computed beside the others, at low priority, by a process of its own."""
    with concurrent.futures.ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), initializer=os.nice, initargs=(10,)
    ) as pool:
        comparison, truth = pool.submit(table.compare, question), pool.submit(hidden.play, seed)
        try:
            yield _Aside(comparison=comparison.result, hidden=truth.result)
        finally:
            comparison.cancel()
            truth.cancel()
            pool.shutdown(wait=False, cancel_futures=True)


@dataclass(slots=True)
class _Programs:
    """Fetching or building the control plane's programs beside act 1; what it says is shown afterwards."""

    found: binaries.Binaries | None = None
    problem: Unavailable | None = None
    said: list[str] = field(default_factory=list)

    def obtain(self) -> None:
        try:
            self.found = binaries.obtain(binaries.control_plane(), progress=self.said.append)
        except Unavailable as problem:
            self.problem = problem


def _whole(console: Console, aside: _Aside, keep_logs: Path | None) -> int:
    programs = _Programs()
    fetching = threading.Thread(target=programs.obtain, daemon=True)
    fetching.start()
    replayed, within = _act_one(console)
    told = 0
    while fetching.is_alive():
        fetching.join(0.2)
        for line in programs.said[told:]:
            console.print(line, style="dim", highlight=False)
        told = len(programs.said)
    if programs.found is None:
        console.print(str(programs.problem), style="red", highlight=False)
        console.print("The rest needs no control plane with: gpupack demo --twin-only")
        return NO_CONTROL_PLANE
    with tempfile.TemporaryDirectory(prefix="gpupack-demo-") as folder:
        packing, taken_back, too_many, through_api = _live_acts(console, programs.found, Path(folder), keep_logs)
    no = _act_five(console, replayed)
    learnt = _act_six(console, aside.hidden())
    _act_seven(console, aside.comparison())
    passed = {
        "packing went through the Kubernetes API": through_api and not packing.missed,
        f"at least three engines on the first GPU ({packing.most_on_first})": packing.most_on_first >= 3,
        "it stopped for BandwidthCeiling and opened the second GPU": packing.bandwidth_ceiling
        and packing.opened_second,
        "the second serving stopped for LatencySlo": packing.latency_slo,
        "it shrank when the load fell": packing.shrank,
        "the step that did harm was taken back, and the resource says why": taken_back.held,
        "one engine more did not pay, or broke the promise": too_many.held,
        "what should not be packed was not": no,
        f"a hidden truth was learnt: latencies are predicted to {percent(hidden.BOUND):.0f} %": learnt,
        "the replay was within its bounds": within,
    }
    return _sum_up(console, passed, packing.missed)


def _twin_only(console: Console, aside: _Aside) -> int:
    replayed, _ = _act_one(console)
    question = _table_question()
    advice = advise(question)
    console.rule("[bold]2 to 4  The staircase in the twin (no control plane: the loop is not shown)")
    steps = []
    for count, seen in enumerate(table.stairs(question, advice, advice.replicas_per_gpu + 1), start=1):
        closed = predict(question.gpu, (table.group(question, advice.shape, count, None),), question.sharing)
        steps.append(Step(replicas=count, measured=seen.total_tokens_per_second,
                          predicted=closed.total_tokens_per_second, dram_active=seen.dram_active, itl=seen.itl.p95,
                          ttft=None, itl_slo=live.ITL_SLO))  # fmt: skip
    console.print(staircase(steps))
    _act_five(console, replayed)
    _act_six(console, aside.hidden())
    _act_seven(console, aside.comparison())
    return 0


def _act_one(console: Console) -> tuple[list[replay.Replayed], bool]:
    console.rule("[bold]1  Replay of a published experiment")
    replayed = [replay.replay(case) for case in replay.CASES]
    errors = list(replay.gain_errors(replayed))
    console.print(replay.table(replayed))
    console.print(replay.verdict(errors), highlight=False)
    return replayed, replay.within_bounds(errors)


def _live_acts(
    console: Console, programs: binaries.Binaries, folder: Path, keep_logs: Path | None
) -> tuple[live.Packing, live.TakenBack, live.OneTooMany, bool]:
    console.rule("[bold]2  The loop, live")
    for line in _chosen():
        console.print(line, highlight=False, soft_wrap=True)
    began = time.monotonic()
    with ControlPlane(programs, audit=True) as cluster, Stage(
        cluster, folder, node_arguments=live.NODE_ARGUMENTS
    ) as stage:  # fmt: skip
        console.print(
            f"kube-apiserver, etcd, controller manager and scheduler are up, a virtual node with {live.GPUS} GPUs has "
            f"joined ({time.monotonic() - began:.1f} s). The operator starts as a process of its own.",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        try:
            stage.start_operator()
            with LiveView(console) as view:
                director = live.Director(stage, view)
                packing = live.pack(director)
            _print_decisions(console, director.heard)
            through_api = _went_through_the_api(console, cluster)
            console.rule("[bold]3  A step that does harm is taken back")
            console.print(_worse(), highlight=False, soft_wrap=True)
            with LiveView(console) as view:
                director = live.Director(stage, view)
                taken_back = live.take_back(director)
            _print_decisions(console, director.heard)
            console.print(_taken_back(taken_back), highlight=False, soft_wrap=True)
            console.rule("[bold]4  One too many")
            with LiveView(console) as view:
                director = live.Director(stage, view)
                too_many = live.one_too_many(director, lambda seconds: _measure_as_clients(console, stage, seconds))
            console.print(staircase(too_many.steps))
            console.print(_one_too_many(too_many), highlight=False, soft_wrap=True)
        finally:
            if keep_logs is not None:
                keep_logs.mkdir(parents=True, exist_ok=True)
                for name in ("operator", "node"):
                    (keep_logs / f"{name}.log").write_text(stage.log(name))
    return packing, taken_back, too_many, through_api


def _chosen() -> list[str]:
    promise = table.promise(advise(_table_question()).slo)
    shortened = ", ".join(f"{name} {value} (default {default})" for name, (value, default) in live.SHORTENED.items())
    return [
        f"Model {live.MODEL} on {live.GPUS} x {live.GPU_KIND}; {live.INPUT_TOKENS} tokens in and {live.OUTPUT_TOKENS} "
        f"out on average, coefficient of variation {live.LENGTHS_CV}; promise: {promise}; batches must be "
        f"{percent(live.MIN_EFFICIENCY):.0f} % efficient.",
        f"Shortened by the GpuPool's own fields: {shortened}. An engine starts in {live.START_SECONDS:.0f} s. Nothing "
        "else is scaled down: model, GPU, lengths and batches are the real ones.",
        "There is no kube-proxy: clients find engines through the Service's EndpointSlices, and reach them through a "
        "forward proxy.",
    ]


def _measure_as_clients(console: Console, stage: Stage, seconds: float) -> None:
    """Real streaming clients beside the bulk load; their means against the engines' histograms."""
    model = stage.state()["engines"][0]["model"]

    def addresses() -> Sequence[tuple[str, int]]:
        return [
            (each["status"]["podIP"], 8000)
            for each in stage.pods("chat")
            if each["status"].get("podIP") and each["metadata"].get("deletionTimestamp") is None
        ]

    known = addresses()
    lengths = TwinLengths(
        input_mean=live.INPUT_TOKENS, output_mean=CLIENT_OUTPUT_TOKENS, input_cv=live.LENGTHS_CV,
        output_cv=live.LENGTHS_CV,
    )  # fmt: skip
    measured = asyncio.run(
        clients.measure(lambda: known, model=model, lengths=lengths, clients=CLIENTS, seconds=seconds, seed=1,
                        pod_proxy=stage.pod_proxy)
    )  # fmt: skip
    engines = stage.state(seconds)["engines"]
    for name, client, engine in (
        ("inter-token latency", measured.itl_mean, _mean(engines, "itl_mean_seconds")),
        ("time to first token", measured.ttft_mean, _mean(engines, "ttft_mean_seconds")),
    ):
        if client is None or engine is None:
            console.print(f"{CLIENTS} streaming clients: no {name} was measured.", style="red")
            continue
        apart = client / engine - 1.0
        kept = f"{'within' if abs(apart) <= CLIENT_BOUND else 'NOT within'} {percent(CLIENT_BOUND):.0f} %"
        console.print(
            f"{CLIENTS} streaming clients over HTTP: mean {name} {milliseconds(client):.1f} ms; the engines' "
            f"histograms: {milliseconds(engine):.1f} ms; {percent(apart):+.1f} %, {kept}.",
            highlight=False, soft_wrap=True,
        )  # fmt: skip


def _mean(engines: Sequence[Mapping[str, Any]], field: str) -> float | None:
    """Over the engines and not over their tokens: the clients ask each engine as often as the others."""
    told = [each[field] for each in engines if each.get(field) is not None]
    return sum(told) / len(told) if told else None


def _print_decisions(console: Console, heard: Sequence[live.Heard]) -> None:
    console.print("[bold]Decisions, as they stood on the resources")
    for each in heard:
        console.print(f"{each.seconds:6.1f} s  {each.serving}  {each.reason}: {each.message}", highlight=False,
                      soft_wrap=True)  # fmt: skip


def _went_through_the_api(console: Console, cluster: ControlPlane) -> bool:
    """Whether the audit log has the operator's account creating the pods and claims, and nobody else."""
    wrote = {
        (each.user == ACCOUNT, each.resource): each.name
        for each in cluster.audit_events()
        if each.is_write and each.verb in ("create", "patch") and each.code < 300
        and each.namespace == "default" and each.resource in ("pods", "resourceclaims")
    }  # fmt: skip
    ours = {resource for is_operator, resource in wrote if is_operator}
    console.print(
        f"The API server's audit log has {ACCOUNT} writing {' and '.join(sorted(ours)) or 'nothing'}.", highlight=False,
        soft_wrap=True,
    )  # fmt: skip
    return ours == {"pods", "resourceclaims"}


def _worse() -> str:
    return (
        f"From now on engines that share the GPU slow each other {(1 + live.WORSE) / (1 + live.ORDINARY):.1f} times as "
        "much as before. The operator cannot know; the next step will tell it."
    )


def _taken_back(seen: live.TakenBack) -> str:
    return f"The resource says: {seen.said or 'nothing of it'}"


def _one_too_many(seen: live.OneTooMany) -> str:
    broke = ", and it broke the promise" if seen.broke_slo else ""
    return (
        f"gpupack would have stopped at {seen.chosen}. Engine {seen.chosen + 1}, pinned by scaling.mode Manual, "
        f"brought {percent(seen.gain):+.1f} % tokens a second (the least that pays is "
        f"{percent(seen.least_gain):.0f} %){broke}. The resource said: {seen.said}"
    )


def _act_five(console: Console, replayed: list[replay.Replayed]) -> bool:
    console.rule("[bold]5  The answer no")
    found = refusals.refuse()
    console.print(refusals.table(found))
    console.print(refusals.sliced(replayed), highlight=False, soft_wrap=True)
    return refusals.refused(found)


def _act_six(console: Console, played: hidden.Hidden) -> bool:
    console.rule("[bold]6  Hidden truth")
    console.print(
        f"A world whose engines cost up to {percent(hidden.REACH):.0f} % more or less than the catalog says; its seed "
        f"is {played.seed} (--seed {played.seed} plays it again). Live calibration sees their counters only, for "
        f"{hidden.MINUTES} minutes of simulated time.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    console.print(hidden.table(played))
    console.print(hidden.verdict(played), highlight=False, soft_wrap=True)
    return hidden.held(played)


def _act_seven(console: Console, comparison: table.Comparison) -> None:
    console.rule("[bold]7  One promise, four ways")
    console.print(table.table(comparison))
    console.print(f"[bold]{table.headline(comparison)}", highlight=False, soft_wrap=True)
    console.print(
        "Hardware: only the published columns of act 1 (H100 64 GB). Everything else was measured in the digital twin, "
        "which is calibrated on published runs, never on this machine.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _sum_up(console: Console, passed: dict[str, bool], missed: Sequence[str]) -> int:
    for promise, kept in passed.items():
        console.print(f"{'[green]yes' if kept else '[red]NO '}[/]  {promise}", highlight=False)
    for each in missed:
        console.print(f"[red]not seen in time: {each}", highlight=False)
    return 0 if all(passed.values()) else FAILED
