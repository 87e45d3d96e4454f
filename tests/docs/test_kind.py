"""What is not run here, kind and a GPU node, is at least what its tools can read, and its scripts say what they do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .written import ROOT

BIN = Path(sys.executable).parent
KIND = ROOT / "e2e" / "kind"
WORKFLOW = ROOT / ".github" / "workflows" / "kind.yaml"
LINTERS = [
    pytest.param(
        ["yamllint", "--strict", "-c", ROOT / ".yamllint.yaml", WORKFLOW, *KIND.glob("*.yaml")], id="yamllint"
    ),
    pytest.param(["shellcheck", *KIND.glob("*.sh")], id="shellcheck"),
    pytest.param(["check-jsonschema", "--builtin-schema", "vendor.github-workflows", WORKFLOW], id="workflow"),
]
DRY_RUNS = [
    pytest.param(["run.sh", "--dry-run", "-k", "packing"], id="run"),
    pytest.param(["gpu.sh", "--dry-run", "registry.example.com/gpupack:0.1.0"], id="gpu"),
]


@pytest.mark.parametrize("command", LINTERS)
def test_linters_have_nothing_to_say(command: list[str | Path]) -> None:
    done = subprocess.run([BIN / command[0], *command[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("words", DRY_RUNS)
def test_a_dry_run_tells_every_command_and_runs_none(words: list[str], golden: Callable[[str, str], None]) -> None:
    command = [str(KIND / words[0]), *words[1:]]
    # Without a PATH to speak of: a program that is run nevertheless would not be found.
    environment = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == ""
    golden(f"docs/{words[0]}.txt", done.stdout.replace(str(ROOT), "."))
