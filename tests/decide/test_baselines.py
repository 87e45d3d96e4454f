"""Packing is compared with what a team could do without it, at the same promise; BCA answers as published."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpupack import catalog
from gpupack.decide.advise import advise
from gpupack.decide.baselines import Contender, bca, gain, rows
from gpupack.decide.frontier import points
from gpupack.decide.question import Question
from gpupack.facts.llm import Dtype
from gpupack.facts.policy import Policy
from gpupack.facts.serving import Batching, Lengths, Sharing, Slo, Statistic
from gpupack.perf import calibration, sharing
from gpupack.units import Ratio, Seconds

ONE_B = Question(
    llm=catalog.llm("llama-3.2-1b"),
    dtype=Dtype.BFLOAT16,
    gpu=catalog.gpu("H100-80GB"),
    lengths=Lengths(input_mean=512.0, output_mean=256.0),
    slo=Slo(itl=Seconds(0.040), ttft=Seconds(0.5), statistic=Statistic.P95),
    batching=Batching(fixed=None, min_efficiency=Ratio(0.1)),
    sharing=Sharing.MPS,
    max_model_len=None,
    coefficients=calibration.coefficients(),
    policy=Policy(),
    cpu_cores=1,
    node_cores=None,
)


def published(model: str, lengths: Lengths) -> Question:
    """The papers' setting: the 64 GB H100 and vLLM 0.5.2."""
    return replace(
        ONE_B,
        llm=catalog.llm(model),
        dtype=Dtype.FLOAT16,
        gpu=catalog.gpu("H100-64GB"),
        lengths=lengths,
        coefficients=calibration.coefficients("0.5.2"),
        max_model_len=2048,
        chunked_prefill=False,
    )


def mean_itl(seconds: float) -> Slo:
    return Slo(itl=Seconds(seconds), ttft=None, statistic=Statistic.MEAN)


@pytest.mark.parametrize("slo", [Slo(itl=Seconds(0.040), ttft=None, statistic=Statistic.P95), ONE_B.slo])
def test_every_row_keeps_the_same_promise_and_packing_leads(slo: Slo) -> None:
    question = replace(ONE_B, slo=slo)
    table = rows(question, advise(question))
    assert [row.contender for row in table] == list(Contender)
    for row in table:
        assert row.prediction is not None
        itl, ttft = sharing.statistic_of(row.prediction.groups[0], slo.statistic)
        assert itl <= slo.itl * 1.001
        if slo.ttft is not None:
            assert ttft is not None
            assert ttft <= slo.ttft * 1.001
    best = gain(table, Contender.SWEPT)
    assert best is not None
    assert best > 0.3


def test_the_swept_engine_is_at_least_as_good_as_the_other_lone_engines() -> None:
    table = {row.contender: row for row in rows(ONE_B, advise(ONE_B))}
    done = {name: row.prediction.total_tokens_per_second for name, row in table.items() if row.prediction is not None}
    assert done[Contender.SWEPT] >= 0.99 * done[Contender.DEFAULTS]
    assert done[Contender.SWEPT] >= 0.99 * done[Contender.KNEE]
    plateau = table[Contender.SWEPT].plateau
    assert plateau is not None
    assert plateau >= done[Contender.SWEPT]


def test_freed_bytes_are_what_vllm_would_take_less_what_the_engines_have() -> None:
    advice = advise(ONE_B)
    table = {row.contender: row for row in rows(ONE_B, advice)}
    default = table[Contender.DEFAULTS].kv_bytes
    packed = table[Contender.PACKED]
    assert packed.kv_bytes == advice.replicas_per_gpu * advice.shape.kv_cache_memory_bytes
    assert packed.freed_bytes == default - packed.kv_bytes
    assert table[Contender.DEFAULTS].freed_bytes == 0


@pytest.mark.parametrize(
    ("model", "itl", "limit"),
    [
        # arXiv 2503.08311, repository vLLMBatchingMemoryGap, background runs: SLO = 2, 3, 4 x ITL at batch 32.
        ("opt-1.3b", 0.01502, 96),
        ("opt-1.3b", 0.02253, 128),
        ("opt-2.7b", 0.02217, 96),
        ("opt-2.7b", 0.03326, 128),
    ],
)
def test_bca_chooses_the_published_batch(model: str, itl: float, limit: int) -> None:
    sharegpt = Lengths(input_mean=110.6, output_mean=292.0 if model == "opt-1.3b" else 281.0, output_cv=0.93)
    assert bca(published(model, sharegpt), mean_itl(itl), requests=2000).max_num_seqs == limit


@pytest.mark.parametrize(
    ("model", "input_mean", "output_mean", "itl", "freed"),
    [
        # Same repository, advisor runs: constant lengths, SLO = 3 x ITL at batch 32, batch 128 chosen; share of 64 GB.
        ("opt-1.3b", 242.0, 390.0, 3 * 0.00658, 0.6323),
        ("opt-2.7b", 242.0, 390.0, 3 * 0.01033, 0.4505),
        ("llama-2-7b", 250.0, 391.0, 3 * 0.01714, 0.1051),
    ],
)
def test_bca_frees_the_published_share_of_memory(
    model: str, input_mean: float, output_mean: float, itl: float, freed: float
) -> None:
    alike = Lengths(input_mean=input_mean, output_mean=output_mean, input_cv=0.0, output_cv=0.0)
    question = replace(published(model, alike), chunked_prefill=True, max_num_batched_tokens=512)
    knee = bca(question, mean_itl(itl), requests=2000)
    assert knee.max_num_seqs == 128
    assert knee.freed_memory_fraction == pytest.approx(freed, abs=0.02)


def test_in_the_steady_state_bca_counts_the_kv_cache_that_its_batch_needs() -> None:
    knee = bca(ONE_B, mean_itl(0.010))
    contexts = 0.8 * knee.max_num_seqs * 512 * ONE_B.llm.kv_bytes_per_token(ONE_B.dtype)
    assert knee.kv_peak_bytes > contexts
    assert knee.kv_peak_bytes < 2.5 * contexts


def test_bca_reports_the_smallest_batch_when_no_batch_keeps_the_promise() -> None:
    knee = bca(ONE_B, mean_itl(1e-5))
    assert not knee.keeps_slo
    assert knee.max_num_seqs == 1


def test_no_pair_of_the_frontier_is_beaten_by_another_pair() -> None:
    found = points(ONE_B)
    best = [point for point in found if point.best]
    assert len(best) > 5
    for point in best:
        assert not any(
            other.itl <= point.itl
            and other.prediction.total_tokens_per_second > point.prediction.total_tokens_per_second
            for other in found
        )
    assert {point.keeps_slo for point in found} == {True, False}
