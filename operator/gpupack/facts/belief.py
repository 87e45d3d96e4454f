"""What was learnt of an engine while it served: its coefficients with how sure they are, and from how much load.

One belief per namespace, model, kind of GPU and engine version; it is kept in a ModelProfile of the operator's own and
outlives the serving. What the coefficients mean stands in `perf/prediction.py`, how they are learnt in
`perf/learning.py`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from gpupack.units import Ratio, Seconds


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class BeliefKey:
    """Whose coefficients: a release of vLLM ("0.33.0") with a model on a kind of GPU."""

    namespace: str
    model: str
    gpu_kind: str
    engine_version: str

    @property
    def name(self) -> str:
        """The learnt ModelProfile's name: `learned-`, the model, and ten hex digits of everything."""
        text = f"{self.model}|{self.gpu_kind}|{self.engine_version}"
        slug = re.sub(r"[^a-z0-9]+", "-", self.model.rpartition("/")[2].lower()).strip("-")[:40].rstrip("-")
        return "-".join(("learned", *([slug] if slug else []), hashlib.sha256(text.encode()).hexdigest()[:10]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Belief:
    """`step` is what a step takes whatever its batch (host gap and GPU time of all layers), `sequence` a sequence's
    host time, `eager` the launch floor of a step with prefill; `kv_read` and `gemm` are shares of the datasheet peaks.

    `covariance` is that of their natural logarithms in this order: a direction that no load told of keeps what it had.
    `error` is the mean misfit of late, relative. `load` is how long engines were watched under load, `batch_least` and
    `batch_most` between which mean batches, `input_mean` and `output_mean` the last lengths in tokens.
    """

    key: BeliefKey
    step: Seconds
    sequence: Seconds
    kv_read: Ratio
    eager: Seconds
    gemm: Ratio
    covariance: tuple[tuple[float, ...], ...]
    error: Ratio
    load: Seconds
    batch_least: float
    batch_most: float
    input_mean: float
    output_mean: float
    at: Seconds

    @property
    def coefficients(self) -> tuple[float, ...]:
        return (self.step, self.sequence, self.kv_read, self.eager, self.gemm)
