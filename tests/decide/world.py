"""A cluster in memory for tests of the decision: pods that start, serve and go, and fluid engines under a load.

Nothing here is shared with the decision but the nouns and the performance model of a GPU. Every rule that must never
be broken is asserted at the moment it would be: memory, one start at a time, room first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache

from gpupack.decide.reconcile import reconcile
from gpupack.facts.gpu import Gpu, GpuKind
from gpupack.facts.observation import (
    Cause,
    ClaimSeen,
    EngineSeen,
    EngineWindow,
    GpuSeen,
    HeldSeen,
    Holder,
    Measured,
    Missing,
    NodeSeen,
    Observation,
    Phase,
    Reading,
    Refused,
    ReplicaSeen,
    ServiceSeen,
)
from gpupack.facts.placement import Placement, Plan
from gpupack.facts.policy import Policy
from gpupack.facts.serving import BLOCK_TOKENS, Serving, ServingKey, Shape, Sharing
from gpupack.perf import sharing
from gpupack.perf.calibration import coefficients
from gpupack.perf.memory import replica_memory
from gpupack.perf.prediction import EngineGroup
from gpupack.plan import (
    Action,
    ApplyBudget,
    ApplyClaim,
    ApplyService,
    DeleteClaim,
    LeaveService,
    Outcome,
    StartReplica,
    StopReplica,
    Tell,
)
from gpupack.units import Seconds

from ..strategies import NOON, QUICK

BOUND_AFTER, READY_AFTER, GONE_AFTER = 1.0, 12.0, 6.0
"""Seconds from creation to a node, to Ready, and from the request to stop to the end."""
TICK = 2.0


@dataclass(slots=True, kw_only=True)
class Pod:
    placement: Placement
    serving: Serving
    uid: str
    hundredths: int
    created_at: float
    phase: Phase = Phase.PENDING
    ready_at: float | None = None
    deletion_at: float | None = None
    in_service: bool = True
    waiting: float = 0.0
    waiting_before: float = 0.0
    restarts: int = 0
    history: deque[tuple[float, float, float, float]] = field(default_factory=deque)

    def memory(self, kind: GpuKind) -> int:
        return replica_memory(self.serving.llm, self.serving.dtype, self.placement.shape, kind).total


def _group(serving: Serving, shape: Shape, engines: int) -> EngineGroup:
    return EngineGroup(
        llm=serving.llm, dtype=serving.dtype, shape=shape, lengths=serving.lengths, replicas=engines,
        request_rate=None, coefficients=coefficients(serving.engine_version),
    )  # fmt: skip


@lru_cache(maxsize=1024)
def finish_rate(serving: Serving, shape: Shape, kind: GpuKind, engines: int) -> float:
    """Requests a second of one engine that is kept full beside others like it."""
    how = Sharing.MPS if engines > 1 else Sharing.EXCLUSIVE
    tokens = sharing.predict(kind, (_group(serving, shape, engines),), how).groups[0].output_tokens_per_second
    return tokens / engines / serving.lengths.output_mean


@lru_cache(maxsize=4096)
def itl(serving: Serving, shape: Shape, kind: GpuKind, engines: int, running: int) -> float:
    """Seconds between two tokens of so many running sequences, beside others like it."""
    how = Sharing.MPS if engines > 1 else Sharing.EXCLUSIVE
    return sharing.itl_at(kind, (_group(serving, shape, engines),), (float(running),), how)[0]


class World:
    """`loads` are requests a second by serving. `blind` names what cannot be read: `engines`, `dcgm` or `activator`.

    Engines that share a GPU are `interference` times slower than the model says, those of a shape in `spoilt` so many
    times.
    `has_activator`: requests to a serving without a replica are held (`held`, with the time of the first), else lost.
    `live_lengths` are what requests really have (input and output tokens) where that is not what was declared, and
    `is_open` says that requests come as they like, not when the answer before them is there.
    """

    def __init__(
        self,
        gpus: Iterable[Gpu],
        servings: Iterable[Serving],
        loads: dict[ServingKey, float] | None = None,
        policy: Policy = QUICK,
        cores: float = 64.0,
    ) -> None:
        self.at = float(NOON)
        self.gpus = {gpu.uuid: gpu for gpu in gpus}
        self.servings = {each.key: each for each in servings}
        self.loads = dict(loads or {})
        self.policy = policy
        self.cores = cores
        self.pods: dict[tuple[str, str], Pod] = {}
        self.claims: dict[tuple[str, str, Sharing], ClaimSeen] = {}
        self.services: set[ServingKey] = set()
        self.budgets: dict[ServingKey, int] = {}
        self.plan: Plan | None = None
        self.version = 0
        self.blind: dict[str, Cause] = {}
        self.is_open = True
        self.interference = 1.0
        self.spoilt: dict[Shape, float] = {}
        self.live_lengths: dict[ServingKey, tuple[float, float]] = {}
        self.holders: list[Holder] = []
        self.refused: list[Refused] = []
        self.stuck: set[str] = set()
        self.stale: tuple[str, ...] = ()
        self.has_activator = False
        self.held: dict[ServingKey, tuple[float, float]] = {}
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.told: list[Tell] = []
        self.outcome: Outcome | None = None
        self._born = 0

    # What a tick sees.

    def observe(self) -> Observation:
        return Observation(
            at=Seconds(self.at),
            pool="default",
            pool_uid="pool-uid",
            pool_generation=1,
            policy=self.policy,
            plan=self.plan,
            servings=tuple(self.servings.values()),
            refused=tuple(self.refused),
            gpus=tuple(self._gpu_seen(each) for each in self.gpus.values()),
            nodes=tuple(
                NodeSeen(name=name, ready=True, cpu_cores=self.cores, cpu_cores_of_others=0.0)
                for name in sorted({gpu.node for gpu in self.gpus.values()})
            ),
            holders=tuple(self.holders),
            claims=tuple(self.claims.values()),
            replicas=tuple(self._replica_seen(each) for each in self.pods.values()),
            engines=tuple(self._engine_seen(each) for each in self.pods.values() if each.phase is Phase.READY),
            services=tuple(
                ServiceSeen(serving=key, has_service=key in self.services, min_available=self.budgets.get(key))
                for key in self.servings
            ),
            stale=self.stale,
            held=tuple(self._held_seen(key) for key in self.servings) if self.has_activator else (),
        )

    def _held_seen(self, key: ServingKey) -> HeldSeen:
        requests, since = self.held.get(key, (0.0, None))
        if "activator" in self.blind:
            return HeldSeen(serving=key, requests=Missing(cause=self.blind["activator"], origin="activator"))
        seen = Reading(value=requests, at=Seconds(self.at), origin="activator")
        return HeldSeen(serving=key, requests=seen, since=None if since is None else Seconds(since))

    def _gpu_seen(self, gpu: Gpu) -> GpuSeen:
        used = sum(pod.memory(gpu.kind) for pod in self.on(gpu.uuid) if pod.phase is not Phase.PENDING)
        return GpuSeen(
            gpu=gpu,
            node_ready=True,
            dram_active=self._dcgm(self._dram_active(gpu), "DCGM_FI_PROF_DRAM_ACTIVE"),
            fb_used=self._dcgm(float(used), "DCGM_FI_DEV_FB_USED"),
            power=self._dcgm(300.0, "DCGM_FI_DEV_POWER_USAGE"),
        )

    def _dram_active(self, gpu: Gpu) -> float:
        """What the engines would move if all were full, by how full they are."""
        ready = [pod for pod in self.on(gpu.uuid) if pod.phase is Phase.READY]
        if not ready:
            return 0.0
        groups = tuple(_group(pod.serving, pod.placement.shape, 1) for pod in ready)
        how = Sharing.MPS if len(ready) > 1 else Sharing.EXCLUSIVE
        full = sharing.predict(gpu.kind, groups, how).dram_active
        return full * sum(self._share(pod) for pod in ready) / len(ready)

    def _dcgm(self, value: float, origin: str) -> Measured:
        if "dcgm" in self.blind:
            return Missing(cause=self.blind["dcgm"], origin=origin)
        return Reading(value=value, at=Seconds(self.at), origin=origin)

    def _replica_seen(self, pod: Pod) -> ReplicaSeen:
        placement = pod.placement
        return ReplicaSeen(
            name=placement.name,
            uid=pod.uid,
            serving=placement.serving,
            gpu_uuid=placement.gpu_uuid,
            slot=placement.slot,
            sharing=placement.sharing,
            shape=placement.shape,
            template_hash=placement.template_hash,
            content_hash=placement.content_hash,
            phase=Phase.STOPPING if pod.deletion_at is not None else pod.phase,
            created_at=Seconds(pod.created_at),
            ready_at=None if pod.ready_at is None else Seconds(pod.ready_at),
            deletion_at=None if pod.deletion_at is None else Seconds(pod.deletion_at),
            in_service=pod.in_service,
            address="10.77.0.1:8000",
            restarts=pod.restarts,
            utilization_hundredths=pod.hundredths,
        )

    def _engine_seen(self, pod: Pod) -> EngineSeen:
        serving, shape = pod.serving, pod.placement.shape
        blocks = shape.kv_cache_memory_bytes // (BLOCK_TOKENS * serving.llm.kv_bytes_per_token(serving.dtype))
        running = self._running(pod)
        windows = {each: self._window(pod, each) for each in {*self.policy.rate_windows, self.policy.window}}
        return EngineSeen(
            replica=pod.placement.name,
            running=self._read(running),
            waiting=self._read(pod.waiting),
            waiting_before=self._read(pod.waiting_before),
            kv_usage=self._read(0.5),
            kv_blocks=self._read(float(blocks)),
            windows=tuple(windows[seconds] for seconds in self.policy.rate_windows),
            peak_arrivals=self._peak(pod),
            judged=windows[self.policy.window],
            version="0.33.0",
            idle=self._read(self._idle(pod)),
        )

    def _idle(self, pod: Pod) -> float:
        busy = [entry[0] for entry in pod.history if entry[1] > 0 or entry[3] > 0]
        return self.at - max([*busy, pod.ready_at or self.at])

    def _read(self, value: float) -> Measured:
        if "engines" in self.blind:
            return Missing(cause=self.blind["engines"], origin="vllm")
        return Reading(value=value, at=Seconds(self.at), origin="vllm")

    def _share(self, pod: Pod) -> float:
        """How much of its largest batch an engine runs: its share of capacity."""
        arrivals = pod.history[-1][1] if pod.history else 0.0
        return 1.0 if pod.waiting > 0 else min(1.0, arrivals / self._rate(pod))

    def _running(self, pod: Pod) -> float:
        return pod.placement.shape.max_num_seqs * self._share(pod)

    def _window(self, pod: Pod, seconds: float) -> EngineWindow:
        recent = [entry for entry in pod.history if entry[0] > self.at - seconds]
        span = len(recent) * TICK
        if span < 2 * TICK:
            gone: Measured = Missing(cause=Cause.TOO_SHORT, origin="vllm")
            return EngineWindow(
                seconds=Seconds(span), arrivals=gone, finished=gone, prompt_tokens=gone, generation_tokens=gone,
                preemptions=gone, itl_mean=gone, itl_p95=gone, ttft_mean=gone, ttft_p95=gone, input_mean=gone,
                output_mean=gone, running_mean=gone, waiting_least=gone,
            )  # fmt: skip
        arrivals = sum(entry[1] for entry in recent) / len(recent)
        finished = sum(entry[2] for entry in recent) / len(recent)
        declared = pod.serving.lengths
        given, made = self.live_lengths.get(pod.placement.serving, (declared.input_mean, declared.output_mean))
        inside = pod.placement.shape.max_num_seqs * self._share(pod) + pod.waiting
        idle = finished * span < 1.0
        gap = self._itl(pod)
        waiting = min(entry[3] for entry in recent)
        none: Measured = Missing(cause=Cause.TOO_SHORT, origin="vllm")
        return EngineWindow(
            seconds=Seconds(span),
            arrivals=self._read(arrivals),
            finished=self._read(finished),
            prompt_tokens=self._read(finished * given),
            generation_tokens=self._read(finished * made),
            preemptions=self._read(0.0),
            itl_mean=none if idle else self._read(gap),
            itl_p95=none if idle else self._read(1.2 * gap),
            ttft_mean=none if idle else self._read(0.050),
            ttft_p95=none if idle else self._read(0.100),
            input_mean=none if idle else self._read(given),
            output_mean=none if idle else self._read(made),
            running_mean=self._read(pod.placement.shape.max_num_seqs * self._share(pod)),
            waiting_least=self._read(waiting),
            inside_least=self._read(0.8 * inside if self.is_open else inside),
            inside_most=self._read(inside),
        )

    def _peak(self, pod: Pod) -> Measured:
        if pod.ready_at is None or self.at - pod.ready_at < self.policy.scale_down_delay:
            return Missing(cause=Cause.TOO_SHORT, origin="vllm")
        inside = [entry[1] for entry in pod.history if entry[0] > self.at - self.policy.scale_down_delay]
        return self._read(max(inside, default=0.0))

    # What the shell does.

    def commit(self, outcome: Outcome, version: int) -> bool:
        """Write the plan if nobody wrote since `version` was seen; False drops the tick."""
        if not outcome.plan_changed and not outcome.actions:
            return True
        if version != self.version:
            return False
        if outcome.plan_changed:
            assert all(isinstance(action, Tell) for action in outcome.actions)
            self.plan = outcome.pool_status.plan
            self.version += 1
        return True

    def perform(self, actions: Iterable[Action]) -> None:
        for action in actions:
            self._perform(action)
            self.check()

    def _perform(self, action: Action) -> None:
        match action:
            case ApplyClaim():
                name = (action.namespace, action.gpu_uuid, action.sharing)
                if name in self.claims and self.claims[name].deleting:
                    return
                uids = tuple(sorted(self.servings[owner].uid for owner in action.owners if owner in self.servings))
                self.claims[name] = ClaimSeen(
                    namespace=action.namespace,
                    name=f"claim-{action.gpu_uuid[:12]}-{action.sharing.value}".lower(),
                    uid=f"claim-{name}",
                    gpu_uuid=action.gpu_uuid,
                    sharing=action.sharing,
                    owners=uids,
                )
            case DeleteClaim():
                for name, claim in list(self.claims.items()):
                    if (claim.namespace, claim.name) == (action.namespace, action.name):
                        used = [each for each in self.on(claim.gpu_uuid) if each.serving.key.namespace == name[0]]
                        assert not used, "a claim is deleted under a pod"
                        del self.claims[name]
            case ApplyService():
                self.services.add(action.serving)
            case ApplyBudget():
                self.budgets[action.serving] = action.min_available
            case StartReplica():
                self._start(action)
            case LeaveService():
                pod = self._pod(action.serving, action.name, action.uid)
                if pod is not None:
                    pod.in_service = False
            case StopReplica():
                pod = self._pod(action.serving, action.name, action.uid)
                if pod is not None and pod.deletion_at is None:
                    left = pod.phase is not Phase.READY or not pod.in_service
                    assert left, "a replica is stopped while requests reach it"
                    pod.deletion_at = self.at
                    self.stopped.append(action.name)
            case Tell():
                self.told.append(action)

    def _pod(self, serving: ServingKey, name: str, uid: str) -> Pod | None:
        pod = self.pods.get((serving.namespace, name))
        return pod if pod is not None and pod.uid == uid else None

    def _start(self, action: StartReplica) -> None:
        placement = action.placement
        name = (placement.serving.namespace, placement.name)
        serving = self.servings.get(placement.serving)
        if name in self.pods or serving is None or serving.template_hash != placement.template_hash:
            return
        claim = (placement.serving.namespace, placement.gpu_uuid, placement.sharing)
        assert claim in self.claims, "a pod starts without its claim"
        moving = [each for each in self.on(placement.gpu_uuid) if each.phase is not Phase.READY or each.deletion_at]
        assert not moving, f"{placement.name} starts while {moving[0].placement.name} moves"
        held = [holder for holder in self.holders if holder.gpu_uuid == placement.gpu_uuid]
        assert not held, f"{placement.name} starts on a GPU that is held by {held}"
        self._born += 1
        self.pods[name] = Pod(
            placement=placement,
            serving=serving,
            uid=f"uid-{self._born}",
            hundredths=action.utilization_hundredths,
            created_at=self.at,
        )
        self.started.append(placement.name)

    # What happens by itself.

    def on(self, uuid: str) -> list[Pod]:
        return [pod for pod in self.pods.values() if pod.placement.gpu_uuid == uuid]

    def of(self, key: ServingKey) -> list[Pod]:
        return [pod for pod in self.pods.values() if pod.placement.serving == key and pod.deletion_at is None]

    def _rate(self, pod: Pod) -> float:
        uuid = pod.placement.gpu_uuid
        ready = self._sharers(uuid)
        return finish_rate(pod.serving, pod.placement.shape, self.gpus[uuid].kind, ready) / self._slowed(pod)

    def _sharers(self, uuid: str) -> int:
        return max(1, sum(1 for each in self.on(uuid) if each.phase is Phase.READY))

    def _slowed(self, pod: Pod) -> float:
        shared = self.interference if self._sharers(pod.placement.gpu_uuid) > 1 else 1.0
        return shared * self.spoilt.get(pod.placement.shape, 1.0)

    def _itl(self, pod: Pod) -> float:
        uuid, running = pod.placement.gpu_uuid, max(1, round(self._running(pod)))
        ready = self._sharers(uuid)
        return itl(pod.serving, pod.placement.shape, self.gpus[uuid].kind, ready, running) * self._slowed(pod)

    def advance(self, seconds: float = TICK) -> None:
        self.at += seconds
        for name, pod in list(self.pods.items()):
            if pod.deletion_at is not None and self.at - pod.deletion_at >= GONE_AFTER:
                del self.pods[name]
            elif pod.placement.serving not in self.servings and pod.deletion_at is None:
                pod.deletion_at = self.at  # the garbage collector
            elif pod.phase is Phase.PENDING and self.at - pod.created_at >= BOUND_AFTER:
                if pod.placement.gpu_uuid not in self.stuck:
                    pod.phase = Phase.STARTING
            elif pod.phase is Phase.STARTING and self.at - pod.created_at >= READY_AFTER:
                pod.phase, pod.ready_at = Phase.READY, self.at
        for name, claim in list(self.claims.items()):
            if not any(each.uid in claim.owners for each in self.servings.values()) and not self.on(claim.gpu_uuid):
                del self.claims[name]
        for key in self.servings:
            self._serve(key, seconds)
        self.check()

    def _serve(self, key: ServingKey, seconds: float) -> None:
        serving = [each for each in self.of(key) if each.phase is Phase.READY and each.in_service]
        if not serving and self.has_activator and (came := self.loads.get(key, 0.0) * seconds):
            requests, since = self.held.get(key, (0.0, self.at))
            self.held[key] = requests + came, since
        elif serving and key in self.held:
            serving[0].waiting += self.held.pop(key)[0]
        for pod in self.pods.values():
            if pod.placement.serving != key or pod.phase is not Phase.READY:
                continue
            arrivals = self.loads.get(key, 0.0) / len(serving) if pod in serving else 0.0
            rate = self._rate(pod)
            finished = min(rate, arrivals + pod.waiting / seconds)
            pod.waiting_before = pod.waiting
            pod.waiting = max(0.0, pod.waiting + (arrivals - finished) * seconds)
            pod.history.append((self.at, arrivals, finished, pod.waiting))
            while pod.history and pod.history[0][0] < self.at - 400.0:
                pod.history.popleft()

    def check(self) -> None:
        for uuid, gpu in self.gpus.items():
            here = self.on(uuid)
            memory = sum(pod.memory(gpu.kind) for pod in here)
            assert memory <= gpu.kind.memory_bytes, f"{uuid} is over its memory: {memory}"
            starting = [pod for pod in here if pod.phase in (Phase.PENDING, Phase.STARTING) and pod.deletion_at is None]
            assert len(starting) <= 1, f"{len(starting)} engines start on {uuid} at once"
            if any(pod.placement.sharing is Sharing.EXCLUSIVE for pod in here):
                assert len(here) == 1, f"an exclusive engine is not alone on {uuid}"
            assert len({pod.placement.serving.namespace for pod in here}) <= 1, f"two namespaces share {uuid}"

    # The loop.

    def tick(self) -> Outcome:
        """Observe, reconcile, commit, perform: the shell's one pass. No time goes by."""
        version = self.version
        outcome = reconcile(self.observe())
        if self.commit(outcome, version):
            self.perform(outcome.actions)
        self.outcome = outcome
        return outcome

    def run(self, seconds: float) -> World:
        """Ticks for so long; a written plan is acted on at once."""
        until = self.at + seconds
        while self.at < until:
            for _ in range(40):
                if not self.tick().plan_changed:
                    break
            else:
                raise AssertionError("the plan changes without end")
            self.advance()
        return self

    def edit(self, key: ServingKey, serving: Serving) -> None:
        self.servings[key] = replace(serving, generation=self.servings[key].generation + 1)

    @property
    def ready(self) -> dict[str, int]:
        """Ready replicas by serving."""
        counts: dict[str, int] = {}
        for pod in self.pods.values():
            if pod.phase is Phase.READY and pod.deletion_at is None:
                counts[pod.placement.serving.name] = counts.get(pod.placement.serving.name, 0) + 1
        return counts

    def reason(self, key: ServingKey) -> str:
        assert self.plan is not None
        return next((record.reason for record in self.plan.records if record.serving == key), "")
