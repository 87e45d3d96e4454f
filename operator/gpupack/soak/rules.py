"""What must hold in every history, checked against the cluster itself and not against what the operator believes.

Each rule raises Broken with a sentence. Knows the truth of the model (who holds which memory, which engine really
answers) and the plan as it is stored. Reads rates and lengths as the decision does; shares no check with it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping

from gpupack.decide.demand import arrivals
from gpupack.decide.prospect import coefficients_of, live_lengths
from gpupack.facts.gpu import Gpu
from gpupack.facts.interpretation import Facts, interpret
from gpupack.facts.observation import Missing, Observation, Phase
from gpupack.facts.placement import ChosenShape, Placement, Plan
from gpupack.facts.serving import Mode, ScalingMode, Serving, ServingKey, Sharing
from gpupack.kube import labels
from gpupack.kube.pool_resource import plan_of
from gpupack.perf import sharing
from gpupack.perf.prediction import EngineGroup
from gpupack.plan import Outcome, Step
from gpupack.soak.process import Look
from gpupack.twin.api_server import ApiServer, Json, Key, parse
from gpupack.twin.cluster import OWNED, Cluster
from gpupack.units import PerSecond

BLIND_TICKS = 4
"""An engine that told nothing for so many ticks is unknown to everybody: its last page is older than three periods."""
STILL_TICKS = 30
"""So long before the end of the calm nothing may be planned or done any more."""
LOOSE = 1.10
"""Predictions are made with rates and lengths rounded to five per cent: a promise broken by less was kept."""
SETTLE_TICKS = 15
"""The longest window and some grace: so long after a change of the load the plan may answer it."""
UNSEEN_SECONDS = 15.0
"""What engines tell is no older, or it is not believed."""
SEEN_SECONDS = 200.0
"""No watch is late by more: what was so for longer, the operator knows."""
CHANGES_AN_HOUR = 12
GIVEN_UP = frozenset((Step.REMOVED, Step.ASLEEP))
RENEWALS = frozenset((Step.REPLACED, Step.MOVED))
"""Steps after each of which the next engine of a serving has its turn."""
POOL = Key("gpupools", "", "default")


class Broken(Exception):
    """A rule was broken; `rule` is its short name."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(f"{rule}: {message}")
        self.rule = rule


class Rules:
    """Watches one history. `blind` says for how many ticks the page of a pod (by uid) has told nothing."""

    def __init__(self, server: ApiServer, cluster: Cluster, blind: Callable[[str], int]) -> None:
        self._server = server
        self._cluster = cluster
        self._blind = blind
        self._own_stops: set[str] = set()
        self._foreign: set[str] = set()
        self._refused = 0
        self._active: set[ServingKey] = set()
        self._version = ""
        self._plan: Plan | None = None
        self._content: Counter[tuple[ServingKey, str, int, str]] = Counter()
        self._quiet = self._content
        self._given = 0.0, 0
        self._load_moved_at = 0
        self._renewed_at = 0
        self.changed_at = 0
        self.changes: list[int] = []
        self.acted_at = 0
        self._acted = False

    def stored(self) -> Plan | None:
        """The plan as the API server has it."""
        pool = self._server.get(POOL)
        if pool is None:
            return None
        version = pool["metadata"]["resourceVersion"]
        if version != self._version:
            self._version, self._plan = version, plan_of(pool.get("status", {}))
        return self._plan

    def names(self) -> set[str]:
        plan = self.stored()
        return set() if plan is None else {f"{each.serving.namespace}/{each.name}" for each in plan.placements}

    # At every write of the operator.

    def before_write(self, verb: str, path: str, body: Json | None) -> None:
        key, subresource = parse(path)
        if verb != "list" and subresource != "status" and key.resource not in ("events", "modelprofiles"):
            self._acted = True
        if key.resource != "pods" or subresource or verb == "list":
            return
        there = self._server.get(key)
        if verb == "apply":
            assert body is not None
            if there is None:
                self._may_start(key, body)
        elif there is not None:
            self._may_stop(key, there, verb)

    def _may_start(self, key: Key, body: Json) -> None:
        name, uuid = f"{key.namespace}/{key.name}", body["metadata"]["labels"][labels.GPU]
        if name not in self.names():
            raise Broken("plan first", f"{name} is started and stands in no plan")
        for other, item in self._server.items("pods"):
            metadata = item["metadata"]
            if metadata.get("labels", {}).get(labels.GPU) != uuid:
                continue
            pod = self._cluster.pods.get(other)
            leaving = "deletionTimestamp" in metadata
            if leaving and metadata["uid"] in self._own_stops:
                raise Broken("room first", f"{name} is started while {other.name} is stopping on {uuid}")
            if not leaving and (pod is None or not pod.was_ready):
                raise Broken("one start at a time", f"{name} is started while {other.name} is starting on {uuid}")

    def _may_stop(self, key: Key, there: Json, verb: str) -> None:
        name, pod = f"{key.namespace}/{key.name}", self._cluster.pods.get(key)
        metadata = there["metadata"]
        if "deletionTimestamp" in metadata:
            return
        serves = pod is not None and pod.ready and metadata["labels"].get(labels.IN_SERVICE) == labels.TRUE
        if serves and name in self.names():
            raise Broken("what is planned stays", f"{name} serves, is planned, and gets a {verb}")
        if serves and verb == "delete" and pod is not None and self._server.now - pod.ready_since > SEEN_SECONDS:
            raise Broken("drain first", f"{name} is stopped while it is in its Service")
        if verb == "delete":
            self._own_stops.add(metadata["uid"])

    # At every decision.

    def after_look(self, look: Look) -> None:
        observation, outcome = look.observation, look.outcome
        self._active = {each.key for each in observation.servings if each.mode is Mode.ACTIVE}
        problem = look.problem
        if problem is not None and getattr(problem, "status", 0) == 422:
            raise Broken("names from content", str(problem))
        plan = outcome.pool_status.plan
        if plan is None or not outcome.plan_changed:
            return
        if any(not hasattr(action, "reason") for action in outcome.actions):
            raise Broken("plan first", "a tick that changes the plan acts as well")
        if observation.plan is None:
            self._adopts(observation, plan)
            return
        self._keeps_blind(observation, observation.plan, plan)
        self._keeps_promises(observation, observation.plan, plan)

    def _adopts(self, observation: Observation, plan: Plan) -> None:
        planned = {(each.serving, each.gpu_uuid, each.slot, each.content_hash) for each in plan.placements}
        known = {each.key for each in observation.servings}
        slots = Counter((each.serving, each.gpu_uuid, each.slot) for each in observation.replicas)
        for each in observation.replicas:
            if each.phase is not Phase.READY or not each.in_service or each.serving not in known:
                continue
            place = (each.serving, each.gpu_uuid, each.slot)
            if (*place, each.content_hash) not in planned and slots[place] == 1:
                raise Broken("a lost plan restarts nothing", f"{each.name} serves and was not adopted")

    def _keeps_blind(self, observation: Observation, before: Plan, after: Plan) -> None:
        """Nothing is removed for its load where that is not known."""
        was, now = _count(before), _count(after)
        records = {each.serving: each for each in after.records}
        there = {each.gpu.uuid for each in observation.gpus}
        for serving in observation.servings:
            key = serving.key
            record = records.get(key)
            if now[key] >= was[key] or record is None or record.reason not in GIVEN_UP or record.at != observation.at:
                continue
            if any(each.serving == key and each.gpu_uuid in there for each in before.placements):
                self._sleeps_unasked(serving, now[key])
            if serving.scaling.mode is ScalingMode.MANUAL:
                continue
            most = serving.scaling.max_replicas
            if most is not None and was[key] > max(most, serving.scaling.min_replicas):
                continue
            for pod in self._cluster.pods.values():
                if pod.serving == str(key) and pod.ready and self._blind(pod.uid) >= BLIND_TICKS:
                    raise Broken("missing data removes nothing", f"{key} loses a replica and {pod.key.name} is blind")

    def _sleeps_unasked(self, serving: Serving, left: int) -> None:
        """The last replica goes only if the cluster itself knows of no request for as long as was said.

        The operator's clock may have been set meanwhile, and its readings may be a moment old. Who lost its last GPU
        has nothing to give up, and is woken by the next request.
        """
        if left or serving.scaling.min_replicas or serving.scaling.mode is ScalingMode.MANUAL:
            return
        quiet = self._server.now - self._cluster.asked_at.get(str(serving.key), -math.inf)
        if quiet < serving.scaling.idle - UNSEEN_SECONDS:
            raise Broken("sleeps unasked", f"{serving.key} falls asleep {quiet:.0f} s after its last request")

    def _keeps_promises(self, observation: Observation, before: Plan, after: Plan) -> None:
        """An engine that joins others is predicted to leave every promise on that GPU kept."""
        servings = {each.key: each for each in observation.servings}
        shapes = {(each.serving, each.gpu_kind): each for each in after.shapes}
        gpus = {each.gpu.uuid: each.gpu for each in observation.gpus}
        old = Counter((each.serving, each.gpu_uuid) for each in before.placements)
        new = Counter((each.serving, each.gpu_uuid) for each in after.placements)
        for (key, uuid), count in new.items():
            serving = servings.get(key)
            if count <= old[key, uuid] or serving is None or serving.scaling.mode is ScalingMode.MANUAL:
                continue
            beside = [each for each in after.placements if each.gpu_uuid == uuid]
            if len(beside) < 2 or uuid not in gpus or any(each.serving not in servings for each in beside):
                continue
            if any(each.serving == key and each.reason in (Step.MOVED, Step.WITHDRAWN) for each in after.records):
                continue
            self._predicted(observation, gpus[uuid], beside, servings, shapes, new)

    def _predicted(
        self,
        observation: Observation,
        gpu: Gpu,
        beside: list[Placement],
        servings: Mapping[ServingKey, Serving],
        shapes: Mapping[tuple[ServingKey, str], ChosenShape],
        counts: Counter[tuple[ServingKey, str]],
    ) -> None:
        groups = []
        facts = interpret(observation)
        kinds = Counter((each.serving, each.shape) for each in beside)
        for (key, shape), count in sorted(kinds.items(), key=lambda each: (each[0][0], each[0][1].max_num_seqs)):
            serving = servings[key]
            total = sum(number for (other, _), number in counts.items() if other == key)
            rate = _rate(facts, key)
            rate = serving.declared_rate if rate is None else rate
            each_rate = None if rate is None else max(1e-6, rate / max(1, total)) * count
            groups.append(
                (key, EngineGroup(
                    llm=serving.llm, dtype=serving.dtype, shape=shape, replicas=count,
                    lengths=live_lengths(serving, facts) or serving.lengths,
                    request_rate=None if each_rate is None else PerSecond(each_rate),
                    coefficients=coefficients_of(serving, gpu.kind),
                ))
            )  # fmt: skip
        answer = sharing.predict(gpu.kind, tuple(group for _, group in groups), Sharing.MPS)
        for (key, _), predicted in zip(groups, answer.groups, strict=True):
            chosen = shapes.get((key, gpu.kind.name))
            slo = servings[key].slo or (None if chosen is None else chosen.slo)
            if slo is None or slo.itl is None or (chosen is not None and chosen.unreachable is not None):
                continue
            itl = {"Mean": predicted.itl_mean, "P95": predicted.itl_p95, "P99": predicted.itl_p99}[slo.statistic.value]
            if itl > LOOSE * slo.itl:
                raise Broken(
                    "a promise is not broken knowingly",
                    f"with one more on {gpu.uuid} the inter-token latency of {key} is predicted to be {itl:.4f} s, "
                    f"above {slo.itl:.4f} s",
                )

    # After every tick.

    def after_tick(self, tick: int, *, quiet_from: int) -> None:
        cluster = self._cluster
        for gpu in cluster.gpus.values():
            if gpu.foreign_bytes:
                self._foreign.add(gpu.uuid)
            held = cluster.held(gpu.uuid)
            if held > gpu.memory_bytes:
                raise Broken("memory", f"engines hold {held} of {gpu.memory_bytes} bytes of {gpu.uuid}")
        for name, uuid in cluster.refused_starts[self._refused :]:
            if uuid not in self._foreign:
                raise Broken("memory", f"{name} found less memory on {uuid} than it was told to take")
        self._refused = len(cluster.refused_starts)
        if self._acted:
            self._acted, self.acted_at = False, tick
        queued = sum(pod.engine.waiting for pod in cluster.pods.values())
        given = queued, self._server.count("modelprofiles")
        if given != self._given:
            self._given, self._load_moved_at = given, tick
        plan = self.stored()
        if plan is not None:
            content = Counter((each.serving, each.gpu_uuid, each.slot, each.content_hash) for each in plan.placements)
            if content != self._content:
                moved = sum(((content - self._content) + (self._content - content)).values())
                self.changes.extend([tick] * moved)
                self._content, self.changed_at = content, tick
            if tick - self.changed_at < STILL_TICKS and any(each.reason in RENEWALS for each in plan.records):
                self._renewed_at = tick
        if tick <= quiet_from:
            self._quiet = self._content

    # At the end of the calm, and at the end.

    def at_rest(self, tick: int, *, noise: bool, quiet_from: int, tick_seconds: float) -> None:
        """Faults are over for long and the load is constant: everything stands still, and what is planned runs."""
        plan = self.stored()
        if plan is None:
            raise Broken("comes to rest", "the pool has no plan")
        hours = (tick - quiet_from) * tick_seconds / 3600.0
        moves = sum(1 for when in self.changes if when >= quiet_from)
        net = sum(((self._content - self._quiet) + (self._quiet - self._content)).values())
        servings = max(1, len(plan.records))
        if moves - net > max(2.0, CHANGES_AN_HOUR * hours) * servings:
            raise Broken(
                "few changes under constant load", f"{moves - net} changes there and back in {hours:.2f} hours"
            )
        for record in plan.records:
            if record.reason == Step.ASLEEP and str(record.serving) in self._cluster.kept_waiting:
                raise Broken("who waits is heard", f"{record.serving} sleeps, and requests wait for it")
        # A queue that drains is a load that changes, and what was learnt is another prediction of it. Engines that are
        # renewed one after another take their time, and only then their load is watched.
        if noise or tick - max(self._load_moved_at, self._renewed_at) < STILL_TICKS + SETTLE_TICKS:
            return
        if tick - self.changed_at < STILL_TICKS:
            raise Broken("comes to rest", f"the plan still changed at tick {self.changed_at}")
        # What a status says of a load about a limit may still take turns; that is a known limit, and no child moves.
        if tick - self.acted_at < STILL_TICKS:
            raise Broken("comes to rest", f"something was still done at tick {self.acted_at}")
        for each in plan.placements:
            pod = self._cluster.pods.get(Key("pods", each.serving.namespace, each.name))
            if each.serving in self._active and (pod is None or not pod.ready or not pod.in_service):
                why = (
                    "there is no pod" if pod is None else f"its pod is {pod.said or 'new'}, in service {pod.in_service}"
                )
                raise Broken("what is planned runs", f"{each.name} is planned and does not serve: {why}")

    def at_end(self) -> None:
        """Every serving was deleted: nothing of them is left."""
        for resource in OWNED:
            for key, item in self._server.items(resource):
                if item["metadata"].get("labels", {}).get(labels.MANAGER) == labels.MANAGED_BY:
                    raise Broken("deletion leaves nothing", f"{resource} {key.namespace}/{key.name} is still there")
        plan = self.stored()
        if plan is not None and (plan.placements or plan.records or plan.shapes or plan.withdrawn):
            raise Broken("deletion leaves nothing", "the plan still speaks of servings that are gone")


def _count(plan: Plan) -> Counter[ServingKey]:
    return Counter(each.serving for each in plan.placements)


def _rate(facts: Facts, key: ServingKey) -> float | None:
    """Arrivals a second by the readings of now; None where no engine tells any."""
    names = [each.name for each in facts.replicas_of.get(key, ()) if each.phase is Phase.READY]
    engines = [facts.engines[name] for name in names if name in facts.engines]
    if not any(each.windows and not isinstance(each.windows[0].arrivals, Missing) for each in engines):
        return None
    return arrivals(engines, facts.policy)


def describe(outcome: Outcome) -> str:
    """One line of what an outcome asks for."""
    plan = outcome.pool_status.plan
    where = Counter(f"{each.serving.name}@{each.gpu_uuid[4:12]}" for each in (() if plan is None else plan.placements))
    acts = ", ".join(type(action).__name__ for action in outcome.actions)
    return f"{'plans' if outcome.plan_changed else 'keeps'} {dict(sorted(where.items()))} {acts}".rstrip()
