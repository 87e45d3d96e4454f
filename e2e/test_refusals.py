"""A spec that cannot be carried out: what the schema knows is refused at once, the rest becomes a condition."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gpupack.node.controlplane import KubectlError

from .journey import SERVINGS, Journey, manual, serving

REFUSED: list[Any] = [
    pytest.param({"model": {}}, "spec.model.name", "Required value", id="no model"),
    pytest.param(
        {"engine": {"args": ["--max-num-seqs=8"]}}, "spec.engine.args", "leave it out", id="an owned argument"
    ),
    pytest.param({"slo": {"itlMilliseconds": 0}}, "spec.slo.itlMilliseconds", "should be greater", id="an SLO of 0"),
    pytest.param(
        {"scaling": {"minReplicas": 3, "maxReplicas": 2}},
        "spec.scaling.maxReplicas",
        "less than minReplicas",
        id="bounds",
    ),
    pytest.param({"sharing": "TimeSlicing"}, "spec.sharing", "supported values", id="a sharing that is not offered"),
]
CONDITIONS: list[Any] = [
    pytest.param(
        {"model": {"name": "example/unheard-of"}},
        "spec.model.name",
        "config.json in spec.model.config",
        id="a model nobody knows",
    ),
    pytest.param(
        {"engine": {"image": "vllm/vllm-openai:v0.8.5"}}, "spec.engine.image", "or newer", id="an engine too old"
    ),
    pytest.param({"profileRef": {"name": "missing"}}, "spec.profileRef.name", "create it", id="a profile not there"),
]


@pytest.mark.parametrize(("spec", "field", "says"), REFUSED)
def test_kubectl_is_told_the_field_and_what_would_be_accepted(
    journey: Journey, spec: dict[str, Any], field: str, says: str
) -> None:
    with pytest.raises(KubectlError) as refused:
        journey.stage.cluster.kubectl("create", "-f", "-", stdin=json.dumps(serving("bad", **spec)))
    assert field in refused.value.message
    assert says in refused.value.message


def test_a_count_that_gpupack_owns_cannot_be_scaled(journey: Journey) -> None:
    journey.apply(serving("chat"))
    with pytest.raises(KubectlError, match=r"set scaling\.mode: Manual first"):
        journey.stage.cluster.kubectl("scale", "msv/chat", "--replicas=3")


@pytest.mark.parametrize(("spec", "field", "fix"), CONDITIONS)
def test_what_no_schema_can_know_becomes_a_condition_and_is_forgiven_once_mended(
    journey: Journey, spec: dict[str, Any], field: str, fix: str
) -> None:
    good = manual("chat", 1)
    journey.apply(manual("bad", 1, **spec), good)
    journey.until("bad is refused", lambda: journey.condition("bad", "Accepted")[0] == "False")
    _, reason, message = journey.condition("bad", "Accepted")
    assert reason == "Invalid"
    assert field in message
    assert fix in message
    journey.until_ready("chat")
    assert journey.names("bad") == set()

    if "model" in spec:
        return  # a serving's model cannot change
    journey.stage.patch(f"{SERVINGS}/bad", {"spec": dict.fromkeys(spec)})
    journey.until_ready("bad")
    assert journey.condition("bad", "Accepted")[0] == "True"
