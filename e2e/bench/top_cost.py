"""What `gpupack top` costs while it shows 100 GPUs: its share of one core, over a socket and in a real terminal.

    python e2e/bench/top_cost.py [--gpus 100] [--seconds 60] [--every 2]

The API server is a small one in this process: it lists and watches one GpuPool and its ModelServings, whose plan holds
four engines a GPU, and serves an operator's page on which every figure is another one at each reading. Once every ten
seconds a serving's status changes. `gpupack top` is the real program in a pseudo-terminal of 160 x 50. Goal: 10 %.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import pty
import random
import struct
import sys
import tempfile
import termios
from collections.abc import Iterator
from dataclasses import replace
from fcntl import ioctl
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from aiohttp import web  # noqa: E402
from tests.top.world import SERVINGS, Json, cluster_of, kubeconfig_of, last_look, pool_of, servings_of  # noqa: E402
from watched import machine, used  # noqa: E402

from gpupack.kube.pool_resource import plan_to_status  # noqa: E402

ENGINES_EACH, SERVINGS_IN_ALL = 4, 50
ROWS, COLUMNS = 50, 160
CHANGE_SECONDS = 10.0
START_SECONDS = 5.0
MEMORY = 84_943_044_608


def pool_with(gpus: int) -> Json:
    """The recorded pool with a plan of `gpus` full GPUs."""
    look = last_look()
    plan = look[1].pool_status.plan
    assert plan is not None
    placement, shape = plan.placements[0], plan.shapes[0]
    keys = [replace(placement.serving, name=f"serving-{number:02d}") for number in range(SERVINGS_IN_ALL)]
    placements = tuple(
        replace(placement, serving=keys[(gpu * ENGINES_EACH + slot) % SERVINGS_IN_ALL], gpu_uuid=uuid(gpu), slot=slot)
        for gpu in range(gpus)
        for slot in range(ENGINES_EACH)
    )
    full = replace(plan, placements=placements, shapes=tuple(replace(shape, serving=key) for key in keys))
    pool = pool_of(look)
    pool["status"] |= {"gpus": gpus, "gpusInUse": gpus, "replicas": len(placements), "plan": plan_to_status(full)}
    return pool


def uuid(gpu: int) -> str:
    return f"GPU-{gpu:08x}-0000-4000-8000-000000000000"


def servings() -> Iterator[Json]:
    (one,) = servings_of(last_look())
    for number in range(SERVINGS_IN_ALL):
        yield {**one, "metadata": {**one["metadata"], "name": f"serving-{number:02d}"}}


def page(gpus: int, chance: random.Random) -> bytes:
    lines = []
    for gpu in range(gpus):
        where = f'gpu="{uuid(gpu)}",node="node-{gpu // 8:02d}"'
        lines += [
            f'gpupack_gpu_memory_bytes{{{where},kind="H100-80GB",pool="default"}} {MEMORY}',
            f"gpupack_gpu_memory_used_bytes{{{where}}} {chance.uniform(0.3, 0.9) * MEMORY:.0f}",
            f"gpupack_gpu_dram_active_ratio{{{where}}} {chance.uniform(0.1, 0.6)}",
            f"gpupack_gpu_dram_attainable_ratio{{{where}}} 0.62",
            f"gpupack_gpu_power_watts{{{where}}} {chance.uniform(150, 600)}",
            f"gpupack_measured_tokens_per_second{{{where}}} {chance.uniform(1e4, 9e4)}",
        ]
    for number in range(SERVINGS_IN_ALL):
        who = f'namespace="default",serving="serving-{number:02d}"'
        lines += [
            f"gpupack_serving_requests_per_second{{{who}}} {chance.uniform(1, 90)}",
            f"gpupack_serving_running_requests{{{who}}} {chance.uniform(1, 90)}",
            *(
                f'gpupack_serving_latency_seconds{{{who},latency="{latency}",statistic="{statistic}"}} '
                f"{chance.uniform(0.005, 0.03)}"
                for latency in ("itl", "ttft")
                for statistic in ("Mean", "P95")
            ),
        ]
    lines += [f'gpupack_verdicts_total{{pool="default",verdict="{number}"}} 1' for number in range(500)]
    return "\n".join([*lines, ""]).encode()


async def measure(gpus: int, seconds: float, every: float) -> None:
    chance = random.Random(1)
    api = cluster_of(pool_with(gpus), servings(), b"")
    still = api.answer_read

    def answer(request: web.BaseRequest) -> web.Response | None:
        return web.Response(body=page(gpus, chance)) if request.path.endswith("/proxy/metrics") else still(request)

    api.answer_read = answer
    await api.start()
    with tempfile.TemporaryDirectory() as folder:
        kubeconfig = kubeconfig_of(Path(folder), api.port)
        pid, terminal = pty.fork()
        if pid == 0:
            os.environ["TERM"] = "xterm-256color"
            os.execv(sys.executable, [sys.executable, "-m", "gpupack", "top", "--kubeconfig", kubeconfig, "--every",
                                      str(every)])  # fmt: skip
        ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        drawn = Drain(terminal)
        await drawn.sleep(START_SECONDS)
        before, bytes_before = used(pid), drawn.bytes
        changed = 0
        ends = asyncio.get_running_loop().time() + seconds
        while (left := ends - asyncio.get_running_loop().time()) > 0:
            await drawn.sleep(min(CHANGE_SECONDS, left))
            serving = next(servings())
            serving["status"]["decision"]["reason"] = f"Added{changed}"
            api.put(SERVINGS, serving)
            changed += 1
        after = used(pid)
        os.write(terminal, b"q")
        await drawn.sleep(1.0)
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        print(
            f"{gpus} GPUs, {gpus * ENGINES_EACH} engines, {SERVINGS_IN_ALL} servings, the page read every {every:g} s: "
            f"{(after.cpu - before.cpu) / seconds:.1%} of a core over {seconds:.0f} s (goal: 10 %), "
            f"{after.rss / 2**20:.0f} MiB resident, {(drawn.bytes - bytes_before) / seconds / 1024:.1f} KiB/s to the "
            f"terminal, exit status {os.waitstatus_to_exitcode(status)}"
        )
        os.close(terminal)
    await api.stop()


class Drain:
    """Reads what is drawn, as a terminal would, and counts it."""

    def __init__(self, terminal: int) -> None:
        self.bytes = 0
        self._terminal = terminal
        os.set_blocking(terminal, False)
        asyncio.get_running_loop().add_reader(terminal, self._read)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def _read(self) -> None:
        try:
            self.bytes += len(os.read(self._terminal, 65536))
        except OSError:  # the program ended
            asyncio.get_running_loop().remove_reader(self._terminal)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between readings of the page")
    asked = parser.parse_args()
    print(machine(), flush=True)
    asyncio.run(measure(asked.gpus, asked.seconds, asked.every))


if __name__ == "__main__":
    main()
