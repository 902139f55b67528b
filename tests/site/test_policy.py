"""What the site trusts: hostile notebooks and records do nothing on any page, and pages say which scripts may run."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from docutils import nodes
from docutils.utils import new_document
from leaks import told
from playwright.sync_api import Browser, Page, expect
from sphinx import addnodes
from toybook import make_checkout

from repro import assets, handout, policy, site, slides, trust
from repro.assets import SiteError
from reprolib import notebook, project, records
from reprolib.chapter import Chapter
from reprolib.claims import above
from reprolib.plot import png

SCRIPT = "<script>window.pwned=1</script>"
IMAGE = '"><img src=x onerror="window.pwned=1">'
QUOTE = "' onmouseover='window.pwned=1' x='"
LINK = "[a link](javascript:window.pwned=1)"
TEX = r"$\href{javascript:window.pwned=1}{a}$ and $\mmlToken{mi}[href='javascript:window.pwned=1']{b}$ "
TEX += r"and $\require{html}\href{javascript:window.pwned=1}{c}$"
EVIL = f"Evil {SCRIPT} {IMAGE} {QUOTE}"
MARKDOWN = f"{EVIL} {LINK} {TEX} <a href='javascript:window.pwned=1' onclick='window.pwned=1'>b</a>"
BLOCKS = f"""
<div onclick="window.pwned=1">{SCRIPT}</div>

```{{raw}} html
{SCRIPT}
```

:::{{eval-rst}}
.. raw:: html

   {SCRIPT}
:::

```{{include}} ../../secret.txt
```

![remote](https://example.org/pixel.png) {{download}}`../../secret.txt` [x]: <javascript:window.pwned=1>

```{{admonition}} {EVIL}
:class: x" onclick="window.pwned=1
{MARKDOWN}
```
"""
WIDGET = "application/vnd.jupyter.widget-view+json"
WRONG = """() => [...document.querySelectorAll("*")].filter((e) => e.matches("article script, img[src='x']")
    || [...e.attributes].some((a) => a.name.startsWith("on") || /^\\s*javascript:/i.test(a.value)))
    .map((e) => e.outerHTML.slice(0, 200))"""
SEEN = "MathJax.startup.promise.then(() => new Promise((then) => setTimeout(then, 100)))"


def _picture() -> str:
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(2, 1.5))
    ax.plot([0, 1])
    return base64.b64encode(png(fig)).decode()


def _shown(data: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {"output_type": "display_data", "data": data, "metadata": metadata}


def _outputs(picture: str) -> list[dict[str, Any]]:
    """Every kind of output, each with something in it that would run."""
    alone = {
        "text/html": SCRIPT,
        "image/svg+xml": f'<svg xmlns="http://www.w3.org/2000/svg" onload="window.pwned=1">{SCRIPT}</svg>',
        "application/javascript": "window.pwned=1",
        "text/latex": TEX,
        "text/markdown": f"{MARKDOWN}\n{BLOCKS}",
        "text/plain": EVIL,
    }
    words = {"name": EVIL, "caption": MARKDOWN, "alt": EVIL * 2}
    sliding = {**words, "kind": "slider", "labels": [f"{EVIL} {k}" for k in range(3)], "start": 1}
    view = {"version_major": 2, "version_minor": 0, "model_id": "box"}
    return [
        *(_shown({kind: text}) for kind, text in alone.items()),
        _shown(alone),
        _shown({"image/png": picture, "text/plain": EVIL}, reprolib={**words, "kind": "figure"}),
        _shown({WIDGET: view, "text/plain": EVIL}, reprolib=sliding),
        {"output_type": "stream", "name": "stdout", "text": EVIL},
        {"output_type": "error", "ename": EVIL, "evalue": EVIL, "traceback": [EVIL]},
    ]


def _widgets(picture: str) -> dict[str, Any]:
    """The stored state of a slider of three frames."""
    frame = {"model_name": "ImageModel", "state": {}, "buffers": [{"path": ["value"], "data": picture}]}
    box = {"model_name": "VBoxModel", "state": {"children": [f"IPY_MODEL_{k}" for k in range(3)]}}
    return {"application/vnd.jupyter.widget-state+json": {"state": {"box": box, **{str(k): frame for k in range(3)}}}}


def _write_chapter(root: Path, slug: str, table: str) -> project.ChapterFile:
    """A chapter whose every field is hostile: prose, outputs, tags, and settings that would have it executed."""
    chapter = make_checkout(root, slug=slug)
    nb, picture = notebook.read(chapter.path), _picture()
    title, *code = nb["cells"]
    title["source"] = (
        f"# Title {EVIL}\n\n{MARKDOWN}\n\n## Section {IMAGE}\n\n{BLOCKS}\n\n## Section nine <img src=x>\n\nWords.\n"
    )
    raw = {"cell_type": "raw", "id": "raw", "metadata": {"raw_mimetype": "text/html"}, "source": SCRIPT}
    for cell in code:
        cell["metadata"] = {"tags": [*notebook.tags(cell), IMAGE], "mystnb": {"figure": {"caption": MARKDOWN}}}
        if "ch.claims_table()" in notebook.source(cell) or "ch.verdicts()" in notebook.source(cell):
            cell["outputs"] = [_shown({"text/markdown": table, "text/plain": table})]
    code[0]["source"] = "open('executed', 'w').close()"
    code[0]["outputs"] = _outputs(picture)
    nb["cells"] = [title, raw, *code]
    nb["metadata"] |= {"widgets": _widgets(picture), "mystnb": {"execution_mode": "force"}}
    nb["metadata"]["myst"] = {"url_schemes": ["javascript", "http"], "enable_extensions": ["html_image"]}
    nb["metadata"]["html_meta"] = {EVIL: EVIL}
    chapter.path.write_text(json.dumps(nb), encoding="utf-8")
    return chapter


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a built site whose notebooks, records and list of papers all try to run a script."""
    root, real = tmp_path_factory.mktemp("hostile"), project.root()
    rows = "".join(f"\n| **{id}** | {MARKDOWN} | {EVIL} | {EVIL} |" for id in ("c1", "c2", "c3"))
    table = f"|  | claim | in the paper | reproduced if |\n| :-- | :-- | :-- | :-- |{rows}"
    listed: list[dict[str, Any]] = []
    for slug in ("first", "second"):
        chapter = _write_chapter(root, slug, table)
        _write_record(chapter)
        entry = {"slug": slug, "part": "part", "title": EVIL, "short": EVIL, "authors": [f"A {IMAGE}", "B"]}
        entry |= {"year": IMAGE, "family": EVIL, "data": [IMAGE], "after": {e["slug"]: EVIL + TEX for e in listed}}
        listed.append(entry)
    (root / "secret.txt").write_text("the builder's own words")
    pages = {
        "book/welcome.md": "# Welcome\n\n## How to read a verdict\n\nWords.\n",
        "book/verdicts.md": "# Verdicts\n\n```{verdicts}\n```\n",
        "book/map.md": "# Map\n\n```{map}\n```\n\n```{map} part\n```\n",
        "chapters/part/index.md": "# Part\n\n```{map} part\n```\n\n```{verdicts} part\n```\n",
        "book/papers.yml": json.dumps({"parts": [{"id": "part", "title": EVIL}], "papers": listed}),
        "book/references.bib": "",
        "_toc.yml": "format: jb-book\nroot: book/welcome\nchapters:\n"
        + "".join(f"- file: {page}\n" for page in ("book/verdicts", "book/map", "chapters/part/index"))
        + "".join(f"- file: chapters/part/{e['slug']}\n" for e in listed),
    }
    for name, text in pages.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    shutil.copy(real / "_config.yml", root)
    shutil.copytree(real / "book" / "_static", root / "book" / "_static")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(real / "book" / name, root / "book")
    assets.install(real)
    shutil.copytree(real / "_build" / "static", root / "_build" / "static")
    return site.build(root, strict=False).parent


def _write_record(chapter: project.ChapterFile) -> None:
    """A record with a valid digest whose texts are hostile."""
    ch = Chapter(chapter.slug)
    for id in ("c1", "c2", f"c3{IMAGE}"):
        ch.claim(id, f"{EVIL} {TEX}", paper=f"{EVIL} {TEX}", criterion=above(0), unit=EVIL)
    for id, values in zip(ch.claims, ([1.0, 2.0, 3.0], [-1.0, 1.0, 0.5], [-1.0, -2.0, -3.0]), strict=True):
        ch.measure(id, values)
    record = ch._report() | {"device": f"cpu: {EVIL}", "precision": EVIL, "versions": {EVIL: EVIL}, "runner": EVIL}
    record |= {"scale": "quick", "code_hash": EVIL, "date": "2026-01-02T03:04:05+00:00", "wall_seconds": 1.5}
    for claim in record["claims"]:
        claim["criterion"]["text"] = EVIL
    records.write(chapter.record("quick"), record | {"beside": EVIL})


@pytest.fixture(scope="module")
def hostile_address(hostile: Path, served: Callable[[Path], AbstractContextManager[str]]) -> Iterator[str]:
    with served(hostile.parents[1]) as address:
        yield address


def _watched(browser: Browser, bypass_csp: bool) -> Page:
    """A page of a browser of its own; what it meets is listed in ``page.problems``."""
    page = browser.new_context(bypass_csp=bypass_csp).new_page()
    problems = page.problems = []
    page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda r: r.url.startswith(("http://127.", "data:", "file:")) or problems.append(r.url))
    page.on("response", lambda r: problems.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
    return page


def _nothing_ran(page: Page) -> None:
    page.wait_for_load_state()
    page.evaluate(f"window.MathJax?.startup && {SEEN}")
    assert page.evaluate(WRONG) == []
    assert page.evaluate("'pwned' in window") is False
    assert page.problems == []


@pytest.mark.parametrize("bypass", [True, False], ids=["escaping-alone", "with-its-policy"])
def test_hostile_texts_do_nothing_on_any_kind_of_page(browser, hostile, hostile_address, bypass):
    """Escaping and leaving out suffice without the policy; with it there is nothing for it to stop."""
    page = _watched(browser, bypass)
    for name in ("book/welcome", "book/map", "chapters/part/index"):
        page.goto(f"{hostile_address}{name}.html")
        _nothing_ran(page)
    for slug in ("first", "second"):
        page.goto(f"{hostile_address}chapters/part/{slug}.html")
        page.locator("details.verdict-quiz summary").click()
        page.locator("details.verdict-quiz input[value='reproduced']").first.check()
        page.get_by_role("button", name="Open the verdict table").click()
        control = page.locator("figure.repro-slider input")
        control.focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator("figure.repro-slider output")).to_have_text(f"{EVIL} 2")
        expect(page.locator("figure.repro-slider img")).to_have_attribute("alt", f"{EVIL} 2")
        _nothing_ran(page)
    page.goto(f"{hostile_address}book/verdicts.html")
    page.locator(".verdict-board th button").nth(1).click()
    page.locator("select[name=data]").select_option(index=1)
    page.locator("input[name=words]").fill("evil")
    expect(page.locator(".verdict-board tbody tr:visible").first).to_contain_text(SCRIPT)
    _nothing_ran(page)
    for query in ("Section nine", "Title Evil", "Evil"):  # the first is half of its title, so that it is shown
        page.goto(f"{hostile_address}search.html?q={query}")
        expect(page.locator("#search-results li").first).to_be_visible()
        expect(page.locator("#search-results")).to_contain_text("Search finished")
        _nothing_ran(page)
    page.context.close()


def test_a_hostile_notebook_is_not_executed_and_reads_no_file(hostile):
    root = hostile.parents[1]
    assert [p for p in root.rglob("executed")] == []
    texts = [p for p in hostile.rglob("*") if p.suffix in (".html", ".js", ".txt", ".json", ".csv")]
    assert [p for p in texts if "the builder's own words" in p.read_text(encoding="utf-8")] == []
    assert not (hostile / "_downloads").exists()
    log = (root / "_build" / "site.log").read_text(encoding="utf-8")
    for said in ("directive 'raw'", "'include'", "neither prose nor code", "text/html alone", "is not the book's"):
        assert said in log, said


def test_hostile_texts_do_nothing_in_slides_and_handouts(browser, tmp_path):
    cells = [f"# T {EVIL}\n\n{MARKDOWN}", f"## In one minute\n\n{MARKDOWN}{BLOCKS}\n```mermaid\n{SCRIPT}\n```"]
    cells += [f"## The idea\n\n{MARKDOWN}", f"## Notation\n\n{MARKDOWN}"]
    nb = {"metadata": {"title": EVIL}, "nbformat": 4, "nbformat_minor": 5}
    nb["cells"] = [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": text} for text in cells]
    table = f"| | claim | paper | if |\n|---|---|---|---|\n| c1 | {MARKDOWN} | {EVIL} | {EVIL} |"
    for source, outputs in {"ch.claims_table()": [_shown({"text/markdown": table})], "1": _outputs(_picture())}.items():
        nb["cells"].append({"cell_type": "code", "id": "b", "metadata": {}, "source": source, "outputs": outputs})
    assets.for_course(project.root(), tmp_path / "assets")
    for kind, make in {"slides": slides.as_html, "handouts": handout.as_html}.items():
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "x.html").write_text(make(nb, "x"), encoding="utf-8")
        page = _watched(browser, bypass_csp=True)
        page.goto((tmp_path / kind / "x.html").as_uri())
        expect(page.locator("body")).to_contain_text(SCRIPT)
        _nothing_ran(page)
        page.context.close()


def test_a_handout_has_a_policy_that_lets_its_equations_through(browser, tmp_path):
    cells = [f"## {heading}\n\nAn equation: $x^2$." for heading in ("In one minute", "The idea", "Notation")]
    nb = {"metadata": {}, "cells": [{"cell_type": "markdown", "metadata": {}, "source": "# T\n\nBell"}]}
    nb["cells"] += [{"cell_type": "markdown", "metadata": {}, "source": text} for text in cells]
    table = "| | claim | paper | if |\n|---|---|---|---|\n| c1 | $y$ | a | b |"
    shown = [_shown({"text/markdown": table})]
    nb["cells"] += [{"cell_type": "code", "metadata": {}, "source": "ch.claims_table()", "outputs": shown}]
    assets.for_course(project.root(), tmp_path / "assets")
    (tmp_path / "handouts").mkdir()
    (tmp_path / "handouts" / "x.html").write_text(handout.as_html(nb, "x"), encoding="utf-8")
    page = _watched(browser, bypass_csp=False)
    page.goto((tmp_path / "handouts" / "x.html").as_uri())
    expect(page.locator("html[data-ready]")).to_be_attached()
    expect(page.locator("mjx-container")).to_have_count(4)
    assert "Content-Security-Policy" in page.content() and page.problems == []
    page.context.close()


INJECT = """([tag, attributes, text]) => {
    const element = document.createElement(tag);
    Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
    element.append(text);
    document.body.append(element);
    element.click();
}"""
INJECTIONS: dict[str, tuple[str, dict[str, str], str]] = {
    "an attribute": ("img", {"onerror": "window.pwned=1", "src": "data:,"}, ""),
    "an element": ("script", {}, "window.pwned=1"),
    "another host": ("script", {"src": "http://localhost:9/"}, ""),
    "a link": ("a", {"href": "javascript:window.pwned=1"}, "x"),
    "a frame": ("iframe", {"src": "welcome.html"}, ""),
}


@pytest.mark.parametrize("disk", [False, True], ids=["served", "from-the-disk"])
@pytest.mark.parametrize("way", INJECTIONS)
def test_what_would_get_past_the_escaping_is_stopped_by_the_policy_and_noticed(browser, html, address, way, disk):
    page = _watched(browser, bypass_csp=False)
    page.goto(f"{html.as_uri() if disk else address.rstrip('/')}/book/run.html")
    assert page.problems == []
    with page.expect_console_message(lambda m: "Content Security Policy" in m.text):
        page.evaluate(INJECT, INJECTIONS[way])
    assert page.evaluate("'pwned' in window") is False
    page.context.close()


def test_every_page_names_the_scripts_that_may_run_before_any_runs(html, pages):
    for path in ("index.html", *pages):
        text = (html / path).read_text(encoding="utf-8")
        (found,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)"', text)
        rules = dict(rule.split(" ", 1) for rule in found.split("; "))
        assert rules["default-src"] == rules["object-src"] == rules["base-uri"] == "'none'"
        assert not re.search(r"unsafe|http|\*|data:", rules["script-src"])
        assert text.index("Content-Security-Policy") < text.find("<script") or "<script" not in text
        assert text.encode().find(b"charset=") < 1024


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_that_a_page_does_it_still_does_under_its_policy(visit, theme):
    page = visit("chapters/fisher/fisher-merging.html", theme)
    page.evaluate(SEEN)
    expect(page.locator("article mjx-container").first).to_be_visible()
    page.evaluate(
        "window.print = () => { window.printed = true }; window.toggleFullScreen = () => { window.full = true }"
    )
    page.locator("button[data-does=fullscreen]").click()
    page.locator("button[data-does=print]").dispatch_event("click")
    assert page.evaluate("[window.printed, window.full]") == [True, True]
    page.locator("div.highlight").first.hover()
    page.locator("button.copybtn").first.click()
    before = page.locator("html").get_attribute("data-theme")
    for _ in range(3):
        page.locator("button.theme-switch-button").first.click()
    assert page.locator("html").get_attribute("data-theme") == before
    page.keyboard.press("Control+k")
    page.locator("input[type=search]:visible").first.fill("Fisher")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=Fisher*")
    expect(page.locator("#search-results li").first).to_be_visible(timeout=10_000)
    assert page.problems == []


def test_a_search_typed_on_a_page_from_the_disk_leads_to_its_results(browser, html):
    page = _watched(browser, bypass_csp=False)
    page.goto(f"{html.as_uri()}/book/verdicts.html")
    page.keyboard.press("Control+k")
    page.locator("input[type=search]:visible").first.fill("Fisher")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=Fisher*")
    expect(page.locator("#search-results li").first).to_be_visible(timeout=10_000)
    assert [p for p in page.problems if "Content Security Policy" in p] == []  # the archive's copy fetches no summaries
    page.context.close()


def test_the_site_tells_no_place_no_secret_and_no_address(html):
    paths = [p for p in html.rglob("*.html") if "_static" not in p.parts]
    assert len(paths) > 20
    assert [leak for p in paths for leak in told(p.relative_to(html).as_posix(), p.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("held", "named"),
    [
        ("<script>steal()</script>", "<script>steal()"),
        ("<script type='module'>steal()</script>", "<script>steal()"),
        ("<script>DOCUMENTATION_OPTIONS.pagename = ''; steal()</script>", "<script>DOCUMENTATION"),
        ("<script>window.MathJax = {a: steal()}</script>", "<script>window.MathJax"),
        ('<p ONCLICK="steal()">', '<p onclick="steal()">'),
        ('<a href=" java\nscript:steal()">', "<a href="),
        ('<svg><a xlink:href="javascript:steal()">', "<a xlink:href="),
        ('<iframe src="x.html">', "<iframe>"),
        ('<base href="http://localhost/">', "<base>"),
    ],
)
def test_a_page_with_what_its_policy_would_stop_is_not_published(tmp_path, held, named):
    (tmp_path / "page.html").write_text(f'<html><head><meta charset="utf-8" /></head>{held}</html>', encoding="utf-8")
    with pytest.raises(SiteError, match=f"page page.html holds what .*{re.escape(named)}"):
        policy.protect_site(tmp_path)


def test_a_page_that_has_its_policy_is_left_alone_and_only_what_it_says_itself_counts():
    page = "<head><meta charset=\"utf-8\" /></head><script>let toggleHintShow = 'Show';</script><p>Words</p>"
    made = policy.protect(page, "page")
    assert made.startswith('<head><meta charset="utf-8" /><meta http-equiv="Content-Security-Policy"')
    assert policy.protect(made, "page") == made
    assert made.count("'sha256-") == 1
    false = '<p><meta http-equiv="Content-Security-Policy" content="script-src *" /></p>'
    assert policy.protect(page + false, "page").count("Content-Security-Policy") == 2


def test_titles_in_the_index_of_the_search_are_escaped_once(tmp_path):
    path = tmp_path / "searchindex.js"
    index = {"alltitles": {"A & <b>B</b>": [[0, "a"]], "A &amp; &lt;b&gt;B&lt;/b&gt;": [[1, "b"]], "C": [[2, "c"]]}}
    path.write_text(f"Search.setIndex({json.dumps(index)})")
    for _ in range(2):
        policy.escape_titles(tmp_path)
        found = json.loads(path.read_text().removeprefix("Search.setIndex(").removesuffix(")"))
        assert found == {"alltitles": {"A &amp; &lt;b&gt;B&lt;/b&gt;": [[0, "a"], [1, "b"]], "C": [[2, "c"]]}}


def test_of_an_output_its_plain_forms_are_kept_and_a_chapter_as_it_is_loses_nothing():
    nb = {"cells": [], "metadata": {"myst": 1, "mystnb": 1, "lesson": {}, "kernelspec": {"name": "python3"}}}
    shown = [_shown({"text/html": "<b>", "text/plain": "b"}, isolated=True), _shown({"text/html": "<b>"})]
    nb["cells"] = [{"cell_type": "code", "metadata": {"tags": ["a"], "mystnb": 1}, "source": "1", "outputs": shown}]
    text, said = trust.only_words_and_pictures(json.dumps(nb))
    made = json.loads(text)
    assert made["metadata"] == {"kernelspec": {"name": "python3"}}
    assert made["cells"][0]["metadata"] == {"tags": ["a"]}
    assert made["cells"][0]["outputs"] == [_shown({"text/plain": "b"}), _shown({})]
    assert said == ["cell 0 shows text/html alone, which is left out: use say, table or figure"]
    for chapter in project.notebooks():
        whole = notebook.read(chapter.path)
        text, said = trust.only_words_and_pictures(json.dumps(whole))
        assert said == []
        for before, after in zip(whole["cells"], json.loads(text)["cells"], strict=True):
            assert notebook.source(before) == notebook.source(after)
            assert [o.get("data", {}).keys() for o in before.get("outputs", [])] == [
                o.get("data", {}).keys() for o in after.get("outputs", [])
            ]


@pytest.mark.parametrize("fence", ["```{raw} html", "~~~ {include} x", "::::{eval-rst}", "> ```{code-cell}"])
def test_a_directive_that_could_run_or_read_becomes_text(fence):
    cell = {"cell_type": "markdown", "metadata": {}, "source": f"{fence}\n```{{note}}\n"}
    text, said = trust.only_words_and_pictures(json.dumps({"metadata": {}, "cells": [cell]}))
    assert "{note}" in text and text.count("{note}") == 1
    assert len(said) == 1 and "which notebooks may not use" in said[0]
    assert not re.search(r"\{(raw|include|eval-rst|code-cell)\}", text)


def test_on_a_page_raw_nodes_files_and_strange_links_become_text():
    page = new_document("page")
    page += nodes.raw("", SCRIPT, format="html", classes=["x"])
    line = nodes.paragraph("", "", nodes.raw("", SCRIPT, format="html"))
    line += addnodes.download_reference("", "", nodes.literal("", "file"), reftarget="../../x")
    for target in ("JAVA\nSCRIPT:x()", "data:text/html,x", "https://a.org", "page.html#a:b", "#a"):
        line += nodes.reference("", target, refuri=target)
    for uri in ("https://a.org/x.png", "/../x.png", "../../../x.png", "../x.png", "/_build/x.png"):
        line += nodes.image(uri=uri, alt="words")
    page += line
    said = trust.make_plain(page, "chapters/part/toy")
    assert len(said) == 2 + 1 + 3 + 2
    assert list(page.findall(nodes.raw)) == list(page.findall(addnodes.download_reference)) == []
    assert [link["refuri"] for link in page.findall(nodes.reference)] == ["https://a.org", "page.html#a:b", "#a"]
    assert [image["uri"] for image in page.findall(nodes.image)] == ["../x.png", "/_build/x.png"]
    texts = list(page.findall(nodes.Text))
    assert (texts.count(SCRIPT), texts.count("words")) == (2, 3)
