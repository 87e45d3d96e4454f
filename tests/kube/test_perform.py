"""Outcomes are carried out with the versions that were seen, in order, and nothing is written that stands there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from gpupack.errors import Unavailable
from gpupack.facts.belief import Belief
from gpupack.facts.placement import Plan
from gpupack.facts.serving import Serving, ServingKey, Sharing
from gpupack.kube.api import Api, Conflict
from gpupack.kube.manifests import claim_name
from gpupack.kube.observe import POOLS, Scene
from gpupack.kube.perform import Performer, Standing, commit, commit_orphan, keep
from gpupack.kube.pool_resource import pool_resource, pool_status_to_dict
from gpupack.kube.profile_resource import belief_of, belief_to_dict, learned_profile
from gpupack.kube.serving_resource import serving_status_to_dict
from gpupack.plan import (
    Action,
    ApplyBudget,
    ApplyClaim,
    ApplyService,
    Condition,
    ConditionType,
    DeleteClaim,
    LeaveService,
    Outcome,
    PoolStatus,
    ServingStatus,
    StopReplica,
    Tell,
    Truth,
)
from gpupack.units import Seconds

from . import objects, tiny_api
from .objects import AT, BELIEF, GPU, KEY
from .tiny_api import TinyApi, Write

ACCEPTED = Condition(type=ConditionType.ACCEPTED, truth=Truth.TRUE, reason="Accepted", message="Good.")
READY = Condition(type=ConditionType.READY, truth=Truth.FALSE, reason="Starting", message="Soon.")
POOL_STATUS = PoolStatus(plan=Plan(), gpus=1, gpus_in_use=0, replicas=0, conditions=(ACCEPTED, READY))
STATUS = f"{POOLS}/default/status"
SERVING_STATUS = f"/apis/gpupack.dev/v1alpha1/namespaces/{KEY.namespace}/modelservings/{KEY.name}/status"
UID = objects.model_serving()["metadata"]["uid"]


@pytest.fixture
async def server() -> AsyncIterator[TinyApi]:
    async with tiny_api.serving() as server:
        yield server


@pytest.fixture
async def api(server: TinyApi) -> AsyncIterator[Api]:
    async with server.api() as api:
        yield api


def serving_status(**changes: Any) -> ServingStatus:
    status = ServingStatus(
        serving=KEY, uid=UID, observed_generation=3, replicas=0, ready_replicas=0, selector="a=b", max_num_seqs=None,
        kv_cache_memory_bytes=None, max_model_len=None, engine_args=(), replicas_per_gpu=None, freed_bytes=None,
        assumed=(), placements=(), decision_reason="", decision_message="", decision_observed=None,
        decision_limit=None, decision_unit="", decision_at=None, conditions=(ACCEPTED,),
    )  # fmt: skip
    return replace(status, **changes)


def scene(pool_status: dict[str, Any] | None = None, status: dict[str, Any] | None = None) -> Scene:
    obj = objects.model_serving()
    resource = objects.read(obj if status is None else {**obj, "status": status})
    assert isinstance(resource.serving, Serving)
    return Scene(
        pool=pool_resource(objects.gpu_pool(pool_status)), problem=None, resources={KEY: resource},
        servings=(resource.serving,), refused=(), gpus=(), nodes=(), holders=(), claims=(), replicas=(), services=(),
        exporters=(), stale=(),
    )  # fmt: skip


def outcome(*actions: Action, statuses: tuple[ServingStatus, ...] = ()) -> Outcome:
    return Outcome(
        pool_status=POOL_STATUS, plan_changed=False, serving_statuses=statuses, actions=actions, verdicts=(),
        wake_in=Seconds(2.0),
    )  # fmt: skip


def settled() -> Scene:
    """Everything that `outcome` says stands there already, conditions in the server's own order."""
    pool = pool_status_to_dict(POOL_STATUS, (), now=AT, generation=1)
    pool["conditions"].reverse()
    return scene(pool, serving_status_to_dict(serving_status(), {}, now=AT))


STOP = StopReplica(serving=KEY, name="chat-1", uid="uid-1")


async def test_a_pools_status_is_written_with_the_version_and_uid_that_were_seen(server: TinyApi, api: Api) -> None:
    committed = await commit(api, scene(), outcome(), AT, Standing())
    (write,) = server.writes
    assert committed.wrote_pool
    assert (write.method, write.path) == ("PATCH", STATUS)
    assert write.content_type == "application/apply-patch+yaml"
    assert write.query == {"fieldManager": "gpupack", "force": "true"}
    metadata = objects.gpu_pool()["metadata"]
    assert write.body["metadata"] == {
        "name": "default", "uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"],
    }  # fmt: skip


async def test_nothing_is_written_when_nothing_changed(server: TinyApi, api: Api) -> None:
    later = Seconds(AT + 1000.0)
    committed = await commit(api, settled(), outcome(statuses=(serving_status(),)), later, Standing())
    assert server.writes == []
    assert not committed.wrote_pool


async def test_a_status_that_stood_there_is_written_once_the_decision_or_the_object_is_another(
    server: TinyApi, api: Api
) -> None:
    standing, there = Standing(), settled()
    await commit(api, there, outcome(statuses=(serving_status(),)), AT, standing)
    await commit(api, there, outcome(statuses=(serving_status(),)), AT, standing)
    assert server.writes == []
    await commit(api, there, outcome(statuses=(serving_status(replicas=2),)), AT, standing)
    wiped = replace(there, resources=scene().resources)
    await commit(api, wiped, outcome(statuses=(serving_status(),)), AT, standing)
    assert [write.body["status"]["replicas"] for write in server.writes] == [2, 0]


async def test_before_actions_the_status_is_written_even_if_it_is_the_same(server: TinyApi, api: Api) -> None:
    await commit(api, settled(), outcome(STOP), AT, Standing())
    assert [write.path for write in server.writes] == [STATUS]
    server.writes.clear()
    await commit(api, settled(), outcome(Tell(serving=KEY, warning=False, reason="R", message="m")), AT, Standing())
    assert server.writes == []


async def test_a_pool_that_somebody_wrote_meanwhile_drops_the_whole_tick(server: TinyApi, api: Api) -> None:
    server.answer_write = lambda _write: (409, {"reason": "Conflict", "message": "the object has been modified"})
    with pytest.raises(Conflict):
        await commit(api, scene(), outcome(STOP, statuses=(serving_status(),)), AT, Standing())
    assert [write.path for write in server.writes] == [STATUS]


async def test_only_servings_that_changed_are_written_and_a_missing_one_is_passed_over(
    server: TinyApi, api: Api
) -> None:
    gone = ServingKey(namespace=KEY.namespace, name="gone")
    statuses = (serving_status(replicas=2), serving_status(serving=gone), serving_status(uid="another"))
    committed = await commit(api, settled(), outcome(statuses=statuses), AT, Standing())
    (write,) = server.writes
    assert write.path == SERVING_STATUS
    assert write.body["metadata"]["uid"] == UID
    assert write.body["status"]["replicas"] == 2
    assert committed.statuses == 1


async def test_a_serving_whose_pool_does_not_exist_is_told_so_once(server: TinyApi, api: Api) -> None:
    assert await commit_orphan(api, scene().resources[KEY], AT)
    (write,) = server.writes
    assert [each["reason"] for each in write.body["status"]["conditions"]] == ["PoolNotFound"] * 3
    told = scene(status=write.body["status"]).resources[KEY]
    assert not await commit_orphan(api, told, Seconds(AT + 60.0))
    assert len(server.writes) == 1


async def test_a_serving_that_is_deleted_meanwhile_stops_nothing(server: TinyApi, api: Api) -> None:
    server.answer_write = lambda write: (404, {"reason": "NotFound"}) if "modelservings" in write.path else (200, {})
    committed = await commit(api, scene(), outcome(statuses=(serving_status(),)), AT, Standing())
    assert (committed.wrote_pool, committed.statuses) == (True, 0)


async def test_each_action_is_one_request_of_its_kind(server: TinyApi, api: Api) -> None:
    resource = scene().resources[KEY]
    actions: tuple[Action, ...] = (
        DeleteClaim(namespace="models", name="old", uid="u"),
        LeaveService(serving=KEY, name="chat-1", uid="uid-1"),
        STOP,
        ApplyClaim(namespace="models", gpu_uuid=GPU, sharing=Sharing.MPS, owners=(KEY,)),
        ApplyService(serving=KEY),
        ApplyBudget(serving=KEY, min_available=1),
        objects.start(resource),
    )
    done = await Performer(api, "test").perform(scene(), actions, AT)
    assert [each.problem for each in done] == [None] * len(actions)
    start = objects.start(resource).placement.name
    assert [(write.method, write.path) for write in server.writes] == [
        ("DELETE", "/apis/resource.k8s.io/v1/namespaces/models/resourceclaims/old"),
        ("PATCH", "/api/v1/namespaces/models/pods/chat-1"),
        ("DELETE", "/api/v1/namespaces/models/pods/chat-1"),
        ("PATCH", f"/apis/resource.k8s.io/v1/namespaces/models/resourceclaims/{claim_name(GPU, Sharing.MPS)}"),
        ("PATCH", "/api/v1/namespaces/models/services/chat"),
        ("PATCH", "/apis/policy/v1/namespaces/models/poddisruptionbudgets/chat"),
        ("PATCH", f"/api/v1/namespaces/models/pods/{start}"),
    ]
    assert server.writes[1].body["metadata"]["uid"] == "uid-1"
    assert [write.body["preconditions"] for write in (server.writes[0], server.writes[2])] == [
        {"uid": "u"}, {"uid": "uid-1"},
    ]  # fmt: skip


@pytest.mark.parametrize("code", [404, 409])
async def test_what_has_gone_by_itself_is_no_problem(server: TinyApi, api: Api, code: int) -> None:
    server.answer_write = lambda _write: (code, {})
    actions = (STOP, LeaveService(serving=KEY, name="chat-1", uid="uid-1"))
    assert [each.problem for each in await Performer(api, "test").perform(scene(), actions, AT)] == [None, None]


async def test_an_action_that_is_refused_stops_none_after_it(server: TinyApi, api: Api) -> None:
    def answer(write: Write) -> tuple[int, dict[str, Any]]:
        return (403, {"reason": "Forbidden", "message": "exceeded quota"}) if "/services/" in write.path else (200, {})

    server.answer_write = answer
    done = await Performer(api, "test").perform(scene(), (ApplyService(serving=KEY), STOP), AT)
    assert done[0].problem is not None
    assert "exceeded quota" in str(done[0].problem)
    assert done[1].problem is None


async def test_an_api_server_that_does_not_answer_ends_the_tick(server: TinyApi, api: Api) -> None:
    await server.stop()
    with pytest.raises(Unavailable):
        await Performer(api, "test").perform(scene(), (STOP,), AT)


async def test_a_replica_planned_from_an_older_spec_is_not_started(server: TinyApi, api: Api) -> None:
    start = objects.start(scene().resources[KEY])
    old = replace(start, placement=replace(start.placement, template_hash="older"))
    await Performer(api, "test").perform(scene(), (old,), AT)
    assert server.writes == []


async def test_an_event_is_named_by_what_it_says_and_said_once(server: TinyApi, api: Api) -> None:
    told: set[str] = set()

    def answer(write: Write) -> tuple[int, dict[str, Any]]:
        name = write.body["metadata"]["name"]
        known = name in told
        told.add(name)
        return (409, {"reason": "AlreadyExists"}) if known else (201, {})

    server.answer_write = answer
    one = Tell(serving=KEY, warning=True, reason="LatencySlo", message="too slow")
    done = await Performer(api, "pod-1").perform(scene(), (one, one, replace(one, message="other")), AT)
    assert [each.problem for each in done] == [None] * 3
    assert len(told) == 2
    event = server.writes[0].body
    assert (event["type"], event["reason"], event["note"]) == ("Warning", "LatencySlo", "too slow")
    assert event["regarding"]["uid"] == UID


# What was learnt

PROFILE = f"/apis/gpupack.dev/v1alpha1/namespaces/{KEY.namespace}/modelprofiles/{BELIEF.key.name}"


async def test_a_learned_profile_that_stands_gets_its_status_alone(server: TinyApi, api: Api) -> None:
    await keep(api, BELIEF)
    (write,) = server.writes
    assert (write.path, write.body["metadata"]["name"]) == (f"{PROFILE}/status", BELIEF.key.name)
    assert "spec" not in write.body


async def test_the_first_time_it_is_made_and_nobody_owns_it(server: TinyApi, api: Api) -> None:
    missing = (404, {"reason": "NotFound", "message": "there is none"})
    server.answer_write = lambda _write: missing if len(server.writes) == 1 else (200, {})
    await keep(api, BELIEF)
    assert [write.path for write in server.writes] == [f"{PROFILE}/status", PROFILE, f"{PROFILE}/status"]
    made = server.writes[1].body
    assert made["spec"] == {"model": BELIEF.key.model, "gpu": "H100-80GB", "engineVersion": "0.33.0"}
    assert "ownerReferences" not in made["metadata"]


def test_what_was_learnt_reads_back_as_it_is_written() -> None:
    def again(belief: Belief) -> Belief:
        found = belief_of({**learned_profile(belief), "status": belief_to_dict(belief)})
        assert found is not None
        return found

    read = again(BELIEF)
    assert again(read) == read
    assert read.key == BELIEF.key
    assert read.coefficients == pytest.approx(BELIEF.coefficients, rel=1e-3)
    assert read.covariance[3][1] == read.covariance[1][3] == pytest.approx(BELIEF.covariance[1][3], rel=1e-3)
