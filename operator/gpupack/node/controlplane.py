"""A real Kubernetes control plane on this machine, for as long as a `with` block lasts.

etcd, kube-apiserver, kube-controller-manager and kube-scheduler as separate processes on free loopback ports with a
fresh data folder: no container, no privilege, nothing shared with another control plane, nothing left behind
(keeper.py). It has no node; a virtual one (or a real kubelet) joins through the API. There is no kube-proxy and no DNS.

For tests and demos: etcd listens without TLS on loopback and does not sync to disk.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from gpupack.errors import Unavailable
from gpupack.node import binaries
from gpupack.node.keeper import Keeper

ADMIN = "admin"
READY_SECONDS = 60.0
"""Ready takes about 3 s on two idle cores; a test run beside others may need ten times that."""
POLL_SECONDS = 0.05
PORT_ATTEMPTS = 5
TAIL_LINES = 12
READ_BYTES = 65536
PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
ADVERTISED = "192.0.2.1"
"""What the `kubernetes` Endpoints say (TEST-NET-1): loopback is refused there, and nothing here goes by it."""

WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}


class KubectlError(Exception):
    """kubectl did not do what it was asked; the message is what it wrote."""

    def __init__(self, command: Sequence[str], code: int, message: str) -> None:
        super().__init__(f"kubectl {' '.join(command)}: exit status {code}: {message.strip()}")
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """One finished request as the API server's audit log has it. `stage` is ResponseComplete, or ResponseStarted for
    a watch. `resource` is `pods` or `pods/status`; `at` is RFC 3339."""

    user: str
    verb: str
    resource: str
    namespace: str
    name: str
    code: int
    stage: str
    at: str

    @property
    def is_write(self) -> bool:
        return self.stage == "ResponseComplete" and self.verb in WRITES


class ControlPlane:
    """Started by `with ControlPlane(programs) as cluster:`; inside, the API answers and objects can be created.

    `users` can authenticate beside the admin (who is in system:masters); a user has only what RBAC gives. With `audit`
    every request is written to a log that `audit_events` reads. The `*_arguments` are appended to those of the program.
    `find_ports` offers so many ports; it is asked again if another program takes one before it is used. Blocking: from
    a coroutine call it through `asyncio.to_thread`. Raises Unavailable if it does not get ready.
    """

    def __init__(
        self,
        programs: binaries.Binaries,
        *,
        users: Sequence[str] = (),
        audit: bool = False,
        apiserver_arguments: Sequence[str] = (),
        controller_manager_arguments: Sequence[str] = (),
        scheduler_arguments: Sequence[str] = (),
        find_ports: Callable[[int], list[int]] | None = None,
    ) -> None:
        self._programs = programs
        self._audit = audit
        self._find_ports = find_ports or free_ports
        self._more = {
            "kube-apiserver": tuple(apiserver_arguments),
            "kube-controller-manager": tuple(controller_manager_arguments),
            "kube-scheduler": tuple(scheduler_arguments),
        }
        self._tokens = {user: secrets.token_urlsafe(24) for user in (ADMIN, *users)}
        self._open: contextlib.ExitStack | None = None
        self._port = 0

    def __enter__(self) -> Self:
        for _ in range(PORT_ATTEMPTS):
            with contextlib.ExitStack() as opening:
                self.folder = Path(tempfile.mkdtemp(prefix="gpupack-controlplane-"))
                self._keeper = opening.enter_context(Keeper(self.folder))
                with contextlib.suppress(PortTaken):
                    self._start(opening)
                    self._open = opening.pop_all()
                    return self
        raise Unavailable(f"{PORT_ATTEMPTS} times in a row another program took a port that had been free")

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open is not None:
            self._open.close()

    # What it offers

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._port}"

    @property
    def token(self) -> str:
        """The admin's bearer token."""
        return self._tokens[ADMIN]

    @property
    def certificate_authority(self) -> Path:
        """A PEM file that proves the API server's certificate."""
        return self.folder / "certificates" / "apiserver.crt"

    @property
    def kubeconfig(self) -> Path:
        """The admin's."""
        return self.kubeconfig_for(ADMIN)

    def kubeconfig_for(self, user: str) -> Path:
        """A kubeconfig of one of `users`, or of `system:serviceaccount:NAMESPACE:NAME`, which must exist."""
        path = self.folder / f"{user.replace(':', '.')}.kubeconfig"
        if not path.exists():
            self._write_kubeconfig(path, self._tokens.get(user) or self._service_account_token(user))
        return path

    def kubectl(self, *arguments: str | Path, stdin: str | None = None, user: str = ADMIN) -> str:
        """Runs kubectl and returns what it prints. Raises KubectlError if it fails."""
        words = [str(word) for word in arguments]
        options = ("--kubeconfig", self.kubeconfig_for(user), "--cache-dir", self.folder / "kubectl-cache")
        done = subprocess.run(
            [self._programs["kubectl"], *options, *words], input=stdin, capture_output=True, text=True, check=False,
            env={**os.environ, "KUBERC": "off"}, stdin=subprocess.DEVNULL if stdin is None else None,
        )  # fmt: skip
        if done.returncode != 0:
            raise KubectlError(words, done.returncode, done.stderr or done.stdout)
        return done.stdout

    def apply(self, *manifests: str | Path | Mapping[str, Any]) -> str:
        """Server-side apply of files or folders (Path), YAML or JSON texts (str) and objects (Mapping), in order."""
        printed = []
        for manifest in manifests:
            if isinstance(manifest, Path):
                printed.append(self.kubectl("apply", "--server-side", "-f", manifest))
            else:
                text = manifest if isinstance(manifest, str) else json.dumps(manifest)
                printed.append(self.kubectl("apply", "--server-side", "-f", "-", stdin=text))
        return "".join(printed)

    def get(self, *arguments: str) -> Any:
        """`kubectl get ... -o json`, parsed."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def log(self, program: str) -> str:
        """What `kube-apiserver`, `kube-controller-manager`, `kube-scheduler` or `etcd` has written."""
        return self._keeper.log(program)

    def audit_position(self) -> int:
        """Where the last whole line of the audit log ends now, for `audit_events`. Only with `audit`."""
        assert self._audit, "ControlPlane(audit=True) writes an audit log"
        path = self.folder / "audit.log"
        return end_of_lines(path) if path.exists() else 0

    def audit_events(self, start: int = 0) -> Iterator[AuditEvent]:
        """The requests that were answered so far, in the log's order, from a position on. Only with `audit`."""
        assert self._audit, "ControlPlane(audit=True) writes an audit log"
        with (self.folder / "audit.log").open() as log:
            log.seek(start)
            for line in log:
                if line.endswith("\n"):  # the last line may be half written
                    yield _audit_event(json.loads(line))

    def stop_apiserver(self, with_signal: signal.Signals = signal.SIGKILL) -> None:
        """The API is gone until `start_apiserver`; the address stays the same, and what etcd holds stays."""
        self._keeper.stop("kube-apiserver", with_signal)

    def start_apiserver(self) -> None:
        self._start_apiserver()
        self._wait_until(lambda: self._answers("/readyz"), "the API server")

    # How it starts

    def _start(self, opening: contextlib.ExitStack) -> None:
        self._etcd_port, self._etcd_peer_port, self._port = self._find_ports(3)
        self._write_keys()
        self._start_etcd()
        self._start_apiserver()
        # The API server makes its certificate when it starts, and writes the key last. A kubeconfig needs the former.
        key = self.certificate_authority.with_suffix(".key")
        self._wait_until(key.exists, "the API server's certificate")
        trust = ssl.create_default_context(cafile=self.certificate_authority)
        admin = {"Authorization": f"Bearer {self.token}"}
        self._client = opening.enter_context(
            httpx.Client(base_url=self.url, verify=trust, trust_env=False, headers=admin)
        )
        self._wait_until(lambda: self._answers("/readyz"), "the API server")
        self._start_controllers()
        default = "/api/v1/namespaces/default/serviceaccounts/default"  # without it pods are refused
        self._wait_until(lambda: self._answers(default), "the default service account")

    def _write_keys(self) -> None:
        (self.folder / "service-accounts.key").write_text(signing_key())
        rows = [f'{token},{user},{user},"{_groups(user)}"' for user, token in self._tokens.items()]
        (self.folder / "tokens.csv").write_text("\n".join(rows) + "\n")
        (self.folder / "audit-policy.json").write_text(json.dumps(AUDIT_POLICY))

    def _start_etcd(self) -> None:
        clients, peers = f"http://127.0.0.1:{self._etcd_port}", f"http://127.0.0.1:{self._etcd_peer_port}"
        self._keeper.start("etcd", [
            self._programs["etcd"], "--data-dir", self.folder / "etcd", "--unsafe-no-fsync",
            "--listen-client-urls", clients, "--advertise-client-urls", clients,
            "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers,
            "--initial-cluster", f"default={peers}",
        ])  # fmt: skip

    def _start_apiserver(self) -> None:
        key = self.folder / "service-accounts.key"
        log, policy = self.folder / "audit.log", self.folder / "audit-policy.json"
        self._keeper.start("kube-apiserver", [
            self._programs["kube-apiserver"],
            "--etcd-servers", f"http://127.0.0.1:{self._etcd_port}",
            # If another control plane took our etcd port first, the two must not share objects until we notice.
            "--etcd-prefix", f"/{self.folder.name}",
            "--bind-address", "127.0.0.1", "--secure-port", str(self._port), "--advertise-address", ADVERTISED,
            "--cert-dir", self.folder / "certificates",
            "--service-account-issuer", self.url, "--service-account-key-file", key,
            "--service-account-signing-key-file", key,
            "--token-auth-file", self.folder / "tokens.csv", "--authorization-mode", "RBAC,Node",
            "--service-cluster-ip-range", "10.96.0.0/16",
            *(("--audit-policy-file", policy, "--audit-log-path", log) if self._audit else ()),
            *self._more["kube-apiserver"],
        ])  # fmt: skip

    def _start_controllers(self) -> None:
        common = ("--kubeconfig", self.kubeconfig, "--leader-elect=false", "--secure-port", "0")
        self._keeper.start("kube-controller-manager", [
            self._programs["kube-controller-manager"], *common,
            "--service-account-private-key-file", self.folder / "service-accounts.key",
            "--root-ca-file", self.certificate_authority, *self._more["kube-controller-manager"],
        ])  # fmt: skip
        self._keeper.start("kube-scheduler", [self._programs["kube-scheduler"], *common, *self._more["kube-scheduler"]])

    def _wait_until(self, true: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + READY_SECONDS
        ready = False
        while not ready:
            ready = true()
            self._look_for_ended_programs()  # even if ready: what answers may be another's, on a port that we lost
            if not ready and time.monotonic() > deadline:
                raise Unavailable(f"{what} was not ready within {READY_SECONDS:.0f} s:\n{self._tail('kube-apiserver')}")
            if not ready:
                time.sleep(POLL_SECONDS)

    def _look_for_ended_programs(self) -> None:
        for program in PROGRAMS:
            if (code := self._keeper.exit_code(program)) is None:
                continue
            tail = self._tail(program)
            if "address already in use" in self.log(program):
                raise PortTaken(tail)
            raise Unavailable(f"{program} ended with exit status {code}:\n{tail}")

    def _tail(self, program: str) -> str:
        return "\n".join(self.log(program).splitlines()[-TAIL_LINES:])

    def _answers(self, path: str) -> bool:
        try:
            return self._client.get(path).is_success
        except httpx.TransportError:
            return False

    def _service_account_token(self, user: str) -> str:
        match user.split(":"):
            case ["system", "serviceaccount", namespace, name]:
                return self.kubectl("create", "token", name, "--namespace", namespace, "--duration", "24h").strip()
        raise LookupError(f"{user} is neither one of the users {sorted(self._tokens)} nor a service account")

    def _write_kubeconfig(self, path: Path, token: str) -> None:
        trust = base64.b64encode(self.certificate_authority.read_bytes()).decode()
        text = json.dumps({  # JSON is YAML
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "it", "cluster": {"server": self.url, "certificate-authority-data": trust}}],
            "users": [{"name": "it", "user": {"token": token}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
            "current-context": "it",
        })  # fmt: skip
        path.write_text(text)
        path.chmod(0o600)


class PortTaken(Unavailable):
    """Between looking for a free port and listening on it, another program was quicker."""


def _groups(user: str) -> str:
    return "system:masters" if user == ADMIN else ""


def free_ports(count: int) -> list[int]:
    """Loopback TCP ports that nobody listens on now; somebody may a moment later."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def end_of_lines(path: Path) -> int:
    """Bytes up to and with the last newline of a file that somebody may be writing to."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            begin = max(0, end - READ_BYTES)
            file.seek(begin)
            found = file.read(end - begin).rfind(b"\n")
            if found >= 0:
                return begin + found + 1
            end = begin
    return 0


def signing_key() -> str:
    """A new ECDSA P-256 private key in PEM (RFC 5915), without its public half, which Go computes when it reads it.

    Any number from 1 to the order of the curve minus 1 is a private key, so no cryptography package is needed.
    """
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    number = (secrets.randbelow(order - 1) + 1).to_bytes(32, "big")
    # SEQUENCE { INTEGER 1, OCTET STRING number, [0] { OBJECT IDENTIFIER prime256v1 } }
    der = bytes.fromhex("30310201010420") + number + bytes.fromhex("a00a06082a8648ce3d030107")
    return f"-----BEGIN EC PRIVATE KEY-----\n{base64.encodebytes(der).decode()}-----END EC PRIVATE KEY-----\n"


def _audit_event(line: Mapping[str, Any]) -> AuditEvent:
    about = line.get("objectRef", {})
    resource = "/".join(part for part in (about.get("resource"), about.get("subresource")) if part)
    return AuditEvent(
        user=line["user"].get("username", ""),
        verb=line["verb"],
        resource=resource,
        namespace=about.get("namespace", ""),
        name=about.get("name", ""),
        code=line.get("responseStatus", {}).get("code", 0),
        stage=line["stage"],
        at=line["requestReceivedTimestamp"],
    )
