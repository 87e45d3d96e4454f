"""Where one more replica may go, and everything that speaks against it.

A chain of small checks, in the order of `plan.Reason`; the first objection on a GPU is its reason, all are listed. Fits
are decided on integers. Knows one tick; what waits longer is `hold`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice

from gpupack.decide.board import Board, GpuState, Member
from gpupack.decide.capacity import carried
from gpupack.decide.demand import Basis, Demand
from gpupack.decide.prospect import Kin, Mix, with_one
from gpupack.decide.undone import remembered
from gpupack.facts.estimate import Estimate, Source
from gpupack.facts.gpu import GpuKind
from gpupack.facts.interpretation import GpuFacts, Known
from gpupack.facts.observation import Cause, Missing, Phase
from gpupack.facts.placement import ChosenShape, Placement, PredictedEffect
from gpupack.facts.policy import Policy
from gpupack.facts.serving import ScalingMode, Serving, ServingKey, Sharing, SharingWish, Slo, Statistic
from gpupack.perf.memory import utilization_hundredths
from gpupack.perf.prediction import GpuPrediction, GroupPrediction
from gpupack.plan import Reason, Unit, Verdict
from gpupack.units import Bytes, Ratio, Seconds

FULL_BATCH = 0.9
"""An engine that runs at least this share of its largest batch is called full."""
CONTRADICTED = 2.0
"""A reading of full engines that is off by more than this factor is on another scale or broken."""
CORES_SHORT = 0.10
"""Engines that wait for cores for more than this share of the time that they could run are short of them.

An assumption: with cores of their own threads hardly wait, and a tenth more of a host gap that is a third of a step is
3 % of throughput, less than a further replica has to bring."""
OWN_LOOKED_AT, LOOKED_AT, CLOSED_LOOKED_AT = 2, 8, 2
"""So many GPUs of each sort are checked in full for one more replica, the emptiest first."""
MANUAL_GOES_PAST = frozenset({Reason.LATENCY_SLO, Reason.BANDWIDTH_CEILING, Reason.MARGINAL_GAIN})
WISHED = {
    SharingWish.AUTO: (Sharing.MPS, Sharing.EXCLUSIVE, Sharing.MIG),
    SharingWish.MPS: (Sharing.MPS,),
    SharingWish.EXCLUSIVE: (Sharing.EXCLUSIVE,),
    SharingWish.MIG: (Sharing.MIG,),
}
ORDER = {reason: index for index, reason in enumerate(Reason)}


def sharing_of(serving: Serving, policy: Policy) -> Sharing | None:
    """How engines of this serving share a GPU: what it wishes, as far as the pool allows; None where these conflict."""
    return next((each for each in WISHED[serving.sharing] if each in policy.sharing), None)


def sharing_there(serving: Serving, policy: Policy, kind: GpuKind) -> Sharing | None:
    """The same on one kind of GPU: MIG on slices, and only there; MPS never inside a slice. None: not this kind."""
    allowed = (each for each in WISHED[serving.sharing] if each in policy.sharing)
    return next((each for each in allowed if (each is Sharing.MIG) == kind.is_slice), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One more replica of `serving`, of which the plan holds `planned`, on `gpu`; perhaps in the place of another."""

    board: Board
    serving: Serving
    sharing: Sharing
    gpu: GpuFacts
    chosen: ChosenShape
    demand: Demand
    planned: int
    instead_of: Placement | None = None
    kin: Kin = field(init=False)
    before: Mix = field(init=False)
    after: Mix = field(init=False)

    def __post_init__(self) -> None:
        kin = self.board.prospects.kin(self.serving.key, self.chosen.shape)
        before, old = self.board.mix(self.uuid), self.instead_of
        if old is not None:
            before = with_one(before, self.board.kin(old), -1)
        for name, value in (("kin", kin), ("before", before), ("after", with_one(before, kin))):
            object.__setattr__(self, name, value)

    @property
    def uuid(self) -> str:
        return self.gpu.gpu.uuid

    @property
    def present(self) -> tuple[Member, ...]:
        """Everything else that holds a part of the GPU."""
        members = self.board.members(self.uuid)
        return members if self.instead_of is None else tuple(each for each in members if each != self.instead_of)

    @property
    def policy(self) -> Policy:
        return self.board.facts.policy


Check = Callable[[Candidate], Iterable[Verdict]]


def objections(candidate: Candidate) -> tuple[Verdict, ...]:
    """Everything against this replica on this GPU, in the order of `Reason`, which is that of the checks.

    What engines would do together is asked only where the GPU is gpupack's and all of them are known.
    """
    found: list[Verdict] = []
    for check in SIMPLE:
        found.extend(check(candidate))
    ours = not any(each.reason is Reason.HELD_BY_OTHERS for each in found)
    if ours and candidate.before and candidate.board.prospects.knows(candidate.before):
        for check in TOGETHER:
            found.extend(check(candidate))
    found.extend(even_share(candidate))
    return tuple(found)


def data_missing(candidate: Candidate) -> Iterable[Verdict]:
    """Readings that should be there and are not. Replicas up to the floor start on declared data."""
    gpu, demand = candidate.gpu, candidate.demand
    if not gpu.node_ready:
        yield _missing(candidate.uuid, f"node {gpu.gpu.node} is not ready")
    if not candidate.board.prospects.knows(candidate.before):
        yield _missing(candidate.uuid, "an engine there belongs to a serving that cannot be read")
    if candidate.planned < demand.floor:
        return
    if demand.missing:
        yield _missing(str(candidate.serving.key), demand.missing[0], absent=len(demand.missing))
    for known in (gpu.dram_active, gpu.fb_used):
        if isinstance(known, Missing) and known.cause not in _WITHOUT:
            yield _missing(candidate.uuid, f"{known.origin} {known.cause.value}")


def held_by_others(candidate: Candidate) -> Iterable[Verdict]:
    board, uuid, key = candidate.board, candidate.uuid, candidate.serving.key
    for name in candidate.gpu.foreign:
        yield _held(uuid, 1.0, 0.0, Unit.NONE, name)
    if candidate.gpu.cordoned:
        yield _held(uuid, 1.0, 0.0, Unit.NONE, f"node {candidate.gpu.gpu.node} is cordoned")
    if (faulty := board.faulty.get(uuid)) is not None:
        yield _held(uuid, 1.0, 0.0, Unit.NONE, f"it is not well, {faulty.why}")
    present = candidate.present
    for claim in board.facts.claims_on.get(uuid, ()) if present else ():
        if claim.alone:
            yield _held(uuid, len(present), 0.0, Unit.REPLICAS, f"{present[0].serving}, and {claim.alone}")
    met = candidate.demand.wanted <= candidate.planned
    for namespace, _ in sorted(board.tenants(uuid) - {board.tenant(uuid, key)}):
        other = namespace != key.namespace
        who = f"namespace {namespace}" if other else "a pod of another image or pod template"
        yield _held(uuid, 1.0, 0.0, Unit.NONE, f"{who}, which holds {'the claim of ' if other else ''}this GPU")
    for each in board.cut_with(uuid):
        if board.is_used(each):
            there = board.members(each)[0].serving
            yield _held(uuid, 1.0, 0.0, Unit.NONE, f"{there}, which is on the same GPU {_how(board, each)}")
    if candidate.sharing.is_alone:
        # Its own engine is in the way of another one only while one is wanted.
        others = [each for each in present if not met or each.serving != key]
        if others:
            yield _held(uuid, len(others), 0.0, Unit.REPLICAS, f"{others[0].serving}; {key} runs alone")
    elif alone := [each for each in present if each.sharing.is_alone]:
        yield _held(uuid, len(alone), 0.0, Unit.REPLICAS, f"{alone[0].serving}, which runs alone")
    withdrawn = board.withdrawn.get((key, uuid))
    if withdrawn is not None and withdrawn.until > board.facts.at:
        detail = "a replica could not start there; it is not tried again yet"
        yield _held(uuid, withdrawn.until - board.facts.at, 0.0, Unit.SECONDS, detail)
    if met:
        return  # a reading may still show a replica that has just gone; nobody needs the memory now
    unexplained = unexplained_memory(board, uuid)
    if unexplained is not None and unexplained > candidate.policy.unexplained_memory:
        yield _held(
            uuid, unexplained, candidate.policy.unexplained_memory, Unit.BYTES, "memory that no pod of gpupack explains"
        )


def _how(board: Board, uuid: str) -> str:
    profile = board.kind(uuid).mig_profile
    return f"on its slice {profile}" if profile else "as a whole"


def unexplained_memory(board: Board, uuid: str) -> float | None:
    """Framebuffer in use minus the most that gpupack's pods may hold there; None without a reading."""
    if uuid not in board.unexplained:
        board.unexplained[uuid] = _unexplained_memory(board, uuid)
    return board.unexplained[uuid]


def _unexplained_memory(board: Board, uuid: str) -> float | None:
    gpu = board.facts.gpus[uuid]
    if isinstance(gpu.fb_used, Missing):
        return None
    ours = 0.0
    for each in board.facts.replicas_on.get(uuid, ()):
        if each.phase is Phase.PENDING:
            continue
        known = each.serving in board.facts.servings
        ours += board.prospects.most_memory_of(gpu.gpu.kind, board.kin(each)) if known else board.memory_of(each, uuid)
    return gpu.fb_used - ours


def rolled_back(candidate: Candidate) -> Iterable[Verdict]:
    """The like was tried beside the same neighbours and taken back. What the user asks for at least is tried again."""
    if candidate.demand.wanted <= candidate.planned or candidate.planned < candidate.demand.floor:
        return
    undone = remembered(candidate.board, candidate.serving.key, candidate.uuid, candidate.before)
    if undone is not None:
        said = undone.compared
        yield _verdict(
            candidate.uuid, Reason.ROLLED_BACK, _given(said.measured), _given(said.predicted), Unit(said.unit),
            at_least=said.measured < said.predicted, detail=said.what,
        )  # fmt: skip


def max_replicas(candidate: Candidate) -> Iterable[Verdict]:
    scaling = candidate.serving.scaling
    most = scaling.max_replicas if scaling.mode is ScalingMode.AUTO else None
    if most is not None and candidate.planned >= most:
        yield _verdict(
            str(candidate.serving.key), Reason.MAX_REPLICAS, _given(candidate.planned + 1), _given(most), Unit.REPLICAS
        )


def demand_met(candidate: Candidate) -> Iterable[Verdict]:
    demand, key = candidate.demand, str(candidate.serving.key)
    if demand.wanted > candidate.planned:
        return
    if demand.basis is Basis.ARRIVALS and demand.utilization is not None:
        load = Estimate.exact(demand.utilization, Source.MEASURED)
        target = _given(candidate.policy.target_utilization)
        yield _verdict(key, Reason.DEMAND_MET, load, target, Unit.RATIO, at_least=True)
    else:
        yield _verdict(
            key, Reason.DEMAND_MET, _given(candidate.planned + 1), _given(demand.wanted), Unit.REPLICAS,
            detail=demand.basis.value,
        )  # fmt: skip


def memory(candidate: Candidate) -> Iterable[Verdict]:
    """Whole bytes: all replicas with the reserve, and what vLLM wants free at the start of the new one.

    Where nobody exports the framebuffer in use, nobody can tell what others hold: one replica a GPU.
    """
    board, uuid = candidate.board, candidate.uuid
    kind = candidate.gpu.gpu.kind
    total = board.prospects.memory_of(kind, candidate.kin)
    held = board.memory_held(uuid)
    if candidate.instead_of is not None:
        held = Bytes(held - board.memory_of(candidate.instead_of, uuid))
    at_start = -(-utilization_hundredths(total, kind) * kind.memory_bytes // 100)
    needed = max(held + total + candidate.policy.gpu_reserve, held + at_start)
    if needed > kind.memory_bytes:
        observed = Estimate.exact(needed, Source.CALIBRATED)
        yield _verdict(uuid, Reason.MEMORY, observed, _given(kind.memory_bytes), Unit.BYTES)
    present = 0 if candidate.sharing.is_alone else len(candidate.present)
    if present and _is_not_exported(candidate.gpu.fb_used):
        yield _verdict(
            uuid, Reason.MEMORY, _given(present + 1), _given(1), Unit.REPLICAS,
            detail="nothing exports the framebuffer in use",
        )  # fmt: skip


_WITHOUT = frozenset((Cause.NO_SERIES, Cause.ABSURD, Cause.NO_SCALE, Cause.TOO_COARSE))
"""Causes that last: packing goes on by prediction, up to the lower ceiling."""


def _is_not_exported(known: Known) -> bool:
    return isinstance(known, Missing) and known.cause is Cause.NO_SERIES


def host_cpu(candidate: Candidate) -> Iterable[Verdict]:
    """Whole cores that are asked for, and engines of the node that wait for those that they have."""
    node = candidate.board.facts.nodes.get(candidate.gpu.gpu.node)
    if node is None:
        return
    replaced = 0 if candidate.instead_of is None else candidate.serving.cpu_cores
    needed = candidate.board.cores_held(node.name) + candidate.serving.cpu_cores - replaced
    free = max(0.0, node.cpu_cores - node.cpu_cores_of_others)
    if needed > free:
        yield _verdict(candidate.uuid, Reason.HOST_CPU, _given(needed), _given(free), Unit.CORES)
    for claim in candidate.board.facts.claims_on.get(candidate.uuid, ()):
        wanted = len(candidate.present) + (candidate.instead_of is None)
        if claim.engines is not None and wanted > claim.engines:
            each = candidate.serving.cpu_cores
            yield _verdict(
                candidate.uuid, Reason.HOST_CPU, _given(wanted * each), _given(claim.engines * each), Unit.CORES,
                detail=f"cores of the pod {claim.name}",
            )  # fmt: skip


def cores_short(candidate: Candidate) -> Iterable[Verdict]:
    """Engines on the node do not get the cores that they want: one more would only slow them. Not told is no objection:
    then what is requested counts alone."""
    if candidate.instead_of is not None or candidate.planned < candidate.demand.floor:
        return
    board, worst = candidate.board, (CORES_SHORT, "")
    for gpu in (board.facts.gpus[uuid] for uuid in board.on_node(candidate.gpu.gpu.node)):
        for known, what in ((gpu.core_wait, "waits for a core"), (gpu.throttled, "is held at its CPU limit")):
            if not isinstance(known, Missing) and known > worst[0]:
                worst = (known, what)
    if worst[1]:
        observed = Estimate.exact(worst[0], Source.MEASURED)
        yield _verdict(
            candidate.uuid, Reason.HOST_CPU, observed, _given(CORES_SHORT), Unit.RATIO, detail=worst[1]
        )  # fmt: skip


def latency_slo(candidate: Candidate) -> Iterable[Verdict]:
    """Every engine on the GPU against its own promise, at the loads to expect once the replica has its share.

    A first token that already comes too late is no objection to a replica that makes it come sooner, nor is a load of
    the serving's own that its engines cannot carry: that is why one more is asked for.
    """
    board = candidate.board
    kind = candidate.gpu.gpu.kind
    rates = rates_on(board, candidate.after, candidate.kin)
    after = board.prospects.at_rates(kind, candidate.after, rates)
    before: dict[Kin, GroupPrediction] | None = None
    for (kin, _), group, rate in zip(candidate.after, after.groups, rates, strict=True):
        slo = promise_of(board, kin.serving, kind)
        if slo is None:
            continue
        promised = Source.ASSUMED if slo.assumed else Source.MEASURED
        itl = itl_of(group, slo)
        if slo.itl is not None and itl > slo.itl:
            yield _verdict(
                str(kin.serving), Reason.LATENCY_SLO, _predicted(itl, after), Estimate.exact(slo.itl, promised),
                Unit.SECONDS, detail="inter-token latency",
            )  # fmt: skip
        if slo.ttft is None or rate is None:
            continue
        if before is None:
            old = board.prospects.at_rates(kind, candidate.before, rates_on(board, candidate.before, None))
            before = {each: was for (each, _), was in zip(candidate.before, old.groups, strict=True)}
        ttft, was = ttft_of(group, slo), before.get(kin)
        earlier = None if was is None else ttft_of(was, slo)
        if was is not None and earlier is None:
            continue
        if ttft is None and kin.serving == candidate.serving.key:
            continue
        if ttft is None:
            load = _predicted(1.0 if group.utilization is None else group.utilization, after)
            yield _verdict(
                str(kin.serving), Reason.LATENCY_SLO, load, _given(1.0), Unit.RATIO, detail="time to first token"
            )
        elif ttft > slo.ttft and (earlier is None or ttft > earlier):
            yield _verdict(
                str(kin.serving), Reason.LATENCY_SLO, _predicted(ttft, after), Estimate.exact(slo.ttft, promised),
                Unit.SECONDS, detail="time to first token",
            )  # fmt: skip


def bandwidth_ceiling(candidate: Candidate) -> Iterable[Verdict]:
    saturation, ceiling = saturation_of(candidate.board, candidate.uuid)
    if saturation.value >= ceiling:
        yield _verdict(candidate.uuid, Reason.BANDWIDTH_CEILING, saturation, _given(ceiling), Unit.RATIO)


def saturation_of(board: Board, uuid: str) -> tuple[Estimate, Ratio]:
    """Saturation at full batches before anything is added, and the ceiling that goes with how well it is known.

    Measured where the engines really are full and the counter is not contradicted by what they do; else predicted,
    and without a counter to be trusted only up to the lower ceiling.
    """
    found = board.saturations.get(uuid)
    if found is None:
        found = board.saturations[uuid] = _saturation_of(board, uuid)
    return found


def _saturation_of(board: Board, uuid: str) -> tuple[Estimate, Ratio]:
    policy, gpu = board.facts.policy, board.facts.gpus[uuid]
    full = board.prospects.full(gpu.gpu.kind, board.mix(uuid))
    predicted = _predicted(full.saturation, full)
    if isinstance(gpu.dram_active, Missing):
        return predicted, policy.unmeasured_saturation_ceiling
    if not _is_full(board, uuid, full):
        return predicted, policy.saturation_ceiling
    off = gpu.dram_active / full.dram_active if full.dram_active > 0 else float("inf")
    if gpu.dram_active > 1.0 or not 1 / CONTRADICTED <= off <= CONTRADICTED:
        return predicted, policy.unmeasured_saturation_ceiling
    # More than everything is the model's error about what can be reached, not the GPU's doing.
    measured = min(1.0, gpu.dram_active / full.dram_active_max)
    return Estimate.exact(measured, Source.MEASURED), policy.saturation_ceiling


def _is_full(board: Board, uuid: str, full: GpuPrediction) -> bool:
    """Whether every engine on the GPU has been running its largest batch over the shortest window."""
    largest = {kin: group.running_mean for (kin, _), group in zip(board.mix(uuid), full.groups, strict=True)}
    for placement in board.on[uuid]:
        pod = board.pod(placement)
        engine = None if pod is None else board.facts.engines.get(pod.name)
        if engine is None or not engine.windows:
            return False
        running = engine.windows[0].running_mean
        if isinstance(running, Missing) or running < FULL_BATCH * largest[board.kin(placement)]:
            return False
    return True


def marginal_gain(candidate: Candidate) -> Iterable[Verdict]:
    """Throughput of the whole GPU at full batches, in units of lone engines."""
    prospects, kind = candidate.board.prospects, candidate.gpu.gpu.kind
    gain = prospects.worth(kind, candidate.after) / prospects.worth(kind, candidate.before) - 1.0
    least = candidate.policy.least_marginal_gain
    if gain < least:
        full = prospects.full(kind, candidate.after)
        observed = _predicted(gain, full)
        yield _verdict(candidate.uuid, Reason.MARGINAL_GAIN, observed, _given(least), Unit.RATIO, at_least=True)


def even_share(candidate: Candidate) -> Iterable[Verdict]:
    """Where the GPU is of another kind than those that serve: what all replicas carry, requests being dealt evenly.

    A GPU that is much slower takes as many as the others, keeps them waiting, and more is lost than it adds.
    """
    board, key = candidate.board, candidate.serving.key
    if candidate.instead_of is not None or candidate.planned < candidate.demand.floor:
        return
    there = {each.gpu_uuid for each in board.of[key] if each.gpu_uuid in board.facts.gpus}
    mixes = {uuid: board.mix(uuid) for uuid in sorted(there) if board.prospects.knows(board.mix(uuid))}
    kinds = {board.facts.gpus[uuid].gpu.kind.name for uuid in mixes}
    if kinds <= {candidate.gpu.gpu.kind.name} or not board.prospects.knows(candidate.after):
        return
    share = carried(board, key, {**mixes, candidate.uuid: candidate.after}) / carried(board, key, mixes)
    least = 1.0 + candidate.policy.least_marginal_gain
    if share < least:
        kind = candidate.gpu.gpu.kind
        observed = _predicted(share, board.prospects.full(kind, candidate.after))
        yield _verdict(
            candidate.uuid, Reason.MARGINAL_GAIN, observed, _given(least), Unit.RATIO, at_least=True, detail=kind.name
        )


SIMPLE: tuple[Check, ...] = (
    data_missing,
    held_by_others,
    rolled_back,
    max_replicas,
    demand_met,
    memory,
    host_cpu,
    cores_short,
)
TOGETHER: tuple[Check, ...] = (latency_slo, bandwidth_ceiling, marginal_gain)


def promise_of(board: Board, key: ServingKey, kind: GpuKind) -> Slo | None:
    """The user's SLO, or the one that was assumed when the shape was chosen."""
    serving = board.facts.servings.get(key)
    if serving is not None and serving.slo is not None:
        return serving.slo
    chosen = board.shapes.get((key, kind.name))
    return None if chosen is None else chosen.slo


def rates_on(board: Board, mix: Mix, added: Kin | None) -> tuple[float | None, ...]:
    """Requests a second of one engine of each kin, a serving's arrivals dealt evenly; None where no rate is known."""
    return tuple(
        board.rate_of_one(kin, 1 if added is not None and kin.serving is added.serving else 0) for kin, _ in mix
    )


def itl_of(group: GroupPrediction, slo: Slo) -> Seconds:
    if slo.statistic is Statistic.P95:
        return group.itl_p95
    return group.itl_mean if slo.statistic is Statistic.MEAN else group.itl_p99


def ttft_of(group: GroupPrediction, slo: Slo) -> Seconds | None:
    if slo.statistic is Statistic.P95:
        return group.ttft_p95
    return group.ttft_mean if slo.statistic is Statistic.MEAN else group.ttft_p99


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What was found for one more replica: a GPU, or why none.

    `waiting`: a GPU would take it and is only busy with another step; `next_on` is that GPU if the replica waits only
    for the next tick and not for what happens there. `verdicts` are all objections of all GPUs looked at; `stop` is the
    reason, `past` what a manual count goes past on the GPU taken.
    """

    uuid: str | None
    waiting: bool
    stop: Verdict | None
    verdicts: tuple[Verdict, ...]
    past: tuple[Verdict, ...] = ()
    next_on: str | None = None


Tried = tuple[str, tuple[Verdict, ...]]
"""A GPU that was looked at, and what speaks against it."""


def survey(board: Board, serving: Serving, sharing: Sharing, demand: Demand) -> Survey:
    """The best GPU for one more replica: spread over those in use, another one only when none of them can take it.

    A replica that answers a load waits until nothing moves on its GPU, because that may change what is seen there. One
    below the floor waits for the next tick at most: on each GPU one engine is planned a tick, and they start one after
    another. The reason for stopping is that of the GPU that came closest, among the GPUs tried last.
    """
    planned = len(board.of[serving.key])
    used, unused = _to_look_at(board, serving, sharing, more=demand.wanted > planned)
    tried: list[Tried] = []
    groups: list[list[Tried]] = []
    for group in (used, unused):
        found: list[Tried] = []
        for uuid in group:
            chosen = board.chosen(serving.key, uuid)
            if chosen is None:
                continue
            candidate = Candidate(
                board=board, serving=serving, sharing=board.placed(sharing, uuid), gpu=board.facts.gpus[uuid],
                chosen=chosen,
                demand=demand, planned=planned,
            )  # fmt: skip
            found.append((uuid, objections(candidate)))
            if group is unused and not found[-1][1]:
                break
        groups.append(found)
        tried.extend(found)
        if any(not against for _, against in found):
            break
    for goes_past in (False, True) if serving.scaling.mode is ScalingMode.MANUAL else (False,):
        for found in groups:
            open_now = [(uuid, against) for uuid, against in found if not blocking(against, goes_past=goes_past)]
            ready = [each for each in open_now if not board.is_moving(each[0])]
            if not ready and planned < demand.floor:
                ready = [each for each in open_now if each[0] not in board.touched]
            if ready:
                uuid, against = _emptiest(board, ready)
                return Survey(uuid=uuid, waiting=False, stop=None, verdicts=_listed(tried), past=against)
            if open_now:
                then = _emptiest(board, open_now)[0] if planned < demand.floor else None
                return Survey(uuid=None, waiting=True, stop=None, verdicts=_listed(tried), next_on=then)
    return Survey(uuid=None, waiting=False, stop=_reason(board, serving, tried, demand), verdicts=_listed(tried))


def _emptiest(board: Board, tried: Iterable[Tried]) -> Tried:
    return min(tried, key=lambda each: (_load(board, each[0]), each[0]))


def _to_look_at(board: Board, serving: Serving, sharing: Sharing, *, more: bool) -> tuple[list[str], list[str]]:
    """The GPUs worth a full check: those in use and those not.

    In use: the emptiest of the serving's own; if it wants more, also the emptiest of those that are not closed to it,
    and a few that are closed, for the reason. Of the others those that keep its promise first, and of slices those of
    the profile that makes the most of its bandwidth.
    """
    (used, not_shut), unused = _emptiest_first(board), board.unused
    most = board.facts.policy.max_gpus
    if most is not None:
        cards = {board.facts.gpus[uuid].gpu.card for uuid in used}
        if len(cards) >= most:
            unused = tuple(uuid for uuid in unused if board.facts.gpus[uuid].gpu.card in cards)
    unused = tuple(sorted(unused, key=lambda uuid: _least_fit(board, serving, uuid)))
    mine = {placement.gpu_uuid for placement in board.of[serving.key]}
    own = list(islice((uuid for uuid in used if uuid in mine), OWN_LOOKED_AT))
    if not more:
        return own, list(unused[:1])
    door = _Door(board, serving, sharing)
    found = []
    may_be_free = used if serving.scaling.mode is ScalingMode.MANUAL else not_shut
    for group, by_name, always in ((may_be_free, board.used_by_name, own), (unused, sorted(unused), ())):
        free = islice((uuid for uuid in group if not door.is_closed(uuid)), LOOKED_AT)
        closed = islice((uuid for uuid in by_name if door.is_closed(uuid)), CLOSED_LOOKED_AT)
        found.append({*free, *closed, *always})
    return sorted(found[0], key=board.place), [uuid for uuid in unused if uuid in found[1]]


class _Door:
    """Whether something simple is known to speak against a GPU; no answer to be told, only a way to look less."""

    def __init__(self, board: Board, serving: Serving, sharing: Sharing) -> None:
        self._board, self._serving, self._sharing = board, serving, sharing
        self._goes_past = serving.scaling.mode is ScalingMode.MANUAL
        self._needed: dict[str, Bytes | None] = {}
        self._known: dict[str, bool] = {}

    def is_closed(self, uuid: str) -> bool:
        found = self._known.get(uuid)
        if found is None:
            found = self._known[uuid] = self._is_closed(uuid)
        return found

    def _is_closed(self, uuid: str) -> bool:
        state, needed = _state(self._board, uuid), self._memory_on(self._board.kind(uuid))
        if needed is None or state.barred or needed > state.free:
            return True
        if state.tenants and state.tenants != {self._board.tenant(uuid, self._serving.key)}:
            return True
        if state.used and (state.takes_one or self._board.placed(self._sharing, uuid).is_alone):
            return True
        return state.saturated and not self._goes_past

    def _memory_on(self, kind: GpuKind) -> Bytes | None:
        """Bytes of one replica; None where no shape was chosen for this kind of GPU."""
        if kind.name not in self._needed:
            chosen, prospects = self._board.shapes.get((self._serving.key, kind.name)), self._board.prospects
            kin = None if chosen is None else prospects.kin(self._serving.key, chosen.shape)
            self._needed[kind.name] = None if kin is None else prospects.memory_of(kind, kin)
        return self._needed[kind.name]


def _state(board: Board, uuid: str) -> GpuState:
    """What a GPU is to every serving alike, worked out again only when something changed there."""
    found = board.states.get(uuid)
    if found is None:
        gpu, mix = board.facts.gpus[uuid], board.mix(uuid)
        unknown = bool(mix) and not board.prospects.knows(mix)
        saturated = unknown
        if mix and not unknown:
            saturation, ceiling = saturation_of(board, uuid)
            saturated = saturation.value >= ceiling
        found = board.states[uuid] = GpuState(
            barred=not gpu.node_ready
            or bool(gpu.foreign)
            or uuid in board.faulty
            or any(board.is_used(each) for each in board.cut_with(uuid)),
            used=board.is_used(uuid),
            takes_one=_is_not_exported(gpu.fb_used),
            saturated=saturated,
            tenants=board.tenants(uuid),
            free=Bytes(gpu.gpu.kind.memory_bytes - board.facts.policy.gpu_reserve - board.memory_held(uuid)),
            load=0.0 if unknown or not mix else round(board.prospects.full(gpu.gpu.kind, mix).saturation, 3),
        )
    return found


def _emptiest_first(board: Board) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The GPUs in use by how far they are filled, ties by uuid: all, and those that are not shut."""
    if board.by_load is None:
        every = tuple(sorted(board.used, key=lambda uuid: (_load(board, uuid), uuid)))
        board.by_load = every, tuple(uuid for uuid in every if not _state(board, uuid).is_shut)
    return board.by_load


def blocking(against: Iterable[Verdict], *, goes_past: bool) -> tuple[Verdict, ...]:
    """The objections that count: a manual count goes past some of them."""
    return tuple(each for each in against if not (goes_past and each.reason in MANUAL_GOES_PAST))


def _reason(board: Board, serving: Serving, tried: list[Tried], demand: Demand) -> Verdict | None:
    """The first objection on the GPU that came closest; among GPUs not in use, if it took those to try.

    Ties break by the GPU's uuid and not by load, or a reason would wander between GPUs that are equally full.
    """
    manual = serving.scaling.mode is ScalingMode.MANUAL
    firsts = [(uuid, blocking(against, goes_past=manual)[0]) for uuid, against in sorted(tried, key=_uuid)]
    if demand.wanted > len(board.of[serving.key]):
        firsts = [each for each in firsts if not board.is_used(each[0])] or firsts
    return max((verdict for _, verdict in firsts), key=lambda each: ORDER[each.reason], default=None)


def _uuid(tried: Tried) -> str:
    return tried[0]


def _least_fit(board: Board, serving: Serving, uuid: str) -> tuple[bool, float]:
    """What comes last: a GPU on which the promise is out of reach, a slice that would do little for its bandwidth."""
    chosen, kind = board.chosen(serving.key, uuid), board.kind(uuid)
    if chosen is None or not kind.is_slice:
        return chosen is not None and chosen.unreachable is not None, 0.0
    alone = ((board.prospects.kin(serving.key, chosen.shape), 1),)
    made = board.prospects.full(kind, alone).total_tokens_per_second / kind.dram_bytes_per_second
    return chosen.unreachable is not None, -made


def _load(board: Board, uuid: str) -> float:
    """How far the GPU is filled, for spreading: predicted saturation at full batches."""
    return _state(board, uuid).load


def _listed(tried: list[Tried]) -> tuple[Verdict, ...]:
    """Every objection once, in the order of reasons and then of subjects."""
    places: dict[tuple[int, str, str], list[Verdict]] = {}
    for _, against in tried:
        for verdict in against:
            said = places.setdefault((ORDER[verdict.reason], verdict.subject, verdict.detail), [])
            if verdict not in said:
                said.append(verdict)
    return tuple(verdict for place in sorted(places) for verdict in places[place])


def went_past(board: Board, serving: Serving) -> tuple[Reason, ...]:
    """Which reasons the last replica of a manual count stands against, on any GPU that it uses."""
    found: set[Reason] = set()
    for uuid in sorted({placement.gpu_uuid for placement in board.of[serving.key]}):
        gpu, chosen = board.facts.gpus.get(uuid), board.chosen(serving.key, uuid)
        if gpu is None or chosen is None:
            continue
        kind, after = gpu.gpu.kind, board.mix(uuid)
        own = [kin for kin, _ in after if kin.serving == serving.key]
        before = with_one(after, own[-1], -1)
        if not before or not board.prospects.knows(after):
            continue
        full = board.prospects.full(kind, before)
        if full.saturation >= board.facts.policy.saturation_ceiling:
            found.add(Reason.BANDWIDTH_CEILING)
        gain = board.prospects.worth(kind, after) / board.prospects.worth(kind, before) - 1.0
        if gain < board.facts.policy.least_marginal_gain:
            found.add(Reason.MARGINAL_GAIN)
        now = board.prospects.full(kind, after)
        for (kin, _), group in zip(after, now.groups, strict=True):
            slo = promise_of(board, kin.serving, kind)
            if slo is not None and slo.itl is not None and itl_of(group, slo) > slo.itl:
                found.add(Reason.LATENCY_SLO)
    return tuple(sorted(found, key=lambda each: ORDER[each]))


def gain_of(board: Board, placement: Placement) -> float | None:
    """What this replica adds to the throughput of its GPU at full batches, as a share, in units of lone engines."""
    gpu, after = board.facts.gpus.get(placement.gpu_uuid), board.mix(placement.gpu_uuid)
    before = with_one(after, board.kin(placement), -1)
    if gpu is None or not before or not board.prospects.knows(after):
        return None
    return board.prospects.worth(gpu.gpu.kind, after) / board.prospects.worth(gpu.gpu.kind, before) - 1.0


def effect(board: Board, placement: Placement) -> PredictedEffect | None:
    """What this replica is predicted to bring at full batches: the GPU without it, and with it."""
    gpu = board.facts.gpus.get(placement.gpu_uuid)
    after = board.mix(placement.gpu_uuid)
    if gpu is None or not board.prospects.knows(after):
        return None
    kind, kin = gpu.gpu.kind, board.kin(placement)
    before = with_one(after, kin, -1)
    full = board.prospects.full(kind, after)
    own = next(group for (each, _), group in zip(after, full.groups, strict=True) if each is kin)
    slo = promise_of(board, placement.serving, kind)
    return PredictedEffect(
        tokens_per_second_before=board.prospects.full(kind, before).total_tokens_per_second if before else 0.0,
        tokens_per_second_after=full.total_tokens_per_second,
        saturation_after=full.saturation,
        itl_after=own.itl_p95 if slo is None else itl_of(own, slo),
        attainable=full.dram_active_max,
    )


def itl_at_load(board: Board, placement: Placement) -> Seconds | None:
    """Its inter-token latency at the loads to expect on its GPU; None where none is known, or nothing is promised."""
    gpu, mix, kin = board.facts.gpus.get(placement.gpu_uuid), board.mix(placement.gpu_uuid), board.kin(placement)
    if gpu is None or not board.prospects.knows(mix):
        return None
    rates, slo = rates_on(board, mix, None), promise_of(board, placement.serving, gpu.gpu.kind)
    index = next(index for index, (each, _) in enumerate(mix) if each is kin)
    if slo is None or rates[index] is None:
        return None
    return itl_of(board.prospects.at_rates(gpu.gpu.kind, mix, rates).groups[index], slo)


def _missing(subject: str, detail: str, absent: int = 1) -> Verdict:
    return _verdict(subject, Reason.DATA_MISSING, _given(absent), _given(0), Unit.NONE, detail=detail)


def _held(uuid: str, observed: float, limit: float, unit: Unit, detail: str) -> Verdict:
    return _verdict(uuid, Reason.HELD_BY_OTHERS, _given(observed), _given(limit), unit, detail=detail)


def _verdict(
    subject: str, reason: Reason, observed: Estimate, limit: Estimate, unit: Unit, *, at_least: bool = False,
    detail: str = "",
) -> Verdict:  # fmt: skip
    return Verdict(
        subject=subject, reason=reason, observed=observed, limit=limit, unit=unit, at_least=at_least, detail=detail
    )


def _given(value: float) -> Estimate:
    return Estimate.exact(float(value), Source.MEASURED)


def _predicted(value: float, prediction: GpuPrediction) -> Estimate:
    return Estimate.within(value, prediction.error, prediction.source)
