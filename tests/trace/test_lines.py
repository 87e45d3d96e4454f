"""A trace is read as far as it was written, and what is wrong with it is said with its line and the fix."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from gpupack.decide.reconcile import reconcile
from gpupack.errors import Invalid
from gpupack.facts.policy import Policy
from gpupack.trace.lines import Header, header_line, read, tick_line
from gpupack.units import Seconds

from ..scenarios.test_scenarios import STORIES, story_of

SEEN = story_of(STORIES[0].read_text()).observation
HEADER = Header(policy=Policy(), catalog="abc")


def lines(ticks: int = 2) -> list[str]:
    seen = [replace(SEEN, at=Seconds(SEEN.at + 2.0 * number)) for number in range(ticks)]
    return [header_line(HEADER), *(tick_line(each, reconcile(each)) for each in seen)]


def written(path: Path, *each: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in each))
    return path


def test_ticks_come_back_in_order_with_their_lines_and_header(tmp_path: Path) -> None:
    ticks = list(read(written(tmp_path / "trace", *lines())))
    assert [each.line for each in ticks] == [2, 3]
    assert {each.header for each in ticks} == {HEADER}
    assert ticks[0].observation == SEEN
    assert ticks[0].outcome == reconcile(SEEN)


def test_a_compressed_file_is_read_like_a_plain_one(tmp_path: Path) -> None:
    plain = written(tmp_path / "trace", *lines())
    packed = tmp_path / "trace.1.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert list(read(packed)) == list(read(plain))


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = written(tmp_path / "trace", *lines())
    path.write_bytes(path.read_bytes()[:-100])
    assert [each.line for each in read(path)] == [2]


def test_a_process_that_went_on_with_a_file_wrote_its_own_header(tmp_path: Path) -> None:
    later = replace(HEADER, gpupack="0.2.0")
    first, second, third = lines()
    ticks = list(read(written(tmp_path / "trace", first, second, header_line(later), third)))
    assert [each.header.gpupack for each in ticks] == [HEADER.gpupack, "0.2.0"]


def test_a_field_that_an_older_trace_lacks_takes_its_default(tmp_path: Path) -> None:
    header, tick, _ = lines()
    fields = json.loads(tick)
    del fields["observation"]["stale"], fields["observation"]["pool_problem"]
    (ticked,) = read(written(tmp_path / "trace", header, json.dumps(fields)))
    assert ticked.observation == SEEN


def broken(tick: str) -> str:
    fields = json.loads(tick)
    fields["observation"]["gpus"][0]["gpu"]["uuid"] = 7
    return json.dumps(fields)


def test_what_is_wrong_is_said_with_its_line_and_what_to_do(tmp_path: Path) -> None:
    header, tick, _ = lines()
    newer = json.dumps({**json.loads(header), "version": 9, "gpupack": "9.0"})
    cases = {
        "is empty": [],
        "line 1 of": [tick],
        "version 9, written by gpupack 9.0": [newer, tick],
        "line 2 of": [header, tick[:-5], tick],
        "line 3 of": [header, tick, "[]"],
        "observation.gpus[0].gpu.uuid: 7 is not a str": [header, broken(tick)],
    }
    for said, content in cases.items():
        with pytest.raises(Invalid) as refused:
            list(read(written(tmp_path / "trace", *content)))
        assert said in str(refused.value)
        assert refused.value.fix


def test_a_file_that_is_not_there_or_no_whole_gzip_is_refused(tmp_path: Path) -> None:
    packed = tmp_path / "trace.gz"
    packed.write_bytes(gzip.compress(b"".join(line.encode() + b"\n" for line in lines()))[:-200])
    for path in (tmp_path / "nowhere", tmp_path, packed):
        with pytest.raises(Invalid, match="cannot be read"):
            list(read(path))


def test_a_tick_of_a_hundred_gpus_and_four_hundred_engines_is_below_two_megabytes() -> None:
    """Every reading has all its digits, as measured ones have."""
    story = {
        "title": "A large pool.",
        "gpus": {f"gpu-{number:02d}": {} for number in range(100)},
        "servings": {f"chat-{number:02d}": {"batch": 64} for number in range(25)},
        "replicas": [
            {
                "serving": f"chat-{number // 4:02d}",
                "gpu": f"gpu-{number:02d}",
                "count": 4,
                "arrivals": 10.0 + number / 7.0,
            }
            for number in range(100)
        ],
        "expect": {},
    }
    seen = story_of(yaml.safe_dump(story)).observation
    assert (len(seen.gpus), len(seen.engines)) == (100, 400)
    line = tick_line(seen, reconcile(seen))
    assert 1_000_000 < len(line) < 2_000_000
    assert len(gzip.compress(line.encode())) < len(line) / 5
