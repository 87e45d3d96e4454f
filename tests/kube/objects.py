"""API objects as the server would hand them out, small and complete, for the tests beside this file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gpupack.errors import Invalid
from gpupack.facts.belief import Belief, BeliefKey
from gpupack.facts.estimate import Source
from gpupack.facts.gpu import GpuKind
from gpupack.facts.llm import Llm
from gpupack.facts.placement import Placement, PredictedEffect
from gpupack.facts.serving import Serving, ServingKey, Shape, Sharing
from gpupack.kube.serving_resource import ServingResource, serving_resource
from gpupack.plan import StartReplica
from gpupack.units import GIB, MIB, Bytes, BytesPerSecond, FlopsPerSecond, Ratio, Seconds, Watts

ROOT = Path(__file__).parents[2]
GPU = "GPU-6f3b1a52-0000-4000-8000-000000000001"
OTHER_GPU = "GPU-6f3b1a52-0000-4000-8000-000000000002"
AT = Seconds(1_795_000_000.0)
KEY = ServingKey(namespace="models", name="chat")
SHAPE = Shape(
    max_num_seqs=96, kv_cache_memory_bytes=Bytes(5 * GIB), max_num_batched_tokens=2048, max_model_len=4096
)  # fmt: skip

LLAMA = Llm(
    name="meta-llama/Llama-3.2-1B", aliases=("llama-3.2-1b", "meta-llama/Llama-3.2-1B-Instruct"), layers=16,
    hidden_size=2048, intermediate_size=8192, attention_heads=32, kv_heads=8, head_size=64, vocabulary=128256,
    parameters=1_235_814_400, max_model_len=131072, source=Source.DATASHEET, provenance="for tests",
)  # fmt: skip

H100 = GpuKind(
    name="H100-80GB", memory_bytes=Bytes(81_079 * MIB), dram_bytes_per_second=BytesPerSecond(3.35e12),
    dense_flops_per_second=FlopsPerSecond(989e12), sm_count=132, board_power=Watts(700.0), idle_power=None,
    bfloat16=True, mig=True, gpm=True, product_names=("NVIDIA H100 80GB HBM3",), source=Source.DATASHEET,
    provenance="for tests",
)  # fmt: skip

BELIEF = Belief(
    key=BeliefKey(namespace=KEY.namespace, model=LLAMA.name, gpu_kind=H100.name, engine_version="0.33.0"),
    step=Seconds(0.0026449), sequence=Seconds(9.5e-6), kv_read=Ratio(0.9), eager=Seconds(150e-6), gemm=Ratio(0.6),
    covariance=tuple(tuple(0.01 / (1 + row + column) - 0.002 for column in range(5)) for row in range(5)),
    error=Ratio(0.0312), load=Seconds(420.0), batch_least=2.5, batch_most=120.0, input_mean=512.0, output_mean=256.0,
    at=AT,
)  # fmt: skip


def llm_of(name: str, config: Mapping[str, Any] | None) -> Llm:
    if config is None and name.lower() not in (known.lower() for known in (LLAMA.name, *LLAMA.aliases)):
        raise Invalid("spec.model.name", f"no model {name!r} in the catalog", "give its config.json fields")
    return LLAMA


def gpu_by_product(product: str, memory: Bytes | None) -> GpuKind | None:
    return H100 if product in H100.product_names and memory is not None else None


def model_serving(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "gpupack.dev/v1alpha1",
        "kind": "ModelServing",
        "metadata": {
            "namespace": KEY.namespace,
            "name": KEY.name,
            "uid": "5c1f7a34-1111-4000-8000-000000000001",
            "generation": 3,
            "resourceVersion": "77",
            "creationTimestamp": "2026-11-18T10:40:00Z",
        },
        "spec": {"model": {"name": "llama-3.2-1b"}, **spec},
    }


def gpu_pool(status: Mapping[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "gpupack.dev/v1alpha1",
        "kind": "GpuPool",
        "metadata": {
            "name": "default",
            "uid": "5c1f7a34-2222-4000-8000-000000000001",
            "generation": 1,
            "resourceVersion": "5",
            "creationTimestamp": "2026-11-18T10:40:00Z",
        },
        "spec": spec,
        **({} if status is None else {"status": status}),
    }


def read(obj: Mapping[str, Any]) -> ServingResource:
    return serving_resource(obj, llm_of=llm_of)


def valid(obj: Mapping[str, Any]) -> Serving:
    serving = read(obj).serving
    assert isinstance(serving, Serving), serving
    return serving


def sample(name: str) -> dict[str, Any]:
    """A file of `deploy/samples` as the API server would hand it out."""
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "samples" / name).read_text())
    loaded["metadata"] = {**model_serving()["metadata"], **loaded["metadata"]}
    return loaded


def start(resource: ServingResource, sharing: Sharing = Sharing.MPS) -> StartReplica:
    return StartReplica(
        placement=Placement(
            serving=resource.key, gpu_uuid=GPU, slot=1, sharing=sharing, shape=SHAPE,
            template_hash=resource.template.hash, planned_at=AT,
        ),
        utilization_hundredths=12,
        predicted=PredictedEffect(
            tokens_per_second_before=9000.0, tokens_per_second_after=12500.5, saturation_after=Ratio(0.71),
            itl_after=Seconds(0.0213),
        ),
    )  # fmt: skip
