"""The advisor: the batch limit of an engine and how many engines of that shape one GPU should hold, in one search.

A lone engine at its knee leaves no latency for a neighbour, so batch limit B and replicas R are searched together
(design.md 4): the most tokens a second of the whole GPU with every engine inside its SLO, memory and CPU, where each
added replica pays and the memory bandwidth was not saturated before it.

Knows one model on an otherwise empty GPU of one kind. Neighbours, demand and what runs already are `pack`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from gpupack.decide.question import Question
from gpupack.decide.search import LADDER, Rejected, Search
from gpupack.facts.estimate import Estimate
from gpupack.facts.serving import Shape, Slo
from gpupack.perf import memory
from gpupack.perf.prediction import GpuPrediction, ReplicaMemory
from gpupack.plan import Reason, Verdict
from gpupack.units import PerSecond

# A request whose prompt is so many times its answer; what another token budget must bring to be worth it; and the
# budget that vLLM takes by itself on a GPU of 70 GiB, tried on smaller ones too.
_MOSTLY_PROMPTS, _CLEARLY = 8.0, 1.005
_LONG_STEP = 8192


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
    """The shape and the number of engines of one GPU; a pure function of the question, so answers are kept.

    Where prompts are most of the work, a larger token budget is tried beside the question's: a lone engine with long
    steps can do what several with short ones do. So it is where the promise is out of reach, for a first token may be
    too late only because its prompt takes several steps.
    """
    answer = _answer(question)
    lengths = question.lengths
    own = memory.default_shape(question.llm, question.dtype, question.gpu).max_num_batched_tokens
    larger = max(own, _LONG_STEP)
    if larger <= question.max_num_batched_tokens or not question.chunked_prefill:
        return answer
    if lengths.input_mean < _MOSTLY_PROMPTS * lengths.output_mean and answer.unreachable is None:
        return answer
    # With its own steps it would assume a promise that they keep.
    other = _answer(replace(question, max_num_batched_tokens=larger, slo=answer.slo))
    return other if other.fits and _is_better(other, answer, question) else answer


def _is_better(other: Advice, answer: Advice, question: Question) -> bool:
    """Whether it clearly does more, or breaks the same promise by clearly less where neither keeps it."""
    if other.unreachable is not None and answer.unreachable is not None:
        nearer = _CLEARLY * other.unreachable.value < answer.unreachable.value
        return nearer and other.stop.detail == answer.stop.detail
    return _worth(other, question) > _CLEARLY * _worth(answer, question)


def _worth(advice: Advice, question: Question) -> float:
    """Tokens a second within the SLO, where each engine must pay for itself; 0 where the SLO is out of reach."""
    if advice.unreachable is not None:
        return 0.0
    least = 1.0 + question.policy.least_marginal_gain
    return float(advice.prediction.total_tokens_per_second * least**-advice.replicas_per_gpu)


def _answer(question: Question) -> Advice:
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
    objections = {batch: next(search.objections(batch, 1)) for batch in batches}
    room = [batch for batch in batches if objections[batch].reason is Reason.LATENCY_SLO]
    rejected = tuple(
        Rejected(max_num_seqs=batch, replicas=1, verdict=objections[batch]) for batch in (room or batches[:1])
    )
    if not room:
        smallest = batches[0]
        return _advice(
            search,
            smallest,
            1,
            rate=PerSecond(0.0),
            prediction=search.full(smallest, 1),
            stop=objections[smallest],
            rejected=rejected,
            fits=False,
        )
    batch = room[0]  # latency only grows with the batch
    rate, prediction = search.load(batch, 1)
    if rate == 0.0:
        rate, prediction = search.full_load(batch, 1)
    return _advice(
        search,
        batch,
        1,
        rate=rate,
        prediction=prediction,
        stop=objections[batch],
        rejected=rejected,
        unreachable=objections[batch].observed,
    )
