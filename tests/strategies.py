"""What tests of the decision are made of: short builders of nouns, and Hypothesis strategies of small worlds."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from gpupack import catalog
from gpupack.facts.gpu import Gpu
from gpupack.facts.llm import Dtype
from gpupack.facts.policy import Policy
from gpupack.facts.serving import (
    IDLE,
    Batching,
    Lengths,
    Mode,
    Scaling,
    ScalingMode,
    Serving,
    ServingKey,
    SharingWish,
    Slo,
    Statistic,
)
from gpupack.units import PerSecond, Ratio, Seconds

NOON = Seconds(1_795_000_000.0)
"""When every test begins (unix seconds)."""

QUICK = Policy(
    rate_windows=(Seconds(30.0), Seconds(60.0)),
    scale_down_delay=Seconds(60.0),
    pending_deadline=Seconds(120.0),
    dcgm_period=Seconds(2.0),
    min_window_requests=20,
    window=Seconds(30.0),
    warmup=Seconds(10.0),
)
"""The pool's times shortened, as a pool may; everything else is the default."""


def key(name: str, namespace: str = "team") -> ServingKey:
    return ServingKey(namespace=namespace, name=name)


def gpu(number: int, kind: str = "H100-80GB", node: str = "node-0") -> Gpu:
    return Gpu(
        uuid=f"GPU-{number:08d}-0000-4000-8000-000000000000",
        node=node,
        device_name=f"gpu-{number}",
        kind=catalog.gpu(kind),
    )


def serving(
    name: str,
    *,
    namespace: str = "team",
    model: str = "llama-3.2-1b",
    lengths: Lengths | None = None,
    itl: float | None = 0.040,
    ttft: float | None = None,
    rate: float | None = None,
    least: int = 1,
    most: int | None = None,
    replicas: int | None = None,
    sharing: SharingWish = SharingWish.AUTO,
    mode: Mode = Mode.ACTIVE,
    batch: int | None = None,
    template: str = "template00",
    max_model_len: int | None = None,
    cpu_cores: int = 2,
    age: float = 1000.0,
    idle: float = IDLE,
    dtype: Dtype = Dtype.BFLOAT16,
) -> Serving:
    """A serving of `model`; `itl`, `ttft` in seconds, `replicas` sets a manual count, `batch` a fixed batch limit."""
    slo = None
    if itl is not None or ttft is not None:
        slo = Slo(
            itl=None if itl is None else Seconds(itl),
            ttft=None if ttft is None else Seconds(ttft),
            statistic=Statistic.P95,
        )
    return Serving(
        key=key(name, namespace),
        uid=f"uid-{namespace}-{name}",
        generation=1,
        created_at=Seconds(NOON - age),
        pool="default",
        llm=catalog.llm(model),
        dtype=dtype,
        max_model_len=max_model_len,
        engine_version="0.33.0",
        template_hash=template,
        cpu_cores=cpu_cores,
        lengths=lengths or Lengths(input_mean=512.0, output_mean=256.0),
        declared_rate=None if rate is None else PerSecond(rate),
        slo=slo,
        batching=Batching(fixed=batch, min_efficiency=Ratio(0.1)),
        scaling=Scaling(
            mode=ScalingMode.AUTO if replicas is None else ScalingMode.MANUAL,
            replicas=1 if replicas is None else replicas,
            min_replicas=least,
            max_replicas=most,
            idle=Seconds(idle),
        ),
        sharing=sharing,
        mode=mode,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallWorld:
    """Servings with their loads (requests a second) on a few GPUs."""

    gpus: tuple[Gpu, ...]
    servings: tuple[Serving, ...]
    loads: tuple[float, ...]


@st.composite
def small_worlds(draw: st.DrawFn, most_gpus: int = 3, most_servings: int = 3) -> SmallWorld:
    """One to three GPUs of two kinds, one to three servings of unlike models in up to two namespaces."""
    gpus = tuple(
        gpu(number, kind=draw(st.sampled_from(("H100-80GB", "L4"))), node=f"node-{number // 2}")
        for number in range(draw(st.integers(1, most_gpus)))
    )
    servings = tuple(
        serving(
            f"serving-{number}",
            namespace=draw(st.sampled_from(("team", "team", "other"))),
            model=draw(st.sampled_from(("llama-3.2-1b", "qwen3-4b", "opt-1.3b", "llama-3.1-8b"))),
            least=draw(st.integers(1, 2)),
            most=draw(st.none() | st.integers(2, 4)),
            replicas=draw(st.none() | st.integers(0, 3)),
            itl=draw(st.sampled_from((None, 0.040, 0.080))),
            sharing=draw(st.sampled_from((SharingWish.AUTO, SharingWish.AUTO, SharingWish.EXCLUSIVE))),
            age=draw(st.sampled_from((10.0, 1000.0))),
        )
        for number in range(draw(st.integers(1, most_servings)))
    )
    loads = tuple(draw(st.sampled_from((0.0, 2.0, 20.0, 120.0))) for _ in servings)
    return SmallWorld(gpus=gpus, servings=servings, loads=loads)
