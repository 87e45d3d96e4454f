"""What the owner of a pool allows and expects: the numbers of a GpuPool, each with its unit, default and reason.

Defaults are those of the API (crds/); they stand here too so that tests and the command line need no cluster.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpupack.facts.serving import Sharing
from gpupack.units import GIB, Bytes, Ratio, Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """`max_gpus` None: all that match. `rate_windows`: arrival-rate windows, shortest first.

    `dcgm_period`: how often readings of GPUs change, whatever source they come from.
    `learning_interval`: so much load is seen before what it taught is written, and at most so often.
    """

    sharing: frozenset[Sharing] = frozenset({Sharing.MPS, Sharing.EXCLUSIVE, Sharing.MIG})
    max_gpus: int | None = None
    gpu_reserve: Bytes = Bytes(GIB)
    saturation_ceiling: Ratio = Ratio(0.90)
    unmeasured_saturation_ceiling: Ratio = Ratio(0.80)
    least_marginal_gain: Ratio = Ratio(0.05)
    target_utilization: Ratio = Ratio(0.85)
    kv_safety: Ratio = Ratio(0.15)
    prediction_tolerance: Ratio = Ratio(0.20)
    shape_gain: Ratio = Ratio(0.10)
    shape_hold: Seconds = Seconds(600.0)
    shape_interval: Seconds = Seconds(3600.0)
    warmup: Seconds = Seconds(60.0)
    window: Seconds = Seconds(60.0)
    min_window_requests: int = 200
    rate_windows: tuple[Seconds, ...] = (Seconds(30.0), Seconds(300.0))
    scale_down_delay: Seconds = Seconds(300.0)
    pending_deadline: Seconds = Seconds(600.0)
    remember_undone: Seconds = Seconds(1800.0)
    learning_interval: Seconds = Seconds(300.0)
    tick: Seconds = Seconds(2.0)
    least_gap: Seconds = Seconds(0.2)
    drain_queue: Seconds = Seconds(30.0)
    dcgm_period: Seconds = Seconds(30.0)
    engine_period: Seconds = Seconds(2.0)
    stale_periods: int = 3
    unexplained_memory: Bytes = Bytes(GIB)

    @property
    def dcgm_stale_after(self) -> Seconds:
        """A reading of a GPU that is older tells nothing of now."""
        return Seconds(self.dcgm_period * self.stale_periods)

    @property
    def engine_stale_after(self) -> Seconds:
        """A reading of an engine that is older tells nothing of now."""
        return Seconds(self.engine_period * self.stale_periods)

    @property
    def rates_told_after(self) -> Seconds:
        """From when an engine serves, or is watched, until its arrival rate can be expected to be known."""
        return Seconds(self.rate_windows[0] + self.engine_stale_after)

    @property
    def look_again_after(self) -> Seconds:
        """Between two scrapes of an engine in doubt: long enough for a count, and short beside what a pod takes."""
        return Seconds(self.engine_period / 4)
