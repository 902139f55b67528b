"""The ``repro`` command, without running a notebook: finding, listing, reporting, refusing."""

import json
import re
from datetime import UTC, datetime, timedelta

import pytest

from repro import cli, doctor, report
from repro.runner import has_jupyter
from reprolib import ReproError, project, records


@pytest.fixture
def repro(capsys):
    """Runs the command; returns its exit code, output and error output."""

    def run(*argv):
        code = cli.main(argv)
        return code, *capsys.readouterr()

    return run


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


def test_check_says_how_a_fresh_run_differs(repro, stored, monkeypatch):
    fresh = records.read(stored.record("quick"))
    monkeypatch.setattr(cli.runner, "run", lambda *_, **__: fresh)
    assert repro("check", "toy")[:2] == (0, "toy: agrees with its record\n")
    fresh["claims"][0]["verdict"] = "inconclusive"
    assert repro("check", "toy")[:2] == (
        1,
        "toy: differs from its record\n  claim c1: inconclusive, stored reproduced\n",
    )


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
