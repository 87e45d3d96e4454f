"""The operator dies at any of its writes, and the cluster ends where an operator that lives would have brought it."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from gpupack.demo.stage import ACCOUNT, Stage
from gpupack.node.controlplane import WRITES

from .journey import BUDGETS, CHAT, CLAIMS, LARGER, OURS, PODS, SERVICES, Journey, manual

KILLS = 10
SEED = int(os.environ.get("GPUPACK_E2E_SEED", random.randrange(10**6)))
LOOK_SECONDS = 0.002
PREDICTED = "gpupack.dev/predicted"
"""What a replica was predicted to bring depends on which of two came first; nothing else may."""
OF_THE_LOAD = "SloMet"
MET = ("DemandMet", "GoesPast")
"""The manual count is there; the three engines together are past a ceiling, and say so."""


def test_an_operator_that_dies_at_ten_writes_ends_where_one_that_lives_does(journey: Journey) -> None:
    calm = play(journey)
    writes = len(journey.writes())
    journey.end()
    journey.begin()

    chosen = sorted(random.Random(SEED).sample(range(1, writes), KILLS))
    print(f"\nGPUPACK_E2E_SEED={SEED}: killed after the writes {chosen} of {writes}")
    with Killer(journey.stage, chosen) as killer:
        stormy = play(journey)
    assert killer.left == []
    for chapter, (was, now) in enumerate(zip(calm, stormy, strict=True)):
        assert now == was, f"chapter {chapter}"
    created = Counter(each.name for each in journey.history.pods(journey.mark) if each.event == "ADDED")
    assert set(created.values()) == {1}
    assert journey.history.starting_together(journey.mark) == []
    assert journey.restarts() == 0


def play(journey: Journey) -> list[dict[str, Any]]:
    """Two models on one GPU, an edit, less, and only one; what stands after each chapter."""
    aborted = journey.aborted()
    journey.edit_pool(gpuUuids=[journey.stage.state()["gpus"][0]["uuid"]])
    journey.apply(manual("chat", 2, batching=CHAT["spec"]["batching"]), manual("coder", 1, model=LARGER))
    settle(journey, chat=2, coder=1)
    chapters = [standing(journey)]
    journey.load("chat", rate=10)

    old = journey.names("chat")
    journey.edit("chat", engine={"args": ["--enable-prefix-caching"]})
    journey.until("no old pod is left", lambda: not old & journey.names("chat"), PATIENCE_SECONDS)
    settle(journey, chat=2, coder=1)
    chapters.append(standing(journey))

    journey.stage.cluster.kubectl("delete", "msv/coder")
    journey.edit("chat", replicas=1)
    settle(journey, chat=1)
    chapters.append(standing(journey))
    assert journey.aborted() == aborted
    return chapters


PATIENCE_SECONDS = 90.0


def settle(journey: Journey, **replicas: int) -> None:
    """Until all is there and the statuses say so."""

    def settled() -> bool:
        servings = {each["metadata"]["name"]: each for each in journey.stage.servings()}
        return {*replicas} == {*servings} and all(
            len(journey.ready(name)) == count == len(journey.stage.pods(name))
            and servings[name].get("status", {}).get("readyReplicas") == count
            and servings[name]["status"]["observedGeneration"] == servings[name]["metadata"]["generation"]
            and journey.condition(name, "Progressing")[:2] == ("False", "Settled")
            and journey.decision(name).get("reason") in MET
            for name, count in replicas.items()
        )

    journey.until(f"there are {replicas}", settled, PATIENCE_SECONDS)
    journey.until("no pod of another serving is left", lambda: len(journey.stage.pods()) == sum(replicas.values()))


def standing(journey: Journey) -> dict[str, Any]:
    """Everything of gpupack's in the cluster, without times, versions, addresses and what Kubernetes adds."""
    stage = journey.stage
    found: dict[str, Any] = {}
    for path in (PODS, CLAIMS, SERVICES, BUDGETS):
        for item in stage.get(path, labelSelector=OURS)["items"]:
            metadata, spec = item["metadata"], item["spec"]
            notes = {key: value for key, value in metadata.get("annotations", {}).items() if key != PREDICTED}
            owners = sorted(each["name"] for each in metadata["ownerReferences"])
            asked = {
                key: spec.get(key) for key in ("containers", "resourceClaims", "devices", "selector", "minAvailable")
            }
            found[f"{path}/{metadata['name']}"] = [metadata["labels"], notes, owners, asked]
    for each in stage.servings():
        status = each["status"]
        said = {
            one["type"]: (one["status"], one["reason"]) for one in status["conditions"] if one["type"] != OF_THE_LOAD
        }
        kept = {key: status.get(key) for key in ("replicas", "readyReplicas", "shape", "placements", "replicasPerGpu")}
        found[each["metadata"]["name"]] = [said, kept, status["decision"]["reason"]]
    plan = stage.pool()["status"]["plan"]
    found["plan"] = [plan["engines"], [{**each, "plannedAt": ""} for each in plan["placements"]]]
    return found


class Killer:
    """Watches the API server's audit log beside the story; `left` are the writes after which it has not killed yet."""

    def __init__(self, stage: Stage, after: Sequence[int]) -> None:
        self.left = list(after)
        self._stage = stage
        self._log = (stage.cluster.folder / "audit.log").open()
        self._log.seek(stage.cluster.audit_position())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._log.close()

    def _run(self) -> None:
        writes, rest = 0, ""
        while self.left and not self._ended.wait(LOOK_SECONDS):
            *lines, rest = (rest + self._log.read()).split("\n")
            writes += sum(_is_write(line) for line in lines)
            if writes >= self.left[0]:
                self._stage.stop_operator(signal.SIGKILL)
                self._stage.start_operator()
                del self.left[0]


def _is_write(line: str) -> bool:
    if ACCOUNT not in line:
        return False
    event = json.loads(line)
    return (
        event["user"]["username"] == ACCOUNT and event["verb"] in WRITES and event["objectRef"]["resource"] != "leases"
    )
