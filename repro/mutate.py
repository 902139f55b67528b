"""Are a chapter's tests sensitive? Break its method in small ways, one at a time, and see which breaks a test notices.

A mutant is one cell tagged ``method`` with one expression changed: a sign, a factor, a transpose, an axis, a bound, a
constant, a comparison. The chapter's tests run against it in a process of their own; nothing on disk is touched.
"""

from __future__ import annotations

import ast
import copy
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from reprolib import notebook
from reprolib.project import ChapterFile, ReproError

SWAPPED: dict[type[ast.operator], type[ast.operator]]
SWAPPED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
TURNED: dict[type[ast.cmpop], type[ast.cmpop]]
TURNED = {ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
OTHERS = {"sum": "mean", "mean": "sum", "max": "min", "min": "max", "argmax": "argmin", "argmin": "argmax"}
OTHERS |= {"amax": "amin", "amin": "amax", "zeros": "ones", "ones": "zeros", "zeros_like": "ones_like", "cos": "sin"}
DROPPED = {"sqrt", "square", "abs", "exp", "log", "transpose", "swapaxes", "flip", "conj", "cumsum", "detach", "rsqrt"}
PATIENCE = 4.0  # a mutant may take so many times as long as the method itself


class Mutant(NamedTuple):
    """One changed expression: its cell and line from 1, the expression before and after, the whole cell."""

    cell: int
    line: int
    before: str
    after: str
    code: str

    def __str__(self) -> str:
        return f"cell {self.cell}, line {self.line}: {self.before}  ->  {self.after}"


def mutants(path: Path) -> list[Mutant]:
    """All mutants of the method cells of a notebook, in reading order.

    Raises:
        NotebookError: The notebook cannot be read.
    """
    cells = [(i, text) for i, text, tags in notebook.code_cells(notebook.read(path)) if "method" in tags]
    return [Mutant(i, *found) for i, text in cells for found in _changes(text)]


def _changes(text: str) -> Iterator[tuple[int, str, str, str]]:
    """Every changed version of a cell: (line, expression before, after, whole code)."""
    tree = ast.parse(text)
    for parent, field, at, node in list(_expressions(tree)):
        for new in variants(node):
            _put(parent, field, at, new)
            yield node.lineno, ast.unparse(node), ast.unparse(new), ast.unparse(ast.fix_missing_locations(tree))
            _put(parent, field, at, node)


def _put(parent: ast.AST, field: str, at: int | None, node: ast.expr) -> None:
    if at is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[at] = node


def _expressions(parent: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.expr]]:
    """Expressions that decide numbers, as (parent, field, index, node): no messages, annotations, imports, settings."""
    if isinstance(parent, (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)):
        return
    if isinstance(parent, ast.UnaryOp) and isinstance(parent.operand, ast.Constant):
        return  # the sign is changed already
    if isinstance(parent, ast.Assign) and ast.unparse(parent.value).startswith(("Chapter(", "ch.scale(")):
        return
    for field, value in ast.iter_fields(parent):
        if field in {"annotation", "returns", "decorator_list"}:
            continue
        for at, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(node, ast.expr):
                yield parent, field, at, node
            if isinstance(node, ast.AST):
                yield from _expressions(node)


def variants(node: ast.expr) -> list[ast.expr]:
    """Small wrong versions of one expression; none for expressions that hold text or only names."""
    new = copy.deepcopy(node)
    match new:
        case ast.BinOp(left=left, right=right) if _is_text(left) or _is_text(right):
            return []
        case ast.BinOp(op=ast.MatMult(), left=left, right=right):
            return [ast.BinOp(right, ast.MatMult(), left)]
        case ast.BinOp(op=ast.Pow(), left=left):
            return [left]
        case ast.BinOp(op=op, left=left, right=right) if type(op) in SWAPPED:
            return [ast.BinOp(left, SWAPPED[type(op)](), right)]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return [operand]
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return [operand]
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in TURNED and not _is_text(right):
            return [ast.Compare(left, [TURNED[type(op)]()], [right])]
        case ast.Constant(value=bool(value)):
            return [ast.Constant(not value)]
        case ast.Constant(value=int(value)):
            return [ast.Constant(value + 1)]
        case ast.Constant(value=float(value)):
            return [ast.Constant(2 * value if value else 1.0)]
        case ast.Attribute(value=value, attr="T" | "mT" | "H" | "mH"):
            return [value]
        case ast.Call(func=ast.Attribute(value=value, attr=name) as func) if name in OTHERS:
            func.attr = OTHERS[name]
            return [new]
        case ast.Call(func=ast.Attribute(value=value, attr=name), args=args) if name in DROPPED:
            module = isinstance(value, ast.Name) and value.id in {"torch", "np", "math"}
            return [args[0] if module and args else value]
        case ast.Call(func=ast.Name(id="range"), args=args) if args and not isinstance(args[-1], ast.Constant):
            args[-1] = ast.BinOp(args[-1], ast.Sub(), ast.Constant(1))
            return [new]
        case ast.Slice(upper=ast.expr() as upper) if not isinstance(upper, (ast.Constant, ast.UnaryOp)):
            new.upper = ast.BinOp(upper, ast.Sub(), ast.Constant(1))
            return [new]
    return []


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


class Outcome(NamedTuple):
    """What the tests said to one mutant: ``killed``, ``survived`` or ``timed out`` (which counts as killed)."""

    mutant: Mutant
    said: str


def judge(chapter: ChapterFile, limit: int | None = 40, seed: int = 0) -> Iterator[Outcome]:
    """Run a chapter's tests against its mutants, one after the other.

    Args:
        chapter: The chapter.
        limit: How many mutants, drawn at random; None for all.
        seed: Of the draw.

    Raises:
        ReproError: The chapter has no tests, no method, or its tests fail without any mutation.
    """
    tests = chapter.root / "tests" / "chapters" / f"test_{chapter.slug.replace('-', '_')}.py"
    if not tests.is_file():
        raise ReproError(f"{chapter.slug} has no tests: {tests.relative_to(chapter.root)} is missing.")
    if not (found := mutants(chapter.path)):
        raise ReproError(f"{chapter.slug} has no method cell with anything to change.")
    started = time.monotonic()
    code, said = _test(chapter, tests, None, 600)
    if code:
        raise ReproError(
            f"The tests of {chapter.slug} fail before anything is changed; mend them first:\n{said[-2000:]}"
        )
    allowed = 5 + PATIENCE * (time.monotonic() - started)
    if limit is not None and limit < len(found):
        found = sorted(random.Random(seed).sample(found, limit))
    for mutant in found:
        code, _ = _test(chapter, tests, mutant, allowed)
        yield Outcome(mutant, {0: "survived", None: "timed out"}.get(code, "killed"))


def _test(chapter: ChapterFile, tests: Path, mutant: Mutant | None, seconds: float) -> tuple[int | None, str]:
    """pytest's exit code (None: too slow) and its words, from a child process that sees the mutant's cell."""
    import pytest
    import torch  # noqa: F401  imported once, before the children are forked: most of the time of a short test run

    with tempfile.TemporaryFile("w+") as out:
        if not (child := os.fork()):
            os.setsid()  # so that what the tests start ends with them
            for stream in (1, 2):
                os.dup2(out.fileno(), stream)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
            if mutant:
                notebook.read = _seen_with(mutant, chapter.path)
            os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-n0", str(tests)])))
        code = _wait(child, seconds)
        out.seek(0)
        return code, out.read()


def _seen_with(mutant: Mutant, path: Path) -> Any:
    """``notebook.read`` as it is, but for the mutant's cell of one notebook."""
    plain = notebook.read

    def read(file: Path) -> notebook.Notebook:
        nb = plain(file)
        if file == path:
            nb["cells"][mutant.cell - 1]["source"] = mutant.code
        return nb

    return read


def _wait(child: int, seconds: float) -> int | None:
    """The exit code of a child process; None when it was stopped for taking too long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
