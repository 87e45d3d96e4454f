"""The device plugin of a virtual node: GPUs or MIG slices as extended resources, of each the lowest free one first.

The scheduler counts; which device a pod gets is decided here. Knows no claim.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpupack.kube.labels import DRIVER
from gpupack.node.pods import Pod
from gpupack.node.program import Device
from gpupack.node.virtual_node import Card, MigStrategy, offered


class DevicePlugin:
    def __init__(self, cards: Sequence[Card], strategy: MigStrategy) -> None:
        self._offered = offered(cards, strategy)
        self._held: dict[str, tuple[Pod, tuple[Card, ...]]] = {}

    def take(self, pod: Pod) -> tuple[Device, ...]:
        """The same pod gets the same again. Fewer than asked for if the scheduler counted otherwise."""
        if pod.uid not in self._held:
            taken = {card.device for _, cards in self._held.values() for card in cards}
            given = [
                [card for card in self._offered.get(resource, ()) if card.device not in taken][:count]
                for resource, count in pod.asked
            ]
            self._held[pod.uid] = pod, tuple(card for cards in given for card in cards)
        _, cards = self._held[pod.uid]
        return tuple(Device(driver=DRIVER, pool=card.node, name=card.device, strategy="") for card in cards)

    def give_back(self, uid: str) -> None:
        self._held.pop(uid, None)

    def holder(self, card: Card) -> tuple[str, str, str] | None:
        """Container, namespace and pod that have it now."""
        found = next((pod for pod, cards in self._held.values() if card in cards), None)
        return None if found is None else (found.containers[0].name, found.namespace, found.name)
