"""The stored verdicts as HTML: badges, numbers, the board of all claims. Reads records only."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from html import escape
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from reprolib import records
from reprolib.claims import VERDICTS
from reprolib.project import SCALES, ChapterFile, ReproError, papers

NOT_RUN = {"quick": "not yet run", "full": "not yet run on a GPU"}
STALE = "stale"


class Stored(NamedTuple):
    """What is stored of a chapter at one scale: the record if there is one, and why it may be out of date."""

    scale: str
    record: dict[str, Any] | None
    stale: str | None  # the reason, when the record no longer fits the notebook

    def claim(self, id: str) -> dict[str, Any] | None:
        """The stored claim called ``id``, or None."""
        return next((c for c in self.record["claims"] if c["id"] == id), None) if self.record else None


def stored(chapter: ChapterFile, scale: str) -> Stored:
    """Read the record of a chapter at a scale.

    Raises:
        RecordError: There is a record, and it cannot be read or trusted.
    """
    if not chapter.record(scale).is_file():
        return Stored(scale, None, None)
    record = records.read(chapter.record(scale))
    return Stored(scale, record, records.staleness(chapter, scale))


def inline(text: str) -> str:
    """Text of a record as HTML: escaped, with ``code`` and ``$math$`` kept."""
    html = escape(text)
    html = re.sub(r"`([^`]+)`", r"<code>\1</code>", html)
    return re.sub(r"\$([^$]+)\$", r'<span class="math notranslate nohighlight">\\(\1\\)</span>', html)


def badge(words: str, verdict: str = "", title: str = "") -> str:
    """Words on the colour of a verdict; the words carry the meaning, the colour repeats it."""
    verdict = verdict or words
    kind = verdict.replace(" ", "-") if verdict in (*VERDICTS, STALE) else "none"
    tip = f' title="{escape(title)}"' if title else ""
    return f'<span class="verdict verdict-{kind}"{tip}>{escape(words)}</span>'


def number(x: float, digits: int = 3) -> str:
    """A few significant digits as HTML, with real minus signs and powers of ten."""
    text = f"{x:.{digits}g}".replace("-", "\N{MINUS SIGN}")
    return re.sub(r"e\+?(\N{MINUS SIGN}?)0*(\d+)", r" × 10<sup>\1\2</sup>", text)


def numbers(claim: dict[str, Any]) -> str:
    """The numbers that decided a claim: the mean with its interval, or the extreme value where chance plays no part."""
    unit = f" {inline(claim['unit'])}" if claim["unit"] else ""
    if claim["criterion"]["kind"] == "within":
        return f"largest error {number(max(abs(v) for v in claim['values']))}{unit}"
    if claim["exact"]:
        return f"{number(min(claim['values']))}{unit}"
    mean, low, high = (number(claim[key], 2) for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]{unit}"


def _cell(held: Stored, id: str) -> tuple[str, str]:
    """One scale of one claim: the words a filter looks for, and the table cell."""
    claim = held.claim(id)
    label = f'class="board-{held.scale}"'
    if claim is None:
        return "not yet run", f'<td {label} data-sort="9">{badge(NOT_RUN[held.scale])}</td>'
    words = claim["verdict"] + (",stale" if held.stale else "")
    late = f" {badge(STALE, title=held.stale)}" if held.stale else ""
    order = VERDICTS.index(claim["verdict"])
    return words, (
        f'<td {label} data-sort="{order}">{badge(claim["verdict"])}{late}'
        f'<span class="board-numbers">{numbers(claim)}</span></td>'
    )


def _named(slug: str, link: str, entry: Mapping[str, Any]) -> str:
    """The table cell that leads to a chapter: its short name, then who wrote the paper and when."""
    who = [str(author).split()[-1] for author in entry.get("authors", [])]
    names = " and ".join(who) if len(who) < 3 else f"{who[0]} et al."
    paper = f'<span class="board-criterion">{escape(names)} {escape(str(entry["year"]))}</span>' if who else ""
    title = escape(str(entry.get("title", slug)))
    return f'<td><a href="{escape(link)}" title="{title}">{escape(str(entry.get("short", slug)))}</a>{paper}</td>'


def _rows(chapter: ChapterFile, part: str, link: str, entry: Mapping[str, Any]) -> list[str]:
    """The table rows of a chapter, one a claim."""
    about = f'data-part="{escape(part)}" data-family="{escape(str(entry.get("family", "")))}" '
    about += f'data-data="{escape(",".join(entry.get("data", [])))}"'
    held = [stored(chapter, scale) for scale in SCALES]
    claims = {c["id"]: c for h in reversed(held) if h.record for c in h.record["claims"]}
    named, last = _named(chapter.slug, link, entry), f"<td>{escape(part)}</td></tr>"
    if not claims:
        cells = "".join(_cell(h, "")[1] for h in held)
        return [
            f'<tr {about} data-quick="not yet run" data-full="not yet run">{named}'
            f"<td>No claim has been judged yet.</td><td></td>{cells}{last}"
        ]
    rows = []
    for id, claim in claims.items():
        (quick, quick_cell), (full, full_cell) = (_cell(h, id) for h in held)
        rows.append(
            f'<tr {about} data-quick="{quick}" data-full="{full}">{named}'
            f'<td><a class="board-id" href="{escape(link)}#claim-{escape(id)}">{escape(id)}</a> {inline(claim["text"])}'
            f'<span class="board-criterion">Criterion: {inline(claim["criterion"]["text"])}</span></td>'
            f"<td>{inline(claim['paper'])}</td>{quick_cell}{full_cell}{last}"
        )
    return rows


def _select(name: str, label: str, options: Iterable[tuple[str, str]]) -> str:
    choices = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in options)
    return f'<label>{label} <select name="{name}">{choices}</select></label>'


def board(chapters: list[ChapterFile], page: str, root: Path, controls: bool = True) -> str:
    """All stored verdicts of some chapters as one HTML table, one row a claim.

    Args:
        chapters: The chapters to show.
        page: Document name of the page that shows them, for relative links.
        root: The checkout.
        controls: Whether the reader may filter.

    Raises:
        RecordError: A record cannot be read or trusted.
    """
    listed = papers(root)
    parts = {p["id"]: p["title"] for p in listed["parts"]}
    entries = {p["slug"]: p for p in listed["papers"]}
    rows, used = [], []
    shown = [entries.get(c.slug, {}) for c in chapters]
    families = sorted({e["family"] for e in shown if "family" in e})
    data = sorted({name for e in shown for name in e.get("data", [])})
    for chapter in chapters:
        part = parts.get(chapter.part, chapter.part)
        used += [part] if part not in used else []
        link = os.path.relpath(f"chapters/{chapter.part}/{chapter.slug}.html", os.path.dirname(page) or ".")
        rows += _rows(chapter, part, link, entries.get(chapter.slug, {}))
    columns = [("Chapter", ""), ("Claim", ""), ("In the paper", "")]
    columns += [("Quick (two CPU cores)", "board-quick"), ("Full (one GPU)", "board-full"), ("Part", "")]
    head = "".join(
        f'<th scope="col" aria-sort="none" class="{kind}"><button type="button">{name}</button></th>'
        for name, kind in columns
    )
    form = (
        '<form class="board-controls" hidden>'
        + (_select("part", "Part", [("", "all"), *((p, p) for p in used)]) if len(used) > 1 else "")
        + _select("family", "Method", [("", "all"), *((f, f) for f in families)])
        + _select("data", "Data", [("", "all"), *((d, d) for d in data)])
        + _select("verdict", "Verdict", [("", "all"), *((v, v) for v in (*VERDICTS, "not yet run", STALE))])
        + _select("scale", "Scale", [("both", "quick and full"), ("quick", "quick"), ("full", "full")])
        + '<label>Words <input type="search" name="words" autocomplete="off"></label>'
        + '<button type="reset">Show all</button></form><p role="status"></p>'
    )
    return (
        f'<div class="verdict-board">{form if controls else ""}'
        '<div class="board-scroll" tabindex="0" role="region" aria-label="Table of verdicts">'
        f'<table class="table" data-scale="both"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></div>"
    )


def counts(claims: list[dict[str, Any]]) -> str:
    """How many claims have which verdict, as badges."""
    found = Counter(c["verdict"] for c in claims)
    return " ".join(badge(f"{found[v]} {v}", v) for v in VERDICTS if found[v])


def picture(chapters: list[ChapterFile], page: str, root: Path) -> str:
    """All claims judged at quick scale at a glance: a square each, a line a chapter, the same in words beside it.

    Args:
        chapters: The chapters to show.
        page: Document name of the page that shows them, for relative links.
        root: The checkout.

    Raises:
        RecordError: A record cannot be read or trusted.
    """
    listed = papers(root)
    titles = {p["id"]: p["title"] for p in listed["parts"]}
    entries = {p["slug"]: p for p in listed["papers"]}
    html, up = [], os.path.dirname(page) or "."
    for part in dict.fromkeys(c.part for c in chapters):
        items = []
        for chapter in (c for c in chapters if c.part == part):
            link = escape(os.path.relpath(f"chapters/{part}/{chapter.slug}.html", up))
            held = stored(chapter, "quick").record
            claims = sorted(held["claims"], key=lambda c: VERDICTS.index(c["verdict"])) if held else []
            squares = "".join(
                f'<a class="square square-{c["verdict"].replace(" ", "-")}" tabindex="-1" '
                f'href="{link}#claim-{escape(c["id"])}" title="{escape(c["id"])}: {c["verdict"]}"></a>'
                for c in claims
            )
            found = Counter(c["verdict"] for c in claims)
            words = ", ".join(f"{found[v]} {v}" for v in VERDICTS if found[v]) or "not yet run"
            name = escape(str(entries.get(chapter.slug, {}).get("short", chapter.slug)))
            items.append(
                f'<li><a href="{link}">{name}</a><span class="squares" aria-hidden="true">{squares}</span>'
                f'<span class="visually-hidden">: {words}</span></li>'
            )
        html.append(f'<p class="card-title">{escape(titles.get(part, part))}</p><ul>{"".join(items)}</ul>')
    key = "".join(f'<span><i class="square square-{v.replace(" ", "-")}"></i> {v}</span>' for v in VERDICTS)
    return f'<div class="verdict-picture">{"".join(html)}<p class="picture-key" aria-hidden="true">{key}</p></div>'


def summary(chapters: list[ChapterFile]) -> str:
    """One sentence that counts chapters, claims and verdicts at quick scale."""
    found = [h.record for h in (stored(c, "quick") for c in chapters) if h.record]
    claims = [c for record in found for c in record["claims"]]
    gpu = sum(stored(c, "full").record is not None for c in chapters)
    runs = "None has been run on a GPU yet." if not gpu else f"{gpu} of {len(chapters)} also run on a GPU."
    chapter = "chapter" if len(chapters) == 1 else "chapters"
    return (
        f'<p class="board-summary">{len(chapters)} {chapter}, {len(claims)} claims judged at quick scale: '
        f"{counts(claims)}. {runs}</p>"
    )


def table(label: str, head: str, rows: str) -> str:
    """A table that scrolls inside itself, by keyboard too; from its head's and its body's rows."""
    return (
        f'<div class="board-scroll" tabindex="0" role="region" aria-label="{escape(label)}">'
        f'<table class="table"><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
    )


def heads(*names: str) -> str:
    """A head of one row."""
    cells = (f'<th scope="col">{escape(name)}</th>' for name in names)
    return f"<tr>{''.join(cells)}</tr>"


def benchmark(path: Path) -> str:
    """The contests kept by a script of ``benchmarks/`` as a table: median seconds of each, and who was faster.

    Raises:
        ReproError: The file is missing; says which command makes it.
    """
    if not path.is_file():
        raise ReproError(f"There is no benchmark {path.name}; make it: python -m benchmarks.{path.stem}.")
    kept = json.loads(path.read_text(encoding="utf-8"))
    rows = []
    for contest in kept["contests"]:
        medians = {name: median(turns) for name, turns in contest["seconds"].items()}
        for k, (name, seconds) in enumerate(sorted(medians.items(), key=lambda item: item[1])):
            ours = name == contest["ours"]
            note = f"ours; fastest other takes {number(contest['ratio'], 2)} times as long" if ours else ""
            rows.append(
                f"<tr><td>{'' if k else inline(contest['title'])}</td><td>{inline(name)}</td>"
                f"<td>{seconds * 1e3:,.{0 if seconds > 0.1 else 1}f}</td><td>{note}</td></tr>"
            )
    day = datetime.fromisoformat(kept["date"])
    versions = ", ".join(f"{name} {version}" for name, version in kept["versions"].items())
    return (
        table("Table of times", heads("Work", "By", "Median (ms)", ""), "".join(rows))
        + f"<p>Measured on {day.day} {day:%B %Y}, {escape(kept['machine'])}; {escape(versions)}.</p>"
    )
