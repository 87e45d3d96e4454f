"""The report as one page: figures where matplotlib is there, tables always."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from itertools import groupby

from gpupack import __version__
from gpupack.cli.page import document, html_table, paragraph
from gpupack.cli.report import figures
from gpupack.cli.report.account import Account, Decided
from gpupack.cli.show import gib, pct
from gpupack.decide import explain
from gpupack.errors import Invalid
from gpupack.facts.experiment import Experiment
from gpupack.facts.serving import Slo
from gpupack.kube.times import rfc3339
from gpupack.plan import Unit
from gpupack.units import milliseconds

MOST_DECISIONS = 200
"""The last so many are in the table; the timeline has all."""


def page(accounts: Sequence[Account]) -> str:
    """One page that needs nothing beside it. Without matplotlib it says that figures are missing."""
    body = ["<h1>gpupack: what runs where, and why</h1>"]
    if not accounts:
        body.append(paragraph("There is no GpuPool, so nothing is decided yet.", "absent"))
    for account in accounts:
        body += [
            f"<h2>GpuPool {escape(account.pool)}</h2>",
            paragraph(f"From {account.source}, as of {rfc3339(account.at)}; written by gpupack {__version__}."),
            *(paragraph(each, "absent") for each in account.absent),
            *_overview(account),
            *_drawn(account),
            *_steps(account),
            *_decisions(account),
        ]
    return document("gpupack report", body)


def _overview(account: Account) -> list[str]:
    counts = Counter(
        (each.serving, "" if gpu.kind is None else gpu.kind.name) for gpu in account.gpus for each in gpu.placements
    )
    cards = {each.card for each in account.gpus}
    in_use = len({each.card for each in account.gpus if each.placements})
    rows = [
        (
            str(each.serving), each.gpu_kind, str(each.shape.max_num_seqs), gib(each.shape.kv_cache_memory_bytes),
            str(each.replicas_per_gpu), str(counts[each.serving, each.gpu_kind]),
            *_promise(each.slo),
        )
        for each in account.shapes
    ]  # fmt: skip
    head = (
        "serving",
        "GPU",
        "batch limit",
        "KV cache",
        "most a GPU",
        "planned",
        "ITL promised",
        "TTFT promised",
    )
    of = f"{in_use} of {len(cards)} known GPUs in use, {counts.total()} engines planned."
    return [paragraph(of), html_table(head, rows)] if rows else [paragraph(of)]


def _promise(slo: Slo | None) -> tuple[str, str]:
    if slo is None:
        return "-", "-"
    how = f" {slo.statistic.value}" + (", assumed" if slo.assumed else "")
    itl, ttft = ("-" if each is None else f"{milliseconds(each):.4g} ms{how}" for each in (slo.itl, slo.ttft))
    return itl, ttft


def _drawn(account: Account) -> list[str]:
    try:
        return _figures(account)
    except Invalid as missing:
        return [paragraph(f"No figures: {missing}.", "absent")]


def _figures(account: Account) -> list[str]:
    body = []
    if any(each.kind is not None for each in account.gpus):
        body += ["<h3>Memory of each GPU</h3>", figures.memory_map(account)]
        if len(account.gpus) > figures.MOST_GPUS:
            body.append(paragraph(f"The first {figures.MOST_GPUS} of {len(account.gpus)} GPUs.", "note"))
    if account.decisions:
        body += ["<h3>Decisions over time</h3>", figures.timeline(account)]
    for studied in figures.study(account):
        body += [
            f"<h3>{escape(studied.title)}</h3>",
            paragraph(
                "Lines and bars: every engine kept full, as the operator predicts it, believed to within "
                f"{pct(studied.advice.prediction.error)}. {_why(studied)}",
                "note",
            ),
            figures.curves(studied, account),
            figures.staircase(studied, account),
        ]
    return body


def _why(studied: figures.Studied) -> str:
    advice = studied.advice
    if studied.advised_again:
        return f"Not one engine more, because: {advice.stop.reason.value}. {explain.verdict(advice.stop)}"
    return (
        f"Chosen at {rfc3339(studied.chosen.chosen_at)}. With the declared lengths and what is known now the advice is "
        f"{advice.shape.max_num_seqs} x {advice.replicas_per_gpu}; what runs is changed only for a gain that lasts."
    )


def _steps(account: Account) -> list[str]:
    """What was predicted of each judged step, and what its window gave."""
    rows = [_step(step, number) for step in account.steps if step.judgement is not None
            for number in range(len(step.compared))]  # fmt: skip
    if not rows:
        return ["<h3>Steps judged</h3>", paragraph("No step has been judged yet.", "note")]
    head = ("step", "GPU", "verdict", "of", "quantity", "predicted", "measured", "off")
    return ["<h3>Steps judged: predicted and measured</h3>", html_table(head, rows)]


def _step(step: Experiment, number: int) -> tuple[str, ...]:
    each = step.compared[number]
    unit = Unit(each.unit)
    off = "-" if not each.predicted else f"{100.0 * (each.measured / each.predicted - 1.0):+.0f} %"
    first = number == 0
    verdict = "" if step.judgement is None else step.judgement.value + (", undone" if step.undone else "")
    return (
        f"{rfc3339(step.last_at)} {step.step} {step.serving}" if first else "",
        explain.place(step.gpu_uuid) if first else "",
        verdict if first else "",
        explain.place(each.subject),
        each.what,
        explain.number(each.predicted, unit),
        explain.number(each.measured, unit),
        off,
    )


def _decisions(account: Account) -> list[str]:
    """Newest first. Of the same decision made again and again the last is told, with how often."""
    told: list[tuple[Decided, int]] = []
    mine = sorted(account.decisions, key=lambda each: (each.serving, each.at))
    for _, group in groupby(mine, key=lambda each: (each.serving, each.reason, each.planned)):
        same = list(group)
        told.append((same[-1], len(same)))
    told.sort(key=lambda pair: (pair[0].at, pair[0].serving), reverse=True)
    rows = [
        (
            rfc3339(each.at), str(each.serving), each.reason + (f" ({times} times)" if times > 1 else ""),
            "-" if each.planned is None else str(each.planned), _words(each),
        )
        for each, times in told[:MOST_DECISIONS]
    ]  # fmt: skip
    body = ["<h3>Decisions</h3>", html_table(("at", "serving", "decision", "replicas", ""), rows, words=True)]
    more = len(told) - MOST_DECISIONS
    return [*body, paragraph(f"{more} older ones are left out.", "note")] if more > 0 else body


def _words(each: Decided) -> str:
    parts = (("Seen: ", each.seen), ("Predicted: ", each.predicted), ("", each.chosen), ("Rejected: ", each.rejected),
             ("Measured: ", each.measured))  # fmt: skip
    return " ".join(f"{name}{text}" for name, text in parts if text)
