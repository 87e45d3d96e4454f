"""The page that Prometheus reads, from the last looks. Makes no call and reads no clock.

Readings older than `stale` are withheld: a GPU whose driver hangs shows its age and the call that hangs, and no number
that somebody could pack on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gpupack.agent.sample import Activity, Card, GpuSample, Look, MigDevice, Resident, Role
from gpupack.agent.watch import GpuView, View
from gpupack.metrics import agent_series as series
from gpupack.metrics.agent_series import AgentSeries
from gpupack.metrics.series import Kind
from gpupack.units import Seconds

Row = tuple[AgentSeries, tuple[str, ...], float]


def page(view: View, *, period: Seconds, stale: Seconds) -> bytes:
    """Prometheus text. `period`: a call that takes longer is told by name."""
    return generate_latest(_Page(tuple(_rows(view, period, stale))))


class _Page(Collector):
    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = rows

    def collect(self) -> Iterator[Metric]:
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for each in series.TABLE:
            family = CounterMetricFamily if each.kind is Kind.COUNTER else GaugeMetricFamily
            families[each.name] = family(each.name, each.meaning, labels=each.labels)
        for each, labels, value in self._rows:
            families[each.name].add_metric(labels, value)
        yield from (family for family in families.values() if family.samples)


def _rows(view: View, period: Seconds, stale: Seconds) -> Iterator[Row]:
    yield series.NVML_UP, (), float(view.is_up)
    if view.error is not None:
        yield series.NVML_ERROR, (view.error,), 1.0
    if view.versions is not None:
        yield series.DRIVER, view.versions, 1.0
    for index, error in view.closed:
        yield series.UNREADABLE, ("", f"gpu_{index}", error), 1.0
    for uuid, error in sorted(view.no_events.items()):
        yield series.UNREADABLE, (uuid, "events", error), 1.0
    for event, happened in view.events.items():
        labels = (event.uuid, event.name, _text(event.gpu_instance))
        yield series.EVENTS, labels, float(happened.count)
        yield series.EVENT_TIME, labels, happened.at
    for gpu in view.gpus:
        yield from _gpu(gpu, view.now, period, stale)


def _gpu(gpu: GpuView, now: Seconds, period: Seconds, stale: Seconds) -> Iterator[Row]:
    uuid = (gpu.card.uuid,)
    if gpu.calling is not None and gpu.calling[1] > period:
        yield series.CALL, (gpu.card.uuid, gpu.calling[0]), gpu.calling[1]
    if (look := gpu.look) is None:
        return
    age = now - look.ended
    yield series.SAMPLE_AGE, uuid, age
    yield series.SAMPLE_TIME, uuid, look.ended - look.began
    if age > stale:
        return
    yield series.GPU_LOST, uuid, float(look.sample.lost)
    yield _info(gpu.card, look.sample)
    for each in sorted({(one.quantity, one.error) for one in look.sample.unreadable}):
        yield series.UNREADABLE, (gpu.card.uuid, *each), 1.0
    yield from _readings(gpu.card.uuid, look.sample)
    for device in look.sample.mig_devices:
        yield from _mig(gpu.card.uuid, device)
    if look.sample.processes is not None:
        yield from _residents(gpu.card.uuid, look.residents)
        yield from _core_waits(gpu.card.uuid, look)


def _info(card: Card, sample: GpuSample) -> Row:
    mode = "" if sample.compute_mode is None else sample.compute_mode.value
    labels = (card.uuid, str(card.index), card.product, card.bus_id, mode, _word(sample.mig_mode), _word(card.gpm))
    return series.GPU, labels, 1.0


def _readings(uuid: str, sample: GpuSample) -> Iterator[Row]:
    if sample.memory is not None:
        yield series.MEMORY_TOTAL, (uuid,), sample.memory.total
        yield series.MEMORY_RESERVED, (uuid,), sample.memory.reserved
        yield series.MEMORY_FREE, (uuid,), sample.memory.free
        yield series.MEMORY_USED, (uuid,), sample.memory.used
    told: tuple[tuple[AgentSeries, float | None], ...] = (
        (series.GPU_BUSY, sample.gpu_busy),
        (series.MEMORY_BUSY, sample.memory_busy),
        *_activity(sample.activity),
        (series.POWER, sample.power),
        (series.POWER_LIMIT, sample.power_limit),
        (series.ENERGY, sample.energy),
        (series.TEMPERATURE, sample.temperature_celsius),
        (series.SM_CLOCK, sample.sm_clock),
        (series.SM_CLOCK_MAX, sample.sm_clock_max),
        (series.MEMORY_CLOCK, sample.memory_clock),
        (series.MEMORY_CLOCK_MAX, sample.memory_clock_max),
    )
    for one, value in told:
        if value is not None:
            yield one, (uuid,), value
    for reason, holds in (sample.clocks_held or {}).items():
        yield series.CLOCKS_HELD, (uuid, reason), float(holds)
    for severity, count in (sample.ecc or {}).items():
        yield series.ECC_ERRORS, (uuid, severity), count


def _activity(activity: Activity) -> tuple[tuple[AgentSeries, float | None], ...]:
    return (
        (series.DRAM_BANDWIDTH, activity.dram_bandwidth),
        (series.SM_ACTIVE, activity.sm_active),
        (series.SM_OCCUPANCY, activity.sm_occupancy),
        (series.TENSOR_ACTIVE, activity.tensor_active),
        (series.CONTEXT_ACTIVE, activity.context_active),
        (series.PCIE_SENT, activity.pcie_sent),
        (series.PCIE_RECEIVED, activity.pcie_received),
    )


def _mig(parent: str, device: MigDevice) -> Iterator[Row]:
    where = (device.uuid, parent)
    instance, compute = str(device.gpu_instance), str(device.compute_instance)
    yield series.MIG, (*where, device.profile, instance, compute, _text(device.multiprocessors)), 1.0
    if device.memory is not None:
        yield series.MIG_MEMORY_TOTAL, where, device.memory.total
        yield series.MIG_MEMORY_USED, where, device.memory.used
    if device.activity.dram_bandwidth is not None:
        yield series.MIG_DRAM_BANDWIDTH, where, device.activity.dram_bandwidth
    if device.activity.sm_active is not None:
        yield series.MIG_SM_ACTIVE, where, device.activity.sm_active


def _residents(uuid: str, residents: Iterable[Resident]) -> Iterator[Row]:
    engines: list[Resident] = []
    for each in residents:
        process, identity = each.process, each.identity
        who = (uuid, str(process.pid), identity.pod_uid, identity.container_id, _text(process.gpu_instance))
        yield series.PROCESS, (*who, identity.role.value, identity.program), 1.0
        if process.memory is not None:
            yield series.PROCESS_MEMORY, who, process.memory
        if identity.role is Role.MPS_SERVER:
            yield series.MPS_SERVER, (uuid, str(process.pid)), 1.0
        if identity.role is Role.ENGINE:
            engines.append(each)
        if each.attached is not None and each.proof is not None:
            proof = (each.proof.value, identity.pipe_directory.value)
            yield series.MPS_ATTACHED, (*who, *proof), float(each.attached)
    yield series.ENGINES, (uuid,), len(engines)
    if all(each.attached is not None for each in engines):
        yield series.PACKED_ENGINES, (uuid,), sum(bool(each.attached) for each in engines)


def _core_waits(uuid: str, look: Look) -> Iterator[Row]:
    """Engines of a MIG instance count for it, all others for the GPU."""
    devices = {each.gpu_instance: each.uuid for each in look.sample.mig_devices}
    worst: dict[str | None, float] = {}
    for each in look.residents:
        if each.core_wait is not None:
            instance = each.process.gpu_instance
            place = None if instance is None else devices.get(instance)
            worst[place] = max(worst.get(place, 0.0), each.core_wait)
    for place, wait in worst.items():
        if place is None:
            yield series.CORE_WAIT, (uuid,), wait
        else:
            yield series.MIG_CORE_WAIT, (place, uuid), wait


def _text(value: int | None) -> str:
    return "" if value is None else str(value)


def _word(value: bool | None) -> str:
    return "" if value is None else str(value).lower()
