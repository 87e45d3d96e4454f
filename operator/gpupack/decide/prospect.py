"""What the performance model says of engines on one GPU: kept full, and under the traffic of now.

Knows which lengths, rates and coefficients belong to a serving: live ones replace declared ones. They are rounded to
steps of five per cent, so that a prediction moves only when its inputs really did. It does not know what is allowed.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from gpupack.facts.belief import Belief, BeliefKey
from gpupack.facts.gpu import GpuKind
from gpupack.facts.interpretation import EngineFacts, Facts, Traffic
from gpupack.facts.llm import Dtype, Llm
from gpupack.facts.observation import Missing, Phase
from gpupack.facts.serving import Lengths, Profile, Serving, ServingKey, Shape, Sharing
from gpupack.perf import calibration, learning, memory, sharing
from gpupack.perf.prediction import Coefficients, EngineGroup, GpuPrediction
from gpupack.units import Bytes, PerSecond

STEP = math.log(1.05)
LENGTHS_FROM = 50
"""So many finished requests must stand behind live lengths."""


@dataclass(frozen=True, slots=True, eq=False)
class Kin:
    """Engines that are alike: one serving, one shape. A tick has one object of each, so that identity is equality.

    Kins of one serving have the same object as their `serving`.
    """

    serving: ServingKey
    shape: Shape
    order: tuple[str, str, int, int, int]


Mix = tuple[tuple[Kin, int], ...]
"""Engines on one GPU: how many of each kin, in order."""


def with_one(mix: Mix, kin: Kin, change: int = 1) -> Mix:
    """The mix with one engine more (or less) of that kin."""
    for index, (each, count) in enumerate(mix):
        if each is kin:
            left = ((kin, count + change),) if count + change > 0 else ()
            return (*mix[:index], *left, *mix[index + 1 :])
        if kin.order < each.order:
            return (*mix[:index], (kin, change), *mix[index:]) if change > 0 else mix
    return (*mix, (kin, change)) if change > 0 else mix


def mix_of(engines: Iterable[Kin]) -> Mix:
    return tuple(sorted(Counter(engines).items(), key=_order))


def _order(entry: tuple[Kin, int]) -> tuple[str, str, int, int, int]:
    return entry[0].order


def rounded(value: float) -> float:
    """The nearest step of five per cent; zero stays zero."""
    return math.exp(round(math.log(value) / STEP) * STEP) if value > 0 else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Alike:
    """Engines on a kind of GPU as one object however often they are described, so that identity is equality here too.

    A description is some fifty numbers; to hash and compare them costs more than to look up what is predicted of them.
    """

    kind: GpuKind
    group: EngineGroup


@lru_cache(maxsize=4096)
def _alike(kind: GpuKind, group: EngineGroup) -> Alike:
    return Alike(kind, group)


@lru_cache(maxsize=4096)
def _several(lone: Alike, count: int, rate: float | None) -> Alike:
    """So many of an engine, each at so many requests a second."""
    each = None if rate is None else PerSecond(max(rate, 1e-6) * count)
    return _alike(lone.kind, replace(lone.group, replicas=count, request_rate=each))


@lru_cache(maxsize=4096)
def _predicted(engines: tuple[Alike, ...], reserve: Bytes) -> GpuPrediction:
    """All of one kind of GPU, on one of them."""
    groups = tuple(each.group for each in engines)
    how = Sharing.among(sum(group.replicas for group in groups))
    return sharing.predict(engines[0].kind, groups, how, reserve)


class Prospects:
    """The model's answers for one tick, each asked once. `lengths` are the ones to predict with, by serving."""

    def __init__(self, facts: Facts) -> None:
        self.servings = facts.servings
        self.lengths = {key: live_lengths(serving, facts) or serving.lengths for key, serving in facts.servings.items()}
        self.overheads = overheads_of(facts)
        self._reserve = facts.policy.gpu_reserve
        self._keys: dict[ServingKey, ServingKey] = {}
        self._kin: dict[tuple[ServingKey, Shape], Kin] = {}
        self._known: dict[Mix, bool] = {}
        self._full: dict[tuple[str, Mix], GpuPrediction] = {}
        self._worth: dict[tuple[str, Mix], float] = {}
        self._alone: dict[str, dict[Kin, float]] = defaultdict(dict)
        self._alike: dict[str, dict[tuple[Kin, int, float | None], Alike]] = defaultdict(dict)
        self._memory: dict[tuple[str, Kin], Bytes] = {}
        self._most: dict[tuple[str, Kin], float] = {}
        self._lone: dict[tuple[str, Kin], Alike] = {}

    def kin(self, serving: ServingKey, shape: Shape) -> Kin:
        found = self._kin.get((serving, shape))
        if found is None:
            order = (
                serving.namespace, serving.name, shape.max_num_seqs, shape.kv_cache_memory_bytes,
                shape.max_num_batched_tokens,
            )  # fmt: skip
            found = self._kin[serving, shape] = Kin(self._keys.setdefault(serving, serving), shape, order)
        return found

    def knows(self, mix: Mix) -> bool:
        """Whether every engine's serving is still there to be predicted."""
        found = self._known.get(mix)
        if found is None:
            found = self._known[mix] = all(kin.serving in self.servings for kin, _ in mix)
        return found

    def full(self, kind: GpuKind, mix: Mix) -> GpuPrediction:
        """The GPU with every engine kept full."""
        found = self._full.get((kind.name, mix))
        if found is None:
            found = self._full[kind.name, mix] = self._predict(kind, mix, (None,) * len(mix))
        return found

    def loaded(self, kind: GpuKind, mix: Mix, rates: Mapping[ServingKey, float | None]) -> GpuPrediction:
        """The GPU with so many requests a second for each engine of a serving; None keeps its engines full."""
        return self.at_rates(kind, mix, tuple(rates.get(kin.serving) for kin, _ in mix))

    def at_rates(self, kind: GpuKind, mix: Mix, rates: tuple[float | None, ...]) -> GpuPrediction:
        """The GPU with so many requests a second for each engine of each kin of the mix."""
        return self._predict(kind, mix, rates)

    def finish_rate(self, kind: GpuKind, mix: Mix, serving: ServingKey) -> float:
        """Requests a second that this serving's engines of the mix finish when everything is kept full."""
        tokens, own = 0.0, self._keys.get(serving, serving)
        for (kin, _), group in zip(mix, self.full(kind, mix).groups, strict=True):
            if kin.serving is own:
                tokens += group.output_tokens_per_second
        return tokens / self.lengths[serving].output_mean

    def worth(self, kind: GpuKind, mix: Mix) -> float:
        """Throughput of the whole mix in units of lone engines: each group's tokens over those of one of it alone.

        Tokens of unlike models cannot be added; for one model this is proportional to tokens a second.
        """
        found = self._worth.get((kind.name, mix))
        if found is None:
            found, alone = 0.0, self._alone[kind.name]
            for (kin, _), group in zip(mix, self.full(kind, mix).groups, strict=True) if mix else ():
                if kin not in alone:
                    alone[kin] = self.full(kind, ((kin, 1),)).total_tokens_per_second
                found += group.total_tokens_per_second / alone[kin]
            self._worth[kind.name, mix] = found
        return found

    def memory_of(self, kind: GpuKind, kin: Kin) -> Bytes:
        found = self._memory.get((kind.name, kin))
        if found is None:
            serving = self.servings[kin.serving]
            predicted = memory.replica_memory(serving.llm, serving.dtype, kin.shape, kind).total
            found = Bytes(predicted + self.overheads.get((kin.serving, kind.name), 0))
            self._memory[kind.name, kin] = found
        return found

    def most_memory_of(self, kind: GpuKind, kin: Kin) -> float:
        """Bytes that one engine may hold if every part is at the upper end of what is believed of it."""
        found = self._most.get((kind.name, kin))
        if found is None:
            serving = self.servings[kin.serving]
            parts = memory.replica_memory(serving.llm, serving.dtype, kin.shape, kind)
            every = (parts.weights, parts.context, parts.graphs, parts.activation, parts.kv_cache)
            overhead = self.overheads.get((kin.serving, kind.name), 0)
            found = self._most[kind.name, kin] = sum(part.high for part in every) + overhead
        return found

    def _predict(self, kind: GpuKind, mix: Mix, rates: tuple[float | None, ...]) -> GpuPrediction:
        engines, known = [], self._alike[kind.name]
        for (kin, count), rate in zip(mix, rates, strict=True):
            found = known.get((kin, count, rate))
            if found is None:
                lone = self._lone_engine(kind, kin)
                is_lone = count == 1 and rate is None
                found = known[kin, count, rate] = lone if is_lone else _several(lone, count, rate)
            engines.append(found)
        return _predicted(tuple(engines), self._reserve)

    def _lone_engine(self, kind: GpuKind, kin: Kin) -> Alike:
        found = self._lone.get((kind.name, kin))
        if found is None:
            serving = self.servings[kin.serving]
            group = EngineGroup(
                llm=serving.llm,
                dtype=serving.dtype,
                shape=kin.shape,
                lengths=self.lengths[kin.serving],
                replicas=1,
                request_rate=None,
                coefficients=coefficients_of(serving, kind),
                cores=serving.cpu_cores,
            )
            found = self._lone[kind.name, kin] = _alike(kind, group)
        return found


def overheads_of(facts: Facts) -> dict[tuple[ServingKey, str], Bytes]:
    """Bytes of GPU memory that an engine was seen to need beyond what is predicted, by serving and kind of GPU."""
    lessons = facts.plan.lessons if facts.plan is not None else ()
    return {(each.serving, each.gpu_kind): each.overhead for each in lessons if each.overhead}


def coefficients_of(serving: Serving, kind: GpuKind) -> Coefficients:
    """What live load has taught and is written down, else what was known before."""
    belief = belief_of(serving, kind)
    prior = prior_of(serving, kind)
    return prior if belief is None else _learnt(prior, serving.llm, belief)


def prior_of(serving: Serving, kind: GpuKind) -> Coefficients:
    """Those of the engine version, moved to the serving's own profile where it was measured on this kind of GPU."""
    return _coefficients(serving.llm, serving.dtype, serving.engine_version, serving.profile, kind)


def belief_of(serving: Serving, kind: GpuKind) -> Belief | None:
    """What is written of this model on that kind of GPU."""
    if not serving.learned:
        return None
    key = belief_key(serving, kind)
    return next((each for each in serving.learned if each.key == key), None)


def belief_key(serving: Serving, kind: GpuKind) -> BeliefKey:
    return BeliefKey(
        namespace=serving.key.namespace, model=serving.llm.name, gpu_kind=kind.name,
        engine_version=serving.engine_version,
    )  # fmt: skip


@lru_cache(maxsize=1024)
def _learnt(prior: Coefficients, llm: Llm, belief: Belief) -> Coefficients:
    return learning.as_learnt(prior, llm, belief)


@lru_cache(maxsize=1024)
def _coefficients(llm: Llm, dtype: Dtype, version: str, profile: Profile | None, kind: GpuKind) -> Coefficients:
    base = calibration.coefficients(version, "spec.engine.version")
    if profile is None or profile.gpu_kind != kind.name or not profile.points:
        return base
    return calibration.fit(profile, llm, kind, base, dtype)


def live_lengths(serving: Serving, facts: Facts) -> Lengths | None:
    """The lengths of the requests that really came to its replicas; None if too few."""
    replicas = facts.replicas_of.get(serving.key, ())
    ready = (facts.engines.get(each.name) for each in replicas if each.phase is Phase.READY)
    return measured_lengths(serving.lengths, (each for each in ready if each is not None))


def measured_lengths(declared: Lengths, engines: Iterable[EngineFacts]) -> Lengths | None:
    """Means of the requests that really came, over the longest window, weighed by how many finished; None if too few.

    The spread stays the declared one: histograms of lengths are too coarse for it.
    """
    weight = given = made = 0.0
    for engine in engines:
        traffic = _longest(engine)
        if traffic is None or isinstance(traffic.finished, Missing):
            continue
        if isinstance(traffic.input_mean, Missing) or isinstance(traffic.output_mean, Missing):
            continue
        finished = traffic.finished * traffic.seconds
        weight += finished
        given += finished * traffic.input_mean
        made += finished * traffic.output_mean
    if weight < LENGTHS_FROM or given <= 0 or made <= 0:
        return None
    return replace(
        declared,
        input_mean=rounded(given / weight),
        output_mean=rounded(made / weight),
        assumed=False,
    )


def _longest(engine: EngineFacts) -> Traffic | None:
    return engine.windows[-1] if engine.windows else None
