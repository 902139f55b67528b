"""The toy chapter run for real: with Jupyter and without, twice, and with cells that fail."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from test_packaging import IMPORT_BLOCKED
from toybook import TOY, make_checkout

from repro import runner
from reprolib import Chapter, ReproError, notebook, records, within
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
    with runner.alone(chapter):
        with pytest.raises(ReproError, match="toy is being run by another process; wait for it or stop it"):
            runner.run(chapter)
        with runner.alone(other):
            pass
    with runner.alone(chapter):
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


def test_a_run_that_is_stopped_from_outside_ends_at_once_and_stores_nothing(checkout, store, toy_cells):
    hold = """import os, time
from pathlib import Path
Path(os.environ["REPRO_ROOT"], "pid").write_text(str(os.getpid()))
while True:
    time.sleep(0.05)"""
    chapter = checkout([*toy_cells[:2], ([], hold), *toy_cells[2:]])
    store(chapter)
    before = chapter.record("quick").read_bytes()
    mark = chapter.root / "pid"
    with pytest.raises(runner.Cut, match="toy was stopped before its end; what was stored before is unchanged"):
        runner.run(chapter, jupyter=False, stopped=lambda: mark.exists() and mark.read_text() != "")
    assert not Path("/proc", mark.read_text()).exists()
    assert chapter.record("quick").read_bytes() == before


# ---------------------------------------------------------------------------------------------- on a bare machine


def closure(*names):
    """Names, as import sees them, of what comes with some distributions: themselves and all that they require."""
    found, queue = set(), list(names)
    while queue:
        if (name := re.sub(r"[-_.]+", "-", queue.pop()).lower()) not in found:
            found.add(name)
            wanted = map(Requirement, distribution(name).requires or [])
            queue += [r.name for r in wanted if not r.marker or r.marker.evaluate({"extra": ""})]
    return found


def test_torch_numpy_scipy_and_matplotlib_are_enough_to_run_all_that_is_stale(checkout, tmp_path):
    chapter = checkout()
    here = closure("torch", "numpy", "scipy", "matplotlib") | {"reprolib", "pip", "setuptools"}
    owners = {name: {re.sub(r"[-_.]+", "-", d).lower() for d in of} for name, of in packages_distributions().items()}
    blocked = {name for name, of in owners.items() if not of & here}
    assert {"yaml", "IPython", "nbformat", "ipywidgets", "sklearn", "psutil", "pytest"} <= blocked
    (tmp_path / "bare").mkdir()
    code = IMPORT_BLOCKED.format(blocked=blocked, statement="")
    (tmp_path / "bare" / "sitecustomize.py").write_text(code)  # holds in the worker processes, too
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "bare"), str(Path(runner.__file__).parents[1])])}

    def python(*argv):
        return subprocess.run([sys.executable, *argv], cwd=tmp_path, env=env, capture_output=True, text=True)

    assert "blocked: yaml" in python("-c", "import yaml").stderr
    flags = "--scale full --device cpu --no-jupyter".split()
    one = python("-m", "repro", "run", "toy", *flags)
    assert (one.returncode, one.stderr) == (0, ""), one.stderr
    first = records.read(chapter.record("full"))
    assert (first["runner"], first["precision"], first["sizes"]) == ("plain", "float32", {"n": 12})
    assert python("-m", "repro", "list").returncode == 0
    chapter.record("full").unlink()
    stale = python("-m", "repro", "run", *flags, "--all", "--stale", "--budget", "100")
    assert stale.returncode == 0 and "full: 1 done, 0 failed, 0 cut, 0 not started;" in stale.stdout, stale.stderr
    assert essence(records.read(chapter.record("full"))) == essence(first)


# ------------------------------------------------------------------------------ precision, and what the record says


@pytest.fixture
def gpu(checkout, monkeypatch):
    """Makes torch and a chapter at full scale believe in a GPU of a compute capability, as far as settings go."""
    checkout()

    def make(capability=(9, 0), scale="full", device="auto"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "imagined")
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 0)
        monkeypatch.setenv("REPRO_SCALE", scale)
        monkeypatch.setenv("REPRO_DEVICE", device)

    yield make
    monkeypatch.undo()
    Chapter("toy")  # puts the settings back
    assert in_force() == ("highest", False)


def in_force():
    """How float32 products and convolutions are computed."""
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


def recorded(ch):
    ch.claim("c", "A.", paper="T", criterion=within(1))
    ch.measure("c", 0.0)
    return ch._report()["precision"]


def test_a_chapter_that_asks_for_nothing_computes_in_whole_float32_whatever_was_set_before(gpu):
    gpu()
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = True, True
    ch = Chapter("toy")
    assert ch.device.type == "cuda" and in_force() == ("highest", False) and recorded(ch) == "float32"
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (True, False)


def test_tf32_is_in_force_on_a_gpu_at_full_scale_and_recorded(gpu):
    gpu()
    ch = Chapter("toy", precision="tf32")
    assert in_force() == ("high", True) and recorded(ch) == "tf32"


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize(
    "where", [{"scale": "quick", "device": "cuda"}, {"device": "cpu"}, {"capability": (7, 5)}], ids=str
)
def test_at_quick_scale_on_a_cpu_and_on_an_old_gpu_all_is_float32(gpu, precision, where):
    gpu(**where)
    ch = Chapter("toy", precision=precision)
    if precision == "bf16":
        with ch.autocast():
            assert not torch.is_autocast_enabled("cuda") and not torch.is_autocast_enabled("cpu")
    assert in_force() == ("highest", False) and recorded(ch) == "float32"


def test_bf16_is_in_force_within_autocast_and_recorded_only_if_that_was_used(gpu):
    gpu()
    ch = Chapter("toy", precision="bf16")
    assert ch._report()["precision"] == "float32"
    with ch.autocast():
        assert torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.bfloat16
    assert not torch.is_autocast_enabled("cuda")
    assert in_force() == ("highest", False) and recorded(ch) == "bf16"


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_autocast_that_was_not_asked_for_is_refused_at_quick_scale_already(checkout, precision):
    checkout()
    with pytest.raises(ValueError, match=f'autocast.. needs precision "bf16"; this chapter was made with .{precision}'):
        Chapter("toy", precision=precision).autocast()


def test_a_precision_that_is_none_is_refused():
    with pytest.raises(ValueError, match="precision must be one of float32, tf32, bf16; got 'half'"):
        Chapter("toy", precision="half")
