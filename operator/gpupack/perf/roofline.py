"""One step of one engine: what it reads, what it computes, and how long it keeps the host and the GPU busy.

A step takes Z + D: Z on the host (launches, scheduling, sampling), in which a sibling can use the GPU, and D in which
the step holds the GPU. Knows one engine alone; who else is on the GPU is `sharing`'s business.

    D = gL L + sqrt((weights / (ew BW))^2 + (FLOP / F)^2) + contexts x KV bytes / (ea BW) + [penalty] n x V x 129 B / BW
    Z = z0 + zL L + z1 n + [prefill] (zp n + max(0, max(te L, zo n) - z0 - zL L - D))

with BW the DRAM peak, F the reached share of the tensor-core peak and V the vocabulary. A repetition penalty passes
over every logit of every sequence: 129 bytes each, counted in vLLM 0.8.5's `apply_penalties` (two int64 histograms with
their masks, and the fp32 factors and logits of each operation), which explains most of what Qwen2.5-7B needs there
beyond other models. The form was found on the published runs of
arXiv 2503.08311 (163 of one engine, three models), where each term had to help models that were left out: a corner
rounded by squares between reading and computing predicts a left-out model better than the larger of the two.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from gpupack.facts.gpu import GpuKind
from gpupack.facts.llm import Dtype, Llm
from gpupack.perf.host_cpu import shortage
from gpupack.perf.prediction import Coefficients


class Step(NamedTuple):
    """Seconds on the host, seconds holding the GPU, DRAM bytes moved, and the seconds in which prompts fill all SMs."""

    host: float
    gpu: float
    bytes: float
    filling: float = 0.0

    def plus(self, other: Step, share: float = 1.0) -> Step:
        return Step(
            self.host + share * other.host,
            self.gpu + share * other.gpu,
            self.bytes + share * other.bytes,
            self.filling + share * other.filling,
        )

    def less(self, other: Step) -> Step:
        return self.plus(other, -1.0)

    def short_of_cores(self, shortage: float) -> Step:
        """The same work where cores are missing: the GPU waits for the host (`host_cpu`)."""
        return self._replace(host=self.host + shortage * (self.host + self.gpu)) if shortage else self


class Engine(NamedTuple):
    """A model on a GPU as the step formulas need it: seconds and bytes, everything else multiplied out."""

    weight_bytes: float
    weight_seconds: float
    kv_bytes: float
    kv_seconds: float
    body_seconds: float
    logits_seconds: float
    attention_seconds: float
    host_fixed: float
    host_per_sequence: float
    host_per_prefill_sequence: float
    output_per_sequence: float
    eager_floor: float
    gpu_fixed: float
    penalty_seconds: float
    penalty_bytes: float
    shortage: float = 0.0

    def decode(self, running: float, context: float) -> Step:
        """Every running sequence of `context` tokens on average gets one token."""
        contexts = running * context
        dense = math.hypot(self.weight_seconds, running * (self.body_seconds + self.logits_seconds))
        return Step(
            self.host_fixed + self.host_per_sequence * running,
            self.gpu_fixed + dense + contexts * self.kv_seconds + running * self.penalty_seconds,
            self.weight_bytes + (contexts + running) * self.kv_bytes + running * self.penalty_bytes,
        ).short_of_cores(self.shortage)

    def prefill(self, prompts: float, tokens_each: float, running: float) -> Step:
        """A step of whole prompts alone, while `running` sequences wait."""
        tokens = prompts * tokens_each
        dense = math.hypot(self.weight_seconds, self._prefill_seconds(tokens, tokens_each))
        return self._eager(
            self.host_fixed,
            self.gpu_fixed + dense + prompts * self.penalty_seconds,
            running,
            self.weight_bytes + tokens * self.kv_bytes + prompts * self.penalty_bytes,
            dense - self.weight_seconds,
        )

    def mixed(self, running: float, context: float, tokens: float, prompt: float) -> Step:
        """A decode step that also computes `tokens` of prompts of `prompt` tokens each."""
        contexts = running * context
        sampled = running + tokens / max(prompt, 1.0)
        flops = running * (self.body_seconds + self.logits_seconds)
        dense = math.hypot(self.weight_seconds, flops + self._prefill_seconds(tokens, prompt))
        return self._eager(
            self.host_fixed + self.host_per_sequence * running,
            self.gpu_fixed + dense + contexts * self.kv_seconds + sampled * self.penalty_seconds,
            running,
            self.weight_bytes + (contexts + running + tokens) * self.kv_bytes + sampled * self.penalty_bytes,
            dense - math.hypot(self.weight_seconds, flops),
        )

    def _prefill_seconds(self, tokens: float, prompt: float) -> float:
        """Tensor-core time of `tokens` of prompts of `prompt` tokens: body, causal attention, one sampled row each."""
        per_token = self.body_seconds + self.attention_seconds * prompt / 2 + self.logits_seconds / max(prompt, 1.0)
        return tokens * per_token

    def _eager(self, host: float, gpu: float, running: float, moved: float, filling: float) -> Step:
        """A step with prefill runs without captured graphs: it lasts as long as its launches at least.

        It also lasts as long as the host needs for the output of the decode step before it.
        """
        floor = max(self.eager_floor, self.output_per_sequence * running)
        idle = max(0.0, floor - self.host_fixed - gpu)
        whole = Step(host + self.host_per_prefill_sequence * running + idle, gpu, moved, filling)
        return whole.short_of_cores(self.shortage)


@lru_cache(maxsize=4096)
def engine(
    gpu: GpuKind, llm: Llm, dtype: Dtype, coefficients: Coefficients, cores: float | None = None
) -> Engine:  # fmt: skip
    """The step formulas of that model on that GPU, with so many cores.

    The input embedding is read by rows, the output matrix whole. FLOPs: 2 a weight and token in the body, 2 a weight
    of the output matrix and sampled token, 4 x heads x head size x layers a token and token of context.
    """
    bandwidth = float(gpu.dram_bytes_per_second)
    flops = gpu.dense_flops_per_second * coefficients.gemm_efficiency * (1.0 if dtype.bytes_each == 2 else 0.5)
    embedding = llm.vocabulary * llm.hidden_size
    read = llm.parameters - (0 if llm.tied_embeddings else embedding)
    body = read - embedding
    weight_bytes = float(read * dtype.bytes_each)
    kv_bytes = float(llm.kv_bytes_per_token(dtype))
    penalty_bytes = float(llm.vocabulary * coefficients.penalty_entry_bytes) if llm.sampling_penalty else 0.0
    penalty_fixed = float(coefficients.penalty_fixed) if llm.sampling_penalty else 0.0
    return Engine(
        weight_bytes=weight_bytes,
        weight_seconds=weight_bytes / (coefficients.weight_read_efficiency * bandwidth),
        kv_bytes=kv_bytes,
        kv_seconds=kv_bytes / (coefficients.kv_read_efficiency * bandwidth),
        body_seconds=2 * body / flops,
        logits_seconds=2 * embedding / flops,
        attention_seconds=4 * llm.attention_heads * llm.head_size * llm.layers / flops,
        host_fixed=coefficients.host_per_step + coefficients.host_per_layer * llm.layers + penalty_fixed,
        host_per_sequence=float(coefficients.host_per_sequence),
        host_per_prefill_sequence=float(coefficients.host_per_prefill_sequence),
        output_per_sequence=float(coefficients.output_per_sequence),
        eager_floor=coefficients.eager_per_layer * llm.layers,
        gpu_fixed=coefficients.gpu_per_layer * llm.layers,
        penalty_seconds=penalty_bytes / bandwidth,
        penalty_bytes=penalty_bytes,
        shortage=shortage(cores),
    )
