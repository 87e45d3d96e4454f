"""An engine that lacks cores leaves its GPU waiting: the scenario behind the packing check HostCpu."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from gpupack import catalog
from gpupack.facts.llm import Dtype
from gpupack.facts.serving import Lengths as Declared
from gpupack.facts.serving import Shape, Sharing
from gpupack.perf import sharing
from gpupack.perf.calibration import coefficients
from gpupack.perf.prediction import EngineGroup
from gpupack.twin.arrivals import Lengths
from gpupack.twin.engine import EngineConfig
from gpupack.twin.measure import Deployment, Measures, simulate_steady
from gpupack.twin.memory_system import VLLM_V1, GpuSpec, ModelDims
from gpupack.units import Bytes

KIND, LLM = catalog.gpu("h100-80gb"), catalog.llm("llama-3.2-1b")
GPU = GpuSpec(
    memory_bytes=KIND.memory_bytes, dram_bytes_per_second=KIND.dram_bytes_per_second,
    dense_flops_per_second=KIND.dense_flops_per_second,
)  # fmt: skip
BATCH, BLOCKS = 64, 8000
CONFIG = EngineConfig(max_num_seqs=BATCH, kv_blocks=BLOCKS, max_model_len=4096)
ALONE = Deployment(model=ModelDims.of(LLM, Dtype.FLOAT16), costs=VLLM_V1, config=CONFIG)


def full(cores: float | None, engines: int = 1) -> Measures:
    chance = random.Random(1)
    lengths = Lengths(input_mean=300, output_mean=150, input_cv=0.9, output_cv=0.9, total_limit=4096)
    deployment = replace(ALONE, cores=cores, replicas=engines)
    return simulate_steady(
        gpu=GPU, deployments=[(deployment, lengths.draw(chance))], chance=chance, window_requests=400
    )[0]  # fmt: skip


def predicted_gap(cores: float | None) -> float:
    shape = Shape(
        max_num_seqs=BATCH, kv_cache_memory_bytes=Bytes(BLOCKS * 16 * LLM.kv_bytes_per_token(Dtype.FLOAT16)),
        max_num_batched_tokens=2048, max_model_len=4096, chunked_prefill=True,
    )  # fmt: skip
    group = EngineGroup(
        llm=LLM, dtype=Dtype.FLOAT16, shape=shape, replicas=1, request_rate=None, coefficients=coefficients(None),
        lengths=Declared(input_mean=300.0, output_mean=150.0), cores=cores,
    )  # fmt: skip
    return sharing.predict(KIND, (group,), Sharing.EXCLUSIVE).groups[0].itl_mean


def test_the_host_gap_grows_as_cores_fall_below_what_an_engine_wants() -> None:
    enough, two, one, half = (full(cores) for cores in (None, 2.0, 1.0, 0.5))
    assert two.itl.mean == enough.itl.mean
    assert two.itl.mean < one.itl.mean < half.itl.mean
    assert one.gpu_held < 0.85 * two.gpu_held, "the GPU waits for the host"


def test_two_engines_with_a_core_each_bring_little_more_than_one_with_two() -> None:
    gain = full(2.0, engines=2).total_tokens_per_second / full(2.0).total_tokens_per_second
    starved = full(1.0, engines=2).total_tokens_per_second / full(2.0).total_tokens_per_second
    assert gain > 1.25
    assert starved < 1.0 + 0.5 * (gain - 1.0)


@pytest.mark.parametrize("cores", [2.0, 1.0])
def test_the_closed_form_and_the_twin_tell_the_same_of_it(cores: float) -> None:
    """Two forms of one assumption: the twin's server takes time a token, the formula's half a core."""
    assert predicted_gap(cores) == pytest.approx(full(cores).itl.mean, rel=0.2)
