"""One vLLM engine, step by step: queue, batch, KV blocks, preemption, and the counters that vLLM exports.

It follows vLLM V1 (0.33): first come first served, `max_num_seqs`, a token budget, prompts in chunks beside decodes,
blocks of `block_size` tokens of which one is the null block, preemption by recompute of the youngest. With
`chunked_prefill` off it takes steps of prefill only, as vLLM 0.5 did in the published replication runs.

It knows no time of its own: whoever drives it says when a step begins and ends (`begin_step`, `end_step`), so the same
engine runs alone, beside others, and in real time. It does not know a GPU, memory outside the KV cache, or HTTP.

A step costs the same work at any batch: sequences are counted, not visited. Those that need a block in a step are
counted by the phase of their context in a block; those that finish are found by the step in which they will.

LoRA slots will belong in `_admit` (a request whose adapter has no slot is passed over) and in the step's load.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from gpupack.errors import Invalid, Unavailable
from gpupack.twin.arrivals import Request, Source
from gpupack.twin.counters import VLLM_BUCKETS, Buckets, Counters


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What vLLM's flags fix for the life of an engine.

    `kv_blocks` counts the null block, as `num_gpu_blocks` does. `watermark` is the share of blocks that admission
    leaves free (0.01 in vLLM 0.5, 0 in V1).
    """

    max_num_seqs: int
    kv_blocks: int
    max_model_len: int
    max_num_batched_tokens: int = 2048
    chunked_prefill: bool = True
    block_size: int = 16
    watermark: float = 0.0
    buckets: Buckets = VLLM_BUCKETS

    def __post_init__(self) -> None:
        if self.max_num_seqs < 1:
            raise Invalid("--max-num-seqs", "no sequence may run", "give at least 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise Invalid(
                "--max-num-batched-tokens",
                f"{self.max_num_batched_tokens} is below max_num_seqs {self.max_num_seqs}",
                "a step must hold one token of each sequence",
            )
        if not self.chunked_prefill and self.max_num_batched_tokens < self.max_model_len:
            raise Invalid(
                "--max-num-batched-tokens",
                f"{self.max_num_batched_tokens} is below max_model_len {self.max_model_len} without chunked prefill",
                "a step must hold a whole prompt, or switch chunked prefill on",
            )
        needed = -(-self.max_model_len // self.block_size)
        if self.kv_blocks - 1 < needed:
            raise Invalid(
                "--kv-cache-memory-bytes",
                f"the KV cache holds {max(0, self.kv_blocks - 1) * self.block_size} tokens, "
                f"one sequence of max_model_len {self.max_model_len} needs {needed * self.block_size}",
                "give more KV memory or a smaller max_model_len",
            )


class Ending(StrEnum):
    """Why a request left: `length` when all tokens came, `abort` when it was lost or cancelled."""

    LENGTH = "length"
    ABORT = "abort"


class Sequence:
    """A request inside an engine, and the handle of whoever submitted it. Times in seconds; -1 means not yet.

    `token_times` is a list when the request is watched: the caller may read and clear it at will.
    """

    __slots__ = (
        "arrived_at",
        "base",
        "context",
        "emitted_before",
        "ending",
        "finish_tick",
        "finished_at",
        "first_token_at",
        "last_token_at",
        "number",
        "prefill_left",
        "request",
        "scheduled_at",
        "token_times",
    )

    def __init__(self, number: int, request: Request, arrived_at: float, watched: bool) -> None:
        self.number = number
        self.request = request
        self.arrived_at = arrived_at
        self.scheduled_at = -1.0
        self.first_token_at = -1.0
        self.last_token_at = -1.0
        self.finished_at = -1.0
        self.ending: Ending | None = None
        self.token_times: list[float] | None = [] if watched else None
        self.context = request.input_tokens  # tokens to compute before the next token can be emitted
        self.emitted_before = 0  # tokens emitted when the present stay in the batch began
        self.prefill_left = 0
        self.base = 0  # context at decode tick t is base + t
        self.finish_tick = -1  # decode tick that emits the last token; -1 while not decoding


class Listener(Protocol):
    """Whoever measures an engine. Called once a step and once a request; an engine without one pays nothing."""

    def stepped(self, began_at: float, ended_at: float, running: int) -> None: ...

    def gaps(self, seconds: float, tokens: int) -> None: ...

    def finished(self, sequence: Sequence) -> None: ...


class Engine:
    """The scheduler and its state. Drive it: `begin_step`, let the step's time pass, `end_step`.

    `step_decoding`, `step_context_tokens`, `step_prefill_tokens` and `step_bystanders` say what the step computes:
    sequences that get a token, the sum of the contexts they read, prompt tokens, and running sequences that must wait
    while a prefill-only step passes.
    """

    def __init__(self, config: EngineConfig, *, source: Source | None = None, listener: Listener | None = None) -> None:
        self.config = config
        self.source = source
        self.listener = listener
        self.counters = Counters(config.buckets, config.max_model_len)
        self.accepting = True
        self.in_step = False
        self.kv_peak_blocks = 0
        self.step_decoding = 0
        self.step_context_tokens = 0
        self.step_prefill_tokens = 0
        self.step_bystanders = 0
        self.step_began_at = 0.0
        self._waiting: deque[Sequence] = deque()
        self._running: dict[int, Sequence] = {}  # in order of admission
        self._partial: Sequence | None = None  # the one whose prompt is computed in chunks; always the youngest
        self._joining: list[Sequence] = []  # their prompts are complete when this step ends
        self._watched: list[Sequence] = []
        self._cancelled: list[Sequence] = []
        self._cohorts: list[tuple[int, float]] = []  # (decoding sequences, when they last got a token)
        self._decoding = 0
        self._context_tokens = 0
        self._tick = 0  # decode steps so far
        self._finishing: dict[int, list[Sequence]] = {}  # by the tick that emits their last token
        self._crossing = [0] * config.block_size  # decoding sequences that need a block at tick % block_size
        self._usable_blocks = config.kv_blocks - 1
        self._free_blocks = self._usable_blocks
        self._watermark_blocks = int(config.watermark * config.kv_blocks)
        self._numbers = 0

    # What anyone may read

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        return len(self._running) + len(self._waiting)

    @property
    def kv_usage(self) -> float:
        """Share of usable blocks in use, 0 to 1, as `vllm:kv_cache_usage_perc` counts it."""
        return 1.0 - self._free_blocks / self._usable_blocks

    @property
    def kv_peak_usage(self) -> float:
        """The largest `kv_usage` so far, or since `kv_peak_blocks` was set to 0."""
        return self.kv_peak_blocks / self._usable_blocks

    @property
    def next_arrival_at(self) -> float:
        """When the source has its next request, infinity if that is not known."""
        return self.source.next_at() if self.source is not None and self.accepting else math.inf

    # Requests in and out

    def submit(self, request: Request, at: float, *, watched: bool = False) -> Sequence:
        """Puts a request at the end of the queue; with `watched` its handle collects the times of its tokens.

        Raises Unavailable while draining, Invalid for a request that can never run.
        """
        if not self.accepting:
            raise Unavailable("the engine drains and takes no request")
        if request.input_tokens < 1 or request.output_tokens < 1:
            raise Invalid("request", "a prompt or an answer has no token", "give at least one of each")
        if request.input_tokens + request.output_tokens > self.config.max_model_len:
            raise Invalid(
                "request",
                f"{request.input_tokens} + {request.output_tokens} tokens exceed max_model_len",
                f"give at most {self.config.max_model_len}",
            )
        self._numbers += 1
        sequence = Sequence(self._numbers, request, at, watched)
        self._waiting.append(sequence)
        return sequence

    def drain(self) -> None:
        """Takes no new request from now on; those inside are finished."""
        self.accepting = False

    def cancel(self, sequence: Sequence, at: float) -> None:
        """Drops one request (its client went away), at the end of the step under way; a finished one is left alone."""
        if self.in_step:
            self._cancelled.append(sequence)
            return
        if sequence.ending is not None:
            return
        if sequence.number in self._running:
            self._release(sequence)
        else:
            self._waiting.remove(sequence)
        self._abort(sequence, at)

    def crash(self, at: float) -> int:
        """Loses everything, in the middle of a step or not; says how many requests were lost."""
        lost = [*self._running.values(), *self._waiting]
        for sequence in lost:
            if sequence.number in self._running:
                self._release(sequence)
            self._abort(sequence, at)
        self._waiting.clear()
        self._joining.clear()
        self._cancelled.clear()
        self.accepting = False
        self.in_step = False
        return len(lost)

    def _abort(self, sequence: Sequence, at: float) -> None:
        sequence.ending = Ending.ABORT
        sequence.finished_at = at
        self.counters.aborted += 1
        if sequence in self._watched:
            self._watched.remove(sequence)

    # Steps

    def begin_step(self, now: float) -> bool:
        """Schedules the next step; False when there is nothing to do."""
        source = self.source
        if source is not None and self.accepting:
            for at, request in source.take(now, self.in_flight):
                self.submit(request, at)
        if not self._running and not self._waiting:
            return False
        if self.config.chunked_prefill:
            self._schedule_mixed(now)
        else:
            self._schedule_apart(now)
        used = self._usable_blocks - self._free_blocks
        if used > self.kv_peak_blocks:
            self.kv_peak_blocks = used
        self.step_began_at = now
        self.in_step = True
        return True

    def _schedule_mixed(self, now: float) -> None:
        """Decodes first, then the prompt that is under way, then new ones, as far as the token budget goes."""
        starved = self._reserve_decode_blocks()
        decoding = self._decoding
        budget = self.config.max_num_batched_tokens - decoding
        prefill = 0
        partial = self._partial
        if partial is not None and budget > 0:
            chunk = min(partial.prefill_left, budget)
            partial.prefill_left -= chunk
            budget -= chunk
            prefill += chunk
            if partial.prefill_left == 0:
                self._partial = None
                self._joining.append(partial)
        if not starved:
            while self._waiting and budget > 0 and self._partial is None:
                sequence = self._admit(now)
                if sequence is None:
                    break
                chunk = min(sequence.context, budget)
                sequence.prefill_left = sequence.context - chunk
                budget -= chunk
                prefill += chunk
                if sequence.prefill_left:
                    self._partial = sequence
                else:
                    self._joining.append(sequence)
        self._load(decoding=decoding, prefill=prefill, bystanders=0)

    def _schedule_apart(self, now: float) -> None:
        """Whole prompts alone if any can start, else a decode step."""
        budget = self.config.max_num_batched_tokens
        prefill = 0
        while self._waiting and prefill + self._waiting[0].context <= budget:
            sequence = self._admit(now)
            if sequence is None:
                break
            prefill += sequence.context
            self._joining.append(sequence)
        if prefill:
            self._load(decoding=0, prefill=prefill, bystanders=self._decoding)
        else:
            self._reserve_decode_blocks()
            self._load(decoding=self._decoding, prefill=0, bystanders=0)

    def _load(self, *, decoding: int, prefill: int, bystanders: int) -> None:
        self.step_decoding = decoding
        self.step_context_tokens = self._context_tokens + decoding if decoding else 0
        self.step_prefill_tokens = prefill
        self.step_bystanders = bystanders

    def _admit(self, now: float) -> Sequence | None:
        """Moves the head of the queue into the batch if a place and blocks for its whole prompt are free."""
        if len(self._running) >= self.config.max_num_seqs:
            return None
        sequence = self._waiting[0]
        blocks = -(-sequence.context // self.config.block_size)
        if blocks > self._free_blocks - (self._watermark_blocks if self._running else 0):
            return None
        self._waiting.popleft()
        self._free_blocks -= blocks
        self._running[sequence.number] = sequence
        if sequence.scheduled_at < 0.0:
            sequence.scheduled_at = now
        return sequence

    def _reserve_decode_blocks(self) -> bool:
        """Takes the blocks that the next decode tick needs; preempts the youngest until they are there.

        True if it had to preempt (then vLLM admits nobody in that step).
        """
        at = (self._tick + 1) % self.config.block_size
        starved = False
        while self._crossing[at] > self._free_blocks:
            self._preempt()
            starved = True
        self._free_blocks -= self._crossing[at]
        return starved

    def _preempt(self) -> None:
        """The youngest loses its blocks and goes to the head of the queue; prompt and answer are computed again."""
        sequence = next(reversed(self._running.values()))
        self._release(sequence)
        sequence.context = sequence.request.input_tokens + sequence.emitted_before
        self._waiting.appendleft(sequence)
        self.counters.preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        """Takes a sequence that is not finished out of the batch and frees its blocks."""
        del self._running[sequence.number]
        size = self.config.block_size
        if sequence.finish_tick >= 0:
            context = sequence.base + self._tick
            sequence.emitted_before = sequence.request.output_tokens - (sequence.finish_tick - self._tick)
            self._finishing[sequence.finish_tick].remove(sequence)
            sequence.finish_tick = -1
            self._crossing[(1 - sequence.base) % size] -= 1
            self._context_tokens -= context
            self._decoding -= 1
            self._leave_cohort(sequence)
        else:
            context = sequence.context
            if sequence is self._partial:
                self._partial = None
        self._free_blocks += -(-context // size)

    def _leave_cohort(self, sequence: Sequence) -> None:
        """The cohort that joined last loses one; the sequence keeps when it got its last token."""
        size, last = self._cohorts.pop()
        sequence.last_token_at = last
        if size > 1:
            self._cohorts.append((size - 1, last))

    def end_step(self, now: float) -> None:
        """Emits the step's tokens at `now` and lets finished sequences go."""
        counters = self.counters
        listener = self.listener
        decoded = self.step_decoding
        if listener is not None:
            listener.stepped(self.step_began_at, now, len(self._running))
        if decoded:
            self._tick += 1
            self._context_tokens += decoded
            counters.generation_tokens += decoded
            for size, last in self._cohorts:
                counters.token_gap.observe(now - last, size)
                if listener is not None:
                    listener.gaps(now - last, size)
            if self._watched:
                self._note_watched(now)
            self._finish_due(now)
            self._cohorts = [(self._decoding, now)] if self._decoding else []
        counters.step_tokens.observe(decoded + self.step_prefill_tokens)
        if self._joining:
            self._join(now)
        self.in_step = False
        if self._cancelled:
            for sequence in self._cancelled:
                self.cancel(sequence, now)
            self._cancelled.clear()

    def _join(self, now: float) -> None:
        """Sequences whose prompts are complete get a token and decode from the next step on."""
        joined = 0
        tick = self._tick
        size = self.config.block_size
        counters = self.counters
        for sequence in self._joining:
            context = sequence.context
            emitted = sequence.emitted_before + 1
            counters.generation_tokens += 1
            if emitted == 1:
                sequence.first_token_at = now
                counters.prompt_tokens += sequence.request.input_tokens
                counters.first_token.observe(now - sequence.arrived_at)
            else:
                gap = now - sequence.last_token_at
                counters.token_gap.observe(gap)
                if self.listener is not None:
                    self.listener.gaps(gap, 1)
            if sequence.token_times is not None:
                sequence.token_times.append(now)
                if emitted == 1:
                    self._watched.append(sequence)
            left = sequence.request.output_tokens - emitted
            if left == 0:
                self._free_blocks += -(-context // size)
                self._finish(sequence, now)
                continue
            sequence.emitted_before = emitted
            sequence.base = context - tick
            sequence.finish_tick = tick + left
            self._finishing.setdefault(sequence.finish_tick, []).append(sequence)
            self._crossing[(1 - sequence.base) % size] += 1
            self._context_tokens += context
            self._decoding += 1
            joined += 1
        self._joining.clear()
        if joined:
            if self._cohorts and self._cohorts[-1][1] == now:
                self._cohorts[-1] = (self._cohorts[-1][0] + joined, now)
            else:
                self._cohorts.append((joined, now))

    def _note_watched(self, now: float) -> None:
        for sequence in self._watched:
            if sequence.finish_tick >= self._tick and sequence.token_times is not None:
                sequence.token_times.append(now)

    def _finish_due(self, now: float) -> None:
        """Lets those go whose last token came with this tick."""
        tick = self._tick
        size = self.config.block_size
        for sequence in self._finishing.pop(tick, ()):
            context = sequence.base + tick
            self._free_blocks += -(-context // size)
            self._crossing[(1 - sequence.base) % size] -= 1
            self._context_tokens -= context
            self._decoding -= 1
            self._finish(sequence, now)

    def _finish(self, sequence: Sequence, now: float) -> None:
        del self._running[sequence.number]
        sequence.finished_at = now
        sequence.ending = Ending.LENGTH
        counters = self.counters
        osl = sequence.request.output_tokens
        counters.succeeded += 1
        counters.e2e.observe(now - sequence.arrived_at)
        counters.queue.observe(sequence.scheduled_at - sequence.arrived_at)
        counters.inference.observe(now - sequence.scheduled_at)
        counters.prefill.observe(sequence.first_token_at - sequence.scheduled_at)
        counters.decode.observe(now - sequence.first_token_at)
        counters.request_prompt_tokens.observe(sequence.request.input_tokens)
        counters.request_generation_tokens.observe(osl)
        if osl > 1:
            counters.time_per_output_token.observe((now - sequence.first_token_at) / (osl - 1))
        if sequence.token_times is not None:
            self._watched.remove(sequence)
        if self.listener is not None:
            self.listener.finished(sequence)

    # Leaps over steps that are all alike

    def alike_steps(self, most: int) -> int:
        """How many steps, this one included, decode the same sequences and change nothing else, at most `most`.

        The step under way must have begun. What arrives meanwhile is the caller's to mind, unless the batch is full.
        """
        if self.step_prefill_tokens or self._watched or self._cohorts != [(self._decoding, self.step_began_at)]:
            return 1
        tick, steps, free = self._tick, 1, self._free_blocks
        size = self.config.block_size
        while steps < most and tick + steps not in self._finishing:
            free -= self._crossing[(tick + steps + 1) % size]
            if free < 0:
                break
            steps += 1
        return steps

    @property
    def full(self) -> bool:
        """True if nobody could be admitted before somebody leaves."""
        return len(self._running) >= self.config.max_num_seqs

    def end_alike_steps(self, steps: int, now: float) -> None:
        """Ends this step and `steps - 1` more like it (`alike_steps` allowed them) at `now`, in one go.

        Their gaps are counted with their mean: the caller keeps leaps short enough for that to hold.
        """
        skipped = steps - 1
        size = self.config.block_size
        decoded = self.step_decoding
        mean = (now - self.step_began_at) / steps
        (cohort, last) = self._cohorts[0]
        self.counters.token_gap.observe(mean, cohort * skipped)
        self.counters.step_tokens.observe(decoded, skipped)
        if self.listener is not None:
            self.listener.gaps(mean, cohort * skipped)
        whole, rest = divmod(skipped, size)
        blocks = whole * decoded
        for i in range(rest):
            blocks += self._crossing[(self._tick + 2 + i) % size]
        self._free_blocks -= blocks
        used = self._usable_blocks - self._free_blocks
        if used > self.kv_peak_blocks:
            self.kv_peak_blocks = used
        self._tick += skipped
        self._context_tokens += decoded * skipped
        self.counters.generation_tokens += decoded * skipped
        self._cohorts = [(cohort, last + (now - last) * skipped / steps)]
        self.end_step(now)
