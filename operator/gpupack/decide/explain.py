"""The one place that makes sentences of decisions.

The condition, the event, the log line and `gpupack explain` all print these. Numbers carry their unit and, where they
are believed rather than read, where they come from. Knows words, not rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from gpupack.facts.estimate import Estimate, Source
from gpupack.facts.experiment import Compared, Experiment
from gpupack.facts.observation import Cause, Missing
from gpupack.facts.placement import ChosenShape, PredictedEffect
from gpupack.facts.routing import PoolSeen, PoolState, Routing
from gpupack.facts.serving import Shape, Slo
from gpupack.plan import Reason, Unit, Verdict
from gpupack.units import Seconds, gibibytes, milliseconds, percent

NAMED = 3
"""So many pods are named in one sentence; status lists all."""
CONTAINER_CREATING = "ContainerCreating"
"""All that a pod's status says while its node prepares volumes and claims; the cause is in the pod's events."""
UNREACHABLE = Cause.UNREACHABLE.value
_BELIEVED = {
    Source.CALIBRATED: "predicted",
    Source.ANALYTIC: "predicted",
    Source.DATASHEET: "predicted from datasheets",
    Source.UNVERIFIED: "predicted from unverified numbers",
    Source.ASSUMED: "assumed",
}


def place(subject: str) -> str:
    """A GPU or a slice of one by the beginning of its uuid, anything else as it is."""
    return subject[:12] if subject.startswith(("GPU-", "MIG-")) else subject


def number(value: float, unit: Unit) -> str:
    """A value as a person reads it; ratios in per cent."""
    if unit is Unit.BYTES:
        return f"{gibibytes(value):.1f} GiB"
    if unit is Unit.SECONDS:
        return f"{value:.0f} s" if value >= 10 else f"{milliseconds(value):.4g} ms"
    if unit is Unit.RATIO:
        return f"{percent(value):.0f} %"
    if unit is Unit.TOKENS_PER_SECOND:
        return f"{value:,.0f} tokens/s"
    return f"{value:.4g} {unit.value}".strip()


def estimate(value: Estimate, unit: Unit) -> str:
    """The number, with its source and reach where it is believed rather than read."""
    text = number(value.value, unit)
    if value.source not in _BELIEVED or unit is Unit.BYTES:
        return text
    reach = (value.high - value.low) / 2 / abs(value.value) if value.value else 0.0
    error = f", within {percent(reach):.0f} %" if reach >= 0.005 else ""
    return f"{text} ({_BELIEVED[value.source]}{error})"


def verdict(given: Verdict) -> str:
    """One objection as a sentence: what is, what would have to be, and the gap."""
    where, unit = place(given.subject), given.unit
    seen, limit = estimate(given.observed, unit), number(given.limit.value, unit)
    gap = number(abs(given.margin), unit)
    match given.reason:
        case Reason.DATA_MISSING:
            more = f" and {given.observed.value - 1:.0f} more" if given.observed.value > 1 else ""
            missing = f"Readings of {where} are missing: {given.detail}{more}. Nothing is added or removed meanwhile."
            is_closed = UNREACHABLE in given.detail
            return f"{missing} {_doors(given.subject)}" if is_closed else missing
        case Reason.HELD_BY_OTHERS:
            amount = f" ({seen})" if unit in (Unit.BYTES, Unit.SECONDS) else ""
            mend = next((how for sign, how in _FREED.items() if sign in given.detail), "")
            return f"{where} is held by others: {given.detail}{amount}.{mend}"
        case Reason.ROLLED_BACK:
            return (
                f"One more replica on {where}, or on one like it, was tried and taken back: {given.detail} {seen} where"
                f" {limit} was predicted."
            )
        case Reason.MAX_REPLICAS:
            return f"maxReplicas is {limit.removesuffix(' replicas')}."
        case Reason.DEMAND_MET if unit is Unit.RATIO:
            return f"The load takes {seen} of what the replicas can carry; one more is added above {limit}."
        case Reason.DEMAND_MET:
            who, asked = _ASKED.get(given.detail, "The load asks for"), given.limit.value
            return f"{who} {asked:.0f}, and {asked:.0f} {_are(asked)} planned."
        case Reason.MEMORY if unit is Unit.REPLICAS:
            count = limit.removesuffix(" replicas")
            return (
                f"{where} takes {count} replica: {given.detail}. Install dcgm-exporter, or name its pods in"
                " spec.metrics.dcgm of the GpuPool."
            )
        case Reason.MEMORY:
            return f"One more replica would need {seen} of {limit} on {where}: {gap} too much."
        case Reason.HOST_CPU if unit is Unit.RATIO:
            return (
                f"An engine on the node of {where} {given.detail} {seen} of the time; above {limit} one more would only"
                " slow them."
            )
        case Reason.HOST_CPU:
            return f"One more replica would need {seen} of {limit} on the node of {where}: {gap} too many."
        case Reason.LATENCY_SLO if unit is Unit.RATIO:
            return f"With one more replica on its GPU {where} would get {seen} of the requests that it can serve there."
        case Reason.LATENCY_SLO:
            return f"One more replica would bring the {given.detail} of {where} to {seen}; its limit is {limit}."
        case Reason.BANDWIDTH_CEILING:
            return f"The DRAM traffic of {where} is at {seen} of what its engines can reach; the ceiling is {limit}."
        case Reason.MARGINAL_GAIN if given.detail:
            return (
                f"Requests are dealt evenly, and a replica {where}, of kind {given.detail}, would hold all replicas"
                f" together to {seen} of what they carry now; at least {limit} is asked."
            )
        case Reason.MARGINAL_GAIN:
            return f"One more replica would bring {where} {seen} more throughput; at least {limit} is asked."


_FREED = {
    "which holds the claim of": " Servings that share a GPU belong into one namespace; give each other namespace a"
    " GpuPool of its own (spec.poolName).",
    "MPS does not start": " One engine runs there. See that NVIDIA's container toolkit brings nvidia-cuda-mps-control"
    " into the pod, or set spec.sharing: [Exclusive] in the GpuPool.",
}
"""What a person can do about a holder, by the sign of it."""


def _doors(subject: str) -> str:
    """Which ports have to be open for readings of a serving's engines, or of a GPU."""
    if "/" in subject:
        ports = "port 8000 of its pods, or 8001 and up where engines share one"
    else:
        ports = "port 9400 of dcgm-exporter (spec.metrics.dcgm.port of the GpuPool), or 8080 of the node agent"
    return f"See that the pod runs, and that a NetworkPolicy lets the operator in: {ports}."


_ASKED = {
    "Manual": "spec.replicas asks for",
    "Declared": "The declared load asks for",
    "ClosedLoop": "The clients, whose number is constant, ask for",
    "Missing": "The load that was last known asks for",
    "Asleep": "Nobody waits:",
}


def _are(count: float) -> str:
    return "is" if count == 1 else "are"


def added(
    uuid: str,
    planned: int,
    wanted: int,
    effect: PredictedEffect | None,
    gain: float | None,
    against: Iterable[Verdict],
    at_load: Seconds | None,
) -> str:
    """One more replica was planned: where, why, and what it should bring. `gain` is None for the first on a GPU.

    `at_load` is its inter-token latency at the load to expect, which is what its promise was checked against.
    """
    text = f"Replica {planned} goes to {place(uuid)}; {wanted} {_are(wanted)} wanted."
    if effect is not None and gain is not None:
        text += (
            f" Predicted: {percent(gain):+.0f} % throughput at full batches, saturation"
            f" {percent(effect.saturation_after):.0f} %, inter-token latency {milliseconds(effect.itl_after):.1f} ms"
            + ("." if at_load is None else f", at the load to expect {milliseconds(at_load):.1f} ms.")
        )
    past = [each.reason.value for each in against]
    if past:
        text += f" The manual count goes past {listed(past)}."
    return text


def opened(uuid: str, stops: Iterable[Verdict]) -> str:
    """Why a GPU was opened: none of those in use takes one more."""
    first: dict[str, Verdict] = {}
    for each in stops:
        first.setdefault(each.subject, each)
    told = " ".join(verdict(each) for each in list(first.values())[:3])
    return f"{place(uuid)} is opened because no GPU in use takes one more. {told}".strip()


def removed(uuid: str, left: int, rate: float | None) -> str:
    load = "" if rate is None else f" and predicted to hold {rate:.3g} requests/s"
    return f"A replica on {place(uuid)} is given up; {left} {_are(left)} left{load}."


def falls_asleep(idle: float) -> str:
    return f"Nothing was asked of it for {idle:.0f} s: its last replica is given up. The next request wakes it."


def asleep() -> str:
    return "No replica runs and none is asked for. The next request wakes it."


def woke(seconds: float) -> str:
    return f"Awake {seconds:.1f} s after the first request came."


def nobody_wakes() -> str:
    """A serving that sleeps in a cluster without an activator."""
    return (
        "It sleeps, and no activator is ready to hold its requests and wake it. Bring the activator back, or set"
        " scaling.minReplicas to 1."
    )


def replaced(uuid: str, slot: int) -> str:
    return f"Replica {slot} on {place(uuid)} is replaced: its shape or its pod template has changed."


def moved(old: str, new: str) -> str:
    return f"A replica moves from {place(old)} to {place(new)}: its new content has no place where the old one is."


def seen(basis: str, rate: float | None, utilization: float | None, wanted: int) -> str:
    """What a decision rests on: the load, and how many replicas it asks for."""
    if rate is None:
        return f"{_ASKED.get(basis, 'The load asks for')} {wanted} {_replicas(wanted)}."
    share = "" if utilization is None else f", {percent(utilization):.0f} % of what the replicas can carry"
    return f"{rate:.3g} requests/s{share}; {wanted} {_replicas(wanted)} {_are(wanted)} wanted."


def rejected(against: Iterable[Verdict]) -> str:
    """What was not done instead, each GPU with its first objection; at most three."""
    first: dict[str, Verdict] = {}
    for each in against:
        first.setdefault(each.subject, each)
    return " ".join(verdict(each) for each in list(first.values())[:3])


def expected(experiment: Experiment) -> str:
    """What was predicted of a step before it was taken."""
    gain = "" if experiment.gain is None else f"{percent(experiment.gain):+.0f} % throughput of the GPU, "
    return (
        f"At full batches {gain}DRAM saturation {percent(experiment.saturation):.0f} %, inter-token latency"
        f" {milliseconds(experiment.itl):.1f} ms."
    )


def outcome(experiment: Experiment) -> str:
    """What came of a step, with its numbers, or why nothing can be said yet."""
    what = f"{experiment.step} on {place(experiment.gpu_uuid)}"
    if experiment.judgement is None:
        return f"{what}: it is judged after warm-up. {expected(experiment)}"
    text = f"{what}: {experiment.judgement.value}."
    if experiment.why:
        text = f"{text[:-1]}; {experiment.why}."
    if experiment.undone:
        text = f"{text[:-1]}; it is taken back."
    return f"{text} {' '.join(compared(each) for each in experiment.compared)}".strip()


@lru_cache(maxsize=4096)
def compared(each: Compared) -> str:
    unit = Unit(each.unit)
    return (
        f"{each.what.capitalize() if each.what.islower() else each.what} of {place(each.subject)}:"
        f" {number(each.measured, unit)} measured, {number(each.predicted, unit)} predicted."
    )


def rolled_back(experiment: Experiment, harm: Compared, count: int, seconds: float) -> str:
    """A step that was undone: what it brought, what was predicted, and what follows."""
    what = "The shape before comes back" if experiment.step != "Added" else f"{count} {_replicas(count)} taken back"
    unit = Unit(harm.unit)
    others = [each for each in experiment.compared if each != harm and each.what == "inter-token latency"]
    return (
        f"{what} on {place(experiment.gpu_uuid)}: {harm.what} {number(harm.measured, unit)} measured,"
        f" {number(harm.predicted, unit)} predicted. {' '.join(compared(each) for each in others)} The like is not"
        f" tried for {seconds:.0f} s, unless its load or lengths change by 20 %."
    )


def _replicas(count: float) -> str:
    return "replica" if count == 1 else "replicas"


def given_up(uuid: str, why: str, seconds: float, *, again: bool) -> str:
    """A replica that did not come up was withdrawn; `again` says that the one it was to replace stays."""
    text = f"The replica on {place(uuid)} is withdrawn: {why}. The GPU is not tried again for {seconds:.0f} s."
    return f"{text} The replica that it was to replace stays." if again else text


def no_such_gpu(wish: str, kinds: Iterable[str]) -> str:
    """MIG is for slices, and only there; MPS and MIG are never mixed on a GPU."""
    return f"spec.sharing is {wish}, but the pool has only {', '.join(sorted(kinds))}: MIG takes slices, others GPUs."


def sharing_not_allowed(wish: str, allowed: Iterable[str]) -> str:
    return f"spec.sharing is {wish}, but the pool allows {listed(sorted(allowed)) or 'nothing'}."


def dtype_not_supported(dtype: str, kinds: Iterable[str]) -> str:
    """The whole pool cannot compute in what the user asked for."""
    return f"spec.model.dtype is {dtype}, in which {listed(sorted(kinds))} cannot compute; write float16 or float32."


def advised(chosen: ChosenShape) -> str:
    """What gpupack would do in Advise mode."""
    return (
        f"On {chosen.gpu_kind}: {chosen.shape.max_num_seqs} sequences and"
        f" {gibibytes(chosen.shape.kv_cache_memory_bytes):.1f} GiB of KV cache an engine,"
        f" {chosen.replicas_per_gpu} on a GPU. Nothing is touched."
    )


def appraised(
    kind: str,
    engines: int,
    gpus: int,
    now: Shape,
    better: Shape,
    replicas: int,
    gain: float | None,
    gain_alone: float | None,
    *,
    rate: float | None,
    needed: int | None,
    stop: Verdict,
    slo: Slo,
    unreachable: float | None,
    kept_now: bool,
) -> str:
    """What engines that others started have, what they could have, and what that would bring.

    `rate` is what all of them get, in requests a second; `needed` the GPUs that would carry it. `kept_now`: some load
    lets an engine as it is keep the promise.
    """
    text = [
        f"{counted(engines, 'engine')} on {gpus} {kind}: now up to {now.max_num_seqs} sequences and"
        f" {gibibytes(now.kv_cache_memory_bytes):.1f} GiB of KV cache each.",
        f"Better {better.max_num_seqs} and {gibibytes(better.kv_cache_memory_bytes):.1f} GiB,"
        f" {counted(replicas, 'engine')} on a GPU.",
    ]
    if unreachable is not None:
        text.append(f"No batch keeps {promise(slo)}; the best reachable is {milliseconds(unreachable):.4g} ms.")
    elif gain is not None:
        alone = f"; {percent(gain_alone):+.0f} % with the best single engine" if gain_alone and replicas > 1 else ""
        text.append(
            f"Predicted: {percent(gain):+.0f} % throughput of a GPU at the same promise ({promise(slo)}){alone}."
        )
    elif not kept_now:
        text.append(f"As it is, an engine keeps {promise(slo)} at no load.")
    if rate is not None and needed is not None:
        text.append(f"The {rate:.3g} requests/s of now need {needed} of the {counted(gpus, 'GPU')}.")
    return " ".join([*text, f"No further engine: {verdict(stop)}", "Nothing is touched."])


def no_engine() -> str:
    return "No pod matches spec.observe.selector."


def not_judged(pods: Sequence[tuple[str, str]]) -> str:
    """Pods that could not be judged, each with its reason; the first few."""
    told = [f"{pod}: {why}." for pod, why in pods[:NAMED]]
    more = len(pods) - len(told)
    return " ".join([*told, f"{more} more pods cannot be judged."] if more > 0 else told)


def spans_gpus(count: int) -> str:
    return f"it runs over {count} GPUs, and only engines on one GPU can be judged"


def unknown_kind(node: str) -> str:
    return f"nothing tells which kind of GPU it has on node {node or '(none yet)'}"


def tells_nothing(flag: str) -> str:
    return f"it was started with {flag}, so it tells no metrics"


def not_asked_yet() -> str:
    return "it has not been asked for its metrics yet"


def unread(missing: Missing, address: str) -> str:
    """Why an engine's metrics are not there."""
    match missing.cause:
        case Cause.UNREACHABLE:
            return f"nothing answers http://{address}/metrics"
        case Cause.NO_SERIES:
            return f"http://{address}/metrics does not show {missing.origin}"
        case Cause.STALE:
            return f"the numbers at http://{address}/metrics stand still"
        case _:
            return f"{missing.origin} at http://{address}/metrics is {missing.cause.value}"


def another_model(served: str, wanted: str) -> str:
    return f"it serves {served}, not {wanted}"


def suspended(planned: int) -> str:
    replicas = "1 replica keeps its place" if planned == 1 else f"{planned} replicas keep their places"
    return f"spec.mode is Suspend: nothing is started, stopped or changed; {replicas}."


def moved_away(old: str, new: str, why: str) -> str:
    return f"A replica moves from {place(old)} to {place(new)}: {why}."


def mps_lost(uuid: str, why: str) -> str:
    """A fault of the MPS server is one of all its clients."""
    return f"All engines on {place(uuid)} start again, one after another, because they lost MPS: {why}."


def host_lost(uuid: str) -> str:
    return f"The pod of the engines on {place(uuid)} is lost; it is made again, and they start in it one after another."


def engine_too_old(engines: Iterable[tuple[str, str]], oldest: str) -> str:
    """Engines that run, each with the version that it tells."""
    told = ", ".join(f"{name} (vLLM {version})" for name, version in engines)
    return (
        f"Older than vLLM {oldest} by their own account: {told}. Their metrics may not be what gpupack takes them for."
        " Take an image of a newer vLLM."
    )


def engine_refused(why: str, seconds: float) -> str:
    return (
        f"The engine's image does not take what it is started with: {why.rstrip('.')}. It is not started again for"
        f" {seconds:.0f} s, unless spec.engine changes: set version to the vLLM of the image, or take another image."
    )


def faulty(why: Iterable[tuple[str, str]]) -> str:
    """GPUs that are left alone, each with what it told."""
    return " ".join(f"{place(uuid)}: {each}." for uuid, each in why)


def unknown_products(products: Iterable[str]) -> str:
    """GPUs that are there and cannot be planned for: there are no datasheet numbers of them."""
    return f"The catalog does not have {listed(products)}: left alone. `gpupack catalog` lists what it has."


REFUSALS = ("Unreachable", "CertificateNotTrusted", "Unauthorized", "QueryRefused", "NoCredentials")
"""Reasons that a Prometheus gives nothing."""
_UNMEASURED = {
    Cause.NO_SERIES: "Nothing exports the DRAM activity of {gpus}: packing stops there at a predicted saturation of"
    " {ceiling} %. Install dcgm-exporter with DCGM_FI_PROF_DRAM_ACTIVE, switch on the node agent (agent.enabled in the"
    " chart), or name a Prometheus in spec.metrics.prometheus.",
    Cause.UNREACHABLE: "The source of {gpus} does not answer. Look whether the exporter is ready, and whether a network"
    " policy keeps the operator from its port.",
    Cause.STALE: "The last readings of {gpus} are too old. Look why they stopped, or set periodSeconds of the source to"
    " what it really does.",
    Cause.NOT_FINITE: "The source of {gpus} gives no number. Another profiler may hold the GPU's counters; end it, or"
    " restart the exporter.",
    Cause.ABSURD: "The source of {gpus} shows more than all the traffic there can be, so it is in another unit. Mend"
    " what renames or rescales the series; a query of yours must give a ratio of 0 to 1.",
    Cause.TOO_COARSE: "The memory of {gpus} is busy all the time, and a counter of time cannot tell how much more it"
    " could move. Install dcgm-exporter, which counts traffic.",
    Cause.NO_SCALE: "The counter of {gpus} tells of time and not of traffic. Its scale is measured in the first minutes"
    " of load.",
    Cause.UNAUTHORIZED: "So {gpus} cannot be measured.",
    Cause.REFUSED: "So {gpus} cannot be measured.",
}
_NAMED = 3


def gpus_measured(counters: Iterable[str]) -> str:
    return f"The DRAM traffic of every GPU is read: {listed(counters)}."


def not_in_use() -> str:
    return "A MIG slice, and a GPU that a device plugin gives out, is measured once an engine has it; none has yet."


def gpus_looked_at() -> str:
    return "The sources are being looked at."


def gpus_unmeasured(cause: Cause, uuids: Sequence[str], ceiling: float) -> str:
    """What is wrong with the readings of these GPUs and what to do."""
    named = [place(each) for each in uuids[:_NAMED]]
    if len(uuids) > _NAMED:
        named.append(f"{len(uuids) - _NAMED} more")
    sentence = _UNMEASURED.get(cause, "The readings of {gpus} are missing.")
    return sentence.format(gpus=listed(named), ceiling=f"{percent(ceiling):.0f}")


def no_pool(name: str) -> str:
    return f"There is no GpuPool {name!r}. Create it, or name another in spec.poolName."


def no_gpu() -> str:
    return "The pool has no GPU that can be used; `gpupack doctor` tells what is missing."


def too_large() -> str:
    """What stands beside the memory verdict of a replica that no neighbour is in the way of."""
    return (
        "Not even one fits: take a smaller model, a shorter spec.model.maxModelLen, or a pool with more memory a GPU."
    )


_NO_SECRET = "CreateContainerConfigError"
"""The kubelet's reason where a container's environment names a Secret, or a key in it, that is not there."""
_MEND_SECRET = (
    " Create it in the namespace of the ModelServing, with the key that spec.model.tokenSecretRef or"
    " spec.engine.apiKeySecretRef names, or mend the name there; the kubelet goes on by itself."
)


def waits_for(pod: str, message: str) -> str:
    """What a replica that is not ready waits for, in Kubernetes' or the container's own words."""
    if message == CONTAINER_CREATING:
        return f"{pod} waits for its node: `kubectl describe pod {pod}` tells for what."
    return f"{pod}: {message.rstrip('.')}.{_MEND_SECRET if _NO_SECRET in message and 'ecret' in message else ''}"


def waits() -> str:
    return "Waiting for the first decision."


def promise(slo: Slo) -> str:
    """The SLO in words: `inter-token latency P95 40 ms`."""
    parts = []
    if slo.itl is not None:
        parts.append(f"inter-token latency {slo.statistic.value} {milliseconds(slo.itl):.4g} ms")
    if slo.ttft is not None:
        parts.append(f"time to first token {slo.statistic.value} {milliseconds(slo.ttft):.4g} ms")
    return listed(parts) + (" (assumed)" if slo.assumed else "")


def unreachable(slo: Slo, best: float) -> str:
    return (
        f"No batch keeps {promise(slo)}; the best reachable is {milliseconds(best):.4g} ms, which is what runs. Ask for"
        " at least that in spec.slo, or use GPUs with more memory bandwidth."
    )


def mismatch(engines: Iterable[str], planned: int) -> str:
    """Engines whose cache_config_info shows other blocks than were planned."""
    return f"{listed(engines)} did not take the {planned} KV cache blocks that were planned."


def goes_past(reasons: Iterable[Reason]) -> str:
    return f"At full batches the manual count goes past {listed(each.value for each in reasons)}."


def ready(count: int, planned: int) -> str:
    return f"{count} of {planned} replicas ready."


def counted(count: int, noun: str) -> str:
    """`1 engine`, `2,000 engines`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(parts: Iterable[str]) -> str:
    """`a, b and c`."""
    *most, last = list(parts) or [""]
    return f"{', '.join(most)} and {last}" if most else last


def pool_waits() -> str:
    return "The InferencePool is written with the next look at the pool."


def no_pool_in_advise_mode() -> str:
    return "In Advise mode no InferencePool is written."


def pool_written(name: str, ports: Sequence[int], left_out: int, routing: Routing) -> str:
    where = f"port{'' if len(ports) == 1 else 's'} {listed(str(port) for port in ports)}"
    text = f"InferencePool {name} leads to {where}; its endpoint picker is Service {routing.picker}:{routing.port}."
    if left_out:
        further = counted(left_out, "engine")
        text += f" {further} at further ports get nothing through it: an InferencePool has room for eight ports."
    return text


def pool_not_written(seen: PoolSeen) -> str:
    match seen.state:
        case PoolState.NOT_INSTALLED:
            return (
                "The cluster knows no InferencePool of inference.networking.k8s.io/v1. Install the CRDs of the Gateway"
                " API Inference Extension: `kubectl apply -f https://github.com/kubernetes-sigs/"
                "gateway-api-inference-extension/releases/latest/download/manifests.yaml`. It is tried again by itself."
            )
        case PoolState.NOT_ALLOWED:
            return (
                "The operator may not write InferencePools. Set `rbac.inferencePools: true` in the chart's values, or"
                " `kubectl apply -f deploy/inference-pools.yaml`. Meanwhile the Service serves."
            )
        case PoolState.UNWANTED:
            return "spec.routing asks for no InferencePool any more; the one that is there is being deleted."
        case _:
            return f"The API server refuses the InferencePool: {seen.problem}"
