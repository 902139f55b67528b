"""The strict comparison of notebook outputs: blind to digits behind ≈, not to words."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from toybook import Make

from repro import runner

SANITIZE = Path(__file__).parents[1] / "nbval_sanitize.cfg"


@pytest.fixture
def compare(checkout: Make):
    """Run the toy, change its stored outputs by a replacement, compare with nbval: (exit code, what it printed)."""
    chapter = checkout()
    runner.run(chapter)
    whole = chapter.path.read_text(encoding="utf-8")

    def after(old: str, new: str) -> tuple[int, str]:
        notebook = json.loads(whole)
        outputs = json.dumps([c.get("outputs") for c in notebook["cells"]], ensure_ascii=False)
        assert old in outputs
        for cell, changed in zip(notebook["cells"], json.loads(outputs.replace(old, new)), strict=True):
            if changed is not None:
                cell["outputs"] = changed
        chapter.path.write_text(json.dumps(notebook), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(chapter.root)]
        command += ["--nbval", "--nbval-current-env", "--nbval-sanitize-with", str(SANITIZE), str(chapter.path)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=chapter.root, check=False)
        return done.returncode, done.stdout

    return after


def test_an_edited_number_behind_the_mark_passes_and_an_edited_verdict_fails(compare):
    code, said = compare("≈+", "≈-9")
    assert code == 0, said
    code, said = compare("**reproduced**", "**not reproduced**")
    assert code == 1, said
    assert "reproduced" in said
