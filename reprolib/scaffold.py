"""Start a chapter: a notebook and a test file with every required part in place, and TODO where the thinking goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reprolib import lint, project, records
from reprolib.project import ReproError


def new_chapter(root: Path, slug: str) -> Path:
    """Write the scaffold of a chapter from its entry in book/papers.yml, and print what remains.

    The notebook runs as it is and breaks `repro lint` only by its TODOs and by not having been run.

    Returns:
        The notebook, chapters/<part>/<slug>.ipynb.

    Raises:
        ReproError: The slug has no entry (names the nearest), the entry lacks fields, or a file exists already.
    """
    content = project.papers(root)
    entries = {entry["slug"]: entry for entry in content["papers"]}
    if slug not in entries:
        near = project.nearest(slug, list(entries))
        raise ReproError(f"No paper {slug!r} in book/papers.yml; add its entry first. {near}")
    entry = entries[slug]
    if missing := lint.missing_fields(entry):
        raise ReproError(f"The entry of {slug!r} in book/papers.yml lacks {', '.join(missing)}; add it.")
    if entry["part"] not in (parts := [part["id"] for part in content["parts"]]):
        raise ReproError(f"The part of {slug!r} must be one of {', '.join(parts)}; got {entry['part']!r}.")
    path = root / "chapters" / entry["part"] / f"{slug}.ipynb"
    test = root / "tests" / "chapters" / f"test_{slug.replace('-', '_')}.py"
    for file in (path, test):
        if file.exists():
            raise ReproError(f"{file.relative_to(root)} exists already; nothing was written.")
    for file, text in ((path, notebook(entry)), (test, TEST.replace("SLUG", slug))):
        file.parent.mkdir(parents=True, exist_ok=True)
        records.write_atomic(file, text)
    print(f"Wrote {path.relative_to(root)} and {test.relative_to(root)}. What remains:")
    for step in _remaining(root, entry):
        print(f"  - {step}")
    return path


def _remaining(root: Path, entry: dict[str, Any]) -> list[str]:
    slug, toc = entry["slug"], root / "_toc.yml"
    steps = []
    if not toc.exists() or f"chapters/{entry['part']}/{slug}" not in toc.read_text("utf-8"):
        steps.append(f"_toc.yml: under the part {entry['part']!r} add '- file: chapters/{entry['part']}/{slug}'")
    if slug not in lint.bib_keys(root / "book" / "references.bib"):
        steps.append(f"book/references.bib: add an entry with the key {slug}")
    steps += ["replace every TODO in the notebook and in its test", f"repro run {slug}, then repro lint"]
    return steps


def notebook(entry: dict[str, Any]) -> str:
    """The scaffold as the text of an .ipynb file (nbformat 4.5)."""
    slug, cells = entry["slug"], []
    values = {"SLUG": slug, "TITLE": entry["title"], "LINKS": _links(entry)}
    for number, block in enumerate(CELLS.split("\n%% ")[1:]):
        header, _, source = block.partition("\n")
        kind, *tags = header.split()
        for name, value in values.items():
            source = source.replace(name, value)
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number:02d}", "metadata": {}}
        cell["metadata"] |= {"tags": tags} if tags else {}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        cells.append({**cell, "source": source.strip("\n").splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    content = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _links(entry: dict[str, Any]) -> str:
    links = [f"{', '.join(entry['authors'])} · {entry['venue']} {entry['year']}"]
    links += [f"[arXiv {entry['arxiv']}](https://arxiv.org/abs/{entry['arxiv']})"] if entry["arxiv"] else []
    links += [f"[the authors' code]({entry['code']})"] if entry["code"] else []
    return " · ".join(links)


TEST = '''"""The method cells of SLUG against an independent answer."""

import pytest
import torch
from torch.testing import assert_close

from reprolib import notebook, project


@pytest.fixture(scope="module")
def chapter():
    return notebook.load_methods(project.find("SLUG").path)


def test_method_agrees_with_its_oracle(chapter):
    result, expected = chapter.method(torch.arange(5.0)), None
    assert expected is not None, "TODO: write the oracle of SLUG"
    assert_close(result, expected)
'''

CELLS = '''
%% markdown
# TITLE

LINKS

**Shows** TODO: the claims, in one line each. **Left out:** TODO.
**Cost:** quick TODO s on two CPU cores, full TODO min on one GPU.
%% markdown
## In one minute

TODO: which problem, what idea; the verdicts say what was found.
%% code
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch

from reprolib import Chapter, above, approx_interval, check, figure, require, say, self_check, slider
%% code
class Sizes(NamedTuple):
    """All that differs between the quick and the full run."""

    n_seeds: int


ch = Chapter("SLUG")
sizes = ch.scale(quick=Sizes(n_seeds=10), full=Sizes(n_seeds=20))  # TODO
%% markdown
## Claims

TODO: where the claims come from, and what would refute them.
%% code claims
ch.claim(
    "c1",
    "TODO: one sentence that can turn out false.",
    paper="TODO: table or figure, with its number",
    criterion=above(0),
    headline=True,
)
ch.claims_table()
%% markdown
## The idea

TODO: the idea in words, with one picture.
%% markdown
## Notation

| paper | code | shape | meaning |
|---|---|---|---|
| $x$ | `x` | (N,) | TODO |
%% markdown
## The method

TODO: the equation, labelled, then the cell that implements it.

$$\\bar x = \\frac1N \\sum_n x_n$$ (eq-SLUG)
%% code method
from torch import Tensor


def method(x: Tensor) -> Tensor:
    """TODO: the paper's method (eq-SLUG)."""
    return x.sum() / len(x)  # x̄   ()
%% markdown
## Check

TODO: the method against an independent answer.
%% code
torch.testing.assert_close(method(torch.arange(5.0)), torch.tensor(2.0))
%% markdown
## Experiments

TODO: what is run, at which cost, against which baselines.
%% code
rng = ch.generator()
gains = torch.stack([method(torch.randn(50, generator=rng)) for _ in ch.progress(range(sizes.n_seeds), "E1")])
c1 = ch.measure("c1", gains)  # TODO: one value a seed
%% code
say(f"TODO: over {len(gains)} seeds the gain is {approx_interval(c1)}: **{c1.verdict}**.")
%% code hide-input
fig, ax = plt.subplots()
ax.plot(sorted(gains.tolist()), marker="o")
ax.set(xlabel="seed, sorted", ylabel="gain (TODO: unit)")
figure(fig, name="fig-gain", caption="TODO: what to see.", alt="TODO: what a reader who cannot see it must know.")
%% markdown
## Explore

TODO: what to move and what to look for.
%% code hide-input
frames, labels = [], []
for power in (1, 2, 3):
    frame, ax = plt.subplots()
    ax.plot(torch.linspace(0, 1, 20), torch.linspace(0, 1, 20) ** power)
    ax.set(xlabel="x", ylabel="y")
    frames.append(frame)
    labels.append(f"power {power}")
slider(frames, labels, name="power", caption="TODO: what to see.", alt="TODO: what the frames show, in words.")
%% markdown
## Verdicts
%% code
ch.verdicts()
%% markdown
### Departures from the paper

| # | source | here | why | effect |
|---|---|---|---|---|
| 1 | TODO | TODO | TODO | TODO |

### Limits

TODO: where the method breaks.
%% markdown
## Exercises
%% markdown
### Exercise 1 (pencil)

TODO: a question whose answer is a number or a formula.
%% code exercise
answer_1 = None
%% code self-check hide-input
@self_check("SLUG/1")
def check_1(answer):
    require(answer == 1, "TODO: what is wrong, without the answer.")


check("SLUG/1", answer_1)
%% markdown solution
```{dropdown} Solution
TODO: the derivation.
```
%% code solution hide-input
solution_1 = 1
check("SLUG/1", solution_1)
%% markdown
### Exercise 2 (code)

TODO: a function to write or to change.
%% code exercise
answer_2 = None
%% code self-check hide-input
@self_check("SLUG/2")
def check_2(answer):
    require(answer(2) == 4, "TODO: what is wrong, without the answer.")


check("SLUG/2", answer_2)
%% code solution hide-input
def solution_2(x):
    return x**2  # TODO


check("SLUG/2", solution_2)
%% markdown
### Exercise 3 (open)

TODO: a question to explore, with something in it that can be checked.
%% code exercise
answer_3 = None
%% code self-check hide-input
@self_check("SLUG/3")
def check_3(answer):
    require(len(answer) > 0, "TODO: what is missing, without the answer.")


check("SLUG/3", answer_3)
%% markdown solution
```{dropdown} Solution
TODO: one good answer.
```
%% code solution hide-input
solution_3 = "TODO"
check("SLUG/3", solution_3)
%% markdown
## References

The paper: {cite:t}`SLUG`.
%% code
ch.finish()
'''
