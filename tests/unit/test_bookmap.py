"""The map of a part: rows of chapters, their picture and their list."""

from __future__ import annotations

import re

import pytest

from repro import bookmap
from reprolib import project
from reprolib.project import ReproError


def _entries(**after: list[str]) -> dict[str, dict]:
    return {slug: {"slug": slug, "after": dict.fromkeys(before, "why")} for slug, before in after.items()}


def test_every_chapter_stands_below_all_that_it_comes_after():
    found = bookmap.rows(_entries(d=["b", "c"], b=["a"], c=["b"], a=[], e=["a", "elsewhere"]))
    assert [set(row) for row in found] == [{"a"}, {"b", "e"}, {"c"}, {"d"}]


def test_chapters_stand_under_their_helpers_so_that_arrows_do_not_cross():
    assert bookmap.rows(_entries(a=[], b=[], x=["b"], y=["a"])) == [["a", "b"], ["y", "x"]]


def test_a_line_that_a_way_through_other_chapters_implies_is_not_drawn():
    entries = _entries(a=[], b=["a"], c=["a", "b"], d=["a", "elsewhere"])
    assert bookmap.lines(entries) == [("a", "b"), ("b", "c"), ("a", "d")]


def test_a_circle_is_named():
    said = "These chapters come after each other in a circle: b, c; cut it."
    with pytest.raises(ReproError, match=re.escape(said)):
        bookmap.rows(_entries(a=[], b=["c"], c=["b"]))
    assert bookmap.tangles(_entries(a=[], b=["c"], c=["b"])) == [said]


def test_a_misspelt_helper_is_named_with_the_nearest_slug():
    assert bookmap.tangles(_entries(loku=["fswvd"], fwsvd=[])) == [
        "The entry 'loku' comes after 'fswvd', which has no entry. Did you mean fwsvd?"
    ]
    assert bookmap.tangles(_entries(loku=["fwsvd"], fwsvd=[])) == []


def test_the_picture_and_the_list_hold_every_chapter_of_the_part():
    root = project.root()
    html = bookmap.part_map("fisher", project.chapters(root), "chapters/fisher/index", root)
    part = {p["slug"]: p for p in project.papers(root)["papers"] if p["part"] == "fisher"}
    picture, words = html.split("</svg></div>")
    assert picture.count('class="map-edge"') == len(bookmap.lines(part))
    for slug in part:
        assert f'<a href="{slug}.html" tabindex="-1">' in picture
        assert f'<li><a href="{slug}.html">' in words
    assert words.count("after <a") == sum(len(bookmap.helpers(entry)) for entry in part.values())


def test_the_map_of_the_book_joins_parts_and_names_the_chapters_that_help():
    root = project.root()
    picture, words = bookmap.book_map(project.chapters(root), "book/map", root).split("</svg></div>")
    for part in {c.part for c in project.chapters(root)}:
        assert f'<a href="../chapters/{part}/index.html" tabindex="-1">' in picture
        assert f'<li><a href="../chapters/{part}/index.html">' in words
    listed = {p["slug"]: p for p in project.papers(root)["papers"]}
    across = {(listed[h]["part"], p["part"]) for p in listed.values() for h in bookmap.helpers(p)}
    assert picture.count('class="map-edge"') == len({(a, b) for a, b in across if a != b})
    assert ("reproduced" in words) and ("inconclusive" in words)


def test_the_picture_holds_one_square_for_each_claim_drawn_as_its_verdict():
    claims = [{"id": "c1", "verdict": "reproduced"}, {"id": "c2", "verdict": "not reproduced"}]
    picture = bookmap._picture({"a": {"short": "An <A>"}}, {"a": "a.html"}, {"a": claims})
    assert re.findall(r'<g class="map-([a-z-]+)">', picture) == ["reproduced", "not-reproduced"]
    assert picture.count("<path d=") == 1  # the cross, so that colour alone does not carry the verdict
    assert "<title>c2: not reproduced</title>" in picture
    assert "An &lt;A&gt;" in picture


def test_a_part_without_chapters_is_refused_with_those_that_have_some():
    root = project.root()
    with pytest.raises(ReproError, match=r"The part .fishes. has no chapters to map\. Did you mean fisher"):
        bookmap.part_map("fishes", project.chapters(root), "chapters/fisher/index", root)
