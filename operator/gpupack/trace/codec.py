"""Our frozen dataclasses as JSON and back, exactly, whatever fields they have today.

Field names are the keys. A union of dataclasses carries the class's name under `kind`, but for readings, which are
most of a line: `[value, at, origin]` is a Reading, `[cause, origin]` a Missing. Every field is written, defaults too,
because a default may be another one when the line is read; a field that is absent takes today's default. Numbers that
are not finite are the words NaN, Infinity and -Infinity, so that a line is JSON for everybody.

It knows types, not what they mean.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Callable, Mapping
from enum import IntEnum, StrEnum
from typing import Any, TypeVar, Union, get_args, get_origin

from cattrs import Converter
from cattrs.errors import (
    AttributeValidationNote,
    BaseValidationError,
    IterableValidationNote,
    StructureHandlerNotFoundError,
)

from gpupack.facts.observation import Cause, Missing, Reading
from gpupack.units import Seconds

T = TypeVar("T")

Json = Mapping[str, "Json"] | list["Json"] | str | int | float | bool | None

KIND = "kind"
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class UnreadableError(ValueError):
    """What was written does not fit the type; the message says where."""


def to_json(value: object) -> str:
    """One line, the same for equal values."""
    plain = _CONVERTER.unstructure(value)
    try:
        return json.dumps(plain, allow_nan=False, separators=(",", ":"), check_circular=False)
    except ValueError:
        return json.dumps(_with_words(plain), allow_nan=False, separators=(",", ":"), check_circular=False)


def decoded(plain: object, wanted: type[T]) -> T:
    """What `to_json` wrote, after `json.loads`. Raises UnreadableError."""
    try:
        return _CONVERTER.structure(plain, wanted)
    except StructureHandlerNotFoundError:
        raise  # a type that this module cannot carry: a bug, not a bad file
    except BaseValidationError as wrong:
        raise UnreadableError(_first_reason(wrong)) from None
    except (KeyError, TypeError, ValueError, AttributeError) as wrong:
        raise UnreadableError(_reason(wrong)) from None


def _with_words(plain: Any) -> Any:
    if isinstance(plain, float) and not math.isfinite(plain):
        return next(word for word, value in _NOT_FINITE.items() if str(value) == str(plain))
    if isinstance(plain, dict):
        return {key: _with_words(value) for key, value in plain.items()}
    if isinstance(plain, list | tuple):
        return [_with_words(value) for value in plain]
    return plain


def _first_reason(wrong: BaseException, path: str = "") -> str:
    """The innermost of the first of nested complaints, with the fields that lead there."""
    while isinstance(wrong, BaseExceptionGroup):
        inner = wrong.exceptions[0]
        for note in getattr(inner, "__notes__", ()):
            if isinstance(note, AttributeValidationNote):
                path += f".{note.name}"
            elif isinstance(note, IterableValidationNote):
                path += f"[{note.index}]"
        wrong = inner
    return f"{path.lstrip('.')}: {_reason(wrong)}" if path else _reason(wrong)


def _reason(wrong: BaseException) -> str:
    return f"{wrong.args[0]!r} is missing" if isinstance(wrong, KeyError) else str(wrong)


def _exact(wanted: type) -> Callable[[object, object], Any]:
    def structure(plain: object, _: object) -> object:
        if type(plain) is not wanted:
            raise TypeError(f"{plain!r} is not a {wanted.__name__}")
        return plain

    return structure


def _float(plain: object, _: object) -> float:
    if type(plain) is float or type(plain) is int:
        return plain  # a whole number where a float may stand comes back as it was
    if isinstance(plain, str) and plain in _NOT_FINITE:
        return _NOT_FINITE[plain]
    raise TypeError(f"{plain!r} is not a number")


def _measured_to_list(seen: Reading | Missing) -> list[object]:
    if type(seen) is Reading:
        return [seen.value, seen.at, seen.origin]
    assert isinstance(seen, Missing)
    return [seen.cause, seen.origin]


def _measured(plain: object, _: object) -> Reading | Missing:
    match plain:
        case [value, at, str(origin)]:
            return Reading(value=_float(value, None), at=Seconds(_float(at, None)), origin=origin)
        case [str(cause), str(origin)]:
            return Missing(cause=Cause(cause), origin=origin)
    raise TypeError(f"{plain!r} is neither a reading nor a missing one")


def _classes(wanted: Any) -> list[type]:
    """The dataclasses of a union of at least two."""
    if get_origin(wanted) not in (Union, types.UnionType):
        return []
    found = [each for each in get_args(wanted) if dataclasses.is_dataclass(each) and isinstance(each, type)]
    return found if len(found) > 1 else []


def _is_measured(wanted: Any) -> bool:
    return set(get_args(wanted)) == {Reading, Missing}


def _union_to_dict(converter: Converter, wanted: Any) -> Callable[[Any], Any]:
    if _is_measured(wanted):
        return _measured_to_list
    hooks = {each: converter.get_unstructure_hook(each) for each in _classes(wanted)}

    def unstructure(value: Any) -> Any:
        return None if value is None else {KIND: type(value).__name__, **hooks[type(value)](value)}

    return unstructure


def _union(converter: Converter, wanted: Any) -> Callable[[Any, Any], Any]:
    if _is_measured(wanted):
        return _measured
    hooks = {each.__name__: (each, converter.get_structure_hook(each)) for each in _classes(wanted)}

    def structure(plain: Any, _: Any) -> Any:
        if plain is None and type(None) in get_args(wanted):
            return None
        kind = plain.get(KIND) if isinstance(plain, dict) else None
        if kind not in hooks:
            raise TypeError(f"{kind!r} is none of {', '.join(sorted(hooks))}")
        made, hook = hooks[kind]
        return hook(plain, made)

    return structure


def _make() -> Converter:
    # Enums are strings or integers already, and tuples become lists in JSON as they are.
    converter = Converter(unstruct_collection_overrides={frozenset: sorted, tuple: tuple})
    for kind, hook in ((str, _exact(str)), (int, _exact(int)), (bool, _exact(bool)), (float, _float)):
        converter.register_structure_hook(kind, hook)
    for enum in (IntEnum, StrEnum):  # or those of int and str would be taken for them
        converter.register_structure_hook(enum, lambda plain, wanted: wanted(plain))
    converter.register_structure_hook_factory(lambda wanted: bool(_classes(wanted)), _factory(converter, _union))
    converter.register_unstructure_hook_factory(
        lambda wanted: bool(_classes(wanted)), _factory(converter, _union_to_dict)
    )
    return converter


def _factory(converter: Converter, make: Callable[[Converter, Any], Any]) -> Callable[[Any], Any]:
    return lambda wanted: make(converter, wanted)


_CONVERTER = _make()
