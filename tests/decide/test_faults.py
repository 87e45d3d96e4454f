"""Faults that another attempt does not mend: what they teach, what is left alone, and what moves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpupack.decide.faults import faulty_gpus, has_failed, learn, refused
from gpupack.decide.reconcile import reconcile
from gpupack.facts.interpretation import interpret
from gpupack.facts.observation import Cause, ClaimSeen, Holder, Missing, Observation, Phase, Reading, Trouble
from gpupack.facts.placement import FaultyGpu, Lesson
from gpupack.facts.serving import Sharing
from gpupack.plan import ApplyBudget, ConditionType, Outcome, StartReplica
from gpupack.units import GIB, MIB, Bytes, Seconds

from ..strategies import NOON, key
from .boards import A, B, board_on, seen, with_pod, without_pod
from .test_tick import plan_of, record, where

CHAT = key("chat")
ONE = "gpus: {a: , b: {node: node-1}}\nservings: {chat: {batch: 64}}\nreplicas: [{serving: chat, gpu: a, age: 100}]"
FULL = """gpus: {a: , b: {node: node-1, heldBy: Pod batch/job}}
servings: {chat: {batch: 64}}
replicas: [{serving: chat, gpu: a, age: 100}]"""


def telling(observation: Observation, xid: float | None) -> Observation:
    """The same where the first GPU tells this XID, or nothing."""
    origin = "DCGM_FI_DEV_XID_ERRORS"
    told: Reading | Missing = Missing(cause=Cause.NO_SERIES, origin=origin)
    if xid is not None:
        told = Reading(value=xid, at=Seconds(NOON - 1.0), origin=origin)
    first, *others = observation.gpus
    return replace(observation, gpus=(replace(first, xid=told), *others))


def planned(observation: Observation, **plan: Any) -> Observation:
    assert observation.plan is not None
    return replace(observation, plan=replace(observation.plan, **plan))


def read_back(observation: Observation, outcome: Outcome, seconds: float = 2.0) -> Observation:
    """The next tick, on the plan that this one wrote; readings are as fresh."""
    return replace(observation, plan=plan_of(outcome), at=Seconds(observation.at + seconds))


def told(outcome: Outcome) -> tuple[str, str]:
    [found] = plan_of(outcome).records
    return found.reason, found.message


# A GPU that is not well


@pytest.mark.parametrize(("xid", "moves"), [(79.0, True), (48.0, True), (0.0, False), (31.0, False), (None, False)])
def test_an_xid_of_the_gpu_moves_its_replicas_and_one_of_a_program_does_not(xid: float | None, moves: bool) -> None:
    outcome = reconcile(telling(seen(ONE), xid))
    assert where(outcome) == [("chat", B if moves else A, 0)]
    assert [each.gpu_uuid for each in plan_of(outcome).faulty] == [A] * moves
    if moves:
        assert told(outcome)[0] == "Moved"
        assert f"the GPU is not well, its driver told XID {xid:.0f}" in told(outcome)[1]


def test_a_faulty_gpu_takes_nothing_until_it_tells_that_it_is_well_and_the_pool_says_so() -> None:
    known = FaultyGpu(gpu_uuid=A, why="its driver told XID 79", since=Seconds(NOON - 60.0))
    empty = planned(seen(ONE.partition("replicas")[0]), faulty=(known,))
    for xid, place in ((None, B), (31.0, B), (79.0, B), (0.0, A)):
        outcome = reconcile(telling(empty, xid))
        assert where(outcome) == [("chat", place, 0)]
        assert plan_of(outcome).faulty == (() if place == A else (known,))
        conditions = {each.type: each for each in outcome.pool_status.conditions}
        assert (ConditionType.GPUS_HEALTHY in conditions) is (place == B)
    assert "XID 79" in reconcile(telling(empty, 79.0)).pool_status.conditions[-1].message


def test_a_fault_is_known_since_it_was_told_first_and_another_one_is_news() -> None:
    known = FaultyGpu(gpu_uuid=A, why="its driver told XID 79", since=Seconds(NOON - 60.0))
    for xid, since in ((79.0, known.since), (48.0, NOON)):
        [found] = faulty_gpus(interpret(telling(seen(ONE), xid)), (known,))
        assert (found.why, found.since) == (f"its driver told XID {xid:.0f}", since)


def test_a_replica_that_serves_on_a_faulty_gpu_serves_on_where_there_is_no_other_place() -> None:
    assert where(reconcile(telling(seen(FULL), 79.0))) == [("chat", A, 0)]


def test_a_pod_that_was_lost_on_a_faulty_gpu_is_not_made_again_there() -> None:
    lost = without_pod(telling(seen(FULL), 79.0))
    outcome = reconcile(lost)
    assert where(outcome) == [("chat", A, 0)]
    acted = reconcile(read_back(lost, outcome))
    assert not any(isinstance(each, StartReplica) for each in acted.actions)


@pytest.mark.parametrize(("effect", "moves"), [("NoExecute", True), ("NoSchedule", False)])
def test_a_taint_on_the_device_that_evicts_moves_its_replicas(effect: str, moves: bool) -> None:
    tainted = replace(seen(ONE), holders=(Holder(gpu_uuid=A, kind="DeviceTaint", name=f"broken=:{effect}"),))
    assert where(reconcile(tainted)) == [("chat", B if moves else A, 0)]


# A node that is emptied


CORDONED = ONE.replace("a: ,", "a: {cordoned: true},")


def test_what_serves_on_a_cordoned_node_moves_one_at_a_time_and_a_drain_waits_for_the_new_one() -> None:
    two = seen(CORDONED.replace("age: 100", "age: 100, count: 2").replace("batch: 64", "batch: 64, replicas: 2"))
    outcome = reconcile(two)
    assert where(outcome) == [("chat", A, 1), ("chat", B, 0)]
    assert "node node-0 is cordoned." in told(outcome)[1]
    acted = reconcile(read_back(two, outcome))
    assert where(acted) == where(outcome), "the next one waits"
    assert ApplyBudget(serving=CHAT, min_available=2) in acted.actions
    assert [each.placement.gpu_uuid for each in acted.actions if isinstance(each, StartReplica)] == [B]


def test_a_replica_that_serves_on_a_cordoned_node_stays_without_another_place() -> None:
    held = CORDONED.replace("b: {node: node-1}", "b: {node: node-1, heldBy: Pod batch/job}")
    assert where(reconcile(seen(held))) == [("chat", A, 0)]


# A start that cannot succeed


def starting(trouble: Trouble | None, text: str = ONE, **pod: Any) -> Observation:
    changes = {"phase": Phase.STARTING, "ready_at": None, "restarts": 1, "message": "Error: “last words”", **pod}
    return with_pod(replace(seen(text), engines=()), trouble=trouble, **changes)


def test_an_image_that_refuses_its_arguments_is_tried_once_and_said() -> None:
    first = starting(Trouble.REFUSED)
    outcome = reconcile(first)
    assert where(outcome) == []
    reason, message = told(outcome)
    assert reason == "EngineRefused"
    assert "last words" in message
    [status] = outcome.serving_statuses
    conditions = {each.type: each.reason for each in status.conditions}
    assert conditions[ConditionType.READY] == conditions[ConditionType.PACKED] == "EngineRefused"
    gone = without_pod(first)
    for seconds, again in ((2.0, False), (1799.0, False), (1801.0, True)):
        later = reconcile(read_back(gone, outcome, seconds))
        assert (len(where(later)) == 1) is again, seconds
    fixed = read_back(gone, outcome)
    fixed = replace(fixed, servings=tuple(replace(each, template_hash="mended") for each in fixed.servings))
    assert len(where(reconcile(fixed))) == 1
    assert plan_of(reconcile(fixed)).lessons == ()


def test_a_refused_image_starts_on_no_other_gpu_and_leaves_what_serves() -> None:
    two = starting(Trouble.REFUSED, ONE.replace("age: 100", "age: 100, count: 2").replace("64", "64, replicas: 2"))
    serves = replace(two.replicas[1], phase=Phase.READY, ready_at=Seconds(NOON - 50.0), trouble=None)
    outcome = reconcile(replace(two, replicas=(two.replicas[0], serves)))
    assert where(outcome) == [("chat", A, 1)]
    assert told(outcome)[0] == "EngineRefused"


def test_an_engine_without_memory_is_withdrawn_at_once_and_each_time_more_is_planned_for_it() -> None:
    short = starting(Trouble.OUT_OF_MEMORY, short=Bytes(2 * GIB))
    outcome = reconcile(short)
    assert where(outcome) == []
    assert told(outcome)[0] == "Withdrawn"
    [lesson] = plan_of(outcome).lessons
    assert lesson.overhead > 2 * GIB
    again = planned(short, lessons=(lesson,))
    [more] = plan_of(reconcile(again)).lessons
    assert more.overhead >= 2 * lesson.overhead


def test_what_an_engine_was_seen_to_need_counts_for_every_fit() -> None:
    room = seen(ONE.replace("batch: 64", "batch: 64, replicas: 2"))
    assert len(where(reconcile(room))) == 2
    [replica] = room.replicas
    lesson = Lesson(
        serving=CHAT, gpu_kind="H100-80GB", template_hash=replica.template_hash, overhead=Bytes(40 * GIB)
    )  # fmt: skip
    only = replace(room, gpus=room.gpus[:1])
    assert len(where(reconcile(only))) == 2
    taught = reconcile(planned(only, lessons=(lesson,)))
    assert where(taught) == [("chat", A, 0)]
    assert told(taught)[0] == "Memory"
    [shape] = plan_of(taught).shapes
    assert shape.replicas_per_gpu == 1
    assert shape.shape == replica.shape, "what runs keeps its shape"


def lessons(observation: Observation, *known: Lesson) -> list[Lesson]:
    """What is known after a look at these pods."""
    board = board_on(planned(observation, lessons=known))
    learn(board)
    return list(board.lessons.values())


def lesson_of(template: str = "template00", **fields: Any) -> Lesson:
    return Lesson(serving=CHAT, gpu_kind="H100-80GB", template_hash=template, **fields)


@pytest.mark.parametrize(
    ("known", "short", "overhead"),
    [(0, 0, 512), (0, 2048, 2048 + 256), (512, 0, 1024), (1024, 100, 2048), (512, 2048, 512 + 2048 + 256)],
)
def test_what_is_planned_beyond_the_prediction_at_least_doubles_and_covers_what_was_missing(
    known: int, short: int, overhead: int
) -> None:
    """In MiB: at least 512 more, and 256 beyond what was missing."""
    failed = starting(Trouble.OUT_OF_MEMORY, short=Bytes(short * MIB))
    [found] = lessons(failed, lesson_of(overhead=Bytes(known * MIB)))
    assert found.overhead == overhead * MIB


def test_another_template_begins_anew() -> None:
    [found] = lessons(starting(Trouble.OUT_OF_MEMORY), lesson_of("old", overhead=Bytes(GIB), refusal="no"))
    assert found == lesson_of(overhead=Bytes(512 * MIB))
    both = ONE.replace("age: 100}", "age: 100}, {serving: chat, gpu: a, template: old}")
    [found] = lessons(starting(Trouble.OUT_OF_MEMORY, both), lesson_of("old", overhead=Bytes(GIB)))
    assert found == lesson_of(overhead=Bytes(512 * MIB)), "though engines of the old one are still there"


LATER, AT_ONCE, BEFORE = Seconds(NOON + 1.0), Seconds(NOON), Seconds(NOON - 1.0)


def test_a_refusal_is_forgotten_in_time_and_what_is_known_of_memory_is_not() -> None:
    serves, memory = seen(ONE), Bytes(GIB)
    for until in (AT_ONCE, BEFORE):
        assert lessons(serves, lesson_of(refusal="no", until=until)) == []
        [found] = lessons(serves, lesson_of(refusal="no", until=until, overhead=memory))
        assert (found.refusal, found.overhead) == ("", memory)
    both = lesson_of(refusal="no", until=LATER, overhead=memory)
    assert lessons(serves, both) == [both]
    refusal = lesson_of(refusal="no", until=LATER)
    assert lessons(serves, refusal) == [refusal]


def test_a_lesson_of_a_template_that_still_runs_is_kept_and_one_of_nobody_is_not() -> None:
    old = lesson_of("old", overhead=Bytes(GIB))
    assert lessons(seen(ONE.replace("age: 100", "age: 100, template: old")), old) == [old]
    assert lessons(seen(ONE), old) == []


def test_nothing_is_learnt_on_a_gpu_that_is_not_published() -> None:
    failed = starting(Trouble.OUT_OF_MEMORY)
    assert lessons(replace(failed, gpus=failed.gpus[1:])) == []


@pytest.mark.parametrize(
    ("trouble", "phase", "failed"),
    [
        (Trouble.OUT_OF_MEMORY, Phase.STARTING, True),
        (Trouble.REFUSED, Phase.FAILED, True),
        (Trouble.MPS_LOST, Phase.STARTING, False),
        (None, Phase.FAILED, False),
        (Trouble.OUT_OF_MEMORY, Phase.READY, False),
    ],
)
def test_a_start_has_failed_until_the_engine_serves(trouble: Trouble | None, phase: Phase, failed: bool) -> None:
    assert has_failed(starting(trouble, phase=phase).replicas[0]) is failed


def test_an_image_that_said_nothing_is_refused_in_our_words() -> None:
    [found] = lessons(starting(Trouble.REFUSED, message=""))
    assert found.refusal == "it does not start"


def test_only_engines_of_the_template_that_refused_are_refused() -> None:
    board = board_on(planned(seen(ONE), lessons=(lesson_of(refusal="no", until=LATER),)))
    assert refused(board, CHAT, "template00") is not None
    assert refused(board, CHAT, "mended") is None
    assert refused(board, key("docs"), "template00") is None


# What engines of one pod lose together


def at_home(observation: Observation, **claim: Any) -> Observation:
    """The same where engines of a GPU live in one pod, which holds the first GPU."""
    holder = ClaimSeen(
        namespace="team", name="host", uid="h", gpu_uuid=A, sharing=Sharing.MPS,
        owners=tuple(each.uid for each in observation.servings), household="home", engines=4, **claim,
    )  # fmt: skip
    return replace(
        observation,
        gpus=tuple(replace(each, gpu=replace(each.gpu, one_household=True)) for each in observation.gpus),
        servings=tuple(replace(each, household="home") for each in observation.servings),
        claims=(holder,),
    )


def test_engines_that_lost_mps_keep_their_place_however_often_and_it_is_said() -> None:
    lost = at_home(starting(Trouble.MPS_LOST, restarts=7, message="the MPS server 7 is gone"))
    outcome = reconcile(lost)
    assert where(outcome) == [("chat", A, 0)]
    assert told(outcome)[0] == "MpsLost"
    assert "the MPS server 7 is gone" in told(outcome)[1]
    [event] = outcome.actions
    assert getattr(event, "warning", False)
    assert plan_of(reconcile(read_back(lost, outcome))) == plan_of(outcome)


def test_a_host_that_is_lost_is_said_and_made_again() -> None:
    rested = record(CHAT, "DemandMet", at=Seconds(NOON - 10.0))
    lost = replace(planned(without_pod(at_home(seen(ONE))), records=(rested,)), claims=())
    outcome = reconcile(lost)
    assert told(outcome)[0] == "HostLost"
    assert where(outcome) == [("chat", A, 0)]
    assert any(isinstance(each, StartReplica) for each in reconcile(read_back(lost, outcome)).actions)


def test_a_host_that_was_never_there_is_not_lost() -> None:
    added = record(CHAT, "Added", at=Seconds(NOON - 100.0))
    new = replace(planned(without_pod(at_home(seen(ONE))), records=(added,)), claims=())
    assert plan_of(reconcile(new)).records == (added,)


def test_where_mps_does_not_start_a_second_engine_is_withdrawn_at_once_and_not_planned_again() -> None:
    text = (
        ONE.replace("b: {node: node-1}", "").replace("age: 100", "age: 100, count: 2").replace("64", "64, replicas: 2")
    )
    home = at_home(seen(text), alone="MPS does not start in the pod host: no such file")
    waits = with_pod(home, 1, phase=Phase.PENDING, ready_at=None)
    outcome = reconcile(waits)
    assert where(outcome) == [("chat", A, 0)]
    reason, message = told(outcome)
    assert reason == "Withdrawn"
    assert "only one engine runs there, MPS does not start in the pod host: no such file" in message
    gone = read_back(without_pod(waits, 1), outcome, 3600.0)
    fresh = replace(gone, plan=replace(plan_of(outcome), withdrawn=()), at=waits.at)
    later = reconcile(fresh)
    assert where(later) == [("chat", A, 0)]
    assert told(later)[0] == "HeldByOthers"
