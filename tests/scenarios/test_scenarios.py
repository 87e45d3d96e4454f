"""One runner for every story in this folder: what is seen, and what must be decided about it.

A story is a YAML file titled by a sentence. Its world is built here and refused if it could not exist: more memory than
a GPU has, two engines starting on one, a reading that no counter gives. What is not said is ordinary: fresh readings
that agree with each other, Ready replicas that are planned, nobody else on a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpupack.decide.board import Board
from gpupack.decide.experiment import company, inputs_of
from gpupack.decide.prospect import Prospects
from gpupack.decide.reconcile import reconcile
from gpupack.facts.experiment import Compared, Experiment, Inputs, Judgement, Standing, Undone
from gpupack.facts.gpu import Gpu
from gpupack.facts.interpretation import interpret
from gpupack.facts.observation import (
    Cause,
    ClaimSeen,
    EngineSeen,
    EngineWindow,
    GapSeen,
    GpuSeen,
    Holder,
    Measured,
    Missing,
    NodeSeen,
    Observation,
    Phase,
    Reading,
    ReplicaSeen,
    ServiceSeen,
)
from gpupack.facts.placement import Placement, Plan
from gpupack.facts.policy import Policy
from gpupack.facts.serving import BLOCK_TOKENS, Mode, Serving, ServingKey, Sharing, SharingWish
from gpupack.perf.memory import replica_memory, utilization_hundredths
from gpupack.plan import Outcome
from gpupack.units import GIB, PerSecond, Ratio, Seconds

from ..decide.world import itl as itl_of_batch
from ..strategies import NOON, gpu, serving

STORIES = sorted(Path(__file__).parent.glob("*.yaml"))


class ImpossibleWorldError(Exception):
    """A story that could not happen proves nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    title: str
    observation: Observation
    ticks: int
    expected: dict[str, Any]


def story_of(text: str) -> Story:
    """The story of one file. Raises ImpossibleWorldError, or KeyError for a word that nobody knows."""
    told = yaml.safe_load(text)
    _only(told, {"title", "policy", "gpus", "servings", "replicas", "stale", "plan", "ticks", "experiments", "undone",
                 "expect"})  # fmt: skip
    policy = replace(Policy(), **{name: _policy_value(name, value) for name, value in told.get("policy", {}).items()})
    servings = {name: _serving(name, fields or {}) for name, fields in told["servings"].items()}
    gpus = {name: fields or {} for name, fields in told["gpus"].items()}
    devices = {
        name: gpu(number, kind=fields.get("kind", "H100-80GB"), node=fields.get("node", "node-0"))
        for number, (name, fields) in enumerate(gpus.items())
    }
    empty = Observation(
        at=NOON, pool="default", pool_uid="pool", pool_generation=1, policy=policy, plan=None,
        servings=tuple(servings.values()), refused=(),
        gpus=tuple(
            GpuSeen(
                gpu=devices[name], node_ready=fields.get("nodeReady", True),
                dram_active=_measured(fields.get("dramActive", 0.0)), fb_used=_measured(0.0), power=_measured(100.0),
                cordoned=fields.get("cordoned", False),
                core_wait=_measured(fields.get("coreWait", 0.0)), throttled=_measured(fields.get("throttled", 0.0)),
            )
            for name, fields in gpus.items()
        ),
        nodes=tuple(
            NodeSeen(name=name, ready=True, cpu_cores=64.0, cpu_cores_of_others=cores)
            for name, cores in {
                fields.get("node", "node-0"): float(fields.get("coresOfOthers", 0)) for fields in gpus.values()
            }.items()
        ),
        holders=(), claims=(), replicas=(), engines=(), services=(), stale=tuple(told.get("stale", ())),
    )  # fmt: skip
    shapes = {each.serving: each.shape for each in _shapes(empty).shapes}
    replicas, engines, planned = [], [], []
    for fields in told.get("replicas", ()):
        _only(fields, _REPLICA_WORDS)
        each = servings[fields["serving"]]
        device = devices[fields["gpu"]]
        for _ in range(fields.get("count", 1)):
            slot = sum(1 for old in replicas if (old.serving, old.gpu_uuid) == (each.key, device.uuid))
            placement = Placement(
                serving=each.key, gpu_uuid=device.uuid, slot=slot, sharing=Sharing(fields.get("sharing", "MPS")),
                shape=shapes[each.key], template_hash=fields.get("template", each.template_hash),
                planned_at=Seconds(NOON - fields.get("age", 3600.0)),
            )  # fmt: skip
            seen = _replica(placement, each, device.kind, fields)
            replicas.append(seen)
            if fields.get("planned", True):
                planned.append(placement)
            if seen.phase is Phase.READY and "engine" not in fields:
                engines.append(_engine(seen, each, policy, fields, device))
    plan = None if told.get("plan", True) is None else replace(_shapes(empty), placements=tuple(planned))
    observation = replace(
        empty,
        plan=plan,
        replicas=tuple(replicas),
        engines=tuple(engines),
        gpus=tuple(
            _with_memory(seen, fields, replicas, servings)
            for fields, seen in zip(gpus.values(), empty.gpus, strict=True)
        ),
        holders=tuple(
            Holder(gpu_uuid=devices[name].uuid, kind=fields["heldBy"].split()[0], name=fields["heldBy"].split()[1])
            for name, fields in gpus.items()
            if "heldBy" in fields
        ),
        claims=_claims(replicas, servings),
        services=tuple(
            ServiceSeen(
                serving=each.key,
                has_service=True,
                min_available=max(0, sum(1 for placement in planned if placement.serving == each.key) - 1),
            )
            for each in servings.values()
        ),
    )
    _refuse_the_impossible(observation, servings)
    if plan is not None and ("experiments" in told or "undone" in told):
        open_ones = tuple(_experiment(observation, servings, devices, each) for each in told.get("experiments", ()))
        undone = tuple(_undone(servings, each) for each in told.get("undone", ()))
        observation = replace(observation, plan=replace(plan, experiments=open_ones, undone=undone))
    return Story(title=told["title"], observation=observation, ticks=told.get("ticks", 1), expected=told["expect"])


_REPLICA_WORDS = frozenset(
    {"serving", "gpu", "count", "phase", "age", "arrivals", "peak", "waiting", "running", "template", "planned",
     "sharing", "engine", "lastGaps", "inService", "readyFor", "restarts", "slower", "beside", "waited"}
)  # fmt: skip


def _only(fields: dict[str, Any], words: frozenset[str] | set[str]) -> None:
    unknown = set(fields) - words
    if unknown:
        raise KeyError(f"{sorted(unknown)} means nothing here; known are {sorted(words)}")


def _policy_value(name: str, value: Any) -> Any:
    if name == "sharing":
        return frozenset(Sharing(each) for each in value)
    return tuple(value) if isinstance(value, list) else value


def _serving(name: str, fields: dict[str, Any]) -> Serving:
    wishes: dict[str, Any] = dict(fields)
    if "sharing" in wishes:
        wishes["sharing"] = SharingWish(wishes["sharing"])
    if "mode" in wishes:
        wishes["mode"] = Mode(wishes["mode"])
    return serving(name, **wishes)


def _shapes(observation: Observation) -> Plan:
    """A plan with the shapes that the advisor chooses for this world, and nothing else."""
    plan = None
    for _ in range(20):
        outcome = reconcile(replace(observation, plan=plan, gpus=observation.gpus, stale=()))
        chosen = outcome.pool_status.plan
        assert chosen is not None
        plan = Plan(shapes=chosen.shapes)
        if len({each.serving for each in plan.shapes}) == len(observation.servings):
            break
    return plan or Plan()


def _measured(value: Any) -> Measured:
    """A number read a second ago, or the cause for which there is none."""
    if isinstance(value, str):
        return Missing(cause=Cause(value), origin="DCGM_FI_DEV_FB_USED")
    return Reading(value=float(value), at=Seconds(NOON - 1.0), origin="story")


def _replica(placement: Placement, each: Serving, kind: Any, fields: dict[str, Any]) -> ReplicaSeen:
    phase = Phase(fields.get("phase", "Ready"))
    total = replica_memory(each.llm, each.dtype, placement.shape, kind).total
    age = float(fields.get("age", 3600.0))
    return ReplicaSeen(
        name=placement.name, uid=f"uid-{placement.name}", serving=placement.serving, gpu_uuid=placement.gpu_uuid,
        slot=placement.slot, sharing=placement.sharing, shape=placement.shape, template_hash=placement.template_hash,
        content_hash=placement.content_hash, phase=phase, created_at=Seconds(NOON - age),
        ready_at=Seconds(NOON - fields.get("readyFor", age)) if phase is Phase.READY else None,
        deletion_at=Seconds(NOON - 5.0) if phase is Phase.STOPPING else None,
        in_service=fields.get("inService", phase is not Phase.STOPPING), address="10.77.0.1:8000",
        restarts=fields.get("restarts", 0), utilization_hundredths=utilization_hundredths(total, kind),
    )  # fmt: skip


def _engine(seen: ReplicaSeen, each: Serving, policy: Policy, fields: dict[str, Any], device: Gpu) -> EngineSeen:
    """`slower` times what the model says of the batch that runs, with `beside` engines like it on the GPU."""
    arrivals, waiting = float(fields.get("arrivals", 1.0)), float(fields.get("waiting", 0.0))
    running = float(fields.get("running", 20.0))
    per_block = BLOCK_TOKENS * each.llm.kv_bytes_per_token(each.dtype)
    itl = itl_of_batch(each, seen.shape, device.kind, 1 + fields.get("beside", 0), round(running))
    itl *= fields.get("slower", 1.0)
    *windows, judged = (
        EngineWindow(
            seconds=seconds, arrivals=_measured(arrivals), finished=_measured(arrivals),
            prompt_tokens=_measured(arrivals * each.lengths.input_mean),
            generation_tokens=_measured(arrivals * each.lengths.output_mean), preemptions=_measured(0.0),
            itl_mean=_measured(itl), itl_p95=_measured(1.2 * itl), ttft_mean=_measured(0.05), ttft_p95=_measured(0.1),
            input_mean=_measured(each.lengths.input_mean), output_mean=_measured(each.lengths.output_mean),
            running_mean=_measured(running), waiting_least=_measured(fields.get("waited", 0.0)),
            inside_least=_measured(running * 0.8),
            inside_most=_measured(running + waiting),
        )
        for seconds in (*policy.rate_windows, policy.window)
    )  # fmt: skip
    return EngineSeen(
        replica=seen.name, running=_measured(running), waiting=_measured(waiting), waiting_before=_measured(waiting),
        kv_usage=_measured(0.5), kv_blocks=_measured(seen.shape.kv_cache_memory_bytes // per_block),
        windows=tuple(windows), judged=judged,
        peak_arrivals=_measured(fields.get("peak", arrivals)),
        gaps=tuple(
            GapSeen(seconds=policy.engine_period, arrivals=_measured(rate)) for rate in fields.get("lastGaps", ())
        ),
    )  # fmt: skip


def _experiment(
    observation: Observation, servings: dict[str, Serving], devices: dict[str, Gpu], fields: dict[str, Any]
) -> Experiment:
    """Steps on a GPU since `age` seconds ago; `before` engines like them stood there, `off` by so much.

    What it was predicted with is what is known now, unless `inputs` says otherwise.
    """
    _only(
        fields,
        {"serving", "gpu", "age", "before", "offBy", "tokens", "gain", "doubted", "asked", "judgement", "inputs"},
    )
    key, uuid = servings[fields["serving"]].key, devices[fields["gpu"]].uuid
    facts = interpret(observation)
    assert facts.plan is not None
    board = Board(facts, facts.plan, Prospects(facts))
    mix = board.mix(uuid)
    standing = Standing(
        serving=key, shape=mix[0][0].shape, engines=fields.get("before", 1), off=fields.get("offBy"),
        tokens_per_second=fields.get("tokens"),
    )  # fmt: skip
    began = Seconds(NOON - fields["age"])
    return Experiment(
        serving=key, gpu_uuid=uuid, step="Added", began_at=began, last_at=began, asked=fields.get("asked", False),
        before=(standing,), company=company(mix), gain=Ratio(fields.get("gain", 0.5)),
        saturation=Ratio(0.7), itl=Seconds(0.008), inputs=fields.get("inputs", inputs_of(board, board.kind(uuid), mix)),
        doubted_at=Seconds(NOON - fields["doubted"]) if "doubted" in fields else None,
        judgement=Judgement(fields["judgement"]) if "judgement" in fields else None,
        judged_at=Seconds(NOON - 60.0) if "judgement" in fields else None,
    )  # fmt: skip


def _undone(servings: dict[str, Serving], fields: dict[str, Any]) -> Undone:
    """A second engine beside one of the same model, undone `age` seconds ago, at so many requests a second."""
    _only(fields, {"serving", "age", "left", "rate"})
    each = servings[fields["serving"]]
    return Undone(
        serving=each.key, model=each.llm.name, gpu_kind="H100-80GB", neighbours=f"1 x {each.llm.name}",
        at=Seconds(NOON - fields["age"]), until=Seconds(NOON + fields["left"]),
        compared=Compared(what="gain of throughput", subject="GPU", predicted=0.5, measured=-0.1, unit="ratio"),
        inputs=Inputs(
            rate=PerSecond(fields["rate"]), input_mean=each.lengths.input_mean, output_mean=each.lengths.output_mean
        ),
    )  # fmt: skip


def _with_memory(
    seen: GpuSeen, fields: dict[str, Any], replicas: list[ReplicaSeen], servings: dict[str, Serving]
) -> GpuSeen:
    """The framebuffer in use: what the replicas hold, and `unexplainedGib` more; or why it is not known."""
    if "fbUsed" in fields:
        return replace(seen, fb_used=_measured(fields["fbUsed"]))
    held = _held(seen, replicas, {each.key: each for each in servings.values()})
    return replace(seen, fb_used=_measured(held + fields.get("unexplainedGib", 0.0) * GIB))


def _held(seen: GpuSeen, replicas: Sequence[ReplicaSeen], known: dict[ServingKey, Serving]) -> int:
    return sum(
        replica_memory(known[each.serving].llm, known[each.serving].dtype, each.shape, seen.gpu.kind).total
        for each in replicas
        if each.gpu_uuid == seen.gpu.uuid
    )


def _claims(replicas: list[ReplicaSeen], servings: dict[str, Serving]) -> tuple[ClaimSeen, ...]:
    uids = {each.key: each.uid for each in servings.values()}
    users: dict[tuple[str, str, Sharing], set[str]] = {}
    for each in replicas:
        users.setdefault((each.serving.namespace, each.gpu_uuid, each.sharing), set()).add(uids[each.serving])
    return tuple(
        ClaimSeen(
            namespace=namespace, name=f"claim-{uuid}-{how}".lower(), uid=f"claim-{uuid}", gpu_uuid=uuid, sharing=how,
            owners=tuple(sorted(owners)),
        )
        for (namespace, uuid, how), owners in users.items()
    )  # fmt: skip


def _refuse_the_impossible(observation: Observation, servings: dict[str, Serving]) -> None:
    known = {each.key: each for each in servings.values()}
    for seen in observation.gpus:
        uuid, total = seen.gpu.uuid, seen.gpu.kind.memory_bytes
        held = _held(seen, observation.replicas, known)
        if held > total:
            raise ImpossibleWorldError(f"{uuid} holds {held} bytes of {total}")
        if isinstance(seen.fb_used, Reading) and seen.fb_used.value > total:
            raise ImpossibleWorldError(f"{uuid} has more framebuffer in use than it has")
        if isinstance(seen.dram_active, Reading) and not 0.0 <= seen.dram_active.value <= 1.0:
            raise ImpossibleWorldError(f"DRAM of {uuid} is active {seen.dram_active.value} of the time")
        here = [each for each in observation.replicas if each.gpu_uuid == uuid]
        if sum(each.phase in (Phase.PENDING, Phase.STARTING) for each in here) > 1:
            raise ImpossibleWorldError(f"two engines start on {uuid}")
        if len({each.serving.namespace for each in here}) > 1:
            raise ImpossibleWorldError(f"two namespaces share {uuid}")
    names = Counter(each.name for each in observation.replicas)
    if repeated := [name for name, count in names.items() if count > 1]:
        raise ImpossibleWorldError(f"two pods are called {repeated[0]}")


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_story(path: Path) -> None:
    story = story_of(path.read_text())
    observation, outcome = story.observation, reconcile(story.observation)
    for _ in range(story.ticks - 1):
        observation = replace(observation, plan=outcome.pool_status.plan)
        outcome = reconcile(observation)
    _compare(story, outcome)


def _compare(story: Story, outcome: Outcome) -> None:
    expected = story.expected
    _only(
        expected,
        {
            "planned",
            "reasons",
            "objections",
            "conditions",
            "actions",
            "message",
            "planChanged",
            "looksAgain",
            "verdicts",
            "undone",
        },
    )
    names = {each.gpu.uuid: index for index, each in enumerate(story.observation.gpus)}
    plan = outcome.pool_status.plan
    said = f"{story.title}\n{[(each.serving.name, each.reason, each.message) for each in plan.records] if plan else ''}"
    if "planned" in expected:
        assert plan is not None
        counts: dict[str, dict[int, int]] = {}
        for each in plan.placements:
            of = counts.setdefault(each.serving.name, {})
            of[names[each.gpu_uuid]] = of.get(names[each.gpu_uuid], 0) + 1
        assert counts == {name: dict(enumerate_counts(on)) for name, on in expected["planned"].items()}, said
    if "reasons" in expected:
        assert plan is not None
        found = {each.serving.name: each.reason for each in plan.records}
        assert {name: found.get(name) for name in expected["reasons"]} == expected["reasons"], said
    for name, reasons in expected.get("objections", {}).items():
        verdicts = {verdict.reason.value for key, verdict in outcome.verdicts if key.name == name}
        assert set(reasons) <= verdicts, said
    for name, conditions in expected.get("conditions", {}).items():
        status = next(each for each in outcome.serving_statuses if each.serving.name == name)
        found = {each.type.value: f"{each.truth.value}/{each.reason}" for each in status.conditions}
        assert {kind: found[kind] for kind in conditions} == conditions, said
    if "actions" in expected:
        kinds = [type(action).__name__ for action in outcome.actions if type(action).__name__ != "Tell"]
        assert kinds == expected["actions"], said
    if "verdicts" in expected:
        assert plan is not None
        judged = {each.serving.name: each.judgement and each.judgement.value for each in plan.experiments}
        assert judged == expected["verdicts"], said
    if "undone" in expected:
        assert plan is not None
        assert [each.neighbours for each in plan.undone] == expected["undone"], said
    if "planChanged" in expected:
        assert outcome.plan_changed == expected["planChanged"], said
    if "looksAgain" in expected:
        assert bool(outcome.look_again) == expected["looksAgain"], said
        assert (outcome.wake_in < story.observation.policy.tick) == expected["looksAgain"], said
    for name, words in expected.get("message", {}).items():
        status = next(each for each in outcome.serving_statuses if each.serving.name == name)
        assert words in status.decision_message, said


def enumerate_counts(on: list[int]) -> list[tuple[int, int]]:
    """`[2, 0, 1]` as {0: 2, 2: 1}: how many on which GPU, in the order of the story."""
    return [(index, count) for index, count in enumerate(on) if count]


def test_every_story_has_a_title_that_is_a_sentence() -> None:
    assert STORIES
    for path in STORIES:
        title = yaml.safe_load(path.read_text())["title"]
        assert len(title.split()) >= 4, path
        assert title[0].isupper(), path


GHOST = """
title: Two engines start on one GPU at once.
gpus: {a: }
servings: {chat: {batch: 16}}
replicas:
  - {serving: chat, gpu: a, count: 2, phase: Starting}
expect: {}
"""
OVERFULL = """
title: Ten engines of a large model stand on a small GPU.
gpus: {a: {kind: L4}}
servings: {chat: {model: llama-3.1-8b, batch: 4}}
replicas:
  - {serving: chat, gpu: a, count: 10}
expect: {}
"""
BEYOND = """
title: A memory bus is busy more than always.
gpus: {a: {dramActive: 1.2}}
servings: {chat: }
expect: {}
"""


@pytest.mark.parametrize("text", [GHOST, OVERFULL, BEYOND])
def test_an_impossible_world_is_refused(text: str) -> None:
    with pytest.raises(ImpossibleWorldError):
        story_of(text)


def test_a_reading_from_long_ago_is_not_a_fact() -> None:
    story = story_of(GHOST.replace("count: 2, phase: Starting", "count: 1"))
    facts = interpret(replace(story.observation, at=Seconds(NOON + 3600.0)))
    assert all(isinstance(each.fb_used, Missing) for each in facts.gpus.values())
    assert all(isinstance(each.running, Missing) for each in facts.engines.values())
