"""What `gpupack twin` and its control door are told is read once, and what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpupack.cli import Parser, main
from gpupack.errors import Invalid
from gpupack.node.cli import configure, options_of
from gpupack.node.endpoints import slice_of
from gpupack.node.exporter import Field, Generation
from gpupack.node.load import Router
from gpupack.node.meter import Observed, quantile
from gpupack.node.steering import load_of
from gpupack.node.twin_nodes import Options
from gpupack.twin.counters import Histogram


def _options(*words: str) -> Options:
    parser = Parser(prog="gpupack twin")
    configure(parser)
    return options_of(parser.parse_args(words), None)


def test_a_node_is_as_its_options_say() -> None:
    options = _options(
        "--nodes", "2", "--node-name", "gpu", "--gpus", "4", "--gpu-kind", "l4", "--memory", "64Gi", "--cpus", "8",
        "--start-seconds", "3", "--exporter-generation", "new", "--exporter-absent", "dram_active",
    )  # fmt: skip
    assert options.node_names == ("gpu-1", "gpu-2")
    assert (options.gpus_a_node, options.gpu.name) == (4, "L4")
    assert (options.machine.cpu_cores, options.machine.memory) == (8, 64 * 2**30)
    assert options.start_seconds == 3.0
    assert options.generation is Generation.NEW
    assert options.absent == {Field.DRAM_ACTIVE}


def test_nodes_with_slices_of_a_device_plugin_are_named_by_its_strategy() -> None:
    first, second, third = _options(
        "--node-name", "n", *("--plugin-mig", "mixed=3g.40gb,2g.20gb"), *("--plugin-mig", "single=1g.10gb,1g.10gb"),
        *("--plugin-mig", "mixed=7g.80gb"),
    ).cut_nodes  # fmt: skip
    assert [each.name for each in (first, second, third)] == ["n-mixed-1", "n-single-1", "n-mixed-2"]
    assert [each.name for each in first.profiles] == ["3g.40gb", "2g.20gb"]


def test_a_model_that_the_catalog_does_not_have_comes_from_its_config(tmp_path: Path) -> None:
    config = {
        "hidden_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 16, "intermediate_size": 4096,
        "vocab_size": 32000, "max_position_embeddings": 2048, "num_key_value_heads": 4, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    models = _options("--model-config", f"org/own={tmp_path}/config.json").models
    assert models is not None
    assert models["org/own"].kv_heads == 4


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--gpu-kind", "H1000"], "--gpu-kind"),
        (["--nodes", "0"], "--nodes"),
        (["--memory", "much"], "--memory"),
        (["--plugin-mig", "3g.40gb"], "--plugin-mig"),
        (["--plugin-mig", "single=3g.40gb,2g.20gb"], "--plugin-mig"),
        (["--model-config", "org/own"], "--model-config"),
        (["--model-config", "org/own=/nowhere/config.json"], "--model-config"),
    ],
)
def test_a_wrong_option_is_refused_by_name(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["twin", *words]) == 2
    assert named in capsys.readouterr().err


def test_without_a_cluster_it_says_so_and_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["twin", "--kubeconfig", str(tmp_path / "none")]) == 1
    assert "no way to the Kubernetes API" in capsys.readouterr().err


def test_a_load_is_read_with_its_defaults() -> None:
    load = load_of({"service": "ns/s", "rates": [[0, 5], [10, 7.5]], "input_tokens": 512, "output_tokens": 256})
    assert load.rates == ((0.0, 5.0), (10.0, 7.5))
    assert (load.lengths.input_mean, load.lengths.input_cv) == (512.0, 0.9)
    assert load.router is Router.LEAST_LOADED
    constant = load_of({"pod": "ns/p", "rate": 3, "input_tokens": 1, "output_tokens": 1, "input_cv": 0})
    assert constant.rates == ((0.0, 3.0),)
    assert constant.lengths.input_cv == 0.0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"service": "alone"}, "service"),
        ({"rate": -1}, "rate"),
        ({"rate": "fast"}, "rate"),
        ({"input_tokens": None}, "input_tokens"),
        ({"router": "Best"}, "router"),
        ({"speed": 1}, "speed"),
        ({"concurrency": 3}, "load"),
        ({"rates": [1, 2]}, "rates"),
    ],
)
def test_a_wrong_load_is_refused_by_field(change: dict[str, Any], named: str) -> None:
    right = {"service": "ns/s", "rate": 1, "input_tokens": 10, "output_tokens": 10}
    with pytest.raises(Invalid) as refusal:
        load_of({**right, **change})
    assert refusal.value.field == named


def test_only_ready_endpoints_of_a_service_get_load() -> None:
    item = {
        "metadata": {"namespace": "ns", "name": "s-x1", "labels": {"kubernetes.io/service-name": "s"}},
        "ports": [{"name": "http", "port": 8000}],
        "endpoints": [
            {"addresses": ["10.77.0.2"], "conditions": {"ready": True}},
            {"addresses": ["10.77.0.3"], "conditions": {"ready": False, "serving": True, "terminating": True}},
            {"addresses": ["10.77.0.4"]},
        ],
    }
    found = slice_of(item)
    assert found is not None
    assert found.service == "ns/s"
    assert found.ready == (("10.77.0.2", 8000), ("10.77.0.4", 8000))
    del item["metadata"]["labels"]  # type: ignore[attr-defined]
    assert slice_of(item) is None


def test_a_quantile_of_several_histograms_is_that_of_all_their_observations() -> None:
    fine, coarse = Histogram((1.0, 2.0, 3.0, 4.0)), Histogram((2.0, 4.0))
    for value in (0.5, 1.5, 2.5, 3.5):
        fine.observe(value, 10)
        coarse.observe(value, 10)
    both = (Observed.of(fine), Observed.of(coarse))
    assert quantile(both, 0.5) == pytest.approx(2.0)
    assert quantile(both, 0.95) == pytest.approx(3.8)
    assert quantile((), 0.5) is None
    later = Histogram((1.0, 2.0, 3.0, 4.0))
    later.observe(3.5)
    assert Observed.of(later).since(Observed.of(Histogram((1.0, 2.0, 3.0, 4.0)))).mean == 3.5
