"""Act 1: a published experiment replayed, by the twin and by the closed form, beside what the hardware did.

The runs are those of Mind the Memory Gap (arXiv 2503.08311; repository FerranAgulloLopez/vLLMBatchingMemoryGap, commit
a918634, Apache-2.0): whole vLLM servers on one H100 of 64 GB, 2,000 ShareGPT requests that are all there at the start.
Whole runs are compared with whole runs. OPT-2.7B with two replicas is in no fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from rich.table import Table
from rich.text import Text

from gpupack import catalog
from gpupack.facts.llm import Dtype
from gpupack.facts.serving import Lengths, Sharing
from gpupack.perf import batching, calibration, memory
from gpupack.perf.prediction import EngineGroup
from gpupack.rehearse import rehearse_run
from gpupack.units import Ratio, milliseconds, percent

REQUESTS = 2000
ENGINE_VERSION = "0.5.2"
GPU = "H100-64GB"
UTILIZATION = 0.9
MAX_MODEL_LEN = 2048
MEAN_BOUND, EACH_BOUND = 0.03, 0.06
"""On the errors of the gain of R engines over one."""
SEED = 1


class Use(Enum):
    """What a row was used for."""

    ENGINE = "engine fit"
    SHARING = "sharing fit"
    UNUSED = "no fit"
    TEST = "the test"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One published row. `tokens_per_second` in and out, `itl` in seconds; None where nothing is published."""

    model: str
    max_num_seqs: int
    replicas: int
    sharing: Sharing
    chunked: bool
    tokens_per_second: float | None
    itl: float | None
    use: Use


_LENGTHS = {
    "opt-1.3b": Lengths(input_mean=110.6, output_mean=292.0, input_cv=1.0, output_cv=0.93),
    "opt-2.7b": Lengths(input_mean=110.6, output_mean=281.0, input_cv=1.0, output_cv=0.93),
}


def _row(
    model: str, batch: int, replicas: int, sharing: Sharing, published: tuple[float, float] | None, use: Use,
    chunked: bool = False,
) -> Case:  # fmt: skip
    tokens, itl = (None, None) if published is None else (published[0], published[1] / 1000.0)
    return Case(
        model=model, max_num_seqs=batch, replicas=replicas, sharing=sharing, chunked=chunked, tokens_per_second=tokens,
        itl=itl, use=use,
    )  # fmt: skip


_ALONE, _MPS, _SLICED = Sharing.EXCLUSIVE, Sharing.MPS, Sharing.TIME_SLICING
CASES = (
    _row("opt-1.3b", 96, 1, _ALONE, (9121, 13.78), Use.ENGINE),
    _row("opt-1.3b", 96, 2, _MPS, (12314, 18.98), Use.SHARING),
    _row("opt-1.3b", 96, 4, _MPS, (13172, 31.52), Use.SHARING),
    _row("opt-1.3b", 96, 2, _SLICED, (10494, 22.17), Use.SHARING),
    _row("opt-1.3b", 96, 4, _SLICED, (9860, 40.94), Use.SHARING),
    _row("opt-1.3b", 256, 1, _ALONE, (10871, 29.26), Use.ENGINE),
    _row("opt-1.3b", 256, 2, _MPS, (14669, 37.07), Use.SHARING),
    _row("opt-1.3b", 256, 4, _MPS, (14720, 45.77), Use.SHARING),
    _row("opt-1.3b", 768, 1, _ALONE, (10968, 73.77), Use.ENGINE),
    _row("opt-1.3b", 768, 1, _ALONE, (11865, 65.30), Use.UNUSED, chunked=True),
    _row("opt-2.7b", 128, 1, _ALONE, (6605, 25.06), Use.ENGINE),
    _row("opt-2.7b", 128, 2, _MPS, (8377, 36.55), Use.TEST),
    _row("opt-2.7b", 384, 1, _ALONE, (7428, 61.60), Use.ENGINE),
    _row("opt-2.7b", 384, 1, _ALONE, (8321, 53.40), Use.UNUSED, chunked=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What the two models say of a case: total tokens a second and mean ITL in seconds."""

    case: Case
    twin_tokens: float
    twin_itl: float
    closed_tokens: float
    closed_itl: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GainError:
    """How far a model's gain of R engines over one is from the published gain, as a share of it."""

    case: Case
    published: float
    twin: float
    closed: float


def replay(case: Case) -> Replayed:
    gpu, group = catalog.gpu(GPU), _group(case)
    (twin,) = rehearse_run(gpu, (group,), case.sharing, REQUESTS, SEED)
    closed = batching.predict_run(gpu, (group,), case.sharing, REQUESTS)
    return Replayed(
        case=case,
        twin_tokens=twin.total_tokens_per_second,
        twin_itl=twin.itl.mean,
        closed_tokens=closed.total_tokens_per_second,
        closed_itl=closed.groups[0].itl_mean,
    )


def _group(case: Case) -> EngineGroup:
    llm = catalog.llm(case.model)
    shape = memory.default_shape(
        llm,
        Dtype.FLOAT16,
        catalog.gpu(GPU),
        utilization=Ratio(UTILIZATION / case.replicas),
        max_num_seqs=case.max_num_seqs,
        max_num_batched_tokens=MAX_MODEL_LEN,
        max_model_len=MAX_MODEL_LEN,
        chunked_prefill=case.chunked,
    )
    return EngineGroup(
        llm=llm,
        dtype=Dtype.FLOAT16,
        shape=shape,
        lengths=_LENGTHS[case.model],
        replicas=case.replicas,
        request_rate=None,
        coefficients=calibration.coefficients(ENGINE_VERSION),
    )


def gain_errors(replayed: list[Replayed]) -> Iterator[GainError]:
    """Every row with more than one engine against the row of one engine with the same batch limit."""
    alone = {
        (each.case.model, each.case.max_num_seqs): each
        for each in replayed
        if each.case.replicas == 1 and not each.case.chunked
    }
    for each in replayed:
        one = alone[each.case.model, each.case.max_num_seqs]
        if each.case.replicas == 1 or each.case.tokens_per_second is None or one.case.tokens_per_second is None:
            continue
        published = each.case.tokens_per_second / one.case.tokens_per_second
        yield GainError(
            case=each.case,
            published=published,
            twin=each.twin_tokens / one.twin_tokens / published - 1.0,
            closed=each.closed_tokens / one.closed_tokens / published - 1.0,
        )


def mean_error(errors: list[float]) -> float:
    return sum(abs(each) for each in errors) / len(errors)


def within_bounds(errors: list[GainError]) -> bool:
    twin, closed = [each.twin for each in errors], [each.closed for each in errors]
    return all(mean_error(own) <= MEAN_BOUND and max(abs(each) for each in own) <= EACH_BOUND for own in (twin, closed))


def _off(value: float, published: float | None) -> str:
    return "" if published is None else f"{percent(value / published - 1.0):+.1f} %"


def _signed(error: float) -> Text:
    return Text(f"{percent(error):+.1f} %", style="" if abs(error) <= EACH_BOUND else "red")


def table(replayed: list[Replayed]) -> Table:
    errors = {id(each.case): each for each in gain_errors(replayed)}
    drawn = Table(
        title="Replay of published runs: H100 64 GB, 2,000 requests, whole runs",
        caption=(
            "Engine coefficients: one-replica rows without chunked prefill. One MPS and one time-slicing constant: the "
            "OPT-1.3B rows. OPT-2.7B with two replicas is in no fit: it is the test. Source: arXiv 2503.08311."
        ),
    )
    for heading in ("model", "B x R", "sharing", "chunked", "use"):
        drawn.add_column(heading, no_wrap=True)
    for heading in ("tok/s\nhardware", "twin", "off", "closed\nform", "off", "ITL ms\nhardware", "twin", "closed\nform",
                    "gain\nhardware", "twin\noff", "closed\noff"):  # fmt: skip
        drawn.add_column(heading, justify="right", no_wrap=True)
    for each in replayed:
        case = each.case
        gain = errors.get(id(case))
        drawn.add_row(
            case.model,
            f"{case.max_num_seqs} x {case.replicas}",
            case.sharing.value,
            "on" if case.chunked else "off",
            case.use.value,
            "" if case.tokens_per_second is None else f"{case.tokens_per_second:,.0f}",
            f"{each.twin_tokens:,.0f}",
            _off(each.twin_tokens, case.tokens_per_second),
            f"{each.closed_tokens:,.0f}",
            _off(each.closed_tokens, case.tokens_per_second),
            "" if case.itl is None else f"{milliseconds(case.itl):.1f}",
            f"{milliseconds(each.twin_itl):.1f}",
            f"{milliseconds(each.closed_itl):.1f}",
            "" if gain is None else f"{gain.published:.3f}",
            "" if gain is None else _signed(gain.twin),
            "" if gain is None else _signed(gain.closed),
            style="bold" if case.use is Use.TEST else "",
        )
    return drawn


def verdict(errors: list[GainError]) -> str:
    """One sentence on the bounds."""

    def told(own: list[float]) -> str:
        return f"{percent(mean_error(own)):.1f} % on average, {percent(max(map(abs, own))):.1f} % at worst"

    kept = "within" if within_bounds(errors) else "NOT within"
    return (
        f"Gain of R engines over one: the twin is off by {told([each.twin for each in errors])}; the closed form by "
        f"{told([each.closed for each in errors])}. That is {kept} the bounds of {percent(MEAN_BOUND):.0f} % and "
        f"{percent(EACH_BOUND):.0f} %."
    )
