"""The Content-Security-Policy of the site's pages: which scripts run is decided here, not by what a page shows."""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from collections.abc import Iterable
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from repro.assets import SiteError

RULES = {
    "default-src": "'none'",
    "script-src": "'self'",  # files of the site; hashes of the theme's own lines follow
    "style-src": "'self' 'unsafe-inline'",  # MathJax writes the style of each equation into the page
    "img-src": "'self' data:",
    "font-src": "'self'",
    "connect-src": "'self'",  # the search reads the pages it found
    "object-src": "'none'",
    "base-uri": "'none'",
    "form-action": "'self'",
}
# The scripts that Sphinx and the theme write into pages, blanks aside. A page with any other is not published.
SCRIPTS = {
    'document.documentElement.dataset.mode = localStorage.getItem("mode") || "auto"; '
    'document.documentElement.dataset.theme = localStorage.getItem("theme") || "auto";',
    "let toggleHintShow = 'Show';",
    "let toggleHintHide = 'Hide';",
    "let toggleOpenOnPrint = 'true';",
    "var togglebuttonSelector = '.toggle, .admonition.dropdown';",
    "DOCUMENTATION_OPTIONS.search_as_you_type = false;",
    '// Activate the search field on page load let searchInput = document.querySelector("form.bd-search input"); '
    "if (searchInput) { searchInput.focus(); searchInput.select(); "
    'console.log("[PST]: Set focus on search field."); }',
}
VARYING = re.compile(r"DOCUMENTATION_OPTIONS\.pagename = '[\w/.-]+';|window\.MathJax = \{[^()<>`;=]*\}")
FORBIDDEN = {"applet", "base", "embed", "frame", "iframe", "object"}
LINKS = {"action", "data", "formaction", "href", "src", "xlink:href"}
# An equation may come from a record. It must not make links, nor load the parts of MathJax that make them.
TEX: dict[str, Any] = {
    "autoload": {"html": []},
    "packages": {"[-]": ["require"]},
    "macros": {"mmlToken": "\\text{mmlToken}"},
}


class _Page(HTMLParser):
    """The scripts written into a page, and what no page of the site may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.wrong: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take note of an element and its attributes."""
        self._inside = tag == "script" and all(key != "src" for key, _ in attrs)
        self.scripts += [""] if self._inside else []
        self.wrong += [f"<{tag}>"] if tag in FORBIDDEN else []
        for key, value in attrs:
            target = re.sub(r"[\x00-\x20]", "", value or "").lower()
            if key.startswith("on") or (key in LINKS and target.startswith("javascript:")):
                self.wrong.append(f'<{tag} {key}="{(value or "")[:60]}">')

    def handle_data(self, data: str) -> None:
        """Collect the text of a script."""
        if self._inside:
            self.scripts[-1] += data

    def handle_endtag(self, tag: str) -> None:
        """Take note of the end of a script."""
        self._inside = self._inside and tag != "script"


def policy(scripts: Iterable[str]) -> str:
    """The policy of a page: files of the site itself, and these scripts that are written into it."""
    hashes = sorted({f"'sha256-{b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts})
    rules = {**RULES, "script-src": " ".join([RULES["script-src"], *hashes])}
    return "; ".join(f"{name} {sources}" for name, sources in rules.items())


def protect(text: str, name: str, known: Iterable[str] = ()) -> str:
    """A page with its policy in its head; a page that has one is returned as it is.

    Args:
        text: The page.
        name: What it is called in the error.
        known: Scripts that it may hold besides those of Sphinx and the theme.

    Raises:
        SiteError: It holds a script that is not known, a handler of events, a frame or a link that runs a script.
    """
    meta = '<meta http-equiv="Content-Security-Policy" content="{}" />'
    head = re.search(r'<meta charset="utf-8" ?/?>', text)
    place = head.end() if head else 0
    if text.startswith(meta.partition("{")[0], place):
        return text
    page = _Page()
    page.feed(text)
    page.close()
    strange = [s for s in map(_joined, page.scripts) if s not in {*SCRIPTS, *map(_joined, known)}]
    page.wrong += [f"<script>{s[:60]}" for s in strange if not VARYING.fullmatch(s)]
    if page.wrong:
        raise SiteError(
            f"The page {name} holds what its Content-Security-Policy stops: {', '.join(page.wrong)}. Take it out of "
            "its source; a new script of the theme belongs into repro/policy.py."
        )
    return text[:place] + meta.format(policy(page.scripts)) + text[place:]


def _joined(script: str) -> str:
    return " ".join(script.split())


def protect_site(html: Path) -> None:
    """Write its policy into every page of the built site.

    Raises:
        SiteError: A page holds what the policy would stop; names both.
    """
    for path in html.rglob("*.html"):
        name = path.relative_to(html)
        if "_static" not in name.parts:  # templates of the theme
            before = path.read_text(encoding="utf-8")
            if (text := protect(before, name.as_posix())) != before:
                path.write_text(text, encoding="utf-8")


def escape_titles(html: Path) -> None:
    """Escape the titles of sections in the search's index: its script writes them into the page as HTML."""
    path, start = html / "searchindex.js", "Search.setIndex("
    index = json.loads(path.read_text(encoding="utf-8").removeprefix(start).removesuffix(")"))
    titles: dict[str, list[Any]] = {}
    for title, places in index["alltitles"].items():  # Sphinx continues with the index of the last build
        titles.setdefault(escape(unescape(title), quote=False), []).extend(places)
    if titles != index["alltitles"]:
        path.write_text(f"{start}{json.dumps({**index, 'alltitles': titles})})", encoding="utf-8")
