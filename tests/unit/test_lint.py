"""The contract of a chapter: a good notebook passes, and every rule is seen to fail on a notebook that breaks it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from toybook import PLAN

from repro import lint
from reprolib import project

Cells = list[dict]
PAPER = {"slug": "good-paper", "title": "Good", "authors": ["A. Bell"], "venue": "V", "year": 2020}
PAPER |= {"arxiv": "2001.00001", "code": None, "part": "fisher", "family": "tests", "data": ["generated"]}


def markdown(source: str, *tags: str) -> dict:
    return {"cell_type": "markdown", "id": "x", "metadata": {"tags": list(tags)}, "source": source}


def code(source: str, *tags: str, output: str = "") -> dict:
    outputs = [{"output_type": "stream", "name": "stdout", "text": output}] if output else []
    cell = {"cell_type": "code", "id": "x", "metadata": {"tags": list(tags)}, "source": source}
    return {**cell, "outputs": outputs, "execution_count": None}


def exercise(k: int, kind: str) -> Cells:
    id_ = f"good-paper/{k}"
    register = f'@self_check("{id_}")\ndef check_{k}(answer):\n    require(answer == 1, "no")\n\n\n'
    return [
        markdown(f"### Exercise {k} ({kind})\n\nWhich number comes after nought, and why?"),
        code(f"answer_{k} = None", "exercise"),
        code(f'{register}check("{id_}", answer_{k})', "self-check", output=f"Exercise {k}: not answered yet.\n"),
        markdown(f"```{{admonition}} Solution {k}\n:class: dropdown\n\nOne.\n```", "solution"),
        code(f'solution_{k} = 1\ncheck("{id_}", solution_{k})', "solution", output=f"Exercise {k}: correct.\n"),
    ]


def good() -> Cells:
    picture = 'figure(fig, name="good-paper-a", caption="Twice.", alt="A line that rises from 0 to 2, straight.")'
    frames = 'slider(frames, labels, name="ρ", caption="Twice.", alt="A line that gets steeper with ρ.")'
    cells = [
        markdown("# Good\n\nBell (2020). **Cost:** quick 1 s, full 2 s."),
        markdown("## In one minute\n\nIt doubles {cite:t}`good-paper`."),
        code('ch = Chapter("good-paper")\nsizes = ch.scale(quick=1, full=2)'),
        markdown("## Claims"),
        code('ch.claim("c1", "It doubles.", paper="Table 1", criterion=above(0))', "claims"),
        markdown("## The idea\n\nSee ![a line that doubles](line.png)."),
        markdown("## Notation"),
        markdown("## The method\n\n$$y = 2x$$ (eq-good-paper)"),
        code(
            '"""Doubling."""\n\nimport math\n\nFACTOR = math.sqrt(4)\n\n\ndef double(x):\n    return FACTOR * x',
            "method",
        ),
        markdown("## Check"),
        code("assert double(2) == 4"),
        markdown("## Experiments"),
        code('r = ch.measure("c1", [1.0, 2.0])'),
        code(picture),
        markdown("## Explore"),
        code(frames),
        markdown("## Verdicts"),
        code("ch.verdicts()"),
        markdown("## Exercises"),
        *(cell for k, kind in enumerate(("pencil", "code", "open"), 1) for cell in exercise(k, kind)),
        markdown("## References"),
        code("ch.finish()"),
    ]
    return number(cells)


def number(cells: Cells) -> Cells:
    for count, cell in enumerate((c for c in cells if c["cell_type"] == "code"), 1):
        cell["execution_count"] = count
    return cells


def write(folder: Path, cells: Cells, **metadata: object) -> Path:
    path = folder / "chapters" / "fisher" / "good-paper.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"lesson": PLAN} | metadata
    path.write_text(json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}, indent=1))
    return path


def problems(path: Path, keys: tuple[str, ...] = ("good-paper",)) -> list[lint.Problem]:
    return lint.lint(path, set(keys), {"good-paper": PAPER})


def at(cells: Cells, text: str) -> int:
    """Index of the one cell whose source holds `text`."""
    (index,) = (i for i, c in enumerate(cells) if text in c["source"])
    return index


def replaced(old: str, new: str) -> Callable[[Cells], Cells]:
    def change(cells: Cells) -> Cells:
        assert any(old in c["source"] for c in cells)
        return [{**c, "source": c["source"].replace(old, new)} for c in cells]

    return change


def without(text: str) -> Callable[[Cells], Cells]:
    def change(cells: Cells) -> Cells:
        del cells[at(cells, text)]
        return number(cells)

    return change


def added(cell: dict, before: str) -> Callable[[Cells], Cells]:
    def change(cells: Cells) -> Cells:
        cells.insert(at(cells, before), cell)
        return number(cells)

    return change


def tagged(text: str, *tags: str) -> Callable[[Cells], Cells]:
    def change(cells: Cells) -> Cells:
        cells[at(cells, text)]["metadata"] = {"tags": list(tags)}
        return cells

    return change


def moved(text: str, before: str) -> Callable[[Cells], Cells]:
    def change(cells: Cells) -> Cells:
        cell = cells.pop(at(cells, text))
        cells.insert(at(cells, before), cell)
        return number(cells)

    return change


def shows(output: dict) -> Callable[[Cells], Cells]:
    def change(cells: Cells) -> Cells:
        cells[at(cells, "figure(")]["outputs"] = [output]
        return cells

    return change


def prints(text: str, old: str) -> Callable[[Cells], Cells]:
    def change(cells: Cells) -> Cells:
        cells[at(cells, old)]["outputs"] = code("", output=text)["outputs"]
        return cells

    return change


def executed_as(count: int | None) -> Callable[[Cells], Cells]:
    def change(cells: Cells) -> Cells:
        cells[at(cells, "ch.verdicts()")]["execution_count"] = count
        return cells

    return change


CHAPTER = 'Chapter("good-paper")'
SECOND_CLAIM = 'ch.claim("c2", "It halves.", paper="Table 2", criterion=above(0))'
PICTURE = {"output_type": "display_data", "data": {"image/png": "aGk="}, "metadata": {}}
STDERR = {"output_type": "stream", "name": "stderr", "text": "UserWarning: beware\n"}
ERROR = {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": ["ValueError: no"]}
METHOD = "    return FACTOR * x"

BREACHES = [
    # rule, words of the message, how the good notebook is broken
    ("sections", "'# Title'", replaced("# Good\n", "Good\n")),
    ("sections", "what a run costs", replaced("**Cost:**", "Cost")),
    ("sections", "one level-1 heading", replaced("## Notation", "# Notation")),
    ("sections", "'## Notation' is missing", without("## Notation")),
    ("sections", "must stand before", moved("## Notation", "## Verdicts")),
    ("sections", "is not one of", replaced("## Notation", "## Notation\n\n## More")),
    ("sections", "stands twice", added(markdown("## Check"), "## Explore")),
    ("chapter", "named like the file", replaced(CHAPTER, 'Chapter("other")')),
    ("chapter", "found none", replaced(CHAPTER, "None")),
    ("chapter", "last code cell", replaced("ch.finish()", "pass")),
    ("chapter", "last code cell", moved("ch.finish()", "## Verdicts")),
    ("chapter", "ch.scale", replaced("ch.scale(quick=1, full=2)", "1")),
    ("chapter", "ch.scale", replaced("ch.scale(quick=1, full=2)", "ch.scale(quick=1)")),
    ("chapter", "ch.verdicts", replaced("ch.verdicts()", "pass")),
    ("chapter", "slider", replaced("slider(", "print(")),
    ("chapter", "stand alone", replaced("ch.verdicts()", "ch.verdicts()\nx = 1")),
    ("claims", "at least one", without("ch.claim(")),
    ("claims", "tagged 'claims'", tagged("ch.claim(")),
    ("claims", "before '## Experiments'", moved("ch.claim(", "ch.measure(")),
    ("claims", "any ch.measure", moved("ch.measure(", "## Claims")),
    ("claims", "criterion=", replaced(", criterion=above(0)", "")),
    ("claims", "paper=", replaced(', paper="Table 1"', "")),
    ("claims", "literal id", replaced('ch.claim("c1"', "ch.claim(name")),
    ("claims", "literal id", added(code(SECOND_CLAIM.replace("c2", "c1"), "claims"), "## The idea")),
    ("claims", "'c2' must be measured once", added(code(SECOND_CLAIM, "claims"), "## The idea")),
    ("claims", "got c9", added(code('ch.measure("c9", [1])'), "## Explore")),
    ("claims", "got 2 calls", added(code('ch.measure("c1", [1])'), "## Explore")),
    ("claims", "literally", added(code("ch.measure(name, [1])"), "## Explore")),
    ("text-alternatives", "alt=", replaced(', alt="A line that rises from 0 to 2, straight."', "")),
    ("text-alternatives", "caption=", replaced('name="ρ", caption="Twice."', 'name="ρ"')),
    ("text-alternatives", "name=", replaced('name="good-paper-a", ', "")),
    ("text-alternatives", "20 characters", replaced("A line that rises from 0 to 2, straight.", "A line.")),
    ("labels", "'fig-a' must contain 'good-paper'", replaced("good-paper-a", "fig-a")),
    ("labels", "'eq-double' must contain", replaced("eq-good-paper", "eq-double")),
    ("labels", "'verdicts' must contain", replaced("## The method", "(verdicts)=\n## The method")),
    ("text-alternatives", "is taken", replaced('name="ρ"', 'name="good-paper-a"')),
    ("text-alternatives", "show()", replaced("ch.verdicts()", "ch.verdicts()\nplt.show()")),
    ("text-alternatives", "image/png", shows(PICTURE)),
    ("text-alternatives", "picture in Markdown", replaced("![a line that doubles]", "![]")),
    ("text-alternatives", "picture in Markdown", replaced("![a line that doubles](line.png)", "<img src='line.png'>")),
    ("text-alternatives", "line ':alt:", replaced("![a line", "\n```{figure} a.png\nCaption.\n```\n![a line")),
    ("exercises", "must be headed", replaced("### Exercise 3 (open)", "### Another")),
    ("exercises", "must be headed", replaced("### Exercise 1 (pencil)", "### Exercise 1 (paper)")),
    ("exercises", "got self-check -> solution", without("answer_1 = None")),
    ("exercises", "got exercise -> solution", without('@self_check("good-paper/2")')),
    ("exercises", "got exercise -> self-check.", without("solution_3 = 1")),
    ("exercises", "got solution -> exercise", moved("solution_1 = 1", "answer_1 = None")),
    ("exercises", 'self_check("good-paper/1"', replaced('@self_check("good-paper/1")', '@self_check("good-paper/2")')),
    ("exercises", "self-check cell must hold check", replaced('check("good-paper/1", answer_1)', "pass")),
    ("exercises", "solution cell must hold check", replaced('check("good-paper/1", solution_1)', "pass")),
    ("exercises", "pass its check", prints("Exercise 1: not yet. no\n", "solution_1 = 1")),
    ("exercises", "solution in words", replaced(":class: dropdown", "")),
    ("exercises", "must be tagged 'solution'", tagged("{admonition} Solution 2")),
    ("exercises", "needs its question", replaced("Which number comes after nought, and why?", "Count.")),
    ("method", "No cell tagged", tagged(METHOD)),
    ("method", "definitions only", replaced(METHOD, METHOD + "\n\n\nprint(double(1))")),
    ("method", "definitions only", replaced(METHOD, METHOD + "\n\n\nRESULT = double(1)")),
    ("method", "definitions only", replaced(METHOD, METHOD + "\n\n\nfor i in range(3):\n    pass")),
    ("method", "equation", replaced("\n\n$$y = 2x$$ (eq-good-paper)", "")),
    ("method", "'math' is used", replaced("import math\n\n", "")),
    ("method", "'np' is used", replaced(METHOD, "    return np.asarray(FACTOR * x)")),
    ("syntax", "not Python", replaced("ch.verdicts()", "ch.verdicts(")),
    ("forbidden", "!pip", replaced("ch.verdicts()", "!pip install x\nch.verdicts()")),
    ("forbidden", "%pip", replaced("ch.verdicts()", "%pip install x\nch.verdicts()")),
    ("forbidden", "%%time", replaced("ch.verdicts()", "%%time\nch.verdicts()")),
    ("forbidden", "if False", added(code("if False:\n    ch = 1"), "## Claims")),
    ("forbidden", "'IPython'", added(code("from IPython.display import display"), "## Claims")),
    ("forbidden", "'ipywidgets'", added(code("import ipywidgets as w"), "## Claims")),
    ("forbidden", "'urllib'", added(code("import urllib.request"), "## Claims")),
    ("forbidden", "(fetch_openml) reaches", added(code("from sklearn.datasets import fetch_openml"), "## Claims")),
    ("forbidden", "os.environ", added(code('import os\n\nos.environ["HOME"]'), "## Claims")),
    ("forbidden", "REPRO_SCALE", added(code('scale = env("REPRO_SCALE")'), "## Claims")),
    ("forbidden", "is_full", added(code("n = 3 if ch.is_full else 2"), "## Claims")),
    ("paths", "/home/x", added(code('open("/home/xena/a.txt")'), "## Claims")),
    ("paths", "/Users/x", replaced("## Check", "## Check\n\nThe file /Users/xena/a.txt.")),
    ("paths", "C:", added(code(r'open("C:\\models\\a.txt")'), "## Claims")),
    ("paths", "in the output", prints("saved to /tmp/a.txt\n", "ch.verdicts()")),
    ("ignore-markers", "nbval-ignore-output", tagged("ch.verdicts()", "nbval-ignore-output")),
    ("ignore-markers", "nbval-skip", tagged("ch.verdicts()", "nbval-skip")),
    ("ignore-markers", "raises-exception", tagged("ch.verdicts()", "raises-exception")),
    ("ignore-markers", "NBVAL_IGNORE_OUTPUT", replaced("ch.verdicts()", "# NBVAL_IGNORE_OUTPUT\nch.verdicts()")),
    ("ignore-markers", "NBVAL_SKIP", replaced("ch.verdicts()", "# NBVAL_SKIP\nch.verdicts()")),
    ("todo", "left to write", replaced("It doubles {cite", "TODO {cite")),
    ("length", "At most 40 lines a code cell; got 41", replaced("ch.verdicts()", "ch.verdicts()" + "\nx = 1" * 40)),
    ("executed", "was not executed", executed_as(None)),
    ("executed", "as number 99", executed_as(99)),
    ("executed", "empty code cell", added(code(""), "## Claims")),
    ("outputs", "ValueError: no", shows(ERROR)),
    ("outputs", "stderr", shows(STDERR)),
    ("bibliography", "'missing2020'", replaced("{cite:t}`good-paper`", "{cite:p}`good-paper, missing2020`")),
]


def test_a_good_notebook_has_no_problem(tmp_path):
    assert problems(write(tmp_path, good())) == []


@pytest.mark.parametrize(("rule", "words", "broken"), BREACHES, ids=[f"{r}: {w}" for r, w, _ in BREACHES])
def test_a_breach_is_found_under_its_rule(tmp_path, rule, words, broken):
    cells = broken(good())
    found = problems(write(tmp_path, cells))
    assert any(p.rule == rule and words in p.message for p in found), [str(p) for p in found]
    assert all(p.cell is None or 1 <= p.cell <= len(cells) for p in found)
    assert all("\n" not in str(p) for p in found)


def test_every_rule_is_seen_to_fail():
    elsewhere = {"size", "papers", "lesson"}  # tested below
    assert {rule for rule, _, _ in BREACHES} | elsewhere == {name for name, _ in lint.RULES}


def test_a_problem_names_file_cell_line_and_rule(tmp_path):
    path = write(tmp_path, added(code("x = 1\nimport urllib"), "## Claims")(good()))
    (problem,) = problems(path)
    assert (problem.cell, problem.line) == (4, 2)
    assert str(problem).startswith(f"{path}, cell 4, line 2: ") and str(problem).endswith("[forbidden]")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not a readable notebook: line 1"),
        ("[]", "has no cells"),
        ('{"nbformat": 3, "cells": []}', "nbformat 4"),
        ('{"nbformat": 4, "cells": [{}]}', "cell_type"),
        ("{\n<<<<<<< ours\n}", "merge conflict marks"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_a_file_that_is_no_notebook_is_one_clear_problem(tmp_path, text, words):
    path = write(tmp_path, good())
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    (problem,) = problems(path)
    assert problem.rule == "readable" and words in problem.message


def test_a_missing_file_is_one_clear_problem(tmp_path):
    (problem,) = problems(tmp_path / "none.ipynb")
    assert problem.rule == "readable"


def test_a_heavy_file_is_a_problem(tmp_path):
    (problem,) = problems(write(tmp_path, good(), weight="x" * lint.MAX_BYTES))
    assert problem.rule == "size"


def test_a_chapter_needs_a_lesson_plan_and_a_page_needs_none(tmp_path):
    (problem,) = problems(write(tmp_path, good(), lesson=None))
    assert problem.rule == "lesson" and "a plan holds session" in problem.message
    (problem,) = problems(write(tmp_path, good(), lesson=PLAN | {"minutes": {"The idea": 20}}))
    assert problem.rule == "lesson" and "sum to 20" in problem.message
    assert lint.lint(write(tmp_path, good(), lesson=None), page=True) == []


def test_a_chapter_needs_its_bibliography_entry(tmp_path):
    path = write(tmp_path, good())
    assert {p.rule for p in problems(path, keys=())} == {"bibliography"}
    assert lint.lint(path) == []  # without a bibliography and papers the two rules are left out


@pytest.mark.parametrize(
    ("papers", "words"),
    [
        ({}, "needs an entry"),
        ({"good-paper": {**PAPER, "part": "data"}}, "its part is 'data'"),
        ({"good-paper": {k: v for k, v in PAPER.items() if k != "venue"}}, "lacks venue"),
    ],
)
def test_a_chapter_needs_its_entry_in_papers(tmp_path, papers, words):
    (problem,) = lint.lint(write(tmp_path, good()), None, papers)
    assert problem.rule == "papers" and words in problem.message


@pytest.mark.parametrize(
    "source",
    [
        r"$C:\Theta \to \mathbb{R}$ and/or a https://example.org/home/page, see chapters/data/x",
        "a ratio n/var/m and `results/quick/x.json`",
    ],
)
def test_formulas_and_links_are_not_paths(tmp_path, source):
    assert problems(write(tmp_path, added(markdown(source), "## Notation")(good()))) == []


def test_headings_inside_fenced_code_are_not_sections(tmp_path):
    cell = markdown("~~~python\n## not a section\n~~~\n\n````\n```\n## nor this\n```\n````")
    assert problems(write(tmp_path, added(cell, "## Notation")(good()))) == []


def test_constants_and_records_of_the_method_cells_are_definitions(tmp_path):
    record = "from typing import NamedTuple\n\n\nclass Sizes(NamedTuple):\n    n: int\n"
    cell = code(record + "\n\nSMALL = Sizes(n=2)\nBIG: int = 2**9\n", "method")
    assert problems(write(tmp_path, added(cell, "## Check")(good()))) == []


def test_lint_all_reads_the_lists_of_the_book(tmp_path):
    write(tmp_path, good())
    book = tmp_path / "book"
    book.mkdir()
    (book / "references.bib").write_text("@article{good-paper,\n  title = {Good},\n}\n")
    (book / "papers.yml").write_text(json.dumps({"parts": [], "papers": [PAPER, {**PAPER, "slug": "unborn"}]}))
    (problem,) = lint.lint_all(tmp_path)
    assert (problem.path, problem.rule) == (book / "papers.yml", "papers")
    assert "'unborn' has no chapter" in problem.message


def test_a_problem_is_printed_relative_to_the_working_directory(tmp_path, monkeypatch):
    path = write(tmp_path, executed_as(None)(good()))
    monkeypatch.chdir(tmp_path)
    (problem,) = problems(path)
    assert str(problem).startswith("chapters/fisher/good-paper.ipynb, cell ")


def test_the_chapters_of_this_book_keep_the_contract():
    assert [str(p) for p in lint.lint_all(project.root())] == []
