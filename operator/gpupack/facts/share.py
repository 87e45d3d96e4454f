"""Whose a GPU's DRAM activity is: the device's one value, divided by what its engines say they move.

No counter tells of a process. Engines' own byte rates divide it where every engine gives one, else their token rates
where all serve one model, for a token of another model is another number of bytes. The shares' sum is the device's
value. Who cannot be told apart has no share, which is not a share of zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpupack.facts.interpretation import Facts, Known
from gpupack.facts.observation import Cause, Missing, Phase
from gpupack.units import Ratio

UNTOLD = Missing(cause=Cause.NO_SERIES, origin="share of DRAM activity")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mover:
    """An engine on the device. `read_bytes` and `tokens` are its own rates a second."""

    replica: str
    model: str
    read_bytes: Known
    tokens: Known


def apportion(device: Known, movers: Sequence[Mover]) -> Mapping[str, Ratio | Missing]:
    """Each engine's part of what the whole device shows, by name."""
    if isinstance(device, Missing):
        return {each.replica: device for each in movers}
    rates = _numbers([each.read_bytes for each in movers])
    if rates is None and len({each.model for each in movers}) == 1:
        rates = _numbers([each.tokens for each in movers])
    total = 0.0 if rates is None else sum(rates)
    if rates is None or (total <= 0 < device):
        return {each.replica: UNTOLD for each in movers}
    return {
        each.replica: Ratio(device * (rate / total) if total > 0 else 0.0)
        for each, rate in zip(movers, rates, strict=True)
    }


def _numbers(rates: Sequence[Known]) -> list[float] | None:
    """None where one is not known: without it the others' parts are not known either."""
    found = [each for each in rates if not isinstance(each, Missing)]
    return found if len(found) == len(rates) else None


def shares(facts: Facts, uuid: str) -> Mapping[str, Ratio | Missing]:
    """Of the replicas on a GPU that may be moving something, by name; nobody's where others hold the GPU too."""
    gpu, movers = facts.gpus[uuid], []
    for replica in facts.replicas_on.get(uuid, ()):
        if replica.phase not in (Phase.READY, Phase.STOPPING):
            continue
        engine, serving = facts.engines.get(replica.name), facts.servings.get(replica.serving)
        window = engine.windows[0] if engine is not None and engine.windows else None
        movers.append(
            Mover(
                replica=replica.name,
                model=str(replica.serving) if serving is None else serving.llm.name,
                read_bytes=UNTOLD if window is None else window.read_bytes,
                tokens=UNTOLD if window is None else window.generation_tokens,
            )
        )
    return apportion(UNTOLD if gpu.foreign else gpu.dram_active, movers)
