"""Mutants of a chapter's method, and what its tests say to them."""

from __future__ import annotations

import ast
import json

import pytest

from repro import cli, mutate
from reprolib.project import ChapterFile, ReproError

METHOD = '''
def area(w: int, h: int = 1):
    """The area, in 3 words."""
    if w < 0:
        raise ValueError(f"w is {w + 1}")
    return w * h
'''


@pytest.fixture
def chapter(tmp_path) -> ChapterFile:
    """A chapter with one method cell and no tests yet."""
    path = tmp_path / "chapters" / "part" / "toy-area.ipynb"
    path.parent.mkdir(parents=True)
    cell = {"cell_type": "code", "source": METHOD, "metadata": {"tags": ["method"]}}
    prose = {"cell_type": "markdown", "source": "# Area", "metadata": {}}
    path.write_text(json.dumps({"cells": [prose, cell]}), encoding="utf-8")
    (tmp_path / "tests" / "chapters").mkdir(parents=True)
    return ChapterFile("toy-area", "part", path)


def _tests(chapter: ChapterFile, body: str) -> None:
    lines = ["from pathlib import Path", "from reprolib.notebook import load_methods"]
    lines += [f"area = load_methods(Path({str(chapter.path)!r})).area", "def test_area():", f"    {body}"]
    (chapter.root / "tests" / "chapters" / "test_toy_area.py").write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a + b", ["a - b"]),
        ("a * b", ["a / b"]),
        ("a @ b", ["b @ a"]),
        ("a ** 2", ["a"]),
        ("-a", ["a"]),
        ("not a", ["a"]),
        ("a < b", ["a >= b"]),
        ("2", ["3"]),
        ("0.5", ["1.0"]),
        ("0.0", ["1.0"]),
        ("True", ["False"]),
        ("a.mT", ["a"]),
        ("a.sum(0)", ["a.mean(0)"]),
        ("torch.sqrt(a)", ["a"]),
        ("a.exp()", ["a"]),
        ("range(n)", ["range(n - 1)"]),
        ("range(3)", []),
        ("'a' + b", []),
        ("a == 'text'", []),
        ("a", []),
    ],
)
def test_an_expression_has_these_wrong_versions(before, after):
    node = ast.parse(before, mode="eval").body
    assert [ast.unparse(new) for new in mutate.variants(node)] == after
    assert ast.unparse(node) == before


def test_messages_annotations_and_docstrings_are_left_alone_and_each_mutant_changes_one_expression(chapter):
    found = mutate.mutants(chapter.path)
    assert [(m.line, m.before, m.after) for m in found] == [
        (2, "1", "2"),
        (4, "w < 0", "w >= 0"),
        (4, "0", "1"),
        (6, "w * h", "w / h"),
    ]
    assert {m.cell for m in found} == {2}
    plain = ast.unparse(ast.parse(METHOD)).splitlines()
    for m in found:
        assert sum(a != b for a, b in zip(plain, m.code.splitlines(), strict=True)) == 1


def test_a_sign_counts_once():
    assert [after for *_, after, _ in mutate._changes("x = y[-1]")] == ["1"]


def test_settings_are_left_alone():
    assert list(mutate._changes('ch = Chapter("a", precision=2)\ns = ch.scale(quick=S(2), full=S(3))')) == []


def test_a_test_that_looks_kills_and_one_that_does_not_lets_live(chapter, capfd):
    before = chapter.path.read_bytes()
    _tests(chapter, "assert area(3, 4) == 12 and area(5) == 5")
    said = {str(o.mutant).partition(": ")[2]: o.said for o in mutate.judge(chapter, mutate.drawn(chapter, None))}
    assert said == {
        "1  ->  2": "killed",
        "w < 0  ->  w >= 0": "killed",
        "0  ->  1": "survived",
        "w * h  ->  w / h": "killed",
    }
    assert chapter.path.read_bytes() == before
    assert "test_toy_area" not in capfd.readouterr().out


@pytest.mark.parametrize(
    "body", ["__import__('time').sleep(0 if area(3, 4) == 12 else 600)", "while area(3, 4) != 12: pass"]
)
def test_a_mutant_that_sleeps_or_computes_for_ever_is_stopped_and_counts_as_killed(chapter, monkeypatch, body):
    _tests(chapter, body)
    monkeypatch.setattr(mutate, "PATIENCE", 0.0)
    if "sleep" in body:
        monkeypatch.setattr(mutate, "WAITING", 0.0)
    said = [o.said for o in mutate.judge(chapter, mutate.drawn(chapter, None)) if o.mutant.after == "w / h"]
    assert said == ["timed out"]


def test_a_mutant_that_waits_for_its_turn_is_not_late(chapter, monkeypatch):
    _tests(chapter, "__import__('time').sleep(0 if area(3, 4) == 12 else 8)")
    monkeypatch.setattr(mutate, "PATIENCE", 0.0)
    monkeypatch.setattr(mutate, "WAITING", 100.0)
    assert [o.said for o in mutate.judge(chapter, mutate.drawn(chapter, None)) if o.mutant.after == "w / h"] == [
        "survived"
    ]


def test_tests_that_are_missing_or_red_before_are_refused(chapter):
    with pytest.raises(ReproError, match=r"toy-area has no tests: tests/chapters/test_toy_area\.py is missing"):
        next(mutate.judge(chapter, []))
    _tests(chapter, "assert area(3, 4) == 13")
    with pytest.raises(ReproError, match="The tests of toy-area fail before anything is changed"):
        next(mutate.judge(chapter, []))


def test_the_command_names_survivors_counts_and_fails_below_the_goal(chapter, monkeypatch, capsys):
    _tests(chapter, "assert area(3, 4) == 12")
    monkeypatch.setattr(cli.project, "find", lambda _: chapter)
    assert cli.main(["mutate", "toy-area"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert [line.partition("line ")[2] for line in said[:-1]] == ["2: 1  ->  2", "4: 0  ->  1"]
    assert said[-1] == "toy-area: 2 of 4 mutants killed (50%)"
    cli.main(["mutate", "toy-area", "--limit", "1"])
    assert " of 1 mutants killed " in capsys.readouterr().out
    assert cli.main(["mutate", "toy-area", "--only", "w * h"]) == 0
    assert capsys.readouterr().out == "toy-area: 1 of 1 mutants killed (100%)\n"
    assert cli.main(["mutate", "toy-area", "--only", "w ** h"]) == 1
    assert "nothing" not in capsys.readouterr().out and not mutate.report(chapter).exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--keep", "--only", "w * h"], "--keep stores a report on a draw from all mutants; leave out --only"),
        (["--limit", "0"], "--limit must be at least 1; got 0"),
        (["--again", "--keep"], "--again tries the survivors of the stored report; leave out --keep and --only"),
        (["--again"], "toy-area has no report to go on with; make one: repro mutate toy-area --keep"),
    ],
)
def test_a_report_on_a_chosen_few_or_none_is_refused(chapter, monkeypatch, capsys, options, said):
    monkeypatch.setattr(cli.project, "find", lambda _: chapter)
    assert cli.main(["mutate", "toy-area", *options]) == 1
    assert said in capsys.readouterr().err and not mutate.report(chapter).exists()


def _judge(chapter: ChapterFile, *entries: dict[str, str]) -> None:
    path = chapter.root / "tests" / "chapters" / "equivalent" / "toy-area.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(entries), encoding="utf-8")


SAME = {"line": "if w < 0:", "before": "0", "after": "1", "why": "w is never 0 here"}


def test_a_survivor_judged_equivalent_does_not_count_and_one_that_is_killed_shows_the_judgement_wrong(
    chapter, monkeypatch, capsys
):
    monkeypatch.setattr(cli.project, "find", lambda _: chapter)
    _tests(chapter, "assert area(3, 4) == 12 and area(5) == 5")
    _judge(chapter, SAME)
    assert cli.main(["mutate", "toy-area", "--keep"]) == 0
    said = capsys.readouterr().out
    assert "survived, and is the same: cell 2, line 4: 0  ->  1" in said and "3 of 3 mutants killed (100%)" in said
    shown = mutate.table([chapter])
    assert "<td>4</td><td>3</td><td>3 (100%)</td><td>3 (100%)</td>" in shown and "the same, w is never 0 here" in shown
    _tests(chapter, "assert area(3, 4) == 12 and area(5) == 5 and area(0) == 0")
    assert cli.main(["mutate", "toy-area"]) == 0
    assert "killed, though judged the same: cell 2, line 4: 0  ->  1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (SAME | {"before": "7"}, r"there is no mutant 7 -> 1 in a line 'if w < 0:'; take it off the list"),
        (
            {"line": "if w < 0:"},
            r"toy-area\.json must be a JSON list of line, before, after, why: KeyError\('before'\)",
        ),
    ],
)
def test_a_judgement_that_fits_no_mutant_is_refused(chapter, entry, said):
    _tests(chapter, "assert area(3, 4) == 12")
    _judge(chapter, entry)
    with pytest.raises(ReproError, match=said):
        mutate.equivalent(chapter)


def test_the_kept_report_is_shown_until_method_or_tests_change(chapter, monkeypatch):
    _tests(chapter, "assert area(3, 4) == 12 and area(5) == 5")
    monkeypatch.setattr(cli.project, "find", lambda _: chapter)
    assert '<td>4</td><td colspan="4">not yet tried</td>' in mutate.table([chapter])
    assert cli.main(["mutate", "toy-area", "--keep"]) == 1
    kept = json.loads(mutate.report(chapter).read_text(encoding="utf-8"))
    assert (kept["mutants"], kept["tried"], kept["at first"], kept["seed"]) == (4, 4, 1, 0)
    assert [s["is"] for s in kept["survivors"]] == ["cell 2, line 4: 0  ->  1"]
    shown = mutate.table([chapter])
    assert "<td>4</td><td>4</td><td>3 (75%)</td><td>3 (75%)</td>" in shown
    assert "<code>cell 2, line 4: 0  -&gt;  1</code>" in shown and "earlier" not in shown
    _tests(chapter, "assert area(3, 4) == 12 and area(5) == 5 and area(0) == 0")
    assert "<td>4, of an earlier version</td>" in mutate.table([chapter])


def test_survivors_are_tried_again_when_a_test_was_added_and_the_first_count_stays(chapter, monkeypatch, capsys):
    monkeypatch.setattr(cli.project, "find", lambda _: chapter)
    _tests(chapter, "assert area(3, 4) == 12")
    assert cli.main(["mutate", "toy-area", "--keep"]) == 1
    assert len(mutate.survivors(chapter)) == 2
    _tests(chapter, "assert area(3, 4) == 12 and area(5) == 5 and area(0) == 0")
    capsys.readouterr()
    assert cli.main(["mutate", "toy-area", "--again"]) == 0
    assert capsys.readouterr().out == "toy-area: 4 of 4 mutants killed (100%)\n"
    assert "<td>4</td><td>4</td><td>2 (50%)</td><td>4 (100%)</td><td>0</td>" in mutate.table([chapter])
    assert cli.main(["mutate", "toy-area", "--again"]) == 0 and mutate.survivors(chapter) == []


def test_two_mutants_of_one_name_on_one_line_are_told_apart(chapter, monkeypatch):
    monkeypatch.setattr(cli.project, "find", lambda _: chapter)
    _tests(chapter, "assert area(3, 4) == 12 and area(5) == 5")
    text = chapter.path.read_text(encoding="utf-8")
    chapter.path.write_text(text.replace("return w * h", "return w * h * 1 / 1"), encoding="utf-8")
    ones = [m for m in mutate.mutants(chapter.path) if (m.line, m.before) == (6, "1")]
    assert len({str(m) for m in ones}) == 1 and len({m.digest for m in ones}) == 2


def test_survivors_of_a_method_that_was_changed_are_refused(chapter, monkeypatch, capsys):
    monkeypatch.setattr(cli.project, "find", lambda _: chapter)
    _tests(chapter, "assert area(3, 4) == 12")
    cli.main(["mutate", "toy-area", "--keep"])
    text = chapter.path.read_text(encoding="utf-8")
    chapter.path.write_text(text.replace("w < 0", "w < -1"), encoding="utf-8")
    assert cli.main(["mutate", "toy-area", "--again"]) == 1
    assert "toy-area has no mutant cell 2, line 2: 1  ->  2 any more; draw anew: --keep" in capsys.readouterr().err
