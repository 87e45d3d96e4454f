"""Carrying out an outcome: statuses with the version that was seen, then the actions, each safe to repeat.

Before its first action a tick writes the pool's status with the resourceVersion that it saw; a conflict means an old
view, and the whole tick is dropped. Nothing is written that already stands there. Children are applied with one field
manager; deletions name the uid. Knows how, not whether.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from gpupack.decide import explain, learning
from gpupack.decide.learning import Learning
from gpupack.facts.belief import Belief
from gpupack.facts.gpu import Gpu
from gpupack.facts.observation import Observation
from gpupack.facts.serving import Serving, ServingKey
from gpupack.host.orders import Orders, orders_text
from gpupack.kube import child_resource, doors, host_resource, labels, manifests, profile_resource
from gpupack.kube.api import Api, ApiError, Conflict, Json, NotFound
from gpupack.kube.conditions import conditions_to_list
from gpupack.kube.host_resource import HostPod
from gpupack.kube.observe import POOLS, Scene
from gpupack.kube.pool_resource import pool_status_to_dict
from gpupack.kube.serving_resource import ServingResource, serving_status_to_dict
from gpupack.kube.times import rfc3339_micro
from gpupack.plan import (
    Action,
    ApplyBudget,
    ApplyClaim,
    ApplyService,
    Condition,
    ConditionType,
    DeleteClaim,
    LeaveService,
    MarkReplica,
    Outcome,
    ServingStatus,
    StartReplica,
    StopReplica,
    Tell,
    Truth,
)
from gpupack.units import Seconds

log = logging.getLogger(__name__)

WRITES_AT_ONCE = 8
INVALID = 422
NOTE_LIMIT = 1024
"""Bytes of an event's note that the API takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """`wrote_pool`: the pool has a newer version than the one that was seen, or is about to be seen in it."""

    wrote_pool: bool
    statuses: int


class Standing:
    """Which decided status stands in which object: an equal one about the same object need not be written out again."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[object, Mapping[str, Any]]] = {}

    def holds(self, uid: str, decided: object, there: Mapping[str, Any]) -> bool:
        before = self._known.get(uid)
        return before is not None and before[1] is there and before[0] == decided

    def remember(self, uid: str, decided: object, there: Mapping[str, Any]) -> None:
        self._known[uid] = decided, there

    def forget_all_but(self, uids: set[str]) -> None:
        for uid in self._known.keys() - uids:
            del self._known[uid]


async def commit(api: Api, scene: Scene, outcome: Outcome, now: Seconds, standing: Standing) -> Committed:
    """Writes the pool's status if it changed or if actions follow, then those serving statuses that changed.

    Raises Conflict if somebody wrote the pool since it was seen, NotFound if it is gone, Unavailable if the API does
    not answer; in each case nothing was done that a later tick would regret.
    """
    pool, acts = scene.pool, any(not isinstance(action, Tell) for action in outcome.actions)
    before, decided = pool.status, (outcome.pool_status, pool.generation)
    standing.forget_all_but({pool.uid, *(each.uid for each in outcome.serving_statuses)})
    changed = False
    if acts or not standing.holds(pool.uid, decided, before):
        status = pool_status_to_dict(
            outcome.pool_status, before.get("conditions", ()), now=now, generation=pool.generation
        )  # fmt: skip
        changed = not _same(status, before)
        if changed or acts:
            body = _with_status("GpuPool", {"name": pool.name}, pool.uid, status, pool.resource_version)
            await api.apply(f"{POOLS}/{pool.name}/status", body)
        if not changed:
            standing.remember(pool.uid, decided, before)
    gate = asyncio.Semaphore(WRITES_AT_ONCE)
    news = [
        (each, wanted) for each in outcome.serving_statuses if (wanted := _news(scene, each, now, standing)) is not None
    ]
    writes = (_write_serving_status(api, each, wanted, gate) for each, wanted in news)
    written = await asyncio.gather(*writes, return_exceptions=True) if news else []
    for problem in written:
        if isinstance(problem, BaseException):
            raise problem
    return Committed(wrote_pool=changed, statuses=sum(each is True for each in written))


def _same(wanted: Json, there: Mapping[str, Any]) -> bool:
    """Equal but for the order of conditions, which the API server keeps in its own."""
    return _ordered(wanted) == _ordered(there)


def _ordered(status: Mapping[str, Any]) -> Json:
    conditions = sorted(status.get("conditions", ()), key=lambda condition: str(condition["type"]))
    return {**status, "conditions": conditions}


async def commit_orphan(api: Api, resource: ServingResource, now: Seconds) -> bool:
    """Says on a serving that its pool does not exist; what runs of it goes on. Whether anything was written.

    Raises Unavailable if the API does not answer, or refuses: NotFound and Conflict if the serving is gone.
    """
    unknown = explain.no_pool(resource.pool)
    conditions = (
        Condition(type=ConditionType.ACCEPTED, truth=Truth.FALSE, reason="PoolNotFound", message=unknown),
        Condition(type=ConditionType.READY, truth=Truth.UNKNOWN, reason="PoolNotFound", message=unknown),
        Condition(type=ConditionType.STALLED, truth=Truth.TRUE, reason="PoolNotFound", message=unknown),
    )
    before = resource.status
    listed = conditions_to_list(conditions, before.get("conditions", ()), now=now, generation=resource.generation)
    wanted = {**before, "observedGeneration": resource.generation, "conditions": listed}
    if _same(wanted, before):
        return False
    await _apply_serving_status(api, resource.key, resource.uid, wanted)
    return True


def _news(scene: Scene, status: ServingStatus, now: Seconds, standing: Standing) -> Json | None:
    """The status as it should stand; None where it does already, or the serving is gone."""
    resource = scene.resources.get(status.serving)
    if resource is None or resource.uid != status.uid or standing.holds(status.uid, status, resource.status):
        return None
    wanted = serving_status_to_dict(status, resource.status, now=now)
    if not _same(wanted, resource.status):
        return wanted
    standing.remember(status.uid, status, resource.status)
    return None


async def _write_serving_status(api: Api, status: ServingStatus, wanted: Json, gate: asyncio.Semaphore) -> bool:
    async with gate:
        try:
            await _apply_serving_status(api, status.serving, status.uid, wanted)
        except (NotFound, Conflict):
            return False  # gone, or another of its name: the mirror will say so
    return True


async def _apply_serving_status(api: Api, key: ServingKey, uid: str, status: Json) -> None:
    body = _with_status("ModelServing", {"name": key.name, "namespace": key.namespace}, uid, status)
    await api.apply(f"{_custom(key.namespace, 'modelservings')}/{key.name}/status", body)


def _with_status(kind: str, metadata: Json, uid: str, status: Json, version: str | None = None) -> Json:
    """An apply of `/status`. Without `uid` an object that is gone meanwhile would be an error of its own kind."""
    known = {**metadata, "uid": uid, **({} if version is None else {"resourceVersion": version})}
    return {"apiVersion": labels.API_VERSION, "kind": kind, "metadata": known, "status": status}


@dataclass(frozen=True, slots=True, kw_only=True)
class Performed:
    """How an action ended: `problem` is None, or what the API server said."""

    action: Action
    problem: ApiError | None


class Performer:
    """Carries out actions in their order. One action that is refused does not stop those after it.

    `image` is the operator's own, from which pods get their supervisor. `reporter` names this process in events. A view
    of the pods may be older than what this process did: until it sees a pod that it started itself, it starts no other
    on that GPU, and what it ordered inside a pod counts. A new process begins with a whole list.
    """

    def __init__(self, api: Api, reporter: str, image: str = "") -> None:
        self._api = api
        self._reporter = reporter
        self._image = image
        self.standing = Standing()
        self._orders: dict[str, Orders] = {}
        self._unseen: dict[tuple[str, str], str] = {}

    async def perform(self, scene: Scene, actions: tuple[Action, ...], now: Seconds) -> list[Performed]:
        """Raises Unavailable when the API does not answer; what is left is asked for again by the next tick."""
        done = []
        for action in actions:
            problem: ApiError | None = None
            try:
                await self._do(scene, action, now)
            except ApiError as refused:
                problem = refused
                log.warning(
                    "refused: %s", refused, extra={"action": type(action).__name__, "subject": subject_of(action)}
                )
            done.append(Performed(action=action, problem=problem))
        return done

    async def _do(self, scene: Scene, action: Action, now: Seconds) -> None:
        api = self._api
        servings = {serving.key: serving for serving in scene.servings}
        match action:
            case ApplyClaim():
                uids = {key: resource.uid for key, resource in scene.resources.items()}
                gpu = next((each for each in scene.gpus if each.uuid == action.gpu_uuid), None)
                if not all(owner in uids for owner in action.owners):
                    return
                if gpu is not None and gpu.one_household:
                    await self._open_host(scene, action, gpu, uids)
                else:
                    await _apply(api, manifests.claim(action, scene.pool.name, uids))
            case DeleteClaim() if any(each.claim.uid == action.uid for each in scene.hosts):
                await api.delete(f"{_collection('Pod', action.namespace)}/{action.name}", uid=action.uid)
            case DeleteClaim():
                await api.delete(f"{_collection('ResourceClaim', action.namespace)}/{action.name}", uid=action.uid)
            case ApplyService():
                if (serving := servings.get(action.serving)) is not None:
                    await _apply_shared(api, manifests.service(serving, selects=not scene.has_households))
            case ApplyBudget():
                if (serving := servings.get(action.serving)) is not None:
                    await _apply_shared(api, manifests.budget(serving, action.min_available))
            case StartReplica():
                await self._start(scene, action, servings, now)
            case LeaveService() | StopReplica() if (host := _host_of(scene, action)) is not None:
                change = host_resource.out_of_service if isinstance(action, LeaveService) else (
                    host_resource.without_engine
                )  # fmt: skip
                await self._order(host, change(self._orders_of(host), action.name))
            case MarkReplica():
                path = f"{_collection('Pod', action.placement.serving.namespace)}/{action.placement.name}"
                if (serving := servings.get(action.placement.serving)) is not None:
                    await api.merge(path, manifests.marks(action, serving))
            case LeaveService():
                path = f"{_collection('Pod', action.serving.namespace)}/{action.name}"
                try:
                    await api.merge(path, manifests.out_of_service(action.uid))
                except (NotFound, Conflict):
                    return  # it has gone by itself
            case StopReplica():
                path = f"{_collection('Pod', action.serving.namespace)}/{action.name}"
                await api.delete(path, uid=action.uid)
            case Tell():
                await self._tell(scene, action, now)
            case _:
                assert_never(action)

    async def _open_host(self, scene: Scene, apply: ApplyClaim, gpu: Gpu, uids: Mapping[ServingKey, str]) -> None:
        """A pod for this GPU. One that is there gets its owners; nothing else of it can change."""
        owners = [each for each in scene.servings if each.key in apply.owners]
        if not owners:
            return
        serving = min(owners, key=lambda each: each.key)
        path = _collection("Pod", apply.namespace)
        for host in scene.hosts:
            if (host.claim.gpu_uuid, host.claim.household) == (gpu.uuid, serving.household):
                references = host_resource.owners(apply, uids)
                body = {"metadata": {"uid": host.claim.uid, "ownerReferences": references}}
                await self._api.merge(f"{path}/{host.claim.name}", body)
                await self._keep_token(apply.namespace, references)
                return
        await self._keep_token(apply.namespace, host_resource.owners(apply, uids))
        plan, kind = scene.pool.plan, gpu.kind.name
        chosen = [] if plan is None else [each for each in plan.shapes if each.gpu_kind == kind]
        best = max((each.replicas_per_gpu for each in chosen if each.serving in apply.owners), default=1)
        node = next(each for each in scene.nodes if each.name == gpu.node)
        beside = sum(1 for each in scene.gpus if each.node == gpu.node)
        room = host_resource.room_for(serving, beside, node.cpu_cores - node.cpu_cores_of_others, best)
        template = scene.resources[serving.key].template
        body = host_resource.host_pod(
            apply, gpu, serving, template, room=room, pool=scene.pool.name, image=self._image, uids=uids,
            runtime_class=None if scene.offer is None else scene.offer.runtime_class,
        )  # fmt: skip
        await _apply(self._api, body)

    async def _keep_token(self, namespace: str, references: Sequence[Mapping[str, Any]]) -> None:
        """The namespace's token, which belongs to every serving that has had a pod there. Raises Conflict if somebody
        wrote it meanwhile."""
        path = f"/api/v1/namespaces/{namespace}/secrets"
        try:
            token = host_resource.token_secret(namespace, secrets.token_urlsafe(32), references)
            await self._api.create(path, token)
        except Conflict:  # there is one
            there = await self._api.get(f"{path}/{host_resource.TOKEN_SECRET}")
            if (patch := host_resource.owned(there, references)) is not None:
                await self._api.merge(f"{path}/{host_resource.TOKEN_SECRET}", patch)

    def _orders_of(self, host: HostPod) -> Orders:
        """What this process wrote last, if the mirror does not show it yet."""
        wrote = self._orders.get(host.claim.uid, host.orders)
        return max(wrote, host.orders, key=lambda orders: orders.generation)

    async def _order(self, host: HostPod, orders: Orders) -> None:
        if orders.generation == host.orders.generation:
            return
        notes = {labels.ORDERS: orders_text(orders)}
        path = f"{_collection('Pod', host.claim.namespace)}/{host.claim.name}"
        try:
            await self._api.merge(path, {"metadata": {"uid": host.claim.uid, "annotations": notes}})
        except (NotFound, Conflict):
            return  # the pod has gone by itself
        self._orders[host.claim.uid] = orders

    async def write_slices(self, scene: Scene) -> None:
        """Which engines clients and endpoint pickers may go to. One whose supervisor is not heard stays as it is."""
        there = {host.claim.uid for host in scene.hosts}
        self._orders = {uid: orders for uid, orders in self._orders.items() if uid in there}
        if not scene.has_households:
            return
        unheard = _unheard(scene)
        for body in host_resource.slices_to_write(scene.servings, scene.replicas, scene.slices, unheard):
            await _apply(self._api, body)
        routed = [each.key for each in scene.servings if each.routing is not None]
        for host in scene.hosts:
            wanted = host_resource.routes_of(host, scene.replicas, routed)
            if wanted == host.routes or host.ip in unheard:
                continue
            path = f"{_collection('Pod', host.claim.namespace)}/{host.claim.name}"
            with contextlib.suppress(NotFound, Conflict):  # the pod has gone by itself
                await self._api.merge(path, host_resource.routes_patch(host, wanted))

    async def write_budgets(self, scene: Scene) -> None:
        """Which of several pods that engines live in a drain may take."""
        uids = {resource.uid: key for key, resource in scene.resources.items()}
        there = {(each["metadata"]["namespace"], each["metadata"]["name"]): each for each in scene.budgets}
        for body in host_resource.budgets(scene.hosts, scene.replicas, uids):
            metadata = body["metadata"]
            if not child_resource.stands(there.get((metadata["namespace"], metadata["name"])), body):
                await _apply_shared(self._api, body)

    async def write_doors(self, scene: Scene) -> None:
        """Services without a replica lead to the activators."""
        for body in doors.doors_to_write(
            scene.servings, scene.doors, scene.pool.plan, scene.replicas, scene.activators, scene.slices
        ):
            await _apply(self._api, body)

    async def _start(
        self, scene: Scene, action: StartReplica, servings: Mapping[ServingKey, Serving], now: Seconds
    ) -> None:
        key = action.placement.serving
        serving, resource = servings.get(key), scene.resources.get(key)
        if serving is None or resource is None or resource.template.hash != action.placement.template_hash:
            return  # it was planned from a spec that is no longer: the next plan will say what to do
        uuid = action.placement.gpu_uuid
        if any(gpu.one_household for gpu in scene.gpus if gpu.uuid == uuid):
            held = (key.namespace, uuid, serving.household)
            for host in scene.hosts:
                if held == (host.claim.namespace, host.claim.gpu_uuid, host.claim.household):
                    orders = self._orders_of(host)
                    others = [each for each in scene.hosts if each.claim.uid != host.claim.uid]
                    elsewhere = host_resource.ports_of_others(others, key)
                    await self._order(
                        host, host_resource.with_engine(orders, action, serving, resource.template, now, elsewhere)
                    )  # fmt: skip
            return  # a pod that was asked for in this tick takes the engine when it is seen
        body = manifests.pod(action, serving, resource.template)
        name = (key.namespace, body["metadata"]["name"])
        if await self._waits(name, uuid, scene):
            return  # asked for again by the next tick
        await _apply(self._api, body)

    async def _waits(self, name: tuple[str, str], uuid: str, scene: Scene) -> bool:
        """Whether another pod that was started on this GPU is there and still to be seen; else this one is from now on.

        The API server knows: one that was never made, or went before it was seen, keeps nobody waiting.
        """
        seen = {(each.serving.namespace, each.name) for each in scene.replicas}
        self._unseen = {each: gpu for each, gpu in self._unseen.items() if each not in seen}
        for other in [each for each, gpu in self._unseen.items() if gpu == uuid and each != name]:
            namespace, pod = other
            found = await self._api.get(_collection("Pod", namespace), limit=1, fieldSelector=f"metadata.name={pod}")
            if found.get("items"):
                return True
            del self._unseen[other]
        if name not in seen:
            self._unseen[name] = uuid
        return False

    async def _tell(self, scene: Scene, tell: Tell, now: Seconds) -> None:
        """Said once: the event's name comes from what it says, and the API server keeps it for an hour."""
        resource = scene.resources.get(tell.serving)
        if resource is None:
            return
        said = f"{resource.uid}|{tell.reason}|{tell.message}"
        name = f"{tell.serving.name[:200]}.{hashlib.sha256(said.encode()).hexdigest()[:16]}"
        body = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": tell.serving.namespace},
            "eventTime": rfc3339_micro(now),
            "reportingController": f"{labels.GROUP}/operator",
            "reportingInstance": self._reporter,
            "action": "Decide",
            "reason": tell.reason,
            "type": "Warning" if tell.warning else "Normal",
            "note": tell.message.encode()[:NOTE_LIMIT].decode(errors="ignore"),
            "regarding": {
                "apiVersion": labels.API_VERSION,
                "kind": "ModelServing",
                "namespace": tell.serving.namespace,
                "name": tell.serving.name,
                "uid": resource.uid,
            },
        }
        try:
            await self._api.create(f"/apis/events.k8s.io/v1/namespaces/{tell.serving.namespace}/events", body)
        except Conflict:
            return  # said already


async def carry_out(
    api: Api, performer: Performer, scene: Scene, outcome: Outcome, now: Seconds
) -> tuple[Committed, list[Performed]]:
    """The one order in which an outcome is carried out: the plan first, and nothing if somebody wrote it meanwhile.

    Raises Conflict (nothing was done), NotFound or Unavailable (some of it may have been done).
    """
    committed = await commit(api, scene, outcome, now, performer.standing)
    await performer.write_slices(scene)  # an engine leaves its slice before it is stopped
    await performer.write_budgets(scene)
    await performer.write_doors(scene)
    return committed, await performer.perform(scene, outcome.actions, now)


async def keep(api: Api, belief: Belief) -> None:
    """Writes what was learnt into its own ModelProfile, and makes that first where there is none.

    Raises Unavailable if the API does not answer, ApiError if it refuses.
    """
    key = belief.key
    path = f"{_custom(key.namespace, 'modelprofiles')}/{key.name}"
    body = profile_resource.learned_profile(belief)
    status = {**body, "metadata": {"name": key.name, "namespace": key.namespace},
              "status": profile_resource.belief_to_dict(belief)}  # fmt: skip
    del status["spec"]
    try:
        await api.apply(f"{path}/status", status)
    except NotFound:
        await api.apply(path, body)
        await api.apply(f"{path}/status", status)


async def keep_learnt(api: Api, learnt: Learning, observation: Observation) -> Learning:
    """Writes what is due of it. What the API server refuses is asked for again when the next is due."""
    for belief in learning.due(learnt, observation):
        try:
            await keep(api, belief)
        except ApiError as refused:
            log.warning("what was learnt was not written: %s", refused, extra={"profile": belief.key.name})
        learnt = learning.wrote(learnt, belief)
    return learnt


def _host_of(scene: Scene, action: LeaveService | StopReplica) -> HostPod | None:
    """The pod that this engine is in; None for one that has its own."""
    name = (action.serving.namespace, action.name)
    return next(
        (each for each in scene.hosts for engine in each.engines if (each.claim.namespace, engine.name) == name), None
    )


def _unheard(scene: Scene) -> frozenset[str]:
    """Addresses of pods whose supervisors have not been heard since this process began."""
    return frozenset(each.ip for each in scene.hosts if each.ip and each.claim.uid not in scene.reports)


def subject_of(action: Action) -> str:
    """What an action is about, for logs: namespace and name."""
    match action:
        case ApplyClaim():
            return f"{action.namespace}/{manifests.claim_name(action.gpu_uuid, action.sharing)}"
        case DeleteClaim():
            return f"{action.namespace}/{action.name}"
        case StartReplica() | MarkReplica():
            return f"{action.placement.serving.namespace}/{action.placement.name}"
        case LeaveService() | StopReplica():
            return f"{action.serving.namespace}/{action.name}"
        case ApplyService() | ApplyBudget() | Tell():
            return str(action.serving)
        case _:
            assert_never(action)


_COLLECTIONS = {
    "Pod": "/api/v1/namespaces/{}/pods",
    "Service": "/api/v1/namespaces/{}/services",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{}/poddisruptionbudgets",
    "EndpointSlice": "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices",
    "ResourceClaim": "/apis/resource.k8s.io/v1/namespaces/{}/resourceclaims",
}


def _collection(kind: str, namespace: str) -> str:
    return _COLLECTIONS[kind].format(namespace)


def _custom(namespace: str, plural: str) -> str:
    return f"{labels.API_PATH}/namespaces/{namespace}/{plural}"


async def _apply(api: Api, body: dict[str, Any]) -> None:
    await api.apply(_path(body), body)


async def _apply_shared(api: Api, body: dict[str, Any]) -> None:
    """A Service or budget. What somebody wrote into it can make ours invalid beside it; then ours takes its place."""
    try:
        await _apply(api, body)
    except ApiError as refused:
        if refused.status != INVALID:
            raise
        await api.merge(_path(body), {"spec": body["spec"]})


def _path(body: Mapping[str, Any]) -> str:
    metadata = body["metadata"]
    return f"{_collection(body['kind'], metadata['namespace'])}/{metadata['name']}"
