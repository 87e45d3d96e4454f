"""The loop of one pool: gather, ask, commit, perform, wait. Decisions are scripted; all else is over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import replace
from typing import Any

import pytest
from kubernetes.aio.client.configuration import Configuration

from gpupack.facts.interpretation import Facts
from gpupack.facts.observation import Observation
from gpupack.facts.placement import Plan, Record, Withdrawn
from gpupack.handlers import Operator, PoolTask, Rhythm
from gpupack.kube.api import Api
from gpupack.kube.observe import POOLS, SERVINGS, Mirrors
from gpupack.metrics.scrape import Scraper
from gpupack.plan import Action, Outcome, PoolStatus, StopReplica
from gpupack.telemetry import Telemetry
from gpupack.units import Seconds

from ..kube import objects, tiny_api
from ..kube.objects import GPU, KEY
from ..kube.test_observe import LOOKUPS
from ..kube.tiny_api import TinyApi, Write, until

STOP = StopReplica(serving=KEY, name="chat-1", uid="uid-1")
HOUR = Seconds(3600.0)


def plan(number: int) -> Plan:
    return Plan(withdrawn=(Withdrawn(serving=KEY, gpu_uuid=GPU, until=Seconds(float(number))),))


def answer(
    seen: Observation, planned: Plan | None, *actions: Action, changed: bool = False, wake_in: Seconds = HOUR
) -> Outcome:
    status = PoolStatus(plan=planned, gpus=len(seen.gpus), gpus_in_use=0, replicas=0, conditions=())
    return Outcome(
        pool_status=status, plan_changed=changed, serving_statuses=(), actions=actions, verdicts=(), wake_in=wake_in
    )  # fmt: skip


class Script:
    """Answers each observation with the next line; the last one is repeated."""

    def __init__(self, *lines: Callable[[Observation], Outcome]) -> None:
        self.lines = list(lines)
        self.seen: list[Observation] = []

    def __call__(self, observation: Observation, _: Facts) -> Outcome:
        self.seen.append(observation)
        line = self.lines[0] if len(self.lines) == 1 else self.lines.pop(0)
        return line(observation)


class Asked(Scraper):
    """Writes down for which replicas each round was asked out of turn."""

    def __init__(self) -> None:
        super().__init__()
        self.again: list[Collection[str]] = []

    async def round(self, *targets: Any, again: Collection[str] = (), **asked: Any) -> None:
        self.again.append(again)
        await super().round(*targets, again=again, **asked)


class Rig:
    running: asyncio.Task[None]

    def __init__(self, server: TinyApi, api: Api, script: Script) -> None:
        self.telemetry = Telemetry()
        self.scraper = Asked()
        self.mirrors = Mirrors(api, LOOKUPS, self._stir)
        self.task = PoolTask(
            "default", api, self.mirrors, self.scraper, self.telemetry, reconcile=script, reporter="test"
        )  # fmt: skip
        self.server = server
        server.answer_write = self._keep

    def _stir(self) -> None:
        self.task.wake.set()

    def _keep(self, write: Write) -> tuple[int, dict[str, Any]]:
        """As the API server does: a version that is not the last one is a conflict; a status is stored and told."""
        if not write.path.startswith(POOLS):
            return 200, {}
        pool = self.server.objects[POOLS]["", "default"]
        if write.body["metadata"]["resourceVersion"] != pool["metadata"]["resourceVersion"]:
            return 409, {"reason": "Conflict", "message": "modified"}
        if write.body["status"] != pool.get("status"):
            self.server.put(POOLS, {**pool, "status": write.body["status"]})
        return 200, {}

    def count(self, name: str, **labels: str) -> float:
        return self.telemetry.registry.get_sample_value(name, labels) or 0.0


@contextlib.asynccontextmanager
async def rig(script: Script) -> AsyncIterator[Rig]:
    async with tiny_api.serving() as server, server.api() as api:
        server.put(POOLS, objects.gpu_pool(times={"tickSeconds": 3600}))
        made = Rig(server, api, script)
        async with tiny_api.running(*made.mirrors.runs()):
            made.running = asyncio.create_task(made.task.run())
            try:
                yield made
                made.task.stop()
                async with asyncio.timeout(tiny_api.PATIENCE_SECONDS):
                    await made.running
            finally:
                made.running.cancel()


def test_a_tick_that_something_stirred_does_not_put_off_the_regular_one() -> None:
    rhythm, tick = Rhythm(), Seconds(2.0)
    assert rhythm.rest(100.0, tick, tick) == 2.0
    assert rhythm.rest(101.5, tick, tick) == 0.5
    assert rhythm.rest(101.5, tick, Seconds(0.2)) == 0.2
    assert rhythm.rest(102.0, tick, tick) == 2.0
    assert rhythm.rest(103.9, tick, tick) == 2.0  # as good as due


async def test_a_plan_is_acted_on_only_when_it_was_read_back() -> None:
    script = Script(
        lambda seen: answer(seen, plan(1), changed=True, wake_in=seen.policy.least_gap),
        lambda seen: answer(seen, seen.plan, STOP),
        lambda seen: answer(seen, seen.plan),
    )
    async with rig(script) as made:
        await until(lambda: len(script.seen) >= 2 and len(made.server.writes) >= 3)
        assert script.seen[0].plan is None
        assert script.seen[1].plan == plan(1)
        methods = [(write.method, write.path.rsplit("/", 1)[-1]) for write in made.server.writes[:3]]
        assert methods == [("PATCH", "status"), ("PATCH", "status"), ("DELETE", "chat-1")]


async def test_engines_in_doubt_are_scraped_out_of_turn_at_the_next_tick_and_not_after_it() -> None:
    script = Script(
        lambda seen: replace(answer(seen, seen.plan, wake_in=Seconds(0.05)), look_again=("chat-1",)),
        lambda seen: answer(seen, seen.plan, wake_in=Seconds(0.05)),
        lambda seen: answer(seen, seen.plan),
    )
    async with rig(script) as made:
        await until(lambda: len(made.scraper.again) >= 3)
        assert made.scraper.again[:3] == [(), ("chat-1",), ()]


async def test_an_old_view_drops_the_tick_and_the_next_one_sees_the_new() -> None:
    def beaten(seen: Observation) -> Outcome:
        pool = made.server.objects[POOLS]["", "default"]
        # Somebody else writes between the look and the commit.
        asyncio.run_coroutine_threadsafe(_put(made.server, {**pool, "status": {"gpus": 7}}), loop).result()
        return answer(seen, plan(1), STOP)

    script = Script(beaten, lambda seen: answer(seen, seen.plan))
    loop = asyncio.get_running_loop()
    async with rig(script) as made:
        await until(lambda: len(script.seen) >= 2)
        assert made.count("gpupack_ticks_dropped_total", pool="default", cause="Conflict") == 1
        assert not any(write.method == "DELETE" for write in made.server.writes)


async def test_an_old_view_is_renewed_though_the_watch_of_the_pools_says_nothing() -> None:
    def beaten(seen: Observation) -> Outcome:
        loop.call_soon_threadsafe(write_unseen)
        return answer(seen, plan(1), STOP)

    def write_unseen() -> None:
        pool = made.server.objects[POOLS]["", "default"]
        made.server.put(POOLS, {**pool, "status": {"gpus": 7}}, told=False)

    script = Script(beaten, lambda seen: answer(seen, plan(2), changed=True), lambda seen: answer(seen, seen.plan))
    loop = asyncio.get_running_loop()
    async with rig(script) as made:
        await until(lambda: script.seen[-1:] != [] and script.seen[-1].plan == plan(2))
        assert made.count("gpupack_ticks_dropped_total", pool="default", cause="Conflict") == 1
        assert made.server.asked.count(("list", POOLS)) == 2


async def _put(server: TinyApi, obj: dict[str, Any]) -> None:
    server.put(POOLS, obj)


async def test_a_bug_in_a_decision_is_logged_counted_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def wrong(_: Observation) -> Outcome:
        raise ZeroDivisionError("one of us was careless")

    script = Script(wrong, lambda seen: answer(seen, seen.plan))
    async with rig(script) as made:
        await until(lambda: len(script.seen) == 1)
        made.task.wake.set()
        await until(lambda: len(script.seen) == 2)
        assert made.count("gpupack_ticks_dropped_total", pool="default", cause="Bug") == 1
    assert "one of us was careless" in caplog.text


async def test_a_change_wakes_the_loop_long_before_its_tick() -> None:
    script = Script(lambda seen: answer(seen, seen.plan))
    async with rig(script) as made:
        await until(lambda: len(script.seen) == 1)
        made.server.put(SERVINGS, objects.model_serving())
        await until(lambda: bool(script.seen[-1].servings))


async def test_the_loop_ends_with_its_pool_and_says_no_more_of_it() -> None:
    record = Record(
        serving=KEY, reason="DemandMet", subject="s", observed=0.5, limit=0.85, unit="ratio", at_least=True, wanted=2,
        planned=1, message="m", at=Seconds(5.0),
    )  # fmt: skip
    script = Script(lambda seen: answer(seen, Plan(records=(record,))))
    labels = {"namespace": KEY.namespace, "serving": KEY.name}
    async with rig(script) as made:
        await until(lambda: made.count("gpupack_wanted_replicas", **labels) == 2)
        assert made.count("gpupack_decisions_total", pool="default", reason="DemandMet") == 1
        made.server.remove(POOLS, "default")
        await made.running
        assert made.count("gpupack_wanted_replicas", **labels) == 0


async def test_an_api_server_that_is_away_holds_the_loop_but_does_not_end_it() -> None:
    script = Script(lambda seen: answer(seen, plan(len(script.seen)), wake_in=Seconds(0.0)))
    async with rig(script) as made:
        await until(lambda: len(script.seen) == 1)
        await made.server.stop()
        await until(lambda: made.count("gpupack_ticks_dropped_total", pool="default", cause="Unavailable") >= 1)
        await made.server.start()
        begun = len(script.seen)
        made.task.wake.set()
        await until(lambda: len(script.seen) > begun)


async def test_a_serving_without_a_pool_is_told_so_again_if_it_could_not_be_told() -> None:
    refusals = [(409, {"reason": "Conflict"}), (500, {"reason": "InternalError"})]
    async with tiny_api.serving() as server:
        server.answer_write = lambda _write: refusals.pop() if refusals else (200, {})
        server.put(SERVINGS, objects.model_serving())
        operator = Operator(Configuration(host=f"http://127.0.0.1:{server.port}"), pod_proxy=None)
        await operator.start()
        try:
            await until(lambda: len(server.writes) == 3)
        finally:
            await operator.stop()
    assert {write.body["status"]["conditions"][0]["reason"] for write in server.writes} == {"PoolNotFound"}
