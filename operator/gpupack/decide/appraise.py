"""What vLLM engines that gpupack did not start could be instead: the advisor asked with their own traffic.

Nothing is planned here and nothing touched. Knows what each engine says of itself and what the model says of its GPU,
not how its pods are found. An appraisal stands until the engines, what is known of them or the question change, or
until measured figures have moved far enough over a longest window; so that a status is not rewritten at every tick.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from gpupack.decide import explain
from gpupack.decide.advise import Advice, advise
from gpupack.decide.pack import sharing_of
from gpupack.decide.prospect import coefficients_of, measured_lengths
from gpupack.decide.question import Question, resolve_max_model_len
from gpupack.facts.gpu import GpuKind
from gpupack.facts.interpretation import EngineFacts, Facts, Known, Traffic
from gpupack.facts.observation import Missing
from gpupack.facts.policy import Policy
from gpupack.facts.running import Appraisal, Better, EngineFound, RunningEngine
from gpupack.facts.serving import BLOCK_TOKENS, Lengths, Serving, Shape, Sharing, Slo
from gpupack.perf import sharing
from gpupack.perf.memory import DEFAULT_UTILIZATION, default_shape
from gpupack.perf.prediction import EngineGroup, GpuPrediction
from gpupack.units import Bytes, PerSecond, Ratio, Seconds

MOVED = 0.2
"""A measured figure that moved by no more than this share is the same."""
FULL_WINDOW = 0.9
_RELEASE = re.compile(r"\d+\.\d+")
_LOCAL = ("/", ".", "~", "s3:", "gs:", "oci:")
"""How a model's path begins that names no model."""


def appraise(facts: Facts, serving: Serving) -> Appraisal:
    """The appraisal that stands, or a new one where that is due."""
    old = facts.appraisals.get(serving.key)
    running = facts.running.get(serving.key, ())
    engines = tuple(_found(each, serving, facts) for each in running)
    judged = [(each, found) for each, found in zip(running, engines, strict=True) if found.problem is None]
    lengths = _lengths(serving, facts, (each for each, _ in judged))
    inputs = _digest(serving, running, engines, facts, live=lengths != serving.lengths)
    if old is not None and old.inputs == inputs and not _is_due(old, engines, facts):
        return old
    groups: dict[str, list[tuple[RunningEngine, EngineFound]]] = defaultdict(list)
    for engine, found in judged:
        assert found.gpu_kind is not None
        groups[found.gpu_kind].append((engine, found))
    better = tuple(_better(serving, facts, lengths, groups[kind]) for kind in sorted(groups))
    return Appraisal(serving=serving.key, at=facts.at, inputs=inputs, engines=engines, better=better)


def _found(engine: RunningEngine, serving: Serving, facts: Facts) -> EngineFound:
    seen, flags, kind = facts.engines.get(engine.key), engine.flags, engine.kind
    found = EngineFound(
        pod=engine.pod,
        node=engine.node,
        gpu_uuid=engine.gpu_uuid,
        gpu_kind=None if kind is None else kind.name,
        max_num_seqs=flags.max_num_seqs,
        gpu_memory_utilization=flags.gpu_memory_utilization,
        problem=engine.problem or _problem(engine, serving, seen),
    )
    if seen is None or kind is None or found.problem is not None:
        return found
    shape, window = _shape_now(engine, serving, kind, seen), _longest(seen)
    found = replace(
        found,
        version=seen.version,
        max_num_seqs=shape.max_num_seqs,
        gpu_memory_utilization=flags.gpu_memory_utilization or DEFAULT_UTILIZATION,
        kv_cache_memory_bytes=shape.kv_cache_memory_bytes,
    )
    if window is None:
        return found
    return replace(
        found,
        running=_number(window.running_mean),
        requests_per_second=_rate(window.arrivals),
        itl_mean=_seconds(window.itl_mean),
        itl_p95=_seconds(window.itl_p95),
    )


def _problem(engine: RunningEngine, serving: Serving, seen: EngineFacts | None) -> str | None:
    """Why this engine cannot be judged, in the order in which a person would look."""
    flags = engine.flags
    if flags.gpus > 1:
        return explain.spans_gpus(flags.gpus)
    if engine.kind is None:
        return explain.unknown_kind(engine.node)
    if not flags.tells_metrics:
        return explain.tells_nothing("--disable-log-stats")
    if seen is None:
        return explain.not_asked_yet()
    if isinstance(seen.running, Missing):
        return explain.unread(seen.running, engine.address or "")
    names = {name.rpartition("/")[2].lower() for name in (serving.llm.name, *serving.llm.aliases)}
    for root in seen.served:
        is_id = "/" in root and not root.startswith(_LOCAL)
        if is_id and root.rpartition("/")[2].lower() not in names:
            return explain.another_model(root, serving.llm.name)
    return None


def _shape_now(engine: RunningEngine, serving: Serving, kind: GpuKind, seen: EngineFacts) -> Shape:
    """What the engine has: its arguments, vLLM's defaults for what they leave out, and the KV cache that it made."""
    flags = engine.flags
    shape = default_shape(
        serving.llm,
        serving.dtype,
        kind,
        utilization=flags.gpu_memory_utilization or DEFAULT_UTILIZATION,
        max_num_seqs=flags.max_num_seqs,
        max_num_batched_tokens=flags.max_num_batched_tokens,
        max_model_len=flags.max_model_len,
        chunked_prefill=flags.chunked_prefill is not False,
    )
    blocks = _number(seen.kv_blocks)
    if blocks is not None:
        block = (flags.block_tokens or BLOCK_TOKENS) * serving.llm.kv_bytes_per_token(serving.dtype)
        return replace(shape, kv_cache_memory_bytes=Bytes(round(blocks) * block))
    if flags.kv_cache_memory_bytes is not None:
        return replace(shape, kv_cache_memory_bytes=flags.kv_cache_memory_bytes)
    return shape


def _lengths(serving: Serving, facts: Facts, engines: Iterable[RunningEngine]) -> Lengths:
    live = measured_lengths(serving.lengths, (facts.engines[each.key] for each in engines))
    return serving.lengths if live is None else live


def _digest(
    serving: Serving,
    running: Sequence[RunningEngine],
    engines: Sequence[EngineFound],
    facts: Facts,
    *,
    live: bool,
) -> str:
    """Ten hex digits over the question, who is there, and what is known of them; not over the figures themselves."""
    declared = (
        serving.llm, serving.dtype.value, serving.max_model_len, serving.lengths, serving.slo, serving.batching,
        serving.profile, serving.sharing.value, serving.cpu_cores, serving.engine_version,
    )  # fmt: skip
    known = [
        (each.identity, each.flags, found.gpu_uuid, found.gpu_kind, found.version, found.problem,
         found.kv_cache_memory_bytes, found.running is None, found.itl_mean is None,
         _is_full(facts.engines.get(each.key), facts.policy))
        for each, found in zip(running, engines, strict=True)
    ]  # fmt: skip
    return hashlib.sha256(repr((declared, known, live)).encode()).hexdigest()[:10]


def _is_full(seen: EngineFacts | None, policy: Policy) -> bool:
    """Whether the longest window has filled, so that figures stand on all of it."""
    window = None if seen is None else _longest(seen)
    return window is not None and window.seconds >= FULL_WINDOW * policy.rate_windows[-1]


def _is_due(old: Appraisal, engines: Sequence[EngineFound], facts: Facts) -> bool:
    if facts.at - old.at < facts.policy.rate_windows[-1]:
        return False
    return any(
        _moved(getattr(before, name), getattr(now, name))
        for before, now in zip(old.engines, engines, strict=True)
        for name in ("running", "requests_per_second", "itl_mean")
    )


def _moved(before: float | None, now: float | None) -> bool:
    if before is None or now is None:
        return before is not now
    return abs(now - before) > MOVED * max(abs(before), abs(now))


def _better(
    serving: Serving, facts: Facts, lengths: Lengths, group: Sequence[tuple[RunningEngine, EngineFound]]
) -> Better:
    """The advisor's answer for the engines on one kind of GPU, beside what they have now."""
    kind = group[0][0].kind
    assert kind is not None
    shapes = Counter(_shape_now(each, serving, kind, facts.engines[each.key]) for each, _ in group)
    now = max(shapes, key=lambda each: (shapes[each], each.max_num_seqs, each.kv_cache_memory_bytes))
    question = _question(serving, facts, lengths, kind, group)
    advice = advise(question)
    gpus = Counter(each.gpu_uuid or each.key for each, _ in group)
    alone = max(gpus.values()) == 1
    before = _at_promise(question, advice.slo, now) if alone else None
    gain = _gain(advice, before)
    lone = advice if advice.replicas_per_gpu == 1 else advise(replace(question, max_replicas=1))
    gain_alone = _gain(lone, before)
    rates = [found.requests_per_second for _, found in group if found.requests_per_second is not None]
    total = None if len(rates) < len(group) else sum(rates)
    needed = _gpus_needed(total, advice, facts.policy)
    return Better(
        gpu_kind=kind.name,
        engines=len(group),
        shape=advice.shape,
        replicas_per_gpu=advice.replicas_per_gpu,
        utilization_hundredths=advice.utilization_hundredths,
        freed_bytes=now.kv_cache_memory_bytes - advice.shape.kv_cache_memory_bytes,
        gain=gain,
        gain_alone=gain_alone,
        gpus_now=len(gpus),
        gpus_needed=needed,
        message=explain.appraised(
            kind.name, len(group), len(gpus), now, advice.shape, advice.replicas_per_gpu, gain, gain_alone,
            rate=total, needed=needed, stop=advice.stop, slo=advice.slo,
            unreachable=None if advice.unreachable is None else advice.unreachable.value,
            kept_now=not alone or before is not None,
        ),
    )  # fmt: skip


def _question(
    serving: Serving,
    facts: Facts,
    lengths: Lengths,
    kind: GpuKind,
    group: Sequence[tuple[RunningEngine, EngineFound]],
) -> Question:
    versions = Counter(found.version for _, found in group if found.version and _RELEASE.match(found.version))
    version = max(versions, key=lambda each: (versions[each], each), default=serving.engine_version)
    limits = [each.flags.max_model_len for each, _ in group if each.flags.max_model_len is not None]
    wish = serving.max_model_len if serving.max_model_len is not None or not limits else max(limits)
    nodes = {each.node for each, _ in group}
    return Question(
        llm=serving.llm,
        dtype=serving.dtype,
        gpu=kind,
        lengths=lengths,
        slo=serving.slo,
        batching=serving.batching,
        sharing=sharing_of(serving, facts.policy) or Sharing.EXCLUSIVE,
        max_model_len=resolve_max_model_len(serving.llm, lengths, wish),
        coefficients=coefficients_of(replace(serving, engine_version=version), kind),
        policy=facts.policy,
        cpu_cores=serving.cpu_cores,
        node_cores=max((facts.nodes[node].cpu_cores for node in nodes if node in facts.nodes), default=None),
    )


def _at_promise(question: Question, slo: Slo, shape: Shape) -> GpuPrediction | None:
    """The GPU with one engine of this shape at the highest load that keeps the promise; None if no load does."""
    group = EngineGroup(
        llm=question.llm,
        dtype=question.dtype,
        shape=shape,
        lengths=question.lengths,
        replicas=1,
        request_rate=None,
        coefficients=question.coefficients,
    )
    reserve = question.policy.gpu_reserve
    full = sharing.predict(question.gpu, (group,), Sharing.EXCLUSIVE, reserve)
    if sharing.keeps(full.groups[0], slo):
        return full
    rate = sharing.max_rate_within(question.gpu, (group,), 0, (slo,), Sharing.EXCLUSIVE)
    if rate <= 0.0:
        return None
    return sharing.predict(question.gpu, (replace(group, request_rate=rate),), Sharing.EXCLUSIVE, reserve)


def _gain(advice: Advice, before: GpuPrediction | None) -> Ratio | None:
    """How much more the GPU would do as advised; both at the highest load that keeps the promise."""
    if before is None or not advice.fits or advice.unreachable is not None:
        return None
    return Ratio(advice.prediction.total_tokens_per_second / before.total_tokens_per_second - 1.0)


def _gpus_needed(rate: float | None, advice: Advice, policy: Policy) -> int | None:
    """GPUs of the advised engines that carry these arrivals at the target utilisation; at least one."""
    if rate is None or not advice.fits or advice.unreachable is not None:
        return None
    carried = advice.replica_rate * advice.replicas_per_gpu * policy.target_utilization
    return max(1, math.ceil(rate / carried))


def _longest(seen: EngineFacts) -> Traffic | None:
    return seen.windows[-1] if seen.windows else None


def _number(known: Known) -> float | None:
    return None if isinstance(known, Missing) else known


def _rate(known: Known) -> PerSecond | None:
    return None if isinstance(known, Missing) else PerSecond(known)


def _seconds(known: Known) -> Seconds | None:
    return None if isinstance(known, Missing) else Seconds(known)
