"""Pages checked with axe-core in Chromium: no serious finding on any kind of page, in both themes."""

from __future__ import annotations

import pytest

from repro import assets
from reprolib import project

KINDS = (
    "book/welcome.html",
    "book/run.html",
    "book/verdicts.html",
    "book/map.html",
    "book/teach.html",
    "book/bibliography.html",
    "book/tools/tour.html",
    "book/tools/fisher.html",
    "book/tools/benchmarks.html",
    "chapters/fisher/index.html",
    "chapters/fisher/fisher-merging.html",
    "chapters/matrices/log-bessel.html",
    "search.html?q=Fisher",
)


@pytest.fixture(scope="module")
def axe() -> str:
    return (assets.package(project.root(), "axe-core") / "axe.min.js").read_text(encoding="utf-8")


def test_every_kind_of_page_is_among_those_checked(pages):
    folders = {path.rpartition("/")[0] for path in pages} - {""}
    assert folders == {kind.rpartition("/")[0] for kind in KINDS} - {""}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_axe_has_no_serious_finding(visit, axe, kind, theme):
    page = visit(kind, theme)
    page.evaluate("window.MathJax?.startup?.promise.then(() => new Promise(requestAnimationFrame))")
    page.evaluate("document.querySelectorAll('details.verdict-quiz').forEach((quiz) => { quiz.open = true; })")
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    serious = [f for f in found if f["impact"] in ("serious", "critical")]
    assert [(f["id"], f["help"], [node["html"][:200] for node in f["nodes"][:3]]) for f in serious] == []


def test_axe_is_seen_to_find_a_fault(visit, axe):
    page = visit("book/welcome.html")
    page.evaluate("document.querySelector('article').insertAdjacentHTML('afterbegin', '<img src=\"data:,\">')")
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    assert "image-alt" in [f["id"] for f in found]
