"""What the points of a sweep say of the model's coefficients, as it is told to people."""

from __future__ import annotations

from gpupack.facts.gpu import GpuKind
from gpupack.facts.llm import Dtype, Llm
from gpupack.facts.measured import Fitted
from gpupack.facts.serving import Profile
from gpupack.perf import calibration
from gpupack.perf.prediction import Coefficients


def fitted(
    profile: Profile, llm: Llm, gpu: GpuKind, base: Coefficients, dtype: Dtype | None = None,
    field: str = "spec.profileRef",
) -> Fitted:  # fmt: skip
    """`base` moved towards the profile's points. Raises Invalid where that cannot be, naming the field."""
    found = calibration.fit(profile, llm, gpu, base, dtype, field)
    return Fitted(
        seconds_per_step=found.per_step(llm.layers),
        host_seconds_per_sequence=found.host_per_sequence,
        kv_read_efficiency=found.kv_read_efficiency,
        misses=calibration.misses(profile, llm, gpu, found, dtype),
        error=found.error,
    )
