"""A first day with mistakes, in one go: each is told where a new user looks, and what is mended goes on by itself."""

from __future__ import annotations

from .journey import POOLS, Journey, manual

MISSED = (
    'CreateContainerConfigError: secret "hugging-face" not found. Create it in the namespace of the ModelServing, with'
    " the key that spec.model.tokenSecretRef or spec.engine.apiKeySecretRef names"
)
TOKEN = {"name": "llama-3.2-1b", "tokenSecretRef": {"name": "hugging-face"}}


def test_no_pool_then_a_wrong_secret_then_it_serves(journey: Journey) -> None:
    kubectl = journey.stage.cluster.kubectl
    journey.stage.delete(f"{POOLS}/default")
    journey.apply(manual("chat", 1, model=TOKEN))
    journey.until("chat is told that there is no pool", lambda: journey.condition("chat", "Stalled")[0] == "True")
    assert journey.condition("chat", "Stalled")[1:] == (
        "PoolNotFound", "There is no GpuPool 'default'. Create it, or name another in spec.poolName."
    )  # fmt: skip

    journey.begin()
    journey.until("the secret is missed", lambda: MISSED in ready(journey))
    assert journey.condition("chat", "Ready")[:2] == ("False", "Starting")
    assert journey.condition("chat", "Stalled") == ("", "", "")

    kubectl("create", "secret", "generic", "hugging-face", "--from-literal=token=mine")
    kubectl("wait", "--for=condition=Ready", "msv/chat", "--timeout=40s")
    kubectl("delete", "secret", "hugging-face")


def ready(journey: Journey) -> str:
    return journey.condition("chat", "Ready")[2]
