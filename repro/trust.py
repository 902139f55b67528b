"""What the site takes from notebooks: words and pictures, and nothing that could run when it is built or read."""

from __future__ import annotations

import json
import posixpath
import re
from typing import Any

from docutils import nodes
from sphinx import addnodes

SETTINGS = ("kernelspec", "language_info", "widgets")  # of a notebook; others could change how the site is built
OUTPUTS = ("text/plain", "text/markdown", "image/png", "application/vnd.jupyter.widget-view+json")
DIRECTIVES = {"admonition", "attention", "caution", "danger", "error", "hint", "important", "note", "seealso"}
DIRECTIVES |= {"math", "tip", "warning"}
FENCE = re.compile(r"(`{3,}|~{3,}|:{3,})[ \t]*\{([^}\n]*)\}")
SCHEMES = ("http:", "https:", "mailto:")


def only_words_and_pictures(text: str) -> tuple[str, list[str]]:
    """A notebook as the site reads it: cells of prose and code with their tags, outputs that cannot hold a script.

    Args:
        text: The notebook file.

    Returns:
        The notebook without the rest, and a sentence on each thing left out that a reader would have seen.
    """
    nb = json.loads(text)
    said: list[str] = []
    nb["metadata"] = {key: nb["metadata"][key] for key in SETTINGS if key in nb["metadata"]}
    for number, cell in enumerate(nb["cells"]):
        cell["metadata"] = {"tags": cell["metadata"].get("tags", [])}
        cell.pop("attachments", None)
        if cell["cell_type"] == "markdown":
            cell["source"] = _inert(cell["source"], f"cell {number}", said)
        elif cell["cell_type"] == "code":
            for output in cell["outputs"]:
                _reduce(output, f"cell {number}", said)
        else:
            said.append(f"cell {number} is neither prose nor code and is left out")
    nb["cells"] = [cell for cell in nb["cells"] if cell["cell_type"] in ("markdown", "code")]
    return json.dumps(nb), said


def _reduce(output: dict[str, Any], where: str, said: list[str]) -> None:
    """Keep what an output holds of OUTPUTS; the site draws the best of it."""
    if "data" in output:
        kept = {kind: output["data"][kind] for kind in OUTPUTS if kind in output["data"]}
        if output["data"] and not kept:
            said.append(f"{where} shows {', '.join(output['data'])} alone, which is left out: use say, table or figure")
        if "text/markdown" in kept:
            kept["text/markdown"] = _inert(kept["text/markdown"], where, said)
        output["data"] = kept
        held = output.get("metadata", {})
        output["metadata"] = {key: held[key] for key in ("image/png", "reprolib") if key in held}


def _inert(markdown: str | list[str], where: str, said: list[str]) -> str:
    """Markdown whose directives that read files, run code or write HTML have become text in a frame."""

    def turn(fence: re.Match[str]) -> str:
        if fence[2] in DIRECTIVES:
            return fence[0]
        said.append(f"{where} has the directive {fence[2]!r}, which notebooks may not use")
        return f"{fence[1]} {fence[2]}"

    return FENCE.sub(turn, "".join(markdown))


def make_plain(doctree: nodes.document, page: str) -> list[str]:
    """Turn what a notebook's page must not hold into text: raw HTML, files of the disk, links that are no addresses.

    Args:
        doctree: The page as read.
        page: Its document name.

    Returns:
        A sentence on each.
    """
    said = []
    for node in list(doctree.findall(nodes.raw)):
        _replace(node, node.astext())
        said.append(f"raw {node.get('format')} is shown as text")
    for node in list(doctree.findall(addnodes.download_reference)):
        _replace(node, node.astext())
        said.append(f"the file {node['reftarget']} is not offered")
    for node in list(doctree.findall(nodes.image)):
        if "://" in node["uri"] or _outside(node["uri"], page):
            _replace(node, node.get("alt", ""))
            said.append(f"the picture {node['uri']} is not the book's and is left out")
    for node in list(doctree.findall(nodes.reference)):
        target = re.sub(r"[\x00-\x20]", "", node.get("refuri", "")).lower()
        if re.match(r"[^/?#]*:", target) and not target.startswith(SCHEMES):
            node.parent.replace(node, node.children)
            said.append(f"the link to {target[:40]} is left out")
    return said


def _outside(uri: str, page: str) -> bool:
    """Whether a path on a page leads out of the checkout."""
    path = uri[1:] if uri.startswith("/") else posixpath.join(posixpath.dirname(page), uri)
    return posixpath.normpath(path).startswith("..")


def _replace(node: nodes.Element, text: str) -> None:
    """Put text in the place of a node, in a paragraph of its own where no text may stand."""
    inside = isinstance(node.parent, nodes.TextElement)
    node.parent.replace(node, nodes.Text(text) if inside else nodes.paragraph("", text))
