"""What the records say of the whole book: for the terminal, the README and other programs."""

from __future__ import annotations

import csv
import io
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reprolib import records
from reprolib.chapter import verdict_cell
from reprolib.claims import VERDICTS
from reprolib.project import SCALES, ChapterFile, ReproError
from reprolib.show import markdown_table

MARKS = re.compile(r"(<!-- verdicts:start -->\n).*?(<!-- verdicts:end -->)", re.DOTALL)


def summary(record: records.Record) -> str:
    """The verdicts of a record, counted: ``3 reproduced, 1 inconclusive``."""
    counts = {v: sum(c["verdict"] == v for c in record["claims"]) for v in VERDICTS}
    return ", ".join(f"{n} {v}" for v, n in counts.items() if n)


def age(record: records.Record) -> str:
    """How long ago a record was made."""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(record["date"])).total_seconds()
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return "now"


def status(chapter: ChapterFile, scale: str) -> str:
    """One cell of ``repro list``: the verdicts of a record with its age, or why there are none to show."""
    why = records.staleness(chapter, scale)
    if why == "missing" or (why or "").startswith("unreadable"):
        return "not yet run on a GPU" if why == "missing" and scale == "full" else str(why)
    record = records.read(chapter.record(scale))
    return f"{summary(record)} ({age(record)}{', ' + why if why else ''})"


def as_json(chapters: list[ChapterFile]) -> list[dict[str, Any]]:
    """All claims of all records, one flat dictionary each; ``stale`` says why a record no longer fits its chapter."""
    rows = []
    for chapter in chapters:
        for scale in SCALES:
            if not chapter.record(scale).is_file():
                continue
            record = records.read(chapter.record(scale))
            stale = records.staleness(chapter, scale)
            head = {"slug": chapter.slug, "part": chapter.part, "scale": scale, "stale": stale}
            head |= {"device": record["device"], "date": record["date"]}
            rows += [head | claim for claim in record["claims"]]
    return rows


def as_csv(chapters: list[ChapterFile]) -> str:
    """`as_json` as comma-separated values with a header: one line a claim and scale, numbers unrounded."""
    columns = ["part", "slug", "scale", "id", "text", "paper", "criterion", "unit", "verdict", "mean", "low", "high"]
    columns += ["runs", "stale", "device", "date"]
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in as_json(chapters):
        found = row | {"criterion": row["criterion"]["text"], "runs": len(row["values"])}
        writer.writerow({name: _inert(value) for name, value in found.items()})
    return out.getvalue()


def _inert(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: text that begins like one, and is no number, is quoted."""
    risky = isinstance(value, str) and value[:1] in {*"=+-@\t\r"}
    return f"'{value}" if risky and not re.fullmatch(r"[+-]?\d[\d.,]*(e[+-]?\d+)?( ?[\w%]+)*", value) else value


def as_markdown(chapters: list[ChapterFile]) -> str:
    """A verdict table for every chapter."""
    blocks = []
    for chapter in chapters:
        found: dict[str, dict[str, Any]] = {}
        notes = []
        for scale in SCALES:
            try:
                record = records.read(chapter.record(scale))
            except ReproError:
                continue
            found[scale] = {c["id"]: c for c in record["claims"]}
            why = records.staleness(chapter, scale)
            notes += [f"The {scale} record is {why}."] if why else []
        claims = next(iter(found.values()), {})
        rows = [
            (id, c["text"], c["paper"], *(verdict_cell(found.get(s, {}).get(id), s) for s in SCALES))
            for id, c in claims.items()
        ]
        table = markdown_table(["", "claim", "paper", *SCALES], rows) if rows else "No record yet."
        blocks.append("\n\n".join([f"## {chapter.slug}", *notes, table]))
    return "\n\n".join(blocks) + "\n"


def counts(chapters: list[ChapterFile]) -> str:
    """The README's block: how many claims of how many papers stand how, from the records alone."""
    rows = []
    for scale in SCALES:
        stored = [records.read(c.record(scale)) for c in chapters if c.record(scale).is_file()]
        claims = [claim for record in stored for claim in record["claims"]]
        rows.append((scale, len(stored), len(claims), *(sum(c["verdict"] == v for c in claims) for v in VERDICTS)))
    return markdown_table(["scale", "papers", "claims", *VERDICTS], rows, "lrrrrr")


def update_readme(path: Path, chapters: list[ChapterFile]) -> bool:
    """Renew the block between the verdict marks of the README; returns whether it changed.

    Raises:
        ReproError: The README has no marks.
    """
    old = path.read_text(encoding="utf-8")
    if not MARKS.search(old):
        raise ReproError(f"{path.name} has no lines '<!-- verdicts:start -->' and '<!-- verdicts:end -->'.")
    new = MARKS.sub(lambda m: f"{m[1]}{counts(chapters)}\n{m[2]}", old)
    if new != old:
        records.write_atomic(path, new)
    return new != old


def moved(stored: records.Record, fresh: records.Record) -> list[list[str]]:
    """A row for each claim whose verdict another run changed: chapter, claim, verdict before and now, means."""
    now = {claim["id"]: claim for claim in fresh["claims"]}
    pairs = [(old, now[old["id"]]) for old in stored["claims"] if old["id"] in now]
    return [
        [stored["slug"], a["id"], a["verdict"], b["verdict"], f"{a['mean']:.4g} → {b['mean']:.4g}"]
        for a, b in pairs
        if a["verdict"] != b["verdict"]
    ]


def moved_table(rows: list[list[str]], n_chapters: int) -> str:
    """Those rows of all chapters as Markdown, for a job's summary."""
    head = f"{len({row[0] for row in rows})} of {n_chapters} chapters have moved.\n"
    if not rows:
        return head
    return f"{head}\n{markdown_table(['chapter', 'claim', 'stored', 'here', 'mean, or error'], rows)}\n"
