"""Who is on a GPU beside a serving: another model, a stranger, or nobody because the model is too large."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gpupack.demo.stage import Stage

from .history import GPU
from .journey import CHAT, CLAIMS, LARGER, Journey, manual, serving

HUGE = {
    "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
    "intermediate_size": 28672, "vocab_size": 128256, "max_position_embeddings": 8192,
}  # fmt: skip
"""70 B parameters: 130 GiB of weights for a GPU of 79."""
STRANGERS = "research"
MORE_THAN_A_GPU = 200.0


def test_two_models_share_one_gpu_by_mps_through_one_claim(journey: Journey) -> None:
    journey.edit_pool(maxGpus=1)
    journey.apply(manual("chat", 2), manual("coder", 1, model=LARGER))
    journey.until_ready("chat", 2)
    journey.until_ready("coder")
    (gpu,) = [each for each in journey.stage.state()["gpus"] if each["engines"]]
    assert gpu["sharing"] == "MPS"
    assert len(gpu["engines"]) == 3
    (claim,) = journey.stage.get(CLAIMS)["items"]
    assert {each["name"] for each in claim["metadata"]["ownerReferences"]} == {"chat", "coder"}
    assert len(claim["status"]["reservedFor"]) == 3

    chat = journey.names("chat")
    journey.stage.cluster.kubectl("delete", "msv", "coder")
    journey.until("coder is gone", lambda: not journey.stage.pods("coder"))
    assert journey.names("chat") == chat == {pod["metadata"]["name"] for pod in journey.ready("chat")}
    assert [each["metadata"]["uid"] for each in journey.stage.get(CLAIMS)["items"]] == [claim["metadata"]["uid"]]


def test_a_replica_that_would_break_a_promise_is_not_started(journey: Journey) -> None:
    journey.edit_pool(maxGpus=1)
    journey.apply(serving("quick", model=LARGER, slo={"itlMilliseconds": 12, "ttftMilliseconds": 500}))
    journey.until_ready("quick")
    journey.load("quick", rate=80)
    message = journey.until_said("quick", "LatencySlo")
    assert "default/quick" in message
    assert "its limit is" in message
    names = journey.names("quick")
    journey.holds_for(5, "nothing more is started", lambda: journey.names("quick") == names)
    assert journey.condition("quick", "Packed")[:2] == ("True", "LatencySlo")


def test_a_model_that_fits_nowhere_says_by_how_much_and_disturbs_nobody(journey: Journey) -> None:
    journey.apply(manual("chat", 2))
    journey.until_ready("chat", 2)
    chat = journey.names("chat")
    journey.apply(serving("giant", model={"name": "example/giant-70b", "config": HUGE}))
    message = journey.until_said("giant", "Memory")
    assert "GiB too much. Not even one fits: take a smaller model, a shorter spec.model.maxModelLen" in message
    assert journey.condition("giant", "Packed") == ("False", "Memory", message)
    assert journey.condition("giant", "Ready")[0] == "False"
    journey.holds_for(
        5, "nobody is disturbed", lambda: (journey.names("chat"), journey.names("giant")) == (chat, set())
    )
    assert len(journey.ready("chat")) == 2


@pytest.fixture
def stranger(stage: Stage) -> Iterator[str]:
    """A claim of somebody else's on the second GPU; its GPU."""
    cluster, uuid = stage.cluster, stage.state()["gpus"][1]["uuid"]
    cluster.kubectl("create", "namespace", STRANGERS)
    cluster.kubectl("wait", "-n", STRANGERS, "--for=create", "serviceaccount/default", "--timeout=30s")
    selector = {"cel": {"expression": f"device.attributes['gpu.nvidia.com'].?uuid.orValue('') == '{uuid}'"}}
    request = {"name": "gpu", "exactly": {"deviceClassName": "gpu.nvidia.com", "selectors": [selector]}}
    toleration = {"key": "nvidia.com/gpu", "operator": "Exists"}
    cluster.apply(
        {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceClaim",
            "metadata": {"name": "training", "namespace": STRANGERS},
            "spec": {"devices": {"requests": [request]}},
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "training", "namespace": STRANGERS},
            "spec": {
                "tolerations": [toleration],
                "terminationGracePeriodSeconds": 0,
                "resourceClaims": [{"name": "gpu", "resourceClaimName": "training"}],
                "containers": [{"name": "main", "image": "busybox", "resources": {"claims": [{"name": "gpu"}]}}],
            },
        },
    )
    cluster.kubectl("wait", "-n", STRANGERS, "--for=condition=PodScheduled", "pod/training", "--timeout=30s")
    yield uuid
    cluster.kubectl("delete", "namespace", STRANGERS, "--wait=false")


def test_a_gpu_that_somebody_else_has_claimed_is_left_alone_and_its_holder_is_named(
    journey: Journey, stranger: str
) -> None:
    journey.apply(CHAT)
    journey.until_ready("chat")
    journey.load("chat", rate=MORE_THAN_A_GPU)
    message = journey.until_said("chat", "HeldByOthers")
    assert message.startswith(f"{stranger[:12]} is held by others: ResourceClaim research/training")
    journey.until_ready("chat", 3)
    assert stranger not in journey.gpus_of("chat")
    assert journey.condition("chat", "Packed")[:2] == ("False", "HeldByOthers")

    journey.stage.cluster.kubectl("delete", "-n", STRANGERS, "pod/training", "resourceclaim/training")
    journey.until("the GPU is used once it is free", lambda: stranger in journey.gpus_of("chat"))
    assert {each.labels[GPU] for each in journey.history.pods(journey.mark)} == {stranger, journey.gpus_of("chat")[0]}
