"""What the doctor says of clusters as people have them. The sentences are the product: golden files hold them."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from rich.console import Console

from gpupack.catalog import gpu_by_product
from gpupack.doctor.findings import Finding, Grade, diagnose
from gpupack.doctor.operators import OperatorSeen
from gpupack.doctor.reading import Unseen
from gpupack.doctor.role import Account, Right, all_rights
from gpupack.doctor.run import tell
from gpupack.doctor.survey import INSTALLING, ClusterSeen, GpuNode, PodLook
from gpupack.facts.counter import Counter
from gpupack.kube.node_resource import Device, ForeignClaim, NodeRecord, SliceSeen
from gpupack.metrics.prometheus import GpuPage

H100, UNHEARD_OF = "NVIDIA H100 80GB HBM3", "NVIDIA Z9000"
LABELS = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "nvidia.com/gpu.memory": "81559"}


def node(name: str, offers: Mapping[str, int] | None = None, labelled: Mapping[str, str] = LABELS) -> GpuNode:
    there = {f"nvidia.com/{what}": count for what, count in (offers or {}).items()}
    record = NodeRecord(
        name=name, ready=True, cpu_cores=64.0, labels=labelled, gpus=there.get("nvidia.com/gpu", 0),
        slices=tuple(each for each in there.items() if "mig-" in each[0]),
    )  # fmt: skip
    return GpuNode(record=record, offers=there)


def slice_on(name: str, *products: str) -> SliceSeen:
    devices = (
        Device(name=f"gpu-{number}", uuid=f"GPU-{name}-{number}", product=product, memory=None, taint=None)
        for number, product in enumerate(products or (H100,))
    )
    return SliceSeen(pool=name, generation=1, node=name, devices=tuple(devices))


def pod(name: str, node: str, *, namespace: str = "gpu-operator", image: str = "", **about: object) -> PodLook:
    plain = PodLook(
        namespace=namespace, name=name, node=node, labels={}, images=(image,), mps_gate=None, extended=(),
        ours=False, ready=True, address="10.0.0.1",
    )  # fmt: skip
    return replace(plain, **about)  # type: ignore[arg-type]


EXPORTER = {"app": "nvidia-dcgm-exporter"}
AGENT = {"app.kubernetes.io/component": "agent", "app.kubernetes.io/part-of": "gpupack"}
PAGE = (GpuPage(uuid="GPU-a", dram_active=0.1, fb_used=1e9, power=90.0),)
READY = ClusterSeen(
    version="v1.37.1",
    served=frozenset({"resource.k8s.io/v1"}),
    nodes=(node("a"),),
    slices=(slice_on("a"),),
    drivers={"a": "580.95.5"},
    device_classes=("gpu.nvidia.com",),
    runtime_class=None,
    claims=(),
    pods=(
        pod("nvidia-dra-driver-gpu-kubelet-plugin-x", "a", mps_gate=True),
        pod("exporter-x", "a", labels=EXPORTER),
    ),
    pages={"gpu-operator/exporter-x": PAGE},
    may_not_install=(),
    operators=(),
)
STOCK = replace(
    READY, slices=(), drivers={}, device_classes=(), nodes=(node("a", {"gpu": 8}), node("b", {"gpu": 8})),
    pods=(
        pod("exporter-x", "a", labels=EXPORTER),
        pod("chat-7d9f", "a", namespace="ml", image="vllm/vllm-openai:v0.33.0", extended=("nvidia.com/gpu",)),
    ),
)  # fmt: skip
SHORT_OF_THINGS = replace(
    READY,
    slices=(slice_on("a"), slice_on("b"), slice_on("c", UNHEARD_OF)),
    drivers={"a": "550.54.15", "b": "580.95.5", "c": "580.95.5"},
    claims=(ForeignClaim(namespace="research", name="notebook", devices=(("b", "gpu-0"),)),),
    pods=(pod("nvidia-dra-driver-gpu-kubelet-plugin-x", "a", mps_gate=False), pod("exporter-x", "a", labels=EXPORTER)),
    pages={"gpu-operator/exporter-x": (replace(PAGE[0], dram_active=None),)},
    may_not_install=INSTALLING[1:2],
)
BLIND = replace(
    READY, slices=Unseen(why="403 Forbidden"), pods=Unseen(why="403 Forbidden"), nodes=Unseen(why="403 Forbidden"),
    claims=Unseen(why="403 Forbidden"), device_classes=Unseen(why="403 Forbidden"), drivers={}, pages={},
    operators=Unseen(why="403 Forbidden"), may_not_install=Unseen(why="403 Forbidden"),
    served=READY.served | {"gpupack.dev/v1alpha1"},
)  # fmt: skip
WITH_AGENTS = replace(
    READY,
    nodes=(node("a"), node("b")),
    slices=(slice_on("a"), slice_on("b")),
    drivers={"a": "580.95.5", "b": "580.95.5"},
    pods=(
        pod("nvidia-dra-driver-gpu-kubelet-plugin-x", "a", mps_gate=True),
        pod("agent-a", "a", namespace="gpupack-system", labels=AGENT),
        pod("agent-b", "b", namespace="gpupack-system", labels=AGENT),
    ),
    pages={
        "gpupack-system/agent-a": (replace(PAGE[0], counter=Counter.GPM_DRAM_BANDWIDTH),),
        "gpupack-system/agent-b": (replace(PAGE[0], counter=Counter.NVML_MEMORY_BUSY),),
    },
)
OPERATOR = OperatorSeen(
    name="gpupack-system/gpupack", account=Account(namespace="gpupack-system", name="gpupack"),
    wanted=1, ready=1, lacks=(),
)  # fmt: skip
INSTALLED = replace(READY, served=BLIND.served, operators=(OPERATOR,))
SHORT_OF_RIGHTS = replace(
    INSTALLED,
    operators=(
        replace(
            OPERATOR,
            ready=0,
            lacks=(
                *(Right(verb=verb, group="", resource="pods") for verb in ("list", "watch", "delete")),
                Right(verb="patch", group="gpupack.dev", resource="modelservings/status"),
                Right(verb="get", group="", resource="secrets", name="gpupack-host"),
                Right(verb="create", group="events.k8s.io", resource="events"),
            ),
        ),
    ),
)
CUT = replace(
    READY,
    nodes=(
        node("a"), node("b", {"gpu": 7, "mig-1g.10gb": 2, "mig-1g.12gb": 3, "mig-9g.1gb.me": 1}),
        node("c", {"gpu": 4}, {}),
    ),
    slices=(slice_on("a", H100, f"{H100}-MIG-1g.10gb", f"{H100}-MIG-1g.12gb", f"{UNHEARD_OF}-MIG-1g.5gb"),),
)  # fmt: skip
CLUSTERS = {
    "installed": INSTALLED,
    "short-of-rights": SHORT_OF_RIGHTS,
    "cut-in-unknown-slices": CUT,
    "with-agents": WITH_AGENTS,
    "ready": READY,
    "stock-device-plugin": STOCK,
    "short-of-things": SHORT_OF_THINGS,
    "blind": BLIND,
}


def found(seen: ClusterSeen) -> tuple[Finding, ...]:
    return diagnose(seen, gpu_by_product)


def grades(seen: ClusterSeen) -> dict[str, Grade]:
    return {each.topic: each.grade for each in found(seen)}


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_doctor_speaks_as_it_was_reviewed(name: str, golden: Callable[[str, str], None]) -> None:
    page = io.StringIO()
    tell(found(CLUSTERS[name]), Console(file=page, width=110, color_system=None))
    golden(f"doctor/{name}.txt", "".join(f"{line.rstrip()}\n" for line in page.getvalue().splitlines()))


def test_a_cluster_that_has_everything_is_good_throughout() -> None:
    assert set(grades(READY).values()) == set(grades(INSTALLED).values()) == {Grade.GOOD}


@pytest.mark.parametrize(
    ("seen", "topic"),
    [
        (replace(READY, version="v1.33.4"), "Kubernetes"),
        (replace(READY, served=frozenset(), slices=Unseen(why="not served")), "Kubernetes"),
        (replace(READY, slices=(), nodes=()), "GPUs"),
        (replace(STOCK, nodes=(node("a", {"gpu.shared": 8}),)), "GPUs"),
        (replace(READY, device_classes=()), "DRA driver"),
        (SHORT_OF_THINGS, "MPS"),
        (SHORT_OF_THINGS, "gpupack"),
        (replace(INSTALLED, served=READY.served), "gpupack"),
        (SHORT_OF_RIGHTS, "Operator"),
        (replace(INSTALLED, operators=(replace(OPERATOR, wanted=0, ready=0),)), "Operator"),
        (replace(INSTALLED, operators=(OPERATOR, replace(OPERATOR, name="gpupack-test/gpupack"))), "Operator"),
        (SHORT_OF_RIGHTS, "Rights"),
        (replace(INSTALLED, operators=(replace(OPERATOR, lacks=all_rights()),)), "Rights"),
    ],
)
def test_what_keeps_gpupack_from_working_is_blocked_and_says_what_to_do(seen: ClusterSeen, topic: str) -> None:
    blocked = [each for each in found(seen) if each.grade is Grade.BLOCKED and each.topic == topic]
    assert blocked
    assert all(each.remedy for each in blocked)


def test_what_could_not_be_read_is_never_told_as_absent() -> None:
    assert Grade.BLOCKED not in grades(BLIND).values()
    assert grades(BLIND)["GPUs"] is Grade.UNKNOWN
    silent = replace(READY, pages={"gpu-operator/exporter-x": Unseen(why="refused")})
    assert grades(silent)["Metrics"] is Grade.UNKNOWN


def test_an_older_kind_of_pod_of_the_driver_leaves_mps_open() -> None:
    nameless = replace(READY, pods=(pod("plugin", "a"), pod("exporter-x", "a", labels=EXPORTER)))
    assert grades(nameless)["MPS"] is Grade.UNKNOWN


def test_where_nobody_tells_of_the_operators_rights_that_is_said_and_why() -> None:
    silent = replace(OPERATOR, from_roles="you cannot create them", lacks=Unseen(why="you cannot list them"))
    (rights,) = [each for each in found(replace(INSTALLED, operators=(silent,))) if each.topic == "Rights"]
    assert rights.grade is Grade.UNKNOWN
    assert "you cannot create them. And ClusterRoles could not be read: you cannot list them." in rights.sentence


def test_rights_that_were_read_from_roles_are_told_as_that() -> None:
    (rights,) = [
        each
        for each in found(replace(INSTALLED, operators=(replace(OPERATOR, from_roles="you cannot create them"),)))
        if each.topic == "Rights"
    ]
    assert rights.sentence.endswith("(by its ClusterRoles; other authorizers were not asked).")


def test_an_operator_that_nobody_finds_is_not_said_to_be_missing() -> None:
    (operator,) = [each for each in found(replace(INSTALLED, operators=())) if each.topic == "Operator"]
    assert operator.grade is Grade.UNKNOWN
    assert "unless the operator runs elsewhere" in operator.sentence


def test_what_the_operators_account_lacks_is_told_right_by_right_with_what_stops_working() -> None:
    """Whatever single right is taken away, one sentence names its verb and resource."""
    for right in all_rights():
        seen = replace(INSTALLED, operators=(replace(OPERATOR, lacks=(right,)),))
        (told,) = [each for each in found(seen) if each.topic == "Rights"]
        assert f"may not {right.verb} {right.what} (says the API server). " in told.sentence
        assert told.grade in (Grade.LIMITED, Grade.BLOCKED)


def test_an_exporter_that_tells_memory_of_whole_gpus_and_not_of_their_mig_instances_lacks_nothing() -> None:
    instance = GpuPage(uuid="default/chat-0", dram_active=0.8, fb_used=None, power=None, card="GPU-a")
    seen = replace(READY, pages={"gpu-operator/exporter-x": (*PAGE, instance)})
    sentences = [each.sentence for each in found(seen)]
    assert "gpu-operator/exporter-x exports DRAM activity and memory of 1 GPU." in sentences
