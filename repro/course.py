"""Course material from the one source: copies of a chapter for students, for the teacher and for nbgrader.

All copies hold the chapter's own cells; what differs is which are left out, opened or marked. `repro.handout` makes the
slides and the one-page handout.
"""

from __future__ import annotations

import ast
import copy
import re
import symtable
from typing import Any, NamedTuple

from repro import lesson
from repro.chapterfile import bound, used
from reprolib.notebook import Notebook, NotebookError, source, tags

Cell = dict[str, Any]
DROPDOWN = re.compile(r"^:class:\s*dropdown\s*\n", re.M)
POINTS = {"pencil": 2, "code": 4, "open": 4}


def student(nb: Notebook, name: str) -> Notebook:
    """A copy without solutions: answer cells are empty, self-checks stay.

    Args:
        nb: The chapter.
        name: Its slug, for messages.

    Raises:
        NotebookError: A cell that stays needs a name that only a solution defines.
    """
    made = _copy(nb)
    kept = [cell for cell in made["cells"] if "solution" not in tags(cell)]
    lost = {n for cell in made["cells"] if "solution" in tags(cell) for n in bound(_scope(cell))}
    lost -= {n for cell in kept for n in bound(_scope(cell))}
    for cell in kept:
        if needed := sorted(lost & used(_scope(cell))):
            raise NotebookError(
                f"{name}: a cell outside the solutions needs {needed[0]}, which only a solution defines."
            )
        if {"exercise", "self-check"} & set(tags(cell)) and cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    note = f"*Student copy of the chapter {name}.* Put your answers in place of `None` and run the cell below each."
    made["cells"] = [kept[0], _markdown(note, "student-note"), *kept[1:]]
    made["metadata"].pop("lesson", None)
    return made


class Checked(NamedTuple):
    """A call of `check` in a cell: the exercise, what is handed in, and the cell's code without the call."""

    exercise: str
    answer: str
    rest: str


def checks(cell: Cell) -> list[Checked]:
    """The calls ``check("slug/1", answer)`` at the top level of a code cell."""
    if cell["cell_type"] != "code":
        return []
    text, found = source(cell), []
    for node in ast.parse(text).body:
        call = node.value if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else None
        if call and isinstance(call.func, ast.Name) and call.func.id == "check" and len(call.args) == 2:
            lines = text.splitlines()
            rest = "\n".join([*lines[: node.lineno - 1], *lines[node.end_lineno :]]).strip()
            found.append(Checked(ast.literal_eval(call.args[0]), ast.unparse(call.args[1]), rest))
    return found


def solutions(nb: Notebook) -> dict[str, Checked]:
    """The solution of each exercise, by its name such as ``fisher-merging/1``."""
    cells = (cell for cell in nb["cells"] if "solution" in tags(cell))
    return {found.exercise: found for cell in cells for found in checks(cell)}


def filled(nb: Notebook, copied: Notebook) -> Notebook:
    """A student copy with the chapter's own solutions put in as answers, which must then pass every self-check."""
    known, made = solutions(nb), _copy(copied)
    for cell in made["cells"]:
        for exercise, answer, rest in checks(cell) if "self-check" in tags(cell) else []:
            right = known[exercise]
            call = f'check("{exercise}", {answer})'
            cell["source"] = f"{rest}\n\n\n{right.rest}\n{answer} = {right.answer}\n{call}"
    return made


def teacher(nb: Notebook, name: str) -> Notebook:
    """A copy with the lesson plan on top, the minutes at each section, and the solutions open.

    Raises:
        NotebookError: The chapter has no whole lesson plan.
    """
    plan = lesson.lesson(nb, name)
    made = _copy(nb)
    for cell in made["cells"]:
        if "solution" in tags(cell):
            cell["source"] = DROPDOWN.sub("", source(cell))
            cell["metadata"]["tags"] = [tag for tag in tags(cell) if tag != "hide-input"]
        elif cell["cell_type"] == "markdown":
            cell["source"] = _timed(source(cell), plan.minutes)
    cells = made["cells"]
    made["cells"] = [cells[0], _markdown(lesson.as_markdown(plan), "lesson-plan"), *cells[1:]]
    return made


def _timed(text: str, minutes: dict[str, int]) -> str:
    """A Markdown text with the minutes of the lesson plan below each section's heading."""
    for section, spent in minutes.items():
        heading = rf"^(## {re.escape(section)})[ \t]*$"
        text = re.sub(heading, rf"\1\n\n*Lesson plan: {spent} minutes.*", text, flags=re.M)
    return text


def graded(nb: Notebook, name: str) -> Notebook:
    """A source notebook for nbgrader: answers between solution marks, and a locked test cell after each.

    Only the exercises for code and the open ones can be graded by running; the test is the chapter's self-check.

    Raises:
        NotebookError: An exercise lacks its answer cell, self-check or solution.
    """
    known = solutions(nb)
    made = _copy(nb)
    cells: list[Cell] = []
    for cell in made["cells"]:
        cell["metadata"].pop("nbgrader", None)
        if "solution" in tags(cell):
            continue
        found = checks(cell) if "self-check" in tags(cell) else []
        if not found:
            cells.append(cell)
            continue
        exercise, answer, cell["source"] = found[0]
        if exercise not in known:
            raise NotebookError(f"{name}: exercise {exercise} has no solution that calls check.")
        number = exercise.rpartition("/")[2]
        _replace_answer(cells, answer, _region(answer, known[exercise]), f"{name}-answer-{number}", name)
        cells += [cell, _test(exercise, answer, f"{name}-test-{number}", nb)]
    made["cells"] = cells
    made["metadata"].pop("lesson", None)
    return made


def _region(answer: str, right: Checked) -> str:
    """An answer cell whose solution nbgrader cuts out for students."""
    return f"{answer} = None\n### BEGIN SOLUTION\n{right.rest}\n{answer} = {right.answer}\n### END SOLUTION"


def _replace_answer(cells: list[Cell], answer: str, text: str, id: str, name: str) -> None:
    """Turn the exercise's empty answer cell, among those before it, into nbgrader's autograded answer."""
    for cell in reversed(cells):
        if "exercise" in tags(cell) and cell["cell_type"] == "code":
            start = re.sub(rf"^{re.escape(answer)}\s*=\s*None.*$", "", source(cell), flags=re.M).rstrip()
            cell["source"] = f"{start}\n{text}".lstrip()
            cell["metadata"]["nbgrader"] = _nbgrader(id, grade=False, solution=True)
            cell |= {"outputs": [], "execution_count": None}
            return
    raise NotebookError(f"{name}: the self-check of {answer} has no answer cell before it.")


def _test(exercise: str, answer: str, id: str, nb: Notebook) -> Cell:
    number = exercise.rpartition("/")[2]
    kinds = {m[1]: m[2] for c in nb["cells"] for m in re.finditer(r"^### Exercise (\d+) \((\w+)\)", source(c), re.M)}
    said = f'from reprolib.exercises import feedback\n\nsaid = feedback("{exercise}", {answer})\n'
    cell = _code(said + 'assert said.endswith("correct."), said', id)
    cell["metadata"]["nbgrader"] = _nbgrader(id, grade=True, solution=False, points=POINTS[kinds[number]])
    return cell


def _nbgrader(id: str, grade: bool, solution: bool, points: int | None = None) -> dict[str, Any]:
    found = {"grade": grade, "grade_id": id, "locked": grade, "schema_version": 3, "solution": solution, "task": False}
    return found | ({"points": points, "cell_type": "code"} if grade else {"cell_type": "code"})


def _copy(nb: Notebook) -> Notebook:
    made = copy.deepcopy(nb)
    for cell in made["cells"]:
        cell["source"] = source(cell)
    return made


def _markdown(text: str, id: str) -> Cell:
    return {"cell_type": "markdown", "id": id, "metadata": {}, "source": text}


def _code(text: str, id: str) -> Cell:
    empty: Cell = {"execution_count": None, "outputs": []}
    return {"cell_type": "code", "id": id, "metadata": {}, "source": text} | empty


def _scope(cell: Cell) -> symtable.SymbolTable:
    return symtable.symtable(source(cell) if cell["cell_type"] == "code" else "", "cell", "exec")
