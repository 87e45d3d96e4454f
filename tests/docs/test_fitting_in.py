"""Others understand a ModelServing: kstatus (Flux) and the health check that the page gives to Argo CD."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from lupa.lua54 import LuaRuntime

from gpupack.facts.gpu import Gpu
from gpupack.facts.serving import Mode
from gpupack.kube.serving_resource import serving_status_to_dict
from gpupack.plan import ServingStatus
from gpupack.units import Seconds

from ..decide.world import World
from ..strategies import gpu, key, serving
from .written import DOCS

CHAT = key("chat")
NOW = Seconds(1795000000.0)
SPEC = {"mode": "Active"}


def status_after(gpus: list[Gpu], seconds: float, **wishes: Any) -> ServingStatus:
    world = World(gpus, [serving("chat", batch=64, **wishes)], {CHAT: 5.0}).run(seconds)
    assert world.outcome is not None
    return world.outcome.serving_statuses[0]


def object_of(status: ServingStatus, spec: dict[str, Any] = SPEC) -> dict[str, Any]:
    told = serving_status_to_dict(status, {}, now=NOW)
    return {"metadata": {"generation": status.observed_generation}, "spec": spec, "status": told}


def kstatus(obj: dict[str, Any]) -> str:
    """What sigs.k8s.io/cli-utils' kstatus computes of a custom resource (pkg/kstatus/status/generic.go)."""
    if obj["status"].get("observedGeneration") != obj["metadata"]["generation"]:
        return "InProgress"
    conditions = {each["type"]: each["status"] for each in obj["status"]["conditions"]}
    if conditions.get("Reconciling") == "True":
        return "InProgress"
    if conditions.get("Stalled") == "True":
        return "Failed"
    return "InProgress" if conditions.get("Ready", "True") != "True" else "Current"


def argo(obj: dict[str, Any]) -> tuple[str, str]:
    """Status and message by the health check of docs/gitops.md, run by a real Lua."""
    page = (DOCS / "gitops.md").read_text()
    fence = next(each for each in page.split("```") if "resource.customizations.health" in each)
    (script,) = yaml.safe_load(fence.removeprefix("yaml"))["data"].values()
    lua = LuaRuntime(unpack_returned_tuples=True)
    told = lua.eval("function(source, obj) return load(source, 'health', 't', {obj = obj, ipairs = ipairs})() end")(
        script, lua.table_from(obj, recursive=True)
    )
    return told.status, told.message


SEEN = [
    pytest.param([gpu(0)], 4.0, {}, "InProgress", "Progressing", id="starting"),
    pytest.param([gpu(0)], 60.0, {}, "Current", "Healthy", id="serving"),
    pytest.param([gpu(0, "T4")], 4.0, {}, "Failed", "Degraded", id="a dtype that no GPU of the pool has"),
]


@pytest.mark.parametrize(("gpus", "seconds", "wishes", "flux", "argo_cd"), SEEN)
def test_flux_and_argo_cd_read_the_same_out_of_a_status(
    gpus: list[Gpu], seconds: float, wishes: dict[str, Any], flux: str, argo_cd: str
) -> None:
    obj = object_of(status_after(gpus, seconds, **wishes))
    assert (kstatus(obj), argo(obj)[0]) == (flux, argo_cd)


def test_while_a_spec_is_newer_than_its_status_both_wait() -> None:
    obj = object_of(status_after([gpu(0)], 60.0))
    obj["metadata"]["generation"] += 1
    assert (kstatus(obj), argo(obj)[0]) == ("InProgress", "Progressing")


@pytest.mark.parametrize(("mode", "argo_cd"), [("Advise", "Healthy"), ("Suspend", "Suspended")])
def test_argo_cd_is_not_kept_waiting_for_what_was_not_asked_for(mode: str, argo_cd: str) -> None:
    status = status_after([gpu(0)], 4.0, mode=Mode(mode))
    assert argo(object_of(status, {"mode": mode}))[0] == argo_cd
