"""What every journey stands on: one control plane with a virtual GPU node and the operator, cleared between journeys.

Starting them takes ten seconds and two cores, so all journeys of a process share them. What must hold in every journey
is looked at once, at the end: nobody of ours was refused by RBAC, and nothing of ours ever had a finalizer or a Kopf
annotation. Of several processes, each leaves to the others what its operator asked of the API.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from gpupack.demo.stage import ACCOUNT, NODE, OPERATOR, Stage
from gpupack.errors import Unavailable
from gpupack.node import binaries
from gpupack.node.controlplane import ControlPlane

from .history import History
from .journey import NODE_ARGUMENTS, PROCESS_IMAGE, Journey, write_image
from .kind.joined import JoinedCluster
from .processes import Processes, asked_of

LOGS = Path(__file__).parent / ".out"
HPA_OFTEN = ("--horizontal-pod-autoscaler-sync-period=2s",)
FAILED = pytest.StashKey[bool]()
GIVEN_CLUSTER, GIVEN_AUDIT_LOG = "GPUPACK_E2E_KUBECONFIG", "GPUPACK_E2E_AUDIT_LOG"
LAST = "test_roles.py"
"""Looks back at all journeys."""
WORKER, WORKERS = "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name == LAST)


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


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Processes:
    """What the operators of this run's processes asked of the API."""
    base = tmp_path_factory.getbasetemp()
    worker = os.environ.get(WORKER)
    if worker is None:
        return Processes(base, "alone", 1)
    return Processes(base.parent, worker, int(os.environ[WORKERS]))


@pytest.fixture(scope="session", autouse=True)
def left_to_others(processes: Processes) -> Iterator[None]:
    """Also from a process that had no journey."""
    yield
    processes.leave()


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[ControlPlane]:
    """A control plane with an audit log, or the cluster that stands already. Its logs stay in .out/ if one failed."""
    if (given := os.environ.get(GIVEN_CLUSTER)) is not None:
        log = os.environ.get(GIVEN_AUDIT_LOG)
        with JoinedCluster(Path(given), None if log is None else Path(log)) as joined:
            yield joined
        return
    programs = request.getfixturevalue("programs")
    with ControlPlane(programs, audit=True, controller_manager_arguments=HPA_OFTEN) as cluster:
        yield cluster
        if request.session.testsfailed:
            LOGS.mkdir(exist_ok=True)
            for log in cluster.folder.glob("*.log"):
                shutil.copy(log, LOGS)


@pytest.fixture(scope="session")
def stage(cluster: ControlPlane, processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("stage")
    image = tmp_path_factory.mktemp("image")
    write_image(image)
    arguments = (*NODE_ARGUMENTS, "--process", f"{PROCESS_IMAGE}={image}")
    with Stage(cluster, folder, node_arguments=arguments) as stage:
        stage.start_operator()
        yield stage
        processes.note(asked_of(cluster, ACCOUNT))


@pytest.fixture(scope="session")
def history(stage: Stage) -> Iterator[History]:
    with History(stage.cluster) as history:
        yield history


@pytest.fixture
def journey(stage: Stage, history: History, request: pytest.FixtureRequest) -> Iterator[Journey]:
    """An empty pool with short times, two GPUs and the operator; afterwards everything is taken away again.

    What the operator did is looked at after every journey, whatever the journey was about.
    """
    journey = Journey(stage, history)
    journey.begin()
    yield journey
    if request.node.stash.get(FAILED, False):
        _keep(journey, LOGS / request.node.name)
    journey.end()
    assert journey.denied() == []
    assert history.foreign_marks() == []


def _keep(journey: Journey, folder: Path) -> None:
    """What is needed to understand a failure, before it is cleared away."""
    folder.mkdir(parents=True, exist_ok=True)
    stage = journey.stage
    for program in (OPERATOR, NODE):
        (folder / f"{program}.log").write_text(stage.log(program)[journey.log_start.get(program, 0) :])
    seen = {"pool": stage.pool(), "servings": stage.servings(), "pods": stage.pods(), "state": stage.state()}
    for name, what in seen.items():
        (folder / f"{name}.json").write_text(json.dumps(what, indent=1))
    happened = journey.history.since(journey.mark)
    events = [f"{each.revision} {each.resource} {each.event} {each.name}" for each in happened]
    for resource in ("modelservings", "gpupools"):
        statuses = [json.dumps(each.object.get("status", {})) for each in happened if each.resource == resource]
        (folder / f"{resource}.jsonl").write_text("\n".join(statuses))
    (folder / "history.txt").write_text("\n".join(events))
