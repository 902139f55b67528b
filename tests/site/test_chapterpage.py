"""The page of a chapter: reading time, ways between claims and experiments, what to read next."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

from docutils import nodes
from docutils.utils import new_document

from repro import chapterpage
from reprolib.project import ChapterFile

ENTRIES = {
    "one": {"short": "The first"},
    "two": {"short": "The second", "after": {"one": "its $x<y$"}},
    "three": {"short": "The third", "after": {"two": "a & b", "gone": "what is no chapter"}},
}
FILES = [ChapterFile(slug, part, Path(f"{slug}.ipynb")) for slug, part in (("one", "a"), ("two", "a"), ("three", "b"))]


def _notebook(path: Path, *cells: tuple[str, str, list[str]]) -> ChapterFile:
    made = [{"cell_type": kind, "source": text, "metadata": {"tags": tags}} for kind, text, tags in cells]
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": made}))
    return ChapterFile(path.stem, "part", path)


def test_reading_time_counts_prose_and_open_code_without_solutions_and_folded_plots(tmp_path):
    prose, code = "word " * 2000, "x = 1\n" * 250
    first = _notebook(tmp_path / "a.ipynb", ("markdown", prose, []), ("code", code, []))
    assert chapterpage.reading_minutes(first) == 20  # 10 for 2,000 words, 10 for 250 lines
    more = ("markdown", prose, ["solution"]), ("code", code, ["hide-input"])
    folded = _notebook(tmp_path / "b.ipynb", ("markdown", prose, []), ("code", code, []), *more)
    assert chapterpage.reading_minutes(folded) == 20
    assert chapterpage.reading_minutes(_notebook(tmp_path / "c.ipynb", ("markdown", "word", []))) == 5


def _page() -> tuple[nodes.document, nodes.section, nodes.container]:
    """A page with a table of claims c1 and c2, and a section whose cell measures c1 and another, unknown claim."""
    document, row = new_document("page"), nodes.row()
    for words in ("c1", "c2"):
        row = nodes.row("", nodes.entry("", nodes.paragraph("", "", nodes.strong("", words))), nodes.entry())
        document += nodes.table("", nodes.tgroup("", nodes.tbody("", row)))
    section = nodes.section("", nodes.title("", "E1"), ids=["e1"])
    cell = nodes.container("", nb_element="cell_code")
    cell += nodes.literal_block("", "c1 = ch.measure(\n    'c1', gains)\nch.measure(\"other\", 1)")
    section += cell
    document += section
    return document, section, cell


def test_a_claim_in_a_table_leads_to_its_section_and_the_deciding_cell_back():
    document, section, cell = _page()
    chapterpage.link_claims(document, {"c1": "not reproduced", "c2": "reproduced"})
    assert section["ids"] == ["e1", "claim-c1"]
    links = [(link.astext(), link["refuri"]) for link in document.findall(nodes.reference)]
    assert links == [("c1", "#claim-c1")]  # c2 is measured nowhere, and leads nowhere
    assert [entry["ids"] for entry in document.findall(nodes.entry) if entry["ids"]] == [["row-c1"]]
    note = section.children[section.index(cell) + 1].astext()
    assert '<a href="#row-c1">c1</a>' in note
    assert "not reproduced</span>" in note
    assert "other" not in note


def test_the_quiz_stands_below_the_claims_and_the_table_of_verdicts_is_marked():
    claims = [
        {"id": "c1", "text": "<b> & $x<y$", "verdict": "not reproduced"},
        {"id": "c2", "text": "B", "verdict": "reproduced"},
    ]
    document, section = new_document("page"), nodes.section()
    cells = {}
    for source in ("x = 1\nch.claims_table()", "ch.verdicts()", "say('ch.verdicts()')"):
        cells[source] = nodes.container("", nodes.literal_block("", source), nb_element="cell_code")
        section += cells[source]
    document += section
    chapterpage.insert_quiz(document, "a-b", claims)
    first, quiz, table, other = section.children
    assert first is cells["x = 1\nch.claims_table()"]
    assert quiz.astext().count("<fieldset>") == 2
    assert quiz.astext().count('type="radio"') == 6
    assert "&lt;b&gt; &amp; " in quiz.astext() and "<b>" not in quiz.astext()
    answers = re.search(r'data-verdicts="([^"]*)"', quiz.astext())[1]
    assert json.loads(unescape(answers)) == {"c1": "not reproduced", "c2": "reproduced"}
    assert table["classes"] == ["verdict-table"]
    assert other["classes"] == []


def test_the_card_takes_the_citation_in_and_stands_below_the_title():
    section = nodes.section("", nodes.title("", "T"), nodes.paragraph("", "Who (2020)"), nodes.paragraph("", "Shows"))
    chapterpage.head(section, "<dl></dl>")
    card = section.children[1]
    assert [type(child) for child in section.children] == [nodes.title, nodes.container, nodes.paragraph]
    assert card.children[0].astext() == "Who (2020)"
    assert card.children[1].astext() == "<dl></dl>"


def test_read_next_lists_what_builds_on_a_chapter_and_what_it_builds_on():
    order = ["one", "two", "three"]
    first, second, third = (chapterpage.read_next(file, ENTRIES, FILES, order) for file in FILES)
    assert '<a href="two.html">The second</a>, which takes from here: its <span' in first
    assert "x&lt;y" in first
    assert "before this" not in first
    assert '<a href="../b/three.html">The third</a>, which takes from here: a &amp; b' in second
    assert '<a href="one.html">The first</a>, for its' in second
    assert "How all claims stand" in third  # nothing builds on it, and nothing follows in the book
    assert "gone" not in third
    assert "the next chapter of the book" in chapterpage.read_next(FILES[2], ENTRIES, FILES, ["three", "one", "two"])


def test_the_order_of_the_book_is_that_of_its_table_of_contents_without_openers():
    toc = "- file: chapters/a/index\n- file: chapters/a/two\n- file: book/run\n  - file: chapters/b/one\n"
    assert chapterpage.book_order(toc) == ["two", "one"]


def _table(*rows: tuple[str, ...]) -> nodes.document:
    made = [
        nodes.row("", *(nodes.entry("", nodes.paragraph("", word), classes=["text-left"]) for word in r)) for r in rows
    ]
    group = nodes.tgroup("", nodes.thead("", made[0]), nodes.tbody("", *made[1:]))
    document = new_document("page")
    document += nodes.table("", group)
    return document


def test_columns_of_numbers_are_aligned_at_their_right_and_others_left_alone():
    document = _table(
        ("rank", "error", "who", "interval", "formula"),
        ("1", "≈0.87", "K-FAC 2", "≈+0.02 [≈−0.01, ≈0.03]", "2x"),
        ("10", "–", "3", "≈0.5 [≈0.25, ≈0.75]", "x^2"),
    )
    chapterpage.align_numbers(document)
    for row in document.findall(nodes.row):
        sides = [entry["classes"] for entry in row.findall(nodes.entry)]
        assert sides == [["text-right"], ["text-right"], ["text-left"], ["text-right"], ["text-left"]]
    words = _table(("a", "b"), ("", "–"), ("", "x"))
    chapterpage.align_numbers(words)
    assert all(entry["classes"] == ["text-left"] for entry in words.findall(nodes.entry))
