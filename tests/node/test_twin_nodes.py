"""A virtual GPU node as the operator and its users meet it: vLLM pods on a real control plane, in the digital twin."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from gpupack import catalog
from gpupack.kube.api import Api, NotFound, configuration_of
from gpupack.node.binaries import Binaries
from gpupack.node.clients import measure
from gpupack.node.controlplane import ControlPlane
from gpupack.node.twin_nodes import Options, TwinNodes
from gpupack.node.virtual_node import cards
from gpupack.twin.arrivals import Lengths
from gpupack.units import GIB

pytestmark = [pytest.mark.controlplane, pytest.mark.asyncio(loop_scope="module")]

PATIENCE_SECONDS = 90.0
MOST_LOOKS = 6
NODE = "virtual-1"
MODEL = "meta-llama/Llama-3.2-1B"
GPUS = cards(NODE, catalog.gpu("H100-80GB"), 2)


class Bench:
    """The cluster with its virtual node, and words for what tests do with them."""

    def __init__(self, cluster: ControlPlane, api: Api, nodes: TwinNodes, http: httpx.AsyncClient) -> None:
        self.cluster = cluster
        self.api = api
        self.nodes = nodes
        self.http = http

    async def kubectl(self, *words: str, stdin: str | None = None) -> str:
        return await asyncio.to_thread(self.cluster.kubectl, *words, stdin=stdin)

    async def apply(self, *bodies: dict[str, Any]) -> None:
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(bodies)})
        await self.kubectl("apply", "--server-side", "-f", "-", stdin=text)

    async def pod(self, name: str) -> dict[str, Any]:
        return await self.api.get(f"/api/v1/namespaces/default/pods/{name}")

    async def until(self, name: str, true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not true(pod := await self.pod(name)):
            assert time.monotonic() < deadline, json.dumps(pod["status"], indent=1)
            await asyncio.sleep(0.05)
        return pod

    async def until_ready(self, name: str) -> str:
        """Where it listens."""
        pod = await self.until(name, ready)
        return f"http://{pod['status']['podIP']}:8000"

    async def state(self, window: float = 10.0) -> dict[str, Any]:
        answer = await self.http.get(f"{self.nodes.control}/state", params={"window": window})
        state: dict[str, Any] = answer.json()
        return state

    async def steer(self, path: str, **body: Any) -> httpx.Response:
        return await self.http.post(f"{self.nodes.control}/{path}", json=body)

    async def until_state(self, true: Callable[[dict[str, Any]], bool], window: float = 3.0) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not true(state := await self.state(window)):
            assert time.monotonic() < deadline, json.dumps(state, indent=1)
            await asyncio.sleep(0.1)
        return state


@pytest.fixture(scope="module")
def cluster(programs: Binaries) -> Iterator[ControlPlane]:
    with ControlPlane(programs) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(cluster: ControlPlane) -> AsyncIterator[Bench]:
    options = Options(
        kubeconfig=cluster.kubeconfig, gpu=catalog.gpu("H100-80GB"), start_seconds=0.5, backoff_seconds=0.2,
        exporter_period_seconds=0.5,
    )  # fmt: skip
    async with (
        Api(await configuration_of(str(cluster.kubeconfig))) as api,
        TwinNodes(options) as nodes,
        httpx.AsyncClient(trust_env=False, timeout=30.0) as direct,
    ):
        bench = Bench(cluster, api, nodes, direct)
        for gpu in (0, 1):
            await bench.apply(claim(gpu))
        yield bench


@pytest_asyncio.fixture(loop_scope="module")
async def http(bench: Bench) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(proxy=bench.nodes.pod_proxy, trust_env=False, timeout=30.0) as client:
        yield client


def claim(gpu: int) -> dict[str, Any]:
    chosen = f"device.attributes['gpu.nvidia.com'].?uuid.orValue('') == '{GPUS[gpu].uuid}'"
    exactly = {"deviceClassName": "gpu.nvidia.com", "selectors": [{"cel": {"expression": chosen}}]}
    parameters = {"sharing": {"strategy": "MPS"}}
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": f"gpu-{gpu}", "namespace": "default"},
        "spec": {
            "devices": {
                "requests": [{"name": "gpu", "exactly": exactly}],
                "config": [{"opaque": {"driver": "gpu.nvidia.com", "parameters": parameters}}],
            }
        },
    }


def engine(name: str, *flags: str, gpu: int = 0, app: str = "llama") -> dict[str, Any]:
    health = {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 1}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": app}},
        "spec": {
            "terminationGracePeriodSeconds": 60,
            "resourceClaims": [{"name": "gpu", "resourceClaimName": f"gpu-{gpu}"}],
            "containers": [
                {
                    "name": "engine",
                    "image": "vllm/vllm-openai:v0.33.0",
                    "command": ["vllm", "serve"],
                    "args": [MODEL, *flags],
                    "ports": [{"name": "http", "containerPort": 8000}],
                    "resources": {"claims": [{"name": "gpu"}]},
                    "startupProbe": {**health, "failureThreshold": 600},
                    "readinessProbe": health,
                    "lifecycle": {"preStop": {"sleep": {"seconds": 1}}},
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                }
            ],
        },
    }


SHAPE = ("--max-num-seqs=96", "--max-num-batched-tokens=2048", "--max-model-len=2048",
         "--kv-cache-memory-bytes=4G", "--gpu-memory-utilization=0.12", "--dtype=bfloat16", "--shutdown-timeout=30",
         "--enable-mfu-metrics")  # fmt: skip


def ready(pod: dict[str, Any]) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def terminated(pod: dict[str, Any]) -> dict[str, Any]:
    """How the container ended the last time, empty if it never did."""
    for status in pod["status"].get("containerStatuses", ()):
        for place in ("lastState", "state"):
            if "terminated" in status.get(place, {}):
                ending: dict[str, Any] = status[place]["terminated"]
                return ending
    return {}


def samples(text: str) -> dict[str, float]:
    """Values by name, summed over labels."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


async def test_an_engine_starts_on_the_gpu_of_its_claim_and_answers_through_the_proxy(
    bench: Bench, http: httpx.AsyncClient
) -> None:
    await bench.apply(engine("first", *SHAPE))
    url = await bench.until_ready("first")
    wish = {"model": MODEL, "prompt": [1] * 512, "max_tokens": 40, "stream": True}
    answer = await http.post(f"{url}/v1/completions", json=wish)
    assert answer.text.count("data: {") == 40
    numbers = samples((await http.get(f"{url}/metrics")).text)
    assert numbers["vllm:prompt_tokens_total"] == 512
    assert numbers["vllm:generation_tokens_total"] == 40
    assert numbers["vllm:inter_token_latency_seconds_count"] == 39
    assert numbers["vllm:estimated_read_bytes_per_gpu_total"] > 40 * 1e9
    state = await bench.state()
    assert [gpu["engines"] for gpu in state["gpus"]] == [["default/first"], []]
    assert state["gpus"][0]["sharing"] == "MPS"
    assert 7 * GIB < state["gpus"][0]["fb_used_bytes"] < 0.12 * state["gpus"][0]["memory_bytes"] + GIB


async def test_the_exporter_shows_what_the_gpu_holds(bench: Bench, http: httpx.AsyncClient) -> None:
    pods = await bench.api.get("/api/v1/namespaces/gpu-operator/pods", labelSelector="app=nvidia-dcgm-exporter")
    (exporter,) = pods["items"]
    assert exporter["metadata"]["labels"]["app.kubernetes.io/name"] == "dcgm-exporter"
    text = (await http.get(f"http://{exporter['status']['podIP']}:9400/metrics")).text
    used = {
        sample.labels["UUID"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "DCGM_FI_DEV_FB_USED"
    }
    assert used[GPUS[0].uuid] > 7 * 1024
    assert used[GPUS[1].uuid] == 0


async def test_a_second_engine_with_vllms_defaults_is_refused_as_on_a_real_gpu(bench: Bench) -> None:
    await bench.apply(engine("greedy", "--kv-cache-memory-bytes=4G", "--max-model-len=2048"))
    pod = await bench.until("greedy", lambda pod: bool(terminated(pod)))
    assert "is less than desired GPU memory utilization (0.92" in terminated(pod)["message"]
    pod = await bench.until("greedy", lambda pod: pod["status"]["containerStatuses"][0]["restartCount"] >= 1)
    await bench.kubectl("delete", "pod", "greedy", "--wait=true")


async def test_a_kv_cache_below_one_sequence_is_refused_as_vllm_does(bench: Bench) -> None:
    flags = ("--kv-cache-memory-bytes=32M", "--max-model-len=2048", "--gpu-memory-utilization=0.1")
    await bench.apply(engine("narrow", *flags, gpu=1))
    pod = await bench.until("narrow", lambda pod: bool(terminated(pod)))
    assert "To serve at least one request with the model's max seq len (2048)" in terminated(pod)["message"]
    await bench.kubectl("delete", "pod", "narrow", "--wait=true")


async def test_load_on_a_service_reaches_its_ready_engines_and_clients_measure_what_the_engines_count(
    bench: Bench,
) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "llama", "namespace": "default"},
        "spec": {"selector": {"app": "llama"}, "ports": [{"port": 8000, "targetPort": "http"}]},
    }
    await bench.apply(service, engine("second", *SHAPE))
    await bench.until_ready("second")
    lengths = {"input_tokens": 512, "output_tokens": 128, "input_cv": 0.5, "output_cv": 0.5}
    said = await bench.steer("load", service="default/llama", rate=60.0, **lengths)
    assert said.status_code == 200, said.text
    state = await bench.until_state(
        lambda state: any(len(each["engines"]) == 2 and each["finished_per_second"] > 20 for each in state["services"])
    )
    engines = {each["pod"]: each for each in state["engines"]}
    assert all(engines[f"default/{name}"]["finished_per_second"] > 5 for name in ("first", "second"))
    addresses = [(engines[f"default/{name}"]["address"], 8000) for name in ("first", "second")]

    async def they_agree() -> bool:
        measured = await measure(
            lambda: addresses, model=MODEL, clients=4, seconds=8.0, seed=7, pod_proxy=bench.nodes.pod_proxy,
            lengths=Lengths(input_mean=512, output_mean=128, input_cv=0.5, output_cv=0.5),
        )  # fmt: skip
        (served,) = [each for each in (await bench.state(8.0))["services"] if each["service"] == "default/llama"]
        assert measured.failed == 0
        return (
            measured.finished > 8
            and measured.itl_mean == pytest.approx(served["itl_mean_seconds"], rel=0.10)
            and measured.ttft_mean == pytest.approx(served["ttft_mean_seconds"], rel=0.10, abs=0.02)
        )

    looks = 1
    while not await they_agree():  # a machine that is busy elsewhere lets its clients look late at what came in time
        looks += 1
        assert looks <= MOST_LOOKS, "clients never measured what the engines count"
    gpu = (await bench.state())["gpus"][0]
    assert 0.05 < gpu["dram_active"] < gpu["dram_active_attainable"] < 1.0
    assert gpu["power_watts"] > 150


async def test_deletion_drains_what_is_under_way(bench: Bench) -> None:
    before = await bench.state()
    (second,) = [each for each in before["engines"] if each["pod"] == "default/second"]
    assert second["running"] > 0
    await bench.kubectl("delete", "pod", "second", "--wait=true")
    after = (await bench.state())["ended"]
    assert after["aborted"] - before["ended"]["aborted"] == second["aborted_total"]
    assert after["succeeded"] - before["ended"]["succeeded"] >= second["succeeded_total"] + second["running"]
    await bench.http.delete(f"{bench.nodes.control}/load")


async def test_an_engine_that_crashes_is_restarted_and_its_counters_begin_anew(
    bench: Bench, http: httpx.AsyncClient
) -> None:
    await bench.steer("crash", pod="default/first", message="CUDA error: an illegal memory access was encountered")
    pod = await bench.until("first", lambda pod: pod["status"]["containerStatuses"][0]["restartCount"] == 1)
    assert "illegal memory access" in terminated(pod)["message"]
    url = await bench.until_ready("first")
    numbers = samples((await http.get(f"{url}/metrics")).text)
    assert numbers["vllm:generation_tokens_total"] == 0


async def test_metrics_break_on_demand(bench: Bench, http: httpx.AsyncClient) -> None:
    url = await bench.until_ready("first")
    assert (await bench.steer("engine-metrics", pod="default/first", fault="nan")).status_code == 200
    assert "vllm:num_requests_running" in (text := (await http.get(f"{url}/metrics")).text)
    assert "} NaN" in text
    await bench.steer("engine-metrics", pod="default/first", fault="none")
    wrong = await bench.steer("engine-metrics", pod="default/first", fault="boring")
    assert wrong.status_code == 400
    assert "none, unreachable, empty, nan, frozen" in wrong.json()["error"]
    assert (await bench.steer("exporter", fault="blank", absent=["fb_used"])).json() == {
        "fault": "blank",
        "absent": ["fb_used"],
    }
    await bench.steer("exporter", fault="none", absent=[])


async def test_a_stranger_holds_memory_that_no_pod_explains(bench: Bench) -> None:
    assert (await bench.steer("stranger", gpu=GPUS[1].uuid, bytes=8 * GIB)).json() == {"fb_used_bytes": 8 * GIB}
    refused = await bench.steer("stranger", gpu=GPUS[1].uuid, bytes=800 * GIB)
    assert refused.status_code == 400
    assert (await bench.steer("stranger", gpu=GPUS[1].uuid, bytes=0)).json() == {"fb_used_bytes": 0}
    assert "is no GPU here" in (await bench.steer("stranger", gpu="GPU-x", bytes=1)).json()["error"]


async def test_sigterm_while_it_loads_ends_it_at_once(bench: Bench) -> None:
    await bench.steer("start", seconds=3600)
    await bench.apply(engine("slow", *SHAPE, gpu=1))
    await bench.until("slow", lambda pod: pod["status"]["phase"] == "Running")
    assert not ready(await bench.pod("slow"))
    await bench.kubectl("delete", "pod", "slow", "--grace-period=3600", f"--timeout={PATIENCE_SECONDS:.0f}s")
    assert (await bench.state())["gpus"][1]["fb_used_bytes"] == 0


async def test_nothing_of_the_node_is_left_when_it_goes(bench: Bench, cluster: ControlPlane) -> None:
    options = Options(
        kubeconfig=cluster.kubeconfig, gpu=catalog.gpu("L4"), node_names=("guest-1", "guest-2"), gpus_a_node=1,
        pod_range="10.78.0.0/16",
    )  # fmt: skip
    async with TwinNodes(options):
        nodes = await bench.api.get("/api/v1/nodes")
        assert {node["metadata"]["name"] for node in nodes["items"]} == {NODE, "guest-1", "guest-2"}
    for path in (
        "/api/v1/nodes/guest-1",
        "/apis/resource.k8s.io/v1/resourceslices/guest-2-gpu.nvidia.com-0",
        "/api/v1/namespaces/gpu-operator/pods/nvidia-dcgm-exporter-guest-1",
    ):
        with pytest.raises(NotFound):
            await bench.api.get(path)
