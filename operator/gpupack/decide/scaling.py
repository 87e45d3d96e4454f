"""The scale of each counter of DRAM activity on each kind of GPU, from the first minutes of known load.

A sample is what the counter shows over the share of the peak that the engines say they move, of a window that passed
all that learning asks of one. The scale is kept once enough samples in a row agree, and is measured no more. A counter
that shows several times what it can, or nothing, is not measured but left as unknown as it was.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import replace

from gpupack.facts.counter import Counter, Scale
from gpupack.facts.interpretation import Facts, GpuFacts, interpret
from gpupack.facts.observation import Missing, Observation

Samples = Mapping[tuple[str, Counter], tuple[float, ...]]
"""Logarithms of ratios by kind of GPU and counter, the newest last."""

ENOUGH = 5
AGREE = 0.15
"""Largest standard deviation of the logarithm among them."""
LEAST_SHARE = 0.03
"""Traffic below this share of the peak is too little beside what a counter rounds."""
MOST_SHARE_SHOWN, MOST_TIME_SHOWN = 3.0, 30.0
"""What a counter of traffic, and one of time, can show over the traffic; one third of it is the least of either."""


def sampled(before: Samples, gpu: GpuFacts, share: float) -> Samples:
    """With what the counter shows of a GPU whose engines move that share of its peak."""
    shown = gpu.shown
    if isinstance(shown, Missing) or (isinstance(gpu.dram_active, Missing) and gpu.counter.is_share_of_peak):
        return before
    most = MOST_SHARE_SHOWN if gpu.counter.is_share_of_peak else MOST_TIME_SHOWN
    if share < LEAST_SHARE or not share / MOST_SHARE_SHOWN <= shown <= share * most:
        return before
    key = gpu.gpu.kind.name, gpu.counter
    return {**before, key: (*before.get(key, ()), math.log(shown / share))[-ENOUGH:]}


def with_scales(observation: Observation, facts: Facts, samples: Samples) -> tuple[Observation, Facts]:
    """Both with the scales that are measured by now besides those that are kept."""
    kept = {(each.gpu_kind, each.counter) for each in observation.scales}
    found = [
        Scale(gpu_kind=kind, counter=counter, ratio=ratio, measured_at=observation.at)
        for (kind, counter), logarithms in samples.items()
        if (kind, counter) not in kept and (ratio := _ratio(logarithms)) is not None
    ]
    if not found:
        return observation, facts
    scales = sorted((*observation.scales, *found), key=lambda each: (each.gpu_kind, each.counter))
    scaled = replace(observation, scales=tuple(scales))
    return scaled, interpret(scaled)


def _ratio(logarithms: tuple[float, ...]) -> float | None:
    if len(logarithms) < ENOUGH or statistics.stdev(logarithms) > AGREE:
        return None
    return round(math.exp(statistics.fmean(logarithms)), 4)
