"""The command line: `gpupack COMMAND`. A command's module is imported only when that command is asked for.

Every command module has `configure(parser)`, which adds its options, and `run(args) -> int`, the exit status. Bad input
is exit status 2 and one sentence that names the option and says what is accepted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from gpupack import __version__
from gpupack.errors import Invalid, Unavailable

BAD_INPUT = 2

COMMANDS: dict[str, tuple[str, str]] = {
    "advise": ("gpupack.cli.advise", "the shape of an engine and how many of them one GPU should hold, under an SLO"),
    "predict": ("gpupack.cli.predict", "throughput, latency, memory and bandwidth of a setting, by the closed form"),
    "simulate": ("gpupack.cli.simulate", "the same of the same setting, by the digital twin"),
    "profile": ("gpupack.cli.profile", "measures a running engine batch limit by batch limit, over its HTTP API"),
    "validate": ("gpupack.cli.validate", "how far both are from published measurements, as a page with plots"),
    "explain": ("gpupack.cli.explain", "why a ModelServing runs as it does, read from its status in a cluster"),
    "top": ("gpupack.cli.top", "pools, GPUs and servings as they are now, live in a terminal"),
    "report": ("gpupack.cli.report.command", "what runs where and why, as one page: from a cluster or from a trace"),
    "doctor": ("gpupack.doctor.run", "whether a cluster is one that gpupack can work in, and what to mend first"),
    "replay": ("gpupack.cli.replay", "where today's code decides otherwise than a recorded trace, and if it matters"),
    "completion": ("gpupack.cli.completion", "what your shell needs to complete this command line with the tab key"),
    "catalog": ("gpupack.cli.catalog", "the GPUs and models that are known by name, and where their numbers come from"),
    "demo": ("gpupack.demo.play", "see it work: seven acts on a real Kubernetes API server with virtual GPUs"),
    "soak": ("gpupack.soak.run", "seeds drive a simulated cluster with faults; rules that must always hold in it"),
    "operator": ("gpupack.handlers", "the operator itself, in a cluster or beside one"),
    "host": ("gpupack.host.run", "the supervisor in a pod that holds a GPU: the engines of that GPU, and MPS"),
    "activator": ("gpupack.activator.run", "holds requests for ModelServings that sleep, until an engine is awake"),
    "agent": ("gpupack.agent.run", "a GPU node's memory, bandwidth, power, faults and processes, as Prometheus series"),
    "twin": ("gpupack.node.cli", "virtual GPU nodes for a real API server: vLLM pods in the digital twin"),
}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage, and takes no abbreviated options."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message.removeprefix('argument ')}\n")


def parser_with(*chosen: str) -> tuple[Parser, dict[str, ModuleType]]:
    """The whole command line, with the options of the chosen commands only, and their modules."""
    parser = Parser(prog="gpupack", description="Packs vLLM replicas of small language models onto GPUs, and says why.")
    parser.add_argument("--version", action="version", version=f"gpupack {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    modules = {}
    for name, (path, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name in chosen:
            modules[name] = importlib.import_module(path)
            modules[name].configure(command)
    return parser, modules


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in words if not word.startswith("-")), "")
    parser, modules = parser_with(chosen)
    args, unknown = parser.parse_known_args(words)
    if unknown:
        told = f"`gpupack {args.command} --help` lists what it does"
        parser.error(f"{args.command} does not know {' '.join(unknown)}; {told}")
    try:
        return int(modules[args.command].run(args))
    except Invalid as wrong:
        print(f"gpupack {args.command}: {wrong}", file=sys.stderr)
        return BAD_INPUT
    except Unavailable as missing:
        print(f"gpupack {args.command}: {missing}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of our output went away (`| head`); a second complaint at interpreter exit helps nobody.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
