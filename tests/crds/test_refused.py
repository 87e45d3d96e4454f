"""Every bad spec is refused by the API server itself, with its field named and what would be accepted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import ROOT, Cluster

pytestmark = pytest.mark.controlplane

ROWS = yaml.safe_load((Path(__file__).parent / "refused.yaml").read_text())
GOOD = {
    "ModelServing": "modelserving-minimal.yaml",
    "ModelProfile": "modelprofile.yaml",
}


def good(kind: str) -> dict[str, Any]:
    if kind == "GpuPool":
        return {"apiVersion": "gpupack.dev/v1alpha1", "kind": kind, "metadata": {"name": "refused"}, "spec": {}}
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "samples" / GOOD[kind]).read_text())
    return loaded


def laid_over(below: Any, above: Any) -> Any:
    """A JSON merge patch: mappings are merged, None removes, anything else replaces."""
    if not isinstance(above, Mapping):
        return above
    merged = dict(below) if isinstance(below, Mapping) else {}
    for key, value in above.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = laid_over(merged.get(key), value)
    return merged


@pytest.mark.parametrize("row", [pytest.param(row, id=row["name"]) for row in ROWS])
def test_refused(cluster: Cluster, row: Mapping[str, Any]) -> None:
    if "from" in row:
        before = laid_over(good(row["kind"]), row["from"])
        assert cluster.create(before).code == 201
        try:
            answer = cluster.patch(before, row["patch"])
        finally:
            cluster.delete(before)
    else:
        answer = cluster.create(laid_over(good(row["kind"]), row["patch"]), dry_run=True)
    assert answer.code in (400, 422), answer.body
    assert row["says"] in answer.message
    if "field" in row:
        assert row["field"] in answer.fields


@pytest.mark.parametrize("kind", ["ModelServing", "GpuPool", "ModelProfile"])
def test_what_the_rows_are_laid_over_is_accepted(cluster: Cluster, kind: str) -> None:
    answer = cluster.create(good(kind), dry_run=True)
    assert answer.code == 201, answer.message
