"""Where things are: the checkout, its chapters, their records and the list of papers."""

from __future__ import annotations

import difflib
import os
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

SCALES = ("quick", "full")


class ReproError(Exception):
    """An error whose message is meant for the person at the keyboard: what was wrong and what to do."""


class ChapterFile(NamedTuple):
    """A chapter of the book: its slug, the part it belongs to, its notebook."""

    slug: str
    part: str
    path: Path

    @property
    def root(self) -> Path:
        """The checkout that holds the chapter."""
        return self.path.parents[2]

    def record(self, scale: str) -> Path:
        """Where the record of this chapter at ``scale`` lies, whether it exists or not."""
        return self.root / "results" / scale / f"{self.slug}.json"


def root() -> Path:
    """The checkout: ``REPRO_ROOT``, or the nearest folder upwards that holds ``_toc.yml`` and ``chapters``.

    Raises:
        ReproError: There is none.
    """
    if "REPRO_ROOT" in os.environ:
        return Path(os.environ["REPRO_ROOT"]).resolve()
    here = Path.cwd().resolve()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[1]):
        if (folder / "chapters").is_dir() and (folder / "_toc.yml").is_file():
            return folder
    raise ReproError("No checkout of the book here or above; change into one, or set REPRO_ROOT to its folder.")


def chapters(top: Path | None = None) -> list[ChapterFile]:
    """All chapters, by part and slug."""
    return _notebooks((top or root()) / "chapters")


def notebooks(top: Path | None = None) -> list[ChapterFile]:
    """All that is run and recorded: the chapters, then the pages that are notebooks, which make no claims."""
    return chapters(top) + _notebooks((top or root()) / "book")


def _notebooks(folder: Path) -> list[ChapterFile]:
    files = sorted(folder.glob("*/*.ipynb"))
    return [ChapterFile(f.stem, f.parent.name, f) for f in files if not f.name.startswith(".")]


def nearest(slug: str, known: list[str]) -> str:
    """The end of an error message about an unknown name: the names that come near, or all of them."""
    near = difflib.get_close_matches(slug, known, n=3, cutoff=0.4)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return f"Known are: {', '.join(known) or 'none'}."


def find(slug: str, top: Path | None = None) -> ChapterFile:
    """The chapter, or page that is a notebook, called ``slug``.

    Raises:
        ReproError: There is none; the message names the nearest slugs.
    """
    known = {c.slug: c for c in notebooks(top)}
    if slug not in known:
        raise ReproError(f"No chapter {slug!r}. {nearest(slug, list(known))}")
    return known[slug]


@cache
def papers(top: Path | None = None) -> dict[str, Any]:
    """``book/papers.yml``: ``parts`` (id, title) and ``papers`` (slug, title, authors, venue, ...).

    Raises:
        ReproError: PyYAML or the file is missing.
    """
    try:
        import yaml
    except ImportError:
        raise ReproError("Reading book/papers.yml needs PyYAML; install the extra 'book'.") from None
    path = (top or root()) / "book" / "papers.yml"
    if not path.is_file():
        raise ReproError(f"{path} is missing.")
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def check_scale(scale: str) -> str:
    """``scale`` itself when it is one.

    Raises:
        ReproError: It is not ``quick`` or ``full``.
    """
    if scale not in SCALES:
        raise ReproError(f"The scale (REPRO_SCALE or --scale) must be quick or full; got {scale!r}.")
    return scale
