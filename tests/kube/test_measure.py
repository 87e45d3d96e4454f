"""What measures a ModelProfile in the cluster: written like an engine's pod, on a claim of others."""

from __future__ import annotations

from typing import Any

from gpupack.facts.measured import Failure, Fitted, Results
from gpupack.facts.serving import ProfilePoint
from gpupack.kube import measure_resource
from gpupack.kube.child_resource import claim_of, replica_of
from gpupack.kube.measure_resource import Measurement, Phase, Progress, measurement_of
from gpupack.kube.node_resource import foreign_claim_of
from gpupack.kube.profile_resource import profile_of
from gpupack.units import Ratio, Seconds

from .objects import GPU, H100, OTHER_GPU, model_serving, read

POINTS = tuple(
    ProfilePoint(
        max_num_seqs=limit, total_tokens_per_second=limit * 100.0, itl_mean=Seconds(limit * 1e-3),
        tpot_mean=Seconds(2e-3), preemptions=0,
    )
    for limit in (1, 8)
)  # fmt: skip


def profile(status: dict[str, Any] | None = None, **measure: Any) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "models", "name": "a" * 60, "uid": "u-1", "generation": 3, "resourceVersion": "9"},
        "spec": {
            "model": "llama-3.2-1b", "gpu": "H100-80GB", "engineVersion": "0.33.0",
            "lengths": {"inputTokens": {"mean": 64}, "outputTokens": {"mean": 32}},
            "measure": {"servingRef": {"name": "chat"}, **measure},
        },
        "status": {"measured": status or {}},
    }  # fmt: skip


def asked(status: dict[str, Any] | None = None, **measure: Any) -> Measurement:
    found = measurement_of(profile(status, **measure))
    assert found is not None
    return found


def told(phase: Phase) -> Progress:
    return Progress(
        inputs=measure_resource.inputs_of(asked()),
        template="t",
        phase=phase,
        message="so",
        settled=2,
        runs=3,
        results=Results(
            points=POINTS, failures=(Failure(max_num_seqs=4, attempts=1, problem="it broke"),), confirmed=POINTS[1]
        ),
        chosen=8,
    )


def test_a_status_is_read_back_as_it_was_written() -> None:
    progress = told(Phase.MEASURING)
    status = measure_resource.status_to_dict(progress, 3)
    assert status["progress"] == "2 of 3"
    assert measure_resource.progress_of(asked(status), "t") == progress


def test_points_of_another_spec_or_engine_do_not_count_and_a_stop_changes_neither() -> None:
    status = measure_resource.status_to_dict(told(Phase.MEASURING), 3)
    assert measure_resource.progress_of(asked(status, suspend=True), "t").results.points == POINTS
    assert measure_resource.progress_of(asked(status), "another").results == Results()
    assert measure_resource.progress_of(asked(status, largestBatch=8), "t").results == Results()


def test_what_is_over_stays_over_whatever_becomes_of_the_serving() -> None:
    done = measure_resource.status_to_dict(told(Phase.DONE), 3)
    assert measure_resource.is_over(asked(done))
    assert not measure_resource.is_over(asked(done, secondsPerPoint=5))
    assert not measure_resource.is_over(asked(measure_resource.status_to_dict(told(Phase.MEASURING), 3)))


def test_points_count_for_a_serving_once_all_are_there() -> None:
    done = measure_resource.status_to_dict(told(Phase.DONE), 3)
    half = measure_resource.status_to_dict(told(Phase.MEASURING), 3)
    assert profile_of(profile(done), gpu_by_name=lambda _: H100).points == POINTS
    assert profile_of(profile(half), gpu_by_name=lambda _: H100).points == ()


def test_residuals_are_percents_of_each_point() -> None:
    fitted = Fitted(
        seconds_per_step=Seconds(2e-3), host_seconds_per_sequence=Seconds(1e-5), kv_read_efficiency=Ratio(0.9),
        misses=((Ratio(0.012), Ratio(-0.02)), (Ratio(0.0), Ratio(0.0))), error=Ratio(0.02),
    )  # fmt: skip
    progress = Progress(inputs="i", template="t", phase=Phase.DONE, results=Results(points=POINTS), fitted=fitted)
    written = measure_resource.status_to_dict(progress, 1)["fitted"]
    assert written["residuals"][0] == {"maxNumSeqs": 1, "throughputPercent": "1.200", "itlPercent": "-2"}


def test_the_engine_is_written_like_a_replica_without_the_key_that_its_client_cannot_read() -> None:
    serving = read(model_serving(engine={"image": "example.com/vllm:v0.33.0", "apiKeySecretRef": {"name": "key"}}))
    name = measure_resource.job_name(asked(), serving.template, 256, confirms=True)
    assert name != measure_resource.job_name(asked(), serving.template, 256, confirms=False)
    job = measure_resource.job(asked(), name, ["m", "--max-num-seqs=256"], serving.template)
    pod = job["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert len(job["metadata"]["name"]) <= 52
    assert (job["spec"]["backoffLimit"], pod["spec"]["restartPolicy"]) == (0, "Never")
    assert container["image"] == "example.com/vllm:v0.33.0"
    assert container["command"] == ["vllm", "serve"]
    assert "VLLM_API_KEY" not in {each["name"] for each in container["env"]}
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert (
        replica_of({"metadata": {**pod["metadata"], "namespace": "models", "name": "x"}, "spec": pod["spec"]}) is None
    )


def test_its_gpu_is_held_by_others_for_every_pool() -> None:
    claim = measure_resource.claim(asked(), (GPU, OTHER_GPU))
    (request,) = claim["spec"]["devices"]["requests"]
    expression = request["exactly"]["selectors"][0]["cel"]["expression"]
    assert expression.endswith(f" in ['{GPU}', '{OTHER_GPU}']")
    device = {"driver": "gpu.nvidia.com", "pool": "n", "device": "gpu-0"}
    allocated = {**claim, "status": {"allocation": {"devices": {"results": [device]}}}}
    assert claim_of(allocated) is None
    assert foreign_claim_of(allocated) is not None
