"""Act 5: where the answer is no. Models that are not packed, with the numbers, and a sharing that would lose.

Each refusal is the advisor's; beside it stands what a second engine would have brought in the twin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from gpupack import catalog
from gpupack.decide import explain
from gpupack.decide.advise import Advice, advise
from gpupack.decide.question import Question
from gpupack.demo.replay import Replayed
from gpupack.demo.table import stairs
from gpupack.facts.llm import Dtype
from gpupack.facts.policy import Policy
from gpupack.facts.serving import Batching, Lengths, Sharing, Slo, Statistic
from gpupack.perf import calibration
from gpupack.units import Ratio, Seconds, percent


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """`second_gain` is what a second engine would add to the tokens a second in the twin; None where it has no room."""

    title: str
    question: Question
    advice: Advice
    second_gain: float | None


def question(model: str, gpu: str, lengths: Lengths, *, itl: float, ttft: float, efficiency: float = 0.1) -> Question:
    """A model on an empty GPU; the promise in seconds at the 95th percentile."""
    return Question(
        llm=catalog.llm(model),
        dtype=Dtype.BFLOAT16,
        gpu=catalog.gpu(gpu),
        lengths=lengths,
        slo=Slo(itl=Seconds(itl), ttft=Seconds(ttft), statistic=Statistic.P95),
        batching=Batching(fixed=None, min_efficiency=Ratio(efficiency)),
        sharing=Sharing.MPS,
        max_model_len=None,
        coefficients=calibration.coefficients(),
        policy=Policy(),
        cpu_cores=2,
        node_cores=None,
    )


CASES = (
    (
        "long prompts, short answers: bound by computing, not by memory",
        question("llama-3.1-8b", "H100-80GB", Lengths(input_mean=6000, output_mean=16), itl=0.5, ttft=8.0),
    ),
    (
        "a large model whose KV cache fills the GPU",
        question("llama-2-13b", "H100-64GB", Lengths(input_mean=512, output_mean=256), itl=0.1, ttft=4.0),
    ),
)


def refuse() -> list[Refusal]:
    return [_refusal(title, asked) for title, asked in CASES]


def _refusal(title: str, asked: Question) -> Refusal:
    advice = advise(asked)
    room = 2 * advice.memory.total + asked.policy.gpu_reserve <= asked.gpu.memory_bytes
    gain = None
    if room:
        one, two = stairs(asked, advice, 2)
        gain = two.total_tokens_per_second / one.total_tokens_per_second - 1.0
    return Refusal(title=title, question=asked, advice=advice, second_gain=gain)


def refused(refusals: Sequence[Refusal]) -> bool:
    return all(each.advice.replicas_per_gpu <= 1 for each in refusals)


def table(refusals: Sequence[Refusal]) -> Table:
    drawn = Table(title="The answer no")
    for heading in ("case", "model on GPU", "in / out", "engines", "why not one more", "a second in the twin"):
        drawn.add_column(heading, overflow="fold")
    for each in refusals:
        asked = each.question
        drawn.add_row(
            each.title,
            f"{asked.llm.name} on {asked.gpu.name}",
            f"{asked.lengths.input_mean:.0f} / {asked.lengths.output_mean:.0f}",
            f"{each.advice.replicas_per_gpu} of {each.advice.shape.max_num_seqs} sequences",
            explain.verdict(each.advice.stop),
            "no room for it" if each.second_gain is None else f"{percent(each.second_gain):+.1f} % tokens/s",
        )
    return drawn


def sliced(replayed: Sequence[Replayed]) -> str:
    """The same packing by plain time-slicing, from the replay: published, twin and closed form."""
    found = {each.case.sharing: each for each in replayed if (each.case.replicas, each.case.max_num_seqs) == (4, 96)}
    mps, slices = found[Sharing.MPS], found[Sharing.TIME_SLICING]
    return (
        "The same packing by plain time-slicing loses: OPT-1.3B, 4 engines of 96, "
        f"{slices.case.tokens_per_second:,.0f} tok/s against {mps.case.tokens_per_second:,.0f} with MPS as published; "
        f"{slices.twin_tokens:,.0f} against {mps.twin_tokens:,.0f} in the twin; "
        f"{slices.closed_tokens:,.0f} against {mps.closed_tokens:,.0f} by the closed form."
    )
