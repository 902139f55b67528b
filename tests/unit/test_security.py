"""What our code must never do, found in its syntax; what our published files must never tell, found in their text."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from leaks import told

from reprolib import notebook, project

ROOT = project.root()
UNSAFE = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve"}
NETWORK = {"aiohttp", "ftplib", "gdown", "httpx", "pooch", "requests", "smtplib", "telnetlib", "urllib3", "wget"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "urllib.request.urlopen"}
CALLS |= {"subprocess.getoutput", "subprocess.getstatusoutput", "urllib.request.urlretrieve", "torch.hub.load"}
METHODS = {"read_pickle", "to_pickle", "unsafe_load", "full_load", "load_state_dict_from_url"}
ALLOWED = {
    ("reprolib/notebook.py", "exec"): "runs the code cells of a chapter that its reader asked to run",
    ("reprolib/notebook.py", "compile"): "the same",
    ("reprolib/download.py", "urllib.request.urlopen"): "checks size and SHA-256 of what it brings",
}


def _names(tree: ast.Module) -> dict[str, str]:
    """What each imported name of a module stands for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {
                a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0] for a in node.names
            }
        elif isinstance(node, ast.ImportFrom):
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return found


def _modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [a.name for a in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def faults(code: str) -> Iterator[str]:
    """What a piece of Python does that needs a reason, by name."""
    tree = ast.parse(code)
    names = _names(tree)
    for node in ast.walk(tree):
        yield from (m for m in _modules(node) if m.split(".")[0] in UNSAFE | NETWORK)
        if isinstance(node, ast.Attribute | ast.Name):
            first, _, rest = ast.unparse(node).partition(".")
            path = f"{names.get(first, first)}{'.' if rest else ''}{rest}"
            if path in CALLS or path.split(".")[-1] in METHODS:
                yield path
        elif isinstance(node, ast.Call):
            yield from _loads(node, names)


def _loads(call: ast.Call, names: dict[str, str]) -> Iterator[str]:
    """What is wrong with the arguments of a call."""
    first, _, rest = ast.unparse(call.func).partition(".")
    path = f"{names.get(first, first)}{'.' if rest else ''}{rest}"
    given = {k.arg: ast.unparse(k.value) for k in call.keywords}
    if path == "torch.load" and given.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if path == "yaml.load" and not any(
        a.endswith("SafeLoader") for a in [*map(ast.unparse, call.args[1:]), *given.values()]
    ):
        yield "yaml.load without SafeLoader"
    yield from (f"{key}={given[key]}" for key in ("shell", "allow_pickle") if given.get(key, "False") != "False")


def _is_for_colab(cell: dict) -> bool:
    """Whether a cell is the one that fetches the book on Colab, with commands that are fixed texts."""
    systems = [n for n in ast.walk(ast.parse(notebook.source(cell))) if isinstance(n, ast.Call)]
    fixed = (isinstance(n.args[0], ast.Constant) for n in systems if ast.unparse(n.func) == "os.system")
    return "colab" in notebook.tags(cell) and all(fixed)


def code_of(root: Path) -> Iterator[tuple[str, str]]:
    """(file, code) of all Python that is ours: modules, and the cells of notebooks."""
    for folder in ("repro", "reprolib", "benchmarks", "models"):
        for path in sorted((root / folder).rglob("*.py")):
            yield path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
    for chapter in project.notebooks(root):
        for number, cell in enumerate(notebook.read(chapter.path)["cells"]):
            if cell["cell_type"] == "code" and not _is_for_colab(cell):
                yield f"{chapter.path.relative_to(root).as_posix()}, cell {number}", notebook.source(cell)


def test_no_code_loads_pickles_runs_text_or_downloads_unchecked():
    found = {(name, fault) for name, code in code_of(ROOT) for fault in faults(code)}
    assert found - set(ALLOWED) == set(), "each needs a reason in ALLOWED, or another way"
    assert set(ALLOWED) - found == set(), "no longer done: take it out of ALLOWED"


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("import pickle\npickle.load(file)", "pickle"),
        ("from joblib import load", "joblib"),
        ("import numpy as np\nnp.load(path, allow_pickle=True)", "allow_pickle=True"),
        ("import numpy as np\nnp.load(path, allow_pickle=unsure)", "allow_pickle=unsure"),
        ("import torch\ntorch.load(path)", "torch.load without weights_only=True"),
        ("from torch import load as fetch\nfetch(path, weights_only=False)", "torch.load without weights_only=True"),
        ("import pandas\npandas.read_pickle(path)", "pandas.read_pickle"),
        ("import yaml\nyaml.load(text, Loader=yaml.Loader)", "yaml.load without SafeLoader"),
        ("import subprocess\nsubprocess.run(line, shell=True)", "shell=True"),
        ("import os as system\nsystem.system(line)", "os.system"),
        ("run = eval\nrun(text)", "eval"),
        ("from urllib.request import urlopen as get\nget(url)", "urllib.request.urlopen"),
        ("import requests", "requests"),
        ("import torch\ntorch.hub.load_state_dict_from_url(url)", "torch.hub.load_state_dict_from_url"),
    ],
)
def test_the_search_finds_what_is_forbidden(tmp_path, code, fault):
    (tmp_path / "repro").mkdir()
    (tmp_path / "repro" / "module.py").write_text(f"def f(path, file, text, line, url):\n    pass\n\n\n{code}\n")
    assert [(name, fault) for name, code in code_of(tmp_path) for fault in faults(code)] == [("repro/module.py", fault)]


def test_the_search_leaves_safe_ways_alone():
    safe = "import numpy as np, torch, yaml, subprocess\nmodel.eval()\nnp.load(f)\ntorch.load(f, weights_only=True)\n"
    safe += "yaml.safe_load(t)\nyaml.load(t, yaml.CSafeLoader)\nsubprocess.run(['ls'], shell=False)\nre.compile(t)\n"
    assert list(faults(safe)) == []


def test_every_file_of_a_data_set_has_its_checksum():
    sets = tomllib.loads((ROOT / "reprolib" / "datasets.toml").read_text(encoding="utf-8"))["public"]
    files = [(name, f) for name, s in sets.items() for form in s["forms"] for f in form["files"]]
    assert len(files) > 20
    assert [(name, f["path"]) for name, f in files if not re.fullmatch("[0-9a-f]{64}", f.get("sha256", ""))] == []


def published(root: Path) -> list[Path]:
    """The files that readers get, but for the site, which is made of them."""
    patterns = ("chapters/**/*.ipynb", "chapters/**/*.md", "book/**/*.md", "book/**/*.ipynb", "book/*.yml", "*.md")
    patterns += ("results/**/*.json", "benchmarks/*.json", "models/*.json", "book/_static/*")
    found = {p for pattern in patterns for p in root.glob(pattern) if p.is_file()}
    return sorted(p for p in found if not {"node_modules", ".ipynb_checkpoints"} & set(p.parts))


def test_what_is_published_tells_no_place_no_secret_and_no_address():
    files = published(ROOT)
    assert {".ipynb", ".json", ".md"} <= {p.suffix for p in files}
    names = {p: p.relative_to(ROOT).as_posix() for p in files}
    assert [leak for p in files for leak in told(names[p], p.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    "leak",
    [
        "File /ho" + "me/ada/book/run.py",
        "'/ro" + "ot/book'",
        "see /tm" + "p/out.txt",
        "C:\\Use" + "rs\\ada",
        "AKIA" + "ABCDEFGHIJKLMNOP",
        "ghp" + "_0123456789abcdefghijABCDEFGHIJ",
        "-----BEGIN" + " OPENSSH PRIVATE KEY-----",
        "api_key" + ' = "0123456789abcdef"',
        "ask ada" + "@lovelace.example.org",
        "tcp://10.1.2" + ".3:8786",
    ],
)
def test_a_leak_is_named_with_file_and_place(leak):
    nb = {"cells": [{"outputs": [{"data": {"text/plain": ["A line\n", leak], "image/png": leak}}]}]}
    found = told("chapters/a/b.ipynb", json.dumps(nb))
    assert len(found) == 1 and found[0].startswith("chapters/a/b.ipynb/cells/0/outputs/0/data/text/plain: ")


def test_addresses_of_pages_and_paths_in_the_book_are_no_leaks():
    fine = "https://arxiv.org/abs/1 https://a.org/home/x _build/html ../home/x results/quick a/tmp/b 127.0.0.1:8000"
    assert told("page.md", fine) == []


def test_the_weekly_run_looks_for_known_weaknesses_of_the_pinned_versions():
    text = (ROOT / ".github" / "workflows" / "newest.yml").read_text(encoding="utf-8")
    assert re.search(r"run: .*pip[-_]audit .*constraints\.txt", text)
