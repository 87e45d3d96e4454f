"""One tick at a glance: what a person wants to see of each GPU and each serving, summed over its engines.

Latencies are those of the worst engine, as a promise is judged. What is missing or stale is None, never zero, and a sum
that lacks a part is None. Nothing is decided on this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gpupack.facts.gpu import Gpu
from gpupack.facts.interpretation import Facts, Known, Traffic, interpret
from gpupack.facts.observation import Cause, EngineSeen, Measured, Missing, Observation, Phase, Reading, ReplicaSeen
from gpupack.facts.placement import PredictedEffect
from gpupack.facts.serving import ServingKey
from gpupack.facts.share import shares
from gpupack.units import Bytes, PerSecond, Ratio, Seconds, Watts

_NO_WINDOW = Missing(cause=Cause.NO_SERIES, origin="window")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuGlance:
    """`ready` engines of ours serve. `attainable` is the DRAM activity that the engines of its last replica's time were
    predicted to reach at most; `tokens_per_second` counts prompts and answers over the shortest window.
    `dram_active_by` has the parts of the servings that can be told apart.
    """

    gpu: Gpu
    ready: int
    dram_active: Ratio | None
    attainable: Ratio | None
    memory_used: Bytes | None
    power: Watts | None
    tokens_per_second: float | None
    dram_active_by: Mapping[ServingKey, Ratio]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingGlance:
    """Over the shortest window: arrivals of all engines together, sequences that run in them, and latencies."""

    key: ServingKey
    ready: int
    requests_per_second: PerSecond | None
    running: float | None
    itl_mean: Seconds | None
    itl_p95: Seconds | None
    ttft_mean: Seconds | None
    ttft_p95: Seconds | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    gpus: tuple[GpuGlance, ...]
    servings: tuple[ServingGlance, ...]


def glance(seen: Observation) -> Glance:
    facts = interpret(seen)
    power = {each.gpu.uuid: each.power for each in seen.gpus}
    engines = {each.replica: each for each in seen.engines}
    keys = sorted({*facts.servings, *facts.replicas_of})
    return Glance(
        gpus=tuple(_gpu(facts, uuid, power[uuid], engines) for uuid in facts.gpus),
        servings=tuple(_serving(facts, key) for key in keys),
    )


def last_predicted(replicas: Iterable[ReplicaSeen]) -> PredictedEffect | None:
    """What the newest replica of a GPU was to bring there, as far as any says."""
    told = [(each.created_at, each.name, each.predicted) for each in replicas if each.predicted is not None]
    return max(told, key=lambda each: each[:2])[2] if told else None


def _gpu(facts: Facts, uuid: str, power: Measured, engines: dict[str, EngineSeen]) -> GpuGlance:
    gpu, here = facts.gpus[uuid], facts.replicas_on.get(uuid, ())
    ready = _ready(here)
    last = last_predicted(here)
    watts = power.value if isinstance(power, Reading) and facts.at - power.at <= facts.policy.dcgm_stale_after else None
    memory, dram = _number(gpu.fb_used), _number(gpu.dram_active)
    return GpuGlance(
        gpu=gpu.gpu,
        ready=len(ready),
        dram_active=None if dram is None else Ratio(dram),
        attainable=None if last is None else last.attainable,
        memory_used=None if memory is None else Bytes(round(memory)),
        power=None if watts is None else Watts(watts),
        tokens_per_second=_sum([rate for each in ready for rate in _token_rates(engines.get(each.name))]),
        dram_active_by=_by_serving(facts, uuid),
    )


def _by_serving(facts: Facts, uuid: str) -> dict[ServingKey, Ratio]:
    found = shares(facts, uuid)
    parts: dict[ServingKey, list[float | None]] = {}
    for each in facts.replicas_on.get(uuid, ()):
        if each.name in found:
            parts.setdefault(each.serving, []).append(_number(found[each.name]))
    return {key: Ratio(total) for key, of_one in parts.items() if (total := _sum(of_one)) is not None}


def _token_rates(engine: EngineSeen | None) -> tuple[float | None, float | None]:
    if engine is None or not engine.windows:
        return None, None
    prompt, generated = engine.windows[0].prompt_tokens, engine.windows[0].generation_tokens
    return (
        prompt.value if isinstance(prompt, Reading) else None,
        generated.value if isinstance(generated, Reading) else None,
    )


def _serving(facts: Facts, key: ServingKey) -> ServingGlance:
    ready = _ready(facts.replicas_of.get(key, ()))
    watched = [each.key for each in facts.running.get(key, ()) if each.key in facts.engines]
    names = [each.name for each in ready] + watched
    windows = [_shortest(facts, name) for name in names]
    rate = _sum([_window(each, "arrivals") for each in windows])
    return ServingGlance(
        key=key,
        ready=len(names),
        requests_per_second=None if rate is None else PerSecond(rate),
        running=_sum([_number(facts.engines[each].running) if each in facts.engines else None for each in names]),
        itl_mean=_worst(windows, "itl_mean"),
        itl_p95=_worst(windows, "itl_p95"),
        ttft_mean=_worst(windows, "ttft_mean"),
        ttft_p95=_worst(windows, "ttft_p95"),
    )


def _ready(replicas: Iterable[ReplicaSeen]) -> list[ReplicaSeen]:
    return [each for each in replicas if each.phase is Phase.READY]


def _shortest(facts: Facts, replica: str) -> Traffic | None:
    engine = facts.engines.get(replica)
    return engine.windows[0] if engine is not None and engine.windows else None


def _window(window: Traffic | None, field: str) -> float | None:
    return _number(_NO_WINDOW if window is None else getattr(window, field))


def _worst(windows: Iterable[Traffic | None], field: str) -> Seconds | None:
    known = [value for each in windows if (value := _window(each, field)) is not None]
    return Seconds(max(known)) if known else None


def _number(known: Known) -> float | None:
    return None if isinstance(known, Missing) else float(known)


def _sum(parts: list[float | None]) -> float | None:
    """None where there is nothing to sum, or a part of it is not known."""
    known = [each for each in parts if each is not None]
    return sum(known) if known and len(known) == len(parts) else None
