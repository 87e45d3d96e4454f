"""The InferencePool of a serving: its body for both backends, and what becomes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import yaml
from aiohttp import web

from gpupack.facts.observation import Phase, ReplicaSeen
from gpupack.facts.routing import PoolSeen, PoolState
from gpupack.facts.serving import Serving, ServingKey
from gpupack.host.orders import Orders
from gpupack.kube import host_resource
from gpupack.kube.api import Api
from gpupack.kube.host_resource import HostPod, Routes
from gpupack.kube.inference_pool import AGAIN_SECONDS, LOOK_SECONDS, InferencePools, ports_of
from gpupack.kube.serving_resource import ServingResource

from . import objects
from .objects import KEY
from .test_host_resource import NOW, body, host, ordered, start
from .tiny_api import TinyApi, Write
from .tiny_api import serving as serving_api

WISH = {"inferencePool": {"endpointPickerRef": {"name": "chat-picker", "port": 9002, "failureMode": "FailOpen"}}}
PATH = "/apis/inference.networking.k8s.io/v1/namespaces/models/inferencepools/chat"
TOLD = {"conditions": [{"type": "InferencePoolWritten", "status": "True", "reason": "Written", "message": ""}]}


@dataclass
class Seen:
    """As much of a scene as the InferencePools look at."""

    resource: ServingResource
    hosts: tuple[HostPod, ...] = ()
    has_households: bool = False

    @property
    def serving(self) -> Serving:
        assert isinstance(self.resource.serving, Serving)
        return self.resource.serving

    @property
    def servings(self) -> tuple[Serving, ...]:
        return (self.serving,)

    @property
    def resources(self) -> dict[ServingKey, ServingResource]:
        return {KEY: self.resource}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def server() -> AsyncIterator[TinyApi]:
    async with serving_api() as server:
        yield server


@pytest.fixture
async def api(server: TinyApi) -> AsyncIterator[Api]:
    async with server.api() as api:
        yield api


def routed(**more: Any) -> Seen:
    return Seen(objects.read(objects.model_serving(routing=WISH)), **more)


def not_routed(status: dict[str, Any]) -> Seen:
    return Seen(objects.read({**objects.model_serving(), "status": status}))


def engines(pod: HostPod) -> list[ReplicaSeen]:
    """Its engines as the supervisor would report them, all ready."""
    return [
        replace(each, address=f"{pod.ip}:{order.port}", phase=Phase.READY)
        for order, each in zip(pod.orders.engines, pod.engines, strict=True)
    ]


@pytest.mark.parametrize("backend", ["dra", "in-pod"])
async def test_the_pool(server: TinyApi, api: Api, backend: str, golden: Callable[[str, str], None]) -> None:
    scene = routed() if backend == "dra" else routed(hosts=(host(ordered(2)),), has_households=True)
    await InferencePools(api).write(scene)
    (written,) = server.writes
    assert (written.method, written.path) == ("PATCH", PATH)
    golden(f"manifests/inference-pool-{backend}.yaml", yaml.safe_dump(written.body, sort_keys=False))


async def test_it_is_written_once_and_put_back_where_somebody_edited_it(server: TinyApi, api: Api) -> None:
    clock, scene, standing = Clock(), routed(), dict[str, Any]()

    def answer(write: Write) -> tuple[int, dict[str, Any]]:
        standing.update(write.body)
        return 200, {}

    server.answer_write = answer
    server.answer_read = lambda _request: web.json_response(standing or {}, status=200 if standing else 404)
    pools = InferencePools(api, clock)
    for _ in range(3):
        await pools.write(scene)
    assert (len(server.asked), len(server.writes)) == (1, 1)
    assert pools.seen(scene.serving, scene.resource) == PoolSeen(state=PoolState.WRITTEN, ports=(8000,))
    clock.now = LOOK_SECONDS
    await pools.write(scene)
    await InferencePools(api).write(scene)
    assert len(server.writes) == 1, "a later look and a new process find it as it should be"
    standing["spec"] = {**standing["spec"], "targetPorts": [{"number": 1}]}
    clock.now = 2 * LOOK_SECONDS
    await pools.write(scene)
    assert standing["spec"]["targetPorts"] == [{"number": 8000}]


@pytest.mark.parametrize(
    ("status", "state"), [(404, PoolState.NOT_INSTALLED), (403, PoolState.NOT_ALLOWED), (422, PoolState.REFUSED)]
)
async def test_what_keeps_it_from_being_written_is_told_and_tried_again(
    server: TinyApi, api: Api, status: int, state: PoolState
) -> None:
    clock, scene = Clock(), routed()
    pools = InferencePools(api, clock)
    server.answer_write = lambda _write: (status, {"reason": "No", "message": "no"})
    await pools.write(scene)
    seen = pools.seen(scene.serving, scene.resource)
    assert seen is not None
    assert seen.state is state
    server.answer_write = lambda _write: (200, {})
    clock.now = AGAIN_SECONDS
    await pools.write(scene)
    assert pools.seen(scene.serving, scene.resource) == PoolSeen(state=PoolState.WRITTEN, ports=(8000,))


@pytest.mark.parametrize(("owner", "deleted"), [("5c1f7a34-1111-4000-8000-000000000001", 1), ("another", 0)])
async def test_one_that_nobody_asks_for_any_more_is_deleted_if_it_is_the_servings(
    server: TinyApi, api: Api, owner: str, deleted: int
) -> None:
    scene, pools = not_routed(TOLD), InferencePools(api)
    assert pools.seen(scene.serving, scene.resource) == PoolSeen(state=PoolState.UNWANTED)
    there = {"metadata": {"name": "chat", "uid": "uid-pool", "ownerReferences": [{"uid": owner}]}}
    server.answer_read = lambda request: web.json_response(there) if request.path == PATH else None
    await pools.write(scene)
    assert [(each.method, each.body["preconditions"]["uid"]) for each in server.writes] == [
        ("DELETE", "uid-pool")
    ] * deleted
    assert pools.seen(scene.serving, scene.resource) is None


async def test_without_a_wish_nothing_is_asked(server: TinyApi, api: Api) -> None:
    scene = not_routed({})
    await InferencePools(api).write(scene)
    assert (server.asked, server.writes) == ([], [])


async def test_it_has_room_for_eight_ports_and_says_how_many_are_left_out(server: TinyApi, api: Api) -> None:
    scene, pools = routed(hosts=(host(ordered(10)),), has_households=True), InferencePools(api)
    await pools.write(scene)
    assert [each["number"] for each in server.writes[0].body["spec"]["targetPorts"]] == list(range(8001, 8009))
    seen = pools.seen(scene.serving, scene.resource)
    assert seen is not None
    assert seen.left_out == 2


def test_a_pod_tells_where_its_ready_engines_are_and_a_picker_finds_no_other() -> None:
    pod = host(ordered(2))
    first, second = engines(pod)
    assert host_resource.routes_of(pod, [first, second], []) == Routes()
    wanted = host_resource.routes_of(pod, [first, replace(second, in_service=False)], [KEY])
    assert wanted == Routes(servings=frozenset({"chat"}), ports=(8001,))
    patch = host_resource.routes_patch(pod, wanted)["metadata"]
    assert patch["labels"] == {"serving.gpupack.dev/chat": "true"}
    assert set(patch["annotations"].values()) == {"8001"}
    there = replace(pod, routes=wanted)
    assert host_resource.routes_patch(there, Routes())["metadata"]["labels"] == {"serving.gpupack.dev/chat": None}
    none = host_resource.routes_of(pod, [replace(first, phase=Phase.STARTING)], [KEY])
    assert set(host_resource.routes_patch(pod, none)["metadata"]["annotations"].values()) == {""}


def test_what_was_written_on_a_pod_reads_back() -> None:
    pod = host(ordered(2))
    wanted = host_resource.routes_of(pod, engines(pod), [KEY])
    patch = host_resource.routes_patch(pod, wanted)["metadata"]
    standing = body()
    standing["metadata"] |= {"uid": "uid-host", "creationTimestamp": "2026-11-18T10:41:00Z"}
    for part in ("labels", "annotations"):
        standing["metadata"][part] |= patch[part]
    found = host_resource.host_of(standing)
    assert found is not None
    assert found.routes == wanted


def test_a_port_is_one_servings_in_all_pods_of_a_namespace() -> None:
    other = ServingKey(namespace=KEY.namespace, name="notes")
    pod = host(ordered(2))
    theirs = replace(pod, engines=tuple(replace(each, serving=other) for each in pod.engines))
    elsewhere = host_resource.ports_of_others([theirs], KEY)
    assert elsewhere == {8001, 8002}
    scene = routed()
    orders = host_resource.with_engine(Orders(), start(0), scene.serving, scene.resource.template, NOW, elsewhere)
    assert ports_of([host(orders)], KEY) == {8003}
