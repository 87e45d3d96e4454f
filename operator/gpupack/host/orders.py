"""What the operator orders: the engines that shall run in this pod, numbered by a generation that only grows.

JSON at the border, values inside. A set of orders that reads wrong is refused whole; the ones before it stay.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

HIGHEST_PORT = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOrder:
    """One engine: `arguments` follow the pod's engine command, `marks` are the operator's and come back in reports.

    An engine of another name, port or argument is another engine.
    """

    name: str
    port: int
    arguments: tuple[str, ...]
    marks: tuple[tuple[str, str], ...] = ()

    def is_same(self, other: EngineOrder) -> bool:
        """Whether a process that runs for one of them will do for the other."""
        return (self.name, self.port, self.arguments) == (other.name, other.port, other.arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    generation: int = 0
    engines: tuple[EngineOrder, ...] = ()


def orders_of(text: str | bytes) -> Orders:
    """Raises ValueError with a sentence that says what is wrong."""
    try:
        found = json.loads(text)
    except ValueError as wrong:
        raise ValueError(f"this is not JSON: {wrong}") from None
    if not isinstance(found, dict) or not isinstance(found.get("engines"), list):
        raise ValueError("orders are an object with a generation and a list of engines")
    generation = found.get("generation")
    if not isinstance(generation, int) or isinstance(generation, bool) or generation < 1:
        raise ValueError("the generation is a whole number from 1 on")
    engines = tuple(_engine(each) for each in found["engines"])
    for what, values in (("name", [each.name for each in engines]), ("port", [each.port for each in engines])):
        if len({*values}) < len(values):
            raise ValueError(f"two engines have the same {what}")
    return Orders(generation=generation, engines=engines)


def orders_text(orders: Orders) -> str:
    """What `orders_of` reads; equal orders give equal text."""
    engines = [
        {"name": each.name, "port": each.port, "arguments": list(each.arguments), "marks": dict(each.marks)}
        for each in orders.engines
    ]
    return json.dumps({"generation": orders.generation, "engines": engines}, separators=(",", ":"))


def _engine(found: object) -> EngineOrder:
    if not isinstance(found, dict):
        raise ValueError("an engine is an object")
    name, port, arguments, marks = (found.get(part) for part in ("name", "port", "arguments", "marks"))
    if not isinstance(name, str) or not name:
        raise ValueError("an engine has a name")
    if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= HIGHEST_PORT:
        raise ValueError(f"the port of {name} is a number from 1 to {HIGHEST_PORT}")
    if not isinstance(arguments, list) or not all(isinstance(each, str) for each in arguments):
        raise ValueError(f"the arguments of {name} are a list of words")
    return EngineOrder(name=name, port=port, arguments=tuple(arguments), marks=_marks(name, marks))


def _marks(name: str, found: object) -> tuple[tuple[str, str], ...]:
    if found is None:
        return ()
    if not isinstance(found, Mapping) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f"the marks of {name} are words by name")
    return tuple(sorted(found.items()))
