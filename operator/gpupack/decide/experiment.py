"""Each step is an experiment: predicted before it is taken, judged after warm-up, taken back if it did harm.

One experiment covers all steps on a GPU since its engines last settled. It is judged against what the window's own
arrivals, lengths and running counts should have given, with the coefficients of the moment of decision and with how far
the model was off on this GPU before the step. The inter-token latency of the batches that ran decides, and the gain of
throughput where requests waited at every engine through the whole window, before and after; time to first token,
running, waiting and DRAM activity stand beside them. Too little to judge by is Inconclusive, and looked at again.

A step that missed is undone only if it did harm: it raised what the GPU can do by less than the least gain that pays,
or it broke a promise that would be kept without it. So ordinary open traffic, whose throughput is what arrives, undoes
nothing that raised capacity. What the user asked for is judged and stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gpupack.decide.board import Board
from gpupack.decide.evidence import Seen, at_its_batches, mix_before, seen_on, under_its_arrivals, window_of
from gpupack.decide.pack import itl_of, promise_of
from gpupack.decide.prospect import Kin, Mix, coefficients_of, rounded
from gpupack.decide.undone import ANOTHER_SHAPE, neighbours
from gpupack.facts.experiment import CLOSED, Compared, Experiment, Judgement, Standing, Undone
from gpupack.facts.gpu import GpuKind
from gpupack.facts.observation import Missing
from gpupack.facts.placement import ChosenShape, FormerShape, Placement
from gpupack.facts.serving import Mode, ScalingMode, ServingKey, Shape, Statistic
from gpupack.perf.prediction import GpuPrediction
from gpupack.plan import Step, Unit
from gpupack.units import Ratio, Seconds, percent

ITL, TTFT, RUNNING, WAITING = "inter-token latency", "time to first token", "running", "waiting"
DRAM, THROUGHPUT, CAPACITY = "DRAM active", "gain of throughput", "gain of throughput at full batches"


Off = dict[tuple[ServingKey, Shape], float]
"""Measured inter-token latency over what the model says of the same batches, by serving and shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenBack:
    """Placements that were undone on a GPU, the experiment that judged them, and what spoke against them."""

    experiment: Experiment
    harm: Compared
    placements: tuple[Placement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one look at a window says; `harm` is why the step may not stay.

    `is_preliminary`: requests waited before, but did not through this window, so the gain of throughput is to be judged
    later.
    """

    judgement: Judgement
    compared: tuple[Compared, ...] = ()
    harm: Compared | None = None
    why: str = ""
    is_preliminary: bool = False


def begin(board: Board, placement: Placement, before: tuple[Standing, ...], step: Step, *, asked: bool) -> None:
    """Write down what is predicted of a step that was just put on the board; `before` stood on its GPU.

    Steps join the experiment of their GPU until it is judged. One beside an engine that nobody knows is none.
    """
    uuid, at = placement.gpu_uuid, board.facts.at
    kind, after = board.kind(uuid), board.mix(uuid)
    if not board.prospects.knows(after):
        board.experiments.pop(uuid, None)
        return
    open_one = board.experiments.get(uuid)
    joins = open_one is not None and open_one.is_on_trial
    stood = open_one.before if open_one is not None and joins else before
    worth = board.prospects.worth(kind, mix_before(board, stood))
    full = board.prospects.full(kind, after)
    own = next(each for (kin, _), each in zip(after, full.groups, strict=True) if kin is board.kin(placement))
    slo = promise_of(board, placement.serving, kind)
    board.experiments[uuid] = Experiment(
        serving=placement.serving,
        gpu_uuid=uuid,
        step=step.value,
        began_at=open_one.began_at if open_one is not None and joins else at,
        last_at=at,
        asked=asked,
        before=stood,
        company=company(after),
        gain=Ratio(board.prospects.worth(kind, after) / worth - 1.0) if worth > 0 else None,
        saturation=full.saturation,
        itl=own.itl_p95 if slo is None else itl_of(own, slo),
        inputs=inputs_of(board, kind, after),
    )


def company(mix: Mix) -> str:
    """The engines of a GPU in one word: another mix is another set."""
    return ", ".join(f"{count} x {kin.serving} {kin.shape.max_num_seqs}" for kin, count in mix)


def judge(board: Board, floors: Mapping[ServingKey, int]) -> tuple[TakenBack, ...]:
    """Judge what is due, take back what did harm, and drop what is no longer told.

    `floors` are the counts that the user asks for at least. A verdict is the one step of its GPU in this tick.
    """
    taken_back = []
    for uuid in sorted(board.experiments):
        experiment = board.experiments[uuid]
        if not _is_open(board, experiment):
            continue
        if uuid not in board.facts.gpus or company(board.mix(uuid)) != experiment.company:
            board.experiments[uuid] = _closed(board, experiment, "the engines on the GPU have changed since")
            continue
        if not _is_due(board, experiment):
            continue
        board.experiments[uuid], undone = _concluded(board, experiment, floors)
        if board.experiments[uuid].judgement is not experiment.judgement:
            board.touched.add(uuid)
        if undone is not None:
            taken_back.append(undone)
    _drop(board)
    return tuple(taken_back)


def is_waited_for(board: Board, serving: ServingKey) -> bool:
    """Whether a shape that live lengths asked for is still on trial in one replica: the next waits for the verdict."""
    return any(
        each.serving == serving and each.step in (Step.REPLACED, Step.MOVED) and not each.asked and each.is_on_trial
        for each in board.experiments.values()
    )


def _is_open(board: Board, experiment: Experiment) -> bool:
    """Whether another look may still say something: what is inconclusive is kept for as long as an undone step is."""
    if experiment.company == CLOSED:
        return False
    if experiment.judgement is None:
        return True
    since = experiment.judged_at or experiment.last_at
    return board.facts.at - since <= board.facts.policy.remember_undone


def _closed(board: Board, experiment: Experiment, why: str) -> Experiment:
    if experiment.judgement is not None:
        return replace(experiment, company=CLOSED)
    return replace(
        experiment, company=CLOSED, judgement=Judgement.INCONCLUSIVE, judged_at=board.facts.at, why=why
    )  # fmt: skip


def _is_due(board: Board, experiment: Experiment) -> bool:
    """Whether the set has settled and warmed up and the whole window since then has been seen.

    A window that is not there, for instance after a restart of the operator, is due once it could have been.
    """
    uuid, facts = experiment.gpu_uuid, board.facts
    if board.is_moving(uuid):
        return False
    pods = [board.pod(each) for each in board.on[uuid]]
    ready = [experiment.last_at, *(pod.ready_at for pod in pods if pod is not None and pod.ready_at is not None)]
    since = max(ready) + facts.policy.warmup
    if experiment.doubted_at is not None:
        since = max(since, experiment.doubted_at)
    windows = [window_of(facts.engines.get(pod.name), facts.policy) for pod in pods if pod is not None]
    seconds = max((each.seconds for each in windows if each is not None), default=facts.policy.window)
    return facts.at - since >= max(seconds, facts.policy.window)


def _concluded(
    board: Board, experiment: Experiment, floors: Mapping[ServingKey, int]
) -> tuple[Experiment, TakenBack | None]:
    """The experiment after one more look, and what is undone for it."""
    at = board.facts.at
    found = _look(board, experiment)
    if experiment.judgement is Judgement.CONFIRMED and not any(each.what == THROUGHPUT for each in found.compared):
        return experiment, None
    if found.judgement is Judgement.INCONCLUSIVE:
        if experiment.judgement is not None:
            return experiment, None
        return replace(experiment, judgement=found.judgement, judged_at=at, why=found.why), None
    if found.judgement is Judgement.MISSED and experiment.doubted_at is None:
        return replace(experiment, doubted_at=at), None
    judged = replace(
        experiment, judgement=found.judgement, judged_at=at, compared=found.compared, why=found.why,
        company=experiment.company if found.is_preliminary else CLOSED,
    )  # fmt: skip
    if found.harm is None:
        return judged, None
    chosen = board.chosen(experiment.serving, experiment.gpu_uuid)
    if experiment.asked:
        return replace(judged, why="it stays, because the user asked for it"), None
    if experiment.step != Step.ADDED and chosen is not None and chosen.was is not None:
        placements = _shape_back(board, judged, chosen, chosen.was)
        beside = f"{ANOTHER_SHAPE} {neighbours(board, board.mix(experiment.gpu_uuid))}"
        _remember(board, experiment.serving, judged, found.harm, beside)
    else:
        placements = _steps_of(board, experiment, floors)
        for placement in placements:
            board.remove(placement)
            beside = neighbours(board, board.mix(experiment.gpu_uuid))
            _remember(board, placement.serving, judged, found.harm, beside)
        if not placements:
            why = "it stays, because it is among the replicas that the user asks for at least"
            return replace(judged, why=why), None
    judged = replace(judged, undone=True)
    return judged, TakenBack(experiment=judged, harm=found.harm, placements=placements)


def _steps_of(board: Board, experiment: Experiment, floors: Mapping[ServingKey, int]) -> tuple[Placement, ...]:
    """The placements of these steps that may be given up, the last first; the first engine of a GPU stays."""
    steps = [each for each in board.on[experiment.gpu_uuid] if each.planned_at >= experiment.began_at]
    steps.sort(key=lambda each: (-each.planned_at, each.serving, -each.slot))
    if not experiment.before:
        steps = steps[:-1]
    left = {key: len(board.of[key]) for key in {each.serving for each in steps}}
    given_up = []
    for each in steps:
        serving = board.facts.servings[each.serving]
        is_ours = serving.mode is Mode.ACTIVE and serving.scaling.mode is ScalingMode.AUTO
        if is_ours and left[each.serving] > max(1, floors.get(each.serving, 1)):
            left[each.serving] -= 1
            given_up.append(each)
    return tuple(given_up)


def _shape_back(board: Board, experiment: Experiment, chosen: ChosenShape, was: FormerShape) -> tuple[Placement, ...]:
    """The shape before is the chosen one again; replicas go back to it one at a time, as they came."""
    board.shapes[chosen.serving, chosen.gpu_kind] = replace(
        chosen, shape=was.shape, replicas_per_gpu=was.replicas_per_gpu,
        utilization_hundredths=was.utilization_hundredths, chosen_at=board.facts.at, better_since=None, was=None,
    )  # fmt: skip
    here = board.on[experiment.gpu_uuid]
    return tuple(each for each in here if each.serving == chosen.serving and each.planned_at >= experiment.began_at)


def _remember(board: Board, key: ServingKey, experiment: Experiment, harm: Compared, beside: str) -> None:
    at = board.facts.at
    board.undone.append(
        Undone(
            serving=key,
            model=board.facts.servings[key].llm.name,
            gpu_kind=board.kind(experiment.gpu_uuid).name,
            neighbours=beside,
            at=at,
            until=Seconds(at + board.facts.policy.remember_undone),
            compared=harm,
        )
    )


def _drop(board: Board) -> None:
    """Keep the plan small: of what is over, only the last of each serving and what is remembered as undone is told."""
    last: dict[ServingKey, Experiment] = {}
    for each in board.experiments.values():
        old = last.get(each.serving)
        if old is None or (each.last_at, each.gpu_uuid) > (old.last_at, old.gpu_uuid):
            last[each.serving] = each
    board.experiments = {
        uuid: each
        for uuid, each in board.experiments.items()
        if each.serving in board.facts.servings
        and (_is_open(board, each) or last[each.serving] is each or _is_remembered(board, each))
    }


def _is_remembered(board: Board, experiment: Experiment) -> bool:
    """Whether what it took back is still not tried again."""
    return experiment.undone and any(
        (each.serving, each.at) == (experiment.serving, experiment.judged_at) for each in board.undone
    )


# One look


def _look(board: Board, experiment: Experiment) -> Finding:
    uuid, policy = experiment.gpu_uuid, board.facts.policy
    gpu, mix = board.facts.gpus[uuid], board.mix(uuid)
    if not board.prospects.knows(mix):
        return _inconclusive("an engine there belongs to a serving that cannot be read")
    if gpu.foreign:
        return _inconclusive(f"the GPU is held by {gpu.foreign[0]}, too")
    seen = seen_on(board, uuid, mix)
    if isinstance(seen, Missing):
        return _inconclusive(f"readings are missing: {seen.origin} {seen.cause.value}")
    finished = sum(each.finished for each in seen)
    if finished < policy.min_window_requests:
        return _inconclusive(f"{finished:.0f} requests finished in the window; {policy.min_window_requests} are needed")
    if inputs_of(board, gpu.gpu.kind, mix) != experiment.inputs:
        return _inconclusive("the spec of an engine there, or what is known of it, has changed since")
    return _judged(board, experiment, gpu.gpu.kind, seen)


def _inconclusive(why: str) -> Finding:
    return Finding(judgement=Judgement.INCONCLUSIVE, why=why)


def _judged(board: Board, experiment: Experiment, kind: GpuKind, seen: Sequence[Seen]) -> Finding:
    """The window against what it should have given."""
    tolerance = board.facts.policy.prediction_tolerance
    was = _off_before(experiment)
    model = at_its_batches(board, kind, seen)
    arrived = under_its_arrivals(board, kind, seen)
    error = 0.0 if was else float(arrived.error)
    latencies, missed = [], []
    now: Off = {}
    for each, expected in zip(seen, model, strict=True):
        if each.itl is None:
            continue
        now[each.kin.serving, each.kin.shape] = each.itl / expected
        corrected = Seconds(expected * _off_of(was, each.kin, 1.0))
        compared = _compared(ITL, str(each.kin.serving), corrected, each.itl, Unit.SECONDS)
        latencies.append(compared)
        if each.itl > corrected * (1 + tolerance + error):
            missed.append(compared)
    gain = _gain(board, experiment, kind, seen)
    if gain is not None and gain.measured < _least_of(gain.predicted, board):
        missed.append(gain)
    shown = (
        *latencies,
        *(() if gain is None else (gain,)),
        *_beside(board, experiment.gpu_uuid, seen, arrived),
    )
    if not missed:
        waited = bool(experiment.before) and all(each.tokens_per_second is not None for each in experiment.before)
        later = waited and gain is None
        why = "the gain of throughput is judged when requests wait again" if later else ""
        return Finding(judgement=Judgement.CONFIRMED, compared=shown, why=why, is_preliminary=later)
    harm, why = _harm(board, experiment, kind, seen, gain, now)
    told = shown if harm is None or harm in shown else (harm, *shown)
    return Finding(judgement=Judgement.MISSED, compared=told, harm=harm, why=why)


def _least_of(predicted: float, board: Board) -> float:
    """The gain of throughput below which a prediction was missed: half of what had to pay, or beyond the tolerance."""
    policy = board.facts.policy
    half = min(predicted, policy.least_marginal_gain) / 2
    return max(half, (1 + predicted) * (1 - policy.prediction_tolerance) - 1)


def _off_before(experiment: Experiment) -> Off:
    return {(each.serving, each.shape): each.off for each in experiment.before if each.off is not None}


def _off_elsewhere(board: Board, kind: GpuKind) -> Off:
    """What was measured before steps on other GPUs of that kind."""
    found: Off = {}
    for uuid, each in sorted(board.experiments.items()):
        gpu = board.facts.gpus.get(uuid)
        if gpu is not None and gpu.gpu.kind == kind:
            found.update(_off_before(each))
    return found


def _off_of(off: Off, kin: Kin, otherwise: float) -> float:
    """How far the model is off on these engines, or on those of the same serving with another shape."""
    own = off.get((kin.serving, kin.shape))
    if own is not None:
        return own
    return next((each for (serving, _), each in off.items() if serving == kin.serving), otherwise)


def _gain(board: Board, experiment: Experiment, kind: GpuKind, seen: Sequence[Seen]) -> Compared | None:
    """What the throughput of the whole GPU gained, in lone engines; None unless requests waited before and after."""
    if experiment.gain is None or not all(each.waited for each in seen):
        return None
    before = 0.0
    for each in experiment.before:
        if each.tokens_per_second is None:
            return None
        before += each.tokens_per_second / _alone(board, kind, board.prospects.kin(each.serving, each.shape))
    after = sum(each.tokens_per_second / _alone(board, kind, each.kin) for each in seen)
    if before <= 0:
        return None
    return _compared(THROUGHPUT, experiment.gpu_uuid, experiment.gain, after / before - 1.0, Unit.RATIO)


def _alone(board: Board, kind: GpuKind, kin: Kin) -> float:
    """Generated tokens a second of one such engine that has the GPU to itself, by the model."""
    return board.prospects.full(kind, ((kin, 1),)).output_tokens_per_second


def _beside(board: Board, uuid: str, seen: Sequence[Seen], arrived: GpuPrediction) -> tuple[Compared, ...]:
    """What stands beside the verdict and does not decide it: these swing with every burst of arrivals."""
    found = []
    for each, group in zip(seen, arrived.groups, strict=True):
        who = str(each.kin.serving)
        if each.ttft is not None and group.ttft_mean is not None:
            found.append(_compared(TTFT, who, group.ttft_mean, each.ttft, Unit.SECONDS))
        found.append(_compared(RUNNING, who, group.running_mean, each.running, Unit.NONE))
        if each.waiting is not None and group.ttft_mean is not None:
            found.append(_compared(WAITING, who, 0.0, each.waiting, Unit.NONE))
    dram_active = board.facts.gpus[uuid].dram_active
    if not isinstance(dram_active, Missing):
        found.append(_compared(DRAM, uuid, arrived.dram_active, dram_active, Unit.RATIO))
    return tuple(found)


# Whether a step that missed did harm


def _harm(
    board: Board,
    experiment: Experiment,
    kind: GpuKind,
    seen: Sequence[Seen],
    gain: Compared | None,
    now: Off,
) -> tuple[Compared | None, str]:
    """What speaks against leaving it, or why it stays."""
    if not experiment.before and sum(each.engines for each in seen) == 1:
        return None, "it stays, because it has the GPU to itself"
    least = 0.0 if experiment.step != Step.ADDED else board.facts.policy.least_marginal_gain
    raised = gain or _capacity_gain(board, experiment, kind, seen, now)
    if raised.measured < least:
        return raised, ""
    broken = _broken_promise(board, experiment, kind, seen, now)
    if broken is not None:
        return broken, ""
    return None, f"it stays, because it raised what the GPU can do by {percent(raised.measured):.0f} % all the same"


def _capacity_gain(board: Board, experiment: Experiment, kind: GpuKind, seen: Sequence[Seen], now: Off) -> Compared:
    """What the GPU can do at full batches, after over before, in lone engines: the model, by how far it is off.

    A step that takes twice as long as the model says does half as much. Where nothing was measured before, here or on
    another GPU of that kind, the model was off by as much as it is now: no harm is made of what nobody saw. Engines
    that came to an empty GPU together are held against the first of them alone.
    """
    after = tuple((each.kin, each.engines) for each in seen)
    before = _baseline(board, experiment, seen)
    then = now | _off_elsewhere(board, kind) | _off_before(experiment)

    def worth(mix: Mix, off: Off) -> float:
        full = board.prospects.full(kind, mix)
        return sum(
            group.output_tokens_per_second / _alone(board, kind, kin) / _off_of(off, kin, 1.0)
            for (kin, _), group in zip(mix, full.groups, strict=True)
        )

    gained = worth(after, now) / worth(before, then) - 1.0
    predicted = worth(after, {}) / worth(before, {}) - 1.0 if experiment.gain is None else experiment.gain
    return _compared(CAPACITY, experiment.gpu_uuid, predicted, gained, Unit.RATIO)


def _baseline(board: Board, experiment: Experiment, seen: Sequence[Seen]) -> Mix:
    """What stood there before the steps; of engines that came to an empty GPU together the first."""
    return mix_before(board, experiment.before) or ((seen[0].kin, 1),)


def _broken_promise(
    board: Board, experiment: Experiment, kind: GpuKind, seen: Sequence[Seen], now: Off
) -> Compared | None:
    """The first engine whose inter-token latency breaks its promise, and would keep it without the step."""
    was = _off_before(experiment)
    before = _baseline(board, experiment, seen)
    without = board.prospects.loaded(kind, before, _rates_without(board, experiment, before))
    kept = {kin.serving: group for (kin, _), group in zip(before, without.groups, strict=True)}
    for each in seen:
        key, slo = each.kin.serving, promise_of(board, each.kin.serving, kind)
        if slo is None or slo.itl is None:
            continue
        measured = each.itl if slo.statistic is Statistic.MEAN else each.itl_p95
        if measured is None or measured <= slo.itl:
            continue
        alone = kept.get(key)
        expected = (
            slo.itl if alone is None else itl_of(alone, slo) * _off_of(was, each.kin, _off_of(now, each.kin, 1.0))
        )
        if expected <= slo.itl:
            return _compared(f"{ITL} {slo.statistic.value}", str(key), expected, measured, Unit.SECONDS)
    return None


def _rates_without(board: Board, experiment: Experiment, before: Mix) -> Mapping[ServingKey, float | None]:
    """Requests a second of one engine of each serving, had the steps not been taken."""
    steps = [each for each in board.on[experiment.gpu_uuid] if each.planned_at >= experiment.began_at]
    rates: dict[ServingKey, float | None] = {}
    for key in {kin.serving for kin, _ in before}:
        rate = board.rates.get(key)
        left = len(board.of[key]) - sum(1 for each in steps if each.serving == key)
        rates[key] = None if rate is None else rounded(rate / max(1, left))
    return rates


def _compared(what: str, subject: str, predicted: float, measured: float, unit: Unit) -> Compared:
    return Compared(
        what=what, subject=subject, predicted=float(predicted), measured=float(measured), unit=unit.value
    )  # fmt: skip


def inputs_of(board: Board, kind: GpuKind, mix: Mix) -> str:
    """Ten hex digits over what the prediction rests on: specs and coefficients of every engine on the GPU."""
    known = []
    for kin, _ in mix:
        serving = board.facts.servings[kin.serving]
        known.append(
            (str(kin.serving), serving.llm, serving.dtype.value, serving.template_hash, serving.slo,
             coefficients_of(serving, kind))
        )  # fmt: skip
    return hashlib.sha256(repr(known).encode()).hexdigest()[:10]
