"""Which engines are proven to be attached to MPS, and whose they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gpupack.agent.processes import identify, residents, with_core_waits
from gpupack.agent.sample import ComputeMode, GpuSample, Pipe, Process, Proof, Resident, Role
from gpupack.host.cpu import Meter
from gpupack.units import Bytes, Seconds

from .conftest import CONTAINER, POD

Born = Callable[..., None]


def process(pid: int, mps_client: bool | None) -> Process:
    return Process(pid=pid, memory=Bytes(1), gpu_instance=None, mps_client=mps_client)


def told(proc: Path, *processes: Process, mode: ComputeMode = ComputeMode.DEFAULT) -> dict[int, Resident]:
    found = residents(proc, GpuSample(processes=processes, compute_mode=mode))
    return {each.process.pid: each for each in found}


def test_an_engine_in_the_drivers_list_of_clients_is_attached(proc: Path, born: Born) -> None:
    born(10, "/usr/bin/nvidia-cuda-mps-server", pod=1)
    born(11, "VLLM::EngineCore", pod=2)
    found = told(proc, process(10, False), process(11, True))
    assert (found[11].attached, found[11].proof) == (True, Proof.CLIENT_LIST)
    assert found[10].identity.role is Role.MPS_SERVER
    assert found[10].attached is None


def test_an_engine_whose_environment_names_the_pipe_may_still_run_without_mps(proc: Path, born: Born) -> None:
    born(11, "VLLM::EngineCore", pod=2, environment="CUDA_MPS_PIPE_DIRECTORY=/tmp/nvidia-mps")
    found = told(proc, process(11, False))
    assert (found[11].attached, found[11].proof) == (False, Proof.NOT_IN_CLIENT_LIST)
    assert found[11].identity.pipe_directory is Pipe.SET


def test_where_one_process_alone_may_have_a_context_and_the_server_has_it_others_are_clients(
    proc: Path, born: Born
) -> None:
    born(10, "nvidia-cuda-mps-server")
    born(11, "python3 -m vllm.entrypoints.openai.api_server", pod=2)
    found = told(proc, process(10, None), process(11, None), mode=ComputeMode.EXCLUSIVE_PROCESS)
    assert (found[11].attached, found[11].proof) == (True, Proof.EXCLUSIVE_SERVER)


@pytest.mark.parametrize("server", [True, False])
def test_without_a_proof_nothing_is_said(proc: Path, born: Born, server: bool) -> None:
    """In default mode a server beside the engine proves nothing, nor does exclusive mode without a server."""
    born(11, "VLLM::EngineCore", pod=2, environment="CUDA_MPS_PIPE_DIRECTORY=/tmp/nvidia-mps")
    if server:
        born(10, "nvidia-cuda-mps-server")
        found = told(proc, process(10, None), process(11, None))
    else:
        found = told(proc, process(11, None), mode=ComputeMode.EXCLUSIVE_PROCESS)
    assert (found[11].attached, found[11].proof) == (None, None)


def ran(proc: Path, pid: int, *, seconds: float, waited: float) -> None:
    """Since the process began, in one thread."""
    task = proc / str(pid) / "task" / str(pid)
    task.mkdir(parents=True, exist_ok=True)
    (task / "schedstat").write_text(f"{round(seconds * 1e9)} {round(waited * 1e9)} 7\n")


def test_an_engines_wait_for_cores_is_told_over_whole_windows_and_begins_anew_with_the_process(
    proc: Path, born: Born
) -> None:
    born(10, "nvidia-cuda-mps-server")
    born(11, "VLLM::EngineCore", pod=2)
    meter, waits = Meter(), []
    for at, seconds, waited in ((0.0, 5.0, 0.0), (5.0, 8.0, 1.0), (10.0, 11.0, 2.0), (15.0, 1.0, 0.0)):
        ran(proc, 10, seconds=seconds, waited=seconds)
        ran(proc, 11, seconds=seconds, waited=waited)
        found = residents(proc, GpuSample(processes=(process(10, False), process(11, True))))
        server, engine = with_core_waits(found, proc, meter, Seconds(at))
        waits.append(engine.core_wait)
        assert server.core_wait is None, "only engines are asked after"
    assert waits == [None, None, pytest.approx(2 / 8), None]


@pytest.mark.parametrize(
    "cgroup",
    [
        "0::/kubepods.slice/kubepods-pod{under}.slice/cri-containerd-{container}.scope\n",
        "0::/../kubepods-besteffort-pod{under}.slice/crio-{container}.scope\n",
        "0::/kubepods/burstable/pod{pod}/{container}\n",
        "12:memory:/kubepods/pod{pod}/{container}\n1:name=systemd:/kubepods/pod{pod}/{container}\n",
    ],
)
def test_the_pod_is_found_in_every_way_a_kubelet_writes_it(proc: Path, born: Born, cgroup: str) -> None:
    pod = f"{POD}4"
    born(11, "VLLM::EngineCore")
    text = cgroup.format(pod=pod, under=pod.replace("-", "_"), container=CONTAINER)
    (proc / "11" / "cgroup").write_text(text)
    identity = identify(proc, 11)
    assert (identity.pod_uid, identity.container_id) == (pod, CONTAINER)


def test_a_process_of_the_node_is_in_no_pod_and_one_that_ended_is_gone(proc: Path, born: Born) -> None:
    born(11, "/opt/trainer --fast")
    assert identify(proc, 11).pod_uid == ""
    assert identify(proc, 11).role is Role.OTHER
    assert identify(proc, 12).role is Role.GONE
