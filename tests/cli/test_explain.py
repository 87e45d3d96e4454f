"""`explain` reads a ModelServing over HTTP, as a cluster serves it, and tells its decision."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gpupack.cli import main

SERVING = {
    "metadata": {"namespace": "shop", "name": "chat", "generation": 3},
    "status": {
        "observedGeneration": 3,
        "replicas": 2,
        "readyReplicas": 1,
        "shape": {"maxNumSeqs": 96, "kvCacheMemoryBytes": 4 * 2**30, "maxModelLen": 2048, "engineArguments": ["--x"]},
        "replicasPerGpu": 2,
        "freedBytes": 40 * 2**30,
        "assumed": ["slo"],
        "placements": [{"name": "chat-abc-0", "gpu": "GPU-1", "node": "n1", "phase": "Ready"}],
        "decision": {"reason": "BandwidthCeiling", "message": "The DRAM is busy.", "at": "2026-11-23T10:00:00Z"},
        "experiment": {"step": "Added", "gpu": "GPU-1", "verdict": "Missed", "undone": True, "message": "It did harm."},
        "decisions": [
            {
                "at": "2026-11-23T09:58:00Z",
                "reason": "Added",
                "seen": "60 requests/s.",
                "predicted": "+28 %.",
                "chosen": "Replica 2 goes to GPU-1.",
                "rejected": "GPU-2 is held.",
                "measured": "It did harm.",
            },
            {"at": "2026-11-23T10:00:00Z", "reason": "BandwidthCeiling", "chosen": "The DRAM is busy."},
        ],
        "conditions": [{"type": "Packed", "status": "True", "reason": "BandwidthCeiling", "message": "It is full."}],
    },
}
FRESH = {"metadata": {"namespace": "shop", "name": "fresh", "generation": 1}}
WATCHED = {
    "metadata": {"namespace": "shop", "name": "watched", "generation": 1},
    "status": {
        "observedGeneration": 1,
        "shape": {"maxNumSeqs": 300, "kvCacheMemoryBytes": 9 * 2**30},
        "decision": {"reason": "Advised", "message": "Better 300.", "at": "2026-11-23T10:00:00Z"},
        "observed": {
            "at": "2026-11-23T10:00:00.000000Z",
            "inputs": "abc",
            "engines": [
                {"pod": "plain-1", "gpuKind": "H100-80GB", "maxNumSeqs": 512, "gpuMemoryUtilizationPercent": "90",
                 "kvCacheMemoryBytes": 69 * 2**30, "running": "18.75", "requestsPerSecond": "20.3",
                 "itlMeanMilliseconds": "3.1"},
                {"pod": "plain-2", "problem": "it is not ready (Pending)"},
            ],
            "advised": [
                {"gpuKind": "H100-80GB", "engines": 1, "replicasPerGpu": 2, "freedBytes": 60 * 2**30, "gpusNow": 2,
                 "gpusNeeded": 1, "expectedGainPercent": "23.4", "shape": {}, "message": "Better.",
                 "engineArguments": ["--max-num-seqs=300", "--gpu-memory-utilization=0.18"]},
            ],
        },
    },
}  # fmt: skip
LEARNING = {
    "metadata": {"namespace": "lab", "name": "learning", "generation": 1, "uid": "1", "resourceVersion": "1",
                 "creationTimestamp": "2026-11-23T09:00:00Z"},
    "spec": {"model": {"name": "llama-3.2-1b"}},
    "status": {**SERVING["status"], "observedGeneration": 1},
}  # fmt: skip
LEARNT = {
    "stepMicroseconds": "2645", "sequenceMicroseconds": "9.5", "kvReadEfficiency": "0.91",
    "message": "learnt from 43 minutes of load",
}  # fmt: skip
PROFILES = [
    {"metadata": {"name": f"learned-{version}"}, "status": {"learned": LEARNT},
     "spec": {"model": "meta-llama/Llama-3.2-1B", "gpu": "H100-80GB", "engineVersion": version}}
    for version in ("0.33.0", "0.32.0")
]  # fmt: skip
ROOT = "/apis/gpupack.dev/v1alpha1/namespaces/shop/modelservings"
EVERYWHERE = "/apis/gpupack.dev/v1alpha1/modelservings"
PAGES = {
    EVERYWHERE: {"items": [SERVING]},
    ROOT: {"items": [SERVING, FRESH]},
    f"{ROOT}/chat": SERVING,
    f"{ROOT}/fresh": FRESH,
    f"{ROOT}/watched": WATCHED,
    ROOT.replace("shop", "lab") + "/learning": LEARNING,
    "/apis/gpupack.dev/v1alpha1/namespaces/lab/modelprofiles": {"items": PROFILES},
}


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = PAGES.get(self.path)
        body = json.dumps(found or {"reason": "NotFound", "message": "not found"}).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """A test's output is its own."""


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    file = tmp_path / "kubeconfig.json"
    file.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "here",
                "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
                "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
                "users": [{"name": "me", "user": {}}],
            }
        )
    )
    yield str(file)
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_decision_comes_first_with_its_reason_and_what_it_rests_on(
    capsys: pytest.CaptureFixture[str], kubeconfig: str
) -> None:
    assert main(["explain", "chat", "-n", "shop", "--kubeconfig", kubeconfig]) == 0
    said = capsys.readouterr().out
    assert said.startswith("shop/chat: 2 replicas planned, 1 ready\n  BandwidthCeiling. The DRAM is busy.")
    for word in ("Batch limit 96", "4.0 GiB", "40.0 GiB are free", "slo", "Packed", "GPU-1"):
        assert word in said


def test_a_serving_may_be_named_as_kubectl_names_it(capsys: pytest.CaptureFixture[str], kubeconfig: str) -> None:
    for name in ("msv/chat", "modelserving.gpupack.dev/chat"):
        assert main(["explain", name, "-n", "shop", "-o", "json", "--kubeconfig", kubeconfig]) == 0
        assert json.loads(capsys.readouterr().out)["name"] == "chat"
    with pytest.raises(SystemExit) as refused:
        main(["explain", "shop/chat", "--kubeconfig", kubeconfig])
    assert refused.value.code == 2
    assert "a namespace goes with -n" in capsys.readouterr().err


def test_the_last_decisions_tell_what_was_seen_predicted_chosen_rejected_and_measured(
    capsys: pytest.CaptureFixture[str], kubeconfig: str
) -> None:
    assert main(["explain", "chat", "-n", "shop", "--kubeconfig", kubeconfig]) == 0
    said = capsys.readouterr().out
    assert said.index("10:00:00Z  BandwidthCeiling") < said.index("09:58:00Z  Added"), "the newest first"
    told = [line.split(":")[0].strip() for line in said.split("09:58:00Z  Added\n")[1].splitlines()[:5]]
    assert told == ["seen", "predicted", "chosen", "rejected", "measured"]
    assert main(["explain", "chat", "-n", "shop", "--json", "--kubeconfig", kubeconfig]) == 0
    machine = json.loads(capsys.readouterr().out)
    assert machine["experiment"]["verdict"] == "Missed"
    assert [each["reason"] for each in machine["decisions"]] == ["Added", "BandwidthCeiling"]


def test_observed_engines_are_told_as_they_are_with_the_arguments_to_paste(
    capsys: pytest.CaptureFixture[str], kubeconfig: str
) -> None:
    assert main(["explain", "watched", "-n", "shop", "--kubeconfig", kubeconfig]) == 0
    said = capsys.readouterr().out
    head = "shop/watched: 2 pods observed, 1 judged; gpupack started none of them"
    assert said.startswith(f"{head}\n  Advised. Better 300.")
    assert "    --max-num-seqs=300 \\\n    --gpu-memory-utilization=0.18\n" in said
    for word in ("69.0 GiB", "90 %", "3.1 ms", "it is not ready (Pending)", "60.0 GiB of KV cache freed an engine",
                 "+23 % throughput a GPU expected", "1 of 2 GPUs needed"):  # fmt: skip
        assert word in said


def test_what_was_learnt_of_its_model_and_version_is_told(capsys: pytest.CaptureFixture[str], kubeconfig: str) -> None:
    assert main(["explain", "learning", "-n", "lab", "--kubeconfig", kubeconfig]) == 0
    said = capsys.readouterr().out
    assert "On H100-80GB a step is believed to cost 2645 us and 9.5 us a sequence" in said
    assert "learnt from 43 minutes of load (ModelProfile learned-0.33.0)" in said
    assert "learned-0.32.0" not in said


def test_machines_get_the_decision_in_the_apis_own_names(capsys: pytest.CaptureFixture[str], kubeconfig: str) -> None:
    assert main(["explain", "chat", "-n", "shop", "-o", "json", "--kubeconfig", kubeconfig]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["decision"]["reason"] == "BandwidthCeiling"
    assert told["upToDate"] is True
    assert told["shape"]["maxNumSeqs"] == 96


def test_without_a_name_every_serving_of_the_namespace_is_explained(
    capsys: pytest.CaptureFixture[str], kubeconfig: str
) -> None:
    assert main(["explain", "-n", "shop", "--kubeconfig", kubeconfig]) == 0
    said = capsys.readouterr().out
    assert "shop/chat" in said
    assert "shop/fresh: 0 replicas planned, 0 ready\n  gpupack has not looked at it yet" in said


def test_a_serving_that_is_not_there_is_bad_input(capsys: pytest.CaptureFixture[str], kubeconfig: str) -> None:
    assert main(["explain", "nobody", "-n", "shop", "--kubeconfig", kubeconfig]) == 2
    assert "no ModelServing nobody in namespace shop" in capsys.readouterr().err


def test_no_cluster_is_said_in_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["explain", "chat", "--kubeconfig", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_serving_that_is_in_another_namespace_is_found_there(
    capsys: pytest.CaptureFixture[str], kubeconfig: str
) -> None:
    assert main(["explain", "chat", "-n", "elsewhere", "--kubeconfig", kubeconfig]) == 2
    assert "no ModelServing chat in namespace elsewhere" in (said := capsys.readouterr().err)
    assert "it is in shop: add -n shop" in said
