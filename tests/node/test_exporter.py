"""The exporter's text is what gpupack's own reader, and Prometheus', make the GPUs' figures of."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gpupack import catalog
from gpupack.node.exporter import CardNow, ExporterFault, Field, Generation, page
from gpupack.node.virtual_node import cards
from gpupack.units import GIB, MIB

CARDS = cards("node-a", catalog.gpu("H100-80GB"), 2)
NOW = [
    CardNow(card=card, dram_active=0.25 + card.index, sm_active=0.5, gpu_held=0.75, fb_used=3 * GIB, power=400.0)
    for card in CARDS
]


def _values(text: str) -> dict[str, dict[str, float]]:
    return {
        family.name: {sample.labels["UUID"]: sample.value for sample in family.samples}
        for family in text_string_to_metric_families(text)
    }


@pytest.mark.parametrize("generation", Generation)
def test_both_generations_say_the_same_in_their_own_names_and_units(generation: Generation) -> None:
    values = _values(page(NOW, "node-a", generation, frozenset(), ExporterFault.NONE))
    old = generation is Generation.OLD
    first = CARDS[0].uuid
    assert values["DCGM_FI_PROF_DRAM_ACTIVE" if old else "DCGM_FI_PROF_DRAM_UTIL_RATIO"][first] == 0.25
    assert values["DCGM_FI_DEV_FB_USED" if old else "DCGM_FI_DEV_FB_USED_BYTES"][first] == 3 * GIB / (MIB if old else 1)
    assert values["DCGM_FI_DEV_POWER_USAGE" if old else "DCGM_FI_DEV_BOARD_POWER_WATTS"][first] == 400.0
    assert values["DCGM_FI_DEV_GPU_UTIL" if old else "DCGM_FI_DEV_GPU_UTIL_RATIO"][first] == (75 if old else 0.75)


def test_a_field_that_is_not_enabled_is_absent_and_not_zero() -> None:
    text = page(NOW, "node-a", Generation.OLD, frozenset({Field.DRAM_ACTIVE}), ExporterFault.NONE)
    assert "DRAM_ACTIVE" not in text
    assert "FB_USED" in text


def test_blanks_are_dcgms_sentinels() -> None:
    values = _values(page(NOW, "node-a", Generation.OLD, frozenset(), ExporterFault.BLANK))
    assert values["DCGM_FI_PROF_DRAM_ACTIVE"][CARDS[0].uuid] == 140737488355328.0
    assert values["DCGM_FI_DEV_FB_USED"][CARDS[0].uuid] >= 1.4e14
