"""A recorded journey as the API server and the operator's page would show it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpupack.facts.observation import Observation
from gpupack.facts.serving import Serving
from gpupack.kube.pool_resource import pool_status_to_dict
from gpupack.kube.serving_resource import serving_status_to_dict
from gpupack.plan import ServingStatus
from gpupack.telemetry import Telemetry, Tick
from gpupack.trace.lines import Ticked, read
from gpupack.units import milliseconds

TRACE = Path(__file__).parents[1] / "traces" / "journey.jsonl"
POOLS = "/apis/gpupack.dev/v1alpha1/gpupools"
SERVINGS = "/apis/gpupack.dev/v1alpha1/modelservings"

Json = dict[str, Any]


def last_tick() -> Ticked:
    return list(read(TRACE))[-1]


def pool_of(ticked: Ticked) -> Json:
    seen = ticked.observation
    status = pool_status_to_dict(ticked.outcome.pool_status, (), now=seen.at, generation=seen.pool_generation)
    return {"metadata": {"name": seen.pool, "uid": seen.pool_uid, "generation": 1}, "spec": {}, "status": status}


def servings_of(ticked: Ticked) -> list[Json]:
    known = {each.key: each for each in ticked.observation.servings}
    return [_serving(known[each.serving], each, ticked.observation) for each in ticked.outcome.serving_statuses]


def _serving(serving: Serving, status: ServingStatus, seen: Observation) -> Json:
    slo: Json = {}
    if serving.slo is not None and serving.slo.itl is not None:
        slo = {"slo": {"itlMilliseconds": milliseconds(serving.slo.itl)}}
    return {
        "metadata": {"namespace": serving.key.namespace, "name": serving.key.name, "generation": serving.generation},
        "spec": {"model": {"name": serving.llm.name}, "poolName": serving.pool, **slo},
        "status": serving_status_to_dict(status, {}, now=seen.at),
    }


def page_of(ticked: Ticked) -> bytes:
    telemetry = Telemetry()
    telemetry.decided(ticked.observation.pool, Tick(observation=ticked.observation, outcome=ticked.outcome), 0.01)
    return telemetry.text()
