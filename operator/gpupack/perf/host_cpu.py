"""What an engine loses that has fewer cores than it wants.

Assumed, for nobody has published a measurement: vLLM V1 keeps one core busy in its engine core, which polls for the
GPU as long as a step lasts, and half a core in its API server. With fewer cores the two share them evenly, so a step
needs as much longer as cores are missing, and all of that is host gap. Only the direction is known: engines on one GPU
without cores of their own were slower together than one alone (sgl-project/sglang-omni, pull request 1066 and its
neighbours, H100 and H200).
"""

from __future__ import annotations

CORES_WANTED = 1.5
"""Of one engine under load; an assumption, also of the advice to reserve two whole cores."""


def shortage(cores: float | None) -> float:
    """The share of its length alone by which a step gets longer; 0 with enough cores, or where nobody counts them."""
    return 0.0 if cores is None else max(0.0, CORES_WANTED / cores - 1.0)
