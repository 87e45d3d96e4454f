"""Lists of a cluster that a user may not be allowed to read: what is not there and what was not seen are two things."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from gpupack.errors import Unavailable
from gpupack.kube.access import FORBIDDEN
from gpupack.kube.api import Api, ApiError

PAGE = 500
UNAUTHORIZED = 401
IS_FORBIDDEN = " is forbidden: "

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unseen:
    """A part of the cluster that could not be looked at; `why` ends a sentence, without its full stop."""

    why: str


async def everything(api: Api, path: str, **query: str) -> list[Json]:
    """Every object of a list, page by page."""
    items: list[Json] = []
    more: dict[str, str] = {}
    while True:
        answer = await api.get(path, limit=PAGE, **query, **more)
        items.extend(answer["items"])
        token = answer["metadata"].get("continue")
        if not token:
            return items
        more = {"continue": token}


async def or_unseen(asked: Awaitable[list[Json]]) -> list[Json] | Unseen:
    try:
        return await asked
    except Unavailable as refused:
        return Unseen(why=reason_of(refused))


def reason_of(refused: Unavailable) -> str:
    """The refusal in the API server's own words, without its code where that says nothing more."""
    said = str(refused)
    if isinstance(refused, ApiError) and refused.status == UNAUTHORIZED:
        said = "the API server does not accept the credentials of the kubeconfig (401 Unauthorized)"
    if isinstance(refused, ApiError) and refused.status == FORBIDDEN:
        said = said.partition(IS_FORBIDDEN)[2] or said
    return said.strip().rstrip(".")
