"""Requests rebuilt from a trace are as many as were counted, when they were counted, and as long as was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpupack.cli import main
from gpupack.cli.recorded import rebuild
from gpupack.decide.reconcile import reconcile
from gpupack.errors import Invalid
from gpupack.facts.observation import EngineSeen, GapSeen, Observation, Reading
from gpupack.facts.policy import Policy
from gpupack.trace.lines import Header, header_line, tick_line
from gpupack.units import Seconds

from ..scenarios.test_scenarios import STORIES, story_of
from ..strategies import key

SEEN = next(story_of(path.read_text()).observation for path in STORIES if path.stem == "demand_met")
OUTCOME = reconcile(SEEN)
TICK = 2.0


def reading(value: float, at: float) -> Reading:
    return Reading(value=value, at=Seconds(at), origin="story")


def read_at(engine: EngineSeen, at: float, rate: float, *, gaps: bool) -> EngineSeen:
    """One engine at `at`: so many requests a second in the last two gaps, or over its windows."""
    windows = tuple(
        replace(window, arrivals=reading(rate, at), finished=reading(rate, at), output_mean=reading(64.0, at))
        for window in engine.windows
    )
    last = tuple(
        GapSeen(seconds=Seconds(TICK), arrivals=reading(rate, at - before)) for before in (0.0, TICK)[: 2 * gaps]
    )
    return replace(engine, windows=windows, gaps=last, running=reading(1.0, at))


def trace(path: Path, rates: Sequence[float | None], *, gaps: bool = True) -> Path:
    """One tick each; None: the engine was not read."""
    lines = [header_line(Header(policy=Policy(), catalog=""))]
    for number, rate in enumerate(rates):
        at = SEEN.at + TICK * number
        engines = () if rate is None else tuple(read_at(each, at, rate, gaps=gaps) for each in SEEN.engines)
        seen: Observation = replace(SEEN, at=Seconds(at), engines=engines)
        lines.append(tick_line(seen, OUTCOME))
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def counted(path: Path, begin: float, end: float) -> int:
    times = [float(each.arrival_time or 0.0) for each in rebuild(path, None, seed=1).requests]
    assert times == sorted(times)
    return sum(begin <= at < end for at in times)


def test_as_many_requests_come_in_each_gap_as_were_counted(tmp_path: Path) -> None:
    # A gap ends where its scrape was read: the first tick tells of the time before the trace.
    path = trace(tmp_path / "trace", [10.0] * 31 + [32.5] * 30)
    assert counted(path, 0.0, 58.0) == 580
    assert counted(path, 60.0, 120.0) == 30 * 65


def test_a_gap_that_no_tick_told_of_is_told_by_the_next(tmp_path: Path) -> None:
    path = trace(tmp_path / "trace", [10.0] * 10 + [None] + [10.0] * 10)
    assert counted(path, 0.0, 40.0) == 400
    rebuilt = rebuild(path, None, seed=1)
    assert (rebuilt.seconds, rebuilt.unread_seconds) == (40.0, 2.0)


def test_what_nobody_read_is_no_traffic_and_is_said(tmp_path: Path) -> None:
    path = trace(tmp_path / "trace", [10.0] * 10 + [None] * 10 + [10.0] * 10)
    assert counted(path, 18.0, 36.0) == 0
    assert rebuild(path, None, seed=1).unread_seconds == 20.0


def test_a_window_stands_for_gaps_that_were_not_recorded(tmp_path: Path) -> None:
    path = trace(tmp_path / "trace", [10.0] * 31, gaps=False)
    assert counted(path, 0.0, 60.0) == 600


def test_lengths_are_drawn_around_the_measured_means(tmp_path: Path) -> None:
    rebuilt = rebuild(trace(tmp_path / "trace", [40.0] * 60), None, seed=1)
    assert rebuilt.gpu == "H100-80GB"
    count = len(rebuilt.requests)
    assert sum(each.output_tokens for each in rebuilt.requests) / count == pytest.approx(64.0, rel=0.05)
    assert sum(each.input_tokens for each in rebuilt.requests) / count == pytest.approx(512.0, rel=0.05)
    assert max(each.input_tokens + each.output_tokens for each in rebuilt.requests) <= rebuilt.max_model_len


def test_a_serving_is_named_where_there_are_several(tmp_path: Path) -> None:
    (chat,) = SEEN.servings
    two = replace(SEEN, servings=(chat, replace(chat, key=key("other"))))
    path = tmp_path / "trace"
    path.write_text(f"{header_line(Header(policy=Policy(), catalog=''))}\n{tick_line(two, OUTCOME)}\n")
    for serving, said in ((None, "has the servings team/chat, team/other"), ("else", "'else' is none or several of")):
        with pytest.raises(Invalid, match=said):
            rebuild(path, serving, seed=1)
    with pytest.raises(Invalid, match="tells of 0 requests of team/other"):
        rebuild(path, "other", seed=1)


def test_the_twin_runs_what_a_trace_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = trace(tmp_path / "trace", [10.0] * 31)
    assert main(["simulate", "--from-trace", str(path), "--max-num-seqs", "32", "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert answer["recorded_requests"] == 600
    assert answer["simulated_seconds"] == pytest.approx(60.0, abs=10.0)
    assert answer["output_tokens_per_second"] == pytest.approx(10.0 * 64.0, rel=0.2)
    assert main(["simulate", "--from-trace", str(path), "--request-rate", "3"]) == 2
    assert "it brings its own requests, and --request-rate is given" in capsys.readouterr().err
    assert main(["simulate", "--gpu", "L4"]) == 2
    assert "--model" in capsys.readouterr().err
