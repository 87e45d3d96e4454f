"""What the agent reads through the real ctypes binding, from a library that is compiled for the test."""

from __future__ import annotations

import time

import pytest

from gpupack.agent import nvml as reading
from gpupack.agent.sample import ComputeMode, Event, GpuSample
from gpupack.units import GIB, MIB

from .conftest import World


def opened(nvml: World, text: str, index: int = 0) -> reading.Gpu:
    nvml.is_(text)
    reading.start()
    return reading.Gpu(index, time.monotonic)


def refusals(sample: GpuSample) -> dict[str, str]:
    return {each.quantity: each.error for each in sample.unreadable}


def test_an_h100_tells_everything_in_base_units(nvml: World) -> None:
    gpu = opened(nvml, "dram 63.5\nprocess 0 41 8589934592\nheld 36")
    gpu.read()
    sample = gpu.read()
    assert (gpu.card.product, gpu.card.gpm) == ("NVIDIA H100 80GB HBM3", True)
    assert gpu.card.bus_id == "00000000:01:00.0"
    assert sample.memory is not None
    assert (sample.memory.total, sample.memory.used, sample.memory.reserved) == (80 * GIB, 8 * GIB, GIB // 2)
    assert (sample.gpu_busy, sample.memory_busy) == (0.97, 0.42)
    assert sample.activity.dram_bandwidth == pytest.approx(0.635)
    assert (sample.activity.sm_active, sample.activity.sm_occupancy) == (0.8, 0.25)
    assert sample.activity.pcie_sent == 3 * MIB
    assert sample.activity.pcie_received is None
    assert refusals(sample) == {"pcie_received": "not_supported"}
    assert (sample.power, sample.power_limit, sample.energy) == (350.25, 700.0, 1234.5)
    assert (sample.sm_clock, sample.memory_clock_max) == (1755e6, 2619e6)
    assert sample.compute_mode is ComputeMode.DEFAULT
    assert sample.clocks_held is not None
    assert {name for name, holds in sample.clocks_held.items() if holds} == {"software_power_cap", "software_thermal"}
    assert sample.ecc == {"corrected": 17, "uncorrected": 1}


def test_activity_takes_two_samples_and_none_spans_one_that_failed(nvml: World) -> None:
    gpu = opened(nvml, "")
    assert gpu.read().activity.dram_bandwidth is None
    assert gpu.read().activity.dram_bandwidth == 0.5
    nvml.is_("fail GpmSampleGet 999")
    assert refusals(gpu.read())["activity"] == "unknown"
    nvml.is_("dram 70")
    assert gpu.read().activity.dram_bandwidth is None
    assert gpu.read().activity.dram_bandwidth == 0.7


def test_a_bandwidth_that_is_no_number_is_absent(nvml: World) -> None:
    gpu = opened(nvml, "dram nan")
    gpu.read()
    sample = gpu.read()
    assert sample.activity.dram_bandwidth is None
    assert refusals(sample)["dram_bandwidth"] == "not_finite"


def test_mig_instances_are_told_with_their_own_share(nvml: World) -> None:
    gpu = opened(nvml, "mig 3\ndram 30")
    gpu.read()
    sample = gpu.read()
    assert sample.mig_mode
    assert [each.gpu_instance for each in sample.mig_devices] == [7, 8, 9]
    first = sample.mig_devices[0]
    assert (first.profile, first.multiprocessors, first.compute_instance) == ("1g.10gb", 16, 0)
    assert first.uuid.startswith("MIG-")
    assert first.memory is not None
    assert first.memory.used == 3 * GIB
    assert first.activity.dram_bandwidth == pytest.approx(0.6)
    assert sample.activity.dram_bandwidth == pytest.approx(0.3)
    assert sample.gpu_busy is None
    assert refusals(sample)["busy_time"] == "not_supported"


def test_an_a100_cut_by_mig_has_no_activity_and_says_nothing_false(nvml: World) -> None:
    gpu = opened(nvml, "product a100\nmig 2")
    gpu.read()
    sample = gpu.read()
    assert gpu.card.gpm is False
    assert len(sample.mig_devices) == 2
    assert sample.mig_devices[0].activity.dram_bandwidth is None
    assert sample.activity.sm_active is None


def test_what_is_not_supported_is_none_and_named_while_the_rest_is_told(nvml: World) -> None:
    refused = ("DeviceGetPowerUsage", "DeviceGetTotalEnergyConsumption", "DeviceGetTotalEccErrorsCorrected")
    gpu = opened(nvml, "product l4\n" + "\n".join(f"fail {each} 3" for each in refused))
    sample = gpu.read()
    assert (sample.power, sample.energy, sample.mig_mode) == (None, None, None)
    assert sample.ecc == {"uncorrected": 1}
    assert sample.memory is not None
    assert not sample.lost
    expected = {"power", "energy", "ecc_corrected", "mig_mode"}
    assert refusals(sample) == dict.fromkeys(expected, "not_supported")


def test_a_gpu_that_is_lost_ends_its_sample_and_leaves_its_neighbour(nvml: World) -> None:
    first, second = (opened(nvml, "gpus 2", index) for index in (0, 1))
    nvml.is_("gpus 2\nfail DeviceGetMemoryInfo 15 1")
    assert not first.read().lost
    lost = second.read()
    assert lost.lost
    assert (lost.memory, lost.power, lost.processes) == (None, None, None)
    assert refusals(lost) == {"memory": "gpu_is_lost"}


def test_a_gpu_that_cannot_be_opened_is_named_and_the_others_are_there(nvml: World) -> None:
    nvml.is_("gpus 3\nfail DeviceGetHandleByIndex 15 1")
    reading.start()
    gpus, closed = reading.gpus(time.monotonic)
    assert [each.card.index for each in gpus] == [0, 2]
    assert closed == [(1, "gpu_is_lost")]


@pytest.mark.parametrize(
    ("code", "error"), [(18, "lib_rm_version_mismatch"), (9, "driver_not_loaded"), (4242, "code_4242")]
)
def test_nvml_that_does_not_begin_says_why(nvml: World, code: int, error: str) -> None:
    nvml.is_(f"fail Init {code}")
    with pytest.raises(reading.Refused) as refused:
        reading.start()
    assert refused.value.error == error


def test_processes_are_those_of_both_lists_once(nvml: World) -> None:
    gpu = opened(nvml, "process 0 7 30000000 mps\nprocess 0 5 unknown\nprocess 1 6 1")
    processes = gpu.read().processes
    assert processes is not None
    assert [(each.pid, each.memory, each.mps_client, each.gpu_instance) for each in processes] == [
        (5, None, False, None),
        (7, 30_000_000, True, None),
    ]


def test_without_the_list_of_clients_nobody_is_said_to_be_one_or_not(nvml: World) -> None:
    gpu = opened(nvml, "process 0 7 1 mps\nfail DeviceGetMPSComputeRunningProcesses 3")
    processes = gpu.read().processes
    assert processes is not None
    assert [each.mps_client for each in processes] == [None]


def test_xid_and_ecc_events_come_with_their_gpu(nvml: World) -> None:
    gpu = opened(nvml, "gpus 2", index=1)
    events = reading.Events()
    assert events.wait(0) is None
    nvml.is_("gpus 2\nevent 1 1 8 79\nevent 2 1 2 0\nevent 3 1 1 0")
    told = [events.wait(0) for _ in range(4)]
    assert told == [
        Event(uuid=gpu.card.uuid, name="xid_79", gpu_instance=None),
        Event(uuid=gpu.card.uuid, name="ecc_double_bit", gpu_instance=None),
        Event(uuid=gpu.card.uuid, name="ecc_single_bit", gpu_instance=None),
        None,
    ]


def test_a_gpu_without_events_does_not_keep_the_others_from_theirs(nvml: World) -> None:
    gpu = opened(nvml, "gpus 2\nfail DeviceRegisterEvents 3 0\nevent 11 1 8 48")
    events = reading.Events()
    assert events.refused == {gpu.card.uuid: "not_supported"}
    event = events.wait(0)
    assert event is not None
    assert event.name == "xid_48"
