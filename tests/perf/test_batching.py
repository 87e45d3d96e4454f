"""Whole runs: what papers publish, with intake and tail."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings

from gpupack.facts.serving import Lengths, Sharing
from gpupack.perf.batching import predict_run
from gpupack.perf.prediction import EngineGroup
from gpupack.perf.sharing import predict

from .engines import CHAT, H100, group, groups

ALIKE = Lengths(input_mean=242.0, output_mean=390.0, input_cv=0.0, output_cv=0.0)


@settings(max_examples=200, deadline=None)
@given(asked=groups)
def test_every_run_is_possible_and_no_faster_than_the_steady_state(asked: EngineGroup) -> None:
    full = replace(asked, request_rate=None)
    run, steady = predict_run(H100, (full,), Sharing.MPS, 2000), predict(H100, (full,), Sharing.MPS)
    got = run.groups[0]
    assert got.ttft_mean is not None
    assert got.ttft_p95 is not None
    assert got.ttft_p99 is not None
    assert got.ttft_mean >= 0
    assert got.ttft_p95 <= got.ttft_p99
    assert 0 < got.itl_mean <= got.itl_p95 <= got.itl_p99
    assert got.total_tokens_per_second > 0
    assert run.saturation == steady.saturation
    assert run.memory_bytes == steady.memory_bytes


def test_a_long_run_is_the_steady_state() -> None:
    run, steady = (
        predict_run(H100, (group(),), Sharing.MPS, 10_000_000),
        predict(H100, (group(),), Sharing.MPS),
    )
    intake = group().coefficients.ingest_per_request * steady.output_tokens_per_second / CHAT.output_mean
    assert run.total_tokens_per_second == pytest.approx(steady.total_tokens_per_second / (1 + intake), rel=1e-3)
    assert run.groups[0].itl_mean == pytest.approx(steady.groups[0].itl_mean, rel=1e-3)


def test_a_short_run_is_mostly_tail() -> None:
    short, long = (predict_run(H100, (group(),), Sharing.MPS, requests) for requests in (200, 20_000))
    assert short.total_tokens_per_second < 0.8 * long.total_tokens_per_second
    assert short.groups[0].itl_mean < long.groups[0].itl_mean


def test_two_groups_of_like_engines_run_as_one_of_both() -> None:
    apart = predict_run(H100, (group(), group()), Sharing.MPS, 2000)
    together = predict_run(H100, (group(replicas=2),), Sharing.MPS, 2000)
    assert apart.total_tokens_per_second == pytest.approx(together.total_tokens_per_second, rel=1e-6)


def test_requests_that_arrive_at_a_rate_end_a_little_after_the_last_arrival() -> None:
    run = predict_run(H100, (group(rate=20),), Sharing.MPS, 2000)
    duration = 2000 * (CHAT.input_mean + CHAT.output_mean) / run.total_tokens_per_second
    assert 100 < duration < 105
    assert run.groups[0].ttft_mean is not None


def test_alike_requests_end_together_and_so_leave_a_shorter_tail() -> None:
    spread = replace(ALIKE, output_cv=1.0)
    alike_run, spread_run = (
        predict_run(H100, (group(lengths=each, batch=64, max_model_len=4096),), Sharing.MPS, 300)
        for each in (ALIKE, spread)
    )
    assert alike_run.total_tokens_per_second > spread_run.total_tokens_per_second
