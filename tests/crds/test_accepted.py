"""What a user can say, and what they then read: defaults, samples, the scale subresource, tables and explanations."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from .conftest import ROOT, Cluster

pytestmark = pytest.mark.controlplane

Golden = Callable[[str, str], None]
SAMPLES = sorted((ROOT / "deploy" / "samples").glob("*.yaml"))


@pytest.fixture
def served(cluster: Cluster) -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """Creates objects, and deletes them after the test."""
    created = []

    def create(obj: dict[str, Any]) -> dict[str, Any]:
        answer = cluster.create(obj)
        assert answer.code == 201, answer.message
        created.append(obj)
        return dict(answer.body)

    yield create
    for obj in created:
        cluster.delete(obj)


def serving(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "gpupack.dev/v1alpha1",
        "kind": "ModelServing",
        "metadata": {"name": "chat", "namespace": "default"},
        "spec": {"model": {"name": "qwen2.5-0.5b"}, **spec},
    }


def pool() -> dict[str, Any]:
    return {"apiVersion": "gpupack.dev/v1alpha1", "kind": "GpuPool", "metadata": {"name": "default"}, "spec": {}}


@pytest.mark.parametrize("sample", [pytest.param(path, id=path.stem) for path in SAMPLES])
def test_every_sample_is_accepted(cluster: Cluster, sample: Any) -> None:
    for obj in yaml.safe_load_all(sample.read_text()):
        answer = cluster.create(obj, dry_run=True)
        assert answer.code == 201, answer.message


@pytest.mark.parametrize("obj", [serving(), pool()], ids=["modelserving", "gpupool"])
def test_the_least_spec_is_stored_with_its_defaults(cluster: Cluster, obj: dict[str, Any], golden: Golden) -> None:
    answer = cluster.create(obj, dry_run=True)
    golden(f"crds/defaults-{obj['kind'].lower()}.json", json.dumps(answer.body["spec"], indent=2) + "\n")


def test_an_empty_part_gets_the_same_defaults_as_a_missing_one(cluster: Cluster) -> None:
    missing = cluster.create(serving(), dry_run=True)
    empty = cluster.create(serving(engine={}, scaling={}, batching={}), dry_run=True)
    assert empty.body["spec"] == missing.body["spec"]


def test_manual_lets_the_count_be_changed_and_auto_again_leaves_it(cluster: Cluster, served: Any) -> None:
    obj = serving()
    served(obj)
    assert cluster.patch(obj, {"spec": {"scaling": {"mode": "Manual"}, "replicas": 3}}).code == 200
    assert cluster.patch(obj, {"spec": {"replicas": 4}}).code == 200
    assert cluster.patch(obj, {"spec": {"scaling": {"mode": "Auto"}}}).body["spec"]["replicas"] == 4
    assert cluster.patch(obj, {"spec": {"replicas": 1}}).code == 422


def test_the_scale_subresource_reads_and_writes_the_count(cluster: Cluster, served: Any) -> None:
    obj = serving()
    served(obj)
    path = "/apis/gpupack.dev/v1alpha1/namespaces/default/modelservings/chat"
    assert cluster.get(f"{path}/scale").body["spec"] == {"replicas": 1}

    refused = cluster.patch(obj, {"spec": {"replicas": 3}}, subresource="/scale")
    assert refused.code == 422
    assert "set scaling.mode: Manual first" in refused.message

    cluster.patch(obj, {"spec": {"scaling": {"mode": "Manual"}}})
    selector = "gpupack.dev/serving=chat"
    cluster.patch(obj, {"status": {"replicas": 2, "selector": selector}}, subresource="/status")
    cluster.control_plane.kubectl("scale", "msv/chat", "--replicas=3")
    scale = cluster.get(f"{path}/scale").body
    assert scale["spec"] == {"replicas": 3}
    assert scale["status"] == {"replicas": 2, "selector": selector}


def test_servings_are_selected_by_pool_on_the_server(cluster: Cluster, served: Any) -> None:
    served(serving(poolName="small"))
    table = cluster.control_plane.kubectl
    assert "chat" in table("get", "msv", "--field-selector", "spec.poolName=small", "-o", "name")
    assert table("get", "msv", "--field-selector", "spec.poolName=other", "-o", "name") == ""


CONDITION_TIME = "2026-11-23T14:00:00Z"


def condition(kind: str, status: str, reason: str, message: str) -> dict[str, str]:
    return {
        "type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": CONDITION_TIME
    }  # fmt: skip


def test_the_tables_tell_the_story(cluster: Cluster, served: Any, golden: Golden) -> None:
    obj, owner = serving(), pool()
    served(obj)
    served(owner)
    waiting = cluster.control_plane.kubectl("get", "msv,gpool")
    said = {
        "replicas": 4,
        "readyReplicas": 3,
        "replicasPerGpu": 4,
        "freedBytes": 60129542144,
        "shape": {"maxNumSeqs": 96, "kvCacheMemoryBytes": 5368709120},
        "decision": {"reason": "BandwidthCeiling", "message": "saturation 0.93 is above 0.90 on GPU-1"},
        "conditions": [condition("SloMet", "True", "Kept", "ITL p95 21 ms of 30 ms")],
    }
    assert cluster.patch(obj, {"status": said}, subresource="/status").code == 200
    ready = condition("Ready", "True", "Deciding", "2 GPUs, 4 replicas")
    counts = {"gpus": 2, "gpusInUse": 1, "replicas": 4, "conditions": [ready]}
    assert cluster.patch(owner, {"status": counts}, subresource="/status").code == 200
    tables = [waiting, *(cluster.control_plane.kubectl("get", kind, "-o", "wide") for kind in ("msv", "gpool"))]
    golden("crds/tables.txt", without_ages("\n".join(tables)))


def without_ages(table: str) -> str:
    return re.sub(r"\b\d+s\b(\s*)", lambda age: "AGE".ljust(len(age[0])) if "\n" not in age[0] else "AGE\n", table)


@pytest.mark.parametrize(
    "path",
    [
        "msv.spec", "msv.spec.model", "msv.spec.engine", "msv.spec.slo", "msv.spec.scaling", "msv.status", "gpool.spec",
        "gpool.spec.times", "gpool.spec.limits", "mprof.spec",
    ],
)  # fmt: skip
def test_explain_reads_well(cluster: Cluster, path: str, golden: Golden) -> None:
    golden(f"crds/explain-{path}.txt", cluster.control_plane.kubectl("explain", path))


def test_every_field_explains_itself() -> None:
    for path in (ROOT / "crds").glob("*.yaml"):
        schema = yaml.safe_load(path.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        for part in ("spec", "status"):
            if part in schema["properties"]:
                assert list(undescribed(schema["properties"][part], f"{path.stem}.{part}")) == []


def test_no_field_is_a_float() -> None:
    for path in (ROOT / "crds").glob("*.yaml"):
        assert "type: number" not in path.read_text()


def undescribed(schema: dict[str, Any], path: str) -> Iterator[str]:
    for name, field in {**schema.get("properties", {}), **schema.get("items", {}).get("properties", {})}.items():
        if not field.get("description"):
            yield f"{path}.{name}"
        yield from undescribed(field, f"{path}.{name}")
