"""What every journey starts from: a fresh control plane with gpupack's API in it, and its logs if the journey fails."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from gpupack.errors import Unavailable
from gpupack.node import binaries
from gpupack.node.controlplane import ControlPlane

CRDS = Path(__file__).parents[1] / "crds"
LOGS = Path(__file__).parent / ".out"
FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


@pytest.fixture(scope="session")
def programs() -> binaries.Binaries:
    """The control plane's programs: at once if cached, else downloaded or built (minutes)."""
    try:
        return binaries.obtain(binaries.control_plane())
    except Unavailable as problem:
        pytest.skip(str(problem))


@pytest.fixture
def cluster(programs: binaries.Binaries, request: pytest.FixtureRequest) -> Iterator[ControlPlane]:
    """A control plane of the journey's own, with the CRDs and an audit log. Logs of a failed journey stay in .out/."""
    with ControlPlane(programs, audit=True) as cluster:
        cluster.apply(CRDS)
        cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
        yield cluster
        if request.node.stash.get(FAILED, False):
            kept = LOGS / request.node.name
            kept.mkdir(parents=True, exist_ok=True)
            for log in cluster.folder.glob("*.log"):
                shutil.copy(log, kept)
