"""Course material: what each copy of a chapter holds, and that a student copy takes the published solutions."""

from __future__ import annotations

import contextlib
import io
import json
import re

import pytest
from toybook import PLAN

from repro import cli, course, coursecli, handout, lesson, slides
from reprolib import exercises, notebook, project
from reprolib.notebook import NotebookError
from reprolib.project import ReproError

CHAPTERS = project.chapters()


def cell(kind: str, text: str, *tags: str, **more: object) -> dict:
    outputs = {"outputs": more.get("outputs", []), "execution_count": 3} if kind == "code" else {}
    return {"cell_type": kind, "id": "x", "metadata": {"tags": list(tags)}, "source": text, **outputs}


def printed(text: str) -> dict:
    return {"output_type": "display_data", "metadata": {}, "data": {"text/markdown": text}}


CLAIMS = "|  | claim | in the paper | reproduced if |\n| :-- | :-- | :-- | :-- |\n"
CLAIMS += "| **c1** | It is so. | abstract | above 0 |"
IMPORTS = "from reprolib.exercises import check, require, self_check"
CHECK = (
    '@self_check("toy/1")\ndef _(answer):\n    require(answer == TWO, "Add one and one.")\n\n\ncheck("toy/1", answer_1)'
)


def toy(*more: dict) -> dict:
    """A chapter with one exercise."""
    cells = [
        cell("markdown", "# Toy\n\n[Bell (2020), *On toys*](https://arxiv.org/abs/1), V\n\n**Cost:** 1 s."),
        cell("markdown", "## In one minute\n\nA thing. See the [verdicts](#toy-verdicts)."),
        cell("code", f"{IMPORTS}\nTWO = 2\nch.claims_table()", outputs=[printed(CLAIMS)]),
        cell("markdown", "## The idea\n\nTwo follows one:\n\n$$1+1=2.$$ (eq-toy)"),
        cell(
            "markdown",
            "## Notation\n\n| paper | code |\n|---|---|\n| $n$ | `n` |\n\n## The method\n\n{eq}`eq-toy` again.",
        ),
        cell("code", "def method(n):\n    return n + 1", "method"),
        cell("markdown", "## Exercises\n\n### Exercise 1 (pencil)\n\nHow much is one and one?"),
        cell("code", "answer_1 = None  # a number", "exercise"),
        cell("code", CHECK, "self-check"),
        cell("markdown", "```{admonition} Solution 1\n:class: dropdown\n\nIt is two.\n```", "solution"),
        cell("code", 'solution_1 = method(1)\ncheck("toy/1", solution_1)', "solution", "hide-input"),
        *more,
    ]
    return {"cells": cells, "metadata": {"lesson": dict(PLAN)}, "nbformat": 4, "nbformat_minor": 5}


def run(nb: dict) -> str:
    """What the code cells of a notebook print, one namespace for all, without the call that only Jupyter shows."""
    out, names = io.StringIO(), {}
    with contextlib.redirect_stdout(out):
        for found in nb["cells"]:
            if found["cell_type"] == "code":
                exec(found["source"].replace("ch.claims_table()", ""), names)
    return out.getvalue()


def test_a_student_copy_has_no_solution_and_its_check_says_what_is_missing():
    made = course.student(toy(), "toy")
    text = json.dumps(made)
    assert "It is two" not in text and "solution_1" not in text and "lesson" not in made["metadata"]
    assert run(made) == "Exercise 1: not answered yet. Put your answer in place of None and run the cell again.\n"
    assert "Student copy" in made["cells"][1]["source"]


def test_a_student_copy_with_the_solutions_filled_in_passes_and_with_a_wrong_answer_is_told_why():
    made = course.student(toy(), "toy")
    assert run(course.filled(toy(), made)) == "Exercise 1: correct.\n"
    wrong = json.loads(json.dumps(made).replace("answer_1 = None", "answer_1 = 3"))
    assert run(wrong) == "Exercise 1: not yet. Add one and one.\n"


def test_the_chapter_itself_is_left_as_it_was():
    nb = toy()
    for make in (course.student, course.teacher, course.graded, slides.as_html, handout.as_html):
        make(nb, "toy")
    assert nb == toy()


def test_a_cell_that_needs_a_name_of_a_solution_is_refused():
    with pytest.raises(NotebookError, match="toy: a cell outside the solutions needs solution_1"):
        course.student(toy(cell("code", "print(solution_1)")), "toy")
    course.student(toy(cell("code", "def f(solution_1):\n    return solution_1")), "toy")  # a name of its own


def test_a_teacher_copy_has_the_plan_the_minutes_and_open_solutions():
    made = course.teacher(toy(), "toy")
    text = "\n".join(c["source"] for c in made["cells"])
    assert "## The idea\n\n*Lesson plan: 20 minutes.*" in text
    assert ":class: dropdown" not in text and "It is two." in text
    assert all("hide-input" not in c["metadata"]["tags"] for c in made["cells"] if "solution_1" in c["source"])
    for words in (*PLAN["goals"], *PLAN["questions"], PLAN["demonstration"], PLAN["correction"], "| The method | 30 |"):
        assert words in made["cells"][1]["source"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"session": 45}, r"must be 50 or 90 minutes; got 45"),
        ({"minutes": {"The idea": 20}}, r"sum to 20, and the session has 50"),
        ({"minutes": {"The ideas": 50}}, r"'The ideas', which is no section; sections are In one minute, The idea"),
        ({"minutes": {"The idea": 50.0}}, r"whole minutes"),
        ({"goals": ["only one goal"]}, r"lesson.goals must be 2 to 5 texts"),
        ({"questions": ["Why?", "Why not, in your words?"]}, r"8 characters or more"),
        ({"demonstration": ""}, r"lesson.demonstration must be a text"),
        ({"notes": "x"}, r"has the unknown notes"),
        ({"session": None}, r"must be 50 or 90"),
    ],
)
def test_a_broken_lesson_plan_is_named(change, message):
    nb = toy()
    nb["metadata"]["lesson"] |= change
    with pytest.raises(NotebookError, match=message):
        course.teacher(nb, "toy")


def test_a_missing_lesson_plan_is_named():
    nb = toy()
    del nb["metadata"]["lesson"]["goals"]
    assert lesson.problems(nb) == ["The lesson plan lacks goals."]
    del nb["metadata"]["lesson"]
    assert "has no 'lesson'" in lesson.problems(nb)[0]
    assert lesson.problems(toy()) == []


def test_an_assignment_has_a_solution_region_and_a_locked_test_that_fails_on_blanks():
    made = course.graded(toy(), "toy")
    graded = {c["metadata"]["nbgrader"]["grade_id"]: c for c in made["cells"] if "nbgrader" in c["metadata"]}
    answer, test = graded["toy-answer-1"], graded["toy-test-1"]
    assert "### BEGIN SOLUTION\nsolution_1 = method(1)\nanswer_1 = solution_1\n### END SOLUTION" in answer["source"]
    assert answer["metadata"]["nbgrader"]["solution"] and not answer["metadata"]["nbgrader"]["grade"]
    assert test["metadata"]["nbgrader"]["locked"] and test["metadata"]["nbgrader"]["points"] == 2
    assert run(made) == ""
    answer["source"] = re.sub(r"### BEGIN SOLUTION.*### END SOLUTION", "", answer["source"], flags=re.S)
    with pytest.raises(AssertionError, match="not answered yet"):
        run(made)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_nbgrader_accepts_an_assignment_and_makes_a_students_version_that_fails_on_blanks(tmp_path):
    steps = pytest.importorskip("nbgrader.preprocessors", reason="nbgrader comes with the extra 'peers'")
    import nbformat
    from nbgrader.validator import Validator

    nb = course.graded(toy(), "toy")
    nb["cells"] = [
        c | {"source": c["source"].replace("ch.claims_table()", ""), "id": f"c{k}"} for k, c in enumerate(nb["cells"])
    ]
    nb["metadata"]["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    source = nbformat.from_dict(nb)
    nbformat.validate(source)
    nbformat.write(source, tmp_path / "source.ipynb")
    assert "failed" not in Validator().validate(str(tmp_path / "source.ipynb"))
    for step in (steps.CheckCellMetadata, steps.ClearSolutions, steps.LockCells, steps.ComputeChecksums):
        source, _ = step().preprocess(source, {})
    assert "solution_1" not in str(source) and "YOUR CODE HERE" in str(source)
    nbformat.write(source, tmp_path / "release.ipynb")
    assert len(Validator().validate(str(tmp_path / "release.ipynb"))["failed"]) >= 1


def test_slides_hold_the_idea_and_a_table_but_no_solution_and_fit_their_page():
    deck = slides.deck(toy())
    text = "\n".join(c["source"] for c in deck["cells"])
    assert "Two follows one:\n\n$$1+1=2.$$" in text  # without the label that only the site understands
    assert "It is two" not in text and "{eq}" not in text and "#toy-verdicts" not in text
    assert "## Notation" not in text and "def method(n)" in text and "It is so." in text
    kinds = [c["metadata"]["slideshow"]["slide_type"] for c in deck["cells"]]
    assert kinds[0] == "slide" and kinds.count("slide") == 5  # title, minute, idea, method, exercise
    html = slides.as_html(toy(), "toy")
    assert not re.search(r"""(?:src|href)=["']https?://(?!arxiv)""", html)


def test_long_sections_are_cut_at_paragraphs_and_tables_at_rows():
    nb = toy()
    nb["cells"][3]["source"] = "## The idea\n\n" + "\n\n".join(["word " * 100] * 4)
    table = "| a |\n|---|\n" + "\n".join(f"| {k} |" for k in range(20))
    nb["cells"][5] = cell("code", "1", outputs=[printed(table)])
    texts = [c["source"] for c in slides.deck(nb)["cells"]]
    assert sum(t.startswith("## The idea") for t in texts) == 2
    assert all(t.count("\n| ") <= 2 * slides.ROWS for t in texts)
    assert all(sum(f"| {k} |" in t for t in texts) == 1 for k in range(20))


def test_the_handout_holds_idea_notation_and_claims_with_room_for_a_guess():
    html = handout.as_html(toy(), "toy")
    for words in ("On toys", "Two follows one", "<code>n</code>", "It is so.", "above 0", "☐"):
        assert words in html
    assert "reproduced" not in html
    nb = toy()
    nb["cells"][2]["outputs"] = []
    with pytest.raises(NotebookError, match="toy: no table of claims is stored; run the chapter: repro run toy"):
        handout.as_html(nb, "toy")


def test_nothing_is_written_into_a_folder_that_holds_something(tmp_path):
    (tmp_path / "mine.txt").write_text("a term's work")
    with pytest.raises(ReproError, match="not an empty folder; nothing was written"):
        coursecli.build(CHAPTERS[:1], tmp_path, ["student"])
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--chapters", "fisher-mergin"], "Did you mean fisher-merging"),
        (["--part", "fishers"], "Did you mean fisher"),
        ([], "Name chapters with --chapters"),
        (["--chapters", "fisher-merging", "--part", "fisher"], "Name chapters with --chapters"),
    ],
)
def test_an_unknown_chapter_or_part_is_named(tmp_path, capsys, argv, message):
    assert cli.main(["course", "build", *argv, "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("chapter", CHAPTERS, ids=[c.slug for c in CHAPTERS])
def test_every_chapter_can_be_taught(chapter):
    """Copies can be made; no copy for students holds words or code of a solution; every exercise can be filled in."""
    nb = notebook.read(chapter.path)
    made = course.student(nb, chapter.slug)
    left = json.dumps(made, ensure_ascii=False)
    assert "{admonition} Solution" not in left
    assert len(course.solutions(nb)) == 3
    filled = json.dumps(course.filled(nb, made), ensure_ascii=False)
    assert all(json.dumps(right.rest, ensure_ascii=False)[1:-1] in filled for right in course.solutions(nb).values())
    graded = [c for c in course.graded(nb, chapter.slug)["cells"] if c["metadata"].get("nbgrader", {}).get("grade")]
    assert [c["metadata"]["nbgrader"]["points"] for c in graded] == [2, 4, 4]
    assert len(slides.deck(nb)["cells"]) > 15
    assert handout.as_html(nb, chapter.slug).count("☐") >= 9


@pytest.mark.filterwarnings("default")  # a chapter runs as it does for its readers
def test_a_student_copy_of_a_chapter_runs_and_takes_its_solutions(tmp_path, monkeypatch):
    """The whole round trip on one real chapter: blanks are met with helpful words, the solutions with approval."""
    monkeypatch.setenv("REPRO_SCALE", "quick")
    monkeypatch.setenv("MPLBACKEND", "agg")
    chapter = project.find("log-bessel")
    nb = notebook.read(chapter.path)
    made = course.student(nb, chapter.slug)
    out, names, path = io.StringIO(), {"__name__": "__main__"}, tmp_path / "log-bessel.ipynb"
    known = course.solutions(nb)
    with contextlib.redirect_stdout(out):
        for number, text, tags in notebook.code_cells(made):
            notebook.execute(text, names, path, number)
            if "self-check" in tags:
                for exercise, _, _ in course.checks({"cell_type": "code", "source": text}):
                    right = known[exercise]
                    notebook.execute(f"{right.rest}\nanswer = {right.answer}", names, path, number)
                    print(exercises.feedback(exercise, names["answer"]))
    said = re.findall(r"^Exercise \d: .*$", out.getvalue(), re.M)
    assert [line.partition(".")[0] for line in said] == [
        f"Exercise {k}: {words}" for k in (1, 2, 3) for words in ("not answered yet", "correct")
    ]
