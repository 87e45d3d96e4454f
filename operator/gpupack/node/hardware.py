"""The GPUs of the virtual nodes as programs find them: their memory, and their place in the simulated world.

How a GPU is shared follows the claim that was allocated, as with NVIDIA's DRA driver: MPS if its configuration says so,
else the engines take turns. Knows no pod's meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from gpupack.kube.labels import DRIVER
from gpupack.node.device_memory import DeviceMemory
from gpupack.node.device_plugin import DevicePlugin
from gpupack.node.engine_start import Refused
from gpupack.node.exporter import CardNow
from gpupack.node.program import Device
from gpupack.node.virtual_node import Card
from gpupack.twin.memory_system import GpuSpec, Mps, Sharing, TimeSlicing
from gpupack.twin.world import Reading, VirtualGpu, World, activity


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One GPU: what it is, who holds its memory, what it does in the world, and the errors that its driver told."""

    card: Card
    memory: DeviceMemory
    gpu: VirtualGpu
    xids: list[int] = field(default_factory=list)


class Hardware:
    """`mps` and `slicing` are the twin's constants of sharing."""

    def __init__(self, world: World, cards: Sequence[Card], *, mps: Mps | None = None) -> None:
        self._world = world
        self.slots = {(card.node, card.device): _slot(world, card) for card in cards}
        self._mps = mps or Mps()
        self._strategies: dict[str, str] = {}

    def slot_of(self, devices: Sequence[Device]) -> Slot:
        """The GPU that a pod was given. Raises Refused, as CUDA would, if it was given none."""
        given = [each for each in devices if each.driver == DRIVER and (each.pool, each.name) in self.slots]
        if not given:
            raise Refused("RuntimeError: No CUDA GPUs are available")
        device = given[0]
        slot = self.slots[device.pool, device.name]
        if not slot.gpu.tenants:
            sharing: Sharing = self._mps if device.strategy == "MPS" else TimeSlicing()
            slot.gpu.sharing = sharing
            self._strategies[slot.card.uuid] = device.strategy
        return slot

    @property
    def interference(self) -> float:
        return self._mps.interference

    def interfere(self, interference: float) -> None:
        """Engines that share a GPU by MPS are slowed so much by each other from now on, here and wherever they come."""
        self._mps = Mps(interference=interference)
        self._world.interfere(self._mps)

    def strategy(self, uuid: str) -> str:
        """`MPS`, `TimeSlicing` or nothing, of the claim under which the present engines came."""
        return self._strategies.get(uuid, "")


class CardReader:
    """Each GPU of a node over the time since the last call; one reader for each that asks.

    `plugin` knows to whom it gave which.
    """

    def __init__(self, hardware: Hardware, node: str, plugin: DevicePlugin | None = None) -> None:
        self._plugin = plugin
        self._slots = tuple(slot for slot in hardware.slots.values() if slot.card.node == node)
        self._before: dict[str, Reading] = {slot.card.uuid: slot.gpu.reading() for slot in self._slots}

    def read(self) -> list[CardNow]:
        """Ratios of a period that was empty are those of an idle GPU. Those of a GPU that is cut are its slices'."""
        now = [self._read(slot) for slot in self._slots]
        return [_with_slices(each, [slice for slice in now if slice.card.parent == each.card.uuid]) for each in now]

    def _read(self, slot: Slot) -> CardNow:
        before, after = self._before[slot.card.uuid], slot.gpu.reading()
        self._before[slot.card.uuid] = after
        holder = None if self._plugin is None else self._plugin.holder(slot.card)
        if after.at <= before.at:
            return CardNow(
                card=slot.card, dram_active=0.0, sm_active=0.0, gpu_held=0.0, fb_used=slot.memory.used,
                power=slot.gpu.spec.idle_watts, xid=_last(slot.xids),
                holder=holder,
            )  # fmt: skip
        did = activity(before, after)
        return CardNow(
            card=slot.card, dram_active=min(1.0, did.dram_active), sm_active=min(1.0, did.sm_active),
            gpu_held=min(1.0, did.gpu_held), fb_used=slot.memory.used, power=did.power_watts, xid=_last(slot.xids),
            holder=holder,
        )  # fmt: skip


def _last(xids: Sequence[int]) -> int:
    return xids[-1] if xids else 0


def _with_slices(whole: CardNow, slices: Sequence[CardNow]) -> CardNow:
    if not slices:
        return whole
    bandwidth = float(whole.card.kind.dram_bytes_per_second)
    moved = sum(each.dram_active * each.card.kind.dram_bytes_per_second for each in slices)
    busy = sum(each.sm_active * each.card.kind.sm_count for each in slices)
    return replace(
        whole,
        dram_active=min(1.0, whole.dram_active + moved / bandwidth),
        sm_active=min(1.0, whole.sm_active + busy / whole.card.kind.sm_count),
        gpu_held=max(whole.gpu_held, *(each.gpu_held for each in slices)),
        fb_used=whole.fb_used + sum(each.fb_used for each in slices),
        power=max(whole.power, sum(each.power for each in slices)),
    )


def _slot(world: World, card: Card) -> Slot:
    kind = card.kind
    spec = GpuSpec(
        memory_bytes=kind.memory_bytes,
        dram_bytes_per_second=kind.dram_bytes_per_second,
        dense_flops_per_second=kind.dense_flops_per_second,
        **({} if kind.idle_power is None else {"idle_watts": kind.idle_power}),
        board_watts=kind.board_power,
    )
    return Slot(card=card, memory=DeviceMemory(kind.memory_bytes), gpu=world.add_gpu(card.uuid, spec))
