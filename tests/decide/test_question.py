"""What the advisor is asked, and the arithmetic of lengths and memory under it."""

from __future__ import annotations

import pytest

from gpupack import catalog
from gpupack.decide.question import memory_needed, question_of, resolve_max_model_len
from gpupack.facts.policy import Policy
from gpupack.facts.serving import Lengths, Sharing
from gpupack.perf.calibration import coefficients
from gpupack.units import GIB, Bytes

from ..strategies import serving

WHOLE = catalog.gpu("H100-80GB")
SLICE = catalog.mig_profile(WHOLE, "1g.10gb").kind


@pytest.mark.parametrize(
    ("on_slice", "sharing", "asked"),
    [
        (False, Sharing.MPS, Sharing.MPS),
        (False, Sharing.EXCLUSIVE, Sharing.EXCLUSIVE),
        (False, Sharing.MIG, Sharing.EXCLUSIVE),
        (True, Sharing.MPS, Sharing.EXCLUSIVE),
        (True, Sharing.MIG, Sharing.EXCLUSIVE),
    ],
)
def test_a_slice_is_asked_about_for_one_engine_and_so_is_a_gpu_where_only_slices_are_wanted(
    on_slice: bool, sharing: Sharing, asked: Sharing
) -> None:
    one = serving("chat")
    question = question_of(
        one, SLICE if on_slice else WHOLE, Policy(), lengths=one.lengths, sharing=sharing, coefficients=coefficients(),
        overhead=Bytes(7),
    )  # fmt: skip
    assert (question.sharing, question.overhead) == (asked, 7)


@pytest.mark.parametrize(
    ("covariance", "tokens"), [(0.0, 5040), (50_000.0, 5728), (-125_000.0, 2000), (-200_000.0, 2000)]
)
def test_the_longest_request_is_twice_the_99th_percentile_in_whole_blocks(covariance: float, tokens: int) -> None:
    """Of 1000 tokens on average with a deviation of 500: 2514.8 (Wilson and Hilferty); without any, the mean."""
    lengths = Lengths(input_mean=600.0, output_mean=400.0, input_cv=0.5, output_cv=1.0, covariance=covariance)
    assert resolve_max_model_len(catalog.llm("llama-3.2-1b"), lengths, None) == tokens


def test_a_wish_is_taken_and_no_model_goes_beyond_its_own_length() -> None:
    long = Lengths(input_mean=1e6, output_mean=1e6)
    llm = catalog.llm("llama-3.2-1b")
    assert resolve_max_model_len(llm, long, 7) == 7
    assert resolve_max_model_len(llm, long, None) == llm.max_model_len


def test_engines_need_their_memory_with_the_reserve_or_the_start_of_the_last_one_whichever_is_more() -> None:
    engine = Bytes(10 * GIB)
    hundredths = -(-engine * 100 // WHOLE.memory_bytes)
    start = -(-hundredths * WHOLE.memory_bytes // 100)
    assert memory_needed(engine, 3, WHOLE, Bytes(5 * GIB)) == 35 * GIB
    assert memory_needed(engine, 3, WHOLE, Bytes(0)) == 20 * GIB + start > 30 * GIB
