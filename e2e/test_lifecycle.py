"""A serving is edited, an engine dies, a serving is deleted, and `kubectl wait` works on all of it."""

from __future__ import annotations

from typing import Any

import pytest

from .journey import LARGER, Journey, manual

TEMPLATE_EDITS: list[Any] = [
    pytest.param({"engine": {"image": "vllm/vllm-openai:v0.33.1"}}, "v0.33.1", id="image"),
    pytest.param({"engine": {"args": ["--enable-prefix-caching"]}}, "--enable-prefix-caching", id="args"),
    pytest.param({"model": {"maxModelLen": 3072}}, "--max-model-len=3072", id="maxModelLen"),
]

GARBAGE_SECONDS = 60.0
"""The garbage collector of a new cluster learns of new kinds every 30 seconds only."""


def test_a_serving_becomes_ready_as_kubectl_wait_tells(journey: Journey) -> None:
    journey.apply(manual("chat", 2))
    told = journey.stage.cluster.kubectl("wait", "--for=condition=Ready", "msv/chat", "--timeout=40s")
    assert "condition met" in told
    assert journey.ready("chat")
    assert journey.stage.cluster.kubectl("wait", "--for=condition=Ready", "gpool/default", "--timeout=10s")


@pytest.mark.parametrize(("edit", "shows"), TEMPLATE_EDITS)
def test_an_edited_serving_gets_new_pods_one_by_one_and_serves_on(
    journey: Journey, edit: dict[str, Any], shows: str
) -> None:
    aborted = journey.aborted()
    journey.apply(manual("chat", 2))
    journey.until_ready("chat", 2)
    journey.load("chat", rate=20)
    old, mark = journey.names("chat"), journey.history.mark()
    journey.edit("chat", **edit)
    journey.until("no old pod is left", lambda: not old & journey.names("chat"))
    journey.until_ready("chat", 2)
    for pod in journey.stage.pods("chat"):
        container = pod["spec"]["containers"][0]
        assert shows in [container["image"].rpartition(":")[2], *container["args"]]
    assert journey.fewest_serving("chat", mark) >= 2 - 1
    assert journey.history.starting_together(journey.mark) == []
    assert journey.restarts() == 0
    assert journey.aborted() == aborted


def test_an_engine_that_crashes_is_restarted_where_it_was_and_nothing_else_is_disturbed(journey: Journey) -> None:
    journey.apply(manual("chat", 3))
    journey.until_ready("chat", 3)
    uids = {pod["metadata"]["uid"] for pod in journey.stage.pods("chat")}
    journey.load("chat", rate=20)
    broken = sorted(journey.names("chat"))[0]
    journey.stage.steer("/crash", pod=f"default/{broken}")
    journey.until("the engine has been restarted", lambda: journey.restarts() == 1)
    journey.until_ready("chat", 3)
    assert {pod["metadata"]["uid"] for pod in journey.stage.pods("chat")} == uids
    assert not [each for each in journey.history.pods(journey.mark) if each.is_leaving]


def test_a_deleted_serving_leaves_nothing_behind(journey: Journey) -> None:
    cluster = journey.stage.cluster
    journey.apply(manual("chat", 2), manual("coder", 1, model=LARGER))
    journey.until_ready("chat", 2)
    journey.until_ready("coder")
    cluster.kubectl("delete", "msv", "--all")
    journey.until("nothing is left", lambda: not (journey.children() or journey.engines()), GARBAGE_SECONDS)
    assert {gpu["fb_used_bytes"] for gpu in journey.stage.state()["gpus"]} == {0}
    journey.until("the plan is empty", lambda: journey.stage.pool()["status"]["replicas"] == 0)
    assert cluster.kubectl("get", "endpointslices,events", "-l", "gpupack.dev/pool", "-o", "name") == ""
    cluster.kubectl("delete", "gpool", "default")
    assert cluster.kubectl("get", "msv,gpool,mprof", "-A", "-o", "name") == ""
