"""The record of a run: what it said, on which machine, with which code. Written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from reprolib import claims, notebook
from reprolib.project import ChapterFile, ReproError

SCHEMA = 1
KEYS: tuple[str, ...] = ("schema", "slug", "scale", "seed", "code_hash", "date", "wall_seconds", "peak_ram_mb")
KEYS += ("device", "precision", "threads", "runner", "versions", "sizes", "claims", "numbers", "digest")
Record = dict[str, Any]


class RecordError(ReproError):
    """A record that cannot be read or trusted."""


def digest(record: Record) -> str:
    """SHA-256 over the record without its own ``digest``: a record edited by hand no longer fits."""
    body = {k: v for k, v in record.items() if k != "digest"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that at every moment the old or the new content is whole, whatever kills the process."""
    write_together({path: text})


def write_together(files: dict[Path, str]) -> None:
    """Write several files, each atomically, and none before all have found room on the disk."""
    parts: dict[Path, Path] = {}
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            for left in path.parent.glob(f".{path.name}.*.part"):  # by a writer that was killed
                left.unlink(missing_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
            parts[path] = Path(name)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
        for path, part in parts.items():
            os.replace(part, path)
    except BaseException as error:
        for part in parts.values():
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # as of a write
            error.filename = str(path)
        raise


def write(path: Path, record: Record, also: dict[Path, str] | None = None) -> Record:
    """Seal a record with its digest and write it atomically, with other files or not at all; returns the sealed one."""
    sealed = {**record, "schema": SCHEMA}
    sealed["digest"] = digest(sealed)
    text = json.dumps(sealed, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_together({**(also or {}), path: text})
    return sealed


def read(path: Path) -> Record:
    """Read and verify a record.

    Raises:
        RecordError: Missing, cut off, of another schema, edited by hand, or with a verdict its values do not give.
    """
    again = f"Make it anew: repro run {path.stem} --scale {path.parent.name}."
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(f"There is no record {path.name} at {path.parent.name} scale. {again}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"The record {path} is cut off or not JSON ({error}). {again}") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise RecordError(f"The record {path} is not of schema {SCHEMA}. {again}")
    missing = [key for key in KEYS if key not in record]
    if missing:
        raise RecordError(f"The record {path} lacks {', '.join(missing)}. {again}")
    if record["digest"] != digest(record):
        raise RecordError(f"The record {path} does not fit its digest: it was edited by hand. {again}")
    for claim in record["claims"]:
        if claim["criterion"]["kind"] not in claims.CRITERIA:
            raise RecordError(f"The record {path}: claim {claim['id']} has a criterion this reprolib lacks. {again}")
        if claims.verdict_of(claim) != claim["verdict"]:
            raise RecordError(f"The record {path}: claim {claim['id']} has a verdict its values do not give. {again}")
    return record


def staleness(chapter: ChapterFile, scale: str) -> str | None:
    """Why the record of a chapter cannot be shown as it stands, or None when it can.

    Returns:
        ``"missing"``, ``"stale: ..."`` with the reason, ``"unreadable: ..."``, or None.
    """
    path = chapter.record(scale)
    if not path.is_file():
        return "missing"
    try:
        record = read(path)
        shown = beside(chapter) if scale == "quick" else None
    except RecordError as error:
        return f"unreadable: {error}"
    nb = notebook.read(chapter.path)
    if record["code_hash"] != notebook.code_hash(nb):
        return "stale: the chapter's code changed since this run"
    if scale == "quick" and record.get("beside") != shown:
        return "stale: the full record changed since the verdict table was made"
    return None


def beside(chapter: ChapterFile) -> str | None:
    """Digest of the full record that the quick run shows beside its own verdicts; None when there is none."""
    path = chapter.record("full")
    return str(read(path)["digest"]) if path.is_file() else None


def compare(fresh: Record, stored: Record) -> list[str]:
    """What differs between two runs of one chapter at one scale, in sentences; empty when they agree.

    Verdicts must be equal. The mean of a claim judged by an interval must lie inside the stored interval. The numbers
    under figures agree to the share of their largest magnitude that the chapter allowed.
    """
    found = []
    if fresh["code_hash"] != stored["code_hash"]:
        found.append("the notebook's code is not the code of the stored record")
    old = {c["id"]: c for c in stored["claims"]}
    new = {c["id"]: c for c in fresh["claims"]}
    if list(old) != list(new):
        found.append(f"claims are {', '.join(new)}; the stored record has {', '.join(old)}")
    for key in (k for k in old if k in new):
        a, b = new[key], old[key]
        if a["verdict"] != b["verdict"]:
            found.append(f"claim {key}: {a['verdict']}, stored {b['verdict']}")
        if not a["exact"] and not b["low"] <= a["mean"] <= b["high"]:
            found.append(f"claim {key}: mean {a['mean']:.6g} outside the stored [{b['low']:.6g}, {b['high']:.6g}]")
        for field in ("text", "criterion", "paper", "unit"):
            if a[field] != b[field]:
                found.append(f"claim {key}: its {field} changed")
        if len(a["values"]) != len(b["values"]):
            found.append(f"claim {key}: {len(a['values'])} seeds, stored {len(b['values'])}")
    for key in sorted(stored["numbers"].keys() | fresh["numbers"].keys()):
        x, y = fresh["numbers"].get(key), stored["numbers"].get(key)
        if x is None or y is None or x["shape"] != y["shape"]:
            found.append(f"numbers {key}: in one record only, or of another shape")
            continue
        room = y["tolerance"] * max((abs(v) for v in y["values"]), default=0.0) + 1e-12
        far = sum(abs(a - b) > room for a, b in zip(x["values"], y["values"], strict=True))
        if far:
            found.append(f"numbers {key}: {far} of {len(y['values'])} differ by more than {room:.2g}")
    return found
