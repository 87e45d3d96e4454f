"""What is read from the exporters' texts: each series of the table against a sample as its exporter prints it."""

from __future__ import annotations

import math
from array import array

import pytest

from gpupack.facts.counter import Counter
from gpupack.metrics.prometheus import GpuPage, Histogram, parse_engine, parse_gpus
from gpupack.metrics.series import TABLE, Exporter, Name, Quantity, Series
from gpupack.units import GIB

UUID = "GPU-34319582-d595-d1c7-d1d2-179bcfa61660"


def test_every_series_of_vllm_is_found_on_its_page(vllm_page: bytes) -> None:
    page = parse_engine(vllm_page)
    assert (page.running, page.waiting, page.kv_usage, page.kv_blocks) == (12.0, 4.0, 0.37, 16384.0)
    assert page.finished == 4 + 96 + 1, "aborts left the engine too"
    assert (page.prompt_tokens, page.generation_tokens, page.preemptions) == (51200.0, 48213.0, 2.0)
    assert page.ttft is not None
    assert page.ttft.total / page.ttft.count == pytest.approx(0.03)
    assert page.itl is not None
    assert page.itl.total / page.itl.count == pytest.approx(216.5 / 48112)
    assert page.input_length is not None
    assert page.input_length.total / page.input_length.count == pytest.approx(512)
    assert page.output_length is not None
    assert page.output_length.total / page.output_length.count == pytest.approx(256)


def test_a_gpu_reads_the_same_before_and_after_the_exporter_renamed_everything(
    dcgm_before: bytes, dcgm_after: bytes
) -> None:
    wanted = (GpuPage(uuid=UUID, dram_active=0.641, fb_used=20 * GIB, power=412.5),)
    assert parse_gpus(dcgm_before) == wanted
    assert parse_gpus(dcgm_after) == wanted


def test_a_row_of_a_mig_instance_is_the_slices_that_it_names() -> None:
    of_slice = b'DCGM_FI_PROF_DRAM_ACTIVE{UUID="GPU-1",GPU_I_ID="3",dra_mig_device_uuid="MIG-1"} 0.8\n'
    found = parse_gpus(b'DCGM_FI_PROF_DRAM_ACTIVE{UUID="GPU-1"} 0.3\n' + of_slice)
    assert [(each.uuid, each.dram_active) for each in found] == [("GPU-1", 0.3), ("MIG-1", 0.8)]
    agents = b"""gpupack_agent_mig_dram_bandwidth_ratio{uuid="MIG-1",parent_uuid="GPU-1"} 0.7
gpupack_agent_mig_memory_used_bytes{uuid="MIG-1",parent_uuid="GPU-1"} 5e9
"""
    (slice_,) = parse_gpus(agents, Exporter.AGENT)
    assert (slice_.uuid, slice_.dram_active, slice_.fb_used) == ("MIG-1", 0.7, 5e9)
    assert {each.card for each in (found[1], slice_)} == {"GPU-1"}


@pytest.mark.parametrize(
    "pod", ['namespace="ns",pod="p"', 'namespace="monitoring",pod="dcgm",exported_namespace="ns",exported_pod="p"']
)
def test_a_row_of_a_mig_instance_is_the_slice_of_the_pod_that_a_device_plugin_gave_it(pod: str) -> None:
    row = f'DCGM_FI_PROF_DRAM_ACTIVE{{UUID="GPU-1",GPU_I_ID="3",container="engine",{pod}}} 0.8\n'
    (found,) = parse_gpus(row.encode())
    assert (found.uuid, found.dram_active, found.card) == ("ns/p", 0.8, "GPU-1")


def test_a_gpu_shared_by_pods_counts_once_and_nameless_instances_not_at_all(dcgm_before: bytes) -> None:
    assert dcgm_before.count(b"DCGM_FI_PROF_DRAM_ACTIVE{") == 3
    (gpu,) = parse_gpus(dcgm_before)
    assert gpu.dram_active == 0.641


@pytest.mark.parametrize("blank", ["9223372036854775792", "140737488355328.0", "9223372036854775794"])
def test_a_blank_of_dcgm_is_no_value(blank: str) -> None:
    (gpu,) = parse_gpus(
        f'DCGM_FI_PROF_DRAM_ACTIVE{{UUID="{UUID}"}} {blank}\nDCGM_FI_DEV_POWER_USAGE{{UUID="{UUID}"}} 70\n'.encode()
    )
    assert gpu == GpuPage(uuid=UUID, dram_active=None, fb_used=None, power=70.0)


@pytest.mark.parametrize(
    ("series", "name"),
    [
        pytest.param(series, name, id=name.text)
        for series in TABLE
        for name in series.names
        if series.exporter is Exporter.DCGM
    ],
)
def test_each_spelling_alone_is_read_with_its_own_unit(series: Series, name: Name) -> None:
    (gpu,) = parse_gpus(f'{name.text}{{gpu="0",UUID="{UUID}"}} 0.5\n'.encode())
    found = {
        Quantity.DRAM_ACTIVE: gpu.dram_active,
        Quantity.FB_USED: gpu.fb_used,
        Quantity.POWER: gpu.power,
        Quantity.XID: gpu.xid,
    }
    assert found.pop(series.quantity) == 0.5 * name.factor
    assert set(found.values()) == {None}


def test_old_names_of_vllm_are_read_only_where_the_new_ones_are_missing() -> None:
    old = b'vllm:gpu_cache_usage_perc{engine="0"} 0.5\n'
    assert parse_engine(old).kv_usage == 0.5
    assert parse_engine(old + b'vllm:kv_cache_usage_perc{engine="0"} 0.25\n').kv_usage == 0.25
    assert parse_engine(b'vllm:kv_cache_usage_perc{engine="0"} 0.25\n' + old).kv_usage == 0.25


def test_a_page_without_a_series_has_no_value_for_it_rather_than_zero() -> None:
    page = parse_engine(b"# nothing here\n")
    assert {page.running, page.waiting, page.finished, page.ttft, page.kv_blocks} == {None}
    assert parse_engine(b'vllm:cache_config_info{num_gpu_blocks="None"} 1.0').kv_blocks is None


def test_what_is_not_a_number_stays_visible_as_such() -> None:
    page = parse_engine(b"vllm:num_requests_running NaN\nvllm:num_requests_waiting what\n")
    assert page.running is not None
    assert math.isnan(page.running)
    assert page.waiting is None


def test_several_engines_in_one_server_make_one() -> None:
    page = parse_engine(
        b'vllm:num_requests_running{engine="0"} 3\nvllm:num_requests_running{engine="1"} 4\n'
        b'vllm:kv_cache_usage_perc{engine="0"} 0.5\nvllm:kv_cache_usage_perc{engine="1"} 0.75\n'
    )
    assert (page.running, page.kv_usage) == (7.0, 0.75)


def _histogram(bounds: list[float], counts: list[float], total: float = 0.0) -> Histogram:
    return Histogram(bounds=(*bounds, math.inf), counts=array("d", counts), total=total, count=counts[-1])


def test_a_quantile_lies_straight_within_its_bucket() -> None:
    histogram = _histogram([0.01, 0.02, 0.04], [0.0, 50.0, 100.0, 100.0])
    assert histogram.quantile(0.5) == pytest.approx(0.02)
    assert histogram.quantile(0.95) == pytest.approx(0.038)


def test_a_quantile_in_the_first_bucket_is_not_known_and_beyond_the_last_is_its_bound() -> None:
    assert _histogram([0.01, 0.02], [100.0, 100.0, 100.0]).quantile(0.95) is None
    assert _histogram([0.01, 0.02], [0.0, 10.0, 100.0]).quantile(0.95) == 0.02
    assert _histogram([0.01, 0.02], [0.0, 0.0, 0.0]).quantile(0.95) is None


def test_a_window_is_the_difference_of_two_histograms() -> None:
    early, late = _histogram([1.0], [2.0, 3.0], total=5.0), _histogram([1.0], [2.0, 13.0], total=35.0)
    change = late.since(early)
    assert (list(change.counts), change.total, change.count) == ([0.0, 10.0], 30.0, 10.0)
    assert (late.mean_since(early), early.mean_since(early)) == (3.0, None)


def test_a_window_over_changed_buckets_keeps_its_mean_only() -> None:
    early, late = _histogram([1.0], [2.0, 3.0], total=5.0), _histogram([2.0], [2.0, 13.0], total=35.0)
    assert (late.mean_since(early), late.since(early).quantile(0.5)) == (3.0, None)


def agents_page(*lines: str) -> bytes:
    return "".join(f"{line}\n" for line in ('gpupack_agent_memory_used_bytes{uuid="GPU-1"} 5e9', *lines)).encode()


def xid(event: str, at: float) -> str:
    return f'gpupack_agent_event_timestamp_seconds{{uuid="GPU-1",event="{event}",gpu_instance=""}} {at}'


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ((), None),
        (('gpupack_agent_gpu_lost{uuid="GPU-1"} 0',), 0.0),
        (('gpupack_agent_gpu_lost{uuid="GPU-1"} 1', xid("xid_48", 9.0)), 79.0),
        (('gpupack_agent_gpu_lost{uuid="GPU-1"} 0', xid("xid_48", 9.0), xid("xid_31", 5.0)), 48.0),
        ((xid("xid_48", 5.0), xid("ecc_single_bit", 9.0)), 48.0),
        ((xid("type_7", 5.0), xid("xid_", 9.0)), None),
    ],
)
def test_the_agents_last_xid_is_the_gpus_and_a_lost_gpu_counts_before_it(
    lines: tuple[str, ...], code: float | None
) -> None:
    (gpu,) = parse_gpus(agents_page(*lines), Exporter.AGENT)
    assert gpu.xid == code


def test_the_agents_counters_are_told_apart_and_the_better_is_taken() -> None:
    busy, moved = (
        'gpupack_agent_memory_busy_time_ratio{uuid="GPU-1"} 0.9',
        'gpupack_agent_dram_bandwidth_ratio{uuid="GPU-1"} 0.4',
    )
    (both,) = parse_gpus(agents_page(busy, moved), Exporter.AGENT)
    assert (both.counter, both.dram_active, both.fb_used) == (Counter.GPM_DRAM_BANDWIDTH, 0.4, 5e9)
    (one,) = parse_gpus(agents_page(busy), Exporter.AGENT)
    assert (one.counter, one.dram_active) == (Counter.NVML_MEMORY_BUSY, 0.9)
    (none,) = parse_gpus(agents_page(), Exporter.AGENT)
    assert (none.counter, none.dram_active) == (Counter.GPM_DRAM_BANDWIDTH, None)
