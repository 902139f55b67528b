"""The ``repro`` command: list, run, check, lint, report, doctor, new; book and serve for the site."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from repro import report, runner
from reprolib import project, records
from reprolib.project import ChapterFile, ReproError

Args = argparse.Namespace


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 something is wrong, 2 used wrongly, 130 stopped."""
    args = _parser().parse_args(argv)
    command: Callable[[Args], int] = args.command
    try:
        return command(args)
    except ReproError as error:
        print(f"repro: {error}", file=sys.stderr)
    except OSError as error:
        print(f"repro: {error}. What was stored before is unchanged.", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nrepro: stopped; what was stored before is unchanged.", file=sys.stderr)
        return 130
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="repro", description="Run, check and build the book that checks its papers.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: Callable[[Args], int], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(command=function)
        return sub

    add("list", _list, "Chapters, scales, verdicts and the age of their records.")
    for name, function, help in (
        ("run", _run, "Run chapters from a clean kernel and keep their records."),
        ("check", _check, "Run chapters again at quick scale and compare with their stored records."),
    ):
        sub = add(name, function, help)
        sub.add_argument("slugs", nargs="*", metavar="SLUG")
        sub.add_argument("--all", action="store_true", help="every chapter")
        sub.add_argument("--jobs", type=int, default=1, metavar="N", help="chapters at a time (default 1)")
        sub.add_argument("--no-jupyter", action="store_true", help="run the cells in order without Jupyter")
        if name == "run":
            sub.add_argument("--scale", default="quick", help="quick (two CPU cores) or full (one GPU)")
            sub.add_argument("--device", default="auto", help="auto, cpu or cuda")
            sub.add_argument("--seed", type=int, default=0, help="another seed than 0 is shown, not stored")
            sub.add_argument("--stale", action="store_true", help="only those whose record is missing or stale")
    sub = add("lint", _lint, "Check the contract of the chapters without running them.")
    sub.add_argument("slugs", nargs="*", metavar="SLUG")
    sub = add("report", _report, "Verdict tables of all chapters.")
    sub.add_argument("--format", choices=("markdown", "json"), default="markdown")
    sub.add_argument("--readme", action="store_true", help="renew the counts in README.md")
    add("doctor", _doctor, "What this machine can run.")
    sub = add("new", _new, "Scaffold a chapter from its entry in book/papers.yml.")
    sub.add_argument("slug", metavar="SLUG")
    add("book", _book, "Run the chapters whose record is missing or stale, then build the site.")
    sub = add("serve", _serve, "Show the built site at a local address.")
    sub.add_argument("--port", type=int, default=8000)
    return parser


def _chosen(args: Args) -> list[ChapterFile]:
    if args.all == bool(args.slugs):
        raise ReproError(f"Name chapters, or say --all. {project.nearest('', [c.slug for c in project.chapters()])}")
    return project.chapters() if args.all else [project.find(slug) for slug in dict.fromkeys(args.slugs)]


def _list(_: Args) -> int:
    for chapter in project.chapters():
        print(f"{chapter.slug}  ({chapter.part})")
        for scale in project.SCALES:
            print(f"  {scale:6} {report.status(chapter, scale)}")
    return 0


def _run(args: Args) -> int:
    if args.stale and not args.slugs:
        args.all = True
    project.check_scale(args.scale)
    chosen = _chosen(args)
    if args.stale:
        chosen = [c for c in chosen if records.staleness(c, args.scale)]
    return _run_each(chosen, args)


def _run_each(chosen: list[ChapterFile], args: Args) -> int:
    """Run chapters, a few at a time; a line for each as it ends; one failure does not stop the others."""
    if args.jobs < 1:
        raise ReproError(f"--jobs must be at least 1; got {args.jobs}.")
    keep = args.seed == 0 and not (args.scale == "quick" and args.device not in ("auto", "cpu"))

    def one(chapter: ChapterFile) -> records.Record:
        jupyter = not args.no_jupyter
        live = _Live(chapter.slug) if args.jobs == 1 else None
        settings = {"device": args.device, "seed": args.seed, "jupyter": jupyter, "keep": keep}
        return runner.run(chapter, args.scale, on_progress=live, **settings)

    failures = 0
    with ThreadPoolExecutor(args.jobs) as pool:
        waiting = {pool.submit(one, chapter): chapter for chapter in chosen}
        try:
            for done in as_completed(waiting):
                slug = waiting[done].slug
                try:
                    record = done.result()
                except ReproError as error:
                    failures += 1
                    _line(f"{slug}  {args.scale}  FAILED: {error}")
                    continue
                cost = f"{record['wall_seconds']:.0f} s  {record['peak_ram_mb']} MB"
                _line(f"{slug}  {args.scale}  {cost}  {report.summary(record)}{'' if keep else '  (not stored)'}")
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)  # first, so that no waiting chapter takes a free place
            runner.stop_all()
            raise
    return min(failures, 1)


class _Live:
    """The running chapter's progress, on one line that is gone when it ends; silent where no one looks."""

    def __init__(self, slug: str) -> None:
        self.slug, self.start = slug, time.monotonic()

    def __call__(self, text: str) -> None:
        if sys.stderr.isatty():
            seconds = time.monotonic() - self.start
            print(f"\r\033[K{self.slug}  {seconds:.0f} s  {text}", end="", file=sys.stderr, flush=True)


def _line(text: str) -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    print(text, flush=True)


def _check(args: Args) -> int:
    wrong = 0
    for chapter in _chosen(args):
        found = check(chapter, jupyter=not args.no_jupyter)
        wrong += bool(found)
        _line(f"{chapter.slug}: {'agrees with its record' if not found else 'differs from its record'}")
        for sentence in found:
            print(f"  {sentence}")
    return min(wrong, 1)


def check(chapter: ChapterFile, jupyter: bool = True) -> list[str]:
    """Run a chapter at quick scale, keep nothing, and say in sentences how it differs from its stored record."""
    stored = records.read(chapter.record("quick"))
    fresh = runner.run(chapter, "quick", jupyter=jupyter, keep=False, on_progress=_Live(chapter.slug))
    return records.compare(fresh, stored)


def _lint(args: Args) -> int:
    from repro import lint

    top = project.root()
    paths = {project.find(slug).path for slug in args.slugs}
    problems = [p for p in lint.lint_all(top) if not paths or top / p.path in paths]
    for problem in problems:
        print(problem)
    n = len(paths) or len(project.chapters())
    print(f"{n} chapters, {len(problems) or 'no'} problems.")
    return min(len(problems), 1)


def _report(args: Args) -> int:
    chapters = project.chapters()
    if args.readme:
        changed = report.update_readme(project.root() / "README.md", chapters)
        print(f"README.md {'renewed' if changed else 'is up to date'}.")
    elif args.format == "json":
        print(json.dumps(report.as_json(chapters), indent=1, ensure_ascii=False))
    else:
        print(report.as_markdown(chapters), end="")
    return 0


def _doctor(_: Args) -> int:
    from repro import doctor

    return doctor.main(project.root())


def _new(args: Args) -> int:
    from repro import scaffold

    scaffold.new_chapter(project.root(), args.slug)
    return 0


def _book(_: Args) -> int:
    from repro import site

    top = project.root()
    stale = [c for c in project.chapters(top) if records.staleness(c, "quick")]
    args = Args(scale="quick", device="auto", seed=0, jobs=1, no_jupyter=False)
    if _run_each(stale, args):
        return 1
    for chapter in project.chapters(top):
        if chapter not in stale:
            print(f"{chapter.slug}  quick  kept: {report.status(chapter, 'quick')}")
    if report.update_readme(top / "README.md", project.chapters(top)):
        print("README.md: verdict counts renewed.")
    index = site.build(top)
    print(f"The book is at {_shown(index)}; `make serve` shows it.")
    return 0


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _serve(args: Args) -> int:
    from repro import site

    site.serve(project.root(), port=args.port)
    return 0
