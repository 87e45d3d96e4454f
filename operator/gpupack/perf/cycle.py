"""Continuous batching of one engine: which batch it can run, and what a decode cycle of that batch costs.

A cycle is one decode step of every running sequence plus the share of prefill that keeps the batch full. All lengths
are means with a coefficient of variation; contexts are length-biased (facts/performance.md 2). Engines that share the
GPU enter as one number, the stretch of D (`sharing`).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from gpupack.facts.gpu import GpuKind
from gpupack.facts.serving import BLOCK_TOKENS
from gpupack.perf.memory import length_biased_context
from gpupack.perf.prediction import EngineGroup
from gpupack.perf.roofline import Engine, Step, engine

# Below this coefficient of variation output lengths are taken to be all alike.
ALIKE = 0.1

# Share of the KV cache that the scheduler fills before it preempts or waits.
_KV_FILL = 0.99


class Cycle(NamedTuple):
    """Per decode step, on average: the whole cycle, the plain decode step, and the prefill that `share` of steps add.

    `extra_host` and `extra_gpu` (seconds) are what a step with prefill adds to a plain one.
    """

    whole: Step
    plain: Step
    extra_host: float
    extra_gpu: float
    share: float

    def seconds(self, stretch: float = 1.0) -> float:
        """Mean gap between two tokens of a sequence, with D stretched by what siblings do."""
        return self.whole.host + stretch * self.whole.gpu

    def plain_seconds(self, stretch: float = 1.0) -> float:
        return self.plain.host + stretch * self.plain.gpu

    def extra_seconds(self, stretch: float = 1.0) -> float:
        return self.extra_host + stretch * self.extra_gpu


class Batch(NamedTuple):
    """One engine with its traffic's lengths: what the formulas of a cycle need.

    `bunched`: requests all alike that wait from the start go on beginning and ending together, as many as a step takes.
    """

    engine: Engine
    input_mean: float
    output_mean: float
    input_cv: float
    output_cv: float
    context: float
    context_deviation: float
    limit: float
    kv_limit: float
    kv_tokens: int
    budget: int
    chunked: bool
    bunched: bool

    @property
    def kv_starved(self) -> bool:
        """Whether KV cache runs out before the batch limit is reached."""
        return self.kv_limit < self.limit

    @property
    def running_most(self) -> float:
        """The largest mean batch: by `max_num_seqs`, by KV cache, and by the token budget where prefill is chunked."""
        by_budget = self.budget / (1 + self.input_mean / self.output_mean) if self.chunked else math.inf
        return max(1.0, min(self.limit, self.kv_limit, by_budget))

    def cycle(self, running: float) -> Cycle:
        """A decode step of `running` sequences and its share of prefill, alone on the GPU."""
        plain = self.engine.decode(running, self.context)
        prompts = running / self.output_mean
        share = self._prefill_share(prompts, running)
        if not self.chunked:
            step = self.engine.prefill(prompts / share, self.input_mean, running)
            return Cycle(plain.plus(step, share), plain, step.host, step.gpu, share)
        mixed = self.engine.mixed(running, self.context, prompts * self.input_mean / share, self.input_mean)
        extra = mixed.less(plain)
        return Cycle(plain.plus(extra, share), plain, extra.host, extra.gpu, share)

    def _prefill_share(self, prompts: float, running: float) -> float:
        """Prefill steps a decode step, where `prompts` requests begin a decode step on average.

        Requests that end independently make the beginnings of a step Poisson; requests all alike end one by one, as
        they began. Chunked prefill takes more steps where the token budget leaves less room.
        """
        some = min(1.0, prompts) if self.chunked and self.output_cv < ALIKE else -math.expm1(-prompts)
        needed = prompts * self.input_mean / self.room(running)
        if self.bunched:
            return min(1.0, max(needed, 1.0 / self.output_mean))
        return max(some, min(1.0, needed) if self.chunked else needed)

    def room(self, running: float) -> float:
        """Prompt tokens that a step can take beside `running` sequences."""
        return max(1.0, self.budget - running) if self.chunked else float(self.budget)

    def prefill_queue(self, running: float) -> tuple[float, float]:
        """Prompts that wait for the token budget: how much of it is taken, and the tokens before one that must wait.

        An M/G/1 queue of prompt tokens: those who wait meet (1 + cv^2)/2 prompts / (1 - taken) on average.
        """
        taken = min(0.99, running / self.output_mean * self.input_mean / self.room(running))
        return taken, self.input_mean * (1 + self.input_cv**2) / 2 / (1 - taken)

    def prefill_extra(self, running: float, level: float) -> Step:
        """What a step with prefill adds to a plain one, at that quantile of its prompt tokens.

        The prompts that arrive in a step are Poisson, at least one of them; their sum is taken as gamma distributed.
        """
        prompts = running / self.output_mean
        some = -math.expm1(-prompts)
        count = prompts / some
        count_variance = (prompts + prompts * prompts) / some - count * count
        cv = math.sqrt((count * self.input_cv**2 + count_variance) / (count * count))
        tokens = count * self.input_mean * gamma_quantile(cv, level)
        if not self.chunked:
            return self.engine.prefill(count, tokens / count, running)
        tokens = min(tokens, self.room(running))
        plain = self.engine.decode(running, self.context)
        mixed = self.engine.mixed(running, self.context, tokens, min(tokens, self.input_mean))
        return mixed.less(plain)

    def first_token(self, running: float, level: float | None) -> Step:
        """Prefill of one prompt, of mean length or at that quantile, beside `running` sequences."""
        prompt = self.input_mean * (1.0 if level is None else gamma_quantile(self.input_cv, level))
        if not self.chunked:
            return self.engine.prefill(1.0, prompt, running)
        steps = max(1, math.ceil(prompt / self.room(running)))
        mixed = self.engine.mixed(running, self.context, prompt / steps, prompt)
        return Step(steps * mixed.host, steps * mixed.gpu, steps * mixed.bytes)


def gamma_quantile(cv: float, level: float) -> float:
    """That quantile of a gamma distribution of mean 1 (Wilson and Hilferty)."""
    if cv <= 0:
        return 1.0
    ninth = cv * cv / 9
    return max(0.0, 1 - ninth + normal_quantile(level) * math.sqrt(ninth)) ** 3


def normal_quantile(level: float) -> float:
    """The standard normal quantile within 0.0005 (Abramowitz and Stegun 26.2.23)."""
    tail = min(level, 1 - level)
    if tail <= 0:
        return -8.0 if level < 0.5 else 8.0
    t = math.sqrt(-2 * math.log(tail))
    upper = t - (2.515517 + t * (0.802853 + t * 0.010328)) / (1 + t * (1.432788 + t * (0.189269 + t * 0.001308)))
    return upper if level > 0.5 else -upper


@lru_cache(maxsize=4096)
def batch(gpu: GpuKind, group: EngineGroup) -> Batch:
    """One engine of the group on that GPU."""
    lengths, shape = group.lengths, group.shape
    context, deviation = length_biased_context(lengths)
    kv_tokens = shape.kv_tokens(group.llm.kv_bytes_per_token(group.dtype))
    return Batch(
        engine=engine(gpu, group.llm, group.dtype, group.coefficients, group.cores),
        input_mean=lengths.input_mean,
        output_mean=lengths.output_mean,
        input_cv=lengths.input_cv,
        output_cv=lengths.output_cv,
        context=context,
        context_deviation=deviation,
        limit=float(shape.max_num_seqs),
        kv_limit=_KV_FILL * kv_tokens / (context + BLOCK_TOKENS / 2),
        kv_tokens=kv_tokens,
        budget=shape.max_num_batched_tokens,
        chunked=shape.chunked_prefill,
        bunched=group.request_rate is None and shape.chunked_prefill and lengths.output_cv < ALIKE,
    )
