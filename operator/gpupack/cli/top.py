"""`gpupack top`: pools, GPUs and servings as they are now. `kubectl gpupack top` is the same.

On a terminal it stays and follows; where the output goes elsewhere, or with --once, it prints what there is and ends.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

from rich.console import Console

from gpupack import catalog
from gpupack.cli.arguments import positive
from gpupack.cli.explain import prose
from gpupack.kube.api import Api, configuration_of
from gpupack.program import add_kubeconfig
from gpupack.top.feed import Feed
from gpupack.top.tables import drawn

PLAIN_WIDTH = 160
"""Of a print that goes to no terminal: nothing is cut off."""
INTERRUPTED = 130


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--namespace", metavar="NAMESPACE", help="ModelServings of this one; default: of all")
    add_kubeconfig(parser)
    parser.add_argument("--once", action="store_true", help="print and end; so it does where there is no terminal")
    parser.add_argument(
        "--metrics", metavar="URL", help="the operator's page, where it runs beside the cluster; default: its pod's"
    )
    parser.add_argument(
        "--every", type=positive, default=2.0, metavar="SECONDS", help="how often that page is read; default 2"
    )


def run(args: argparse.Namespace) -> int:
    """Raises Unavailable where no API server answers, the CRDs are not there or may not be read."""
    try:
        asyncio.run(_run(args))
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


async def _run(args: argparse.Namespace) -> None:
    console = Console()
    kinds = {each.name: each for each in catalog.gpus()}
    async with Api(await configuration_of(args.kubeconfig)) as api:
        feed = Feed(api, kinds.get, namespace=args.namespace, metrics=args.metrics)
        await feed.look()
        if not args.once and console.is_terminal and not console.is_dumb_terminal and sys.stdin.isatty():
            try:
                from gpupack.top.app import TopApp
            except ImportError:
                print("the live view needs textual: pip install 'gpupack[top]'; this is how it is now", file=sys.stderr)
            else:
                await TopApp(feed, prose, every=args.every).run_async()
                return
        if not console.is_terminal:
            console = Console(width=PLAIN_WIDTH)
        console.print(drawn(feed.snapshot(), console))
