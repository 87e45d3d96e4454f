"""What the performance model says of engines on one GPU: kept full, and under the traffic of now.

Knows which lengths, rates and coefficients belong to a serving: live ones replace declared ones. They are rounded to
steps of five per cent, so that a prediction moves only when its inputs really did. It does not know what is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from gpupack.facts.gpu import GpuKind
from gpupack.facts.interpretation import EngineFacts, Facts, Traffic
from gpupack.facts.llm import Dtype, Llm
from gpupack.facts.observation import Missing, Phase
from gpupack.facts.placement import Placement
from gpupack.facts.serving import Lengths, Profile, Serving, ServingKey, Shape, Sharing
from gpupack.perf import calibration, memory, sharing
from gpupack.perf.prediction import Coefficients, EngineGroup, GpuPrediction
from gpupack.units import Bytes, PerSecond

STEP = math.log(1.05)
LENGTHS_FROM = 50
"""So many finished requests must stand behind live lengths."""

Kin = tuple[ServingKey, Shape]
Mix = tuple[tuple[Kin, int], ...]
"""Engines on one GPU: how many of each serving and shape, in order."""


def mix_of(placements: list[Placement]) -> Mix:
    counts: dict[Kin, int] = {}
    for placement in placements:
        kin = (placement.serving, placement.shape)
        counts[kin] = counts.get(kin, 0) + 1
    return tuple(sorted(counts.items(), key=_order))


def with_one(mix: Mix, kin: Kin, change: int = 1) -> Mix:
    """The mix with one engine more (or less) of that kin."""
    counts = dict(mix)
    counts[kin] = counts.get(kin, 0) + change
    return tuple(sorted(((each, count) for each, count in counts.items() if count > 0), key=_order))


def _order(entry: tuple[Kin, int]) -> tuple[ServingKey, int, int, int]:
    (serving, shape), _ = entry
    return serving, shape.max_num_seqs, shape.kv_cache_memory_bytes, shape.max_num_batched_tokens


def rounded(value: float) -> float:
    """The nearest step of five per cent; zero stays zero."""
    return math.exp(round(math.log(value) / STEP) * STEP) if value > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Prospects:
    """The model's answers for one tick. `lengths` are the ones to predict with, by serving."""

    servings: Mapping[ServingKey, Serving]
    reserve: Bytes
    lengths: Mapping[ServingKey, Lengths]

    @staticmethod
    def of(facts: Facts) -> Prospects:
        lengths = {key: live_lengths(serving, facts) or serving.lengths for key, serving in facts.servings.items()}
        return Prospects(servings=facts.servings, reserve=facts.policy.gpu_reserve, lengths=lengths)

    def knows(self, mix: Mix) -> bool:
        """Whether every engine's serving is still there to be predicted."""
        return all(serving in self.servings for (serving, _), _ in mix)

    def full(self, kind: GpuKind, mix: Mix) -> GpuPrediction:
        """The GPU with every engine kept full."""
        return self._predict(kind, mix, None)

    def loaded(self, kind: GpuKind, mix: Mix, rates: Mapping[ServingKey, float | None]) -> GpuPrediction:
        """The GPU with so many requests a second for each engine of a serving; None keeps its engines full."""
        return self._predict(kind, mix, rates)

    def finish_rate(self, kind: GpuKind, mix: Mix, serving: ServingKey) -> float:
        """Requests a second that this serving's engines of the mix finish when everything is kept full."""
        prediction = self.full(kind, mix)
        tokens = sum(
            group.output_tokens_per_second
            for ((owner, _), _), group in zip(mix, prediction.groups, strict=True)
            if owner == serving
        )
        return tokens / self.lengths[serving].output_mean

    def worth(self, kind: GpuKind, mix: Mix) -> float:
        """Throughput of the whole mix in units of lone engines: each group's tokens over those of one of it alone.

        Tokens of unlike models cannot be added; for one model this is proportional to tokens a second.
        """
        if not mix:
            return 0.0
        total = 0.0
        for (kin, _), group in zip(mix, self.full(kind, mix).groups, strict=True):
            alone = self.full(kind, ((kin, 1),))
            total += group.total_tokens_per_second / alone.total_tokens_per_second
        return total

    def memory_of(self, kind: GpuKind, kin: Kin) -> Bytes:
        serving = self.servings[kin[0]]
        return memory.replica_memory(serving.llm, serving.dtype, kin[1], kind).total

    def _predict(self, kind: GpuKind, mix: Mix, rates: Mapping[ServingKey, float | None] | None) -> GpuPrediction:
        groups = tuple(self._group(kind, kin, count, rates) for kin, count in mix)
        engines = sum(count for _, count in mix)
        return sharing.predict(kind, groups, Sharing.EXCLUSIVE if engines == 1 else Sharing.MPS, self.reserve)

    def _group(
        self, kind: GpuKind, kin: Kin, count: int, rates: Mapping[ServingKey, float | None] | None
    ) -> EngineGroup:
        key, shape = kin
        serving = self.servings[key]
        each = None if rates is None else rates.get(key)
        return EngineGroup(
            llm=serving.llm,
            dtype=serving.dtype,
            shape=shape,
            lengths=self.lengths[key],
            replicas=count,
            request_rate=None if each is None else PerSecond(max(each, 1e-6) * count),
            coefficients=coefficients_of(serving, kind),
        )


def coefficients_of(serving: Serving, kind: GpuKind) -> Coefficients:
    """Those of the engine version, moved to the serving's own profile where it was measured on this kind of GPU."""
    return _coefficients(serving.llm, serving.dtype, serving.engine_version, serving.profile, kind)


@lru_cache(maxsize=1024)
def _coefficients(llm: Llm, dtype: Dtype, version: str, profile: Profile | None, kind: GpuKind) -> Coefficients:
    base = calibration.coefficients(version, "spec.engine.version")
    if profile is None or profile.gpu_kind != kind.name or not profile.points:
        return base
    return calibration.fit(profile, llm, kind, base, dtype)


def live_lengths(serving: Serving, facts: Facts) -> Lengths | None:
    """Means of the requests that really came, over the longest window, weighed by how many finished; None if too few.

    The spread stays the declared one: histograms of lengths are too coarse for it.
    """
    weight = given = made = 0.0
    for replica in facts.replicas_of.get(serving.key, ()):
        engine = facts.engines.get(replica.name)
        traffic = None if engine is None else _longest(engine)
        if traffic is None or replica.phase is not Phase.READY:
            continue
        if isinstance(traffic.finished, Missing):
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
        serving.lengths,
        input_mean=rounded(given / weight),
        output_mean=rounded(made / weight),
        assumed=False,
    )


def _longest(engine: EngineFacts) -> Traffic | None:
    return engine.windows[-1] if engine.windows else None

