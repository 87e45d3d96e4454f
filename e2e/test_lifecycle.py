"""A serving is edited, an engine dies, a serving is deleted, and `kubectl wait` works on all of it."""

from __future__ import annotations

from typing import Any

from .journey import LARGER, Journey, manual

EDITS: dict[str, tuple[dict[str, Any], str]] = {
    "image": ({"engine": {"image": "vllm/vllm-openai:v0.33.1"}}, "v0.33.1"),
    "args": ({"engine": {"args": ["--enable-prefix-caching"]}}, "--enable-prefix-caching"),
    "length": ({"model": {"maxModelLen": 3072}}, "--max-model-len=3072"),
}
"""Of each serving: what becomes of its spec, and what its pods show then."""

GARBAGE_SECONDS = 60.0
"""The garbage collector of a new cluster learns of new kinds every 30 seconds only."""


def test_a_serving_becomes_ready_as_kubectl_wait_tells(journey: Journey) -> None:
    journey.apply(manual("chat", 2))
    told = journey.stage.cluster.kubectl("wait", "--for=condition=Ready", "msv/chat", "--timeout=40s")
    assert "condition met" in told
    assert journey.ready("chat")
    assert journey.stage.cluster.kubectl("wait", "--for=condition=Ready", "gpool/default", "--timeout=10s")


def test_edited_servings_get_new_pods_one_by_one_and_serve_on(journey: Journey) -> None:
    aborted = journey.aborted()
    journey.apply(*(manual(name, 2) for name in EDITS))
    for name in EDITS:
        journey.until_ready(name, 2)
        journey.load(name, rate=10)
    old, mark = {name: journey.names(name) for name in EDITS}, journey.history.mark()
    for name, (edit, _) in EDITS.items():
        journey.edit(name, **edit)
    for name, (_, shows) in EDITS.items():
        journey.until(f"no old pod of {name} is left", lambda name=name: not old[name] & journey.names(name), 90)
        journey.until_ready(name, 2)
        for pod in journey.stage.pods(name):
            container = pod["spec"]["containers"][0]
            assert shows in [container["image"].rpartition(":")[2], *container["args"]]
        assert journey.fewest_serving(name, mark) >= 2 - 1
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
