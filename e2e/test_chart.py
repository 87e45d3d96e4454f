"""The chart on a real control plane, by the real Helm: installed, upgraded, rolled back, taken away."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpupack.demo.stage import ACCOUNT, wait_for
from gpupack.errors import Unavailable
from gpupack.node import binaries
from gpupack.node.controlplane import ControlPlane, KubectlError

from .host_node import HostNode

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "gpupack"
NAMESPACE = "gpupack-system"
SERVING = ROOT / "deploy" / "samples" / "modelserving-minimal.yaml"


class Cluster:
    """A control plane without nodes, and Helm for it."""

    def __init__(self, helm: Path, plane: ControlPlane, folder: Path) -> None:
        self.plane = plane
        self._helm = helm
        self._folder = folder

    def helm(self, *arguments: str | Path) -> str:
        done = self.try_helm(*arguments)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def try_helm(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        environ = {
            "KUBECONFIG": str(self.plane.kubeconfig), "HOME": str(self._folder), "HELM_NAMESPACE": NAMESPACE,
        }  # fmt: skip
        command = [str(self._helm), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environ)

    def exists(self, *what: str) -> bool:
        try:
            self.plane.kubectl("get", *what)
        except KubectlError:
            return False
        return True

    def get(self, *what: str) -> dict[str, Any]:
        return dict(json.loads(self.plane.kubectl("get", *what, "-o", "json")))


@pytest.fixture(scope="module")
def cluster(programs: binaries.Binaries, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    try:
        helm = binaries.obtain(binaries.helm())["helm"]
    except Unavailable as problem:
        pytest.skip(str(problem))
    with ControlPlane(programs) as plane:
        yield Cluster(helm, plane, tmp_path_factory.mktemp("helm"))


def previous_chart(folder: Path) -> Path:
    """The chart as it was one version ago: a CRD without a field of today's, an operator that logs less."""
    chart = folder / "gpupack"
    shutil.copytree(CHART, chart)
    about = chart / "Chart.yaml"
    about.write_text(about.read_text().replace("version: 0.1.0", "version: 0.0.9", 1))
    crd = chart / "files" / "crds" / "gpupools.yaml"
    text = crd.read_text()
    assert "listKind: GpuPoolList\n" in text
    crd.write_text(text.replace("shortNames: [gpool]", "shortNames: [gpool, oldpool]"))
    return chart


def short_names(cluster: Cluster) -> list[str]:
    return list(cluster.get("crd", "gpupools.gpupack.dev")["spec"]["names"]["shortNames"])


def test_installed_upgraded_rolled_back_and_taken_away(cluster: Cluster, tmp_path: Path) -> None:
    told = cluster.helm("install", "gpupack", previous_chart(tmp_path), "--create-namespace")
    assert "kubectl get gpool" in told
    assert cluster.exists("gpool", "default")
    assert short_names(cluster) == ["gpool", "oldpool"]
    assert cluster.exists("-n", NAMESPACE, "deploy", "gpupack")

    cluster.plane.kubectl("patch", "gpool", "default", "--type=merge", "-p", '{"spec":{"times":{"tickSeconds":3}}}')
    cluster.plane.kubectl("apply", "-f", SERVING)
    cluster.helm("upgrade", "gpupack", CHART, "--set", "operator.logLevel=debug")
    assert short_names(cluster) == ["gpool"], "an upgrade brings the CRDs of its chart"
    assert cluster.get("gpool", "default")["spec"]["times"]["tickSeconds"] == 3, "the pool is its owner's since"
    assert "--log-level=debug" in _arguments(cluster)

    cluster.helm("rollback", "gpupack", "1")
    assert "--log-level=info" in _arguments(cluster)
    assert cluster.exists("gpool", "default")
    cluster.helm("upgrade", "gpupack", CHART)

    name = yaml.safe_load(SERVING.read_text())["metadata"]["name"]
    cluster.helm("uninstall", "gpupack", "--timeout", "30s")
    assert not cluster.exists("-n", NAMESPACE, "deploy", "gpupack")
    assert not cluster.exists("clusterrole", "gpupack")
    assert cluster.exists("msv", name), "what serves outlives the operator"

    cluster.helm("install", "gpupack", CHART, "--set", "crds.keep=false")
    assert cluster.get("gpool", "default")["spec"]["times"]["tickSeconds"] == 3, "nor does an install touch it"
    cluster.helm("uninstall", "gpupack", "--timeout", "30s")
    wait_for(lambda: not cluster.exists("crd", "modelservings.gpupack.dev"), 30.0, "the CRDs are gone")


def _arguments(cluster: Cluster) -> list[str]:
    containers = cluster.get("-n", NAMESPACE, "deploy", "gpupack")["spec"]["template"]["spec"]["containers"]
    return list(containers[0]["args"])


def test_the_api_server_takes_everything_that_the_chart_can_render(cluster: Cluster) -> None:
    for values in sorted((ROOT / "tests" / "charts" / "values").glob("*.yaml")):
        cluster.helm("install", "gpupack", CHART, "--create-namespace", "--values", values, "--dry-run=server")


@pytest.fixture
def node(cluster: Cluster) -> Iterator[HostNode]:
    """Where an installed operator runs, under its own account."""

    def kubeconfig() -> Path:
        cluster.plane.kubeconfig_for(ACCOUNT).unlink()  # of an account of that name that was taken away
        return cluster.plane.kubeconfig_for(ACCOUNT)

    with HostNode(cluster.plane.kubeconfig, kubeconfig) as node:
        yield node


@pytest.mark.usefixtures("node")
def test_kubectl_alone_installs_what_the_chart_does(cluster: Cluster) -> None:
    kubectl = cluster.plane.kubectl
    kubectl("apply", "-f", ROOT / "crds")
    kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    kubectl("apply", "-k", ROOT / "deploy")
    kubectl("-n", NAMESPACE, "rollout", "status", "deploy/gpupack", "--timeout=60s")
    wait_for(lambda: cluster.get("gpool", "default").get("status"), 20.0, "the default pool has a status")
    kubectl("delete", "-k", ROOT / "deploy", "--timeout=30s")
    kubectl("delete", "-f", ROOT / "crds", "--timeout=30s")
    assert not cluster.exists("namespace", NAMESPACE)


def test_helm_test_tells_an_operator_that_works_from_one_that_is_not_there(cluster: Cluster, node: HostNode) -> None:
    kubectl = cluster.plane.kubectl
    cluster.helm("install", "gpupack", CHART, "--create-namespace", "--wait", "--timeout", "60s")
    assert cluster.get("-n", NAMESPACE, "deploy", "gpupack")["status"]["readyReplicas"] == 1
    told = cluster.helm("test", "gpupack", "--timeout", "60s")
    assert "Succeeded" in told
    said = node.said("gpupack-test")
    assert "the operator has read the cluster" in said
    assert "the API server spoke of gpupools" in said

    wait_for(lambda: cluster.get("gpool", "default").get("status"), 20.0, "the default pool has a status")
    kubectl("-n", NAMESPACE, "scale", "deploy/gpupack", "--replicas=0")
    gone = ("--for=delete", "pod", "--selector=app.kubernetes.io/component=operator")
    kubectl("-n", NAMESPACE, "wait", *gone, "--timeout=30s")
    failed = cluster.try_helm("test", "gpupack", "--timeout", "60s")
    assert failed.returncode != 0
    cluster.helm("uninstall", "gpupack", "--timeout", "30s")
