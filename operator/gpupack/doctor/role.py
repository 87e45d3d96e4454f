"""What the operator's ServiceAccount must be granted, and what stops working without each part. Pure.

The rights are those of `deploy/rbac.yaml` and of the chart (a test holds them equal); what is written there for people
and for InferencePools is not the operator's need and is not here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GROUPS = ("system:serviceaccounts", "system:authenticated")
"""Of every ServiceAccount, besides the group of its namespace."""
ANY = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A ServiceAccount, as RBAC knows it."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def user(self) -> str:
        return f"system:serviceaccount:{self.namespace}:{self.name}"

    @property
    def groups(self) -> tuple[str, ...]:
        return (*GROUPS, f"{GROUPS[0]}:{self.namespace}")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Right:
    """One verb on one resource, in all namespaces; `name` where only the object of that name is meant."""

    verb: str
    group: str
    resource: str
    name: str = ""

    @property
    def what(self) -> str:
        """As `kubectl auth can-i` takes it."""
        plural, slash, part = self.resource.partition("/")
        called = f" {self.name}" if self.name else ""
        return f"{plural}{'.' if self.group else ''}{self.group}{slash}{part}{called}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Rights that serve one purpose; `without` is a sentence. `vital`: without them nothing at all is packed."""

    rights: tuple[Right, ...]
    without: str
    vital: bool = False


def _need(group: str, resources: str, verbs: str, without: str, *, name: str = "", vital: bool = False) -> Need:
    rights = (
        Right(verb=verb, group=group, resource=resource, name=name)
        for resource in resources.split()
        for verb in verbs.split()
    )
    return Need(rights=tuple(rights), without=without, vital=vital)


OURS, DRA = "gpupack.dev", "resource.k8s.io"
SEE = "list watch"
BLIND = "The operator decides nothing before it has read all of these."
IN_POD = "On nodes with a device plugin no engine starts: its pod does not know the operator."

ROLE: tuple[Need, ...] = (
    _need(OURS, "gpupools modelservings modelprofiles", SEE, BLIND, vital=True),
    _need("", "nodes pods services", SEE, BLIND, vital=True),
    _need(DRA, "resourceslices resourceclaims", SEE, BLIND, vital=True),
    _need("policy", "poddisruptionbudgets", SEE, BLIND, vital=True),
    _need("discovery.k8s.io", "endpointslices", SEE, BLIND, vital=True),
    _need(
        OURS, "gpupools/status modelservings/status", "patch",
        "No plan can be written down, and nothing is done that is not in a plan.", vital=True,
    ),
    _need("", "pods", "create patch", "No engine can be started, and none leaves its Service to drain.", vital=True),
    _need("", "pods", "delete", "No engine can be stopped or replaced.", vital=True),
    _need(DRA, "resourceclaims", "create patch", "On nodes with a DRA driver no engine gets a GPU.", vital=True),
    _need(DRA, "resourceclaims", "delete", "On nodes with a DRA driver a GPU that is empty is not given back."),
    _need("", "services", "create patch", "Clients have no address at which they find the engines.", vital=True),
    _need(
        "discovery.k8s.io", "endpointslices", "create patch",
        "Requests do not reach engines that share a pod (nodes with a device plugin), and no serving can sleep.",
    ),
    _need("", "secrets", "create", IN_POD),
    _need("", "secrets", "get patch", IN_POD, name="gpupack-host"),
    _need("policy", "poddisruptionbudgets", "create patch", "A drain may take all engines of a serving at once."),
    _need(
        "apiextensions.k8s.io", "customresourcedefinitions", SEE,
        "Custom resources that come or change after the operator's start are noticed when it is restarted.",
    ),
    _need(
        DRA, "deviceclasses", SEE, "A missing DeviceClass is not told before replicas stay Pending.",
    ),
    _need(
        "node.k8s.io", "runtimeclasses", SEE,
        "Pods that hold a GPU do not name NVIDIA's RuntimeClass; where the runtime is not the default, they see none.",
    ),
    _need(
        OURS, "modelprofiles", "create patch", "What live load teaches of an engine is lost when the operator restarts."
    ),
    _need(OURS, "modelprofiles/status", "patch", "A ModelProfile does not tell what was measured or learnt."),
    _need("batch", "jobs", "list create patch delete", "A ModelProfile with spec.measure is not measured."),
    _need("events.k8s.io", "events", "create", "`kubectl describe` shows no events of what was decided and done."),
)  # fmt: skip


def all_rights() -> tuple[Right, ...]:
    return tuple(dict.fromkeys(right for need in ROLE for right in need.rights))


def bound_roles(bindings: Iterable[Mapping[str, Any]], account: Account) -> tuple[str, ...]:
    """Names of the ClusterRoles that these ClusterRoleBindings give to the account or to a group that it is in."""
    return tuple(
        sorted({
            binding["roleRef"]["name"]
            for binding in bindings
            if any(_is_meant(subject, account) for subject in binding.get("subjects") or ())
        })
    )  # fmt: skip


def _is_meant(subject: Mapping[str, Any], account: Account) -> bool:
    kind, name = subject["kind"], subject["name"]
    if kind == "ServiceAccount":
        return (subject.get("namespace"), name) == (account.namespace, account.name)
    return name in account.groups if kind == "Group" else name == account.user


def lacking(rules: Sequence[Mapping[str, Any]]) -> tuple[Right, ...]:
    """What the operator needs and these rules of ClusterRoles do not grant, as RBAC reads them."""
    return tuple(right for right in all_rights() if not any(_grants(rule, right) for rule in rules))


def _grants(rule: Mapping[str, Any], right: Right) -> bool:
    names: Collection[str] = rule.get("resourceNames") or ()
    _, slash, part = right.resource.partition("/")
    resources = {right.resource, ANY, *([f"{ANY}/{part}"] if slash else [])}
    return (
        not {right.verb, ANY}.isdisjoint(rule.get("verbs") or ())
        and not {right.group, ANY}.isdisjoint(rule.get("apiGroups") or ())
        and not resources.isdisjoint(rule.get("resources") or ())
        and (not names or right.name in names)
    )
