"""Journeys in several processes, each with a control plane of its own: what their operators asked, taken together."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from gpupack.demo.stage import POLL_SECONDS
from gpupack.node.controlplane import ControlPlane

LONGEST_SECONDS = 900.0
"""So long the last process waits for the journeys of the others."""


@dataclass(frozen=True, slots=True, order=True)
class Asked:
    """One kind of request: its verb, its resource, the status code of the answer."""

    verb: str
    resource: str
    code: int


def asked_of(cluster: ControlPlane, account: str) -> frozenset[Asked]:
    """What `account` asked of the API so far."""
    return frozenset(
        Asked(each.verb, each.resource, each.code)
        for each in cluster.audit_events()
        if each.user == account and each.resource
    )


class Processes:
    """The processes of one test run: they share `folder`, in which each leaves a file as it ends."""

    def __init__(self, folder: Path, name: str, count: int) -> None:
        self._folder, self._name, self._count = folder, name, count
        self._own: frozenset[Asked] = frozenset()

    def note(self, asked: frozenset[Asked]) -> None:
        self._own |= asked

    def leave(self) -> None:
        """For the others to read; at once whole."""
        half = self._folder / f"{self._name}.half"
        half.write_text(json.dumps([[each.verb, each.resource, each.code] for each in sorted(self._own)]))
        half.rename(self._folder / f"{self._name}.asked")

    def others(self) -> frozenset[Asked]:
        """What the operators of all other processes asked, once their last journey is over."""
        began = time.monotonic()
        while len(files := sorted(self._folder.glob("*.asked"))) < self._count - 1:
            if time.monotonic() - began > LONGEST_SECONDS:
                raise TimeoutError(f"{self._count - 1 - len(files)} other processes are at their journeys still")
            time.sleep(POLL_SECONDS)
        return frozenset(Asked(*each) for file in files for each in json.loads(file.read_text()))
