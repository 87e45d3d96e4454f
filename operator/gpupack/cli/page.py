"""A self-contained HTML page: a heading, paragraphs, tables and figures in one file that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from gpupack.errors import Invalid

_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;max-width:76em;margin:2em auto;padding:0 1em;color:#222;background:#fff}"
    "h2{margin-top:2em;border-bottom:1px solid #ddd}h3{margin-bottom:.3em}"
    "table{border-collapse:collapse;margin:1em 0;font-variant-numeric:tabular-nums}"
    "td,th{padding:.15em .7em;text-align:right;border-bottom:1px solid #ddd;vertical-align:top;white-space:nowrap}"
    "td:first-child,th:first-child{text-align:left}.words td,.words th{text-align:left}"
    ".words td:last-child{white-space:normal}"
    "svg{max-width:100%;height:auto}.absent{color:#a00}.note{color:#555}"
)


def document(title: str, body: Sequence[str]) -> str:
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>"
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: bool = False) -> str:
    """The first column is a label, the others are numbers; with `words` all are, and the last may be long."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    kind = " class='words'" if words else ""
    return f"<table{kind}>" + line(head, "th") + "\n".join(line(row, "td") for row in rows) + "</table>"


def paragraph(text: str, kind: str = "") -> str:
    return f"<p{f' class={kind!r}' if kind else ''}>{escape(text)}</p>"


def write(path: Path, text: str, option: str) -> None:
    """Raises Invalid, naming the option, where the file cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as wrong:
        raise Invalid(option, f"{path} cannot be written ({wrong})", "name a file in a folder") from wrong
