"""The plan of one tick while it is made, on the GPUs as they are.

What holds memory is what is planned and what really stands there: pods that are leaving or that belong to no placement
count until they are gone. Knows who is where and what it holds, not what is good.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

from gpupack.decide.prospect import Kin, Mix, Prospects, mix_of, rounded
from gpupack.facts.estimate import Estimate
from gpupack.facts.experiment import Experiment, Undone
from gpupack.facts.gpu import GpuKind
from gpupack.facts.interpretation import Facts, is_leaving
from gpupack.facts.observation import Phase, ReplicaSeen
from gpupack.facts.placement import ChosenShape, FaultyGpu, Lesson, Placement, Plan, Wake, Withdrawn
from gpupack.facts.serving import Mode, ServingKey, Shape, Sharing
from gpupack.units import Bytes, Ratio

Member = Placement | ReplicaSeen
Content = tuple[ServingKey, str, int, str, Shape, Sharing]


def content_of(each: Member) -> Content:
    """What makes a pod the pod of a placement."""
    return each.serving, each.gpu_uuid, each.slot, each.template_hash, each.shape, each.sharing


Tenant = tuple[str, str]
"""A namespace, and where engines live together the household; else nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """What one GPU is to every serving alike. `free` are bytes beside the reserve; below zero it holds too much.

    `barred`: nobody may start there. `takes_one`: nobody can tell what others hold there. `load` is how far engines
    that are kept full would saturate it, `saturated` that this is at its ceiling or cannot be told.
    """

    barred: bool
    used: bool
    takes_one: bool
    saturated: bool
    tenants: frozenset[Tenant]
    free: Bytes
    load: float

    @property
    def is_shut(self) -> bool:
        """To every serving that keeps to the ceiling."""
        return self.barred or self.saturated or (self.used and self.takes_one)


def _cut_with(facts: Facts) -> dict[str, tuple[str, ...]]:
    slices: dict[str, list[str]] = defaultdict(list)
    for uuid, each in facts.gpus.items():
        if each.gpu.parent_uuid in facts.gpus:
            slices[each.gpu.parent_uuid].append(uuid)
    found = {uuid: tuple(cut) for uuid, cut in slices.items()}
    return found | {uuid: (parent,) for parent, cut in slices.items() for uuid in cut}


class Board:
    """The plan of this tick while it is made, on the GPUs as they are.

    `leftovers` are pods that no placement stands for. `touched` GPUs have had their one step of this tick; what is to
    be planned there next is booked, so that nobody else counts on its room in this tick. `rates` are the arrivals of
    each serving a second; a serving without one is predicted at full batches. `saturations`, `states` and `by_load` are
    kept by `pack` for as long as nothing on the GPU changes, `unexplained` memory for the whole tick. `kinds` are the
    pool's kinds of GPU by name.
    """

    def __init__(self, facts: Facts, plan: Plan, prospects: Prospects) -> None:
        self.facts = facts
        self.prospects = prospects
        self.shapes: dict[tuple[ServingKey, str], ChosenShape] = {
            (each.serving, each.gpu_kind): each for each in plan.shapes
        }
        self.withdrawn: dict[tuple[ServingKey, str], Withdrawn] = {
            (each.serving, each.gpu_uuid): each for each in plan.withdrawn
        }
        self.experiments: dict[str, Experiment] = {each.gpu_uuid: each for each in plan.experiments}
        self.undone: list[Undone] = list(plan.undone)
        self.faulty: dict[str, FaultyGpu] = {each.gpu_uuid: each for each in plan.faulty}
        self.lessons: dict[tuple[ServingKey, str], Lesson] = {
            (each.serving, each.gpu_kind): each for each in plan.lessons
        }
        self.wakes: dict[ServingKey, Wake] = {each.serving: each for each in plan.wakes}
        self.touched: set[str] = set()
        self._booked: list[Placement] = []
        self.rates: dict[ServingKey, float] = {}
        self.on: dict[str, list[Placement]] = defaultdict(list)
        self.of: dict[ServingKey, list[Placement]] = defaultdict(list)
        for placement in plan.placements:
            self.on[placement.gpu_uuid].append(placement)
            self.of[placement.serving].append(placement)
        self._placements: tuple[Placement, ...] | None = None
        self._pods = {content_of(each): each for pods in facts.replicas_on.values() for each in pods}
        self.saturations: dict[str, tuple[Estimate, Ratio]] = {}
        self.states: dict[str, GpuState] = {}
        self.by_load: tuple[tuple[str, ...], tuple[str, ...]] | None = None
        self.unexplained: dict[str, float | None] = {}
        self.kinds = {gpu.gpu.kind.name: gpu.gpu.kind for gpu in facts.gpus.values()}
        self.count_by_kind = Counter(gpu.gpu.kind.name for gpu in facts.gpus.values())
        self._places = {uuid: index for index, uuid in enumerate(facts.gpus)}
        self._nodes: dict[str, list[str]] = defaultdict(list)
        for uuid, gpu in facts.gpus.items():
            self._nodes[gpu.gpu.node].append(uuid)
        self._cut = _cut_with(facts)
        self._used: tuple[tuple[str, ...], tuple[str, ...]] | None = None
        self._used_by_name: tuple[str, ...] | None = None
        self._rates: dict[tuple[Kin, int], float | None] = {}
        self._kin: dict[int, tuple[Member, Kin]] = {}
        self._pod_of: dict[int, tuple[Placement, ReplicaSeen | None]] = {}
        self._mixes: dict[str, Mix] = {}
        self._tenants: dict[str, frozenset[Tenant]] = {}
        self._held: dict[str, Bytes] = {}
        self._cores: dict[str, float] = {}
        self._leftovers: dict[str, tuple[ReplicaSeen, ...]] = {}
        self._leftovers_of: dict[ServingKey, tuple[ReplicaSeen, ...]] = {}

    @property
    def placements(self) -> tuple[Placement, ...]:
        if self._placements is None:
            every = (placement for placements in self.on.values() for placement in placements)
            self._placements = tuple(
                sorted(
                    every,
                    key=lambda each: (
                        each.serving.namespace, each.serving.name, each.gpu_uuid, each.slot, each.template_hash,
                        self.kin(each).order,
                    ),
                )
            )  # fmt: skip
        return self._placements

    def pod(self, placement: Placement) -> ReplicaSeen | None:
        """Kept by identity, as kin are; the pods of a tick do not change."""
        found = self._pod_of.get(id(placement))
        if found is None:
            found = self._pod_of[id(placement)] = (placement, self._pods.get(content_of(placement)))
        return found[1]

    def is_ready(self, placement: Placement) -> bool:
        pod = self.pod(placement)
        return pod is not None and pod.phase is Phase.READY and not is_leaving(pod)

    def leftovers(self, uuid: str) -> tuple[ReplicaSeen, ...]:
        """Pods on this GPU that no placement stands for."""
        found = self._leftovers.get(uuid)
        if found is None:
            planned = {content_of(each) for each in self.on[uuid]}
            pods = self.facts.replicas_on.get(uuid, ())
            found = self._leftovers[uuid] = tuple(each for each in pods if content_of(each) not in planned)
        return found

    def leftovers_of(self, serving: ServingKey) -> tuple[ReplicaSeen, ...]:
        found = self._leftovers_of.get(serving)
        if found is None:
            planned = {content_of(each) for each in self.of[serving]}
            pods = self.facts.replicas_of.get(serving, ())
            found = self._leftovers_of[serving] = tuple(each for each in pods if content_of(each) not in planned)
        return found

    def members(self, uuid: str) -> tuple[Member, ...]:
        """Everything that holds, or will hold, a part of this GPU."""
        return (*self.on[uuid], *self.leftovers(uuid))

    def is_moving(self, uuid: str) -> bool:
        """Whether anything on this GPU starts or stops, or has just been decided."""
        return (
            uuid in self.touched or bool(self.leftovers(uuid)) or not all(self._rests(each) for each in self.on[uuid])
        )

    def _rests(self, placement: Placement) -> bool:
        """Whether it serves, or is kept from coming up by who suspended it."""
        serving = self.facts.servings.get(placement.serving)
        held = serving is not None and serving.mode is not Mode.ACTIVE and self.pod(placement) is None
        return held or self.is_ready(placement)

    def is_used(self, uuid: str) -> bool:
        return bool(self.on[uuid]) or bool(self.leftovers(uuid))

    @property
    def used(self) -> tuple[str, ...]:
        """GPUs with anything of ours on them, in the order of the facts."""
        return self._by_use()[0]

    @property
    def unused(self) -> tuple[str, ...]:
        return self._by_use()[1]

    def _by_use(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        if self._used is None:
            used = {uuid for uuid in self.facts.gpus if self.is_used(uuid)}
            self._used = (
                tuple(uuid for uuid in self.facts.gpus if uuid in used),
                tuple(uuid for uuid in self.facts.gpus if uuid not in used),
            )
        return self._used

    @property
    def used_by_name(self) -> tuple[str, ...]:
        if self._used_by_name is None:
            self._used_by_name = tuple(sorted(self.used))
        return self._used_by_name

    def place(self, uuid: str) -> int:
        """Where the GPU comes in the order of the facts."""
        return self._places[uuid]

    def rate_of_one(self, kin: Kin, more: int) -> float | None:
        """Requests a second of one engine when the serving has so many engines more, arrivals dealt evenly."""
        asked = kin, more
        if asked not in self._rates:
            rate = self.rates.get(kin.serving)
            count = len(self.of[kin.serving]) + more
            self._rates[asked] = None if rate is None else rounded(rate / max(1, count))
        return self._rates[asked]

    def mix(self, uuid: str) -> Mix:
        found = self._mixes.get(uuid)
        if found is None:
            found = self._mixes[uuid] = mix_of(self.kin(each) for each in self.on[uuid])
        return found

    def kin(self, each: Member) -> Kin:
        """Kept by identity, because looking up a shape is most of the work; what is kept cannot be somebody else."""
        found = self._kin.get(id(each))
        if found is None:
            found = self._kin[id(each)] = (each, self.prospects.kin(each.serving, each.shape))
        return found[1]

    def tenants(self, uuid: str) -> frozenset[Tenant]:
        """Who holds the GPU, or will: a device is shared within one namespace only, some within one household only."""
        found = self._tenants.get(uuid)
        if found is None:
            members = {self.tenant(uuid, each.serving) for each in self.members(uuid)}
            claims = {(each.namespace, "") for each in self.facts.claims_on.get(uuid, ()) if not each.household}
            found = self._tenants[uuid] = frozenset(members | claims)
        return found

    def tenant(self, uuid: str, key: ServingKey) -> Tenant:
        gpu, serving = self.facts.gpus.get(uuid), self.facts.servings.get(key)
        if gpu is None or serving is None or not gpu.gpu.one_household:
            return key.namespace, ""
        return key.namespace, serving.household

    def kind(self, uuid: str) -> GpuKind:
        return self.facts.gpus[uuid].gpu.kind

    def placed(self, sharing: Sharing, uuid: str) -> Sharing:
        """How an engine is there whose serving shares whole GPUs so: on a slice it has the slice for itself."""
        return Sharing.MIG if self.kind(uuid).is_slice else sharing

    def cut_with(self, uuid: str) -> tuple[str, ...]:
        """The slices of this GPU, or the GPU of this slice, where a driver offers both: only one can be in use."""
        return self._cut.get(uuid, ())

    def chosen(self, serving: ServingKey, uuid: str) -> ChosenShape | None:
        gpu = self.facts.gpus.get(uuid)
        return None if gpu is None else self.shapes.get((serving, gpu.gpu.kind.name))

    def memory_held(self, uuid: str) -> Bytes:
        """Bytes that placements and pods without one hold, or will, on this GPU."""
        held = self._held.get(uuid)
        if held is None:
            held = self._held[uuid] = Bytes(sum(self.memory_of(each, uuid) for each in self.members(uuid)))
        return held

    def memory_of(self, each: Member, uuid: str) -> Bytes:
        """Bytes of one replica. Of a serving that nobody knows any more: what vLLM was told it may take."""
        kind = self.kind(uuid)
        if each.serving in self.facts.servings:
            return self.prospects.memory_of(kind, self.kin(each))
        hundredths = each.utilization_hundredths if isinstance(each, ReplicaSeen) else None
        chosen = self.shapes.get((each.serving, kind.name))
        if hundredths is None and chosen is not None:
            hundredths = chosen.utilization_hundredths
        return Bytes(kind.memory_bytes if hundredths is None else -(-kind.memory_bytes * hundredths // 100))

    def on_node(self, node: str) -> tuple[str, ...]:
        """The pool's GPUs there."""
        return tuple(self._nodes.get(node, ()))

    def cores_held(self, node: str) -> float:
        """Whole cores that gpupack's replicas request on this node."""
        held = self._cores.get(node)
        if held is None:
            members = (each for uuid in self._nodes.get(node, ()) for each in self.members(uuid))
            held = self._cores[node] = sum(self._cores_of(each.serving) for each in members)
        return held

    def _cores_of(self, key: ServingKey) -> float:
        serving = self.facts.servings.get(key)
        return 0.0 if serving is None else float(serving.cpu_cores)

    def add(self, placement: Placement) -> None:
        self.on[placement.gpu_uuid].append(placement)
        self.of[placement.serving].append(placement)
        self._changed(placement)

    def remove(self, placement: Placement) -> None:
        self.on[placement.gpu_uuid].remove(placement)
        self.of[placement.serving].remove(placement)
        self._changed(placement)

    def book(self, placement: Placement) -> None:
        """Holds the room for a replica that is planned in a later tick."""
        self._booked.append(placement)
        self.add(placement)

    def release(self) -> None:
        """Gives up what was booked; the next tick decides about it."""
        for placement in self._booked:
            self.remove(placement)
        self._booked.clear()

    def _changed(self, placement: Placement) -> None:
        uuid = placement.gpu_uuid
        self.touched.add(uuid)
        self._leftovers_of.pop(placement.serving, None)
        gpu = self.facts.gpus.get(uuid)
        if gpu is not None:
            self._cores.pop(gpu.gpu.node, None)
        for kept in (self._mixes, self._held, self._leftovers, self._tenants, self.saturations, self.states):
            kept.pop(uuid, None)
        for each in self.cut_with(uuid):
            self.states.pop(each, None)
        self.by_load = self._used = self._used_by_name = self._placements = None
        self._rates.clear()

    def free_slot(self, serving: ServingKey, uuid: str) -> int:
        taken = {each.slot for each in self.on[uuid] if each.serving == serving}
        taken |= {each.slot for each in self.facts.replicas_on.get(uuid, ()) if each.serving == serving}
        return next(slot for slot in range(len(taken) + 1) if slot not in taken)
