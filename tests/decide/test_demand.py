"""The demand rule: how many replicas a load asks for, and when one less will do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpupack.decide.demand import Basis, Demand, ask
from gpupack.facts.interpretation import EngineFacts, Facts, Gap, Traffic, interpret
from gpupack.facts.observation import Cause, Missing, Phase
from gpupack.facts.serving import Serving
from gpupack.units import Seconds

from ..strategies import gpu, serving
from .world import World

MOST = 16
PER_REPLICA = 10.0
NOTHING = Missing(cause=Cause.UNREACHABLE, origin="vllm")


def capacity(replicas: int) -> float:
    """Each replica on a crowded GPU finishes a little less than the one before: 10, 19, 27, ... a second."""
    return sum(PER_REPLICA - 1.0 * number for number in range(replicas))


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
