"""How long what was taken back is remembered, and what makes it another question."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpupack.decide.board import Board
from gpupack.decide.undone import forget, remembered
from gpupack.facts.experiment import Compared, Inputs, Undone
from gpupack.facts.observation import Observation, Phase
from gpupack.units import PerSecond, Seconds

from ..strategies import NOON, key
from .boards import A, board_on, seen, with_placement, with_pod

CHAT = key("chat")
AT = Seconds(NOON - 400.0)
WORLD = "gpus: {a: , b: }\nservings: {chat: {batch: 64}}\nreplicas: [{serving: chat, gpu: a, count: 2, arrivals: %s}]"


def undone(inputs: Inputs | None = None, *, until: float = 60.0, at: Seconds = AT) -> Undone:
    return Undone(
        serving=CHAT, model="meta-llama/Llama-3.2-1B", gpu_kind="H100-80GB", neighbours="none", at=at,
        until=Seconds(NOON + until), inputs=inputs,
        compared=Compared(what="gain", subject="GPU", predicted=0.5, measured=-0.1, unit="ratio"),
    )  # fmt: skip


def after(observation: Observation, *each: Undone) -> list[Undone]:
    board = board_on(observation)
    board.undone = list(each)
    forget(board)
    return board.undone


def inputs(rate: float, given: float = 512.0, made: float = 256.0) -> Inputs:
    return Inputs(rate=PerSecond(rate), input_mean=given, output_mean=made)


@pytest.mark.parametrize(("until", "kept"), [(0.0, False), (1.0, True)])
def test_it_is_forgotten_at_its_time(until: float, kept: bool) -> None:
    assert bool(after(seen(WORLD % 20), undone(until=until))) is kept


def test_it_is_forgotten_with_its_serving() -> None:
    observation = seen(WORLD % 20)
    assert after(replace(observation, servings=()), undone()) == []


def test_what_it_depended_on_is_noted_once_over_all_engines_of_the_serving() -> None:
    [noted] = after(seen(WORLD % 20), undone())
    assert noted.inputs == inputs(40.0)
    [stays] = after(seen(WORLD % 21), noted)
    assert stays.inputs == inputs(40.0)
    [slow] = after(seen(WORLD % 0.2), undone())
    assert slow.inputs == inputs(0.4)
    [idle] = after(seen(WORLD % 0), undone())
    assert idle.inputs == inputs(0.0, 0.0, 0.0)


def test_engines_of_two_shapes_are_counted_once_each() -> None:
    observation = seen(WORLD % 20)
    shape = replace(observation.replicas[1].shape, max_num_seqs=32)
    [noted] = after(with_pod(with_placement(observation, 1, shape=shape), 1, shape=shape), undone())
    assert noted.inputs == inputs(40.0)


@pytest.mark.parametrize(("seconds", "noted"), [(119.0, False), (120.0, True)])
def test_the_first_window_after_the_warm_up_is_the_first_that_counts(seconds: float, noted: bool) -> None:
    [found] = after(seen(WORLD % 20), undone(at=Seconds(NOON - seconds)))
    assert (found.inputs is not None) is noted


def unsettled() -> list[Observation]:
    world = seen(WORLD % 20)
    assert world.plan is not None
    return [
        with_pod(world, 1, phase=Phase.STARTING, ready_at=None),
        with_pod(world, 1, template_hash="template01"),
        replace(world, plan=replace(world.plan, placements=world.plan.placements[:1])),
        replace(world, plan=replace(world.plan, placements=()), replicas=()),
        replace(world, engines=()),
    ]


@pytest.mark.parametrize("number", range(5))
def test_while_the_set_moves_or_cannot_be_read_nothing_is_noted_and_nothing_forgotten(number: int) -> None:
    assert after(unsettled()[number], undone()) == [undone()]
    assert after(unsettled()[number], undone(inputs(1.0))) == [undone(inputs(1.0))]


@pytest.mark.parametrize(
    ("was", "now", "kept"),
    [
        (60.0, 60.0, True),
        (50.0, 60.0, True),  # a fifth more, and no more than that
        (49.9, 60.0, False),
        (76.0, 60.0, False),
        (1.0, 1.4, True),  # few requests: within three deviations of chance
        (1.0, 1.5, False),
        (0.0, 0.0, True),
        (0.0, 10.0, False),
        (10.0, 0.0, False),
        (0.0, 0.5, False),
        (0.01, 0.0, True),  # not one request in a window
    ],
)
def test_a_load_that_changed_beyond_chance_asks_the_question_anew(was: float, now: float, kept: bool) -> None:
    assert bool(after(seen(WORLD % (now / 2)), undone(inputs(was)))) is kept


@pytest.mark.parametrize(
    ("was", "rate", "kept"),
    [
        (inputs(60.0, 640.0), 60.0, True),
        (inputs(60.0, 641.0), 60.0, False),
        (inputs(60.0, 512.0, 321.0), 60.0, False),
        (inputs(0.9, 200.0), 0.9, False),
        (inputs(60.0, 0.0), 60.0, False),
        (inputs(0.0, 100.0), 0.0, True),
        (inputs(60.0, 1.0), 60.0, False),
    ],
)
def test_lengths_that_changed_ask_it_anew_where_there_are_requests(was: Inputs, rate: float, kept: bool) -> None:
    assert bool(after(seen(WORLD % (rate / 2)), undone(was))) is kept


def test_of_two_that_are_alike_the_one_that_lasts_longer_is_told() -> None:
    board: Board = board_on(seen(WORLD % 20))
    board.undone = [undone(until=10.0), undone(until=90.0), undone(until=20.0)]
    board.undone = [replace(each, neighbours="2 x meta-llama/Llama-3.2-1B") for each in board.undone]
    others = {"model": "another", "gpu_kind": "L4", "neighbours": "3 x meta-llama/Llama-3.2-1B"}
    board.undone += [replace(board.undone[0], until=Seconds(NOON + 99.0), **{name: of}) for name, of in others.items()]
    found = remembered(board, CHAT, A, board.mix(A))
    assert found is not None
    assert found.until == NOON + 90.0
