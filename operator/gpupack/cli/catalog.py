"""`gpupack catalog`: the GPUs and models that are known by name, and where their numbers come from."""

from __future__ import annotations

import argparse

from gpupack import catalog
from gpupack.cli.show import Json, print_json, table
from gpupack.facts.gpu import GpuKind
from gpupack.facts.llm import Dtype, Llm
from gpupack.units import GB, GIB, KIB


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace) -> int:
    gpus, llms = catalog.gpus(), catalog.llms()
    if args.json:
        print_json({"gpus": [_gpu(kind) for kind in gpus], "models": [_llm(llm) for llm in llms]})
        return 0
    print(
        table(
            ("GPU", "memory GiB", "DRAM GB/s", "dense TFLOP/s", "SMs", "source"),
            [
                (
                    kind.name,
                    f"{kind.memory_bytes / GIB:.1f}",
                    f"{kind.dram_bytes_per_second / GB:.0f}",
                    f"{kind.dense_flops_per_second / 1e12:.0f}",
                    str(kind.sm_count),
                    kind.source.word,
                )
                for kind in gpus
            ],
        )
    )
    print()
    print(
        table(
            ("model", "short name", "parameters", "layers", "KV KiB a token", "longest", "source"),
            [
                (
                    llm.name,
                    llm.aliases[0],
                    f"{llm.parameters / 1e9:.2f} B",
                    str(llm.layers),
                    f"{llm.kv_bytes_per_token(Dtype.FLOAT16) / KIB:.0f}",
                    str(llm.max_model_len),
                    llm.source.word,
                )
                for llm in llms
            ],
        )
    )
    print("\nWhere each number comes from: gpupack catalog --json")
    return 0


def _gpu(kind: GpuKind) -> Json:
    return {
        "name": kind.name,
        "memory_bytes": kind.memory_bytes,
        "dram_bytes_per_second": kind.dram_bytes_per_second,
        "dense_flops_per_second": kind.dense_flops_per_second,
        "sm_count": kind.sm_count,
        "board_power_watts": kind.board_power,
        "idle_power_watts": kind.idle_power,
        "bfloat16": kind.bfloat16,
        "mig": kind.mig,
        "gpm": kind.gpm,
        "product_names": list(kind.product_names),
        "source": kind.source.word,
        "provenance": kind.provenance,
    }


def _llm(llm: Llm) -> Json:
    return {
        "name": llm.name,
        "aliases": list(llm.aliases),
        "layers": llm.layers,
        "hidden_size": llm.hidden_size,
        "attention_heads": llm.attention_heads,
        "kv_heads": llm.kv_heads,
        "head_size": llm.head_size,
        "vocabulary": llm.vocabulary,
        "parameters": llm.parameters,
        "kv_bytes_per_token": llm.kv_bytes_per_token(Dtype.FLOAT16),
        "max_model_len": llm.max_model_len,
        "source": llm.source.word,
        "provenance": llm.provenance,
    }
