"""What must hold in every small world, whatever happens to it.

The world itself asserts at every action and every moment: memory is never over what the GPU has, pods that are leaving
counted; one engine starts at a time on a GPU and none while another stops; a replica is out of its Service before it is
stopped; exclusive engines are alone; namespaces never share a GPU.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpupack.decide.reconcile import reconcile
from gpupack.facts.observation import Cause
from gpupack.facts.serving import ServingKey

from ..strategies import SmallWorld, serving, small_worlds
from .world import World

quick = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
SETTLE = 400.0


def world_of(small: SmallWorld) -> World:
    loads = {each.key: load for each, load in zip(small.servings, small.loads, strict=True)}
    return World(small.gpus, small.servings, loads)


def content(world: World) -> set[tuple[ServingKey, str, int, str]]:
    """What the plan says, without the times at which it was said."""
    assert world.plan is not None
    return {(each.serving, each.gpu_uuid, each.slot, each.content_hash) for each in world.plan.placements}


@quick
@given(small_worlds())
def test_settled_stays_settled(small: SmallWorld) -> None:
    world = world_of(small).run(SETTLE)
    before = (world.plan, len(world.started), len(world.stopped))
    for _ in range(20):
        outcome = world.tick()
        assert not outcome.plan_changed
        assert outcome.actions == ()
        world.advance()
    assert (world.plan, len(world.started), len(world.stopped)) == before


@quick
@given(small_worlds(), st.sampled_from(("engines", "dcgm")), st.sampled_from((Cause.STALE, Cause.UNREACHABLE)))
def test_nothing_is_removed_while_data_is_missing(small: SmallWorld, what: str, cause: Cause) -> None:
    world = world_of(small).run(200.0)
    stopped, started = len(world.stopped), len(world.started)
    counted = {key: len(world.of(key)) for key in world.servings}
    world.blind[what] = cause
    if what == "engines":
        world.loads = dict.fromkeys(world.servings, 0.0)
    else:
        world.loads = {key: 10 * load for key, load in world.loads.items()}
    world.run(200.0)
    if what == "engines":
        assert len(world.stopped) == stopped
    for key, each in world.servings.items():
        floor = each.scaling.replicas if each.scaling.mode.value == "Manual" else each.scaling.min_replicas
        grown = len(world.of(key)) - max(counted[key], floor)
        assert grown <= 0 or len(world.started) == started, f"{key} grew without data"


@quick
@given(small_worlds())
def test_a_plan_that_changes_is_only_written(small: SmallWorld) -> None:
    world = world_of(small)
    for _ in range(60):
        outcome = world.tick()
        if outcome.plan_changed:
            assert {type(action).__name__ for action in outcome.actions} <= {"Tell"}
        world.advance()


@quick
@given(small_worlds())
def test_equal_observations_have_equal_outcomes(small: SmallWorld) -> None:
    world = world_of(small).run(60.0)
    assert reconcile(world.observe()) == reconcile(world.observe())


@quick
@given(small_worlds(), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.booleans()), max_size=60))
def test_a_crash_after_any_prefix_or_an_old_view_ends_where_the_calm_run_ends(
    small: SmallWorld, mishaps: list[tuple[int, int, bool]]
) -> None:
    """Each mishap is a tick on a view of so many ticks ago that dies after so many actions; then time goes by or not.

    Nothing loads the engines, so that the end depends on nothing but what is asked for.
    """
    still = SmallWorld(gpus=small.gpus, servings=small.servings, loads=tuple(0.0 for _ in small.servings))
    calm = world_of(still).run(SETTLE)
    world = world_of(still)
    views = []
    for age, done, time_goes_by in mishaps:
        views.append((world.observe(), world.version))
        observation, version = views[-1 - min(age, len(views) - 1)]
        outcome = reconcile(observation)
        if world.commit(outcome, version):
            world.perform(outcome.actions[:done])
        if time_goes_by:
            world.advance()
    world.run(SETTLE)
    assert content(world) == content(calm)


@quick
@given(small_worlds())
def test_a_plan_that_is_lost_under_load_is_adopted_and_nothing_moves(small: SmallWorld) -> None:
    world = world_of(small).run(SETTLE)
    settled = content(world)
    moved = (len(world.started), len(world.stopped))
    world.plan = None
    world.version += 1
    world.run(60.0)
    assert content(world) == settled
    assert (len(world.started), len(world.stopped)) == moved


@quick
@given(small_worlds(), st.data())
def test_any_history_of_edits_loads_and_losses_breaks_no_rule_and_settles(
    small: SmallWorld, data: st.DataObject
) -> None:
    world = world_of(small)
    for _ in range(8):
        keys = sorted(world.servings)
        what = data.draw(st.sampled_from(("load", "template", "delete pod", "wipe", "delete", "create", "shape")))
        if what == "load" and keys:
            world.loads[data.draw(st.sampled_from(keys))] = data.draw(st.sampled_from((0.0, 5.0, 50.0, 300.0)))
        elif what == "template" and keys:
            key = data.draw(st.sampled_from(keys))
            world.edit(key, replace(world.servings[key], template_hash=f"template{world.at:.0f}"[-10:]))
        elif what == "shape" and keys:
            key = data.draw(st.sampled_from(keys))
            batching = replace(world.servings[key].batching, fixed=data.draw(st.sampled_from((16, 64, 128))))
            world.edit(key, replace(world.servings[key], batching=batching))
        elif what == "delete pod" and world.pods:
            pod = world.pods[data.draw(st.sampled_from(sorted(world.pods)))]
            pod.deletion_at = pod.deletion_at or world.at
        elif what == "wipe":
            world.plan, world.version = None, world.version + 1
        elif what == "delete" and keys:
            del world.servings[data.draw(st.sampled_from(keys))]
        elif what == "create":
            new = serving(f"new-{len(keys)}", model="opt-1.3b", least=data.draw(st.integers(1, 3)))
            world.servings[new.key] = replace(new, uid=f"uid-{world.at}")
        world.run(data.draw(st.sampled_from((4.0, 20.0, 100.0))))
    world.run(2 * SETTLE)
    assert not world.tick().plan_changed
    assert {pod.placement.serving for pod in world.pods.values()} <= set(world.servings)
