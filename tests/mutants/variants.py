"""Every small change of a module of the decision that a mutant may be: one expression or statement becomes another.

Left alone: docstrings and the wording of sentences, annotations, assertions (and `strict=` of a `zip`, which is one),
defaults of arguments and of fields.
Knows syntax only; whether anybody notices a change is `survivors`' business.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}  # fmt: skip
_CALLED = {"min": "max", "max": "min", "any": "all", "all": "any"}
_GONE = ast.Pass()


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """`old` becomes `new` in `place`, a function, a method or a constant of `module`, on these lines."""

    module: str
    place: str
    old: str
    new: str
    lines: range
    definition: ast.stmt
    owner: ast.ClassDef | None
    number: int
    other: ast.AST

    def __str__(self) -> str:
        return f"`{self.module}.{self.place}` | `{self.old}` → `{self.new}`"

    def mutated(self) -> ast.stmt:
        """The whole definition of the place with the change in it, inside its class if it has one."""
        changed = _put(copy.deepcopy(self.definition), self.number, self.other)
        if self.owner is None:
            return ast.fix_missing_locations(changed)
        around = copy.copy(self.owner)
        around.body, around.decorator_list = [changed], []
        return ast.fix_missing_locations(around)


def variants(module: str, source: str) -> Iterator[Variant]:
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            for each in node.body:
                if isinstance(each, ast.FunctionDef):
                    yield from _within(module, f"{node.name}.{each.name}", each, node)
        elif isinstance(node, ast.FunctionDef):
            yield from _within(module, node.name, node, None)
        elif (name := constant(node)) is not None:
            yield from _within(module, name, node, None)


def constant(node: ast.stmt) -> str | None:
    """The name that this statement of a module gives a value, if it is such a one."""
    match node:
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr()):
            return name if name.isupper() else None
    return None


def _within(module: str, place: str, definition: ast.stmt, owner: ast.ClassDef | None) -> Iterator[Variant]:
    for number, (each, parent) in enumerate(_nodes(definition)):
        if isinstance(parent, ast.keyword) and parent.arg == "strict":
            continue
        for other in _others(each):
            where = each.test if isinstance(each, ast.If | ast.While) else each
            old, new = _texts(each, other, parent)
            yield Variant(
                module=module, place=place, old=old, new=new, owner=owner, other=other,
                lines=range(where.lineno, (where.end_lineno or where.lineno) + 1), definition=definition, number=number,
            )  # fmt: skip


def _texts(node: ast.expr | ast.stmt, other: ast.AST, parent: ast.AST) -> tuple[str, str]:
    """What a reader would look for and find instead: a number with what is done with it, of an `if` its condition."""
    if isinstance(parent, ast.If) and isinstance(node, ast.Continue | ast.Break):
        return f"if {ast.unparse(parent.test)}: {ast.unparse(node)}", f"if {ast.unparse(parent.test)}: pass"
    if isinstance(node, ast.Call) and isinstance(other, ast.Call) and len(other.keywords) < len(node.keywords):
        [gone] = [each for each in node.keywords if each not in other.keywords]
        return f"{ast.unparse(node.func)}(..., {ast.unparse(gone)})", f"{ast.unparse(node.func)}(...)"
    if not isinstance(node, ast.Constant) or isinstance(parent, ast.If | ast.While | ast.For | ast.FunctionDef):
        return _text(node), _text(other)
    changed = copy.copy(parent)
    for name, index, child in _children(parent):
        if child is node and index is None:
            setattr(changed, name, other)
        elif child is node:
            setattr(changed, name, [other if each is node else each for each in getattr(parent, name)])
    return ast.unparse(parent), ast.unparse(changed)


def _text(node: ast.AST) -> str:
    return f"if {ast.unparse(node.test)}" if isinstance(node, ast.If | ast.While) else ast.unparse(node)


def _children(node: ast.AST) -> Iterator[tuple[str, int | None, ast.AST]]:
    """The parts of a node that may be changed, and where they are."""
    left_alone = {"annotation", "returns", "decorator_list", "type_comment", "target", "targets", "ctx"}
    if isinstance(node, ast.FunctionDef):
        left_alone.add("args")
    for name, value in ast.iter_fields(node):
        if name in left_alone and not (isinstance(node, ast.For | ast.comprehension) and name == "target"):
            continue
        if isinstance(value, ast.AST):
            yield name, None, value
        elif isinstance(value, list):
            for index, each in enumerate(value):
                if isinstance(each, ast.AST):
                    yield name, index, each


def _is_left_alone(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    return isinstance(node, ast.Assert | ast.JoinedStr)


def _nodes(node: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, ast.AST]]:
    """Every part of a definition that may be changed and what it is a part of, always in the same order."""
    for _, _, child in _children(node):
        if _is_left_alone(child):
            continue
        if isinstance(child, ast.expr | ast.stmt):
            yield child, node
        yield from _nodes(child)


def _put(root: ast.stmt, number: int, new: ast.AST) -> ast.stmt:
    """The same definition with `new` at the place of that number."""
    left = number

    def visit(node: ast.AST) -> bool:
        nonlocal left
        for name, index, child in _children(node):
            if _is_left_alone(child):
                continue
            if isinstance(child, ast.expr | ast.stmt):
                if left == 0:
                    if index is None:
                        setattr(node, name, new)
                    else:
                        getattr(node, name)[index] = new
                    return True
                left -= 1
            if visit(child):
                return True
        return False

    assert visit(root), "the number is that of a node"
    return root


def _others(node: ast.expr | ast.stmt) -> Iterator[ast.AST]:
    """What may stand in this node's place."""
    match node:
        case ast.Compare():
            for index, operator in enumerate(node.ops):
                other = copy.deepcopy(node)
                other.ops[index] = _COMPARED[type(operator)]()
                yield other
        case ast.BoolOp():
            yield ast.BoolOp(op=ast.Or() if isinstance(node.op, ast.And) else ast.And(), values=node.values)
            for index in range(len(node.values)):
                rest = node.values[:index] + node.values[index + 1 :]
                yield rest[0] if len(rest) == 1 else ast.BoolOp(op=node.op, values=rest)
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node.operand
        case ast.BinOp(op=operator) if type(operator) in _COMPUTED:
            yield ast.BinOp(left=node.left, op=_COMPUTED[type(operator)](), right=node.right)
        case ast.IfExp():
            yield node.body
            yield node.orelse
        case ast.Constant(value=bool()):
            yield ast.Constant(value=not node.value)
        case ast.Constant(value=int() | float()):
            yield ast.Constant(value=node.value + 1)
        case ast.Call():
            yield from _other_calls(node)
        case ast.GeneratorExp() | ast.ListComp() | ast.SetComp() | ast.DictComp():
            for index, generator in enumerate(node.generators):
                for place in range(len(generator.ifs)):
                    other = copy.deepcopy(node)
                    del other.generators[index].ifs[place]
                    yield other
        case ast.Tuple(elts=[_, _, *_], ctx=ast.Load()) if all(isinstance(each, ast.Name) for each in node.elts):
            if all(isinstance(each, ast.Name) and each.id.islower() for each in node.elts):
                for index in range(len(node.elts)):
                    yield ast.Tuple(elts=node.elts[:index] + node.elts[index + 1 :], ctx=ast.Load())
        case ast.If() | ast.While() if not isinstance(node.test, ast.Compare | ast.BoolOp | ast.UnaryOp):
            other = copy.copy(node)
            other.test = ast.UnaryOp(op=ast.Not(), operand=node.test)
            yield other
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Continue() | ast.Break() | ast.Delete() | ast.Raise():
            yield _GONE
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield _GONE


def _other_calls(node: ast.Call) -> Iterator[ast.AST]:
    """The opposite function, or a named argument less where the name says a value is made."""
    if isinstance(node.func, ast.Name) and node.func.id in _CALLED:
        yield ast.Call(func=ast.Name(id=_CALLED[node.func.id], ctx=ast.Load()), args=node.args, keywords=node.keywords)
    named = node.func.id if isinstance(node.func, ast.Name) else ""
    if named[:1].isupper() or named == "replace":
        for index in range(len(node.keywords)):
            rest = node.keywords[:index] + node.keywords[index + 1 :]
            yield ast.Call(func=node.func, args=node.args, keywords=rest)
