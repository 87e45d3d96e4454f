"""What a plan that was read back makes of the cluster: in what order, beside whom, and what is left alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpupack.decide.steps import obstacle, steps
from gpupack.facts.observation import ClaimSeen, Observation, Phase
from gpupack.facts.serving import ServingKey, Sharing
from gpupack.plan import (
    Action,
    ApplyBudget,
    ApplyClaim,
    ApplyService,
    DeleteClaim,
    LeaveService,
    MarkReplica,
    StartReplica,
    StopReplica,
)
from gpupack.units import GIB, Bytes, Seconds

from ..strategies import NOON, key
from .boards import A, board_on, seen, with_placement, with_pod, without_pod, without_pods

CHAT = key("chat")
ONE = "gpus: {a: , b: }\nservings: {chat: {batch: 64}}\nreplicas: [{serving: chat, gpu: a}]"
TWO = "gpus: {a: , b: }\nservings: {chat: {batch: 64}}\nreplicas: [{serving: chat, gpu: a, count: 2, age: 5000}]"
TEAMS = """gpus: {a: }
servings: {chat: {batch: 64}, docs: {batch: 64}}
replicas: [{serving: chat, gpu: a}, {serving: docs, gpu: a}]"""


def done(observation: Observation) -> list[Action]:
    return list(steps(board_on(observation)))


def test_nothing_is_done_where_all_is_as_planned() -> None:
    assert done(seen(TWO)) == []


# The children that a serving's replicas share


def services(observation: Observation, **changes: Any) -> Observation:
    return replace(observation, services=tuple(replace(each, **changes) for each in observation.services))


def test_a_service_that_is_gone_is_applied_again() -> None:
    assert done(services(seen(TWO), has_service=False)) == [ApplyService(serving=CHAT)]
    assert done(replace(seen(TWO), services=())) == [
        ApplyService(serving=CHAT),
        ApplyBudget(serving=CHAT, min_available=1),
    ]


@pytest.mark.parametrize(("there", "applied"), [(None, 1), (0, 1), (1, None), (2, 1)])
def test_the_disruption_budget_is_one_less_than_is_planned(there: int | None, applied: int | None) -> None:
    expected = [] if applied is None else [ApplyBudget(serving=CHAT, min_available=applied)]
    assert done(services(seen(TWO), min_available=there)) == expected


def test_a_serving_without_replicas_gets_no_budget_and_one_that_it_has_holds_nothing_back() -> None:
    nothing = seen("gpus: {a: }\nservings: {chat: {batch: 64}}")
    assert done(services(nothing, min_available=None)) == []
    assert done(services(nothing, min_available=1)) == [ApplyBudget(serving=CHAT, min_available=0)]


# Labels that somebody changed


def test_labels_that_somebody_changed_are_put_back() -> None:
    [mark] = done(with_pod(seen(TWO), 1, marked=False))
    assert isinstance(mark, MarkReplica)
    pod = seen(TWO).replicas[1]
    assert (mark.placement.slot, mark.uid, mark.utilization_hundredths) == (1, pod.uid, pod.utilization_hundredths)


@pytest.mark.parametrize("changes", [{"name": "by-hand"}, {"deletion_at": Seconds(NOON - 1.0)}])
def test_labels_of_a_pod_that_is_another_one_or_leaves_are_left_alone(changes: dict[str, Any]) -> None:
    assert not any(isinstance(each, MarkReplica) for each in done(with_pod(seen(TWO), 1, marked=False, **changes)))


def test_labels_are_left_alone_where_gpupack_only_looks_or_the_gpu_is_gone() -> None:
    suspended = with_pod(seen(TWO.replace("batch: 64", "batch: 64, mode: Suspend")), 1, marked=False)
    assert done(suspended) == []
    gone = with_pod(seen(TWO), 1, marked=False)
    assert not any(isinstance(each, MarkReplica) for each in done(replace(gone, gpus=gone.gpus[1:])))


# What is stopped, and what serves on until its successor is ready

REPLACING = """gpus: {a: , b: }
servings: {chat: {batch: 64}}
replicas:
  - {serving: chat, gpu: b, phase: Starting, age: 20}
  - {serving: chat, gpu: a, planned: false, age: 5000}"""


def test_a_replica_serves_on_until_its_successor_is_ready() -> None:
    assert done(seen(REPLACING)) == []
    [leaves] = done(seen(REPLACING.replace("phase: Starting, age: 20", "age: 20")))
    assert isinstance(leaves, LeaveService)


def test_of_two_old_replicas_the_older_goes_while_one_successor_starts() -> None:
    observation = seen(REPLACING.replace("planned: false,", "planned: false, count: 2,"))
    starting, *old = observation.replicas
    old = [replace(each, created_at=Seconds(NOON - age)) for each, age in zip(old, (5000.0, 6000.0), strict=True)]
    [leaves] = done(replace(observation, replicas=(starting, *old)))
    assert isinstance(leaves, LeaveService)
    assert leaves.name == old[1].name


def test_two_old_replicas_serve_on_for_two_successors() -> None:
    both = """gpus: {a: , b: , c: }
servings: {chat: {batch: 64}}
replicas:
  - {serving: chat, gpu: b, phase: Starting, age: 20}
  - {serving: chat, gpu: c, phase: Starting, age: 20}
  - {serving: chat, gpu: a, planned: false, count: 3, age: 5000}"""
    left = [each for each in done(seen(both)) if isinstance(each, LeaveService)]
    assert len(left) == 1


def test_one_that_leaves_already_stands_in_for_nobody() -> None:
    observation = seen(REPLACING)
    starting, old = observation.replicas
    leaving = replace(old, in_service=False)
    [stops] = done(replace(observation, replicas=(starting, leaving)))
    assert stops == StopReplica(serving=CHAT, name=old.name, uid=old.uid)


def test_an_old_pod_that_never_served_stands_in_for_nobody() -> None:
    [stops] = done(seen(REPLACING.replace("planned: false,", "planned: false, phase: Starting,")))
    assert isinstance(stops, StopReplica)


@pytest.mark.parametrize(
    ("pod", "kind"),
    [
        ({}, None),
        ({"phase": Phase.FAILED, "ready_at": None}, StopReplica),
        ({"in_service": False}, StopReplica),
        ({"phase": Phase.STARTING, "ready_at": None, "in_service": False}, None),
        ({"phase": Phase.FAILED, "ready_at": None, "deletion_at": NOON}, None),
    ],
)
def test_a_planned_pod_is_stopped_only_if_it_will_never_serve_again(pod: dict[str, Any], kind: type | None) -> None:
    found = [each for each in done(with_pod(seen(TWO), 1, **pod)) if isinstance(each, StopReplica | LeaveService)]
    assert [type(each) for each in found] == ([] if kind is None else [kind])


def test_a_suspended_serving_stops_nothing_and_starts_nothing() -> None:
    text = TWO.replace("batch: 64", "batch: 64, mode: Suspend")
    assert done(with_pod(seen(text), 1, phase=Phase.FAILED, ready_at=None)) == []
    assert done(without_pod(seen(text), 1)) == []
    assert done(services(seen(text), has_service=False)) == []


def test_a_gpu_stops_one_pod_at_a_time() -> None:
    both = seen(TWO.replace("age: 5000", "phase: Failed"))
    assert [type(each) for each in done(both)] == [StopReplica]


def surge(**world: Any) -> Observation:
    """A successor that has no pod yet on the GPU of the replica that it takes the place of."""
    observation = seen(ONE.replace("gpu: a", "gpu: a, age: 5000"))
    observation = with_placement(observation, template_hash="template01")
    return replace(observation, **world)


def kinds(observation: Observation) -> list[str]:
    return [type(each).__name__ for each in done(observation)]


def test_an_old_replica_gives_way_only_where_its_successor_cannot_start_beside_it() -> None:
    assert kinds(surge()) == ["StartReplica"]
    tight = surge()
    assert kinds(replace(tight, nodes=tuple(replace(each, cpu_cores=3.0) for each in tight.nodes))) == ["LeaveService"]
    unknown = replace(tight, nodes=())
    assert kinds(unknown) == ["StartReplica"]
    assert kinds(on_a_gpu_of(surge(), 1.5)) == ["LeaveService"]


@pytest.mark.parametrize(("cores", "others", "starts"), [(4.0, 0.0, True), (6.0, 2.0, True), (5.0, 2.0, False)])
def test_a_surge_needs_whole_cores_beside_those_of_others(cores: float, others: float, starts: bool) -> None:
    observation = surge()
    nodes = tuple(replace(each, cpu_cores=cores, cpu_cores_of_others=others) for each in observation.nodes)
    assert ("StartReplica" in kinds(replace(observation, nodes=nodes))) is starts


def test_one_that_runs_alone_gives_way_to_its_successor_and_the_other_way_round() -> None:
    alone = with_placement(seen(ONE), sharing=Sharing.EXCLUSIVE)
    assert kinds(alone) == ["LeaveService"]
    assert kinds(replace(alone, claims=())) == ["LeaveService"]
    was_alone = seen(ONE.replace("gpu: a", "gpu: a, sharing: Exclusive"))
    assert kinds(with_placement(was_alone, sharing=Sharing.MPS)) == ["LeaveService"]


def test_without_a_replica_more_than_the_plan_cores_are_not_counted_again() -> None:
    """The scheduler decides: what is planned was planned with cores for it."""
    observation = without_pod(seen(TWO), 1)
    nodes = tuple(replace(each, cpu_cores=1.0) for each in observation.nodes)
    assert kinds(replace(observation, nodes=nodes)) == ["StartReplica"]


def test_the_oldest_plan_of_a_gpu_starts_first() -> None:
    observation = with_placement(without_pods(seen(TWO)), 0, planned_at=NOON)
    started = [each.placement.slot for each in done(observation) if isinstance(each, StartReplica)]
    assert started == [1]


# What keeps a pod from being created


def blocked(observation: Observation, slot: int = 1) -> str | None:
    board = board_on(observation)
    [placement] = [each for each in board.placements if each.slot == slot]
    return obstacle(board, placement)


@pytest.mark.parametrize(
    ("sibling", "waits"),
    [
        ({}, False),
        ({"phase": Phase.STARTING, "ready_at": None}, True),
        ({"phase": Phase.PENDING, "ready_at": None}, True),
        ({"in_service": False}, True),
        ({"deletion_at": NOON}, True),
    ],
)
def test_nothing_starts_beside_one_that_starts_or_leaves(sibling: dict[str, Any], waits: bool) -> None:
    assert (blocked(with_pod(without_pod(seen(TWO), 1), 0, **sibling)) is not None) is waits


@pytest.mark.parametrize(("gib", "waits"), [(0.9, False), (1.0, False), (1.01, True)])
def test_nothing_starts_beside_memory_that_nobody_explains(gib: float, waits: bool) -> None:
    observation = without_pod(seen(TWO), 1)
    board = board_on(observation)
    [here] = board.facts.replicas_on[A]
    held = board.prospects.most_memory_of(board.kind(A), board.kin(here))
    reading = replace(observation.gpus[0].fb_used, value=held + gib * GIB)
    gpus = (replace(observation.gpus[0], fb_used=reading), *observation.gpus[1:])
    assert (blocked(replace(observation, gpus=gpus)) is not None) is waits


def test_without_a_reading_of_memory_nothing_is_unexplained() -> None:
    assert blocked(without_pod(seen(TWO.replace("a: ,", "a: {fbUsed: NoSeries},")), 1)) is None


@pytest.mark.parametrize(("mine", "other"), [(Sharing.EXCLUSIVE, Sharing.MPS), (Sharing.MPS, Sharing.EXCLUSIVE)])
def test_one_that_runs_alone_has_no_company_whichever_of_the_two_it_is(mine: Sharing, other: Sharing) -> None:
    observation = with_placement(with_pod(without_pod(seen(TWO), 1), 0, sharing=other), 1, sharing=mine)
    why = blocked(replace(observation, claims=()))
    assert why is not None
    assert "one of the two runs alone" in why


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"deleting": True}, "the claim claim has to go first"),
        ({"sharing": Sharing.EXCLUSIVE}, "the claim claim has to go first"),
        ({"namespace": "other"}, "the claim other/claim holds the GPU"),
    ],
)
def test_a_claim_of_others_or_of_another_sharing_has_to_go_first(changes: dict[str, Any], why: str | None) -> None:
    claim = ClaimSeen(namespace="team", name="claim", uid="c", gpu_uuid=A, sharing=Sharing.MPS, owners=("uid",))
    observation = replace(without_pods(seen(ONE)), claims=(replace(claim, **changes),))
    assert blocked(observation, 0) == why


@pytest.mark.parametrize(("household", "why"), [("own", None), ("another", "the claim claim has to go first")])
def test_a_claim_that_is_a_pod_takes_only_engines_of_its_household(household: str, why: str | None) -> None:
    world = without_pods(seen(ONE))
    world = replace(world, servings=tuple(replace(each, household="own") for each in world.servings))
    claim = ClaimSeen(
        namespace="team", name="claim", uid="c", gpu_uuid=A, sharing=Sharing.MPS, owners=("uid",), household=household
    )
    assert blocked(replace(world, claims=(claim,)), 0) == why
    other = replace(claim, sharing=Sharing.EXCLUSIVE)
    assert blocked(replace(world, claims=(other,)), 0) == "the claim claim has to go first"


def on_a_gpu_of(observation: Observation, size: float, reserve: int = GIB) -> Observation:
    """The same on GPUs that have so many bytes, or so many times the bytes of one engine."""
    total = board_on(observation).memory_of(observation.replicas[0], A)
    gpus = tuple(
        replace(each, gpu=replace(each.gpu, kind=replace(each.gpu.kind, memory_bytes=Bytes(round(total * size)))))
        for each in observation.gpus
    )
    return replace(observation, gpus=gpus, policy=replace(observation.policy, gpu_reserve=Bytes(reserve)))


@pytest.mark.parametrize(("reserve", "starts"), [(0, True), (1, False)])
def test_all_engines_and_the_reserve_fit_to_the_byte(reserve: int, starts: bool) -> None:
    assert (blocked(on_a_gpu_of(without_pod(seen(TWO), 1), 2.0, reserve)) is None) is starts


@pytest.mark.parametrize(("size", "starts"), [(3.0, False), (3.028, False), (3.031, True)])
def test_what_vllm_wants_free_at_the_start_is_rounded_up_to_a_hundredth(size: float, starts: bool) -> None:
    """Three engines fill the GPU to the byte, but the third wants 34 hundredths of it to be free."""
    third = without_pod(seen(TWO.replace("count: 2", "count: 3")), 2)
    assert (blocked(on_a_gpu_of(third, size, reserve=0), 2) is None) is starts


# Claims


def claims(observation: Observation, **changes: Any) -> Observation:
    return replace(observation, claims=tuple(replace(each, **changes) for each in observation.claims))


def test_the_first_pod_of_a_gpu_comes_with_its_claim_and_the_next_one_needs_none() -> None:
    assert kinds(without_pods(seen(ONE))) == ["ApplyClaim", "StartReplica"]
    assert kinds(without_pod(seen(TWO), 1)) == ["StartReplica"]


def test_a_claim_is_owned_by_every_serving_that_uses_it() -> None:
    [lacks] = done(claims(seen(TEAMS), owners=("uid-team-chat",)))
    assert isinstance(lacks, ApplyClaim)
    assert lacks.owners == (CHAT, key("docs"))
    assert done(seen(TEAMS)) == []
    one = seen(TEAMS[: TEAMS.index(", {serving: docs")] + "]")
    [apply, start] = done(claims(replace(one, plan=seen(TEAMS).plan), owners=("uid-team-chat",)))
    assert isinstance(apply, ApplyClaim)
    assert isinstance(start, StartReplica)


@pytest.mark.parametrize(
    ("pod", "asks"),
    [
        ({}, True), ({"phase": Phase.STARTING}, False), ({"deletion_at": Seconds(NOON)}, False),
        ({"created_at": Seconds(NOON - 1.0)}, False),
    ],
)  # fmt: skip
def test_a_pod_that_waits_for_a_claim_that_was_refused_gets_it_again(pod: dict[str, Any], asks: bool) -> None:
    pending = {"phase": Phase.PENDING, "ready_at": None, "created_at": Seconds(NOON - 20.0), **pod}
    observation = replace(with_pod(seen(ONE), **pending), claims=())
    applied = [each for each in done(observation) if isinstance(each, ApplyClaim)]
    assert [(each.gpu_uuid, each.sharing) for each in applied] == [(A, observation.replicas[0].sharing)] * asks
    assert not [each for each in done(seen(ONE)) if isinstance(each, ApplyClaim)]


def test_a_suspended_serving_asks_for_no_owner_reference() -> None:
    text = TEAMS.replace("docs: {batch: 64}", "docs: {batch: 64, mode: Suspend}")
    assert done(claims(seen(text), owners=("uid-team-chat",))) == []


def unused(observation: Observation, **changes: Any) -> list[Action]:
    """What is done about one more claim on the GPU."""
    claim = ClaimSeen(namespace="team", name="old", uid="old", gpu_uuid=A, sharing=Sharing.EXCLUSIVE, owners=())
    return done(replace(observation, claims=(*observation.claims, replace(claim, **changes))))


def test_a_claim_that_nobody_uses_goes_and_one_that_is_going_is_left_alone() -> None:
    empty = replace(seen("gpus: {a: }\nservings: {chat: {batch: 64}}"))
    assert unused(empty) == [DeleteClaim(namespace="team", name="old", uid="old")]
    assert unused(empty, deleting=True) == []


def test_a_claim_stays_for_the_pods_of_its_namespace_and_goes_without_them() -> None:
    other = unused(seen(ONE), namespace="other")
    assert other == [DeleteClaim(namespace="other", name="old", uid="old")]
    assert not any(isinstance(each, DeleteClaim) for each in unused(seen(ONE)))


def test_a_claim_waits_for_the_pods_that_are_planned_with_its_namespace_and_its_sharing() -> None:
    planned = without_pods(seen(ONE))
    gone = [DeleteClaim(namespace="team", name="old", uid="old")]
    assert not any(isinstance(each, DeleteClaim) for each in unused(planned, sharing=Sharing.MPS))
    assert [each for each in unused(planned) if isinstance(each, DeleteClaim)] == gone
    others = unused(planned, sharing=Sharing.MPS, namespace="other")
    assert [type(each) for each in others] == [DeleteClaim]


def test_a_claim_is_kept_for_what_is_planned_with_its_sharing_beside_what_is_planned_with_another() -> None:
    mixed = with_placement(without_pods(seen(TWO)), 1, sharing=Sharing.EXCLUSIVE)
    assert not any(isinstance(each, DeleteClaim) for each in unused(mixed))


def test_an_old_sharing_is_left_before_the_new_claim_can_come() -> None:
    """The claim of the old sharing stands although its pods say nothing against company."""
    observation = claims(surge(), sharing=Sharing.EXCLUSIVE)
    assert kinds(observation) == ["LeaveService"]
    both = replace(observation, claims=(*surge().claims, *observation.claims))
    assert "LeaveService" in kinds(both)


@pytest.mark.parametrize("stranger", [key("docs", "other"), key("gone")])
def test_a_claim_is_owned_by_nobody_of_another_namespace_and_by_nobody_who_is_gone(stranger: ServingKey) -> None:
    observation = seen(ONE.replace("chat: {batch: 64}", "chat: {batch: 64}, docs: {namespace: other}"))
    pod = replace(observation.replicas[0], serving=stranger, name="strange", uid="strange", slot=7)
    found = done(claims(replace(observation, replicas=(*observation.replicas, pod)), owners=()))
    assert [each.owners for each in found if isinstance(each, ApplyClaim)] == [(CHAT,)]
