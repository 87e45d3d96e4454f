"""`gpupack explain`: why a ModelServing runs as it does, from its status in a cluster. Reads, never writes.

The sentences are the operator's own (`decide/explain.py` made them); nothing is decided or predicted here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from gpupack import catalog
from gpupack.cli.show import gib, print_json, table
from gpupack.decide.explain import counted
from gpupack.decide.meanings import advice
from gpupack.errors import Invalid, Unavailable
from gpupack.facts.serving import Serving
from gpupack.kube import labels
from gpupack.kube.api import Api, ApiError, NotFound, configuration_of
from gpupack.kube.observe import SERVINGS
from gpupack.kube.serving_resource import serving_resource
from gpupack.program import add_kubeconfig

KINDS = ("msv", "modelserving", "modelservings")
PARTS = ("seen", "predicted", "chosen", "rejected", "measured")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="?", type=_name, metavar="[msv/]NAME", help="a ModelServing; default: all of the namespace"
    )
    parser.add_argument("-n", "--namespace", default="default", metavar="NAMESPACE", help="default: default")
    add_kubeconfig(parser)
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text", help="default text")
    parser.add_argument(
        "--picker", action="store_true",
        help="print an EndpointPickerConfig whose thresholds fit the engines of a ModelServing with spec.routing",
    )  # fmt: skip
    parser.add_argument("--json", action="store_const", const="json", dest="output", help="the same as -o json")


def _name(text: str) -> str:
    """`chat`, or `msv/chat` as kubectl says it."""
    kind, slash, name = text.rpartition("/")
    if slash and kind.lower().removesuffix(".gpupack.dev") not in KINDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME or msv/NAME; a namespace goes with -n")
    return name


def run(args: argparse.Namespace) -> int:
    """Raises Invalid for a serving that is not there and Unavailable where no API server answers."""
    servings, profiles = asyncio.run(_read(args.kubeconfig, args.namespace, args.name))
    if args.picker:
        print("---\n".join(picker_config(serving) for serving in servings), end="")
        return 0
    learnt = [_learnt_of(serving, profiles) for serving in servings]
    if args.output == "json":
        told = [{**_told(serving), "learned": each} for serving, each in zip(servings, learnt, strict=True)]
        print_json(told[0] if args.name else told)
    elif servings:
        print("\n\n".join(prose(serving, each) for serving, each in zip(servings, learnt, strict=True)))
    else:
        print(f"there is no ModelServing in namespace {args.namespace}")
    return 0


async def _read(
    kubeconfig: str | None, namespace: str, name: str | None
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """The servings, and what was learnt in their namespace."""
    path = f"{labels.API_PATH}/namespaces/{namespace}/modelservings"
    async with Api(await configuration_of(kubeconfig)) as api:
        if name is None:
            return (await api.get(path))["items"], await _profiles(api, namespace)
        try:
            return [await api.get(f"{path}/{name}")], await _profiles(api, namespace)
        except NotFound as missing:
            raise not_there(name, namespace, await _namespaces_of(api, name)) from missing


def not_there(name: str, namespace: str, elsewhere: Sequence[str]) -> Invalid:
    """`elsewhere`: the namespaces that have one of that name."""
    fix = f"it is in {', '.join(elsewhere)}: add -n {elsewhere[0]}" if elsewhere else "see: kubectl get msv -A"
    return Invalid("NAME", f"there is no ModelServing {name} in namespace {namespace}", fix)


async def _profiles(api: Api, namespace: str) -> list[Mapping[str, Any]]:
    """What live load has taught there; none if the user may not read it."""
    try:
        listed = (await api.get(f"{labels.API_PATH}/namespaces/{namespace}/modelprofiles"))["items"]
    except ApiError:
        return []
    return [each for each in listed if "learned" in each.get("status", {})]


def picker_config(serving: Mapping[str, Any]) -> str:
    """What an endpoint picker (llm-d-router's) is started with, as a file for its `--config-file`.

    Raises Invalid for a serving that names no picker, or has no shape yet.
    """
    fits = serving.get("status", {}).get("routing")
    if not fits:
        problem = f"the status of {serving['metadata']['name']} has no thresholds for an endpoint picker"
        fix = "name one in spec.routing.inferencePool.endpointPickerRef, and wait until a shape is chosen"
        raise Invalid("NAME", problem, fix)
    parameters = {name: json.loads(str(fits[name])) for name in ("queueDepthThreshold", "kvCacheUtilThreshold")}
    detector = "utilization-detector"
    config = {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "plugins": [
            {"type": detector, "parameters": parameters},
            {"type": "queue-scorer"},
            {"type": "kv-cache-utilization-scorer"},
            {"type": "max-score-picker"},
            {"type": "single-profile-handler"},
        ],
        "schedulingProfiles": [{
            "name": "default",
            "plugins": [
                {"pluginRef": detector},
                {"pluginRef": "queue-scorer", "weight": 2},
                {"pluginRef": "kv-cache-utilization-scorer", "weight": 2},
                {"pluginRef": "max-score-picker"},
            ],
        }],
        "flowControl": {"saturationDetector": {"pluginRef": detector}},
    }  # fmt: skip
    return yaml.safe_dump(config, sort_keys=False)


def _learnt_of(serving: Mapping[str, Any], profiles: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The learned profiles of the serving's model and engine version."""
    if not profiles:
        return []
    read = serving_resource(serving, llm_of=catalog.llm_of).serving
    if not isinstance(read, Serving):
        return []
    wanted = (read.llm.name, read.engine_version)
    return [each for each in profiles if (each["spec"]["model"], each["spec"]["engineVersion"]) == wanted]


async def _namespaces_of(api: Api, name: str) -> list[str]:
    """Where there is a ModelServing of that name; none if the user may not look into all namespaces."""
    try:
        found = await api.get(SERVINGS)
    except Unavailable:
        return []
    return sorted(each["metadata"]["namespace"] for each in found["items"] if each["metadata"]["name"] == name)


def _told(serving: Mapping[str, Any]) -> Mapping[str, Any]:
    """What belongs to the decision, in the API's own names."""
    status = serving.get("status", {})
    kept = (
        "shape", "replicasPerGpu", "replicas", "readyReplicas", "freedBytes", "assumed", "placements", "decision",
        "experiment", "decisions", "observed", "routing",
    )  # fmt: skip
    return {
        "namespace": serving["metadata"]["namespace"],
        "name": serving["metadata"]["name"],
        "upToDate": _is_up_to_date(serving),
        **{key: status.get(key) for key in kept},
        "conditions": status.get("conditions", []),
    }


def _is_up_to_date(serving: Mapping[str, Any]) -> bool:
    seen = serving.get("status", {}).get("observedGeneration")
    return bool(seen == serving["metadata"].get("generation"))


def prose(serving: Mapping[str, Any], learnt: Sequence[Mapping[str, Any]] = ()) -> str:
    """One ModelServing as a person reads it: the decision first, then what it rests on."""
    meta, status = serving["metadata"], serving.get("status", {})
    lines = [f"{meta['namespace']}/{meta['name']}: {_count(status)}"]
    if "observed" in status:
        lines = [f"{meta['namespace']}/{meta['name']}: {_watched(status['observed'])}"]
    if not status:
        return f"{lines[0]}\n  gpupack has not looked at it yet; is the operator running, and is there a GpuPool?"
    if not _is_up_to_date(serving):
        lines.append("  The spec has changed since; what follows is about the one before.")
    decision = status.get("decision")
    if decision:
        lines.append(f"  {decision.get('reason', '')}. {decision.get('message', '')} ({decision.get('at', '')})")
        if advised := advice(decision.get("reason", "")):
            lines.append(f"  What to do: {advised}")
    observed = status.get("observed")
    if observed:
        return "\n".join([*lines, *_observed(observed)])
    lines += [f"  {line}" for line in _shape(status)]
    lines += [_belief(each) for each in learnt]
    lines += _decisions(status.get("decisions", ()))
    conditions: Sequence[Mapping[str, Any]] = status.get("conditions", ())
    if conditions:
        rows = [(each["type"], each["status"], each["reason"], each.get("message", "")) for each in conditions]
        lines += ["", *_indented(table(("condition", "is", "reason", ""), rows, left=True))]
    placements: Sequence[Mapping[str, Any]] = status.get("placements", ())
    if placements:
        rows = [(each["name"], each["phase"], each["gpu"], each["node"]) for each in placements]
        lines += ["", *_indented(table(("replica", "is", "GPU", "node"), rows, left=True))]
    return "\n".join(lines)


def _belief(profile: Mapping[str, Any]) -> str:
    """What live load has taught, and where it stands."""
    learned = profile["status"]["learned"]
    return (
        f"  On {profile['spec']['gpu']} a step is believed to cost {learned['stepMicroseconds']} us and "
        f"{learned['sequenceMicroseconds']} us a sequence, and KV cache to be read at {learned['kvReadEfficiency']} of "
        f"the bandwidth: {learned['message']} (ModelProfile {profile['metadata']['name']})."
    )


def _decisions(decisions: Sequence[Mapping[str, Any]]) -> list[str]:
    """The last decisions, the newest first: what was seen, predicted, chosen, rejected, and measured afterwards."""
    lines = ["", "  The last decisions"] if decisions else []
    for each in reversed(decisions):
        lines.append(f"    {each['at']}  {each['reason']}")
        lines += [f"      {part + ':':<11}{each[part]}" for part in PARTS if each.get(part)]
    return lines


def _count(status: Mapping[str, Any]) -> str:
    planned, ready = status.get("replicas", 0), status.get("readyReplicas", 0)
    return f"{counted(planned, 'replica')} planned, {ready} ready"


def _shape(status: Mapping[str, Any]) -> list[str]:
    shape = status.get("shape")
    if not shape:
        return []
    lines = [
        f"Batch limit {shape.get('maxNumSeqs')}, KV cache {gib(shape.get('kvCacheMemoryBytes', 0))}, "
        f"at most {status.get('replicasPerGpu')} engines a GPU."
    ]
    if status.get("freedBytes"):
        lines.append(f"{gib(status['freedBytes'])} are free that one vLLM would have taken by itself.")
    if fits := status.get("routing"):
        lines.append(
            f"An endpoint picker should take an engine for overloaded above {fits['queueDepthThreshold']} waiting "
            f"requests or {float(fits['kvCacheUtilThreshold']):.0%} of its KV cache (--picker prints a configuration)."
        )
    if status.get("assumed"):
        lines.append(f"Assumed, because the spec does not say: {', '.join(status['assumed'])}.")
    return lines


def _watched(observed: Mapping[str, Any]) -> str:
    engines: Sequence[Mapping[str, Any]] = observed.get("engines", ())
    judged = sum(1 for each in engines if "problem" not in each)
    pods = f"{counted(len(engines), 'pod')} observed"
    return f"{pods}, {judged} judged; gpupack started none of them"


def _observed(observed: Mapping[str, Any]) -> list[str]:
    """The engines as they are, and for each kind of GPU the arguments to paste."""
    rows = [
        (
            each["pod"], each.get("gpuKind", "-"), str(each.get("maxNumSeqs", "-")),
            gib(each["kvCacheMemoryBytes"]) if "kvCacheMemoryBytes" in each else "-",
            _percent(each.get("gpuMemoryUtilizationPercent")), each.get("running", "-"),
            each.get("requestsPerSecond", "-"), _milliseconds(each.get("itlMeanMilliseconds")),
            _milliseconds(each.get("itlP95Milliseconds")), each.get("problem", ""),
        )
        for each in observed.get("engines", ())
    ]  # fmt: skip
    lines = []
    if rows:
        head = ("pod", "GPU", "batch limit", "KV cache", "of the GPU", "running", "requests/s", "ITL mean", "p95", "")
        lines += ["", *_indented(table(head, rows, left=True))]
    for better in observed.get("advised", ()):
        gain, needed = better.get("expectedGainPercent"), better.get("gpusNeeded")
        lines += ["", f"  {better['gpuKind']}: {better['replicasPerGpu']} engines on a GPU, each with"]
        lines += [f"    {argument} \\" for argument in better.get("engineArguments", ())]
        lines[-1] = lines[-1].removesuffix(" \\")
        told = [f"{gib(better.get('freedBytes', 0))} of KV cache freed an engine"]
        told += [] if gain is None else [f"{_signed(gain)} % throughput a GPU expected"]
        told += [] if needed is None else [f"{needed} of {better.get('gpusNow')} GPUs needed for the load of now"]
        lines.append(f"  {'; '.join(told)}.")
    return lines


def _percent(text: str | None) -> str:
    return "-" if text is None else f"{text} %"


def _milliseconds(text: str | None) -> str:
    return "-" if text is None else f"{float(text):.1f} ms"


def _signed(text: str) -> str:
    return f"{float(text):+.0f}"


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]
