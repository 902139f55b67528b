"""Records are whole, sealed and comparable; notebooks are read, hashed and imported as programs."""

import copy
import json
import sys

import pytest

from reprolib import notebook, records
from reprolib.notebook import NotebookError
from reprolib.records import RecordError


@pytest.fixture
def record(stored):
    return records.read(stored.record("quick"))


def edit(path, change):
    """Change a stored record by hand, leaving its digest."""
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def reseal(path, change):
    """Change a stored record and seal it again, as a forger would."""
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found | {"digest": records.digest(found)}))


# ---------------------------------------------------------------------------------------------- writing and reading


def test_a_record_is_read_as_it_was_written(stored, record):
    path = stored.record("quick")
    before = path.read_bytes()
    sealed = records.write(path, {k: v for k, v in record.items() if k != "digest"})
    assert sealed == record == records.read(path)
    assert path.read_bytes() == before


def test_writing_leaves_nothing_but_the_file(tmp_path):
    path = tmp_path / "new" / "a.json"
    records.write_atomic(path, "one")
    records.write_atomic(path, "two")
    assert [f.name for f in path.parent.iterdir()] == ["a.json"] and path.read_text() == "two"
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
def test_a_write_that_fails_at_any_step_leaves_the_old_files_and_no_other(tmp_path, monkeypatch, step):
    a, b = tmp_path / "a", tmp_path / "b"
    records.write_together({a: "old a", b: "old b"})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records.os, step, full)
    with pytest.raises(OSError, match="No space left"):
        records.write_together({a: "new a", b: "new b"})
    assert {f.name: f.read_text() for f in tmp_path.iterdir()} == {"a": "old a", "b": "old b"}


def test_no_file_is_replaced_before_all_have_found_room(tmp_path, monkeypatch):
    a, b = tmp_path / "a", tmp_path / "b"
    records.write_together({a: "old a", b: "old b"})
    real, calls = records.os.fsync, []

    def full_at_the_second(handle):
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(records.os, "fsync", full_at_the_second)
    with pytest.raises(OSError, match="No space left"):
        records.write_together({a: "new a", b: "new b"})
    assert {f.name: f.read_text() for f in tmp_path.iterdir()} == {"a": "old a", "b": "old b"}


def test_values_that_json_does_not_know_are_not_written(stored, record):
    before = stored.record("quick").read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        records.write(stored.record("quick"), record | {"wall_seconds": float("nan")})
    assert stored.record("quick").read_bytes() == before


def test_a_missing_record_says_how_to_make_it(stored):
    with pytest.raises(RecordError, match=r"no record toy\.json at full scale.*repro run toy --scale full"):
        records.read(stored.record("full"))


@pytest.mark.parametrize("keep", [0, 1, 100, -3])
def test_a_truncated_record_is_refused_with_its_path_and_the_remedy(stored, keep):
    path = stored.record("quick")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RecordError, match=r"toy\.json is cut off or not JSON.*repro run toy --scale quick"):
        records.read(path)


def test_bytes_that_are_no_text_are_refused(stored):
    stored.record("quick").write_bytes(b"\xff\xfe\x00{}")
    with pytest.raises(RecordError, match="cut off or not JSON"):
        records.read(stored.record("quick"))


@pytest.mark.parametrize("content", ["[]", "{}", '{"schema": 99}', "3"])
def test_json_of_another_schema_is_refused(stored, content):
    stored.record("quick").write_text(content)
    with pytest.raises(RecordError, match="is not of schema 1"):
        records.read(stored.record("quick"))


@pytest.mark.parametrize("key", [k for k in records.KEYS if k != "schema"])
def test_a_record_without_one_of_its_fields_is_refused(stored, key):
    edit(stored.record("quick"), lambda r: r.pop(key))
    with pytest.raises(RecordError, match=f"lacks {key}"):
        records.read(stored.record("quick"))


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["claims"][0].update(verdict="not reproduced"),
        lambda r: r["claims"][0]["values"].__setitem__(0, 1.0000001),
        lambda r: r.update(device="cuda: a better one"),
        lambda r: r["numbers"]["e1/a"].update(tolerance=1.0),
    ],
)
def test_an_edit_by_hand_is_found(stored, change):
    edit(stored.record("quick"), change)
    with pytest.raises(RecordError, match="does not fit its digest: it was edited by hand"):
        records.read(stored.record("quick"))


def test_a_sealed_verdict_that_the_values_do_not_give_is_found(stored):
    reseal(stored.record("quick"), lambda r: r["claims"][2].update(verdict="reproduced"))
    with pytest.raises(RecordError, match="claim c3 has a verdict its values do not give"):
        records.read(stored.record("quick"))


def test_a_criterion_that_this_version_lacks_is_named(stored):
    reseal(stored.record("quick"), lambda r: r["claims"][0]["criterion"].update(kind="near"))
    with pytest.raises(RecordError, match="claim c1 has a criterion this reprolib lacks"):
        records.read(stored.record("quick"))


def test_the_order_of_keys_does_not_change_the_digest(record):
    assert records.digest(dict(reversed(record.items()))) == record["digest"]


# ----------------------------------------------------------------------------------------------------- staleness


def change_code(chapter, old, new):
    chapter.path.write_text(chapter.path.read_text().replace(old, new))


def test_a_record_of_the_code_as_it_stands_is_fresh(stored):
    assert records.staleness(stored, "quick") is None
    assert records.staleness(stored, "full") == "missing"


def test_changed_code_makes_the_record_stale_and_changed_prose_does_not(stored):
    change_code(stored, "In prose.", "In better prose.")
    assert records.staleness(stored, "quick") is None
    change_code(stored, "return 2 * x", "return -2 * x")
    assert records.staleness(stored, "quick") == "stale: the chapter's code changed since this run"


def test_a_new_full_record_makes_the_quick_one_stale_whose_table_does_not_show_it(stored, store):
    store(stored, "full")
    assert records.staleness(stored, "quick") == "stale: the full record changed since the verdict table was made"
    assert records.staleness(stored, "full") is None
    store(stored)
    assert records.staleness(stored, "quick") is None
    store(stored, "full", wall_seconds=99.0)
    assert "full record changed" in records.staleness(stored, "quick")


@pytest.mark.parametrize("scale", ["quick", "full"])
def test_an_unreadable_record_is_a_reason_and_not_a_crash(stored, store, scale):
    store(stored, "full")
    stored.record(scale).write_text("{")
    assert records.staleness(stored, scale).startswith("unreadable: The record ")
    assert records.staleness(stored, "quick").startswith("unreadable: The record ")


# ----------------------------------------------------------------------------------------------------- comparing


def test_a_record_agrees_with_itself(record):
    assert records.compare(record, copy.deepcopy(record)) == []


def claim(record, id):
    return next(c for c in record["claims"] if c["id"] == id)


def differ(record, change):
    fresh = copy.deepcopy(record)
    change(fresh)
    return records.compare(fresh, record)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda r: r.update(code_hash="0"), "the notebook's code is not the code of the stored record"),
        (lambda r: claim(r, "c2").update(verdict="reproduced"), "claim c2: reproduced, stored not reproduced"),
        (lambda r: claim(r, "c1").update(mean=9.0), "claim c1: mean 9 outside the stored [1, 3]"),
        (lambda r: claim(r, "c1").update(mean=0.5), "claim c1: mean 0.5 outside the stored [1, 3]"),
        (lambda r: claim(r, "c1").update(text="B."), "claim c1: its text changed"),
        (lambda r: claim(r, "c1").update(paper="T"), "claim c1: its paper changed"),
        (lambda r: claim(r, "c1").update(unit="bits"), "claim c1: its unit changed"),
        (lambda r: claim(r, "c1")["criterion"].update(threshold=-1.0), "claim c1: its criterion changed"),
        (lambda r: claim(r, "c1")["values"].pop(), "claim c1: 2 seeds, stored 3"),
        (lambda r: r["claims"].pop(), "claims are c1, c2; the stored record has c1, c2, c3"),
        (lambda r: r["numbers"].clear(), "numbers e1/a: in one record only, or of another shape"),
        (lambda r: r["numbers"].update(new=r["numbers"]["e1/a"]), "numbers new: in one record only"),
        (lambda r: r["numbers"]["e1/a"].update(shape=[4]), "numbers e1/a: in one record only, or of another"),
        (lambda r: r["numbers"]["e1/a"].update(values=[1.0, 2.0, 3.5, 4.5]), "numbers e1/a: 2 of 4 differ"),
    ],
)
def test_a_difference_that_matters_is_one_sentence(record, change, sentence):
    found = differ(record, change)
    assert len(found) == 1 and found[0].startswith(sentence)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.update(wall_seconds=99.0, date="2030-01-01T00:00:00+00:00", device="cpu: other", digest=""),
        lambda r: claim(r, "c1").update(mean=2.9),  # inside the stored interval
        lambda r: claim(r, "c2").update(mean=1.1, values=[1.1]),  # exact claims are compared by verdict
        lambda r: r["numbers"]["e1/a"].update(values=[1.39, 2.0, 3.0, 3.61]),  # within a tenth of the largest
    ],
)
def test_what_another_machine_may_change_is_no_difference(record, change):
    assert differ(record, change) == []


def test_numbers_that_are_all_zero_must_stay_zero(record):
    record["numbers"]["e1/a"]["values"] = [0.0] * 4
    assert differ(record, lambda r: r["numbers"]["e1/a"].update(values=[0.0, 0.0, 1e-6, 0.0])) == [
        "numbers e1/a: 1 of 4 differ by more than 1e-12"
    ]


# ----------------------------------------------------------------------------------------------------- notebooks


def hash_of(chapter):
    return notebook.code_hash(notebook.read(chapter.path))


def test_outputs_prose_metadata_and_trailing_blanks_do_not_change_the_hash_of_the_code(checkout):
    chapter = checkout()
    before = hash_of(chapter)
    nb = notebook.read(chapter.path)
    nb["cells"][0]["source"] = ["# Another title"]
    nb["metadata"]["widgets"] = {"state": 1}
    code = nb["cells"][1]
    code |= {"execution_count": 7, "outputs": [{"output_type": "stream", "name": "stdout", "text": "x"}]}
    code["metadata"] = {"tags": ["method", "hide-input"]}
    code["source"] = "".join(code["source"]).replace("\n\n", "\n   \n") + "\n\n"
    nb["cells"].append({"cell_type": "code", "id": "empty", "metadata": {}, "outputs": [], "source": "  \n"})
    chapter.path.write_text(json.dumps(nb))
    assert hash_of(chapter) == before


def test_any_change_of_code_changes_the_hash(checkout, toy_cells):
    seen = {hash_of(checkout(toy_cells))}
    tags, text = toy_cells[0]
    for changed in (text.replace("2 * x", "3 * x"), text.replace("    return", "     return"), text + "\n# note"):
        seen.add(hash_of(checkout([(tags, changed), *toy_cells[1:]])))
    seen.add(hash_of(checkout([toy_cells[1], toy_cells[0], *toy_cells[2:]])))
    seen.add(hash_of(checkout(toy_cells[:-1])))
    assert len(seen) == 6


def test_joining_two_cells_changes_the_hash(checkout):
    two, one = checkout([([], "a = 1"), ([], "b = 2")]), None
    before = hash_of(two)
    one = checkout([([], "a = 1\nb = 2")])
    assert hash_of(one) != before


def test_only_method_cells_are_imported_and_dataclasses_work_in_them(checkout):
    cells = [
        (["method"], "from dataclasses import dataclass\n\n@dataclass\nclass Point:\n    x: 'float' = 1.0"),
        ([], "raise RuntimeError('an experiment ran on import')"),
        (["method", "hide-input"], "def shift(p):\n    return Point(p.x + 1)"),
    ]
    module = notebook.load_methods(checkout(cells, slug="two-words").path)
    assert module.shift(module.Point()).x == 2.0
    assert module.__name__ == "two_words" and sys.modules["two_words"] is module
    del sys.modules["two_words"]


def test_a_chapter_without_method_cells_says_so(checkout):
    with pytest.raises(NotebookError, match=r"toy\.ipynb has no cell tagged 'method'"):
        notebook.load_methods(checkout([([], "x = 1")]).path)


@pytest.mark.parametrize(
    ("code", "where"),
    [
        ("x = 1\n\ny = 1 / 0", r"toy, cell 3, line 3: ZeroDivisionError: division by zero"),
        ("def f():\n    return undefined\n\nf()", r"toy, cell 3, line 2: NameError"),
        (
            "import json\n\njson.loads('{')",
            r"toy, cell 3, line 3: JSONDecodeError",
        ),  # the line here, not in the library
        ("x = 1\nif x:\ny = 2", r"toy, cell 3, line 3: IndentationError"),
    ],
)
def test_a_failing_method_cell_is_named_by_chapter_cell_and_line(checkout, code, where):
    chapter = checkout([(["method"], "a = 1"), (["method"], code)])
    with pytest.raises(NotebookError, match=where):
        notebook.load_methods(chapter.path)


def test_a_cell_stored_as_one_string_reads_like_a_list_of_lines():
    assert notebook.source({"source": "a\nb"}) == notebook.source({"source": ["a\n", "b"]}) == "a\nb"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{\n"cells": [\n<<<<<<< HEAD\n1\n=======\n2\n>>>>>>> other\n]}', "it holds merge conflict marks"),
        ('{"cells": [', r"line 1: "),
        ("", "is not a readable notebook: line 1"),
        ("{}", "is JSON but not a notebook: it has no cells"),
        ("[1]", "is JSON but not a notebook"),
    ],
)
def test_a_file_that_is_no_notebook_is_refused_with_the_reason(tmp_path, content, message):
    path = tmp_path / "a.ipynb"
    path.write_text(content)
    with pytest.raises(NotebookError, match=message):
        notebook.read(path)


def test_a_missing_notebook_is_named(tmp_path):
    with pytest.raises(NotebookError, match=r"There is no notebook .*gone\.ipynb"):
        notebook.read(tmp_path / "gone.ipynb")
