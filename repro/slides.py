"""Slides of a chapter: which of its cells become a slide, and the deck as one page of reveal.js through nbconvert."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from repro import policy
from reprolib.notebook import Notebook, NotebookError, source, tags
from reprolib.project import ReproError

Cell = dict[str, Any]
FULL = 15.0  # lines that a slide holds
WORDS, ROW, EQUATION, PICTURE, CODE = 17, 1.2, 3.0, 12.0, 0.62  # words to a line; lines taken by one of each
ROWS, LINES = 8, 22  # at most: rows of a table, lines of code
LEFT_OUT = {"Notation", "Check", "Explore", "References"}
ASSETS = "../assets"


class Block(NamedTuple):
    """What stays together on a slide: a paragraph, some rows of a table, a picture, a function."""

    title: str  # of the section or experiment it stands under, as a Markdown heading
    text: str
    size: float  # lines it takes


def deck(nb: Notebook) -> Notebook:
    """A notebook whose cells are slides: a column for each section or experiment, as much on a slide as fits.

    Prose is split at paragraphs, tables at rows; of the code only method cells that fit a slide are shown. Sections
    for looking things up are left out, and solutions and folded code with them.
    """
    slides: list[Cell] = []
    title, held, filled = "", "", 0.0
    for block in _blocks(nb):
        if block.title != title or filled + block.size > FULL:
            if held:
                slides.append(_slide(f"{title}\n{held}", new=not slides or slides[-1]["title"] != title, title=title))
            title, held, filled = block.title, "", 0.0
        held, filled = f"{held}\n{block.text}\n", filled + block.size
    if held:
        slides.append(_slide(f"{title}\n{held}", new=not slides or slides[-1]["title"] != title, title=title))
    for number, slide in enumerate(slides):
        del slide["title"]
        slide["id"] = f"slide-{number}"
    return {"cells": slides, "metadata": dict(nb["metadata"]), "nbformat": 4, "nbformat_minor": 5}


def _slide(text: str, new: bool, title: str) -> Cell:
    kind = "slide" if new else "subslide"
    return {"cell_type": "markdown", "metadata": {"slideshow": {"slide_type": kind}}, "source": text, "title": title}


def _blocks(nb: Notebook) -> Iterator[Block]:
    """All that the slides show, in the chapter's order."""
    section, title = "", ""
    for cell in nb["cells"]:
        found = set(tags(cell))
        if cell["cell_type"] == "markdown":
            for heading, body in _parts(source(cell)):
                if heading:
                    section = heading if heading.startswith(("# ", "## ")) else section
                    title = ("# " if heading.startswith("# ") else "## ") + heading.lstrip("# ")
                if section.lstrip("# ") not in LEFT_OUT and "solution" not in found:
                    yield from (Block(title, text, size) for text, size in _prose(body))
        elif section.lstrip("# ") not in LEFT_OUT and not found & {"solution", "exercise", "self-check"}:
            yield from (Block(title, text, size) for text, size in _shown(cell, found))


def _parts(text: str) -> list[tuple[str, str]]:
    """(heading, what follows it) of a Markdown text; the first heading is empty where the text starts without one."""
    pieces = re.split(r"^(#{1,3} .+)$", text, flags=re.M)
    first = [("", pieces[0])] if pieces[0].strip() else []
    return first + list(zip(pieces[1::2], pieces[2::2], strict=True))


def plain(text: str) -> str:
    """MyST Markdown without what only the site understands: labels, roles, references, fences of admonitions."""
    text = re.sub(r"^\([\w-]+\)=\s*$", "", text, flags=re.M)
    text = re.sub(r"(\$\$)[ \t]*\([\w-]+\)", r"\1", text)
    text = re.sub(r"\{[\w:]+\}`([^`<]*?)(?:\s*<[^>]*>)?`", r"\1", text)
    text = re.sub(r"\[([^\]]*)\]\(#[^)]*\)", r"\1", text)
    return re.sub(r"^```\{[^}]*\}.*\n(?:^:\w+:.*\n)*|^```\s*$", "", text, flags=re.M).strip()


def _prose(text: str) -> Iterator[tuple[str, float]]:
    """(block, lines it takes) of a Markdown text: paragraphs, and tables cut at rows."""
    for block in re.split(r"(?<!:)\n\s*\n", plain(text)):  # what ends in a colon stays with what it announces
        lines = block.strip().splitlines()
        if len(lines) > 2 and re.match(r"\|[\s:|-]+\|$", lines[1].strip()):
            for i in range(2, len(lines), ROWS):
                rows = lines[i : i + ROWS]
                yield "\n".join([*lines[:2], *rows]), ROW + sum(ROW * max(1, len(r.split()) / 30) for r in rows)
        elif lines:
            equations = block.count("$$") / 2
            yield block.strip(), 1 + len(block.split()) / WORDS + EQUATION * equations


def _shown(cell: Cell, found: set[str]) -> Iterator[tuple[str, float]]:
    """(block, lines it takes) of a code cell: its method if it is short, then its pictures, tables and sentences."""
    lines = source(cell).count("\n") + 1
    if "method" in found and lines <= LINES and "def " in source(cell):
        yield f"```python\n{source(cell)}\n```", 1 + CODE * lines
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if "image/png" in data:
            png = "".join(data["image/png"]).replace("\n", "")
            alt = output["metadata"].get("reprolib", {}).get("alt", "").replace("[", "(").replace("]", ")")
            yield f"![{alt}](data:image/png;base64,{png})", PICTURE
        elif "text/markdown" in data:
            yield from _prose("".join(data["text/markdown"]))


def markdown_html(text: str) -> str:
    """Markdown with equations as HTML, without what could run: HTML in it is shown as text, strange links lead nowhere.

    Pictures of other hosts are left out as well: a room without internet could not show them.

    Raises:
        ReproError: nbconvert is missing.
    """
    try:
        from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
    except ImportError:
        raise ReproError("This needs nbconvert; install the extra 'book': pip install -e '.[book]'.") from None

    class Renderer(IPythonRenderer):
        def block_mermaidjs(self, code: str) -> str:
            return f"<pre>{escape(code)}</pre>\n"

        def image(self, text: str, url: str, title: str | None = None) -> str:
            return escape(text) if "//" in url.partition(",")[0] else str(super().image(text, url, title))

    return str(MarkdownWithMath(renderer=Renderer(escape=True, allow_harmful_protocols=False)).render(text))


def as_html(nb: Notebook, name: str) -> str:
    """The deck as one HTML page that finds reveal.js and MathJax in ``assets/`` beside its folder.

    Raises:
        ReproError: nbconvert is missing.
        NotebookError: The chapter has nothing to show.
    """
    try:
        import nbformat
        from nbconvert.exporters import SlidesExporter
    except ImportError:
        raise ReproError("Slides need nbconvert; install the extra 'book': pip install -e '.[book]'.") from None
    made = deck(nb)
    if not made["cells"]:
        raise NotebookError(f"{name}: the chapter has no cell that could be a slide.")
    templates = Path(__file__).with_name("templates")
    exporter = SlidesExporter(
        extra_template_basedirs=[str(templates)],
        template_name="slides",
        reveal_url_prefix=f"{ASSETS}/reveal.js",
        mathjax_url=f"{ASSETS}/mathjax/tex-chtml.js",
        reveal_theme="white",
    )
    exporter.language_code = "en"
    exporter.register_filter("markdown2html", markdown_html)
    resources = {"metadata": {"name": name}, "tex": json.dumps(policy.TEX)}
    html, _ = exporter.from_notebook_node(nbformat.from_dict(made), resources)
    return str(html)
