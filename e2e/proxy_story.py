"""The story that the kills and the storm are played against, and what stands after each of its chapters.

Two models on one GPU and a serving whose pool does not exist, an edit under load, and a single one alone.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from .journey import (
    BUDGETS,
    CHAT,
    CLAIMS,
    LARGER,
    OURS,
    PODS,
    POOL,
    POOLS,
    SERVICES,
    SERVINGS,
    Journey,
    manual,
)  # fmt: skip
from .proxy import Proxy

PATIENCE_SECONDS = 150.0
"""A watch that is open and silent is noticed after 90 s."""
MET = ("DemandMet", "GoesPast", "HeldByOthers")
"""The manual count is there; the three engines together are past a ceiling, and one alone holds the GPU, and say so."""
LOST = "lost"
WATCHES = 15
"""Twelve of gpupack's own, and three of Kopf's."""

# What may differ between two ways to the same end:
IDENTITIES = frozenset({"uid", "resourceVersion", "generation", "observedGeneration", "managedFields", "containerID"})
ADDRESSES = frozenset({"podIP", "podIPs", "hostIP", "hostIPs", "clusterIP", "clusterIPs"})
TIMES = ("at", "At", "Time", "Timestamp")
OF_THE_LOAD = frozenset({"SloMet", "AsPredicted"})
"""The conditions that go by what was measured in the last seconds."""
MEASURED = frozenset(
    {"message", "seen", "predicted", "chosen", "rejected", "measured", "observed", "limit", "unit", "margin",
     "experiment", "experiments"}
)  # fmt: skip
"""Sentences, numbers and verdicts on experiments carry measurements; the reasons beside them are compared."""
HISTORY = "decisions"
"""What was decided on the way, which is not the end."""
UNORDERED = frozenset({"conditions", "ownerReferences", "reservedFor"})
PREDICTED = "gpupack.dev/predicted"
"""What a replica was predicted to bring depends on which of two came first."""


def play(journey: Journey, proxy: Proxy) -> dict[str, dict[str, Any]]:
    """What stands after each chapter. The operator is started at the beginning, through the proxy."""
    stage = journey.stage
    aborted = journey.aborted()
    stage.stop_operator()
    stage.delete(f"{POOLS}/default")
    journey.apply({**POOL, "spec": {**POOL["spec"], "gpuUuids": [stage.state()["gpus"][0]["uuid"]]}})
    proxy.phase = "begin"
    mark = len(proxy.calls)
    stage.start_operator(proxy.kubeconfig)
    journey.until("the pool is seen", lambda: "conditions" in stage.pool().get("status", {}), PATIENCE_SECONDS)
    journey.until("all is watched", lambda: watched(proxy, mark) == WATCHES, PATIENCE_SECONDS)
    chapters = {}

    proxy.phase = "start"
    journey.apply(
        manual("chat", 2, batching=CHAT["spec"]["batching"]), manual("coder", 1, model=LARGER),
        manual(LOST, 1, poolName="elsewhere"),
    )  # fmt: skip
    settle(journey, chat=2, coder=1)
    journey.until("the orphan is told", lambda: journey.condition(LOST, "Accepted")[1] == "PoolNotFound")
    chapters[proxy.phase] = standing(journey)
    journey.load("chat", rate=10)

    proxy.phase = "edit"
    old = journey.names("chat")
    journey.edit("chat", engine={"args": ["--enable-prefix-caching"]})
    journey.until("no old pod is left", lambda: not old & journey.names("chat"), PATIENCE_SECONDS)
    settle(journey, chat=2, coder=1)
    chapters[proxy.phase] = standing(journey)

    assert journey.aborted() == aborted

    proxy.phase = "alone"
    stage.no_load()
    before = claims(journey)
    stage.delete(f"{SERVINGS}/coder")
    stage.delete(f"{SERVINGS}/{LOST}")
    journey.edit("chat", replicas=1, sharing="Exclusive")
    journey.until("the GPU is claimed in another way", lambda: claims(journey).isdisjoint(before), PATIENCE_SECONDS)
    settle(journey, chat=1)
    chapters[proxy.phase] = standing(journey)
    return chapters


def watched(proxy: Proxy, mark: int) -> int:
    """How many different watches were opened, or tried, since then."""
    return len({each for each in proxy.calls[mark:] if each.verb == "watch"})


def claims(journey: Journey) -> set[str]:
    return {each["metadata"]["name"] for each in journey.stage.get(CLAIMS, labelSelector=OURS)["items"]}


def settle(journey: Journey, **replicas: int) -> None:
    """Until all is there and the statuses say so."""

    def settled() -> bool:
        servings = {each["metadata"]["name"]: each for each in journey.stage.servings()}
        return {*replicas} == {*servings} - {LOST} and all(
            len(journey.ready(name)) == count == len(journey.stage.pods(name))
            and servings[name].get("status", {}).get("readyReplicas") == count
            and servings[name]["status"]["observedGeneration"] == servings[name]["metadata"]["generation"]
            and journey.condition(name, "Progressing")[:2] == ("False", "Settled")
            and journey.decision(name).get("reason") in MET
            for name, count in replicas.items()
        )

    journey.until(f"there are {replicas}", settled, PATIENCE_SECONDS)
    journey.until(
        "no pod of another serving is left", lambda: len(journey.stage.pods()) == sum(replicas.values()),
        PATIENCE_SECONDS,
    )  # fmt: skip
    journey.until("one claim holds the GPU", lambda: len(claims(journey)) == 1)


def standing(journey: Journey) -> dict[str, Any]:
    """Everything of gpupack's in the cluster, in its normal form."""
    stage = journey.stage
    found: dict[str, Any] = {}
    for path in (PODS, CLAIMS, SERVICES, BUDGETS):
        for item in stage.get(path, labelSelector=OURS)["items"]:
            found[f"{path}/{item['metadata']['name']}"] = normal(item)
    for each in stage.servings():
        found[f"serving {each['metadata']['name']}"] = normal(each)
    found["pool"] = normal(stage.pool())
    return found


def normal(value: Any) -> Any:
    """Without identities, times and addresses, measured numbers and stamps of decisions; sets in one order."""
    if isinstance(value, list):
        return [normal(each) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {key: normal(each) for key, each in value.items() if not _may_differ(key)}
    for key in UNORDERED & kept.keys():
        kept[key] = sorted((each for each in kept[key] if each.get("type") not in OF_THE_LOAD), key=str)
    return kept


def _may_differ(key: str) -> bool:
    return key in IDENTITIES | ADDRESSES | MEASURED | {HISTORY, PREDICTED} or key.endswith(TIMES)


def differences(was: object, now: object, where: str = "") -> list[str]:
    """What is not the same, with the way to it."""
    if was == now:
        return []
    if isinstance(was, dict) and isinstance(now, dict):
        keys = sorted({*was, *now})
        return [line for key in keys for line in differences(was.get(key), now.get(key), f"{where} > {key}")]
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        pairs = enumerate(zip(was, now, strict=True))
        return [line for at, (old, new) in pairs for line in differences(old, new, f"{where}[{at}]")]
    return [f"{where}: {was} in the calm, now {now}"]


def check(journey: Journey, calm: dict[str, dict[str, Any]], now: dict[str, dict[str, Any]]) -> None:
    """All ended as in the calm run, and on the way nothing was made twice or started beside another."""
    if unlike := differences(calm, now):
        pytest.fail("\n".join(unlike), pytrace=False)
    created = Counter(each.name for each in journey.history.pods(journey.mark) if each.event == "ADDED")
    assert set(created.values()) == {1}
    assert journey.history.starting_together(journey.mark) == []
    assert journey.restarts() == 0
    assert journey.stage.operator_exit_code() is None
