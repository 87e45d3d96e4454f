"""A small libnvidia-ml.so.1, compiled from `fake_nvml.c`, below the real `pynvml`; a /proc of text files."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "fake_nvml.c"


def compiled(folder: Path, *options: str) -> Path:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("no C compiler (cc): the fake libnvidia-ml.so.1 under the real pynvml cannot be made")
    library = folder / "libnvidia-ml.so.1"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wl,-soname,libnvidia-ml.so.1", *options, str(SOURCE)]
    subprocess.run([*command, "-o", str(library), "-lpthread"], check=True)
    return library


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What programs find through LD_LIBRARY_PATH."""
    return compiled(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def old_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a driver from before GPM."""
    return compiled(tmp_path_factory.mktemp("old_nvml"), "-DOLD_DRIVER")


class World:
    """The file that the fake library reads at every call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_("")

    def is_(self, text: str) -> None:
        partial = self.path.with_suffix(".part")
        partial.write_text(text)
        partial.rename(self.path)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "world")


@pytest.fixture
def nvml(library: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """The library loaded into this process under its own name, which is where `pynvml` then finds it."""
    monkeypatch.setenv("FAKE_NVML", str(world.path))
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    return world


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    folder = tmp_path / "proc"
    folder.mkdir()
    return folder


POD = "0a1b2c3d-0000-4000-8000-00000000000"
CONTAINER = "c" * 64
SYSTEMD = "0::/../../kubepods-burstable.slice/kubepods-burstable-pod{pod}.slice/cri-containerd-{container}.scope\n"


@pytest.fixture
def born(proc: Path) -> Callable[..., None]:
    """`born(pid, "vllm serve", pod=3, environment="A=1")`; an environment of None is one that may not be read."""

    def make(pid: int, command: str, *, pod: int | None = None, environment: str | None = None) -> None:
        folder = proc / str(pid)
        folder.mkdir()
        (folder / "cmdline").write_text("\0".join(command.split()) + "\0")
        cgroup = "0::/system.slice/nvidia.service\n"
        if pod is not None:
            cgroup = SYSTEMD.format(pod=f"{POD}{pod}".replace("-", "_"), container=CONTAINER)
        (folder / "cgroup").write_text(cgroup)
        if environment is not None:
            (folder / "environ").write_text("\0".join(environment.split()) + "\0")

    return make
