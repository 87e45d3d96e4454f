"""The counters that tell of DRAM activity, and the scale that each was measured to have on a kind of GPU.

A counter shows something of its own for a given traffic: cycles, bytes or time. Its scale is what it shows over the
share of the peak that the engines move, measured while both are known, and only what was divided by it is ever compared
with anything. Knows no source.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gpupack.units import Seconds


class Counter(StrEnum):
    """Best first. All are 0 to 1 and of the whole device."""

    DCGM_DRAM_ACTIVE = "DcgmDramActive"
    """Share of cycles in which the memory interface moved data (DCGM field 1005)."""
    GPM_DRAM_BANDWIDTH = "GpmDramBandwidth"
    """Traffic over the theoretical peak (NVML GPM metric 10)."""
    NVML_MEMORY_BUSY = "NvmlMemoryBusy"
    """Share of time in which memory was read or written at all (nvmlDeviceGetUtilizationRates)."""

    @property
    def is_share_of_peak(self) -> bool:
        """Whether it means a share of the peak by itself, and may be used as one until its scale is measured."""
        return self is not Counter.NVML_MEMORY_BUSY


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """`ratio` is what the counter shows over the share of the peak that is moved, on that kind of GPU."""

    gpu_kind: str
    counter: Counter
    ratio: float
    measured_at: Seconds
