"""An engine that tells a vLLM that is too old: said while it runs, and nothing is done to it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpupack.decide.reconcile import reconcile
from gpupack.plan import Condition, ConditionType, Outcome

from .boards import seen
from .test_tick import where

ONE = "gpus: {a: }\nservings: {chat: {batch: 64}}\nreplicas: [{serving: chat, gpu: a, age: 100}]"


def telling(version: str | None) -> Outcome:
    observation = seen(ONE)
    engines = tuple(replace(each, version=version) for each in observation.engines)
    assert engines
    return reconcile(replace(observation, engines=engines))


def said(outcome: Outcome) -> list[Condition]:
    (status,) = outcome.serving_statuses
    return [each for each in status.conditions if each.type is ConditionType.ENGINE_SUPPORTED]


def test_an_engine_that_is_too_old_is_named_with_its_version_and_stays() -> None:
    outcome = telling("0.9.1")
    (condition,) = said(outcome)
    assert (condition.truth, condition.reason) == ("False", "VersionTooOld")
    assert "(vLLM 0.9.1)" in condition.message
    assert "Older than vLLM 0.25" in condition.message
    assert where(outcome) == where(telling("0.33.0"))


@pytest.mark.parametrize("version", ["0.33.0", "0.25.0", "0.33.1.dev12+gabcdef", "0.1.dev7+gabcdef", "main", "", None])
def test_who_is_new_enough_or_tells_no_release_is_let_be(version: str | None) -> None:
    assert said(telling(version)) == []
