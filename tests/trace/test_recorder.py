"""The operator's trace stays within its bounds and harms nobody, whatever the disk does."""

from __future__ import annotations

import logging
import stat
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from gpupack.cli import main
from gpupack.decide.reconcile import reconcile
from gpupack.facts.observation import Observation
from gpupack.trace.lines import read, tick_line
from gpupack.trace.recorder import AT_MOST_WAITING, RETRY_SECONDS, Fate, Recorder, TraceFile
from gpupack.units import Seconds

from ..scenarios.test_scenarios import STORIES, story_of

SEEN = story_of(STORIES[0].read_text()).observation
OUTCOME = reconcile(SEEN)
LINE = len(tick_line(SEEN, OUTCOME)) + 1


def seen(number: int) -> Observation:
    return replace(SEEN, at=Seconds(SEEN.at + number))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A recorder whose fates are counted; `put` waits until the tick has met its own."""

    def __init__(self, path: Path, *, lines: float = 100.0, files: int = 3) -> None:
        self.fates: list[Fate] = []
        self.clock = Clock()
        self._told = threading.Semaphore(0)
        place = TraceFile(path=path, limit_bytes=int(lines * LINE), files=files)
        self.recorder = Recorder(place, catalog="abc", tally=self._tell, clock=self.clock)
        self.recorder.start()

    def _tell(self, fate: Fate) -> None:
        self.fates.append(fate)
        self._told.release()

    def put(self, *numbers: int) -> None:
        for number in numbers:
            self.recorder.put(seen(number), OUTCOME)
            assert self._told.acquire(timeout=30.0)


def times(path: Path) -> list[int]:
    return [round(each.observation.at - SEEN.at) for each in read(path)]


def test_what_was_put_is_read_again_and_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    bench = Bench(path)
    bench.put(0, 1, 2)
    assert times(path) == [0, 1, 2]  # at once, not when the file is closed
    bench.recorder.stop()
    assert bench.fates == [Fate.WRITTEN] * 3
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_full_file_turns_over_and_the_oldest_goes(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    bench = Bench(path, lines=2.9, files=3)
    bench.put(*range(9))
    bench.recorder.stop()
    assert [times(tmp_path / name) for name in ("trace", "trace.1.gz", "trace.2.gz")] == [[8], [6, 7], [4, 5]]
    assert len(list(tmp_path.iterdir())) == 3
    assert all(each.stat().st_size <= 2.9 * LINE for each in tmp_path.iterdir())


def test_a_single_file_begins_anew(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "trace", lines=2.9, files=1)
    bench.put(0, 1, 2)
    bench.recorder.stop()
    assert times(tmp_path / "trace") == [2]
    assert len(list(tmp_path.iterdir())) == 1


def test_the_next_process_goes_on_behind_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    first = Bench(path)
    first.put(0, 1)
    first.recorder.stop()
    path.write_bytes(path.read_bytes()[:-100])
    second = Bench(path)
    second.put(2)
    second.recorder.stop()
    assert times(path) == [0, 2]


def test_a_path_that_cannot_be_written_is_one_warning_and_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "volume" / "trace"
    bench = Bench(path)
    with caplog.at_level(logging.INFO, logger="gpupack.trace"):
        bench.put(0, 1)
        bench.clock.now += RETRY_SECONDS
        bench.put(2)
        path.parent.mkdir()
        bench.put(3)  # not yet tried again
        bench.clock.now += RETRY_SECONDS
        bench.put(4)
        bench.recorder.stop()
    assert Counter(bench.fates) == {Fate.UNWRITABLE: 4, Fate.WRITTEN: 1}
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert times(path) == [4]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "trace"
    path.symlink_to("/dev/full")
    bench = Bench(path)
    bench.put(0, 1)
    bench.recorder.stop()
    assert bench.fates == [Fate.UNWRITABLE] * 2
    assert len(caplog.records) == 1


def test_a_disk_that_hangs_costs_ticks_and_no_time(tmp_path: Path) -> None:
    fates: Counter[Fate] = Counter()
    place = TraceFile(path=tmp_path / "trace", limit_bytes=10 * LINE, files=2)
    recorder = Recorder(place, catalog="abc", tally=lambda fate: fates.update([fate]))
    # The thread is not started: nothing takes what is put, as with a disk that does not answer.
    for number in range(AT_MOST_WAITING + 5):
        recorder.put(seen(number), OUTCOME)
    assert fates == {Fate.BEHIND: 5}


@pytest.mark.parametrize("option", ["--trace-megabytes", "--trace-files"])
def test_a_bound_below_one_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["operator", "--trace", "trace", option, "0"])
    assert left.value.code == 2
    assert f"{option}: 0 is not a whole number of at least 1" in capsys.readouterr().err
