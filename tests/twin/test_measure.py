"""What a whole run and a steady window promise."""

from __future__ import annotations

import itertools
import random

import pytest

from gpupack.errors import Invalid
from gpupack.twin.arrivals import Lengths, Request
from gpupack.twin.engine import EngineConfig
from gpupack.twin.measure import Deployment, Measures, simulate_runs, simulate_steady
from gpupack.twin.memory_system import VLLM_V1, GpuSpec, ModelDims, Mps

GPU = GpuSpec(memory_bytes=80 * 2**30, dram_bytes_per_second=3.35e12, dense_flops_per_second=989e12)
MODEL = ModelDims(layers=16, parameters=1_235_814_400, weight_bytes=2_471_628_800, kv_bytes_per_token=32_768)
LENGTHS = Lengths(input_mean=300, output_mean=100, input_cv=0.9, output_cv=0.9, total_limit=4096)


def deployment(replicas: int = 1, rate: float | None = None, max_num_seqs: int = 32) -> Deployment:
    config = EngineConfig(max_num_seqs=max_num_seqs, kv_blocks=5000, max_model_len=4096)
    return Deployment(model=MODEL, costs=VLLM_V1, config=config, replicas=replicas, requests_per_second=rate)


def steady(*deployments: Deployment, seed: int = 1, window: int = 1000) -> list[Measures]:
    chance = random.Random(seed)
    return simulate_steady(
        gpu=GPU,
        deployments=[(one, LENGTHS.draw(chance)) for one in deployments],
        chance=chance,
        window_requests=window,
    )


def run(replicas: int, seed: int, count: int = 400) -> Measures:
    requests = itertools.islice(LENGTHS.draw(random.Random(seed)), count)
    return simulate_runs(gpu=GPU, deployments=[(deployment(replicas), [(0.0, request) for request in requests])])[0]


def test_equal_seeds_give_equal_measures_and_other_seeds_others() -> None:
    assert run(2, 1) == run(2, 1)
    assert steady(deployment(2, 40.0)) == steady(deployment(2, 40.0))
    assert run(2, 1) != run(2, 2)


def test_a_whole_run_counts_every_token_over_the_time_to_the_last_one() -> None:
    requests = [Request(input_tokens=30, output_tokens=10)] * 70
    result = simulate_runs(gpu=GPU, deployments=[(deployment(3), [(0.0, request) for request in requests])])[0]
    assert result.total_tokens_per_second * result.simulated_seconds == pytest.approx(70 * 40)
    assert result.output_tokens_per_second * result.simulated_seconds == pytest.approx(70 * 10)
    assert result.e2e.p99 == pytest.approx(result.simulated_seconds, rel=0.01)


def test_a_recorded_trace_is_served_at_its_own_times() -> None:
    request = Request(input_tokens=30, output_tokens=10)
    result = simulate_runs(gpu=GPU, deployments=[(deployment(), [(100.0, request), (160.0, request)])])[0]
    assert 60.0 < result.simulated_seconds < 61.0
    assert result.e2e.p99 < 1.0
    assert result.dram_active < 0.01


def test_a_run_without_requests_is_refused() -> None:
    with pytest.raises(Invalid):
        simulate_runs(gpu=GPU, deployments=[(deployment(), [])])


def test_an_offered_rate_that_can_be_served_is_served() -> None:
    (result,) = steady(deployment(2, 30.0), window=3000)
    assert result.total_tokens_per_second == pytest.approx(30.0 * 400.0, rel=0.08)
    assert result.ttft is not None
    assert result.ttft.p50 <= result.ttft.p95 <= result.ttft.p99
    assert result.itl.p50 <= result.itl.p95 <= result.itl.p99
    assert result.itl.p50 <= result.itl.mean * 1.2


def test_at_saturation_the_batch_is_full_and_the_time_to_the_first_token_says_nothing() -> None:
    (result,) = steady(deployment(1))
    assert result.running_mean == pytest.approx(32.0, abs=1.0)
    assert result.ttft is None


def test_percentiles_of_equal_gaps_are_their_mean() -> None:
    requests = [(0.0, Request(input_tokens=16, output_tokens=200))]
    result = simulate_runs(gpu=GPU, deployments=[(deployment(), requests)])[0]
    for value in (result.itl.p50, result.itl.p95, result.itl.p99):
        assert value == pytest.approx(result.itl.mean, rel=0.01)


def test_a_neighbour_takes_some_of_the_throughput_and_the_gpu_does_more() -> None:
    (alone,) = steady(deployment(1))
    beside, neighbour = steady(deployment(1), deployment(2, max_num_seqs=8))
    assert beside.total_tokens_per_second < alone.total_tokens_per_second
    assert beside.dram_active == neighbour.dram_active > alone.dram_active
    assert beside.itl.mean > alone.itl.mean


def test_more_replicas_bring_more_in_all_and_less_each_until_the_gpu_is_full() -> None:
    results = [steady(deployment(replicas))[0] for replicas in (1, 2, 4)]
    assert results[0].total_tokens_per_second < results[1].total_tokens_per_second < results[2].total_tokens_per_second
    each = [result.replicas[0].total_tokens_per_second for result in results]
    assert each == sorted(each, reverse=True)


@pytest.mark.parametrize("wrong", [{"replicas": 0}, {"requests_per_second": 0.0}])
def test_a_deployment_that_cannot_serve_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(Invalid):
        Deployment(model=MODEL, costs=VLLM_V1, config=deployment().config, **wrong)


def test_interference_costs_throughput() -> None:
    results = []
    for interference in (0.0, 0.3):
        chance = random.Random(1)
        (result,) = simulate_steady(
            gpu=GPU,
            deployments=[(deployment(3), LENGTHS.draw(chance))],
            chance=chance,
            sharing=Mps(interference=interference),
            window_requests=500,
        )
        results.append(result.total_tokens_per_second)
    assert results[1] < results[0]


def test_unlike_deployments_run_together_and_every_request_is_served() -> None:
    request = Request(input_tokens=64, output_tokens=32)
    runs = [[(0.0, request)] * count for count in (40, 10)]
    together = simulate_runs(gpu=GPU, deployments=[(deployment(2), runs[0]), (deployment(), runs[1])])
    served = [each.output_tokens_per_second * each.simulated_seconds / 32 for each in together]
    assert served == pytest.approx([40, 10])
    alone = simulate_runs(gpu=GPU, deployments=[(deployment(2), runs[0])])[0]
    assert together[0].itl.mean > alone.itl.mean
