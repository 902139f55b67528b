"""A chapter on one printed page: the paper's idea, its notation, and its claims with room for the verdicts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import escape

from repro import policy
from repro.slides import ASSETS, markdown_html, plain
from reprolib.notebook import Notebook, NotebookError, source

STYLE = """
@page { size: A4; margin: 11mm 12mm; }
body { font: var(--size, 9.4pt)/1.32 system-ui, sans-serif; color: #111; margin: 0 auto; max-width: 186mm; }
h1 { font-size: 1.55em; margin: 0 0 .15em; }
h2 { font-size: 1.12em; margin: .7em 0 .15em; border-bottom: 1px solid #999; }
p { margin: .3em 0; } ul { margin: .2em 0; padding-left: 1.2em; }
table { border-collapse: collapse; width: 100%; font-size: .93em; margin: .3em 0; }
th, td { text-align: left; vertical-align: top; padding: .12em .4em; border-bottom: 1px solid #ccc; }
pre, code { font-size: .95em; }
mjx-container[display="true"] { margin: .3em 0 !important; }
@media screen { body { padding: 1rem; } }
"""
# Lets the print shrink until it fits one sheet: 273 mm of height at 96 pixels an inch.
FIT = """
MathJax = {tex: {...TEX, inlineMath: [['$', '$'], ['\\\\(', '\\\\)']]}, options: {enableMenu: false}, startup: {
  pageReady: () => MathJax.startup.defaultPageReady().then(() => {
    let size = 9.4;
    document.body.style.width = '186mm';
    while (document.body.scrollHeight > 273 / 25.4 * 96 && size > 4.5) {
      size -= 0.1;
      document.body.style.setProperty('--size', size + 'pt');
    }
    document.documentElement.dataset.ready = size.toFixed(1);
  })}};
""".replace("TEX", json.dumps(policy.TEX))


def as_html(nb: Notebook, name: str) -> str:
    """The handout as one HTML page that prints on one sheet of A4; finds MathJax in ``assets/`` beside its folder.

    Raises:
        ReproError: nbconvert is missing.
        NotebookError: The chapter lacks a part of it; names the part.
    """
    title = source(nb["cells"][0]).splitlines()[0].lstrip("# ")
    citation = source(nb["cells"][0]).split("\n\n")[1]
    parts = {
        heading: markdown_html(_section(nb, name, heading)) for heading in ("In one minute", "The idea", "Notation")
    }
    body = "".join(f"<h2>{heading}</h2>{html}" for heading, html in parts.items())
    page = (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}: handout</title>'
        f"<style>{STYLE}</style><script>{FIT}</script>"
        f'<script defer src="{ASSETS}/mathjax/tex-chtml.js"></script></head><body><h1>{escape(title)}</h1>'
        f"{markdown_html(citation)}{body}<h2>Claims: what do you expect?</h2>{_claims(nb, name)}"
        "</body></html>"
    )
    return policy.protect(page, f"of the handout of {name}", [FIT])


def _section(nb: Notebook, name: str, heading: str) -> str:
    """The prose of a section up to its first code cell, without pictures and remarks about cells.

    Raises:
        NotebookError: There is no such section.
    """
    texts = []
    for cell in nb["cells"]:
        text = source(cell)
        start = re.search(rf"^## {re.escape(heading)}[ \t]*$", text, re.M) if cell["cell_type"] == "markdown" else None
        if start:
            rest = text[start.end() :]
            texts.append(re.split(r"^#{2,3} ", rest, flags=re.M)[0])
            break
    if not texts:
        raise NotebookError(f"{name}: there is no section '## {heading}' for the handout.")
    return plain(texts[0])


def _claims(nb: Notebook, name: str) -> str:
    """The table of claims and criteria, as the chapter printed it, with a column to guess in.

    Raises:
        NotebookError: The chapter has not been run, so that no table of claims is stored.
    """
    rows = list(_claim_rows(nb))
    if not rows:
        raise NotebookError(f"{name}: no table of claims is stored; run the chapter: repro run {name}")
    lines = ["| | claim | it holds if | holds | unclear | fails |", "|---|---|---|---|---|---|"]
    lines += [f"| {id} | {claim} | {criterion} | ☐ | ☐ | ☐ |" for id, claim, criterion in rows]
    return markdown_html("\n".join(lines))


def _claim_rows(nb: Notebook) -> Iterator[tuple[str, str, str]]:
    """(id, claim, criterion) from the stored output of ``ch.claims_table()``."""
    for cell in nb["cells"]:
        if "ch.claims_table()" in source(cell):
            for output in cell.get("outputs", []):
                for line in "".join(output.get("data", {}).get("text/markdown", "")).splitlines()[2:]:
                    id, claim, _, criterion = (part.strip() for part in re.split(r"(?<!\\)\|", line.strip().strip("|")))
                    yield id, claim, criterion
