"""What the scheduler of one engine promises, whoever drives it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpupack.errors import Invalid, Unavailable
from gpupack.twin.arrivals import Listed, Request
from gpupack.twin.counters import Histogram
from gpupack.twin.engine import Ending, Engine, EngineConfig

REQUESTS = st.lists(
    st.builds(Request, input_tokens=st.integers(1, 90), output_tokens=st.integers(1, 38)), min_size=1, max_size=40
)
CONFIGS = st.builds(
    lambda seqs, extra, budget, chunked, watermark: EngineConfig(
        max_num_seqs=seqs,
        kv_blocks=9 + extra,
        max_model_len=128,
        max_num_batched_tokens=budget if chunked else max(budget, 128),
        chunked_prefill=chunked,
        watermark=watermark,
    ),
    st.integers(1, 24),
    st.integers(0, 60),
    st.integers(24, 200),
    st.booleans(),
    st.sampled_from([0.0, 0.01, 0.1]),
)


def finish_all(engine: Engine, *, leap: bool = False) -> float:
    """Drives the engine with steps of one second until nothing is left; says when that was."""
    now = 0.0
    while engine.begin_step(now):
        assert 0.0 <= engine.kv_usage <= 1.0
        assert engine.running <= engine.config.max_num_seqs
        assert engine.step_decoding + engine.step_prefill_tokens <= engine.config.max_num_batched_tokens
        assert engine.step_decoding + engine.step_prefill_tokens > 0
        steps = engine.alike_steps(50) if leap else 1
        now += steps
        if steps > 1:
            engine.end_alike_steps(steps, now)
        else:
            engine.end_step(now)
    return now


def at_once(requests: list[Request]) -> Listed:
    return Listed([(0.0, request) for request in requests])


@settings(max_examples=150, deadline=None)
@given(requests=REQUESTS, config=CONFIGS)
def test_every_token_comes_once_blocks_suffice_and_are_all_given_back(
    requests: list[Request], config: EngineConfig
) -> None:
    engine = Engine(config, source=at_once(requests))
    finish_all(engine)
    counters = engine.counters
    assert counters.succeeded == len(requests)
    assert counters.generation_tokens == sum(request.output_tokens for request in requests)
    assert counters.prompt_tokens == sum(request.input_tokens for request in requests)
    assert counters.token_gap.count == counters.generation_tokens - len(requests)
    assert engine.kv_usage == 0.0
    assert engine.in_flight == 0


@settings(max_examples=100, deadline=None)
@given(requests=REQUESTS, config=CONFIGS)
def test_a_leap_over_steps_that_are_alike_changes_no_counter(requests: list[Request], config: EngineConfig) -> None:
    step_by_step, leaping = (Engine(config, source=at_once(requests)) for _ in range(2))
    assert finish_all(step_by_step) == finish_all(leaping, leap=True)
    one, other = step_by_step.counters, leaping.counters
    assert one.preemptions == other.preemptions
    assert step_by_step.kv_peak_blocks == leaping.kv_peak_blocks
    for name in ("first_token", "token_gap", "e2e", "queue", "step_tokens"):
        first, second = getattr(one, name), getattr(other, name)
        assert first.counts == second.counts
        assert first.sum == pytest.approx(second.sum)


@settings(max_examples=100, deadline=None)
@given(requests=REQUESTS, config=CONFIGS)
def test_a_watched_request_sees_each_of_its_tokens_in_order_even_through_preemption(
    requests: list[Request], config: EngineConfig
) -> None:
    engine = Engine(config)
    handles = [engine.submit(request, 0.0, watched=True) for request in requests]
    finish_all(engine)
    for handle in handles:
        assert handle.ending is Ending.LENGTH
        assert handle.token_times is not None
        assert len(handle.token_times) == handle.request.output_tokens
        assert all(a < b for a, b in zip(handle.token_times, handle.token_times[1:], strict=False))
        assert handle.token_times[0] == handle.first_token_at
        assert handle.token_times[-1] == handle.finished_at


@settings(max_examples=100, deadline=None)
@given(requests=REQUESTS, config=CONFIGS)
def test_first_come_is_first_served(requests: list[Request], config: EngineConfig) -> None:
    engine = Engine(config)
    handles = [engine.submit(request, 0.0) for request in requests]
    finish_all(engine)
    starts = [handle.scheduled_at for handle in handles]
    assert starts == sorted(starts)


def test_an_engine_whose_kv_is_below_one_sequence_does_not_start() -> None:
    with pytest.raises(Invalid, match="kv-cache-memory-bytes"):
        EngineConfig(max_num_seqs=8, kv_blocks=128, max_model_len=2048)
    EngineConfig(max_num_seqs=8, kv_blocks=129, max_model_len=2048)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"max_num_seqs": 0}, "--max-num-seqs"),
        ({"max_num_batched_tokens": 4}, "--max-num-batched-tokens"),
        ({"chunked_prefill": False, "max_num_batched_tokens": 64}, "--max-num-batched-tokens"),
    ],
)
def test_a_shape_that_vllm_refuses_is_refused_by_its_flag(changed: dict[str, int], field: str) -> None:
    plain = {"max_num_seqs": 8, "kv_blocks": 129, "max_model_len": 2048, "max_num_batched_tokens": 2048}
    with pytest.raises(Invalid) as refused:
        EngineConfig(**{**plain, **changed})
    assert refused.value.field == field


def test_a_request_that_can_never_run_is_refused() -> None:
    engine = Engine(EngineConfig(max_num_seqs=8, kv_blocks=20, max_model_len=128))
    for request in (Request(input_tokens=100, output_tokens=29), Request(input_tokens=0, output_tokens=1)):
        with pytest.raises(Invalid):
            engine.submit(request, 0.0)


def test_without_chunked_prefill_decodes_wait_for_a_prompt_and_with_it_they_do_not() -> None:
    waited = {}
    for chunked in (False, True):
        engine = Engine(EngineConfig(max_num_seqs=8, kv_blocks=99, max_model_len=256, chunked_prefill=chunked))
        first = engine.submit(Request(input_tokens=32, output_tokens=40), 0.0, watched=True)
        for now in range(10):
            engine.begin_step(float(now))
            engine.end_step(now + 1.0)
        engine.submit(Request(input_tokens=200, output_tokens=4), 10.0)
        engine.begin_step(10.0)
        assert (engine.step_prefill_tokens, engine.step_bystanders) == (200, 0 if chunked else 1)
        engine.end_step(11.0)
        engine.begin_step(11.0)
        engine.end_step(12.0)
        assert first.token_times is not None
        waited[chunked] = max(b - a for a, b in zip(first.token_times, first.token_times[1:], strict=False))
    assert waited == {False: 2.0, True: 1.0}


def test_a_long_prompt_is_computed_in_chunks_within_the_budget() -> None:
    config = EngineConfig(max_num_seqs=8, kv_blocks=99, max_model_len=1024, max_num_batched_tokens=64)
    engine = Engine(config)
    handle = engine.submit(Request(input_tokens=200, output_tokens=2), 0.0)
    chunks = []
    for now in range(4):
        engine.begin_step(float(now))
        chunks.append(engine.step_prefill_tokens)
        engine.end_step(now + 1.0)
    assert chunks == [64, 64, 64, 8]
    assert handle.first_token_at == 4.0


def test_when_blocks_run_out_the_youngest_starts_again_and_everybody_ends() -> None:
    engine = Engine(EngineConfig(max_num_seqs=4, kv_blocks=9, max_model_len=128))
    old = engine.submit(Request(input_tokens=48, output_tokens=60), 0.0, watched=True)
    young = engine.submit(Request(input_tokens=48, output_tokens=60), 0.0, watched=True)
    finish_all(engine)
    assert engine.counters.preemptions > 0
    assert old.token_times is not None
    assert young.token_times is not None
    assert max(b - a for a, b in zip(old.token_times, old.token_times[1:], strict=False)) == 1.0
    assert max(b - a for a, b in zip(young.token_times, young.token_times[1:], strict=False)) > 1.0
    assert engine.counters.token_gap.sum == pytest.approx(
        sum(handle.finished_at - handle.first_token_at for handle in (old, young))
    )


def test_a_draining_engine_takes_nothing_new_and_finishes_what_it_has() -> None:
    engine = Engine(EngineConfig(max_num_seqs=4, kv_blocks=99, max_model_len=128))
    handle = engine.submit(Request(input_tokens=10, output_tokens=10), 0.0)
    engine.drain()
    with pytest.raises(Unavailable):
        engine.submit(Request(input_tokens=10, output_tokens=10), 0.0)
    finish_all(engine)
    assert handle.ending is Ending.LENGTH


@pytest.mark.parametrize("in_step", [False, True])
def test_a_crash_loses_what_runs_and_what_waits(in_step: bool) -> None:
    engine = Engine(EngineConfig(max_num_seqs=4, kv_blocks=99, max_model_len=128))
    handles = [engine.submit(Request(input_tokens=30, output_tokens=10), 0.0, watched=True) for _ in range(9)]
    engine.begin_step(0.0)
    engine.end_step(1.0)
    if in_step:
        engine.begin_step(1.0)
    assert engine.crash(2.0) == 9
    assert {handle.ending for handle in handles} == {Ending.ABORT}
    assert engine.counters.aborted == 9
    assert engine.kv_usage == 0.0
    assert not engine.begin_step(3.0)


@settings(max_examples=60, deadline=None)
@given(requests=REQUESTS, config=CONFIGS, seed=st.integers(0, 1000))
def test_a_cancelled_request_gives_its_blocks_back_and_hurts_nobody(
    requests: list[Request], config: EngineConfig, seed: int
) -> None:
    engine = Engine(config)
    handles = [engine.submit(request, 0.0, watched=True) for request in requests]
    chance = random.Random(seed)
    for now in range(5):
        if engine.begin_step(float(now)):
            engine.cancel(chance.choice(handles), now + 0.5)
            engine.end_step(now + 1.0)
            engine.cancel(chance.choice(handles), now + 1.0)
    finish_all(engine)
    assert engine.kv_usage == 0.0
    for handle in handles:
        assert handle.ending is not None
        if handle.ending is Ending.LENGTH:
            assert handle.token_times is not None
            assert len(handle.token_times) == handle.request.output_tokens


def test_a_histogram_counts_an_edge_as_below_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for value, weight in ((1.0, 2), (1.5, 1), (9.0, 3)):
        histogram.observe(value, weight)
    assert histogram.cumulative() == [(1.0, 2), (2.0, 3), (float("inf"), 6)]
    assert (histogram.sum, histogram.count) == (30.5, 6)
