"""What the schema and the code both say, they say alike."""

from __future__ import annotations

import re
from typing import Any

import yaml

from gpupack import catalog
from gpupack.facts.engine_args import OWNED_FLAGS, OWNED_SHORT_FLAGS
from gpupack.facts.observation import Phase
from gpupack.facts.serving import Mode, ScalingMode, SharingWish, Statistic
from gpupack.kube.pool_resource import GPUS_LIMIT

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
