"""A sweep's next step follows from its results alone, so it can end anywhere and go on."""

from __future__ import annotations

from gpupack.facts.measured import Results
from gpupack.facts.serving import ProfilePoint
from gpupack.profiling.sweep import ATTEMPTS, Run, added, choice, course, ladder
from gpupack.units import Seconds


def point(limit: int, tokens: float, itl_ms: float = 10.0) -> ProfilePoint:
    return ProfilePoint(max_num_seqs=limit, total_tokens_per_second=tokens, itl_mean=Seconds(itl_ms / 1000))


def swept(limits: tuple[int, ...], results: Results, answers: dict[int, ProfilePoint | str]) -> list[Run]:
    """The runs that are made until nothing is left; a limit without an answer fails."""
    made = []
    while (step := course(limits, results).next) is not None:
        made.append(step)
        assert len(made) < 50, "it must come to an end"
        results = added(results, step, answers.get(step.clients, "it broke"))
    return made


GROWING = {limit: point(limit, 100.0 * limit, 5.0 + 0.1 * limit) for limit in ladder(64)}


def test_the_ladder_doubles_and_ends_at_the_largest() -> None:
    assert ladder(64) == (1, 2, 4, 8, 16, 32, 64)
    assert ladder(48) == (1, 2, 4, 8, 16, 32, 48)
    assert ladder(1) == (1,)


def test_limits_rise_on_one_engine_and_the_choice_is_confirmed_by_one_of_its_own() -> None:
    made = swept((1, 32, 64), Results(), dict(GROWING))
    assert [(run.clients, run.engine_limit) for run in made] == [(1, 64), (32, 64), (64, 64), (64, 64)]
    assert [run.confirms for run in made] == [False, False, False, True]


def test_an_engine_that_cannot_be_started_again_is_not_confirmed() -> None:
    done = course((1, 2), Results(points=(GROWING[1], GROWING[2])), confirms=False)
    assert (done.next, done.settled, done.runs) == (None, 2, 2)


def test_a_point_that_fails_is_tried_once_more_and_then_given_up() -> None:
    answers: dict[int, ProfilePoint | str] = {limit: GROWING[limit] for limit in (1, 4, 8)}
    made = swept((1, 2, 4, 8), Results(), answers)
    assert [run.clients for run in made] == [1, 2, 2, 4, 8, 8]
    assert ATTEMPTS == 2


def test_two_limits_that_fail_end_the_sweep_and_a_confirmation_that_fails_too() -> None:
    made = swept((1, 2, 4, 8, 16), Results(), {1: GROWING[1]})
    assert [run.clients for run in made] == [1, 2, 2, 4, 4, 1]
    made = swept((1, 2), Results(points=(GROWING[1], GROWING[2])), {})
    assert [run.confirms for run in made] == [True, True]


def test_where_two_steps_in_a_row_bring_nothing_larger_limits_are_left_out() -> None:
    flat = {limit: point(limit, min(100.0 * limit, 810.0)) for limit in ladder(256)}
    made = swept(ladder(256), Results(), dict(flat))
    assert [run.clients for run in made if not run.confirms] == [1, 2, 4, 8, 16, 32]
    assert course(ladder(256), Results(points=tuple(flat[limit] for limit in ladder(32)))).plateau


def test_progress_counts_what_is_settled_of_what_will_be() -> None:
    begun = course((1, 2, 4), Results())
    assert (begun.settled, begun.runs) == (0, 4)
    after = course((1, 2, 4), added(Results(), Run(clients=1, engine_limit=4), GROWING[1]))
    assert (after.settled, after.runs) == (1, 4)


def test_it_goes_on_from_any_results_to_the_same_end() -> None:
    whole = swept((1, 2, 4, 8), Results(), dict(GROWING))
    results = Results()
    for taken, run in enumerate(whole):
        assert swept((1, 2, 4, 8), results, dict(GROWING)) == whole[taken:]
        results = added(results, run, GROWING[run.clients])


def test_the_choice_is_the_published_one_with_a_promise_of_twice_the_latency_at_32() -> None:
    runs = [point(1, 400.0, 4.0), point(32, 5700.0, 7.5), point(96, 9000.0, 13.9), point(256, 10800.0, 29.3)]
    assert choice(runs) == 96
    assert choice(runs[1:]) == 96
