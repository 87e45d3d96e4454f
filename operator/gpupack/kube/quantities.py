"""Kubernetes quantities that are plain numbers: cores, requests a second. Bytes are `units.parse_bytes`' business."""

from __future__ import annotations

import math
import re

_QUANTITY = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(n|u|m|k|M|G|)")
_FACTORS = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}


def number_of(quantity: str | int | float) -> float:
    """`1500m` is 1.5, `2` is 2. Raises ValueError for anything that is not a number with a decimal suffix."""
    match = _QUANTITY.fullmatch(str(quantity))
    if match is None:
        raise ValueError(f"{quantity!r} is not a number")
    return float(match[1]) * _FACTORS[match[2]]


def number_text(value: float) -> str:
    """A number without exponent: whole ones whole, others with four significant digits. The schema has no floats."""
    if not math.isfinite(value):
        return str(value)
    if value == round(value, 0):
        return str(int(value))
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"
