"""What is planned already: which replica stands where, with which shape, and what was decided last.

The plan lives in the GpuPool's status and nowhere else. Names come from content, so that planning or creating the
same replica twice is doing it once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from gpupack.facts.experiment import Experiment, Undone
from gpupack.facts.serving import ServingKey, Shape, Sharing, Slo
from gpupack.units import Bytes, Ratio, Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One replica of a serving on one GPU. `slot` counts from 0 within serving and GPU."""

    serving: ServingKey
    gpu_uuid: str
    slot: int
    sharing: Sharing
    shape: Shape
    template_hash: str
    planned_at: Seconds

    @property
    def content_hash(self) -> str:
        """Ten hex digits over serving, shape, sharing and pod template: another image is another name.

        The serving is in it because a long name is cut off in the pod's.
        """
        shape = self.shape
        text = "|".join(
            str(part)
            for part in (
                self.serving,
                shape.max_num_seqs,
                shape.kv_cache_memory_bytes,
                shape.max_num_batched_tokens,
                shape.max_model_len,
                shape.chunked_prefill,
                self.sharing.value,
                self.template_hash,
            )
        )
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def name(self) -> str:
        """The pod's name: serving, GPU, slot and content; at most 63 characters."""
        tail = f"-{gpu_hash(self.gpu_uuid)}-{self.slot}-{self.content_hash}"
        return self.serving.name[: 63 - len(tail)].rstrip("-.") + tail


def gpu_hash(uuid: str) -> str:
    """Ten hex digits that stand for a GPU in names: two of 512 GPUs share them once in eight million pools."""
    return hashlib.sha256(uuid.encode()).hexdigest()[:10]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenShape:
    """The advisor's answer for one serving on one GPU kind, kept so that it does not move with every tick.

    `inputs` is a digest of what the user declared (model, lengths, SLO, batching, sharing): another digest is another
    question and is asked at once. `replicas_per_gpu` is R*, the most engines of this shape on one GPU that pay.

    `slo` is the promise that the shape was chosen for (the default one if the user made none), `unreachable` the lowest
    latency that any shape reaches where none keeps it, `better_since` since when live lengths ask for another shape.
    `was` is the shape before, if live lengths and not the user asked for this one: it comes back if this does worse.
    """

    serving: ServingKey
    gpu_kind: str
    shape: Shape
    replicas_per_gpu: int
    utilization_hundredths: int
    inputs: str
    chosen_at: Seconds
    slo: Slo | None = None
    unreachable: Seconds | None = None
    better_since: Seconds | None = None
    was: FormerShape | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FormerShape:
    """The shape that another one took the place of, with what was chosen with it."""

    shape: Shape
    replicas_per_gpu: int
    utilization_hundredths: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The last decision on one serving as numbers that stay until the next decision.

    `reason` is a `plan.Reason` value (why no further replica), `observed` and `limit` its two sides in `unit`.
    `wanted` is how many replicas demand asks for, `planned` how many the plan holds. `seen`, `predicted` and `rejected`
    are sentences: what the decision rests on, what a step should bring, and what was not done instead.
    """

    serving: ServingKey
    reason: str
    subject: str
    observed: float
    limit: float
    unit: str
    at_least: bool
    wanted: int
    planned: int
    message: str
    at: Seconds
    seen: str = ""
    predicted: str = ""
    rejected: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawn:
    """A placement that stayed Pending past its deadline; this GPU is not tried again for this serving until then."""

    serving: ServingKey
    gpu_uuid: str
    until: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultyGpu:
    """A GPU that told a fault of its own: it takes nothing until it tells that it is well."""

    gpu_uuid: str
    why: str
    since: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What a start that failed has taught of a serving's engines of one pod template on a kind of GPU.

    `overhead` are bytes of GPU memory that each takes beyond what is predicted. `refusal` is why its image does not
    start at all, in words; it is believed `until` then. Another template begins anew.
    """

    serving: ServingKey
    gpu_kind: str
    template_hash: str
    overhead: Bytes = Bytes(0)
    refusal: str = ""
    until: Seconds = Seconds(0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wake:
    """A serving that slept was asked for at `asked_at`, when its first request came; it is awake at `ready_at`."""

    serving: ServingKey
    asked_at: Seconds
    ready_at: Seconds | None = None

    @property
    def took(self) -> Seconds | None:
        return None if self.ready_at is None else Seconds(self.ready_at - self.asked_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything the pool's task has decided. Sorted tuples, so that equal plans are equal values.

    `experiments` are the last of each GPU, open or judged; `undone` is what was taken back and is remembered.
    `faulty` are GPUs that are left alone, `lessons` what starts that failed have taught. `wakes`
    are the last of each serving that may sleep.
    """

    placements: tuple[Placement, ...] = ()
    shapes: tuple[ChosenShape, ...] = ()
    records: tuple[Record, ...] = ()
    withdrawn: tuple[Withdrawn, ...] = ()
    experiments: tuple[Experiment, ...] = ()
    undone: tuple[Undone, ...] = ()
    faulty: tuple[FaultyGpu, ...] = ()
    lessons: tuple[Lesson, ...] = ()
    wakes: tuple[Wake, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedEffect:
    """What one more replica was predicted to bring when it was planned; written on the replica itself.

    `attainable` is the most DRAM activity (share of the peak) that the engines on its GPU reach together at full
    batches; at smaller ones, which read more weights than KV cache, it may be more. None on replicas of a gpupack that
    did not write it.
    """

    tokens_per_second_before: float
    tokens_per_second_after: float
    saturation_after: Ratio
    itl_after: Seconds
    attainable: Ratio | None = None
