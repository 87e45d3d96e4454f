"""The dashboards' JSON: what the code makes, and valid by the schema that Grafana publishes as a package.

That their queries give series is a journey's business (e2e/test_dashboards.py).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dashboards import DASHBOARDS
from dashboards.page import Page
from gpupack.node.binaries import cache_home

ROOT = Path(__file__).parents[2]
SHIPPED = (ROOT / "deploy" / "dashboards", ROOT / "charts" / "gpupack" / "files" / "dashboards")
SCHEMA = Path(__file__).parent / "schema"
PANELS = {"timeseries": "TimeSeries", "stat": "Stat", "table": "Table", "state-timeline": "StateTimeline"}
WITHOUT_FIELDS = "stat"
"""A number has no settings of its own for a field."""

# A JSON file has the values of TypeScript's string enums, not their names.
PLAIN = "type Plain<T> = T extends string ? `${T}` : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;"

every_page = pytest.mark.parametrize("page", DASHBOARDS, ids=lambda page: page.name)


@every_page
def test_what_is_shipped_is_what_the_code_makes(page: Page, regenerating: bool) -> None:
    for folder in SHIPPED:
        path = folder / f"{page.name}.json"
        if regenerating:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(page.text())
        assert path.read_text() == page.text(), f"{path} is old: pytest --regenerate writes it"


def test_no_other_dashboard_is_shipped() -> None:
    for folder in SHIPPED:
        assert {path.stem for path in folder.glob("*.json")} == {page.name for page in DASHBOARDS}


@every_page
def test_every_panel_says_what_it_means_and_has_room(page: Page) -> None:
    taken: set[tuple[int, int]] = set()
    panels = [each for each in json.loads(page.text())["panels"] if each["type"] != "row"]
    assert len({each["id"] for each in json.loads(page.text())["panels"]}) == len(json.loads(page.text())["panels"])
    for panel in panels:
        assert panel["description"]
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


@pytest.fixture(scope="session")
def published() -> Path:
    """A folder with Grafana's schema and the TypeScript compiler, by the digests of the lock file; kept for later."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed: Grafana publishes its schema as an npm package")
    lock = (SCHEMA / "package-lock.json").read_bytes()
    folder = cache_home(os.environ) / "gpupack" / "grafana-schema" / hashlib.sha256(lock).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as alone:
        fcntl.flock(alone, fcntl.LOCK_EX)
        if not (folder / "ready").exists():
            for name in ("package.json", "package-lock.json"):
                shutil.copy(SCHEMA / name, folder)
            command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"Grafana's schema cannot be had: {done.stderr}"
            (folder / "ready").touch()
    return folder


def typescript(dashboard: dict[str, Any]) -> Iterator[str]:
    """The dashboard as a value of the schema's types, and each panel's own settings as values of its plugin's."""
    yield "import type { Dashboard } from '@grafana/schema';"
    for kind, name in PANELS.items():
        where = f"@grafana/schema/dist/esm/raw/composable/{kind.replace('-', '')}/panelcfg/x/{name}PanelCfg_types.gen"
        yield f"import type * as {name} from '{where}';"
    yield PLAIN
    yield f"export const dashboard: Plain<Dashboard> = {json.dumps(dashboard)};"
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            continue
        name, number = PANELS[panel["type"]], panel["id"]
        yield f"export const options{number}: Plain<Partial<{name}.Options>> = {json.dumps(panel.get('options', {}))};"
        fields = panel["fieldConfig"]["defaults"].get("custom", {})
        if panel["type"] == WITHOUT_FIELDS:
            assert not fields
        else:
            yield f"export const fields{number}: Plain<Partial<{name}.FieldConfig>> = {json.dumps(fields)};"


def compiled(published: Path, folder: Path, *dashboards: dict[str, Any]) -> str:
    """What the compiler complains about; nothing if the dashboards are valid."""
    (folder / "node_modules").symlink_to(published / "node_modules")
    for number, dashboard in enumerate(dashboards):
        (folder / f"dashboard{number}.ts").write_text("\n".join(typescript(dashboard)))
    command = [
        "node", "node_modules/typescript/bin/tsc", "--noEmit", "--strict", "--skipLibCheck", "--module", "esnext",
        "--moduleResolution", "bundler", *(f"dashboard{number}.ts" for number in range(len(dashboards))),
    ]  # fmt: skip
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout


@pytest.fixture(scope="session")
def complaints(published: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """By the compiler, of our dashboards in order and then of three that are wrong in one place each."""
    right = [json.loads(page.text()) for page in DASHBOARDS]
    value, choice, field = (json.loads(DASHBOARDS[0].text()) for _ in range(3))
    value["graphTooltip"] = 9
    choice["panels"][1]["options"]["graphMode"] = "sparkling"
    field["surprise"] = True
    told = compiled(published, tmp_path_factory.mktemp("typescript"), *right, value, choice, field)
    return [line for line in told.splitlines() if line.startswith("dashboard")]


def test_the_json_is_valid_by_the_schema_that_grafana_publishes(complaints: list[str]) -> None:
    ours = tuple(f"dashboard{number}.ts" for number in range(len(DASHBOARDS)))
    assert [line for line in complaints if line.startswith(ours)] == []


def test_what_grafana_does_not_know_is_found(complaints: list[str]) -> None:
    wrong = [f"dashboard{len(DASHBOARDS) + number}.ts" for number in range(3)]
    assert [line.partition("(")[0] for line in complaints] == wrong
