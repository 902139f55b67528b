"""A notebook as the rules of `lint` see it: cells with tags, section and syntax tree, headings, and calls."""

import ast
import re
import symtable
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from reprolib import notebook
from reprolib.notebook import NotebookError

Node = TypeVar("Node", bound=ast.AST)
Papers = Mapping[str, Mapping[str, Any]]  # slug -> entry of book/papers.yml


class Call(NamedTuple):
    """One call in a cell."""

    cell: "Cell"
    at: tuple[int, int]  # cell and line
    name: str  # as written, such as "figure" or "ch.claim"
    id: str | None  # the first argument, when it is a literal text
    keywords: dict[str, str | None]  # the literal texts, None for other expressions


class Cell(NamedTuple):
    """One cell, with the headings that it stands under."""

    number: int  # from 1
    kind: str  # "code" or "markdown"
    source: str
    tags: list[str]
    outputs: list[dict[str, Any]]
    executed: int | None  # the execution count
    tree: ast.Module  # empty for prose, and for code that is not Python
    error: SyntaxError | None
    section: str  # the latest level-2 heading, "" before the first
    subsection: str  # the latest level-3 heading of the section

    def walk(self, *kinds: type[Node]) -> list[Node]:
        """The syntax nodes of some kinds."""
        return [node for node in ast.walk(self.tree) if isinstance(node, kinds)]

    def calls(self, *names: str) -> list[Call]:
        """Calls of the functions written exactly so, in order of their lines."""
        found = []
        for node in self.walk(ast.Call):
            if (name := ast.unparse(node.func)) in names:
                keywords = {k.arg: text(k.value) for k in node.keywords if k.arg}
                id_ = text(node.args[0]) if node.args else None
                found.append(Call(self, (self.number, node.lineno), name, id_, keywords))
        return sorted(found, key=lambda call: call.at)

    def prose(self) -> str:
        """The Markdown below the headings."""
        return re.sub(r"^#.*$", "", self.source, flags=re.M).strip()

    def printed(self) -> str:
        """All text that the cell printed or displayed: streams, text/*, tracebacks."""
        parts = []
        for output in self.outputs:
            parts += ["".join(output.get("text", "")), *output.get("traceback", [])]
            parts += ["".join(v) for k, v in output.get("data", {}).items() if k.startswith("text/")]
        return "\n".join(parts)


class Chapter:
    """The notebook at `path` with its cells, and the lists of the book that it is held against (None: not checked).

    Raises:
        NotebookError: It cannot be read, or is no notebook of nbformat 4.
    """

    def __init__(self, path: Path, bibliography: set[str] | None = None, papers: Papers | None = None):
        try:
            nb = notebook.read(path)
        except (OSError, UnicodeDecodeError) as error:
            raise NotebookError(f"The notebook cannot be read as UTF-8 text: {error}.") from None
        whole = all(isinstance(c, dict) and {"cell_type", "source"} <= set(c) for c in nb["cells"])
        if nb.get("nbformat") != 4 or not whole:
            raise NotebookError(
                "A notebook must have nbformat 4, and cells cell_type and source; save it with Jupyter."
            )
        self.path, self.slug, self.notebook, self.cells = path, path.stem, nb, list(_cells(nb["cells"]))
        self.code = [c for c in self.cells if c.kind == "code"]
        self.prose = [c for c in self.cells if c.kind == "markdown"]
        self.bibliography, self.papers = bibliography, papers
        # ((cell, line), level, title)
        self.headings = [((c.number, at), level, title) for c in self.prose for at, level, title in headings(c.source)]

    def calls(self, *names: str) -> list[Call]:
        """As `Cell.calls`, over all cells."""
        return [call for cell in self.code for call in cell.calls(*names)]


def _cells(raw_cells: list[dict[str, Any]]) -> Iterator[Cell]:
    under = {2: "", 3: ""}
    for number, raw in enumerate(raw_cells, 1):
        kind, source, error = raw["cell_type"], notebook.source(raw), None
        for _, level, title in headings(source) if kind == "markdown" else ():
            under |= {2: title, 3: ""} if level == 2 else {level: title}
        try:
            tree = ast.parse(source if kind == "code" else "")
        except SyntaxError as failure:
            tree, error = ast.parse(""), failure
        state = notebook.tags(raw), raw.get("outputs", []), raw.get("execution_count")
        yield Cell(number, kind, source, *state, tree, error, under[2], under[3])


def headings(markdown: str) -> Iterator[tuple[int, int, str]]:
    """(line, level, title) of the headings of a Markdown text, leaving out fenced code."""
    fenced = r"^[ \t]*(`{3,}|~{3,})[^\n]*\n[\s\S]*?^[ \t]*\1[`~]*[ \t]*$"
    plain = re.sub(fenced, lambda fence: "\n" * fence[0].count("\n"), markdown, flags=re.M)
    for heading in re.finditer(r"^(#{1,6})[ \t]+(.+?)[ \t]*#*$", plain, re.M):
        yield plain.count("\n", 0, heading.start()) + 1, len(heading[1]), heading[2]


def text(node: ast.expr) -> str | None:
    """The value of a literal text, else None."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def bound(module: symtable.SymbolTable) -> set[str]:
    """Names that a module binds: assigned, imported or defined."""
    return {s.get_name() for s in module.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}


def used(table: symtable.SymbolTable) -> set[str]:
    """Names of the module that a scope or one inside it reads."""
    own = (s for s in table.get_symbols() if s.is_referenced() and (s.is_global() or table.get_type() == "module"))
    return {s.get_name() for s in own}.union(*map(used, table.get_children()))
