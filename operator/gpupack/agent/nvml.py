"""NVML, read through `pynvml`: one object a GPU, one `read()` a sample. Also what `e2e/gpu` measures with.

Every call may be refused, hang, or end the GPU. A refusal is noted and leaves None; a GPU that is lost ends the sample
at once; `calling` tells, from another thread, which call has not come back. The binding releases the interpreter while
it waits, so a call that hangs holds up its own thread alone. Knows no clock but the one it is given, nothing of pods,
and keeps nothing between samples but the last GPM sample, from which the next activity is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import pynvml

from gpupack.agent.sample import (
    Activity,
    Card,
    ComputeMode,
    Event,
    GpuSample,
    Memory,
    MigDevice,
    Process,
    Unreadable,
)
from gpupack.errors import Unavailable
from gpupack.units import MIB, Bytes, Seconds, Watts, ratio_from_percent

T = TypeVar("T")

_ERRORS: Mapping[int, str] = {
    value: name.removeprefix("NVML_ERROR_").lower()
    for name, value in vars(pynvml).items()
    if name.startswith("NVML_ERROR_")
}
VERSION_MISMATCH = _ERRORS[pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH]
_LOST = frozenset({pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED})

_MODES = {
    pynvml.NVML_COMPUTEMODE_DEFAULT: ComputeMode.DEFAULT,
    pynvml.NVML_COMPUTEMODE_EXCLUSIVE_THREAD: ComputeMode.EXCLUSIVE_THREAD,
    pynvml.NVML_COMPUTEMODE_PROHIBITED: ComputeMode.PROHIBITED,
    pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS: ComputeMode.EXCLUSIVE_PROCESS,
}

_HELD = {
    "idle": pynvml.nvmlClocksThrottleReasonGpuIdle,
    "clocks_setting": pynvml.nvmlClocksThrottleReasonApplicationsClocksSetting,
    "software_power_cap": pynvml.nvmlClocksThrottleReasonSwPowerCap,
    "hardware_slowdown": pynvml.nvmlClocksThrottleReasonHwSlowdown,
    "sync_boost": pynvml.nvmlClocksThrottleReasonSyncBoost,
    "software_thermal": pynvml.nvmlClocksThrottleReasonSwThermalSlowdown,
    "hardware_thermal": pynvml.nvmlClocksThrottleReasonHwThermalSlowdown,
    "power_brake": pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
    "display_clocks": pynvml.nvmlClocksThrottleReasonDisplayClockSetting,
}

_EVENTS = {
    pynvml.nvmlEventTypeSingleBitEccError: "ecc_single_bit",
    pynvml.nvmlEventTypeDoubleBitEccError: "ecc_double_bit",
}
_WATCHED = pynvml.nvmlEventTypeXidCriticalError

_SHARES = {
    pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL: "dram_bandwidth",
    pynvml.NVML_GPM_METRIC_SM_UTIL: "sm_active",
    pynvml.NVML_GPM_METRIC_SM_OCCUPANCY: "sm_occupancy",
    pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL: "tensor_active",
    pynvml.NVML_GPM_METRIC_GRAPHICS_UTIL: "context_active",
}
"""Percent in NVML."""
_FLOWS = {
    pynvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC: "pcie_sent",
    pynvml.NVML_GPM_METRIC_PCIE_RX_PER_SEC: "pcie_received",
}
"""MiB a second in NVML."""
_NO_INSTANCE = 0xFFFFFFFF
_MHZ = 1e6
_MILLI = 1e-3


def error_name(refusal: pynvml.NVMLError) -> str:
    return _ERRORS.get(refusal.value, f"code_{refusal.value}")


class Lost(Exception):
    """The GPU fell off its bus or must be reset, as NVML names it."""


class Refused(Unavailable):
    """NVML as a whole cannot be used; `error` as NVML names it."""

    def __init__(self, error: str) -> None:
        super().__init__(f"NVML cannot be used: {error.replace('_', ' ')}")
        self.error = error


def start() -> None:
    """Raises Refused where there is no library or driver, or the two are of different versions."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as refusal:
        raise Refused(error_name(refusal)) from refusal


def versions() -> tuple[str, str]:
    """Driver and library. Raises Refused."""
    try:
        return str(pynvml.nvmlSystemGetDriverVersion()), str(pynvml.nvmlSystemGetNVMLVersion())
    except pynvml.NVMLError as refusal:
        raise Refused(error_name(refusal)) from refusal


def gpus(clock: Callable[[], float]) -> tuple[list[Gpu], list[tuple[int, str]]]:
    """The GPUs that can be opened, and the index and error of those that cannot. Raises Refused."""
    opened: list[Gpu] = []
    closed: list[tuple[int, str]] = []
    try:
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError as refusal:
        raise Refused(error_name(refusal)) from refusal
    for index in range(count):
        try:
            opened.append(Gpu(index, clock))
        except pynvml.NVMLError as refusal:
            closed.append((index, error_name(refusal)))
        except Lost as lost:
            closed.append((index, str(lost)))
    return opened, closed


class Gpu:
    """One GPU, read by one thread. Raises NVMLError or Lost if it does not even tell its name."""

    def __init__(self, index: int, clock: Callable[[], float]) -> None:
        self.calling: tuple[str, Seconds] | None = None
        """The quantity that is being asked for, and since when."""
        self._clock = clock
        self._unreadable: list[Unreadable] = []
        self._handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        self._gpm: dict[int | None, _Interval] = {}
        supported = self._ask("gpm", pynvml.nvmlGpmQueryDeviceSupport, self._handle)
        pci = self._ask("bus_id", pynvml.nvmlDeviceGetPciInfo_v3, self._handle)
        self.card = Card(
            uuid=str(pynvml.nvmlDeviceGetUUID(self._handle)),
            index=index,
            product=str(pynvml.nvmlDeviceGetName(self._handle)),
            bus_id="" if pci is None else str(pci.busId),
            gpm=None if supported is None else bool(supported.isSupportedDevice),
        )
        self._never = tuple(self._unreadable)
        self.calling = None

    def read(self) -> GpuSample:
        """A sample; of a GPU that is lost only that."""
        self._unreadable = list(self._never)
        try:
            return self._read()
        except Lost:
            return GpuSample(lost=True, unreadable=tuple(self._unreadable))
        finally:
            self.calling = None

    def _read(self) -> GpuSample:
        ask, handle = self._ask, self._handle
        mig = ask("mig_mode", pynvml.nvmlDeviceGetMigMode, handle)
        mig_mode = None if mig is None else mig[0] == pynvml.NVML_DEVICE_MIG_ENABLE
        busy = ask("busy_time", pynvml.nvmlDeviceGetUtilizationRates, handle)
        mode = ask("compute_mode", pynvml.nvmlDeviceGetComputeMode, handle)
        held = ask("clocks_held", pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
        return GpuSample(
            compute_mode=None if mode is None else _MODES.get(mode),
            mig_mode=mig_mode,
            memory=self._memory("memory", handle),
            gpu_busy=None if busy is None else ratio_from_percent(busy.gpu),
            memory_busy=None if busy is None else ratio_from_percent(busy.memory),
            activity=self._activity(None) if self.card.gpm else Activity(),
            power=_watts(ask("power", pynvml.nvmlDeviceGetPowerUsage, handle)),
            power_limit=_watts(ask("power_limit", pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)),
            energy=_scaled(ask("energy", pynvml.nvmlDeviceGetTotalEnergyConsumption, handle), _MILLI),
            temperature_celsius=_scaled(
                ask("temperature", pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU), 1.0
            ),
            sm_clock=self._clock_of("sm_clock", pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_SM),
            sm_clock_max=self._clock_of("sm_clock_max", pynvml.nvmlDeviceGetMaxClockInfo, pynvml.NVML_CLOCK_SM),
            memory_clock=self._clock_of("memory_clock", pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_MEM),
            memory_clock_max=self._clock_of(
                "memory_clock_max", pynvml.nvmlDeviceGetMaxClockInfo, pynvml.NVML_CLOCK_MEM
            ),
            clocks_held=None if held is None else {name: bool(held & bit) for name, bit in _HELD.items()},
            ecc=self._ecc(),
            mig_devices=tuple(self._mig_devices()) if mig_mode else (),
            processes=self._processes(),
            unreadable=tuple(self._unreadable),
        )

    def _ask(self, quantity: str, call: Callable[..., T], *arguments: object) -> T | None:
        """None where NVML refuses, and the refusal noted. Raises Lost."""
        self.calling = (quantity, Seconds(self._clock()))
        try:
            return call(*arguments)
        except pynvml.NVMLError as refusal:
            self._unreadable.append(Unreadable(quantity=quantity, error=error_name(refusal)))
            if refusal.value in _LOST:
                raise Lost(error_name(refusal)) from refusal
            return None

    def _memory(self, quantity: str, handle: Any) -> Memory | None:
        told = self._ask(quantity, pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
        if told is None:
            return None
        return Memory(
            total=Bytes(told.total), reserved=Bytes(told.reserved), free=Bytes(told.free), used=Bytes(told.used)
        )

    def _clock_of(self, quantity: str, call: Callable[..., int], which: int) -> float | None:
        return _scaled(self._ask(quantity, call, self._handle, which), _MHZ)

    def _ecc(self) -> Mapping[str, int] | None:
        kinds = {
            "corrected": pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED,
            "uncorrected": pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
        }
        counts = {
            severity: self._ask(
                f"ecc_{severity}", pynvml.nvmlDeviceGetTotalEccErrors, self._handle, kind, pynvml.NVML_VOLATILE_ECC
            )
            for severity, kind in kinds.items()
        }
        return {severity: count for severity, count in counts.items() if count is not None} or None

    def _activity(self, instance: int | None) -> Activity:
        """Since the sample before: nothing at the first, and nothing across a sample that failed."""
        quantity = "activity" if instance is None else f"mig_{instance}_activity"
        interval = self._gpm.get(instance)
        if interval is None:
            made = self._ask(quantity, _Interval)
            if made is None:
                return Activity()
            interval = self._gpm[instance] = made
        if self._ask(quantity, interval.take, self._handle, instance) is None or not interval.is_whole:
            return Activity()
        metrics = self._ask(quantity, interval.metrics)
        if metrics is None:
            return Activity()
        for metric, error in metrics.refused.items():
            self._unreadable.append(Unreadable(quantity=metric, error=error))
        return Activity(**metrics.values)

    def _mig_devices(self) -> Iterator[MigDevice]:
        most = self._ask("mig_devices", pynvml.nvmlDeviceGetMaxMigDeviceCount, self._handle) or 0
        for index in range(most):
            try:
                handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(self._handle, index)
            except pynvml.NVMLError_NotFound:
                continue
            except pynvml.NVMLError as refusal:
                self._unreadable.append(Unreadable(quantity="mig_devices", error=error_name(refusal)))
                return
            uuid = self._ask("mig_devices", pynvml.nvmlDeviceGetUUID, handle)
            gpu_instance = self._ask("mig_devices", pynvml.nvmlDeviceGetGpuInstanceId, handle)
            compute_instance = self._ask("mig_devices", pynvml.nvmlDeviceGetComputeInstanceId, handle)
            if uuid is None or gpu_instance is None or compute_instance is None:
                continue
            name = str(self._ask("mig_profile", pynvml.nvmlDeviceGetName, handle) or "")
            attributes = self._ask("mig_attributes", pynvml.nvmlDeviceGetAttributes_v2, handle)
            yield MigDevice(
                uuid=str(uuid),
                profile=name.rpartition("MIG ")[2],
                gpu_instance=gpu_instance,
                compute_instance=compute_instance,
                multiprocessors=None if attributes is None else int(attributes.multiprocessorCount),
                memory=self._memory("mig_memory", handle),
                activity=self._activity(gpu_instance) if self.card.gpm else Activity(),
            )

    def _processes(self) -> tuple[Process, ...] | None:
        """Of both lists, each process once. None where NVML gives no list of compute processes."""
        own = self._ask("processes", pynvml.nvmlDeviceGetComputeRunningProcesses_v3, self._handle)
        clients = self._ask("mps_processes", pynvml.nvmlDeviceGetMPSComputeRunningProcesses_v3, self._handle)
        if own is None:
            return None
        attached = None if clients is None else {each.pid for each in clients}
        listed = {each.pid: each for each in (*own, *(clients or ()))}
        return tuple(
            Process(
                pid=pid,
                memory=None if each.usedGpuMemory is None else Bytes(each.usedGpuMemory),
                gpu_instance=None if each.gpuInstanceId == _NO_INSTANCE else each.gpuInstanceId,
                mps_client=None if attached is None else pid in attached,
            )
            for pid, each in sorted(listed.items())
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Metrics:
    """By field of Activity: values, and the errors of those that were refused or are no number."""

    values: Mapping[str, Any]
    refused: Mapping[str, str]


class _Interval:
    """Two GPM samples that take turns: the newer one of a pair is the older one of the next."""

    def __init__(self) -> None:
        self._older = pynvml.nvmlGpmSampleAlloc()
        self._newer = pynvml.nvmlGpmSampleAlloc()
        self._taken = 0

    @property
    def is_whole(self) -> bool:
        return self._taken > 1

    def take(self, handle: Any, instance: int | None) -> bool:
        self._older, self._newer = self._newer, self._older
        try:
            if instance is None:
                pynvml.nvmlGpmSampleGet(handle, self._newer)
            else:
                pynvml.nvmlGpmMigSampleGet(handle, instance, self._newer)
        except pynvml.NVMLError:
            self._taken = 0
            raise
        self._taken += 1
        return True

    def metrics(self) -> _Metrics:
        wanted = (*_SHARES, *_FLOWS)
        asked = pynvml.c_nvmlGpmMetricsGet_t()
        asked.version = pynvml.NVML_GPM_METRICS_GET_VERSION
        asked.numMetrics = len(wanted)
        asked.sample1, asked.sample2 = self._older, self._newer
        for position, metric in enumerate(wanted):
            asked.metrics[position].metricId = metric
        pynvml.nvmlGpmMetricsGet(asked)
        values: dict[str, Any] = {}
        refused: dict[str, str] = {}
        for position, metric in enumerate(wanted):
            name = _SHARES.get(metric) or _FLOWS[metric]
            told = asked.metrics[position]
            if told.nvmlReturn != pynvml.NVML_SUCCESS:
                refused[name] = _ERRORS.get(told.nvmlReturn, f"code_{told.nvmlReturn}")
            elif not math.isfinite(told.value):
                refused[name] = "not_finite"
            else:
                values[name] = ratio_from_percent(told.value) if metric in _SHARES else told.value * MIB
        return _Metrics(values=values, refused=refused)


class Events:
    """XID and ECC events of all GPUs, waited for by a thread of their own. Raises NVMLError where there are none."""

    def __init__(self) -> None:
        self._set = pynvml.nvmlEventSetCreate()
        self.refused: dict[str, str] = {}
        """UUIDs of GPUs that give no events, and why."""
        for index in range(pynvml.nvmlDeviceGetCount()):
            self._register(index)

    def _register(self, index: int) -> None:
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuid = str(pynvml.nvmlDeviceGetUUID(handle))
        except pynvml.NVMLError:
            return  # `gpus` told that it cannot be opened
        try:
            offered = pynvml.nvmlDeviceGetSupportedEventTypes(handle)
            wanted = offered & (_WATCHED | sum(_EVENTS))
            pynvml.nvmlDeviceRegisterEvents(handle, wanted, self._set)
        except pynvml.NVMLError as refusal:
            self.refused[uuid] = error_name(refusal)

    def wait(self, most_milliseconds: int) -> Event | None:
        """None if nothing happened. Raises NVMLError."""
        try:
            told = pynvml.nvmlEventSetWait_v2(self._set, most_milliseconds)
        except pynvml.NVMLError_Timeout:
            return None
        kind = told.eventType
        name = _EVENTS.get(kind) or (f"xid_{told.eventData}" if kind == _WATCHED else f"type_{kind}")
        return Event(
            uuid=str(pynvml.nvmlDeviceGetUUID(told.device)),
            name=name,
            gpu_instance=None if told.gpuInstanceId == _NO_INSTANCE else told.gpuInstanceId,
        )


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _watts(milliwatts: float | None) -> Watts | None:
    return None if milliwatts is None else Watts(milliwatts * _MILLI)
