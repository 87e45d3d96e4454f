"""A mirror holds what the API server holds, through everything that connections do, and knows how old its view is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web

from gpupack.kube.api import Api
from gpupack.kube.mirror import Mirror

from . import tiny_api
from .tiny_api import TinyApi, running, until

PATH = "/api/v1/things"


@pytest.fixture
async def server() -> AsyncIterator[TinyApi]:
    async with tiny_api.serving() as server:
        yield server


@pytest.fixture
async def api(server: TinyApi) -> AsyncIterator[Api]:
    async with server.api() as api:
        yield api


def thing(name: str, size: int = 0, namespace: str = "") -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace}, "size": size, "noise": "x" * 10}


def record(obj: dict[str, Any]) -> tuple[str, int] | None:
    return None if obj["size"] < 0 else (obj["metadata"]["name"], obj["size"])


class Stirred:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def mirror(api: Api, stir: Callable[[], None] = lambda: None, **options: Any) -> Mirror[tuple[str, int]]:
    return Mirror(api, PATH, record, stir, name="things", **options)


async def test_what_was_there_and_what_comes_and_goes_is_held_in_order(server: TinyApi, api: Api) -> None:
    server.put(PATH, thing("b", 1))
    server.put(PATH, thing("a", 1))
    held = mirror(api)
    async with running(held.run()):
        await held.synced.wait()
        assert held.all() == (("a", 1), ("b", 1))
        server.put(PATH, thing("c", 3))
        server.put(PATH, thing("a", 2))
        server.remove(PATH, "b")
        await until(lambda: held.all() == (("a", 2), ("c", 3)))
        assert held.get("", "c") == ("c", 3)
    assert server.asked == [("list", PATH), ("watch", PATH)]


async def test_a_long_list_comes_in_pages(server: TinyApi, api: Api) -> None:
    server.page = 10
    for number in range(35):
        server.put(PATH, thing(f"thing-{number:02}"))
    held = mirror(api)
    async with running(held.run()):
        await held.synced.wait()
        assert len(held.all()) == 35
    assert server.asked.count(("list", PATH)) == 4


async def test_a_deletion_that_was_missed_leaves_no_ghost(server: TinyApi, api: Api) -> None:
    for name in ("a", "b", "c"):
        server.put(PATH, thing(name))
    stirred = Stirred()
    held = mirror(api, stirred)
    async with running(held.run()):
        await held.synced.wait()
        await server.stop()
        server.remove(PATH, "a", told=False)
        server.remove(PATH, "b", told=False)
        server.versions_kept_since = server.version
        before = stirred.count
        await server.start()
        await until(lambda: held.all() == (("c", 0),))
        assert stirred.count > before


async def test_an_api_server_that_was_away_is_followed_from_where_it_was(server: TinyApi, api: Api) -> None:
    server.put(PATH, thing("a"))
    held = mirror(api)
    async with running(held.run()):
        await held.synced.wait()
        await server.stop()
        server.put(PATH, thing("b"))
        await server.start()
        await until(lambda: held.all() == (("a", 0), ("b", 0)))
    assert server.asked.count(("list", PATH)) == 1


async def test_a_black_hole_is_noticed_and_the_connection_opened_again(server: TinyApi, api: Api) -> None:
    server.put(PATH, thing("a"))
    held = mirror(api, silence_seconds=0.2)
    async with running(held.run()):
        await held.synced.wait()
        server.put(PATH, thing("b"), told=False)  # as if the packets of this event were lost
        server.versions_kept_since = server.version
        await until(lambda: held.all() == (("a", 0), ("b", 0)))


async def test_bookmarks_keep_a_quiet_mirror_young_and_move_its_version_on(server: TinyApi, api: Api) -> None:
    now = 0.0
    server.put(PATH, thing("a"))
    stirred = Stirred()
    held = mirror(api, stirred, clock=lambda: now)
    assert held.age == float("inf")
    async with running(held.run()):
        await held.synced.wait()
        await until(lambda: ("watch", PATH) in server.asked)
        now = 60.0
        assert held.age == 60.0
        server.version += 100
        server.bookmark(PATH)
        await until(lambda: held.age == 0.0)
        before = stirred.count
        server.versions_kept_since = server.version  # a watch from before the bookmark would be expired
        server.end_watches()
        await until(lambda: server.asked.count(("watch", PATH)) == 2)
    assert server.asked.count(("list", PATH)) == 1
    assert stirred.count == before


async def test_the_age_grows_while_the_api_server_is_silent(server: TinyApi, api: Api) -> None:
    now = 0.0
    held = mirror(api, clock=lambda: now)
    async with running(held.run()):
        await held.synced.wait()
        await server.stop()
        now = 95.0
        assert held.age == 95.0
        await server.start()
        await until(lambda: held.age == 0.0)


async def test_a_change_that_the_record_does_not_show_stirs_nobody(server: TinyApi, api: Api) -> None:
    server.put(PATH, thing("a", 1))
    stirred = Stirred()
    held = mirror(api, stirred)
    async with running(held.run()):
        await until(lambda: stirred.count == 1)
        server.put(PATH, {**thing("a", 1), "noise": "other"})
        server.put(PATH, thing("ignored", -1))
        server.put(PATH, thing("b", 2))
        await until(lambda: held.get("", "b") is not None)
        assert stirred.count == 2


async def test_what_does_not_matter_is_held_but_stirs_nobody(server: TinyApi, api: Api) -> None:
    stirred = Stirred()
    held = mirror(api, stirred, matters=lambda record: record[1] > 10)
    async with running(held.run()):
        await held.synced.wait()
        before = stirred.count
        server.put(PATH, thing("small", 1))
        await until(lambda: held.get("", "small") is not None)
        assert stirred.count == before
        server.put(PATH, thing("large", 11))
        await until(lambda: stirred.count == before + 1)
        server.put(PATH, thing("large", 1))
        await until(lambda: stirred.count == before + 2)


async def test_an_object_that_cannot_be_read_hides_no_other(
    server: TinyApi, api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    server.put(PATH, {"metadata": {"name": "broken"}})
    server.put(PATH, thing("whole"))
    held = mirror(api)
    async with running(held.run()):
        await held.synced.wait()
        assert held.all() == (("whole", 0),)
    assert "things /broken cannot be read" in caplog.text


async def test_events_may_come_in_pieces_and_several_at_once(server: TinyApi, api: Api) -> None:
    held = mirror(api)
    async with running(held.run()):
        await until(lambda: ("watch", PATH) in server.asked)
        line = b'{"type":"ADDED","object":{"metadata":{"name":"%s","resourceVersion":"%d"},"size":1}}\n'
        first, second = line % (b"a", 98), line % (b"b", 99)
        server.send(PATH, first[:30])
        server.send(PATH, first[30:] + second[:1])
        server.send(PATH, second[1:])
        await until(lambda: held.all() == (("a", 1), ("b", 1)))


async def test_a_selector_is_asked_of_the_server_for_lists_and_watches(server: TinyApi, api: Api) -> None:
    held = mirror(api, label_selector="a=b")
    async with running(held.run()):
        await until(lambda: ("watch", PATH) in server.asked)
    assert server.selectors == {"a=b"}


async def test_half_a_line_is_no_event_and_the_watch_goes_on_from_where_it_was(server: TinyApi, api: Api) -> None:
    server.put(PATH, thing("a"))
    held = mirror(api)
    async with running(held.run()):
        await until(lambda: ("watch", PATH) in server.asked)
        server.put(PATH, thing("b"), told=False)
        server.send(PATH, b'{"type":"ADDED","object":{"meta\n')
        await until(lambda: server.asked.count(("watch", PATH)) == 2)
        server.put(PATH, thing("c"))
        await until(lambda: held.get("", "c") is not None)
    assert server.asked.count(("list", PATH)) == 1


async def test_a_watch_that_ends_in_the_middle_of_a_line_is_followed_by_another(server: TinyApi, api: Api) -> None:
    held = mirror(api)
    async with running(held.run()):
        await until(lambda: ("watch", PATH) in server.asked)
        server.send(PATH, b'{"type":"ADDED","object":{"meta')
        server.end_watches()
        await until(lambda: server.asked.count(("watch", PATH)) == 2)
        server.put(PATH, thing("a"))
        await until(lambda: held.all() == (("a", 0),))


async def test_an_event_that_is_repeated_brings_back_nothing(server: TinyApi, api: Api) -> None:
    held = mirror(api)
    async with running(held.run()):
        await until(lambda: ("watch", PATH) in server.asked)
        server.put(PATH, thing("a", 1))
        await until(lambda: held.get("", "a") is not None)
        server.put(PATH, thing("a", 2))
        server.remove(PATH, "a")
        *_, added, _changed, _removed = (line for _, _, line in server._history)
        server.send(PATH, added)
        server.put(PATH, thing("b"))
        await until(lambda: held.get("", "b") is not None)
        assert held.all() == (("b", 0),)


async def test_an_error_of_a_server_in_trouble_costs_no_list(server: TinyApi, api: Api) -> None:
    held = mirror(api)
    async with running(held.run()):
        await until(lambda: ("watch", PATH) in server.asked)
        error = (
            b'{"type":"ERROR","object":{"kind":"Status","code":500,"reason":"InternalError","message":"no leader"}}\n'
        )
        server.send(PATH, error)
        await until(lambda: server.asked.count(("watch", PATH)) == 2)
        server.put(PATH, thing("a"))
        await until(lambda: held.get("", "a") is not None)
    assert server.asked.count(("list", PATH)) == 1


async def test_a_server_that_goes_on_refusing_a_version_is_asked_for_a_list(server: TinyApi, api: Api) -> None:
    server.put(PATH, thing("a"))
    held = mirror(api)
    async with running(held.run()):
        await until(lambda: ("watch", PATH) in server.asked)
        version = server.version
        server.put(PATH, thing("b"), told=False)
        server.answer_read = lambda request: (
            web.json_response({"code": 500}, status=500)
            if request.query.get("resourceVersion") == str(version)
            else None
        )
        server.end_watches()
        await until(lambda: held.get("", "b") is not None)


async def test_after_silence_everything_is_listed_for_what_may_have_been_missed(server: TinyApi, api: Api) -> None:
    server.put(PATH, thing("a"))
    held = mirror(api, silence_seconds=0.2)
    async with running(held.run()):
        await until(lambda: ("watch", PATH) in server.asked)
        server.put(PATH, thing("b"), told=False)  # and the next watch would be as silent as this one
        server._history.clear()
        await until(lambda: held.get("", "b") is not None)


async def test_a_page_that_is_no_list_is_asked_for_again(server: TinyApi, api: Api) -> None:
    pages = [web.Response(text="<html>a gateway's page</html>"), web.Response(text="[]")]
    server.answer_read = lambda _request: pages.pop() if pages else None
    server.put(PATH, thing("a"))
    held = mirror(api)
    async with running(held.run()):
        await held.synced.wait()
        assert held.all() == (("a", 0),)


async def test_a_kind_that_the_api_server_does_not_know_is_empty_where_that_may_be(server: TinyApi, api: Api) -> None:
    server.answer_read = lambda _: web.json_response({"reason": "NotFound", "message": "no such kind"}, status=404)
    stirred = Stirred()
    held, asked_for = mirror(api, stirred, may_be_unserved=True), mirror(api)
    async with running(held.run(), asked_for.run()):
        await held.synced.wait()
        assert (held.is_served, held.all(), stirred.count) == (False, (), 1)
        await until(lambda: asked_for.problem is not None)
        assert not asked_for.synced.is_set()
