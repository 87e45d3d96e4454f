"""An API server in memory: objects with versions, preconditions, a log of changes for watches, and who owns whom.

As much of Kubernetes' rules as an operator can notice: optimistic locking, server-side apply by one manager, status as
a subresource, graceful deletion of pods, claims that stay while a pod uses them. Objects never change in place: each
write is a new dict, so that what a watcher holds stays as it was. Knows no network and no controller (`cluster` is
those), and nothing of what the objects mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

Json = dict[str, Any]


class Key(NamedTuple):
    """`resource` is the plural; `namespace` is empty for what has none."""

    resource: str
    namespace: str
    name: str


class Change(NamedTuple):
    """One line of a watch. `kind` is ADDED, MODIFIED or DELETED."""

    version: int
    kind: str
    item: Json


class Refusal(Exception):
    """What the server says instead of doing it, with its HTTP code."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message


def rfc3339(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@lru_cache(maxsize=65536)
def parse(path: str) -> tuple[Key, str]:
    """The object and subresource that a path names; of a collection the name is empty."""
    words = path.strip("/").split("/")
    rest = words[2:] if words[0] == "api" else words[3:]
    namespace = ""
    if len(rest) > 2 and rest[0] == "namespaces":
        namespace, rest = rest[1], rest[2:]
    name = rest[1] if len(rest) > 1 else ""
    return Key(rest[0], namespace, name), rest[2] if len(rest) > 2 else ""


class ApiServer:
    """`now` is unix seconds and moved by whoever drives the model. `writes` counts what changed anything."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.writes = 0
        self._version = 0
        self._born = 0
        self._objects: dict[str, dict[Key, Json]] = {}
        self._log: dict[str, list[Change]] = {}

    # Reading.

    def get(self, key: Key) -> Json | None:
        return self._objects.get(key.resource, {}).get(key)

    def named(self, collection: str, name: str) -> list[Json]:
        """The object of that name in the collection of a path, in a list."""
        key, _ = parse(collection)
        there = self.get(key._replace(name=name))
        return [] if there is None else [there]

    def items(self, resource: str) -> Iterator[tuple[Key, Json]]:
        yield from list(self._objects.get(resource, {}).items())

    def changes(self, resource: str, since: int) -> list[Change]:
        """What happened after the `since`-th change of this resource."""
        return self._log.get(resource, [])[since:]

    def count(self, resource: str) -> int:
        return len(self._log.get(resource, ()))

    # What anybody may write.

    def create(self, key: Key, body: Mapping[str, Any]) -> Json:
        if self.get(key) is not None:
            raise Refusal(409, "AlreadyExists", f"{key.resource} {key.name} already exists")
        self._born += 1
        metadata = {
            **body.get("metadata", {}),
            "name": key.name,
            "uid": f"uid-{self._born}",
            "generation": 1,
            "creationTimestamp": rfc3339(self.now),
        }
        if key.namespace:
            metadata["namespace"] = key.namespace
        return self._write(key, {**body, "metadata": metadata}, "ADDED")

    def apply(self, path: str, body: Json) -> Json:
        """Server-side apply of the only manager, by force."""
        key, subresource = parse(path)
        there, metadata = self.get(key), body["metadata"]
        if there is None:
            if subresource:
                raise Refusal(404, "NotFound", f"{key.resource} {key.name} not found")
            if "uid" in metadata:
                raise Refusal(409, "Conflict", "Precondition failed: UID")
            return self.create(key, body)
        self._check(there, metadata)
        if subresource:
            return self.update(key, {**there, subresource: body[subresource]})
        if key.resource in ("pods", "resourceclaims") and self._asked(there) != body["spec"]:
            raise Refusal(422, "Invalid", f"{key.resource} {key.name}: spec is immutable")
        old = there["metadata"]
        merged = dict(old)
        for field in ("labels", "annotations"):
            if field in metadata:
                merged[field] = {**old.get(field, {}), **metadata[field]}
        if "ownerReferences" in metadata:
            merged["ownerReferences"] = metadata["ownerReferences"]
        content = {name: value for name, value in body.items() if name != "metadata"}
        if key.resource == "pods":
            content["spec"] = there["spec"]
        return self.update(key, {**there, **content, "metadata": merged})

    def merge(self, path: str, body: Json) -> Json:
        """A merge patch of labels, with the uid as precondition."""
        key, _ = parse(path)
        there = self.get(key)
        if there is None:
            raise Refusal(404, "NotFound", f"{key.resource} {key.name} not found")
        self._check(there, body["metadata"])
        old = there["metadata"]
        return self.update(
            key, {**there, "metadata": {**old, "labels": {**old.get("labels", {}), **body["metadata"]["labels"]}}}
        )

    def delete(self, path: str, uid: str | None = None) -> Json:
        """Answers with the object as it was."""
        key, _ = parse(path)
        there = self.get(key)
        if there is None:
            raise Refusal(404, "NotFound", f"{key.resource} {key.name} not found")
        if uid is not None and there["metadata"]["uid"] != uid:
            raise Refusal(409, "Conflict", "Precondition failed: UID")
        self.end(key)
        return there

    # What controllers, kubelets and the driver of the model write.

    def update(self, key: Key, item: Json) -> Json:
        """A new state of what is there; equal states are no write. A new spec is a new generation."""
        there = self._objects[key.resource][key]
        metadata = item["metadata"]
        if item.get("spec") != there.get("spec") and key.resource in ("gpupools", "modelservings"):
            metadata = {**metadata, "generation": metadata["generation"] + 1}
            item = {**item, "metadata": metadata}
        if item == there:
            return there
        return self._write(key, item, "MODIFIED")

    def edit(self, key: Key, change: Callable[[Json], Json]) -> None:
        """What a person does to one object, if it is there."""
        there = self.get(key)
        if there is not None:
            self.update(key, change(there))

    def end(self, key: Key) -> None:
        """Deletion as asked for: a pod that has a node stops in its own time, a claim in use stays until it is not."""
        there = self._objects[key.resource][key]
        metadata = there["metadata"]
        if "deletionTimestamp" in metadata:
            return
        grace = 0
        if key.resource == "pods" and "nodeName" in there["spec"]:
            grace = there["spec"].get("terminationGracePeriodSeconds", 30)
        elif not (key.resource == "resourceclaims" and there.get("status", {}).get("reservedFor")):
            self.remove(key)
            return
        marked = {
            **metadata,
            "deletionTimestamp": rfc3339(self.now + grace),
            "deletionGracePeriodSeconds": grace,
        }
        self.update(key, {**there, "metadata": marked})

    def remove(self, key: Key) -> None:
        there = self._objects[key.resource].pop(key)
        self._version += 1
        self.writes += 1
        metadata = {**there["metadata"], "resourceVersion": str(self._version)}
        self._log.setdefault(key.resource, []).append(Change(self._version, "DELETED", {**there, "metadata": metadata}))

    def _write(self, key: Key, item: Json, kind: str) -> Json:
        self._version += 1
        self.writes += 1
        written = {**item, "metadata": {**item["metadata"], "resourceVersion": str(self._version)}}
        self._objects.setdefault(key.resource, {})[key] = written
        self._log.setdefault(key.resource, []).append(Change(self._version, kind, written))
        return written

    @staticmethod
    def _asked(there: Json) -> Json:
        """A spec as its author wrote it: without the node that the scheduler added."""
        return {name: value for name, value in there["spec"].items() if name != "nodeName"}

    @staticmethod
    def _check(there: Json, metadata: Mapping[str, Any]) -> None:
        for field, reason in (("uid", "Precondition failed: UID"), ("resourceVersion", "the object has been modified")):
            if field in metadata and metadata[field] != there["metadata"][field]:
                raise Refusal(409, "Conflict", reason)
