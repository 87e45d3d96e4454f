"""A cluster to play on: a real control plane, a virtual GPU node and the operator, each a process of its own.

The operator is told what an operator in a cluster is told, and knows the world through the API and HTTP only; it runs
under the ServiceAccount and the roles of `deploy/`. The demo and the journeys stand on the same stage.
"""

from __future__ import annotations

import contextlib
import json
import signal
import ssl
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from gpupack.errors import Unavailable
from gpupack.kube import labels
from gpupack.node.controlplane import ControlPlane, free_ports
from gpupack.node.keeper import Keeper

NODE_READY_SECONDS = 60.0
POLL_SECONDS = 0.1
SERVINGS = f"{labels.API_PATH}/namespaces/default/modelservings"
POOLS = f"{labels.API_PATH}/gpupools"
ACCOUNT = "system:serviceaccount:gpupack-system:gpupack"
OPERATOR = "operator"
NODE = "node"


def shipped(name: str) -> Path:
    """`crds` or `deploy` of a checkout, or the copy that a wheel carries."""
    here = Path(__file__).resolve()
    for candidate in (here.parents[3] / name, here.parents[1] / "node" / name):
        if candidate.is_dir():
            return candidate
    raise Unavailable(f"the folder {name}/ is neither in a checkout nor in the installed package")


class Stage:
    """`with Stage(cluster) as stage:` once the CRDs are there and the node is Ready; the operator is started apart.

    `node_arguments` are those of `gpupack twin`.
    """

    def __init__(self, cluster: ControlPlane, folder: Path, *, node_arguments: Sequence[str] = ()) -> None:
        self.cluster = cluster
        self._folder = folder
        self._node_arguments = tuple(node_arguments)
        self.metrics_port, self._health_port = free_ports(2)
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as opening:
            self._keeper = opening.enter_context(Keeper(self._folder))
            ready = self._folder / "node.json"
            self._start(NODE, "twin", "--kubeconfig", str(self.cluster.kubeconfig), "--ready-file", str(ready),
                        *self._node_arguments)  # fmt: skip
            self.cluster.apply(shipped("crds"))
            self.cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
            deploy = shipped("deploy")
            self.cluster.apply(deploy / "namespace.yaml")
            self.cluster.kubectl("apply", "--server-side", "-n", "gpupack-system", "-f", deploy / "rbac.yaml")
            wait_for(lambda: ready.exists() or self._ended(NODE), NODE_READY_SECONDS, "the virtual node is Ready")
            if not ready.exists():
                raise Unavailable(f"the virtual node ended:\n{self.log(NODE)}")
            doors = json.loads(ready.read_text())
            self.pod_proxy: str = doors["pod_proxy"]
            self._control = opening.enter_context(httpx.Client(base_url=doors["control"], trust_env=False, timeout=10))
            self._api = opening.enter_context(
                httpx.Client(
                    base_url=self.cluster.url,
                    verify=ssl.create_default_context(cafile=str(self.cluster.certificate_authority)),
                    headers={"Authorization": f"Bearer {self.cluster.token}"},
                    trust_env=False,
                )
            )
            self._open = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    # The operator

    def start_operator(self, kubeconfig: Path | None = None, program: Sequence[str] | None = None) -> None:
        """With the shipped account's kubeconfig, or with another that leads to the same API by another way.

        `program` is `gpupack` as it runs elsewhere (in its image); it finds the API server by itself.
        """
        doors = (
            "--pod-proxy", self.pod_proxy, "--host", "127.0.0.1", "--metrics-port", str(self.metrics_port),
            "--health-port", str(self._health_port),
        )  # fmt: skip
        if program is None:
            way = str(kubeconfig or self.cluster.kubeconfig_for(ACCOUNT))
            self._start(OPERATOR, "operator", "--kubeconfig", way, *doors)
        else:
            self._keeper.start(OPERATOR, [*program, "operator", *doors])

    def stop_operator(self, with_signal: signal.Signals = signal.SIGTERM) -> int:
        return self._keeper.stop(OPERATOR, with_signal)

    def operator_exit_code(self) -> int | None:
        return self._keeper.exit_code(OPERATOR)

    def operator_metrics(self) -> str:
        return httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", trust_env=False).text

    def log(self, name: str) -> str:
        """What `operator` or `node` has written."""
        return self._keeper.log(name)

    # The world

    def state(self, window_seconds: float = 5.0) -> dict[str, Any]:
        """The truth of the virtual node, which the operator does not see."""
        return self._asked(self._control.get("/state", params={"window": window_seconds}))

    def load(self, serving: str, **load: object) -> None:
        """Steer the load of `namespace/name`: rate or concurrency, input_tokens, output_tokens."""
        self._asked(self._control.post("/load", json={"service": serving, **load}))

    def no_load(self, serving: str | None = None) -> None:
        """No more load on `namespace/name`, or on any."""
        self._asked(self._control.delete("/load", params={} if serving is None else {"target": serving}))

    def steer(self, path: str, **body: object) -> None:
        """Another call of the control door: crash, engine-metrics, exporter, start."""
        self._asked(self._control.post(path, json=body))

    # The cluster

    def get(self, path: str, **query: str) -> dict[str, Any]:
        """An object or a list of the API server, read as the admin; cheaper than a kubectl process."""
        return self._request("GET", path, params=query)

    def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """A merge patch; a field that is None is taken away."""
        headers = {"Content-Type": "application/merge-patch+json"}
        return self._request("PATCH", path, content=json.dumps(body), headers=headers)

    def delete(self, path: str, **query: str) -> None:
        """An object, or all of a list."""
        self._request("DELETE", path, params=query)

    def serving(self, name: str, namespace: str = "default") -> dict[str, Any]:
        return self.get(f"{labels.API_PATH}/namespaces/{namespace}/modelservings/{name}")

    def servings(self) -> list[dict[str, Any]]:
        return list(self.get(f"{labels.API_PATH}/modelservings")["items"])

    def pods(self, serving: str | None = None, namespace: str = "default") -> list[dict[str, Any]]:
        """The replicas of a serving, or of all, in the order of their names."""
        selector = "gpupack.dev/serving" + (f"={serving}" if serving else "")
        return list(self.get(f"/api/v1/namespaces/{namespace}/pods", labelSelector=selector)["items"])

    def pool(self, name: str = "default") -> dict[str, Any]:
        return self.get(f"{POOLS}/{name}")

    def _start(self, program: str, *arguments: str) -> None:
        self._keeper.start(program, [sys.executable, "-m", "gpupack", *arguments])

    def _ended(self, program: str) -> bool:
        return self._keeper.exit_code(program) is not None

    def _request(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        """Asked again while the API server says when: of a kind that is new it does so for some seconds."""
        answer = self._api.request(method, path, **more)
        while answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            time.sleep(float(answer.headers.get("Retry-After", "1")))
            answer = self._api.request(method, path, **more)
        if answer.is_error:
            raise Unavailable(f"{answer.request.method} {answer.request.url}: {answer.text}")
        return dict(answer.json())

    @staticmethod
    def _asked(answer: httpx.Response) -> dict[str, Any]:
        if answer.is_error:
            raise Unavailable(f"the virtual node refused {answer.request.url}: {answer.text}")
        return dict(answer.json())


def wait_for(true: Callable[[], object], seconds: float, what: str) -> None:
    """Asks until `true()` is; raises Unavailable with `what` was awaited."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise Unavailable(f"waited {seconds:.0f} s in vain until {what}")
        time.sleep(POLL_SECONDS)


def condition(resource: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """One condition of a resource's status; empty if it is not there."""
    found: list[Mapping[str, Any]] = resource.get("status", {}).get("conditions", [])
    return next((each for each in found if each["type"] == kind), {})
