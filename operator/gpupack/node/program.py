"""What runs in a container of the virtual node: something that starts, may answer probes, and ends.

The kubelet knows programs only by this; what a vLLM engine or an exporter does inside is theirs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

KILLED = 137
"""128 + SIGKILL"""
TERMINATED = 143
"""128 + SIGTERM"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a program ended; `message` is the last of its log."""

    code: int
    message: str = ""

    @property
    def reason(self) -> str:
        return "Completed" if self.code == 0 else "Error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device that a ResourceClaim gave to the pod. `strategy` is how its claim shares it (MPS, TimeSlicing or "")."""

    driver: str
    pool: str
    name: str
    strategy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """Where a program finds itself. `files` are those of its mounted secrets, by path; `cores` is its CPU limit."""

    namespace: str
    pod: str
    uid: str
    address: str
    labels: Mapping[str, str]
    devices: tuple[Device, ...]
    image: str
    words: Sequence[str]
    environ: Mapping[str, str]
    files: Mapping[str, bytes] = field(default_factory=dict)
    cores: float | None = None


class Program(Protocol):
    """`run` lasts as long as the process; cancelling it is SIGKILL, after which nothing of it may be left."""

    async def run(self) -> Exit: ...

    def terminate(self) -> None:
        """SIGTERM"""

    def answers(self, port: int | None, path: str | None) -> bool:
        """Whether a probe succeeds now."""


Launch = Callable[[Sandbox], Program]


class Sleeper:
    """Any program that the virtual node does not know: it runs, is well, and ends when asked to."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()

    async def run(self) -> Exit:
        await self._asked.wait()
        return Exit(code=TERMINATED)

    def terminate(self) -> None:
        self._asked.set()

    def answers(self, port: int | None, path: str | None) -> bool:  # noqa: ARG002 (part of the protocol)
        return True
