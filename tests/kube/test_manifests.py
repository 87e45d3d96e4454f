"""The children: what is applied, and that it carries everything needed to plan it again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import yaml

from gpupack.facts.observation import Phase
from gpupack.facts.serving import Serving, ServingKey, Sharing
from gpupack.kube import labels, manifests
from gpupack.kube.child_resource import (
    claim_of,
    min_available_of,
    pool_of_child,
    replica_of,
    shared_child_of,
    stands,
)
from gpupack.kube.serving_resource import ServingResource
from gpupack.plan import ApplyClaim

from .objects import GPU, KEY, model_serving, read, start, valid

Golden = Callable[[str, str], None]
OTHER = ServingKey(namespace=KEY.namespace, name="embed")
UIDS = {KEY: "5c1f7a34-1111-4000-8000-000000000001", OTHER: "5c1f7a34-1111-4000-8000-000000000002"}

LOG = """(EngineCore pid=90) ERROR 11-23 10:00:00 [core.py:800] Traceback (most recent call last):
(EngineCore pid=90) ERROR 11-23 10:00:00 [core.py:800] ValueError: No available memory for the cache blocks.
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""

PYDANTIC_LOG = """pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, User-specified max_model_len (4096) is greater than the derived max_model_len (2048).
    For further information visit https://errors.pydantic.dev/2.14/v/value_error
"""
"""The end of what vLLM 0.32.0 wrote, shortened."""

RICH = {
    "image": "example.com/vllm:v0.33.0",
    "args": ["--enable-prefix-caching"],
    "cpu": 4,
    "memory": "16Gi",
    "apiKeySecretRef": {"name": "key"},
    "podTemplate": {
        "metadata": {"labels": {"team": "a"}, "annotations": {"note": "b"}},
        "tolerations": [{"key": "small", "operator": "Exists"}],
        "nodeSelector": {"zone": "a"},
        "imagePullSecrets": [{"name": "pull"}],
        "serviceAccountName": "engines",
        "priorityClassName": "high",
        "volumes": [{"name": "models", "emptyDir": {}}],
        "volumeMounts": [{"name": "models", "mountPath": "/models"}],
        "env": [{"name": "HF_HOME", "value": "/models"}, {"name": "OMP_NUM_THREADS", "value": "1"}],
        "securityContext": {"runAsUser": 1000, "runAsNonRoot": True},
    },
}


def pod(resource: ServingResource, sharing: Sharing = Sharing.MPS) -> dict[str, Any]:
    assert isinstance(resource.serving, Serving)
    return manifests.pod(start(resource, sharing), resource.serving, resource.template)


def as_seen(body: dict[str, Any], **status: Any) -> dict[str, Any]:
    """The child as the API server would hand it out."""
    metadata = {**body["metadata"], "uid": "uid-1", "creationTimestamp": "2026-11-18T11:00:00Z"}
    return {**body, "metadata": metadata, "status": status}


class Plain(yaml.SafeDumper):
    """Every value in full, also where two are the same object."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def text(body: dict[str, Any]) -> str:
    return yaml.dump(body, Dumper=Plain, sort_keys=False, width=110)


class TestGolden:
    def test_pod(self, golden: Golden) -> None:
        golden("manifests/pod.yaml", text(pod(read(model_serving()))))

    def test_pod_with_everything_that_a_user_can_add(self, golden: Golden) -> None:
        model = {"name": "meta-llama/Llama-3.2-1B-Instruct", "revision": "v2", "tokenSecretRef": {"name": "token"}}
        golden("manifests/pod-rich.yaml", text(pod(read(model_serving(model=model, engine=RICH)))))

    @pytest.mark.parametrize("sharing", [Sharing.MPS, Sharing.EXCLUSIVE])
    def test_claim(self, sharing: Sharing, golden: Golden) -> None:
        apply = ApplyClaim(namespace=KEY.namespace, gpu_uuid=GPU, sharing=sharing, owners=(OTHER, KEY))
        golden(f"manifests/claim-{sharing.value.lower()}.yaml", text(manifests.claim(apply, "default", UIDS)))

    def test_service(self, golden: Golden) -> None:
        golden("manifests/service.yaml", text(manifests.service(valid(model_serving()))))

    def test_budget(self, golden: Golden) -> None:
        golden("manifests/budget.yaml", text(manifests.budget(valid(model_serving()), 2)))


class TestReadBack:
    def test_a_pod_says_everything_that_its_placement_was(self) -> None:
        resource = read(model_serving())
        begun = start(resource)
        seen = replica_of(as_seen(pod(resource)))
        assert seen is not None
        placement = begun.placement
        assert (seen.name, seen.serving, seen.gpu_uuid, seen.slot) == (placement.name, KEY, GPU, 1)
        assert (seen.sharing, seen.shape) == (placement.sharing, placement.shape)
        assert (seen.template_hash, seen.content_hash) == (placement.template_hash, placement.content_hash)
        assert (seen.predicted, seen.utilization_hundredths) == (begun.predicted, begun.utilization_hundredths)
        assert seen.in_service

    def test_a_pod_without_a_prediction_has_none(self) -> None:
        resource = read(model_serving())
        assert isinstance(resource.serving, Serving)
        begun = replace(start(resource), predicted=None)
        seen = replica_of(as_seen(manifests.pod(begun, resource.serving, resource.template)))
        assert seen is not None
        assert seen.predicted is None

    def test_taken_out_of_service_it_is_seen_so(self) -> None:
        body = as_seen(pod(read(model_serving())))
        patch = manifests.out_of_service("uid-1")
        body["metadata"]["labels"].update(patch["metadata"]["labels"])
        seen = replica_of(body)
        assert seen is not None
        assert not seen.in_service

    @pytest.mark.parametrize("sharing", [Sharing.MPS, Sharing.EXCLUSIVE])
    def test_a_claim_says_gpu_sharing_and_owners(self, sharing: Sharing) -> None:
        apply = ApplyClaim(namespace=KEY.namespace, gpu_uuid=GPU, sharing=sharing, owners=(KEY, OTHER))
        seen = claim_of(as_seen(manifests.claim(apply, "default", UIDS)))
        assert seen is not None
        assert (seen.namespace, seen.gpu_uuid, seen.sharing, seen.deleting) == (KEY.namespace, GPU, sharing, False)
        assert seen.owners == tuple(UIDS.values())

    def test_a_claim_for_a_slice_is_of_the_mig_class_and_has_no_sharing_inside(self) -> None:
        apply = ApplyClaim(namespace=KEY.namespace, gpu_uuid="MIG-a", sharing=Sharing.MIG, owners=(KEY,))
        devices = manifests.claim(apply, "default", UIDS)["spec"]["devices"]
        exactly = devices["requests"][0]["exactly"]
        assert exactly["deviceClassName"] == "mig.nvidia.com"
        assert "== 'MIG-a'" in exactly["selectors"][0]["cel"]["expression"]
        assert "config" not in devices

    def test_service_and_budget_say_whose_they_are(self) -> None:
        serving = valid(model_serving())
        budget = manifests.budget(serving, 2)
        for child in (manifests.service(serving), budget):
            assert child["metadata"]["labels"][labels.SERVING] == KEY.name
            assert stands(shared_child_of(as_seen(child)), child)
        assert min_available_of(budget) == 2
        assert pool_of_child(budget) == "default"

    def test_a_service_whose_slices_gpupack_writes_selects_no_pod_of_any_state(self) -> None:
        """Without a selector Kubernetes would leave the slices of the pods that it selected before."""
        selector = manifests.service(valid(model_serving()), selects=False)["spec"]["selector"]
        in_service = pod(read(model_serving()))["metadata"]["labels"]
        drained = {**in_service, **manifests.out_of_service("uid-1")["metadata"]["labels"]}
        for marks in (in_service, drained):
            assert selector.items() - marks.items()

    def test_what_is_not_ours_is_nobody(self) -> None:
        foreign: dict[str, Any] = {"metadata": {"name": "a", "namespace": "b"}, "spec": {"containers": []}}
        readers: tuple[Callable[[dict[str, Any]], object], ...] = (
            replica_of,
            claim_of,
            shared_child_of,
            pool_of_child,
        )
        assert [reader(foreign) for reader in readers] == [None] * 4


class TestStands:
    """A Service that somebody edited is no longer as it was applied; what they only added is theirs."""

    def service(self) -> dict[str, Any]:
        return as_seen(manifests.service(valid(model_serving())))

    def stands(self, there: dict[str, Any]) -> bool:
        return stands(shared_child_of(there), manifests.service(valid(model_serving())))

    def test_what_others_add_is_theirs(self) -> None:
        there = self.service()
        there["metadata"]["labels"] = {**there["metadata"]["labels"], "team": "a"}
        there["metadata"]["annotations"] = {"note": "b"}
        there["spec"] |= {"clusterIP": "10.0.0.1", "sessionAffinity": "None"}
        there["spec"]["ports"] = [{"name": "metrics", "port": 9000}, {**there["spec"]["ports"][0], "nodePort": 30001}]
        assert self.stands(there)

    @pytest.mark.parametrize(
        "spec",
        [
            {"selector": {labels.SERVING: "other"}},
            {"selector": {labels.SERVING: KEY.name, labels.IN_SERVICE: labels.TRUE, "track": "canary"}},
            {"ports": [{"name": "http", "port": 8000, "targetPort": 9000, "protocol": "TCP"}]},
            {"ports": []},
        ],
    )
    def test_what_was_changed_is_seen(self, spec: dict[str, Any]) -> None:
        there = self.service()
        there["spec"] = {**there["spec"], **spec}
        assert not self.stands(there)

    def test_a_lost_owner_or_label_is_seen(self) -> None:
        there = self.service()
        there["metadata"]["ownerReferences"] = []
        assert not self.stands(there)
        there = self.service()
        there["metadata"]["labels"] = {**there["metadata"]["labels"], labels.POOL: "other"}
        assert not self.stands(there)

    def test_one_that_is_not_there_does_not_stand(self) -> None:
        assert not stands(None, manifests.service(valid(model_serving())))


class TestPhase:
    def phase(self, *, node: bool = True, deleting: bool = False, **status: Any) -> Phase:
        body = as_seen(pod(read(model_serving())), **status)
        if node:
            body["spec"]["nodeName"] = "node-a"
        if deleting:
            body["metadata"] |= {"deletionTimestamp": "2026-11-18T11:02:20Z", "deletionGracePeriodSeconds": 80}
        seen = replica_of(body)
        assert seen is not None
        return seen.phase

    def test_pending_until_it_has_a_node_then_starting_then_ready(self) -> None:
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-18T11:01:00Z"}
        assert self.phase(node=False, phase="Pending") is Phase.PENDING
        assert self.phase(phase="Running") is Phase.STARTING
        assert self.phase(phase="Running", conditions=[{**ready, "status": "False"}]) is Phase.STARTING
        assert self.phase(phase="Running", conditions=[ready]) is Phase.READY
        assert self.phase(phase="Running", conditions=[ready], deleting=True) is Phase.STOPPING
        assert self.phase(phase="Failed") is Phase.FAILED

    def test_the_end_was_asked_for_before_its_grace_began(self) -> None:
        body = as_seen(pod(read(model_serving())))
        body["metadata"] |= {"deletionTimestamp": "2026-11-18T11:02:20Z", "deletionGracePeriodSeconds": 80}
        seen = replica_of(body)
        assert seen is not None
        assert seen.deletion_at == seen.created_at + 60

    @pytest.mark.parametrize(
        ("status", "message"),
        [
            ({"conditions": [{"type": "PodScheduled", "status": "False", "message": "no node"}]}, "no node"),
            ({"containerStatuses": [{"restartCount": 2, "state": {"waiting": {"reason": "ImagePullBackOff"}}}]},
             "ImagePullBackOff"),
            ({"containerStatuses": [{"restartCount": 2, "state": {"running": {}},
                                     "lastState": {"terminated": {"reason": "Error", "message": "no KV"}}}]},
             "Error: “no KV”"),
            ({"containerStatuses": [{"restartCount": 2,
                                     "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
                                     "lastState": {"terminated": {"reason": "Error", "message": LOG}}}]},
             "Error: “ValueError: No available memory for the cache blocks.”"),
            ({"containerStatuses": [{"restartCount": 2, "state": {"running": {}},
                                     "lastState": {"terminated": {"reason": "Error", "message": PYDANTIC_LOG}}}]},
             "Error: “ValueError: User-specified max_model_len (4096) is greater than the derived max_model_len "
             "(2048).”"),
            ({"phase": "Failed", "message": "node was low on memory"}, "node was low on memory"),
        ],
    )  # fmt: skip
    def test_why_it_is_not_ready_is_said_in_kubernetes_words(self, status: dict[str, Any], message: str) -> None:
        seen = replica_of(as_seen(pod(read(model_serving())), **status))
        assert seen is not None
        assert seen.message == message


class TestPod:
    def test_the_users_labels_never_win_over_gpupacks(self) -> None:
        mine = {"podTemplate": {"metadata": {"labels": {labels.POOL: "mine", "team": "a"}}}}
        marks = pod(read(model_serving(engine=mine)))["metadata"]["labels"]
        assert (marks[labels.POOL], marks["team"]) == ("default", "a")

    def test_an_id_of_hugging_face_is_served_as_written_and_a_short_name_by_its_id(self) -> None:
        def served(name: str) -> str:
            container = pod(read(model_serving(model={"name": name})))["spec"]["containers"][0]
            return str(container["args"][0])

        assert served("meta-llama/Llama-3.2-1B-Instruct") == "meta-llama/Llama-3.2-1B-Instruct"
        assert served("llama-3.2-1b") == "meta-llama/Llama-3.2-1B"

    def test_the_grace_holds_pre_stop_drain_and_fifteen_seconds(self) -> None:
        spec = pod(read(model_serving()))["spec"]
        container = spec["containers"][0]
        sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        drain = next(int(arg.split("=")[1]) for arg in container["args"] if arg.startswith("--shutdown-timeout"))
        assert spec["terminationGracePeriodSeconds"] == sleep + drain + 15

    def test_the_annotation_repeats_the_arguments(self) -> None:
        body = pod(read(model_serving()))
        noted = json.loads(body["metadata"]["annotations"][labels.ENGINE_ARGUMENTS])
        assert noted == body["spec"]["containers"][0]["args"]

    def test_a_placement_of_an_older_template_is_not_started_from_a_newer_one(self) -> None:
        older, newer = read(model_serving()), read(model_serving(engine={"cpu": 4}))
        assert isinstance(newer.serving, Serving)
        with pytest.raises(AssertionError, match="another template"):
            manifests.pod(start(older), newer.serving, newer.template)


def test_another_sharing_of_a_gpu_is_another_claim() -> None:
    assert manifests.claim_name(GPU, Sharing.MPS) != manifests.claim_name(GPU, Sharing.EXCLUSIVE)
