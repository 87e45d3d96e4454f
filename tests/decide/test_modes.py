"""Modes in which gpupack keeps its hands off, over whole histories: nothing is done, and nobody takes the room."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpupack.facts.serving import Mode, Scaling, ScalingMode
from gpupack.plan import Tell

from ..strategies import gpu, key, serving
from .world import World

CHAT, GIANT = key("chat"), key("giant")
MANUAL = Scaling(mode=ScalingMode.MANUAL, replicas=2, min_replicas=1, max_replicas=None)


def settled() -> World:
    """Two replicas of chat on the only GPU, under load."""
    return World([gpu(0)], [serving("chat", batch=64, replicas=2)], {CHAT: 20.0}).run(120.0)


@pytest.mark.parametrize("mode", [Mode.SUSPEND, Mode.ADVISE])
def test_whatever_happens_to_a_serving_that_is_not_active_nothing_is_done_about_it(mode: Mode) -> None:
    world = settled()
    world.edit(CHAT, replace(world.servings[CHAT], mode=mode))
    gone = world.of(CHAT)[0]
    for happening in (
        lambda: world.loads.update({CHAT: 500.0}),
        lambda: world.edit(CHAT, replace(world.servings[CHAT], scaling=replace(MANUAL, replicas=5))),
        lambda: world.edit(CHAT, replace(world.servings[CHAT], template_hash="another000")),
        lambda: world.pods.pop((gone.placement.serving.namespace, gone.placement.name)),
        lambda: world.edit(CHAT, replace(world.servings[CHAT], scaling=replace(MANUAL, replicas=0))),
    ):
        happening()
        for _ in range(30):
            assert all(isinstance(each, Tell) for each in world.tick().actions)
            world.advance()
    assert world.plan is not None
    assert len(world.plan.placements) == 2


def test_a_suspended_serving_goes_on_where_it_was() -> None:
    world = settled()
    before = world.plan
    assert before is not None
    world.edit(CHAT, replace(world.servings[CHAT], mode=Mode.SUSPEND))
    gone = world.of(CHAT)[0].placement
    world.pods.pop((gone.serving.namespace, gone.name))
    world.run(60.0)
    assert world.ready == {"chat": 1}
    world.edit(CHAT, replace(world.servings[CHAT], mode=Mode.ACTIVE))
    world.run(60.0)
    assert world.ready == {"chat": 2}
    assert world.plan is not None
    assert world.plan.placements == before.placements
    assert world.stopped == []


def test_a_suspended_serving_keeps_its_memory_and_its_neighbours_go_on() -> None:
    giant = serving("giant", model="llama-2-13b", itl=0.2, replicas=1, age=10.0)
    world = World([gpu(0, kind="A100-40GB")], [serving("chat", batch=64, replicas=1)], {CHAT: 5.0}).run(60.0)
    world.edit(CHAT, replace(world.servings[CHAT], mode=Mode.SUSPEND))
    gone = world.of(CHAT)[0].placement
    world.pods.pop((gone.serving.namespace, gone.name))
    world.servings[GIANT] = giant
    world.run(60.0)
    assert world.reason(GIANT) == "Memory"
    world.servings[key("small")] = serving("small", model="opt-1.3b", batch=8, replicas=1, age=5.0)
    world.run(60.0)
    assert world.ready == {"small": 1}, "its missing pod does not make the GPU wait for ever"
