"""The lesson plan of a chapter, kept in its notebook's metadata under ``lesson``: read, checked, and put into words."""

from __future__ import annotations

from typing import Any, NamedTuple

from repro.chapterfile import headings
from reprolib.notebook import Notebook, NotebookError, source

SESSIONS = (50, 90)  # minutes
LISTS = {"prerequisites": (1, 6), "goals": (2, 5), "questions": (2, 5)}  # how many sentences of each
TEXTS = ("demonstration", "misconception", "correction")
SHORTEST = 8  # characters of a sentence


class Lesson(NamedTuple):
    """How to teach a chapter in one session."""

    session: int  # minutes in all, one of SESSIONS
    prerequisites: list[str]
    goals: list[str]  # what a student can do after it
    minutes: dict[str, int]  # section of the notebook -> minutes; they sum to the session
    demonstration: str  # what to change live, and what is seen then
    misconception: str  # what many will believe
    correction: str  # and what shows them that it is not so
    questions: list[str]  # for discussion


def blank() -> dict[str, Any]:
    """A plan to be filled in, as JSON holds it."""
    empty = Lesson(SESSIONS[0], [], [], {}, "", "", "", [])
    return empty._asdict()


def problems(nb: Notebook) -> list[str]:
    """What is wrong with the lesson plan of a notebook, a sentence each; none where it is whole."""
    plan = nb.get("metadata", {}).get("lesson")
    if not isinstance(plan, dict):
        return ["The notebook's metadata has no 'lesson'; a plan holds " + ", ".join(Lesson._fields) + "."]
    missing = [field for field in Lesson._fields if field not in plan]
    unknown = sorted(set(plan) - set(Lesson._fields))
    if missing or unknown:
        said = [f"lacks {', '.join(missing)}"] if missing else []
        said += [f"has the unknown {', '.join(unknown)}"] if unknown else []
        return [f"The lesson plan {' and '.join(said)}."]
    return [*_texts(plan), *_minutes(nb, plan)]


def _texts(plan: dict[str, Any]) -> list[str]:
    found = []
    for name, (low, high) in LISTS.items():
        items = plan[name]
        if not isinstance(items, list) or not low <= len(items) <= high or not all(map(_sentence, items)):
            found.append(
                f"lesson.{name} must be {low} to {high} texts of {SHORTEST} characters or more; got {items!r}."
            )
    for name in TEXTS:
        if not _sentence(plan[name]):
            found.append(f"lesson.{name} must be a text of {SHORTEST} characters or more; got {plan[name]!r}.")
    return found


def _sentence(text: Any) -> bool:
    return isinstance(text, str) and len(text.strip()) >= SHORTEST


def _minutes(nb: Notebook, plan: dict[str, Any]) -> list[str]:
    if plan["session"] not in SESSIONS:
        return [f"lesson.session must be {' or '.join(map(str, SESSIONS))} minutes; got {plan['session']!r}."]
    minutes = plan["minutes"]
    if not isinstance(minutes, dict) or not all(type(m) is int and m > 0 for m in minutes.values()):
        return [f"lesson.minutes must name whole minutes for sections; got {minutes!r}."]
    known = sections(nb)
    if strange := [name for name in minutes if name not in known]:
        return [f"lesson.minutes names {strange[0]!r}, which is no section; sections are {', '.join(known)}."]
    if (total := sum(minutes.values())) != plan["session"]:
        return [f"lesson.minutes sum to {total}, and the session has {plan['session']}."]
    return []


def sections(nb: Notebook) -> list[str]:
    """Titles of the level-2 sections of a notebook."""
    texts = (source(cell) for cell in nb["cells"] if cell["cell_type"] == "markdown")
    return [title for text in texts for _, level, title in headings(text) if level == 2]


def lesson(nb: Notebook, name: str) -> Lesson:
    """The lesson plan of a notebook.

    Raises:
        NotebookError: It has none, or a broken one; names the chapter and what is wrong.
    """
    if found := problems(nb):
        raise NotebookError(f"{name}: {found[0]}")
    return Lesson(**nb["metadata"]["lesson"])


def as_markdown(plan: Lesson) -> str:
    """The plan as a page for the teacher."""
    rows = "\n".join(f"| {section} | {minutes} |" for section, minutes in plan.minutes.items())
    return "\n\n".join(
        [
            f"**Lesson plan, {plan.session} minutes**",
            f"**Needed before**\n\n{_bullets(plan.prerequisites)}",
            f"**After it, students can**\n\n{_bullets(plan.goals)}",
            f"| section | minutes |\n|---|---:|\n{rows}",
            f"**Live demonstration.** {plan.demonstration}",
            f"**Common misconception.** {plan.misconception} *Against it:* {plan.correction}",
            f"**To discuss**\n\n{_bullets(plan.questions)}",
        ]
    )


def _bullets(items: list[str]) -> str:
    return "\n".join(f"- {item}" for item in items)
