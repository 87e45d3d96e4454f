"""The documentation says what the code says: written parts are current, the site builds, blocks run or can be read."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from gpupack.decide.meanings import CONDITIONS, REASONS, STATES, STEPS
from gpupack.plan import ConditionType, Reason, Step

from .written import DOCS, ROOT, pages, rewritten

BIN = Path(sys.executable).parent
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)
RUN = ".run"
NEWLINE = "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block. `info` is what stands behind the fence; one with `.run` is run."""

    page: str
    line: int
    info: str
    text: str

    @property
    def language(self) -> str:
        return re.split(r"[ }]", self.info.strip("{ "))[0].removeprefix(".")

    @property
    def is_run(self) -> bool:
        return RUN in self.info

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(path: Path) -> Iterator[Block]:
    text = path.read_text()
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(page=str(path.relative_to(ROOT)), line=line, info=found["info"].strip(), text=found["text"])


BLOCKS = [block for path in (ROOT / "README.md", *pages()) for block in blocks_of(path)]


def of(language: str, *, run: bool = False) -> list[Any]:
    return [pytest.param(each, id=str(each)) for each in BLOCKS if each.language == language and each.is_run == run]


def test_every_written_part_is_golden(regenerating: bool) -> None:
    for path in pages():
        text, wanted = path.read_text(), rewritten(path.read_text())
        if regenerating:
            path.write_text(wanted)
        else:
            assert text == wanted, f"{path} is not what the code says: pytest tests/docs --regenerate"


def test_the_golden_list_of_blocks_tells_which_are_run(golden: Callable[[str, str], None]) -> None:
    lines = (
        f"{'run' if each.is_run else 'parsed':7}{each.language or 'plain':8}{each.page}: {each.text.split(NEWLINE)[0]}"
        for each in BLOCKS
    )
    golden("docs/blocks.txt", "\n".join(lines) + "\n")


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    settings = (ROOT / "zensical.toml").read_text()
    shutil.copytree(DOCS, tmp_path / "docs")
    (tmp_path / "zensical.toml").write_text(settings)
    built = subprocess.run(
        [BIN / "zensical", "build", "--strict"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert "Warning" not in built.stdout
    listed = set(re.findall(r'"([\w/-]+)\.md"', settings))
    assert listed == {str(path.relative_to(DOCS).with_suffix("")) for path in pages()}
    for name in listed:
        page = (tmp_path / "build" / "docs" / f"{name}.html").read_text()
        assert "```" not in page, f"a fence of {name} was not understood"
        fetched = re.findall(r'<(?:script|link|img)\b[^>]*(?:src|href)="(https?://[^"]+)"', page)
        assert fetched == [], f"{name} fetches from elsewhere"


@pytest.mark.parametrize("block", of("sh", run=True))
def test_blocks_marked_run_run(block: Block, tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    command = ["bash", "-euo", "pipefail", "-c", block.text]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_shell_block_can_be_parsed() -> None:
    for block in (each for each in BLOCKS if each.language == "sh"):
        parsed = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
        assert parsed.returncode == 0, f"{block}: {parsed.stderr}"


@pytest.mark.parametrize("block", of("yaml"))
def test_yaml_blocks_are_what_the_schema_takes(block: Block) -> None:
    for document in yaml.safe_load_all(block.text):
        if isinstance(document, dict) and document.get("apiVersion", "").startswith("gpupack.dev/"):
            jsonschema.validate(document, schema_of(document["kind"]))


def schema_of(kind: str) -> Mapping[str, Any]:
    for path in (ROOT / "crds").glob("*.yaml"):
        crd = yaml.safe_load(path.read_text())
        if crd["spec"]["names"]["kind"] == kind:
            return strict(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    raise LookupError(kind)


def strict(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The same with unknown fields refused, as `kubectl apply` refuses them; metadata is Kubernetes' own."""
    told = dict(schema)
    if "properties" in schema:
        told["properties"] = {name: strict(inner) for name, inner in schema["properties"].items()}
        told.setdefault("additionalProperties", False)
    if "items" in schema:
        told["items"] = strict(schema["items"])
    if schema.get("x-kubernetes-int-or-string"):
        told["type"] = ["integer", "string"]
    return told


def test_every_reason_step_and_condition_has_its_meaning() -> None:
    assert list(REASONS) == list(Reason)
    assert set(STEPS) == set(Step)
    assert set(CONDITIONS) == set(ConditionType)


@pytest.mark.parametrize("module", ["decide/report.py", "kube/perform.py", "handlers.py"])
def test_every_word_of_a_condition_has_its_meaning(module: str) -> None:
    tree = ast.parse((ROOT / "operator" / "gpupack" / module).read_text())
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        if name not in ("_condition", "Condition"):
            continue
        given = {word.arg: word.value for word in call.keywords}
        kind, reason = (given["type"], given["reason"]) if name == "Condition" else (call.args[0], call.args[2])
        if isinstance(kind, ast.Attribute) and isinstance(reason, ast.Constant):
            condition = ConditionType[kind.attr]
            if condition in STATES:
                assert reason.value in STATES[condition], f"{condition.value} says {reason.value}, which has no meaning"
