"""Numbers that gpupack believes rather than reads: value, bounds and where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Source(IntEnum):
    """Where a number comes from, best first; combining two estimates keeps the worse source."""

    MEASURED = 0
    CALIBRATED = 1
    ANALYTIC = 2
    DATASHEET = 3
    UNVERIFIED = 4
    ASSUMED = 5

    @property
    def word(self) -> str:
        return self.name.capitalize()


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with the bounds it is believed to lie in. The unit is the context's, always a base unit."""

    value: float
    low: float
    high: float
    source: Source

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"bounds {self.low} and {self.high} do not hold {self.value}")

    @staticmethod
    def exact(value: float, source: Source) -> Estimate:
        return Estimate(value=value, low=value, high=value, source=source)

    @staticmethod
    def within(value: float, share: float, source: Source) -> Estimate:
        """`value` believed to `share` (0.1 is ten per cent either way)."""
        reach = abs(value) * share
        return Estimate(value=value, low=value - reach, high=value + reach, source=source)

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(
            value=self.value + other.value,
            low=self.low + other.low,
            high=self.high + other.high,
            source=max(self.source, other.source),
        )
