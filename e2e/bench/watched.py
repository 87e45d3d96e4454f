"""What the benchmarks on a real control plane share: the stage with its processes' ids, and what a process has used."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpupack.demo.stage import ACCOUNT, OPERATOR, Stage
from gpupack.node.controlplane import ControlPlane

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
RECORDING = Path(__file__).with_name("recording_operator.py")


class WatchedStage(Stage):
    """A stage that knows the process ids of its programs. With `trace` the operator writes what it observes there."""

    def __init__(
        self, cluster: ControlPlane, folder: Path, *, node_arguments: Sequence[str] = (), trace: Path | None = None
    ) -> None:
        super().__init__(cluster, folder, node_arguments=node_arguments)
        self.pids: dict[str, int] = {}
        self._trace = trace

    def _start(self, program: str, *arguments: str) -> None:
        command = [sys.executable, "-m", "gpupack", *arguments]
        if program == OPERATOR and self._trace is not None:
            command = [sys.executable, str(RECORDING), str(self._trace), *arguments[1:]]
        self.pids[program] = self._keeper.start(program, command)

    def writes(self) -> list[tuple[str, str]]:
        """(verb, resource) of every write of the operator's account so far, Leases aside, by the audit log."""
        return [
            (each.verb, each.resource)
            for each in self.cluster.audit_events()
            if each.is_write and each.user == ACCOUNT and each.resource != "leases"
        ]

    def ticks(self) -> tuple[int, float]:
        """Ticks of all pools so far, and the wall seconds that they took, by the operator's own metrics."""
        text = self.operator_metrics()

        def total(name: str) -> float:
            return sum(float(value) for value in re.findall(rf"^{name}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE))

        return int(total("gpupack_tick_seconds_count")), total("gpupack_tick_seconds_sum")


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """`cpu` seconds of a process since its start, user and system; resident bytes now and at most."""

    cpu: float
    rss: int
    rss_peak: int


def used(pid: int) -> Used:
    """Of a process on this Linux. Raises OSError if it has ended."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Used(
        cpu=(int(stat[11]) + int(stat[12])) / TICKS_A_SECOND,
        rss=1024 * int(status["VmRSS"].split()[0]),
        rss_peak=1024 * int(status["VmHWM"].split()[0]),
    )


def machine() -> str:
    """For the head of every report: a figure is worth nothing without it."""
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    model = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")),
        platform.machine(),
    )  # fmt: skip
    return f"{cores} cores ({model}), Python {platform.python_version()}, load average {load:.1f} at the start"


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed."""
    listed = sorted(values)
    return listed[min(len(listed) - 1, max(0, -int(-share * len(listed) // 1) - 1))]
