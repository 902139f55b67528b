"""The contract of a chapter, checked without running it: `lint(path)` reads the notebook and names every breach.

A rule is a generator of (cell, line, message) registered under its name with `@rule`; cell and line count from 1, None
where a problem belongs to the whole notebook. A message says what is required, what was found and how to mend it.
"""

import ast
import builtins
import json
import re
import symtable
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from reprolib import project

SECTIONS = (
    *("In one minute", "Claims", "The idea", "Notation", "The method", "Check", "Experiments", "Explore", "Verdicts"),
    *("Exercises", "References"),
)
EXERCISES = ("pencil", "code", "open")
PACKAGES = {"reprolib", "torch", "numpy", "scipy", "matplotlib", "sklearn"}
NETWORK = {"urllib", "http", "socket", "ftplib", "subprocess"}
PAPER_FIELDS = ("title", "authors", "venue", "year", "arxiv", "code", "part")
MAX_BYTES, MAX_LINES, MIN_ALT = 300 * 1024, 40, 20

Node = TypeVar("Node", bound=ast.AST)
Finding = tuple[int | None, int | None, str]  # cell, line, message
Papers = Mapping[str, Mapping[str, Any]]  # slug -> entry of book/papers.yml


class Problem(NamedTuple):
    """One breach of the contract, at a 1-based cell and line (None: the whole notebook)."""

    path: Path
    cell: int | None
    line: int | None
    rule: str
    message: str

    def __str__(self) -> str:
        here = Path.cwd()
        where = [str(self.path.relative_to(here) if self.path.is_relative_to(here) else self.path)]
        where += [f"cell {self.cell}"] if self.cell else []
        where += [f"line {self.line}"] if self.line else []
        return f"{', '.join(where)}: {self.message} [{self.rule}]"


class Cell(NamedTuple):
    number: int
    kind: str  # "code" or "markdown"
    source: str
    tags: frozenset[str]
    outputs: list[dict[str, Any]]
    executed: int | None  # the execution count
    tree: ast.Module | None  # None for prose, and for code that is not Python
    error: tuple[int | None, str] | None  # line and message of the syntax error
    section: str  # the level-2 heading it stands under, "" before the first


class Chapter(NamedTuple):
    """A notebook as the rules see it."""

    path: Path
    cells: list[Cell]
    bibliography: set[str] | None  # keys of references.bib; None: not checked
    papers: Papers | None  # None: not checked

    @property
    def slug(self) -> str:
        return self.path.stem

    @property
    def code(self) -> list[Cell]:
        return [c for c in self.cells if c.kind == "code"]

    def tagged(self, tag: str) -> list[Cell]:
        return [c for c in self.code if tag in c.tags]

    def calls(self, name: str) -> list[tuple[Cell, ast.Call]]:
        """All calls `ch.name(...)` on the notebook's Chapter object, in order."""
        made = {
            target.id
            for cell in self.code
            for node in _walk(cell, ast.Assign)
            if isinstance(node.value, ast.Call) and _name(node.value.func) == "Chapter"
            for target in node.targets
            if isinstance(target, ast.Name)
        } or {"ch"}
        return [(c, call) for c in self.code for call in _calls(c, name, made)]


Rule = Callable[[Chapter], Iterator[Finding]]
RULES: dict[str, list[Rule]] = {}


def rule(name: str) -> Callable[[Rule], Rule]:
    """Register a generator of findings under a rule name; several may share one name."""

    def register(function: Rule) -> Rule:
        RULES.setdefault(name, []).append(function)
        return function

    return register


def lint(path: Path, bibliography: set[str] | None = None, papers: Papers | None = None) -> list[Problem]:
    """All problems of the notebook at `path`, in reading order.

    Args:
        path: chapters/<part>/<slug>.ipynb.
        bibliography: Keys of book/references.bib, see `bib_keys`; None leaves the rule out.
        papers: Entries of book/papers.yml by slug, see `lint_all`; None leaves the rule out.
    """
    try:
        chapter = Chapter(path, _cells(path), bibliography, papers)
    except _Unreadable as error:
        return [Problem(path, None, error.line, "readable", str(error))]
    findings = [(*f, name) for name, functions in RULES.items() for function in functions for f in function(chapter)]
    findings.sort(key=lambda f: (f[0] or 0, f[1] or 0))
    return [Problem(path, cell, line, name, message) for cell, line, message, name in findings]


def lint_all(root: Path) -> list[Problem]:
    """Problems of all chapters of the checkout `root` and of its book/papers.yml.

    Raises:
        ReproError: book/papers.yml or PyYAML is missing.
    """
    entries = {entry["slug"]: entry for entry in project.papers(root)["papers"]}
    keys, paths = bib_keys(root / "book" / "references.bib"), [chapter.path for chapter in project.chapters(root)]
    problems = []
    for slug in sorted(set(entries) - {p.stem for p in paths}):
        message = f"The entry {slug!r} has no chapter; make one with `repro new {slug}` or remove the entry."
        problems.append(Problem(root / "book" / "papers.yml", None, None, "papers", message))
    for path in paths:
        problems += lint(path, keys, entries)
    return problems


def bib_keys(path: Path) -> set[str]:
    """Citation keys of a BibTeX file; empty where there is no file."""
    return set(re.findall(r"^\s*@\w+\{\s*([^,\s]+)", path.read_text("utf-8"), re.M)) if path.exists() else set()


def missing_fields(entry: Mapping[str, Any]) -> list[str]:
    """Fields that an entry of book/papers.yml must have and has not; `arxiv` and `code` may be null."""
    empty_allowed = {"arxiv", "code"}
    return [f for f in PAPER_FIELDS if f not in entry or (entry[f] is None and f not in empty_allowed)]


# ---------------------------------------------------------------------------------------------------------- reading
class _Unreadable(Exception):
    def __init__(self, message: str, line: int | None = None):
        super().__init__(message)
        self.line = line


def _cells(path: Path) -> list[Cell]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _Unreadable(f"The notebook cannot be read as UTF-8 text: {error}.") from None
    if mark := re.search(r"^(<<<<<<<|=======|>>>>>>>)( .*)?$", text, re.M):
        line = text.count("\n", 0, mark.start()) + 1
        raise _Unreadable(f"An unresolved conflict mark {mark[1]!r}; resolve the merge, then run the chapter.", line)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        message = f"A notebook must be valid JSON; got: {error.msg}. Restore it with git, or mend the file."
        raise _Unreadable(message, error.lineno) from None
    if not isinstance(content, dict) or content.get("nbformat") != 4 or not isinstance(content.get("cells"), list):
        raise _Unreadable("A notebook must be an object of nbformat 4 with a list of cells; save it with Jupyter.")
    if not all(isinstance(cell, dict) and "cell_type" in cell for cell in content["cells"]):
        raise _Unreadable("Every cell must be an object with a cell_type; save the notebook with Jupyter.")
    cells: list[Cell] = []
    section = ""
    for number, raw in enumerate(content["cells"], 1):
        source = "".join(raw.get("source", ""))
        if raw["cell_type"] == "markdown":
            section = ([title for _, level, title in headings(source) if level == 2] or [section])[-1]
        tree, error_at = _parse(source) if raw["cell_type"] == "code" else (None, None)
        tags = frozenset(raw.get("metadata", {}).get("tags", []))
        outputs, count = raw.get("outputs", []), raw.get("execution_count")
        cells.append(Cell(number, raw["cell_type"], source, tags, outputs, count, tree, error_at, section))
    return cells


def _parse(source: str) -> tuple[ast.Module | None, tuple[int | None, str] | None]:
    try:
        return ast.parse(source), None
    except SyntaxError as error:
        return None, (error.lineno, error.msg)
    except ValueError as error:  # a null byte
        return None, (None, str(error))


def headings(markdown: str) -> Iterator[tuple[int, int, str]]:
    """(line, level, title) of the headings of a Markdown text, leaving out fenced code."""
    fence = ""
    for number, line in enumerate(markdown.splitlines(), 1):
        if mark := re.match(r"\s*(`{3,}|~{3,})(.*)", line):
            if not fence:
                fence = mark[1]
            elif mark[1].startswith(fence) and not mark[2].strip():
                fence = ""
        elif not fence and (heading := re.match(r"(#{1,6})\s+(.+?)\s*#*$", line)):
            yield number, len(heading[1]), heading[2]


def _name(node: ast.expr) -> str | None:
    return node.id if isinstance(node, ast.Name) else None


def _walk(cell: Cell, kind: type[Node]) -> list[Node]:
    return [n for n in ast.walk(cell.tree) if isinstance(n, kind)] if cell.tree else []


def _calls(cell: Cell, name: str, owners: Iterable[str] = ()) -> list[ast.Call]:
    """Calls `name(...)` if there are no owners, else `owner.name(...)`, in order of their lines."""
    found = []
    for call in _walk(cell, ast.Call):
        f = call.func
        plain = not owners and _name(f) == name
        if plain or (isinstance(f, ast.Attribute) and f.attr == name and _name(f.value) in set(owners)):
            found.append(call)
    return sorted(found, key=lambda call: (call.lineno, call.col_offset))


def _text(node: ast.expr | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((k.value for k in call.keywords if k.arg == name), None)


def _output_text(cell: Cell) -> str:
    """All text a cell printed or displayed: streams, text/*, tracebacks."""
    parts = []
    for output in cell.outputs:
        parts += ["".join(output.get("text", "")), *output.get("traceback", [])]
        parts += ["".join(v) for k, v in output.get("data", {}).items() if k.startswith("text/")]
    return "\n".join(parts)


# ------------------------------------------------------------------------------------------------------ order of page
@rule("sections")
def title_cell(chapter: Chapter) -> Iterator[Finding]:
    first = chapter.cells[0] if chapter.cells else None
    levels = [level for _, level, _ in headings(first.source)] if first and first.kind == "markdown" else []
    if first is None or 1 not in levels:
        yield 1, None, "The first cell must be Markdown that starts with '# Title'; add it."
    elif "**Cost" not in first.source:
        yield 1, None, "The first cell must say what a run costs: add '**Cost:** quick ... s, full ... min'."
    for cell in chapter.cells[1:]:
        for line, level, title in headings(cell.source) if cell.kind == "markdown" else ():
            if level == 1:
                yield cell.number, line, f"A chapter has one level-1 heading; make {title!r} level 3."


@rule("sections")
def section_order(chapter: Chapter) -> Iterator[Finding]:
    found = [
        (cell.number, line, title)
        for cell in chapter.cells
        if cell.kind == "markdown"
        for line, level, title in headings(cell.source)
        if level == 2
    ]
    seen: list[str] = []
    for number, line, title in found:
        if title not in SECTIONS:
            yield number, line, f"The section {title!r} is not one of {', '.join(SECTIONS)}; use a level-3 heading."
        elif title in seen:
            yield number, line, f"The section {title!r} stands twice; keep one."
        elif seen and SECTIONS.index(title) < max(SECTIONS.index(s) for s in seen):
            latest = max(seen, key=SECTIONS.index)
            yield number, line, f"The section {title!r} must stand before {latest!r}; move it."
        seen += [title] if title in SECTIONS else []
    for title in SECTIONS:
        if title not in seen:
            yield None, None, f"The section '## {title}' is missing; add it."


@rule("chapter")
def chapter_object(chapter: Chapter) -> Iterator[Finding]:
    made = [(c, call) for c in chapter.code for call in _calls(c, "Chapter")]
    if len(made) != 1:
        yield None, None, f'Exactly one Chapter("{chapter.slug}") is required; found {len(made)}.'
    for cell, call in made:
        if (got := _text(call.args[0]) if call.args else None) != chapter.slug:
            message = f"Chapter(...) must name the file, {chapter.slug!r}; got {got!r}. Rename one of them."
            yield cell.number, call.lineno, message
    last = chapter.code[-1].number if chapter.code else None
    ends = chapter.calls("finish")
    if [c.number for c, _ in ends] != [last]:
        yield last, None, f"The last code cell, and only it, must call ch.finish(); it stands in {_places(ends)}."


@rule("chapter")
def required_parts(chapter: Chapter) -> Iterator[Finding]:
    scales = chapter.calls("scale")
    if len(scales) != 1 or {k.arg for k in scales[0][1].keywords} != {"quick", "full"}:
        yield None, None, f"One cell must hold ch.scale(quick=..., full=...); found {_places(scales)}."
    if not any(c.section == "Verdicts" for c, _ in chapter.calls("verdicts")):
        yield None, None, "The section 'Verdicts' must show the table with ch.verdicts(); add the call."
    if not any(_calls(c, "slider") for c in chapter.code if c.section == "Explore"):
        yield None, None, "The section 'Explore' must hold a slider(...) over frames computed before; add one."


def _places(found: Iterable[tuple[Cell, ast.Call]]) -> str:
    return ", ".join(f"cell {c.number}" for c, _ in found) or "no cell"


# ------------------------------------------------------------------------------------------------------------- claims
@rule("claims")
def claims_declared_first(chapter: Chapter) -> Iterator[Finding]:
    late = SECTIONS[SECTIONS.index("Experiments") :]
    declared = chapter.calls("claim")
    if not declared:
        yield None, None, 'A chapter needs at least one ch.claim("c1", "...", paper=..., criterion=...); found none.'
    measured_first = min([c.number for c, _ in chapter.calls("measure")], default=sys.maxsize)
    ids: list[str] = []
    for cell, call in declared:
        at = cell.number, call.lineno
        id_ = _text(call.args[0]) if call.args else None
        if id_ is None or id_ in ids:
            yield *at, f"A claim needs a literal id of its own as first argument; got {id_ or 'an expression'!r}."
        ids += [id_] if id_ else []
        if "claims" not in cell.tags:
            yield *at, f"ch.claim({id_!r}) must stand in a cell tagged 'claims'; tag this cell."
        if cell.section in late or cell.number >= measured_first:
            yield *at, f"ch.claim({id_!r}) must stand before '## Experiments' and before any ch.measure; move it."
        for keyword in ("criterion", "paper"):
            if _keyword(call, keyword) is None:
                yield *at, f"ch.claim({id_!r}) must be given {keyword}=...; add it before the experiment is run."


@rule("claims")
def claims_measured_once(chapter: Chapter) -> Iterator[Finding]:
    declared = {_text(call.args[0]): cell for cell, call in chapter.calls("claim") if call.args}
    measured: list[str] = []
    for cell, call in chapter.calls("measure"):
        id_ = _text(call.args[0]) if call.args else None
        at = cell.number, call.lineno
        if id_ is None:
            yield *at, 'ch.measure must name its claim literally, ch.measure("c1", values); got an expression.'
        elif id_ not in declared:
            yield *at, f"ch.measure({id_!r}) measures no declared claim; declared: {', '.join(filter(None, declared))}."
        elif id_ in measured:
            yield *at, f"The claim {id_!r} is measured twice; keep one ch.measure."
        measured += [id_] if id_ else []
    for id_, cell in declared.items():
        if id_ and id_ not in measured:
            yield cell.number, None, f'The claim {id_!r} is never measured; add ch.measure("{id_}", values).'


# ------------------------------------------------------------------------------------------------- figures, exercises
@rule("text-alternatives")
def figures(chapter: Chapter) -> Iterator[Finding]:
    names: list[str] = []
    owners = {"reprolib", "plot", "explore"}
    for cell in chapter.code:
        for kind in ("figure", "slider"):
            for call in _calls(cell, kind) + _calls(cell, kind, owners):
                at = cell.number, call.lineno
                for keyword in ("name", "caption", "alt"):
                    if _keyword(call, keyword) is None:
                        yield *at, f"{kind}(...) must be given {keyword}=...; add it."
                alt, name = _text(_keyword(call, "alt")), _text(_keyword(call, "name"))
                if alt is not None and len(alt.strip()) < MIN_ALT:
                    yield *at, f"alt must say in {MIN_ALT} characters or more what the picture shows; got {alt!r}."
                if name in names:
                    yield *at, f"The name {name!r} is taken by an earlier figure; choose another."
                names += [name] if name else []
        for call in _calls(cell, "show", {"plt", "pyplot", "fig"}):
            yield cell.number, call.lineno, "show() leaves a picture without text; use figure(fig, name, caption, alt)."
        for output in cell.outputs:
            pictures = [k for k in output.get("data", {}) if k.startswith("image/")]
            if pictures and not output.get("metadata", {}).get("reprolib", {}).get("alt"):
                yield (cell.number, None, f"An output {pictures[0]} lacks a text alternative; use figure(...).")


@rule("text-alternatives")
def markdown_images(chapter: Chapter) -> Iterator[Finding]:
    for cell in chapter.cells:
        for number, line in enumerate(cell.source.splitlines(), 1) if cell.kind == "markdown" else ():
            if re.search(r"!\[\s*\]\(", line) or re.search(r"<img(?![^>]*\balt\s*=\s*[\"'][^\"'])", line):
                yield cell.number, number, "An image in Markdown needs a text alternative: ![what it shows](file)."
        for block in re.finditer(r"^[`:]{3,}\{(?:figure|image)\}.*\n((?:.*\n)*?)[`:]{3,}", cell.source, re.M):
            if cell.kind == "markdown" and not re.search(r"^:alt:\s*\S", block[1], re.M):
                line_ = cell.source.count("\n", 0, block.start()) + 1
                yield cell.number, line_, "A figure directive needs a text alternative; add the line ':alt: ...'."


@rule("exercises")
def exercises(chapter: Chapter) -> Iterator[Finding]:
    groups: dict[str, list[Cell]] = {}
    starts: dict[str, Cell] = {}
    title = ""
    for cell in (c for c in chapter.cells if c.section == "Exercises"):
        for _, level, text in headings(cell.source) if cell.kind == "markdown" else ():
            title = text if level == 3 else title
            starts.setdefault(title, cell)
        groups.setdefault(title, []).append(cell)
    wanted = [f"Exercise {k} ({kind})" for k, kind in enumerate(EXERCISES, 1)]
    got = [t for t in groups if t.startswith("Exercise ")]
    if got != wanted:
        message = f"Three exercises are required, headed '### {wanted[0]}', '{wanted[1]}', '{wanted[2]}'; got {got}."
        yield None, None, message
    for k, heading in enumerate(wanted, 1):
        if heading in groups:
            yield from _exercise(f"{chapter.slug}/{k}", k, starts[heading], groups[heading])


def _exercise(id_: str, k: int, start: Cell, cells: list[Cell]) -> Iterator[Finding]:
    order = ["exercise", "self-check", "solution"]
    code = [(c, tag) for c in cells if c.kind == "code" for tag in order if tag in c.tags]
    tags = [tag for _, tag in code]
    for tag in order:
        if tag not in tags:
            yield start.number, None, f"Exercise {k} needs a code cell tagged {tag!r}; add it."
    if tags != sorted(tags, key=order.index):
        yield start.number, None, f"Exercise {k} must go {' -> '.join(order)}; got {' -> '.join(tags)}."
    statement = re.sub(r"^#.*$", "", start.source, flags=re.M)
    if len(statement.split()) < 5:
        yield start.number, None, f"Exercise {k} needs its question in the Markdown under its heading; write it."
    checks = {tag: [c for c, t in code if t == tag and _check(c, "check", id_)] for tag in order}
    for cell in [c for c, tag in code if tag == "self-check"][:1]:
        decorators = [d for f in _walk(cell, ast.FunctionDef) for d in f.decorator_list]
        if not any(isinstance(d, ast.Call) and _is(d, "self_check", id_) for d in decorators):
            yield cell.number, None, f'The self-check must define a function under @self_check("{id_}"); add it.'
    for tag in order[1:]:
        if tag in tags and not checks[tag]:
            at = next(c.number for c, t in code if t == tag)
            yield at, None, f'The {tag} cell must call check("{id_}", ...); add it.'
    for cell in checks["solution"]:
        if cell.outputs and f"Exercise {k}: correct" not in _output_text(cell):
            message = f"The published solution must pass its check ('Exercise {k}: correct'); mend it and run again."
            yield cell.number, None, message


def _is(call: ast.Call, name: str, id_: str) -> bool:
    return _name(call.func) == name and bool(call.args) and _text(call.args[0]) == id_


def _check(cell: Cell, name: str, id_: str) -> bool:
    return any(_is(call, name, id_) for call in _walk(cell, ast.Call))


# ------------------------------------------------------------------------------------------------------- method cells
@rule("method")
def method_definitions(chapter: Chapter) -> Iterator[Finding]:
    cells = chapter.tagged("method")
    classes = {node.name for c in cells for node in _walk(c, ast.ClassDef)}
    if not any(_walk(c, ast.FunctionDef) for c in cells):
        yield None, None, "No cell tagged 'method' defines a function; tag the cells that implement the paper."
    prose = ""
    for cell in chapter.cells:
        if cell.kind == "markdown":
            prose = re.sub(r"^#.*$", "", cell.source, flags=re.M).strip()
        if cell not in cells or cell.tree is None:
            continue
        for node in cell.tree.body:
            if not _is_definition(node, classes):
                message = "A 'method' cell holds imports, constants and definitions only; move this line elsewhere."
                yield cell.number, node.lineno, message
        if any(isinstance(n, ast.FunctionDef | ast.ClassDef) for n in cell.tree.body) and not prose:
            yield cell.number, None, "The Markdown above a definition must give its equation or say what it computes."


def _is_definition(node: ast.stmt, classes: set[str]) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return True
    if isinstance(node, ast.Expr):
        return _text(node.value) is not None  # a docstring
    if isinstance(node, ast.Assign):
        targets, value = node.targets, node.value
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        targets, value = [node.target], node.value
    else:
        return False
    names = all(isinstance(t, ast.Name) for t in targets)
    return names and all(_is_constant_call(n, classes) for n in ast.walk(value) if isinstance(n, ast.Call))


def _is_constant_call(call: ast.Call, classes: set[str]) -> bool:
    """A call that costs nothing and reads nothing: a type, a record defined in a method cell, or `math.f(...)`."""
    types = {"NamedTuple", "namedtuple", "TypeVar", "NewType", "frozenset", "float", "range"}
    f = call.func
    return _name(f) in types | classes or (isinstance(f, ast.Attribute) and _name(f.value) == "math")


@rule("method")
def method_stands_alone(chapter: Chapter) -> Iterator[Finding]:
    """Names that the method cells use but no method cell binds: they would miss when tests import the cells."""
    cells = [c for c in chapter.tagged("method") if c.tree]
    try:
        module = symtable.symtable("\n\n".join(c.source for c in cells), "method", "exec")
    except SyntaxError as error:  # such as a __future__ import in a later cell
        yield None, None, f"The 'method' cells together are not a module ({error.msg}); mend them."
        return
    bound = {s.get_name() for s in module.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    used: set[str] = set()
    tables = [module]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        used |= {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}
        used |= {s.get_name() for s in table.get_symbols() if table is module and s.is_referenced()}
    for name in sorted(used - bound - set(dir(builtins))):
        places = ((c.number, n.lineno) for c in cells for n in _walk(c, ast.Name) if n.id == name)
        number, line = next(places, (cells[0].number, 1))
        yield number, line, f"{name!r} is used in a 'method' cell but bound in none; import or define it there."


# ---------------------------------------------------------------------------------------------------------- forbidden
@rule("syntax")
def python(chapter: Chapter) -> Iterator[Finding]:
    for cell in chapter.code:
        if cell.error and not re.search(r"^\s*[%!?]", cell.source, re.M):
            yield cell.number, cell.error[0], f"The cell is not Python ({cell.error[1]}); mend it."


@rule("forbidden")
def forbidden_text(chapter: Chapter) -> Iterator[Finding]:
    for cell in chapter.code:
        for number, line in enumerate(cell.source.splitlines(), 1):
            if cell.tree is None and re.match(r"\s*[%!?]", line):
                message = f"Magics, shell commands and installs do not run everywhere; remove {line.strip()!r}."
                yield cell.number, number, message
            if setting := re.search(r"REPRO_\w+|os\.environ|os\.getenv|\.is_(?:full|quick)\b|get_ipython", line):
                message = f"{setting[0]!r}: a cell must not ask where it runs; use ch.scale and ch.device."
                yield cell.number, number, message


@rule("forbidden")
def forbidden_code(chapter: Chapter) -> Iterator[Finding]:
    for cell in chapter.code:
        for node in _walk(cell, ast.If):
            if isinstance(node.test, ast.Constant) and not node.test.value:
                yield cell.number, node.lineno, "Code that never runs ('if False') is not kept; remove it."
        for statement in _walk(cell, ast.ImportFrom):
            if any(alias.name == "*" for alias in statement.names):
                yield cell.number, statement.lineno, "A star import hides where names come from; name them."
            if any(alias.name.startswith("fetch_") for alias in statement.names):
                yield cell.number, statement.lineno, "A bare download: data come through reprolib, with a checksum."
        for line, module in _imports(cell):
            if module in NETWORK:
                yield cell.number, line, f"{module!r} reaches outside the notebook; data come through reprolib."
            elif module not in PACKAGES and module not in sys.stdlib_module_names:
                message = f"A notebook imports {', '.join(sorted(PACKAGES))} and the standard library; got {module!r}."
                yield cell.number, line, message


def _imports(cell: Cell) -> Iterator[tuple[int, str]]:
    for node in _walk(cell, ast.Import):
        yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
    for statement in _walk(cell, ast.ImportFrom):
        yield statement.lineno, (statement.module or ".").split(".")[0]


POSIX = re.compile(r"(?<![\w.:/~$\\}])/(home|Users|root|tmp|work|mnt|opt|usr|var|etc|private|content|data)/[\w.-]")
DRIVE = re.compile(r"\b[A-Za-z]:\\+(?:Users|Windows|Program|Temp|Documents|data|work)\b|\bfile://")
ANY_DRIVE = re.compile(r"\b[A-Z]:\\+\w")


@rule("paths")
def no_absolute_paths(chapter: Chapter) -> Iterator[Finding]:
    advice = "an absolute path exists on one machine only; use a path relative to the book, or reprolib's data."
    for cell in chapter.cells:
        patterns = (POSIX, DRIVE, ANY_DRIVE) if cell.kind == "code" else (POSIX, DRIVE)
        for number, line in enumerate(cell.source.splitlines(), 1):
            if found := next(filter(None, (p.search(line) for p in patterns)), None):
                yield cell.number, number, f"{found[0]!r}: {advice}"
        if found := next(filter(None, (p.search(_output_text(cell)) for p in patterns)), None):
            yield cell.number, None, f"{found[0]!r} in the output: {advice}"


IGNORE_TAG = re.compile(r"nbval-(?!check).*|raises-exception|skip-execution")


@rule("ignore-markers")
def no_ignore_markers(chapter: Chapter) -> Iterator[Finding]:
    for cell in chapter.cells:
        marks = [t for t in sorted(cell.tags) if IGNORE_TAG.fullmatch(t)]
        marks += re.findall(r"NBVAL_(?!CHECK)\w+|PYTEST_VALIDATE_IGNORE\w*", cell.source + " ".join(cell.tags))
        for mark in marks:
            message = f"{mark!r}: every output is shown and compared; remove the marker and print a stable text (≈)."
            yield cell.number, None, message


@rule("todo")
def no_todo(chapter: Chapter) -> Iterator[Finding]:
    for cell in chapter.cells:
        for number, line in enumerate(cell.source.splitlines(), 1):
            if "TODO" in line:
                yield cell.number, number, f"Left to write: {line.strip()[:80]!r}."


# ----------------------------------------------------------------------------------------------------- size and state
@rule("length")
def cell_length(chapter: Chapter) -> Iterator[Finding]:
    for cell in chapter.code:
        if (lines := len(cell.source.splitlines())) > MAX_LINES:
            yield (cell.number, None, f"At most {MAX_LINES} lines a code cell; got {lines}. Split it.")


@rule("size")
def file_size(chapter: Chapter) -> Iterator[Finding]:
    if (size := chapter.path.stat().st_size) > MAX_BYTES:
        message = f"A notebook has at most {MAX_BYTES // 1024} KiB; got {size / 1024:.0f}. Draw fewer frames."
        yield None, None, message


@rule("executed")
def executed_in_order(chapter: Chapter) -> Iterator[Finding]:
    for expected, cell in enumerate(chapter.code, 1):
        if not cell.source.strip():
            yield cell.number, None, "An empty code cell; delete it."
        if cell.executed != expected:
            state = "was not executed" if cell.executed is None else f"was executed as number {cell.executed}"
            message = f"Code cells must be executed once, in order: this is number {expected} and {state}."
            yield cell.number, None, f"{message} Use `repro run {chapter.slug}`."
            return


@rule("outputs")
def clean_outputs(chapter: Chapter) -> Iterator[Finding]:
    for cell in chapter.code:
        for output in cell.outputs:
            if output.get("output_type") == "error":
                message = f"A stored error, {output.get('ename')}: {output.get('evalue')}; mend the cell and run again."
                yield cell.number, None, " ".join(message.split())
            if output.get("output_type") == "stream" and output.get("name") == "stderr":
                first = "".join(output.get("text", "")).strip().split("\n")[0][:80]
                yield cell.number, None, f"Text on stderr ({first!r}); mend the warning, show progress by ch.progress."


# ------------------------------------------------------------------------------------------------------------ the book
@rule("bibliography")
def bibliography(chapter: Chapter) -> Iterator[Finding]:
    if chapter.bibliography is None:
        return
    if chapter.slug not in chapter.bibliography:
        yield None, None, f"book/references.bib needs an entry with the key {chapter.slug!r}; add it."
    for cell in (c for c in chapter.cells if c.kind == "markdown"):
        for cited in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", cell.source):
            for key in (k.strip() for k in cited.split(",")):
                if key not in chapter.bibliography:
                    yield cell.number, None, f"The cited key {key!r} is not in book/references.bib; add it."


@rule("papers")
def entry_in_papers(chapter: Chapter) -> Iterator[Finding]:
    if chapter.papers is None:
        return
    entry = chapter.papers.get(chapter.slug)
    if entry is None:
        yield None, None, f"book/papers.yml needs an entry with slug {chapter.slug!r}; add it."
        return
    if missing := missing_fields(entry):
        yield None, None, f"The entry of {chapter.slug!r} in book/papers.yml lacks {', '.join(missing)}; add it."
    if entry.get("part") != chapter.path.parent.name:
        message = f"The chapter lies in {chapter.path.parent.name!r} but its part is {entry.get('part')!r}; move it."
        yield None, None, message
