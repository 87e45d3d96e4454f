"""vLLM engines that gpupack did not start: what their pods say, and what gpupack said of them last.

An appraisal is advice only: nothing of it is planned. It lives in the status of the serving that asked for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpupack.facts.engine_flags import EngineFlags
from gpupack.facts.gpu import GpuKind
from gpupack.facts.serving import ServingKey, Shape
from gpupack.units import Bytes, PerSecond, Ratio, Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningEngine:
    """One pod that a serving's `observe.selector` found.

    `identity` changes with the process behind the pod's name. `gpu_uuid` is None where nothing tells which GPU of its
    node it has, `kind` where not even that is known. `problem` says why its pod alone already keeps it from being
    judged.
    """

    serving: ServingKey
    pod: str
    identity: str
    node: str
    gpu_uuid: str | None
    kind: GpuKind | None
    address: str | None
    flags: EngineFlags
    problem: str | None = None

    @property
    def key(self) -> str:
        """How its readings are named; no replica of gpupack's has a slash in its name."""
        return f"{self.serving.namespace}/{self.pod}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFound:
    """An engine as it is. What nobody measured is None; `problem` is why it could not be judged.

    `max_num_seqs` and `gpu_memory_utilization` are its arguments', else vLLM's defaults; `kv_cache_memory_bytes` is
    what it made of them, where it tells. `running` is a mean over the longest window, the latencies are of the same
    window; stock buckets do not tell an `itl_p95` below 10 ms.
    """

    pod: str
    node: str
    gpu_uuid: str | None = None
    gpu_kind: str | None = None
    version: str | None = None
    max_num_seqs: int | None = None
    gpu_memory_utilization: Ratio | None = None
    kv_cache_memory_bytes: Bytes | None = None
    running: float | None = None
    requests_per_second: PerSecond | None = None
    itl_mean: Seconds | None = None
    itl_p95: Seconds | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Better:
    """What the engines on one kind of GPU could be instead.

    `freed_bytes` is the KV cache of one engine now less that of one as advised. `gain` is how much more throughput a
    GPU would have at the same promise, `gain_alone` what the best single engine there would bring of it; None where
    that cannot be told. `gpus_needed` carry the measured arrivals.
    """

    gpu_kind: str
    engines: int
    shape: Shape
    replicas_per_gpu: int
    utilization_hundredths: int
    freed_bytes: int
    gain: Ratio | None
    gain_alone: Ratio | None
    gpus_now: int
    gpus_needed: int | None
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Appraisal:
    """What was said last of the engines that a serving observes. `inputs` is a digest of what it rests on."""

    serving: ServingKey
    at: Seconds
    inputs: str
    engines: tuple[EngineFound, ...]
    better: tuple[Better, ...]
