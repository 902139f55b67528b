"""``repro data``: what data sets there are and where, downloads, folders for rooms without internet, checks."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from reprolib import data
from reprolib.data import DataSet, File, Form
from reprolib.project import ReproError

CLEAR = "\r\033[K" if sys.stdout.isatty() else ""


def options(parser: argparse.ArgumentParser) -> None:
    """Add ``list``, ``fetch`` and ``verify`` to the parser of ``repro data``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="all sets: size, where they are, what they replace at full scale, licence")
    sub = actions.add_parser("fetch", help="download public sets and verify them")
    sub.add_argument("names", nargs="*", metavar="NAME")
    sub.add_argument("--all", action="store_true", help="every public set that can be downloaded or is here")
    sub.add_argument("--to", type=Path, metavar="FOLDER", help="fill a folder that can be used as REPRO_DATA")
    sub = actions.add_parser("verify", help="hash again what is here; 1 when a file is not the published one")
    sub.add_argument("names", nargs="*", metavar="NAME")


def main(args: argparse.Namespace) -> int:
    """Run one action; returns the exit code: 0, or 1 when something is wrong or could not be had."""
    return {"list": _list, "fetch": _fetch, "verify": _verify}[args.action](args)


def _list(_: argparse.Namespace) -> int:
    for entry in data.registry().values():
        facts = entry.facts
        size = f"{_megabytes(data.form_here(entry)):.1f} MB" if entry.forms else "-"
        replaces = f"for {facts['replaces']}" if facts.get("replaces") else ""
        print(f"{entry.name:27}{size:>9}  {_presence(entry):23}{replaces:20}{facts['title']} ({facts['licence']})")
    return 0


def _megabytes(form: Form) -> float:
    return sum(file.bytes for file in form.files) / 1e6


def _presence(entry: DataSet) -> str:
    """Where a set is, in a few words."""
    if entry.origin == "generated":
        return "made here"
    if entry.origin == "embedded":
        return entry.facts["package"] + ("" if find_spec(entry.facts["loader"].partition(".")[0]) else ", missing")
    form, places = data.form_here(entry), data.folders()
    for place in places:
        if all(data.where(file, [place]) for file in form.files):
            return "cache" if place == places[-1] else "data folder"
    if any(data.where(file) for file in form.files):
        return "in part"
    return "absent" if form.files[0].urls else "absent, no download"


def _fetch(args: argparse.Namespace) -> int:
    if args.all == bool(args.names):
        raise ReproError("Name data sets, or say --all; `repro data list` shows them.")
    names = [n for n, e in data.registry().items() if e.forms] if args.all else dict.fromkeys(args.names)
    failed = 0
    for entry in map(data.data_set, names):
        if not entry.forms:
            print(f"{entry.name}: needs no download ({_presence(entry)}).")
        elif args.all and _presence(entry) == "absent, no download":
            print(f"{entry.name}: left out, no automatic download: see {entry.facts['page']}")
        else:
            failed += _fetch_one(entry, args.to)
    return min(failed, 1)


def _fetch_one(entry: DataSet, to: Path | None) -> int:
    form = data.form_here(entry, [to, *data.folders()] if to else [])
    try:
        for file in form.files:
            _provide(file, to)
    except ReproError as error:
        print(f"{CLEAR}{entry.name}: {error}")
        return 1
    print(f"{CLEAR}{entry.name}: {form.name} form, {len(form.files)} files, {_megabytes(form):.1f} MB, verified.")
    return 0


def _provide(file: File, to: Path | None) -> None:
    """Have one file: verify what is here, copy it to the folder asked for, download what is missing or spoiled."""
    home = to or data.folders()[-1]
    target = home / file.path
    if path := data.where(file, [home, *data.folders()]):
        try:
            content = data.verified(path, file)
        except ReproError:
            if not (path.is_relative_to(home) and file.urls):
                raise
        else:
            if to is not None and not path.is_relative_to(to):
                target.parent.mkdir(parents=True, exist_ok=True)
                part = target.with_name(f".{target.name}.copy")
                part.write_bytes(content)
                os.replace(part, target)
            return
    data.bring(file, target, partial(_progress, file.path) if CLEAR else None)


def _progress(path: str, have: int, size: int) -> None:
    print(f"{CLEAR}{path}  {have / size:.0%} of {size / 1e6:.1f} MB", end="", flush=True)


def _verify(args: argparse.Namespace) -> int:
    entries = [data.data_set(name) for name in args.names] or list(data.registry().values())
    files = [(file, place) for e in entries for form in e.forms for file in form.files for place in data.folders()]
    here = {path: file for file, place in files if (path := data.where(file, [place]))}
    bad = []
    for path, file in here.items():
        try:
            data.verified(path, file)
        except ReproError as error:
            bad.append(str(error))
    print(*bad, f"{len(here)} files here, {len(bad) or 'none'} of them not the published one.", sep="\n")
    return min(len(bad), 1)
