"""The options that `predict`, `simulate` and `advise` share, and the reading of one word into one value.

It knows how an option is written, not what it means: `setting.py` turns the options into engines on a GPU.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpupack.cli.files import RecordedRequest
from gpupack.units import Bytes, parse_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """An unlike engine on the same GPU: a model's name and its batch limit."""

    model: str
    max_num_seqs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The common options as given; None where the option was not. Lengths are in tokens, rates a second.

    `rebuilt` are requests from elsewhere, in place of a file of lengths; empty without.
    """

    model: str
    gpu: str
    rebuilt: tuple[RecordedRequest, ...]
    input_tokens: float | None
    output_tokens: float | None
    input_cv: float | None
    output_cv: float | None
    lengths: Path | None
    max_num_seqs: int | None
    replicas: int | None
    sharing: str | None
    mig_profile: str | None
    gpu_memory_utilization: float | None
    kv_cache_memory_bytes: Bytes | None
    max_model_len: int | None
    dtype: str | None
    chunked_prefill: bool
    max_num_batched_tokens: int
    engine_version: str | None
    request_rate: float | None
    requests: int | None
    neighbours: tuple[Neighbour, ...]
    profile: Path | None
    seed: int
    json: bool


def add_common(parser: argparse.ArgumentParser, *, needs_model: bool = True) -> None:
    """The common options; `needs_model` False where a measured profile alone can be asked about."""
    model = parser.add_argument_group("model and GPU")
    model.add_argument("--model", required=needs_model, metavar="NAME", help="a model of `gpupack catalog`")
    model.add_argument("--gpu", required=needs_model, metavar="NAME", help="a GPU of `gpupack catalog`")
    model.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="default: what the GPU is good at")
    model.add_argument(
        "--engine-version", metavar="V", help="the vLLM version whose coefficients are used; default: the newest"
    )
    model.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="measured runs to fit coefficients to: CSV, JSON, or what `vllm bench serve` and `sweep serve` wrote",
    )

    load = parser.add_argument_group("load")
    load.add_argument("--input-tokens", type=tokens, metavar="I", help="mean prompt length; default 512")
    load.add_argument("--output-tokens", type=tokens, metavar="O", help="mean answer length; default 256")
    load.add_argument(
        "--input-cv", type=not_negative, metavar="C", help="standard deviation over mean of prompts; default 0.9"
    )
    load.add_argument("--output-cv", type=not_negative, metavar="C", help="the same of answers; default 0.9")
    load.add_argument(
        "--lengths",
        type=Path,
        metavar="FILE.csv",
        help="one request a line: input_tokens, output_tokens and, if known, arrival_time (seconds), adapter",
    )
    load.add_argument(
        "--request-rate",
        type=request_rate,
        metavar="R|inf",
        help="requests a second of the whole GPU; default inf (every engine kept full), or the file's arrival times",
    )
    load.add_argument("--requests", type=count, metavar="N", help="a whole run of N requests instead of a steady state")
    load.add_argument("--seed", type=whole, default=0, metavar="S", help="of the twin's chance; default 0")

    shape = parser.add_argument_group("engines")
    shape.add_argument("--max-num-seqs", type=count, metavar="B", help="batch limit of an engine; default: vLLM's")
    shape.add_argument("--replicas", type=count, metavar="R", help="engines on the GPU; default 1")
    shape.add_argument(
        "--sharing",
        choices=("exclusive", "mps", "mig", "timeslicing"),
        help="default: exclusive for one engine, mps for several; mig: each engine on a slice of its own",
    )
    shape.add_argument("--mig-profile", metavar="P", help="the slices of --sharing mig, for instance 1g.10gb")
    memory = shape.add_mutually_exclusive_group()
    memory.add_argument(
        "--gpu-memory-utilization", type=share, metavar="U", help="of each engine; default 0.9 over their number"
    )
    memory.add_argument(
        "--kv-cache-memory-bytes", type=quantity, metavar="N", help="KV cache of each engine, for instance 4Gi"
    )
    shape.add_argument(
        "--max-model-len",
        type=count,
        metavar="N",
        help="default: the smaller of the model's and twice the 99th percentile",
    )
    shape.add_argument("--chunked-prefill", choices=("on", "off"), default="on", help="default on")
    shape.add_argument("--max-num-batched-tokens", type=count, default=2048, metavar="T", help="default 2048")
    shape.add_argument(
        "--neighbour",
        type=neighbour,
        action="append",
        default=[],
        metavar="MODEL:B",
        help="an unlike engine on the same GPU, with its batch limit; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="for machines")


def options(args: argparse.Namespace, rebuilt: tuple[RecordedRequest, ...] = ()) -> Options:
    return Options(
        rebuilt=rebuilt,
        model=args.model,
        gpu=args.gpu,
        input_tokens=args.input_tokens,
        output_tokens=args.output_tokens,
        input_cv=args.input_cv,
        output_cv=args.output_cv,
        lengths=args.lengths,
        max_num_seqs=args.max_num_seqs,
        replicas=args.replicas,
        sharing=args.sharing,
        mig_profile=args.mig_profile,
        gpu_memory_utilization=args.gpu_memory_utilization,
        kv_cache_memory_bytes=args.kv_cache_memory_bytes,
        max_model_len=args.max_model_len,
        dtype=args.dtype,
        chunked_prefill=args.chunked_prefill == "on",
        max_num_batched_tokens=args.max_num_batched_tokens,
        engine_version=args.engine_version,
        request_rate=args.request_rate,
        requests=args.requests,
        neighbours=tuple(args.neighbour),
        profile=args.profile,
        seed=args.seed,
        json=args.json,
    )


def _number(text: str, accepts: Callable[[float], bool], wanted: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or not accepts(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return value


def positive(text: str) -> float:
    return _number(text, lambda value: value > 0.0, "a number above 0")


def not_negative(text: str) -> float:
    return _number(text, lambda value: value >= 0.0, "a number of at least 0")


def tokens(text: str) -> float:
    return _number(text, lambda value: value >= 1.0, "a mean of at least 1 token")


def share(text: str) -> float:
    return _number(text, lambda value: 0.0 < value <= 1.0, "a share above 0 and at most 1, for instance 0.9")


def efficiency(text: str) -> float:
    return _number(text, lambda value: 0.0 <= value < 1.0, "a share of at least 0 and below 1, for instance 0.1")


def _integer(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return value


def count(text: str) -> int:
    return _integer(text, 1)


def whole(text: str) -> int:
    return _integer(text, 0)


def request_rate(text: str) -> float:
    """Requests a second; infinity keeps every engine full."""
    if text.lower() in ("inf", "infinity"):
        return math.inf
    return _number(text, lambda value: value > 0.0, "a rate above 0 (requests a second) or inf")


def quantity(text: str) -> Bytes:
    try:
        value = parse_bytes(text)
    except ValueError as wrong:
        raise argparse.ArgumentTypeError(str(wrong)) from None
    if value == 0:
        raise argparse.ArgumentTypeError("an engine cannot run without KV cache; write for instance 4Gi")
    return value


def neighbour(text: str) -> Neighbour:
    model, colon, batch = text.rpartition(":")
    try:
        limit = int(batch)
    except ValueError:
        limit = 0
    if not colon or not model or limit < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not MODEL:B, for instance llama-3.2-1b:64")
    return Neighbour(model=model, max_num_seqs=limit)
