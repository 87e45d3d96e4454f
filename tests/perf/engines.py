"""Groups of engines to ask about, by example and by chance, for the tests beside this file."""

from __future__ import annotations

from hypothesis import strategies as st

from gpupack import catalog
from gpupack.facts.llm import Dtype
from gpupack.facts.serving import Lengths, Shape
from gpupack.perf import calibration
from gpupack.perf.memory import kv_cache_bytes, kv_tokens_needed
from gpupack.perf.prediction import EngineGroup, Router
from gpupack.units import PerSecond, Ratio

H100 = catalog.gpu("h100-80gb")
CHAT = Lengths(input_mean=512.0, output_mean=256.0)
SMALL = ("opt-125m", "opt-1.3b", "llama-3.2-1b", "qwen2.5-0.5b", "qwen3-0.6b", "qwen3-4b")


def group(
    model: str = "llama-3.2-1b",
    *,
    batch: int = 96,
    replicas: int = 1,
    rate: float | None = None,
    lengths: Lengths = CHAT,
    max_model_len: int = 2048,
    chunked: bool = True,
    batched_tokens: int = 2048,
    router: Router = Router.LEAST_LOADED,
    version: str | None = None,
    kv_tokens: int | None = None,
) -> EngineGroup:
    llm = catalog.llm(model)
    tokens = kv_tokens or kv_tokens_needed(lengths, batch, max_model_len, Ratio(0.15))
    return EngineGroup(
        llm=llm,
        dtype=Dtype.FLOAT16,
        shape=Shape(
            max_num_seqs=batch,
            kv_cache_memory_bytes=kv_cache_bytes(llm, Dtype.FLOAT16, tokens),
            max_num_batched_tokens=batched_tokens,
            max_model_len=max_model_len,
            chunked_prefill=chunked,
        ),
        lengths=lengths,
        replicas=replicas,
        request_rate=None if rate is None else PerSecond(rate),
        coefficients=calibration.coefficients(version),
        router=router,
    )


lengths = st.builds(
    Lengths,
    input_mean=st.floats(8, 1500),
    output_mean=st.floats(4, 800),
    input_cv=st.sampled_from((0.0, 0.5, 0.9, 1.3)),
    output_cv=st.sampled_from((0.0, 0.5, 0.9, 1.3)),
)

gpus = st.sampled_from(catalog.gpus())

groups = st.builds(
    group,
    st.sampled_from(SMALL),
    batch=st.integers(1, 512),
    replicas=st.integers(1, 4),
    rate=st.none() | st.floats(0, 200),
    lengths=lengths,
    chunked=st.booleans(),
    batched_tokens=st.sampled_from((512, 2048, 8192)),
    router=st.sampled_from(Router),
    version=st.sampled_from(("0.5.2", "0.8.5", "0.33.0")),
    kv_tokens=st.none() | st.integers(2048, 200_000),
)
