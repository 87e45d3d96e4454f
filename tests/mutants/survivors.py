"""Changes a module of the decision one operator at a time and lists what neither simulation nor tests notice.

`python tests/mutants/survivors.py hold steps`: each mutant plays the ten short histories of `mutants` and, if none of
them notices, faces `TESTS`. What survives is printed, one a line, for SURVIVORS.md to explain. No test: it takes
minutes a module. A mutant that runs for too long counts as noticed.
"""

from __future__ import annotations

import ast
import copy
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from tests.mutants.mutants import MUTANTS, importing  # noqa: E402

from gpupack.soak.play import play  # noqa: E402

SECONDS = 60
TEST_SECONDS = 180
TESTS = ("tests/scenarios", "tests/decide/test_reconcile.py")

_FLIPPED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """The node with one operator changed."""
    if isinstance(node, ast.Compare):
        for index, operator in enumerate(node.ops):
            other = copy.deepcopy(node)
            other.ops[index] = _FLIPPED[type(operator)]()
            yield other
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(op=ast.Or() if isinstance(node.op, ast.And) else ast.And(), values=node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        other_op = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
        yield ast.BinOp(left=node.left, op=other_op, right=node.right)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(value=not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(value=node.value + 1)


class _Change(ast.NodeTransformer):
    """Puts `new` where the node of that number stands, in the order in which nodes are visited."""

    def __init__(self, number: int, new: ast.AST) -> None:
        self._left = number
        self._new = new

    def visit(self, node: ast.AST) -> ast.AST:
        self._left -= 1
        return self._new if self._left < 0 <= self._left + 1 else self.generic_visit(node)


def mutants(source: str) -> Iterator[tuple[int, str, str]]:
    """Line, what was changed into what, and the mutated source."""
    tree = ast.parse(source)
    order: list[ast.AST] = []

    class Number(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            order.append(node)
            return self.generic_visit(node)

    Number().visit(tree)
    inside = {id(child) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for child in ast.walk(node)}
    for number, node in enumerate(order):
        if id(node) not in inside:
            continue
        for other in variants(node):
            changed = _Change(number, other).visit(copy.deepcopy(tree))
            text = f"`{ast.unparse(node)}` becomes `{ast.unparse(other)}`"
            yield getattr(node, "lineno", 0), text, ast.unparse(ast.fix_missing_locations(changed))


def noticed_by_histories(module: str, source: str) -> bool:
    def too_long(_number: int, _frame: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        with importing({module: source}) as reconcile:
            return any(play(each.history, reconcile=reconcile).violation is not None for each in MUTANTS)
    except Exception:  # what cannot even be imported is noticed
        return True
    finally:
        signal.alarm(0)


def noticed_by_tests(tree: Path, module: str, source: str) -> bool:
    file = tree / "operator" / "gpupack" / "decide" / f"{module}.py"
    kept = file.read_text()
    file.write_text(source)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TESTS],
            cwd=tree, env={**os.environ, "PYTHONPATH": str(tree / "operator")}, capture_output=True, check=False,
            timeout=TEST_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return True
    finally:
        file.write_text(kept)
    return ended.returncode != 0


def main(modules: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        ignored = shutil.ignore_patterns("__pycache__")
        for name in ("operator", "tests"):
            shutil.copytree(ROOT / name, tree / name, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", tree)
        for module in modules:
            source = (tree / "operator" / "gpupack" / "decide" / f"{module}.py").read_text()
            made = survived = 0
            for line, text, mutated in mutants(source):
                made += 1
                if not noticed_by_histories(module, mutated) and not noticed_by_tests(tree, module, mutated):
                    survived += 1
                    print(f"{module}.py:{line}: {text}", flush=True)
            print(f"{module}: {made} mutants, {survived} survived", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["hold", "steps"])
