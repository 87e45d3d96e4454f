"""What a request to the API server is, in words that are the same from run to run: no hash, address or version.

Two calls are the same call if verb, resource, subresource, the role of the object and the phase of the story are. The
role of a replica is that it is one of a serving's; of a status, what it says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

OURS = "gpupack"
"""The user agent of gpupack's own requests; the others are Kopf's."""
PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/(?P<version>v[^/]+)(?:/namespaces/(?P<namespace>[^/]+)(?=/))?"
    r"/(?P<resource>[^/]+)(?:/(?P<name>[^/]+)(?:/(?P<subresource>[^/]+))?)?"
)
PATCHES = {"application/apply-patch+yaml": "apply", "application/merge-patch+json": "patch"}
VERBS = {"POST": "create", "DELETE": "delete", "PUT": "update"}
READS = frozenset({"get", "list", "watch"})


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class Call:
    """`who` is `gpupack` or `kopf`; `resource` carries the subresource (`pods/status`)."""

    phase: str
    who: str
    verb: str
    resource: str
    role: str

    @property
    def is_write(self) -> bool:
        return self.verb not in READS

    def __str__(self) -> str:
        return f"{self.phase}: {self.who} {self.verb} {self.resource} {self.role}".rstrip()


def call_of(request: web.BaseRequest, body: bytes, phase: str) -> Call:
    """The call that a request is, by its address, its user agent and what it writes."""
    who = OURS if request.headers.get("User-Agent", "").startswith(OURS) else "kopf"
    found = PATH.fullmatch(request.path)
    if found is None:
        return Call(phase=phase, who=who, verb="get", resource=request.path, role="")
    name, subresource = found["name"], found["subresource"]
    if request.method == "GET":
        verb = "get" if name else "watch" if request.query.get("watch") in ("true", "1") else "list"
    elif request.method == "PATCH":
        verb = PATCHES.get(request.content_type, "patch")
    else:
        verb = VERBS[request.method]
    resource = "/".join(part for part in (found["resource"], subresource) if part)
    written = json.loads(body) if body and verb not in READS else {}
    return Call(phase=phase, who=who, verb=verb, resource=resource, role=_role(verb, resource, name or "", written))


def _role(verb: str, resource: str, name: str, written: Mapping[str, Any]) -> str:
    match resource:
        case "gpupools/status":
            plan = written.get("status", {}).get("plan", {})
            return f"{len(plan.get('placements', ()))} planned"
        case "modelservings/status":
            return f"{name} {_progress(written)}"
        case "pods":
            return f"of {_serving(name)}" if verb != "list" and name else ""
        case "events":
            return f"{written.get('reason', '')} of {written.get('regarding', {}).get('name', '')}"
        case "resourceclaims":
            return _owners(written) if verb == "apply" else ""
    return name


def _progress(written: Mapping[str, Any]) -> str:
    said: dict[str, str] = {each["type"]: each["reason"] for each in written.get("status", {}).get("conditions", ())}
    return said.get("Progressing") or said.get("Accepted", "")


def _serving(pod: str) -> str:
    """A replica is named after its serving, the GPU, the slot and the shape."""
    serving, _, slot, _ = pod.rsplit("-", 3)
    return f"{serving} slot {slot}"


def _owners(written: Mapping[str, Any]) -> str:
    owners = written.get("metadata", {}).get("ownerReferences", ())
    return "for " + "+".join(sorted(each["name"] for each in owners))
