"""The ``repro`` command: list, run, train, check, lint, report, doctor, new; book, archive and serve for the site."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from repro import coursecli, datacli, mutate, report, runner, schedule, soak
from reprolib import project, records
from reprolib.chapter import pick_device
from reprolib.project import ChapterFile, ReproError

Args = argparse.Namespace
Run = Callable[..., records.Record]  # as runner.run
THREADS = "chapter"  # name of the threads that run chapters


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 something is wrong, 2 used wrongly, 130 or 143 stopped."""
    args = _parser().parse_args(argv)
    command: Callable[[Args], int] = args.command
    try:
        with _terminable():
            code = command(args)
            sys.stdout.flush()
            return code
    except ReproError as error:
        print(f"repro: {error}", file=sys.stderr)
    except BrokenPipeError:  # whoever reads has seen enough: `repro list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"repro: {error}. What was stored before is unchanged.", file=sys.stderr)
    except KeyboardInterrupt as stop:
        print("\nrepro: stopped; what was stored before is unchanged.", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130
    return 1


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: a machine that is taken back sends it."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into an exception meanwhile, in the main thread, where alone that is possible."""

    def terminate(*_: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
        sub.add_argument("--jobs", type=int, metavar="N", help="chapters at a time (default 1)")
        sub.add_argument("--no-jupyter", action="store_true", help="run the cells in order without Jupyter")
        if name == "run":
            sub.add_argument("--scale", default="quick", help="quick (two CPU cores) or full (one GPU)")
            sub.add_argument("--device", default="auto", help="auto, cpu or cuda")
            sub.add_argument("--seed", type=int, default=0, help="another seed than 0 is shown, not stored")
            sub.add_argument("--stale", action="store_true", help="only those whose record is missing or stale")
            about = "start no chapter that takes longer than what is left of S seconds, and stop then"
            sub.add_argument("--budget", type=float, metavar="S", help=about)
            about = "local (processes of this machine) or dask (workers of a cluster)"
            sub.add_argument("--engine", choices=("local", "dask"), default="local", help=about)
            about = "Dask scheduler; --jobs is then as many as its workers take (default: workers of our own)"
            sub.add_argument("--address", metavar="TCP", help=about)
            about = f"a chapter that runs longer fails (default {runner.LIMITS['quick']:.0f} at quick scale, else none)"
            sub.add_argument("--limit", type=float, metavar="S", help=about)
            sub.epilog = (
                "Exit code: 0 when all that was run succeeded, though the budget may have left some; 1 when one failed."
            )
        else:
            about = "write the verdicts that moved to a new Markdown file"
            sub.add_argument("--table", type=Path, metavar="FILE", help=about)
    sub = add("train", _train, "Train a model that the book ships, by its recipe in models/.")
    sub.add_argument("name", metavar="NAME")
    about = "passed on to the recipe: --scale, --device, --seed, --steps ...; --help names them"
    sub.add_argument("options", nargs=argparse.REMAINDER, metavar="OPTION ...", help=about)
    sub = add("lint", _lint, "Check the contract of the chapters without running them.")
    sub.add_argument("slugs", nargs="*", metavar="SLUG")
    sub = add("report", _report, "Verdict tables of all chapters.")
    sub.add_argument("--format", choices=("markdown", "json", "csv"), default="markdown")
    sub.add_argument("--readme", action="store_true", help="renew the counts in README.md")
    sub = add("mutate", _mutate, "Break a chapter's method in small ways, and see which breaks its tests notice.")
    sub.add_argument("slugs", nargs="*", metavar="SLUG")
    sub.add_argument("--all", action="store_true", help="every chapter")
    sub.add_argument("--limit", type=int, default=40, metavar="N", help="so many, drawn at random (default 40)")
    sub.add_argument("--seed", type=int, default=0, help="of the draw")
    sub.add_argument("--only", default="", metavar="TEXT", help="only mutants whose description holds this")
    sub.add_argument("--keep", action="store_true", help="store the report, which the book shows")
    sub.add_argument("--again", action="store_true", help="try the survivors of the stored report, and renew it")
    sub.epilog = f"Exit code: 1 when fewer than {mutate.GOAL:.0%} of a chapter's mutants are killed."
    sub = add("soak", _soak, "Run chapters again and again under changing conditions, and keep every disagreement.")
    sub.add_argument("slugs", nargs="*", metavar="SLUG", help="which (default all)")
    sub.add_argument("--times", type=int, default=10, metavar="N", help="so many rounds (default 10)")
    sub.add_argument("--jobs", type=int, default=1, metavar="N", help="chapters at a time (default 1)")
    datacli.options(add("data", datacli.main, "Data sets: what there is and where, downloads, checks."))
    coursecli.options(add("course", coursecli.main, "Material for a course: copies, slides, handouts, assignments."))
    add("colab", _colab, "Renew the cell that fetches the book where a notebook is opened alone in Colab.")
    add("doctor", _doctor, "What this machine can run.")
    sub = add("new", _new, "Scaffold a chapter from its entry in book/papers.yml.")
    sub.add_argument("slug", metavar="SLUG")
    add("book", _book, "Run the chapters whose record is missing or stale, then build the site.")
    sub = add("archive", _archive, "One zip file with site, notebooks and all else, for a room without internet.")
    sub.add_argument("--out", type=Path, metavar="FILE", help="a new file (default: one in _build, replaced)")
    sub = add("serve", _serve, "Show the built site at a local address.")
    sub.add_argument("--port", type=int, default=8000)
    return parser


def _chosen(args: Args, every: Callable[[], list[ChapterFile]] = project.notebooks) -> list[ChapterFile]:
    if args.all == bool(args.slugs):
        raise ReproError(f"Name chapters, or say --all. {project.nearest('', [c.slug for c in project.notebooks()])}")
    return every() if args.all else [project.find(slug) for slug in dict.fromkeys(args.slugs)]


def _mutate(args: Args) -> int:
    if args.keep and args.only:
        raise ReproError("--keep stores a report on a draw from all mutants; leave out --only.")
    if args.again and (args.keep or args.only):
        raise ReproError("--again tries the survivors of the stored report; leave out --keep and --only.")
    if args.limit < 1:
        raise ReproError(f"--limit must be at least 1; got {args.limit}.")
    shares = []
    for chapter in _chosen(args, project.chapters):
        draw = mutate.survivors(chapter) if args.again else mutate.drawn(chapter, args.limit, args.seed, args.only)
        outcomes = list(_judged(chapter, draw))
        if args.keep:
            mutate.keep(chapter, outcomes, args.seed)
        if args.again:
            mutate.keep_again(chapter, outcomes)
        same = mutate.equivalent(chapter)
        lived = [o for o in outcomes if o.said == "survived"]
        counted, killed = len(draw) - sum(o.mutant.name in same for o in lived), len(draw) - len(lived)
        if args.again and (found := mutate.tally(chapter)):
            counted, killed = found.counted, found.killed
        shares.append(killed / max(counted, 1))
        print(f"{chapter.slug}: {killed} of {counted} mutants killed ({shares[-1]:.0%})", flush=True)
    return int(min(shares) < mutate.GOAL)


def _judged(chapter: ChapterFile, draw: list[mutate.Mutant]) -> Iterator[mutate.Outcome]:
    """What the tests say to each mutant, with a line for each survivor and each wrong judgement."""
    same = mutate.equivalent(chapter)
    for outcome in mutate.judge(chapter, draw):
        why = same.get(outcome.mutant.name)
        if outcome.said == "survived":
            print(f"  {'survived, and is the same' if why else 'survived'}: {outcome.mutant}", flush=True)
        elif why or outcome.said == "timed out":
            print(f"  {outcome.said}{', though judged the same' if why else ''}: {outcome.mutant}", flush=True)
        yield outcome


def _soak(args: Args) -> int:
    if args.times < 1:
        raise ReproError(f"--times must be at least 1; got {args.times}.")
    if args.jobs < 1:
        raise ReproError(f"--jobs must be at least 1; got {args.jobs}.")
    args.all = not args.slugs
    wrong = runs = 0
    for line in soak.soak(_chosen(args, project.chapters), project.root(), args.times, args.jobs):
        runs, wrong = runs + 1, wrong + bool(line["problems"])
        print(f"{soak.words(line)}: {'; '.join(line['problems']) or 'agrees'}", flush=True)
    print(f"{runs} runs, {wrong or 'none'} of which disagree with the stored records.")
    return min(wrong, 1)


def _list(_: Args) -> int:
    broken = 0
    for chapter in project.notebooks():
        print(f"{chapter.slug}  ({chapter.part})")
        try:
            for scale in project.SCALES:
                print(f"  {scale:6} {report.status(chapter, scale)}")
        except ReproError as error:
            broken = 1
            print(f"repro: {error}", file=sys.stderr)
    top = project.root()
    for card in sorted((top / "models").glob("*.json")):
        print(f"{card.stem}  (model)\n  {_card(card)}")
    if recipes := [path.stem.replace("_", "-") for path in _recipes(top)]:
        print(f"Recipes for repro train: {', '.join(recipes)}")
    return broken


def _card(path: Path) -> str:
    """The card of a model in one line: its numbers and short texts, in their order."""
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not text
        return f"unreadable: {error}"
    fields = card.items() if isinstance(card, dict) else ()
    shown = [f"{key} {value}" for key, value in fields if isinstance(value, int | float | str) and len(str(value)) < 30]
    return ", ".join(shown) or "its card says nothing"


def _run(args: Args) -> int:
    if args.stale and not args.slugs:
        args.all = True
    project.check_scale(args.scale)
    if args.jobs is not None and args.jobs < 1:
        raise ReproError(f"--jobs must be at least 1; got {args.jobs}.")
    if args.address and args.engine != "dask":
        raise ReproError("--address is that of a Dask scheduler; add --engine dask.")
    gpu = _gpu(args)
    if args.budget is not None and not args.budget > 0:
        raise ReproError(f"--budget must be a positive number of seconds; got {args.budget:g}.")
    if args.limit is not None and not args.limit > 0:
        raise ReproError(f"--limit must be a positive number of seconds; got {args.limit:g}.")
    every = project.notebooks if args.scale == "quick" else project.chapters  # pages are quick
    dues = schedule.survey(_chosen(args, every), args.scale)
    if args.stale:
        dues = [due for due in dues if due.why]
    dues = sorted(dues, key=schedule.urgency) if args.all else dues
    if args.engine == "local" or not dues:
        return _run_each(dues, args, runner.run, args.jobs or 1)
    from repro import cluster

    if args.budget is None:
        dues = sorted(dues, key=schedule.length)
    with cluster.connected(args.address, args.jobs, gpu) as engine:
        return _run_each(dues, args, engine.run, engine.jobs)


def _gpu(args: Args) -> bool:
    """Whether a run will use a GPU, which has to be here unless other machines are asked."""
    if args.address is None:
        return pick_device(args.device, args.scale).type == "cuda"
    if args.device.partition(":")[0] not in ("auto", "cpu", "cuda"):
        raise ReproError(f"--device must be auto, cpu or cuda; got {args.device!r}.")
    return args.device.startswith("cuda") or (args.device == "auto" and args.scale == "full")


def _run_each(dues: list[schedule.Due], args: Args, run: Run, jobs: int) -> int:
    """Run chapters, a few at a time, within the budget; a line for each as it ends; no failure stops the others."""
    budget = schedule.Budget(math.inf if args.budget is None else args.budget)
    tally = schedule.Tally(dues, args.scale, budget)
    try:
        with ThreadPoolExecutor(jobs, thread_name_prefix=THREADS) as pool:
            live = jobs == 1 and args.engine == "local"
            try:
                for ended in [pool.submit(_run_one, due, args, budget, tally, run, live) for due in dues]:
                    ended.result()
            except KeyboardInterrupt:
                budget.stop()  # the threads kill their workers and start no other
                raise
    finally:
        for thread in threading.enumerate():  # a signal that falls between its start and its entry in the pool's list
            if thread.name.startswith(THREADS):  # leaves a thread for which the pool does not wait
                thread.join()
        left = tally.unfinished()
        if args.budget is not None or (left and len(dues) > 1):
            _line(tally.summary() + (f"\n  Go on with: {_again(args, left)}" if left else ""))
    return min(len(tally.of("failed")), 1)


def _run_one(
    due: schedule.Due, args: Args, budget: schedule.Budget, tally: schedule.Tally, run: Run, live: bool
) -> None:
    """Run a chapter if it still fits into the budget, and tell how it ended."""
    if not budget.fits(due):
        return
    slug, start = due.chapter.slug, time.monotonic()
    keep = args.seed == 0 and not (args.scale == "quick" and args.device not in ("auto", "cpu"))
    settings = {"device": args.device, "seed": args.seed, "jupyter": not args.no_jupyter, "keep": keep}
    settings |= {"limit": args.limit}
    try:
        shown = _Live(slug) if live else None
        record = run(due.chapter, args.scale, on_progress=shown, stopped=budget.over, **settings)
    except runner.Cut:
        seconds = time.monotonic() - start
        tally.note(slug, "cut", seconds)
        _line(f"{slug}  {args.scale}  CUT after {seconds:.0f} s")
    except Exception as error:
        tally.note(slug, "failed")
        known = isinstance(error, ReproError)
        _line(f"{slug}  {args.scale}  FAILED: {error if known else f'{type(error).__name__}: {error}'}")
        if not known:
            raise
    else:
        tally.note(slug, "done")
        cost = f"{record['wall_seconds']:.0f} s  {record['peak_ram_mb']} MB"
        _line(f"{slug}  {args.scale}  {cost}  {report.summary(record)}{'' if keep else '  (not stored)'}")


def _again(args: Args, slugs: list[str]) -> str:
    """The command that runs some chapters with the settings of this one."""
    as_module = Path(sys.argv[0]).name == "__main__.py"
    words = [Path(sys.executable).name, "-m", "repro"] if as_module else ["repro"]
    words += ["run", *slugs]
    usual = {"scale": "quick", "device": "auto", "seed": 0, "jobs": 1, "budget": None, "limit": None}
    usual |= {"engine": "local", "address": None}
    for name in usual:
        value = getattr(args, name)
        words += [f"--{name}", str(value).removesuffix(".0")] if value not in (usual[name], None) else []
    return shlex.join([*words, *(["--no-jupyter"] if args.no_jupyter else [])])


def _train(args: Args) -> int:
    top = project.root()
    known = {path.stem.replace("_", "-"): path for path in _recipes(top)}
    if args.name not in known:
        raise ReproError(f"No model {args.name!r}. {project.nearest(args.name, list(known))}")
    paths = [str(top), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | {"REPRO_ROOT": str(top), "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0"}
    code = subprocess.run([sys.executable, str(known[args.name]), *args.options], env=env, check=False).returncode
    return code if code >= 0 else 128 - code  # ended by a signal: as a shell has it


def _recipes(top: Path) -> list[Path]:
    return [path for path in sorted((top / "models").glob("*.py")) if not path.name.startswith("_")]


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
    if args.table and args.table.exists():
        raise ReproError(f"{args.table} exists already; name a new file.")
    wrong, rows, chapters = 0, [], _chosen(args)
    for chapter in chapters:
        stored = records.read(chapter.record("quick"))
        try:
            fresh = _again_quick(chapter, not args.no_jupyter)
            found = records.compare(fresh, stored)
            rows += report.moved(stored, fresh)
        except ReproError as error:  # the other chapters are checked all the same
            found = [str(error)]
            rows.append([chapter.slug, "the run", "ended", "failed", str(error)])
        wrong += bool(found)
        _line(f"{chapter.slug}: {'agrees with its record' if not found else 'differs from its record'}")
        for sentence in found:
            print(f"  {sentence}")
    if args.table:
        records.write_atomic(args.table, report.moved_table(rows, len(chapters)))
    return min(wrong, 1)


def check(chapter: ChapterFile, jupyter: bool = True) -> list[str]:
    """Run a chapter at quick scale, keep nothing, and say in sentences how it differs from its stored record."""
    stored = records.read(chapter.record("quick"))
    return records.compare(_again_quick(chapter, jupyter), stored)


def _again_quick(chapter: ChapterFile, jupyter: bool) -> records.Record:
    return runner.run(chapter, "quick", jupyter=jupyter, keep=False, on_progress=_Live(chapter.slug))


def _lint(args: Args) -> int:
    from repro import lint

    top = project.root()
    paths = {project.find(slug).path for slug in args.slugs}
    problems = [p for p in lint.lint_all(top) if not paths or top / p.path in paths]
    for problem in problems:
        print(problem)
    n = len(paths) or len(project.notebooks())
    print(f"{n} notebooks, {len(problems) or 'no'} problems.")
    return min(len(problems), 1)


def _report(args: Args) -> int:
    chapters = project.chapters()
    if args.readme:
        changed = report.update_readme(project.root() / "README.md", chapters)
        print(f"README.md {'renewed' if changed else 'is up to date'}.")
    elif args.format == "json":
        print(json.dumps(report.as_json(chapters), indent=1, ensure_ascii=False))
    elif args.format == "csv":
        print(report.as_csv(chapters), end="")
    else:
        print(report.as_markdown(chapters), end="")
    return 0


def _colab(_: Args) -> int:
    from repro import colab

    return colab.main(project.root())


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
    stale = [due for due in schedule.survey(project.notebooks(top), "quick") if due.why]
    args = Args(scale="quick", device="auto", seed=0, jobs=1, engine="local", no_jupyter=False, budget=None, limit=None)
    if _run_each(stale, args, runner.run, 1):
        return 1
    for chapter in project.notebooks(top):
        if chapter not in {due.chapter for due in stale}:
            print(f"{chapter.slug}  quick  kept: {report.status(chapter, 'quick')}")
    if report.update_readme(top / "README.md", project.chapters(top)):
        print("README.md: verdict counts renewed.")
    index = site.build(top)
    print(f"The book is at {_shown(index)}; `make serve` shows it.")
    return 0


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _archive(args: Args) -> int:
    from repro import archive

    return archive.main(args.out)


def _serve(args: Args) -> int:
    from repro import site

    site.serve(project.root(), port=args.port)
    return 0
