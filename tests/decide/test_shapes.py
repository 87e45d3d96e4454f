"""Which shape a serving has: asked once, kept, and asked anew for a reason that lasts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gpupack.decide.prospect import Prospects, rounded
from gpupack.decide.shapes import choose, digest_of
from gpupack.facts.belief import Belief
from gpupack.facts.gpu import Gpu
from gpupack.facts.interpretation import Facts, interpret
from gpupack.facts.llm import Dtype
from gpupack.facts.observation import NodeSeen, Phase, Refused, ReplicaSeen
from gpupack.facts.placement import ChosenShape, FormerShape, Lesson, Plan
from gpupack.facts.policy import Policy
from gpupack.facts.serving import Lengths, Serving, Shape, Sharing, SharingWish, Slo, Statistic
from gpupack.perf.memory import replica_memory, utilization_hundredths
from gpupack.units import GIB, Bytes, Ratio, Seconds

from ..kube.objects import BELIEF
from ..strategies import NOON, QUICK, gpu, key, serving
from .world import World

CHAT = key("chat")
PATIENT = replace(QUICK, shape_interval=Seconds(200.0), shape_hold=Seconds(60.0))


def shape(world: World) -> Shape:
    assert world.plan is not None
    return next(each.shape for each in world.plan.shapes if each.serving == CHAT)


def test_live_lengths_change_the_shape_only_for_a_gain_that_lasts_and_not_too_often() -> None:
    world = World([gpu(0)], [serving("chat", itl=0.012)], {CHAT: 20.0}, policy=PATIENT).run(60.0)
    first = shape(world)
    world.live_lengths[CHAT] = (128.0, 64.0)
    world.run(100.0)
    assert shape(world) == first, "not before the interval is over"
    world.run(60.0)
    assert world.plan is not None
    assert shape(world) == first, "not before the gain has held"
    world.run(120.0)
    assert shape(world).kv_cache_memory_bytes != first.kv_cache_memory_bytes
    assert {pod.placement.shape for pod in world.pods.values()} == {shape(world)}
    again = shape(world)
    world.live_lengths[CHAT] = (512.0, 256.0)
    world.run(100.0)
    assert shape(world) == again, "at most once an interval"


def test_a_gain_that_does_not_last_changes_nothing() -> None:
    world = World([gpu(0)], [serving("chat", itl=0.012)], {CHAT: 20.0}, policy=PATIENT).run(210.0)
    first = shape(world)
    for _ in range(4):
        world.live_lengths[CHAT] = (128.0, 64.0)
        world.run(60.0)
        world.live_lengths[CHAT] = (512.0, 256.0)
        world.run(120.0)
    assert shape(world) == first


def test_the_digest_stands_for_what_was_declared_and_a_shape_depends_on() -> None:
    base = serving("chat")
    digest = digest_of(base, Sharing.MPS)
    assert digest_of(replace(base, template_hash="template99", generation=7), Sharing.MPS) == digest
    assert digest_of(serving("chat", itl=0.02), Sharing.MPS) != digest
    assert digest_of(serving("chat", batch=8), Sharing.MPS) != digest
    assert digest_of(base, Sharing.EXCLUSIVE) != digest


def test_what_runs_when_the_plan_was_lost_keeps_its_shape() -> None:
    world = World([gpu(0)], [serving("chat", batch=64)], {CHAT: 20.0}).run(60.0)
    running = shape(world)
    world.servings[CHAT] = serving("chat", batch=32)
    facts = interpret(world.observe())
    found = choose(facts, Prospects(facts), ())
    assert [each.shape for each in found] == [running]


def test_lengths_are_predicted_with_in_steps() -> None:
    assert rounded(512.0) == rounded(518.0)
    assert abs(rounded(512.0) / 512.0 - 1.0) < 0.026
    assert rounded(0.0) == 0.0


HOUR = QUICK.shape_interval
L4, T4, H100 = gpu(8, "L4", node="node-1"), gpu(9, "T4", node="node-2"), gpu(0)
SLOW = Shape(
    max_num_seqs=2, kv_cache_memory_bytes=Bytes(GIB), max_num_batched_tokens=2048, max_model_len=4096,
)  # fmt: skip
"""What fits everywhere and does little: any advice is better by far."""


def facts_of(*servings: Serving, gpus: tuple[Gpu, ...] = (H100,), **changes: Any) -> Facts:
    """A pool without a replica, but with whatever else is said."""
    return replace(interpret(World(gpus, servings).observe()), **changes)


def chosen(facts: Facts, *kept: ChosenShape) -> list[ChosenShape]:
    return list(choose(facts, Prospects(facts), kept))


def former(of: Serving, kind: str = "H100-80GB", **fields: Any) -> ChosenShape:
    """A slow shape that was chosen two hours ago for what the serving says now."""
    given: dict[str, Any] = {
        "shape": SLOW, "replicas_per_gpu": 1, "utilization_hundredths": 9, "inputs": digest_of(of, Sharing.MPS),
        "chosen_at": Seconds(NOON - 2 * HOUR), "slo": of.slo,
    }  # fmt: skip
    return ChosenShape(serving=of.key, gpu_kind=kind, **{**given, **fields})


def lesson(of: Serving, overhead: int) -> Plan:
    return Plan(lessons=(Lesson(serving=of.key, gpu_kind="H100-80GB", template_hash="", overhead=Bytes(overhead)),))


FIXED = serving("chat", batch=64)


@pytest.mark.parametrize(
    ("of", "kind", "kept"),
    [
        pytest.param("refused", "H100-80GB", True, id="its spec is refused for now"),
        pytest.param("refused", "A10", True, id="its spec is refused and the GPUs are away"),
        pytest.param("chat", "A10", True, id="the GPUs are away"),
        pytest.param("gone", "H100-80GB", False, id="it was deleted"),
        pytest.param("gone", "A10", False, id="it was deleted and the GPUs are away"),
        pytest.param("watch", "H100-80GB", False, id="it only observes now"),
    ],
)
def test_a_shape_is_kept_while_its_serving_may_be_back_and_forgotten_with_it(of: str, kind: str, kept: bool) -> None:
    watch = replace(serving("watch", batch=64), observes=True)
    refused = Refused(key=key("refused"), uid="", generation=1, field="spec", problem="", fix="")
    facts = facts_of(FIXED, watch, refused={refused.key: refused})
    old = former(serving(of, batch=64), kind, inputs="another")
    assert (old in chosen(facts, old)) == kept


def test_eight_shapes_are_asked_for_a_tick_and_the_rest_keep_theirs_until_it_is_their_turn() -> None:
    every = [serving(f"chat-{number:02}", batch=64) for number in range(10)]
    kept = [former(each, inputs="another" if number else digest_of(each, Sharing.MPS))
            for number, each in enumerate(every)]  # fmt: skip
    facts = facts_of(*every)
    first = chosen(facts, *kept)
    assert [each.chosen_at == NOON for each in first] == [False] + [True] * 8 + [False]
    assert first[9] == kept[9]
    second = chosen(facts, *first)
    assert second[:9] == first[:9]
    assert second[9].chosen_at == NOON
    assert len(chosen(facts)) == 8, "who has none yet waits without one"


@pytest.mark.parametrize(
    ("asked", "kinds"),
    [
        pytest.param(FIXED, ["H100-80GB", "L4"], id="bfloat16 needs another GPU than a T4"),
        pytest.param(serving("chat", batch=64, dtype=Dtype.FLOAT16), ["H100-80GB", "L4", "T4"], id="float16"),
        pytest.param(serving("chat", batch=64, sharing=SharingWish.MIG), [], id="slices, of which there are none"),
        pytest.param(serving("chat", batch=64, sharing=SharingWish.EXCLUSIVE), [], id="what the pool forbids"),
        pytest.param(replace(FIXED, observes=True), [], id="what only observes"),
    ],
)
def test_each_kind_of_gpu_that_can_run_it_has_a_shape(asked: Serving, kinds: list[str]) -> None:
    policy = replace(QUICK, sharing=frozenset({Sharing.MPS, Sharing.MIG}))
    facts = facts_of(asked, gpus=(H100, gpu(1), L4, T4), policy=policy)
    assert [each.gpu_kind for each in chosen(facts)] == kinds


def test_a_serving_that_may_not_share_as_it_wishes_is_not_asked_about_at_all() -> None:
    asked = serving("chat", batch=64, sharing=SharingWish.MPS)
    policy = replace(QUICK, sharing=frozenset({Sharing.EXCLUSIVE}))
    assert chosen(facts_of(asked, policy=policy)) == []


def test_the_answer_says_what_it_was_asked_for_and_what_cannot_be_reached() -> None:
    (easy,) = chosen(facts_of(FIXED))
    assert easy == ChosenShape(
        serving=CHAT, gpu_kind="H100-80GB", shape=easy.shape, replicas_per_gpu=easy.replicas_per_gpu,
        utilization_hundredths=easy.utilization_hundredths, inputs=digest_of(FIXED, Sharing.MPS), chosen_at=NOON,
        slo=FIXED.slo,
    )  # fmt: skip
    assert len(easy.inputs) == 10
    (hard,) = chosen(facts_of(serving("chat", batch=64, itl=0.001)))
    assert hard.unreachable is not None
    assert hard.unreachable > 0.001


def test_what_the_user_changes_is_asked_at_once_whatever_runs() -> None:
    world = World([H100], [FIXED], {CHAT: 20.0}).run(60.0)
    assert world.plan is not None
    world.servings[CHAT] = serving("chat", batch=32)
    (found,) = chosen(interpret(world.observe()), *world.plan.shapes)
    assert found.shape.max_num_seqs == 32


def _running(**fields: Any) -> ReplicaSeen:
    given: dict[str, Any] = {
        "name": "b", "uid": "", "serving": CHAT, "gpu_uuid": H100.uuid, "slot": 0, "sharing": Sharing.MPS,
        "shape": SLOW, "template_hash": "", "content_hash": "", "phase": Phase.READY, "created_at": NOON,
        "ready_at": NOON, "deletion_at": None, "in_service": True, "address": "", "restarts": 0,
    }  # fmt: skip
    return ReplicaSeen(**{**given, **fields})


OTHER = replace(SLOW, max_num_seqs=3)


@pytest.mark.parametrize(
    ("beside", "kept"),
    [
        pytest.param({"created_at": Seconds(NOON - 1.0)}, SLOW, id="an older one"),
        pytest.param({"created_at": Seconds(NOON + 1.0)}, OTHER, id="a younger one"),
        pytest.param({"name": "a"}, SLOW, id="one as old, earlier by name"),
        pytest.param({"name": "c"}, OTHER, id="one as old, later by name"),
        pytest.param({"name": "c", "deletion_at": NOON}, SLOW, id="one that leaves"),
        pytest.param({"name": "c", "gpu_uuid": "GPU-gone"}, SLOW, id="one on a GPU that is away"),
        pytest.param({"name": "c", "gpu_uuid": L4.uuid}, SLOW, id="one on another kind of GPU"),
    ],
)
def test_where_the_plan_was_lost_the_youngest_that_stays_gives_its_shape(beside: dict[str, Any], kept: Shape) -> None:
    replicas = (_running(), _running(shape=OTHER, **beside))
    facts = facts_of(FIXED, gpus=(H100, L4), replicas_of={CHAT: replicas})
    found = {each.gpu_kind: each for each in chosen(facts)}
    assert found["H100-80GB"].shape == kept
    assert found["H100-80GB"].utilization_hundredths == utilization_hundredths(
        replica_memory(FIXED.llm, FIXED.dtype, kept, H100.kind).total, H100.kind
    )


def test_memory_that_a_start_was_seen_to_need_is_in_the_answer_and_restarts_nobody() -> None:
    old = former(FIXED)
    facts = facts_of(FIXED, plan=lesson(FIXED, 8 * GIB))
    (found,) = chosen(facts, old)
    total = Bytes(replica_memory(FIXED.llm, FIXED.dtype, SLOW, H100.kind).total + 8 * GIB)
    assert found.shape == SLOW
    assert found.utilization_hundredths == utilization_hundredths(total, H100.kind)
    assert chosen(facts, found) == [found], "it is asked for a lesson once"
    (fresh,) = chosen(facts)
    (unknown,) = chosen(facts_of(FIXED))
    assert fresh.utilization_hundredths == unknown.utilization_hundredths + 10, "8 GiB of 80 for who has none, too"
    (afterwards,) = chosen(facts_of(FIXED), found)
    assert afterwards == unknown, "a lesson that is forgotten is asked without"
    (edited,) = chosen(facts, replace(old, inputs="another"))
    assert edited.shape == fresh.shape, "what the user changed as well is a new question"


def test_a_shape_that_does_not_fit_with_what_was_learnt_is_given_up() -> None:
    alone = replica_memory(FIXED.llm, FIXED.dtype, SLOW, H100.kind).total
    room = H100.kind.memory_bytes - QUICK.gpu_reserve - alone
    (kept,) = chosen(facts_of(FIXED, plan=lesson(FIXED, room)), former(FIXED))
    (given_up,) = chosen(facts_of(FIXED, plan=lesson(FIXED, room + 1)), former(FIXED))
    assert (kept.shape, given_up.shape == SLOW) == (SLOW, False)


def test_the_cores_of_the_largest_node_with_that_kind_of_gpu_bound_how_many_share_one() -> None:
    """Engines of two cores each."""
    small = serving("chat", model="qwen2.5-0.5b", itl=0.060, batch=64)

    def most(**cores: float) -> dict[str, int]:
        nodes = {name.replace("_", "-"): _node(name.replace("_", "-"), count) for name, count in cores.items()}
        facts = facts_of(small, gpus=(H100, gpu(1, node="node-3"), L4), nodes=nodes)
        return {each.gpu_kind: each.replicas_per_gpu for each in chosen(facts)}

    free = most()
    assert free["H100-80GB"] > 2, "without a node that tells, cores bound nothing"
    assert most(node_0=4.0, node_3=4.0, node_1=64.0)["H100-80GB"] == 2
    assert most(node_0=2.0, node_3=4.0) == {**free, "H100-80GB": 2}
    assert most(node_0=4.0) == {**free, "H100-80GB": 2}, "a node that is not there yet does not count"
    assert most(node_1=4.0)["H100-80GB"] == free["H100-80GB"]


def _node(name: str, cores: float) -> NodeSeen:
    return NodeSeen(name=name, ready=True, cpu_cores=cores, cpu_cores_of_others=0.0)


SHORT = Lengths(input_mean=128.0, output_mean=64.0)


def reconsidered(
    of: Serving = FIXED, *, live: Lengths | None = SHORT, policy: Policy = QUICK, plan: Plan | None = None,
    **old: Any,
) -> tuple[ChosenShape, ChosenShape]:  # fmt: skip
    """What becomes of a shape of two hours ago under these live lengths, and that shape."""
    facts = facts_of(of, policy=policy, plan=plan)
    prospects = Prospects(facts)
    prospects.lengths = {of.key: live or of.lengths}
    was = former(of, **old)
    (found,) = choose(facts, prospects, [was])
    return found, was


def test_live_lengths_or_what_was_learnt_begin_a_wait_and_nothing_else_does() -> None:
    for found, was in (reconsidered(), reconsidered(replace(FIXED, learned=(_belief(),)), live=None)):
        assert found == replace(was, better_since=NOON)
    found, was = reconsidered(live=None)
    assert found == was
    found, was = reconsidered(live=None, better_since=Seconds(NOON - 5.0))
    assert found == replace(was, better_since=None), "who is as was asked waits no longer"


def _belief() -> Belief:
    return replace(BELIEF, key=replace(BELIEF.key, namespace=CHAT.namespace))


@pytest.mark.parametrize(("ago", "asked"), [(HOUR - 1.0, False), (HOUR, True)])
def test_a_shape_stands_for_an_interval(ago: float, asked: bool) -> None:
    found, _ = reconsidered(chosen_at=Seconds(NOON - ago))
    assert (found.better_since is not None) == asked


@pytest.mark.parametrize(("held", "changed"), [(QUICK.shape_hold - 1.0, False), (QUICK.shape_hold, True)])
def test_a_gain_that_has_held_for_long_enough_changes_the_shape_and_remembers_the_old_one(
    held: float, changed: bool
) -> None:
    since = Seconds(NOON - held)
    found, was = reconsidered(better_since=since, replicas_per_gpu=1)
    if not changed:
        assert found == was
        return
    assert (found.shape.max_num_seqs, found.chosen_at, found.better_since, found.inputs) == (64, NOON, None, was.inputs)
    assert found.was == FormerShape(shape=SLOW, replicas_per_gpu=1, utilization_hundredths=9)


def test_a_count_alone_changes_nothing() -> None:
    now, _ = reconsidered(better_since=Seconds(NOON - HOUR))
    again, was = reconsidered(shape=now.shape)
    assert again == was


def test_a_gain_that_is_too_small_changes_nothing() -> None:
    found, was = reconsidered(policy=replace(QUICK, shape_gain=Ratio(1000.0)))
    assert found == was


def test_what_would_not_fit_is_no_better_shape() -> None:
    found, was = reconsidered(
        plan=lesson(FIXED, 90 * GIB), inputs=f"{digest_of(FIXED, Sharing.MPS)}+{90 * GIB}", utilization_hundredths=99
    )
    assert found == was


FAST = Shape(max_num_seqs=1024, kv_cache_memory_bytes=Bytes(60 * GIB), max_num_batched_tokens=2048, max_model_len=4096)
"""More tokens a second than any smaller batch, each of them late."""


@pytest.mark.parametrize(
    ("promise", "better"),
    [
        pytest.param(Slo(itl=Seconds(0.008), ttft=None, statistic=Statistic.P95), True, id="gaps that it breaks"),
        pytest.param(Slo(itl=Seconds(1.0), ttft=None, statistic=Statistic.P95), False, id="gaps that it keeps"),
        pytest.param(Slo(itl=None, ttft=Seconds(1.0), statistic=Statistic.P95), False, id="none on gaps"),
        pytest.param(None, False, id="none that is known"),
    ],
)
def test_a_shape_that_breaks_its_promise_is_worth_nothing(promise: Slo | None, better: bool) -> None:
    found, was = reconsidered(replace(FIXED, slo=promise), shape=FAST)
    assert found == replace(was, better_since=NOON if better else None)


def test_where_no_shape_keeps_the_promise_the_one_that_runs_stays() -> None:
    found, was = reconsidered(serving("chat", batch=64, itl=0.0001))
    assert found == was
