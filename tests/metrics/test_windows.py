"""What samples over time say: rates and latencies over windows, and when they say nothing."""

from __future__ import annotations

import math
from array import array
from dataclasses import replace
from random import Random

import pytest

from gpupack.facts.observation import Cause, EngineWindow, Measured, Missing, Reading
from gpupack.metrics.prometheus import EnginePage, GpuPage, Histogram
from gpupack.metrics.windows import EngineHistory, ExporterHistory, Timing
from gpupack.units import Seconds

TIMING = Timing(
    windows=(Seconds(10.0), Seconds(60.0)), period=Seconds(2.0), stale_periods=3, peak_delay=Seconds(40.0)
)  # fmt: skip
BOUNDS = (0.004, 0.006, 0.008, math.inf)


def _histogram(each: float, count: float) -> Histogram:
    counts = array("d", (count if each <= bound else 0.0 for bound in BOUNDS))
    return Histogram(bounds=BOUNDS, counts=counts, total=each * count, count=count)


def _page(at: float, *, rate: float = 5.0, running: float = 20.0, waiting: float = 0.0) -> EnginePage:
    """An engine that has finished `rate` requests a second since 0, each of 100 tokens in and 50 out at 5 ms."""
    done = rate * at
    return EnginePage(
        running=running, waiting=waiting, kv_usage=0.5, kv_blocks=1000.0, finished=done, prompt_tokens=100 * done,
        generation_tokens=50 * done, preemptions=0.0, ttft=_histogram(0.005, done), itl=_histogram(0.005, 50 * done),
        input_length=_histogram(100.0, done), output_length=_histogram(50.0, done),
    )  # fmt: skip


def _watched(until: float, *, history: EngineHistory | None = None, since: float = 0.0) -> EngineHistory:
    history = history or EngineHistory()
    at = since
    while at <= until:
        history.add(at, _page(at), TIMING)
        at += TIMING.period
    return history


def _value(measured: Measured) -> float:
    assert isinstance(measured, Reading), measured
    return measured.value


def _cause(measured: Measured) -> Cause:
    assert isinstance(measured, Missing), measured
    return measured.cause


def test_gaps_are_those_between_the_last_three_scrapes() -> None:
    history = _watched(100.0)
    history.add(100.5, replace(_page(100.5), running=30.0), TIMING)
    last, before = history.seen("r", 100.5, TIMING).gaps
    assert (_value(last.arrivals), last.seconds) == (pytest.approx(5.0 + 10.0 / 0.5), 0.5)
    assert (_value(before.arrivals), before.seconds) == (pytest.approx(5.0), 2.0)
    assert _watched(2.0).seen("r", 2.0, TIMING).gaps == ()


def test_steps_are_judged_over_a_window_of_their_own() -> None:
    timing = replace(TIMING, judged=Seconds(30.0))
    history = EngineHistory()
    for number in range(60):
        history.add(2.0 * number, _page(2.0 * number, waiting=4.0 if number > 48 else 0.0), timing)
    judged = history.seen("r", 118.0, timing).judged
    assert judged is not None
    assert judged.seconds == pytest.approx(30.0, rel=0.1)
    assert _value(judged.waiting_least) == 0.0
    assert _watched(100.0).seen("r", 100.0, TIMING).judged is None


def test_dispersion_is_one_for_chance_more_for_bursts_and_does_not_know_the_last_gaps() -> None:
    def watched(batch: int, seed: int, last: float = 0.0) -> float:
        chance, history, done = Random(seed), EngineHistory(), 0.0
        for number in range(200):
            done += batch * sum(chance.random() < 0.05 for _ in range(200)) + (last if number >= 198 else 0.0)
            history.add(2.0 * number, replace(_page(0.0), finished=done), TIMING)
        return history.seen("r", 398.0, TIMING).dispersion

    seeds = range(20)
    assert sum(watched(1, seed) for seed in seeds) / 20 == pytest.approx(0.95, rel=0.15)
    assert sum(watched(8, seed) for seed in seeds) / 20 == pytest.approx(8 * 0.95, rel=0.15)
    assert watched(1, 7, last=500.0) == watched(1, 7)


def test_rates_latencies_and_lengths_come_from_the_engines_own_counters() -> None:
    seen = _watched(100.0).seen("r", 100.0, TIMING)
    assert [window.seconds for window in seen.windows] == [10.0, pytest.approx(60.0, rel=0.1)]
    for window in seen.windows:
        assert _value(window.arrivals) == pytest.approx(5.0)
        assert _value(window.finished) == pytest.approx(5.0)
        assert _value(window.prompt_tokens) == pytest.approx(500.0)
        assert _value(window.generation_tokens) == pytest.approx(250.0)
        assert _value(window.itl_mean) == pytest.approx(0.005)
        assert 0.004 < _value(window.itl_p95) <= 0.006
        assert _value(window.input_mean) == pytest.approx(100.0)
        assert _value(window.output_mean) == pytest.approx(50.0)
        assert _value(window.running_mean) == pytest.approx(20.0)
        assert _value(window.waiting_least) == 0.0


def test_a_window_is_never_shorter_than_asked_once_it_was_watched() -> None:
    for until in range(60, 400, 2):
        window = _watched(float(until)).seen("r", until, TIMING).windows[-1]
        assert 60.0 <= window.seconds <= 66.0 + TIMING.period


def test_arrivals_count_what_waits_and_runs_although_nothing_finished() -> None:
    history = EngineHistory()
    for at in range(0, 12, 2):
        history.add(at, replace(_page(0.0), running=float(min(at, 8)), waiting=float(max(0, 3 * at - 8))), TIMING)
    window = history.seen("r", 10.0, TIMING).windows[0]
    assert _value(window.finished) == 0.0
    assert _value(window.arrivals) == pytest.approx((8 + 22) / 10)


def test_an_engine_watched_for_less_than_two_periods_is_no_evidence() -> None:
    seen = _watched(2.0).seen("r", 2.0, TIMING)
    assert all(_cause(window.arrivals) is Cause.TOO_SHORT for window in seen.windows)
    assert _value(seen.running) == 20.0


def test_a_restart_begins_anew_instead_of_showing_negative_rates() -> None:
    history = _watched(100.0)
    history.add(102.0, _page(1.0), TIMING)
    history.add(104.0, _page(3.0), TIMING)
    history.add(106.0, _page(5.0), TIMING)
    seen = history.seen("r", 106.0, TIMING)
    assert _value(seen.windows[1].finished) == pytest.approx(5.0)
    assert seen.windows[1].seconds == 4.0
    assert _cause(seen.peak_arrivals) is Cause.TOO_SHORT


def test_the_peak_is_that_of_the_whole_delay_and_unknown_before_it_was_watched() -> None:
    assert _cause(_watched(38.0).seen("r", 38.0, TIMING).peak_arrivals) is Cause.TOO_SHORT
    history = _watched(100.0)
    page = _page(100.0)
    for step in range(1, 6):  # a burst of 15 a second for 10 s
        page = replace(page, finished=500.0 + 30.0 * step)
        history.add(100.0 + 2.0 * step, page, TIMING)
    for step in range(1, 11):
        page = replace(page, finished=650.0 + 2.0 * step)
        history.add(110.0 + 2.0 * step, page, TIMING)
    seen = history.seen("r", 130.0, TIMING)
    assert _value(seen.windows[0].arrivals) == pytest.approx(1.0)
    assert _value(seen.peak_arrivals) == pytest.approx(15.0)


def test_values_outlive_a_failed_scrape_for_three_periods_and_then_are_missing() -> None:
    history = _watched(100.0)
    history.fail(102.0)
    assert _value(history.seen("r", 104.0, TIMING).running) == 20.0
    assert _cause(history.seen("r", 107.0, TIMING).running) is Cause.UNREACHABLE
    assert _cause(_watched(100.0).seen("r", 107.0, TIMING).running) is Cause.STALE
    assert _cause(EngineHistory().seen("r", 0.0, TIMING).running) is Cause.UNREACHABLE


def test_an_engine_with_requests_inside_that_stands_still_is_stale_until_it_moves() -> None:
    history = _watched(60.0)
    for at in (62.0, 64.0, 66.0):
        history.add(at, _page(60.0), TIMING)
        assert _value(history.seen("r", at, TIMING).running) == 20.0
    history.add(68.0, _page(60.0), TIMING)
    seen = history.seen("r", 68.0, TIMING)
    assert _cause(seen.waiting) is _cause(seen.windows[0].arrivals) is _cause(seen.peak_arrivals) is Cause.STALE
    history.add(90.0, _page(60.0), TIMING)
    for at in range(92, 104, 2):  # it makes up for half a minute at once
        history.add(float(at), _page(float(at)), TIMING)
    seen = history.seen("r", 102.0, TIMING)
    assert _value(seen.windows[0].arrivals) == pytest.approx(5.0)
    assert _cause(seen.peak_arrivals) is Cause.TOO_SHORT


def test_an_empty_engine_may_stand_still() -> None:
    history = EngineHistory()
    for at in range(0, 60, 2):
        history.add(float(at), _page(0.0, running=0.0), TIMING)
    assert _value(history.seen("r", 58.0, TIMING).windows[0].arrivals) == 0.0


def test_no_reading_is_ever_not_finite() -> None:
    history = EngineHistory()
    for at in range(0, 20, 2):
        page = replace(_page(at), running=math.nan, kv_usage=math.inf, itl=_histogram(math.nan, 50.0 * at))
        history.add(at, page, TIMING)
    seen = history.seen("r", 18.0, TIMING)
    assert _cause(seen.running) is Cause.NOT_FINITE
    assert _cause(seen.kv_usage) is Cause.NOT_FINITE
    for window in seen.windows:
        assert _cause(window.arrivals) is Cause.NOT_FINITE
        assert _cause(window.running_mean) is Cause.NOT_FINITE
        assert _cause(window.itl_mean) is Cause.NOT_FINITE


def test_a_missing_series_hides_only_what_needs_it() -> None:
    history = EngineHistory()
    for at in range(0, 20, 2):
        history.add(at, replace(_page(at), waiting=None, itl=None), TIMING)
    seen = history.seen("r", 18.0, TIMING)
    window: EngineWindow = seen.windows[0]
    assert _cause(seen.waiting) is Cause.NO_SERIES
    assert _cause(window.arrivals) is Cause.NO_SERIES
    assert _cause(window.itl_mean) is Cause.NO_SERIES
    assert _cause(window.waiting_least) is Cause.NO_SERIES
    assert _value(window.finished) == pytest.approx(5.0)
    assert _value(window.ttft_mean) == pytest.approx(0.005)


def test_stock_buckets_give_a_mean_but_no_quantile_for_a_fast_engine() -> None:
    def stock(count: float) -> Histogram:
        return Histogram(bounds=(0.01, math.inf), counts=array("d", [count, count]), total=0.005 * count, count=count)

    history = EngineHistory()
    for at in range(0, 20, 2):
        history.add(at, replace(_page(at), itl=stock(100.0 * at)), TIMING)
    window = history.seen("r", 18.0, TIMING).windows[0]
    assert _value(window.itl_mean) == pytest.approx(0.005)
    assert _cause(window.itl_p95) is Cause.TOO_COARSE


def test_few_samples_are_kept_however_long_an_engine_runs() -> None:
    history = EngineHistory()
    long = replace(TIMING, windows=(Seconds(30.0), Seconds(300.0)), peak_delay=Seconds(300.0))
    for tick in range(2000):
        history.add(2.0 * tick, _page(2.0 * tick), long)
    assert len(history._pages) < 60
    assert len(history._load) <= 170


def test_a_clock_that_goes_back_begins_anew_and_what_was_seen_later_than_now_is_not_current() -> None:
    history = _watched(60.0)
    assert _cause(history.seen("chat", 30.0, TIMING).running) is Cause.STALE
    history.add(30.0, _page(62.0), TIMING)
    assert _cause(history.seen("chat", 30.0, TIMING).windows[0].arrivals) is Cause.TOO_SHORT
    _watched(100.0, history=history, since=32.0)
    assert _value(history.seen("chat", 100.0, TIMING).windows[0].arrivals) == pytest.approx(5.0)


def _gpu(value: float) -> tuple[GpuPage, ...]:
    return (GpuPage(uuid="GPU-1", dram_active=value, fb_used=1.0, power=100.0),)


def test_a_gpus_sample_is_as_old_as_the_exporters_period() -> None:
    history = ExporterHistory()
    history.add(1000.0, _gpu(0.5))
    dram = history.readings("GPU-1", 1003.0, 30.0, 3).dram_active
    assert isinstance(dram, Reading)
    assert (dram.value, dram.at) == (0.5, 970.0)


def test_the_exporters_period_is_learnt_from_its_changes() -> None:
    history = ExporterHistory()
    for tick in range(60):  # scraped every second; the values change every five
        history.add(1000.0 + tick, _gpu(tick // 5 / 100))
    assert history.period(30.0) == 5.0
    dram = history.readings("GPU-1", 1060.0, 30.0, 3).dram_active
    assert isinstance(dram, Reading)
    assert dram.at == 1059.0 - 5.0


def test_values_of_an_idle_gpu_are_no_older_because_they_seldom_change() -> None:
    history = ExporterHistory()
    for tick in range(400):  # an engine comes or goes every minute; nothing else happens
        history.add(1000.0 + tick, _gpu(tick // 60 / 100))
    dram = history.readings("GPU-1", 1400.0, 5.0, 3).dram_active
    assert isinstance(dram, Reading)
    assert dram.at == 1399.0 - 5.0


def test_a_gpu_is_missing_when_its_exporter_is_silent_or_does_not_name_it() -> None:
    history = ExporterHistory()
    assert _cause(history.readings("GPU-1", 0.0, 30.0, 3).fb_used) is Cause.UNREACHABLE
    history.add(1000.0, _gpu(0.5))
    assert _cause(history.readings("GPU-2", 1000.0, 30.0, 3).fb_used) is Cause.NO_SERIES
    assert _cause(history.readings("GPU-1", 1091.0, 30.0, 3).fb_used) is Cause.STALE
    history.fail(1060.0)
    assert _cause(history.readings("GPU-1", 1091.0, 30.0, 3).fb_used) is Cause.UNREACHABLE


def _idle(*pages: tuple[float, EnginePage]) -> Measured:
    history = EngineHistory()
    for at, page in pages:
        history.add(at, page, TIMING)
    return history.seen("r", pages[-1][0], TIMING).idle


def test_an_engine_is_idle_for_as_long_as_it_was_seen_empty_and_no_counter_moved() -> None:
    rests = replace(_page(10.0), running=0.0)
    assert _value(_idle(*((2.0 * number, rests) for number in range(10)))) == 18.0
    assert _value(_idle((0.0, rests), (2.0, replace(rests, waiting=1.0)))) == 0.0
    came_and_went = replace(_page(11.0), running=0.0)
    assert _value(_idle((0.0, rests), (2.0, rests), (4.0, came_and_went), (6.0, came_and_went))) == 2.0


def test_idle_time_that_nobody_watched_counts_as_three_periods_at_most() -> None:
    """Also where the clock was set forward."""
    rests = replace(_page(10.0), running=0.0)
    assert _value(_idle((0.0, rests), (2.0, rests), (500.0, rests))) == 2.0 + 6.0


def test_an_engine_that_does_not_tell_or_began_anew_is_not_idle() -> None:
    rests = replace(_page(10.0), running=0.0)
    assert _cause(_idle((0.0, rests), (2.0, replace(rests, finished=None)))) is Cause.NO_SERIES
    anew = replace(_page(0.0), running=0.0)
    assert _value(_idle((0.0, rests), (8.0, rests), (10.0, anew))) == 0.0
    assert _value(_idle((0.0, rests), (8.0, replace(rests, running=math.nan)))) == 0.0
