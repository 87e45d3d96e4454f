"""A recorded journey as the API server and the operator's page would show it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aiohttp import web

from gpupack.facts.observation import Observation
from gpupack.facts.serving import Serving
from gpupack.kube.observe import POOLS, SERVINGS
from gpupack.kube.pool_resource import pool_status_to_dict
from gpupack.kube.serving_resource import serving_status_to_dict
from gpupack.plan import Outcome, ServingStatus
from gpupack.telemetry import Telemetry, Tick
from gpupack.trace.lines import read
from gpupack.units import milliseconds

from ..kube.tiny_api import TinyApi

TRACE = Path(__file__).parents[1] / "traces" / "journey.jsonl"

Json = dict[str, Any]
Look = tuple[Observation, Outcome]


def last_look() -> Look:
    ticked = list(read(TRACE))[-1]
    return ticked.observation, ticked.outcome


def pool_of(look: Look) -> Json:
    seen, outcome = look
    status = pool_status_to_dict(outcome.pool_status, (), now=seen.at, generation=seen.pool_generation)
    metadata = {"name": seen.pool, "uid": seen.pool_uid, "generation": 1, "resourceVersion": "1",
                "creationTimestamp": "2026-11-23T00:00:00Z"}  # fmt: skip
    return {"metadata": metadata, "spec": {}, "status": status}


def servings_of(look: Look, before: Iterable[Json] = ()) -> list[Json]:
    """`before` are the same servings a look ago: their last decisions are kept."""
    known = {each.key: each for each in look[0].servings}
    previous = {each["metadata"]["name"]: each["status"] for each in before}
    return [
        _serving(known[each.serving], each, look[0], previous.get(each.serving.name, {}))
        for each in look[1].serving_statuses
    ]


def _serving(serving: Serving, status: ServingStatus, seen: Observation, previous: Json) -> Json:
    slo: Json = {}
    if serving.slo is not None and serving.slo.itl is not None:
        slo["itlMilliseconds"] = milliseconds(serving.slo.itl)
    if serving.slo is not None and serving.slo.ttft is not None:
        slo["ttftMilliseconds"] = milliseconds(serving.slo.ttft)
    metadata = {"namespace": serving.key.namespace, "name": serving.key.name, "generation": serving.generation,
                "uid": serving.uid, "resourceVersion": "1", "creationTimestamp": "2026-11-23T00:00:00Z"}  # fmt: skip
    return {
        "metadata": metadata,
        "spec": {"model": {"name": serving.llm.name}, "poolName": serving.pool, **({"slo": slo} if slo else {})},
        "status": serving_status_to_dict(status, previous, now=seen.at),
    }


def page_of(look: Look) -> bytes:
    telemetry = Telemetry()
    telemetry.decided(look[0].pool, Tick(observation=look[0], outcome=look[1]), 0.01)
    return telemetry.text()


def cluster_of(pool: Json, servings: Iterable[Json], page: bytes) -> TinyApi:
    """An API server that has these, and a pod of the operator that answers with that page."""
    api = TinyApi()
    api.put(POOLS, pool)
    for each in servings:
        api.put(SERVINGS, each)
    pod = {"metadata": {"namespace": "gpupack-system", "name": "gpupack-0"}, "status": {"phase": "Running"}}

    def answer(request: web.BaseRequest) -> web.Response | None:
        if request.path == "/api/v1/pods":
            return web.json_response({"items": [pod]})
        if request.path == "/api/v1/namespaces/gpupack-system/pods/gpupack-0:8080/proxy/metrics":
            return web.Response(body=page)
        return None

    api.answer_read = answer
    return api


def kubeconfig_of(folder: Path, port: int) -> str:
    file = folder / "kubeconfig.json"
    cluster = {"name": "here", "cluster": {"server": f"http://127.0.0.1:{port}"}}
    file.write_text(json.dumps({
        "apiVersion": "v1", "kind": "Config", "current-context": "here", "clusters": [cluster],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        "users": [{"name": "me", "user": {}}],
    }))  # fmt: skip
    return str(file)
