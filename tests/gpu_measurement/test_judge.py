"""The report on GPU measurements, of records that the test makes: no figure here was measured anywhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gpupack.perf.calibration import coefficients
from gpupack.perf.queueing import Customer, stretches

FOLDER = Path(__file__).parents[2] / "e2e" / "gpu"
HOST, HOST_EACH, GPU, GPU_EACH = 0.8e-3, 20e-6, 1.5e-3, 15e-6
BATCHES = (1, 32, 128, 512)


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    import results

    return results


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    import judge

    return judge


def point(results: ModuleType, shared: Any, replicas: int, batch: int, interference: float) -> Any:
    """As the closed network with this interference has it."""
    think, service = HOST + HOST_EACH * batch, GPU + GPU_EACH * batch
    slowed = service * (1 + interference * (replicas - 1) / replicas)
    (stretch,) = stretches((Customer(think, slowed, replicas),))
    step = think + stretch * slowed
    engine = results.EngineRun(
        pid=7, steps=1000, seconds=1000 * step, step_seconds_mean=step, step_seconds_p95=step,
        gpu_seconds_mean=stretch * slowed,
    )  # fmt: skip
    return results.Point(
        shared=shared, replicas=replicas, batch=batch, engines=(engine,) * replicas, dram_bandwidth=0.5,
        sm_active=None, power_watts=400.0, mps_clients=replicas,
    )  # fmt: skip


def measurement(results: ModuleType, interference: float) -> Any:
    points = [
        point(results, results.Shared.MPS, replicas, batch, interference) for replicas in (1, 2, 4) for batch in BATCHES
    ]
    return results.Measurement(
        format=results.FORMAT,
        taken="2000-01-01",
        setting=results.Setting(
            gpu="Made up", uuid="GPU-0", memory_bytes=1, driver="0", nvml="0", gpm=True, compute_mode=None, torch="0",
            cuda="0", python="0", gpupack="0",
        ),
        decoder=results.Decoder(
            layers=16, hidden=2048, heads=32, kv_heads=8, head_dim=64, mlp=8192, vocabulary=1000, context_tokens=640,
            bookkeeping=1,
        ),
        mps_problem=None,
        points=tuple(points),
    )  # fmt: skip


def test_z_and_d_come_from_one_engine_alone(results: ModuleType, judge: ModuleType) -> None:
    record = measurement(results, interference=2.0)
    alone, _ = judge.judge(record, results.Shared.MPS)
    assert (alone.host.fixed, alone.host.each) == pytest.approx((HOST, HOST_EACH))
    assert (alone.gpu.fixed, alone.gpu.each) == pytest.approx((GPU, GPU_EACH))
    others = measurement(results, interference=0.0)
    mixed = replace(record, points=(*record.points[: len(BATCHES)], *others.points[len(BATCHES) :]))
    assert judge.judge(mixed, results.Shared.MPS)[0] == alone


def test_engines_that_share_as_the_package_believes_are_predicted_without_error(
    results: ModuleType, judge: ModuleType
) -> None:
    record = measurement(results, float(coefficients().mps_interference))
    _, answers = judge.judge(record, results.Shared.MPS)
    assert len(answers) == 2 * len(BATCHES)
    assert [answer.error for answer in answers] == pytest.approx([0.0] * len(answers), abs=1e-9)


def test_engines_that_hurt_each_other_more_show_as_an_error_of_the_prediction(
    results: ModuleType, judge: ModuleType
) -> None:
    record = measurement(results, interference=1.0)
    _, answers = judge.judge(record, results.Shared.MPS)
    assert all(answer.error > 0.05 for answer in answers)
    text = judge.report(Path("gpu-made-up.json"), record)
    worst = max(answer.error for answer in answers)
    assert f"worst {100 * worst:.1f} %" in text


def test_what_could_not_be_had_is_said(results: ModuleType, judge: ModuleType) -> None:
    record = measurement(results, 0.0)
    failed = replace(record.points[-1], engines=(), dram_bandwidth=None, failed="CUDA out of memory")
    record = replace(
        record,
        points=(*record.points[:-1], failed),
        mps_problem="no daemon",
        setting=replace(record.setting, gpm=False),
    )
    text = judge.report(Path("gpu-made-up.json"), record)
    assert "nothing under MPS: no daemon" in text
    assert "no DRAM bandwidth: this GPU or driver has no GPM" in text
    assert "failed: mps, 4 x 512: CUDA out of memory" in text
    assert "time_slicing: no runs of one engine at two batches, so nothing is fitted" in text


def test_a_record_is_read_as_it_was_written_and_another_format_is_refused(
    results: ModuleType, judge: ModuleType, tmp_path: Path
) -> None:
    record = measurement(results, 0.0)
    results.write(record, tmp_path / "gpu-made-up.json")
    assert list(results.found(tmp_path)) == [(tmp_path / "gpu-made-up.json", record)]
    (tmp_path / "gpu-other.json").write_text('{"format": "something else"}')
    with pytest.raises(ValueError, match="is no measurement of this version"):
        list(results.found(tmp_path))
    assert judge.NO_RESULTS.startswith("There are no results")


def test_every_result_that_is_kept_can_be_read_and_reported(results: ModuleType, judge: ModuleType) -> None:
    for path, record in results.found(results.FOLDER):
        assert judge.report(path, record)
