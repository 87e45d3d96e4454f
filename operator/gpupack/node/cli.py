"""`gpupack twin`: virtual GPU nodes for a cluster, or for a control plane that it starts itself."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpupack import catalog
from gpupack.catalog import LlmConfig, llm_from_config
from gpupack.errors import Invalid
from gpupack.facts.gpu import GpuKind, MigProfile
from gpupack.facts.llm import Llm
from gpupack.node import binaries
from gpupack.node.addresses import DEFAULT_RANGE
from gpupack.node.container_life import FIRST_BACKOFF_SECONDS
from gpupack.node.controlplane import ControlPlane
from gpupack.node.exporter import Field, Generation
from gpupack.node.twin_nodes import CutNode, Options, TwinNodes
from gpupack.node.virtual_node import Machine, MigStrategy
from gpupack.units import parse_bytes

_CONFIG_FIELDS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
    "max_position_embeddings", "num_key_value_heads", "head_dim", "tie_word_embeddings",
)  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Joins virtual GPU nodes to a Kubernetes cluster (DRA, driver gpu.nvidia.com). vLLM pods that the scheduler "
        "binds to them run in the digital twin, in real time, with vLLM's HTTP surface and metrics; a dcgm-exporter "
        "pod shows the GPUs; other pods sleep. Pods have addresses that no network knows: reach them through the "
        "printed proxy (`gpupack operator --pod-proxy URL`, `curl --proxy URL`). Load and faults are steered over HTTP "
        "at the printed control address (GET /state, POST /load, ...). Ctrl-C takes everything away again."
    )
    where = parser.add_argument_group("cluster").add_mutually_exclusive_group()
    where.add_argument(
        "--kubeconfig", type=Path, help="default: the pod's own account, else $KUBECONFIG, else ~/.kube/config"
    )
    where.add_argument(
        "--with-control-plane", action="store_true",
        help="start a real control plane beside it (its programs are fetched or built on first use)",
    )  # fmt: skip
    nodes = parser.add_argument_group("nodes")
    nodes.add_argument("--node-name", default="virtual-1", help="with --nodes above 1: NAME-1, NAME-2, ...")
    nodes.add_argument("--nodes", type=int, default=1)
    nodes.add_argument(
        "--plugin-nodes", type=int, default=0,
        help="so many more, NAME-plugin-1 and on, whose GPUs a device plugin offers instead of DRA",
    )  # fmt: skip
    nodes.add_argument(
        "--mig-nodes", type=int, default=0, help="so many more, NAME-mig-1 and on, whose GPUs are cut by --mig-profiles"
    )
    nodes.add_argument(
        "--mig-profiles", default="", metavar="P,P", help="the slices of each GPU there, for instance 3g.40gb,2g.20gb"
    )
    nodes.add_argument(
        "--plugin-mig", action="append", default=[], metavar="STRATEGY=P,P",
        help="one more, NAME-mixed-1 or NAME-single-1 and on, whose GPUs are cut so and whose slices a device plugin "
        "offers with this strategy (repeatable)",
    )  # fmt: skip
    nodes.add_argument("--gpus", type=int, default=2, help="GPUs of each node")
    nodes.add_argument("--gpu-kind", default="H100-80GB", help="a GPU of `gpupack catalog`")
    nodes.add_argument("--cpus", type=int, default=96, help="allocatable cores of each node")
    nodes.add_argument("--memory", default="1024Gi", help="allocatable memory of each node")
    nodes.add_argument("--pod-range", default=DEFAULT_RANGE, help="addresses of pods, not of loopback")
    engines = parser.add_argument_group("engines")
    engines.add_argument("--start-seconds", type=float, default=30.0, help="from a container's start until it listens")
    engines.add_argument("--backoff-seconds", type=float, default=FIRST_BACKOFF_SECONDS, help="first CrashLoopBackOff")
    engines.add_argument(
        "--model-config", action="append", default=[], metavar="NAME=FILE",
        help="a config.json for a model that the catalog does not have (repeatable)",
    )  # fmt: skip
    engines.add_argument(
        "--process", action="append", default=[], metavar="IMAGE=FOLDER",
        help="pods of this image are real processes, run in FOLDER with FOLDER/bin first in PATH (repeatable)",
    )  # fmt: skip
    engines.add_argument("--seed", type=int, default=1, help="of the bulk load")
    exporter = parser.add_argument_group("dcgm-exporter")
    exporter.add_argument("--no-exporter", action="store_true")
    exporter.add_argument("--exporter-period-seconds", type=float, default=30.0, help="between collections")
    exporter.add_argument(
        "--exporter-generation", choices=[each.value for each in Generation], default=Generation.OLD.value,
        help="names and units before (old) or since (new) dcgm-exporter 4.9",
    )  # fmt: skip
    exporter.add_argument(
        "--exporter-absent", action="append", default=[], choices=[each.value for each in Field],
        help="a field that is not exported (repeatable)",
    )  # fmt: skip
    doors = parser.add_argument_group("doors, on loopback")
    doors.add_argument("--control-port", type=int, default=0, help="0: any free port")
    doors.add_argument("--proxy-port", type=int, default=0, help="0: any free port")
    doors.add_argument("--ready-file", type=Path, help="where to write the addresses as JSON once the nodes are Ready")


def run(args: argparse.Namespace) -> int:
    """0 after SIGINT or SIGTERM. Raises Invalid for bad options, Unavailable without a cluster."""
    with _cluster(args) as kubeconfig:
        return asyncio.run(_run(args, options_of(args, kubeconfig)))


def options_of(args: argparse.Namespace, kubeconfig: Path | None) -> Options:
    for flag, least in (("nodes", 1), ("plugin_nodes", 0), ("mig_nodes", 0), ("gpus", 0), ("cpus", 1)):
        if getattr(args, flag) < least:
            raise Invalid(f"--{flag}", f"{getattr(args, flag)} is too few", f"give at least {least}")
    try:
        memory = parse_bytes(args.memory)
    except ValueError as problem:
        raise Invalid("--memory", f"{args.memory!r} is not a size", "write for instance 256Gi") from problem
    several = args.nodes > 1
    gpu = catalog.gpu(args.gpu_kind, "--gpu-kind")
    return Options(
        kubeconfig=kubeconfig,
        gpu=gpu,
        node_names=tuple(f"{args.node_name}-{n + 1}" if several else args.node_name for n in range(args.nodes)),
        plugin_nodes=tuple(f"{args.node_name}-plugin-{n + 1}" for n in range(args.plugin_nodes)),
        mig_nodes=tuple(f"{args.node_name}-mig-{n + 1}" for n in range(args.mig_nodes)),
        mig_profiles=_profiles(gpu, args.mig_profiles, "--mig-profiles"),
        cut_nodes=_cut_nodes(gpu, args.node_name, args.plugin_mig),
        gpus_a_node=args.gpus,
        machine=Machine(cpu_cores=args.cpus, memory=memory),
        start_seconds=args.start_seconds,
        backoff_seconds=args.backoff_seconds,
        exporter=not args.no_exporter,
        exporter_period_seconds=args.exporter_period_seconds,
        generation=Generation(args.exporter_generation),
        absent=frozenset(Field(each) for each in args.exporter_absent),
        pod_range=args.pod_range,
        control_port=args.control_port,
        proxy_port=args.proxy_port,
        seed=args.seed,
        models=dict(_model(text) for text in args.model_config),
        processes=dict(_process(text) for text in args.process),
    )


def _profiles(gpu: GpuKind, names: str, flag: str) -> tuple[MigProfile, ...]:
    return tuple(catalog.mig_profile(gpu, name, flag) for name in names.split(",") if name)


def _cut_nodes(gpu: GpuKind, node_name: str, texts: Sequence[str]) -> tuple[CutNode, ...]:
    flag = "--plugin-mig"
    nodes: list[CutNode] = []
    for text in texts:
        word, _, names = text.partition("=")
        if word not in (MigStrategy.SINGLE, MigStrategy.MIXED) or not names:
            raise Invalid(flag, f"{text!r} is no strategy with slices", "write for instance mixed=3g.40gb,2g.20gb")
        strategy, profiles = MigStrategy(word), _profiles(gpu, names, flag)
        if strategy is MigStrategy.SINGLE and len(set(profiles)) > 1:
            raise Invalid(flag, "the strategy single knows slices of one size only", "give one profile, or mixed=")
        number = sum(each.strategy is strategy for each in nodes) + 1
        nodes.append(CutNode(name=f"{node_name}-{strategy}-{number}", strategy=strategy, profiles=profiles))
    return tuple(nodes)


@contextlib.contextmanager
def _cluster(args: argparse.Namespace) -> Iterator[Path | None]:
    if not args.with_control_plane:
        yield args.kubeconfig
        return
    with ControlPlane(binaries.obtain(binaries.control_plane())) as cluster:
        yield cluster.kubeconfig


async def _run(args: argparse.Namespace, options: Options) -> int:
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    async with TwinNodes(options) as nodes:
        doors = {
            "kubeconfig": None if options.kubeconfig is None else str(options.kubeconfig),
            "control": nodes.control,
            "pod_proxy": nodes.pod_proxy,
            "nodes": list(options.node_names),
        }
        for name, value in doors.items():
            print(f"{name.replace('_', ' '):<12} {', '.join(value) if isinstance(value, list) else value}", flush=True)
        if args.ready_file is not None:
            partial = args.ready_file.with_suffix(".part")
            partial.write_text(json.dumps(doors))
            partial.rename(args.ready_file)
        nodes.failed.add_done_callback(lambda _: asked.set())
        await asked.wait()
        if nodes.failed.done():
            nodes.failed.result()
    return 0


def _process(text: str) -> tuple[str, Path]:
    image, _, folder = text.rpartition("=")
    if not image or not Path(folder).is_dir():
        raise Invalid("--process", f"{text!r} names no image or no folder", "write IMAGE=FOLDER")
    return image, Path(folder).resolve()


def _model(text: str) -> tuple[str, Llm]:
    name, equals, file = text.partition("=")
    if not equals:
        raise Invalid("--model-config", f"{text!r} names no file", "write NAME=FILE")
    try:
        config = json.loads(Path(file).read_text())
        fields = LlmConfig(**{field: config[field] for field in _CONFIG_FIELDS if config.get(field) is not None})
    except (OSError, ValueError, TypeError, AttributeError) as problem:
        raise Invalid(
            "--model-config", f"{file} is no config.json: {problem}", "give a model's config.json"
        ) from problem
    return name, llm_from_config(name, fields, "--model-config")
