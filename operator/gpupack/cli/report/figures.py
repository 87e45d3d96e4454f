"""The report's figures, as SVG: batch curves, the staircase of engines, memory by GPU, decisions over time.

Predictions are the closed form's, of the question that the operator asks; measurements are those of the account. Lines
and bars are predicted, dots are measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from gpupack.cli.plot import drawing, svg
from gpupack.cli.report.account import Account, Decided, GpuHeld
from gpupack.decide.advise import Advice, advise
from gpupack.decide.baselines import Knee, bca
from gpupack.decide.explain import counted, place
from gpupack.decide.frontier import Point, points
from gpupack.decide.prospect import coefficients_of
from gpupack.decide.question import Question, question_of
from gpupack.facts.gpu import GpuKind
from gpupack.facts.placement import ChosenShape
from gpupack.facts.serving import Serving, ServingKey, Sharing
from gpupack.perf.memory import replica_memory
from gpupack.perf.prediction import EngineGroup, GpuPrediction
from gpupack.perf.sharing import predict, statistic_of
from gpupack.plan import Reason, Step
from gpupack.units import gibibytes, milliseconds

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan")
"""Of servings, in the order of their names; red is kept for what is wrong."""
MEASURED = "0.15"
MOST_GPUS = 128
"""So many have their own bar; nobody reads more."""
PARTS = (("weights", 1.0), ("KV cache", 0.55), ("activation, graphs, context", 0.28))
"""What a replica holds, with the strength of its colour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Studied:
    """One serving on one kind of GPU: what the operator chose, and what the closed form says around it."""

    serving: Serving
    kind: GpuKind
    chosen: ChosenShape
    question: Question
    advice: Advice
    knee: Knee
    points: tuple[Point, ...]
    stairs: tuple[GpuPrediction, ...]

    @property
    def advised_again(self) -> bool:
        """Whether the advisor, asked with what is known now, would choose the same."""
        return (self.advice.shape, self.advice.replicas_per_gpu) == (self.chosen.shape, self.chosen.replicas_per_gpu)

    @property
    def chosen_at(self) -> tuple[GpuPrediction, str]:
        """What the chosen engines do at the highest load that keeps the promise; kept full where that is not known."""
        if self.advised_again:
            return self.advice.prediction, "at the most load within the promise"
        return self.stairs[self.chosen.replicas_per_gpu - 1], "kept full"

    @property
    def title(self) -> str:
        return f"{self.serving.key} ({self.serving.llm.name}) on {self.kind.name}"


def study(account: Account) -> tuple[Studied, ...]:
    """Every shape of the plan whose serving and GPU kind are known."""
    servings = {each.key: each for each in account.servings}
    found = []
    for chosen in account.shapes:
        serving, kind = servings.get(chosen.serving), account.kind(chosen.gpu_kind)
        if serving is None or kind is None:
            continue
        coefficients = coefficients_of(serving, kind)
        question = question_of(
            serving, kind, account.policy, lengths=serving.lengths, coefficients=coefficients,
            sharing=Sharing.MPS if Sharing.MPS in account.policy.sharing else Sharing.EXCLUSIVE,
        )  # fmt: skip
        advice = advise(question)
        seen = _most_engines(account, chosen.serving, kind)
        found.append(
            Studied(
                serving=serving,
                kind=kind,
                chosen=chosen,
                question=question,
                advice=advice,
                knee=bca(question, advice.slo),
                points=points(question),
                stairs=tuple(_full(question, chosen, count) for count in range(1, max(chosen.replicas_per_gpu + 1, seen)
                                                                               + 1)),
            )
        )  # fmt: skip
    return tuple(found)


def _full(question: Question, chosen: ChosenShape, count: int) -> GpuPrediction:
    """So many engines of the chosen shape, all kept full."""
    group = EngineGroup(
        llm=question.llm, dtype=question.dtype, shape=chosen.shape, lengths=question.lengths, replicas=count,
        request_rate=None, coefficients=question.coefficients,
    )  # fmt: skip
    return predict(question.gpu, (group,), Sharing.among(count))


def _most_engines(account: Account, key: ServingKey, kind: GpuKind) -> int:
    """Of this serving on one GPU, as far as something was measured there without another one's."""
    return max(_alone(account, key, kind), default=0)


def _alone(account: Account, key: ServingKey, kind: GpuKind) -> dict[int, list[float]]:
    """Input and output tokens a second of GPUs that held only engines of this serving, by their number."""
    found: dict[int, list[float]] = {}
    for moment in account.moments:
        for gpu in moment.gpus:
            if gpu.kind == kind.name and len(gpu.company) == 1 and gpu.company[0][0] == key:
                found.setdefault(gpu.company[0][1], []).append(gpu.tokens_per_second)
    return found


def curves(studied: Studied, account: Account) -> str:
    """Throughput and ITL against the batch limit of one engine: alone, and as many as were chosen; knee, frontier."""
    figure, (left, right) = drawing().subplots(1, 2, figsize=(11.0, 4.4), layout="constrained")
    slo, chosen = studied.advice.slo, studied.chosen
    counts = sorted({1, 2, chosen.replicas_per_gpu, chosen.replicas_per_gpu + 1})
    for number, count in enumerate(counts):
        mine = [each for each in studied.points if each.replicas == count]
        if not mine:
            continue
        mine.sort(key=lambda each: each.max_num_seqs)
        label = counted(count, "engine")
        batches = [each.max_num_seqs for each in mine]
        left.plot(batches, [_thousands(each) for each in mine], "-", color=COLOURS[number], label=label)
        right.plot(batches, [milliseconds(each.itl) for each in mine], "-", color=COLOURS[number], label=label)
    best = [each for each in studied.points if each.best]
    left.plot([each.max_num_seqs for each in best], [_thousands(each) for each in best], "o", markersize=5,
              markerfacecolor="none", color="0.4", label="frontier, any number")  # fmt: skip
    left.axvline(studied.knee.max_num_seqs, color="0.5", linestyle=":", label=f"knee (BCA) {studied.knee.max_num_seqs}")
    right.axvline(studied.knee.max_num_seqs, color="0.5", linestyle=":")
    at_most, how = studied.chosen_at
    batch = chosen.shape.max_num_seqs
    left.plot([batch], [at_most.total_tokens_per_second / 1e3], "*", markersize=15, color="black",
              label=f"chosen: {batch} x {chosen.replicas_per_gpu}, {how}")  # fmt: skip
    itl, _ = statistic_of(at_most.groups[0], slo.statistic)
    right.plot([batch], [milliseconds(itl)], "*", markersize=15, color="black")
    dots = [
        (each.running, milliseconds(each.itl))
        for moment in account.moments
        for gpu in moment.gpus
        for each in gpu.engines
        if gpu.kind == studied.kind.name and each.key == studied.serving.key and each.running >= 1.0
    ]
    if dots:
        right.plot(*zip(*dots, strict=True), ".", color=MEASURED, markersize=3, alpha=0.5,
                   label="measured P95 by sequences that ran")  # fmt: skip
    if slo.itl is not None:
        promise = f"promise {milliseconds(slo.itl):.3g} ms" + (" (assumed)" if slo.assumed else "")
        right.axhline(milliseconds(slo.itl), color="tab:red", linestyle="--", linewidth=1, label=promise)
    for axes, what in ((left, "thousand tokens a second, in and out"), (right, f"ITL {slo.statistic.value} (ms)")):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("batch limit of an engine")
        axes.set_ylabel(what)
        axes.set_ylim(bottom=0.0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    if slo.itl is not None:
        right.set_ylim(0.0, max([2.2 * milliseconds(max(slo.itl, itl)), *(1.1 * height for _, height in dots)]))
    return svg(figure)


def _thousands(point: Point) -> float:
    return point.prediction.total_tokens_per_second / 1e3


def staircase(studied: Studied, account: Account) -> str:
    """Tokens a second of one GPU by the number of engines of the chosen shape on it."""
    figure, axes = drawing().subplots(figsize=(8.0, 4.0), layout="constrained")
    stairs, chosen = studied.stairs, studied.chosen
    counts = range(1, len(stairs) + 1)
    pays = ["tab:blue" if count <= chosen.replicas_per_gpu else "0.8" for count in counts]
    tokens = [each.total_tokens_per_second / 1e3 for each in stairs]
    bars = axes.bar(list(counts), tokens, 0.6, color=pays, alpha=0.75)
    before = 0.0
    for count, bar, each in zip(counts, bars, stairs, strict=True):
        gain = "" if count == 1 else f"{100 * (each.total_tokens_per_second / before - 1):+.0f} %"
        axes.text(bar.get_x() + bar.get_width() / 2, bar.get_height(), gain, ha="center", va="bottom", fontsize=9)
        before = each.total_tokens_per_second
    measured = _alone(account, studied.serving.key, studied.kind)
    for count, values in sorted(measured.items()):
        spread = [count + 0.4 * (number / max(1, len(values) - 1) - 0.5) for number in range(len(values))]
        axes.plot(spread if len(values) > 1 else [count], [value / 1e3 for value in values], ".", color=MEASURED,
                  markersize=4, label="measured, at the load then" if count == min(measured) else None)  # fmt: skip
    names = [f"{count}\nDRAM {100 * each.dram_active:.0f} of {100 * each.dram_active_max:.0f} %"
             for count, each in zip(counts, stairs, strict=True)]  # fmt: skip
    axes.set_xticks(list(counts), names)
    axes.set_xlabel(f"engines of batch {chosen.shape.max_num_seqs} on one {studied.kind.name}")
    axes.set_ylabel("thousand tokens a second, in and out")
    axes.set_ylim(0.0, 1.25 * max([*tokens, *(value / 1e3 for values in measured.values() for value in values)]))
    handles = [drawing().Rectangle((0, 0), 1, 1, color="tab:blue", alpha=0.75)]
    labels = [f"predicted at full batches; {chosen.replicas_per_gpu} pay"]
    if len(stairs) > chosen.replicas_per_gpu:
        handles.append(drawing().Rectangle((0, 0), 1, 1, color="0.8", alpha=0.75))
        labels.append("predicted, one that does not")
    dots, dotted = axes.get_legend_handles_labels()
    axes.legend([*handles, *dots], [*labels, *dotted], fontsize=8, loc="upper left", ncols=2)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    return svg(figure)


def memory_map(account: Account) -> str:
    """A bar a GPU: weights, KV cache and the rest of each replica side by side, what is kept free, what is used."""
    gpus = [each for each in account.gpus if each.kind is not None][:MOST_GPUS]
    servings = {each.key: each for each in account.servings}
    figure, axes = drawing().subplots(figsize=(11.0, 1.6 + 0.34 * len(gpus)), layout="constrained")
    colours = colours_of(account)
    for row, gpu in enumerate(gpus):
        assert gpu.kind is not None
        total = gibibytes(gpu.kind.memory_bytes)
        axes.barh(row, total, 0.72, color="0.95", edgecolor="0.6", linewidth=0.8)
        begin = 0.0
        for placement in gpu.placements:
            begin = _replica(axes, row, begin, gpu.kind, servings.get(placement.serving), placement, colours)
        reserve = gibibytes(account.policy.gpu_reserve)
        axes.barh(row, reserve, 0.72, left=total - reserve, color="none", edgecolor="0.6", hatch="////", linewidth=0.0)
        if gpu.memory_used is not None:
            used = gibibytes(gpu.memory_used)
            axes.plot([used, used], [row - 0.42, row + 0.42], color="tab:red", linewidth=2.0)
    axes.set_yticks(range(len(gpus)), [_label(each) for each in gpus], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("GiB")
    patch = drawing().Rectangle
    handles = [patch((0, 0), 1, 1, color=colours[key]) for key in colours]
    names = [str(key) for key in colours]
    handles += [patch((0, 0), 1, 1, color="0.3", alpha=strength) for _, strength in PARTS]
    names += [name for name, _ in PARTS]
    handles += [patch((0, 0), 1, 1, facecolor="none", edgecolor="0.6", hatch="////")]
    names += ["kept free"]
    if any(each.memory_used is not None for each in gpus):
        handles.append(axes.plot([], [], color="tab:red", linewidth=2.0)[0])
        names.append("measured in use")
    axes.legend(handles, names, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, frameon=False)
    return svg(figure)


def _replica(
    axes: Any, row: int, begin: float, kind: GpuKind, serving: Serving | None, placement: Any,
    colours: Mapping[ServingKey, str],
) -> float:  # fmt: skip
    """Draws one from `begin` (GiB) on; says where it ends."""
    if serving is None:
        return begin
    parts = replica_memory(serving.llm, serving.dtype, placement.shape, kind)
    weights, kv_cache = parts.weights.value, parts.kv_cache.value
    sizes = (weights, kv_cache, parts.total - weights - kv_cache)
    start = begin
    for (_, strength), size in zip(PARTS, sizes, strict=True):
        width = gibibytes(size)
        axes.barh(row, width, 0.72, left=begin, color=colours[placement.serving], alpha=strength, linewidth=0.0)
        begin += width
    axes.barh(row, begin - start, 0.72, left=start, color="none", edgecolor="white", linewidth=1.2)
    return begin


def _label(gpu: GpuHeld) -> str:
    assert gpu.kind is not None
    return f"{place(gpu.uuid)}\n{gpu.node}, {gpu.kind.name}"


def colours_of(account: Account) -> dict[ServingKey, str]:
    keys = sorted({each.key for each in account.servings} | {each.serving for each in account.decisions})
    return {key: COLOURS[number % len(COLOURS)] for number, key in enumerate(keys)}


_MARKS = {
    Step.ADDED: ("^", "tab:green"), Step.REMOVED: ("v", "0.3"), Step.REPLACED: ("D", "tab:blue"),
    Step.MOVED: ("D", "tab:blue"), Step.WITHDRAWN: ("x", "tab:red"), Reason.ROLLED_BACK: ("X", "tab:red"),
    Reason.LATENCY_SLO: ("s", "tab:orange"), Reason.BANDWIDTH_CEILING: ("s", "tab:purple"),
    Reason.MEMORY: ("s", "tab:brown"), Reason.DATA_MISSING: ("x", "tab:red"),
}  # fmt: skip
"""How a decision looks on the timeline; any other is a small dot."""


def timeline(account: Account) -> str:
    """A lane a serving: replicas planned and ready where every tick is known, and every decision as a mark."""
    keys = list(colours_of(account))
    times = [each.at for each in account.moments] + [each.at for each in account.decisions]
    figure, lanes = drawing().subplots(
        len(keys), 1, figsize=(11.0, 0.9 + 1.25 * len(keys)), layout="constrained", sharex=True, squeeze=False
    )
    used: dict[str, Any] = {}
    for (axes,), key in zip(lanes, keys, strict=True):
        _lane(axes, key, account, used)
    axes = lanes[-1][0]
    span = max(times) - min(times)
    axes.set_xlim(_time(min(times) - 0.02 * span - 1), _time(max(times) + 0.02 * span + 1))
    axes.xaxis.set_major_formatter(_clock_format(span))
    axes.set_xlabel(f"UTC, {_time(min(times)):%Y-%m-%d}")
    figure.legend(list(used.values()), list(used), fontsize=8, loc="outside upper center", ncols=8, frameon=False)
    return svg(figure)


def _lane(axes: Any, key: ServingKey, account: Account, used: dict[str, Any]) -> None:
    mine = [(each.at, one) for each in account.moments for one in each.servings if one.key == key]
    decided = [each for each in account.decisions if each.serving == key]
    top = 1
    if len(mine) > 1:
        at = [_time(each) for each, _ in mine]
        top = max(max(one.planned, one.ready) for _, one in mine)
        used["planned"] = axes.step(at, [one.planned for _, one in mine], where="post", color="tab:blue",
                                    linewidth=1.2)[0]  # fmt: skip
        used["ready"] = axes.fill_between(at, [one.ready for _, one in mine], step="post", color="tab:blue", alpha=0.2)
        load = axes.twinx()
        rates = [float("nan") if one.requests_per_second is None else one.requests_per_second for _, one in mine]
        used["load (right, requests/s)"] = load.plot(at, rates, color="tab:orange", linewidth=1.0, alpha=0.9)[0]
        load.set_ylim(bottom=0.0)
        load.tick_params(labelsize=7, colors="tab:orange")
    for each in decided:
        mark, colour = _MARKS.get(each.reason, (".", "0.5"))  # type: ignore[call-overload]
        size = 3 if mark == "." else 6
        name = each.reason if mark != "." else "any other"
        used[name] = axes.plot([_time(each.at)], [_height(each, mine, top)], mark, color=colour, markersize=size,
                               linestyle="none")[0]  # fmt: skip
    axes.set_ylim(0.0, 1.35 * top)
    axes.set_yticks([0, top])
    axes.tick_params(labelsize=8)
    axes.set_ylabel(str(key), rotation=0, ha="right", va="center", fontsize=9)
    axes.grid(axis="x", alpha=0.3)


def _height(decided: Decided, mine: Sequence[Any], top: int) -> float:
    return float(decided.planned) if decided.planned is not None and len(mine) > 1 else 0.5 * top


def _time(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def _clock_format(span: float) -> Any:
    from matplotlib import dates

    return dates.DateFormatter("%H:%M:%S" if span < 7200 else "%m-%d %H:%M")  # type: ignore[no-untyped-call]
