"""Boards for tests of one function of the decision: the world of a story, with whatever else it needs changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gpupack.decide.board import Board
from gpupack.decide.demand import Basis, Demand
from gpupack.decide.prospect import Prospects
from gpupack.facts.interpretation import interpret
from gpupack.facts.observation import Observation, Reading, ReplicaSeen
from gpupack.facts.placement import Placement

from ..scenarios.test_scenarios import story_of
from ..strategies import gpu

A, B = gpu(0).uuid, gpu(1).uuid


def seen(text: str, **changes: Any) -> Observation:
    """What a story without a title and an end shows, with other fields."""
    return replace(story_of(f"title: A board.\n{text}\nexpect: {{}}\n").observation, **changes)


def board_on(observation: Observation) -> Board:
    facts = interpret(observation)
    assert facts.plan is not None
    return Board(facts, facts.plan, Prospects(facts))


def board(text: str, **pods: Any) -> Board:
    """The board of a story, every pod of which has these fields as well."""
    observation = seen(text)
    return board_on(replace(observation, replicas=tuple(replace(each, **pods) for each in observation.replicas)))


def without_pod(observation: Observation, slot: int = 0) -> Observation:
    """The same, but pods in that slot have not been created."""
    return _with_pods(observation, tuple(each for each in observation.replicas if each.slot != slot))


def without_pods(observation: Observation) -> Observation:
    """The same before anything was created: no pods, and no claims."""
    return replace(_with_pods(observation, ()), claims=())


def _with_pods(observation: Observation, replicas: tuple[ReplicaSeen, ...]) -> Observation:
    """Only these pods, and a framebuffer that holds only them."""
    known = board_on(replace(observation, replicas=replicas))

    def held(uuid: str) -> float:
        return float(sum(known.memory_of(each, uuid) for each in replicas if each.gpu_uuid == uuid))

    gpus = tuple(
        replace(each, fb_used=replace(each.fb_used, value=held(each.gpu.uuid)))
        if isinstance(each.fb_used, Reading)
        else each
        for each in observation.gpus
    )
    return replace(observation, replicas=replicas, gpus=gpus)


def with_pod(observation: Observation, slot: int = 0, **changes: Any) -> Observation:
    """The same, but the pod in that slot is another one."""

    def changed(each: ReplicaSeen) -> ReplicaSeen:
        return replace(each, **changes) if each.slot == slot else each

    return replace(observation, replicas=tuple(changed(each) for each in observation.replicas))


def with_placement(observation: Observation, slot: int = 0, **changes: Any) -> Observation:
    """The same, but the placement in that slot is another one."""
    assert observation.plan is not None

    def changed(each: Placement) -> Placement:
        return replace(each, **changes) if each.slot == slot else each

    placements = tuple(changed(each) for each in observation.plan.placements)
    return replace(observation, plan=replace(observation.plan, placements=placements))


def demand(wanted: int = 1, *, floor: int = 1, spare: bool = False, **fields: Any) -> Demand:
    return Demand(**{"basis": Basis.ARRIVALS, "wanted": wanted, "floor": floor, "spare": spare, **fields})
