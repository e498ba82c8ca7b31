"""Python source to its mutants, one change each.

A mutant replaces a piece of the source and nothing else, so that its diff shows the change alone.
The syntax tree says where the pieces are.
"""

from __future__ import annotations

import ast
import difflib
import re
from dataclasses import dataclass

#: The operator itself, between its operands, and what it becomes: one step to the side, then the opposite.
COMPARISONS: dict[type[ast.cmpop], tuple[str, tuple[str, ...]]] = {
    ast.Lt: ("<", ("<=", ">=")),
    ast.LtE: ("<=", ("<", ">")),
    ast.Gt: (">", (">=", "<=")),
    ast.GtE: (">=", (">", "<")),
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
    ast.Is: ("is", ("is not",)),
    ast.IsNot: (r"is\s+not", ("is",)),
    ast.In: ("in", ("not in",)),
    ast.NotIn: (r"not\s+in", ("in",)),
}

#: Statements of which only a person sees something: no test is asked to notice.
UNTESTED_CALLS = ("log.", "self.log.")


@dataclass(frozen=True)
class Mutant:
    """`start`, `end`: the bytes of the source that `new` replaces."""

    file: str
    line: int
    kind: str
    start: int
    end: int
    new: str

    def apply(self, source: str) -> str:
        octets = source.encode()
        return (octets[: self.start] + self.new.encode() + octets[self.end :]).decode()

    def diff(self, source: str) -> str:
        """The lines that differ, without those around them."""
        changed = difflib.unified_diff(source.splitlines(), self.apply(source).splitlines(), lineterm="", n=0)
        return "\n".join(line for line in changed if not line.startswith(("---", "+++", "@@")))


def mutants_of(file: str, source: str) -> list[Mutant]:
    """Every mutant of `source`, in the order of its lines."""
    found = _Mutator(file, source)
    found.visit(ast.parse(source))
    return sorted(found.mutants, key=lambda mutant: (mutant.start, mutant.end, mutant.new))


class _Mutator(ast.NodeVisitor):
    def __init__(self, file: str, source: str) -> None:
        self.mutants: list[Mutant] = []
        self._file = file
        self._octets = source.encode()
        self._lines = [0]
        for line in self._octets.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))

    # ------------------------------------------------------------- conditions

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        self._negate(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        word, other = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._between(left, right, rf"\b{word}\b", other, f"{word} to {other}")
        # A clause alone may decide nothing that a test sees: each is left out once.
        for value in node.values:
            self._replace(value, "True" if isinstance(node.op, ast.And) else "False", "clause left out")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        left = node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            pattern, others = COMPARISONS[type(operator)]
            for other in others:
                self._between(left, right, pattern, other, "comparison")
            left = right
        self.generic_visit(node)

    def _negate(self, test: ast.expr) -> None:
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            self._replace(test, f"({self._text(test.operand)})", "negated")
        elif not isinstance(test, ast.Constant):
            self._replace(test, f"not ({self._text(test)})", "negated")

    # -------------------------------------------------------- values, statements

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._replace(node, str(not node.value), "constant")
        elif isinstance(node.value, int):
            self._replace(node, str(node.value + 1), "constant")

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
            self._replace(node, "return None", "return None")
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            return  # a docstring
        if self._text(node).startswith(UNTESTED_CALLS):
            return
        self._replace(node, "pass", "statement removed")
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        if any(isinstance(target, ast.Name) and target.id == "TYPE_CHECKING" for target in node.targets):
            return
        # Without the assignment of a plain name the next line would fail: that is no test of a test.
        if all(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets):
            self._replace(node, "pass", "statement removed")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._replace(node, "pass", "statement removed")
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self._replace(node, "pass", "statement removed")
        # Not what it says: texts are not mutated, nor what is put into them.

    def visit_Break(self, node: ast.Break) -> None:
        self._replace(node, "continue", "break to continue")

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._visit_function(node)

    def _visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        if node.name == "__repr__":
            return
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)
        for statement in node.body:
            self.visit(statement)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        return  # a text

    # -------------------------------------------------------------------- places

    def _offset(self, line: int, column: int) -> int:
        return self._lines[line - 1] + column

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._offset(node.lineno, node.col_offset), self._offset(node.end_lineno, node.end_col_offset)

    def _text(self, node: ast.expr | ast.stmt) -> str:
        start, end = self._span(node)
        return self._octets[start:end].decode()

    def _replace(self, node: ast.expr | ast.stmt, new: str, kind: str) -> None:
        start, end = self._span(node)
        self.mutants.append(Mutant(self._file, node.lineno, kind, start, end, new))

    def _between(self, left: ast.expr, right: ast.expr, pattern: str, new: str, kind: str) -> None:
        """Replace an operator: the tree does not say where it is, but what is around it."""
        start, end = self._span(left)[1], self._span(right)[0]
        gap = self._octets[start:end].decode()
        # Not one in a comment between the operands.
        found = re.search(rf"^(?:[\s)]|#[^\n]*\n)*({pattern})", gap)
        if found is None:
            return
        begin = start + len(gap[: found.start(1)].encode())
        line = self._octets.count(b"\n", 0, begin) + 1
        size = len(found.group(1).encode())
        self.mutants.append(Mutant(self._file, line, kind, begin, begin + size, new))
