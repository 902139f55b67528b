"""One list of versions, a light import, and nothing in the repository that belongs to one machine."""

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import reprolib
from repro.environment import canonical, direct, render_environment, sections

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# Everything the book may use beyond the core four; reprolib has to import without any of it.
OPTIONAL = (
    "IPython ipywidgets ipykernel nbformat nbclient nbval jupyter_client jupyter_book myst_nb sphinx docutils "
    "yaml sklearn psutil pooch pandas playwright pytest tqdm"
)

IMPORT_BLOCKED = """
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Blocker())
{statement}
"""


def without_optional(statement: str) -> subprocess.CompletedProcess:
    code = IMPORT_BLOCKED.format(blocked=set(OPTIONAL.split()), statement=statement)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


def repository_files() -> list[Path]:
    """Tracked files and new ones that git does not ignore; without git (a downloaded archive) all but what is built."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.split("\0") if listed.returncode == 0 else (p.relative_to(ROOT).as_posix() for p in archive())
    return [path for name in names if name and (path := ROOT / name).is_file()]


def archive() -> Iterator[Path]:
    for top in ROOT.iterdir():
        if top.name not in {".git", ".venv", "_build"} and not top.name.endswith(("_cache", ".egg-info")):
            yield from (
                path for path in (top, *top.rglob("*")) if not {"node_modules", "__pycache__"} & set(path.parts)
            )


def test_environment_yml_is_the_one_derived_from_constraints():
    committed = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert committed == render_environment(CONSTRAINTS, ["book"]), "run: python -m repro.environment"


def test_every_requirement_is_pinned_and_its_pin_satisfies_it():
    groups, wanted = sections(CONSTRAINTS), direct(PYPROJECT)
    assert set(groups) == set(wanted)
    pins = dict(pin.split("==") for group in groups.values() for pin in group)
    for requirement in (Requirement(text) for group in wanted.values() for text in group):
        assert canonical(requirement.name) in pins, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(pins[canonical(requirement.name)]), requirement


def test_every_pin_is_exact_and_stands_once():
    pins = [pin for group in sections(CONSTRAINTS).values() for pin in group]
    assert [pin for pin in pins if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", pin)] == []
    assert len({pin.split("==")[0] for pin in pins}) == len(pins)


def test_a_pin_that_changes_changes_environment_yml():
    changed = re.sub(r"^numpy==.*$", "numpy==9.9", CONSTRAINTS, flags=re.MULTILINE)
    assert "    - numpy==9.9\n" in render_environment(changed, ["book"])


def test_the_core_dependencies_are_the_four_that_bare_gpu_machines_have():
    names = {Requirement(text).name for text in PYPROJECT["project"]["dependencies"]}
    assert names == {"numpy", "scipy", "torch", "matplotlib"}


def test_reprolib_imports_with_numpy_scipy_torch_and_matplotlib_alone():
    modules = sorted(f"reprolib.{path.stem}" for path in (ROOT / "reprolib").glob("[!_]*.py"))
    assert "reprolib.chapter" in modules  # `import reprolib` alone imports none of them
    done = without_optional(f"import repro.cli, {', '.join(modules)}; from reprolib import *")
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_found_at_home_and_an_unknown_one_is_refused():
    assert set(reprolib.__all__) == set(reprolib._HOME)
    for name, home in reprolib._HOME.items():
        assert getattr(reprolib, name) is getattr(import_module(f"reprolib.{home}"), name)
    with pytest.raises(AttributeError, match="module 'reprolib' has no attribute 'chart'"):
        _ = reprolib.chart


def test_the_process_that_starts_a_kernel_does_not_wait_for_torch():
    said = subprocess.run(
        [sys.executable, "-c", "import repro.runner, sys; print('torch' in sys.modules)"],
        **{"cwd": ROOT, "capture_output": True, "text": True, "timeout": 120},
    )
    assert said.stdout == "False\n", said.stderr


def test_the_import_blocker_blocks():
    done = without_optional("import yaml")
    assert done.returncode == 1 and "blocked: yaml" in done.stderr


def test_pre_commit_uses_the_tools_of_the_environment():
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert re.findall(r"repo: (.*)", text) == ["local"]
    entries = re.findall(r"entry: (\S+)", text)
    assert {".venv/bin/ruff", ".venv/bin/mypy"} <= set(entries)
    assert [entry for entry in entries if not entry.startswith(".venv/bin/")] == []


def test_no_file_names_a_package_host_or_a_place_on_one_machine():
    hosts = ["pypi" + ".org", "files.python" + "hosted", "registry.npm" + "js", "download.py" + "torch"]
    places = ["/wo" + "rk/", "/ro" + "ot/", ".." + "/shared"]
    found = []
    for path in repository_files():
        name = path.relative_to(ROOT).as_posix()
        text = path.read_text(encoding="utf-8", errors="ignore")
        banned = hosts + [place for place in places if (name, place) != (".ci/run", places[-1])]
        found += [f"{name}: {word}" for word in banned if word in text]
    assert found == []


def test_no_file_is_larger_than_a_megabyte_and_a_half_but_a_models_weights():
    limits = {".safetensors": 6_000_000}
    sizes = {path: path.stat().st_size for path in repository_files()}
    large = [f"{p.name}: {size:,} bytes" for p, size in sizes.items() if size > limits.get(p.suffix, 1_500_000)]
    assert large == [] and sum(sizes.values()) < 60_000_000


def test_the_library_is_small():
    """Lines that hold code: without blank lines, comments and docstrings."""
    found = sum(map(code_lines, (ROOT / "reprolib").glob("*.py")))
    assert 1000 < found < 2800


def code_lines(path):
    """How many lines of a module hold code."""
    text, passive = path.read_text(encoding="utf-8"), {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE}
    passive |= {tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = {n for t in tokens if t.type not in passive for n in range(t.start[0], t.end[0] + 1)}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            lines -= {*range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)}
    return len(lines)
