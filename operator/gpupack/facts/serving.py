"""What a user asks for: a model, its traffic, its latency promise and how far gpupack may go.

Knows the wish, not the cluster. Fields carry base units; `kube/resource.py` translates from the API's camelCase.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gpupack.facts.belief import Belief
from gpupack.facts.llm import Dtype, Llm
from gpupack.facts.routing import Routing
from gpupack.units import Bytes, PerSecond, Ratio, Seconds

BLOCK_TOKENS = 16
IDLE = Seconds(600.0)
"""A start of some minutes is worth sparing the GPU for about as long again (spec.scaling.idleSeconds)."""


class Statistic(StrEnum):
    MEAN = "Mean"
    P95 = "P95"
    P99 = "P99"


class Sharing(StrEnum):
    """How engines share one GPU. TIME_SLICING is predicted and simulated, never chosen for a cluster.

    MIG: each has a slice of it for itself. The GPU is then the slice's kind.
    """

    EXCLUSIVE = "Exclusive"
    MPS = "MPS"
    MIG = "MIG"
    TIME_SLICING = "TimeSlicing"

    @staticmethod
    def among(engines: int) -> Sharing:
        """What so many engines do with a GPU that has no slices."""
        return Sharing.EXCLUSIVE if engines == 1 else Sharing.MPS

    @property
    def is_alone(self) -> bool:
        """Whether an engine meets no other one on its GPU or slice."""
        return self in (Sharing.EXCLUSIVE, Sharing.MIG)


class SharingWish(StrEnum):
    AUTO = "Auto"
    MPS = "MPS"
    EXCLUSIVE = "Exclusive"
    MIG = "MIG"


class Mode(StrEnum):
    ACTIVE = "Active"
    ADVISE = "Advise"
    SUSPEND = "Suspend"


class ScalingMode(StrEnum):
    AUTO = "Auto"
    MANUAL = "Manual"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ServingKey:
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Request lengths in tokens: means and coefficients of variation (standard deviation over mean).

    `covariance` is cov(input, output) in tokens squared. `assumed` says that nobody declared or measured them.
    """

    input_mean: float
    output_mean: float
    input_cv: float = 0.9
    output_cv: float = 0.9
    covariance: float = 0.0
    assumed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """The latency promise; None is no promise. `assumed` marks the default of design.md 2."""

    itl: Seconds | None
    ttft: Seconds | None
    statistic: Statistic
    assumed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What cannot change while an engine runs."""

    max_num_seqs: int
    kv_cache_memory_bytes: Bytes
    max_num_batched_tokens: int
    max_model_len: int
    chunked_prefill: bool = True

    def kv_tokens(self, kv_bytes_per_token: Bytes, block_tokens: int = BLOCK_TOKENS) -> int:
        """Tokens of KV cache in whole blocks; vLLM keeps one block as the null block."""
        blocks = self.kv_cache_memory_bytes // (kv_bytes_per_token * block_tokens)
        return max(0, blocks - 1) * block_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """`fixed` is the user's own batch limit; None lets gpupack advise one."""

    fixed: int | None
    min_efficiency: Ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """`max_replicas` None: what the pool holds. `replicas` counts only in Manual mode.

    With `min_replicas` 0 a serving sleeps after `idle` seconds without a request.
    """

    mode: ScalingMode
    replicas: int
    min_replicas: int
    max_replicas: int | None
    idle: Seconds = IDLE


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfilePoint:
    """One measured run of one engine at one batch limit: the rows of a ModelProfile.

    `tpot_mean` is the mean over requests of seconds a token after the first. `kv_space_bytes` is the engine's KV cache,
    `kv_peak_bytes` the most of it that was used, `gpu_memory_bytes` the whole GPU's. None: not written down.
    """

    max_num_seqs: int
    total_tokens_per_second: float
    itl_mean: Seconds
    kv_peak_bytes: Bytes | None = None
    tpot_mean: Seconds | None = None
    kv_space_bytes: Bytes | None = None
    gpu_memory_bytes: Bytes | None = None
    preemptions: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Measured points of a model on one GPU kind, with the lengths they were measured at. `model` is its name."""

    name: str
    model: str = ""
    gpu_kind: str
    engine_version: str
    lengths: Lengths
    points: tuple[ProfilePoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A valid ModelServing. `template_hash` covers everything of the pod that is not the shape (image, args, env).

    `household` stands for what engines of one pod have in common of it: image, secrets, cores, memory.
    `observes`: it is about engines that gpupack did not start, and starts none. `learned` is what live load has taught
    of its model and engine version, by kind of GPU, as it is written in the cluster.
    """

    key: ServingKey
    uid: str
    generation: int
    created_at: Seconds
    pool: str
    llm: Llm
    dtype: Dtype
    max_model_len: int | None
    engine_version: str
    template_hash: str
    cpu_cores: int
    lengths: Lengths
    declared_rate: PerSecond | None
    slo: Slo | None
    batching: Batching
    scaling: Scaling
    sharing: SharingWish
    mode: Mode
    profile: Profile | None = None
    observes: bool = False
    household: str = ""
    learned: tuple[Belief, ...] = ()
    routing: Routing | None = None
