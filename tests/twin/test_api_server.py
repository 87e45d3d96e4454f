"""The API server in memory keeps the rules that an operator relies on."""

from __future__ import annotations

import pytest

from gpupack.twin.api_server import ApiServer, Key, Refusal, parse

POD = Key("pods", "team", "engine")
PATH = "/api/v1/namespaces/team/pods/engine"


def body(**metadata: object) -> dict[str, object]:
    return {
        "metadata": {"labels": {"a": "1"}, **metadata},
        "spec": {"containers": [], "terminationGracePeriodSeconds": 8},
    }


def test_paths_name_objects_with_and_without_namespace() -> None:
    assert parse(PATH) == (POD, "")
    assert parse("/apis/gpupack.dev/v1alpha1/gpupools/default/status") == (Key("gpupools", "", "default"), "status")


def test_the_same_apply_twice_writes_once_and_another_spec_of_a_pod_is_refused() -> None:
    server = ApiServer(0.0)
    server.apply(PATH, body())
    server.apply(PATH, body())
    assert server.writes == 1
    with pytest.raises(Refusal, match="immutable"):
        server.apply(PATH, {**body(), "spec": {"containers": ["other"]}})


def test_an_old_version_and_another_uid_are_conflicts() -> None:
    server = ApiServer(0.0)
    first = server.apply(PATH, body())
    server.merge(PATH, {"metadata": {"uid": first["metadata"]["uid"], "labels": {"a": "2"}}})
    with pytest.raises(Refusal, match="409"):
        server.apply(PATH, body(resourceVersion=first["metadata"]["resourceVersion"]))
    with pytest.raises(Refusal, match="409"):
        server.delete(PATH, "uid-of-another")


def test_a_pod_without_a_node_goes_at_once_and_one_with_a_node_in_its_own_time() -> None:
    server = ApiServer(0.0)
    server.apply(PATH, body())
    server.delete(PATH)
    assert server.get(POD) is None
    server.apply(PATH, body())
    server.edit(POD, lambda item: {**item, "spec": {**item["spec"], "nodeName": "node"}})
    server.delete(PATH)
    there = server.get(POD)
    assert there is not None
    assert there["metadata"]["deletionTimestamp"] == "1970-01-01T00:00:08Z"


def test_what_a_watcher_holds_does_not_change_under_it() -> None:
    server = ApiServer(0.0)
    server.apply(PATH, body())
    (added,) = server.changes("pods", 0)
    server.merge(PATH, {"metadata": {"labels": {"a": "2"}}})
    assert added.item["metadata"]["labels"] == {"a": "1"}
    assert [each.kind for each in server.changes("pods", 0)] == ["ADDED", "MODIFIED"]
