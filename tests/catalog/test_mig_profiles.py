"""The slice tables: what a GPU can be cut into, each slice a kind of GPU with its share of the whole."""

from __future__ import annotations

import pytest

from gpupack import catalog
from gpupack.errors import Invalid
from gpupack.facts.gpu import GpuKind
from gpupack.units import GIB, Bytes


def _cut() -> list[GpuKind]:
    return [kind for kind in catalog.gpus() if catalog.mig_profiles(kind)]


def test_every_gpu_that_can_be_cut_has_a_table_and_no_other() -> None:
    assert {kind.name for kind in _cut()} == {kind.name for kind in catalog.gpus() if kind.mig}


@pytest.mark.parametrize("whole", _cut(), ids=lambda kind: kind.name)
def test_all_slices_of_a_profile_together_are_never_more_than_the_gpu(whole: GpuKind) -> None:
    for each in catalog.mig_profiles(whole):
        assert each.most * each.kind.memory_bytes <= whole.memory_bytes
        assert each.most * each.kind.sm_count <= whole.sm_count
        assert each.most * each.kind.dram_bytes_per_second <= whole.dram_bytes_per_second
        assert each.kind.dense_flops_per_second / whole.dense_flops_per_second == pytest.approx(
            each.kind.sm_count / whole.sm_count
        )
        assert each.kind.source >= whole.source


def test_seven_of_the_smallest_slices_leave_an_eighth_of_the_bandwidth_to_nobody() -> None:
    whole = catalog.gpu("H200")
    smallest = catalog.mig_profile(whole, "1g.18gb")
    assert smallest.most * smallest.kind.dram_bytes_per_second == whole.dram_bytes_per_second * 7 / 8
    assert smallest.kind.memory_bytes == 16 * GIB


def test_a_slice_is_found_by_its_kind_name_and_by_its_profile() -> None:
    kind = catalog.gpu("h100-80gb-mig-1g.10gb")
    assert kind is catalog.mig_profile(catalog.gpu("H100-80GB"), "1g.10gb+me").kind
    assert kind.mig_profile == "1g.10gb"
    assert not catalog.gpu("H100-80GB").is_slice


def test_an_unknown_profile_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(Invalid, match=r"1g\.5gb, 1g\.10gb"):
        catalog.mig_profile(catalog.gpu("A100-40GB"), "1g.6gb")
    with pytest.raises(Invalid, match="L4 has no MIG slices"):
        catalog.mig_profile(catalog.gpu("L4"), "1g.6gb")


def test_memory_tells_slices_of_one_name_apart() -> None:
    """`1g.10gb` is a slice of two A100s; the memory of the node's label is the slice's."""
    seen = catalog.gpu_by_product("NVIDIA-A100-SXM4-80GB-MIG-1g.10gb", Bytes(9728 * 2**20))
    assert seen is not None
    assert seen.name == "A100-80GB-MIG-1g.10gb"
    assert catalog.gpu_by_product("NVIDIA-A100-SXM4-80GB-MIG-1g.10gb", Bytes(80 * GIB)) is None
