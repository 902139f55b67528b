"""What the site adds to the page of a chapter: the card at its head, ways between claims and experiments, what to
read next. Works on the docutils tree of the page; numbers come from the stored records."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from html import escape
from typing import Any

from docutils import nodes

from repro.board import NOT_RUN, STALE, badge, counts, inline, stored
from repro.bookmap import helpers
from reprolib import notebook
from reprolib.claims import VERDICTS
from reprolib.project import SCALES, ChapterFile

WORDS, LINES = 200, 25  # read in a minute: words of prose, lines of code
Papers = Mapping[str, Mapping[str, Any]]  # slug -> entry of book/papers.yml


def reading_minutes(chapter: ChapterFile) -> int:
    """Minutes to read a chapter once, to five: its prose and the code that is not folded, without solutions."""
    words = lines = 0
    for cell in notebook.read(chapter.path)["cells"]:
        tags, source = notebook.tags(cell), notebook.source(cell)
        if "solution" in tags or "hide-input" in tags:
            continue
        if cell["cell_type"] == "markdown":
            words += len(re.findall(r"\w+", source))
        else:
            lines += len(source.splitlines())
    return max(5, 5 * round((words / WORDS + lines / LINES) / 5))


def _run(record: Mapping[str, Any]) -> str:
    """One line about the run behind a record: time, machine, memory, date."""
    gpu = record.get("peak_gpu_mb")
    memory = f"{gpu / 1000:.1f} GB of GPU memory" if gpu else f"{record['peak_ram_mb'] / 1000:.1f} GB of memory"
    device = record["device"].partition(": ")[2] or record["device"]
    reduced = "" if record["precision"] == "float32" else f", {escape(record['precision'])}"
    day = datetime.fromisoformat(record["date"])
    return (
        f"{record['wall_seconds']:.0f} s on {escape(device)}{reduced}, {memory}, "
        f'<time datetime="{escape(record["date"])}">{day.day} {day:%B %Y}</time>'
    )


def card(chapter: ChapterFile, page: str) -> str:
    """How the claims of a chapter stand, by its stored runs, and what it costs to read and run, as HTML.

    Raises:
        RecordError: A record cannot be read or trusted.
    """
    lines = []
    for scale in SCALES:
        held = stored(chapter, scale)
        body = badge(NOT_RUN[scale])
        if held.record:
            late = f"{badge(STALE, title=held.stale)} " if held.stale else ""
            body = f'{late}{counts(held.record["claims"])}<span class="card-run">{_run(held.record)}</span>'
            if held.stale:
                body += f'<span class="card-run">{escape(held.stale)}</span>'
        lines.append(f"<dt>{scale.capitalize()}</dt><dd>{body}</dd>")
    up = os.path.relpath("book", os.path.dirname(page) or ".")
    means = f'<a href="{up}/welcome.html#how-to-read-a-verdict">what the verdicts mean</a>'
    lines.append(f"<dt>Reading</dt><dd>about {reading_minutes(chapter)} minutes · {means}</dd>")
    return f"<dl>{''.join(lines)}</dl>"


def head(top: nodes.section, html: str) -> None:
    """Put the card below the title of a page, around its first paragraph, which names the paper."""
    box = nodes.container("", classes=["chapter-card"])
    citation = next((i for i, child in enumerate(top.children) if isinstance(child, nodes.paragraph)), None)
    if citation is not None:
        box += top.pop(citation)
    box += nodes.raw("", html, format="html")
    top.insert(1, box)


def link_claims(doctree: nodes.document, verdicts: Mapping[str, str]) -> None:
    """Lead from each claim in the page's tables to the section that decides it, and from the deciding cell back.

    Args:
        doctree: The page.
        verdicts: Verdict of each claim by its id; other names in bold are left alone.
    """
    decided = dict(_decided(doctree, set(verdicts)))
    for id, cell in decided.items():
        section = next(p for p in _ancestors(cell) if isinstance(p, nodes.section))
        section["ids"].append(f"claim-{id}")
    rows: set[str] = set()
    for entry, strong in _ids_in_tables(doctree, set(decided)):
        id = strong.astext()
        strong.children = []
        strong += nodes.reference("", id, refuri=f"#claim-{id}", internal=True)
        if id not in rows:  # the first table with it is the one of the claims
            rows.add(id)
            entry["ids"].append(f"row-{id}")
    for cell in dict.fromkeys(decided.values()):
        ids = [id for id, at in decided.items() if at is cell and id in rows]
        words = ", ".join(f'<a href="#row-{id}">{escape(id)}</a> {badge(verdicts[id])}' for id in ids)
        if ids:
            note = nodes.raw("", f'<p class="claim-note">Decides {words}</p>', format="html")
            cell.parent.insert(cell.parent.index(cell) + 1, note)


def insert_quiz(doctree: nodes.document, slug: str, claims: list[Mapping[str, Any]]) -> None:
    """Let readers predict the verdicts below the table of claims, and mark the table of verdicts for the script.

    Args:
        doctree: The page.
        slug: The chapter's name.
        claims: Claims of its stored record.
    """
    for cell in list(doctree.findall(nodes.container)):
        lines = [line for block in cell.findall(nodes.literal_block) for line in block.astext().splitlines()]
        if cell.get("nb_element") != "cell_code":
            continue
        if "ch.claims_table()" in lines:
            cell.parent.insert(cell.parent.index(cell) + 1, nodes.raw("", quiz(slug, claims), format="html"))
        elif "ch.verdicts()" in lines:
            cell["classes"].append("verdict-table")


def quiz(slug: str, claims: list[Mapping[str, Any]]) -> str:
    """The predictions to make, as HTML that a script shows and evaluates."""
    rows = []
    for claim in claims:
        choices = "".join(
            f'<label><input type="radio" name="{escape(claim["id"])}" value="{v}"> {v}</label>' for v in VERDICTS
        )
        words = f'<span class="board-id">{escape(claim["id"])}</span> {inline(claim["text"])}'
        rows.append(f"<fieldset><legend>{words}</legend>{choices}</fieldset>")
    answers = escape(json.dumps({claim["id"]: claim["verdict"] for claim in claims}))
    return (
        f'<details class="verdict-quiz" data-chapter="{escape(slug)}" data-verdicts="{answers}" hidden>'
        "<summary>Predict the verdicts before you read on</summary>"
        "<p>Which claims will hold at quick scale? As soon as you predict one, the verdicts on this page hide; the "
        "table under Verdicts opens when you ask for it and says where you were right.</p>"
        f'<form>{"".join(rows)}<p role="status"></p>'
        '<button type="reset">Forget my predictions</button></form></details>'
    )


NUMBER = r"[≈<>≤≥±~]?\s*[-+−]?\d[\d,.]*(\s*(e[-+−]?\d+|[×·]\s*10[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+))?"
NUMERIC = re.compile(rf"{NUMBER}\s*(%|[a-zµ]{{1,3}}|MB|GB|times)?(\s*\[{NUMBER},\s*{NUMBER}\])?|[–—-]?")


def align_numbers(doctree: nodes.document) -> None:
    """Right-align the columns of tables that hold numbers alone, so that their digits stand below each other."""
    for table in doctree.findall(nodes.table):
        body = [
            list(row.findall(nodes.entry)) for part in table.findall(nodes.tbody) for row in part.findall(nodes.row)
        ]
        if not body or len({len(row) for row in body}) > 1:
            continue
        head = [
            list(row.findall(nodes.entry)) for part in table.findall(nodes.thead) for row in part.findall(nodes.row)
        ]
        for column in zip(*body, strict=True):
            words = [entry.astext().strip() for entry in column]
            if (
                any(words)
                and any(w[-1:].isdigit() or w[:1] == "≈" for w in words)
                and all(map(NUMERIC.fullmatch, words))
            ):
                at = body[0].index(column[0])
                for entry in [*column, *(row[at] for row in head if at < len(row))]:
                    entry["classes"] = [c for c in entry["classes"] if not c.startswith("text-")] + ["text-right"]


def _ancestors(node: nodes.Node) -> Iterator[nodes.Node]:
    while node.parent is not None:
        node = node.parent
        yield node


def _decided(doctree: nodes.document, known: set[str]) -> Iterator[tuple[str, nodes.container]]:
    """(claim, cell) for each cell that measures a claim."""
    for cell in doctree.findall(nodes.container):
        if cell.get("nb_element") == "cell_code":
            source = "\n".join(block.astext() for block in cell.findall(nodes.literal_block))
            for id in re.findall(r"""\bch\.measure\(\s*["'](\w+)["']""", source):
                if id in known:
                    yield id, cell


def _ids_in_tables(doctree: nodes.document, known: set[str]) -> Iterator[tuple[nodes.entry, nodes.strong]]:
    """(table cell, its bold word) where the first column of a table names a claim in bold."""
    for row in list(doctree.findall(nodes.row)):
        first = row.next_node(nodes.entry)
        for strong in list(first.findall(nodes.strong)) if first else []:
            if strong.astext() in known:
                yield first, strong


def book_order(toc: str) -> list[str]:
    """Slugs of the chapters in the order of the text of _toc.yml."""
    return [slug for slug in re.findall(r"file:\s*chapters/[^/\s]+/(\S+)", toc) if slug != "index"]


def read_next(chapter: ChapterFile, entries: Papers, chapters: list[ChapterFile], order: list[str]) -> str:
    """What helps for this chapter, and for what it helps, as HTML; where nothing follows, the next in the book.

    Args:
        chapter: The chapter of the page.
        entries: All of book/papers.yml.
        chapters: All chapters.
        order: Their slugs as _toc.yml has them.
    """
    files = {c.slug: c for c in chapters}
    here = f"chapters/{chapter.part}"

    def link(slug: str) -> str:
        name = entries.get(slug, {}).get("short", slug)
        href = os.path.relpath(f"chapters/{files[slug].part}/{slug}.html", here)
        return f'<a href="{escape(href)}">{escape(str(name))}</a>'

    before = [(s, why) for s, why in helpers(entries.get(chapter.slug, {})).items() if s in files]
    after = [(s, helpers(e)[chapter.slug]) for s, e in entries.items() if s in files and chapter.slug in helpers(e)]
    follow = "".join(f"<li>{link(s)}, which takes from here: {inline(why)}</li>" for s, why in after)
    if not after:
        rest = [s for s in order[order.index(chapter.slug) + 1 :] if s in files] if chapter.slug in order else []
        follow = "<li>" + (
            f"{link(rest[0])}, the next chapter of the book"
            if rest
            else '<a href="../../book/verdicts.html">How all claims stand</a>: this is the last chapter'
        )
    html = f'<p class="card-title">Read next</p><ul>{follow}</ul>'
    if before:
        items = "".join(f"<li>{link(s)}, for {inline(why)}</li>" for s, why in before)
        html += f'<p class="card-title">Helpful before this chapter</p><ul>{items}</ul>'
    return f'<nav class="read-next" aria-label="Read next">{html}</nav>'
