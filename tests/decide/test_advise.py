"""The advisor finds what an exhaustive search finds, keeps every promise, and says no with numbers."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import pytest

from gpupack import catalog
from gpupack.decide.advise import Advice, advise
from gpupack.decide.question import Question, memory_needed, resolve_max_model_len
from gpupack.decide.search import BATCHES, Search
from gpupack.facts.estimate import Source
from gpupack.facts.llm import Dtype
from gpupack.facts.policy import Policy
from gpupack.facts.serving import Batching, Lengths, Sharing, Slo, Statistic
from gpupack.perf import calibration, sharing
from gpupack.plan import Reason
from gpupack.units import GIB, Bytes, PerSecond, Ratio, Seconds

CHAT = Lengths(input_mean=512.0, output_mean=256.0)
SHAREGPT = Lengths(input_mean=111.0, output_mean=292.0)
PROMPTS = Lengths(input_mean=3000.0, output_mean=100.0, input_cv=0.5, output_cv=0.5)
ALIKE = Lengths(input_mean=242.0, output_mean=390.0, input_cv=0.0, output_cv=0.0)


def promise(itl: float | None = None, ttft: float | None = None, statistic: Statistic = Statistic.P95) -> Slo:
    return Slo(
        itl=None if itl is None else Seconds(itl), ttft=None if ttft is None else Seconds(ttft), statistic=statistic
    )


ONE_B = Question(
    llm=catalog.llm("llama-3.2-1b"),
    dtype=Dtype.BFLOAT16,
    gpu=catalog.gpu("H100-80GB"),
    lengths=CHAT,
    slo=promise(0.040),
    batching=Batching(fixed=None, min_efficiency=Ratio(0.1)),
    sharing=Sharing.MPS,
    max_model_len=None,
    coefficients=calibration.coefficients(),
    policy=Policy(),
    cpu_cores=1,
    node_cores=None,
)


def of(model: str, gpu: str, lengths: Lengths = CHAT, slo: Slo | None = None) -> Question:
    return replace(ONE_B, llm=catalog.llm(model), gpu=catalog.gpu(gpu), lengths=lengths, slo=slo)


def exhaustive(question: Question) -> tuple[int, int] | None:
    search = Search(question)
    pairs = [(batch, count) for batch in BATCHES for count in range(1, search.walk(batch) + 1)]
    return max(pairs, key=lambda pair: search.worth(*pair), default=None)


@pytest.mark.parametrize("model", ["opt-125m", "opt-1.3b", "llama-3.2-1b", "qwen3-4b", "llama-3.1-8b"])
@pytest.mark.parametrize("gpu", ["L4", "A100-40GB", "H100-80GB", "H200"])
def test_the_search_regrets_at_most_two_per_cent_against_looking_at_every_pair(model: str, gpu: str) -> None:
    for lengths, itl in product((CHAT, SHAREGPT, ALIKE), (None, 0.015, 0.040, 0.100)):
        question = of(model, gpu, lengths, None if itl is None else promise(itl))
        found, best = Search(question).best(), exhaustive(question)
        assert (found is None) == (best is None)
        if found is not None and best is not None:
            search = Search(question)
            assert search.worth(*found) >= 0.98 * search.worth(*best), (lengths, itl, found, best)


@pytest.mark.parametrize("ttft", [0.050, 0.100, 0.300, 1.000])
@pytest.mark.parametrize("gpu", ["L4", "H100-80GB"])
def test_the_search_regrets_at_most_two_per_cent_with_a_promised_first_token_too(gpu: str, ttft: float) -> None:
    question = of("llama-3.2-1b", gpu, slo=promise(0.040, ttft))
    search = Search(question)
    found = search.best()
    discount = 1.0 + question.policy.least_marginal_gain

    def worth(batch: int, count: int) -> float:
        rate, prediction = search.load(batch, count)
        return prediction.total_tokens_per_second / discount**count if rate > 0.0 else 0.0

    best = max(
        (worth(batch, count) for batch in (16, 32, 64, 96, 128, 192) for count in range(1, search.walk(batch) + 1)),
        default=None,
    )
    assert (found is None) == (best is None)
    if found is not None and best is not None:
        assert worth(*found) >= 0.98 * best


@pytest.mark.parametrize("model", ["opt-1.3b", "llama-3.2-1b", "qwen2.5-0.5b", "llama-3.1-8b"])
def test_a_tighter_promise_never_brings_more_tokens(model: str) -> None:
    done = [
        Search(of(model, "H100-80GB", CHAT, promise(itl))) for itl in (0.200, 0.100, 0.060, 0.040, 0.025, 0.015, 0.010)
    ]
    found = [(search, search.best()) for search in done]
    worths = [search.worth(*pair) for search, pair in found if pair is not None]
    assert len(worths) > 3
    # The search itself may miss two per cent.
    assert all(tighter <= looser * 1.02 for looser, tighter in pairwise(worths))


@pytest.mark.parametrize(
    "question",
    [
        of(model, gpu, lengths, slo)
        for model, gpu, lengths, slo in (
            ("opt-125m", "T4", SHAREGPT, promise(0.050)),
            ("opt-2.7b", "H100-64GB", SHAREGPT, promise(0.0222, statistic=Statistic.MEAN)),
            ("llama-3.2-1b", "H100-80GB", CHAT, None),
            ("llama-3.2-3b", "A100-80GB", CHAT, promise(0.050, 1.0)),
            ("qwen2.5-7b", "H200", CHAT, promise(0.080, statistic=Statistic.P99)),
        )
    ],
    ids=lambda question: f"{question.llm.aliases[0]} on {question.gpu.name}",
)
def test_what_is_advised_keeps_its_promise_with_every_engine_full_and_fits_in_memory(question: Question) -> None:
    advice = advise(question)
    assert advice.fits
    assert advice.unreachable is None
    full = Search(question).full(advice.shape.max_num_seqs, advice.replicas_per_gpu)
    itl, _ = sharing.statistic_of(full.groups[0], advice.slo.statistic)
    assert advice.slo.itl is not None
    assert itl <= advice.slo.itl
    if advice.slo.ttft is not None:
        assert sharing.keeps(advice.prediction.groups[0], advice.slo)
    needed = memory_needed(
        advice.memory.total, advice.replicas_per_gpu, question.gpu, Bytes(question.policy.gpu_reserve)
    )
    assert needed <= question.gpu.memory_bytes
    assert advice.replica_rate > 0.0
    assert advice.stop.margin < 0.0


SMALL = of("qwen2.5-0.5b", "H100-80GB", CHAT, promise(0.060))


def test_a_small_model_on_a_large_gpu_is_packed_until_bandwidth_saturates() -> None:
    advice = advise(SMALL)
    assert advice.replicas_per_gpu >= 3
    assert advice.stop.reason is Reason.BANDWIDTH_CEILING
    assert advice.stop.observed.value >= 0.90


def test_each_replica_up_to_the_last_one_pays_and_the_next_does_not() -> None:
    advice, search = advise(SMALL), Search(SMALL)
    batch, count = advice.shape.max_num_seqs, advice.replicas_per_gpu
    for replicas in range(2, count + 1):
        assert search.capacity(batch, replicas) >= 1.05 * search.capacity(batch, replicas - 1)
        assert search.full(batch, replicas - 1).saturation < 0.90
    assert next(search.objections(batch, count + 1), None) is not None


def test_a_prompt_heavy_model_is_not_packed_and_the_answer_says_how_little_two_would_bring() -> None:
    advice = advise(of("llama-3.1-8b", "H100-80GB", PROMPTS, promise(0.100)))
    assert advice.replicas_per_gpu == 1
    assert advice.stop.margin < 0.0
    assert {each.replicas for each in advice.rejected} >= {2}


LONG = Lengths(input_mean=6000.0, output_mean=1000.0)
"""Prompts of three short steps; the first token comes after 71 ms at the best, with long ones after 52."""


def prompts(ratio: float) -> Lengths:
    """So many times as long as their answers."""
    return Lengths(input_mean=100.0 * ratio, output_mean=100.0)


@pytest.mark.parametrize(
    ("question", "budget"),
    [
        pytest.param(of("qwen2.5-0.5b", "L4", prompts(30.0), promise(0.300)), 8192, id="they do more"),
        pytest.param(of("qwen2.5-0.5b", "L4", prompts(30.0), promise(0.100)), 2048, id="they do less"),
        pytest.param(of("qwen2.5-0.5b", "H100-80GB", prompts(8.0), promise(0.100)), 8192, id="prompts are most of it"),
        pytest.param(of("qwen2.5-0.5b", "H100-80GB", prompts(7.9), promise(0.100)), 2048, id="they are not"),
        pytest.param(
            of("qwen2.5-0.5b", "H100-80GB", prompts(20.0), promise(0.030)), 8192, id="one engine instead of three"
        ),
        pytest.param(
            of("llama-3.2-1b", "H100-80GB", prompts(30.0), promise(0.030)), 2048, id="one for two that do a lot more"
        ),
        pytest.param(of("llama-3.1-8b", "L4", prompts(20.0), promise(0.030)), 2048, id="no promise is kept either way"),
        pytest.param(of("qwen2.5-0.5b", "H100-80GB", LONG, promise(0.050, 0.060)), 8192, id="first tokens are in time"),
        pytest.param(of("qwen2.5-0.5b", "H100-80GB", LONG, promise(0.050, 0.030)), 8192, id="they are less late"),
        pytest.param(
            replace(of("qwen2.5-0.5b", "H100-80GB", LONG, promise(0.015, 0.030)),
                    batching=Batching(fixed=128, min_efficiency=Ratio(0.1))), 2048,
            id="they are less late, but gaps become too long"),
        pytest.param(
            of("llama-3.1-8b", "L4", Lengths(input_mean=4000.0, output_mean=20.0), promise(0.100)), 8192,
            id="they alone keep the promise",
        ),
        pytest.param(
            replace(of("llama-3.1-8b", "L4", prompts(20.0), promise(0.100)),
                    batching=Batching(fixed=9, min_efficiency=Ratio(0.1))), 2048, id="they do not fit"),
        pytest.param(
            replace(of("qwen2.5-0.5b", "L4", prompts(30.0), promise(0.100)),
                    batching=Batching(fixed=64, min_efficiency=Ratio(0.1))), 2048, id="they alone break the promise"),
        pytest.param(of("llama-2-13b", "L4", prompts(30.0)), 2048, id="nothing fits"),
        pytest.param(
            replace(of("qwen2.5-0.5b", "L4", prompts(30.0), promise(0.300)), chunked_prefill=False), 2048,
            id="prompts are not cut at all",
        ),
        pytest.param(
            replace(of("qwen2.5-0.5b", "H100-80GB", prompts(30.0), promise(0.030)), max_num_batched_tokens=16384),
            16384, id="steps are longer already",
        ),
        pytest.param(
            replace(of("qwen2.5-0.5b", "H100-80GB", prompts(30.0), promise(0.300)),
                    gpu=replace(catalog.gpu("H200"), memory_bytes=Bytes(180 * GIB))), 16384, id="a GPU of 180 GiB"),
        *(
            pytest.param(of(model, gpu, prompts(30.0)), 2048, id=f"no promise was made: {model} on {gpu}")
            for model in ("qwen2.5-0.5b", "llama-3.2-1b") for gpu in ("L4", "H100-80GB")
        ),
    ],
)  # fmt: skip
def test_longer_steps_are_taken_for_prompts_where_they_do_more_within_the_same_promise(
    question: Question, budget: int
) -> None:
    advice = advise(question)
    assert advice.shape.max_num_batched_tokens == budget
    assert advice.slo == Search(question).slo


def test_a_model_whose_kv_cache_fills_the_gpu_is_not_packed_for_memory() -> None:
    advice = advise(of("llama-2-13b", "H100-64GB", CHAT, promise(0.100)))
    assert advice.replicas_per_gpu == 1
    assert advice.stop.reason is Reason.MEMORY
    assert advice.stop.observed.value > advice.stop.limit.value


def test_a_promise_out_of_reach_gets_the_batch_of_lowest_latency_and_the_best_value() -> None:
    advice = advise(of("llama-3.1-8b", "L4", CHAT, promise(0.020)))
    assert advice.fits
    assert advice.replicas_per_gpu == 1
    assert advice.unreachable is not None
    assert advice.unreachable.value > 0.020
    assert advice.stop.reason is Reason.LATENCY_SLO
    lone = Search(of("llama-3.1-8b", "L4", CHAT, promise(0.020)))
    for batch in (1, 2, 4, 8, 16):
        assert lone.full(batch, 1).groups[0].itl_p95 >= advice.unreachable.value


def test_a_first_token_that_even_an_idle_engine_gives_too_late_is_out_of_reach() -> None:
    advice = advise(of("llama-3.1-8b", "L4", PROMPTS, promise(1.0, 0.050)))
    assert advice.unreachable is not None
    assert advice.unreachable.value > 0.050
    assert advice.stop.detail == "time to first token"


@pytest.mark.parametrize("itl", [0.060, 0.100, 0.300])
def test_a_first_token_out_of_reach_is_no_reason_to_break_the_other_promise_as_well(itl: float) -> None:
    """338 ms at the best; gaps of 56 ms and more."""
    advice = advise(of("llama-3.1-8b", "L4", CHAT, promise(itl, 0.050)))
    assert advice.prediction.groups[0].itl_p95 <= itl
    assert advice.stop.detail == "time to first token"
    assert advice.unreachable is not None
    assert advice.unreachable.value == pytest.approx(0.338, abs=0.001)
    assert (advice.shape.max_num_seqs, advice.replicas_per_gpu) == (1, 1)


def test_where_both_promises_are_out_of_reach_the_gap_is_as_short_as_can_be() -> None:
    advice = advise(of("llama-3.1-8b", "L4", CHAT, promise(0.020, 0.050)))
    assert (advice.shape.max_num_seqs, advice.stop.detail) == (1, "inter-token latency")


def test_a_shape_of_last_resort_says_what_it_can_do_all_the_same_and_what_else_was_thought_of() -> None:
    """At full batches, of one engine: where not even an idle one keeps the promise, no load does."""
    for slo in (promise(0.020), promise(1.0, 0.050)):
        question = of("llama-3.1-8b", "L4", CHAT, slo)
        advice = advise(question)
        assert (advice.replica_rate, advice.prediction) == Search(question).full_load(1, 1)
        assert advice.replica_rate > 0.0
        assert {each.replicas for each in advice.rejected} == {1}
        assert len(advice.rejected) > 5
        assert {each.verdict.reason for each in advice.rejected} == {Reason.LATENCY_SLO}


def test_a_fixed_batch_that_keeps_no_promise_or_does_not_fit_is_the_answer_all_the_same() -> None:
    for model, batch, slo, fits in (
        ("llama-3.1-8b", 16, promise(0.020), True),
        ("llama-3.1-8b", 1024, promise(1.0), False),
        ("llama-2-13b", 16, None, False),
    ):
        question = replace(of(model, "L4", CHAT, slo), batching=Batching(fixed=batch, min_efficiency=Ratio(0.1)))
        advice = advise(question)
        assert (advice.fits, advice.shape.max_num_seqs, advice.replicas_per_gpu) == (fits, batch, 1)
        assert [(each.max_num_seqs, each.replicas) for each in advice.rejected] == [(batch, 1)]
        assert (advice.replica_rate > 0.0) == fits


def test_what_does_not_fit_at_all_is_told_of_its_smallest_shape() -> None:
    question = of("llama-2-13b", "L4")
    advice = advise(question)
    assert (advice.shape.max_num_seqs, advice.replicas_per_gpu) == (1, 1)
    assert advice.prediction == Search(question).full(1, 1)
    assert [(each.max_num_seqs, each.replicas) for each in advice.rejected] == [(1, 1)]


def test_the_rate_of_a_replica_is_its_part_of_what_the_gpu_does() -> None:
    advice = advise(replace(SMALL, batching=Batching(fixed=64, min_efficiency=Ratio(0.1))))
    assert advice.replicas_per_gpu > 1
    requests = advice.prediction.total_tokens_per_second / (CHAT.input_mean + CHAT.output_mean)
    assert advice.replicas_per_gpu * advice.replica_rate == pytest.approx(requests)


def test_what_does_not_fit_is_a_verdict_with_its_margin() -> None:
    advice = advise(of("llama-2-13b", "L4"))
    assert not advice.fits
    assert advice.stop.reason is Reason.MEMORY
    assert -advice.stop.margin > 5e9
    assert advice.replica_rate == 0.0


def test_a_fixed_batch_is_kept_and_only_the_count_is_sought() -> None:
    advice = advise(replace(ONE_B, batching=Batching(fixed=77, min_efficiency=Ratio(0.1))))
    assert advice.shape.max_num_seqs == 77
    assert advice.replicas_per_gpu == Search(ONE_B).walk(77)


def test_an_exclusive_gpu_holds_one_engine_at_the_best_batch_of_one() -> None:
    advice = advise(replace(ONE_B, sharing=Sharing.EXCLUSIVE))
    assert advice.replicas_per_gpu == 1
    assert advice.stop.reason is Reason.MAX_REPLICAS
    assert advice.stop.detail == "exclusive: one engine a GPU"


def test_an_upper_bound_on_replicas_is_a_stop_reason_of_its_own() -> None:
    advice = advise(replace(SMALL, max_replicas=2))
    assert advice.replicas_per_gpu == 2
    assert advice.stop.reason is Reason.MAX_REPLICAS


def test_cpu_cores_of_the_node_bound_the_count() -> None:
    advice = advise(replace(SMALL, cpu_cores=4, node_cores=9.0))
    assert advice.replicas_per_gpu == 2
    assert advice.stop.reason is Reason.HOST_CPU
    assert advice.stop.margin == -3.0


def test_without_a_promise_it_is_twice_a_lone_engines_p95_at_batch_32_and_marked_as_assumed() -> None:
    question = replace(ONE_B, slo=None)
    advice = advise(question)
    assert advice.slo.assumed
    assert advice.slo.statistic is Statistic.P95
    assert advice.slo.itl == pytest.approx(2.0 * Search(question).full(32, 1).groups[0].itl_p95)
    assert advice.slo.ttft is None


def test_the_load_within_a_promised_first_token_is_below_capacity_and_nearly_the_highest() -> None:
    question = replace(ONE_B, slo=promise(0.040, 0.100))
    search = Search(question)
    rate, prediction = search.load(128, 3)
    assert 0.0 < rate < search.full_load(128, 3)[0]
    assert sharing.keeps(prediction.groups[0], search.slo)
    assert not sharing.keeps(search.predict(128, 3, PerSecond(rate * 1.02)).groups[0], search.slo)


def test_the_start_of_the_last_replica_needs_its_whole_rounded_share_free() -> None:
    gpu = catalog.gpu("H200")
    total = Bytes(gpu.memory_bytes * 301 // 1000)
    # Three of 30.1 % fit with a reserve of 1 GiB, but vLLM wants 31 % free when the third one starts.
    assert memory_needed(total, 3, gpu, Bytes(1)) > 3 * total + 1
    assert memory_needed(total, 3, gpu, Bytes(1)) >= 2 * total + gpu.memory_bytes * 31 // 100


def test_max_model_len_is_the_smaller_of_the_models_and_twice_the_99th_percentile() -> None:
    opt, llama = catalog.llm("opt-1.3b"), catalog.llm("llama-3.2-1b")
    assert resolve_max_model_len(llama, ALIKE, None) == 1264
    assert resolve_max_model_len(opt, CHAT, None) == 2048
    assert resolve_max_model_len(llama, CHAT, None) < llama.max_model_len
    assert resolve_max_model_len(llama, CHAT, 9000) == 9000


def test_equal_questions_get_the_same_answer() -> None:
    assert advise(ONE_B) is advise(replace(ONE_B))
    assert isinstance(advise(ONE_B), Advice)
    assert advise(ONE_B).stop.observed.source is not Source.MEASURED
