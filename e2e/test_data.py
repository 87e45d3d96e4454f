"""Readings that are missing, frozen or no numbers: all stays as it is and says so, and goes on when they are back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from .journey import CHAT, Journey

TWO_REPLICAS, MORE = 65.0, 200.0
"""Requests a second: what one replica does not carry and two do, and what no GPU carries."""


def break_engines(journey: Journey, fault: str) -> None:
    for name in sorted(journey.names("chat")):
        journey.stage.steer("/engine-metrics", pod=f"default/{name}", fault=fault)


@pytest.mark.parametrize("fault", ["unreachable", "empty", "nan", "frozen"])
def test_while_engines_do_not_tell_their_load_no_replica_comes_or_goes(journey: Journey, fault: str) -> None:
    journey.apply(CHAT)
    journey.until_ready("chat")
    journey.load("chat", rate=TWO_REPLICAS)
    journey.until_ready("chat", 2)
    names = journey.names("chat")

    break_engines(journey, fault)
    message = journey.until_said("chat", "DataMissing")
    assert "Nothing is added or removed meanwhile" in message
    assert ("a NetworkPolicy lets the operator in: port 8000 of its pods" in message) == (fault == "unreachable")
    assert journey.condition("chat", "Packed")[:2] == ("Unknown", "DataMissing")
    journey.load("chat", rate=MORE)
    journey.holds_for(9, "nothing is added or removed", lambda: journey.names("chat") == names)

    break_engines(journey, "none")
    journey.until("replicas are added again", lambda: len(journey.names("chat")) > 2)
    assert names <= journey.names("chat")


@pytest.mark.parametrize("fault", ["unreachable", "nan"])
def test_while_the_exporter_tells_nothing_no_replica_is_added(journey: Journey, fault: str) -> None:
    journey.apply(CHAT)
    journey.until_ready("chat")
    journey.stage.steer("/exporter", fault=fault)
    journey.load("chat", rate=MORE)
    message = journey.until_said("chat", "DataMissing")
    assert "GPU-" in message
    names = journey.names("chat")
    journey.holds_for(5, "nothing is added", lambda: journey.names("chat") == names)
    journey.stage.steer("/exporter", fault="none")
    journey.until("replicas are added again", lambda: names < journey.names("chat"))


@pytest.mark.parametrize("exporter", [{"absent": ["fb_used", "fb_free"]}, {"fault": "blank"}], ids=["absent", "blank"])
def test_where_nobody_exports_memory_in_use_a_gpu_gets_one_replica(
    journey: Journey, exporter: Mapping[str, Any]
) -> None:
    journey.stage.steer("/exporter", **exporter)
    journey.apply(CHAT)
    journey.until_ready("chat")
    journey.load("chat", rate=MORE)
    message = journey.until_said("chat", "Memory")
    assert "nothing exports the framebuffer in use" in message
    journey.until_ready("chat", 2)
    assert len(set(journey.gpus_of("chat"))) == 2


def test_the_first_replica_starts_on_what_was_declared_without_any_reading(journey: Journey) -> None:
    journey.stage.steer("/exporter", fault="unreachable")
    spec: dict[str, Any] = {**CHAT["spec"], "scaling": {"minReplicas": 2}}
    journey.apply({**CHAT, "spec": spec})
    journey.until_ready("chat", 2)
