"""A ModelServing becomes a Serving, or says which field cannot be carried out; its status says what was decided."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import yaml

from gpupack.facts.experiment import Compared, Experiment, Judgement
from gpupack.facts.llm import Dtype
from gpupack.facts.observation import Refused
from gpupack.facts.serving import (
    Lengths,
    Mode,
    Profile,
    Scaling,
    ScalingMode,
    Serving,
    SharingWish,
    Slo,
    Statistic,
)
from gpupack.kube.pool_resource import policy_of
from gpupack.kube.profile_resource import profile_of
from gpupack.kube.serving_resource import (
    ASSUMED_LENGTHS,
    cv_of,
    number_text,
    serving_of,
    serving_status_to_dict,
    version_of_image,
)
from gpupack.plan import Condition, ConditionType, ReplicaStatus, ServingStatus, Truth
from gpupack.units import Ratio, Seconds

from .objects import AT, H100, KEY, LLAMA, ROOT, gpu_pool, model_serving, read, sample, valid


def defaults(path: str) -> dict[str, Any]:
    """The `default`s that the API server writes into an object whose spec says only what must be said."""
    schema = yaml.safe_load((ROOT / "crds" / path).read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return {
        name: field["default"]
        for name, field in schema["properties"]["spec"]["properties"].items()
        if "default" in field
    }


def test_what_the_api_server_would_write_and_what_is_read_without_it_are_the_same() -> None:
    bare = model_serving()
    written = model_serving(**defaults("modelservings.yaml"))
    written["spec"]["model"]["dtype"] = "bfloat16"
    assert read(written).serving == read(bare).serving
    assert read(written).template == read(bare).template


def test_the_pools_defaults_are_those_of_the_policy() -> None:
    assert policy_of(gpu_pool(**defaults("gpupools.yaml"))["spec"]) == policy_of({})


def test_a_serving_says_everything_that_a_decision_needs() -> None:
    serving = valid(sample("modelserving-chat.yaml"))
    assert serving.llm is LLAMA
    assert serving.lengths == Lengths(
        input_mean=512.0, output_mean=256.0, input_cv=cv_of(512, 1400), output_cv=cv_of(256, 700)
    )
    assert serving.declared_rate == 20.0
    assert serving.slo == Slo(itl=Seconds(0.03), ttft=Seconds(0.5), statistic=Statistic.P95)
    assert serving.scaling == Scaling(mode=ScalingMode.AUTO, replicas=1, min_replicas=1, max_replicas=12)
    assert (serving.cpu_cores, serving.dtype, serving.engine_version) == (2, Dtype.BFLOAT16, "0.33.0")
    assert (serving.pool, serving.mode, serving.sharing) == ("default", Mode.ACTIVE, SharingWish.AUTO)


def test_what_is_not_declared_is_assumed_or_absent_and_never_zero() -> None:
    serving = valid(model_serving())
    assert serving.lengths == ASSUMED_LENGTHS
    assert serving.lengths.assumed
    assert (serving.slo, serving.declared_rate, serving.max_model_len, serving.scaling.max_replicas) == (None,) * 4


@pytest.mark.parametrize(("written", "rate"), [(12, 12.0), ("2.5", 2.5), ("500m", 0.5), ("1k", 1000.0)])
def test_a_rate_is_a_quantity(written: str | int, rate: float) -> None:
    assert valid(model_serving(workload={"requestsPerSecond": written})).declared_rate == pytest.approx(rate)


def test_a_fixed_batch_is_the_users_and_an_advised_one_is_nobodys() -> None:
    assert valid(model_serving(batching={"mode": "Fixed", "maxNumSeqs": 64})).batching.fixed == 64
    advised = valid(model_serving(batching={"mode": "Advised", "minEfficiencyPercent": 20})).batching
    assert (advised.fixed, advised.min_efficiency) == (None, Ratio(0.2))


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"model": {"name": "nobody/knows"}}, "spec.model.name"),
        ({"model": {"name": "llama-3.2-1b", "maxModelLen": 200_000}}, "spec.model.maxModelLen"),
        ({"engine": {"image": "vllm/vllm-openai:v0.9.1"}}, "spec.engine.image"),
        ({"workload": {"requestsPerSecond": "1e3"}}, "spec.workload.requestsPerSecond"),
    ],
)
def test_what_the_schema_cannot_check_is_refused_by_field_and_with_a_way_out(spec: dict[str, Any], field: str) -> None:
    refused = read(model_serving(**spec)).serving
    assert isinstance(refused, Refused)
    assert (refused.key, refused.generation, refused.field) == (KEY, 3, field)
    assert refused.fix


class TestProfile:
    def named(self, model: str) -> Serving | Refused:
        profile = Profile(
            name="measured",
            model=model,
            gpu_kind=H100.name,
            engine_version="0.33.0",
            lengths=ASSUMED_LENGTHS,
            points=(),
        )
        resource = read(model_serving(profileRef={"name": "measured"}))
        return serving_of(resource, profile_of=lambda _, name: profile if name == "measured" else None)

    def test_a_named_profile_comes_with_the_serving(self) -> None:
        serving = self.named("Llama-3.2-1b")
        assert isinstance(serving, Serving)
        assert serving.profile is not None

    def test_a_profile_of_another_model_is_refused(self) -> None:
        refused = self.named("qwen3-8b")
        assert isinstance(refused, Refused)
        assert refused.field == "spec.profileRef.name"

    def test_a_profile_that_is_not_there_is_refused(self) -> None:
        resource = read(model_serving(profileRef={"name": "other"}))
        refused = serving_of(resource, profile_of=lambda _namespace, _name: None)
        assert isinstance(refused, Refused)
        assert refused.field == "spec.profileRef.name"

    def test_its_points_are_in_base_units_and_by_batch(self) -> None:
        obj = sample("modelprofile.yaml")
        obj["spec"]["points"].reverse()
        profile = profile_of(obj, gpu_by_name=lambda _: replace(H100, name="H100-64GB"))
        assert [point.max_num_seqs for point in profile.points] == [1, 8, 32, 64, 96, 128, 256, 512]
        assert profile.points[0].itl_mean == pytest.approx(0.00362)
        assert profile.points[0].kv_peak_bytes is None


class TestTemplateHash:
    def of(self, **spec: Any) -> str:
        return read(model_serving(**spec)).template.hash

    @pytest.mark.parametrize(
        "spec",
        [
            {"engine": {"image": "vllm/vllm-openai:v0.33.1"}},
            {"engine": {"args": ["--enable-lora"]}},
            {"engine": {"cpu": 4}},
            {"engine": {"memory": "16Gi"}},
            {"engine": {"podTemplate": {"nodeSelector": {"zone": "a"}}}},
            {"engine": {"apiKeySecretRef": {"name": "key"}}},
            {"model": {"name": "llama-3.2-1b", "revision": "v2"}},
            {"model": {"name": "llama-3.2-1b", "dtype": "float16"}},
            {"model": {"name": "llama-3.2-1b", "tokenSecretRef": {"name": "token"}}},
        ],
    )
    def test_every_part_of_the_pod_that_is_not_the_shape_is_in_it(self, spec: dict[str, Any]) -> None:
        assert self.of(**spec) != self.of()

    @pytest.mark.parametrize(
        "spec",
        [
            {"slo": {"itlMilliseconds": 20}},
            {"batching": {"mode": "Fixed", "maxNumSeqs": 8}},
            {"model": {"name": "llama-3.2-1b", "maxModelLen": 2048}},
            {"scaling": {"mode": "Manual"}, "replicas": 4},
            {"engine": {"args": [], "podTemplate": {}}},
        ],
    )
    def test_what_does_not_change_the_pod_is_not_in_it(self, spec: dict[str, Any]) -> None:
        assert self.of(**spec) == self.of()


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("vllm/vllm-openai:v0.33.0", "0.33.0"),
        ("registry:5000/vllm:0.25", "0.25"),
        ("vllm/vllm-openai:v0.33.0-cu130", "0.33.0"),
        ("vllm/vllm-openai:v0.33.0@sha256:aa", "0.33.0"),
        ("vllm/vllm-openai:latest", None),
        ("registry:5000/vllm", None),
    ],
)
def test_the_version_is_read_off_the_tag(image: str, version: str | None) -> None:
    assert version_of_image(image) == version


class TestSpreadOfLengths:
    @pytest.mark.parametrize("cv", [0.1, 0.5, 0.9, 2.0])
    def test_the_95th_percentile_of_a_lognormal_gives_its_spread_back(self, cv: float) -> None:
        deviation = math.sqrt(math.log1p(cv**2))
        p95 = 500 * math.exp(1.6448536 * deviation - deviation**2 / 2)
        assert cv_of(500, p95) == pytest.approx(cv, rel=1e-4)

    def test_all_alike_is_no_spread(self) -> None:
        assert cv_of(500, 500) == 0.0

    def test_more_than_a_lognormal_can_spread_is_the_most_that_it_can(self) -> None:
        assert cv_of(100, 1000) == cv_of(100, 387) == pytest.approx(3.74, abs=0.01)

    def test_without_a_percentile_it_is_that_of_the_command_line(self) -> None:
        assert cv_of(500, None) == 0.9


def status(**changes: Any) -> ServingStatus:
    said = ServingStatus(
        serving=KEY, uid="u", observed_generation=3, replicas=2, ready_replicas=1,
        selector="gpupack.dev/serving=chat", max_num_seqs=96, kv_cache_memory_bytes=5368709120, max_model_len=4096,
        engine_args=("--max-num-seqs=96",), replicas_per_gpu=4, freed_bytes=60129542144, assumed=("slo",),
        placements=(ReplicaStatus(name="chat-a", gpu_uuid="GPU-1", node="n", phase="Ready"),),
        decision_reason="LatencySlo", decision_message="too slow", decision_observed=0.0312345, decision_limit=0.03,
        decision_unit="seconds", decision_at=AT,
        conditions=(Condition(type=ConditionType.SLO_MET, truth=Truth.TRUE, reason="Kept", message="21 of 30 ms"),),
    )  # fmt: skip
    return replace(said, **changes)


class TestStatus:
    def test_it_says_shape_places_and_the_last_decision(self) -> None:
        written = serving_status_to_dict(status(), {}, now=AT)
        assert written["shape"] == {
            "maxNumSeqs": 96, "kvCacheMemoryBytes": 5368709120, "maxModelLen": 4096,
            "engineArguments": ["--max-num-seqs=96"],
        }  # fmt: skip
        assert written["decision"] == {
            "reason": "LatencySlo", "message": "too slow", "observed": "0.03123", "limit": "0.03000",
            "unit": "seconds", "at": "2026-11-18T11:06:40Z",
        }  # fmt: skip
        assert written["placements"] == [{"name": "chat-a", "gpu": "GPU-1", "node": "n", "phase": "Ready"}]

    def test_what_is_not_known_is_left_out(self) -> None:
        written = serving_status_to_dict(
            status(max_num_seqs=None, kv_cache_memory_bytes=None, max_model_len=None, engine_args=(), freed_bytes=None,
                   replicas_per_gpu=None, assumed=(), decision_at=None), {}, now=AT,
        )  # fmt: skip
        assert not {"shape", "freedBytes", "replicasPerGpu", "assumed", "decision"} & set(written)

    def test_the_last_decisions_are_kept_and_a_step_gets_its_verdict_when_there_is_one(self) -> None:
        step = Experiment(
            serving=KEY, gpu_uuid="GPU-1", step="Added", began_at=AT, last_at=AT, asked=False, before=(),
            company="2 x", gain=Ratio(0.3), saturation=Ratio(0.7), itl=Seconds(0.012), inputs="",
        )  # fmt: skip
        added = status(
            decision_reason="Added", decision_message="Replica 2 goes to GPU-1.", decision_seen="60 requests/s.",
            decision_predicted="+30 %.", experiment=step, experiment_message="It is judged after warm-up.",
        )  # fmt: skip
        first = serving_status_to_dict(added, {}, now=AT)
        assert first["decisions"] == [
            {"at": "2026-11-18T11:06:40Z", "reason": "Added", "seen": "60 requests/s.", "predicted": "+30 %.",
             "chosen": "Replica 2 goes to GPU-1."},
        ]  # fmt: skip
        assert "verdict" not in first["experiment"]
        compared = Compared(what="itl", subject=str(KEY), predicted=0.01234567, measured=0.021, unit="seconds")
        missed = replace(
            step, judgement=Judgement.MISSED, judged_at=Seconds(AT + 90), compared=(compared,), undone=True
        )
        later = replace(
            added, decision_reason="RolledBack", decision_at=Seconds(AT + 90), experiment=missed,
            experiment_message="It did harm.",
        )  # fmt: skip
        second = serving_status_to_dict(later, first, now=Seconds(AT + 90))
        assert [(each["reason"], each.get("measured")) for each in second["decisions"]] == [
            ("Added", "It did harm."), ("RolledBack", None),
        ]  # fmt: skip
        assert second["experiment"]["compared"][0]["predicted"] == "0.01235"
        assert serving_status_to_dict(later, second, now=Seconds(AT + 95)) == second
        many = second
        for number in range(9):
            new = replace(later, decision_at=Seconds(AT + 100 + number))
            many = serving_status_to_dict(new, many, now=AT)
        assert len(many["decisions"]) == 5

    def test_the_same_decision_later_is_the_same_bytes(self) -> None:
        before = serving_status_to_dict(status(), {}, now=AT)
        assert serving_status_to_dict(status(), before, now=Seconds(AT + 3600)) == before

    def test_a_verdict_stands_while_nothing_new_is_known_of_the_same_generation(self) -> None:
        before = serving_status_to_dict(status(), {}, now=AT)
        silent = Condition(
            type=ConditionType.SLO_MET, truth=Truth.UNKNOWN, reason="TooFew", message="", yields_to=("Kept", "Broken")
        )
        later = serving_status_to_dict(status(conditions=(silent,)), before, now=Seconds(AT + 60))
        assert later["conditions"] == before["conditions"]
        edited = replace(status(conditions=(silent,)), observed_generation=4)
        assert serving_status_to_dict(edited, before, now=Seconds(AT + 60))["conditions"][0]["reason"] == "TooFew"
        assert serving_status_to_dict(status(conditions=(silent,)), {}, now=AT)["conditions"][0]["reason"] == "TooFew"

    def test_a_condition_keeps_its_time_until_its_truth_flips(self) -> None:
        before = serving_status_to_dict(status(), {}, now=AT)
        other_words = Condition(type=ConditionType.SLO_MET, truth=Truth.TRUE, reason="Kept", message="22 of 30 ms")
        broken = replace(other_words, truth=Truth.FALSE)
        kept = serving_status_to_dict(status(conditions=(other_words,)), before, now=Seconds(AT + 60))
        flipped = serving_status_to_dict(status(conditions=(broken,)), before, now=Seconds(AT + 60))
        assert kept["conditions"][0]["lastTransitionTime"] == "2026-11-18T11:06:40Z"
        assert flipped["conditions"][0]["lastTransitionTime"] == "2026-11-18T11:07:40Z"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (4.0, "4"),
        (0.93456, "0.9346"),
        (0.0000123456, "0.00001235"),
        (12345.678, "12346"),
        (-2.5, "-2.500"),
        (math.inf, "inf"),
    ],
)
def test_a_number_reads_as_a_person_would_write_it(value: float, text: str) -> None:
    assert number_text(value) == text
