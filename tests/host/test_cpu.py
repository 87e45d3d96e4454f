"""What is counted of waiting for cores, from files as Linux writes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpupack.host.cpu import WINDOW_SECONDS, Limited, Meter, Shortage, Spent, limited, sessions, spent

STAT = "{pid} (VLLM::Engine) (x) S 1 {pid} {session} 0 -1 4194560 0 0\n"
CPU_STAT = "usage_usec 9000000\nuser_usec 1\nsystem_usec 1\nnr_periods 200\nnr_throttled 50\nthrottled_usec 2500000\n"


def born(proc: Path, pid: int, session: int, *threads: tuple[int, int]) -> None:
    for number, (ran, waited) in enumerate(threads):
        thread = proc / str(pid) / "task" / str(pid + number)
        thread.mkdir(parents=True)
        (thread / "schedstat").write_text(f"{ran} {waited} 77\n")
    (proc / str(pid) / "stat").write_text(STAT.format(pid=pid, session=session))


def test_the_threads_of_an_engine_and_of_its_children_are_counted_together(tmp_path: Path) -> None:
    born(tmp_path, 10, 10, (2_000_000_000, 500_000_000), (1_000_000_000, 0))
    born(tmp_path, 11, 10, (3_000_000_000, 1_500_000_000))
    born(tmp_path, 20, 20, (9_000_000_000, 9_000_000_000))
    (tmp_path / "sys").mkdir()
    assert sessions(tmp_path) == {10: (10, 11), 20: (20,)}
    assert spent(sessions(tmp_path)[10], tmp_path) == Spent(ran=6.0, waited=2.0)


def test_processes_that_are_gone_or_not_counted_are_absent_and_not_idle(tmp_path: Path) -> None:
    assert spent((7,), tmp_path) is None
    assert spent((), tmp_path) is None
    assert sessions(tmp_path / "nowhere") == {}
    (tmp_path / "8" / "task" / "8").mkdir(parents=True)
    assert spent((8,), tmp_path) is None


def test_this_kernel_counts_for_a_real_process() -> None:
    proc = Path("/proc")
    if not (proc / "self" / "schedstat").exists():
        pytest.skip("this kernel keeps no schedstat")
    here = spent((os.getpid(),), proc)
    assert here is not None
    assert here.ran > 0.0
    assert os.getpid() in sessions(proc)[os.getsid(0)]


def test_a_cgroup_tells_how_often_its_limit_was_used_up(tmp_path: Path) -> None:
    (tmp_path / "cpu.stat").write_text(CPU_STAT)
    assert limited(tmp_path) == Limited(periods=200, throttled=50, throttled_seconds=2.5)


@pytest.mark.parametrize("text", ["", "usage_usec 5\n", "nr_periods 0\nnr_throttled 0\n", "nr_periods many\n"])
def test_a_cgroup_without_a_limit_tells_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "cpu.stat").write_text(text)
    assert limited(tmp_path) is None
    assert limited(tmp_path / "v1") is None


def test_a_window_gives_shares_and_counters_that_went_back_begin_anew() -> None:
    meter = Meter()

    def look(at: float, ran: float, waited: float, periods: int, throttled: int) -> Shortage | None:
        limit = Limited(periods=periods, throttled=throttled, throttled_seconds=0.0)
        return meter.look("a", at, Spent(ran=ran, waited=waited), limit)

    assert look(0.0, 5.0, 5.0, 100, 100) is None
    assert look(WINDOW_SECONDS / 2, 6.0, 5.0, 150, 100) is None
    whole = look(WINDOW_SECONDS, 14.0, 6.0, 200, 120)
    assert whole == Shortage(at=WINDOW_SECONDS, waited=0.1, throttled=0.2)
    assert look(WINDOW_SECONDS + 1, 15.0, 6.0, 210, 120) == whole
    assert look(WINDOW_SECONDS + 2, 0.1, 0.0, 1, 0) is None
    meter.keep(())
    assert meter.look("a", 100.0, None, None) is None
    assert meter.look("a", 200.0, None, None) == Shortage(at=200.0)
