"""What soaks have found, each as the shortest history that showed it."""

from __future__ import annotations

from gpupack.soak.play import play

from ..mutants.mutants import BATCH_64, chat, event, story


def test_an_old_view_of_the_pods_starts_no_second_engine_beside_one_that_is_starting() -> None:
    """The watch of pods was late while a replica was added and the image changed."""
    history = story(
        chat(spec={**BATCH_64, "scaling": {"mode": "Manual"}, "replicas": 1}),
        events=(
            event(20, "watch", 12, how="late", resource="pods"),
            event(21, "edit", serving=0, spec={"replicas": 2}),
            event(22, "edit", serving=0, spec={"engine": {"image": "vllm/vllm-openai:v0.33.1"}}),
        ),
    )
    assert play(history).violation is None


def test_a_clock_that_goes_back_ends_no_tick() -> None:
    history = story(chat(), events=(event(20, "clock", 5, by=-60.0),))
    assert play(history).violation is None
