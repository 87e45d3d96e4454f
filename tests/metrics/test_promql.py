"""GPU readings out of a Prometheus: what is asked, which row counts, and what is said where nothing comes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from gpupack.facts.counter import Counter
from gpupack.facts.observation import Cause, Measured, Missing, Reading
from gpupack.metrics.agent_series import DRAM_BANDWIDTH, GPU_LOST
from gpupack.metrics.promql import (
    Credentials,
    PrometheusHistory,
    PrometheusTarget,
    Refusal,
    Refused,
    ask,
    built_in,
)
from gpupack.metrics.series import Quantity
from gpupack.metrics.windows import GpuReadings
from gpupack.units import Seconds

NOW, PERIOD = 1000.0, Seconds(30.0)
ONE, TWO = "GPU-1", "GPU-2"


def row(name: str, value: float, at: float = 990.0, uuid: str = ONE, **labels: str) -> dict[str, Any]:
    """A raw sample as a range query gives it, an older one before it."""
    return {
        "metric": {"__name__": name, "UUID": uuid, **labels}, "values": [[at - 30.0, "0.01"], [at, str(value)]],
    }  # fmt: skip


@dataclass
class Prometheus:
    """Answers every query with the rows whose name it asks for; `status` and `body` instead where they are given."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    status: int = 200
    body: bytes | None = None
    queries: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    url: str = ""

    async def answer(self, request: web.BaseRequest) -> web.Response:
        query = request.query["query"]
        self.queries.append(query)
        self.tokens.add(request.headers.get("Authorization"))
        found = [each for each in self.rows if "value" in each or each["metric"]["__name__"] in query]
        said = json.dumps({"status": "success", "data": {"result": found}}).encode()
        return web.Response(status=self.status, body=said if self.body is None else self.body)

    async def readings(
        self, *queries: tuple[Quantity, str], counter: Counter = Counter.DCGM_DRAM_ACTIVE, token: str | None = None
    ) -> Mapping[str, GpuReadings]:
        answer = await self.ask(*queries, counter=counter, token=token)
        assert not isinstance(answer, Refusal), answer
        return answer

    async def ask(
        self, *queries: tuple[Quantity, str], counter: Counter = Counter.DCGM_DRAM_ACTIVE, token: str | None = None
    ) -> Mapping[str, GpuReadings] | Refusal:
        target = PrometheusTarget(url=self.url, look_back=Seconds(90.0), queries=queries, counter=counter)
        return await ask(target, Credentials(token=token), now=NOW, period=PERIOD)

    async def refusal(self) -> Refusal:
        answer = await self.ask()
        assert isinstance(answer, Refusal)
        return answer


Serve = Callable[..., Awaitable[Prometheus]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    runners = []

    async def begin(*rows: dict[str, Any], **said: Any) -> Prometheus:
        one = Prometheus(list(rows), **said)
        runner = web.ServerRunner(web.Server(one.answer), shutdown_timeout=0.01)
        await runner.setup()
        runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        one.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return one

    yield begin
    for runner in runners:
        await runner.cleanup()


def value(measured: Measured) -> tuple[float, float]:
    assert isinstance(measured, Reading)
    return measured.value, measured.at


async def test_all_gpus_are_asked_for_in_one_query_a_quantity(serve: Serve) -> None:
    many = [row("DCGM_FI_PROF_DRAM_ACTIVE", 0.5, uuid=f"GPU-{number}") for number in range(100)]
    there = await serve(*many)
    assert len(await there.readings()) == 100
    assert len(there.queries) == 4


async def test_a_reading_is_as_old_as_the_sample_not_as_the_asking(serve: Serve) -> None:
    there = await serve(row("DCGM_FI_PROF_DRAM_ACTIVE", 0.5, at=955.0), row("DCGM_FI_DEV_FB_USED", 1024.0, at=990.0))
    found = (await there.readings())[ONE]
    assert value(found.dram_active) == (0.5, 955.0)
    assert value(found.fb_used) == (1024.0 * 2**20, 955.0), "a GPU's readings are as old as the oldest of them"


async def test_a_device_that_many_pods_share_is_read_once_and_never_summed(serve: Serve) -> None:
    pods = [row("DCGM_FI_PROF_DRAM_ACTIVE", each, pod=f"engine-{each}") for each in (0.4, 0.41, 0.39)]
    assert value((await (await serve(*pods)).readings())[ONE].dram_active) == (0.41, 990.0)


async def test_of_two_scrapes_of_one_gpu_the_newest_counts(serve: Serve) -> None:
    there = await serve(
        row("DCGM_FI_PROF_DRAM_ACTIVE", 0.9, at=940.0, pod="gone"), row("DCGM_FI_PROF_DRAM_ACTIVE", 0.2, pod="here")
    )
    assert value((await there.readings())[ONE].dram_active) == (0.2, 990.0)


async def test_rows_of_unnamed_slices_and_blanks_and_of_no_gpu_are_nobodys(serve: Serve) -> None:
    name = "DCGM_FI_PROF_DRAM_ACTIVE"
    nameless = {"metric": {"__name__": name}, "values": [[990.0, "0.5"]]}
    broken = {"metric": {"__name__": name, "UUID": TWO}, "values": []}
    there = await serve(row(name, 0.7, GPU_I_ID="1"), row(name, 1.5e14), nameless, broken)
    assert await there.readings() == {}


async def test_a_row_of_a_slice_is_the_slices(serve: Serve) -> None:
    there = await serve(row("DCGM_FI_PROF_DRAM_ACTIVE", 0.7, GPU_I_ID="1", dra_mig_device_uuid="MIG-1"))
    found = await there.readings()
    assert {uuid: value(each.dram_active)[0] for uuid, each in found.items()} == {"MIG-1": 0.7}


async def test_a_row_of_a_slice_of_a_device_plugin_is_its_pods_and_tells_the_card(serve: Serve) -> None:
    who = {"exported_namespace": "ns", "exported_pod": "p", "namespace": "monitoring", "pod": "dcgm"}
    there = await serve(row("DCGM_FI_PROF_DRAM_ACTIVE", 0.7, GPU_I_ID="1", **who))
    assert {name: each.card for name, each in (await there.readings()).items()} == {"ns/p": ONE}


async def test_dcgm_is_preferred_to_the_agent_and_the_agent_is_better_than_nothing(serve: Serve) -> None:
    agents = {
        uuid: {
            "metric": {"__name__": DRAM_BANDWIDTH.name, "uuid": uuid},
            "values": [[990.0, "0.33"]],
        }
        for uuid in (ONE, TWO)
    }
    there = await serve(row("DCGM_FI_PROF_DRAM_ACTIVE", 0.5), *agents.values())
    found = await there.readings()
    assert (found[ONE].counter, value(found[ONE].dram_active)[0]) == (Counter.DCGM_DRAM_ACTIVE, 0.5)
    assert (found[TWO].counter, value(found[TWO].dram_active)[0]) == (Counter.GPM_DRAM_BANDWIDTH, 0.33)


async def test_an_xid_and_a_lost_gpu_are_read_too(serve: Serve) -> None:
    lost = {"metric": {"__name__": GPU_LOST.name, "uuid": TWO}, "values": [[990.0, "1"]]}
    found = await (await serve(row("DCGM_FI_DEV_XID_ERRORS", 48.0), lost)).readings()
    assert [value(found[each].xid)[0] for each in (ONE, TWO)] == [48.0, 79.0]


async def test_a_query_of_the_users_is_taken_at_its_word_and_as_one_period_old(serve: Serve) -> None:
    there = await serve({"metric": {"uuid": ONE}, "value": [NOW, "0.6"]})
    asked = (Quantity.DRAM_ACTIVE, "max by (uuid) (my_dram)")
    found = (await there.readings(asked, counter=Counter.NVML_MEMORY_BUSY))[ONE]
    assert "max by (uuid) (my_dram)" in there.queries
    assert value(found.dram_active) == (0.6, NOW - PERIOD)
    assert found.counter is Counter.NVML_MEMORY_BUSY


async def test_a_token_is_shown_and_told_to_nobody(serve: Serve) -> None:
    there = await serve(row("DCGM_FI_PROF_DRAM_ACTIVE", 0.5))
    await there.readings(token="sesame")
    assert there.tokens == {"Bearer sesame"}
    assert "sesame" not in repr(Credentials(token="sesame"))


@pytest.mark.parametrize(
    ("said", "reason", "sentence"),
    [
        ({"status": 401}, Refused.UNAUTHORIZED, "refuses the token (401)"),
        ({"status": 403}, Refused.UNAUTHORIZED, "refuses the token (403)"),
        ({"status": 502}, Refused.UNREACHABLE, "answers 502"),
        (
            {"status": 400, "body": b'{"status":"error","error":"parse error: unexpected end"}'},
            Refused.QUERY, "parse error: unexpected end",
        ),
        ({"body": b"<html>Welcome</html>"}, Refused.QUERY, "not as a Prometheus does"),
        ({"body": b"[]"}, Refused.QUERY, "not as a Prometheus does"),
    ],
)  # fmt: skip
async def test_who_refuses_is_named_with_what_to_do(
    serve: Serve, said: dict[str, Any], reason: Refused, sentence: str
) -> None:
    there = await serve(**said)
    refusal = await there.refusal()
    assert refusal.reason is reason
    assert there.url in refusal.message
    assert sentence in refusal.message


async def test_a_prometheus_that_is_not_there_is_unreachable() -> None:
    refusal = await Prometheus(url="http://127.0.0.1:1").refusal()
    assert (refusal.reason, "cannot be reached" in refusal.message) == (Refused.UNREACHABLE, True)


async def test_an_authority_that_is_no_certificate_is_refused_before_anything_is_sent() -> None:
    target = PrometheusTarget(url="https://127.0.0.1:1", look_back=Seconds(90.0))
    answer = await ask(target, Credentials(authorities="nonsense"), now=NOW, period=PERIOD)
    assert isinstance(answer, Refusal)
    assert answer.reason is Refused.NO_CREDENTIALS
    assert "ca.crt is no certificate" in answer.message


async def test_what_was_read_before_a_refusal_ages_and_then_is_missing_for_its_cause(serve: Serve) -> None:
    history = PrometheusHistory()
    there = await serve(row("DCGM_FI_PROF_DRAM_ACTIVE", 0.5))
    history.add(NOW, await there.readings())
    history.refuse(Refusal(reason=Refused.UNAUTHORIZED, message="no"))
    assert value(history.readings(ONE, NOW + 60.0, 90.0).dram_active) == (0.5, 990.0)
    late = history.readings(ONE, NOW + 91.0, 90.0).dram_active
    assert isinstance(late, Missing)
    assert late.cause is Cause.UNAUTHORIZED
    unknown = history.readings(TWO, NOW, 90.0).dram_active
    assert isinstance(unknown, Missing)
    assert unknown.cause is Cause.NO_SERIES


def test_the_built_in_queries_ask_for_samples_by_every_name() -> None:
    query = built_in(Quantity.FB_USED, Seconds(89.5))
    assert query.endswith("[90s]")
    assert {"DCGM_FI_DEV_FB_USED_BYTES", "DCGM_FI_DEV_FB_USED"} <= set(query.split('"')[1].split("|"))
