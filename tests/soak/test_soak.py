"""What a soak promises: equal seeds run equally, files play again, and what fails is made short."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from gpupack.decide.reconcile import reconcile
from gpupack.errors import Invalid
from gpupack.facts.interpretation import Facts
from gpupack.facts.observation import Observation
from gpupack.plan import Outcome
from gpupack.soak.history import Event, draw, from_lines, to_lines
from gpupack.soak.play import play
from gpupack.soak.run import read_seeds, replay, summary
from gpupack.soak.shrink import shrink

SEEDS = Path(__file__).with_name("seeds.txt")


def test_equal_seeds_tell_equal_stories() -> None:
    told: list[list[str]] = [[], []]
    reports = [play(draw(7), tell=each.append) for each in told]
    assert told[0]
    assert told[0] == told[1]
    assert reports[0] == reports[1]


@pytest.mark.parametrize("seed", [1, 2, 5, 6])
def test_no_rule_is_broken(seed: int) -> None:
    assert play(draw(seed)).violation is None


def test_no_rule_is_broken_by_engines_in_steps() -> None:
    report = play(draw(1, stepped=True))
    assert report.violation is None
    assert report.looks > 200


def test_seeds_that_ever_failed_are_listed_one_a_line() -> None:
    seeds = read_seeds(SEEDS)
    assert len(set(seeds)) == len(seeds)


def test_a_history_reads_back_as_it_was_written() -> None:
    history = draw(11)
    text = to_lines(history, "memory: too much")
    assert from_lines(text) == history


def test_what_is_no_history_is_refused_with_its_name() -> None:
    with pytest.raises(Invalid, match=r"trace\.jsonl.*not a history"):
        from_lines("{}\n", "trace.jsonl")


def test_an_exception_in_the_decision_is_a_violation() -> None:
    def broken(observation: Observation, facts: Facts) -> Outcome:
        if observation.replicas:
            raise ZeroDivisionError("somewhere")
        return reconcile(observation, facts)

    violation = play(draw(1), reconcile=broken).violation
    assert violation is not None
    assert violation.message.startswith("ZeroDivisionError: somewhere (test_")


def test_a_failing_history_is_made_short_and_fails_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def forgets(observation: Observation, facts: Facts) -> Outcome:
        """Forgets everything at a wiped status, and stops what runs."""
        outcome = reconcile(observation, facts)
        if observation.plan is not None or not observation.replicas:
            return outcome
        plan = outcome.pool_status.plan
        assert plan is not None
        return replace(outcome, pool_status=replace(outcome.pool_status, plan=replace(plan, placements=())))

    wiped = Event(tick=60, kind="status", args={"how": "wiped"})
    history = replace(draw(5), events=(*draw(5).events, wiped))
    failed = play(history, reconcile=forgets)
    assert failed.violation is not None
    short = shrink(failed, lambda each: play(each, reconcile=forgets), plays=40)
    assert short.violation is not None
    assert short.violation.rule == failed.violation.rule
    assert [each.kind for each in short.history.events] == ["status"]
    assert short.history.ticks < history.ticks
    (told,) = [line for line in summary([replace(short, violation=short.violation)], tmp_path) if ".jsonl: " in line]
    assert short.violation.message in told
    assert replay((tmp_path / "seed-5.jsonl").read_text(), "FILE") == 0  # the real decision keeps the rule
    assert "No rule is broken" in capsys.readouterr().out


@pytest.mark.parametrize(("seed", "serving", "course"), [(97, "m1", "Added.*Asleep"), (76, "m0", "Asleep.*Added")])
def test_where_there_is_an_activator_servings_sleep_and_wake(seed: int, serving: str, course: str) -> None:
    told: list[str] = []
    assert play(draw(seed), tell=told.append).violation is None
    assert re.search(course, " ".join(re.findall(f"'{serving}': '([A-Za-z]+)'", " ".join(told))))
