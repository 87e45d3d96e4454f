"""Which shape a serving has: asked once, kept, and asked anew for a reason that lasts."""

from __future__ import annotations

from dataclasses import replace

from gpupack.decide.prospect import Prospects, rounded
from gpupack.decide.shapes import choose, digest_of
from gpupack.facts.interpretation import interpret
from gpupack.facts.serving import Shape, Sharing
from gpupack.units import Seconds

from ..strategies import QUICK, gpu, key, serving
from .world import World

CHAT = key("chat")
PATIENT = replace(QUICK, shape_interval=Seconds(200.0), shape_hold=Seconds(60.0))


def shape(world: World) -> Shape:
    assert world.plan is not None
    return next(each.shape for each in world.plan.shapes if each.serving == CHAT)


def test_live_lengths_change_the_shape_only_for_a_gain_that_lasts_and_not_too_often() -> None:
    world = World([gpu(0)], [serving("chat", itl=0.012)], {CHAT: 20.0}, policy=PATIENT).run(60.0)
    first = shape(world)
    world.live_lengths[CHAT] = (128.0, 64.0)
    world.run(100.0)
    assert shape(world) == first, "not before the interval is over"
    world.run(60.0)
    assert world.plan is not None
    assert shape(world) == first, "not before the gain has held"
    world.run(120.0)
    assert shape(world).kv_cache_memory_bytes != first.kv_cache_memory_bytes
    assert {pod.placement.shape for pod in world.pods.values()} == {shape(world)}
    again = shape(world)
    world.live_lengths[CHAT] = (512.0, 256.0)
    world.run(100.0)
    assert shape(world) == again, "at most once an interval"


def test_a_gain_that_does_not_last_changes_nothing() -> None:
    world = World([gpu(0)], [serving("chat", itl=0.012)], {CHAT: 20.0}, policy=PATIENT).run(210.0)
    first = shape(world)
    for _ in range(4):
        world.live_lengths[CHAT] = (128.0, 64.0)
        world.run(60.0)
        world.live_lengths[CHAT] = (512.0, 256.0)
        world.run(120.0)
    assert shape(world) == first


def test_the_digest_stands_for_what_was_declared_and_a_shape_depends_on() -> None:
    base = serving("chat")
    digest = digest_of(base, Sharing.MPS)
    assert digest_of(replace(base, template_hash="template99", generation=7), Sharing.MPS) == digest
    assert digest_of(serving("chat", itl=0.02), Sharing.MPS) != digest
    assert digest_of(serving("chat", batch=8), Sharing.MPS) != digest
    assert digest_of(base, Sharing.EXCLUSIVE) != digest


def test_what_runs_when_the_plan_was_lost_keeps_its_shape() -> None:
    world = World([gpu(0)], [serving("chat", batch=64)], {CHAT: 20.0}).run(60.0)
    running = shape(world)
    world.servings[CHAT] = serving("chat", batch=32)
    facts = interpret(world.observe())
    found = choose(facts, Prospects(facts), ())
    assert [each.shape for each in found] == [running]


def test_lengths_are_predicted_with_in_steps() -> None:
    assert rounded(512.0) == rounded(518.0)
    assert abs(rounded(512.0) / 512.0 - 1.0) < 0.026
    assert rounded(0.0) == 0.0
