"""`gpupack replay` says what differs, where and by what margin, and its exit status says whether it matters."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gpupack.cli import main
from gpupack.decide.reconcile import reconcile
from gpupack.facts.placement import Plan
from gpupack.facts.policy import Policy
from gpupack.plan import Outcome
from gpupack.soak.history import draw, to_lines
from gpupack.trace.lines import Header, header_line, tick_line
from gpupack.units import Seconds

from ..scenarios.test_scenarios import STORIES, story_of

SEEN = next(story_of(path.read_text()).observation for path in STORIES if path.stem == "demand_met")


def as_it_is(outcome: Outcome) -> Outcome:
    return outcome


def memory(outcome: Outcome) -> Outcome:
    """As if the code that recorded had found no memory and planned nothing."""
    plan = outcome.pool_status.plan
    assert plan is not None
    records = tuple(replace(each, reason="Memory", observed=9.0, limit=8.0) for each in plan.records)
    changed = Plan(shapes=plan.shapes, records=records)
    return replace(outcome, pool_status=replace(outcome.pool_status, plan=changed))


def trace(path: Path, *changes: object) -> Path:
    """One tick a change of what was recorded."""
    lines = [header_line(Header(policy=Policy(), catalog="abc", gpupack="0.0.9"))]
    for number, change in enumerate(changes):
        seen = replace(SEEN, at=Seconds(SEEN.at + 2.0 * number))
        lines.append(tick_line(seen, change(reconcile(seen))))  # type: ignore[operator]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def replayed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    status = main(["replay", *words])
    printed = capsys.readouterr()
    assert printed.err == ""
    return status, printed.out


def test_the_same_decisions_are_exit_status_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, told = replayed(capsys, str(trace(tmp_path / "trace", as_it_is, as_it_is)))
    assert status == 0
    assert "2 ticks" in told
    assert "decided by gpupack 0.0.9" in told
    assert told.endswith("2 the same\n")


def test_a_difference_is_a_row_with_both_margins_and_exit_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, told = replayed(capsys, str(trace(tmp_path / "trace", as_it_is, memory, memory, as_it_is)))
    assert status == 1
    assert "2 the same" in told
    assert "2 another plan" in told
    (row,) = (line for line in told.splitlines() if line.startswith("2-3 "))
    assert "team/chat" in row
    assert "Memory" in row
    assert "DemandMet" in row
    assert row.count("margin") == 2
    assert "another plan: nothing -> a replica in slot 0 of GPU-00000000" in row


def test_the_same_for_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(trace(tmp_path / "trace", as_it_is, memory))
    status, told = replayed(capsys, path, "-o", "json")
    answer = json.loads(told)
    assert status == 1
    assert answer["matters"] is True
    assert (answer["ticks"], answer["counts"]["same"], answer["counts"]["plan"]) == (2, 1, 1)
    (row,) = answer["rows"]
    assert (row["first"], row["serving"], row["difference"]) == (2, "team/chat", "plan")
    assert any(field["path"].startswith("pool_status.plan.placements[") for field in row["fields"])


def test_one_tick_is_told_in_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(trace(tmp_path / "trace", as_it_is, memory))
    status, told = replayed(capsys, path, "--tick", "2")
    assert status == 1
    for said in ("tick 2 (line 3)", "seen: 1 servings, 2 GPUs", "recorded: Memory", "today: DemandMet", "records["):
        assert said in told
    status, told = replayed(capsys, path, "--tick", "1", "--json")
    assert status == 0
    assert json.loads(told)["fields"] == []


def test_what_cannot_be_replayed_is_exit_status_2_and_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = trace(tmp_path / "trace", as_it_is)
    broken = tmp_path / "broken"
    broken.write_text(path.read_text().replace('"servings":[', '"servings":[7,', 1))
    cases = {
        (str(tmp_path / "nowhere"),): "cannot be read",
        (str(broken),): "line 2 of",
        (str(path), "--tick", "2"): "has fewer than 2 ticks",
    }
    for words, said in cases.items():
        assert main(["replay", *words]) == 2
        told = capsys.readouterr().err
        assert said in told
        assert told.count("\n") == 1


def test_a_history_of_soak_is_played_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "history"
    path.write_text(to_lines(draw(1)))
    status, told = replayed(capsys, str(path))
    assert status == 0
    assert "No rule is broken" in told
