"""The toy chapter run for real: with Jupyter and without, twice, and with cells that fail."""

import json
import os
import re

import pytest
from toybook import TOY, make_checkout

from repro import runner
from reprolib import ReproError, notebook, records
from reprolib.notebook import NotebookError

# What two runs of one chapter may differ in.
MACHINE = ("date", "wall_seconds", "run_seconds", "peak_ram_mb", "digest")


def essence(record, *also):
    return {k: v for k, v in record.items() if k not in (*MACHINE, *also)}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_checkout(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def by_jupyter(toy):
    """The record of a first run through Jupyter, and the notebook's bytes after it."""
    return runner.run(toy), toy.path.read_bytes()


@pytest.fixture(scope="module")
def plain(toy):
    """The record of a run without Jupyter that is not kept, and what it reported."""
    return runner.run(toy, jupyter=False, keep=False)


def outputs(content):
    return [output for cell in json.loads(content)["cells"] for output in cell.get("outputs", [])]


def texts(content):
    found = [o.get("text") or o["data"].get("text/markdown") or o["data"]["text/plain"] for o in outputs(content)]
    return ["".join(text) for text in found]


def test_a_run_through_jupyter_is_stored_and_fresh(toy, by_jupyter):
    record, _ = by_jupyter
    assert records.read(toy.record("quick")) == record
    assert records.staleness(toy, "quick") is None
    assert [(c["id"], c["verdict"]) for c in record["claims"]] == [("c1", "reproduced"), ("c2", "reproduced")]
    assert (record["scale"], record["seed"], record["runner"], record["sizes"]) == ("quick", 0, "jupyter", {"n": 10})
    assert record["numbers"]["e1/noise"]["shape"] == [10] and record["beside"] is None
    assert 0 < record["run_seconds"] <= record["wall_seconds"] < 60 and 50 < record["peak_ram_mb"] < 2000


def test_the_notebook_shows_what_the_record_holds(by_jupyter):
    record, content = by_jupyter
    shown = texts(content)
    assert f"The mean is ≈{record['claims'][0]['mean']:.3g}: **reproduced**." in shown
    assert shown[-1] == "2 claims: 2 reproduced, 0 inconclusive, 0 not reproduced.\n"
    assert not any("E1: training" in text for text in shown)


def test_figure_and_slider_are_stored_with_their_words(by_jupyter):
    _, content = by_jupyter
    words = [o["metadata"]["reprolib"] for o in outputs(content) if "reprolib" in o.get("metadata", {})]
    assert [(w["kind"], w["name"]) for w in words] == [("slider", "slope"), ("figure", "fig-line")]
    state = json.loads(content)["metadata"]["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    models = [m["model_name"] for m in state.values()]
    assert models.count("ImageModel") == 3 and "LinkModel" in models
    view = next(o["data"] for o in outputs(content) if "application/vnd.jupyter.widget-view+json" in o.get("data", {}))
    assert view["application/vnd.jupyter.widget-view+json"]["model_id"] in state


def test_a_stored_notebook_names_no_folder_of_this_machine(toy, by_jupyter):
    _, content = by_jupyter
    assert str(toy.root).encode() not in content and os.path.expanduser("~").encode() not in content
    assert b"execution_count" in content and b'"iopub.' not in content


def test_the_run_without_jupyter_gives_the_same_record(by_jupyter, plain):
    record, _ = by_jupyter
    assert plain["runner"] == "plain"
    assert essence(plain, "runner", "versions") == essence(record, "runner", "versions")
    shared = plain["versions"].keys() & record["versions"].keys()
    assert {"python", "torch", "numpy", "matplotlib", "reprolib"} <= shared
    assert all(plain["versions"][k] == record["versions"][k] for k in shared)
    assert records.compare(plain, record) == []


def test_a_run_that_is_not_kept_changes_no_file(toy, by_jupyter, plain):
    record, content = by_jupyter
    assert toy.path.read_bytes() == content and records.read(toy.record("quick"))["date"] == record["date"]
    assert {f.name for f in toy.root.rglob("*") if f.is_file()} == {"_toc.yml", "toy.ipynb", "toy.json", "toy"}


def test_running_twice_gives_the_same_bytes_and_the_same_record(toy, by_jupyter, plain):
    record, content = by_jupyter
    again = runner.run(toy)
    assert toy.path.read_bytes() == content
    assert essence(again) == essence(record)


def test_another_seed_gives_other_values_and_is_reported_live(by_jupyter, tmp_path):
    record, _ = by_jupyter
    hold = "import time\nfor _ in ch.progress(range(4), 'E0: warming'):\n    time.sleep(0.3)"
    chapter = make_checkout(tmp_path, [*TOY[:3], ([], hold), *TOY[3:]])
    seen = []
    other = runner.run(chapter, "full", seed=1, jupyter=False, keep=False, on_progress=seen.append)
    assert other["seed"] == 1 and other["scale"] == "full" and other["sizes"] == {"n": 12}
    assert other["claims"][0]["values"][:10] != record["claims"][0]["values"]
    assert not chapter.record("full").exists() and any(re.fullmatch(r"E0: warming \d/4", text) for text in seen)


@pytest.mark.parametrize(
    ("jupyter", "code", "where"),
    [
        (
            False,
            "\n# the error arises in the cell above, called from here\nsize(3)",
            "line 3: TypeError: object of type",
        ),
        (
            True,
            "\n# the error arises in the cell above, called from here\nsize(3)",
            "line 3: TypeError: object of type",
        ),
        (True, "x = 1\ny = = 2", "line 2: SyntaxError"),
    ],
)
def test_a_failing_cell_is_named_and_the_stored_files_are_untouched(checkout, store, jupyter, code, where):
    chapter = checkout([(["method"], "def size(x):\n    return len(x)"), ([], code), ([], "raise SystemExit")])
    store(chapter)
    files = (chapter.path, chapter.record("quick"))
    before = [f.read_bytes() for f in files]
    with pytest.raises(NotebookError, match=f"^toy, cell 3, {where}"):
        runner.run(chapter, jupyter=jupyter)
    assert [f.read_bytes() for f in files] == before


def test_a_chapter_that_does_not_finish_leaves_no_record(checkout, toy_cells):
    chapter = checkout(toy_cells[:4])
    with pytest.raises(ReproError, match=r"toy left no record: its last code cell must be ch\.finish\(\)"):
        runner.run(chapter, jupyter=False)
    assert not chapter.record("quick").exists()


def test_a_chapter_edited_while_it_ran_is_not_stored(checkout, toy_cells):
    edit = (
        "from pathlib import Path\np = Path('toy.ipynb')\np.write_text(p.read_text().replace('return 2', 'return 3'))"
    )
    chapter = checkout([*toy_cells[:4], ([], edit), *toy_cells[5:]])
    with pytest.raises(ReproError, match="toy was edited while it ran; run it again"):
        runner.run(chapter, jupyter=False)
    assert not chapter.record("quick").exists() and "return 3" in chapter.path.read_text()


def test_a_run_that_is_going_on_refuses_a_second_one_and_only_of_the_same_chapter(checkout):
    chapter, other = checkout(), checkout(slug="other")
    with runner._alone(chapter):
        with pytest.raises(ReproError, match="toy is being run by another process; wait for it or stop it"):
            runner.run(chapter)
        with runner._alone(other):
            pass
    with runner._alone(chapter):
        pass


def test_without_jupyter_the_way_out_is_named(checkout, monkeypatch):
    monkeypatch.setattr(runner, "JUPYTER", ("nbclient", "no_such_package"))
    with pytest.raises(ReproError, match="needs the extra 'book'; or add --no-jupyter"):
        runner.run(checkout())


def test_the_quick_record_names_the_full_one_it_was_shown_beside(checkout, store, toy_cells):
    chapter = checkout(toy_cells)
    full = store(chapter, "full")
    quick = runner.run(chapter, jupyter=False)
    assert quick["beside"] == full["digest"] and records.staleness(chapter, "quick") is None
    assert notebook.code_hash(notebook.read(chapter.path)) == quick["code_hash"]
