"""The device plugin of a virtual node: whole GPUs as an extended resource, the lowest free one first.

The scheduler counts; which device a pod gets is decided here. Knows no claim.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpupack.kube.labels import DRIVER
from gpupack.node.program import Device
from gpupack.node.virtual_node import Card


class DevicePlugin:
    def __init__(self, cards: Sequence[Card]) -> None:
        self._cards = tuple(cards)
        self._held: dict[str, tuple[Card, ...]] = {}

    def take(self, uid: str, count: int) -> tuple[Device, ...]:
        """The same pod gets the same again. Fewer than asked for if the scheduler counted otherwise."""
        if uid not in self._held:
            taken = {card.device for cards in self._held.values() for card in cards}
            self._held[uid] = tuple(card for card in self._cards if card.device not in taken)[:count]
        return tuple(Device(driver=DRIVER, pool=card.node, name=card.device, strategy="") for card in self._held[uid])

    def give_back(self, uid: str) -> None:
        self._held.pop(uid, None)
