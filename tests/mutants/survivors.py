"""Changes the decision one expression at a time and lists what no test notices and SURVIVORS.md does not explain.

`make mutation MODULES='hold steps'`. The tests of `TESTS` are collected once and run once to see which lines each of
them executes. A mutant is the code of one function, put into the place of the real one in a child of this process; it
faces the tests that execute its lines, those named after the module and then the quickest first, until one fails or
`--seconds` of tests have passed. What never ends counts as noticed. Nothing is written; what survives is printed, one a
line.
"""

from __future__ import annotations
import __future__

import argparse
import ast
import gc
import os
import pickle
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import coverage
import hypothesis
import pytest

from .explained import explained
from .variants import Variant, constant, variants

ROOT = Path(__file__).resolve().parents[2]
DECIDE = ROOT / "operator" / "gpupack" / "decide"
TESTS = (
    "tests/decide", "tests/scenarios", "tests/mutants", "tests/published/test_bca.py", "tests/soak/test_found.py",
    "tests/trace/test_golden_traces.py", "tests/trace/test_replay.py",
)  # fmt: skip
MEMORY = 4 << 30
"""Bytes of address space of a mutant, which may never stop collecting."""
LONGER = 10
"""A test that takes so many times as long as without the mutant, and two seconds, will not end."""


@dataclass(slots=True)
class Baseline:
    """What the tests do without a mutant: seconds each, and which of them execute a line of the decision."""

    seconds: dict[str, float] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    by_line: dict[tuple[str, int], set[str]] = field(default_factory=dict)

    def facing(self, module: str, lines: Iterable[tuple[str, int]]) -> list[str]:
        """The tests that execute one of these lines: those of the module itself, then the quickest first."""
        found = {test for line in lines for test in self.by_line.get(line, ()) if test not in self.failed}
        return sorted(found, key=lambda each: (f"/test_{module}.py" not in each, self.seconds[each], each))


class Mutation:
    """A plugin that runs the collected tests against mutants instead of once."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self._asked = asked
        self._has_failed = False
        self._items: dict[str, pytest.Item] = {}
        self._functions: list[FunctionType] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._has_failed = self._has_failed or report.failed

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            return False
        self._items = {each.nodeid: each for each in session.items}
        every = (each for each in gc.get_objects() if isinstance(each, FunctionType))
        self._functions = [each for each in every if each.__code__.co_filename.startswith(str(DECIDE))]
        gc.freeze()
        baseline: Baseline = _in_child(self._baseline)
        total = sum(baseline.seconds.values())
        print(f"{len(self._items)} tests, {total:.0f} s; without a mutant fail {sorted(baseline.failed)}", flush=True)
        known = explained()
        for module in self._asked.modules or sorted(each.stem for each in DECIDE.glob("[a-z]*.py")):
            self._module(module, baseline, known)
        return True

    def _module(self, module: str, baseline: Baseline, known: set[tuple[str, str, str, str]]) -> None:
        every = list(variants(module, (DECIDE / f"{module}.py").read_text()))
        drawn = random.Random(self._asked.seed).sample(every, round(len(every) * self._asked.share))
        began, skipped, survived = time.process_time() + _children(), 0, 0
        for each in (each for each in every if each in drawn):
            if (each.module, each.place, each.old, each.new) in known:
                skipped += 1
                continue
            tests = self._affordable(baseline, baseline.facing(module, _lines(each)))
            noticed = _in_child(lambda each=each, tests=tests: self._noticed(each, tests, baseline))
            if noticed is None:
                survived += 1
                print(each, "" if tests else "(nothing executes it)", flush=True)
            elif self._asked.verbose:
                print("  noticed:", each, "by", noticed, flush=True)
        spent = time.process_time() + _children() - began
        share = "" if len(drawn) == len(every) else f" of {len(every)}, drawn by seed {self._asked.seed}"
        print(
            f"{module}: {len(drawn)} mutants{share}, {skipped} explained, {survived} more survived, {spent:.0f} s",
            flush=True,
        )

    def _affordable(self, baseline: Baseline, tests: list[str]) -> list[str]:
        found, left = [], self._asked.seconds
        for each in tests:
            left -= baseline.seconds[each]
            if left < 0:
                break
            found.append(each)
        return found

    def _baseline(self) -> Baseline:
        found = Baseline()
        measured = coverage.Coverage(data_file=None, config_file=False, include=[f"{DECIDE}/*"], messages=False)
        measured.start()
        for name in self._items:
            measured.switch_context(name)
            began = time.process_time()
            if self._fails(name):
                found.failed.add(name)
            found.seconds[name] = time.process_time() - began
        measured.stop()
        data = measured.get_data()
        for file in data.measured_files():
            for line, names in data.contexts_by_lineno(file).items():
                found.by_line[Path(file).stem, line] = set(names)
        return found

    def _noticed(self, mutant: Variant, tests: Iterable[str], baseline: Baseline) -> str | None:
        """The test that fails, if one does."""
        self._apply(mutant)
        for name in tests:
            signal.setitimer(signal.ITIMER_PROF, LONGER * baseline.seconds[name] + 2.0)
            if self._fails(name):
                return name
        return None

    def _apply(self, mutant: Variant) -> None:
        """Put the mutant in the place of the real thing, in this process."""
        if mutant.place.isupper():
            _set_constant(mutant)
            return
        flags = __future__.annotations.compiler_flag
        file = str(DECIDE / f"{mutant.module}.py")
        module = compile(ast.Module(body=[mutant.mutated()], type_ignores=[]), file, "exec", flags, dont_inherit=True)
        [code] = [each for each in _codes(module) if each.co_qualname == mutant.place]
        for each in self._functions:
            if (each.__code__.co_filename, each.__code__.co_qualname) == (file, mutant.place):
                each.__code__ = code

    def _fails(self, name: str) -> bool:
        item = self._items[name]
        self._has_failed = False
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        return self._has_failed


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _in_child(work: Callable[[], Any]) -> Any:
    """What `work` gives in a forked child that may say nothing; "died" if the child did."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            answer = pickle.dumps(work())
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(answer)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return pickle.loads(answer) if answer else "died"


def _lines(mutant: Variant) -> Iterator[tuple[str, int]]:
    """Lines whose execution may show the mutant: its own, or those that use the constant that it is."""
    if not mutant.place.isupper():
        yield from ((mutant.module, line) for line in mutant.lines)
        return
    for file in DECIDE.glob("[a-z]*.py"):
        tree = ast.parse(file.read_text())
        names = _derived(tree, mutant.place)
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id in names:
                yield file.stem, node.lineno


def _derived(tree: ast.Module, name: str) -> set[str]:
    """The constant and those of the module that are made from it."""
    names = {name}
    for node in tree.body:
        made = constant(node)
        used = {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load)}
        if made is not None and used & names:
            names.add(made)
    return names


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _codes(each)


def _set_constant(mutant: Variant) -> None:
    """Wherever the constant was imported to, and what its module makes from it."""
    own = sys.modules[f"gpupack.decide.{mutant.module}"]
    tree = ast.parse((DECIDE / f"{mutant.module}.py").read_text())
    names = _derived(tree, mutant.place)
    for node in tree.body:
        made = constant(node)
        if made not in names:
            continue
        assert isinstance(node, ast.Assign | ast.AnnAssign)
        given = mutant.mutated() if made == mutant.place else node
        assert isinstance(given, ast.Assign | ast.AnnAssign)
        assert given.value is not None
        old = vars(own)[made]
        value = eval(compile(ast.Expression(given.value), own.__name__, "eval"), vars(own))
        for name, module in list(sys.modules.items()):
            if name.startswith("gpupack.") and vars(module).get(made) is old:
                setattr(module, made, value)


def main() -> int:
    said = argparse.ArgumentParser(description=__doc__)
    said.add_argument("modules", nargs="*", help="modules of the decision; all of them unless said")
    said.add_argument("--seconds", type=float, default=10.0, help="of tests that a mutant faces at most")
    said.add_argument("--share", type=float, default=1.0, help="of the mutants that is tried")
    said.add_argument("--seed", type=int, default=1, help="which of them")
    said.add_argument("--tests", nargs="+", default=TESTS, help="to face, if not those that decide")
    said.add_argument("--verbose", action="store_true", help="tell what noticed each mutant, too")
    hypothesis.settings.register_profile(
        "mutants", database=None, derandomize=True, phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate)
    )
    hypothesis.settings.load_profile("mutants")
    os.chdir(ROOT)
    left_out = ["--deselect", "tests/mutants/test_mutants.py::test_the_simulation_notices_the_mutant"]
    quiet = [
        "-q",
        "-s",
        "-p",
        "no:cacheprovider",
        "--hypothesis-profile=mutants",
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
    ]
    asked = said.parse_args()
    return pytest.main([*quiet, *left_out, *asked.tests], plugins=[Mutation(asked)])


if __name__ == "__main__":
    sys.exit(main())
