"""What the operator costs on the real control plane while nothing changes: memory, processor and API writes.

    python e2e/bench/operator_cost.py [one] [many] [large]

- one: 1 ModelServing with one engine; goal: 120 MiB resident.
- many: 200 ModelServings with one engine each on 100 GPUs; goal: 180 MiB resident.
- large: 50 ModelServings with 400 engines on 100 GPUs, a tick of 5 s; goal: one core holds it.

Of all three: API writes a minute, Leases aside, by the API server's audit log; goal: 0. Engines are virtual, in real
time, under a light steady load; their nodes are one process, and its share of the cores is printed beside the
operator's, because where it lacks a core the operator's wall times say nothing. Processor seconds a tick hold all that
the operator's process did: mirrors, scraping over HTTP, parsing, windows, reconcile, statuses.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from watched import WatchedStage, machine, used

from gpupack.demo.stage import NODE, OPERATOR, wait_for
from gpupack.node import binaries
from gpupack.node.controlplane import ControlPlane

MIB = 2**20
MODELS = ("llama-3.2-1b", "qwen2.5-0.5b", "qwen3-0.6b", "opt-1.3b", "qwen2.5-1.5b")
START_SECONDS = 1500.0
QUIET_SECONDS = 330.0
"""Longer than what is learnt from the load waits to be written first, and than a verdict takes on the slowest serving
here."""
QUIET_AFTER_SECONDS = 1500.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """`rate`: requests a second to each serving; `tick` None leaves the API's default of 2 s."""

    servings: int
    engines_each: int
    nodes: int
    gpus_a_node: int
    rate: float
    tick: int | None = None


SIZES = {
    "one": Size(servings=1, engines_each=1, nodes=1, gpus_a_node=2, rate=2.0),
    "many": Size(servings=200, engines_each=1, nodes=10, gpus_a_node=10, rate=0.2),
    "large": Size(servings=50, engines_each=8, nodes=10, gpus_a_node=10, rate=0.3, tick=5),
}


def pool(size: Size) -> dict[str, Any]:
    spec = {} if size.tick is None else {"times": {"tickSeconds": size.tick}}
    return {"apiVersion": "gpupack.dev/v1alpha1", "kind": "GpuPool", "metadata": {"name": "default"}, "spec": spec}


def serving(number: int, size: Size) -> dict[str, Any]:
    return {
        "apiVersion": "gpupack.dev/v1alpha1",
        "kind": "ModelServing",
        "metadata": {"name": f"serving-{number:03d}", "namespace": "default"},
        "spec": {
            "model": {"name": MODELS[number % len(MODELS)]},
            "slo": {"itlMilliseconds": 60, "ttftMilliseconds": 2000},
            "scaling": {"mode": "Manual"},
            "replicas": size.engines_each,
            "batching": {"mode": "Fixed", "maxNumSeqs": 16},
            "engine": {"cpu": 1, "memory": "2Gi"},
        },
    }


def ready(stage: WatchedStage) -> int:
    return sum(each.get("status", {}).get("readyReplicas", 0) for each in stage.servings())


def settled(stage: WatchedStage) -> bool:
    """Whether the operator wrote nothing for a while; waits for at most `QUIET_AFTER_SECONDS`."""
    deadline = time.monotonic() + QUIET_AFTER_SECONDS
    count, since = -1, time.monotonic()
    while time.monotonic() < deadline:
        if (now := len(stage.writes())) != count:
            count, since = now, time.monotonic()
        elif time.monotonic() - since > QUIET_SECONDS:
            return True
        time.sleep(2.0)
    return False


def missing(stage: WatchedStage) -> int:
    """Readings that were missing at the last tick."""
    found = re.findall(r"^gpupack_missing_readings\{[^}]*\} (\S+)$", stage.operator_metrics(), re.MULTILINE)
    return int(sum(float(each) for each in found))


def measure(name: str, size: Size, seconds: float) -> None:
    engines = size.servings * size.engines_each
    node_arguments = (
        "--nodes", str(size.nodes), "--gpus", str(size.gpus_a_node), "--cpus", "256", "--memory", "4096Gi",
        "--start-seconds", "0.2",
    )  # fmt: skip
    with (
        tempfile.TemporaryDirectory() as folder,
        ControlPlane(binaries.obtain(binaries.control_plane()), audit=True) as cluster,
        WatchedStage(cluster, Path(folder), node_arguments=node_arguments) as stage,
    ):
        began = time.monotonic()
        cluster.apply(pool(size))
        for first in range(0, size.servings, 50):
            cluster.apply(*(serving(n, size) for n in range(first, min(first + 50, size.servings))))
        stage.start_operator()
        try:
            wait_for(lambda: ready(stage) >= engines, START_SECONDS, f"{engines} engines are ready")
        finally:
            print(
                f"{name}: {ready(stage)} of {engines} engines ready after {time.monotonic() - began:.0f} s", flush=True
            )
        for number in range(size.servings):
            stage.load(f"default/serving-{number:03d}", rate=size.rate, input_tokens=512, output_tokens=256)
        quiet = settled(stage)
        print(f"{name}: {'no write' if quiet else 'still writing'} for {QUIET_SECONDS:.0f} s"
              f" at {time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
        before = used(stage.pids[OPERATOR]), used(stage.pids[NODE]), stage.ticks(), stage.writes()
        start = time.monotonic()
        time.sleep(seconds)
        wall = time.monotonic() - start
        operator, node = used(stage.pids[OPERATOR]), used(stage.pids[NODE])
        (ticks, in_ticks), writes = stage.ticks(), stage.writes()
        count = ticks - before[2][0]
        cpu = operator.cpu - before[0].cpu
        print(
            f"{name}: {size.servings} servings, {engines} engines, {size.nodes * size.gpus_a_node} GPUs:"
            f" operator {operator.rss / MIB:.0f} MiB resident, {operator.rss_peak / MIB:.0f} MiB at most"
        )
        print(
            f"{name}: {count} ticks in {wall:.0f} s; {cpu / count:.3f} processor seconds a tick,"
            f" {cpu / wall:.1%} of a core; a tick takes {(in_ticks - before[2][1]) / count:.3f} s of wall time;"
            f" the virtual nodes take {(node.cpu - before[1].cpu) / wall:.0%} of a core;"
            f" readings missing at the last tick: {missing(stage)}"
        )
        new = Counter(writes[len(before[3]) :])
        said = ", ".join(f"{count} {verb} {resource}" for (verb, resource), count in new.most_common())
        print(f"{name}: {60.0 * new.total() / wall:.1f} API writes a minute (goal: 0){': ' if said else ''}{said}",
              flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", choices=[*SIZES, []], default=list(SIZES))
    parser.add_argument("--seconds", type=float, default=180.0, help="how long nothing changes")
    asked = parser.parse_args()
    print(machine(), flush=True)
    for name in asked.sizes:
        measure(name, SIZES[name], asked.seconds)


if __name__ == "__main__":
    main()
