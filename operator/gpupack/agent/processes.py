"""Who the compute processes are, and which engines are proven to be attached to MPS.

A process that cannot reach MPS's control pipe when CUDA starts runs without MPS and says nothing, so the environment
proves nothing: the driver's own list of MPS clients does. Pods come from /proc/PID/cgroup, as UID and container: their
names are the API server's, which is not asked. Whether engines wait for cores is in /proc too. Needs the node's PID
namespace; knows nothing of NVML.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from gpupack.agent.sample import ComputeMode, GpuSample, Identity, Pipe, Process, Proof, Resident, Role
from gpupack.host.cpu import Meter, spent
from gpupack.units import Ratio, Seconds

PIPE_DIRECTORY = "CUDA_MPS_PIPE_DIRECTORY"
MPS_SERVER = "nvidia-cuda-mps-server"
_POD = re.compile(r"pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})")
"""The kubelet's two cgroup drivers (systemd writes `_` for `-`), and static pods, whose UID is a hash."""
_CONTAINER = re.compile(r"([0-9a-f]{64})(?:\.scope)?$", re.MULTILINE)
_ABSENT = Identity(
    role=Role.GONE, program="", pod_uid="", container_id="", pipe_directory=Pipe.UNREADABLE
)  # fmt: skip


def identify(proc: Path, pid: int) -> Identity:
    """What `/proc/PID` says. A process that is not there, because it ended or is of another namespace, is GONE."""
    try:
        words = (proc / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
        cgroup = (proc / str(pid) / "cgroup").read_text(errors="replace")
    except OSError:
        return _ABSENT
    pod, container = _POD.search(cgroup), _CONTAINER.search(cgroup)
    program = words[0].rpartition("/")[2]
    return Identity(
        role=_role(program, words),
        program=program,
        pod_uid=pod[1].replace("_", "-") if pod else "",
        container_id=container[1] if container else "",
        pipe_directory=_pipe_directory(proc, pid),
    )


def residents(proc: Path, sample: GpuSample) -> tuple[Resident, ...]:
    """The processes of a sample with their identities and what is proven of them."""
    known = [(each, identify(proc, each.pid)) for each in sample.processes or ()]
    return judged(known, sample.compute_mode)


def judged(known: Iterable[tuple[Process, Identity]], mode: ComputeMode | None) -> tuple[Resident, ...]:
    """Attached, not attached, or None where neither is proven; only of engines."""
    known = tuple(known)
    served = any(identity.role is Role.MPS_SERVER for _, identity in known)
    residents = []
    for process, identity in known:
        attached: bool | None = None
        proof: Proof | None = None
        if identity.role is Role.ENGINE:
            if process.mps_client is not None:
                attached = process.mps_client
                proof = Proof.CLIENT_LIST if attached else Proof.NOT_IN_CLIENT_LIST
            elif mode is ComputeMode.EXCLUSIVE_PROCESS and served:
                attached, proof = True, Proof.EXCLUSIVE_SERVER
        residents.append(Resident(process=process, identity=identity, attached=attached, proof=proof))
    return tuple(residents)


def with_core_waits(found: Iterable[Resident], proc: Path, meter: Meter, at: Seconds) -> tuple[Resident, ...]:
    """The same, and how long engines waited for cores in the last whole window of the meter, which is theirs alone.

    The limit of a container's cgroup cannot be read from here without the node's file system, which is not asked for.
    """
    found = tuple(found)
    engines = {str(each.process.pid): each for each in found if each.identity.role is Role.ENGINE}
    meter.keep(engines)
    waits = {name: meter.look(name, at, spent([each.process.pid], proc), None) for name, each in engines.items()}
    return tuple(
        each if (wait := waits.get(str(each.process.pid))) is None or wait.waited is None
        else replace(each, core_wait=Ratio(wait.waited))
        for each in found
    )  # fmt: skip


def _role(program: str, words: Iterable[str]) -> Role:
    """vLLM's engine calls itself VLLM::EngineCore; before 0.9 it is the server's own `python -m vllm...`."""
    if program == MPS_SERVER:
        return Role.MPS_SERVER
    return Role.ENGINE if any("vllm" in word.lower() for word in words) else Role.OTHER


def _pipe_directory(proc: Path, pid: int) -> Pipe:
    """Another user's environment is closed to us, by intent: it may hold secrets, and no capability is asked for it."""
    try:
        variables = (proc / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return Pipe.UNREADABLE
    named = any(each.startswith(f"{PIPE_DIRECTORY}=".encode()) for each in variables)
    return Pipe.SET if named else Pipe.UNSET
