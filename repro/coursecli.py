"""``repro course``: build material for a course from chapters, each kind in a folder of its own."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from repro import assets, course, handout, slides
from reprolib import notebook, project, records
from reprolib.notebook import Notebook
from reprolib.project import ChapterFile, ReproError

README = """# Course material

Made from The Book That Checks Its Papers by `repro course build`. Everything here works without a network.

| folder | what it holds |
|---|---|
| `student/` | notebooks without solutions: answer cells are empty, each with a check that says what is missing |
| `teacher/` | the same notebooks with the lesson plan on top, minutes for each section, and open solutions |
| `slides/` | a deck for each chapter; open the HTML file in a browser, press `F` for the whole screen, `S` for notes |
| `handouts/` | one page each, to print: the idea, the notation, and the claims to guess before the lesson |
| `nbgrader/source/` | assignments for nbgrader: `nbgrader generate_assignment NAME` makes the students' version |

The notebooks need the book's package (`pip install -e '.[book]'` in its checkout); slides and handouts need a browser.

Chapters: {chapters}
"""

Make = Callable[[Notebook, str], Notebook | str]
KINDS: dict[str, tuple[str, Make]] = {
    "student": ("student/{}.ipynb", course.student),
    "teacher": ("teacher/{}.ipynb", course.teacher),
    "slides": ("slides/{}.html", slides.as_html),
    "handout": ("handouts/{}.html", handout.as_html),
    "nbgrader": ("nbgrader/source/{0}/{0}.ipynb", course.graded),
}


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``repro course`` to its parser."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    build = commands.add_parser("build", help="Copies for students and teacher, slides, handouts, assignments.")
    build.add_argument("--chapters", nargs="+", metavar="SLUG", default=[], help="these chapters")
    build.add_argument("--part", metavar="PART", help="all chapters of a part")
    build.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a folder that is new or empty")
    build.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS), help="default: everything")


def main(args: argparse.Namespace) -> int:
    """Build the material and say where it is."""
    made = build(_chosen(args), args.out, args.only)
    print(f"Wrote {len(made)} files to {args.out}; {args.out / 'README.md'} says what they are.")
    return 0


def _chosen(args: argparse.Namespace) -> list[ChapterFile]:
    every = project.chapters()
    if bool(args.chapters) == bool(args.part):
        raise ReproError("Name chapters with --chapters, or all of a part with --part.")
    known = [c.slug for c in every]
    for slug in args.chapters:
        if slug not in known:
            raise ReproError(f"There is no chapter {slug!r}. {project.nearest(slug, known)}")
    found = [c for c in every if c.slug in args.chapters or c.part == args.part]
    if not found:
        raise ReproError(
            f"The part {args.part!r} has no chapters. {project.nearest(args.part, [c.part for c in every])}"
        )
    return found


def build(chapters: list[ChapterFile], out: Path, kinds: list[str]) -> list[Path]:
    """Write course material of some chapters into a folder; nothing is written when one of them cannot be made.

    Args:
        chapters: The chapters.
        out: A folder that does not exist yet or is empty: what students or teachers wrote there is never lost.
        kinds: Of KINDS.

    Returns:
        The files, without those of others that slides and handouts need.

    Raises:
        ReproError: The folder holds something, a package is missing, or a chapter lacks what a copy needs.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ReproError(f"{out} exists and is not an empty folder; nothing was written. Choose another with --out.")
    texts: dict[Path, str] = {}
    for chapter in chapters:
        nb = notebook.read(chapter.path)
        for kind in kinds:
            name, make = KINDS[kind]
            made = make(nb, chapter.slug)
            text = made if isinstance(made, str) else json.dumps(made, indent=1, ensure_ascii=False) + "\n"
            texts[out / name.format(chapter.slug)] = text
    texts[out / "README.md"] = README.format(chapters=", ".join(c.slug for c in chapters))
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        records.write_atomic(path, text)
    if {"slides", "handout"} & set(kinds):
        assets.for_course(project.root(), out / "assets")
    return list(texts)
