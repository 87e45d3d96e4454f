"""`gpupack top` over a recorded journey, an API server on a socket and a terminal without a screen."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from rich.console import Console
from textual.pilot import Pilot
from textual.widgets import DataTable, Static

from gpupack import catalog
from gpupack.cli import main
from gpupack.cli.explain import prose
from gpupack.errors import Unavailable
from gpupack.facts.glance import glance
from gpupack.top import cells
from gpupack.top.app import Explanation, TopApp
from gpupack.top.feed import Feed
from gpupack.top.page import Live, live_of
from gpupack.top.snapshot import Snapshot, pool_record, serving_record, snapshot
from gpupack.top.tables import GPUS, arranged, drawn, headline

from ..kube.tiny_api import TinyApi
from .world import POOLS, SERVINGS, cluster_of, kubeconfig_of, last_look, page_of, pool_of, servings_of

LOOK = last_look()
KIND_OF = {each.name: each for each in catalog.gpus()}.get
PATIENCE_SECONDS = 60.0


def told(live: Live) -> Snapshot:
    return snapshot([pool_record(pool_of(LOOK))], [serving_record(each) for each in servings_of(LOOK)], live, KIND_OF)


@pytest.fixture
async def cluster() -> AsyncIterator[TinyApi]:
    api = cluster_of(pool_of(LOOK), servings_of(LOOK), page_of(LOOK))
    await api.start()
    yield api
    await api.stop()


async def feed_of(api: Any, namespace: str | None = None) -> Feed:
    feed = Feed(api, KIND_OF, namespace=namespace, metrics=None)
    await feed.look()
    return feed


async def until(pilot: Pilot[None], true: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not true():
            await pilot.pause(0.02)


def text_of(app: TopApp, where: str) -> str:
    return str(app.query_one(where, Static).content)


def column(table: DataTable[Any], number: int) -> list[str]:
    return [str(table.get_row_at(row)[number]) for row in range(table.row_count)]


def test_the_page_reads_back_as_what_the_operator_saw() -> None:
    live, seen = live_of(page_of(LOOK).decode()), glance(LOOK[0])
    assert [live.gpus[each.gpu.uuid].memory_used for each in seen.gpus] == [each.memory_used for each in seen.gpus]
    assert [live.gpus[each.gpu.uuid].power for each in seen.gpus] == [each.power for each in seen.gpus]
    serving = live.servings[seen.servings[0].key]
    assert serving.requests_per_second == seen.servings[0].requests_per_second
    assert serving.latencies["itl", "P95"] == seen.servings[0].itl_p95


def test_free_gpus_and_those_in_use_stand_with_what_is_on_them() -> None:
    free, used = told(live_of(page_of(LOOK).decode())).gpus
    assert (free.engines, free.dram_active, free.attainable) == ((), 0.0, None)
    assert [str(each.serving) for each in used.engines] == ["default/chat"]
    assert used.engines[0].memory == 7 * used.memory // 100  # type: ignore[operator]
    assert used.dram_at is None


def test_a_slice_stands_below_its_gpu_and_the_gpu_counts_once() -> None:
    live = live_of(page_of(LOOK).decode())
    free, used = told(live).gpus
    cut = replace(live, gpus={**live.gpus, used.uuid: replace(live.gpus[used.uuid], parent=free.uuid)})
    seen = replace(told(cut), pools=())
    assert [(each.uuid, each.cut) for each in seen.gpus] == [(free.uuid, True), (used.uuid, False)]
    assert headline(seen).plain.startswith("1 of 1 GPU in use")
    out = StringIO()
    console = Console(file=out, width=160)
    console.print(drawn(seen, console))
    assert re.search(f"{free.uuid[:12]} .* in slices", out.getvalue())
    assert f"└ {used.uuid[:12]}" in out.getvalue()


def test_without_the_operators_page_nothing_is_zero_and_old_readings_say_when() -> None:
    (gpu,) = told(Live()).gpus
    assert (gpu.memory_used, gpu.power, gpu.tokens_per_second) == (None, None, None)
    assert gpu.dram_at is not None, "of the last judged step"
    out = StringIO()
    console = Console(file=out, width=160)
    console.print(drawn(told(Live()), console))
    assert re.search(r"\d+ % at \d\d:\d\d:\d\d", out.getvalue())
    assert re.search(r"default/chat\s+2 of 1\s+-\s+- of 25", out.getvalue())


def test_what_is_not_known_stays_at_the_end_whichever_way_it_is_sorted() -> None:
    one, other = told(live_of(page_of(LOOK).decode())).gpus
    rows = [replace(one, power=None, uuid="a"), replace(one, power=200.0, uuid="b"), replace(other, power=100.0)]  # type: ignore[arg-type]
    power = next(each for each in GPUS if each.title == "power")
    assert [each.power for each in arranged(rows, power)] == [200.0, 100.0, None]
    assert [each.power for each in arranged(rows, power, other_way=True)] == [100.0, 200.0, None]


def test_a_gauge_shows_what_cannot_be_reached_and_never_more_than_its_width() -> None:
    assert cells.gauge(0.25, 8, 0.5).plain == "██  ╱╱╱╱"
    assert cells.gauge(0.75, 8, 0.5).plain == "██████╱╱"
    assert cells.gauge(1.5, 8).plain == "█" * 8
    assert cells.segments([(2.0, "cyan"), (2.0, "cyan"), (9.0, "blue")], 8.0, 8).plain == "██▓▓████"


async def test_a_cluster_without_gpupack_is_told_apart_from_one_that_may_not_be_read() -> None:
    api = TinyApi(answer_read=lambda _: web.json_response({"reason": "NotFound", "message": "no"}, status=404))
    await api.start()
    try:
        async with api.api() as calls:
            with pytest.raises(Unavailable, match="not installed in this cluster; `gpupack doctor`"):
                await feed_of(calls)
            api.answer_read = lambda _: web.json_response({"reason": "Forbidden", "message": "no"}, status=403)
            with pytest.raises(Unavailable, match=r"may not list modelservings.*-n"):
                await feed_of(calls)
    finally:
        await api.stop()


async def test_one_who_may_read_only_a_namespace_still_sees_its_servings() -> None:
    inside = SERVINGS.replace("modelservings", "namespaces/default/modelservings")
    api = TinyApi()
    for each in servings_of(LOOK):
        api.put(inside, each)
    refusal = {"reason": "Forbidden", "message": "no"}
    api.answer_read = lambda request: None if request.path == inside else web.json_response(refusal, status=403)
    await api.start()
    try:
        async with api.api() as calls:
            seen = (await feed_of(calls, "default")).snapshot()
    finally:
        await api.stop()
    assert [str(each.key) for each in seen.servings] == ["default/chat"]
    assert "you may not list gpupools" in seen.problem
    assert "no live values: 403 Forbidden" in seen.note


async def test_the_view_follows_statuses_and_says_when_the_api_server_is_gone(cluster: TinyApi) -> None:
    async with cluster.api() as calls:
        app = TopApp(await feed_of(calls), prose, every=0.2)
        async with app.run_test(size=(140, 40)) as pilot:
            await until(pilot, lambda: app.gpus.row_count == 2)
            assert column(app.servings, 0) == ["default/chat"]
            assert "1 of 2 GPUs in use" in text_of(app, "#headline")
            assert text_of(app, "#said").startswith("A replica on GPU-ccea577a is given up")
            (serving,) = servings_of(LOOK)
            serving["status"]["decision"]["reason"] = "BandwidthCeiling"
            cluster.put(SERVINGS, serving)
            await until(pilot, lambda: "BandwidthCeiling" in column(app.servings, 7))
            pool = pool_of(LOOK)
            pool["status"]["replicas"] = 7
            cluster.put(POOLS, pool)
            await until(pilot, lambda: column(app.pools, 3) == ["7"])
            assert app.pools.get_row_at(0)[3].justify == "right", "a number that changes stays below its title"
            await cluster.stop()
            await until(pilot, lambda: "the API server is not heard" in text_of(app, "#note"))
            assert column(app.servings, 0) == ["default/chat"], "what was seen last stays"
            await pilot.press("ctrl+c")


async def test_rows_are_sorted_filtered_and_explained_by_keys(cluster: TinyApi) -> None:
    (serving,) = servings_of(LOOK)
    other = {**serving, "metadata": {**serving["metadata"], "name": "mail"}}
    cluster.put(SERVINGS, other)
    async with cluster.api() as calls:
        app = TopApp(await feed_of(calls), prose, every=0.2)
        async with app.run_test(size=(140, 40)) as pilot:
            await until(pilot, lambda: app.servings.row_count == 2)
            await pilot.press("s", "s")
            assert app.servings.border_title == "ModelServings (2, by ready)"
            await pilot.press("slash", *"mail")
            await until(pilot, lambda: column(app.servings, 0) == ["default/mail"])
            await pilot.press("enter", "enter")
            await until(pilot, lambda: isinstance(app.screen, Explanation))
            assert "default/mail: 2 replicas planned" in str(app.screen.query_one(Static).content)
            await pilot.press("escape")
            await pilot.press("escape")
            await until(pilot, lambda: app.servings.row_count == 2)


async def test_a_small_terminal_shows_every_table_without_scrolling_sideways(cluster: TinyApi) -> None:
    async with cluster.api() as calls:
        app = TopApp(await feed_of(calls), prose, every=0.2)
        async with app.run_test(size=(80, 24)) as pilot:
            await until(pilot, lambda: app.gpus.row_count == 2)
            for table in (app.pools, app.gpus, app.servings):
                await until(pilot, lambda table=table: table.virtual_size.width <= 80 and table.region.bottom <= 24)
            app.servings.focus()


async def test_where_there_is_no_terminal_it_prints_once_in_plain_letters(
    cluster: TinyApi, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kubeconfig = kubeconfig_of(tmp_path, cluster.port)
    assert await asyncio.to_thread(main, ["top", "--kubeconfig", kubeconfig]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    for word in ("default/chat", "GPU-ccea577a", "H100-80GB", "13.7 of 79 GiB", "4.8 of 25", "281 W"):
        assert word in said
    assert POOLS not in said
