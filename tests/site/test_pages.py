"""The built site as a reader meets it in Chromium: on a desk, on a phone, in both themes, with and without scripts."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest
from playwright.sync_api import Page, expect

from reprolib import project, records

ROOT = Path(__file__).resolve().parents[2]
PHONE = {"width": 390, "height": 844}
TABLET = {"width": 768, "height": 1024}
WIDTH = "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"
SHARPNESS = """async () => {
    const pictures = [...document.querySelectorAll('figure.repro-figure img, figure.repro-slider img')];
    await Promise.all(pictures.map((picture) => picture.decode()));
    return pictures.map((picture) => picture.naturalWidth / (picture.clientWidth - 16));  // its padding
}"""
THEMES = ("light", "dark")
CONTRAST = """(element) => {
    const light = (color) => {
        const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
            .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const style = getComputedStyle(element);
    const [low, high] = [light(style.color), light(style.backgroundColor)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
}"""


def _page(slug: str) -> str:
    return f"chapters/{project.find(slug).part}/{slug}.html"


def claims_of(page: str) -> list[str]:
    """Ids of the claims in the quick record of a chapter, named by its page or slug."""
    return [c["id"] for c in records.read(project.find(Path(page).stem).record("quick"))["claims"]]


@pytest.fixture(scope="session")
def chapter_pages(html: Path) -> list[str]:
    """The chapters' pages."""
    return [_page(c.slug) for c in project.chapters(html.parents[1])]


def test_every_chapter_has_a_page(pages, chapter_pages):
    assert chapter_pages
    assert set(chapter_pages) <= set(pages)


def test_the_address_of_the_site_leads_to_the_welcome_page(visit):
    page = visit()
    page.wait_for_url("**/book/welcome.html")
    expect(page.locator("article h1")).to_contain_text("The Book That Checks Its Papers")


class Seen(NamedTuple):
    """What one visit of a page showed."""

    problems: list[str]
    megabytes: float  # of all files it asked for: a server that compresses sends a third of it
    widths: dict[int, int]  # pixels taken, by those of the window
    blurred: dict[int, list[float]]  # stored pixels of figures for each one shown, where they are too few


@pytest.fixture(scope="module")
def seen(visits, html, pages) -> dict[str, Seen]:
    """Every page, visited once: loaded on a desk, then made narrower."""
    found: dict[str, Seen] = {}
    asked: list[str] = []
    with visits() as visit:
        page = visit("search.html")
        desk = page.viewport_size
        page.on("request", lambda r: asked.append(unquote(urlsplit(r.url).path).lstrip("/")))
        for path in pages:
            asked.clear()
            page.problems.clear()
            page.goto(urljoin(page.url, f"/{path}"), wait_until="load")
            page.evaluate("window.MathJax?.startup?.promise")
            sizes = [(html / name).stat().st_size for name in set(asked) if (html / name).is_file()]
            widths, blurred = {}, {}
            for viewport in (desk, TABLET, PHONE):
                page.set_viewport_size(viewport)
                widths[viewport["width"]] = page.evaluate(WIDTH)
                blurred[viewport["width"]] = [x for x in page.evaluate(SHARPNESS) if x < 1.9]
            page.set_viewport_size(desk)
            found[path] = Seen([*page.problems], sum(sizes) / 1e6, widths, blurred)
    return found


def test_every_page_loads_without_error_or_request_to_another_host(seen):
    assert {path: page.problems for path, page in seen.items() if page.problems} == {}


def test_a_reader_who_comes_for_the_first_time_meets_no_error(visit):
    assert visit("book/welcome.html", theme=None).problems == []


def test_pages_weigh_little(seen):
    order = sorted(seen, key=lambda path: seen[path].megabytes)
    median, largest = seen[order[len(order) // 2]].megabytes, seen[order[-1]].megabytes
    print(f"{len(order)} pages: median {median:.1f} MB, largest {largest:.1f} MB ({order[-1]})")
    assert median < 4 and largest < 6


def test_first_content_is_there_within_a_second(visit, chapter_pages):
    paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    for path in ("book/welcome.html", "book/verdicts.html", chapter_pages[0]):
        assert any(visit(path).evaluate(paint) < 1000 for _ in range(8)), path  # other work may delay some


def test_no_page_scrolls_sideways(seen):
    wide = {path: {w: taken for w, taken in page.widths.items() if taken > w} for path, page in seen.items()}
    assert {path: widths for path, widths in wide.items() if widths} == {}


def test_figures_hold_two_pixels_for_each_pixel_of_the_page(seen, chapter_pages):
    assert {path: page.blurred for path, page in seen.items() if any(page.blurred.values())} == {}


def _shows_equations_tables_and_figures(page: Page, theme: str) -> None:
    assert page.locator("html").get_attribute("data-theme") == theme
    expect(page.locator("article mjx-container").first).to_be_visible()
    expect(page.locator("article table").first).to_be_visible()
    assert page.locator("mjx-merror, [data-mjx-error]").count() == 0
    pictures = page.locator("figure.repro-figure img, figure.repro-slider img")
    assert pictures.count() > 0
    for picture in pictures.all():
        picture.scroll_into_view_if_needed()
        expect(picture).to_be_visible()
        assert picture.evaluate("e => e.decode().then(() => e.naturalWidth)") > 100
        assert picture.evaluate("e => getComputedStyle(e).backgroundColor") == "rgb(255, 255, 255)"


def _shows_verdicts_and_folds_solutions(page: Page) -> None:
    expect(page.locator(".chapter-card .verdict").first).to_be_visible()
    folded = page.locator(".admonition.dropdown")
    assert folded.count() >= 3
    content = folded.first.locator("p").last
    expect(content).to_be_hidden()
    folded.first.locator(".admonition-title").click()
    expect(content).to_be_visible()


def _moves_sliders(page: Page) -> None:
    sliders = page.locator("figure.repro-slider")
    assert sliders.count() > 0, "no slider"
    for slider in sliders.all():
        image, control, reading = slider.locator("img"), slider.locator("input"), slider.locator("output")
        before = image.get_attribute("src"), image.get_attribute("alt")
        control.focus()
        page.keyboard.press("ArrowRight")
        after = image.get_attribute("src"), image.get_attribute("alt")
        assert before[0] != after[0] and before[1] != after[1]
        expect(reading).to_have_text(after[1])
        assert control.get_attribute("aria-valuetext") == after[1]
        assert image.evaluate("e => e.decode().then(() => e.naturalWidth)") > 100
        page.keyboard.press("ArrowLeft")
        assert (image.get_attribute("src"), image.get_attribute("alt")) == before
        page.keyboard.press("Home")
        assert control.input_value() == "0"


@pytest.mark.parametrize("chapter", [c.slug for c in project.chapters(ROOT)])
def test_a_chapter_shows_all_it_has_folds_its_solutions_and_moves_its_sliders_without_a_kernel(visit, chapter):
    page = visit(_page(chapter))
    _shows_equations_tables_and_figures(page, "light")
    _shows_verdicts_and_folds_solutions(page)
    _moves_sliders(page)
    assert page.problems == []


def test_chapters_show_equations_tables_and_figures_in_the_dark(visit, chapter_pages):
    """One of each part: the theme is one style sheet for all."""
    for path in {path.rpartition("/")[0]: path for path in chapter_pages}.values():
        _shows_equations_tables_and_figures(visit(path, "dark"), "dark")


@pytest.mark.parametrize("theme", THEMES)
def test_verdicts_have_readable_contrast(visit, theme):
    badges = visit("book/verdicts.html", theme).locator(".verdict:visible")
    assert badges.count() > 0
    assert min(badge.evaluate(CONTRAST) for badge in badges.all()) >= 4.5


def test_without_scripts_a_slider_shows_its_middle_frame_and_the_verdicts_are_there(visit, chapter_pages):
    page = visit(chapter_pages[0], scripts=False)
    slider = page.locator("figure.repro-slider").first
    expect(slider.locator("img")).to_be_visible()
    expect(slider.locator("input")).to_be_hidden()
    control = slider.locator("input")
    assert int(control.get_attribute("value")) == (int(control.get_attribute("max")) + 1) // 2
    board = visit("book/verdicts.html", scripts=False).locator(".verdict-board")
    expect(board.locator("tbody tr").first).to_be_visible()
    expect(board.locator("form")).to_be_hidden()


def test_pages_hold_no_widget_state(html, chapter_pages):
    for path in chapter_pages:
        assert "application/vnd.jupyter" not in (html / path).read_text(encoding="utf-8")


def test_search_finds_the_chapter(visit):
    page = visit("search.html?q=Fisher")
    hit = page.locator("#search-results li a[href*='chapters/fisher/fisher-merging']").first
    expect(hit).to_be_visible(timeout=10_000)
    hit.click()
    expect(page.locator("article h1")).to_contain_text("Fisher")


def test_the_verdicts_can_be_sorted_with_the_keyboard(visit):
    page = visit("book/verdicts.html")
    header = page.locator(".verdict-board th").filter(has_text="Quick")
    for direction in ("ascending", "descending"):
        header.locator("button").focus()
        page.keyboard.press("Enter")
        expect(header).to_have_attribute("aria-sort", direction)
        keys = page.locator("td.board-quick").evaluate_all("cells => cells.map((c) => c.dataset.sort)")
        pairs = list(pairwise(keys))
        assert all(a <= b for a, b in pairs) if direction == "ascending" else all(a >= b for a, b in pairs)
    assert page.locator(".verdict-board th[aria-sort=none]").count() == 5


def test_the_verdicts_can_be_filtered(visit):
    page = visit("book/verdicts.html")
    rows = page.locator(".verdict-board tbody tr")
    total, shown = rows.count(), page.locator(".verdict-board tbody tr:visible")
    status = page.locator(".verdict-board [role=status]")
    verdict = rows.first.get_attribute("data-quick").split(",")[0]
    page.locator("select[name=scale]").select_option("quick")
    page.locator("select[name=verdict]").select_option(verdict)
    expected = page.locator(f".verdict-board tr[data-quick^='{verdict}']").count()
    expect(shown).to_have_count(expected)
    expect(status).to_have_text(f"{expected} of {total} claims shown")
    assert page.locator("td.board-full:visible").count() == 0
    page.get_by_role("button", name="Show all").click()
    expect(shown).to_have_count(total)
    assert page.locator("td.board-full:visible").count() == total
    page.locator("input[name=words]").fill("no claim holds these words")
    expect(shown).to_have_count(0)
    page.locator("input[name=words]").fill("")
    parts = set(rows.evaluate_all("rows => rows.map((row) => row.dataset.part)"))
    expect(page.locator("select[name=part] option")).to_have_count(len(parts) + 1 if len(parts) > 1 else 0)
    for part in parts if len(parts) > 1 else ():
        page.locator("select[name=part]").select_option(part)
        expect(shown).to_have_count(page.locator(f".verdict-board tr[data-part='{part}']").count())


def test_the_verdicts_can_be_filtered_by_method_and_by_data(visit):
    page = visit("book/verdicts.html")
    shown = page.locator(".verdict-board tbody tr:visible")
    listed = project.papers(project.root())["papers"]
    entry = next(e for e in listed if len(e["data"]) > 1)
    claims = {e["slug"]: len(claims_of(e["slug"])) for e in listed}
    page.locator("select[name=family]").select_option(entry["family"])
    expect(shown).to_have_count(sum(claims[e["slug"]] for e in listed if e["family"] == entry["family"]))
    page.get_by_role("button", name="Show all").click()
    page.locator("select[name=data]").select_option(entry["data"][-1])
    expect(shown).to_have_count(sum(claims[e["slug"]] for e in listed if entry["data"][-1] in e["data"]))


def test_the_picture_of_all_verdicts_has_a_square_a_claim_and_the_same_in_words(visit):
    page = visit("book/verdicts.html")
    squares = page.locator(".verdict-picture a.square")
    found = [c for chapter in project.chapters() for c in records.read(chapter.record("quick"))["claims"]]
    expect(squares).to_have_count(len(found))
    for verdict in ("reproduced", "inconclusive", "not reproduced"):
        count = sum(c["verdict"] == verdict for c in found)
        expect(page.locator(f".verdict-picture a.square-{verdict.replace(' ', '-')}")).to_have_count(count)
        words = page.locator(".verdict-picture .visually-hidden").all_text_contents()
        listed = [re.search(rf"(\d+) {verdict}", re.sub("not reproduced", "NOT", w)) for w in words]
        if verdict != "not reproduced":
            assert sum(int(m[1]) for m in listed if m) == count


def test_all_verdicts_can_be_downloaded(html):
    rows = list(csv.DictReader((html / "book" / "verdicts.csv").read_text(encoding="utf-8").splitlines()))
    whole = json.loads((html / "book" / "verdicts.json").read_text(encoding="utf-8"))
    assert [(r["slug"], r["id"], r["scale"]) for r in rows] == [(r["slug"], r["id"], r["scale"]) for r in whole]
    for chapter in project.chapters():
        for claim in records.read(chapter.record("quick"))["claims"]:
            row = next(r for r in rows if (r["slug"], r["id"], r["scale"]) == (chapter.slug, claim["id"], "quick"))
            assert (row["verdict"], float(row["mean"])) == (claim["verdict"], claim["mean"])
            assert (row["text"], int(row["runs"])) == (claim["text"], len(claim["values"]))


def test_chapters_offer_binder_colab_and_the_notebook(html, chapter_pages):
    for path in chapter_pages:
        text = (html / path).read_text(encoding="utf-8")
        notebook = path.replace(".html", ".ipynb")
        assert re.search(rf'href="https://mybinder\.org/v2/gh/[^"]*{re.escape(notebook)}"', text)
        assert re.search(rf'href="https://colab\.research\.google\.com/github/[^"]*{re.escape(notebook)}"', text)
        assert (html / "_sources" / notebook).is_file()
        assert f'_sources/{notebook}"' in text


def test_each_claim_leads_to_the_section_that_decides_it_and_back(visit, parsed, chapter_pages):
    for path in chapter_pages:
        wanted = {f"{kind}-{id}" for id in claims_of(path) for kind in ("claim", "row")}
        assert wanted <= parsed[path].anchors, path
        for anchor in wanted:
            assert parsed[path].links.count(f"#{anchor}") >= 1, (path, anchor)
    page, id = visit(chapter_pages[0]), claims_of(chapter_pages[0])[0]
    page.locator(f"#row-{id} a").first.click()
    section = page.locator("section", has=page.locator(f"#claim-{id}")).last
    expect(section.locator("h2, h3").first).to_be_in_viewport()
    assert f'ch.measure("{id}"' in section.inner_text()
    note = section.locator(".claim-note", has=page.locator(f"a[href='#row-{id}']"))
    expect(note).to_contain_text("Decides")
    note.locator(f"a[href='#row-{id}']").click()
    expect(page.locator(f"#row-{id}").first).to_be_in_viewport()


def test_verdicts_can_be_predicted_and_the_table_opens_after(visit, html, chapter_pages):
    path = chapter_pages[0]
    verdicts = {c["id"]: c["verdict"] for c in records.read(project.find(Path(path).stem).record("quick"))["claims"]}
    page = visit(path)
    table, gate, quiz = (page.locator(f".verdict-{name}") for name in ("table", "gate", "quiz"))
    expect(table).to_be_visible()  # nothing is in the way of a reader who does not play
    expect(gate).to_be_hidden()
    quiz.locator("summary").click()
    expect(quiz.locator("fieldset")).to_have_count(len(verdicts))
    (right, wrong), others = list(verdicts)[:2], {"reproduced": "inconclusive"}
    guesses = {right: verdicts[right], wrong: others.get(verdicts[wrong], "reproduced")}
    for id, verdict in guesses.items():
        quiz.locator(f"input[name='{id}'][value='{verdict}']").check()
    expect(table).to_be_hidden()
    assert page.locator(".claim-note .verdict:visible, .chapter-card .verdict:visible").count() == 0
    expect(gate).to_contain_text(f"2 of {len(verdicts)} verdicts predicted")
    page.reload()  # predictions outlast the page
    expect(table).to_be_hidden()
    assert quiz.locator("input:checked").count() == 2
    gate.get_by_role("button", name="Open the verdict table").click()
    expect(table).to_be_visible()
    expect(gate).to_contain_text("right about 1 of the 2")
    rows = table.locator("tbody tr")
    expect(rows.filter(has_text="as you said")).to_have_count(1)
    expect(rows.filter(has_text=f"you said {guesses[wrong]}")).to_have_count(1)
    quiz.locator("summary").click()  # closed since the page was loaded again
    quiz.get_by_role("button", name="Forget").click()
    assert quiz.locator("input:checked").count() == 0
    expect(table).to_be_visible()
    expect(gate).to_be_hidden()
    assert page.problems == []


def test_each_chapter_has_a_quiz_and_without_scripts_its_table_alone(visit, chapter_pages):
    for path in chapter_pages:
        page = visit(path, scripts=False)
        assert page.locator(".verdict-quiz fieldset").count() == len(claims_of(path)), path
        expect(page.locator(".verdict-quiz")).to_be_hidden()
        expect(page.locator(".verdict-table table")).to_be_visible()


def test_the_map_of_the_book_shows_every_part_and_chapter(html, parsed):
    links = parsed["book/map.html"].links
    for chapter in project.chapters():
        assert links.count(f"../chapters/{chapter.part}/{chapter.slug}.html") >= 2, chapter.slug  # picture and words
        assert links.count(f"../chapters/{chapter.part}/index.html") >= 2


@pytest.mark.parametrize(
    ("query", "slug"), [("K-FAC", "ekfac-influence"), ("inverted hinge", "loku"), ("SRHT", "linf")]
)
def test_search_finds_methods_by_their_names(visit, query, slug):
    page = visit(f"search.html?q={query}")
    expect(page.locator(f"#search-results li a[href*='{slug}']").first).to_be_visible(timeout=10_000)


@pytest.mark.parametrize("symbol", ["Σ", "λ", "τ"])
def test_search_finds_symbols(visit, symbol):
    page = visit(f"search.html?q={symbol}")
    expect(page.locator("#search-results li a[href*='chapters/']").first).to_be_visible(timeout=10_000)


def test_the_verdict_table_leads_to_the_experiments(html, parsed):
    links = set(parsed["book/verdicts.html"].links)
    for chapter in project.chapters():
        for id in claims_of(chapter.slug):
            assert f"../chapters/{chapter.part}/{chapter.slug}.html#claim-{id}" in links


def test_chapters_name_what_to_read_next(html):
    listed = {p["slug"]: p for p in project.papers(project.root())["papers"]}
    for slug, entry in listed.items():
        text = (html / "chapters" / entry["part"] / f"{slug}.html").read_text(encoding="utf-8")
        shown = text[text.index('class="read-next"') :].partition("</nav>")[0]
        for helper in entry.get("after") or {}:
            assert f"{helper}.html" in shown, (slug, helper)
        for other, follower in listed.items():
            if slug in (follower.get("after") or {}):
                assert f"{other}.html" in shown, (slug, other)


class _Links(HTMLParser):
    """Collects a page's links, anchors and pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.unnamed: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take what one element holds."""
        held = dict(attrs)
        self.links += [held[key] for key in ("href", "src") if held.get(key)]
        self.anchors |= {held[key] for key in ("id", "name") if held.get(key)}
        if tag == "img" and not (held.get("alt") or "").strip():
            self.unnamed.append(held.get("src") or "?")


@pytest.fixture(scope="session")
def parsed(html: Path, pages: list[str]) -> dict[str, _Links]:
    """Every page, parsed."""
    found = {}
    for path in pages:
        found[path] = _Links()
        found[path].feed((html / path).read_text(encoding="utf-8"))
    return found


def test_every_internal_link_leads_somewhere(html, parsed):
    broken = []
    for path, page in parsed.items():
        for link in page.links:
            if urlsplit(link).scheme:
                continue
            target, anchor = urldefrag(urljoin(f"/{path}", link))
            file = unquote(urlsplit(target).path).lstrip("/")
            if not (html / file).is_file():
                broken.append(f"{path}: {link}")
            elif anchor and file in parsed and unquote(anchor) not in parsed[file].anchors:
                broken.append(f"{path}: {link} (no such anchor)")
    assert broken == []


def test_every_picture_has_a_text_alternative(parsed):
    assert {path: page.unnamed for path, page in parsed.items() if page.unnamed} == {}


def test_pages_name_no_script_or_style_of_another_host(html, pages):
    pattern = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=["'](?:https?:)?//[^"']*""")
    found = {path: pattern.findall((html / path).read_text(encoding="utf-8")) for path in pages}
    assert {path: hits for path, hits in found.items() if hits} == {}
