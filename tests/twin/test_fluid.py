"""Engines as rates: what flows in flows out, up to what the engine can do."""

from __future__ import annotations

from gpupack import catalog
from gpupack.facts.llm import Dtype
from gpupack.twin.fluid import PATIENCE, Flow, FluidEngine, Model, advance
from gpupack.twin.memory_system import GpuSpec, ModelDims
from gpupack.twin.stepped import SteppedEngine, SteppedGpu

MODEL = Model(weight_bytes=2_500_000_000, kv_bytes_per_token=32768, overhead_bytes=700_000_000)
FLOW = Flow(rate=0.0, clients=0, input_tokens=512.0, output_tokens=256.0)
BANDWIDTH = 3.35e12


def engine() -> FluidEngine:
    return FluidEngine(name="engine", model=MODEL, slots=64, kv_bytes=8 << 30)


def test_a_load_that_it_can_carry_leaves_no_queue() -> None:
    one = engine()
    for _ in range(20):
        advance([(one, FLOW, 50.0)], 5.0, BANDWIDTH, 0.05)
    assert one.finished + one.running == 1000.0
    assert one.waiting == 0
    assert 0 < one.running < 64


def test_more_than_it_can_do_piles_up_at_full_batch_until_people_give_up() -> None:
    one = engine()
    for _ in range(20):
        advance([(one, FLOW, 2000.0)], 5.0, BANDWIDTH, 0.05)
    assert one.running == 64
    assert one.waiting == PATIENCE * 64
    assert one.answer_lengths == one.finished * FLOW.output_tokens  # who gave up is in no counter
    assert one.generation_tokens == one.answer_lengths


def test_siblings_slow_each_other_down() -> None:
    alone, one, other = engine(), engine(), engine()
    for _ in range(20):
        advance([(alone, FLOW, 2000.0)], 5.0, BANDWIDTH, 0.05)
        advance([(one, FLOW, 2000.0), (other, FLOW, 2000.0)], 5.0, BANDWIDTH, 0.05)
    assert one.generation_tokens < alone.generation_tokens < one.generation_tokens + other.generation_tokens


def test_clients_that_wait_keep_the_number_inside_constant() -> None:
    one = engine()
    one.closed = True
    flow = Flow(rate=0.0, clients=100, input_tokens=512.0, output_tokens=256.0)
    inside = set()
    for _ in range(10):
        advance([(one, flow, 0.0)], 5.0, BANDWIDTH, 0.05)
        inside.add(one.running + one.waiting)
    assert inside == {100.0}


def test_a_restart_loses_every_counter() -> None:
    one = engine()
    advance([(one, FLOW, 50.0)], 5.0, BANDWIDTH, 0.05)
    one.restart()
    assert (one.finished, one.running, one.itl.count) == (0.0, 0.0, 0.0)


def test_bandwidth_is_never_read_above_its_peak() -> None:
    engines = [(engine(), FLOW, 5000.0) for _ in range(6)]
    assert max(advance(engines, 5.0, BANDWIDTH, 0.0) for _ in range(10)) <= 1.0


def test_engines_in_steps_have_the_same_face_and_finish_what_comes() -> None:
    llm = catalog.llm("llama-3.2-1b")
    gpu = SteppedGpu(
        "gpu",
        GpuSpec(memory_bytes=80 << 30, dram_bytes_per_second=BANDWIDTH, dense_flops_per_second=989e12),
        0.1,
        0.0,
    )
    one = SteppedEngine(
        name="engine", model=MODEL, slots=64, kv_bytes=8 << 30, dims=ModelDims.of(llm, Dtype.BFLOAT16),
        max_model_len=2048, max_num_batched_tokens=2048,
    )  # fmt: skip
    for turn in range(1, 11):
        share = gpu.advance([(one, FLOW, 20.0)], 5.0 * turn)
    assert one.finished + one.running + one.waiting == 200.0
    assert one.itl.count > 0
    assert 0.0 < share < 1.0
    one.restart()
    gpu.advance([(one, FLOW, 20.0)], 60.0)
    assert one.finished + one.running + one.waiting == 20.0
