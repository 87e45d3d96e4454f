"""What was seen and decided comes back from a line as it was, whatever it was."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpupack.decide.reconcile import reconcile
from gpupack.facts.estimate import Estimate, Source
from gpupack.facts.observation import Cause, Missing, Observation, Reading
from gpupack.plan import Outcome
from gpupack.trace import codec
from gpupack.units import Seconds

from ..scenarios.test_scenarios import STORIES, story_of

FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def estimates(draw: st.DrawFn) -> Estimate:
    low, value, high = sorted(draw(st.tuples(*[st.floats(allow_nan=False)] * 3)))
    return Estimate(value=value, low=low, high=high, source=draw(st.sampled_from(Source)))


def short(kind: Any) -> st.SearchStrategy[tuple[Any, ...]]:
    """Tuples of at most two: what is seen is deep, and a long one adds nothing but time."""
    parts = get_args(kind)
    if len(parts) == 2 and parts[1] is Ellipsis:
        return st.lists(st.from_type(parts[0]), max_size=2).map(tuple)
    return st.tuples(*(st.from_type(part) for part in parts))


st.register_type_strategy(Estimate, estimates())
st.register_type_strategy(tuple, short)


def came_back(value: Any, text: str) -> Any:
    """The value after it was written and read; the line must be JSON for everybody."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return codec.decoded(json.loads(text, parse_constant=refuse), type(value))


def same(left: Any, right: Any) -> bool:
    """Equal in value and type, and a number that is none equals itself."""
    if type(left) is not type(right):
        return False
    if dataclasses.is_dataclass(left):
        return all(same(getattr(left, each.name), getattr(right, each.name)) for each in dataclasses.fields(left))
    if isinstance(left, tuple):
        return len(left) == len(right) and all(same(*pair) for pair in zip(left, right, strict=True))
    return bool(left == right) or (isinstance(left, float) and math.isnan(left) and math.isnan(right))


@FEW
@given(st.from_type(Observation))
def test_any_observation_comes_back_as_it_was(observation: Observation) -> None:
    text = codec.to_json(observation)
    assert same(came_back(observation, text), observation)


@FEW
@given(st.from_type(Outcome))
def test_any_outcome_comes_back_as_it_was(outcome: Outcome) -> None:
    text = codec.to_json(outcome)
    assert same(came_back(outcome, text), outcome)


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_every_story_comes_back_as_it_was(path: Path) -> None:
    observation = story_of(path.read_text()).observation
    outcome = reconcile(observation)
    assert same(came_back(observation, codec.to_json(observation)), observation)
    assert same(came_back(outcome, codec.to_json(outcome)), outcome)
    assert same(reconcile(came_back(observation, codec.to_json(observation))), outcome)


NOT_THERE = Missing(cause=Cause.NO_SERIES, origin="new")


@dataclass(frozen=True, slots=True, kw_only=True)
class Younger:
    """As a later version may write a type: with a field more than the older lines have."""

    at: Seconds
    measured: Reading | Missing = NOT_THERE
    count: int = 3


def test_a_field_that_an_older_line_lacks_takes_its_default() -> None:
    assert codec.decoded({"at": 1.5}, Younger) == Younger(at=Seconds(1.5))


def test_a_field_that_todays_code_no_longer_has_is_passed_over() -> None:
    assert codec.decoded({"at": 1.5, "gone": [1, 2]}, Younger) == Younger(at=Seconds(1.5))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_number_that_is_not_finite_is_a_word(value: float) -> None:
    seen = Younger(at=Seconds(0.0), measured=Reading(value=value, at=Seconds(1.0), origin="x"))
    assert same(came_back(seen, codec.to_json(seen)), seen)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "'at' is missing"),
        ({"at": "soon"}, "at: 'soon' is not a number"),
        ({"at": 1.0, "count": "3"}, "count: '3' is not a int"),
        ({"at": 1.0, "count": True}, "count: True is not a int"),
        ({"at": 1.0, "measured": [1.0]}, "measured: [1.0] is neither a reading nor a missing one"),
        ([], ""),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(fields: object, said: str) -> None:
    with pytest.raises(codec.UnreadableError) as refused:
        codec.decoded(fields, Younger)
    assert said in str(refused.value)
