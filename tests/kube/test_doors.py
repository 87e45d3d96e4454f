"""Where a Service leads while its serving sleeps, and what activators together say of who waits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gpupack.activator.routes import doors_of, engines_of, piece_of
from gpupack.facts.observation import Missing, Phase, Reading
from gpupack.facts.placement import Plan, Wake
from gpupack.facts.serving import Mode, Serving
from gpupack.kube import doors
from gpupack.kube.host_resource import SliceThere, slice_there
from gpupack.kube.waiting import Said, held_by, said_of
from gpupack.units import Seconds

from ..decide.world import World
from ..strategies import NOON, gpu, serving

ACTIVATORS = ("10.77.0.8", "10.77.0.9")
SLEEPER = serving("chat", batch=64, least=0)
PORTS = {SLEEPER.key: 20007}


def written(asked: Serving, world: World, there: tuple[SliceThere, ...] = ()) -> list[dict[str, Any]]:
    seen = world.observe()
    return doors.doors_to_write([asked], PORTS, seen.plan, seen.replicas, ACTIVATORS, there)


def addresses(body: dict[str, Any]) -> list[str]:
    return [each["addresses"][0] for each in body["endpoints"]]


def standing(body: dict[str, Any]) -> SliceThere:
    return slice_there({**body, "metadata": {**body["metadata"], "creationTimestamp": "2026-11-24T00:00:00Z"}})


def test_a_door_is_open_until_a_replica_is_ready_and_before_the_last_one_leaves() -> None:
    world = World([gpu(0)], [SLEEPER]).run(4.0)
    (starting,) = written(SLEEPER, world)
    assert addresses(starting) == list(ACTIVATORS)
    assert starting["ports"][0]["port"] == 20007
    (awake,) = written(SLEEPER, world.run(60.0), (standing(starting),))
    assert addresses(awake) == []
    assert written(SLEEPER, world, (standing(awake),)) == []
    assert world.plan is not None
    world.plan = replace(world.plan, placements=())
    assert [each.phase for each in world.observe().replicas] == [Phase.READY], "it still takes requests"
    (leaving,) = written(SLEEPER, world, (standing(awake),))
    assert addresses(leaving) == list(ACTIVATORS)


def test_nobody_is_led_to_the_activator_of_a_serving_that_must_not_wake() -> None:
    world = World([gpu(0)], [SLEEPER])
    for other in (replace(SLEEPER, mode=Mode.SUSPEND), serving("chat", least=1), serving("chat", least=0, replicas=0)):
        assert [addresses(each) for each in written(other, world)] == [[]]


def test_how_long_a_wake_took_is_told_and_outlives_the_plan() -> None:
    world = World([gpu(0)], [SLEEPER])
    wake = Wake(serving=SLEEPER.key, asked_at=NOON, ready_at=Seconds(NOON + 12.34))
    world.plan = Plan(wakes=(wake,))
    (body,) = written(SLEEPER, world)
    there = standing(body)
    assert there.wake_seconds == "12.3"
    world.plan = None
    assert written(SLEEPER, world, (there,)) == []


def test_a_port_is_the_same_for_a_uid_and_nobody_elses() -> None:
    first = doors.free_port("uid-1", ())
    assert first is not None
    assert doors.free_port("uid-1", ()) == first
    assert doors.free_port("uid-1", {first}) not in (first, None)
    assert doors.free_port("uid-1", range(doors.FIRST_DOOR, doors.FIRST_DOOR + doors.DOORS)) is None


def test_the_activator_reads_back_what_was_written_and_finds_the_engines() -> None:
    (body,) = written(SLEEPER, World([gpu(0)], [SLEEPER]))
    meta = {**body["metadata"], "creationTimestamp": "2026-11-24T00:00:01Z"}
    door = piece_of({**body, "metadata": meta})
    engines = piece_of({
        "metadata": {
            "namespace": "team", "name": "chat-abcde", "creationTimestamp": "2026-11-24T00:00:00Z",
            "labels": {"kubernetes.io/service-name": "chat", "app.kubernetes.io/managed-by": "gpupack"},
        },
        "ports": [{"name": "http", "port": 8000}],
        "endpoints": [
            {"addresses": ["10.77.0.1"], "conditions": {"ready": True}},
            {"addresses": ["10.77.0.2"], "conditions": {"ready": False}},
            {"addresses": ["10.77.0.3"]},
        ],
    })  # fmt: skip
    assert door is not None
    assert engines is not None
    thief = replace(door, serving=serving("thief").key, created_at="2026-11-24T00:00:02Z")
    assert {port: each.serving for port, each in doors_of([thief, door, engines]).items()} == {20007: SLEEPER.key}
    assert engines_of([door, engines], SLEEPER.key) == ("10.77.0.1:8000", "10.77.0.3:8000")
    assert piece_of({"metadata": {"namespace": "team", "name": "x", "labels": {}}, "ports": []}) is None


def said(*, at: float = 0.0, **waiting: float) -> Said:
    told = [{"serving": f"team/{name}", "requests": 2, "oldestSeconds": old} for name, old in waiting.items()]
    return said_of({"waiting": told}, Seconds(NOON + at))


def test_what_activators_hold_is_added_up_and_the_oldest_counts() -> None:
    (seen,) = held_by([said(chat=5.0), said(chat=9.0, other=1.0)], [SLEEPER.key])
    assert isinstance(seen.requests, Reading)
    assert (seen.requests.value, seen.since) == (4.0, NOON - 9.0)


def test_that_nobody_waits_is_known_only_if_all_were_heard() -> None:
    (quiet,) = held_by([said(), said(at=-3.0)], [SLEEPER.key])
    assert quiet.requests == Reading(value=0.0, at=Seconds(NOON - 3.0), origin="activator")
    (unknown,) = held_by([said(), None], [SLEEPER.key])
    assert isinstance(unknown.requests, Missing)
    (known,) = held_by([said(chat=1.0), None, said(at=-60.0)], [SLEEPER.key])
    assert known.requests == Reading(value=2.0, at=NOON, origin="activator")


def test_without_an_activator_nothing_is_said() -> None:
    assert held_by([], [SLEEPER.key]) == ()
