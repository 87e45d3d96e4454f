"""A cluster that stands already, with the face of the control plane that the journeys start themselves.

For kind, or any other: what is known of it is a kubeconfig of an administrator and, for what journeys read there, its
audit log. All that is made in it for us is one ServiceAccount, which goes at the end. Not for a cluster of others: the
journeys delete the ModelServings of `default` and all GpuPools.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gpupack.errors import Unavailable
from gpupack.node.controlplane import ADMIN, ControlPlane

NAMESPACE, ACCOUNT = "kube-system", "gpupack-e2e"


class JoinedCluster(ControlPlane):
    """`with JoinedCluster(kubeconfig, audit_log) as cluster:`; stops and starts nothing."""

    def __init__(self, kubeconfig: Path, audit_log: Path | None = None) -> None:
        kubectl = shutil.which("kubectl")
        if kubectl is None:
            raise Unavailable("kubectl is not to be found")
        super().__init__({"kubectl": Path(kubectl)}, audit=audit_log is not None)
        self._given = kubeconfig
        self._audit_log = audit_log
        self._url = ""

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="gpupack-joined-"))
        view = json.loads(self._as_given("config", "view", "--raw", "--flatten", "--minify", "-o", "json"))
        cluster: dict[str, Any] = view["clusters"][0]["cluster"]
        self._url = cluster["server"]
        self.certificate_authority.parent.mkdir()
        self.certificate_authority.write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
        if self._audit_log is not None:
            (self.folder / "audit.log").symlink_to(self._audit_log.resolve())
        self._as_given("create", "serviceaccount", ACCOUNT, "-n", NAMESPACE)
        subject = f"--serviceaccount={NAMESPACE}:{ACCOUNT}"
        self._as_given("create", "clusterrolebinding", ACCOUNT, "--clusterrole=cluster-admin", subject)
        self._tokens[ADMIN] = self._as_given("create", "token", ACCOUNT, "-n", NAMESPACE, "--duration=12h").strip()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._as_given("delete", "clusterrolebinding", ACCOUNT, "--ignore-not-found")
        self._as_given("delete", "serviceaccount", ACCOUNT, "-n", NAMESPACE, "--ignore-not-found")
        shutil.rmtree(self.folder)

    @property
    def url(self) -> str:
        return self._url

    def log(self, program: str) -> str:
        return f"{program} is not ours to read; see `kind export logs`"

    def _as_given(self, *words: str) -> str:
        command = [str(self._programs["kubectl"]), "--kubeconfig", str(self._given), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Unavailable(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout
