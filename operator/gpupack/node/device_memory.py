"""Memory of one virtual GPU, by who holds it: what `cudaMemGetInfo` and NVML would say.

Integers of bytes. It does not know what the memory is for.
"""

from __future__ import annotations

from gpupack.units import Bytes, gibibytes


class OutOfMemory(Exception):
    """The allocation does not fit; the message is torch's."""


class DeviceMemory:
    def __init__(self, total: Bytes) -> None:
        self.total = total
        self._held: dict[str, int] = {}

    @property
    def used(self) -> Bytes:
        return Bytes(sum(self._held.values()))

    @property
    def free(self) -> Bytes:
        return Bytes(self.total - self.used)

    def held_by(self, holder: str) -> Bytes:
        return Bytes(self._held.get(holder, 0))

    def take(self, holder: str, size: Bytes) -> None:
        """Raises OutOfMemory, and takes nothing, if less than `size` is free."""
        if size > self.free:
            raise OutOfMemory(
                f"CUDA out of memory. Tried to allocate {gibibytes(size):.2f} GiB. GPU 0 has a total capacity of "
                f"{gibibytes(self.total):.2f} GiB of which {gibibytes(self.free):.2f} GiB is free."
            )
        self._held[holder] = self._held.get(holder, 0) + size

    def release(self, holder: str) -> None:
        """All that it holds; nothing if it holds nothing."""
        self._held.pop(holder, None)
