"""Where packing does not pay the answer is one engine, with the numbers, and the twin agrees."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpupack import catalog
from gpupack.decide import explain
from gpupack.decide.advise import advise
from gpupack.decide.candidates import Candidates
from gpupack.decide.question import Question
from gpupack.facts.llm import Dtype
from gpupack.facts.policy import Policy
from gpupack.facts.serving import Batching, Lengths, Sharing, Slo, Statistic
from gpupack.perf import calibration
from gpupack.plan import Reason
from gpupack.rehearse import rehearse_steady
from gpupack.units import Ratio, Seconds

CHAT = Lengths(input_mean=512.0, output_mean=256.0)
ANSWERS = Lengths(input_mean=128.0, output_mean=512.0)
ONE_TOKEN = Lengths(input_mean=3000.0, output_mean=1.0, input_cv=0.5, output_cv=0.0)


def question(model: str, gpu: str, lengths: Lengths, itl: float | None) -> Question:
    return Question(
        llm=catalog.llm(model),
        dtype=Dtype.BFLOAT16,
        gpu=catalog.gpu(gpu),
        lengths=lengths,
        slo=Slo(itl=None if itl is None else Seconds(itl), ttft=None, statistic=Statistic.P95),
        batching=Batching(fixed=None, min_efficiency=Ratio(0.1)),
        sharing=Sharing.MPS,
        max_model_len=None,
        coefficients=calibration.coefficients(),
        policy=Policy(),
        cpu_cores=1,
        node_cores=None,
    )


COMPUTING = question("llama-3.1-8b", "H100-80GB", ONE_TOKEN, None)
STARVED = question("llama-2-13b", "H100-64GB", CHAT, 0.1)
# A batch that somebody tuned: two of these would fit and keep the promise, but one holds the GPU nearly all the time.
SATURATED = replace(
    question("llama-3.2-3b", "L4", ANSWERS, 0.3), batching=Batching(fixed=32, min_efficiency=Ratio(0.1))
)


@pytest.mark.parametrize(
    ("asked", "reason", "said"),
    [
        (COMPUTING, Reason.BANDWIDTH_CEILING, "%"),
        (STARVED, Reason.MEMORY, "GiB"),
        (SATURATED, Reason.BANDWIDTH_CEILING, "%"),
    ],
)
def test_it_does_not_pack_and_says_by_what_margin(asked: Question, reason: Reason, said: str) -> None:
    advice = advise(asked)
    assert advice.replicas_per_gpu == 1
    assert advice.stop.reason is reason
    assert advice.stop.margin < 0.0
    assert said in explain.verdict(advice.stop)


@pytest.mark.parametrize("asked", [COMPUTING, SATURATED])
def test_two_engines_would_bring_less_than_pays_in_the_twin(asked: Question) -> None:
    shape = advise(asked).shape
    candidates = Candidates(replace(asked, max_num_batched_tokens=shape.max_num_batched_tokens))
    half = max(1, shape.max_num_seqs // 2)
    one, two = (
        rehearse_steady(asked.gpu, (candidates.group(batch, count, None),), Sharing.MPS, seed=1, window_requests=300)[
            0
        ].total_tokens_per_second
        for batch, count in ((shape.max_num_seqs, 1), (half, 2))
    )
    assert two < 1.05 * one


def test_prompts_alone_get_long_steps_rather_than_more_engines() -> None:
    small = question("qwen2.5-1.5b", "H100-80GB", ONE_TOKEN, None)
    advice = advise(small)
    assert advice.shape.max_num_batched_tokens > small.max_num_batched_tokens
    assert advice.replicas_per_gpu == 1
    assert advise(replace(small, lengths=CHAT)).shape.max_num_batched_tokens == small.max_num_batched_tokens
