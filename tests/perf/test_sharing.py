"""Engines that share a GPU: what must hold for every mix, and how the steady state moves."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpupack import catalog
from gpupack.errors import Invalid
from gpupack.facts.gpu import GpuKind
from gpupack.facts.serving import Lengths, Sharing, Slo, Statistic
from gpupack.perf.prediction import EngineGroup, Router
from gpupack.perf.sharing import GPU_RESERVE, keeps, max_rate_within, predict
from gpupack.units import BytesPerSecond, PerSecond, Seconds

from .engines import CHAT, H100, gpus, group, groups

SHARED = st.sampled_from((Sharing.MPS, Sharing.TIME_SLICING))


EDGE = group(
    "qwen2.5-0.5b", batch=388, replicas=2, rate=110.0, batched_tokens=512, version="0.5.2",
    lengths=Lengths(input_mean=8.0, output_mean=242.0, input_cv=0.0, output_cv=0.5),
)  # fmt: skip
"""Its full engines would have time to spare, and by the visits of its half empty ones they would fill."""


@settings(max_examples=300, deadline=None)
@given(gpu=gpus, mix=st.lists(groups, min_size=1, max_size=3), sharing=SHARED)
@example(gpu=H100, mix=[EDGE], sharing=Sharing.TIME_SLICING)
def test_every_prediction_is_possible(gpu: GpuKind, mix: list[EngineGroup], sharing: Sharing) -> None:
    answer = predict(gpu, tuple(mix), sharing)
    assert 0 <= answer.dram_active <= answer.dram_active_max <= 1
    assert 0 <= answer.saturation <= 1
    if answer.fits:
        assert answer.memory_bytes + GPU_RESERVE <= gpu.memory_bytes
    for asked, got in zip(mix, answer.groups, strict=True):
        assert 0 < got.itl_mean <= got.itl_p95 <= got.itl_p99
        assert 0 < got.kv_peak_fraction <= 1 or got.running_mean < 1e-3
        assert got.running_mean <= asked.shape.max_num_seqs * (1 + 1e-9)
        assert (got.ttft_mean is None) == (got.ttft_p99 is None)
        if got.ttft_mean is not None and got.ttft_p95 is not None and got.ttft_p99 is not None:
            assert got.ttft_mean > 0
            assert got.ttft_p95 <= got.ttft_p99
            assert got.utilization is not None
            assert got.utilization < 1
        if asked.request_rate is not None:
            arriving = max(asked.request_rate, 1e-6) * asked.lengths.output_mean
            assert got.output_tokens_per_second <= arriving * (1 + 1e-6)
        share = got.output_tokens_per_second / got.total_tokens_per_second
        assert share == pytest.approx(
            asked.lengths.output_mean / (asked.lengths.output_mean + asked.lengths.input_mean)
        )


PROMPTS = Lengths(input_mean=1239.0, output_mean=4.0)


@settings(max_examples=100, deadline=None)
@given(one=groups, sharing=SHARED)
@example(one=group(batch=203, replicas=4, lengths=PROMPTS, version="0.8.5"), sharing=Sharing.MPS)
def test_more_bandwidth_never_lengthens_the_gap_between_tokens(one: EngineGroup, sharing: Sharing) -> None:
    # But for what is left of the corner's rounding: where prompts fill the SMs all the time, less of that time counts
    # as reading, in which engines disturb each other less. 12,000 random engines lost 0.31 % at most.
    faster = replace(H100, dram_bytes_per_second=BytesPerSecond(H100.dram_bytes_per_second * 1.5))
    here, there = (predict(gpu, (one,), sharing).groups[0] for gpu in (H100, faster))
    assert there.itl_mean <= here.itl_mean * 1.004
    assert there.total_tokens_per_second >= here.total_tokens_per_second * 0.996


@settings(max_examples=100, deadline=None)
@given(one=groups, other=groups, low=st.floats(0.1, 100), more=st.floats(1.01, 3))
def test_a_higher_rate_never_shortens_anybodys_gap(
    one: EngineGroup, other: EngineGroup, low: float, more: float
) -> None:
    slow, fast = (
        predict(H100, (replace(one, request_rate=PerSecond(rate)), other), Sharing.MPS) for rate in (low, low * more)
    )
    assert fast.groups[0].itl_mean >= slow.groups[0].itl_mean * 0.99


@pytest.mark.parametrize("sharing", [Sharing.MPS, Sharing.TIME_SLICING])
@pytest.mark.parametrize(("batch", "rate"), [(32, None), (96, None), (96, 20.0), (256, 60.0)])
def test_like_engines_in_one_group_are_the_same_engines_in_several(
    sharing: Sharing, batch: int, rate: float | None
) -> None:
    several = tuple(group(batch=batch, rate=rate, router=Router.RANDOM_CONNECTION) for _ in range(3))
    together = group(batch=batch, replicas=3, rate=None if rate is None else 3 * rate, router=Router.RANDOM_CONNECTION)
    apart, joined = predict(H100, several, sharing), predict(H100, (together,), sharing)
    assert apart.total_tokens_per_second == pytest.approx(joined.total_tokens_per_second, rel=1e-6)
    assert apart.saturation == pytest.approx(joined.saturation, rel=1e-6)
    assert apart.memory_bytes == joined.memory_bytes
    for each in apart.groups:
        assert each.itl_mean == pytest.approx(joined.groups[0].itl_mean, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(one=groups, other=groups)
def test_the_order_of_groups_does_not_matter(one: EngineGroup, other: EngineGroup) -> None:
    here, there = predict(H100, (one, other), Sharing.MPS), predict(H100, (other, one), Sharing.MPS)
    assert here.total_tokens_per_second == pytest.approx(there.total_tokens_per_second, rel=1e-4)
    assert here.groups[0].itl_mean == pytest.approx(there.groups[1].itl_mean, rel=1e-4)


def test_each_further_replica_brings_less_until_the_gpu_is_held_all_the_time() -> None:
    answers = [predict(H100, (group(replicas=count),), Sharing.MPS) for count in range(1, 7)]
    rates = [answer.total_tokens_per_second for answer in answers]
    gains = [after - before for before, after in pairwise(rates)]
    assert all(less < more for more, less in pairwise(gains))
    saturations = [answer.saturation for answer in answers]
    assert saturations == sorted(saturations)
    assert saturations[0] < 0.9 < saturations[-1]


def test_time_slicing_is_never_better_than_mps() -> None:
    for count in (2, 3, 4):
        sliced = predict(H100, (group(replicas=count),), Sharing.TIME_SLICING)
        assert (
            sliced.total_tokens_per_second
            < predict(H100, (group(replicas=count),), Sharing.MPS).total_tokens_per_second
        )


def test_several_engines_cannot_have_one_gpu_exclusively() -> None:
    with pytest.raises(Invalid, match="exclusively"):
        predict(H100, (group(replicas=2),), Sharing.EXCLUSIVE)


def test_a_group_offered_more_than_it_can_serve_is_full_and_has_no_time_to_first_token() -> None:
    full = predict(H100, (group(),), Sharing.EXCLUSIVE).groups[0]
    over = predict(H100, (group(rate=10_000),), Sharing.EXCLUSIVE).groups[0]
    assert over.ttft_mean is None
    assert over.utilization is not None
    assert over.utilization > 1
    assert over.total_tokens_per_second == pytest.approx(full.total_tokens_per_second)


def test_a_shared_queue_waits_less_than_chance_by_connection() -> None:
    least, random = (
        predict(H100, (group(replicas=3, batch=32, rate=55, router=router),), Sharing.MPS).groups[0]
        for router in (Router.LEAST_LOADED, Router.RANDOM_CONNECTION)
    )
    assert least.ttft_mean is not None
    assert random.ttft_mean is not None
    assert least.ttft_mean < random.ttft_mean


def test_prompts_beyond_the_token_budget_lengthen_the_wait_for_the_first_token() -> None:
    short, long = (
        predict(
            H100, (group(rate=1, lengths=Lengths(input_mean=tokens, output_mean=64), max_model_len=16384),), Sharing.MPS
        )
        for tokens in (256, 8192)
    )
    assert short.groups[0].ttft_mean is not None
    assert long.groups[0].ttft_mean is not None
    assert long.groups[0].ttft_mean > 8 * short.groups[0].ttft_mean


def test_kv_cache_that_ends_before_the_batch_limit_is_said() -> None:
    starved = predict(H100, (group(batch=256, kv_tokens=20_000),), Sharing.EXCLUSIVE).groups[0]
    assert starved.kv_starved
    assert starved.running_mean < 64
    assert not predict(H100, (group(batch=256),), Sharing.EXCLUSIVE).groups[0].kv_starved


def test_many_unlike_engines_are_answered_nearly_and_believed_less() -> None:
    eleven = tuple(group(batch=64) if each % 2 else group("qwen2.5-0.5b", batch=64) for each in range(12))
    unlike = tuple(group(batch=60 + each) for each in range(12))
    exact, near = predict(H100, eleven, Sharing.MPS), predict(H100, unlike, Sharing.MPS)
    alike = predict(H100, (group(batch=66, replicas=12),), Sharing.MPS)
    assert near.error > exact.error
    assert near.total_tokens_per_second == pytest.approx(alike.total_tokens_per_second, rel=0.05)


@pytest.mark.parametrize("statistic", list(Statistic))
def test_the_highest_rate_within_an_slo_keeps_it_and_a_little_more_breaks_it(statistic: Statistic) -> None:
    slo = Slo(itl=Seconds(0.012), ttft=Seconds(0.3), statistic=statistic)
    asked = group(replicas=2, batch=256)
    rate = max_rate_within(H100, (asked,), 0, (slo,), Sharing.MPS)
    kept, broken = (
        predict(H100, (replace(asked, request_rate=PerSecond(rate * share)),), Sharing.MPS).groups[0]
        for share in (0.999, 1.01)
    )
    assert rate > 1
    assert keeps(kept, slo)
    assert not keeps(broken, slo)


def test_an_slo_that_nothing_meets_leaves_no_rate() -> None:
    slo = Slo(itl=Seconds(0.0005), ttft=None, statistic=Statistic.P95)
    assert max_rate_within(H100, (group(),), 0, (slo,), Sharing.MPS) == 0


def test_a_neighbours_slo_limits_the_rate_of_a_group() -> None:
    neighbour, asked = group("qwen3-4b", batch=32, rate=5), group(batch=256)
    slo = Slo(itl=Seconds(0.0085), ttft=None, statistic=Statistic.P95)
    free = max_rate_within(H100, (asked, neighbour), 0, (None, None), Sharing.MPS)
    held = max_rate_within(H100, (asked, neighbour), 0, (None, slo), Sharing.MPS)
    assert 0 < held < free


def test_nearly_no_requests_are_a_steady_state_too() -> None:
    idle = predict(H100, (group(rate=0),), Sharing.EXCLUSIVE)
    assert idle.saturation < 1e-6
    assert idle.groups[0].itl_mean == pytest.approx(
        predict(H100, (group(rate=0.01),), Sharing.MPS).groups[0].itl_mean, rel=0.01
    )


def test_the_lengths_matter_by_their_spread() -> None:
    alike, spread = (
        predict(H100, (group(lengths=replace(CHAT, output_cv=cv)),), Sharing.EXCLUSIVE) for cv in (0.0, 1.2)
    )
    assert spread.total_tokens_per_second < alike.total_tokens_per_second


def test_coefficients_of_another_gpu_are_believed_less() -> None:
    home, away = (predict(catalog.gpu(name), (group(version="0.5.2"),), Sharing.MPS) for name in ("H100-64GB", "L4"))
    assert home.error == group(version="0.5.2").coefficients.error
    assert away.error >= 0.15


def test_engines_on_slices_meet_nobody() -> None:
    kind = catalog.mig_profile(catalog.gpu("H100-80GB"), "2g.20gb").kind
    busy = group(batch=64, replicas=1, lengths=CHAT, rate=20.0)
    alone = predict(kind, (busy,), Sharing.EXCLUSIVE)
    beside = predict(kind, (busy, replace(busy, request_rate=None)), Sharing.MIG)
    assert beside.groups[0] == alone.groups[0]
    full = predict(kind, (replace(busy, request_rate=None),), Sharing.EXCLUSIVE)
    assert beside.dram_active == pytest.approx((alone.dram_active + full.dram_active) / 2)
    assert beside.fits == (alone.fits and full.fits)
