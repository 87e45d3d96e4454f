"""What the common options mean: engines with all their numbers on one GPU, and the load on them.

Defaults that an option leaves open are settled here, so that `predict` and `simulate` answer about the same setting.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from gpupack import catalog
from gpupack.cli.arguments import Options
from gpupack.cli.files import RecordedRequest, arrival_rate, lengths_of, read_requests
from gpupack.cli.measured import read_profile
from gpupack.decide.question import resolve_max_model_len
from gpupack.errors import Invalid
from gpupack.facts.gpu import GpuKind
from gpupack.facts.llm import Dtype, Llm
from gpupack.facts.policy import Policy
from gpupack.facts.serving import Lengths, Shape, Sharing
from gpupack.perf import calibration, memory
from gpupack.perf.prediction import Coefficients, EngineGroup
from gpupack.units import Bytes, PerSecond, Ratio

SHARINGS = {
    "exclusive": Sharing.EXCLUSIVE, "mps": Sharing.MPS, "mig": Sharing.MIG, "timeslicing": Sharing.TIME_SLICING,
}  # fmt: skip
ASSUMED_LENGTHS = Lengths(input_mean=512.0, output_mean=256.0, assumed=True)
_WHOLE = Ratio(0.9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What every question is about: a model with its traffic on a kind of GPU. `recorded` is the lengths file.

    `slices`: of a GPU that is cut, how many slices of this kind there are; None for a whole GPU.
    """

    llm: Llm
    dtype: Dtype
    gpu: GpuKind
    lengths: Lengths
    max_model_len: int
    coefficients: Coefficients
    recorded: tuple[RecordedRequest, ...]
    slices: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Engines on one GPU; the first group is the model that was asked about, the others are its neighbours.

    Under MIG each engine is alone on a slice, and `gpu` is the kind of these slices.
    `request_rate` is of the whole GPU, None keeps every engine full. `requests` None: the steady state.
    """

    gpu: GpuKind
    groups: tuple[EngineGroup, ...]
    sharing: Sharing
    request_rate: PerSecond | None
    requests: int | None
    recorded: tuple[RecordedRequest, ...]
    seed: int


def subject(given: Options) -> Subject:
    gpu, slices = _device(given)
    llm = catalog.llm(given.model)
    recorded = given.rebuilt if given.lengths is None else _recorded(given)
    lengths = lengths_of(recorded) if recorded else _declared(given)
    if given.max_model_len is not None and given.max_model_len > llm.max_model_len:
        raise Invalid(
            "--max-model-len", f"{llm.name} reads at most {llm.max_model_len} tokens", "give at most that many"
        )
    longest = given.max_model_len or llm.max_model_len
    if lengths.input_mean + lengths.output_mean > longest:
        raise Invalid(
            "--from-trace" if given.rebuilt else "--lengths" if recorded else "--input-tokens",
            f"requests of {lengths.input_mean + lengths.output_mean:.0f} tokens on average are longer than {longest}",
            f"give prompts and answers that {llm.name} can hold, or a larger --max-model-len"
            if longest < llm.max_model_len
            else f"give prompts and answers that {llm.name} can hold",
        )
    coefficients = calibration.coefficients(given.engine_version)
    if given.profile is not None:
        profile = read_profile(given.profile, gpu.name, coefficients.engine_version, lengths)
        coefficients = calibration.fit(profile, llm, gpu, coefficients)
    return Subject(
        llm=llm,
        dtype=_dtype(given, gpu),
        gpu=gpu,
        lengths=lengths,
        max_model_len=_max_model_len(given, llm, lengths),
        coefficients=coefficients,
        recorded=recorded,
        slices=slices,
    )


def _device(given: Options) -> tuple[GpuKind, int | None]:
    """The whole GPU, or the slices that it is cut into and how many of them there are."""
    gpu = catalog.gpu(given.gpu)
    if gpu.is_slice:
        raise Invalid("--gpu", f"{gpu.name} is a slice of a GPU", "name the GPU, with --sharing mig and --mig-profile")
    if given.mig_profile is None and given.sharing != "mig":
        return gpu, None
    if given.sharing not in (None, "mig"):
        raise Invalid("--mig-profile", f"slices are of --sharing mig, not of {given.sharing}", "give one of the two")
    if given.mig_profile is None:
        known = ", ".join(each.name for each in catalog.mig_profiles(gpu))
        raise Invalid("--mig-profile", "is missing", f"give one of {known}" if known else f"{gpu.name} has none")
    profile = catalog.mig_profile(gpu, given.mig_profile)
    return profile.kind, profile.most


def setting(given: Options) -> Setting:
    """Engines as asked for. Raises Invalid naming the option that cannot be carried out."""
    about = subject(given)
    replicas = given.replicas or 1
    engines = replicas + len(given.neighbours)
    sharing = Sharing.among(engines)
    if about.slices is not None:
        sharing = Sharing.MIG
    elif given.sharing is not None:
        sharing = SHARINGS[given.sharing]
    if about.slices is not None and engines > about.slices:
        raise Invalid(
            "--replicas",
            f"one GPU has at most {about.slices} slices {about.gpu.mig_profile}, {engines} engines want one each",
            "give fewer, or a smaller --mig-profile",
        )
    if sharing is Sharing.EXCLUSIVE and engines > 1:
        raise Invalid("--sharing", f"{engines} engines cannot have one GPU exclusively", "give mps or timeslicing")
    rate = _request_rate(given, about.recorded)
    each = None if rate is None else PerSecond(rate / engines)
    neighbours = tuple(
        _neighbour(about, given, neighbour.model, neighbour.max_num_seqs, each) for neighbour in given.neighbours
    )
    taken = sum(memory.replica_memory(group.llm, group.dtype, group.shape, about.gpu).total for group in neighbours)
    group = EngineGroup(
        llm=about.llm,
        dtype=about.dtype,
        shape=_shape(about, given, 1, 0) if sharing is Sharing.MIG else _shape(about, given, replicas, taken),
        lengths=about.lengths,
        replicas=replicas,
        request_rate=None if each is None else PerSecond(each * replicas),
        coefficients=about.coefficients,
    )
    return Setting(
        gpu=about.gpu,
        groups=(group, *neighbours),
        sharing=sharing,
        request_rate=rate,
        requests=given.requests,
        recorded=about.recorded,
        seed=given.seed,
    )


def _max_model_len(given: Options, llm: Llm, lengths: Lengths) -> int:
    """Without chunked prefill a prompt must fit into one step: vLLM refuses a token budget below max_model_len."""
    longest = resolve_max_model_len(llm, lengths, given.max_model_len)
    if given.chunked_prefill or longest <= given.max_num_batched_tokens:
        return longest
    if given.max_model_len is None and lengths.input_mean + lengths.output_mean <= given.max_num_batched_tokens:
        return given.max_num_batched_tokens
    raise Invalid(
        "--max-num-batched-tokens",
        f"{given.max_num_batched_tokens} is below --max-model-len {longest}, refused by vLLM without chunked prefill",
        f"give at least {longest}",
    )


def _recorded(given: Options) -> tuple[RecordedRequest, ...]:
    assert given.lengths is not None
    if any(value is not None for value in (given.input_tokens, given.output_tokens, given.input_cv, given.output_cv)):
        raise Invalid(
            "--lengths",
            "a file of lengths and --input-tokens, --output-tokens or their cv exclude each other",
            "give one",
        )
    return read_requests(given.lengths)


def _declared(given: Options) -> Lengths:
    assumed = ASSUMED_LENGTHS
    return Lengths(
        input_mean=given.input_tokens if given.input_tokens is not None else assumed.input_mean,
        output_mean=given.output_tokens if given.output_tokens is not None else assumed.output_mean,
        input_cv=given.input_cv if given.input_cv is not None else assumed.input_cv,
        output_cv=given.output_cv if given.output_cv is not None else assumed.output_cv,
        assumed=given.input_tokens is None or given.output_tokens is None,
    )


def _dtype(given: Options, gpu: GpuKind) -> Dtype:
    if given.dtype is None:
        return Dtype.BFLOAT16 if gpu.bfloat16 else Dtype.FLOAT16
    dtype = Dtype(given.dtype)
    if not gpu.computes_in(dtype):
        raise Invalid("--dtype", f"{gpu.name} does not compute in bfloat16", "give float16 or float32")
    return dtype


def _request_rate(given: Options, recorded: tuple[RecordedRequest, ...]) -> PerSecond | None:
    """Requests a second of the whole GPU; None keeps every engine full."""
    rate = given.request_rate if given.request_rate is not None else arrival_rate(recorded)
    return None if rate is None or math.isinf(rate) else PerSecond(rate)


def _shape(about: Subject, given: Options, replicas: int, taken_by_neighbours: int) -> Shape:
    """The engine's own wish; without one the KV cache that vLLM takes at 0.9 of what is there for each replica."""
    utilization = given.gpu_memory_utilization
    if utilization is None:
        free = _WHOLE - taken_by_neighbours / about.gpu.memory_bytes
        utilization = max(0.0, free) / replicas
    shape = memory.default_shape(
        about.llm,
        about.dtype,
        about.gpu,
        utilization=Ratio(utilization),
        max_num_seqs=given.max_num_seqs,
        max_num_batched_tokens=given.max_num_batched_tokens,
        max_model_len=about.max_model_len,
        chunked_prefill=given.chunked_prefill,
    )
    if given.kv_cache_memory_bytes is not None:
        shape = replace(shape, kv_cache_memory_bytes=Bytes(given.kv_cache_memory_bytes))
    if shape.max_num_batched_tokens < shape.max_num_seqs:
        raise Invalid(
            "--max-num-batched-tokens",
            f"{shape.max_num_batched_tokens} is below the batch limit {shape.max_num_seqs}, which vLLM refuses",
            f"give at least {shape.max_num_seqs}",
        )
    return shape


def _neighbour(about: Subject, given: Options, name: str, limit: int, rate: PerSecond | None) -> EngineGroup:
    """One engine of another model with the same traffic and the KV cache that its batch needs."""
    llm = catalog.llm(name, "--neighbour")
    longest = resolve_max_model_len(llm, about.lengths, None)
    tokens = memory.kv_tokens_needed(about.lengths, limit, longest, Policy().kv_safety)
    return EngineGroup(
        llm=llm,
        dtype=about.dtype,
        shape=Shape(
            max_num_seqs=limit,
            kv_cache_memory_bytes=memory.kv_cache_bytes(llm, about.dtype, tokens),
            max_num_batched_tokens=max(given.max_num_batched_tokens, limit),
            max_model_len=longest,
            chunked_prefill=given.chunked_prefill,
        ),
        lengths=about.lengths,
        replicas=1,
        request_rate=rate,
        coefficients=calibration.coefficients(given.engine_version),
    )
