"""A pod as a kubelet reads it: what to run, how to probe it, which claims it holds, how long it may take to end.

Parses the API's dicts once; knows no running program. Fields that the virtual node cannot honour (init
containers, volumes other than secrets, security) are not read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gpupack.kube.labels import EXTENDED_RESOURCES
from gpupack.kube.quantities import number_of

_REFERENCE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
_SECONDS = re.compile(r"\bsleep (\d+)")


class Restart(StrEnum):
    ALWAYS = "Always"
    ON_FAILURE = "OnFailure"
    NEVER = "Never"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """`path` None: a probe that only asks whether the port is open (or a command, which always succeeds)."""

    port: int | None
    path: str | None
    delay_seconds: float
    period_seconds: float
    failures: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretKey:
    name: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """An environment variable; one that comes from a secret has `secret` and no value yet."""

    name: str
    value: str
    secret: SecretKey | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """`words` are command and arguments before `$(VAR)` is filled in. `stop_delay_seconds` is its preStop hook.

    `secrets` are the mounted ones, as path and name. `cores` is its CPU limit, None without one.
    """

    name: str
    image: str
    words: tuple[str, ...]
    environ: tuple[Variable, ...]
    startup: Probe | None
    readiness: Probe | None
    liveness: Probe | None
    stop_delay_seconds: float
    log_is_message: bool
    secrets: tuple[tuple[str, str], ...] = ()
    cores: float | None = None

    def command_line(self, environ: Mapping[str, str]) -> list[str]:
        return [expand(word, environ) for word in self.words]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerBefore:
    """What the status said of a container when this kubelet first saw the pod."""

    name: str
    restarts: int
    started: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod bound to this node. `grace_seconds` is None until somebody asks for its end.

    `asked` is what it asks device plugins for, and how many of each.
    """

    namespace: str
    name: str
    uid: str
    labels: Mapping[str, str]
    containers: tuple[Container, ...]
    claims: tuple[str, ...]
    readiness_gates: tuple[str, ...]
    gates_met: tuple[str, ...]
    restart: Restart
    grace_seconds: float | None
    address: str | None
    before: tuple[ContainerBefore, ...]
    ended: bool
    asked: tuple[tuple[str, int], ...] = ()

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"


def pod_of(item: dict[str, Any]) -> Pod:
    """Raises KeyError or ValueError if the object is no pod."""
    metadata, spec, status = item["metadata"], item["spec"], item.get("status", {})
    grace = metadata.get("deletionGracePeriodSeconds", 30) if "deletionTimestamp" in metadata else None
    return Pod(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        labels=metadata.get("labels") or {},
        containers=tuple(_container(each, _secrets(spec)) for each in spec["containers"]),
        claims=_claims(spec, status),
        readiness_gates=tuple(gate["conditionType"] for gate in spec.get("readinessGates") or ()),
        gates_met=tuple(each["type"] for each in status.get("conditions") or () if each["status"] == "True"),
        restart=Restart(spec.get("restartPolicy", "Always")),
        grace_seconds=None if grace is None else float(grace),
        address=status.get("podIP"),
        before=tuple(_before(each) for each in status.get("containerStatuses") or ()),
        ended=status.get("phase") in ("Succeeded", "Failed"),
        asked=_asked(spec),
    )


def expand(word: str, environ: Mapping[str, str]) -> str:
    """`$(VAR)` by its value; a name that is not set stays as written, as Kubernetes leaves it."""
    return _REFERENCE.sub(lambda match: environ.get(match[1], match[0]), word)


def _claims(spec: dict[str, Any], status: dict[str, Any]) -> tuple[str, ...]:
    """Names of the pod's ResourceClaims; those made from templates are named in its status."""
    made = {each["name"]: each.get("resourceClaimName") for each in status.get("resourceClaimStatuses") or ()}
    names = (each.get("resourceClaimName") or made.get(each["name"]) for each in spec.get("resourceClaims") or ())
    return tuple(name for name in names if name)


def _asked(spec: dict[str, Any]) -> tuple[tuple[str, int], ...]:
    counts: Counter[str] = Counter()
    for container in spec["containers"]:
        limits = container.get("resources", {}).get("limits", {})
        counts.update({name: int(limits[name]) for name in limits if name.startswith(EXTENDED_RESOURCES)})
    return tuple(sorted(counts.items()))


def _secrets(spec: dict[str, Any]) -> dict[str, str]:
    """Names of secrets by volume."""
    return {each["name"]: each["secret"]["secretName"] for each in spec.get("volumes") or () if each.get("secret")}


def _container(item: dict[str, Any], secrets: Mapping[str, str]) -> Container:
    ports = {str(port["name"]): int(port["containerPort"]) for port in item.get("ports") or () if "name" in port}
    return Container(
        name=item["name"],
        image=item.get("image", ""),
        words=(*(item.get("command") or ()), *(item.get("args") or ())),
        environ=tuple(_variable(each) for each in item.get("env") or ()),
        startup=_probe(item.get("startupProbe"), ports),
        readiness=_probe(item.get("readinessProbe"), ports),
        liveness=_probe(item.get("livenessProbe"), ports),
        stop_delay_seconds=_stop_delay(item.get("lifecycle", {}).get("preStop", {})),
        log_is_message=item.get("terminationMessagePolicy") == "FallbackToLogsOnError",
        secrets=tuple(
            (each["mountPath"], secrets[each["name"]])
            for each in item.get("volumeMounts") or ()
            if each["name"] in secrets
        ),
        cores=_cores(item.get("resources", {}).get("limits", {})),
    )


def _cores(limits: Mapping[str, str]) -> float | None:
    return number_of(limits["cpu"]) if "cpu" in limits else None


def _variable(item: dict[str, Any]) -> Variable:
    reference = (item.get("valueFrom") or {}).get("secretKeyRef")
    secret = SecretKey(name=reference["name"], key=reference["key"]) if reference else None
    return Variable(name=item["name"], value=item.get("value", ""), secret=secret)


def _probe(item: dict[str, Any] | None, ports: Mapping[str, int]) -> Probe | None:
    if item is None:
        return None
    action = item.get("httpGet") or item.get("tcpSocket") or {}
    port = action.get("port")
    return Probe(
        port=None if port is None else ports[port] if port in ports else int(port),
        path=action.get("path", "/") if "httpGet" in item else None,
        delay_seconds=float(item.get("initialDelaySeconds", 0)),
        period_seconds=float(item.get("periodSeconds", 10)),
        failures=int(item.get("failureThreshold", 3)),
    )


def _stop_delay(hook: dict[str, Any]) -> float:
    """Seconds of a preStop hook: `sleep: {seconds: 5}`, or a command in which `sleep 5` occurs. Others take none."""
    if "sleep" in hook:
        return float(hook["sleep"]["seconds"])
    command: Sequence[str] = hook.get("exec", {}).get("command") or ()
    match = _SECONDS.search(" ".join(command).replace("/bin/sleep", "sleep"))
    return float(match[1]) if match else 0.0


def _before(item: dict[str, Any]) -> ContainerBefore:
    state = item.get("state", {})
    return ContainerBefore(
        name=item["name"],
        restarts=int(item.get("restartCount", 0)),
        started="running" in state or "terminated" in state,
    )
