"""What each word of a decision and of a condition means, and what a person can do about it.

`gpupack explain` prints the advice under the decision, and the page "How to read a decision" is made of all of it, so a
word that has no meaning here fails a test. Knows words, not rules and not numbers: those are in `explain`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpupack.plan import ConditionType, Reason, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """`means` is what is so; `do` what to do, empty where nothing is to be done."""

    means: str
    do: str = ""


REASONS: Mapping[Reason, Meaning] = {
    Reason.DATA_MISSING: Meaning(
        means="A reading that is needed is absent, stale or no number. Nothing is added or removed meanwhile.",
        do="If an engine is named, see that nothing (a NetworkPolicy, --disable-log-stats) keeps the operator from"
        " /metrics on port 8000 of its pods; if a GPU is named, the same for dcgm-exporter on port 9400."
        " `gpupack doctor` asks every exporter from outside.",
    ),
    Reason.HELD_BY_OTHERS: Meaning(
        means="Somebody else has the GPU: a pod with an extended resource, a claim, memory that gpupack's pods do not"
        " explain, a serving that runs alone, or another namespace, which cannot share a claim.",
        do="Wait for the holder to go, free the GPU, or give the pool more of them. Servings that are to share GPUs"
        " belong into one namespace; give each other namespace a GpuPool of its own.",
    ),
    Reason.ROLLED_BACK: Meaning(
        means="One more replica like this was tried, did harm and was taken back; it is remembered for a while.",
        do="Nothing. It is tried again after times.rememberUndoneSeconds, or when the load or its lengths change by a"
        " fifth. status.experiment has the numbers.",
    ),
    Reason.MAX_REPLICAS: Meaning(
        means="spec.scaling.maxReplicas replicas are planned.",
        do="Raise spec.scaling.maxReplicas if more may run.",
    ),
    Reason.DEMAND_MET: Meaning(means="The replicas that are planned carry the load. The usual end of a decision."),
    Reason.MEMORY: Meaning(
        means="The GPU has no memory for one more replica of this shape, or nobody can tell how much of it is free.",
        do="Not even one fits: take a smaller model, a shorter spec.model.maxModelLen, or GPUs with more memory."
        " No framebuffer reading: install dcgm-exporter, or name its pods in spec.metrics.dcgm of the GpuPool."
        " Otherwise the GPU is simply full, and another one is opened if the pool has one.",
    ),
    Reason.HOST_CPU: Meaning(
        means="The node has too few cores left for one more engine, or engines there are measured to wait for cores.",
        do="Too few left: lower spec.engine.cpu (an engine uses one core and a half), move other pods away, or use"
        " nodes with more. Held at its CPU limit: raise spec.engine.cpu. Waits for a core: somebody else on the node"
        " takes more than it requests; let the kubelet give whole cores away (--cpu-manager-policy=static).",
    ),
    Reason.LATENCY_SLO: Meaning(
        means="One more replica would break the promise of an engine on that GPU, its own or a neighbour's.",
        do="Nothing, if the promise is meant. A looser spec.slo of the serving named there allows more engines a GPU.",
    ),
    Reason.BANDWIDTH_CEILING: Meaning(
        means="The GPU's DRAM moves nearly as much as this mix of engines can make it move: what packing is for.",
        do="Nothing: the next replica goes to another GPU.",
    ),
    Reason.MARGINAL_GAIN: Meaning(
        means="One more replica would add too little throughput to be worth its memory, or, on a much slower GPU, keep"
        " so many requests waiting that all replicas together carry less.",
        do="Nothing: the next replica goes to another GPU. limits.leastMarginalGainPercent of the GpuPool is the bar.",
    ),
}

STEPS: Mapping[Step, Meaning] = {
    Step.ADDED: Meaning(means="One more replica was planned; the message says where and what it should bring."),
    Step.REMOVED: Meaning(means="A replica that the load no longer needs was given up; the others hold the load."),
    Step.ASLEEP: Meaning(
        means="scaling.minReplicas is 0 and nothing was asked for scaling.idleSeconds: no replica runs. The activator"
        " holds the next request and wakes the serving.",
        do="Nothing. status.wake has how long it took the last time; scaling.minReplicas: 1 keeps it awake.",
    ),
    Step.REPLACED: Meaning(means="A replica makes room for one of the present shape or pod template, one at a time."),
    Step.MOVED: Meaning(
        means="A replica goes to another GPU: its node is cordoned, its GPU is unwell, or its shape does not fit."
    ),
    Step.WITHDRAWN: Meaning(
        means="A replica did not come up and was taken out of the plan; its GPU is left alone for a while.",
        do="The message ends with what the container or the scheduler said. An argument that vLLM does not know means"
        " an image older than spec.engine.version says; 401 or 403 means the token of spec.model.tokenSecretRef;"
        " Pending for long means a claim that cannot be allocated (is the driver's MPSSupport gate on?).",
    ),
    Step.ADVISED: Meaning(
        means="mode is Advise: the message says what would run. Nothing is touched.",
        do="Set spec.mode: Active to let gpupack do it.",
    ),
    Step.NO_ENGINE: Meaning(
        means="spec.observe selects no pod, or none that can be judged.",
        do="Compare spec.observe.selector with the pods' labels; both must be in one namespace. A pod that cannot be"
        " judged is named with the cause.",
    ),
    Step.SUSPENDED: Meaning(
        means="mode is Suspend: everything of this serving stays as it is.",
        do="Set spec.mode: Active to go on.",
    ),
    Step.GOES_PAST: Meaning(
        means="The count is yours (scaling.mode Manual) and more than gpupack would run.",
        do="Nothing, if it is meant. The message names what it goes past.",
    ),
    Step.SHARING_NOT_ALLOWED: Meaning(
        means="The serving asks for a sharing that its pool does not allow.",
        do="Set spec.sharing: Auto, or allow it in spec.sharing of the GpuPool.",
    ),
    Step.DTYPE_NOT_SUPPORTED: Meaning(
        means="No GPU of the pool can compute in spec.model.dtype (a T4 has no bfloat16).",
        do="Set spec.model.dtype: float16, or use a pool of newer GPUs.",
    ),
    Step.ENGINE_REFUSED: Meaning(
        means="The engine's image does not take what gpupack starts it with; it was tried once and is not tried again.",
        do="The message ends with what the container said. Set spec.engine.version to the vLLM of the image, or take"
        " another image; either is tried at once. Or it does not know one of spec.engine.args.",
    ),
    Step.MPS_LOST: Meaning(
        means="The MPS server of a GPU is gone. Its clients cannot go on without it: all are started again, in order.",
        do="Nothing, if it is once. If it comes again, look for the engine that ends first in the log of their pod, and"
        " for XIDs of the GPU.",
    ),
    Step.HOST_LOST: Meaning(
        means="The pod in which the engines of a GPU live was taken away; it is made again with all of them.",
        do="Nothing, if somebody deleted it. Else look at the events of its node.",
    ),
    Step.NO_GPU: Meaning(
        means="The pool selects no GPU that gpupack knows and can use.",
        do="Run `gpupack doctor`: it tells whether a driver publishes GPUs and whether the catalog knows them. Then"
        " compare spec.nodeSelector, gpuProducts and gpuUuids of the GpuPool with `kubectl get nodes,resourceslices`.",
    ),
}

CONDITIONS: Mapping[ConditionType, str] = {
    ConditionType.ACCEPTED: "Whether the spec can be carried out at all.",
    ConditionType.READY: "Of a ModelServing: at least one replica serves. Of a GpuPool: it can decide.",
    ConditionType.PACKED: "Whether everything that the load asks for has a place, as far as it pays.",
    ConditionType.SLO_MET: "Whether the promise was kept over the last busy window, by the engines' own histograms.",
    ConditionType.PROGRESSING: "Whether replicas are starting or stopping.",
    ConditionType.RECONCILING: "Only there, and True, while replicas start or stop; for kstatus, which Flux reads.",
    ConditionType.STALLED: "Only there, and True, while only a person can help; for kstatus, which Flux reads.",
    ConditionType.AS_PREDICTED: "Whether the last step brought what was predicted of it.",
    ConditionType.ENGINE_SUPPORTED: "Only there, and False, while an engine tells a version of vLLM that is too old."
    " It is not stopped for that.",
    ConditionType.GPUS_MEASURED: "Of a GpuPool: whether a counter of DRAM traffic is read of every GPU, or why not and"
    " what to do. Nothing that runs is touched while it is False.",
    ConditionType.GPUS_KNOWN: "Of a GpuPool: whether the catalog has every GPU that it selects.",
    ConditionType.BACKEND_CHOSEN: "Of a GpuPool: the way in which engines come to share its GPUs, and why no other. It"
    " follows from what the nodes offer; nothing is to be set for it.",
    ConditionType.GPUS_HEALTHY: "Of a GpuPool: only there, and False, while a GPU has told a fault of its own.",
    ConditionType.INFERENCE_POOL_WRITTEN: "Only there where spec.routing names an endpoint picker: whether its"
    " InferencePool stands.",
}

STATES: Mapping[ConditionType, Mapping[str, Meaning]] = {
    ConditionType.ACCEPTED: {
        "Accepted": Meaning(means="It can."),
        "Invalid": Meaning(
            means="The message names the field, what is wrong, and what is accepted. What runs is left alone.",
            do="Mend the field; the next tick sees it.",
        ),
        "PoolNotFound": Meaning(
            means="There is no GpuPool of the name in spec.poolName (`default` unless given).",
            do="`kubectl apply -f deploy/gpupool.yaml` makes the default one.",
        ),
        "Refused": Meaning(
            means="Of a GpuPool: it shares GPUs with an older pool, or selects more than 512.",
            do="Narrow spec.nodeSelector, gpuProducts or gpuUuids of the younger pool.",
        ),
    },
    ConditionType.READY: {
        "Serving": Meaning(means="Requests are answered."),
        "EngineMismatch": Meaning(
            means="Requests are answered, but an engine has other KV cache blocks than were planned.",
            do="See engine.args and env for what changes vLLM's KV cache, and spec.engine.version for a wrong version.",
        ),
        "Starting": Meaning(
            means="No replica serves yet; one is coming. The message says what the first one waits for.",
            do="Loading takes minutes at first. A missing Secret, an image that cannot be pulled and a claim that no"
            " node takes are named in the message.",
        ),
        "NotPlaced": Meaning(means="No replica has a place; the condition Packed says why."),
        "Asleep": Meaning(means="No replica runs, and the next request wakes it: it can be asked."),
        "NoActivator": Meaning(
            means="It sleeps, and no activator is ready to hold its requests and wake it.",
            do="Bring the activator back (activator.enabled in the chart), or set scaling.minReplicas to 1.",
        ),
        "AdviseOnly": Meaning(means="In Advise mode nothing is started.", do="Set spec.mode: Active."),
        "Suspended": Meaning(means="Frozen by spec.mode: Suspend before a replica served."),
        "Invalid": Meaning(means="See Accepted."),
        "PoolNotFound": Meaning(means="See Accepted."),
        "Deciding": Meaning(means="Of a GpuPool: all is known."),
        "DataMissing": Meaning(
            means="Of a GpuPool: what the API server tells is too old to be trusted; everything stays as it is.",
            do="See whether the API server answers, and the operator's log.",
        ),
        "NoGpu": Meaning(means="Of a GpuPool: it has no GPU.", do="Run `gpupack doctor`."),
        "Refused": Meaning(means="Of a GpuPool: see Accepted."),
    },
    ConditionType.PACKED: {
        "Waiting": Meaning(means="Nothing was decided yet."),
        "NotNeeded": Meaning(means="One replica carries the load; there is nothing to pack. A good end."),
        "Invalid": Meaning(means="See Accepted."),
    },
    ConditionType.SLO_MET: {
        "Met": Meaning(means="Kept by every engine."),
        "Missed": Meaning(
            means="Broken by at least one engine.",
            do="If Packed is False, see why there is no room. If the status says Inconclusive or Missed for the last"
            " step, gpupack judges it already.",
        ),
        "Unreachable": Meaning(
            means="No batch limit keeps the promise on these GPUs, not even of a lone engine; the best reachable runs.",
            do="Ask for at least the figure in the message, or use GPUs with more memory bandwidth.",
        ),
        "NoPromise": Meaning(means="No shape was chosen yet, so there is no assumed promise either."),
        "TooFewRequests": Meaning(means="Fewer than times.minWindowRequests requests finished in a window."),
        "Invalid": Meaning(means="See Accepted."),
    },
    ConditionType.PROGRESSING: {
        "Starting": Meaning(means="Replicas are starting."),
        "Stopping": Meaning(means="Replicas are draining or stopping."),
        "Settled": Meaning(means="Nothing moves."),
        "Suspended": Meaning(means="Frozen by spec.mode: Suspend."),
        "Invalid": Meaning(means="See Accepted."),
    },
    ConditionType.AS_PREDICTED: {
        "Confirmed": Meaning(means="It did, within the tolerance."),
        "Missed": Meaning(means="It did not. If it did harm, it is taken back."),
        "Inconclusive": Meaning(means="The load did not allow to tell; the step stays and is judged later."),
        "RolledBack": Meaning(means="It did harm and was taken back; told for as long as it is remembered."),
        "Measuring": Meaning(means="It is judged after warm-up and a window."),
        "NoStep": Meaning(means="No step was taken that can be judged."),
        "Invalid": Meaning(means="See Accepted."),
    },
    ConditionType.ENGINE_SUPPORTED: {
        "VersionTooOld": Meaning(
            means="The engine runs and serves, but its metrics and flags may be others than gpupack takes them for.",
            do="Take an image of a newer vLLM. spec.engine.version is only what gpupack is told of an image whose tag"
            " does not tell; it does not make the engine newer.",
        ),
    },
    ConditionType.GPUS_HEALTHY: {
        "GpuFault": Meaning(
            means="The driver reported an error of the GPU itself (an XID); its replicas move, and nothing goes there.",
            do="Reset or exchange the GPU, then restart dcgm-exporter: it shows the last XID until then, and the GPU is"
            " taken again as soon as it tells none.",
        ),
    },
    ConditionType.GPUS_MEASURED: {
        "Measured": Meaning(means="It is; the message names the counters."),
        "Looking": Meaning(means="The operator has just begun and has not heard all sources yet."),
        "NoGpu": Meaning(means="The pool has no GPU."),
        "NotInUse": Meaning(means="No slice, and no GPU of a device plugin, has an engine that it would be told of."),
        "NoSeries": Meaning(means="No source tells of the traffic.", do="Install one: docs/sources.md."),
        "Unreachable": Meaning(means="The source does not answer.", do="Is it ready, and may it be reached?"),
        "Stale": Meaning(means="The readings are too old.", do="Set periodSeconds to what the source really does."),
        "NotFinite": Meaning(means="The source gives no number.", do="End other profilers, or restart the exporter."),
        "Absurd": Meaning(means="It shows more than there can be.", do="Mend the unit of the series."),
        "TooCoarse": Meaning(means="A counter of time is full.", do="Install dcgm-exporter, which counts traffic."),
        "NoScale": Meaning(means="A counter of time has no scale yet.", do="The first minutes of load give it."),
        "CertificateNotTrusted": Meaning(
            means="The Prometheus shows a certificate of an unknown authority.",
            do="Put the authority into the Secret as ca.crt.",
        ),
        "Unauthorized": Meaning(means="The Prometheus refuses the token.", do="Give one that may read metrics."),
        "QueryRefused": Meaning(means="It does not understand the query.", do="Mend it, or leave it out."),
        "NoCredentials": Meaning(means="The Secret is missing or unfit.", do="The message says what it lacks."),
    },
    ConditionType.GPUS_KNOWN: {
        "Known": Meaning(means="It has."),
        "UnknownProduct": Meaning(
            means="A GPU has no datasheet in the catalog and is left alone.",
            do="`gpupack catalog` lists what is known; a row can be contributed.",
        ),
    },
    ConditionType.BACKEND_CHOSEN: {
        "DRA": Meaning(means="The DRA driver publishes the GPUs; the pods of a GPU share one ResourceClaim."),
        "InPod": Meaning(
            means="A device plugin offers the GPUs whole; one pod holds each, and engines come and go inside it."
        ),
        "DRAAndInPod": Meaning(means="Some nodes are of the one sort, some of the other."),
        "NoBackend": Meaning(
            means="No node of the pool offers a GPU in a way that gpupack can use.",
            do="The message says of each way what is lacking and what would change it.",
        ),
        "Broken": Meaning(
            means="GPUs are there, but the driver lacks something without which no engine can start or share.",
            do="The message says what to set.",
        ),
    },
    ConditionType.INFERENCE_POOL_WRITTEN: {
        "Written": Meaning(means="It stands, and leads to every engine that is ready."),
        "PortsLeftOut": Meaning(
            means="It stands, but more than eight engines of the serving are in one pod; it has room for eight ports.",
            do="Lower spec.scaling.maxReplicas, or send requests to the Service, which leads to all of them.",
        ),
        "NotInstalled": Meaning(
            means="The cluster does not know the kind InferencePool.",
            do="Install the Gateway API Inference Extension, as the message says; it is tried again by itself.",
        ),
        "NotAllowed": Meaning(
            means="The operator's role does not have InferencePools.",
            do="Set rbac.inferencePools in the chart's values, or apply deploy/inference-pools.yaml.",
        ),
        "Refused": Meaning(means="The API server refuses it; the message has its words.", do="Mend spec.routing."),
        "Unwanted": Meaning(means="spec.routing was taken out; the InferencePool is being deleted."),
        "Waiting": Meaning(means="It is written with the next tick."),
        "AdviseOnly": Meaning(means="In Advise mode nothing is written.", do="Set spec.mode: Active."),
    },
}


def advice(reason: str) -> str:
    """What to do about a decision, by its reason; empty where there is nothing to do or the word is not known."""
    known: dict[str, Meaning] = {str(each): meaning for each, meaning in (*REASONS.items(), *STEPS.items())}
    return known[reason].do if reason in known else ""
