"""The children of a ModelServing as bodies for server-side apply: pods, claims, one Service, one disruption budget.

Pure: equal arguments give equal bodies. Each child carries what rebuilds the plan (child_resource.py reads it back).
The DRA backend: the pods of a namespace on one GPU share one ResourceClaim, whose selector names the GPU. Knows how a
replica runs, not whether it should.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gpupack.facts.engine_args import PORT, engine_args
from gpupack.facts.llm import Llm
from gpupack.facts.placement import Placement, gpu_hash
from gpupack.facts.serving import Serving, ServingKey, Sharing
from gpupack.kube import labels
from gpupack.kube.child_resource import predicted_to_dict
from gpupack.kube.serving_resource import EngineTemplate, SecretRef
from gpupack.kube.shape_resource import shape_to_dict
from gpupack.plan import ApplyClaim, MarkReplica, StartReplica
from gpupack.units import Seconds

PRE_STOP_SECONDS = 5
"""Time for routers to see that an evicted pod is going; one that gpupack stops has left its Service before."""
DRAIN = Seconds(60.0)
"""Requests in flight get this long: 1,024 tokens at 50 ms and some queue. SIGKILL under MPS can hurt the neighbours."""
GRACE_SECONDS = PRE_STOP_SECONDS + round(DRAIN) + 15
WORST_LOAD_SECONDS = 1800
"""Downloading and loading 14 B parameters (28 GB) at 20 MB/s takes 23 minutes; a start that fails ends by itself."""
PROBE_SECONDS = 2

RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
CONTAINER = "engine"
CLAIM = "gpu"
HTTP = "http"


def pod(start: StartReplica, serving: Serving, template: EngineTemplate) -> dict[str, Any]:
    """One replica. Its name is the placement's; the scheduler follows the claim to the GPU's node."""
    placement = start.placement
    assert template.hash == placement.template_hash, f"{placement.name} was planned from another template"
    metadata = template.pod.get("metadata", {})
    claim = claim_name(placement.gpu_uuid, placement.sharing)
    marks, notes = replica_marks(start, serving, template)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": placement.name,
            "namespace": placement.serving.namespace,
            "labels": {**metadata.get("labels", {}), **marks},
            "annotations": {**metadata.get("annotations", {}), **notes},
            "ownerReferences": [{**owner(serving.key, serving.uid), "controller": True, "blockOwnerDeletion": True}],
        },
        "spec": engine_spec(arguments(start, serving, template), template, claim),
    }


def engine_spec(
    args: Sequence[str], template: EngineTemplate, claim: str, restart_policy: str = "Always"
) -> dict[str, Any]:
    """A pod's spec with one engine on the GPU of that claim; `args` follow `vllm serve`."""
    own = template.pod
    return {
        **pod_basics(own),
        "restartPolicy": restart_policy,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "resourceClaims": [{"name": CLAIM, "resourceClaimName": claim}],
        "containers": [_container(args, template)],
        **({"volumes": own["volumes"]} if "volumes" in own else {}),
    }


def pod_basics(own: Mapping[str, Any]) -> dict[str, Any]:
    """What every pod with engines has, with what the user's pod template says of it."""
    basics = {
        "restartPolicy": "Always",
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}, **own.get("securityContext", {})},
        "tolerations": [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
            *own.get("tolerations", ()),
        ],
    }
    copied = ("nodeSelector", "imagePullSecrets", "serviceAccountName", "priorityClassName")
    return {**basics, **{field: own[field] for field in copied if field in own}}


def replica_marks(
    start: StartReplica, serving: Serving, template: EngineTemplate
) -> tuple[dict[str, str], dict[str, str]]:
    """A replica's labels and annotations; they hold everything that a plan needs to know of it."""
    return _pod_labels(start.placement, serving), _pod_annotations(start, serving, template)


def arguments(start: StartReplica, serving: Serving, template: EngineTemplate) -> list[str]:
    """Everything after `vllm serve`: the model, what gpupack sets, then the user's own."""
    owned = engine_args(
        start.placement.shape, start.utilization_hundredths,
        version=template.version, dtype=template.dtype, revision=template.revision, drain=DRAIN,
    )  # fmt: skip
    return [served_model(template, serving.llm), *owned, *template.args]


def served_model(template: EngineTemplate, llm: Llm) -> str:
    """An id of Hugging Face is taken as it was written (the catalog answers to several); a short name is resolved."""
    return template.model if "/" in template.model else llm.name


def out_of_service(uid: str) -> dict[str, Any]:
    """A merge patch that takes a pod out of its Service; `uid` makes it fail for another pod of that name.

    Not an apply: that would take back every field that it does not name.
    """
    return {"metadata": {"uid": uid, "labels": {labels.IN_SERVICE: labels.FALSE}}}


def marks(mark: MarkReplica, serving: Serving) -> dict[str, Any]:
    """A merge patch that writes a pod's labels and notes again; `uid` makes it fail for another pod of that name."""
    placement = mark.placement
    notes = {
        labels.SHAPE: _json(shape_to_dict(placement.shape)),
        labels.SHARING: placement.sharing.value,
        labels.UTILIZATION: str(mark.utilization_hundredths),
    }
    return {"metadata": {"uid": mark.uid, "labels": _pod_labels(placement, serving), "annotations": notes}}


def claim_name(gpu_uuid: str, sharing: Sharing) -> str:
    """One claim per namespace, GPU and sharing: a claim cannot change, so another sharing is another claim."""
    return f"gpupack-{gpu_hash(gpu_uuid)}-{sharing.value.lower()}"


def claim(apply: ApplyClaim, pool: str, uids: Mapping[ServingKey, str]) -> dict[str, Any]:
    """The claim of one GPU, owned by every serving that uses it, so that it goes with the last of them."""
    request = gpu_request((apply.gpu_uuid,))
    devices: dict[str, Any] = {"requests": [request]}
    if apply.sharing is Sharing.MPS:
        devices["config"] = [{"requests": [CLAIM], "opaque": {"driver": labels.DRIVER, "parameters": _mps_config()}}]
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {
            "name": claim_name(apply.gpu_uuid, apply.sharing),
            "namespace": apply.namespace,
            "labels": {
                labels.NAME: "vllm",
                labels.COMPONENT: CLAIM,
                labels.MANAGER: labels.MANAGED_BY,
                labels.PART_OF: labels.MANAGED_BY,
                labels.POOL: pool,
                labels.GPU: apply.gpu_uuid,
                labels.SHARING: apply.sharing.value,
            },
            "ownerReferences": [owner(key, uids[key]) for key in sorted(apply.owners)],
        },
        "spec": {"devices": devices},
    }


def gpu_request(uuids: Sequence[str]) -> dict[str, Any]:
    """The request of a claim for one of these GPUs, or of these MIG slices, whichever the scheduler finds free."""
    # A device without the attribute must be no match: reading it plainly is an error that blocks the pod on all nodes.
    uuid = f"device.attributes['{labels.DRIVER}'].?uuid.orValue('')"
    wanted = f"{uuid} == '{uuids[0]}'" if len(uuids) == 1 else f"{uuid} in {list(uuids)}"
    device_class = labels.MIG_DEVICE_CLASS if uuids[0].startswith(labels.MIG_UUID) else labels.DEVICE_CLASS
    return {
        "name": CLAIM,
        "exactly": {"deviceClassName": device_class, "selectors": [{"cel": {"expression": wanted}}]},
    }


def service(serving: Serving, *, selects: bool = True) -> dict[str, Any]:
    """The address of a serving: every ready replica that has not been taken out of service.

    Where a pod is not a replica gpupack writes the EndpointSlices itself. Then no pod has what it selects: a Service
    without a selector would keep the slices of the pods that it had selected before.
    """
    in_service = labels.TRUE if selects else labels.ELSEWHERE
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": shared_metadata(serving),
        "spec": {
            "selector": {labels.SERVING: serving.key.name, labels.IN_SERVICE: in_service},
            "ports": [{"name": HTTP, "port": PORT, "targetPort": HTTP, "protocol": "TCP"}],
        },
    }


def budget(serving: Serving, min_available: int) -> dict[str, Any]:
    """Drains may take one replica at a time. An integer: percentages need a scale that bare pods do not have."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": shared_metadata(serving),
        "spec": {
            "minAvailable": min_available,
            "maxUnavailable": None,  # a budget has one bound: takes back one that somebody wrote instead
            "selector": {"matchLabels": {labels.SERVING: serving.key.name}},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def _container(args: Sequence[str], template: EngineTemplate) -> dict[str, Any]:
    resources = {"cpu": str(template.cpu_cores), "memory": template.memory}
    health = {"httpGet": {"path": "/health", "port": HTTP}, "periodSeconds": PROBE_SECONDS}
    container = {
        "name": CONTAINER,
        "image": template.image,
        "command": ["vllm", "serve"],
        "args": list(args),
        "env": environment(template),
        "ports": [{"name": HTTP, "containerPort": PORT, "protocol": "TCP"}],
        # Requests equal limits (Guaranteed): with the static CPU manager each engine has cores of its own; without
        # them two engines on a GPU can be slower than one.
        "resources": {"requests": resources, "limits": resources, "claims": [{"name": CLAIM}]},
        # No liveness probe: an engine that dies ends its server, and a kill can hurt the neighbours on the GPU.
        "startupProbe": {**health, "failureThreshold": WORST_LOAD_SECONDS // PROBE_SECONDS},
        "readinessProbe": {**health, "failureThreshold": 3},
        "lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP_SECONDS}}},
        # vLLM writes no termination message; the end of its log says why it refused to start.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": RESTRICTED,
    }
    if "volumeMounts" in template.pod:
        container["volumeMounts"] = template.pod["volumeMounts"]
    return container


def environment(template: EngineTemplate) -> list[dict[str, Any]]:
    """By name; the user's value wins over gpupack's."""
    variables: dict[str, dict[str, Any]] = {
        "OMP_NUM_THREADS": {"value": str(template.cpu_cores)},
        "VLLM_NO_USAGE_STATS": {"value": "1"},
    }
    if template.token_secret is not None:
        variables["HF_TOKEN"] = _from_secret(template.token_secret)
    if template.api_key_secret is not None:
        variables["VLLM_API_KEY"] = _from_secret(template.api_key_secret)
    for variable in template.pod.get("env", ()):
        variables[variable["name"]] = {key: value for key, value in variable.items() if key != "name"}
    return [{"name": name, **source} for name, source in sorted(variables.items())]


def _from_secret(secret: SecretRef) -> dict[str, Any]:
    return {"valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}}}


def _pod_labels(placement: Placement, serving: Serving) -> dict[str, str]:
    return {
        **_app_labels(serving),
        labels.POOL: serving.pool,
        labels.SERVING: placement.serving.name,
        labels.GPU: placement.gpu_uuid,
        labels.SLOT: str(placement.slot),
        labels.SHAPE: placement.content_hash,
        labels.TEMPLATE: placement.template_hash,
        labels.IN_SERVICE: labels.TRUE,
    }


def _pod_annotations(start: StartReplica, serving: Serving, template: EngineTemplate) -> dict[str, str]:
    notes = {
        labels.SHAPE: _json(shape_to_dict(start.placement.shape)),
        labels.SHARING: start.placement.sharing.value,
        labels.UTILIZATION: str(start.utilization_hundredths),
        labels.ENGINE_ARGUMENTS: _json(arguments(start, serving, template)),
    }
    if start.predicted is not None:
        notes[labels.PREDICTED] = _json(predicted_to_dict(start.predicted))
    return notes


def shared_metadata(serving: Serving) -> dict[str, Any]:
    return {
        "name": serving.key.name,
        "namespace": serving.key.namespace,
        "labels": {**_app_labels(serving), labels.POOL: serving.pool, labels.SERVING: serving.key.name},
        "ownerReferences": [{**owner(serving.key, serving.uid), "controller": True, "blockOwnerDeletion": True}],
    }


def _app_labels(serving: Serving) -> dict[str, str]:
    return {
        labels.NAME: "vllm",
        labels.INSTANCE: serving.key.name,
        labels.COMPONENT: CONTAINER,
        labels.PART_OF: labels.MANAGED_BY,
        labels.MANAGER: labels.MANAGED_BY,
    }


def owner(key: ServingKey, uid: str) -> dict[str, Any]:
    return {"apiVersion": labels.API_VERSION, "kind": "ModelServing", "name": key.name, "uid": uid}


def _mps_config() -> dict[str, Any]:
    return {
        "apiVersion": "resource.nvidia.com/v1beta1",
        "kind": "GpuConfig",
        "sharing": {"strategy": "MPS", "mpsConfig": {"defaultActiveThreadPercentage": 100}},
    }


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
