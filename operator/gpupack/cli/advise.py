"""`gpupack advise`: the shape of an engine and how many of them one GPU should hold, beside what else one could do."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from gpupack import catalog
from gpupack.cli.answer import memory_json
from gpupack.cli.arguments import Options, add_common, efficiency, options, positive
from gpupack.cli.measured import read_points
from gpupack.cli.setting import SHARINGS, subject
from gpupack.cli.show import Json, estimate_json, gib, ms, pct, print_json, rate, rounded, table
from gpupack.decide import explain
from gpupack.decide.advise import Advice, advise
from gpupack.decide.baselines import Contender, Knee, Row, bca, gain, rows
from gpupack.decide.frontier import Point, points
from gpupack.decide.knee import Latency, MeasuredKnee, measured_knee
from gpupack.decide.question import Question
from gpupack.decide.search import Rejected
from gpupack.decide.slicing import Slicing, best, slicings
from gpupack.errors import Invalid
from gpupack.facts.engine_args import shape_args
from gpupack.facts.policy import Policy
from gpupack.facts.serving import Batching, Sharing, Slo, Statistic
from gpupack.plan import Reason, Unit, Verdict
from gpupack.units import Ratio, seconds_from_milliseconds

_STATISTICS = {"mean": Statistic.MEAN, "p95": Statistic.P95, "p99": Statistic.P99}
_NAMES = {
    Contender.DEFAULTS: "vLLM's defaults",
    Contender.SWEPT: "one engine, swept",
    Contender.KNEE: "the lone knee (BCA)",
    Contender.PACKED: "packed",
}
_MIN_EFFICIENCY = 0.1


def configure(parser: argparse.ArgumentParser) -> None:
    add_common(parser, needs_model=False)
    slo = parser.add_argument_group("promise")
    slo.add_argument(
        "--itl-slo-ms",
        type=positive,
        metavar="X",
        help="most milliseconds between tokens; default: twice a lone engine's p95 at batch 32",
    )
    slo.add_argument("--ttft-slo-ms", type=positive, metavar="Y", help="most milliseconds to the first token")
    slo.add_argument("--statistic", choices=tuple(_STATISTICS), default="p95", help="what is promised; default p95")
    slo.add_argument(
        "--min-efficiency",
        type=efficiency,
        default=_MIN_EFFICIENCY,
        metavar="E",
        help="a batch of B must do more than E x B times the work of a batch of 1; default 0.1",
    )
    slo.add_argument(
        "--slo-factor",
        type=positive,
        default=2.0,
        metavar="K",
        help="of a measured profile without --itl-slo-ms: the promise is K times its latency at batch 32; default 2",
    )
    slo.add_argument(
        "--latency",
        choices=tuple(Latency),
        type=Latency,
        default=Latency.ITL,
        help="of a measured profile: mean gap between tokens, or mean time per output token; default itl",
    )
    parser.add_argument("--frontier", action="store_true", help="the Pareto set of (batch, replicas)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draws that set (PNG, SVG or PDF)")


def run(args: argparse.Namespace) -> int:
    measured = None if args.profile is None else _measured(args)
    if measured is not None and args.model is None and args.gpu is None:
        if args.json:
            print_json({"measured_bca": _measured_json(measured)})
        else:
            print("\n".join(_measured_lines(measured)))
        return 0
    for option, value in (("--model", args.model), ("--gpu", args.gpu)):
        if value is None:
            raise Invalid(option, "is missing", "name one of `gpupack catalog`, or give only --profile")
    given = options(args)
    question = _question(replace(given, sharing=None, mig_profile=None) if given.sharing == "mig" else given, args)
    advice = advise(question)
    cuts = slicings(question, advice.slo, catalog.mig_profiles(question.gpu))
    if given.sharing == "mig":
        question = _on_a_slice(given, question, advice, cuts)
        advice, cuts = advise(question), ()
    compared = rows(question, advice) if advice.fits else ()
    knee = bca(question, advice.slo, given.requests)
    found = points(question) if args.frontier or args.plot is not None else ()
    if args.plot is not None:
        from gpupack.cli.plot import draw_frontier

        draw_frontier(args.plot, question, advice, found)
    frontier = found if args.frontier else ()
    if given.json:
        print_json(
            {
                **_json(question, advice, compared, knee, frontier),
                "mig": _cuts_json(question, advice, cuts),
                **({} if measured is None else {"measured_bca": _measured_json(measured)}),
            }
        )
    else:
        print(_text(question, advice, compared, knee, frontier))
        if cuts:
            print("\n".join(("", *_cut_lines(question, advice, cuts))))
        if measured is not None:
            print("\n".join(("", *_measured_lines(measured))))
    return 0


def _on_a_slice(given: Options, whole: Question, advice: Advice, cuts: tuple[Slicing, ...]) -> Question:
    """The question about one engine on a slice: of the profile that was asked for, else of the best one.

    Where none keeps the promise it is the largest. The promise is the whole GPU's.
    """
    if given.mig_profile is not None or not cuts:
        profile = catalog.mig_profile(whole.gpu, given.mig_profile or "")
    else:
        chosen = best(cuts, whole)
        profile = cuts[-1].profile if chosen is None else chosen.profile
    return replace(whole, gpu=profile.kind, sharing=Sharing.EXCLUSIVE, slo=advice.slo)


def _lead_of_mps(advice: Advice, cut: Slicing | None) -> float | None:
    """By what share engines side by side on the whole GPU do more than on slices; None if either does nothing."""
    if cut is None or not advice.fits or advice.unreachable is not None:
        return None
    return advice.prediction.total_tokens_per_second / cut.total_tokens_per_second - 1.0


def _cuts_json(question: Question, advice: Advice, cuts: tuple[Slicing, ...]) -> Json:
    if not cuts:
        return None
    chosen = best(cuts, question)
    return {
        "best": None if chosen is None else chosen.profile.name,
        "gain_of_sharing": rounded(_lead_of_mps(advice, chosen)),
        "profiles": [
            {
                "profile": each.profile.name,
                "slices": each.slices,
                "fits": each.advice.fits,
                "keeps_slo": each.keeps_slo,
                "max_num_seqs": each.advice.shape.max_num_seqs if each.advice.fits else None,
                "total_tokens_per_second": rounded(each.total_tokens_per_second) if each.keeps_slo else None,
                "itl_p95_seconds": rounded(each.advice.prediction.groups[0].itl_p95) if each.advice.fits else None,
                "stop": None if each.keeps_slo else _verdict_json(each.advice.stop),
            }
            for each in cuts
        ],
    }


def _cut_lines(question: Question, advice: Advice, cuts: tuple[Slicing, ...]) -> list[str]:
    chosen = best(cuts, question)
    lead = _lead_of_mps(advice, chosen)
    head = ("MIG, one engine a slice", "batch", "tok/s", "ITL p95", "")
    block = []
    for each in cuts:
        name = f"{each.slices} x {each.profile.name}"
        if not each.advice.fits:
            block.append((name, "-", "-", "-", sentence(each.advice.stop)))
            continue
        first = each.advice.prediction.groups[0]
        why = "" if each.keeps_slo else sentence(each.advice.stop)
        tokens = rate(each.total_tokens_per_second) if each.keeps_slo else "-"
        block.append((name, str(each.advice.shape.max_num_seqs), tokens, ms(first.itl_p95), why))
    if chosen is None:
        said = "no MIG profile keeps the promise"
    elif lead is None:
        said = f"MIG keeps the promise with {chosen.slices} x {chosen.profile.name}"
    else:
        engines = "one engine" if advice.replicas_per_gpu == 1 else f"{advice.replicas_per_gpu} engines"
        said = (
            f"{engines} on the whole GPU against {chosen.slices} x {chosen.profile.name}: "
            f"{100.0 * lead:+.0f} % tokens a second; slices do not slow or crash each other"
        )
    return [table(head, block), "", said]


def _measured(args: argparse.Namespace) -> MeasuredKnee:
    """BCA as published, on the profile's own numbers: nothing is fitted or predicted."""
    return measured_knee(
        read_points(args.profile),
        slo_factor=args.slo_factor,
        slo=None if args.itl_slo_ms is None else seconds_from_milliseconds(args.itl_slo_ms),
        min_efficiency=Ratio(args.min_efficiency),
        latency=args.latency,
    )


def _measured_json(knee: MeasuredKnee) -> Json:
    return {
        "max_num_seqs": knee.max_num_seqs,
        "slo_seconds": rounded(knee.slo),
        "latency_seconds": rounded(knee.latency),
        "total_tokens_per_second": rounded(knee.total_tokens_per_second),
        "efficiency": rounded(knee.efficiency),
        "share_of_best": rounded(knee.share_of_best),
        "freed_bytes": knee.freed_bytes,
        "freed_memory_fraction": rounded(knee.freed_fraction),
        "keeps_slo": knee.keeps_slo,
    }


def _measured_lines(knee: MeasuredKnee) -> list[str]:
    if not knee.keeps_slo:
        return [f"BCA on the measured runs: no batch limit keeps {ms(knee.slo)}; the smallest is {knee.max_num_seqs}"]
    freed = "the profile does not say how much KV cache it used"
    if knee.freed_bytes is not None:
        share = "" if knee.freed_fraction is None else f", {100.0 * knee.freed_fraction:.2f} % of the GPU's memory"
        freed = f"frees {gib(knee.freed_bytes)} of KV cache{share}"
    return [
        f"BCA on the measured runs: batch {knee.max_num_seqs}, {rate(knee.total_tokens_per_second)} tok/s "
        f"({100.0 * knee.share_of_best:.1f} % of the best run without preemption), "
        f"{ms(knee.latency)} of at most {ms(knee.slo)}, efficiency {pct(knee.efficiency)}",
        freed,
    ]


def _question(given: Options, args: argparse.Namespace) -> Question:
    for option, value in (
        ("--neighbour", given.neighbours),
        ("--request-rate", given.request_rate),
        ("--gpu-memory-utilization", given.gpu_memory_utilization),
        ("--kv-cache-memory-bytes", given.kv_cache_memory_bytes),
    ):
        if value:
            raise Invalid(
                option, "advise decides about an empty GPU and chooses load and memory", "use it with predict"
            )
    sharing = SHARINGS[given.sharing or "mps"]
    if sharing is Sharing.TIME_SLICING:
        raise Invalid("--sharing", "time-slicing is predicted and simulated, never chosen", "give mps or exclusive")
    about = subject(given)
    promised = args.itl_slo_ms is not None or args.ttft_slo_ms is not None
    slo = Slo(
        itl=None if args.itl_slo_ms is None else seconds_from_milliseconds(args.itl_slo_ms),
        ttft=None if args.ttft_slo_ms is None else seconds_from_milliseconds(args.ttft_slo_ms),
        statistic=_STATISTICS[args.statistic],
    )
    return Question(
        llm=about.llm,
        dtype=about.dtype,
        gpu=about.gpu,
        lengths=about.lengths,
        slo=slo if promised else None,
        batching=Batching(fixed=given.max_num_seqs, min_efficiency=Ratio(args.min_efficiency)),
        sharing=sharing,
        max_model_len=about.max_model_len,
        coefficients=about.coefficients,
        policy=Policy(),
        cpu_cores=1,
        node_cores=None,
        max_num_batched_tokens=given.max_num_batched_tokens,
        chunked_prefill=given.chunked_prefill,
        max_replicas=given.replicas,
    )


def _json(
    question: Question, advice: Advice, compared: tuple[Row, ...], knee: Knee, frontier: tuple[Point, ...]
) -> dict[str, Json]:
    slo = advice.slo
    answer: dict[str, Json] = {
        "fits": advice.fits,
        "model": question.llm.name,
        "gpu": question.gpu.name,
        "slo": {
            "itl_seconds": rounded(slo.itl),
            "ttft_seconds": rounded(slo.ttft),
            "statistic": _word(slo.statistic),
            "assumed": slo.assumed,
        },
        "shape": {
            "max_num_seqs": advice.shape.max_num_seqs,
            "kv_cache_memory_bytes": advice.shape.kv_cache_memory_bytes,
            "max_num_batched_tokens": advice.shape.max_num_batched_tokens,
            "max_model_len": advice.shape.max_model_len,
            "chunked_prefill": advice.shape.chunked_prefill,
            "vllm_args": _vllm_args(question, advice),
        },
        "replicas_per_gpu": advice.replicas_per_gpu if advice.fits else 0,
        "replica_request_rate": rounded(advice.replica_rate),
        "memory_bytes": memory_json(advice.memory),
        "stop_reason": advice.stop.reason.value,
        "stop": _verdict_json(advice.stop),
        "unreachable": None if advice.unreachable is None else estimate_json(advice.unreachable),
        "rejected": [_rejected_json(each) for each in advice.rejected],
        "rows": [_row_json(row) for row in compared],
        "gain_over_swept": rounded(gain(compared, Contender.SWEPT)) if compared else None,
        "bca": _knee_json(knee),
        "bounds": _bounds(advice),
        "source": advice.prediction.source.word,
    }
    if frontier:
        answer["frontier"] = [_point_json(point) for point in frontier if point.best]
    return answer


def _vllm_args(question: Question, advice: Advice) -> list[str] | None:
    """What follows `vllm serve`: the model and the shape; None for what does not fit."""
    if not advice.fits:
        return None
    return [
        question.llm.name,
        *shape_args(advice.shape, advice.utilization_hundredths),
        f"--dtype={question.dtype.value}",
    ]


def _verdict_json(verdict: Verdict) -> dict[str, Json]:
    return {
        "reason": verdict.reason.value,
        "observed": rounded(verdict.observed.value),
        "limit": rounded(verdict.limit.value),
        "at_least": verdict.at_least,
        "margin": rounded(verdict.margin),
        "unit": verdict.unit.value,
        "detail": verdict.detail,
    }


def _rejected_json(rejected: Rejected) -> Json:
    return {
        "max_num_seqs": rejected.max_num_seqs,
        "replicas": rejected.replicas,
        **_verdict_json(rejected.verdict),
    }


def _row_json(row: Row) -> Json:
    prediction = row.prediction
    first = None if prediction is None else prediction.groups[0]
    return {
        "name": row.contender.value,
        "max_num_seqs": row.shape.max_num_seqs,
        "max_num_batched_tokens": row.shape.max_num_batched_tokens,
        "replicas": row.replicas,
        "request_rate": rounded(row.request_rate),
        "total_tokens_per_second": None if prediction is None else rounded(prediction.total_tokens_per_second),
        "output_tokens_per_second": None if prediction is None else rounded(prediction.output_tokens_per_second),
        "itl_mean_seconds": None if first is None else rounded(first.itl_mean),
        "itl_p95_seconds": None if first is None else rounded(first.itl_p95),
        "ttft_mean_seconds": None if first is None else rounded(first.ttft_mean),
        "ttft_p95_seconds": None if first is None else rounded(first.ttft_p95),
        "kv_cache_bytes": row.kv_bytes,
        "freed_bytes": row.freed_bytes,
        "dram_active": None if prediction is None else rounded(prediction.dram_active),
        "saturation": None if prediction is None else rounded(prediction.saturation),
        "plateau_total_tokens_per_second": rounded(row.plateau),
    }


def _knee_json(knee: Knee) -> Json:
    return {
        "max_num_seqs": knee.max_num_seqs,
        "total_tokens_per_second": rounded(knee.prediction.total_tokens_per_second),
        "itl_mean_seconds": rounded(knee.prediction.groups[0].itl_mean),
        "efficiency": rounded(knee.efficiency),
        "kv_peak_bytes": knee.kv_peak_bytes,
        "freed_memory_fraction": rounded(knee.freed_memory_fraction),
        "keeps_slo": knee.keeps_slo,
    }


def _point_json(point: Point) -> Json:
    return {
        "max_num_seqs": point.max_num_seqs,
        "replicas": point.replicas,
        "total_tokens_per_second": rounded(point.prediction.total_tokens_per_second),
        "itl_seconds": rounded(point.itl),
        "saturation": rounded(point.prediction.saturation),
        "memory_bytes": point.prediction.memory_bytes,
        "keeps_slo": point.keeps_slo,
    }


def _bounds(advice: Advice) -> Json:
    """What the packed GPU's throughput and latency are believed to lie in."""
    low, high = 1.0 - advice.prediction.error, 1.0 + advice.prediction.error
    values = {
        "total_tokens_per_second": advice.prediction.total_tokens_per_second,
        "itl_p95_seconds": advice.prediction.groups[0].itl_p95,
    }
    return {name: [rounded(value * low), rounded(value * high)] for name, value in values.items()}


def _text(
    question: Question, advice: Advice, compared: tuple[Row, ...], knee: Knee, frontier: tuple[Point, ...]
) -> str:
    lengths = question.lengths
    lines = [
        f"{question.llm.name} on one {question.gpu.name}, {lengths.input_mean:.0f} tokens in and "
        f"{lengths.output_mean:.0f} out on average{' (assumed)' if lengths.assumed else ''}",
        f"promise: {_promise(advice.slo)}",
        "",
    ]
    if not advice.fits:
        lines.append(f"does not fit: {sentence(advice.stop)}")
        return "\n".join(lines)
    if advice.unreachable is not None:
        lines += [
            f"the promise is out of reach: {sentence(advice.stop)}",
            f"the lowest latency is that of batch {advice.shape.max_num_seqs}, one engine",
        ]
    stop = "" if advice.unreachable is not None else f"not one more: {_stop(advice.stop)}"
    alone = advice.replicas_per_gpu == 1
    engines, each = ("1 engine", "") if alone else (f"{advice.replicas_per_gpu} engines", " each")
    lines += [
        f"{engines} of batch {advice.shape.max_num_seqs}, {gib(advice.shape.kv_cache_memory_bytes)} KV cache and "
        f"{gib(advice.memory.total)} in all{each}",
        stop,
        *(("",) if stop else ()),
        table(_HEAD, [_row_text(row) for row in compared]),
        "",
    ]
    if any(row.prediction is not None and row.request_rate is None for row in compared):
        lines.append("TTFT -: the engines keep the promise even when they are kept full, where a queue has no end")
    lead = gain(compared, Contender.SWEPT)
    if lead is not None:
        what = "not packed: this engine against" if alone else "packed over"
        lines.append(f"{what} the swept single engine: {100.0 * lead:+.0f} % tokens a second")
    plateau = next((row.plateau for row in compared if row.plateau is not None), None)
    lines += [
        f"the swept engine's plateau without a promise: {rate(plateau)} tok/s",
        f"BCA (mean ITL, lone): batch {knee.max_num_seqs}, frees {pct(knee.freed_memory_fraction)} of the GPU's memory",
        "",
        "rejected:",
        *(f"  batch {each.max_num_seqs} x {each.replicas}: {sentence(each.verdict)}" for each in advice.rejected),
        "",
        "vllm serve " + " ".join(_vllm_args(question, advice) or ()),
        "",
        f"predicted; source: {advice.prediction.source.word}, believed to within {pct(advice.prediction.error)}",
    ]
    if frontier:
        best = [
            (
                f"{point.max_num_seqs} x {point.replicas}",
                rate(point.prediction.total_tokens_per_second),
                ms(point.itl),
                pct(point.prediction.saturation),
                "yes" if point.keeps_slo else "no",
            )
            for point in frontier
            if point.best
        ]
        lines += [
            "",
            table(("batch x replicas", "tok/s", f"ITL {_word(advice.slo.statistic)}", "saturation", "keeps"), best),
        ]
    return "\n".join(lines)


_HEAD = (
    "at the same promise",
    "batch",
    "tok/s",
    "out",
    "ITL mean",
    "p95",
    "TTFT mean",
    "p95",
    "KV cache",
    "freed",
    "DRAM",
    "saturation",
)


def _row_text(row: Row) -> tuple[str, ...]:
    batch = f"{row.shape.max_num_seqs} x {row.replicas}"
    memory = (gib(row.kv_bytes), gib(row.freed_bytes))
    if row.prediction is None:
        return (_NAMES[row.contender], batch, "no load keeps it", "-", "-", "-", "-", "-", *memory, "-", "-")
    first = row.prediction.groups[0]
    return (
        _NAMES[row.contender],
        batch,
        rate(row.prediction.total_tokens_per_second),
        rate(row.prediction.output_tokens_per_second),
        ms(first.itl_mean),
        ms(first.itl_p95),
        ms(first.ttft_mean),
        ms(first.ttft_p95),
        *memory,
        pct(row.prediction.dram_active),
        pct(row.prediction.saturation),
    )


def _promise(slo: Slo) -> str:
    parts = [
        f"{name} {_word(slo.statistic)} at most {ms(limit)}"
        for name, limit in (("ITL", slo.itl), ("TTFT", slo.ttft))
        if limit is not None
    ]
    return " and ".join(parts) + (" (assumed: twice a lone engine's at batch 32)" if slo.assumed else "")


def _word(statistic: Statistic) -> str:
    return statistic.value.lower()


def _stop(verdict: Verdict) -> str:
    """The sentence that a condition of the cluster would carry, after the reason's name."""
    detail = f" ({verdict.detail})" if verdict.reason is Reason.MAX_REPLICAS else ""
    return f"{verdict.reason.value}. {explain.verdict(verdict)}{detail}"


def sentence(verdict: Verdict) -> str:
    """`LatencySlo: 47.5 ms, at most 40.0 ms (inter-token latency)`."""
    bound = "at least" if verdict.at_least else "at most"
    detail = f" ({verdict.detail})" if verdict.detail else ""
    return (
        f"{verdict.reason.value}: {_amount(verdict.observed.value, verdict.unit)}, "
        f"{bound} {_amount(verdict.limit.value, verdict.unit)}{detail}"
    )


def _amount(value: float, unit: Unit) -> str:
    match unit:
        case Unit.BYTES:
            return gib(value)
        case Unit.SECONDS:
            return ms(value)
        case Unit.RATIO:
            return f"{100.0 * value:.1f} %"
        case _:
            return f"{value:g} {unit.value}".rstrip()
