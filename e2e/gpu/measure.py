"""Measures decode loops that share a GPU and writes down what was seen, with GPU, driver and date.

    python e2e/gpu/measure.py                    # about ten minutes on an idle GPU, as a user that may start MPS

R engine processes (`decode.py`) run the same batch at once, with and without MPS. Tokens and times are theirs;
bandwidth, activity and power come from NVML through the package's own reader, `gpupack.agent.nvml`. What cannot be had,
MPS or GPM, is written down as such. Needs PyTorch for CUDA, and this package, in the Python that runs it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from results import FOLDER, FORMAT, Decoder, EngineRun, Measurement, Point, Setting, Shared, write

from gpupack import __version__
from gpupack.agent import nvml
from gpupack.agent.sample import GpuSample

NVML_PERIOD_SECONDS = 0.25
CONTROL = "nvidia-cuda-mps-control"
MPS_START_SECONDS = 5.0


class Failed(Exception):
    """An engine ended or could not hold what it was asked to."""


class Engine:
    def __init__(self, decoder: Decoder, environment: Mapping[str, str]) -> None:
        words = {
            "layers": decoder.layers, "hidden": decoder.hidden, "heads": decoder.heads, "kv-heads": decoder.kv_heads,
            "head-dim": decoder.head_dim, "mlp": decoder.mlp, "vocabulary": decoder.vocabulary,
            "context": decoder.context_tokens, "bookkeeping": decoder.bookkeeping,
        }  # fmt: skip
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it lasts as long as the process; `end` closes it
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("decode.py")), *(f"--{k}={v}" for k, v in words.items())],
            env={**os.environ, **environment}, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.errors,
        )  # fmt: skip

    def say(self, command: Mapping[str, object]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Failed(self.last_words()) from None

    def hear(self) -> Mapping[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise Failed(self.last_words())
        answer: Mapping[str, Any] = json.loads(line)
        return answer

    def last_words(self) -> str:
        self.process.wait()
        self.errors.seek(0)
        return (self.errors.read().strip().splitlines() or [f"ended with {self.process.returncode}"])[-1][:300]

    def end(self) -> None:
        """By the end of its input: a client of MPS that is killed in the middle of its work can hurt the others."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()


class Meter:
    """Samples of one GPU while a block lasts."""

    def __init__(self, gpu: nvml.Gpu) -> None:
        self.samples: list[GpuSample] = []
        self._gpu = gpu
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Meter:
        self._gpu.read()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(NVML_PERIOD_SECONDS):
            self.samples.append(self._gpu.read())

    def clients(self, pids: Sequence[int]) -> int | None:
        """None where NVML does not tell, or names none of the processes (another PID namespace)."""
        for sample in reversed(self.samples):
            listed = {each.pid: each.mps_client for each in sample.processes or () if each.pid in pids}
            if listed and None not in listed.values():
                return sum(bool(each) for each in listed.values())
        return None


@contextlib.contextmanager
def mps() -> Iterator[tuple[dict[str, str], str | None]]:
    """The environment of clients, and why there is no MPS. A daemon of our own, in folders of our own."""
    if shutil.which(CONTROL) is None:
        yield {}, f"{CONTROL} is not on this machine"
        return
    with tempfile.TemporaryDirectory(prefix="gpupack-mps-") as folder:
        environment = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        started = subprocess.run(
            [CONTROL, "-d"], env={**os.environ, **environment}, capture_output=True, text=True, check=False
        )
        if started.returncode != 0:
            yield {}, f"{CONTROL} ended with {started.returncode}: {(started.stderr or started.stdout).strip()[:300]}"
            return
        deadline = time.monotonic() + MPS_START_SECONDS
        while not (Path(folder) / "control").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        try:
            yield environment, None
        finally:
            subprocess.run(
                [CONTROL],
                input="quit\n",
                env={**os.environ, **environment},
                capture_output=True,
                text=True,
                check=False,
            )


def measured(
    shared: Shared, replicas: int, args: argparse.Namespace, decoder: Decoder, environment: Mapping[str, str],
    gpu: nvml.Gpu,
) -> tuple[list[Point], Mapping[str, Any]]:  # fmt: skip
    """All batches with the same processes; after a failure they are new, and if none begins the rest is left out."""
    points: list[Point] = []
    engines: list[Engine] = []
    about: Mapping[str, Any] = {}
    try:
        for batch in args.batches:
            try:
                began = bool(engines)
                while len(engines) < replicas:
                    engines.append(Engine(decoder, environment))
                    about = engines[-1].hear()
                    if about["device"] != "cuda":
                        raise SystemExit("PyTorch sees no CUDA device here: there is nothing to measure")
                began = True
                point = one(shared, batch, args.seconds, engines, gpu)
            except Failed as failure:
                point = Point(
                    shared=shared, replicas=replicas, batch=batch, engines=(), dram_bandwidth=None, sm_active=None,
                    power_watts=None, mps_clients=None, failed=str(failure),
                )  # fmt: skip
                for each in engines:
                    each.end()
                engines = []
            points.append(point)
            said = point.failed or f"{point.tokens_per_second:,.0f} tokens a second"
            print(f"{shared}, {replicas} x {batch}: {said}", flush=True)
            if not began:
                break
    finally:
        for each in engines:
            each.end()
    return points, about


def one(shared: Shared, batch: int, seconds: float, engines: Sequence[Engine], gpu: nvml.Gpu) -> Point:
    """One engine prepares at a time, as gpupack starts them; then all run."""
    for each in engines:
        each.say({"batch": batch})
        each.hear()
    with Meter(gpu) as meter:
        for each in engines:
            each.say({"seconds": seconds})
        runs = tuple(EngineRun(pid=each.process.pid, **each.hear()) for each in engines)
    activity = [each.activity for each in meter.samples]
    return Point(
        shared=shared,
        replicas=len(engines),
        batch=batch,
        engines=runs,
        dram_bandwidth=mean([each.dram_bandwidth for each in activity]),
        sm_active=mean([each.sm_active for each in activity]),
        power_watts=mean([each.power for each in meter.samples]),
        mps_clients=meter.clients([each.pid for each in runs]),
    )


def mean(values: Sequence[float | None]) -> float | None:
    told = [each for each in values if each is not None]
    return statistics.fmean(told) if told else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", type=int, default=0, help="its index; nothing else should run on it")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 64, 128, 256, 512])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each point")
    parser.add_argument("--bookkeeping", type=int, default=40, help="the host's work on each sequence")
    shape = parser.add_argument_group("shape, by default of Llama-3.2-1B")
    for name, value in (("layers", 16), ("hidden", 2048), ("heads", 32), ("kv-heads", 8), ("head-dim", 64),
                        ("mlp", 8192), ("vocabulary", 128256), ("context", 640)):  # fmt: skip
        shape.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder; default: e2e/results")
    args = parser.parse_args()
    decoder = Decoder(
        layers=args.layers, hidden=args.hidden, heads=args.heads, kv_heads=args.kv_heads, head_dim=args.head_dim,
        mlp=args.mlp, vocabulary=args.vocabulary, context_tokens=args.context, bookkeeping=args.bookkeeping,
    )  # fmt: skip
    nvml.start()
    driver, library = nvml.versions()
    gpu = nvml.Gpu(args.gpu, time.monotonic)
    first = gpu.read()
    visible = {"CUDA_VISIBLE_DEVICES": gpu.card.uuid}
    points: list[Point] = []
    about: Mapping[str, Any] = {}
    for replicas in args.replicas:
        more, said = measured(Shared.TIME_SLICING, replicas, args, decoder, visible, gpu)
        points += more
        about = said or about
    with mps() as (environment, problem):
        for replicas in args.replicas if problem is None else ():
            points += measured(Shared.MPS, replicas, args, decoder, {**visible, **environment}, gpu)[0]
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    setting = Setting(
        gpu=gpu.card.product,
        uuid=gpu.card.uuid,
        memory_bytes=0 if first.memory is None else first.memory.total,
        driver=driver,
        nvml=library,
        gpm=bool(gpu.card.gpm),
        compute_mode=None if first.compute_mode is None else first.compute_mode.value,
        torch=about.get("torch", ""),
        cuda=about.get("cuda", ""),
        python=platform.python_version(),
        gpupack=__version__,
    )
    measurement = Measurement(
        format=FORMAT, taken=today, setting=setting, decoder=decoder, mps_problem=problem, points=tuple(points)
    )
    product = "-".join(gpu.card.product.lower().split())
    path = args.output / f"gpu-{product}-{today}.json"
    write(measurement, path)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
