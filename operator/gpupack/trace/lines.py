"""The lines of a trace: a header that says what wrote it, then one tick a line.

A file may hold several headers, one for each process that went on with it; ticks belong to the header above them. A
last line that is cut off (the writer died) is no error. Which code wrote a line and what it decided is in it; whether
today's code agrees is not this module's question.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpupack import __version__
from gpupack.errors import Invalid
from gpupack.facts.observation import QUOTE, UNQUOTE, Observation
from gpupack.facts.policy import Policy
from gpupack.plan import Outcome
from gpupack.trace.codec import UnreadableError, decoded, to_json

FORMAT = "gpupack-trace"
VERSION = 1
_GIVE = "give a file that `gpupack operator --trace` wrote"
_OPENING, _CLOSING = (json.dumps(each)[1:-1] for each in (QUOTE, UNQUOTE))
# In JSON: up to the closing mark, or to the end of a text that was cut before it.
_QUOTED = re.compile(rf'{re.escape(_OPENING)}(?:(?!{re.escape(_CLOSING)})(?:[^"\\]|\\.))*(?:{re.escape(_CLOSING)})?')
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """`gpupack` is the version of the program that decided, `policy` the pool's at its first tick, `catalog` a digest
    of the datasheet figures it knew. Every line has its own policy and figures; these say where it comes from.
    """

    format: str = FORMAT
    version: int = VERSION
    gpupack: str = __version__
    policy: Policy
    catalog: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticked:
    """One recorded tick; `line` is its place in the file, from 1."""

    line: int
    header: Header
    observation: Observation
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    observation: Observation
    outcome: Outcome


def header_line(header: Header) -> str:
    return to_json(header)


def tick_line(observation: Observation, outcome: Outcome) -> str:
    """The line of a tick, without what containers wrote themselves: it may be a prompt or a token."""
    text = to_json(_Written(observation=observation, outcome=outcome))
    return _QUOTED.sub(lambda _: f"{_OPENING}...{_CLOSING}", text) if _OPENING in text else text


def first_object(path: Path, option: str = "FILE") -> dict[str, Any]:
    """The first line of any of our recordings, which says what the file is. Raises Invalid."""
    for number, text in _lines(path, option):
        return _object(path, number, text, option)
    raise Invalid(option, f"{path} is empty", _GIVE)


def read(path: Path, option: str = "FILE") -> Iterator[Ticked]:
    """Every whole tick of a trace, plain or compressed, as it is read. Raises Invalid with the line's number."""
    header: Header | None = None
    for number, text in _lines(path, option):
        fields = _object(path, number, text, option)
        if "format" in fields or header is None:
            header = _header(path, number, fields, option)
            continue
        try:
            both = decoded(fields, _Written)
        except UnreadableError as wrong:
            raise _corrupt(path, number, str(wrong), option) from wrong
        yield Ticked(line=number, header=header, observation=both.observation, outcome=both.outcome)
    if header is None:
        raise Invalid(option, f"{path} is empty", _GIVE)


def _header(path: Path, number: int, fields: dict[str, Any], option: str) -> Header:
    if fields.get("format") != FORMAT:
        raise Invalid(option, f"line {number} of {path} is no header of a trace", _GIVE)
    if fields.get("version") != VERSION:
        written = fields.get("version")
        raise Invalid(
            option,
            f"{path} is a trace of version {written}, written by gpupack {fields.get('gpupack', 'of unknown version')}",
            f"gpupack {__version__} reads version {VERSION}; read it with the gpupack that wrote it",
        )
    try:
        return decoded(fields, Header)
    except UnreadableError as wrong:
        raise _corrupt(path, number, str(wrong), option) from wrong


def _object(path: Path, number: int, text: str, option: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError as wrong:
        raise _corrupt(path, number, f"it is not JSON ({wrong})", option) from wrong
    if not isinstance(fields, dict):
        raise _corrupt(path, number, "it is not an object", option)
    return fields


def _corrupt(path: Path, number: int, problem: str, option: str) -> Invalid:
    return Invalid(
        option,
        f"line {number} of {path} cannot be read: {problem}",
        f"cut the file before it (head -n {number - 1}) or take the line out",
    )


def _lines(path: Path, option: str) -> Iterator[tuple[int, str]]:
    """Numbered lines that were written to their end."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            # A compressed file is whole: it is made from a plain one that was full.
            with io.BufferedReader(gzip.GzipFile(fileobj=raw) if packed else raw) as lines:
                for number, line in enumerate(lines, start=1):
                    if line.endswith(b"\n"):
                        yield number, line.decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as wrong:
        raise Invalid(option, f"{path} cannot be read ({wrong})", "give a file that is there and whole") from wrong
