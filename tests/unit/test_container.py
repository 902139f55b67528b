"""The container: it holds what it needs, installs what `make` installs, and does not stand in Binder's way."""

from __future__ import annotations

import json
import re
import shlex
import subprocess

from reprolib import project

ROOT = project.root()
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.M))
    return [(line.split()[0], line.partition(" ")[2]) for line in text.splitlines() if line.strip()]


def test_the_container_copies_what_exists_and_installs_what_make_installs():
    for name, words in instructions():
        if name == "COPY":
            *sources, _ = [word for word in shlex.split(words) if not word.startswith("--")]
            assert all((ROOT / source).exists() for source in sources), words
    (install,) = [words for name, words in instructions() if "pip install" in words]
    assert '-c constraints.txt -e ".[book]"' in install
    needed = {"README.md", "LICENSE", "pyproject.toml", "constraints.txt", "reprolib", "repro"}
    before = DOCKERFILE[: DOCKERFILE.index("pip install")]
    assert all(re.search(rf"^COPY .*\b{re.escape(name)}\b", before, re.M) for name in needed)


def test_the_container_has_the_python_of_the_environment_and_no_root_user():
    version = re.search(r"python=(\d\.\d+)", (ROOT / "environment.yml").read_text("utf-8"))[1]
    assert ("FROM", f"python:{version}-slim-bookworm") in instructions()
    assert instructions()[-1][0] == "CMD" and json.loads(instructions()[-1][1])[0] == "jupyter"
    assert [words for name, words in instructions() if name == "USER"] == ["reader"]


def test_the_container_leaves_out_what_is_built_here():
    ignored = (ROOT / ".dockerignore").read_text("utf-8").split()
    assert {".git", ".venv", "_build"} <= set(ignored)
    kept = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not [name for name in kept if name.split("/")[0] in ignored]


def test_binder_is_not_led_to_the_container():
    """Binder would take a Dockerfile in these places for its own, and then leave environment.yml alone."""
    assert not any((ROOT / place / "Dockerfile").exists() for place in (".", "binder", ".binder"))
    assert not any((ROOT / place).exists() for place in ("binder", ".binder", "requirements.txt"))
