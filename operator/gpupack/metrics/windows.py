"""Samples over time: an engine's recent pages to rates and latencies over windows, a GPU's last values to readings.

Everything is a difference of the engine's own counters between two scrapes; a restart (a counter that fell) begins
anew, and an engine with requests inside whose counters stand still is frozen: what it shows is as old as its last move.
Each result is a Reading with the time of the newest sample or a Missing with its cause. Which window is enough
evidence for which decision is not known here.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from gpupack.facts.counter import Counter
from gpupack.facts.observation import (
    NO_CORES_TOLD,
    Cause,
    EngineSeen,
    EngineWindow,
    GapSeen,
    Measured,
    Missing,
    Reading,
)
from gpupack.facts.policy import Policy
from gpupack.metrics import series
from gpupack.metrics.prometheus import COUNTERS, EnginePage, GpuPage, Histogram
from gpupack.metrics.series import Quantity
from gpupack.units import Seconds

COARSENESS = 0.1
"""Older samples are kept ever further apart, so that a window's length is right to a tenth of itself."""
GAPS = 2
"""A load that rises must show in so many gaps between scrapes, or it was one burst."""
LEAST_PERIODS = 2
"""A window shorter than this many scrapes is no evidence."""
RECENT_GAPS = 30
"""Dispersion is a mean over about so many gaps between scrapes."""
LEARNT_FROM = 4
"""So many changes of a GPU's values must have been seen before their spacing counts as the exporter's period."""


def reading(value: float | None, at: float, quantity: Quantity, origin: str = "") -> Measured:
    """`origin`: the series it is from, if it is not the first that tells of this quantity."""
    origin = origin or series.origin(quantity)
    if value is None:
        return Missing(cause=Cause.NO_SERIES, origin=origin)
    if not math.isfinite(value):
        return Missing(cause=Cause.NOT_FINITE, origin=origin)
    return Reading(value=value, at=Seconds(at), origin=origin)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What of the policy concerns samples. `windows` are lengths in seconds, shortest first.

    Steps are judged over one of `judged` seconds.
    """

    windows: tuple[Seconds, ...]
    period: Seconds
    stale_periods: int
    peak_delay: Seconds
    judged: Seconds | None = None

    @classmethod
    def of(cls, policy: Policy) -> Timing:
        return cls(
            windows=tuple(sorted(policy.rate_windows)),
            period=policy.engine_period,
            stale_periods=policy.stale_periods,
            peak_delay=policy.scale_down_delay,
            judged=policy.window,
        )

    @property
    def stale(self) -> float:
        return self.period * self.stale_periods


class EngineHistory:
    """What one engine's pages have said. Times are unix seconds, growing."""

    def __init__(self) -> None:
        self.version: str | None = None
        self.served: tuple[str, ...] | None = None
        self._pages: deque[tuple[float, EnginePage]] = deque()
        self._load: deque[tuple[float, float | None, float | None]] = deque()
        self._peaks: deque[tuple[float, float]] = deque()
        self._gaps: tuple[GapSeen, ...] = ()
        self._dispersions = _as_chance_will()
        self._watched_since: float | None = None
        self._moved_at = 0.0
        self._idle: float | None = None
        self._failed_at: float | None = None
        self._windows: tuple[Timing, tuple[EngineWindow, ...]] | None = None
        self._judged: EngineWindow | None = None

    def fail(self, at: float) -> None:
        """A scrape that brought nothing."""
        self._failed_at = at

    def add(self, at: float, page: EnginePage, timing: Timing) -> None:
        self._failed_at = None
        self._windows = None
        if self._pages and at <= self._pages[-1][0]:
            self._begin_anew()  # the clock went back: how long ago the others were is not known any more
        moves = not self._pages or _moves(self._pages[-1][1], page)
        # What a page makes up for at once when it thaws did not arrive within one scrape.
        thaws = moves and bool(self._pages) and self._is_frozen(self._pages[-1][0], timing)
        if thaws or (self._pages and _restarted(self._pages[-1][1], page)):
            self._begin_anew()
        if moves:
            self._moved_at = at
        if self._watched_since is None:
            self._watched_since = at
        self._rest(at, page, timing)
        self._pages.append((at, page))
        self._load.append((at, page.running, page.waiting))
        self._gaps = self._last_gaps()
        self._disperse()
        self._forget(at, timing)
        self._remember_peak(at, timing)

    def _rest(self, at: float, page: EnginePage, timing: Timing) -> None:
        """Counts on while nothing is inside and no counter moves. A gap between scrapes counts as a short one."""
        if page.running is None or page.waiting is None or page.finished is None:
            self._idle = None
            return
        before, inside = self._pages[-1] if self._pages else None, page.running + page.waiting
        if before is None or self._idle is None or inside != 0 or _worked(before[1], page):
            self._idle = 0.0
        else:
            self._idle += min(at - before[0], timing.stale)

    def _begin_anew(self) -> None:
        self._idle = None
        self._pages.clear()
        self._load.clear()
        self._peaks.clear()
        self._gaps = ()
        self._dispersions = _as_chance_will()
        self._watched_since = None

    def seen(self, replica: str, at: float, timing: Timing) -> EngineSeen:
        if not self._pages or not 0 <= at - self._pages[-1][0] <= timing.stale:
            cause = Cause.UNREACHABLE if self._failed_at is not None or not self._pages else Cause.STALE
            return _blind(replica, cause, self.version, len(timing.windows))
        if self._is_frozen(at, timing):
            return _blind(replica, Cause.STALE, self.version, len(timing.windows))
        newest_at, newest = self._pages[-1]
        before: Measured = Missing(cause=Cause.TOO_SHORT, origin=series.origin(Quantity.WAITING))
        if len(self._pages) > 1:
            before = reading(self._pages[-2][1].waiting, self._pages[-2][0], Quantity.WAITING)
        return EngineSeen(
            replica=replica,
            running=reading(newest.running, newest_at, Quantity.RUNNING),
            waiting=reading(newest.waiting, newest_at, Quantity.WAITING),
            waiting_before=before,
            kv_usage=reading(newest.kv_usage, newest_at, Quantity.KV_USAGE),
            kv_blocks=reading(newest.kv_blocks, newest_at, Quantity.KV_BLOCKS),
            windows=self._windows_of(timing),
            peak_arrivals=self._peak(newest_at, timing),
            gaps=self._gaps,
            dispersion=self._dispersions[0],
            judged=self._judged,
            version=self.version or None,
            served=self.served or (),
            idle=_idle(self._idle, newest_at),
        )

    def _is_frozen(self, at: float, timing: Timing) -> bool:
        return at - self._moved_at > timing.stale

    def _last_gaps(self) -> tuple[GapSeen, ...]:
        """The last and the one before it."""
        if len(self._pages) <= GAPS:
            return ()
        last = [self._pages[-1 - back] for back in range(GAPS + 1)]
        return tuple(
            GapSeen(
                seconds=Seconds(late - early),
                arrivals=reading(_arrivals(before, after, late - early), late, Quantity.FINISHED),
            )
            for (late, after), (early, before) in pairwise(last)
        )

    def _disperse(self) -> None:
        """Counts of neighbouring gaps are compared, so that a load that rises slowly is not taken for bursts.

        For two counts of one rate r over s and t seconds, the square of the rates' difference is r (1/s + 1/t) times
        the dispersion on average. What is remembered is older than the gaps that a step of the load would show in.
        """
        gaps = [(gap.seconds, gap.arrivals.value) for gap in self._gaps if isinstance(gap.arrivals, Reading)]
        if len(gaps) < GAPS:
            return
        (late, now), (early, before) = gaps
        rate = (late * now + early * before) / (late + early)
        if rate > 0:
            found = (now - before) ** 2 / (rate * (1 / late + 1 / early))
            self._dispersions.append(self._dispersions[-1] + (found - self._dispersions[-1]) / RECENT_GAPS)

    def _start_of(self, length: float) -> tuple[float, EnginePage]:
        """The youngest sample that is at least `length` older than the newest, or the oldest there is."""
        newest_at = self._pages[-1][0]
        best = self._pages[0]
        for sample in self._pages:
            if newest_at - sample[0] < length:
                break
            best = sample
        return best

    def _windows_of(self, timing: Timing) -> tuple[EngineWindow, ...]:
        """Worked out once for every page: a pool that moves looks several times between two scrapes."""
        if self._windows is None or self._windows[0] != timing:
            lengths = {*timing.windows, *(() if timing.judged is None else (timing.judged,))}
            found = {length: self._window(length, timing.period) for length in lengths}
            self._windows = timing, tuple(found[length] for length in timing.windows)
            self._judged = None if timing.judged is None else found[timing.judged]
        return self._windows[1]

    def _window(self, length: float, period: float) -> EngineWindow:
        at, last = self._pages[-1]
        since, first = self._start_of(length)
        span = at - since
        if span < LEAST_PERIODS * period * 0.9:  # scrapes come a little early or late
            return _empty_window(span, Cause.TOO_SHORT)

        def rate(quantity: Quantity, of: Callable[[EnginePage], float | None]) -> Measured:
            before, after = of(first), of(last)
            return reading(None if before is None or after is None else (after - before) / span, at, quantity)

        def ends(
            quantity: Quantity, of: Callable[[EnginePage], Histogram | None]
        ) -> tuple[Histogram, Histogram] | Missing:
            before, after = of(first), of(last)
            if before is None or after is None:
                return Missing(cause=Cause.NO_SERIES, origin=series.origin(quantity))
            if after.count <= before.count:
                return Missing(cause=Cause.TOO_SHORT, origin=series.origin(quantity))
            return before, after

        def mean(quantity: Quantity, of: Callable[[EnginePage], Histogram | None]) -> Measured:
            both = ends(quantity, of)
            if isinstance(both, Missing):
                return both
            before, after = both
            return reading(after.mean_since(before), at, quantity)

        def p95(quantity: Quantity, of: Callable[[EnginePage], Histogram | None]) -> Measured:
            both = ends(quantity, of)
            if isinstance(both, Missing):
                return both
            before, after = both
            if (value := after.since(before).quantile(0.95)) is None:
                return Missing(cause=Cause.TOO_COARSE, origin=series.origin(quantity))
            return reading(value, at, quantity)

        load = [entry for entry in self._load if entry[0] >= since]
        inside = [running + waiting for _, running, waiting in load if running is not None and waiting is not None]
        unknown = not inside or len(inside) < len(load)
        return EngineWindow(
            seconds=Seconds(span),
            arrivals=reading(_arrivals(first, last, span), at, Quantity.FINISHED),
            finished=rate(Quantity.FINISHED, lambda page: page.finished),
            prompt_tokens=rate(Quantity.PROMPT_TOKENS, lambda page: page.prompt_tokens),
            generation_tokens=rate(Quantity.GENERATION_TOKENS, lambda page: page.generation_tokens),
            preemptions=rate(Quantity.PREEMPTIONS, lambda page: page.preemptions),
            itl_mean=mean(Quantity.ITL, lambda page: page.itl),
            itl_p95=p95(Quantity.ITL, lambda page: page.itl),
            ttft_mean=mean(Quantity.TTFT, lambda page: page.ttft),
            ttft_p95=p95(Quantity.TTFT, lambda page: page.ttft),
            input_mean=mean(Quantity.INPUT_LENGTH, lambda page: page.input_length),
            output_mean=mean(Quantity.OUTPUT_LENGTH, lambda page: page.output_length),
            running_mean=reading(_time_mean([(when, running) for when, running, _ in load]), at, Quantity.RUNNING),
            waiting_least=reading(_least([waiting for *_, waiting in load]), at, Quantity.WAITING),
            inside_least=reading(None if unknown else min(inside), at, Quantity.RUNNING),
            inside_most=reading(None if unknown else max(inside), at, Quantity.RUNNING),
            steps=rate(Quantity.STEP_TOKENS, lambda page: None if page.step_tokens is None else page.step_tokens.count),
            read_bytes=rate(Quantity.READ_BYTES, lambda page: page.read_bytes),
        )

    def _forget(self, at: float, timing: Timing) -> None:
        longest = max(*timing.windows, timing.judged or 0.0)
        while len(self._pages) > 1 and at - self._pages[1][0] >= longest:
            self._pages.popleft()
        while self._load and self._load[0][0] < self._pages[0][0]:
            self._load.popleft()
        if len(self._pages) < 4:
            return
        kept = [self._pages[-1], self._pages[-2]]
        older = list(self._pages)
        for index in range(len(older) - 3, 0, -1):
            if kept[-1][0] - older[index - 1][0] > (at - older[index][0]) * COARSENESS:
                kept.append(older[index])
        kept.append(older[0])
        self._pages = deque(reversed(kept))

    def _remember_peak(self, at: float, timing: Timing) -> None:
        since, first = self._start_of(min(timing.windows))
        if at - since < LEAST_PERIODS * timing.period * 0.9:
            return
        rate = _arrivals(first, self._pages[-1][1], at - since)
        if rate is None or not math.isfinite(rate):
            return
        while self._peaks and self._peaks[-1][1] <= rate:
            self._peaks.pop()
        self._peaks.append((at, rate))
        while at - self._peaks[0][0] > timing.peak_delay:
            self._peaks.popleft()

    def _peak(self, at: float, timing: Timing) -> Measured:
        watched = 0.0 if self._watched_since is None else at - self._watched_since
        if watched < timing.peak_delay or not self._peaks:
            return Missing(cause=Cause.TOO_SHORT, origin=series.origin(Quantity.FINISHED))
        return reading(self._peaks[0][1], at, Quantity.FINISHED)


def _idle(seconds: float | None, at: float) -> Measured:
    if seconds is None:
        return Missing(cause=Cause.NO_SERIES, origin="idle")
    return Reading(value=seconds, at=Seconds(at), origin="idle")


def _worked(before: EnginePage, after: EnginePage) -> bool:
    """Whether anything was asked of the engine between two pages; what is not a number says yes."""
    pairs = (
        (before.finished, after.finished),
        (before.prompt_tokens, after.prompt_tokens),
        (before.generation_tokens, after.generation_tokens),
    )
    return any(old != new for old, new in pairs)


def _as_chance_will() -> deque[float]:
    """The dispersion of a stream that nothing is known of, and room for as many as a step may be seen late."""
    return deque([1.0], maxlen=GAPS + 2)


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def _restarted(before: EnginePage, after: EnginePage) -> bool:
    """A counter that fell, or is gone, is another engine's."""
    pairs = (
        (before.finished, after.finished),
        (before.generation_tokens, after.generation_tokens),
        (before.prompt_tokens, after.prompt_tokens),
    )
    return any(old is not None and (new is None or new < old) for old, new in pairs)


def _moves(before: EnginePage, after: EnginePage) -> bool:
    """Whether time passes in the engine: it is empty, or its counters differ. One that does not count tokens does."""
    inside = (after.running or 0.0) + (after.waiting or 0.0)
    if inside <= 0 or after.generation_tokens is None:
        return True
    pairs = (
        (before.generation_tokens, after.generation_tokens),
        (before.prompt_tokens, after.prompt_tokens),
        (before.finished, after.finished),
        (before.running, after.running),
        (before.waiting, after.waiting),
    )
    return any(old != new for old, new in pairs)


def _arrivals(first: EnginePage, last: EnginePage, span: float) -> float | None:
    """What finished plus what more is inside than before, a second; None where a series is missing."""
    ends = (first.finished, first.running, first.waiting, last.finished, last.running, last.waiting)
    if any(value is None for value in ends):
        return None
    before, after = _total(first), _total(last)
    return after - before if math.isnan(after - before) else max(0.0, after - before) / span


def _total(page: EnginePage) -> float:
    return _known(page.finished) + _known(page.running) + _known(page.waiting)


def _time_mean(points: Sequence[tuple[float, float | None]]) -> float | None:
    """The mean over time of straight lines between points; None without two of them, or where one has no value."""
    area = 0.0
    for (early, low), (late, high) in pairwise(points):
        if low is None or high is None:
            return None
        area += (late - early) * (low + high) / 2
    return area / (points[-1][0] - points[0][0]) if len(points) > 1 else None


def _least(values: Sequence[float | None]) -> float | None:
    """None where one has no value, not a number where one is none."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return None
    return math.nan if any(math.isnan(value) for value in known) else min(known)


def _empty_window(span: float, cause: Cause) -> EngineWindow:
    def missing(quantity: Quantity) -> Missing:
        return Missing(cause=cause, origin=series.origin(quantity))

    return EngineWindow(
        seconds=Seconds(span),
        arrivals=missing(Quantity.FINISHED),
        finished=missing(Quantity.FINISHED),
        prompt_tokens=missing(Quantity.PROMPT_TOKENS),
        generation_tokens=missing(Quantity.GENERATION_TOKENS),
        preemptions=missing(Quantity.PREEMPTIONS),
        itl_mean=missing(Quantity.ITL),
        itl_p95=missing(Quantity.ITL),
        ttft_mean=missing(Quantity.TTFT),
        ttft_p95=missing(Quantity.TTFT),
        input_mean=missing(Quantity.INPUT_LENGTH),
        output_mean=missing(Quantity.OUTPUT_LENGTH),
        running_mean=missing(Quantity.RUNNING),
        waiting_least=missing(Quantity.WAITING),
        inside_least=missing(Quantity.RUNNING),
        inside_most=missing(Quantity.RUNNING),
        steps=missing(Quantity.STEP_TOKENS),
        read_bytes=missing(Quantity.READ_BYTES),
    )


def _blind(replica: str, cause: Cause, version: str | None, windows: int) -> EngineSeen:
    def missing(quantity: Quantity) -> Missing:
        return Missing(cause=cause, origin=series.origin(quantity))

    return EngineSeen(
        replica=replica,
        running=missing(Quantity.RUNNING),
        waiting=missing(Quantity.WAITING),
        waiting_before=missing(Quantity.WAITING),
        kv_usage=missing(Quantity.KV_USAGE),
        kv_blocks=missing(Quantity.KV_BLOCKS),
        windows=tuple(_empty_window(0.0, cause) for _ in range(windows)),
        peak_arrivals=missing(Quantity.FINISHED),
        version=version,
    )


def unseen_engine(replica: str, timing: Timing) -> EngineSeen:
    """An engine that has an address but was never scraped."""
    return _blind(replica, Cause.UNREACHABLE, None, len(timing.windows))


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReadings:
    """`card`: of a MIG slice the uuid of its GPU, empty where no source tells."""

    dram_active: Measured
    fb_used: Measured
    power: Measured
    xid: Measured
    core_wait: Measured = NO_CORES_TOLD
    counter: Counter = Counter.DCGM_DRAM_ACTIVE
    card: str = ""


class ExporterHistory:
    """The last page of one dcgm-exporter or node agent, and how often its values change.

    The text carries no sample time. A value may be as old as the exporter's own period, so its time is the scrape less
    that period: the pool's setting, until the changes themselves have shown a shorter one. Seldom changes show nothing:
    an idle GPU has the same values for hours, and they are no older for that.
    """

    def __init__(self) -> None:
        self._gpus: dict[str, GpuPage] = {}
        self._at: float | None = None
        self._failed_at: float | None = None
        self._changes: deque[float] = deque(maxlen=2 * LEARNT_FROM)

    def fail(self, at: float) -> None:
        self._failed_at = at

    def add(self, at: float, gpus: Sequence[GpuPage]) -> None:
        self._failed_at = None
        found = {gpu.uuid: gpu for gpu in gpus}
        if self._at is not None and at <= self._at:
            self._changes.clear()  # the clock went back
        elif self._at is not None and found != self._gpus:
            self._changes.append(at)
        self._gpus, self._at = found, at

    def period(self, declared: float) -> float:
        """Seconds between two samples of the exporter: the median gap between changes, once enough were seen."""
        if len(self._changes) < LEARNT_FROM:
            return declared
        return min(declared, statistics.median(late - early for early, late in pairwise(self._changes)))

    @property
    def uuids(self) -> tuple[str, ...]:
        return tuple(self._gpus)

    @property
    def answered(self) -> bool:
        return self._at is not None

    def readings(self, uuid: str, at: float, declared: float, stale_periods: int) -> GpuReadings:
        if self._at is None:
            return no_gpu_readings(Cause.UNREACHABLE)
        if not 0 <= at - self._at <= stale_periods * declared:
            return no_gpu_readings(Cause.STALE if self._failed_at is None else Cause.UNREACHABLE)
        if (page := self._gpus.get(uuid)) is None:
            return no_gpu_readings(Cause.NO_SERIES)
        return readings_of(page, self._at - self.period(declared))


def readings_of(page: GpuPage, at: float) -> GpuReadings:
    """What the page says of its GPU, true as of then."""

    def told(value: float | None, quantity: Quantity) -> Measured:
        return reading(value, at, quantity, page.origin(quantity))

    return GpuReadings(
        dram_active=told(page.dram_active, COUNTERS[page.counter]),
        fb_used=told(page.fb_used, Quantity.FB_USED),
        power=told(page.power, Quantity.POWER),
        xid=told(page.xid, Quantity.XID),
        core_wait=NO_CORES_TOLD if page.core_wait is None else told(page.core_wait, Quantity.CORE_WAIT),
        counter=page.counter,
        card=page.card,
    )


def best_of(found: Sequence[GpuReadings]) -> GpuReadings:
    """Of several sources of one GPU, each quantity from the first that has it; of DRAM counters, the best there is."""
    order = list(Counter)
    dram = min(found, key=lambda each: (isinstance(each.dram_active, Missing), order.index(each.counter)))

    def first(values: Sequence[Measured]) -> Measured:
        return next((each for each in values if not isinstance(each, Missing)), values[0])

    return GpuReadings(
        dram_active=dram.dram_active,
        fb_used=first([each.fb_used for each in found]),
        power=first([each.power for each in found]),
        xid=worst_of([each.xid for each in found]),
        core_wait=first([each.core_wait for each in found]),
        counter=dram.counter,
        card=next((each.card for each in found if each.card), ""),
    )


def worst_of(xids: Sequence[Measured]) -> Measured:
    """Who tells an error is enough."""
    told = [each for each in xids if not isinstance(each, Missing)]
    return max(told, key=lambda each: each.value, default=xids[0])


def no_gpu_readings(cause: Cause) -> GpuReadings:
    return GpuReadings(
        dram_active=Missing(cause=cause, origin=series.origin(Quantity.DRAM_ACTIVE)),
        fb_used=Missing(cause=cause, origin=series.origin(Quantity.FB_USED)),
        power=Missing(cause=cause, origin=series.origin(Quantity.POWER)),
        xid=Missing(cause=cause, origin=series.origin(Quantity.XID)),
    )
