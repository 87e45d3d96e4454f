"""Addresses of pods, out of a private range that no interface has.

An address that was given back is handed out again only after all others of the range, so that whoever still has it
from a list of endpoints does not reach a stranger.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from gpupack.errors import Unavailable

DEFAULT_RANGE = "10.77.0.0/16"


class Addresses:
    """The first address of the range is the node's own."""

    def __init__(self, network: str = DEFAULT_RANGE) -> None:
        self._network = IPv4Network(network)
        self._next = 2
        self._taken: set[str] = set()

    @property
    def node(self) -> str:
        return str(self._network[1])

    def take(self, wanted: str | None = None) -> str:
        """The wanted one if it is of the range and free, else the next free one.

        Raises Unavailable if all are taken.
        """
        if wanted and wanted not in self._taken and IPv4Address(wanted) in self._network:
            self._taken.add(wanted)
            return wanted
        size = self._network.num_addresses - 3
        for _ in range(size):
            address = str(self._network[self._next])
            self._next = 2 + (self._next - 1) % size
            if address not in self._taken:
                self._taken.add(address)
                return address
        raise Unavailable(f"all {size} addresses of {self._network} are taken")

    def give_back(self, address: str) -> None:
        self._taken.discard(address)
