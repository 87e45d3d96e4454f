"""What `charts/gpupack` renders, by the real Helm; that it can be installed is a journey's business (e2e)."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpupack.errors import Unavailable
from gpupack.metrics import agent_series
from gpupack.node import binaries

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "gpupack"
VALUES = Path(__file__).parent / "values"
OF_A_RELEASE = {"app.kubernetes.io/instance", "app.kubernetes.io/managed-by", "helm.sh/chart"}
MONITORING = tuple(f"monitoring.coreos.com/v1/{kind}" for kind in ("ServiceMonitor", "PodMonitor", "PrometheusRule"))


@pytest.fixture(scope="session")
def helm() -> Path:
    try:
        return binaries.obtain(binaries.helm())["helm"]
    except Unavailable as problem:
        pytest.skip(str(problem))


def render(helm: Path, *arguments: str) -> str:
    command = [str(helm), "template", "gpupack", str(CHART), "--namespace", "gpupack-system", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def objects(text: str, kind: str) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(text) if each and each["kind"] == kind]


def without_copies(text: str) -> str:
    """CRDs and dashboards are copies of files that stand elsewhere; a golden file need not hold them again."""
    copies = re.compile(r"# Source: gpupack/templates/(crds|dashboards)\.yaml")
    return "---\n".join(each for each in text.split("---\n") if not copies.search(each))


def test_the_chart_is_clean(helm: Path) -> None:
    linted = subprocess.run([str(helm), "lint", "--strict", str(CHART)], capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize("values", sorted(path.stem for path in VALUES.glob("*.yaml")))
def test_what_is_rendered_is_what_was_reviewed(helm: Path, values: str, golden: Callable[[str, str], None]) -> None:
    watched = values in ("monitored", "with-agent", "with-activator")
    known = [f"--api-versions={each}" for each in MONITORING] if watched else []
    text = render(helm, "--values", str(VALUES / f"{values}.yaml"), *known)
    golden(f"chart/{values}.yaml", without_copies(text))


def test_the_crds_of_the_chart_are_the_projects_own(helm: Path, regenerating: bool) -> None:
    for path in sorted((ROOT / "crds").glob("*.yaml")):
        copy = CHART / "files" / "crds" / path.name
        if regenerating:
            copy.write_text(path.read_text())
        assert copy.read_text() == path.read_text(), f"{copy} is not {path}: pytest --regenerate copies it"
    assert len(list((CHART / "files" / "crds").iterdir())) == len(list((ROOT / "crds").glob("*.yaml")))

    def specs(text: str) -> dict[str, Any]:
        return {each["metadata"]["name"]: each["spec"] for each in objects(text, "CustomResourceDefinition")}

    own = "\n---\n".join(path.read_text() for path in (ROOT / "crds").glob("*.yaml"))
    assert specs(render(helm)) == specs(own)


@pytest.mark.parametrize("keep", [True, False])
def test_an_uninstall_takes_the_crds_only_where_it_was_asked_to(helm: Path, keep: bool) -> None:
    crds = objects(render(helm, "--set", f"crds.keep={str(keep).lower()}"), "CustomResourceDefinition")
    policies = {each["metadata"].get("annotations", {}).get("helm.sh/resource-policy") for each in crds}
    assert policies == ({"keep"} if keep else {None})


def test_chart_and_kustomization_grant_the_same(helm: Path) -> None:
    kustomized = list(yaml.safe_load_all((ROOT / "deploy" / "rbac.yaml").read_text()))
    for kind in ("ClusterRole", "Role"):
        expected = {each["metadata"]["name"]: each["rules"] for each in kustomized if each["kind"] == kind}
        assert {each["metadata"]["name"]: each["rules"] for each in objects(render(helm), kind)} == expected


def test_inference_pools_are_granted_only_where_they_were_asked_for(helm: Path) -> None:
    asked = objects(render(helm, "--set", "rbac.inferencePools=true"), "ClusterRole")
    apart = yaml.safe_load_all((ROOT / "deploy" / "inference-pools.yaml").read_text())
    (granted,) = (each for each in apart if each["kind"] == "ClusterRole")
    more = [each for each in asked if each not in objects(render(helm), "ClusterRole")]
    assert [(each["metadata"]["name"], each["rules"]) for each in more] == [
        (granted["metadata"]["name"], granted["rules"])
    ]


def plainly(value: Any) -> Any:
    """Without what only a Helm release has: the label of its instance, and those that say who manages it."""
    if isinstance(value, dict):
        return {key: plainly(each) for key, each in value.items() if key not in OF_A_RELEASE}
    return [plainly(each) for each in value] if isinstance(value, list) else value


def kustomized(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    try:
        kubectl = binaries.obtain(binaries.control_plane())["kubectl"]
    except Unavailable as problem:
        pytest.skip(str(problem))
    done = subprocess.run([str(kubectl), "kustomize", str(folder)], check=True, capture_output=True, text=True)
    return {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(done.stdout)}


def test_chart_and_kustomization_bring_the_same_objects(helm: Path) -> None:
    rendered = {
        (each["kind"], each["metadata"]["name"]): each
        for each in yaml.safe_load_all(render(helm))
        if each and each["kind"] not in ("CustomResourceDefinition", "Pod")
    }
    expected = kustomized(ROOT / "deploy")
    assert set(expected) - set(rendered) == {("Namespace", "gpupack-system")}
    assert set(rendered) <= set(expected)
    for kind in ("Service", "PodDisruptionBudget", "GpuPool", "ConfigMap"):
        for key in (each for each in rendered if each[0] == kind):
            ours, theirs = plainly(rendered[key]), plainly(expected[key])
            assert ours.get("spec") == theirs.get("spec")
            assert {name: json.loads(text) for name, text in ours.get("data", {}).items()} == {
                name: json.loads(text) for name, text in theirs.get("data", {}).items()
            }


def test_the_kustomization_of_monitors_and_alerts_is_the_charts(helm: Path, regenerating: bool) -> None:
    path = ROOT / "deploy" / "monitoring" / "monitoring.yaml"
    known = render(helm, *(f"--api-versions={each}" for each in MONITORING))
    kinds = [each.rpartition("/")[2] for each in MONITORING]
    found = [plainly(each) for kind in kinds for each in objects(known, kind)]
    if regenerating:
        head = "# The chart's own, written by: pytest tests/charts --regenerate\n"
        path.write_text(head + yaml.safe_dump_all(found, sort_keys=False, width=120))
    assert list(yaml.safe_load_all(path.read_text())) == found
    assert {kind for kind, _ in kustomized(path.parent)} == set(kinds)


def test_chart_and_kustomization_run_the_operator_alike(helm: Path) -> None:
    expected = yaml.safe_load((ROOT / "deploy" / "operator.yaml").read_text())["spec"]
    spec = objects(render(helm), "Deployment")[0]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (expected["replicas"], expected["strategy"])
    pod, other = spec["template"]["spec"], expected["template"]["spec"]
    assert pod["securityContext"] == other["securityContext"]
    ours, theirs = pod["containers"][0], other["containers"][0]
    for field in ("command", "ports", "livenessProbe", "readinessProbe", "resources", "securityContext"):
        assert ours[field] == theirs[field], field


def test_chart_and_kustomization_run_the_agent_alike(helm: Path) -> None:
    expected = yaml.safe_load((ROOT / "deploy" / "agent" / "daemonset.yaml").read_text())["spec"]["template"]["spec"]
    assert not objects(render(helm), "DaemonSet")
    text = render(helm, "--set", "agent.enabled=true")
    pod = objects(text, "DaemonSet")[0]["spec"]["template"]["spec"]
    for each in (pod, expected):
        (each["container"],) = each.pop("containers")
        each["container"].pop("image")
        each["container"].pop("imagePullPolicy", None)
    assert pod == expected


def test_the_agent_may_do_nothing_in_the_cluster_and_little_on_the_node(helm: Path) -> None:
    text = render(helm, "--set", "agent.enabled=true")
    pod = objects(text, "DaemonSet")[0]["spec"]["template"]["spec"]
    assert "volumes" not in pod
    assert not pod["automountServiceAccountToken"]
    assert not any(pod.get(each) for each in ("hostNetwork", "hostIPC"))
    bound = {
        subject["name"]
        for kind in ("ClusterRoleBinding", "RoleBinding")
        for binding in objects(text, kind)
        for subject in binding["subjects"]
    }
    assert pod["serviceAccountName"] not in bound


def test_monitors_and_alerts_come_only_where_their_kinds_are_known(helm: Path) -> None:
    kinds = ("ServiceMonitor", "PodMonitor", "PrometheusRule")
    assert not any(objects(render(helm), kind) for kind in kinds)
    known = render(helm, *(f"--api-versions={each}" for each in MONITORING))
    assert [len(objects(known, kind)) for kind in kinds] == [1, 2, 1]


def test_the_dashboards_come_as_configmaps_that_grafana_finds_unless_nobody_wants_them(helm: Path) -> None:
    files = {path.name: path.read_text() for path in (CHART / "files" / "dashboards").glob("*.json")}
    maps = objects(render(helm), "ConfigMap")
    shipped = {name: text for each in maps for name, text in each["data"].items()}
    assert {name: json.loads(text) for name, text in shipped.items()} == {
        name: json.loads(text) for name, text in files.items()
    }
    assert {each["metadata"]["labels"]["grafana_dashboard"] for each in maps} == {"1"}
    assert not objects(render(helm, "--set", "monitoring.dashboards.create=false"), "ConfigMap")


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("replicas=2", "additional properties 'replicas' not allowed"),
        ("operator.logLevel=loud", "at '/operator/logLevel'"),
        ("image.digest=latest", "at '/image/digest'"),
        ("monitoring.podMonitor.interval=often", "at '/monitoring/podMonitor/interval'"),
    ],
)
def test_a_value_that_is_wrong_is_refused_by_its_name(helm: Path, setting: str, complaint: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        render(helm, "--set", setting)
    assert complaint in refused.value.stderr


def test_the_schema_knows_every_value_and_allows_no_other() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert sorted(_leaves(values)) == sorted(set(_leaves(values)) & set(_described(schema)))
    assert set(_described(schema)) - set(_leaves(values)) == {"global"}


def _leaves(values: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value and key not in ("resources", "labels"):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"


def _described(schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for key, value in schema["properties"].items():
        assert value["description"].endswith("."), f"{path}{key} is not described"
        if "properties" in value and value.get("type") == "object":
            assert value["additionalProperties"] is False, f"{path}{key} lets in what nobody reads"
            yield from _described(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"


def test_every_alert_asks_for_a_series_that_is_served_and_says_what_to_do() -> None:
    package = ROOT / "operator" / "gpupack"
    telemetry = "".join((package / each).read_text() for each in ("telemetry.py", "activator/counts.py"))
    agents = {each.name for each in agent_series.TABLE}
    for group in yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            assert set(rule["annotations"]) == {"summary", "description", "runbook"}
            names = {word for word in _names(rule["expr"]) if word.startswith("gpupack_")}
            assert names, rule["alert"]
            for name in names - agents:
                assert f'"{name.removesuffix("_total").removesuffix("_count")}"' in telemetry, name


def _names(expression: str) -> list[str]:
    return "".join(each if each.isalnum() or each == "_" else " " for each in expression).split()


def test_chart_and_kustomization_run_the_activator_alike_and_only_if_asked_to(helm: Path) -> None:
    folder = ROOT / "deploy" / "activator"
    expected = yaml.safe_load((folder / "deployment.yaml").read_text())["spec"]["template"]["spec"]
    names = {each["metadata"]["name"] for each in objects(render(helm), "Deployment")}
    assert names == {"gpupack"}
    text = render(helm, "--set", "activator.enabled=true")
    (pod,) = [
        each["spec"]["template"]["spec"]
        for each in objects(text, "Deployment")
        if each["metadata"]["name"] == "gpupack-activator"
    ]
    for each in (pod, expected):
        (each["container"],) = each.pop("containers")
        each["container"].pop("image")
        each["container"].pop("imagePullPolicy", None)
    assert pod == expected
    roles = {each["metadata"]["name"]: each["rules"] for each in objects(text, "ClusterRole")}
    (role,) = [each for each in yaml.safe_load_all((folder / "rbac.yaml").read_text()) if each["kind"] == "ClusterRole"]
    assert roles["gpupack-activator"] == role["rules"]
