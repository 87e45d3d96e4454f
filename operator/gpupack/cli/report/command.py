"""`gpupack report`: one self-contained page of what runs where and why, from a cluster or from a trace."""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path

from gpupack.cli.page import write
from gpupack.cli.report.account import Account, of_cluster, of_trace
from gpupack.cli.report.page import page
from gpupack.kube.api import Api, configuration_of
from gpupack.program import add_kubeconfig
from gpupack.units import Seconds

OPTION = "--trace"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        OPTION, type=Path, metavar="FILE", help="what `gpupack operator --trace` wrote; default: the cluster as it is"
    )
    add_kubeconfig(parser)
    parser.add_argument(
        "--metrics", metavar="URL", help="the operator's page, where it runs beside the cluster; default: its pod's"
    )
    parser.add_argument(
        "--output", "-o", type=Path, default=Path("gpupack-report.html"), metavar="FILE.html",
        help="the page; default gpupack-report.html",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Raises Invalid for a file that is no trace or cannot be written, Unavailable where no cluster answers."""
    accounts = asyncio.run(_cluster(args)) if args.trace is None else of_trace(args.trace, OPTION)
    write(args.output, page(accounts), "--output")
    print(f"the page: {args.output}")
    return 0


async def _cluster(args: argparse.Namespace) -> tuple[Account, ...]:
    configuration = await configuration_of(args.kubeconfig)
    async with Api(configuration) as api:
        return await of_cluster(api, metrics=args.metrics, now=Seconds(time.time()), name=configuration.host)
