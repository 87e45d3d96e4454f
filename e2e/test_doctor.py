"""`gpupack doctor` on the real API server with the virtual GPU node: it finds what is there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpupack.demo.stage import Stage, condition, shipped

from .journey import MIXED_NODE, PLUGIN_NODE, POOLS, SINGLE_NODE, Journey

SYSTEM, ACCOUNT = "gpupack-system", "gpupack-elsewhere"
"""Of an operator that nobody runs, so that what is taken from its account is missed by nobody."""
READER = "system:serviceaccount:default:reader"
STRANGE = "strange"
MIG = "NVIDIA-H100-80GB-HBM3"


def doctor(journey: Journey, kubeconfig: Path | None = None) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """The exit status, and what was found by topic."""
    stage = journey.stage
    command = [
        sys.executable, "-m", "gpupack", "doctor", "-o", "json",
        "--kubeconfig", str(kubeconfig or stage.cluster.kubeconfig), "--pod-proxy", stage.pod_proxy,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found: dict[str, list[dict[str, Any]]] = {}
    for each in json.loads(done.stdout):
        found.setdefault(each["topic"], []).append(each)
    return done.returncode, found


def by_kind(gpus: Iterable[Mapping[str, Any]]) -> str:
    kinds = sorted(Counter(each["kind"] for each in gpus).items())
    return ", ".join(f"{count} x {kind}" for kind, count in kinds)


def chosen(journey: Journey) -> Mapping[str, Any]:
    return condition(journey.stage.get(f"{POOLS}/default"), "BackendChosen")


def test_a_doctor_finds_gpus_and_metrics_and_says_what_it_cannot_know(journey: Journey) -> None:
    code, found = doctor(journey)
    assert code == 0
    by_driver, by_plugin = (each["sentence"] for each in found["GPUs"])
    gpus = journey.stage.state()["gpus"]
    published = [each for each in gpus if each["node"] not in (PLUGIN_NODE, MIXED_NODE, SINGLE_NODE)]
    cut = [each for each in gpus if each["node"] in (MIXED_NODE, SINGLE_NODE) and each["uuid"].startswith("MIG-")]
    offered = [*(each for each in gpus if each["node"] == PLUGIN_NODE), *cut]
    assert by_driver == f"{by_kind(published)} can be packed."
    assert by_plugin.startswith(f"{by_kind(offered)} can be packed: a device plugin offers them")
    [sharing] = found["Sharing"]
    assert f"DRA is taken for {len(published)} GPUs" in sharing["sentence"]
    assert f"InPod is taken for {len(offered)} GPUs" in sharing["sentence"]
    assert "The device plugin's own shares are not taken" in sharing["remedy"]
    journey.until("the pool, which has one node, says of it the same", lambda: chosen(journey).get("reason") == "DRA")
    assert "InPod is not taken" in chosen(journey)["message"]
    assert found["DRA driver"][0]["grade"] == "good"
    assert {each["grade"] for each in found["Metrics"]} == {"good"}
    assert {each["grade"] for each in found["Counters"]} == {"good"}
    assert found["MPS"][0]["grade"] == "unknown", "the virtual node has no pods of a driver"
    assert found["gpupack"][0]["sentence"] == "Its custom resources are installed."

    journey.stage.steer("/exporter", absent=["dram_active"])
    _, found = doctor(journey)
    assert any("does not export DCGM_FI_PROF_DRAM_ACTIVE" in each["sentence"] for each in found["Metrics"])


def grant(stage: Stage, name: str, account: str, rules: list[dict[str, Any]]) -> None:
    """A ClusterRole with these rules, bound to `system:serviceaccount:NAMESPACE:NAME`."""
    *_, namespace, person = account.split(":")
    rbac = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": name}}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
    subject = {"kind": "ServiceAccount", "name": person, "namespace": namespace}
    stage.cluster.apply(
        {**rbac, "kind": "ClusterRole", "rules": rules},
        {**rbac, "kind": "ClusterRoleBinding", "roleRef": reference, "subjects": [subject]},
    )


@pytest.fixture
def elsewhere(journey: Journey) -> Iterator[Journey]:
    """Beside the operator that runs: another one, as deploy/ installs it, of which no pod is wanted."""
    cluster = journey.stage.cluster
    deployment = yaml.safe_load((shipped("deploy") / "operator.yaml").read_text())
    deployment["metadata"] |= {"name": ACCOUNT, "namespace": SYSTEM}
    deployment["spec"]["replicas"] = 0
    deployment["spec"]["template"]["spec"]["serviceAccountName"] = ACCOUNT
    cluster.kubectl("create", "serviceaccount", ACCOUNT, "-n", SYSTEM)
    cluster.kubectl("create", "serviceaccount", "reader", "-n", "default")
    cluster.apply(deployment)
    yield journey
    cluster.kubectl("delete", "-n", SYSTEM, f"deployment/{ACCOUNT}", f"serviceaccount/{ACCOUNT}")
    cluster.kubectl("delete", "-n", "default", "serviceaccount/reader")
    roles = [f"{kind}/{name}" for kind in ("clusterrole", "clusterrolebinding") for name in (ACCOUNT, "reader")]
    cluster.kubectl("delete", "--ignore-not-found", *roles)


def test_a_doctor_tells_what_the_operators_account_lacks_and_when_nobody_tells(elsewhere: Journey) -> None:
    journey, stage = elsewhere, elsewhere.stage
    code, found = doctor(journey)
    assert code == 1
    [operator] = found["Operator"]
    assert operator["sentence"].startswith(f"{SYSTEM}/{ACCOUNT} does not run: it is scaled to no replicas.")
    assert "holds nothing of its role (says the API server)" in found["Rights"][0]["sentence"]

    documents = yaml.safe_load_all((shipped("deploy") / "rbac.yaml").read_text())
    role = next(each for each in documents if each["kind"] == "ClusterRole")
    grant(stage, ACCOUNT, f"system:serviceaccount:{SYSTEM}:{ACCOUNT}", role["rules"])
    held = f"The operator's account {SYSTEM}/{ACCOUNT} holds all of its role"
    journey.until(
        "all is held", lambda: f"{held} (says the API server)." == doctor(journey)[1]["Rights"][0]["sentence"]
    )
    fewer = [each for each in role["rules"] if each["resources"] not in (["events"], ["jobs"])]
    grant(stage, ACCOUNT, f"system:serviceaccount:{SYSTEM}:{ACCOUNT}", fewer)
    journey.until("less is held", lambda: len(doctor(journey)[1]["Rights"]) == 2)
    jobs, events = doctor(journey)[1]["Rights"]
    assert "may not list, create, patch and delete jobs.batch (says the API server)" in jobs["sentence"]
    assert "may not create events.events.k8s.io" in events["sentence"]
    assert jobs["grade"] == events["grade"] == "limited"

    reader = stage.cluster.kubeconfig_for(READER)
    [blind] = doctor(journey, reader)[1]["Operator"]
    assert blind["grade"] == "unknown"
    assert 'cannot list resource "deployments"' in blind["sentence"]
    listing = {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["list"]}
    grant(stage, "reader", READER, [listing])
    journey.until("Deployments are read", lambda: "Rights" in doctor(journey, reader)[1])
    [rights] = doctor(journey, reader)[1]["Rights"]
    assert rights["grade"] == "unknown"
    assert 'cannot create resource "subjectaccessreviews"' in rights["sentence"]
    assert 'cannot list resource "clusterrolebindings"' in rights["sentence"]
    rbac = {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["*"], "verbs": ["get", "list"]}
    grant(stage, "reader", READER, [listing, rbac])
    journey.until("roles are read", lambda: len(doctor(journey, reader)[1]["Rights"]) == 2)
    jobs, _ = doctor(journey, reader)[1]["Rights"]
    assert "jobs.batch (by its ClusterRoles; other authorizers were not asked)" in jobs["sentence"]


@pytest.fixture
def strange(journey: Journey) -> Iterator[Journey]:
    """Nodes with MIG slices of profiles that the catalog does not have: a device plugin's, and a DRA driver's."""
    cluster = journey.stage.cluster
    metadata = {"name": STRANGE, "labels": {"nvidia.com/gpu.product": MIG, "gpupack.dev/strange": "yes"}}
    cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": metadata})
    capacity = {"nvidia.com/mig-1g.12gb": "3"}
    patch = {"status": {"capacity": capacity, "allocatable": capacity}}
    cluster.kubectl("patch", "node", STRANGE, "--subresource=status", "--type=merge", "-p", json.dumps(patch))
    texts = {
        "type": "mig", "uuid": "MIG-strange", "parentUUID": "GPU-strange", "profile": "2g.24gb",
        "productName": "NVIDIA H100 80GB HBM3",
    }  # fmt: skip
    device = {"name": "gpu-0-mig-0", "attributes": {name: {"string": text} for name, text in texts.items()}}
    cluster.apply({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": STRANGE},
        "spec": {
            "driver": "gpu.nvidia.com", "nodeName": f"{STRANGE}-dra", "devices": [device],
            "pool": {"name": STRANGE, "generation": 1, "resourceSliceCount": 1},
        },
    })  # fmt: skip
    yield journey
    cluster.kubectl("delete", f"node/{STRANGE}", f"resourceslice/{STRANGE}")


def test_mig_slices_that_the_catalog_does_not_know_are_named_by_the_doctor_and_by_their_pool(strange: Journey) -> None:
    _, found = doctor(strange)
    told = [each for each in found["GPUs"] if "does not know this profile" in each["sentence"]]
    assert [each["sentence"].partition(":")[0] for each in told] == [
        f"1 MIG slice 2g.24gb of NVIDIA H100 80GB HBM3 on {STRANGE}-dra", f"3 MIG slices 1g.12gb of {MIG} on {STRANGE}",
    ]  # fmt: skip
    assert all("gpupack knows 1g.10gb," in each["remedy"] for each in told)
    strange.edit_pool(nodeSelector={"kubernetes.io/hostname": None, "gpupack.dev/strange": "yes"})

    def known() -> Mapping[str, Any]:
        return condition(strange.stage.pool(), "GpusKnown")

    strange.until("the pool names them", lambda: known().get("reason") == "UnknownProduct")
    assert f"{MIG}-MIG-1g.12gb" in known()["message"]
