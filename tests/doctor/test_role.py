"""What the operator needs is what it is granted; and what ClusterRoles grant is read as RBAC reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gpupack.doctor.role import ROLE, Account, Right, all_rights, bound_roles, lacking

ACCOUNT = Account(namespace="gpupack-system", name="gpupack")
EVERYTHING = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((Path(__file__).parents[2] / "deploy" / "rbac.yaml").read_text()))


def rules_of(name: str) -> list[dict[str, Any]]:
    (role,) = [each for each in documents() if each["kind"] == "ClusterRole" and each["metadata"]["name"] == name]
    rules: list[dict[str, Any]] = role["rules"]
    return rules


def test_the_needs_are_exactly_the_rules_of_the_role_that_is_shipped() -> None:
    granted = {
        Right(verb=verb, group=group, resource=resource, name=name)
        for rule in rules_of("gpupack")
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }
    assert set(all_rights()) == granted
    assert len([right for need in ROLE for right in need.rights]) == len(granted), "each is told once"


def test_the_role_that_is_shipped_grants_all_and_none_of_it_is_granted_by_nothing() -> None:
    assert lacking(rules_of("gpupack")) == ()
    assert lacking([EVERYTHING]) == ()
    assert lacking([]) == all_rights()


@pytest.mark.parametrize("number", range(len(rules_of("gpupack"))))
def test_a_rule_that_is_taken_away_is_missed(number: int) -> None:
    rules = rules_of("gpupack")
    gone = rules.pop(number)
    missed = lacking(rules)
    assert missed
    assert {right.verb for right in missed} <= set(gone["verbs"])
    assert {right.resource for right in missed} <= set(gone["resources"])


def test_a_rule_for_one_name_grants_no_other_and_not_all() -> None:
    rule = {"apiGroups": [""], "resources": ["secrets", "pods"], "verbs": ["*"], "resourceNames": ["gpupack-host"]}
    held = set(all_rights()) - set(lacking([rule]))
    assert {(right.verb, right.resource) for right in held} == {("get", "secrets"), ("patch", "secrets")}


def test_a_rule_for_a_subresource_grants_not_the_resource_itself_nor_the_other_way_round() -> None:
    rule = {"apiGroups": ["gpupack.dev"], "resources": ["*/status"], "verbs": ["patch"]}
    assert {right.resource for right in set(all_rights()) - set(lacking([rule]))} == {
        "gpupools/status", "modelservings/status", "modelprofiles/status",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("subject", "is_bound"),
    [
        ({"kind": "ServiceAccount", "name": "gpupack", "namespace": "gpupack-system"}, True),
        ({"kind": "ServiceAccount", "name": "gpupack", "namespace": "default"}, False),
        ({"kind": "User", "name": "system:serviceaccount:gpupack-system:gpupack"}, True),
        ({"kind": "Group", "name": "system:serviceaccounts:gpupack-system"}, True),
        ({"kind": "Group", "name": "system:masters"}, False),
    ],
)
def test_a_role_is_bound_by_account_user_or_group(subject: dict[str, str], is_bound: bool) -> None:
    bindings: list[dict[str, Any]] = [
        {"roleRef": {"name": "some"}, "subjects": [subject]},
        {"roleRef": {"name": "nobodys"}},
    ]
    assert bound_roles(bindings, ACCOUNT) == (("some",) if is_bound else ())


def test_the_binding_that_is_shipped_binds_the_shipped_role() -> None:
    bindings = [each for each in documents() if each["kind"] == "ClusterRoleBinding"]
    assert bound_roles(bindings, ACCOUNT) == ("gpupack",)
