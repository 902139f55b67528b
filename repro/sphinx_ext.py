"""What the site adds to Jupyter Book: described figures, kernel-free sliders, tables of stored verdicts."""

from __future__ import annotations

import json
from binascii import a2b_base64
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from myst_nb.core.render import (
    WIDGET_STATE_MIMETYPE,
    WIDGET_VIEW_MIMETYPE,
    MimeData,
    MimeRenderPlugin,
    load_mime_renders,
)
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from repro import board, bookmap, chapterpage, cluster, mutate, policy, report, soak, trust
from reprolib.project import SCALES, ChapterFile, ReproError, chapters, find, papers

logger = logging.getLogger(__name__)


DOWNLOADS = (
    '<p>All of it as <a href="verdicts.csv" download>comma-separated values</a> or '
    '<a href="verdicts.json" download>JSON</a>, with unrounded numbers.</p>'
)


class slider_node(nodes.General, nodes.Element):
    """A slider: its children are one image a frame and a caption."""


class MimeRenderer(MimeRenderPlugin):
    """Draws the outputs of ``reprolib.figure`` and ``reprolib.slider``; leaves every other output to myst-nb."""

    mime_priority_overrides: ClassVar = ()

    @staticmethod
    def handle_mime(renderer: Any, data: MimeData, inline: bool) -> list[nodes.Element] | None:
        """Docutils nodes for one MIME type of an output, or None when it is not ours."""
        words = data.output_metadata.get("reprolib")
        if data.mime_type == WIDGET_VIEW_MIMETYPE:
            if words and words.get("kind") == "slider":
                return [_slider(renderer, data, words)]
            renderer.logger.warning("a widget needs a kernel; use reprolib.slider", subtype="widget", line=data.line)
            return []
        if words and data.mime_type == "image/png" and not inline:
            return [_figure(renderer, data, words)]
        return None


def _anchor(renderer: Any, node: nodes.Element, name: str) -> None:
    """Give a node an id of its own on the page, and a name other pages can refer to."""
    node["names"].append(nodes.fully_normalize_name(name))
    renderer.renderer.document.note_explicit_target(node, node)


def _caption(renderer: Any, text: str, line: int | None) -> nodes.caption:
    """A caption from Markdown."""
    caption = nodes.caption(text, "")
    with renderer.renderer.current_node_context(caption):
        renderer.renderer.nested_render_text(text, line or 0, inline=True)
    return caption


def _image(renderer: Any, content: bytes, alt: str, width: int | None, height: int | None) -> nodes.image:
    """Write a picture beside the site's pages and refer to it; equal pictures are stored once."""
    name = f"{sha256(content).hexdigest()[:20]}.{'webp' if content[8:12] == b'WEBP' else 'png'}"
    image = nodes.image(uri=renderer.write_file([name], content, overwrite=False, exists_ok=True), alt=alt)
    if width and height:
        image["repro_size"] = (int(width), int(height))
        image["width"] = f"{int(width)}px"
    return image


def _figure(renderer: Any, data: MimeData, words: dict[str, Any]) -> nodes.figure:
    """A figure with caption, anchor and text alternative."""
    size = data.output_metadata.get("image/png", {})
    figure = nodes.figure(classes=["repro-figure"])
    figure += _image(renderer, a2b_base64(data.content), words["alt"], size.get("width"), size.get("height"))
    figure += _caption(renderer, words["caption"], data.line)
    _anchor(renderer, figure, words["name"])
    return figure


def _frames(state: dict[str, Any], model_id: str) -> list[bytes]:
    """The pictures below a widget, in order, from the widget state stored in a notebook."""
    model = state[model_id]
    if model["model_name"] == "ImageModel":
        return [a2b_base64(b["data"]) for b in model.get("buffers", []) if b["path"] == ["value"]]
    children = model["state"].get("children", [])
    return [frame for child in children for frame in _frames(state, child.removeprefix("IPY_MODEL_"))]


def _slider(renderer: Any, data: MimeData, words: dict[str, Any]) -> nodes.Element:
    """A slider whose frames come from the notebook's widget state."""
    widgets = renderer.renderer.nb_client.nb_metadata.get("widgets", {})
    state = widgets.get(WIDGET_STATE_MIMETYPE, {}).get("state", {})
    view: Any = data.content if isinstance(data.content, dict) else json.loads(data.string)
    frames = _frames(state, view["model_id"]) if view["model_id"] in state else []
    if len(frames) != len(words["labels"]):
        text = f"the slider {words['name']!r} has {len(words['labels'])} labels and {len(frames)} stored frames; run it"
        renderer.logger.warning(text, subtype="widget", line=data.line)
        return nodes.container()
    node = slider_node(slider=words)
    size = words.get("width"), words.get("height")
    for label, frame in zip(words["labels"], frames, strict=True):
        node += _image(renderer, frame, label, *size)
    node += _caption(renderer, words["caption"], data.line)
    return node


def visit_slider(self: Any, node: slider_node) -> None:
    """Write the slider: the middle frame is there without JavaScript, the control appears with it."""
    words, start = node["slider"], node["slider"]["start"]
    pictures = list(node.findall(nodes.image))
    files = [self.builder.imgpath + "/" + self.builder.images[p["uri"]] for p in pictures]
    frames = [{"src": src, "label": p["alt"]} for src, p in zip(files, pictures, strict=True)]
    label, name = escape(words["labels"][start]), escape(words["name"])
    width, height = pictures[start].get("repro_size", (None, None))
    size = f' width="{width}" height="{height}"' if width else ""
    self.body.append(
        f'<figure class="repro-slider" aria-label="{escape(words["alt"])}" data-frames="{escape(json.dumps(frames))}">'
        f'<img src="{escape(files[start])}" alt="{label}"{size}>'
        f'<div class="repro-slider-control" hidden><label>{name} <input type="range" min="0" max="{len(files) - 1}" '
        f'step="1" value="{start}" autocomplete="off" aria-valuetext="{label}"></label>'
        f'<output aria-live="polite">{label}</output></div><figcaption>'
    )
    for child in node.children[-1].children:
        child.walkabout(self)
    self.body.append("</figcaption></figure>\n")
    raise nodes.SkipNode


def _depend(env: Any, files: list[ChapterFile], page: str) -> None:
    """Have a page rebuilt when a notebook or record that it shows changes; a new one builds the whole site anew."""
    for chapter in files:
        for path in (chapter.path, *(chapter.record(scale) for scale in SCALES)):
            if path.is_file():  # Sphinx would read a page with a missing dependency again at each build
                env.dependencies[page].add(str(path))


class Verdicts(SphinxDirective):
    """``{verdicts}``: the board of all chapters, of those of a part, or of the one named."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        root = Path(self.env.srcdir)
        try:
            files = chapters(root)
            if self.arguments:
                named = self.arguments[0]
                files = [c for c in files if c.part == named] or [find(named, root)]
            _depend(self.env, files, self.env.docname)
            html = board.board(files, self.env.docname, root, controls=len(files) > 1)
            if not self.arguments:
                html = board.summary(files) + board.picture(files, self.env.docname, root) + DOWNLOADS + html
        except ReproError as error:
            raise self.error(str(error)) from error
        return [nodes.raw("", html, format="html")]


class PartMap(SphinxDirective):
    """``{map} part``: which chapter of a part helps for which, as picture and list; ``{map}``: the same of parts."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        root = Path(self.env.srcdir)
        self.env.note_dependency(str(root / "book" / "papers.yml"))
        try:
            files, page = chapters(root), self.env.docname
            part = self.arguments[0] if self.arguments else None
            _depend(self.env, [c for c in files if part in (None, c.part)], page)
            html = bookmap.part_map(part, files, page, root) if part else bookmap.book_map(files, page, root)
        except ReproError as error:
            raise self.error(str(error)) from error
        return [nodes.raw("", html, format="html")]


class Benchmark(SphinxDirective):
    """``{benchmark} name``: the times that ``benchmarks/name.py`` measured last."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        path = Path(self.env.srcdir) / "benchmarks" / f"{self.arguments[0]}.json"
        self.env.note_dependency(str(path))
        try:
            return [nodes.raw("", board.benchmark(path), format="html")]
        except ReproError as error:
            raise self.error(str(error)) from error


class Told(SphinxDirective):
    """``{mutants}``, ``{soak}``, ``{cluster-cost}``: a table made from kept reports and records of all chapters."""

    def run(self) -> list[nodes.Node]:
        root = Path(self.env.srcdir)
        files, page = chapters(root), self.env.docname
        _depend(self.env, files, page)
        paths = (mutate.report, mutate.judged_path, mutate.tests_path)
        kept = [soak.path(root), *(path(chapter) for path in paths for chapter in files)]
        self.env.dependencies[page] |= {str(path) for path in kept if path.is_file()}
        try:
            if self.name == "mutants":
                html = mutate.table(files)
            else:
                html = soak.table(files, root) if self.name == "soak" else cluster.cost(root)
        except ReproError as error:
            raise self.error(str(error)) from error
        return [nodes.raw("", html, format="html")]


def fill_in_repository(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace ``{{ repository }}`` and ``{{ branch }}`` on the book's own pages by what _config.yml says."""
    if docname.startswith("book/"):
        options = app.config.html_theme_options
        source[0] = source[0].replace("{{ repository }}", options["repository_url"])
        source[0] = source[0].replace("{{ branch }}", options["repository_branch"])


def restrain(_: Sphinx, config: Config) -> None:
    """Show HTML in Markdown as text, and keep MathJax from making links."""
    config.myst_disable_syntax = [*config.myst_disable_syntax, "html_block", "html_inline"]
    config.mathjax3_config = {**(config.mathjax3_config or {}), "tex": policy.TEX}


def _is_notebook(app: Sphinx, docname: str) -> bool:
    return app.env.doc2path(docname).endswith(".ipynb")


def read_notebook(app: Sphinx, docname: str, source: list[str]) -> None:
    """Take words and pictures from a notebook, and nothing that could run."""
    if _is_notebook(app, docname):
        source[0], said = trust.only_words_and_pictures(source[0])
        _warn(docname, said)


def keep_plain(app: Sphinx, doctree: nodes.document) -> None:
    """Turn what is left on a notebook's page of HTML, files and strange links into text."""
    if _is_notebook(app, app.env.docname):
        _warn(app.env.docname, trust.make_plain(doctree, app.env.docname))


def _warn(docname: str, said: list[str]) -> None:
    for sentence in said:
        logger.warning(sentence, location=docname, type="reprolib", subtype="trust")


def finish_page(app: Sphinx, doctree: nodes.document) -> None:
    """Finish the page of a chapter, keep widget state out of pages, and have MathJax come where tables hold math."""
    page = app.env.docname
    doctree.get("nb_js_files", {}).pop("ipywidgets_state", None)
    getattr(app.env, "nb_metadata", {}).get(page, {}).get("js_files", {}).pop("ipywidgets_state", None)
    notebook = Path(app.srcdir) / f"{page}.ipynb"
    if page.startswith("chapters/") and notebook.is_file():  # the opener of a part is no notebook
        try:
            _finish_chapter(app, doctree, ChapterFile(notebook.stem, notebook.parent.name, notebook))
        except ReproError as error:
            logger.warning(str(error), location=page, type="reprolib", subtype="record")
    chapterpage.align_numbers(doctree)
    if any('class="math' in raw.astext() for raw in doctree.findall(nodes.raw)):
        app.env.get_domain("math").data["has_equations"][page] = True


def _finish_chapter(app: Sphinx, doctree: nodes.document, chapter: ChapterFile) -> None:
    """Card, ways between claims and experiments, and what to read next."""
    page, root = app.env.docname, Path(app.srcdir)
    _depend(app.env, [chapter], page)
    app.env.dependencies[page].add(str(root / "book" / "papers.yml"))
    top = next(iter(doctree.findall(nodes.section)))
    if record := board.stored(chapter, "quick").record:
        chapterpage.insert_quiz(doctree, chapter.slug, record["claims"])
        chapterpage.link_claims(doctree, {c["id"]: c["verdict"] for c in record["claims"]})
    chapterpage.head(top, chapterpage.card(chapter, page))
    entries = {p["slug"]: p for p in papers(root)["papers"]}
    order = chapterpage.book_order((root / "_toc.yml").read_text(encoding="utf-8"))
    follow = chapterpage.read_next(chapter, entries, chapters(root), order)
    top += nodes.raw("", follow, format="html")


def drop_unused_mathjax(app: Sphinx, pagename: str, *_: Any) -> None:
    """Take MathJax (1 MB) off pages without math that only list pages with math, such as the first one."""
    if not app.env.get_domain("math").data["has_equations"].get(pagename):
        scripts = app.builder.script_files  # type: ignore[attr-defined]
        scripts[:] = [js for js in scripts if js.filename is None or "mathjax" not in str(js.filename)]


def escape_title(_app: Sphinx, _page: str, _template: str, context: dict[str, Any], _doctree: object) -> None:
    """Escape the title that the theme writes as it is into what it prints."""
    context["pagetitle"] = escape(context.get("pagetitle", ""))


def write_downloads(app: Sphinx, failed: Exception | None) -> None:
    """Put all verdicts beside the page that shows them, as CSV and JSON."""
    folder = Path(app.outdir) / "book"
    if failed or app.builder.format != "html" or not folder.is_dir():
        return
    files = chapters(Path(app.srcdir))
    (folder / "verdicts.csv").write_text(report.as_csv(files), encoding="utf-8")
    rows = json.dumps(report.as_json(files), indent=1, ensure_ascii=False)
    (folder / "verdicts.json").write_text(rows, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything with Sphinx."""
    if MimeRenderer not in load_mime_renders():  # an installation older than this module lacks the entry point
        load_mime_renders().append(MimeRenderer)
    app.add_node(slider_node, html=(visit_slider, None))
    app.add_directive("verdicts", Verdicts)
    app.add_directive("map", PartMap)
    app.add_directive("benchmark", Benchmark)
    for name in ("mutants", "soak", "cluster-cost"):
        app.add_directive(name, Told)
    app.add_js_file("controls.js", loading_method="defer")
    app.connect("config-inited", restrain)
    app.connect("source-read", fill_in_repository)
    app.connect("source-read", read_notebook)
    app.connect("doctree-read", keep_plain, priority=50)
    app.connect("doctree-read", finish_page, priority=100)
    app.connect("build-finished", write_downloads)
    app.connect("html-page-context", drop_unused_mathjax, priority=900)
    app.connect("html-page-context", escape_title, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
