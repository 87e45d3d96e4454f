"""Everything that happened to the objects that gpupack touches, in order: what no look now and then can prove.

The objects of one API server share one counter of revisions, so events of different kinds can be put in order.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from gpupack.kube.observe import POOLS, SERVINGS
from gpupack.node.controlplane import ControlPlane

PATHS = {
    "pods": "/api/v1/namespaces/default/pods",
    "services": "/api/v1/namespaces/default/services",
    "endpointslices": "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
    "resourceclaims": "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims",
    "poddisruptionbudgets": "/apis/policy/v1/namespaces/default/poddisruptionbudgets",
    "modelservings": SERVINGS,
    "gpupools": POOLS,
}
WATCH_SECONDS = 5
CLAIM_PROTECTION = "resource.kubernetes.io/delete-protection"
"""The finalizer that Kubernetes itself puts on a ResourceClaim which is in use."""
JOB_TRACKING = "batch.kubernetes.io/job-tracking"
"""The one that it puts on the pods of a Job until they are counted."""
SERVING = "gpupack.dev/serving"
GPU = "gpupack.dev/gpu"


KUBERNETES_OWN = (CLAIM_PROTECTION, JOB_TRACKING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    """One event of a watch; `event` is ADDED, MODIFIED or DELETED."""

    revision: int
    resource: str
    event: str
    object: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.object["metadata"]["name"])

    @property
    def labels(self) -> Mapping[str, str]:
        labels: Mapping[str, str] = self.object["metadata"].get("labels", {})
        return labels

    @property
    def is_leaving(self) -> bool:
        return self.event == "DELETED" or "deletionTimestamp" in self.object["metadata"]


class History:
    """Used with `with`; one thread watches each kind."""

    def __init__(self, cluster: ControlPlane) -> None:
        self._client = httpx.Client(
            base_url=cluster.url, verify=ssl.create_default_context(cafile=str(cluster.certificate_authority)),
            headers={"Authorization": f"Bearer {cluster.token}"}, trust_env=False, timeout=2 * WATCH_SECONDS,
        )  # fmt: skip
        self._events: list[Happened] = []
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._follow, args=item, daemon=True) for item in PATHS.items()]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._client.close()

    def mark(self) -> int:
        """The revision of the last event so far, for `since`."""
        return max((each.revision for each in list(self._events)), default=0)

    def since(self, mark: int) -> list[Happened]:
        """What happened after it, in order."""
        return sorted((each for each in list(self._events) if each.revision > mark), key=lambda each: each.revision)

    def pods(self, mark: int, serving: str | None = None) -> Iterator[Happened]:
        """What happened to replicas, of one serving or of all."""
        for each in self.since(mark):
            if each.resource == "pods" and SERVING in each.labels and serving in (None, each.labels[SERVING]):
                yield each

    def foreign_marks(self) -> list[str]:
        """Finalizers and Kopf's annotations that ever stood on anything: there must be none."""
        found: set[str] = set()
        for each in list(self._events):
            metadata = each.object["metadata"]
            marks = [*metadata.get("finalizers", ())]
            marks += [key for key in metadata.get("annotations", ()) if "kopf" in key]
            found.update(f"{each.resource}/{each.name}: {mark}" for mark in marks if mark not in KUBERNETES_OWN)
        return sorted(found)

    def starting_together(self, mark: int) -> list[str]:
        """Replicas that were there and had never been ready while another on the same GPU was the same."""
        starting: dict[str, set[str]] = {}
        been_ready: set[str] = set()
        found = []
        for each in self.pods(mark):
            uid, here = each.object["metadata"]["uid"], starting.setdefault(each.labels[GPU], set())
            if is_ready(each.object):
                been_ready.add(uid)
            if each.event == "DELETED" or uid in been_ready:
                here.discard(uid)
            else:
                here.add(uid)
            if len(here) > 1:
                found.append(f"{each.name} on {each.labels[GPU]}")
        return found

    def of_pod(self, mark: int, name: str) -> list[Happened]:
        return [each for each in self.pods(mark) if each.name == name]

    def delisted(self, mark: int, address: str) -> int | None:
        """The revision with which an address stopped getting new connections of a Service; None while it gets them."""
        revision: int | None = None
        for each in self.since(mark):
            if each.resource != "endpointslices":
                continue
            if each.event != "DELETED" and address in _ready_addresses(each.object):
                revision = None
            elif revision is None:
                revision = each.revision
        return revision

    def _follow(self, resource: str, path: str) -> None:
        while (listed := self._client.get(path)).status_code == httpx.codes.TOO_MANY_REQUESTS:
            self._ended.wait(0.1)  # a kind that was created a moment ago
        revision = listed.raise_for_status().json()["metadata"]["resourceVersion"]
        while not self._ended.is_set():
            query = {"watch": "1", "resourceVersion": revision, "timeoutSeconds": str(WATCH_SECONDS),
                     "allowWatchBookmarks": "true"}  # fmt: skip
            with self._client.stream("GET", path, params=query) as answer:
                for line in answer.iter_lines():
                    event = json.loads(line)
                    assert event["type"] != "ERROR", event
                    revision = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        self._events.append(
                            Happened(
                                revision=int(revision), resource=resource, event=event["type"], object=event["object"]
                            )
                        )


def is_ready(pod: Mapping[str, Any]) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _ready_addresses(endpoint_slice: Mapping[str, Any]) -> set[str]:
    endpoints = endpoint_slice.get("endpoints") or ()
    return {address for each in endpoints if each["conditions"].get("ready") for address in each["addresses"]}
