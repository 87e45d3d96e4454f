"""After all journeys: the operator's role grants what it used, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gpupack.demo.stage import ACCOUNT, Stage, shipped

from .history import History
from .processes import Asked, Processes, asked_of

CREATED, DENIED = 201, 403


def granted() -> set[tuple[str, str]]:
    """Verb and resource of every rule of the operator's roles: the one that it always has, and the optional one."""
    texts = (shipped("deploy") / name for name in ("rbac.yaml", "inference-pools.yaml"))
    documents = [each for text in texts for each in yaml.safe_load_all(text.read_text())]
    bound = [each["roleRef"] for each in documents if each["kind"].endswith("RoleBinding")]
    names = {(each["kind"], each["name"]) for each in bound}
    roles = [each for each in documents if (each["kind"], each.get("metadata", {}).get("name")) in names]
    rules = [rule for role in roles for rule in role["rules"]]
    return {(verb, what) for rule in rules for what in rule["resources"] for verb in rule["verbs"]}


def used(asked: frozenset[Asked]) -> set[tuple[str, str]]:
    """An apply that made the object needs `create` besides `patch`."""
    made = {("create", each.resource) for each in asked if each.verb == "patch" and each.code == CREATED}
    return {(each.verb, each.resource) for each in asked} | made


def test_every_verb_that_is_granted_was_used_and_nothing_was_denied(
    stage: Stage, history: History, processes: Processes, request: pytest.FixtureRequest
) -> None:
    files = {item.path.name for item in request.session.items}
    if files != {path.name for path in Path(__file__).parent.glob("test_*.py")}:
        pytest.skip("only after all journeys is it known what was not used: run the whole of e2e")
    asked = processes.others() | asked_of(stage.cluster, ACCOUNT)
    assert [each for each in asked if each.code == DENIED] == []
    assert history.foreign_marks() == []
    assert used(asked) >= granted(), "granted and never used"
    assert used(asked) <= granted(), "allowed by another role"
