"""GPUs with engines on them, moved through simulated time.

`World.advance(until)` may be called once for an hour or every few milliseconds by something that keeps real time; what
happens is the same, because a step that is under way keeps its place. Engines come, drain, crash and go at any time.

An engine alone on its GPU (or whose neighbours are idle) goes step by step, and leaps over steps that are all alike.
Engines that meet go kernel phase by kernel phase (`memory_system`). GPUs do not touch each other.

It does not know pods, Kubernetes, HTTP, wall-clock time or chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from gpupack.errors import Invalid, Unavailable
from gpupack.twin.arrivals import Source
from gpupack.twin.engine import Engine, EngineConfig, Listener
from gpupack.twin.memory_system import (
    ATTENTION_SM_SHARE,
    DEFAULT_SHARING,
    EngineCosts,
    GpuSpec,
    ModelDims,
    Mps,
    Phase,
    Sharing,
    StepTimer,
    TimeSlicing,
    mps_speeds,
)

_HOST = -1  # place in a step: the host gap; 0, 1, 2 are its kernel phases
_LEAP_DRIFT = 0.01  # steps of a leap may differ in length by this share
_LONGEST_LEAP = 512
_DRAM_WATTS_SHARE = 0.4
_SM_WATTS_SHARE = 0.5
_INSTANT = 1e-12  # seconds left that count as none, far below any phase


class State(StrEnum):
    """Of a tenant. A stopped or crashed one holds its memory until it is removed, as a dying process does."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    CRASHED = "crashed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Cumulative figures of one GPU at simulated time `at`; `activity` turns two of them into shares.

    `dram_seconds` is time at full DRAM bandwidth (bytes moved over the theoretical peak), `sm_seconds` time with all
    SMs busy, `held_seconds` time in which any kernel ran, `kernel_seconds` what those kernels would have taken alone,
    one after the other.
    """

    at: float
    dram_seconds: float
    sm_seconds: float
    held_seconds: float
    kernel_seconds: float
    energy_joules: float
    fb_used_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """Means over a window, 0 to 1, and watts. `dram_active` is on DCGM's scale of the theoretical peak.

    `dram_active_max` is what a GPU that is never without these kernels reaches, one after the other; None if none ran.
    Kernels side by side can go a little beyond it.
    """

    dram_active: float
    dram_active_max: float | None
    sm_active: float
    gpu_held: float
    power_watts: float


def activity(before: Reading, after: Reading) -> Activity:
    """What a GPU did between two readings. Raises ValueError when no time passed."""
    seconds = after.at - before.at
    if seconds <= 0.0:
        raise ValueError("the second reading is not later than the first")
    kernels = after.kernel_seconds - before.kernel_seconds
    return Activity(
        dram_active=(after.dram_seconds - before.dram_seconds) / seconds,
        dram_active_max=(after.dram_seconds - before.dram_seconds) / kernels if kernels > 0.0 else None,
        sm_active=(after.sm_seconds - before.sm_seconds) / seconds,
        gpu_held=(after.held_seconds - before.held_seconds) / seconds,
        power_watts=(after.energy_joules - before.energy_joules) / seconds,
    )


class Tenant:
    """One engine on one GPU: where its step stands and whether it serves."""

    def __init__(self, name: str, engine: Engine, timer: StepTimer, memory_bytes: int, ready_at: float) -> None:
        self.name = name
        self.engine = engine
        self.memory_bytes = memory_bytes
        self.ready_at = ready_at
        self.timer = timer
        self.place = _HOST
        self.left = 0.0  # seconds alone that the present phase still needs
        self.kernels: tuple[Phase, ...] = ()
        self._stall = 0.0
        self._state = State.STARTING

    @property
    def state(self) -> State:
        if self._state is State.DRAINING and self.engine.in_flight == 0:
            self._state = State.STOPPED
        return self._state

    @property
    def serves(self) -> bool:
        """True while its engine takes steps."""
        return self._state is State.READY or self._state is State.DRAINING

    def become_ready(self) -> None:
        self._state = State.READY

    def stall_host(self, seconds: float) -> None:
        """The host does something else for so long before the next decode step (a burst of arrivals)."""
        self._stall += seconds

    def take_stall(self) -> float:
        """What the step under way must pay of it: all, once sequences decode."""
        if not self._stall or not self.engine.step_decoding:
            return 0.0
        stall, self._stall = self._stall, 0.0
        return stall

    def drain(self) -> None:
        """Takes nothing new; what is inside is finished."""
        if self._state in (State.STARTING, State.READY):
            self.engine.drain()
            self._state = State.DRAINING

    def crash(self, at: float) -> int:
        """Loses everything inside; says how many requests."""
        self._state = State.CRASHED
        self.place, self.left, self.kernels = _HOST, 0.0, ()
        return self.engine.crash(at)

    def begin(self, now: float) -> bool:
        """Puts the next step at its start; False when there is nothing to do."""
        engine = self.engine
        if not engine.begin_step(now):
            return False
        host, gemm, attention, rest = self.timer.alone(engine)
        host += self.take_stall()
        self.kernels = self.timer.phases(engine, gemm, attention, rest)
        self.place, self.left = _HOST, host
        return True


class VirtualGpu:
    """One GPU: its tenants in order of arrival, its clock and its counters."""

    def __init__(self, name: str, spec: GpuSpec, sharing: Sharing, now: float) -> None:
        self.name = name
        self.spec = spec
        self.sharing = sharing
        self.now = now
        self.tenants: dict[str, Tenant] = {}
        self._dram_seconds = 0.0
        self._sm_seconds = 0.0
        self._held_seconds = 0.0
        self._kernel_seconds = 0.0
        self._began_at = now
        self._owner: Tenant | None = None  # time-slicing: whose turn it is, or was last
        self._turn_left = 0.0
        self._switch_left = 0.0

    @property
    def fb_used_bytes(self) -> int:
        return sum(tenant.memory_bytes for tenant in self.tenants.values())

    @property
    def fb_free_bytes(self) -> int:
        return self.spec.memory_bytes - self.fb_used_bytes

    def reading(self) -> Reading:
        spec = self.spec
        busy = _DRAM_WATTS_SHARE * self._dram_seconds + _SM_WATTS_SHARE * self._sm_seconds
        return Reading(
            at=self.now,
            dram_seconds=self._dram_seconds,
            sm_seconds=self._sm_seconds,
            held_seconds=self._held_seconds,
            kernel_seconds=self._kernel_seconds,
            energy_joules=spec.idle_watts * (self.now - self._began_at) + (spec.board_watts - spec.idle_watts) * busy,
            fb_used_bytes=self.fb_used_bytes,
        )

    def remove(self, name: str) -> None:
        tenant = self.tenants.pop(name)
        if self._owner is tenant:
            self._owner = None

    def advance(self, until: float) -> None:
        """Moves the clock to `until`."""
        while self.now < until:
            horizon = until
            active: list[Tenant] = []
            for tenant in self.tenants.values():
                if tenant.state is State.STARTING and tenant.ready_at <= self.now:
                    tenant.become_ready()
                if tenant.state is State.STARTING:
                    horizon = min(horizon, tenant.ready_at)
                elif tenant.serves:
                    if tenant.engine.in_step or tenant.begin(self.now):
                        active.append(tenant)
                    else:
                        horizon = min(horizon, max(self.now, tenant.engine.next_arrival_at))
            if not active:
                self.now = horizon
            elif len(active) == 1:
                self._owner = active[0]
                self._run_alone(active[0], horizon)
            elif isinstance(self.sharing, Mps):
                self._run_together(active, horizon, self.sharing)
            else:
                self._run_in_turns(active, horizon, self.sharing)

    def _run_alone(self, tenant: Tenant, horizon: float) -> None:
        """Steps of one engine until `horizon` or until it has nothing to do; whole steps cost no phases."""
        engine, timer = tenant.engine, tenant.timer
        if not self._pass(tenant, horizon):
            return
        now = self.now
        while now < horizon:
            if not engine.begin_step(now):
                break
            host, gemm, attention, rest = timer.alone(engine)
            stall = tenant.take_stall()
            host += stall
            seconds = host + gemm + attention + rest
            dram, sms = timer.use(engine, gemm, attention, rest)
            limit = horizon if engine.full else min(horizon, engine.next_arrival_at)
            if engine.step_prefill_tokens == 0 and stall == 0.0 and now + 2.0 * seconds < limit:
                slope = timer.attention_per_token * engine.step_decoding
                steps = engine.alike_steps(min(_LONGEST_LEAP, int(_LEAP_DRIFT * seconds / slope)))
                drift = 0.5 * slope * (steps - 1)
                if steps * (seconds + drift) > limit - now:
                    steps = int((limit - now) / (seconds + drift))
                    drift = 0.5 * slope * (steps - 1)
                if steps > 1:
                    now += steps * (seconds + drift)
                    kernels = steps * (seconds + drift - host)
                    self._held_seconds += kernels
                    self._kernel_seconds += kernels
                    self._dram_seconds += steps * (dram + drift * timer.attention_dram_share)
                    self._sm_seconds += steps * (sms + drift * ATTENTION_SM_SHARE)
                    engine.end_alike_steps(steps, now)
                    continue
            if now + seconds > horizon:
                tenant.kernels = timer.phases(engine, gemm, attention, rest)
                tenant.place, tenant.left = _HOST, host
                self.now = now
                self._pass(tenant, horizon)
                return
            now += seconds
            self._held_seconds += seconds - host
            self._kernel_seconds += seconds - host
            self._dram_seconds += dram
            self._sm_seconds += sms
            engine.end_step(now)
        self.now = now

    def _pass(self, tenant: Tenant, horizon: float) -> bool:
        """Lets the step under way pass at full speed until `horizon`; True if there is no step under way any more."""
        while tenant.engine.in_step:
            seconds = min(tenant.left, horizon - self.now)
            tenant.left -= seconds
            self.now += seconds
            if tenant.place >= 0:
                self._use(seconds, tenant.kernels[tenant.place], 1.0)
                self._held_seconds += seconds
            if tenant.left > _INSTANT:
                return False
            self._next_phase(tenant)
        return True

    def _use(self, seconds: float, phase: Phase, speed: float) -> None:
        self._kernel_seconds += seconds * speed
        self._dram_seconds += seconds * speed * phase.dram_share
        self._sm_seconds += seconds * speed * phase.sm_share

    def _next_phase(self, tenant: Tenant) -> None:
        """The next phase that takes time, or the end of the step."""
        while tenant.place < 2:
            tenant.place += 1
            tenant.left = tenant.kernels[tenant.place].seconds
            if tenant.left > 0.0:
                return
        tenant.engine.end_step(self.now)

    def _move_on(self, active: Sequence[Tenant]) -> bool:
        """Next phases and next steps for those whose phase is over; False when somebody has nothing more to do."""
        all_busy = True
        for tenant in active:
            if tenant.left <= _INSTANT:
                self._next_phase(tenant)
                if not tenant.engine.in_step and not tenant.begin(self.now):
                    all_busy = False
        return all_busy

    def _run_together(self, active: Sequence[Tenant], horizon: float, mps: Mps) -> None:
        """Engines that share the GPU by MPS, from one change of phase to the next."""
        while True:
            seconds = horizon - self.now
            on_gpu = []
            for tenant in active:
                if tenant.place >= 0:
                    on_gpu.append(tenant)
                elif tenant.left < seconds:
                    seconds = tenant.left
            speeds = mps_speeds([tenant.kernels[tenant.place] for tenant in on_gpu], mps) if on_gpu else []
            for tenant, speed in zip(on_gpu, speeds, strict=True):
                if tenant.left < seconds * speed:
                    seconds = tenant.left / speed
            for tenant in active:
                if tenant.place < 0:
                    tenant.left -= seconds
            for tenant, speed in zip(on_gpu, speeds, strict=True):
                tenant.left -= seconds * speed
                self._use(seconds, tenant.kernels[tenant.place], speed)
            if on_gpu:
                self._held_seconds += seconds
            self.now += seconds
            if not self._move_on(active) or self.now >= horizon:
                return

    def _run_in_turns(self, active: Sequence[Tenant], horizon: float, slicing: TimeSlicing) -> None:
        """Engines whose kernels take turns on the GPU; host gaps go on meanwhile."""
        while True:
            seconds = horizon - self.now
            on_gpu = [tenant for tenant in active if tenant.place >= 0]
            if on_gpu:
                self._give_turn(on_gpu, slicing)
                if self._switch_left > 0.0:
                    seconds = min(seconds, self._switch_left)
                elif self._owner is not None:
                    seconds = min(seconds, self._owner.left)
                    if len(on_gpu) > 1:
                        seconds = min(seconds, self._turn_left)
            for tenant in active:
                if tenant.place < 0:
                    seconds = min(seconds, tenant.left)
            for tenant in active:
                if tenant.place < 0:
                    tenant.left -= seconds
            if on_gpu:
                self._held_seconds += seconds
                if self._switch_left > 0.0:
                    self._switch_left -= seconds
                elif self._owner is not None:
                    self._owner.left -= seconds
                    self._turn_left -= seconds
                    self._use(seconds, self._owner.kernels[self._owner.place], 1.0)
            self.now += seconds
            if not self._move_on(active) or self.now >= horizon:
                return

    def _give_turn(self, on_gpu: Sequence[Tenant], slicing: TimeSlicing) -> None:
        """The next in order takes over when the owner has no kernel, or its turn is over and another waits."""
        if self._switch_left > _INSTANT:
            return
        self._switch_left = 0.0
        owner = self._owner
        if owner in on_gpu and (self._turn_left > _INSTANT or len(on_gpu) == 1):
            return
        order = list(self.tenants.values())
        after = order.index(owner) + 1 if owner is not None else 0
        rank = {id(tenant): (place - after) % len(order) for place, tenant in enumerate(order)}
        successor = min(on_gpu, key=lambda tenant: rank[id(tenant)])
        if owner is not None and successor is not owner:
            self._switch_left = slicing.switch_seconds
        self._owner = successor
        self._turn_left = slicing.slice_seconds


class World:
    """All GPUs. Names of GPUs and of tenants are unique; unknown ones are a KeyError, a bug of the caller."""

    def __init__(self, *, now: float = 0.0) -> None:
        self.now = now
        self.gpus: dict[str, VirtualGpu] = {}
        self._places: dict[str, VirtualGpu] = {}

    def add_gpu(self, name: str, spec: GpuSpec, sharing: Sharing = DEFAULT_SHARING) -> VirtualGpu:
        if name in self.gpus:
            raise Invalid("gpu", f"{name} is there already", "give each GPU its own name")
        gpu = VirtualGpu(name, spec, sharing, self.now)
        self.gpus[name] = gpu
        return gpu

    def interfere(self, mps: Mps) -> None:
        """From now on engines that share a GPU by MPS meet like this, on every GPU."""
        for gpu in self.gpus.values():
            if isinstance(gpu.sharing, Mps):
                gpu.sharing = mps

    def start_engine(
        self,
        name: str,
        *,
        gpu: str,
        config: EngineConfig,
        model: ModelDims,
        costs: EngineCosts,
        memory_bytes: int = 0,
        free_bytes_wanted: int = 0,
        start_seconds: float = 0.0,
        source: Source | None = None,
        listener: Listener | None = None,
        cores: float | None = None,
    ) -> Tenant:
        """Puts an engine on a GPU; it serves after `start_seconds` and holds `memory_bytes` from now on.

        `cores` are those for its host work, None for enough.

        Raises Unavailable when less memory is free than it takes, or than its flags want free (vLLM's own check).
        """
        if name in self._places:
            raise Invalid("engine", f"{name} is there already", "give each engine its own name")
        place = self.gpus[gpu]
        wanted = max(memory_bytes, free_bytes_wanted)
        if place.fb_free_bytes < wanted:
            raise Unavailable(f"{gpu} has {place.fb_free_bytes} bytes free, {name} wants {wanted}")
        engine = Engine(config, source=source, listener=listener)
        tenant = Tenant(
            name, engine, StepTimer(model, place.spec, costs, cores), memory_bytes, self.now + start_seconds
        )
        place.tenants[name] = tenant
        self._places[name] = place
        return tenant

    def tenant(self, name: str) -> Tenant:
        return self._places[name].tenants[name]

    def drain(self, name: str) -> None:
        self.tenant(name).drain()

    def crash(self, name: str) -> int:
        """The engine loses all requests at once and steps no more; says how many were lost."""
        return self.tenant(name).crash(self.now)

    def remove(self, name: str) -> None:
        """Takes an engine away and frees its memory; what is still inside is lost."""
        self.tenant(name).crash(self.now)
        self._places.pop(name).remove(name)

    def advance(self, until: float) -> None:
        """Moves all GPUs to `until`; a time that has passed already changes nothing."""
        for gpu in self.gpus.values():
            gpu.advance(until)
        self.now = max(self.now, until)
