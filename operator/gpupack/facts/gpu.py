"""What a GPU is: its kind from the catalog, and one device of that kind on a node."""

from __future__ import annotations

from dataclasses import dataclass

from gpupack.facts.estimate import Source
from gpupack.facts.llm import Dtype
from gpupack.units import Bytes, BytesPerSecond, FlopsPerSecond, Watts


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuKind:
    """One row of the catalog: datasheet figures of a GPU product.

    `memory_bytes` is what CUDA reports as total, a little below the product's name. `dram_bytes_per_second` is the
    theoretical peak, the scale of DCGM's DRAM_ACTIVE. `dense_flops_per_second` is dense fp16 without sparsity.
    `product_names` are the prefixes that drivers and ResourceSlices print. `mig_profile` is empty for a whole GPU; a
    MIG slice is a kind of its own, with the slice's figures.
    """

    name: str
    memory_bytes: Bytes
    dram_bytes_per_second: BytesPerSecond
    dense_flops_per_second: FlopsPerSecond
    sm_count: int
    board_power: Watts
    idle_power: Watts | None
    bfloat16: bool
    mig: bool
    gpm: bool
    product_names: tuple[str, ...]
    source: Source
    provenance: str
    mig_profile: str = ""

    @property
    def is_slice(self) -> bool:
        return bool(self.mig_profile)

    def computes_in(self, dtype: Dtype) -> bool:
        """Whether vLLM starts with this type here: bfloat16 needs compute capability 8.0."""
        return self.bfloat16 or dtype is not Dtype.BFLOAT16


@dataclass(frozen=True, slots=True, kw_only=True)
class MigProfile:
    """One row of a GPU's slice table: the slice as a kind of GPU, and how many of it one GPU holds at most."""

    name: str
    kind: GpuKind
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One device, or one MIG slice of it. `device_name` is its name in the DRA pool of its driver (`gpu-0`).

    `parent_uuid`: of the GPU that a slice is cut from; empty for a whole GPU.

    `one_household`: its engines live together, so they are of one namespace, image and pod template. Where nobody
    publishes devices, `uuid` names a place on the node instead; which device has it shows when something runs there.
    `resource` is what a pod asks the device plugin for then.
    """

    uuid: str
    node: str
    device_name: str
    kind: GpuKind
    one_household: bool = False
    parent_uuid: str = ""
    resource: str = ""

    @property
    def card(self) -> str:
        """The uuid of the whole GPU that it is, or is cut from."""
        return self.parent_uuid or self.uuid
