"""What comes out of a decision: verdicts that explain themselves, conditions, and actions that may be repeated.

Knows the vocabulary, not the rules (`decide/`) and not Kubernetes (`kube/`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gpupack.facts.counter import Scale
from gpupack.facts.estimate import Estimate
from gpupack.facts.experiment import Experiment
from gpupack.facts.placement import Placement, Plan, PredictedEffect, Wake
from gpupack.facts.routing import Thresholds
from gpupack.facts.running import Appraisal
from gpupack.facts.serving import ServingKey, Sharing
from gpupack.units import Seconds


class Reason(StrEnum):
    """Why gpupack does not add a replica, in the order of the checks (design.md 4)."""

    DATA_MISSING = "DataMissing"
    HELD_BY_OTHERS = "HeldByOthers"
    ROLLED_BACK = "RolledBack"
    MAX_REPLICAS = "MaxReplicas"
    DEMAND_MET = "DemandMet"
    MEMORY = "Memory"
    HOST_CPU = "HostCpu"
    LATENCY_SLO = "LatencySlo"
    BANDWIDTH_CEILING = "BandwidthCeiling"
    MARGINAL_GAIN = "MarginalGain"


class Step(StrEnum):
    """What a record says where gpupack did something, or cannot begin, instead of having stopped for a `Reason`."""

    ADDED = "Added"
    REMOVED = "Removed"
    ASLEEP = "Asleep"
    REPLACED = "Replaced"
    MOVED = "Moved"
    WITHDRAWN = "Withdrawn"
    ADVISED = "Advised"
    NO_ENGINE = "NoEngine"
    SUSPENDED = "Suspended"
    GOES_PAST = "GoesPast"
    SHARING_NOT_ALLOWED = "SharingNotAllowed"
    DTYPE_NOT_SUPPORTED = "DtypeNotSupported"
    NO_GPU = "NoGpu"
    ENGINE_REFUSED = "EngineRefused"
    MPS_LOST = "MpsLost"
    HOST_LOST = "HostLost"


class Unit(StrEnum):
    BYTES = "bytes"
    SECONDS = "seconds"
    RATIO = "ratio"
    REPLICAS = "replicas"
    CORES = "cores"
    TOKENS_PER_SECOND = "tokens/s"
    NONE = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One objection: `observed` should have been at most `limit` (or at least, if `at_least`).

    `subject` is what was judged (a GPU's uuid, a neighbour, the serving); `detail` a few words that numbers cannot say
    (the holder's name, the missing series).
    """

    subject: str
    reason: Reason
    observed: Estimate
    limit: Estimate
    unit: Unit
    at_least: bool = False
    detail: str = ""

    @property
    def margin(self) -> float:
        """How far from passing, in `unit`; negative is by how much it fails."""
        gap = self.limit.value - self.observed.value
        return -gap if self.at_least else gap


class ConditionType(StrEnum):
    READY = "Ready"
    PACKED = "Packed"
    SLO_MET = "SloMet"
    ACCEPTED = "Accepted"
    PROGRESSING = "Progressing"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    AS_PREDICTED = "AsPredicted"
    ENGINE_SUPPORTED = "EngineSupported"
    GPUS_KNOWN = "GpusKnown"
    GPUS_MEASURED = "GpusMeasured"
    GPUS_HEALTHY = "GpusHealthy"
    BACKEND_CHOSEN = "BackendChosen"
    INFERENCE_POOL_WRITTEN = "InferencePoolWritten"


class Truth(StrEnum):
    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A Kubernetes condition without its transition time, which the shell keeps from what was there before.

    `yields_to` are reasons that stay, where one of them was said of this generation: nothing new is known.
    """

    type: ConditionType
    truth: Truth
    reason: str
    message: str
    yields_to: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyClaim:
    """One ResourceClaim for a GPU in a namespace, owned by every serving that uses it."""

    namespace: str
    gpu_uuid: str
    sharing: Sharing
    owners: tuple[ServingKey, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteClaim:
    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyService:
    serving: ServingKey


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyBudget:
    """The PodDisruptionBudget; `min_available` is replicas - 1."""

    serving: ServingKey
    min_available: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StartReplica:
    placement: Placement
    utilization_hundredths: int
    predicted: PredictedEffect | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveService:
    """Take a replica out of its Service before it is stopped, so that no new request reaches it."""

    serving: ServingKey
    name: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkReplica:
    """Write the labels and notes of a replica again, because somebody changed them."""

    placement: Placement
    uid: str
    utilization_hundredths: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StopReplica:
    serving: ServingKey
    name: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tell:
    """An event on the serving, said once when the decision changes."""

    serving: ServingKey
    warning: bool
    reason: str
    message: str


Action = (
    ApplyClaim
    | DeleteClaim
    | ApplyService
    | ApplyBudget
    | StartReplica
    | MarkReplica
    | LeaveService
    | StopReplica
    | Tell
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatus:
    name: str
    gpu_uuid: str
    node: str
    phase: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingStatus:
    """The derived status of one ModelServing; everything a person reads in `kubectl get msv -o yaml`.

    `experiment` is the last one of this serving, `experiment_message` what came of it, in sentences. `thresholds` are
    for an endpoint picker, where one is named.
    """

    serving: ServingKey
    uid: str
    observed_generation: int
    replicas: int
    ready_replicas: int
    selector: str
    max_num_seqs: int | None
    kv_cache_memory_bytes: int | None
    max_model_len: int | None
    engine_args: tuple[str, ...]
    replicas_per_gpu: int | None
    freed_bytes: int | None
    assumed: tuple[str, ...]
    placements: tuple[ReplicaStatus, ...]
    decision_reason: str
    decision_message: str
    decision_observed: float | None
    decision_limit: float | None
    decision_unit: str
    decision_at: Seconds | None
    conditions: tuple[Condition, ...]
    decision_seen: str = ""
    decision_predicted: str = ""
    decision_rejected: str = ""
    experiment: Experiment | None = None
    experiment_message: str = ""
    appraisal: Appraisal | None = None
    thresholds: Thresholds | None = None
    wake: Wake | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus:
    """`plan` is the whole plan, None while there is none and none may be made; counts are for the printer columns."""

    plan: Plan | None
    gpus: int
    gpus_in_use: int
    replicas: int
    conditions: tuple[Condition, ...]
    scales: tuple[Scale, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one tick asks of the shell: write these statuses, and, only if the plan was read back, do these actions.

    If `plan_changed`, `actions` holds nothing but Tells (said once, after the write succeeded): the next tick acts on
    the plan as read back. `wake_in` is how long the shell may sleep if nothing stirs. `verdicts` holds every objection
    of this tick, for the metrics and `explain`. `look_again` names replicas whose engines are to be scraped by then,
    whatever their period.
    """

    pool_status: PoolStatus
    plan_changed: bool
    serving_statuses: tuple[ServingStatus, ...]
    actions: tuple[Action, ...]
    verdicts: tuple[tuple[ServingKey, Verdict], ...]
    wake_in: Seconds
    look_again: tuple[str, ...] = ()
