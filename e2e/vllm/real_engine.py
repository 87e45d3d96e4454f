"""The real vLLM, built for CPUs, as an engine pod of the cluster: what the code takes for granted of it is so.

`make e2e-vllm` runs it. Each name that gpupack uses is listed where a release does not have it any more: flags, series,
the fields of a benchmark, the words of a start that fails, and how a server drains.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpupack.demo.stage import Stage
from gpupack.facts.engine_args import OWNED_FLAGS, OWNED_SHORT_FLAGS, engine_args
from gpupack.facts.llm import Dtype
from gpupack.facts.serving import Shape
from gpupack.kube.child_resource import message_of
from gpupack.metrics.prometheus import parse_engine
from gpupack.metrics.series import Exporter, of
from gpupack.node.controlplane import ControlPlane
from gpupack.profiling.points import point_of
from gpupack.units import MIB, Bytes, Seconds

from ..journey import API_VERSION, NODE_ARGUMENTS, PROFILES, SERVINGS, Journey, manual
from .environment import VERSION, obtain

IMAGE = f"example.com/vllm-cpu:v{VERSION}"
MODEL = "tiny/llama"
CONFIG = {
    "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
    "intermediate_size": 512, "vocab_size": 512, "max_position_embeddings": 2048,
}  # fmt: skip
ENVIRONMENT = {"VLLM_TARGET_DEVICE": "cpu", "HF_HUB_OFFLINE": "1"}
ENGINE = {
    "image": IMAGE,
    "args": ["--enforce-eager"],
    "podTemplate": {"env": [{"name": name, "value": value} for name, value in ENVIRONMENT.items()]},
}
START_SECONDS = 300.0


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that stands in for the image: vLLM in bin, and the model where its name says."""
    environment, folder = obtain(), tmp_path_factory.mktemp("image")
    (folder / "bin").symlink_to(environment / "bin")
    make = Path(__file__).with_name("tiny_model.py")
    subprocess.run([environment / "bin" / "python", make, folder / MODEL], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def stage(cluster: ControlPlane, image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    arguments = (*NODE_ARGUMENTS, "--process", f"{IMAGE}={image}")
    with Stage(cluster, tmp_path_factory.mktemp("stage"), node_arguments=arguments) as stage:
        stage.start_operator()
        yield stage


def tiny(name: str, **spec: Any) -> dict[str, Any]:
    least = {
        "model": {"name": MODEL, "dtype": "float32", "config": CONFIG},
        "engine": ENGINE,
        "batching": {"mode": "Fixed", "maxNumSeqs": 8},
        "workload": {"inputTokens": {"mean": 64}, "outputTokens": {"mean": 32}},
    }
    return manual(name, 1, **{**least, **spec})


def vllm(image: Path, *words: str) -> str:
    """What a command of vLLM prints."""
    environ = {**ENVIRONMENT, "PATH": f"{image / 'bin'}:/usr/bin:/bin", "HOME": str(image)}
    ended = subprocess.run([image / "bin" / "vllm", *words], env=environ, cwd=image, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


def test_every_flag_that_gpupack_sets_or_refuses_is_one_of_vllms(image: Path) -> None:
    known = set(re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", vllm(image, "serve", "--help=all")))
    shape = Shape(
        max_num_seqs=8, kv_cache_memory_bytes=Bytes(MIB), max_num_batched_tokens=2048, max_model_len=1024
    )  # fmt: skip
    made = engine_args(shape, 10, version=VERSION, dtype=Dtype.FLOAT32, revision="main", drain=Seconds(60.0))
    wanted = {each.split("=")[0] for each in made} | set(OWNED_FLAGS) | set(OWNED_SHORT_FLAGS)
    # `--no-x` is of `--x`; the command takes the model without a flag, and --config is not listed among the options.
    assert sorted(each for each in wanted - known if each.replace("--no-", "--") not in known) == []


def test_a_start_that_fails_says_why_in_vllms_own_words(journey: Journey) -> None:
    model = {"name": MODEL, "dtype": "float32", "config": {**CONFIG, "max_position_embeddings": 4096}}
    journey.apply(tiny("long", model={**model, "maxModelLen": 4096}))

    def words() -> list[str]:
        return [said for pod in journey.stage.pods("long") if "4096" in (said := message_of(pod))]

    journey.until("the engine has ended and said why", words, START_SECONDS)
    assert "max_model_len" in words()[0]
    assert "Error: " in words()[0]


def test_an_engine_is_packed_scraped_benchmarked_measured_and_drained(journey: Journey, image: Path) -> None:
    stage = journey.stage
    journey.apply(tiny("tiny"))
    journey.until_ready("tiny", seconds=START_SECONDS)
    (pod,) = stage.pods("tiny")
    url = f"http://{pod['status']['podIP']}:8000"
    planned = json.loads(pod["metadata"]["annotations"]["gpupack.dev/shape"])

    with httpx.Client(proxy=stage.pod_proxy, base_url=url, timeout=60, trust_env=False) as client:
        assert client.get("/version").json() == {"version": VERSION}
        _ask(client)
        page = client.get("/metrics").content

        # Every series by its newest name.
        absent = [each.names[0].text for each in of(Exporter.VLLM) if not _has(page, each.names[0].text)]
        assert absent == []
        numbers = parse_engine(page)
        # On a CPU a block is 128 tokens, on a GPU 16; x (K, V) x layers x heads and their size x float32.
        (block_tokens,) = set(re.findall(rb'block_size="(\d+)"', page))
        block_bytes = int(block_tokens) * 2 * 2 * 256 * 4
        assert numbers.kv_blocks == planned["kvCacheMemoryBytes"] // block_bytes

        # What `vllm bench serve` writes is a measured run.
        port = re.findall(r"'port': (\d+)", (image / f"{pod['metadata']['name']}.log").read_text())[0]
        vllm(image, "bench", "serve", "--backend", "openai", "--base-url", f"http://127.0.0.1:{port}", "--endpoint",
             "/v1/completions", "--model", MODEL, "--dataset-name", "random", "--input-len", "32", "--output-len", "16",
             "--num-prompts", "16", "--max-concurrency", "4", "--request-rate", "inf", "--ignore-eos", "--save-result",
             "--result-dir", str(image), "--result-filename", "bench.json")  # fmt: skip
        row = json.loads((image / "bench.json").read_text())
        assert (row["completed"], row["failed"]) == (16, 0)
        benched = point_of(row)
        assert benched.max_num_seqs == 4
        assert benched.tpot_mean is not None

        # Our own clients see an engine of about that speed.
        words = ("--batches", "1,4", "--input-tokens", "32", "--output-tokens", "16", "--seconds", "2", "--json")
        command = [sys.executable, "-m", "gpupack", "profile", "--base-url", url, "--proxy", stage.pod_proxy, *words]
        profiled = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        assert profiled["engine_version"] == VERSION
        assert profiled["failures"] == []
        one, four = (point_of(each) for each in profiled["points"])
        assert four.total_tokens_per_second > one.total_tokens_per_second
        assert 0.2 < four.itl_mean / benched.itl_mean < 5.0

        _measure(journey)

        # SIGTERM lets what is under way come to its end.
        ended: list[dict[str, Any]] = []
        tokens = planned["maxModelLen"] - 64
        asking = threading.Thread(target=lambda: ended.append(_ask(client, tokens=tokens)))
        asking.start()
        journey.until("the request is under way", lambda: parse_engine(client.get("/metrics").content).running or 0)
        mark = journey.history.mark()
        stage.delete(f"{SERVINGS}/tiny")
        asking.join(60)
        assert ended[0]["choices"][0]["finish_reason"] == "length"
        assert ended[0]["usage"]["completion_tokens"] == tokens
    journey.until("the pod is gone", lambda: stage.pods("tiny") == [], 90)
    codes = [
        status["state"]["terminated"]["exitCode"]
        for happened in journey.history.since(mark)
        if happened.resource == "pods"
        for status in happened.object.get("status", {}).get("containerStatuses", ())
        if "terminated" in status["state"]
    ]
    assert set(codes) == {0}


def _measure(journey: Journey) -> None:
    """A ModelProfile by engines of its own: points, one restart, coefficients."""
    stage = journey.stage
    profile = {
        "apiVersion": API_VERSION,
        "kind": "ModelProfile",
        "metadata": {"name": "tiny"},
        "spec": {
            "model": MODEL,
            "gpu": "H100-80GB",
            "engineVersion": VERSION,
            "lengths": {"inputTokens": {"mean": 32}, "outputTokens": {"mean": 16}},
            "measure": {"servingRef": {"name": "tiny"}, "batchLimits": [1, 4], "secondsPerPoint": 2},
        },
    }
    journey.apply(profile)
    try:

        def measured() -> dict[str, Any]:
            status: dict[str, Any] = stage.get(f"{PROFILES}/tiny").get("status", {}).get("measured", {})
            return status

        journey.until("it is measured", lambda: measured().get("phase") in ("Done", "Failed"), 3 * START_SECONDS)
        done = measured()
        assert done["phase"] == "Done", done
        assert [point["maxNumSeqs"] for point in done["points"]] == [1, 4]
        assert "failures" not in done
        assert done["progress"] == "3 of 3"
        assert done["confirmed"]["maxNumSeqs"] == done["chosenMaxNumSeqs"]
        assert len(done["fitted"]["residuals"]) == 2
        print(json.dumps(done, indent=1))
    finally:
        stage.delete(PROFILES)


def _ask(client: httpx.Client, tokens: int = 8) -> dict[str, Any]:
    body = {"model": MODEL, "prompt": "hello there", "max_tokens": tokens, "ignore_eos": True}
    answer = client.post("/v1/completions", json=body)
    answer.raise_for_status()
    return dict(answer.json())


def _has(page: bytes, name: str) -> bool:
    return re.search(rb"^" + re.escape(name.encode()) + rb"(_bucket)?[ {]", page, re.MULTILINE) is not None
