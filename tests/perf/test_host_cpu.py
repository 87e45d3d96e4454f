"""What fewer cores than an engine wants do to its steps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpupack.facts.serving import Sharing
from gpupack.perf import sharing
from gpupack.perf.host_cpu import CORES_WANTED, shortage

from .engines import H100, group


@pytest.mark.parametrize("cores", [None, CORES_WANTED, 2.0, 64.0])
def test_cores_enough_change_nothing(cores: float | None) -> None:
    assert shortage(cores) == 0.0


def test_a_step_gets_longer_by_the_share_of_cores_that_is_missing_and_moves_no_byte_more() -> None:
    enough, one = (sharing.predict(H100, (replace(group(), cores=cores),), Sharing.EXCLUSIVE) for cores in (2.0, 1.0))
    assert one.groups[0].itl_mean == pytest.approx(CORES_WANTED * enough.groups[0].itl_mean)
    assert one.total_tokens_per_second == pytest.approx(enough.total_tokens_per_second / CORES_WANTED)
    assert one.dram_active == pytest.approx(enough.dram_active / CORES_WANTED)


def test_siblings_use_the_gpu_while_one_waits_for_its_host() -> None:
    def gain(cores: float) -> float:
        one, two = (
            sharing.predict(H100, (replace(group(replicas=count), cores=cores),), how).total_tokens_per_second
            for count, how in ((1, Sharing.EXCLUSIVE), (2, Sharing.MPS))
        )
        return two / one

    assert gain(1.0) > gain(2.0)
