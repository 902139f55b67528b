"""The ``repro`` command, without running a notebook: finding, listing, reporting, refusing."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
import torch

from repro import cli, doctor, report, runner, schedule
from repro.runner import has_jupyter
from reprolib import ReproError, project, records


@pytest.fixture
def repro(capsys):
    """Runs the command; returns its exit code, output and error output."""

    def run(*argv):
        code = cli.main(argv)
        return code, *capsys.readouterr()

    return run


def test_who_has_read_enough_may_stop_reading(repro_command, stored):
    with subprocess.Popen([*repro_command, "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


# ------------------------------------------------------------------------------------------------------ project


def test_the_checkout_is_found_from_any_folder_inside_it(checkout, tmp_path, monkeypatch):
    chapter = checkout()
    monkeypatch.delenv("REPRO_ROOT")
    monkeypatch.chdir(chapter.path.parent)
    assert project.root() == tmp_path == chapter.root
    assert project.chapters() == [chapter] == [project.find("toy")]
    assert chapter.record("full") == tmp_path / "results" / "full" / "toy.json"


def test_hidden_copies_are_no_chapters(checkout, tmp_path):
    chapter = checkout()
    (chapter.path.parent / ".toy-checkpoint.ipynb").write_text("{}")
    assert [c.slug for c in project.chapters()] == ["toy"]


@pytest.mark.parametrize(
    ("slug", "hint"),
    [
        ("toi", r"Did you mean toy\?"),
        ("fisher-mergin", r"Did you mean fisher-merging\?"),
        ("xxxxxx", r"Known are: fisher-merging, toy\."),
    ],
)
@pytest.mark.parametrize("command", ["run", "check", "lint"])
def test_an_unknown_slug_names_the_nearest(repro, checkout, command, slug, hint):
    checkout()
    checkout(slug="fisher-merging")
    code, out, err = repro(command, slug)
    assert (code, out) == (1, "") and re.search(f"repro: No chapter '{slug}'. {hint}", err)


def test_a_checkout_without_chapters_says_so(repro, tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_ROOT", str(tmp_path))
    assert repro("run", "toy")[2] == "repro: No chapter 'toy'. Known are: none.\n"


def test_papers_that_are_missing_are_named(tmp_path):
    with pytest.raises(ReproError, match=r"papers\.yml is missing"):
        project.papers(tmp_path)


# ------------------------------------------------------------------------------------------ run, used wrongly


@pytest.mark.parametrize("argv", [("run",), ("check",), ("run", "toy", "--all"), ("check", "toy", "--all")])
def test_chapters_are_named_or_all_are_meant(repro, stored, argv):
    code, out, err = repro(*argv)
    assert (code, out) == (1, "") and err == "repro: Name chapters, or say --all. Known are: toy.\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("run", "toy", "--scale", "medium"), "must be quick or full; got 'medium'"),
        (("run", "toy", "--jobs", "0"), "--jobs must be at least 1; got 0"),
        (("run", "toy", "--budget", "0"), "--budget must be a positive number of seconds; got 0"),
        (("run", "toy", "--budget", "-2.5"), "--budget must be a positive number of seconds; got -2.5"),
        (("run", "toy", "--budget", "nan"), "--budget must be a positive number of seconds; got nan"),
        (("run", "toy", "--device", "gpu"), "must be auto, cpu or cuda; got 'gpu'"),
    ],
)
def test_a_setting_that_is_none_is_refused_before_anything_runs(repro, stored, argv, message):
    before = stored.record("quick").read_bytes()
    code, out, err = repro(*argv)
    assert (code, out) == (1, "") and message in err
    assert stored.record("quick").read_bytes() == before


@pytest.mark.parametrize("argv", [(), ("fly",), ("run", "toy", "--seed", "x"), ("report", "--format", "xml")])
def test_a_command_used_wrongly_exits_with_two(capsys, argv):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2 and "usage: repro" in capsys.readouterr().err


def test_run_stale_runs_nothing_when_all_is_fresh(repro, stored, monkeypatch):
    monkeypatch.setattr(cli.runner, "run", lambda *_, **__: pytest.fail("a fresh chapter was run"))
    before = stored.record("quick").read_bytes()
    assert repro("run", "--stale") == (0, "", "")
    assert stored.record("quick").read_bytes() == before


def test_run_stale_runs_what_is_missing_or_stale_and_that_alone(repro, checkout, store, monkeypatch):
    fresh, old, missing = (checkout(slug=slug) for slug in ("fresh", "old", "missing"))
    store(fresh)
    store(old, code_hash="0" * 64)
    ran = []

    def fake(chapter, scale, **_):
        ran.append((chapter, scale))
        return records.read(fresh.record("quick"))

    monkeypatch.setattr(cli.runner, "run", fake)
    code, out, _ = repro("run", "--stale")
    assert code == 0 and ran == [(missing, "quick"), (old, "quick")]
    assert re.search(r"^old  quick  2 s  \d+ MB  1 reproduced, 1 inconclusive, 1 not reproduced$", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("argv", "keep"),
    [
        ((), True),
        (("--device", "cpu"), True),
        (("--seed", "1"), False),
        (("--device", "cuda"), False),
        (("--scale", "full", "--device", "cuda"), True),
        (("--scale", "full", "--seed", "3"), False),
    ],
)
def test_only_seed_zero_on_the_device_of_its_scale_is_stored(repro, stored, monkeypatch, argv, keep):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    seen = {}

    def fake(chapter, scale, **settings):
        seen.update(settings)
        return records.read(stored.record("quick"))

    monkeypatch.setattr(cli.runner, "run", fake)
    code, out, _ = repro("run", "toy", *argv)
    assert code == 0 and seen["keep"] is keep and ("(not stored)" in out) is not keep


def test_one_failure_does_not_stop_the_others(repro, checkout, store, monkeypatch):
    good, bad = checkout(slug="good"), checkout(slug="bad")
    store(good)

    def fake(chapter, scale, **_):
        if chapter == bad:
            raise ReproError("bad, cell 2, line 1: ValueError: no")
        return records.read(good.record("quick"))

    monkeypatch.setattr(cli.runner, "run", fake)
    code, out, _ = repro("run", "--all", "--jobs", "2")
    assert code == 1 and "bad  quick  FAILED: bad, cell 2, line 1: ValueError: no" in out and "good  quick  2 s" in out


@pytest.mark.parametrize(
    ("device", "gpus", "message"),
    [
        ("cuda", 0, f"Device cuda was asked for, but torch {re.escape(torch.__version__)} sees no GPU here; use cpu."),
        ("cuda:2", 2, r"Device cuda:2 was asked for, but torch sees 2 here, from cuda:0\."),
    ],
)
def test_a_gpu_that_is_not_there_is_refused_before_anything_runs(repro, stored, monkeypatch, device, gpus, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(cli.runner, "run", lambda *_, **__: pytest.fail("a chapter was run"))
    code, out, err = repro("run", "--all", "--scale", "full", "--device", device)
    assert (code, out) == (1, "") and re.fullmatch(f"repro: {message}\n", err)


# --------------------------------------------------------------------------------------------- run, within a budget


@pytest.fixture
def paced(checkout, store, monkeypatch):
    """Chapters a to d, each as long as a test says; their runs move a clock instead of lasting."""
    now, ran = [0.0], []
    monkeypatch.setattr(schedule.time, "monotonic", lambda: now[0])
    for slug in "abcd":
        checkout(slug=slug)
    like = store(project.find("a"))
    project.find("a").record("quick").unlink()
    lengths = {}

    def run(chapter, scale, *, stopped, **_):
        ran.append(chapter.slug)
        if isinstance(lengths[chapter.slug], Exception):
            raise lengths[chapter.slug]
        for _ in range(lengths[chapter.slug]):
            if stopped():
                raise runner.Cut("cut")
            now[0] += 1
        return like

    def make(**given):
        lengths.update(given)
        return ran

    monkeypatch.setattr(cli.runner, "run", run)
    monkeypatch.setattr(sys, "argv", ["/bin/repro"])
    return make


def test_a_budget_ends_the_chapter_it_runs_out_on_and_says_how_to_go_on(repro, paced):
    ran = paced(a=10, b=25, c=5, d=5)
    code, out, err = repro("run", "--stale", "--scale", "full", "--budget", "30", "--no-jupyter")
    assert (code, err, ran) == (0, "", ["a", "b"])
    assert out.splitlines()[1:] == [
        "b  full  CUT after 20 s",
        "full: 1 done, 0 failed, 1 cut, 2 not started; 30 of 30 s used.",
        "  cut: b (after 20 s)",
        "  not started: c, d",
        "  Go on with: repro run c d b --scale full --budget 30 --no-jupyter",
    ]
    again = out.splitlines()[-1].split("repro ")[1].split()
    del ran[:]
    assert repro(*again)[0] == 0 and ran == ["c", "d", "b"]  # as named: what was cut comes last


def test_a_chapter_that_took_longer_than_what_is_left_is_left_out_and_a_shorter_one_runs(repro, paced, store):
    ran = paced(a=10, b=10, c=10, d=10)
    for slug, seconds, date in (("b", 15, "2026-01-01"), ("c", 21, "2026-01-02"), ("d", 10, "2026-01-03")):
        store(project.find(slug), wall_seconds=seconds, date=f"{date}T00:00:00+00:00", code_hash="0" * 64)
    code, out, _ = repro("run", "--all", "--budget", "30", "--device", "cpu", "--jobs", "1")
    assert code == 0 and ran == ["a", "b", "d"]
    assert out.splitlines()[-2:] == [
        "  not started: c (took 21 s last time)",
        "  Go on with: repro run c --device cpu --budget 30",
    ]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ReproError("a: the run ended with status -9."), "a: the run ended with status -9."),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
    ],
)
def test_no_failure_stops_the_others_nor_is_it_run_again(repro, paced, error, said):
    ran = paced(a=error, b=5, c=30, d=1)
    code, out, err = repro("run", "--stale", "--budget", "20")
    assert code == 1 and ran == ["a", "b", "c"] and f"a  quick  FAILED: {said}\n" in out
    assert "quick: 1 done, 1 failed, 1 cut, 1 not started; 20 of 20 s used.\n  failed: a\n" in out
    assert out.endswith("Go on with: repro run d c --budget 20\n")
    assert ("What was stored before is unchanged." in err) is isinstance(error, OSError)


def test_an_error_of_our_own_shows_its_trace_after_all_others_have_run(repro, paced, capsys):
    ran = paced(a=KeyError("wall_seconds"), b=5, c=5, d=5)
    with pytest.raises(KeyError, match="wall_seconds"):
        cli.main(["run", "--all"])
    assert ran == ["a", "b", "c", "d"]
    assert "a  quick  FAILED: KeyError: 'wall_seconds'\n" in capsys.readouterr().out


def test_a_budget_that_was_enough_leaves_nothing_to_go_on_with(repro, paced):
    paced(a=1, b=1, c=1, d=1)
    out = repro("run", "--all", "--budget", "1e3")[1]
    assert out.endswith("quick: 4 done, 0 failed, 0 cut, 0 not started; 4 of 1000 s used.\n")


def test_all_runs_in_the_order_of_urgency_and_named_chapters_as_named(repro, paced, store):
    ran = paced(a=1, b=1, c=1, d=1)
    store(project.find("a"))
    store(project.find("b"), code_hash="0" * 64)
    assert repro("run", "--all")[0] == 0 and ran == ["c", "d", "b", "a"]
    del ran[:]
    assert repro("run", "d", "a", "c", "--budget", "50")[0] == 0 and ran == ["d", "a", "c"]


def test_a_command_to_go_on_repeats_every_setting_and_how_the_command_was_called(monkeypatch):
    parse = cli._parser().parse_args
    monkeypatch.setattr(sys, "argv", ["/somewhere/repro/__main__.py"])
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3.12")
    flags = "--scale full --device cuda --seed 3 --jobs 2 --budget 540.5 --no-jupyter"
    args = parse(["run", "--all", "--stale", *flags.split()])
    assert cli._again(args, ["x", "y"]) == f"python3.12 -m repro run x y {flags}"
    assert cli._again(parse(["run", "x"]), ["x"]) == "python3.12 -m repro run x"


def test_a_signal_while_a_thread_starts_does_not_lose_its_chapter(repro, checkout, monkeypatch):
    for slug in "ab":
        checkout(slug=slug)
    running, start = [], threading.Thread.start

    def run(chapter, scale, *, stopped, **_):
        running.append(chapter.slug)
        while not stopped():
            time.sleep(0.01)
        time.sleep(0.3)
        raise runner.Cut("cut")

    def interrupted(thread):
        start(thread)
        while thread.name.endswith("_1") and len(running) < 2:
            time.sleep(0.01)
        if thread.name.endswith("_1"):
            raise KeyboardInterrupt

    monkeypatch.setattr(cli.runner, "run", run)
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    code, out, _ = repro("run", "--all", "--jobs", "2")
    assert code == 130 and "0 done, 0 failed, 2 cut, 0 not started" in out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_all_threads_and_the_summary_is_still_printed(repro, checkout, monkeypatch, number, code):
    for slug in "abc":
        checkout(slug=slug)
    running = []

    def run(chapter, scale, *, stopped, **_):
        running.append(chapter.slug)
        while not stopped():
            time.sleep(0.01)
        raise runner.Cut("cut")

    def send():
        while len(running) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(cli.runner, "run", run)
    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=send, daemon=True).start()
    found, out, err = repro("run", "--all", "--jobs", "2")
    assert found == code and err.strip() == "repro: stopped; what was stored before is unchanged."
    assert sorted(running) == ["a", "b"] and "0 done, 0 failed, 2 cut, 1 not started" in out
    assert re.search(r"Go on with: \S.*run c a b --jobs 2\n", out)
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_command_works_in_a_thread_where_no_signal_can_be_caught(repro, stored):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(cli.main(["run", "--stale"])))
    thread.start()
    thread.join()
    assert codes == [0]


# ----------------------------------------------------------------------------------------------------------- train

RECIPE = """import os, signal, sys
from pathlib import Path
import own
Path("said").write_text(" ".join([*sys.argv[1:], os.environ["REPRO_ROOT"], own.__file__]))
if "--die" in sys.argv:
    os.kill(os.getpid(), signal.SIGKILL)
if "--hold" in sys.argv:
    os.kill(os.getppid(), signal.SIGTERM)
    signal.pause()
sys.exit(7 if "--fail" in sys.argv else 0)
"""


@pytest.fixture
def models(checkout, tmp_path, monkeypatch):
    """A checkout with the recipes toy-net and other; the toy says what it was given in the file ``said``."""
    checkout()
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "toy_net.py").write_text(RECIPE)
    (folder / "other.py").write_text("raise SystemExit('the wrong one')")
    (folder / "_shared.py").write_text("")
    (tmp_path / "own.py").write_text("")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize(
    ("options", "code"), [("", 0), ("--scale full --steps 3 --seed 1 --out x", 0), ("--fail", 7), ("--die", 137)]
)
def test_train_passes_the_options_on_and_returns_the_recipes_exit_code(repro, models, tmp_path, options, code):
    assert repro("train", "toy-net", *options.split()) == (code, "", "")
    said = [*options.split(), str(tmp_path), str(tmp_path / "own.py")]
    assert (tmp_path / "said").read_text().split() == said


@pytest.mark.parametrize(("name", "hint"), [("toy-nat", "Did you mean toy-net?"), ("x", "Known are: other, toy-net.")])
def test_an_unknown_model_names_the_known_ones(repro, models, name, hint):
    assert repro("train", name) == (1, "", f"repro: No model {name!r}. {hint}\n")


def test_a_checkout_without_models_says_so(repro, stored):
    assert repro("train", "toy-net")[2] == "repro: No model 'toy-net'. Known are: none.\n"


def test_stopping_train_stops_the_recipe(repro, models):
    start = time.monotonic()
    code, _, err = repro("train", "toy-net", "--hold")
    assert code == 143 and "repro: stopped; what was stored before is unchanged." in err
    assert time.monotonic() - start < 10


def test_list_shows_the_models_by_a_line_of_their_card(repro, models):
    long = {"sha256": "0" * 64, "curve": [1, 2], "config": {}}
    (models / "toy-net.json").write_text(json.dumps({"parameters": 1200, "device": "cpu", **long, "accuracy": 0.5}))
    (models / "empty.json").write_text("{}")
    (models / "list.json").write_text("[1]")
    (models / "torn.json").write_text('{"a"')
    code, out, err = repro("list")
    assert (code, err) == (0, "")
    assert out.splitlines()[3:] == [
        *("empty  (model)", "  its card says nothing"),
        *("list  (model)", "  its card says nothing"),
        *("torn  (model)", "  unreadable: Expecting ':' delimiter: line 1 column 5 (char 4)"),
        *("toy-net  (model)", "  parameters 1200, device cpu, accuracy 0.5"),
        "Recipes for repro train: other, toy-net",
    ]


def test_check_says_how_a_fresh_run_differs(repro, stored, monkeypatch):
    fresh = records.read(stored.record("quick"))
    monkeypatch.setattr(cli.runner, "run", lambda *_, **__: fresh)
    assert repro("check", "toy")[:2] == (0, "toy: agrees with its record\n")
    fresh["claims"][0]["verdict"] = "inconclusive"
    assert repro("check", "toy")[:2] == (
        1,
        "toy: differs from its record\n  claim c1: inconclusive, stored reproduced\n",
    )


def test_check_writes_the_verdicts_that_moved_as_a_table(repro, stored, monkeypatch, tmp_path):
    fresh, file = records.read(stored.record("quick")), tmp_path / "moved.md"
    monkeypatch.setattr(cli.runner, "run", lambda *_, **__: fresh)
    assert repro("check", "toy", "--table", str(file))[0] == 0
    assert file.read_text(encoding="utf-8") == "0 of 1 chapters have moved.\n"
    code, _, err = repro("check", "toy", "--table", str(file))
    assert code == 1 and "moved.md exists already; name a new file" in err
    file.unlink()
    fresh["claims"][0] |= {"verdict": "inconclusive", "mean": 0.5}
    assert repro("check", "toy", "--table", str(file))[0] == 1
    assert file.read_text(encoding="utf-8").splitlines()[-1] == "| toy | c1 | reproduced | inconclusive | 2 → 0.5 |"


def test_check_goes_on_after_a_chapter_that_fails(repro, stored, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise ReproError("toy, cell 3, line 1: ZeroDivisionError: division by zero")

    monkeypatch.setattr(cli.runner, "run", fail)
    code, out, _ = repro("check", "--all", "--table", str(tmp_path / "moved.md"))
    assert code == 1 and "toy: differs from its record\n  toy, cell 3, line 1: ZeroDivisionError" in out
    (row,) = (tmp_path / "moved.md").read_text(encoding="utf-8").splitlines()[-1:]
    assert row == "| toy | the run | ended | failed | toy, cell 3, line 1: ZeroDivisionError: division by zero |"


def test_check_without_a_record_says_how_to_make_one(repro, checkout):
    checkout()
    code, _, err = repro("check", "toy")
    assert code == 1 and "repro run toy --scale quick" in err


# ------------------------------------------------------------------------------------------------ list and report


def test_list_shows_every_chapter_scale_and_verdict(repro, stored):
    code, out, err = repro("list")
    lines = out.splitlines()
    assert (code, err, len(lines)) == (0, "", 3)
    assert lines[0] == "toy  (part)"
    assert re.fullmatch(r"  quick  1 reproduced, 1 inconclusive, 1 not reproduced \(\d+ days\)", lines[1])
    assert lines[2] == "  full   not yet run on a GPU"


def test_a_stale_or_broken_record_says_so_everywhere_it_is_shown(repro, stored, store):
    store(stored, code_hash="0" * 64)
    why = "stale: the chapter's code changed since this run"
    assert why in repro("list")[1]
    assert f"The quick record is {why}." in repro("report")[1]
    assert json.loads(repro("report", "--format", "json")[1])[0]["stale"] == why
    stored.record("quick").write_text("{")
    code, out, _ = repro("list")
    assert code == 0 and "unreadable: The record " in out
    code, _, err = repro("report", "--format", "json")
    assert code == 1 and "cut off or not JSON" in err


def test_a_notebook_that_cannot_be_read_hides_no_other_from_the_list(repro, stored):
    broken = stored.path.with_name("a-broken.ipynb")
    broken.write_text("<<<<<<< HEAD", encoding="utf-8")
    stored._replace(slug="a-broken").record("quick").write_bytes(stored.record("quick").read_bytes())
    code, out, err = repro("list")
    assert code == 1 and "a-broken.ipynb" in err
    assert "toy  (part)\n  quick  1 reproduced" in out


@pytest.mark.parametrize(
    ("paper", "shown"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+1+cmd|' /C calc'!A0", "'+1+cmd|' /C calc'!A0"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("-2.5e-3", "-2.5e-3"),
        ("+2.1 % points", "+2.1 % points"),
        ("a = b", "a = b"),
    ],
)
def test_no_cell_of_the_csv_is_a_formula(paper, shown):
    assert report._inert(paper) == shown


def test_report_as_csv_has_a_line_for_each_claim_and_scale(repro, stored, store):
    store(stored)
    lines = list(csv.DictReader(io.StringIO(repro("report", "--format", "csv")[1])))
    flat = json.loads(repro("report", "--format", "json")[1])
    assert [(r["slug"], r["id"], r["verdict"], float(r["mean"])) for r in lines] == [
        (r["slug"], r["id"], r["verdict"], r["mean"]) for r in flat
    ]
    assert [r["criterion"] for r in lines] == [r["criterion"]["text"] for r in flat]
    assert [int(r["runs"]) for r in lines] == [len(r["values"]) for r in flat]


def test_report_as_json_is_one_flat_row_a_claim(repro, stored, store):
    store(stored, "full", device="cuda: some GPU")
    store(stored)
    rows = json.loads(repro("report", "--format", "json")[1])
    assert [(r["slug"], r["scale"], r["id"]) for r in rows] == [
        ("toy", scale, claim) for scale in ("quick", "full") for claim in ("c1", "c2", "c3")
    ]
    assert rows[3] == rows[3] | {"part": "part", "stale": None, "device": "cuda: some GPU", "verdict": "reproduced"}


def test_report_as_markdown_shows_both_scales_side_by_side(repro, stored):
    code, out, _ = repro("report")
    assert code == 0 and out.startswith("## toy\n\n|  | claim | paper | quick | full |\n")
    assert "| c1 | A is large. | Table 1: 3 | **reproduced**: ≈+2 [≈+1, ≈+3] nats | not yet run on a GPU |" in out
    assert "| c2 | B is zero. | Equation 2 | **not reproduced**: largest error ≈1 | not yet run on a GPU |" in out


def test_a_chapter_without_record_is_in_the_report(repro, checkout):
    checkout()
    assert repro("report")[1] == "## toy\n\nNo record yet.\n"


def test_the_readme_is_renewed_between_its_marks_and_nowhere_else(repro, stored, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("Above.\n<!-- verdicts:start -->\nold\n<!-- verdicts:end -->\nBelow.\n")
    assert repro("report", "--readme") == (0, "README.md renewed.\n", "")
    text = readme.read_text()
    assert text.startswith("Above.\n<!-- verdicts:start -->\n| scale | papers | claims | reproduced |")
    assert text.endswith("|\n<!-- verdicts:end -->\nBelow.\n") and "old" not in text
    assert "| quick | 1 | 3 | 1 | 1 | 1 |" in text and "| full | 0 | 0 | 0 | 0 | 0 |" in text
    assert repro("report", "--readme") == (0, "README.md is up to date.\n", "") and readme.read_text() == text


def test_a_readme_without_marks_is_left_alone(repro, stored, tmp_path):
    (tmp_path / "README.md").write_text("Nothing here.\n")
    code, _, err = repro("report", "--readme")
    assert code == 1 and "verdicts:start" in err and (tmp_path / "README.md").read_text() == "Nothing here.\n"


@pytest.mark.parametrize(
    ("ago", "text"),
    [
        (timedelta(seconds=5), "now"),
        (timedelta(minutes=119), "119 minutes"),
        (timedelta(hours=3), "3 hours"),
        (timedelta(days=1, hours=23), "47 hours"),
        (timedelta(days=3), "3 days"),
    ],
)
def test_ages_are_told_in_the_unit_that_fits(ago, text):
    assert report.age({"date": (datetime.now(UTC) - ago).isoformat(timespec="seconds")}) == text


# ------------------------------------------------------------------------------------------------------- doctor


def test_doctor_shows_versions_hardware_and_data(repro, checkout):
    checkout()
    code, out, err = repro("doctor")
    assert (code, err) == (0, "")
    for start in ("Python 3.", "  numpy ", "  torch ", "GPU: ", "CPU: cpu: ", "Memory: ", "Data: ", "Browser "):
        assert re.search(f"^{start}", out, re.MULTILINE), start


def test_doctor_tells_a_version_that_is_not_the_pinned_one(repro, checkout, tmp_path):
    checkout()
    have = doctor.installed("numpy")
    (tmp_path / "constraints.txt").write_text(f"# pins\nnumpy==0.0.1\nscipy=={doctor.installed('scipy')}\n")
    out = repro("doctor")[1]
    assert f"numpy          {have}, pinned is 0.0.1: digits behind ≈ may differ" in out
    assert re.search(r"^  scipy +[0-9.]+$", out, re.MULTILINE)


@pytest.mark.parametrize(("gone", "code"), [("torch", 1), ("nbval", 0)])
def test_doctor_fails_only_for_what_every_chapter_needs(repro, checkout, monkeypatch, gone, code):
    checkout()
    real = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda name: None if name == gone else real(name))
    found, out, _ = repro("doctor")
    assert found == code
    assert ("Missing for every chapter: torch." in out) is (code == 1)
    assert re.search(rf"^  {gone} +missing", out, re.MULTILINE)


def test_pins_are_read_with_their_names_in_one_spelling(tmp_path):
    path = tmp_path / "constraints.txt"
    path.write_text("# a\nJupyter_Book==1.0.4.post1\ntorch==2.13.0 ; python_version>'3'\nloose>=1\n")
    assert doctor.pinned(path) == {"jupyter-book": "1.0.4.post1", "torch": "2.13.0"}
    assert doctor.pinned(tmp_path / "none.txt") == {}


def test_jupyter_is_here_for_the_tests():
    assert has_jupyter()
