"""The command: look, judge, tell. Exit status 0 if gpupack will work, 1 if something must be mended first."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gpupack.catalog import gpu_by_product
from gpupack.doctor.findings import Finding, Grade, diagnose
from gpupack.doctor.survey import ClusterSeen, look
from gpupack.kube.api import Api, configuration_of
from gpupack.program import add_kubeconfig

COLOURS = {Grade.GOOD: "green", Grade.LIMITED: "yellow", Grade.BLOCKED: "red", Grade.UNKNOWN: "magenta"}


def configure(parser: argparse.ArgumentParser) -> None:
    add_kubeconfig(parser)
    parser.add_argument(
        "--pod-proxy", metavar="URL", help="a forward proxy that reaches pods; default: the API server's way to pods"
    )
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text", help="default text")


def run(args: argparse.Namespace) -> int:
    """Raises Unavailable where no API server answers."""
    found = diagnose(asyncio.run(_look(args.kubeconfig, args.pod_proxy)), gpu_by_product)
    if args.output == "json":
        print(json.dumps([asdict(each) for each in found], indent=2))
    else:
        tell(found, Console())
    return 1 if any(each.grade is Grade.BLOCKED for each in found) else 0


async def _look(kubeconfig: str | None, pod_proxy: str | None) -> ClusterSeen:
    def progress(what: str) -> None:
        if sys.stderr.isatty():
            print(f"looking at {what}", file=sys.stderr)

    async with Api(await configuration_of(kubeconfig)) as api:
        return await look(api, pod_proxy=pod_proxy, progress=progress)


def tell(found: Sequence[Finding], console: Console) -> None:
    """A row a finding, and what it all comes to in one line."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for each in found:
        said = escape(each.sentence) + (f"\n[dim]{escape(each.remedy)}[/dim]" if each.remedy else "")
        table.add_row(f"[{COLOURS[each.grade]}]{each.grade.value}[/]", each.topic, said)
    console.print(table)
    blocked = [each.topic for each in found if each.grade is Grade.BLOCKED]
    if blocked:
        console.print(f"\ngpupack cannot work here yet: mend {', '.join(dict.fromkeys(blocked))} first.")
    elif any(each.grade is Grade.UNKNOWN for each in found):
        console.print("\nNothing that was seen keeps gpupack from working here; what could not be seen may.")
    elif any(each.grade is Grade.LIMITED for each in found):
        console.print("\ngpupack will work here, within the limits above.")
    else:
        console.print("\ngpupack will work here.")
