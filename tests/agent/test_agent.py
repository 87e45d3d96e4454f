"""`gpupack agent` as a program: its page, its end, and what it does when the driver hangs, changes or loses a GPU."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gpupack.metrics import agent_series as series
from gpupack.metrics.agent_series import AgentSeries
from gpupack.metrics.series import Kind

from .conftest import POD, World

PATIENCE_SECONDS = 60.0
GPU = "GPU-0000000{}-0000-0000-0000-000000000000"


class Running:
    def __init__(self, library: Path, world: World, proc: Path, *options: str) -> None:
        environment = {**os.environ, "LD_LIBRARY_PATH": str(library.parent), "FAKE_NVML": str(world.path)}
        words = ("agent", "--host", "127.0.0.1", "--port", "0", "--period-seconds", "0.1", "--proc", str(proc))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gpupack", *words, *options],
            env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.url = "http://" + self.process.stdout.readline().split()[-1]

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=PATIENCE_SECONDS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read().decode()

    def values(self, wanted: AgentSeries) -> dict[tuple[str, ...], float]:
        return {
            tuple(sample.labels[label] for label in wanted.labels): sample.value
            for family in text_string_to_metric_families(self.get("/metrics")[1])
            for sample in family.samples
            if sample.name == wanted.name
        }

    def until(self, seen: Callable[[], bool]) -> None:
        """Each round is a scrape; there is nothing else to wait for than the agent's next look."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not seen():
            assert time.monotonic() < deadline, self.get("/metrics")[1]

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE_SECONDS)
        finally:
            self.process.kill()
            assert self.process.stdout is not None
            self.process.stdout.close()


@pytest.fixture
def agent(library: Path, world: World, proc: Path) -> Iterator[Callable[..., Running]]:
    running: list[Running] = []

    def start(text: str, *options: str, other: Path | None = None) -> Running:
        world.is_(text)
        running.append(Running(other or library, world, proc, *options))
        return running[-1]

    yield start
    assert [each.end() for each in running] == [0] * len(running)


def test_each_series_of_the_page_is_in_the_table_and_names_its_unit(
    agent: Callable[..., Running], born: Callable[..., None]
) -> None:
    born(41, "VLLM::EngineCore", pod=1)
    born(40, "nvidia-cuda-mps-server")
    served = agent("gpus 2\nmig 1\nprocess 0 41 1 mps\nprocess 0 40 1\nevent 1 0 8 31")
    served.until(lambda: bool(served.values(series.MIG_SM_ACTIVE)) and bool(served.values(series.EVENTS)))
    families = {each.name: each for each in text_string_to_metric_families(served.get("/metrics")[1])}
    table = {each.name.removesuffix("_total"): each for each in series.TABLE}
    assert set(families) <= set(table)
    rare = {series.NVML_ERROR, series.CALL, series.GPU_BUSY, series.MEMORY_BUSY, series.PCIE_RECEIVED}
    rare |= {series.CORE_WAIT, series.MIG_CORE_WAIT}
    assert {each.name.removesuffix("_total") for each in series.TABLE if each not in rare} <= set(families)
    for name, family in families.items():
        assert family.type == table[name].kind.value
        assert {tuple(sorted(sample.labels)) for sample in family.samples} == {tuple(sorted(table[name].labels))}


def test_promtool_has_nothing_to_say_of_the_page(agent: Callable[..., Running], born: Callable[..., None]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: it comes with Prometheus (apt-get install prometheus)")
    born(41, "VLLM::EngineCore", pod=1)
    served = agent("gpus 2\nmig 1\nprocess 0 41 1 mps\nevent 1 0 8 31")
    served.until(lambda: bool(served.values(series.MIG_SM_ACTIVE)) and bool(served.values(series.EVENTS)))
    page = served.get("/metrics")[1]
    done = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_units_are_base_units_and_counters_end_in_total() -> None:
    for each in series.TABLE:
        name = each.name.removesuffix("_total")
        assert each.name.endswith("_total") == (each.kind is Kind.COUNTER)
        if each.unit in ("yes", "engines", "errors", "events"):
            continue
        assert each.unit in {"bytes", "bytes_per_second", "seconds", "ratio", "watts", "joules", "hertz", "celsius"}
        assert name.endswith(f"_{each.unit}")
    assert len({each.name for each in series.TABLE}) == len(series.TABLE)


def test_an_engine_beside_mps_is_reported_and_not_counted_as_packed(
    agent: Callable[..., Running], born: Callable[..., None]
) -> None:
    born(40, "nvidia-cuda-mps-server")
    born(41, "VLLM::EngineCore", pod=1)
    born(42, "VLLM::EngineCore", pod=2, environment="CUDA_MPS_PIPE_DIRECTORY=/elsewhere")
    served = agent("process 0 40 30000000\nprocess 0 41 8000000000 mps\nprocess 0 42 9000000000")
    served.until(lambda: bool(served.values(series.ENGINES)))
    attached = served.values(series.MPS_ATTACHED)
    assert {(labels[2], labels[5], labels[6]): value for labels, value in attached.items()} == {
        (f"{POD}1", "client_list", "unreadable"): 1.0,
        (f"{POD}2", "not_in_client_list", "set"): 0.0,
    }
    assert served.values(series.ENGINES) == {(GPU.format(0),): 2.0}
    assert served.values(series.PACKED_ENGINES) == {(GPU.format(0),): 1.0}
    assert served.values(series.MPS_SERVER) == {(GPU.format(0), "40"): 1.0}


def test_a_call_that_hangs_holds_up_neither_the_scrape_nor_the_other_gpu(
    agent: Callable[..., Running], world: World
) -> None:
    served = agent("gpus 2", "--stale-seconds", "0.5")
    served.until(lambda: len(served.values(series.POWER)) == 2)
    world.is_("gpus 2\nslow DeviceGetPowerUsage 3600000 1")
    served.until(lambda: served.values(series.CALL).get((GPU.format(1), "power"), 0.0) > 0.5)
    assert served.values(series.SAMPLE_AGE)[(GPU.format(1),)] > 0.5
    served.until(lambda: set(served.values(series.POWER)) == {(GPU.format(0),)})  # its readings go on being renewed
    assert (GPU.format(1),) not in served.values(series.GPU_LOST)
    assert served.get("/healthz")[0] == 200


def test_a_gpu_that_is_lost_while_the_agent_runs_is_told_with_its_xid(
    agent: Callable[..., Running], world: World
) -> None:
    served = agent("gpus 2")
    served.until(lambda: len(served.values(series.POWER)) == 2)
    world.is_("gpus 2\nevent 1 1 8 79\nfail DeviceGetMigMode 15 1")
    served.until(lambda: served.values(series.GPU_LOST).get((GPU.format(1),)) == 1.0)
    served.until(lambda: served.values(series.EVENTS).get((GPU.format(1), "xid_79", "")) == 1.0)
    assert set(served.values(series.POWER)) == {(GPU.format(0),)}


def test_events_that_cannot_be_waited_for_are_told_until_they_can_again(
    agent: Callable[..., Running], world: World
) -> None:
    served = agent("fail EventSetWait 999")
    served.until(lambda: served.values(series.NVML_ERROR) == {("unknown",): 1.0})
    assert served.values(series.NVML_UP) == {(): 1.0}
    world.is_("event 5 0 8 13")
    served.until(lambda: (GPU.format(0), "xid_13", "") in served.values(series.EVENTS))
    served.until(lambda: not served.values(series.NVML_ERROR))


def test_a_library_of_another_driver_asks_for_a_restart_and_is_no_crash(
    agent: Callable[..., Running], world: World
) -> None:
    served = agent("fail Init 18")
    served.until(lambda: bool(served.values(series.NVML_ERROR)))
    assert served.values(series.NVML_ERROR) == {("lib_rm_version_mismatch",): 1.0}
    assert served.values(series.NVML_UP) == {(): 0.0}
    assert served.get("/healthz")[0] == 503
    world.is_("")
    served.until(lambda: served.values(series.NVML_UP) == {(): 1.0})
    assert served.get("/healthz")[0] == 200


def test_a_driver_from_before_gpm_is_read_without_it(agent: Callable[..., Running], old_library: Path) -> None:
    served = agent("product a100", other=old_library)
    served.until(lambda: bool(served.values(series.POWER)))
    assert served.values(series.UNREADABLE) == {(GPU.format(0), "gpm", "function_not_found"): 1.0}
    assert next(iter(served.values(series.GPU)))[-1] == ""
    assert not served.values(series.DRAM_BANDWIDTH)


def test_a_node_without_a_driver_is_told_in_one_sentence(proc: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "LD_LIBRARY_PATH"}
    ended = subprocess.run(
        [sys.executable, "-m", "gpupack", "agent", "--once", "--proc", str(proc)],
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if ended.returncode == 0:
        pytest.skip("this machine has an NVIDIA driver")
    assert ended.returncode == 1
    assert ended.stderr.startswith("gpupack agent: NVML cannot be used here: ")
    assert ended.stderr.count("\n") == 1
