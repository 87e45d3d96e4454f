"""`gpupack completion`: the shell that is there completes with it; the others' scripts know every command."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from gpupack.cli import COMMANDS, main
from gpupack.cli.completion import SHELLS

ASK = """
source {script}
COMP_WORDS=(gpupack {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMP_LINE="gpupack {words}"
_shtab_gpupack
echo "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module", params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def script(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["completion", shell]) == 0
    path = tmp_path / "script"
    path.write_text(capsys.readouterr().out)
    return path


def test_every_command_is_in_the_script_and_its_shell_can_read_it(shell: str, script: Path) -> None:
    text = script.read_text()
    assert [name for name in COMMANDS if name not in text] == []
    if (program := shutil.which(shell)) is not None:
        subprocess.run([program, "--no-execute" if shell == "fish" else "-n", str(script)], check=True)


@pytest.mark.parametrize("shell", ["bash"], indirect=True)
def test_bash_completes_commands_options_and_choices(script: Path) -> None:
    def offered(words: str) -> list[str]:
        command = ["bash", "--norc", "-c", ASK.format(script=script, words=words)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()

    assert offered("adv") == ["advise"]
    assert offered("advise --itl") == ["--itl-slo-ms"]
    assert offered("explain -o j") == ["json"]
