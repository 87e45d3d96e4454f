"""A step as an experiment: what was seen and predicted before it, what was measured after, and what is remembered.

These are written in the plan, so that another process goes on with them. How they are judged is the business of
`decide/experiment.py`. Latencies are in seconds, throughput in generated tokens a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gpupack.facts.serving import ServingKey, Shape
from gpupack.units import PerSecond, Ratio, Seconds

CLOSED = ""
"""The company of an experiment that is over, whatever its judgement."""


class Judgement(StrEnum):
    """What came of a step, held against what its own window should have given."""

    CONFIRMED = "Confirmed"
    MISSED = "Missed"
    INCONCLUSIVE = "Inconclusive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Like engines of one serving on the GPU before the step.

    `off` is the measured inter-token latency over what the model said of the same batches, None where nothing was
    measured. `tokens_per_second` is what they generated together, where requests waited at each of them through the
    whole window; None where throughput was what arrived.
    """

    serving: ServingKey
    shape: Shape
    engines: int
    off: Ratio | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One quantity of the window: what it should have been, and what it was. `unit` is a `plan.Unit` value."""

    what: str
    subject: str
    predicted: float
    measured: float
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """All steps on one GPU since its engines last settled; written before the first of them is taken.

    `step` is the last one's `plan.Step` value, `serving` whose it was. `asked` is a step that the user asked for (a
    manual count, the least count, an edit): it is judged and never undone. `before` are the engines that stood there,
    `company` those that stand there after it. `gain` is the predicted share of throughput at full batches, None for
    the first engines of a GPU; `saturation` and `itl` are predicted for the GPU with the step at full batches.

    `inputs` is a digest of the specs and coefficients it was predicted with: with others it cannot be judged. A first
    Missed must be seen again in a window of its own: `doubted_at` is when it was first seen. `judgement` is None while
    nothing can be said; an Inconclusive one may still become another. `why` says in words what the numbers do not.
    """

    serving: ServingKey
    gpu_uuid: str
    step: str
    began_at: Seconds
    last_at: Seconds
    asked: bool
    before: tuple[Standing, ...]
    company: str
    gain: Ratio | None
    saturation: Ratio
    itl: Seconds
    inputs: str
    doubted_at: Seconds | None = None
    judgement: Judgement | None = None
    judged_at: Seconds | None = None
    undone: bool = False
    compared: tuple[Compared, ...] = ()
    why: str = ""

    @property
    def is_on_trial(self) -> bool:
        """Whether the engines that it is about still stand and nothing was said of them."""
        return self.judgement is None and self.company != CLOSED


def is_news(experiment: Experiment, before: Experiment | None) -> bool:
    """Whether its verdict is one that was not given yet; `before` is what stood on that GPU."""
    was = None if before is None else (before.last_at, before.judgement)
    return experiment.judgement is not None and was != (experiment.last_at, experiment.judgement)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What an undone step depended on: arrivals a second of its serving, and mean lengths in tokens."""

    rate: PerSecond
    input_mean: float
    output_mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone:
    """A step that was taken back; the like is not tried until then, unless the inputs change.

    The like is one more engine of `model` beside the same `neighbours` on the same kind of GPU. `inputs` are those of
    the first window after it was undone, None until then. `compared` is what spoke against it.
    """

    serving: ServingKey
    model: str
    gpu_kind: str
    neighbours: str
    at: Seconds
    until: Seconds
    compared: Compared
    inputs: Inputs | None = None
