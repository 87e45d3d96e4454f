"""When to wait, when to stop waiting and what gives way, to the second and to the replica."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpupack.decide.hold import GivenUp, is_outdated, is_settled, renew, to_give_up, withdraw
from gpupack.facts.experiment import Experiment
from gpupack.facts.observation import Observation, Phase, Refused
from gpupack.facts.placement import FormerShape, Placement, Record
from gpupack.facts.serving import Sharing
from gpupack.units import Ratio, Seconds

from ..strategies import NOON, key
from .boards import A, B, board, board_on, demand, seen, with_placement, with_pod, without_pod

CHAT = key("chat")
ONE = "gpus: {a: , b: }\nservings: {chat: {batch: 64}}\nreplicas: [{serving: chat, gpu: a, %s}]"
TWO = "gpus: {a: , b: }\nservings: {chat: {batch: 64}}\nreplicas: [{serving: chat, gpu: a, count: 2, %s}]"
LONG_AGO = Seconds(NOON - 601.0)
BUSY = "something is in the way"


def given_up(observation: Observation, obstacle: str | None = None) -> tuple[GivenUp, ...]:
    return withdraw(board_on(observation), lambda _: obstacle)


@pytest.mark.parametrize(
    ("pod", "why"),
    [
        ("phase: Pending, age: 10", None),
        ("phase: Pending, age: 600", None),
        ("phase: Pending, age: 601", "it stayed Pending for 600 s"),
        ("phase: Starting, age: 5000", None),
        ("phase: Starting, restarts: 2", None),
        ("phase: Starting, restarts: 3", "it restarted 3 times without becoming ready"),
        ("phase: Ready, restarts: 3", None),
        ("phase: Failed, age: 60", "it failed at its start"),
        ("phase: Failed, age: 61", None),
    ],
)
def test_a_pod_is_given_up_when_its_time_is_over_and_not_before(pod: str, why: str | None) -> None:
    found = given_up(seen(ONE % pod))
    assert [each.why for each in found] == ([] if why is None else [why])


@pytest.mark.parametrize(("planned", "goes"), [(601.0, True), (10.0, False)])
def test_a_pod_is_no_older_than_its_plan_where_our_clock_is_ahead_of_the_api_servers(
    planned: float, goes: bool
) -> None:
    late = with_placement(seen(ONE % "phase: Pending, age: 700"), planned_at=Seconds(NOON - planned))
    assert bool(given_up(late)) is goes


def test_what_the_pod_says_of_itself_is_told() -> None:
    waits = with_pod(seen(ONE % "phase: Pending, age: 700"), message="no node fits")
    assert given_up(waits)[0].why == "it stayed Pending for 600 s: no node fits"


@pytest.mark.parametrize(
    ("ready", "leaving", "goes"), [(False, True, True), (False, False, False), (True, True, False)]
)
def test_a_pod_that_is_taken_from_a_node_that_is_not_ready_is_given_up(ready: bool, leaving: bool, goes: bool) -> None:
    world = "gpus: {a: {nodeReady: %s}}\nservings: {chat: {batch: 64}}\nreplicas: [{serving: chat, gpu: a}]"
    observation = with_pod(seen(world % str(ready).lower()), deletion_at=Seconds(NOON - 5.0) if leaving else None)
    assert bool(given_up(observation)) is goes


def test_a_pod_whose_gpu_is_gone_too_is_not_called_late() -> None:
    observation = with_pod(seen(ONE % "phase: Ready"), deletion_at=Seconds(NOON - 5.0))
    assert given_up(replace(observation, gpus=observation.gpus[1:])) == ()


@pytest.mark.parametrize("mode", ["Suspend", "Advise"])
def test_a_serving_that_gpupack_leaves_alone_keeps_what_does_not_come_up(mode: str) -> None:
    assert given_up(seen((ONE % "phase: Pending, age: 700").replace("batch: 64", f"batch: 64, mode: {mode}"))) == ()


def test_a_serving_that_cannot_be_read_keeps_what_does_not_come_up() -> None:
    observation = seen(ONE % "phase: Pending, age: 700")
    refused = Refused(key=CHAT, uid="uid", generation=1, field="spec", problem="it cannot be read", fix="mend it")
    assert given_up(replace(observation, servings=(), refused=(refused,))) == ()


def test_the_gpu_is_left_alone_for_as_long_as_was_waited() -> None:
    board = board_on(seen(ONE % "phase: Failed, age: 20"))
    withdraw(board, lambda _: None)
    assert {where: each.until for where, each in board.withdrawn.items()} == {(CHAT, A): NOON + 600.0}


def test_one_replica_is_given_up_on_a_gpu_at_a_time() -> None:
    assert len(given_up(seen(TWO % "phase: Failed, age: 20"))) == 1


def waits(*, since: float, sibling: dict[str, Any] | None = None) -> Observation:
    """A placement without a pod, planned so long ago, beside a sibling or alone."""
    world = seen((ONE if sibling is None else TWO) % "age: 5000")
    observation = with_placement(without_pod(world), planned_at=Seconds(NOON - since))
    return with_pod(observation, 1, **(sibling or {}))


@pytest.mark.parametrize(
    ("observation", "goes"),
    [
        (waits(since=600.0), False),
        (waits(since=601.0), True),
        (waits(since=9000.0, sibling={"ready_at": Seconds(NOON - 600.0)}), False),
        (waits(since=9000.0, sibling={"ready_at": Seconds(NOON - 601.0)}), True),
        (waits(since=601.0, sibling={"ready_at": None, "phase": Phase.STARTING}), False),
        (waits(since=601.0, sibling={"ready_at": None, "phase": Phase.PENDING, "created_at": NOON}), False),
        (waits(since=9000.0, sibling={"ready_at": None, "phase": Phase.STARTING, "deletion_at": LONG_AGO}), True),
        (waits(since=601.0, sibling={"ready_at": None, "phase": Phase.FAILED}), True),
    ],
)
def test_a_placement_waits_for_its_turn_and_from_then_on_for_a_deadline(observation: Observation, goes: bool) -> None:
    assert [each.why for each in given_up(observation, BUSY)] == ([BUSY] if goes else [])
    assert given_up(observation, None) == ()


@pytest.mark.parametrize(
    ("leaving", "goes"),
    [
        ({"deletion_at": Seconds(NOON - 600.0)}, False),
        ({"deletion_at": Seconds(NOON - 601.0)}, True),
        ({"in_service": False}, False),
    ],
)
def test_a_pod_that_is_lost_after_long_service_waits_for_those_that_leave(leaving: dict[str, Any], goes: bool) -> None:
    observation = waits(since=9000.0, sibling={"ready_at": Seconds(NOON - 9000.0), **leaving})
    assert bool(given_up(observation, BUSY)) is goes


def test_what_a_cordoned_node_has_lost_is_not_given_up_because_it_moves() -> None:
    observation = waits(since=9000.0)
    assert len(given_up(observation, BUSY)) == 1
    assert len(given_up(replace(observation, gpus=observation.gpus[1:]), BUSY)) == 1
    cordoned = replace(observation, gpus=tuple(replace(each, cordoned=True) for each in observation.gpus))
    assert given_up(cordoned, BUSY) == ()


def test_among_many_siblings_one_that_starts_is_enough_to_wait() -> None:
    three = (TWO % "age: 5000").replace("count: 2", "count: 3")
    observation = with_placement(without_pod(seen(three)), planned_at=Seconds(NOON - 700.0))
    starting = with_pod(observation, 1, phase=Phase.STARTING, ready_at=None)
    late = with_pod(starting, 2, ready_at=Seconds(NOON - 5000.0))
    assert given_up(late, BUSY) == ()


def replaced(**old: Any) -> Observation:
    """A placement that stays Pending too long, and the old pod that it was to take the place of."""
    world = (
        "gpus: {a: , b: }\nservings: {chat: {batch: 64}}\nreplicas:\n"
        "  - {serving: chat, gpu: a, phase: Pending, age: 700, template: template01}\n"
        "  - {serving: chat, gpu: b, planned: false, age: 5000}"
    )
    observation = seen(world)
    return replace(observation, replicas=(observation.replicas[0], replace(observation.replicas[1], **old)))


def test_the_replica_that_still_serves_takes_the_place_of_a_successor_that_never_came() -> None:
    board = board_on(replaced())
    [found] = withdraw(board, lambda _: None)
    assert found.instead is not None
    [stays] = board.placements
    assert (stays.gpu_uuid, stays.planned_at) == (B, NOON - 5000.0)


@pytest.mark.parametrize(
    "old",
    [{"phase": Phase.STARTING, "ready_at": None}, {"deletion_at": Seconds(NOON - 1.0)}, {"in_service": False}],
)
def test_one_that_starts_or_leaves_takes_no_place(old: dict[str, Any]) -> None:
    [found] = given_up(replaced(**old))
    assert found.instead is None


def test_one_on_a_gpu_that_has_had_its_step_takes_no_place() -> None:
    board = board_on(replaced())
    board.touched.add(B)
    [found] = withdraw(board, lambda _: None)
    assert found.instead is None


# What is given up for want of load


def record(age: float) -> Record:
    return Record(
        serving=CHAT, reason="DemandMet", subject="chat", observed=0.0, limit=0.0, unit="", at_least=False, wanted=1,
        planned=2, message="", at=Seconds(NOON - age),
    )  # fmt: skip


def goes(observation: Observation, *, spare: bool = True, age: float | None = None) -> Placement | None:
    board = board_on(observation)
    of = board.facts.servings[CHAT]
    return to_give_up(board, of, demand(spare=spare), None if age is None else record(age))


@pytest.mark.parametrize(("age", "expected"), [(None, True), (29.0, False), (30.0, True), (31.0, True)])
def test_the_load_is_watched_for_a_window_after_each_decision(age: float | None, expected: bool) -> None:
    assert (goes(seen(TWO % "age: 5000"), age=age) is not None) is expected


def test_nothing_is_given_up_while_anything_moves_or_the_load_needs_all() -> None:
    assert goes(seen(TWO % "age: 5000"), spare=False) is None
    assert goes(with_pod(seen(TWO % "age: 5000"), 1, phase=Phase.STARTING, ready_at=None)) is None
    assert goes(with_pod(seen(TWO % "age: 5000"), 1, template_hash="template01")) is None


def test_the_least_count_stays_whatever_the_load() -> None:
    assert goes(seen(ONE % "age: 5000")) is None
    assert goes(seen((TWO % "age: 5000").replace("batch: 64", "batch: 64, least: 2"))) is None


@pytest.mark.parametrize(("limits", "expected"), [("most: 1", True), ("most: 2", False), ("most: 1, least: 2", False)])
def test_what_is_above_the_most_goes_at_once_and_without_a_look_at_the_load(limits: str, expected: bool) -> None:
    observation = seen((TWO % "age: 5000").replace("batch: 64", f"batch: 64, {limits}"))
    moving = with_pod(observation, 1, phase=Phase.STARTING, ready_at=None)
    assert (goes(moving, spare=False, age=1.0) is not None) is expected
    assert (goes(observation, spare=True, age=1.0) is not None) is expected


def test_a_gpu_that_has_had_its_step_gives_up_nothing_more() -> None:
    board = board_on(seen(TWO % "age: 5000"))
    board.touched.add(A)
    assert to_give_up(board, board.facts.servings[CHAT], demand(spare=True), None) is None


# What is renewed


def test_settled_is_when_all_that_is_planned_serves_and_nothing_else_is_left() -> None:
    settled = seen(TWO % "age: 5000")
    assert is_settled(board_on(settled), CHAT)
    assert not is_settled(board_on(with_pod(settled, 1, phase=Phase.STARTING, ready_at=None)), CHAT)
    assert not is_settled(board(TWO % "age: 5000, planned: false"), CHAT)


@pytest.mark.parametrize(
    ("changes", "outdated"),
    [
        ({}, False),
        ({"template_hash": "template01"}, True),
        ({"sharing": Sharing.EXCLUSIVE}, True),
        ({"shape": "another"}, True),
        ({"gpu_uuid": "GPU-gone", "template_hash": "template01"}, False),
    ],
)
def test_a_replica_is_outdated_by_its_template_its_sharing_or_its_shape_alone(
    changes: dict[str, Any], outdated: bool
) -> None:
    board = board_on(seen(ONE % "age: 5000"))
    [old] = board.placements
    if "shape" in changes:
        changes = {"shape": replace(old.shape, max_num_seqs=32)}
    assert is_outdated(board, board.facts.servings[CHAT], Sharing.MPS, replace(old, **changes)) is outdated


TWO_GPUS = """gpus: {a: , b: }
servings: {chat: {batch: 64}}
replicas:
  - {serving: chat, gpu: a, count: 2, age: 5000, template: old}
  - {serving: chat, gpu: b, age: 5000, template: old}"""


def renewed(observation: Observation, *touched: str) -> Placement | None:
    board = board_on(observation)
    board.touched.update(touched)
    found = renew(board, board.facts.servings[CHAT], Sharing.MPS, demand())
    return None if found is None or found.new is None else found.old


def test_replicas_are_renewed_from_the_first_gpu_and_slot_on() -> None:
    observation = seen(TWO_GPUS)
    assert observation.plan is not None
    for placements in (observation.plan.placements, observation.plan.placements[::-1]):
        first = renewed(replace(observation, plan=replace(observation.plan, placements=placements)))
        assert first is not None
        assert (first.gpu_uuid, first.slot) == (A, 0)
    elsewhere = renewed(observation, A)
    assert elsewhere is not None
    assert elsewhere.gpu_uuid == B


def test_one_that_does_not_serve_is_renewed_first_and_waits_for_nobody() -> None:
    broken = seen(TWO_GPUS)
    broken = replace(broken, replicas=(*broken.replicas[:2], replace(broken.replicas[2], phase=Phase.FAILED)))
    first = renewed(broken)
    assert first is not None
    assert first.gpu_uuid == B
    assert renewed(broken, B) is None


def another_shape(*, live: bool, others: bool = False) -> Observation:
    """Replicas of a shape that is not the chosen one any more; `live` lengths asked for that, or the user did."""
    observation = seen(TWO_GPUS.replace(", template: old", ""))
    assert observation.plan is not None
    [chosen] = observation.plan.shapes
    was = FormerShape(
        shape=replace(chosen.shape, max_num_seqs=1) if others else chosen.shape, replicas_per_gpu=2,
        utilization_hundredths=20,
    )  # fmt: skip
    new = replace(chosen, shape=replace(chosen.shape, max_num_seqs=32), was=was if live else None)
    return replace(observation, plan=replace(observation.plan, shapes=(new,)))


def asked(observation: Observation, sharing: Sharing = Sharing.MPS) -> bool:
    board = board_on(observation)
    found = renew(board, board.facts.servings[CHAT], sharing, demand())
    assert found is not None
    return found.asked


def test_a_shape_that_live_lengths_asked_for_is_not_what_the_user_asked_for() -> None:
    assert not asked(another_shape(live=True))
    assert asked(another_shape(live=False))
    assert asked(another_shape(live=True, others=True))
    observation = another_shape(live=True)
    assert observation.plan is not None
    edited = [replace(each, template_hash="old") for each in observation.plan.placements]
    pods = tuple(replace(each, template_hash="old") for each in observation.replicas)
    assert asked(replace(observation, replicas=pods, plan=replace(observation.plan, placements=tuple(edited))))
    assert asked(observation, Sharing.EXCLUSIVE)


def test_a_shape_on_trial_is_waited_for_by_live_lengths_and_not_by_the_user() -> None:
    trial = Experiment(
        serving=CHAT, gpu_uuid=B, step="Replaced", began_at=NOON, last_at=NOON, asked=False, before=(), company="one",
        gain=Ratio(0.1), saturation=Ratio(0.5), itl=Seconds(0.01), inputs="",
    )  # fmt: skip
    for live in (True, False):
        observation = another_shape(live=live)
        assert observation.plan is not None
        observation = replace(observation, plan=replace(observation.plan, experiments=(trial,)))
        assert (renewed(observation) is None) is live


def test_what_cannot_be_renewed_in_its_place_says_why_of_the_first_and_lets_others_go_on() -> None:
    observation = replace(seen(TWO_GPUS.replace("{a: ,", "{a: {cordoned: true},")))
    board = board_on(observation)
    found = renew(board, board.facts.servings[CHAT], Sharing.MPS, demand(4))
    assert found is not None
    assert found.new is not None
    assert found.old.gpu_uuid == B
    assert [each.engines for each in found.before] == [1]
    both = board_on(replace(observation, gpus=tuple(replace(each, cordoned=True) for each in observation.gpus)))
    stopped = renew(both, both.facts.servings[CHAT], Sharing.MPS, demand(4))
    assert stopped is not None
    assert stopped.stop is not None
    assert stopped.asked
    assert (stopped.old.gpu_uuid, stopped.old.slot, stopped.stop.subject) == (A, 0, A)


def test_a_shape_of_live_lengths_that_has_no_room_is_not_what_the_user_asked_for() -> None:
    observation = another_shape(live=True)
    board = board_on(replace(observation, gpus=tuple(replace(each, cordoned=True) for each in observation.gpus)))
    found = renew(board, board.facts.servings[CHAT], Sharing.MPS, demand(4))
    assert found is not None
    assert found.stop is not None
    assert not found.asked


def test_a_renewal_waits_for_memory_that_nobody_explains_even_if_no_replica_more_is_wanted() -> None:
    board = board_on(seen(TWO_GPUS.replace("a: , b: ", "a: {unexplainedGib: 9}, b: {unexplainedGib: 9}")))
    found = renew(board, board.facts.servings[CHAT], Sharing.MPS, demand(1))
    assert found is not None
    assert found.stop is not None
    assert found.stop.reason == "HeldByOthers"


@pytest.mark.parametrize(("cores", "reason"), [(64.0, None), (1.0, "HostCpu")])
def test_a_renewal_needs_the_cores_that_the_serving_wants_now(cores: float, reason: str | None) -> None:
    observation = seen(TWO_GPUS)
    board = board_on(replace(observation, nodes=tuple(replace(each, cpu_cores=cores) for each in observation.nodes)))
    found = renew(board, board.facts.servings[CHAT], Sharing.MPS, demand(4))
    assert found is not None
    assert (None if found.stop is None else found.stop.reason) == reason


def test_a_renewal_needs_the_memory_that_the_new_shape_takes() -> None:
    observation = another_shape(live=False)
    assert observation.plan is not None
    [chosen] = observation.plan.shapes
    huge = replace(chosen, shape=replace(chosen.shape, kv_cache_memory_bytes=78 << 30))
    board = board_on(replace(observation, plan=replace(observation.plan, shapes=(huge,))))
    found = renew(board, board.facts.servings[CHAT], Sharing.MPS, demand(4))
    assert found is not None
    assert found.stop is not None
    assert found.stop.reason == "Memory"
