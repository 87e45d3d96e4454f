"""What the schema and the code both say, they say alike."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpupack import catalog
from gpupack.facts.engine_args import ITL_BUCKETS_SECONDS, OWNED_FLAGS, OWNED_SHORT_FLAGS
from gpupack.facts.llm import Llm
from gpupack.facts.observation import Phase
from gpupack.facts.serving import Mode, ScalingMode, Serving, SharingWish, Statistic
from gpupack.kube import manifests
from gpupack.kube.pool_resource import GPUS_LIMIT
from gpupack.kube.profile_resource import profile_of
from gpupack.kube.serving_resource import serving_of, serving_resource
from gpupack.node import flags

from ..kube.objects import sample, start
from .conftest import ROOT


def spec_of(plural: str) -> dict[str, Any]:
    schema = yaml.safe_load((ROOT / "crds" / f"{plural}.yaml").read_text())["spec"]["versions"][0]["schema"]
    spec: dict[str, Any] = schema["openAPIV3Schema"]["properties"]["spec"]["properties"]
    return spec


def test_the_refused_arguments_are_those_that_gpupack_sets() -> None:
    rules = spec_of("modelservings")["engine"]["properties"]["args"]["items"]["x-kubernetes-validations"]
    long, short = (set(re.findall(r"'(--?[a-z][a-z-]*)'", rule["rule"])) for rule in rules)
    assert long == set(OWNED_FLAGS)
    assert short == set(OWNED_SHORT_FLAGS)


def test_the_kinds_of_gpu_are_those_of_the_catalog() -> None:
    names = [kind.name for kind in catalog.gpus()]
    assert spec_of("gpupools")["gpuProducts"]["items"]["enum"] == names
    assert spec_of("modelprofiles")["gpu"]["enum"] == names


def test_the_words_are_those_of_the_nouns() -> None:
    spec = spec_of("modelservings")
    assert spec["mode"]["enum"] == [mode.value for mode in Mode]
    assert spec["sharing"]["enum"] == [wish.value for wish in SharingWish]
    assert spec["scaling"]["properties"]["mode"]["enum"] == [mode.value for mode in ScalingMode]
    assert spec["slo"]["properties"]["statistic"]["enum"] == [statistic.value for statistic in Statistic]
    assert {phase.value for phase in Phase} == {"Pending", "Starting", "Ready", "Stopping", "Failed"}


def test_a_pool_holds_no_more_gpus_than_one_plan_can() -> None:
    assert spec_of("gpupools")["maxGpus"]["maximum"] == spec_of("gpupools")["maxGpus"]["default"] == GPUS_LIMIT


def test_a_models_config_fields_are_those_that_the_catalog_reads() -> None:
    config = spec_of("modelservings")["model"]["properties"]["config"]
    assert set(config["properties"]) == set(catalog.LlmConfig.__dataclass_fields__)


def llm_of(name: str, config: Mapping[str, Any] | None) -> Llm:
    if config is None:
        return catalog.llm(name, field="spec.model.name")
    return catalog.llm_from_config(name, catalog.LlmConfig(**config))


SERVINGS = sorted((ROOT / "deploy" / "samples").glob("modelserving-*.yaml"))


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in SERVINGS])
def test_every_sample_can_be_carried_out_and_its_engine_takes_the_arguments(path: Path) -> None:
    resource = serving_resource(sample(path.name), llm_of=llm_of)
    profile = profile_of(sample("modelprofile.yaml"), gpu_by_name=catalog.gpu)
    serving = serving_of(resource, profile_of=lambda _, name: profile if name == profile.name else None)
    assert isinstance(serving, Serving), serving
    engine = flags.parse(["vllm", "serve", *manifests.arguments(start(resource), serving, resource.template)], {})
    assert engine.max_num_seqs == start(resource).placement.shape.max_num_seqs
    assert engine.shutdown_timeout == manifests.DRAIN
    assert engine.buckets == {"inter_token_latency": ITL_BUCKETS_SECONDS}
