"""How soon a doubling of the load of one engine at 80 % brings a second pod, on the real control plane.

    python e2e/bench/reaction.py [--rounds 3] [--seed 1]

Four pools of one virtual GPU each, all with the API's default times, play side by side: one engine settles, is loaded
to 80 % of the capacity that the operator ascribes to it, and at a random phase of the tick its arrivals double.

- step: when the virtual node is told of the doubled load; engines see it at once.
- asking scrape: the first scrape of the engine after the step from which the demand rule wants one replica more. The
  operator writes down what it observed, and the rule is asked again afterwards, observation by observation.
- pod: when the API server received the creation, by its audit log.

Goals: step to pod below 4 s and asking scrape to pod below 2.5 s, both as 95th percentiles.
"""

from __future__ import annotations

import argparse
import pickle
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from watched import WatchedStage, machine, quantile

from gpupack.decide.board import Board
from gpupack.decide.capacity import capacity_of
from gpupack.decide.demand import Demand, ask
from gpupack.decide.prospect import Prospects
from gpupack.decide.reconcile import adopt
from gpupack.decide.shapes import choose
from gpupack.demo.stage import wait_for
from gpupack.facts.interpretation import interpret
from gpupack.facts.observation import Missing, Observation
from gpupack.facts.serving import ServingKey
from gpupack.node import binaries
from gpupack.node.controlplane import ControlPlane

POOLS = 4
MOST = 4
LENGTHS = {"input_tokens": 512, "output_tokens": 256, "input_cv": 0.9, "output_cv": 0.9}
FIRST_RATE = 20.0
SETTLE_SECONDS = 45.0
"""Long enough for live lengths to stand behind the capacity."""
STEADY_SECONDS = 40.0
"""Longer than the shortest window, so that all of it was at 80 %."""
GIVE_UP_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One doubling. Times are unix seconds; `pod` is the name of the second replica."""

    pool: str
    serving: ServingKey
    rate: float
    at: float
    pod: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the demand rule says of one observation. `scraped_at` is None without a reading of the engine."""

    at: float
    scraped_at: float | None
    planned: int
    capacity: float
    demand: Demand


def asked(observation: Observation, serving: ServingKey) -> Asked | None:
    """None for an observation in which the serving has no plan yet."""
    facts = interpret(observation)
    if serving not in facts.servings or facts.stale:
        return None
    prospects = Prospects(facts)
    before = adopt(facts) if facts.plan is None else facts.plan
    board = Board(facts, replace(before, shapes=choose(facts, prospects, before.shapes)), prospects)
    planned = len(board.of[serving])
    if planned == 0:
        return None
    capacity = capacity_of(board, facts.servings[serving])
    scrapes = [each.waiting.at for each in observation.engines if not isinstance(each.waiting, Missing)]
    return Asked(
        at=observation.at,
        scraped_at=max(scrapes, default=None),
        planned=planned,
        capacity=capacity(planned),
        demand=ask(facts.servings[serving], facts, planned, capacity, MOST),
    )


def observations(trace: Path) -> Iterator[Observation]:
    with trace.open("rb") as file:
        while True:
            try:
                seen = pickle.load(file)
            except (EOFError, pickle.UnpicklingError):  # the end, or the operator is about to write the rest
                return
            yield seen


class Player(threading.Thread):
    """Plays the rounds of one pool."""

    def __init__(self, stage: WatchedStage, trace: Path, pool: str, rounds: int, seed: int) -> None:
        super().__init__(name=pool, daemon=True)
        self.steps: list[Step] = []
        self.grew_before = 0
        self.problem: Exception | None = None
        self._stage, self._trace, self._pool, self._rounds = stage, trace, pool, rounds
        self._chance = random.Random(f"{seed} {pool}")

    def run(self) -> None:
        time.sleep(self._chance.uniform(0.0, 10.0))
        try:
            number = 0
            while len(self.steps) < self._rounds and number < 3 * self._rounds:
                number += 1
                self._play(f"{self._pool}-{number}")
        except Exception as problem:
            self.problem = problem

    def _play(self, name: str) -> None:
        stage, key = self._stage, ServingKey(namespace="default", name=name)
        stage.cluster.apply(serving_manifest(name, self._pool))
        stage.load(str(key), rate=FIRST_RATE, **LENGTHS)
        wait_for(
            lambda: stage.serving(name).get("status", {}).get("readyReplicas") == 1, GIVE_UP_SECONDS, f"{name} is ready"
        )
        time.sleep(SETTLE_SECONDS)
        rate = 0.8 * self._capacity(key)
        stage.load(str(key), rate=rate, **LENGTHS)
        time.sleep(STEADY_SECONDS + self._chance.uniform(0.0, 2.0))
        if len(self._pods(name)) > 1:
            self.grew_before += 1
        else:
            at = time.time()
            stage.load(str(key), rate=2.0 * rate, **LENGTHS)
            pod = self._second_pod(name)
            self.steps.append(Step(pool=self._pool, serving=key, rate=rate, at=at, pod=pod))
        stage.no_load(str(key))
        stage.cluster.kubectl("delete", "msv", name, "--wait=false")
        wait_for(lambda: not self._pods(name), GIVE_UP_SECONDS, f"{name} is gone")

    def _capacity(self, key: ServingKey) -> float:
        for observation in reversed([each for each in observations(self._trace) if each.pool == self._pool]):
            if (found := asked(observation, key)) is not None:
                return found.capacity
        raise RuntimeError(f"the operator has not observed {key}")

    def _pods(self, name: str) -> list[str]:
        found = sorted(self._stage.pods(name), key=lambda each: str(each["metadata"]["creationTimestamp"]))
        return [str(each["metadata"]["name"]) for each in found]

    def _second_pod(self, name: str) -> str | None:
        deadline = time.monotonic() + GIVE_UP_SECONDS
        first = self._pods(name)
        while time.monotonic() < deadline:
            if more := [each for each in self._pods(name) if each not in first]:
                return more[0]
            time.sleep(0.2)
        return None


def serving_manifest(name: str, pool: str) -> dict[str, object]:
    return {
        "apiVersion": "gpupack.dev/v1alpha1",
        "kind": "ModelServing",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "poolName": pool,
            "model": {"name": "llama-3.2-1b"},
            "workload": {
                "inputTokens": {"mean": 512, "p95": 1430},
                "outputTokens": {"mean": 256, "p95": 715},
                "requestsPerSecond": 10,
            },
            "slo": {"itlMilliseconds": 25, "ttftMilliseconds": 1000},
            "batching": {"minEfficiencyPercent": 50},
            "scaling": {"maxReplicas": MOST},
        },
    }


def creations(cluster: ControlPlane) -> dict[str, float]:
    """When the API server received the first write of each pod."""
    created: dict[str, float] = {}
    for each in cluster.audit_events():
        if each.is_write and each.resource == "pods" and each.code == 201:
            created.setdefault(each.name, datetime.fromisoformat(each.at).timestamp())
    return created


def report(steps: list[Step], trace: Path, created: dict[str, float]) -> None:
    seen = list(observations(trace))
    whole, plumbing = [], []
    print("  rate/s  before  step to asking scrape  asking scrape to pod  step to pod  (seconds)")
    for step in sorted(steps, key=lambda each: each.at):
        mine = [each for each in seen if each.pool == step.pool]
        found = [each for each in (asked(one, step.serving) for one in mine) if each is not None]
        before = [each.demand.utilization for each in found if each.at < step.at]
        wanting = (each for each in found if each.planned == 1 and each.demand.wanted > 1)
        asks = next(
            (each.scraped_at for each in wanting if each.scraped_at is not None and each.scraped_at >= step.at), None
        )
        pod = None if step.pod is None else created.get(step.pod)
        if pod is None or asks is None:
            print(f"  {step.rate:6.1f}  no second pod came within {GIVE_UP_SECONDS:.0f} s")
            whole.append(float("inf"))
            continue
        whole.append(pod - step.at)
        plumbing.append(pod - asks)
        now = before[-1] or 0.0
        print(f"  {step.rate:6.1f}  {now:5.1%}  {asks - step.at:21.2f}  {pod - asks:20.2f}  {pod - step.at:11.2f}")
    for what, values, goal in (
        ("step to pod", whole, 4.0),
        ("asking scrape to pod", plumbing, 2.5),
    ):
        if values:
            print(
                f"{what}: p50 {quantile(values, 0.5):.2f} s, p95 {quantile(values, 0.95):.2f} s"
                f" of {len(values)} (goal: p95 below {goal} s)"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of each of the four pools")
    parser.add_argument("--seed", type=int, default=1, help="of the load and of the phases of the tick")
    wanted = parser.parse_args()
    print(machine(), flush=True)
    programs = binaries.obtain(binaries.control_plane())
    with tempfile.TemporaryDirectory() as kept, tempfile.TemporaryDirectory() as folder:
        trace = Path(kept) / "observations"
        trace.touch()
        node = ("--gpus", str(POOLS), "--start-seconds", "2", "--seed", str(wanted.seed))
        with (
            ControlPlane(programs, audit=True) as cluster,
            WatchedStage(cluster, Path(folder), node_arguments=node, trace=trace) as stage,
        ):
            pools = [f"pool-{n}" for n in range(POOLS)]
            for pool, gpu in zip(pools, stage.state()["gpus"], strict=True):
                cluster.apply({
                    "apiVersion": "gpupack.dev/v1alpha1", "kind": "GpuPool", "metadata": {"name": pool},
                    "spec": {"gpuUuids": [gpu["uuid"]]},
                })  # fmt: skip
            stage.start_operator()
            players = [Player(stage, trace, pool, wanted.rounds, wanted.seed) for pool in pools]
            for player in players:
                player.start()
            for player in players:
                player.join()
            created = creations(cluster)
        for player in players:
            if player.problem is not None:
                print(f"{player.name} ended early: {player.problem!r}")
        print(f"a second replica came before the step, and the round was played again:"
              f" {sum(player.grew_before for player in players)} times")  # fmt: skip
        report([step for player in players for step in player.steps], trace, created)


if __name__ == "__main__":
    main()
