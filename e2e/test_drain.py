"""A node is emptied the way everybody empties nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from .journey import BUDGETS, FIRST_NODE, SECOND_NODE, Journey, manual


@pytest.fixture
def both_nodes(journey: Journey) -> Iterator[Journey]:
    yield journey
    journey.stage.cluster.kubectl("uncordon", FIRST_NODE)


def nodes_of(journey: Journey) -> list[str]:
    return sorted(pod["spec"].get("nodeName", "") for pod in journey.stage.pods("chat"))


def budget(journey: Journey) -> dict[str, Any]:
    status: dict[str, Any] = journey.stage.get(f"{BUDGETS}/chat").get("status", {})
    return status


def test_a_drained_node_hands_its_replicas_to_another_one_by_one(both_nodes: Journey) -> None:
    journey, cluster = both_nodes, both_nodes.stage.cluster
    journey.apply(manual("chat", 2))
    journey.until_ready("chat", 2)
    assert nodes_of(journey) == [FIRST_NODE, FIRST_NODE]
    journey.until("the budget allows one", lambda: budget(journey).get("disruptionsAllowed") == 1)
    journey.edit_pool(nodeSelector={"kubernetes.io/hostname": None, "gpupack.dev/virtual-node": "dra"})
    journey.until("the other node is in the pool", lambda: journey.stage.pool()["status"]["gpus"] == 4)
    journey.load("chat", rate=10)
    aborted, mark = journey.aborted(), journey.history.mark()
    told = cluster.kubectl("drain", FIRST_NODE, "--pod-selector=gpupack.dev/serving", "--timeout=60s")
    assert f"node/{FIRST_NODE} drained" in told
    journey.until_ready("chat", 2)
    assert nodes_of(journey) == [SECOND_NODE, SECOND_NODE]
    assert journey.fewest_serving("chat", mark) >= 2 - 1
    assert journey.aborted() == aborted

    cluster.kubectl("scale", "msv/chat", "--replicas=3")
    journey.until_ready("chat", 3)
    assert nodes_of(journey) == [SECOND_NODE] * 3, "a cordoned node takes no new replica"
    cluster.kubectl("uncordon", FIRST_NODE)
    journey.holds_for(5, "nobody moves back for nothing", lambda: nodes_of(journey) == [SECOND_NODE] * 3)


def test_without_another_place_a_drain_waits_for_the_budget_and_says_why(both_nodes: Journey) -> None:
    journey, cluster = both_nodes, both_nodes.stage.cluster
    journey.apply(manual("chat", 2))
    journey.until_ready("chat", 2)
    journey.until("the budget allows one", lambda: budget(journey).get("disruptionsAllowed") == 1)
    cluster.kubectl("cordon", FIRST_NODE)
    first = sorted(journey.names("chat"))[0]
    eviction = f'{{"apiVersion":"policy/v1","kind":"Eviction","metadata":{{"name":"{first}","namespace":"default"}}}}'
    cluster.kubectl("create", "--raw", f"/api/v1/namespaces/default/pods/{first}/eviction", "-f", "-", stdin=eviction)
    message = journey.until_said("chat", "HeldByOthers")
    assert f"node {FIRST_NODE} is cordoned" in message
    journey.until("one is left", lambda: len(journey.names("chat")) == len(journey.ready("chat")) == 1)
    journey.until("no other may go", lambda: budget(journey).get("disruptionsAllowed") == 0)
    cluster.kubectl("uncordon", FIRST_NODE)
    journey.until_ready("chat", 2)
