"""What a world of GPUs promises to whoever moves its clock."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest

from gpupack.errors import Invalid, Unavailable
from gpupack.twin.arrivals import ClosedLoop, Lengths, PoissonArrivals, Request, Source
from gpupack.twin.engine import Ending, EngineConfig
from gpupack.twin.memory_system import VLLM_V1, GpuSpec, ModelDims, Mps, Sharing, TimeSlicing
from gpupack.twin.world import State, Tenant, World, activity

GPU = GpuSpec(memory_bytes=80 * 2**30, dram_bytes_per_second=3.35e12, dense_flops_per_second=989e12)
MODEL = ModelDims(layers=16, parameters=1_235_814_400, weight_bytes=2_471_628_800, kv_bytes_per_token=32_768)
CONFIG = EngineConfig(max_num_seqs=64, kv_blocks=5000, max_model_len=4096)
SHARINGS = pytest.mark.parametrize("sharing", [Mps(), TimeSlicing()], ids=["mps", "timeslicing"])


def requests(seed: int) -> Iterator[Request]:
    lengths = Lengths(input_mean=300, output_mean=100, input_cv=0.9, output_cv=0.9, total_limit=4096)
    return lengths.draw(random.Random(seed))


def poisson(rate: float, seed: int) -> PoissonArrivals:
    return PoissonArrivals(rates=[(0.0, rate)], requests=requests(seed), chance=random.Random(seed + 1))


def start(world: World, name: str, source: Source | None = None, start_seconds: float = 0.0) -> Tenant:
    return world.start_engine(
        name,
        gpu="gpu-0",
        config=CONFIG,
        model=MODEL,
        costs=VLLM_V1,
        memory_bytes=10 * 2**30,
        start_seconds=start_seconds,
        source=source,
    )


def world_with_gpu(sharing: Sharing | None = None, spec: GpuSpec = GPU) -> World:
    world = World()
    world.add_gpu("gpu-0", spec, sharing or Mps())
    return world


def generated(tenant: Tenant) -> int:
    return tenant.engine.counters.generation_tokens


@SHARINGS
@pytest.mark.parametrize("neighbours", [1, 3])
def test_many_small_moves_of_the_clock_end_where_one_large_move_ends(sharing: Sharing, neighbours: int) -> None:
    states = []
    for stride in (20.0, 0.007):
        world = world_with_gpu(sharing)
        tenants = [start(world, f"e{i}", poisson(15.0, i)) for i in range(neighbours)]
        while world.now < 20.0:
            world.advance(min(20.0, world.now + stride))
        reading = world.gpus["gpu-0"].reading()
        states.append(
            [
                *(generated(tenant) for tenant in tenants),
                *(tenant.engine.counters.succeeded for tenant in tenants),
                *(tenant.engine.counters.e2e.sum for tenant in tenants),
                reading.dram_seconds,
                reading.held_seconds,
            ]
        )
    # Who meets whom on the GPU amplifies rounding (1e-16 becomes a step within seconds), so only sums stay alike there.
    assert states[0] == pytest.approx(states[1], rel=1e-9 if neighbours == 1 else 0.02)


@SHARINGS
def test_a_lone_engine_does_not_notice_idle_neighbours(sharing: Sharing) -> None:
    alone, accompanied = world_with_gpu(sharing), world_with_gpu(sharing)
    one = start(alone, "busy", poisson(15.0, 1))
    other = start(accompanied, "busy", poisson(15.0, 1))
    for i in range(3):
        start(accompanied, f"idle-{i}")
    for world in (alone, accompanied):
        world.advance(30.0)
    assert one.engine.counters.e2e.sum == other.engine.counters.e2e.sum
    assert generated(one) == generated(other)


@SHARINGS
def test_an_engine_is_never_faster_beside_others_than_alone(sharing: Sharing) -> None:
    tokens = []
    for neighbours in (0, 1, 3):
        world = world_with_gpu(sharing)
        first = start(world, "first", ClosedLoop(concurrency=64, requests=requests(1)))
        for i in range(neighbours):
            start(world, f"n{i}", ClosedLoop(concurrency=64, requests=requests(2 + i)))
        world.advance(20.0)
        tokens.append(generated(first))
    assert tokens == sorted(tokens, reverse=True)
    assert tokens[0] > tokens[2]


def test_interference_can_worsen_while_engines_run_and_a_lone_engine_does_not_notice() -> None:
    def tokens(engines: int, worse: float | None) -> int:
        world = world_with_gpu()
        tenants = [
            start(world, f"e{each}", ClosedLoop(concurrency=64, requests=requests(each))) for each in range(engines)
        ]
        world.advance(3.0)
        before = sum(generated(each) for each in tenants)
        if worse is not None:
            world.interfere(Mps(interference=worse))
        world.advance(6.0)
        return sum(generated(each) for each in tenants) - before

    assert tokens(1, 4.0) == tokens(1, None)
    assert tokens(2, 4.0) < tokens(1, None) < tokens(2, None)


def test_engines_that_take_turns_get_equal_parts() -> None:
    world = world_with_gpu(TimeSlicing())
    tenants = [start(world, f"e{i}", ClosedLoop(concurrency=64, requests=requests(i))) for i in range(3)]
    world.advance(60.0)
    tokens = [generated(tenant) for tenant in tenants]
    assert max(tokens) < 1.1 * min(tokens)


@pytest.mark.parametrize("replicas", [1, 3])
def test_more_bandwidth_never_brings_less(replicas: int) -> None:
    tokens = []
    for factor in (0.25, 0.5, 1.0, 2.0):
        spec = GpuSpec(
            memory_bytes=GPU.memory_bytes,
            dram_bytes_per_second=GPU.dram_bytes_per_second * factor,
            dense_flops_per_second=GPU.dense_flops_per_second,
        )
        world = world_with_gpu(Mps(), spec)
        tenants = [start(world, f"e{i}", ClosedLoop(concurrency=64, requests=requests(i))) for i in range(replicas)]
        world.advance(20.0)
        tokens.append(sum(generated(tenant) for tenant in tenants))
    assert tokens == sorted(tokens)


@SHARINGS
@pytest.mark.parametrize("replicas", [1, 2, 6])
def test_no_share_of_the_gpu_is_above_one_and_an_idle_gpu_uses_none(sharing: Sharing, replicas: int) -> None:
    world = world_with_gpu(sharing)
    gpu = world.gpus["gpu-0"]
    before = gpu.reading()
    world.advance(1.0)
    idle = activity(before, gpu.reading())
    assert (idle.dram_active, idle.gpu_held, idle.power_watts) == (0.0, 0.0, pytest.approx(GPU.idle_watts))
    assert idle.dram_active_max is None
    for i in range(replicas):
        start(world, f"e{i}", ClosedLoop(concurrency=64, requests=requests(i)))
    world.advance(10.0)
    middle = gpu.reading()
    world.advance(20.0)
    busy = activity(middle, gpu.reading())
    assert 0.0 < busy.dram_active <= busy.gpu_held <= 1.0 + 1e-9
    assert busy.dram_active_max is not None
    assert busy.dram_active < busy.dram_active_max * 1.15
    assert GPU.idle_watts < busy.power_watts <= GPU.board_watts


def test_an_engine_serves_only_after_it_has_started() -> None:
    world = world_with_gpu()
    tenant = start(world, "late", start_seconds=5.0)
    handle = tenant.engine.submit(Request(input_tokens=10, output_tokens=5), 0.0)
    world.advance(4.9)
    assert tenant.state is State.STARTING
    assert handle.first_token_at < 0.0
    world.advance(6.0)
    assert tenant.state is State.READY
    assert handle.first_token_at > 5.0


def test_a_drained_engine_finishes_its_requests_and_stops() -> None:
    world = world_with_gpu()
    tenant = start(world, "e", poisson(50.0, 1))
    world.advance(10.0)
    inside = tenant.engine.in_flight
    finished = tenant.engine.counters.succeeded
    assert inside > 0
    world.drain("e")
    assert tenant.state is State.DRAINING
    world.advance(30.0)
    assert tenant.state is State.STOPPED
    assert tenant.engine.counters.succeeded == finished + inside
    assert tenant.engine.counters.aborted == 0


@SHARINGS
def test_a_crashed_engine_loses_its_requests_and_leaves_the_gpu_to_the_others(sharing: Sharing) -> None:
    world = world_with_gpu(sharing)
    start(world, "doomed", ClosedLoop(concurrency=64, requests=requests(1)))
    other = start(world, "other", ClosedLoop(concurrency=64, requests=requests(2)))
    world.advance(10.0)
    shared = generated(other)
    assert world.crash("doomed") == 64
    assert world.tenant("doomed").state is State.CRASHED
    world.advance(20.0)
    assert generated(other) - shared > 1.1 * shared
    world.remove("doomed")
    world.advance(21.0)


def test_memory_is_held_until_the_engine_is_removed_and_a_start_needs_it_free() -> None:
    world = world_with_gpu()
    for i in range(7):
        start(world, f"e{i}")
    gpu = world.gpus["gpu-0"]
    assert gpu.fb_used_bytes == 70 * 2**30
    with pytest.raises(Unavailable, match="gpu-0 has"):
        world.start_engine(
            "greedy", gpu="gpu-0", config=CONFIG, model=MODEL, costs=VLLM_V1, free_bytes_wanted=11 * 2**30
        )
    world.crash("e0")
    assert gpu.fb_used_bytes == 70 * 2**30
    world.remove("e0")
    assert gpu.fb_used_bytes == 60 * 2**30
    start(world, "e0")


def test_names_are_unique() -> None:
    world = world_with_gpu()
    start(world, "e")
    with pytest.raises(Invalid):
        start(world, "e")
    with pytest.raises(Invalid):
        world.add_gpu("gpu-0", GPU)


@SHARINGS
def test_a_request_that_came_from_outside_streams_beside_bulk_load(sharing: Sharing) -> None:
    world = world_with_gpu(sharing)
    tenants = [start(world, f"e{i}", ClosedLoop(concurrency=64, requests=requests(i))) for i in range(2)]
    world.advance(10.0)
    handle = tenants[0].engine.submit(Request(input_tokens=40, output_tokens=30), world.now, watched=True)
    seen: list[float] = []
    for _ in itertools.takewhile(lambda _: handle.ending is None, range(10_000)):
        world.advance(world.now + 0.005)
        assert handle.token_times is not None
        assert all(at <= world.now for at in handle.token_times)
        seen += handle.token_times
        handle.token_times.clear()
    assert handle.ending is Ending.LENGTH
    assert len(seen) == 30
    assert seen == sorted(seen)


def test_gpus_do_not_touch_each_other() -> None:
    world = world_with_gpu()
    world.add_gpu("gpu-1", GPU)
    start(world, "e", ClosedLoop(concurrency=64, requests=requests(1)))
    world.advance(5.0)
    assert world.gpus["gpu-0"].reading().dram_seconds > 0.0
    assert world.gpus["gpu-1"].reading().dram_seconds == 0.0
    assert world.gpus["gpu-1"].now == 5.0
