"""What the agent writes of engines that wait for cores, the operator reads of the GPU or slice that has them."""

from __future__ import annotations

from gpupack.agent.page import page
from gpupack.agent.sample import (
    Activity,
    Card,
    GpuSample,
    Identity,
    Look,
    MigDevice,
    Pipe,
    Process,
    Resident,
    Role,
)
from gpupack.agent.watch import GpuView, View
from gpupack.facts.observation import Missing
from gpupack.metrics.prometheus import parse_gpus
from gpupack.metrics.series import Exporter
from gpupack.metrics.windows import readings_of
from gpupack.units import Ratio, Seconds

CARD = Card(uuid="GPU-0", index=0, product="NVIDIA H100 80GB HBM3", bus_id="0", gpm=True)
SLICE = MigDevice(
    uuid="MIG-1", profile="3g.40gb", gpu_instance=7, compute_instance=0, multiprocessors=60, memory=None,
    activity=Activity(),
)  # fmt: skip


def engine(pid: int, core_wait: float | None, gpu_instance: int | None = None) -> Resident:
    process = Process(pid=pid, memory=None, gpu_instance=gpu_instance, mps_client=True)
    identity = Identity(
        role=Role.ENGINE, program="VLLM::EngineCore", pod_uid="", container_id="", pipe_directory=Pipe.UNREADABLE
    )
    wait = None if core_wait is None else Ratio(core_wait)
    return Resident(process=process, identity=identity, attached=None, proof=None, core_wait=wait)


def read(*residents: Resident, age: float = 0.5) -> dict[str, float | None]:
    """Core waits by GPU or slice, as the operator has them from the page."""
    sample = GpuSample(mig_devices=(SLICE,), processes=tuple(each.process for each in residents))
    look = Look(sample=sample, residents=residents, began=Seconds(0.0), ended=Seconds(0.0))
    view = View(
        is_up=True, error=None, versions=None, gpus=(GpuView(card=CARD, look=look, calling=None, looks=1),), closed=(),
        no_events={}, events={}, now=Seconds(age),
    )  # fmt: skip
    text = page(view, period=Seconds(1.0), stale=Seconds(30.0))
    found = {each.uuid: readings_of(each, 0.0).core_wait for each in parse_gpus(text, Exporter.AGENT)}
    return {uuid: None if isinstance(each, Missing) else each.value for uuid, each in found.items()}


def test_the_engine_that_waits_most_speaks_for_its_gpu() -> None:
    assert read(engine(1, 0.1), engine(2, 0.4), engine(3, None)) == {"GPU-0": 0.4}


def test_an_engine_on_a_slice_speaks_for_that_alone() -> None:
    assert read(engine(1, 0.4, gpu_instance=7)) == {"GPU-0": None, "MIG-1": 0.4}


def test_what_is_not_known_or_too_old_is_not_told() -> None:
    assert read(engine(1, None)) == {"GPU-0": None}
    assert read(engine(1, 0.4), age=31.0) == {}
