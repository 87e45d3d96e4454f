"""One look at the world, as read: every reading is a value with its time and origin, or a Missing with its cause.

Nothing here is judged; `interpret` does that. The recorder writes exactly this to a trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gpupack.facts.backend import ClusterOffer
from gpupack.facts.counter import Counter, Scale
from gpupack.facts.gpu import Gpu
from gpupack.facts.placement import Plan, PredictedEffect
from gpupack.facts.policy import Policy
from gpupack.facts.routing import PoolSeen
from gpupack.facts.running import Appraisal, RunningEngine
from gpupack.facts.serving import Serving, ServingKey, Shape, Sharing
from gpupack.units import Bytes, Seconds


class Cause(StrEnum):
    NO_SERIES = "NoSeries"
    STALE = "Stale"
    NOT_FINITE = "NotFinite"
    UNREACHABLE = "Unreachable"
    TOO_SHORT = "TooShort"
    TOO_COARSE = "TooCoarse"
    UNAUTHORIZED = "Unauthorized"
    REFUSED = "Refused"
    ABSURD = "Absurd"
    NO_SCALE = "NoScale"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """`at` is when the value was true (unix seconds), not when it was fetched. `origin` names the series or file."""

    value: float
    at: Seconds
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    cause: Cause
    origin: str


Measured = Reading | Missing


class Phase(StrEnum):
    """A replica's life, from its pod: PENDING is not yet bound to a node."""

    PENDING = "Pending"
    STARTING = "Starting"
    READY = "Ready"
    STOPPING = "Stopping"
    FAILED = "Failed"


class Trouble(StrEnum):
    """Why an engine's process ended that another attempt of the same kind would not help.

    OUT_OF_MEMORY: the GPU had less memory than it asked for. REFUSED: its image does not take what it is started with.
    MPS_LOST: the MPS server that it was a client of is gone, with all its clients.
    """

    OUT_OF_MEMORY = "OutOfMemory"
    REFUSED = "Refused"
    MPS_LOST = "MpsLost"


QUOTE, UNQUOTE = "\u201c", "\u201d"


def quoted(words: str) -> str:
    """What a container wrote, marked wherever it goes: a log may hold prompts and tokens, and a trace leaves it out."""
    inner = words.replace(QUOTE, '"').replace(UNQUOTE, '"')
    return f"{QUOTE}{inner}{UNQUOTE}" if words else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSeen:
    """A pod that carries our labels; they hold everything needed to plan it again after a lost status.

    `content_hash` is the label of that name; `deletion_at` is None while nobody asked for its end. `marked` is False
    where somebody changed those labels: then what stands here is what the plan says of a pod of that name.
    `utilization_hundredths` is the `--gpu-memory-utilization` it was started with: what it may hold at most, known even
    when its serving is gone. `trouble` is what ended its process last, where that is known to be of a kind, and `short`
    how many bytes of GPU memory were missing then, as far as it told.
    """

    name: str
    uid: str
    serving: ServingKey
    gpu_uuid: str
    slot: int
    sharing: Sharing
    shape: Shape
    template_hash: str
    content_hash: str
    phase: Phase
    created_at: Seconds
    ready_at: Seconds | None
    deletion_at: Seconds | None
    in_service: bool
    address: str | None
    restarts: int = 0
    message: str = ""
    predicted: PredictedEffect | None = None
    utilization_hundredths: int | None = None
    marked: bool = True
    trouble: Trouble | None = None
    short: Bytes = Bytes(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineWindow:
    """One engine over the last `seconds`: differences of its own counters. Rates are a second.

    `inside_least` and `inside_most` are the fewest and most requests that any scrape found running or waiting: clients
    that wait for their answer before they ask again keep them equal. `steps` are those in which a token was made, and
    `read_bytes` what the engine itself counts that it read.
    """

    seconds: Seconds
    arrivals: Measured
    finished: Measured
    prompt_tokens: Measured
    generation_tokens: Measured
    preemptions: Measured
    itl_mean: Measured
    itl_p95: Measured
    ttft_mean: Measured
    ttft_p95: Measured
    input_mean: Measured
    output_mean: Measured
    running_mean: Measured
    waiting_least: Measured
    inside_least: Measured = Missing(cause=Cause.NO_SERIES, origin="inside")
    inside_most: Measured = Missing(cause=Cause.NO_SERIES, origin="inside")
    steps: Measured = Missing(cause=Cause.NO_SERIES, origin="steps")
    read_bytes: Measured = Missing(cause=Cause.NO_SERIES, origin="read bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class GapSeen:
    """What came between two scrapes that are `seconds` apart, in requests a second."""

    seconds: Seconds
    arrivals: Measured


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSeen:
    """What one engine's `/metrics` says now and over the policy's windows (shortest first).

    `served` are the roots of the models that `/v1/models` lists; empty where nobody asked or it did not answer.

    `peak_arrivals` is the highest arrival rate of the shortest window within the last scale-down delay; Missing until
    that delay has been watched. `waiting_before` is the scrape before the last one. `gaps` are the last gap between
    scrapes and the one before it, empty until there were two. `dispersion` is the variance over the mean of what came
    in gaps before these: 1 if requests come one by one as chance will, more if they come in bursts. `judged` is the
    window over which steps are judged, None where nobody keeps one. `idle` is for how many seconds of watching the
    engine has been empty and nothing came.
    """

    replica: str
    running: Measured
    waiting: Measured
    waiting_before: Measured
    kv_usage: Measured
    kv_blocks: Measured
    windows: tuple[EngineWindow, ...]
    peak_arrivals: Measured
    gaps: tuple[GapSeen, ...] = ()
    dispersion: float = 1.0
    judged: EngineWindow | None = None
    version: str | None = None
    served: tuple[str, ...] = ()
    idle: Measured = Missing(cause=Cause.NO_SERIES, origin="idle")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldSeen:
    """Requests that the activators hold for a serving without a replica; the oldest came at `since`.

    Without an activator in the cluster there is none of these.
    """

    serving: ServingKey
    requests: Measured
    since: Seconds | None = None


NO_CORES_TOLD = Missing(cause=Cause.NO_SERIES, origin="waiting for cores")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSeen:
    """One device with its readings. `dram_active` is what `counter` shows, `fb_used` in bytes.

    `cordoned`: somebody said that its node takes no new pods. `xid` is the code of the last error that the driver told
    of it, 0 if none. Of the engine on it that is worst off, `core_wait` is the share of the time in which its threads
    could have run that they waited for a core, `throttled` the share of periods in which its CPU limit was used up.
    """

    gpu: Gpu
    node_ready: bool
    dram_active: Measured
    fb_used: Measured
    power: Measured
    cordoned: bool = False
    xid: Measured = Missing(cause=Cause.NO_SERIES, origin="xid")
    core_wait: Measured = NO_CORES_TOLD
    throttled: Measured = NO_CORES_TOLD
    counter: Counter = Counter.DCGM_DRAM_ACTIVE


DEVICE_TAINT, EVICTING = "DeviceTaint", ":NoExecute"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Somebody else on a GPU: an allocated claim or a pod with an extended resource that gpupack did not make.

    Or a taint on the device, by its key, value and effect.
    """

    gpu_uuid: str
    kind: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSeen:
    """Whole cores: what the node can allocate and what pods that are not ours request of it.

    `cordoned`: somebody said that it takes no new pods.
    """

    name: str
    ready: bool
    cpu_cores: float
    cpu_cores_of_others: float
    cordoned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimSeen:
    """What holds a GPU for a namespace, one per namespace and GPU. `owners` are the uids of the servings that own it.

    A ResourceClaim, or a pod that engines come into: then `household` says whose engines it takes and `engines` how
    many, which cannot change while it is there. `alone` is why only one engine at a time can run in it, else empty.
    """

    namespace: str
    name: str
    uid: str
    gpu_uuid: str
    sharing: Sharing
    owners: tuple[str, ...]
    deleting: bool = False
    household: str = ""
    engines: int | None = None
    alone: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A ModelServing that passed the CRD but cannot be carried out; `problem` and `fix` are sentences."""

    key: ServingKey
    uid: str
    generation: int
    field: str
    problem: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSeen:
    """Which of a serving's shared children stand as gpupack applied them: its Service and its PodDisruptionBudget.

    `inference_pool` is None where none is asked for and none is there.
    """

    serving: ServingKey
    has_service: bool
    min_available: int | None
    inference_pool: PoolSeen | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceProblem:
    """`reason` is CamelCase, `message` says what is wrong and what to do."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Everything a decision may know. `stale` names mirrors that are too old to trust (stale data holds).

    `plan` is None when the pool's status holds none (new, or lost). `pool_problem` is set when the pool itself may not
    act (it overlaps an older one). `running` are engines that others started, `appraisals` what was said of them last.
    `unknown_products` are products that the catalog does not have, of GPUs that are not in `gpus` for that.
    `watched_since` is when this process took its first readings; None: long ago. `offer` is what the pool's nodes offer
    of each way of sharing GPUs, None where nobody looked. `scales` are those of the counters, each measured once,
    `source_problem` is why a source that the pool names gives nothing.
    """

    at: Seconds
    pool: str
    pool_uid: str
    pool_generation: int
    policy: Policy
    plan: Plan | None
    servings: tuple[Serving, ...]
    refused: tuple[Refused, ...]
    gpus: tuple[GpuSeen, ...]
    nodes: tuple[NodeSeen, ...]
    holders: tuple[Holder, ...]
    claims: tuple[ClaimSeen, ...]
    replicas: tuple[ReplicaSeen, ...]
    engines: tuple[EngineSeen, ...]
    services: tuple[ServiceSeen, ...]
    stale: tuple[str, ...] = ()
    pool_problem: str | None = None
    running: tuple[RunningEngine, ...] = ()
    appraisals: tuple[Appraisal, ...] = ()
    unknown_products: tuple[str, ...] = ()
    watched_since: Seconds | None = None
    scales: tuple[Scale, ...] = ()
    source_problem: SourceProblem | None = None
    offer: ClusterOffer | None = None
    held: tuple[HeldSeen, ...] = ()
