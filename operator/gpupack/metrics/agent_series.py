"""The one table of the series that the node agent serves: name, unit, labels, where a value comes from, what it means.

Who writes the page and who reads it both take the names from here. Everything is in base units and says so in its name;
ratios are 0 to 1, though NVML gives percent. What NVML did not give is absent here, never zero, and `UNREADABLE` says
why. Does not know what a reading means for a decision.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpupack.metrics.series import Across, Exporter, Kind, Name, Quantity, Series


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSeries:
    """`name` is the one on the page, `_total` of a counter included. `unit` of what is 0 or 1 is `yes`."""

    name: str
    kind: Kind = Kind.GAUGE
    unit: str
    labels: tuple[str, ...] = ("uuid",)
    meaning: str
    source: str


_PROCESS = ("uuid", "pid", "pod_uid", "container_id", "gpu_instance")
_MIG = ("uuid", "parent_uuid")
_LAST_SAMPLE = "the agent's clock"

NVML_UP = AgentSeries(
    name="gpupack_agent_nvml_up", unit="yes", labels=(), source="nvmlInit",
    meaning="1 once NVML answers on this node; while it is 0 no GPU is listed.",
)  # fmt: skip
NVML_ERROR = AgentSeries(
    name="gpupack_agent_nvml_error", unit="yes", labels=("error",), source="nvmlInit, nvmlEventSetWait_v2",
    meaning="1 for what NVML as a whole refuses with: lib_rm_version_mismatch after a driver was exchanged.",
)  # fmt: skip
DRIVER = AgentSeries(
    name="gpupack_agent_driver_info", unit="yes", labels=("driver", "nvml"),
    source="nvmlSystemGetDriverVersion, nvmlSystemGetNVMLVersion", meaning="Versions of the driver and of its library.",
)  # fmt: skip

GPU = AgentSeries(
    name="gpupack_agent_gpu_info", unit="yes",
    labels=("uuid", "index", "product", "bus_id", "compute_mode", "mig", "gpm"),
    source="nvmlDeviceGetName, ...GetPciInfo_v3, ...GetComputeMode, ...GetMigMode, nvmlGpmQueryDeviceSupport",
    meaning="What the GPU is and how it is set; `mig` and `gpm` are true, false or empty where NVML does not say.",
)  # fmt: skip
GPU_LOST = AgentSeries(
    name="gpupack_agent_gpu_lost", unit="yes", source="NVML_ERROR_GPU_IS_LOST, NVML_ERROR_RESET_REQUIRED",
    meaning="1 if the GPU fell off its bus or must be reset: nothing on it can be trusted.",
)  # fmt: skip
SAMPLE_AGE = AgentSeries(
    name="gpupack_agent_sample_age_seconds", unit="seconds", source=_LAST_SAMPLE,
    meaning="Age of the readings below. Past the agent's --stale-seconds they are withheld and only the age is told.",
)  # fmt: skip
SAMPLE_TIME = AgentSeries(
    name="gpupack_agent_sample_duration_seconds", unit="seconds", source=_LAST_SAMPLE,
    meaning="How long the last complete reading of the GPU took.",
)  # fmt: skip
CALL = AgentSeries(
    name="gpupack_agent_call_duration_seconds", unit="seconds", labels=("uuid", "call"), source=_LAST_SAMPLE,
    meaning="An NVML call that has not come back for more than a sampling period, and for how long.",
)  # fmt: skip
UNREADABLE = AgentSeries(
    name="gpupack_agent_unreadable", unit="yes", labels=("uuid", "quantity", "error"), source="NVML return codes",
    meaning="1 for each quantity that NVML refuses on this GPU, and what it says; the quantity's series are absent.",
)  # fmt: skip

MEMORY_TOTAL = AgentSeries(
    name="gpupack_agent_memory_total_bytes", unit="bytes", source="nvmlDeviceGetMemoryInfo_v2",
    meaning="Device memory.",
)  # fmt: skip
MEMORY_RESERVED = AgentSeries(
    name="gpupack_agent_memory_reserved_bytes", unit="bytes", source="nvmlDeviceGetMemoryInfo_v2",
    meaning="Device memory that driver and firmware keep.",
)  # fmt: skip
MEMORY_FREE = AgentSeries(
    name="gpupack_agent_memory_free_bytes", unit="bytes", source="nvmlDeviceGetMemoryInfo_v2",
    meaning="Device memory that can be allocated.",
)  # fmt: skip
MEMORY_USED = AgentSeries(
    name="gpupack_agent_memory_used_bytes", unit="bytes", source="nvmlDeviceGetMemoryInfo_v2",
    meaning="Device memory in use by all processes, without what is reserved.",
)  # fmt: skip
GPU_BUSY = AgentSeries(
    name="gpupack_agent_gpu_busy_time_ratio", unit="ratio", source="nvmlDeviceGetUtilizationRates",
    meaning="Share of time in which at least one kernel ran; one tiny kernel makes it 1. Not given under MIG.",
)  # fmt: skip
MEMORY_BUSY = AgentSeries(
    name="gpupack_agent_memory_busy_time_ratio", unit="ratio", source="nvmlDeviceGetUtilizationRates",
    meaning="Share of time in which memory was read or written at all; not bandwidth.",
)  # fmt: skip
DRAM_BANDWIDTH = AgentSeries(
    name="gpupack_agent_dram_bandwidth_ratio", unit="ratio", source="GPM 10, DRAM_BW_UTIL",
    meaning="DRAM traffic over the theoretical peak, between the last two samples. Hopper and newer.",
)  # fmt: skip
SM_ACTIVE = AgentSeries(
    name="gpupack_agent_sm_active_ratio", unit="ratio", source="GPM 2, SM_UTIL",
    meaning="SMs that were busy, between the last two samples. Hopper and newer.",
)  # fmt: skip
SM_OCCUPANCY = AgentSeries(
    name="gpupack_agent_sm_occupancy_ratio", unit="ratio", source="GPM 3, SM_OCCUPANCY",
    meaning="Active warps over the most possible, between the last two samples. Hopper and newer.",
)  # fmt: skip
TENSOR_ACTIVE = AgentSeries(
    name="gpupack_agent_tensor_active_ratio", unit="ratio", source="GPM 5, ANY_TENSOR_UTIL",
    meaning="Time in which tensor cores worked, between the last two samples. Hopper and newer.",
)  # fmt: skip
CONTEXT_ACTIVE = AgentSeries(
    name="gpupack_agent_context_active_ratio", unit="ratio", source="GPM 1, GRAPHICS_UTIL",
    meaning="Time in which any context was active, between the last two samples. Hopper and newer.",
)  # fmt: skip
PCIE_SENT = AgentSeries(
    name="gpupack_agent_pcie_sent_bytes_per_second", unit="bytes_per_second", source="GPM 20, PCIE_TX_PER_SEC",
    meaning="PCIe traffic from the GPU, between the last two samples. Hopper and newer.",
)  # fmt: skip
PCIE_RECEIVED = AgentSeries(
    name="gpupack_agent_pcie_received_bytes_per_second", unit="bytes_per_second", source="GPM 21, PCIE_RX_PER_SEC",
    meaning="PCIe traffic to the GPU, between the last two samples. Hopper and newer.",
)  # fmt: skip
POWER = AgentSeries(
    name="gpupack_agent_power_watts", unit="watts", source="nvmlDeviceGetPowerUsage",
    meaning="Power that the board draws, whole GPU also under MIG.",
)  # fmt: skip
POWER_LIMIT = AgentSeries(
    name="gpupack_agent_power_limit_watts", unit="watts", source="nvmlDeviceGetEnforcedPowerLimit",
    meaning="Power that the board may draw.",
)  # fmt: skip
ENERGY = AgentSeries(
    name="gpupack_agent_energy_joules_total", kind=Kind.COUNTER, unit="joules",
    source="nvmlDeviceGetTotalEnergyConsumption", meaning="Energy since the driver was loaded.",
)  # fmt: skip
TEMPERATURE = AgentSeries(
    name="gpupack_agent_temperature_celsius", unit="celsius", source="nvmlDeviceGetTemperature",
    meaning="Temperature of the GPU.",
)  # fmt: skip
SM_CLOCK = AgentSeries(
    name="gpupack_agent_sm_clock_hertz", unit="hertz", source="nvmlDeviceGetClockInfo", meaning="Clock of the SMs.",
)  # fmt: skip
SM_CLOCK_MAX = AgentSeries(
    name="gpupack_agent_sm_clock_max_hertz", unit="hertz", source="nvmlDeviceGetMaxClockInfo",
    meaning="Highest clock of the SMs.",
)  # fmt: skip
MEMORY_CLOCK = AgentSeries(
    name="gpupack_agent_memory_clock_hertz", unit="hertz", source="nvmlDeviceGetClockInfo",
    meaning="Clock of the DRAM.",
)  # fmt: skip
MEMORY_CLOCK_MAX = AgentSeries(
    name="gpupack_agent_memory_clock_max_hertz", unit="hertz", source="nvmlDeviceGetMaxClockInfo",
    meaning="Highest clock of the DRAM.",
)  # fmt: skip
CLOCKS_HELD = AgentSeries(
    name="gpupack_agent_clocks_held", unit="yes", labels=("uuid", "reason"),
    source="nvmlDeviceGetCurrentClocksEventReasons",
    meaning="1 for each reason that holds the clocks below their highest now (throttle reasons).",
)  # fmt: skip
ECC_ERRORS = AgentSeries(
    name="gpupack_agent_ecc_errors_total", kind=Kind.COUNTER, unit="errors", labels=("uuid", "severity"),
    source="nvmlDeviceGetTotalEccErrors, volatile", meaning="ECC errors since the driver was loaded.",
)  # fmt: skip
EVENTS = AgentSeries(
    name="gpupack_agent_events_total", kind=Kind.COUNTER, unit="events", labels=("uuid", "event", "gpu_instance"),
    source="nvmlEventSetWait_v2",
    meaning="XID and ECC events since the agent began; `event` is xid_79, ecc_single_bit or ecc_double_bit.",
)  # fmt: skip
EVENT_TIME = AgentSeries(
    name="gpupack_agent_event_timestamp_seconds", unit="seconds", labels=("uuid", "event", "gpu_instance"),
    source="nvmlEventSetWait_v2", meaning="When such an event was last seen, seconds since 1970.",
)  # fmt: skip

MIG = AgentSeries(
    name="gpupack_agent_mig_info", unit="yes",
    labels=(*_MIG, "profile", "gpu_instance", "compute_instance", "multiprocessors"),
    source="nvmlDeviceGetMigDeviceHandleByIndex, nvmlDeviceGetAttributes_v2", meaning="A MIG device and its GPU.",
)  # fmt: skip
MIG_MEMORY_TOTAL = AgentSeries(
    name="gpupack_agent_mig_memory_total_bytes", unit="bytes", labels=_MIG, source="nvmlDeviceGetMemoryInfo_v2",
    meaning="Memory of the instance.",
)  # fmt: skip
MIG_MEMORY_USED = AgentSeries(
    name="gpupack_agent_mig_memory_used_bytes", unit="bytes", labels=_MIG, source="nvmlDeviceGetMemoryInfo_v2",
    meaning="Memory of the instance in use.",
)  # fmt: skip
MIG_DRAM_BANDWIDTH = AgentSeries(
    name="gpupack_agent_mig_dram_bandwidth_ratio", unit="ratio", labels=_MIG, source="nvmlGpmMigSampleGet, GPM 10",
    meaning="DRAM traffic over the instance's own peak, not the GPU's. Hopper and newer.",
)  # fmt: skip
MIG_SM_ACTIVE = AgentSeries(
    name="gpupack_agent_mig_sm_active_ratio", unit="ratio", labels=_MIG, source="nvmlGpmMigSampleGet, GPM 2",
    meaning="SMs of the instance that were busy. Hopper and newer.",
)  # fmt: skip

CORE_WAIT = AgentSeries(
    name="gpupack_agent_core_wait_ratio", unit="ratio", source="/proc/PID/task/TID/schedstat",
    meaning="Of the time that the threads of the engine which is worst off could have run, the share that they waited "
    "for a core, over ten seconds; absent before them and without engines.",
)  # fmt: skip
MIG_CORE_WAIT = AgentSeries(
    name="gpupack_agent_mig_core_wait_ratio", unit="ratio", labels=_MIG, source="/proc/PID/task/TID/schedstat",
    meaning="The same of an engine on a MIG device.",
)  # fmt: skip

PROCESS = AgentSeries(
    name="gpupack_agent_process_info", unit="yes", labels=(*_PROCESS, "role", "program"),
    source="nvmlDeviceGetComputeRunningProcesses_v3, nvmlDeviceGetMPSComputeRunningProcesses_v3, /proc",
    meaning="A compute process; `role` is engine (vLLM), mps_server, other or gone (not in the /proc that is seen).",
)  # fmt: skip
PROCESS_MEMORY = AgentSeries(
    name="gpupack_agent_process_memory_bytes", unit="bytes", labels=_PROCESS, source="as above",
    meaning="Device memory of a compute process, where NVML tells it.",
)  # fmt: skip
MPS_SERVER = AgentSeries(
    name="gpupack_agent_mps_server", unit="yes", labels=("uuid", "pid"), source="/proc/PID/cmdline",
    meaning="1 for the MPS server that holds a context on the GPU.",
)  # fmt: skip
MPS_ATTACHED = AgentSeries(
    name="gpupack_agent_engine_mps_attached", unit="yes", labels=(*_PROCESS, "proof", "pipe_directory"),
    source="nvmlDeviceGetMPSComputeRunningProcesses_v3, nvmlDeviceGetComputeMode, /proc/PID/environ",
    meaning="1 if the engine's process is proven to be a client of MPS, 0 if it is proven not to be; absent without a "
    "proof. `pipe_directory` tells whether its environment names one: set, unset, unreadable.",
)  # fmt: skip
ENGINES = AgentSeries(
    name="gpupack_agent_engines", unit="engines", source="as above", meaning="Engine processes on the GPU.",
)  # fmt: skip
PACKED_ENGINES = AgentSeries(
    name="gpupack_agent_packed_engines", unit="engines", source="as above",
    meaning="Engine processes that are proven to share the GPU by MPS; absent where that cannot be told.",
)  # fmt: skip

TABLE: tuple[AgentSeries, ...] = (
    NVML_UP, NVML_ERROR, DRIVER,
    GPU, GPU_LOST, SAMPLE_AGE, SAMPLE_TIME, CALL, UNREADABLE,
    MEMORY_TOTAL, MEMORY_RESERVED, MEMORY_FREE, MEMORY_USED,
    GPU_BUSY, MEMORY_BUSY, DRAM_BANDWIDTH, SM_ACTIVE, SM_OCCUPANCY, TENSOR_ACTIVE, CONTEXT_ACTIVE,
    PCIE_SENT, PCIE_RECEIVED, POWER, POWER_LIMIT, ENERGY, TEMPERATURE,
    SM_CLOCK, SM_CLOCK_MAX, MEMORY_CLOCK, MEMORY_CLOCK_MAX, CLOCKS_HELD, ECC_ERRORS, EVENTS, EVENT_TIME,
    MIG, MIG_MEMORY_TOTAL, MIG_MEMORY_USED, MIG_DRAM_BANDWIDTH, MIG_SM_ACTIVE,
    PROCESS, PROCESS_MEMORY, MPS_SERVER, MPS_ATTACHED, ENGINES, PACKED_ENGINES, CORE_WAIT, MIG_CORE_WAIT,
)  # fmt: skip


def _read(quantity: Quantity, one: AgentSeries, of_slices: AgentSeries | None = None, factor: float = 1.0) -> Series:
    names = [one.name] if of_slices is None else [one.name, of_slices.name]
    return Series(
        quantity=quantity, exporter=Exporter.AGENT, kind=one.kind, unit=one.unit,
        names=tuple(Name(text=name, factor=factor) for name in names), meaning=one.meaning, source=one.source,
        across=Across.MAX,
    )  # fmt: skip


XID_OF_LOST = 79.0
"""What the driver calls a GPU that has fallen off its bus (NVIDIA, XID errors)."""
EVENT_LABEL, XID_EVENT = "event", "xid_"
READ: tuple[Series, ...] = (
    _read(Quantity.DRAM_BANDWIDTH, DRAM_BANDWIDTH, MIG_DRAM_BANDWIDTH),
    _read(Quantity.MEMORY_BUSY, MEMORY_BUSY),
    _read(Quantity.FB_USED, MEMORY_USED, MIG_MEMORY_USED),
    _read(Quantity.POWER, POWER),
    _read(Quantity.XID, GPU_LOST, factor=XID_OF_LOST),
    _read(Quantity.XID_TIME, EVENT_TIME),
    _read(Quantity.CORE_WAIT, CORE_WAIT, MIG_CORE_WAIT),
)
"""What of it the operator reads."""
