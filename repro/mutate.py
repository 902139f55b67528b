"""Are a chapter's tests sensitive? Break its method in small ways, one at a time, and see which breaks a test notices.

A mutant is one cell tagged ``method`` with one expression changed: a sign, a factor, a transpose, an axis, a bound, a
constant, a comparison. The chapter's tests run against it in a process of their own; the notebook is not touched.

A mutant that computes the same as the original cannot be killed. A survivor judged to be such a one does not count;
it is named with the reason in ``tests/chapters/equivalent/<slug>.json``, a list of ``{"line", "before", "after",
"why"}``.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import json
import math
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from repro import board
from reprolib import notebook, records
from reprolib.project import ChapterFile, ReproError

SWAPPED: dict[type[ast.operator], type[ast.operator]]
SWAPPED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
TURNED: dict[type[ast.cmpop], type[ast.cmpop]]
TURNED = {ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
OTHERS = {"sum": "mean", "mean": "sum", "max": "min", "min": "max", "argmax": "argmin", "argmin": "argmax"}
OTHERS |= {"amax": "amin", "amin": "amax", "zeros": "ones", "ones": "zeros", "zeros_like": "ones_like", "cos": "sin"}
DROPPED = {"sqrt", "square", "abs", "exp", "log", "transpose", "swapaxes", "flip", "conj", "cumsum", "detach", "rsqrt"}
GOAL = 0.85  # the share of its mutants that a chapter's tests should kill
PATIENCE = 4.0  # a mutant may compute so many times as long as the method itself: processor seconds, load is no reason
WAITING = 20.0  # and last so many times as long on the clock, in case it sleeps


class Mutant(NamedTuple):
    """One changed expression: its cell and line from 1, that line, the expression before and after, the whole cell."""

    cell: int
    line: int
    text: str
    before: str
    after: str
    code: str

    @property
    def name(self) -> tuple[str, str, str]:
        """What it is known by wherever its cell moves: the line, the expression before and after."""
        return self.text, self.before, self.after

    @property
    def digest(self) -> str:
        """Tells it from another of the same name on the same line."""
        return hashlib.sha256(self.code.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"cell {self.cell}, line {self.line}: {self.before}  ->  {self.after}"


def mutants(path: Path) -> list[Mutant]:
    """All mutants of the method cells of a notebook, in reading order.

    Raises:
        NotebookError: The notebook cannot be read.
    """
    cells = [(i, text) for i, text, tags in notebook.code_cells(notebook.read(path)) if "method" in tags]
    return [Mutant(i, *found) for i, text in cells for found in _changes(text)]


def _changes(text: str) -> Iterator[tuple[int, str, str, str, str]]:
    """Every changed version of a cell: (line number, line, expression before, after, whole code)."""
    tree, lines = ast.parse(text), text.splitlines()
    for parent, field, at, node in list(_expressions(tree)):
        for new in variants(node):
            _put(parent, field, at, new)
            line = lines[node.lineno - 1].strip()
            yield node.lineno, line, ast.unparse(node), ast.unparse(new), ast.unparse(ast.fix_missing_locations(tree))
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


def drawn(chapter: ChapterFile, limit: int | None = 40, seed: int = 0, only: str = "") -> list[Mutant]:
    """Mutants of a chapter in reading order.

    Args:
        chapter: The chapter.
        limit: How many, drawn at random; None for all.
        seed: Of the draw.
        only: Words that a mutant's description holds; others are left out.

    Raises:
        ReproError: There are no such mutants.
    """
    if not (found := [m for m in mutants(chapter.path) if only in str(m)]):
        words = f" that is described by {only!r}" if only else ""
        raise ReproError(f"{chapter.slug} has no method cell with anything to change{words}.")
    if limit is None or limit >= len(found):
        return found
    return [found[k] for k in sorted(random.Random(seed).sample(range(len(found)), limit))]


def judge(chapter: ChapterFile, chosen: list[Mutant]) -> Iterator[Outcome]:
    """Run a chapter's tests against mutants, one after the other.

    Raises:
        ReproError: The chapter has no tests, or its tests fail without any mutation.
    """
    tests = tests_path(chapter)
    if not tests.is_file():
        raise ReproError(f"{chapter.slug} has no tests: {tests.relative_to(chapter.root)} is missing.")
    started, before = time.monotonic(), _computed()
    code, said = _test(chapter, tests, None, 600, 600)
    if code:
        raise ReproError(
            f"The tests of {chapter.slug} fail before anything is changed; mend them first:\n{said[-2000:]}"
        )
    clock, cpu = 5 + WAITING * (time.monotonic() - started), 5 + PATIENCE * (_computed() - before)
    for mutant in chosen:
        code, _ = _test(chapter, tests, mutant, clock, cpu)
        yield Outcome(mutant, {0: "survived", None: "timed out", -signal.SIGXCPU: "timed out"}.get(code, "killed"))


def _computed() -> float:
    """Processor seconds of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def tests_path(chapter: ChapterFile) -> Path:
    return chapter.root / "tests" / "chapters" / f"test_{chapter.slug.replace('-', '_')}.py"


def judged_path(chapter: ChapterFile) -> Path:
    return tests_path(chapter).parent / "equivalent" / f"{chapter.slug}.json"


def equivalent(chapter: ChapterFile) -> dict[tuple[str, str, str], str]:
    """Why each of the mutants judged equivalent computes the same, by the mutant's name.

    Raises:
        ReproError: The list cannot be read, or names a mutant that there is not.
    """
    path = judged_path(chapter)
    if not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        same = {(e["line"], e["before"], e["after"]): str(e["why"]) for e in entries}
    except (ValueError, KeyError, TypeError) as error:
        raise ReproError(f"{path.name} must be a JSON list of line, before, after, why: {error!r}.") from None
    if wrong := same.keys() - {m.name for m in mutants(chapter.path)}:
        line, before, after = sorted(wrong)[0]
        raise ReproError(f"{path}: there is no mutant {before} -> {after} in a line {line!r}; take it off the list.")
    return same


def report(chapter: ChapterFile) -> Path:
    """Where the report on a chapter's tests is kept."""
    return chapter.root / "results" / "mutants" / f"{chapter.slug}.json"


def basis(chapter: ChapterFile) -> str:
    """SHA-256 of all that a report depends on: method cells and tests."""
    cells = [text for _, text, tags in notebook.code_cells(notebook.read(chapter.path)) if "method" in tags]
    return hashlib.sha256("\0".join([*cells, tests_path(chapter).read_text(encoding="utf-8")]).encode()).hexdigest()


def keep(chapter: ChapterFile, outcomes: list[Outcome], seed: int) -> None:
    """Write the report on a draw, which the book shows."""
    late = sum(o.said == "timed out" for o in outcomes)
    lived = sum(map(_lived, outcomes))
    _write(chapter, outcomes, {"seed": seed, "tried": len(outcomes), "at first": lived, "timed out": late})


def survivors(chapter: ChapterFile) -> list[Mutant]:
    """Those of the kept report, to be tried again after tests were added.

    Raises:
        ReproError: There is no report, or the method was changed since.
    """
    if not report(chapter).is_file():
        raise ReproError(f"{chapter.slug} has no report to go on with; make one: repro mutate {chapter.slug} --keep.")
    kept, known = _kept(chapter), {m.digest: m for m in mutants(chapter.path)}
    if missing := [s["is"] for s in kept["survivors"] if s["digest"] not in known]:
        raise ReproError(f"{chapter.slug} has no mutant {missing[0]} any more; draw anew: --keep, not --again.")
    return [known[s["digest"]] for s in kept["survivors"]]


def keep_again(chapter: ChapterFile, outcomes: list[Outcome]) -> None:
    """Renew the kept report by what the tests say now to its survivors; how many lived at first stays."""
    kept = _kept(chapter)
    _write(chapter, outcomes, {name: kept[name] for name in ("seed", "tried", "at first", "timed out") if name in kept})


def _kept(chapter: ChapterFile) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(report(chapter).read_text(encoding="utf-8"))
    return content


def _lived(outcome: Outcome) -> bool:
    return outcome.said == "survived"


def _write(chapter: ChapterFile, outcomes: list[Outcome], draw: dict[str, int]) -> None:
    lived = [o.mutant for o in outcomes if _lived(o)]
    content = {
        "slug": chapter.slug,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "basis": basis(chapter),
        **draw,
        "mutants": len(mutants(chapter.path)),
        "survivors": [
            {"is": str(m), "line": m.text, "before": m.before, "after": m.after, "digest": m.digest} for m in lived
        ],
    }
    records.write_atomic(report(chapter), json.dumps(content, indent=1, ensure_ascii=False) + "\n")


class Tally(NamedTuple):
    """A kept report, judged: mutants that can be killed, those killed at first and now, survivors and judgements."""

    counted: int
    at_first: int
    killed: int
    survivors: list[tuple[str, str]]
    mutants: int
    fresh: bool

    @property
    def share(self) -> float:
        """Of the mutants that can be killed, how many are."""
        return self.killed / self.counted


def tally(chapter: ChapterFile) -> Tally | None:
    """The kept report with the survivors' judgements; None where there is no report."""
    if not report(chapter).is_file():
        return None
    kept, same = _kept(chapter), equivalent(chapter)
    said = [(s["is"], same.get((s["line"], s["before"], s["after"]), "")) for s in kept["survivors"]]
    counted = kept["tried"] - sum(bool(why) for _, why in said)
    fresh = kept["basis"] == basis(chapter)
    return Tally(counted, kept["tried"] - kept["at first"], kept["tried"] - len(said), said, kept["mutants"], fresh)


def table(chapters: Iterable[ChapterFile]) -> str:
    """The kept reports as an HTML table, a row a chapter, with the survivors by name."""
    head = board.heads("chapter", "mutants", "counted", "killed at first", "killed now", "survivors")
    return board.table("Mutants by chapter", head, "".join(map(_row, chapters)))


def _row(chapter: ChapterFile) -> str:
    head = f'<tr><th scope="row">{escape(chapter.slug)}</th>'
    if not (found := tally(chapter)):
        return f'{head}<td>{len(mutants(chapter.path))}</td><td colspan="4">not yet tried</td></tr>'
    whys = [(escape(name), escape(f": the same, {why}") if why else "") for name, why in found.survivors]
    names = "".join(f"<li><code>{name}</code>{why}</li>" for name, why in whys)
    folded = f"<details><summary>{len(found.survivors)}</summary><ul>{names}</ul></details>" if names else "0"
    stale = "" if found.fresh else ", of an earlier version"
    shares = [f"{n} ({n / found.counted:.0%})" for n in (found.at_first, found.killed)]
    cells = [found.mutants, f"{found.counted}{stale}", *shares, folded]
    return head + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _test(chapter: ChapterFile, tests: Path, mutant: Mutant | None, clock: float, cpu: float) -> tuple[int | None, str]:
    """pytest's exit code (None: too slow) and its words, from a child process that sees the mutant's cell."""
    import pytest
    import torch  # noqa: F401  imported once, before the children are forked: most of the time of a short test run

    with tempfile.TemporaryFile("w+") as out:
        if not (child := os.fork()):
            os.setsid()  # so that what the tests start ends with them
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(cpu), resource.RLIM_INFINITY))
            for stream in (1, 2):
                os.dup2(out.fileno(), stream)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
            if mutant:
                notebook.read = _seen_with(mutant, chapter.path)
            os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-n0", str(tests)])))
        code = _wait(child, clock)
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
