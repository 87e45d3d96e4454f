"""The nouns of the agent: what one look at a GPU gave. None is what NVML did not give, and `unreadable` says why.

Bytes, seconds, joules, watts, hertz, ratios 0 to 1. Does not know where the values come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from gpupack.units import Bytes, Ratio, Seconds, Watts


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """`quantity` as in the series, `error` as NVML names it, in small letters: not_supported, gpu_is_lost."""

    quantity: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    total: Bytes
    reserved: Bytes
    free: Bytes
    used: Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """Means between two GPM samples; PCIe in bytes a second."""

    dram_bandwidth: Ratio | None = None
    sm_active: Ratio | None = None
    sm_occupancy: Ratio | None = None
    tensor_active: Ratio | None = None
    context_active: Ratio | None = None
    pcie_sent: float | None = None
    pcie_received: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A compute process as NVML lists it, `gpu_instance` only under MIG. `mps_client`: it is in the list of MPS
    clients; None where that list cannot be read."""

    pid: int
    memory: Bytes | None
    gpu_instance: int | None
    mps_client: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MigDevice:
    """`activity` is relative to the instance's own share of the GPU."""

    uuid: str
    profile: str
    gpu_instance: int
    compute_instance: int
    multiprocessors: int | None
    memory: Memory | None
    activity: Activity


class ComputeMode(StrEnum):
    """How many processes may have a context; EXCLUSIVE_PROCESS is what MPS wants."""

    DEFAULT = "default"
    EXCLUSIVE_THREAD = "exclusive_thread"
    PROHIBITED = "prohibited"
    EXCLUSIVE_PROCESS = "exclusive_process"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a GPU is, for as long as the driver stays."""

    uuid: str
    index: int
    product: str
    bus_id: str
    gpm: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """One look. `energy` in joules and `ecc` by severity since the driver was loaded, clocks in hertz."""

    lost: bool = False
    compute_mode: ComputeMode | None = None
    mig_mode: bool | None = None
    memory: Memory | None = None
    gpu_busy: Ratio | None = None
    memory_busy: Ratio | None = None
    activity: Activity = Activity()
    power: Watts | None = None
    power_limit: Watts | None = None
    energy: float | None = None
    temperature_celsius: float | None = None
    sm_clock: float | None = None
    sm_clock_max: float | None = None
    memory_clock: float | None = None
    memory_clock_max: float | None = None
    clocks_held: Mapping[str, bool] | None = None
    ecc: Mapping[str, int] | None = None
    mig_devices: tuple[MigDevice, ...] = ()
    processes: tuple[Process, ...] | None = None
    unreadable: tuple[Unreadable, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """`name` is xid_79, ecc_single_bit or ecc_double_bit."""

    uuid: str
    name: str
    gpu_instance: int | None


class Role(StrEnum):
    ENGINE = "engine"
    MPS_SERVER = "mps_server"
    OTHER = "other"
    GONE = "gone"


class Pipe(StrEnum):
    """Whether a process's environment names the directory of MPS's pipes."""

    SET = "set"
    UNSET = "unset"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What /proc says of a process. Empty strings for a process that is in no pod."""

    role: Role
    program: str
    pod_uid: str
    container_id: str
    pipe_directory: Pipe


class Proof(StrEnum):
    """Why an engine counts as attached to MPS, or as not attached."""

    CLIENT_LIST = "client_list"
    """It is in NVML's list of MPS clients."""
    NOT_IN_CLIENT_LIST = "not_in_client_list"
    """It has a context of its own: NVML lists it as a compute process, and not as a client."""
    EXCLUSIVE_SERVER = "exclusive_server"
    """The list cannot be read, but one process alone may have a context and the MPS server has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A process on a GPU, and what is proven about MPS: None and no proof where nothing is.

    `core_wait`, only of engines: of the time that its threads could have run, the share that they waited for a core;
    None before it was watched for a while, and where the kernel does not count.
    """

    process: Process
    identity: Identity
    attached: bool | None
    proof: Proof | None
    core_wait: Ratio | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A sample with the processes on the GPU. `began` and `ended` on the agent's monotonic clock."""

    sample: GpuSample
    residents: tuple[Resident, ...]
    began: Seconds
    ended: Seconds
