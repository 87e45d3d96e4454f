"""After all journeys: the operator's role grants what it used, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gpupack.demo.stage import ACCOUNT, Stage, shipped

from .history import History

CREATED = 201


def granted() -> set[tuple[str, str]]:
    """Verb and resource of every rule of the operator's roles: the one that it always has, and the optional one."""
    texts = (shipped("deploy") / name for name in ("rbac.yaml", "inference-pools.yaml"))
    documents = [each for text in texts for each in yaml.safe_load_all(text.read_text())]
    names = {each["roleRef"]["name"] for each in documents if each["kind"] == "ClusterRoleBinding"}
    roles = [each for each in documents if each["kind"] == "ClusterRole" and each["metadata"]["name"] in names]
    rules = [rule for role in roles for rule in role["rules"]]
    return {(verb, what) for rule in rules for what in rule["resources"] for verb in rule["verbs"]}


def used(stage: Stage) -> set[tuple[str, str]]:
    """What the audit log has of the operator. An apply that made the object needs `create` besides `patch`."""
    events = [each for each in stage.cluster.audit_events() if each.user == ACCOUNT and each.resource]
    made = {("create", each.resource) for each in events if each.verb == "patch" and each.code == CREATED}
    return {(each.verb, each.resource) for each in events} | made


def test_every_verb_that_is_granted_was_used_and_nothing_was_denied(
    stage: Stage, history: History, request: pytest.FixtureRequest
) -> None:
    files = {item.path.name for item in request.session.items}
    if files != {path.name for path in Path(__file__).parent.glob("test_*.py")}:
        pytest.skip("only after all journeys is it known what was not used: run the whole of e2e")
    denied = [each for each in stage.cluster.audit_events() if each.user == ACCOUNT and each.code == 403]
    assert denied == []
    assert history.foreign_marks() == []
    assert used(stage) >= granted(), "granted and never used"
    assert used(stage) <= granted(), "allowed by another role"
