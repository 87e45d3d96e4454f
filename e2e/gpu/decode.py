"""One engine: a decode loop of a transformer with the shape of a small language model, as a process of its own.

Every step writes one token's keys and values of every sequence and reads the whole cache of all of them, in one CUDA
graph; then the host takes the tokens, keeps books on every sequence and prepares the next step, while the GPU has
nothing of this process to do. Weights are random: what a step takes does not depend on their values.

Commands come as lines of JSON on standard input, answers go to standard output: {"batch": 64} captures the graph,
{"seconds": 5} runs it, end of input ends. Without CUDA it runs on the CPU, without graphs, to be tried out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from statistics import fmean, quantiles

import torch
from torch.nn import functional

WARM_STEPS = 3
MOST_STEP_TIMES = 200_000


class Transformer:
    """Grouped-query attention over a fixed number of tokens, gated MLP, tied to nothing. bfloat16."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.args = args
        self.device = device
        width, heads, kv = args.hidden, args.heads * args.head_dim, args.kv_heads * args.head_dim
        self.embedding = self.weight(args.vocabulary, width)
        self.head = self.weight(args.vocabulary, width)
        self.layers = [
            (
                self.weight(heads + 2 * kv, width),
                self.weight(width, heads),
                self.weight(2 * args.mlp, width),
                self.weight(width, args.mlp),
            )
            for _ in range(args.layers)
        ]

    def weight(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=self.device, dtype=torch.bfloat16).mul_(0.02)

    def cache(self, batch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        shape = (batch, self.args.kv_heads, self.args.context, self.args.head_dim)
        return [(self.weight(*shape), self.weight(*shape)) for _ in self.layers]

    def step(self, tokens: torch.Tensor, slot: torch.Tensor, cache: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Replaces `tokens` by the next ones. `slot` is where in the cache this token goes."""
        args = self.args
        batch = tokens.shape[0]
        sizes = (args.heads * args.head_dim, args.kv_heads * args.head_dim, args.kv_heads * args.head_dim)
        x = self.embedding[tokens]
        for (qkv, out, gated, down), (keys, values) in zip(self.layers, cache, strict=True):
            q, k, v = functional.linear(normed(x), qkv).split(sizes, dim=-1)
            keys.index_copy_(2, slot, k.view(batch, args.kv_heads, 1, args.head_dim))
            values.index_copy_(2, slot, v.view(batch, args.kv_heads, 1, args.head_dim))
            seen = functional.scaled_dot_product_attention(
                q.view(batch, args.heads, 1, args.head_dim), keys, values, enable_gqa=True
            )
            x = x + functional.linear(seen.reshape(batch, -1), out)
            gate, up = functional.linear(normed(x), gated).chunk(2, dim=-1)
            x = x + functional.linear(functional.silu(gate) * up, down)
        tokens.copy_(functional.linear(normed(x), self.head).argmax(dim=-1))


def normed(x: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(x, (x.shape[-1],))


class Books:
    """The host's work on each sequence between two steps: real work of Python's, no sleep. `rounds` scales it."""

    def __init__(self, batch: int, rounds: int) -> None:
        self.rounds = rounds
        self.outputs: list[list[int]] = [[] for _ in range(batch)]
        self.texts = [""] * batch

    def enter(self, tokens: list[int]) -> None:
        for sequence, token in enumerate(tokens):
            for _ in range(self.rounds):
                text = self.texts[sequence] + chr(32 + token % 90)
                self.texts[sequence] = text[-64:]
                stopped = text.endswith("</s>") or token < 0
                if stopped:
                    self.outputs[sequence].clear()
            output = self.outputs[sequence]
            output.append(token)
            if len(output) > 512:
                output.clear()


class Engine:
    def __init__(self, transformer: Transformer, batch: int) -> None:
        device = transformer.device
        self.batch = batch
        self.is_cuda = device.type == "cuda"
        self.tokens = torch.zeros(batch, dtype=torch.long, device=device)
        self.slot = torch.zeros(1, dtype=torch.long, device=device)
        self.books = Books(batch, transformer.args.bookkeeping)
        self.context = transformer.args.context
        cache = transformer.cache(batch)

        def step() -> None:
            transformer.step(self.tokens, self.slot, cache)

        self.launch: Callable[[], None] = step
        if self.is_cuda:
            self.launch = captured(step)
            self.began = torch.cuda.Event(enable_timing=True)
            self.ended = torch.cuda.Event(enable_timing=True)

    def run(self, seconds: float) -> dict[str, float]:
        steps: list[float] = []
        on_gpu: list[float] = []
        first = last = time.perf_counter()
        while last - first < seconds:
            on_gpu.append(self.once())
            now = time.perf_counter()
            if len(steps) < MOST_STEP_TIMES:
                steps.append(now - last)
            last = now
        return {
            "steps": len(on_gpu),
            "seconds": last - first,
            "step_seconds_mean": (last - first) / len(on_gpu),
            "step_seconds_p95": quantiles(steps, n=20)[-1] if len(steps) > 1 else steps[0],
            "gpu_seconds_mean": fmean(on_gpu),
        }

    def once(self) -> float:
        """One step and the host's work after it; seconds that the graph took on the GPU."""
        if not self.is_cuda:
            began = time.perf_counter()
            self.launch()
            took = time.perf_counter() - began
            tokens = self.tokens.tolist()
        else:
            self.began.record()
            self.launch()
            self.ended.record()
            tokens = self.tokens.tolist()
            self.ended.synchronize()
            took = self.began.elapsed_time(self.ended) / 1000.0
        self.books.enter(tokens)
        self.slot.fill_((len(self.books.outputs[0]) + tokens[0]) % self.context)
        return took


def captured(step: Callable[[], None]) -> Callable[[], None]:
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_STEPS):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("layers", "hidden", "heads", "kv-heads", "head-dim", "mlp", "vocabulary", "context", "bookkeeping"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.inference_mode():
        transformer = Transformer(args, device)
        tell({"pid": os.getpid(), "device": device.type, "torch": torch.__version__, "cuda": torch.version.cuda or ""})
        engine: Engine | None = None
        for line in sys.stdin:
            command = json.loads(line)
            if "batch" in command:
                engine = None
                if device.type == "cuda":
                    torch.cuda.empty_cache()
                engine = Engine(transformer, command["batch"])
                for _ in range(WARM_STEPS):
                    engine.once()
                tell({"batch": engine.batch})
            elif engine is not None:
                tell(engine.run(command["seconds"]))


def tell(answer: dict[str, object]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
