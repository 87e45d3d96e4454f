"""What was measured of the engines on a GPU over the window by which steps are judged, and what the model says of it.

The model is asked with the window's own lengths, arrivals and running counts, never with the declared ones. What is
missing is said, and never taken for zero. Whether a step was good is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from gpupack.decide.board import Board
from gpupack.decide.prospect import Kin, Mix, coefficients_of
from gpupack.facts.experiment import Standing
from gpupack.facts.gpu import GpuKind
from gpupack.facts.interpretation import EngineFacts, Known, Traffic
from gpupack.facts.observation import Cause, Missing
from gpupack.facts.placement import Placement
from gpupack.facts.policy import Policy
from gpupack.facts.serving import Sharing
from gpupack.perf import sharing
from gpupack.perf.prediction import EngineGroup, GpuPrediction
from gpupack.units import PerSecond, Ratio, Seconds

NEARLY = 0.9
"""Scrapes come a little early or late: a window this near to its length is whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Like engines of one serving over the window: means of one engine, latencies and lengths weighed by what finished.

    `tokens_per_second` is what they generated together, `finished` how many requests they ended, `waiting` the fewest
    that any scrape found waiting at one of them (None where nobody counts them). Latencies are None where nothing was
    there to be measured, `seconds` is the longest of their windows. `preemptions`, `steps` and `read_bytes` are sums a
    second of all of them, `inside_least` and `inside_most` the fewest and most requests that any scrape found in one of
    them; None where one does not tell.
    """

    kin: Kin
    engines: int
    seconds: Seconds
    running: float
    arrivals: PerSecond
    finished: float
    tokens_per_second: float
    input_mean: float
    output_mean: float
    itl: Seconds | None
    itl_p95: Seconds | None
    ttft: Seconds | None
    waiting: float | None
    preemptions: PerSecond | None = None
    steps: PerSecond | None = None
    read_bytes: float | None = None
    inside_least: float | None = None
    inside_most: float | None = None

    @property
    def waited(self) -> bool:
        """Whether requests waited at each of these engines through the whole window."""
        return self.waiting is not None and self.waiting >= 1.0


def window_of(engine: EngineFacts | None, policy: Policy) -> Traffic | None:
    """The window by which steps are judged, once it is whole; None until then."""
    if engine is None:
        return None
    windows = engine.windows if engine.judged is None else (engine.judged,)
    return next((each for each in windows if each.seconds >= NEARLY * policy.window), None)


def seen_on(board: Board, uuid: str, mix: Mix) -> tuple[Seen, ...] | Missing:
    """The engines of each kin of the mix that stand on the GPU, in its order; or the first reading that is missing."""
    found = []
    for kin, _ in mix:
        seen = seen_of(board, kin, [each for each in board.on[uuid] if board.kin(each) is kin])
        if isinstance(seen, Missing):
            return seen
        found.append(seen)
    return tuple(found)


def seen_of(board: Board, kin: Kin, placements: Sequence[Placement]) -> Seen | Missing:
    """These engines of that kin, at least one; or the first reading that is missing."""
    windows: list[Traffic] = []
    for placement in placements:
        pod = board.pod(placement)
        engine = None if pod is None else board.facts.engines.get(pod.name)
        window = window_of(engine, board.facts.policy)
        if window is None:
            return _why_none(engine, placement)
        needed = (window.arrivals, window.finished, window.running_mean, window.generation_tokens)
        missing = next((each for each in needed if isinstance(each, Missing)), None)
        if missing is not None:
            return missing
        windows.append(window)
    count, lengths = len(windows), board.prospects.lengths[kin.serving]
    itl, itl_p95, ttft, given, made = (
        _mean(windows, [getter(each) for each in windows])
        for getter in (_itl_mean, _itl_p95, _ttft_mean, _input_mean, _output_mean)
    )
    return Seen(
        kin=kin,
        engines=count,
        seconds=max(each.seconds for each in windows),
        running=sum(_number(each.running_mean) for each in windows) / count,
        arrivals=PerSecond(sum(_number(each.arrivals) for each in windows) / count),
        finished=sum(_number(each.finished) * each.seconds for each in windows),
        tokens_per_second=sum(_number(each.generation_tokens) for each in windows),
        input_mean=lengths.input_mean if given is None else given,
        output_mean=lengths.output_mean if made is None else made,
        itl=None if itl is None else Seconds(itl),
        itl_p95=None if itl_p95 is None else Seconds(itl_p95),
        ttft=None if ttft is None else Seconds(ttft),
        waiting=_all_of(min, (each.waiting_least for each in windows)),
        preemptions=_sum(each.preemptions for each in windows),
        steps=_sum(each.steps for each in windows),
        read_bytes=_sum(each.read_bytes for each in windows),
        inside_least=_all_of(min, (each.inside_least for each in windows)),
        inside_most=_all_of(max, (each.inside_most for each in windows)),
    )


def at_its_batches(board: Board, kind: GpuKind, seen: Sequence[Seen]) -> tuple[Seconds, ...]:
    """The inter-token latency of each kin by the model, with the batches that ran."""
    groups = tuple(group_of(board, kind, each, None) for each in seen)
    return sharing.itl_at(kind, groups, tuple(each.running for each in seen), how(seen))


def under_its_arrivals(board: Board, kind: GpuKind, seen: Sequence[Seen]) -> GpuPrediction:
    """The GPU by the model, with the requests that came."""
    groups = tuple(
        group_of(board, kind, each, PerSecond(max(each.arrivals, 1e-6) * each.engines)) for each in seen
    )  # fmt: skip
    return sharing.predict(kind, groups, how(seen))


def standing(board: Board, uuid: str) -> tuple[Standing, ...]:
    """The engines on the GPU before a step, with how far the model is off on them where that is known."""
    kind, mix = board.kind(uuid), board.mix(uuid)
    if not board.prospects.knows(mix):
        return ()
    seen = seen_on(board, uuid, mix)
    bare = tuple(Standing(serving=kin.serving, shape=kin.shape, engines=count) for kin, count in mix)
    if isinstance(seen, Missing):
        return bare
    expected = at_its_batches(board, kind, seen)
    waited = all(each.waited for each in seen)
    enough = board.facts.policy.min_window_requests
    return tuple(
        replace(
            was,
            off=None if each.itl is None or each.finished < enough else Ratio(each.itl / model),
            tokens_per_second=each.tokens_per_second if waited else None,
        )
        for was, each, model in zip(bare, seen, expected, strict=True)
    )


def mix_before(board: Board, before: Iterable[Standing]) -> Mix:
    counts: Mapping[Kin, int] = {board.prospects.kin(each.serving, each.shape): each.engines for each in before}
    return tuple(sorted(counts.items(), key=lambda each: each[0].order))


def group_of(board: Board, kind: GpuKind, seen: Seen, rate: PerSecond | None) -> EngineGroup:
    """These engines as the model is asked about them: with the window's own lengths."""
    serving = board.facts.servings[seen.kin.serving]
    spread = board.prospects.lengths[seen.kin.serving]
    return EngineGroup(
        llm=serving.llm,
        dtype=serving.dtype,
        shape=seen.kin.shape,
        lengths=replace(spread, input_mean=seen.input_mean, output_mean=seen.output_mean),
        replicas=seen.engines,
        request_rate=rate,
        coefficients=coefficients_of(serving, kind),
        cores=serving.cpu_cores,
    )


def how(seen: Sequence[Seen]) -> Sharing:
    """What engines on one GPU do with it."""
    return Sharing.among(sum(each.engines for each in seen))


def _why_none(engine: EngineFacts | None, placement: Placement) -> Missing:
    """Why an engine has no whole window: it cannot be read, or not for long enough yet."""
    if engine is not None and isinstance(engine.running, Missing):
        return engine.running
    cause = Cause.UNREACHABLE if engine is None else Cause.TOO_SHORT
    return Missing(cause=cause, origin=placement.name)


def _itl_mean(window: Traffic) -> Known:
    return window.itl_mean


def _itl_p95(window: Traffic) -> Known:
    return window.itl_p95


def _ttft_mean(window: Traffic) -> Known:
    return window.ttft_mean


def _input_mean(window: Traffic) -> Known:
    return window.input_mean


def _output_mean(window: Traffic) -> Known:
    return window.output_mean


def _mean(windows: Iterable[Traffic], values: Iterable[Known]) -> float | None:
    """Weighed by what finished; an engine in which nothing did does not count. None if there is none other."""
    weight = total = 0.0
    for window, value in zip(windows, values, strict=True):
        if not isinstance(value, Missing):
            weight += _number(window.finished)
            total += _number(window.finished) * value
    return total / weight if weight > 0 else None


def _sum(values: Iterable[Known]) -> PerSecond | None:
    total = _all_of(sum, values)
    return None if total is None else PerSecond(total)


def _all_of(together: Callable[[list[float]], float], values: Iterable[Known]) -> float | None:
    """None where one is missing."""
    found = list(values)
    known = [each for each in found if not isinstance(each, Missing)]
    return together(known) if len(known) == len(found) else None


def _number(known: Known) -> float:
    return 0.0 if isinstance(known, Missing) else known
