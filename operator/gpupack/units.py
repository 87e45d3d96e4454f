"""Base units and every conversion between them.

Inside gpupack a quantity is in its base unit: bytes, seconds, tokens, FLOP, watts and ratios from 0 to 1. Only this
module knows other units. It does not know what a quantity means.
"""

from __future__ import annotations

import re
from typing import NewType

Bytes = NewType("Bytes", int)
Seconds = NewType("Seconds", float)
Ratio = NewType("Ratio", float)
PerSecond = NewType("PerSecond", float)
BytesPerSecond = NewType("BytesPerSecond", float)
FlopsPerSecond = NewType("FlopsPerSecond", float)
Watts = NewType("Watts", float)

KIB, MIB, GIB = 1024, 1024**2, 1024**3
MB, GB = 10**6, 10**9
MINUTE = Seconds(60.0)

_BINARY = {"Ki": KIB, "Mi": MIB, "Gi": GIB, "Ti": 1024**4}
_DECIMAL = {"": 1, "k": 10**3, "K": 10**3, "M": MB, "G": GB, "T": 10**12}
_QUANTITY = re.compile(r"(\d+)(?:\.(\d+))?(Ki|Mi|Gi|Ti|k|K|M|G|T)?B?")


def seconds_from_milliseconds(value: float) -> Seconds:
    return Seconds(value / 1000.0)


def seconds_from_microseconds(value: float) -> Seconds:
    return Seconds(value / 1_000_000.0)


def microseconds(value: Seconds | float) -> float:
    return float(value) * 1_000_000.0


def milliseconds(value: Seconds | float) -> float:
    return float(value) * 1000.0


def gibibytes(value: Bytes | int | float) -> float:
    return float(value) / GIB


def ratio_from_percent(value: float) -> Ratio:
    return Ratio(value / 100.0)


def percent(value: Ratio | float) -> float:
    return float(value) * 100.0


def parse_bytes(text: str) -> Bytes:
    """`30Gi`, `512M` or `1024` in bytes; binary suffixes are powers of 1024, decimal ones of 1000.

    Raises ValueError for anything else, so that the caller can name the field.
    """
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a quantity of bytes; write for instance 30Gi, 512Mi or 1073741824")
    whole, fraction, suffix = match[1], match[2] or "", match[3] or ""
    factor = _BINARY.get(suffix) or _DECIMAL[suffix]
    return Bytes(int(whole + fraction) * factor // 10 ** len(fraction))
