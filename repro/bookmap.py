"""The maps of the book and of a part: what helps for what, as a picture and as the same in words."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from repro.board import counts, inline, stored
from reprolib.claims import VERDICTS
from reprolib.project import ChapterFile, ReproError, nearest, papers

WIDTH, HEIGHT, GAP, DROP = 150, 74, 14, 58  # of a box, between boxes, between rows
SIDE, PER_LINE = 7.5, 14
PER_ROW, LETTERS = 5, 18  # boxes side by side; letters of a line in a box, which has two


def helpers(entry: Mapping[str, Any]) -> dict[str, str]:
    """The chapters that an entry of book/papers.yml comes after, each with what one takes from it."""
    return dict(entry.get("after") or {})


def rows(entries: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Slugs in rows, each below all that it comes after; within a row ordered by where its helpers stand.

    Args:
        entries: slug -> entry; helpers outside of them do not count.

    Raises:
        ReproError: Chapters come after each other in a circle; names them.
    """
    level: dict[str, int] = {}
    waiting = {slug: [h for h in helpers(entry) if h in entries] for slug, entry in entries.items()}
    while waiting:
        ready = [slug for slug, before in waiting.items() if all(h in level for h in before)]
        if not ready:
            circle = ", ".join(sorted(waiting))
            raise ReproError(f"These chapters come after each other in a circle: {circle}; cut it.")
        for slug in ready:
            level[slug] = 1 + max((level[h] for h in waiting.pop(slug)), default=-1)
    found: list[list[str]] = []
    place: dict[str, float] = {}
    for k in range(max(level.values(), default=-1) + 1):
        row = [slug for slug in entries if level[slug] == k]
        above = {s: [place[h] for h in helpers(entries[s]) if h in place] for s in row}
        row.sort(key=lambda s: sum(above[s]) / len(above[s]) if above[s] else 0)
        place |= {slug: (j + 0.5) / len(row) for j, slug in enumerate(row)}
        found.append(row)
    return found


def lines(entries: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(helper, chapter) pairs to draw: those that no way through other chapters implies."""
    before = {slug: {h for h in helpers(entry) if h in entries} for slug, entry in entries.items()}
    ancestors: dict[str, set[str]] = {}
    for slug in (s for row in rows(entries) for s in row):
        ancestors[slug] = before[slug].union(*(ancestors[h] for h in before[slug]))
    return [
        (h, s)
        for s in entries
        for h in helpers(entries[s])
        if h in before[s] and not any(h in ancestors[o] for o in before[s])
    ]


def tangles(entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is wrong with the ``after`` of the entries of book/papers.yml, a sentence each: unknown names, a circle."""
    unknown = [
        f"The entry {slug!r} comes after {helper!r}, which has no entry. {nearest(helper, list(entries))}"
        for slug, entry in entries.items()
        for helper in helpers(entry)
        if helper not in entries
    ]
    try:
        rows(entries)
    except ReproError as error:
        return [*unknown, str(error)]
    return unknown


def part_map(part: str, chapters: list[ChapterFile], page: str, root: Path) -> str:
    """The map of one part as HTML: a picture whose boxes lead to the chapters, then the same as a list.

    Args:
        part: Its id in book/papers.yml.
        chapters: All chapters of the book.
        page: Document name of the page that shows the map, for relative links.
        root: The checkout.

    Raises:
        ReproError: The part has no chapters, or they come after each other in a circle.
        RecordError: A record cannot be read or trusted.
    """
    everything = {p["slug"]: p for p in papers(root)["papers"]}
    files = {c.slug: c for c in chapters}
    entries = {s: p for s, p in everything.items() if p["part"] == part and s in files}
    if not entries:
        known = sorted({c.part for c in chapters})
        raise ReproError(f"The part {part!r} has no chapters to map. {nearest(part, known)}")
    up = os.path.dirname(page) or "."
    links = {s: os.path.relpath(f"chapters/{c.part}/{s}.html", up) for s, c in files.items()}
    claims = {s: (h.record["claims"] if (h := stored(files[s], "quick")).record else []) for s in entries}
    return _picture(entries, links, claims) + _list(entries, everything, links, claims)


def book_map(chapters: list[ChapterFile], page: str, root: Path) -> str:
    """The map of all parts that have chapters as HTML: boxes that lead to the parts' openers, then the same as a list.

    A part comes after those earlier in the book that hold a chapter which helps with one of its own.

    Args:
        chapters: All chapters of the book.
        page: Document name of the page that shows the map, for relative links.
        root: The checkout.

    Raises:
        RecordError: A record cannot be read or trusted.
    """
    listed, up = papers(root), os.path.dirname(page) or "."
    files = {c.slug: c for c in chapters}
    entries: dict[str, dict[str, Any]] = {}
    for part in listed["parts"]:
        own = [p for p in listed["papers"] if p["part"] == part["id"] and p["slug"] in files]
        used: dict[str, set[str]] = {}
        for helper in (h for p in own for h in helpers(p) if h in files):
            if files[helper].part in entries:
                used.setdefault(files[helper].part, set()).add(helper)
        names = {p["slug"]: _name(p["slug"], p) for p in listed["papers"]}
        after = {there: ", ".join(names[h] for h in sorted(held)) for there, held in used.items()}
        if own:
            entries[part["id"]] = {
                "short": part.get("short", part["title"]),
                "after": after,
                "note": f"{len(own)} chapters",
            }
    links = {part: os.path.relpath(f"chapters/{part}/index.html", up) for part in entries}
    claims: dict[str, list[Any]] = {part: [] for part in entries}
    for c in chapters:
        claims[c.part] += h.record["claims"] if (h := stored(c, "quick")).record else []
    return _picture(entries, links, {part: [] for part in entries}) + _list(entries, entries, links, claims)


def _name(slug: str, entry: Mapping[str, Any]) -> str:
    return str(entry.get("short", slug))


def _picture(entries: Mapping[str, Any], links: Mapping[str, str], claims: Mapping[str, list[Any]]) -> str:
    """Boxes in rows joined by curves, one square a claim in each box; left out for screen readers, who get the list."""
    layers = [layer for row in rows(entries) for layer in _wrapped(row, entries)]
    width = max(len(row) for row in layers) * (WIDTH + GAP) + GAP
    corner = {
        slug: ((j + 0.5) * width / len(row) - WIDTH / 2, GAP + k * (HEIGHT + DROP))
        for k, row in enumerate(layers)
        for j, slug in enumerate(row)
    }
    height = len(layers) * (HEIGHT + DROP) - DROP + 2 * GAP
    edges = "".join(_edge(corner[helper], corner[slug]) for helper, slug in lines(entries))
    boxes = "".join(_box(entries[s], _name(s, entries[s]), links[s], claims[s], *corner[s]) for s in corner)
    return (
        '<div class="board-scroll" tabindex="0" role="region" aria-label="Map of the part, listed below in words">'
        f'<svg class="part-map" aria-hidden="true" focusable="false" '
        f'viewBox="0 0 {width:.0f} {height}" style="min-width:{0.8 * width:.0f}px;max-width:{1.1 * width:.0f}px">'
        f"{edges}{boxes}</svg></div>"
    )


def _wrapped(row: list[str], entries: Mapping[str, Any]) -> list[list[str]]:
    """A row in as many lines as it needs; chapters that help with none stand first, so that no line crosses a box."""
    helping = {helper for entry in entries.values() for helper in helpers(entry)}
    row = sorted(row, key=lambda slug: slug in helping)
    lines_needed = -(-len(row) // PER_ROW)
    size = -(-len(row) // max(1, lines_needed))
    return [row[i : i + size] for i in range(0, len(row), size)]


def name_fits(entry: Mapping[str, Any]) -> bool:
    """Whether the short name of an entry of book/papers.yml fits the two lines of its box."""
    return len(textwrap.wrap(str(entry.get("short", "")), LETTERS)) <= 2


def _edge(start: tuple[float, float], end: tuple[float, float]) -> str:
    """A curve from the bottom of one box to the top of another."""
    (x, y), (u, v) = (start[0] + WIDTH / 2, start[1] + HEIGHT), (end[0] + WIDTH / 2, end[1])
    bend = (v - y) / 2
    return (
        f'<path class="map-edge" d="M{x:.0f} {y:.0f}C{x:.0f} {y + bend:.0f} {u:.0f} {v - bend:.0f} {u:.0f} {v:.0f}"/>'
    )


def _box(entry: Mapping[str, Any], name: str, link: str, claims: list[Any], x: float, y: float) -> str:
    """A chapter or part: its short name over a note, if it has one, or a square a claim, ordered by verdict."""
    lines = textwrap.wrap(name, LETTERS)
    words = "".join(f'<tspan x="{x + 8:.0f}" dy="{16 if j else 0}">{escape(t)}</tspan>' for j, t in enumerate(lines))
    order = sorted(claims, key=lambda c: VERDICTS.index(c["verdict"]))
    note = (
        f'<text class="map-note" x="{x + 8:.0f}" y="{y + 60:.0f}">{escape(entry["note"])}</text>'
        if "note" in entry
        else ""
    )
    marks = "".join(_mark(c, x + 8 + 9.8 * (j % PER_LINE), y + 48 + 11 * (j // PER_LINE)) for j, c in enumerate(order))
    return (
        f'<a href="{escape(link)}" tabindex="-1"><rect class="map-box" x="{x:.0f}" y="{y:.0f}" '
        f'width="{WIDTH}" height="{HEIGHT}" rx="6"/><text y="{y + 20:.0f}">{words}</text>{note}{marks}</a>'
    )


def _mark(claim: Mapping[str, Any], x: float, y: float) -> str:
    """A square of 8: filled for reproduced, hollow for inconclusive, crossed for not reproduced."""
    right, low = x + SIDE, y + SIDE
    cross = f"M{x:.1f} {y:.1f}L{right:.1f} {low:.1f}M{right:.1f} {y:.1f}L{x:.1f} {low:.1f}"
    bad = f'<path d="{cross}"/>' if claim["verdict"] == "not reproduced" else ""
    return (
        f'<g class="map-{claim["verdict"].replace(" ", "-")}"><title>{escape(claim["id"])}: {claim["verdict"]}</title>'
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{SIDE}" height="{SIDE}" rx="1.5"/>{bad}</g>'
    )


def _list(
    entries: Mapping[str, Any], known: Mapping[str, Any], links: Mapping[str, str], claims: Mapping[str, list[Any]]
) -> str:
    """One item a chapter, in the picture's order: what it comes after and why, and how its claims stand."""
    items = []
    for slug in (s for row in rows(entries) for s in row):
        before = [
            f'after <a href="{escape(links[h])}">{escape(_name(h, known[h]))}</a>: {inline(reason)}'
            for h, reason in helpers(entries[slug]).items()
            if h in links
        ]
        name = f'<a href="{escape(links[slug])}">{escape(_name(slug, entries[slug]))}</a>'
        items.append(f"<li>{name}, {'; '.join(before) or 'a place to start'}. {counts(claims[slug])}</li>")
    return f'<ul class="map-list">{"".join(items)}</ul>'
