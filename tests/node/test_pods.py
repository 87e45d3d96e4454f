"""A pod is read as a kubelet reads it; its addresses and containers behave as a kubelet's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gpupack.errors import Unavailable
from gpupack.node.addresses import Addresses
from gpupack.node.container_life import ContainerLife
from gpupack.node.pods import Container, Probe, Restart, pod_of
from gpupack.node.program import Exit


def _pod(container: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "ns", "name": "p", "uid": "u", **more.pop("metadata", {})},
        "spec": {"containers": [{"name": "main", "image": "i", **container}], **more.pop("spec", {})},
        "status": more.pop("status", {}),
    }


def test_probes_take_kubernetes_defaults_and_ports_by_name() -> None:
    container = {
        "ports": [{"name": "http", "containerPort": 8001}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": "http"}},
        "startupProbe": {"tcpSocket": {"port": 9000}, "periodSeconds": 2, "failureThreshold": 30},
    }
    (read,) = pod_of(_pod(container)).containers
    assert read.readiness == Probe(port=8001, path="/health", delay_seconds=0.0, period_seconds=10.0, failures=3)
    assert read.startup == Probe(port=9000, path=None, delay_seconds=0.0, period_seconds=2.0, failures=30)
    assert read.liveness is None


@pytest.mark.parametrize(
    ("hook", "seconds"),
    [
        ({"sleep": {"seconds": 5}}, 5.0),
        ({"exec": {"command": ["/bin/sleep", "7"]}}, 7.0),
        ({"exec": {"command": ["sh", "-c", "sleep 9 && true"]}}, 9.0),
        ({"exec": {"command": ["sync"]}}, 0.0),
    ],
)
def test_a_pre_stop_hook_takes_as_long_as_it_sleeps(hook: dict[str, Any], seconds: float) -> None:
    (read,) = pod_of(_pod({"lifecycle": {"preStop": hook}})).containers
    assert read.stop_delay_seconds == seconds


def test_arguments_are_filled_in_from_the_environment_and_unknown_names_are_left() -> None:
    container = {"command": ["vllm", "serve"], "args": ["$(MODEL)", "--x=$(NONE)"]}
    (read,) = pod_of(_pod(container)).containers
    assert read.command_line({"MODEL": "m"}) == ["vllm", "serve", "m", "--x=$(NONE)"]


def test_claims_are_named_directly_or_by_the_status_that_a_template_made() -> None:
    spec = {"resourceClaims": [{"name": "a", "resourceClaimName": "shared"}, {"name": "b"}, {"name": "c"}]}
    status = {"resourceClaimStatuses": [{"name": "b", "resourceClaimName": "p-b-x7"}]}
    assert pod_of(_pod({}, spec=spec, status=status)).claims == ("shared", "p-b-x7")


def test_a_pod_has_a_grace_period_only_once_somebody_asked_for_its_end() -> None:
    assert pod_of(_pod({})).grace_seconds is None
    asked = {"deletionTimestamp": "2026-11-23T00:00:00Z", "deletionGracePeriodSeconds": 12}
    assert pod_of(_pod({}, metadata=asked)).grace_seconds == 12.0


def test_an_address_is_handed_out_again_only_after_all_others() -> None:
    addresses = Addresses("10.77.0.0/29")
    assert addresses.node == "10.77.0.1"
    first = addresses.take()
    addresses.give_back(first)
    others = [addresses.take() for _ in range(4)]
    assert first not in others
    assert addresses.take() == first
    with pytest.raises(Unavailable):
        addresses.take()


def test_a_pod_keeps_its_address_if_that_is_still_free() -> None:
    addresses = Addresses()
    assert addresses.take("10.77.3.4") == "10.77.3.4"
    assert addresses.take("10.77.3.4") == "10.77.0.2"
    assert addresses.take("192.168.0.9") == "10.77.0.3"


class Brief:
    """Ends at once with what it was told."""

    def __init__(self, code: int) -> None:
        self._code = code

    async def run(self) -> Exit:
        return Exit(code=self._code)

    def terminate(self) -> None: ...

    def answers(self, port: int | None, path: str | None) -> bool:  # noqa: ARG002
        return False


class Endless(Brief):
    def __init__(self) -> None:
        self.killed = False

    async def run(self) -> Exit:
        try:
            await asyncio.Event().wait()
        finally:
            self.killed = True
        raise AssertionError


def _container(**probes: Probe) -> Container:
    return Container(
        name="main", image="i", words=(), environ=(), startup=probes.get("startup"), readiness=None,
        liveness=probes.get("liveness"), stop_delay_seconds=0.0, log_is_message=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("restart", "codes", "runs"),
    [(Restart.NEVER, [1], 1), (Restart.ON_FAILURE, [1, 2, 0], 3), (Restart.ALWAYS, [0, 0, 0, 0], 4)],
)
async def test_the_restart_policy_says_whether_an_ended_program_runs_again(
    restart: Restart, codes: list[int], runs: int
) -> None:
    launched: list[Brief] = []

    def launch() -> Brief:
        launched.append(Brief(codes[len(launched)]))
        if len(launched) == len(codes) and restart is Restart.ALWAYS:
            life.terminate()
        return launched[-1]

    life = ContainerLife(_container(), launch, lambda: None, restart=restart, before=None, first_backoff_seconds=0.001)
    await life.run()
    assert len(launched) == runs
    assert life.ended


@pytest.mark.parametrize("probe", ["startup", "liveness"])
async def test_a_program_that_fails_its_startup_or_liveness_probe_is_killed(probe: str) -> None:
    failing = Probe(port=1, path="/", delay_seconds=0.0, period_seconds=0.001, failures=3)
    program = Endless()
    life = ContainerLife(
        _container(**{probe: failing}), lambda: program, lambda: None, restart=Restart.NEVER, before=None
    )
    await life.run()
    assert program.killed
    assert life.exit == Exit(code=137, message=f"{probe} probe failed")
