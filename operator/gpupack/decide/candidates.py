"""Every (batch limit, replicas) that a question may look at: what the GPU would do, and all that speaks against it.

A batch limit is judged with every engine full at that limit, so that a burst cannot break the promise. Each pair is
predicted once. Which pair is best is `search`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from gpupack.decide.question import Question, memory_needed, resolve_max_model_len
from gpupack.facts.estimate import Estimate, Source
from gpupack.facts.serving import Shape, Sharing, Slo, Statistic
from gpupack.perf import memory, sharing
from gpupack.perf.prediction import EngineGroup, GpuPrediction, ReplicaMemory
from gpupack.plan import Reason, Unit, Verdict
from gpupack.units import Bytes, PerSecond, Seconds

_RELAXED_BATCH = 32
_RELAXED_FACTOR = 2.0
# Requests a second, or the share of a rate, at which an engine is as good as idle.
_IDLE = 1e-3
_LOAD_ROUNDS = 8


class Candidates:
    """Used within one call and thrown away. `slo` is the question's, or the assumed one."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.max_model_len = resolve_max_model_len(question.llm, question.lengths, question.max_model_len)
        self.most_replicas = 1 if question.sharing is Sharing.EXCLUSIVE else question.max_replicas
        self._shapes: dict[int, Shape] = {}
        self._full: dict[tuple[int, int], GpuPrediction] = {}
        self._loads: dict[tuple[int, int], tuple[PerSecond, GpuPrediction]] = {}
        self.slo = question.slo if question.slo is not None else self._assumed_slo()

    def shape(self, batch: int) -> Shape:
        shape = self._shapes.get(batch)
        if shape is None:
            asked = self.question
            tokens = memory.kv_tokens_needed(asked.lengths, batch, self.max_model_len, asked.policy.kv_safety)
            shape = self._shapes[batch] = Shape(
                max_num_seqs=batch,
                kv_cache_memory_bytes=memory.kv_cache_bytes(asked.llm, asked.dtype, tokens),
                # vLLM refuses a token budget below the batch limit.
                max_num_batched_tokens=max(asked.max_num_batched_tokens, batch),
                max_model_len=self.max_model_len,
                chunked_prefill=asked.chunked_prefill,
            )
        return shape

    def memory(self, batch: int) -> ReplicaMemory:
        """With what engines were seen to need beyond the prediction, which counts as their context."""
        asked = self.question
        found = memory.replica_memory(asked.llm, asked.dtype, self.shape(batch), asked.gpu)
        if not asked.overhead:
            return found
        context = found.context + Estimate.exact(asked.overhead, Source.MEASURED)
        return replace(found, context=context, total=Bytes(found.total + asked.overhead))

    def group(self, batch: int, replicas: int, rate: PerSecond | None) -> EngineGroup:
        return EngineGroup(
            llm=self.question.llm,
            dtype=self.question.dtype,
            shape=self.shape(batch),
            lengths=self.question.lengths,
            replicas=replicas,
            request_rate=rate,
            coefficients=self.question.coefficients,
            cores=None if self.question.node_cores is None else self.question.cpu_cores,
        )

    def full(self, batch: int, replicas: int) -> GpuPrediction:
        """The GPU with every engine kept full."""
        prediction = self._full.get((batch, replicas))
        if prediction is None:
            prediction = self._full[batch, replicas] = self.predict(batch, replicas, None)
        return prediction

    def predict(self, batch: int, replicas: int, rate: PerSecond | None) -> GpuPrediction:
        asked = self.question
        # Where one engine has the GPU to itself, a second one is judged as MPS would run it.
        how = Sharing.among(replicas) if replicas == 1 or asked.sharing is Sharing.EXCLUSIVE else asked.sharing
        return sharing.predict(asked.gpu, (self.group(batch, replicas, rate),), how, asked.policy.gpu_reserve)

    def idle(self, batch: int) -> GpuPrediction:
        """The GPU with one engine that has next to nothing to do."""
        return self.predict(batch, 1, PerSecond(_IDLE))

    def capacity(self, batch: int, replicas: int) -> float:
        """Tokens a second of the whole GPU with every engine kept full."""
        return self.full(batch, replicas).total_tokens_per_second

    def load(self, batch: int, replicas: int) -> tuple[PerSecond, GpuPrediction]:
        """The highest request rate of the whole GPU that keeps the SLO, and the GPU under it; rate 0 if none does.

        Without a promised TTFT it is the rate that keeps every engine full. Found to half a per cent.
        """
        found = self._loads.get((batch, replicas))
        if found is None:
            found = self._loads[batch, replicas] = self._find_load(batch, replicas)
        return found

    def full_load(self, batch: int, replicas: int) -> tuple[PerSecond, GpuPrediction]:
        """The request rate that keeps every engine just full, and the GPU under it."""
        full = self.full(batch, replicas)
        lengths = self.question.lengths
        return PerSecond(full.total_tokens_per_second / (lengths.input_mean + lengths.output_mean)), full

    def _find_load(self, batch: int, replicas: int) -> tuple[PerSecond, GpuPrediction]:
        most, full = self.full_load(batch, replicas)
        if self.slo.ttft is None:
            return most, full
        low = most * _IDLE
        kept = self.predict(batch, replicas, PerSecond(low))
        if not sharing.keeps(kept.groups[0], self.slo):
            return PerSecond(0.0), kept
        high = float(most)
        for _ in range(_LOAD_ROUNDS):
            middle = (low + high) / 2
            prediction = self.predict(batch, replicas, PerSecond(middle))
            if sharing.keeps(prediction.groups[0], self.slo):
                low, kept = middle, prediction
            else:
                high = middle
        return PerSecond(low), kept

    def objections(self, batch: int, replicas: int) -> Iterator[Verdict]:
        """Everything against `replicas` engines at this batch limit instead of one less, in the order of `Reason`."""
        checks: tuple[Callable[[], Verdict | None], ...] = (
            lambda: self._too_many(replicas),
            lambda: self._memory_short(batch, replicas),
            lambda: self._cpu_short(replicas),
            lambda: self._itl_broken(batch, replicas),
            lambda: self._ttft_broken(batch, replicas),
            lambda: self._saturated(batch, replicas),
            lambda: self._batch_wasted(batch, replicas),
            lambda: self._little_gained(batch, replicas),
        )
        for check in checks:
            verdict = check()
            if verdict is not None:
                yield verdict

    def no_room(self, batch: int, replicas: int) -> Verdict | None:
        """Why so many engines cannot stand on the GPU at all, whatever they would bring."""
        return self._too_many(replicas) or self._memory_short(batch, replicas) or self._cpu_short(replicas)

    def _too_many(self, replicas: int) -> Verdict | None:
        if self.most_replicas is None or replicas <= self.most_replicas:
            return None
        exclusive = self.question.sharing is Sharing.EXCLUSIVE
        detail = "exclusive: one engine a GPU" if exclusive else f"asked for at most {self.most_replicas}"
        return self._verdict(
            Reason.MAX_REPLICAS, given(replicas), given(self.most_replicas), Unit.REPLICAS, detail=detail
        )

    def _memory_short(self, batch: int, replicas: int) -> Verdict | None:
        needed = memory_needed(self.memory(batch).total, replicas, self.question.gpu, self.question.policy.gpu_reserve)
        have = self.question.gpu.memory_bytes
        if needed <= have:
            return None
        return self._verdict(Reason.MEMORY, Estimate.exact(needed, Source.CALIBRATED), given(have), Unit.BYTES)

    def _cpu_short(self, replicas: int) -> Verdict | None:
        cores = self.question.node_cores
        needed = replicas * self.question.cpu_cores
        if cores is None or needed <= cores:
            return None
        return self._verdict(Reason.HOST_CPU, given(needed), given(cores), Unit.CORES)

    def _itl_broken(self, batch: int, replicas: int) -> Verdict | None:
        limit = self.slo.itl
        if limit is None:
            return None
        full = self.full(batch, replicas)
        latency, _ = sharing.statistic_of(full.groups[0], self.slo.statistic)
        if latency <= limit:
            return None
        return self._verdict(
            Reason.LATENCY_SLO,
            predicted(latency, full),
            self._promised(limit),
            Unit.SECONDS,
            detail="inter-token latency",
        )

    def _ttft_broken(self, batch: int, replicas: int) -> Verdict | None:
        """A promise of the first token that not even an idle engine keeps; how much load it allows is `load`'s part."""
        limit = self.slo.ttft
        if limit is None or replicas > 1:
            return None
        idle = self.idle(batch)
        _, wait = sharing.statistic_of(idle.groups[0], self.slo.statistic)
        if wait is None or wait <= limit:
            return None
        return self._verdict(
            Reason.LATENCY_SLO,
            predicted(wait, idle),
            self._promised(limit),
            Unit.SECONDS,
            detail="time to first token",
        )

    def _saturated(self, batch: int, replicas: int) -> Verdict | None:
        if replicas == 1:
            return None
        before = self.full(batch, replicas - 1)
        ceiling = self.question.policy.saturation_ceiling
        if before.saturation < ceiling:
            return None
        return self._verdict(Reason.BANDWIDTH_CEILING, predicted(before.saturation, before), given(ceiling), Unit.RATIO)

    def _batch_wasted(self, batch: int, replicas: int) -> Verdict | None:
        """BCA's epsilon: a batch of B must do more than `min_efficiency` x B times the work of a batch of 1."""
        least = self.question.batching.min_efficiency
        if replicas > 1 or batch == 1 or self.question.batching.fixed is not None:
            return None
        full = self.full(batch, 1)
        reached = full.total_tokens_per_second / (batch * self.full(1, 1).total_tokens_per_second)
        if reached > least:
            return None
        return self._verdict(
            Reason.MARGINAL_GAIN,
            predicted(reached, full),
            given(least),
            Unit.RATIO,
            at_least=True,
            detail="batching efficiency",
        )

    def _little_gained(self, batch: int, replicas: int) -> Verdict | None:
        if replicas == 1:
            return None
        gain = self.capacity(batch, replicas) / self.capacity(batch, replicas - 1) - 1.0
        least = self.question.policy.least_marginal_gain
        if gain >= least:
            return None
        full = self.full(batch, replicas)
        return self._verdict(Reason.MARGINAL_GAIN, predicted(gain, full), given(least), Unit.RATIO, at_least=True)

    def _assumed_slo(self) -> Slo:
        """ITL p95 at most twice that of a lone engine full at batch 32, after the paper's strict SLO (design.md 2)."""
        lone = self.full(_RELAXED_BATCH, 1).groups[0]
        return Slo(itl=Seconds(_RELAXED_FACTOR * lone.itl_p95), ttft=None, statistic=Statistic.P95, assumed=True)

    def _verdict(
        self,
        reason: Reason,
        observed: Estimate,
        limit: Estimate,
        unit: Unit,
        *,
        at_least: bool = False,
        detail: str = "",
    ) -> Verdict:
        # A promise is kept or broken by the engines of the model; memory, bandwidth and gain are the GPU's.
        about = self.question.llm.name if reason is Reason.LATENCY_SLO else self.question.gpu.name
        return Verdict(
            subject=about,
            reason=reason,
            observed=observed,
            limit=limit,
            unit=unit,
            at_least=at_least,
            detail=detail,
        )

    def _promised(self, limit: Seconds) -> Estimate:
        return Estimate.exact(limit, Source.ASSUMED if self.slo.assumed else Source.MEASURED)


def given(value: float) -> Estimate:
    """A limit that somebody set: it has no error."""
    return Estimate.exact(float(value), Source.MEASURED)


def predicted(value: float, prediction: GpuPrediction) -> Estimate:
    return Estimate.within(value, prediction.error, prediction.source)
