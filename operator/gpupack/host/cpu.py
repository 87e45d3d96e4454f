"""Whether programs get the cores that they want: what Linux counts of waiting and of throttling, over a window.

- `/proc/PID/task/TID/schedstat`: nanoseconds that a thread ran, and nanoseconds that it could have run and waited for a
  core (Documentation/scheduler/sched-stats.rst). Somebody else had the core.
- `cpu.stat` of a cgroup v2: periods of the CPU limit, and those in which it was used up, so that nobody in the cgroup
  ran until their end (Documentation/admin-guide/cgroup-v2.rst).

The node agent reads the first with this, of engines in pods of their own. Both are shares from 0 to 1, None where
nothing tells or nothing ran.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

WINDOW_SECONDS = 10.0
"""A window is at least this long: a hundred periods of the usual CPU limit."""
CGROUP = Path("/sys/fs/cgroup")
"""A container's own one, as it sees it."""
_NANO, _MICRO = 1e-9, 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Seconds since the processes began, all threads that live together."""

    ran: float
    waited: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Limited:
    """Of a cgroup with a CPU limit since it was made; `throttled_seconds` are those of all its processors together."""

    periods: int
    throttled: int
    throttled_seconds: float


def spent(pids: Iterable[int], proc: Path) -> Spent | None:
    """None where none of the processes is there, or the kernel does not count."""
    ran = waited = 0
    seen = False
    for pid in pids:
        try:
            threads = os.listdir(proc / str(pid) / "task")
        except OSError:
            continue
        for thread in threads:
            try:
                words = (proc / str(pid) / "task" / thread / "schedstat").read_text().split()
                ran, waited, seen = ran + int(words[0]), waited + int(words[1]), True
            except (OSError, ValueError, IndexError):
                continue  # it has ended meanwhile
    return Spent(ran=ran * _NANO, waited=waited * _NANO) if seen else None


def limited(cgroup: Path) -> Limited | None:
    """None without a limit, and where this is no cgroup v2."""
    try:
        text = (cgroup / "cpu.stat").read_text()
        found = {name: int(value) for name, value in (line.split() for line in text.splitlines())}
    except (OSError, ValueError):
        return None
    if not found.get("nr_periods"):
        return None
    return Limited(
        periods=found["nr_periods"],
        throttled=found.get("nr_throttled", 0),
        throttled_seconds=found.get("throttled_usec", 0) * _MICRO,
    )


def sessions(proc: Path) -> Mapping[int, tuple[int, ...]]:
    """Processes by session: a program that was started in one of its own keeps its children there."""
    found: dict[int, list[int]] = {}
    try:
        names = [each for each in os.listdir(proc) if each.isdecimal()]
    except OSError:
        return {}
    for name in names:
        try:
            after_name = (proc / name / "stat").read_text(errors="replace").rpartition(")")[2].split()
            found.setdefault(int(after_name[3]), []).append(int(name))
        except (OSError, ValueError, IndexError):
            continue
    return {session: tuple(sorted(pids)) for session, pids in found.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """Over the window that ended at `at`. `waited`: of the time that threads could have run, the share that they waited
    for a core. `throttled`: the share of periods in which the limit was used up."""

    at: float
    waited: float | None = None
    throttled: float | None = None


@dataclass(slots=True)
class Meter:
    """Two looks at counters, at least a window apart, by name of what is looked at. `at` on any one clock."""

    _before: dict[str, tuple[float, Spent | None, Limited | None]] = field(default_factory=dict)
    _found: dict[str, Shortage] = field(default_factory=dict)

    def look(self, name: str, at: float, used: Spent | None, limit: Limited | None) -> Shortage | None:
        """What came of the last whole window; None before the first. Counters that went back begin anew."""
        before = self._before.get(name)
        if before is None or _went_back(before, used, limit):
            self._before[name] = (at, used, limit)
            self._found.pop(name, None)
        elif at - before[0] >= WINDOW_SECONDS:
            self._before[name] = (at, used, limit)
            self._found[name] = Shortage(at=at, waited=_waited(before[1], used), throttled=_throttled(before[2], limit))
        return self._found.get(name)

    def keep(self, names: Iterable[str]) -> None:
        """Forgets everything else."""
        kept = {*names}
        for held in (self._before, self._found):
            for name in [each for each in held if each not in kept]:
                del held[name]


def _went_back(before: tuple[float, Spent | None, Limited | None], used: Spent | None, limit: Limited | None) -> bool:
    _, spent_before, limit_before = before
    if spent_before is not None and used is not None and used.ran < spent_before.ran:
        return True
    return limit_before is not None and limit is not None and limit.periods < limit_before.periods


def _waited(before: Spent | None, now: Spent | None) -> float | None:
    if before is None or now is None:
        return None
    ran, waited = now.ran - before.ran, max(0.0, now.waited - before.waited)
    return waited / (ran + waited) if ran + waited > 0 else None


def _throttled(before: Limited | None, now: Limited | None) -> float | None:
    if before is None or now is None or now.periods == before.periods:
        return None
    return min(1.0, max(0, now.throttled - before.throttled) / (now.periods - before.periods))
