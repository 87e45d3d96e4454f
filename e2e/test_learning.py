"""Live calibration: what the engines of a world that is not the catalog's teach is kept in the cluster."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from gpupack import catalog
from gpupack.cli.explain import prose
from gpupack.demo.hidden import values
from gpupack.perf import learning
from gpupack.perf.calibration import coefficients
from gpupack.twin.memory_system import VLLM_V1

from .journey import CHAT, OURS, PROFILES, SERVINGS, Journey

DEARER = 1.25
RATE = 20.0


def learned(journey: Journey) -> dict[str, Any]:
    """What is written of the one model that serves; empty before anything is."""
    profiles = journey.stage.get(PROFILES, labelSelector=OURS)["items"]
    found: dict[str, Any] = profiles[0].get("status", {}).get("learned", {}) if profiles else {}
    return found


def test_what_a_world_25_percent_off_teaches_is_kept_and_outlives_operator_and_serving(journey: Journey) -> None:
    journey.stage.steer("/costs", step=DEARER)
    journey.edit_pool(maxGpus=1, times={"learningSeconds": 6})
    journey.apply({**CHAT, "spec": {**CHAT["spec"], "scaling": {"maxReplicas": 1}}})
    journey.until_ready("chat")
    journey.load("chat", rate=RATE)
    journey.until("a learned profile stands", lambda: learned(journey))

    layers = catalog.llm("llama-3.2-1b").layers
    truth, first = values(VLLM_V1.times(step=DEARER), layers)[0], learning.values(coefficients("0.33.0"), layers)[0]
    learnt = float(learned(journey)["stepMicroseconds"]) * 1e-6
    assert learnt == pytest.approx(truth, rel=0.12)
    assert abs(learnt - truth) < abs(first - truth) / 2
    profiles = journey.stage.get(PROFILES, labelSelector=OURS)["items"]
    assert "is believed to cost" in prose(journey.stage.serving("chat"), profiles)

    before = learned(journey)["loadSeconds"]
    journey.stage.stop_operator(signal.SIGKILL)
    journey.stage.start_operator()
    journey.edit("chat", scaling={"maxReplicas": 2})
    journey.until("the next operator has looked", lambda: journey.status("chat")["observedGeneration"] == 2)
    journey.holds_for(6, "what was learnt stays", lambda: learned(journey)["loadSeconds"] >= before)
    journey.stage.delete(SERVINGS)
    journey.until("the engine is gone", lambda: not journey.engines())
    assert learned(journey)["loadSeconds"] >= before
