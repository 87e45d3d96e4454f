"""What README shows of the command line is what the command line says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from gpupack.cli import main

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```console\n\$ gpupack (advise [^\n]*)\n(.*?)```", README.read_text(), re.DOTALL)


def test_readme_shows_an_answer() -> None:
    assert BLOCKS


@pytest.mark.parametrize(("command", "shown"), BLOCKS)
def test_every_line_that_readme_shows_is_printed(command: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(command)) == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in shown.splitlines() if line.rstrip() not in printed] == []
