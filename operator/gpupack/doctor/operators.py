"""Where gpupack's operator stands in a cluster, and what its ServiceAccount may do. Reads, and asks the API server.

The API server itself is asked (SubjectAccessReview) where this user may ask about others; else the ClusterRoles are
read, which tells of RBAC and of no other authorizer. What follows from it is `findings`' business.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from gpupack.doctor.reading import Json, Unseen, everything, or_unseen, reason_of
from gpupack.doctor.role import Account, Right, all_rights, bound_roles, lacking
from gpupack.errors import Unavailable
from gpupack.kube import labels
from gpupack.kube.api import Api, NotFound

SELECTOR = {labels.PART_OF: "gpupack", labels.COMPONENT: "operator"}
"""On the Deployment of the chart and of deploy/."""
REVIEWS = "/apis/authorization.k8s.io/v1"
RBAC = "/apis/rbac.authorization.k8s.io/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSeen:
    """One Deployment of the operator: how many pods of it are wanted and ready, and what its account lacks.

    `from_roles`: why the API server could not be asked, so that its ClusterRoles were read instead; else empty.
    """

    name: str
    account: Account
    wanted: int
    ready: int
    lacks: tuple[Right, ...] | Unseen
    from_roles: str = ""


async def operators(api: Api) -> tuple[OperatorSeen, ...] | Unseen:
    found = await or_unseen(everything(api, "/apis/apps/v1/deployments", labelSelector=_selector()))
    if isinstance(found, Unseen):
        return found
    return tuple([await _operator(api, each) for each in found])


def _selector() -> str:
    return ",".join(f"{key}={value}" for key, value in SELECTOR.items())


async def _operator(api: Api, deployment: Json) -> OperatorSeen:
    namespace = deployment["metadata"]["namespace"]
    pod = deployment["spec"]["template"]["spec"]
    account = Account(namespace=namespace, name=pod.get("serviceAccountName", "default"))
    from_roles = ""
    try:
        lacks: tuple[Right, ...] | Unseen = await _asked(api, account)
    except Unavailable as refused:
        from_roles = reason_of(refused)
        lacks = await _read(api, account)
    return OperatorSeen(
        name=f"{namespace}/{deployment['metadata']['name']}",
        account=account,
        wanted=deployment["spec"].get("replicas", 1),
        ready=deployment.get("status", {}).get("readyReplicas", 0),
        lacks=lacks,
        from_roles=from_roles,
    )


async def _asked(api: Api, account: Account) -> tuple[Right, ...]:
    """Raises Unavailable where this user may not ask about others; then the first question is the last one."""
    first, *more = all_rights()
    about = {"user": account.user, "groups": list(account.groups)}
    answers = [await may(api, "SubjectAccessReview", first, about)]
    answers += await asyncio.gather(*(may(api, "SubjectAccessReview", right, about) for right in more))
    return tuple(right for right, allowed in zip((first, *more), answers, strict=True) if not allowed)


async def _read(api: Api, account: Account) -> tuple[Right, ...] | Unseen:
    bindings = await or_unseen(everything(api, f"{RBAC}/clusterrolebindings"))
    if isinstance(bindings, Unseen):
        return bindings
    rules: list[Json] = []
    try:
        for name in bound_roles(bindings, account):
            rules += await _rules(api, name)
    except Unavailable as refused:
        return Unseen(why=reason_of(refused))
    return lacking(rules)


async def _rules(api: Api, role: str) -> list[Json]:
    """None of a role that is bound and not there."""
    try:
        return (await api.get(f"{RBAC}/clusterroles/{role}")).get("rules") or []
    except NotFound:
        return []


async def may(api: Api, kind: str, right: Right, about: dict[str, Any] | None = None) -> bool:
    """What the API server says of a right: SubjectAccessReview of whom it is `about`, SelfSubjectAccessReview of us."""
    plural, _, part = right.resource.partition("/")
    asked = {"verb": right.verb, "group": right.group, "resource": plural, "subresource": part, "name": right.name}
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": kind,
        "spec": {**(about or {}), "resourceAttributes": {key: value for key, value in asked.items() if value}},
    }
    answer = await api.create(f"{REVIEWS}/{kind.lower()}s", body)
    return bool(answer["status"]["allowed"])
