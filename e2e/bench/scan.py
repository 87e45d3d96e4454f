"""Does gpupack pack where packing pays, and only there? Every catalog model on every GPU under three workloads.

For each question the advisor's answer is compared with exhaustive search (every batch limit times every count that it
may admit, in the closed form), and then put to the twin beside the engines that a team would run instead: vLLM's
defaults, one engine at the same total concurrency, one engine swept to the best batch within the same promise, and one
swept to its own plateau, all with chunked prefill. Of a question where the advisor does not pack, the best pair of two
is put to the twin. The twin shares no formula with the advisor. CPU: an engine is one process on cores of its own
(API server beside it), so every contender has the same node, and one engine cannot use what several do.

Run it with `.venv/bin/python e2e/bench/scan.py > e2e/bench/SCAN.md`; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from gpupack import catalog
from gpupack.decide.advise import Advice, advise
from gpupack.decide.question import Question
from gpupack.decide.search import BATCHES, LADDER, Search
from gpupack.facts.gpu import GpuKind
from gpupack.facts.llm import Dtype, Llm
from gpupack.facts.policy import Policy
from gpupack.facts.serving import Batching, Lengths, Shape, Sharing, Slo, Statistic
from gpupack.perf import calibration, memory
from gpupack.perf.prediction import EngineGroup, GroupPrediction
from gpupack.perf.sharing import predict
from gpupack.rehearse import rehearse_steady
from gpupack.units import Ratio

WORKLOADS = {
    "chat 512/256": Lengths(input_mean=512.0, output_mean=256.0),
    "answers 128/512": Lengths(input_mean=128.0, output_mean=512.0),
    "prompts 2048/1": Lengths(input_mean=2048.0, output_mean=1.0, input_cv=0.3, output_cv=0.0),
}
WINDOW_REQUESTS = 500
# Token budgets that are swept: the advisor's 2048, vLLM's own for the GPU, and this.
LONG_STEP = 8192
# A twin's window of so many requests differs from another by so much.
NOISE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One question. Tokens a second of the twin; None where that contender does not start or was not needed."""

    llm: Llm
    gpu: GpuKind
    workload: str
    advice: Advice
    regret: float
    packed: float | None
    same_concurrency: float | None
    swept: float | None
    plateau: float | None
    defaults: float | None
    two: float | None

    @property
    def packs(self) -> bool:
        return self.advice.replicas_per_gpu > 1

    @property
    def best_single(self) -> float | None:
        """The best single engine that keeps the promise, or has as many sequences running."""
        known = [each for each in (self.same_concurrency, self.swept) if each is not None]
        return max(known, default=None)

    @property
    def gain(self) -> float | None:
        """What packing brings in the twin over the best single engine; None where nothing is packed."""
        if not self.packs or self.packed is None or self.best_single is None:
            return None
        return self.packed / self.best_single - 1

    @property
    def missed(self) -> float | None:
        """What the best pair would have brought in the twin where the advisor did not pack."""
        if self.packs or self.two is None or self.packed is None:
            return None
        return self.two / self.packed - 1


def question(llm: Llm, gpu: GpuKind, lengths: Lengths) -> Question:
    return Question(
        llm=llm,
        dtype=Dtype.BFLOAT16 if gpu.bfloat16 else Dtype.FLOAT16,
        gpu=gpu,
        lengths=lengths,
        # One token has no gap after it: prompts alone are promised nothing.
        slo=None if lengths.output_mean > 1.0 else Slo(itl=None, ttft=None, statistic=Statistic.P95),
        batching=Batching(fixed=None, min_efficiency=Ratio(0.1)),
        sharing=Sharing.MPS,
        max_model_len=None,
        coefficients=calibration.coefficients(),
        policy=Policy(),
        cpu_cores=1,
        node_cores=None,
    )


def simulated(asked: Question, shape: Shape, replicas: int) -> float:
    """Tokens a second of so many full engines, by the twin."""
    group = EngineGroup(
        llm=asked.llm,
        dtype=asked.dtype,
        shape=shape,
        lengths=asked.lengths,
        replicas=replicas,
        request_rate=None,
        coefficients=asked.coefficients,
    )
    sharing = Sharing.MPS if replicas > 1 else Sharing.EXCLUSIVE
    seen = rehearse_steady(asked.gpu, (group,), sharing, seed=0, window_requests=WINDOW_REQUESTS)
    return seen[0].total_tokens_per_second


def single(asked: Question, search: Search, batch: int, budget: int) -> Shape | None:
    """One engine of that batch limit and token budget with vLLM's own KV cache; None where no sequence fits."""
    shape = memory.default_shape(
        asked.llm,
        asked.dtype,
        asked.gpu,
        max_num_seqs=batch,
        max_num_batched_tokens=max(batch, budget),
        max_model_len=search.max_model_len,
    )
    return shape if shape.kv_tokens(asked.llm.kv_bytes_per_token(asked.dtype)) >= search.max_model_len else None


def exhaustive(asked: Question, budgets: Sequence[int]) -> float:
    """The most worth of all token budgets, of all batch limits, and of all counts that each may admit."""
    searches = [Search(replace(asked, max_num_batched_tokens=budget)) for budget in budgets]
    return max(
        search.worth(batch, count)
        for search in searches
        for batch in BATCHES
        for count in range(1, search.walk(batch) + 1)
    )


def lone(asked: Question, shape: Shape) -> GroupPrediction:
    """One full engine, by the closed form."""
    group = EngineGroup(
        llm=asked.llm,
        dtype=asked.dtype,
        shape=shape,
        lengths=asked.lengths,
        replicas=1,
        request_rate=None,
        coefficients=asked.coefficients,
    )
    return predict(asked.gpu, (group,), Sharing.EXCLUSIVE).groups[0]


def best_pair(search: Search) -> int | None:
    """The batch limit of the most capacity of two engines that fit and keep the promise."""
    pairs = [
        batch
        for batch in LADDER
        if search.no_room(batch, 2) is None
        and (search.slo.itl is None or search.full(batch, 2).groups[0].itl_p95 <= search.slo.itl)
    ]
    return max(pairs, key=lambda batch: search.capacity(batch, 2), default=None)


def looked_at(llm: Llm, gpu: GpuKind, workload: str) -> Row | None:
    """None where not one engine fits or keeps the promise."""
    asked = question(llm, gpu, WORKLOADS[workload])
    advice = advise(asked)
    if not advice.fits or advice.unreachable is not None:
        return None
    search = Search(replace(asked, max_num_batched_tokens=advice.shape.max_num_batched_tokens))
    batch, count = advice.shape.max_num_seqs, advice.replicas_per_gpu
    own = memory.default_shape(llm, asked.dtype, gpu).max_num_batched_tokens
    budgets = sorted({asked.max_num_batched_tokens, own, LONG_STEP})
    most = exhaustive(asked, budgets)
    same = single(asked, search, batch * count, advice.shape.max_num_batched_tokens)
    sized = [single(asked, search, each, budget) for each in LADDER for budget in budgets]
    loners = {shape: lone(asked, shape) for shape in sized if shape is not None}
    kept = {shape: said for shape, said in loners.items() if search.slo.itl is None or said.itl_p95 <= search.slo.itl}
    largest, swept = (
        max(found, key=lambda shape: found[shape].total_tokens_per_second, default=None) for found in (loners, kept)
    )
    defaults = memory.default_shape(llm, asked.dtype, gpu, max_model_len=search.max_model_len)
    pair = best_pair(search) if count == 1 else None
    return Row(
        llm=llm,
        gpu=gpu,
        workload=workload,
        advice=advice,
        regret=1.0 - search.worth(batch, count) / most,
        packed=simulated(asked, advice.shape, count),
        same_concurrency=None if same is None else simulated(asked, same, 1),
        swept=None if swept is None else simulated(asked, swept, 1),
        plateau=None if largest is None else simulated(asked, largest, 1),
        defaults=simulated(asked, defaults, 1)
        if defaults.kv_tokens(llm.kv_bytes_per_token(asked.dtype)) >= search.max_model_len
        else None,
        two=None if pair is None else simulated(asked, search.shape(pair), 2),
    )


def scan(models: Sequence[str], gpus: Sequence[str]) -> Iterator[Row | tuple[str, str, str]]:
    """Every row, or the names of a question to which there is no answer."""
    began, done, of = time.perf_counter(), 0, len(models) * len(gpus) * len(WORKLOADS)
    for gpu in gpus:
        for model in models:
            for workload in WORKLOADS:
                row = looked_at(catalog.llm(model), catalog.gpu(gpu), workload)
                done += 1
                left = (time.perf_counter() - began) / done * (of - done)
                print(f"\r{done}/{of} {gpu} {model} {workload}, {left:.0f} s left     ", end="", file=sys.stderr)
                yield row if row is not None else (model, gpu, workload)
    print(file=sys.stderr)


def signed(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.0f} %"


def tokens(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def report(found: Sequence[Row | tuple[str, str, str]]) -> str:
    answered = [each for each in found if isinstance(each, Row)]
    packed = [each for each in answered if each.packs]
    gains = [each.gain for each in packed if each.gain is not None]
    missed = [each.missed for each in answered if each.missed is not None]
    stops = Counter(each.advice.stop.reason.value for each in answered if not each.packs)
    worst = max(answered, key=lambda each: each.regret)
    lines = [
        "# The scan: where packing pays, and where it does not",
        "",
        "Made by `e2e/bench/scan.py`: catalog models x GPUs x three workloads (tokens in/out), the assumed promise",
        "(ITL p95 at most twice a lone engine's at batch 32; none for one-token answers), the newest coefficients.",
        "Tokens a second are the twin's, input and output. No hardware was used.",
        "",
        f"- {len(found)} questions; {len(found) - len(answered)} have no answer (no engine fits).",
        f"- Packed: {len(packed)}. In the twin packing loses (beyond the {100 * NOISE:.0f} % noise of a window) in "
        f"**{sum(1 for gain in gains if gain < -NOISE)}** of them; least gain {signed(min(gains))}, "
        f"median {signed(sorted(gains)[len(gains) // 2])}, most {signed(max(gains))}.",
        f"- Not packed: {len(answered) - len(packed)}, because of "
        + ", ".join(f"{reason} ({count})" for reason, count in stops.most_common())
        + f". The best pair would bring at most {signed(max(missed, default=None))} there, in the twin.",
        "- Regret against exhaustive search (every token budget, batch limit and admitted count): worst "
        f"{100 * worst.regret:.2f} % ({worst.llm.aliases[0]} on {worst.gpu.name}, {worst.workload}); goal 2 %.",
        "",
        "Gain is over the better of two single engines: as many sequences running, or the best batch and token",
        "budget within the promise. `pair` is what two engines would bring where one was advised. The plateau and",
        "vLLM's defaults keep no promise.",
        "",
        "| model | GPU | workload | advised | not one more | packed | one, same concurrency | one, swept | its plateau "
        "| defaults | gain | pair | regret |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in found:
        if not isinstance(each, Row):
            lines.append(f"| {each[0]} | {each[1]} | {each[2]} | does not fit | | | | | | | | | |")
            continue
        shape, count = each.advice.shape, each.advice.replicas_per_gpu
        cells = (
            each.llm.aliases[0],
            each.gpu.name,
            each.workload,
            f"{shape.max_num_seqs} x {count}",
            each.advice.stop.reason.value,
            *map(tokens, (each.packed, each.same_concurrency, each.swept, each.plateau, each.defaults)),
            signed(each.gain),
            signed(each.missed),
            f"{100 * each.regret:.1f} %",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every_model = [llm.aliases[0] for llm in catalog.llms()]
    every_gpu = [gpu.name for gpu in catalog.gpus()]
    parser.add_argument("--model", action="append", choices=every_model, help="only this one; may be repeated")
    parser.add_argument("--gpu", action="append", choices=every_gpu, help="only this one; may be repeated")
    given = parser.parse_args()
    print(report(list(scan(given.model or every_model, given.gpu or every_gpu))))


if __name__ == "__main__":
    main()
