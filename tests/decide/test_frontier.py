"""Every pair of batch and replicas that fits, and which of them no other pair beats."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

from gpupack import catalog
from gpupack.decide.frontier import points
from gpupack.decide.search import LADDER, Search
from gpupack.facts.serving import Slo, Statistic
from gpupack.units import GIB, Bytes

from .test_advise import ONE_B, promise


def test_every_count_that_fits_is_there_and_none_that_does_not() -> None:
    search, pairs = Search(ONE_B), points(ONE_B)
    counts = {batch: sorted(each.replicas for each in pairs if each.max_num_seqs == batch) for batch in LADDER}
    for batch, found in counts.items():
        assert found == list(range(1, len(found) + 1))
        assert len(found) == 32 or search.no_room(batch, len(found) + 1) is not None
        assert not found or search.no_room(batch, len(found)) is None


def test_a_model_of_which_more_would_fit_is_looked_at_up_to_32_engines() -> None:
    huge = replace(ONE_B.gpu, memory_bytes=Bytes(4096 * GIB))
    found = points(replace(ONE_B, llm=catalog.llm("opt-125m"), gpu=huge))
    assert max(each.replicas for each in found) == 32


def test_points_come_by_latency_and_of_equals_the_one_that_does_most_and_then_the_smallest() -> None:
    found = points(ONE_B)
    keys = [(each.itl, -each.prediction.total_tokens_per_second, each.max_num_seqs, each.replicas) for each in found]
    assert keys == sorted(keys)
    assert found[0].best
    assert all(sum(each.best for each in of) <= 1 for _, of in groupby(found, key=lambda each: each.itl))


def test_a_pair_keeps_the_promise_up_to_its_last_moment_and_any_without_one() -> None:
    every = points(ONE_B)
    slowest = every[len(every) // 2].itl
    found = points(replace(ONE_B, slo=promise(slowest)))
    assert [each.keeps_slo for each in found] == [each.itl <= slowest for each in found]
    free = Slo(itl=None, ttft=None, statistic=Statistic.P95)
    assert all(each.keeps_slo for each in points(replace(ONE_B, slo=free)))
