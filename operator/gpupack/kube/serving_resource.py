"""ModelServing: its dict to nouns, and its status to a dict.

Knows the API's camelCase and the rules that CEL cannot check (the catalog, another object). Does not know Kubernetes'
client, and what a serving should run as is `decide`'s business.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from gpupack.errors import Invalid
from gpupack.facts.engine_args import OLDEST_VERSION, release_of
from gpupack.facts.experiment import Experiment
from gpupack.facts.llm import Dtype, Llm
from gpupack.facts.observation import Refused
from gpupack.facts.placement import Wake
from gpupack.facts.routing import FailureMode, Routing
from gpupack.facts.running import Appraisal
from gpupack.facts.serving import (
    IDLE,
    Batching,
    Lengths,
    Mode,
    Profile,
    Scaling,
    ScalingMode,
    Serving,
    ServingKey,
    SharingWish,
    Slo,
    Statistic,
)
from gpupack.kube.appraisal_resource import appraisal_of, appraisal_to_dict
from gpupack.kube.conditions import conditions_to_list
from gpupack.kube.engine_pod import Watch
from gpupack.kube.quantities import number_of, number_text
from gpupack.kube.selector import selector_of
from gpupack.kube.times import rfc3339, seconds_of
from gpupack.plan import ServingStatus
from gpupack.units import PerSecond, Seconds, ratio_from_percent, seconds_from_milliseconds

LlmOf = Callable[[str, Mapping[str, Any] | None], Llm]
"""A model by name, or by the fields of its config.json (in its own words). Raises Invalid."""
ProfileOf = Callable[[str, str], Profile | None]
"""A ModelProfile by namespace and name. Raises Invalid for one that cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretRef:
    name: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTemplate:
    """Everything of an engine's pod that is not the shape. `pod` is `spec.engine.podTemplate` as it was written.

    `memory` is host memory. `hash` stands for all of it: another image, argument or toleration is another hash.
    """

    model: str
    revision: str | None
    dtype: Dtype
    token_secret: SecretRef | None
    image: str
    version: str
    args: tuple[str, ...]
    cpu_cores: int
    memory: str
    api_key_secret: SecretRef | None
    pod: Mapping[str, Any]
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingResource:
    """A ModelServing as read. `serving` has no profile yet: that is another object (`serving_of`).

    `appraisal` is what its status says of the engines that `watch` finds.
    """

    key: ServingKey
    uid: str
    generation: int
    resource_version: str
    deleting: bool
    pool: str
    profile_name: str | None
    serving: Serving | Refused
    template: EngineTemplate
    status: Mapping[str, Any]
    watch: Watch | None = None
    appraisal: Appraisal | None = None


DEFAULT_IMAGE = "vllm/vllm-openai:v0.33.0"
DEFAULT_VERSION = "0.33.0"
DEFAULT_CPU_CORES = 2
DEFAULT_MEMORY = "8Gi"
DEFAULT_EFFICIENCY_PERCENT = 10
DEFAULT_PICKER_PORT = 9002
DECISIONS_TOLD = 5
"""So many decisions stand on a ModelServing, for `gpupack explain`."""
_TOLD = ("at", "reason", "seen", "predicted", "message", "rejected")
ASSUMED_LENGTHS = Lengths(input_mean=512.0, output_mean=256.0, assumed=True)
UNKNOWN_CV = 0.9
"""Coefficient of variation of lengths whose spread nobody declared (design: the same as the command line's default)."""

_IMAGE_VERSION = re.compile(r":v?(\d+\.\d+(?:\.\d+)?)(?:[-+.@].*)?$")
_Z95 = 1.6448536269514722
"""The 95th percentile of the standard normal distribution."""


def serving_resource(obj: Mapping[str, Any], *, llm_of: LlmOf) -> ServingResource:
    """A ModelServing that passed its CRD. What the CRD could not check is in `serving` as Refused.

    Raises KeyError or ValueError only for what the CRD cannot have let through.
    """
    metadata, spec = obj["metadata"], obj["spec"]
    key = ServingKey(namespace=metadata["namespace"], name=metadata["name"])
    template = template_of(spec)
    profile = spec.get("profileRef")
    return ServingResource(
        key=key,
        uid=metadata["uid"],
        generation=metadata["generation"],
        resource_version=metadata["resourceVersion"],
        deleting="deletionTimestamp" in metadata,
        pool=spec.get("poolName", "default"),
        profile_name=None if profile is None else profile["name"],
        serving=_serving(key, metadata, spec, template, llm_of),
        template=template,
        status=obj.get("status", {}),
        watch=_watch(spec.get("observe")),
        appraisal=appraisal_of(key, obj.get("status", {})),
    )


def serving_of(resource: ServingResource, *, profile_of: ProfileOf) -> Serving | Refused:
    """The serving with the profile that it names, which is an object of its own and may come later or be wrong."""
    serving, name = resource.serving, resource.profile_name
    if isinstance(serving, Refused) or name is None:
        return serving
    field = "spec.profileRef.name"
    try:
        profile = profile_of(resource.key.namespace, name)
        if profile is None:
            raise Invalid(field, f"there is no ModelProfile {name!r} in this namespace", "create it or name another")
        if profile.model.lower() not in (known.lower() for known in (serving.llm.name, *serving.llm.aliases)):
            problem = f"ModelProfile {name!r} is of {profile.model}, not of {serving.llm.name}"
            raise Invalid(field, problem, "name a profile of this model")
    except Invalid as invalid:
        return _refused(resource.key, resource.uid, resource.generation, invalid)
    return replace(serving, profile=profile)


def template_of(spec: Mapping[str, Any]) -> EngineTemplate:
    model, engine = spec["model"], spec.get("engine", {})
    image = engine.get("image", DEFAULT_IMAGE)
    template = EngineTemplate(
        model=model["name"],
        revision=model.get("revision"),
        dtype=Dtype(model.get("dtype", Dtype.BFLOAT16)),
        token_secret=_secret(model.get("tokenSecretRef"), "token"),
        image=image,
        version=engine.get("version") or version_of_image(image) or DEFAULT_VERSION,
        args=tuple(engine.get("args", ())),
        cpu_cores=engine.get("cpu", DEFAULT_CPU_CORES),
        memory=str(engine.get("memory", DEFAULT_MEMORY)),
        api_key_secret=_secret(engine.get("apiKeySecretRef"), "apiKey"),
        pod=engine.get("podTemplate", {}),
        hash="",
    )
    return replace(template, hash=template_hash(template))


def template_hash(template: EngineTemplate) -> str:
    """Ten hex digits over everything of the pod that is not the shape.

    What is not set is left out, so that a field which a later version adds restarts nobody.
    """
    fields = {**asdict(template), "pod": dict(template.pod)}
    written = {name: value for name, value in fields.items() if value not in (None, "", (), {}) and name != "hash"}
    text = json.dumps(written, sort_keys=True, separators=(",", ":"), default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def household_of(template: EngineTemplate) -> str:
    """Ten hex digits over what engines of one pod have in common; their models and arguments may differ."""
    own = ("model", "revision", "dtype", "version", "args", "hash")
    fields = {name: value for name, value in {**asdict(template), "pod": dict(template.pod)}.items() if name not in own}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=list).encode()).hexdigest()[:10]


def version_of_image(image: str) -> str | None:
    """`0.33.0` from `vllm/vllm-openai:v0.33.0`; None for a tag that is no version."""
    match = _IMAGE_VERSION.search(image)
    return None if match is None else match[1]


def cv_of(mean: float, p95: float | None) -> float:
    """Coefficient of variation of a lognormal length with this mean and 95th percentile.

    With ln X normal of deviation s: p95 / mean = exp(1.645 s - s^2/2), so s = 1.645 - sqrt(1.645^2 - 2 ln(p95/mean))
    and cv^2 = exp(s^2) - 1. A lognormal's p95 is at most 3.87 times its mean (s = 1.645, cv 3.74): above that, that cv.
    """
    if p95 is None:
        return UNKNOWN_CV
    deviation = _Z95 - math.sqrt(max(0.0, _Z95**2 - 2.0 * math.log(max(1.0, p95 / mean))))
    return math.sqrt(math.expm1(deviation**2))


def lengths_of(fields: Mapping[str, Any]) -> Lengths:
    """`{inputTokens: {mean, p95}, outputTokens: {mean, p95}}`; what is missing is assumed."""
    if "inputTokens" not in fields:
        return ASSUMED_LENGTHS
    given, made = fields["inputTokens"], fields["outputTokens"]
    return Lengths(
        input_mean=float(given["mean"]),
        output_mean=float(made["mean"]),
        input_cv=cv_of(given["mean"], given.get("p95")),
        output_cv=cv_of(made["mean"], made.get("p95")),
    )


def serving_status_to_dict(status: ServingStatus, previous: Mapping[str, Any], *, now: Seconds) -> dict[str, Any]:
    """The whole `status`; equal decisions give equal dicts, so that nothing is written when nothing changed."""
    shape = {
        "maxNumSeqs": status.max_num_seqs,
        "kvCacheMemoryBytes": status.kv_cache_memory_bytes,
        "maxModelLen": status.max_model_len,
        "engineArguments": list(status.engine_args) or None,
    }
    decided = status.decision_at is not None
    decision = {
        "reason": status.decision_reason or None,
        "message": status.decision_message or None,
        "observed": None if status.decision_observed is None else number_text(status.decision_observed),
        "limit": None if status.decision_limit is None else number_text(status.decision_limit),
        "unit": status.decision_unit or None,
        "at": None if status.decision_at is None else rfc3339(status.decision_at),
        "seen": status.decision_seen or None,
        "predicted": status.decision_predicted or None,
        "rejected": status.decision_rejected or None,
    }
    experiment = None if status.experiment is None else _experiment(status.experiment, status.experiment_message)
    fields = {
        "observedGeneration": status.observed_generation,
        "replicas": status.replicas,
        "readyReplicas": status.ready_replicas,
        "selector": status.selector,
        "shape": _written(shape) or None,
        "replicasPerGpu": status.replicas_per_gpu,
        "freedBytes": status.freed_bytes,
        "assumed": list(status.assumed) or None,
        "placements": [
            {"name": each.name, "gpu": each.gpu_uuid, "node": each.node, "phase": each.phase}
            for each in status.placements
        ],
        "decision": _written(decision) if decided else None,
        "experiment": experiment,
        "decisions": _decisions(_written(decision) if decided else None, experiment, previous) or None,
        "observed": None if status.appraisal is None else appraisal_to_dict(status.appraisal),
        "routing": None
        if status.thresholds is None
        else {
            "queueDepthThreshold": status.thresholds.queue_depth,
            "kvCacheUtilThreshold": number_text(status.thresholds.kv_cache_utilization),
        },
        "wake": None if status.wake is None else _wake(status.wake),
        "conditions": conditions_to_list(
            status.conditions, previous.get("conditions", ()), now=now, generation=status.observed_generation
        ),
    }
    return _written(fields)


def _wake(wake: Wake) -> dict[str, Any]:
    return _written(
        {
            "askedAt": rfc3339(wake.asked_at),
            "readyAt": None if wake.ready_at is None else rfc3339(wake.ready_at),
            "seconds": None if wake.took is None else f"{wake.took:.1f}",
        }
    )


def _experiment(experiment: Experiment, message: str) -> dict[str, Any]:
    """The last step as an experiment; without a verdict while nothing can be said."""
    return _written(
        {
            "step": experiment.step,
            "gpu": experiment.gpu_uuid,
            "plannedAt": rfc3339(experiment.last_at),
            "verdict": None if experiment.judgement is None else experiment.judgement.value,
            "judgedAt": None if experiment.judged_at is None else rfc3339(experiment.judged_at),
            "undone": experiment.undone,
            "message": message,
            "compared": [
                {
                    "what": each.what, "subject": each.subject, "unit": each.unit,
                    "predicted": number_text(each.predicted), "measured": number_text(each.measured),
                }
                for each in experiment.compared
            ] or None,
        }
    )  # fmt: skip


def _decisions(
    decision: Mapping[str, Any] | None, experiment: Mapping[str, Any] | None, previous: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The last decisions, oldest first: those that stand there, this one if it is new, and what became of its step.

    A step's verdict is written to the decision that took it, which was made when the step was planned.
    """
    kept = [dict(each) for each in previous.get("decisions", ())]
    if decision is not None:
        told = {"chosen" if name == "message" else name: decision[name] for name in _TOLD if name in decision}
        if not kept or (kept[-1]["at"], kept[-1]["reason"]) != (told["at"], told["reason"]):
            kept.append(told)
    for each in kept:
        if experiment is not None and "verdict" in experiment and each["at"] == experiment["plannedAt"]:
            each["measured"] = experiment["message"]
    return kept[-DECISIONS_TOLD:]


def _serving(
    key: ServingKey, metadata: Mapping[str, Any], spec: Mapping[str, Any], template: EngineTemplate, llm_of: LlmOf
) -> Serving | Refused:
    try:
        return Serving(
            key=key,
            uid=metadata["uid"],
            generation=metadata["generation"],
            created_at=seconds_of(metadata["creationTimestamp"]),
            pool=spec.get("poolName", "default"),
            llm=(llm := llm_of(template.model, spec["model"].get("config"))),
            dtype=template.dtype,
            max_model_len=_max_model_len(spec["model"].get("maxModelLen"), llm),
            engine_version=_supported(template.version),
            template_hash=template.hash,
            cpu_cores=template.cpu_cores,
            lengths=lengths_of(spec.get("workload", {})),
            declared_rate=_rate(spec.get("workload", {}).get("requestsPerSecond")),
            slo=_slo(spec.get("slo")),
            batching=_batching(spec.get("batching", {})),
            scaling=_scaling(spec),
            sharing=SharingWish(spec.get("sharing", SharingWish.AUTO)),
            mode=Mode(spec.get("mode", Mode.ACTIVE)),
            observes="observe" in spec,
            household=household_of(template),
            routing=_routing(spec.get("routing", {}).get("inferencePool")),
        )
    except Invalid as invalid:
        return _refused(key, metadata["uid"], metadata["generation"], invalid)


def _supported(version: str) -> str:
    if release_of(version) < OLDEST_VERSION:
        oldest = ".".join(map(str, OLDEST_VERSION))
        fix = f"take vLLM {oldest} or newer; if the tag is not vLLM's version, set spec.engine.version"
        raise Invalid("spec.engine.image", f"vLLM {version} is too old", fix)
    return version


def _max_model_len(wanted: int | None, llm: Llm) -> int | None:
    if wanted is not None and wanted > llm.max_model_len:
        problem = f"{wanted} tokens, but {llm.name} takes at most {llm.max_model_len}"
        raise Invalid("spec.model.maxModelLen", problem, f"write {llm.max_model_len} or less, or leave it out")
    return wanted


def _rate(requests_per_second: str | int | None) -> PerSecond | None:
    if requests_per_second is None:
        return None
    try:
        return PerSecond(number_of(requests_per_second))
    except ValueError as problem:
        raise Invalid("spec.workload.requestsPerSecond", str(problem), "write for instance 12, 2.5 or 500m") from None


def _slo(slo: Mapping[str, Any] | None) -> Slo | None:
    if slo is None:
        return None
    itl, ttft = slo.get("itlMilliseconds"), slo.get("ttftMilliseconds")
    return Slo(
        itl=None if itl is None else seconds_from_milliseconds(itl),
        ttft=None if ttft is None else seconds_from_milliseconds(ttft),
        statistic=Statistic(slo.get("statistic", Statistic.P95)),
    )


def _batching(batching: Mapping[str, Any]) -> Batching:
    return Batching(
        fixed=batching["maxNumSeqs"] if batching.get("mode") == "Fixed" else None,
        min_efficiency=ratio_from_percent(batching.get("minEfficiencyPercent", DEFAULT_EFFICIENCY_PERCENT)),
    )


def _scaling(spec: Mapping[str, Any]) -> Scaling:
    scaling = spec.get("scaling", {})
    return Scaling(
        mode=ScalingMode(scaling.get("mode", ScalingMode.AUTO)),
        replicas=spec.get("replicas", 1),
        min_replicas=scaling.get("minReplicas", 1),
        max_replicas=scaling.get("maxReplicas"),
        idle=Seconds(float(scaling.get("idleSeconds", IDLE))),
    )


def _routing(wanted: Mapping[str, Any] | None) -> Routing | None:
    if wanted is None:
        return None
    picker = wanted["endpointPickerRef"]
    return Routing(
        picker=picker["name"],
        port=picker.get("port", DEFAULT_PICKER_PORT),
        failure_mode=FailureMode(picker.get("failureMode", FailureMode.CLOSE)),
    )


def _watch(observe: Mapping[str, Any] | None) -> Watch | None:
    if observe is None:
        return None
    return Watch(selector=selector_of(observe["selector"]), port=observe.get("port"))


def _secret(ref: Mapping[str, Any] | None, key: str) -> SecretRef | None:
    return None if ref is None else SecretRef(name=ref["name"], key=ref.get("key", key))


def _refused(key: ServingKey, uid: str, generation: int, invalid: Invalid) -> Refused:
    return Refused(
        key=key, uid=uid, generation=generation, field=invalid.field, problem=invalid.problem, fix=invalid.fix
    )


def _written(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without what has no value: absent is not zero."""
    return {name: value for name, value in fields.items() if value is not None}
