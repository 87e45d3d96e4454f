"""A ModelProfile is measured by an engine in a Job, stopped and taken up again, on a GPU that nobody uses."""

from __future__ import annotations

from typing import Any

from .journey import API_VERSION, MODEL, PROFILES, Journey, manual, serving

JOBS = "/apis/batch/v1/namespaces/default/jobs"
PROFILE: dict[str, Any] = {
    "apiVersion": API_VERSION,
    "kind": "ModelProfile",
    "metadata": {"name": "measured"},
    "spec": {
        "model": MODEL["name"],
        "gpu": "H100-80GB",
        "engineVersion": "0.33.0",
        "lengths": {"inputTokens": {"mean": 64}, "outputTokens": {"mean": 32}},
        "measure": {"servingRef": {"name": "subject"}, "batchLimits": [1, 4], "secondsPerPoint": 1, "suspend": True},
    },
}


def test_a_profile_is_measured_beside_a_packed_gpu_and_goes_on_where_it_was_stopped(journey: Journey) -> None:
    stage = journey.stage

    def measured() -> dict[str, Any]:
        status: dict[str, Any] = stage.get(f"{PROFILES}/measured").get("status", {}).get("measured", {})
        return status

    def suspend(yes: bool) -> None:
        stage.patch(f"{PROFILES}/measured", {"spec": {"measure": {"suspend": yes}}})

    try:
        journey.apply(manual("chat", 1), serving("subject", mode="Advise"))
        journey.until_ready("chat")
        journey.apply(PROFILE)
        journey.until("it is suspended", lambda: measured().get("phase") == "Suspended")
        suspend(False)
        journey.until("a point is there", lambda: len(measured().get("points", ())) == 1)
        (packed,) = journey.gpus_of("chat")
        engines = {each["pod"]: each["gpu"] for each in journey.engines()}
        assert len(engines) == 2
        assert [gpu for name, gpu in engines.items() if "measure" in name] != [packed]
        suspend(True)
        journey.until("the engine is gone", lambda: len(journey.engines()) == 1 and not stage.get(JOBS)["items"])
        first = measured()["points"][0]
        assert measured()["phase"] == "Suspended"

        suspend(False)
        journey.until("it is done", lambda: measured().get("phase") == "Done", 90)
        done = measured()
        assert done["points"][0] == first
        assert [point["maxNumSeqs"] for point in done["points"]] == [1, 4]
        assert done["progress"] == "3 of 3"
        assert done["confirmed"]["maxNumSeqs"] == done["chosenMaxNumSeqs"]
        assert len(done["fitted"]["residuals"]) == 2
        journey.until("its GPU is free again", lambda: len(journey.engines()) == 1)
        journey.until("nothing of it is left", lambda: not stage.get(JOBS)["items"])
    finally:
        stage.delete(PROFILES)
