"""Which shape the replicas of a serving have on each kind of GPU: asked once, kept, and asked anew for a reason.

An engine's shape cannot change while it runs, so a new one restarts every replica. It is asked at once when what the
user declared has changed, and on live lengths or what was learnt only for a gain that has held for long, at most once
an hour. What runs when the plan was lost keeps its shape.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

from gpupack.decide.advise import Advice, advise
from gpupack.decide.pack import itl_of, sharing_of, sharing_there
from gpupack.decide.prospect import Kin, Prospects, belief_of, coefficients_of
from gpupack.decide.question import memory_needed, question_of
from gpupack.facts.gpu import GpuKind
from gpupack.facts.interpretation import Facts, is_leaving
from gpupack.facts.placement import ChosenShape, FormerShape
from gpupack.facts.serving import Lengths, Serving, Shape, Sharing
from gpupack.perf.memory import replica_memory, utilization_hundredths
from gpupack.units import Bytes, Seconds

ASKED_AT_ONCE = 8
"""So many questions a tick: each is a search, and the loop has other servings to look after."""


def choose(facts: Facts, prospects: Prospects, kept: Iterable[ChosenShape]) -> tuple[ChosenShape, ...]:
    """The shapes of all servings on all kinds of GPU in the pool that can run them; one that must wait comes later."""
    kinds = {gpu.gpu.kind.name: gpu.gpu.kind for gpu in facts.gpus.values()}
    known = {(each.serving, each.gpu_kind): each for each in kept}
    found = {
        key: each
        for key, each in known.items()
        if key[0] in facts.refused or (key[0] in facts.servings and key[1] not in kinds)
    }
    asked = 0
    for key, serving in facts.servings.items():
        sharing = sharing_of(serving, facts.policy)
        if sharing is None or serving.observes:
            continue
        declared = digest_of(serving, sharing)
        for name, kind in sorted(kinds.items()):
            if not kind.computes_in(serving.dtype) or sharing_there(serving, facts.policy, kind) is None:
                continue
            old, overhead = known.get((key, name)), prospects.overheads.get((key, name), Bytes(0))
            digest = f"{declared}+{overhead}" if overhead else declared
            if old is not None and old.inputs == digest:
                found[key, name] = _reconsidered(old, serving, sharing, kind, facts, prospects, overhead)
            elif asked < ASKED_AT_ONCE:
                asked += 1
                running = None if old is not None else _running_shape(serving, kind, facts)
                if old is not None and overhead and old.inputs.partition("+")[0] == declared:
                    running = _that_fits(old.shape, serving, kind, overhead, facts.policy.gpu_reserve)
                found[key, name] = _asked(serving, sharing, kind, facts, serving.lengths, digest, overhead, running)
            elif old is not None:
                found[key, name] = old
    return tuple(sorted(found.values(), key=lambda each: (each.serving, each.gpu_kind)))


def _asked(
    serving: Serving,
    sharing: Sharing,
    kind: GpuKind,
    facts: Facts,
    lengths: Lengths,
    digest: str,
    overhead: Bytes,
    running: Shape | None,
) -> ChosenShape:
    """The advisor's answer; `running` is what runs already and stays (a plan that was lost restarts nothing)."""
    advice = _advice(serving, sharing, kind, facts, lengths, overhead)
    shape, hundredths = advice.shape, advice.utilization_hundredths
    if running is not None:
        total = Bytes(replica_memory(serving.llm, serving.dtype, running, kind).total + overhead)
        shape, hundredths = running, utilization_hundredths(total, kind)
    return ChosenShape(
        serving=serving.key,
        gpu_kind=kind.name,
        shape=shape,
        replicas_per_gpu=advice.replicas_per_gpu,
        utilization_hundredths=hundredths,
        inputs=digest,
        chosen_at=facts.at,
        slo=advice.slo,
        unreachable=None if advice.unreachable is None else Seconds(advice.unreachable.value),
    )


def _that_fits(shape: Shape, serving: Serving, kind: GpuKind, overhead: Bytes, reserve: Bytes) -> Shape | None:
    """The shape, if one engine of it fits a GPU with what it was seen to need; so a lesson restarts nobody."""
    total = Bytes(replica_memory(serving.llm, serving.dtype, shape, kind).total + overhead)
    return shape if memory_needed(total, 1, kind, reserve) <= kind.memory_bytes else None


def _advice(
    serving: Serving, sharing: Sharing, kind: GpuKind, facts: Facts, lengths: Lengths, overhead: Bytes
) -> Advice:
    hosts = {gpu.gpu.node for gpu in facts.gpus.values() if gpu.gpu.kind == kind}
    cores = max((facts.nodes[host].cpu_cores for host in hosts if host in facts.nodes), default=None)
    return advise(
        question_of(
            serving, kind, facts.policy, lengths=lengths, sharing=sharing,
            coefficients=coefficients_of(serving, kind), node_cores=cores, overhead=overhead,
        )
    )  # fmt: skip


def _reconsidered(
    old: ChosenShape, serving: Serving, sharing: Sharing, kind: GpuKind, facts: Facts, prospects: Prospects,
    overhead: Bytes,
) -> ChosenShape:  # fmt: skip
    """The same shape, or another one when live lengths, or what was learnt, have promised enough for long enough."""
    policy, lengths = facts.policy, prospects.lengths[serving.key]
    settled = old if old.better_since is None else replace(old, better_since=None)
    as_asked = lengths == serving.lengths and belief_of(serving, kind) is None
    if as_asked or facts.at - old.chosen_at < policy.shape_interval:
        return settled
    advice = _advice(serving, sharing, kind, facts, lengths, overhead)
    if advice.shape == old.shape or not advice.fits:
        return settled
    now = _goodput(prospects.kin(serving.key, old.shape), old.replicas_per_gpu, old, kind, prospects)
    then = _goodput(prospects.kin(serving.key, advice.shape), advice.replicas_per_gpu, old, kind, prospects)
    if then <= now * (1 + policy.shape_gain):
        return settled
    since = facts.at if old.better_since is None else old.better_since
    if facts.at - since < policy.shape_hold:
        return replace(old, better_since=since)
    was = FormerShape(
        shape=old.shape, replicas_per_gpu=old.replicas_per_gpu, utilization_hundredths=old.utilization_hundredths
    )
    return replace(_asked(serving, sharing, kind, facts, lengths, old.inputs, overhead, None), was=was)


def _goodput(kin: Kin, count: int, old: ChosenShape, kind: GpuKind, prospects: Prospects) -> float:
    """Tokens a second of a GPU full of these engines; nothing if they break the promise."""
    full = prospects.full(kind, ((kin, count),))
    slo = old.slo
    if slo is not None and slo.itl is not None and itl_of(full.groups[0], slo) > slo.itl:
        return 0.0
    return full.total_tokens_per_second


def _running_shape(serving: Serving, kind: GpuKind, facts: Facts) -> Shape | None:
    """The shape of the youngest replica that runs on this kind of GPU and is to stay."""
    running = [
        each
        for each in facts.replicas_of.get(serving.key, ())
        if not is_leaving(each) and each.gpu_uuid in facts.gpus and facts.gpus[each.gpu_uuid].gpu.kind == kind
    ]
    return max(running, key=lambda each: (each.created_at, each.name)).shape if running else None


@lru_cache(maxsize=4096)
def digest_of(serving: Serving, sharing: Sharing) -> str:
    """Ten hex digits over what the user declared and a shape depends on."""
    declared = (
        serving.llm,
        serving.dtype.value,
        serving.max_model_len,
        serving.engine_version,
        serving.cpu_cores,
        serving.lengths,
        serving.slo,
        serving.batching,
        serving.profile,
        sharing.value,
    )
    return hashlib.sha256(repr(declared).encode()).hexdigest()[:10]
