"""Live calibration: what the engines of a pool tell of their coefficients, window by window, and when it is written.

Pure: what was learnt goes in and comes out. Decisions never read it; they use what is written in the cluster, so that a
process that starts anew decides alike. A GPU teaches once a window, while its engines are all there and nothing on it
moves. Engines on trial beside others teach nothing until their step is judged, or the filter would explain away what
the experiment is to find; and nothing is written of a model while a step with it is judged, which is held against what
was believed before.

What a window must pass: enough requests, no preemption, tokens that agree with batch and latency (Little's law, which a
series on another scale breaks), and no more DRAM traffic than its engines can explain. The filter is `perf/learning`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gpupack.decide.board import Board
from gpupack.decide.evidence import Seen, group_of, how, seen_on
from gpupack.decide.prospect import Prospects, belief_key, prior_of
from gpupack.decide.scaling import Samples, sampled
from gpupack.facts.belief import Belief, BeliefKey
from gpupack.facts.gpu import GpuKind
from gpupack.facts.interpretation import Facts, is_leaving
from gpupack.facts.observation import Missing, Observation, Phase
from gpupack.facts.serving import Sharing
from gpupack.perf import learning, sharing
from gpupack.perf.cycle import batch
from gpupack.perf.learning import Prior, State, Told
from gpupack.perf.prediction import EngineGroup
from gpupack.units import PerSecond, Seconds

WORTH_WRITING = 0.02
"""A coefficient, or the error, that moved by this share since it was last written."""
LOOKS_A_TICK = 8
"""So many GPUs at most: to look at one asks the model a dozen times."""
LEAST_FINISHED = 20.0
LEAST_RUNNING = 0.5
MOST_PREEMPTED = 0.01
LITTLE = 1.5
"""Tokens a second times their latency is the batch, within this factor."""
UNEXPLAINED = 2.0
"""DRAM traffic above this many times what the engines account for is somebody else's, or another scale."""
ALWAYS_RUNNING = 3.0
"""An engine with so many sequences is never idle, so that steps a second are one over the step."""
UNHURRIED = 0.7
"""Below this share of the batch limit nobody waits for a slot."""

_ITL, _STEP, _TTFT = 0.04, 0.04, 0.15
"""Standard deviations of the logarithm: how well the model knows a latency even when its coefficients are right."""
_ITL_BLIND, _TTFT_BLIND = 0.01, 0.15
"""What of that stays the same from window to window, and so says nothing of coefficients however often it is seen."""
_OF_A_REQUEST = 0.5
"""That of one request's mean latency; of many it falls with their root."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A GPU: who serves there, since when nothing changed, and when it was last looked at.

    While anything moves there it is nobody, and since now.
    """

    engines: tuple[tuple[str, int], ...]
    since: Seconds
    looked_at: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Mind:
    """`belief` is what this process thinks, `seen` what it last saw written, `told` what it asked to be written."""

    belief: Belief
    prior: Prior
    seen: Belief | None = None
    told: Belief | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """Everything that one process has learnt of one pool."""

    minds: Mapping[BeliefKey, Mind] = field(default_factory=dict)
    watched: Mapping[str, Watched] = field(default_factory=dict)
    scales: Samples = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """Engines alike in one window, with what is believed of them."""

    key: BeliefKey
    seen: Seen
    group: EngineGroup


def learn(facts: Facts, before: Learning) -> Learning:
    """What is thought after this look at the pool; equal in, equal out."""
    if facts.stale or facts.pool_problem is not None or facts.plan is None:
        return before
    minds = _remembered(facts, before.minds)
    watched = {
        uuid: _watch(facts, uuid, before.watched.get(uuid)) for uuid in facts.gpus if facts.replicas_on.get(uuid)
    }
    due = sorted((each.looked_at, uuid) for uuid, each in watched.items() if _is_due(facts, each))
    if not due:
        return replace(before, minds=minds, watched=watched)
    scales = before.scales
    board = Board(facts, facts.plan, Prospects(facts))
    for _, uuid in due[:LOOKS_A_TICK]:
        watched[uuid] = replace(watched[uuid], looked_at=facts.at)
        subjects = _subjects(board, uuid)
        if subjects:
            minds.update(_taught(board.kind(uuid), subjects, minds, facts.at))
            scales = sampled(scales, facts.gpus[uuid], _counted(board.kind(uuid), subjects))
    return Learning(minds=minds, watched=watched, scales=scales)


def due(learning_: Learning, observation: Observation) -> tuple[Belief, ...]:
    """What is to be written now: rarely, only what has moved, and nothing of a model whose step is being judged."""
    plan = observation.plan
    if plan is None or observation.stale or observation.pool_problem is not None:
        return ()
    on_trial = {
        (each.serving.namespace, placement.serving.name)
        for each in plan.experiments
        if each.is_on_trial
        for placement in plan.placements
        if placement.gpu_uuid == each.gpu_uuid
    }
    tried = {
        (each.key.namespace, each.llm.name, each.engine_version)
        for each in observation.servings
        if (each.key.namespace, each.key.name) in on_trial
    }
    found, interval = [], observation.policy.learning_interval
    for key in sorted(learning_.minds):
        mind = learning_.minds[key]
        last = mind.told or mind.seen
        if (key.namespace, key.model, key.engine_version) in tried or mind.belief.load < interval:
            continue
        if last is not None and 0 <= observation.at - last.at < interval:
            continue
        if _has_moved(mind, last):
            found.append(replace(mind.belief, at=observation.at))
    return tuple(found)


def wrote(before: Learning, belief: Belief) -> Learning:
    """After the shell has asked the cluster to keep it."""
    mind = before.minds.get(belief.key)
    if mind is None:
        return before
    return replace(before, minds={**before.minds, belief.key: replace(mind, told=belief)})


def _has_moved(mind: Mind, last: Belief | None) -> bool:
    was = learning.begun(mind.belief.key, mind.prior, mind.belief.at) if last is None else last
    moves = [
        abs(math.log(now / then)) for now, then in zip(mind.belief.coefficients, was.coefficients, strict=True)
    ]  # fmt: skip
    return max(*moves, abs(mind.belief.error - was.error)) > WORTH_WRITING


def _remembered(facts: Facts, before: Mapping[BeliefKey, Mind]) -> dict[BeliefKey, Mind]:
    """A mind for every model on every kind of GPU that has engines: what is written, what was thought, or the prior.

    What somebody else wrote is taken over, and what somebody deleted is forgotten.
    """
    kinds = {gpu.gpu.kind.name: gpu.gpu.kind for gpu in facts.gpus.values()}
    found: dict[BeliefKey, Mind] = {}
    for serving in facts.servings.values():
        if serving.observes:
            continue
        written = {each.key: each for each in serving.learned}
        for kind in kinds.values():
            key = belief_key(serving, kind)
            if key not in found and (key in before or key in written or kind.computes_in(serving.dtype)):
                prior = Prior(coefficients=prior_of(serving, kind), layers=serving.llm.layers)
                found[key] = _mind(key, prior, written.get(key), before.get(key), facts.at)
    return found


def _mind(key: BeliefKey, prior: Prior, written: Belief | None, mind: Mind | None, at: Seconds) -> Mind:
    if mind is None or (written is None and mind.seen is not None):
        belief = written or learning.begun(key, prior, at)
        return Mind(belief=belief, prior=prior, seen=written)
    if written is None or written == mind.seen:
        return replace(mind, prior=prior)
    if mind.told is not None and written.at == _second(mind.told.at):
        return replace(mind, prior=prior, seen=written)
    return Mind(belief=written, prior=prior, seen=written)


def _second(at: Seconds) -> Seconds:
    """As it is written."""
    return Seconds(math.floor(at))


def _watch(facts: Facts, uuid: str, before: Watched | None) -> Watched:
    engines = tuple((each.name, each.restarts) for each in facts.replicas_on[uuid])
    still = all(each.phase is Phase.READY and not is_leaving(each) for each in facts.replicas_on[uuid])
    if before is None or not still or before.engines != engines or not before.since <= facts.at:
        return Watched(engines=engines if still else (), since=facts.at, looked_at=facts.at)
    return before


def _is_due(facts: Facts, watched: Watched) -> bool:
    policy = facts.policy
    return facts.at - max(watched.since + policy.warmup, watched.looked_at) >= policy.window


def _subjects(board: Board, uuid: str) -> tuple[_Subject, ...]:
    """The engines on that GPU if this window of theirs can teach anything; nothing otherwise."""
    gpu, mix = board.facts.gpus[uuid], board.mix(uuid)
    experiment = board.experiments.get(uuid)
    on_trial = experiment is not None and experiment.is_on_trial
    if gpu.foreign or not board.prospects.knows(mix) or board.leftovers(uuid):
        return ()
    if on_trial and sum(count for _, count in mix) > 1:
        return ()
    seen = seen_on(board, uuid, mix)
    if isinstance(seen, Missing):
        return ()
    kind = gpu.gpu.kind
    subjects = tuple(
        _Subject(
            key=belief_key(board.facts.servings[each.kin.serving], kind), seen=each,
            group=group_of(board, kind, each, PerSecond(max(each.arrivals, 1e-6) * each.engines)),
        )
        for each in seen
    )  # fmt: skip
    return subjects if _is_explained(kind, subjects, gpu.dram_active) else ()


def _is_explained(kind: GpuKind, subjects: Iterable[_Subject], dram_active: float | Missing) -> bool:
    """Whether these engines account for the DRAM traffic. More than that is somebody else, and their latency his."""
    return isinstance(dram_active, Missing) or dram_active <= UNEXPLAINED * _counted(kind, subjects) + 0.1


def _counted(kind: GpuKind, subjects: Iterable[_Subject]) -> float:
    """Share of the DRAM's peak that these engines move by their own account."""
    return sum(_bytes(kind, each) for each in subjects) / float(kind.dram_bytes_per_second)


def _bytes(kind: GpuKind, subject: _Subject) -> float:
    """Bytes a second: what the engines count themselves, else their steps times what a step reads."""
    seen = subject.seen
    if seen.read_bytes is not None:
        return seen.read_bytes
    inside = _inside(seen)
    return seen.tokens_per_second / inside * batch(kind, subject.group).cycle(inside).whole.bytes


def _inside(seen: Seen) -> float:
    """The mean batch of its steps."""
    running = max(seen.running, 1e-3)
    return running / -math.expm1(-running)


def _told(subject: _Subject) -> dict[str, Told]:
    """What its window says, by what it is. Nothing where the window contradicts itself."""
    seen = subject.seen
    if seen.itl is None or seen.finished < LEAST_FINISHED or seen.running < LEAST_RUNNING:
        return {}
    if seen.preemptions is not None and seen.preemptions * seen.seconds > MOST_PREEMPTED * seen.finished:
        return {}
    little = seen.tokens_per_second * seen.itl / (seen.running * seen.engines)
    if not 1 / LITTLE <= little <= LITTLE:
        return {}
    chance = math.hypot(_OF_A_REQUEST / math.sqrt(seen.finished), _unsteady(subject))
    found = {"itl": Told(math.log(seen.itl), math.hypot(_ITL, chance), _ITL_BLIND)}
    if seen.steps and seen.running >= ALWAYS_RUNNING:
        found["step"] = Told(math.log(seen.engines / seen.steps), math.hypot(_STEP, chance), _ITL_BLIND)
    if seen.ttft and seen.waiting == 0 and seen.running < UNHURRIED * subject.group.shape.max_num_seqs:
        found["ttft"] = Told(math.log(seen.ttft), math.hypot(_TTFT, chance), _TTFT_BLIND)
    return found


def _unsteady(subject: _Subject) -> float:
    """By how much a batch that swings lengthens the mean gap beyond that of the mean batch: at most cv^2 / 4.

    Tokens over time are concave in the batch. The range of what scrapes found is taken for four standard deviations;
    where nobody tells, the arrivals are taken to be Poisson.
    """
    seen, most = subject.seen, float(subject.group.shape.max_num_seqs)
    if seen.inside_least is None or seen.inside_most is None:
        return 0.25 / seen.running
    cv = (min(seen.inside_most, most) - min(seen.inside_least, most)) / 4 / seen.running
    return cv * cv / 4


def _taught(
    kind: GpuKind, subjects: Sequence[_Subject], minds: Mapping[BeliefKey, Mind], at: Seconds
) -> dict[BeliefKey, Mind]:
    """The minds of these models after the window, all together: what is not known of a neighbour is part of it."""
    told = [_told(each) for each in subjects]
    if any(not each for each in told):
        return {}  # an engine that cannot be judged may be what slows the others
    keys = sorted({each.key for each in subjects})
    seconds = max(each.seen.seconds for each in subjects)
    states = []
    for key in keys:
        mind = minds[key]
        state = learning.state_of(mind.belief, mind.prior)
        states.append(
            State(state.mean, learning.forgotten(state.covariance, mind.prior.covariance, seconds))
        )  # fmt: skip
    size = len(learning.LEARNT)
    place = {key: number * size for number, key in enumerate(keys)}
    batches = tuple(each.seen.running for each in subjects)
    shared = how([each.seen for each in subjects])

    def expected(scales: Sequence[float]) -> list[float]:
        groups = tuple(
            replace(
                each.group,
                coefficients=learning.moved(minds[each.key].prior, scales[place[each.key] : place[each.key] + size]),
            )
            for each in subjects
        )
        return _expected(kind, groups, batches, shared, told)

    numbers = [number for each in told for number in each.values()]
    bounds = [bound for key in keys for bound in minds[key].prior.bounds]
    state, surprises = learning.refined(learning.together(states), numbers, expected, bounds)
    if not surprises:
        return {}
    return {
        key: _after(minds[key], own, [each.seen for each in subjects if each.key == key], surprises, seconds, at)
        for key, own in zip(keys, learning.apart(state), strict=True)
    }


def _expected(
    kind: GpuKind, groups: tuple[EngineGroup, ...], batches: tuple[float, ...], shared: Sharing,
    told: Sequence[Mapping[str, Told]],
) -> list[float]:  # fmt: skip
    """Logarithms of what the model says, in the order of `told`. A step is as long as a gap between two tokens."""
    gaps = sharing.itl_at(kind, groups, batches, shared)
    firsts: Sequence[Seconds | None] = [None] * len(groups)
    if any("ttft" in each for each in told):
        firsts = sharing.first_token_means(kind, groups, shared)
    found = []
    for gap, first, numbers in zip(gaps, firsts, told, strict=True):
        for what in numbers:
            value = first if what == "ttft" else gap
            found.append(math.nan if value is None else math.log(value))
    return found


def _after(
    mind: Mind, state: State, seen: Sequence[Seen], surprises: Sequence[float], seconds: Seconds, at: Seconds
) -> Mind:
    belief = learning.with_state(mind.belief, mind.prior, state)
    belief = replace(
        belief,
        error=learning.misfit(belief.error, surprises),
        load=Seconds(belief.load + seconds),
        batch_least=min(belief.batch_least, *(each.running for each in seen)),
        batch_most=max(belief.batch_most, *(each.running for each in seen)),
        input_mean=seen[-1].input_mean,
        output_mean=seen[-1].output_mean,
        at=at,
    )
    return replace(mind, belief=belief)
