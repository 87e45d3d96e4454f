"""`gpupack report`: one page that needs nothing beside it, from a recorded journey."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gpupack.cli import main
from gpupack.cli.report.account import of_trace

TRACE = Path(__file__).parents[1] / "traces" / "journey.jsonl"


class Outline(HTMLParser):
    """Headings, the heads of tables, and figures, in their order; and whatever reaches out of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.outside: list[str] = []
        self.words = ""
        self._in: str | None = None
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "path", "use", "rect", "circle", "line", "br"):
            self._open.append(tag)
        if tag == "svg":
            self.lines.append("figure")
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and value and not value.startswith("#"):
                self.outside.append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        self.words += data + " "
        if self._open and self._open[-1] in ("h1", "h2", "h3", "th") and data.strip():
            self.lines.append(f"{self._open[-1]} {data.strip()}")

    def balanced(self) -> bool:
        return not self._open


@pytest.fixture(scope="module")
def outline(tmp_path_factory: pytest.TempPathFactory) -> Outline:
    file = tmp_path_factory.mktemp("report") / "report.html"
    assert main(["report", "--trace", str(TRACE), "-o", str(file)]) == 0
    found = Outline()
    found.feed(file.read_text())
    return found


def test_the_page_has_every_part_in_its_place(outline: Outline) -> None:
    assert [each for each in outline.lines if not each.startswith("th ")] == [
        "h1 gpupack: what runs where, and why",
        "h2 GpuPool default",
        "h3 Memory of each GPU",
        "figure",
        "h3 Decisions over time",
        "figure",
        "h3 default/chat (meta-llama/Llama-3.2-1B) on H100-80GB",
        "figure",
        "figure",
        "h3 Steps judged: predicted and measured",
        "h3 Decisions",
    ]
    assert outline.balanced()


def test_the_page_needs_nothing_beside_it(outline: Outline) -> None:
    assert outline.outside == []


def test_figures_say_what_they_show_and_in_which_unit(outline: Outline) -> None:
    for told in ("batch limit of an engine", "knee (BCA)", "frontier", "promise 25 ms", "ITL P95 (ms)", "GiB",
                 "measured in use", "kept free", "predicted at full batches", "requests/s", "UTC"):  # fmt: skip
        assert told in outline.words, told


def test_steps_stand_with_what_was_predicted_and_measured(outline: Outline) -> None:
    assert "th predicted" in outline.lines
    assert "th measured" in outline.lines
    assert re.search(r"inter-token latency\s+[\d.]+ ms\s+[\d.]+ ms\s+[+-]\d+ %", outline.words)


def test_a_trace_is_told_with_every_decision_once() -> None:
    (account,) = of_trace(TRACE, "--trace")
    keys = [(each.serving, each.at, each.reason) for each in account.decisions]
    assert len(keys) == len(set(keys)) > 3
    assert [each.at for each in account.moments] == sorted({each.at for each in account.moments})
    assert any(each.measured for each in account.decisions), "what became of a step stands with its decision"


def test_a_file_that_is_no_trace_is_refused_with_what_to_give(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "no.jsonl"
    file.write_text("{}\n")
    assert main(["report", "--trace", str(file), "-o", str(tmp_path / "page.html")]) == 2
    assert "is no header of a trace; give a file that `gpupack operator --trace` wrote" in capsys.readouterr().err
