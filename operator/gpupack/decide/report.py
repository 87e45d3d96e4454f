"""What a person reads: the status of a serving and of the pool, derived from the plan and from what is there.

Numbers are those of the last decision and change only with it; live values are metrics. So nothing is written when
nothing changed. Knows conditions; their sentences are `explain`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from gpupack.decide import explain, routing
from gpupack.decide.backends import weigh
from gpupack.decide.board import Board
from gpupack.decide.faults import refused
from gpupack.decide.hold import is_settled
from gpupack.decide.sources import gpus_measured
from gpupack.facts.engine_args import OLDEST_VERSION, is_too_old, shape_args
from gpupack.facts.experiment import Experiment, Judgement
from gpupack.facts.interpretation import EngineFacts, Facts, Traffic, is_leaving
from gpupack.facts.observation import Missing, Phase, Refused, ReplicaSeen
from gpupack.facts.placement import ChosenShape, Placement, Plan, Record
from gpupack.facts.policy import Policy
from gpupack.facts.running import Appraisal
from gpupack.facts.serving import BLOCK_TOKENS, Mode, Serving, ServingKey, Slo, Statistic
from gpupack.perf.memory import default_shape
from gpupack.plan import Condition, ConditionType, PoolStatus, Reason, ReplicaStatus, ServingStatus, Step, Truth

PACKED_AS_FAR_AS_IT_PAYS = frozenset(
    each.value
    for each in (
        Reason.ROLLED_BACK,
        Reason.MAX_REPLICAS,
        Reason.MEMORY,
        Reason.HOST_CPU,
        Reason.LATENCY_SLO,
        Reason.BANDWIDTH_CEILING,
        Reason.MARGINAL_GAIN,
    )
)


STALLED = frozenset(each.value for each in (Step.SHARING_NOT_ALLOWED, Step.DTYPE_NOT_SUPPORTED, Step.ENGINE_REFUSED))
"""Reasons that stand until somebody edits the serving or its pool."""


def selector_of(key: ServingKey) -> str:
    """The label selector of a serving's pods; kube/labels.py writes the same name."""
    return f"gpupack.dev/serving={key.name}"


def serving_status(board: Board, serving: Serving, record: Record | None) -> ServingStatus:
    facts, key = board.facts, serving.key
    chosen = _main_shape(board, key)
    placements = board.of[key]
    pods = [each for each in facts.replicas_of.get(key, ()) if each.deletion_at is None]
    ready = sum(1 for each in pods if each.phase is Phase.READY)
    experiment = max(_experiments(board, key), key=lambda each: (each.last_at, each.gpu_uuid), default=None)
    packed, progressing = _packed(board, serving, record), _progressing(board, serving)
    outcome = "" if experiment is None else explain.outcome(experiment)
    routed = routing.condition(board, serving)
    return ServingStatus(
        serving=key,
        uid=serving.uid,
        observed_generation=serving.generation,
        replicas=len(pods),
        ready_replicas=ready,
        selector=selector_of(key),
        max_num_seqs=None if chosen is None else chosen.shape.max_num_seqs,
        kv_cache_memory_bytes=None if chosen is None else chosen.shape.kv_cache_memory_bytes,
        max_model_len=None if chosen is None else chosen.shape.max_model_len,
        engine_args=_arguments(chosen),
        replicas_per_gpu=None if chosen is None else chosen.replicas_per_gpu,
        freed_bytes=None if chosen is None else _freed(board, serving, chosen),
        assumed=_assumed(serving),
        placements=tuple(sorted((_replica(board, each) for each in placements), key=lambda each: each.name)),
        decision_reason="" if record is None else record.reason,
        decision_message="" if record is None else record.message,
        decision_observed=None if record is None else record.observed,
        decision_limit=None if record is None else record.limit,
        decision_unit="" if record is None else record.unit,
        decision_at=None if record is None else record.at,
        conditions=(
            _condition(ConditionType.ACCEPTED, Truth.TRUE, "Accepted", "The spec can be carried out."),
            _ready(board, serving, pods, ready, asleep=record is not None and record.reason == Step.ASLEEP),
            packed,
            _slo_met(board, serving, chosen, pods),
            *_with_kstatus(progressing, packed),
            _as_predicted(board, key, experiment, outcome),
            *_engine_supported(board, pods),
            *(() if routed is None else (routed,)),
        ),
        thresholds=None if serving.routing is None or chosen is None else routing.thresholds(board, serving, chosen),
        decision_seen="" if record is None else record.seen,
        decision_predicted="" if record is None else record.predicted,
        decision_rejected="" if record is None else record.rejected,
        experiment=experiment,
        experiment_message=outcome,
        wake=board.wakes.get(key),
    )


def with_appraisal(status: ServingStatus, appraisal: Appraisal | None) -> ServingStatus:
    """The status of a serving that observes: the shape on top is that for the kind of GPU with the most engines."""
    if appraisal is None:
        return status
    first = max(appraisal.better, key=lambda each: each.engines, default=None)
    if first is None:
        return replace(status, appraisal=appraisal)
    fits = first.utilization_hundredths <= 100
    return replace(
        status,
        appraisal=appraisal,
        max_num_seqs=first.shape.max_num_seqs,
        kv_cache_memory_bytes=first.shape.kv_cache_memory_bytes,
        max_model_len=first.shape.max_model_len,
        engine_args=shape_args(first.shape, first.utilization_hundredths) if fits else (),
        replicas_per_gpu=first.replicas_per_gpu,
        freed_bytes=max(0, first.freed_bytes),
    )


def refused_status(facts: Facts, refused: Refused) -> ServingStatus:
    """A serving that cannot be carried out: what runs of it is left alone."""
    pods = [each for each in facts.replicas_of.get(refused.key, ()) if each.deletion_at is None]
    message = f"{refused.field}: {refused.problem}; {refused.fix}."
    unknown = "The spec is not accepted."
    return ServingStatus(
        serving=refused.key,
        uid=refused.uid,
        observed_generation=refused.generation,
        replicas=len(pods),
        ready_replicas=sum(1 for each in pods if each.phase is Phase.READY),
        selector=selector_of(refused.key),
        max_num_seqs=None,
        kv_cache_memory_bytes=None,
        max_model_len=None,
        engine_args=(),
        replicas_per_gpu=None,
        freed_bytes=None,
        assumed=(),
        placements=(),
        decision_reason="",
        decision_message="",
        decision_observed=None,
        decision_limit=None,
        decision_unit="",
        decision_at=None,
        conditions=(
            _condition(ConditionType.ACCEPTED, Truth.FALSE, "Invalid", message),
            _condition(ConditionType.READY, Truth.UNKNOWN, "Invalid", unknown),
            _condition(ConditionType.PACKED, Truth.UNKNOWN, "Invalid", unknown),
            _condition(ConditionType.SLO_MET, Truth.UNKNOWN, "Invalid", unknown),
            _condition(ConditionType.PROGRESSING, Truth.FALSE, "Invalid", unknown),
            _condition(ConditionType.STALLED, Truth.TRUE, "Invalid", message),
            _condition(ConditionType.AS_PREDICTED, Truth.UNKNOWN, "Invalid", unknown),
        ),
    )


def pool_status(facts: Facts, plan: Plan | None) -> PoolStatus:
    """`plan` is the one to be written; None leaves the pool without one."""
    placements = () if plan is None else plan.placements
    accepted = _condition(ConditionType.ACCEPTED, Truth.TRUE, "Accepted", "The pool decides.")
    ready = _condition(ConditionType.READY, Truth.TRUE, "Deciding", "What the pool needs to know is known.")
    if facts.pool_problem is not None:
        accepted = _condition(ConditionType.ACCEPTED, Truth.FALSE, "Refused", facts.pool_problem)
        ready = _condition(ConditionType.READY, Truth.FALSE, "Refused", "The pool decides nothing.")
    elif facts.stale:
        message = f"Too old to be trusted: {', '.join(facts.stale)}. Everything stays as it is."
        ready = _condition(ConditionType.READY, Truth.UNKNOWN, Reason.DATA_MISSING.value, message)
    elif not facts.gpus:
        ready = _condition(ConditionType.READY, Truth.FALSE, Step.NO_GPU.value, explain.no_gpu())
    return PoolStatus(
        plan=plan,
        gpus=len({each.gpu.card for each in facts.gpus.values()}),
        gpus_in_use=len({_card(facts, each.gpu_uuid) for each in placements}),
        replicas=len(placements),
        scales=facts.scales,
        conditions=(
            accepted, ready, _gpus_known(facts), gpus_measured(facts), *_gpus_healthy(plan), *_backend_chosen(facts),
        ),
    )  # fmt: skip


def _card(facts: Facts, uuid: str) -> str:
    return facts.gpus[uuid].gpu.card if uuid in facts.gpus else uuid


def _engine_supported(board: Board, pods: Iterable[ReplicaSeen]) -> tuple[Condition, ...]:
    """Only there while an engine is not."""
    engines = ((each.name, board.facts.engines.get(each.name)) for each in pods)
    versions = [(name, engine.version) for name, engine in engines if engine is not None and engine.version]
    old = sorted((name, version) for name, version in versions if is_too_old(version))
    if not old:
        return ()
    message = explain.engine_too_old(old, ".".join(map(str, OLDEST_VERSION)))
    return (_condition(ConditionType.ENGINE_SUPPORTED, Truth.FALSE, "VersionTooOld", message),)


def _gpus_healthy(plan: Plan | None) -> tuple[Condition, ...]:
    """Only there while one is not."""
    if plan is None or not plan.faulty:
        return ()
    message = f"{explain.faulty((each.gpu_uuid, each.why) for each in plan.faulty)} Nothing is planned there."
    return (_condition(ConditionType.GPUS_HEALTHY, Truth.FALSE, "GpuFault", message),)


def _gpus_known(facts: Facts) -> Condition:
    if facts.unknown_products:
        message = explain.unknown_products(facts.unknown_products)
        return _condition(ConditionType.GPUS_KNOWN, Truth.FALSE, "UnknownProduct", message)
    return _condition(ConditionType.GPUS_KNOWN, Truth.TRUE, "Known", "The catalog has every GPU that the pool selects.")


def _backend_chosen(facts: Facts) -> tuple[Condition, ...]:
    """Which ways of sharing are taken, and of each other one why not; nothing where nobody looked."""
    if facts.offer is None:
        return ()
    ways = weigh(facts.offer)
    taken, broken = [each.backend.value for each in ways if each.gpus], any(each.broken for each in ways)
    truth = Truth.TRUE if taken and not broken else Truth.FALSE
    reason = "Broken" if broken else "And".join(taken) or "NoBackend"
    return (_condition(ConditionType.BACKEND_CHOSEN, truth, reason, " ".join(each.sentence for each in ways)),)


def _condition(kind: ConditionType, truth: Truth, reason: str, message: str) -> Condition:
    return Condition(type=kind, truth=truth, reason=reason, message=message)


def _main_shape(board: Board, key: ServingKey) -> ChosenShape | None:
    """The shape on the kind of GPU that most replicas are on, else on the first kind by name."""
    chosen = sorted((each for each in board.shapes.values() if each.serving == key), key=lambda each: each.gpu_kind)
    here = Counter(board.kind(each.gpu_uuid).name for each in board.of[key] if each.gpu_uuid in board.facts.gpus)
    return max(chosen, key=lambda each: here[each.gpu_kind], default=None)


def _arguments(chosen: ChosenShape | None) -> tuple[str, ...]:
    """Ready for `vllm serve`; none for a shape that does not fit the GPU at all."""
    if chosen is None or chosen.utilization_hundredths > 100:
        return ()
    return shape_args(chosen.shape, chosen.utilization_hundredths)


def _freed(board: Board, serving: Serving, chosen: ChosenShape) -> int | None:
    """KV cache that vLLM would take by itself, less what this shape has, of one replica."""
    kind = board.kinds.get(chosen.gpu_kind)
    if kind is None:
        return None
    usual = default_shape(serving.llm, serving.dtype, kind)
    return max(0, usual.kv_cache_memory_bytes - chosen.shape.kv_cache_memory_bytes)


def _assumed(serving: Serving) -> tuple[str, ...]:
    found = (
        ("spec.model.maxModelLen", serving.max_model_len is None),
        ("spec.slo", serving.slo is None),
        ("spec.workload", serving.lengths.assumed),
    )
    return tuple(name for name, assumed in found if assumed)


def _replica(board: Board, placement: Placement) -> ReplicaStatus:
    gpu, pod = board.facts.gpus.get(placement.gpu_uuid), board.pod(placement)
    return ReplicaStatus(
        name=placement.name if pod is None else pod.name,
        gpu_uuid=placement.gpu_uuid,
        node="" if gpu is None else gpu.gpu.node,
        phase="Planned" if pod is None else pod.phase.value,
    )


def _ready(board: Board, serving: Serving, pods: Sequence[ReplicaSeen], ready: int, *, asleep: bool) -> Condition:
    planned = len(board.of[serving.key])
    if serving.mode is Mode.ADVISE and not planned:
        return _condition(ConditionType.READY, Truth.FALSE, "AdviseOnly", "In Advise mode nothing is started.")
    if serving.mode is Mode.SUSPEND and ready == 0:
        return _condition(ConditionType.READY, Truth.FALSE, Step.SUSPENDED.value, explain.suspended(planned))
    message = explain.ready(ready, max(planned, ready))
    if asleep and ready == 0:
        if serving.key not in board.facts.held:
            return _condition(ConditionType.READY, Truth.FALSE, "NoActivator", explain.nobody_wakes())
        return _condition(ConditionType.READY, Truth.TRUE, Step.ASLEEP.value, explain.asleep())
    if ready == 0:
        if (lesson := refused(board, serving.key, serving.template_hash)) is not None:
            why = explain.engine_refused(lesson.refusal, board.facts.policy.remember_undone)
            return _condition(ConditionType.READY, Truth.FALSE, Step.ENGINE_REFUSED.value, f"{message} {why}")
        if not planned:
            return _condition(ConditionType.READY, Truth.FALSE, "NotPlaced", message)
        waits = next((each for each in sorted(pods, key=lambda each: each.name) if each.message), None)
        message = message if waits is None else f"{message} {explain.waits_for(waits.name, waits.message)}"
        return _condition(ConditionType.READY, Truth.FALSE, "Starting", message)
    if mismatched := _mismatched(board, serving, pods):
        names, blocks = mismatched
        return _condition(ConditionType.READY, Truth.TRUE, "EngineMismatch", explain.mismatch(names, blocks))
    return _condition(ConditionType.READY, Truth.TRUE, "Serving", message)


def _mismatched(board: Board, serving: Serving, pods: Sequence[ReplicaSeen]) -> tuple[tuple[str, ...], int] | None:
    """Engines that run with other KV cache blocks than planned, and how many were planned."""
    per_block = BLOCK_TOKENS * serving.llm.kv_bytes_per_token(serving.dtype)
    names, blocks = [], 0
    for pod in pods:
        engine = board.facts.engines.get(pod.name)
        if engine is None or isinstance(engine.kv_blocks, Missing) or pod.phase is not Phase.READY:
            continue
        planned = pod.shape.kv_cache_memory_bytes // per_block
        if round(engine.kv_blocks) != planned:
            names.append(pod.name)
            blocks = planned
    return (tuple(names), blocks) if names else None


def _packed(board: Board, serving: Serving, record: Record | None) -> Condition:
    """Whether everything that the load asks for has a place, as far as it pays; why not, or why no further."""
    if record is None:
        return _condition(ConditionType.PACKED, Truth.UNKNOWN, "Waiting", explain.waits())
    reason, planned = record.reason, len(board.of[serving.key])
    message = record.message
    if reason in (Step.ADVISED, Step.NO_ENGINE, Step.SUSPENDED):
        return _condition(ConditionType.PACKED, Truth.UNKNOWN, reason, message)
    if reason == Reason.DATA_MISSING:
        return _condition(ConditionType.PACKED, Truth.UNKNOWN, reason, message)
    if reason in (Step.ADDED, Step.REMOVED, Step.REPLACED, Step.MOVED, Step.MPS_LOST, Step.HOST_LOST):
        return _condition(ConditionType.PACKED, Truth.UNKNOWN, reason, message)
    if reason in (Step.GOES_PAST, Step.ASLEEP):
        return _condition(ConditionType.PACKED, Truth.TRUE, reason, message)
    if reason == Reason.DEMAND_MET:
        return _condition(ConditionType.PACKED, Truth.TRUE, "NotNeeded" if planned <= 1 else reason, message)
    if planned and reason in PACKED_AS_FAR_AS_IT_PAYS:
        return _condition(ConditionType.PACKED, Truth.TRUE, reason, message)
    return _condition(ConditionType.PACKED, Truth.FALSE, reason, message)


def _slo_met(board: Board, serving: Serving, chosen: ChosenShape | None, pods: Sequence[ReplicaSeen]) -> Condition:
    slo = serving.slo if chosen is None or serving.slo is not None else chosen.slo
    if slo is None:
        return _condition(ConditionType.SLO_MET, Truth.UNKNOWN, "NoPromise", "There is no promise to keep yet.")
    if chosen is not None and chosen.unreachable is not None:
        message = explain.unreachable(slo, chosen.unreachable)
        return _condition(ConditionType.SLO_MET, Truth.FALSE, "Unreachable", message)
    seen = [
        board.facts.engines[each.name]
        for each in pods
        if each.phase is Phase.READY and not is_leaving(each) and each.name in board.facts.engines
    ]
    observed = (each.key for each in board.facts.running.get(serving.key, ()))
    seen += [board.facts.engines[each] for each in observed if each in board.facts.engines]
    kept = _keeps(slo, seen, board.facts.policy)
    promise = explain.promise(slo)
    if kept is None:
        return Condition(
            type=ConditionType.SLO_MET, truth=Truth.UNKNOWN, reason="TooFewRequests",
            message=f"Not enough requests to tell: {promise}.", yields_to=("Met", "Missed"),
        )  # fmt: skip
    if kept:
        return _condition(ConditionType.SLO_MET, Truth.TRUE, "Met", f"Kept over the last busy window: {promise}.")
    return _condition(ConditionType.SLO_MET, Truth.FALSE, "Missed", f"Not kept over the last busy window: {promise}.")


def _keeps(slo: Slo, engines: Sequence[EngineFacts], policy: Policy) -> bool | None:
    """Whether the worst engine keeps the promise; None while too few requests have finished.

    Engines tell means and 95th percentiles; a 99th percentile is missed if the 95th is, and unknown otherwise.
    """
    windows = [window for each in engines if (window := _window(each, policy)) is not None]
    finished = sum(each.finished * each.seconds for each in windows if not isinstance(each.finished, Missing))
    if finished < policy.min_window_requests:
        return None
    mean = slo.statistic is Statistic.MEAN
    itl = [each.itl_mean if mean else each.itl_p95 for each in windows]
    ttft = [each.ttft_mean if mean else each.ttft_p95 for each in windows]
    known = 0
    for limit, values in ((slo.itl, itl), (slo.ttft, ttft)):
        if limit is None:
            continue
        numbers = [each for each in values if not isinstance(each, Missing)]
        if any(each > limit for each in numbers):
            return False
        known += bool(numbers)
    promised = sum(limit is not None for limit in (slo.itl, slo.ttft))
    return True if known == promised and slo.statistic is not Statistic.P99 else None


def _window(engine: EngineFacts, policy: Policy) -> Traffic | None:
    """The shortest window that is long enough to judge by, else the longest there is."""
    enough = [each for each in engine.windows if each.seconds >= policy.window]
    return enough[0] if enough else (engine.windows[-1] if engine.windows else None)


def _progressing(board: Board, serving: Serving) -> Condition:
    if serving.mode is Mode.SUSPEND:
        message = explain.suspended(len(board.of[serving.key]))
        return _condition(ConditionType.PROGRESSING, Truth.FALSE, Step.SUSPENDED.value, message)
    coming = sum(1 for each in board.of[serving.key] if not board.is_ready(each))
    if serving.mode is Mode.ACTIVE and not is_settled(board, serving.key):
        reason = "Starting" if coming else "Stopping"
        message = "Replicas are starting." if coming else "Replicas are stopping."
        return _condition(ConditionType.PROGRESSING, Truth.TRUE, reason, message)
    return _condition(ConditionType.PROGRESSING, Truth.FALSE, "Settled", "Nothing is starting or stopping.")


def _with_kstatus(progressing: Condition, packed: Condition) -> tuple[Condition, ...]:
    """`progressing`, and what kstatus (Flux, `kubectl apply --wait` of others) reads: there only while True.

    Reconciling while replicas start or stop; Stalled where only an edit of the user's can help.
    """
    if progressing.truth is Truth.TRUE:
        return progressing, replace(progressing, type=ConditionType.RECONCILING)
    if packed.reason in STALLED:
        return progressing, replace(packed, type=ConditionType.STALLED, truth=Truth.TRUE)
    return (progressing,)


def _experiments(board: Board, key: ServingKey) -> list[Experiment]:
    return [each for each in board.experiments.values() if each.serving == key]


def _as_predicted(board: Board, key: ServingKey, last: Experiment | None, outcome: str) -> Condition:
    """Whether the last step brought what was predicted; one that was undone is told for as long as it is remembered.

    `outcome` is what is said of the last one.
    """
    undone = [each for each in _experiments(board, key) if each.undone]
    if undone:
        said = explain.outcome(max(undone, key=lambda each: (each.last_at, each.gpu_uuid)))
        return _condition(ConditionType.AS_PREDICTED, Truth.FALSE, Reason.ROLLED_BACK.value, said)
    if last is None:
        return _condition(ConditionType.AS_PREDICTED, Truth.UNKNOWN, "NoStep", "No step was taken that can be judged.")
    reason = "Measuring" if last.judgement is None else last.judgement.value
    return _condition(ConditionType.AS_PREDICTED, _TRUTHS.get(last.judgement, Truth.UNKNOWN), reason, outcome)


_TRUTHS: Mapping[Judgement | None, Truth] = {Judgement.CONFIRMED: Truth.TRUE, Judgement.MISSED: Truth.FALSE}
