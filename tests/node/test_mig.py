"""GPUs of a virtual node that are cut: what is published of them, and what their exporter shows."""

from __future__ import annotations

import pytest

from gpupack import catalog
from gpupack.errors import Invalid
from gpupack.kube.labels import PLUGIN_GPU
from gpupack.node.device_plugin import DevicePlugin
from gpupack.node.exporter import CardNow, ExporterFault, Generation, page
from gpupack.node.hardware import CardReader, Hardware
from gpupack.node.pods import Pod, pod_of
from gpupack.node.virtual_node import MigStrategy, cards, cut, feature_labels, offered, resource_slices
from gpupack.twin.world import World

H100 = catalog.gpu("H100-80GB")


def layout(*profiles: str) -> list[catalog.MigProfile]:
    return [catalog.mig_profile(H100, each) for each in profiles]


def test_a_gpu_and_its_slices_count_what_they_share_in_a_resource_slice_apart() -> None:
    pieces = resource_slices("virtual", cut("virtual", H100, 1, layout("3g.40gb", "2g.20gb", "1g.10gb")))
    devices, counters = (piece["spec"] for piece in pieces)
    assert set(devices) & set(counters) == {"driver", "nodeName", "pool"}
    whole, *slices = devices["devices"]
    (shared,) = counters["sharedCounters"]
    assert whole["consumesCounters"] == [{"counterSet": shared["name"], "counters": shared["counters"]}]
    taken: list[str] = []
    for piece in slices:
        ((used),) = piece["consumesCounters"]
        taken += [name for name in used["counters"] if name.startswith("memory-slice")]
        assert piece["attributes"]["parentUUID"] == whole["attributes"]["uuid"]
    assert len(taken) == len(set(taken)) == 7


def test_gpus_that_are_not_cut_are_published_as_ever() -> None:
    assert cut("virtual", H100, 2, ()) == cards("virtual", H100, 2)
    (piece,) = resource_slices("virtual", cards("virtual", H100, 2))
    assert not any("consumesCounters" in each for each in piece["spec"]["devices"])


def test_a_gpu_has_no_room_for_more_than_its_memory() -> None:
    with pytest.raises(Invalid, match=r"no room for 3g\.40gb, 3g\.40gb, 1g\.10gb"):
        cut("virtual", H100, 1, layout("3g.40gb", "3g.40gb", "1g.10gb"))


def test_of_a_slice_the_exporter_tells_profiling_fields_with_its_profile_and_number() -> None:
    whole, piece = cut("virtual", H100, 1, layout("1g.10gb"))
    now = [
        CardNow(card=each, dram_active=0.5, sm_active=0.5, gpu_held=1.0, fb_used=1, power=100.0)
        for each in (whole, piece)
    ]
    text = page(now, "virtual", Generation.OLD, frozenset(), ExporterFault.NONE)
    of_slice = [line for line in text.splitlines() if "GPU_I_ID" in line]
    assert {line.partition("{")[0] for line in of_slice} == {"DCGM_FI_PROF_DRAM_ACTIVE", "DCGM_FI_PROF_SM_ACTIVE"}
    assert all(f'UUID="{whole.uuid}"' in line and 'GPU_I_PROFILE="1g.10gb"' in line for line in of_slice)
    assert len([line for line in text.splitlines() if line.startswith("DCGM_FI_DEV_FB_USED{")]) == 1


def test_a_gpu_that_is_cut_holds_what_its_slices_hold() -> None:
    hardware = Hardware(World(), cut("virtual", H100, 1, layout("3g.40gb", "2g.20gb")))
    reader = CardReader(hardware, "virtual")
    for slot in list(hardware.slots.values())[1:]:
        slot.memory.take("pod", 2**30)
    whole, *_ = reader.read()
    assert whole.fb_used == 2 * 2**30


BIG, SMALL = "nvidia.com/mig-3g.40gb", "nvidia.com/mig-2g.20gb"
CUT = cut("virtual", H100, 2, layout("3g.40gb", "2g.20gb"))


def pod(uid: str, resource: str) -> Pod:
    container = {"name": "supervisor", "resources": {"limits": {resource: "1", "cpu": "2"}}}
    return pod_of({"metadata": {"namespace": "ns", "name": uid, "uid": uid}, "spec": {"containers": [container]}})


def test_a_plugin_counts_slices_by_profile_or_as_gpus_and_no_gpu_that_is_cut() -> None:
    counted = {resource: len(there) for resource, there in offered(CUT, MigStrategy.MIXED).items()}
    assert counted == {BIG: 2, SMALL: 2}
    alike = cut("virtual", H100, 2, layout("3g.40gb", "3g.40gb"))
    (slices,) = offered(alike, MigStrategy.SINGLE).values()
    assert offered(alike, MigStrategy.SINGLE) == {PLUGIN_GPU: slices}
    assert [each.parent for each in slices] == [alike[0].uuid] * 2 + [alike[3].uuid] * 2


def test_labels_are_those_of_gpu_feature_discovery() -> None:
    mixed = feature_labels(CUT, MigStrategy.MIXED)
    assert mixed["nvidia.com/gpu.product"] == "NVIDIA-H100-80GB-HBM3"
    assert (mixed["nvidia.com/gpu.count"], mixed[f"{SMALL}.count"]) == ("2", "2")
    assert mixed[f"{SMALL}.product"] == "NVIDIA-H100-80GB-HBM3-MIG-2g.20gb"
    assert mixed["nvidia.com/mig.strategy"] == "mixed"
    single = feature_labels(cut("virtual", H100, 2, layout("3g.40gb", "3g.40gb")), MigStrategy.SINGLE)
    assert single["nvidia.com/gpu.product"] == "NVIDIA-H100-80GB-HBM3-MIG-3g.40gb"
    assert single["nvidia.com/gpu.count"] == "4"
    assert int(single["nvidia.com/gpu.memory"]) < int(mixed["nvidia.com/gpu.memory"]) / 2 + 1


def test_a_pod_gets_a_free_slice_of_the_profile_that_it_asks_for_and_nobody_else_gets_it() -> None:
    plugin = DevicePlugin(CUT, MigStrategy.MIXED)
    first, second = plugin.take(pod("a", SMALL)), plugin.take(pod("b", SMALL))
    assert [each.name for each in (*first, *second)] == ["gpu-0-mig-1-4-2", "gpu-1-mig-1-4-2"]
    assert plugin.take(pod("a", SMALL)) == first
    assert plugin.take(pod("c", SMALL)) == ()
    plugin.give_back("a")
    assert plugin.take(pod("d", SMALL)) == first


def test_the_exporter_names_the_pod_that_a_plugin_gave_a_slice_to() -> None:
    plugin = DevicePlugin(CUT, MigStrategy.MIXED)
    plugin.take(pod("a", BIG))
    text = page(
        CardReader(Hardware(World(), CUT), "virtual", plugin).read(), "virtual", Generation.NEW, frozenset(),
        ExporterFault.NONE,
    )  # fmt: skip
    [line, *others] = [line for line in text.splitlines() if "SM_UTIL" in line and 'pod="a"' in line]
    assert not others
    assert f'UUID="{CUT[0].uuid}"' in line
    assert 'GPU_I_ID="1"' in line
    assert 'container="supervisor",namespace="ns"' in line
