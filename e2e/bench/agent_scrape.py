"""What a scrape of the node agent takes on a node of eight GPUs, over the real `pynvml` and the tests' libnvidia-ml.

The agent is a process of its own and looks at every GPU once a second meanwhile. What a call of the real driver takes
is not in it, and cannot matter to a scrape: it is answered from the last look. Wall times are those of a machine that
may be busy with other work; the processor time of the agent is not.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from gpupack.units import MIB, milliseconds

SOURCE = Path(__file__).parents[2] / "tests" / "agent" / "fake_nvml.c"
GPUS, ENGINES = 8, 4
CGROUP = "0::/kubepods.slice/kubepods-pod0a1b2c3d_0000_4000_8000_{pid:012d}.slice/cri-containerd-{container}.scope\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scrapes", type=int, default=500, help="of each setting")
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = folder / "libnvidia-ml.so.1"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", str(SOURCE), "-o", str(library), "-lpthread"], check=True)
        measure(folder, "packed with 4 engines each", "", args.scrapes)
        measure(folder, "packed, and cut into 7 instances each", "mig 7\n", args.scrapes)


def measure(folder: Path, title: str, setting: str, scrapes: int) -> None:
    lines = [f"gpus {GPUS}", setting]
    for gpu in range(GPUS):
        for engine in range(ENGINES + 1):
            pid = 1000 + 10 * gpu + engine
            live(folder, pid, "nvidia-cuda-mps-server" if engine == 0 else "VLLM::EngineCore")
            lines.append(f"process {gpu} {pid} 8000000000 {'mps' if engine else ''}")
    (folder / "world").write_text("\n".join(lines))
    words = ("agent", "--host", "127.0.0.1", "--port", "0", "--proc", str(folder / "proc"))
    agent = subprocess.Popen(
        [sys.executable, "-m", "gpupack", *words],
        env={**os.environ, "LD_LIBRARY_PATH": str(folder), "FAKE_NVML": str(folder / "world")},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert agent.stdout is not None
    try:
        url = f"http://{agent.stdout.readline().split()[-1]}/metrics"
        while b"gpupack_agent_dram_bandwidth_ratio" not in scrape(url)[1]:
            time.sleep(0.1)
        before = processor_seconds(agent.pid)
        took = sorted(scrape(url)[0] for _ in range(scrapes))
        worked = processor_seconds(agent.pid) - before
        status = Path(f"/proc/{agent.pid}/status").read_text().split()
        memory = int(status[status.index("VmHWM:") + 1]) * 1024
        page = scrape(url)[1]
        series = sum(line.startswith("gpupack") for line in page.decode().splitlines())
        looks = [float(line.split()[-1]) for line in page.decode().splitlines() if "_sample_duration_seconds{" in line]
    finally:
        agent.terminate()
        agent.wait()
        agent.stdout.close()
    print(
        f"{GPUS} GPUs {title}: {series} series, {len(page) / 1000:.0f} kB; "
        f"scrapes a second {1 / statistics.mean(took):.0f}; median {milliseconds(statistics.median(took)):.1f} ms, "
        f"99th percentile {milliseconds(took[int(0.99 * scrapes)]):.1f} ms, worst {milliseconds(took[-1]):.1f} ms; "
        f"processor time a scrape, looks included, {milliseconds(worked / scrapes):.1f} ms; "
        f"a look at a GPU {milliseconds(max(looks)):.1f} ms; {memory / MIB:.0f} MiB"
    )


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def live(folder: Path, pid: int, program: str) -> None:
    process = folder / "proc" / str(pid)
    process.mkdir(parents=True, exist_ok=True)
    (process / "cmdline").write_text(f"{program}\0")
    (process / "cgroup").write_text(CGROUP.format(pid=pid, container="c" * 64))


def scrape(url: str) -> tuple[float, bytes]:
    began = time.perf_counter()
    with urllib.request.urlopen(url, timeout=30.0) as answer:
        page = answer.read()
    return time.perf_counter() - began, page


if __name__ == "__main__":
    main()
