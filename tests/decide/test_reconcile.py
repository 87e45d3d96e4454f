"""Stories of the loop in a small world: what a team would see over minutes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from gpupack.decide.reconcile import reconcile
from gpupack.facts.llm import Dtype
from gpupack.facts.observation import Cause, Holder, Phase, Refused
from gpupack.facts.serving import Mode, ServingKey, Sharing, SharingWish
from gpupack.plan import Condition, ConditionType, ServingStatus, Tell, Truth
from gpupack.units import GIB, Seconds

from ..strategies import QUICK, gpu, key, serving
from .world import READY_AFTER, World, finish_rate

CHAT = key("chat")


def status(world: World, of: ServingKey = CHAT) -> ServingStatus:
    assert world.outcome is not None
    return next(each for each in world.outcome.serving_statuses if each.serving == of)


def condition(world: World, kind: ConditionType, of: ServingKey = CHAT) -> Condition:
    return next(each for each in status(world, of).conditions if each.type is kind)


def where(world: World, of: ServingKey = CHAT) -> dict[str, int]:
    """Planned replicas by the number of the GPU."""
    assert world.plan is not None
    counts: dict[str, int] = {}
    for each in world.plan.placements:
        if each.serving == of:
            number = str(int(each.gpu_uuid[4:12]))
            counts[number] = counts.get(number, 0) + 1
    return counts


def packed_world(**changes: object) -> World:
    """One serving of small batches on two GPUs, so that several engines fit one GPU."""
    return World([gpu(0), gpu(1)], [serving("chat", batch=64, **changes)], {CHAT: 20.0})  # type: ignore[arg-type]


def test_replicas_are_added_until_bandwidth_saturates_and_then_another_gpu_is_opened() -> None:
    world = packed_world().run(60.0)
    assert where(world) == {"0": 1}
    world.loads[CHAT] = 70.0
    world.run(120.0)
    filled = where(world)["0"]
    assert filled >= 2
    world.loads[CHAT] = 150.0
    world.run(200.0)
    opened = [tell.message for tell in world.told if "is opened because" in tell.message]
    assert len(opened) == 1
    assert "DRAM traffic of GPU-00000000" in opened[0]
    assert set(where(world)) == {"0", "1"}


def test_a_load_above_the_whole_pool_stops_for_the_bandwidth_ceiling_with_its_margin() -> None:
    world = packed_world()
    world.loads[CHAT] = 2000.0
    world.run(400.0)
    packed = condition(world, ConditionType.PACKED)
    assert (packed.truth, packed.reason) == (Truth.TRUE, "BandwidthCeiling")
    now = status(world)
    assert now.decision_observed is not None
    assert now.decision_limit is not None
    assert now.decision_observed >= now.decision_limit
    assert now.decision_unit == "ratio"


def test_a_load_that_falls_closes_the_last_gpu_first_and_only_after_the_delay() -> None:
    world = packed_world()
    world.loads[CHAT] = 155.0
    world.run(800.0)
    assert set(where(world)) == {"0", "1"}
    world.stopped.clear()
    first = where(world)["0"]
    world.loads[CHAT] = 5.0
    fallen = world.at
    while not world.stopped:
        world.run(2.0)
    assert world.at - fallen >= QUICK.scale_down_delay
    while "1" in where(world):
        assert where(world)["0"] == first
        world.run(2.0)
    world.run(300.0)
    assert where(world) == {"0": 1}
    assert condition(world, ConditionType.PACKED).reason == "NotNeeded"


def test_nothing_is_written_and_nothing_done_when_nothing_changes() -> None:
    world = packed_world().run(120.0)
    statuses = world.tick().serving_statuses
    for _ in range(50):
        world.advance()
        outcome = world.tick()
        assert outcome.serving_statuses == statuses
        assert outcome.actions == ()
        assert outcome.wake_in == world.policy.tick


def test_what_is_in_the_way_stays_told_while_a_load_at_the_limit_asks_now_and_then() -> None:
    world = World([gpu(0)], [serving("chat", batch=64)], {CHAT: 20.0}).run(60.0)
    planned, shape = 3, world.plan.placements[0].shape
    rate = planned * finish_rate(serving("chat", batch=64), shape, gpu(0).kind, planned)
    world.loads[CHAT] = 0.87 * rate
    world.run(400.0)
    stop = world.reason(CHAT)
    assert (stop, where(world)["0"]) == ("BandwidthCeiling", planned)
    world.told.clear()
    for share in (0.83, 0.87, 0.83, 0.87):
        world.loads[CHAT] = share * rate
        world.run(60.0)
        assert world.reason(CHAT) == stop
    assert world.told == []
    world.loads[CHAT] = 0.7 * rate
    world.run(max(world.policy.rate_windows) + 60.0)
    assert world.reason(CHAT) == "DemandMet"


def test_the_first_count_comes_from_the_declared_rate() -> None:
    world = World([gpu(0), gpu(1)], [serving("chat", batch=64, rate=100.0)], {CHAT: 100.0})
    world.tick()
    world.tick()
    planned = 0
    for _ in range(20):
        world.run(2.0)
        assert world.plan is not None
        planned = max(planned, len(world.plan.placements))
    assert planned >= 3


def test_an_edit_rolls_one_replica_at_a_time_and_serves_throughout() -> None:
    world = packed_world(least=2).run(120.0)
    old = {pod.placement.name for pod in world.pods.values()}
    assert len(old) == 2
    world.edit(CHAT, replace(world.servings[CHAT], template_hash="template01"))
    for _ in range(60):
        world.run(2.0)
        serving_now = [pod for pod in world.of(CHAT) if pod.phase is Phase.READY and pod.in_service]
        assert len(serving_now) >= 2, "a replica went before its successor was ready"
    new = {pod.placement.name for pod in world.pods.values()}
    assert not new & old
    assert {pod.placement.template_hash for pod in world.pods.values()} == {"template01"}
    assert condition(world, ConditionType.PROGRESSING).truth is Truth.FALSE


def test_an_edit_without_room_for_both_replaces_in_place() -> None:
    big = serving("chat", model="llama-2-13b", itl=0.2)
    world = World([gpu(0, kind="A100-40GB")], [big]).run(80.0)
    assert world.ready == {"chat": 1}
    world.edit(CHAT, replace(big, template_hash="template01"))
    world.run(120.0)
    assert len(world.stopped) == 1
    assert [pod.placement.template_hash for pod in world.pods.values()] == ["template01"]


def test_a_replica_that_stays_pending_is_withdrawn_and_the_plan_goes_on_without_that_gpu() -> None:
    world = packed_world()
    world.stuck.add(gpu(0).uuid)
    world.run(QUICK.pending_deadline + 60.0)
    assert where(world) == {"1": 1}
    assert world.ready == {"chat": 1}
    assert any(tell.reason == "Withdrawn" and tell.warning for tell in world.told)


def test_a_bad_edit_keeps_the_replica_that_serves() -> None:
    world = World([gpu(0)], [serving("chat", batch=64)], {CHAT: 20.0}).run(60.0)
    world.stuck.add(gpu(0).uuid)
    world.edit(CHAT, replace(world.servings[CHAT], template_hash="template01"))
    world.run(QUICK.pending_deadline + 80.0)
    assert [pod.placement.template_hash for pod in world.of(CHAT) if pod.phase is Phase.READY] == ["template00"]


def test_an_edit_whose_gpu_is_broken_moves_to_another_gpu() -> None:
    world = packed_world().run(60.0)
    world.stuck.add(gpu(0).uuid)
    world.edit(CHAT, replace(world.servings[CHAT], template_hash="template01"))
    world.run(QUICK.pending_deadline + 80.0)
    assert where(world) == {"1": 1}
    assert [pod.placement.template_hash for pod in world.of(CHAT)] == ["template01"]


def test_a_foreign_claim_on_the_second_gpu_is_named() -> None:
    world = packed_world().run(60.0)
    world.holders.append(Holder(gpu_uuid=gpu(1).uuid, kind="ResourceClaim", name="research/training"))
    world.loads[CHAT] = 400.0
    world.run(200.0)
    assert set(where(world)) == {"0"}
    packed = condition(world, ConditionType.PACKED)
    assert (packed.truth, packed.reason) == (Truth.FALSE, "HeldByOthers")
    assert "ResourceClaim research/training" in packed.message


def test_memory_that_nobody_explains_holds_a_gpu() -> None:
    world = World([gpu(0)], [serving("chat")])
    seen = world.observe()
    used = replace(seen.gpus[0].fb_used, value=float(9 * GIB))  # type: ignore[call-arg]
    world.tick()
    world.tick()
    outcome = reconcile(
        replace(world.observe(), gpus=(replace(seen.gpus[0], fb_used=used),), plan=replace(world.plan, placements=()))  # type: ignore[type-var]
    )
    reasons = {verdict.reason.value: verdict for _, verdict in outcome.verdicts}
    assert reasons["HeldByOthers"].observed.value == 9 * GIB


def test_a_manual_count_goes_past_the_ceiling_and_says_so_but_never_past_memory() -> None:
    world = World([gpu(0)], [serving("chat", batch=64, replicas=5)], {CHAT: 300.0}).run(200.0)
    assert where(world) == {"0": 5}
    packed = condition(world, ConditionType.PACKED)
    assert (packed.truth, packed.reason) == (Truth.TRUE, "GoesPast")
    assert "BandwidthCeiling" in packed.message
    world.edit(CHAT, serving("chat", batch=64, replicas=60))
    world.run(900.0)
    assert world.reason(CHAT) == "Memory"
    assert status(world).decision_unit == "bytes"


def test_a_manual_count_prefers_a_gpu_on_which_it_goes_past_nothing() -> None:
    world = World([gpu(0), gpu(1)], [serving("chat", batch=64, replicas=5)], {CHAT: 300.0}).run(200.0)
    assert sum(where(world).values()) == 5
    assert set(where(world)) == {"0", "1"}


def test_advise_mode_computes_and_touches_nothing() -> None:
    world = World([gpu(0)], [serving("chat", mode=Mode.ADVISE)], {CHAT: 100.0}).run(60.0)
    assert not world.pods
    assert not world.claims
    assert not world.services
    now = status(world)
    assert now.max_num_seqs is not None
    assert now.engine_args
    assert now.freed_bytes is not None
    assert now.freed_bytes > 10 * GIB
    assert world.reason(CHAT) == "Advised"


def test_advise_mode_freezes_what_runs() -> None:
    world = packed_world(least=2).run(80.0)
    world.edit(CHAT, replace(world.servings[CHAT], mode=Mode.ADVISE, template_hash="template01"))
    world.run(100.0)
    assert world.ready == {"chat": 2}
    assert not world.stopped


def test_two_models_share_a_gpu_and_two_namespaces_do_not() -> None:
    one, two = serving("one", batch=16), serving("two", batch=16, model="qwen2.5-0.5b")
    stranger = serving("three", namespace="other", batch=16)
    world = World([gpu(0), gpu(1)], [one, two, stranger]).run(120.0)
    assert where(world, one.key) == where(world, two.key)
    assert where(world, stranger.key) != where(world, one.key)
    assert len(world.claims) == 2
    claim = next(each for each in world.claims.values() if each.namespace == "team")
    assert set(claim.owners) == {one.uid, two.uid}


def test_an_exclusive_serving_is_alone_on_its_gpu() -> None:
    alone, other = serving("alone", sharing=SharingWish.EXCLUSIVE, batch=16), serving("other", batch=16)
    world = World([gpu(0), gpu(1)], [alone, other]).run(120.0)
    assert where(world, alone.key) != where(world, other.key)
    assert condition(world, ConditionType.PACKED, alone.key).reason == "NotNeeded"
    third = serving("third", sharing=SharingWish.EXCLUSIVE)
    world.servings[third.key] = third
    world.run(60.0)
    packed = condition(world, ConditionType.PACKED, third.key)
    assert (packed.truth, packed.reason) == (Truth.FALSE, "HeldByOthers")


def test_a_wish_that_the_pool_does_not_allow_is_named() -> None:
    policy = replace(QUICK, sharing=frozenset({Sharing.EXCLUSIVE}))
    world = World([gpu(0)], [serving("chat", sharing=SharingWish.MPS)], policy=policy).run(10.0)
    packed = condition(world, ConditionType.PACKED)
    assert (packed.truth, packed.reason) == (Truth.FALSE, "SharingNotAllowed")
    assert not world.pods


def test_bfloat16_where_no_gpu_computes_in_it_is_refused_with_the_field_and_the_fix() -> None:
    world = World([gpu(0, kind="T4")], [serving("chat", dtype=Dtype.BFLOAT16)]).run(10.0)
    packed = condition(world, ConditionType.PACKED)
    assert (packed.truth, packed.reason) == (Truth.FALSE, "DtypeNotSupported")
    assert packed.message == "spec.model.dtype is bfloat16, in which T4 cannot compute; write float16 or float32."
    assert not world.pods
    world.edit(CHAT, serving("chat", dtype=Dtype.FLOAT16))
    world.run(60.0)
    assert world.ready == {"chat": 1}


def test_bfloat16_goes_to_the_gpus_of_a_mixed_pool_that_compute_in_it() -> None:
    world = World([gpu(0, kind="T4"), gpu(1)], [serving("chat", dtype=Dtype.BFLOAT16)]).run(60.0)
    assert where(world) == {"1": 1}


def test_a_serving_that_fits_nowhere_says_by_how_much_and_disturbs_nobody() -> None:
    small, large = serving("small"), serving("large", model="llama-2-13b")
    world = World([gpu(0, kind="L4")], [small, large]).run(80.0)
    packed = condition(world, ConditionType.PACKED, large.key)
    assert (packed.truth, packed.reason) == (Truth.FALSE, "Memory")
    assert "too much" in packed.message
    assert world.ready == {"small": 1}
    assert len(world.started) == 1


def test_a_promise_that_no_batch_keeps_runs_at_the_lowest_latency_and_says_the_best_reachable() -> None:
    world = World([gpu(0)], [serving("chat", itl=0.0005)]).run(60.0)
    met = condition(world, ConditionType.SLO_MET)
    assert (met.truth, met.reason) == (Truth.FALSE, "Unreachable")
    assert "best reachable" in met.message
    assert world.ready == {"chat": 1}


def test_a_promise_that_is_kept_is_told_from_live_windows() -> None:
    world = packed_world().run(120.0)
    assert condition(world, ConditionType.SLO_MET).truth is Truth.TRUE
    world.loads[CHAT] = 0.0
    world.run(120.0)
    assert condition(world, ConditionType.SLO_MET).truth is Truth.UNKNOWN


def test_without_framebuffer_readings_a_gpu_takes_one_replica() -> None:
    world = World([gpu(0), gpu(1)], [serving("chat", batch=16, least=3)])
    world.blind["dcgm"] = Cause.NO_SERIES
    world.run(120.0)
    assert where(world) == {"0": 1, "1": 1}
    assert world.reason(CHAT) == "Memory"
    assert "takes 1 replica" in status(world).decision_message


def test_replicas_up_to_the_least_count_start_on_declared_data() -> None:
    world = World([gpu(0)], [serving("chat", batch=16, least=2)], {CHAT: 500.0})
    world.blind = {"dcgm": Cause.STALE, "engines": Cause.UNREACHABLE}
    world.run(200.0)
    assert where(world) == {"0": 2}
    assert world.reason(CHAT) == "DataMissing"


def test_engine_readings_that_go_missing_hold_everything() -> None:
    world = packed_world()
    world.loads[CHAT] = 70.0
    world.run(150.0)
    before = where(world)
    world.blind["engines"] = Cause.UNREACHABLE
    world.loads[CHAT] = 0.0
    world.run(400.0)
    assert where(world) == before
    assert world.reason(CHAT) == "DataMissing"
    assert condition(world, ConditionType.PACKED).truth is Truth.UNKNOWN


def test_stale_mirrors_hold_everything_and_only_the_pool_says_so() -> None:
    world = packed_world().run(60.0)
    world.stale = ("pods",)
    outcome = world.tick()
    assert (outcome.plan_changed, outcome.actions, outcome.serving_statuses) == (False, (), ())
    assert outcome.pool_status.plan == world.plan
    ready = next(each for each in outcome.pool_status.conditions if each.type is ConditionType.READY)
    assert (ready.truth, ready.reason) == (Truth.UNKNOWN, "DataMissing")


def test_a_lost_plan_is_not_written_as_an_empty_one_while_mirrors_are_stale() -> None:
    world = packed_world().run(60.0)
    world.stale, world.plan = ("pods",), None
    assert world.tick().pool_status.plan is None


def test_a_pool_that_may_not_act_does_nothing() -> None:
    world = packed_world()
    outcome = reconcile(replace(world.observe(), pool_problem="GPU x is in the older pool a already"))
    assert outcome.actions == ()
    assert not outcome.plan_changed
    accepted = next(each for each in outcome.pool_status.conditions if each.type is ConditionType.ACCEPTED)
    assert (accepted.truth, accepted.message) == (Truth.FALSE, "GPU x is in the older pool a already")


def test_gpus_of_unknown_products_are_named_by_the_pool_and_stop_nobody() -> None:
    world = packed_world()
    outcome = reconcile(replace(world.observe(), unknown_products=("Tesla V100", "Tesla P4")))
    known = next(each for each in outcome.pool_status.conditions if each.type is ConditionType.GPUS_KNOWN)
    assert (known.truth, known.reason) == (Truth.FALSE, "UnknownProduct")
    assert "Tesla V100 and Tesla P4" in known.message
    assert world.run(60.0).ready == {"chat": 1}


def test_readings_that_a_new_process_has_not_taken_yet_change_nothing_that_was_said() -> None:
    world = packed_world().run(60.0)
    said = world.plan
    world.blind["engines"] = Cause.TOO_SHORT
    began = reconcile(replace(world.observe(), watched_since=Seconds(world.at)))
    assert (began.plan_changed, began.pool_status.plan) == (False, said)
    long_ago = reconcile(replace(world.observe(), watched_since=Seconds(world.at - 600.0)))
    assert long_ago.pool_status.plan is not None
    assert [each.reason for each in long_ago.pool_status.plan.records] == ["DataMissing"]


def test_a_deleted_serving_leaves_the_plan_and_holds_its_memory_until_its_pods_are_gone() -> None:
    one, two = serving("one", model="llama-2-13b", itl=0.2), serving("two", model="llama-2-13b", itl=0.2)
    world = World([gpu(0, kind="A100-40GB")], [one, two]).run(80.0)
    assert world.ready == {"one": 1}
    del world.servings[one.key]
    world.run(80.0)
    assert world.ready == {"two": 1}
    assert world.stopped == [], "the garbage collector deletes what a deleted serving leaves"


def test_forty_servings_on_twenty_gpus_are_up_in_the_time_of_two_starts() -> None:
    servings = [serving(f"serving-{number:02d}", batch=64, cpu_cores=2) for number in range(40)]
    gpus = [gpu(number, node=f"node-{number}") for number in range(20)]
    world = World(gpus, servings, cores=4.0).run(2 * READY_AFTER)
    assert sum(world.ready.values()) == 40
    assert world.plan is not None
    assert set(Counter(each.gpu_uuid for each in world.plan.placements).values()) == {2}


def test_a_replica_behind_others_that_start_on_its_gpu_is_given_the_whole_deadline_from_its_turn() -> None:
    policy = replace(QUICK, pending_deadline=Seconds(20.0))
    servings = [serving(f"serving-{number}", batch=16) for number in range(3)]
    world = World([gpu(0)], servings, policy=policy).run(3 * READY_AFTER + 10.0)
    assert sum(world.ready.values()) == 3
    assert not [tell for tell in world.told if tell.warning]


def test_a_claim_goes_when_nobody_uses_it() -> None:
    world = packed_world()
    world.loads[CHAT] = 150.0
    world.run(240.0)
    assert len(world.claims) == 2
    world.loads[CHAT] = 5.0
    world.run(600.0)
    assert [claim.gpu_uuid for claim in world.claims.values()] == [gpu(0).uuid]


def test_the_budget_keeps_all_but_one_replica() -> None:
    world = packed_world(least=3).run(120.0)
    assert world.budgets == {CHAT: 2}
    assert world.services == {CHAT}


def test_a_refused_spec_leaves_what_runs_alone() -> None:
    world = packed_world().run(60.0)
    del world.servings[CHAT]
    world.refused.append(
        Refused(key=CHAT, uid="uid-team-chat", generation=2, field="spec.model.name", problem="unknown", fix="name one")
    )
    for pod in world.pods.values():
        pod.serving = replace(pod.serving)
    before = world.plan
    world.tick()
    accepted = condition(world, ConditionType.ACCEPTED)
    assert (accepted.truth, accepted.reason) == (Truth.FALSE, "Invalid")
    assert "spec.model.name" in accepted.message
    assert world.plan is not None
    assert before is not None
    assert world.plan.placements == before.placements
    assert not world.stopped


def test_engines_with_other_blocks_than_planned_are_named() -> None:
    world = packed_world().run(60.0)
    seen = world.observe()
    engine = seen.engines[0]
    blocks = replace(engine.kv_blocks, value=17.0)  # type: ignore[call-arg]
    outcome = reconcile(replace(seen, engines=(replace(engine, kv_blocks=blocks),)))
    ready = next(each for each in outcome.serving_statuses[0].conditions if each.type is ConditionType.READY)
    assert ready.reason == "EngineMismatch"
    assert engine.replica in ready.message


def test_events_are_told_once_and_with_the_plan_that_they_tell_of() -> None:
    world = packed_world().run(60.0)
    assert [tell.reason for tell in world.told] == ["Added", "DemandMet", "DemandMet", "Confirmed"]
    world.run(100.0)
    assert len(world.told) == 4
    assert all(isinstance(tell, Tell) and tell.message for tell in world.told)


@pytest.mark.parametrize("most", [1, 2])
def test_the_pool_uses_no_more_gpus_than_allowed(most: int) -> None:
    policy = replace(QUICK, max_gpus=most)
    world = World([gpu(0), gpu(1), gpu(2)], [serving("chat", batch=64)], {CHAT: 2000.0}, policy=policy).run(400.0)
    assert len(where(world)) == most


def test_an_equal_wish_for_more_replicas_than_the_maximum_stops_there() -> None:
    world = packed_world(most=2)
    world.loads[CHAT] = 400.0
    world.run(200.0)
    assert sum(where(world).values()) == 2
    assert world.reason(CHAT) == "MaxReplicas"


def test_a_lowered_maximum_takes_replicas_away_at_once() -> None:
    world = packed_world()
    world.loads[CHAT] = 150.0
    world.run(240.0)
    assert sum(where(world).values()) > 2
    world.edit(CHAT, serving("chat", batch=64, most=2))
    world.run(60.0)
    assert sum(where(world).values()) == 2


def test_an_edited_promise_asks_for_another_shape_and_rolls_to_it() -> None:
    world = World([gpu(0)], [serving("chat", itl=0.040)]).run(60.0)
    before = status(world).max_num_seqs
    world.edit(CHAT, serving("chat", itl=0.010))
    world.run(120.0)
    after = status(world).max_num_seqs
    assert before is not None
    assert after is not None
    assert after < before
    assert {pod.placement.shape.max_num_seqs for pod in world.pods.values()} == {after}


def test_a_crashing_engine_does_not_block_its_gpu_for_ever() -> None:
    world = packed_world()
    world.run(4.0)
    pod = next(iter(world.pods.values()))
    pod.restarts, pod.created_at = 3, world.at + 10_000.0
    world.tick()
    assert world.plan is not None
    assert [each.gpu_uuid for each in world.plan.withdrawn] == [gpu(0).uuid]


def test_a_deleted_pod_comes_back_under_its_name() -> None:
    world = packed_world().run(60.0)
    name = world.started[0]
    next(iter(world.pods.values())).deletion_at = Seconds(world.at)
    world.run(60.0)
    assert world.started == [name, name]
    assert world.ready == {"chat": 1}


def test_a_pod_that_failed_after_a_while_is_replaced_under_its_name() -> None:
    world = packed_world().run(100.0)
    name = world.started[0]
    next(iter(world.pods.values())).phase = Phase.FAILED
    world.run(60.0)
    assert world.started == [name, name]
    assert world.ready == {"chat": 1}


def test_a_gpu_whose_node_is_gone_loses_its_replicas_to_another() -> None:
    world = packed_world().run(60.0)
    seen = world.observe()
    pod = replace(seen.replicas[0], phase=Phase.STOPPING, deletion_at=Seconds(world.at))
    dead = tuple(replace(each, node_ready=each.gpu.uuid != gpu(0).uuid) for each in seen.gpus)
    outcome = reconcile(replace(seen, replicas=(pod,), gpus=dead))
    assert outcome.pool_status.plan is not None
    assert [each.reason for each in outcome.pool_status.plan.records] == ["Withdrawn"]
    after = reconcile(replace(seen, replicas=(pod,), gpus=dead, plan=outcome.pool_status.plan))
    assert after.pool_status.plan is not None
    assert [each.gpu_uuid for each in after.pool_status.plan.placements] == [gpu(1).uuid]


def test_a_change_of_sharing_replaces_the_claim_before_the_pod() -> None:
    world = World([gpu(0)], [serving("chat", batch=64)], {CHAT: 5.0}).run(60.0)
    world.edit(CHAT, serving("chat", batch=64, sharing=SharingWish.EXCLUSIVE))
    world.run(60.0)
    assert [claim.sharing for claim in world.claims.values()] == [Sharing.EXCLUSIVE]
    assert world.ready == {"chat": 1}
    assert len(world.started) == 2


def test_memory_of_a_replica_that_has_just_gone_does_not_change_what_is_said() -> None:
    world = packed_world().run(60.0)
    seen = world.observe()
    late = tuple(replace(each, fb_used=replace(each.fb_used, value=float(30 * GIB))) for each in seen.gpus)  # type: ignore[call-arg]
    assert not reconcile(replace(seen, gpus=late)).plan_changed
