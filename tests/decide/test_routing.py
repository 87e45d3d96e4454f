"""What an endpoint picker is told of overload, and what a person is told of the InferencePool."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpupack.decide.reconcile import reconcile
from gpupack.decide.routing import (
    PICKERS_KV_UTILIZATION,
    PICKERS_QUEUE_DEPTH,
    kv_threshold,
    queue_threshold,
    thresholds,
)
from gpupack.facts.observation import ServiceSeen
from gpupack.facts.policy import Policy
from gpupack.facts.routing import FailureMode, PoolSeen, PoolState, Routing
from gpupack.facts.serving import Lengths, Mode, Serving, Slo, Statistic
from gpupack.perf.memory import kv_tokens_needed, kv_tokens_of_full_batch
from gpupack.plan import ConditionType, ServingStatus
from gpupack.units import Seconds

from ..strategies import gpu, key, serving
from .boards import board_on, seen
from .world import World

CHAT = key("chat")
LENGTHS = Lengths(input_mean=512.0, output_mean=256.0)
ROUTING = Routing(picker="chat-picker", port=9002, failure_mode=FailureMode.CLOSE)


def chat(**wishes: object) -> Serving:
    return replace(serving("chat", batch=64, ttft=1.0), routing=ROUTING, **wishes)


def status(asked: Serving, seen: PoolSeen | None = None) -> ServingStatus:
    """Of a serving that has run for a while, where this became of its InferencePool."""
    world = World([gpu(0)], [asked], {CHAT: 5.0}).run(20.0)
    services = (ServiceSeen(serving=CHAT, has_service=True, min_available=0, inference_pool=seen),)
    return reconcile(replace(world.observe(), services=services)).serving_statuses[0]


def said(found: ServingStatus) -> tuple[str, str, str] | None:
    for each in found.conditions:
        if each.type is ConditionType.INFERENCE_POOL_WRITTEN:
            return each.truth.value, each.reason, each.message
    return None


@pytest.mark.parametrize("batch", [16, 84, 256])
def test_a_right_sized_cache_that_is_full_by_design_is_no_overload(batch: int) -> None:
    tokens = kv_tokens_needed(LENGTHS, batch, 2048, Policy().kv_safety)
    threshold = kv_threshold(LENGTHS, batch, tokens)
    assert PICKERS_KV_UTILIZATION <= threshold <= 0.9
    assert kv_threshold(LENGTHS, batch, 10 * tokens) == PICKERS_KV_UTILIZATION, "a large cache keeps the usual one"
    assert kv_threshold(LENGTHS, batch, tokens // 2) == 1.0, "where the cache ends a batch only the queue tells"


def test_a_queue_is_too_long_when_its_last_would_break_the_promise() -> None:
    depths = [queue_threshold(departures, Statistic.P95) for departures in (-3.0, 0.0, 1.0, 10.0, 40.0, 400.0)]
    assert depths == sorted(depths)
    assert depths[0] == 1, "somebody may always wait"
    assert depths[4] < 40 < queue_threshold(41.0, Statistic.MEAN)
    assert queue_threshold(40.0, Statistic.P99) < queue_threshold(40.0, Statistic.P95)


def test_thresholds_are_told_only_where_a_picker_is_named() -> None:
    assert status(replace(chat(), routing=None)).thresholds is None
    found = status(chat()).thresholds
    assert found is not None
    assert found.queue_depth > PICKERS_QUEUE_DEPTH, "an engine that finishes twenty requests a second works five off"
    assert 0.8 <= found.kv_cache_utilization < 1.0


def test_without_a_promise_for_the_first_token_the_usual_queue_is_told() -> None:
    quiet = chat()
    assert quiet.slo is not None
    found = status(replace(quiet, slo=replace(quiet.slo, ttft=None))).thresholds
    assert found is not None
    assert found.queue_depth == PICKERS_QUEUE_DEPTH


@pytest.mark.parametrize(
    ("seen", "truth", "reason", "word"),
    [
        (None, "Unknown", "Waiting", "next look"),
        (PoolSeen(state=PoolState.WRITTEN, ports=(8000,)), "True", "Written", "leads to port 8000"),
        (PoolSeen(state=PoolState.WRITTEN, ports=(8001, 8002)), "True", "Written", "ports 8001 and 8002"),
        (PoolSeen(state=PoolState.WRITTEN, ports=(8001,), left_out=1), "True", "PortsLeftOut", "room for eight"),
        (PoolSeen(state=PoolState.NOT_INSTALLED), "False", "NotInstalled", "kubectl apply -f https://"),
        (PoolSeen(state=PoolState.NOT_ALLOWED), "False", "NotAllowed", "rbac.inferencePools"),
        (PoolSeen(state=PoolState.REFUSED, problem="422 too long"), "False", "Refused", "422 too long"),
    ],
)
def test_the_condition_says_what_became_of_it_and_what_to_do(
    seen: PoolSeen | None, truth: str, reason: str, word: str
) -> None:
    told = said(status(chat(), seen))
    assert told is not None
    assert told[:2] == (truth, reason)
    assert word in told[2]


def test_nobody_who_did_not_ask_is_told_anything_until_one_is_left_over() -> None:
    plain = replace(chat(), routing=None)
    assert said(status(plain)) is None
    told = said(status(plain, PoolSeen(state=PoolState.UNWANTED)))
    assert told is not None
    assert told[1] == "Unwanted"


def test_in_advise_mode_none_is_written() -> None:
    told = said(status(chat(mode=Mode.ADVISE)))
    assert told is not None
    assert told[1] == "AdviseOnly"


@pytest.mark.parametrize(
    ("departures", "statistic", "depth"),
    [
        (25.5, Statistic.MEAN, 25),
        (33.1, Statistic.P95, 24),
        (33.3, Statistic.P95, 25),
        (36.5, Statistic.P99, 24),
        (36.7, Statistic.P99, 25),
    ],
)
def test_as_many_may_wait_as_leave_in_time_at_the_promised_statistic(
    departures: float, statistic: Statistic, depth: int
) -> None:
    """25 departures take 25 mean gaps on average, 25 + 1.645 x 5 at P95, 25 + 2.326 x 5 at P99."""
    assert queue_threshold(departures, statistic) == depth


def test_a_threshold_of_the_cache_is_rounded_up_to_a_hundredth() -> None:
    usual = kv_tokens_of_full_batch(LENGTHS, 64)
    assert kv_threshold(LENGTHS, 64, round(usual / 0.8552)) == 0.86
    assert kv_threshold(LENGTHS, 64, round(usual / 0.8498)) == 0.85


def depth_of(
    *, ttft: float | None = 1.0, advised: float | None = None, declared: bool = True, replicas: int = 1
) -> int:
    """Of an engine whose serving declares this promise, or nothing, and whose shape was chosen for another."""
    board = board_on(seen("gpus: {a: }\nservings: {chat: {batch: 64}}"))
    asked = replace(board.facts.servings[CHAT], slo=slo_of(ttft) if declared else None)
    chosen = replace(
        board.shapes[CHAT, "H100-80GB"], slo=None if advised is None else slo_of(advised), replicas_per_gpu=replicas
    )
    found = thresholds(board, asked, chosen)
    assert found is not None
    return found.queue_depth


def slo_of(ttft: float | None) -> Slo:
    return Slo(itl=Seconds(0.04), ttft=None if ttft is None else Seconds(ttft), statistic=Statistic.MEAN)


def test_the_declared_promise_counts_and_without_one_that_of_the_shape() -> None:
    assert depth_of(ttft=2.0, advised=0.5) == depth_of(ttft=2.0) > depth_of(ttft=0.5)
    assert depth_of(declared=False, advised=0.5) == depth_of(ttft=0.5)
    assert depth_of(declared=False) == depth_of(ttft=None) == PICKERS_QUEUE_DEPTH


def test_engines_beside_others_finish_less_and_may_have_fewer_waiting() -> None:
    assert depth_of(replicas=0) == depth_of(replicas=1) > depth_of(replicas=2)


@pytest.mark.parametrize(("cv", "chunks"), [(0.0, 1), (0.6, 1), (0.7, 2), (2.0, 3)])
def test_what_may_wait_leaves_in_the_promised_time_less_half_a_step_and_the_chunks_of_a_long_prompt(
    cv: float, chunks: int
) -> None:
    """A prompt of 1000 tokens on average; at P95 it is 1.645 cv longer. 2048 tokens are a chunk.
    Answers are short, so that a step counts."""
    board = board_on(seen("gpus: {a: }\nservings: {chat: {batch: 64}}"))
    board.prospects.lengths[CHAT] = replace(LENGTHS, input_mean=1000.0, input_cv=cv, output_mean=8.0)  # type: ignore[index]
    chosen = board.shapes[CHAT, "H100-80GB"]
    assert chosen.shape.max_num_batched_tokens in (2048, 8192)
    budget = replace(chosen.shape, max_num_batched_tokens=2048)
    full = board.prospects.full(gpu(0).kind, ((board.prospects.kin(CHAT, budget), 1),)).groups[0]
    leave = full.output_tokens_per_second / 8.0 * (1.0 - (0.5 + chunks) * full.itl_p95)
    asked = replace(board.facts.servings[CHAT], slo=slo_of(1.0))
    found = thresholds(board, asked, replace(chosen, shape=budget, replicas_per_gpu=1))
    assert found is not None
    assert found.queue_depth == queue_threshold(leave, Statistic.MEAN)


def test_one_that_is_left_over_as_written_is_told_without_what_nobody_asks_for() -> None:
    told = said(status(replace(chat(), routing=None), PoolSeen(state=PoolState.WRITTEN, ports=(8000,), left_out=1)))
    assert told is not None
    assert told[1] == "Written"
