"""The demand rule: how many replicas a load asks for, and when one less will do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest

from gpupack.decide.demand import Basis, Demand, arrivals, ask, sleeps_on
from gpupack.facts.interpretation import EngineFacts, Facts, Gap, Held, Traffic, interpret
from gpupack.facts.observation import Cause, Missing, Phase
from gpupack.facts.placement import Plan, Record
from gpupack.facts.policy import Policy
from gpupack.facts.serving import Mode, Serving
from gpupack.units import Seconds

from ..kube.objects import BELIEF
from ..strategies import NOON, gpu, key, serving
from .world import World

MOST = 16
PER_REPLICA = 10.0
NOTHING = Missing(cause=Cause.UNREACHABLE, origin="vllm")


def capacity(replicas: int) -> float:
    """Each replica on a crowded GPU finishes a little less than the one before: 10, 19, 27, ... a second."""
    return sum(PER_REPLICA - 1.0 * number for number in range(replicas))


@lru_cache
def settled(replicas: int, **wishes: object) -> tuple[Serving, Facts]:
    """So many replicas that have been ready for long, with engines that say nothing yet."""
    asked = serving("chat", batch=64, least=replicas, **wishes)  # type: ignore[arg-type]
    world = World([gpu(0), gpu(1), gpu(2)], [asked]).run(150.0)
    assert sum(pod.phase is Phase.READY for pod in world.pods.values()) == replicas
    facts = interpret(world.observe())
    wanted = replace(asked, scaling=replace(asked.scaling, min_replicas=1))
    return wanted, replace(facts, servings={asked.key: wanted})


def engine(
    arrivals: float,
    *,
    long: float | None = None,
    peak: float | None = None,
    waiting: float = 0.0,
    before: float | None = None,
    running: float = 20.0,
    constant: bool = False,
    gaps: tuple[tuple[float, float], ...] = (),
    dispersion: float = 1.0,
) -> EngineFacts:
    def window(seconds: float, rate: float) -> Traffic:
        return Traffic(
            seconds=Seconds(seconds), arrivals=rate, finished=rate, generation_tokens=rate * 256, itl_mean=0.01,
            itl_p95=0.01, ttft_mean=0.01, ttft_p95=0.01, input_mean=512.0, output_mean=256.0,
            running_mean=running, inside_least=(running + waiting) * (1.0 if constant else 0.8),
            inside_most=running + waiting,
        )  # fmt: skip

    return EngineFacts(
        running=running,
        waiting=waiting,
        waiting_before=waiting if before is None else before,
        kv_blocks=100.0,
        windows=(window(30.0, arrivals), window(300.0, arrivals if long is None else long)),
        peak_arrivals=NOTHING if peak is None else peak,
        gaps=tuple(Gap(seconds=Seconds(seconds), arrivals=rate) for seconds, rate in gaps),
        dispersion=dispersion,
    )


def demand(replicas: int, *engines: EngineFacts | None, **wishes: object) -> Demand:
    asked, facts = settled(replicas, **wishes)
    names = sorted(facts.engines)
    return ask(
        asked,
        replace(facts, engines={name: each for name, each in zip(names, engines, strict=True) if each is not None}),
        replicas,
        capacity,
        MOST,
    )


def test_utilisation_up_to_the_target_asks_for_nothing() -> None:
    found = demand(1, engine(8.5))
    assert (found.wanted, found.basis) == (1, Basis.ARRIVALS)
    assert found.utilization == pytest.approx(0.85)


def test_utilisation_above_the_target_asks_for_one_more() -> None:
    assert demand(1, engine(8.6)).wanted == 2


def test_the_larger_of_the_windows_asks() -> None:
    assert demand(1, engine(2.0, long=8.6)).wanted == 2


def test_a_step_of_the_load_asks_before_it_fills_a_window_if_chance_cannot_be_it() -> None:
    found = demand(1, engine(8.0, gaps=((2.0, 22.0), (2.0, 22.0))))
    assert (found.wanted, found.look_again) == (2, False)
    assert found.rate == pytest.approx(22.0 - 3.0 * (22.0 / 4.0) ** 0.5)
    assert demand(1, engine(8.0, gaps=((2.0, 12.0), (2.0, 12.0)))).wanted == 1


def test_what_came_in_one_gap_alone_is_looked_at_again_and_once_more_if_it_stays_likely() -> None:
    burst = demand(1, engine(5.0, gaps=((2.0, 40.0), (2.0, 5.0))))
    assert (burst.wanted, burst.look_again) == (1, True)
    gone = demand(1, engine(5.0, gaps=((0.5, 6.0), (2.0, 40.0))))
    assert (gone.wanted, gone.look_again) == (1, False)
    unsure = demand(1, engine(5.0, gaps=((0.5, 16.0), (2.0, 40.0))))
    assert (unsure.wanted, unsure.look_again) == (1, True)
    twice = demand(1, engine(5.0, gaps=((0.5, 16.0), (0.5, 16.0))))
    assert (twice.wanted, twice.look_again) == (1, False)
    still = demand(1, engine(5.0, gaps=((0.5, 40.0), (2.0, 40.0))))
    assert (still.wanted > 1, still.look_again) == (True, False)


def test_a_stream_that_always_comes_in_bursts_must_rise_further_to_be_a_step() -> None:
    gaps = ((2.0, 30.0), (2.0, 30.0))
    assert demand(1, engine(8.0, gaps=gaps, dispersion=16.0)).wanted == 1
    assert demand(1, engine(8.0, gaps=gaps, dispersion=0.1)).rate == demand(1, engine(8.0, gaps=gaps)).rate


def test_chance_is_smaller_for_many_engines_together() -> None:
    gaps = ((2.0, 14.0), (2.0, 14.0))
    assert demand(1, engine(8.0, gaps=gaps)).wanted == 1
    assert demand(2, engine(8.0, gaps=gaps), engine(8.0, gaps=gaps)).wanted > 2


def test_what_moved_to_a_replica_that_has_just_come_is_not_counted_twice() -> None:
    old, new = engine(6.0, long=9.0), engine(6.0)
    new = replace(new, windows=tuple(replace(each, seconds=Seconds(15.0)) for each in new.windows))
    assert demand(2, old, new).rate == pytest.approx(9.0 + 6.0 * 15 / 300)


def test_a_queue_asks_for_what_drains_it_in_time() -> None:
    assert demand(1, engine(8.0, waiting=30.0)).wanted == 2


def test_a_large_load_asks_for_the_smallest_count_that_carries_it() -> None:
    found = demand(2, engine(15.0), engine(15.0))
    assert capacity(found.wanted) >= 30.0 / 0.85 > capacity(found.wanted - 1)


def test_more_waiting_than_a_batch_at_two_scrapes_asks_at_once() -> None:
    assert demand(1, engine(0.1, waiting=65.0, running=64.0)).wanted == 2
    assert demand(1, engine(0.1, waiting=65.0, before=10.0, running=64.0)).wanted == 1


def test_a_long_queue_that_falls_fast_enough_asks_for_no_help() -> None:
    assert demand(1, engine(0.1, waiting=80.0, before=200.0, running=64.0)).wanted == 1
    assert demand(1, engine(0.1, waiting=80.0, before=81.0, running=64.0)).wanted == 2


def test_one_less_is_enough_only_if_the_survivors_hold_the_peak() -> None:
    assert demand(2, engine(3.0, peak=4.2), engine(3.0, peak=4.2)).spare
    assert not demand(2, engine(3.0, peak=4.4), engine(3.0, peak=4.2)).spare


def test_a_lull_gives_up_no_replica_that_chance_would_bring_back() -> None:
    """At 6.8 requests/s in 300 s, 30 s show 8.3 now and then (three standard errors of both windows); 8.5 is what one
    engine should carry."""
    assert demand(2, engine(3.4, peak=3.5), engine(3.4, peak=3.5)).spare
    assert not demand(2, engine(3.6, peak=3.7), engine(3.6, peak=3.7)).spare
    assert not demand(2, engine(3.4, peak=3.5, dispersion=4.0), engine(3.4, peak=3.5, dispersion=4.0)).spare


def test_a_mean_that_was_watched_for_a_short_time_may_be_of_chance_itself() -> None:
    def young(rate: float) -> EngineFacts:
        seen = engine(rate, peak=rate)
        return replace(seen, windows=tuple(replace(each, seconds=Seconds(30.0)) for each in seen.windows))

    assert not demand(2, young(3.4), young(3.4)).spare


def test_a_peak_that_was_not_watched_keeps_every_replica() -> None:
    assert not demand(2, engine(0.1, peak=0.1), engine(0.1)).spare


def test_clients_of_a_constant_number_ask_for_a_slot_each() -> None:
    constant = engine(20.0, running=60.0, constant=True)
    assert (demand(1, constant).basis, demand(1, constant).wanted) == (Basis.CLOSED_LOOP, 1)
    queued = engine(20.0, running=64.0, waiting=40.0, constant=True)
    assert demand(1, queued).wanted == 2


def test_a_few_constant_clients_are_known_by_all_engines_together() -> None:
    few = engine(4.0, peak=4.0, running=5.0, constant=True)
    assert demand(2, few, few).basis is Basis.CLOSED_LOOP
    assert demand(1, few).basis is Basis.ARRIVALS


def test_clients_who_wait_for_a_slow_engine_ask_more_often_once_it_is_gone() -> None:
    like = engine(3.5, peak=3.5, running=10.0, constant=True)
    assert demand(2, like, like).spare
    quick, slow = (engine(rate, peak=rate, running=10.0, constant=True) for rate in (6.0, 1.0))
    assert not demand(2, quick, slow).spare


def test_a_count_that_was_constant_over_a_few_scrapes_is_chance() -> None:
    constant = engine(20.0, running=60.0, constant=True)
    young = replace(constant, windows=tuple(replace(each, seconds=Seconds(18.0)) for each in constant.windows))
    assert demand(1, young).basis is Basis.ARRIVALS


def test_a_missing_reading_is_named_and_asks_for_nothing() -> None:
    found = demand(2, engine(100.0, peak=100.0), None)
    assert (found.basis, found.wanted, found.spare) == (Basis.MISSING, 2, False)
    assert len(found.missing) == 1


def test_a_manual_count_is_the_demand() -> None:
    asked = serving("chat", replicas=5)
    _, facts = settled(1)
    found = ask(asked, facts, 2, capacity, MOST)
    assert (found.basis, found.wanted, found.floor, found.spare) == (Basis.MANUAL, 5, 5, False)


def test_what_comes_to_a_manual_count_is_what_its_neighbours_are_promised_beside() -> None:
    _, facts = settled(1)
    seen = replace(facts, engines=dict.fromkeys(facts.engines, engine(80.0)))
    asked = serving("chat", replicas=5, rate=5.0)
    assert ask(asked, seen, 1, capacity, MOST).rate == pytest.approx(80.0)
    assert ask(asked, replace(facts, engines={}), 1, capacity, MOST).rate is None


def test_before_any_reading_the_declared_rate_sets_the_first_count() -> None:
    _, facts = settled(1)
    blank = replace(facts, replicas_of={}, engines={})
    assert ask(serving("chat", rate=20.0), blank, 0, capacity, MOST).wanted == 3
    assert ask(serving("chat"), blank, 0, capacity, MOST).wanted == 1
    assert ask(serving("chat", least=2), blank, 0, capacity, MOST).wanted == 2


def test_a_load_without_end_asks_for_one_more_than_can_be_had() -> None:
    assert demand(1, engine(8.0, waiting=1e6, running=64.0)).wanted == MOST + 1


# Each small promise by itself: engines as they are given, of replicas that are as they are given


def asked_of(
    *engines: EngineFacts | None,
    wish: Serving | None = None,
    planned: int | None = None,
    able: Callable[[int], float] = capacity,
    most: int = MOST,
    replicas: tuple[dict[str, Any], ...] = (),
    **facts: Any,
) -> Demand:
    """What is asked for where so many replicas have these engines; `replicas` changes them one by one."""
    base, known = settled(max(1, len(engines)))
    asked = wish or base
    pods = known.replicas_of[base.key][: len(engines)]
    changed = tuple(replace(each, **fields) for each, fields in zip(pods, (*replicas, *[{}] * len(pods)), strict=False))
    seen = {each.name: engine for each, engine in zip(pods, engines, strict=True) if engine is not None}
    given = replace(known, servings={asked.key: asked}, replicas_of={asked.key: changed}, engines=seen, **facts)
    return ask(asked, given, len(engines) if planned is None else planned, able, most)


def chat(**wishes: Any) -> Serving:
    return serving("chat", batch=64, **wishes)


def short(seen: EngineFacts, *seconds: float) -> EngineFacts:
    """The same, watched for so long in each window."""
    windows = zip(seen.windows, seconds, strict=True)
    return replace(seen, windows=tuple(replace(each, seconds=Seconds(length)) for each, length in windows))


QUIET = engine(0.1, peak=0.1)
YOUNG: dict[str, Any] = {"ready_at": NOON + 149.0}
"""Of a replica that has just become ready."""


@pytest.mark.parametrize(("planned", "spare"), [(1, False), (2, False), (3, True)])
def test_of_a_manual_count_only_what_is_beyond_it_can_go(planned: int, spare: bool) -> None:
    assert asked_of(wish=chat(replicas=2), planned=planned).spare is spare


@pytest.mark.parametrize(
    ("engines", "declared", "rate"),
    [
        ((engine(3.0), None), 5.0, 5.0),
        ((engine(3.0), None), 1.0, 3.0),
        ((engine(3.0), None), None, 3.0),
        ((engine(0.2), None), None, 0.2),
        ((engine(1.0), engine(1.0)), 5.0, 2.0),
        ((engine(0.2), engine(0.2)), None, 0.4),
        ((engine(3.0), replace(engine(4.0), waiting=NOTHING)), None, 3.0),
        ((replace(engine(3.0), waiting=NOTHING),), 5.0, None),
    ],
)
def test_the_declared_rate_stands_in_only_while_not_all_engines_are_read(
    engines: tuple[EngineFacts | None, ...], declared: float | None, rate: float | None
) -> None:
    found = asked_of(*engines, wish=chat(replicas=2, rate=declared)).rate
    assert found == (None if rate is None else pytest.approx(rate))


def test_a_replica_that_starts_is_not_one_that_cannot_be_read() -> None:
    starting: dict[str, Any] = {"phase": Phase.STARTING}
    assert asked_of(engine(3.0), None, wish=chat(replicas=2, rate=5.0), replicas=({}, starting)).rate == 3.0
    for fields in (starting, {"in_service": False}):
        found = asked_of(engine(3.0), None, replicas=({}, fields))
        assert (found.basis, found.missing) == (Basis.ARRIVALS, ())


# Sleep


SLEEPER = chat(least=0, idle=100.0)
IDLE = replace(engine(0.0, peak=0.0, running=0.0), idle=100.0)


def held(requests: float | Missing) -> dict[str, Any]:
    return {"held": {SLEEPER.key: Held(requests=requests, since=None)}}


def slept(*reasons: str, by: str = "chat") -> dict[str, Any]:
    records = tuple(
        Record(
            serving=key(by), reason=each, subject="", observed=0.0, limit=0.0, unit="", at_least=False, wanted=0,
            planned=0, message="", at=NOON,
        )
        for each in reasons
    )  # fmt: skip
    return {"plan": Plan(records=records)}


@pytest.mark.parametrize(
    ("wish", "facts", "sleeps"),
    [
        (SLEEPER, held(0.0), True),
        (SLEEPER, held(NOTHING), True),
        (SLEEPER, held(1.0), False),
        (SLEEPER, held(2.0), False),
        (chat(least=0, replicas=0), held(0.0), False),
        (chat(least=1), held(0.0), False),
        (chat(least=0, mode=Mode.SUSPEND), held(0.0), False),
        (SLEEPER, {"plan": None}, False),
        (SLEEPER, slept("Asleep"), True),
        (SLEEPER, slept("Added", "Asleep"), True),
        (SLEEPER, slept("Added"), False),
        (SLEEPER, slept("Asleep", by="docs"), False),
    ],
)
def test_one_without_a_replica_sleeps_on_unless_somebody_waits(
    wish: Serving, facts: dict[str, Any], sleeps: bool
) -> None:
    found = asked_of(wish=wish, planned=0, **facts)
    assert (found.basis is Basis.ASLEEP) is sleeps
    if sleeps:
        assert (found.wanted, found.floor, found.spare) == (0, 0, False)
    assert asked_of(wish=wish, planned=1, **facts).basis is not Basis.ASLEEP


@pytest.mark.parametrize(
    ("idle", "facts", "gives_up"),
    [
        (100.0, held(0.0), True),
        (99.0, held(0.0), False),
        (NOTHING, held(0.0), False),
        (100.0, held(1.0), False),
        (100.0, held(NOTHING), False),
        (100.0, {}, False),
    ],
)
def test_the_last_replica_may_go_when_it_is_known_to_be_idle_and_nobody_waits(
    idle: float | Missing, facts: dict[str, Any], gives_up: bool
) -> None:
    found = asked_of(replace(IDLE, idle=idle), wish=SLEEPER, **facts)
    assert found.spare is gives_up
    assert not asked_of(replace(IDLE, idle=idle), wish=chat(least=1, idle=100.0), **facts).spare


def test_the_last_replica_stays_beside_one_that_leaves_is_new_or_is_busy() -> None:
    assert not asked_of(IDLE, IDLE, wish=SLEEPER, planned=1, replicas=({}, {"deletion_at": NOON}), **held(0.0)).spare
    assert not asked_of(IDLE, None, wish=SLEEPER, planned=1, replicas=({}, YOUNG), **held(0.0)).spare
    assert not asked_of(IDLE, replace(IDLE, idle=9.0), wish=SLEEPER, planned=1, **held(0.0)).spare
    assert not asked_of(replace(engine(9.0), idle=100.0), wish=SLEEPER, planned=2, **held(0.0)).spare


# Before any reading


@pytest.mark.parametrize(
    ("declared", "waiting", "least", "wanted"),
    [
        (None, None, 0, 1),
        (None, 0.0, 0, 1),
        (None, 600.0, 0, 3),
        (None, 570.0, 0, 2),
        (None, 600.0, 1, 1),
        (1.0, 570.0, 0, 3),
        (20.0, None, 0, 3),
        (16.14, None, 0, 2),
    ],
)
def test_what_is_declared_and_what_is_held_set_the_first_count(
    declared: float | None, waiting: float | None, least: int, wanted: int
) -> None:
    """Nineteen a second are two engines' work, more is three's; a queue must be gone in 30 s."""
    facts = {} if waiting is None else held(waiting)
    found = asked_of(wish=chat(least=least, rate=declared), planned=1, able=capacity, **facts)
    assert (found.basis, found.wanted, found.spare) == (Basis.DECLARED, wanted, False)


def test_the_first_count_is_one_more_than_can_be_had_at_most() -> None:
    assert asked_of(wish=chat(rate=1000.0), planned=0, most=2).wanted == 3
    assert asked_of(wish=chat(rate=1000.0), planned=4, most=2).wanted == 5
    assert asked_of(wish=chat(least=0), planned=1, able=lambda count: 0.01 * count, **held(1.0)).wanted == 4


# New replicas, and those that leave


def test_a_replica_that_has_just_come_is_waited_for_and_none_goes_meanwhile() -> None:
    lone = asked_of(QUIET, QUIET, None, replicas=({}, {}, YOUNG))
    assert (lone.basis, lone.missing, lone.spare) == (Basis.ARRIVALS, (), False)
    assert asked_of(QUIET, QUIET, short(QUIET, 10.0, 10.0), replicas=({}, {}, YOUNG)).spare is False
    assert asked_of(QUIET, QUIET, QUIET).spare


BURST = engine(5.0, gaps=((2.0, 40.0), (2.0, 5.0)))


def test_only_where_one_more_can_be_added_is_an_engine_looked_at_again() -> None:
    assert asked_of(BURST).look_again
    assert not asked_of(BURST, most=1).look_again
    assert not asked_of(BURST, planned=2).look_again
    assert not asked_of(BURST, None, replicas=({}, YOUNG)).look_again
    assert not asked_of(engine(5.0, gaps=((2.0, 9.0), (2.0, 5.0)))).look_again


@pytest.mark.parametrize(
    ("gaps", "again"),
    [
        (((2.0, 14.0), (2.0, 0.0)), True),
        (((1.0, 14.0), (2.0, 0.0)), True),
        (((0.8, 17.5), (2.0, 0.0)), False),
        (((0.5, 16.0), (1.5, 16.0)), True),
    ],
)
def test_a_gap_of_half_a_period_is_long_enough_to_be_looked_at_by_itself(
    gaps: tuple[tuple[float, float], ...], again: bool
) -> None:
    assert asked_of(engine(5.0, gaps=gaps)).look_again is again


def test_one_short_gap_makes_all_of_them_short() -> None:
    long, brief = engine(4.0, gaps=((2.0, 12.0), (2.0, 0.0))), engine(4.0, gaps=((0.5, 12.0), (2.0, 0.0)))
    assert not asked_of(long, brief).look_again
    both = engine(4.0, gaps=((0.5, 12.0), (0.5, 12.0)))
    assert not asked_of(both, engine(4.0, gaps=((0.5, 12.0), (2.0, 12.0)))).look_again
    assert not asked_of(engine(0.1, gaps=((0.5, 0.0), (0.5, 0.0))), able=lambda count: 0.5 * count).look_again


def test_each_of_the_two_gaps_must_show_a_step() -> None:
    assert asked_of(engine(5.0, gaps=((2.0, 5.0), (2.0, 40.0)))).wanted == 1


# Rates


def test_a_window_that_is_too_short_or_cannot_be_read_does_not_count() -> None:
    assert asked_of(short(engine(2.0, long=9.0), 30.0, 14.0)).rate == pytest.approx(2.0)
    assert asked_of(short(engine(2.0, long=9.0), 30.0, 15.0)).rate == pytest.approx(9.0)
    first, second = engine(2.0).windows
    unread = replace(engine(2.0, peak=2.0), windows=(first, replace(second, arrivals=NOTHING)))
    assert asked_of(unread, unread).rate == pytest.approx(4.0)
    assert asked_of(replace(unread, windows=(first,)), replace(unread, windows=(first,))).rate == pytest.approx(4.0)
    assert arrivals([], Policy()) == 0.0


@pytest.mark.parametrize(("each", "spare"), [(3.49, True), (3.5, False)])
def test_chance_is_that_of_the_shortest_and_the_longest_window(each: float, spare: bool) -> None:
    """At 6.98 requests/s the next 30 s show 8.5 by three standard errors of 30 s and of 300 s."""
    assert asked_of(engine(each, peak=each), engine(each, peak=each)).spare is spare


# What one less must hold


def test_one_less_than_the_least_count_is_never_enough() -> None:
    assert asked_of(QUIET, QUIET).spare
    assert not asked_of(QUIET, QUIET, wish=chat(least=2)).spare


def test_a_model_that_is_being_learnt_must_hold_with_more_to_spare() -> None:
    just = engine(3.45, peak=3.45)
    assert asked_of(just, just).spare
    assert not asked_of(just, just, wish=replace(chat(), learned=(BELIEF,))).spare
    calm = engine(3.0, peak=3.0)
    assert asked_of(calm, calm, wish=replace(chat(), learned=(BELIEF,))).spare


def test_while_a_queue_piles_up_none_is_spare() -> None:
    found = asked_of(engine(0.1, peak=0.1, waiting=65.0, running=64.0), QUIET)
    assert (found.wanted, found.spare) == (3, False)


def test_what_cannot_finish_anything_asks_for_no_more_and_has_no_utilisation() -> None:
    none = asked_of(engine(5.0), able=lambda count: 0.0 * count)
    assert (none.wanted, none.utilization) == (1, None)
    slow = asked_of(engine(0.8), able=lambda count: 0.5 * count)
    assert (slow.wanted, slow.utilization) == (2, pytest.approx(1.6))


# Clients of a constant number


def constant(clients: float, rate: float = 1.0, peak: float | None = None) -> EngineFacts:
    return engine(rate, peak=rate if peak is None else peak, running=clients, constant=True)


@pytest.mark.parametrize(
    ("engines", "spare"),
    [
        ((constant(16.0), constant(16.0)), True),
        ((constant(16.0), constant(17.0)), False),
        ((constant(16.0, peak=1.04), constant(16.0, peak=1.04)), True),
        ((constant(16.0, peak=1.06), constant(16.0, peak=1.06)), False),
        ((constant(32.0),), False),
    ],
)
def test_one_of_constant_clients_goes_when_half_of_what_is_left_holds_them_and_their_peak_is_their_mean(
    engines: tuple[EngineFacts, ...], spare: bool
) -> None:
    found = asked_of(*engines)
    assert (found.basis, found.spare, found.look_again) == (Basis.CLOSED_LOOP, spare, False)


def test_while_a_replica_is_new_none_of_constant_clients_goes() -> None:
    three = (constant(16.0), constant(16.0), None)
    assert not asked_of(*three, replicas=({}, {}, YOUNG)).spare


def test_a_constant_needs_ten_scrapes_of_at_least_three_that_differ_by_one_or_two_per_cent() -> None:
    def basis(*engines: EngineFacts) -> Basis:
        return asked_of(*engines).basis

    def between(least: float, most: float) -> EngineFacts:
        windows = (replace(each, inside_least=least, inside_most=most) for each in constant(20.0).windows)
        return replace(constant(20.0), windows=tuple(windows))

    assert basis(short(constant(20.0), 20.0, 20.0)) is Basis.CLOSED_LOOP
    assert basis(short(constant(20.0), 19.0, 19.0)) is Basis.ARRIVALS
    assert basis(between(19.0, 20.0)) is basis(between(98.0, 100.0)) is Basis.CLOSED_LOOP
    assert basis(between(18.9, 20.0)) is basis(between(97.9, 100.0)) is Basis.ARRIVALS
    assert basis(between(8.0, 8.0)) is basis(between(3.0, 3.0), between(5.0, 5.0)) is Basis.CLOSED_LOOP
    assert basis(between(7.0, 7.0)) is basis(between(2.0, 2.0), between(9.0, 9.0)) is Basis.ARRIVALS
    windows = (replace(each, inside_most=NOTHING) for each in constant(20.0).windows)
    assert basis(replace(constant(20.0), windows=tuple(windows))) is Basis.ARRIVALS


def test_slots_are_those_of_the_largest_batch() -> None:
    shape = settled(1)[1].replicas_of[key("chat")][0].shape
    one, half = ({"shape": replace(shape, max_num_seqs=batch)} for batch in (1, 32))
    assert asked_of(constant(8.0), replicas=(one,)).wanted == 8
    assert asked_of(constant(30.0), constant(30.0), planned=1, replicas=({}, half)).wanted == 1


def test_the_quickest_of_late_is_how_often_constant_clients_would_ask() -> None:
    like = engine(3.0, peak=3.0, running=10.0, constant=True)
    first, last = (like.windows[0], like.windows[-1])
    seen = replace(like, windows=(replace(first, inside_most=5.0), replace(first, inside_most=5.0), last))
    assert asked_of(seen, seen).spare, "clients are counted over the longest window"
    quick = engine(4.9, long=3.0, peak=3.0, running=10.0, constant=True)
    slow = engine(1.0, long=3.0, peak=3.0, running=10.0, constant=True)
    assert not asked_of(quick, slow).spare


def test_a_count_without_its_least_is_not_constant() -> None:
    windows = (replace(each, inside_least=NOTHING) for each in constant(20.0).windows)
    assert asked_of(replace(constant(20.0), windows=tuple(windows))).basis is Basis.ARRIVALS


# Queues


def test_survivors_must_drain_the_queue_as_well() -> None:
    short_queue, long_queue = (engine(3.0, peak=3.0, waiting=each) for each in (1.0, 60.0))
    assert asked_of(short_queue, short_queue).spare
    assert not asked_of(long_queue, long_queue).spare
    leaves = engine(0.0)
    carried = engine(3.0, peak=4.2)
    assert asked_of(carried, carried, leaves, planned=2, replicas=({}, {}, {"deletion_at": NOON})).spare


def test_a_queue_asks_for_exactly_what_drains_it() -> None:
    assert asked_of(engine(0.0, waiting=810.0, running=64.0)).wanted == 3


PILED = engine(0.1, peak=0.1, waiting=65.0, running=64.0)


def since(seconds: float) -> dict[str, Any]:
    """Ready for so long."""
    return {"ready_at": NOON + 150.0 - seconds}


@pytest.mark.parametrize(
    ("engines", "replicas", "wanted"),
    [
        ((PILED, None), ({}, {"phase": Phase.STARTING}), 2),
        ((PILED, QUIET), ({}, since(29.0)), 2),
        ((PILED, QUIET), ({}, since(30.0)), 3),
        ((PILED,), (since(29.0),), 2),
        ((replace(QUIET, waiting=NOTHING), PILED), (since(33.0), {}), 3),
        ((replace(QUIET, waiting_before=NOTHING), PILED), (), 3),
        ((replace(PILED, waiting=64.0, waiting_before=64.0),), (), 1),
        ((replace(PILED, waiting=80.0, waiting_before=84.0),), (), 2),
        ((replace(PILED, waiting=90.0, waiting_before=96.0),), (), 1),
    ],
)
def test_a_queue_that_stays_asks_for_one_more_when_no_help_is_on_its_way(
    engines: tuple[EngineFacts | None, ...], replicas: tuple[dict[str, Any], ...], wanted: int
) -> None:
    """Ninety requests that fall by six in two seconds are gone in thirty."""
    assert asked_of(*engines, planned=len(engines), replicas=replicas).wanted == wanted


def test_a_short_queue_of_a_small_engine_that_falls_by_one_a_second_needs_no_help() -> None:
    shape = replace(settled(1)[1].replicas_of[key("chat")][0].shape, max_num_seqs=16)
    queue = engine(0.1, waiting=20.0, before=22.0, running=16.0)
    assert asked_of(queue, replicas=({"shape": shape},)).wanted == 1


# What is missing


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        (None, "no readings"),
        (replace(engine(1.0), waiting=NOTHING), "vllm Unreachable"),
        (replace(engine(1.0), windows=()), "the window is too short"),
        (short(engine(1.0), 10.0, 10.0), "the window is too short"),
    ],
)
def test_what_is_missing_is_named_with_its_replica(seen: EngineFacts | None, told: str) -> None:
    found = asked_of(seen)
    assert found.basis is Basis.MISSING
    assert [each.partition(": ")[2] for each in found.missing] == [told]


def test_only_the_shortest_window_must_be_there() -> None:
    first, second = engine(1.0).windows
    blind = replace(first, arrivals=NOTHING)
    assert asked_of(replace(engine(1.0), windows=(blind, second))).missing[0].endswith("vllm Unreachable")
    brief = replace(first, seconds=Seconds(10.0))
    said = asked_of(replace(engine(1.0), windows=(brief, replace(second, arrivals=NOTHING)))).missing
    assert said[0].endswith("the window is too short")


def test_a_replica_is_new_until_its_first_window_could_be_read() -> None:
    told_after = settled(1)[1].policy.rates_told_after
    assert asked_of(None, replicas=(since(told_after - 1.0),)).basis is Basis.DECLARED
    assert asked_of(None, replicas=(since(told_after),)).basis is Basis.MISSING
    assert asked_of(None, replicas=({"ready_at": None, "created_at": NOON + 149.0},)).basis is Basis.DECLARED


def test_a_count_that_a_person_keeps_never_sleeps() -> None:
    _, facts = settled(1)
    known = replace(facts, **held(0.0))
    assert sleeps_on(SLEEPER, known)
    assert not sleeps_on(chat(least=0, replicas=0), known)
