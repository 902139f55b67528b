"""The contract of a chapter, checked without running it: `lint(path)` reads the notebook and names every breach.

A rule is a generator of (cell, line, message) registered under its name with `@rule`; cell and line count from 1, None
where a problem belongs to the whole notebook. A message says what is required, what was found and how to mend it.
Undefined names and star imports are left to ruff.
"""

import ast
import builtins
import contextlib
import re
import symtable
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from repro import colab, lesson
from repro.bookmap import LETTERS, name_fits, tangles
from repro.chapterfile import Call, Cell, Chapter, Papers, bound, text, used
from reprolib import notebook, project

SECTIONS = ["In one minute", "Claims", "The idea", "Notation", "The method", "Check"]
SECTIONS += ["Experiments", "Explore", "Verdicts", "Exercises", "References"]
EXERCISES = ("pencil", "code", "open")
PACKAGES = {"reprolib", "torch", "numpy", "scipy", "matplotlib", "mpmath", "sklearn"}
NETWORK = {"urllib", "http", "socket", "ftplib", "subprocess"}
PAPER_FIELDS = ("title", "authors", "venue", "year", "arxiv", "code", "part", "family", "data")
OF_A_PAPER = {"sections", "chapter", "claims", "exercises", "method", "bibliography", "papers", "lesson"}
MAX_BYTES, MAX_LINES, MIN_ALT = 300_000, 40, 20

Finding = tuple[int | None, int | None, str]  # cell, line, message
Rule = Callable[[Chapter], Iterator[Finding]]
RULES: list[tuple[str, Rule]] = []


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


def rule(name: str) -> Callable[[Rule], Rule]:
    """Register a generator of findings under a rule name; several may share one name."""

    def register(function: Rule) -> Rule:
        RULES.append((name, function))
        return function

    return register


def lint(
    path: Path, bibliography: set[str] | None = None, papers: Papers | None = None, page: bool = False
) -> list[Problem]:
    """All problems of the notebook at `path`, in reading order; a list of the book that is None is not checked.

    A page is a notebook about no paper: the rules of what a chapter says of its paper do not hold for it.
    """
    try:
        chapter = Chapter(path, bibliography, papers)
    except project.ReproError as error:
        return [Problem(path, None, None, "readable", str(error))]
    found = [
        Problem(path, cell, line, name, said)
        for name, find in RULES
        if not (page and name in OF_A_PAPER)
        for cell, line, said in find(chapter)
    ]
    return sorted(found, key=lambda p: (p.cell or 0, p.line or 0))


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
    said = [
        f"The short name {entry['short']!r} does not fit two lines of {LETTERS} letters; shorten it."
        for entry in entries.values()
        if not name_fits(entry)
    ]
    problems += [Problem(root / "book" / "papers.yml", None, None, "papers", s) for s in [*said, *tangles(entries)]]
    pages = [page.path for page in project.notebooks(root) if page.path not in paths]
    problems += [problem for path in paths for problem in lint(path, keys, entries)]
    problems += _without_colab(root, [*paths, *(page.path for page in project.notebooks(root))])
    return problems + [problem for path in pages for problem in lint(path, page=True)]


def _without_colab(root: Path, paths: list[Path]) -> list[Problem]:
    """Notebooks whose first code cell does not fetch the book in Colab; none where _config.yml is missing."""
    if not (root / "_config.yml").is_file():
        return []
    wanted, message = colab.cell(root), "The first code cell must be the one for Colab; put it there: repro colab."
    found = []
    for path in dict.fromkeys(paths):
        with contextlib.suppress(project.ReproError):  # an unreadable notebook is a problem of its own
            found += [] if colab.fits(notebook.read(path), wanted) else [Problem(path, None, None, "colab", message)]
    return found


def bib_keys(path: Path) -> set[str]:
    """Citation keys of a BibTeX file; empty where there is no file."""
    return set(re.findall(r"^\s*@\w+\{\s*([^,\s]+)", path.read_text("utf-8"), re.M)) if path.exists() else set()


def missing_fields(entry: Mapping[str, Any]) -> list[str]:
    """Fields that an entry of book/papers.yml must have and has not; `arxiv` and `code` may be null."""
    return [f for f in PAPER_FIELDS if f not in entry or (entry[f] is None and f not in {"arxiv", "code"})]


@rule("sections")
def sections(chapter: Chapter) -> Iterator[Finding]:
    first = chapter.cells[0].source if chapter.cells else ""
    if not first.startswith("# ") or "**Cost" not in first:
        yield 1, None, "The first cell must start with '# Title' and say what a run costs: '**Cost:** quick ... s'."
    seen: list[str] = []
    for at, level, title in chapter.headings:
        if level == 1 and at[0] > 1:
            yield *at, f"A chapter has one level-1 heading; make {title!r} level 3."
        if level != 2:
            continue
        if title not in SECTIONS:
            yield *at, f"The section {title!r} is not one of {', '.join(SECTIONS)}; use a level-3 heading."
            continue
        if title in seen:
            yield *at, f"The section {title!r} stands twice; keep one."
        elif late := [s for s in seen if SECTIONS.index(s) > SECTIONS.index(title)]:
            yield *at, f"The section {title!r} must stand before {late[0]!r}; move it."
        seen.append(title)
    for title in SECTIONS:
        if title not in seen:
            yield None, None, f"The section '## {title}' is missing; add it."


@rule("chapter")
def required_calls(chapter: Chapter) -> Iterator[Finding]:
    made, scales, ends = chapter.calls("Chapter"), chapter.calls("ch.scale"), chapter.calls("ch.finish")
    if [call.id for call in made] != [chapter.slug]:
        yield None, None, f'One ch = Chapter("{chapter.slug}"), named like the file, is required; found {_where(made)}.'
    if len(scales) != 1 or set(scales[0].keywords) != {"quick", "full"}:
        yield None, None, f"One ch.scale(quick=..., full=...) is required; found {_where(scales)}."
    if [call.cell for call in ends] != chapter.code[-1:]:
        yield None, None, f"The last code cell, and only it, must call ch.finish(); found {_where(ends)}."
    for section, name in (("Verdicts", "ch.verdicts"), ("Explore", "slider")):
        if not any(call.cell.section == section for call in chapter.calls(name)):
            yield None, None, f"The section {section!r} must call {name}(...); add it."
    for call in chapter.calls("ch.verdicts"):
        if call.cell.source.strip() != "ch.verdicts()":
            yield *call.at, "ch.verdicts() must stand alone in its cell, whose output is the table; split the cell."


def _where(calls: Iterable[Call]) -> str:
    return ", ".join(f"{call.name}({call.id or ''}) in cell {call.cell.number}" for call in calls) or "none"


@rule("claims")
def claims(chapter: Chapter) -> Iterator[Finding]:
    declared, measured = chapter.calls("ch.claim"), chapter.calls("ch.measure")
    known, late = [c.id for c in declared], SECTIONS[SECTIONS.index("Experiments") :]
    if not declared:
        yield None, None, 'A chapter needs at least one ch.claim("c1", "...", paper=..., criterion=...); found none.'
    for k, call in enumerate(declared):
        if call.id is None or call.id in known[:k]:
            yield *call.at, f"A claim needs a literal id of its own; got {call.id or 'an expression'!r}."
        if "claims" not in call.cell.tags:
            yield *call.at, f"ch.claim({call.id!r}) must stand in a cell tagged 'claims'; tag this cell."
        if call.cell.section in late or any(call.at > m.at for m in measured):
            yield *call.at, f"ch.claim({call.id!r}) must stand before '## Experiments' and any ch.measure; move it."
        for keyword in sorted({"criterion", "paper"} - set(call.keywords)):
            yield *call.at, f"ch.claim({call.id!r}) must be given {keyword}=...; add it before the experiment is run."
        if (n := [m.id for m in measured].count(call.id)) != 1:
            yield (
                *call.at,
                f"The claim {call.id!r} must be measured once, by ch.measure({call.id!r}, ...); got {n} calls.",
            )
    for call in measured:
        if call.id is None or call.id not in known:
            yield *call.at, f"ch.measure must name a declared claim literally, one of {known}; got {call.id}."


@rule("text-alternatives")
def figures(chapter: Chapter) -> Iterator[Finding]:
    names: list[str] = []
    for call in chapter.calls("figure", "reprolib.figure", "slider", "reprolib.slider"):
        for keyword in sorted({"name", "caption", "alt"} - set(call.keywords)):
            yield *call.at, f"{call.name}(...) must be given {keyword}=...; add it."
        alt, name = call.keywords.get("alt"), call.keywords.get("name")
        if alt is not None and len(alt.strip()) < MIN_ALT:
            yield *call.at, f"alt must say in {MIN_ALT} characters or more what the picture shows; got {alt!r}."
        if name in names:
            yield *call.at, f"The name {name!r} is taken by an earlier figure; choose another."
        names += [name] if name else []
    for call in chapter.calls("plt.show", "pyplot.show", "fig.show"):
        yield *call.at, "show() leaves a picture without text; use figure(fig, name, caption, alt)."
    for cell, output in _outputs(chapter):
        pictures = [k for k in output.get("data", {}) if k.startswith("image/")]
        if pictures and not output.get("metadata", {}).get("reprolib", {}).get("alt"):
            yield cell.number, None, f"An output {pictures[0]} lacks a text alternative; use figure(...)."


@rule("labels")
def labels_of_their_own(chapter: Chapter) -> Iterator[Finding]:
    """A label is known to the whole book, so it carries the chapter's name."""
    found = [(call.at, call.keywords.get("name")) for call in chapter.calls("figure")]
    for cell in chapter.prose:
        for label in re.finditer(r"^\(([^()\s]+)\)=$|\$\$[ \t]*\(([^()\s]+)\)", cell.source, re.M):
            found.append(((cell.number, cell.source.count("\n", 0, label.start()) + 1), label[1] or label[2]))
    for at, name in found:
        if name and chapter.slug not in name:
            yield *at, f"The label {name!r} must contain {chapter.slug!r}, for the book has one of each; rename it."


@rule("outputs")
def clean_outputs(chapter: Chapter) -> Iterator[Finding]:
    for cell, output in _outputs(chapter):
        if output.get("output_type") == "error":
            error = " ".join(f"{output.get('ename')}: {output.get('evalue')}".split())
            yield cell.number, None, f"A stored error, {error}; mend the cell and run again."
        if output.get("output_type") == "stream" and output.get("name") == "stderr":
            first = "".join(output.get("text", "")).strip().split("\n")[0][:80]
            yield cell.number, None, f"Text on stderr ({first!r}); mend the warning, show progress by ch.progress."


def _outputs(chapter: Chapter) -> list[tuple[Cell, dict[str, Any]]]:
    return [(cell, output) for cell in chapter.code for output in cell.outputs]


@rule("exercises")
def exercises(chapter: Chapter) -> Iterator[Finding]:
    wanted = [f"Exercise {k} ({kind})" for k, kind in enumerate(EXERCISES, 1)]
    cells = [c for c in chapter.cells if c.section == "Exercises"]
    if (got := [t for t in dict.fromkeys(c.subsection for c in cells) if t.startswith("Exercise ")]) != wanted:
        yield None, None, f"The exercises must be headed {', '.join(f'### {w}' for w in wanted)}; got {got}."
    for k, heading in enumerate(wanted, 1):
        if group := [c for c in cells if c.subsection == heading]:
            yield from _exercise(f"{chapter.slug}/{k}", k, group)


def _exercise(id_: str, k: int, cells: list[Cell]) -> Iterator[Finding]:
    start, order = cells[0].number, ["exercise", "self-check", "solution"]
    tagged = [(tag, c) for c in cells if c.kind == "code" for tag in order if tag in c.tags]
    if (got := [tag for tag, _ in groupby(tag for tag, _ in tagged)]) != order:
        yield start, None, f"Exercise {k} needs code cells tagged {' -> '.join(order)}; got {' -> '.join(got)}."
    if len(cells[0].prose().split()) < 5:
        yield start, None, f"Exercise {k} needs its question in the Markdown under its heading; write it."
    words = [c for c in cells if c.kind == "markdown" and ":class: dropdown" in c.source]
    if not words:
        yield (
            start,
            None,
            f"Exercise {k} needs its solution in words, in an admonition with ':class: dropdown'; write it.",
        )
    for cell in (c for c in words if "solution" not in c.tags):
        yield cell.number, None, "A folded solution must be tagged 'solution', else students' copies show it; tag it."
    for tag, name in (("self-check", "self_check"), ("self-check", "check"), ("solution", "check")):
        holders = [c for t, c in tagged if t == tag]
        if holders and not any(call.id == id_ for c in holders for call in c.calls(name)):
            yield holders[0].number, None, f'The {tag} cell must hold {name}("{id_}"...); add it.'
    for cell in (c for t, c in tagged if t == "solution" and c.calls("check") and c.outputs):
        if f"Exercise {k}: correct" not in cell.printed():
            message = f"The published solution must pass its check ('Exercise {k}: correct'); mend it and run again."
            yield cell.number, None, message


@rule("method")
def method_definitions(chapter: Chapter) -> Iterator[Finding]:
    cells = [c for c in chapter.code if "method" in c.tags]
    if not any(c.walk(ast.FunctionDef) for c in cells):
        yield None, None, "No cell tagged 'method' defines a function; tag the cells that implement the paper."
    classes = {node.name for c in cells for node in c.walk(ast.ClassDef)}
    for cell in cells:
        for node in cell.tree.body:
            if not _is_definition(node, classes):
                message = "A 'method' cell holds imports, constants and definitions only; move this line elsewhere."
                yield cell.number, node.lineno, message
        above = [c for c in chapter.cells[: cell.number] if c.kind == "markdown"]
        if any(isinstance(n, ast.FunctionDef | ast.ClassDef) for n in cell.tree.body) and not (
            above and above[-1].prose()
        ):
            yield cell.number, None, "The Markdown above a definition must give its equation or say what it computes."


def _is_definition(node: ast.stmt, classes: set[str]) -> bool:
    """An import, def, class, docstring, or a constant made by calls that cost nothing and read nothing."""
    if isinstance(node, ast.Assign | ast.AnnAssign):
        free = {"NamedTuple", "namedtuple", "TypeVar", "NewType", "frozenset", "float", "range"} | classes
        called = [ast.unparse(n.func) for n in ast.walk(node) if isinstance(n, ast.Call)]
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        named = all(isinstance(target, ast.Name) for target in targets)
        return named and all(name in free or name.startswith("math.") for name in called)
    if isinstance(node, ast.Expr):
        return text(node.value) is not None
    return isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef)


@rule("method")
def method_stands_alone(chapter: Chapter) -> Iterator[Finding]:
    """Names that the method cells use but no method cell binds: they would miss when tests import the cells."""
    cells = [c for c in chapter.code if "method" in c.tags and not c.error]
    try:
        module = symtable.symtable("\n\n".join(c.source for c in cells), "method", "exec")
    except SyntaxError as error:  # such as a __future__ import in a later cell
        yield None, None, f"The 'method' cells together are not a module ({error.msg}); mend them."
        return
    for name in sorted(used(module) - bound(module) - set(dir(builtins))):
        places = ((c.number, n.lineno) for c in cells for n in c.walk(ast.Name) if n.id == name)
        at = next(places, (cells[0].number, 1))
        yield *at, f"{name!r} is used in a 'method' cell but bound in none; import or define it there."


@rule("syntax")
def python(chapter: Chapter) -> Iterator[Finding]:
    for cell in chapter.code:
        if cell.error and not re.search(r"^\s*[%!?]", cell.source, re.M):
            yield cell.number, cell.error.lineno, f"The cell is not Python ({cell.error.msg}); mend it."


@rule("forbidden")
def forbidden_code(chapter: Chapter) -> Iterator[Finding]:
    allowed = f"a notebook imports {', '.join(sorted(PACKAGES))} and the standard library"
    for cell in chapter.code:
        for test in cell.walk(ast.If):
            if isinstance(test.test, ast.Constant) and not test.test.value:
                yield cell.number, test.lineno, "Code that never runs ('if False') is not kept; remove it."
        for line, module, name in _imports(cell):
            if module in NETWORK or name.startswith("fetch_"):
                yield (
                    cell.number,
                    line,
                    f"{module!r} ({name}) reaches outside the notebook; data come through reprolib.",
                )
            elif module not in PACKAGES | sys.stdlib_module_names:
                yield cell.number, line, f"{module!r}: {allowed}; use those."


def _imports(cell: Cell) -> Iterator[tuple[int, str, str]]:
    """(line, top package, imported name) of all imports."""
    for node in cell.walk(ast.Import):
        yield from ((node.lineno, alias.name.split(".")[0], alias.name) for alias in node.names)
    for line in cell.walk(ast.ImportFrom):
        yield from ((line.lineno, (line.module or ".").split(".")[0], alias.name) for alias in line.names)


POSIX = r"(?<![\w.:/~$\\}])/(?:home|Users|root|tmp|work|mnt|opt|usr|var|etc|private|content|data)/[\w.-]|\bfile://"
WINDOWS = r"\b[A-Za-z]:\\+(?:Users|Windows|Program|Temp|Documents|data|work)\b"
NO_ALT = r"!\[\s*\]\(|<img(?![^>]*\balt\s*=\s*[\"'][^\"'])"
NO_ALT_LINE = r"^[`:]{3,}\{(?:figure|image)\}(?:(?!\n:alt:[ \t]*\S)[\s\S])*?\n[`:]{3,}"
MAGIC = "magics, shell commands and installs do not run everywhere; remove this."
PATH = "an absolute path exists on one machine only; use a path relative to the book, or reprolib's data."
SETTING = "a cell must not ask where it runs; use ch.scale and ch.device."
MARK = "every output is shown and compared; remove the marker and print a stable text (≈)."
ALT = "a picture in Markdown needs a text alternative, ![what it shows](file) or a line ':alt: ...'."
PATTERNS = [  # rule, places that are searched ("unparsed": code that is not Python), regular expression, advice
    ("forbidden", "unparsed", r"^[ \t]*[%!?].*", MAGIC),
    ("forbidden", "code", r"REPRO_\w+|os\.environ|os\.getenv|\.is_(?:full|quick)\b|get_ipython", SETTING),
    ("paths", "code markdown output", f"{POSIX}|{WINDOWS}", PATH),
    ("paths", "code", r"\b[A-Z]:\\+\w", PATH),  # in prose this may be a formula
    ("ignore-markers", "code markdown tags", r"NBVAL_(?!CHECK)\w+|PYTEST_VALIDATE_IGNORE\w*", MARK),
    ("ignore-markers", "tags", r"^(?:nbval-(?!check).*|raises-exception|skip-execution)$", MARK),
    ("todo", "code markdown", r".*TODO.*", "left to write."),
    ("text-alternatives", "markdown", f"{NO_ALT}|{NO_ALT_LINE}", ALT),
]


def _search(name: str, places: str, pattern: str, advice: str) -> None:
    @rule(name)
    def search(chapter: Chapter) -> Iterator[Finding]:
        for cell in chapter.cells:
            texts = {cell.kind: cell.source, "output": cell.printed(), "tags": "\n".join(cell.tags)}
            texts |= {"unparsed": cell.source} if cell.error else {}
            for place in set(texts) & set(places.split()):
                for found in re.finditer(pattern, texts[place], re.M):
                    inside = place in {"output", "tags"}
                    line = None if inside else texts[place].count("\n", 0, found.start()) + 1
                    shown = found[0].strip().split("\n")[0][:80]
                    yield cell.number, line, f"{shown!r}{f' in the {place}' if inside else ''}: {advice}"


for row in PATTERNS:
    _search(*row)


@rule("length")
def cell_length(chapter: Chapter) -> Iterator[Finding]:
    for cell in chapter.code:
        if (lines := len(cell.source.splitlines())) > MAX_LINES:
            yield cell.number, None, f"At most {MAX_LINES} lines a code cell; got {lines}. Split it."


@rule("lesson")
def lesson_plan(chapter: Chapter) -> Iterator[Finding]:
    for problem in lesson.problems(chapter.notebook):
        yield None, None, problem


@rule("size")
def file_size(chapter: Chapter) -> Iterator[Finding]:
    if (size := chapter.path.stat().st_size) > MAX_BYTES:
        yield None, None, f"A notebook has at most {MAX_BYTES // 1000} kB; got {size / 1000:.0f}. Draw fewer frames."


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


@rule("bibliography")
def bibliography(chapter: Chapter) -> Iterator[Finding]:
    if chapter.bibliography is None:
        return
    cited: list[tuple[int | None, str]] = [(None, chapter.slug)]
    for cell in chapter.prose:
        groups = re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", cell.source)
        cited += [(cell.number, key.strip()) for group in groups for key in group.split(",")]
    for number, key in cited:
        if key not in chapter.bibliography:
            yield number, None, f"book/references.bib needs an entry with the key {key!r}; add it."


@rule("papers")
def entry_in_papers(chapter: Chapter) -> Iterator[Finding]:
    if chapter.papers is None:
        return
    entry = chapter.papers.get(chapter.slug)
    if entry is None:
        yield None, None, f"book/papers.yml needs an entry with slug {chapter.slug!r}; add it."
    elif missing := missing_fields(entry):
        yield None, None, f"The entry of {chapter.slug!r} in book/papers.yml lacks {', '.join(missing)}; add it."
    elif entry["part"] != (folder := chapter.path.parent.name):
        yield None, None, f"The chapter lies in {folder!r} but its part is {entry['part']!r}; move it."
