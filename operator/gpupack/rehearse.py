"""The performance model's questions put to the digital twin: the same engines on the same GPU, stepped, not solved.

Translates nouns into the twin's plain numbers and draws or replays the requests. It does not judge the answer, and the
twin does not know the closed form: where they part, the gap is the news.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from gpupack.facts.gpu import GpuKind
from gpupack.facts.serving import BLOCK_TOKENS, Sharing
from gpupack.perf import calibration
from gpupack.perf.prediction import Coefficients, EngineGroup
from gpupack.twin import arrivals as twin_arrivals
from gpupack.twin import measure, memory_system
from gpupack.twin.arrivals import Request
from gpupack.twin.engine import EngineConfig
from gpupack.twin.measure import Deployment, Measures
from gpupack.twin.memory_system import EngineCosts, GpuSpec, ModelDims, Mps, TimeSlicing
from gpupack.units import Seconds

_FIRST_V1 = (0, 8)
# vLLM before V1 kept this share of its blocks free when it admitted a request.
_WATERMARK_V0 = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One recorded request in tokens; `arrival_time` None where nobody wrote down when it came."""

    input_tokens: int
    output_tokens: int
    arrival_time: Seconds | None = None


def rehearse_run(
    gpu: GpuKind,
    groups: Sequence[EngineGroup],
    sharing: Sharing,
    requests: int,
    seed: int,
    recorded: Sequence[Recorded] = (),
) -> tuple[Measures, ...]:
    """A whole run of so many requests, dealt evenly to all replicas, in the order of the groups: all there at the
    start, or at a group's rate, or when they were recorded.

    Recorded requests are repeated, one recording after the other, if there are too few. Raises Invalid for a shape with
    which vLLM does not start, and for fewer requests than engines.
    """
    chance = Random(seed)
    engines = sum(group.replicas for group in groups)
    dealt = [requests * group.replicas // engines for group in groups]
    dealt[0] += requests - sum(dealt)
    return tuple(
        measure.simulate_runs(
            gpu=_spec(gpu, groups[0]),
            deployments=[
                (_deployment(group), _arrivals(group, count, chance, recorded))
                for group, count in zip(groups, dealt, strict=True)
            ],
            sharing=_sharing(sharing),
            apart=sharing is Sharing.MIG,
        )
    )


def _arrivals(
    group: EngineGroup, count: int, chance: Random, recorded: Sequence[Recorded]
) -> list[tuple[float, Request]]:
    drawn = list(itertools.islice(_requests(group, chance, recorded), count))
    rate = group.request_rate
    if rate is not None and recorded and recorded[0].arrival_time is not None:
        times: Iterator[float] = _recorded_times(recorded)
    elif rate is not None:
        times = itertools.accumulate(chance.expovariate(rate) for _ in itertools.count())
    else:
        times = itertools.repeat(0.0)
    return list(zip(times, drawn, strict=False))


def rehearse_steady(
    gpu: GpuKind,
    groups: Sequence[EngineGroup],
    sharing: Sharing,
    seed: int,
    recorded: Sequence[Recorded] = (),
    window_requests: int = 2000,
) -> tuple[Measures, ...]:
    """A steady window of engines that are kept full or arrive at their rate, in the order of the groups.

    The window lasts for `window_requests` of the first group.
    """
    chance = Random(seed)
    return tuple(
        measure.simulate_steady(
            gpu=_spec(gpu, groups[0]),
            deployments=[(_deployment(group), _requests(group, chance, recorded)) for group in groups],
            chance=chance,
            sharing=_sharing(sharing),
            apart=sharing is Sharing.MIG,
            window_requests=window_requests,
        )
    )


def _requests(group: EngineGroup, chance: Random, recorded: Sequence[Recorded]) -> Iterator[Request]:
    if recorded:
        return itertools.cycle(
            Request(input_tokens=each.input_tokens, output_tokens=each.output_tokens) for each in recorded
        )
    lengths = group.lengths
    return twin_arrivals.Lengths(
        input_mean=lengths.input_mean,
        output_mean=lengths.output_mean,
        input_cv=lengths.input_cv,
        output_cv=lengths.output_cv,
        total_limit=group.shape.max_model_len,
    ).draw(chance)


def _recorded_times(recorded: Sequence[Recorded]) -> Iterator[float]:
    """Arrival times from 0 on; the next round begins one mean gap after the last arrival."""
    times = [float(each.arrival_time or 0.0) for each in recorded]
    begin, span = min(times), max(times) - min(times)
    round_seconds = span + span / max(1, len(times) - 1)
    return (turn * round_seconds + at - begin for turn in itertools.count() for at in sorted(times))


def _deployment(group: EngineGroup) -> Deployment:
    shape, llm = group.shape, group.llm
    v1 = _is_v1(group.coefficients)
    return Deployment(
        model=ModelDims.of(llm, group.dtype),
        costs=costs(group.coefficients),
        config=EngineConfig(
            max_num_seqs=shape.max_num_seqs,
            kv_blocks=shape.kv_cache_memory_bytes // (BLOCK_TOKENS * llm.kv_bytes_per_token(group.dtype)),
            max_model_len=shape.max_model_len,
            max_num_batched_tokens=shape.max_num_batched_tokens,
            chunked_prefill=shape.chunked_prefill,
            block_size=BLOCK_TOKENS,
            watermark=0.0 if v1 else _WATERMARK_V0,
        ),
        replicas=group.replicas,
        requests_per_second=group.request_rate,
    )


def costs(coefficients: Coefficients) -> EngineCosts:
    """The twin's own costs of that engine version.

    Where coefficients were fitted to a profile, the three scales that a fit moves (a step with its layers, a sequence,
    reading KV cache) move the twin's costs by the same factors.
    """
    own = memory_system.VLLM_V1 if _is_v1(coefficients) else memory_system.VLLM_0_5
    base = calibration.coefficients(coefficients.engine_version)
    return own.times(
        step=coefficients.gpu_per_layer / base.gpu_per_layer,
        sequence=coefficients.host_per_sequence / base.host_per_sequence,
        kv_read=coefficients.kv_read_efficiency / base.kv_read_efficiency,
    )


def _is_v1(coefficients: Coefficients) -> bool:
    numbers = coefficients.engine_version.removeprefix("v").split(".")
    return tuple(int(number) for number in numbers[:2]) >= _FIRST_V1


def _spec(gpu: GpuKind, group: EngineGroup) -> GpuSpec:
    spec = GpuSpec(
        memory_bytes=gpu.memory_bytes,
        dram_bytes_per_second=gpu.dram_bytes_per_second,
        # Tensor cores compute fp32 (as TF32) at half the rate of fp16.
        dense_flops_per_second=gpu.dense_flops_per_second * 2 / group.dtype.bytes_each,
        board_watts=gpu.board_power,
    )
    return spec if gpu.idle_power is None else replace(spec, idle_watts=gpu.idle_power)


def _sharing(sharing: Sharing) -> memory_system.Sharing:
    """One engine alone meets nobody, whatever the sharing is called."""
    return TimeSlicing() if sharing is Sharing.TIME_SLICING else Mps()
