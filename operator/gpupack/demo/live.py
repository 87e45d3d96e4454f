"""Acts 2 to 4: the loop live on a real API server, a step that is taken back, and one replica too many.

The operator is a process that knows the world through the API and HTTP only. What is shown comes from the API
(replicas, decisions) and from the virtual node's own account of what really happens (tokens, latencies, DRAM), which
the operator never sees.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gpupack import catalog
from gpupack.demo.stage import POOLS, SERVINGS, Stage, condition
from gpupack.demo.view import GpuPicture, LiveView, Picture, ReplicaPicture, ServingPicture, Step
from gpupack.facts.llm import Dtype
from gpupack.facts.policy import Policy
from gpupack.facts.serving import Lengths, Shape, Sharing
from gpupack.perf import calibration
from gpupack.perf.prediction import EngineGroup
from gpupack.perf.sharing import predict
from gpupack.plan import Reason
from gpupack.twin.memory_system import Mps
from gpupack.units import Bytes

GPU_KIND = "H100-80GB"
GPUS = 2
START_SECONDS = 2.0
EXPORTER_SECONDS = 1.0
NODE_ARGUMENTS = (
    "--gpus", str(GPUS), "--gpu-kind", GPU_KIND, "--start-seconds", str(START_SECONDS),
    "--exporter-period-seconds", str(EXPORTER_SECONDS),
)  # fmt: skip

MODEL = "llama-3.2-1b"
INPUT_TOKENS, OUTPUT_TOKENS, LENGTHS_CV, LENGTHS_P95 = 256, 256, 0.9, 715
ITL_SLO, TTFT_SLO = 0.022, 1.0
MIN_EFFICIENCY = 0.4
LOAD: dict[str, Any] = {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS, "input_cv": LENGTHS_CV,
                        "output_cv": LENGTHS_CV}  # fmt: skip
CHAT, QUICK = "default/chat", "default/quick"

SHORTENED = {
    "times.tickSeconds": (1, 2), "times.warmupSeconds": (3, 60), "times.windowSeconds": (4, 60),
    "times.minWindowRequests": (50, 200), "times.rateWindowsSeconds": ([4, 10], [30, 300]),
    "times.scaleDownDelaySeconds": (10, 300), "times.pendingDeadlineSeconds": (60, 600),
    "times.rememberUndoneSeconds": (60, 1800),
    "metrics.enginePeriodSeconds": (1, 2), "metrics.dcgm.periodSeconds": (1, 30),
}  # fmt: skip
"""Field of the GpuPool, what the demo sets, and the default."""

POLL_SECONDS = 0.5
SETTLE_SECONDS = 6.0
MEASURE_SECONDS = 10.0
CLIENTS_AT = 2
QUIET_RATE, BUSY_RATE = 60, 130
ORDINARY, WORSE = Mps().interference, 4.0
"""How much engines that share a GPU slow each other: as was fitted to published runs, and what no model expects."""


def pool_manifest() -> dict[str, Any]:
    spec: dict[str, Any] = {}
    for field, (value, _) in SHORTENED.items():
        place = spec
        *parents, leaf = field.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    return {"apiVersion": "gpupack.dev/v1alpha1", "kind": "GpuPool", "metadata": {"name": "default"}, "spec": spec}


def serving_manifest(
    name: str, model: str, *, itl_milliseconds: int, ttft_milliseconds: int, efficiency_percent: int = 10
) -> dict[str, Any]:
    """The 95th percentiles are those of a gamma distribution with the coefficient of variation of the load."""
    return {
        "apiVersion": "gpupack.dev/v1alpha1",
        "kind": "ModelServing",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "model": {"name": model},
            "workload": {
                "inputTokens": {"mean": INPUT_TOKENS, "p95": LENGTHS_P95},
                "outputTokens": {"mean": OUTPUT_TOKENS, "p95": LENGTHS_P95},
                "requestsPerSecond": 10,
            },
            "slo": {"itlMilliseconds": itl_milliseconds, "ttftMilliseconds": ttft_milliseconds},
            "batching": {"minEfficiencyPercent": efficiency_percent},
        },
    }


CHAT_MANIFEST = serving_manifest(
    "chat", MODEL, itl_milliseconds=round(1000 * ITL_SLO), ttft_milliseconds=round(1000 * TTFT_SLO),
    efficiency_percent=round(100 * MIN_EFFICIENCY),
)  # fmt: skip
QUICK_MANIFEST = serving_manifest("quick", "llama-3.2-3b", itl_milliseconds=12, ttft_milliseconds=500)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One look: the virtual node's truth and the API's servings by name."""

    state: Mapping[str, Any]
    servings: Mapping[str, Mapping[str, Any]]

    def ready(self, name: str) -> int:
        return int(self.servings.get(name, {}).get("status", {}).get("readyReplicas", 0))

    def planned(self, name: str) -> int:
        return int(self.servings.get(name, {}).get("status", {}).get("replicas", 0))

    def reason(self, name: str) -> str:
        return str(self.servings.get(name, {}).get("status", {}).get("decision", {}).get("reason", ""))

    def message(self, name: str) -> str:
        return str(self.servings.get(name, {}).get("status", {}).get("decision", {}).get("message", ""))

    def engines_on(self, gpu: int, name: str | None = None) -> int:
        """Engines that serve on the GPU of that index."""
        here = self.state["gpus"][gpu]["uuid"]
        return sum(
            each["gpu"] == here and each["state"] == "ready"
            and (name is None or each["labels"].get("gpupack.dev/serving") == name)
            for each in self.state["engines"]
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A decision as it stood on the resource at some moment; seconds since the act began."""

    seconds: float
    serving: str
    reason: str
    message: str


class Director:
    """Plays the acts on a stage and shows them. Keeps every decision that it saw on a resource."""

    def __init__(self, stage: Stage, view: LiveView) -> None:
        self.stage = stage
        self.heard: list[Heard] = []
        self._view = view
        self._began = time.monotonic()

    def say(self, sentence: str) -> None:
        self._view.say(sentence)

    def watch(self, title: str, until: Callable[[Moment], bool], seconds: float) -> bool:
        """Shows what happens until it is so, for at most that long; False if it never was."""
        deadline = time.monotonic() + seconds
        while True:
            moment = self.look()
            self._view.show(self._picture(title, moment))
            if until(moment):
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)

    def wait(self, title: str, seconds: float) -> Moment:
        """Shows what happens for that long."""
        ends = time.monotonic() + seconds
        self.watch(title, lambda _: time.monotonic() >= ends, seconds)
        return self.look()

    def beside(self, title: str, work: Callable[[], None]) -> None:
        """Shows what happens while `work` is done in a thread of its own; raises what it raises."""
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            future = pool.submit(work)
            self.watch(title, lambda _: future.done(), float("inf"))
            future.result()

    def look(self) -> Moment:
        servings = {each["metadata"]["name"]: each for each in self.stage.servings()}
        moment = Moment(state=self.stage.state(4.0), servings=servings)
        for name in servings:
            self._hear(name, moment)
        return moment

    def _hear(self, name: str, moment: Moment) -> None:
        message = moment.message(name)
        last = next((each for each in reversed(self.heard) if each.serving == name), None)
        if message and (last is None or last.message != message):
            self.heard.append(
                Heard(
                    seconds=time.monotonic() - self._began,
                    serving=name,
                    reason=moment.reason(name),
                    message=message,
                )
            )

    def _picture(self, title: str, moment: Moment) -> Picture:
        return Picture(
            title=title,
            seconds=time.monotonic() - self._began,
            gpus=tuple(_gpu_picture(index, gpu, moment) for index, gpu in enumerate(moment.state["gpus"])),
            servings=tuple(_serving_picture(name, moment) for name in sorted(moment.servings)),
        )


def _gpu_picture(index: int, gpu: Mapping[str, Any], moment: Moment) -> GpuPicture:
    engines = [each for each in moment.state["engines"] if each["gpu"] == gpu["uuid"]]
    return GpuPicture(
        name=f"GPU {index + 1}",
        kind=gpu["kind"],
        replicas=tuple(
            ReplicaPicture(
                serving=each["labels"].get("gpupack.dev/serving", each["pod"]),
                phase=each["state"],
                running=each.get("running", 0),
                waiting=each.get("waiting", 0),
                limit=each.get("max_num_seqs", 0),
                tokens_per_second=each.get("total_tokens_per_second", 0.0),
            )
            for each in engines
        ),
        dram_active=gpu["dram_active"],
        attainable=gpu["dram_active_attainable"] or None,
        memory_used=gpu["fb_used_bytes"],
        memory_total=gpu["memory_bytes"],
        tokens_per_second=gpu["total_tokens_per_second"],
    )


def _serving_picture(name: str, moment: Moment) -> ServingPicture:
    resource = moment.servings[name]
    spec, status = resource["spec"], resource.get("status", {})
    slo, shape = spec.get("slo", {}), status.get("shape", {})
    measured: Mapping[str, Any] = next(
        (each for each in moment.state["services"] if each["service"] == f"default/{name}"), {}
    )
    rate = next((each for each in moment.state["loads"] if each["target"] == f"default/{name}"), None)
    kv_bytes = shape.get("kvCacheMemoryBytes", 0)
    return ServingPicture(
        name=name,
        shape=f"{shape['maxNumSeqs']} seqs, {kv_bytes / 2**30:.1f} GiB KV" if shape else "",
        ready=moment.ready(name),
        planned=moment.planned(name),
        requests_per_second=rate["rates"][-1][1] if rate and rate["rates"] else 0.0,
        statistic="p95",
        itl=measured.get("itl_p95_seconds"),
        itl_slo=slo["itlMilliseconds"] / 1000.0 if "itlMilliseconds" in slo else None,
        ttft=measured.get("ttft_p95_seconds"),
        ttft_slo=slo["ttftMilliseconds"] / 1000.0 if "ttftMilliseconds" in slo else None,
        decision=f"{moment.reason(name)}: {moment.message(name)}" if moment.reason(name) else "",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """What act 2 showed. `most_on_first` engines stood on the first GPU when it was full."""

    most_on_first: int
    opened_second: bool
    bandwidth_ceiling: bool
    latency_slo: bool
    shrank: bool
    missed: tuple[str, ...]


def pack(director: Director) -> Packing:
    """Act 2. Load rises and falls; every step is awaited, none is assumed."""
    stage, missed = director.stage, []
    stage.cluster.apply(pool_manifest(), CHAT_MANIFEST)

    def step(rate: float, title: str, until: Callable[[Moment], bool], seconds: float) -> None:
        stage.load(CHAT, rate=rate, **LOAD)
        if not director.watch(title, until, seconds):
            missed.append(title)

    step(50, "50 requests/s: one engine is enough", lambda now: now.ready("chat") == 1, 25)
    director.wait("50 requests/s: one engine is enough", 4)
    step(150, "150 requests/s: a second engine beside it", lambda now: now.engines_on(0) >= 2, 20)
    step(200, "200 requests/s: a third", lambda now: now.engines_on(0) >= 3, 20)
    director.wait("200 requests/s: a third", 5)
    step(330, "330 requests/s: more than one GPU does", lambda now: now.engines_on(1) >= 1, 25)
    peak = director.wait("330 requests/s: more than one GPU does", 5)
    most = peak.engines_on(0)

    stage.load(CHAT, rate=30, **LOAD)
    chats = peak.planned("chat")
    shrank = director.watch("the load falls", lambda now: now.planned("chat") <= chats - 2, 45)

    title = "a second model with a tighter promise"
    stage.cluster.apply(QUICK_MANIFEST)
    stage.load(QUICK, rate=8, **LOAD)
    if not director.watch(title, lambda now: now.ready("quick") >= 1, 25):
        missed.append(title)
    stage.load(QUICK, rate=120, **LOAD)
    slow = director.watch(
        "the second model asks for more than its promise allows", lambda now: now.reason("quick") == "LatencySlo", 30
    )
    stage.no_load(QUICK)
    return Packing(
        most_on_first=most,
        opened_second=peak.engines_on(1) >= 1,
        bandwidth_ceiling=any(
            each.serving == "chat" and ("BandwidthCeiling" in each.reason or "DRAM traffic" in each.message)
            for each in director.heard
        ),
        latency_slo=slow,
        shrank=shrank,
        missed=tuple(missed),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenBack:
    """Act 3: what the resource said of the step that was undone, and how many engines served afterwards."""

    said: str
    left: int

    @property
    def held(self) -> bool:
        return bool(self.said) and self.left == 1


def take_back(director: Director) -> TakenBack:
    """Act 3. The world worsens while one engine serves; the load asks for a second, which then does harm."""
    stage = director.stage
    stage.cluster.kubectl("delete", "msv", "quick", "--wait=false")
    first = stage.state()["gpus"][0]["uuid"]
    stage.patch(f"{POOLS}/default", {"spec": {"gpuUuids": [first]}})
    stage.patch(f"{SERVINGS}/chat", {"spec": {"scaling": {"mode": "Manual"}, "replicas": 1}})
    title = "one engine, and a world that gets worse"
    stage.load(CHAT, rate=QUIET_RATE, **LOAD)
    director.watch(title, lambda now: now.engines_on(0) == 1 == len(now.state["engines"]), 30)
    stage.patch(f"{SERVINGS}/chat", {"spec": {"scaling": {"mode": "Auto", "maxReplicas": 2}}})
    director.wait(title, SETTLE_SECONDS)
    stage.steer("/interference", interference=WORSE)
    stage.load(CHAT, rate=BUSY_RATE, **LOAD)
    title = f"{BUSY_RATE} requests/s: a second engine, which slows the first"
    director.watch(title, lambda now: now.engines_on(0) == 2, 20)
    director.watch(title, lambda now: now.reason("chat") == Reason.ROLLED_BACK, 30)
    found = condition(stage.serving("chat"), "AsPredicted")
    director.watch(title, lambda now: now.engines_on(0) == 1, 10)
    left = director.look().engines_on(0)
    stage.no_load(CHAT)
    stage.steer("/interference", interference=ORDINARY)
    return TakenBack(said=found.get("message", "") if found.get("reason") == Reason.ROLLED_BACK else "", left=left)


@dataclass(frozen=True, slots=True, kw_only=True)
class OneTooMany:
    """Act 4: the measured staircase, what the resource said of the last step, and whether it was right to stop."""

    steps: tuple[Step, ...]
    chosen: int
    said: str
    gain: float
    least_gain: float
    broke_slo: bool

    @property
    def held(self) -> bool:
        return self.gain < self.least_gain or self.broke_slo


def one_too_many(director: Director, as_clients: Callable[[float], None]) -> OneTooMany:
    """Act 4. Each count is pinned by scaling.mode Manual, and a tenth more clients than slots keep every engine full.

    `as_clients` measures for so many seconds over HTTP beside the bulk load, while two engines run.
    """
    stage = director.stage
    stage.patch(f"{SERVINGS}/chat", {"spec": {"scaling": {"mode": "Manual", "maxReplicas": None}, "replicas": 1}})
    chosen = int(stage.serving("chat")["status"]["replicasPerGpu"])
    shape = stage.serving("chat")["status"]["shape"]
    steps: list[Step] = []
    for replicas in range(1, chosen + 2):
        title = f"pinned: {replicas}, {'of' if replicas <= chosen else 'one more than the'} {chosen} that pay"
        stage.patch(f"{SERVINGS}/chat", {"spec": {"replicas": replicas}})
        stage.load(CHAT, concurrency=round(1.1 * replicas * shape["maxNumSeqs"]), **LOAD)
        director.watch(title, lambda now, n=replicas: now.engines_on(0) == n == len(now.state["engines"]), 60)  # type: ignore[misc]
        director.wait(title, SETTLE_SECONDS)
        if replicas == CLIENTS_AT:
            director.beside(title, lambda: as_clients(MEASURE_SECONDS))
        else:
            director.wait(title, MEASURE_SECONDS)
        steps.append(_measured(stage, replicas, shape))
    said = condition(stage.serving("chat"), "Packed")
    gain = steps[-1].measured / steps[-2].measured - 1.0
    return OneTooMany(
        steps=tuple(steps),
        chosen=chosen,
        said=f"{said.get('reason', '')}: {said.get('message', '')}",
        gain=gain,
        least_gain=Policy().least_marginal_gain,
        broke_slo=steps[-1].itl > ITL_SLO,
    )


def _measured(stage: Stage, replicas: int, shape: Mapping[str, Any]) -> Step:
    state = stage.state(MEASURE_SECONDS)
    gpu = state["gpus"][0]
    llm = catalog.llm(MODEL)
    group = EngineGroup(
        llm=llm,
        dtype=Dtype.BFLOAT16,
        shape=Shape(
            max_num_seqs=shape["maxNumSeqs"],
            kv_cache_memory_bytes=Bytes(shape["kvCacheMemoryBytes"]),
            max_num_batched_tokens=2048,
            max_model_len=shape["maxModelLen"],
        ),
        lengths=Lengths(input_mean=INPUT_TOKENS, output_mean=OUTPUT_TOKENS, input_cv=LENGTHS_CV, output_cv=LENGTHS_CV),
        replicas=replicas,
        request_rate=None,
        coefficients=calibration.coefficients(),
    )
    closed = predict(catalog.gpu(GPU_KIND), (group,), Sharing.MPS)
    return Step(
        replicas=replicas,
        measured=gpu["total_tokens_per_second"],
        predicted=closed.total_tokens_per_second,
        dram_active=gpu["dram_active"],
        itl=gpu["itl_p95_seconds"],
        ttft=gpu["ttft_p95_seconds"],
        itl_slo=ITL_SLO,
    )
