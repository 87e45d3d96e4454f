"""Coefficients by engine version, and their fit to what a user measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpupack.errors import Invalid
from gpupack.facts.estimate import Source
from gpupack.facts.llm import Dtype
from gpupack.facts.serving import Profile, ProfilePoint, Sharing
from gpupack.perf import calibration
from gpupack.perf.memory import default_shape
from gpupack.perf.prediction import Coefficients
from gpupack.perf.sharing import predict
from gpupack.units import Ratio, Seconds

from .engines import CHAT, H100, group

TRUE = replace(
    calibration.coefficients(),
    host_per_layer=Seconds(0.09e-3),
    gpu_per_layer=Seconds(0.04e-3),
    host_per_sequence=Seconds(0.009e-3),
)


def measured(batch: int, coefficients: Coefficients) -> ProfilePoint:
    asked = group(batch=batch)
    shape = default_shape(asked.llm, Dtype.BFLOAT16, H100, max_num_seqs=batch, max_num_batched_tokens=2048)
    asked = replace(asked, dtype=Dtype.BFLOAT16, shape=shape, coefficients=coefficients)
    got = predict(H100, (asked,), Sharing.EXCLUSIVE).groups[0]
    return ProfilePoint(max_num_seqs=batch, total_tokens_per_second=got.total_tokens_per_second, itl_mean=got.itl_mean)


def profile(*points: ProfilePoint) -> Profile:
    return Profile(name="mine", gpu_kind=H100.name, engine_version="0.33.0", lengths=CHAT, points=points)


def test_the_newest_coefficients_are_the_default() -> None:
    assert calibration.coefficients() == calibration.coefficients("0.8.5")


@pytest.mark.parametrize(
    ("asked", "known"),
    [
        ("0.5.2", "0.5.2"),
        ("0.5.2.dev1210+g6f078ea3c", "0.5.2"),
        ("0.4", "0.5.2"),
        ("0.7.3", "0.5.2"),
        ("v0.8.5", "0.8.5"),
        ("0.33.0rc1", "0.8.5"),
    ],
)
def test_a_version_takes_the_newest_coefficients_that_are_not_newer(asked: str, known: str) -> None:
    assert calibration.coefficients(asked).engine_version == known


def test_an_engine_that_nobody_calibrated_is_believed_less() -> None:
    calibrated, newer = calibration.coefficients("0.8.5"), calibration.coefficients("0.33.0")
    assert newer.error > calibrated.error
    assert newer.source is Source.ANALYTIC


def test_what_is_no_version_is_refused() -> None:
    with pytest.raises(Invalid, match="no engine version"):
        calibration.coefficients("newest")


def test_a_fit_meets_points_that_the_model_can_meet() -> None:
    points = tuple(measured(batch, TRUE) for batch in (1, 16, 64, 128, 256))
    fitted = calibration.fit(profile(*points), group().llm, H100, calibration.coefficients())
    assert fitted.source is Source.MEASURED
    assert fitted.error <= 0.03
    for point in points:
        again = measured(point.max_num_seqs, fitted)
        assert again.total_tokens_per_second == pytest.approx(point.total_tokens_per_second, rel=0.02)
        assert again.itl_mean == pytest.approx(point.itl_mean, rel=0.02)


def test_points_that_the_coefficients_already_meet_leave_them_as_they_are() -> None:
    base = calibration.coefficients()
    fitted = calibration.fit(profile(*(measured(batch, base) for batch in (8, 64))), group().llm, H100, base)
    assert fitted.host_per_layer == pytest.approx(base.host_per_layer, rel=1e-3)
    assert fitted.kv_read_efficiency == pytest.approx(base.kv_read_efficiency, rel=1e-3)


def test_no_point_moves_a_coefficient_out_of_bounds() -> None:
    wild = ProfilePoint(max_num_seqs=16, total_tokens_per_second=10.0, itl_mean=Seconds(2.0))
    base = calibration.coefficients()
    fitted = calibration.fit(profile(wild), group().llm, H100, base)
    assert fitted.host_per_layer <= 2.51 * base.host_per_layer
    assert 0.39 * base.kv_read_efficiency <= fitted.kv_read_efficiency <= 1
    assert fitted.error > Ratio(0.5)


def test_a_profile_of_another_gpu_or_without_points_is_refused() -> None:
    base = calibration.coefficients()
    with pytest.raises(Invalid, match="H200"):
        calibration.fit(replace(profile(measured(8, base)), gpu_kind="H200"), group().llm, H100, base)
    with pytest.raises(Invalid, match="no points"):
        calibration.fit(profile(), group().llm, H100, base)
