"""What an endpoint picker is told of overload, and what a person is told of the InferencePool."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpupack.decide.reconcile import reconcile
from gpupack.decide.routing import PICKERS_KV_UTILIZATION, PICKERS_QUEUE_DEPTH, kv_threshold, queue_threshold
from gpupack.facts.observation import ServiceSeen
from gpupack.facts.policy import Policy
from gpupack.facts.routing import FailureMode, PoolSeen, PoolState, Routing
from gpupack.facts.serving import Lengths, Mode, Serving, Statistic
from gpupack.perf.memory import kv_tokens_needed
from gpupack.plan import ConditionType, ServingStatus

from ..strategies import gpu, key, serving
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
