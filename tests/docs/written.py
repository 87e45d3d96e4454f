"""The parts of the documentation that are written from what the code says: `pytest tests/docs --regenerate`.

A page holds such a part between `<!-- written: NAME -->` and `<!-- end -->`; everything else in it is by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from gpupack.cli import COMMANDS
from gpupack.decide.meanings import CONDITIONS, REASONS, STATES, STEPS, Meaning

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PARTS = re.compile(r"(<!-- written: ([a-z-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
LONGEST_DEFAULT = 60
"""Defaults of whole objects are those of their fields, which are told there."""


def pages() -> list[Path]:
    return sorted(DOCS.rglob("*.md"))


def rewritten(text: str) -> str:
    """The page with every written part as the code says it now."""
    return PARTS.sub(lambda match: f"{match[1]}\n{WRITERS[match[2]]()}\n{match[4]}", text)


def crd(plural: str) -> str:
    """Every field of a custom resource: name, type, default, bounds, meaning, and what is refused with which words."""
    document = yaml.safe_load((ROOT / "crds" / f"{plural}.yaml").read_text())
    schema = document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    lines = [_text(schema["description"]), "", *_rules("", schema)]
    for part in ("spec", "status"):
        inner = schema["properties"].get(part)
        if inner is None:
            continue
        head = ("field", "meaning")
        lines += ["", f"## {part}", "", _text(inner.get("description", "")), "", *_table(head, _fields(part, inner))]
        refusals = [row for path, each in _walk(part, inner) for row in _rules(path, each)]
        if refusals:
            lines += ["", f"### What the API server refuses in {part}", "", *refusals]
    return "\n".join(lines).strip() + "\n"


def _walk(path: str, schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from _walk(f"{path}.{name}", inner)
    if "items" in schema:
        yield from _walk(f"{path}[]", schema["items"])


def _fields(part: str, schema: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    required = {
        f"{path}.{name}"
        for path, each in _walk(part, schema)
        for name in each.get("required", ())
        if path != part + "[]"
    }
    for path, each in _walk(part, schema):
        if path == part or path.endswith("[]"):
            continue
        told = json.dumps(each["default"]) if "default" in each else ""
        default = f"; default `{told}`" if told and len(told) <= LONGEST_DEFAULT else ""
        name = f"`{path.removeprefix(part + '.')}`"
        asked = f"**{name}**" if path in required else name
        yield f"{asked}<br>{_type(each)}{default}", _cell(_text(each.get("description", "")))


def _type(schema: Mapping[str, Any]) -> str:
    kind = str(schema.get("type", "any"))
    if "enum" in schema:
        kind = " \\| ".join(f"`{each}`" for each in schema["enum"])
    elif kind == "array":
        kind = f"list of {_type(schema['items'])}"
    elif "additionalProperties" in schema:
        kind = "map"
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None or high is not None:
        kind += f", {low if low is not None else ''} to {high if high is not None else ''}"
    return kind


def _rules(path: str, schema: Mapping[str, Any]) -> list[str]:
    where = f"`{path}`: " if path else ""
    return [
        f"- {where}{_text(rule.get('message') or rule['messageExpression'])}."
        for rule in schema.get("x-kubernetes-validations", ())
    ]


def reasons() -> str:
    return _words("reason", ((each.value, meaning) for each, meaning in REASONS.items()))


def steps() -> str:
    return _words("step", ((each.value, meaning) for each, meaning in STEPS.items()))


def conditions() -> str:
    lines = []
    for kind, meaning in CONDITIONS.items():
        lines += [f"### {kind.value}", "", meaning, ""]
        if kind in STATES:
            lines += [_words("reason", STATES[kind].items()), ""]
    return "\n".join(lines).strip() + "\n"


def _words(what: str, meanings: Iterable[tuple[str, Meaning]]) -> str:
    rows = ((f"`{word}`", _cell(each.means), _cell(each.do)) for word, each in meanings)
    return "\n".join(_table((what, "what is so", "what to do"), rows)) + "\n"


def commands() -> str:
    rows = (
        (f"`gpupack {name}`", _cell(summary[0].upper() + summary[1:] + ".")) for name, (_, summary) in COMMANDS.items()
    )
    return "\n".join(_table(("command", "what it answers or does"), rows)) + "\n"


def rights() -> str:
    """The operator's role as it stands in deploy/rbac.yaml, each rule with the comment above it."""
    text = (ROOT / "deploy" / "rbac.yaml").read_text()
    role = next(each for each in text.split("---\n") if "kind: ClusterRole\n" in each)
    why, rows = "", []
    for block in re.split(r"(?m)^(?=- apiGroups|# )", role.partition("rules:\n")[2]):
        if block.startswith("# "):
            why = block.removeprefix("# ").strip()
            continue
        for rule in yaml.safe_load(block) if block.strip() else ():
            group = rule["apiGroups"][0] or "core"
            only = f" (only {', '.join(rule['resourceNames'])})" if "resourceNames" in rule else ""
            rows.append((f"{group}: {', '.join(rule['resources'])}{only}", ", ".join(rule["verbs"]), _cell(why)))
            why = ""  # it is told once for the rules that it stands above
    return "\n".join(_table(("resource", "verbs", "why"), rows)) + "\n"


def accuracy() -> str:
    """The table of README, which says how far the model is from published measurements."""
    section = (ROOT / "README.md").read_text().partition("How far the model is from hardware")[2]
    lines = section[section.index("\n| ") + 1 :].splitlines()
    return "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]) + "\n"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [head, tuple("---" for _ in head), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _text(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


WRITERS: Mapping[str, Callable[[], str]] = {
    "modelserving": lambda: crd("modelservings"),
    "gpupool": lambda: crd("gpupools"),
    "modelprofile": lambda: crd("modelprofiles"),
    "reasons": reasons,
    "steps": steps,
    "conditions": conditions,
    "commands": commands,
    "rights": rights,
    "accuracy": accuracy,
}
