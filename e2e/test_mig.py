"""On GPUs that are cut, MIG slices are places like GPUs: one engine each, whatever whole GPUs are used for.

The slices are partitionable devices of DRA, where the real scheduler counts what a GPU and its slices share, or
extended resources of a device plugin.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from gpupack.demo.stage import condition

from .journey import CLAIMS, MIXED_NODE, PODS, SINGLE_NODE, Journey, manual, serving

MIG_NODE = "virtual-mig-1"
FIXED = {"mode": "Fixed", "maxNumSeqs": 8}


def cards(journey: Journey, node: str = MIG_NODE) -> list[dict[str, Any]]:
    return [each for each in journey.stage.state()["gpus"] if each["node"] == node]


def slices(journey: Journey) -> list[dict[str, Any]]:
    return [each for each in cards(journey) if each["uuid"].startswith("MIG-")]


def somebody(uuid: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A claim for a whole GPU, and a pod that uses it."""
    chosen = f"device.attributes['gpu.nvidia.com'].?uuid.orValue('') == '{uuid}'"
    exactly = {"deviceClassName": "gpu.nvidia.com", "selectors": [{"cel": {"expression": chosen}}]}
    claim = {
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": {"name": "somebody", "namespace": "default"},
        "spec": {"devices": {"requests": [{"name": "gpu", "exactly": exactly}]}},
    }  # fmt: skip
    pod = {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "somebody", "namespace": "default"},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "resourceClaims": [{"name": "gpu", "resourceClaimName": "somebody"}],
            "containers": [{"name": "sleep", "image": "busybox", "resources": {"claims": [{"name": "gpu"}]}}],
        },
    }  # fmt: skip
    return claim, pod


def test_engines_take_slices_and_the_scheduler_keeps_the_whole_gpu_from_others(journey: Journey) -> None:
    journey.edit_pool(nodeSelector={"kubernetes.io/hostname": MIG_NODE})
    journey.apply(manual("chat", 3, sharing="MIG", batching=FIXED))
    journey.until_ready("chat", 3)
    assert set(journey.gpus_of("chat")) <= {each["uuid"] for each in slices(journey)}
    assert len(set(journey.gpus_of("chat"))) == 3
    claims = journey.stage.get(CLAIMS)["items"]
    requests = [each["spec"]["devices"]["requests"][0]["exactly"]["deviceClassName"] for each in claims]
    assert requests == ["mig.nvidia.com"] * 3
    assert not any("config" in each["spec"]["devices"] for each in claims)

    whole = cards(journey)[0]
    assert whole["device"] == "gpu-0"
    journey.apply(*somebody(whole["uuid"]))
    journey.until("the scheduler keeps somebody waiting", lambda: _waits(journey))
    assert journey.restarts() == 0

    journey.apply(manual("notes", 1, sharing="MPS", batching=FIXED))
    message = journey.until_said("notes", "HeldByOthers")
    assert "default/chat" in message
    assert "on its slice" in message
    journey.stage.delete(PODS, fieldSelector="metadata.name=somebody", gracePeriodSeconds="0")
    journey.stage.delete(CLAIMS, fieldSelector="metadata.name=somebody")


@pytest.mark.parametrize("node", [MIG_NODE, SINGLE_NODE])
def test_an_xid_of_a_gpu_moves_the_engines_on_its_slices_to_another_gpus(journey: Journey, node: str) -> None:
    """A slice of a device plugin, here with its strategy single, tells no GPU; dcgm-exporter does, by the pod on it."""
    journey.edit_pool(nodeSelector={"kubernetes.io/hostname": node})
    journey.apply(manual("chat", 1, sharing="MIG", batching=FIXED))
    journey.until("one engine is ready", lambda: journey.status("chat").get("readyReplicas") == 1)
    assert _ready_on_slices(journey, node) == 1
    [card] = _cards_in_use(journey, node)
    journey.stage.steer("/xid", gpu=next(e["uuid"] for e in cards(journey, node) if e["device"] == card), code=79)
    journey.until("its engine is on another GPU", lambda: _cards_in_use(journey, node) - {card})
    journey.until("and alone", lambda: len(journey.engines()) == journey.status("chat").get("readyReplicas") == 1)
    assert _cards_in_use(journey, node) != {card}


def test_slices_of_a_plugin_are_taken_one_engine_each_as_load_asks_until_none_is_left(journey: Journey) -> None:
    """With its strategy mixed, where nobody but the plugin chooses the slice of a pod."""
    journey.edit_pool(nodeSelector={"kubernetes.io/hostname": MIXED_NODE})
    journey.apply(serving("chat", sharing="MIG", batching=FIXED))
    journey.until("one engine is ready", lambda: _ready_on_slices(journey, MIXED_NODE) == 1)
    journey.load("chat", rate=8.0)
    journey.until("the load gets a second slice", lambda: _ready_on_slices(journey, MIXED_NODE) > 1)
    journey.load("chat", rate=40.0)
    journey.until("every slice has an engine", lambda: _ready_on_slices(journey, MIXED_NODE) == 4)
    message = journey.until_said("chat", "HeldByOthers")
    assert "default/chat runs alone" in message
    journey.until("each is measured", lambda: condition(journey.stage.pool(), "GpusMeasured").get("status") == "True")
    hosts = journey.hosts()
    limits = [each["spec"]["containers"][0]["resources"]["limits"] for each in hosts]
    asked = Counter(name for each in limits for name in each if name.startswith("nvidia.com/"))
    assert asked == {"nvidia.com/mig-3g.40gb": 2, "nvidia.com/mig-2g.20gb": 2}
    assert journey.restarts() == 0


def _cards_in_use(journey: Journey, node: str) -> set[str]:
    """The devices from which the slices with engines are cut, as their names tell."""
    return {each["device"].partition("-mig-")[0] for each in cards(journey, node) if each["engines"]}


def _ready_on_slices(journey: Journey, node: str) -> int:
    """Engines of chat that are ready, none beside another and none on a whole GPU."""
    engines = {each["uuid"]: each["engines"] for each in cards(journey, node)}
    assert max(map(len, engines.values())) <= 1, engines
    assert all(uuid.startswith("MIG-") for uuid, there in engines.items() if there)
    return int(journey.status("chat").get("readyReplicas", 0))


def _waits(journey: Journey) -> bool:
    pod = journey.stage.get(f"{PODS}/somebody")
    return any(
        each["type"] == "PodScheduled" and each["status"] == "False" for each in pod["status"].get("conditions", ())
    )
