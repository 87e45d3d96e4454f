"""How fast the twin is: simulated over wall seconds, and what eight engines in real time cost.

Run with the package on the path: `.venv/bin/python e2e/bench/twin_speed.py`. Goals: 1,000 for one engine at batch 256;
eight engines at batch 100, moved every 5 ms, within half a core.
"""

from __future__ import annotations

import random
import time

from gpupack.twin.arrivals import ClosedLoop, Lengths, PoissonArrivals
from gpupack.twin.engine import EngineConfig
from gpupack.twin.memory_system import VLLM_0_5, VLLM_V1, EngineCosts, GpuSpec, ModelDims, Mps, TimeSlicing
from gpupack.twin.world import World

H100_64GB = GpuSpec(memory_bytes=68_107_001_856, dram_bytes_per_second=1.631e12, dense_flops_per_second=989e12)
H100_80GB = GpuSpec(memory_bytes=80 * 2**30, dram_bytes_per_second=3.35e12, dense_flops_per_second=989e12)
OPT_1_3B = ModelDims(layers=24, parameters=1_315_758_080, weight_bytes=2_631_516_160, kv_bytes_per_token=196_608)
LLAMA_1B = ModelDims(layers=16, parameters=1_235_814_400, weight_bytes=2_471_628_800, kv_bytes_per_token=32_768)


def world_of(
    *,
    spec: GpuSpec,
    model: ModelDims,
    costs: EngineCosts,
    batch: int,
    blocks: int,
    lengths: Lengths,
    gpus: int = 1,
    engines_a_gpu: int = 1,
    rate: float | None = None,
    sharing: Mps | TimeSlicing | None = None,
) -> World:
    world = World()
    chance = random.Random(1)
    config = EngineConfig(max_num_seqs=batch, kv_blocks=blocks, max_model_len=2048)
    for g in range(gpus):
        world.add_gpu(f"gpu-{g}", spec, sharing or Mps())
        for e in range(engines_a_gpu):
            requests = lengths.draw(chance)
            source = (
                ClosedLoop(concurrency=2 * batch, requests=requests)
                if rate is None
                else PoissonArrivals(rates=[(0.0, rate)], requests=requests, chance=chance)
            )
            world.start_engine(f"e-{g}-{e}", gpu=f"gpu-{g}", config=config, model=model, costs=costs, source=source)
    return world


def speed(world: World, seconds: float, stride: float) -> float:
    """Simulated over wall seconds after ten simulated seconds of warm-up."""
    world.advance(10.0)
    end = world.now + seconds
    begun = time.perf_counter()
    while world.now < end:
        world.advance(min(end, world.now + stride))
    return seconds / (time.perf_counter() - begun)


def main() -> None:
    shared_gpt = Lengths(input_mean=110.6, output_mean=292.3, input_cv=1.0, output_cv=0.93, total_limit=2048)
    chat = Lengths(input_mean=512, output_mean=256, input_cv=0.9, output_cv=0.9, total_limit=2048)
    for batch in (1, 32, 96, 256):
        world = world_of(spec=H100_64GB, model=OPT_1_3B, costs=VLLM_0_5, batch=batch, blocks=18_446, lengths=shared_gpt)
        print(f"OPT-1.3B, one engine, batch {batch:3}: {speed(world, 400.0, 400.0):7,.0f} simulated seconds a second")
    for engines, sharing in ((2, Mps()), (4, Mps()), (4, TimeSlicing())):
        world = world_of(
            spec=H100_64GB,
            model=OPT_1_3B,
            costs=VLLM_0_5,
            batch=96,
            blocks=3_744,
            lengths=shared_gpt,
            engines_a_gpu=engines,
            sharing=sharing,
        )
        kind = type(sharing).__name__
        print(f"OPT-1.3B, {engines} engines of batch 96, {kind}: {speed(world, 60.0, 60.0):7,.0f}")
    world = world_of(
        spec=H100_80GB,
        model=LLAMA_1B,
        costs=VLLM_V1,
        batch=100,
        blocks=20_000,
        lengths=chat,
        gpus=2,
        engines_a_gpu=4,
    )
    core = 100.0 / speed(world, 20.0, 0.005)
    print(f"real time, 8 engines of batch 100 on 2 GPUs, moved every 5 ms: {core:.1f} % of a core")


if __name__ == "__main__":
    main()
