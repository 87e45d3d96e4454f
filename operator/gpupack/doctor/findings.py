"""What a cluster's state means for gpupack: what will work, what will not, and what to do. Pure.

Each check says one thing in a sentence that a person can act on. Knows what this version of gpupack needs: GPUs that
NVIDIA's DRA driver publishes or its device plugin offers whole; dcgm-exporter or the node agent for bandwidth and
memory. Which way of sharing would be taken, and why no other, are `decide.backends`' words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from gpupack.catalog import mig_profiles
from gpupack.decide.backends import CLASS_COMES, LEAST_KUBERNETES, SET_GATE, weigh
from gpupack.decide.explain import counted, listed
from gpupack.doctor.operators import SELECTOR, OperatorSeen
from gpupack.doctor.reading import Unseen
from gpupack.doctor.role import ROLE, Need, Right, all_rights
from gpupack.doctor.survey import SOURCES, ClusterSeen, GpuNode, PodLook
from gpupack.facts.counter import Counter as DramCounter
from gpupack.facts.gpu import GpuKind
from gpupack.kube import labels
from gpupack.kube.node_resource import (
    UNLABELLED,
    GpuByProduct,
    PlacedDevice,
    UnknownDevice,
    devices_of,
    places_of,
    unknown_devices_of,
    unknown_places_of,
)
from gpupack.kube.offers import offer_of
from gpupack.metrics.prometheus import GpuPage
from gpupack.metrics.series import Exporter
from gpupack.units import Bytes

LEAST_DRIVER = 580
"""NVIDIA's DRA driver for GPUs asks for it (GPU operator 26.7, documentation of its DRA install)."""
PRODUCT_LABEL = "nvidia.com/gpu.product"
MEMORY_LABEL = "nvidia.com/gpu.memory"
DRIVER_LABEL = "nvidia.com/cuda.driver-version.full"
COMPUTE_LABEL = "nvidia.com/gpu.compute.major"
LEAST_COMPUTE = 7
"""Volta: from here on every client of MPS has an address space of its own (NVIDIA's MPS documentation)."""
NO_PROFILING = ("NVIDIA GeForce", "NVIDIA TITAN")
"""Products whose counters DCGM does not profile (its documentation, "Profiling Metrics")."""
NAMED = 5
"""So many names are told; the others are counted."""
INSTALL = "helm install gpupack charts/gpupack -n gpupack-system --create-namespace"
GRANT = "Run `kubectl apply -k deploy/` again, or upgrade the chart's release with rbac.create: true."


class Grade(StrEnum):
    """GOOD works; LIMITED works with less; BLOCKED must be mended first; UNKNOWN could not be looked at."""

    GOOD = "good"
    LIMITED = "limited"
    BLOCKED = "blocked"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`remedy` is empty where there is nothing to do."""

    topic: str
    grade: Grade
    sentence: str
    remedy: str = ""


Check = Callable[[ClusterSeen, GpuByProduct], Iterable[Finding]]


def diagnose(seen: ClusterSeen, gpu_by_product: GpuByProduct) -> tuple[Finding, ...]:
    """Every finding, in the order in which a first user would mend them."""
    return tuple(finding for check in CHECKS for finding in check(seen, gpu_by_product))


def kubernetes(seen: ClusterSeen, gpu_by_product: GpuByProduct) -> Iterator[Finding]:
    """Without ResourceClaims only what a device plugin offers whole can be shared."""
    found = re.match(r"v?(\d+)\.(\d+)", seen.version)
    if found is None:
        yield unknown("Kubernetes", f"The API server calls its version {seen.version!r}.")
    elif "resource.k8s.io/v1" not in seen.served and _places(seen, gpu_by_product):
        yield good("Kubernetes", f"Kubernetes {seen.version} serves no ResourceClaims, and none are needed here.")
    elif (int(found[1]), int(found[2])) < LEAST_KUBERNETES:
        least = ".".join(map(str, LEAST_KUBERNETES))
        yield blocked(
            "Kubernetes",
            f"This is Kubernetes {seen.version}; gpupack needs {least} for ResourceClaims.",
            f"Upgrade the control plane to {least} or later, or let NVIDIA's device plugin offer whole GPUs.",
        )
    elif "resource.k8s.io/v1" not in seen.served:
        yield blocked(
            "Kubernetes",
            f"Kubernetes {seen.version} does not serve resource.k8s.io/v1.",
            "Do not turn it off in --runtime-config of the API server, nor the gate DynamicResourceAllocation.",
        )
    else:
        yield good("Kubernetes", f"Kubernetes {seen.version} serves ResourceClaims.")


def gpus(seen: ClusterSeen, gpu_by_product: GpuByProduct) -> Iterator[Finding]:
    """Which GPUs gpupack would find, and which it would not know."""
    if isinstance(seen.slices, Unseen) and "resource.k8s.io/v1" in seen.served:
        yield _unseen("GPUs", "ResourceSlices", seen.slices)
        return
    slices = () if isinstance(seen.slices, Unseen) else seen.slices
    nodes = () if isinstance(seen.nodes, Unseen) else seen.nodes
    placed, places = devices_of(slices, gpu_by_product), _places(seen, gpu_by_product)
    strange = (
        *unknown_devices_of(slices, gpu_by_product),
        *unknown_places_of((each.record for each in nodes), slices, gpu_by_product),
    )
    if placed:
        yield good("GPUs", f"{_by_kind(placed)} can be packed.")
    if places:
        yield good(
            "GPUs",
            f"{_by_kind(places)} can be packed: a device plugin offers them.",
        )
    for product in sorted({each.product for each in strange}):
        yield _unknown([each for each in strange if each.product == product], gpu_by_product)
    if placed or places or strange:
        return
    plugged = [each for each in nodes if each.offers]
    if plugged:
        yield _only_shared(plugged, gpu_by_product)
        return
    yield blocked(
        "GPUs",
        "No node offers an NVIDIA GPU, neither by a DRA driver nor by a device plugin.",
        "Install NVIDIA's GPU operator with its DRA driver (gpuCluster.deployCR=true), and see that the GPU nodes "
        "are Ready.",
    )


def _places(seen: ClusterSeen, gpu_by_product: GpuByProduct) -> tuple[PlacedDevice, ...]:
    """GPUs that a device plugin offers whole where no driver publishes them."""
    if isinstance(seen.nodes, Unseen):
        return ()
    slices = () if isinstance(seen.slices, Unseen) else seen.slices
    return places_of((each.record for each in seen.nodes), slices, gpu_by_product)


def _by_kind(devices: Iterable[PlacedDevice]) -> str:
    kinds = Counter(each.gpu.kind.name for each in devices)
    return ", ".join(f"{count} x {name}" for name, count in sorted(kinds.items()))


def _unknown(devices: list[UnknownDevice], gpu_by_product: GpuByProduct) -> Finding:
    """Devices of one product, or one profile of MIG slices, that the catalog does not have."""
    product, count = devices[0].product, len(devices)
    where = _names(sorted({each.node for each in devices}))
    if product == UNLABELLED:
        return limited(
            "GPUs",
            f"{counted(count, 'GPU')} on {where} without the label {labels.PRODUCT}: nobody tells which product that "
            "is, so gpupack leaves it alone.",
            "Run GPU feature discovery there, which writes it (the GPU operator brings it).",
        )
    whole, cut, profile = product.partition(labels.SLICE_OF)
    remedy = "`gpupack catalog` lists what is known; a row of its datasheet can be contributed."
    if not cut:
        return limited("GPUs", f"{count} x {product} on {where} is not in gpupack's catalog and stays unused.", remedy)
    kind = gpu_by_product(whole, None)
    known = [each.name for each in mig_profiles(kind)] if kind is not None else []
    if kind is not None and known and profile not in known:
        remedy = f"gpupack knows {listed(known)} of {kind.name}. Cut the GPU into those, or contribute the profile."
    return limited(
        "GPUs",
        f"{counted(count, 'MIG slice')} {profile} of {whole} on {where}: gpupack's catalog does not know this profile, "
        "so nothing is placed there and the slices stay unused. Slices that it knows are used all the same.",
        remedy,
    )


def _only_shared(plugged: list[GpuNode], gpu_by_product: GpuByProduct) -> Finding:
    kinds = Counter(_product(each, gpu_by_product) for each in plugged)
    told = ", ".join(f"{name} on {counted(count, 'node')}" for name, count in sorted(kinds.items()))
    return blocked(
        "GPUs",
        f"A device plugin offers {told}, but shares them itself (time-slicing, or an MPS of its own), and no DRA "
        "driver publishes them.",
        "Turn sharing off in the plugin's configuration there, or install NVIDIA's DRA driver for GPUs. Until then "
        "`spec.observe` and mode Advise work for vLLM pods that run already.",
    )


def _product(node: GpuNode, gpu_by_product: GpuByProduct) -> str:
    product = node.record.labels.get(PRODUCT_LABEL, "")
    mib = node.record.labels.get(MEMORY_LABEL, "")
    kind: GpuKind | None = gpu_by_product(product, Bytes(int(mib) << 20) if mib.isdigit() else None)
    return kind.name if kind is not None else product or "GPUs without a product label"


def device_class(seen: ClusterSeen, _: GpuByProduct) -> Iterator[Finding]:
    if isinstance(seen.slices, Unseen) or not seen.slices:
        return
    if isinstance(seen.device_classes, Unseen):
        yield _unseen("DRA driver", "DeviceClasses", seen.device_classes)
    elif labels.DEVICE_CLASS not in seen.device_classes:
        yield blocked(
            "DRA driver",
            f"There is no DeviceClass {labels.DEVICE_CLASS}.",
            CLASS_COMES,
        )
    else:
        yield good("DRA driver", f"DeviceClass {labels.DEVICE_CLASS} is there.")


def driver(seen: ClusterSeen, _: GpuByProduct) -> Iterator[Finding]:
    versions = dict(seen.drivers)
    for node in () if isinstance(seen.nodes, Unseen) else seen.nodes:
        told = node.record.labels.get(DRIVER_LABEL)
        if told and (node.offers or node.record.name in versions):
            versions.setdefault(node.record.name, told)
    old = sorted(name for name, version in versions.items() if _major(version) < LEAST_DRIVER)
    if old:
        yield limited(
            "NVIDIA driver",
            f"The driver is older than {LEAST_DRIVER} on {_names(old)} ({versions[old[0]]}).",
            f"NVIDIA's DRA driver for GPUs asks for {LEAST_DRIVER} or later; upgrade it there.",
        )
    elif versions:
        told = ", ".join(sorted(set(versions.values())))
        yield good("NVIDIA driver", f"Driver {told}.")


def _major(version: str) -> int:
    found = re.match(r"\d+", version)
    return int(found[0]) if found else 0


def backends(seen: ClusterSeen, gpu_by_product: GpuByProduct) -> Iterator[Finding]:
    """The way of sharing that a GpuPool of all nodes would take, and of each other one why not."""
    if isinstance(seen.nodes, Unseen) or (isinstance(seen.slices, Unseen) and "resource.k8s.io/v1" in seen.served):
        return
    slices = () if isinstance(seen.slices, Unseen) else seen.slices
    ways = weigh(
        offer_of(
            (each.record for each in seen.nodes), slices,
            (*devices_of(slices, gpu_by_product), *_places(seen, gpu_by_product)),
            claims="resource.k8s.io/v1" in seen.served,
            device_classes=None if isinstance(seen.device_classes, Unseen) else seen.device_classes,
            runtime_class=seen.runtime_class, gates=(bool(each.mps_gate) for each in _driver_pods(seen)),
        )
    )  # fmt: skip
    others = " ".join(each.sentence for each in ways if not each.gpus)
    if taken := [each for each in ways if each.gpus]:
        say = limited if any(each.broken for each in taken) else good
        yield say("Sharing", " ".join(each.why for each in taken), others)
    else:
        yield blocked("Sharing", "There is no way in which engines could share a GPU.", others)


def _driver_pods(seen: ClusterSeen) -> list[PodLook]:
    return [] if isinstance(seen.pods, Unseen) else [each for each in seen.pods if each.mps_gate is not None]


def mps(seen: ClusterSeen, gpu_by_product: GpuByProduct) -> Iterator[Finding]:
    """Whether two engines can share a GPU by MPS: by the gate of the driver's own pods, and inside a pod by the GPU."""
    if not isinstance(seen.pods, Unseen) and not isinstance(seen.slices, Unseen) and seen.slices:
        yield _gate(_driver_pods(seen))
    inside = {each.gpu.node for each in _places(seen, gpu_by_product)}
    nodes = () if isinstance(seen.nodes, Unseen) else seen.nodes
    majors = {each.record.name: each.record.labels.get(COMPUTE_LABEL, "") for each in nodes}
    old = sorted(name for name in inside if majors[name].isdecimal() and int(majors[name]) < LEAST_COMPUTE)
    if old:
        yield limited(
            "MPS",
            f"The GPUs on {_names(old)} are older than Volta, where MPS does not keep engines' memory apart.",
            "Set spec.sharing: [Exclusive] in a GpuPool of those nodes.",
        )
    elif inside:
        yield good(
            "MPS",
            "On nodes with a device plugin the MPS daemon runs inside the pod that holds the GPU and needs nothing of "
            "the node; a pod in which it cannot start says so, and one engine runs there.",
        )


def _gate(plugins: list[PodLook]) -> Finding:
    if not plugins:
        return unknown(
            "MPS",
            "The pods of the DRA driver were not recognised, so nothing tells whether its gate MPSSupport is on.",
            "See that the driver runs with featureGates MPSSupport=true; without it a claim that asks for MPS is "
            "refused and replicas stay Pending.",
        )
    if any(each.mps_gate for each in plugins):
        return good("MPS", "The DRA driver's gate MPSSupport is on.")
    return blocked(
        "MPS",
        f"The DRA driver ({plugins[0].key}) does not have its gate MPSSupport on: engines cannot share a GPU.",
        SET_GATE,
    )


def counters(seen: ClusterSeen, gpu_by_product: GpuByProduct) -> Iterator[Finding]:
    """Which counters of DRAM traffic each kind of GPU has at all, whoever reads them."""
    slices = () if isinstance(seen.slices, Unseen) else seen.slices
    kinds = {each.gpu.kind for each in (*devices_of(slices, gpu_by_product), *_places(seen, gpu_by_product))}
    for kind in sorted(kinds, key=lambda each: each.name):
        if any(name.startswith(NO_PROFILING) for name in kind.product_names):
            yield limited(
                "Counters",
                f"{kind.name} tells nobody its DRAM traffic: DCGM profiles only data-centre GPUs.",
                "Packing stops at a predicted saturation of 80 % there.",
            )
        elif kind.gpm:
            yield good(
                "Counters", f"{kind.name} tells its DRAM traffic to dcgm-exporter and, by GPM, to gpupack's node agent."
            )
        else:
            yield good(
                "Counters",
                f"{kind.name} tells its DRAM traffic to dcgm-exporter only, in a privileged container with the "
                "profiling module; the node agent has busy times of it.",
            )


def exporters(seen: ClusterSeen, gpu_by_product: GpuByProduct) -> Iterator[Finding]:
    """Whether bandwidth and memory of each GPU can be measured."""
    if isinstance(seen.pods, Unseen):
        yield _unseen("Metrics", "pods", seen.pods)
        return
    nodes = {each.node for each in (() if isinstance(seen.slices, Unseen) else seen.slices) if each.devices}
    nodes |= {each.gpu.node for each in _places(seen, gpu_by_product)}
    running = [each for each in seen.pods if each.exporter is not None]
    without = sorted(nodes - {each.node for each in running})
    if without:
        yield limited(
            "Metrics",
            f"No dcgm-exporter and no node agent was found on {_names(without)}: one replica a GPU there, because "
            "nobody can tell what else holds its memory.",
            "Install dcgm-exporter (the GPU operator brings it), name its pods in spec.metrics.dcgm of the GpuPool, "
            "set agent.enabled in the chart, or name a Prometheus that has the series in spec.metrics.prometheus.",
        )
    for pod in running:
        if pod.node in nodes:
            yield from _page(pod, seen)


def _page(pod: PodLook, seen: ClusterSeen) -> Iterator[Finding]:
    page = seen.pages.get(pod.key, Unseen(why="it was not asked"))
    if isinstance(page, Unseen):
        yield unknown(
            "Metrics",
            f"{pod.key} could not be asked: {page.why}.",
            f"The operator asks port {SOURCES[pod.exporter or Exporter.DCGM].port} of the pod itself; see that a "
            "NetworkPolicy lets it in.",
        )
        return
    if not page:
        yield limited(
            "Metrics",
            f"{pod.key} tells of no GPU.",
            "See its log: it may lack the right to profile, or the driver.",
        )
        return
    if pod.exporter is Exporter.AGENT:
        yield _agents(pod, page)
        return
    whole = [each for each in page if not each.card]  # memory is told of whole GPUs, not of MIG instances
    lacks = []
    if any(each.dram_active is None for each in page):
        lacks.append("DCGM_FI_PROF_DRAM_ACTIVE (packing then stops at a predicted saturation of 80 %)")
    if any(each.fb_used is None for each in whole):
        lacks.append("DCGM_FI_DEV_FB_USED (one replica a GPU then)")
    if lacks:
        yield limited(
            "Metrics",
            f"{pod.key} does not export {' and '.join(lacks)}.",
            "Add the fields to the exporter's list of metrics; profiling fields need a GPU of Volta or later and "
            "no other profiler on it.",
        )
    else:
        yield good(
            "Metrics",
            f"{pod.key} exports DRAM activity and memory of {counted(len(whole), 'GPU')}.",
        )


def _agents(pod: PodLook, page: tuple[GpuPage, ...]) -> Finding:
    if any(each.counter is DramCounter.NVML_MEMORY_BUSY or each.dram_active is None for each in page):
        return limited(
            "Metrics",
            f"The node agent {pod.key} tells memory in use and how long it is busy, not how much is moved.",
            "Its busy times are used once their scale is measured under load; dcgm-exporter with "
            "DCGM_FI_PROF_DRAM_ACTIVE tells more.",
        )
    return good("Metrics", f"The node agent {pod.key} tells DRAM traffic and memory of {counted(len(page), 'GPU')}.")


def holders(seen: ClusterSeen, _: GpuByProduct) -> Iterator[Finding]:
    """Who holds GPUs now: gpupack leaves those alone."""
    holding = [] if isinstance(seen.claims, Unseen) else [f"{each.namespace}/{each.name}" for each in seen.claims]
    asking = () if isinstance(seen.pods, Unseen) else seen.pods
    holding += [each.key for each in asking if each.extended and not each.ours]
    if holding:
        yield limited(
            "GPUs of others",
            f"{_names(sorted(holding))} {'hold' if len(holding) > 1 else 'holds'} GPUs, which gpupack leaves alone.",
        )


def engines(seen: ClusterSeen, _: GpuByProduct) -> Iterator[Finding]:
    """vLLM that runs already is where a careful team begins."""
    pods = () if isinstance(seen.pods, Unseen) else seen.pods
    running = sorted(each.key for each in pods if not each.ours and any("vllm" in image for image in each.images))
    if running:
        yield good(
            "vLLM",
            f"vLLM runs already: {_names(running)}.",
            "Point a ModelServing with mode Advise and spec.observe.selector at it: gpupack says what it could be, "
            "and touches nothing.",
        )


def installed(seen: ClusterSeen, _: GpuByProduct) -> Iterator[Finding]:
    """Whether its custom resources are there; if not, whether this user may install it."""
    if "gpupack.dev/v1alpha1" in seen.served:
        yield good("gpupack", "Its custom resources are installed.")
    elif not isinstance(seen.operators, Unseen) and seen.operators:
        yield blocked(
            "gpupack",
            f"Its operator {seen.operators[0].name} is installed, but its custom resources are not; it waits for them.",
            "Run `kubectl apply --server-side -f crds/`, or upgrade the chart's release with crds.install: true.",
        )
    elif isinstance(seen.may_not_install, Unseen):
        yield unknown(
            "gpupack",
            f"It is not installed, and nobody says whether you may install it: {seen.may_not_install.why}.",
            INSTALL,
        )
    elif seen.may_not_install:
        lacking = [f"{right.verb} {right.resource}" for right in seen.may_not_install]
        yield blocked(
            "gpupack",
            f"It is not installed, and you may not install it: {listed(sorted(lacking))} is refused to you.",
            "Ask an administrator of the cluster to run `helm install gpupack charts/gpupack`.",
        )
    else:
        yield good("gpupack", "It is not installed yet; you may install it.", INSTALL)


def operator(seen: ClusterSeen, _: GpuByProduct) -> Iterator[Finding]:
    """Where it is installed: that one operator runs, and that its account may do what it does."""
    if isinstance(seen.operators, Unseen):
        if "gpupack.dev/v1alpha1" in seen.served:
            yield _unseen("Operator", "Deployments, and so the operator's rights,", seen.operators)
        return
    if not seen.operators and "gpupack.dev/v1alpha1" in seen.served:
        named = listed([f"{key}={value}" for key, value in SELECTOR.items()])
        yield unknown(
            "Operator",
            f"There is no Deployment with the labels {named}: unless the operator runs elsewhere, nobody looks at "
            "ModelServings, and their status stays empty.",
            INSTALL,
        )
    if len(seen.operators) > 1:
        yield blocked(
            "Operator",
            f"There are {len(seen.operators)} operators: {listed([each.name for each in seen.operators])}. Two would "
            "decide for the same pool.",
            "Uninstall all but one; ModelServings and engines stay.",
        )
    for each in seen.operators:
        yield _running(each)
        yield from _granted(each)


def _running(seen: OperatorSeen) -> Finding:
    namespace, _, name = seen.name.partition("/")
    if seen.ready:
        return good("Operator", f"{seen.name} is ready.")
    why = "its pod is not ready" if seen.wanted else "it is scaled to no replicas"
    return blocked(
        "Operator",
        f"{seen.name} does not run: {why}. Engines serve on, but nothing is decided and no status is written.",
        f"kubectl -n {namespace} describe deploy/{name}; kubectl -n {namespace} logs deploy/{name}"
        if seen.wanted else f"kubectl -n {namespace} scale deploy/{name} --replicas=1",
    )  # fmt: skip


def _granted(seen: OperatorSeen) -> Iterator[Finding]:
    """Each part of the operator's role that its account does not hold, and what stops working without it."""
    if isinstance(seen.lacks, Unseen):
        yield unknown(
            "Rights",
            f"Nobody tells whether the operator's account {seen.account} holds its role. You may not ask about others: "
            f"{seen.from_roles}. And ClusterRoles could not be read: {seen.lacks.why}.",
            "Ask again as a user who may create subjectaccessreviews, or read clusterrolebindings and clusterroles.",
        )
        return
    source = "by its ClusterRoles; other authorizers were not asked" if seen.from_roles else "says the API server"
    if not seen.lacks:
        yield good("Rights", f"The operator's account {seen.account} holds all of its role ({source}).")
        return
    if len(seen.lacks) == len(all_rights()):
        yield blocked(
            "Rights",
            f"The operator's account {seen.account} holds nothing of its role ({source}): it sees nothing and does "
            "nothing.",
            f"See that a ClusterRoleBinding names this account. {GRANT}",
        )
        return
    for need in ROLE:
        if lacking := [right for right in need.rights if right in seen.lacks]:
            yield _lacking(seen, need, lacking, source)


def _lacking(seen: OperatorSeen, need: Need, lacking: list[Right], source: str) -> Finding:
    resources = {right.what: [each.verb for each in lacking if each.what == right.what] for right in lacking}
    told = listed([f"{listed(verbs)} {what}" for what, verbs in resources.items()])
    return Finding(
        topic="Rights",
        grade=Grade.BLOCKED if need.vital else Grade.LIMITED,
        sentence=f"The operator's account {seen.account} may not {told} ({source}). {need.without}",
        remedy=GRANT,
    )


CHECKS: tuple[Check, ...] = (
    kubernetes, gpus, backends, device_class, driver, mps, counters, exporters, holders, engines, installed,
    operator,
)  # fmt: skip


def good(topic: str, sentence: str, remedy: str = "") -> Finding:
    return Finding(topic=topic, grade=Grade.GOOD, sentence=sentence, remedy=remedy)


def limited(topic: str, sentence: str, remedy: str = "") -> Finding:
    return Finding(topic=topic, grade=Grade.LIMITED, sentence=sentence, remedy=remedy)


def blocked(topic: str, sentence: str, remedy: str) -> Finding:
    return Finding(topic=topic, grade=Grade.BLOCKED, sentence=sentence, remedy=remedy)


def unknown(topic: str, sentence: str, remedy: str = "") -> Finding:
    return Finding(topic=topic, grade=Grade.UNKNOWN, sentence=sentence, remedy=remedy)


def _unseen(topic: str, what: str, unseen: Unseen) -> Finding:
    return unknown(
        topic,
        f"{what} could not be read: {unseen.why}.",
        "Ask again as a user who may list them.",
    )


def _names(names: list[str]) -> str:
    told = ", ".join(names[:NAMED])
    return told if len(names) <= NAMED else f"{told} and {len(names) - NAMED} more"
