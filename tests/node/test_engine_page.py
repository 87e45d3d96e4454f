"""The page of a virtual engine is what a Prometheus client reads from vLLM."""

from __future__ import annotations

import math

from prometheus_client.parser import text_string_to_metric_families

from gpupack.node.engine_page import HISTOGRAMS, EngineNumbers, EnginePage
from gpupack.twin.counters import Histogram


def _numbers() -> EngineNumbers:
    histograms = {name: Histogram((0.5, 1.0, 10.0)) for name in HISTOGRAMS}
    histograms["inter_token_latency_seconds"].observe(0.7, 3)
    return EngineNumbers(
        running=12, waiting=3, kv_usage=0.25, preemptions=1, prompt_tokens=512, generation_tokens=99,
        finished={"length": 4, "abort": 2}, histograms=histograms, read_bytes=1e12, written_bytes=1e9, flops=1e15,
    )  # fmt: skip


def _samples(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            of_name = found.setdefault(sample.name, {})
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in of_name, f"{sample.name} {labels} is there twice"
            of_name[labels] = sample.value
    return found


def test_every_series_parses_and_carries_the_engines_numbers() -> None:
    page = EnginePage('org/a "model"', {"num_gpu_blocks": "1000", "block_size": "16"}, created_at=1.0)
    samples = _samples(page.text(_numbers()))
    labels = (("engine", "0"), ("model_name", 'org/a "model"'))
    assert samples["vllm:num_requests_running"][labels] == 12.0
    assert samples["vllm:num_requests_waiting"][labels] == 3.0
    assert samples["vllm:kv_cache_usage_perc"][labels] == 0.25
    assert samples["vllm:generation_tokens_total"][labels] == 99.0
    assert samples["vllm:estimated_read_bytes_per_gpu_total"][labels] == 1e12
    assert samples["vllm:request_success_total"][(labels[0], ("finished_reason", "abort"), labels[1])] == 2.0
    ((info, value),) = samples["vllm:cache_config_info"].items()
    assert dict(info)["num_gpu_blocks"] == "1000"
    assert value == 1.0


def test_histograms_are_cumulative_and_end_at_infinity() -> None:
    samples = _samples(EnginePage("m", {}, created_at=1.0).text(_numbers()))
    gaps = {dict(key)["le"]: value for key, value in samples["vllm:inter_token_latency_seconds_bucket"].items()}
    assert gaps == {"0.5": 0.0, "1.0": 3.0, "10.0": 3.0, "+Inf": 3.0}
    (total,) = samples["vllm:inter_token_latency_seconds_sum"].values()
    assert math.isclose(total, 2.1)


def test_every_series_says_what_it_is_and_labels_are_sorted() -> None:
    text = EnginePage("m", {}, created_at=1.0).text(_numbers())
    typed = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        name = line.split("{")[0].split()[0]
        stem = name if name in typed else name.rsplit("_", 1)[0]
        assert stem in typed, line
        if "{" in line:
            keys = [pair.split("=")[0] for pair in line[line.index("{") + 1 : line.rindex("}")].split(",")]
            assert keys == sorted(keys), line


def test_a_broken_engine_shows_one_value_everywhere_but_in_its_configuration() -> None:
    samples = _samples(EnginePage("m", {"num_gpu_blocks": "7"}, created_at=1.0).text(_numbers(), value=math.nan))
    assert all(math.isnan(value) for value in samples["vllm:num_requests_running"].values())
    assert all(math.isnan(value) for value in samples["vllm:inter_token_latency_seconds_bucket"].values())
    assert list(samples["vllm:cache_config_info"].values()) == [1.0]
