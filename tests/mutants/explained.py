"""What SURVIVORS.md says about changes that nobody notices: which they are, for a tool to pass over."""

from __future__ import annotations

import re
from pathlib import Path

EXPLAINED = re.compile(r"^\| `(\w+)\.([\w.]+)` \| `(.+?)` → `(.+?)` \| \S")

Change = tuple[str, str, str, str]
"""Module, place, old and new text."""


def explained() -> set[Change]:
    rows = (EXPLAINED.match(line) for line in (Path(__file__).parent / "SURVIVORS.md").read_text().splitlines())
    return {_unescaped(*found.groups()) for found in rows if found is not None}


def _unescaped(module: str, place: str, old: str, new: str) -> Change:
    return module, place, old.replace("\\|", "|"), new.replace("\\|", "|")
