from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpupack.errors import Unavailable
from gpupack.node import binaries
from gpupack.node.controlplane import ControlPlane

ROOT = Path(__file__).parents[2]
SETTLING_SECONDS = 90
GROUP = "/apis/gpupack.dev/v1alpha1"
PATHS = {
    "ModelServing": f"{GROUP}/namespaces/default/modelservings",
    "ModelProfile": f"{GROUP}/namespaces/default/modelprofiles",
    "GpuPool": f"{GROUP}/gpupools",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API server said: the HTTP status, and the object or the Status."""

    code: int
    body: Mapping[str, Any]

    @property
    def message(self) -> str:
        return str(self.body.get("message", ""))

    @property
    def fields(self) -> list[str]:
        """The fields that a refusal blames."""
        return [cause.get("field", "") for cause in self.body.get("details", {}).get("causes", ())]


@dataclass(frozen=True, slots=True)
class Cluster:
    """A control plane with the custom resources of `crds/`, asked as strictly as kubectl asks (unknown fields)."""

    control_plane: ControlPlane
    client: httpx.Client

    def create(self, obj: Mapping[str, Any], *, dry_run: bool = False) -> Answer:
        query = {"fieldValidation": "Strict", **({"dryRun": "All"} if dry_run else {})}
        return self._answer(self.client.post(PATHS[obj["kind"]], params=query, json=obj))

    def patch(self, obj: Mapping[str, Any], change: Mapping[str, Any], subresource: str = "") -> Answer:
        path = f"{PATHS[obj['kind']]}/{obj['metadata']['name']}{subresource}"
        headers = {"Content-Type": "application/merge-patch+json"}
        return self._answer(self.client.patch(path, params={"fieldValidation": "Strict"}, json=change, headers=headers))

    def apply(self, path: str, obj: Mapping[str, Any], *, dry_run: bool = False) -> Answer:
        query = {"fieldManager": "gpupack", "force": "true", **({"dryRun": "All"} if dry_run else {})}
        headers = {"Content-Type": "application/apply-patch+yaml"}
        return self._answer(self.client.patch(path, params=query, json=obj, headers=headers))

    def get(self, path: str) -> Answer:
        return self._answer(self.client.get(path))

    def delete(self, obj: Mapping[str, Any]) -> None:
        self.client.delete(f"{PATHS[obj['kind']]}/{obj['metadata']['name']}").raise_for_status()

    def _answer(self, response: httpx.Response) -> Answer:
        return Answer(response.status_code, response.json())


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    try:
        programs = binaries.obtain(binaries.control_plane())
    except Unavailable as problem:
        pytest.skip(str(problem))
    # No kubelet reports on the nodes of these tests; they must not be given up for that.
    patient = ("--node-monitor-grace-period=1h", "--node-startup-grace-period=1h")
    with ControlPlane(programs, controller_manager_arguments=patient) as control_plane:
        control_plane.apply(*sorted((ROOT / "crds").glob("*.yaml")))
        for plural in ("modelservings", "gpupools", "modelprofiles"):
            name = f"crd/{plural}.gpupack.dev"
            control_plane.kubectl("wait", "--for=condition=Established", name, f"--timeout={SETTLING_SECONDS}s")
        trust = ssl.create_default_context(cafile=control_plane.certificate_authority)
        authorization = {"Authorization": f"Bearer {control_plane.token}"}
        with httpx.Client(base_url=control_plane.url, verify=trust, headers=authorization, trust_env=False) as client:
            yield Cluster(control_plane, client)
