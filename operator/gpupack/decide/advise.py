"""The advisor: the batch limit of an engine and how many engines of that shape one GPU should hold, in one search.

A lone engine at its knee leaves no latency for a neighbour, so batch limit B and replicas R are searched together
(design.md 4): the most tokens a second of the whole GPU with every engine inside its SLO, memory and CPU, where each
added replica pays and the memory bandwidth was not saturated before it. A batch limit is admitted only if the SLO holds
with every engine full at that limit, so that a burst cannot break it.

Knows one model on an otherwise empty GPU of one kind. Neighbours, demand and what runs already are `pack`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from gpupack.facts.estimate import Estimate, Source
from gpupack.facts.gpu import GpuKind
from gpupack.facts.llm import Dtype, Llm
from gpupack.facts.policy import Policy
from gpupack.facts.serving import BLOCK_TOKENS, Batching, Lengths, Shape, Sharing, Slo, Statistic
from gpupack.perf import memory, sharing
from gpupack.perf.prediction import Coefficients, EngineGroup, GpuPrediction, ReplicaMemory
from gpupack.plan import Reason, Unit, Verdict
from gpupack.units import Bytes, PerSecond, Seconds

# Every batch limit that is worth a thought, about 3 % apart, and the few of them that are looked at first.
BATCHES: tuple[int, ...] = (*range(1, 64), *range(64, 128, 2), *range(128, 256, 4), *range(256, 1025, 8))
LADDER = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024)
_STRIDES = (8, 1)
# Among batches whose goodput differs by less than this the smallest is taken: less KV memory, less latency.
_TIE = 0.01
# Counts whose worth after the coarse pass is below this share of the best one are not looked at more closely.
_NEAR = 0.85
_RELAXED_BATCH = 32
_RELAXED_FACTOR = 2.0
# Requests a second, or the share of a rate, at which an engine is as good as idle.
_IDLE = 1e-3
# Counts whose batches are compared by the load that keeps a promised TTFT; each costs some ten milliseconds.
_FINALISTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One model on one kind of GPU. `sharing` EXCLUSIVE: one engine a GPU. `node_cores` None: the CPU is not counted.

    `slo` None asks for the assumed one. `max_replicas` None: as many as pay.
    """

    llm: Llm
    dtype: Dtype
    gpu: GpuKind
    lengths: Lengths
    slo: Slo | None
    batching: Batching
    sharing: Sharing
    max_model_len: int | None
    coefficients: Coefficients
    policy: Policy
    cpu_cores: int
    node_cores: float | None
    max_num_batched_tokens: int = memory.DEFAULT_BATCHED_TOKENS
    chunked_prefill: bool = True
    max_replicas: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A shape and count that was not chosen, and one objection to it."""

    max_num_seqs: int
    replicas: int
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """The answer. `stop` is the first objection to one replica more, in the order of `Reason`.

    `replica_rate` is the highest request rate of one replica while `replicas_per_gpu` of them run, every engine inside
    its SLO; `prediction` is the GPU under that load. `unreachable` is the best reachable value of the broken promise
    when no batch keeps it; the shape is then the one of lowest latency. `fits` False: not even one engine fits, `stop`
    says by how much.
    """

    slo: Slo
    shape: Shape
    replicas_per_gpu: int
    memory: ReplicaMemory
    utilization_hundredths: int
    replica_rate: PerSecond
    prediction: GpuPrediction
    stop: Verdict
    rejected: tuple[Rejected, ...]
    unreachable: Estimate | None
    fits: bool


@lru_cache(maxsize=4096)
def advise(question: Question) -> Advice:
    """The shape and the number of engines of one GPU; a pure function of the question, so answers are kept."""
    search = Search(question)
    found = search.best()
    if found is None:
        return _without_choice(search)
    batch, replicas = found
    rate, prediction = search.load(batch, replicas)
    return _advice(
        search,
        batch,
        replicas,
        rate=PerSecond(rate / replicas),
        prediction=prediction,
        stop=next(search.objections(batch, replicas + 1)),
        rejected=search.rejections(batch, replicas),
    )


def _advice(
    search: Search,
    batch: int,
    replicas: int,
    *,
    rate: PerSecond,
    prediction: GpuPrediction,
    stop: Verdict,
    rejected: tuple[Rejected, ...],
    unreachable: Estimate | None = None,
    fits: bool = True,
) -> Advice:
    total = search.memory(batch).total
    return Advice(
        slo=search.slo,
        shape=search.shape(batch),
        replicas_per_gpu=replicas,
        memory=search.memory(batch),
        utilization_hundredths=memory.utilization_hundredths(total, search.question.gpu),
        replica_rate=rate,
        prediction=prediction,
        stop=stop,
        rejected=rejected,
        unreachable=unreachable,
        fits=fits,
    )


def _without_choice(search: Search) -> Advice:
    """No batch may run: it does not fit, or the promise cannot be kept and the batch of lowest latency runs alone."""
    fixed = search.question.batching.fixed
    batches = LADDER if fixed is None else (fixed,)
    objections = {batch: tuple(search.objections(batch, 1)) for batch in batches}
    room = [batch for batch in batches if objections[batch][0].reason is Reason.LATENCY_SLO]
    rejected = tuple(
        Rejected(max_num_seqs=batch, replicas=1, verdict=objections[batch][0]) for batch in (room or batches[:1])
    )
    if not room:
        smallest = batches[0]
        return _advice(
            search,
            smallest,
            1,
            rate=PerSecond(0.0),
            prediction=search.full(smallest, 1),
            stop=objections[smallest][0],
            rejected=rejected,
            fits=False,
        )
    batch = min(room, key=lambda each: objections[each][0].observed.value)
    rate, prediction = search.load(batch, 1)
    if rate == 0.0:
        rate, prediction = search.full_load(batch, 1)
    stop = objections[batch][0]
    return _advice(
        search,
        batch,
        1,
        rate=rate,
        prediction=prediction,
        stop=stop,
        rejected=rejected,
        unreachable=stop.observed,
    )


def resolve_max_model_len(llm: Llm, lengths: Lengths, wish: int | None) -> int:
    """`wish`, or the smaller of the model's own and twice the 99th percentile of a request's length in whole blocks.

    One sequence of a 128k model would fill the GPU (design.md 2). Total lengths are taken as gamma distributed
    (Wilson and Hilferty's cube-root quantile).
    """
    if wish is not None:
        return wish
    mean = lengths.input_mean + lengths.output_mean
    variance = (lengths.input_cv * lengths.input_mean) ** 2 + (lengths.output_cv * lengths.output_mean) ** 2
    ninth = max(0.0, variance + 2.0 * lengths.covariance) / mean**2 / 9.0
    p99 = mean * (1.0 - ninth + 2.326 * math.sqrt(ninth)) ** 3
    return min(llm.max_model_len, math.ceil(2.0 * p99 / BLOCK_TOKENS) * BLOCK_TOKENS)


class Search:
    """Every (B, R) that one question may look at, each computed once. Used within one call and thrown away."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.max_model_len = resolve_max_model_len(question.llm, question.lengths, question.max_model_len)
        self.most_replicas = 1 if question.sharing is Sharing.EXCLUSIVE else question.max_replicas
        self._shapes: dict[int, Shape] = {}
        self._full: dict[tuple[int, int], GpuPrediction] = {}
        self._loads: dict[tuple[int, int], tuple[PerSecond, GpuPrediction]] = {}
        self._walks: dict[int, int] = {}
        self.slo = question.slo if question.slo is not None else self._assumed_slo()

    # What one (B, R) is.

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
        return memory.replica_memory(self.question.llm, self.question.dtype, self.shape(batch), self.question.gpu)

    def group(self, batch: int, replicas: int, rate: PerSecond | None) -> EngineGroup:
        return EngineGroup(
            llm=self.question.llm,
            dtype=self.question.dtype,
            shape=self.shape(batch),
            lengths=self.question.lengths,
            replicas=replicas,
            request_rate=rate,
            coefficients=self.question.coefficients,
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
        shared = Sharing.MPS if asked.sharing is Sharing.EXCLUSIVE else asked.sharing
        how = Sharing.EXCLUSIVE if replicas == 1 else shared
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
        for _ in range(8):
            middle = (low + high) / 2
            prediction = self.predict(batch, replicas, PerSecond(middle))
            if sharing.keeps(prediction.groups[0], self.slo):
                low, kept = middle, prediction
            else:
                high = middle
        return PerSecond(low), kept

    # What speaks against one more.

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
            Reason.MAX_REPLICAS, _given(replicas), _given(self.most_replicas), Unit.REPLICAS, detail=detail
        )

    def _memory_short(self, batch: int, replicas: int) -> Verdict | None:
        needed = memory_needed(self.memory(batch).total, replicas, self.question.gpu, self.question.policy.gpu_reserve)
        have = self.question.gpu.memory_bytes
        if needed <= have:
            return None
        return self._verdict(Reason.MEMORY, Estimate.exact(needed, Source.CALIBRATED), _given(have), Unit.BYTES)

    def _cpu_short(self, replicas: int) -> Verdict | None:
        cores = self.question.node_cores
        needed = replicas * self.question.cpu_cores
        if cores is None or needed <= cores:
            return None
        return self._verdict(Reason.HOST_CPU, _given(needed), _given(cores), Unit.CORES)

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
            _predicted(latency, full),
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
            _predicted(wait, idle),
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
        return self._verdict(
            Reason.BANDWIDTH_CEILING, _predicted(before.saturation, before), _given(ceiling), Unit.RATIO
        )

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
            _predicted(reached, full),
            _given(least),
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
        return self._verdict(Reason.MARGINAL_GAIN, _predicted(gain, full), _given(least), Unit.RATIO, at_least=True)

    # The search.

    def walk(self, batch: int) -> int:
        """How many engines of this batch limit pay on one GPU; 0 if not even one may run."""
        replicas = self._walks.get(batch)
        if replicas is None:
            replicas = 0
            while next(self.objections(batch, replicas + 1), None) is None:
                replicas += 1
            self._walks[batch] = replicas
        return replicas

    def best(self) -> tuple[int, int] | None:
        """The batch limit and count of the most worth, or None if no batch may run at all.

        Coarse to fine: a ladder of batches, then the neighbourhood of the best batch of every count that is near.
        """
        fixed = self.question.batching.fixed
        for batch in LADDER if fixed is None else (fixed,):
            self.walk(batch)
        if fixed is None:
            # Saturation falls with the batch where the host is slow: a count may pay only near the largest batch.
            for replicas in range(1, max(self._walks.values()) + 2):
                self.walk(self._largest(replicas))
            for stride in _STRIDES:
                counts = range(1, max(self._walks.values()) + 1)
                worths = {replicas: self.worth(self._best_batch(replicas), replicas) for replicas in counts}
                for replicas, worth in worths.items():
                    if worth >= _NEAR * max(worths.values()):
                        self._climb(replicas, stride)
        most = max(self._walks.values())
        if most == 0:
            return None
        ranked = sorted(range(1, most + 1), key=lambda each: self.worth(self._best_batch(each), each), reverse=True)
        replicas = ranked[0] if self.slo.ttft is None else max(ranked[:_FINALISTS], key=self._worth_under_load)
        enough = (1.0 - _TIE) * self.capacity(self._best_batch(replicas), replicas)
        batch = min(each for each in self._admitted(replicas) if self.capacity(each, replicas) >= enough)
        return batch, self.walk(batch)

    def worth(self, batch: int, replicas: int) -> float:
        """Capacity, discounted so that of two counts the larger wins only if each added replica pays its least gain."""
        return self.capacity(batch, replicas) * self._discount(replicas)

    def _worth_under_load(self, replicas: int) -> float:
        """The same by the load that keeps a promised TTFT, at the batch of the most capacity for this count.

        Within one count more capacity never allows less load, so the batch needs no second search.
        """
        return self.load(self._best_batch(replicas), replicas)[1].total_tokens_per_second * self._discount(replicas)

    def _discount(self, replicas: int) -> float:
        return float((1.0 + self.question.policy.least_marginal_gain) ** -replicas)

    def _admitted(self, replicas: int) -> list[int]:
        return [batch for batch, most in self._walks.items() if most >= replicas]

    def _best_batch(self, replicas: int) -> int:
        return max(self._admitted(replicas), key=lambda batch: (self.capacity(batch, replicas), -batch))

    def _largest(self, replicas: int) -> int:
        """The largest batch at which so many engines have room and keep the SLO; both only get worse with the batch."""
        low, high = 0, len(BATCHES)
        while high - low > 1:
            middle = (low + high) // 2
            batch = BATCHES[middle]
            if self.no_room(batch, replicas) or self._itl_broken(batch, replicas):
                high = middle
            else:
                low = middle
        return BATCHES[low]

    def _climb(self, replicas: int, stride: int) -> None:
        """Look at every `stride`-th batch on both sides of the best one for as long as capacity rises."""
        start = BATCHES.index(self._best_batch(replicas))
        for direction in (stride, -stride):
            best = self.capacity(BATCHES[start], replicas)
            for place in range(start + direction, len(BATCHES) if direction > 0 else -1, direction):
                if self.walk(BATCHES[place]) < replicas:
                    break
                capacity = self.capacity(BATCHES[place], replicas)
                if capacity < best:
                    break
                best = capacity

    def rejections(self, batch: int, replicas: int) -> tuple[Rejected, ...]:
        """What was not chosen and why: one engine more, a larger batch, and the best shapes of other counts."""
        rejected = [
            Rejected(max_num_seqs=batch, replicas=replicas + 1, verdict=verdict)
            for verdict in self.objections(batch, replicas + 1)
        ]
        larger = min((each for each in self._walks if each > batch), default=None)
        if larger is not None and self.walk(larger) < replicas:
            most = self.walk(larger)
            rejected.extend(
                Rejected(max_num_seqs=larger, replicas=most + 1, verdict=verdict)
                for verdict in self.objections(larger, most + 1)
            )
        others = {1, replicas - 1, replicas + 1} - {0, replicas}
        rejected.extend(
            self._outdone(self._best_batch(other), other, batch, replicas)
            for other in sorted(others)
            if other <= max(self._walks.values())
        )
        return tuple(rejected)

    def _outdone(self, batch: int, replicas: int, chosen_batch: int, chosen: int) -> Rejected:
        """The best shape of another count brings too little for its replicas, or too much less with fewer of them."""
        gain = self.capacity(batch, replicas) / self.capacity(chosen_batch, chosen) - 1.0
        least = (1.0 + self.question.policy.least_marginal_gain) ** (replicas - chosen) - 1.0
        verdict = self._verdict(
            Reason.MARGINAL_GAIN,
            _predicted(gain, self.full(batch, replicas)),
            _given(least),
            Unit.RATIO,
            at_least=True,
            detail=f"against batch {chosen_batch} x {chosen}",
        )
        return Rejected(max_num_seqs=batch, replicas=replicas, verdict=verdict)

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
        return Verdict(
            subject=self.question.gpu.name,
            reason=reason,
            observed=observed,
            limit=limit,
            unit=unit,
            at_least=at_least,
            detail=detail,
        )

    def _promised(self, limit: Seconds) -> Estimate:
        return Estimate.exact(limit, Source.ASSUMED if self.slo.assumed else Source.MEASURED)


def memory_needed(total: Bytes, replicas: int, gpu: GpuKind, reserve: Bytes) -> Bytes:
    """Device memory that `replicas` of `total` bytes need at their worst moment.

    Either all of them with the reserve, or the start of the last one: vLLM wants its whole `--gpu-memory-utilization`,
    which is rounded up to a hundredth of the GPU, to be free at that moment.
    """
    last = -(-memory.utilization_hundredths(total, gpu) * gpu.memory_bytes // 100)
    return Bytes(max(replicas * total + reserve, (replicas - 1) * total + last))


def _given(value: float) -> Estimate:
    """A limit that somebody set: it has no error."""
    return Estimate.exact(float(value), Source.MEASURED)


def _predicted(value: float, prediction: GpuPrediction) -> Estimate:
    return Estimate.within(value, prediction.error, prediction.source)
