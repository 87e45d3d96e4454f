"""The operator's manifests: the API server takes them, and they allow what the operator does and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gpupack.node.controlplane import KubectlError

from .conftest import ROOT, Cluster

pytestmark = pytest.mark.controlplane

ACCOUNT = "system:serviceaccount:gpupack-system:gpupack"

NEEDED = {
    ("list", "watch"): [
        "gpupools.gpupack.dev", "modelservings.gpupack.dev", "modelprofiles.gpupack.dev", "nodes", "pods", "services",
        "resourceslices.resource.k8s.io", "resourceclaims.resource.k8s.io", "poddisruptionbudgets.policy",
        "customresourcedefinitions.apiextensions.k8s.io",
    ],
    ("create", "patch"): [
        "pods", "services", "resourceclaims.resource.k8s.io", "poddisruptionbudgets.policy", "modelprofiles.gpupack.dev"
    ],
    ("list", "watch", "create", "patch"): ["endpointslices.discovery.k8s.io"],
    ("create",): ["secrets"],
    ("delete",): ["pods", "resourceclaims.resource.k8s.io"],
    ("patch",): [
        "gpupools.gpupack.dev/status", "modelservings.gpupack.dev/status", "modelprofiles.gpupack.dev/status"
    ],
}  # fmt: skip

FORBIDDEN = {
    ("patch", "update", "delete"): ["gpupools.gpupack.dev", "modelservings.gpupack.dev", "nodes"],
    ("update", "delete"): ["modelprofiles.gpupack.dev"],
    ("get", "list"): ["secrets", "configmaps"],
    ("get",): ["pods", "gpupools.gpupack.dev"],
    ("delete",): ["services", "poddisruptionbudgets.policy", "namespaces"],
    ("create",): ["pods/exec", "deployments.apps", "clusterrolebindings.rbac.authorization.k8s.io"],
    ("patch",): ["modelservings.gpupack.dev/scale", "pods/status", "resourceclaims.resource.k8s.io/status"],
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def deployed(cluster: Cluster) -> Iterator[None]:
    cluster.control_plane.kubectl("apply", "--server-side", "-k", ROOT / "deploy")
    yield
    # Its pool is called default like that of other files' tests, which may follow on the same control plane.
    cluster.control_plane.kubectl("delete", "gpupool/default")


def allowed(cluster: Cluster, verb: str, resource: str) -> bool:
    kind, _, subresource = resource.partition("/")
    question = ["auth", "can-i", verb, kind, "-A", "--as", ACCOUNT]
    try:
        answer = cluster.control_plane.kubectl(*question, *([f"--subresource={subresource}"] if subresource else []))
    except KubectlError:
        return False  # can-i answers no with exit status 1
    return answer.strip() == "yes"


def rows(table: dict[tuple[str, ...], list[str]]) -> list[tuple[str, str]]:
    return [(verb, resource) for verbs, resources in table.items() for resource in resources for verb in verbs]


@pytest.mark.parametrize(("verb", "resource"), rows(NEEDED))
def test_it_may_do_what_it_does(cluster: Cluster, verb: str, resource: str) -> None:
    assert allowed(cluster, verb, resource)


@pytest.mark.parametrize(("verb", "resource"), rows(FORBIDDEN))
def test_it_may_not_do_what_it_does_not(cluster: Cluster, verb: str, resource: str) -> None:
    assert not allowed(cluster, verb, resource)


def test_one_operator_at_a_time(cluster: Cluster) -> None:
    deployment = cluster.control_plane.get("deployment/gpupack", "-n", "gpupack-system")
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


def test_its_pod_passes_the_restricted_standard_of_its_namespace(cluster: Cluster) -> None:
    cluster.control_plane.kubectl(
        "wait", "-n", "gpupack-system", "--for=create", "pod", "--selector=app.kubernetes.io/component=operator",
        "--timeout=90s",
    )  # fmt: skip


def test_the_agents_pod_is_let_into_its_own_namespace_and_not_into_the_operators(cluster: Cluster) -> None:
    kubectl = cluster.control_plane.kubectl
    kubectl("apply", "--server-side", "-k", ROOT / "deploy" / "agent")
    agent = cluster.control_plane.get("daemonset/gpupack-agent", "-n", "gpupack-agent")
    answers = {}
    for namespace, account in (("gpupack-agent", "gpupack-agent"), ("gpupack-system", "gpupack")):
        spec = {**agent["spec"]["template"]["spec"], "serviceAccountName": account, "serviceAccount": account}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "like-the-agent"}, "spec": spec}
        strictly = {"dryRun": "All", "fieldValidation": "Strict"}
        answers[namespace] = cluster.client.post(f"/api/v1/namespaces/{namespace}/pods", params=strictly, json=pod)
    assert answers["gpupack-agent"].status_code == 201, answers["gpupack-agent"].text
    assert answers["gpupack-system"].status_code == 403
    complaint = answers["gpupack-system"].json()["message"]
    assert complaint.partition("violates PodSecurity")[2].count("(") == 1, complaint
    assert "host namespaces (hostPID=true)" in complaint
