"""The supervisor as a real process, with stand-in programs for vLLM and MPS that are real processes too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpupack.host.orders import EngineOrder, Orders, orders_of, orders_text
from gpupack.node.controlplane import free_ports

from .pod import Pod, engine, stages


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_engines_share_by_mps_and_when_its_server_dies_all_restart_in_order(tmp_path: Path) -> None:
    a, b = free_ports(2)
    with Pod(tmp_path, mps=True) as pod:
        report = pod.order(1, engine("a", a), engine("b", b))
        assert (report["generation"], report["gpu"]) == (1, "GPU-1")
        report = pod.until(lambda report: stages(report) == {"a": "Ready", "b": "Ready"})
        assert report["mps"]["state"] == "Ready"
        assert [each["marks"] for each in report["engines"]] == [{"slot": "a"}, {"slot": "b"}]
        report = pod.until(lambda report: bool(report["engines"][0]["log"]))
        assert report["engines"][0]["log"] == [f"engine a shares by {pod.files}/mps/pipe"]

        os.kill(report["mps"]["server"], signal.SIGKILL)

        report = pod.until(lambda report: report["mps"]["restarts"] == 1 and stages(report)["b"] == "Ready")
        assert [each["restarts"] for each in report["engines"]] == [1, 1]
        assert "is gone" in report["mps"]["message"]
        server = report["mps"]["server"]
        assert pod.end() == 0
        assert not _lives(server)


def test_orders_change_and_survive_a_crash_of_the_supervisor(tmp_path: Path) -> None:
    a, b = free_ports(2)
    with Pod(tmp_path, mps=False) as pod:
        pod.order(1, engine("a", a), engine("b", b))
        pod.until(lambda report: stages(report) == {"a": "Ready", "b": "Ready"})
        report = pod.order(2, engine("a", a))
        assert stages(report)["a"] == "Ready"
        pod.until(lambda report: stages(report) == {"a": "Ready"})
        # An engine of its own session would outlive it here; in a container all die with the first process.
        pids = _children(pod.process.pid)
        pod.crash()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        pod.start()
        report = pod.until(lambda report: stages(report) == {"a": "Ready"})
        assert report["generation"] == 2
        assert pod.ask("PUT", "/v1/orders", {"generation": 1, "engines": []})[0] == 409


def test_an_engine_that_refuses_tells_its_last_lines_and_the_others_run(tmp_path: Path) -> None:
    a, b = free_ports(2)
    with Pod(tmp_path, mps=False) as pod:
        pod.order(1, engine("a", a, "--refuse=no memory"), engine("b", b))
        report = pod.until(lambda report: stages(report) == {"a": "Failed", "b": "Ready"})
        ended = report["engines"][0]["ended"]
        assert (ended["code"], ended["reason"], ended["log"][-1]) == (1, "exit status 1", "ValueError: no memory")


def test_without_mps_in_the_image_one_engine_runs_and_the_report_says_so(tmp_path: Path) -> None:
    a, b = free_ports(2)
    pod = Pod(tmp_path, mps=True)
    (pod.programs / "nvidia-cuda-mps-control").unlink()
    with pod:
        pod.order(1, engine("a", a), engine("b", b))
        report = pod.until(
            lambda report: (
                stages(report) == {"a": "Ready", "b": "Waiting"}
                and report["engines"][1]["message"]
                and report["engines"][0]["log"]
            )
        )
        assert report["mps"]["state"] == "Unavailable"
        assert "nvidia-cuda-mps-control cannot be started" in report["engines"][1]["message"]
        assert report["engines"][0]["log"] == ["engine a shares by nothing"]


def test_only_who_has_the_token_is_answered(tmp_path: Path) -> None:
    with Pod(tmp_path, mps=False) as pod:
        assert pod.ask("GET", "/healthz", token=None) == (200, "ok\n")
        for token in (None, "", "another"):
            assert pod.ask("GET", "/v1/report", token=token)[0] == 401
            assert pod.ask("PUT", "/v1/orders", {"generation": 1, "engines": []}, token=token)[0] == 401
        assert pod.ask("PUT", "/v1/orders", {"engines": []})[0] == 400
        assert pod.ask("GET", "/v1/report")[0] == 200


def test_what_waits_for_cores_is_told_to_prometheus_without_a_token(tmp_path: Path) -> None:
    (a,) = free_ports(1)
    with Pod(tmp_path, mps=False) as pod:
        report = pod.order(1, engine("a", a))
        assert report["cores"] is None, "no window has passed"
        pod.until(lambda report: stages(report) == {"a": "Ready"})
        page = pod.page_with('gpupack_host_cpu_wait_seconds_total{engine="a"}')
        assert "# TYPE gpupack_host_cpu_run_seconds_total counter" in page


def test_the_command_copies_itself_as_one_file(tmp_path: Path) -> None:
    written = subprocess.run(
        [sys.executable, "-m", "gpupack", "host", "--copy-to", str(tmp_path)],
        check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "operator"},
    )  # fmt: skip
    told = subprocess.run(
        [sys.executable, "-I", "-S", written.stdout.strip(), "--help"], check=True, capture_output=True, text=True
    )
    assert "an engine's command" in told.stdout


def test_orders_are_what_they_were_written_as() -> None:
    order = EngineOrder(name="a", port=8001, arguments=("m", "--x=1"), marks=(("gpupack.dev/slot", "0"),))
    orders = Orders(generation=3, engines=(order,))
    assert orders_of(orders_text(orders)) == orders


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not JSON"),
        ("[]", "an object with a generation"),
        ('{"generation": 0, "engines": []}', "from 1 on"),
        ('{"generation": 1, "engines": [{"name": "a", "port": 0, "arguments": []}]}', "port of a"),
        ('{"generation": 1, "engines": [{"name": "a", "port": 8001, "arguments": "x"}]}', "arguments of a"),
        (
            '{"generation": 1, "engines": [{"name": "a", "port": 8001, "arguments": []},'
            ' {"name": "b", "port": 8001, "arguments": []}]}',
            "same port",
        ),
    ],
)
def test_orders_that_read_wrong_are_refused_with_a_sentence(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        orders_of(text)


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
